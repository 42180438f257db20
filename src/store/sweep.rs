//! What the sweeper asks: which subscriptions are over, whose cards are about to expire, which documents can never be
//! processed, which tombstones to delete. And the indexes that make each question cost as much as its answer.
//!
//! The questions about ends are answered from an index alone: no document is read before it is decided on.

use std::collections::{HashMap, HashSet};

use bson::{Bson, DateTime as Instant, Document, RawBsonRef, RawDocument, RawDocumentBuf, doc};
use chrono::{DateTime, Days, NaiveDate, TimeDelta, Utc};
use chrono_tz::Tz;
use futures_util::TryStreamExt;
use mongodb::Cursor;
use mongodb::options::Hint;

use offramp_domain::account::{CARD_NOTICES_MAX, NoticeKind};
use offramp_domain::billing::{BillingDay, YearMonth, parse_date};
use offramp_domain::ids::{AccountId, CardId, OrganizationId, SubscriptionId};

use super::documents::CARD_NOTICE_DAYS_MAX;
use super::inspect::Index;
use super::{COMMAND_TIME_MAX, Collection, Store, StoreError, TIME_EXCEEDED, within_deadline};

/// How long a tombstone stays after its last email and event were sent or given up (contract §4).
const TOMBSTONE_DAYS: i64 = 30;
/// The largest offset from UTC that a time zone has, in hours: there a day begins first.
const UTC_OFFSET_HOURS_MAX: i64 = 14;
/// How many ids of due subscriptions are read at a time.
const WINDOW_MAX: usize = 8_192;
/// How many ids of subscriptions that are passed over should be in memory: some windows.
const PASSED_OVER_IDS_MAX: usize = 2 * WINDOW_MAX;
/// How many organizations with card notices are read at a time.
const ORGANIZATIONS_PAGE_MAX: u16 = 256;
/// How many documents of one fault are listed. The metric counts no further.
const UNWORKABLE_OF_ONE_FAULT_MAX: usize = 1_000;
/// Of how many organizations the time zone is remembered during a sweep.
const ZONES_MAX: usize = 100_000;

/// The statuses without a natural end. A missing status is `active`.
const WITHOUT_NATURAL_END: [&str; 4] = ["cancellation_scheduled", "cancelled", "expired", "removed"];

