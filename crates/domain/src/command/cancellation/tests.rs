//! How the rules of a cancellation decide, and which commands are accepted.

use serde_json::{Value, json};

use super::CancellationVia;
use crate::actor::Actor;
use crate::command::SubscriptionCommand;
use crate::ids::{FreeText, InvoiceId};

use crate::subscription::Status;
use crate::testing::*;

#[track_caller]
fn check(scene: &Scene, command: &crate::command::Command, expected: &str) {
    assert_outcome(&scene.decide(command), expected);
}

#[test]
fn by_admin_with_a_month() {
    let month = json!({ "actor": admin(), "via": "purchases", "month": "2026-07", "reason": "blessure", "message": "à bientôt" });
    check(
        &scene(Status::Active),
        &command("subscription.cancellation", month),
        r#"
        active → cancellation_scheduled
        ends on 2026-07-14, over at 2026-07-15 04:00:00 UTC, last invoice 2026-06-15
        cancellation: by admin via purchases, "blessure", 2026-07, admin adm-1
        history: active → cancellation_scheduled, 2026-07-14, by admin adm-1, cmd-1
        email cancelled-by-admin to account_manager
        actor: Luc, ends_on: 2026-07-14, final_billing_on: 2026-06-15, next_billing_on: 2026-06-15,
          message: à bientôt
        event subscription.cancellation-scheduled
        by: admin, via: purchases, ends_on: 2026-07-14, ends_at: 2026-07-15T04:00:00.000Z, final_billing_on: 2026-06-15, reason: blessure
    "#,
    );
}

#[test]
fn by_admin_with_no_month() {
    check(
        &scene(Status::Active),
        &purchases(""),
        "
        active → cancellation_scheduled
        ends on 2026-06-14, over at 2026-06-15 04:00:00 UTC, last invoice 2026-05-15
        cancellation: by admin via purchases, no reason, no month, admin adm-1
        history: active → cancellation_scheduled, 2026-06-14, by admin adm-1, cmd-1
        email cancelled-by-admin to account_manager
          actor: Luc, ends_on: 2026-06-14, final_billing_on: 2026-05-15
        event subscription.cancellation-scheduled
          by: admin, via: purchases, ends_on: 2026-06-14, ends_at: 2026-06-15T04:00:00.000Z,
          final_billing_on: 2026-05-15
    ",
    );
}

#[test]
fn moved_earlier() {
    check(
        &scene(Status::CancellationScheduled),
        &purchases("2026-07"),
        "
        cancellation_scheduled → cancellation_scheduled
        ends on 2026-07-14, over at 2026-07-15 04:00:00 UTC, last invoice 2026-06-15
        cancellation: by admin via purchases, no reason, 2026-07, admin adm-1
        history: cancellation_scheduled → cancellation_scheduled, 2026-07-14, by admin adm-1, cmd-1
        email cancelled-by-admin to account_manager
          actor: Luc, ends_on: 2026-07-14, previous_ends_on: 2026-08-14, final_billing_on: 2026-06-15,
          next_billing_on: 2026-06-15
        event subscription.cancellation-scheduled
          by: admin, via: purchases, ends_on: 2026-07-14, ends_at: 2026-07-15T04:00:00.000Z,
          final_billing_on: 2026-06-15, previous_ends_on: 2026-08-14
    ",
    );
}

#[test]
fn a_request_that_is_open_is_superseded() {
    check(
        &scene(Status::CancellationRequested),
        &purchases(""),
        r#"
        cancellation_requested → cancellation_scheduled
        ends on 2026-06-14, over at 2026-06-15 04:00:00 UTC, last invoice 2026-05-15
        cancellation: by admin via purchases, no reason, no month, admin adm-1
        request: of 2026-05-28 01:30:00 UTC by client acc-1, "on déménage", superseded at 2026-06-01 16:00:00 UTC, no note
        history: cancellation_requested → cancellation_scheduled, 2026-06-14, by admin adm-1, cmd-1
        email cancelled-by-admin to account_manager
        actor: Luc, ends_on: 2026-06-14, final_billing_on: 2026-05-15, requested_on: 2026-05-27, superseded: true
        event subscription.cancellation-scheduled
        by: admin, via: purchases, ends_on: 2026-06-14, ends_at: 2026-06-15T04:00:00.000Z, final_billing_on: 2026-05-15
    "#,
    );
}

