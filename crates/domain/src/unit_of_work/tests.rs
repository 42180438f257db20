//! Many tasks in order: what the second sees, what is written once, and what holds whatever comes.

use proptest::prelude::*;
use proptest::sample::{Index, select};
use uuid::Uuid;

use super::*;
use crate::billing::BillingMode;
use crate::calendar::YearMonth;
use crate::command_ref::AppliedCommand;
use crate::organization::ClientCancellation;
use crate::subscription::{Status, SubscriptionRecord};
use crate::testing::*;

/// The command with another id.
fn named(mut command: Command, id: &str) -> Command {
    command.reference.key.id = id.try_into().unwrap();
    command
}

fn sub_1() -> SubscriptionId {
    "sub-1".try_into().unwrap()
}

/// What becomes of these commands, one after the other on one subscription.
#[track_caller]
fn check(scene: &Scene, commands: &[Command], expected: &[&str]) -> UnitOfWork {
    let mut world = scene.world();
    for (at, (command, expected)) in commands.iter().zip(expected).enumerate() {
        let applied = match world.apply(&Task::Command(command.clone()), now()) {
            TaskOutcome::Applied => world.subscription(&sub_1()).unwrap().status.as_str(),
            TaskOutcome::Unchanged | TaskOutcome::Repeated => "unchanged",
            TaskOutcome::Rejected(rejected) => rejected.rejection.reason.as_str(),
            other => panic!("{other:?}"),
        };
        assert_eq!(applied, *expected, "command {at}");
    }
    assert_eq!(commands.len(), expected.len());
    world
}

#[test]
fn the_second_sees_what_the_first_did() {
    let commands = [
        named(request(), "1"),
        named(decline(), "2"),
        named(request(), "3"),
        named(accept("2026-07-15"), "4"),
        named(purchases("2026-09"), "5"),
        named(purchases("2026-07"), "6"),
        named(purchases("2026-08"), "7"),
        named(payment_failure(), "8"),
        named(invoice("inv-may"), "9"),
        named(payment_failure(), "10"),
    ];
    let expected = [
        "cancellation_requested",
        "active",
        "cancellation_requested",
        "cancellation_scheduled",
        "later_than_scheduled",
        "cancellation_scheduled",
        "later_than_scheduled",
        "cancellation_scheduled",
        "removed",
        "already_ended",
    ];
    let world = check(&scene(Status::Active), &commands, &expected);
    let drafts: Vec<_> = world.changed_subscriptions().collect();
    let [draft] = drafts[..] else { panic!("one document, one draft") };
    assert_eq!(*draft.before(), scene(Status::Active).subscription);
    let applied: Vec<_> = draft.after.applied.iter().map(|applied| applied.key.id.as_str()).collect();
    assert_eq!(applied, ["1", "2", "3", "4", "6", "8", "9"], "what was refused is not remembered");
    let caused: Vec<_> =
        draft.effects.iter().map(|effects| effects.command.as_ref().unwrap().key.id.as_str()).collect();
    assert_eq!(caused, applied);
}

#[test]
fn the_same_pair_again_changes_nothing() {
    let same = [purchases("2026-08"), purchases("2026-08"), purchases("2026-07")];
    check(&scene(Status::Active), &same, &["cancellation_scheduled", "unchanged", "unchanged"]);
    // The pair is (source, id): the same id of another system is another command.
    let mut elsewhere = purchases("2026-07");
    elsewhere.reference.key.source = "elsewhere".try_into().unwrap();
    check(
        &scene(Status::Active),
        &[purchases("2026-08"), elsewhere],
        &["cancellation_scheduled", "cancellation_scheduled"],
    );
    // Even where it would be refused by now, and on what is left of a removed subscription.
    check(&scene(Status::Active), &[invoice("inv-may"), invoice("inv-may")], &["removed", "unchanged"]);
    let remembered = |unchanged| AppliedCommand { key: purchases("").reference.key, unchanged };
    for (unchanged, outcome) in [(false, TaskOutcome::Repeated), (true, TaskOutcome::Unchanged)] {
        let before = scene(Status::Cancelled).with(|scene| scene.subscription.applied.push(remembered(unchanged)));
        assert_eq!(before.world().apply(&Task::Command(purchases("")), now()), outcome, "as the first was answered");
    }
}

