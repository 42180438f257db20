//! `offramp show`: a subscription and its history, for support staff.

use std::io::{self, Write, stdout};

use anyhow::{Context, bail};
use bson::RawDocumentBuf;
use bson::oid::ObjectId;
use chrono::{DateTime, NaiveDate, Utc};
use chrono_tz::Tz;
use clap::Args;
use offramp::store::documents::{
    self, AccountDocument, HistoryDocument, NotificationDocument, OrganizationDocument, PaymentFailureDocument, Stored,
    SubscriptionDocument,
};
use offramp::store::outbox::entry::{Content, OutboxEntry};
use offramp::store::{Collection, Store};
use offramp_domain::account::Account;
use offramp_domain::actor::Actor;
use offramp_domain::command_ref::CommandRef;
use offramp_domain::organization::Organization;
use offramp_domain::subscription::{NamedRef, Status, Subscription};
use offramp_domain::unit_of_work::LoadedDocument;
use serde::Serialize;

use super::settings::DatabaseArgs;
use super::terminal::printable;

/// Show a subscription: billing dates, last day, pending request and timeline
#[derive(Args, Debug)]
#[command(after_help = "Times are in the time zone of the organization; in JSON, in UTC.")]
pub struct Arguments {
    /// The id of the subscription
    #[arg(value_name = "SUBSCRIPTION")]
    id: String,

    /// Print JSON, one object
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    database: DatabaseArgs,
}

#[derive(Debug, Serialize)]
struct View {
    id: String,
    organization: Party,
    account: Party,
    participant: Option<NamedRef>,
    plan: Option<NamedRef>,
    status: Status,
    /// The date of the first invoice that is not generated yet. `None` once the subscription is over.
    next_billing_on: Option<NaiveDate>,
    /// When the plan ends, if it does.
    expires_on: Option<NaiveDate>,
    /// The last day of access that follows from `expires_on`.
    natural_end_on: Option<NaiveDate>,
    /// The last day of access, once it is scheduled.
    ends_on: Option<NaiveDate>,
    ends_at: Option<DateTime<Utc>>,
    /// The date of the last invoice, once it is scheduled.
    final_billing_on: Option<NaiveDate>,
    ended_on: Option<NaiveDate>,
    /// The client's undecided cancellation request.
    pending_request: Option<PendingRequest>,
    activities: Vec<NamedRef>,
    timeline: Vec<Happened>,
    /// Emails and events that are not sent yet.
    outbox: Vec<Waiting>,
    /// The first error that prevents a decision about the subscription.
    problem: Option<String>,
    #[serde(skip)]
    timezone: Tz,
}

#[derive(Debug, Serialize)]
struct Party {
    id: String,
    /// Absent if its document is missing or unreadable.
    name: Option<String>,
}

#[derive(Debug, Serialize)]
struct PendingRequest {
    requested_at: DateTime<Utc>,
    actor: Option<Actor>,
    reason: Option<String>,
}

#[derive(Debug, Serialize)]
struct Happened {
    at: DateTime<Utc>,
    #[serde(flatten)]
    what: What,
}

#[derive(Debug, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
enum What {
    Change {
        from: Status,
        to: Status,
        ends_on: Option<NaiveDate>,
        actor: Option<Actor>,
        /// Absent for a scheduled change.
        command: Option<CommandRef>,
    },
    PaymentFailure {
        invoice_id: String,
        amount: String,
        attempt: u32,
        next_attempt_on: Option<NaiveDate>,
    },
    Mail {
        template: String,
        /// Absent for a removed subscription.
        to: Option<String>,
        role: String,
        locale: String,
        message_id: String,
        sent_at: Option<DateTime<Utc>>,
        failed_at: Option<DateTime<Utc>>,
        error: Option<String>,
    },
}

#[derive(Debug, Serialize)]
struct Waiting {
    id: String,
    /// `mail cancelled-by-admin to …`, `event subscription.ended`
    what: String,
    attempts: i32,
    /// When it is tried next. Absent if it was rejected permanently.
    due: Option<DateTime<Utc>>,
    error: Option<String>,
}

