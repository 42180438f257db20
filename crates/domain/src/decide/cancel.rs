//! `subscription.cancellation`: by an admin from the purchases tab or the newest invoice, or by the client.

use chrono::NaiveDate;

use super::{
    Change, Context, Decision, Ending, Live, Obstacle, RejectionReason, Schedule, about, ending, ending_before,
    name_of, require_admin, require_before_natural_end, require_live, require_owner,
};
use crate::billing::YearMonth;
use crate::command::{Cancellation, CancellationVia, CommandRef};
use crate::event::{Event, Removed};
use crate::field::Field;
use crate::ids::InvoiceId;
use crate::notification::{Facts, Recipient, Template};
use crate::organization::ClientCancellation;
use crate::subscription::{
    CancellationRecord, Channel, Details, HistoryEntry, Initiator, RequestDecision, Status, Subscription,
};

pub(super) fn decide(
    subscription: &Subscription,
    command: &CommandRef,
    data: &Cancellation,
    context: &Context<'_>,
) -> Result<Decision<Change>, Obstacle> {
    match &data.via {
        CancellationVia::Purchases { month } => {
            require_admin(&data.actor, "cancel from the purchases tab")?;
            let Live { details, next_on } = require_live(subscription)?;
            let ending = match month {
                Some(month) => ending_in_month(details, *month, next_on)?,
                None => ending_before(details, next_on)?,
            };
            schedule(
                subscription,
                details,
                command,
                data,
                (Initiator::Admin, Channel::Purchases, *month),
                ending,
                context,
            )
        }
        CancellationVia::Account => {
            require_owner(&data.actor, subscription, "cancel from their account")?;
            if context.organization.client_cancellation.clone()? == ClientCancellation::Request {
                return Err(RejectionReason::RequestRequired
                    .because("The organization wants its clients to send a cancellation request.")
                    .into());
            }
            let Live { details, next_on } = require_live(subscription)?;
            let ending = ending_before(details, next_on)?;
            schedule(subscription, details, command, data, (Initiator::Client, Channel::Account, None), ending, context)
        }
        CancellationVia::Invoice { invoice_id, refund } => {
            require_admin(&data.actor, "cancel from an invoice")?;
            let Live { details, .. } = require_live(subscription)?;
            require_last_invoice(details, invoice_id)?;
            Ok(Decision::Applied(remove(subscription, details, command, data, (invoice_id, *refund), context)?))
        }
    }
}

fn ending_in_month(details: &Details, month: YearMonth, next_on: NaiveDate) -> Result<Ending, Obstacle> {
    if month < YearMonth::of(next_on) {
        return Err(RejectionReason::MonthAlreadyInvoiced
            .because(format!(
                "The next invoice is that of {next_on}, so {} is the earliest month of cancellation; {month} was chosen.",
                YearMonth::of(next_on)
            ))
            .into());
    }
    let end = details.billing_day.clone()?.end_in_month(details.billing_mode.clone()?, month);
    Ok(ending(details, end, next_on)?)
}

fn schedule(
    subscription: &Subscription,
    details: &Details,
    command: &CommandRef,
    data: &Cancellation,
    (by, via, month): (Initiator, Channel, Option<YearMonth>),
    ending: Ending,
    context: &Context<'_>,
) -> Result<Decision<Change>, Obstacle> {
    require_before_natural_end(details, ending.ends_on)?;
    if subscription.status == Status::CancellationScheduled {
        match details.end.clone()? {
            Some(scheduled) if ending.ends_on == scheduled.ends_on => return Ok(Decision::Unchanged),
            Some(scheduled) if ending.ends_on > scheduled.ends_on => {
                return Err(RejectionReason::LaterThanScheduled
                    .because(format!(
                        "The last day of access is {} and can only be moved earlier; {} would be later.",
                        scheduled.ends_on, ending.ends_on
                    ))
                    .into());
            }
            _ => {}
        }
    }
    let schedule = Schedule {
        command,
        ending,
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
            Initiator::Admin => Template::CancelledByAdmin,
            Initiator::Client => Template::CancelledByClient,
        },
    };
    Ok(Decision::Applied(schedule.change(subscription, details, context)?))
}

fn require_last_invoice(details: &Details, invoice_id: &InvoiceId) -> Result<(), Obstacle> {
    let detail = match details.last_invoice_id.clone()? {
        Some(last) if last == *invoice_id => return Ok(()),
        Some(last) => format!(
            "Only the newest invoice, {last}, can be cancelled together with the subscription; {invoice_id} was named."
        ),
        None => format!("The subscription has no invoice yet; {invoice_id} was named."),
    };
    Err(RejectionReason::NotLastInvoice.because(detail).into())
}

