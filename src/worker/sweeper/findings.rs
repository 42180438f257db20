//! What sweeps find wrong with documents, and its reports: each problem is logged once when it begins, and counted while it
//! lasts.

use std::collections::{HashMap, HashSet};

use super::search::Search;
use crate::metrics;
use crate::metrics::labels::DocumentCollection;
use crate::store::due::UnprocessableDocument;
use crate::store::{Collection, StoreError};
use crate::worker::engine::Processed;
use offramp_domain::unit_of_work::TaskOutcome;

/// How many documents that cannot be processed are remembered, and how many that could not be changed.
pub(super) const DOCUMENTS_MAX: usize = 10_000;

/// What one search found wrong.
#[derive(Debug, Default)]
pub(super) struct Findings {
    /// Documents that cannot be processed until somebody corrects them.
    unworkable: Vec<UnprocessableDocument>,
    /// Documents that could not be changed this time. That need not be their own fault: other writers may have kept changing
    /// them, or a validator of the database may forbid the change.
    failed: Vec<UnprocessableDocument>,
}

impl Findings {
    pub(super) fn add_unworkable(&mut self, unworkable: impl IntoIterator<Item = UnprocessableDocument>) {
        let room = DOCUMENTS_MAX.saturating_sub(self.unworkable.len());
        self.unworkable.extend(unworkable.into_iter().take(room));
    }

    fn add_failed(&mut self, failed: impl IntoIterator<Item = UnprocessableDocument>) {
        let room = DOCUMENTS_MAX.saturating_sub(self.failed.len());
        self.failed.extend(failed.into_iter().take(room));
    }

    pub(super) fn extend(&mut self, other: Self) {
        self.add_unworkable(other.unworkable);
        self.add_failed(other.failed);
    }

    /// Adds the result for a document if something is wrong; otherwise returns its outcome.
    pub(super) fn check(&mut self, collection: Collection, id: &str, processed: Processed) -> Option<TaskOutcome> {
        let unworkable = |reason| UnprocessableDocument { collection, id: id.to_owned(), reason };
        match processed {
            Processed::Decided(TaskOutcome::Missing(missing)) => self.add_unworkable([unworkable(missing.to_string())]),
            Processed::Decided(TaskOutcome::Corrupt(reason)) => self.add_unworkable([unworkable(reason)]),
            Processed::Failed(reason) => self.add_failed([unworkable(reason)]),
            Processed::Decided(outcome) => return Some(outcome),
        }
        None
    }
}

/// The reports of one loop of sweeps.
pub(super) struct Reports {
    collections: &'static [Collection],
    /// Which search first found that a document cannot be processed, and why it cannot.
    unworkable: HashMap<(Collection, String), (Search, String)>,
    /// The documents that could not be changed.
    failed: HashMap<Search, HashSet<(Collection, String)>>,
    /// Why searches failed.
    failed_searches: HashMap<Search, String>,
}

impl Reports {
    /// Reports about documents of these collections.
    pub(super) fn new(collections: &'static [Collection]) -> Self {
        Self { collections, unworkable: HashMap::new(), failed: HashMap::new(), failed_searches: HashMap::new() }
    }

    /// Replaces the findings of a search, and logs the new ones.
    pub(super) fn succeeded(&mut self, search: Search, findings: Findings) {
        self.failed_searches.remove(&search);
        self.update_unworkable(search, findings.unworkable);
        self.update_failed(search, findings.failed);
    }

    /// Logs a failed search, unless it failed for the same reason before. Its earlier findings remain.
    pub(super) fn failed(&mut self, search: Search, error: &StoreError) {
        let error = error.reason();
        if self.failed_searches.get(&search) != Some(&error) {
            let what = search.as_str();
            tracing::warn!(error, "cannot search for {what}; retrying; other searches are not affected");
            self.failed_searches.insert(search, error);
        }
    }

    pub(super) fn has_failed_search(&self) -> bool {
        !self.failed_searches.is_empty()
    }

