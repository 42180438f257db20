//! Dead letters, grouped by reason and error.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};
use std::io::{Write, stdout};

use chrono::{DateTime, Utc};
use offramp::amqp::{DeadLetter, Topology};
use offramp::clock;
use serde_json::json;
use uuid::Uuid;

use super::fields::short_queue;
use crate::cli::terminal::{Table, age, rfc3339};

/// The largest number of groups in a table.
const GROUPS_SHOWN_MAX: usize = 50;

#[derive(Default)]
pub struct Groups {
    /// The error is without ids and numbers.
    by_reason_and_error: BTreeMap<(String, String), Group>,
    /// The number of selected dead letters per id. More than 1 only for identical ones.
    pub ids: HashMap<Uuid, u64>,
    pub selected: u64,
    /// The number of selected ones that name no work queue of this prefix.
    pub unroutable: u64,
    /// The number of dead letters that are not selected.
    pub others: u64,
}

struct Group {
    count: u64,
    oldest: Option<DateTime<Utc>>,
    newest: Option<DateTime<Utc>>,
    queues: BTreeMap<String, u64>,
    types: BTreeMap<String, u64>,
    /// The handle of one of them.
    example: String,
}

impl Groups {
    pub fn add(&mut self, letter: &DeadLetter, is_selected: bool) {
        if !is_selected {
            self.others += 1;
            return;
        }
        self.selected += 1;
        self.unroutable += u64::from(letter.origin.is_none());
        *self.ids.entry(letter.id).or_default() += 1;
        let key = (letter.reason.clone(), letter.error_pattern.clone());
        let group = self.by_reason_and_error.entry(key).or_insert_with(|| Group {
            count: 0,
            oldest: letter.died_at,
            newest: letter.died_at,
            queues: BTreeMap::new(),
            types: BTreeMap::new(),
            example: letter.handle.clone(),
        });
        group.count += 1;
        if let Some(at) = letter.died_at {
            group.oldest = Some(group.oldest.map_or(at, |oldest| oldest.min(at)));
            group.newest = Some(group.newest.map_or(at, |newest| newest.max(at)));
        }
        *group.queues.entry(letter.queue.clone().unwrap_or_else(|| "?".to_owned())).or_default() += 1;
        *group.types.entry(letter.kind.clone().unwrap_or_else(|| "?".to_owned())).or_default() += 1;
    }

    /// Prints a table, the largest group first.
    pub fn print(&self, topology: &Topology) -> std::io::Result<()> {
        let now = clock::now();
        let mut rows = Table::new(&["Count", "Reason and error", "From", "Oldest", "Newest", "Example"]);
        let groups = self.sorted();
        for ((reason, error), group) in groups.iter().take(GROUPS_SHOWN_MAX) {
            let queues: Vec<&str> = group.queues.keys().map(|queue| short_queue(queue, topology)).collect();
            rows.add_row([
                group.count.to_string(),
                format!("{reason}\n{error}"),
                queues.join("\n"),
                group.oldest.map(|at| age(at, now)).unwrap_or_default(),
                group.newest.map(|at| age(at, now)).unwrap_or_default(),
                group.example.clone(),
            ]);
        }
        let mut out = stdout().lock();
        writeln!(out, "{rows}")?;
        if groups.len() > GROUPS_SHOWN_MAX {
            writeln!(out, "… and {} more groups (`list --json` prints all)", groups.len() - GROUPS_SHOWN_MAX)?;
        }
        Ok(())
    }

    pub fn print_json(&self) -> std::io::Result<()> {
        let mut out = stdout().lock();
        for ((reason, error), group) in self.sorted() {
            let line = json!({
                "reason": reason, "error": error, "count": group.count,
                "oldest": group.oldest.map(rfc3339), "newest": group.newest.map(rfc3339),
                "queues": group.queues, "types": group.types, "example": group.example,
            });
            writeln!(out, "{line}")?;
        }
        Ok(())
    }

    fn sorted(&self) -> Vec<(&(String, String), &Group)> {
        let mut groups: Vec<_> = self.by_reason_and_error.iter().collect();
        groups.sort_by_key(|(_, group)| Reverse(group.count));
        groups
    }
}
