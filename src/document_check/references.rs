//! What is known of the documents that others refer to.

use std::collections::HashMap;

use chrono_tz::Tz;

/// The documents that a page refers to.
#[derive(Debug, Default)]
pub(super) struct References {
    /// The organizations that exist, with their time zones where these can be read.
    pub(super) organizations: HashMap<String, Option<Tz>>,
    /// The accounts that exist, with their organizations.
    pub(super) accounts: HashMap<String, String>,
}
