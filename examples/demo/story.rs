//! The commands of the demo, step by step, with their expected results. The dates depend on the day of the run such that the story is
//! the same on every day of the year; the tests check a whole year.

use std::fmt;

use chrono::{DateTime, Months, NaiveDate, SecondsFormat, Utc};
use offramp_domain::calendar::YearMonth;
use serde_json::{Value, json};

use crate::sample::{Account, Cast, ERABLES, GAGNON, HARBOUR, LEBLANC, SINGH, Subscription};

/// `source` of every command.
const SOURCE: &str = "offramp-demo";

/// A command with a title and its expected result.
pub struct Step {
    pub title: String,
    pub command: Value,
    pub expected: Expected,
}

/// The expected result of a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expected {
    pub outcome: Outcome,
    /// The state of the subscription afterwards, if the command changes it.
    pub change: Option<State>,
    /// The type of the published event.
    pub event: Option<&'static str>,
    pub emails: Vec<Mail>,
}

/// The outcome of a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    Applied,
    Unchanged,
    Rejected(String),
    DeadLetter(String),
}

/// The status of a subscription, and its last day of access, if any.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct State {
    pub status: String,
    pub ends_on: Option<NaiveDate>,
}

/// An email, identified by template and recipient.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mail {
    pub template: String,
    pub to: String,
}

/// A scheduled change, without a command.
pub struct Passing {
    pub title: String,
    /// The subscription that ends. `None` for a card notice.
    pub ended: Option<(&'static str, State)>,
    /// Its event, and the document that it is about.
    pub event: (&'static str, &'static str),
    pub emails: Vec<Mail>,
}

/// The whole story. All commands of a chapter are processed before the next chapter is published: the work queues are not ordered
/// relative to each other, so a request and its decision are in different chapters.
pub struct Story {
    /// The day in Toronto that determines all dates.
    pub today: NaiveDate,
    pub cast: Cast,
    pub chapters: Vec<Vec<Step>>,
    pub passing: Vec<Passing>,
}

impl Story {
    /// The story on the day of `now`.
    #[must_use]
    pub fn on(now: DateTime<Utc>) -> Self {
        let today = Self::day_of(now);
        let cast = Cast::on(today);
        let mut chapters = vec![cancelling(&cast), asking(&cast, today), answering(&cast)];
        for (index, step) in chapters.iter_mut().flatten().enumerate() {
            let command = &mut step.command;
            command["specversion"] = "1.0".into();
            command["source"] = SOURCE.into();
            command["time"] = now.to_rfc3339_opts(SecondsFormat::Secs, true).into();
            if command["id"].is_null() {
                command["id"] = format!("demo-{:02}", index + 1).into();
            }
        }
        Self { today, passing: passing(&cast), cast, chapters }
    }

    /// The day in Toronto.
    #[must_use]
    pub fn day_of(now: DateTime<Utc>) -> NaiveDate {
        now.with_timezone(&ERABLES.timezone).date_naive()
    }

    /// Every step, in order.
    pub fn steps(&self) -> impl Iterator<Item = &Step> {
        self.chapters.iter().flatten()
    }

