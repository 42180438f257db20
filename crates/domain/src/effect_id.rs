//! Deterministic ids of emails, events and conversations, so that a repeat is recognised.
//!
//! These ids are in documents and in the records of other systems. How they are made must never change.

use uuid::Uuid;

use crate::command_ref::CommandRef;
use crate::event::Event;
use crate::ids::Target;
use crate::notification::Notification;

/// The ids of everything that one task causes. The same command on the same document gives the same ids.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EffectIds(Uuid);

impl EffectIds {
    const NAMESPACE: Uuid = Uuid::from_u128(0x6f66_6672_616d_7000_8000_0000_0000_0001);

    /// The ids of what a command causes on its document.
    #[must_use]
    pub fn of_command(command: &CommandRef, document: Target<'_>) -> Self {
        Self::of(&["command", command.key.source.as_str(), command.key.id.as_str(), document.as_str()])
    }

    /// The ids of a cause that `parts` identify: what happens, to which document, and on which occasion.
    #[must_use]
    pub fn of(parts: &[&str]) -> Self {
        let mut name = Vec::new();
        for part in parts {
            // The length first: ("ab", "c") and ("a", "bc") are different causes.
            name.extend_from_slice(&part.len().to_be_bytes());
            name.extend_from_slice(part.as_bytes());
        }
        Self(Uuid::new_v5(&Self::NAMESPACE, &name))
    }

    /// The id of one effect, by its name.
    #[must_use]
    pub fn id(&self, effect: &str) -> Uuid {
        Uuid::new_v5(&self.0, effect.as_bytes())
    }

    /// The id of an email. A task causes at most one per template and recipient.
    #[must_use]
    pub fn of_email(&self, email: &Notification) -> Uuid {
        self.id(&format!("{}/{}", email.template, email.recipient.as_str()))
    }

    /// The id of an event. A task causes at most one per type.
    #[must_use]
    pub fn of_event(&self, event: &Event) -> Uuid {
        self.id(event.kind())
    }
}

/// The conversation of all emails about one document. `collection` is its collection, `document` its `_id`.
#[must_use]
pub fn conversation_id(collection: &str, document: &str) -> Uuid {
    EffectIds::of(&[collection, document]).id("conversation")
}
