//! The indexes that make each search cost as much as what it finds: their names and keys; which are missing; how they are built.

use std::fmt;

use bson::{Bson, Document, RawDocumentBuf, doc};
use mongodb::error::ErrorKind;
use mongodb::options::{Collation, CollationStrength, Hint};

use super::client::{Store, milliseconds, within_deadline};
use super::collection::{Collection, REJECTED_COMMANDS, SENT_EMAILS, SUPPORT_COLLECTIONS};
use super::error::{COMMAND_TIME_MAX, StoreError, UNAUTHORIZED, classify};
use super::server::is_replicated;

/// An index, as `createIndexes` takes it.
#[derive(Clone, Debug, PartialEq)]
pub struct Index {
    /// The name of its collection.
    pub collection: &'static str,
    /// Its name, keys and options.
    pub specification: Document,
    /// Whether people alone search with it (`offramp find`, `offramp show`): a worker works without it.
    pub is_for_support: bool,
}

impl Index {
    #[must_use]
    pub fn name(&self) -> &str {
        name(&self.specification)
    }
}

impl fmt::Display for Index {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.collection, self.name())
    }
}

/// The index, in each collection with an outbox, by which due entries are found.
pub const DUE: &str = "offramp_due";

/// The index, in each collection with an outbox, of entries that failed permanently.
pub const FAILED: &str = "offramp_failed";

/// The index of scheduled subscriptions by their end.
pub const SCHEDULED_ENDS: &str = "offramp_scheduled_ends";

/// The index of subscriptions that have an `expires_on`.
pub const NATURAL_ENDS: &str = "offramp_natural_ends";

/// The index of subscriptions whose `expires_on` is not text.
pub const EXPIRY_TYPES: &str = "offramp_expiry_types";

/// The index of subscriptions whose `expires_on` is empty text, which [`NATURAL_ENDS`] does not hold.
pub const EXPIRY_EMPTY: &str = "offramp_expiry_empty";

/// The index of tombstones.
pub const REMOVED: &str = "offramp_removed";

/// The index of subscriptions by account.
pub const OF_ACCOUNT: &str = "offramp_of_account";

/// The index of accounts by the months in which their cards expire.
pub const CARD_EXPIRY: &str = "offramp_card_expiry";

/// The index of organizations that want card notices.
pub const CARD_ORGANIZATIONS: &str = "offramp_card_organizations";

/// The index of subscriptions with an undecided request, by organization.
pub const PENDING_REQUESTS: &str = "offramp_pending_requests";

/// The index, in each collection with emails, of the ids of all emails. An email's `Message-ID` is made from its id.
pub const EMAIL_IDS: &str = "offramp_email_ids";

/// The index, in each collection that commands change, of the commands that were applied.
pub const APPLIED: &str = "offramp_applied";

/// The index, in accounts and organizations, of email addresses without regard to case.
pub const ADDRESS: &str = "offramp_address";

/// The index by which MongoDB deletes what is kept for support staff and is old.
pub const EXPIRY: &str = "offramp_expiry";

/// The index of rejected commands by subscription, newest last.
pub const REJECTED_OF_SUBSCRIPTION: &str = "offramp_of_subscription";

/// The index of rejected commands by account, newest last.
pub const REJECTED_OF_ACCOUNT: &str = "offramp_of_account";

/// The index of rejected commands by the command's id.
pub const REJECTED_BY_COMMAND: &str = "offramp_by_command";

/// For how long a rejected command is kept, in seconds: 30 days.
const REJECTED_KEPT_SECONDS: i32 = 30 * 24 * 60 * 60;

/// The collation of [`ADDRESS`]: letters compare without regard to case. Queries must name the same.
#[must_use]
pub(super) fn without_case() -> Collation {
    Collation::builder().locale("en").strength(CollationStrength::Secondary).build()
}

