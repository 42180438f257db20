//! Offramp ends monthly subscriptions. It receives commands from RabbitMQ, updates documents in MongoDB, and sends emails and
//! events.
//!
//! The rules are in the crate `offramp-domain`, the emails in `offramp-mail`; neither depends on this crate.
//!
//! - [`worker`]: everything that `offramp run` does. Start reading here.
//! - [`amqp`] and [`store`]: RabbitMQ and MongoDB.
//! - [`jsonl`] and [`schemas`]: importing documents, and the JSON Schemas of commands, events and documents.
//! - [`support`]: what happened to a subscription or an account, for support staff.
//! - [`document_check`]: which documents cannot be processed.
//! - [`config`], [`tls`], [`http`], [`health`], [`systemd`], [`logging`], [`metrics`], [`traces`], [`build`], [`backoff`]
//!   and [`clock`]: the parts of any service.
//! - [`advice`]: which setting to change after which fault.

pub mod advice;
pub mod amqp;
pub mod backoff;
pub mod build;
pub mod clock;
pub mod config;
pub mod document_check;
#[cfg(test)]
mod generated_page;
pub mod health;
pub mod http;
pub mod jsonl;
pub mod logging;
pub mod metrics;
mod outage;
pub mod schemas;
pub mod store;
pub mod support;
pub mod systemd;
pub mod tls;
pub mod traces;
pub mod worker;
