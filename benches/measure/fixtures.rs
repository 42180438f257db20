//! The state before a worker starts: documents in the database, and confirmed messages in the queues.

use std::collections::VecDeque;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use bson::{Document, doc};
use lapin::options::BasicPublishOptions;
use lapin::{BasicProperties, Channel, Confirmation, PublisherConfirm};
use offramp::amqp::Topology;
use offramp_domain::command_ref::CommandType;
use serde_json::{Value, json};
use tokio::time::sleep;

use offramp_testkit::fixtures::{account, command, organization, subscription};
use offramp_testkit::process;
use offramp_testkit::test_bed::TestBed;
use offramp_testkit::worker_process::{build, program};

const ORGANIZATIONS: usize = 50;
const INSERT_MAX: usize = 1_000;
const UNCONFIRMED_MAX: usize = 2_000;
const LOOK_EVERY: Duration = Duration::from_millis(5);
/// The timeout for empty outboxes, once everything was sent.
const OUTBOXES_PATIENCE: Duration = Duration::from_secs(60);

/// A test bed with exchanges, queues and indexes.
pub async fn test_bed(name: &str) -> TestBed {
    test_bed_for(name, program()).await
}

/// A test bed that another build of the program has initialized.
pub async fn test_bed_for(name: &str, program: &Path) -> TestBed {
    let bed = TestBed::new(&format!("bench-{name}")).await;
    let output = process::run(build(program, &bed).arg("init"), Command::output).unwrap();
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{} init: {complaint}", program.display());
    bed
}

/// Waits until every outbox of the collection is empty. Builds have different indexes for outboxes, so none is used: a document with
/// entries is polled by its id until it has none, and only then are all documents scanned again.
pub async fn outboxes_empty(bed: &TestBed, collection: &str) {
    let begin = Instant::now();
    let collection = bed.collection(collection);
    let waits = doc! { "outbox.0": { "$exists": true } };
    while let Some(document) = collection.find_one(waits.clone()).projection(doc! { "_id": 1 }).await.unwrap() {
        let mut this = waits.clone();
        this.extend(document);
        while collection.find_one(this.clone()).projection(doc! { "_id": 1 }).await.unwrap().is_some() {
            assert!(begin.elapsed() < OUTBOXES_PATIENCE, "outboxes do not become empty");
            sleep(LOOK_EVERY).await;
        }
    }
}

/// The work queue of a type.
pub fn work_queue(bed: &TestBed, kind: CommandType) -> String {
    Topology::new(&bed.prefix).work_queue(kind)
}

pub fn subscription_id(index: usize) -> String {
    format!("s-{index:07}")
}

pub fn account_id(index: usize) -> String {
    format!("a-{index:07}")
}

/// The account that pays a subscription.
pub fn account_behind(subscription_id: &str) -> String {
    subscription_id.replace("s-", "a-")
}

/// All organizations.
pub fn organization_ids() -> impl Iterator<Item = String> {
    (0..ORGANIZATIONS).map(organization_id)
}

fn organization_id(index: usize) -> String {
    format!("o-{:02}", index % ORGANIZATIONS)
}

/// Inserts all organizations, each modified by `change`.
pub async fn add_organizations(bed: &TestBed, change: impl Fn(&mut Document)) {
    let organizations = organization_ids().map(|id| {
        let mut organization = organization(&id);
        change(&mut organization);
        organization
    });
    insert(bed, "organizations", organizations).await;
}

/// Inserts accounts with one active subscription each, modified by `change`.
pub async fn add_clients(
    bed: &TestBed,
    indexes: impl Iterator<Item = usize> + Clone,
    change: impl Fn(usize, &mut Document),
) {
    add_accounts(bed, indexes.clone(), |_, _| {}).await;
    add_subscriptions(bed, indexes, change).await;
}

/// Inserts active subscriptions, modified by `change`.
pub async fn add_subscriptions(
    bed: &TestBed,
    indexes: impl Iterator<Item = usize>,
    change: impl Fn(usize, &mut Document),
) {
    let subscriptions = indexes.map(|index| {
        let (id, account) = (subscription_id(index), account_id(index));
        let mut document = subscription(&id, &organization_id(index), &account);
        change(index, &mut document);
        document
    });
    insert(bed, "subscriptions", subscriptions).await;
}