/// The types of values, as MongoDB names them, that are neither text nor null.
const NO_TEXT: [&str; 13] = [
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

/// Text that is no date, where no `expires_on` has a reason to be: what is neither four digits, month and day of that month.
/// (A 29 February of any year passes. It is found on that day, as every other date is.) A lookahead, because MongoDB evaluates it
/// on the keys of an index, but reads the document for a `$not`.
const NO_DATE: &str =
    r"^(?!\d{4}-(((0[13578]|1[02])-(0[1-9]|[12]\d|3[01]))|((0[469]|11)-(0[1-9]|[12]\d|30))|(02-(0[1-9]|[12]\d)))\z)";

/// The index, in subscriptions and in accounts, by which due outbox entries are found.
pub const DUE: &str = "offramp_due";
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

/// The indexes, in the order in which they are built.
pub(super) fn indexes() -> Vec<Index> {
    let index = |collection, specification| Index { collection, specification };
    let subscriptions = |specification| index(Collection::Subscriptions, specification);
    let accounts = |specification| index(Collection::Accounts, specification);
    vec![
        subscriptions(doc! {
            "name": DUE, "key": { "outbox.kind": 1, "outbox.due": 1 },
            "partialFilterExpression": { "outbox.due": { "$exists": true } },
        }),
        accounts(doc! {
            "name": DUE, "key": { "outbox.kind": 1, "outbox.due": 1 },
            "partialFilterExpression": { "outbox.due": { "$exists": true } },
        }),
        subscriptions(doc! { "name": "offramp_failed", "key": { "outbox.failed_at": 1 }, "sparse": true }),
        accounts(doc! { "name": "offramp_failed", "key": { "outbox.failed_at": 1 }, "sparse": true }),
        // Partial: most subscriptions are in none of the next four, so a change of their status costs no index anything.
        // The status is a key as well, because MongoDB reads the document to check a condition that is not a key.
        subscriptions(doc! {
            "name": SCHEDULED_ENDS, "key": { "status": 1, "ends_at": 1, "_id": 1 },
            "partialFilterExpression": { "status": "cancellation_scheduled" },
        }),
        subscriptions(doc! {
            "name": NATURAL_ENDS,
            "key": { "status": 1, "billing.day": 1, "expires_on": 1, "organization_id": 1, "_id": 1 },
            "partialFilterExpression": { "expires_on": { "$gt": "" } },
        }),
        // Empty, where every `expires_on` is text or null.
        subscriptions(doc! {
            "name": EXPIRY_TYPES, "key": { "status": 1, "expires_on": 1 },
            "partialFilterExpression": { "expires_on": { "$type": NO_TEXT.as_slice() } },
        }),
        // Empty, where no `expires_on` is. With keys of its own, because MongoDB 4.4 does not tell indexes by their filters.
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
        index(
            Collection::Organizations,
            doc! {
                "name": CARD_ORGANIZATIONS, "key": { "_id": 1, "timezone": 1 },
                "partialFilterExpression": { "card_notice_days": { "$exists": true } },
            },
        ),
    ]
}

/// Indexes of earlier versions that nothing uses any more.
pub(super) const SUPERSEDED: [(Collection, &str); 6] = [
    (Collection::Organizations, "offramp_card_notices"),
    (Collection::Subscriptions, "offramp_scheduled"),
    (Collection::Subscriptions, "offramp_expiring"),
    (Collection::Subscriptions, "offramp_outbox"),
    (Collection::Accounts, "offramp_cards"),
    (Collection::Accounts, "offramp_outbox"),
];

/// A document that cannot be processed as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unworkable {
    /// Where it is.
    pub collection: Collection,
    /// Its `_id`.
    pub id: String,
    /// Which field is wrong, and what belongs there. Quotes nothing of the document.
    pub reason: String,
}

/// Ids of due subscriptions.
#[derive(Debug, Default)]
pub struct Window {
    /// Some of them, from the beginning of the index, without those that are passed over; all, if there are few.
    pub due: Vec<SubscriptionId>,
    /// Those before the first of them that have no id that a subscription can have.
    pub unworkable: Vec<Unworkable>,
}

impl Window {
    /// Takes an entry of the index.
    fn add(&mut self, raw: &RawDocument, is_over: bool, passed: &mut PassedOver) {
        let is_first = self.due.is_empty();
        match raw.get_str("_id").ok().and_then(|id| SubscriptionId::try_from(id).ok()) {
            Some(id) if is_over && !passed.ids.contains(&id) => self.due.push(id),
            _ if !is_first => {}
            Some(id) => passed.skip(Some(&id)),
            None => {
                passed.skip(None);
                if self.unworkable.len() < WINDOW_MAX {
                    let what = kind(raw.get("_id").ok().flatten());
                    let reason = format!("_id is {what}, where text of 1 to 128 characters belongs");
                    let (collection, id) = (Collection::Subscriptions, shown_id(raw));
                    self.unworkable.push(Unworkable { collection, id, reason });
                }
            }
        }
    }
}

/// What a sweep has tried already, and looks at no more.
///
/// At the beginning of the index, where a sweep has tried everything, it is a number of entries. So however many subscriptions
/// cannot be ended, only ids after that place are in memory, and those behind them in the index get their turn. Where others
/// change entries before that place, the number is wrong by as many: what is missed is found by the next sweep.
#[derive(Debug, Default)]
pub struct PassedOver {
    first: u64,
    ids: HashSet<SubscriptionId>,
}

