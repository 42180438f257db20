//! A subscription or an account: what it is, and what happened to it.

use std::collections::HashSet;

use axum::extract::Query;
use axum::response::Response;
use chrono::NaiveDate;
use chrono_tz::Tz;
use maud::{Markup, html};
use offramp::store::Collection;
use offramp::support::{
    AccountView, CardNotice, Change, Decision, Email, EmailState, Happening, LookUp, PaymentFailure, RejectedCommand,
    SubscriptionView, TimelineEntry, Unsent, UnsentKind, account_view, look_up, subscription_view,
};
use offramp_domain::account::NoticeKind;
use offramp_domain::command_ref::CommandRef;
use offramp_domain::subscription::RequestDecision;
use serde::Deserialize;

use super::emails::EntryPath;
use super::failure::{Answer, Failure};
use super::html::{ago, columns, document_link, encoded, facts, instant, status_badge, table, text};
use super::page::{Request, Section};
use super::requests::decision_form;
use crate::cli::show::{channel, clock, named, party, who};
use crate::cli::terminal::count;

/// The number of sent emails, the newest, that a timeline links to.
const KEPT_MAX: usize = 200;

#[derive(Deserialize)]
pub struct Wanted {
    id: String,
}

pub async fn subscription(request: Request, Query(Wanted { id }): Query<Wanted>) -> Answer {
    let Some(view) = subscription_view(&request.app.store, &id).await? else {
        return Err(unknown(&request, &id).await?);
    };
    let kept = kept_emails(&request, &view.timeline).await;
    Ok(subscription_page(&request, &view, &kept))
}

pub async fn account(request: Request, Query(Wanted { id }): Query<Wanted>) -> Answer {
    let Some(view) = account_view(&request.app.store, &id).await? else { return Err(unknown(&request, &id).await?) };
    let kept = kept_emails(&request, &view.timeline).await;
    Ok(account_page(&request, &view, &kept))
}

/// Why there is no such document.
async fn unknown(request: &Request, id: &str) -> Result<Failure, Failure> {
    Ok(Failure::not_found(match look_up(&request.app.store, id).await? {
        LookUp::ObjectId(collection) => format!(
            "The document {id} of {} has an ObjectId as its _id. Ids must be text, so the worker does not find it.",
            collection.as_str()
        ),
        _ => format!(
            "There is no {id} here. The search finds subscriptions, accounts, email addresses, Message-IDs and commands."
        ),
    }))
}

fn subscription_page(request: &Request, view: &SubscriptionView, kept: &HashSet<String>) -> Response {
    let day = |day: Option<NaiveDate>| day.map(|day| html! { (day) });
    let expires = view.expires_on.map(|expires_on| {
        html! { (expires_on) @if let Some(end) = view.natural_end_on { ", so the last day of access is " (end) " at the latest" } }
    });
    let cancelled = view.cancellation.as_ref().map(|cancellation| {
        html! {
            "by " (who(&cancellation.actor)) ", " (channel(cancellation.via))
            @if let Some(month) = cancellation.month { ", in the month " (month) }
            @if let Some(at) = cancellation.scheduled_at { ", " (instant(at)) }
        }
    });
    let activities =
        (!view.activities.is_empty()).then(|| view.activities.iter().map(named).collect::<Vec<_>>().join(", "));
    let content = html! {
        h1 { "Subscription " span.id { (view.id) } }
        @if let Some(status) = view.status { p { (status_badge(status)) } }
        (problems(view.problem.as_deref(), &view.notes))
        (facts(&[
            ("Participant", view.participant.as_ref().map(|participant| html! { (named(participant)) })),
            ("Plan", view.plan.as_ref().map(|plan| html! { (named(plan)) })),
            ("Account", Some(html! { (document_link("accounts", &view.account.id)) " " (view.account.name.as_deref().unwrap_or_default()) " " (view.account.email.as_deref().unwrap_or_default()) })),
            ("Organization", Some(html! { (party(&view.organization)) })),
            ("Next billing date", day(view.next_billing_on)),
            ("Expiry date", expires),
            ("Cancelled", cancelled),
            ("Last day of access", day(view.ends_on)),
            ("Last invoice", day(view.final_billing_on)),
            ("Ended on", day(view.ended_on)),
            ("Activities", text(activities.as_deref())),
        ]))
        @if let Some(pending) = &view.pending_request {
            h2 { "Undecided request" }
            p { "Sent " (ago(pending.requested_at)) @if let Some(actor) = &pending.actor { " by " (who(actor)) } "." }
            (quote(None, pending.reason.as_deref()))
            @if request.app.allow_changes {
                @if view.problem.is_none() { (decision_form(&view.id, &view.organization.id)) }
                @else { p { "It can be decided when the document is corrected." } }
            }
        }
        (unsent(Collection::Subscriptions, &view.id, &view.outbox))
        (timeline(&view.timeline, &Context { zone: view.timezone, collection: Collection::Subscriptions, document: &view.id, kept }))
    };
    request.page(Section::Other, &format!("Subscription {}", view.id), &content)
}

