//! Every message gets its documented outcome, and the rest of its batch is not affected.

use bson::{Document, doc};
use lapin::BasicProperties;
use lapin::types::FieldTable;
use serde_json::{Value, json};

use offramp_testkit::eventually;
use offramp_testkit::fixtures::{
    TOMBSTONE_FIELDS, account, cancellation, command, organization, populate, subscription, with,
};
use offramp_testkit::smtp_sink::SmtpSink;
use offramp_testkit::test_bed::TestBed;
use offramp_testkit::worker_process::WorkerProcess;

/// Whether an event is the rejection of this command.
pub fn is_rejection_of(id: &str) -> impl Fn(&Value) -> bool {
    move |event| event["type"] == "command.rejected" && event["causationid"] == id
}

#[tokio::test(flavor = "multi_thread")]
async fn invalid_messages_become_dead_letters_and_the_rest_of_their_batch_is_processed() {
    let bed = TestBed::new("invalid").await;
    let sink = SmtpSink::start().await;
    populate(&bed).await;
    // The first worker declares the topology; all messages then wait together for the second.
    assert!(WorkerProcess::start(&bed, &sink.url()).await.stop().await.success());

    let key = "subscription.cancellation";
    let misspelt = with(cancellation("c-1", "sub"), "mnth", json!("2199-07")).to_string();
    let wrong_type = with(cancellation("c-2", "sub"), "reason", json!(5)).to_string();
    let unknown_type = json!({ "specversion": "1.0", "id": "c-3", "source": "tests", "type": "subscription.pause",
        "time": "2199-05-20T12:00:00Z", "data": {} })
    .to_string();
    let large = with(cancellation("c-4", "sub"), "reason", json!("x".repeat(300 * 1024))).to_string();
    for body in [&misspelt, &wrong_type, "{nonsense", &unknown_type, &large] {
        bed.publish(key, body.as_bytes()).await;
    }
    bed.command(&cancellation("good", "sub")).await;

    let worker = WorkerProcess::start(&bed, &sink.url()).await;
    let document = bed.status_becomes("sub", "cancellation_scheduled").await;
    assert_eq!(document.get_str("ends_on").unwrap(), "2199-06-14");
    let mut letters = Vec::new();
    for _ in 0..5 {
        letters.push(bed.dead_letter().await);
    }
    let letter = |body: &str| letters.iter().find(|letter| letter.body == body.as_bytes()).expect("untouched body");
    let expectations = [
        (misspelt.as_str(), "invalid", "data.mnth: unknown field `mnth`"),
        (&wrong_type, "invalid", "data.reason: invalid type: integer `5`"),
        ("{nonsense", "invalid", "not JSON"),
        (&unknown_type, "invalid", "type: unknown variant `subscription.pause`"),
        (&large, "too_large", "262144"),
    ];
    for (body, reason, error) in expectations {
        let letter = letter(body);
        assert_eq!(letter.header("offramp-reason"), reason);
        assert!(letter.header("offramp-error").contains(error), "{}", letter.header("offramp-error"));
        assert_eq!(letter.header("offramp-queue"), format!("{}.cancellation", bed.prefix));
        assert_eq!(letter.header("offramp-attempt"), "0");
        assert!(letter.header("offramp-died-at").contains('T'), "{}", letter.header("offramp-died-at"));
    }
    assert!(worker.stop().await.success());
    bed.remove().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rejection_sends_an_event_and_a_reply_and_leaves_the_document_unchanged() {
    let bed = TestBed::new("refused").await;
    let sink = SmtpSink::start().await;
    populate(&bed).await;
    bed.collection("organizations").insert_one(organization("other")).await.unwrap();
    let before = bed.document("subscriptions", "sub").await;
    let events = bed.watch_events().await;
    let worker = WorkerProcess::start(&bed, &sink.url()).await;

    let foreign = with(cancellation("foreign", "sub"), "organization_id", json!("other"));
    bed.command(&foreign).await;
    let event = events.next(&bed, is_rejection_of("foreign")).await;
    assert_eq!(event["data"]["reason"], "wrong_organization");
    assert_eq!(
        event["data"].get("account_id"),
        None,
        "another organization learns nothing about the subscription: {event}"
    );
    assert_eq!(event["subject"], "sub");
    assert_eq!(
        event["data"]["command"],
        json!({ "source": "tests", "id": "foreign", "type": "subscription.cancellation" })
    );

    // The same event also goes to the queue in `reply_to`.
    let answers = format!("{}.test-answers", bed.prefix);
    let options = lapin::options::QueueDeclareOptions { exclusive: true, ..Default::default() };
    let queue = bed.channel.queue_declare(answers.as_str().into(), options, FieldTable::default()).await.unwrap();
    let early = with(cancellation("early", "sub"), "month", json!("2199-05"));
    let properties = BasicProperties::default().with_reply_to(queue.name().clone());
    bed.publish_with("subscription.cancellation", early.to_string().as_bytes(), properties).await;
    let event = events.next(&bed, is_rejection_of("early")).await;
    assert_eq!(event["data"]["reason"], "month_already_invoiced");
    assert_eq!(event["data"]["account_id"], "acc");
    let (answer, _) = eventually("the answer", || bed.take("test-answers")).await;
    assert_eq!(serde_json::from_slice::<Value>(&answer).unwrap(), event);

    // On the last attempt a missing document is a rejection.
    bed.command_at_attempt(&cancellation("nobody", "no-such"), 3).await;
    let event = events.next(&bed, is_rejection_of("nobody")).await;
    assert_eq!(event["data"]["reason"], "subscription_not_found");
    let expiry = command(
        "card",
        "card.expiry",
        json!({ "organization_id": "org", "account_id": "no-such",
            "card": { "id": "card", "brand": "Visa", "last4": "4242", "expires": "2199-06" } }),
    );
    bed.command_at_attempt(&expiry, 3).await;
    let event = events.next(&bed, is_rejection_of("card")).await;
    assert_eq!(event["data"]["reason"], "account_not_found");

    assert_eq!(bed.document("subscriptions", "sub").await, before);
    assert!(worker.stop().await.success());
    assert!(sink.emails().is_empty(), "a rejection sends no email");
    bed.remove().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_is_retried_until_its_subscription_exists() {
    let bed = TestBed::new("waits").await;
    let sink = SmtpSink::start().await;
    bed.collection("organizations").insert_one(organization("org")).await.unwrap();
    let worker = WorkerProcess::start(&bed, &sink.url()).await;

    bed.command(&cancellation("ahead", "sub")).await;
    eventually("the first wait", || async {
        let queue = format!("{}.retry.5s", bed.prefix);
        let options = lapin::options::QueueDeclareOptions { passive: true, ..Default::default() };
        let waiting = bed.channel.queue_declare(queue.as_str().into(), options, FieldTable::default()).await.unwrap();
        (waiting.message_count() == 1).then_some(())
    })
    .await;
    bed.collection("accounts").insert_one(account("acc", "org")).await.unwrap();
    bed.collection("subscriptions").insert_one(subscription("sub", "org", "acc")).await.unwrap();
    let document = bed.status_becomes("sub", "cancellation_scheduled").await;
    assert_eq!(document.get_array("applied").unwrap().len(), 1);
    assert!(worker.stop().await.success());
    bed.remove().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_for_corrupt_or_incomplete_documents_become_dead_letters() {
    let bed = TestBed::new("corrupt").await;
    let sink = SmtpSink::start().await;
    populate(&bed).await;
    let subscriptions = bed.collection("subscriptions");
    let mut no_next = subscription("no-next", "org", "acc");
    no_next.get_document_mut("billing").unwrap().remove("next_on");
    let mut wrong_type = subscription("wrong-type", "org", "acc");
    wrong_type.get_document_mut("billing").unwrap().insert("day", "fifteen");
    let corrupt = [no_next, wrong_type];
    subscriptions.insert_many(&corrupt).await.unwrap();
    let strays = [subscription("no-account", "org", "nobody"), subscription("no-organization", "nowhere", "acc")];
    subscriptions.insert_many(&strays).await.unwrap();
    let worker = WorkerProcess::start(&bed, &sink.url()).await;

    bed.command(&cancellation("c-1", "no-next")).await;
    bed.command(&cancellation("c-2", "wrong-type")).await;
    bed.command_at_attempt(&cancellation("c-3", "no-account"), 3).await;
    let nowhere = with(cancellation("c-4", "no-organization"), "organization_id", json!("nowhere"));
    bed.command_at_attempt(&nowhere, 3).await;
    bed.command(&cancellation("c-5", "sub")).await;

    let mut letters = Vec::new();
    for _ in 0..4 {
        let letter = bed.dead_letter().await;
        let id = serde_json::from_slice::<Value>(&letter.body).unwrap()["id"].as_str().unwrap().to_owned();
        letters.push((id, letter.header("offramp-reason"), letter.header("offramp-error")));
    }
    letters.sort();
    let reasons: Vec<_> = letters.iter().map(|(id, reason, _)| (id.as_str(), reason.as_str())).collect();
    assert_eq!(
        reasons,
        [
            ("c-1", "corrupt_document"),
            ("c-2", "corrupt_document"),
            ("c-3", "missing_account"),
            ("c-4", "missing_organization")
        ]
    );
    assert!(letters[0].2.contains("subscriptions no-next: billing.next_on: missing"), "{}", letters[0].2);
    assert!(letters[1].2.contains("subscriptions wrong-type: billing.day: "), "{}", letters[1].2);
    for document in corrupt.iter().chain(&strays) {
        let id = document.get_str("_id").unwrap();
        assert_eq!(bed.document("subscriptions", id).await.as_ref(), Some(document), "unchanged");
    }
    // The valid command of the same batch was applied.
    bed.status_becomes("sub", "cancellation_scheduled").await;
    assert!(worker.stop().await.success());
    bed.remove().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removal_keeps_only_a_tombstone_which_is_deleted_after_30_days() {
    let bed = TestBed::new("removed").await;
    let sink = SmtpSink::start().await;
    populate(&bed).await;
    let events = bed.watch_events().await;
    let worker = WorkerProcess::start(&bed, &sink.url()).await;
    let mut removal = with(cancellation("remove", "sub"), "invoice_id", json!("inv-5"));
    removal["data"]["via"] = json!("invoice");
    removal["data"]["refund"] = json!(true);
    bed.command(&removal).await;

    let event = events.next(&bed, |event| event["type"] == "subscription.removed").await;
    assert_eq!(
        event["data"],
        json!({ "organization_id": "org", "subscription_id": "sub", "account_id": "acc", "invoice_id": "inv-5",
            "refund": true, "activities": [{ "id": "a", "name": "Aquafit" }] })
    );
    bed.outboxes_empty().await;
    let tombstone = bed.document("subscriptions", "sub").await.unwrap();
    let mut fields: Vec<&str> = tombstone.keys().map(String::as_str).collect();
    fields.sort_unstable();
    assert_eq!(fields, TOMBSTONE_FIELDS);
    assert_eq!(sink.emails().len(), 1);

    // The tombstone is deleted after 30 days, not earlier.
    let days_ago = |days: i64| bson::DateTime::from(chrono::Utc::now() - chrono::TimeDelta::days(days));
    let set_back = |days: i64| {
        let at = days_ago(days);
        let day = at.to_chrono().date_naive().to_string();
        doc! { "$set": {
            "ended_on": day, "applied.$[].at": at, "applied.$[].settled_at": at, "notifications.$[].at": at,
            "notifications.$[].sent_at": at,
        } }
    };
    let subscriptions = bed.collection("subscriptions");
    let mut younger = tombstone.clone();
    younger.insert("_id", "younger");
    subscriptions.insert_one(younger).await.unwrap();
    subscriptions.update_one(doc! { "_id": "younger" }, set_back(29)).await.unwrap();
    subscriptions.update_one(doc! { "_id": "sub" }, set_back(31)).await.unwrap();
    eventually("the end of the tombstone", || async {
        bed.document("subscriptions", "sub").await.is_none().then_some(())
    })
    .await;
    assert!(bed.document("subscriptions", "younger").await.is_some());
    assert!(worker.stop().await.success());
    bed.remove().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn history_entries_are_appended_in_order() {
    let bed = TestBed::new("history").await;
    let sink = SmtpSink::start().await;
    populate(&bed).await;
    let entries: Vec<Document> = (0..9).map(|number| doc! { "number": number }).collect();
    let trails = [("missing", None), ("empty", Some(vec![])), ("long", Some(entries.clone()))];
    for (id, entries) in &trails {
        let mut document = subscription(id, "org", "acc");
        if let Some(entries) = entries {
            document.insert("history", entries.clone());
        }
        bed.collection("subscriptions").insert_one(document).await.unwrap();
    }
    // Both commands wait together, so one batch writes the array indexes 9 and 10.
    assert!(WorkerProcess::start(&bed, &sink.url()).await.stop().await.success());
    for (id, _) in &trails {
        bed.command(&with(cancellation(&format!("later-{id}"), id), "month", json!("2199-08"))).await;
        bed.command(&with(cancellation(&format!("sooner-{id}"), id), "month", json!("2199-07"))).await;
    }
    let worker = WorkerProcess::start(&bed, &sink.url()).await;
    for (id, before) in &trails {
        let before = before.clone().unwrap_or_default();
        let history = eventually(&format!("both entries of {id}"), || async {
            let history = bed.document("subscriptions", id).await?.get_array("history").ok()?.clone();
            (history.len() == before.len() + 2).then_some(history)
        })
        .await;
        let history: Vec<&Document> = history.iter().map(|entry| entry.as_document().unwrap()).collect();
        assert_eq!(history[..before.len()], before.iter().collect::<Vec<_>>(), "{id}");
        let added: Vec<_> = history[before.len()..]
            .iter()
            .map(|entry| entry.get_document("command").unwrap().get_str("id").unwrap())
            .collect();
        assert_eq!(added, [format!("later-{id}"), format!("sooner-{id}")]);
    }
    assert!(worker.stop().await.success());
    bed.remove().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_without_effect_is_remembered_as_applied() {
    let bed = TestBed::new("usedup").await;
    let sink = SmtpSink::start().await;
    populate(&bed).await;
    let worker = WorkerProcess::start(&bed, &sink.url()).await;
    let request = |id: &str| {
        command(
            id,
            "subscription.cancellation-request",
            json!({ "organization_id": "org", "subscription_id": "sub", "actor": { "role": "client", "account_id": "acc" } }),
        )
    };
    let decline = command(
        "decline",
        "subscription.cancellation-confirmation",
        json!({ "organization_id": "org", "subscription_id": "sub", "actor": { "role": "admin", "id": "a" }, "decision": "decline" }),
    );
    let story = [
        (request("first"), "cancellation_requested"),
        (request("same"), "cancellation_requested"),
        (decline, "active"),
        (request("same"), "active"),
    ];
    for ((command, status), settled) in story.into_iter().zip(1..) {
        bed.command(&command).await;
        eventually("the command to be settled", || async { (worker.settled().await == settled).then_some(()) }).await;
        assert_eq!(bed.document("subscriptions", "sub").await.unwrap().get_str("status").unwrap(), status);
    }
    bed.outboxes_empty().await;
    assert_eq!(sink.emails().len(), 2, "the request to the organization, the decision to the client");
    assert!(worker.stop().await.success());
    bed.remove().await;
}

/// A primary that others have replaced can still answer, and what it returns can be undone. A write would be guarded; a rejection and a
/// repeat write nothing. (`make chaos-cluster` brings such primaries about.)
#[tokio::test(flavor = "multi_thread")]
async fn rejections_and_repeats_are_decided_on_linearizable_reads() {
    let bed = TestBed::new("certain").await;
    let sink = SmtpSink::start().await;
    populate(&bed).await;
    let worker = WorkerProcess::start(&bed, &sink.url()).await;
    bed.database.run_command(doc! { "profile": 2 }).await.unwrap();
    let certain_reads = async || {
        let reads =
            doc! { "op": "query", "command.find": "subscriptions", "command.readConcern.level": "linearizable" };
        bed.collection("system.profile").count_documents(reads).await.unwrap()
    };
    bed.collection("subscriptions").insert_one(subscription("again", "org", "acc")).await.unwrap();
    let request = |id: &str| {
        let data = json!({ "organization_id": "org", "subscription_id": "again", "actor": { "role": "client", "account_id": "acc" } });
        command(id, "subscription.cancellation-request", data)
    };
    let early = with(cancellation("early", "sub"), "month", json!("2199-05"));
    let story = [
        (cancellation("first", "sub"), 0),
        (cancellation("first", "sub"), 1),
        (early, 2),
        (request("asked"), 2),
        // Without effect, but remembered: that is a write. Its repeat is none.
        (request("asked again"), 2),
        (request("asked again"), 3),
    ];
    for ((command, expected), settled) in story.into_iter().zip(1..) {
        bed.command(&command).await;
        eventually("the command to be settled", || async { (worker.settled().await == settled).then_some(()) }).await;
        assert_eq!(certain_reads().await, expected, "{command}");
    }
    bed.database.run_command(doc! { "profile": 0 }).await.unwrap();
    assert!(worker.stop().await.success());
    bed.remove().await;
}

/// A rejection that stands in a batch before a change of the same document must not be decided again after that change.
#[tokio::test(flavor = "multi_thread")]
async fn a_rejection_rests_on_the_state_before_later_commands_of_its_batch() {
    let bed = TestBed::new("order").await;
    let sink = SmtpSink::start().await;
    populate(&bed).await;
    let events = bed.watch_events().await;
    // The first worker declares the topology; all messages then wait together for the second.
    assert!(WorkerProcess::start(&bed, &sink.url()).await.stop().await.success());
    let from_invoice = |id: &str, invoice: &str| {
        let fields = [("via", json!("invoice")), ("invoice_id", json!(invoice))];
        fields.into_iter().fold(cancellation(id, "sub"), |command, (field, value)| with(command, field, value))
    };
    // A lane begins with a batch of one.
    bed.command(&with(cancellation("first", "sub"), "organization_id", json!("elsewhere"))).await;
    for command in [from_invoice("older", "inv-4"), from_invoice("newest", "inv-5"), from_invoice("again", "inv-5")] {
        bed.command(&command).await;
    }
    let worker = WorkerProcess::start(&bed, &sink.url()).await;
    for (id, reason) in [("older", "not_last_invoice"), ("again", "already_ended")] {
        let event = events.next(&bed, is_rejection_of(id)).await;
        assert_eq!(event["data"]["reason"], reason, "{id}");
    }
    assert!(worker.stop().await.success());
    bed.remove().await;
}