impl PassedOver {
    /// Passes over a subscription from now on.
    pub fn add(&mut self, id: SubscriptionId) {
        self.ids.insert(id);
    }

    /// How many ids are in memory.
    #[must_use]
    pub fn ids_count(&self) -> usize {
        self.ids.len()
    }

    /// Whether there are so many that what comes first in a window should be tried first: these ids are then not needed any more.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.ids.len() >= PASSED_OVER_IDS_MAX
    }

    /// Moves the place by one entry.
    fn skip(&mut self, id: Option<&SubscriptionId>) {
        self.first += 1;
        if let Some(id) = id {
            self.ids.remove(id);
        }
    }
}

/// Why subscriptions may never be found due.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fault {
    /// `ends_at` is no date.
    EndsAt,
    /// `expires_on` is no text.
    ExpiryType,
    /// `expires_on` is empty text.
    ExpiryEmpty,
    /// `expires_on` is other text that is no date. To find it, all keys of an index are read.
    ExpiryText,
    /// `billing.day` is no day.
    BillingDay,
}

impl Fault {
    /// The index, in subscriptions, that finds it.
    #[must_use]
    pub fn index(self) -> &'static str {
        match self {
            Self::EndsAt => SCHEDULED_ENDS,
            Self::ExpiryType => EXPIRY_TYPES,
            Self::ExpiryEmpty => EXPIRY_EMPTY,
            Self::ExpiryText | Self::BillingDay => NATURAL_ENDS,
        }
    }

    /// What is to be asked: each filter, with the field to look at.
    fn filters(self) -> Vec<Document> {
        let live = || doc! { "$nin": WITHOUT_NATURAL_END.as_slice() };
        let days = 1..=31;
        match self {
            Self::EndsAt => {
                let no_date = NO_TEXT.into_iter().filter(|kind| *kind != "date" && *kind != "array");
                let no_date: Vec<&str> = no_date.chain(["string"]).collect();
                let scheduled = "cancellation_scheduled";
                vec![doc! { "$or": [
                    { "status": scheduled, "ends_at": Bson::Null },
                    { "status": scheduled, "ends_at": { "$type": no_date } },
                ] }]
            }
            Self::ExpiryType => vec![doc! { "status": live(), "expires_on": { "$type": NO_TEXT.as_slice() } }],
            Self::ExpiryEmpty => vec![doc! { "status": live(), "expires_on": "" }],
            // One question for each day, so that each is a small part of the index.
            Self::ExpiryText => days
                .map(
                    |day| doc! { "status": live(), "billing.day": day, "expires_on": { "$gt": "", "$regex": NO_DATE } },
                )
                .collect(),
            Self::BillingDay => {
                let days: Vec<i32> = days.collect();
                vec![doc! { "status": live(), "billing.day": { "$nin": days }, "expires_on": { "$gt": "" } }]
            }
        }
    }

    /// The field to look at, if the sentence says what it is.
    fn field(self) -> &'static str {
        match self {
            Self::EndsAt => "ends_at",
            Self::ExpiryType => "expires_on",
            Self::ExpiryEmpty | Self::ExpiryText => "_id",
            Self::BillingDay => "billing.day",
        }
    }

    /// What is wrong with a document, in a sentence.
    fn reason(self, raw: &RawDocument) -> String {
        match self {
            Self::EndsAt => format!("ends_at is {}, where a date belongs", kind(raw.get("ends_at").ok().flatten())),
            Self::ExpiryType => {
                let what = kind(raw.get("expires_on").ok().flatten());
                format!("expires_on is {what}, where text such as \"2026-06-30\" belongs")
            }
            Self::ExpiryEmpty | Self::ExpiryText => "expires_on is not a date such as \"2026-06-30\"".to_owned(),
            Self::BillingDay => {
                let day = raw.get_document("billing").ok().and_then(|billing| billing.get("day").ok().flatten());
                match day {
                    Some(RawBsonRef::Double(_) | RawBsonRef::Int32(_) | RawBsonRef::Int64(_)) => {
                        "billing.day is not a whole number from 1 to 31".to_owned()
                    }
                    other => format!("billing.day is {}, where a whole number from 1 to 31 belongs", kind(other)),
                }
            }
        }
    }
}

