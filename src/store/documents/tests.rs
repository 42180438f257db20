//! Documents as other systems write them, and as newer versions will.

use std::collections::BTreeSet;

use bson::oid::ObjectId;
use bson::{Bson, Decimal128, Document, RawDocumentBuf, doc};
use schemars::JsonSchema;

use offramp_domain::account::Account;
use offramp_domain::contact::Brand;
use offramp_domain::link::Links;
use offramp_domain::organization::Organization;
use offramp_domain::subscription::Subscription;
use offramp_domain::unit_of_work::LoadedDocument;

use super::projection::HISTORY_LENGTH;
use super::*;
use crate::store::collection::Collection;

fn raw(document: &Document) -> RawDocumentBuf {
    RawDocumentBuf::try_from(document).unwrap()
}

fn subscription_document() -> Document {
    doc! {
        "_id": "sub-1", "organization_id": "org-1", "account_id": "acc-1",
        "participant": { "id": "p-1", "name": "Zoé Roy" }, "plan": { "id": "plan-1", "name": "Natation" },
        "billing": { "mode": "anniversary", "day": 15, "next_on": "2026-06-15", "last_on": "2026-05-15", "last_invoice_id": "inv-5" },
        "expires_on": "2027-06-20", "activities": [{ "id": "a-1", "name": "Longueurs" }],
    }
}

fn subscription(document: &Document) -> Subscription {
    match read::<SubscriptionDocument, Subscription>("subscriptions", &raw(document)) {
        LoadedDocument::Read(subscription) => subscription,
        LoadedDocument::Corrupt { error, .. } => panic!("{error}"),
    }
}

/// The good document with one field set, at a path of one or two names.
fn with(mut document: Document, path: &str, value: impl Into<Bson>) -> Document {
    match path.split_once('.') {
        Some((outer, inner)) => {
            document.get_document_mut(outer).unwrap().insert(inner, value);
        }
        None => {
            document.insert(path, value);
        }
    }
    document
}

#[test]
fn decisions_read_all_fields_except_growing_lists() {
    #[track_caller]
    fn check<D: JsonSchema>(collection: Collection, grow: &[&str]) {
        let schema = schemars::schema_for!(D);
        let known: BTreeSet<&str> =
            schema.get("properties").unwrap().as_object().unwrap().keys().map(String::as_str).collect();
        let decision_projection = decision_projection(collection);
        let mut named: BTreeSet<&str> = decision_projection.keys().map(String::as_str).collect();
        named.remove(HISTORY_LENGTH);
        named.extend(["_id"].iter().chain(grow));
        assert_eq!(named, known);
    }
    check::<OrganizationDocument>(Collection::Organizations, &["outbox", "notifications"]);
    check::<AccountDocument>(Collection::Accounts, &["outbox", "notifications"]);
    let grow = ["outbox", "notifications", "history", "payment_failures"];
    check::<SubscriptionDocument>(Collection::Subscriptions, &grow);
}

/// A field that cannot be read is named, with what is expected and what is there, and spoils no other.
#[test]
fn a_malformed_field_is_named_and_affects_no_other() {
    #[track_caller]
    fn check(path: &str, value: impl Into<Bson>, expected: &str) {
        let found = subscription(&with(subscription_document(), path, value));
        let faults: Vec<String> = found.faults().iter().map(ToString::to_string).collect();
        assert_eq!(faults, [format!("subscriptions sub-1: {expected}")]);
    }
    let date = bson::DateTime::from_millis(0);
    check("participant", 5, "participant: expected an object, found an integer");
    check("participant.name", Bson::Null, "participant.name: expected text, found null");
    check("plan", doc! { "id": "plan-1" }, "plan.name: missing");
    check("billing.day", "15", "billing.day: expected an integer, found text");

    check("billing.day", "15".parse::<Decimal128>().unwrap(), "billing.day: expected an integer, found a Decimal128");
    check("billing.day", 15.5, "billing.day: 15.5 is not an integer");
    check("billing.day", 32, "billing.day: 32 is not a day of the month (1 to 31)");
    check("billing.mode", ObjectId::new(), "billing.mode: expected text, found an ObjectId");
    check("billing.next_on", date, "billing.next_on: expected text, found a date (the BSON type)");
    check("billing.next_on", "2026-6-15", "billing.next_on: `2026-6-15` is not a date such as \"2026-06-15\"");
    check("billing.next_on", "0001-01-01", "billing.next_on: `0001-01-01` is not of the years 1900 to 9999");
    check("billing.last_invoice_id", 5, "billing.last_invoice_id: expected text, found an integer");
    check("expires_on", date, "expires_on: expected text, found a date (the BSON type)");
    check("activities", "swimming", "activities: expected a list, found text");
    check("activities", vec![doc! { "id": "a", "name": 1 }], "activities[0].name: expected text, found an integer");
    check("cancellation_request", "yes", "cancellation_request: expected an object, found text");
    let scheduled = with(subscription_document(), "status", "cancellation_scheduled");
    let faults =
        |document: &Document| subscription(document).faults().iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(
        faults(&scheduled),
        ["subscriptions sub-1: ends_on: missing, though the subscription is cancellation_scheduled"]
    );
    let scheduled = with(with(scheduled, "ends_on", "2026-06-14"), "ends_at", "2026-06-15T04:00:00Z");
    assert_eq!(faults(&scheduled), ["subscriptions sub-1: ends_at: expected a date (the BSON type), found text"]);
}

