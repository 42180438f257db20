//! `offramp dead-letters`: what could not be processed, looked at, sent back, or thrown away.

use std::collections::{BTreeMap, HashMap};
use std::io::{IsTerminal, Write, stdin, stdout};

use anyhow::bail;
use chrono::{DateTime, SecondsFormat, Utc};
use clap::{Args, Subcommand};
use offramp::amqp::{Broker, DeadLetter, DeadLetters, HeldDeadLetter, PublishError, Publisher, Topology};
use offramp::clock;
use offramp::config::{BrokerSettings, TlsSettings};
use serde_json::{Value, json};
use uuid::Uuid;

use super::WrongConfiguration;
use super::progress::progress;
use super::table::Table;
use super::words::{age, ask, count, printable};

/// See what could not be processed; send it back, or throw it away
#[derive(Args, Debug)]
#[command(after_help = "\
A letter stays in the queue until its copy is confirmed in its work queue (replay), or until you say that it shall go (drop): to
interrupt or kill any of these commands loses nothing. A letter that was sent back in that very moment may then be in both
queues, which does no harm: `(source, id)` identifies a command, and a document remembers the newest 200.

While one of these commands runs it holds all letters, so a second one waits up to 10 seconds for it, and then gives up
without having done anything. Letters that arrive meanwhile are left for the next time. A letter that some other program
holds just then (the management page's \"Get messages\", a shovel) is not seen.

Examples:
  offramp dead-letters list                             how many, why, since when
  offramp dead-letters show 3f9a1c2b04                  one of them, by its handle, its command's id or its message id
  offramp dead-letters replay --reason corrupt_document --dry-run
  offramp dead-letters replay --reason corrupt_document once the documents are repaired")]
pub struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    List(List),
    Show(Show),
    Replay(Replay),
    Drop(Discard),
}

/// Group them by reason and error, with counts and ages
#[derive(Args, Debug)]
struct List {
    /// List them one by one, each with its handle
    #[arg(long)]
    each: bool,

    /// With --each: at most so many
    #[arg(long, value_name = "NUMBER", default_value_t = 100)]
    limit: u64,

    /// Print JSON, an object a line
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    filter: Filter,

    #[command(flatten)]
    broker: BrokerSettings,
    #[command(flatten)]
    tls: TlsSettings,
}

/// Print one, with its headers and its body
#[derive(Args, Debug)]
struct Show {
    /// Its handle, its command's id, or its message id
    #[arg(value_name = "LETTER")]
    name: String,

    /// Print the body alone, byte for byte
    #[arg(long, conflicts_with = "json")]
    raw: bool,

    /// Print JSON
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    broker: BrokerSettings,
    #[command(flatten)]
    tls: TlsSettings,
}

/// Send them back to the work queues that they came from, as new
#[derive(Args, Debug)]
#[command(after_help = "\
Copies go back with their attempts counted from 0, and without what was noted about their end. One that fails again comes
back here, with a new handle. A letter that names no work queue of this prefix stays.

Examples:
  offramp dead-letters replay 3f9a1c2b04
  offramp dead-letters replay --reason exhausted --queue payment-failure
  offramp dead-letters replay --all --dry-run")]
struct Replay {
    /// Tell what would be sent back, and change nothing
    #[arg(long)]
    dry_run: bool,

    #[command(flatten)]
    selection: Selection,

    #[command(flatten)]
    broker: BrokerSettings,
    #[command(flatten)]
    tls: TlsSettings,
}

/// Throw them away for good; asks first
#[derive(Args, Debug)]
#[command(after_help = "\
Only letters that were there when you were asked are dropped. Without a terminal to ask on, nothing is done unless --yes is given.

Examples:
  offramp dead-letters show 3f9a1c2b04 --raw > kept.json && offramp dead-letters drop 3f9a1c2b04
  offramp dead-letters drop --reason too_large --yes")]
struct Discard {
    /// Do not ask
    #[arg(long)]
    yes: bool,

    #[command(flatten)]
    selection: Selection,

    #[command(flatten)]
    broker: BrokerSettings,
    #[command(flatten)]
    tls: TlsSettings,
}

#[derive(Args, Debug)]
#[command(next_help_heading = "Which letters")]
struct Filter {
    /// Those with this reason, such as exhausted; `list` tells which there are
    #[arg(long, value_name = "WORD")]
    reason: Option<String>,

