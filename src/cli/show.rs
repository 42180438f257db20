//! `offramp show`: a subscription or an account and what happened to it, for support staff.

use std::io::{self, Write, stdout};

use anyhow::bail;
use chrono::{DateTime, NaiveDate, Utc};
use chrono_tz::Tz;
use clap::Args;
use offramp::support::{
    self, AccountView, CardNotice, Change, Decision, Email, EmailState, Happening, LookUp, Party, PaymentFailure,
    RejectedCommand, Request, SubscriptionSummary, SubscriptionView, TimelineEntry, Unsent, UnsentKind,
};
use offramp_domain::account::NoticeKind;
use offramp_domain::actor::Actor;
use offramp_domain::command_ref::CommandRef;
use offramp_domain::subscription::{Channel, NamedRef, RequestDecision, Status};

use super::settings::DatabaseArgs;
use super::terminal::{count, printable};

/// Show a subscription or an account, and a timeline of what happened to it
#[derive(Args, Debug)]
#[command(after_help = "\
The timeline has changes with their reasons, requests and decisions, failed payments, rejected commands of the last 30 days, and emails. \
Times are in the time zone of the organization; in JSON, in UTC.

Reasons of administrators and messages of the payment system are internal: clients must not see them.

If you have no id, but an email address, a Message-ID or the id of a command: offramp find --help")]
pub struct Arguments {
    /// The id of a subscription or of an account
    #[arg(value_name = "SUBSCRIPTION|ACCOUNT")]
    id: String,

    /// Print JSON, one object
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    database: DatabaseArgs,
}

/// What begins the continuation of a value with line breaks, so that it cannot imitate other facts or entries.
const CONTINUED: &str = "\n                      ";

pub async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let store = arguments.database.open().await?;
    let (id, database) = (arguments.id, arguments.database.name());
    let mut text = Vec::new();
    let json = match support::look_up(&store, &id).await? {
        LookUp::Subscription(view) => {
            print_subscription(&mut text, &view)?;
            serde_json::to_value(&view)?
        }
        LookUp::Account(view) => {
            print_account(&mut text, &view)?;
            serde_json::to_value(&view)?
        }
        LookUp::ObjectId(collection) => bail!(
            "the document {id} of {} in the database {database} has an ObjectId as its _id; ids must be text, so the worker \
             does not find it",
            collection.as_str()
        ),
        LookUp::Unknown => {
            bail!(
                "there is no subscription or account {id} in the database {database}; `offramp find` finds more than ids"
            )
        }
    };
    let mut out = stdout().lock();
    if arguments.json {
        writeln!(out, "{json:#}")?;
    } else {
        write!(out, "{}", printable(&String::from_utf8_lossy(&text)))?;
    }
    Ok(())
}

fn print_subscription(out: &mut impl Write, view: &SubscriptionView) -> io::Result<()> {
    let day = |day: NaiveDate| day.to_string();
    let activities =
        (!view.activities.is_empty()).then(|| view.activities.iter().map(named).collect::<Vec<_>>().join(", "));
    let request = view.pending_request.as_ref().map(|request| {
        let reason = request.reason.as_ref().map(|reason| format!(": {reason}")).unwrap_or_default();
        let actor = request.actor.as_ref().map(|actor| format!(", {}", who(actor))).unwrap_or_default();
        format!("since {}{actor}{reason}", clock(request.requested_at, view.timezone))
    });
    let expires = view.expires_on.map(|expires_on| match view.natural_end_on {
        Some(end) => format!("{expires_on}, so the last day of access is {end} at the latest"),
        None => expires_on.to_string(),
    });
    let cancelled = view.cancellation.as_ref().map(|cancellation| {
        let month = cancellation.month.map(|month| format!(", in the month {month}")).unwrap_or_default();
        let at = cancellation.scheduled_at.map(|at| format!(" on {}", clock(at, view.timezone))).unwrap_or_default();
        format!("by {}{at}, {}{month}", who(&cancellation.actor), channel(cancellation.via))
    });
    writeln!(out, "Subscription {}\n", view.id)?;
    print_facts(
        out,
        &[
            ("Problem", view.problem.clone()),
            ("Participant", view.participant.as_ref().map(named)),
            ("Plan", view.plan.as_ref().map(named)),
            ("Organization", Some(party(&view.organization))),
            ("Account", Some(party(&view.account))),
            ("Status", view.status.map(words)),
            ("Next billing date", view.next_billing_on.map(day)),
            ("Expiry date", expires),
            ("Cancelled", cancelled),
            ("Last day of access", view.ends_on.map(day)),
            ("Last invoice", view.final_billing_on.map(day)),
            ("Ended on", view.ended_on.map(day)),
            ("Pending request", request),
            ("Activities", activities),
        ],
    )?;
    print_timeline(out, &view.timeline, view.timezone, Some(&view.id))?;
    print_unsent(out, &view.outbox, view.timezone)?;
    print_notes(out, &view.notes)
}

