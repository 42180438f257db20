//! `payment.failure`: an automatic payment with a saved card was refused. It is recorded, and both sides are notified.

use chrono::NaiveDate;
use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, de};

use crate::card::{PaymentCard, payment_card};
use crate::checks::already_ended;
use crate::decision::{Change, Context, Decision, Obstacle};
use crate::facts::{CardFacts, Facts};
use crate::ids::{FreeText, InvoiceId, OrganizationId, SubscriptionId};
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
    /// The payment system's message. Cut after 2,000 characters: banks' messages have no limit.
    #[serde(default, deserialize_with = "cut_text")]
    #[schemars(with = "Option<String>")]
    pub failure_message: Option<FreeText>,
    /// The day of the next payment attempt; absent if there is none.
    #[serde(default, deserialize_with = "date_option")]
    pub next_attempt_on: Option<NaiveDate>,
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
    data: &PaymentFailure,
    context: &Context<'_>,
) -> Result<Decision<Change>, Obstacle> {
    // Only a removed subscription has no details.
    let details = subscription.details.as_ref().ok_or_else(|| already_ended(subscription))?;
    let end = details.end.clone()?;
    // The command may arrive late. If an attempt on an earlier day also failed, another command says so.
    let (next_attempt_on, past_attempt_on) = match data.next_attempt_on {
        Some(day) if day < context.organization.date_at(context.now)? => (None, Some(day)),
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
        next_attempt_on,
        past_attempt_on,
        ends_on: end.map(|end| end.ends_on),
        final_billing_on: end.and_then(|end| end.final_billing_on),
        ..context.facts(subscription, details)?
    };
    let failure = PaymentFailureRecord {
        at: context.now,
        invoice_id: data.invoice_id.clone(),
        amount: data.amount.clone(),
        card: data.card.clone(),
        attempt: data.attempt.get(),
        failure_message: data.failure_message.clone(),
        next_attempt_on: data.next_attempt_on,
    };
    Ok(Decision::Applied(
        Change::record_failure(failure, subscription).notify(context.emails_to_both(Template::PaymentFailed, &facts)?),
    ))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::command::{CommandBody, SubscriptionCommand};
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
              ends_on: 2026-08-14, final_billing_on: 2026-07-15, invoice_id: inv-may, amount.value: 49.99,
              amount.currency: CAD, card.brand: Visa, card.last4: 4242, card.expired: false, attempt: 1
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
              invoice_id: inv-may, amount.value: 49.99, amount.currency: CAD, card.brand: Visa, card.last4:
              4242, card.expired: false, attempt: 1
        ",
        );
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
        check_invalid(
            good(),
            "/data/next_attempt_on",
            json!("tomorrow"),
            r#"data.next_attempt_on: `tomorrow` is not a date such as "2026-06-15""#,
        );
    }
}
