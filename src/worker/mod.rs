//! The worker as a whole: everything that runs, in the order in which it starts and stops.

pub mod claimer;
mod companions;
pub mod composer;
pub mod dispatcher;
mod email_sender;
pub mod engine;
pub mod event_sender;
pub mod handover;
pub mod indexes;
pub mod lane;
mod lease;
mod mail_server;
mod marker;
pub mod pacer;
mod set_aside;
pub mod sweeper;
pub mod unmarked;

use std::sync::Arc;
use std::time::Duration;

use metrics_exporter_prometheus::PrometheusHandle;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::amqp::{Broker, Consumer, LaneHealth, Publisher, Topology, TopologyError};
use crate::backoff::Backoff;
use crate::config::{MongodbUrl, WorkerSettings};
use crate::http::{self, Readiness, ReadyHandle};
use crate::store::inspect::Index;
use crate::store::{Store, StoreError};
use crate::tls::Tls;
use crate::worker::claimer::Claimer;
use crate::worker::composer::Composer;
use crate::worker::dispatcher::{Dispatcher, DispatcherOptions, DispatcherParts};
use crate::worker::engine::Engine;
use crate::worker::handover::Handover;
use crate::worker::indexes::Indexes;
use crate::worker::lane::Lane;
use crate::worker::sweeper::Sweeper;
use offramp_domain::command::CommandType;
use offramp_mail::Transport;

/// How many messages the broker sends ahead, in batches: the next batch waits in memory while one is worked on.
pub const PREFETCH_BATCHES: usize = 2;
/// How long to wait before a server that is away at the start is tried again: from the first to the longest, see
/// [`Backoff`].
const START_EVERY: (Duration, Duration) = (Duration::from_millis(200), Duration::from_millis(1_500));
/// How much of the time for stopping is kept for giving back what could not be sent: a part of it, and at most so much.
const GIVE_BACK: (u32, Duration) = (4, Duration::from_secs(3));

/// Everything that a worker works with.
#[derive(Debug)]
pub struct Parts {
    /// RabbitMQ.
    pub broker: Broker,
    /// Names of its objects.
    pub topology: Topology,
    /// MongoDB.
    pub mongodb_url: MongodbUrl,
    /// Whom we trust there, and who we are.
    pub tls: Tls,
    /// Writes mails.
    pub composer: Composer,
    /// Sends them.
    pub transport: Transport,
    /// How many connections to the mail server.
    pub mail_connections: usize,
    /// How many emails per second at most.
    pub mail_per_second: Option<f64>,
    /// The worker's pace.
    pub pace: WorkerSettings,
}

/// Why a worker cannot start.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The broker's objects are there with other properties.
    #[error(transparent)]
    Topology(#[from] TopologyError),
    /// The database refuses its indexes.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A part of the worker has ended by itself, which is a mistake in the program.
    #[error("a part of the worker has ended by itself; it stopped so that whoever supervises it starts it again")]
    Broken,
}

/// Runs a worker until `shutdown`, and answers for its health on `http`.
///
/// # Errors
/// When the broker's objects or the database's indexes are there with other properties. Servers that are away are waited
/// for.
pub async fn run(
    parts: Parts,
    http: TcpListener,
    metrics: PrometheusHandle,
    shutdown: CancellationToken,
) -> Result<(), RunError> {
    let readiness = Readiness::default();
    let unhealthy = CancellationToken::new();
    let health = tokio::spawn(http::serve(http, readiness.clone(), metrics, unhealthy.clone()));
    let result = match shutdown.run_until_cancelled(prepare(&parts, &readiness)).await {
        Some(Ok((store, ready, missing))) => {
            Worker::start(parts, store, &readiness, ready, missing).await.stop_after(shutdown).await
        }
        Some(Err(error)) => Err(error),
        None => Ok(()),
    };
    unhealthy.cancel();
    // It ends within a second or so, whoever is still connected.
    drop(health.await);
    result
}

/// Declares what must be there at the broker, and looks whether all indexes are there, waiting for servers that are away.
async fn prepare(parts: &Parts, readiness: &Readiness) -> Result<(Store, ReadyHandle, Vec<Index>), RunError> {
    let broker_ready = readiness.component("rabbitmq");
    let database_ready = readiness.component("mongodb");
    let mut backoff = Backoff::new(START_EVERY);
    let database_is_away = |error: &str| {
        tracing::warn!(error, "MongoDB is away; trying again");
        database_ready.not_ready(error);
    };
    // Before anything is waited for, so that a mistake in the settings is known at once.
    let store = loop {
        match Store::open(parts.mongodb_url.connection_string(), &parts.tls).await {
            Ok(store) => break store,
            Err(error @ StoreError::Refused(_)) => return Err(error.into()),
            Err(error) => database_is_away(&error.reason()),
        }
        tokio::time::sleep(backoff.next_delay()).await;
    };
    loop {
        match parts.topology.declare(&parts.broker).await {
            Ok(_) => break,
            Err(TopologyError::Broker(error)) => {
                tracing::warn!(%error, "RabbitMQ is away; trying again");
                broker_ready.not_ready(&error.to_string());
            }
            Err(error) => return Err(error.into()),
        }
        tokio::time::sleep(backoff.next_delay()).await;
    }
    // From here on each lane answers for its own connection.
    broker_ready.retire();
    let missing = loop {
        match store.missing_indexes().await {
            Ok(missing) => break missing,
            Err(error @ StoreError::Refused(_)) => return Err(error.into()),
            Err(error) => database_is_away(&error.reason()),
        }
        tokio::time::sleep(backoff.next_delay()).await;
    };
    Ok((store, database_ready, missing))
}

