//! Why an automatic payment failed, as far as emails explain it.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Why an automatic payment failed. Without a code it was declined, and no more is known.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema, strum::IntoStaticStr, strum::EnumString,
)]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
#[schemars(inline)]
pub enum FailureCode {
    /// The account behind the card has too little money.
    InsufficientFunds,
    /// The card has expired.
    ExpiredCard,
    /// The card's number, date or security code is wrong.
    IncorrectDetails,
    /// The card has reached its limit.
    LimitExceeded,
    /// The bank wants its customer to confirm the payment.
    AuthenticationRequired,
    /// The card was reported lost or stolen.
    LostOrStolen,
}

impl FailureCode {
    pub const ALL: [Self; 6] = [
        Self::InsufficientFunds,
        Self::ExpiredCard,
        Self::IncorrectDetails,
        Self::LimitExceeded,
        Self::AuthenticationRequired,
        Self::LostOrStolen,
    ];

    /// The name in commands and in templates.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        self.into()
    }
}
