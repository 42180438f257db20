//! The connection to MongoDB: how it is opened, and how long an operation may take.
//!
//! Everything that reads or writes goes through [`Store`]; other files of this folder add to it.

use std::future::Future;
use std::time::Duration;

use bson::raw::cstr;
use bson::{Document, RawDocumentBuf, doc};
use futures_util::TryStreamExt;
use mongodb::options::{ClientOptions, ReadPreference, SelectionCriteria};
use mongodb::{Client, Database};
use tokio::time::timeout;

use crate::tls::Tls;

use super::collection::Collection;
use super::error::{COMMAND_TIME_MAX, StoreError, classify};

/// How long one operation may take before the database counts as away.
const OPERATION_DEADLINE: Duration = Duration::from_secs(10);

/// How long the driver looks for a server that can answer.
const SERVER_SELECTION_DEADLINE: Duration = Duration::from_secs(5);

/// How long a connection may take to open.
const CONNECT_DEADLINE: Duration = Duration::from_secs(5);

/// How long a write may wait for a majority of the servers: below [`COMMAND_TIME_MAX`], so that a majority that is missing
/// is told from a command that takes too long.
pub(super) const WRITE_CONCERN_TIME_MAX: Duration = Duration::from_secs(8);

/// How many connections there may be. An operation that was given up on a silent line keeps its own until the system's
/// time-out, so there are more than are ever used at once.
const POOL_MAX: u32 = 50;

/// The database.
#[derive(Clone, Debug)]
pub struct Store {
    pub(in crate::store) database: Database,
}

impl Store {
    /// Connects lazily: the first operation finds out whether a server answers. Only where the servers are is asked at once,
    /// when the URL is a `mongodb+srv`. `tls` holds for what the URL leaves open, and where the URL asks for TLS.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] when it cannot be found out where the servers are; [`StoreError::Permanent`] when the URL is
    /// not one, or names no database, or a file that cannot be used.
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
        // Decisions are made on what is read, so reads see the primary, whatever the URL says.
        options.selection_criteria = Some(SelectionCriteria::ReadPreference(ReadPreference::Primary));
        let client = Client::with_options(options).map_err(|error| StoreError::Permanent(error.kind.to_string()))?;
        Ok(Self { database: client.database(&name) })
    }

    /// The database, for what is not the worker's job: import, and what people look at.
    #[must_use]
    pub fn database(&self) -> &Database {
        &self.database
    }

    /// Asks the server for an answer.
    ///
    /// # Errors
    /// When there is none.
    pub async fn ping(&self) -> Result<(), StoreError> {
        self.command(doc! { "ping": 1 }).await.map(drop)
    }

    /// Finds documents and reads them all: at most `limit`, which come in one answer where they fit.
    pub(in crate::store) async fn find(
        &self,
        collection: Collection,
        filter: Document,
        projection: Document,
        limit: Option<i64>,
    ) -> Result<Vec<RawDocumentBuf>, StoreError> {
        let collection = self.database.collection::<RawDocumentBuf>(collection.as_str());
        within_deadline(async move {
            let mut find = collection.find(filter).projection(projection).max_time(COMMAND_TIME_MAX);
            if let Some(limit) = limit {
                // Without the second, a server answers with 101 documents, and is asked for the others.
                find = find.limit(limit).batch_size(u32::try_from(limit).unwrap_or(u32::MAX));
            }
            find.await?.try_collect().await
        })
        .await
    }

    /// Runs a command of the database.
    pub(in crate::store) async fn command(&self, mut command: Document) -> Result<Document, StoreError> {
        command.insert("maxTimeMS", milliseconds(COMMAND_TIME_MAX));
        let database = self.database.clone();
        within_deadline(async move { database.run_command(command).await }).await
    }

    /// The same for one that was put together as it is sent.
    pub(in crate::store) async fn raw_command(&self, mut command: RawDocumentBuf) -> Result<Document, StoreError> {
        command.append(cstr!("maxTimeMS"), milliseconds(COMMAND_TIME_MAX));
        let database = self.database.clone();
        within_deadline(async move { database.run_raw_command(command).await }).await
    }
}

pub(super) fn milliseconds(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

/// Runs an operation of the driver as a task of its own, so that giving up on it never drops it half-way, which the driver
/// does not take well.
pub(in crate::store) async fn within_deadline<T: Send + 'static>(
    operation: impl Future<Output = mongodb::error::Result<T>> + Send + 'static,
) -> Result<T, StoreError> {
    match timeout(OPERATION_DEADLINE, tokio::spawn(operation)).await {
        Ok(Ok(result)) => result.map_err(|error| classify(&error)),
        Ok(Err(join)) => Err(StoreError::Unavailable(format!("the operation was aborted: {join}"))),
        Err(_) => Err(StoreError::Unavailable(format!("no answer within {} s", OPERATION_DEADLINE.as_secs()))),
    }
}
