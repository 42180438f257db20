//! Files with one JSON value per line: documents to import or simulate, commands to publish or simulate.

use std::collections::HashSet;
use std::fmt;
use std::io::{self, BufRead};

use bson::{Document, RawDocumentBuf};
use serde::Deserialize;
use serde::de::{DeserializeOwned, Deserializer, Error, MapAccess, SeqAccess, Visitor};

use crate::store::Collection;
use crate::store::documents::{self, AccountDocument, OrganizationDocument, SubscriptionDocument};
use offramp_domain::account::Account;
use offramp_domain::field::Malformed;
use offramp_domain::organization::Organization;
use offramp_domain::subscription::Subscription;
use offramp_domain::unit_of_work::{LoadedDocument, UnitOfWork};

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// From 1.
    pub number: usize,
    /// The content without the line break.
    pub bytes: Vec<u8>,
}

/// A line that is invalid.
#[derive(Debug, thiserror::Error)]
#[error("line {number}: {reason}")]
pub struct BadLine {
    /// From 1.
    pub number: usize,
    pub reason: String,
}

const BYTE_ORDER_MARK: &[u8] = b"\xEF\xBB\xBF";

/// The lines of `input` that are not blank. A byte order mark, which some editors add, is removed.
pub fn lines(input: impl BufRead) -> impl Iterator<Item = io::Result<Line>> {
    input
        .split(b'\n')
        .enumerate()
        .map(|(index, line)| {
            let mut bytes = line?;
            if bytes.ends_with(b"\r") {
                bytes.pop();
            }
            if index == 0 && bytes.starts_with(BYTE_ORDER_MARK) {
                bytes.drain(..BYTE_ORDER_MARK.len());
            }
            Ok(Line { number: index + 1, bytes })
        })
        .filter(|line| !line.as_ref().is_ok_and(|line| line.bytes.trim_ascii().is_empty()))
}

/// Parses a file with one document, with types that JSON lacks in extended JSON. A byte order mark is removed.
///
/// # Errors
/// When it is not one JSON object, or has a duplicate key.
pub fn parse_document(file: &[u8]) -> Result<Document, String> {
    let bytes = file.strip_prefix(BYTE_ORDER_MARK).unwrap_or(file);
    let document = read(bytes)?;
    let _: UniqueKeys = read(bytes)?;
    Ok(document)
}

fn read<T: DeserializeOwned>(json: &[u8]) -> Result<T, String> {
    let mut json = serde_json::Deserializer::from_slice(json);
    let parsed = serde_path_to_error::deserialize(&mut json).map_err(|error| {
        let reason = error.inner();
        match error.path().to_string().as_str() {
            "." => reason.to_string(),
            path => format!("{path}: {reason}"),
        }
    })?;
    json.end().map_err(|error| error.to_string())?;
    Ok(parsed)
}

impl Line {
    fn bad(&self, reason: String) -> BadLine {
        BadLine { number: self.number, reason }
    }

    fn read<T: DeserializeOwned>(&self) -> Result<T, BadLine> {
        read(&self.bytes).map_err(|reason| self.bad(reason))
    }
}

/// A JSON value without duplicate keys. BSON would accept a duplicate key silently, and keep the last value.
struct UniqueKeys;

impl<'de> Deserialize<'de> for UniqueKeys {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any;

        impl<'de> Visitor<'de> for Any {
            type Value = UniqueKeys;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON value")
            }

            fn visit_unit<E>(self) -> Result<UniqueKeys, E> {
                Ok(UniqueKeys)
            }

            fn visit_bool<E>(self, _: bool) -> Result<UniqueKeys, E> {
                Ok(UniqueKeys)
            }

            fn visit_i64<E>(self, _: i64) -> Result<UniqueKeys, E> {
                Ok(UniqueKeys)
            }

            fn visit_u64<E>(self, _: u64) -> Result<UniqueKeys, E> {
                Ok(UniqueKeys)
            }

            fn visit_f64<E>(self, _: f64) -> Result<UniqueKeys, E> {
                Ok(UniqueKeys)
            }

