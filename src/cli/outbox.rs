//! `offramp outbox`: lists emails and events that are not sent, and retries or drops those that were rejected permanently.

use std::io::{IsTerminal, Write, stdin, stdout};

use anyhow::bail;
use chrono::{DateTime, Utc};
use clap::{Args, Subcommand};
use offramp::clock;
use offramp::store::outbox::admin::{EntryState, EntrySummaries, EntrySummary};
use offramp::store::{Store, StoreError};
use serde_json::json;

use super::error::WrongConfiguration;
use super::settings::DatabaseArgs;
use super::terminal::{Table, age, confirm, count, printable, rfc3339};

/// List emails and events that are not sent; retry or drop rejected ones
#[derive(Args, Debug)]
#[command(after_help = "\
An email that the mail server rejects permanently, for example because its address does not exist, stays in its document, and is
not retried until you say so. Emails that wait because the mail server is unavailable or deferred them are retried automatically.

Examples:
  offramp outbox list                           rejected entries: recipient, error, age
  offramp outbox list --waiting                 waiting entries, and when each is due
  offramp outbox retry 0f6a2c9e                 retry one, by the beginning of its id
  offramp outbox retry --error \"relay\" --dry-run
  offramp outbox drop 0f6a2c9e                  delete one: it is never sent")]
pub struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    List(List),
    Retry(Retry),
    Drop(Discard),
}

/// List entries that were rejected permanently
#[derive(Args, Debug)]
struct List {
    /// List waiting entries instead, with attempts, last error and due time
    #[arg(long)]
    waiting: bool,

    /// Maximum number of entries in the table; JSON has all
    #[arg(long, value_name = "NUMBER", default_value_t = 100)]
    limit: usize,

    /// Print JSON, one object per line
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    filter: Filter,

    #[command(flatten)]
    database: DatabaseArgs,
}

/// Make rejected entries due again, so that a worker retries them within seconds
#[derive(Args, Debug)]
#[command(after_help = "\
An email is sent to its original address, unless --to-current-address is given: correct the address in the account or the organization
first. It is safe to run this beside workers, and to interrupt it: an entry is either still rejected or due.

Examples:
  offramp outbox retry 0f6a2c9e
  offramp outbox retry --to marie@old.example --to-current-address
  offramp outbox retry --to @example.org
  offramp outbox retry --all --dry-run")]
struct Retry {
    /// Send emails to the recipient's current address
    ///
    /// It is the address that the account or the organization has now. What the email says stays as it was decided
    #[arg(long)]
    to_current_address: bool,

    #[command(flatten)]
    chosen: Chosen,
}

/// Delete rejected entries permanently, after confirmation; they are never sent
#[derive(Args, Debug)]
#[command(after_help = "\
The entry is removed from its document; the record of an email in `notifications` says that it was dropped. Only entries that were
rejected when you were asked are dropped. Without a terminal to ask on, nothing is dropped unless --yes is given.

Examples:
  offramp outbox drop 0f6a2c9e
  offramp outbox drop --document sub-1003 --dry-run
  offramp outbox drop --to @closed.example --yes")]
struct Discard {
    /// Do not ask for confirmation
    #[arg(long, conflicts_with = "dry_run")]
    yes: bool,

    #[command(flatten)]
    chosen: Chosen,
}

/// Rejected entries to retry or drop.
#[derive(Args, Debug)]
struct Chosen {
    /// Show which entries would be changed, and change nothing
    #[arg(long)]
    dry_run: bool,

    #[command(flatten)]
    selection: Selection,

    #[command(flatten)]
    database: DatabaseArgs,
}

#[derive(Args, Debug)]
#[command(next_help_heading = "Selection")]
struct Selection {
    /// Select by the beginning of the id
    #[arg(value_name = "ENTRY")]
    entries: Vec<String>,

    #[command(flatten)]
    filter: Filter,

    /// Select all entries
    #[arg(long, conflicts_with_all = ["entries", "to", "error", "kind", "document"])]
    all: bool,
}

#[derive(Args, Debug)]
#[command(next_help_heading = "Selection")]
struct Filter {
    /// Select by a part of the recipient's address
    #[arg(long, value_name = "TEXT")]
    to: Option<String>,

    /// Select by a part of the error
    #[arg(long, value_name = "TEXT")]
    error: Option<String>,

