//! Sample emails: every kind of email in each variant of its wording, the commonest first, and with as few facts as it can have. Each
//! could be sent as it is. Templates are rendered with them when they are loaded, and in the preview.

use chrono::NaiveDate;
use icu::locale::subtags::Region;
use offramp_domain::calendar::YearMonth;
use offramp_domain::contact::Mailbox;
use offramp_domain::facts::{CardFacts, Facts, OrganizationFacts, PendingRequest};
use offramp_domain::failure_code::FailureCode;
use offramp_domain::money::{Amount, Currency, Decimal};
use offramp_domain::notification::{Notification, Recipient, Template};

use crate::locale::parse_tag;

/// A sample email.
#[derive(Clone, Debug)]
pub struct Sample {
    /// `full`, `minimal`, `moved-earlier`, …
    pub variant: &'static str,
    /// The facts, and who reads them.
    pub notification: Notification,
}

type Variants = Vec<(&'static str, Facts)>;

/// The sample emails of one template to one recipient, whose locale is `locale`. What people wrote is in that language, if it is one of
/// those that are built in.
#[must_use]
pub fn samples(template: Template, recipient: Recipient, locale: &str) -> Vec<Sample> {
    let words = Words::in_language_of(locale);
    let variants = match template {
        Template::CancelledByAdmin => cancelled_by_admin(words),
        Template::CancelledByClient => cancelled_by_client(words),
        Template::RemovedByAdmin => removed_by_admin(words),
        Template::CancellationRequested => cancellation_requested(words),
        Template::RequestAccepted => request_accepted(words),
        Template::RequestDeclined => request_declined(words),
        Template::PaymentFailed => payment_failed(words, recipient),
        Template::CardExpiring => card_expiring(words),
        Template::RequestsPending => requests_pending(words),
    };
    let sample = |(variant, mut facts): (&'static str, Facts)| {
        if let Some(amount) = &mut facts.amount
            && let Ok(currency) = Currency::try_from(currency_of(locale))
        {
            amount.currency = currency;
        }
        let (to, reply_to) = match (recipient, facts.manager.clone()) {
            (Recipient::AccountManager, Some(manager)) => (manager, Some(contact())),
            (_, manager) => (contact(), manager),
        };
        let notification = Notification { template, recipient, to, reply_to, locale: locale.to_owned(), facts };
        Sample { variant, notification: notification.for_its_reader() }
    };
    variants.into_iter().map(sample).collect()
}

/// The currency in which a reader pays: the dollar of Canada, if the locale does not say.
fn currency_of(locale: &str) -> &'static str {
    match parse_tag(locale).and_then(|tag| tag.region).as_ref().map(Region::as_str) {
        Some("DE" | "ES" | "FR") => "EUR",
        Some("GB") => "GBP",
        Some("MX") => "MXN",
        Some("US") => "USD",
        _ => "CAD",
    }
}

// It is 20 May 2026 in all samples, but for those of a payment: these are of the billing day, 15 June, or some days later. The
// subscription was bought on a 15th.

fn cancelled_by_admin(words: &Words) -> Variants {
    let full = Facts { actor: text("Julie Roy"), message: text(words.message), ..ending(words) };
    let mut variants = endings(&full);
    variants.push(("long", Facts { message: long(words.story), ..full }));
    variants.push(("minimal", Facts { ends_on: date(2026, 6, 14), ..few_subscription_facts() }));
    variants
}

fn cancelled_by_client(words: &Words) -> Variants {
    let full = Facts { actor: text("Marie Tremblay"), reason: text(words.leaving), ..ending(words) };
    // The client cannot choose a month, so no invoice is to come.
    let mut variants = endings(&full);
    variants.retain(|(variant, _)| *variant != "invoices-to-come");
    variants.push(("no-actor", Facts { actor: None, reason: None, ..full.clone() }));
    variants.push(("long", Facts { reason: long(words.story), ..full }));
    variants.push(("minimal", Facts { ends_on: date(2026, 6, 14), ..few_subscription_facts() }));
    variants
}

/// A cancellation after which no invoice follows.
fn ending(words: &Words) -> Facts {
    Facts { ends_on: date(2026, 6, 14), final_billing_on: date(2026, 5, 15), ..subscription_facts(words) }
}

