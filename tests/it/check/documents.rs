//! `offramp check --documents` finds what cannot be processed, and what is doubtful.

use std::collections::BTreeMap;
use std::time::Instant;

use bson::{Bson, DateTime, Document, doc};
use chrono::Utc;
use offramp::document_check::{DocumentCheck, Position};
use offramp::store::{Collection, Store};
use offramp::tls::Tls;
use serde_json::Value;

use crate::cli::{fails, run, succeeds};
use offramp_testkit::fixtures::{account, organization, populate, subscription};
use offramp_testkit::test_bed::TestBed;
use offramp_testkit::worker_process::offramp;

/// A valid subscription with one change.
fn changed(id: &str, change: impl FnOnce(&mut Document)) -> Document {
    let mut document = subscription(id, "org", "acc");
    change(&mut document);
    document
}

fn billing(document: &mut Document) -> &mut Document {
    document.get_document_mut("billing").unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_kind_of_problem_is_found() {
    let bed = TestBed::new("documents").await;
    populate(&bed).await;
    let check = || offramp(&bed);
    let ran = succeeds(&mut check(), &["check", "--documents"], "");
    assert!(ran.stdout.contains("3 documents: 0 errors, 0 warnings"), "{}", ran.stdout);

    let date = DateTime::parse_rfc3339_str("2026-06-30T00:00:00Z").unwrap();
    let ends_at = DateTime::parse_rfc3339_str("2199-07-20T04:00:00Z").unwrap();
    let mut nameless = subscription("x", "org", "acc");
    nameless.insert("_id", bson::oid::ObjectId::new());
    let mut subscriptions: Vec<Document> = vec![
        nameless,
        changed("expires-as-date", |it| drop(it.insert("expires_on", date))),
        changed("day-as-text", |it| drop(billing(it).insert("day", "15"))),
        changed("no-next", |it| drop(billing(it).remove("next_on"))),
        changed("misspelt", |it| drop(it.insert("expire_on", "2199-01-01"))),
        changed("camel", |it| drop(it.insert("endsOn", "2199-01-01"))),
        changed("past", |it| drop(billing(it).insert("next_on", "2020-01-15"))),
        changed("other-day", |it| drop(billing(it).insert("next_on", "2199-06-16"))),
        changed("no-account", |it| drop(it.insert("account_id", "nobody"))),
        changed("no-organization", |it| drop(it.insert("organization_id", "nobody"))),
        changed("other-organization", |it| drop(it.insert("account_id", "theirs"))),
        changed("version-as-text", |it| drop(it.insert("version", "3"))),
        changed("ends-later", |it| {
            it.extend(doc! { "status": "cancellation_scheduled", "ends_on": "2199-07-14", "ends_at": ends_at });
        }),
        changed("ends-as-text", |it| {
            it.extend(doc! { "status": "cancellation_scheduled", "ends_on": "2199-07-14", "ends_at": "2199-07-15" });
        }),
        // Not a problem: their own fields, dates far away, null.
        changed("fine", |it| {
            it.extend(doc! { "expires_on": "2999-12-31", "crm": { "expire_on": 1 }, "payment_failures": Bson::Null });
        }),
    ];
    subscriptions
        .push(doc! { "_id": "tombstone", "organization_id": "org", "account_id": "gone", "status": "removed" });
    bed.collection("subscriptions").insert_many(subscriptions).await.unwrap();
    let mut accounts =
        vec![account("theirs", "org-2"), account("lost", "nobody"), account("address", "org"), account("cards", "org")];
    accounts[2].get_document_mut("manager").unwrap().extend(doc! { "email": "nobody", "locale": "english!" });
    let good = doc! { "id": "1", "brand": "Visa", "last4": "4242", "expires": "2199-06" };
    accounts[3].insert(
        "cards",
        vec![good.clone(), {
            let mut bad = good;
            bad.insert("expires", date);
            bad
        }],
    );
    bed.collection("accounts").insert_many(accounts).await.unwrap();
    let mut organizations = vec![organization("org-2"), organization("zone")];
    organizations[0].insert("locale", "english!");
    organizations[1].insert("timezone", "EST5EDT4");
    bed.collection("organizations").insert_many(organizations).await.unwrap();
    let before = bed.document("subscriptions", "misspelt").await.unwrap();

    let ran = fails(&mut check(), &["check", "--documents", "--json"], "", 1, "problems in t-documents");
    let found: BTreeMap<String, String> = ran
        .json()
        .iter()
        .map(|group| {
            let text = |name: &str| group[name].as_str().unwrap().to_owned();
            let ids: Vec<&str> =
                group["examples"].as_array().unwrap().iter().map(|example| example["id"].as_str().unwrap()).collect();
            let ids = ids
                .iter()
                .map(|id| if id.contains("ObjectId") { "an ObjectId" } else { id })
                .collect::<Vec<_>>()
                .join(" ");
            (format!("{} {} {}.{}", text("severity"), text("kind"), text("collection"), text("field")), ids)
        })
        .collect();
    let expected = [
        ("error invalid_email accounts.manager.email", "address"),
        ("error missing_account subscriptions.account_id", "no-account"),
        ("error missing_organization accounts.organization_id", "lost"),
        ("error missing_organization subscriptions.organization_id", "no-organization"),
        ("error account_of_another_organization subscriptions.account_id", "no-organization other-organization"),
        ("error unreadable accounts.cards.expires", "cards"),
        ("error unreadable organizations.timezone", "zone"),
        ("error unreadable subscriptions.billing.day", "day-as-text"),
        ("error unreadable subscriptions.billing.next_on", "no-next"),
        ("error unreadable subscriptions.ends_at", "ends-as-text"),
        ("error unreadable subscriptions.expires_on", "expires-as-date"),
        ("error unreadable subscriptions.version", "version-as-text"),
        ("error unusable_id subscriptions._id", "an ObjectId"),
        ("warning ends_at_differs subscriptions.ends_at", "ends-later"),
        ("warning misspelt_field subscriptions.endsOn", "camel"),
        ("warning misspelt_field subscriptions.expire_on", "misspelt"),
        ("warning not_a_billing_date subscriptions.billing.next_on", "other-day"),
        ("warning past_next_on subscriptions.billing.next_on", "past"),
        ("warning unreadable_locale accounts.manager.locale", "address"),
        ("warning unreadable_locale organizations.locale", "org-2"),
    ];
    let expected: BTreeMap<String, String> =
        expected.into_iter().map(|(group, ids)| (group.to_owned(), ids.to_owned())).collect();
    assert_eq!(found, expected);
    let group = ran.json().into_iter().find(|group| group["field"] == "expires_on").unwrap();
    let sentence = "expected text, found a date (the BSON type); write text such as \"2026-06-30\"";
    assert_eq!(group["examples"][0]["problem"], Value::from(sentence));
    assert_eq!(bed.document("subscriptions", "misspelt").await.unwrap(), before, "nothing is changed");

    // An interrupted walk continues after a document.
    let after = ["check", "--documents", "--after", "subscriptions/past"];
    let ran = fails(&mut check(), &after, "", 1, "problem");
    assert!(ran.stdout.contains("4 documents: "), "{}", ran.stdout);
    assert_eq!(run(&mut check(), &["check", "--documents", "--after", "members/x"], "").code, Some(2));
    bed.remove().await;
}

/// Bounded pages find every document once, also where ids have several types. Prints the time, and judges none.
#[tokio::test(flavor = "multi_thread")]
async fn all_pages_are_read_once() {
    const SUBSCRIPTIONS: i32 = 5_003;
    let bed = TestBed::new("pages").await;
    populate(&bed).await;
    let documents = (0..SUBSCRIPTIONS).map(|number| {
        let mut document = subscription(&format!("sub-{number:06}"), "org", "acc");
        match number % 1_000 {
            7 => drop(document.insert("_id", number)),
            8 => drop(document.insert("_id", bson::oid::ObjectId::new())),
            _ => {}
        }
        document
    });
    bed.collection("subscriptions").insert_many(documents).await.unwrap();
    let store = Store::open(&bed.mongodb_url, &Tls::default()).await.unwrap();
    let began = Instant::now();
    let mut check = DocumentCheck::new(store, Position::start(), 3, Utc::now());
    while check.next_page().await.unwrap().is_some() {}
    let report = check.report();
    println!("{} documents in {:?}", report.documents(), began.elapsed());
    assert_eq!(report.documents(), u64::try_from(SUBSCRIPTIONS).unwrap() + 3);
    let groups: Vec<_> = report.groups().map(|group| (group.kind, group.count, group.examples.len())).collect();
    assert_eq!(groups, [("unusable_id", 10, 3)]);
    bed.remove().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_id_that_is_not_a_number_is_read_once() {
    let bed = TestBed::new("nan").await;
    let id = Bson::Double(f64::NAN);
    bed.collection("accounts").insert_one(doc! { "_id": id.clone() }).await.unwrap();
    let store = Store::open(&bed.mongodb_url, &Tls::default()).await.unwrap();
    assert_eq!(store.page(Collection::Accounts, None, 10).await.unwrap().len(), 1);
    assert!(store.page(Collection::Accounts, Some(&id), 10).await.unwrap().is_empty());
    bed.remove().await;
}
