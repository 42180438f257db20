//! `payment.failure`: an automatic payment with a saved card was refused. It is recorded, and both sides are notified.

use chrono::NaiveDate;
use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, de};
use serde_json::Value;

use crate::account::Account;
use crate::card::{Card, PaymentCard, payment_card};
use crate::checks::already_ended;
use crate::command_ref::CommandRef;
use crate::decision::{Change, Context, Decision, Obstacle};
use crate::event::{About, Event, PaymentFailureRecorded};
use crate::facts::{CardFacts, Facts};
use crate::failure_code::FailureCode;
use crate::field::Malformed;
use crate::ids::{CardId, FreeText, InvoiceId, OrganizationId, SubscriptionId};
use crate::link::HttpsUrl;
use crate::money::{Amount, amount};
use crate::notification::Template;
use crate::strict_json::date_option;
use crate::subscription::{PaymentFailureRecord, Subscription};

/// `payment.failure`
#[derive(Clone, Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PaymentFailure {
    /// The organization in whose name the command is sent.
    pub organization_id: OrganizationId,
    /// The subscription that was invoiced.
    pub subscription_id: SubscriptionId,
    /// The invoice that is not paid.
    pub invoice_id: InvoiceId,
    /// The amount due.
    #[serde(deserialize_with = "amount")]
    pub amount: Amount,
    /// The card that was refused.
    #[serde(deserialize_with = "payment_card")]
    pub card: PaymentCard,
    /// The number of the payment attempt, from 1.
    pub attempt: Attempt,
    /// The payment system's message, as it came. Only the organization sees it. Cut after 2,000 characters: banks' messages have no
    /// limit.
    #[serde(default, deserialize_with = "cut_text")]
    #[schemars(with = "Option<String>")]
    pub failure_message: Option<FreeText>,
    /// The day of the next payment attempt; absent if there is none.
    #[serde(default, deserialize_with = "date_option")]
    pub next_attempt_on: Option<NaiveDate>,
    /// Why it failed: `insufficient_funds`, `expired_card`, `incorrect_details`, `limit_exceeded`, `authentication_required` or
    /// `lost_or_stolen`. Any other value, and none, means that the payment was declined. The client reads a sentence for it in their
    /// language; for `lost_or_stolen`, the one for a payment that was declined.
    #[serde(default, deserialize_with = "known_code")]
    #[schemars(with = "Value", extend("type" = ["string", "number", "null"], "examples" = FailureCode::ALL))]
    pub failure_code: Option<FailureCode>,
    /// The page on which the client pays this invoice: an https URL. The client's email links to it.
    pub payment_url: Option<HttpsUrl>,
}

/// `#[serde(deserialize_with = "known_code")]`: one of the codes that emails explain. Payment systems have hundreds of others, and
/// some are numbers.
fn known_code<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<FailureCode>, D::Error> {
    Ok(Value::deserialize(deserializer)?.as_str().and_then(|code| code.parse().ok()))
}

/// `#[serde(deserialize_with = "cut_text")]`: text of any length, cut to what is kept.
fn cut_text<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<FreeText>, D::Error> {
    Ok(Option::<String>::deserialize(deserializer)?.map(FreeText::cut))
}

/// The number of a payment attempt, from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(transparent)]
#[schemars(inline)]
pub struct Attempt(#[schemars(range(min = 1))] u32);

impl Attempt {
    /// The number.
    #[must_use]
    pub fn get(self) -> u32 {
        self.0
    }
}

impl<'de> Deserialize<'de> for Attempt {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match u32::deserialize(deserializer)? {
            0 => Err(de::Error::custom("attempts are counted from 1")),
            attempt => Ok(Self(attempt)),
        }
    }
}

