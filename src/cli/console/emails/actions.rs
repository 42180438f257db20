//! Retrying and dropping emails and events that failed.

use std::collections::BTreeSet;
use std::sync::Arc;

use axum::Form;
use chrono::{DateTime, Utc};
use maud::html;
use offramp::clock;
use offramp::store::outbox::admin::{EntryState, EntrySummary};
use offramp::store::{Store, StoreError};
use offramp_domain::contact::Mailbox;
use offramp_mail::check_recipient;

use super::{EntryPath, matches};
use crate::cli::console::app::App;
use crate::cli::console::changes::{Change, Outcome};
use crate::cli::console::failure::{Answer, Failure};
use crate::cli::console::form::Fields;
use crate::cli::console::html::{ROWS_MAX, document_link};
use crate::cli::console::page::{Request, Section};
use crate::cli::terminal::count;

const SECTION: &str = "/emails";

/// The largest number of entries changed at once.
const BATCH_MAX: usize = 500;

/// What a visitor wants to happen.
#[derive(Clone, Debug)]
enum Action {
    Retry,
    /// At the address that the account or organization has now.
    Readdress,
    /// At this address.
    Address(String),
    Drop,
}

/// To which entries.
#[derive(Clone, Debug)]
enum Scope {
    Selected(Vec<EntryPath>),
    /// Those with this text that had failed by then: others were not on the page.
    All {
        with: String,
        failed_by: DateTime<Utc>,
    },
}

pub async fn change(request: Request, Form(fields): Form<Fields>) -> Answer {
    let (action, scope) = fields.action();
    let action = match action {
        "retry" => Action::Retry,
        "readdress" => Action::Readdress,
        "address" => {
            let address = fields.get("address").trim();
            check_recipient(address).map_err(|error| Failure::invalid(format!("Nothing was changed: {error}.")))?;
            Action::Address(address.to_owned())
        }
        "drop" => Action::Drop,
        _ => return Err(Failure::invalid("The form names no action.")),
    };
    if scope == "all" && matches!(action, Action::Address(_)) {
        return Err(Failure::invalid("Another address is for one email. Nothing was changed."));
    }
    let scope = if scope == "all" {
        let asked_at = fields.get("asked_at").parse().ok().and_then(DateTime::from_timestamp_millis);
        Scope::All { with: fields.get("with").to_owned(), failed_by: asked_at.unwrap_or_else(clock::now) }
    } else {
        let entries = fields.all("entry").map(EntryPath::parse);
        let mut entries: Vec<EntryPath> =
            entries.collect::<Option<_>>().ok_or_else(|| Failure::invalid("The form names no entry."))?;
        entries.truncate(ROWS_MAX);
        Scope::Selected(entries)
    };
    let whom = match &scope {
        Scope::Selected(entries) if entries.is_empty() => {
            return Err(Failure::invalid("No email is selected. Nothing was changed."));
        }
        Scope::Selected(entries) => count(entries.len() as u64, "failed email"),
        Scope::All { with, .. } if with.is_empty() => "all failed emails and events".to_owned(),
        Scope::All { .. } => "all failed emails and events that match the filter".to_owned(),
    };
    if matches!(action, Action::Drop) && !fields.is_confirmed() {
        let asked_at = clock::now().timestamp_millis().to_string();
        let content = html! {
            h1 { "Drop " (whom) "?" }
            @if let Scope::Selected(entries) = &scope {
                ul { @for entry in entries { li { a href=(entry.page()) { "An email" } " about " (document_link(entry.collection.as_str(), &entry.document)) } } }
            }
            p { "They will never be sent. The timeline says that they were dropped." }
            (fields.confirmation(SECTION, &[("asked_at", asked_at)], &format!("Drop {whom} permanently")))
        };
        return Ok(request.page(Section::Emails, "Drop emails", &content));
    }
    // This is logged: no address, and no text of a filter, which may be one.
    let what = match &action {
        Action::Retry => format!("Retry {whom}"),
        Action::Readdress => format!("Retry {whom} at the current address"),
        Action::Address(_) => format!("Retry {whom} at another address"),
        Action::Drop => format!("Drop {whom}"),
    };
    let (app, back) = (Arc::clone(&request.app), fields.back(SECTION).to_owned());
    Ok(request.app.changes.begin(&request.visitor.name, &what, back, |change| make(app, change, action, scope)))
}

