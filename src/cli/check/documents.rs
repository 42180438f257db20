//! `offramp check --documents`: walks through all documents, with progress, and prints the report.

use std::io::{Write, stdout};
use std::time::Duration;

use anyhow::{Context, bail};
use bson::Bson;
use chrono::Utc;
use offramp::config::DatabaseSettings;
use offramp::document_check::{DocumentCheck, Position, Report, Severity};
use offramp::store::{Collection, Store, StoreError};
use offramp::tls::Tls;
use tokio::time::sleep;

use crate::cli::error::WrongConfiguration;
use crate::cli::signals::stop_signal;
use crate::cli::terminal::{Table, count, printable, progress};

/// How often a page is tried when the server does not answer, and how long to wait in between.
const ATTEMPTS_MAX: u32 = 5;
const RETRY_DELAY: Duration = Duration::from_secs(2);

pub struct Options {
    /// The number of examples of each kind of problem.
    pub examples: usize,
    /// `subscriptions/sub-1`: where to begin.
    pub after: Option<String>,
    pub json: bool,
}

pub async fn run(database: &DatabaseSettings, tls: &Tls, options: Options) -> anyhow::Result<()> {
    let start = options.after.as_deref().map_or_else(|| Ok(Position::start()), parse_position)?;
    let store = Store::open(database.mongodb_url.connection_string(), tls).await?;
    let mut total = 0;
    for collection in Collection::ALL.into_iter().filter(|collection| *collection >= start.collection) {
        total += store.estimated_count(collection).await?;
    }
    let stop = stop_signal()?;
    let bar = progress(total, "documents");
    let mut check = DocumentCheck::new(store, start, options.examples, Utc::now());
    let mut attempts = 0;
    loop {
        // Between two pages, so that no document is reported twice by the run that continues.
        if stop.is_cancelled() {
            bar.finish_and_clear();
            print(check.report(), options.json)?;
            bail!("interrupted: {}", unread(&check));
        }
        match check.next_page().await {
            Ok(None) => break,
            Ok(Some(documents)) => {
                attempts = 0;
                bar.inc(documents as u64);
            }
            Err(StoreError::Unavailable(_) | StoreError::TimedOut) if attempts < ATTEMPTS_MAX => {
                attempts += 1;
                stop.run_until_cancelled(sleep(RETRY_DELAY)).await;
            }
            Err(error) => {
                bar.finish_and_clear();
                print(check.report(), options.json)?;
                return Err(error).with_context(|| unread(&check));
            }
        }
    }
    bar.finish_and_clear();
    let report = check.report();
    print(report, options.json)?;
    match report.total(Severity::Error) {
        0 => Ok(()),
        errors => bail!("{} in {}", count(errors, "problem"), database.mongodb_url.database()),
    }
}

fn print(report: &Report, json: bool) -> anyhow::Result<()> {
    let mut out = stdout().lock();
    if json {
        for group in report.groups() {
            writeln!(out, "{}", serde_json::to_string(group)?)?;
        }
        return Ok(());
    }
    let mut table = Table::new(&["", "collection", "problem", "field", "documents", "examples"]);
    for group in report.groups() {
        let mark = match group.severity {
            Severity::Error => "✗",
            Severity::Warning => "!",
        };
        let examples: Vec<String> =
            group.examples.iter().map(|example| format!("{}: {}", example.id, example.problem)).collect();
        table.add_row([
            mark.to_owned(),
            group.collection.to_owned(),
            group.kind.replace('_', " "),
            group.field.clone(),
            group.count.to_string(),
            examples.join("\n"),
        ]);
    }
    if report.groups().next().is_some() {
        writeln!(out, "{table}")?;
    }
    writeln!(
        out,
        "{}: {}, {}",
        count(report.documents(), "document"),
        count(report.total(Severity::Error), "error"),
        count(report.total(Severity::Warning), "warning")
    )?;
    Ok(())
}

/// That documents are left, and where to continue.
fn unread(check: &DocumentCheck) -> String {
    let place = check.position().and_then(shown_position);
    let place = place.map_or_else(String::new, |place| format!("; continue with --after {place}"));
    format!("not all documents were read{place}")
}

fn parse_position(text: &str) -> Result<Position, WrongConfiguration> {
    let parsed = text.split_once('/').and_then(|(collection, id)| {
        let collection = Collection::ALL.into_iter().find(|known| known.as_str() == collection)?;
        Some(Position { collection, after: Some(Bson::String(id.to_owned())) })
    });
    parsed.ok_or_else(|| {
        let text = printable(text);
        WrongConfiguration(format!(
            "--after cannot be \"{text}\": write a collection, a slash and an id: subscriptions/sub-1"
        ))
    })
}

/// As `--after` takes it. Ids that are not text cannot be given there.
fn shown_position(position: &Position) -> Option<String> {
    match &position.after {
        Some(Bson::String(id)) => Some(printable(&format!("{}/{id}", position.collection.as_str()))),
        _ => None,
    }
}
