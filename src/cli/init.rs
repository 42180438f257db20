//! `offramp init`: what must be there at the servers, declared.

use std::io::{Write, stdout};

use clap::Args;
use offramp::broker::{Broker, Declared, Topology};
use offramp::config::{BrokerSettings, DatabaseSettings, TlsSettings};
use offramp::store::Store;

/// Declare the exchanges and queues at RabbitMQ and the indexes in MongoDB
#[derive(Args, Debug)]
#[command(after_help = "\
What exists stays as it is. `offramp run` does the same at its start; this is for set-ups in which the worker's own user may not \
declare anything, and for publishing before a worker runs.")]
pub struct Arguments {
    #[command(flatten)]
    broker: BrokerSettings,
    #[command(flatten)]
    database: DatabaseSettings,
    #[command(flatten)]
    tls: TlsSettings,
}

pub async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let BrokerSettings { amqp_url, prefix } = arguments.broker;
    let tls = arguments.tls.tls();
    let broker = Broker::with_tls(amqp_url, "offramp init", tls.clone());
    let Declared { created, existing, unchecked } = Topology::new(prefix).declare(&broker).await?;
    let mut out = stdout().lock();
    for object in &created {
        writeln!(out, "RabbitMQ: created {object}")?;
    }
    for object in &unchecked {
        writeln!(out, "RabbitMQ: this user may not check {object}")?;
    }
    writeln!(out, "RabbitMQ: {} objects created, {} were there", created.len(), existing.len())?;
    drop(out);

    let store = Store::open(arguments.database.mongodb_url.connection_string(), &tls).await?;
    let missing = store.missing_indexes().await?;
    store.create_indexes().await?;
    let mut out = stdout().lock();
    for index in &missing {
        writeln!(out, "MongoDB: created index {index}")?;
    }
    let database = arguments.database.mongodb_url.database();
    writeln!(out, "MongoDB: {} indexes created in {database}", missing.len())?;
    Ok(())
}
