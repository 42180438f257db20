//! `offramp init`: declares the objects of RabbitMQ and creates the indexes of MongoDB.

use std::io::{Write, stderr, stdout};
use std::pin::pin;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use clap::Args;
use offramp::amqp::{Broker, Declaration, Topology, TopologyError};
use offramp::config::{BrokerSettings, DatabaseSettings, TlsSettings};
use offramp::store::Store;
use offramp::store::indexes::Index;
use tokio::time::timeout;

/// How often to report the progress of building an index.
const PROGRESS_EVERY: Duration = Duration::from_secs(10);

/// How long to wait for a RabbitMQ that does not answer: longer than a cluster takes to notice that a node is frozen (60 to 75 s)
/// and to elect new leaders for its queues.
const RABBITMQ_PATIENCE: Duration = Duration::from_secs(180);

/// Declare exchanges and queues in RabbitMQ, and create indexes in MongoDB
#[derive(Args, Debug)]
#[command(after_help = "\
Existing objects are not changed. `offramp run` also creates what is missing. Use `init` when the worker's user has no right to \
declare objects, to publish before a worker runs, and to build indexes of large collections before an update. \
It waits up to 3 minutes for a RabbitMQ that does not answer, for instance because a node of a cluster is frozen.

Indexes that only earlier versions use are listed. Drop them with --drop-superseded when no worker of an earlier version runs: \
without them it would scan whole collections.")]
pub struct Arguments {
    /// Also drop indexes that only earlier versions use
    #[arg(long)]
    drop_superseded: bool,

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
    let Declaration { created, existing, unchecked } = declare(&Topology::new(prefix), &broker).await?;
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
    for index in &missing {
        let took = build(&store, index).await?;
        writeln!(stdout(), "MongoDB: created index {index} in {:.1} s", took.as_secs_f64())?;
    }
    let superseded = store.superseded_indexes().await?;
    for index in &superseded {
        if arguments.drop_superseded {
            store.drop_index(index).await?;
            writeln!(stdout(), "MongoDB: dropped index {index}")?;
        } else {
            writeln!(stdout(), "MongoDB: only earlier versions use the index {index}; see --drop-superseded")?;
        }
    }
    let database = arguments.database.mongodb_url.database();
    writeln!(stdout(), "MongoDB: {} indexes created in {database}", missing.len())?;
    Ok(())
}

/// Declares the objects of RabbitMQ, and reports why it has to wait.
async fn declare(topology: &Topology, broker: &Broker) -> anyhow::Result<Declaration> {
    let begin = Instant::now();
    let report = |error: &TopologyError| {
        let (waited, patience) = (begin.elapsed().as_secs(), RABBITMQ_PATIENCE.as_secs());
        // Without standard error there is nobody to tell.
        let _ = writeln!(stderr(), "RabbitMQ: {error}; retrying ({waited} of {patience} s)");
    };
    let declared = topology.declare_patiently(broker, RABBITMQ_PATIENCE, report).await;
    let waited = begin.elapsed().as_secs();
    declared.map_err(|error| match error {
        TopologyError::Broker(error) if waited >= RABBITMQ_PATIENCE.as_secs() => {
            anyhow!("{error}. Gave up after {waited} s; what was declared stays, and `offramp init` can be repeated")
        }
        error => error.into(),
    })
}

/// Builds an index, reports the progress, and returns the time it took.
async fn build(store: &Store, index: &Index) -> anyhow::Result<Duration> {
    let begin = Instant::now();
    let mut building = pin!(store.create_index(index));
    let built = loop {
        if let Ok(built) = timeout(PROGRESS_EVERY, &mut building).await {
            break built;
        }
        let percent = store.build_progress(index.collection).await;
        let percent = percent.map(|percent| format!(", {percent} %")).unwrap_or_default();
        writeln!(stderr(), "MongoDB: still building index {index} after {} s{percent}", begin.elapsed().as_secs())?;
    };
    built.with_context(|| format!("the index {index}"))?;
    Ok(begin.elapsed())
}
