//! A recording: what a release of the program leaves in MongoDB and RabbitMQ when its last worker is killed. [`Recording::of`] makes one,
//! [`Recording::load`] puts it on the servers of a test. `tests/fixtures/previous-release` holds the one of the previous release.
//!
//! Documents are canonical Extended JSON. Messages have their properties and headers. The prefix is replaced by a placeholder.

mod message;
mod scenario;

use std::fs;
use std::path::Path;
use std::time::Duration;

use bson::{Bson, DateTime, Document, doc};
use futures_util::TryStreamExt;
use lapin::options::{BasicAckOptions, BasicGetOptions, BasicPublishOptions, QueueDeclareOptions};
use lapin::types::FieldTable;
use serde_json::Value;

pub use self::message::Message;
use self::scenario::play;
pub use self::scenario::{becomes, requests};
use crate::test_bed::TestBed;

/// The collections, and the names of their files.
pub const COLLECTIONS: [&str; 3] = ["organizations", "accounts", "subscriptions"];
/// Stands for the prefix in files.
const PREFIX: &str = "{prefix}";
/// Instants that are this close to the recording are moved when it is loaded. Others are parts of dates.
const RECENT: Duration = Duration::from_secs(30 * 24 * 60 * 60);
/// How old a recording is when it is loaded: every lease and every pause is over.
const AGE_WHEN_LOADED: Duration = Duration::from_secs(60 * 60);

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
