//! Documents as the world writes them: what the worker writes it can read back, and what other systems write stops no more than
//! what needs it.

use std::collections::BTreeSet;

use bson::oid::ObjectId;
use bson::{Bson, DateTime, Document, doc};
use fastrand::Rng;
use offramp::clock;
use offramp::domain::command::{Command, CommandBody};
use offramp::domain::fold::{Loaded, Task, Verdict};
use offramp::domain::subscription::Subscription;
use offramp::store::commit::Committed;
use offramp::store::documents::{SubscriptionDocument, read};
use offramp::store::outbox::{Lease, OutboxEntry};
use offramp::store::{Collection, Need, Store, changes};
use offramp::tls::Tls as StoreTls;
use serde_json::json;
use uuid::Uuid;

use crate::support::eventually;
use crate::support::samples::{account, cancellation, command, identify, organization, populate, subscription, with};
use crate::support::smtp::SmtpSink;
use crate::support::worker::{Worker, get};
use crate::support::world::World;

const SUBSCRIPTIONS: usize = 120;
const ROUNDS: usize = 8;

/// Any accepted command, with dates at the ends of the calendar and texts at their limits, leaves a document that reads back as it
/// was decided, and every entry of its outbox as itself.
#[tokio::test(flavor = "multi_thread")]
async fn every_accepted_command_leaves_a_document_that_reads_back() {
    let world = World::new("round-trip").await;
    let store = Store::open(&world.mongodb_url, &StoreTls::default()).await.unwrap();
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut random = Rng::with_seed(seed);
    for (at, zone) in ["Pacific/Kiritimati", "Pacific/Pago_Pago", "America/Toronto"].iter().enumerate() {
        let id = format!("org-{at}");
        let mut document = organization(&id);
        document.extend(doc! { "timezone": zone, "notify_client_of_own_actions": true });
        world.collection("organizations").insert_one(document).await.unwrap();
        world.collection("accounts").insert_one(account(&format!("acc-{at}"), &id)).await.unwrap();
    }
    let documents: Vec<Document> = (0..SUBSCRIPTIONS).map(|at| any_subscription(&mut random, at)).collect();
    world.collection("subscriptions").insert_many(&documents).await.unwrap();

    let (mut applied, mut statuses) = (0, BTreeSet::new());
    for round in 0..ROUNDS {
        let commands: Vec<Command> =
            documents.iter().enumerate().map(|(at, document)| any_command(&mut random, document, at, round)).collect();
        let need = Need {
            subscriptions: commands.iter().map(|command| subscription_id(command).try_into().unwrap()).collect(),
            ..Need::default()
        };
        let mut loaded = store.load(&need).await.unwrap();
        let now = clock::now();
        for command in &commands {
            match loaded.fold(&Task::Command(command.clone()), now) {
                Verdict::Applied => applied += 1,
                Verdict::Unchanged | Verdict::Rejected(_) => {}
                other => panic!("seed {seed}: {other:?}"),
            }
        }
        let after: Vec<Subscription> = loaded.changed_subscriptions().map(|draft| draft.after.clone()).collect();
        let lease = Lease { holder: Uuid::new_v4(), until: now };
        let updates = changes::updates(loaded, &lease, "tests", &identify, now).unwrap();
        let committed = store.commit(&updates).await.unwrap();
        assert!(committed.iter().all(|committed| *committed == Committed::Written), "seed {seed}: {committed:?}");

        for mut expected in after {
            let id = expected.id.to_string();
            let raw = store.document(Collection::Subscriptions, &id).await.unwrap().unwrap();
            let Loaded::Read(found) = read::<SubscriptionDocument, Subscription>("subscriptions", &raw) else {
                panic!("seed {seed}: {id} cannot be read");
            };
            assert!(found.faults().is_empty(), "seed {seed}: {:?}", found.faults());
            expected.version = Some(expected.version.unwrap_or(0) + 1);
            expected.history_length = found.history_length;
            assert_eq!(found, expected, "seed {seed}");
            statuses.insert(found.status.as_str());

            let update = updates.iter().find(|update| update.id == id).unwrap();
            let outbox = raw.get_array("outbox").unwrap().into_iter().map(|entry| entry.unwrap());
            let entries: Vec<OutboxEntry> = outbox
                .map(|entry| bson::deserialize_from_slice(entry.as_document().unwrap().as_bytes()).unwrap())
                .collect();
            let newest = &entries[entries.len() - update.entries.len()..];
            assert_eq!(newest, update.entries, "seed {seed}");
        }
    }
    assert!(applied > SUBSCRIPTIONS, "{applied} commands were applied");
    assert_eq!(statuses.len(), 4, "{statuses:?}");
    world.remove().await;
}

