//! Documents as the world writes them: what the worker writes it can read back, and what other systems write stops no more than
//! what needs it.

use std::collections::{BTreeSet, HashSet};

use bson::oid::ObjectId;
use bson::{Bson, DateTime, Document, RawDocument, doc};
use chrono::Months;
use fastrand::Rng;
use offramp::clock;
use offramp::store::commit::{Committed, GuardedUpdate};
use offramp::store::documents::{AccountDocument, SubscriptionDocument, read};
use offramp::store::outbox::entry::{Lease, OutboxEntry};
use offramp::store::{Collection, Need, Store, changes};
use offramp::tls::Tls as StoreTls;
use offramp_domain::account::Account;
use offramp_domain::billing::YearMonth;
use offramp_domain::command::Command;
use offramp_domain::subscription::Subscription;
use offramp_domain::unit_of_work::{LoadedDocument, Task, TaskOutcome};
use serde_json::json;
use uuid::Uuid;

use offramp_testkit::eventually;
use offramp_testkit::fixtures::{account, cancellation, command, identify, organization, populate, subscription, with};
use offramp_testkit::smtp_sink::SmtpSink;
use offramp_testkit::test_bed::TestBed;
use offramp_testkit::worker_process::{WorkerProcess, get};

const SUBSCRIPTIONS: usize = 120;
const ACCOUNTS: usize = 30;
const ROUNDS: usize = 8;

/// Any accepted command, with dates at the ends of the calendar and texts at their limits, and whatever time does, leaves a
/// document that reads back as it was decided, and every entry of its outbox as itself.
#[tokio::test(flavor = "multi_thread")]
async fn every_accepted_command_leaves_a_document_that_reads_back() {
    let bed = TestBed::new("round-trip").await;
    let store = Store::open(&bed.mongodb_url, &StoreTls::default()).await.unwrap();
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut random = Rng::with_seed(seed);
    for (at, zone) in ["Pacific/Kiritimati", "Pacific/Pago_Pago", "America/Toronto"].iter().enumerate() {
        let id = format!("org-{at}");
        let mut document = organization(&id);
        document.extend(doc! {
            "timezone": zone, "notify_client_of_own_actions": true, "card_notice_days": [731, 90, 30, 5],
        });
        bed.collection("organizations").insert_one(document).await.unwrap();
    }
    let accounts: Vec<Document> = (0..ACCOUNTS).map(|at| any_account(&mut random, at)).collect();
    bed.collection("accounts").insert_many(&accounts).await.unwrap();
    let documents: Vec<Document> = (0..SUBSCRIPTIONS).map(|at| any_subscription(&mut random, at)).collect();
    bed.collection("subscriptions").insert_many(&documents).await.unwrap();

    let need = Need {
        subscriptions: documents.iter().map(|document| id(document).try_into().unwrap()).collect(),
        accounts: accounts.iter().map(|document| id(document).try_into().unwrap()).collect(),
        ..Need::default()
    };
    let (mut applied, mut statuses, mut notices) = (0, BTreeSet::new(), BTreeSet::new());
    for round in 0..ROUNDS {
        let mut tasks: Vec<Task> = Vec::new();
        for (at, document) in documents.iter().enumerate() {
            tasks.push(Task::Command(any_command(&mut random, document, at, round)));
            if random.u8(..4) == 0 {
                tasks.push(Task::Lapse(id(document).try_into().unwrap()));
            }
        }
        for (at, document) in accounts.iter().enumerate() {
            tasks.push(Task::Command(any_card_expiry(&mut random, document, at, round)));
            let card = format!("card-{}", random.usize(..CARDS));
            tasks.push(Task::CardNotice(id(document).try_into().unwrap(), card.as_str().try_into().unwrap()));
        }
        let mut loaded = store.load(&need).await.unwrap();
        let now = clock::now();
        for task in &tasks {
            match loaded.apply(task, now) {
                TaskOutcome::Applied => applied += 1,
                TaskOutcome::Unchanged | TaskOutcome::Rejected(_) => {}
                other => panic!("seed {seed}: {other:?}"),
            }
        }
        let after: Vec<Subscription> = loaded.changed_subscriptions().map(|draft| draft.after.clone()).collect();
        let accounts_after: Vec<Account> = loaded.changed_accounts().map(|draft| draft.after.clone()).collect();
        let lease = Lease { holder: Uuid::new_v4(), until: now };
        let updates = changes::updates(loaded, &lease, "tests", &identify, now).unwrap();
        let committed = store.commit(&updates).await.unwrap();
        assert!(committed.iter().all(|committed| *committed == Committed::Written), "seed {seed}: {committed:?}");

        for mut expected in after {
            let id = expected.id.to_string();
            let raw = store.document(Collection::Subscriptions, &id).await.unwrap().unwrap();
            let LoadedDocument::Read(found) = read::<SubscriptionDocument, Subscription>("subscriptions", &raw) else {
                panic!("seed {seed}: {id} cannot be read");
            };
            assert!(found.faults().is_empty(), "seed {seed}: {:?}", found.faults());
            expected.version = Some(expected.version.unwrap_or(0) + 1);
            expected.history_length = found.history_length;
            assert_eq!(found, expected, "seed {seed}");
            statuses.insert(found.status.as_str());
            check_outbox(&raw, &id, &updates);
        }
        for mut expected in accounts_after {
            let id = expected.id.to_string();
            let raw = store.document(Collection::Accounts, &id).await.unwrap().unwrap();
            let LoadedDocument::Read(found) = read::<AccountDocument, Account>("accounts", &raw) else {
                panic!("seed {seed}: {id} cannot be read");
            };
            assert!(found.faults().is_empty(), "seed {seed}: {:?}", found.faults());
            expected.version = Some(expected.version.unwrap_or(0) + 1);
            assert_eq!(found, expected, "seed {seed}");
            notices.extend(found.card_notices.unwrap().into_iter().map(|notice| notice.kind));
            check_outbox(&raw, &id, &updates);
        }
    }
    assert!(applied > SUBSCRIPTIONS, "{applied} tasks were applied");
    assert_eq!(statuses.len(), 6, "{statuses:?}");
    assert!(notices.len() > 3, "{notices:?}");
    bed.remove().await;
}

