//! The list of emails and events.

use axum::extract::Query;
use maud::{Markup, html};
use offramp::clock;
use offramp::store::outbox::admin::{EntryState, EntrySummary};
use serde::Deserialize;

use super::{EntryPath, matches};
use crate::cli::console::app::App;
use crate::cli::console::failure::{Answer, Failure};
use crate::cli::console::html::{ROWS_MAX, ago, columns, document_link, encoded, number, table, waiting};
use crate::cli::console::page::{Request, Section};

/// The number of documents that a page reads at most.
const DOCUMENTS_MAX: usize = 2_000;

#[derive(Deserialize)]
pub struct Wanted {
    #[serde(default)]
    state: String,
    #[serde(default)]
    with: String,
}

struct Listed {
    entries: Vec<EntrySummary>,
    /// Whether not all entries were looked at.
    is_cut: bool,
}

pub async fn show(request: Request, Query(Wanted { state, with }): Query<Wanted>) -> Answer {
    let state = if state == "waiting" { EntryState::Pending } else { EntryState::Failed };
    let Listed { entries, is_cut } = listed(&request.app, state, &with).await?;
    let path = path(state, &with);
    let rows = rows(&request, &entries, state);
    let content = html! {
        h1 { "Emails" }
        nav.tabs aria-label="State" {
            @for (own, path, name) in [(EntryState::Failed, "/emails", "Failed"), (EntryState::Pending, "/emails?state=waiting", "Waiting")] {
                a href=(path) aria-current=[(own == state).then_some("page")] { (name) (total(&request.app, own)) }
            }
        }
        @match state {
            EntryState::Failed => { p { "Emails and events that were given up and wait for a person. Repair the cause, then retry or drop them." } }
            EntryState::Pending => { p { "Emails and events that a worker sends when they are due. There is nothing to do here." } }
        }
        form.filter action="/emails" {
            @if state == EntryState::Pending { input type="hidden" name="state" value="waiting"; }
            label { "With " input type="search" name="with" value=(with) placeholder="part of the address, error, type or document" maxlength="320"; }
            button { "Filter" }
            @if !with.is_empty() { " " a href={ "/emails" @if state == EntryState::Pending { "?state=waiting" } } { "All" } }
        }
        @if entries.is_empty() { p.empty { @if with.is_empty() { "There are none." } @else { "None of the first " (number(DOCUMENTS_MAX as u64)) " documents with failed or waiting emails has this text." } } }
        @else if state == EntryState::Failed && request.app.allow_changes {
            form method="post" action="/emails/change" {
                input type="hidden" name="back" value=(path);
                input type="hidden" name="with" value=(with);
                input type="hidden" name="asked_at" value=(clock::now().timestamp_millis());
                p.actions {
                    @if with.is_empty() { "All that failed: " } @else { "All that failed with “" (with) "”: " }
                    button name="action" value="retry-all" { "Retry" } " "
                    button name="action" value="readdress-all" { "Retry at the current address" } " "
                    button.danger name="action" value="drop-all" { "Drop …" }
                }
                (rows)
                p.actions.selected {
                    "Selected: "
                    button name="action" value="retry-selected" { "Retry" } " "
                    button name="action" value="readdress-selected" { "Retry at the current address" } " "
                    button.danger name="action" value="drop-selected" { "Drop …" }
                }
            }
        }
        @else { (rows) }
        @if is_cut { p.hint { "There are more. `offramp outbox list` lists all." } }
    };
    Ok(request.page(Section::Emails, "Emails", &content))
}

fn path(state: EntryState, with: &str) -> String {
    let state = if state == EntryState::Pending { "waiting" } else { "failed" };
    format!("/emails?state={state}&with={}", encoded(with))
}

/// How many there were a moment ago, in parentheses.
fn total(app: &App, state: EntryState) -> Markup {
    let seen = app.watch.seen();
    let total = seen.samples.back().and_then(|sample| match state {
        EntryState::Failed => Some(sample.failed_emails?.plus(sample.failed_events?)),
        EntryState::Pending => Some(sample.pending_emails?.plus(sample.pending_events?)),
    });
    html! { @if let Some(total) = total { " (" (waiting(total)) ")" } }
}

async fn listed(app: &App, state: EntryState, with: &str) -> Result<Listed, Failure> {
    let mut stream = app.store.outbox_entries(state).await?;
    let mut entries = Vec::new();
    for _ in 0..DOCUMENTS_MAX {
        let Some(of_document) = stream.next().await? else { return Ok(Listed { entries, is_cut: false }) };
        entries.extend(of_document.into_iter().filter(|entry| matches(entry, with)));
        if entries.len() >= ROWS_MAX {
            let is_cut = entries.len() > ROWS_MAX || stream.next().await?.is_some();
            entries.truncate(ROWS_MAX);
            return Ok(Listed { entries, is_cut });
        }
    }
    Ok(Listed { entries, is_cut: true })
}

fn rows(request: &Request, entries: &[EntrySummary], state: EntryState) -> Markup {
    let has_boxes = state == EntryState::Failed && request.app.allow_changes;
    html! {
        (table(match state { EntryState::Failed => "Failed emails", EntryState::Pending => "Waiting emails" }, &html! {
            @if has_boxes { th { span.unseen { "Select" } } }
            (columns(&["What", "To", "About"])) th.number scope="col" { "Tried" }
            (columns(&["Error", match state { EntryState::Failed => "Failed", EntryState::Pending => "Due" }]))
        }, &html! {
                @for entry in entries {
                    tr {
                        @let path = EntryPath::of(entry);
                        @if has_boxes {
                            td { @if let Some(path) = &path { input type="checkbox" name="entry" value=(path.to_field()) aria-label={ "Select " (entry.what) " of " (entry.document_id) }; } }
                        }
                        td {
                            @match path.filter(|_| entry.kind == "mail") { Some(path) => { a href=(path.page()) { (entry.what) } } None => { (entry.what) } }
                            @if entry.kind == "event" { " " span.badge { "event" } }
                        }
                        td { (entry.recipient.as_deref().unwrap_or_default()) }
                        td { (document_link(entry.collection.as_str(), &entry.document_id)) }
                        td.number { (entry.attempts) }
                        td.error { (entry.error.as_deref().unwrap_or_default()) }
                        td { @if let Some(at) = entry.failed_at.or(entry.due) { (ago(at)) } }
                    }
                }
        }))
    }
}