fn account_page(request: &Request, view: &AccountView, kept: &HashSet<String>) -> Response {
    let content = html! {
        h1 { "Account " span.id { (view.id) } }
        (problems(view.problem.as_deref(), &view.notes))
        (facts(&[
            ("Manager", text(view.manager.name.as_deref())),
            ("Email address", text(view.manager.email.as_deref())),
            ("Language", text(view.manager.locale.as_deref())),
            ("Organization", Some(html! { (party(&view.organization)) })),
        ]))
        h2 { "Subscriptions" }
        @if view.subscriptions.is_empty() { p.empty { "There are none." } }
        @else {
            (table("Subscriptions", &columns(&["Subscription", "Participant", "Plan", "Status", "Last day"]), &html! {
                @for subscription in &view.subscriptions { tr {
                    td { (document_link("subscriptions", &subscription.id)) }
                    td { @if let Some(participant) = &subscription.participant { (participant.name) } }
                    td { @if let Some(plan) = &subscription.plan { (plan.name) } }
                    td { @if let Some(status) = subscription.status { (status_badge(status)) } }
                    td { @if let Some(day) = subscription.ended_on.or(subscription.ends_on) { (day) } }
                } }
            }))
            @if view.more_subscriptions > 0 { p.hint { "… and " (view.more_subscriptions) " older ones." } }
        }
        @if !view.cards.is_empty() {
            h2 { "Saved cards" }
            ul { @for card in &view.cards { li { (card.brand) " ending in " (card.last4) ", valid until the end of " (card.expires) " " span.id { (card.id) } } } }
        }
        (unsent(Collection::Accounts, &view.id, &view.outbox))
        (timeline(&view.timeline, &Context { zone: view.timezone, collection: Collection::Accounts, document: &view.id, kept }))
    };
    request.page(Section::Other, &format!("Account {}", view.id), &content)
}

fn problems(problem: Option<&str>, notes: &[String]) -> Markup {
    html! {
        @if let Some(problem) = problem { p.problem { "This document cannot be processed as it is: " (problem) } }
        @for note in notes { p.hint { (note) } }
    }
}

/// Entries of the outbox.
fn unsent(collection: Collection, document: &str, outbox: &[Unsent]) -> Markup {
    html! {
        @if !outbox.is_empty() {
            h2 { "Not sent yet" }
            ul { @for entry in outbox { li {
                @match entry.kind {
                    UnsentKind::Email => { a href=(entry_page(collection, document, &entry.id)) { (entry.what) } @if let Some(to) = &entry.to { " to " (to) } }
                    UnsentKind::Event => { (entry.what) " " span.badge { "event" } }
                }
                ", "
                @match entry.due { Some(due) => { "due " (ago(due)) } None => { span.badge.bad { "failed" } } }
                ", " (count(u64::try_from(entry.attempts).unwrap_or_default(), "failed attempt"))
                @if let Some(error) = &entry.error { p.error { (error) } }
            } } }
        }
    }
}

fn entry_page(collection: Collection, document: &str, entry: &str) -> String {
    EntryPath { collection, document: document.to_owned(), entry: entry.to_owned() }.page()
}

/// Whose timeline it is.
struct Context<'a> {
    zone: Tz,
    collection: Collection,
    document: &'a str,
    /// The sent emails that can be shown.
    kept: &'a HashSet<String>,
}

/// The sent emails of a timeline that are kept.
async fn kept_emails(request: &Request, timeline: &[TimelineEntry]) -> HashSet<String> {
    let sent = timeline.iter().rev().filter_map(|entry| match &entry.what {
        Happening::Email(email) if email.state == EmailState::Sent => Some(email.id.as_str()),
        _ => None,
    });
    let sent: Vec<&str> = sent.take(KEPT_MAX).collect();
    // Without the right to read them, the timeline is complete all the same.
    request.app.store.kept_emails(&sent).await.unwrap_or_default()
}

/// What happened, the newest first.
fn timeline(entries: &[TimelineEntry], context: &Context<'_>) -> Markup {
    let zone = context.zone;
    html! {
        h2 { "What happened" }
        @if entries.is_empty() { p.empty { "Nothing is recorded." } }
        @else {
            p.hint { "The newest first; times are those of " (zone) "." }
            ol.timeline {
                @for entry in entries.iter().rev() {
                    li class=[is_bad(&entry.what).then_some("bad")] {
                        p.when { time datetime=(entry.at.to_rfc3339()) { (clock(entry.at, zone)) } }
                        (happening(&entry.what, context))
                    }
                }
            }
        }
    }
}

fn is_bad(what: &Happening) -> bool {
    match what {
        Happening::PaymentFailure(_) | Happening::RejectedCommand(_) => true,
        Happening::Email(email) => matches!(email.state, EmailState::Failed | EmailState::Dropped),
        Happening::Change(_) | Happening::Request(_) | Happening::Decision(_) | Happening::CardNotice(_) => false,
    }
}

