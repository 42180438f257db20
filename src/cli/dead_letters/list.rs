//! `offramp dead-letters list`

use std::io::{Write, stdout};

use clap::Args;
use offramp::amqp::{DeadLetter, HeldDeadLetter};
use offramp::clock;

use super::fields::{letter_json, short_queue};
use super::select::Filter;
use super::session::Session;
use crate::cli::settings::BrokerArgs;
use crate::cli::terminal::{Table, age, count};

/// List dead letters, grouped by reason and error, with counts and ages
#[derive(Args, Debug)]
pub struct Arguments {
    /// List each dead letter with its handle
    #[arg(long)]
    each: bool,

    /// Maximum number of dead letters to list, with --each
    #[arg(long, value_name = "NUMBER", default_value_t = 100)]
    limit: u64,

    /// Print JSON, one object per line
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    filter: Filter,

    #[command(flatten)]
    broker: BrokerArgs,
}

pub async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let Arguments { each, limit, json, filter, broker } = arguments;
    let session = Session::open(&broker).await?;
    let is_selected = |letter: &DeadLetter| filter.matches(letter, &session.topology);
    if each {
        list_each(&session, is_selected, limit, json).await?;
    } else {
        list_groups(&session, is_selected, json).await?;
    }
    session.letters.close().await;
    Ok(())
}

async fn list_groups(session: &Session, is_selected: impl Fn(&DeadLetter) -> bool, json: bool) -> anyhow::Result<()> {
    let groups = session.group(is_selected).await?;
    if json {
        return Ok(groups.print_json()?);
    }
    let queue = session.topology.dead_letter_queue();
    let others = if groups.others == 0 { String::new() } else { format!("; {} are other ones", groups.others) };
    if groups.selected == 0 {
        let none = if groups.others == 0 { "no dead letters" } else { "no such dead letters" };
        writeln!(stdout().lock(), "{none} in {queue}{others}")?;
        return Ok(());
    }
    groups.print(&session.topology)?;
    let mut out = stdout().lock();
    writeln!(out, "{} in {queue}{others}", count(groups.selected, "dead letter"))?;
    writeln!(
        out,
        "`offramp dead-letters show HANDLE` prints one, `list --each` lists each; `replay` sends them back to their queues."
    )?;
    Ok(())
}

async fn list_each(
    session: &Session,
    is_selected: impl Fn(&DeadLetter) -> bool,
    limit: u64,
    json: bool,
) -> anyhow::Result<()> {
    let now = clock::now();
    let mut rows = Table::new(&["Handle", "Reason and error", "Command and its document", "Queue", "Age"]);
    let (mut selected, mut shown) = (0, 0);
    let mut scan = session.letters.scan().await?;
    while let Some(HeldDeadLetter { letter, .. }) = scan.next().await? {
        if !is_selected(&letter) {
            continue;
        }
        selected += 1;
        if shown == limit {
            continue;
        }
        shown += 1;
        if json {
            writeln!(stdout().lock(), "{}", letter_json(&letter))?;
            continue;
        }
        let command = [&letter.kind, &letter.command_id, &letter.subscription_id, &letter.account_id];
        let command: Vec<&str> = command.into_iter().filter_map(Option::as_deref).collect();
        rows.add_row([
            letter.handle.clone(),
            format!("{}\n{}", letter.reason, letter.error),
            command.join("\n"),
            short_queue(letter.queue.as_deref().unwrap_or("?"), &session.topology).to_owned(),
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
    let rest = if shown < selected { format!(", {shown} of them shown (--limit)") } else { String::new() };
    writeln!(out, "{} in {}{rest}", count(selected, "dead letter"), session.topology.dead_letter_queue())?;
    Ok(())
}
