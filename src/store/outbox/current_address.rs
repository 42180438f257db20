//! Where emails would go if they were decided today: after a wrong address was corrected in the account or the organization.

use std::collections::{HashMap, HashSet};

use bson::{RawDocumentBuf, doc};
use offramp_domain::account::Account;
use offramp_domain::contact::Mailbox;
use offramp_domain::organization::Organization;
use offramp_domain::unit_of_work::LoadedDocument;

use super::admin::EntrySummary;
use crate::store::client::Store;
use crate::store::collection::Collection;
use crate::store::documents::{self, AccountDocument, OrganizationDocument};
use crate::store::error::StoreError;

/// Whom an entry concerns: the recipient's document.
type Owner = (Collection, String);

impl Store {
    /// For each entry the current address of its recipient: the account's manager or the organization's contact. `None` for an event,
    /// and where that address is missing or unreadable.
    ///
    /// # Errors
    /// When the server does not answer.
    pub async fn current_addresses(&self, entries: &[EntrySummary]) -> Result<Vec<Option<Mailbox>>, StoreError> {
        let parents = self.parents(entries).await?;
        let owners: Vec<Option<Owner>> = entries.iter().map(|entry| owner(entry, &parents)).collect();
        let mut addresses: HashMap<Owner, Mailbox> = HashMap::new();
        for collection in [Collection::Accounts, Collection::Organizations] {
            let ids: HashSet<&str> =
                owners.iter().flatten().filter(|owner| owner.0 == collection).map(|(_, id)| id.as_str()).collect();
            let fields = documents::decision_projection(collection);
            for raw in self.find_by_id(collection, ids.into_iter(), fields).await? {
                let Ok(id) = raw.get_str("_id") else { continue };
                addresses.extend(address(collection, &raw).map(|mailbox| ((collection, id.to_owned()), mailbox)));
            }
        }
        Ok(owners.iter().map(|owner| addresses.get(owner.as_ref()?).cloned()).collect())
    }

    /// The account and the organization that each subscription or account of these entries belongs to.
    async fn parents(&self, entries: &[EntrySummary]) -> Result<HashMap<Owner, RawDocumentBuf>, StoreError> {
        let mut parents = HashMap::new();
        for collection in [Collection::Subscriptions, Collection::Accounts] {
            let of_collection = entries.iter().filter(|entry| entry.collection == collection);
            let ids: HashSet<&str> = of_collection.map(|entry| entry.document_id.as_str()).collect();
            let fields = doc! { "account_id": 1, "organization_id": 1 };
            for raw in self.find_by_id(collection, ids.into_iter(), fields).await? {
                if let Ok(id) = raw.get_str("_id").map(str::to_owned) {
                    parents.insert((collection, id), raw);
                }
            }
        }
        Ok(parents)
    }
}

/// The document that has the recipient's address.
fn owner(entry: &EntrySummary, parents: &HashMap<Owner, RawDocumentBuf>) -> Option<Owner> {
    let wanted = match entry.role.as_deref()? {
        "account_manager" => Collection::Accounts,
        "organization_contact" => Collection::Organizations,
        _ => return None,
    };
    if entry.collection == wanted {
        return Some((wanted, entry.document_id.clone()));
    }
    let parent = parents.get(&(entry.collection, entry.document_id.clone()))?;
    let field = if wanted == Collection::Accounts { "account_id" } else { "organization_id" };
    Some((wanted, parent.get_str(field).ok()?.to_owned()))
}

fn address(collection: Collection, raw: &RawDocumentBuf) -> Option<Mailbox> {
    if collection == Collection::Accounts {
        match documents::read::<AccountDocument, Account>(collection.as_str(), raw) {
            LoadedDocument::Read(account) => account.manager.ok(),
            LoadedDocument::Corrupt { .. } => None,
        }
    } else {
        match documents::read::<OrganizationDocument, Organization>(collection.as_str(), raw) {
            LoadedDocument::Read(organization) => organization.contact.ok(),
            LoadedDocument::Corrupt { .. } => None,
        }
    }
}