/// The BSON types, as MongoDB names them, other than text and null.
pub(super) const NO_TEXT: [&str; 13] = [
    "double",
    "object",
    "array",
    "binData",
    "objectId",
    "bool",
    "date",
    "regex",
    "javascript",
    "int",
    "timestamp",
    "long",
    "decimal",
];

/// The indexes, in the order in which they are built.
fn indexes() -> Vec<Index> {
    let index = |collection: Collection, specification| Index {
        collection: collection.as_str(),
        specification,
        is_for_support: false,
    };
    let subscriptions = |specification| index(Collection::Subscriptions, specification);
    let accounts = |specification| index(Collection::Accounts, specification);
    let organizations = |specification| index(Collection::Organizations, specification);
    vec![
        subscriptions(doc! {
            "name": DUE, "key": { "outbox.kind": 1, "outbox.due": 1 },
            "partialFilterExpression": { "outbox.due": { "$exists": true } },
        }),
        accounts(doc! {
            "name": DUE, "key": { "outbox.kind": 1, "outbox.due": 1 },
            "partialFilterExpression": { "outbox.due": { "$exists": true } },
        }),
        organizations(doc! {
            "name": DUE, "key": { "outbox.kind": 1, "outbox.due": 1 },
            "partialFilterExpression": { "outbox.due": { "$exists": true } },
        }),
        subscriptions(doc! { "name": FAILED, "key": { "outbox.failed_at": 1 }, "sparse": true }),
        accounts(doc! { "name": FAILED, "key": { "outbox.failed_at": 1 }, "sparse": true }),
        organizations(doc! { "name": FAILED, "key": { "outbox.failed_at": 1 }, "sparse": true }),
        // Partial: most subscriptions are in none of the next five, so a change of their status updates no index. The status is a key
        // as well, because MongoDB reads the document to check a condition that is not on a key.
        subscriptions(doc! {
            "name": SCHEDULED_ENDS, "key": { "status": 1, "ends_at": 1, "_id": 1 },
            "partialFilterExpression": { "status": "cancellation_scheduled" },
        }),
        subscriptions(doc! {
            "name": NATURAL_ENDS,
            "key": { "status": 1, "billing.day": 1, "expires_on": 1, "organization_id": 1, "_id": 1 },
            "partialFilterExpression": { "expires_on": { "$gt": "" } },
        }),
        subscriptions(doc! {
            "name": PENDING_REQUESTS,
            "key": { "status": 1, "organization_id": 1, "cancellation_request.requested_at": 1, "_id": 1 },
            "partialFilterExpression": { "status": "cancellation_requested" },
        }),
        // Empty if every `expires_on` is text or null.
        subscriptions(doc! {
            "name": EXPIRY_TYPES, "key": { "status": 1, "expires_on": 1 },
            "partialFilterExpression": { "expires_on": { "$type": NO_TEXT.as_slice() } },
        }),
        // Empty if no `expires_on` is empty text. It has keys of its own, because MongoDB 4.4 does not distinguish indexes by their filters.
        subscriptions(doc! {
            "name": EXPIRY_EMPTY, "key": { "expires_on": 1, "status": 1 },
            "partialFilterExpression": { "expires_on": "" },
        }),
        subscriptions(doc! {
            "name": REMOVED, "key": { "ended_on": 1 },
            "partialFilterExpression": { "status": "removed" },
        }),
        // Without the status, which changes: an account has few subscriptions.
        subscriptions(doc! { "name": OF_ACCOUNT, "key": { "account_id": 1 } }),
        // Ends in `_id`, so that accounts can be paged through without sorting them.
        accounts(doc! { "name": CARD_EXPIRY, "key": { "organization_id": 1, "cards.expires": 1, "_id": 1 } }),
        // Begins with `_id`, for the same reason. MongoDB allows no partial index of `_id` alone.
        organizations(doc! {
            "name": CARD_ORGANIZATIONS, "key": { "_id": 1, "timezone": 1 },
            "partialFilterExpression": { "card_notice_days": { "$exists": true } },
        }),
    ]
}

