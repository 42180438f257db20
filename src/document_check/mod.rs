//! Reads all documents and reports what cannot be processed, points nowhere or is doubtful. Changes nothing.
//!
//! Documents are read by the same code as a worker reads them, a page at a time. What they refer to is read for each page, so memory is
//! bounded by the size of a page and the number of kinds of problems.

mod doubts;
mod field_names;
mod problem;
mod references;
mod rules;

use std::collections::{HashMap, HashSet};

use bson::{Bson, RawDocumentBuf, doc};
use chrono::{DateTime, Utc};

use crate::store::documents::{self, AccountDocument, OrganizationDocument, SubscriptionDocument};
use crate::store::{Collection, Store, StoreError, pages};
use offramp_domain::account::Account;
use offramp_domain::organization::Organization;
use offramp_domain::subscription::Subscription;
use offramp_domain::unit_of_work::LoadedDocument;

use field_names::FieldNames;
use references::{References, existing_organizations};
use rules::{of_account, of_id, of_organization, of_subscription};

pub use doubts::{Doubt, ImportDoubts};
pub use problem::{Example, Problem, ProblemGroup, Report, Severity};

/// Documents in a page.
const PAGE_DOCUMENTS: usize = 1_000;

/// A place in the walk through the collections.
#[derive(Clone, Debug, PartialEq)]
pub struct Position {
    pub collection: Collection,
    /// The `_id` of the last document that was read.
    pub after: Option<Bson>,
}

impl Position {
    /// The beginning: organizations, then accounts, then subscriptions.
    #[must_use]
    pub fn start() -> Self {
        Self { collection: Collection::ALL[0], after: None }
    }
}

/// A walk through all documents.
#[derive(Debug)]
pub struct DocumentCheck {
    store: Store,
    now: DateTime<Utc>,
    /// `None` at the end.
    position: Option<Position>,
    names: FieldNames,
    report: Report,
}

impl DocumentCheck {
    /// Begins at `position`. For each kind of problem, at most `examples` documents are named. `now` decides what is past.
    #[must_use]
    pub fn new(store: Store, position: Position, examples: usize, now: DateTime<Utc>) -> Self {
        Self { store, now, position: Some(position), names: FieldNames::new(), report: Report::new(examples) }
    }

    /// What was found so far.
    #[must_use]
    pub fn report(&self) -> &Report {
        &self.report
    }

    /// Where the next page begins; `None` at the end.
    #[must_use]
    pub fn position(&self) -> Option<&Position> {
        self.position.as_ref()
    }

    /// Reads the next page. Returns the number of its documents; `None` at the end.
    ///
    /// # Errors
    /// When the server does not answer. The same page can be read again.
    pub async fn next_page(&mut self) -> Result<Option<usize>, StoreError> {
        loop {
            let Some(position) = &self.position else { return Ok(None) };
            let collection = position.collection;
            let page = self.store.page(collection, position.after.as_ref(), PAGE_DOCUMENTS).await?;
            let Some(last) = page.last() else {
                let next = Collection::ALL.iter().skip_while(|other| **other != collection).nth(1);
                self.position = next.map(|next| Position { collection: *next, after: None });
                continue;
            };
            let after = pages::id(last);
            match collection {
                Collection::Organizations => self.organizations(&page),
                Collection::Accounts => self.accounts(&page).await?,
                Collection::Subscriptions => self.subscriptions(&page).await?,
            }
            self.report.count(page.len() as u64);
            self.position = Some(Position { collection, after });
            return Ok(Some(page.len()));
        }
    }

    fn organizations(&mut self, page: &[RawDocumentBuf]) {
        for raw in page {
            let collection = Collection::Organizations;
            let found: LoadedDocument<Organization> =
                documents::read::<OrganizationDocument, _>(collection.as_str(), raw);
            let problems = of_id(collection, raw).map_or_else(|| of_organization(&found), |problem| vec![problem]);
            self.add(collection, raw, problems);
        }
    }

    async fn accounts(&mut self, page: &[RawDocumentBuf]) -> Result<(), StoreError> {
        let collection = Collection::Accounts;
        let read: Vec<LoadedDocument<Account>> =
            page.iter().map(|raw| documents::read::<AccountDocument, _>(collection.as_str(), raw)).collect();
        let owners = read.iter().filter_map(|found| match found {
            LoadedDocument::Read(account) => Some(account.organization_id.as_str()),
            LoadedDocument::Corrupt { .. } => None,
        });
        let references =
            References { organizations: existing_organizations(&self.store, owners).await?, ..References::default() };
        for (raw, found) in page.iter().zip(&read) {
            let problems =
                of_id(collection, raw).map_or_else(|| of_account(raw, found, &references), |problem| vec![problem]);
            self.add(collection, raw, problems);
        }
        Ok(())
    }

    async fn subscriptions(&mut self, page: &[RawDocumentBuf]) -> Result<(), StoreError> {
        let collection = Collection::Subscriptions;
        let read: Vec<LoadedDocument<Subscription>> =
            page.iter().map(|raw| documents::read::<SubscriptionDocument, _>(collection.as_str(), raw)).collect();
        let readable = || {
            read.iter().filter_map(|found| match found {
                LoadedDocument::Read(subscription) => Some(subscription),
                LoadedDocument::Corrupt { .. } => None,
            })
        };
        let owners = readable().map(|subscription| subscription.organization_id.as_str());
        let payers = readable().map(|subscription| subscription.account_id.as_str());
        let references = References {
            organizations: existing_organizations(&self.store, owners).await?,
            accounts: self.existing_accounts(payers).await?,
        };
        for (raw, found) in page.iter().zip(&read) {
            let problems = of_id(collection, raw)
                .map_or_else(|| of_subscription(found, &references, self.now), |problem| vec![problem]);
            self.add(collection, raw, problems);
        }
        Ok(())
    }

    fn add(&mut self, collection: Collection, raw: &RawDocumentBuf, problems: Vec<Problem>) {
        let id = match pages::id(raw) {
            Some(Bson::String(id)) => id,
            Some(other) => other.to_string(),
            None => String::new(),
        };
        let misspelt = self.names.misspelt_in_page(collection, raw);
        for problem in problems.into_iter().chain(misspelt) {
            self.report.add(collection, &id, problem);
        }
    }

    async fn existing_accounts(&self, ids: impl Iterator<Item = &str>) -> Result<HashMap<String, String>, StoreError> {
        let ids: HashSet<&str> = ids.collect();
        let found = self.store.find_by_id(Collection::Accounts, ids.into_iter(), doc! { "organization_id": 1 }).await?;
        let owner = |raw: &RawDocumentBuf| raw.get_str("organization_id").unwrap_or_default().to_owned();
        Ok(found.iter().filter_map(|raw| Some((raw.get_str("_id").ok()?.to_owned(), owner(raw)))).collect())
    }
}
