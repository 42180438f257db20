//! Reading field by field: a malformed field is remembered, and does not affect the rest of its document.

use bson::{Bson, Document, RawBsonRef, RawDeserializer, RawDocument, rawdoc};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer};

use offramp_domain::field::Malformed;

/// A field's value, or what is wrong with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored<T>(Result<T, Fault>);

/// What is wrong with a value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Where in the value, as `name` or `[0].name`; empty: the value itself.
    path: String,
    /// What is wrong, without the field's name. It quotes names and dates, and no other text of the document.
    reason: String,
}

impl Fault {
    /// What is wrong with the value itself.
    pub fn new(reason: impl Into<String>) -> Self {
        Self { path: String::new(), reason: reason.into() }
    }

    /// The sentence, for the field `field` of the document `document`.
    #[must_use]
    pub fn of(&self, document: &str, field: &str) -> Malformed {
        let Self { path, reason } = self;
        let dot = if path.is_empty() || path.starts_with('[') || field.is_empty() { "" } else { "." };
        let colon = if path.is_empty() && field.is_empty() { "" } else { ": " };
        Malformed(format!("{document}: {field}{dot}{path}{colon}{reason}"))
    }
}

impl<T> Stored<T> {
    /// The value, for the field `field` of the document `document`.
    ///
    /// # Errors
    /// When it is malformed.
    pub fn read(self, document: &str, field: &str) -> Result<T, Malformed> {
        self.0.map_err(|fault| fault.of(document, field))
    }

    /// A required field that is missing.
    #[must_use]
    pub fn missing() -> Self {
        Self(Err(Fault::new("missing")))
    }

    /// The value, if it can be read.
    pub fn ok(self) -> Option<T> {
        self.0.ok()
    }

    /// The value, checked further.
    pub fn and_then<U>(self, check: impl FnOnce(T) -> Result<U, Fault>) -> Stored<U> {
        Stored(self.0.and_then(check))
    }
}

impl<T: Default> Default for Stored<T> {
    fn default() -> Self {
        Self(Ok(T::default()))
    }
}

impl<'de, T: DeserializeOwned> Deserialize<'de> for Stored<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        RawBsonRef::deserialize(deserializer).map(Self::from)
    }
}

impl<T: DeserializeOwned> From<RawBsonRef<'_>> for Stored<T> {
    fn from(value: RawBsonRef<'_>) -> Self {
        #[derive(Deserialize)]
        struct Alone<T> {
            value: T,
        }
        let alone = rawdoc! { "value": value };
        Self(whole::<Alone<T>>(&alone).map(|Alone { value }| value).map_err(|fault| {
            let path = fault.path.strip_prefix("value").unwrap_or(&fault.path);
            Fault { path: path.trim_start_matches('.').to_owned(), reason: fault.reason }
        }))
    }
}

/// `#[serde(default, deserialize_with = "list")]`: a list whose elements are read one at a time. Null counts as absent; anything
/// else counts as a list of one malformed element.
pub fn list<'de, D: Deserializer<'de>, T: DeserializeOwned>(deserializer: D) -> Result<Vec<Stored<T>>, D::Error> {
    Ok(match RawBsonRef::deserialize(deserializer)? {
        RawBsonRef::Null | RawBsonRef::Undefined => Vec::new(),
        RawBsonRef::Array(elements) => elements
            .into_iter()
            .enumerate()
            .map(|(at, element)| {
                let element = match element {
                    Ok(element) => Stored::from(element),
                    Err(error) => Stored(Err(Fault::new(words(&error)))),
                };
                Stored(element.0.map_err(|fault| {
                    let dot = if fault.path.is_empty() || fault.path.starts_with('[') { "" } else { "." };
                    Fault { path: format!("[{at}]{dot}{}", fault.path), reason: fault.reason }
                }))
            })
            .collect(),
        other => {
            let found = Bson::try_from(other).ok().as_ref().map_or("something else", kind);
            vec![Stored(Err(Fault::new(format!("expected a list, found {found}"))))]
        }
    })
}

/// Reads a whole document.
///
/// # Errors
/// What is wrong with it, where that spoils all of it.
pub fn whole<D: DeserializeOwned>(raw: &RawDocument) -> Result<D, Fault> {
    bson::deserialize_from_slice::<D>(raw.as_bytes())
        .map_err(|error| fault::<D>(raw).unwrap_or_else(|| Fault::new(words(&error))))
}

/// Reads once more, with a slower deserializer that reports the path of the error.
fn fault<D: DeserializeOwned>(raw: &RawDocument) -> Option<Fault> {
    let deserializer = RawDeserializer::new(raw.as_bytes()).ok()?;
    let error = serde_path_to_error::deserialize::<_, D>(deserializer).err()?;
    let path = error.path().to_string();
    let path = if path == "." { String::new() } else { path };
    let message = words(error.inner());
    if let Some(field) = message.strip_prefix("missing field `").and_then(|rest| rest.strip_suffix('`')) {
        let dot = if path.is_empty() { "" } else { "." };
        return Some(Fault { path: format!("{path}{dot}{field}"), reason: "missing".to_owned() });
    }
    // The driver words some type errors in its own way.
    let expected = if message.starts_with("expected enum, instead got") {
        Some("a string")
    } else if message == "expecting DateTime" {
        Some("datetime")
    } else {
        message.strip_prefix("invalid type: ").and_then(|rest| Some(rest.rsplit_once(", expected ")?.1))
    };
    let reason = match expected {
        Some(expected) => {
            let document = Bson::Document(Document::try_from(raw).ok()?);
            let found = error.path().iter().try_fold(&document, step).map_or("something else", kind);
            format!("expected {}, found {found}", expectation(expected))
        }
        None => message,
    };
    Some(Fault { path, reason })
}

/// The innermost message of the driver's error.
fn words(error: &bson::error::Error) -> String {
    let message = error.message.clone().unwrap_or_else(|| error.to_string());
    message.rsplit_once(". Message: ").map_or(message.clone(), |(_, inner)| inner.to_owned())
}

fn step<'a>(value: &'a Bson, segment: &serde_path_to_error::Segment) -> Option<&'a Bson> {
    use serde_path_to_error::Segment;
    match (value, segment) {
        (Bson::Document(document), Segment::Map { key }) => document.get(key),
        (Bson::Array(elements), Segment::Seq { index }) => elements.get(*index),
        _ => None,
    }
}

/// The type that serde expects, in words for people who do not write Rust.
fn expectation(expected: &str) -> &str {
    match expected {
        "a string" | "a borrowed string" | "string or map" => "text",
        "a sequence" => "a list",
        "a boolean" => "true or false",
        "a map" => "an object",
        "datetime" => "a date (the BSON type)",
        _ if expected.starts_with("struct ") || expected.contains("tagged enum") => "an object",
        _ => expected,
    }
}

/// The type of a value, in words.
#[must_use]
pub fn kind(value: &Bson) -> &'static str {
    match value {
        Bson::String(_) => "text",
        Bson::Int32(_) | Bson::Int64(_) => "an integer",
        Bson::Double(_) => "a number",
        Bson::Decimal128(_) => "a Decimal128",
        Bson::Boolean(_) => "true or false",
        Bson::DateTime(_) => "a date (the BSON type)",
        Bson::ObjectId(_) => "an ObjectId",
        Bson::Array(_) => "a list",
        Bson::Document(_) => "an object",
        Bson::Null | Bson::Undefined => "null",
        Bson::Binary(_) => "binary data",
        Bson::Timestamp(_) => "a timestamp",
        Bson::RegularExpression(_) => "a regular expression",
        _ => "something else",
    }
}
