use chrono::TimeDelta;
use proptest::prelude::*;

use super::*;
use crate::field::Malformed;
use crate::subscription::{Request, RequestDecision, Status};
use crate::testing::*;
use crate::unit_of_work::{LoadedDocument, MissingReference, Task, TaskOutcome, UnitOfWork};

/// An organization in Montréal that is reminded after these days, and was last reminded at this instant.
fn organization(lead_days: &[u32], last: Option<&str>) -> Organization {
    let mut organization = scene(Status::Active).organization;
    organization.request_reminder_days = Ok(lead_days.to_vec());
    let reminder = |at: &str| LastReminder { on: organization.date_at(instant(at)).unwrap(), at: instant(at) };
    organization.last_reminder = Ok(last.map(reminder));
    organization
}

fn sent_at(requested_at: &str) -> RequestTimes {
    RequestTimes { requested_at: instant(requested_at), recorded_at: None }
}

fn pending(times: &[RequestTimes]) -> PendingRequests {
    let oldest = times.iter().enumerate().map(|(number, times)| subscription(number, times.requested_at));
    PendingRequests { times: times.to_vec(), oldest: oldest.take(LISTED_MAX).collect() }
}

/// The subscription `sub-number`, with a request of this instant.
fn subscription(number: usize, requested_at: DateTime<Utc>) -> Subscription {
    let scene = scene(Status::CancellationRequested).with_details(|details| {
        let request = details.request.clone().unwrap().unwrap();
        details.request = Ok(Some(Request { requested_at, ..request }));
    });
    Subscription { id: format!("sub-{number}").as_str().try_into().unwrap(), ..scene.subscription }
}

/// Requests are counted in whole days of the organization's calendar, and each number of days is told of once.
#[test]
fn when_a_reminder_is_due() {
    #[track_caller]
    fn check(lead_days: &[u32], requests: &[&str], last: Option<&str>, now: &str, expected: bool) {
        let requests: Vec<RequestTimes> = requests.iter().map(|at| sent_at(at)).collect();
        let given = reminder_due(&organization(lead_days, last), &pending(&requests), instant(now)).unwrap();
        assert_eq!(given.is_some(), expected);
        if let Some(given) = given {
            assert_eq!(given.reminder.at, instant(now));
            assert_eq!(given.notification.facts.requests_count, Some(u32::try_from(requests.len()).unwrap()));
        }
    }
    let first = "2026-05-28T16:00:00Z";
    // Three days, in Montréal.
    check(&[3, 7], &[first], None, "2026-05-31T03:59:59Z", false);
    check(&[3, 7], &[first], None, "2026-05-31T04:00:00Z", true);
    // Told on that day; again after seven.
    let third = Some("2026-05-31T04:00:00Z");
    check(&[3, 7], &[first], third, "2026-05-31T23:00:00Z", false);
    check(&[3, 7], &[first], third, "2026-06-04T03:59:59Z", false);
    check(&[3, 7], &[first], third, "2026-06-04T04:00:00Z", true);
    check(&[3, 7], &[first], Some("2026-06-04T04:00:00Z"), "2027-06-04T04:00:00Z", false);
    // The order of the days does not matter, nor that one is given twice.
    check(&[7, 3, 3], &[first], None, "2026-05-31T04:00:00Z", true);
    check(&[7, 3, 3], &[first], third, "2026-06-01T04:00:00Z", false);
    // Missed while no worker ran: one reminder makes up for all.
    check(&[3, 7], &[first], None, "2026-06-20T16:00:00Z", true);
    check(&[3, 7], &[first], Some("2026-06-20T16:00:00Z"), "2026-06-21T16:00:00Z", false);
    // A second request that becomes due on another day is told of on that day.
    let second = "2026-05-29T16:00:00Z";
    check(&[3], &[first, second], third, "2026-05-31T23:00:00Z", false);
    check(&[3], &[first, second], third, "2026-06-01T04:00:00Z", true);
    // Never, or on the day itself.
    check(&[], &[first], None, "2026-06-20T16:00:00Z", false);
    check(&[0], &[first], None, first, true);
    check(&[0], &[first, "2026-05-28T20:00:00Z"], Some(first), "2026-05-28T21:00:00Z", false);
    check(&[0], &[first, "2026-05-28T20:00:00Z"], Some(first), "2026-05-29T04:00:00Z", true);
    // None pending; one that was sent tomorrow, by a wrong clock; days beyond the calendar.
    check(&[0], &[], None, "2026-06-20T16:00:00Z", false);
    check(&[0], &["2026-06-21T16:00:00Z"], None, "2026-06-20T16:00:00Z", false);
    check(&[u32::MAX], &[first], None, "2026-06-20T16:00:00Z", false);
    // A reminder of tomorrow, by a time zone that was changed: it waits for a new day.
    check(&[3], &[first], Some("2026-06-01T16:00:00Z"), "2026-05-31T16:00:00Z", false);
}

