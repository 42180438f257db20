//! `offramp outbox`: list, retry, drop.

use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bson::{Bson, Document, doc};
use chrono::Utc;
use offramp::store::Store;
use offramp::store::outbox::admin::EntryState;
use serde_json::{Value, json};

use super::{failure, objects, output};
use offramp_testkit::eventually;
use offramp_testkit::fixtures::{cancellation, command, populate, subscription};
use offramp_testkit::smtp_sink::{Action, SmtpSink, Step, Tls};
use offramp_testkit::test_bed::TestBed;
use offramp_testkit::worker_process::{WorkerProcess, offramp};

#[tokio::test(flavor = "multi_thread")]
async fn rejected_emails_are_listed_and_retried() {
    let bed = TestBed::new("refused").await;
    let unwilling = Arc::new(AtomicBool::new(true));
    let sink = SmtpSink::scripted(Tls::No, {
        let unwilling = Arc::clone(&unwilling);
        move |step, _| match step {
            Step::Rcpt if unwilling.load(Ordering::Relaxed) => Action::Answer("550 5.1.1 no \x1b[5msuch user"),
            _ => Action::Ok,
        }
    })
    .await;
    populate(&bed).await;
    let more = (0..3).map(|index| subscription(&format!("sub-{index}"), "org", "acc"));
    bed.collection("subscriptions").insert_many(more).await.unwrap();
    let worker = WorkerProcess::start(&bed, &sink.url()).await;
    assert!(output(&bed, &["outbox", "list"]).starts_with("nothing was rejected"));
    for subscription in ["sub", "sub-0", "sub-1", "sub-2"] {
        bed.command(&cancellation(&format!("cancel-{subscription}"), subscription)).await;
    }
    let card = json!({ "organization_id": "org", "account_id": "acc",
        "card": { "id": "card", "brand": "Visa", "last4": "4242", "expires": "2199-06" } });
    bed.command(&command("card", "card.expiry", card)).await;
    // An email for each cancellation, two for the card.
    let refused = eventually("six rejected emails", || async {
        let refused = objects(&bed, &["outbox", "list", "--json"]);
        (refused.len() == 6).then_some(refused)
    })
    .await;
    let of_accounts: Vec<_> = refused.iter().filter(|entry| entry["collection"] == "accounts").collect();
    assert_eq!(of_accounts.len(), 2, "{refused:?}");
    let one = refused.iter().find(|entry| entry["document"] == "sub").unwrap();
    assert_eq!((&one["kind"], &one["type"]), (&json!("mail"), &json!("cancelled-by-admin")));
    assert_eq!((&one["to"], &one["attempts"], &one["due"]), (&json!("acc@home.example"), &json!(1), &Value::Null));
    assert!(one["error"].as_str().unwrap().contains("550"), "{one}");
    assert!(chrono::DateTime::parse_from_rfc3339(one["failed_at"].as_str().unwrap()).unwrap() <= Utc::now());
    let text = output(&bed, &["outbox", "list", "--type", "cancelled-by-admin", "--limit", "3"]);
    assert!(text.contains("… and 1 more") && text.contains("4 entries rejected permanently"), "{text}");
    assert!(!text.contains('\x1b'), "{text}");
    // Each rejection is announced by an event.
    eventually("nothing to wait", || async {
        output(&bed, &["outbox", "list", "--waiting"]).starts_with("nothing waits")
    })
    .await;

    // The queries use an index, once it is built.
    let store = Store::open(&bed.mongodb_url, &offramp::tls::Tls::default()).await.unwrap();
    eventually("all indexes", || async { store.missing_indexes().await.unwrap().is_empty().then_some(()) }).await;
    let any = doc! { "$gte": bson::DateTime::MIN };
    let waiting = doc! { "kind": { "$in": [bson::Bson::Null, bson::Bson::from("email"), bson::Bson::from("event")] }, "due": any.clone() };
    for (collection, filter) in [
        ("subscriptions", doc! { "outbox.failed_at": any.clone() }),
        ("accounts", doc! { "outbox.due": any.clone(), "outbox": { "$elemMatch": waiting } }),
    ] {
        let find = doc! { "find": collection, "filter": filter };
        let plan = bed.database.run_command(doc! { "explain": find }).await.unwrap().to_string();
        assert!(plan.contains("IXSCAN") && !plan.contains("COLLSCAN"), "{plan}");
    }

    let wrong = failure(&bed, &["outbox", "retry"], 2);
    assert!(wrong.contains("--all"), "{wrong}");
    failure(&bed, &["outbox", "retry", "0"], 2);
    let nobody = failure(&bed, &["outbox", "retry", "zzzzzzzz"], 1);
    assert!(nobody.contains("outbox list"), "{nobody}");
    let dry = output(&bed, &["outbox", "retry", "--all", "--dry-run"]);
    assert!(dry.contains("6 entries would be retried; nothing was changed"), "{dry}");

    // Rejected again, it is listed with one more attempt.
    let version = || async { bed.document("subscriptions", "sub").await.unwrap().get_i64("version").unwrap() };
    let before = version().await;
    let id = one["id"].as_str().unwrap();
    assert_eq!(output(&bed, &["outbox", "retry", &id[..8]]), "1 due now; a worker retries them within seconds\n");
    eventually("a second rejection", || async {
        let refused = objects(&bed, &["outbox", "list", "--document", "sub", "--json"]);
        refused.first().filter(|entry| entry["attempts"] == 2).map(drop)
    })
    .await;
    assert!(version().await >= before + 3, "made due, claimed, rejected");

    // Two concurrent retries with a server that now accepts: each email is sent once.
    unwilling.store(false, Ordering::Relaxed);
    let start = || {
        let arguments = ["outbox", "retry", "--all"];
        offramp(&bed).args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap()
    };
    let children = [start(), start()];
    for child in children {
        assert!(child.wait_with_output().unwrap().status.success());
    }
    bed.outboxes_empty().await;
    assert_eq!(sink.emails().len(), 6);
    assert!(output(&bed, &["outbox", "retry", "--all"]).contains("nothing to do"));
    assert!(worker.stop().await.success());
    bed.remove().await;
}

