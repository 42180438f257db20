//! Offramp ends monthly subscriptions: commands in from RabbitMQ, documents changed in MongoDB, mails and events out.
//!
//! Reading order: [`domain`] — every rule, pure. [`worker`] — a lane on one screen; [`engine`] — load, fold, commit;
//! [`outbox`] — sends emails and events; [`claimer`] — claims outbox entries whose lease has expired; [`sweeper`] — what time
//! does. Around them, one folder for each server: [`broker`], [`store`], [`mail`]. [`run`] puts them together; [`config`], [`tls`], [`http`], [`logging`] are what every service has; [`jsonl`] and
//! [`schemas`] are for those who write documents and commands.

pub mod broker;
pub mod claimer;
pub mod clock;
pub mod config;
pub mod engine;
pub mod http;
pub mod indexes;
pub mod jsonl;
pub mod logging;
pub mod outbox;
pub mod pacer;
pub mod pauses;
pub mod run;
pub mod schemas;
pub mod store;
pub mod sweeper;
pub mod tls;
pub mod worker;
