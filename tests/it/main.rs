//! What other systems can see, tried from outside, on real servers: one binary, a file per promise.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that cannot go on has failed")]
#![allow(clippy::too_many_lines, reason = "a story is told from its beginning to its end")]

mod answers;
mod broker;
mod calendar;
mod cli;
mod documents;
mod email;
mod every_email;
mod examples;
mod hostile;
mod mail_server_replies;
mod model;
mod operators;
mod outages;
mod outbox;
mod preview;
#[cfg(target_os = "linux")]
mod real_mail_servers;
mod shutdown;
mod story;
mod sweep;
#[cfg(target_os = "linux")]
mod tls;
