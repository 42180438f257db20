//! What is marked of an entry: the result of trying to send it.

use chrono::{DateTime, Utc};

use super::entry::{Kind, LeasedEntry};
use crate::store::collection::DocumentId;
use crate::store::error::StoreError;
use crate::store::guarded_update::GuardedUpdate;
use offramp_domain::cloud_event::CloudEvent;

/// What is to be marked of an entry.
#[derive(Clone, Debug)]
pub struct Mark {
    /// The document that holds it.
    pub document: DocumentId,
    /// Its id.
    pub entry_id: String,
    /// What it is.
    pub kind: Kind,
    /// The lease under which it was tried.
    pub holder: String,
    /// How often it was tried in vain before.
    pub attempts: i32,
    /// How it went.
    pub result: DeliveryResult,
    /// What other systems are told, where an email has failed. What owns the email is added in the database.
    pub announcement: Option<CloudEvent>,
}

impl Mark {
    /// The mark of a leased entry.
    #[must_use]
    pub fn new(leased: &LeasedEntry, result: DeliveryResult) -> Self {
        Self {
            document: leased.document.clone(),
            kind: leased.entry.kind(),
            entry_id: leased.entry.id.clone(),
            holder: leased.entry.holder.clone(),
            attempts: leased.entry.attempts,
            result,
            announcement: None,
        }
    }

    /// Marks that release the entries of updates that failed, unless MongoDB refused them: it is unknown whether they were written.
    pub(crate) fn stranded(updates: Vec<GuardedUpdate>, error: &StoreError, at: DateTime<Utc>) -> Vec<Self> {
        if matches!(error, StoreError::Denied(_) | StoreError::Permanent(_)) {
            return Vec::new();
        }
        let entries = updates.into_iter().flat_map(GuardedUpdate::into_leased);
        entries.map(|leased| Self::new(&leased, DeliveryResult::Released { at })).collect()
    }

    pub(super) fn is_in_doubt(&self) -> bool {
        matches!(self.result, DeliveryResult::Deferred { cause: DeferralCause::InDoubt { .. }, .. })
    }

    pub(super) fn is_sent(&self) -> bool {
        matches!(self.result, DeliveryResult::Sent { .. })
    }
}

/// The result of trying to send an entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DeliveryResult {
    /// The mail server has accepted the email, or the broker has confirmed the event.
    Sent {
        /// When.
        at: DateTime<Utc>,
    },
    /// Not sent: any worker may claim it at once.
    Released {
        /// When.
        at: DateTime<Utc>,
    },
    /// To be retried later.
    Deferred {
        /// When it may be tried again.
        until: DateTime<Utc>,
        /// Why.
        error: String,
        /// What is counted besides `attempts`.
        cause: DeferralCause,
    },
    /// Never.
    Failed {
        /// When that was found out.
        at: DateTime<Utc>,
        /// Why.
        error: String,
    },
}

/// Why an entry was deferred, where more than `attempts` is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeferralCause {
    /// None of those below: it is retried without limit.
    Ordinary,
    /// It may have been delivered.
    InDoubt {
        /// When that was found out.
        at: DateTime<Utc>,
    },
    /// The mail server rejected it because of the sender.
    SenderRejected {
        /// When.
        at: DateTime<Utc>,
    },
}