/// A worker that runs.
struct Worker {
    /// Says that it works, until it begins to stop: before anything of it does.
    working: ReadyHandle,
    stop: CancellationToken,
    /// Lanes, sweeper and claimer, which make new work; and what looks after the servers.
    makers: JoinSet<()>,
    handover: Handover,
    dispatcher: tokio::task::JoinHandle<()>,
    publisher: Publisher,
    shutdown_within: Duration,
}

impl Worker {
    async fn start(
        parts: Parts,
        store: Store,
        readiness: &Readiness,
        database_ready: ReadyHandle,
        missing: Vec<Index>,
    ) -> Self {
        let Parts { broker, topology, composer, transport, mail_connections, mail_per_second, pace, .. } = parts;
        let publisher = Publisher::declaring(broker.clone(), topology.clone());
        let watched = publisher.clone();
        readiness.watch("publisher", move || watched.status());
        let options = DispatcherOptions { lease: pace.lease, mail_connections, emails_per_second: mail_per_second };
        let (handover, dispatcher) = Dispatcher::new(options);
        let composer = Arc::new(composer);
        let engine = Engine::new(
            store.clone(),
            handover.clone(),
            Arc::clone(&composer),
            &pace.source,
            pace.lease,
            pace.hold,
            database_ready,
        );
        // Before a lane decides anything: by this clock.
        engine.look().await;
        let dispatcher = tokio::spawn(dispatcher.run(DispatcherParts {
            store: store.clone(),
            publisher: publisher.clone(),
            topology: topology.clone(),
            composer: Arc::clone(&composer),
            transport: Arc::new(transport),
        }));

        let stop = CancellationToken::new();
        let mut makers = JoinSet::new();
        let indexes = Indexes::new(missing);
        makers.spawn(indexes.clone().keep(store.clone(), readiness.component("indexes"), stop.clone()));
        makers.spawn(engine.clone().keep_looking(pace.sweep, stop.clone()));
        makers.spawn(publisher.clone().keep_declared(pace.sweep, stop.clone()));
        for kind in CommandType::ALL {
            let queue = topology.work_queue(kind);
            let health = LaneHealth::new(&queue);
            let watched = health.clone();
            readiness.watch(&queue, move || watched.readiness());
            let prefetch = u16::try_from(pace.batch_max * PREFETCH_BATCHES).unwrap_or(u16::MAX);
            let lane = Lane {
                kind,
                topology: topology.clone(),
                consumer: Consumer::new(broker.clone(), topology.clone(), queue, prefetch, health),
                publisher: publisher.clone(),
                engine: engine.clone(),
                source: pace.source.clone(),
                batch_max: pace.batch_max,
            };
            makers.spawn(lane.run(stop.clone()));
        }
        let claimer = Claimer {
            store: store.clone(),
            engine: engine.clone(),
            handover: handover.clone(),
            composer,
            every: pace.sweep,
            lease: pace.lease,
            indexes: indexes.clone(),
        };
        makers.spawn(claimer.run(stop.clone()));
        let sweeper = Sweeper { store, engine, every: pace.sweep, batch_max: pace.batch_max, indexes };
        makers.spawn(sweeper.run(stop.clone()));
        let working = readiness.component("worker");
        working.ready();
        tracing::info!(prefix = topology.command_exchange(), "working");
        Self { working, stop, makers, handover, dispatcher, publisher, shutdown_within: pace.shutdown }
    }

    /// Waits for `shutdown`, then stops: no more messages are taken, the batches in hand are finished and acked, the mails in
    /// hand are sent. What is not done in time is done by another worker, or after the restart: nothing is lost.
    async fn stop_after(mut self, shutdown: CancellationToken) -> Result<(), RunError> {
        // Parts end only when they are told to. One that does not has a mistake in it; better a restart by whoever supervises
        // this process than a worker that looks alive and is not.
        let result = tokio::select! {
            () = shutdown.cancelled() => Ok(()),
            ended = self.makers.join_next() => {
                tracing::error!(?ended, "a lane, the sweeper, the claimer or a watch on a server has ended by itself; stopping");
                Err(RunError::Broken)
            }
            ended = &mut self.dispatcher => {
                tracing::error!(?ended, "the dispatcher has ended by itself; stopping");
                Err(RunError::Broken)
            }
        };
        tracing::info!("stopping: finishing what is in hand");
        self.working.not_ready("stopping");
        self.stop.cancel();
        let handover = self.handover;
        let finishing = async {
            while self.makers.join_next().await.is_some() {}
            handover.close();
            if !self.dispatcher.is_finished() {
                drop((&mut self.dispatcher).await);
            }
            self.publisher.close().await;
        };
        tokio::pin!(finishing);
        let giving_back = GIVE_BACK.1.min(self.shutdown_within / GIVE_BACK.0);
        let mut finished = timeout(self.shutdown_within.saturating_sub(giving_back), &mut finishing).await;
        if finished.is_err() {
            handover.close_now();
            finished = timeout(giving_back, finishing).await;
        }
        match finished {
            Ok(()) => tracing::info!("stopped"),
            Err(_) => {
                tracing::warn!("stopped before everything in hand was done; nothing is lost, it will be done again");
            }
        }
        result
    }
}
