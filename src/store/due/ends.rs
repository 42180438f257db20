//! Subscriptions that are over: at a scheduled end, or at their natural end.
//!
//! Both are found in an index alone: no document is read before it is decided on.

use std::collections::{HashMap, HashSet};

use bson::{DateTime as Instant, Document, RawDocument, RawDocumentBuf, doc};
use chrono::{DateTime, TimeDelta, Utc};
use chrono_tz::Tz;
use futures_util::TryStreamExt;
use mongodb::Cursor;
use mongodb::options::Hint;

use offramp_domain::billing::BillingDay;
use offramp_domain::calendar::parse_date;

use super::window::{DueWindow, TriedSubscriptions, WINDOW_MAX};
use crate::store::bson::whole_number;
use crate::store::client::{Store, within_deadline};
use crate::store::collection::Collection;
use crate::store::error::{COMMAND_TIME_MAX, StoreError};
use crate::store::indexes::{NATURAL_ENDS, SCHEDULED_ENDS};

/// The largest UTC offset of a time zone, in hours: a day begins there first.
const UTC_OFFSET_HOURS_MAX: i64 = 14;

/// The number of organizations whose time zone is cached during a sweep.
const ZONES_MAX: usize = 100_000;

/// The statuses without a natural end. A missing status is `active`.
pub(super) const WITHOUT_NATURAL_END: [&str; 4] = ["cancellation_scheduled", "cancelled", "expired", "removed"];

impl Store {
    /// Scheduled subscriptions whose last day is over at `now`, without those that this sweep has tried.
    ///
    /// # Errors
    /// When the server does not answer.
    pub async fn scheduled_ends(
        &self,
        now: DateTime<Utc>,
        passed: &mut TriedSubscriptions,
    ) -> Result<DueWindow, StoreError> {
        let filter = doc! { "status": "cancellation_scheduled", "ends_at": { "$lte": Instant::from(now) } };
        let mut cursor = self.ends(SCHEDULED_ENDS, filter, doc! { "_id": 1 }, passed).await?;
        let mut window = DueWindow::default();
        while window.due.len() < WINDOW_MAX && cursor.is_some() {
            for raw in page(&mut cursor, WINDOW_MAX).await? {
                window.add(&raw, true, passed);
            }
        }
        Ok(window)
    }

    /// Active and requested subscriptions whose natural end is over at `now`, without those that this sweep has tried.
    ///
    /// A natural end is over on a day when `expires_on` is before the newest billing date by then. So there is a range for
    /// each billing day. The range uses the latest date on earth; the organization's time zone then shows whether its
    /// date has come.
    ///
    /// # Errors
    /// When the server does not answer.
    pub async fn natural_ends(
        &self,
        now: DateTime<Utc>,
        passed: &mut TriedSubscriptions,
        zones: &mut TimeZones,
    ) -> Result<DueWindow, StoreError> {
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
        let mut window = DueWindow::default();
        while window.due.len() < WINDOW_MAX && cursor.is_some() {
            let page = page(&mut cursor, WINDOW_MAX).await?;
            zones.learn(self, &page).await?;
            for raw in &page {
                window.add(raw, zones.is_over(raw, now), passed);
            }
        }
        Ok(window)
    }

    /// Entries of an index of ends, in its order, after those skipped by number.
    async fn ends(
        &self,
        index: &'static str,
        filter: Document,
        fields: Document,
        passed: &TriedSubscriptions,
    ) -> Result<Option<Cursor<RawDocumentBuf>>, StoreError> {
        let collection = self.database.collection::<RawDocumentBuf>(Collection::Subscriptions.as_str());
        let batch_size = u32::try_from(WINDOW_MAX).unwrap_or(u32::MAX);
        let skip = passed.first;
        self.measured(async move {
            let find = collection.find(filter).projection(fields).skip(skip).hint(Hint::Name(index.to_owned()));
            find.batch_size(batch_size).max_time(COMMAND_TIME_MAX).await.map(Some)
        })
        .await
    }
}

/// The next documents of a cursor, at most `documents_max`; empty at the end.
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

/// A cache of the time zones of organizations, for one sweep.
#[derive(Debug, Default)]
pub struct TimeZones(HashMap<String, Option<Tz>>);

impl TimeZones {
    /// Loads the time zones of the organizations of these subscriptions.
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

    /// Whether the natural end of a subscription is over where its organization is. If a value is invalid, the rules decide,
    /// and report it.
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
