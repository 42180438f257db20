//! A field of a document that another system writes: its value, or why it cannot be read.
//!
//! A rule reads the fields it needs with `?`. So a malformed field stops only the decisions that need it.

/// The value, or why it cannot be read.
pub type Field<T> = Result<T, Malformed>;

/// Why a field cannot be read: a sentence that names the document, the field and the reason. It never quotes the value.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Malformed(pub String);

/// The error of a field, whatever its type.
pub(crate) fn fault<T>(field: &Field<T>) -> Option<&Malformed> {
    field.as_ref().err()
}