    /// Those with this text in their error
    #[arg(long, value_name = "TEXT")]
    error: Option<String>,

    /// Those from this work queue; its prefix may be left out
    #[arg(long, value_name = "NAME")]
    queue: Option<String>,

    /// Those with a command of this type
    #[arg(long = "type", value_name = "TYPE")]
    kind: Option<String>,
}

#[derive(Args, Debug)]
#[command(next_help_heading = "Which letters")]
struct Selection {
    /// Those with this handle, command id or message id
    #[arg(value_name = "LETTER")]
    names: Vec<String>,

    #[command(flatten)]
    filter: Filter,

    /// All of them
    #[arg(long, conflicts_with_all = ["names", "reason", "error", "queue", "kind"])]
    all: bool,
}

/// How many letters are sent back at once, and how many bytes.
const BATCH_MAX: usize = 100;
const BATCH_BYTES_MAX: usize = 4 * 1024 * 1024;
/// What progress is counted in.
const LOOKED_AT: &str = "dead letters";
/// How many groups a table shows.
const GROUPS_SHOWN_MAX: usize = 50;
/// How many letters of one name are shown.
const SHOWN_MAX: usize = 20;
/// How much of a body that is no JSON is shown, in bytes.
const BODY_SHOWN_MAX: usize = 64 * 1024;

pub async fn run(arguments: Arguments) -> anyhow::Result<()> {
    match arguments.verb {
        Verb::List(list) => list.run().await,
        Verb::Show(show) => show.run().await,
        Verb::Replay(replay) => replay.run().await,
        Verb::Drop(discard) => discard.run().await,
    }
}

/// What every verb needs.
struct Desk {
    broker: Broker,
    topology: Topology,
    letters: DeadLetters,
}

impl Desk {
    async fn open(settings: BrokerSettings, tls: &TlsSettings) -> anyhow::Result<Self> {
        let topology = Topology::new(settings.prefix);
        let broker = Broker::with_tls(settings.amqp_url, "offramp dead-letters", tls.tls());
        let letters = DeadLetters::open(&broker, &topology).await?;
        Ok(Self { broker, topology, letters })
    }

    /// Groups what `is_meant`.
    async fn group(&self, is_meant: impl Fn(&DeadLetter) -> bool) -> anyhow::Result<Groups> {
        let mut groups = Groups::default();
        let mut scan = self.letters.scan().await?;
        let bar = progress(scan.total(), LOOKED_AT);
        while let Some(held) = scan.next().await? {
            bar.inc(1);
            groups.add(&held.letter, is_meant(&held.letter));
        }
        bar.finish_and_clear();
        scan.finish().await?;
        Ok(groups)
    }
}

impl List {
    async fn run(self) -> anyhow::Result<()> {
        let desk = Desk::open(self.broker, &self.tls).await?;
        let is_meant = |letter: &DeadLetter| self.filter.matches(letter, &desk.topology);
        let queue = desk.topology.dead_letter_queue();
        if self.each {
            each(&desk, is_meant, self.limit, self.json).await?;
        } else {
            let groups = desk.group(is_meant).await?;
            if self.json {
                groups.print_json()?;
            } else if groups.meant == 0 {
                let found = if groups.others == 0 { "no dead letters" } else { "no such dead letters" };
                writeln!(stdout().lock(), "{found} in {queue}{}", groups.others_stay("are other ones"))?;
            } else {
                groups.print(&desk.topology)?;
                let mut out = stdout().lock();
                let number = count(groups.meant, "dead letter");
                writeln!(out, "{number} in {queue}{}", groups.others_stay("are other ones"))?;
                writeln!(
                    out,
                    "`offramp dead-letters show HANDLE` prints one, `list --each` names all; `replay` sends them back."
                )?;
            }
        }
        desk.letters.close().await;
        Ok(())
    }
}

