//! `card.expiry`: a saved card is about to expire, or has expired. There is one notice per card, expiry month and lead time, whether a
//! command or the calendar causes it.

use schemars::JsonSchema;
use serde::Deserialize;

use crate::account::{Account, CARD_NOTICES_MAX, CardNotice, NoticeKind};
use crate::card::Card;
use crate::decision::{Context, Decision, NoticeGiven};
use crate::event::{CardExpiring, Event};
use crate::facts::{CardFacts, Facts};
use crate::field::Field;
use crate::ids::{AccountId, OrganizationId};
use crate::notification::Template;
use crate::strict_json::object;

/// `card.expiry`
#[derive(Clone, Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CardExpiry {
    /// The organization in whose name the command is sent.
    pub organization_id: OrganizationId,
    /// The account that holds the card.
    pub account_id: AccountId,
    /// The card.
    #[serde(deserialize_with = "object")]
    pub card: Card,
}

/// The rule: gives the notice that is due, unless it was given before.
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
    }
    .with_card_page(context.organization, account, Some(&card.id));
    let notifications = context.emails_to_both(Template::CardExpiring, &facts)?;
    let event = Event::CardExpiring(CardExpiring {
        organization_id: account.organization_id.clone(),
        account_id: account.id.clone(),
        card: card.clone(),
        expired: notice.kind == NoticeKind::Expired,
        lead_days: match notice.kind {
            NoticeKind::Days(days) => Some(days),
            NoticeKind::Early | NoticeKind::Expired => None,
        },
    });
    Ok(Decision::Applied(NoticeGiven { notice, notifications, event }))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::account::{CARD_NOTICES_MAX, CardNotice, NoticeKind};
    use crate::card::Card;
    use crate::command::CommandBody;
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

    #[test]
    fn about_to_expire() {
        assert_outcome(
            &at("2026-06-01T16:00:00Z").decide(&card_expiry("2026-06")),
            "
            notice: card-1 2026-06 Days(30)
            email card-expiring to organization_contact and account_manager
            card.brand: Visa, card.last4: 4242, card.expires: 2026-06, card.expired: false
            event card.expiring
            card.id: card-1, card.brand: Visa, card.last4: 4242, card.expires: 2026-06, expired: false, lead_days: 30
        ",
        );
    }

    #[test]
    fn expired() {
        assert_outcome(
            &at("2026-07-01T04:00:00Z").decide(&card_expiry("2026-06")),
            "
            notice: card-1 2026-06 Expired
            email card-expiring to organization_contact and account_manager
            card.brand: Visa, card.last4: 4242, card.expires: 2026-06, card.expired: true
            event card.expiring
            card.id: card-1, card.brand: Visa, card.last4: 4242, card.expires: 2026-06, expired: true
        ",
        );
    }

    /// However many commands and sweeps ask for it: the same card, month and lead time give one notice.
    #[test]
    fn one_notice_per_card_month_and_lead_time() {
        let scene = at("2026-06-01T16:00:00Z").with(|scene| scene.account.cards = vec![Ok(saved("2026-06"))]);
        let mut world = scene.world();
        let mut ids = 1..;
        let mut decide = |mut command: crate::command::Command, now: &str| {
            command.reference.key.id = format!("cmd-{}", ids.next().unwrap()).as_str().try_into().unwrap();
            world.apply(&Task::Command(command), instant(now))
        };
        let (first, second) = ("2026-06-01T16:00:00Z", "2026-06-25T16:00:00Z");
        assert_eq!(decide(card_expiry("2026-06"), first), TaskOutcome::Applied);
        assert_eq!(decide(card_expiry("2026-06"), first), TaskOutcome::Unchanged, "another command, the same notice");
        assert_eq!(decide(card_expiry("2026-07"), first), TaskOutcome::Applied, "another month");
        assert_eq!(decide(card_expiry("2026-06"), second), TaskOutcome::Applied, "another lead time");
        let mut other = card_expiry("2026-06");
        if let CommandBody::CardExpiry(data) = &mut other.body {
            data.card.id = "card-2".try_into().unwrap();
        }
        assert_eq!(decide(other, first), TaskOutcome::Applied, "another card");
        let sweep = Task::CardNotice("acc-1".try_into().unwrap(), "card-1".try_into().unwrap());
        assert_eq!(world.apply(&sweep, instant(first)), TaskOutcome::Unchanged, "given for a command already");
        assert_eq!(world.apply(&sweep, instant(second)), TaskOutcome::Unchanged);
        let notices = world.changed_accounts().flat_map(|account| &account.records);
        assert_eq!(notices.count(), 4);
    }

    /// Commands with ever new card ids neither cause emails without end nor push out the notices of real cards.
    #[test]
    fn an_account_remembers_a_bounded_number_of_notices() {
        let now = instant("2026-06-01T16:00:00Z");
        let card_id = |number: usize| format!("card-{number}").as_str().try_into().unwrap();
        let remembered = |number| CardNotice {
            card_id: card_id(number),
            expires: month("2026-06"),
            kind: NoticeKind::Days(30),
            at: now,
        };
        let notices = (2..CARD_NOTICES_MAX).map(remembered).collect();
        let mut unit_of_work =
            at("2026-06-01T16:00:00Z").with(|scene| scene.account.card_notices = Ok(notices)).world();
        let mut apply = |number: usize| {
            let mut command = card_expiry("2026-06");
            command.reference.key.id = format!("cmd-{number}").as_str().try_into().unwrap();
            if let CommandBody::CardExpiry(data) = &mut command.body {
                data.card.id = card_id(number);
            }
            unit_of_work.apply(&Task::Command(command), now)
        };
        assert_eq!(apply(0), TaskOutcome::Applied);
        assert_eq!(apply(1), TaskOutcome::Applied);
        assert_eq!(apply(CARD_NOTICES_MAX), TaskOutcome::Unchanged, "as many as are remembered");
        assert_eq!(apply(CARD_NOTICES_MAX - 1), TaskOutcome::Unchanged, "the earliest are still remembered");
        // Once they are forgotten there is room again.
        let mut other = card_expiry("2026-12");
        other.reference.key.id = "later".try_into().unwrap();
        let later = instant("2026-10-01T16:00:00Z");
        assert_eq!(unit_of_work.apply(&Task::Command(other), later), TaskOutcome::Applied);
        let notices = unit_of_work.changed_accounts().next().unwrap().after.card_notices.clone().unwrap();
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

    #[test]
    fn found_then_organization() {
        let command = card_expiry("2026-06");
        let foreign = scene(Status::Active).with(|scene| scene.account.organization_id = "org-2".try_into().unwrap());
        assert_eq!(foreign.decide(&command).cell(), "wrong_organization");
        let elsewhere = scene(Status::Active).with(|scene| scene.account.id = "acc-2".try_into().unwrap());
        assert_eq!(elsewhere.decide(&command).cell(), "account_not_found");
        let orphan = scene(Status::Active).with(|scene| scene.organization.id = "org-9".try_into().unwrap());
        assert_eq!(orphan.decide(&command).cell(), "missing organization");
    }

    #[test]
    fn the_card_is_read() {
        let CommandBody::CardExpiry(data) = parse_message(&envelope("card.expiry", card_data())).unwrap().body else {
            panic!()
        };
        assert_eq!((data.account_id.as_str(), data.card.id.as_str()), ("acc-1", "card-1"));
        assert_eq!(data.card.expires, month("2026-06"));
    }

    #[test]
    fn invalid_fields_are_named() {
        let good = || envelope("card.expiry", card_data());
        check_invalid(
            good(),
            "/data/card/expires",
            json!("06/26"),
            r#"data.card.expires: `06/26` is not a month such as "2026-06""#,
        );
        check_invalid(good(), "/data/card/expires", absent(), "data.card: missing field `expires`");
        check_invalid(good(), "/data/card/id", absent(), "data.card: missing field `id`");
        check_invalid(
            good(),
            "/data/subscription_id",
            json!("sub-1"),
            "data.subscription_id: unknown field `subscription_id`, expected one of `organization_id`, `account_id`, `card`",
        );
        check_invalid(
            good(),
            "/data/actor",
            admin(),
            "data.actor: unknown field `actor`, expected one of `organization_id`, `account_id`, `card`",
        );
    }
}
