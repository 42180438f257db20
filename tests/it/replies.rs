//! Each message with a `reply_to` gets one reply, once it is settled.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use bson::{Bson, doc};
use lapin::BasicProperties;
use lapin::options::QueueDeclareOptions;
use lapin::types::{AMQPValue, FieldTable};
use serde_json::{Value, json};

use crate::answers::is_rejection_of;
use offramp_testkit::eventually;
use offramp_testkit::fixtures::{account, cancellation, command, organization, populate, subscription, with};
use offramp_testkit::proxy::{LOST, Proxy};
use offramp_testkit::rabbit::amqp_url;
use offramp_testkit::smtp_sink::SmtpSink;
use offramp_testkit::test_bed::TestBed;
use offramp_testkit::worker_process::{WorkerProcess, metrics_of};

/// Publishes messages whose replies go to one queue.
struct Sender<'a> {
    bed: &'a TestBed,
    queue: String,
}

impl<'a> Sender<'a> {
    async fn new(bed: &'a TestBed) -> Self {
        let queue = format!("{}.test-replies", bed.prefix);
        let options = QueueDeclareOptions { exclusive: true, ..Default::default() };
        bed.channel.queue_declare(queue.as_str().into(), options, FieldTable::default()).await.unwrap();
        Self { bed, queue }
    }

    fn properties(&self, correlation_id: &str) -> BasicProperties {
        BasicProperties::default().with_reply_to(self.queue.as_str().into()).with_correlation_id(correlation_id.into())
    }

    /// Publishes a message and waits for its reply.
    async fn ask(&self, routing_key: &str, body: &[u8], properties: BasicProperties) -> Value {
        let correlation_id = properties.correlation_id().clone();
        self.bed.publish_with(routing_key, body, properties).await;
        let (reply, properties) = eventually("the reply", || self.bed.take("test-replies")).await;
        assert_eq!(*properties.correlation_id(), correlation_id);
        assert_eq!(properties.content_type().as_ref().unwrap().as_str(), "application/cloudevents+json");
        serde_json::from_slice(&reply).unwrap()
    }

    async fn ask_command(&self, command: &Value) -> Value {
        let properties = self.properties(command["id"].as_str().unwrap());
        self.ask(command["type"].as_str().unwrap(), command.to_string().as_bytes(), properties).await
    }
}

fn reference(id: &str, kind: &str) -> Value {
    json!({ "source": "tests", "id": id, "type": kind })
}