    /// All expected emails, sorted.
    #[must_use]
    pub fn emails(&self) -> Vec<Mail> {
        let of_steps = self.steps().flat_map(|step| &step.expected.emails);
        let mut emails: Vec<Mail> =
            of_steps.chain(self.passing.iter().flat_map(|passing| &passing.emails)).cloned().collect();
        emails.sort();
        emails
    }
}

/// Administrators and clients of Érables cancel. Invalid cancellations are rejected.
fn cancelling(cast: &Cast) -> Vec<Step> {
    let Cast { swimming, climbing, gymnastics, hockey, yoga, spinning, badminton, rowing, .. } = cast;
    vec![
        step(
            format!("Léa's swimming: cancelled in {}", name(swimming.month(3))),
            by_admin(swimming, json!({ "month": swimming.month(3), "reason": "Déménagement" })),
            scheduled(swimming.last_day_in(3)).mail_to_client("cancelled-by-admin", swimming),
        ),
        step(
            format!("Moved earlier, to {}", name(swimming.month(1))),
            by_admin(swimming, json!({ "month": swimming.month(1) })),
            scheduled(swimming.last_day_in(1)).mail_to_client("cancelled-by-admin", swimming),
        ),
        step(
            format!("Moved later, to {}", name(swimming.month(2))),
            by_admin(swimming, json!({ "month": swimming.month(2) })),
            rejected("later_than_scheduled"),
        ),
        step(
            format!("{} again, by a colleague", name(swimming.month(1))),
            by_admin(swimming, json!({ "month": swimming.month(1) })),
            unchanged(),
        ),
        step(
            "Julie ends Noé's climbing herself",
            by_client(climbing, climbing.account),
            scheduled(climbing.paid_until())
                .mail_to_organization("cancelled-by-client", climbing)
                .mail_to_client("cancelled-by-client", climbing),
        ),
        step(
            "Gymnastics, billed on days 31",
            with_id("demo-gymnastics", by_admin(gymnastics, json!({ "reason": "Blessure à l'épaule" }))),
            scheduled(gymnastics.paid_until()).mail_to_client("cancelled-by-admin", gymnastics),
        ),
        step(
            "The same message once more",
            with_id("demo-gymnastics", by_admin(gymnastics, json!({ "reason": "Blessure à l'épaule" }))),
            unchanged(),
        ),
        step(
            "Hockey: from an older invoice",
            from_invoice(hockey, &hockey.older_invoice()),
            rejected("not_last_invoice"),
        ),
        step(
            "From the newest, with refund",
            from_invoice(hockey, &hockey.newest_invoice()),
            removed().mail_to_client("removed-by-admin", hockey),
        ),
        step(
            format!("Yoga in {}; it expires earlier", name(yoga.month(6))),
            by_admin(yoga, json!({ "month": yoga.month(6) })),
            rejected("expires_earlier"),
        ),
        step("Sam ends his gym himself", by_client(&cast.gym, cast.gym.account), rejected("request_required")),
        step("Priya ends Chloé's rowing", by_client(rowing, &SINGH), rejected("forbidden")),
        step(
            "Érables ends Priya's spinning",
            in_the_name_of(ERABLES.id, by_admin(spinning, json!({}))),
            rejected("wrong_organization"),
        ),
        step(
            format!("Badminton in {}, invoiced", name(badminton.month(0).previous())),
            by_admin(badminton, json!({ "month": badminton.month(0).previous() })),
            rejected("month_already_invoiced"),
        ),
        step(
            "A field misspelt: \"mnth\"",
            by_admin(rowing, json!({ "mnth": rowing.month(2) })),
            dead_letter("invalid"),
        ),
    ]
}

/// Clients of Harbourside send requests. Payments fail and cards expire.
fn asking(cast: &Cast, today: NaiveDate) -> Vec<Step> {
    let Cast { hockey, dance, gym, judo, spinning, badminton, .. } = cast;
    let request = |subscription: &Subscription, reason: &str| {
        let data = json!({ "actor": client(subscription.account), "reason": reason });
        about("subscription.cancellation-request", subscription, data)
    };
    let requested = |subscription| {
        applied("subscription.cancellation-requested", "cancellation_requested", None)
            .mail_to_organization("cancellation-requested", subscription)
    };
    let this_month = YearMonth::of(today);
    let two_months_ago = YearMonth::of(today - Months::new(2));
    vec![
        step("Sam asks to end his gym", request(gym, "I am moving to Halifax."), requested(gym)),
        step("He asks again", request(gym, "Did you get my request?"), unchanged()),
        step("Sam asks to end Ada's judo", request(judo, "Too many evenings."), requested(judo)),
        step("Priya asks to end badminton", request(badminton, "He has lost interest."), requested(badminton)),
        step(
            "The payment for dance fails",
            payment_failure(dance, json!({ "attempt": 1, "next_attempt_on": today + chrono::Days::new(3) })),
            noted("payment.failure-recorded")
                .mail_to_organization("payment-failed", dance)
                .mail_to_client("payment-failed", dance),
        ),
        step(
            "Spinning: last attempt fails",
            payment_failure(spinning, json!({ "attempt": 4, "failure_message": "Insufficient funds" })),
            noted("payment.failure-recorded")
                .mail_to_organization("payment-failed", spinning)
                .mail_to_client("payment-failed", spinning),
        ),
        step(
            "A payment for removed hockey",
            payment_failure(hockey, json!({ "attempt": 1 })),
            rejected("already_ended"),
        ),
        step("Chloé's card expires soon", card_expiry(&LEBLANC, "4444", this_month), noted_of_card(&LEBLANC)),
        step("The same notice once more", card_expiry(&LEBLANC, "4444", this_month), unchanged()),
        step("Priya's old card has expired", card_expiry(&SINGH, "1117", two_months_ago), noted_of_card(&SINGH)),
    ]
}

/// Harbourside decides on the requests.
fn answering(cast: &Cast) -> Vec<Step> {
    let Cast { swimming, gym, judo, badminton, .. } = cast;
    let answer = |subscription: &Subscription, data: Value| {
        let data = merged(json!({ "actor": admin(subscription) }), data);
        about("subscription.cancellation-confirmation", subscription, data)
    };
    let no_billing_date = gym.billing_date(1) - chrono::Days::new(1);
    vec![
        step(
            "Gym: accepted, with a bad date",
            answer(gym, json!({ "decision": "accept", "final_billing_date": no_billing_date })),
            rejected("not_a_billing_date"),
        ),
        step(
            format!("Accepted: last invoice {}", gym.billing_date(1).format("%-d %b")),
            answer(gym, json!({ "decision": "accept", "final_billing_date": gym.billing_date(1) })),
            scheduled(gym.last_day_after_invoice(1)).mail_to_client("request-accepted", gym),
        ),
        step(
            "Judo: declined",
            answer(judo, json!({ "decision": "decline", "note": "The course is paid until the belt exam." })),
            applied("subscription.cancellation-declined", "active", None).mail_to_client("request-declined", judo),
        ),
        step(
            "Badminton: simply cancelled",
            by_admin(badminton, json!({ "month": badminton.month(1) })),
            scheduled(badminton.last_day_in(1)).mail_to_client("cancelled-by-admin", badminton),
        ),
        step(
            "Julie asks to end the swimming",
            about("subscription.cancellation-request", swimming, json!({ "actor": client(swimming.account) })),
            rejected("already_scheduled"),
        ),
    ]
}

/// Scheduled changes.
fn passing(cast: &Cast) -> Vec<Passing> {
    let Cast { tennis, fencing, .. } = cast;
    let ended = |subscription: &Subscription, status: &str| {
        let state = State { status: status.to_owned(), ends_on: Some(subscription.paid_until()) };
        Some((subscription.id, state))
    };
    vec![
        Passing {
            title: "Tennis: the last day is over".to_owned(),
            ended: ended(tennis, "cancelled"),
            event: ("subscription.ended", tennis.id),
            emails: vec![],
        },
        Passing {
            title: "Fencing has expired".to_owned(),
            ended: ended(fencing, "expired"),
            event: ("subscription.ended", fencing.id),
            emails: vec![],
        },
        Passing {
            title: "Marc's card expires soon".to_owned(),
            ended: None,
            event: ("card.expiring", GAGNON.id),
            emails: noted_of_card(&GAGNON).emails,
        },
    ]
}

fn step(title: impl Into<String>, command: Value, expected: Expected) -> Step {
    Step { title: title.into(), command, expected }
}

fn name(month: YearMonth) -> String {
    month.first_day().format("%B").to_string()
}

// ---------------------------------------------------------------------------------------------------------- commands

/// A command for a subscription. [`Story::on`] adds the other fields of the envelope.
fn about(kind: &str, subscription: &Subscription, data: Value) -> Value {
    let named = json!({ "organization_id": subscription.account.organization.id, "subscription_id": subscription.id });
    json!({ "type": kind, "data": merged(named, data) })
}

fn by_admin(subscription: &Subscription, data: Value) -> Value {
    let named = json!({ "actor": admin(subscription), "via": "purchases" });
    about("subscription.cancellation", subscription, merged(named, data))
}

fn by_client(subscription: &Subscription, account: &Account) -> Value {
    about("subscription.cancellation", subscription, json!({ "actor": client(account), "via": "account" }))
}

fn from_invoice(subscription: &Subscription, invoice: &str) -> Value {
    let data = json!({ "actor": admin(subscription), "via": "invoice", "invoice_id": invoice, "refund": true });
    about("subscription.cancellation", subscription, data)
}

fn payment_failure(subscription: &Subscription, data: Value) -> Value {
    let named = json!({
        "invoice_id": subscription.newest_invoice(),
        "amount": { "value": "49.99", "currency": "CAD" },
        "card": { "brand": "Visa", "last4": "1881" },
    });
    about("payment.failure", subscription, merged(named, data))
}

fn card_expiry(account: &Account, last4: &str, expires: YearMonth) -> Value {
    let card = json!({ "id": format!("card-{last4}"), "brand": "Visa", "last4": last4, "expires": expires });
    let data = json!({ "organization_id": account.organization.id, "account_id": account.id, "card": card });
    json!({ "type": "card.expiry", "data": data })
}

fn admin(subscription: &Subscription) -> Value {
    if subscription.account.organization.id == HARBOUR.id {
        json!({ "role": "admin", "id": "adm-2", "name": "Grace Wong" })
    } else {
        json!({ "role": "admin", "id": "adm-1", "name": "Paul Bouchard" })
    }
}

fn client(account: &Account) -> Value {
    json!({ "role": "client", "account_id": account.id, "name": account.manager })
}

fn with_id(id: &str, mut command: Value) -> Value {
    command["id"] = id.into();
    command
}

fn in_the_name_of(organization: &str, mut command: Value) -> Value {
    command["data"]["organization_id"] = organization.into();
    command
}

fn merged(mut object: Value, more: Value) -> Value {
    if let (Value::Object(fields), Value::Object(more)) = (&mut object, more) {
        fields.extend(more);
    }
    object
}

// ------------------------------------------------------------------------------------------------------ expectations

fn expected(outcome: Outcome) -> Expected {
    Expected { outcome, change: None, event: None, emails: vec![] }
}

fn unchanged() -> Expected {
    expected(Outcome::Unchanged)
}

fn rejected(reason: &str) -> Expected {
    Expected { event: Some("command.rejected"), ..expected(Outcome::Rejected(reason.to_owned())) }
}

fn dead_letter(reason: &str) -> Expected {
    expected(Outcome::DeadLetter(reason.to_owned()))
}

/// Applied without a change of the subscription's status.
fn noted(event: &'static str) -> Expected {
    Expected { event: Some(event), ..expected(Outcome::Applied) }
}

fn noted_of_card(account: &Account) -> Expected {
    noted("card.expiring").mail("card-expiring", account.organization.contact).mail("card-expiring", account.email)
}

fn applied(event: &'static str, status: &str, ends_on: Option<NaiveDate>) -> Expected {
    let change = State { status: status.to_owned(), ends_on };
    Expected { change: Some(change), ..noted(event) }
}

fn scheduled(ends_on: NaiveDate) -> Expected {
    applied("subscription.cancellation-scheduled", "cancellation_scheduled", Some(ends_on))
}

fn removed() -> Expected {
    applied("subscription.removed", "removed", None)
}

impl Expected {
    fn mail(mut self, template: &str, to: &str) -> Self {
        self.emails.push(Mail { template: template.to_owned(), to: to.to_owned() });
        self
    }