/// The time zones of organizations, as far as a sweep has met them.
#[derive(Debug, Default)]
pub struct Zones(HashMap<String, Option<Tz>>);

impl Zones {
    /// Learns the time zones of the organizations behind these subscriptions.
    async fn learn(&mut self, store: &Store, subscriptions: &[RawDocumentBuf]) -> Result<(), StoreError> {
        if self.0.len() > ZONES_MAX {
            self.0.clear();
        }
        let new: HashSet<&str> = subscriptions
            .iter()
            .filter_map(|raw| raw.get_str("organization_id").ok())
            .filter(|id| !self.0.contains_key(*id))
            .collect();
        if new.is_empty() {
            return Ok(());
        }
        let ids: Vec<&str> = new.into_iter().collect();
        self.0.extend(ids.iter().map(|id| ((*id).to_owned(), None)));
        let filter = doc! { "_id": { "$in": ids } };
        for raw in store.find(Collection::Organizations, filter, doc! { "timezone": 1 }, None).await? {
            if let (Ok(id), Ok(zone)) = (raw.get_str("_id"), raw.get_str("timezone")) {
                self.0.insert(id.to_owned(), zone.parse().ok());
            }
        }
        Ok(())
    }

    /// Whether the natural end of a subscription is over where its organization is. What cannot be told is left to the
    /// rules, which say what is wrong.
    fn is_over(&self, raw: &RawDocument, now: DateTime<Utc>) -> bool {
        let over = || {
            let zone = (*self.0.get(raw.get_str("organization_id").ok()?)?)?;
            let day = raw.get_document("billing").ok()?.get("day").ok()??;
            let day = BillingDay::try_from(whole_number(day)?).ok()?;
            let expires_on = parse_date(raw.get_str("expires_on").ok()?).ok()?;
            Some(expires_on < day.newest_date(now.with_timezone(&zone).date_naive()))
        };
        over().unwrap_or(true)
    }
}

/// An organization that wants card notices.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CardOrganization {
    /// Its id.
    pub id: OrganizationId,
    /// Where it is.
    pub timezone: Tz,
    /// How many days before a card expires its holder is told.
    pub card_notice_days: Vec<u32>,
}

impl CardOrganization {
    /// The expiry months that are within a lead time at `now`, each with the notice that is due.
    #[must_use]
    pub fn notices_due(&self, now: DateTime<Utc>) -> Vec<(YearMonth, NoticeKind)> {
        let today = now.with_timezone(&self.timezone).date_naive();
        let Some(longest) = self.card_notice_days.iter().copied().max() else { return Vec::new() };
        let Some(last_day) = today.checked_add_days(Days::new(longest.into())) else { return Vec::new() };
        std::iter::successors(Some(YearMonth::of(today)), |month| Some(month.next()))
            .take_while(|month| month.last_day() <= last_day)
            .map(|month| (month, NoticeKind::due(month, today, &self.card_notice_days)))
            .collect()
    }

