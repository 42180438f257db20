//! The collections, and the ids of the documents in them that decisions change.

use offramp_domain::ids::{AccountId, OrganizationId, SubscriptionId, Target};

/// The collections of the database that Offramp reads and writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Collection {
    /// `organizations`
    Organizations,
    /// `accounts`
    Accounts,
    /// `subscriptions`
    Subscriptions,
}

impl Collection {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Organizations, Self::Accounts, Self::Subscriptions];

    /// Its name in the database.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Organizations => "organizations",
            Self::Accounts => "accounts",
            Self::Subscriptions => "subscriptions",
        }
    }

    /// The fields that only Offramp writes, in the order of the alphabet. (Every writer writes `version`. When a subscription ends,
    /// Offramp also writes `activities` and `billing.next_on`.)
    #[must_use]
    pub fn worker_fields(self) -> &'static [&'static str] {
        match self {
            Self::Organizations => &["notifications", "outbox", "reminders"],
            Self::Accounts => &["applied", "card_notices", "notifications", "outbox"],
            Self::Subscriptions => &[
                "applied",
                "cancellation",
                "cancellation_request",
                "ended_on",
                "ends_at",
                "ends_on",
                "final_billing_on",
                "history",
                "notifications",
                "outbox",
                "payment_failures",
                "status",
            ],
        }
    }
}

/// The collection of rejected commands. No decision reads it, so it is no [`Collection`].
pub const REJECTED_COMMANDS: &str = "rejected_commands";

/// The collection of sent emails, where they are kept.
pub const SENT_EMAILS: &str = "sent_emails";

/// The collections that are for support staff alone: no decision needs them, and nobody needs a right to them in order to work.
pub const SUPPORT_COLLECTIONS: [&str; 2] = [REJECTED_COMMANDS, SENT_EMAILS];

/// The id of a document that decisions change.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum DocumentId {
    Subscription(SubscriptionId),
    Account(AccountId),
    Organization(OrganizationId),
}

impl DocumentId {
    /// The id of a document of `collection`; `None` where no such document can have it.
    pub(super) fn parse(collection: Collection, id: &str) -> Option<Self> {
        match collection {
            Collection::Subscriptions => SubscriptionId::try_from(id).ok().map(Self::Subscription),
            Collection::Accounts => AccountId::try_from(id).ok().map(Self::Account),
            Collection::Organizations => OrganizationId::try_from(id).ok().map(Self::Organization),
        }
    }

    /// The same for the domain.
    #[must_use]
    pub fn target(&self) -> Target<'_> {
        match self {
            Self::Subscription(id) => Target::Subscription(id),
            Self::Account(id) => Target::Account(id),
            Self::Organization(id) => Target::Organization(id),
        }
    }

    #[must_use]
    pub fn collection(&self) -> Collection {
        match self {
            Self::Subscription(_) => Collection::Subscriptions,
            Self::Account(_) => Collection::Accounts,
            Self::Organization(_) => Collection::Organizations,
        }
    }

    /// The document's `_id`.
    #[must_use]
    pub fn as_str(&self) -> &str {
        match self {
            Self::Subscription(id) => id.as_str(),
            Self::Account(id) => id.as_str(),
            Self::Organization(id) => id.as_str(),
        }
    }
}

/// `subscriptions sub-1`
impl std::fmt::Display for DocumentId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.collection().as_str(), self.as_str())
    }
}

impl From<Target<'_>> for DocumentId {
    fn from(target: Target<'_>) -> Self {
        match target {
            Target::Subscription(id) => Self::Subscription(id.clone()),
            Target::Account(id) => Self::Account(id.clone()),
            Target::Organization(id) => Self::Organization(id.clone()),
        }
    }
}