/// Lists letters one by one.
async fn each(desk: &Desk, is_meant: impl Fn(&DeadLetter) -> bool, limit: u64, json: bool) -> anyhow::Result<()> {
    let now = clock::now();
    let mut rows = Table::new(&["Handle", "Reason and error", "Command", "Queue", "Age"]);
    let (mut meant, mut shown) = (0, 0);
    let mut scan = desk.letters.scan().await?;
    while let Some(HeldDeadLetter { letter, .. }) = scan.next().await? {
        if !is_meant(&letter) {
            continue;
        }
        meant += 1;
        if shown == limit {
            continue;
        }
        shown += 1;
        if json {
            writeln!(stdout().lock(), "{}", letter_json(&letter))?;
            continue;
        }
        let command = [letter.kind.as_deref(), letter.command_id.as_deref()].into_iter().flatten();
        rows.add_row([
            letter.handle.clone(),
            format!("{}\n{}", letter.reason, letter.error),
            command.collect::<Vec<_>>().join("\n"),
            short_queue(letter.queue.as_deref().unwrap_or("?"), &desk.topology).to_owned(),
            letter.died_at.map(|at| age(at, now)).unwrap_or_default(),
        ]);
    }
    scan.finish().await?;
    if json {
        return Ok(());
    }
    let mut out = stdout().lock();
    if shown > 0 {
        writeln!(out, "{rows}")?;
    }
    let rest = if shown < meant { format!(", {shown} of them shown (--limit)") } else { String::new() };
    writeln!(out, "{} in {}{rest}", count(meant, "dead letter"), desk.topology.dead_letter_queue())?;
    Ok(())
}

impl Show {
    async fn run(self) -> anyhow::Result<()> {
        let desk = Desk::open(self.broker, &self.tls).await?;
        let mut scan = desk.letters.scan().await?;
        let mut found = Vec::new();
        let mut more = 0;
        while let Some(held) = scan.next().await? {
            if !held.letter.is_named(&self.name) {
                continue;
            }
            if found.len() < SHOWN_MAX {
                found.push(held);
            } else {
                more += 1;
            }
        }
        scan.finish().await?;
        desk.letters.close().await;
        if found.is_empty() {
            bail!(no_such(&self.name));
        }
        if self.raw && found.len() > 1 {
            let handles: Vec<&str> = found.iter().map(|held| held.letter.handle.as_str()).collect();
            bail!("{} has {} letters; choose one by its handle: {}", self.name, found.len(), handles.join(", "));
        }
        let mut out = stdout().lock();
        for held in &found {
            if self.raw {
                out.write_all(held.body())?;
            } else if self.json {
                let mut shown = letter_json(&held.letter);
                shown["headers"] = held.headers();
                shown["body"] = serde_json::from_slice(held.body())
                    .unwrap_or_else(|_| Value::from(String::from_utf8_lossy(held.body())));
                writeln!(out, "{shown}")?;
            } else {
                print_letter(&mut out, held)?;
            }
        }
        if !self.raw && !self.json {
            if more > 0 {
                writeln!(out, "… and {} more of this name", count(more, "letter"))?;
            }
            let handle = &found[0].letter.handle;
            writeln!(out, "`offramp dead-letters replay {handle}` sends it back, `drop {handle}` throws it away.")?;
        }
        Ok(())
    }
}

fn print_letter(out: &mut impl Write, held: &HeldDeadLetter) -> std::io::Result<()> {
    let letter = &held.letter;
    let died = letter.died_at.map(|at| format!("{} ({} ago)", rfc3339(at), age(at, clock::now())));
    let facts = [
        ("reason", Some(letter.reason.clone())),
        ("error", Some(letter.error.clone())),
        ("queue", letter.queue.clone()),
        ("died", died),
        ("type", letter.kind.clone()),
        ("source", letter.source.clone()),
        ("id", letter.command_id.clone()),
        ("message id", letter.message_id.clone()),
    ];
    writeln!(out, "Dead letter {}", letter.handle)?;
    for (name, value) in facts {
        if let Some(value) = value {
            writeln!(out, "  {name:<10}  {}", printable(&value))?;
        }
    }
    writeln!(out, "Headers")?;
    for (name, value) in held.headers().as_object().into_iter().flatten() {
        let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        writeln!(out, "  {}: {}", printable(name), printable(&value))?;
    }
    writeln!(out, "Body, {}", count(letter.body_bytes as u64, "byte"))?;
    let body = held.body();
    let pretty = serde_json::from_slice::<Value>(body).and_then(|value| serde_json::to_string_pretty(&value));
    let shown =
        pretty.unwrap_or_else(|_| String::from_utf8_lossy(&body[..body.len().min(BODY_SHOWN_MAX)]).into_owned());
    for line in printable(&shown).lines() {
        writeln!(out, "  {line}")?;
    }
    if body.len() > BODY_SHOWN_MAX && shown.len() <= 2 * BODY_SHOWN_MAX {
        writeln!(out, "  … (--raw prints all of it)")?;
    }
    writeln!(out)
}

