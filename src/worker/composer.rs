//! The composer: turns the notification of an outbox entry into a finished email.
//!
//! What an email says was fixed when its command was decided. Nothing here reads a document or talks to a server.

use std::sync::Arc;

use chrono::{DateTime, Utc};
use uuid::Uuid;

use crate::store::Collection;
use crate::store::outbox::{entry::LeasedEntry, record::EmailIdentity};
use offramp_domain::notification::Notification;
use offramp_mail::message::{About, AboutDocument};
use offramp_mail::{ComposedEmail, DkimSigner, Origin, Sender, Templates, compose};

/// Templates, sender and signature: everything an email needs besides its notification.
#[derive(Debug)]
pub struct Composer {
    pub templates: Templates,
    /// The address in `From`.
    pub sender: Sender,
    /// Absent: emails are not signed.
    pub signer: Option<Arc<DkimSigner>>,
}

impl Composer {
    /// What `notifications` records about an email before it is composed.
    #[must_use]
    pub fn identify(&self, entry_id: Uuid, email: &Notification) -> EmailIdentity {
        EmailIdentity { message_id: self.sender.message_id(entry_id), locale: self.templates.language(email) }
    }

    /// The email of an outbox entry, in the recipient's language.
    ///
    /// # Errors
    /// A sentence, when retrying cannot help: an invalid address, or a template that does not fit the facts.
    pub fn compose(&self, origin: Origin, email: &Notification, at: DateTime<Utc>) -> Result<ComposedEmail, String> {
        let rendered = self.templates.render(email).map_err(|error| error.to_string())?;
        let composed = compose(&self.sender, origin, email, rendered, at).map_err(|error| error.to_string())?;
        Ok(composed.signed_by(self.signer.clone()))
    }
}

/// What an entry's email is about.
#[must_use]
pub fn about(leased: &LeasedEntry) -> About<'_> {
    let id = leased.document.as_str();
    let document = match leased.document.collection() {
        Collection::Subscriptions => AboutDocument::Subscription(id),
        Collection::Accounts => AboutDocument::Account(id),
        Collection::Organizations => AboutDocument::Organization(id),
    };
    About { document, command: leased.entry.command.as_ref() }
}

/// The ids from which the `Message-ID` and the thread of an entry's email are derived.
///
/// # Errors
/// A sentence, when the entry's id is not a UUID: this program did not write it.
pub fn origin(leased: &LeasedEntry) -> Result<Origin, String> {
    let entry_id =
        Uuid::parse_str(&leased.entry.id).map_err(|error| format!("the entry's id is not a UUID: {error}"))?;
    Ok(Origin { entry_id, conversation_id: leased.conversation_id() })
}
