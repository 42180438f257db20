//! Unavailable servers: no attempt is counted, nothing is lost, and work resumes by itself.

use std::collections::BTreeSet;
use std::io::Read;
use std::process::Stdio;

use bson::{Document, doc};
use lapin::message::BasicGetMessage;
use lapin::options::{
    BasicGetOptions, BasicNackOptions, BasicPublishOptions, ExchangeDeclareOptions, ExchangeDeleteOptions,
    QueueDeclareOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Confirmation, ExchangeKind};
use mongodb::Client;
use offramp::amqp::Delivery;
use offramp::amqp::message::REDELIVERIES_MAX;
use serde_json::{Value, json};

use offramp_domain::command_ref::CommandType;
use offramp_testkit::eventually;
use offramp_testkit::fixtures::{account, cancellation, command, organization, populate, subscription};
use offramp_testkit::private_servers::PrivateServers;
use offramp_testkit::proxy::{LOST, Proxy};
use offramp_testkit::rabbit::Policy;
use offramp_testkit::smtp_sink::{Action, SmtpSink, Step, Tls};
use offramp_testkit::test_bed::{LANES, TestBed};
use offramp_testkit::worker_process::{WorkerProcess, metrics_of};

const SUBSCRIPTIONS: usize = 20;

#[tokio::test(flavor = "multi_thread")]
async fn messages_are_requeued_while_the_database_is_unavailable_and_decided_once_it_is_back() {
    let bed = TestBed::new("database-away").await;
    let sink = SmtpSink::start().await;
    bed.collection("organizations").insert_one(organization("org")).await.unwrap();
    bed.collection("accounts").insert_one(account("acc", "org")).await.unwrap();
    let subscriptions = (0..SUBSCRIPTIONS).map(|index| subscription(&format!("sub-{index}"), "org", "acc"));
    bed.collection("subscriptions").insert_many(subscriptions).await.unwrap();

    let (line, mongodb_url) = Proxy::in_front_of_mongodb(&bed.mongodb_url).await;
    let settings = [("OFFRAMP_MONGODB_URL", mongodb_url.as_str()), ("OFFRAMP_HOLD_SECONDS", "1")];
    let worker = WorkerProcess::start_with(&bed, &sink.url(), &settings).await;
    line.stall();
    for index in 0..SUBSCRIPTIONS {
        bed.command(&cancellation(&format!("c-{index}"), &format!("sub-{index}"))).await;
    }

    eventually("a lane that has stopped consuming", || async {
        let (messages, consumers) = waiting(&bed, "cancellation").await;
        (consumers == 0 && messages as usize == SUBSCRIPTIONS).then_some(())
    })
    .await;
    eventually("a lane that reports the cause", || async {
        worker.readyz().await.filter(|answer| answer.status == 503 && answer.body.contains("MongoDB is unavailable"))
    })
    .await;
    assert_eq!(worker.settled().await, 0);
    // A lane with no messages keeps consuming.
    assert_eq!(waiting(&bed, "card-expiry").await, (0, 1));
    // A message that needs no database is still processed, and does not make MongoDB count as available.
    bed.publish("card.expiry", b"nonsense").await;
    bed.dead_letter().await;
    let answer = worker.readyz().await.unwrap();
    let components: Value = answer.json();
    assert_eq!(components["components"]["mongodb"]["ready"], false, "{answer}");

    line.resume();
    eventually("every command to be applied", || async {
        let scheduled = doc! { "status": "cancellation_scheduled", "history": { "$size": 1 } };
        let count = bed.collection("subscriptions").count_documents(scheduled).await.unwrap();
        (count == SUBSCRIPTIONS as u64).then_some(())
    })
    .await;
    bed.outboxes_empty().await;
    eventually("a ready worker", || async { worker.readyz().await.filter(|answer| answer.status == 200) }).await;
    assert_eq!(sink.emails().len(), SUBSCRIPTIONS);
    assert_eq!(worker.settled().await, SUBSCRIPTIONS as u64 + 1);
    assert!(bed.take("dead-letters").await.is_none());
    for delay in ["5s", "30s", "2m", "10m", "1h"] {
        assert!(bed.take(&format!("retry.{delay}")).await.is_none(), "no attempt is counted");
    }
    assert!(worker.stop().await.success());
    bed.remove().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_waits_until_the_database_name_resolves() {
    let bed = TestBed::new("nowhere").await;
    let nowhere = [("OFFRAMP_MONGODB_URL", "mongodb+srv://worker:pass@nowhere.invalid/offramp")];
    let mut worker = WorkerProcess::spawn(&bed, "smtp://127.0.0.1:1", &nowhere, Stdio::null());
    let answer = eventually("a worker that reports the DNS failure", || async {
        worker.readyz().await.filter(|answer| answer.body.contains("DNS"))
    })
    .await;
    assert!(worker.ended().is_none());
    assert!(answer.status == 503 && !answer.body.contains("pass"), "{answer}");
    assert!(worker.stop().await.success());
    bed.remove().await;
}

#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread")]
async fn a_lane_without_database_rights_waits_alone_uses_no_attempts_and_logs_no_personal_data() {
    let directory = tempfile::tempdir().unwrap();
    let secret = directory.path().join("secret");
    std::fs::write(&secret, "ofThisTestAlone1").unwrap();
    let servers = PrivateServers::start(&["mongodb"], vec![("OFFRAMP_SERVICES_USERS", secret)]);
    let url = |user: &str| {
        let port = servers.port("mongodb");
        format!("mongodb://{user}127.0.0.1:{port}/admin?directConnection=true&authSource=admin")
    };
    let run = async |client: &Client, command: Document| {
        client.database("admin").run_command(command).await.unwrap();
    };
    // The first connection may create an administrator.
    let anybody = Client::with_uri_str(url("")).await.unwrap();
    run(&anybody, doc! { "createUser": "root", "pwd": "root", "roles": ["root"] }).await;
    let bed = TestBed::at("rights", &url("root:root@")).await;
    let root = bed.database.client();
    let may = |collection: &str, actions: &[&str]| {
        doc! { "resource": { "db": bed.database.name(), "collection": collection }, "actions": actions }
    };
    let rights = [
        may("subscriptions", &["find", "createIndex", "update", "remove"]),
        may("accounts", &["find", "createIndex"]),
        may("organizations", &["find", "createIndex", "update"]),
    ];
    run(root, doc! { "createRole": "worker", "privileges": &rights[..], "roles": [] }).await;
    run(root, doc! { "createUser": "worker", "pwd": "worker", "roles": ["worker"] }).await;
    populate(&bed).await;

    let limited = bed.mongodb_url.replace("root:root", "worker:worker");
    let settings = [("OFFRAMP_MONGODB_URL", limited.as_str()), ("OFFRAMP_HOLD_SECONDS", "1")];
    let script = |step, nth| match step {
        Step::Rcpt if nth == 1 => Action::Answer("451 Please try again later"),
        _ => Action::Ok,
    };
    let sink = SmtpSink::scripted(Tls::No, script).await;
    let mut worker = WorkerProcess::spawn(&bed, &sink.url(), &settings, Stdio::piped());
    let mut stderr = worker.take_log();
    let log = tokio::task::spawn_blocking(move || {
        let mut log = String::new();
        stderr.read_to_string(&mut log).map(|_| log)
    });
    // The worker detects the missing right before it needs to write.
    eventually("a worker that is not ready", || async {
        worker.readyz().await.filter(|answer| answer.status == 503 && answer.body.contains("Unauthorized"))
    })
    .await;
    eventually("a lane", || async { (waiting(&bed, "card-expiry").await == (0, 1)).then_some(()) }).await;
    bed.command(&card_expiry("card")).await;
    let queue = format!("{}.card-expiry", bed.prefix);
    eventually("a lane that has stopped consuming", || async {
        (waiting(&bed, "card-expiry").await == (1, 0)).then_some(())
    })
    .await;

    // The other lanes continue, and this one does not consume the message repeatedly.
    for attempt in 1..=40 {
        bed.command(&payment_failure(&format!("p-{attempt}"), attempt)).await;
        eventually("a recorded failure", || async {
            let recorded = doc! { "payment_failures.attempt": attempt };
            bed.collection("subscriptions").find_one(recorded).await.unwrap()
        })
        .await;
    }
    eventually("every email, including the deferred one", || async {
        let waiting = bed.collection("subscriptions").find_one(doc! { "outbox.kind": "email" }).await.unwrap();
        waiting.is_none().then_some(())
    })
    .await;
    assert_eq!(worker.connections(CommandType::CardExpiry).await, 1);
    let answer = worker.readyz().await.unwrap();
    assert!(
        answer.status == 503 && answer.body.contains("lacks the right `update` on `accounts` (Unauthorized"),
        "{answer}"
    );

    // After as many redeliveries as several outages cause, the next lane replaces the message with a fresh copy.
    for _ in 0..REDELIVERIES_MAX / 2 {
        bed.redeliver("card-expiry").await;
    }
    let next = WorkerProcess::spawn(&bed, &sink.url(), &settings, Stdio::null());
    eventually("another lane that has paused", || async {
        next.readyz().await.filter(|answer| answer.body.contains("MongoDB is unavailable: "))
    })
    .await;
    let message = eventually("a copy", || get(&bed, &queue)).await;
    let headers = message.properties.headers().clone().unwrap_or_default();
    assert_eq!(headers.inner().get("offramp-attempt").and_then(AMQPValue::as_long_int), Some(0), "{headers:?}");
    // It may have been delivered once more before the lane closed.
    let returns = headers.inner().get("x-delivery-count").and_then(AMQPValue::as_long_long_int);
    assert!(returns.unwrap_or(0) <= 1, "{headers:?}");
    message.nack(BasicNackOptions { requeue: true, multiple: false }).await.unwrap();

    let rights = [may("accounts", &["update"])];
    run(root, doc! { "grantPrivilegesToRole": "worker", "privileges": &rights[..] }).await;
    eventually("a card notice", || async {
        bed.collection("accounts").find_one(doc! { "card_notices.card_id": "card" }).await.unwrap()
    })
    .await;
    for worker in [worker, next] {
        let worker = worker.ready().await;
        assert!(worker.stop().await.success());
    }
    assert!(bed.take("dead-letters").await.is_none());
    let log = log.await.unwrap().unwrap();
    assert!(log.contains("Unauthorized") && !log.contains("home.example"), "{log}");
    assert!(!answer.body.contains("home.example"), "{answer}");
    bed.remove().await;
}

async fn get(bed: &TestBed, queue: &str) -> Option<BasicGetMessage> {
    bed.channel.basic_get(queue.into(), BasicGetOptions::default()).await.unwrap()
}

fn card_expiry(id: &str) -> Value {
    let card = json!({ "id": "card", "brand": "Visa", "last4": "4242", "expires": "2199-06" });
    command(id, "card.expiry", json!({ "organization_id": "org", "account_id": "acc", "card": card }))
}

fn payment_failure(id: &str, attempt: i32) -> Value {
    let data = json!({
        "organization_id": "org", "subscription_id": "sub", "invoice_id": "inv-5", "attempt": attempt,
        "amount": { "value": "49.99", "currency": "CAD" }, "card": { "brand": "Visa", "last4": "4242" },
    });
    command(id, "payment.failure", data)
}

/// How many messages wait in a queue, and how many consumers it has.
pub async fn waiting(bed: &TestBed, queue: &str) -> (u32, u32) {
    let options = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
    let queue = format!("{}.{queue}", bed.prefix);
    let queue = bed.channel.queue_declare(queue.as_str().into(), options, FieldTable::default()).await.unwrap();
    (queue.message_count(), queue.consumer_count())
}

#[tokio::test(flavor = "multi_thread")]
async fn deleted_exchanges_and_bindings_are_restored_by_a_sweep() {
    let bed = TestBed::new("declared-again").await;
    let sink = SmtpSink::start().await;
    populate(&bed).await;
    bed.collection("subscriptions").insert_one(subscription("sub-1", "org", "acc")).await.unwrap();
    let worker = WorkerProcess::start(&bed, &sink.url()).await;
    let (commands, events) = (bed.prefix.clone(), format!("{}.events", bed.prefix));
    let queue = format!("{}.cancellation", bed.prefix);

    // A passive declare of a missing exchange closes the channel, so each check opens a new one.
    for exchange in [&commands, &events] {
        bed.channel.exchange_delete(exchange.as_str().into(), ExchangeDeleteOptions::default()).await.unwrap();
        eventually("the exchange", || async {
            let bed = bed.reopened().await;
            let options = ExchangeDeclareOptions { passive: true, ..ExchangeDeclareOptions::default() };
            let none = FieldTable::default();
            bed.channel.exchange_declare(exchange.as_str().into(), ExchangeKind::Topic, options, none).await.ok()
        })
        .await;
    }
    // The bindings are gone with their exchange.
    is_bound(&bed, &commands, "sub").await;
    scheduled(&bed, "sub").await;

    let key = "subscription.cancellation";
    let none = FieldTable::default();
    bed.channel.queue_unbind(queue.as_str().into(), commands.as_str().into(), key.into(), none).await.unwrap();
    is_bound(&bed, &commands, "sub-1").await;
    scheduled(&bed, "sub-1").await;
    assert!(worker.stop().await.success());
    bed.remove().await;
}

/// Publishes a command for this subscription until it is routed to a queue.
async fn is_bound(bed: &TestBed, exchange: &str, id: &str) {
    let body = cancellation(&format!("bound-{id}"), id).to_string();
    eventually("the binding", || async {
        let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
        let key = "subscription.cancellation".into();
        let properties = BasicProperties::default().with_delivery_mode(2);
        let sent = bed.channel.basic_publish(exchange.into(), key, options, body.as_bytes(), properties).await;
        let confirmed = sent.unwrap().await.unwrap();
        (confirmed == Confirmation::Ack(None)).then_some(())
    })
    .await;
}

/// The value of the metric with this name and these labels.
async fn counted(worker: &WorkerProcess, line: &str) -> Option<u64> {
    let metrics = metrics_of(worker.port()).await?;
    metrics.lines().find_map(|found| found.strip_prefix(line)?.trim().parse().ok())
}

async fn scheduled(bed: &TestBed, id: &str) {
    eventually(&format!("{id} to be decided"), || async {
        let document = bed.document("subscriptions", id).await?;
        (document.get_str("status").ok()? == "cancellation_scheduled").then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_whose_copy_is_rejected_does_not_block_others() {
    let bed = TestBed::new("rejected").await;
    let sink = SmtpSink::start().await;
    populate(&bed).await;
    let others = ["sub-1", "sub-2"].map(|id| subscription(id, "org", "acc"));
    bed.collection("subscriptions").insert_many(others).await.unwrap();
    let worker = WorkerProcess::start(&bed, &sink.url()).await;
    let letters = format!("{}.dead-letters", bed.prefix);
    let policy = Policy::that_rejects(&letters).await;

    bed.publish("subscription.cancellation", b"nonsense").await;
    bed.command(&cancellation("c-0", "sub")).await;
    scheduled(&bed, "sub").await;
    let answer = eventually("a lane that reports the cause", || async {
        worker.readyz().await.filter(|answer| answer.status == 503 && answer.body.contains(&letters))
    })
    .await;
    let components: Value = answer.json();
    for lane in LANES {
        let ready = lane != "cancellation";
        assert_eq!(components["components"][format!("{}.{lane}", bed.prefix)]["ready"], ready, "{answer}");
    }
    // Later commands are processed too, next to messages that are set aside.
    for id in ["sub-1", "sub-2"] {
        bed.publish("subscription.cancellation", id.as_bytes()).await;
        bed.command(&cancellation(id, id)).await;
        scheduled(&bed, id).await;
    }
    let rejected = "offramp_copies_rejected_total{lane=\"subscription.cancellation\"}";
    eventually("three rejected copies", || async { (counted(&worker, rejected).await? == 3).then_some(()) }).await;
    eventually("three processed messages", || async { (worker.settled().await == 3).then_some(()) }).await;

    drop(policy);
    let mut bodies = Vec::new();
    while bodies.len() < 3 {
        let letter = bed.dead_letter().await;
        if letter.body != b"probe" {
            assert_eq!(letter.header("offramp-reason"), "invalid");
            bodies.push(String::from_utf8(letter.body).unwrap());
        }
    }
    bodies.sort();
    assert_eq!(bodies, ["nonsense", "sub-1", "sub-2"]);
    eventually("a ready worker", || async { worker.readyz().await.filter(|answer| answer.status == 200) }).await;
    assert_eq!(worker.settled().await, 6);
    assert!(worker.stop().await.success());
    assert_eq!(waiting(&bed, "cancellation").await, (0, 0));
    assert!(bed.take("dead-letters").await.is_none());
    bed.remove().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lane_whose_copy_is_not_confirmed_is_not_ready() {
    let bed = TestBed::new("silent").await;
    let sink = SmtpSink::start().await;
    populate(&bed).await;
    let (_line, url) = Proxy::in_front_of(&bed.amqp_url).await;
    let worker = WorkerProcess::start_with(&bed, &sink.url(), &[("OFFRAMP_AMQP_URL", &url)]).await;
    bed.publish("card.expiry", LOST.as_bytes()).await;
    let component = format!("{}.card-expiry", bed.prefix);
    let held_up = async || {
        let components: Value = worker.readyz().await?.json();
        let reason = components["components"][&component]["reason"].as_str()?.to_owned();
        reason.contains("did not confirm this message").then_some(reason)
    };
    eventually("a lane that says why it is not ready", held_up).await;
    // Other lanes publish over the same connection, which does not make this one ready.
    bed.publish("subscription.cancellation", b"nonsense").await;
    bed.dead_letter().await;
    assert!(held_up().await.is_some());
    worker.stop().await;
    bed.remove().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_set_aside_survive_a_killed_worker() {
    let bed = TestBed::new("set-aside").await;
    let sink = SmtpSink::start().await;
    populate(&bed).await;
    // The prefetch is two, far below the number set aside.
    let settings = [("OFFRAMP_BATCH_MAX", "1")];
    let mut worker = WorkerProcess::start_with(&bed, &sink.url(), &settings).await;
    let retry = Policy::that_rejects(&format!("{}.retry.5s", bed.prefix)).await;
    let letters = Policy::that_rejects(&format!("{}.dead-letters", bed.prefix)).await;
    for index in 0..5 {
        bed.command(&cancellation(&format!("unknown-{index}"), "unknown")).await;
        bed.publish("subscription.cancellation", format!("nonsense {index}").as_bytes()).await;
    }
    bed.command(&cancellation("c-0", "sub")).await;
    scheduled(&bed, "sub").await;
    let rejected = "offramp_copies_rejected_total{lane=\"subscription.cancellation\"}";
    assert!(counted(&worker, rejected).await.unwrap() >= 10);
    worker.kill();
    drop((retry, letters));

    let worker = WorkerProcess::start_with(&bed, &sink.url(), &settings).await;
    let mut bodies = BTreeSet::new();
    while bodies.len() < 5 {
        let letter = bed.dead_letter().await;
        if letter.body != b"probe" {
            assert_eq!(letter.header("offramp-reason"), "invalid");
            assert!(bodies.insert(letter.body), "twice");
        }
    }
    let retries = "offramp_commands_total{lane=\"subscription.cancellation\",outcome=\"retry\"}";
    eventually("five retries", || async { (counted(&worker, retries).await? >= 5).then_some(()) }).await;
    assert!(worker.stop().await.success());
    bed.remove().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn many_messages_with_rejected_copies_are_processed_once_copies_are_accepted() {
    const MESSAGES: usize = 500;
    let bed = TestBed::new("flood").await;
    let sink = SmtpSink::start().await;
    let worker = WorkerProcess::start(&bed, &sink.url()).await;
    let policy = Policy::that_rejects(&format!("{}.dead-letters", bed.prefix)).await;
    for index in 0..MESSAGES {
        bed.publish("subscription.cancellation", index.to_string().as_bytes()).await;
    }
    let rejected = "offramp_copies_rejected_total{lane=\"subscription.cancellation\"}";
    eventually("many set aside", || async { (counted(&worker, rejected).await? >= 200).then_some(()) }).await;
    drop(policy);
    let mut bodies = BTreeSet::new();
    while bodies.len() < MESSAGES {
        let letter = bed.dead_letter().await;
        assert!(letter.body == b"probe" || bodies.insert(letter.body), "twice");
    }
    eventually("a ready worker", || async { worker.readyz().await.filter(|answer| answer.status == 200) }).await;
    assert_eq!(worker.settled().await, MESSAGES as u64);
    assert!(worker.stop().await.success());
    assert_eq!(waiting(&bed, "cancellation").await, (0, 0));
    assert!(bed.take("dead-letters").await.is_none());
    bed.remove().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_set_aside_repeatedly_never_counts_as_crashing_workers() {
    let bed = TestBed::new("worn").await;
    let queue = format!("{}.cancellation", bed.prefix);
    let sink = SmtpSink::start().await;
    assert!(WorkerProcess::start(&bed, &sink.url()).await.stop().await.success());
    bed.publish("subscription.cancellation", b"nonsense").await;
    for _ in 0..REDELIVERIES_MAX / 2 {
        bed.redeliver("cancellation").await;
    }
    let policy = Policy::that_rejects(&format!("{}.dead-letters", bed.prefix)).await;
    // It may never be ready: it sets the message aside at once.
    let worker = WorkerProcess::spawn(&bed, &sink.url(), &[], Stdio::null());
    // A fresh copy replaces it, and is set aside as well.
    let rejected = "offramp_copies_rejected_total{lane=\"subscription.cancellation\"}";
    eventually("a copy set aside", || async { (counted(&worker, rejected).await? == 2).then_some(()) }).await;
    assert_eq!(worker.settled().await, 0);
    worker.stop().await;
    let message = eventually("the message", || get(&bed, &queue)).await;
    message.nack(BasicNackOptions { requeue: true, multiple: false }).await.unwrap();
    let returns = Delivery::from(message.delivery).delivery_count;
    assert!(returns < REDELIVERIES_MAX / 2, "{returns}");
    drop(policy);

    let worker = WorkerProcess::start(&bed, &sink.url()).await;
    eventually("the letter to be settled", || async { (worker.settled().await == 1).then_some(()) }).await;
    assert!(worker.stop().await.success());
    let letters = async || Some(bed.take("dead-letters").await?.0);
    while letters().await.expect("the letter") != b"nonsense" {}
    assert!(letters().await.is_none());
    bed.remove().await;
}
