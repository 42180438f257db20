//! The comparison of every document, email and event with the plan, in the terms of RabbitMQ's Jepsen tests.

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bson::{Bson, Document, RawDocumentBuf, doc};
use futures_util::TryStreamExt;
use offramp::store::documents::{AccountDocument, NotificationDocument, Stored, SubscriptionDocument, read};
use offramp::store::outbox::entry::Content;
use offramp_domain::account::Account;
use offramp_domain::command::Command;
use offramp_domain::command_ref::{AppliedCommand, CommandKey};
use offramp_domain::subscription::SubscriptionRecord;
use offramp_domain::subscription::{Status, Subscription};
use offramp_domain::unit_of_work::{LoadedDocument, TrackedAccount, TrackedSubscription};
use serde_json::{Value, json};

use crate::faults::{Chaos, FaultStatistics};
use crate::fleet::Fleet;
use crate::history::History;
use crate::observer::Observer;
use crate::plan::Plan;
use crate::upstream::Upstream;
use offramp_testkit::test_bed::TestBed;

/// Whether a late recovery fails the run. A debug build on a busy machine is slow for other reasons, so there it is only reported.
const PUNCTUALITY_COUNTS: bool = !cfg!(debug_assertions);
/// How long an email may be in transit when its worker is killed.
const ON_ITS_WAY: Duration = Duration::from_secs(1);
/// The number of printed examples of each problem.
const EXAMPLES_MAX: usize = 10;

/// A finished run.
pub struct Run {
    pub seed: u64,
    pub seconds: u64,
    pub plan: Arc<Plan>,
    pub history: Arc<History>,
    pub observer: Observer,
    pub upstream: Arc<Upstream>,
    pub fleet: Arc<Fleet>,
    pub chaos: Arc<Chaos>,
}

/// The result of the comparison.
#[derive(Default)]
pub struct Verdict {
    seed: u64,
    seconds: u64,
    commands: usize,
    twice: usize,
    in_doubt: usize,
    recovered: usize,
    /// Commands with a missing effect.
    lost: BTreeSet<usize>,
    duplicated: Vec<String>,
    unexpected: Vec<String>,
    documents: usize,
    emails: Repeats,
    /// For each email sent twice because its worker was killed: the time from the first delivery to the kill.
    emails_after_kill: Vec<Duration>,
    emails_after_drop: usize,
    events: Repeats,
    dead_letters: Repeats,
    kills: usize,
    faults: Vec<(&'static str, FaultStatistics)>,
    /// The missing effects.
    missing: Vec<String>,
}

/// The number of effects, and of those that arrived more than once.
#[derive(Default)]
struct Repeats {
    all: usize,
    more_than_once: usize,
}

impl Run {
    pub async fn judge(self, bed: &TestBed) -> Verdict {
        let tally = &self.upstream.tally;
        let count = |number: &std::sync::atomic::AtomicUsize| number.load(Ordering::Relaxed);
        let mut verdict = Verdict {
            seed: self.seed,
            seconds: self.seconds,
            commands: count(&tally.confirmed) + count(&tally.recovered),
            twice: count(&tally.twice),
            in_doubt: count(&tally.in_doubt),
            recovered: count(&tally.recovered),
            unexpected: self.observer.unexpected(),
            kills: self.fleet.kills.lock().unwrap().len(),
            faults: self.chaos.statistics.lock().unwrap().iter().map(|(name, account)| (*name, *account)).collect(),
            ..Verdict::default()
        };
        verdict.unexpected.extend(self.fleet.ended.lock().unwrap().iter().cloned());
        let published = verdict.commands;
        let planned = self.plan.commands.len() - self.upstream.skipped().len();
        if published < planned {
            let never = planned - published;
            verdict.unexpected.push(format!(
                "{never} commands were never published, because the effects that they wait for did not arrive"
            ));
        }
        self.judge_effects(&mut verdict);
        self.judge_documents(&mut verdict, bed).await;
        self.judge_dead_letters(&mut verdict, bed).await;
        verdict
    }