/// A request that arrives days after it was sent was not in the reminders before.
#[test]
fn late_arrivals_are_told_of() {
    #[track_caller]
    fn check(recorded_at: &str, expected: bool) {
        let late = RequestTimes { recorded_at: Some(instant(recorded_at)), ..sent_at("2026-05-20T16:00:00Z") };
        let organization = organization(&[3, 7], Some("2026-05-31T16:00:00Z"));
        let given = reminder_due(&organization, &pending(&[late]), instant("2026-06-01T16:00:00Z")).unwrap();
        assert_eq!(given.is_some(), expected);
    }
    check("2026-05-31T15:54:59Z", false);
    check("2026-05-31T15:55:00Z", false);
    check("2026-05-31T15:55:01Z", true); // it may have been recorded while the reminder was decided
    check("2026-05-31T16:00:01Z", true);
    check("2199-01-01T00:00:00Z", false); // not a time at which it can have been recorded
}

#[test]
fn what_the_reminder_says() {
    let given = reminder_due(
        &organization(&[3], None),
        &pending(&[sent_at("2026-05-20T01:30:00Z"), sent_at("2026-05-31T16:00:00Z")]),
        now(),
    );
    let ReminderGiven { reminder, notification } = given.unwrap().unwrap();
    assert_eq!(reminder, LastReminder { on: date("2026-06-01"), at: now() });
    assert_eq!(notification.template, Template::RequestsPending);
    assert_eq!(notification.to.email, "accueil@laurier.example");
    assert_eq!((notification.reply_to, notification.locale.as_str()), (None, "fr-CA"));
    let facts = notification.facts;
    assert_eq!((&facts.manager, &facts.participant, facts.requests_count), (&None, &None, Some(2)));
    let first = PendingRequest {
        subscription_id: Some("sub-0".into()),
        participant: Some("Zoé Roy".into()),
        plan: Some("Natation".into()),
        requested_on: date("2026-05-19"), // in Montréal
        days: 13,
        actor: facts.requests[0].actor.clone(),
        reason: Some("on déménage".into()),
        admin_url: Some("https://laurier.example/s/sub-0".into()),
    };
    assert_eq!(facts.requests[0], first);
    assert_eq!((facts.requests[1].requested_on, facts.requests[1].days), (date("2026-05-31"), 1));
}

