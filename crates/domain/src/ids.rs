//! Bounded text: ids and free text that were measured when they were parsed, and so need no check afterwards.

use std::borrow::Cow;
use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, de};

/// Text of `MIN` to `MAX` characters (Unicode scalar values), both included.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct Text<const MIN: usize, const MAX: usize>(String);

impl<const MIN: usize, const MAX: usize> Text<MIN, MAX> {
    /// The text.
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
        // A text of n characters has n to 4n bytes, so most texts need no counting.
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

/// Declares an id: a [`Text`] of 1 to 128 characters with a name of its own, so that ids of different things cannot be
/// mistaken for one another.
macro_rules! ids {
    ($($(#[$meta:meta])* $name:ident)*) => {$(
        $(#[$meta])*
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
        #[serde(transparent)]
        #[schemars(inline)]
        pub struct $name(Text<1, 128>);

        impl $name {
            /// The id as text.
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

/// The document that a command is about: the one that it may change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Target<'a> {
    Subscription(&'a SubscriptionId),
    Account(&'a AccountId),
}

impl<'a> Target<'a> {
    /// The document's `_id`.
    #[must_use]
    pub fn as_str(self) -> &'a str {
        match self {
            Self::Subscription(id) => id.as_str(),
            Self::Account(id) => id.as_str(),
        }
    }

    /// The name of the document's collection.
    #[must_use]
    pub fn collection(self) -> &'static str {
        match self {
            Self::Subscription(_) => "subscriptions",
            Self::Account(_) => "accounts",
        }
    }
}

/// A reason or a note: what a person wrote, up to 2,000 characters (contract §2).
pub type FreeText = Text<0, 2000>;
/// A person's name, up to 1,000 characters.
pub type PersonName = Text<0, 1000>;
/// A card's brand, 1 to 256 characters.
pub type CardBrand = Text<1, 256>;

/// Whether a text names a language: a BCP 47 tag such as `fr` or `fr-CA`, or as operating systems write it (`fr_CA.UTF-8`). Many
/// systems write something else (an empty text, `C`, `und`, `français`) where nobody has chosen one.
#[must_use]
pub fn names_language(text: &str) -> bool {
    let tag = text.trim().split(['.', '@']).next().unwrap_or_default();
    let mut subtags = tag.split(['-', '_']);
    let language = subtags.next().unwrap_or_default();
    matches!(language.len(), 2 | 3)
        && language.bytes().all(|byte| byte.is_ascii_alphabetic())
        && !language.eq_ignore_ascii_case("und")
        && subtags
            .all(|subtag| (1..=8).contains(&subtag.len()) && subtag.bytes().all(|byte| byte.is_ascii_alphanumeric()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn languages() {
        for text in
            ["fr", "fr-CA", "fr_CA.UTF-8", "FR", "fr-CA-u-nu-arab", "zh-Hant-TW", "fil", " es ", "ca_ES@valencia"]
        {
            assert!(names_language(text), "{text}");
        }
        for text in ["", " ", "C", "und", "null", "français", "english!", "POSIX", "fr CA", "fr-", "-CA", "12"] {
            assert!(!names_language(text), "{text}");
        }
    }
}
