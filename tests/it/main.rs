//! Everything that needs a real server, in one program: a module for each promise.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
// In a test each of these is an assertion.

mod broker;
mod support;