/// The indexes that people search with. They are built last. Those of addresses cost a worker nothing, because it changes none. Of
/// the others, each costs an index entry per email or command.
fn support_indexes() -> Vec<Index> {
    let index = |collection, specification| Index { collection, specification, is_for_support: true };
    let [organizations, accounts, subscriptions] = Collection::ALL.map(Collection::as_str);
    // Sparse: most documents have no email and no command.
    let email_ids = doc! { "name": EMAIL_IDS, "key": { "notifications.id": 1 }, "sparse": true };
    let applied = doc! { "name": APPLIED, "key": { "applied.id": 1 }, "sparse": true };
    let collation = doc! { "locale": "en", "strength": 2 };
    let address = |field: &str| doc! { "name": ADDRESS, "key": { field: 1 }, "collation": &collation };
    vec![
        index(subscriptions, email_ids.clone()),
        index(subscriptions, applied.clone()),
        index(accounts, email_ids.clone()),
        index(accounts, applied),
        index(accounts, address("manager.email")),
        index(organizations, email_ids),
        index(organizations, address("contact.email")),
        index(
            REJECTED_COMMANDS,
            doc! { "name": EXPIRY, "key": { "at": 1 }, "expireAfterSeconds": REJECTED_KEPT_SECONDS },
        ),
        index(REJECTED_COMMANDS, doc! { "name": REJECTED_OF_SUBSCRIPTION, "key": { "subscription_id": 1, "at": 1 } }),
        index(REJECTED_COMMANDS, doc! { "name": REJECTED_OF_ACCOUNT, "key": { "account_id": 1, "at": 1 } }),
        index(REJECTED_COMMANDS, doc! { "name": REJECTED_BY_COMMAND, "key": { "command.id": 1 } }),
        index(SENT_EMAILS, doc! { "name": EXPIRY, "key": { "expires_at": 1 }, "expireAfterSeconds": 0 }),
    ]
}

/// Indexes of earlier versions that are no longer used.
const SUPERSEDED: [(Collection, &str); 6] = [
    (Collection::Organizations, "offramp_card_notices"),
    (Collection::Subscriptions, "offramp_scheduled"),
    (Collection::Subscriptions, "offramp_expiring"),
    (Collection::Subscriptions, "offramp_outbox"),
    (Collection::Accounts, "offramp_cards"),
    (Collection::Accounts, "offramp_outbox"),
];

impl Store {
    /// The indexes that are missing. A user who may not list indexes still learns which exist, but not whether their keys are right.
    ///
    /// # Errors
    /// When the server does not answer; [`StoreError::Permanent`] when an index of that name has other keys.
    pub async fn missing_indexes(&self) -> Result<Vec<Index>, StoreError> {
        let mut missing = Vec::new();
        // Those of subscriptions are built first: most searches need them.
        let collections = Collection::ALL.into_iter().rev().map(Collection::as_str).chain(SUPPORT_COLLECTIONS);
        for collection in collections {
            let wanted = indexes().into_iter().chain(support_indexes()).filter(|index| index.collection == collection);
            let Some(existing) = self.existing_indexes(collection).await? else {
                let is_there = self.has_collection(collection).await?;
                for index in wanted {
                    match self.has_index(&index).await {
                        Ok(true) if is_there => {}
                        Ok(_) => missing.push(index),
                        // Nobody needs a right to this collection in order to work, and it is not known what is missing.
                        Err(StoreError::Denied(_)) if SUPPORT_COLLECTIONS.contains(&collection) => {}
                        Err(error) => return Err(error),
                    }
                }
                continue;
            };
            for index in wanted {
                match existing.iter().find(|found| name(found) == index.name()) {
                    None => missing.push(index),
                    Some(found) if has_same_keys(found, &index.specification) => {}
                    Some(_) => {
                        let fault = "an index of that name exists with other keys; it must be dropped first";
                        return Err(StoreError::Permanent(format!("the index {index}: {fault}")));
                    }
                }
            }
        }
        missing.sort_by_key(|index| index.is_for_support);
        Ok(missing)
    }