/// The newest entries of a document's outbox are those that its update brought.
#[track_caller]
fn check_outbox(raw: &RawDocument, id: &str, updates: &[GuardedUpdate]) {
    let update = updates.iter().find(|update| update.id == id).unwrap();
    let entries: Vec<OutboxEntry> = match raw.get_array("outbox") {
        Ok(outbox) => outbox
            .into_iter()
            .map(|entry| bson::deserialize_from_slice(entry.unwrap().as_document().unwrap().as_bytes()).unwrap())
            .collect(),
        Err(_) => Vec::new(),
    };
    assert_eq!(entries[entries.len() - update.entries.len()..], update.entries, "{id}");
}

/// A batch as long as the longest, all about one document, is committed and comes again, because its worker ended before the ack:
/// each command is remembered, so nothing is decided twice. With one command more, the first would be forgotten.
#[tokio::test(flavor = "multi_thread")]
async fn a_document_remembers_a_full_batch() {
    const BATCH_MAX: usize = 200;
    let bed = TestBed::new("full-batch").await;
    populate(&bed).await;
    let store = Store::open(&bed.mongodb_url, &StoreTls::default()).await.unwrap();
    let need = Need {
        subscriptions: HashSet::from(["sub".try_into().unwrap()]),
        accounts: HashSet::from(["acc".try_into().unwrap()]),
        ..Need::default()
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
    for expected in [TaskOutcome::Applied, TaskOutcome::Unchanged] {
        let mut loaded = store.load(&need).await.unwrap();
        let now = clock::now();
        for command in &commands {
            assert_eq!(loaded.apply(&Task::Command(command.clone()), now), expected, "{:?}", command.reference);
        }
        let lease = Lease { holder: Uuid::new_v4(), until: now };
        let updates = changes::updates(loaded, &lease, "tests", &identify, now).unwrap();
        assert_eq!(updates.len(), if expected == TaskOutcome::Applied { 2 } else { 0 });
        let committed = store.commit(&updates).await.unwrap();
        assert!(committed.iter().all(|committed| *committed == Committed::Written), "{committed:?}");
    }
    for collection in ["subscriptions", "accounts"] {
        let document = bed.document(collection, if collection == "accounts" { "acc" } else { "sub" }).await.unwrap();
        assert_eq!(document.get_array("applied").unwrap().len(), BATCH_MAX, "{collection}");
        assert_eq!(document.get_array("notifications").unwrap().len(), 2 * BATCH_MAX, "{collection}");
    }
    bed.remove().await;
}

/// Many documents are written with one statement. Those that somebody else has changed, and those that cannot take it, are told
/// from the others.
#[tokio::test(flavor = "multi_thread")]
async fn each_document_of_a_batch_is_written_lost_or_corrupt() {
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
        let need = Need { subscriptions: ids.iter().map(|id| (*id).try_into().unwrap()).collect(), ..Need::default() };
        let mut loaded = store.load(&need).await.unwrap();
        let now = clock::now();
        for id in &ids {
            let command = Command::parse(cancellation(&format!("c-{id}"), id).to_string().as_bytes()).unwrap();
            assert_eq!(loaded.apply(&Task::Command(command), now), TaskOutcome::Applied);
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

fn id(document: &Document) -> &str {
    document.get_str("_id").unwrap()
}

fn pick<T: Copy>(random: &mut Rng, choices: &[T]) -> T {
    choices[random.usize(..choices.len())]
}

/// How many cards an account has.
const CARDS: usize = 4;

fn any_account(random: &mut Rng, at: usize) -> Document {
    let mut document = account(&format!("acc-{at}"), &format!("org-{}", at % 3));
    let cards: Vec<Document> = (0..CARDS)
        .map(|card| {
            let expires = any_month(random);
            doc! { "id": format!("card-{card}"), "brand": text(random, 256), "last4": "4242", "expires": expires }
        })
        .collect();
    document.insert("cards", cards);
    document
}

/// Of a card: long over, a few months from now, or at the end of the calendar.
fn any_month(random: &mut Rng) -> String {
    let soon = YearMonth::of(clock::now().date_naive() + Months::new(random.u32(..6)));
    pick(random, &[None, None, Some("2000-01"), Some("2998-12")]).map_or_else(|| soon.to_string(), str::to_owned)
}

fn any_card_expiry(random: &mut Rng, document: &Document, at: usize, round: usize) -> Command {
    let card = json!({
        "id": pick(random, &["card-0", "card-1", "c"]), "brand": text(random, 256), "last4": "0042",
        "expires": any_month(random),
    });
    let organization = document.get_str("organization_id").unwrap();
    let data = json!({ "organization_id": organization, "account_id": id(document), "card": card });
    let command = command(&format!("card-{at}-{round}"), "card.expiry", data);
    Command::parse(command.to_string().as_bytes()).unwrap()
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
    document.insert("expires_on", pick(random, &[Some("9999-12-31"), Some("2999-12-31"), Some("1999-01-31"), None]));
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
async fn unworkable(worker: &WorkerProcess, collection: &str) -> Option<f64> {
    let metrics = get(worker.port(), "/metrics").await?;
    let name = format!("offramp_unworkable_documents{{collection=\"{collection}\"}} ");
    metrics.lines().find_map(|line| line.strip_prefix(&name)?.trim().parse().ok())
}

/// What the drivers of Node and Python write: integers as int32, int64 or double, null for what is not set, fields of their own.
#[tokio::test(flavor = "multi_thread")]
async fn documents_of_other_drivers_pass_through_the_whole_job() {
    let bed = TestBed::new("drivers").await;
    let sink = SmtpSink::start().await;
    populate(&bed).await;
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
    let accounts = bed.collection("accounts");
    let cards = doc! { "$set": { "cards": [{ "id": "bank", "brand": "", "last4": "", "expires": null }], "card_notices": "x" } };
    accounts.update_one(doc! { "_id": "acc" }, cards).await.unwrap();
    let brand = doc! { "$set": { "brand": { "color": 5, "logo_url": "data:image/png;base64,AAAA" }, "card_notice_days": "30" } };
    bed.collection("organizations").update_one(doc! { "_id": "org" }, brand).await.unwrap();
    bed.collection("subscriptions").insert_many(&documents).await.unwrap();

    let worker = WorkerProcess::start(&bed, &sink.url()).await;
    for document in &documents {
        let id = document.get_str("_id").unwrap();
        bed.command(&cancellation(&format!("cancel-{id}"), id)).await;
    }
    eventually("every cancellation", || async {
        let cancelled = doc! { "status": "cancellation_scheduled", "outbox": { "$size": 0 } };
        let count = bed.collection("subscriptions").count_documents(cancelled).await.unwrap();
        (count == documents.len() as u64).then_some(())
    })
    .await;
    assert_eq!(sink.mails().len(), documents.len(), "one email each");
    assert!(bed.take("dead-letters").await.is_none());
    for id in ["nulls", "null-notifications", "number-2"] {
        let document = bed.document("subscriptions", id).await.unwrap();
        let records = document.get_array("notifications").unwrap();
        assert!(records[0].as_document().unwrap().get_datetime("sent_at").is_ok(), "{id}: {records:?}");
    }
    let found = bed.document("subscriptions", "unknown-fields").await.unwrap();
    for field in ["__v", "createdAt", "owner", "crm"] {
        assert_eq!(found.get(field), unknown.get(field), "{field}");
    }
    assert_eq!(
        bed.document("subscriptions", "odd-notifications").await.unwrap().get_str("notifications").unwrap(),
        "none"
    );
    assert!(worker.stop().await.success());
    bed.remove().await;
}

/// The same of accounts: a notice about a card leaves what others wrote as it is.
#[tokio::test(flavor = "multi_thread")]
async fn accounts_of_other_drivers_pass_through_the_whole_job() {
    let bed = TestBed::new("account-drivers").await;
    let sink = SmtpSink::start().await;
    populate(&bed).await;
    let null_lists = ["cards", "applied", "outbox", "card_notices", "notifications"];
    let with = |id: &str, fields: Document| {
        let mut document = account(id, "org");
        document.extend(fields);
        document
    };
    let mut documents: Vec<Document> = [Bson::Int32(3), Bson::Int64(3), Bson::Double(3.0), Bson::Null]
        .into_iter()
        .enumerate()
        .map(|(at, version)| with(&format!("version-{at}"), doc! { "version": version }))
        .collect();
    documents.push(with("nulls", null_lists.iter().map(|list| ((*list).to_owned(), Bson::Null)).collect()));
    documents.extend(null_lists.map(|list| with(&format!("null-{list}"), doc! { list: null })));
    let theirs = doc! { "__v": 0, "createdAt": DateTime::now(), "owner": ObjectId::new(), "score": 0.5, "tags": null };
    let mut unknown = with("unknown-fields", theirs.clone());
    let manager = unknown.get_document_mut("manager").unwrap();
    manager.extend(doc! { "locale": null, "phone": null, "born": DateTime::from_millis(0) });
    documents.push(unknown.clone());
    let given = doc! {
        "card_id": "other", "expires": "2199-06", "notice": { "days": 30 }, "at": DateTime::now(), "by": ObjectId::new(),
    };
    documents.push(with("notice-of-before", doc! { "card_notices": [given.clone()] }));
    documents.push(with("odd-notifications", doc! { "notifications": "none" }));
    documents.push(with("odd-cards", doc! { "cards": [{ "id": "bank", "brand": "", "last4": "", "expires": null }] }));
    bed.collection("accounts").insert_many(&documents).await.unwrap();

    let worker = WorkerProcess::start(&bed, &sink.url()).await;
    for document in &documents {
        let card = json!({ "id": "card", "brand": "Visa", "last4": "4242", "expires": "2199-06" });
        let data = json!({ "organization_id": "org", "account_id": id(document), "card": card });
        bed.command(&command(&format!("expiry-{}", id(document)), "card.expiry", data)).await;
    }
    eventually("every notice", || async {
        let given = doc! { "card_notices.card_id": "card", "outbox": { "$size": 0 } };
        let count = bed.collection("accounts").count_documents(given).await.unwrap();
        (count == documents.len() as u64).then_some(())
    })
    .await;
    assert_eq!(sink.mails().len(), 2 * documents.len(), "one email to each side");
    assert!(bed.take("dead-letters").await.is_none());
    for id in ["version-2", "version-3", "nulls", "null-notifications"] {
        let document = bed.document("accounts", id).await.unwrap();
        assert!(document.get_i64("version").unwrap() > 0, "{id}");
        let records = document.get_array("notifications").unwrap();
        assert!(
            records.iter().all(|record| record.as_document().unwrap().get_datetime("sent_at").is_ok()),
            "{records:?}"
        );
    }
    let found = bed.document("accounts", "unknown-fields").await.unwrap();
    assert_eq!(found.get("manager"), unknown.get("manager"));
    for field in theirs.keys() {
        assert_eq!(found.get(field), unknown.get(field), "{field}");
    }
    let found = bed.document("accounts", "notice-of-before").await.unwrap();
    assert_eq!(found.get_array("card_notices").unwrap()[0], Bson::from(given));
    let found = bed.document("accounts", "odd-notifications").await.unwrap();
    assert_eq!(found.get_str("notifications").unwrap(), "none");
    assert!(worker.stop().await.success());
    bed.remove().await;
}

/// What nothing can be decided about is a dead letter that says why, and what only time would end is found by the sweep.
#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_processed_is_reported() {
    let bed = TestBed::new("unworkable").await;
    let sink = SmtpSink::start().await;
    populate(&bed).await;
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
    bed.collection("subscriptions").insert_many(&documents).await.unwrap();
    let worker = WorkerProcess::start(&bed, &sink.url()).await;
    eventually("the good one's end", || async {
        let good = bed.document("subscriptions", "good").await.unwrap();
        good.get_str("status").is_ok_and(|status| status == "expired").then_some(())
    })
    .await;
    eventually("the others' being counted", || async {
        (unworkable(&worker, "subscriptions").await == Some(4.0)).then_some(())
    })
    .await;
    for document in &documents[..4] {
        let id = document.get_str("_id").unwrap();
        assert_eq!(bed.document("subscriptions", id).await.as_ref(), Some(document), "{id} is left as it is");
    }

    // An account of another organization.
    bed.collection("organizations").insert_one(organization("other")).await.unwrap();
    bed.collection("accounts").insert_one(account("foreign", "other")).await.unwrap();
    bed.collection("subscriptions").insert_one(subscription("stray", "org", "foreign")).await.unwrap();
    bed.command(&cancellation("stray", "stray")).await;
    let payment = json!({
        "organization_id": "org", "subscription_id": "bad-day", "invoice_id": "inv-5", "attempt": 1,
        "amount": { "value": "1.00", "currency": "CAD" }, "card": { "brand": "Visa", "last4": "4242" },
    });
    bed.command(&with(cancellation("bad-day", "bad-day"), "month", json!("2199-07"))).await;
    bed.command(&command("payment", "payment.failure", payment)).await;
    let letters =
        [bed.dead_letter().await, bed.dead_letter().await].map(|letter| letter.header("offramp-error")).join("; ");
    assert!(
        letters.contains("subscriptions stray: account_id: account foreign belongs to another organization"),
        "{letters}"
    );
    assert!(letters.contains("subscriptions bad-day: billing.day: expected an integer, found text"), "{letters}");
    assert!(!letters.contains("Kind:"), "{letters}");
    eventually("the failed payment to be recorded", || async {
        bed.document("subscriptions", "bad-day").await.unwrap().get_array("payment_failures").is_ok().then_some(())
    })
    .await;
    assert!(worker.stop().await.success());
    bed.remove().await;
}