/// The list is bounded in number and size, and what cannot be read hides nothing else.
#[test]
fn the_list_is_bounded() {
    let listed = |pending: &PendingRequests| {
        let given = reminder_due(&organization(&[3], None), pending, now()).unwrap().unwrap();
        (given.notification.facts.requests, given.notification.facts.requests_count)
    };
    let many = pending(&vec![sent_at("2026-05-20T16:00:00Z"); 3 * LISTED_MAX]);
    let (requests, count) = listed(&many);
    assert_eq!((requests.len(), count), (LISTED_MAX, Some(150)));

    let mut long = many;
    for subscription in &mut long.oldest {
        let details = subscription.details.as_mut().unwrap();
        details.participant = Ok("é".repeat(100_000));
        let request = details.request.clone().unwrap().unwrap();
        let reason = Some("漢".repeat(2_000).as_str().try_into().unwrap());
        details.request = Ok(Some(Request { reason, ..request }));
    }
    let (requests, count) = listed(&long);
    assert!((10..LISTED_MAX).contains(&requests.len()), "{}", requests.len());
    assert_eq!(count, Some(150));
    assert_eq!(requests[0].participant, Some(format!("{}…", "é".repeat(100))));
    assert!(serde_json::to_vec(&requests).unwrap().len() < 20_000);

    let mut unreadable = pending(&[sent_at("2026-05-20T16:00:00Z"); 3]);
    unreadable.oldest[0].details.as_mut().unwrap().participant = Err(Malformed("it is wrong".to_owned()));
    unreadable.oldest[1].details.as_mut().unwrap().request = Err(Malformed("it is wrong".to_owned()));
    let (requests, count) = listed(&unreadable);
    assert_eq!((requests.len(), count), (2, Some(3)));
    assert_eq!((&requests[0].participant, requests[0].plan.as_deref()), (&None, Some("Natation")));

    for subscription in &mut unreadable.oldest {
        subscription.details.as_mut().unwrap().request = Err(Malformed("it is wrong".to_owned()));
    }
    let problem = reminder_due(&organization(&[3], None), &unreadable, now()).unwrap_err();
    assert_eq!(problem.to_string(), "none of its undecided requests can be read");
}

/// Only a field that the reminder needs stops it.
#[test]
fn malformed_settings() {
    #[track_caller]
    fn check(break_it: impl Fn(&mut Organization), expected: Result<bool, &str>) {
        let mut organization = organization(&[3], None);
        break_it(&mut organization);
        let pending = pending(&[sent_at("2026-05-20T16:00:00Z")]);
        let given = reminder_due(&organization, &pending, now()).map(|given| given.is_some());
        assert_eq!(given, expected.map_err(|sentence| Malformed(sentence.to_owned())));
    }
    fn wrong<T>() -> Field<T> {
        Err(Malformed("it is wrong".to_owned()))
    }
    check(|organization| organization.request_reminder_days = wrong(), Err("it is wrong"));
    check(|organization| organization.timezone = wrong(), Err("it is wrong"));
    check(|organization| organization.contact = wrong(), Err("it is wrong"));
    check(|organization| organization.last_reminder = wrong(), Err("it is wrong"));
    check(|organization| organization.card_notice_days = wrong(), Ok(true));
    check(|organization| organization.client_cancellation = wrong(), Ok(true));
    // Without reminders, nothing else matters.
    check(
        |organization| (organization.request_reminder_days, organization.timezone) = (Ok(vec![]), wrong()),
        Ok(false),
    );
}

#[test]
fn as_a_task() {
    let id = || "org-1".try_into().unwrap();
    let task = Task::RequestReminder(id());
    let unit_of_work = |organization: Option<Organization>| {
        let mut unit_of_work = UnitOfWork::default();
        unit_of_work.add_pending_requests(id(), pending(&[sent_at("2026-05-20T16:00:00Z")]));
        if let Some(organization) = organization {
            unit_of_work.add_organization(id(), LoadedDocument::Read(organization));
        }
        unit_of_work
    };
    let mut world = unit_of_work(Some(organization(&[3, 20], None)));
    assert_eq!(world.apply(&task, now()), TaskOutcome::Applied);
    assert_eq!(world.apply(&task, now() + TimeDelta::hours(1)), TaskOutcome::Unchanged);
    let first = world.newest_effects(task.target()).unwrap().clone();
    assert_eq!(world.apply(&task, now() + TimeDelta::days(8)), TaskOutcome::Applied);
    let second = world.newest_effects(task.target()).unwrap().clone();
    assert_ne!(first.ids, second.ids, "another email");
    assert!(first.events.is_empty() && first.command.is_none());
    let changed = world.into_changed().organizations;
    assert_eq!((changed.len(), changed[0].effects.len()), (1, 2));
    assert_eq!(changed[0].after.last_reminder.clone().unwrap().unwrap().on, date("2026-06-09"));

    // Another worker, at another time of the same day: the same email.
    let mut other = unit_of_work(Some(organization(&[3, 20], None)));
    assert_eq!(other.apply(&task, now() + TimeDelta::hours(5)), TaskOutcome::Applied);
    assert_eq!(other.newest_effects(task.target()).unwrap().ids, first.ids);

    let missing = MissingReference::Organization { organization_id: id(), by: "subscriptions sub-0".to_owned() };
    assert_eq!(unit_of_work(None).apply(&task, now()), TaskOutcome::Missing(missing));
    let unversioned = Organization { version: Err(Malformed("it is wrong".to_owned())), ..organization(&[3], None) };
    let corrupt = TaskOutcome::Corrupt("it is wrong".to_owned());
    assert_eq!(unit_of_work(Some(unversioned)).apply(&task, now()), corrupt);
    assert_eq!(UnitOfWork::default().apply(&task, now()), TaskOutcome::Unchanged);
}

