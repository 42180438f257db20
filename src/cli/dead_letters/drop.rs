//! `offramp dead-letters drop`

use std::io::{IsTerminal, Write, stdin, stdout};

use anyhow::bail;
use clap::Args;
use offramp::amqp::{BulkReport, DeadLetter};

use super::select::Selection;
use super::session::{PROGRESS_UNIT, Session};
use crate::cli::error::WrongConfiguration;
use crate::cli::settings::BrokerArgs;
use crate::cli::terminal::{confirm, count, progress};

/// Delete dead letters permanently, after confirmation
#[derive(Args, Debug)]
#[command(after_help = "\
Only dead letters that existed when you were asked are deleted. Without a terminal to ask on, nothing is deleted unless --yes is given.

Examples:
  offramp dead-letters show 3f9a1c2b04 --raw > kept.json && offramp dead-letters drop 3f9a1c2b04
  offramp dead-letters drop --reason too_large --yes")]
pub struct Arguments {
    /// Do not ask for confirmation
    #[arg(long)]
    yes: bool,

    #[command(flatten)]
    selection: Selection,

    #[command(flatten)]
    broker: BrokerArgs,
}

pub async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let Arguments { yes, selection, broker } = arguments;
    selection.check()?;
    if !yes && !stdin().is_terminal() {
        return Err(WrongConfiguration(
            "there is no terminal to confirm on that dead letters are deleted; --yes skips the confirmation. Nothing was dropped"
                .to_owned(),
        )
        .into());
    }
    let session = Session::open(&broker).await?;
    let is_selected = |letter: &DeadLetter| selection.matches(letter, &session.topology);
    let groups = session.group(is_selected).await?;
    selection.require(groups.selected)?;
    if groups.selected == 0 {
        return Ok(());
    }
    if !yes {
        groups.print(&session.topology)?;
        let question = format!("Drop {} permanently? [y/N] ", count(groups.selected, "dead letter"));
        // No dead letters are held meanwhile, so the answer may take its time.
        if !tokio::task::spawn_blocking(move || confirm(&question)).await?? {
            bail!("nothing was dropped");
        }
    }
    let bar = progress(0, PROGRESS_UNIT);
    let show_progress = |looked_at, total| {
        bar.set_length(total);
        bar.set_position(looked_at);
    };
    let mut report = BulkReport::default();
    // Exactly the dead letters that were counted.
    let outcome = session.letters.drop_selected(groups.ids, show_progress, &mut report).await;
    bar.finish_and_clear();
    session.letters.close().await;
    writeln!(stdout().lock(), "dropped {}", count(report.dropped, "dead letter"))?;
    outcome?;
    if report.dropped < groups.selected {
        bail!("{} no longer existed", count(groups.selected - report.dropped, "dead letter"));
    }
    Ok(())
}
