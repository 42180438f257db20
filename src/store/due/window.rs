//! The part of an index of ends that a sweep works on at a time.

use std::collections::HashSet;

use bson::RawDocument;

use offramp_domain::ids::SubscriptionId;

use super::unworkable::{UnprocessableDocument, kind, shown_id};
use crate::store::collection::Collection;

/// Ids of due subscriptions.
#[derive(Debug, Default)]
pub struct DueWindow {
    /// Some of them, from the beginning of the index, without those that are passed over; all, if there are few.
    pub due: Vec<SubscriptionId>,
    /// Those before the first of them that have no id that a subscription can have.
    pub unworkable: Vec<UnprocessableDocument>,
}

/// What a sweep has tried already, and looks at no more.
///
/// At the beginning of the index, where a sweep has tried everything, it is a number of entries. So however many subscriptions
/// cannot be ended, only ids after that place are in memory, and those behind them in the index get their turn. Where others
/// change entries before that place, the number is wrong by as many: what is missed is found by the next sweep.
#[derive(Debug, Default)]
pub struct TriedSubscriptions {
    pub(super) first: u64,
    ids: HashSet<SubscriptionId>,
}

/// How many ids of due subscriptions are read at a time.
pub(super) const WINDOW_MAX: usize = 8_192;

/// How many ids of subscriptions that are passed over should be in memory: some windows.
const PASSED_OVER_IDS_MAX: usize = 2 * WINDOW_MAX;

impl DueWindow {
    /// Takes an entry of the index.
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
    /// Passes over a subscription from now on.
    pub fn add(&mut self, id: SubscriptionId) {
        self.ids.insert(id);
    }

    /// How many ids are in memory.
    #[must_use]
    pub fn ids_count(&self) -> usize {
        self.ids.len()
    }

    /// Whether there are so many that what comes first in a window should be tried first: these ids are then not needed any more.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.ids.len() >= PASSED_OVER_IDS_MAX
    }

    /// Moves the place by one entry.
    fn skip(&mut self, id: Option<&SubscriptionId>) {
        self.first += 1;
        if let Some(id) = id {
            self.ids.remove(id);
        }
    }
}
