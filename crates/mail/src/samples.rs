//! Sample emails: every kind of email with all facts that it can have, with as few as possible, and in each variant of its
//! wording. Templates are rendered with them when they are loaded, and in the preview.

use chrono::NaiveDate;

use offramp_domain::calendar::YearMonth;
use offramp_domain::contact::Mailbox;
use offramp_domain::facts::{CardFacts, Facts, OrganizationFacts, PendingRequest};
use offramp_domain::failure_code::FailureCode;
use offramp_domain::money::{Amount, Currency, Decimal};
use offramp_domain::notification::{Notification, Recipient, Template};

/// A sample email.
#[derive(Clone, Debug)]
pub struct Sample {
    /// `full`, `minimal`, `moved-earlier`, …
    pub variant: &'static str,
    /// The facts, and who reads them.
    pub notification: Notification,
}

/// The sample emails of one template to one recipient, whose locale is `locale`.
#[must_use]
pub fn samples(template: Template, recipient: Recipient, locale: &str) -> Vec<Sample> {
    let to_organization = recipient == Recipient::OrganizationContact;
    variants(template)
        .into_iter()
        .map(|(variant, mut facts)| {
            if !to_organization {
                facts.admin_url = None;
            }
            let (to, reply_to) = match facts.manager.clone() {
                Some(manager) if !to_organization => (manager, Some(contact())),
                manager => (contact(), manager),
            };
            let notification = Notification { template, recipient, to, reply_to, locale: locale.to_owned(), facts };
            Sample { variant, notification }
        })
        .collect()
}

/// The facts of each variant.
fn variants(template: Template) -> Vec<(&'static str, Facts)> {
    let few = few_subscription_facts();
    match template {
        Template::CancelledByAdmin | Template::CancelledByClient => {
            let full = Facts {
                actor: text(if template == Template::CancelledByAdmin { "Julie Roy" } else { "Marie Tremblay" }),
                ends_on: date(2026, 6, 14),
                final_billing_on: date(2026, 5, 15),
                reason: text("Nous déménageons à Laval.\nMerci pour tout & à bientôt !"),
                ..subscription_facts()
            };
            vec![
                (
                    "moved-earlier",
                    Facts { previous_ends_on: date(2026, 8, 14), requested_on: date(2026, 5, 1), ..full.clone() },
                ),
                ("full", full),
                ("minimal", Facts { ends_on: date(2026, 6, 30), ..few }),
            ]
        }
        Template::RemovedByAdmin => {
            let full = Facts {
                removed_on: date(2026, 5, 20),
                invoice_id: text("INV-2026-0042"),
                refund: Some(true),
                reason: text("Acheté deux fois par erreur."),
                ..subscription_facts()
            };
            vec![
                ("no-refund", Facts { refund: Some(false), ..full.clone() }),
                ("full", full),
                ("minimal", Facts { removed_on: date(2026, 5, 20), invoice_id: text("INV-2026-0042"), ..few }),
            ]
        }
        Template::CancellationRequested => vec![
            (
                "full",
                Facts {
                    actor: text("Marie Tremblay"),
                    requested_on: date(2026, 5, 1),
                    next_billing_on: date(2026, 5, 15),
                    reason: text("Blessure au genou"),
                    ..subscription_facts()
                },
            ),
            ("minimal", Facts { requested_on: date(2026, 5, 1), ..few }),
        ],
        Template::RequestAccepted => vec![
            (
                "full",
                Facts {
                    requested_on: date(2026, 5, 1),
                    ends_on: date(2026, 6, 14),
                    final_billing_on: date(2026, 5, 15),
                    reason: text("Blessure au genou"),
                    note: text("Bon rétablissement !"),
                    ..subscription_facts()
                },
            ),
            ("minimal", Facts { ends_on: date(2026, 6, 14), ..few }),
        ],
        Template::RequestDeclined => vec![
            (
                "full",
                Facts {
                    requested_on: date(2026, 5, 1),
                    next_billing_on: date(2026, 6, 1),
                    reason: text("Blessure au genou"),
                    note: text("Votre forfait vous engage jusqu'en septembre.\nAppelez-nous : 514 555-0199."),
                    ..subscription_facts()
                },
            ),
            ("minimal", few),
        ],
        Template::PaymentFailed => payment_failed(),
        Template::CardExpiring => {
            let card = |expired| Some(CardFacts { expires: Some(YearMonth::of(day(2026, 6, 1))), ..card(expired) });
            let full = Facts { participant: None, plan: None, actor: None, admin_url: None, ..subscription_facts() };
            vec![
                ("full", Facts { card: card(false), ..full.clone() }),
                ("expired", Facts { card: card(true), ..full }),
                ("minimal", Facts { card: card(false), ..few_facts() }),
            ]
        }
        Template::RequestsPending => requests_pending(),
    }
}

fn requests_pending() -> Vec<(&'static str, Facts)> {
    let pending = |requests: Vec<PendingRequest>, requests_count| Facts {
        manager: None,
        requests,
        requests_count: Some(requests_count),
        ..few_facts()
    };
    let other = PendingRequest {
        participant: text("Noah Gagnon"),
        plan: text("Escalade"),
        actor: text("Julie Gagnon"),
        reason: None,
        ..pending_request(3)
    };
    let bare = PendingRequest { participant: None, plan: None, actor: None, admin_url: None, ..other.clone() };
    let full = pending(vec![pending_request(8), other], 2);
    vec![
        ("full", Facts { organization: organization(), ..full.clone() }),
        ("more-than-listed", Facts { requests_count: Some(63), ..full }),
        ("minimal", pending(vec![bare], 1)),
    ]
}

