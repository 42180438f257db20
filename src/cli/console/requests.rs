//! Requests that wait for a decision, and the decision.

use std::sync::Arc;
use std::time::Duration;

use axum::Form;
use axum::extract::Query;
use chrono::{NaiveDate, SecondsFormat, TimeDelta};
use maud::{Markup, html};
use offramp::amqp::{Outgoing, PublishError, Publisher};
use offramp::clock;
use offramp::support::find::{Because, Query as Search, find};
use offramp_domain::command_ref::CommandType;
use serde::Deserialize;
use serde_json::json;
use tokio::time::{Instant, sleep};
use uuid::Uuid;

use super::app::App;
use super::changes::Outcome;
use super::failure::{Answer, Failure};
use super::html::{ago, columns, document_link, encoded, no_default, table};
use super::page::{Request, Section};
use super::search::search;

/// The ages by which the page filters, in days.
const AGES: [(i64, &str); 4] = [(0, "All"), (3, "Over 3 days"), (7, "Over 7 days"), (30, "Over 30 days")];
/// `source` of the commands that visitors send, and the id of the administrator who acts: visitors have no ids, and must not borrow one.
const SOURCE: &str = "offramp-console";
/// How long to wait for a worker's decision.
const DECISION_MAX: Duration = Duration::from_secs(20);
const POLL_EVERY: Duration = Duration::from_millis(250);
/// The longest note, in characters.
const NOTE_CHARS_MAX: usize = 2_000;

#[derive(Deserialize)]
pub struct Wanted {
    #[serde(default)]
    days: i64,
    #[serde(default)]
    organization: String,
}

pub async fn list(request: Request, Query(Wanted { days, organization }): Query<Wanted>) -> Answer {
    // All of them: also those of senders whose clock is ahead.
    let age = if days > 0 { TimeDelta::try_days(days.min(36_500)) } else { TimeDelta::try_days(-1_000_000) };
    let since = clock::now() - age.unwrap_or_default();
    let organization_id = Some(organization.trim().to_owned()).filter(|id| !id.is_empty());
    let findings = search(&request, &Search::UndecidedSince { since, organization_id }).await?;
    let content = html! {
        h1 { "Requests" }
        p { "Cancellation requests that no administrator has decided, the oldest first." }
        nav.tabs aria-label="Age" {
            @for (own, name) in AGES {
                a href={ "/requests?days=" (own) "&organization=" (encoded(&organization)) } aria-current=[(own == days).then_some("page")] { (name) }
            }
        }
        form.filter action="/requests" {
            input type="hidden" name="days" value=(days);
            label { "Organization " input type="search" name="organization" value=(organization) placeholder="its id" maxlength="128"; }
            button { "Filter" }
        }
        @if findings.found.is_empty() { p.empty { "There are none." } }
        @else {
            (table("Requests", &columns(&["Sent", "Subscription", "Participant", "Organization", "Reason"]), &html! {
                @for found in &findings.found { tr {
                    @let (requested_at, reason) = match &found.because { Because::Undecided { requested_at, reason } => (*requested_at, reason.as_deref()), _ => (None, None) };
                    td { @if let Some(at) = requested_at { (ago(at)) } }
                    td { (document_link("subscriptions", &found.id)) @if let Some(plan) = &found.plan { p.hint { (plan) } } }
                    td { (found.name.as_deref().unwrap_or_default()) }
                    td.id { (found.organization_id.as_deref().unwrap_or_default()) }
                    td { (reason.unwrap_or_default()) }
                } }
            }))
            @if findings.has_more { p.hint { "There are more. They move up as these are decided." } }
        }
    };
    Ok(request.page(Section::Requests, "Requests", &content))
}

/// The form that decides a request.
pub fn decision_form(subscription: &str, organization: &str) -> Markup {
    html! {
        form.decide method="post" action="/requests/decide" {
            (no_default())
            input type="hidden" name="subscription" value=(subscription);
            input type="hidden" name="organization" value=(organization);
            label { "Note to the client, in their language" textarea name="note" rows="3" maxlength=(NOTE_CHARS_MAX) {} }
            label { "Date of the last invoice, to accept only; empty: the newest existing invoice" input type="date" name="final_billing_date"; }
            p.actions {
                button name="decision" value="accept" { "Accept" } " "
                button.danger name="decision" value="decline" { "Decline" }
            }
            p.hint { "A worker decides, and emails the client. An accepted request cannot be taken back." }
        }
    }
}

