//! Typed ids and bounded text. Lengths are checked once, when the text is parsed.

use std::borrow::Cow;
use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, de};

/// Text of `MIN` to `MAX` characters (Unicode scalar values), both included.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct Text<const MIN: usize, const MAX: usize>(String);

impl<const MIN: usize, const MAX: usize> Text<MIN, MAX> {
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl<const MAX: usize> Text<0, MAX> {
    /// The first `MAX` characters of the text.
    #[must_use]
    pub fn cut(text: String) -> Self {
        Self(cut(text, MAX))
    }
}

/// The first `chars_max` characters of the text.
#[must_use]
pub fn cut(mut text: String, chars_max: usize) -> String {
    if let Some((end, _)) = text.char_indices().nth(chars_max) {
        text.truncate(end);
    }
    text
}

impl<const MIN: usize, const MAX: usize> TryFrom<String> for Text<MIN, MAX> {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        // ASCII has one byte per character, so most texts need no counting.
        let length = if text.len() <= MAX && text.is_ascii() { text.len() } else { text.chars().count() };
        if (MIN..=MAX).contains(&length) {
            Ok(Self(text))
        } else {
            Err(format!("must be {MIN} to {MAX} characters long, is {length}"))
        }
    }
}

impl<const MIN: usize, const MAX: usize> TryFrom<&str> for Text<MIN, MAX> {
    type Error = String;

    fn try_from(text: &str) -> Result<Self, String> {
        Self::try_from(text.to_owned())
    }
}

impl<'de, const MIN: usize, const MAX: usize> Deserialize<'de> for Text<MIN, MAX> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::try_from(String::deserialize(deserializer)?).map_err(de::Error::custom)
    }
}

impl<const MIN: usize, const MAX: usize> fmt::Display for Text<MIN, MAX> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl<const MIN: usize, const MAX: usize> fmt::Debug for Text<MIN, MAX> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl<const MIN: usize, const MAX: usize> JsonSchema for Text<MIN, MAX> {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        format!("Text_{MIN}_{MAX}").into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "minLength": MIN, "maxLength": MAX })
    }
}

/// Declares ids: texts of 1 to 128 characters, each with a type of its own, so that the compiler tells them apart.
macro_rules! ids {
    ($($(#[$meta:meta])* $name:ident)*) => {$(
        $(#[$meta])*
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
        #[serde(transparent)]
        #[schemars(inline)]
        pub struct $name(Text<1, 128>);

        impl $name {
            #[must_use]
            pub fn as_str(&self) -> &str {
                self.0.as_str()
            }
        }

        impl TryFrom<&str> for $name {
            type Error = String;

            fn try_from(text: &str) -> Result<Self, String> {
                Text::try_from(text).map(Self)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&self.0, f)
            }
        }
    )*};
}

ids! {
    /// `organizations._id`
    OrganizationId
    /// `accounts._id`
    AccountId
    /// `subscriptions._id`
    SubscriptionId
    /// An invoice, in the billing system.
    InvoiceId
    /// A saved card, in the payment system.
    CardId
    /// An administrator, in the upstream system.
    AdminId
}

/// The document that a command or another task is about. It is the only document that the task may change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Target<'a> {
    Subscription(&'a SubscriptionId),
    Account(&'a AccountId),
    Organization(&'a OrganizationId),
}

impl<'a> Target<'a> {
    /// The document's `_id`.
    #[must_use]
    pub fn as_str(self) -> &'a str {
        match self {
            Self::Subscription(id) => id.as_str(),
            Self::Account(id) => id.as_str(),
            Self::Organization(id) => id.as_str(),
        }
    }

    /// The name of the document's collection.
    #[must_use]
    pub fn collection(self) -> &'static str {
        match self {
            Self::Subscription(_) => "subscriptions",
            Self::Account(_) => "accounts",
            Self::Organization(_) => "organizations",
        }
    }
}

/// A reason or a note written by a person, up to 2,000 characters.
pub type FreeText = Text<0, 2000>;
/// A person's name, up to 1,000 characters.
pub type PersonName = Text<0, 1000>;
/// The brand of a card, 1 to 256 characters.
pub type CardBrand = Text<1, 256>;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Text is measured by what it is made of, whatever that is.
        #[test]
        fn lengths_are_counted_in_characters(text in "\\PC{0,12}") {
            let is_short_enough = (2..=8).contains(&text.chars().count());
            prop_assert_eq!(Text::<2, 8>::try_from(text.as_str()).is_ok(), is_short_enough);
        }
    }
}
