//! Extending a lease, and releasing entries before it expires.

use bson::{DateTime as Instant, doc};
use chrono::{DateTime, Utc};

use super::delivery::Mark;
use super::entry::LeasedEntry;
use crate::store::bson::to_raw;
use crate::store::client::Store;
use crate::store::error::StoreError;

impl Store {
    /// Extends the lease of one entry, which takes long to send. Returns whether this process still holds it.
    ///
    /// # Errors
    /// When the server does not answer: the same again is then safe.
    pub async fn extend(&self, leased: &LeasedEntry, until: DateTime<Utc>) -> Result<bool, StoreError> {
        let (id, holder) = (&leased.entry.id, &leased.entry.holder);
        // An entry that failed or was retried by an operator has no holder of ours, or no `due`.
        let ours = doc! { "id": id, "holder": holder, "due": { "$exists": true } };
        let statement = doc! {
            "q": { "_id": leased.document.as_str(), "outbox": { "$elemMatch": ours } },
            "u": { "$set": { "outbox.$[entry].due": Instant::from(until) }, "$inc": { "version": 1_i64 } },
            "arrayFilters": [{ "entry.id": id, "entry.holder": holder }],
        };
        let updated = self.update_each(leased.document.collection(), vec![to_raw(&statement)?]).await?;
        if !updated.transient.is_empty() {
            return Err(StoreError::TimedOut);
        }
        Ok(updated.matched > 0)
    }

    /// Releases entries before their lease expires. If that fails, they are claimed after it has expired.
    pub async fn release(&self, entries: &[Mark]) {
        if let Err(error) = self.mark(entries).await {
            tracing::warn!(%error, entries = entries.len(), "cannot release outbox entries; they wait until their lease expires");
        }
    }
}