            fn visit_str<E>(self, _: &str) -> Result<UniqueKeys, E> {
                Ok(UniqueKeys)
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut values: A) -> Result<UniqueKeys, A::Error> {
                while values.next_element::<UniqueKeys>()?.is_some() {}
                Ok(UniqueKeys)
            }

            fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<UniqueKeys, A::Error> {
                let mut keys = HashSet::new();
                while let Some(key) = entries.next_key::<String>()? {
                    if keys.contains(&key) {
                        return Err(A::Error::custom(format!("the key `{key}` is given twice")));
                    }
                    keys.insert(key);
                    entries.next_value::<UniqueKeys>()?;
                }
                Ok(UniqueKeys)
            }
        }

        deserializer.deserialize_any(Any)
    }
}

/// A line of an import file: `{"collection": "subscriptions", "document": {…}}`, with types that JSON lacks in
/// extended JSON (`{"$date": "2026-06-15T04:00:00Z"}`).
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImportLine {
    #[serde(deserialize_with = "collection")]
    pub collection: Collection,
    pub document: Document,
}

fn collection<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Collection, D::Error> {
    let name = String::deserialize(deserializer)?;
    Collection::ALL.into_iter().find(|collection| collection.as_str() == name).ok_or_else(|| {
        let names = Collection::ALL.map(Collection::as_str).join(", ");
        D::Error::custom(format!("\"{name}\" is not one of the collections {names}"))
    })
}

/// A document as the worker would read it.
#[derive(Clone, Debug)]
#[allow(clippy::large_enum_variant, reason = "short-lived")]
pub enum ParsedDocument {
    Organization(LoadedDocument<Organization>),
    Account(LoadedDocument<Account>),
    Subscription(LoadedDocument<Subscription>),
}

impl ImportLine {
    /// Parses a line.
    ///
    /// # Errors
    /// When it is not JSON, has another form or a duplicate key, or its `_id` is not a string of 1 to 128 characters.
    pub fn parse(line: &Line) -> Result<Self, BadLine> {
        let parsed: Self = line.read()?;
        let _: UniqueKeys = line.read()?;
        match parsed.document.get_str("_id").map(|id| id.chars().count()) {
            Ok(1..=128) => Ok(parsed),
            _ => Err(line.bad("document._id: must be a text of 1 to 128 characters".to_owned())),
        }
    }

    #[must_use]
    pub fn id(&self) -> &str {
        self.document.get_str("_id").unwrap_or_default()
    }

    /// The document as the worker would read it.
    #[must_use]
    pub fn parsed(&self) -> ParsedDocument {
        let name = self.collection.as_str();
        let raw = match RawDocumentBuf::try_from(&self.document) {
            Ok(raw) => raw,
            Err(error) => return self.corrupt(&error.to_string()),
        };
        match self.collection {
            Collection::Organizations => {
                ParsedDocument::Organization(documents::read::<OrganizationDocument, _>(name, &raw))
            }
            Collection::Accounts => ParsedDocument::Account(documents::read::<AccountDocument, _>(name, &raw)),
            Collection::Subscriptions => {
                ParsedDocument::Subscription(documents::read::<SubscriptionDocument, _>(name, &raw))
            }
        }
    }

    fn corrupt(&self, error: &str) -> ParsedDocument {
        let error = error.to_owned();
        match self.collection {
            Collection::Organizations => {
                ParsedDocument::Organization(LoadedDocument::Corrupt { organization_id: None, error })
            }
            Collection::Accounts => ParsedDocument::Account(LoadedDocument::Corrupt { organization_id: None, error }),
            Collection::Subscriptions => {
                ParsedDocument::Subscription(LoadedDocument::Corrupt { organization_id: None, error })
            }
        }
    }

