//! `offramp outbox`: emails and events that are not sent yet. Those that were refused can be retried or dropped.

use std::io::{IsTerminal, Write, stdin, stdout};

use anyhow::bail;
use chrono::{DateTime, SecondsFormat, Utc};
use clap::{Args, Subcommand};
use offramp::clock;
use offramp::config::{DatabaseSettings, TlsSettings};
use offramp::store::outbox::admin::{EntryState, EntrySummaries, EntrySummary};
use offramp::store::{Store, StoreError};
use serde_json::json;

use super::WrongConfiguration;
use super::table::Table;
use super::words::{age, ask, count};

/// See emails and events that could not be sent; retry or drop those that were refused
#[derive(Args, Debug)]
#[command(after_help = "\
A mail that the mail server refuses for what it is (an address that does not exist, say) stays in the document that it belongs
to, and nobody tries it again until you say so. Mails that wait, because the mail server is away or said \"later\", need nobody:
they are tried again by themselves.

Examples:
  offramp outbox list                           what was refused, to whom, why, since when
  offramp outbox list --waiting                 what waits, and for how long still
  offramp outbox retry 0f6a2c9e                 one of them, by its id (its beginning is enough)
  offramp outbox retry --error \"relay\" --dry-run
  offramp outbox drop 0f6a2c9e                  give one up: it is never sent")]
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

/// List what was refused for good
#[derive(Args, Debug)]
struct List {
    /// List what waits, instead: when it is due, how often it was tried, and what came of it
    #[arg(long)]
    waiting: bool,

    /// At most so many in a table; JSON has all
    #[arg(long, value_name = "NUMBER", default_value_t = 100)]
    limit: usize,

    /// Print JSON, an object a line
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    filter: Filter,

    #[command(flatten)]
    database: DatabaseSettings,
    #[command(flatten)]
    tls: TlsSettings,
}

/// Make refused ones due again: the next worker that looks, within seconds, tries them
#[derive(Args, Debug)]
#[command(after_help = "\
A mail goes to the address that it was written for. Safe beside running workers, and to interrupt: an entry is either refused
still or due.

Examples:
  offramp outbox retry 0f6a2c9e
  offramp outbox retry --to @example.org
  offramp outbox retry --all --dry-run")]
struct Retry {
    #[command(flatten)]
    chosen: Chosen,
}

/// Give refused ones up for good: they are never sent; asks first
#[derive(Args, Debug)]
#[command(after_help = "\
The entry is removed from its document; the record of an email in `notifications` says that it was dropped. Only entries that were
refused when you were asked are dropped. Without a terminal to ask on, nothing is done unless --yes is given.

Examples:
  offramp outbox drop 0f6a2c9e
  offramp outbox drop --document sub-1003 --dry-run
  offramp outbox drop --to @closed.example --yes")]
struct Discard {
    /// Do not ask
    #[arg(long, conflicts_with = "dry_run")]
    yes: bool,

    #[command(flatten)]
    chosen: Chosen,
}

/// The refused entries that something is done to.
#[derive(Args, Debug)]
struct Chosen {
    /// Show which entries it would be, and change nothing
    #[arg(long)]
    dry_run: bool,

    #[command(flatten)]
    selection: Selection,

    #[command(flatten)]
    database: DatabaseSettings,
    #[command(flatten)]
    tls: TlsSettings,
}

#[derive(Args, Debug)]
#[command(next_help_heading = "Which entries")]
struct Selection {
    /// Those whose id begins so
    #[arg(value_name = "ENTRY")]
    entries: Vec<String>,

    #[command(flatten)]
    filter: Filter,

    /// All of them
    #[arg(long, conflicts_with_all = ["entries", "to", "error", "kind", "document"])]
    all: bool,
}

#[derive(Args, Debug)]
#[command(next_help_heading = "Which entries")]
struct Filter {
    /// Those with this text in the recipient's address
    #[arg(long, value_name = "TEXT")]
    to: Option<String>,

    /// Those with this text in their error
    #[arg(long, value_name = "TEXT")]
    error: Option<String>,

    /// Mails from this template, events of this type
    #[arg(long = "type", visible_alias = "template", value_name = "NAME")]
    kind: Option<String>,

    /// Those in the document with this id
    #[arg(long, value_name = "ID")]
    document: Option<String>,
}

/// How many entries are made due, or dropped, at once.
const BATCH_MAX: usize = 500;
/// How much of an id a table shows, and how much of one is enough to name an entry, in characters.
const ID_SHOWN: usize = 13;
const ID_MIN: usize = 4;
/// How many entries are shown before it is asked whether to drop them.
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
        let store = Store::open(self.database.mongodb_url.connection_string(), &self.tls.tls()).await?;
        let condition = if self.waiting { EntryState::Pending } else { EntryState::Failed };
        let mut entries = store.stuck(condition).await?;
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
                writeln!(out, "nothing was refused (`offramp outbox list --waiting` shows what waits)")?;
            }
            (EntryState::Failed, total) => {
                let them = count(total, "entry");
                writeln!(
                    out,
                    "{them} refused for good; `offramp outbox retry` tries them again, `drop` gives them up"
                )?;
            }
            (EntryState::Pending, 0) => writeln!(out, "nothing waits")?,
            (EntryState::Pending, total) => {
                let them = count(total, "entry");
                writeln!(out, "{them} waiting, to be sent by whichever worker looks first when due")?;
            }
        }
        Ok(())
    }
}

