//! Payment cards: as a payment names them, and as an account saves them. Never a card number.

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize};

use crate::calendar::YearMonth;
use crate::formed_text::{all_digits, formed_text};
use crate::ids::{CardBrand, CardId};
use crate::strict_json::{month, object};

/// A card as a payment shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PaymentCard {
    /// `"Visa"`
    pub brand: CardBrand,
    /// `"4242"`
    pub last4: Last4,
}

/// A saved card.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Card {
    /// Its id in the payment system.
    pub id: CardId,
    /// `"Visa"`
    pub brand: CardBrand,
    /// `"4242"`
    pub last4: Last4,
    /// The last month in which it is valid.
    #[serde(deserialize_with = "month")]
    pub expires: YearMonth,
}

formed_text! {
    /// The last four digits of a card.
    Last4, "^[0-9]{4}$", "4242", |text| text.len() == 4 && all_digits(text)
}

/// `#[serde(deserialize_with = "payment_card")]`: a [`PaymentCard`] of a command, without unknown fields.
pub(crate) fn payment_card<'de, D: Deserializer<'de>>(deserializer: D) -> Result<PaymentCard, D::Error> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Fields {
        brand: CardBrand,
        last4: Last4,
    }
    let Fields { brand, last4 } = object(deserializer)?;
    Ok(PaymentCard { brand, last4 })
}
