//! The rules alone, without servers, give the story's expected results on every day of a year.

use std::collections::{HashMap, HashSet};

use chrono::TimeDelta;
use offramp::jsonl::{ImportLine, Line};
use offramp_domain::command::{Command, InvalidCommand};
use offramp_domain::subscription::Status;
use offramp_domain::unit_of_work::{Task, TaskOutcome, UnitOfWork};

use super::*;

/// A year with its leap day, from the first to the last minute of every day in Toronto's winter.
#[test]
fn the_story_is_the_same_on_every_day() {
    let begin: DateTime<Utc> = "2027-03-01T05:00:00Z".parse().unwrap();
    for day in 0..=366 {
        for minute in [0, 24 * 60 - 1] {
            check(begin + TimeDelta::days(day) + TimeDelta::minutes(minute));
        }
    }
}

#[test]
fn a_chapter_does_not_count_on_an_order_among_queues() {
    let story = Story::on("2027-02-28T12:00:00Z".parse().unwrap());
    for chapter in &story.chapters {
        let mut kinds: HashMap<&str, &str> = HashMap::new();
        for step in chapter {
            let kind = *kinds.entry(step.document().1).or_insert(step.kind());
            assert_eq!(kind, step.kind(), "{}", step.title);
        }
    }
}

#[test]
fn the_story_touches_every_command_and_every_mail() {
    let story = Story::on("2027-02-28T12:00:00Z".parse().unwrap());
    let kinds: HashSet<&str> = story.steps().map(Step::kind).collect();
    assert_eq!(kinds.len(), 5, "{kinds:?}");
    let templates: HashSet<String> = story.emails().into_iter().map(|mail| mail.template).collect();
    assert_eq!(templates.len(), 8, "{templates:?}");
}

fn check(now: DateTime<Utc>) {
    let story = Story::on(now);
    let mut unit_of_work = UnitOfWork::default();
    for document in story.cast.documents() {
        let line = Line { number: 1, bytes: document.to_string().into_bytes() };
        let document = ImportLine::parse(&line).unwrap();
        assert_eq!(document.parsed().error(), None);
        document.add_to(&mut unit_of_work);
    }

    for (subscription, state) in story.passing.iter().filter_map(|passing| passing.ended.as_ref()) {
        let id = (*subscription).try_into().unwrap();
        assert_eq!(unit_of_work.apply(&Task::Lapse(id), now), TaskOutcome::Applied, "{now}: {subscription}");
        assert_eq!(state_of(&unit_of_work, subscription), *state, "{now}: {subscription}");
    }
    for subscription in story.cast.subscriptions() {
        let lapse = Task::Lapse(subscription.id.try_into().unwrap());
        assert_eq!(unit_of_work.apply(&lapse, now), TaskOutcome::Unchanged, "{now}: {} runs on", subscription.id);
    }
    let card = Task::CardNotice(GAGNON.id.try_into().unwrap(), "card-5454".try_into().unwrap());
    assert_eq!(unit_of_work.apply(&card, now), TaskOutcome::Applied, "{now}");

    for step in story.steps() {
        let told = format!("{now}: {}", step.title);
        let subscription = Some(step.document()).filter(|(collection, _)| *collection == "subscriptions");
        let before = subscription.map(|(_, id)| state_of(&unit_of_work, id));
        let outcome = match Command::parse(step.command.to_string().as_bytes()) {
            Ok(command) => match unit_of_work.apply(&Task::Command(command), now) {
                TaskOutcome::Applied => Outcome::Applied,
                TaskOutcome::Unchanged | TaskOutcome::Repeated => Outcome::Unchanged,
                TaskOutcome::Rejected(rejected) => Outcome::Rejected(rejected.rejection.reason.as_str().to_owned()),
                other => panic!("{told}: {other:?}"),
            },
            Err(InvalidCommand::Malformed(_)) => Outcome::DeadLetter("invalid".to_owned()),
            Err(error) => panic!("{told}: {error}"),
        };
        assert_eq!(outcome, step.expected.outcome, "{told}");
        let after = subscription.map(|(_, id)| state_of(&unit_of_work, id));
        match &step.expected.change {
            Some(change) => assert_eq!(after.as_ref(), Some(change), "{told}"),
            None => assert_eq!(after, before, "{told}"),
        }
    }

    let of_subscriptions =
        unit_of_work.changed_subscriptions().flat_map(|changed| &changed.effects).flat_map(|a| &a.notifications);
    let of_accounts =
        unit_of_work.changed_accounts().flat_map(|changed| &changed.effects).flat_map(|a| &a.notifications);
    let mut emails: Vec<Mail> = of_subscriptions
        .chain(of_accounts)
        .map(|mail| Mail { template: mail.template.to_string(), to: mail.to.email.clone() })
        .collect();
    emails.sort();
    assert_eq!(emails, story.emails(), "{now}");
}

fn state_of(unit_of_work: &UnitOfWork, subscription: &str) -> State {
    let subscription = unit_of_work.subscription(&subscription.try_into().unwrap()).unwrap();
    let end = subscription.details.as_ref().and_then(|details| details.end.clone().unwrap());
    let ends_on =
        end.map(|end| end.ends_on).or(subscription.ended_on.filter(|_| subscription.status != Status::Removed));
    State { status: subscription.status.as_str().to_owned(), ends_on }
}
