//! What the sweeper looks for: dates that have passed, cards about to expire, tombstones to delete; and the indexes that
//! make each of these a look at what is due, not at everything.

use std::collections::HashMap;

use bson::{Bson, DateTime as Instant, Document, RawBsonRef, RawDocumentBuf, doc};
use chrono::{DateTime, Days, NaiveDate, TimeDelta, Utc};
use futures_util::TryStreamExt;
use mongodb::Cursor;

use crate::domain::account::NoticeKind;
use crate::domain::billing::YearMonth;
use crate::domain::fold::Loaded;
use crate::domain::organization::Organization;
use crate::domain::text::{AccountId, CardId, OrganizationId, SubscriptionId};

use super::documents::{self, OrganizationDocument};
use super::{Collection, Store, StoreError, within_deadline};

/// How long a tombstone stays after its outbox is empty (contract §4).
const TOMBSTONE_DAYS: i64 = 30;

/// The indexes of each collection, as `createIndexes` takes them.
pub(super) fn indexes() -> [(Collection, Vec<Document>); 2] {
    [
        (
            Collection::Subscriptions,
            vec![
                // Most subscriptions are in none of these three, so that a change of their status costs no index anything.
                doc! {
                    "name": "offramp_scheduled", "key": { "ends_at": 1 },
                    "partialFilterExpression": { "status": "cancellation_scheduled" },
                },
                // With the id, since earlier versions made an index of the first two, whole, and MongoDB takes none beside it
                // that differs by its filter alone before 5.0.
                doc! {
                    "name": "offramp_expiring", "key": { "status": 1, "expires_on": 1, "_id": 1 },
                    "partialFilterExpression": { "expires_on": { "$gt": "" } },
                },
                doc! {
                    "name": "offramp_removed", "key": { "ended_on": 1 },
                    "partialFilterExpression": { "status": "removed" },
                },
                // Without the status, which changes: an account has few subscriptions.
                doc! { "name": "offramp_of_account", "key": { "account_id": 1 } },
                doc! {
                    "name": "offramp_due", "key": { "outbox.kind": 1, "outbox.due": 1 },
                    "partialFilterExpression": { "outbox.due": { "$exists": true } },
                },
                doc! { "name": "offramp_failed", "key": { "outbox.failed_at": 1 }, "sparse": true },
            ],
        ),
        (
            Collection::Accounts,
            vec![
                doc! { "name": "offramp_cards", "key": { "organization_id": 1, "cards.expires": 1 } },
                doc! {
                    "name": "offramp_due", "key": { "outbox.kind": 1, "outbox.due": 1 },
                    "partialFilterExpression": { "outbox.due": { "$exists": true } },
                },
                doc! { "name": "offramp_failed", "key": { "outbox.failed_at": 1 }, "sparse": true },
            ],
        ),
    ]
}

/// A stream of ids, read as it is consumed.
#[derive(Debug)]
pub struct Ids {
    /// None once the end, or an error, was reached.
    cursor: Option<Cursor<RawDocumentBuf>>,
}

impl Ids {
    /// The next ids, at most `max`; none at the end.
    ///
    /// # Errors
    /// When the server does not answer; the stream is then at its end.
    pub async fn next(&mut self, max: usize) -> Result<Vec<SubscriptionId>, StoreError> {
        let Some(mut cursor) = self.cursor.take() else { return Ok(Vec::new()) };
        let (cursor, ids) = within_deadline(async move {
            let mut ids = Vec::with_capacity(max);
            while ids.len() < max {
                match cursor.try_next().await? {
                    Some(raw) => ids.extend(super::id::<SubscriptionId>(&raw)),
                    None => return Ok((None, ids)),
                }
            }
            Ok((Some(cursor), ids))
        })
        .await?;
        self.cursor = cursor;
        Ok(ids)
    }
}

impl Store {
    /// The scheduled subscriptions whose last day is over at `now`.
    ///
    /// # Errors
    /// When the server does not answer.
    pub async fn ended(&self, now: DateTime<Utc>) -> Result<Ids, StoreError> {
        self.ids(doc! { "status": "cancellation_scheduled", "ends_at": { "$lte": Instant::from(now) } }).await
    }

    /// The subscriptions that run and whose expiry date is over at `now` wherever they are; their natural end is that day or
    /// up to a month later.
    ///
    /// # Errors
    /// When the server does not answer.
    pub async fn expired(&self, now: DateTime<Utc>) -> Result<Ids, StoreError> {
        let tomorrow = (now.date_naive() + Days::new(1)).to_string();
        self.ids(doc! {
            "status": { "$in": ["active", "cancellation_requested", Bson::Null] },
            "expires_on": { "$gt": "", "$lte": tomorrow },
        })
        .await
    }

    async fn ids(&self, filter: Document) -> Result<Ids, StoreError> {
        let collection = self.database.collection::<RawDocumentBuf>(Collection::Subscriptions.as_str());
        let cursor =
            within_deadline(async move { collection.find(filter).projection(doc! { "_id": 1 }).await }).await?;
        Ok(Ids { cursor: Some(cursor) })
    }

    /// The organizations that want card notices.
    ///
    /// # Errors
    /// When the server does not answer.
    pub async fn organizations_with_card_notices(&self) -> Result<Vec<Loaded<Organization>>, StoreError> {
        let found =
            self.find(Collection::Organizations, doc! { "card_notice_days.0": { "$exists": true } }, doc! {}, None);
        Ok(found.await?.iter().map(|raw| documents::read::<OrganizationDocument, _>("organizations", raw)).collect())
    }

