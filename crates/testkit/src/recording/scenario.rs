//! What a recording's workers are given to do, until every kind of document, entry and message exists.

use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};

use bson::{DateTime, Document, doc};
use lapin::BasicProperties;
use lapin::options::{QueueBindOptions, QueueDeclareOptions, QueueDeleteOptions};
use lapin::types::{AMQPValue, FieldTable};
use serde_json::{Value, json};

use super::{Message, take_all, waiting};
use crate::eventually;
use crate::fixtures::{account, command, organization, subscription, with};
use crate::smtp_sink::{Action, SmtpSink, Step, Tls};
use crate::test_bed::TestBed;
use crate::worker_process::{WorkerProcess, build};

/// The shortest lease that the program accepts.
const LEASE_SECONDS: &str = "20";

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
fn cancels(id: &str, subscription: &str) -> Value {
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
pub(super) async fn play(program: &Path, bed: &TestBed) -> Vec<Message> {
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
