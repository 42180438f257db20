//! Reading the documents that a batch of decisions needs.

use std::collections::HashSet;

use bson::{Bson, Document, RawDocumentBuf, doc};

use offramp_domain::account::Account;
use offramp_domain::ids::{AccountId, OrganizationId, SubscriptionId};
use offramp_domain::subscription::{Status, Subscription};
use offramp_domain::unit_of_work::{LoadedDocument, UnitOfWork};

use super::client::Store;
use super::collection::Collection;
use super::documents::{self, AccountDocument, OrganizationDocument, SubscriptionDocument};
use super::error::StoreError;

/// The keys of the documents that a batch needs.
#[derive(Debug, Default)]
pub struct DocumentKeys {
    /// Subscriptions that commands refer to; their accounts and organizations are loaded too.
    pub subscriptions: HashSet<SubscriptionId>,
    /// Subscriptions that may have ended. No account is loaded for them, and the organization only for a natural end.
    pub ending: HashSet<SubscriptionId>,
    /// Further accounts.
    pub accounts: HashSet<AccountId>,
    /// Further organizations.
    pub organizations: HashSet<OrganizationId>,
    /// Organizations whose undecided requests are needed.
    pub pending_requests: HashSet<OrganizationId>,
}

impl Store {
    /// Reads all documents that a batch needs: one `find` per collection, and at most one more for the accounts and organizations
    /// that the documents refer to. (A reminder of undecided requests takes two for its organization.)
    ///
    /// # Errors
    /// When the server does not answer, or rejects the query.
    pub async fn load(&self, need: &DocumentKeys) -> Result<UnitOfWork, StoreError> {
        let (subscriptions, accounts, organizations) = tokio::try_join!(
            self.find_by_id(
                Collection::Subscriptions,
                need.subscriptions.union(&need.ending).map(SubscriptionId::as_str),
                documents::decision_projection(Collection::Subscriptions),
            ),
            self.find_by_id(
                Collection::Accounts,
                need.accounts.iter().map(AccountId::as_str),
                documents::decision_projection(Collection::Accounts),
            ),
            self.find_by_id(
                Collection::Organizations,
                need.organizations.iter().map(OrganizationId::as_str),
                documents::decision_projection(Collection::Organizations),
            ),
        )?;
        let mut unit_of_work = UnitOfWork::default();
        for id in &need.pending_requests {
            unit_of_work.add_pending_requests(id.clone(), self.pending_requests(id).await?);
        }
        let mut referenced_accounts = HashSet::with_capacity(subscriptions.len());
        let mut referenced_organizations = HashSet::new();

        for raw in &subscriptions {
            let Some(id) = id(raw) else { continue };
            let loaded = documents::read::<SubscriptionDocument, _>(Collection::Subscriptions.as_str(), raw);
            if let LoadedDocument::Read(subscription) = &loaded {
                let subscription: &Subscription = subscription;
                let is_commanded = need.subscriptions.contains(&id);
                if is_commanded {
                    referenced_accounts.insert(subscription.account_id.clone());
                }
                if is_commanded || subscription.status != Status::CancellationScheduled {
                    referenced_organizations.insert(subscription.organization_id.clone());
                }
            }
            unit_of_work.add_subscription(id, loaded);
        }
        add_accounts(&mut unit_of_work, &accounts, &mut referenced_organizations);
        add_organizations(&mut unit_of_work, &organizations);

        let referenced_accounts: Vec<_> =
            referenced_accounts.iter().filter(|id| !need.accounts.contains(*id)).map(AccountId::as_str).collect();
        let referenced_organizations: Vec<_> = referenced_organizations
            .iter()
            .filter(|id| !need.organizations.contains(*id))
            .map(OrganizationId::as_str)
            .collect();
        let (accounts, organizations) = tokio::try_join!(
            self.find_by_id(Collection::Accounts, referenced_accounts.into_iter(), documents::reference_projection()),
            self.find_by_id(
                Collection::Organizations,
                referenced_organizations.into_iter(),
                documents::decision_projection(Collection::Organizations),
            ),
        )?;
        add_accounts(&mut unit_of_work, &accounts, &mut HashSet::new());
        add_organizations(&mut unit_of_work, &organizations);
        Ok(unit_of_work)
    }

    /// The document with this id.
    ///
    /// # Errors
    /// When the server does not answer, or rejects the query.
    pub async fn document(
        &self,
        collection: Collection,
        id: impl Into<Bson>,
    ) -> Result<Option<RawDocumentBuf>, StoreError> {
        Ok(self.find(collection, doc! { "_id": id.into() }, doc! {}, Some(1)).await?.pop())
    }

    /// The documents with these ids.
    pub(crate) async fn find_by_id(
        &self,
        collection: Collection,
        ids: impl Iterator<Item = &str>,
        projection: Document,
    ) -> Result<Vec<RawDocumentBuf>, StoreError> {
        let ids: Vec<&str> = ids.collect();
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        let documents_max = i64::try_from(ids.len()).ok();
        // On the heap: with all its options the future is large, and a batch waits for several of them at once.
        Box::pin(self.find(collection, doc! { "_id": { "$in": ids } }, projection, documents_max)).await
    }
}

fn add_accounts(
    unit_of_work: &mut UnitOfWork,
    raw: &[RawDocumentBuf],
    referenced_organizations: &mut HashSet<OrganizationId>,
) {
    for raw in raw {
        let Some(id) = id(raw) else { continue };
        let loaded = documents::read::<AccountDocument, Account>("accounts", raw);
        if let LoadedDocument::Read(account) = &loaded {
            referenced_organizations.insert(account.organization_id.clone());
        }
        unit_of_work.add_account(id, loaded);
    }
}

fn add_organizations(unit_of_work: &mut UnitOfWork, raw: &[RawDocumentBuf]) {
    for raw in raw {
        let Some(id) = id(raw) else { continue };
        unit_of_work.add_organization(id, documents::read::<OrganizationDocument, _>("organizations", raw));
    }
}

/// The `_id` of a document that was found by its id.
fn id<T: for<'a> TryFrom<&'a str>>(raw: &RawDocumentBuf) -> Option<T> {
    raw.get_str("_id").ok().and_then(|id| id.try_into().ok())
}