impl Replay {
    async fn run(self) -> anyhow::Result<()> {
        self.selection.check()?;
        let desk = Desk::open(self.broker, &self.tls).await?;
        if self.dry_run {
            let groups = desk.group(|letter| self.selection.matches(letter, &desk.topology)).await?;
            desk.letters.close().await;
            self.selection.found(groups.meant)?;
            if groups.meant > 0 {
                groups.print(&desk.topology)?;
                let number = count(groups.meant - groups.unroutable, "dead letter");
                writeln!(stdout().lock(), "{number} would be sent back; nothing was changed")?;
            }
            if groups.unroutable > 0 {
                writeln!(stdout().lock(), "{}", unroutable(groups.unroutable))?;
            }
            return Ok(());
        }
        let publisher = Publisher::new(desk.broker.clone());
        let mut replayed = Replayed::default();
        let outcome = replay(&desk, &self.selection, &publisher, &mut replayed).await;
        publisher.close().await;
        desk.letters.close().await;
        replayed.tell()?;
        outcome?;
        self.selection.found(replayed.total() + replayed.unroutable)
    }
}

async fn replay(
    desk: &Desk,
    selection: &Selection,
    publisher: &Publisher,
    replayed: &mut Replayed,
) -> anyhow::Result<()> {
    let mut scan = desk.letters.scan().await?;
    let bar = progress(scan.total(), LOOKED_AT);
    let mut batch: Vec<HeldDeadLetter> = Vec::new();
    let mut bytes = 0;
    loop {
        let next = scan.next().await?;
        let is_last = next.is_none();
        match next {
            Some(held) if selection.matches(&held.letter, &desk.topology) => {
                bytes += held.letter.body_bytes;
                batch.push(held);
            }
            Some(_) => bar.inc(1),
            None => {}
        }
        if is_last || batch.len() >= BATCH_MAX || bytes >= BATCH_BYTES_MAX {
            let queues: Vec<Option<String>> = batch.iter().map(|held| held.letter.queue.clone()).collect();
            let results = scan.replay(publisher, std::mem::take(&mut batch)).await?;
            bar.inc(results.len() as u64);
            replayed.add(queues.into_iter().zip(results))?;
            bytes = 0;
        }
        if is_last {
            break;
        }
    }
    bar.finish_and_clear();
    Ok(scan.finish().await?)
}

/// What became of letters that were to be sent back.
#[derive(Default)]
struct Replayed {
    queues: BTreeMap<String, u64>,
    unroutable: u64,
    refused: u64,
    why: Option<PublishError>,
}

impl Replayed {
    /// Counts results; an error when the broker is away, so that to go on makes no sense.
    fn add(
        &mut self,
        results: impl Iterator<Item = (Option<String>, Option<Result<(), PublishError>>)>,
    ) -> anyhow::Result<()> {
        let mut is_away = false;
        for (queue, result) in results {
            match result {
                Some(Ok(())) => *self.queues.entry(queue.unwrap_or_default()).or_default() += 1,
                None => self.unroutable += 1,
                Some(Err(error)) => {
                    is_away |= matches!(error, PublishError::Unavailable(_));
                    self.refused += 1;
                    self.why = Some(error);
                }
            }
        }
        if is_away {
            bail!("stopped half-way");
        }
        Ok(())
    }

    fn total(&self) -> u64 {
        self.queues.values().sum()
    }

    fn tell(&self) -> anyhow::Result<()> {
        let mut out = stdout().lock();
        if self.total() > 0 {
            let parts: Vec<String> = self.queues.iter().map(|(queue, count)| format!("{count} to {queue}")).collect();
            writeln!(out, "sent back {}: {}", count(self.total(), "dead letter"), parts.join(", "))?;
        }
        if self.unroutable > 0 {
            writeln!(out, "{}", unroutable(self.unroutable))?;
        }
        if let Some(why) = &self.why {
            let hint = match why {
                PublishError::Unroutable => ": its work queue is missing, `offramp init` declares it",
                PublishError::Nacked(_) => "",
                PublishError::Unavailable(_) => {
                    ". Stopped half-way: those may be in both queues now, which does no harm; the same command again goes on"
                }
            };
            bail!("{} kept: {why}{hint}", count(self.refused, "dead letter"));
        }
        Ok(())
    }
}

