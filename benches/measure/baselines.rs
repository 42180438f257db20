//! The baselines: the same operations on the same servers, with minimal code around them. Each runs in its own process, like the
//! worker: this program with `--baseline`.
//!
//! The bare pipeline performs the same operations as the worker for cancellations with a month: the same batches, finds and guarded
//! updates with a majority, and the email and the event kept in the document, sent, and marked in bulk. But it parses no message and
//! no document, decides nothing and renders nothing. The worker's own code prepares everything it writes once, for the first
//! subscription.

use std::collections::HashMap;
use std::io::Read;
use std::net::SocketAddr;

use bson::raw::cstr;
use bson::{RawArrayBuf, RawBson, RawDocumentBuf, doc, rawdoc};
use clap::ValueEnum;
use futures_util::{FutureExt, StreamExt, TryStreamExt};
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicPublishOptions, BasicQosOptions, ConfirmSelectOptions,
};
use lapin::types::FieldTable;
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties, Consumer};
use mongodb::Database;
use offramp::amqp::Topology;
use offramp::clock;
use offramp::store::documents::decision_projection;
use offramp::store::outbox::entry::{Content, Lease};
use offramp::store::{Collection, DocumentKeys, Store, updates};
use offramp::tls::Tls;
use offramp::worker::PREFETCH_BATCHES;
use offramp::worker::composer::{Composer, origin};
use offramp::worker::event_sender::PUBLISH_MAX;
use offramp::worker::handover::QUEUE_MAX;
use offramp::worker::unmarked::UNMARKED_EMAILS_MAX;
use offramp_domain::command::Command;
use offramp_domain::command_ref::CommandType;
use offramp_domain::unit_of_work::{Task, TaskOutcome};
use offramp_mail::{Sender, Templates};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use uuid::Uuid;

use crate::fixtures::{self, subscription_id};
use offramp_testkit::rabbit::amqp_url;

/// The lines that a baseline prints when its work begins, and when it is done.
pub const BEGINS: &str = "begins";
pub const DONE: &str = "done";

/// The defaults of `OFFRAMP_BATCH_MAX` and `OFFRAMP_MAIL_CONNECTIONS`.
pub const BATCH_MAX: usize = 200;
const CONNECTIONS: usize = 8;

/// An operation that is measured without the worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Baseline {
    /// Consume and ack messages.
    Consume,
    /// Find and update documents.
    Database,
    /// Send emails.
    Smtp,
    /// All of these.
    Pipeline,
}

impl Baseline {
    pub const ALL: [Self; 4] = [Self::Consume, Self::Database, Self::Smtp, Self::Pipeline];

    pub fn name(self) -> &'static str {
        match self {
            Self::Consume => "baseline: consume and ack",
            Self::Database => "baseline: $in finds and update",
            Self::Smtp => "baseline: SMTP",
            Self::Pipeline => "bare pipeline",
        }
    }

    /// Whether it needs waiting messages.
    pub fn takes_messages(self) -> bool {
        matches!(self, Self::Consume | Self::Pipeline)
    }

    /// Whether it needs documents.
    pub fn takes_documents(self) -> bool {
        self != Self::Consume
    }

    /// Whether it sends emails.
    pub fn sends_emails(self) -> bool {
        matches!(self, Self::Smtp | Self::Pipeline)
    }
}

/// Arguments for the process of a baseline.
#[derive(clap::Args)]
pub struct BaselineArguments {
    #[arg(long, hide = true, value_enum)]
    pub baseline: Option<Baseline>,
    #[arg(long, hide = true, default_value_t = 0)]
    pub baseline_count: usize,
    #[arg(long, hide = true, default_value = "")]
    pub baseline_prefix: String,
    #[arg(long, hide = true, default_value = "")]
    pub baseline_mongodb_url: String,
    #[arg(long, hide = true, default_value = "127.0.0.1:1025")]
    pub baseline_sink: SocketAddr,
}

/// Runs a baseline, and then waits for the end of standard input, so that the parent process can read its usage.
pub async fn run(baseline: Baseline, arguments: &BaselineArguments) {
    match baseline {
        Baseline::Consume => consume(arguments).await,
        Baseline::Database => database(arguments).await,
        Baseline::Smtp => smtp(arguments).await,
        Baseline::Pipeline => pipeline(arguments).await,
    }
    eprintln!("{DONE}");
    drop(std::io::stdin().read_to_end(&mut Vec::new()));
}

async fn consume(arguments: &BaselineArguments) {
    let (_connection, mut messages) = Messages::open(arguments).await;
    eprintln!("{BEGINS}");
    let mut taken = 0;
    while taken < arguments.baseline_count {
        let batch = messages.next_batch().await;
        taken += batch.ids.len();
        batch.ack().await;
    }
}

