//! `card.expiry`: a saved card is about to expire, or has expired. One notice per card, expiry month and lead time,
//! whether a command or the calendar asks for it.

use super::{Context, Decision, NoticeGiven};
use crate::account::{Account, CARD_NOTICES_MAX, CardNotice, NoticeKind};
use crate::command::Card;
use crate::field::Field;
use crate::notification::{CardFacts, Facts, Template};

/// Decides a command about a card of this account.
///
/// # Errors
/// When a field that the notice needs cannot be read.
pub fn decide(account: &Account, card: &Card, context: &Context<'_>) -> Field<Decision<NoticeGiven>> {
    let today = context.organization.date_at(context.now)?;
    let notice = CardNotice {
        card_id: card.id.clone(),
        expires: card.expires,
        kind: NoticeKind::due(card.expires, today, &context.organization.card_notice_days.clone()?),
        at: context.now,
    };
    let given = account.card_notices.as_ref().map_err(Clone::clone)?;
    let remembered = given.iter().filter(|given| !given.is_forgotten(today)).count();
    if remembered >= CARD_NOTICES_MAX || given.iter().any(|given| given.repeats(&notice)) {
        return Ok(Decision::Unchanged);
    }
    let facts = Facts {
        card: Some(CardFacts {
            brand: card.brand.to_string(),
            last4: card.last4.as_str().to_owned(),
            expires: Some(card.expires),
            expired: notice.kind == NoticeKind::Expired,
        }),
        ..Facts::new(context.organization, account)?
    };
    let notifications = context.notify_both(Template::CardExpiring, &facts)?;
    Ok(Decision::Applied(NoticeGiven { notice, notifications }))
}

