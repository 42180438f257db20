//! A recording: what a release of the program leaves in MongoDB and RabbitMQ when its last worker is killed. [`Recording::of`] makes one,
//! [`Recording::load`] puts it on the servers of a test. `tests/fixtures/previous-release` holds the one of the previous release.
//!
//! Documents are canonical Extended JSON. Messages have their properties and headers. The prefix is replaced by a placeholder.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bson::{Bson, DateTime, Document, doc};
use lapin::BasicProperties;
use lapin::options::{
    BasicAckOptions, BasicGetOptions, BasicPublishOptions, QueueBindOptions, QueueDeclareOptions, QueueDeleteOptions,
};
use lapin::types::{AMQPValue, FieldTable, LongString};
use serde_json::{Map, Value, json};

use futures_util::TryStreamExt;

use crate::eventually;
use crate::fixtures::{account, command, organization, subscription, with};
use crate::smtp_sink::{Action, SmtpSink, Step, Tls};
use crate::test_bed::TestBed;
use crate::worker_process::{WorkerProcess, build};

/// The collections, and the names of their files.
pub const COLLECTIONS: [&str; 3] = ["organizations", "accounts", "subscriptions"];
/// Stands for the prefix in files.
const PREFIX: &str = "{prefix}";
/// Instants that are this close to the recording are moved when it is loaded. Others are parts of dates.
const RECENT: Duration = Duration::from_secs(30 * 24 * 60 * 60);
/// How old a recording is when it is loaded: every lease and every pause is over.
const AGE_WHEN_LOADED: Duration = Duration::from_secs(60 * 60);
/// The shortest lease that the program accepts.
const LEASE_SECONDS: &str = "20";

/// What a release leaves.
#[derive(Clone, Debug)]
pub struct Recording {
    /// When it was made.
    pub recorded_at: DateTime,
    /// By collection, in the order of [`COLLECTIONS`].
    pub documents: Vec<(&'static str, Vec<Document>)>,
    /// Messages in retry queues.
    pub retry_copies: Vec<Message>,
    pub dead_letters: Vec<Message>,
    /// The published events.
    pub events: Vec<Message>,
}

/// A message of a queue.
#[derive(Clone, Debug, PartialEq)]
pub struct Message {
    /// Without the prefix.
    pub queue: String,
    pub routing_key: String,
    /// The text properties, by their name in AMQP.
    pub properties: Map<String, Value>,
    /// By name: the type and the value.
    pub headers: Map<String, Value>,
    pub body: String,
}

impl Message {
    /// The id in the body; empty if the body is not JSON.
    pub fn id(&self) -> String {
        let body: Value = serde_json::from_str(&self.body).unwrap_or_default();
        body["id"].as_str().unwrap_or_default().to_owned()
    }

    /// As published.
    pub fn to_properties(&self) -> BasicProperties {
        let mut headers = FieldTable::default();
        for (name, value) in &self.headers {
            headers.insert(name.as_str().into(), to_amqp(value));
        }
        let mut properties = BasicProperties::default().with_delivery_mode(2).with_headers(headers);
        for (name, value) in &self.properties {
            let value = value.as_str().unwrap();
            properties = match name.as_str() {
                "content_type" => properties.with_content_type(value.into()),
                "correlation_id" => properties.with_correlation_id(value.into()),
                "message_id" => properties.with_message_id(value.into()),
                "app_id" => properties.with_app_id(value.into()),
                _ => panic!("unknown property {name}"),
            };
        }
        properties
    }

    fn from_delivery(queue: &str, delivery: &lapin::message::Delivery) -> Self {
        let properties = &delivery.properties;
        assert_eq!(properties.delivery_mode(), &Some(2), "{queue}: not persistent");
        let texts = [
            ("content_type", properties.content_type()),
            ("correlation_id", properties.correlation_id()),
            ("message_id", properties.message_id()),
            ("app_id", properties.app_id()),
        ];
        let texts = texts.into_iter().filter_map(|(name, value)| Some((name, value.as_ref()?)));
        // Those of the broker are not published again.
        let headers = properties.headers().iter().flat_map(FieldTable::inner);
        let headers = headers.filter(|(name, _)| !name.as_str().starts_with("x-"));
        Self {
            queue: queue.to_owned(),
            routing_key: delivery.routing_key.to_string(),
            properties: texts.map(|(name, value)| (name.to_owned(), json!(value.as_str()))).collect(),
            headers: headers.map(|(name, value)| (name.to_string(), from_amqp(value))).collect(),
            body: String::from_utf8(delivery.data.clone()).unwrap(),
        }
    }

