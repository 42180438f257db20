//! Offramp ends monthly subscriptions: commands in from RabbitMQ, documents changed in MongoDB, mails and events out.
//!
//! Reading order: [`domain`] — every rule, pure; [`mail`] — what people read, and how it reaches them.

pub mod domain;
pub mod mail;
