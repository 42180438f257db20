//! The rule table, a row per command and a column per status (`docs/rules/commands.md`), and the order of the checks.
//!
//! What a command entails (dates, emails, events, records) is tested beside the command.

use serde_json::json;

use crate::command::{Command, CommandBody, SubscriptionCommand};
use crate::command_ref::AppliedCommand;
use crate::field::{Field, Malformed};
use crate::organization::ClientCancellation;
use crate::subscription::{Details, Status};
use crate::testing::*;
use crate::unit_of_work::{LoadedDocument, Task, TaskOutcome, UnitOfWork};

const REQUESTED: &str = "cancellation_requested";
const SCHEDULED: &str = "cancellation_scheduled";
const ENDED: &str = "already_ended";

/// One row: active, requested, scheduled (last day 14 August), and all three that are over.
#[track_caller]
fn check_row(command: &Command, expected: [&str; 4]) {
    let [active, requested, scheduled, over] = expected;
    check_cell(Status::Active, command, active);
    check_cell(Status::CancellationRequested, command, requested);
    check_cell(Status::CancellationScheduled, command, scheduled);
    for status in [Status::Cancelled, Status::Expired, Status::Removed] {
        check_cell(status, command, over);
    }
}

#[track_caller]
fn check_cell(status: Status, command: &Command, expected: &str) {
    check(&scene(status), command, expected);
}

#[track_caller]
fn check(scene: &Scene, command: &Command, expected: &str) {
    assert_eq!(scene.decide(command).cell(), expected, "{command:?} on {}", scene.subscription.status.as_str());
}

#[test]
fn admin_cancels_from_purchases() {
    check_row(&purchases(""), [SCHEDULED, SCHEDULED, SCHEDULED, ENDED]);
    check_row(&purchases("2026-07"), [SCHEDULED, SCHEDULED, SCHEDULED, ENDED]);
    check_row(&purchases("2026-08"), [SCHEDULED, SCHEDULED, "unchanged", ENDED]);
    check_row(&purchases("2026-09"), [SCHEDULED, SCHEDULED, "later_than_scheduled", ENDED]);
}

#[test]
fn admin_cancels_from_invoice() {
    check_row(&invoice("inv-may"), ["removed", "removed", "removed", ENDED]);
}

#[test]
fn client_cancels() {
    check_row(&account(), [SCHEDULED, SCHEDULED, SCHEDULED, ENDED]);
    let ends = |ends_on: &str| {
        let ends_on = date(ends_on);
        scene(Status::CancellationScheduled)
            .with_details(|details| details.end.as_mut().unwrap().as_mut().unwrap().ends_on = ends_on)
    };
    check(&ends("2026-06-15"), &account(), SCHEDULED);
    check(&ends("2026-06-14"), &account(), "unchanged");
    check(&ends("2026-06-13"), &account(), "later_than_scheduled");
}

#[test]
fn client_asks() {
    check_row(&request(), [REQUESTED, "unchanged", "already_scheduled", ENDED]);
}

#[test]
fn admin_confirms() {
    check_row(&accept(""), ["no_pending_request", SCHEDULED, "already_scheduled", ENDED]);
    check_row(&accept("2026-07-15"), ["no_pending_request", SCHEDULED, "already_scheduled", ENDED]);
    check_row(&decline(), ["no_pending_request", "active", "already_scheduled", ENDED]);
}

#[test]
fn payment_fails() {
    check_cell(Status::Active, &payment_failure(), "active");
    check_cell(Status::CancellationRequested, &payment_failure(), REQUESTED);
    check_cell(Status::CancellationScheduled, &payment_failure(), SCHEDULED);
    check_cell(Status::Cancelled, &payment_failure(), "cancelled");
    check_cell(Status::Expired, &payment_failure(), "expired");
    check_cell(Status::Removed, &payment_failure(), ENDED);
}

