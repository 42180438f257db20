//! The record of each email, in `notifications` of the document that it is about.

use chrono::{DateTime, Utc};
use uuid::Uuid;

use offramp_domain::notification::Notification;
use offramp_domain::unit_of_work::Effects;

use crate::store::documents::NotificationDocument;

/// The part of an email's record that only its composer knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EmailIdentity {
    /// Its `Message-ID`.
    pub message_id: String,
    /// The language that it will be written in.
    pub locale: String,
}

/// Provides the identity of the email of an outbox entry.
pub type Identify<'a> = &'a (dyn Fn(Uuid, &Notification) -> EmailIdentity + Sync);

/// The records of the emails of one change: one for each entry that `entries` makes of them.
pub fn records(effects: &Effects, identify: Identify<'_>, at: DateTime<Utc>) -> Vec<NotificationDocument> {
    effects.notifications.iter().map(|email| record(effects.ids.of_email(email), email, identify, at)).collect()
}

/// The record of an email, which is the content of the entry `id`.
pub fn record(id: Uuid, email: &Notification, identify: Identify<'_>, at: DateTime<Utc>) -> NotificationDocument {
    let EmailIdentity { message_id, locale } = identify(id, email);
    NotificationDocument {
        id: id.to_string(),
        template: email.template.to_string(),
        to: Some(email.to.email.clone()),
        role: email.recipient.as_str().to_owned(),
        locale,
        message_id,
        at: Some(at.into()),
        sent_at: None,
        failed_at: None,
        error: None,
    }
}
