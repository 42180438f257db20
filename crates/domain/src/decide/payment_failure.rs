//! `payment.failure`: an automatic payment with a saved card was refused. It is recorded, and both sides are told.

use super::{Change, Context, Decision, Obstacle, already_ended};
use crate::command::PaymentFailure;
use crate::notification::{CardFacts, Facts, Template};
use crate::subscription::{PaymentFailureRecord, Subscription};

pub(super) fn decide(
    subscription: &Subscription,
    data: &PaymentFailure,
    context: &Context<'_>,
) -> Result<Decision<Change>, Obstacle> {
    // Only a removed subscription has no details: what was used until it ended still has to be paid.
    let details = subscription.details.as_ref().ok_or_else(|| already_ended(subscription))?;
    let end = details.end.clone()?;
    // A command may come late. Whether an attempt of an earlier day was refused, too, is told by a command of its own.
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
        failure_message: data.failure_message.as_ref().map(|message| message.as_str().to_owned()),
        next_attempt_on,
        past_attempt_on,
        ends_on: end.map(|end| end.ends_on),
        final_billing_on: end.and_then(|end| end.final_billing_on),
        ..context.facts(subscription, details)?
    };
    Ok(Decision::Applied(Change {
        subscription: subscription.clone(),
        history: None,
        payment_failure: Some(PaymentFailureRecord {
            at: context.now,
            invoice_id: data.invoice_id.clone(),
            amount: data.amount.clone(),
            card: data.card.clone(),
            attempt: data.attempt.get(),
            failure_message: data.failure_message.clone(),
            next_attempt_on: data.next_attempt_on,
        }),
        notifications: context.notify_both(Template::PaymentFailed, &facts)?,
        events: vec![],
    }))
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
        assert_story(
            &scene(Status::Active).tell(&failure),
            r#"
            active → active
            payment failure: inv-may 1049.9 CAD, Visa 0042, attempt 2, next Some(2026-06-04), Some("Fonds insuffisants")
            mail payment-failed to organization_contact and account_manager
            invoice_id: inv-may, amount.value: 1049.9, amount.currency: CAD, card.brand: Visa, card.last4: 0042, card.expired: false, attempt: 2, failure_message: Fonds insuffisants, next_attempt_on: 2026-06-04
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
            let told = scene(Status::Active).with(|scene| scene.now = instant("2026-06-11T03:00:00Z")).tell(&failure);
            let subscription = told.subscription.unwrap();
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
        assert_story(
            &scene(Status::CancellationScheduled).tell(&payment_failure()),
            "
            cancellation_scheduled → cancellation_scheduled
            payment failure: inv-may 49.99 CAD, Visa 4242, attempt 1, next None, None
            mail payment-failed to organization_contact and account_manager
              ends_on: 2026-08-14, final_billing_on: 2026-07-15, invoice_id: inv-may, amount.value: 49.99,
              amount.currency: CAD, card.brand: Visa, card.last4: 4242, card.expired: false, attempt: 1
        ",
        );
    }

    /// What was used until the end still has to be paid.
    #[test]
    fn on_a_subscription_that_is_over() {
        assert_story(
            &scene(Status::Expired).tell(&payment_failure()),
            "
            expired → expired
            ended on 2026-04-14
            payment failure: inv-may 49.99 CAD, Visa 4242, attempt 1, next None, None
            mail payment-failed to organization_contact and account_manager
              invoice_id: inv-may, amount.value: 49.99, amount.currency: CAD, card.brand: Visa, card.last4:
              4242, card.expired: false, attempt: 1
        ",
        );
    }
}