/// How a subscription can end.
fn endings(full: &Facts) -> Variants {
    vec![
        ("full", full.clone()),
        (
            "invoices-to-come",
            Facts {
                ends_on: date(2026, 9, 14),
                final_billing_on: date(2026, 8, 15),
                next_billing_on: date(2026, 6, 15),
                ..full.clone()
            },
        ),
        ("moved-earlier", Facts { previous_ends_on: date(2026, 8, 14), ..full.clone() }),
        ("superseded", Facts { requested_on: date(2026, 5, 18), superseded: true, ..full.clone() }),
        (
            "ended",
            Facts { ends_on: date(2026, 5, 14), final_billing_on: date(2026, 4, 15), ended: true, ..full.clone() },
        ),
        ("never-invoiced", Facts { final_billing_on: None, ..full.clone() }),
    ]
}

fn removed_by_admin(words: &Words) -> Variants {
    let minimal =
        Facts { removed_on: date(2026, 5, 20), invoice_id: text("INV-2026-0042"), ..few_subscription_facts() };
    let full = Facts {
        removed_on: minimal.removed_on,
        invoice_id: minimal.invoice_id.clone(),
        actor: text("Julie Roy"),
        refund: Some(true),
        message: text(words.mistake),
        ..subscription_facts(words)
    };
    vec![
        ("full", full.clone()),
        ("no-refund", Facts { refund: Some(false), ..full.clone() }),
        ("refund-unknown", Facts { refund: None, ..full.clone() }),
        ("long", Facts { message: long(words.story), ..full }),
        ("minimal", minimal),
    ]
}

/// A request, and what a decision about it repeats.
fn requested(words: &Words) -> Facts {
    Facts { requested_on: date(2026, 5, 18), reason: text(words.injury), ..subscription_facts(words) }
}

fn few_requested() -> Facts {
    Facts { requested_on: date(2026, 5, 18), ..few_subscription_facts() }
}

fn cancellation_requested(words: &Words) -> Variants {
    let next_billing_on = date(2026, 6, 15);
    let full = Facts { actor: text("Marie Tremblay"), next_billing_on, ..requested(words) };
    vec![
        ("full", full.clone()),
        ("no-actor", Facts { actor: None, reason: None, ..full.clone() }),
        ("long", Facts { reason: long(words.story), ..full }),
        ("minimal", Facts { next_billing_on, ..few_requested() }),
    ]
}

fn request_accepted(words: &Words) -> Variants {
    let full = Facts {
        actor: text("Julie Roy"),
        note: text(words.recovery),
        ends_on: date(2026, 6, 14),
        final_billing_on: date(2026, 5, 15),
        ..requested(words)
    };
    vec![
        ("full", full.clone()),
        (
            "invoices-to-come",
            Facts {
                ends_on: date(2026, 9, 14),
                final_billing_on: date(2026, 8, 15),
                next_billing_on: date(2026, 6, 15),
                ..full.clone()
            },
        ),
        (
            "ended",
            Facts { ends_on: date(2026, 5, 14), final_billing_on: date(2026, 4, 15), ended: true, ..full.clone() },
        ),
        ("long", Facts { reason: long(words.story), note: long(words.story), ..full }),
        ("minimal", Facts { ends_on: date(2026, 6, 14), ..few_requested() }),
    ]
}

fn request_declined(words: &Words) -> Variants {
    let next_billing_on = date(2026, 6, 15);
    let full = Facts { actor: text("Julie Roy"), note: text(words.binding), next_billing_on, ..requested(words) };
    vec![
        ("full", full.clone()),
        ("long", Facts { reason: long(words.story), note: long(words.story), ..full }),
        ("minimal", Facts { next_billing_on, ..few_requested() }),
    ]
}

