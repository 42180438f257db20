//! What an email says: facts, fixed when a task is decided. Nothing is looked up again when the email is sent.

use chrono::NaiveDate;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::account::Account;
use crate::calendar::{YearMonth, iso_date};
use crate::contact::Mailbox;
use crate::field::Field;
use crate::ids::cut;
use crate::money::Amount;
use crate::organization::Organization;
use crate::subscription::{Details, Subscription};

/// What an email says. Templates read these names. A fact that an email does not need is absent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Facts {
    /// The organization.
    pub organization: OrganizationFacts,
    /// The account manager; absent from emails that are about no single account.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub manager: Option<Mailbox>,
    /// The name of the participant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub participant: Option<String>,
    /// The name of the plan.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plan: Option<String>,
    /// The name of the person who acted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub actor: Option<String>,
    /// The last day of access.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "iso_date::option")]
    #[schemars(with = "Option<NaiveDate>")]
    pub ends_on: Option<NaiveDate>,
    /// The last day of access announced before, if it was moved earlier.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "iso_date::option")]
    #[schemars(with = "Option<NaiveDate>")]
    pub previous_ends_on: Option<NaiveDate>,
    /// The date of the last invoice.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "iso_date::option")]
    #[schemars(with = "Option<NaiveDate>")]
    pub final_billing_on: Option<NaiveDate>,
    /// The date of the next invoice, if the subscription goes on.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "iso_date::option")]
    #[schemars(with = "Option<NaiveDate>")]
    pub next_billing_on: Option<NaiveDate>,
    /// The day on which the subscription was removed.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "iso_date::option")]
    #[schemars(with = "Option<NaiveDate>")]
    pub removed_on: Option<NaiveDate>,
    /// The day on which the client sent the request.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "iso_date::option")]
    #[schemars(with = "Option<NaiveDate>")]
    pub requested_on: Option<NaiveDate>,
    /// The reason given by the person who acted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The administrator's note about the request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
    /// The invoice.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub invoice_id: Option<String>,
    /// Whether the invoice is refunded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refund: Option<bool>,
    /// The amount due.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub amount: Option<Amount>,
    /// The card.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub card: Option<CardFacts>,
    /// The number of the payment attempt, from 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attempt: Option<u32>,
    /// The payment system's message.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure_message: Option<String>,
    /// The day of the next payment attempt: the day of the decision or later.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "iso_date::option")]
    #[schemars(with = "Option<NaiveDate>")]
    pub next_attempt_on: Option<NaiveDate>,
    /// The day of the next payment attempt, if the command arrived after that day. The result of that attempt is not known. Without
    /// this and `next_attempt_on` there is no further attempt.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "iso_date::option")]
    #[schemars(with = "Option<NaiveDate>")]
    pub past_attempt_on: Option<NaiveDate>,
    /// The page on which administrators see the subscription. Only emails to the organization have it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub admin_url: Option<String>,
    /// The undecided requests, oldest first. A long list is cut.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub requests: Vec<PendingRequest>,
    /// How many undecided requests there are, listed or not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requests_count: Option<u32>,
}

/// What emails say about the organization.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct OrganizationFacts {
    /// Its name.
    pub name: String,
    /// The address of its main contact.
    pub email: String,
    /// A CSS colour.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub color: Option<String>,
    /// The URL of an image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub logo_url: Option<String>,
}

/// What emails say about a card.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct CardFacts {
    /// `"Visa"`
    pub brand: String,
    /// `"4242"`
    pub last4: String,
    /// The last month in which it is valid.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires: Option<YearMonth>,
    /// Whether that month is over.
    #[serde(default)]
    pub expired: bool,
}

/// What a list of undecided requests says about each. What cannot be read is absent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct PendingRequest {
    /// The name of the participant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub participant: Option<String>,
    /// The name of the plan.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plan: Option<String>,
    /// The day on which the client sent the request.
    #[serde(with = "iso_date")]
    #[schemars(with = "NaiveDate")]
    pub requested_on: NaiveDate,
    /// The number of days since then.
    pub days: u32,
    /// The name of the client who sent it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub actor: Option<String>,
    /// The beginning of the client's reason.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The page on which administrators see the subscription.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub admin_url: Option<String>,
}

impl Facts {
    /// The facts that every email has, and no others.
    #[must_use]
    pub fn of(organization: OrganizationFacts, manager: Option<Mailbox>) -> Self {
        Self {
            organization,
            manager,
            participant: None,
            plan: None,
            actor: None,
            ends_on: None,
            previous_ends_on: None,
            final_billing_on: None,
            next_billing_on: None,
            removed_on: None,
            requested_on: None,
            reason: None,
            note: None,
            invoice_id: None,
            refund: None,
            amount: None,
            card: None,
            attempt: None,
            failure_message: None,
            next_attempt_on: None,
            past_attempt_on: None,
            admin_url: None,
            requests: Vec::new(),
            requests_count: None,
        }
    }

    /// The facts of every email of this organization about this account.
    ///
    /// # Errors
    /// When a field that emails need cannot be read.
    pub fn new(organization: &Organization, account: &Account) -> Field<Self> {
        let manager = mailbox(account.manager.as_ref().map_err(Clone::clone)?);
        Ok(Self::of(OrganizationFacts::new(organization)?, Some(manager)))
    }

    /// The facts of every email about this subscription.
    ///
    /// # Errors
    /// When a field that emails need cannot be read.
    pub fn about(
        organization: &Organization,
        account: &Account,
        subscription: &Subscription,
        details: &Details,
    ) -> Field<Self> {
        Ok(Self {
            participant: Some(name(details.participant.as_ref().map_err(Clone::clone)?)),
            plan: Some(name(details.plan.as_ref().map_err(Clone::clone)?)),
            admin_url: organization.admin_url_of(&subscription.id).as_deref().and_then(web_address),
            ..Self::new(organization, account)?
        })
    }
}

impl OrganizationFacts {
    /// What every email of this organization says about it.
    ///
    /// # Errors
    /// When a field that emails need cannot be read.
    pub fn new(organization: &Organization) -> Field<Self> {
        Ok(Self {
            name: name(organization.name.as_ref().map_err(Clone::clone)?),
            email: name(&organization.contact.as_ref().map_err(Clone::clone)?.email),
            color: organization.brand.color.as_deref().map(name),
            logo_url: organization.brand.logo_url.as_deref().and_then(web_address),
        })
    }
}

/// The longest name or address in an email, in characters. Longer ones are cut.
const NAME_CHARS_MAX: usize = 1_000;
/// The longest URL in an email, in bytes. Longer ones are left out.
const URL_BYTES_MAX: usize = 2_048;

fn name(name: &str) -> String {
    cut(name.to_owned(), NAME_CHARS_MAX)
}

/// The mailbox, cut to what an email carries.
pub(crate) fn mailbox(mailbox: &Mailbox) -> Mailbox {
    Mailbox { name: mailbox.name.as_deref().map(name), email: name(&mailbox.email) }
}

/// The text, if it is a URL that an email can link to.
pub(crate) fn web_address(text: &str) -> Option<String> {
    let scheme = text.trim_start().split(':').next().unwrap_or_default();
    let is_one = scheme.eq_ignore_ascii_case("https") || scheme.eq_ignore_ascii_case("http");
    (is_one && text.len() <= URL_BYTES_MAX).then(|| text.to_owned())
}
