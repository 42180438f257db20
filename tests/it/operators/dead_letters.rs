//! `offramp dead-letters`: list, show, replay, drop.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::process::Stdio;
use std::time::{Duration, Instant};

use bson::doc;
use chrono::Utc;
use lapin::BasicProperties;
use lapin::options::{BasicPublishOptions, QueueDeleteOptions};
use lapin::types::{AMQPValue, FieldTable};
use offramp::amqp::{Broker, DeadLetters, Delivery, Publisher, Topology};
use serde_json::{Value, json};

use super::{failure, objects, output, run, waiting};
use offramp_testkit::eventually;
use offramp_testkit::fixtures::{account, cancellation, command, organization, populate, subscription, with};
use offramp_testkit::rabbit::{Rabbit, amqp_url};
use offramp_testkit::smtp_sink::SmtpSink;
use offramp_testkit::test_bed::TestBed;
use offramp_testkit::worker_process::{WorkerProcess, offramp};

fn broker() -> Broker {
    Broker::new(amqp_url().parse().unwrap(), "operators' tests")
}

async fn declare(bed: &TestBed) -> Topology {
    let topology = Topology::new(&bed.prefix);
    topology.declare(&broker()).await.unwrap();
    topology
}

/// Publishes dead letters as a lane does.
async fn bury(bed: &TestBed, topology: &Topology, bodies: &[Value], reason: &str, error: &str, lane: &str) {
    let queue = format!("{}.{lane}", bed.prefix);
    let publisher = Publisher::new(broker());
    let letters: Vec<_> = bodies
        .iter()
        .map(|body| {
            let delivery = Delivery::new(body.to_string().into_bytes(), BasicProperties::default());
            delivery.dead_letter(topology, reason.parse().unwrap(), error, &queue, Utc::now())
        })
        .collect();
    for letters in letters.chunks(500) {
        assert!(publisher.publish_all(letters).await.iter().all(Result::is_ok));
    }
    publisher.close().await;
}

async fn becomes(bed: &TestBed, queue: &str, count: u32) {
    eventually(&format!("{count} messages in {queue}"), || async {
        (waiting(bed, queue).await == count).then_some(())
    })
    .await;
}

/// Takes all messages from a queue and counts them by command id.
async fn take_all(bed: &TestBed, queue: &str) -> BTreeMap<String, usize> {
    let mut commands = BTreeMap::new();
    while let Some((body, _)) = bed.take(queue).await {
        let id = serde_json::from_slice::<Value>(&body).unwrap()["id"].as_str().unwrap().to_owned();
        *commands.entry(id).or_default() += 1;
    }
    commands
}