/// Billing stopped long ago, so the day before the next invoice is past.
#[test]
fn an_end_that_is_past() {
    let stopped = scene(Status::Active).with_details(|details| details.next_on = Ok(Some(date("2026-06-01"))));
    let facts = |scene: &Scene, command: &crate::command::Command| {
        scene.decide(command).subscription.unwrap().effects[0].notifications[0].facts.clone()
    };
    let past = facts(&stopped, &purchases(""));
    assert_eq!((past.ends_on, past.ended), (Some(date("2026-05-31")), true));
    let today = stopped.with_details(|details| details.next_on = Ok(Some(date("2026-06-02"))));
    let today = facts(&today, &account());
    assert_eq!((today.ends_on, today.ended), (Some(date("2026-06-01")), false), "the last day has not passed");
}

#[test]
fn a_request_that_is_closed_stays_as_it_was() {
    use crate::subscription::{Closed, RequestDecision};
    let declined = scene(Status::CancellationRequested).with(|scene| scene.subscription.status = Status::Active);
    let declined = declined.with_details(|details| {
        details.request.as_mut().unwrap().as_mut().unwrap().closed =
            Some(Closed { decided_at: now(), decision: RequestDecision::Decline, note: None });
    });
    check(
        &declined,
        &purchases(""),
        "
        active → cancellation_scheduled
        ends on 2026-06-14, over at 2026-06-15 04:00:00 UTC, last invoice 2026-05-15
        cancellation: by admin via purchases, no reason, no month, admin adm-1
        history: active → cancellation_scheduled, 2026-06-14, by admin adm-1, cmd-1
        email cancelled-by-admin to account_manager
          actor: Luc, ends_on: 2026-06-14, final_billing_on: 2026-05-15
        event subscription.cancellation-scheduled
          by: admin, via: purchases, ends_on: 2026-06-14, ends_at: 2026-06-15T04:00:00.000Z,
          final_billing_on: 2026-05-15
    ",
    );
}

#[test]
fn by_client() {
    check(
        &scene(Status::Active),
        &account(),
        "
        active → cancellation_scheduled
        ends on 2026-06-14, over at 2026-06-15 04:00:00 UTC, last invoice 2026-05-15
        cancellation: by client via account, no reason, no month, client acc-1
        history: active → cancellation_scheduled, 2026-06-14, by client acc-1, cmd-1
        email cancelled-by-client to organization_contact
          ends_on: 2026-06-14, final_billing_on: 2026-05-15
        event subscription.cancellation-scheduled
          by: client, via: account, ends_on: 2026-06-14, ends_at: 2026-06-15T04:00:00.000Z,
          final_billing_on: 2026-05-15
    ",
    );
}

#[test]
fn by_client_whom_the_organization_tells_too() {
    let both =
        scene(Status::CancellationRequested).with(|scene| scene.organization.notify_client_of_own_actions = Ok(true));
    check(
        &both,
        &account(),
        r#"
        cancellation_requested → cancellation_scheduled
        ends on 2026-06-14, over at 2026-06-15 04:00:00 UTC, last invoice 2026-05-15
        cancellation: by client via account, no reason, no month, client acc-1
        request: of 2026-05-28 01:30:00 UTC by client acc-1, "on déménage", superseded at 2026-06-01 16:00:00 UTC, no note
        history: cancellation_requested → cancellation_scheduled, 2026-06-14, by client acc-1, cmd-1
        email cancelled-by-client to organization_contact and account_manager
        ends_on: 2026-06-14, final_billing_on: 2026-05-15, requested_on: 2026-05-27, superseded: true
        event subscription.cancellation-scheduled
        by: client, via: account, ends_on: 2026-06-14, ends_at: 2026-06-15T04:00:00.000Z, final_billing_on: 2026-05-15
    "#,
    );
}

