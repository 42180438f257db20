//! Which build of the program this is.

/// The released version.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The commit it was built from, where the build said so in `OFFRAMP_REVISION`.
pub const REVISION: &str = match option_env!("OFFRAMP_REVISION") {
    Some(revision) if !revision.is_empty() => revision,
    _ => "unknown",
};
