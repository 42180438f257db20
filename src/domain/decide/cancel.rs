//! `subscription.cancellation`: by an admin from the purchases tab or the newest invoice, or by the client.

use chrono::NaiveDate;

use super::{
    Change, Context, Live, Outcome, Rejection, RejectionReason, Schedule, about, name_of, require_admin,
    require_before_natural_end, require_live, require_owner,
};
use crate::domain::billing::{End, YearMonth};
use crate::domain::command::{Cancellation, CancellationVia, CommandRef};
use crate::domain::event::{Event, Removed};
use crate::domain::notification::{Facts, Recipient, Template};
use crate::domain::organization::ClientCancellation;
use crate::domain::subscription::{
    By, CancellationRecord, Details, HistoryEntry, RequestDecision, Status, Subscription, Via,
};
use crate::domain::text::InvoiceId;

pub(super) fn decide(
    subscription: &Subscription,
    command: &CommandRef,
    data: &Cancellation,
    context: &Context<'_>,
) -> Result<Outcome<Change>, Rejection> {
    match &data.via {
        CancellationVia::Purchases { month } => {
            require_admin(&data.actor, "cancel from the purchases tab")?;
            let Live { details, next_on } = require_live(subscription)?;
            let end = match month {
                Some(month) => end_in_month(details, *month, next_on)?,
                None => details.billing.end_before(next_on),
            };
            schedule(subscription, details, command, data, (By::Admin, Via::Purchases, *month), end, context)
        }
        CancellationVia::Account => {
            require_owner(&data.actor, subscription, "cancel from their account")?;
            if context.organization.client_cancellation == ClientCancellation::Request {
                return Err(RejectionReason::RequestRequired
                    .because("The organization wants its clients to send a cancellation request."));
            }
            let Live { details, next_on } = require_live(subscription)?;
            let end = details.billing.end_before(next_on);
            schedule(subscription, details, command, data, (By::Client, Via::Account, None), end, context)
        }
        CancellationVia::Invoice { invoice_id, refund } => {
            require_admin(&data.actor, "cancel from an invoice")?;
            let Live { details, .. } = require_live(subscription)?;
            require_last_invoice(details, invoice_id)?;
            Ok(Outcome::Applied(remove(subscription, details, command, data, (invoice_id, *refund), context)))
        }
    }
}

fn end_in_month(details: &Details, month: YearMonth, next_on: NaiveDate) -> Result<End, Rejection> {
    if month < YearMonth::of(next_on) {
        return Err(RejectionReason::MonthAlreadyInvoiced.because(format!(
            "The next invoice is that of {next_on}, so {} is the earliest month of cancellation; {month} was chosen.",
            YearMonth::of(next_on)
        )));
    }
    Ok(details.billing.end_in_month(month))
}

fn schedule(
    subscription: &Subscription,
    details: &Details,
    command: &CommandRef,
    data: &Cancellation,
    (by, via, month): (By, Via, Option<YearMonth>),
    end: End,
    context: &Context<'_>,
) -> Result<Outcome<Change>, Rejection> {
    require_before_natural_end(details, end)?;
    if subscription.status == Status::CancellationScheduled {
        match details.end {
            Some(scheduled) if end.ends_on == scheduled.ends_on => return Ok(Outcome::Unchanged),
            Some(scheduled) if end.ends_on > scheduled.ends_on => {
                return Err(RejectionReason::LaterThanScheduled.because(format!(
                    "The last day of access is {} and can only be moved earlier; {} would be later.",
                    scheduled.ends_on, end.ends_on
                )));
            }
            _ => {}
        }
    }
    let schedule = Schedule {
        command,
        end,
        record: CancellationRecord {
            by,
            via,
            scheduled_at: context.now,
            actor: data.actor.clone(),
            reason: data.reason.clone(),
            month,
        },
        request_decision: RequestDecision::Superseded,
        note: None,
        template: match by {
            By::Admin => Template::CancelledByAdmin,
            By::Client => Template::CancelledByClient,
        },
    };
    Ok(Outcome::Applied(schedule.change(subscription, details, context)))
}

fn require_last_invoice(details: &Details, invoice_id: &InvoiceId) -> Result<(), Rejection> {
    match &details.billing.last_invoice_id {
        Some(last) if last == invoice_id => Ok(()),
        Some(last) => Err(RejectionReason::NotLastInvoice.because(format!(
            "Only the newest invoice, {last}, can be cancelled together with the subscription; {invoice_id} was named."
        ))),
        None => Err(RejectionReason::NotLastInvoice
            .because(format!("The subscription has no invoice yet; {invoice_id} was named."))),
    }
}

/// Bought by mistake: everything goes at once.
fn remove(
    subscription: &Subscription,
    details: &Details,
    command: &CommandRef,
    data: &Cancellation,
    (invoice_id, refund): (&InvoiceId, bool),
    context: &Context<'_>,
) -> Change {
    let today = context.organization.date_at(context.now);
    let facts = Facts {
        actor: name_of(&data.actor),
        removed_on: Some(today),
        invoice_id: Some(invoice_id.to_string()),
        refund: Some(refund),
        reason: data.reason.as_ref().map(|reason| reason.as_str().to_owned()),
        ..context.facts(subscription, details)
    };
    Change {
        subscription: Subscription {
            status: Status::Removed,
            details: None,
            ended_on: Some(today),
            ..subscription.clone()
        },
        history: Some(HistoryEntry {
            at: context.now,
            command: Some(command.clone()),
            actor: Some(data.actor.clone()),
            from: subscription.status,
            to: Status::Removed,
            ends_on: None,
        }),
        payment_failure: None,
        notifications: vec![context.notify(Template::RemovedByAdmin, Recipient::AccountManager, &facts)],
        events: vec![Event::Removed(about(
            subscription,
            Removed { invoice_id: invoice_id.clone(), refund, activities: details.activities.clone() },
        ))],
    }
}