/// A request that has been undecided for this many days.
fn pending_request(days: u32) -> PendingRequest {
    PendingRequest {
        participant: text("Léa O'Brien-Tremblay"),
        plan: text("Natation < 12 ans"),
        requested_on: day(2026, 5, 1),
        days,
        actor: text("Marie Tremblay"),
        reason: text("Blessure au genou"),
        admin_url: text("https://admin.example.com/subscriptions/sub-0042"),
    }
}

fn payment_failed() -> Vec<(&'static str, Facts)> {
    let payment = |facts: Facts| Facts { amount: amount("49.99", "CAD"), card: Some(card(false)), ..facts };
    let full = payment(Facts {
        invoice_id: text("INV-2026-0043"),
        attempt: Some(2),
        actor: None,
        failure_message: text("Insufficient funds"),
        next_attempt_on: date(2026, 6, 18),
        ends_on: date(2026, 6, 30),
        final_billing_on: date(2026, 6, 1),
        ..subscription_facts()
    });
    vec![
        ("no-further-attempt", Facts { next_attempt_on: None, attempt: Some(3), ..full.clone() }),
        ("full", full.clone()),
        ("minimal", payment(Facts { invoice_id: text("INV-2026-0043"), attempt: Some(1), ..few_subscription_facts() })),
        ("past-attempt", Facts { next_attempt_on: None, past_attempt_on: date(2026, 6, 18), ..full }),
    ]
}

/// Facts with a value for every field: all names that templates may use.
pub(crate) fn every_fact() -> Facts {
    // No struct update, so that a new fact cannot be forgotten here.
    Facts {
        organization: organization(),
        manager: Some(manager()),
        participant: text("x"),
        plan: text("x"),
        actor: text("x"),
        ends_on: date(2026, 6, 14),
        previous_ends_on: date(2026, 6, 14),
        ended: true,
        final_billing_on: date(2026, 6, 14),
        next_billing_on: date(2026, 6, 14),
        removed_on: date(2026, 6, 14),
        requested_on: date(2026, 6, 14),
        superseded: true,
        reason: text("x"),
        note: text("x"),
        message: text("x"),
        invoice_id: text("x"),
        refund: Some(true),
        amount: amount("49.99", "CAD"),
        card: Some(CardFacts { expires: Some(YearMonth::of(day(2026, 6, 1))), ..card(true) }),
        attempt: Some(1),
        failure_message: text("x"),
        failure_code: Some(FailureCode::InsufficientFunds),
        next_attempt_on: date(2026, 6, 14),
        past_attempt_on: date(2026, 6, 14),
        admin_url: text("https://example.com/"),
        admin_account_url: text("https://example.com/"),
        account_url: text("https://example.com/"),
        payment_method_url: text("https://example.com/"),
        payment_url: text("https://example.com/"),
        requests: vec![pending_request(8)],
        requests_count: Some(1),
    }
}

/// The fewest facts that an email can have.
fn few_facts() -> Facts {
    let organization =
        OrganizationFacts { phone: None, address: None, website: None, color: None, logo_url: None, ..organization() };
    Facts::of(organization, Some(Mailbox { name: None, ..manager() }))
}

/// The fewest facts that an email about a subscription can have.
fn few_subscription_facts() -> Facts {
    Facts { participant: text("Zoé"), plan: text("Yoga"), ..few_facts() }
}

fn subscription_facts() -> Facts {
    Facts {
        organization: organization(),
        manager: Some(manager()),
        participant: text("Léa O'Brien-Tremblay"),
        plan: text("Natation < 12 ans"),
        actor: text("Julie Roy"),
        admin_url: text("https://admin.example.com/subscriptions/sub-0042"),
        ..few_facts()
    }
}

fn organization() -> OrganizationFacts {
    OrganizationFacts {
        name: "Club Boréal".to_owned(),
        email: "info@boreal.example".to_owned(),
        phone: text("514 555-0199"),
        address: text("1200, rue du Lac\nMagog (Québec)  J1X 2B4"),
        website: text("https://boreal.example"),
        color: text("#0a7d4f"),
        logo_url: text("https://boreal.example/logo.png"),
    }
}

fn contact() -> Mailbox {
    Mailbox { name: text("Club Boréal"), email: "info@boreal.example".to_owned() }
}

fn manager() -> Mailbox {
    Mailbox { name: text("Marie Tremblay"), email: "marie.tremblay@example.com".to_owned() }
}

fn card(expired: bool) -> CardFacts {
    CardFacts { brand: "Visa".to_owned(), last4: "4242".to_owned(), expires: None, expired }
}

#[allow(clippy::unnecessary_wraps, reason = "most facts are optional")]
fn text(text: &str) -> Option<String> {
    Some(text.to_owned())
}

fn day(year: i32, month: u32, day: u32) -> NaiveDate {
    NaiveDate::from_ymd_opt(year, month, day).unwrap_or_default()
}

#[allow(clippy::unnecessary_wraps, reason = "most facts are optional")]
fn date(year: i32, month: u32, day_of_month: u32) -> Option<NaiveDate> {
    Some(day(year, month, day_of_month))
}

fn amount(value: &str, currency: &str) -> Option<Amount> {
    Some(Amount { value: Decimal::try_from(value).ok()?, currency: Currency::try_from(currency).ok()? })
}