    /// Reads one; `None` where it wants no notices.
    fn read(raw: &RawDocument) -> Option<Result<Self, Unworkable>> {
        let value = raw.get("card_notice_days").ok().flatten();
        if value.is_none() || value == Some(RawBsonRef::Null) {
            return None;
        }
        let read = || {
            let id = raw.get_str("_id").ok().and_then(|id| id.try_into().ok());
            let id = id.ok_or("_id is not text of 1 to 128 characters")?;
            let days = value.and_then(RawBsonRef::as_array);
            let card_notice_days: Option<Vec<u32>> = days.and_then(|days| {
                let days = days.into_iter().map(|day| u32::try_from(whole_number(day.ok()?)?).ok());
                days.map(|days| days.filter(|days| *days <= CARD_NOTICE_DAYS_MAX)).collect()
            });
            let card_notice_days = card_notice_days.ok_or_else(|| {
                format!("card_notice_days is not a list of whole numbers from 0 to {CARD_NOTICE_DAYS_MAX}")
            })?;
            let timezone = raw.get_str("timezone").ok().and_then(|zone| zone.parse().ok());
            let timezone = timezone.ok_or("timezone is not an IANA time zone such as \"America/Toronto\"")?;
            Ok(Self { id, timezone, card_notice_days })
        };
        match read() {
            Ok(organization) if organization.card_notice_days.is_empty() => None,
            Ok(organization) => Some(Ok(organization)),
            Err(reason) => {
                let reason: String = reason;
                Some(Err(Unworkable { collection: Collection::Organizations, id: shown_id(raw), reason }))
            }
        }
    }
}

/// Some of the organizations that want card notices.
#[derive(Debug, Default)]
pub struct CardOrganizationsPage {
    /// They, or what is wrong with them.
    pub organizations: Vec<Result<CardOrganization, Unworkable>>,
    /// The last that was looked at: the next page comes after it. None: there is no further one.
    pub last: Option<String>,
}

/// The next documents of a cursor, at most `documents_max`; none at the end.
async fn page(
    place: &mut Option<Cursor<RawDocumentBuf>>,
    documents_max: usize,
) -> Result<Vec<RawDocumentBuf>, StoreError> {
    let Some(mut cursor) = place.take() else { return Ok(Vec::new()) };
    let (cursor, page) = within_deadline(async move {
        let mut page = Vec::new();
        while page.len() < documents_max {
            match cursor.try_next().await? {
                Some(raw) => page.push(raw),
                None => return Ok((None, page)),
            }
        }
        Ok((Some(cursor), page))
    })
    .await?;
    *place = cursor;
    Ok(page)
}

impl Store {
    /// Scheduled subscriptions whose last day is over at `now`, other than those that are passed over.
    ///
    /// # Errors
    /// When the server does not answer.
    pub async fn scheduled_ends(&self, now: DateTime<Utc>, passed: &mut PassedOver) -> Result<Window, StoreError> {
        let filter = doc! { "status": "cancellation_scheduled", "ends_at": { "$lte": Instant::from(now) } };
        let mut cursor = self.ends(SCHEDULED_ENDS, filter, doc! { "_id": 1 }, passed).await?;
        let mut window = Window::default();
        while window.due.len() < WINDOW_MAX && cursor.is_some() {
            for raw in page(&mut cursor, WINDOW_MAX).await? {
                window.add(&raw, true, passed);
            }
        }
        Ok(window)
    }

    /// Active and requested subscriptions whose natural end is over at `now`, other than those that are passed over.
    ///
    /// A natural end is over on a day when `expires_on` is before the newest billing date by then. So there is a range for
    /// each billing day. It is made for the latest date on earth; where the organization's date has not come yet is told
    /// from its time zone.
    ///
    /// # Errors
    /// When the server does not answer.
    pub async fn natural_ends(
        &self,
        now: DateTime<Utc>,
        passed: &mut PassedOver,
        zones: &mut Zones,
    ) -> Result<Window, StoreError> {
        let latest = (now + TimeDelta::hours(UTC_OFFSET_HOURS_MAX)).date_naive();
        let of_day = |day: BillingDay, number: i64| {
            doc! {
                "status": { "$nin": WITHOUT_NATURAL_END.as_slice() },
                "billing.day": number,
                "expires_on": { "$gt": "", "$lt": day.newest_date(latest).to_string() },
            }
        };
        let days = (1..=31).filter_map(|number| Some(of_day(BillingDay::try_from(number).ok()?, number)));
        let filter = doc! { "$or": days.collect::<Vec<_>>() };
        let fields = doc! { "_id": 1, "organization_id": 1, "billing.day": 1, "expires_on": 1 };
        let mut cursor = self.ends(NATURAL_ENDS, filter, fields, passed).await?;
        let mut window = Window::default();
        while window.due.len() < WINDOW_MAX && cursor.is_some() {
            let page = page(&mut cursor, WINDOW_MAX).await?;
            zones.learn(self, &page).await?;
            for raw in &page {
                window.add(raw, zones.is_over(raw, now), passed);
            }
        }
        Ok(window)
    }