#[tokio::test(flavor = "multi_thread")]
async fn every_command_is_answered_once() {
    let bed = TestBed::new("answered").await;
    let sink = SmtpSink::start().await;
    populate(&bed).await;
    let worker = WorkerProcess::start(&bed, &sink.url()).await;
    let sender = Sender::new(&bed).await;

    let cancel = with(cancellation("first", "sub"), "month", json!("2199-08"));
    let applied = sender.ask_command(&cancel).await;
    assert_eq!(applied["type"], "command.applied");
    assert_eq!(applied["subject"], "sub");
    assert_eq!(applied["causationid"], "first");
    let document = bed.document("subscriptions", "sub").await.unwrap();
    let version = applied["data"]["version"].as_i64().unwrap();
    let expected = json!({
        "organization_id": "org", "subscription_id": "sub", "command": reference("first", "subscription.cancellation"),
        "status": "cancellation_scheduled", "ends_on": document.get_str("ends_on").unwrap(),
        "final_billing_on": document.get_str("final_billing_on").unwrap(), "version": version,
    });
    assert_eq!(applied["data"], expected);

    // A repeat is answered like the original, with the version of now.
    let again = sender.ask_command(&cancel).await;
    assert_eq!((&again["type"], &again["id"]), (&json!("command.applied"), &applied["id"]));
    assert!(again["data"]["version"].as_i64().unwrap() >= version, "{again}");

    // Another command for the same end changes nothing, and neither does its repeat.
    let mut same = cancel.clone();
    same["id"] = json!("same");
    for _ in 0..2 {
        let unchanged = sender.ask_command(&same).await;
        assert_eq!(unchanged["type"], "command.unchanged", "{unchanged}");
        assert_eq!(unchanged["data"]["status"], "cancellation_scheduled");
        assert_eq!(unchanged["data"]["ends_on"], applied["data"]["ends_on"]);
    }

    let mut later = with(cancel.clone(), "month", json!("2199-10"));
    later["id"] = json!("later");
    let rejected = sender.ask_command(&later).await;
    assert_eq!(rejected["type"], "command.rejected");
    assert_eq!(rejected["data"]["reason"], "later_than_scheduled");

    // An account has no status.
    let data = json!({
        "organization_id": "org", "account_id": "acc",
        "card": { "id": "card", "brand": "Visa", "last4": "4242", "expires": "2199-06" },
    });
    let notice = sender.ask_command(&command("card", "card.expiry", data)).await;
    assert_eq!(notice["type"], "command.applied");
    assert!(notice["data"]["version"].as_i64().unwrap() >= 1, "{notice}");
    assert_eq!((notice["data"].get("status"), &notice["data"]["account_id"]), (None, &json!("acc")));

    assert!(bed.take("test-replies").await.is_none(), "one reply each");
    assert!(worker.stop().await.success());
    bed.remove().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn dead_letters_are_answered_with_their_reason() {
    let bed = TestBed::new("invalid").await;
    let sink = SmtpSink::start().await;
    populate(&bed).await;
    let worker = WorkerProcess::start(&bed, &sink.url()).await;
    let sender = Sender::new(&bed).await;

    let misspelt = with(cancellation("misspelt", "sub"), "mnoth", json!("2199-08")).to_string();
    let large = vec![b' '; 300 * 1024];
    for (body, reason, words) in [
        (misspelt.as_bytes(), "invalid", "mnoth"),
        (b"not json", "invalid", "not JSON"),
        (&large, "too_large", "307200 bytes"),
    ] {
        let reply = sender.ask("subscription.cancellation", body, sender.properties("x")).await;
        assert_eq!(reply["type"], "command.invalid");
        assert_eq!(reply["data"]["reason"], reason);
        let error = reply["data"]["error"].as_str().unwrap();
        assert!(error.contains(words), "{error}");
        let letter = bed.dead_letter().await;
        assert_eq!(letter.header("offramp-error"), error);
    }

    // Libraries for CloudEvents offer a mode that is not understood.
    let mut headers = FieldTable::default();
    headers.insert("cloudEvents:specversion".into(), AMQPValue::LongString("1.0".into()));
    let data = cancellation("binary", "sub")["data"].to_string();
    let properties = sender.properties("binary").with_headers(headers);
    let reply = sender.ask("subscription.cancellation", data.as_bytes(), properties).await;
    assert!(reply["data"]["error"].as_str().unwrap().contains("structured mode"), "{reply}");

    // A command that is stopped by a document is named.
    let change = bson::doc! { "$set": { "billing.next_on": 7 } };
    bed.collection("subscriptions").update_one(bson::doc! { "_id": "sub" }, change).await.unwrap();
    let reply = sender.ask_command(&cancellation("corrupt", "sub")).await;
    assert_eq!(reply["data"]["reason"], "corrupt_document");
    assert_eq!(reply["data"]["command"], reference("corrupt", "subscription.cancellation"));
    assert!(worker.stop().await.success());
    bed.remove().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_that_must_not_wait_is_rejected_at_once() {
    let bed = TestBed::new("no-wait").await;
    let sink = SmtpSink::start().await;
    populate(&bed).await;
    let worker = WorkerProcess::start(&bed, &sink.url()).await;
    let sender = Sender::new(&bed).await;
    for (id, value) in [("bool", AMQPValue::Boolean(false)), ("text", AMQPValue::LongString("false".into()))] {
        let mut headers = FieldTable::default();
        headers.insert("offramp-wait".into(), value);
        let body = cancellation(id, "no-such").to_string();
        let properties = sender.properties(id).with_headers(headers);
        let reply = sender.ask("subscription.cancellation", body.as_bytes(), properties).await;
        assert_eq!(reply["type"], "command.rejected");
        assert_eq!(reply["data"]["reason"], "subscription_not_found");
    }
    let metrics = metrics_of(worker.port()).await.unwrap();
    let waited = "offramp_commands_total{lane=\"subscription.cancellation\",outcome=\"retry\"} 0";
    assert!(metrics.lines().any(|line| line == waited), "{metrics}");
    assert!(worker.stop().await.success());
    bed.remove().await;
}

/// Properties of a message that is not worth a (further) wait.
fn at_attempt(properties: BasicProperties, attempt: u32) -> BasicProperties {
    let mut headers = FieldTable::default();
    headers.insert("offramp-attempt".into(), AMQPValue::LongUInt(attempt));
    properties.with_headers(headers)
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_that_exhaust_their_retries_are_answered_with_the_dead_letter() {
    let bed = TestBed::new("exhausted").await;
    let sink = SmtpSink::start().await;
    populate(&bed).await;
    let orphans = [subscription("no-account", "org", "gone"), subscription("no-organization", "gone", "acc")];
    bed.collection("subscriptions").insert_many(orphans).await.unwrap();
    // The database rejects every change.
    bed.set_validator("subscriptions", doc! { "status": { "$exists": false } }).await;
    let worker = WorkerProcess::start(&bed, &sink.url()).await;
    let sender = Sender::new(&bed).await;

    // The last of three waits for a document, and the last of five retries after a failure.
    let homeless = with(cancellation("homeless", "no-organization"), "organization_id", json!("gone"));
    for (command, attempt, reason, words) in [
        (cancellation("unpaid", "no-account"), 3, "missing_account", "accounts gone: does not exist"),
        (homeless, 3, "missing_organization", "organizations gone: does not exist"),
        (cancellation("stubborn", "sub"), 5, "exhausted", "subscriptions sub: "),
    ] {
        let id = command["id"].as_str().unwrap().to_owned();
        let properties = at_attempt(sender.properties(&id), attempt);
        let reply = sender.ask("subscription.cancellation", command.to_string().as_bytes(), properties).await;
        assert_eq!(reply["type"], "command.invalid", "{reply}");
        assert_eq!(reply["data"]["reason"], reason);
        assert_eq!(reply["data"]["command"], reference(&id, "subscription.cancellation"));
        let error = reply["data"]["error"].as_str().unwrap();
        assert!(error.contains(words), "{error}");
        let letter = bed.dead_letter().await;
        assert_eq!(
            (letter.header("offramp-error"), letter.header("offramp-reason").as_str()),
            (error.to_owned(), reason)
        );
    }

    // Earlier attempts are not answered: they wait.
    let properties = at_attempt(sender.properties("waits"), 2);
    let waits = cancellation("waits", "no-account").to_string();
    bed.publish_with("subscription.cancellation", waits.as_bytes(), properties).await;
    eventually("the retry", || bed.take("retry.2m")).await;
    assert!(bed.take("test-replies").await.is_none());
    assert!(worker.stop().await.success());
    bed.remove().await;
}

/// Two commands for one subscription, decided in one batch, are one write.
#[tokio::test(flavor = "multi_thread")]
async fn replies_to_commands_of_one_batch_carry_the_version_of_their_write() {
    const PAIRS: usize = 60;
    let bed = TestBed::new("pairs").await;
    let sink = SmtpSink::start().await;
    bed.collection("organizations").insert_one(organization("org")).await.unwrap();
    bed.collection("accounts").insert_one(account("acc", "org")).await.unwrap();
    let subscriptions = (0..PAIRS).map(|pair| subscription(&format!("sub-{pair}"), "org", "acc"));
    bed.collection("subscriptions").insert_many(subscriptions).await.unwrap();
    let worker = WorkerProcess::start(&bed, &sink.url()).await;
    let sender = Sender::new(&bed).await;
    for pair in 0..PAIRS {
        for (name, month) in [("first", "2199-08"), ("second", "2199-07")] {
            let id = format!("{name}-{pair}");
            let command = with(cancellation(&id, &format!("sub-{pair}")), "month", json!(month)).to_string();
            bed.publish_with("subscription.cancellation", command.as_bytes(), sender.properties(&id)).await;
        }
    }
    let mut replies = HashMap::new();
    while replies.len() < 2 * PAIRS {
        let (reply, _) = eventually("a reply", || bed.take("test-replies")).await;
        let reply: Value = serde_json::from_slice(&reply).unwrap();
        assert_eq!(reply["type"], "command.applied", "{reply}");
        replies.insert(reply["causationid"].as_str().unwrap().to_owned(), reply);
    }
    bed.outboxes_empty().await;
    let mut together = 0;
    for pair in 0..PAIRS {
        let data = |name: &str| &replies[&format!("{name}-{pair}")]["data"];
        let version = |name: &str| data(name)["version"].as_i64().unwrap();
        assert_eq!(data("second")["ends_on"], "2199-07-14");
        if version("first") == version("second") {
            together += 1;
            assert_eq!(version("first"), 1, "one write");
            // The version is that of the document with this last day.
            assert_eq!(data("first")["ends_on"], "2199-07-14");
        } else {
            assert!(version("first") < version("second"), "{} {}", data("first"), data("second"));
            assert_eq!(data("first")["ends_on"], "2199-08-14");
        }
        let document = bed.document("subscriptions", &format!("sub-{pair}")).await.unwrap();
        let written = document.get("version").and_then(|version| match version {
            Bson::Int32(version) => Some(i64::from(*version)),
            Bson::Int64(version) => Some(*version),
            _ => None,
        });
        assert!(written.unwrap() >= version("second"), "{document}");
        assert_eq!(document.get_str("ends_on").unwrap(), "2199-07-14");
    }
    assert!(together > 0, "no pair was decided in one batch");
    assert!(worker.stop().await.success());
    bed.remove().await;
}

/// How long the commands may take although their replies are not delivered. Waiting for a single confirm takes 10 s.
const SETTLED_WITHIN: Duration = Duration::from_secs(6);
/// The commands whose replies are not delivered.
const UNANSWERED: u64 = 20;

/// The size of a batch, so that there are several.
const BATCH_MAX: (&str, &str) = ("OFFRAMP_BATCH_MAX", "4");

/// Publishes commands whose replies go to `queue`, and then one whose reply is delivered.
async fn settles_beside(bed: &TestBed, worker: &WorkerProcess, sender: &Sender<'_>, queue: &str) {
    for index in 0..UNANSWERED {
        let wrong = with(cancellation(&format!("lost-{index}"), "sub"), "organization_id", json!("elsewhere"));
        let properties = BasicProperties::default().with_reply_to(queue.into());
        bed.publish_with("subscription.cancellation", wrong.to_string().as_bytes(), properties).await;
    }
    let began = Instant::now();
    bed.command(&cancellation("last", "sub")).await;
    eventually("all commands to be settled", || async { (worker.settled().await == UNANSWERED + 1).then_some(()) })
        .await;
    assert!(began.elapsed() < SETTLED_WITHIN, "{:?}", began.elapsed());
    let answer = worker.readyz().await.unwrap();
    assert_eq!(answer.status, 200, "{answer}");
    // Later replies arrive, once those that were not delivered are given up.
    let repeat = cancellation("last", "sub").to_string();
    let reply = eventually("a reply to a repeat", || async {
        bed.publish_with("subscription.cancellation", repeat.as_bytes(), sender.properties("last")).await;
        bed.take("test-replies").await
    });
    let (reply, _) = reply.await;
    assert_eq!(serde_json::from_slice::<Value>(&reply).unwrap()["type"], "command.applied");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reply_queue_that_never_confirms_stops_no_lane() {
    let bed = TestBed::new("mute").await;
    let sink = SmtpSink::start().await;
    populate(&bed).await;
    let (_line, amqp_url) = Proxy::in_front_of(&amqp_url()).await;
    let settings = [("OFFRAMP_AMQP_URL", amqp_url.as_str()), BATCH_MAX];
    let worker = WorkerProcess::start_with(&bed, &sink.url(), &settings).await;
    let sender = Sender::new(&bed).await;
    settles_beside(&bed, &worker, &sender, &format!("{LOST}{}", bed.prefix)).await;
    assert!(worker.stop().await.success());
    bed.remove().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reply_queue_that_is_full_or_missing_stops_no_lane() {
    for name in ["full", "missing"] {
        let bed = TestBed::new(name).await;
        let sink = SmtpSink::start().await;
        populate(&bed).await;
        let queue = format!("{}.test-{name}", bed.prefix);
        if name == "full" {
            let mut arguments = FieldTable::default();
            arguments.insert("x-max-length".into(), AMQPValue::LongInt(0));
            arguments.insert("x-overflow".into(), AMQPValue::LongString("reject-publish".into()));
            let options = QueueDeclareOptions { exclusive: true, ..Default::default() };
            bed.channel.queue_declare(queue.as_str().into(), options, arguments).await.unwrap();
        }
        let worker = WorkerProcess::start_with(&bed, &sink.url(), &[BATCH_MAX]).await;
        let sender = Sender::new(&bed).await;
        settles_beside(&bed, &worker, &sender, &queue).await;
        assert!(worker.stop().await.success());
        bed.remove().await;
    }
}

/// A `reply_to` that names one of Offramp's own queues would turn replies into commands or dead letters.
#[tokio::test(flavor = "multi_thread")]
async fn replies_to_offramps_own_queues_are_not_sent() {
    let bed = TestBed::new("replies").await;
    let sink = SmtpSink::start().await;
    populate(&bed).await;
    let events = bed.watch_events().await;
    let worker = WorkerProcess::start(&bed, &sink.url()).await;
    for queue in ["retry.5s", "cancellation", "dead-letters"] {
        let early = with(cancellation(queue, "sub"), "month", json!("2199-05"));
        let reply_to = format!("{}.{queue}", bed.prefix);
        let properties = BasicProperties::default().with_reply_to(reply_to.as_str().into());
        bed.publish_with("subscription.cancellation", early.to_string().as_bytes(), properties).await;
        events.next(&bed, is_rejection_of(queue)).await;
    }
    eventually("all to be settled", || async { (worker.settled().await == 3).then_some(()) }).await;
    for queue in ["retry.5s", "cancellation", "dead-letters"] {
        assert!(bed.take(queue).await.is_none(), "{queue}");
    }
    assert!(worker.stop().await.success());
    bed.remove().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unconfirmed_reply_does_not_block_its_lane() {
    let bed = TestBed::new("silent").await;
    let sink = SmtpSink::start().await;
    populate(&bed).await;
    let events = bed.watch_events().await;
    let (_line, amqp_url) = Proxy::in_front_of(&amqp_url()).await;
    let worker = WorkerProcess::start_with(&bed, &sink.url(), &[("OFFRAMP_AMQP_URL", &amqp_url)]).await;

    let refused = with(cancellation("c-1", "sub"), "organization_id", json!("elsewhere")).to_string();
    let properties = BasicProperties::default().with_reply_to(format!("{LOST}{}", bed.prefix).into());
    bed.publish_with("subscription.cancellation", refused.as_bytes(), properties).await;
    bed.command(&cancellation("c-2", "sub")).await;

    events.next(&bed, is_rejection_of("c-1")).await;
    bed.status_becomes("sub", "cancellation_scheduled").await;
    let answer = worker.readyz().await.unwrap();
    assert!(answer.status == 200, "an unconfirmed reply does not make the worker unready: {answer}");
    assert!(worker.stop().await.success());
    assert!(bed.take("cancellation").await.is_none(), "both are acknowledged");
    bed.remove().await;
}