    /// The cards of `organization` that expire in the month `expires` and have not got the notice `kind` yet, in accounts
    /// with a live subscription; at most those of `accounts_max` accounts after the account `after`.
    ///
    /// # Errors
    /// When the server does not answer.
    pub async fn cards_without_notice(
        &self,
        organization: &OrganizationId,
        expires: YearMonth,
        kind: NoticeKind,
        after: Option<&AccountId>,
        accounts_max: i64,
    ) -> Result<CardsPage, StoreError> {
        let expires = expires.to_string();
        let kind = super::commit::bson(&kind)?;
        // What is no list counts as empty: one such account must not stop the notices of all others.
        let items = |field: &str| doc! { "$cond": [{ "$isArray": field }, field, []] };
        let expiring = doc! { "$map": {
            "input": { "$filter": { "input": items("$cards"), "cond": { "$eq": ["$$this.expires", &expires] } } },
            "in": "$$this.id",
        } };
        let given = doc! { "$map": {
            "input": { "$filter": {
                "input": items("$card_notices"),
                "cond": { "$and": [
                    { "$eq": ["$$this.expires", &expires] },
                    { "$eq": ["$$this.notice", { "$literal": kind }] },
                ] },
            } },
            "in": "$$this.card_id",
        } };
        let mut filter = doc! {
            "organization_id": organization.as_str(),
            "cards.expires": &expires,
            "$expr": { "$gt": [{ "$size": { "$setDifference": [expiring, given] } }, 0] },
        };
        let mut ids = doc! { "$type": "string" };
        if let Some(after) = after {
            ids.insert("$gt", after.as_str());
        }
        filter.insert("_id", ids);
        let collection = self.database.collection::<RawDocumentBuf>(Collection::Accounts.as_str());
        let accounts: Vec<RawDocumentBuf> = within_deadline(async move {
            collection
                .find(filter)
                .projection(doc! { "cards.id": 1, "cards.expires": 1 })
                .sort(doc! { "_id": 1 })
                .limit(accounts_max)
                .await?
                .try_collect()
                .await
        })
        .await?;
        let last = accounts.last().and_then(super::id::<AccountId>);

        let mut cards: HashMap<&str, Vec<CardId>> = HashMap::new();
        for raw in &accounts {
            let Ok(id) = raw.get_str("_id") else { continue };
            let Ok(of_account) = raw.get_array("cards") else { continue };
            for card in of_account.into_iter().flatten().filter_map(RawBsonRef::as_document) {
                let (Ok(card_id), Ok(month)) = (card.get_str("id"), card.get_str("expires")) else { continue };
                if month == expires {
                    cards.entry(id).or_default().extend(CardId::try_from(card_id));
                }
            }
        }
        let live = self.with_live_subscription(cards.keys().copied().collect()).await?;
        let due = live
            .iter()
            .flat_map(|account| {
                let cards = cards.remove(account.as_str()).unwrap_or_default();
                cards.into_iter().map(|card| (account.clone(), card)).collect::<Vec<_>>()
            })
            .collect();
        Ok(CardsPage { due, last })
    }

    /// Those of the accounts that have a live subscription.
    async fn with_live_subscription(&self, accounts: Vec<&str>) -> Result<Vec<AccountId>, StoreError> {
        if accounts.is_empty() {
            return Ok(Vec::new());
        }
        let live = ["active", "cancellation_requested", "cancellation_scheduled"].map(Bson::from);
        let status: Vec<Bson> = live.into_iter().chain([Bson::Null]).collect();
        let reply = self
            .command(doc! {
                "distinct": Collection::Subscriptions.as_str(),
                "key": "account_id",
                "query": { "account_id": { "$in": accounts }, "status": { "$in": status } },
            })
            .await?;
        let values = reply.get_array("values").cloned().unwrap_or_default();
        Ok(values.iter().filter_map(|id| id.as_str()?.try_into().ok()).collect())
    }

    /// Deletes the tombstones whose outbox has been empty for 30 days.
    ///
    /// # Errors
    /// When the server does not answer.
    pub async fn delete_tombstones(&self, now: DateTime<Utc>) -> Result<u64, StoreError> {
        let empty_since = now - TimeDelta::days(TOMBSTONE_DAYS);
        // The day of removal is in the organization's calendar: one day of grace covers every time zone.
        let removed_by: NaiveDate = empty_since.date_naive() + Days::new(1);
        let filter = doc! {
            "status": "removed",
            "outbox": { "$size": 0 },
            "ended_on": { "$lte": removed_by.to_string() },
            "applied.at": { "$not": { "$gt": Instant::from(empty_since) } },
            "applied.settled_at": { "$not": { "$gt": Instant::from(empty_since) } },
        };
        let collection = self.database.collection::<Document>(Collection::Subscriptions.as_str());
        within_deadline(async move { collection.delete_many(filter).await }).await.map(|deleted| deleted.deleted_count)
    }
}

/// Some of the cards whose notice is due.
#[derive(Debug)]
pub struct CardsPage {
    /// The cards with their accounts.
    pub due: Vec<(AccountId, CardId)>,
    /// The last account that was looked at: the next page comes after it. None: there is no further one.
    pub last: Option<AccountId>,
}
