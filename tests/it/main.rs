//! What other systems can see, tried from outside, on real servers: one binary, a file per promise.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that cannot go on has failed")]

mod answers;
mod broker;
mod mail;
mod model;
mod story;
mod support;
mod time;