fn payment_failed(words: &Words, recipient: Recipient) -> Variants {
    let minimal = Facts {
        invoice_id: text("INV-2026-0043"),
        amount: amount("49.99", "CAD"),
        card: Some(card(None, false)),
        attempt: Some(1),
        ..few_subscription_facts()
    };
    let bare = Facts {
        invoice_id: minimal.invoice_id.clone(),
        amount: minimal.amount.clone(),
        card: minimal.card.clone(),
        payment_method_url: text("https://my.boreal.example/acc-0042/cards"),
        payment_url: text("https://pay.boreal.example/INV-2026-0043"),
        ..subscription_facts(words)
    };
    let failed = |attempt: u32, code: Option<FailureCode>, bank: &str| Facts {
        attempt: Some(attempt),
        failure_code: code,
        failure_message: text(bank),
        ..bare.clone()
    };
    let next_attempt_on = date(2026, 6, 18);
    let full = Facts { next_attempt_on, ..failed(2, Some(FailureCode::InsufficientFunds), "Insufficient funds") };
    let mut variants = vec![
        ("full", full.clone()),
        ("no-further-attempt", failed(3, Some(FailureCode::LimitExceeded), "Exceeds card limit")),
        ("declined", Facts { next_attempt_on, ..failed(1, None, "Do not honor") }),
        ("past-attempt", Facts { past_attempt_on: date(2026, 6, 18), ..failed(2, None, "Do not honor") }),
        (
            "scheduled",
            Facts {
                next_attempt_on,
                ends_on: date(2026, 7, 14),
                ..failed(1, Some(FailureCode::ExpiredCard), "Expired card")
            },
        ),
        (
            "ended",
            Facts {
                ends_on: date(2026, 6, 14),
                ended: true,
                ..failed(3, Some(FailureCode::AuthenticationRequired), "Authentication required")
            },
        ),
        (
            "incorrect-details",
            Facts { next_attempt_on, ..failed(1, Some(FailureCode::IncorrectDetails), "Invalid card number") },
        ),
        ("lost-or-stolen", failed(1, Some(FailureCode::LostOrStolen), "Pick up card, stolen")),
    ];
    // The client does not read the bank's message.
    if recipient == Recipient::OrganizationContact {
        variants.push((
            "long",
            Facts {
                failure_message: long(
                    "The issuer declined this payment; the cardholder may ask the bank for the reason.",
                ),
                ..full
            },
        ));
    }
    variants.push(("minimal", minimal));
    variants
}

fn card_expiring(words: &Words) -> Variants {
    let expiring = |year, month, expired| Facts {
        card: Some(card(Some(YearMonth::of(day(year, month, 1))), expired)),
        payment_method_url: text("https://my.boreal.example/acc-0042/cards"),
        // About no subscription.
        participant: None,
        plan: None,
        admin_url: None,
        ..subscription_facts(words)
    };
    let soon = expiring(2026, 5, false);
    vec![
        ("full", soon.clone()),
        ("expired", expiring(2026, 4, true)),
        ("early", expiring(2029, 1, false)),
        ("minimal", Facts { card: soon.card, ..few_facts() }),
    ]
}

fn requests_pending(words: &Words) -> Variants {
    let pending = |requests: Vec<PendingRequest>, requests_count| Facts {
        manager: None,
        requests,
        requests_count: Some(requests_count),
        ..few_facts()
    };
    let other = PendingRequest {
        subscription_id: text("sub-0107"),
        participant: text("Noah Gagnon"),
        plan: text(words.climbing),
        actor: text("Julie Gagnon"),
        reason: None,
        ..pending_request(3, words)
    };
    let bare = PendingRequest { participant: None, plan: None, actor: None, admin_url: None, ..other.clone() };
    let full = pending(vec![pending_request(8, words), other], 2);
    vec![
        ("full", Facts { organization: organization(), ..full.clone() }),
        ("more-than-listed", Facts { requests_count: Some(63), ..full }),
        ("minimal", pending(vec![bare], 1)),
    ]
}

/// A request that has been undecided for this many days.
fn pending_request(days: u32, words: &Words) -> PendingRequest {
    PendingRequest {
        subscription_id: text("sub-0042"),
        participant: text("Léa O'Brien-Tremblay"),
        plan: text(words.swimming),
        requested_on: day(2026, 5, 20) - chrono::Days::new(days.into()),
        days,
        actor: text("Marie Tremblay"),
        reason: text(words.injury),
        admin_url: text("https://admin.example.com/subscriptions/sub-0042"),
    }
}