#[tokio::test(flavor = "multi_thread")]
async fn dead_letters_are_listed_shown_and_replayed_after_a_repair() {
    let bed = TestBed::new("letters").await;
    let sink = SmtpSink::start().await;
    populate(&bed).await;
    let mut corrupt: Vec<_> = (0..3).map(|index| subscription(&format!("bad-{index}"), "org", "acc")).collect();
    for document in &mut corrupt {
        document.get_document_mut("billing").unwrap().remove("next_on");
    }
    bed.collection("subscriptions").insert_many(&corrupt).await.unwrap();
    let worker = WorkerProcess::start(&bed, &sink.url()).await;
    assert_eq!(output(&bed, &["dead-letters", "list"]), format!("no dead letters in {}.dead-letters\n", bed.prefix));

    for index in 0..3 {
        bed.command(&cancellation(&format!("corrupt-{index}"), &format!("bad-{index}"))).await;
    }
    bed.publish("payment.failure", b"\x1b[31mnot JSON").await;
    let misspelt = with(cancellation("misspelt", "sub"), "mnoth", json!("2199-07"));
    bed.command(&misspelt).await;
    becomes(&bed, "dead-letters", 5).await;

    // Errors that differ only in ids form one group.
    let groups = objects(&bed, &["dead-letters", "list", "--json"]);
    assert_eq!(groups.len(), 3, "{groups:?}");
    let group = &groups[0];
    assert_eq!((&group["reason"], &group["count"]), (&json!("corrupt_document"), &json!(3)));
    assert!(group["error"].as_str().unwrap().contains("subscriptions <subscription_id>: billing.next_on"), "{group}");
    assert_eq!(group["queues"], json!({ format!("{}.cancellation", bed.prefix): 3 }));
    assert_eq!(group["types"], json!({ "subscription.cancellation": 3 }));
    let at = |name: &str| chrono::DateTime::parse_from_rfc3339(group[name].as_str().unwrap()).unwrap();
    assert!(at("oldest") <= at("newest") && at("newest") <= Utc::now());
    let text = output(&bed, &["dead-letters", "list"]);
    assert!(text.contains("corrupt_document") && text.contains("payment-failure"), "{text}");
    assert!(text.contains(&format!("5 dead letters in {}.dead-letters", bed.prefix)), "{text}");
    let filtered = output(&bed, &["dead-letters", "list", "--queue", "payment-failure"]);
    assert!(filtered.contains("1 dead letter in") && filtered.contains("; 4 are other ones"), "{filtered}");

    // Listed one by one, with stable handles.
    let each = objects(&bed, &["dead-letters", "list", "--each", "--json"]);
    assert_eq!(each.len(), 5);
    assert_eq!(each, objects(&bed, &["dead-letters", "list", "--each", "--json"]));
    let no_json = each.iter().find(|letter| letter["id"].is_null()).unwrap();
    let handle = no_json["handle"].as_str().unwrap();
    let shown = output(&bed, &["dead-letters", "show", handle]);
    assert!(shown.contains("reason        invalid"), "{shown}");
    assert!(shown.contains(&format!("offramp-queue: {}.payment-failure", bed.prefix)), "{shown}");
    assert!(shown.contains("\\u{1b}[31mnot JSON") && !shown.contains('\x1b'), "{shown}");
    assert_eq!(run(&bed, &["dead-letters", "show", handle, "--raw"]).stdout, b"\x1b[31mnot JSON");
    let shown = objects(&bed, &["dead-letters", "show", "misspelt", "--json"]).pop().unwrap();
    assert_eq!(shown["body"], misspelt);
    assert_eq!(shown["headers"]["offramp-reason"], "invalid");
    assert!(output(&bed, &["dead-letters", "show", "misspelt"]).contains("\"mnoth\": \"2199-07\""));
    let nobody = failure(&bed, &["dead-letters", "show", "nobody"], 1);
    assert!(nobody.contains("there is no dead letter") && nobody.contains("list --each"), "{nobody}");

    // Replayed after the repair, they are applied.
    let set = doc! { "$set": { "billing.next_on": "2199-06-15" } };
    bed.collection("subscriptions").update_many(doc! { "_id": { "$regex": "^bad-" } }, set).await.unwrap();
    let replay = ["dead-letters", "replay", "--reason", "corrupt_document", "--error", "billing.next_on"];
    let dry = output(&bed, &[&replay[..], &["--dry-run"]].concat());
    assert!(dry.contains("3 dead letters would be sent back; nothing was changed"), "{dry}");
    becomes(&bed, "dead-letters", 5).await;
    let done = output(&bed, &replay);
    assert_eq!(done, format!("sent back 3 dead letters: 3 to {}.cancellation\n", bed.prefix));
    eventually("the repaired subscriptions to be cancelled", || async {
        let filter =
            doc! { "_id": { "$regex": "^bad-" }, "status": "cancellation_scheduled", "applied": { "$size": 1 } };
        (bed.collection("subscriptions").count_documents(filter).await.unwrap() == 3).then_some(())
    })
    .await;
    becomes(&bed, "dead-letters", 2).await;

    // A replayed message that fails again is a new dead letter.
    output(&bed, &["dead-letters", "replay", handle]);
    becomes(&bed, "dead-letters", 2).await;
    let again = objects(&bed, &["dead-letters", "list", "--each", "--json", "--queue", "payment-failure"]);
    assert_eq!(again.len(), 1);
    assert_ne!(again[0]["handle"], handle);
    assert_eq!(output(&bed, &replay), "no such dead letters; nothing to do\n");
    failure(&bed, &["dead-letters", "replay", handle], 1);
    let wrong = failure(&bed, &["dead-letters", "replay"], 2);
    assert!(wrong.contains("--all"), "{wrong}");
    assert!(worker.stop().await.success());
    bed.remove().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn dead_letters_are_selected_by_subscription_account_and_source() {
    let bed = TestBed::new("chosen").await;
    let topology = declare(&bed).await;
    let mut elsewhere = cancellation("elsewhere", "sub-1");
    elsewhere["source"] = json!("/shop");
    let expiry = command("expiry", "card.expiry", json!({ "account_id": "acc-1" }));
    let commands = [cancellation("one", "sub-1"), elsewhere, cancellation("other", "sub-2"), expiry];
    bury(&bed, &topology, &commands, "exhausted", "No.", "cancellation").await;
    let ids = |arguments: &[&str]| {
        let arguments = [&["dead-letters", "list", "--each", "--json"], arguments].concat();
        let mut ids: Vec<String> =
            objects(&bed, &arguments).iter().map(|letter| letter["id"].as_str().unwrap().to_owned()).collect();
        ids.sort();
        ids
    };
    assert_eq!(ids(&["--subscription", "sub-1"]), ["elsewhere", "one"]);
    assert_eq!(ids(&["--subscription", "sub-1", "--source", "/shop"]), ["elsewhere"]);
    assert_eq!(ids(&["--account", "acc-1"]), ["expiry"]);
    assert_eq!(ids(&["--subscription", "sub"]), [""; 0]);
    let letter = objects(&bed, &["dead-letters", "show", "expiry", "--json"]).pop().unwrap();
    assert_eq!((&letter["account_id"], &letter["subscription_id"]), (&json!("acc-1"), &Value::Null));
    let shown = output(&bed, &["dead-letters", "show", "other"]);
    assert!(shown.contains("subscription  sub-2"), "{shown}");
    assert!(output(&bed, &["dead-letters", "list", "--each"]).contains("sub-2"));

    let all = failure(&bed, &["dead-letters", "replay", "--all", "--subscription", "sub-1"], 2);
    assert!(all.contains("cannot be used with"), "{all}");
    let none = failure(&bed, &["dead-letters", "drop", "--yes"], 2);
    assert!(none.contains("--subscription, --account, --source"), "{none}");

    // OFFRAMP_SOURCE is the source of our events, and selects nothing.
    let arguments = ["dead-letters", "list", "--each", "--json"];
    let listed =
        offramp(&bed).env("OFFRAMP_SOURCE", "/elsewhere").args(arguments).stdin(Stdio::null()).output().unwrap();
    assert_eq!(listed.stdout.split_inclusive(|byte| *byte == b'\n').count(), 4);

    let replayed = output(&bed, &["dead-letters", "replay", "--source", "/shop"]);
    assert_eq!(replayed, format!("sent back 1 dead letter: 1 to {}.cancellation\n", bed.prefix));
    assert_eq!(output(&bed, &["dead-letters", "drop", "--account", "acc-1", "--yes"]), "dropped 1 dead letter\n");
    assert_eq!(output(&bed, &["dead-letters", "drop", "--subscription", "sub-1", "--yes"]), "dropped 1 dead letter\n");
    assert_eq!(ids(&[]), ["other"]);
    bed.remove().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_of_exhausted_retries_starts_at_the_first_attempt() {
    let bed = TestBed::new("exhausted").await;
    let sink = SmtpSink::start().await;
    populate(&bed).await;
    // The database rejects every change.
    bed.set_validator("subscriptions", doc! { "status": { "$exists": false } }).await;
    let worker = WorkerProcess::start(&bed, &sink.url()).await;
    bed.command_at_attempt(&cancellation("stubborn", "sub"), 5).await;
    becomes(&bed, "dead-letters", 1).await;
    let letter = objects(&bed, &["dead-letters", "show", "stubborn", "--json"]).pop().unwrap();
    assert_eq!((&letter["reason"], &letter["headers"]["offramp-attempt"]), (&json!("exhausted"), &json!(5)));

    output(&bed, &["dead-letters", "replay", "--reason", "exhausted"]);
    // It still fails, but now starts with the first retry.
    becomes(&bed, "retry.5s", 1).await;
    becomes(&bed, "dead-letters", 0).await;
    bed.set_validator("subscriptions", doc! {}).await;
    eventually("the cancellation", || async {
        let document = bed.document("subscriptions", "sub").await.unwrap();
        (document.get_str("status").ok() == Some("cancellation_scheduled")).then_some(())
    })
    .await;
    assert!(worker.stop().await.success());
    bed.remove().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_beyond_the_delivery_limit_are_listed_and_replayed() {
    let bed = TestBed::new("limit").await;
    declare(&bed).await;
    bed.command(&command("poison", "card.expiry", json!({}))).await;
    let queue = format!("{}.card-expiry", bed.prefix);
    // One more than the delivery limit of 100.
    for _ in 0..101 {
        bed.redeliver("card-expiry").await;
    }
    becomes(&bed, "dead-letters", 1).await;
    let groups = objects(&bed, &["dead-letters", "list", "--json"]);
    assert_eq!(groups.len(), 1);
    assert_eq!(groups[0]["reason"], "delivery_limit");
    assert_eq!(groups[0]["queues"], json!({ queue.as_str(): 1 }));
    assert!(groups[0]["oldest"].is_string());
    assert!(output(&bed, &["dead-letters", "show", "poison"]).contains("x-death: "));

    output(&bed, &["dead-letters", "replay", "poison"]);
    becomes(&bed, "dead-letters", 0).await;
    let (body, properties) = eventually("the message", || bed.take("card-expiry")).await;
    assert_eq!(serde_json::from_slice::<Value>(&body).unwrap()["id"], "poison");
    let headers = properties.headers().clone().unwrap_or_default();
    let mut headers = headers.inner().keys().map(lapin::types::ShortString::as_str);
    assert!(headers.all(|name| !name.contains("death") && !name.starts_with("offramp-")), "{properties:?}");
    bed.remove().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_letter_that_cannot_be_routed_is_kept() {
    let bed = TestBed::new("homeless").await;
    declare(&bed).await;
    let queue = format!("{}.dead-letters", bed.prefix);
    let options = BasicPublishOptions::default();
    let publishing =
        bed.channel.basic_publish("".into(), queue.as_str().into(), options, b"?", BasicProperties::default());
    publishing.await.unwrap().await.unwrap();
    let said = output(&bed, &["dead-letters", "replay", "--all"]);
    assert!(said.starts_with("1 dead letter kept: "), "{said}");
    assert_eq!(objects(&bed, &["dead-letters", "list", "--json"])[0]["reason"], "unknown");

    // The work queue is missing, so the dead letter is kept.
    let topology = Topology::new(&bed.prefix);
    bury(&bed, &topology, &[cancellation("c", "sub")], "exhausted", "No.", "card-expiry").await;
    let work = format!("{}.card-expiry", bed.prefix);
    bed.channel.queue_delete(work.as_str().into(), QueueDeleteOptions::default()).await.unwrap();
    let error = failure(&bed, &["dead-letters", "replay", "c"], 1);
    assert!(error.contains("1 dead letter kept") && error.contains("offramp init"), "{error}");
    becomes(&bed, "dead-letters", 2).await;
    bed.remove().await;

    let bed = TestBed::new("nothing").await;
    let error = failure(&bed, &["dead-letters", "list"], 1);
    assert!(error.contains("there is no queue") && error.contains("OFFRAMP_PREFIX"), "{error}");
    bed.remove().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn drop_requires_confirmation_and_removes_only_matching_letters() {
    let bed = TestBed::new("drop").await;
    let topology = declare(&bed).await;
    let commands: Vec<Value> = (0..250).map(|index| cancellation(&format!("c-{index}"), "sub")).collect();
    bury(&bed, &topology, &commands, "exhausted", "No.", "cancellation").await;
    bury(&bed, &topology, &[cancellation("kept", "sub")], "invalid", "No.", "cancellation").await;

    let refusal = failure(&bed, &["dead-letters", "drop", "--all"], 2);
    assert!(refusal.contains("--yes") && refusal.contains("Nothing was dropped"), "{refusal}");
    failure(&bed, &["dead-letters", "drop", "--yes"], 2);
    becomes(&bed, "dead-letters", 251).await;
    assert_eq!(output(&bed, &["dead-letters", "drop", "c-7", "--yes"]), "dropped 1 dead letter\n");
    assert_eq!(output(&bed, &["dead-letters", "drop", "--reason", "exhausted", "--yes"]), "dropped 249 dead letters\n");
    becomes(&bed, "dead-letters", 1).await;
    assert_eq!(take_all(&bed, "dead-letters").await, BTreeMap::from([("kept".to_owned(), 1)]));
    assert_eq!(waiting(&bed, "cancellation").await, 0);
    bed.remove().await;
}

const LETTERS: u32 = 2_000;

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_replay_loses_nothing() {
    let bed = TestBed::new("killed").await;
    let sink = SmtpSink::start().await;
    let topology = declare(&bed).await;
    bed.collection("organizations").insert_one(organization("org")).await.unwrap();
    bed.collection("accounts").insert_one(account("acc", "org")).await.unwrap();
    let subscriptions = (0..LETTERS).map(|index| subscription(&format!("sub-{index}"), "org", "acc"));
    bed.collection("subscriptions").insert_many(subscriptions).await.unwrap();
    let commands: Vec<Value> =
        (0..LETTERS).map(|index| cancellation(&format!("c-{index}"), &format!("sub-{index}"))).collect();
    bury(&bed, &topology, &commands, "exhausted", "No.", "cancellation").await;
    becomes(&bed, "dead-letters", LETTERS).await;

    // Six times, the replay is killed after its first messages.
    for _ in 0..6 {
        let before = waiting(&bed, "cancellation").await;
        let mut child = offramp(&bed)
            .args(["dead-letters", "replay", "--all"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        eventually("some messages sent back", || async {
            (waiting(&bed, "cancellation").await > before).then_some(())
        })
        .await;
        child.kill().unwrap();
        let status = child.wait().unwrap();
        assert!(!status.success(), "it ended before it could be killed");
    }
    // The broker requeues unacknowledged messages when it notices the closed connection.
    let now = || async { (waiting(&bed, "dead-letters").await, waiting(&bed, "cancellation").await) };
    let (letters, work) = eventually("every message in a queue, and stable counts", || async {
        let (letters, work) = now().await;
        tokio::time::sleep(Duration::from_millis(500)).await;
        (letters + work >= LETTERS && now().await == (letters, work)).then_some((letters, work))
    })
    .await;
    let twice = letters + work - LETTERS;
    println!("replay killed 6 times: {letters} letters, {work} sent back, {twice} of them in both queues");
    assert!(letters > 0 && work > 0);
    assert!(twice <= 6 * 100, "{twice}");

    // After a full replay, each command is applied once.
    output(&bed, &["dead-letters", "replay", "--all"]);
    becomes(&bed, "dead-letters", 0).await;
    assert_eq!(waiting(&bed, "cancellation").await, letters + work);
    let worker = WorkerProcess::start(&bed, &sink.url()).await;
    eventually("every command to be applied once", || async {
        let once = doc! { "status": "cancellation_scheduled", "applied": { "$size": 1 }, "history": { "$size": 1 } };
        let done = bed.collection("subscriptions").count_documents(once).await.unwrap();
        (done == u64::from(LETTERS) && waiting(&bed, "cancellation").await == 0).then_some(())
    })
    .await;
    bed.outboxes_empty().await;
    assert_eq!(sink.emails().len(), LETTERS as usize, "no email is sent twice");
    assert!(worker.stop().await.success());
    bed.remove().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_list_show_and_drop_lose_nothing() {
    let bed = TestBed::new("looked").await;
    let topology = declare(&bed).await;
    let commands: Vec<Value> = (0..LETTERS).map(|index| cancellation(&format!("c-{index}"), "sub")).collect();
    bury(&bed, &topology, &commands, "exhausted", "No.", "cancellation").await;
    for (verb, milliseconds) in [("list", 150), ("list", 300), ("list", 450), ("show", 300)] {
        let mut arguments = vec!["dead-letters", verb];
        if verb == "show" {
            arguments.push("c-1");
        }
        let mut child = offramp(&bed).args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap();
        tokio::time::sleep(Duration::from_millis(milliseconds)).await;
        child.kill().unwrap();
        child.wait().unwrap();
    }
    becomes(&bed, "dead-letters", LETTERS).await;

    // A killed drop affects only matching messages.
    bury(&bed, &topology, &commands, "invalid", "No.", "cancellation").await;
    let mut child = offramp(&bed)
        .args(["dead-letters", "drop", "--reason", "exhausted", "--yes"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    tokio::time::sleep(Duration::from_millis(900)).await;
    child.kill().unwrap();
    child.wait().unwrap();
    eventually("the letters", || async { (waiting(&bed, "dead-letters").await >= LETTERS).then_some(()) }).await;
    output(&bed, &["dead-letters", "drop", "--reason", "exhausted", "--yes"]);
    becomes(&bed, "dead-letters", LETTERS).await;
    let left: HashMap<String, u64> = objects(&bed, &["dead-letters", "list", "--json"])
        .iter()
        .map(|group| (group["reason"].as_str().unwrap().to_owned(), group["count"].as_u64().unwrap()))
        .collect();
    assert_eq!(left, HashMap::from([("invalid".to_owned(), u64::from(LETTERS))]));
    bed.remove().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_operators_wait_for_each_other() {
    let bed = TestBed::new("operators").await;
    let topology = declare(&bed).await;
    let commands: Vec<Value> = (0..600).map(|index| cancellation(&format!("c-{index}"), "sub")).collect();
    bury(&bed, &topology, &commands, "exhausted", "No.", "cancellation").await;
    let start = |arguments: &[&str]| {
        let arguments = [&["dead-letters"], arguments].concat();
        offramp(&bed).args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap()
    };
    let children = [
        start(&["list", "--json"]),
        start(&["replay", "--all"]),
        start(&["replay", "--all"]),
        start(&["list", "--json"]),
    ];
    let mut said = String::new();
    for child in children {
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{output:?}");
        said.push_str(std::str::from_utf8(&output.stdout).unwrap());
    }
    // A list sees all dead letters or none, never a part.
    for group in said.lines().filter(|line| line.starts_with('{')) {
        assert_eq!(serde_json::from_str::<Value>(group).unwrap()["count"], 600);
    }
    assert_eq!(said.matches("sent back 600 dead letters").count(), 1, "{said}");
    becomes(&bed, "dead-letters", 0).await;
    let back = take_all(&bed, "cancellation").await;
    let expected: BTreeSet<String> = (0..600).map(|index| format!("c-{index}")).collect();
    assert_eq!(back.keys().cloned().collect::<BTreeSet<_>>(), expected);
    assert!(back.values().all(|count| *count == 1));

    // While one process holds the dead letters, others report it and do nothing.
    bury(&bed, &topology, &commands[..1], "exhausted", "No.", "cancellation").await;
    let held = offramp::amqp::DeadLetters::open(&broker(), &topology).await.unwrap();
    let busy = failure(&bed, &["dead-letters", "replay", "--all"], 1);
    assert!(busy.contains("another `offramp dead-letters` is at work"), "{busy}");
    held.close().await;
    assert!(output(&bed, &["dead-letters", "replay", "--all"]).starts_with("sent back 1 dead letter:"));
    bed.remove().await;
}

#[tokio::test]
async fn dead_letters_with_the_same_handle_are_distinguished() {
    Rabbit::declared(async |rabbit| {
        let queue = rabbit.topology.dead_letter_queue();
        let bury = async |body: &str| {
            let mut headers = FieldTable::default();
            headers.insert("offramp-reason".into(), AMQPValue::LongString("invalid".into()));
            let properties = BasicProperties::default().with_delivery_mode(2).with_headers(headers);
            rabbit.publish("", &queue, body.as_bytes(), properties).await;
        };
        let (goes, stays, comes) = (r#"{"n": 488854}"#, r#"{"n": 968711}"#, r#"{"n": 1}"#);
        bury(goes).await;
        bury(stays).await;
        let letters = DeadLetters::open(&rabbit.broker(), &rabbit.topology).await.unwrap();
        let mut scan = letters.scan().await.unwrap();
        let (one, other) = (scan.next().await.unwrap().unwrap(), scan.next().await.unwrap().unwrap());
        assert_eq!(one.letter.handle, other.letter.handle);
        let (one, other) = if one.body() == goes.as_bytes() { (one, other) } else { (other, one) };
        scan.remove(vec![one]).await.unwrap();
        drop(other);
        // The count is one more than expected, so the scan looks for removed letters that came back.
        bury(comes).await;
        scan.finish().await.unwrap();
        letters.close().await;
        let mut left = [rabbit.await_message(&queue).await.data, rabbit.await_message(&queue).await.data];
        left.sort();
        assert_eq!(left, [comes.as_bytes(), stays.as_bytes()]);
    })
    .await;
}

/// `LETTERS=100000 cargo test --test it many_dead_letters_are_listed_and_replayed -- --nocapture` prints figures.
#[tokio::test(flavor = "multi_thread")]
async fn many_dead_letters_are_listed_and_replayed() {
    let few: usize = std::env::var("LETTERS").map_or(1_000, |few| few.parse().unwrap());
    let bed = TestBed::new("many").await;
    let topology = declare(&bed).await;
    let commands: Vec<Value> =
        (0..few).map(|index| cancellation(&format!("c-{index}"), &format!("s-{index}"))).collect();
    bury(&bed, &topology, &commands, "exhausted", "No.", "cancellation").await;
    let timed = |arguments: &[&str]| {
        let begin = Instant::now();
        let said = output(&bed, arguments);
        println!("{arguments:?}: {:.1} s\n{said}", begin.elapsed().as_secs_f32());
    };
    timed(&["dead-letters", "list"]);
    let order = objects(&bed, &["dead-letters", "list", "--each", "--limit", "1000000", "--json"]);
    let sorted = order.windows(2).filter(|pair| pair[0]["died_at"].as_str() <= pair[1]["died_at"].as_str()).count();
    println!("{sorted} of {} adjacent pairs in order", order.len() - 1);
    timed(&["dead-letters", "show", "c-7", "--json"]);
    timed(&["dead-letters", "replay", "--all"]);
    assert_eq!(waiting(&bed, "cancellation").await as usize, few);
    bed.remove().await;
}
