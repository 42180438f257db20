//! What is written to people: which mail, to whom, in which language, with which facts (contract §5).
//!
//! All facts are fixed here, when the command is decided; nothing is looked up again when the mail leaves.

use std::fmt;

use chrono::NaiveDate;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::account::Account;
use super::billing::{YearMonth, iso_date};
use super::command::Amount;
use super::event::EffectIds;
use super::field::Field;
use super::ids::cut;
use super::organization::Organization;
use super::subscription::{Details, Subscription};

/// The eight mails.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
#[schemars(inline)]
pub enum Template {
    /// An admin cancelled from the purchases tab, or moved the end earlier.
    CancelledByAdmin,
    /// An admin removed a subscription bought by mistake.
    RemovedByAdmin,
    /// A client cancelled.
    CancelledByClient,
    /// A client asked to cancel.
    CancellationRequested,
    /// An admin accepted what a client asked.
    RequestAccepted,
    /// An admin declined it.
    RequestDeclined,
    /// An automatic payment was refused.
    PaymentFailed,
    /// A saved card is about to expire, or has expired.
    CardExpiring,
}

impl Template {
    /// All of them, in the contract's order.
    pub const ALL: [Self; 8] = [
        Self::CancelledByAdmin,
        Self::RemovedByAdmin,
        Self::CancelledByClient,
        Self::CancellationRequested,
        Self::RequestAccepted,
        Self::RequestDeclined,
        Self::PaymentFailed,
        Self::CardExpiring,
    ];

    /// Its name in the contract, in file names and in `X-Offramp-Template`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::CancelledByAdmin => "cancelled-by-admin",
            Self::RemovedByAdmin => "removed-by-admin",
            Self::CancelledByClient => "cancelled-by-client",
            Self::CancellationRequested => "cancellation-requested",
            Self::RequestAccepted => "request-accepted",
            Self::RequestDeclined => "request-declined",
            Self::PaymentFailed => "payment-failed",
            Self::CardExpiring => "card-expiring",
        }
    }

    /// To whom it can go.
    #[must_use]
    pub fn recipients(self) -> &'static [Recipient] {
        match self {
            Self::CancelledByAdmin | Self::RemovedByAdmin | Self::RequestAccepted | Self::RequestDeclined => {
                &[Recipient::AccountManager]
            }
            Self::CancelledByClient | Self::CancellationRequested | Self::PaymentFailed | Self::CardExpiring => {
                &[Recipient::OrganizationContact, Recipient::AccountManager]
            }
        }
    }
}

impl fmt::Display for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Who reads a mail.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub enum Recipient {
    /// The organization's main contact.
    OrganizationContact,
    /// The customer who holds the account.
    AccountManager,
}

impl Recipient {
    /// As documents write it (`notifications.role`).
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::OrganizationContact => "organization_contact",
            Self::AccountManager => "account_manager",
        }
    }
}

/// An address with the name of whom it reaches. Not yet checked: that is the mail's affair, not the rules'.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Mailbox {
    /// The name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The address.
    pub email: String,
}

/// How an organization's mails look.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Brand {
    /// A colour of CSS, `"#0a7d4f"`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub color: Option<String>,
    /// An image.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub logo_url: Option<String>,
}

/// A mail to one person, with all that it says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "Mail")]
pub struct Notification {
    /// Which mail.
    pub template: Template,
    /// Which of its versions.
    #[serde(rename = "role")]
    pub recipient: Recipient,
    /// The address that it goes to.
    pub to: Mailbox,
    /// The other party: who gets an answer.
    pub reply_to: Mailbox,
    /// The reader's language as their document gives it: a BCP 47 tag, not yet checked.
    pub locale: String,
    /// What it says.
    pub facts: Facts,
}

/// What mails say. Templates read these names; a fact that a mail does not have is absent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Facts {
    /// The organization.
    pub organization: OrganizationFacts,
    /// The account manager.
    pub manager: Mailbox,
    /// The name of the participant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub participant: Option<String>,
    /// The name of the plan.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plan: Option<String>,
    /// Who acted: the name that the command gives.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub actor: Option<String>,
    /// The last day of access.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "iso_date::option")]
    #[schemars(with = "Option<NaiveDate>")]
    pub ends_on: Option<NaiveDate>,
    /// The last day of access that was announced before, where it was moved earlier.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "iso_date::option")]
    #[schemars(with = "Option<NaiveDate>")]
    pub previous_ends_on: Option<NaiveDate>,
    /// The date of the last invoice.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "iso_date::option")]
    #[schemars(with = "Option<NaiveDate>")]
    pub final_billing_on: Option<NaiveDate>,
    /// The date of the next invoice, where the subscription goes on.
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
    /// Why, in the words of who acted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// What the administrator says about a request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
    /// The invoice.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub invoice_id: Option<String>,
    /// Whether the invoice is refunded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refund: Option<bool>,
    /// What is due.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub amount: Option<Amount>,
    /// The card.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub card: Option<CardFacts>,
    /// Which try to pay it was, from 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attempt: Option<u32>,
    /// What the payment system says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure_message: Option<String>,
    /// The day of the next attempt to pay: the day of the decision or later.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "iso_date::option")]
    #[schemars(with = "Option<NaiveDate>")]
    pub next_attempt_on: Option<NaiveDate>,
    /// The day of the next attempt where the command came late, and that day was over: what came of it is not known. Without this
    /// and `next_attempt_on` there is no further attempt.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "iso_date::option")]
    #[schemars(with = "Option<NaiveDate>")]
    pub past_attempt_on: Option<NaiveDate>,
    /// Where administrators see the subscription; in the organization's mails only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub admin_url: Option<String>,
}