/// "He never got the email": the address is corrected in the account, and the email goes there.
#[tokio::test(flavor = "multi_thread")]
async fn a_rejected_email_reaches_the_corrected_address() {
    let bed = TestBed::new("readdress").await;
    let is_wrong = Arc::new(AtomicBool::new(true));
    let sink = SmtpSink::scripted(Tls::No, {
        let is_wrong = Arc::clone(&is_wrong);
        move |step, _| match step {
            Step::Rcpt if is_wrong.load(Ordering::Relaxed) => Action::Answer("550 5.1.1 no such user"),
            _ => Action::Ok,
        }
    })
    .await;
    populate(&bed).await;
    let worker = WorkerProcess::start(&bed, &sink.url()).await;
    bed.command(&cancellation("cancel", "sub")).await;
    let rejected =
        eventually("a rejected email", || async { objects(&bed, &["outbox", "list", "--json"]).pop() }).await;
    let id = rejected["id"].as_str().unwrap();

    let set = doc! { "$set": { "manager.email": "ada@new.example" } };
    bed.collection("accounts").update_one(doc! { "_id": "acc" }, set).await.unwrap();
    is_wrong.store(false, Ordering::Relaxed);
    let arguments = ["outbox", "retry", &id[..8], "--to-current-address"];
    let dry = output(&bed, &[&arguments[..], &["--dry-run"]].concat());
    assert!(dry.contains("acc@home.example → ada@new.example"), "{dry}");
    assert!(dry.ends_with("1 email would be retried; nothing was changed\n"), "{dry}");
    let printed = output(&bed, &arguments);
    assert!(printed.ends_with("1 email due now; a worker sends them within seconds\n"), "{printed}");
    bed.outboxes_empty().await;
    let emails = sink.emails();
    assert_eq!(emails.len(), 1);
    assert_eq!(emails[0].to, ["ada@new.example"]);
    let record = bed.document("subscriptions", "sub").await.unwrap().get_array("notifications").unwrap()[0].clone();
    let record = record.as_document().unwrap();
    assert_eq!(record.get_str("to").unwrap(), "ada@new.example");
    assert!(record.get_datetime("sent_at").is_ok() && record.get("error").is_none(), "{record}");

    // Without an account there is no current address.
    let orphan = doc! { "_id": "orphan", "account_id": "none", "outbox": [rejected_entry("orphan-0", "a@x.example")] };
    bed.collection("subscriptions").insert_one(orphan).await.unwrap();
    failure(&bed, &["outbox", "retry", "orphan-0", "--to-current-address"], 1);
    assert!(worker.stop().await.success());
    bed.remove().await;
}