/// The rule. It applies in every status but `removed`: what was used until a subscription ended still has to be paid.
pub(super) fn decide(
    subscription: &Subscription,
    command: &CommandRef,
    data: &PaymentFailure,
    context: &Context<'_>,
) -> Result<Decision<Change>, Obstacle> {
    // Only a removed subscription has no details.
    let details = subscription.details.as_ref().ok_or_else(|| already_ended(subscription))?;
    // Asked only where a date is compared, so that a malformed time zone stops nothing else.
    let is_past = |day: NaiveDate| Ok::<_, Malformed>(day < context.organization.date_at(context.now)?);
    let scheduled = details.end.clone()?.map(|end| end.ends_on);
    let ends_on = if subscription.status.is_live() { scheduled } else { subscription.ended_on.or(scheduled) };
    // The command may arrive late. If an attempt on an earlier day also failed, another command says so.
    let (next_attempt_on, past_attempt_on) = match data.next_attempt_on {
        Some(day) if is_past(day)? => (None, Some(day)),
        next_attempt_on => (next_attempt_on, None),
    };
    let facts = Facts {
        invoice_id: Some(data.invoice_id.to_string()),
        amount: Some(data.amount.clone()),
        card: Some(CardFacts {
            brand: data.card.brand.to_string(),
            last4: data.card.last4.as_str().to_owned(),
            expires: None,
            expired: false,
        }),
        attempt: Some(data.attempt.get()),
        failure_message: data.failure_message.as_ref().map(ToString::to_string),
        failure_code: data.failure_code,
        next_attempt_on,
        past_attempt_on,
        ends_on,
        ended: !subscription.status.is_live() || ends_on.map(is_past).transpose()?.unwrap_or_default(),
        payment_url: data.payment_url.as_ref().map(ToString::to_string),
        ..context.facts(subscription, details)?
    }
    .with_card_page(context.organization, context.account, saved_card(context.account, &data.card));
    let failure = PaymentFailureRecord {
        at: context.now,
        command: command.clone(),
        invoice_id: data.invoice_id.clone(),
        amount: data.amount.clone(),
        card: data.card.clone(),
        attempt: data.attempt.get(),
        failure_message: data.failure_message.clone(),
        failure_code: data.failure_code,
        next_attempt_on: data.next_attempt_on,
    };
    let recorded = PaymentFailureRecorded {
        invoice_id: data.invoice_id.clone(),
        attempt: data.attempt.get(),
        is_final: data.next_attempt_on.is_none(),
    };
    Ok(Decision::Applied(
        Change::record_failure(failure, subscription)
            .notify(context.emails_to_both(Template::PaymentFailed, &facts)?)
            .event(Event::PaymentFailureRecorded(About::new(subscription, recorded))),
    ))
}