pub async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let store = arguments.database.open().await?;
    let id = arguments.id;
    let Some(raw) = store.document(Collection::Subscriptions, &id).await? else {
        if let Ok(object_id) = id.parse::<ObjectId>()
            && store.document(Collection::Subscriptions, object_id).await?.is_some()
        {
            bail!(
                "the subscription {id} in the database {} has an ObjectId as its _id; ids must be text, so the worker does \
                 not find it",
                arguments.database.name()
            );
        }
        bail!("there is no subscription {id} in the database {}", arguments.database.name());
    };
    let view = view(&store, &id, &raw).await?;
    let mut out = stdout().lock();
    if arguments.json {
        writeln!(out, "{:#}", serde_json::to_value(&view)?)?;
    } else {
        let mut text = Vec::new();
        print(&mut text, &view)?;
        write!(out, "{}", printable(&String::from_utf8_lossy(&text)))?;
    }
    Ok(())
}

async fn view(store: &Store, id: &str, raw: &RawDocumentBuf) -> anyhow::Result<View> {
    const UNREADABLE: &str = "the document is corrupt, so it cannot be shown";
    let subscription = match documents::read::<SubscriptionDocument, Subscription>("subscriptions", raw) {
        LoadedDocument::Read(subscription) => subscription,
        LoadedDocument::Corrupt { error, .. } => return Err(anyhow::anyhow!(error).context(UNREADABLE)),
    };
    let document: SubscriptionDocument = bson::deserialize_from_slice(raw.as_bytes()).context(UNREADABLE)?;
    let organization_id = subscription.organization_id.to_string();
    let organization = store.document(Collection::Organizations, &organization_id).await?.and_then(|raw| {
        read(&documents::read::<OrganizationDocument, Organization>(Collection::Organizations.as_str(), &raw))
    });
    let account_id = subscription.account_id.to_string();
    let account = store
        .document(Collection::Accounts, &account_id)
        .await?
        .and_then(|raw| read(&documents::read::<AccountDocument, Account>(Collection::Accounts.as_str(), &raw)));
    let problem = (subscription.require_next_invoice().err().map(|malformed| malformed.to_string()))
        .or_else(|| subscription.faults().first().map(ToString::to_string))
        .or_else(|| organization.is_none().then(|| format!("organization {organization_id} is missing or unreadable")))
        .or_else(|| account.is_none().then(|| format!("account {account_id} is missing or unreadable")));
    let details = subscription.details.as_ref();
    let expires_on = details.and_then(|details| details.expires_on.clone().ok()?);
    let billing_day = details.and_then(|details| details.billing_day.clone().ok());
    let pending_request = details
        .and_then(|details| details.request.clone().ok()?)
        .filter(|request| request.closed.is_none())
        .map(|request| PendingRequest {
            requested_at: request.requested_at,
            actor: request.actor,
            reason: request.reason.map(|reason| reason.to_string()),
        });
    let end = details.and_then(|details| details.end.clone().ok()?);
    let timezone = organization.as_ref().and_then(|it| it.timezone.clone().ok()).unwrap_or(Tz::UTC);
    let named = |field: &str| raw.get(field).ok().flatten().and_then(|value| Stored::<NamedRef>::from(value).ok());

    let mut timeline: Vec<Happened> = document.history.into_iter().filter_map(Stored::ok).map(Happened::from).collect();
    timeline.extend(document.payment_failures.into_iter().filter_map(Stored::ok).map(Happened::from));
    timeline.extend(document.notifications.into_iter().filter_map(Stored::ok).filter_map(email));
    // A stable sort: entries of the same instant keep their order, changes first.
    timeline.sort_by_key(|happened| happened.at);
    Ok(View {
        id: id.to_owned(),
        organization: Party { id: organization_id, name: organization.and_then(|it| it.name.ok()) },
        account: Party { id: account_id, name: account.and_then(|it| it.manager.ok()?.name) },
        participant: named("participant"),
        plan: named("plan"),
        status: subscription.status,
        next_billing_on: details.and_then(|details| details.next_on.clone().ok()?),
        expires_on,
        natural_end_on: expires_on.zip(billing_day).map(|(expires_on, day)| day.natural_end(expires_on)),
        ends_on: end.map(|end| end.ends_on),
        ends_at: end.map(|end| end.ends_at),
        final_billing_on: end.and_then(|end| end.final_billing_on),
        ended_on: subscription.ended_on,
        pending_request,
        activities: details.and_then(|details| details.activities.clone().ok()).unwrap_or_default(),
        timeline,
        outbox: document.outbox.into_iter().filter_map(Stored::ok).map(Waiting::from).collect(),
        problem,
        timezone,
    })
}

