//! The connection to MongoDB: how it is opened, and how long an operation may take.
//!
//! Everything that reads or writes goes through [`Store`]; other files of this folder add to it.

use std::future::Future;
use std::time::Duration;

use bson::raw::cstr;
use bson::{Document, RawDocumentBuf, doc};
use futures_util::TryStreamExt;
use mongodb::error::ErrorKind;
use mongodb::options::{ClientOptions, FindOptions, ReadConcern, ReadPreference, SelectionCriteria};
use mongodb::{Client, Database};
use tokio::time::{Instant, timeout};

use crate::metrics;
use crate::metrics::labels::MongodbOperation;
use crate::tls::Tls;

use super::collection::Collection;
use super::error::{COMMAND_TIME_MAX, StoreError, classify};

/// How long one operation may take before the database counts as unavailable.
pub(super) const OPERATION_DEADLINE: Duration = Duration::from_secs(10);

/// How long the driver looks for a usable server.
const SERVER_SELECTION_DEADLINE: Duration = Duration::from_secs(5);

/// How long a connection may take to open.
const CONNECT_DEADLINE: Duration = Duration::from_secs(5);

/// How long a write may wait for a majority of the servers: below [`COMMAND_TIME_MAX`], so that a missing majority
/// is not mistaken for a slow command.
pub(super) const WRITE_CONCERN_TIME_MAX: Duration = Duration::from_secs(8);

/// The maximum number of connections. An abandoned operation on a dead connection keeps that connection until the system's
/// timeout, so the limit exceeds what is ever used at once.
const POOL_MAX: u32 = 50;

/// A handle to the database; clones share its connections.
#[derive(Clone, Debug)]
pub struct Store {
    pub(in crate::store) database: Database,
    /// What its requests are counted as, if they are.
    operation: Option<MongodbOperation>,
    /// See [`Self::linearizable`].
    is_linearizable: bool,
}

impl Store {
    /// Connects lazily: the first operation finds out whether a server answers. Only the DNS lookup of a `mongodb+srv` URL
    /// happens at once. `tls` applies where the URL asks for TLS, to what the URL does not specify.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] when the DNS lookup fails; [`StoreError::Permanent`] when the URL is invalid, or names no
    /// database or an unusable file.
    pub async fn open(url: &str, tls: &Tls) -> Result<Self, StoreError> {
        let mut options = timeout(CONNECT_DEADLINE, ClientOptions::parse(url).into_future())
            .await
            .map_err(|_| StoreError::Unavailable(format!("DNS: no answer within {} s", CONNECT_DEADLINE.as_secs())))?
            .map_err(|error| classify(&error))?;
        tls.fill_in(&mut options);
        options.app_name.get_or_insert_with(|| "offramp".to_owned());
        options.server_selection_timeout.get_or_insert(SERVER_SELECTION_DEADLINE);
        options.connect_timeout.get_or_insert(CONNECT_DEADLINE);
        options.max_pool_size.get_or_insert(POOL_MAX);
        let name = options
            .default_database
            .clone()
            .ok_or_else(|| StoreError::Permanent("the URL names no database (mongodb://HOST/DATABASE)".to_owned()))?;
        // Decisions are made on what is read, so reads go to the primary, whatever the URL says.
        options.selection_criteria = Some(SelectionCriteria::ReadPreference(ReadPreference::Primary));
        let client = Client::with_options(options).map_err(|error| StoreError::Permanent(error.kind.to_string()))?;
        Ok(Self { database: client.database(&name), operation: None, is_linearizable: false })
    }

    /// The same database, whose requests are measured as `operation`.
    #[must_use]
    pub fn measured_as(&self, operation: MongodbOperation) -> Self {
        Self { operation: Some(operation), ..self.clone() }
    }

