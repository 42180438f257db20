//! The organization and the account behind a document.

use chrono_tz::Tz;
use serde::Serialize;

use super::fields::Fields;
use crate::store::{Collection, Store, StoreError};

/// An organization or an account, as far as it can be read.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Party {
    /// Its id.
    pub id: String,
    /// The organization's name, or the account manager's.
    pub name: Option<String>,
    /// The address that emails decided now go to.
    pub email: Option<String>,
}

/// A party, and what else is needed of its document.
pub(super) struct Found {
    pub(super) party: Party,
    /// An organization's.
    pub(super) timezone: Option<Tz>,
    /// Absent: the document is complete as far as it is needed here.
    pub(super) problem: Option<String>,
}

/// Reads the organization with this id. Its time zone is part of it.
pub(super) async fn organization(store: &Store, id: Option<String>) -> Result<Found, StoreError> {
    read(store, Collection::Organizations, id, ["name", "contact.email"]).await
}

/// Reads the account with this id.
pub(super) async fn account(store: &Store, id: Option<String>) -> Result<Found, StoreError> {
    read(store, Collection::Accounts, id, ["manager.name", "manager.email"]).await
}

async fn read(
    store: &Store,
    collection: Collection,
    id: Option<String>,
    [name, email]: [&str; 2],
) -> Result<Found, StoreError> {
    let Some(id) = id else { return Ok(Found { party: Party::default(), timezone: None, problem: None }) };
    let of = format!("{} {id}", collection.as_str());
    let Some(raw) = store.document(collection, id.as_str()).await? else {
        let party = Party { id, name: None, email: None };
        return Ok(Found { party, timezone: None, problem: Some(format!("{of} is missing")) });
    };
    let mut fields = Fields::new(of, &raw);
    let party = Party { id, name: fields.read(name), email: fields.read(email) };
    let timezone = fields.read::<String>("timezone").and_then(|name| name.parse().ok());
    Ok(Found { party, timezone, problem: fields.problem() })
}
