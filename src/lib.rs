//! Offramp ends monthly subscriptions: commands in from RabbitMQ, documents changed in MongoDB, mails and events out.
//!
//! The rules are in the crate `offramp-domain`, the emails in `offramp-mail`; neither knows this crate. Reading order here:
//! [`worker`] — everything that `offramp run` runs; [`amqp`] and [`store`] — RabbitMQ and MongoDB. [`config`], [`tls`],
//! [`http`], [`logging`], [`backoff`] and [`clock`] are what every service has; [`advice`] is what operators are told. [`jsonl`]
//! and [`schemas`] are for those who write documents and commands.

pub mod advice;
pub mod amqp;
pub mod backoff;
pub mod clock;
pub mod config;
#[cfg(test)]
mod generated_page;
pub mod health;
pub mod http;
pub mod jsonl;
pub mod logging;
pub mod metrics;
pub mod schemas;
pub mod store;
pub mod tls;
pub mod worker;
