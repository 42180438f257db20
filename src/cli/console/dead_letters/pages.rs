//! The pages of dead letters.

use axum::extract::{Path, Query};
use axum::response::{IntoResponse, Redirect};
use maud::{Markup, html};
use serde::Deserialize;
use serde_json::Value;

use super::board::{Content, Copied, Group, Snapshot};
use crate::cli::console::failure::{Answer, Failure};
use crate::cli::console::html::{ROWS_MAX, ago, columns, document_link, encoded, facts, instant, number, table, text};
use crate::cli::console::page::{Request, Section};
use crate::cli::terminal::count;

/// The largest part of a body that is shown, in characters.
const BODY_SHOWN_MAX: usize = 64 * 1024;

/// All groups.
pub async fn groups(request: Request) -> Answer {
    let in_queue = request.app.watch.dead_letters();
    let copy = request.app.dead_letters.look(in_queue).await?;
    let total = copy.letters.len() as u64 + copy.others;
    let content = html! {
        h1 { "Dead letters" }
        p { "Commands that could not be processed. Whatever they wanted has not happened. Repair the cause, then replay them." }
        (age_of(&request, &copy))
        @if total == 0 { p.empty { "There are none." } }
        @else {
            p { (number(total)) " in " (count(copy.groups.len() as u64, "group")) ", the largest first." }
            (table("Groups", &html! { th.number scope="col" { "Number" } (columns(&["Reason and error", "Oldest", "Newest"])) }, &html! {
                @for group in copy.groups.iter().take(ROWS_MAX) {
                    tr {
                        td.number { (number(group.members.len() as u64)) }
                        td { a href={ "/dead-letters/groups/" (group.key) } { (group.reason) } p.error { (group.error) } }
                        td { @if let Some(at) = group.oldest { (ago(at)) } }
                        td { @if let Some(at) = group.newest { (ago(at)) } }
                    }
                }
            }))
            @if copy.groups.len() > ROWS_MAX { p.hint { "… and " (copy.groups.len() - ROWS_MAX) " more groups." } }
            @if copy.others > 0 {
                p.hint { "The oldest " (number(copy.letters.len() as u64)) " are shown. Replay or drop some to see the others, or use `offramp dead-letters`." }
            }
        }
    };
    Ok(request.page(Section::DeadLetters, "Dead letters", &content))
}

#[derive(Deserialize)]
pub struct Place {
    #[serde(default)]
    from: usize,
}

/// One group.
pub async fn group(request: Request, Path(key): Path<String>, Query(Place { from }): Query<Place>) -> Answer {
    let copy = request.app.dead_letters.look(request.app.watch.dead_letters()).await?;
    let group = found_group(&copy, &key)?;
    let total = group.members.len();
    let from = from.min(total);
    let rows: Vec<&Copied> = copy.of_group(group).skip(from).take(ROWS_MAX).collect();
    let path = format!("/dead-letters/groups/{key}");
    let content = html! {
        p.path { a href="/dead-letters" { "Dead letters" } }
        h1 { (group.reason) }
        p.error { (group.error) }
        (age_of(&request, &copy))
        form method="post" action="/dead-letters/change" {
            input type="hidden" name="back" value=(path);
            input type="hidden" name="group" value=(key);
            input type="hidden" name="seen_at" value=(copy.at.timestamp_millis());
            (buttons(&request, &format!("all {}", count(total as u64, "dead letter")), "group"))
            (table("Dead letters", &html! {
                @if request.app.allow_changes { th { span.unseen { "Select" } } }
                (columns(&["Dead letter", "Command", "About", "Since"]))
            }, &html! { @for copied in &rows { (row(&request, copied)) } }))
            @if request.app.allow_changes {
                p.actions.selected { "Selected: " button name="action" value="replay-selected" { "Replay" } " " button.danger name="action" value="drop-selected" { "Drop …" } }
            }
        }
        (pages(&path, from, rows.len(), total))
    };
    Ok(request.page(Section::DeadLetters, &format!("Dead letters: {}", group.reason), &content))
}

fn row(request: &Request, Copied { letter, .. }: &Copied) -> Markup {
    html! {
        tr {
            @if request.app.allow_changes {
                td { input type="checkbox" name="id" value=(letter.id) aria-label={ "Select " (letter.handle) }; }
            }
            td { a.id href={ "/dead-letters/" (letter.handle) } { (letter.handle) } }
            td { @if let Some(kind) = &letter.kind { (kind) } @if let Some(id) = &letter.command_id { p.id { (id) } } }
            td {
                @if let Some(id) = &letter.subscription_id { (document_link("subscriptions", id)) }
                @else if let Some(id) = &letter.account_id { (document_link("accounts", id)) }
            }
            td { @if let Some(at) = letter.died_at { (ago(at)) } }
        }
    }
}

/// Links to the rows before and after these.
fn pages(path: &str, from: usize, shown: usize, total: usize) -> Markup {
    html! {
        @if shown < total {
            nav.pages aria-label="Rows" {
                @if from > 0 { a href={ (path) "?from=" (from.saturating_sub(ROWS_MAX)) } { "Previous" } }
                span { (number((from + 1).min(total) as u64)) " to " (number((from + shown) as u64)) " of " (number(total as u64)) }
                @if from + shown < total { a href={ (path) "?from=" (from + ROWS_MAX) } { "Next" } }
            }
        }
    }
}