/// A command of every kind and variant that is about a subscription.
fn every_subscription_command() -> Vec<Command> {
    vec![
        purchases(""),
        purchases("2026-07"),
        invoice("inv-may"),
        account(),
        request(),
        accept(""),
        decline(),
        payment_failure(),
    ]
}

/// Breaks one check after the other, from the last to the first: each time the new one is the answer.
mod order {
    use super::*;

    /// A command whose sender is of another kind than the one it needs.
    fn by(actor: &serde_json::Value, command_kind: &str, mut data: serde_json::Value) -> Command {
        data["actor"] = actor.clone();
        command(command_kind, data)
    }

    #[test]
    fn found_then_organization_then_everything_else() {
        for command in every_subscription_command() {
            for status in [Status::Active, Status::Removed] {
                let foreign = scene(status).with(|scene| {
                    // Wrong in every other way too: another account, no policy, nothing left to cancel.
                    scene.subscription.organization_id = "org-2".try_into().unwrap();
                    scene.subscription.account_id = "acc-9".try_into().unwrap();
                });
                let applied = foreign.decide(&command);
                assert_eq!(applied.cell(), "wrong_organization");
                let TaskOutcome::Rejected(rejected) = applied.verdict else { unreachable!() };
                assert_eq!(rejected.account_id, None, "a stranger does not learn whose it is");
                assert!(!rejected.rejection.detail.contains("org-2"), "nor whom it belongs to");
            }
            let nothing = &mut UnitOfWork::default();
            let TaskOutcome::Rejected(rejected) = nothing.apply(&Task::Command(command), now()) else { panic!() };
            assert_eq!(rejected.rejection.reason.as_str(), "subscription_not_found");
        }
    }

    /// Even of a document that was sent before, and of one that nobody can read.
    #[test]
    fn organization_comes_before_everything_that_the_document_says() {
        let command = purchases("");
        let known = scene(Status::Active).with(|scene| {
            scene.subscription.organization_id = "org-2".try_into().unwrap();
            scene.subscription.applied.push(AppliedCommand { key: command.reference.key.clone(), unchanged: false });
        });
        check(&known, &command, "wrong_organization");

        let corrupt = |organization_id: Option<&str>| {
            let mut world = scene(Status::Active).world();
            let organization_id = organization_id.map(|id| id.try_into().unwrap());
            world.add_subscription(
                "sub-1".try_into().unwrap(),
                LoadedDocument::Corrupt { organization_id, error: "billing.day: 32".into() },
            );
            world.apply(&Task::Command(command.clone()), now())
        };
        assert_eq!(corrupt(Some("org-1")), TaskOutcome::Corrupt("billing.day: 32".into()));
        assert_eq!(corrupt(None), TaskOutcome::Corrupt("billing.day: 32".into()));
        assert!(matches!(corrupt(Some("org-2")), TaskOutcome::Rejected(_)));
    }

    #[test]
    fn actor_before_status() {
        // Every status, so also those in which the command would be refused or change nothing.
        for status in [Status::Active, Status::CancellationRequested, Status::CancellationScheduled, Status::Cancelled]
            .into_iter()
            .chain([Status::Expired, Status::Removed])
        {
            let scene = scene(status);
            for actor in [client(), stranger()] {
                let data = json!({ "via": "purchases", "month": "2020-01" });
                check(&scene, &by(&actor, "subscription.cancellation", data), "forbidden");
                let data = json!({ "via": "invoice", "invoice_id": "inv-old" });
                check(&scene, &by(&actor, "subscription.cancellation", data), "forbidden");
                let data = json!({ "decision": "accept", "final_billing_date": "2020-01-01" });
                check(&scene, &by(&actor, "subscription.cancellation-confirmation", data), "forbidden");
                let data = json!({ "decision": "decline" });
                check(&scene, &by(&actor, "subscription.cancellation-confirmation", data), "forbidden");
            }
            for actor in [admin(), stranger()] {
                check(&scene, &by(&actor, "subscription.cancellation", json!({ "via": "account" })), "forbidden");
                check(&scene, &by(&actor, "subscription.cancellation-request", json!({})), "forbidden");
            }
        }
    }