#[test]
fn by_client_before_the_end_that_an_admin_scheduled() {
    check(
        &scene(Status::CancellationScheduled),
        &account(),
        "
        cancellation_scheduled → cancellation_scheduled
        ends on 2026-06-14, over at 2026-06-15 04:00:00 UTC, last invoice 2026-05-15
        cancellation: by client via account, no reason, no month, client acc-1
        history: cancellation_scheduled → cancellation_scheduled, 2026-06-14, by client acc-1, cmd-1
        email cancelled-by-client to organization_contact
          ends_on: 2026-06-14, previous_ends_on: 2026-08-14, final_billing_on: 2026-05-15
        event subscription.cancellation-scheduled
          by: client, via: account, ends_on: 2026-06-14, ends_at: 2026-06-15T04:00:00.000Z,
          final_billing_on: 2026-05-15, previous_ends_on: 2026-08-14
    ",
    );
}

#[test]
fn from_the_newest_invoice() {
    check(
        &scene(Status::CancellationScheduled),
        &invoice("inv-may"),
        r#"
        cancellation_scheduled → removed
        ended on 2026-06-01
        details dropped
        history: cancellation_scheduled → removed, no last day, by admin adm-1, cmd-1
        email removed-by-admin to account_manager
        actor: Luc, removed_on: 2026-06-01, invoice_id: inv-may
        event subscription.removed
        invoice_id: inv-may, activities: [{"id":"a-1","name":"Longueurs"}]
    "#,
    );
}

#[test]
fn from_the_newest_invoice_with_a_refund() {
    let refund = json!({
        "actor": admin(), "via": "invoice", "invoice_id": "inv-may", "refund": true, "reason": "erreur", "message": "désolé",
    });
    check(
        &scene(Status::Active),
        &command("subscription.cancellation", refund),
        r#"
        active → removed
        ended on 2026-06-01
        details dropped
        history: active → removed, no last day, by admin adm-1, cmd-1
        email removed-by-admin to account_manager
        actor: Luc, removed_on: 2026-06-01, message: désolé, invoice_id: inv-may, refund: true
        event subscription.removed
        invoice_id: inv-may, refund: true, activities: [{"id":"a-1","name":"Longueurs"}]
    "#,
    );
}

#[test]
fn every_form_is_read() {
    use SubscriptionCommand::Cancellation;
    let actor = Actor::Admin { id: "adm-1".try_into().unwrap(), name: Some("Luc".try_into().unwrap()) };
    let Cancellation(data) = read_data("subscription.cancellation", json!({ "actor": admin(), "via": "purchases" }))
    else {
        panic!()
    };
    assert_eq!((data.organization_id.as_str(), data.subscription_id.as_str()), ("org-1", "sub-1"));
    assert_eq!((data.actor, data.reason), (actor, None));
    assert_eq!(data.via, CancellationVia::Purchases { month: None, message: None });

    let full =
        json!({ "actor": admin(), "via": "purchases", "month": "2026-06", "reason": "déménage", "message": "merci" });
    let Cancellation(data) = read_data("subscription.cancellation", full) else { panic!() };
    let message: Option<FreeText> = Some("merci".try_into().unwrap());
    assert_eq!(data.via, CancellationVia::Purchases { month: Some(month("2026-06")), message: message.clone() });
    assert_eq!(data.reason.unwrap().as_str(), "déménage");

    let minimal = json!({ "actor": admin(), "via": "invoice", "invoice_id": "inv-1" });
    let Cancellation(data) = read_data("subscription.cancellation", minimal) else { panic!() };
    let invoice_id: InvoiceId = "inv-1".try_into().unwrap();
    assert_eq!(data.via, CancellationVia::Invoice { invoice_id: invoice_id.clone(), refund: None, message: None });

    for refund in [true, false] {
        let full = json!({
            "actor": admin(), "via": "invoice", "invoice_id": "inv-1", "refund": refund, "reason": "", "message": "merci",
        });
        let Cancellation(data) = read_data("subscription.cancellation", full) else { panic!() };
        let (invoice_id, message) = (invoice_id.clone(), message.clone());
        assert_eq!(data.via, CancellationVia::Invoice { invoice_id, refund: Some(refund), message });
    }

    let full = json!({ "actor": client(), "via": "account", "reason": "trop loin" });
    let Cancellation(data) = read_data("subscription.cancellation", full) else { panic!() };
    assert_eq!(data.via, CancellationVia::Account);
    assert_eq!(data.actor, Actor::Client { account_id: "acc-1".try_into().unwrap(), name: None });
}