/// Inserts accounts, modified by `change`.
pub async fn add_accounts(bed: &TestBed, indexes: impl Iterator<Item = usize>, change: impl Fn(usize, &mut Document)) {
    let accounts = indexes.map(|index| {
        let mut account = account(&account_id(index), &organization_id(index));
        change(index, &mut account);
        account
    });
    insert(bed, "accounts", accounts).await;
}

async fn insert(bed: &TestBed, collection: &str, mut documents: impl Iterator<Item = Document>) {
    let collection = bed.collection(collection);
    loop {
        let some: Vec<Document> = documents.by_ref().take(INSERT_MAX).collect();
        if some.is_empty() {
            return;
        }
        collection.insert_many(some).ordered(false).await.unwrap();
    }
}

/// Flushes the database to disk, so that it does not do so during a measurement.
pub async fn flush_database(bed: &TestBed) {
    bed.database.client().database("admin").run_command(doc! { "fsync": 1 }).await.unwrap();
}

/// A command of this type for the subscription or account with this index.
pub fn command_of(kind: CommandType, index: usize) -> Value {
    let data = |more: Value| {
        let mut data = json!({ "organization_id": organization_id(index), "subscription_id": subscription_id(index) });
        data.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        data
    };
    let admin = json!({ "role": "admin", "id": "staff-17", "name": "Paul" });
    let client = json!({ "role": "client", "account_id": account_id(index), "name": "Ada Roy" });
    let data = match kind {
        CommandType::Cancellation => data(json!({ "actor": admin, "via": "purchases", "month": "2199-08" })),
        CommandType::CancellationRequest => data(json!({ "actor": client, "reason": "We are moving away." })),
        CommandType::CancellationConfirmation => data(json!({ "actor": admin, "decision": "accept" })),
        CommandType::PaymentFailure => data(json!({
            "invoice_id": "inv-5", "amount": { "value": "49.99", "currency": "CAD" },
            "card": { "brand": "Visa", "last4": "4242" }, "attempt": 1, "failure_message": "Card declined",
            "next_attempt_on": "2199-06-05",
        })),
        CommandType::CardExpiry => json!({
            "organization_id": organization_id(index), "account_id": account_id(index),
            "card": { "id": "card-1", "brand": "Visa", "last4": "4242", "expires": "2199-06" },
        }),
    };
    command(&format!("c-{index:07}"), kind.as_str(), data)
}

/// Publishes commands, and waits until the broker has confirmed them all.
pub async fn publish(bed: &TestBed, commands: impl Iterator<Item = Value>) {
    let mut unconfirmed = VecDeque::new();
    for command in commands {
        unconfirmed.push_back(send(&bed.channel, &bed.prefix, &command).await);
        if unconfirmed.len() == UNCONFIRMED_MAX {
            confirmed(unconfirmed.pop_front().unwrap()).await;
        }
    }
    for confirm in unconfirmed {
        confirmed(confirm).await;
    }
}

/// Publishes one command as upstream systems do: persistent and mandatory.
pub async fn send(channel: &Channel, exchange: &str, command: &Value) -> PublisherConfirm {
    let options = BasicPublishOptions { mandatory: true, ..Default::default() };
    let kind = command["type"].as_str().unwrap();
    // The baselines parse no bodies, so they take the document id from here.
    let id = command["data"]["subscription_id"].as_str().unwrap_or_default();
    let properties = BasicProperties::default().with_delivery_mode(2).with_message_id(id.into());
    let body = command.to_string();
    channel.basic_publish(exchange.into(), kind.into(), options, body.as_bytes(), properties).await.unwrap()
}

/// Waits for a confirm.
pub async fn confirmed(confirm: PublisherConfirm) {
    let confirmation = confirm.await.unwrap();
    assert!(matches!(confirmation, Confirmation::Ack(None)), "{confirmation:?}");
}