    #[test]
    fn role_then_policy_then_status() {
        let asks = |status| {
            scene(status).with(|scene| scene.organization.client_cancellation = Ok(ClientCancellation::Request))
        };
        for status in [Status::Active, Status::CancellationScheduled, Status::Cancelled, Status::Removed] {
            let stranger = by(&stranger(), "subscription.cancellation", json!({ "via": "account" }));
            check(&asks(status), &stranger, "forbidden");
            check(&asks(status), &account(), "request_required");
        }
        // A request is taken under either policy, and an admin is not bound by it.
        check(&asks(Status::Active), &request(), REQUESTED);
        check(&asks(Status::Active), &purchases(""), SCHEDULED);
    }

    #[test]
    fn status_before_invoice_and_dates() {
        for status in [Status::Cancelled, Status::Expired, Status::Removed] {
            check_cell(status, &invoice("inv-old"), ENDED);
            check_cell(status, &purchases("2020-01"), ENDED);
            check_cell(status, &accept("2020-01-01"), ENDED);
        }
        check_cell(Status::Active, &accept("2020-01-01"), "no_pending_request");
        check_cell(Status::CancellationScheduled, &accept("2020-01-01"), "already_scheduled");
    }

    #[test]
    fn the_invoice() {
        for status in [Status::Active, Status::CancellationRequested, Status::CancellationScheduled] {
            check_cell(status, &invoice("inv-april"), "not_last_invoice");
            let none = scene(status).with_details(|details| details.last_invoice_id = Ok(None));
            check(&none, &invoice("inv-may"), "not_last_invoice");
        }
    }

    /// Month, then natural end, then the end that is scheduled. The natural end is 14 July, the scheduled one 14 August.
    #[test]
    fn month_then_natural_end_then_scheduled_end() {
        let expires = |status| scene(status).with_details(|details| details.expires_on = Ok(Some(date("2026-06-20"))));
        for status in [Status::Active, Status::CancellationRequested, Status::CancellationScheduled] {
            check(&expires(status), &purchases("2026-05"), "month_already_invoiced");
            check(&expires(status), &purchases("2026-06"), SCHEDULED);
            check(&expires(status), &purchases("2026-07"), SCHEDULED);
            check(&expires(status), &purchases("2026-08"), "expires_earlier");
            check(&expires(status), &purchases("2026-09"), "expires_earlier");
        }
        // The month comes first even where it would end later than the natural end.
        let long_over =
            |status| scene(status).with_details(|details| details.expires_on = Ok(Some(date("2025-01-01"))));
        check(&long_over(Status::Active), &purchases("2026-05"), "month_already_invoiced");
        check(&long_over(Status::Active), &purchases(""), "expires_earlier");
        check(&long_over(Status::Active), &account(), "expires_earlier");
        check(&long_over(Status::CancellationRequested), &accept(""), "expires_earlier");
    }

    #[test]
    fn final_billing_date_then_natural_end() {
        let requested = scene(Status::CancellationRequested);
        check(&requested, &accept("2026-05-15"), SCHEDULED);
        check(&requested, &accept("2026-06-15"), SCHEDULED);
        check(&requested, &accept("2026-06-16"), "not_a_billing_date");
        check(&requested, &accept("2020-01-01"), "not_a_billing_date");
        check(&requested, &accept("2026-04-15"), "final_billing_date_passed");
        let expires = requested.with_details(|details| details.expires_on = Ok(Some(date("2026-06-20"))));
        check(&expires, &accept("2026-06-15"), SCHEDULED);
        check(&expires, &accept("2026-07-15"), "expires_earlier");
        check(&expires, &accept("2026-07-16"), "not_a_billing_date");
        check(&expires, &accept("2026-04-15"), "final_billing_date_passed");
    }
}

