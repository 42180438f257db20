//! A scene for the tests of the rules: one organization, account and subscription. What a command changes is written as text, so that
//! expectations read as documentation.
//!
//! It is noon of 1 June 2026 in Montréal. Zoé swims: bought on a 15th, so billed every 15th; May's invoice is the newest
//! and June's the next.

use chrono::{DateTime, NaiveDate, Utc};
use serde_json::{Value, json};

use crate::account::Account;
use crate::actor::Actor;
use crate::billing::{BillingDay, BillingMode};
use crate::calendar::{YearMonth, end_of_day, parse_date};
use crate::command::{Command, CommandBody, InvalidCommand, SubscriptionCommand};
use crate::contact::{Brand, Mailbox};
use crate::event::Event;
use crate::link::Links;
use crate::notification::Notification;
use crate::organization::{ClientCancellation, Organization};
use crate::subscription::{Details, NamedRef, Request, ScheduledEnd, Status, Subscription};
use crate::unit_of_work::{
    LoadedDocument, MissingReference, Task, TaskOutcome, TrackedAccount, TrackedSubscription, UnitOfWork,
};

pub(crate) fn date(text: &str) -> NaiveDate {
    parse_date(text).unwrap()
}

pub(crate) fn month(text: &str) -> YearMonth {
    text.parse().unwrap()
}

pub(crate) fn instant(text: &str) -> DateTime<Utc> {
    text.parse().unwrap()
}

/// Noon of 1 June 2026 in Montréal.
pub(crate) fn now() -> DateTime<Utc> {
    instant("2026-06-01T16:00:00Z")
}

/// A billing day.
pub(crate) fn billing_day(day: i64) -> BillingDay {
    BillingDay::try_from(day).unwrap()
}

/// One subscription with its account and organization.
#[derive(Clone, Debug)]
pub(crate) struct Scene {
    pub organization: Organization,
    pub account: Account,
    pub subscription: Subscription,
    pub now: DateTime<Utc>,
}

/// The scene with the subscription in this status: a request is of 28 May; a cancellation leaves 14 August as the last
/// day; what is over ended on 14 April.
pub(crate) fn scene(status: Status) -> Scene {
    let organization = Organization {
        id: "org-1".try_into().unwrap(),
        name: Ok("Club Laurier".into()),
        locale: "fr-CA".into(),
        timezone: Ok(chrono_tz::America::Toronto),
        contact: Ok(Mailbox { name: Some("Accueil".into()), email: "accueil@laurier.example".into() }),
        client_cancellation: Ok(ClientCancellation::Immediate),
        notify_client_of_own_actions: Ok(false),
        card_notice_days: Ok(vec![30, 5]),
        request_reminder_days: Ok(vec![3, 7]),
        phone: Some("514 555-0199".into()),
        address: None,
        website: Some("https://laurier.example".into()),
        links: Links {
            admin_url: Some("https://laurier.example/s/{subscription_id}".into()),
            admin_account_url: Some("https://laurier.example/a/{account_id}".into()),
            account_url: Some("https://my.example/{account_id}/{subscription_id}".into()),
            payment_method_url: Some("https://my.example/{account_id}/cards/{card_id}".into()),
        },
        brand: Brand { color: Some("#0a7d4f".into()), logo_url: None },
        version: Ok(Some(1)),
        last_reminder: Ok(None),
    };
    let account = Account {
        id: "acc-1".try_into().unwrap(),
        organization_id: organization.id.clone(),
        manager: Ok(Mailbox { name: Some("Marie Roy".into()), email: "marie@example.org".into() }),
        manager_locale: Some("es".into()),
        cards: vec![],
        version: Some(1),
        applied: vec![],
        card_notices: Ok(vec![]),
    };
    let is_over = !status.is_live();
    let ends_on = match status {
        Status::CancellationScheduled => Some(date("2026-08-14")),
        Status::Cancelled => Some(date("2026-04-14")),
        _ => None,
    };
    let details = Details {
        participant: Ok("Zoé Roy".into()),
        plan: Ok("Natation".into()),
        billing_mode: Ok(BillingMode::Anniversary),
        billing_day: Ok(billing_day(15)),
        next_on: Ok((!is_over).then(|| date("2026-06-15"))),
        last_on: Ok(Some(date("2026-05-15"))),
        last_invoice_id: Ok(Some("inv-may".try_into().unwrap())),
        expires_on: Ok(None),
        activities: Ok(if is_over { vec![] } else { vec![NamedRef { id: "a-1".into(), name: "Longueurs".into() }] }),
        end: Ok(ends_on.map(|ends_on| ScheduledEnd {
            ends_on,
            ends_at: end_of_day(ends_on, chrono_tz::America::Toronto),
            final_billing_on: Some(ends_on - chrono::Months::new(1) + chrono::Days::new(1)),
        })),
        request: Ok((status == Status::CancellationRequested).then(|| Request {
            requested_at: instant("2026-05-28T01:30:00Z"),
            actor: Some(serde_json::from_value(client()).unwrap()),
            reason: Some("on déménage".try_into().unwrap()),
            closed: None,
        })),
        cancellation: None,
    };
    let subscription = Subscription {
        id: "sub-1".try_into().unwrap(),
        organization_id: organization.id.clone(),
        account_id: account.id.clone(),
        version: Some(1),
        status,
        history_length: None,
        applied: vec![],
        details: (status != Status::Removed).then_some(details),
        ended_on: is_over.then(|| date("2026-04-14")),
    };
    Scene { organization, account, subscription, now: now() }
}

