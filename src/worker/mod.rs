//! The worker: everything that `offramp run` runs, in the order in which it starts and stops.
//!
//! Reading order: [`lane`] — from a message to its acknowledgement; [`engine`] — load, decide, commit; [`dispatcher`] — sends
//! the emails and events of commits; [`claimer`] — finds those that were not sent; [`sweeper`] — scheduled changes;
//! [`indexes`] — builds missing indexes. No rule is decided here: see the crate `offramp-domain`.

pub mod availability;
mod batch_spans;
pub mod claimer;
mod companions;
pub mod composer;
pub mod database_clock;
pub mod dispatcher;
mod disposition;
mod email_sender;
pub mod engine;
pub mod event_sender;
mod flush_pace;
mod gauges;
pub mod handover;
pub mod indexes;
pub mod lane;
mod lease;
mod mail_server;
mod marker;
pub mod pacer;
mod publication;
pub mod rights;
mod set_aside;
mod settlement;
mod startup;
pub mod support_log;
pub mod sweeper;
pub mod unmarked;

use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::amqp::{Broker, Consumer, LaneHealth, Publisher, Topology};
use crate::config::{MongodbUrl, WorkerSettings};
use crate::health::{Readiness, ReadyHandle};
use crate::http;
use crate::metrics::labels::MongodbOperation;
use crate::metrics::{self, Exposition};
use crate::systemd::Systemd;
use crate::tls::Tls;
use offramp_domain::command_ref::CommandType;
use offramp_mail::Transport;

use availability::Availability;
use claimer::Claimer;
use composer::Composer;
use database_clock::DatabaseClock;
use dispatcher::{Dispatcher, DispatcherOptions, DispatcherParts, KeepingEmails};
use engine::Engine;
use handover::Handover;
use indexes::Indexes;
use lane::Lane;
use startup::{ConnectedServers, Servers, StartupError};
use support_log::SupportLog;
use sweeper::Sweeper;

/// The prefetch of a lane, in batches: the next batch waits in memory while one is processed.
pub const PREFETCH_BATCHES: usize = 2;
/// The part of the shutdown time that is reserved for releasing unsent entries: a quarter, at most 3 s.
const RELEASE_SHUTDOWN_PART: u32 = 4;
const RELEASE_MAX: Duration = Duration::from_secs(3);

/// Everything a worker works with.
#[derive(Debug)]
pub struct WorkerParts {
    pub broker: Broker,
    pub topology: Topology,
    pub mongodb_url: MongodbUrl,
    /// For the connection to MongoDB; `broker` and `transport` have their own.
    pub tls: Tls,
    pub composer: Composer,
    pub transport: Transport,
    /// How many connections to the mail server are used at most.
    pub mail_connections: usize,
    /// How many emails are sent per second at most; `None` means unlimited.
    pub mail_per_second: Option<f64>,
    pub tuning: WorkerSettings,
}

/// Why a worker did not start, or stopped by itself.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    #[error(transparent)]
    Startup(#[from] StartupError),
    /// A task of the worker ended without being asked to.
    #[error(
        "internal error: a task of the worker ended unexpectedly (bug); the worker stopped so that its supervisor restarts it"
    )]
    TaskEnded,
}

/// Runs a worker until `shutdown`, and serves health and metrics on `http`.
///
/// # Errors
/// [`WorkerError`]. Servers that are unavailable are waited for.
pub async fn run(
    parts: WorkerParts,
    http: TcpListener,
    exposition: Exposition,
    shutdown: CancellationToken,
) -> Result<(), WorkerError> {
    let readiness = Readiness::default();
    // From the first request on: while lanes are not there yet, the servers alone do not make a worker ready.
    let worker_ready = readiness.component("worker");
    let stop_serving = CancellationToken::new();
    let serving = tokio::spawn(http::serve_worker(http, readiness.clone(), exposition.clone(), stop_serving.clone()));
    let reporting = Systemd::from_environment().report(
        readiness.clone(),
        parts.tuning.shutdown,
        shutdown.clone(),
        stop_serving.clone(),
    );
    let reporting = tokio::spawn(reporting);
    let servers =
        Servers { broker: &parts.broker, topology: &parts.topology, mongodb_url: &parts.mongodb_url, tls: &parts.tls };
    let result = match shutdown.run_until_cancelled(startup::connect(servers, &readiness)).await {
        Some(Ok(connected)) => {
            let mut worker = Worker::start(parts, connected, worker_ready, &readiness, &exposition).await;
            let result = shutdown.run_until_cancelled(worker.task_ended()).await.map_or(Ok(()), Err);
            worker.stop().await;
            result
        }
        Some(Err(error)) => Err(error.into()),
        None => Ok(()),
    };
    stop_serving.cancel();
    // Ends within about a second, even with clients that are still connected.
    drop(serving.await);
    drop(reporting.await);
    result
}

/// A running worker.
struct Worker {
    /// The component `worker` of `/readyz`: ready from the end of the start to the beginning of the shutdown.
    ready: ReadyHandle,
    stop: CancellationToken,
    /// Everything but the dispatcher: what makes new work (lanes, sweeper, claimer), and the checks of the servers.
    tasks: JoinSet<()>,
    handover: Handover,
    dispatcher: JoinHandle<()>,
    publisher: Publisher,
    shutdown_max: Duration,
}