/// What the reply says: the state after the command, and the version that the write of the batch gives.
#[test]
fn a_standing_is_the_state_after_a_command() {
    let mut world = scene(Status::Active).with(|scene| scene.subscription.version = Some(7)).world();
    let standing = |world: &UnitOfWork| world.standing(Target::Subscription(&sub_1())).unwrap();
    let before = Standing { status: Some(Status::Active), ends_on: None, final_billing_on: None, version: 7 };
    assert_eq!(standing(&world), before);
    world.apply(&Task::Command(purchases("2026-08")), now());
    let end = world.subscription(&sub_1()).unwrap().details.as_ref().unwrap().end.clone().unwrap().unwrap();
    let after = Standing {
        status: Some(Status::CancellationScheduled),
        ends_on: Some(end.ends_on),
        final_billing_on: end.final_billing_on,
        version: 8,
    };
    assert_eq!(standing(&world), after);
    world.apply(&Task::Command(purchases("2026-08")), now());
    assert_eq!(standing(&world), after, "a batch writes a document once");
    world.apply(&Task::Command(named(invoice("inv-may"), "another")), now());
    assert_eq!(standing(&world).status, Some(Status::Removed));
    assert_eq!(standing(&world).ends_on, None);
}

/// Ids of effects never change: the same command on the same document always gives the same ids, and nothing else gives them.
#[test]
fn ids_of_effects() {
    let ids = |command: &Command| -> Vec<Uuid> {
        let applied = scene(Status::Active)
            .with(|scene| scene.organization.notify_client_of_own_actions = Ok(true))
            .decide(command);
        let added = applied.subscription.unwrap().effects.swap_remove(0);
        let emails: Vec<_> = added.notifications.iter().map(|email| added.ids.of_email(email)).collect();
        emails.into_iter().chain(added.events.iter().map(|event| added.ids.of_event(event))).collect()
    };
    let mut all = [ids(&account()), ids(&named(account(), "cmd-2")), ids(&named(request(), "cmd-3"))].concat();
    assert_eq!(ids(&account()), all[..3]);
    all.sort_unstable();
    all.dedup();
    assert_eq!(all.len(), 9);
    // They are in documents and in other systems' records: a new version of the program must not change them.
    assert_eq!(ids(&account())[0].to_string(), "d818d87c-1374-540e-9cbc-13c5d9bb1b54");
}

/// As do the ids of what time does.
#[test]
fn ids_of_what_time_does() {
    let ended = scene(Status::CancellationScheduled).with(|scene| scene.now = instant("2026-09-01T00:00:00Z")).lapse();
    let added = ended.subscription.unwrap().effects.swap_remove(0);
    assert_eq!(added.ids.of_event(&added.events[0]).to_string(), "96eaa273-06e8-51b9-9f3e-d6803a46e065");

    let CommandBody::CardExpiry(data) = card_expiry("2026-06").body else { unreachable!() };
    let task = Task::CardNotice("acc-1".try_into().unwrap(), "card-1".try_into().unwrap());
    let applied = scene(Status::Active).with(|scene| scene.account.cards = vec![Ok(data.card)]).apply(&task);
    let added = applied.account.unwrap().effects.swap_remove(0);
    assert_eq!(added.ids.of_email(&added.notifications[0]).to_string(), "8c2c0166-7a1e-5ac6-9ae6-cd8151f2c283");
}

