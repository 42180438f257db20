//! `offramp publish`: publishes commands from a file.

use std::collections::BTreeMap;
use std::io::{Write, stdout};
use std::path::PathBuf;

use anyhow::{Context, anyhow, bail};
use clap::Args;
use indicatif::ProgressBar;
use offramp::amqp::{Outgoing, PublishError, Publisher};
use offramp::jsonl::Line;
use offramp_domain::command::Command;
use serde::Deserialize;

use super::input::Input;
use super::settings::BrokerArgs;
use super::terminal::{printable, progress};

/// Publish commands from a file, each confirmed by RabbitMQ
#[derive(Args, Debug)]
#[command(after_help = "\
A line is a command: {\"specversion\": \"1.0\", \"id\": …, \"source\": …, \"type\": …, \"time\": …, \"data\": {…}}. The whole file is \
checked first. Nothing is published if a command is invalid. `offramp schemas` prints the JSON Schemas. To publish a file again does \
no harm: `(source, id)` identifies a command, and a document remembers the newest 200.

Examples:
  offramp publish commands.jsonl
  jq -n '{…}' | offramp publish -")]
pub struct Arguments {
    /// File with one command per line; `-` is standard input
    #[arg(value_name = "FILE")]
    file: PathBuf,

    /// Also publish invalid commands that have at least a `type`
    #[arg(long)]
    force: bool,

    #[command(flatten)]
    broker: BrokerArgs,
}

/// The largest number of messages in flight.
const BATCH_MAX: usize = 500;
/// How often an unconfirmed message is published.
const ATTEMPTS_MAX: usize = 3;
/// What to check when a command reaches no queue.
const PREFIX: &str = "with the same OFFRAMP_PREFIX and virtual host";
/// The largest number of errors printed.
const MISTAKES_SHOWN_MAX: usize = 20;

pub async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let input = Input::open(&arguments.file)?;
    let total = check(&input, arguments.force)?;

    let (broker, topology) = (arguments.broker.broker("offramp publish"), arguments.broker.topology());
    let publisher = Publisher::connect(broker).await?;
    let bar = progress(total, "commands");
    let counts = publish_all(&input, &topology.command_exchange(), &publisher, &bar).await;
    bar.finish_and_clear();
    publisher.close().await;

    let parts: Vec<String> = counts?.iter().map(|(kind, count)| format!("{count} {kind}")).collect();
    writeln!(stdout().lock(), "published {total} commands to {}: {}", topology.command_exchange(), parts.join(", "))?;
    Ok(())
}

/// Validates the whole file before anything is published. Returns the number of commands.
fn check(input: &Input, force: bool) -> anyhow::Result<u64> {
    let (mut total, mut mistakes) = (0, 0);
    for line in input.lines()? {
        let line = line?;
        total += 1;
        let checked = if force { route(&line).map(drop) } else { check_command(&line) };
        if let Err(mistake) = checked {
            mistakes += 1;
            if mistakes <= MISTAKES_SHOWN_MAX {
                eprintln!("{}: line {}: {}", input.name(), line.number, printable(&mistake));
            }
        }
    }
    if mistakes > MISTAKES_SHOWN_MAX {
        eprintln!("… and {} more", mistakes - MISTAKES_SHOWN_MAX);
    }
    match (mistakes, force) {
        (0, _) => Ok(total),
        (_, false) => {
            bail!("{mistakes} of {total} lines are invalid; nothing was published (--force publishes them too)")
        }
        (_, true) => bail!("{mistakes} of {total} lines have no `type`, so they have no queue; nothing was published"),
    }
}

fn check_command(line: &Line) -> Result<(), String> {
    Command::parse(&line.bytes).map(drop).map_err(|error| error.to_string())
}

/// The fields of a command that publishing needs.
#[derive(Deserialize)]
struct Route {
    #[serde(rename = "type")]
    kind: String,
    id: Option<String>,
}

fn route(line: &Line) -> Result<Route, String> {
    serde_json::from_slice(&line.bytes).map_err(|error| error.to_string())
}

/// Publishes in batches. Returns the number of commands per type. The error says how many are confirmed.
async fn publish_all(
    input: &Input,
    exchange: &str,
    publisher: &Publisher,
    bar: &ProgressBar,
) -> anyhow::Result<BTreeMap<String, usize>> {
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    let mut lines = input.lines()?;
    loop {
        let mut batch = Vec::new();
        for line in lines.by_ref().take(BATCH_MAX) {
            let line = line?;
            let route = route(&line).map_err(anyhow::Error::msg)?;
            *counts.entry(route.kind.clone()).or_default() += 1;
            let message = Outgoing::new(exchange, route.kind, line.bytes)
                .mandatory()
                .content_type("application/cloudevents+json")
                .message_id(route.id.as_deref().unwrap_or_default());
            batch.push(message);
        }
        if batch.is_empty() {
            return Ok(counts);
        }
        let size = batch.len();
        let confirmed = publish_batch(publisher, batch).await;
        bar.inc(confirmed.as_ref().map_or(0, |()| size as u64));
        confirmed.with_context(|| match bar.position() {
            0 => "no command was confirmed; publish the file again, which does no harm".to_owned(),
            sure => {
                format!("only the first {sure} commands were confirmed; publish the file again, which does no harm")
            }
        })?;
    }
}

/// Publishes until all messages are confirmed. Repeating a message does no harm: a command is applied once.
async fn publish_batch(publisher: &Publisher, mut batch: Vec<Outgoing>) -> anyhow::Result<()> {
    let mut newest = None;
    for _ in 0..ATTEMPTS_MAX {
        let mut results = publisher.publish_all(&batch).await.into_iter();
        batch.retain(|_| match results.next() {
            Some(Err(error)) => {
                newest = Some(error);
                true
            }
            _ => false,
        });
        match &newest {
            Some(PublishError::Unroutable) => bail!("no queue receives a command: run `offramp init` first, {PREFIX}"),
            Some(PublishError::Nacked(why)) if why.contains("no exchange") => {
                bail!("there is no exchange to publish to: run `offramp init` first, {PREFIX}")
            }
            _ if batch.is_empty() => return Ok(()),
            _ => {}
        }
    }
    Err(newest.map_or_else(|| anyhow!("{} commands are not confirmed", batch.len()), Into::into))
}