/// A refusal is read by people, so it names what was asked and what would have done.
#[test]
fn refusals_say_why() {
    #[track_caller]
    fn check(status: Status, command: &Command, expected: &str) {
        assert_eq!(scene(status).decide(command).detail(), expected);
    }
    check(
        Status::Active,
        &purchases("2026-05"),
        "The next invoice is that of 2026-06-15, so 2026-06 is the earliest month of cancellation; 2026-05 was chosen.",
    );
    check(
        Status::CancellationScheduled,
        &purchases("2026-09"),
        "The last day of access is 2026-08-14 and can only be moved earlier; 2026-09-14 would be later.",
    );
    check(
        Status::Active,
        &invoice("inv-april"),
        "Only the newest invoice, inv-may, can be cancelled together with the subscription; inv-april was named.",
    );
    check(
        Status::CancellationRequested,
        &accept("2026-06-16"),
        "2026-06-16 is not a billing date; the subscription is billed on 2026-06-15 and 2026-07-15.",
    );
    check(
        Status::CancellationRequested,
        &accept("2026-04-15"),
        "The billing date before the next invoice is 2026-05-15, so the last invoice cannot be that of 2026-04-15.",
    );
    check(Status::Cancelled, &account(), "The subscription is over: cancelled on 2026-04-14.");
    check(
        Status::CancellationScheduled,
        &request(),
        "The subscription is cancelled already; its last day of access is 2026-08-14.",
    );
}

/// What is missing behind a document that was found is nobody's refusal.
#[test]
fn missing_organization_or_account() {
    let scene = scene(Status::Active);
    let task = Task::Command(purchases(""));
    let mut no_organization = UnitOfWork::default();
    no_organization.add_subscription(scene.subscription.id.clone(), LoadedDocument::Read(scene.subscription.clone()));
    no_organization.add_account(scene.account.id.clone(), LoadedDocument::Read(scene.account.clone()));
    let TaskOutcome::Missing(missing) = no_organization.apply(&task, now()) else { panic!() };
    assert_eq!(missing.to_string(), "organizations org-1: does not exist, but subscriptions sub-1 refers to it");
    let mut no_account = UnitOfWork::default();
    no_account.add_subscription(scene.subscription.id.clone(), LoadedDocument::Read(scene.subscription.clone()));
    no_account.add_organization(scene.organization.id.clone(), LoadedDocument::Read(scene.organization.clone()));
    let TaskOutcome::Missing(missing) = no_account.apply(&task, now()) else { panic!() };
    assert_eq!(missing.to_string(), "accounts acc-1: does not exist, but subscriptions sub-1 refers to it");
}

/// A last invoice before the next one is the newest that exists, and there may be none.
#[test]
fn the_last_invoice_exists() {
    #[track_caller]
    fn check(status: Status, command: &Command, last: (Option<&str>, Option<&str>), expected: Option<&str>) {
        let (last_on, last_invoice_id) = last;
        let scene = scene(status).with_details(|details| {
            details.last_on = Ok(last_on.map(date));
            details.last_invoice_id = Ok(last_invoice_id.map(|id| id.try_into().unwrap()));
        });
        let applied = scene.decide(command);
        let draft = applied.subscription.unwrap_or_else(|| panic!("{:?}", applied.verdict));
        let end = draft.after.details.unwrap().end.unwrap().unwrap();
        assert_eq!(end.final_billing_on, expected.map(date), "the document's");
        let effects = &draft.effects[0];
        let event = effects.events[0].data();
        assert_eq!(event.get("final_billing_on"), expected.map(|date| json!(date)).as_ref(), "the event's");
        assert_eq!(effects.notifications[0].facts.final_billing_on, expected.map(date), "the email's");
    }
    // The next invoice is that of 15 June.
    for (status, command) in [
        (Status::Active, purchases("")),
        (Status::Active, purchases("2026-06")),
        (Status::Active, account()),
        (Status::CancellationRequested, accept("")),
        (Status::CancellationRequested, accept("2026-05-15")),
    ] {
        check(status, &command, (Some("2026-05-15"), Some("inv-may")), Some("2026-05-15"));
        check(status, &command, (Some("2026-05-20"), Some("inv-may")), Some("2026-05-20"));
        check(status, &command, (Some("2026-02-15"), None), Some("2026-02-15"));
        check(status, &command, (None, Some("inv-may")), Some("2026-05-15"));
        check(status, &command, (None, None), None);
    }
    // One that is still to come is computed, whatever there was.
    for (status, command) in
        [(Status::Active, purchases("2026-07")), (Status::CancellationRequested, accept("2026-06-15"))]
    {
        check(status, &command, (Some("2026-05-20"), Some("inv-may")), Some("2026-06-15"));
        check(status, &command, (None, None), Some("2026-06-15"));
    }
}

