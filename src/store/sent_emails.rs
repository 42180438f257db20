//! Sent emails, kept for some days where the operator wants that, so that support staff can see what a client has read.

use std::collections::HashSet;
use std::time::Duration;

use bson::{DateTime as Instant, RawDocumentBuf, doc};
use chrono::{DateTime, TimeDelta, Utc};
use futures_util::TryStreamExt;
use serde::{Deserialize, Serialize};

use offramp_domain::notification::Notification;

use super::client::{Store, within_deadline};
use super::collection::SENT_EMAILS;
use super::error::{COMMAND_TIME_MAX, StoreError};
use super::indexes::EXPIRY;
use super::outbox::entry::{Content, LeasedEntry};
use super::support_records::SupportRecord;

/// A document of `sent_emails`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SentEmailDocument {
    /// The id of the outbox entry, and of the record in `notifications`.
    #[serde(rename = "_id")]
    pub id: String,
    /// The collection of the document that it is about.
    pub collection: String,
    /// The id of that document.
    pub document_id: String,
    /// What it says, and to whom.
    pub email: Notification,
    /// When the mail server accepted it.
    pub sent_at: Instant,
    /// When it is deleted.
    pub expires_at: Instant,
}

impl SupportRecord for SentEmailDocument {
    const COLLECTION: &'static str = SENT_EMAILS;
    const EXPIRY: &'static str = EXPIRY;
    const PLURAL: &'static str = "sent emails";
}

impl SentEmailDocument {
    /// An email that was sent at `sent_at`, to be kept for `kept`. `None` for an event.
    #[must_use]
    pub fn new(leased: &LeasedEntry, sent_at: DateTime<Utc>, kept: Duration) -> Option<Self> {
        let Content::Mail(email) = &leased.entry.content else { return None };
        let kept = TimeDelta::from_std(kept).ok()?;
        Some(Self {
            id: leased.entry.id.clone(),
            collection: leased.document.collection().as_str().to_owned(),
            document_id: leased.document.as_str().to_owned(),
            email: email.clone(),
            sent_at: sent_at.into(),
            expires_at: (sent_at + kept).into(),
        })
    }
}

impl Store {
    /// The sent email with this id, if it is kept and this version can read it.
    ///
    /// # Errors
    /// When the server does not answer, or a right is missing.
    pub async fn sent_email(&self, id: &str) -> Result<Option<SentEmailDocument>, StoreError> {
        let emails = self.database().collection::<RawDocumentBuf>(SENT_EMAILS);
        let filter = doc! { "_id": id };
        let found = within_deadline(async move { emails.find_one(filter).max_time(COMMAND_TIME_MAX).await }).await?;
        Ok(found.and_then(|raw| bson::deserialize_from_slice(raw.as_bytes()).ok()))
    }

    /// Which of these emails are kept.
    ///
    /// # Errors
    /// When the server does not answer, or a right is missing.
    pub async fn kept_emails(&self, ids: &[&str]) -> Result<HashSet<String>, StoreError> {
        let emails = self.database().collection::<RawDocumentBuf>(SENT_EMAILS);
        let filter = doc! { "_id": { "$in": ids } };
        let finding = async move {
            let found = emails.find(filter).projection(doc! { "_id": 1 }).max_time(COMMAND_TIME_MAX).await?;
            found.try_collect::<Vec<RawDocumentBuf>>().await
        };
        let found = within_deadline(finding).await?;
        Ok(found.iter().filter_map(|raw| raw.get_str("_id").ok().map(str::to_owned)).collect())
    }
}