    /// Adds the document to a unit of work.
    pub fn add_to(&self, unit_of_work: &mut UnitOfWork) {
        let id = self.id();
        match self.parsed() {
            ParsedDocument::Organization(found) => {
                if let Ok(id) = id.try_into() {
                    unit_of_work.add_organization(id, found);
                }
            }
            ParsedDocument::Account(found) => {
                if let Ok(id) = id.try_into() {
                    unit_of_work.add_account(id, found);
                }
            }
            ParsedDocument::Subscription(found) => {
                if let Ok(id) = id.try_into() {
                    unit_of_work.add_subscription(id, found);
                }
            }
        }
    }
}

impl ParsedDocument {
    /// The first fault that prevents at least one decision about the document.
    #[must_use]
    pub fn error(&self) -> Option<String> {
        let faults = match self {
            Self::Organization(LoadedDocument::Corrupt { error, .. })
            | Self::Account(LoadedDocument::Corrupt { error, .. })
            | Self::Subscription(LoadedDocument::Corrupt { error, .. }) => return Some(error.clone()),
            Self::Organization(LoadedDocument::Read(organization)) => organization.faults(),
            Self::Account(LoadedDocument::Read(account)) => account.faults(),
            Self::Subscription(LoadedDocument::Read(subscription)) => {
                if let Err(Malformed(missing)) = subscription.require_next_invoice() {
                    return Some(missing);
                }
                subscription.faults()
            }
        };
        faults.first().map(ToString::to_string)
    }
}

#[cfg(test)]
mod tests {
    use bson::doc;

    use super::*;

    fn parse(text: &str) -> Result<ImportLine, String> {
        ImportLine::parse(&Line { number: 7, bytes: text.into() }).map_err(|error| error.to_string())
    }

    #[test]
    fn blank_lines_are_counted_and_skipped() {
        let read: Vec<_> = lines("\u{feff}a\r\n\n  \r\nb".as_bytes()).map(Result::unwrap).collect();
        assert_eq!(read, [Line { number: 1, bytes: b"a".into() }, Line { number: 4, bytes: b"b".into() }]);
    }

    #[test]
    fn extended_json_has_types_that_json_lacks() {
        let parsed =
            parse(r#"{"collection": "accounts", "document": {"_id": "a", "at": {"$date": "1970-01-01T00:00:01Z"}}}"#);
        let expected = doc! { "_id": "a", "at": bson::DateTime::from_millis(1000) };
        assert_eq!(parsed, Ok(ImportLine { collection: Collection::Accounts, document: expected }));
    }

    #[test]
    fn errors_name_the_line_and_the_reason() {
        let reason = |text| parse(text).unwrap_err();
        assert_eq!(
            reason(r#"{"collection": "members", "document": {"_id": "a"}}"#),
            "line 7: collection: \"members\" is not one of the collections organizations, accounts, subscriptions at line 1 \
             column 24"
        );
        assert_eq!(
            reason(r#"{"collection": "accounts", "document": {}}"#),
            "line 7: document._id: must be a text of 1 to 128 characters"
        );
        assert!(reason("{").starts_with("line 7: "));
        let twice = |document: &str| {
            let line = format!(r#"{{"collection": "subscriptions", "document": {{"_id": "a", {document}}}}}"#);
            parse(&line).unwrap_err()
        };
        assert!(
            twice(r#""status": "active", "status": "x""#)
                .starts_with("line 7: document: the key `status` is given twice")
        );
        assert!(
            twice(r#""billing": {"day": 1, "mode": "x", "day": 2}"#)
                .starts_with("line 7: document.billing: the key `day` is given twice")
        );
        assert!(
            twice(r#""activities": [{"id": "a"}, {"id": "b", "id": "c"}]"#)
                .starts_with("line 7: document.activities[1]: the key `id` is given twice")
        );
        // The same key in two objects is not a duplicate.
        assert!(
            parse(r#"{"collection": "accounts", "document": {"_id": "a", "b": {"_id": null}, "c": [{"_id": 1.5}]}}"#)
                .is_ok()
        );
        let found =
            parse(r#"{"collection": "accounts", "document": {"_id": "a", "organization_id": 3}}"#).unwrap().parsed();
        let error = found.error().unwrap();
        assert!(error.starts_with("accounts a: organization_id: "), "{error}");
    }
}