    fn mail_to_client(self, template: &str, subscription: &Subscription) -> Self {
        self.mail(template, subscription.account.email)
    }

    fn mail_to_organization(self, template: &str, subscription: &Subscription) -> Self {
        self.mail(template, subscription.account.organization.contact)
    }
}

impl Step {
    /// The command's id.
    #[must_use]
    pub fn id(&self) -> &str {
        self.command["id"].as_str().unwrap_or_default()
    }

    /// The command's type.
    #[must_use]
    pub fn kind(&self) -> &str {
        self.command["type"].as_str().unwrap_or_default()
    }

    /// The collection and the `_id` of the document that the command is about.
    #[must_use]
    pub fn document(&self) -> (&'static str, &str) {
        let data = &self.command["data"];
        match data["subscription_id"].as_str() {
            Some(id) => ("subscriptions", id),
            None => ("accounts", data["account_id"].as_str().unwrap_or_default()),
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Applied => f.write_str("applied"),
            Self::Unchanged => f.write_str("unchanged"),
            Self::Rejected(reason) => write!(f, "rejected\n{reason}"),
            Self::DeadLetter(reason) => write!(f, "dead letter\n{reason}"),
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.status)?;
        self.ends_on.map_or(Ok(()), |day| write!(f, "\n{day}"))
    }
}

impl fmt::Display for Mail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} to {}", self.template, self.to)
    }
}

#[cfg(test)]
mod tests;
