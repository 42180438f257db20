//! The part of an index of ends that a sweep works on at a time.

use std::collections::HashSet;

use bson::RawDocument;

use offramp_domain::ids::SubscriptionId;

use super::unworkable::{UnprocessableDocument, kind, shown_id};
use crate::store::collection::Collection;

/// Ids of due subscriptions.
#[derive(Debug, Default)]
pub struct DueWindow {
    /// The first of them in the index, without those that this sweep has tried.
    pub due: Vec<SubscriptionId>,
    /// Documents before the first of them whose id is not a valid subscription id.
    pub unworkable: Vec<UnprocessableDocument>,
}

/// The subscriptions that a sweep has tried, and does not try again.
///
/// At the beginning of the index, where a sweep has tried every entry, it is only a number of entries; ids are kept for later entries
/// only. So memory stays bounded however many subscriptions cannot be ended, and those after them get their turn. If other writers
/// change entries before that position, the number is off by as many; the next sweep finds what this one missed.
#[derive(Debug, Default)]
pub struct TriedSubscriptions {
    pub(super) first: u64,
    ids: HashSet<SubscriptionId>,
}

/// The number of ids of due subscriptions read at a time.
pub(super) const WINDOW_MAX: usize = 8_192;

/// The number of ids of tried subscriptions in memory from which on they should be freed: two windows.
const PASSED_OVER_IDS_MAX: usize = 2 * WINDOW_MAX;

impl DueWindow {
    /// Adds an entry of the index.
    pub(super) fn add(&mut self, raw: &RawDocument, is_over: bool, passed: &mut TriedSubscriptions) {
        let is_first = self.due.is_empty();
        match raw.get_str("_id").ok().and_then(|id| SubscriptionId::try_from(id).ok()) {
            Some(id) if is_over && !passed.ids.contains(&id) => self.due.push(id),
            _ if !is_first => {}
            Some(id) => passed.skip(Some(&id)),
            None => {
                passed.skip(None);
                if self.unworkable.len() < WINDOW_MAX {
                    let what = kind(raw.get("_id").ok().flatten());
                    let reason = format!("_id is {what}, where text of 1 to 128 characters belongs");
                    let (collection, id) = (Collection::Subscriptions, shown_id(raw));
                    self.unworkable.push(UnprocessableDocument { collection, id, reason });
                }
            }
        }
    }
}

impl TriedSubscriptions {
    pub fn add(&mut self, id: SubscriptionId) {
        self.ids.insert(id);
    }

    /// The number of ids in memory.
    #[must_use]
    pub fn ids_count(&self) -> usize {
        self.ids.len()
    }

    /// Whether so many ids are in memory that the first subscriptions of a window should be tried first, which frees these ids.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.ids.len() >= PASSED_OVER_IDS_MAX
    }

    /// Moves the position by one entry.
    fn skip(&mut self, id: Option<&SubscriptionId>) {
        self.first += 1;
        if let Some(id) = id {
            self.ids.remove(id);
        }
    }
}
