//! `subscription.cancellation-confirmation`: an administrator accepts or declines what a client asked.

use chrono::NaiveDate;

use super::{
    Change, Context, Decision, Ending, Live, Obstacle, RejectionReason, Schedule, about, already_scheduled, ending,
    ending_before, name_of, require_admin, require_before_natural_end, require_live,
};
use crate::command::{CancellationConfirmation, CommandRef, ConfirmationDecision};
use crate::event::{CancellationDeclined, Event};
use crate::field::Field;
use crate::notification::{Facts, Recipient, Template};
use crate::subscription::{
    CancellationRecord, Channel, Details, HistoryEntry, Initiator, RequestDecision, Status, Subscription,
};

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
                Some(invoice_on) => ending_after_invoice(details, invoice_on, next_on)?,
                None => ending_before(details, next_on)?,
            };
            require_before_natural_end(details, ending.ends_on)?;
            let schedule = Schedule {
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
                template: Template::RequestAccepted,
            };
            Ok(Decision::Applied(schedule.change(subscription, details, context)?))
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
    Ok(ending(details, day.end_after_invoice(date), next_on)?)
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
        actor: name_of(&data.actor),
        requested_on: request.as_ref().map(|request| context.organization.date_at(request.requested_at)).transpose()?,
        next_billing_on: details.next_on.clone()?,
        reason: request.as_ref().and_then(|request| request.reason.as_ref()).map(|reason| reason.as_str().to_owned()),
        note: data.note.as_ref().map(|note| note.as_str().to_owned()),
        ..context.facts(subscription, details)?
    };
    let mut details = details.clone();
    if let Some(request) = request {
        details.request = Ok(Some(request.close(context.now, RequestDecision::Decline, data.note.clone())));
    }
    Ok(Change {
        subscription: Subscription { status: Status::Active, details: Some(details), ..subscription.clone() },
        history: Some(HistoryEntry {
            at: context.now,
            command: Some(command.clone()),
            actor: Some(data.actor.clone()),
            from: subscription.status,
            to: Status::Active,
            ends_on: None,
            via: None,
            reason: None,
            note: data.note.clone(),
        }),
        payment_failure: None,
        notifications: vec![context.notify(Template::RequestDeclined, Recipient::AccountManager, &facts)?],
        events: vec![Event::CancellationDeclined(about(
            subscription,
            CancellationDeclined { note: data.note.clone() },
        ))],
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::subscription::Status;
    use crate::testing::*;

    #[track_caller]
    fn check(command: &crate::command::Command, expected: &str) {
        assert_story(&scene(Status::CancellationRequested).tell(command), expected);
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
            mail request-accepted to account_manager
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
            mail request-accepted to account_manager
              actor: Luc, ends_on: 2026-08-14, final_billing_on: 2026-07-15, requested_on: 2026-05-27, reason:
              on déménage, note: bonne chance
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
            mail request-declined to account_manager
              actor: Luc, next_billing_on: 2026-06-15, requested_on: 2026-05-27, reason: on déménage, note:
              contrat d'un an
            event subscription.cancellation-declined
              note: contrat d'un an
        "#,
        );
    }

    /// The client is told what an admin decided, whether or not they are told what they did themselves.
    #[test]
    fn only_the_account_manager_is_told() {
        for command in [accept(""), decline()] {
            let both = scene(Status::CancellationRequested)
                .with(|scene| scene.organization.notify_client_of_own_actions = Ok(true));
            let told = both.tell(&command).subscription.unwrap();
            let recipients: Vec<_> = told.effects[0].notifications.iter().map(|mail| mail.recipient.as_str()).collect();
            assert_eq!(recipients, ["account_manager"]);
        }
    }
}
