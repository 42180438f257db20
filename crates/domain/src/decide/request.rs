//! `subscription.cancellation-request`: a client asks to cancel; an administrator will decide.

use chrono::{DateTime, Utc};

use super::{
    Change, Context, Decision, Live, Obstacle, about, already_scheduled, name_of, require_live, require_owner,
};
use crate::command::{CancellationRequest, CommandRef};
use crate::event::{CancellationRequested, Event};
use crate::notification::{Facts, Template};
use crate::subscription::{HistoryEntry, Request, Status, Subscription};

/// `sent_at` is the command's own time: the mails say when the client sent the request, however long it was on its way.
pub(super) fn decide(
    subscription: &Subscription,
    command: &CommandRef,
    sent_at: DateTime<Utc>,
    data: &CancellationRequest,
    context: &Context<'_>,
) -> Result<Decision<Change>, Obstacle> {
    require_owner(&data.actor, subscription, "ask to cancel")?;
    let Live { details, next_on } = require_live(subscription)?;
    match subscription.status {
        Status::CancellationRequested => return Ok(Decision::Unchanged),
        Status::CancellationScheduled => return Err(already_scheduled(details).into()),
        _ => {}
    }

    let facts = Facts {
        actor: name_of(&data.actor),
        requested_on: Some(context.organization.date_at(sent_at)?),
        next_billing_on: Some(next_on),
        reason: data.reason.as_ref().map(|reason| reason.as_str().to_owned()),
        ..context.facts(subscription, details)?
    };
    let mut details = details.clone();
    details.request = Ok(Some(Request {
        requested_at: sent_at,
        actor: Some(data.actor.clone()),
        reason: data.reason.clone(),
        closed: None,
    }));
    Ok(Decision::Applied(Change {
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
            via: None,
            reason: data.reason.clone(),
            note: None,
        }),
        payment_failure: None,
        notifications: context.notify_of_client_action(Template::CancellationRequested, &facts)?,
        events: vec![Event::CancellationRequested(about(
            subscription,
            CancellationRequested { requested_at: sent_at, reason: data.reason.clone() },
        ))],
    }))
}

#[cfg(test)]
mod tests {
    use crate::subscription::Status;
    use crate::testing::*;

    #[test]
    fn the_organization_is_told() {
        assert_story(
            &scene(Status::Active).tell(&request()),
            r#"
            active → cancellation_requested
            request: of 2026-06-01 15:59:00 UTC by client acc-1, "trop loin", open
            history: active → cancellation_requested, no last day, by client acc-1, cmd-1
            mail cancellation-requested to organization_contact
            next_billing_on: 2026-06-15, requested_on: 2026-06-01, reason: trop loin
            event subscription.cancellation-requested
            requested_at: 2026-06-01T15:59:00.000Z, reason: trop loin
        "#,
        );
    }

    #[test]
    fn and_the_client_where_the_organization_wants_that() {
        let both = scene(Status::Active).with(|scene| scene.organization.notify_client_of_own_actions = Ok(true));
        assert_story(
            &both.tell(&request()),
            r#"
            active → cancellation_requested
            request: of 2026-06-01 15:59:00 UTC by client acc-1, "trop loin", open
            history: active → cancellation_requested, no last day, by client acc-1, cmd-1
            mail cancellation-requested to organization_contact and account_manager
            next_billing_on: 2026-06-15, requested_on: 2026-06-01, reason: trop loin
            event subscription.cancellation-requested
            requested_at: 2026-06-01T15:59:00.000Z, reason: trop loin
        "#,
        );
    }

    /// The mail says on which day the client sent it: in Montréal, whenever the message arrives.
    #[test]
    fn sent_yesterday() {
        let mut sent_late = request();
        sent_late.time = instant("2026-06-01T03:59:59Z");
        let told = scene(Status::Active).tell(&sent_late);
        let requested_on = told.subscription.unwrap().effects[0].notifications[0].facts.requested_on;
        assert_eq!(requested_on, Some(date("2026-05-31")));
    }

    #[test]
    fn again_after_it_was_declined() {
        let mut world = scene(Status::CancellationRequested).world();
        let mut fold = |mut command: crate::command::Command, id: &str| {
            command.reference.key.id = id.try_into().unwrap();
            world.apply(&crate::unit_of_work::Task::Command(command), now());
        };
        fold(decline(), "cmd-1");
        fold(request(), "cmd-2");
        let id = "sub-1".try_into().unwrap();
        let request = world.subscription(&id).unwrap().details.clone().unwrap().request.unwrap().unwrap();
        assert_eq!(request.requested_at, instant("2026-06-01T15:59:00Z"));
        assert_eq!(request.closed, None);
    }
}