/// What was done so far.
#[derive(Default)]
struct Tally {
    found: usize,
    done: usize,
    /// Those whose recipient has no address now.
    without_address: usize,
}

async fn make(app: Arc<App>, change: Arc<Change>, action: Action, scope: Scope) -> (Outcome, Vec<String>) {
    let mut result = Tally::default();
    let made = carry_out(&app.store, &change, &action, &scope, &mut result).await;
    let wanted = match &scope {
        Scope::Selected(entries) => entries.len(),
        Scope::All { .. } => result.found,
    };
    let number = count(result.done as u64, "email");
    let mut sentences = vec![match action {
        Action::Retry | Action::Readdress | Action::Address(_) => {
            format!("Due now: {number}; a worker sends them within seconds.")
        }
        Action::Drop => format!("Dropped {number}."),
    }];
    if result.without_address > 0 {
        sentences.push(format!("Still failed: {}, because there is no current address.", result.without_address));
    }
    if let Err(error) = &made {
        sentences.push(format!("Interrupted: MongoDB: {}. The same again is safe.", error.reason()));
    }
    let rest = wanted - (result.done + result.without_address).min(wanted);
    if rest > 0 && made.is_ok() {
        sentences.push(format!("No longer failed: {rest}. Somebody else was faster."));
    }
    let outcome = match result.done {
        done if done == wanted && made.is_ok() => Outcome::Done,
        0 => Outcome::Failed,
        _ => Outcome::Incomplete,
    };
    (outcome, sentences)
}

async fn carry_out(
    store: &Store,
    change: &Change,
    action: &Action,
    scope: &Scope,
    result: &mut Tally,
) -> Result<(), StoreError> {
    match scope {
        Scope::Selected(paths) => {
            let documents: BTreeSet<_> = paths.iter().map(|path| (path.collection, path.document.as_str())).collect();
            let mut batch = Vec::new();
            for (collection, id) in documents {
                let entries = store.outbox_of(collection, id).await?;
                let is_meant =
                    |entry: &EntrySummary| entry.failed_at.is_some() && paths.iter().any(|path| path.is_of(entry));
                batch.extend(entries.into_iter().filter(is_meant));
            }
            apply(store, action, batch, result).await
        }
        Scope::All { with, failed_by } => {
            let mut stream = store.outbox_entries(EntryState::Failed).await?;
            let mut batch = Vec::new();
            loop {
                let next = stream.next().await?;
                let is_last = next.is_none();
                let is_meant =
                    |entry: &EntrySummary| entry.failed_at.is_some_and(|at| at <= *failed_by) && matches(entry, with);
                batch.extend(next.into_iter().flatten().filter(is_meant));
                if is_last || batch.len() >= BATCH_MAX {
                    apply(store, action, std::mem::take(&mut batch), result).await?;
                    change.progress(result.found as u64, result.found as u64);
                }
                if is_last {
                    return Ok(());
                }
            }
        }
    }
}

async fn apply(
    store: &Store,
    action: &Action,
    entries: Vec<EntrySummary>,
    result: &mut Tally,
) -> Result<(), StoreError> {
    result.found += entries.len();
    let now = clock::now();
    result.done += match action {
        Action::Retry => store.retry(&entries, now).await?,
        Action::Drop => store.drop_failed(&entries).await?,
        Action::Readdress => {
            let addresses = store.current_addresses(&entries).await?;
            let known: Vec<(EntrySummary, Mailbox)> =
                entries.iter().cloned().zip(addresses).filter_map(|(entry, to)| Some((entry, to?))).collect();
            result.without_address += entries.len() - known.len();
            store.retry_to(&known, now).await?
        }
        Action::Address(address) => {
            let to = Mailbox { name: None, email: address.clone() };
            let emails = entries.into_iter().filter(|entry| entry.kind == "mail");
            let known: Vec<_> = emails.map(|entry| (entry, to.clone())).collect();
            store.retry_to(&known, now).await?
        }
    };
    Ok(())
}
