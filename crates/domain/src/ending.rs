//! How a cancellation ends a subscription: the last day of access, the last invoice, and the change that schedules the end.

use chrono::NaiveDate;

use crate::billing::End;
use crate::calendar::{day_before, end_of_day};
use crate::checks::open_request;
use crate::command_ref::CommandRef;
use crate::decision::{Change, Context};
use crate::event::{About, CancellationScheduled, Event};
use crate::facts::Facts;
use crate::field::Field;
use crate::ids::FreeText;
use crate::notification::{Recipient, Template};
use crate::subscription::{
    CancellationRecord, Channel, Details, Initiator, RequestDecision, ScheduledEnd, Status, Subscription,
};

/// The last day of access, and the last invoice.
#[derive(Clone, Copy)]
pub(crate) struct Ending {
    pub(crate) ends_on: NaiveDate,
    /// Absent if there was never an invoice and there will be none.
    final_billing_on: Option<NaiveDate>,
}

impl Ending {
    /// The ending if neither a month nor a date was chosen: the period already invoiced is the last.
    pub(crate) fn before_next_invoice(details: &Details, next_on: NaiveDate) -> Field<Self> {
        Ok(Self { ends_on: day_before(next_on), final_billing_on: newest_invoice_date(details, next_on)? })
    }

    /// The ending that the calendar computed. If the last invoice would be before the next one, it already exists: then it is the
    /// newest one that was made, whatever the calendar says. There may be none.
    pub(crate) fn computed(details: &Details, computed: End, next_on: NaiveDate) -> Field<Self> {
        let End { ends_on, final_billing_on } = computed;
        let final_billing_on =
            if final_billing_on >= next_on { Some(final_billing_on) } else { newest_invoice_date(details, next_on)? };
        Ok(Self { ends_on, final_billing_on })
    }
}

/// The date of the newest invoice that exists. The calendar computes it only if the document does not have it.
fn newest_invoice_date(details: &Details, next_on: NaiveDate) -> Field<Option<NaiveDate>> {
    if let Some(last_on) = details.last_on.clone()? {
        return Ok(Some(last_on));
    }
    match details.last_invoice_id.clone()? {
        Some(_) => Ok(Some(details.billing_day.clone()?.date_before(next_on))),
        None => Ok(None),
    }
}

/// A cancellation that schedules the end of a subscription.
pub(crate) struct ScheduledCancellation<'a> {
    pub(crate) command: &'a CommandRef,
    pub(crate) ending: Ending,
    pub(crate) record: CancellationRecord,
    /// How a request that is still open is closed.
    pub(crate) request_decision: RequestDecision,
    /// The administrator's note about that request.
    pub(crate) note: Option<FreeText>,
    /// The administrator's words to the client.
    pub(crate) message: Option<FreeText>,
    pub(crate) template: Template,
}

impl ScheduledCancellation<'_> {
    pub(crate) fn change(self, subscription: &Subscription, details: &Details, context: &Context<'_>) -> Field<Change> {
        let previous_ends_on = details.end.clone()?.map(|end| end.ends_on);
        let CancellationRecord { by, via, ref actor, ref reason, .. } = self.record;
        let (actor, reason) = (actor.clone(), reason.clone());
        let Ending { ends_on, final_billing_on } = self.ending;
        let ends_at = end_of_day(ends_on, context.organization.timezone.clone()?);
        let open = open_request(subscription, details)?;
        let requested_on =
            open.as_ref().map(|request| context.organization.date_at(request.requested_at)).transpose()?;
        // The last invoice may be months away.
        let next_billing_on = details.next_on.clone()?.filter(|next_on| final_billing_on >= Some(*next_on));

        let facts = Facts {
            actor: actor.name().map(ToString::to_string),
            ends_on: Some(ends_on),
            previous_ends_on,
            ended: ends_on < context.organization.date_at(context.now)?,
            final_billing_on,
            next_billing_on,
            requested_on,
            superseded: open.is_some() && self.request_decision == RequestDecision::Superseded,
            reason: client_reason(&self.record).map(ToString::to_string),
            note: self.note.as_ref().map(ToString::to_string),
            message: self.message.as_ref().map(ToString::to_string),
            ..context.facts(subscription, details)?
        };
        let emails = match by {
            Initiator::Admin => vec![context.email(self.template, Recipient::AccountManager, &facts)?],
            Initiator::Client => context.emails_about_client_action(self.template, &facts)?,
        };
        let event = CancellationScheduled {
            by,
            via,
            ends_on,
            ends_at,
            final_billing_on,
            previous_ends_on,
            reason: reason.clone(),
        };

        let mut details = details.clone();
        if let Some(request) = open {
            details.request = Ok(Some(request.close(context.now, self.request_decision, self.note.clone())));
        }
        details.end = Ok(Some(ScheduledEnd { ends_on, ends_at, final_billing_on }));
        details.cancellation = Some(self.record);
        Ok(Change::to(Status::CancellationScheduled, subscription, Some(details), context.now)
            .by(&actor, self.command)
            .via(via)
            .ends_on(ends_on)
            .reason(reason)
            .note(self.note)
            .notify(emails)
            .event(Event::CancellationScheduled(About::new(subscription, event))))
    }
}

/// The reason that the client gave, when they cancelled or in the request that was accepted. An administrator's is internal.
fn client_reason(cancellation: &CancellationRecord) -> Option<&FreeText> {
    match cancellation.via {
        Channel::Account | Channel::Request => cancellation.reason.as_ref(),
        Channel::Purchases | Channel::Invoice => None,
    }
}
