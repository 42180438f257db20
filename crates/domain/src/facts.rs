//! What an email says: facts, fixed when a task is decided. Nothing is looked up again when the email is sent.

use chrono::NaiveDate;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::account::Account;
use crate::calendar::{YearMonth, iso_date};
use crate::contact::Mailbox;
use crate::failure_code::FailureCode;
use crate::field::Field;
use crate::ids::{CardId, cut};
use crate::link::web_address;
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
    /// The last day of access. For a failed payment: the day on which the subscription ends or ended, if that is known.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "iso_date::option")]
    #[schemars(with = "Option<NaiveDate>")]
    pub ends_on: Option<NaiveDate>,
    /// The last day of access announced before, if it was moved earlier.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "iso_date::option")]
    #[schemars(with = "Option<NaiveDate>")]
    pub previous_ends_on: Option<NaiveDate>,
    /// Whether `ends_on` is past, in the organization's calendar, or the subscription is over already.
    #[serde(default, skip_serializing_if = "is_false")]
    pub ended: bool,
    /// The date of the last invoice, past or still to come. Absent if there was never one and none is to come.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "iso_date::option")]
    #[schemars(with = "Option<NaiveDate>")]
    pub final_billing_on: Option<NaiveDate>,
    /// The date of the next invoice. After a cancellation: only if invoices are still to come.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "iso_date::option")]
    #[schemars(with = "Option<NaiveDate>")]
    pub next_billing_on: Option<NaiveDate>,
    /// Whether it is unknown if invoices are still to come. Only emails that an earlier version stored do not know it.
    #[serde(default, skip_serializing_if = "is_false")]
    pub invoices_unknown: bool,
    /// The day on which the subscription was removed.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "iso_date::option")]
    #[schemars(with = "Option<NaiveDate>")]
    pub removed_on: Option<NaiveDate>,
    /// The day on which the client sent the request.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "iso_date::option")]
    #[schemars(with = "Option<NaiveDate>")]
    pub requested_on: Option<NaiveDate>,
    /// Whether this cancellation closes a request of the client that was still open.
    #[serde(default, skip_serializing_if = "is_false")]
    pub superseded: bool,
    /// The client's own reason, given with their request or their cancellation. An administrator's reason is in no email.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The administrator's answer to the request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
    /// The administrator's words to the client about a cancellation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// The invoice.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub invoice_id: Option<String>,
    /// Whether the invoice is refunded. Absent if that is not known.
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
    /// The payment system's message. Only the organization's email has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure_message: Option<String>,
    /// Why the payment failed. Absent: it was declined, and no more is known. The client's email never has `lost_or_stolen`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure_code: Option<FailureCode>,
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
    /// The page on which administrators see the account. Only emails to the organization have it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub admin_account_url: Option<String>,
    /// The page on which the client sees the account or the subscription. Only emails to the client have it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub account_url: Option<String>,
    /// The page on which the client changes the card, or else `account_url`. Only emails to the client about a card have it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub payment_method_url: Option<String>,
    /// The page on which the client pays the invoice. Only emails to the client have it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub payment_url: Option<String>,
    /// The undecided requests, oldest first. A long list is cut.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub requests: Vec<PendingRequest>,
    /// How many undecided requests there are, listed or not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requests_count: Option<u32>,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_false(flag: &bool) -> bool {
    !*flag
}

/// What emails say about the organization.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct OrganizationFacts {
    /// Its name.
    pub name: String,
    /// The address of its main contact.
    pub email: String,
    /// Its phone number, as it writes it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phone: Option<String>,
    /// Its postal address, in one line or several.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// The URL of its website.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub website: Option<String>,
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
    /// The subscription; absent in emails of earlier versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subscription_id: Option<String>,
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
            ended: false,
            final_billing_on: None,
            next_billing_on: None,
            invoices_unknown: false,
            removed_on: None,
            requested_on: None,
            superseded: false,
            reason: None,
            note: None,
            message: None,
            invoice_id: None,
            refund: None,
            amount: None,
            card: None,
            attempt: None,
            failure_message: None,
            failure_code: None,
            next_attempt_on: None,
            past_attempt_on: None,
            admin_url: None,
            admin_account_url: None,
            account_url: None,
            payment_method_url: None,
            payment_url: None,
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
        Ok(Self {
            admin_account_url: organization.links.admin_account_url(&account.id),
            account_url: organization.links.account_url(&account.id, None),
            ..Self::of(OrganizationFacts::new(organization)?, Some(manager))
        })
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
            admin_url: organization.links.admin_url(&subscription.id),
            account_url: organization.links.account_url(&account.id, Some(&subscription.id)),
            ..Self::new(organization, account)?
        })
    }

    /// The same with the page on which the client changes the card: the organization's page for cards, or else its page for the
    /// account.
    #[must_use]
    pub fn with_card_page(self, organization: &Organization, account: &Account, card: Option<&CardId>) -> Self {
        let page = organization.links.payment_method_url(&account.id, card);
        Self { payment_method_url: page.or_else(|| self.account_url.clone()), ..self }
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
            phone: organization.phone.as_deref().map(name),
            address: organization.address.as_deref().map(name),
            website: organization.website.as_deref().and_then(web_address),
            color: organization.brand.color.as_deref().map(name),
            logo_url: organization.brand.logo_url.as_deref().and_then(web_address),
        })
    }
}

/// The longest name or address in an email, in characters. Longer ones are cut.
const NAME_CHARS_MAX: usize = 1_000;

/// The name, cut to what an email carries.
fn name(name: &str) -> String {
    cut(name.to_owned(), NAME_CHARS_MAX)
}

/// The mailbox, cut to what an email carries.
pub(crate) fn mailbox(mailbox: &Mailbox) -> Mailbox {
    Mailbox { name: mailbox.name.as_deref().map(name), email: name(&mailbox.email) }
}