    fn judge_effects(&self, verdict: &mut Verdict) {
        let kills = self.fleet.kills.lock().unwrap();
        let skipped = self.upstream.skipped();
        for (id, effect) in self.plan.effects.iter().filter(|(_, effect)| !skipped.contains(&effect.command)) {
            let arrivals = self.observer.arrivals(*id);
            if arrivals.is_empty() {
                verdict.lose(effect.command, format!("{id}: {:?}", effect.content));
                continue;
            }
            let repeats = match effect.content {
                Content::Mail(_) => &mut verdict.emails,
                Content::Event(_) => &mut verdict.events,
            };
            repeats.all += 1;
            repeats.more_than_once += usize::from(arrivals.len() > 1);
            for pair in arrivals.windows(2) {
                let Some((server, answered)) = pair[0].mail else { continue };
                let killed = kills
                    .iter()
                    .filter(|(number, at)| *number == server && *at + ON_ITS_WAY >= pair[0].at && *at <= pair[1].at)
                    .map(|(_, at)| at.saturating_duration_since(pair[0].at))
                    .min();
                match killed {
                    _ if !answered => verdict.emails_after_drop += 1,
                    Some(after) if after <= self.fleet.marked_within() || self.chaos.database_was_unavailable(pair[0].at, after) => {
                        verdict.emails_after_kill.push(after);
                    }
                    _ => verdict.duplicated.push(format!(
                        "email {id} was sent again after {:?} although its worker was not killed in between (killed after {killed:?})",
                        pair[1].at - pair[0].at
                    )),
                }
            }
        }
    }

    async fn judge_documents(&self, verdict: &mut Verdict, bed: &TestBed) {
        let mut ids = HashMap::new();
        for (index, planned) in self.plan.commands.iter().enumerate() {
            if let Ok(command) = Command::parse(&planned.body) {
                ids.insert(command.reference.key, index);
            }
        }
        let mut found = HashMap::new();
        for collection in ["subscriptions", "accounts"] {
            let documents: Vec<RawDocumentBuf> = bed
                .collection(collection)
                .clone_with_type::<RawDocumentBuf>()
                .find(doc! {})
                .await
                .unwrap()
                .try_collect()
                .await
                .unwrap();
            found.extend(documents.into_iter().map(|raw| ((collection, raw.get_str("_id").unwrap().to_owned()), raw)));
        }
        for (collection, document) in &self.plan.documents {
            let id = document.get_str("_id").unwrap();
            let Some(raw) = found.remove(&(*collection, id.to_owned())) else {
                if *collection != "organizations" {
                    verdict.unexpected.push(format!("{collection} {id} is missing"));
                }
                continue;
            };
            verdict.documents += 1;
            self.record_document(collection, id, &raw);
            let mut judge = Judge { verdict, ids: &ids, what: format!("{collection} {id}") };
            match *collection {
                "subscriptions" => match self.plan.unit_of_work.tracked_subscription(&id.try_into().unwrap()) {
                    Some(tracked) => judge.subscription(tracked, document, &raw),
                    None => judge.same(document, &Document::try_from(&*raw).unwrap(), "a corrupt document"),
                },
                _ => judge.account(
                    self.plan.unit_of_work.tracked_account(&id.try_into().unwrap()).unwrap(),
                    document,
                    &raw,
                ),
            }
        }
        for (collection, id) in found.keys() {
            verdict.unexpected.push(format!("{collection} {id} is new"));
        }
    }

    /// What a document remembers at the end.
    fn record_document(&self, collection: &str, id: &str, raw: &RawDocumentBuf) {
        let document = Document::try_from(&**raw).unwrap();
        let list = |name: &str| document.get_array(name).map(Vec::as_slice).unwrap_or_default().iter();
        let of = |entry: &Bson, name: &str| Some(entry.as_document()?.get_str(name).ok()?.to_owned());
        let sent = |entry: &&Bson| entry.as_document().is_some_and(|entry| entry.contains_key("sent_at"));
        let about = json!({
            "collection": collection,
            "document": id,
            "status": document.get_str("status").ok(),
            "applied": list("applied").filter_map(|entry| of(entry, "id")).collect::<Vec<_>>(),
            "sent": list("notifications").filter(sent).filter_map(|entry| of(entry, "id")).collect::<Vec<_>>(),
            "outbox": list("outbox").count(),
        });
        self.history.add("reader", "ok", "document", about);
    }