/// A request of a simulated month: when it was sent, how much later it was recorded, and how much later it was decided.
#[derive(Clone, Debug)]
struct Simulated {
    sent: i64,
    late: i64,
    decided: i64,
}

fn simulated() -> impl Strategy<Value = Simulated> {
    let late = prop_oneof![3 => Just(0), 1 => 0..24 * 20_i64];
    (0..24 * 20_i64, late, 0..24 * 40_i64).prop_map(|(sent, late, decided)| Simulated { sent, late, decided })
}

proptest! {
    /// Whenever workers look: never two reminders on one day, each tells of something new, and within a day of looks no request is
    /// forgotten.
    #[test]
    fn over_a_month(
        requests in prop::collection::vec(simulated(), 0..6),
        lead_days in prop::collection::vec(0..12_u32, 0..3),
        mut looks in prop::collection::vec(0..24 * 30_i64, 0..60),
    ) {
        let begin = instant("2026-03-01T00:00:00Z"); // a month with a change of the clock
        let at = |hours: i64| begin + TimeDelta::hours(hours);
        let mut organization = organization(&lead_days, None);
        looks.sort_unstable();
        // For each request, the numbers of days that a reminder has told of.
        let mut told: Vec<Vec<u32>> = vec![Vec::new(); requests.len()];
        let mut days: Vec<NaiveDate> = Vec::new();
        // Not within the minutes in which it is unclear what a reminder told of.
        for now in looks.into_iter().map(|hours| at(hours) + TimeDelta::minutes(30)) {
            let today = organization.date_at(now).unwrap();
            let is_pending = |it: &&Simulated| at(it.sent + it.late) <= now && now < at(it.sent + it.late + it.decided);
            let times = requests.iter().filter(is_pending).map(|it| RequestTimes {
                requested_at: at(it.sent),
                recorded_at: Some(at(it.sent + it.late)),
            });
            let times: Vec<RequestTimes> = times.collect();
            let given = reminder_due(&organization, &pending(&times), now).unwrap();
            let is_given = given.is_some();
            let mut is_new = false;
            for (request, told) in requests.iter().zip(&mut told).filter(|(request, _)| is_pending(request)) {
                let requested_on = organization.date_at(at(request.sent)).unwrap();
                for &lead in &lead_days {
                    let is_open = due_on(requested_on, lead).unwrap() <= today && !told.contains(&lead);
                    is_new |= is_open;
                    if is_open && is_given {
                        told.push(lead);
                    }
                    prop_assert!(is_given || !is_open || days.last() == Some(&today), "{request:?} is forgotten");
                }
            }
            prop_assert!(!is_given || is_new, "nothing new at {now}");
            if let Some(given) = given {
                prop_assert!(days.last().is_none_or(|last| *last < today), "two on {today}");
                prop_assert_eq!(given.notification.facts.requests.len(), times.len());
                days.push(today);
                organization.last_reminder = Ok(Some(given.reminder));
            }
        }
    }
}

/// A request that was decided is not listed, whoever closed it.
#[test]
fn closed_requests_are_not_listed() {
    let mut pending = pending(&[sent_at("2026-05-20T16:00:00Z"), sent_at("2026-05-21T16:00:00Z")]);
    let details = pending.oldest[0].details.as_mut().unwrap();
    let request = details.request.clone().unwrap().unwrap();
    details.request = Ok(Some(request.close(now(), RequestDecision::Decline, None)));
    let given = reminder_due(&organization(&[3], None), &pending, now()).unwrap().unwrap();
    assert_eq!(given.notification.facts.requests.len(), 1);
}