/// What mails say of the organization.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct OrganizationFacts {
    /// Its name.
    pub name: String,
    /// Its main contact's address.
    pub email: String,
    /// A colour of CSS.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub color: Option<String>,
    /// An image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub logo_url: Option<String>,
}

/// What mails say of a card.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct CardFacts {
    /// `"Visa"`
    pub brand: String,
    /// `"4242"`
    pub last4: String,
    /// The month to whose end it is valid.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires: Option<YearMonth>,
    /// Whether that month is over.
    #[serde(default)]
    pub expired: bool,
}

/// How many characters of a name, or an address, an email carries.
const NAME_CHARS_MAX: usize = 1_000;
/// How long an address of the web may be, in bytes. A longer one is left out.
const URL_BYTES_MAX: usize = 2_048;

fn name(name: &str) -> String {
    cut(name.to_owned(), NAME_CHARS_MAX)
}

/// A mailbox of a document, no longer than an email carries.
fn mailbox(mailbox: &Mailbox) -> Mailbox {
    Mailbox { name: mailbox.name.as_deref().map(name), email: name(&mailbox.email) }
}

/// An address of the web, if it is one that an email can link to.
fn web_address(text: &str) -> Option<String> {
    let scheme = text.trim_start().split(':').next().unwrap_or_default();
    let is_one = scheme.eq_ignore_ascii_case("https") || scheme.eq_ignore_ascii_case("http");
    (is_one && text.len() <= URL_BYTES_MAX).then(|| text.to_owned())
}

impl Facts {
    /// The facts of every email of this organization to or about this account.
    ///
    /// # Errors
    /// When a field that emails need cannot be read.
    pub fn new(organization: &Organization, account: &Account) -> Field<Self> {
        Ok(Self {
            organization: OrganizationFacts {
                name: name(organization.name.as_ref().map_err(Clone::clone)?),
                email: name(&organization.contact.as_ref().map_err(Clone::clone)?.email),
                color: organization.brand.color.as_deref().map(name),
                logo_url: organization.brand.logo_url.as_deref().and_then(web_address),
            },
            manager: mailbox(account.manager.as_ref().map_err(Clone::clone)?),
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
            admin_url: organization.admin_url_of(&subscription.id).as_deref().and_then(web_address),
            ..Self::new(organization, account)?
        })
    }
}

/// Writes `template` to `recipient`: each gets it in their language, answers go to the other party, and the
/// administrators' page is for administrators.
///
/// # Errors
/// When a field that emails need cannot be read.
pub fn notify(
    template: Template,
    recipient: Recipient,
    organization: &Organization,
    account: &Account,
    facts: &Facts,
) -> Field<Notification> {
    let contact = mailbox(organization.contact.as_ref().map_err(Clone::clone)?);
    let manager = mailbox(account.manager.as_ref().map_err(Clone::clone)?);
    let mut facts = facts.clone();
    Ok(match recipient {
        Recipient::OrganizationContact => Notification {
            template,
            recipient,
            to: contact,
            reply_to: manager,
            locale: organization.locale.clone(),
            facts,
        },
        Recipient::AccountManager => {
            facts.admin_url = None;
            Notification {
                template,
                recipient,
                to: manager,
                reply_to: Mailbox {
                    name: contact.name.or_else(|| Some(facts.organization.name.clone())),
                    email: contact.email,
                },
                locale: account.manager_locale.clone().unwrap_or_else(|| organization.locale.clone()),
                facts,
            }
        }
    })
}

