//! `offramp dead-letters show`

use std::io::{Write, stdout};

use anyhow::bail;
use clap::Args;
use offramp::amqp::HeldDeadLetter;
use offramp::clock;
use serde_json::Value;

use super::fields::letter_json;
use super::select::not_found;
use super::session::Session;
use crate::cli::settings::BrokerArgs;
use crate::cli::terminal::{age, count, printable, rfc3339};

/// Print a dead letter with its headers and its body
#[derive(Args, Debug)]
pub struct Arguments {
    /// The handle, the command id or the message id of the dead letter
    #[arg(value_name = "LETTER")]
    name: String,

    /// Print only the body, unchanged
    #[arg(long, conflicts_with = "json")]
    raw: bool,

    /// Print JSON
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    broker: BrokerArgs,
}

/// The largest number of dead letters shown for one name. Copies of a command have the same id.
const SHOWN_MAX: usize = 20;
/// The largest part of a body that is shown if it is not JSON, in bytes.
const BODY_SHOWN_BYTES_MAX: usize = 64 * 1024;

pub async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let Arguments { name, raw, json, broker } = arguments;
    let session = Session::open(&broker).await?;
    let mut scan = session.letters.scan().await?;
    let mut found = Vec::new();
    let mut more = 0;
    while let Some(held) = scan.next().await? {
        if !held.letter.is_named(&name) {
            continue;
        }
        if found.len() < SHOWN_MAX {
            found.push(held);
        } else {
            more += 1;
        }
    }
    scan.finish().await?;
    session.letters.close().await;
    if found.is_empty() {
        bail!(not_found(&name));
    }
    if raw && found.len() > 1 {
        let handles: Vec<&str> = found.iter().map(|held| held.letter.handle.as_str()).collect();
        bail!("{name} names {} dead letters; choose one by its handle: {}", found.len(), handles.join(", "));
    }
    let mut out = stdout().lock();
    for held in &found {
        if raw {
            out.write_all(held.body())?;
        } else if json {
            let mut shown = letter_json(&held.letter);
            shown["headers"] = held.headers();
            shown["body"] = serde_json::from_slice(held.body())
                .unwrap_or_else(|_| Value::from(String::from_utf8_lossy(held.body())));
            writeln!(out, "{shown}")?;
        } else {
            print(&mut out, held)?;
        }
    }
    if !raw && !json {
        if more > 0 {
            writeln!(out, "… and {} more with this name", count(more, "dead letter"))?;
        }
        let handle = &found[0].letter.handle;
        writeln!(
            out,
            "`offramp dead-letters replay {handle}` sends it back to its queue, `drop {handle}` deletes it."
        )?;
    }
    Ok(())
}

fn print(out: &mut impl Write, held: &HeldDeadLetter) -> std::io::Result<()> {
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
        ("subscription", letter.subscription_id.clone()),
        ("account", letter.account_id.clone()),
    ];
    writeln!(out, "Dead letter {}", letter.handle)?;
    for (name, value) in facts {
        if let Some(value) = value {
            writeln!(out, "  {name:<12}  {}", printable(&value))?;
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
        pretty.unwrap_or_else(|_| String::from_utf8_lossy(&body[..body.len().min(BODY_SHOWN_BYTES_MAX)]).into_owned());
    for line in printable(&shown).lines() {
        writeln!(out, "  {line}")?;
    }
    if body.len() > BODY_SHOWN_BYTES_MAX && shown.len() <= 2 * BODY_SHOWN_BYTES_MAX {
        writeln!(out, "  … (--raw prints the whole body)")?;
    }
    writeln!(out)
}