/// Many documents are written with one statement. Those that somebody else has changed, and those that cannot take it, are told
/// from the others.
#[tokio::test(flavor = "multi_thread")]
async fn each_document_of_a_batch_is_written_lost_or_corrupt() {
    let world = World::new("together").await;
    populate(&world).await;
    let store = Store::open(&world.mongodb_url, &StoreTls::default()).await.unwrap();
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
        let subscriptions = world.collection("subscriptions");
        subscriptions.delete_many(doc! {}).await.unwrap();
        subscriptions.insert_many(&documents).await.unwrap();
        let ids: Vec<&str> = documents.iter().map(|document| document.get_str("_id").unwrap()).collect();
        let need = Need { subscriptions: ids.iter().map(|id| (*id).try_into().unwrap()).collect(), ..Need::default() };
        let mut loaded = store.load(&need).await.unwrap();
        let now = clock::now();
        for id in &ids {
            let command = Command::parse(cancellation(&format!("c-{id}"), id).to_string().as_bytes()).unwrap();
            assert_eq!(loaded.fold(&Task::Command(command), now), Verdict::Applied);
        }
        subscriptions.update_one(doc! { "_id": "changed" }, doc! { "$inc": { "version": 1 } }).await.unwrap();
        let lease = Lease { holder: Uuid::new_v4(), until: now };
        let updates = changes::updates(loaded, &lease, "tests", &identify, now).unwrap();
        let committed = store.commit(&updates).await.unwrap();
        for (update, committed) in updates.iter().zip(&committed) {
            match update.id.as_str() {
                "changed" => assert_eq!(*committed, Committed::Lost),
                "corrupt" => {
                    assert_eq!(*committed, Committed::Corrupt("outbox: expected a list, found text".to_owned()));
                }
                id => assert_eq!(*committed, Committed::Written, "{id}"),
            }
        }
        let changed = world.document("subscriptions", "changed").await.unwrap();
        assert!(!changed.contains_key("status") && !changed.contains_key("outbox"), "{changed}");
        for id in if has_corrupt { &["good-7"][..] } else { &["good-7", "null"] } {
            let document = world.document("subscriptions", id).await.unwrap();
            assert_eq!(document.get_i64("version").unwrap(), 1);
            for list in ["history", "applied", "notifications"] {
                assert_eq!(document.get_array(list).unwrap().len(), 1, "{id}: {list}");
            }
            assert_eq!(document.get_array("outbox").unwrap().len(), 2);
            assert!(!document.contains_key("payment_failures"), "{document}");
            assert_eq!(document.get_str("status").unwrap(), "cancellation_scheduled");
        }
        if !has_corrupt {
            assert_eq!(world.document("subscriptions", "null").await.unwrap().get("crm"), null.get("crm"));
        }
    }
    world.remove().await;
}

fn subscription_id(command: &Command) -> &str {
    match &command.body {
        CommandBody::Subscription(data) => data.subscription_id().as_str(),
        CommandBody::CardExpiry(_) => unreachable!(),
    }
}

fn pick<T: Copy>(random: &mut Rng, choices: &[T]) -> T {
    choices[random.usize(..choices.len())]
}

fn any_subscription(random: &mut Rng, at: usize) -> Document {
    let organization = at % 3;
    let mut document =
        subscription(&format!("sub-{at}"), &format!("org-{organization}"), &format!("acc-{organization}"));
    let next_on = pick(random, &["1900-01-01", "2026-06-15", "2998-11-30", "2999-12-31", "9999-12-31"]);
    let billing = doc! {
        "mode": pick(random, &["anniversary", "fixed_day"]), "day": random.i32(1..=31), "next_on": next_on,
        "last_on": pick(random, &[Some("1900-01-01"), Some("2026-05-15"), None]),
        "last_invoice_id": pick(random, &[Some("inv-5"), None]),
    };
    document.insert("billing", billing);
    document.insert("expires_on", pick(random, &[Some("9999-12-31"), Some("2999-12-31"), None]));
    document
}

