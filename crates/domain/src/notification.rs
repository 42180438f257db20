//! The emails: which templates exist, who receives them, in which language. What they say is in [`facts`](crate::facts).

use chrono::NaiveDate;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::account::Account;
use crate::contact::{Mailbox, in_region_of};
use crate::facts::{Facts, mailbox};
use crate::failure_code::FailureCode;
use crate::field::Field;
use crate::organization::Organization;

/// A kind of email.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    Hash,
    PartialOrd,
    Ord,
    Serialize,
    Deserialize,
    JsonSchema,
    strum::Display,
    strum::IntoStaticStr,
)]
#[serde(rename_all = "kebab-case")]
#[strum(serialize_all = "kebab-case")]
#[schemars(inline)]
pub enum Template {
    /// An administrator cancelled from the purchases tab, or moved the end earlier.
    CancelledByAdmin,
    /// An administrator removed a subscription bought by mistake.
    RemovedByAdmin,
    /// A client cancelled.
    CancelledByClient,
    /// A client asked to cancel.
    CancellationRequested,
    /// An administrator accepted a client's request.
    RequestAccepted,
    /// An administrator declined a client's request.
    RequestDeclined,
    /// An automatic payment was refused.
    PaymentFailed,
    /// A saved card is about to expire, or has expired.
    CardExpiring,
    /// Requests of clients still await a decision.
    RequestsPending,
}

impl Template {
    pub const ALL: [Self; 9] = [
        Self::CancelledByAdmin,
        Self::RemovedByAdmin,
        Self::CancelledByClient,
        Self::CancellationRequested,
        Self::RequestAccepted,
        Self::RequestDeclined,
        Self::PaymentFailed,
        Self::CardExpiring,
        Self::RequestsPending,
    ];

    /// The name in file names and in `X-Offramp-Template`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        self.into()
    }

    /// Everybody who may receive it.
    #[must_use]
    pub fn recipients(self) -> &'static [Recipient] {
        match self {
            Self::CancelledByAdmin | Self::RemovedByAdmin | Self::RequestAccepted | Self::RequestDeclined => {
                &[Recipient::AccountManager]
            }
            Self::CancelledByClient | Self::CancellationRequested | Self::PaymentFailed | Self::CardExpiring => {
                &[Recipient::OrganizationContact, Recipient::AccountManager]
            }
            Self::RequestsPending => &[Recipient::OrganizationContact],
        }
    }
}

/// Who receives an email.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema, strum::IntoStaticStr,
)]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
#[schemars(inline)]
pub enum Recipient {
    /// The organization's main contact.
    OrganizationContact,
    /// The client who manages the account.
    AccountManager,
}

impl Recipient {
    /// The name in documents (`notifications.role`).
    #[must_use]
    pub fn as_str(self) -> &'static str {
        self.into()
    }
}

/// An email to one person, with everything it says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "Mail")]
pub struct Notification {
    /// Which email.
    pub template: Template,
    /// Who receives it: each recipient has a version of their own.
    #[serde(rename = "role")]
    pub recipient: Recipient,
    /// The address it is sent to.
    pub to: Mailbox,
    /// The other party, who receives replies; absent if there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reply_to: Option<Mailbox>,
    /// The reader's language: a BCP 47 tag as their document has it, with the organization's region if it has none. Not yet checked.
    pub locale: String,
    /// What it says.
    pub facts: Facts,
}

/// An email of this organization about this account. It is in the reader's language, has only what the reader may know, and replies
/// go to the other party.
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
    let (to, reply_to, locale) = match recipient {
        Recipient::OrganizationContact => (contact, Some(manager), organization.locale.clone()),
        Recipient::AccountManager => {
            let name = contact.name.or_else(|| Some(facts.organization.name.clone()));
            let locale = match &account.manager_locale {
                Some(locale) => in_region_of(locale, &organization.locale),
                None => organization.locale.clone(),
            };
            (manager, Some(Mailbox { name, email: contact.email }), locale)
        }
    };
    Ok(Notification { template, recipient, to, reply_to, locale, facts: facts.clone() }.for_its_reader())
}

impl Notification {
    /// Without what its recipient may not know. The administrators' pages and reasons and the payment system's message are for
    /// administrators; the client's pages are for the client.
    #[must_use]
    pub fn for_its_reader(mut self) -> Self {
        let facts = &mut self.facts;
        match self.recipient {
            Recipient::OrganizationContact => {
                facts.account_url = None;
                facts.payment_method_url = None;
                facts.payment_url = None;
            }
            Recipient::AccountManager => {
                // An administrator's reason is no fact, but entries of earlier versions may have it.
                if matches!(self.template, Template::CancelledByAdmin | Template::RemovedByAdmin) {
                    facts.reason = None;
                }
                facts.failure_message = None;
                // To a client it would be an accusation, and to a thief a warning.
                facts.failure_code = facts.failure_code.filter(|code| *code != FailureCode::LostOrStolen);
                facts.admin_url = None;
                facts.admin_account_url = None;
                facts.requests.clear();
                facts.requests_count = None;
            }
        }
        self
    }