/// What people wrote, in one language.
struct Words {
    swimming: &'static str,
    climbing: &'static str,
    /// A client's reason to cancel.
    leaving: &'static str,
    /// A client's reason in a request.
    injury: &'static str,
    /// An administrator's words about a cancellation.
    message: &'static str,
    /// An administrator's words about a removal.
    mistake: &'static str,
    /// An administrator's answers to a request.
    recovery: &'static str,
    binding: &'static str,
    /// A sentence of a long text.
    story: &'static str,
}

impl Words {
    fn in_language_of(locale: &str) -> &'static Self {
        match locale.get(..2) {
            Some("fr") => &FRENCH,
            Some("es") => &SPANISH,
            _ => &ENGLISH,
        }
    }
}

const ENGLISH: Words = Words {
    swimming: "Swimming < 12 years",
    climbing: "Climbing",
    leaving: "We are moving to Laval.\nThank you for everything & see you soon!",
    injury: "Knee injury",
    message: "As we agreed by phone.\nGood luck in Laval!",
    mistake: "This plan was bought twice. The other one goes on.",
    recovery: "Get well soon!",
    binding: "Your plan runs until September.\nPlease call us: 514 555-0199.",
    story: "We have been coming every Tuesday for three years, and the children have learned a great deal here.",
};

const FRENCH: Words = Words {
    swimming: "Natation < 12 ans",
    climbing: "Escalade",
    leaving: "Nous déménageons à Laval.\nMerci pour tout & à bientôt!",
    injury: "Blessure au genou",
    message: "Comme convenu au téléphone.\nBonne chance à Laval!",
    mistake: "Ce forfait avait été acheté deux fois. L'autre se poursuit.",
    recovery: "Bon rétablissement!",
    binding: "Votre forfait vous engage jusqu'en septembre.\nAppelez-nous : 514 555-0199.",
    story: "Nous venons chaque mardi depuis trois ans, et les enfants ont beaucoup appris ici.",
};

const SPANISH: Words = Words {
    swimming: "Natación < 12 años",
    climbing: "Escalada",
    leaving: "Nos mudamos a Laval.\n¡Gracias por todo & hasta pronto!",
    injury: "Lesión de rodilla",
    message: "Como acordamos por teléfono.\n¡Mucha suerte en Laval!",
    mistake: "Este plan se compró dos veces. El otro continúa.",
    recovery: "¡Que se mejore pronto!",
    binding: "Su plan dura hasta septiembre.\nLlámenos: 514 555-0199.",
    story: "Venimos todos los martes desde hace tres años, y los niños han aprendido mucho aquí.",
};

/// The longest text that a command can have, in characters.
const LONG_CHARS: usize = 2_000;

/// The sentence again and again, in paragraphs.
#[allow(clippy::unnecessary_wraps, reason = "most facts are optional")]
fn long(sentence: &str) -> Option<String> {
    let paragraph = [sentence; 5].join(" ") + "\n\n";
    Some(paragraph.chars().cycle().take(LONG_CHARS).collect())
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
        invoices_unknown: true,
        removed_on: date(2026, 6, 14),
        requested_on: date(2026, 6, 14),
        superseded: true,
        reason: text("x"),
        note: text("x"),
        message: text("x"),
        invoice_id: text("x"),
        refund: Some(true),
        amount: amount("49.99", "CAD"),
        card: Some(card(Some(YearMonth::of(day(2026, 6, 1))), true)),
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
        requests: vec![pending_request(8, &ENGLISH)],
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

fn subscription_facts(words: &Words) -> Facts {
    Facts {
        participant: text("Léa O'Brien-Tremblay"),
        plan: text(words.swimming),
        admin_url: text("https://admin.example.com/subscriptions/sub-0042"),
        admin_account_url: text("https://admin.example.com/accounts/acc-0042"),
        account_url: text("https://my.boreal.example/acc-0042"),
        ..Facts::of(organization(), Some(manager()))
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

fn card(expires: Option<YearMonth>, is_over: bool) -> CardFacts {
    CardFacts { brand: "Visa".to_owned(), last4: "4242".to_owned(), expires, expired: is_over }
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