fn any_command(random: &mut Rng, document: &Document, at: usize, round: usize) -> Command {
    let organization = document.get_str("organization_id").unwrap();
    let client =
        json!({ "role": "client", "account_id": document.get_str("account_id").unwrap(), "name": text(random, 1_000) });
    let admin = json!({ "role": "admin", "id": "a".repeat(128), "name": text(random, 1_000) });
    let (kind, mut data) = match random.u8(..10) {
        0 | 1 => ("subscription.cancellation-request", json!({ "actor": client, "reason": text(random, 2_000) })),
        2 | 3 => {
            let date = pick(random, &["2000-01-31", "2998-12-31", "2998-11-30", "2026-05-15"]);
            let accept = json!({ "actor": admin, "decision": "accept", "note": text(random, 2_000) });
            let mut accept = accept;
            if random.bool() {
                accept["final_billing_date"] = json!(date);
            }
            ("subscription.cancellation-confirmation", accept)
        }
        4 => ("subscription.cancellation-confirmation", json!({ "actor": admin, "decision": "decline" })),
        5 => ("subscription.cancellation", json!({ "actor": client, "via": "account", "reason": text(random, 2_000) })),
        6 => {
            let invoice = json!({ "actor": admin, "via": "invoice", "invoice_id": "inv-5", "refund": random.bool() });
            ("subscription.cancellation", invoice)
        }
        7 | 8 => {
            let month = pick(random, &["2000-01", "2026-06", "2998-11", "2998-12"]);
            ("subscription.cancellation", json!({ "actor": admin, "via": "purchases", "month": month }))
        }
        _ => (
            "payment.failure",
            json!({
                "invoice_id": "i".repeat(128), "amount": { "value": "999999999999.9999", "currency": "CAD" },
                "card": { "brand": text(random, 256), "last4": "4242" }, "attempt": u32::MAX,
                "next_attempt_on": "2998-12-31", "failure_message": text(random, 2_000),
            }),
        ),
    };
    data["organization_id"] = json!(organization);
    data["subscription_id"] = json!(document.get_str("_id").unwrap());
    let mut command = command(&format!("c-{at}-{round}"), kind, data);
    command["time"] =
        json!(pick(random, &["2000-01-01T00:00:00Z", "2998-12-31T23:59:59.999Z", "2026-06-01T12:00:00Z"]));
    Command::parse(command.to_string().as_bytes()).unwrap()
}

/// 1 to `max` characters that take one to four bytes each.
fn text(random: &mut Rng, max: usize) -> String {
    let length = pick(random, &[1, 7, max]);
    pick(random, &["a", "é", "水", "🏊"]).repeat(length)
}

/// How many documents of a collection the sweep has found that it cannot process.
async fn unworkable(worker: &Worker, collection: &str) -> Option<f64> {
    let metrics = get(worker.port(), "/metrics").await?;
    let name = format!("offramp_unworkable_documents{{collection=\"{collection}\"}} ");
    metrics.lines().find_map(|line| line.strip_prefix(&name)?.trim().parse().ok())
}

/// What the drivers of Node and Python write: integers as int32, int64 or double, null for what is not set, fields of their own.
#[tokio::test(flavor = "multi_thread")]
async fn documents_of_other_drivers_pass_through_the_whole_job() {
    let world = World::new("drivers").await;
    let sink = SmtpSink::start().await;
    populate(&world).await;
    let null_lists =
        ["history", "notifications", "applied", "outbox", "payment_failures", "cancellation", "cancellation_request"];
    let nulls: Document = null_lists.iter().map(|field| ((*field).to_owned(), Bson::Null)).collect();
    let mut documents = Vec::new();
    for (at, day) in [Bson::Int32(15), Bson::Int64(15), Bson::Double(15.0)].into_iter().enumerate() {
        let mut document = subscription(&format!("number-{at}"), "org", "acc");
        document.get_document_mut("billing").unwrap().insert("day", day.clone());
        document.insert("version", day);
        documents.push(document);
    }
    let mut every_null = subscription("nulls", "org", "acc");
    every_null.extend(nulls);
    every_null.extend(doc! { "version": null, "status": null, "expires_on": null, "ends_on": null, "ends_at": null });
    documents.push(every_null);
    for list in null_lists {
        let mut one_null = subscription(&format!("null-{list}"), "org", "acc");
        one_null.insert(list, Bson::Null);
        documents.push(one_null);
    }
    let mut unknown = subscription("unknown-fields", "org", "acc");
    unknown.extend(doc! { "__v": 0, "createdAt": DateTime::now(), "owner": ObjectId::new(), "crm": { "score": 0.5 } });
    unknown.get_document_mut("billing").unwrap().insert("createdAt", DateTime::now());
    documents.push(unknown.clone());
    let mut odd = subscription("odd-notifications", "org", "acc");
    odd.insert("notifications", "none");
    documents.push(odd);
    // A card, a language and a brand that no cancellation needs.
    let accounts = world.collection("accounts");
    let cards = doc! { "$set": { "cards": [{ "id": "bank", "brand": "", "last4": "", "expires": null }], "card_notices": "x" } };
    accounts.update_one(doc! { "_id": "acc" }, cards).await.unwrap();
    let brand = doc! { "$set": { "brand": { "color": 5, "logo_url": "data:image/png;base64,AAAA" }, "card_notice_days": "30" } };
    world.collection("organizations").update_one(doc! { "_id": "org" }, brand).await.unwrap();
    world.collection("subscriptions").insert_many(&documents).await.unwrap();

    let worker = Worker::start(&world, &sink.url()).await;
    for document in &documents {
        let id = document.get_str("_id").unwrap();
        world.command(&cancellation(&format!("cancel-{id}"), id)).await;
    }
    eventually("every cancellation", || async {
        let cancelled = doc! { "status": "cancellation_scheduled", "outbox": { "$size": 0 } };
        let count = world.collection("subscriptions").count_documents(cancelled).await.unwrap();
        (count == documents.len() as u64).then_some(())
    })
    .await;
    assert_eq!(sink.mails().len(), documents.len(), "one email each");
    assert!(world.take("dead-letters").await.is_none());
    for id in ["nulls", "null-notifications", "number-2"] {
        let document = world.document("subscriptions", id).await.unwrap();
        let records = document.get_array("notifications").unwrap();
        assert!(records[0].as_document().unwrap().get_datetime("sent_at").is_ok(), "{id}: {records:?}");
    }
    let found = world.document("subscriptions", "unknown-fields").await.unwrap();
    for field in ["__v", "createdAt", "owner", "crm"] {
        assert_eq!(found.get(field), unknown.get(field), "{field}");
    }
    assert_eq!(
        world.document("subscriptions", "odd-notifications").await.unwrap().get_str("notifications").unwrap(),
        "none"
    );
    assert!(worker.stop().await.success());
    world.remove().await;
}