    /// Entries of an index of ends, in its order, after those that are passed over by number.
    async fn ends(
        &self,
        index: &'static str,
        filter: Document,
        fields: Document,
        passed: &PassedOver,
    ) -> Result<Option<Cursor<RawDocumentBuf>>, StoreError> {
        let collection = self.database.collection::<RawDocumentBuf>(Collection::Subscriptions.as_str());
        let batch_size = u32::try_from(WINDOW_MAX).unwrap_or(u32::MAX);
        let skip = passed.first;
        within_deadline(async move {
            let find = collection.find(filter).projection(fields).skip(skip).hint(Hint::Name(index.to_owned()));
            find.batch_size(batch_size).max_time(COMMAND_TIME_MAX).await.map(Some)
        })
        .await
    }

    /// Subscriptions that no sweep will ever find due, because a field that says when has a value that says nothing.
    ///
    /// # Errors
    /// When the server does not answer.
    pub async fn faulty_subscriptions(&self, fault: Fault) -> Result<Vec<Unworkable>, StoreError> {
        let mut found = Vec::new();
        for filter in fault.filters() {
            let room = UNWORKABLE_OF_ONE_FAULT_MAX.saturating_sub(found.len());
            if room == 0 {
                break;
            }
            let fields = doc! { fault.field(): 1 };
            let faulty = self.hinted(Collection::Subscriptions, fault.index(), filter, fields, None, room).await?;
            found.extend(faulty.iter().map(|raw| Unworkable {
                collection: Collection::Subscriptions,
                id: shown_id(raw),
                reason: fault.reason(raw),
            }));
        }
        Ok(found)
    }

    /// At most `limit` documents that an index finds.
    async fn hinted(
        &self,
        collection: Collection,
        index: &'static str,
        filter: Document,
        fields: Document,
        order: Option<Document>,
        limit: usize,
    ) -> Result<Vec<RawDocumentBuf>, StoreError> {
        let collection = self.database.collection::<RawDocumentBuf>(collection.as_str());
        let (limit, batch_size) = (i64::try_from(limit).unwrap_or(i64::MAX), u32::try_from(limit).unwrap_or(u32::MAX));
        within_deadline(async move {
            let mut find = collection.find(filter).projection(fields).limit(limit).batch_size(batch_size);
            find = find.max_time(COMMAND_TIME_MAX);
            if let Some(order) = order {
                find = find.sort(order);
            }
            find.hint(Hint::Name(index.to_owned())).await?.try_collect().await
        })
        .await
    }

