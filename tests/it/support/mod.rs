//! What the tests share: fresh names on real servers, and ways to disturb them.

pub mod rabbit;