#[test]
fn an_account_of_another_organization_is_a_corrupt_document() {
    let scene = scene(Status::Active).with(|scene| scene.account.organization_id = "org-2".try_into().unwrap());
    let expected = "corrupt: subscriptions sub-1: account_id: account acc-1 belongs to another organization";
    for command in every_subscription_command() {
        check(&scene, &command, expected);
    }
}

/// A live subscription without a next invoice is never decided on; one that is over has none.
#[test]
fn a_live_subscription_has_a_next_invoice() {
    let without = |status| scene(status).with_details(|details| details.next_on = Ok(None));
    let expected = "corrupt: subscriptions sub-1: billing.next_on: missing, though the subscription is active";
    for command in every_subscription_command() {
        check(&without(Status::Active), &command, expected);
    }
    check(&without(Status::Cancelled), &payment_failure(), "cancelled");
}

/// Every kind of decision, those about subscriptions first.
const DECISIONS: [&str; 13] = [
    "purchases",
    "month",
    "invoice",
    "account",
    "request",
    "accept",
    "accept with a date",
    "decline",
    "payment",
    "payment with a next attempt",
    "card",
    "end",
    "expire",
];

/// The decision of this kind that is applied if nothing is wrong.
fn decide_with(kind: &str, spoil: impl Fn(&mut Scene)) -> TaskOutcome {
    let status = match kind {
        "accept" | "accept with a date" | "decline" => Status::CancellationRequested,
        "end" => Status::CancellationScheduled,
        _ => Status::Active,
    };
    let scene = scene(status).with(|scene| {
        let CommandBody::CardExpiry(data) = card_expiry("2026-06").body else { unreachable!() };
        scene.account.cards = vec![Ok(data.card)];
        spoil(scene);
    });
    let mut payment = payment_failure();
    if let CommandBody::Subscription(SubscriptionCommand::PaymentFailure(data)) = &mut payment.body
        && kind == "payment with a next attempt"
    {
        data.next_attempt_on = Some(date("2026-06-04"));
    }
    let applied = match kind {
        "purchases" => scene.decide(&purchases("")),
        "month" => scene.decide(&purchases("2026-07")),
        "invoice" => scene.decide(&invoice("inv-may")),
        "account" => scene.decide(&account()),
        "request" => scene.decide(&request()),
        "accept" => scene.decide(&accept("")),
        "accept with a date" => scene.decide(&accept("2026-06-15")),
        "decline" => scene.decide(&decline()),
        "payment" | "payment with a next attempt" => scene.decide(&payment),
        "card" => scene.decide(&card_expiry("2026-06")),
        "end" => scene.with(|scene| scene.now = instant("2027-01-01T00:00:00Z")).lapse(),
        _ => {
            let expires = |details: &mut Details| {
                if details.expires_on.is_ok() {
                    details.expires_on = Ok(Some(date("2026-01-01")));
                }
            };
            scene.with_details(expires).lapse()
        }
    };
    applied.verdict
}

