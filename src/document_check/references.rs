//! What is known of the documents that others refer to.

use std::collections::{HashMap, HashSet};

use bson::{RawDocumentBuf, doc};
use chrono_tz::Tz;

use crate::store::{Collection, Store, StoreError};

/// The documents that a page refers to.
#[derive(Debug, Default)]
pub(super) struct References {
    /// The organizations that exist, with their time zones where these can be read.
    pub(super) organizations: HashMap<String, Option<Tz>>,
    /// The accounts that exist, with their organizations.
    pub(super) accounts: HashMap<String, String>,
}

/// Those of these organizations that exist in the database, with their time zones where these can be read.
pub(super) async fn existing_organizations(
    store: &Store,
    ids: impl Iterator<Item = &str>,
) -> Result<HashMap<String, Option<Tz>>, StoreError> {
    let ids: HashSet<&str> = ids.collect();
    let found = store.find_by_id(Collection::Organizations, ids.into_iter(), doc! { "timezone": 1 }).await?;
    let timezone = |raw: &RawDocumentBuf| raw.get_str("timezone").ok().and_then(|name| name.parse().ok());
    Ok(found.iter().filter_map(|raw| Some((raw.get_str("_id").ok()?.to_owned(), timezone(raw)))).collect())
}
