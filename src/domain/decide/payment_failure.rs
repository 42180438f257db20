//! `payment.failure`: an automatic payment with a saved card was refused. It is recorded, and both sides are told.

use super::{Change, Context, Outcome, Rejection, already_ended};
use crate::domain::command::PaymentFailure;
use crate::domain::notification::{CardFacts, Facts, Template};
use crate::domain::subscription::{PaymentFailureRecord, Subscription};

pub(super) fn decide(
    subscription: &Subscription,
    data: &PaymentFailure,
    context: &Context<'_>,
) -> Result<Outcome<Change>, Rejection> {
    // Only a removed subscription has no details: what was used until it ended still has to be paid.
    let details = subscription.details.as_ref().ok_or_else(|| already_ended(subscription))?;
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
        next_attempt_on: data.next_attempt_on,
        ends_on: details.end.map(|end| end.ends_on),
        final_billing_on: details.end.and_then(|end| end.final_billing_on),
        ..context.facts(subscription, details)
    };
    Ok(Outcome::Applied(Change {
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
        notifications: context.notify_both(Template::PaymentFailed, &facts),
        events: vec![],
    }))
}