    /// Select emails by their template, events by their type
    #[arg(long = "type", visible_alias = "template", value_name = "NAME")]
    kind: Option<String>,

    /// Select by the id of the document
    #[arg(long, value_name = "ID")]
    document: Option<String>,
}

/// The largest number of entries changed at once.
const BATCH_MAX: usize = 500;
/// The part of an id that a table shows, and the shortest beginning of an id that selects an entry, in characters.
const ID_SHOWN: usize = 13;
const ID_MIN: usize = 4;
/// The largest number of entries shown before the confirmation of a drop.
const SHOWN_MAX: usize = 100;

pub async fn run(arguments: Arguments) -> anyhow::Result<()> {
    match arguments.verb {
        Verb::List(list) => list.run().await,
        Verb::Retry(retry) => retry.run().await,
        Verb::Drop(discard) => discard.run().await,
    }
}

impl List {
    async fn run(self) -> anyhow::Result<()> {
        let store = self.database.open().await?;
        let condition = if self.waiting { EntryState::Pending } else { EntryState::Failed };
        let mut entries = store.outbox_entries(condition).await?;
        let mut shown = Rows::new(condition, self.limit);
        while let Some(of_document) = entries.next().await? {
            for entry in of_document.iter().filter(|entry| self.filter.matches(entry)) {
                if self.json {
                    writeln!(stdout().lock(), "{}", entry_json(entry))?;
                } else {
                    shown.add(entry);
                }
            }
        }
        if self.json {
            return Ok(());
        }
        shown.print()?;
        let mut out = stdout().lock();
        match (condition, shown.total) {
            (EntryState::Failed, 0) => {
                writeln!(out, "nothing was rejected (`offramp outbox list --waiting` lists waiting entries)")?;
            }
            (EntryState::Failed, total) => {
                let them = count(total, "entry");
                writeln!(out, "{them} rejected permanently; `offramp outbox retry` retries them, `drop` deletes them")?;
            }
            (EntryState::Pending, 0) => writeln!(out, "nothing waits")?,
            (EntryState::Pending, total) => {
                let them = count(total, "entry");
                writeln!(out, "{them} waiting; a worker sends them when they are due")?;
            }
        }
        Ok(())
    }
}

impl Retry {
    async fn run(self) -> anyhow::Result<()> {
        let store = self.chosen.open().await?;
        if self.to_current_address {
            return self.run_to_current_addresses(&store).await;
        }
        if self.chosen.dry_run {
            return self.chosen.show(&store, "retried").await;
        }
        let (meant, made_due) =
            self.chosen.change(&store, |_| true, async |batch| store.retry(&batch, clock::now()).await).await?;
        if meant > 0 {
            writeln!(stdout().lock(), "{made_due} due now; a worker retries them within seconds")?;
            others_were_faster(meant - made_due)?;
        }
        Ok(())
    }
}

impl Retry {
    /// Retries emails at their recipients' current addresses, and prints each with both.
    async fn run_to_current_addresses(&self, store: &Store) -> anyhow::Result<()> {
        let Chosen { dry_run, selection, .. } = &self.chosen;
        let (mut retried, mut no_longer_rejected, mut without, mut found) = (0, 0, 0, 0);
        let mut rejected = store.outbox_entries(EntryState::Failed).await?;
        while let Some(batch) = selection.next_batch(&mut rejected).await? {
            found += batch.len() as u64;
            let addresses = store.current_addresses(&batch).await?;
            let mut readdressed = Vec::new();
            for (entry, address) in batch.into_iter().zip(addresses) {
                let id: String = entry.entry_id.chars().take(ID_SHOWN).collect();
                let old = entry.recipient.as_deref().unwrap_or("nobody");
                let line = match &address {
                    Some(new) => format!("{id}  {} {}: {old} → {}", entry.kind, entry.what, new.email),
                    None => format!("{id}  {} {}: no current address; still rejected", entry.kind, entry.what),
                };
                writeln!(stdout().lock(), "{}", printable(&line))?;
                match address {
                    Some(address) => readdressed.push((entry, address)),
                    None => without += 1,
                }
            }
            if *dry_run {
                retried += readdressed.len();
            } else {
                let made_due = store.retry_to(&readdressed, clock::now()).await?;
                retried += made_due;
                no_longer_rejected += readdressed.len() - made_due;
            }
        }
        selection.found(found)?;
        if found > 0 {
            let them = count(retried as u64, "email");
            if *dry_run {
                writeln!(stdout().lock(), "{them} would be retried; nothing was changed")?;
            } else {
                writeln!(stdout().lock(), "{them} due now; a worker sends them within seconds")?;
            }
            others_were_faster(no_longer_rejected)?;
        }
        if without > 0 {
            bail!("{} without a current address", count(without, "entry"));
        }
        Ok(())
    }
}

