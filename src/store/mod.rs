//! MongoDB: documents in, one guarded update per changed document out, and the outbox that lives in them.
//!
//! Nothing here decides anything. Every write of a decision is a single-document update, guarded by the document's `version`, sent in one
//! `update` command per collection with write concern `majority`; state, audit entry, idempotency record and outbox entries
//! change together or not at all. Sharded clusters are not tested.

pub mod changes;
pub mod commit;
pub mod documents;
pub mod import;
pub mod inspect;
pub mod outbox;
pub mod sweep;
mod update;

use std::collections::HashSet;
use std::future::Future;
use std::time::Duration;

use bson::raw::cstr;
use bson::{Document, RawDocumentBuf, doc};
use futures_util::TryStreamExt;
use mongodb::error::{CommandError, ErrorKind};
use mongodb::options::{ClientOptions, ReadPreference, SelectionCriteria};
use mongodb::{Client, Database};
use tokio::time::timeout;

use crate::tls::{Tls, explain};
use offramp_domain::ids::{AccountId, OrganizationId, SubscriptionId};
use offramp_domain::subscription::{Status, Subscription};
use offramp_domain::unit_of_work::{LoadedDocument, UnitOfWork};

use documents::{AccountDocument, OrganizationDocument, SubscriptionDocument};

/// How long one operation may take before the database counts as away.
const OPERATION_DEADLINE: Duration = Duration::from_secs(10);
/// How long the server may work on one command, before it ends it by itself: below [`OPERATION_DEADLINE`], so that nothing
/// goes on that nobody waits for.
const COMMAND_TIME_MAX: Duration = Duration::from_secs(9);
/// How long a write may wait for a majority of the servers: below [`COMMAND_TIME_MAX`], so that a majority that is missing
/// is told from a command that takes too long.
const WRITE_CONCERN_TIME_MAX: Duration = Duration::from_secs(8);
/// How long the driver looks for a server that can answer.
const SERVER_SELECTION_DEADLINE: Duration = Duration::from_secs(5);
/// How long a connection may take to open.
const CONNECT_DEADLINE: Duration = Duration::from_secs(5);

/// How many connections there may be. An operation that was given up on a silent line keeps its own until the system's
/// time-out, so there are more than are ever used at once.
const POOL_MAX: u32 = 50;

/// The collections of the contract (§3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Collection {
    /// `organizations`
    Organizations,
    /// `accounts`
    Accounts,
    /// `subscriptions`
    Subscriptions,
}

impl Collection {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Organizations, Self::Accounts, Self::Subscriptions];

    /// Its name in the database.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Organizations => "organizations",
            Self::Accounts => "accounts",
            Self::Subscriptions => "subscriptions",
        }
    }
}

/// Why an operation failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// The database is away, or whether it has done the operation is unknown. Nobody's failure: try again.
    #[error("MongoDB does not answer: {0}")]
    Unavailable(String),
    /// The server was too slow with this operation, and ended it. How much of it is done is unknown: try again.
    #[error("MongoDB ended an operation that took more than {} s", COMMAND_TIME_MAX.as_secs())]
    TimedOut,
    /// The database has refused the operation; the same again would be refused again.
    #[error("MongoDB refused: {0}")]
    Refused(String),
}

impl StoreError {
    /// Why, for sentences that name MongoDB already.
    #[must_use]
    pub fn reason(&self) -> String {
        match self {
            Self::Unavailable(reason) | Self::Refused(reason) => reason.clone(),
            Self::TimedOut => self.to_string(),
        }
    }
}

/// Which documents a batch needs.
#[derive(Debug, Default)]
pub struct Need {
    /// Subscriptions that commands are about, with the accounts and organizations behind them.
    pub subscriptions: HashSet<SubscriptionId>,
    /// Subscriptions that may be over. Their end needs no account, and the organization only where it is a natural one.
    pub ending: HashSet<SubscriptionId>,
    /// Accounts; those behind the subscriptions need not be named.
    pub accounts: HashSet<AccountId>,
    /// Organizations; those behind subscriptions and accounts that are named by id only need not be named.
    pub organizations: HashSet<OrganizationId>,
}

/// The database.
#[derive(Clone, Debug)]
pub struct Store {
    database: Database,
}

impl Store {
    /// Connects lazily: the first operation finds out whether a server answers. Only where the servers are is asked at once,
    /// when the URL is a `mongodb+srv`. `tls` holds for what the URL leaves open, and where the URL asks for TLS.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] when it cannot be found out where the servers are; [`StoreError::Refused`] when the URL is
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
            .ok_or_else(|| StoreError::Refused("the URL names no database (mongodb://HOST/DATABASE)".to_owned()))?;
        // Decisions are made on what is read, so reads see the primary, whatever the URL says.
        options.selection_criteria = Some(SelectionCriteria::ReadPreference(ReadPreference::Primary));
        let client = Client::with_options(options).map_err(|error| StoreError::Refused(error.kind.to_string()))?;
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