impl Worker {
    async fn start(
        parts: WorkerParts,
        connected: ConnectedServers,
        ready: ReadyHandle,
        readiness: &Readiness,
        exposition: &Exposition,
    ) -> Self {
        let WorkerParts { broker, topology, composer, transport, mail_connections, mail_per_second, tuning, .. } =
            parts;
        let ConnectedServers { store, database_ready, missing_indexes } = connected;
        let publisher = Publisher::declaring(broker.clone(), topology.clone());
        let watched = publisher.clone();
        readiness.watch("publisher", move || watched.status());
        let options = DispatcherOptions { lease: tuning.lease, mail_connections, emails_per_second: mail_per_second };
        let clock = DatabaseClock::new(tuning.lease);
        let (handover, dispatcher) = Dispatcher::new(options, clock.clone());
        let composer = Arc::new(composer);
        let measured = |operation| store.measured_as(operation);
        let availability = Availability::new(measured(MongodbOperation::Ping), clock, database_ready);
        let engine = Engine {
            store: store.clone(),
            availability: availability.clone(),
            handover: handover.clone(),
            composer: Arc::clone(&composer),
            source: tuning.source.as_str().into(),
            lease: tuning.lease,
            hold: tuning.hold,
        };
        // Nothing is decided before the clocks were compared.
        availability.check().await;
        let indexes = Indexes::new(missing_indexes);
        let dispatcher = tokio::spawn(
            dispatcher.run(DispatcherParts {
                store: measured(MongodbOperation::Mark),
                publisher: publisher.clone(),
                topology: topology.clone(),
                composer: Arc::clone(&composer),
                transport: Arc::new(transport),
                source: tuning.source.as_str().into(),
                keeping: (!tuning.keep_emails.is_zero())
                    .then(|| KeepingEmails { kept: tuning.keep_emails, indexes: indexes.clone() }),
            }),
        );

        let stop = CancellationToken::new();
        let mut tasks = JoinSet::new();
        tasks.spawn(indexes.clone().keep(store.clone(), readiness.component("indexes"), stop.clone()));
        tasks.spawn(rights::keep_checking(store.clone(), readiness.component("mongodb-rights"), stop.clone()));
        tasks.spawn(availability.clone().keep_checking(tuning.sweep, stop.clone()));
        tasks.spawn(publisher.clone().keep_declared(tuning.sweep, stop.clone()));
        let measuring = measured(MongodbOperation::Measure);
        tasks.spawn(gauges::keep_reading(measuring, broker.clone(), topology.clone(), tuning.sweep, stop.clone()));
        let (rejections, writer) = SupportLog::new();
        tasks.spawn(writer.run(store.clone(), indexes.clone(), stop.clone()));
        for kind in CommandType::ALL {
            let queue = topology.work_queue(kind);
            let health = LaneHealth::new(&queue);
            let watched = health.clone();
            readiness.watch(&queue, move || watched.readiness());
            let watched = health.clone();
            let gauge = metrics::current().lane_ready.of((kind,));
            exposition.before_each(move || gauge.set(if watched.is_ready() { 1.0 } else { 0.0 }));
            let prefetch = u16::try_from(tuning.batch_max * PREFETCH_BATCHES).unwrap_or(u16::MAX);
            let lane = Lane {
                kind,
                topology: topology.clone(),
                consumer: Consumer::new(broker.clone(), topology.clone(), kind, prefetch, health),
                publisher: publisher.clone(),
                engine: engine.clone(),
                rejections: rejections.clone(),
                source: tuning.source.clone(),
                batch_max: tuning.batch_max,
            };
            tasks.spawn(lane.run(stop.clone()));
        }
        let claimer = Claimer {
            store: measured(MongodbOperation::Claim),
            availability: availability.clone(),
            handover: handover.clone(),
            composer,
            every: tuning.sweep,
            lease: tuning.lease,
            indexes: indexes.clone(),
        };
        tasks.spawn(claimer.run(stop.clone()));
        let sweeper = Sweeper {
            store: measured(MongodbOperation::Sweep),
            availability,
            engine,
            every: tuning.sweep,
            batch_max: tuning.batch_max,
            indexes,
        };
        tasks.spawn(sweeper.run(stop.clone()));
        ready.ready();
        tracing::info!("worker started");
        Self { ready, stop, tasks, handover, dispatcher, publisher, shutdown_max: tuning.shutdown }
    }

    /// Waits until a task ends by itself. Tasks end only when they are asked to, so this is a bug; better a restart by a
    /// supervisor than a worker that looks alive and is not.
    async fn task_ended(&mut self) -> WorkerError {
        tokio::select! {
            ended = self.tasks.join_next() => {
                tracing::error!(?ended, "internal error: a lane, the sweeper, the claimer or a check of a server ended unexpectedly (bug); stopping");
            }
            ended = &mut self.dispatcher => {
                tracing::error!(?ended, "internal error: the dispatcher ended unexpectedly (bug); stopping");
            }
        }
        WorkerError::TaskEnded
    }

    /// Stops: takes no more messages, finishes and acknowledges the batches in flight, sends the emails and events in memory.
    /// What is not done in time is done by another worker, or after the restart: nothing is lost.
    async fn stop(mut self) {
        tracing::info!("stopping: finishing work in flight");
        self.ready.not_ready("stopping");
        self.stop.cancel();
        let handover = self.handover;
        let finishing = async {
            while self.tasks.join_next().await.is_some() {}
            handover.close();
            if !self.dispatcher.is_finished() {
                drop((&mut self.dispatcher).await);
            }
            self.publisher.close().await;
        };
        tokio::pin!(finishing);
        let release_max = RELEASE_MAX.min(self.shutdown_max / RELEASE_SHUTDOWN_PART);
        let mut finished = timeout(self.shutdown_max.saturating_sub(release_max), &mut finishing).await;
        if finished.is_err() {
            handover.close_now();
            finished = timeout(release_max, finishing).await;
        }
        if finished.is_ok() {
            tracing::info!("stopped");
        } else {
            tracing::warn!("stopped with work in flight; nothing is lost, it will be done again");
        }
    }
}
