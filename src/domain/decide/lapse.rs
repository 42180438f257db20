//! What time does: a scheduled last day passes, or a natural end.

use chrono::{DateTime, NaiveDate, Utc};

use super::{Change, about};
use crate::domain::billing::end_of_day;
use crate::domain::event::{Cause, Ended, Event};
use crate::domain::organization::Organization;
use crate::domain::subscription::{Details, HistoryEntry, Status, Subscription};

/// Ends the subscription if its last day of access is over at `now`; otherwise nothing changes.
#[must_use]
pub fn lapse(subscription: &Subscription, organization: &Organization, now: DateTime<Utc>) -> Option<Change> {
    let details = subscription.details.as_ref()?;
    let (status, cause, ended_on) = over(subscription.status, details, organization, now)?;
    let history = HistoryEntry {
        at: now,
        command: None,
        actor: None,
        from: subscription.status,
        to: status,
        ends_on: Some(ended_on),
    };
    let mut after = details.clone();
    let activities = std::mem::take(&mut after.activities);
    after.billing.next_on = None;
    Some(Change {
        subscription: Subscription { status, details: Some(after), ended_on: Some(ended_on), ..subscription.clone() },
        history: Some(history),
        payment_failure: None,
        notifications: vec![],
        events: vec![Event::Ended(about(subscription, Ended { cause, ended_on, activities }))],
    })
}

fn over(
    status: Status,
    details: &Details,
    organization: &Organization,
    now: DateTime<Utc>,
) -> Option<(Status, Cause, NaiveDate)> {
    match status {
        Status::CancellationScheduled => {
            let end = details.end?;
            (end.ends_at <= now).then_some((Status::Cancelled, Cause::Cancelled, end.ends_on))
        }
        Status::Active | Status::CancellationRequested => {
            let natural_end = details.billing.natural_end(details.expires_on?);
            let over = end_of_day(natural_end, organization.timezone) <= now;
            over.then_some((Status::Expired, Cause::Expired, natural_end))
        }
        Status::Cancelled | Status::Expired | Status::Removed => None,
    }
}
