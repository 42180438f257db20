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

/// The language of a client of an organization, with the organization's region if the client's has none: dates and money are written as
/// they are where the organization is. `fr` in the region of `fr-CA` is `fr-CA`.
#[must_use]
pub fn in_region_of(locale: &str, organization: &str) -> String {
    match (subtags(locale), subtags(organization)) {
        (Some(Subtags { language, script, region: None }), Some(Subtags { region: Some(region), .. })) => {
            let script = script.map(|script| format!("-{script}")).unwrap_or_default();
            format!("{language}{script}-{}", region.to_ascii_uppercase())
        }
        _ => locale.to_owned(),
    }
}

/// The parts of a language tag that decide how an email is written.
struct Subtags<'a> {
    language: &'a str,
    /// `Hant`
    script: Option<&'a str>,
    /// `CA`, `419`
    region: Option<&'a str>,
}

fn subtags(text: &str) -> Option<Subtags<'_>> {
    if !names_language(text) {
        return None;
    }
    let is_alphabetic = |subtag: &str| subtag.bytes().all(|byte| byte.is_ascii_alphabetic());
    let mut subtags = text.trim().split(['.', '@']).next()?.split(['-', '_']).peekable();
    let language = subtags.next()?;
    let script = subtags.next_if(|subtag| subtag.len() == 4 && is_alphabetic(subtag));
    let region = subtags.next_if(|subtag| match subtag.len() {
        2 => is_alphabetic(subtag),
        3 => subtag.bytes().all(|byte| byte.is_ascii_digit()),
        _ => false,
    });
    Some(Subtags { language, script, region })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_language_without_a_region_takes_the_organizations() {
        #[track_caller]
        fn check(locale: &str, organization: &str, expected: &str) {
            assert_eq!(in_region_of(locale, organization), expected);
        }
        check("fr", "fr-CA", "fr-CA");
        check("en", "fr-CA", "en-CA");
        check("en", "fr_ca.UTF-8", "en-CA");
        check(" en ", "es-419", "en-419");
        check("zh-Hant", "en-TW", "zh-Hant-TW");
        check("fr", "zh-Hant-TW", "fr-TW");
        check("ca@valencia", "es-ES", "ca-ES");
        check("fr-1", "fr-CA", "fr-CA");
        // It has a region of its own.
        check("fr-FR", "fr-CA", "fr-FR");
        check("fr_BE.UTF-8", "fr-CA", "fr_BE.UTF-8");
        check("es-419", "es-MX", "es-419");
        check("zh-Hant-HK", "zh-TW", "zh-Hant-HK");
        // The organization has none, or nobody can tell.
        check("fr", "en", "fr");
        check("fr", "", "fr");
        check("fr", "Canada", "fr");
    }

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