fn unroutable(number: u64) -> String {
    format!(
        "{} kept: no work queue of this prefix is named, so there is nowhere to send it",
        count(number, "dead letter")
    )
}

impl Discard {
    async fn run(self) -> anyhow::Result<()> {
        self.selection.check()?;
        if !self.yes && !stdin().is_terminal() {
            return Err(WrongConfiguration(
                "there is no terminal to ask on whether to drop dead letters for good; --yes does it without asking. Nothing \
                 was dropped"
                    .to_owned(),
            )
            .into());
        }
        let desk = Desk::open(self.broker, &self.tls).await?;
        let is_meant = |letter: &DeadLetter| self.selection.matches(letter, &desk.topology);
        let groups = desk.group(is_meant).await?;
        self.selection.found(groups.meant)?;
        if groups.meant == 0 {
            return Ok(());
        }
        if !self.yes {
            groups.print(&desk.topology)?;
            let question = format!("Drop {} for good? [y/N] ", count(groups.meant, "dead letter"));
            // Nothing is held meanwhile: an answer may take its time.
            let agreed = tokio::task::spawn_blocking(move || ask(&question)).await??;
            if !agreed {
                bail!("nothing was dropped");
            }
        }
        // The letters that were counted, and no others.
        let mut agreed = groups.ids;
        let mut dropped = 0;
        let mut scan = desk.letters.scan().await?;
        let mut batch = Vec::new();
        loop {
            let next = scan.next().await?;
            let is_last = next.is_none();
            if let Some(held) = next
                && let Some(left) = agreed.get_mut(&held.letter.id).filter(|left| **left > 0)
            {
                *left -= 1;
                batch.push(held);
            }
            if is_last || batch.len() >= BATCH_MAX {
                let size = batch.len() as u64;
                scan.remove(std::mem::take(&mut batch)).await?;
                dropped += size;
            }
            if is_last {
                break;
            }
        }
        scan.finish().await?;
        desk.letters.close().await;
        writeln!(stdout().lock(), "dropped {}", count(dropped, "dead letter"))?;
        if dropped < groups.meant {
            bail!("{} were not there any more", groups.meant - dropped);
        }
        Ok(())
    }
}

impl Filter {
    fn matches(&self, letter: &DeadLetter, topology: &Topology) -> bool {
        let Self { reason, error, queue, kind } = self;
        let from = letter.queue.as_deref().unwrap_or_default();
        reason.as_ref().is_none_or(|reason| *reason == letter.reason)
            && error.as_ref().is_none_or(|text| letter.error.contains(text) || letter.error_pattern.contains(text))
            && queue.as_ref().is_none_or(|queue| queue == from || queue == short_queue(from, topology))
            && kind.as_ref().is_none_or(|kind| Some(kind) == letter.kind.as_ref())
    }

    fn is_empty(&self) -> bool {
        let Self { reason, error, queue, kind } = self;
        [reason, error, queue, kind].iter().all(|filter| filter.is_none())
    }
}

impl Selection {
    /// Nobody means all of them by saying nothing.
    fn check(&self) -> Result<(), WrongConfiguration> {
        if self.all || !self.names.is_empty() || !self.filter.is_empty() {
            return Ok(());
        }
        Err(WrongConfiguration(
            "say which dead letters: a handle, --reason, --error, --queue, --type, or --all; `offramp dead-letters list` shows \
             what there is"
                .to_owned(),
        ))
    }

    fn matches(&self, letter: &DeadLetter, topology: &Topology) -> bool {
        let is_named = self.names.is_empty() || self.names.iter().any(|name| letter.is_named(name));
        is_named && self.filter.matches(letter, topology)
    }

    /// To find none of a name is an error; to find none of a kind may be good news.
    fn found(&self, number: u64) -> anyhow::Result<()> {
        if number > 0 {
            return Ok(());
        }
        if let [name, ..] = self.names.as_slice() {
            bail!(no_such(name));
        }
        writeln!(stdout().lock(), "no such dead letters; nothing to do")?;
        Ok(())
    }
}

