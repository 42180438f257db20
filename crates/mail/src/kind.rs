//! The kinds of email: each template for each of its recipients.

use std::fmt;

use offramp_domain::notification::{Notification, Recipient, Template};

/// A template for one of its recipients.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct EmailKind {
    /// What the email is about.
    pub template: Template,
    /// Who reads it.
    pub recipient: Recipient,
}

impl EmailKind {
    /// Every kind of email.
    pub fn all() -> impl Iterator<Item = Self> {
        Template::ALL
            .into_iter()
            .flat_map(|template| template.recipients().iter().map(move |&recipient| Self { template, recipient }))
    }

    /// The kind of a notification's email.
    #[must_use]
    pub fn of(notification: &Notification) -> Self {
        Self { template: notification.template, recipient: notification.recipient }
    }
}

/// As in the names of template files: `payment-failed.account_manager`.
impl fmt::Display for EmailKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.template, self.recipient.as_str())
    }
}
