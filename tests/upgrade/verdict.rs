//! What arrived, compared with what had to arrive.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::time::Duration;

use bson::{Document, doc};
use futures_util::TryStreamExt;
use serde_json::Value;

use crate::fleet::{Fleet, Release};
use crate::load::Sent;
use offramp_testkit::eventually_within;
use offramp_testkit::recording::{list, waiting};
use offramp_testkit::test_bed::{Events, LANES, TestBed};

/// How long the last commands may take: two retry queues, and the pause after a deferral.
const QUIET_WITHIN: Duration = Duration::from_secs(300);
/// How many examples of a fault to print.
const EXAMPLES_MAX: usize = 20;

/// Waits until no message, scheduled end, email or event waits.
pub async fn quiet(bed: &TestBed) {
    eventually_within(QUIET_WITHIN, "empty queues and outboxes", || async {
        for queue in LANES.into_iter().chain(["retry.5s", "retry.30s", "retry.2m"]) {
            if waiting(bed, queue).await > 0 {
                return None;
            }
        }
        let ends = doc! { "_id": { "$regex": "^end-" }, "status": { "$ne": "cancelled" } };
        if bed.collection("subscriptions").count_documents(ends).await.unwrap() > 0 {
            return None;
        }
        for collection in ["subscriptions", "accounts", "organizations"] {
            let filter = doc! { "outbox.0": { "$exists": true } };
            if bed.collection(collection).count_documents(filter).await.unwrap() > 0 {
                return None;
            }
        }
        Some(())
    })
    .await;
}

/// The result of a trial.
pub struct Verdict {
    commands: usize,
    ends: usize,
    lost: Vec<String>,
    repeated: Vec<String>,
    unexpected: Vec<String>,
    emails: usize,
    events: usize,
    settled: BTreeMap<Release, u64>,
    replacements: Vec<(Duration, Duration)>,
}

impl Verdict {
    pub async fn of(bed: &TestBed, events: &Events, fleet: &Fleet, sent: &[Sent]) -> Self {
        let emails = fleet.emails();
        let events = events.take(bed).await;
        let mut verdict = Self {
            commands: sent.iter().filter(|sent| sent.ends.is_none()).count(),
            ends: sent.iter().filter(|sent| sent.ends.is_some()).count(),
            lost: vec![],
            repeated: vec![],
            unexpected: vec![],
            emails: emails.len(),
            events: events.len(),
            settled: fleet.settled.clone(),
            replacements: fleet.replacements.clone(),
        };

        let mut emails_of: HashMap<&str, Vec<&str>> = HashMap::new();
        let mut message_ids: HashMap<&str, usize> = HashMap::new();
        for email in &emails {
            emails_of.entry(&email.command).or_default().push(&email.template);
            *message_ids.entry(&email.message_id).or_default() += 1;
        }
        let mut events_of: HashMap<&str, Vec<&str>> = HashMap::new();
        let mut event_ids: HashMap<&str, usize> = HashMap::new();
        for event in &events {
            let field = |name: &str| event[name].as_str().unwrap_or_default();
            // A scheduled end has no command.
            let cause = if event["causationid"] == Value::Null { field("subject") } else { field("causationid") };
            events_of.entry(cause).or_default().push(field("type"));
            *event_ids.entry(field("id")).or_default() += 1;
        }
        let twice = |ids: HashMap<&str, usize>, what: &str| -> Vec<String> {
            let twice = ids.into_iter().filter(|(_, times)| *times > 1);
            twice.map(|(id, times)| format!("{what} {id} arrived {times} times")).collect()
        };
        verdict.repeated.extend(twice(message_ids, "the email"));
        verdict.repeated.extend(twice(event_ids, "the event"));
        for sent in sent {
            let found = emails_of.remove(sent.id.as_str()).unwrap_or_default();
            verdict.compare(&format!("{}: emails", sent.id), &sent.emails, found);
            let mut found = events_of.remove(sent.id.as_str()).unwrap_or_default();
            if let Some(at) = sent.new_event.and_then(|event| found.iter().position(|found| *found == event)) {
                found.remove(at);
            }
            verdict.compare(&format!("{}: events", sent.id), &sent.events, found);
        }
        let unknown = emails_of.keys().map(|id| format!("emails of {id:?}"));
        verdict.unexpected.extend(unknown.chain(events_of.keys().map(|id| format!("events of {id:?}"))));
        verdict.documents(bed, sent).await;
        let dead = waiting(bed, "dead-letters").await;
        verdict.unexpected.extend((dead > 0).then(|| format!("{dead} dead letters")));
        verdict
    }