/// One subscription's tasks do nothing to another's.
#[test]
fn neighbours_are_left_alone() {
    let mut world = scene(Status::Active).world();
    let mut other = scene(Status::Active).subscription;
    other.id = "sub-2".try_into().unwrap();
    world.add_subscription(other.id.clone(), LoadedDocument::Read(other.clone()));
    world.add_subscription(
        "sub-3".try_into().unwrap(),
        LoadedDocument::Corrupt { organization_id: None, error: "billing: missing".into() },
    );
    let mut about_sub_3 = named(purchases(""), "3");
    if let CommandBody::Subscription(SubscriptionCommand::Cancellation(data)) = &mut about_sub_3.body {
        data.subscription_id = "sub-3".try_into().unwrap();
    }
    assert_eq!(world.apply(&Task::Command(about_sub_3), now()), TaskOutcome::Corrupt("billing: missing".into()));
    assert_eq!(world.apply(&Task::Command(purchases("")), now()), TaskOutcome::Applied);
    assert_eq!(world.subscription(&other.id), Some(&other));
    assert_eq!(world.changed_subscriptions().count(), 1);
    assert_eq!(world.changed_accounts().count(), 0);
}

#[test]
fn time_finds_nothing_or_something_unreadable() {
    let mut world = UnitOfWork::default();
    assert_eq!(world.apply(&Task::Lapse(sub_1()), now()), TaskOutcome::Unchanged);
    let card = Task::CardNotice("acc-1".try_into().unwrap(), "card-1".try_into().unwrap());
    assert_eq!(world.apply(&card, now()), TaskOutcome::Unchanged);
    world
        .add_subscription(sub_1(), LoadedDocument::Corrupt { organization_id: None, error: "billing: missing".into() });
    assert_eq!(world.apply(&Task::Lapse(sub_1()), now()), TaskOutcome::Corrupt("billing: missing".into()));
    let mut orphan = UnitOfWork::default();
    orphan.add_subscription(sub_1(), LoadedDocument::Read(scene(Status::Active).subscription));
    assert!(matches!(
        orphan.apply(&Task::Lapse(sub_1()), now()),
        TaskOutcome::Missing(MissingReference::Organization { .. })
    ));
    // A scheduled end is a fixed instant.
    let september = instant("2026-09-01T00:00:00Z");
    orphan.add_subscription(sub_1(), LoadedDocument::Read(scene(Status::CancellationScheduled).subscription));
    assert_eq!(orphan.apply(&Task::Lapse(sub_1()), september), TaskOutcome::Applied);
}

/// Any subscription: mode, day, next invoice (mostly on a billing date), natural end, policy, time zone.
fn any_scene() -> impl Strategy<Value = Scene> {
    let zones = ["America/Toronto", "America/Asuncion", "Africa/Cairo", "Pacific/Apia", "America/Havana"];
    let status = select(vec![Status::Active, Status::CancellationRequested, Status::CancellationScheduled]);
    (
        status,
        any::<bool>(),
        1..=31_i64,
        0..24_u32,
        prop::option::of(0..900_u64),
        any::<[bool; 3]>(),
        select(zones.to_vec()),
    )
        .prop_map(|(status, is_fixed, day, months, expires, [asks, tells, off], zone)| {
            let scene = scene(status).with(|scene| {
                scene.organization.timezone = Ok(zone.parse().unwrap());
                scene.organization.notify_client_of_own_actions = Ok(tells);
                if asks {
                    scene.organization.client_cancellation = Ok(ClientCancellation::Request);
                }
            });
            scene.with_details(|details| {
                let mode = if is_fixed { BillingMode::FixedDay } else { BillingMode::Anniversary };
                let billing_day = billing_day(day);
                details.billing_mode = Ok(mode);
                details.billing_day = Ok(billing_day);
                let month = YearMonth::of(date("2026-01-01") + chrono::Months::new(months));
                let next_on = billing_day.date_in(month);
                let next_on = if off { next_on + chrono::Days::new(1) } else { next_on };
                details.next_on = Ok(Some(next_on));
                details.last_on = Ok(Some(billing_day.date_before(next_on)));
                details.expires_on = Ok(expires.map(|days| date("2026-01-01") + chrono::Days::new(days)));
            })
        })
}