    /// Reads all documents that a batch needs: one find per collection, at most one more for what is behind.
    ///
    /// # Errors
    /// When the server does not answer, or refuses.
    pub async fn load(&self, need: &Need) -> Result<UnitOfWork, StoreError> {
        let (subscriptions, accounts, organizations) = tokio::try_join!(
            self.find_by_id(
                Collection::Subscriptions,
                need.subscriptions.union(&need.ending).map(SubscriptionId::as_str),
                documents::decisive(Collection::Subscriptions),
            ),
            self.find_by_id(
                Collection::Accounts,
                need.accounts.iter().map(AccountId::as_str),
                documents::decisive(Collection::Accounts),
            ),
            self.find_by_id(
                Collection::Organizations,
                need.organizations.iter().map(OrganizationId::as_str),
                documents::decisive(Collection::Organizations),
            ),
        )?;
        let mut unit_of_work = UnitOfWork::default();
        let mut accounts_behind = HashSet::with_capacity(subscriptions.len());
        let mut organizations_behind = HashSet::new();

        for raw in &subscriptions {
            let Some(id) = id(raw) else { continue };
            let loaded = documents::read::<SubscriptionDocument, _>(Collection::Subscriptions.as_str(), raw);
            if let LoadedDocument::Read(subscription) = &loaded {
                let subscription: &Subscription = subscription;
                let is_commanded = need.subscriptions.contains(&id);
                if is_commanded {
                    accounts_behind.insert(subscription.account_id.clone());
                }
                if is_commanded || subscription.status != Status::CancellationScheduled {
                    organizations_behind.insert(subscription.organization_id.clone());
                }
            }
            unit_of_work.add_subscription(id, loaded);
        }
        add_accounts(&mut unit_of_work, &accounts, &mut organizations_behind);
        add_organizations(&mut unit_of_work, &organizations);

        let accounts_behind: Vec<_> =
            accounts_behind.iter().filter(|id| !need.accounts.contains(*id)).map(AccountId::as_str).collect();
        let organizations_behind: Vec<_> = organizations_behind
            .iter()
            .filter(|id| !need.organizations.contains(*id))
            .map(OrganizationId::as_str)
            .collect();
        let (accounts, organizations) = tokio::try_join!(
            self.find_by_id(Collection::Accounts, accounts_behind.into_iter(), documents::decisive_behind()),
            self.find_by_id(
                Collection::Organizations,
                organizations_behind.into_iter(),
                documents::decisive(Collection::Organizations),
            ),
        )?;
        add_accounts(&mut unit_of_work, &accounts, &mut HashSet::new());
        add_organizations(&mut unit_of_work, &organizations);
        Ok(unit_of_work)
    }

    /// The documents with these ids.
    async fn find_by_id(
        &self,
        collection: Collection,
        ids: impl Iterator<Item = &str>,
        projection: Document,
    ) -> Result<Vec<RawDocumentBuf>, StoreError> {
        let ids: Vec<&str> = ids.collect();
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        let documents_max = i64::try_from(ids.len()).ok();
        self.find(collection, doc! { "_id": { "$in": ids } }, projection, documents_max).await
    }

    /// Finds documents and reads them all: at most `limit`, which come in one answer where they fit.
    async fn find(
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
    async fn command(&self, mut command: Document) -> Result<Document, StoreError> {
        command.insert("maxTimeMS", milliseconds(COMMAND_TIME_MAX));
        let database = self.database.clone();
        within_deadline(async move { database.run_command(command).await }).await
    }

    /// The same for one that was put together as it is sent.
    async fn raw_command(&self, mut command: RawDocumentBuf) -> Result<Document, StoreError> {
        command.append(cstr!("maxTimeMS"), milliseconds(COMMAND_TIME_MAX));
        let database = self.database.clone();
        within_deadline(async move { database.run_raw_command(command).await }).await
    }
}

fn add_accounts(
    unit_of_work: &mut UnitOfWork,
    raw: &[RawDocumentBuf],
    organizations_behind: &mut HashSet<OrganizationId>,
) {
    for raw in raw {
        let Some(id) = id(raw) else { continue };
        let loaded = documents::read::<AccountDocument, offramp_domain::account::Account>("accounts", raw);
        if let LoadedDocument::Read(account) = &loaded {
            organizations_behind.insert(account.organization_id.clone());
        }
        unit_of_work.add_account(id, loaded);
    }
}

fn add_organizations(unit_of_work: &mut UnitOfWork, raw: &[RawDocumentBuf]) {
    for raw in raw {
        let Some(id) = id(raw) else { continue };
        unit_of_work.add_organization(id, documents::read::<OrganizationDocument, _>("organizations", raw));
    }
}

/// The `_id` of a document that was found by one.
fn id<T: for<'a> TryFrom<&'a str>>(raw: &RawDocumentBuf) -> Option<T> {
    raw.get_str("_id").ok().and_then(|id| id.try_into().ok())
}

fn milliseconds(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

/// Runs an operation of the driver as a task of its own, so that giving up on it never drops it half-way, which the driver
/// does not take well.
async fn within_deadline<T: Send + 'static>(
    operation: impl Future<Output = mongodb::error::Result<T>> + Send + 'static,
) -> Result<T, StoreError> {
    match timeout(OPERATION_DEADLINE, tokio::spawn(operation)).await {
        Ok(Ok(result)) => result.map_err(|error| classify(&error)),
        Ok(Err(join)) => Err(StoreError::Unavailable(format!("the operation was aborted: {join}"))),
        Err(_) => Err(StoreError::Unavailable(format!("no answer within {} s", OPERATION_DEADLINE.as_secs()))),
    }
}

/// The driver's words, without the lists of labels, the server's reply, and what is not there, that it puts behind each
/// error.
fn plain(error: &str) -> String {
    let text = without(error, ", labels: {", '}');
    let text = without(&text, ", server response: Some(", ')');
    text.replace(", source: None", "").replace(", server response: None", "")
}

/// A text without what is between `begin` and `end`, and these two, wherever that is.
fn without(text: &str, begin: &str, end: char) -> String {
    let mut parts = text.split(begin);
    let mut kept = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        kept.push_str(part.split_once(end).map_or("", |(_, rest)| rest));
    }
    kept
}