    fn update_unworkable(&mut self, search: Search, unworkable: Vec<UnprocessableDocument>) {
        let is_own = |_: &(Collection, String), (by, _): &mut (Search, String)| *by == search;
        let before: HashMap<_, _> = self.unworkable.extract_if(is_own).collect();
        for UnprocessableDocument { collection, id, reason } in unworkable {
            let key = (collection, id);
            if self.unworkable.len() >= DOCUMENTS_MAX {
                break;
            }
            if self.unworkable.contains_key(&key) {
                continue;
            }
            if before.get(&key).is_none_or(|(_, known)| *known != reason) {
                tracing::error!(
                    document = format_args!("{} {}", collection.as_str(), key.1),
                    error = reason,
                    "this document cannot be processed until it is corrected"
                );
            }
            self.unworkable.insert(key, (search, reason));
        }
        for collection in self.collections {
            let count = self.unworkable.keys().filter(|(of, _)| of == collection).count();
            let count = u32::try_from(count).unwrap_or(u32::MAX);
            metrics::current().unworkable_documents.of((label(*collection),)).set(f64::from(count));
        }
    }

    /// Logs one line for all documents: a validator may reject every document of a collection.
    fn update_failed(&mut self, search: Search, failed: Vec<UnprocessableDocument>) {
        let known = self.failed.remove(&search).unwrap_or_default();
        let is_new = |failed: &&UnprocessableDocument| !known.contains(&(failed.collection, failed.id.clone()));
        if let Some(example) = failed.iter().find(is_new) {
            let UnprocessableDocument { collection, id, reason } = example;
            tracing::warn!(
                document = format_args!("{} {id}", collection.as_str()),
                documents = failed.len(),
                error = reason,
                "due documents could not be changed; retrying"
            );
        }
        self.failed.insert(search, failed.into_iter().map(|failed| (failed.collection, failed.id)).collect());
    }
}

fn label(collection: Collection) -> DocumentCollection {
    match collection {
        Collection::Organizations => DocumentCollection::Organizations,
        Collection::Accounts => DocumentCollection::Accounts,
        Collection::Subscriptions => DocumentCollection::Subscriptions,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::due::Fault;
    use crate::worker::sweeper::search::EndKind;

    fn unworkable(id: &str) -> UnprocessableDocument {
        UnprocessableDocument {
            collection: Collection::Subscriptions,
            id: id.to_owned(),
            reason: "it is wrong".to_owned(),
        }
    }

    fn findings(ids: &[&str]) -> Findings {
        Findings { unworkable: ids.iter().map(|id| unworkable(id)).collect(), failed: vec![unworkable("busy")] }
    }

    #[test]
    fn searches_replace_only_their_own_findings() {
        let (first, second) = (Search::Ends(EndKind::Natural), Search::Faults(Fault::ExpiryText));
        let mut reports = Reports::new(&[Collection::Subscriptions]);
        reports.succeeded(first, findings(&["a", "b"]));
        reports.succeeded(second, findings(&["b", "c"]));
        assert_eq!(reports.unworkable.len(), 3, "b counts once; failed documents do not count");
        reports.failed(second, &StoreError::TimedOut);
        reports.succeeded(first, findings(&["a"]));
        assert_eq!(reports.unworkable.len(), 2, "c is still known");
        reports.succeeded(second, findings(&["b", "c"]));
        assert_eq!(reports.unworkable.len(), 3);
        assert!(!reports.has_failed_search());
        reports.succeeded(second, Findings::default());
        assert_eq!(reports.unworkable.len(), 1);
        assert!(reports.failed[&second].is_empty());
    }

    #[test]
    fn corrupt_documents_are_not_reported_as_passing_failures() {
        let check = |processed| {
            let mut findings = Findings::default();
            let outcome = findings.check(Collection::Subscriptions, "sub", processed);
            (findings.unworkable.len(), findings.failed.len(), outcome)
        };
        assert_eq!(check(Processed::Decided(TaskOutcome::Corrupt("it is wrong".to_owned()))), (1, 0, None));
        assert_eq!(check(Processed::Failed("other writers kept changing it".to_owned())), (0, 1, None));
        assert_eq!(check(Processed::Decided(TaskOutcome::Applied)), (0, 0, Some(TaskOutcome::Applied)));
    }
}