impl Retry {
    async fn run(self) -> anyhow::Result<()> {
        let store = self.chosen.open().await?;
        if self.chosen.dry_run {
            return self.chosen.show(&store, "tried again").await;
        }
        let (meant, made_due) =
            self.chosen.change(&store, |_| true, async |batch| store.retry(&batch, clock::now()).await).await?;
        if meant > 0 {
            writeln!(stdout().lock(), "{made_due} due now; a worker tries them within seconds")?;
            others_were_faster(meant - made_due)?;
        }
        Ok(())
    }
}

impl Discard {
    async fn run(self) -> anyhow::Result<()> {
        let Self { yes, chosen } = self;
        if !yes && !chosen.dry_run && !stdin().is_terminal() {
            return Err(WrongConfiguration(
                "there is no terminal to ask on whether to drop entries for good; --yes does it without asking. Nothing was \
                 dropped"
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
            let question = format!("Drop {} for good? [y/N] ", count(shown.total, "entry"));
            if !tokio::task::spawn_blocking(move || ask(&question)).await?? {
                bail!("nothing was dropped");
            }
        }
        // What was refused since then was not asked about.
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
    /// Checks what was chosen, and connects.
    async fn open(&self) -> anyhow::Result<Store> {
        self.selection.check()?;
        Ok(Store::open(self.database.mongodb_url.connection_string(), &self.tls.tls()).await?)
    }

    /// The whole table of what would be `done`.
    async fn show(&self, store: &Store, done: &str) -> anyhow::Result<()> {
        let shown = self.selection.look(store, usize::MAX).await?;
        if shown.total > 0 {
            shown.print()?;
            writeln!(stdout().lock(), "{} would be {done}; nothing was changed", count(shown.total, "entry"))?;
        }
        Ok(())
    }

    /// Changes the chosen entries that are `meant`, a batch at a time. Returns how many these were, and how many `change` changed.
    async fn change(
        &self,
        store: &Store,
        meant: impl Fn(&EntrySummary) -> bool,
        change: impl AsyncFn(Vec<EntrySummary>) -> Result<usize, StoreError>,
    ) -> anyhow::Result<(usize, usize)> {
        let (mut found, mut changed) = (0, 0);
        let mut refused = store.stuck(EntryState::Failed).await?;
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
        writeln!(stdout().lock(), "{number} were not refused any more: somebody else was faster")?;
    }
    Ok(())
}

impl Selection {
    /// Nobody means all of them by saying nothing.
    fn check(&self) -> Result<(), WrongConfiguration> {
        if let Some(entry) = self.entries.iter().find(|entry| entry.chars().count() < ID_MIN) {
            return Err(WrongConfiguration(format!(
                "\"{entry}\" is too short for the beginning of an id: {ID_MIN} characters"
            )));
        }
        if self.all || !self.entries.is_empty() || !self.filter.is_empty() {
            return Ok(());
        }
        Err(WrongConfiguration(
            "say which entries: an id, --to, --error, --type, --document, or --all; `offramp outbox list` shows what there is"
                .to_owned(),
        ))
    }

    fn matches(&self, entry: &EntrySummary) -> bool {
        let is_named = self.entries.is_empty() || self.entries.iter().any(|start| entry.entry_id.starts_with(start));
        is_named && self.filter.matches(entry)
    }

    /// The next entries that are meant, at least [`BATCH_MAX`] of them as long as there are more; none at the end.
    async fn next_batch(&self, entries: &mut EntrySummaries) -> anyhow::Result<Option<Vec<EntrySummary>>> {
        let mut batch = Vec::new();
        while batch.len() < BATCH_MAX
            && let Some(of_document) = entries.next().await?
        {
            batch.extend(of_document.into_iter().filter(|entry| self.matches(entry)));
        }
        Ok((!batch.is_empty()).then_some(batch))
    }

    /// A table of what is meant, and what there is to say if there is nothing.
    async fn look(&self, store: &Store, limit: usize) -> anyhow::Result<Rows> {
        let mut shown = Rows::new(EntryState::Failed, limit);
        let mut refused = store.stuck(EntryState::Failed).await?;
        while let Some(batch) = self.next_batch(&mut refused).await? {
            for entry in &batch {
                shown.add(entry);
            }
        }
        self.found(shown.total)?;
        Ok(shown)
    }

    /// To find none of a name is an error; to find none of a kind may be good news.
    fn found(&self, number: u64) -> anyhow::Result<()> {
        if number > 0 {
            return Ok(());
        }
        if let [entry, ..] = self.entries.as_slice() {
            bail!(
                "no refused entry has an id that begins with \"{entry}\"; `offramp outbox list` names those that there are"
            );
        }
        writeln!(stdout().lock(), "nothing of that kind was refused; nothing to do")?;
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
    let rfc3339 = |at: Option<DateTime<Utc>>| at.map(|at| at.to_rfc3339_opts(SecondsFormat::Millis, true));
    json!({
        "id": entry.entry_id, "collection": entry.collection.as_str(), "document": entry.document_id,
        "kind": entry.kind, "type": entry.what, "to": entry.recipient, "attempts": entry.attempts,
        "error": entry.error, "due": rfc3339(entry.due), "failed_at": rfc3339(entry.failed_at),
    })
}
