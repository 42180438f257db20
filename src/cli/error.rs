//! Errors that decide the exit code.

/// The settings, the arguments or the templates are wrong: the operator must change them first. Leads to exit code 2.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct WrongConfiguration(pub String);