fn print_account(out: &mut impl Write, view: &AccountView) -> io::Result<()> {
    writeln!(out, "Account {}\n", view.id)?;
    let cards = view.cards.iter().map(|card| {
        format!("{} ending in {}, valid until the end of {} ({})", card.brand, card.last4, card.expires, card.id)
    });
    let cards = cards.collect::<Vec<_>>().join("\n");
    print_facts(
        out,
        &[
            ("Problem", view.problem.clone()),
            ("Manager", view.manager.name.clone()),
            ("Email address", view.manager.email.clone()),
            ("Language", view.manager.locale.clone()),
            ("Organization", Some(party(&view.organization))),
            ("Cards", (!cards.is_empty()).then_some(cards)),
        ],
    )?;
    if !view.subscriptions.is_empty() {
        writeln!(out, "\nSubscriptions\n")?;
        for subscription in &view.subscriptions {
            writeln!(out, "  {}", indented(&subscription_line(subscription)))?;
        }
        if view.more_subscriptions > 0 {
            writeln!(out, "  … and {} more", view.more_subscriptions)?;
        }
    }
    print_timeline(out, &view.timeline, view.timezone, None)?;
    print_unsent(out, &view.outbox, view.timezone)?;
    print_notes(out, &view.notes)
}

fn subscription_line(subscription: &SubscriptionSummary) -> String {
    let names = [&subscription.participant, &subscription.plan].into_iter().flatten().map(|named| named.name.clone());
    let status = subscription.status.map(words);
    let last_day = match (subscription.ended_on, subscription.ends_on, subscription.next_billing_on) {
        (Some(day), ..) => Some(format!("ended on {day}")),
        (None, Some(day), _) => Some(format!("last day {day}")),
        (None, None, day) => day.map(|day| format!("next billing date {day}")),
    };
    let parts = std::iter::once(subscription.id.clone()).chain(names).chain(status).chain(last_day);
    parts.collect::<Vec<_>>().join(", ")
}

fn print_facts(out: &mut impl Write, facts: &[(&str, Option<String>)]) -> io::Result<()> {
    for (name, value) in facts {
        if let Some(value) = value {
            writeln!(out, "  {name:<20}{}", indented(value))?;
        }
    }
    Ok(())
}

/// `subscription` is the subscription whose timeline it is, if it is one's.
fn print_timeline(
    out: &mut impl Write,
    timeline: &[TimelineEntry],
    zone: Tz,
    subscription: Option<&str>,
) -> io::Result<()> {
    if timeline.is_empty() {
        return Ok(());
    }
    writeln!(out, "\nTimeline ({zone})\n")?;
    for entry in timeline {
        writeln!(out, "  {}  {}", clock(entry.at, zone), indented(&what(&entry.what, zone, subscription)))?;
    }
    Ok(())
}

fn print_unsent(out: &mut impl Write, outbox: &[Unsent], zone: Tz) -> io::Result<()> {
    if outbox.is_empty() {
        return Ok(());
    }
    writeln!(out, "\nNot sent yet\n")?;
    for entry in outbox {
        let kind = match entry.kind {
            UnsentKind::Email => "email",
            UnsentKind::Event => "event",
        };
        let to = entry.to.as_ref().map(|to| format!(" to {to}")).unwrap_or_default();
        let due = entry.due.map_or("failed permanently".to_owned(), |due| format!("due {}", clock(due, zone)));
        let tried = count(u64::try_from(entry.attempts).unwrap_or_default(), "failed attempt");
        let error = entry.error.as_ref().map(|error| format!(": {error}")).unwrap_or_default();
        writeln!(out, "  {kind} {}{to}, {due}, {tried}{}", entry.what, indented(&error))?;
    }
    if outbox.iter().any(|entry| entry.due.is_none()) {
        writeln!(out, "\n  Those that failed permanently are kept: offramp outbox --help")?;
    }
    Ok(())
}

fn print_notes(out: &mut impl Write, notes: &[String]) -> io::Result<()> {
    for note in notes {
        writeln!(out, "\n{note}")?;
    }
    Ok(())
}

fn what(what: &Happening, zone: Tz, subscription: Option<&str>) -> String {
    match what {
        Happening::Change(change) => self::change(change),
        Happening::Request(Request { actor, reason }) => {
            let actor = actor.as_ref().map(|actor| format!(" by {}", who(actor))).unwrap_or_default();
            format!("cancellation requested{actor}{}", quoted("reason", reason.as_ref()))
        }
        Happening::Decision(Decision { decision, note }) => {
            let decision = match decision {
                RequestDecision::Accept => "accepted",
                RequestDecision::Decline => "declined",
                RequestDecision::Superseded => "superseded: the subscription was cancelled or expired otherwise",
            };
            format!("request {decision}{}", quoted("note", note.as_ref()))
        }
        Happening::PaymentFailure(failure) => payment_failure(failure),
        Happening::RejectedCommand(rejected) => rejected_command(rejected, subscription),
        Happening::CardNotice(CardNotice { card_id, expires, notice }) => {
            let notice = match notice {
                NoticeKind::Early => "ahead of time".to_owned(),
                NoticeKind::Days(days) => format!("at most {days} days before"),
                NoticeKind::Expired => "expired".to_owned(),
            };
            format!("card notice: {card_id}, valid until the end of {expires} ({notice})")
        }
        Happening::Email(email) => self::email(email, zone),
    }
}

