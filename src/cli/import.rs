//! `offramp import`: writes documents from a file to the database.

use std::collections::BTreeMap;
use std::io::{Write, stdout};
use std::path::PathBuf;

use anyhow::{Context, bail};
use bson::Document;
use clap::Args;
use offramp::jsonl::ImportLine;
use offramp::store::import::IMPORT_DOCUMENTS_MAX;
use offramp::store::{Collection, Store};

use super::input::Input;
use super::settings::DatabaseArgs;
use super::terminal::{printable, progress};

/// Create or update organizations, accounts and subscriptions from a file
#[derive(Args, Debug)]
#[command(after_help = "\
A line is {\"collection\": \"subscriptions\", \"document\": {\"_id\": …}}, with instants as {\"$date\": \"2026-06-15T04:00:00Z\"}. \
Fields in the file replace those in the database, including fields that Offramp writes, such as status. Other fields are kept. \
The whole file is checked first. Nothing is written if a line is invalid or has a duplicate key, or if a document has a field that \
would prevent a decision. References between documents are not checked. `offramp schemas` prints the JSON Schemas of documents.

Example:
  offramp import documents.jsonl")]
pub struct Arguments {
    /// File with one document per line; `-` is standard input
    #[arg(value_name = "FILE")]
    file: PathBuf,

    /// Also import documents with fields that would prevent a decision
    #[arg(long)]
    force: bool,

    #[command(flatten)]
    database: DatabaseArgs,
}

/// The largest number of errors printed.
const MISTAKES_SHOWN_MAX: usize = 20;

pub async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let input = Input::open(&arguments.file)?;
    let total = check(&input, arguments.force)?;

    let store = arguments.database.open().await?;
    let bar = progress(total, "documents");
    let mut counts: BTreeMap<Collection, usize> = BTreeMap::new();
    let mut waiting: BTreeMap<Collection, Vec<Document>> = BTreeMap::new();
    for line in input.lines()? {
        let ImportLine { collection, document } = ImportLine::parse(&line?)?;
        *counts.entry(collection).or_default() += 1;
        let batch = waiting.entry(collection).or_default();
        batch.push(document);
        if batch.len() == IMPORT_DOCUMENTS_MAX {
            let batch = std::mem::take(batch);
            write(&store, collection, &batch).await?;
            bar.inc(batch.len() as u64);
        }
    }
    for (collection, batch) in waiting.into_iter().filter(|(_, batch)| !batch.is_empty()) {
        write(&store, collection, &batch).await?;
        bar.inc(batch.len() as u64);
    }
    bar.finish_and_clear();

    let parts: Vec<String> =
        counts.iter().map(|(collection, count)| format!("{count} {}", collection.as_str())).collect();
    let database = arguments.database.name();
    writeln!(stdout().lock(), "imported {total} documents into {database}: {}", parts.join(", "))?;
    Ok(())
}

async fn write(store: &Store, collection: Collection, batch: &[Document]) -> anyhow::Result<()> {
    store
        .upsert(collection, batch)
        .await
        .context("some documents were not imported; run the import again, which does no harm")
}

/// Validates the whole file before anything is written. Returns the number of documents.
fn check(input: &Input, force: bool) -> anyhow::Result<u64> {
    let (mut total, mut unreadable, mut corrupt) = (0, 0, 0);
    for line in input.lines()? {
        let line = line?;
        total += 1;
        let mistake = match ImportLine::parse(&line) {
            Ok(document) => {
                let Some(error) = document.parsed().error() else { continue };
                corrupt += 1;
                format!("line {}: {error}", line.number)
            }
            Err(error) => {
                unreadable += 1;
                error.to_string()
            }
        };
        if unreadable + corrupt <= MISTAKES_SHOWN_MAX {
            eprintln!("{}: {}", input.name(), printable(&mistake));
        }
    }
    let mistakes = unreadable + corrupt;
    if mistakes > MISTAKES_SHOWN_MAX {
        eprintln!("… and {} more", mistakes - MISTAKES_SHOWN_MAX);
    }
    if unreadable > 0 {
        bail!("{unreadable} of {total} lines are invalid; nothing was imported");
    }
    if corrupt > 0 && !force {
        bail!(
            "the worker could not process {corrupt} of {total} documents; nothing was imported (--force imports them too)"
        );
    }
    Ok(total)
}