fn read<T: Clone>(loaded: &LoadedDocument<T>) -> Option<T> {
    match loaded {
        LoadedDocument::Read(document) => Some(document.clone()),
        LoadedDocument::Corrupt { .. } => None,
    }
}

impl From<HistoryDocument> for Happened {
    fn from(entry: HistoryDocument) -> Self {
        let HistoryDocument { at, command, actor, from, to, ends_on, .. } = entry;
        Self { at: at.to_chrono(), what: What::Change { from, to, ends_on, actor, command } }
    }
}

impl From<PaymentFailureDocument> for Happened {
    fn from(failure: PaymentFailureDocument) -> Self {
        Self {
            at: failure.at.to_chrono(),
            what: What::PaymentFailure {
                invoice_id: failure.invoice_id.to_string(),
                amount: format!("{} {}", failure.amount.value.as_str(), failure.amount.currency.as_str()),
                attempt: failure.attempt,
                next_attempt_on: failure.next_attempt_on,
            },
        }
    }
}

/// An email, at the time of its decision. Earlier versions recorded only the time of sending.
fn email(record: NotificationDocument) -> Option<Happened> {
    let NotificationDocument { template, to, role, locale, message_id, at, sent_at, failed_at, error, .. } = record;
    let [sent_at, failed_at] = [sent_at, failed_at].map(|instant| instant.map(bson::DateTime::to_chrono));
    let at = at.map(bson::DateTime::to_chrono).or(sent_at).or(failed_at)?;
    Some(Happened { at, what: What::Mail { template, to, role, locale, message_id, sent_at, failed_at, error } })
}

impl From<OutboxEntry> for Waiting {
    fn from(entry: OutboxEntry) -> Self {
        Self {
            id: entry.id,
            what: match entry.content {
                Content::Mail(mail) => format!("mail {} to {}", mail.template, mail.to.email),
                Content::Event(event) => format!("event {}", event.kind),
            },
            attempts: entry.attempts,
            due: entry.due.map(bson::DateTime::to_chrono),
            error: entry.error,
        }
    }
}