/// One dead letter.
pub async fn one(request: Request, Path(handle): Path<String>) -> Answer {
    let copy = request.app.dead_letters.look(request.app.watch.dead_letters()).await?;
    let gone = || Failure::not_found(format!("There is no dead letter {handle} any more, or not yet in this copy."));
    let Copied { letter, content } = copy.find(&handle).ok_or_else(gone)?;
    let page = html! {
        p.path { a href="/dead-letters" { "Dead letters" } }
        h1 { "Dead letter " span.id { (handle) } }
        p.error { (letter.error) }
        (facts(&[
            ("Reason", text(Some(&letter.reason))),
            ("Since", letter.died_at.map(|at| html! { (instant(at)) ", " (ago(at)) })),
            ("Type", text(letter.kind.as_deref())),
            ("Source", text(letter.source.as_deref())),
            ("Command id", text(letter.command_id.as_deref())),
            ("Message id", text(letter.message_id.as_deref())),
            ("Subscription", letter.subscription_id.as_ref().map(|id| document_link("subscriptions", id))),
            ("Account", letter.account_id.as_ref().map(|id| document_link("accounts", id))),
            ("Queue", text(letter.queue.as_deref())),
            ("Replay", letter.origin.is_none().then(|| html! { "Impossible: it names no work queue of this prefix." })),
        ]))
        form method="post" action="/dead-letters/change" {
            input type="hidden" name="back" value="/dead-letters";
            input type="hidden" name="id" value=(letter.id);
            (buttons(&request, "it", "selected"))
        }
        @match content {
            Some(content) => { (shown_content(&handle, letter.body_bytes, content)) }
            None => { p.hint { "The page has no room for its body: `offramp dead-letters show " (handle) "` prints it." } }
        }
    };
    Ok(request.page(Section::DeadLetters, &format!("Dead letter {handle}"), &page))
}

fn shown_content(handle: &str, bytes: usize, Content { headers, body }: &Content) -> Markup {
    let pretty = serde_json::from_slice::<Value>(body).and_then(|value| serde_json::to_string_pretty(&value));
    let shown = pretty.unwrap_or_else(|_| String::from_utf8_lossy(body).into_owned());
    let cut: String = shown.chars().take(BODY_SHOWN_MAX).collect();
    html! {
        h2 { "Body" }
        p { (count(bytes as u64, "byte")) ", " a href={ "/dead-letters/" (handle) "/body" } download={ (handle) ".json" } { "download it unchanged" } }
        pre tabindex="0" aria-label="Body" { (cut) }
        @if cut.len() < shown.len() { p.hint { "… and more, in the download." } }
        h2 { "Headers" }
        dl.facts { @for (name, value) in headers.as_object().into_iter().flatten() {
            div { dt { (name) } dd { @match value.as_str() { Some(text) => { (text) } None => { (value) } } } }
        } }
    }
}

/// The body of one, unchanged.
pub async fn body(request: Request, Path(handle): Path<String>) -> Answer {
    let copy = request.app.dead_letters.look(None).await?;
    let content = copy.find(&handle).and_then(|copied| copied.content.as_ref());
    let body =
        &content.ok_or_else(|| Failure::not_found("There is no such dead letter, or no copy of its body."))?.body;
    let headers = [
        ("content-type", "application/octet-stream"),
        ("content-disposition", "attachment"),
        ("content-security-policy", "default-src 'none'; sandbox"),
    ];
    Ok((headers, body.clone()).into_response())
}

/// Copies the dead letters anew.
pub async fn refresh(request: Request) -> Answer {
    request.app.dead_letters.copy_now().await?;
    Ok(Redirect::to("/dead-letters").into_response())
}

fn age_of(request: &Request, copy: &Snapshot) -> Markup {
    let now = request.app.watch.dead_letters();
    let size = copy.letters.len() as u64 + copy.others;
    html! {
        form.age method="post" action="/dead-letters/refresh" {
            "Copied " (ago(copy.at))
            @if let Some(now) = now.map(u64::from).filter(|&now| now != size) { ", since when their number has become " (number(now)) }
            ". Looking at the copy locks nothing. " button.quiet { "Copy again" }
        }
    }
}

/// The buttons of a change.
fn buttons(request: &Request, whom: &str, scope: &str) -> Markup {
    html! {
        @if request.app.allow_changes {
            p.actions {
                button name="action" value={ "replay-" (scope) } { "Replay " (whom) } " "
                button.danger name="action" value={ "drop-" (scope) } { "Drop " (whom) " …" }
            }
        }
    }
}

pub fn found_group<'a>(copy: &'a Snapshot, key: &str) -> Result<&'a Group, Failure> {
    copy.group(key).ok_or_else(|| {
        Failure::not_found("There is no such group any more: its dead letters were replayed or dropped.")
    })
}

/// A list of dead letters for the search.
pub fn matching(copy: &Snapshot, wanted: &str) -> Markup {
    let is_about = |copied: &&Copied| {
        let letter = &copied.letter;
        letter.is_named(wanted)
            || letter.subscription_id.as_deref() == Some(wanted)
            || letter.account_id.as_deref() == Some(wanted)
    };
    let found: Vec<&Copied> = copy.letters.iter().filter(is_about).take(ROWS_MAX).collect();
    html! {
        @if !found.is_empty() {
            h2 { "Dead letters" }
            ul { @for Copied { letter, .. } in found {
                li { a href={ "/dead-letters/" (encoded(&letter.handle)) } { (letter.handle) } " " (letter.kind.as_deref().unwrap_or_default()) ": " (letter.error) }
            } }
        }
    }
}