fn happening(what: &Happening, context: &Context<'_>) -> Markup {
    match what {
        Happening::Change(change) => self::change(change),
        Happening::Request(request) => html! {
            p { strong { "Cancellation requested" } @if let Some(actor) = &request.actor { " by " (who(actor)) } }
            (quote(Some("Reason"), request.reason.as_deref()))
        },
        Happening::Decision(Decision { decision, note }) => html! {
            p { strong { @match decision {
                RequestDecision::Accept => { "Request accepted" }
                RequestDecision::Decline => { "Request declined" }
                RequestDecision::Superseded => { "Request superseded" }
            } } @if *decision == RequestDecision::Superseded { ": the subscription was cancelled or expired otherwise" } }
            (quote(Some("Note"), note.as_deref()))
        },
        Happening::PaymentFailure(failure) => payment_failure(failure),
        Happening::RejectedCommand(rejected) => rejected_command(rejected, context.document),
        Happening::CardNotice(CardNotice { card_id, expires, notice }) => html! {
            p { strong { "Card notice" } ", "
                @match notice {
                    NoticeKind::Early => { "ahead of time" }
                    NoticeKind::Days(days) => { "at most " (days) " days before" }
                    NoticeKind::Expired => { "expired" }
                }
                ": card " span.id { (card_id) } ", valid until the end of " (expires) }
        },
        Happening::Email(email) => self::email(email, context),
    }
}

fn change(change: &Change) -> Markup {
    let Change { from, to, ends_on, actor, via, reason, note, command } = change;
    html! {
        p {
            @if from != to { (status_badge(*from)) " → " }
            (status_badge(*to))
            @if let Some(day) = ends_on { ", last day of access " strong { (day) } }
        }
        p {
            @match actor { Some(actor) => { "By " (who(actor)) } None => { "By the calendar" } }
            @if let Some(via) = via { ", " (channel(*via)) }
            @if let Some(command) = command { (command_of(command)) }
        }
        (quote(Some("Reason"), reason.as_deref()))
        (quote(Some("Note"), note.as_deref()))
    }
}

fn payment_failure(failure: &PaymentFailure) -> Markup {
    let PaymentFailure { invoice_id, amount, card, attempt, next_attempt_on, failure_message, failure_code, command } =
        failure;
    html! {
        p { strong { "Payment failed" } ": " (amount.value.as_str()) " " (amount.currency.as_str()) " for invoice " span.id { (invoice_id) } ", " (card.brand) " ending in " (card.last4.as_str()) }
        p {
            "Attempt " (attempt) ", "
            @match next_attempt_on { Some(day) => { "the next on " (day) } None => { "no further attempt" } }
            @if let Some(code) = failure_code { ", " (<&str>::from(*code).replace('_', " ")) }
            @if let Some(command) = command { (command_of(command)) }
        }
        (quote(Some("Processor, not for the client"), failure_message.as_deref()))
    }
}

fn rejected_command(rejected: &RejectedCommand, document: &str) -> Markup {
    let RejectedCommand { command, subscription_id, reason, detail, actor } = rejected;
    html! {
        p { strong { "Rejected" } ": " (command.kind) ", " span.badge.bad { (reason) } }
        p { (detail) }
        p {
            @if let Some(actor) = actor { "Asked for by " (who(actor)) }
            @if let Some(id) = subscription_id.as_ref().filter(|id| *id != document) { ", about " (document_link("subscriptions", id)) }
            (command_of(command))
        }
    }
}

fn email(email: &Email, context: &Context<'_>) -> Markup {
    let Context { zone, collection, document, kept } = *context;
    let page = match email.state {
        EmailState::Waiting | EmailState::Failed => Some(entry_page(collection, document, &email.id)),
        EmailState::Sent if kept.contains(&email.id) => Some(format!("/emails/sent?id={}", encoded(&email.id))),
        EmailState::Sent | EmailState::Dropped => None,
    };
    html! {
        p {
            strong { "Email" } " "
            @match page { Some(page) => { a href=(page) { (email.template) } } None => { (email.template) } }
            " to " @match &email.to { Some(to) => { (to) } None => { "an address that was deleted" } }
            " (" (email.role.replace('_', " ")) ", " (email.locale) ") "
            @match email.state {
                EmailState::Waiting => { span.badge.busy { "waiting" } @if let Some(due) = email.due { ", due " (ago(due)) } }
                EmailState::Sent => { span.badge.good { "accepted by the mail server" } @if let Some(at) = email.sent_at { ", " (clock(at, zone)) } }
                EmailState::Failed => { span.badge.bad { "failed" } @if let Some(at) = email.failed_at { ", " (clock(at, zone)) } }
                EmailState::Dropped => { span.badge.bad { "dropped" } }
            }
        }
        @if let Some(error) = &email.error { p.error { (error) } }
        p.id { (email.message_id) }
    }
}

fn command_of(command: &CommandRef) -> Markup {
    html! { ". Command " a.id href={ "/search?q=" (encoded(command.key.id.as_str())) } { (command.key.id) } " of " span.id { (command.key.source) } }
}

/// What a person wrote.
fn quote(name: Option<&str>, words: Option<&str>) -> Markup {
    html! {
        @if let Some(words) = words.filter(|words| !words.trim().is_empty()) {
            @if let Some(name) = name { p.hint { (name) } }
            blockquote { (words) }
        }
    }
}