#[test]
fn malformed_fields_that_every_decision_needs_make_the_document_corrupt() {
    #[track_caller]
    fn check(path: &str, value: impl Into<Bson>, expected: &str) {
        match read::<SubscriptionDocument, Subscription>(
            "subscriptions",
            &raw(&with(subscription_document(), path, value)),
        ) {
            LoadedDocument::Corrupt { error, .. } => assert_eq!(error, format!("subscriptions sub-1: {expected}")),
            LoadedDocument::Read(_) => panic!("{path} can be read"),
        }
    }
    check("account_id", Bson::Null, "account_id: expected text, found null");
    check("version", "3", "version: expected an integer, found text");
    check("status", 3, "status: expected text, found an integer");
    check("applied", "x", "applied: expected a list, found text");
}

#[test]
fn null_counts_as_absent() {
    let mut document = subscription_document();
    for field in [
        "version",
        "status",
        "ends_on",
        "ends_at",
        "final_billing_on",
        "ended_on",
        "cancellation_request",
        "cancellation",
        "payment_failures",
        "history",
        "notifications",
        "applied",
        "outbox",
        "expires_on",
    ] {
        document.insert(field, Bson::Null);
    }
    let mut without = subscription_document();
    without.remove("expires_on");
    assert_eq!(subscription(&document), subscription(&without));
    assert!(subscription(&document).faults().is_empty());
    let account = doc! {
        "_id": "acc-1", "organization_id": "org-1", "manager": { "name": "Marie", "email": "m@example.org", "locale": null },
        "cards": null, "applied": null, "outbox": null, "notifications": null, "card_notices": null, "version": null,
    };
    let LoadedDocument::Read(account) = read::<AccountDocument, Account>("accounts", &raw(&account)) else { panic!() };
    assert!(account.faults().is_empty());
}

/// Drivers write numbers as three types, and some systems write a far date for "never".
#[test]
fn numbers_of_every_type_and_far_dates_are_accepted() {
    for day in [Bson::Int32(15), Bson::Int64(15), Bson::Double(15.0)] {
        let document = with(with(subscription_document(), "billing.day", day.clone()), "version", day);
        assert_eq!(subscription(&document).version, Some(15));
        assert!(subscription(&document).faults().is_empty());
    }
    for date in ["1900-01-01", "2999-12-31", "9999-12-31"] {
        let document = with(with(subscription_document(), "expires_on", date), "billing.next_on", date);
        assert!(subscription(&document).faults().is_empty(), "{date}");
    }
}

/// A newer version may add fields anywhere.
#[test]
fn unknown_fields_are_ignored() {
    let actor = doc! { "role": "client", "account_id": "acc-1", "device": "phone" };
    let at = bson::DateTime::from_millis(1_780_000_000_000);
    let request = doc! { "requested_at": at, "actor": actor.clone(), "channel": "app" };
    let cancellation = doc! {
        "by": "client", "via": "account", "scheduled_at": at, "actor": actor, "month": null, "survey": { "stars": 5 },
    };
    let mut document = subscription_document();
    document.extend(doc! {
        "status": "cancellation_requested", "cancellation_request": request, "cancellation": cancellation,
        "applied": [{ "source": "s", "id": "1", "at": at, "trace": "t" }],
        "participant": { "id": 7, "name": "Zoé", "age": 9 },
    });
    let found = subscription(&document);
    assert!(found.faults().is_empty(), "{:?}", found.faults());
    let details = found.details.unwrap();
    assert!(details.request.unwrap().unwrap().actor.is_some());
    assert!(details.cancellation.is_some());
    assert_eq!(details.participant, Ok("Zoé".to_owned()), "its id is not read");
}