async fn database(arguments: &BaselineArguments) {
    let constants = Constants::make(arguments).await;
    let ids: Vec<String> = (0..arguments.baseline_count).map(subscription_id).collect();
    eprintln!("{BEGINS}");
    for ids in ids.chunks(BATCH_MAX) {
        constants.find(ids).await;
        constants.update(ids).await;
    }
}

async fn smtp(arguments: &BaselineArguments) {
    let constants = Constants::make(arguments).await;
    let mail: &'static [u8] = constants.mail.leak();
    let mut left = arguments.baseline_count;
    let mut senders = JoinSet::new();
    eprintln!("{BEGINS}");
    for nth in 0..CONNECTIONS {
        let share = left / (CONNECTIONS - nth);
        left -= share;
        let sink = arguments.baseline_sink;
        senders.spawn(async move {
            let mut line = Line::open(sink).await;
            for _ in 0..share {
                line.send(mail).await;
            }
        });
    }
    while let Some(sender) = senders.join_next().await {
        sender.unwrap();
    }
}

/// As in the worker, emails and events are sent by separate tasks, and marked together.
async fn pipeline(arguments: &BaselineArguments) {
    let constants: &'static Constants = Box::leak(Box::new(Constants::make(arguments).await));
    let (connection, mut messages) = Messages::open(arguments).await;
    let events_channel = connection.create_channel().await.unwrap();
    events_channel.confirm_select(ConfirmSelectOptions::default()).await.unwrap();

    let (emails_in, emails) = async_channel::bounded::<String>(QUEUE_MAX);
    let (events_in, events) = async_channel::bounded::<String>(QUEUE_MAX);
    let (settle, settled) = async_channel::bounded::<Mark>(UNMARKED_EMAILS_MAX);
    let mut tasks = JoinSet::new();
    for _ in 0..CONNECTIONS {
        let (emails, settle, sink) = (emails.clone(), settle.clone(), arguments.baseline_sink);
        tasks.spawn(async move {
            let mut line = None;
            while let Ok(id) = emails.recv().await {
                if line.is_none() {
                    line = Some(Line::open(sink).await);
                }
                line.as_mut().unwrap().send(&constants.mail).await;
                settle.send(Mark { id, of: Sent::Mail }).await.unwrap();
            }
        });
    }
    tasks.spawn(async move {
        while let Some(bulk) = take_bulk(&events).await {
            constants.publish(&events_channel, bulk.len()).await;
            for id in bulk {
                settle.send(Mark { id, of: Sent::Event }).await.unwrap();
            }
        }
    });
    tasks.spawn(async move {
        while let Some(bulk) = take_bulk(&settled).await {
            constants.mark(&bulk).await;
        }
    });

    eprintln!("{BEGINS}");
    let mut taken = 0;
    while taken < arguments.baseline_count {
        let batch = messages.next_batch().await;
        constants.find(&batch.ids).await;
        constants.update(&batch.ids).await;
        for id in &batch.ids {
            events_in.send(id.clone()).await.unwrap();
        }
        for id in &batch.ids {
            emails_in.send(id.clone()).await.unwrap();
        }
        taken += batch.ids.len();
        batch.ack().await;
    }
    drop((emails_in, events_in, emails));
    while let Some(task) = tasks.join_next().await {
        task.unwrap();
    }
}

/// A consumer of the work queue with lapin, the worker's client.
struct Messages {
    consumer: Consumer,
}

/// The document ids of several messages.
struct Batch {
    ids: Vec<String>,
    last: lapin::Acker,
}

impl Messages {
    async fn open(arguments: &BaselineArguments) -> (Connection, Self) {
        let connection = Connection::connect(&amqp_url(), ConnectionProperties::default()).await.unwrap();
        let channel = connection.create_channel().await.unwrap();
        let prefetch = u16::try_from(BATCH_MAX * PREFETCH_BATCHES).unwrap();
        channel.basic_qos(prefetch, BasicQosOptions::default()).await.unwrap();
        let queue = Topology::new(&arguments.baseline_prefix).work_queue(CommandType::Cancellation);
        let consuming = channel.basic_consume(
            queue.as_str().into(),
            "".into(),
            BasicConsumeOptions::default(),
            FieldTable::default(),
        );
        let consumer = consuming.await.unwrap();
        (connection, Self { consumer })
    }

    async fn next_batch(&mut self) -> Batch {
        let first = self.consumer.next().await.unwrap().unwrap();
        let mut batch = Batch { ids: vec![id_of(&first)], last: first.acker.clone() };
        while batch.ids.len() < BATCH_MAX
            && let Some(next) = self.consumer.next().now_or_never()
        {
            let next = next.unwrap().unwrap();
            batch.ids.push(id_of(&next));
            batch.last = next.acker;
        }
        batch
    }
}

