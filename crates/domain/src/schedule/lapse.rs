//! The end of a subscription: its scheduled last day of access is over, or its natural end is.

use chrono::{DateTime, NaiveDate, Utc};

use crate::calendar::end_of_day;
use crate::checks::open_request;
use crate::decision::Change;
use crate::event::{About, Cause, Ended, Event};
use crate::field::Field;
use crate::organization::Organization;
use crate::subscription::{Details, RequestDecision, Status, Subscription};

/// Ends a subscription whose scheduled last day of access is over at `now`. That instant was fixed when the end was scheduled, so the
/// organization is not needed.
///
/// # Errors
/// When a field that the end needs cannot be read.
pub fn end(subscription: &Subscription, now: DateTime<Utc>) -> Field<Option<Change>> {
    let Some(details) = subscription.details.as_ref() else { return Ok(None) };
    match details.end.clone()? {
        Some(end) if end.ends_at <= now => {
            ended(subscription, details.clone(), Status::Cancelled, Cause::Cancelled, end.ends_on, now).map(Some)
        }
        _ => Ok(None),
    }
}

/// Ends a subscription whose natural end is over at `now`.
///
/// # Errors
/// When a field that the end needs cannot be read.
pub fn expire(subscription: &Subscription, organization: &Organization, now: DateTime<Utc>) -> Field<Option<Change>> {
    let Some(details) = subscription.details.as_ref() else { return Ok(None) };
    let Some(expires_on) = details.expires_on.clone()? else { return Ok(None) };
    let natural_end = details.billing_day.clone()?.natural_end(expires_on);
    if end_of_day(natural_end, organization.timezone.clone()?) > now {
        return Ok(None);
    }
    let mut details = details.clone();
    if let Some(request) = open_request(subscription, &details)? {
        details.request = Ok(Some(request.close(now, RequestDecision::Superseded, None)));
    }
    ended(subscription, details, Status::Expired, Cause::Expired, natural_end, now).map(Some)
}

fn ended(
    subscription: &Subscription,
    mut details: Details,
    status: Status,
    cause: Cause,
    ended_on: NaiveDate,
    now: DateTime<Utc>,
) -> Field<Change> {
    let activities = std::mem::replace(&mut details.activities, Ok(vec![]))?;
    details.next_on = Ok(None);
    Ok(Change::to(status, subscription, Some(details), now)
        .ends_on(ended_on)
        .ended_on(ended_on)
        .event(Event::Ended(About::new(subscription, Ended { cause, ended_on, activities }))))
}

#[cfg(test)]
mod tests {
    use crate::subscription::Status;
    use crate::testing::*;

    fn at(time: &str, scene: Scene) -> Scene {
        scene.with(|scene| scene.now = instant(time))
    }

    /// Expires on 20 June, so June's invoice is the last and 14 July the last day.
    fn expiring(status: Status) -> Scene {
        scene(status).with_details(|details| details.expires_on = Ok(Some(date("2026-06-20"))))
    }

    #[test]
    fn the_scheduled_last_day_passes() {
        let scheduled = scene(Status::CancellationScheduled);
        assert_outcome(&at("2026-08-15T03:59:59.999Z", scheduled.clone()).lapse(), "unchanged");
        assert_outcome(
            &at("2026-08-15T04:00:00Z", scheduled).lapse(),
            r#"
            cancellation_scheduled → cancelled
            ended on 2026-08-14
            next invoice: None
            activities: []
            history: cancellation_scheduled → cancelled, 2026-08-14, by time, no command
            event subscription.ended
            cause: cancelled, ended_on: 2026-08-14, activities: [{"id":"a-1","name":"Longueurs"}]
        "#,
        );
    }

    #[test]
    fn the_natural_end_passes() {
        assert_outcome(&at("2026-07-15T03:59:59.999Z", expiring(Status::Active)).lapse(), "unchanged");
        assert_outcome(
            &at("2026-07-15T04:00:00Z", expiring(Status::Active)).lapse(),
            r#"
            active → expired
            ended on 2026-07-14
            next invoice: None
            activities: []
            history: active → expired, 2026-07-14, by time, no command
            event subscription.ended
            cause: expired, ended_on: 2026-07-14, activities: [{"id":"a-1","name":"Longueurs"}]
        "#,
        );
        assert_outcome(
            &at("2026-07-15T04:00:00Z", expiring(Status::CancellationRequested)).lapse(),
            r#"
            cancellation_requested → expired
            ended on 2026-07-14
            request: of 2026-05-28 01:30:00 UTC by client acc-1, "on déménage",
                superseded at 2026-07-15 04:00:00 UTC, no note
            next invoice: None
            activities: []
            history: cancellation_requested → expired, 2026-07-14, by time, no command
            event subscription.ended
            cause: expired, ended_on: 2026-07-14, activities: [{"id":"a-1","name":"Longueurs"}]
        "#,
        );
    }

    /// Without a natural end a subscription runs on; one that is scheduled ends on its last day and no other.
    #[test]
    fn what_does_not_end() {
        let in_ten_years = "2036-01-01T00:00:00Z";
        assert_outcome(&at(in_ten_years, scene(Status::Active)).lapse(), "unchanged");
        assert_outcome(&at(in_ten_years, scene(Status::CancellationRequested)).lapse(), "unchanged");
        assert_outcome(&at("2026-07-16T00:00:00Z", expiring(Status::CancellationScheduled)).lapse(), "unchanged");
        for status in [Status::Cancelled, Status::Expired, Status::Removed] {
            assert_outcome(&at(in_ten_years, scene(status)).lapse(), "unchanged");
        }
        let over = scene(Status::Expired).with_details(|details| details.expires_on = Ok(Some(date("2026-03-20"))));
        assert_outcome(&at(in_ten_years, over).lapse(), "unchanged");
    }

    #[test]
    fn twice_is_once() {
        let mut world = expiring(Status::Active).world();
        let task = crate::unit_of_work::Task::Lapse("sub-1".try_into().unwrap());
        let later = instant("2026-09-01T00:00:00Z");
        assert_eq!(world.apply(&task, later), crate::unit_of_work::TaskOutcome::Applied);
        assert_eq!(world.apply(&task, later), crate::unit_of_work::TaskOutcome::Unchanged);
        assert_eq!(world.changed_subscriptions().next().unwrap().effects.len(), 1);
    }

    /// The day is over where the organization is.
    #[test]
    fn elsewhere() {
        for (timezone, over_at) in [
            (chrono_tz::Pacific::Auckland, "2026-07-14T12:00:00Z"),
            (chrono_tz::Asia::Kathmandu, "2026-07-14T18:15:00Z"),
            (chrono_tz::Pacific::Honolulu, "2026-07-15T10:00:00Z"),
        ] {
            let there = expiring(Status::Active).with(|scene| scene.organization.timezone = Ok(timezone));
            let over_at = instant(over_at);
            let lapse_at = |now| there.clone().with(|scene| scene.now = now).lapse().cell();
            assert_eq!(lapse_at(over_at - chrono::Duration::milliseconds(1)), "unchanged", "{timezone}");
            assert_eq!(lapse_at(over_at), "expired", "{timezone}");
        }
    }
}
