//! Scheduled changes: ends of subscriptions, card notices and expired leases, with any number of workers.

use std::collections::BTreeSet;
use std::process::Stdio;
use std::sync::atomic::Ordering;

use bson::{Document, doc};
use chrono::{Datelike, Days, TimeDelta, Utc};
use mail_parser::MessageParser;
use offramp_domain::account::CARD_NOTICES_MAX;
use serde_json::json;

use offramp_testkit::eventually;
use offramp_testkit::fixtures::{account, cancellation, command, organization, populate, subscription};
use offramp_testkit::proxy::Proxy;
use offramp_testkit::smtp_sink::SmtpSink;
use offramp_testkit::test_bed::TestBed;
use offramp_testkit::worker_process::{WorkerProcess, metrics_of};

#[tokio::test(flavor = "multi_thread")]
async fn ended_subscriptions_end_exactly_once() {
    let bed = TestBed::new("lapse").await;
    let sink = SmtpSink::start().await;
    populate(&bed).await;
    let events = bed.watch_events().await;
    let today = Utc::now().date_naive();
    let scheduled = |id: &str, hours: i64| {
        let mut document = subscription(id, "org", "acc");
        let at = Utc::now() + TimeDelta::hours(hours);
        document.extend(doc! {
            "status": "cancellation_scheduled", "ends_on": at.date_naive().to_string(), "ends_at": bson::DateTime::from(at),
            "final_billing_on": "2020-01-15",
        });
        document
    };
    let expiring = |id: &str, expires_on: &str| {
        let mut document = subscription(id, "org", "acc");
        document.insert("expires_on", expires_on);
        document
    };
    let subscriptions = bed.collection("subscriptions");
    let mut documents: Vec<Document> = (0..40).map(|index| scheduled(&format!("over-{index}"), -1)).collect();
    documents.push(scheduled("not-yet", 30));
    documents.push(expiring("expired", "2020-02-01"));
    documents.push(expiring("runs-on", &(today + Days::new(40)).to_string()));
    // The corrupt document must neither change nor delay the others.
    let mut corrupt = scheduled("corrupt", -1);
    corrupt.insert("activities", 5);
    documents.push(corrupt.clone());
    subscriptions.insert_many(&documents).await.unwrap();

    let workers = [WorkerProcess::start(&bed, &sink.url()).await, WorkerProcess::start(&bed, &sink.url()).await];
    eventually("every last day to be applied", || async {
        let over = doc! { "status": { "$in": ["cancelled", "expired"] } };
        (subscriptions.count_documents(over).await.unwrap() == 41).then_some(())
    })
    .await;
    bed.outboxes_empty().await;
    let cancelled = bed.document("subscriptions", "over-7").await.unwrap();
    assert_eq!(cancelled.get_str("ended_on").unwrap(), cancelled.get_str("ends_on").unwrap());
    assert_eq!(cancelled.get_array("activities").unwrap().len(), 0);
    assert!(cancelled.get_document("billing").unwrap().get("next_on").is_none());
    let entry = cancelled.get_array("history").unwrap()[0].as_document().unwrap();
    assert_eq!((entry.get_str("from").unwrap(), entry.get_str("to").unwrap()), ("cancellation_scheduled", "cancelled"));
    let expired = bed.document("subscriptions", "expired").await.unwrap();
    assert_eq!(expired.get_str("ended_on").unwrap(), "2020-02-14", "the day before the next billing date");
    for id in ["not-yet", "runs-on", "sub"] {
        assert!(bed.document("subscriptions", id).await.unwrap().get("history").is_none(), "{id}");
    }
    assert_eq!(bed.document("subscriptions", "corrupt").await.unwrap(), corrupt);

    for worker in workers {
        assert!(worker.stop().await.success());
    }
    let events = events.take(&bed).await;
    assert_eq!(events.len(), 41, "one event each, whichever worker found it");
    let of = |id: &str| events.iter().find(|event| event["subject"] == id).unwrap();
    assert_eq!(of("over-7")["type"], "subscription.ended");
    assert_eq!(of("over-7")["data"]["cause"], "cancelled");
    assert_eq!(of("over-7")["data"]["activities"], json!([{ "id": "a", "name": "Aquafit" }]));
    assert_eq!(of("expired")["data"]["cause"], "expired");
    assert!(of("expired").get("causationid").is_none());
    assert!(sink.emails().is_empty());
    bed.remove().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_card_notice_is_sent_once_per_month_and_lead_time() {
    let bed = TestBed::new("cards").await;
    let sink = SmtpSink::start().await;
    let today = Utc::now().date_naive();
    let this_month = format!("{}-{:02}", today.year(), today.month());
    let mut org = organization("org");
    org.insert("card_notice_days", [40, 31]);
    org.insert("timezone", "UTC");
    bed.collection("organizations").insert_one(org).await.unwrap();
    let with_cards = |id: &str, cards: Vec<(&str, &str)>| {
        let cards: Vec<Document> = cards
            .into_iter()
            .map(|(card, expires)| doc! { "id": card, "brand": "Visa", "last4": "4242", "expires": expires })
            .collect();
        let mut document = account(id, "org");
        document.insert("cards", cards);
        document
    };
    let accounts = [
        with_cards("two-cards", vec![("c-1", &this_month), ("c-2", &this_month), ("c-3", "2199-01")]),
        with_cards("ended", vec![("c-4", &this_month)]),
    ];
    bed.collection("accounts").insert_many(accounts).await.unwrap();
    let mut ended = subscription("s-3", "org", "ended");
    ended.insert("status", "cancelled");
    let subscriptions = [subscription("s-1", "org", "two-cards"), subscription("s-2", "org", "two-cards"), ended];
    bed.collection("subscriptions").insert_many(subscriptions).await.unwrap();

    let workers = [WorkerProcess::start(&bed, &sink.url()).await, WorkerProcess::start(&bed, &sink.url()).await];
    eventually("both notices", || async { (sink.emails().len() >= 4).then_some(()) }).await;
    // A command for the same card and month changes nothing.
    let again = command(
        "again",
        "card.expiry",
        json!({ "organization_id": "org", "account_id": "two-cards",
            "card": { "id": "c-1", "brand": "Visa", "last4": "4242", "expires": this_month } }),
    );
    bed.command(&again).await;
    eventually("the command to be settled", || async {
        (workers[0].settled().await + workers[1].settled().await == 1).then_some(())
    })
    .await;
    bed.outboxes_empty().await;
    for worker in workers {
        assert!(worker.stop().await.success());
    }
    let mut emails: Vec<(String, String)> = sink
        .emails()
        .iter()
        .map(|mail| {
            let parsed = MessageParser::default().parse(&mail.bytes).unwrap();
            (parsed.header("X-Offramp-Template").unwrap().as_text().unwrap().to_owned(), mail.to[0].clone())
        })
        .collect();
    emails.sort();
    let both = |to: &str| vec![("card-expiring".to_owned(), to.to_owned()); 2];
    assert_eq!(
        emails,
        [both("desk@org.example"), both("two-cards@home.example")].concat(),
        "one per card and recipient"
    );
    let account = bed.document("accounts", "two-cards").await.unwrap();
    assert_eq!(account.get_array("card_notices").unwrap().len(), 2);
    assert_eq!(account.get_array("notifications").unwrap().len(), 4);
    bed.remove().await;
}

/// An organization that wants card notices all month long.
fn with_notices(id: &str) -> Document {
    let mut organization = organization(id);
    organization.extend(doc! { "card_notice_days": [31], "timezone": "UTC" });
    organization
}

/// An account with cards that expire this month.
fn with_expiring_cards(id: &str, organization: &str, cards: usize) -> Document {
    let today = Utc::now().date_naive();
    let month = format!("{}-{:02}", today.year(), today.month());
    let card =
        |index: usize| doc! { "id": format!("card-{index}"), "brand": "Visa", "last4": "4242", "expires": &month };
    let mut document = account(id, organization);
    document.insert("cards", (0..cards).map(card).collect::<Vec<_>>());
    document
}

/// More cards than fit into one batch: a sweep writes the account several times, and the first write drops an old notice.
#[tokio::test(flavor = "multi_thread")]
async fn each_card_of_an_account_gets_one_notice() {
    const CARDS: usize = 210;
    let bed = TestBed::new("many-cards").await;
    let sink = SmtpSink::start().await;
    bed.collection("organizations").insert_one(with_notices("org")).await.unwrap();
    let mut account = with_expiring_cards("acc", "org", CARDS);
    let old = doc! { "card_id": "old", "expires": "2020-01", "notice": "early", "at": bson::DateTime::from_millis(0) };
    account.insert("card_notices", [old]);
    bed.collection("accounts").insert_one(account).await.unwrap();
    bed.collection("subscriptions").insert_one(subscription("sub", "org", "acc")).await.unwrap();

    let workers = [WorkerProcess::start(&bed, &sink.url()).await, WorkerProcess::start(&bed, &sink.url()).await];
    eventually("all notices", || async {
        let account = bed.document("accounts", "acc").await.unwrap();
        let notices = account.get_array("card_notices").unwrap();
        (notices.len() >= CARDS && sink.emails().len() >= 2 * CARDS).then_some(())
    })
    .await;
    // A later sweep checks all cards again and finds the new one.
    let mut card = with_expiring_cards("acc", "org", 1).get_array("cards").unwrap()[0].as_document().unwrap().clone();
    card.insert("id", "later");
    let later = doc! { "$push": { "cards": card }, "$inc": { "version": 1 } };
    bed.collection("accounts").update_one(doc! { "_id": "acc" }, later).await.unwrap();
    eventually("the notice of the later card", || async { (sink.emails().len() >= 2 * CARDS + 2).then_some(()) }).await;
    bed.outboxes_empty().await;
    for worker in workers {
        assert!(worker.stop().await.success());
    }
    let account = bed.document("accounts", "acc").await.unwrap();
    let notices = account.get_array("card_notices").unwrap();
    let ids: BTreeSet<&str> =
        notices.iter().map(|notice| notice.as_document().unwrap().get_str("card_id").unwrap()).collect();
    assert_eq!((notices.len(), ids.len()), (CARDS + 1, CARDS + 1));
    assert!(!ids.contains("old"));
    assert_eq!(account.get_array("notifications").unwrap().len(), 2 * (CARDS + 1));
    assert_eq!(sink.emails().len(), 2 * (CARDS + 1));
    bed.remove().await;
}

/// Rejected writes, a corrupt organization and a full account each affect one organization only.
#[tokio::test(flavor = "multi_thread")]
async fn a_failing_organization_does_not_delay_notices_of_others() {
    let bed = TestBed::new("card-trouble").await;
    let sink = SmtpSink::start().await;
    let mut corrupt = with_notices("corrupt");
    corrupt.insert("timezone", "Mars/Olympus");
    let organizations = [with_notices("refused"), corrupt, with_notices("full"), with_notices("fine")];
    bed.collection("organizations").insert_many(organizations).await.unwrap();
    let mut accounts: Vec<Document> =
        (0..5).map(|index| with_expiring_cards(&format!("a-refused-{index}"), "refused", 1)).collect();
    accounts.push(with_expiring_cards("b-corrupt", "corrupt", 1));
    let mut full = with_expiring_cards("c-full", "full", 1);
    let remembered = |index: usize| {
        doc! {
            "card_id": format!("other-{index}"), "expires": "2199-01", "notice": "early", "at": bson::DateTime::now(),
        }
    };
    full.insert("card_notices", (0..CARD_NOTICES_MAX).map(remembered).collect::<Vec<_>>());
    accounts.push(full);
    accounts.push(with_expiring_cards("d-fine", "fine", 1));
    let subscriptions: Vec<Document> = accounts
        .iter()
        .map(|account| {
            let id = account.get_str("_id").unwrap();
            subscription(&format!("sub-{id}"), account.get_str("organization_id").unwrap(), id)
        })
        .collect();
    bed.collection("accounts").insert_many(accounts).await.unwrap();
    bed.collection("subscriptions").insert_many(subscriptions).await.unwrap();
    let forbidden = doc! { "$nor": [{ "organization_id": "refused", "card_notices": { "$exists": true } }] };
    bed.set_validator("accounts", forbidden).await;

    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("log");
    let file = std::fs::File::create(&log).unwrap();
    let worker = WorkerProcess::spawn(&bed, &sink.url(), &[], Stdio::from(file)).ready().await;
    eventually("the notices of the healthy organization", || async { (sink.emails().len() >= 2).then_some(()) }).await;
    eventually("the full account and the rejected writes in the log", || async {
        let log = std::fs::read_to_string(&log).unwrap();
        (log.contains("c-full") && log.contains("due documents could not be changed")).then_some(())
    })
    .await;
    let metrics = metrics_of(worker.port()).await.unwrap();
    let unworkable =
        |collection: &str, count: u32| format!("offramp_unworkable_documents{{collection=\"{collection}\"}} {count}\n");
    assert!(metrics.contains(&unworkable("accounts", 1)), "only the full one: {metrics}");
    assert!(metrics.contains(&unworkable("organizations", 1)), "{metrics}");
    // Rejected writes are retried.
    bed.set_validator("accounts", doc! {}).await;
    eventually("the notices whose writes were rejected", || async { (sink.emails().len() >= 12).then_some(()) }).await;
    bed.outboxes_empty().await;
    assert!(worker.stop().await.success());

    let log = std::fs::read_to_string(log).unwrap();
    let errors: Vec<&str> = log.lines().filter(|line| line.contains("cannot be processed")).collect();
    assert_eq!(errors.len(), 2, "{errors:#?}");
    assert!(errors.iter().any(|line| line.contains("c-full") && line.contains("10000 notices")), "{errors:#?}");
    assert_eq!(log.matches("due documents could not be changed").count(), 1, "{log}");
    let to: BTreeSet<String> = sink.emails().iter().flat_map(|mail| mail.to.clone()).collect();
    assert_eq!(sink.emails().len(), 12);
    assert!(to.contains("d-fine@home.example") && to.contains("a-refused-4@home.example"), "{to:?}");
    bed.remove().await;
}

/// A query that MongoDB does not answer delays one organization only. The proxy holds its queries until the others have their notices.
#[tokio::test(flavor = "multi_thread")]
async fn a_slow_organization_does_not_delay_notices_of_others() {
    const OTHERS: usize = 12;
    let mut bed = TestBed::new("card-slow").await;
    let sink = SmtpSink::start().await;
    let ids = || (0..OTHERS).map(|index| format!("fine-{index}")).chain(["molasses".to_owned()]);
    bed.collection("organizations").insert_many(ids().map(|id| with_notices(&id))).await.unwrap();
    let accounts = ids().map(|id| with_expiring_cards(&format!("acc-{id}"), &id, 1));
    bed.collection("accounts").insert_many(accounts).await.unwrap();
    let subscriptions = ids().map(|id| subscription(&format!("sub-{id}"), &id, &format!("acc-{id}")));
    bed.collection("subscriptions").insert_many(subscriptions).await.unwrap();
    let (proxy, url) = Proxy::in_front_of_mongodb(&bed.mongodb_url).await;
    bed.mongodb_url = url;
    proxy.hold_requests("molasses");

    let worker = WorkerProcess::spawn(&bed, &sink.url(), &[], Stdio::null());
    eventually("the notices of the others", || async { (sink.emails().len() >= 2 * OTHERS).then_some(()) }).await;
    assert!(!sink.emails().iter().any(|mail| mail.to[0].contains("molasses")));
    proxy.hold_requests("");
    eventually("all notices", || async { (sink.emails().len() >= 2 * OTHERS + 2).then_some(()) }).await;
    bed.outboxes_empty().await;
    let worker = worker.ready().await;
    assert!(worker.stop().await.success());
    assert_eq!(sink.emails().len(), 2 * OTHERS + 2);
    bed.remove().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn emails_of_a_killed_worker_are_sent_by_another() {
    let bed = TestBed::new("lease").await;
    let sink = SmtpSink::start().await;
    populate(&bed).await;
    let events = bed.watch_events().await;
    // No server listens there: the email waits in the outbox while the lane continues.
    let nowhere = "smtp://127.0.0.1:9";
    let mut first = WorkerProcess::start_with(&bed, nowhere, &[("OFFRAMP_LEASE_SECONDS", "20")]).await;
    bed.command(&cancellation("c-1", "sub")).await;
    events.next(&bed, |event| event["type"] == "subscription.cancellation-scheduled").await;
    first.kill();
    let waiting = bed.document("subscriptions", "sub").await.unwrap();
    assert!(!waiting.get_array("outbox").unwrap().is_empty());

    let second = WorkerProcess::start_with(&bed, &sink.url(), &[("OFFRAMP_LEASE_SECONDS", "20")]).await;
    bed.outboxes_empty().await;
    let sent = bed.document("subscriptions", "sub").await.unwrap();
    let notification = sent.get_array("notifications").unwrap()[0].as_document().unwrap();
    assert_eq!(notification.get_str("template").unwrap(), "cancelled-by-admin");
    assert_eq!(notification.get_str("to").unwrap(), "acc@home.example");
    assert_eq!(notification.get_str("role").unwrap(), "account_manager");
    let emails = sink.emails();
    assert_eq!(emails.len(), 1);
    let mail = MessageParser::default().parse(&emails[0].bytes).unwrap();
    let message_id = notification.get_str("message_id").unwrap();
    assert_eq!(format!("<{}>", mail.message_id().unwrap()), message_id);
    assert!(mail.body_text(0).unwrap().contains("June 14, 2199"));
    assert!(second.stop().await.success());
    bed.remove().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn emails_beyond_the_memory_limit_are_sent_once_the_mail_server_is_back() {
    // More than the 512 emails that a worker holds in memory.
    const COUNT: usize = 800;
    let bed = TestBed::new("room").await;
    let (sink, is_back) = SmtpSink::unavailable().await;
    populate(&bed).await;
    let subscriptions = bed.collection("subscriptions");
    let ids: Vec<String> = (0..COUNT).map(|index| format!("sub-{index}")).collect();
    subscriptions.insert_many(ids.iter().map(|id| subscription(id, "org", "acc"))).await.unwrap();
    let worker = WorkerProcess::start_with(&bed, &sink.url(), &[("OFFRAMP_LEASE_SECONDS", "20")]).await;
    for id in &ids {
        bed.command(&cancellation(&format!("c-{id}"), id)).await;
    }
    eventually("every cancellation to be written", || async {
        let scheduled = doc! { "status": "cancellation_scheduled" };
        (subscriptions.count_documents(scheduled).await.unwrap() == COUNT as u64).then_some(())
    })
    .await;

    is_back.store(true, Ordering::Relaxed);
    bed.outboxes_empty().await;
    assert_eq!(sink.emails().len(), COUNT);
    assert!(worker.stop().await.success());
    bed.remove().await;
}