    /// Dead letters are published at least once: the worker may be killed after the confirm of the copy and before the ack.
    async fn judge_dead_letters(&self, verdict: &mut Verdict, bed: &TestBed) {
        let mut letters: HashMap<Vec<u8>, usize> = HashMap::new();
        while let Some((body, properties)) = bed.take("dead-letters").await {
            if !self.plan.commands.iter().any(|planned| planned.dies && planned.body == body) {
                let body = String::from_utf8_lossy(&body);
                verdict.unexpected.push(format!("an unexpected dead letter: {body} {:?}", properties.headers()));
            }
            let command = serde_json::from_slice::<Value>(&body).unwrap_or_default();
            self.history.add("reader", "ok", "dead-letter", json!({ "command": command["id"] }));
            *letters.entry(body).or_default() += 1;
        }
        for (index, planned) in self.plan.commands.iter().enumerate().filter(|(_, planned)| planned.dies) {
            match letters.get(&planned.body) {
                None => verdict.lose(index, "no dead letter".to_owned()),
                Some(letters) => {
                    verdict.dead_letters.all += 1;
                    verdict.dead_letters.more_than_once += usize::from(*letters > 1 + usize::from(planned.twice));
                }
            }
        }
    }
}

/// The readable entries of a list.
fn readable<T: Clone>(list: &[Stored<T>]) -> Vec<T> {
    list.iter().cloned().filter_map(Stored::ok).collect()
}

/// Judges one document.
struct Judge<'a> {
    verdict: &'a mut Verdict,
    ids: &'a HashMap<CommandKey, usize>,
    what: String,
}

