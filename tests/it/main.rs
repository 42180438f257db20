//! Integration tests: everything that other systems can observe, on real servers, with a file per guarantee.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that cannot go on has failed")]
#![allow(clippy::too_many_lines, reason = "a scenario is easier to follow in one piece")]

mod answers;
mod broker;
mod calendar;
mod check;
mod cli;
#[cfg(target_os = "linux")]
mod clocks;
mod console;
mod documents;
mod email;
mod end_to_end;
mod every_email;
mod examples;
mod hostile;
#[cfg(target_os = "linux")]
mod limits;
mod mail_server_replies;
mod metrics;
mod model;
mod operators;
mod outages;
mod outbox;
mod preview;
#[cfg(target_os = "linux")]
mod real_mail_servers;
mod replies;
mod shutdown;
mod support;
mod sweep;
#[cfg(target_os = "linux")]
mod tls;
mod traces;
mod versions;
