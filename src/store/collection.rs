//! The collections, and the documents in them that decisions change.

/// The collections of the contract (§3).
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
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Organizations => "organizations",
            Self::Accounts => "accounts",
            Self::Subscriptions => "subscriptions",
        }
    }
}