impl Judge<'_> {
    fn subscription(&mut self, tracked: &TrackedSubscription, before: &Document, raw: &RawDocumentBuf) {
        let expected = &tracked.after;
        let document: SubscriptionDocument = bson::deserialize_from_slice(raw.as_bytes()).unwrap();
        let (history, failures) = (readable(&document.history), readable(&document.payment_failures));
        self.notifications(
            &readable(&document.notifications),
            tracked
                .effects
                .iter()
                .flat_map(|effects| effects.notifications.iter().map(|mail| effects.ids.of_email(mail).to_string())),
        );
        self.outbox(document.outbox.len());
        let LoadedDocument::Read(mut found) = read::<SubscriptionDocument, Subscription>("subscriptions", raw) else {
            return self.unexpected("it is unreadable");
        };
        self.applied(&expected.applied, &found.applied);

        // The time of the decision and the number of writes depend on the worker.
        found.version = expected.version;
        found.applied.clone_from(&expected.applied);
        if let (Some(found), Some(expected)) = (&mut found.details, &expected.details) {
            if let (Some(found), Some(expected)) = (&mut found.cancellation, &expected.cancellation) {
                found.scheduled_at = expected.scheduled_at;
            }
            if let (Ok(Some(expected)), Ok(Some(found))) = (&expected.request, &mut found.request)
                && let (Some(expected), Some(found)) = (&expected.closed, &mut found.closed)
            {
                found.decided_at = expected.decided_at;
            }
        }
        self.same(expected, &found, "its state");

        let told = |entry: &offramp::store::documents::HistoryDocument| {
            format!("{:?} {:?} {:?} {:?} {:?}", entry.command, entry.actor, entry.from, entry.to, entry.ends_on)
        };
        let expected_history: Vec<String> =
            tracked.records.iter().filter_map(SubscriptionRecord::history).map(|entry| told(&entry.into())).collect();
        self.same_list(&expected_history, &history.iter().map(told).collect::<Vec<_>>(), "its history");

        let told = |entry: &offramp::store::documents::PaymentFailureDocument| {
            format!("{:?} {:?} {:?} {:?}", entry.invoice_id, entry.amount, entry.attempt, entry.next_attempt_on)
        };
        let mut expected_failures: Vec<String> = tracked
            .records
            .iter()
            .filter_map(SubscriptionRecord::payment_failure)
            .map(|entry| told(&entry.into()))
            .collect();
        let mut found_failures: Vec<String> = failures.iter().map(told).collect();
        // Payment failures commute.
        expected_failures.sort();
        found_failures.sort();
        self.same_list(&expected_failures, &found_failures, "its payment failures");
        self.foreign_field(before, raw, expected.status == Status::Removed);
    }

    fn account(&mut self, tracked: &TrackedAccount, before: &Document, raw: &RawDocumentBuf) {
        let expected = &tracked.after;
        let document: AccountDocument = bson::deserialize_from_slice(raw.as_bytes()).unwrap();
        self.notifications(
            &readable(&document.notifications),
            tracked
                .effects
                .iter()
                .flat_map(|effects| effects.notifications.iter().map(|mail| effects.ids.of_email(mail).to_string())),
        );
        self.outbox(document.outbox.len());
        let LoadedDocument::Read(mut found) = read::<AccountDocument, Account>("accounts", raw) else {
            return self.unexpected("it is unreadable");
        };
        self.applied(&expected.applied, &found.applied);
        let notices = |account: &Account| {
            let notices = account.card_notices.iter().flatten();
            let mut notices: Vec<String> =
                notices.map(|notice| format!("{} {} {}", notice.card_id, notice.expires, notice.kind)).collect();
            notices.sort();
            notices
        };
        self.same_list(&notices(expected), &notices(&found), "its card notices");
        found.version = expected.version;
        found.applied.clone_from(&expected.applied);
        found.card_notices.clone_from(&expected.card_notices);
        self.same(expected, &found, "its state");
        self.foreign_field(before, raw, false);
    }

    /// Checks that every command is applied once.
    fn applied(&mut self, expected: &[AppliedCommand], found: &[AppliedCommand]) {
        let count = |list: &[AppliedCommand], key: &CommandKey| list.iter().filter(|other| other.key == *key).count();
        for AppliedCommand { key, .. } in expected {
            match count(found, key) {
                0 => self.verdict.lose(self.ids[key], format!("{}: {key:?} is not applied", self.what)),
                1 => {}
                times => self.verdict.duplicated.push(format!("{}: {key:?} is applied {times} times", self.what)),
            }
        }
        for AppliedCommand { key, .. } in found.iter().filter(|other| count(expected, &other.key) == 0) {
            self.unexpected(&format!("{key:?} is applied"));
        }
    }

    /// Checks that every email is recorded once, as sent.
    fn notifications(&mut self, records: &[NotificationDocument], expected: impl Iterator<Item = String>) {
        let mut expected: Vec<String> = expected.collect();
        let sent = records.iter().filter(|record| record.at.is_some() && record.sent_at.is_some());
        let mut found: Vec<String> = sent.map(|record| record.id.clone()).collect();
        expected.sort();
        found.sort();
        self.same_list(&expected, &found, "its list of sent emails");
    }

    fn outbox(&mut self, waiting: usize) {
        if waiting > 0 {
            self.unexpected(&format!("{waiting} emails and events still wait in its outbox"));
        }
    }

    /// Checks that a field of another system is unchanged, or removed from a tombstone.
    fn foreign_field(&mut self, before: &Document, raw: &RawDocumentBuf, removed: bool) {
        let after = Document::try_from(&**raw).unwrap();
        let expected = if removed { None } else { before.get("crm") };
        self.same(&expected, &after.get("crm"), "another system's field");
    }

    fn same<T: PartialEq + fmt::Debug>(&mut self, expected: &T, found: &T, what: &str) {
        if expected != found {
            self.unexpected(&format!("{what} is {found:?} instead of {expected:?}"));
        }
    }

    /// Compares lists. A repeated entry counts as duplicated.
    fn same_list(&mut self, expected: &[String], found: &[String], what: &str) {
        let mut rest = found.to_owned();
        let mut missing = false;
        for entry in expected {
            match rest.iter().position(|other| other == entry) {
                Some(at) => drop(rest.remove(at)),
                None => missing = true,
            }
        }
        match rest.iter().find(|entry| expected.contains(entry)) {
            Some(entry) => self.verdict.duplicated.push(format!("{}, {what}: twice {entry}", self.what)),
            None if missing || !rest.is_empty() || found != expected => self.same(&expected, &found, what),
            None => {}
        }
    }

    fn unexpected(&mut self, why: &str) {
        self.verdict.unexpected.push(format!("{}: {why}", self.what));
    }
}