impl Scene {
    /// The scene with a difference.
    pub(crate) fn with(mut self, difference: impl FnOnce(&mut Self)) -> Self {
        difference(&mut self);
        self
    }

    /// The scene with a difference in what a removed subscription has no more.
    pub(crate) fn with_details(self, difference: impl FnOnce(&mut Details)) -> Self {
        self.with(|scene| difference(scene.subscription.details.as_mut().unwrap()))
    }

    /// The documents as the store would load them.
    pub(crate) fn world(&self) -> UnitOfWork {
        let mut world = UnitOfWork::default();
        world.add_organization(self.organization.id.clone(), LoadedDocument::Read(self.organization.clone()));
        world.add_account(self.account.id.clone(), LoadedDocument::Read(self.account.clone()));
        world.add_subscription(self.subscription.id.clone(), LoadedDocument::Read(self.subscription.clone()));
        world
    }

    /// What becomes of one command: the verdict, and the documents that it changes.
    pub(crate) fn decide(&self, command: &Command) -> Applied {
        self.apply(&Task::Command(command.clone()))
    }

    /// What time does.
    pub(crate) fn lapse(&self) -> Applied {
        self.apply(&Task::Lapse(self.subscription.id.clone()))
    }

    pub(crate) fn apply(&self, task: &Task) -> Applied {
        let mut world = self.world();
        let verdict = world.apply(task, self.now);
        Applied {
            verdict,
            subscription: world.changed_subscriptions().next().cloned(),
            account: world.changed_accounts().next().cloned(),
        }
    }
}

/// What became of one task.
#[derive(Debug)]
pub(crate) struct Applied {
    pub verdict: TaskOutcome,
    /// The subscription, if it changed.
    pub subscription: Option<TrackedSubscription>,
    /// The account, if it changed.
    pub account: Option<TrackedAccount>,
}

impl Applied {
    /// The new status, or `unchanged`, or the reason of the refusal: a cell of the rule table.
    pub(crate) fn cell(&self) -> String {
        match (&self.verdict, &self.subscription, &self.account) {
            (TaskOutcome::Applied, Some(draft), None) => draft.after.status.as_str().into(),
            (TaskOutcome::Applied, None, Some(_)) => "notice given".into(),
            (TaskOutcome::Unchanged | TaskOutcome::Repeated, None, None) => "unchanged".into(),
            (TaskOutcome::Unchanged, Some(draft), None) if is_only_remembered(draft) => "unchanged".into(),
            (TaskOutcome::Unchanged, None, Some(draft))
                if draft.records.is_empty() && draft.effects.iter().all(|effects| effects.notifications.is_empty()) =>
            {
                "unchanged".into()
            }
            (TaskOutcome::Rejected(rejected), None, None) => rejected.rejection.reason.as_str().into(),
            (TaskOutcome::Missing(MissingReference::Organization { .. }), None, None) => "missing organization".into(),
            (TaskOutcome::Missing(MissingReference::Account { .. }), None, None) => "missing account".into(),
            (TaskOutcome::Corrupt(error), None, None) => format!("corrupt: {error}"),
            other => panic!("the verdict and the documents disagree: {other:?}"),
        }
    }