    /// The same database, whose reads are linearizable: they return what a majority of the servers has, and their server made sure that it
    /// was still the primary when it read. Costs a round trip between the servers. A standalone server reads as usual: no other can
    /// have anything newer.
    #[must_use]
    pub fn linearizable(&self) -> Self {
        Self { is_linearizable: true, ..self.clone() }
    }

    /// The driver's database, for command-line tools.
    #[must_use]
    pub fn database(&self) -> &Database {
        &self.database
    }

    /// Checks that the server answers.
    ///
    /// # Errors
    /// When it does not.
    pub async fn ping(&self) -> Result<(), StoreError> {
        self.command(doc! { "ping": 1 }).await.map(drop)
    }

    /// Finds at most `limit` documents, and reads them in one reply if they fit.
    pub(in crate::store) async fn find(
        &self,
        collection: Collection,
        filter: Document,
        projection: Document,
        limit: Option<i64>,
    ) -> Result<Vec<RawDocumentBuf>, StoreError> {
        let collection = self.database.collection::<RawDocumentBuf>(collection.as_str());
        let mut options = FindOptions::builder().projection(projection).max_time(COMMAND_TIME_MAX).limit(limit).build();
        // Without a batch size, the first reply has 101 documents, and the others cost another round trip.
        options.batch_size = limit.map(|limit| u32::try_from(limit).unwrap_or(u32::MAX));
        let is_linearizable = self.is_linearizable;
        self.measured(async move {
            if is_linearizable {
                let find = collection.find(filter.clone()).with_options(options.clone());
                match find.read_concern(ReadConcern::linearizable()).await {
                    Err(error) if is_standalone(&error) => {}
                    found => return found?.try_collect().await,
                }
            }
            collection.find(filter).with_options(options).await?.try_collect().await
        })
        .await
    }

    /// Runs a database command.
    pub(in crate::store) async fn command(&self, mut command: Document) -> Result<Document, StoreError> {
        command.insert("maxTimeMS", milliseconds(COMMAND_TIME_MAX));
        let database = self.database.clone();
        self.measured(async move { database.run_command(command).await }).await
    }

    /// Runs a database command that is already serialised.
    pub(in crate::store) async fn raw_command(&self, mut command: RawDocumentBuf) -> Result<Document, StoreError> {
        command.append(cstr!("maxTimeMS"), milliseconds(COMMAND_TIME_MAX));
        let database = self.database.clone();
        self.measured(async move { database.run_raw_command(command).await }).await
    }

    /// [`within_deadline`], and records how long that took.
    pub(in crate::store) async fn measured<T: Send + 'static>(
        &self,
        operation: impl Future<Output = mongodb::error::Result<T>> + Send + 'static,
    ) -> Result<T, StoreError> {
        let began_at = Instant::now();
        let result = within_deadline(operation).await;
        if let Some(operation) = self.operation {
            metrics::current().mongodb_duration.of((operation,)).record(began_at.elapsed());
        }
        result
    }
}

/// Whether a server rejects a read concern because it does not belong to a replica set.
fn is_standalone(error: &mongodb::error::Error) -> bool {
    const NOT_A_REPLICA_SET: i32 = 123;
    matches!(error.kind.as_ref(), ErrorKind::Command(command) if command.code == NOT_A_REPLICA_SET)
}

pub(super) fn milliseconds(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

/// Runs an operation of the driver as a task of its own: the driver is not cancellation-safe, so an operation that exceeds the
/// deadline must not be dropped.
pub(in crate::store) async fn within_deadline<T: Send + 'static>(
    operation: impl Future<Output = mongodb::error::Result<T>> + Send + 'static,
) -> Result<T, StoreError> {
    match timeout(OPERATION_DEADLINE, tokio::spawn(operation)).await {
        Ok(Ok(result)) => result.map_err(|error| classify(&error)),
        Ok(Err(join)) => Err(StoreError::Unavailable(format!("the operation was aborted: {join}"))),
        Err(_) => Err(StoreError::Unavailable(format!("no answer within {} s", OPERATION_DEADLINE.as_secs()))),
    }
}
