//! `subscription.cancellation-request`: a client asks to cancel. An administrator decides.

use chrono::{DateTime, Utc};
use schemars::JsonSchema;
use serde::Deserialize;

use crate::actor::{Actor, actor};
use crate::checks::{Live, already_scheduled, announced_invoice, require_live, require_owner};
use crate::command_ref::CommandRef;
use crate::decision::{Change, Context, Decision, Obstacle};
use crate::event::{About, CancellationRequested, Event};
use crate::facts::Facts;
use crate::ids::{FreeText, OrganizationId, SubscriptionId};
use crate::notification::Template;
use crate::subscription::{Request, Status, Subscription};

/// `subscription.cancellation-request`
#[derive(Clone, Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CancellationRequest {
    /// The organization in whose name the command is sent.
    pub organization_id: OrganizationId,
    /// The subscription that the client wants to cancel.
    pub subscription_id: SubscriptionId,
    /// Who asks.
    #[serde(deserialize_with = "actor")]
    pub actor: Actor,
    /// Their reason, in their words. The organization reads it in the email.
    pub reason: Option<FreeText>,
}

/// The rule. `sent_at` is the time of the command: emails say when the client sent the request, even if it arrives late.
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
        actor: data.actor.name().map(ToString::to_string),
        requested_on: Some(context.organization.date_at(sent_at)?),
        next_billing_on: announced_invoice(details, next_on),
        reason: data.reason.as_ref().map(ToString::to_string),
        ..context.facts(subscription, details)?
    };
    let event = CancellationRequested { requested_at: sent_at, reason: data.reason.clone() };
    let mut details = details.clone();
    details.request = Ok(Some(Request {
        requested_at: sent_at,
        actor: Some(data.actor.clone()),
        reason: data.reason.clone(),
        closed: None,
    }));
    Ok(Decision::Applied(
        Change::to(Status::CancellationRequested, subscription, Some(details), context.now)
            .by(&data.actor, command)
            .reason(data.reason.clone())
            .notify(context.emails_about_client_action(Template::CancellationRequested, &facts)?)
            .event(Event::CancellationRequested(About::new(subscription, event))),
    ))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::command::SubscriptionCommand;
    use crate::subscription::Status;
    use crate::testing::*;

    #[test]
    fn the_organization_is_told() {
        assert_outcome(
            &scene(Status::Active).decide(&request()),
            r#"
            active → cancellation_requested
            request: of 2026-06-01 15:59:00 UTC by client acc-1, "trop loin", open
            history: active → cancellation_requested, no last day, by client acc-1, cmd-1
            email cancellation-requested to organization_contact
            next_billing_on: 2026-06-15, requested_on: 2026-06-01, reason: trop loin
            event subscription.cancellation-requested
            requested_at: 2026-06-01T15:59:00.000Z, reason: trop loin
        "#,
        );
    }

    #[test]
    fn and_the_client_where_the_organization_wants_that() {
        let both = scene(Status::Active).with(|scene| scene.organization.notify_client_of_own_actions = Ok(true));
        assert_outcome(
            &both.decide(&request()),
            r#"
            active → cancellation_requested
            request: of 2026-06-01 15:59:00 UTC by client acc-1, "trop loin", open
            history: active → cancellation_requested, no last day, by client acc-1, cmd-1
            email cancellation-requested to organization_contact and account_manager
            next_billing_on: 2026-06-15, requested_on: 2026-06-01, reason: trop loin
            event subscription.cancellation-requested
            requested_at: 2026-06-01T15:59:00.000Z, reason: trop loin
        "#,
        );
    }

    /// The email says on which day the client sent it: in Montréal, whenever the message arrives.
    #[test]
    fn sent_yesterday() {
        let mut sent_late = request();
        sent_late.time = instant("2026-06-01T03:59:59Z");
        let applied = scene(Status::Active).decide(&sent_late);
        let requested_on = applied.subscription.unwrap().effects[0].notifications[0].facts.requested_on;
        assert_eq!(requested_on, Some(date("2026-05-31")));
    }

    /// A subscription that expires by itself has no invoice after that.
    #[test]
    fn no_invoice_is_announced_after_the_natural_end() {
        for (expires_on, announced) in [("2026-06-10", None), ("2026-06-20", Some(date("2026-06-15")))] {
            let scene = scene(Status::Active).with_details(|details| details.expires_on = Ok(Some(date(expires_on))));
            let applied = scene.decide(&request());
            let facts = &applied.subscription.unwrap().effects[0].notifications[0].facts;
            assert_eq!(facts.next_billing_on, announced, "{expires_on}");
        }
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

    #[test]
    fn the_reason_is_optional() {
        use SubscriptionCommand::CancellationRequest;
        let CancellationRequest(data) = read_data("subscription.cancellation-request", json!({ "actor": client() }))
        else {
            panic!()
        };
        assert_eq!(data.reason, None);
        let CancellationRequest(data) =
            read_data("subscription.cancellation-request", json!({ "actor": client(), "reason": "loin" }))
        else {
            panic!()
        };
        assert_eq!(data.reason.unwrap().as_str(), "loin");
    }
}