    /// The indexes of earlier versions that are no longer used.
    ///
    /// # Errors
    /// When the server does not answer.
    pub async fn superseded_indexes(&self) -> Result<Vec<Index>, StoreError> {
        let mut superseded = Vec::new();
        for collection in Collection::ALL {
            let is_superseded = |found: &Document| SUPERSEDED.contains(&(collection, name(found)));
            let existing = self.existing_indexes(collection.as_str()).await?.unwrap_or_default();
            let found = existing.into_iter().filter(is_superseded);
            superseded.extend(found.map(|specification| Index {
                collection: collection.as_str(),
                specification,
                is_for_support: false,
            }));
        }
        Ok(superseded)
    }

    /// Every index of a collection that is built; `None` if this user may not list them.
    async fn existing_indexes(&self, collection: &str) -> Result<Option<Vec<Document>>, StoreError> {
        let database = self.database.clone();
        // With `includeBuildUUIDs`, the server says which indexes are still being built.
        let command = doc! {
            "listIndexes": collection,
            "includeBuildUUIDs": true,
            "maxTimeMS": milliseconds(COMMAND_TIME_MAX),
        };
        let reply = within_deadline(async move {
            match database.run_command(command).await {
                Err(error) if code(&error) == Some(NAMESPACE_NOT_FOUND) => Ok(Some(Document::new())),
                Err(error) if code(&error) == Some(UNAUTHORIZED) => Ok(None),
                reply => reply.map(Some),
            }
        });
        Ok(reply.await?.map(|reply| first_batch(&reply).filter(|index| is_built(index)).cloned().collect()))
    }

    /// Whether a collection exists. Whoever has any right to it may learn its name.
    async fn has_collection(&self, collection: &str) -> Result<bool, StoreError> {
        let database = self.database.clone();
        let command = doc! {
            "listCollections": 1,
            "filter": { "name": collection },
            "nameOnly": true,
            "authorizedCollections": true,
            "maxTimeMS": milliseconds(COMMAND_TIME_MAX),
        };
        let reply = within_deadline(async move { database.run_command(command).await }).await?;
        Ok(first_batch(&reply).next().is_some())
    }

    /// Whether an index of an existing collection is built, found out with the right to read documents alone: MongoDB rejects a hint
    /// at a missing one. (Not in a collection that does not exist: there it rejects none.)
    async fn has_index(&self, index: &Index) -> Result<bool, StoreError> {
        let collection = self.database.collection::<RawDocumentBuf>(index.collection);
        let hint = Hint::Name(index.name().to_owned());
        within_deadline(async move {
            let find =
                collection.find(doc! {}).hint(hint).projection(doc! { "_id": 1 }).limit(1).max_time(COMMAND_TIME_MAX);
            match find.await {
                Ok(_) => Ok(true),
                // A partial index cannot answer this query, which does not matter.
                Err(error) if code(&error) == Some(NO_QUERY_PLAN) => Ok(true),
                Err(error) if code(&error) == Some(BAD_VALUE) => Ok(false),
                Err(error) => Err(error),
            }
        })
        .await
    }

    /// Builds an index, however long that takes.
    ///
    /// # Errors
    /// When the server does not answer, or rejects the command.
    pub async fn create_index(&self, index: &Index) -> Result<(), StoreError> {
        let hello = self.command(doc! { "hello": 1 }).await?;
        let mut command = doc! { "createIndexes": index.collection, "indexes": [&index.specification] };
        if is_replicated(&hello) {
            // By default the build waits for every voting member, so one member that hangs would block it without limit.
            command.insert("commitQuorum", "majority");
        }
        self.long_command(command).await
    }

    /// Builds every index that is missing.
    ///
    /// # Errors
    /// When the server does not answer, or rejects the command.
    pub async fn create_indexes(&self) -> Result<(), StoreError> {
        for index in self.missing_indexes().await? {
            self.create_index(&index).await?;
        }
        Ok(())
    }