/// A day on which something is asked, and what; the id may have been used before.
type Asked = (u64, Index, u32, u8);

fn any_tasks() -> impl Strategy<Value = Vec<Asked>> {
    prop::collection::vec((0..60_u64, any::<Index>(), 0..30_u32, 0..12_u8), 1..14)
}

/// The tasks, each with its instant; time does not run back.
fn tasks(asked: &[Asked]) -> Vec<(Task, DateTime<Utc>)> {
    let mut at = instant("2026-01-01T00:00:00Z");
    asked
        .iter()
        .map(|(days, what, months, id)| {
            at += chrono::TimeDelta::hours(i64::try_from(*days).unwrap() * 11);
            let month = date("2026-01-01") + chrono::Months::new(*months);
            let which = what.index(13);
            // Only the chosen one is built: parsing commands is what takes the time of these tests.
            let command = || match which {
                0 => purchases(""),
                1 => purchases(&month.format("%Y-%m").to_string()),
                2 => invoice("inv-may"),
                3 => invoice("inv-april"),
                4 => account(),
                5 => request(),
                6 => accept(""),
                7 => accept(&month.to_string()),
                8 => accept(&month.format("%Y-%m-28").to_string()),
                9 => decline(),
                10 => payment_failure(),
                _ => card_expiry(&month.format("%Y-%m").to_string()),
            };
            // One in thirteen is a lapse. Removals are rare, so that the subscription lives on for other tasks.
            let task = match which {
                12 => Task::Lapse(sub_1()),
                2 if *id > 2 => Task::Lapse(sub_1()),
                which => Task::Command(named(command(), &format!("{which}-{id}"))),
            };
            (task, at)
        })
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    /// A batch gives what the same tasks give one at a time, each on documents freshly loaded.
    #[test]
    fn a_batch_is_one_by_one(scene in any_scene(), asked in any_tasks()) {
        let mut batch = scene.world();
        let mut alone = scene.clone();
        let (mut records, mut effects) = (vec![], vec![]);
        let (mut notices, mut effects_of_account) = (vec![], vec![]);
        for (task, at) in tasks(&asked) {
            alone.now = at;
            let applied = alone.apply(&task);
            prop_assert_eq!(&batch.apply(&task, at), &applied.verdict);
            if let Some(draft) = applied.subscription {
                alone.subscription = draft.after;
                records.extend(draft.records);
                effects.extend(draft.effects);
            }
            if let Some(draft) = applied.account {
                alone.account = draft.after;
                notices.extend(draft.records);
                effects_of_account.extend(draft.effects);
            }
        }
        prop_assert_eq!(batch.subscription(&sub_1()), Some(&alone.subscription));
        let tracked = batch.tracked_subscription(&sub_1()).unwrap();
        prop_assert_eq!((&tracked.records, &tracked.effects), (&records, &effects));
        let tracked = batch.tracked_account(&"acc-1".try_into().unwrap()).unwrap();
        prop_assert_eq!((&tracked.records, &tracked.effects), (&notices, &effects_of_account));
    }

    /// Whatever is asked, in whatever order.
    #[test]
    fn what_always_holds(scene in any_scene(), asked in any_tasks()) {
        let mut scene = scene;
        for (task, at) in tasks(&asked) {
            scene.now = at;
            let applied = scene.apply(&task);
            let before = scene.subscription.clone();
            let Some(draft) = applied.subscription else {
                prop_assert!(applied.account.is_some() || applied.verdict != TaskOutcome::Applied);
                continue; // refused, or done before: there is nothing to write
            };
            if applied.verdict == TaskOutcome::Unchanged {
                prop_assert!(is_only_remembered(&draft));
                scene.subscription = draft.after;
                prop_assert!(scene.apply(&task).subscription.is_none());
                continue;
            }
            prop_assert_eq!(&applied.verdict, &TaskOutcome::Applied);
            let after = draft.after;
            let record = draft.records.first();
            let history = record.and_then(SubscriptionRecord::history);

            // Twice is once.
            scene.subscription = after.clone();
            let again = scene.apply(&task);
            prop_assert!(matches!(again.verdict, TaskOutcome::Repeated | TaskOutcome::Unchanged) && again.subscription.is_none());

            // What is over stays over; what is scheduled is never undone and never moved later.
            let end = |subscription: &Subscription| subscription.details.as_ref().and_then(|details| details.end.clone().unwrap());
            if !before.status.is_live() {
                prop_assert_eq!(after.status, before.status);
                prop_assert!(record.unwrap().payment_failure().is_some());
            }
            if before.status == Status::CancellationScheduled {
                prop_assert!(!matches!(after.status, Status::Active | Status::CancellationRequested | Status::Expired));
                if after.status != Status::Removed {
                    prop_assert!(end(&after).unwrap().ends_on <= end(&before).unwrap().ends_on);
                }
            }

            // The audit trail has the changes of status and last day, and no others.
            let is_change = before.status != after.status || end(&before) != end(&after);
            prop_assert_eq!(history.is_some(), is_change);
            if let Some(entry) = history {
                prop_assert_eq!((entry.from, entry.to, entry.at), (before.status, after.status, at));
                prop_assert_eq!(entry.command.is_some(), matches!(task, Task::Command(_)));
            }

            // A scheduled end lies in the cycle of its last invoice, or, with a fixed day, in the chosen month. (Where the next
            // invoice is not dated on the billing day, the newest that exists may be dated after the last day.)
            if let (Some(details), Status::CancellationScheduled, true) = (&after.details, after.status, is_change) {
                let (end, billing_day) = (end(&after).unwrap(), details.billing_day.clone().unwrap());
                let last = end.final_billing_on.unwrap();
                let month = details.cancellation.as_ref().unwrap().month;
                let next_on = details.next_on.clone().unwrap().unwrap();
                if last < next_on {
                    prop_assert_eq!(Some(last), details.last_on.clone().unwrap(), "an invoice that exists");
                }
                prop_assert!(billing_day.is_billing_date(last));
                prop_assert!(last <= end.ends_on || !billing_day.is_billing_date(next_on));
                match month {
                    Some(month) if details.billing_mode == Ok(BillingMode::FixedDay) => {
                        prop_assert_eq!(end.ends_on, month.last_day());
                    }
                    _ => prop_assert!(end.ends_on < billing_day.date_after(last)),
                }
                prop_assert!(scene.organization.date_at(end.ends_at).unwrap() > end.ends_on);
                if let Some(expires_on) = details.expires_on.clone().unwrap() {
                    prop_assert!(end.ends_on <= billing_day.natural_end(expires_on));
                }
                prop_assert!(details.request.clone().unwrap().is_none_or(|request| request.closed.is_some()));
            }

            // Its status and what it is made of agree.
            prop_assert_eq!(after.details.is_none(), after.status == Status::Removed);
            prop_assert_eq!(after.ended_on.is_some(), !after.status.is_live());
            if let Some(details) = &after.details {
                prop_assert_eq!(details.next_on.clone().unwrap().is_some(), after.status.is_live());
                let is_open = details.request.clone().unwrap().is_some_and(|request| request.closed.is_none());
                if after.status == Status::CancellationRequested {
                    prop_assert!(is_open);
                }
                if matches!(after.status, Status::Active | Status::CancellationScheduled) {
                    prop_assert!(!is_open);
                }
            }

            // Nobody else's fields.
            prop_assert_eq!((&after.id, &after.organization_id, &after.account_id, after.version),
                (&before.id, &before.organization_id, &before.account_id, before.version));
        }
    }
}