    fn to_json(&self) -> Value {
        let Self { queue, routing_key, properties, headers, body } = self;
        json!({ "queue": queue, "routing_key": routing_key, "properties": properties, "headers": headers, "body": body })
    }

    fn from_json(value: &Value) -> Self {
        let text = |name: &str| value[name].as_str().unwrap().to_owned();
        let map = |name: &str| value[name].as_object().unwrap().clone();
        Self {
            queue: text("queue"),
            routing_key: text("routing_key"),
            properties: map("properties"),
            headers: map("headers"),
            body: text("body"),
        }
    }
}

fn from_amqp(value: &AMQPValue) -> Value {
    match value {
        AMQPValue::LongString(text) => json!({ "longstr": text.to_string() }),
        AMQPValue::LongInt(number) => json!({ "int": number }),
        AMQPValue::Boolean(value) => json!({ "bool": value }),
        other => panic!("a header of a type that recordings do not know: {other:?}"),
    }
}

fn to_amqp(value: &Value) -> AMQPValue {
    let (kind, value) = value.as_object().unwrap().iter().next().unwrap();
    match kind.as_str() {
        "longstr" => AMQPValue::LongString(LongString::from(value.as_str().unwrap())),
        "int" => AMQPValue::LongInt(i32::try_from(value.as_i64().unwrap()).unwrap()),
        "bool" => AMQPValue::Boolean(value.as_bool().unwrap()),
        _ => panic!("unknown type {kind}"),
    }
}

impl Recording {
    /// Lets the workers of `program` process commands until every kind of document, entry and message exists, kills the last one, and
    /// takes what they left. The commands, and so all ids, are always the same.
    pub async fn of(program: &Path, bed: &TestBed) -> Self {
        let events = play(program, bed).await;
        let retry_copies = [take_all(bed, "retry.5s").await, take_all(bed, "retry.30s").await].concat();
        let mut dead_letters = take_all(bed, "dead-letters").await;
        dead_letters.sort_by_key(Message::id);
        let mut documents = Vec::new();
        for collection in COLLECTIONS {
            let sorted = bed.collection(collection).find(doc! {}).sort(doc! { "_id": 1 }).await.unwrap();
            documents.push((collection, sorted.try_collect().await.unwrap()));
        }
        let recording = Self { recorded_at: DateTime::now(), documents, retry_copies, dead_letters, events };
        // With the placeholder, as if read from files.
        Self::from_json(|name| serde_json::from_str(&recording.file(name).replace(&bed.prefix, PREFIX)).unwrap())
    }

    /// Reads the files of a folder.
    pub fn read(folder: &Path) -> Self {
        Self::from_json(|name| {
            let path = folder.join(format!("{name}.json"));
            let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            serde_json::from_str(&text).unwrap()
        })
    }

    /// Writes the files of a folder.
    pub fn write(&self, folder: &Path) {
        fs::create_dir_all(folder).unwrap();
        for name in ["recorded_at", "retry-copies", "dead-letters", "events"].into_iter().chain(COLLECTIONS) {
            fs::write(folder.join(format!("{name}.json")), self.file(name) + "\n").unwrap();
        }
    }

    /// All documents, each with its collection.
    pub fn every_document(&self) -> impl Iterator<Item = (&'static str, &Document)> {
        self.documents
            .iter()
            .flat_map(|(collection, documents)| documents.iter().map(|document| (*collection, document)))
    }

    /// The entries of all outboxes.
    pub fn outbox_entries(&self) -> Vec<Document> {
        self.every_document().flat_map(|(_, document)| list(document, "outbox")).collect()
    }

    /// The records of all emails.
    pub fn notifications(&self) -> Vec<Document> {
        self.every_document().flat_map(|(_, document)| list(document, "notifications")).collect()
    }

    /// Stores the documents, and publishes the dead letters. The queues exist already. Recent instants are moved, as if the recording
    /// were an hour old. Retry copies are not published, because they would not wait for the test: see [`publish`].
    pub async fn load(&self, bed: &TestBed) {
        let now = DateTime::now().timestamp_millis();
        let offset = now - i64::try_from(AGE_WHEN_LOADED.as_millis()).unwrap() - self.recorded_at.timestamp_millis();
        for (collection, documents) in &self.documents {
            let moved = documents.iter().map(|document| {
                let Bson::Document(document) = self.moved(Bson::Document(document.clone()), offset) else {
                    unreachable!("a document stays one")
                };
                document
            });
            bed.collection(collection).insert_many(moved).await.unwrap();
        }
        for message in &self.dead_letters {
            publish(bed, "", &format!("{}.dead-letters", bed.prefix), message).await;
        }
    }

