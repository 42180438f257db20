//! `offramp dead-letters replay`

use std::io::{Write, stdout};

use anyhow::bail;
use clap::Args;
use offramp::advice;
use offramp::amqp::{BulkReport, DeadLetter, Publisher};

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

pub async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let Arguments { dry_run, selection, broker } = arguments;
    selection.check()?;
    let session = Session::open(&broker).await?;
    if dry_run {
        return show(session, &selection).await;
    }
    let publisher = Publisher::new(session.broker.clone());
    let mut report = BulkReport::default();
    let bar = progress(0, PROGRESS_UNIT);
    let show_progress = |looked_at, total| {
        bar.set_length(total);
        bar.set_position(looked_at);
    };
    let is_selected = |letter: &DeadLetter| selection.matches(letter, &session.topology);
    let outcome = session.letters.replay(&publisher, is_selected, show_progress, &mut report).await;
    bar.finish_and_clear();
    publisher.close().await;
    session.letters.close().await;
    print(&report)?;
    outcome?;
    selection.require(report.done() + report.unroutable)
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

fn print(report: &BulkReport) -> anyhow::Result<()> {
    let mut out = stdout().lock();
    if report.done() > 0 {
        let parts: Vec<String> = report.replayed.iter().map(|(queue, count)| format!("{count} to {queue}")).collect();
        writeln!(out, "sent back {}: {}", count(report.done(), "dead letter"), parts.join(", "))?;
    }
    if report.unroutable > 0 {
        writeln!(out, "{}", unroutable(report.unroutable))?;
    }
    if let Some(error) = &report.error {
        let advice = advice::replay_error(error).map(|advice| format!("; {advice}")).unwrap_or_default();
        bail!("{} kept: {error}{advice}", count(report.failed, "dead letter"));
    }
    Ok(())
}

fn unroutable(number: u64) -> String {
    format!(
        "{} kept: no work queue of this prefix is named, so there is no queue to send to",
        count(number, "dead letter")
    )
}
