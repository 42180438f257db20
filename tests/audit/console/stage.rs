//! The servers, a worker, and everything that the pages show.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use bson::{DateTime as Instant, Document, doc};
use serde_json::{Value, json};

use offramp_testkit::fixtures::{account, command, organization, populate, subscription, with};
use offramp_testkit::smtp_sink::{Action, SmtpSink, Step, Tls};
use offramp_testkit::test_bed::TestBed;
use offramp_testkit::worker_process::{WorkerProcess, offramp};
use offramp_testkit::{eventually, say};

const SUBSCRIPTIONS: usize = 100_000;
const SUBSCRIPTIONS_PER_ACCOUNT: usize = 3;
/// Undecided, each an hour older than the one before.
const REQUESTS: usize = 300;
pub const DEAD_LETTERS: usize = 5_000;
/// The number of failed payments whose emails fail, each with one to the client and one to the staff.
const FAILED_PAYMENTS: usize = 60;
/// The number of failed payments whose emails wait. More than four deferred emails in a row would count as throttling.
const WAITING_PAYMENTS: usize = 2;
/// The first subscription with a failed payment.
pub const FIRST_FAILED: usize = 400;
const INSERT_BATCH: usize = 5_000;

/// Text that must stay text, and that must not widen a page.
pub const HOSTILE: &str = "<script>alert(1)</script><img src=x onerror=alert(1)> مرحبا supercalifragilisticexpialidocious-supercalifragilisticexpialidocious-supercalifragilisticexpialidocious";
/// The same, short enough for a name.
const HOSTILE_NAME: &str = "<img src=x onerror=alert(1)> مرحبا supercalifragilisticexpialidocious";
/// A subscription of an account and an organization with such names.
pub const HOSTILE_SUBSCRIPTION: &str = "sub-<b>&\"'/../";

/// What the mail server does with every recipient.
#[derive(Clone, Copy)]
#[repr(u8)]
pub enum Mood {
    Accepts,
    Defers,
    Rejects,
}

/// Everything behind the console.
pub struct Stage {
    pub bed: TestBed,
    pub worker: WorkerProcess,
    pub sink: SmtpSink,
    mood: Arc<AtomicU8>,
}

impl Stage {
    /// Writes all documents, and publishes all commands.
    pub async fn set() -> Self {
        let bed = TestBed::new("console-audit").await;
        assert!(offramp(&bed).arg("init").output().unwrap().status.success());
        say!("{SUBSCRIPTIONS} subscriptions");
        write_documents(&bed).await;
        let mood = Arc::new(AtomicU8::new(Mood::Rejects as u8));
        let sink = SmtpSink::scripted(Tls::No, {
            let mood = Arc::clone(&mood);
            move |step, _| match (step, mood.load(Ordering::Relaxed)) {
                (Step::Rcpt, mood) if mood == Mood::Rejects as u8 => {
                    Action::Answer("550 5.1.1 <client@home.example>: Recipient address rejected: User unknown")
                }
                (Step::Rcpt, mood) if mood == Mood::Defers as u8 => Action::Answer("450 4.2.0 Greylisted, come back"),
                _ => Action::Ok,
            }
        })
        .await;
        let worker = WorkerProcess::start_with(&bed, &sink.url(), &SETTINGS).await;
        let stage = Self { bed, worker, sink, mood };
        stage.publish().await;
        stage
    }

    pub fn mail_server(&self, mood: Mood) {
        self.mood.store(mood as u8, Ordering::Relaxed);
    }

    /// The number of entries of outboxes that match a filter of their fields.
    pub async fn entries(&self, entry: Document) -> u64 {
        let filter = doc! { "outbox": { "$elemMatch": entry } };
        self.bed.collection("subscriptions").count_documents(filter).await.unwrap()
    }

    /// The recipients of all accepted emails.
    pub fn recipients(&self) -> Vec<String> {
        self.sink.emails().into_iter().flat_map(|email| email.to).collect()
    }

    /// Starts a worker at the port of the first one, which has ended.
    pub async fn restart_worker(&mut self) {
        let port = self.worker.port();
        let (bed, url) = (&self.bed, self.sink.url());
        let mut program = offramp(bed);
        program.env("OFFRAMP_SMTP_URL", url).envs(SETTINGS);
        self.worker = WorkerProcess::at_port(&mut program, port, std::process::Stdio::null()).ready().await;
    }

    pub async fn clear(self) {
        assert_eq!(self.worker.stop().await.code(), Some(0));
        self.bed.remove().await;
    }

    async fn publish(&self) {
        let bed = &self.bed;
        say!("{DEAD_LETTERS} dead letters");
        for index in 0..DEAD_LETTERS {
            bed.publish("subscription.cancellation", wrong_command(index).to_string().as_bytes()).await;
        }
        for index in FIRST_FAILED..FIRST_FAILED + FAILED_PAYMENTS {
            bed.command(&payment_failure(index, &format!("sub-{index}"), "org")).await;
        }
        bed.command(&payment_failure(0, HOSTILE_SUBSCRIPTION, "org-hostile")).await;
        let rejected = json!({ "organization_id": "org", "subscription_id": "sub-0", "via": "purchases", "month": "2001-01",
            "actor": { "role": "admin", "id": "ann", "name": HOSTILE_NAME }, "reason": HOSTILE });
        for index in 0..3 {
            let id = format!("rejected-{index}");
            bed.command(&command(&id, "subscription.cancellation", rejected.clone())).await;
        }
        eventually("all dead letters and failed emails", || async {
            let settled = self.worker.settled().await;
            let failed = self.entries(doc! { "failed_at": { "$exists": true } }).await;
            settled >= (DEAD_LETTERS + FAILED_PAYMENTS) as u64 && failed > FAILED_PAYMENTS as u64
        })
        .await;
        self.mail_server(Mood::Defers);
        let first = FIRST_FAILED + FAILED_PAYMENTS;
        for index in first..first + WAITING_PAYMENTS {
            bed.command(&payment_failure(index, &format!("sub-{index}"), "org")).await;
        }
        let is_deferred = doc! { "attempts": { "$gt": 0 }, "failed_at": { "$exists": false } };
        eventually("waiting emails", || async {
            self.entries(is_deferred.clone()).await >= WAITING_PAYMENTS as u64 && self.has_tried_all().await
        })
        .await;
        // They wait until the end.
        let later = Instant::from_millis(Instant::now().timestamp_millis() + 3_600_000);
        let documents = doc! { "outbox": { "$elemMatch": is_deferred } };
        let postpone = doc! { "$set": { "outbox.$[].due": later } };
        bed.collection("subscriptions").update_many(documents, postpone).await.unwrap();
        self.mail_server(Mood::Rejects);
    }