/// Bought by mistake: everything goes at once.
fn remove(
    subscription: &Subscription,
    details: &Details,
    command: &CommandRef,
    data: &Cancellation,
    (invoice_id, refund): (&InvoiceId, bool),
    context: &Context<'_>,
) -> Field<Change> {
    let today = context.organization.date_at(context.now)?;
    let facts = Facts {
        actor: name_of(&data.actor),
        removed_on: Some(today),
        invoice_id: Some(invoice_id.to_string()),
        refund: Some(refund),
        reason: data.reason.as_ref().map(|reason| reason.as_str().to_owned()),
        ..context.facts(subscription, details)?
    };
    Ok(Change {
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
            via: Some(Channel::Invoice),
            // Nothing personal stays of a subscription bought by mistake.
            reason: None,
            note: None,
        }),
        payment_failure: None,
        notifications: vec![context.notify(Template::RemovedByAdmin, Recipient::AccountManager, &facts)?],
        events: vec![Event::Removed(about(
            subscription,
            Removed { invoice_id: invoice_id.clone(), refund, activities: details.activities.clone()? },
        ))],
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::subscription::Status;
    use crate::testing::*;

    #[track_caller]
    fn check(scene: &Scene, command: &crate::command::Command, expected: &str) {
        assert_story(&scene.tell(command), expected);
    }

    #[test]
    fn by_admin_with_a_month() {
        let month = json!({ "actor": admin(), "via": "purchases", "month": "2026-07", "reason": "blessure" });
        check(
            &scene(Status::Active),
            &command("subscription.cancellation", month),
            r#"
            active → cancellation_scheduled
            ends on 2026-07-14, over at 2026-07-15 04:00:00 UTC, last invoice 2026-06-15
            cancellation: by admin via purchases, "blessure", 2026-07, admin adm-1
            history: active → cancellation_scheduled, 2026-07-14, by admin adm-1, cmd-1
            mail cancelled-by-admin to account_manager
            actor: Luc, ends_on: 2026-07-14, final_billing_on: 2026-06-15, reason: blessure
            event subscription.cancellation-scheduled
            by: admin, via: purchases, ends_on: 2026-07-14, ends_at: 2026-07-15T04:00:00.000Z, final_billing_on: 2026-06-15, reason: blessure
        "#,
        );
    }

    #[test]
    fn by_admin_with_no_month() {
        check(
            &scene(Status::Active),
            &purchases(""),
            "
            active → cancellation_scheduled
            ends on 2026-06-14, over at 2026-06-15 04:00:00 UTC, last invoice 2026-05-15
            cancellation: by admin via purchases, no reason, no month, admin adm-1
            history: active → cancellation_scheduled, 2026-06-14, by admin adm-1, cmd-1
            mail cancelled-by-admin to account_manager
              actor: Luc, ends_on: 2026-06-14, final_billing_on: 2026-05-15
            event subscription.cancellation-scheduled
              by: admin, via: purchases, ends_on: 2026-06-14, ends_at: 2026-06-15T04:00:00.000Z,
              final_billing_on: 2026-05-15
        ",
        );
    }

    #[test]
    fn moved_earlier() {
        check(
            &scene(Status::CancellationScheduled),
            &purchases("2026-07"),
            "
            cancellation_scheduled → cancellation_scheduled
            ends on 2026-07-14, over at 2026-07-15 04:00:00 UTC, last invoice 2026-06-15
            cancellation: by admin via purchases, no reason, 2026-07, admin adm-1
            history: cancellation_scheduled → cancellation_scheduled, 2026-07-14, by admin adm-1, cmd-1
            mail cancelled-by-admin to account_manager
              actor: Luc, ends_on: 2026-07-14, previous_ends_on: 2026-08-14, final_billing_on: 2026-06-15
            event subscription.cancellation-scheduled
              by: admin, via: purchases, ends_on: 2026-07-14, ends_at: 2026-07-15T04:00:00.000Z,
              final_billing_on: 2026-06-15, previous_ends_on: 2026-08-14
        ",
        );
    }

    #[test]
    fn a_request_that_is_open_is_superseded() {
        check(
            &scene(Status::CancellationRequested),
            &purchases(""),
            r#"
            cancellation_requested → cancellation_scheduled
            ends on 2026-06-14, over at 2026-06-15 04:00:00 UTC, last invoice 2026-05-15
            cancellation: by admin via purchases, no reason, no month, admin adm-1
            request: of 2026-05-28 01:30:00 UTC by client acc-1, "on déménage", superseded at 2026-06-01 16:00:00 UTC, no note
            history: cancellation_requested → cancellation_scheduled, 2026-06-14, by admin adm-1, cmd-1
            mail cancelled-by-admin to account_manager
            actor: Luc, ends_on: 2026-06-14, final_billing_on: 2026-05-15, requested_on: 2026-05-27
            event subscription.cancellation-scheduled
            by: admin, via: purchases, ends_on: 2026-06-14, ends_at: 2026-06-15T04:00:00.000Z, final_billing_on: 2026-05-15
        "#,
        );
    }

    #[test]
    fn a_request_that_is_closed_stays_as_it_was() {
        use crate::subscription::{Closed, RequestDecision};
        let declined = scene(Status::CancellationRequested).with(|scene| scene.subscription.status = Status::Active);
        let declined = declined.with_details(|details| {
            details.request.as_mut().unwrap().as_mut().unwrap().closed =
                Some(Closed { decided_at: now(), decision: RequestDecision::Decline, note: None });
        });
        check(
            &declined,
            &purchases(""),
            "
            active → cancellation_scheduled
            ends on 2026-06-14, over at 2026-06-15 04:00:00 UTC, last invoice 2026-05-15
            cancellation: by admin via purchases, no reason, no month, admin adm-1
            history: active → cancellation_scheduled, 2026-06-14, by admin adm-1, cmd-1
            mail cancelled-by-admin to account_manager
              actor: Luc, ends_on: 2026-06-14, final_billing_on: 2026-05-15
            event subscription.cancellation-scheduled
              by: admin, via: purchases, ends_on: 2026-06-14, ends_at: 2026-06-15T04:00:00.000Z,
              final_billing_on: 2026-05-15
        ",
        );
    }

    #[test]
    fn by_client() {
        check(
            &scene(Status::Active),
            &account(),
            "
            active → cancellation_scheduled
            ends on 2026-06-14, over at 2026-06-15 04:00:00 UTC, last invoice 2026-05-15
            cancellation: by client via account, no reason, no month, client acc-1
            history: active → cancellation_scheduled, 2026-06-14, by client acc-1, cmd-1
            mail cancelled-by-client to organization_contact
              ends_on: 2026-06-14, final_billing_on: 2026-05-15
            event subscription.cancellation-scheduled
              by: client, via: account, ends_on: 2026-06-14, ends_at: 2026-06-15T04:00:00.000Z,
              final_billing_on: 2026-05-15
        ",
        );
    }

    #[test]
    fn by_client_whom_the_organization_tells_too() {
        let both = scene(Status::CancellationRequested)
            .with(|scene| scene.organization.notify_client_of_own_actions = Ok(true));
        check(
            &both,
            &account(),
            r#"
            cancellation_requested → cancellation_scheduled
            ends on 2026-06-14, over at 2026-06-15 04:00:00 UTC, last invoice 2026-05-15
            cancellation: by client via account, no reason, no month, client acc-1
            request: of 2026-05-28 01:30:00 UTC by client acc-1, "on déménage", superseded at 2026-06-01 16:00:00 UTC, no note
            history: cancellation_requested → cancellation_scheduled, 2026-06-14, by client acc-1, cmd-1
            mail cancelled-by-client to organization_contact and account_manager
            ends_on: 2026-06-14, final_billing_on: 2026-05-15, requested_on: 2026-05-27
            event subscription.cancellation-scheduled
            by: client, via: account, ends_on: 2026-06-14, ends_at: 2026-06-15T04:00:00.000Z, final_billing_on: 2026-05-15
        "#,
        );
    }

    #[test]
    fn by_client_before_the_end_that_an_admin_scheduled() {
        check(
            &scene(Status::CancellationScheduled),
            &account(),
            "
            cancellation_scheduled → cancellation_scheduled
            ends on 2026-06-14, over at 2026-06-15 04:00:00 UTC, last invoice 2026-05-15
            cancellation: by client via account, no reason, no month, client acc-1
            history: cancellation_scheduled → cancellation_scheduled, 2026-06-14, by client acc-1, cmd-1
            mail cancelled-by-client to organization_contact
              ends_on: 2026-06-14, previous_ends_on: 2026-08-14, final_billing_on: 2026-05-15
            event subscription.cancellation-scheduled
              by: client, via: account, ends_on: 2026-06-14, ends_at: 2026-06-15T04:00:00.000Z,
              final_billing_on: 2026-05-15, previous_ends_on: 2026-08-14
        ",
        );
    }

    #[test]
    fn from_the_newest_invoice() {
        check(
            &scene(Status::CancellationScheduled),
            &invoice("inv-may"),
            r#"
            cancellation_scheduled → removed
            ended on 2026-06-01
            details dropped
            history: cancellation_scheduled → removed, no last day, by admin adm-1, cmd-1
            mail removed-by-admin to account_manager
            actor: Luc, removed_on: 2026-06-01, invoice_id: inv-may, refund: false
            event subscription.removed
            invoice_id: inv-may, refund: false, activities: [{"id":"a-1","name":"Longueurs"}]
        "#,
        );
    }

    #[test]
    fn from_the_newest_invoice_with_a_refund() {
        let refund = json!({
            "actor": admin(), "via": "invoice", "invoice_id": "inv-may", "refund": true, "reason": "erreur",
        });
        check(
            &scene(Status::Active),
            &command("subscription.cancellation", refund),
            r#"
            active → removed
            ended on 2026-06-01
            details dropped
            history: active → removed, no last day, by admin adm-1, cmd-1
            mail removed-by-admin to account_manager
            actor: Luc, removed_on: 2026-06-01, reason: erreur, invoice_id: inv-may, refund: true
            event subscription.removed
            invoice_id: inv-may, refund: true, activities: [{"id":"a-1","name":"Longueurs"}]
        "#,
        );
    }
}