    /// Drops an index.
    ///
    /// # Errors
    /// When the server does not answer, or rejects the command.
    pub async fn drop_index(&self, index: &Index) -> Result<(), StoreError> {
        self.long_command(doc! { "dropIndexes": index.collection, "index": index.name() }).await
    }

    /// The progress of an index build of a collection, in percent. `None` if there is no build, the server does not report its
    /// progress, or this user may not read it.
    pub async fn build_progress(&self, collection: &str) -> Option<u64> {
        let admin = self.database.client().database("admin");
        let filter = doc! {
            "currentOp": true,
            "command.createIndexes": collection,
            "command.$db": self.database.name(),
            "progress.total": { "$gt": 0 },
        };
        let reply = within_deadline(async move { admin.run_command(filter).await }).await.ok()?;
        let progress = reply.get_array("inprog").ok()?.first()?.as_document()?.get_document("progress").ok()?;
        let number = |field: &str| match progress.get(field)? {
            Bson::Int32(number) => u64::try_from(*number).ok(),
            Bson::Int64(number) => u64::try_from(*number).ok(),
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a count of documents")]
            Bson::Double(number) => Some(*number as u64),
            _ => None,
        };
        (number("done")?.min(number("total")?) * 100).checked_div(number("total")?)
    }

    /// Runs a command that may take hours. It is a task of its own: see [`within_deadline`].
    async fn long_command(&self, command: Document) -> Result<(), StoreError> {
        let database = self.database.clone();
        match tokio::spawn(async move { database.run_command(command).await }).await {
            Ok(result) => result.map(drop).map_err(|error| classify(&error)),
            Err(join) => Err(StoreError::Unavailable(format!("the operation was aborted: {join}"))),
        }
    }
}

/// The error code of a hint at a missing index.
pub(super) const BAD_VALUE: i32 = 2;
/// The error code of a collection that does not exist.
const NAMESPACE_NOT_FOUND: i32 = 26;
/// The error code of a hint at an index that cannot answer the query.
const NO_QUERY_PLAN: i32 = 291;

pub(super) fn code(error: &mongodb::error::Error) -> Option<i32> {
    match error.kind.as_ref() {
        ErrorKind::Command(command) => Some(command.code),
        _ => None,
    }
}

fn first_batch(reply: &Document) -> impl Iterator<Item = &Document> {
    let batch = reply.get_document("cursor").and_then(|cursor| cursor.get_array("firstBatch"));
    batch.into_iter().flatten().filter_map(Bson::as_document)
}

fn is_built(index: &Document) -> bool {
    !index.contains_key("buildUUID")
}

fn name(document: &Document) -> &str {
    document.get_str("name").unwrap_or_default()
}

/// Whether two indexes have the same keys in the same order. The server returns a direction as `1` or as `1.0`.
fn has_same_keys(one: &Document, other: &Document) -> bool {
    let direction = |value: &Bson| match value {
        Bson::Int32(number) => Some(f64::from(*number)),
        Bson::Double(number) => Some(*number),
        _ => None,
    };
    let keys = |index: &Document| -> Vec<(String, Option<f64>)> {
        let keys = index.get_document("key").cloned().unwrap_or_default();
        keys.iter().map(|(field, value)| (field.clone(), direction(value))).collect()
    };
    keys(one) == keys(other)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directions_of_keys_may_be_any_number() {
        let ours = doc! { "key": { "a": 1, "b": 1 } };
        assert!(has_same_keys(&ours, &doc! { "key": { "a": 1.0, "b": 1 } }));
        assert!(!has_same_keys(&ours, &doc! { "key": { "b": 1, "a": 1 } }));
        assert!(!has_same_keys(&ours, &doc! { "key": { "a": 1, "b": -1 } }));
        assert!(!has_same_keys(&ours, &doc! { "key": { "a": 1 } }));
    }
}