/// Fields of an earlier cancellation are no scheduled end.
#[test]
fn only_a_scheduled_or_cancelled_subscription_has_a_last_day() {
    let ends = |status: &str| {
        let mut document = with(subscription_document(), "status", status);
        document.extend(doc! { "ends_on": "2026-06-14", "ends_at": bson::DateTime::from_millis(1_781_496_000_000) });
        subscription(&document).details.unwrap().end.unwrap().is_some()
    };
    assert!(ends("cancellation_scheduled") && ends("cancelled"));
    assert!(!ends("active") && !ends("cancellation_requested") && !ends("expired"));
}

/// A bank account among the cards, a colour that is not text, an empty language.
#[test]
fn malformed_cards_brands_and_languages_affect_no_other_field() {
    let account = doc! {
        "_id": "acc-1", "organization_id": "org-1", "manager": { "name": "Marie", "email": "m@example.org", "locale": "" },
        "cards": [
            { "id": "bank", "brand": "", "last4": "", "expires": null },
            { "id": "card-1", "brand": "Visa", "last4": "4242", "expires": "2026-06" },
        ],
    };
    let LoadedDocument::Read(account) = read::<AccountDocument, Account>("accounts", &raw(&account)) else { panic!() };
    assert_eq!(account.manager_locale, None, "an empty text names no language");
    assert_eq!(account.cards.iter().flatten().count(), 1);
    let faults: Vec<String> = account.faults().iter().map(ToString::to_string).collect();
    assert_eq!(faults, ["accounts acc-1: cards[0].brand: must be 1 to 256 characters long, is 0"]);

    let organization = doc! {
        "_id": "org-1", "name": "Club", "locale": 5, "timezone": "America/Toronto",
        "contact": { "email": "c@example.org", "phone": 5_145_550_199_i64, "address": { "city": "Magog" }, "website": null },
        "client_cancellation": "immediate", "admin_url": 5, "account_url": ["x"], "payment_method_url": " ",
        "admin_account_url": "https://club.example/{account_id}", "card_notice_days": "30",
        "brand": { "color": 5, "logo_url": "https://club.example/logo.png" },
    };
    let LoadedDocument::Read(organization) =
        read::<OrganizationDocument, Organization>("organizations", &raw(&organization))
    else {
        panic!()
    };
    assert_eq!(organization.brand, Brand { color: None, logo_url: Some("https://club.example/logo.png".to_owned()) });
    assert_eq!(organization.locale, "");
    assert_eq!((organization.phone, organization.address, organization.website), (None, None, None));
    let links = Links { admin_account_url: Some("https://club.example/{account_id}".to_owned()), ..Links::default() };
    assert_eq!(organization.links, links);
    assert!(organization.timezone.is_ok() && organization.contact.is_ok());
    assert!(organization.card_notice_days.is_err());
}

/// A missing field is like a malformed one: it stops the decisions that need it.
#[test]
fn a_missing_field_affects_no_other() {
    let good = doc! {
        "_id": "org-1", "name": "Club", "locale": "fr-CA", "timezone": "America/Toronto",
        "contact": { "email": "c@example.org" }, "client_cancellation": "immediate",
    };
    for field in ["name", "locale", "timezone", "contact", "client_cancellation"] {
        let mut document = good.clone();
        document.remove(field);
        let LoadedDocument::Read(found) = read::<OrganizationDocument, Organization>("organizations", &raw(&document))
        else {
            panic!("{field}")
        };
        let faults: Vec<String> = found.faults().iter().map(ToString::to_string).collect();
        let expected = if field == "locale" { vec![] } else { vec![format!("organizations org-1: {field}: missing")] };
        assert_eq!(faults, expected);
    }
    let account = doc! { "_id": "acc-1", "organization_id": "org-1" };
    let LoadedDocument::Read(account) = read::<AccountDocument, Account>("accounts", &raw(&account)) else { panic!() };
    assert_eq!(account.manager.unwrap_err().to_string(), "accounts acc-1: manager: missing");
}

/// No decision needs it.
#[test]
fn an_unreadable_actor_of_a_request_counts_as_absent() {
    let request =
        doc! { "requested_at": bson::DateTime::from_millis(1_780_000_000_000), "actor": { "role": "system" } };
    let found = subscription(&with(subscription_document(), "cancellation_request", request));
    assert!(found.faults().is_empty(), "{:?}", found.faults());
    assert_eq!(found.details.unwrap().request.unwrap().unwrap().actor, None);
}