/// Prints the view for people.
fn print(out: &mut impl Write, view: &View) -> io::Result<()> {
    let party = |party: &Party| match &party.name {
        Some(name) => format!("{name} ({})", party.id),
        None => party.id.clone(),
    };
    let named = |named: &NamedRef| format!("{} ({})", named.name, named.id);
    let day = |day: NaiveDate| day.to_string();
    let activities =
        (!view.activities.is_empty()).then(|| view.activities.iter().map(named).collect::<Vec<_>>().join(", "));
    let request = view.pending_request.as_ref().map(|request| {
        let reason = request.reason.as_ref().map(|reason| format!(": {reason}")).unwrap_or_default();
        let actor = request.actor.as_ref().map(|actor| format!(", {}", who(actor))).unwrap_or_default();
        format!("since {}{actor}{reason}", view.clock(request.requested_at))
    });
    let expires = view.expires_on.map(|expires_on| match view.natural_end_on {
        Some(end) => format!("{expires_on}, so the last day of access is {end} at the latest"),
        None => expires_on.to_string(),
    });
    let facts = [
        ("Problem", view.problem.clone()),
        ("Participant", view.participant.as_ref().map(named)),
        ("Plan", view.plan.as_ref().map(named)),
        ("Organization", Some(party(&view.organization))),
        ("Account", Some(party(&view.account))),
        ("Status", Some(view.status.as_str().replace('_', " "))),
        ("Next billing date", view.next_billing_on.map(day)),
        ("Expiry date", expires),
        ("Last day of access", view.ends_on.map(day)),
        ("Last invoice", view.final_billing_on.map(day)),
        ("Ended on", view.ended_on.map(day)),
        ("Pending request", request),
        ("Activities", activities),
    ];
    writeln!(out, "Subscription {}\n", view.id)?;
    for (name, value) in facts {
        if let Some(value) = value {
            // Indented, so that a value with line breaks cannot imitate other facts.
            writeln!(out, "  {name:<20}{}", value.replace('\n', "\n                      "))?;
        }
    }
    if !view.timeline.is_empty() {
        writeln!(out, "\nTimeline ({})\n", view.timezone)?;
        for happened in &view.timeline {
            writeln!(out, "  {}  {}", view.clock(happened.at), what(&happened.what))?;
        }
    }
    if !view.outbox.is_empty() {
        writeln!(out, "\nNot sent yet\n")?;
        for waiting in &view.outbox {
            let due = waiting.due.map_or("rejected permanently".to_owned(), |due| format!("due {}", view.clock(due)));
            let error = waiting.error.as_ref().map(|error| format!(": {error}")).unwrap_or_default();
            writeln!(out, "  {}, {due}, tried {} times{error}", waiting.what, waiting.attempts)?;
        }
    }
    Ok(())
}

impl View {
    /// In the time zone of the organization.
    fn clock(&self, at: DateTime<Utc>) -> String {
        at.with_timezone(&self.timezone).format("%Y-%m-%d %H:%M:%S").to_string()
    }
}

fn what(what: &What) -> String {
    match what {
        What::Change { from, to, ends_on, actor, command } => {
            let change =
                if from == to { to.as_str().to_owned() } else { format!("{} → {}", from.as_str(), to.as_str()) };
            let ends_on = ends_on.map(|day| format!(", last day {day}")).unwrap_or_default();
            let actor = actor.as_ref().map(|actor| format!(", by {}", who(actor))).unwrap_or_default();
            let cause = command.as_ref().map_or_else(
                || ", scheduled".to_owned(),
                |command| format!(" ({} {} from {})", command.kind, command.key.id, command.key.source),
            );
            format!("{}{ends_on}{actor}{cause}", change.replace('_', " "))
        }
        What::PaymentFailure { invoice_id, amount, attempt, next_attempt_on } => {
            let next = next_attempt_on.map_or("no further attempt".to_owned(), |day| format!("next attempt on {day}"));
            format!("payment of {amount} for invoice {invoice_id} failed, attempt {attempt}, {next}")
        }
        What::Mail { template, to, role, locale, sent_at, failed_at, error, .. } => {
            let to = to.as_ref().map(|to| format!(" to {to}")).unwrap_or_default();
            let outcome = match (sent_at, failed_at, error) {
                (Some(_), ..) => String::new(),
                (None, Some(_), Some(error)) => format!(", failed: {error}"),
                (None, Some(_), None) => ", failed".to_owned(),
                (None, None, _) => ", not sent yet".to_owned(),
            };
            format!("email {template}{to} ({}, {locale}){outcome}", role.replace('_', " "))
        }
    }
}

fn who(actor: &Actor) -> String {
    match actor {
        Actor::Admin { id, name } => format!("admin {}", name.as_ref().map_or(id.as_str(), |name| name.as_str())),
        Actor::Client { account_id, name } => {
            format!("client {}", name.as_ref().map_or(account_id.as_str(), |name| name.as_str()))
        }
    }
}