    /// Organizations that want card notices, after the organization `after`, ordered by `_id`.
    ///
    /// Pages and not one cursor: what is done between two pages may take longer than a server keeps a cursor that is not used.
    ///
    /// # Errors
    /// When the server does not answer.
    pub async fn card_organizations(&self, after: Option<&str>) -> Result<CardOrganizationsPage, StoreError> {
        let mut id = doc! { "$type": "string" };
        if let Some(after) = after {
            id.insert("$gt", after);
        }
        let filter = |id: Document| doc! { "_id": id, "card_notice_days": { "$exists": true } };
        let fields = || doc! { "timezone": 1, "card_notice_days": 1 };
        let (of, index) = (Collection::Organizations, CARD_ORGANIZATIONS);
        let order = Some(doc! { "_id": 1 });
        let found = self.hinted(of, index, filter(id), fields(), order, ORGANIZATIONS_PAGE_MAX.into()).await?;
        let mut page = CardOrganizationsPage {
            organizations: found.iter().filter_map(|raw| CardOrganization::read(raw)).collect(),
            last: found.last().and_then(|raw| raw.get_str("_id").ok()).map(str::to_owned),
        };
        if page.last.is_none() {
            // Ids of other types, which no organization can have, are at the end.
            let others = filter(doc! { "$type": NO_TEXT.as_slice() });
            let others = self.hinted(of, index, others, fields(), None, UNWORKABLE_OF_ONE_FAULT_MAX).await?;
            page.organizations.extend(others.iter().filter_map(|raw| CardOrganization::read(raw)));
        }
        Ok(page)
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
        after: Option<&str>,
        accounts_max: usize,
    ) -> Result<CardsPage, StoreError> {
        let expires = expires.to_string();
        let kind = super::update::bson(&kind)?;
        // What is not a list counts as empty: one such account must not stop the notices of all others.
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
            ids.insert("$gt", after);
        }
        filter.insert("_id", ids);
        let fields = doc! {
            "cards.id": 1, "cards.expires": 1, "card_notices_count": { "$size": items("$card_notices") },
        };
        let order = Some(doc! { "_id": 1 });
        let accounts = self.hinted(Collection::Accounts, CARD_EXPIRY, filter, fields, order, accounts_max).await?;
        let mut page = CardsPage {
            last: accounts.last().and_then(|raw| raw.get_str("_id").ok()).map(str::to_owned),
            ..CardsPage::default()
        };

        let mut cards: HashMap<&str, (Vec<CardId>, bool)> = HashMap::new();
        for raw in &accounts {
            let Ok(id) = raw.get_str("_id") else { continue };
            let Ok(of_account) = raw.get_array("cards") else { continue };
            let count = raw.get("card_notices_count").ok().flatten().and_then(whole_number);
            let is_full =
                count.is_some_and(|count| usize::try_from(count).is_ok_and(|count| count >= CARD_NOTICES_MAX));
            for card in of_account.into_iter().flatten().filter_map(RawBsonRef::as_document) {
                let (Ok(card_id), Ok(month)) = (card.get_str("id"), card.get_str("expires")) else { continue };
                if month == expires {
                    let (cards, _) = cards.entry(id).or_insert_with(|| (Vec::new(), is_full));
                    cards.extend(CardId::try_from(card_id));
                }
            }
        }
        for account in self.with_live_subscription(cards.keys().copied().collect()).await? {
            let (cards, is_full) = cards.remove(account.as_str()).unwrap_or_default();
            match AccountId::try_from(account.as_str()) {
                Ok(id) => page.due.extend(cards.into_iter().map(|card| DueCard { account: id.clone(), card, is_full })),
                Err(_) => page.unworkable.push(Unworkable {
                    collection: Collection::Accounts,
                    id: account,
                    reason: "_id is text of more than 128 characters or of none".to_owned(),
                }),
            }
        }
        Ok(page)
    }

    /// Those of the accounts that have a live subscription.
    async fn with_live_subscription(&self, accounts: Vec<&str>) -> Result<Vec<String>, StoreError> {
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
        Ok(values.iter().filter_map(|id| Some(id.as_str()?.to_owned())).collect())
    }

    /// Deletes the tombstones whose last email and event were sent, or given up, 30 days ago.
    ///
    /// # Errors
    /// When the server does not answer.
    pub async fn delete_tombstones(&self, now: DateTime<Utc>) -> Result<u64, StoreError> {
        let settled_by = now - TimeDelta::days(TOMBSTONE_DAYS);
        // The day of removal is in the organization's calendar: one day of grace covers every time zone.
        let removed_by: NaiveDate = settled_by.date_naive() + Days::new(1);
        let mut filter = doc! {
            "status": "removed",
            "ended_on": { "$lte": removed_by.to_string() },
            // Still to be sent.
            "outbox.due": { "$not": { "$type": "date" } },
        };
        for instant in
            ["applied.at", "applied.settled_at", "notifications.sent_at", "notifications.failed_at", "outbox.failed_at"]
        {
            filter.insert(instant, doc! { "$not": { "$gt": Instant::from(settled_by) } });
        }
        let reply = self
            .command(doc! {
                "delete": Collection::Subscriptions.as_str(),
                "deletes": [{ "q": filter, "limit": 0, "hint": REMOVED }],
            })
            .await?;
        // The command succeeds, whatever became of its statement.
        if let Some(error) = reply.get_array("writeErrors").ok().and_then(|errors| errors.first()?.as_document()) {
            let code = error.get_i32("code").unwrap_or(0);
            return Err(if code == TIME_EXCEEDED {
                StoreError::TimedOut
            } else {
                StoreError::Refused(format!("to delete tombstones, code {code}"))
            });
        }
        Ok(reply.get("n").and_then(|count| u64::try_from(count.as_i32()?).ok()).unwrap_or(0))
    }
}