#[derive(Deserialize)]
pub struct Decided {
    subscription: String,
    organization: String,
    decision: String,
    #[serde(default)]
    note: String,
    #[serde(default)]
    final_billing_date: String,
}

pub async fn decide(request: Request, Form(decided): Form<Decided>) -> Answer {
    let Decided { subscription, organization, decision, note, final_billing_date } = decided;
    let note = note.trim().replace("\r\n", "\n");
    if note.chars().count() > NOTE_CHARS_MAX {
        return Err(Failure::invalid(format!(
            "The note has more than {NOTE_CHARS_MAX} characters. Nothing was decided."
        )));
    }
    let name = request.visitor.name.clone();
    let mut data = json!({
        "organization_id": organization, "subscription_id": subscription, "decision": decision,
        "actor": { "role": "admin", "id": SOURCE, "name": name },
    });
    if !note.is_empty() {
        data["note"] = note.into();
    }
    let what = match decision.as_str() {
        "accept" => format!("Accept the request of {subscription}"),
        "decline" => format!("Decline the request of {subscription}"),
        _ => return Err(Failure::invalid("The form names no decision.")),
    };
    if decision == "accept" && !final_billing_date.is_empty() {
        let day: NaiveDate =
            final_billing_date.parse().map_err(|_| Failure::invalid("The date of the last invoice is no date."))?;
        data["final_billing_date"] = day.to_string().into();
    }
    let app = Arc::clone(&request.app);
    let back = format!("/subscription?id={}", encoded(&subscription));
    Ok(request.app.changes.begin(&request.visitor.name, &what, back, |_| send(app, data)))
}

/// Publishes the decision as an administrator's command, and waits for what a worker makes of it.
async fn send(app: Arc<App>, data: serde_json::Value) -> (Outcome, Vec<String>) {
    let id = Uuid::new_v4().to_string();
    let kind = CommandType::CancellationConfirmation;
    let time = clock::now().to_rfc3339_opts(SecondsFormat::Millis, true);
    let command = json!({
        "specversion": "1.0", "id": id, "source": SOURCE, "type": kind.as_str(), "time": time, "data": data,
    });
    // An administrator looks at a request that is there, so a command that finds none need not wait for one.
    let message = Outgoing::new(app.topology.command_exchange(), kind.as_str(), command.to_string().into_bytes())
        .mandatory()
        .content_type("application/cloudevents+json")
        .message_id(&id)
        .header("offramp-wait", "false");
    let publisher = Publisher::new(app.broker.clone());
    let sent = publisher.publish_all(&[message]).await.pop();
    publisher.close().await;
    if let Some(Err(error @ (PublishError::Unroutable | PublishError::Nacked(_)))) = sent {
        return (Outcome::Failed, vec![format!("The decision could not be sent: {error}.")]);
    }
    // Otherwise RabbitMQ has it, or may have it.
    let mut doubts = Vec::new();
    let sent_at = Instant::now();
    while sent_at.elapsed() < DECISION_MAX {
        sleep(POLL_EVERY).await;
        let findings = match find(&app.store, &Search::Command(id.clone()), 1).await {
            Ok(findings) => findings,
            Err(error) => {
                doubts = vec![format!("It could not be looked up: {error}.")];
                continue;
            }
        };
        doubts.clone_from(&findings.notes);
        match findings.found.first().map(|found| (&found.because, found.last_day)) {
            Some((Because::AppliedCommand { .. }, last_day)) => {
                let day = last_day.map(|day| format!(" The last day of access is {day}.")).unwrap_or_default();
                return (Outcome::Done, vec![format!("It is decided, and the client is told by email.{day}")]);
            }
            Some((Because::RejectedCommand { rejected, .. }, _)) => {
                return (Outcome::Failed, vec![format!("It was rejected ({}): {}", rejected.reason, rejected.detail)]);
            }
            _ => {}
        }
    }
    let seconds = DECISION_MAX.as_secs();
    let late = format!(
        "It was sent (command {id}), and no worker has decided it within {seconds} s. It is not lost: see the timeline \
         and the dead letters later, and the overview for what is not ready."
    );
    doubts.insert(0, late);
    (Outcome::Incomplete, doubts)
}
