//! Random commands on random documents: every accepted change can be read back.

use std::collections::BTreeSet;

use bson::{Document, RawDocument, doc};
use chrono::Months;
use fastrand::Rng;
use offramp::clock;
use offramp::store::documents::{AccountDocument, SubscriptionDocument, read};
use offramp::store::outbox::entry::{Lease, OutboxEntry};
use offramp::store::{Collection, DocumentKeys, Store, updates};
use offramp::store::{commit::WriteResult, guarded_update::GuardedUpdate};
use offramp::tls::Tls as StoreTls;
use offramp_domain::account::Account;
use offramp_domain::calendar::YearMonth;
use offramp_domain::command::Command;
use offramp_domain::subscription::Subscription;
use offramp_domain::unit_of_work::{LoadedDocument, Task, TaskOutcome};
use serde_json::json;
use uuid::Uuid;

use super::{id, pick, text};
use offramp_testkit::fixtures::{account, command, identify, organization, subscription};
use offramp_testkit::test_bed::TestBed;

const SUBSCRIPTIONS: usize = 120;
const ACCOUNTS: usize = 30;
const ROUNDS: usize = 8;

/// Commands use dates at the ends of the calendar and texts at their maximum length. Documents and outbox entries read back
/// exactly as decided.
#[tokio::test(flavor = "multi_thread")]
async fn every_accepted_command_writes_a_readable_document() {
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

    let need = DocumentKeys {
        subscriptions: documents.iter().map(|document| id(document).try_into().unwrap()).collect(),
        accounts: accounts.iter().map(|document| id(document).try_into().unwrap()).collect(),
        ..DocumentKeys::default()
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
        let updates = updates::build(loaded, &lease, "tests", &identify, now).unwrap();
        let committed = store.commit(&updates).await.unwrap();
        assert!(committed.iter().all(|committed| *committed == WriteResult::Written), "seed {seed}: {committed:?}");

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

/// The newest outbox entries of a document are those of its update.
#[track_caller]
fn check_outbox(raw: &RawDocument, id: &str, updates: &[GuardedUpdate]) {
    let update = updates.iter().find(|update| update.document.as_str() == id).unwrap();
    let entries: Vec<OutboxEntry> = match raw.get_array("outbox") {
        Ok(outbox) => outbox
            .into_iter()
            .map(|entry| bson::deserialize_from_slice(entry.unwrap().as_document().unwrap().as_bytes()).unwrap())
            .collect(),
        Err(_) => Vec::new(),
    };
    assert_eq!(entries[entries.len() - update.entries.len()..], update.entries, "{id}");
}

/// Cards per account.
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

/// An expiry month: in the past, a few months ahead, or at the end of the calendar.
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