    /// The sentence of the refusal.
    pub(crate) fn detail(&self) -> &str {
        match &self.verdict {
            TaskOutcome::Rejected(rejected) => &rejected.rejection.detail,
            other => panic!("not refused: {other:?}"),
        }
    }

    /// Everything that the command did, a line each.
    pub(crate) fn story(&self) -> String {
        let mut lines = Vec::new();
        if let Some(draft) = &self.subscription {
            describe_subscription(draft, &mut lines);
        }
        if let Some(draft) = &self.account {
            for notice in &draft.records {
                lines.push(format!("notice: {} {} {:?}", notice.card_id, notice.expires, notice.kind));
            }
            for effects in &draft.effects {
                describe_emails(&effects.notifications, &mut lines);
                let ids = [("organization_id", "org-1"), ("account_id", "acc-1")];
                describe_events(&effects.events, &ids, &mut lines);
            }
        }
        if lines.is_empty() { self.cell() } else { lines.join("\n") }
    }
}

/// Whether a command left nothing behind but that it is remembered.
pub(crate) fn is_only_remembered(draft: &TrackedSubscription) -> bool {
    let forgotten = |mut subscription: Subscription| {
        subscription.applied.clear();
        subscription
    };
    forgotten(draft.before().clone()) == forgotten(draft.after.clone())
        && draft.after.applied.len() == draft.before().applied.len() + 1
        && draft.records.is_empty()
        && draft.effects.iter().all(|effects| effects.notifications.is_empty() && effects.events.is_empty())
}

fn describe_subscription(draft: &TrackedSubscription, lines: &mut Vec<String>) {
    let after = &draft.after;
    lines.push(format!("{} → {}", draft.before().status.as_str(), after.status.as_str()));
    if let Some(ended_on) = after.ended_on {
        lines.push(format!("ended on {ended_on}"));
    }
    let known =
        |details: &Option<Details>| details.clone().map(|it| (it.end.unwrap(), it.cancellation, it.request.unwrap()));
    let (before, now) = (known(&draft.before().details), known(&after.details));
    match (before, now) {
        (Some(before), Some((end, cancellation, request))) => {
            if let Some(end) = end.filter(|_| end != before.0) {
                let last = end.final_billing_on.map_or("?".into(), |date| date.to_string());
                lines.push(format!("ends on {}, over at {}, last invoice {last}", end.ends_on, end.ends_at));
            }
            if let Some(cancellation) = cancellation.filter(|it| before.1.as_ref() != Some(it)) {
                let by = to_json(&cancellation.by);
                let via = to_json(&cancellation.via);
                let reason = cancellation.reason.map_or("no reason".into(), |reason| format!("{reason:?}"));
                let month = cancellation.month.map_or("no month".into(), |month| month.to_string());
                let actor = who(&cancellation.actor);
                lines.push(format!("cancellation: by {by} via {via}, {reason}, {month}, {actor}"));
            }
            if let Some(request) = request.filter(|it| before.2.as_ref() != Some(it)) {
                let reason = request.reason.map_or("no reason".into(), |reason| format!("{reason:?}"));
                let closed = request.closed.map_or("open".into(), |closed| {
                    let note = closed.note.map_or("no note".into(), |note| format!("{note:?}"));
                    format!("{} at {}, {note}", to_json(&closed.decision), closed.decided_at)
                });
                lines.push(format!(
                    "request: of {} by {}, {reason}, {closed}",
                    request.requested_at,
                    request.actor.as_ref().map_or("somebody".into(), who)
                ));
            }
        }
        (Some(_), None) => lines.push("details dropped".into()),
        (None, _) => {}
    }
    if let Some(details) = &after.details {
        if draft.before().details.as_ref().is_some_and(|before| before.next_on != details.next_on) {
            lines.push(format!("next invoice: {:?}", details.next_on.clone().unwrap()));
        }
        if draft.before().details.as_ref().is_some_and(|before| before.activities != details.activities) {
            lines.push(format!("activities: {}", to_json(details.activities.as_ref().unwrap())));
        }
    }
    for record in &draft.records {
        if let Some(entry) = record.history() {
            let by = entry.actor.as_ref().map_or("time".into(), who);
            let command = entry.command.as_ref().map_or("no command".into(), |command| command.key.id.to_string());
            let ends_on = entry.ends_on.map_or("no last day".into(), |date| date.to_string());
            let (from, to) = (entry.from.as_str(), entry.to.as_str());
            lines.push(format!("history: {from} → {to}, {ends_on}, by {by}, {command}"));
        }
        if let Some(failure) = record.payment_failure() {
            lines.push(format!(
                "payment failure: {} {} {}, {} {}, attempt {}, next {:?}, {:?}",
                failure.invoice_id,
                failure.amount.value.as_str(),
                failure.amount.currency.as_str(),
                failure.card.brand,
                failure.card.last4.as_str(),
                failure.attempt,
                failure.next_attempt_on,
                failure.failure_message,
            ));
        }
    }
    for effects in &draft.effects {
        describe_emails(&effects.notifications, lines);
        let ids = [("organization_id", "org-1"), ("subscription_id", "sub-1"), ("account_id", "acc-1")];
        describe_events(&effects.events, &ids, lines);
    }
}

