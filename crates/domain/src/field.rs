//! A field of a document that another system wrote: its value, or why it cannot be read.
//!
//! A rule asks for the fields that it uses with `?`. So a malformed field stops the decisions that need it and no others.

/// A field's value, or why it cannot be read.
pub type Field<T> = Result<T, Malformed>;

/// Why a field cannot be read, if it cannot.
pub(super) fn fault<T>(field: &Field<T>) -> Option<&Malformed> {
    field.as_ref().err()
}

/// Why a field cannot be read: a sentence that names the document, the field and the reason, and quotes nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Malformed(pub String);
