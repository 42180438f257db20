//! `subscription.cancellation-confirmation`: an administrator accepts or declines a client's request.

use std::borrow::Cow;

use chrono::NaiveDate;
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::Deserialize;

use crate::actor::{Actor, actor};
use crate::checks::{
    Live, already_scheduled, announced_invoice, require_admin, require_before_natural_end, require_live,
};
use crate::command_ref::CommandRef;
use crate::decision::{Change, Context, Decision, Obstacle};
use crate::ending::{Ending, ScheduledCancellation};
use crate::event::{About, CancellationDeclined, Event};
use crate::facts::Facts;
use crate::field::Field;
use crate::ids::{FreeText, OrganizationId, SubscriptionId};
use crate::notification::{Recipient, Template};
use crate::rejection::RejectionReason;
use crate::strict_json::{date_option, name};
use crate::subscription::{CancellationRecord, Channel, Details, Initiator, RequestDecision, Status, Subscription};

/// `subscription.cancellation-confirmation`
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(try_from = "ConfirmationFields")]
pub struct CancellationConfirmation {
    /// The organization in whose name the command is sent.
    pub organization_id: OrganizationId,
    /// The subscription whose request is decided.
    pub subscription_id: SubscriptionId,
    /// Who decides.
    pub actor: Actor,
    /// What they decide.
    pub decision: ConfirmationDecision,
    /// Their note for the client.
    pub note: Option<FreeText>,
}

/// The decision about a client's request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConfirmationDecision {
    /// The subscription ends.
    Accept {
        /// The date of the last invoice; absent if it is the newest one that exists.
        final_billing_date: Option<NaiveDate>,
    },
    /// The subscription goes on.
    Decline,
}

/// The wire form of [`CancellationConfirmation`]: flat, so that an error can name the field.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(
    rename = "CancellationConfirmation",
    description = "`subscription.cancellation-confirmation`",
    extend("dependentSchemas" = { "final_billing_date": { "properties": { "decision": { "const": "accept" } } } })
)]
struct ConfirmationFields {
    /// The organization in whose name the command is sent.
    organization_id: OrganizationId,
    /// The subscription whose request is decided.
    subscription_id: SubscriptionId,
    /// Who decides.
    #[serde(deserialize_with = "actor")]
    actor: Actor,
    /// What they decide.
    #[serde(deserialize_with = "name")]
    decision: DecisionName,
    /// The date of the last invoice (accept only).
    #[serde(default, deserialize_with = "date_option")]
    final_billing_date: Option<NaiveDate>,
    /// The administrator's answer to the client, who reads it in the email.
    note: Option<FreeText>,
}

#[derive(Clone, Copy, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[schemars(inline)]
enum DecisionName {
    Accept,
    Decline,
}

impl TryFrom<ConfirmationFields> for CancellationConfirmation {
    type Error = &'static str;

    fn try_from(fields: ConfirmationFields) -> Result<Self, Self::Error> {
        let decision = match (fields.decision, fields.final_billing_date) {
            (DecisionName::Accept, final_billing_date) => ConfirmationDecision::Accept { final_billing_date },
            (DecisionName::Decline, None) => ConfirmationDecision::Decline,
            (DecisionName::Decline, Some(_)) => {
                return Err("unknown field `final_billing_date` (it goes with `decision: \"accept\"` only)");
            }
        };
        Ok(Self {
            organization_id: fields.organization_id,
            subscription_id: fields.subscription_id,
            actor: fields.actor,
            decision,
            note: fields.note,
        })
    }
}

impl JsonSchema for CancellationConfirmation {
    fn schema_name() -> Cow<'static, str> {
        ConfirmationFields::schema_name()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        ConfirmationFields::json_schema(generator)
    }
}

/// The rule: there must be an open request. Accepting it schedules the end, declining it closes the request.
pub(super) fn decide(
    subscription: &Subscription,
    command: &CommandRef,
    data: &CancellationConfirmation,
    context: &Context<'_>,
) -> Result<Decision<Change>, Obstacle> {
    require_admin(&data.actor, "decide about a cancellation request")?;
    let Live { details, next_on } = require_live(subscription)?;
    match subscription.status {
        Status::CancellationRequested => {}
        Status::CancellationScheduled => return Err(already_scheduled(details).into()),
        _ => {
            return Err(RejectionReason::NoPendingRequest
                .because("The client has not asked to cancel this subscription, or the request is closed.")
                .into());
        }
    }
    match data.decision {
        ConfirmationDecision::Accept { final_billing_date } => {
            let ending = match final_billing_date {
                Some(last_on) => ending_after_invoice(details, last_on, next_on)?,
                None => Ending::before_next_invoice(details, next_on)?,
            };
            require_before_natural_end(details, ending.ends_on)?;
            let cancellation = ScheduledCancellation {
                command,
                ending,
                record: CancellationRecord {
                    by: Initiator::Admin,
                    via: Channel::Request,
                    scheduled_at: context.now,
                    actor: data.actor.clone(),
                    reason: details.request.clone()?.and_then(|request| request.reason),
                    month: None,
                },
                request_decision: RequestDecision::Accept,
                note: data.note.clone(),
                message: None,
                template: Template::RequestAccepted,
            };
            Ok(Decision::Applied(cancellation.change(subscription, details, context)?))
        }
        ConfirmationDecision::Decline => Ok(Decision::Applied(decline(subscription, details, command, data, context)?)),
    }
}

