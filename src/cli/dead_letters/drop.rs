//! `offramp dead-letters drop`

use std::io::{IsTerminal, Write, stdin, stdout};

use anyhow::bail;
use clap::Args;
use offramp::amqp::DeadLetter;

use super::select::Selection;
use super::session::Session;
use crate::cli::error::WrongConfiguration;
use crate::cli::settings::BrokerArgs;
use crate::cli::terminal::{confirm, count};

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

const BATCH_MAX: usize = 100;

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
    // Exactly the dead letters that were counted.
    let mut confirmed = groups.ids;
    let mut dropped = 0;
    let mut scan = session.letters.scan().await?;
    let mut batch = Vec::new();
    loop {
        let next = scan.next().await?;
        let is_last = next.is_none();
        if let Some(held) = next
            && let Some(remaining) = confirmed.get_mut(&held.letter.id).filter(|remaining| **remaining > 0)
        {
            *remaining -= 1;
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
    session.letters.close().await;
    writeln!(stdout().lock(), "dropped {}", count(dropped, "dead letter"))?;
    if dropped < groups.selected {
        bail!("{} no longer existed", count(groups.selected - dropped, "dead letter"));
    }
    Ok(())
}