/// The saved card that was charged: the only one with that brand and these digits. A payment does not name its id.
fn saved_card<'a>(account: &'a Account, charged: &PaymentCard) -> Option<&'a CardId> {
    let is_charged =
        |card: &&Card| card.last4 == charged.last4 && card.brand.as_str().eq_ignore_ascii_case(charged.brand.as_str());
    let mut alike = account.cards.iter().flatten().filter(is_charged);
    alike.next().filter(|_| alike.next().is_none()).map(|card| &card.id)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::command::{CommandBody, SubscriptionCommand};
    use crate::failure_code::FailureCode;
    use crate::subscription::Status;
    use crate::testing::*;

    #[test]
    fn with_another_attempt() {
        let failure = command(
            "payment.failure",
            json!({
                "invoice_id": "inv-may", "amount": { "value": "1049.9", "currency": "CAD" },
                "card": { "brand": "Visa", "last4": "0042" }, "attempt": 2,
                "failure_message": "Fonds insuffisants", "next_attempt_on": "2026-06-04",
            }),
        );
        assert_outcome(
            &scene(Status::Active).decide(&failure),
            r#"
            active → active
            payment failure: inv-may 1049.9 CAD, Visa 0042, attempt 2, next Some(2026-06-04), Some("Fonds insuffisants")
            email payment-failed to organization_contact
            invoice_id: inv-may, amount.value: 1049.9, amount.currency: CAD, card.brand: Visa, card.last4: 0042, card.expired: false, attempt: 2, failure_message: Fonds insuffisants, next_attempt_on: 2026-06-04
            email payment-failed to account_manager
            invoice_id: inv-may, amount.value: 1049.9, amount.currency: CAD, card.brand: Visa, card.last4: 0042, card.expired: false, attempt: 2, next_attempt_on: 2026-06-04
            event payment.failure-recorded
            invoice_id: inv-may, attempt: 2, final: false
        "#,
        );
    }

    /// The organization's calendar decides: at 03:00 UTC on 11 June it is still the 10th in Montréal.
    #[test]
    fn an_attempt_of_an_earlier_day_is_not_announced() {
        #[track_caller]
        fn check(next_attempt_on: &str, next: Option<&str>, past: Option<&str>) {
            let mut failure = payment_failure();
            if let CommandBody::Subscription(SubscriptionCommand::PaymentFailure(data)) = &mut failure.body {
                data.next_attempt_on = Some(date(next_attempt_on));
            }
            let applied =
                scene(Status::Active).with(|scene| scene.now = instant("2026-06-11T03:00:00Z")).decide(&failure);
            let subscription = applied.subscription.unwrap();
            for email in &subscription.effects[0].notifications {
                let facts = &email.facts;
                assert_eq!((facts.next_attempt_on, facts.past_attempt_on), (next.map(date), past.map(date)));
            }
            let recorded = subscription.records[0].payment_failure().unwrap();
            assert_eq!(recorded.next_attempt_on, Some(date(next_attempt_on)), "as the command says");
        }
        check("2026-06-11", Some("2026-06-11"), None);
        check("2026-06-10", Some("2026-06-10"), None);
        check("2026-06-09", None, Some("2026-06-09"));
    }

    #[test]
    fn with_none_left_on_a_subscription_that_will_end() {
        assert_outcome(
            &scene(Status::CancellationScheduled).decide(&payment_failure()),
            "
            cancellation_scheduled → cancellation_scheduled
            payment failure: inv-may 49.99 CAD, Visa 4242, attempt 1, next None, None
            email payment-failed to organization_contact and account_manager
              ends_on: 2026-08-14, invoice_id: inv-may, amount.value: 49.99,
              amount.currency: CAD, card.brand: Visa, card.last4: 4242, card.expired: false, attempt: 1
            event payment.failure-recorded
              invoice_id: inv-may, attempt: 1, final: true
        ",
        );
    }

    /// What was used until the end still has to be paid.
    #[test]
    fn on_a_subscription_that_is_over() {
        assert_outcome(
            &scene(Status::Expired).decide(&payment_failure()),
            "
            expired → expired
            ended on 2026-04-14
            payment failure: inv-may 49.99 CAD, Visa 4242, attempt 1, next None, None
            email payment-failed to organization_contact and account_manager
              ends_on: 2026-04-14, ended: true, invoice_id: inv-may, amount.value: 49.99, amount.currency: CAD,
              card.brand: Visa, card.last4: 4242, card.expired: false, attempt: 1
            event payment.failure-recorded
              invoice_id: inv-may, attempt: 1, final: true
        ",
        );
    }

    /// A sweep may be late: what counts is the calendar.
    #[test]
    fn on_a_subscription_whose_last_day_has_passed() {
        for (now, ended) in [("2026-08-15T03:59:59Z", false), ("2026-08-15T04:00:00Z", true)] {
            let late = scene(Status::CancellationScheduled).with(|scene| scene.now = instant(now));
            let applied = late.decide(&payment_failure()).subscription.unwrap();
            let facts = &applied.effects[0].notifications[0].facts;
            assert_eq!((facts.ends_on, facts.ended), (Some(date("2026-08-14")), ended));
        }
        let cancelled = scene(Status::Cancelled).decide(&payment_failure()).subscription.unwrap();
        let facts = &cancelled.effects[0].notifications[0].facts;
        assert_eq!((facts.ends_on, facts.ended), (Some(date("2026-04-14")), true));
    }

    #[test]
    fn each_reader_has_their_own_links_and_words() {
        let failed = |failure_code: &str| {
            let mut data = payment_data();
            data["failure_code"] = failure_code.into();
            data["failure_message"] = "Pick up card, stolen".into();
            data["payment_url"] = "https://pay.example/i/1".into();
            command("payment.failure", data)
        };
        let emails = |scene: &Scene, code| {
            let applied = scene.decide(&failed(code)).subscription.unwrap();
            let [contact, manager] = applied.effects[0].notifications.clone().try_into().unwrap();
            (contact.facts, manager.facts)
        };
        let active = scene(Status::Active);
        let (contact, manager) = emails(&active, "lost_or_stolen");
        assert_eq!(contact.failure_code, Some(FailureCode::LostOrStolen));
        assert_eq!(contact.failure_message.as_deref(), Some("Pick up card, stolen"));
        assert_eq!(contact.admin_account_url.as_deref(), Some("https://laurier.example/a/acc-1"));
        assert_eq!((contact.payment_url, contact.payment_method_url, contact.account_url), (None, None, None));
        assert_eq!((manager.failure_code, manager.failure_message), (None, None));
        assert_eq!((manager.admin_url, manager.admin_account_url), (None, None));
        assert_eq!(manager.payment_url.as_deref(), Some("https://pay.example/i/1"));
        assert_eq!(manager.account_url.as_deref(), Some("https://my.example/acc-1/sub-1"));
        assert_eq!(manager.payment_method_url, manager.account_url, "no card is saved");
        let (contact, manager) = emails(&active, "expired_card");
        assert_eq!(
            (contact.failure_code, manager.failure_code),
            (Some(FailureCode::ExpiredCard), Some(FailureCode::ExpiredCard))
        );
        let (contact, manager) = emails(&active, "do_not_honor");
        assert_eq!((contact.failure_code, manager.failure_code), (None, None));

        let CommandBody::CardExpiry(saved) = card_expiry("2026-06").body else { panic!() };
        let malformed = || Err(crate::field::Malformed("bad".into()));
        let with_cards = |cards| active.clone().with(|scene| scene.account.cards = cards);
        let (_, manager) = emails(&with_cards(vec![malformed(), Ok(saved.card.clone())]), "");
        assert_eq!(manager.payment_method_url.as_deref(), Some("https://my.example/acc-1/cards/card-1"));
        let (_, manager) = emails(&with_cards(vec![Ok(saved.card.clone()), Ok(saved.card)]), "");
        assert_eq!(manager.payment_method_url, manager.account_url, "it could be either card");
    }

    #[test]
    fn amounts_and_messages_are_read() {
        use SubscriptionCommand::PaymentFailure;
        let PaymentFailure(data) = read_data("payment.failure", payment_data()) else { panic!() };
        assert_eq!((data.amount.value.as_str(), data.amount.currency.as_str()), ("49.99", "CAD"));
        assert_eq!((data.card.brand.as_str(), data.card.last4.as_str()), ("Visa", "4242"));
        assert_eq!((data.attempt.get(), data.failure_message, data.next_attempt_on), (1, None, None));
        let mut full = payment_data();
        full["attempt"] = 4_294_967_295_u32.into();
        full["failure_message"] = "Insufficient funds".into();
        full["next_attempt_on"] = "2026-06-18".into();
        let PaymentFailure(data) = read_data("payment.failure", full) else { panic!() };
        assert_eq!(data.next_attempt_on, Some(date("2026-06-18")));
        for code in FailureCode::ALL {
            let mut data = payment_data();
            data["failure_code"] = code.as_str().into();
            let PaymentFailure(data) = read_data("payment.failure", data) else { panic!() };
            assert_eq!(data.failure_code, Some(code));
        }
        let others =
            [json!("do_not_honor"), json!("EXPIRED_CARD"), json!(""), json!(null), json!(51), json!("é".repeat(5_000))];
        for code in others {
            let mut data = payment_data();
            data["failure_code"] = code;
            let PaymentFailure(data) = read_data("payment.failure", data) else { panic!() };
            assert_eq!(data.failure_code, None);
        }
        let mut talkative = payment_data();
        talkative["failure_message"] = "é".repeat(2_001).into();
        let PaymentFailure(data) = read_data("payment.failure", talkative) else { panic!() };
        assert_eq!(data.failure_message.unwrap().as_str(), "é".repeat(2_000), "cut, not refused");
        for value in ["0", "0.5", "49", "49.9", "49.9999", "999999999999.9999"] {
            let mut data = payment_data();
            data["amount"]["value"] = value.into();
            read_data("payment.failure", data);
        }
    }

    #[test]
    fn invalid_fields_are_named() {
        let good = || envelope("payment.failure", payment_data());
        check_invalid(good(), "/data/attempt", json!(0), "data.attempt: attempts are counted from 1");
        check_invalid(good(), "/data/attempt", json!(-1), "data.attempt: invalid value: integer `-1`, expected u32");
        check_invalid(
            good(),
            "/data/attempt",
            json!(1.5),
            "data.attempt: invalid type: floating point `1.5`, expected u32",
        );
        check_invalid(good(), "/data/attempt", json!("1"), r#"data.attempt: invalid type: string "1", expected u32"#);
        check_invalid(
            good(),
            "/data/attempt",
            json!(4_294_967_296_u64),
            "data.attempt: invalid value: integer `4294967296`, expected u32",
        );
        check_invalid(
            good(),
            "/data/amount",
            json!("49.99"),
            r#"data.amount: invalid type: string "49.99", expected an object"#,
        );
        check_invalid(
            good(),
            "/data/amount/value",
            json!(49.99),
            "data.amount.value: invalid type: floating point `49.99`, expected a string",
        );
        for value in ["", ".", "49.", ".99", "-1", "+1", "1e3", "49,99", "1 000", "1234567890123", "1.00000", "٤٩"] {
            check_invalid(
                good(),
                "/data/amount/value",
                json!(value),
                r#"data.amount.value: must look like "49.99" (^[0-9]{1,12}([.][0-9]{1,4})?$)"#,
            );
        }
        for currency in ["", "cad", "CA", "CADX", "CA$", "ÇAD"] {
            check_invalid(
                good(),
                "/data/amount/currency",
                json!(currency),
                r#"data.amount.currency: must look like "CAD" (^[A-Z]{3}$)"#,
            );
        }
        check_invalid(
            good(),
            "/data/card/last4",
            json!("424"),
            r#"data.card.last4: must look like "4242" (^[0-9]{4}$)"#,
        );
        check_invalid(
            good(),
            "/data/card/last4",
            json!("٤٢٤٢"),
            r#"data.card.last4: must look like "4242" (^[0-9]{4}$)"#,
        );
        check_invalid(
            good(),
            "/data/card/last4",
            json!(4242),
            "data.card.last4: invalid type: integer `4242`, expected a string",
        );
        check_invalid(good(), "/data/card/brand", json!(""), "data.card.brand: must be 1 to 256 characters long, is 0");
        check_invalid(
            good(),
            "/data/card/expires",
            json!("2026-06"),
            "data.card.expires: unknown field `expires`, expected `brand` or `last4`",
        );
        for url in
            ["", "pay.example/1", "http://pay.example/1", "javascript:alert(1)", "https://", "https://pay.example/\n"]
        {
            check_invalid(
                good(),
                "/data/payment_url",
                json!(url),
                r#"data.payment_url: must be an https URL such as "https://pay.example/invoices/42", of at most 2048 bytes"#,
            );
        }
        check_invalid(
            good(),
            "/data/next_attempt_on",
            json!("tomorrow"),
            r#"data.next_attempt_on: `tomorrow` is not a date such as "2026-06-15""#,
        );
    }
}
