//! `subscription.cancellation-confirmation`: an administrator accepts or declines what a client asked.

use chrono::NaiveDate;

use super::{
    Change, Context, Live, Outcome, Rejection, RejectionReason, Schedule, about, already_scheduled, name_of,
    require_admin, require_before_natural_end, require_live,
};
use crate::domain::billing::End;
use crate::domain::command::{CancellationConfirmation, CommandRef, Decision};
use crate::domain::event::{CancellationDeclined, Event};
use crate::domain::notification::{Facts, Recipient, Template};
use crate::domain::subscription::{
    By, CancellationRecord, Closed, Details, HistoryEntry, RequestDecision, Status, Subscription, Via,
};

pub(super) fn decide(
    subscription: &Subscription,
    command: &CommandRef,
    data: &CancellationConfirmation,
    context: &Context<'_>,
) -> Result<Outcome<Change>, Rejection> {
    require_admin(&data.actor, "decide about a cancellation request")?;
    let Live { details, next_on } = require_live(subscription)?;
    match subscription.status {
        Status::CancellationRequested => {}
        Status::CancellationScheduled => return Err(already_scheduled(details)),
        _ => {
            return Err(RejectionReason::NoPendingRequest
                .because("The client has not asked to cancel this subscription, or the request is closed."));
        }
    }
    match data.decision {
        Decision::Accept { final_billing_date } => {
            let end = match final_billing_date {
                Some(date) => end_after_invoice(details, date, next_on)?,
                None => details.billing.end_before(next_on),
            };
            require_before_natural_end(details, end)?;
            let schedule = Schedule {
                command,
                end,
                record: CancellationRecord {
                    by: By::Admin,
                    via: Via::Request,
                    scheduled_at: context.now,
                    actor: data.actor.clone(),
                    reason: details.request.as_ref().and_then(|request| request.reason.clone()),
                    month: None,
                },
                request_decision: RequestDecision::Accept,
                note: data.note.clone(),
                template: Template::RequestAccepted,
            };
            Ok(Outcome::Applied(schedule.change(subscription, details, context)))
        }
        Decision::Decline => Ok(Outcome::Applied(decline(subscription, details, command, data, context))),
    }
}

fn end_after_invoice(details: &Details, date: NaiveDate, next_on: NaiveDate) -> Result<End, Rejection> {
    let billing = &details.billing;
    if !billing.is_billing_date(date) {
        return Err(RejectionReason::NotABillingDate.because(format!(
            "{date} is not a billing date; the subscription is billed on {} and {}.",
            billing.date_before(date),
            billing.date_after(date)
        )));
    }
    let newest = billing.date_before(next_on);
    if date < newest {
        return Err(RejectionReason::FinalBillingDatePassed
            .because(format!("The newest invoice is that of {newest}, so the last one cannot be that of {date}.")));
    }
    Ok(billing.end_after_invoice(date))
}

fn decline(
    subscription: &Subscription,
    details: &Details,
    command: &CommandRef,
    data: &CancellationConfirmation,
    context: &Context<'_>,
) -> Change {
    let request = details.request.as_ref();
    let facts = Facts {
        actor: name_of(&data.actor),
        requested_on: request.map(|request| context.organization.date_at(request.requested_at)),
        next_billing_on: details.billing.next_on,
        reason: request.and_then(|request| request.reason.as_ref()).map(|reason| reason.as_str().to_owned()),
        note: data.note.as_ref().map(|note| note.as_str().to_owned()),
        ..context.facts(subscription, details)
    };
    let mut details = details.clone();
    if let Some(request) = &mut details.request {
        request.closed =
            Some(Closed { decided_at: context.now, decision: RequestDecision::Decline, note: data.note.clone() });
    }
    Change {
        subscription: Subscription { status: Status::Active, details: Some(details), ..subscription.clone() },
        history: Some(HistoryEntry {
            at: context.now,
            command: Some(command.clone()),
            actor: Some(data.actor.clone()),
            from: subscription.status,
            to: Status::Active,
            ends_on: None,
        }),
        payment_failure: None,
        notifications: vec![context.notify(Template::RequestDeclined, Recipient::AccountManager, &facts)],
        events: vec![Event::CancellationDeclined(about(
            subscription,
            CancellationDeclined { note: data.note.clone() },
        ))],
    }
}
