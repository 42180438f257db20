//! `subscription.cancellation-request`: a client asks to cancel; an administrator will decide.

use chrono::{DateTime, Utc};

use super::{
    Change, Context, Live, Outcome, Rejection, about, already_scheduled, name_of, require_live, require_owner,
};
use crate::domain::command::{CancellationRequest, CommandRef};
use crate::domain::event::{CancellationRequested, Event};
use crate::domain::notification::{Facts, Template};
use crate::domain::subscription::{HistoryEntry, Request, Status, Subscription};

/// `sent_at` is the command's own time: the mails say when the client sent the request, however long it was on its way.
pub(super) fn decide(
    subscription: &Subscription,
    command: &CommandRef,
    sent_at: DateTime<Utc>,
    data: &CancellationRequest,
    context: &Context<'_>,
) -> Result<Outcome<Change>, Rejection> {
    require_owner(&data.actor, subscription, "ask to cancel")?;
    let Live { details, next_on } = require_live(subscription)?;
    match subscription.status {
        Status::CancellationRequested => return Ok(Outcome::Unchanged),
        Status::CancellationScheduled => return Err(already_scheduled(details)),
        _ => {}
    }

    let facts = Facts {
        actor: name_of(&data.actor),
        requested_on: Some(context.organization.date_at(sent_at)),
        next_billing_on: Some(next_on),
        reason: data.reason.as_ref().map(|reason| reason.as_str().to_owned()),
        ..context.facts(subscription, details)
    };
    let mut details = details.clone();
    details.request =
        Some(Request { requested_at: sent_at, actor: data.actor.clone(), reason: data.reason.clone(), closed: None });
    Ok(Outcome::Applied(Change {
        subscription: Subscription {
            status: Status::CancellationRequested,
            details: Some(details),
            ..subscription.clone()
        },
        history: Some(HistoryEntry {
            at: context.now,
            command: Some(command.clone()),
            actor: Some(data.actor.clone()),
            from: subscription.status,
            to: Status::CancellationRequested,
            ends_on: None,
        }),
        payment_failure: None,
        notifications: context.notify_of_client_action(Template::CancellationRequested, &facts),
        events: vec![Event::CancellationRequested(about(
            subscription,
            CancellationRequested { requested_at: sent_at, reason: data.reason.clone() },
        ))],
    }))
}