impl Discard {
    async fn run(self) -> anyhow::Result<()> {
        let Self { yes, chosen } = self;
        if !yes && !chosen.dry_run && !stdin().is_terminal() {
            return Err(WrongConfiguration(
                "there is no terminal to confirm on that entries are deleted; --yes skips the confirmation. Nothing was dropped"
                    .to_owned(),
            )
            .into());
        }
        let store = chosen.open().await?;
        if chosen.dry_run {
            return chosen.show(&store, "dropped").await;
        }
        let asked_at = clock::now();
        if !yes {
            let shown = chosen.selection.look(&store, SHOWN_MAX).await?;
            if shown.total == 0 {
                return Ok(());
            }
            shown.print()?;
            let question = format!("Drop {} permanently? [y/N] ", count(shown.total, "entry"));
            if !tokio::task::spawn_blocking(move || confirm(&question)).await?? {
                bail!("nothing was dropped");
            }
        }
        // Entries rejected since then were not part of the question.
        let was_asked_about = |entry: &EntrySummary| yes || entry.failed_at.is_some_and(|at| at <= asked_at);
        let (meant, dropped) =
            chosen.change(&store, was_asked_about, async |batch| store.drop_failed(&batch).await).await?;
        if meant > 0 {
            writeln!(stdout().lock(), "dropped {}", count(dropped as u64, "entry"))?;
            others_were_faster(meant - dropped)?;
        }
        Ok(())
    }
}

impl Chosen {
    /// Validates the selection, and connects.
    async fn open(&self) -> anyhow::Result<Store> {
        self.selection.check()?;
        Ok(self.database.open().await?)
    }

    /// Prints all entries that would be `done`.
    async fn show(&self, store: &Store, done: &str) -> anyhow::Result<()> {
        let shown = self.selection.look(store, usize::MAX).await?;
        if shown.total > 0 {
            shown.print()?;
            writeln!(stdout().lock(), "{} would be {done}; nothing was changed", count(shown.total, "entry"))?;
        }
        Ok(())
    }

    /// Changes the selected entries that are `meant`, in batches. Returns their number, and the number that `change` changed.
    async fn change(
        &self,
        store: &Store,
        meant: impl Fn(&EntrySummary) -> bool,
        change: impl AsyncFn(Vec<EntrySummary>) -> Result<usize, StoreError>,
    ) -> anyhow::Result<(usize, usize)> {
        let (mut found, mut changed) = (0, 0);
        let mut refused = store.outbox_entries(EntryState::Failed).await?;
        while let Some(mut batch) = self.selection.next_batch(&mut refused).await? {
            batch.retain(&meant);
            found += batch.len();
            changed += change(batch).await?;
        }
        self.selection.found(found as u64)?;
        Ok((found, changed))
    }
}

fn others_were_faster(number: usize) -> std::io::Result<()> {
    if number > 0 {
        writeln!(stdout().lock(), "{number} were no longer rejected: another process was faster")?;
    }
    Ok(())
}

impl Selection {
    /// An empty selection is an error, so that nobody changes everything by mistake.
    fn check(&self) -> Result<(), WrongConfiguration> {
        if let Some(entry) = self.entries.iter().find(|entry| entry.chars().count() < ID_MIN) {
            return Err(WrongConfiguration(format!(
                "\"{entry}\" is too short for the beginning of an id; give at least {ID_MIN} characters"
            )));
        }
        if self.all || !self.entries.is_empty() || !self.filter.is_empty() {
            return Ok(());
        }
        Err(WrongConfiguration(
            "select entries with an id, --to, --error, --type, --document, or --all; `offramp outbox list` shows them"
                .to_owned(),
        ))
    }

    fn matches(&self, entry: &EntrySummary) -> bool {
        let is_named = self.entries.is_empty() || self.entries.iter().any(|start| entry.entry_id.starts_with(start));
        is_named && self.filter.matches(entry)
    }

