//! Values in AMQP's tables of headers and properties.

use lapin::types::AMQPValue;

/// The text of a value that is text.
pub(super) fn text(value: &AMQPValue) -> Option<&str> {
    match value {
        AMQPValue::LongString(text) => std::str::from_utf8(text.as_bytes()).ok(),
        AMQPValue::ShortString(text) => Some(text.as_str()),
        _ => None,
    }
}
