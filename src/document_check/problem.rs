//! Problems of documents, and their grouping.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::store::Collection;

/// How bad a problem is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// A decision or an email that needs it fails.
    Error,
    /// It works, and is probably not meant.
    Warning,
}

/// A problem of one document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    pub severity: Severity,
    /// `unreadable`, `missing_account` …
    pub kind: &'static str,
    /// The field, without the places in lists: `cards.expires`.
    pub field: String,
    /// A sentence about this document.
    pub sentence: String,
}

impl Problem {
    pub(super) fn error(kind: &'static str, field: impl Into<String>, sentence: impl Into<String>) -> Self {
        Self { severity: Severity::Error, kind, field: field.into(), sentence: sentence.into() }
    }

    pub(super) fn warning(kind: &'static str, field: impl Into<String>, sentence: impl Into<String>) -> Self {
        Self { severity: Severity::Warning, ..Self::error(kind, field, sentence) }
    }
}

/// All documents with the same problem.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ProblemGroup {
    pub severity: Severity,
    pub collection: &'static str,
    pub kind: &'static str,
    pub field: String,
    /// How many documents have it.
    pub count: u64,
    /// The first of them.
    pub examples: Vec<Example>,
}

/// A document with a problem.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Example {
    pub id: String,
    pub problem: String,
}

/// Groups of problems: errors first.
#[derive(Clone, Debug)]
pub struct Report {
    groups: BTreeMap<(Severity, &'static str, &'static str, String), ProblemGroup>,
    documents: u64,
    examples_max: usize,
}

impl Report {
    pub(super) fn new(examples_max: usize) -> Self {
        Self { groups: BTreeMap::new(), documents: 0, examples_max }
    }

    pub(super) fn count(&mut self, documents: u64) {
        self.documents += documents;
    }

    pub(super) fn add(&mut self, collection: Collection, id: &str, problem: Problem) {
        let Problem { severity, kind, field, sentence } = problem;
        let collection = collection.as_str();
        let key = (severity, collection, kind, field.clone());
        let empty = || ProblemGroup { severity, collection, kind, field, count: 0, examples: Vec::new() };
        let group = self.groups.entry(key).or_insert_with(empty);
        group.count += 1;
        if group.examples.len() < self.examples_max {
            group.examples.push(Example { id: id.to_owned(), problem: sentence });
        }
    }

    /// The groups, errors first.
    pub fn groups(&self) -> impl Iterator<Item = &ProblemGroup> {
        self.groups.values()
    }

    /// How many documents were read.
    #[must_use]
    pub fn documents(&self) -> u64 {
        self.documents
    }

    /// How many problems of this severity were found.
    #[must_use]
    pub fn total(&self, severity: Severity) -> u64 {
        self.groups().filter(|group| group.severity == severity).map(|group| group.count).sum()
    }
}
