//! Email records: written with the decision, marked as sent, kept in tombstones without addresses.

use std::sync::atomic::Ordering;

use bson::{DateTime, doc};
use mail_parser::MessageParser;
use serde_json::json;

use super::{entries, records};
use offramp_testkit::eventually;
use offramp_testkit::fixtures::{account, cancellation, command, populate, with};
use offramp_testkit::smtp_sink::{Action, SmtpSink, Step, Tls};
use offramp_testkit::test_bed::TestBed;
use offramp_testkit::worker_process::{self, WorkerProcess};

#[tokio::test(flavor = "multi_thread")]
async fn an_email_is_recorded_with_the_decision_and_later_marked_as_sent() {
    let bed = TestBed::new("recorded").await;
    let (sink, is_back) = SmtpSink::unavailable().await;
    populate(&bed).await;
    let worker = WorkerProcess::start(&bed, &sink.url()).await;
    bed.command(&cancellation("cancel", "sub")).await;
    let before = eventually("the decision", || async {
        let document = bed.document("subscriptions", "sub").await.unwrap();
        document.contains_key("notifications").then_some(document)
    })
    .await;
    let [record] = records(&before)[..] else { panic!("{before}") };
    let decided_at = before.get_array("history").unwrap()[0].as_document().unwrap().get_datetime("at").unwrap();
    assert_eq!(record.get_datetime("at").unwrap(), decided_at);
    assert_eq!(record.get_str("template").unwrap(), "cancelled-by-admin");
    assert_eq!(record.get_str("to").unwrap(), "acc@home.example");
    assert_eq!(record.get_str("role").unwrap(), "account_manager");
    assert_eq!(record.get_str("locale").unwrap(), "en-CA");
    assert!(!record.contains_key("sent_at"), "{record}");
    let email = entries(&before).into_iter().find(|entry| entry.contains_key("mail")).unwrap();
    assert_eq!((email.get_str("kind").unwrap(), email.get("id")), ("email", record.get("id")));
    let shown =
        String::from_utf8(worker_process::offramp(&bed).args(["show", "sub"]).output().unwrap().stdout).unwrap();
    assert!(shown.contains("not sent yet"), "{shown}");

    is_back.store(true, Ordering::Relaxed);
    bed.outboxes_empty().await;
    let after = bed.document("subscriptions", "sub").await.unwrap();
    let [sent] = records(&after)[..] else { panic!("{after}") };
    let mut expected = record.clone();
    expected.insert("sent_at", sent.get_datetime("sent_at").unwrap());
    assert_eq!(*sent, expected);
    let emails = sink.emails();
    assert_eq!(emails.len(), 1);
    let mail = MessageParser::default().parse(&emails[0].bytes).unwrap();
    assert_eq!(format!("<{}>", mail.message_id().unwrap()), sent.get_str("message_id").unwrap());
    assert_eq!(mail.header("Content-Language").unwrap().as_text().unwrap(), sent.get_str("locale").unwrap());
    assert!(worker.stop().await.success());
    bed.remove().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tombstone_keeps_email_records_without_addresses() {
    let bed = TestBed::new("tombstone").await;
    let (sink, is_back) = SmtpSink::unavailable().await;
    populate(&bed).await;
    let earlier = doc! { "$set": {
        "notifications": [{ "id": "old", "template": "payment-failed", "to": "old@home.example" }, 5],
        "history": [{ "at": DateTime::now(), "from": "active", "to": "active", "reason": "personal", "note": "personal" }],
    } };
    bed.collection("subscriptions").update_one(doc! { "_id": "sub" }, earlier).await.unwrap();
    let worker = WorkerProcess::start(&bed, &sink.url()).await;
    let mut removal = with(cancellation("remove", "sub"), "invoice_id", json!("inv-5"));
    removal["data"]["via"] = json!("invoice");
    bed.command(&removal).await;
    let tombstone = eventually("the tombstone", || async {
        let document = bed.document("subscriptions", "sub").await.unwrap();
        document.get_str("status").is_ok_and(|status| status == "removed").then_some(document)
    })
    .await;
    // Only the unsent entry has the address.
    assert!(format!("{tombstone}").contains("acc@home.example"));
    is_back.store(true, Ordering::Relaxed);
    bed.outboxes_empty().await;
    let tombstone = bed.document("subscriptions", "sub").await.unwrap();
    let text = format!("{tombstone}");
    assert!(!text.contains("home.example") && !text.contains("personal"), "{text}");
    let notifications = tombstone.get_array("notifications").unwrap();
    assert_eq!(notifications.len(), 3, "{text}");
    let record = notifications[2].as_document().unwrap();
    assert_eq!(record.get_str("template").unwrap(), "removed-by-admin");
    assert!(
        record.contains_key("sent_at") && record.contains_key("message_id") && !record.contains_key("to"),
        "{text}"
    );
    let applied = tombstone.get_array("applied").unwrap()[0].as_document().unwrap();
    assert!(applied.contains_key("settled_at"), "{text}");
    assert_eq!(sink.emails().len(), 1);
    assert!(worker.stop().await.success());
    bed.remove().await;
}

/// The address is never in the records, and nowhere once an operator has dropped the email.
#[tokio::test(flavor = "multi_thread")]
async fn a_tombstone_drops_the_address_of_a_rejected_email() {
    let bed = TestBed::new("refused").await;
    let sink = SmtpSink::scripted(Tls::No, |step, _| match step {
        Step::Rcpt => Action::Answer("550 5.1.1 acc@home.example is unknown"),
        _ => Action::Ok,
    })
    .await;
    populate(&bed).await;
    let worker = WorkerProcess::start(&bed, &sink.url()).await;
    let mut removal = with(cancellation("remove", "sub"), "invoice_id", json!("inv-5"));
    removal["data"]["via"] = json!("invoice");
    bed.command(&removal).await;
    let tombstone = eventually("the failure", || async {
        let document = bed.document("subscriptions", "sub").await.unwrap();
        let records = document.get_array("notifications").ok()?;
        records.iter().any(|record| record.as_document().unwrap().contains_key("failed_at")).then_some(document)
    })
    .await;
    assert!(!format!("{:?}", records(&tombstone)).contains("home.example"), "{tombstone}");
    let entry = entries(&tombstone).into_iter().find(|entry| entry.contains_key("mail")).unwrap();
    assert!(entry.get_str("error").unwrap().contains("acc@home.example"), "an operator needs it: {tombstone}");
    let dropped = worker_process::offramp(&bed).args(["outbox", "drop", "--all", "--yes"]).output().unwrap();
    assert!(dropped.status.success(), "{dropped:?}");
    bed.outboxes_empty().await;
    let tombstone = bed.document("subscriptions", "sub").await.unwrap();
    assert!(!format!("{tombstone}").contains("home.example"), "{tombstone}");
    assert!(worker.stop().await.success());
    bed.remove().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn emails_about_accounts_are_recorded_in_the_account() {
    let bed = TestBed::new("accounts").await;
    let sink = SmtpSink::start().await;
    populate(&bed).await;
    bed.collection("accounts").insert_one(account("other", "org")).await.unwrap();
    let worker = WorkerProcess::start(&bed, &sink.url()).await;
    let card = json!({ "organization_id": "org", "account_id": "other",
        "card": { "id": "card", "brand": "Visa", "last4": "4242", "expires": "2199-06" } });
    bed.command(&command("card", "card.expiry", card)).await;
    let sent = eventually("both emails", || async {
        let document = bed.document("accounts", "other").await.unwrap();
        let sent = document.get_array("notifications").map_or(0, |records| {
            records.iter().filter(|record| record.as_document().unwrap().contains_key("sent_at")).count()
        });
        (sent == 2).then_some(document)
    })
    .await;
    let mut roles: Vec<&str> = records(&sent).iter().map(|record| record.get_str("role").unwrap()).collect();
    roles.sort_unstable();
    assert_eq!(roles, ["account_manager", "organization_contact"]);
    assert!(entries(&sent).is_empty());
    assert!(worker.stop().await.success());
    bed.remove().await;
}