/// As time passes: gives the notice that is due for a saved card, if one is and was not given yet. Only the organization's
/// lead times count here; a card that has expired is no longer "about to".
///
/// # Errors
/// When a field that the notice needs cannot be read.
pub fn notice_due(account: &Account, card: &Card, context: &Context<'_>) -> Field<Option<NoticeGiven>> {
    let today = context.organization.date_at(context.now)?;
    match NoticeKind::due(card.expires, today, &context.organization.card_notice_days.clone()?) {
        NoticeKind::Days(_) => Ok(match decide(account, card, context)? {
            Decision::Applied(given) => Some(given),
            Decision::Unchanged => None,
        }),
        NoticeKind::Early | NoticeKind::Expired => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use crate::account::{CardNotice, NoticeKind};
    use crate::command::{Card, CommandBody};
    use crate::subscription::Status;
    use crate::testing::*;
    use crate::unit_of_work::{Task, TaskOutcome};

    /// The notices that are due 30 and 5 days before the end.
    fn at(now: &str) -> Scene {
        scene(Status::Active).with(|scene| scene.now = instant(now))
    }

    fn saved(expires: &str) -> Card {
        let CommandBody::CardExpiry(data) = card_expiry(expires).body else { unreachable!() };
        data.card
    }

    fn time_passes(scene: &Scene) -> Told {
        scene.apply(&Task::CardNotice("acc-1".try_into().unwrap(), "card-1".try_into().unwrap()))
    }

    #[test]
    fn about_to_expire() {
        assert_story(
            &at("2026-06-01T16:00:00Z").tell(&card_expiry("2026-06")),
            "
            notice: card-1 2026-06 Days(30)
            mail card-expiring to organization_contact and account_manager
            card.brand: Visa, card.last4: 4242, card.expires: 2026-06, card.expired: false
        ",
        );
    }

    #[test]
    fn expired() {
        assert_story(
            &at("2026-07-01T04:00:00Z").tell(&card_expiry("2026-06")),
            "
            notice: card-1 2026-06 Expired
            mail card-expiring to organization_contact and account_manager
            card.brand: Visa, card.last4: 4242, card.expires: 2026-06, card.expired: true
        ",
        );
    }

    /// However many commands and sweeps ask for it: the same card, month and lead time give one notice.
    #[test]
    fn one_notice_per_card_month_and_lead_time() {
        let scene = at("2026-06-01T16:00:00Z").with(|scene| scene.account.cards = vec![Ok(saved("2026-06"))]);
        let mut world = scene.world();
        let mut ids = 1..;
        let mut tell = |mut command: crate::command::Command, now: &str| {
            command.reference.key.id = format!("cmd-{}", ids.next().unwrap()).as_str().try_into().unwrap();
            world.apply(&Task::Command(command), instant(now))
        };
        let (first, second) = ("2026-06-01T16:00:00Z", "2026-06-25T16:00:00Z");
        assert_eq!(tell(card_expiry("2026-06"), first), TaskOutcome::Applied);
        assert_eq!(tell(card_expiry("2026-06"), first), TaskOutcome::Unchanged, "another command, the same notice");
        assert_eq!(tell(card_expiry("2026-07"), first), TaskOutcome::Applied, "another month");
        assert_eq!(tell(card_expiry("2026-06"), second), TaskOutcome::Applied, "another lead time");
        let mut other = card_expiry("2026-06");
        if let CommandBody::CardExpiry(data) = &mut other.body {
            data.card.id = "card-2".try_into().unwrap();
        }
        assert_eq!(tell(other, first), TaskOutcome::Applied, "another card");
        let sweep = Task::CardNotice("acc-1".try_into().unwrap(), "card-1".try_into().unwrap());
        assert_eq!(world.apply(&sweep, instant(first)), TaskOutcome::Unchanged, "given for a command already");
        assert_eq!(world.apply(&sweep, instant(second)), TaskOutcome::Unchanged);
        let notices = world.changed_accounts().flat_map(|account| &account.records);
        assert_eq!(notices.count(), 4);
    }

    /// Time gives the notices of the lead times, each on its day in the organization's calendar, and no other.
    #[test]
    fn as_time_passes() {
        #[track_caller]
        fn check(now: &str, expected: &str) {
            let scene = at(now).with(|scene| scene.account.cards = vec![Ok(saved("2026-06"))]);
            let told = time_passes(&scene);
            let given = told.account.map_or("none".into(), |draft| format!("{:?}", draft.records[0].kind));
            assert_eq!(given, expected);
        }
        check("2026-05-31T03:59:59Z", "none"); // 31 days: it is still the 30th in Montréal
        check("2026-05-31T04:00:00Z", "Days(30)");
        check("2026-06-25T03:59:59Z", "Days(30)");
        check("2026-06-25T04:00:00Z", "Days(5)");
        check("2026-07-01T03:59:59Z", "Days(5)"); // the last day of its month
        check("2026-07-01T04:00:00Z", "none"); // it has expired, and nobody asked
    }

    #[test]
    fn what_time_has_nothing_to_say_about() {
        assert_eq!(time_passes(&at("2026-06-25T16:00:00Z")).cell(), "unchanged", "a card that is not saved");
        let no_lead_times = at("2026-06-25T16:00:00Z").with(|scene| {
            scene.account.cards = vec![Ok(saved("2026-06"))];
            scene.organization.card_notice_days = Ok(vec![]);
        });
        assert_eq!(time_passes(&no_lead_times).cell(), "unchanged");
        assert_eq!(no_lead_times.tell(&card_expiry("2026-06")).cell(), "notice given", "a command has");
    }

    /// Commands with ever new card ids neither get emails without end nor push out the notices of real cards.
    #[test]
    fn an_account_remembers_a_bounded_number_of_notices() {
        use crate::account::CARD_NOTICES_MAX;
        let mut world =
            at("2026-06-01T16:00:00Z").with(|scene| scene.account.cards = vec![Ok(saved("2026-06"))]).world();
        let card = |at: usize| {
            let mut command = card_expiry("2026-06");
            command.reference.key.id = format!("cmd-{at}").as_str().try_into().unwrap();
            if let CommandBody::CardExpiry(data) = &mut command.body {
                data.card.id = format!("card-{at}").as_str().try_into().unwrap();
            }
            Task::Command(command)
        };
        let now = instant("2026-06-01T16:00:00Z");
        let verdicts = (0..CARD_NOTICES_MAX).map(|at| world.apply(&card(at), now)).collect::<Vec<_>>();
        assert!(verdicts.iter().all(|verdict| *verdict == TaskOutcome::Applied));
        assert_eq!(world.apply(&card(CARD_NOTICES_MAX), now), TaskOutcome::Unchanged);
        assert_eq!(world.apply(&card(0), now), TaskOutcome::Unchanged, "the first is still remembered");
        // Once they are forgotten there is room again.
        let mut other = card_expiry("2026-12");
        other.reference.key.id = "later".try_into().unwrap();
        assert_eq!(world.apply(&Task::Command(other), instant("2026-10-01T16:00:00Z")), TaskOutcome::Applied);
        let notices = world.changed_accounts().next().unwrap().after.card_notices.clone().unwrap();
        assert_eq!(notices.len(), 1);
    }

    #[test]
    fn notices_are_forgotten_by_month() {
        let notice = |kind| CardNotice {
            card_id: "card-1".try_into().unwrap(),
            expires: month("2026-06"),
            kind,
            at: instant("2026-07-10T16:00:00Z"),
        };
        for (kind, until) in [
            (NoticeKind::Early, "2026-08-30"),
            (NoticeKind::Days(30), "2026-08-30"),
            (NoticeKind::Expired, "2027-08-10"),
        ] {
            assert!(!notice(kind).is_forgotten(date(until)), "{kind:?}");
            assert!(notice(kind).is_forgotten(date(until).succ_opt().unwrap()), "{kind:?}");
        }
    }

    /// A malformed card is that card's trouble.
    #[test]
    fn a_malformed_card_beside_a_good_one() {
        let malformed = || Err(crate::field::Malformed("bad".into()));
        let now = "2026-06-25T16:00:00Z";
        let beside = at(now).with(|scene| scene.account.cards = vec![malformed(), Ok(saved("2026-06"))]);
        assert_eq!(time_passes(&beside).cell(), "notice given");
        let alone = at(now).with(|scene| scene.account.cards = vec![malformed()]);
        assert_eq!(time_passes(&alone).cell(), "corrupt: bad", "it may be the one");
    }

    #[test]
    fn found_then_organization() {
        let command = card_expiry("2026-06");
        let foreign = scene(Status::Active).with(|scene| scene.account.organization_id = "org-2".try_into().unwrap());
        assert_eq!(foreign.tell(&command).cell(), "wrong_organization");
        let elsewhere = scene(Status::Active).with(|scene| scene.account.id = "acc-2".try_into().unwrap());
        assert_eq!(elsewhere.tell(&command).cell(), "account_not_found");
        let orphan = scene(Status::Active).with(|scene| scene.organization.id = "org-9".try_into().unwrap());
        assert_eq!(orphan.tell(&command).cell(), "missing organization");
    }
}