/// A decision depends only on the fields that it uses.
#[test]
fn a_malformed_field_stops_only_what_needs_it() {
    const ABOUT_SUBSCRIPTIONS: &[&str] = DECISIONS.first_chunk::<10>().unwrap();
    const SCHEDULES: [&str; 5] = ["purchases", "month", "account", "accept", "accept with a date"];

    fn bad<T>() -> Field<T> {
        Err(Malformed("bad".to_owned()))
    }
    #[track_caller]
    fn check(field: &str, spoil: impl Fn(&mut Scene), needed_by: &[&str]) {
        let is_stopped = |kind: &&str| match decide_with(kind, &spoil) {
            TaskOutcome::Applied => false,
            TaskOutcome::Corrupt(sentence) => {
                assert_eq!(sentence, "bad", "{field}, {kind}");
                true
            }
            other => panic!("{field}, {kind}: {other:?}"),
        };
        let stopped: Vec<&str> = DECISIONS.into_iter().filter(is_stopped).collect();
        assert_eq!(stopped, needed_by, "{field}");
    }
    fn of(spoil: impl Fn(&mut Details)) -> impl Fn(&mut Scene) {
        move |scene| spoil(scene.subscription.details.as_mut().unwrap())
    }

    check("nothing", |_| {}, &[]);
    let emails = [ABOUT_SUBSCRIPTIONS, &["card"]].concat();
    check("organization name", |scene| scene.organization.name = bad(), &emails);
    check("contact", |scene| scene.organization.contact = bad(), &emails);
    check("manager", |scene| scene.account.manager = bad(), &emails);
    let zones: Vec<&str> = DECISIONS.into_iter().filter(|kind| !["payment", "end"].contains(kind)).collect();
    check("timezone", |scene| scene.organization.timezone = bad(), &zones);
    check("client_cancellation", |scene| scene.organization.client_cancellation = bad(), &["account"]);
    let own = |scene: &mut Scene| scene.organization.notify_client_of_own_actions = bad();
    check("notify_client_of_own_actions", own, &["account", "request"]);
    check("card_notice_days", |scene| scene.organization.card_notice_days = bad(), &["card"]);
    check("cards", |scene| scene.account.cards = vec![bad()], &[]);
    check("card_notices", |scene| scene.account.card_notices = bad(), &["card"]);
    check("participant", of(|details| details.participant = bad()), ABOUT_SUBSCRIPTIONS);
    check("plan", of(|details| details.plan = bad()), ABOUT_SUBSCRIPTIONS);
    check("billing mode", of(|details| details.billing_mode = bad()), &["month"]);
    check("billing day", of(|details| details.billing_day = bad()), &["month", "accept with a date", "expire"]);
    check("next_on", of(|details| details.next_on = bad()), ABOUT_SUBSCRIPTIONS);
    check("last_on", of(|details| details.last_on = bad()), &["purchases", "account", "accept"]);
    check("last_invoice_id", of(|details| details.last_invoice_id = bad()), &["invoice"]);
    // Without `last_on`, the date of the last invoice is computed.
    let computed = |details: &mut Details| {
        details.last_on = Ok(None);
        details.billing_day = bad();
    };
    let day = ["purchases", "month", "account", "accept", "accept with a date", "expire"];
    check("billing day, without last_on", of(computed), &day);
    let nothing_known = |details: &mut Details| {
        details.last_on = Ok(None);
        details.last_invoice_id = bad();
    };
    check("last_invoice_id, without last_on", of(nothing_known), &["purchases", "invoice", "account", "accept"]);
    check("expires_on", of(|details| details.expires_on = bad()), &[&SCHEDULES[..], &["expire"]].concat());
    check("activities", of(|details| details.activities = bad()), &["invoice", "end", "expire"]);
    check(
        "end",
        of(|details| details.end = bad()),
        &[&SCHEDULES[..], &["payment", "payment with a next attempt", "end"]].concat(),
    );
    check("request", of(|details| details.request = bad()), &["accept", "accept with a date", "decline"]);
}