    /// The next selected entries: at least [`BATCH_MAX`] while there are more. `None` at the end.
    async fn next_batch(&self, entries: &mut EntrySummaries) -> anyhow::Result<Option<Vec<EntrySummary>>> {
        let mut batch = Vec::new();
        while batch.len() < BATCH_MAX
            && let Some(of_document) = entries.next().await?
        {
            batch.extend(of_document.into_iter().filter(|entry| self.matches(entry)));
        }
        Ok((!batch.is_empty()).then_some(batch))
    }

    /// A table of the selected entries. Fails or prints a line if there are none.
    async fn look(&self, store: &Store, limit: usize) -> anyhow::Result<Rows> {
        let mut shown = Rows::new(EntryState::Failed, limit);
        let mut refused = store.outbox_entries(EntryState::Failed).await?;
        while let Some(batch) = self.next_batch(&mut refused).await? {
            for entry in &batch {
                shown.add(entry);
            }
        }
        self.found(shown.total)?;
        Ok(shown)
    }

    /// Fails if an id selects no entry. That a filter selects none may be good news.
    fn found(&self, number: u64) -> anyhow::Result<()> {
        if number > 0 {
            return Ok(());
        }
        if let [entry, ..] = self.entries.as_slice() {
            bail!("no rejected entry has an id that begins with \"{entry}\"; `offramp outbox list` lists all");
        }
        writeln!(stdout().lock(), "no such entries; nothing to do")?;
        Ok(())
    }
}

impl Filter {
    fn matches(&self, entry: &EntrySummary) -> bool {
        let Self { to, error, kind, document } = self;
        let has = |text: Option<&String>, part: &String| text.is_some_and(|text| text.contains(part.as_str()));
        to.as_ref().is_none_or(|part| has(entry.recipient.as_ref(), part))
            && error.as_ref().is_none_or(|part| has(entry.error.as_ref(), part))
            && kind.as_ref().is_none_or(|kind| *kind == entry.what)
            && document.as_ref().is_none_or(|id| *id == entry.document_id)
    }

    fn is_empty(&self) -> bool {
        let Self { to, error, kind, document } = self;
        [to, error, kind, document].iter().all(|filter| filter.is_none())
    }
}

/// A table of entries, up to a limit.
struct Rows {
    condition: EntryState,
    table: Table,
    limit: usize,
    shown: usize,
    total: u64,
    now: DateTime<Utc>,
}

impl Rows {
    fn new(condition: EntryState, limit: usize) -> Self {
        let last = match condition {
            EntryState::Failed => "Since",
            EntryState::Pending => "Due",
        };
        let table = Table::new(&["Id", "What", "To", "Document", "Tried", "Error", last]);
        Self { condition, table, limit, shown: 0, total: 0, now: clock::now() }
    }

    fn add(&mut self, entry: &EntrySummary) {
        self.total += 1;
        if self.shown == self.limit {
            return;
        }
        self.shown += 1;
        let when = match (self.condition, entry.failed_at, entry.due) {
            (EntryState::Failed, Some(at), _) => age(at, self.now),
            (EntryState::Pending, _, Some(due)) if due > self.now => format!("in {}", age(self.now, due)),
            (EntryState::Pending, _, Some(_)) => "now".to_owned(),
            _ => String::new(),
        };
        self.table.add_row([
            entry.entry_id.chars().take(ID_SHOWN).collect(),
            format!("{} {}", entry.kind, entry.what),
            entry.recipient.clone().unwrap_or_default(),
            format!("{}\n{}", entry.collection.as_str(), entry.document_id),
            entry.attempts.to_string(),
            entry.error.clone().unwrap_or_default(),
            when,
        ]);
    }

    fn print(&self) -> std::io::Result<()> {
        let mut out = stdout().lock();
        if self.shown > 0 {
            writeln!(out, "{}", self.table)?;
        }
        let rest = self.total - self.shown as u64;
        if rest > 0 {
            writeln!(out, "… and {rest} more (--limit, or --json)")?;
        }
        Ok(())
    }
}

fn entry_json(entry: &EntrySummary) -> serde_json::Value {
    json!({
        "id": entry.entry_id, "collection": entry.collection.as_str(), "document": entry.document_id,
        "kind": entry.kind, "type": entry.what, "to": entry.recipient, "attempts": entry.attempts,
        "error": entry.error, "due": entry.due.map(rfc3339), "failed_at": entry.failed_at.map(rfc3339),
    })
}