    /// An email that an earlier version stored, which did not record everything that today's templates read. `today` is the day on
    /// which it is sent.
    ///
    /// Such a version had no `ended` and, in emails about a cancellation, no `next_billing_on`, so the email must not say that no
    /// invoice is to come. It stored an absent `refund` as `false`, so the email must not say that no refund is planned.
    #[must_use]
    pub fn completed(mut self, today: NaiveDate) -> Self {
        let facts = &mut self.facts;
        match self.template {
            Template::CancelledByAdmin | Template::CancelledByClient | Template::RequestAccepted => {
                facts.ended |= facts.ends_on.is_some_and(|ends_on| ends_on < today);
                facts.invoices_unknown = facts.next_billing_on.is_none();
            }
            Template::RemovedByAdmin => facts.refund = facts.refund.filter(|is_refunded| *is_refunded),
            _ => {}
        }
        self
    }
}

/// An email to the organization's contact that is about no single account.
///
/// # Errors
/// When a field that emails need cannot be read.
pub fn notify_organization(template: Template, organization: &Organization, facts: Facts) -> Field<Notification> {
    Ok(Notification {
        template,
        recipient: Recipient::OrganizationContact,
        to: mailbox(organization.contact.as_ref().map_err(Clone::clone)?),
        reply_to: None,
        locale: organization.locale.clone(),
        facts,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::subscription::Status;
    use crate::testing::*;

    /// The two emails about a failed payment: one to the organization's contact, one to the account manager.
    fn emails(scene: &Scene) -> [Notification; 2] {
        let applied = scene.decide(&payment_failure());
        applied.subscription.unwrap().effects[0].notifications.clone().try_into().unwrap()
    }

    fn mailbox(name: Option<&str>, email: &str) -> Mailbox {
        Mailbox { name: name.map(str::to_owned), email: email.to_owned() }
    }

    #[test]
    fn answers_go_to_the_other_party() {
        let [contact, manager] = emails(&scene(Status::Active));
        assert_eq!(contact.to, mailbox(Some("Accueil"), "accueil@laurier.example"));
        assert_eq!(contact.reply_to, Some(mailbox(Some("Marie Roy"), "marie@example.org")));
        assert_eq!(manager.to, mailbox(Some("Marie Roy"), "marie@example.org"));
        assert_eq!(manager.reply_to, Some(mailbox(Some("Accueil"), "accueil@laurier.example")));

        let nameless = scene(Status::Active).with(|scene| scene.organization.contact.as_mut().unwrap().name = None);
        let [contact, manager] = emails(&nameless);
        assert_eq!(contact.to, mailbox(None, "accueil@laurier.example"));
        assert_eq!(manager.reply_to, Some(mailbox(Some("Club Laurier"), "accueil@laurier.example")));
    }

    #[test]
    fn each_reads_it_in_their_language() {
        #[track_caller]
        fn check(manager_locale: Option<&str>, expected: [&str; 2]) {
            let scene =
                scene(Status::Active).with(|scene| scene.account.manager_locale = manager_locale.map(str::to_owned));
            assert_eq!(emails(&scene).map(|email| email.locale), expected);
        }
        check(Some("es"), ["fr-CA", "es-CA"]);
        check(Some("fr"), ["fr-CA", "fr-CA"]);
        check(Some("es-MX"), ["fr-CA", "es-MX"]);
        check(None, ["fr-CA", "fr-CA"]);
    }

    #[test]
    fn what_every_mail_says() {
        let [contact, manager] = emails(&scene(Status::Active));
        for email in [&contact, &manager] {
            let facts = &email.facts;
            assert_eq!(facts.organization.name, "Club Laurier");
            assert_eq!(facts.organization.email, "accueil@laurier.example");
            assert_eq!(facts.organization.color.as_deref(), Some("#0a7d4f"));
            assert_eq!(facts.manager, Some(mailbox(Some("Marie Roy"), "marie@example.org")));
            assert_eq!(facts.participant.as_deref(), Some("Zoé Roy"));
            assert_eq!(facts.plan.as_deref(), Some("Natation"));
        }
        // The administrators' page is for administrators.
        assert_eq!(contact.facts.admin_url.as_deref(), Some("https://laurier.example/s/sub-1"));
        assert_eq!(manager.facts.admin_url, None);
    }

    /// They lack the newer facts, and may have an administrator's reason and the bank's words for the client.
    #[test]
    fn emails_of_earlier_versions_are_read() {
        let stored = serde_json::json!({
            "template": "removed-by-admin", "role": "account_manager",
            "to": { "email": "marie@example.org" }, "reply_to": { "email": "accueil@laurier.example" }, "locale": "fr-CA",
            "facts": {
                "organization": { "name": "Club Laurier", "email": "accueil@laurier.example" },
                "manager": { "email": "marie@example.org" }, "participant": "Zoé Roy", "removed_on": "2026-06-01",
                "reason": "ne pas réinscrire", "refund": false, "failure_message": "stolen",
                "admin_url": "https://laurier.example/s/sub-1",
            },
        });
        let email: Notification = serde_json::from_value(stored).unwrap();
        let facts = email.for_its_reader().facts;
        assert_eq!((facts.refund, facts.ended, facts.superseded), (Some(false), false, false));
        assert_eq!((facts.reason, facts.failure_message, facts.admin_url), (None, None, None));
    }

    #[test]
    fn emails_of_earlier_versions_do_not_know_what_is_still_invoiced() {
        #[track_caller]
        fn check(template: Template, today: &str, next_billing_on: Option<&str>, expected: (bool, bool)) {
            let mut email = emails(&scene(Status::Active))[0].clone();
            email.template = template;
            email.facts.ends_on = Some(date("2026-09-14"));
            email.facts.final_billing_on = Some(date("2026-08-15"));
            email.facts.next_billing_on = next_billing_on.map(date);
            let facts = email.completed(date(today)).facts;
            assert_eq!((facts.ended, facts.invoices_unknown), expected, "{template}");
            assert_eq!(facts.next_billing_on, next_billing_on.map(date), "{template}");
        }
        for template in [Template::CancelledByAdmin, Template::CancelledByClient, Template::RequestAccepted] {
            check(template, "2026-06-01", None, (false, true));
            check(template, "2026-09-14", None, (false, true));
            check(template, "2026-09-15", None, (true, true));
            check(template, "2026-06-01", Some("2026-06-15"), (false, false));
        }
        // These always had it, or do not speak of it.
        check(Template::RequestDeclined, "2026-06-01", None, (false, false));
        check(Template::PaymentFailed, "2026-09-15", None, (false, false));
    }

    #[test]
    fn emails_of_earlier_versions_do_not_deny_a_refund() {
        for (stored, expected) in [(Some(false), None), (Some(true), Some(true)), (None, None)] {
            let email = &emails(&scene(Status::Active))[0];
            let facts = Facts { refund: stored, ..email.facts.clone() };
            let email = Notification { template: Template::RemovedByAdmin, facts, ..email.clone() };
            assert_eq!(email.completed(date("2026-06-01")).facts.refund, expected);
        }
    }

    /// What other systems write has no limit, and travels with every email.
    #[test]
    fn facts_are_bounded() {
        let long = "é".repeat(200_000);
        let scene = scene(Status::Active)
            .with(|scene| {
                scene.organization.name = Ok(long.clone());
                scene.organization.links.admin_url = Some(format!("https://laurier.example/{long}"));
                scene.organization.brand.color = Some(long.clone());
                scene.organization.brand.logo_url = Some(format!("data:image/png;base64,{long}"));
                scene.account.manager.as_mut().unwrap().name = Some(long.clone());
            })
            .with_details(|details| details.participant = Ok(long.clone()));
        for email in emails(&scene) {
            assert!(serde_json::to_vec(&email).unwrap().len() < 20_000);
            assert_eq!(email.facts.organization.name.chars().count(), 1_000);
            assert_eq!((&email.facts.organization.logo_url, &email.facts.admin_url), (&None, &None));
        }
    }

    /// The table in `docs/rules/emails.md`.
    #[test]
    fn who_gets_which_mail() {
        #[track_caller]
        fn check(status: Status, command: &crate::command::Command, template: Template, expected: &[&str]) {
            let applied =
                scene(status).with(|scene| scene.organization.notify_client_of_own_actions = Ok(true)).decide(command);
            let added = match (applied.subscription, applied.account) {
                (Some(draft), _) => draft.effects[0].notifications.clone(),
                (_, Some(draft)) => draft.effects[0].notifications.clone(),
                _ => panic!("nothing happened"),
            };
            assert!(added.iter().all(|email| email.template == template));
            assert_eq!(added.iter().map(|email| email.recipient.as_str()).collect::<Vec<_>>(), expected);
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
}