/// An outbox entry that was permanently rejected.
fn rejected_entry(id: impl Into<Bson>, to: &str) -> Document {
    doc! {
        "id": id.into(), "mail": { "template": "cancelled-by-admin", "to": { "email": to } }, "attempts": 1, "holder": "",
        "error": "550 no such user", "failed_at": bson::DateTime::now(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn rejected_entries_are_dropped() {
    let bed = TestBed::new("drop").await;
    let record = |id: &str| doc! { "id": id, "template": "cancelled-by-admin", "crm": 7 };
    let waiting = doc! { "id": "waits-0", "due": bson::DateTime::MAX, "attempts": 1, "holder": "" };
    let document = |id: &str, entries: Vec<Document>| doc! { "_id": id, "version": 3_i64, "outbox": entries };
    let with = |mut document: Document, name: &str, value: Bson| {
        document.insert(name, value);
        document
    };
    let subscriptions = [
        with(
            document("recorded", vec![rejected_entry("recorded-0", "a@x.example"), waiting.clone()]),
            "notifications",
            vec![record("another"), record("recorded-0")].into(),
        ),
        with(document("null", vec![rejected_entry("null-0", "a@x.example")]), "notifications", Bson::Null),
        with(document("text", vec![rejected_entry("text-0", "a@x.example")]), "notifications", "x".into()),
        document("bare", vec![rejected_entry("bare-0", "a@x.example"), rejected_entry("bare-1", "b@x.example")]),
        with(
            with(document("tombstone", vec![rejected_entry("tombstone-0", "a@x.example")]), "status", "removed".into()),
            "notifications",
            vec![record("tombstone-0")].into(),
        ),
        document(
            "unreadable",
            vec![
                rejected_entry(7, "a@x.example"),
                doc! { "failed_at": bson::DateTime::now(), "mail": "no" },
                waiting.clone(),
            ],
        ),
    ];
    bed.collection("subscriptions").insert_many(subscriptions).await.unwrap();
    let account = document("acc", vec![rejected_entry("acc-0000", "b@x.example")]);
    bed.collection("accounts").insert_one(account).await.unwrap();
    let listed = || objects(&bed, &["outbox", "list", "--json"]).len();
    assert_eq!(listed(), 9);

    // Nothing is dropped without a filter and a confirmation.
    assert!(failure(&bed, &["outbox", "drop", "--yes"], 2).contains("--all"));
    assert!(failure(&bed, &["outbox", "drop", "--all"], 2).contains("--yes"));
    failure(&bed, &["outbox", "drop", "zzzzzzzz", "--yes"], 1);
    let dry = output(&bed, &["outbox", "drop", "--all", "--dry-run"]);
    assert!(dry.contains("9 entries would be dropped; nothing was changed"), "{dry}");
    assert_eq!(listed(), 9);

    // Dropping one by id adds the drop to its record and changes nothing else.
    assert_eq!(output(&bed, &["outbox", "drop", "recorded", "--yes"]), "dropped 1 entry\n");
    let recorded = bed.document("subscriptions", "recorded").await.unwrap();
    assert_eq!(recorded.get_i64("version").unwrap(), 4);
    assert_eq!(recorded.get_array("outbox").unwrap(), &[Bson::from(waiting.clone())]);
    let [another, dropped] = recorded.get_array("notifications").unwrap().as_slice() else { panic!("{recorded}") };
    assert_eq!(another, &Bson::from(record("another")));
    let dropped = dropped.as_document().unwrap();
    assert_eq!(dropped.get_str("error").unwrap(), "550 no such user; dropped by an operator");
    assert!(dropped.get_datetime("failed_at").unwrap() <= &bson::DateTime::now());
    assert_eq!(dropped.get_i32("crm").unwrap(), 7);

    // Entries without a record, with an invalid record, in an account, and by filters.
    assert_eq!(output(&bed, &["outbox", "drop", "--document", "bare", "--to", "a@", "--yes"]), "dropped 1 entry\n");
    assert_eq!(bed.document("subscriptions", "bare").await.unwrap().get_array("outbox").unwrap().len(), 1);
    assert_eq!(output(&bed, &["outbox", "drop", "--to", "b@", "--yes"]), "dropped 2 entries\n");
    for id in ["null", "text"] {
        assert_eq!(output(&bed, &["outbox", "drop", "--document", id, "--yes"]), "dropped 1 entry\n");
    }
    assert_eq!(bed.document("subscriptions", "null").await.unwrap().get("notifications"), Some(&Bson::Null));
    assert!(bed.document("accounts", "acc").await.unwrap().get_array("outbox").unwrap().is_empty());

    // Unreadable entries are selected by their document.
    output(&bed, &["outbox", "drop", "--document", "unreadable", "--yes"]);
    let unreadable = bed.document("subscriptions", "unreadable").await.unwrap();
    assert_eq!(unreadable.get_array("outbox").unwrap(), &[Bson::from(waiting)]);

    // An entry that was retried meanwhile is not dropped.
    let store = Store::open(&bed.mongodb_url, &offramp::tls::Tls::default()).await.unwrap();
    let mut entries = store.outbox_entries(EntryState::Failed).await.unwrap();
    let stale = entries.next().await.unwrap().unwrap();
    assert_eq!(stale.len(), 1);
    assert_eq!(store.retry(&stale, Utc::now()).await, Ok(1));
    assert_eq!(store.drop_failed(&stale).await, Ok(0));
    let due = doc! { "$set": { "outbox.0.failed_at": bson::DateTime::now() }, "$unset": { "outbox.0.due": "" } };
    bed.collection("subscriptions").update_one(doc! { "_id": "tombstone" }, due).await.unwrap();

    // Tombstones; and an entry is dropped even if a validator rejects the update of its record.
    assert_eq!(output(&bed, &["outbox", "drop", "--all", "--dry-run"]).matches("tombstone").count(), 2);
    bed.collection("subscriptions").delete_one(doc! { "_id": "recorded" }).await.unwrap();
    bed.set_validator("subscriptions", doc! { "notifications.failed_at": { "$exists": false } }).await;
    assert_eq!(output(&bed, &["outbox", "drop", "--all", "--yes"]), "dropped 1 entry\n");
    let tombstone = bed.document("subscriptions", "tombstone").await.unwrap();
    assert!(tombstone.get_array("outbox").unwrap().is_empty());
    assert_eq!(tombstone.get_array("notifications").unwrap(), &[Bson::from(record("tombstone-0"))]);
    assert_eq!(listed(), 0);
    assert!(output(&bed, &["outbox", "drop", "--all", "--yes"]).contains("nothing to do"));
    bed.remove().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn waiting_entries_are_listed_with_their_error() {
    let bed = TestBed::new("waiting").await;
    let sink = SmtpSink::scripted(Tls::No, |step, _| match step {
        Step::Rcpt => Action::Answer("450 4.2.0 greylisted"),
        _ => Action::Ok,
    })
    .await;
    populate(&bed).await;
    let worker = WorkerProcess::start(&bed, &sink.url()).await;
    bed.command(&cancellation("cancel", "sub")).await;
    let waiting = eventually("a waiting email", || async {
        let waiting = objects(&bed, &["outbox", "list", "--waiting", "--json", "--to", "acc@home.example"]);
        waiting.into_iter().find(|entry| entry["attempts"] == 1)
    })
    .await;
    assert!(waiting["error"].as_str().unwrap().contains("greylisted"), "{waiting}");
    assert!(waiting["due"].is_string() && waiting["failed_at"].is_null(), "{waiting}");
    let text = output(&bed, &["outbox", "list", "--waiting"]);
    assert!(text.contains("greylisted") && text.contains("waiting"), "{text}");
    assert!(output(&bed, &["outbox", "list"]).starts_with("nothing was rejected"));
    assert_eq!(output(&bed, &["outbox", "retry", "--all"]), "no such entries; nothing to do\n");
    assert!(worker.stop().await.success());
    bed.remove().await;
}