fn no_such(name: &str) -> String {
    format!(
        "there is no dead letter with the handle, command id or message id \"{name}\"; `offramp dead-letters list --each` names \
         those that there are"
    )
}

/// Letters with the same trouble.
struct Group {
    count: u64,
    oldest: Option<DateTime<Utc>>,
    newest: Option<DateTime<Utc>>,
    queues: BTreeMap<String, u64>,
    types: BTreeMap<String, u64>,
    /// The handle of one of them.
    example: String,
}

#[derive(Default)]
struct Groups {
    /// By reason and trouble.
    by_trouble: BTreeMap<(String, String), Group>,
    /// How many letters of each id are meant: one, but for letters that are the same in everything.
    ids: HashMap<Uuid, u64>,
    meant: u64,
    /// How many of them cannot be sent back.
    unroutable: u64,
    /// How many are not meant.
    others: u64,
}

impl Groups {
    fn add(&mut self, letter: &DeadLetter, is_meant: bool) {
        if !is_meant {
            self.others += 1;
            return;
        }
        self.meant += 1;
        self.unroutable += u64::from(letter.origin.is_none());
        *self.ids.entry(letter.id).or_default() += 1;
        let key = (letter.reason.clone(), letter.error_pattern.clone());
        let group = self.by_trouble.entry(key).or_insert_with(|| Group {
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

    /// Largest first.
    fn sorted(&self) -> Vec<(&(String, String), &Group)> {
        let mut groups: Vec<_> = self.by_trouble.iter().collect();
        groups.sort_by_key(|(_, group)| std::cmp::Reverse(group.count));
        groups
    }

    fn print(&self, topology: &Topology) -> std::io::Result<()> {
        let now = clock::now();
        let mut rows = Table::new(&["Letters", "Reason and error", "From", "Oldest", "Newest", "One of them"]);
        let groups = self.sorted();
        for ((reason, trouble), group) in groups.iter().take(GROUPS_SHOWN_MAX) {
            let queues: Vec<&str> = group.queues.keys().map(|queue| short_queue(queue, topology)).collect();
            rows.add_row([
                group.count.to_string(),
                format!("{reason}\n{trouble}"),
                queues.join("\n"),
                group.oldest.map(|at| age(at, now)).unwrap_or_default(),
                group.newest.map(|at| age(at, now)).unwrap_or_default(),
                group.example.clone(),
            ]);
        }
        let mut out = stdout().lock();
        writeln!(out, "{rows}")?;
        if groups.len() > GROUPS_SHOWN_MAX {
            writeln!(out, "… and {} more groups (`list --json` has all of them)", groups.len() - GROUPS_SHOWN_MAX)?;
        }
        Ok(())
    }

    fn print_json(&self) -> std::io::Result<()> {
        let mut out = stdout().lock();
        for ((reason, trouble), group) in self.sorted() {
            let line = json!({
                "reason": reason, "error": trouble, "count": group.count,
                "oldest": group.oldest.map(rfc3339), "newest": group.newest.map(rfc3339),
                "queues": group.queues, "types": group.types, "example": group.example,
            });
            writeln!(out, "{line}")?;
        }
        Ok(())
    }

    fn others_stay(&self, verb: &str) -> String {
        if self.others == 0 { String::new() } else { format!("; {} {verb}", self.others) }
    }
}

/// A queue's name without the prefix that all have.
fn short_queue<'a>(queue: &'a str, topology: &Topology) -> &'a str {
    let prefix = topology.command_exchange();
    queue.strip_prefix(&prefix).and_then(|rest| rest.strip_prefix('.')).unwrap_or(queue)
}

fn letter_json(letter: &DeadLetter) -> Value {
    json!({
        "handle": letter.handle, "reason": letter.reason, "error": letter.error, "queue": letter.queue,
        "type": letter.kind, "source": letter.source, "id": letter.command_id, "message_id": letter.message_id,
        "died_at": letter.died_at.map(rfc3339), "body_bytes": letter.body_bytes,
    })
}

fn rfc3339(at: DateTime<Utc>) -> String {
    at.to_rfc3339_opts(SecondsFormat::Millis, true)
}
