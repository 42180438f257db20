//! Offramp ends monthly subscriptions: commands in from RabbitMQ, documents changed in MongoDB, mails and events out.
//!
//! Reading order: [`domain`] — every rule, pure. [`worker`] — a lane on one screen; [`engine`] — load, fold, commit;
//! [`outbox`] — sends emails and events; [`claimer`] — claims outbox entries whose lease has expired; [`sweeper`] — what time
//! does. Around them, one folder for each server: [`broker`], [`store`], [`mail`]. [`run`] puts them together; [`config`], [`tls`], [`http`], [`logging`] are what every service has; [`jsonl`] and
//! [`schemas`] are for those who write documents and commands.

pub mod advice;
pub mod amqp;
pub mod backoff;
pub mod clock;
pub mod config;
pub mod http;
pub mod jsonl;
pub mod logging;
pub mod schemas;
pub mod store;
pub mod tls;
pub mod worker;