impl Verdict {
    /// Nothing is lost, duplicated or unexpected, every recovery could be measured, and all were in time.
    pub fn is_good(&self) -> bool {
        let nothing_is_wrong = self.lost.is_empty() && self.duplicated.is_empty() && self.unexpected.is_empty();
        let all_measured = self.faults.iter().all(|(_, account)| account.not_served == 0);
        nothing_is_wrong && all_measured && (self.late() == 0 || !PUNCTUALITY_COUNTS)
    }

    /// The number of faults with a late recovery.
    fn late(&self) -> u32 {
        self.faults.iter().map(|(_, account)| account.late).sum()
    }

    fn lose(&mut self, command: usize, what: String) {
        self.lost.insert(command);
        self.missing.push(what);
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, examples) in
            [("lost", &self.missing), ("duplicated", &self.duplicated), ("unexpected", &self.unexpected)]
        {
            for example in examples.iter().take(EXAMPLES_MAX) {
                writeln!(f, "{name}: {}", example.chars().take(1_500).collect::<String>())?;
            }
        }
        let mut row = |name: &str, number: usize, words: &str| {
            writeln!(f, "{}", format!("{name:<30}{number:>8}  {words}").trim_end())
        };
        row("commands", self.commands, &format!("confirmed; {} of them published twice", self.twice))?;
        row("  lost", self.lost.len(), "")?;
        row("  duplicated effects", self.duplicated.len(), "")?;
        row("  in doubt", self.in_doubt, "no confirm received")?;
        row("    recovered", self.recovered, "processed anyway")?;
        row("  unexpected", self.unexpected.len(), "")?;
        row("documents compared", self.documents, "")?;
        row("emails", self.emails.all, "")?;
        let mut windows = self.emails_after_kill.clone();
        windows.sort();
        let at = |place: usize| windows.get(place).copied().unwrap_or_default().as_millis();
        let window = format!(
            "worker killed before the mark; median {} ms, maximum {} ms after the first time",
            at(windows.len() / 2),
            at(windows.len().saturating_sub(1))
        );
        row("  sent more than once", self.emails.more_than_once, "with the same Message-ID")?;
        row("    ", self.emails_after_kill.len(), &window)?;
        row("    ", self.emails_after_drop, "connection dropped after DATA")?;
        row("events", self.events.all, "")?;
        row("  published more than once", self.events.more_than_once, "with the same id")?;
        row("dead letters", self.dead_letters.all, "")?;
        row("  more than once", self.dead_letters.more_than_once, "")?;
        row("workers killed", self.kills, "")?;
        // Two decimals, in integer arithmetic.
        let hundredths = self.emails_after_kill.len() * 100 / self.kills.max(1);
        let each = format!("{}.{:02}", hundredths / 100, hundredths % 100);
        writeln!(f, "{:<30}{each:>8}  duplicate emails per killed worker", "")?;
        writeln!(
            f,
            "{:<49}{:>6}  longest recovery, from when the first server of several worked, and of all workers",
            "fault", "times"
        )?;
        for (name, account) in &self.faults {
            let figures = [account.longest_recovery, account.longest_since_first, account.longest_everywhere];
            let [longest, since_first, everywhere] = figures.map(|longest| longest.as_secs_f64());
            write!(f, "{name:<49}{:>6}  {longest:>5.1} s  {since_first:>5.1} s  {everywhere:>5.1} s", account.times)?;
            if account.not_everywhere > 0 {
                write!(f, "  {} times longer", account.not_everywhere)?;
            }
            if account.late > 0 {
                write!(f, "  late {} times", account.late)?;
            }
            if account.not_served > 0 {
                write!(f, "  {} times not served before its end", account.not_served)?;
            }
            writeln!(f)?;
        }
        if self.late() > 0 {
            let counts = if PUNCTUALITY_COUNTS { "" } else { " (not a failure in a debug build)" };
            writeln!(f, "late: lanes took longer to resume after a fault than they may{counts}")?;
        }
        write!(f, "seed {}, {} s: {}", self.seed, self.seconds, if self.is_good() { "good" } else { "NOT GOOD" })
    }
}