impl Batch {
    async fn ack(self) {
        self.last.ack(BasicAckOptions { multiple: true }).await.unwrap();
    }
}

fn id_of(message: &lapin::message::Delivery) -> String {
    message.properties.message_id().as_ref().unwrap().to_string()
}

/// A sent entry of the document with this id.
struct Mark {
    id: String,
    of: Sent,
}

#[derive(Clone, Copy)]
enum Sent {
    Mail,
    Event,
}

/// Everything that is sent and written, prepared once.
struct Constants {
    database: Database,
    prefix: String,
    organizations: Vec<String>,
    /// The `u` of the update of a subscription.
    update: RawDocumentBuf,
    /// The length of `history` in its `q`, if any.
    history_length: Option<u32>,
    /// The ids of the email and the event in it.
    mail_id: String,
    event_id: String,
    mail: Vec<u8>,
    event: Vec<u8>,
    event_type: String,
}

impl Constants {
    async fn make(arguments: &BaselineArguments) -> Self {
        let store = Store::open(&arguments.baseline_mongodb_url, &Tls::default()).await.unwrap();
        let body = fixtures::command_of(CommandType::Cancellation, 0).to_string();
        let command = Command::parse(body.as_bytes()).unwrap();
        let need = DocumentKeys {
            subscriptions: [subscription_id(0).as_str().try_into().unwrap()].into(),
            organizations: [command.organization_id().clone()].into(),
            ..DocumentKeys::default()
        };
        let mut unit_of_work = store.load(&need).await.unwrap();
        let now = clock::now();
        assert_eq!(unit_of_work.apply(&Task::Command(command), now), TaskOutcome::Applied);
        let lease = Lease { holder: Uuid::new_v4(), until: now + chrono::TimeDelta::minutes(3) };
        let composer = Composer {
            templates: Templates::load(None).unwrap(),
            sender: Sender::parse("no-reply@offramp.example").unwrap(),
            signer: None,
        };
        let update = updates::build(unit_of_work, &lease, "offramp", &|id, email| composer.identify(id, email), now)
            .unwrap()
            .remove(0);
        let history_length = update.history_length;
        let RawBson::Document(change) = update.update.clone() else { panic!("an update of operators") };

        let (mut mail, mut event) = (None, None);
        for leased in update.into_leased() {
            match &leased.entry.content {
                Content::Mail(content) => {
                    mail = Some(composer.compose(origin(&leased).unwrap(), content, now).unwrap());
                }
                Content::Event(content) => event = Some(content.clone()),
            }
        }
        let (mail, event) = (mail.unwrap(), event.unwrap());
        let mail_id = mail.entry_id.to_string();
        // With the final dot of DATA.
        let mut bytes = mail.bytes(true).unwrap();
        bytes.extend_from_slice(b"\r\n.\r\n");
        let event_id = event.id.clone();
        Self {
            database: store.database().clone(),
            prefix: arguments.baseline_prefix.clone(),
            organizations: fixtures::organization_ids().collect(),
            update: change,
            history_length,
            mail: bytes,
            event: serde_json::to_vec(&event).unwrap(),
            event_type: event.kind,
            mail_id,
            event_id,
        }
    }

    /// Finds the documents of a batch, as `Store::load` does: subscriptions and organizations, then accounts.
    async fn find(&self, ids: &[String]) {
        let organizations = &self.organizations[..self.organizations.len().min(ids.len())];
        tokio::join!(
            self.find_in(Collection::Subscriptions, ids),
            self.find_in(Collection::Organizations, organizations),
        );
        let accounts: Vec<String> = ids.iter().map(|id| fixtures::account_behind(id)).collect();
        self.find_in(Collection::Accounts, &accounts).await;
    }

    async fn find_in(&self, collection: Collection, ids: &[String]) {
        let documents = self.database.collection::<RawDocumentBuf>(collection.as_str());
        let finding = documents.find(doc! { "_id": { "$in": ids } }).projection(decision_projection(collection));
        let finding = finding.batch_size(u32::try_from(ids.len()).unwrap() + 1);
        let found: Vec<RawDocumentBuf> = finding.await.unwrap().try_collect().await.unwrap();
        assert_eq!(found.len(), ids.len());
    }

    /// Writes the documents of a batch, as `Store::commit` does.
    async fn update(&self, ids: &[String]) {
        let statements = ids.iter().map(|id| {
            let mut find = rawdoc! { "_id": id.as_str(), "version": RawBson::Null };
            if let Some(length) = self.history_length {
                find.append(cstr!("history"), rawdoc! { "$size": i64::from(length) });
            }
            rawdoc! { "q": find, "u": self.update.clone() }
        });
        self.write(statements, ids.len()).await;
    }

