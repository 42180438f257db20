//! `offramp dead-letters replay`

use std::collections::BTreeMap;
use std::io::{Write, stdout};

use anyhow::bail;
use clap::Args;
use offramp::amqp::{HeldDeadLetter, PublishError, Publisher};

use super::select::Selection;
use super::session::{PROGRESS_UNIT, Session};
use crate::cli::settings::BrokerArgs;
use crate::cli::terminal::{count, progress};

/// Send dead letters back to the work queues that they came from
#[derive(Args, Debug)]
#[command(after_help = "\
The attempts of a replayed command count from 0, and its headers about its end are removed. If it fails again, it becomes a dead \
letter with a new handle. A dead letter that names no work queue of this prefix is kept.

Examples:
  offramp dead-letters replay 3f9a1c2b04
  offramp dead-letters replay --reason exhausted --queue payment-failure
  offramp dead-letters replay --all --dry-run")]
pub struct Arguments {
    /// Show which dead letters would be replayed, and change nothing
    #[arg(long)]
    dry_run: bool,

    #[command(flatten)]
    selection: Selection,

    #[command(flatten)]
    broker: BrokerArgs,
}

/// The largest batch: its number of dead letters, and its size in bytes.
const BATCH_MAX: usize = 100;
const BATCH_BYTES_MAX: usize = 4 * 1024 * 1024;

pub async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let Arguments { dry_run, selection, broker } = arguments;
    selection.check()?;
    let session = Session::open(&broker).await?;
    if dry_run {
        return show(session, &selection).await;
    }
    let publisher = Publisher::new(session.broker.clone());
    let mut report = Report::default();
    let outcome = replay(&session, &selection, &publisher, &mut report).await;
    publisher.close().await;
    session.letters.close().await;
    report.print()?;
    outcome?;
    selection.require(report.total() + report.unroutable)
}

async fn show(session: Session, selection: &Selection) -> anyhow::Result<()> {
    let groups = session.group(|letter| selection.matches(letter, &session.topology)).await?;
    let topology = session.topology;
    session.letters.close().await;
    selection.require(groups.selected)?;
    if groups.selected > 0 {
        groups.print(&topology)?;
        let number = count(groups.selected - groups.unroutable, "dead letter");
        writeln!(stdout().lock(), "{number} would be sent back; nothing was changed")?;
    }
    if groups.unroutable > 0 {
        writeln!(stdout().lock(), "{}", unroutable(groups.unroutable))?;
    }
    Ok(())
}

async fn replay(
    session: &Session,
    selection: &Selection,
    publisher: &Publisher,
    report: &mut Report,
) -> anyhow::Result<()> {
    let mut scan = session.letters.scan().await?;
    let bar = progress(scan.total(), PROGRESS_UNIT);
    let mut batch: Vec<HeldDeadLetter> = Vec::new();
    let mut bytes = 0;
    loop {
        let next = scan.next().await?;
        let is_last = next.is_none();
        match next {
            Some(held) if selection.matches(&held.letter, &session.topology) => {
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
            report.add(queues.into_iter().zip(results))?;
            bytes = 0;
        }
        if is_last {
            break;
        }
    }
    bar.finish_and_clear();
    Ok(scan.finish().await?)
}

/// The results of all dead letters so far.
#[derive(Default)]
struct Report {
    /// The number of replayed ones per queue.
    queues: BTreeMap<String, u64>,
    /// The number of those that name no work queue of this prefix.
    unroutable: u64,
    failed: u64,
    error: Option<PublishError>,
}

impl Report {
    /// Adds the results of a batch. An error when the broker is unavailable, so that the next batches would fail as well.
    fn add(
        &mut self,
        results: impl Iterator<Item = (Option<String>, Option<Result<(), PublishError>>)>,
    ) -> anyhow::Result<()> {
        let mut is_unavailable = false;
        for (queue, result) in results {
            match result {
                Some(Ok(())) => *self.queues.entry(queue.unwrap_or_default()).or_default() += 1,
                None => self.unroutable += 1,
                Some(Err(error)) => {
                    is_unavailable |= matches!(error, PublishError::Unavailable(_));
                    self.failed += 1;
                    self.error = Some(error);
                }
            }
        }
        if is_unavailable {
            bail!("interrupted: RabbitMQ is unavailable");
        }
        Ok(())
    }

    fn total(&self) -> u64 {
        self.queues.values().sum()
    }

    fn print(&self) -> anyhow::Result<()> {
        let mut out = stdout().lock();
        if self.total() > 0 {
            let parts: Vec<String> = self.queues.iter().map(|(queue, count)| format!("{count} to {queue}")).collect();
            writeln!(out, "sent back {}: {}", count(self.total(), "dead letter"), parts.join(", "))?;
        }
        if self.unroutable > 0 {
            writeln!(out, "{}", unroutable(self.unroutable))?;
        }
        if let Some(error) = &self.error {
            let advice = match error {
                PublishError::Unroutable => ": its work queue is missing; `offramp init` declares it",
                PublishError::Nacked(_) => "",
                PublishError::Unavailable(_) => {
                    ". Some of them may be in both queues now, which does no harm; run the same command again to continue"
                }
            };
            bail!("{} kept: {error}{advice}", count(self.failed, "dead letter"));
        }
        Ok(())
    }
}

fn unroutable(number: u64) -> String {
    format!(
        "{} kept: no work queue of this prefix is named, so there is no queue to send to",
        count(number, "dead letter")
    )
}
