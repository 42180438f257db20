//! End to end: 300 subscriptions, two workers, random commands, some delivered twice. Every document, email and event matches the
//! independent model of the rules, and fields of other systems are unchanged.

use std::collections::{BTreeMap, BTreeSet};

use bson::doc;
use chrono::{Datelike, Days, NaiveDate, Utc};
use mail_parser::MessageParser;
use serde_json::{Value, json};

use crate::model::{Answer, Model};
use offramp_testkit::eventually;
use offramp_testkit::fixtures::TOMBSTONE_FIELDS;
use offramp_testkit::smtp_sink::SmtpSink;
use offramp_testkit::test_bed::TestBed;
use offramp_testkit::worker_process::WorkerProcess;

const SUBSCRIPTIONS: usize = 300;
const ROUNDS: usize = 6;
const TWICE_PERCENT: u32 = 15;

struct Generator {
    random: fastrand::Rng,
    ids: usize,
}

#[tokio::test(flavor = "multi_thread")]
async fn every_document_email_and_event_matches_the_model() {
    let seed = std::env::var("SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(|| fastrand::u64(..));
    println!("SEED={seed}");
    let mut generator = Generator { random: fastrand::Rng::with_seed(seed), ids: 0 };

    let bed = TestBed::new("end-to-end").await;
    let sink = SmtpSink::start().await;
    let events = bed.watch_events().await;
    let mut models = generator.populate(&bed).await;
    let workers = [WorkerProcess::start(&bed, &sink.url()).await, WorkerProcess::start(&bed, &sink.url()).await];

    let mut expected_emails: BTreeMap<(String, String, String), usize> = BTreeMap::new();
    let mut expected_events: BTreeMap<(String, String, String), Value> = BTreeMap::new();
    let mut published = 0;
    let mut applied: Vec<Value> = Vec::new();
    for _ in 0..ROUNDS {
        // One command per subscription and round, because the five queues are not ordered relative to each other.
        let mut round = Vec::new();
        for (id, model) in &mut models {
            let command = generator.command(id, model);
            let answer = model.decide(&command);
            let name = |kind: &str| (kind.to_owned(), id.clone(), command["id"].as_str().unwrap().to_owned());
            match &answer {
                Answer::Applied { emails, event } => {
                    for (template, to_organization) in emails {
                        let to = if *to_organization { contact(&model.organization) } else { manager(&model.account) };
                        *expected_emails.entry(((*template).to_owned(), to, participant(id))).or_default() += 1;
                    }
                    if let Some(kind) = event {
                        let ends_on = model.ends_on.map(|day| day.to_string());
                        expected_events.insert(name(kind), json!({ "ends_on": ends_on }));
                    }
                }
                Answer::Unchanged => {}
                Answer::Rejected(reason) => {
                    expected_events.insert(name("command.rejected"), json!({ "reason": reason }));
                }
            }
            if generator.percent(TWICE_PERCENT) {
                round.push(command.clone());
            }
            if matches!(answer, Answer::Applied { .. }) {
                applied.push(command.clone());
            }
            round.push(command);
        }
        // Some commands that were applied earlier are sent again.
        for _ in 0..applied.len() / 20 {
            let again = applied[generator.random.usize(..applied.len())].clone();
            round.push(again);
        }
        generator.random.shuffle(&mut round);
        for command in &round {
            // On the last attempt, a missing request is rejected at once instead of retried.
            let attempt = if command["type"] == "subscription.cancellation-confirmation" { 3 } else { 0 };
            bed.command_at_attempt(command, attempt).await;
        }
        published += round.len() as u64;
        eventually("all commands of the round to be settled", || async {
            let settled = workers[0].settled().await + workers[1].settled().await;
            (settled == published).then_some(())
        })
        .await;
    }
    bed.outboxes_empty().await;
    let both_worked = [workers[0].settled().await, workers[1].settled().await];
    assert!(both_worked.iter().all(|settled| *settled > 0), "the work was not shared: {both_worked:?}");

    for (id, model) in &models {
        check_document(&bed, id, model).await;
    }
    check_emails(&sink, expected_emails);
    check_events(events.take(&bed).await, &expected_events);
    for worker in workers {
        assert!(worker.stop().await.success());
    }
    bed.remove().await;
}

fn contact(organization: &str) -> String {
    format!("desk@{organization}.example")
}

fn manager(account: &str) -> String {
    format!("{account}@home.example")
}

/// A name that occurs in no other subscription's emails.
fn participant(subscription: &str) -> String {
    format!("Zoé of {subscription}.")
}

impl Generator {
    fn percent(&mut self, percent: u32) -> bool {
        self.random.u32(..100) < percent
    }

    async fn populate(&mut self, bed: &TestBed) -> BTreeMap<String, Model> {
        let organizations = [("north", "immediate", true, "fr-CA"), ("south", "request", false, "en-CA")];
        for (id, policy, tells_client, locale) in organizations {
            bed.collection("organizations")
                .insert_one(doc! {
                    "_id": id, "name": format!("Club {id}"), "locale": locale, "timezone": "America/Toronto",
                    "contact": { "name": "Front desk", "email": contact(id) },
                    "client_cancellation": policy, "notify_client_of_own_actions": tells_client,
                })
                .await
                .unwrap();
        }
        let mut models = BTreeMap::new();
        let (mut accounts, mut subscriptions) = (Vec::new(), Vec::new());
        let today = Utc::now().date_naive();
        for index in 0..SUBSCRIPTIONS {
            let (organization, policy, tells_client, _) = organizations[self.random.usize(..2)];
            let (id, account) = (format!("sub-{index:03}"), format!("account-{index:03}"));
            let day = self.random.u32(1..=31);
            let fixed_day = self.random.bool();
            // Days or weeks ahead, so that no subscription ends while the test runs.
            let near = today + Days::new(self.random.u64(2..40));
            let next_on = day_by_day(near, day);
            let expires_on = self.percent(30).then(|| next_on + Days::new(self.random.u64(30..400)));
            let mut document = doc! {
                "_id": &id, "organization_id": organization, "account_id": &account,
                "participant": { "id": format!("p-{index}"), "name": participant(&id), "shoe_size": 41 },
                "plan": { "id": "plan", "name": "Unlimited swimming" },
                "billing": {
                    "mode": if fixed_day { "fixed_day" } else { "anniversary" }, "day": day,
                    "next_on": next_on.to_string(), "last_invoice_id": format!("invoice-{index}"), "gateway": "G7",
                },
                "activities": [{ "id": "a-1", "name": "Aquafit", "room": "B" }],
                "colour_of_locker": { "door": "green", "codes": [1, 2.5, null] },
            };
            if let Some(day) = expires_on {
                document.insert("expires_on", day.to_string());
            }
            if self.random.bool() {
                document.insert("version", 7);
            }
            subscriptions.push(document);
            let locale = ["fr-CA", "en", "es-MX"][index % 3];
            accounts.push(doc! {
                "_id": &account, "organization_id": organization, "loyalty": "gold",
                "manager": { "name": format!("Manager {index}"), "email": manager(&account), "locale": locale },
            });
            models.insert(
                id,
                Model {
                    organization: organization.to_owned(),
                    account,
                    fixed_day,
                    day,
                    next_on,
                    expires_on,
                    last_invoice: format!("invoice-{index}"),
                    client_may_cancel: policy == "immediate",
                    tells_client,
                    status: "active",
                    ends_on: None,
                    final_billing_on: None,
                    request_open: false,
                    decision: None,
                    failures: 0,
                    history: vec![],
                    applied: vec![],
                },
            );
        }
        bed.collection("accounts").insert_many(accounts).await.unwrap();
        bed.collection("subscriptions").insert_many(subscriptions).await.unwrap();
        models
    }

    /// A random command for the subscription, sometimes invalid.
    fn command(&mut self, subscription: &str, model: &Model) -> Value {
        self.ids += 1;
        let admin = json!({ "role": "admin", "id": "admin-1", "name": "Ada" });
        let owner = json!({ "role": "client", "account_id": model.account });
        let stranger = json!({ "role": "client", "account_id": "account-of-nobody" });
        let (rare_admin, rare_owner) = (self.percent(5), self.percent(5));
        let admin = if rare_admin { owner.clone() } else { admin };
        let owner = if rare_owner { stranger } else { owner };
        let organization = if self.percent(3) { "elsewhere" } else { model.organization.as_str() };
        let mut data = json!({ "organization_id": organization, "subscription_id": subscription });
        let mut put = |fields: Value| data.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        let kind = match self.random.u32(..100) {
            0..30 => {
                put(json!({ "actor": admin, "via": "purchases", "reason": "Déménagement <b>& co</b>" }));
                if self.percent(80) {
                    let months = self.random.i32(-1..=9) + model.next_on.month0().cast_signed();
                    let year = model.next_on.year() + months.div_euclid(12);
                    put(json!({ "month": format!("{year}-{:02}", months.rem_euclid(12) + 1) }));
                }
                "subscription.cancellation"
            }
            30..38 => {
                let invoice = if self.percent(40) { "another".to_owned() } else { model.last_invoice.clone() };
                put(json!({ "actor": admin, "via": "invoice", "invoice_id": invoice, "refund": self.random.bool() }));
                "subscription.cancellation"
            }
            38..50 => {
                put(json!({ "actor": owner, "via": "account" }));
                "subscription.cancellation"
            }
            50..70 => {
                put(json!({ "actor": owner, "reason": "Trop cher" }));
                "subscription.cancellation-request"
            }
            70..88 => {
                put(json!({ "actor": admin }));
                if self.percent(30) {
                    put(json!({ "decision": "decline", "note": "Encore un mois" }));
                } else {
                    put(json!({ "decision": "accept" }));
                    match self.random.u32(..4) {
                        0 => put(
                            json!({ "final_billing_date": (model.next_on + Days::new(self.random.u64(..90))).to_string() }),
                        ),
                        1 => put(json!({ "final_billing_date": model.next_on.to_string() })),
                        2 => put(
                            json!({ "final_billing_date": day_by_day(model.next_on - Days::new(70), model.day).to_string() }),
                        ),
                        _ => {}
                    }
                }
                "subscription.cancellation-confirmation"
            }
            _ => {
                put(json!({
                    "invoice_id": model.last_invoice, "amount": { "value": "49.99", "currency": "CAD" },
                    "card": { "brand": "Visa", "last4": "4242" }, "attempt": 1,
                }));
                "payment.failure"
            }
        };
        json!({
            "specversion": "1.0", "id": format!("command-{}", self.ids), "source": "tests", "type": kind,
            "time": Utc::now().to_rfc3339(), "data": data, "traceparent": "ignored",
        })
    }
}

/// The first billing date from `from` on.
fn day_by_day(from: NaiveDate, day: u32) -> NaiveDate {
    let mut date = from;
    loop {
        let is_last = date.succ_opt().unwrap().day() == 1;
        if date.day() == day || (is_last && date.day() < day) {
            return date;
        }
        date = date.succ_opt().unwrap();
    }
}

async fn check_document(bed: &TestBed, id: &str, model: &Model) {
    let document = bed.document("subscriptions", id).await.expect(id);
    let text = |field: &str| document.get_str(field).ok().map(str::to_owned);
    let date = |date: Option<NaiveDate>| date.map(|date| date.to_string());
    let context = format!("{id}: {document:#?}\n{model:#?}");

    assert_eq!(text("status").as_deref().unwrap_or("active"), model.status, "{context}");
    let history: Vec<(String, String, Option<String>)> = document
        .get_array("history")
        .map(|entries| {
            entries
                .iter()
                .map(|entry| {
                    let entry = entry.as_document().unwrap();
                    let text = |field: &str| entry.get_str(field).unwrap_or_default().to_owned();
                    (text("from"), text("to"), entry.get_str("ends_on").ok().map(str::to_owned))
                })
                .collect()
        })
        .unwrap_or_default();
    let expected: Vec<_> = model
        .history
        .iter()
        .map(|(from, to, ends_on)| ((*from).to_owned(), (*to).to_owned(), date(*ends_on)))
        .collect();
    assert_eq!(history, expected, "{context}");
    let applied: Vec<&str> = document
        .get_array("applied")
        .map(|applied| applied.iter().map(|entry| entry.as_document().unwrap().get_str("id").unwrap()).collect())
        .unwrap_or_default();
    assert_eq!(applied, model.applied, "{context}");

    if model.status == "removed" {
        let mut fields: Vec<&str> = document.keys().map(String::as_str).collect();
        fields.sort_unstable();
        assert_eq!(fields, TOMBSTONE_FIELDS, "{context}");
        return;
    }
    assert_eq!(text("ends_on"), date(model.ends_on), "{context}");
    assert_eq!(text("final_billing_on"), date(model.final_billing_on), "{context}");
    let failures = document.get_array("payment_failures").map_or(0, Vec::len);
    assert_eq!(failures, model.failures, "{context}");
    let decision =
        document.get_document("cancellation_request").ok().and_then(|request| request.get_str("decision").ok());
    assert_eq!(decision, model.decision, "{context}");

    // Fields of other systems are unchanged.
    let locker = doc! { "door": "green", "codes": [1, 2.5, null] };
    assert_eq!(document.get_document("colour_of_locker").unwrap(), &locker, "{context}");
    assert_eq!(document.get_document("participant").unwrap().get_i32("shoe_size").unwrap(), 41, "{context}");
    assert_eq!(document.get_document("billing").unwrap().get_str("gateway").unwrap(), "G7", "{context}");
    assert_eq!(document.get_document("billing").unwrap().get_str("next_on").unwrap(), model.next_on.to_string());
    let activity = doc! { "id": "a-1", "name": "Aquafit", "room": "B" };
    assert_eq!(document.get_array("activities").unwrap(), &vec![activity.into()], "{context}");
}

fn check_emails(sink: &SmtpSink, mut expected: BTreeMap<(String, String, String), usize>) {
    let mut message_ids = BTreeSet::new();
    for received in sink.emails() {
        let mail = MessageParser::default().parse(&received.bytes).unwrap();
        let template = mail.header("X-Offramp-Template").unwrap().as_text().unwrap().to_owned();
        let (text, html) = (mail.body_text(0).unwrap(), mail.body_html(0).unwrap());
        let start = text.find("Zoé of ").unwrap_or_else(|| panic!("no participant in\n{text}"));
        let participant: String = text[start..].split_inclusive('.').next().unwrap().to_owned();
        assert!(html.contains(&participant), "{html}");
        assert!(text.contains("Unlimited swimming") && html.contains("Unlimited swimming"), "{text}\n{html}");
        assert!(!html.contains("<b>&"), "a reason became HTML: {html}");
        assert!(message_ids.insert(mail.message_id().unwrap().to_owned()), "an email was sent twice");
        let key = (template, received.to[0].clone(), participant);
        let left = expected.get_mut(&key).unwrap_or_else(|| panic!("unexpected email: {key:?}"));
        *left -= 1;
        if *left == 0 {
            expected.remove(&key);
        }
    }
    assert!(expected.is_empty(), "emails that were not sent: {expected:#?}");
}

fn check_events(events: Vec<Value>, expected: &BTreeMap<(String, String, String), Value>) {
    let mut ids: BTreeMap<String, Value> = BTreeMap::new();
    let mut found = BTreeSet::new();
    for event in events {
        assert_eq!(event["specversion"], "1.0");
        assert_eq!(event["source"], "offramp");
        let text = |field: &str| event[field].as_str().unwrap_or_default().to_owned();
        let key = (text("type"), text("subject"), text("causationid"));
        let is_rejection = key.0 == "command.rejected";
        if let Some(earlier) = ids.insert(text("id"), event["data"].clone()) {
            // A duplicate of a rejected command is rejected again, with the same event id.
            assert!(is_rejection && earlier == event["data"], "sent twice: {event}");
        }
        let expected = expected.get(&key).unwrap_or_else(|| panic!("unexpected event: {event}"));
        if is_rejection {
            assert_eq!(event["data"]["reason"], expected["reason"], "{event}");
        } else if key.0 == "subscription.cancellation-scheduled" {
            assert_eq!(event["data"]["ends_on"], expected["ends_on"], "{event}");
        }
        found.insert(key);
    }
    let missing: Vec<_> = expected.keys().filter(|key| !found.contains(*key)).collect();
    assert!(missing.is_empty(), "events that were not sent: {missing:#?}");
}
