//! Each message with a `reply_to` gets one reply, once it is settled.

use lapin::BasicProperties;
use lapin::options::QueueDeclareOptions;
use lapin::types::{AMQPValue, FieldTable};
use serde_json::{Value, json};

use offramp_testkit::eventually;
use offramp_testkit::fixtures::{cancellation, command, populate, with};
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
