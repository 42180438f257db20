//! A notice about a saved card that becomes due as time passes.

use crate::account::{Account, NoticeKind};
use crate::card::Card;
use crate::command::card_expiry;
use crate::decision::{Context, Decision, NoticeGiven};
use crate::field::Field;

/// Gives the notice that is due for a saved card, unless it was given before. Only the lead times of the organization count: without a
/// command, nobody is notified of a card that has expired, or that expires later than every lead time.
///
/// # Errors
/// When a field that the notice needs cannot be read.
pub fn notice_due(account: &Account, card: &Card, context: &Context<'_>) -> Field<Option<NoticeGiven>> {
    let today = context.organization.date_at(context.now)?;
    match NoticeKind::due(card.expires, today, &context.organization.card_notice_days.clone()?) {
        NoticeKind::Days(_) => Ok(match card_expiry::decide(account, card, context)? {
            Decision::Applied(given) => Some(given),
            Decision::Unchanged => None,
        }),
        NoticeKind::Early | NoticeKind::Expired => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use crate::card::Card;
    use crate::command::CommandBody;
    use crate::subscription::Status;
    use crate::testing::*;
    use crate::unit_of_work::Task;

    /// The notices that are due 30 and 5 days before the end.
    fn at(now: &str) -> Scene {
        scene(Status::Active).with(|scene| scene.now = instant(now))
    }

    fn saved(expires: &str) -> Card {
        let CommandBody::CardExpiry(data) = card_expiry(expires).body else { unreachable!() };
        data.card
    }

    fn time_passes(scene: &Scene) -> Applied {
        scene.apply(&Task::CardNotice("acc-1".try_into().unwrap(), "card-1".try_into().unwrap()))
    }

    /// Time gives the notices of the lead times, each on its day in the organization's calendar, and no other.
    #[test]
    fn as_time_passes() {
        #[track_caller]
        fn check(now: &str, expected: &str) {
            let scene = at(now).with(|scene| scene.account.cards = vec![Ok(saved("2026-06"))]);
            let applied = time_passes(&scene);
            let given = applied.account.map_or("none".into(), |draft| format!("{:?}", draft.records[0].kind));
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
        assert_eq!(no_lead_times.decide(&card_expiry("2026-06")).cell(), "notice given", "a command has");
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
}
