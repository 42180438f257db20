//! Amounts of money. They are reported, never computed with, so they stay text.

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize};

use crate::formed_text::{all_digits, formed_text};
use crate::strict_json::object;

/// Money.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Amount {
    /// Decimal, with a point: `"49.99"`.
    pub value: Decimal,
    /// ISO 4217, three capitals: `"CAD"`.
    pub currency: Currency,
}

formed_text! {
    /// An amount, never negative, of at most 12 digits before the point and 4 after it.
    Decimal, "^[0-9]{1,12}([.][0-9]{1,4})?$", "49.99", |text| {
        let (whole, fraction) = text.split_once('.').unwrap_or((text, "0"));
        (1..=12).contains(&whole.len()) && (1..=4).contains(&fraction.len()) && all_digits(whole) && all_digits(fraction)
    }
}

formed_text! {
    /// A currency code of ISO 4217.
    Currency, "^[A-Z]{3}$", "CAD", |text| text.len() == 3 && text.bytes().all(|byte| byte.is_ascii_uppercase())
}

/// `#[serde(deserialize_with = "amount")]`: an [`Amount`] of a command, without unknown fields.
pub(crate) fn amount<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Amount, D::Error> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Fields {
        value: Decimal,
        currency: Currency,
    }
    let Fields { value, currency } = object(deserializer)?;
    Ok(Amount { value, currency })
}
