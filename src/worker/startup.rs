//! The start of a worker, before it takes messages: waits for RabbitMQ and MongoDB, declares the broker's objects and finds out
//! which indexes are missing.

use std::time::Duration;

use tokio::time::sleep;

use crate::advice;
use crate::amqp::{Broker, Topology, TopologyError};
use crate::backoff::Backoff;
use crate::config::MongodbUrl;
use crate::health::{Readiness, ReadyHandle};
use crate::outage::{Outage, seconds};
use crate::store::indexes::Index;
use crate::store::{Store, StoreError};
use crate::tls::Tls;

/// The delays, minimum and maximum, before a server that is unavailable at the start is tried again.
const RETRY_DELAYS: (Duration, Duration) = (Duration::from_millis(200), Duration::from_millis(1_500));

/// The servers to connect to.
pub(super) struct Servers<'a> {
    pub(super) broker: &'a Broker,
    pub(super) topology: &'a Topology,
    pub(super) mongodb_url: &'a MongodbUrl,
    pub(super) tls: &'a Tls,
}

/// Why a worker cannot start. Retrying cannot help.
#[derive(Debug, thiserror::Error)]
pub enum StartupError {
    /// The broker has objects of our names with other properties.
    #[error("{}", advice::append(.0, advice::topology_error(.0)))]
    Topology(TopologyError),
    /// The settings for the database are wrong, or it denies access.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What a worker starts with.
pub(super) struct ConnectedServers {
    pub(super) store: Store,
    /// The component `mongodb` of `/readyz`.
    pub(super) database_ready: ReadyHandle,
    pub(super) missing_indexes: Vec<Index>,
}

/// Connects to both servers, retrying while they are unavailable.
///
/// # Errors
/// [`StartupError`].
pub(super) async fn connect(servers: Servers<'_>, readiness: &Readiness) -> Result<ConnectedServers, StartupError> {
    let Servers { broker, topology, mongodb_url, tls } = servers;
    let broker_ready = readiness.component("rabbitmq");
    let database_ready = readiness.component("mongodb");
    let (database_outage, broker_outage) = (Outage::default(), Outage::default());
    let database_unavailable = |error: &StoreError, backoff: &mut Backoff| {
        let (delay, reason) = (backoff.next_delay(), error.reason());
        if database_outage.failed(&reason) {
            if matches!(error, StoreError::Denied(_)) {
                tracing::error!(error = reason, "MongoDB denies access; retrying");
            } else {
                tracing::warn!(error = reason, "MongoDB is unavailable; retrying");
            }
        }
        database_ready.not_ready(&reason);
        sleep(delay)
    };
    // First, so that a mistake in the settings is reported before anything is waited for.
    let mut backoff = Backoff::new(RETRY_DELAYS);
    let store = loop {
        match Store::open(mongodb_url.connection_string(), tls).await {
            Ok(store) => break store,
            Err(error @ StoreError::Permanent(_)) => return Err(error.into()),
            Err(error) => database_unavailable(&error, &mut backoff).await,
        }
    };
    // Both at once, so that the problems of both are reported.
    let declaring = async {
        let mut backoff = Backoff::new(RETRY_DELAYS);
        loop {
            match topology.declare(broker).await {
                Ok(_) => break,
                Err(TopologyError::Broker(error)) => {
                    let reason = error.to_string();
                    if broker_outage.failed(&reason) {
                        tracing::warn!(error = reason, "RabbitMQ is unavailable; retrying");
                    }
                    broker_ready.not_ready(&reason);
                    sleep(backoff.next_delay()).await;
                }
                Err(error) => return Err(StartupError::Topology(error)),
            }
        }
        if let Some(duration) = broker_outage.ended() {
            tracing::info!(unavailable_seconds = seconds(duration), "RabbitMQ is available");
        }
        broker_ready.ready();
        Ok(())
    };
    let looking = async {
        loop {
            match store.missing_indexes().await {
                Ok(missing) => {
                    if let Some(duration) = database_outage.ended() {
                        tracing::info!(unavailable_seconds = seconds(duration), "MongoDB is available");
                    }
                    database_ready.ready();
                    return Ok(missing);
                }
                Err(error @ StoreError::Permanent(_)) => return Err(StartupError::Store(error)),
                Err(error) => database_unavailable(&error, &mut backoff).await,
            }
        }
    };
    let ((), missing_indexes) = tokio::try_join!(declaring, looking)?;
    // From here on each lane reports on its own connection.
    broker_ready.retire();
    Ok(ConnectedServers { store, database_ready, missing_indexes })
}