fn change(change: &Change) -> String {
    let Change { from, to, ends_on, actor, via, reason, note, command } = change;
    let statuses = if from == to { words(*to) } else { format!("{} → {}", words(*from), words(*to)) };
    let ends_on = ends_on.map(|day| format!(", last day {day}")).unwrap_or_default();
    let actor = actor.as_ref().map(|actor| format!(", by {}", who(actor))).unwrap_or_default();
    let cause = command.as_ref().map_or_else(|| ", scheduled".to_owned(), |command| format!(" ({})", cause(command)));
    let via = via.map(|via| format!(", {}", channel(via))).unwrap_or_default();
    let (reason, note) = (quoted("reason", reason.as_ref()), quoted("note", note.as_ref()));
    format!("{statuses}{ends_on}{actor}{cause}{via}{reason}{note}")
}

fn payment_failure(failure: &PaymentFailure) -> String {
    let PaymentFailure { invoice_id, amount, card, attempt, next_attempt_on, failure_message, failure_code, command } =
        failure;
    let (value, currency) = (amount.value.as_str(), amount.currency.as_str());
    let (brand, last4) = (&card.brand, card.last4.as_str());
    let next = next_attempt_on.map_or("no further attempt".to_owned(), |day| format!("next attempt on {day}"));
    let code = failure_code.map(|code| format!(", {}", <&str>::from(code).replace('_', " "))).unwrap_or_default();
    let command = command.as_ref().map(|command| format!(" ({})", cause(command))).unwrap_or_default();
    let message = quoted("message", failure_message.as_ref());
    format!(
        "payment of {value} {currency} for invoice {invoice_id} failed, {brand} ending in {last4}, attempt {attempt}, \
         {next}{code}{command}{message}"
    )
}

fn rejected_command(rejected: &RejectedCommand, subscription: Option<&str>) -> String {
    let actor = rejected.actor.as_ref().map(|actor| format!(", by {}", who(actor))).unwrap_or_default();
    let other = rejected.subscription_id.as_deref().filter(|id| Some(*id) != subscription);
    let about = other.map(|id| format!(" about subscription {id}")).unwrap_or_default();
    format!("rejected: {} ({}){about}{actor}: {}", rejected.reason, cause(&rejected.command), rejected.detail)
}

fn email(email: &Email, zone: Tz) -> String {
    let to = email.to.as_ref().map(|to| format!(" to {to}")).unwrap_or_default();
    let error = email.error.as_ref().map(|error| format!(": {error}")).unwrap_or_default();
    let state = match email.state {
        EmailState::Sent => email.sent_at.map(|at| format!("sent {}", clock(at, zone))).unwrap_or_default(),
        EmailState::Waiting => {
            let due = email.due.map(|due| format!(", due {}", clock(due, zone))).unwrap_or_default();
            format!("not sent yet{due}{error}")
        }
        EmailState::Failed => format!("failed, kept for an operator{error}"),
        EmailState::Dropped => format!("failed and dropped{error}"),
    };
    let (template, role, locale) = (&email.template, email.role.replace('_', " "), &email.locale);
    format!("email {template}{to} ({role}, {locale}), {state}, {}", email.message_id)
}

/// In the time zone of the organization.
pub(super) fn clock(at: DateTime<Utc>, zone: Tz) -> String {
    at.with_timezone(&zone).format("%Y-%m-%d %H:%M:%S").to_string()
}

pub(super) fn words(status: Status) -> String {
    status.as_str().replace('_', " ")
}

/// Text of other people, on lines of its own.
fn quoted(name: &str, text: Option<&String>) -> String {
    text.map(|text| format!("\n{name}: {text}")).unwrap_or_default()
}

fn indented(text: &str) -> String {
    text.replace('\n', CONTINUED)
}

fn cause(command: &CommandRef) -> String {
    format!("{} {} from {}", command.kind, command.key.id, command.key.source)
}

pub(super) fn channel(via: Channel) -> &'static str {
    match via {
        Channel::Purchases => "from the purchases tab",
        Channel::Invoice => "from the newest invoice",
        Channel::Account => "from the client's account",
        Channel::Request => "on the client's request",
    }
}

pub(super) fn named(named: &NamedRef) -> String {
    format!("{} ({})", named.name, named.id)
}

pub(super) fn party(party: &Party) -> String {
    let email = party.email.as_ref().map(|email| format!(", {email}")).unwrap_or_default();
    match &party.name {
        Some(name) => format!("{name} ({}){email}", party.id),
        None => format!("{}{email}", party.id),
    }
}

pub(super) fn who(actor: &Actor) -> String {
    match actor {
        Actor::Admin { id, name } => format!("admin {}", name.as_ref().map_or(id.as_str(), |name| name.as_str())),
        Actor::Client { account_id, name } => {
            format!("client {}", name.as_ref().map_or(account_id.as_str(), |name| name.as_str()))
        }
    }
}
