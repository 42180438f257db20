//! Offramp ends monthly subscriptions: commands in from RabbitMQ, documents changed in MongoDB, mails and events out.
//!
//! Reading order: [`domain`] — every rule, pure; [`broker`] — everything that touches RabbitMQ.

pub mod broker;
pub mod domain;