/// The conversation of all emails about one document. It never changes. `collection` is `subscriptions` or `accounts`, `document`
/// its `_id`.
#[must_use]
pub fn conversation_id(collection: &str, document: &str) -> Uuid {
    EffectIds::of(&[collection, document]).id("conversation")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::subscription::Status;
    use crate::testing::*;

    /// The two mails about a failed payment: one to the organization's contact, one to the account manager.
    fn mails(scene: &Scene) -> [Notification; 2] {
        let told = scene.tell(&payment_failure());
        told.subscription.unwrap().effects[0].notifications.clone().try_into().unwrap()
    }

    fn mailbox(name: Option<&str>, email: &str) -> Mailbox {
        Mailbox { name: name.map(str::to_owned), email: email.to_owned() }
    }

    #[test]
    fn answers_go_to_the_other_party() {
        let [contact, manager] = mails(&scene(Status::Active));
        assert_eq!(contact.to, mailbox(Some("Accueil"), "accueil@laurier.example"));
        assert_eq!(contact.reply_to, mailbox(Some("Marie Roy"), "marie@example.org"));
        assert_eq!(manager.to, mailbox(Some("Marie Roy"), "marie@example.org"));
        assert_eq!(manager.reply_to, mailbox(Some("Accueil"), "accueil@laurier.example"));

        let nameless = scene(Status::Active).with(|scene| scene.organization.contact.as_mut().unwrap().name = None);
        let [contact, manager] = mails(&nameless);
        assert_eq!(contact.to, mailbox(None, "accueil@laurier.example"));
        assert_eq!(manager.reply_to, mailbox(Some("Club Laurier"), "accueil@laurier.example"));
    }

    #[test]
    fn each_reads_it_in_their_language() {
        #[track_caller]
        fn check(manager_locale: Option<&str>, expected: [&str; 2]) {
            let scene =
                scene(Status::Active).with(|scene| scene.account.manager_locale = manager_locale.map(str::to_owned));
            assert_eq!(mails(&scene).map(|mail| mail.locale), expected);
        }
        check(Some("es"), ["fr-CA", "es"]);
        check(None, ["fr-CA", "fr-CA"]);
    }

    #[test]
    fn what_every_mail_says() {
        let [contact, manager] = mails(&scene(Status::Active));
        for mail in [&contact, &manager] {
            let facts = &mail.facts;
            assert_eq!(facts.organization.name, "Club Laurier");
            assert_eq!(facts.organization.email, "accueil@laurier.example");
            assert_eq!(facts.organization.color.as_deref(), Some("#0a7d4f"));
            assert_eq!(facts.manager, mailbox(Some("Marie Roy"), "marie@example.org"));
            assert_eq!(facts.participant.as_deref(), Some("Zoé Roy"));
            assert_eq!(facts.plan.as_deref(), Some("Natation"));
        }
        // The administrators' page is for administrators.
        assert_eq!(contact.facts.admin_url.as_deref(), Some("https://laurier.example/s/sub-1"));
        assert_eq!(manager.facts.admin_url, None);
    }

    /// What other systems write has no limit, and travels with every email.
    #[test]
    fn facts_are_bounded() {
        let long = "é".repeat(200_000);
        let scene = scene(Status::Active)
            .with(|scene| {
                scene.organization.name = Ok(long.clone());
                scene.organization.admin_url = Some(format!("https://laurier.example/{long}"));
                scene.organization.brand.color = Some(long.clone());
                scene.organization.brand.logo_url = Some(format!("data:image/png;base64,{long}"));
                scene.account.manager.as_mut().unwrap().name = Some(long.clone());
            })
            .with_details(|details| details.participant = Ok(long.clone()));
        for email in mails(&scene) {
            assert!(serde_json::to_vec(&email).unwrap().len() < 20_000);
            assert_eq!(email.facts.organization.name.chars().count(), 1_000);
            assert_eq!((&email.facts.organization.logo_url, &email.facts.admin_url), (&None, &None));
        }
    }

    /// Contract §5: what goes to whom. `always`, `if the organization wants it`, or never.
    #[test]
    fn who_gets_which_mail() {
        #[track_caller]
        fn check(status: Status, command: &crate::command::Command, template: Template, expected: &[&str]) {
            let told =
                scene(status).with(|scene| scene.organization.notify_client_of_own_actions = Ok(true)).tell(command);
            let added = match (told.subscription, told.account) {
                (Some(draft), _) => draft.effects[0].notifications.clone(),
                (_, Some(draft)) => draft.effects[0].notifications.clone(),
                _ => panic!("nothing happened"),
            };
            assert!(added.iter().all(|mail| mail.template == template));
            assert_eq!(added.iter().map(|mail| mail.recipient.as_str()).collect::<Vec<_>>(), expected);
            let possible: Vec<_> = template.recipients().iter().map(|recipient| recipient.as_str()).collect();
            assert_eq!(possible, expected, "`recipients` tells the same");
        }
        let (manager, both) = (&["account_manager"][..], &["organization_contact", "account_manager"][..]);
        check(Status::Active, &purchases(""), Template::CancelledByAdmin, manager);
        check(Status::CancellationScheduled, &purchases(""), Template::CancelledByAdmin, manager);
        check(Status::Active, &invoice("inv-may"), Template::RemovedByAdmin, manager);
        check(Status::Active, &account(), Template::CancelledByClient, both);
        check(Status::Active, &request(), Template::CancellationRequested, both);
        check(Status::CancellationRequested, &accept(""), Template::RequestAccepted, manager);
        check(Status::CancellationRequested, &decline(), Template::RequestDeclined, manager);
        check(Status::Active, &payment_failure(), Template::PaymentFailed, both);
        check(Status::Active, &card_expiry("2026-06"), Template::CardExpiring, both);
    }

    #[test]
    fn templates_have_one_name() {
        for template in Template::ALL {
            assert_eq!(serde_json::to_value(template).unwrap(), template.as_str());
        }
    }
}