    fn moved(&self, value: Bson, offset: i64) -> Bson {
        match value {
            Bson::DateTime(at) => {
                let distance = at.timestamp_millis().abs_diff(self.recorded_at.timestamp_millis());
                let is_recent = u128::from(distance) < RECENT.as_millis();
                let offset = if is_recent { offset } else { 0 };
                Bson::DateTime(DateTime::from_millis(at.timestamp_millis() + offset))
            }
            Bson::Array(values) => Bson::Array(values.into_iter().map(|value| self.moved(value, offset)).collect()),
            Bson::Document(document) => {
                let fields = document.into_iter().map(|(name, value)| (name, self.moved(value, offset)));
                Bson::Document(fields.collect())
            }
            other => other,
        }
    }

    /// The text of a file.
    fn file(&self, name: &str) -> String {
        let messages = |list: &[Message]| Value::Array(list.iter().map(Message::to_json).collect());
        let value = match name {
            "recorded_at" => Bson::DateTime(self.recorded_at).into_canonical_extjson(),
            "retry-copies" => messages(&self.retry_copies),
            "dead-letters" => messages(&self.dead_letters),
            "events" => messages(&self.events),
            collection => {
                let (_, documents) = self.documents.iter().find(|(name, _)| *name == collection).unwrap();
                let documents = documents.iter().cloned().map(|it| Bson::Document(it).into_canonical_extjson());
                Value::Array(documents.collect())
            }
        };
        serde_json::to_string_pretty(&value).unwrap()
    }