    fn compare(&mut self, what: &str, expected: &[&str], mut found: Vec<&str>) {
        for one in expected {
            match found.iter().position(|found| found == one) {
                Some(at) => drop(found.remove(at)),
                None => self.lost.push(format!("{what}: no {one}")),
            }
        }
        for one in found {
            if expected.contains(&one) {
                self.repeated.push(format!("{what}: one {one} too many"));
            } else {
                self.unexpected.push(format!("{what}: {one}"));
            }
        }
    }

    /// Every command is applied once, and every email recorded as sent.
    async fn documents(&mut self, bed: &TestBed, sent: &[Sent]) {
        for collection in ["subscriptions", "accounts"] {
            let projection = doc! { "applied": 1, "notifications": 1 };
            let found = bed.collection(collection).find(doc! {}).projection(projection).await.unwrap();
            let found: Vec<Document> = found.try_collect().await.unwrap();
            let found: HashMap<&str, &Document> = found.iter().map(|it| (it.get_str("_id").unwrap(), it)).collect();
            let commands = sent.iter().filter_map(|sent| {
                let (of, document) = sent.applied_by.as_ref()?;
                (*of == collection).then_some((sent, document.as_str()))
            });
            for (sent, document) in commands {
                let Some(found) = found.get(document) else {
                    self.lost.push(format!("{collection} {document}"));
                    continue;
                };
                let applied = list(found, "applied");
                match applied.iter().filter(|it| it.get_str("id").is_ok_and(|id| id == sent.id)).count() {
                    0 => self.lost.push(format!("{document}: {} is not applied", sent.id)),
                    1 => {}
                    times => self.repeated.push(format!("{document}: {} is applied {times} times", sent.id)),
                }
            }
            for (id, document) in found {
                let unsent = list(document, "notifications").iter().filter(|it| !it.contains_key("sent_at")).count();
                self.unexpected
                    .extend((unsent > 0).then(|| format!("{collection} {id}: {unsent} emails not recorded as sent")));
            }
        }
    }

    /// Whether nothing is lost, repeated or unexpected, and both releases took part.
    pub fn is_good(&self) -> bool {
        let took_part = |release| self.settled.get(&release).is_some_and(|settled| *settled > 0);
        self.lost.is_empty()
            && self.repeated.is_empty()
            && self.unexpected.is_empty()
            && took_part(Release::Previous)
            && took_part(Release::This)
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, examples) in [("lost", &self.lost), ("repeated", &self.repeated), ("unexpected", &self.unexpected)] {
            for example in examples.iter().take(EXAMPLES_MAX) {
                writeln!(f, "{name}: {example}")?;
            }
        }
        let settled = |release| self.settled.get(&release).copied().unwrap_or(0);
        writeln!(f, "{:<42}{:>7}", "commands", self.commands)?;
        writeln!(f, "{:<42}{:>7}", "messages processed by the previous release", settled(Release::Previous))?;
        writeln!(f, "{:<42}{:>7}", "messages processed by this release", settled(Release::This))?;
        writeln!(f, "{:<42}{:>7}", "scheduled ends", self.ends)?;
        writeln!(f, "{:<42}{:>7}", "emails", self.emails)?;
        writeln!(f, "{:<42}{:>7}", "events", self.events)?;
        writeln!(f, "{:<42}{:>7}", "lost", self.lost.len())?;
        writeln!(f, "{:<42}{:>7}", "repeated", self.repeated.len())?;
        writeln!(f, "{:<42}{:>7}", "unexpected", self.unexpected.len())?;
        let longest = |of: fn(&(Duration, Duration)) -> Duration| {
            self.replacements.iter().map(of).max().unwrap_or_default().as_secs_f64()
        };
        writeln!(f, "{:<42}{:>7}", "workers replaced", self.replacements.len())?;
        writeln!(f, "{:<42}{:>5.1} s", "  longest stop", longest(|(stopped, _)| *stopped))?;
        writeln!(f, "{:<42}{:>5.1} s", "  longest until the successor was ready", longest(|(_, ready)| *ready))?;
        write!(f, "{}", if self.is_good() { "good" } else { "NOT GOOD" })
    }
}