/// What nothing can be decided about is a dead letter that says why, and what only time would end is found by the sweep.
#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_processed_is_reported() {
    let world = World::new("unworkable").await;
    let sink = SmtpSink::start().await;
    populate(&world).await;
    let long_ago = DateTime::from_millis(1_577_836_800_000);
    let set = |id: &str, fields: Document| {
        let mut document = subscription(id, "org", "acc");
        document.extend(fields);
        document
    };
    let mut bad_day = set("bad-day", doc! { "expires_on": "2020-01-01" });
    bad_day.get_document_mut("billing").unwrap().insert("day", "15");
    let documents = [
        set("date-as-expiry", doc! { "expires_on": long_ago }),
        set(
            "text-as-end",
            doc! { "status": "cancellation_scheduled", "ends_on": "2020-01-01", "ends_at": "2020-01-02T05:00:00Z" },
        ),
        set("no-organization", doc! { "organization_id": "gone", "expires_on": "2020-01-01" }),
        bad_day,
        set("good", doc! { "expires_on": "2020-01-01" }),
    ];
    world.collection("subscriptions").insert_many(&documents).await.unwrap();
    let worker = Worker::start(&world, &sink.url()).await;
    eventually("the good one's end", || async {
        let good = world.document("subscriptions", "good").await.unwrap();
        good.get_str("status").is_ok_and(|status| status == "expired").then_some(())
    })
    .await;
    eventually("the others' being counted", || async {
        (unworkable(&worker, "subscriptions").await == Some(4.0)).then_some(())
    })
    .await;
    for document in &documents[..4] {
        let id = document.get_str("_id").unwrap();
        assert_eq!(world.document("subscriptions", id).await.as_ref(), Some(document), "{id} is left as it is");
    }

    // An account of another organization.
    world.collection("organizations").insert_one(organization("other")).await.unwrap();
    world.collection("accounts").insert_one(account("foreign", "other")).await.unwrap();
    world.collection("subscriptions").insert_one(subscription("stray", "org", "foreign")).await.unwrap();
    world.command(&cancellation("stray", "stray")).await;
    let payment = json!({
        "organization_id": "org", "subscription_id": "bad-day", "invoice_id": "inv-5", "attempt": 1,
        "amount": { "value": "1.00", "currency": "CAD" }, "card": { "brand": "Visa", "last4": "4242" },
    });
    world.command(&with(cancellation("bad-day", "bad-day"), "month", json!("2199-07"))).await;
    world.command(&command("payment", "payment.failure", payment)).await;
    let letters =
        [world.dead_letter().await, world.dead_letter().await].map(|letter| letter.header("offramp-error")).join("; ");
    assert!(
        letters.contains("subscriptions stray: account_id: account foreign belongs to another organization"),
        "{letters}"
    );
    assert!(letters.contains("subscriptions bad-day: billing.day: expected an integer, found text"), "{letters}");
    assert!(!letters.contains("Kind:"), "{letters}");
    eventually("the failed payment to be recorded", || async {
        world.document("subscriptions", "bad-day").await.unwrap().get_array("payment_failures").is_ok().then_some(())
    })
    .await;
    assert!(worker.stop().await.success());
    world.remove().await;
}
