//! Offramp ends monthly subscriptions: commands in from RabbitMQ, documents changed in MongoDB, mails and events out.
//!
//! Reading order: [`domain`] — every rule, pure. [`store`] — the database. Around them, the program: [`config`] — every
//! setting; [`logging`]; [`http`] — health and metrics;
//! [`jsonl`] — files of documents and commands; [`schemas`] — what other systems read and write.

pub mod config;
pub mod domain;
pub mod http;
pub mod jsonl;
pub mod logging;
pub mod schemas;
pub mod store;
