//! From the bytes of a message to the envelope of a command, or the reason why they are none.

use chrono::{DateTime, Utc};
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::command_ref::CommandType;
use crate::ids::Text;
use crate::strict_json::{Object, name, rfc3339};

/// The largest command, in bytes.
pub const COMMAND_BYTES_MAX: usize = 256 * 1024;

/// The longest sentence about an invalid message, in characters. It travels in a header, and field names in a message can be of any
/// length.
const SENTENCE_CHARS_MAX: usize = 300;

/// The envelope: `CloudEvents` 1.0, structured mode. The attributes of a
/// [trace](crate::trace_context) are read apart from it, because nothing in them is an error. Others are allowed and ignored.
#[derive(Deserialize)]
pub(super) struct Envelope<'a> {
    #[serde(rename = "specversion", deserialize_with = "name")]
    _specversion: SpecVersion,
    pub(super) id: Text<1, 128>,
    pub(super) source: Text<1, 256>,
    #[serde(rename = "type", deserialize_with = "name")]
    pub(super) kind: CommandType,
    #[serde(deserialize_with = "rfc3339")]
    pub(super) time: DateTime<Utc>,
    #[serde(borrow)]
    pub(super) data: &'a RawValue,
}

#[derive(Deserialize)]
enum SpecVersion {
    #[serde(rename = "1.0")]
    V1,
}

/// Why bytes are not a command: a sentence that names the field.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidCommand {
    /// Larger than [`COMMAND_BYTES_MAX`]. Nothing was parsed.
    #[error("the message has {bytes} bytes; a command has at most {COMMAND_BYTES_MAX}")]
    TooLarge { bytes: usize },
    /// Not JSON, not the envelope, an unknown type, or a wrong field.
    #[error("{0}")]
    Malformed(String),
}

impl InvalidCommand {
    /// Cuts the sentence to what a header can carry, and replaces control characters: a terminal would interpret them.
    pub(super) fn malformed(sentence: &str) -> Self {
        let mut chars = sentence.chars().map(|char| if char.is_control() { char::REPLACEMENT_CHARACTER } else { char });
        let mut sentence: String = chars.by_ref().take(SENTENCE_CHARS_MAX).collect();
        if chars.next().is_some() {
            sentence.push('…');
        }
        Self::Malformed(sentence)
    }
}

/// Reads a JSON object found at `at`. The error is a sentence that begins with the path of the field.
pub(super) fn read_json<'a, T: Deserialize<'a>>(text: &'a str, at: &str) -> Result<T, InvalidCommand> {
    let mut json = serde_json::Deserializer::from_str(text);
    let Object(value) = serde_path_to_error::deserialize(&mut json).map_err(|error| {
        let path = error.path().to_string();
        let path = match (at, path.as_str()) {
            ("", ".") => String::new(),
            (_, ".") => format!("{at}: "),
            ("", _) => format!("{path}: "),
            _ => format!("{at}.{path}: "),
        };
        let error = error.into_inner();
        let position = format!(" at line {} column {}", error.line(), error.column());
        let full = error.to_string();
        // The path is better than the position, which within `data` is not the position in the message.
        let sentence = full.strip_suffix(&position).unwrap_or(&full);
        InvalidCommand::malformed(&match error.classify() {
            serde_json::error::Category::Data => format!("{path}{sentence}"),
            _ if at.is_empty() => format!("not JSON: {full}"),
            _ => format!("{path}not JSON: {sentence}"),
        })
    })?;
    json.end().map_err(|error| InvalidCommand::malformed(&format!("not JSON: {error}")))?;
    Ok(value)
}
