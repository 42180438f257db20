//! Why a rule rejects a command. A rejection is an answer, not a fault: it is published as `command.rejected`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A rejected command: the reason for programs, and a sentence for people.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}: {detail}")]
pub struct Rejection {
    pub reason: RejectionReason,
    /// Names what was asked and what would have been accepted. It says nothing about other organizations' documents.
    pub detail: String,
}

/// Every reason, described in `docs/rules/rejections.md`.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    Hash,
    PartialOrd,
    Ord,
    Serialize,
    Deserialize,
    JsonSchema,
    strum::Display,
    strum::IntoStaticStr,
    strum::VariantArray,
)]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
#[schemars(inline)]
pub enum RejectionReason {
    /// There is no such subscription.
    SubscriptionNotFound,
    /// There is no such account.
    AccountNotFound,
    /// The document belongs to another organization.
    WrongOrganization,
    /// This actor may not do that.
    Forbidden,
    /// This organization requires clients to send a cancellation request.
    RequestRequired,
    /// The subscription has ended.
    AlreadyEnded,
    /// The subscription is already scheduled to end.
    AlreadyScheduled,
    /// There is no open cancellation request.
    NoPendingRequest,
    /// Only the newest invoice can be cancelled.
    NotLastInvoice,
    /// The invoice of the chosen month already exists.
    MonthAlreadyInvoiced,
    /// No invoice can have this date.
    NotABillingDate,
    /// The date is before the billing date that precedes the next invoice.
    FinalBillingDatePassed,
    /// The subscription expires by itself before that.
    ExpiresEarlier,
    /// A scheduled end is never moved later.
    LaterThanScheduled,
}

impl RejectionReason {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        self.into()
    }

    /// Whether a message that is still in flight may change the answer. Such a command waits in the retry queues before the rejection
    /// is final.
    #[must_use]
    pub fn is_transient(self) -> bool {
        matches!(self, Self::SubscriptionNotFound | Self::AccountNotFound | Self::NoPendingRequest)
    }

    /// A rejection for this reason. `detail` is a sentence for people.
    #[must_use]
    pub fn because(self, detail: impl Into<String>) -> Rejection {
        Rejection { reason: self, detail: detail.into() }
    }
}

#[cfg(test)]
mod tests {
    use strum::VariantArray;

    use super::RejectionReason::{self, *};

    #[test]
    fn only_missing_documents_and_requests_are_transient() {
        for reason in RejectionReason::VARIANTS {
            let expected = [SubscriptionNotFound, AccountNotFound, NoPendingRequest].contains(reason);
            assert_eq!(reason.is_transient(), expected, "{reason}");
        }
    }
}
