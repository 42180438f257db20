//! Several commands for the same documents in one batch.

use std::collections::HashSet;

use bson::{Document, doc};
use offramp::clock;
use offramp::store::commit::WriteResult;
use offramp::store::outbox::entry::Lease;
use offramp::store::{DocumentKeys, Store, updates};
use offramp::tls::Tls as StoreTls;
use offramp_domain::command::Command;
use offramp_domain::unit_of_work::{Task, TaskOutcome};
use serde_json::json;
use uuid::Uuid;

use offramp_testkit::fixtures::{cancellation, command, identify, populate, subscription};
use offramp_testkit::test_bed::TestBed;

/// A worker may crash between the commit and the ack of a full batch about one document. On redelivery, every command is still
/// remembered, so none is decided twice. With one more command, the first would be forgotten.
#[tokio::test(flavor = "multi_thread")]
async fn every_command_of_a_full_batch_is_remembered() {
    const BATCH_MAX: usize = 200;
    let bed = TestBed::new("full-batch").await;
    populate(&bed).await;
    let store = Store::open(&bed.mongodb_url, &StoreTls::default()).await.unwrap();
    let need = DocumentKeys {
        subscriptions: HashSet::from(["sub".try_into().unwrap()]),
        accounts: HashSet::from(["acc".try_into().unwrap()]),
        ..DocumentKeys::default()
    };
    let commands: Vec<Command> = (0..BATCH_MAX)
        .flat_map(|at| {
            let payment = json!({
                "organization_id": "org", "subscription_id": "sub", "invoice_id": "inv-5", "attempt": at + 1,
                "amount": { "value": "1.00", "currency": "CAD" }, "card": { "brand": "Visa", "last4": "4242" },
            });
            let card = json!({ "id": format!("card-{at}"), "brand": "Visa", "last4": "4242", "expires": "2199-06" });
            let card = json!({ "organization_id": "org", "account_id": "acc", "card": card });
            [
                command(&format!("payment-{at}"), "payment.failure", payment),
                command(&format!("card-{at}"), "card.expiry", card),
            ]
        })
        .map(|command| Command::parse(command.to_string().as_bytes()).unwrap())
        .collect();
    for expected in [TaskOutcome::Applied, TaskOutcome::Repeated] {
        let mut loaded = store.load(&need).await.unwrap();
        let now = clock::now();
        for command in &commands {
            assert_eq!(loaded.apply(&Task::Command(command.clone()), now), expected, "{:?}", command.reference);
        }
        let lease = Lease { holder: Uuid::new_v4(), until: now };
        let updates = updates::build(loaded, &lease, "tests", &identify, now).unwrap();
        assert_eq!(updates.len(), if expected == TaskOutcome::Applied { 2 } else { 0 });
        let committed = store.commit(&updates).await.unwrap();
        assert!(committed.iter().all(|committed| *committed == WriteResult::Written), "{committed:?}");
    }
    for collection in ["subscriptions", "accounts"] {
        let document = bed.document(collection, if collection == "accounts" { "acc" } else { "sub" }).await.unwrap();
        assert_eq!(document.get_array("applied").unwrap().len(), BATCH_MAX, "{collection}");
        assert_eq!(document.get_array("notifications").unwrap().len(), 2 * BATCH_MAX, "{collection}");
    }
    bed.remove().await;
}

/// One statement writes many documents. Conflicts and corrupt documents are still reported one by one.
#[tokio::test(flavor = "multi_thread")]
async fn each_document_of_a_batch_gets_its_own_write_result() {
    let bed = TestBed::new("together").await;
    populate(&bed).await;
    let store = Store::open(&bed.mongodb_url, &StoreTls::default()).await.unwrap();
    let mut corrupt = subscription("corrupt", "org", "acc");
    corrupt.insert("outbox", "x");
    let mut null = subscription("null", "org", "acc");
    null.extend(doc! { "outbox": null, "history": null, "version": null, "crm": { "score": 1 } });
    let mut odd = subscription("odd", "org", "acc");
    odd.insert("notifications", "x");
    let good: Vec<Document> = (0..20).map(|at| subscription(&format!("good-{at}"), "org", "acc")).collect();
    let changed = subscription("changed", "org", "acc");
    for has_corrupt in [false, true] {
        let mut documents = [&good[..], std::slice::from_ref(&changed)].concat();
        if has_corrupt {
            documents.extend([corrupt.clone(), odd.clone()]);
        } else {
            documents.push(null.clone());
        }
        let subscriptions = bed.collection("subscriptions");
        subscriptions.delete_many(doc! {}).await.unwrap();
        subscriptions.insert_many(&documents).await.unwrap();
        let ids: Vec<&str> = documents.iter().map(|document| document.get_str("_id").unwrap()).collect();
        let need = DocumentKeys {
            subscriptions: ids.iter().map(|id| (*id).try_into().unwrap()).collect(),
            ..DocumentKeys::default()
        };
        let mut loaded = store.load(&need).await.unwrap();
        let now = clock::now();
        for id in &ids {
            let command = Command::parse(cancellation(&format!("c-{id}"), id).to_string().as_bytes()).unwrap();
            assert_eq!(loaded.apply(&Task::Command(command), now), TaskOutcome::Applied);
        }
        subscriptions.update_one(doc! { "_id": "changed" }, doc! { "$inc": { "version": 1 } }).await.unwrap();
        let lease = Lease { holder: Uuid::new_v4(), until: now };
        let updates = updates::build(loaded, &lease, "tests", &identify, now).unwrap();
        let committed = store.commit(&updates).await.unwrap();
        for (update, committed) in updates.iter().zip(&committed) {
            match update.document.as_str() {
                "changed" => assert_eq!(*committed, WriteResult::Conflict),
                "corrupt" => {
                    assert_eq!(*committed, WriteResult::Corrupt("outbox: expected a list, found text".to_owned()));
                }
                id => assert_eq!(*committed, WriteResult::Written, "{id}"),
            }
        }
        let changed = bed.document("subscriptions", "changed").await.unwrap();
        assert!(!changed.contains_key("status") && !changed.contains_key("outbox"), "{changed}");
        for id in if has_corrupt { &["good-7"][..] } else { &["good-7", "null"] } {
            let document = bed.document("subscriptions", id).await.unwrap();
            assert_eq!(document.get_i64("version").unwrap(), 1);
            for list in ["history", "applied", "notifications"] {
                assert_eq!(document.get_array(list).unwrap().len(), 1, "{id}: {list}");
            }
            assert_eq!(document.get_array("outbox").unwrap().len(), 2);
            assert!(!document.contains_key("payment_failures"), "{document}");
            assert_eq!(document.get_str("status").unwrap(), "cancellation_scheduled");
        }
        if !has_corrupt {
            assert_eq!(bed.document("subscriptions", "null").await.unwrap().get("crm"), null.get("crm"));
        }
    }
    bed.remove().await;
}
