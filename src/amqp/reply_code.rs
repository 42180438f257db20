//! The AMQP reply codes that the program acts on.

/// The user lacks the right.
pub(super) const ACCESS_REFUSED: u16 = 403;
/// The object does not exist.
pub(super) const NOT_FOUND: u16 = 404;
/// Another connection uses the object exclusively.
pub(super) const RESOURCE_LOCKED: u16 = 405;
/// The object exists with other properties.
pub(super) const PRECONDITION_FAILED: u16 = 406;
/// The virtual host is missing, or the user may not use it.
pub(super) const NOT_ALLOWED: u16 = 530;
