//! Tombstones: when they are deleted.

use bson::{DateTime as Instant, doc};
use chrono::{DateTime, Days, NaiveDate, TimeDelta, Utc};

use crate::store::client::Store;
use crate::store::collection::Collection;
use crate::store::error::{StoreError, TIME_EXCEEDED};
use crate::store::indexes::REMOVED;

/// How long a tombstone stays after its last email and event were sent or failed permanently, in days.
const TOMBSTONE_DAYS: i64 = 30;

impl Store {
    /// Deletes the tombstones whose last email and event were sent, or failed permanently, 30 days ago.
    ///
    /// # Errors
    /// When the server does not answer.
    pub async fn delete_tombstones(&self, now: DateTime<Utc>) -> Result<u64, StoreError> {
        let completed_by = now - TimeDelta::days(TOMBSTONE_DAYS);
        // The day of removal is in the organization's calendar: one day of grace covers every time zone.
        let removed_by: NaiveDate = completed_by.date_naive() + Days::new(1);
        let mut filter = doc! {
            "status": "removed",
            "ended_on": { "$lte": removed_by.to_string() },
            // Still to be sent.
            "outbox.due": { "$not": { "$type": "date" } },
        };
        for instant in
            ["applied.at", "applied.settled_at", "notifications.sent_at", "notifications.failed_at", "outbox.failed_at"]
        {
            filter.insert(instant, doc! { "$not": { "$gt": Instant::from(completed_by) } });
        }
        let reply = self
            .command(doc! {
                "delete": Collection::Subscriptions.as_str(),
                "deletes": [{ "q": filter, "limit": 0, "hint": REMOVED }],
            })
            .await?;
        // The command succeeds even if its statement fails.
        if let Some(error) = reply.get_array("writeErrors").ok().and_then(|errors| errors.first()?.as_document()) {
            let code = error.get_i32("code").unwrap_or(0);
            return Err(if code == TIME_EXCEEDED {
                StoreError::TimedOut
            } else {
                StoreError::Permanent(format!("cannot delete tombstones, code {code}"))
            });
        }
        Ok(reply.get("n").and_then(|count| u64::try_from(count.as_i32()?).ok()).unwrap_or(0))
    }
}
