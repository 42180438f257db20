//! The facts that each email must state: the rules of docs/rules/emails.md as a table, independent of the templates.

use chrono::NaiveDate;
use offramp_domain::facts::Facts;
use offramp_domain::notification::{Notification, Recipient, Template};
use offramp_mail::locale::{Formats, parse_tag};

/// A fact that an email states, if its notification has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fact {
    Organization,
    /// The organization's address, for readers who do not use "reply".
    OrganizationAddress,
    OrganizationPhone,
    Manager,
    Participant,
    Plan,
    Actor,
    EndsOn,
    PreviousEndsOn,
    FinalBillingOn,
    NextBillingOn,
    RemovedOn,
    RequestedOn,
    /// The day of a request that this cancellation closes.
    SupersededRequestOn,
    Reason,
    Note,
    Message,
    Invoice,
    Amount,
    CardBrand,
    CardLast4,
    CardLastDay,
    Attempt,
    FailureMessage,
    NextAttemptOn,
    PastAttemptOn,
    RequestsCount,
    /// Or else another name or id by which the organization finds it.
    OldestParticipant,
    OldestPlan,
    OldestRequestedOn,
}

/// The facts of an email.
#[allow(clippy::enum_glob_use, reason = "the table is read, not written")]
pub fn facts_of(template: Template, recipient: Recipient) -> Vec<Fact> {
    use Fact::*;
    let to_organization = recipient == Recipient::OrganizationContact;
    let about: &[Fact] = match template {
        Template::CancelledByAdmin => {
            &[Participant, Plan, EndsOn, PreviousEndsOn, FinalBillingOn, NextBillingOn, SupersededRequestOn, Message]
        }
        Template::CancelledByClient => {
            &[Participant, Plan, EndsOn, PreviousEndsOn, FinalBillingOn, NextBillingOn, SupersededRequestOn, Reason]
        }
        Template::RemovedByAdmin => &[Participant, Plan, RemovedOn, Invoice, Message],
        Template::CancellationRequested => &[Participant, Plan, RequestedOn, NextBillingOn, Reason],
        Template::RequestAccepted => {
            &[Participant, Plan, RequestedOn, EndsOn, FinalBillingOn, NextBillingOn, Reason, Note]
        }
        Template::RequestDeclined => &[Participant, Plan, RequestedOn, NextBillingOn, Reason, Note],
        Template::PaymentFailed if to_organization => &[
            Participant,
            Plan,
            Invoice,
            Amount,
            CardBrand,
            CardLast4,
            Attempt,
            FailureMessage,
            NextAttemptOn,
            PastAttemptOn,
            EndsOn,
        ],
        Template::PaymentFailed => {
            &[Participant, Plan, Invoice, Amount, CardBrand, CardLast4, NextAttemptOn, PastAttemptOn, EndsOn]
        }
        Template::CardExpiring => &[CardBrand, CardLast4, CardLastDay],
        Template::RequestsPending => &[RequestsCount, OldestParticipant, OldestPlan, OldestRequestedOn],
    };
    // The organization needs the name of its client. (`Email::findings` checks the link to the subscription.)
    let people: &[Fact] = match recipient {
        Recipient::OrganizationContact => &[Manager],
        Recipient::AccountManager => &[Organization, OrganizationAddress, OrganizationPhone, Manager],
    };
    // The organization speaks to its clients as a whole, and clients know what they did themselves.
    let actor: &[Fact] = if to_organization { &[Actor] } else { &[] };
    [about, people, actor].concat()
}

impl Fact {
    /// The fact as this email writes it, or `None` if its notification does not have it.
    pub fn written(self, notification: &Notification) -> Option<String> {
        let Facts { organization, manager, card, .. } = &notification.facts;
        let facts = &notification.facts;
        let formats = Formats::new(&parse_tag(&notification.locale).unwrap());
        let day = |date: Option<NaiveDate>| date.map(|date| formats.date(date));
        match self {
            Self::Organization => Some(organization.name.clone()),
            Self::OrganizationPhone => organization.phone.clone(),
            Self::OrganizationAddress => Some(organization.email.clone()),
            Self::Manager => manager.as_ref()?.name.clone(),
            Self::Participant => facts.participant.clone(),
            Self::Plan => facts.plan.clone(),
            Self::Actor => facts.actor.clone(),
            Self::EndsOn => day(facts.ends_on),
            Self::PreviousEndsOn => day(facts.previous_ends_on),
            Self::FinalBillingOn => day(facts.final_billing_on),
            Self::NextBillingOn => day(facts.next_billing_on),
            Self::RemovedOn => day(facts.removed_on),
            Self::RequestedOn => day(facts.requested_on),
            Self::SupersededRequestOn => day(facts.requested_on.filter(|_| facts.superseded)),
            Self::Reason => facts.reason.clone(),
            Self::Note => facts.note.clone(),
            Self::Message => facts.message.clone(),
            Self::Invoice => facts.invoice_id.clone(),
            Self::Amount => facts.amount.as_ref().map(|amount| formats.money(amount)),
            Self::CardBrand => card.as_ref().map(|card| card.brand.clone()),
            Self::CardLast4 => card.as_ref().map(|card| card.last4.clone()),
            Self::CardLastDay => {
                card.as_ref().and_then(|card| card.expires).map(|month| formats.date(month.last_day()))
            }
            Self::Attempt => facts.attempt.map(|attempt| attempt.to_string()),
            Self::FailureMessage => facts.failure_message.clone(),
            Self::NextAttemptOn => day(facts.next_attempt_on),
            Self::PastAttemptOn => day(facts.past_attempt_on),
            Self::OldestParticipant => {
                let oldest = facts.requests.first()?;
                oldest.participant.clone().or_else(|| oldest.actor.clone()).or_else(|| oldest.subscription_id.clone())
            }
            Self::OldestPlan => facts.requests.first()?.plan.clone(),
            Self::OldestRequestedOn => day(facts.requests.first().map(|request| request.requested_on)),
            Self::RequestsCount => facts.requests_count.map(|count| count.to_string()),
        }
    }
}

/// The facts of an email that are missing from one of its texts.
pub fn missing_from(text: &str, notification: &Notification) -> Vec<String> {
    let text = words(text);
    facts_of(notification.template, notification.recipient)
        .into_iter()
        .filter_map(|fact| Some((fact, fact.written(notification)?)))
        .filter(|(_, written)| !text.contains(&words(written)))
        .map(|(fact, written)| format!("{fact:?} ({})", words(&written)))
        .collect()
}

/// The text with all white space collapsed and without marks of quotation, so that layout does not matter.
fn words(text: &str) -> String {
    let lines = text.lines().map(|line| line.trim_start().strip_prefix('>').unwrap_or(line));
    lines.flat_map(str::split_whitespace).collect::<Vec<_>>().join(" ")
}
