//! The commands, and what each must cause. The expectation is stated here, independently of the rules' code.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use bson::{DateTime, doc};
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval};

use offramp_testkit::fixtures::{account, command, organization, subscription, with};
use offramp_testkit::test_bed::TestBed;

/// Each command with this number is published twice.
const TWICE_EVERY: usize = 10;
/// Each scenario with this number also has a subscription whose scheduled end comes during the run.
const ENDS_EVERY: usize = 5;
/// When it comes, in milliseconds from now.
const ENDS_IN_MILLISECONDS: i64 = 3_000;

/// A published command.
#[derive(Clone, Debug)]
pub struct Sent {
    pub id: String,
    /// The collection and the document that remember it; absent if it is rejected.
    pub applied_by: Option<(&'static str, String)>,
    /// The templates of its emails.
    pub emails: Vec<&'static str>,
    /// The events that both releases publish.
    pub events: Vec<&'static str>,
    /// The event that only this release publishes.
    pub new_event: Option<&'static str>,
    /// The subscription that ends by itself, if this is no command.
    pub ends: Option<String>,
}

/// Publishes commands until stopped.
pub struct Load {
    published: Arc<AtomicUsize>,
    is_over: Arc<AtomicBool>,
    publishing: JoinHandle<Vec<Sent>>,
}

impl Load {
    /// Begins to publish `rate` commands per second.
    pub async fn start(bed: Arc<TestBed>, rate: u32) -> Self {
        bed.collection("organizations").insert_one(organization("org")).await.unwrap();
        let (published, is_over) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
        let publishing = tokio::spawn(publish(bed, rate, Arc::clone(&published), Arc::clone(&is_over)));
        Self { published, is_over, publishing }
    }

    /// The number of commands so far.
    pub fn published(&self) -> usize {
        self.published.load(Ordering::Relaxed)
    }

    /// Stops, and returns what was published.
    pub async fn stop(self) -> Vec<Sent> {
        self.is_over.store(true, Ordering::Relaxed);
        self.publishing.await.unwrap()
    }
}

async fn publish(bed: Arc<TestBed>, rate: u32, published: Arc<AtomicUsize>, is_over: Arc<AtomicBool>) -> Vec<Sent> {
    let mut ticks = interval(Duration::from_secs(1) / rate);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let mut all = Vec::new();
    for number in 0.. {
        if is_over.load(Ordering::Relaxed) {
            break;
        }
        let (account_id, subscription_id) = (format!("acc-{number}"), format!("sub-{number}"));
        bed.collection("accounts").insert_one(account(&account_id, "org")).await.unwrap();
        let mut subscriptions = vec![subscription(&subscription_id, "org", &account_id)];
        if number % ENDS_EVERY == 0 {
            let id = format!("end-{number}");
            let mut document = subscription(&id, "org", &account_id);
            let ends_at = DateTime::from_millis(DateTime::now().timestamp_millis() + ENDS_IN_MILLISECONDS);
            document.extend(doc! { "status": "cancellation_scheduled", "ends_on": "2024-06-14", "ends_at": ends_at });
            subscriptions.push(document);
            all.push(Sent {
                id: id.clone(),
                applied_by: None,
                emails: vec![],
                events: vec!["subscription.ended"],
                new_event: None,
                ends: Some(id),
            });
        }
        bed.collection("subscriptions").insert_many(subscriptions).await.unwrap();
        for (sent, command) in scenario(number, &account_id, &subscription_id) {
            ticks.tick().await;
            bed.command(&command).await;
            // A rejection is not remembered: a repeat is rejected again.
            if all.len() % TWICE_EVERY == 0 && sent.applied_by.is_some() {
                bed.command(&command).await;
            }
            published.fetch_add(1, Ordering::Relaxed);
            all.push(sent);
        }
    }
    all
}

/// The commands about one subscription and one account.
fn scenario(number: usize, account: &str, subscription: &str) -> Vec<(Sent, Value)> {
    let data = json!({ "organization_id": "org", "subscription_id": subscription });
    let admin = json!({ "role": "admin", "id": "admin-1", "name": "Paul" });
    let client = json!({ "role": "client", "account_id": account });
    let of = |id: String, kind: &str, actor: &Value| with(command(&id, kind, data.clone()), "actor", actor.clone());
    let (cancellation, request) = ("subscription.cancellation", "subscription.cancellation-request");
    let confirmation = "subscription.cancellation-confirmation";
    let (scheduled, requested) = ("subscription.cancellation-scheduled", "subscription.cancellation-requested");
    let on_subscription = Some(("subscriptions", subscription.to_owned()));
    let sent = |id: &str, emails: &[&'static str], events: &[&'static str]| Sent {
        id: id.to_owned(),
        applied_by: on_subscription.clone(),
        emails: emails.to_vec(),
        events: events.to_vec(),
        new_event: None,
        ends: None,
    };
    let decided = |decision: &str, template: &'static str, event: &'static str| {
        let (asks, decides) = (format!("request-{number}"), format!("decide-{number}"));
        let confirmed = with(of(decides.clone(), confirmation, &admin), "decision", json!(decision));
        vec![
            (sent(&asks, &["cancellation-requested"], &[requested]), of(asks.clone(), request, &client)),
            (sent(&decides, &[template], &[event]), confirmed),
        ]
    };
    let id = format!("command-{number}");
    match number % 8 {
        0 => {
            let cancels = with(of(id.clone(), cancellation, &admin), "via", json!("purchases"));
            vec![(sent(&id, &["cancelled-by-admin"], &[scheduled]), cancels)]
        }
        1 => {
            let cancels = with(of(id.clone(), cancellation, &client), "via", json!("account"));
            vec![(sent(&id, &["cancelled-by-client"], &[scheduled]), cancels)]
        }
        2 => decided("accept", "request-accepted", scheduled),
        3 => decided("decline", "request-declined", "subscription.cancellation-declined"),
        4 => (1..=2)
            .map(|attempt| {
                let id = format!("payment-{number}-{attempt}");
                let failure = json!({
                    "organization_id": "org", "subscription_id": subscription, "invoice_id": "inv-6",
                    "amount": { "value": "49.99", "currency": "CAD" }, "card": { "brand": "Visa", "last4": "4242" },
                    "attempt": attempt,
                });
                let emails = ["payment-failed", "payment-failed"];
                let sent = Sent { new_event: Some("payment.failure-recorded"), ..sent(&id, &emails, &[]) };
                (sent, command(&id, "payment.failure", failure))
            })
            .collect(),
        5 => {
            let card = json!({ "id": "card", "brand": "Visa", "last4": "4242", "expires": "2199-06" });
            let data = json!({ "organization_id": "org", "account_id": account, "card": card });
            let sent = Sent {
                applied_by: Some(("accounts", account.to_owned())),
                new_event: Some("card.expiring"),
                ..sent(&id, &["card-expiring", "card-expiring"], &[])
            };
            vec![(sent, command(&id, "card.expiry", data))]
        }
        6 => {
            let removes = with(of(id.clone(), cancellation, &admin), "via", json!("invoice"));
            let removes = with(removes, "invoice_id", json!("inv-5"));
            vec![(sent(&id, &["removed-by-admin"], &["subscription.removed"]), removes)]
        }
        _ => {
            let forbidden = with(of(id.clone(), cancellation, &admin), "via", json!("account"));
            vec![(Sent { applied_by: None, ..sent(&id, &[], &["command.rejected"]) }, forbidden)]
        }
    }
}