    fn from_json(file: impl Fn(&str) -> Value) -> Self {
        let messages = |name: &str| file(name).as_array().unwrap().iter().map(Message::from_json).collect();
        let documents = |collection: &str| {
            let documents = file(collection).as_array().unwrap().clone();
            let document = |value: Value| match Bson::try_from(value).unwrap() {
                Bson::Document(document) => document,
                other => panic!("{collection}: {other}"),
            };
            documents.into_iter().map(document).collect()
        };
        let Bson::DateTime(recorded_at) = Bson::try_from(file("recorded_at")).unwrap() else {
            panic!("recorded_at is not an instant")
        };
        Self {
            recorded_at,
            documents: COLLECTIONS.map(|collection| (collection, documents(collection))).into(),
            retry_copies: messages("retry-copies"),
            dead_letters: messages("dead-letters"),
            events: messages("events"),
        }
    }
}

/// A list of documents in a document; empty if it is absent.
pub fn list(document: &Document, name: &str) -> Vec<Document> {
    let values = document.get_array(name).cloned().unwrap_or_default();
    values.into_iter().map(|value| value.as_document().unwrap().clone()).collect()
}

/// Publishes a recorded message to an exchange. `{prefix}` in the routing key is replaced.
pub async fn publish(bed: &TestBed, exchange: &str, routing_key: &str, message: &Message) {
    let routing_key = routing_key.replace(PREFIX, &bed.prefix);
    let mut message = message.clone();
    for value in message.headers.values_mut() {
        *value = serde_json::from_str(&value.to_string().replace(PREFIX, &bed.prefix)).unwrap();
    }
    let options = BasicPublishOptions { mandatory: true, ..Default::default() };
    let properties = message.to_properties();
    let confirm = bed
        .channel
        .basic_publish(exchange.into(), routing_key.as_str().into(), options, message.body.as_bytes(), properties)
        .await
        .unwrap()
        .await
        .unwrap();
    assert!(matches!(confirm, lapin::Confirmation::Ack(None)), "{exchange} {routing_key}: {confirm:?}");
}

/// Takes all messages of a queue of this prefix.
pub async fn take_all(bed: &TestBed, queue: &str) -> Vec<Message> {
    let mut messages = Vec::new();
    let name = format!("{}.{queue}", bed.prefix);
    while let Some(got) = bed.channel.basic_get(name.as_str().into(), BasicGetOptions::default()).await.unwrap() {
        got.ack(BasicAckOptions::default()).await.unwrap();
        messages.push(Message::from_delivery(queue, &got.delivery));
    }
    messages
}

/// The number of ready messages in a queue of this prefix.
pub async fn waiting(bed: &TestBed, queue: &str) -> u32 {
    let queue = format!("{}.{queue}", bed.prefix);
    let options = QueueDeclareOptions { passive: true, ..Default::default() };
    bed.channel.queue_declare(queue.as_str().into(), options, FieldTable::default()).await.unwrap().message_count()
}

/// The behaviour of the mail server.
#[derive(Clone, Copy)]
enum Mail {
    Accept,
    RejectRecipient,
    RejectSender,
    /// Takes the email and closes the connection without a reply.
    TakeAndDrop,
    Defer,
}

impl Mail {
    fn action(self, step: Step) -> Action {
        match (self, step) {
            (Self::RejectRecipient, Step::Rcpt) => Action::Answer("550 5.1.1 no such user"),
            (Self::RejectSender, Step::Mail) => Action::Answer("550 5.7.1 not allowed to send"),
            (Self::TakeAndDrop, Step::Content) => Action::TakeAndDrop,
            (Self::Defer, Step::Rcpt) => Action::Answer("451 4.3.0 try again later"),
            _ => Action::Ok,
        }
    }
}

fn documents() -> [(&'static str, Vec<Document>); 3] {
    let active = |id: &str| subscription(id, "org", "acc");
    let changed = |id: &str, change: fn(&mut Document)| {
        let mut document = active(id);
        change(&mut document);
        document
    };
    let days_ago = |days: i64| DateTime::from_millis(DateTime::now().timestamp_millis() - days * 24 * 60 * 60 * 1_000);
    let mut org = organization("org");
    org.extend(doc! { "request_reminder_days": [3, 7], "notify_client_of_own_actions": true, "crm": { "tier": 3 } });
    let mut undecided = active("s-undecided");
    undecided.extend(doc! {
        "status": "cancellation_requested",
        "cancellation_request": {
            "requested_at": days_ago(4), "actor": { "role": "client", "account_id": "acc", "name": "Ada Roy" },
        },
    });
    let names = [
        "s-accepted",
        "s-admin",
        "s-by-client",
        "s-declined",
        "s-deferred",
        "s-early",
        "s-failed",
        "s-in-doubt",
        "s-late",
        "s-leased",
        "s-payment",
        "s-rejected",
        "s-removed",
        "s-requested",
        "s-sender",
        "s-superseded",
    ];
    let mut subscriptions: Vec<Document> = names.into_iter().map(active).collect();
    subscriptions.extend([
        undecided,
        changed("s-corrupt", |it| drop(it.get_document_mut("billing").unwrap().remove("next_on"))),
        changed("s-ended", |it| {
            let ends_at = DateTime::parse_rfc3339_str("2024-06-15T04:00:00Z").unwrap();
            it.extend(doc! { "status": "cancellation_scheduled", "ends_on": "2024-06-14", "ends_at": ends_at });
        }),
        changed("s-expired", |it| drop(it.insert("expires_on", "2024-06-01"))),
        changed("s-foreign", |it| drop(it.insert("account_id", "acc-foreign"))),
    ]);
    let accounts = vec![account("acc", "org"), account("acc-foreign", "org-other")];
    [("organizations", vec![org, organization("org-other")]), ("accounts", accounts), ("subscriptions", subscriptions)]
}

fn of_admin(id: &str, kind: &str, subscription: &str) -> Value {
    let actor = json!({ "role": "admin", "id": "admin-1", "name": "Paul" });
    command(id, kind, json!({ "organization_id": "org", "subscription_id": subscription, "actor": actor }))
}

fn of_client(id: &str, kind: &str, subscription: &str) -> Value {
    let actor = json!({ "role": "client", "account_id": "acc", "name": "Ada Roy" });
    command(id, kind, json!({ "organization_id": "org", "subscription_id": subscription, "actor": actor }))
}

/// An admin cancels from the purchases tab.
pub fn cancels(id: &str, subscription: &str) -> Value {
    let cancellation = with(of_admin(id, "subscription.cancellation", subscription), "via", json!("purchases"));
    with(with(cancellation, "reason", json!("moved away")), "message", json!("Au revoir !"))
}

/// The client asks for a cancellation.
pub fn requests(id: &str, subscription: &str) -> Value {
    with(of_client(id, "subscription.cancellation-request", subscription), "reason", json!("I swim less."))
}

fn decides(id: &str, subscription: &str, decision: &str) -> Value {
    with(of_admin(id, "subscription.cancellation-confirmation", subscription), "decision", json!(decision))
}

/// Properties and headers of a publisher's own.
fn foreign_properties() -> BasicProperties {
    let mut headers = FieldTable::default();
    headers.insert("crm-priority".into(), AMQPValue::LongInt(7));
    headers.insert("crm-origin".into(), AMQPValue::LongString("desk".into()));
    BasicProperties::default()
        .with_content_type("application/cloudevents+json".into())
        .with_correlation_id("case-42".into())
        .with_message_id("m-42".into())
        .with_app_id("crm".into())
        .with_headers(headers)
}

/// Plays the scenario; returns the events that were published while everything worked.
async fn play(program: &Path, bed: &TestBed) -> Vec<Message> {
    let mail = Arc::new(Mutex::new(Mail::Accept));
    let behaviour = Arc::clone(&mail);
    let sink = SmtpSink::scripted(Tls::No, move |step, _| behaviour.lock().unwrap().action(step)).await;
    for (collection, documents) in documents() {
        bed.collection(collection).insert_many(documents).await.unwrap();
    }
    let set = async |behaviour: Mail| {
        *mail.lock().unwrap() = behaviour;
        let mut worker: Command = build(program, bed);
        worker.env("OFFRAMP_SMTP_URL", sink.url()).env("OFFRAMP_LEASE_SECONDS", LEASE_SECONDS);
        WorkerProcess::of(&mut worker, Stdio::null()).ready().await
    };
    drop(bed.watch_events().await);
    let worker = set(Mail::Accept).await;
    everything_that_works(bed).await;
    worker.stop().await;
    let mut events = take_all(bed, "test-events").await;
    events.sort_by_key(Message::id);

    let worker = set(Mail::RejectRecipient).await;
    bed.command(&cancels("c-failed", "s-failed")).await;
    becomes(bed, "s-failed", doc! { "outbox.failed_at": { "$exists": true } }).await;
    eventually("its event", || has(bed, "s-failed", doc! { "outbox.event": { "$exists": false } })).await;
    drop(worker);

    let worker = set(Mail::RejectSender).await;
    bed.command(&cancels("c-sender", "s-sender")).await;
    becomes(bed, "s-sender", doc! { "outbox.sender_rejected_at": { "$exists": true } }).await;
    drop(worker);

    let worker = set(Mail::TakeAndDrop).await;
    bed.command(&cancels("c-in-doubt", "s-in-doubt")).await;
    becomes(bed, "s-in-doubt", doc! { "outbox.in_doubt": 1 }).await;
    drop(worker);

    let worker = set(Mail::Defer).await;
    // A queue without room: RabbitMQ takes no more events.
    let full = format!("{}.test-full", bed.prefix);
    let mut arguments = FieldTable::default();
    arguments.insert("x-max-length".into(), AMQPValue::LongInt(0));
    arguments.insert("x-overflow".into(), AMQPValue::LongString("reject-publish".into()));
    bed.channel.queue_declare(full.as_str().into(), QueueDeclareOptions::default(), arguments).await.unwrap();
    let exchange = format!("{}.events", bed.prefix);
    bed.channel
        .queue_bind(
            full.as_str().into(),
            exchange.as_str().into(),
            "#".into(),
            QueueBindOptions::default(),
            FieldTable::default(),
        )
        .await
        .unwrap();
    bed.command(&cancels("c-deferred", "s-deferred")).await;
    let tried = doc! { "outbox": { "$elemMatch": { "mail": { "$exists": true }, "attempts": { "$gte": 1 } } } };
    becomes(bed, "s-deferred", tried).await;
    let wait = async |id: &str, subscription: &str, queue: &str| {
        let body = decides(id, subscription, "accept").to_string();
        bed.publish_with("subscription.cancellation-confirmation", body.as_bytes(), foreign_properties()).await;
        eventually("a retry copy", || async { waiting(bed, queue).await == 1 }).await;
    };
    wait("c-late", "s-late", "retry.30s").await;
    bed.command(&cancels("c-leased", "s-leased")).await;
    becomes(bed, "s-leased", doc! { "outbox.holder": { "$gt": "" } }).await;
    // The last, because its copy waits for five seconds only.
    wait("c-early", "s-early", "retry.5s").await;
    drop(worker);
    bed.channel.queue_delete(full.as_str().into(), QueueDeleteOptions::default()).await.unwrap();
    events
}

/// Commands and scheduled changes whose emails and events are sent, and messages that become dead letters.
async fn everything_that_works(bed: &TestBed) {
    let immediate = with(of_client("c-client", "subscription.cancellation", "s-by-client"), "via", json!("account"));
    let removal = with(of_admin("c-removed", "subscription.cancellation", "s-removed"), "via", json!("invoice"));
    let removal = with(with(removal, "invoice_id", json!("inv-5")), "refund", json!(false));
    let forbidden = with(of_admin("c-rejected", "subscription.cancellation", "s-rejected"), "via", json!("account"));
    let failure = json!({
        "organization_id": "org", "subscription_id": "s-payment", "invoice_id": "inv-6",
        "amount": { "value": "49.99", "currency": "CAD" }, "card": { "brand": "Visa", "last4": "4242" },
        "attempt": 1, "next_attempt_on": "2199-06-18", "failure_code": "insufficient_funds",
        "failure_message": "Do not honor", "payment_url": "https://pay.example/inv-6",
    });
    let card = json!({
        "organization_id": "org", "account_id": "acc",
        "card": { "id": "card-1", "brand": "Visa", "last4": "4242", "expires": "2199-06" },
    });
    let first = [
        cancels("c-admin", "s-admin"),
        immediate,
        removal,
        forbidden,
        requests("c-requested", "s-requested"),
        requests("c-request-1", "s-accepted"),
        requests("c-request-2", "s-declined"),
        requests("c-request-3", "s-superseded"),
        command("c-payment", "payment.failure", failure),
        command("c-card", "card.expiry", card),
        with(cancels("c-misspelt", "s-requested"), "mnoth", json!("2199-07")),
        cancels("c-corrupt", "s-corrupt"),
        cancels("c-foreign", "s-foreign"),
    ];
    for command in &first {
        let body = command.to_string();
        bed.publish_with(command["type"].as_str().unwrap(), body.as_bytes(), foreign_properties()).await;
    }
    bed.publish("payment.failure", b"not JSON").await;
    for id in ["s-accepted", "s-declined", "s-superseded"] {
        becomes(bed, id, doc! { "status": "cancellation_requested" }).await;
    }
    becomes(bed, "s-admin", doc! { "status": "cancellation_scheduled" }).await;
    let second = [
        decides("c-accept", "s-accepted", "accept"),
        with(decides("c-decline", "s-declined", "decline"), "note", json!("Come and see us.")),
        cancels("c-supersede", "s-superseded"),
        // A repeat, and a command that asks for what is so already.
        cancels("c-admin", "s-admin"),
        cancels("c-unchanged", "s-admin"),
    ];
    for command in &second {
        bed.command(command).await;
    }
    for (id, command) in [
        ("s-accepted", "c-accept"),
        ("s-declined", "c-decline"),
        ("s-superseded", "c-supersede"),
        ("s-admin", "c-unchanged"),
    ] {
        becomes(bed, id, doc! { "applied.id": command }).await;
    }
    for (id, status) in [
        ("s-removed", "removed"),
        ("s-ended", "cancelled"),
        ("s-expired", "expired"),
        ("s-by-client", "cancellation_scheduled"),
    ] {
        becomes(bed, id, doc! { "status": status }).await;
    }
    becomes(bed, "s-payment", doc! { "applied.id": "c-payment" }).await;
    eventually("a card notice and a reminder", || async {
        let account = doc! { "_id": "acc", "card_notices.0": { "$exists": true } };
        let reminded = doc! { "_id": "org", "notifications.0": { "$exists": true } };
        let accounts = bed.collection("accounts").count_documents(account).await.unwrap();
        accounts + bed.collection("organizations").count_documents(reminded).await.unwrap() == 2
    })
    .await;
    eventually("four dead letters", || async { waiting(bed, "dead-letters").await == 4 }).await;
    bed.outboxes_empty().await;
    eventually("empty work queues", || async {
        for lane in crate::test_bed::LANES {
            if waiting(bed, lane).await > 0 {
                return None;
            }
        }
        Some(())
    })
    .await;
}

async fn has(bed: &TestBed, id: &str, mut filter: Document) -> bool {
    filter.insert("_id", id);
    bed.collection("subscriptions").count_documents(filter).await.unwrap() == 1
}

/// Waits until a subscription matches.
pub async fn becomes(bed: &TestBed, id: &str, filter: Document) {
    eventually(&format!("{id} to be {filter}"), || has(bed, id, filter.clone())).await;
}