/// Some of the cards whose notice is due.
#[derive(Debug, Default)]
pub struct CardsPage {
    /// The cards.
    pub due: Vec<DueCard>,
    /// Accounts that cannot get any.
    pub unworkable: Vec<Unworkable>,
    /// The last account that was looked at: the next page comes after it. None: there is no further one.
    pub last: Option<String>,
}

/// A card whose notice is due.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DueCard {
    /// Whose it is.
    pub account: AccountId,
    /// Its id.
    pub card: CardId,
    /// Whether the account has [`CARD_NOTICES_MAX`] notices or more. The rules then give no further one, unless some of them may be
    /// forgotten.
    pub is_full: bool,
}

/// A whole number, in whichever of BSON's number types another system wrote it.
fn whole_number(value: RawBsonRef<'_>) -> Option<i64> {
    /// From here on not every whole number is a double.
    const DOUBLE_MAX: f64 = 9_007_199_254_740_992.0;
    match value {
        RawBsonRef::Int32(number) => Some(number.into()),
        RawBsonRef::Int64(number) => Some(number),
        #[allow(clippy::cast_possible_truncation, reason = "checked")]
        RawBsonRef::Double(number) if number.fract() == 0.0 && number.abs() < DOUBLE_MAX => Some(number as i64),
        _ => None,
    }
}

/// What a value is, in plain words.
fn kind(value: Option<RawBsonRef<'_>>) -> &'static str {
    match value {
        None => "missing",
        Some(RawBsonRef::Null | RawBsonRef::Undefined) => "null",
        Some(RawBsonRef::String(_)) => "text",
        Some(RawBsonRef::DateTime(_)) => "a date",
        Some(RawBsonRef::Timestamp(_)) => "a timestamp",
        Some(RawBsonRef::Boolean(_)) => "true or false",
        Some(RawBsonRef::ObjectId(_)) => "an ObjectId",
        Some(RawBsonRef::Document(_)) => "an object",
        Some(RawBsonRef::Array(_)) => "a list",
        Some(RawBsonRef::Double(_) | RawBsonRef::Int32(_) | RawBsonRef::Int64(_) | RawBsonRef::Decimal128(_)) => {
            "a number"
        }
        Some(_) => "a value of another type",
    }
}

/// The `_id` of a document, for sentences.
fn shown_id(raw: &RawDocument) -> String {
    match raw.get("_id") {
        Ok(Some(RawBsonRef::String(id))) => id.to_owned(),
        Ok(Some(RawBsonRef::ObjectId(id))) => id.to_hex(),
        Ok(id) => format!("with an _id that is {}", kind(id)),
        Err(_) => "that cannot be read".to_owned(),
    }
}