    /// Marks sent entries as `Store::mark` does: one statement for documents with both entries, one for each kind alone.
    async fn mark(&self, marks: &[Mark]) {
        let mut documents: HashMap<&str, (bool, bool)> = HashMap::new();
        for mark in marks {
            let (mail, event) = documents.entry(&mark.id).or_default();
            match mark.of {
                Sent::Mail => *mail = true,
                Sent::Event => *event = true,
            }
        }
        // Entries have the same ids in all documents, so documents are grouped by what was sent.
        let now = bson::DateTime::now();
        let mut statements = Vec::new();
        for sent in [(true, true), (true, false), (false, true)] {
            let ids: RawArrayBuf = documents.iter().filter(|(_, of)| **of == sent).map(|(id, _)| *id).collect();
            if ids.is_empty() {
                continue;
            }
            let (mail, event) = sent;
            let entries = [mail.then_some(self.mail_id.as_str()), event.then_some(self.event_id.as_str())];
            let entries: RawArrayBuf = entries.into_iter().flatten().collect();
            let mut find = rawdoc! {
                "_id": { "$in": ids }, "outbox.id": { "$in": entries.clone() }, "status": { "$ne": "removed" },
            };
            let mut update =
                rawdoc! { "$pull": { "outbox": { "id": { "$in": entries } } }, "$inc": { "version": 1_i64 } };
            if mail {
                find.append(cstr!("notifications"), rawdoc! { "$type": "array" });
                update.append(cstr!("$set"), rawdoc! { "notifications.$[record].sent_at": now });
            }
            let mut statement = rawdoc! { "q": find, "u": update, "multi": true };
            if mail {
                statement.append(
                    cstr!("arrayFilters"),
                    [rawdoc! { "record.id": self.mail_id.as_str() }].into_iter().collect::<RawArrayBuf>(),
                );
            }
            statements.push(statement);
        }
        self.write(statements.into_iter(), documents.len()).await;
    }

    async fn write(&self, statements: impl Iterator<Item = RawDocumentBuf>, count: usize) {
        let mut updates = RawArrayBuf::new();
        statements.for_each(|statement| updates.push(statement));
        let command = rawdoc! {
            "update": "subscriptions", "updates": updates, "ordered": false, "writeConcern": { "w": "majority" },
        };
        let reply = self.database.run_raw_command(command).await.unwrap();
        assert_eq!(reply.get_i32("n").ok(), i32::try_from(count).ok(), "{reply}");
    }

    /// Publishes events, and waits for their confirms.
    async fn publish(&self, channel: &Channel, count: usize) {
        let exchange = format!("{}.events", self.prefix);
        let mut confirms = Vec::with_capacity(count);
        for _ in 0..count {
            let properties = BasicProperties::default()
                .with_delivery_mode(2)
                .with_content_type("application/cloudevents+json".into())
                .with_message_id(self.event_id.as_str().into());
            let (exchange, key) = (exchange.as_str().into(), self.event_type.as_str().into());
            let publishing =
                channel.basic_publish(exchange, key, BasicPublishOptions::default(), &self.event, properties);
            confirms.push(publishing.await.unwrap());
        }
        for confirm in confirms {
            fixtures::confirmed(confirm).await;
        }
    }
}

async fn take_bulk<T>(queue: &async_channel::Receiver<T>) -> Option<Vec<T>> {
    let mut bulk = vec![queue.recv().await.ok()?];
    while bulk.len() < PUBLISH_MAX
        && let Ok(item) = queue.try_recv()
    {
        bulk.push(item);
    }
    Some(bulk)
}

/// A connection to the mail server, without Nagle's algorithm.
struct Line {
    stream: BufReader<TcpStream>,
    answer: Vec<u8>,
}

impl Line {
    async fn open(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).await.unwrap();
        stream.set_nodelay(true).unwrap();
        let mut line = Self { stream: BufReader::new(stream), answer: Vec::new() };
        line.hear().await;
        line.say(b"EHLO bench\r\n").await;
        line
    }

    /// Sends an email that includes its final dot, with the worker's pipelined commands.
    async fn send(&mut self, mail: &[u8]) {
        self.say(b"MAIL FROM:<no-reply@offramp.example> BODY=8BITMIME\r\nRCPT TO:<a-0000000@home.example>\r\nDATA\r\n")
            .await;
        self.hear().await;
        self.hear().await;
        self.say(mail).await;
    }

    async fn say(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).await.unwrap();
        self.hear().await;
    }

    /// Reads all lines of a reply.
    async fn hear(&mut self) {
        loop {
            self.answer.clear();
            self.stream.read_until(b'\n', &mut self.answer).await.unwrap();
            assert!(matches!(self.answer.first(), Some(b'2' | b'3')), "{}", String::from_utf8_lossy(&self.answer));
            if self.answer.get(3) != Some(&b'-') {
                return;
            }
        }
    }
}