/// The events, without the ids that all of them have.
fn describe_events(events: &[Event], ids: &[(&str, &str)], lines: &mut Vec<String>) {
    for event in events {
        let mut data = event.data();
        for (name, expected) in ids {
            assert_eq!(data.as_object_mut().unwrap().shift_remove(*name), Some((*expected).into()));
        }
        lines.push(format!("event {}", event.kind()));
        lines.push(flat(&data));
    }
}

/// The emails, without the facts that all emails of the scene have. Recipients of the same email share a line.
fn describe_emails(emails: &[Notification], lines: &mut Vec<String>) {
    let described = emails.iter().map(|email| {
        let mut facts = serde_json::to_value(&email.facts).unwrap();
        for common in [
            "organization",
            "manager",
            "participant",
            "plan",
            "admin_url",
            "admin_account_url",
            "account_url",
            "payment_method_url",
        ] {
            facts.as_object_mut().unwrap().shift_remove(common);
        }
        (email.template, email.recipient.as_str(), flat(&facts))
    });
    for (template, recipient, facts) in described {
        if lines.last() == Some(&facts) {
            let at = lines.len() - 2;
            lines[at].push_str(" and ");
            lines[at].push_str(recipient);
        } else {
            lines.push(format!("email {template} to {recipient}"));
            lines.push(facts);
        }
    }
}

/// Data as `name: value, card.last4: value`.
fn flat(value: &Value) -> String {
    fn collect(path: &str, value: &Value, into: &mut Vec<String>) {
        match value {
            Value::Object(fields) => {
                for (name, value) in fields {
                    let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
                    collect(&path, value, into);
                }
            }
            Value::String(text) => into.push(format!("{path}: {text}")),
            other => into.push(format!("{path}: {other}")),
        }
    }
    let mut parts = Vec::new();
    collect("", value, &mut parts);
    parts.join(", ")
}

/// `admin adm-1` or `client acc-1`.
fn who(actor: &Actor) -> String {
    match actor {
        Actor::Admin { id, .. } => format!("admin {id}"),
        Actor::Client { account_id, .. } => format!("client {account_id}"),
    }
}

fn to_json(value: &impl serde::Serialize) -> String {
    match serde_json::to_value(value).unwrap() {
        Value::String(text) => text,
        other => other.to_string(),
    }
}

pub(crate) fn admin() -> Value {
    json!({ "role": "admin", "id": "adm-1", "name": "Luc" })
}

pub(crate) fn client() -> Value {
    json!({ "role": "client", "account_id": "acc-1" })
}

/// A client with another account.
pub(crate) fn stranger() -> Value {
    json!({ "role": "client", "account_id": "acc-2" })
}

/// The command `cmd-1` of this type about the subscription of the scene, sent at 11:59 in Montréal.
pub(crate) fn command(kind: &str, data: Value) -> Command {
    Command::parse(&envelope(kind, data).to_string().into_bytes()).unwrap_or_else(|error| panic!("{error}"))
}

/// The same, as it travels. What `data` does not say is about the scene.
pub(crate) fn envelope(kind: &str, data: Value) -> Value {
    let mut all = json!({ "organization_id": "org-1" });
    if kind == "card.expiry" {
        all["account_id"] = "acc-1".into();
    } else {
        all["subscription_id"] = "sub-1".into();
    }
    let Value::Object(data) = data else { panic!("data is an object") };
    all.as_object_mut().unwrap().extend(data);
    json!({
        "specversion": "1.0", "id": "cmd-1", "source": "tests", "type": kind, "time": "2026-06-01T15:59:00Z", "data": all,
    })
}

