//! The reminder of requests that no administrator has decided: one email to the organization that lists all of them.

use chrono::{DateTime, Days, NaiveDate, TimeDelta, Utc};

use crate::checks::open_request;
use crate::facts::{Facts, OrganizationFacts, PendingRequest};
use crate::field::{Field, Malformed};
use crate::ids::cut;
use crate::notification::{Notification, Template, notify_organization};
use crate::organization::{LastReminder, Organization};
use crate::subscription::Subscription;

/// How many requests a reminder lists.
pub const LISTED_MAX: usize = 50;
/// How many bytes the texts and links of the list have at most, so that the email stays below 100 KB: each byte may take three in the
/// email, in both of its parts.
pub const LIST_BYTES_MAX: usize = 12_000;
/// A request recorded shortly before a reminder may have been written while that reminder was decided, so that it is not listed there.
/// It is a reason for another reminder, even if it was listed.
const RECORDING_TIME: TimeDelta = TimeDelta::minutes(5);
/// The longest name in the list, in characters.
const NAME_CHARS_MAX: usize = 100;
/// The longest reason in the list, in characters: the subscription has all of it.
const REASON_CHARS_MAX: usize = 200;

/// The undecided requests of one organization.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PendingRequests {
    /// When each was sent and recorded.
    pub times: Vec<RequestTimes>,
    /// The subscriptions of the [`LISTED_MAX`] oldest, oldest first.
    pub oldest: Vec<Subscription>,
}

/// When a request was sent and recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestTimes {
    /// When the client sent it.
    pub requested_at: DateTime<Utc>,
    /// When it was recorded, if that is known. A request may arrive late.
    pub recorded_at: Option<DateTime<Utc>>,
}

/// A reminder, with what the organization's document remembers of it.
#[derive(Clone, Debug, PartialEq)]
pub struct ReminderGiven {
    /// The record that prevents a second reminder.
    pub reminder: LastReminder,
    pub notification: Notification,
}

/// Reminds an organization of its undecided requests, if one of them has been undecided for a number of days
/// (`request_reminder_days`) of which no reminder has told yet. There is at most one reminder on a day.
///
/// # Errors
/// When a field that the reminder needs cannot be read.
pub fn reminder_due(
    organization: &Organization,
    pending: &PendingRequests,
    now: DateTime<Utc>,
) -> Field<Option<ReminderGiven>> {
    let Some(oldest) = pending.times.iter().map(|times| times.requested_at).min() else { return Ok(None) };
    if !may_be_due(organization, oldest, now)? {
        return Ok(None);
    }
    let today = organization.date_at(now)?;
    let last = organization.last_reminder.clone()?;
    let lead_days = organization.request_reminder_days.clone()?;
    let mut is_due = false;
    for times in &pending.times {
        let requested_on = organization.date_at(times.requested_at)?;
        // A record in the future is no record.
        let recorded_at = times.recorded_at.filter(|at| *at <= now).unwrap_or(times.requested_at);
        is_due |= lead_days.iter().filter_map(|&lead| due_on(requested_on, lead)).any(|due_on| {
            let is_told = |last: LastReminder| {
                let told_until = last.at.checked_sub_signed(RECORDING_TIME);
                due_on <= last.on && told_until.is_some_and(|until| recorded_at <= until)
            };
            due_on <= today && !last.is_some_and(is_told)
        });
    }
    if !is_due {
        return Ok(None);
    }
    let requests = list(organization, &pending.oldest, today)?;
    if requests.is_empty() {
        return Err(Malformed("none of its undecided requests can be read".to_owned()));
    }
    let facts = Facts {
        requests,
        requests_count: Some(u32::try_from(pending.times.len()).unwrap_or(u32::MAX)),
        ..Facts::of(OrganizationFacts::new(organization)?, None)
    };
    Ok(Some(ReminderGiven {
        reminder: LastReminder { on: today, at: now },
        notification: notify_organization(Template::RequestsPending, organization, facts)?,
    }))
}

/// Whether a reminder may be due, if the oldest of the undecided requests was sent at `oldest`.
///
/// # Errors
/// When a field that shows it cannot be read.
pub fn may_be_due(organization: &Organization, oldest: DateTime<Utc>, now: DateTime<Utc>) -> Field<bool> {
    let Some(&shortest) = organization.request_reminder_days.as_ref().map_err(Clone::clone)?.iter().min() else {
        return Ok(false);
    };
    let today = organization.date_at(now)?;
    let is_new_day = organization.last_reminder.clone()?.is_none_or(|last| last.on < today);
    let requested_on = organization.date_at(oldest)?;
    Ok(is_new_day && due_on(requested_on, shortest).is_some_and(|due_on| due_on <= today))
}

/// The day on which a request has been undecided for `lead` days.
fn due_on(requested_on: NaiveDate, lead: u32) -> Option<NaiveDate> {
    requested_on.checked_add_days(Days::new(lead.into()))
}

/// What the email says about each request: as many as there is room for.
fn list(organization: &Organization, oldest: &[Subscription], today: NaiveDate) -> Field<Vec<PendingRequest>> {
    let mut listed = Vec::new();
    let mut bytes = 0;
    for subscription in oldest.iter().take(LISTED_MAX) {
        // What cannot be read is left out: it must not hide the other requests.
        let Some(details) = &subscription.details else { continue };
        let Ok(Some(request)) = open_request(subscription, details) else { continue };
        let name = |name: &str| shortened(name, NAME_CHARS_MAX);
        let requested_on = organization.date_at(request.requested_at)?;
        let entry = PendingRequest {
            subscription_id: Some(subscription.id.to_string()),
            participant: details.participant.as_deref().ok().map(name),
            plan: details.plan.as_deref().ok().map(name),
            requested_on,
            days: u32::try_from((today - requested_on).num_days()).unwrap_or(0),
            actor: request.actor.as_ref().and_then(|actor| actor.name()).map(|actor| name(actor.as_str())),
            reason: request.reason.as_ref().map(|reason| shortened(reason.as_str(), REASON_CHARS_MAX)),
            admin_url: organization.links.admin_url(&subscription.id),
        };
        let PendingRequest { subscription_id, participant, plan, actor, reason, admin_url, .. } = &entry;
        let texts = [subscription_id, participant, plan, actor, reason, admin_url];
        bytes += texts.into_iter().flatten().map(|text| weight(text)).sum::<usize>();
        if bytes > LIST_BYTES_MAX {
            break;
        }
        listed.push(entry);
    }
    Ok(listed)
}

/// The size of a text in bytes, as far as the email is concerned: characters that HTML escapes take more there.
fn weight(text: &str) -> usize {
    text.bytes().map(|byte| if matches!(byte, b'"' | b'&' | b'<' | b'>') { 3 } else { 1 }).sum()
}

/// The text, or its beginning and an ellipsis.
fn shortened(text: &str, chars_max: usize) -> String {
    let beginning = cut(text.to_owned(), chars_max);
    if beginning.len() == text.len() { beginning } else { format!("{}…", beginning.trim_end()) }
}

#[cfg(test)]
mod tests;
