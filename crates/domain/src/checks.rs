//! The checks that several rules share. Rules run their checks in the order of `docs/rules/commands.md`: actor, status, invoice or
//! dates. The first check that fails is the answer.

use chrono::NaiveDate;

use crate::actor::Actor;
use crate::decision::Obstacle;
use crate::field::Field;
use crate::rejection::{Rejection, RejectionReason};
use crate::subscription::{Details, Request, Status, Subscription};

/// Requires that an administrator acts. `what` completes "Only an administrator can …".
pub(crate) fn require_admin(actor: &Actor, what: &str) -> Result<(), Rejection> {
    match actor {
        Actor::Admin { .. } => Ok(()),
        Actor::Client { .. } => Err(RejectionReason::Forbidden.because(format!("Only an administrator can {what}."))),
    }
}

/// Requires that the client acts whose account pays for the subscription. `what` completes "Only the client can …".
pub(crate) fn require_owner(actor: &Actor, subscription: &Subscription, what: &str) -> Result<(), Rejection> {
    match actor {
        Actor::Client { account_id, .. } if *account_id == subscription.account_id => Ok(()),
        Actor::Client { account_id, .. } => Err(RejectionReason::Forbidden
            .because(format!("The subscription does not belong to the account {account_id}, so it cannot {what}."))),
        Actor::Admin { .. } => Err(RejectionReason::Forbidden.because(format!("Only the client can {what}."))),
    }
}

/// A subscription that has not ended.
#[derive(Clone, Copy)]
pub(crate) struct Live<'a> {
    pub(crate) details: &'a Details,
    /// The date of the first invoice that does not exist yet.
    pub(crate) next_on: NaiveDate,
}

/// Requires that the subscription has not ended.
pub(crate) fn require_live(subscription: &Subscription) -> Result<Live<'_>, Obstacle> {
    let details = subscription
        .details
        .as_ref()
        .filter(|_| subscription.status.is_live())
        .ok_or_else(|| already_ended(subscription))?;
    // Always present here: see `Subscription::require_next_invoice`.
    let next_on = details.next_on.clone()?.ok_or_else(|| already_ended(subscription))?;
    Ok(Live { details, next_on })
}

/// The next invoice as emails announce it: none after the natural end.
pub(crate) fn announced_invoice(details: &Details, next_on: NaiveDate) -> Option<NaiveDate> {
    match (&details.expires_on, &details.billing_day) {
        (Ok(Some(expires_on)), Ok(billing_day)) if next_on > billing_day.natural_end(*expires_on) => None,
        _ => Some(next_on),
    }
}

/// Requires that `ends_on` is not after the natural end.
pub(crate) fn require_before_natural_end(details: &Details, ends_on: NaiveDate) -> Result<(), Obstacle> {
    let Some(expires_on) = details.expires_on.clone()? else { return Ok(()) };
    let natural_end = details.billing_day.clone()?.natural_end(expires_on);
    if ends_on > natural_end {
        return Err(RejectionReason::ExpiresEarlier
            .because(format!("The subscription expires by itself: its last day is {natural_end}, before {ends_on}."))
            .into());
    }
    Ok(())
}

/// The rejection of a command that needs a subscription that has not ended.
pub(crate) fn already_ended(subscription: &Subscription) -> Rejection {
    let status = subscription.status.as_str();
    RejectionReason::AlreadyEnded.because(match subscription.ended_on {
        Some(day) => format!("The subscription is over: {status} on {day}."),
        None => format!("The subscription is over: {status}."),
    })
}

/// The rejection of a command that needs a subscription that is not scheduled to end.
pub(crate) fn already_scheduled(details: &Details) -> Rejection {
    RejectionReason::AlreadyScheduled.because(match &details.end {
        Ok(Some(end)) => format!("The subscription is cancelled already; its last day of access is {}.", end.ends_on),
        _ => "The subscription is cancelled already.".to_owned(),
    })
}

/// The client's request, if it is open.
pub(crate) fn open_request(subscription: &Subscription, details: &Details) -> Field<Option<Request>> {
    let request = match subscription.status {
        Status::CancellationRequested => details.request.clone()?,
        // In any other status the request is closed, unless another system wrote it.
        _ => details.request.clone().unwrap_or_default(),
    };
    Ok(request.filter(|request| request.closed.is_none()))
}