/// An admin cancels from the purchases tab, with this month or (`""`) with none.
pub(crate) fn purchases(month: &str) -> Command {
    let mut data = json!({ "actor": admin(), "via": "purchases" });
    if !month.is_empty() {
        data["month"] = month.into();
    }
    command("subscription.cancellation", data)
}

/// An admin cancels from this invoice.
pub(crate) fn invoice(invoice_id: &str) -> Command {
    command("subscription.cancellation", json!({ "actor": admin(), "via": "invoice", "invoice_id": invoice_id }))
}

/// The client cancels.
pub(crate) fn account() -> Command {
    command("subscription.cancellation", json!({ "actor": client(), "via": "account" }))
}

/// The client asks to cancel.
pub(crate) fn request() -> Command {
    command("subscription.cancellation-request", json!({ "actor": client(), "reason": "trop loin" }))
}

/// An admin accepts, with this date of the last invoice or (`""`) with none.
pub(crate) fn accept(final_billing_date: &str) -> Command {
    let mut data = json!({ "actor": admin(), "decision": "accept" });
    if !final_billing_date.is_empty() {
        data["final_billing_date"] = final_billing_date.into();
    }
    command("subscription.cancellation-confirmation", data)
}

/// An admin declines.
pub(crate) fn decline() -> Command {
    let data = json!({ "actor": admin(), "decision": "decline", "note": "contrat d'un an" });
    command("subscription.cancellation-confirmation", data)
}

/// May's payment failed.
pub(crate) fn payment_failure() -> Command {
    command(
        "payment.failure",
        json!({
            "invoice_id": "inv-may", "amount": { "value": "49.99", "currency": "CAD" },
            "card": { "brand": "Visa", "last4": "4242" }, "attempt": 1,
        }),
    )
}

/// A card that is valid to the end of this month.
pub(crate) fn card_expiry(expires: &str) -> Command {
    command("card.expiry", json!({ "card": { "id": "card-1", "brand": "Visa", "last4": "4242", "expires": expires } }))
}

/// Compares word by word: the expectation may be indented and wrapped.
#[track_caller]
pub(crate) fn assert_outcome(applied: &Applied, expected: &str) {
    let words = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(words(&applied.story()), words(expected), "\n\n{}\n", applied.story());
}

/// The data of a payment failure.
pub(crate) fn payment_data() -> Value {
    json!({
        "invoice_id": "inv-1", "amount": { "value": "49.99", "currency": "CAD" },
        "card": { "brand": "Visa", "last4": "4242" }, "attempt": 1,
    })
}

/// The data of a card expiry.
pub(crate) fn card_data() -> Value {
    json!({ "card": { "id": "card-1", "brand": "Visa", "last4": "4242", "expires": "2026-06" } })
}

pub(crate) fn parse_message(message: &Value) -> Result<Command, InvalidCommand> {
    Command::parse(message.to_string().as_bytes())
}

/// The data of a command about the subscription.
#[track_caller]
pub(crate) fn read_data(kind: &str, data: Value) -> SubscriptionCommand {
    match command(kind, data).body {
        CommandBody::Subscription(command) => command,
        CommandBody::CardExpiry(other) => panic!("{other:?}"),
    }
}

#[track_caller]
pub(crate) fn check_invalid_bytes(bytes: &[u8], expected: &str) {
    match Command::parse(bytes) {
        Ok(command) => panic!("accepted: {command:?}"),
        Err(error) => assert_eq!(error.to_string(), expected),
    }
}

/// Sets one field of a valid message to something invalid. [`absent`] removes the field.
#[track_caller]
pub(crate) fn check_invalid(mut message: Value, path: &str, value: Value, expected: &str) {
    let (parent, name) = path.rsplit_once('/').unwrap();
    let parent = message.pointer_mut(parent).unwrap().as_object_mut().unwrap();
    if value == absent() {
        parent.shift_remove(name).unwrap();
    } else {
        parent.insert(name.into(), value);
    }
    check_invalid_bytes(message.to_string().as_bytes(), expected);
}

pub(crate) fn absent() -> Value {
    json!("<absent>")
}
