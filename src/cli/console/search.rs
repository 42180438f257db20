//! One search over everything.

use axum::extract::Query;
use axum::response::{IntoResponse, Redirect};
use maud::{Markup, html};
use offramp::advice;
use offramp::store::search::SearchError;
use offramp::support::EmailState;
use offramp::support::find::{Because, Found, FoundKind, Query as Search, find};
use serde::Deserialize;

use super::dead_letters::pages::matching;
use super::failure::{Answer, Failure};
use super::html::{ROWS_MAX, columns, document_link, encoded, instant, status_badge, table};
use super::page::{Request, Section};

/// The longest text to search for, in characters.
const TEXT_CHARS_MAX: usize = 320;

#[derive(Deserialize)]
pub struct Wanted {
    #[serde(default)]
    q: String,
}

pub async fn show(request: Request, Query(Wanted { q }): Query<Wanted>) -> Answer {
    let text = q.trim();
    if text.is_empty() || text.chars().count() > TEXT_CHARS_MAX {
        return Err(Failure::invalid(format!("Search for something with 1 to {TEXT_CHARS_MAX} characters.")));
    }
    let findings = search(&request, &Search::Text(text.to_owned())).await?;
    let dead_letters = match request.app.dead_letters.look(request.app.watch.dead_letters()).await {
        Ok(copy) => matching(&copy, text),
        Err(error) => html! { p.hint { "Dead letters cannot be searched now: " (error) "." } },
    };
    let has_dead_letters = !dead_letters.clone().into_string().is_empty();
    // What somebody typed the id of is shown at once.
    if let ([Found { kind, because: Because::Id, .. }], false) = (findings.found.as_slice(), has_dead_letters) {
        let page = match kind {
            FoundKind::Subscription => Some("subscription"),
            FoundKind::Account => Some("account"),
            FoundKind::Organization => None,
        };
        if let Some(page) = page {
            return Ok(Redirect::to(&format!("/{page}?id={}", encoded(text))).into_response());
        }
    }
    let content = html! {
        h1 { "“" (text) "”" }
        @for note in &findings.notes { p.hint { (note) } }
        @if findings.found.is_empty() && !has_dead_letters {
            p.empty { "Nothing found. The search knows current email addresses, Message-IDs, and whole ids of subscriptions, accounts, organizations, emails and commands." }
        }
        (rows(&findings.found))
        @if findings.has_more { p.hint { "There are more. `offramp find --limit` lists all." } }
        (dead_letters)
    };
    Ok(request.page_with_search(Section::Other, "Search", text, &content))
}

pub async fn search(request: &Request, query: &Search) -> Result<offramp::support::find::Findings, Failure> {
    find(&request.app.store, query, ROWS_MAX).await.map_err(|error| match error {
        SearchError::MissingIndex(_) => Failure::invalid(advice::append(&error, Some(advice::MISSING_INDEXES))),
        SearchError::Store(error) => error.into(),
    })
}

fn rows(found: &[Found]) -> Markup {
    html! {
        @if !found.is_empty() {
            (table("Found", &columns(&["What", "Name", "Status", "Last day", "Why"]), &html! {
                @for found in found { tr {
                    td { @match found.kind {
                        FoundKind::Subscription => { "Subscription" p { (document_link("subscriptions", &found.id)) } }
                        FoundKind::Account => { "Account" p { (document_link("accounts", &found.id)) } }
                        FoundKind::Organization => { "Organization" p.id { (found.id) } }
                    } }
                    td { (found.name.as_deref().unwrap_or_default()) @if let Some(plan) = &found.plan { p.hint { (plan) } } }
                    td { @if let Some(status) = found.status { (status_badge(status)) } }
                    td { @if let Some(day) = found.last_day { (day) } }
                    td { (because(&found.because)) }
                } }
            }))
        }
    }
}

fn because(because: &Because) -> Markup {
    html! {
        @match because {
            Because::Id => { "It has this id" }
            Because::Account => { "It belongs to the account" }
            Because::Address { address } => { "It has the address " (address.as_deref().unwrap_or_default()) }
            Because::Email(email) => {
                "It is about this email: " (email.template)
                @if let Some(to) = &email.to { " to " (to) } " "
                @match email.state {
                    EmailState::Waiting => { span.badge.busy { "waiting" } }
                    EmailState::Sent => { span.badge.good { "accepted by the mail server" } @if let Some(at) = email.sent_at { " " (instant(at)) } }
                    EmailState::Failed => { span.badge.bad { "failed" } }
                    EmailState::Dropped => { span.badge.bad { "dropped" } }
                }
            }
            Because::AppliedCommand { source, id, applied_at, unchanged } => {
                "It applied the command " span.id { (id) } " of " span.id { (source) }
                @if *unchanged { ", which changed nothing" }
                @if let Some(at) = applied_at { ", " (instant(*at)) }
            }
            Because::RejectedCommand { at, rejected } => {
                "The command named it and was rejected: " (rejected.detail)
                @if let Some(at) = at { " " (instant(*at)) }
            }
            Because::Undecided { .. } | Because::EndsSoon => {}
        }
    }
}
