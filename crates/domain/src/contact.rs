//! How an organization and a client are addressed in emails: mailbox, brand, language.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// An address with the name of its owner. Not yet checked: whether it can be written to is decided when an email is composed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Mailbox {
    /// The name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The address.
    pub email: String,
}

/// How an organization's emails look.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Brand {
    /// A CSS colour, such as `"#0a7d4f"`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub color: Option<String>,
    /// The URL of an image.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub logo_url: Option<String>,
}

/// Whether a text names a language: a BCP 47 tag such as `fr` or `fr-CA`, or an operating system's name such as `fr_CA.UTF-8`. Many
/// systems write something else (an empty text, `C`, `und`, `français`) where nobody has chosen a language.
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
    fn language_tags_are_recognised() {
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
