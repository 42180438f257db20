//! Replaying and dropping dead letters.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use axum::Form;
use axum::response::IntoResponse;
use chrono::DateTime;
use maud::html;
use offramp::advice;
use offramp::amqp::{BulkReport, DeadLetters, Publisher};
use uuid::Uuid;

use super::board::{Copied, Snapshot};
use super::pages::found_group;
use crate::cli::console::app::App;
use crate::cli::console::changes::{Change, Outcome};
use crate::cli::console::failure::{Answer, Failure};
use crate::cli::console::form::Fields;
use crate::cli::console::page::{Request, Section};
use crate::cli::terminal::count;

/// What a visitor wants to happen.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Action {
    Replay,
    Drop,
}

/// The number of dead letters that a question names.
const NAMED_MAX: usize = 20;

const SECTION: &str = "/dead-letters";

pub async fn change(request: Request, Form(fields): Form<Fields>) -> Answer {
    let (action, scope) = fields.action();
    let action = match action {
        "replay" => Action::Replay,
        "drop" => Action::Drop,
        _ => return Err(Failure::invalid("The form names no action.")),
    };
    let copy = request.app.dead_letters.look(None).await?;
    let ids = if scope == "group" {
        // Those that died since the visitor saw the group were not part of it.
        let seen_at = fields.get("seen_at").parse().ok().and_then(DateTime::from_timestamp_millis).unwrap_or(copy.at);
        let was_seen = |copied: &&Copied| copied.letter.died_at.is_none_or(|at| at <= seen_at);
        Snapshot::ids(copy.of_group(found_group(&copy, fields.get("group"))?).filter(was_seen))
    } else {
        let chosen: HashSet<Uuid> = fields.all("id").filter_map(|id| id.parse().ok()).collect();
        let is_chosen = |copied: &&Copied| chosen.contains(&copied.letter.id);
        Snapshot::ids(copy.letters.iter().filter(is_chosen))
    };
    if ids.is_empty() {
        return Err(Failure::invalid("No dead letter is selected, or those are gone. Nothing was changed."));
    }
    let number = count(ids.values().sum(), "dead letter");
    // Exactly what was confirmed: a group may have changed since.
    let digest = digest(&ids);
    if fields.is_confirmed() && fields.get("digest") != digest {
        return Err(Failure::invalid(
            "The dead letters have changed since you were asked. Nothing was dropped: look again.",
        ));
    }
    if action == Action::Drop && !fields.is_confirmed() {
        let content = html! {
            h1 { "Drop " (number) "?" }
            ul {
                @for Copied { letter, .. } in copy.letters.iter().filter(|copied| ids.contains_key(&copied.letter.id)).take(NAMED_MAX) {
                    li { a href={ "/dead-letters/" (letter.handle) } { (letter.handle) } " " (letter.kind.as_deref().unwrap_or_default()) " " span.id { (letter.command_id.as_deref().unwrap_or_default()) } }
                }
                @if ids.len() > NAMED_MAX { li { "… and " (ids.len() - NAMED_MAX) " more" } }
            }
            p { "They are deleted permanently: the commands will never be processed. A copy can be downloaded from the page of each." }
            (fields.confirmation(SECTION, &[("digest", digest)], &format!("Drop {number} permanently")))
        };
        return Ok(request.page(Section::DeadLetters, "Drop dead letters", &content).into_response());
    }
    let what = match action {
        Action::Replay => format!("Replay {number}"),
        Action::Drop => format!("Drop {number}"),
    };
    let app = Arc::clone(&request.app);
    let back = fields.back(SECTION).to_owned();
    Ok(request.app.changes.begin(&request.visitor.name, &what, back, |change| make(app, change, action, ids)))
}

/// Differs if anything in it does.
fn digest(ids: &HashMap<Uuid, u64>) -> String {
    let mut sorted: Vec<String> = ids.iter().map(|(id, number)| format!("{id} {number}")).collect();
    sorted.sort_unstable();
    Uuid::new_v5(&Uuid::NAMESPACE_OID, sorted.join("\n").as_bytes()).simple().to_string()
}

async fn make(app: Arc<App>, change: Arc<Change>, action: Action, ids: HashMap<Uuid, u64>) -> (Outcome, Vec<String>) {
    let wanted: u64 = ids.values().sum();
    let mut report = BulkReport::default();
    let _held = app.dead_letters.hold();
    let letters = match DeadLetters::open(&app.broker, &app.topology).await {
        Ok(letters) => letters,
        Err(error) => {
            let why = advice::append(&error, advice::dead_letters_error(&error));
            return (Outcome::Failed, vec![format!("Nothing was changed: {why}.")]);
        }
    };
    let progress = |looked_at, total| change.progress(looked_at, total);
    let made = match action {
        Action::Replay => {
            let publisher = Publisher::new(app.broker.clone());
            let is_selected = |letter: &offramp::amqp::DeadLetter| ids.contains_key(&letter.id);
            let made = letters.replay(&publisher, is_selected, progress, &mut report).await;
            publisher.close().await;
            made
        }
        Action::Drop => letters.drop_selected(ids, progress, &mut report).await,
    };
    letters.close().await;
    let mut sentences = Vec::new();
    match action {
        Action::Replay => {
            let queues = report.replayed.iter().map(|(queue, number)| format!("{number} to {queue}"));
            let queues = queues.collect::<Vec<_>>().join(", ");
            if report.done() > 0 {
                sentences.push(format!("Sent back {}: {queues}.", count(report.done(), "dead letter")));
            }
        }
        Action::Drop => sentences.push(format!("Dropped {}.", count(report.dropped, "dead letter"))),
    }
    if report.unroutable > 0 {
        let number = count(report.unroutable, "dead letter");
        sentences
            .push(format!("Kept {number}: no work queue of this prefix is named, so there is no queue to send to."));
    }
    if let Some(error) = &report.error {
        let why = advice::append(error, advice::replay_error(error));
        sentences.push(format!("Kept {}: {why}.", count(report.failed, "dead letter")));
    }
    if let Err(error) = &made {
        let why = advice::append(error, advice::dead_letters_error(error));
        sentences.push(format!("Interrupted: {why}."));
    }
    let rest = wanted.saturating_sub(report.done() + report.unroutable + report.failed);
    if rest > 0 {
        let number = count(rest, "dead letter");
        sentences.push(if made.is_ok() && report.error.is_none() {
            format!("No longer there: {number}. Somebody else was faster.")
        } else {
            // Of the last batch, some may have been done.
            format!("Not known to be done: {number}. Copy the dead letters again to see which are left.")
        });
    }
    if let Err(error) = app.dead_letters.copy_now().await {
        sentences.push(format!("The page of dead letters shows an older copy: {error}."));
    }
    let outcome = match report.done() {
        done if done >= wanted && made.is_ok() => Outcome::Done,
        0 if made.is_ok() => Outcome::Failed,
        _ => Outcome::Incomplete,
    };
    (outcome, sentences)
}
