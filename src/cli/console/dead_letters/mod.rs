//! Dead letters: groups, single ones, and what visitors do with them.
//!
//! Looking at them must not lock their queue for other operators. So the pages show a copy that [`board`] makes in about a second and
//! keeps in memory; only a change takes the dead letters, for as long as it runs.

pub mod actions;
pub mod board;
pub mod pages;