/// The code of an operation that took longer than its `maxTimeMS`.
const TIME_EXCEEDED: i32 = 50;

/// Whether the same operation could succeed later.
fn classify(error: &mongodb::error::Error) -> StoreError {
    /// Codes with which a healthy server refuses an operation for what it is: bad value, failed to parse, type mismatch,
    /// index options conflict, index key specs conflict, document validation failure, and the two codes of an object that
    /// is too large.
    const REFUSALS: [i32; 8] = [2, 9, 14, 85, 86, 121, 10334, 17419];
    match error.kind.as_ref() {
        ErrorKind::Command(command) if command.code == TIME_EXCEEDED => StoreError::TimedOut,
        ErrorKind::Command(command) if REFUSALS.contains(&command.code) => StoreError::Refused(told(command)),
        ErrorKind::Command(command) => StoreError::Unavailable(told(command)),
        // Has the server's words in it, too.
        ErrorKind::Write(_) => StoreError::Unavailable("it did not take a write".to_owned()),
        kind @ (ErrorKind::Bson(_) | ErrorKind::InvalidArgument { .. }) => StoreError::Refused(kind.to_string()),
        kind => {
            let is_handshake = matches!(kind, ErrorKind::ServerSelection { .. });
            // The kind alone: the error as a whole has the server's reply in it.
            StoreError::Unavailable(explain(&plain(&kind.to_string()), is_handshake))
        }
    }
}

/// What may be told of a server's refusal. Not its own words, but for an index: they may quote the whole command ("not
/// authorized to execute command …"), with everything that is to be written about somebody.
fn told(refusal: &CommandError) -> String {
    /// Index options conflict, index key specs conflict.
    const OF_INDEXES: [i32; 2] = [85, 86];
    let CommandError { code, code_name, message, .. } = refusal;
    match code {
        13 => format!("the user of OFFRAMP_MONGODB_URL lacks a right ({code_name}, code {code})"),
        _ if OF_INDEXES.contains(code) => format!("{message} ({code_name}, code {code})"),
        _ => format!("{code_name}, code {code}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_driver_adds_to_its_errors_is_left_out() {
        let error = "Kind: No servers. Error: Kind: I/O error: refused, labels: {\"A\", \"B\"}, source: None, server response: \
                     None } ] }, labels: {}, source: None, server response: None";
        assert_eq!(plain(error), "Kind: No servers. Error: Kind: I/O error: refused } ] }");
        let error =
            "Error: Kind: away, labels: {}, source: None, server response: Some(RawDocumentBuf { data: \"16\" }) }";
        assert_eq!(plain(error), "Error: Kind: away }");
        assert_eq!(plain("as it is"), "as it is");
    }

    #[track_caller]
    fn check(code: i32, code_name: &str, message: &str, expected: &StoreError) {
        let refusal = serde_json::json!({ "code": code, "codeName": code_name, "errmsg": message });
        let refusal: CommandError = serde_json::from_value(refusal).unwrap();
        assert_eq!(&classify(&ErrorKind::Command(refusal).into()), expected);
    }

    #[test]
    fn of_what_the_server_says_nothing_is_told_that_may_quote_a_document() {
        let quoting = "not authorized on offramp to execute command { update: \"accounts\", updates: [ { q: { _id: \"acc\" }, \
                       u: { $push: { outbox: { $each: [ { mail: { to: { email: \"ada@example.org\" } } } ] } } } } ] }";
        let lacks = "the user of OFFRAMP_MONGODB_URL lacks a right (Unauthorized, code 13)";
        check(13, "Unauthorized", quoting, &StoreError::Unavailable(lacks.to_owned()));
        check(166, "NotOnView", quoting, &StoreError::Unavailable("NotOnView, code 166".to_owned()));
        check(50, "MaxTimeMSExpired", quoting, &StoreError::TimedOut);
        check(2, "BadValue", quoting, &StoreError::Refused("BadValue, code 2".to_owned()));
        let index = "Index already exists with a different name: due";
        let conflict = format!("{index} (IndexOptionsConflict, code 85)");
        check(85, "IndexOptionsConflict", index, &StoreError::Refused(conflict));
    }
}