    async fn has_tried_all(&self) -> bool {
        self.entries(doc! { "attempts": 0 }).await == 0
    }
}

/// Workers keep sent emails, so that the console shows them.
const SETTINGS: [(&str, &str); 1] = [("OFFRAMP_KEEP_EMAILS_DAYS", "30")];

/// A command that no worker can read, for one of several reasons.
fn wrong_command(index: usize) -> Value {
    let id = format!("wrong-{index}");
    let data = json!({ "organization_id": "org", "subscription_id": format!("sub-{index}") });
    match index % 5 {
        0 | 1 => command(&id, "subscription.cancellation", data),
        2 => with(command(&id, "subscription.cancellation", data), "period", json!("2027-01")),
        3 => with(command(&id, "payment.failure", data), "amount", json!("49.99")),
        _ => json!({ "hello": HOSTILE, "id": id, "type": HOSTILE_NAME, "data": { "subscription_id": HOSTILE } }),
    }
}

fn payment_failure(index: usize, subscription: &str, organization: &str) -> Value {
    let card = json!({ "brand": "Visa", "last4": "4242" });
    let data = json!({ "organization_id": organization, "subscription_id": subscription, "invoice_id": "invoice",
        "amount": { "value": "49.99", "currency": "CAD" }, "card": card, "attempt": 2, "failure_code": "insufficient_funds",
        "failure_message": HOSTILE });
    command(&format!("failure-{index}"), "payment.failure", data)
}

async fn write_documents(bed: &TestBed) {
    populate(bed).await;
    let names = ["Zoé Tremblay", "Émile Gagnon", "Julie Roy", "Marc Côté", "Inès Bouchard"];
    let accounts = (0..SUBSCRIPTIONS.div_ceil(SUBSCRIPTIONS_PER_ACCOUNT)).map(|index| {
        let mut document = account(&format!("acc-{index}"), "org");
        let name = names[index % names.len()];
        let manager = doc! { "name": name, "email": format!("client{index}@home.example"), "locale": "fr-CA" };
        document.insert("manager", manager);
        document
    });
    insert(bed, "accounts", accounts).await;
    let subscriptions = (0..SUBSCRIPTIONS).map(|index| {
        let account = format!("acc-{}", index / SUBSCRIPTIONS_PER_ACCOUNT);
        let mut document = subscription(&format!("sub-{index}"), "org", &account);
        if index < REQUESTS {
            request(&mut document, index, "Nous déménageons à Sherbrooke en janvier.");
        }
        document
    });
    insert(bed, "subscriptions", subscriptions).await;

    // A subscription that no worker can process, because its id is too long, and one that it can, with the same texts.
    let mut unreadable = subscription(HOSTILE, "org", "acc-0");
    unreadable.insert("participant", doc! { "id": HOSTILE, "name": HOSTILE });
    request(&mut unreadable, REQUESTS, HOSTILE);
    let mut readable = subscription(HOSTILE_SUBSCRIPTION, "org-hostile", "acc-hostile");
    readable.insert("participant", doc! { "id": "p", "name": HOSTILE_NAME });
    readable.insert("plan", doc! { "id": "plan", "name": HOSTILE_NAME });
    insert(bed, "subscriptions", [unreadable, readable].into_iter()).await;
    let mut manager = account("acc-hostile", "org-hostile");
    manager.insert("manager", doc! { "name": HOSTILE_NAME, "email": "acc-hostile@home.example", "locale": "en-CA" });
    insert(bed, "accounts", std::iter::once(manager)).await;
    let mut club = organization("org-hostile");
    club.insert("name", HOSTILE_NAME);
    insert(bed, "organizations", std::iter::once(club)).await;
}

/// Adds an undecided request of this age.
fn request(document: &mut Document, hours: usize, reason: &str) {
    let at = Instant::from_millis(Instant::now().timestamp_millis() - i64::try_from(hours).unwrap() * 3_600_000);
    let actor = doc! { "role": "client", "account_id": "acc", "name": reason.chars().take(40).collect::<String>() };
    document.insert("status", "cancellation_requested");
    document.insert("cancellation_request", doc! { "requested_at": at, "actor": &actor, "reason": reason });
    let change = doc! { "at": at, "from": "active", "to": "cancellation_requested", "actor": actor, "reason": reason };
    document.insert("history", [change]);
}

async fn insert(bed: &TestBed, collection: &str, documents: impl Iterator<Item = Document>) {
    let mut documents = documents.peekable();
    while documents.peek().is_some() {
        let batch: Vec<Document> = documents.by_ref().take(INSERT_BATCH).collect();
        bed.collection(collection).insert_many(batch).await.unwrap();
    }
}