#[test]
fn invalid_fields_are_named() {
    let good =
        || envelope("subscription.cancellation", json!({ "actor": admin(), "via": "purchases", "month": "2026-06" }));
    check_invalid(good(), "/data/organization_id", absent(), "data: missing field `organization_id`");
    check_invalid(
        good(),
        "/data/organization_id",
        json!(null),
        "data.organization_id: invalid type: null, expected a string",
    );
    check_invalid(
        good(),
        "/data/subscription_id",
        json!(12),
        "data.subscription_id: invalid type: integer `12`, expected a string",
    );
    check_invalid(
        good(),
        "/data/subscription_id",
        json!("x".repeat(129)),
        "data.subscription_id: must be 1 to 128 characters long, is 129",
    );
    check_invalid(good(), "/data/actor", absent(), "data: missing field `actor`");
    check_invalid(good(), "/data/actor", json!("Luc"), r#"data.actor: invalid type: string "Luc", expected an object"#);
    check_invalid(good(), "/data/via", absent(), "data: missing field `via`");
    check_invalid(
        good(),
        "/data/via",
        json!("Purchases"),
        "data.via: unknown variant `Purchases`, expected one of `purchases`, `invoice`, `account`",
    );
    check_invalid(
        good(),
        "/data/monht",
        json!("2026-06"),
        "data.monht: unknown field `monht`, expected one of `organization_id`, `subscription_id`, `actor`, `via`, `reason`, `month`, `invoice_id`, `refund`, `message`",
    );
    check_invalid(good(), "/data/month", json!("2026-6"), r#"data.month: `2026-6` is not a month such as "2026-06""#);
    check_invalid(good(), "/data/month", json!("2026-13"), r#"data.month: `2026-13` is not a month such as "2026-06""#);
    check_invalid(
        good(),
        "/data/month",
        json!("2999-12"),
        "data.month: the year 2999 is outside 2000 to 2998; is it a date that was never set?",
    );
    check_invalid(
        good(),
        "/data/month",
        json!("2026-06-15"),
        r#"data.month: `2026-06-15` is not a month such as "2026-06""#,
    );
    check_invalid(good(), "/data/month", json!(6), "data.month: invalid type: integer `6`, expected a string");
    check_invalid(
        good(),
        "/data/reason",
        json!("é".repeat(2_001)),
        "data.reason: must be 0 to 2000 characters long, is 2001",
    );
    check_invalid(
        good(),
        "/data/message",
        json!("é".repeat(2_001)),
        "data.message: must be 0 to 2000 characters long, is 2001",
    );
    check_invalid(good(), "/data/reason", json!(["a"]), "data.reason: invalid type: sequence, expected a string");
}

#[test]
fn fields_of_another_via_are_unknown() {
    #[track_caller]
    fn with(data: Value, expected: &str) {
        check_invalid_bytes(envelope("subscription.cancellation", data).to_string().as_bytes(), expected);
    }
    with(
        json!({ "actor": client(), "via": "account", "month": "2026-06" }),
        r#"data: unknown field `month` (it goes with `via: "purchases"` only)"#,
    );
    with(
        json!({ "actor": admin(), "via": "invoice", "invoice_id": "i", "month": "2026-06" }),
        r#"data: unknown field `month` (it goes with `via: "purchases"` only)"#,
    );
    with(
        json!({ "actor": admin(), "via": "purchases", "invoice_id": "i" }),
        r#"data: unknown field `invoice_id` (it goes with `via: "invoice"` only)"#,
    );
    with(
        json!({ "actor": admin(), "via": "purchases", "refund": false }),
        r#"data: unknown field `refund` (it goes with `via: "invoice"` only)"#,
    );
    with(
        json!({ "actor": client(), "via": "account", "invoice_id": "i" }),
        r#"data: unknown field `invoice_id` (it goes with `via: "invoice"` only)"#,
    );
    with(
        json!({ "actor": client(), "via": "account", "message": "merci" }),
        r#"data: unknown field `message` (it goes with `via: "purchases"` and `via: "invoice"` only)"#,
    );
    with(
        json!({ "actor": admin(), "via": "invoice" }),
        r#"data: missing field `invoice_id` (`via: "invoice"` needs it)"#,
    );
    with(
        json!({ "actor": admin(), "via": "invoice", "invoice_id": "i", "refund": "yes" }),
        r#"data.refund: invalid type: string "yes", expected a boolean"#,
    );
}