fn ending_after_invoice(details: &Details, date: NaiveDate, next_on: NaiveDate) -> Result<Ending, Obstacle> {
    let day = details.billing_day.clone()?;
    if !day.is_billing_date(date) {
        return Err(RejectionReason::NotABillingDate
            .because(format!(
                "{date} is not a billing date; the subscription is billed on {} and {}.",
                day.date_before(date),
                day.date_after(date)
            ))
            .into());
    }
    let newest = day.date_before(next_on);
    if date < newest {
        return Err(RejectionReason::FinalBillingDatePassed
            .because(format!(
                "The billing date before the next invoice is {newest}, so the last invoice cannot be that of {date}."
            ))
            .into());
    }
    Ok(Ending::computed(details, day.end_after_invoice(date), next_on)?)
}

fn decline(
    subscription: &Subscription,
    details: &Details,
    command: &CommandRef,
    data: &CancellationConfirmation,
    context: &Context<'_>,
) -> Field<Change> {
    let request = details.request.clone()?;
    let facts = Facts {
        actor: data.actor.name().map(ToString::to_string),
        requested_on: request.as_ref().map(|request| context.organization.date_at(request.requested_at)).transpose()?,
        next_billing_on: details.next_on.clone()?.and_then(|next_on| announced_invoice(details, next_on)),
        reason: request.as_ref().and_then(|request| request.reason.as_ref()).map(ToString::to_string),
        note: data.note.as_ref().map(ToString::to_string),
        ..context.facts(subscription, details)?
    };
    let mut details = details.clone();
    if let Some(request) = request {
        details.request = Ok(Some(request.close(context.now, RequestDecision::Decline, data.note.clone())));
    }
    let event = CancellationDeclined { note: data.note.clone() };
    Ok(Change::to(Status::Active, subscription, Some(details), context.now)
        .by(&data.actor, command)
        .note(data.note.clone())
        .notify([context.email(Template::RequestDeclined, Recipient::AccountManager, &facts)?])
        .event(Event::CancellationDeclined(About::new(subscription, event))))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::ConfirmationDecision;
    use crate::command::SubscriptionCommand;
    use crate::ids::FreeText;

    use crate::subscription::Status;
    use crate::testing::*;

    #[track_caller]
    fn check(command: &crate::command::Command, expected: &str) {
        assert_outcome(&scene(Status::CancellationRequested).decide(command), expected);
    }

    #[test]
    fn accepted() {
        check(
            &accept(""),
            r#"
            cancellation_requested → cancellation_scheduled
            ends on 2026-06-14, over at 2026-06-15 04:00:00 UTC, last invoice 2026-05-15
            cancellation: by admin via request, "on déménage", no month, admin adm-1
            request: of 2026-05-28 01:30:00 UTC by client acc-1, "on déménage", accept at 2026-06-01 16:00:00
              UTC, no note
            history: cancellation_requested → cancellation_scheduled, 2026-06-14, by admin adm-1, cmd-1
            email request-accepted to account_manager
              actor: Luc, ends_on: 2026-06-14, final_billing_on: 2026-05-15, requested_on: 2026-05-27, reason:
              on déménage
            event subscription.cancellation-scheduled
              by: admin, via: request, ends_on: 2026-06-14, ends_at: 2026-06-15T04:00:00.000Z, final_billing_on:
              2026-05-15, reason: on déménage
        "#,
        );
    }

    #[test]
    fn accepted_with_a_last_invoice_and_a_note() {
        let data = json!({
            "actor": admin(), "decision": "accept", "final_billing_date": "2026-07-15", "note": "bonne chance",
        });
        check(
            &command("subscription.cancellation-confirmation", data),
            r#"
            cancellation_requested → cancellation_scheduled
            ends on 2026-08-14, over at 2026-08-15 04:00:00 UTC, last invoice 2026-07-15
            cancellation: by admin via request, "on déménage", no month, admin adm-1
            request: of 2026-05-28 01:30:00 UTC by client acc-1, "on déménage", accept at 2026-06-01 16:00:00
              UTC, "bonne chance"
            history: cancellation_requested → cancellation_scheduled, 2026-08-14, by admin adm-1, cmd-1
            email request-accepted to account_manager
              actor: Luc, ends_on: 2026-08-14, final_billing_on: 2026-07-15, next_billing_on: 2026-06-15,
              requested_on: 2026-05-27, reason: on déménage, note: bonne chance
            event subscription.cancellation-scheduled
              by: admin, via: request, ends_on: 2026-08-14, ends_at: 2026-08-15T04:00:00.000Z, final_billing_on:
              2026-07-15, reason: on déménage
        "#,
        );
    }

    #[test]
    fn declined() {
        check(
            &decline(),
            r#"
            cancellation_requested → active
            request: of 2026-05-28 01:30:00 UTC by client acc-1, "on déménage", decline at 2026-06-01 16:00:00
              UTC, "contrat d'un an"
            history: cancellation_requested → active, no last day, by admin adm-1, cmd-1
            email request-declined to account_manager
              actor: Luc, next_billing_on: 2026-06-15, requested_on: 2026-05-27, reason: on déménage, note:
              contrat d'un an
            event subscription.cancellation-declined
              note: contrat d'un an
        "#,
        );
    }

    /// The client is informed of what an administrator decided, whether or not they are informed of what they did themselves.
    #[test]
    fn only_the_account_manager_is_told() {
        for command in [accept(""), decline()] {
            let both = scene(Status::CancellationRequested)
                .with(|scene| scene.organization.notify_client_of_own_actions = Ok(true));
            let applied = both.decide(&command).subscription.unwrap();
            let recipients: Vec<_> =
                applied.effects[0].notifications.iter().map(|email| email.recipient.as_str()).collect();
            assert_eq!(recipients, ["account_manager"]);
        }
    }

    #[test]
    fn both_decisions_are_read() {
        #[track_caller]
        fn check(data: Value, decision: ConfirmationDecision, note: Option<&str>) {
            let SubscriptionCommand::CancellationConfirmation(data) =
                read_data("subscription.cancellation-confirmation", data)
            else {
                panic!()
            };
            assert_eq!((data.decision, data.note.as_ref().map(FreeText::as_str)), (decision, note));
        }
        let no_date = ConfirmationDecision::Accept { final_billing_date: None };
        let with_date = ConfirmationDecision::Accept { final_billing_date: Some(date("2026-05-15")) };
        let (accept, full) = (json!("accept"), json!("2026-05-15"));
        check(json!({ "actor": admin(), "decision": accept }), no_date, None);
        check(
            json!({ "actor": admin(), "decision": accept, "final_billing_date": full, "note": "ok" }),
            with_date,
            Some("ok"),
        );
        check(json!({ "actor": admin(), "decision": "decline" }), ConfirmationDecision::Decline, None);
        check(
            json!({ "actor": admin(), "decision": "decline", "note": "non" }),
            ConfirmationDecision::Decline,
            Some("non"),
        );
    }

    #[test]
    fn invalid_fields_are_named() {
        let good =
            || envelope("subscription.cancellation-confirmation", json!({ "actor": admin(), "decision": "decline" }));
        check_invalid(
            good(),
            "/data/final_billing_date",
            json!("2026-05-15"),
            r#"data: unknown field `final_billing_date` (it goes with `decision: "accept"` only)"#,
        );
        check_invalid(
            good(),
            "/data/decision",
            json!("yes"),
            "data.decision: unknown variant `yes`, expected `accept` or `decline`",
        );
        check_invalid(good(), "/data/decision", absent(), "data: missing field `decision`");
        check_invalid(
            good(),
            "/data/reason",
            json!("no"),
            "data.reason: unknown field `reason`, expected one of `organization_id`, `subscription_id`, `actor`, `decision`, `final_billing_date`, `note`",
        );
        let good =
            || envelope("subscription.cancellation-confirmation", json!({ "actor": admin(), "decision": "accept" }));
        check_invalid(
            good(),
            "/data/final_billing_date",
            json!("2026-6-1"),
            r#"data.final_billing_date: `2026-6-1` is not a date such as "2026-06-15""#,
        );
        check_invalid(
            good(),
            "/data/final_billing_date",
            json!("2026-02-30"),
            r#"data.final_billing_date: `2026-02-30` is not a date such as "2026-06-15""#,
        );
        check_invalid(
            good(),
            "/data/final_billing_date",
            json!("1899-12-31"),
            "data.final_billing_date: the year 1899 is outside 2000 to 2998; is it a date that was never set?",
        );
        check_invalid(
            good(),
            "/data/final_billing_date",
            json!("2026-05-15T00:00:00Z"),
            r#"data.final_billing_date: `2026-05-15T00:00:00Z` is not a date such as "2026-06-15""#,
        );
        check_invalid(
            good(),
            "/data/final_billing_date",
            json!(20_260_515),
            "data.final_billing_date: invalid type: integer `20260515`, expected a string",
        );
        check_invalid(
            good(),
            "/data/note",
            json!("x".repeat(2_001)),
            "data.note: must be 0 to 2000 characters long, is 2001",
        );
    }
}
