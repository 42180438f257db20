//! The searches of a sweep: what each looks for, and which indexes it needs.

use crate::store::Collection;
use crate::store::{due::Fault, indexes};

/// What a sweep searches for. Each search fails by itself, and waits for its own indexes only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Search {
    Ends(EndKind),
    Faults(Fault),
    Tombstones,
    Cards,
    PendingRequests,
}

/// Which ends of subscriptions are searched for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum EndKind {
    /// The end of a cancelled subscription.
    Scheduled,
    /// The end of a subscription with an `expires_on`.
    Natural,
}

impl Search {
    /// The searches for dates that have passed, in their order.
    pub(super) const DATES: [Self; 9] = [
        Self::Ends(EndKind::Scheduled),
        Self::Ends(EndKind::Natural),
        Self::Faults(Fault::EndsAt),
        Self::Faults(Fault::ExpiryType),
        Self::Faults(Fault::ExpiryEmpty),
        Self::Faults(Fault::BillingDay),
        Self::Faults(Fault::ExpiryText),
        Self::Faults(Fault::RequestedAt),
        Self::Tombstones,
    ];

    /// The searches for what changes daily, in their order.
    pub(super) const DAILY: [Self; 2] = [Self::PendingRequests, Self::Cards];

    /// Whether it may read much of an index, and is therefore made rarely.
    pub(super) fn is_expensive(self) -> bool {
        matches!(self, Self::Faults(Fault::ExpiryText | Fault::RequestedAt))
    }

    /// The indexes it needs.
    pub(super) fn indexes(self) -> Vec<(Collection, &'static str)> {
        let of_subscriptions = match self {
            Self::Ends(EndKind::Scheduled) => indexes::SCHEDULED_ENDS,
            Self::Ends(EndKind::Natural) => indexes::NATURAL_ENDS,
            Self::Faults(fault) => fault.index(),
            Self::Tombstones => indexes::REMOVED,
            Self::PendingRequests => indexes::PENDING_REQUESTS,
            Self::Cards => {
                return vec![
                    (Collection::Organizations, indexes::CARD_ORGANIZATIONS),
                    (Collection::Accounts, indexes::CARD_EXPIRY),
                    (Collection::Subscriptions, indexes::OF_ACCOUNT),
                ];
            }
        };
        vec![(Collection::Subscriptions, of_subscriptions)]
    }

    /// What it looks for, for the log.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Ends(EndKind::Scheduled) => "scheduled ends",
            Self::Ends(EndKind::Natural) => "natural ends",
            Self::Faults(_) => "documents that can never be due",
            Self::Tombstones => "tombstones to delete",
            Self::Cards => "cards about to expire",
            Self::PendingRequests => "undecided requests",
        }
    }
}
