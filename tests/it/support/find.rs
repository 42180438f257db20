//! `offramp find`: by address, email, command, account, undecided requests and ends; never by reading a whole collection.

use super::*;
use bson::DateTime as Instant;
use chrono::{TimeDelta, Utc};
use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable};
use offramp_testkit::fixtures::{account, cancellation, organization, populate, subscription, with};
use offramp_testkit::smtp_sink::SmtpSink;
use offramp_testkit::worker_process::WorkerProcess;

/// What `offramp find` prints as JSON.
#[track_caller]
fn found(bed: &TestBed, arguments: &[&str]) -> Vec<Value> {
    succeeds(&mut offramp(bed), &[&["find", "--json"], arguments].concat(), "").json()
}

/// Kind and id of everything that is found.
#[track_caller]
fn ids(bed: &TestBed, arguments: &[&str]) -> Vec<String> {
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    found(bed, arguments).iter().map(|it| format!("{} {}", text(&it["kind"]), text(&it["id"]))).collect()
}

#[track_caller]
fn nothing(bed: &TestBed, arguments: &[&str]) {
    fails(&mut offramp(bed), &[&["find"], arguments].concat(), "", 1, "nothing found in the database");
}

/// Starts to record how the database answers the program.
async fn watch(bed: &TestBed) {
    bed.database.run_command(doc! { "profile": 1, "filter": { "appName": "offramp" } }).await.unwrap();
}

/// How the database found what it was asked for, in each query since [`watch`].
async fn plans(bed: &TestBed) -> Vec<String> {
    bed.database.run_command(doc! { "profile": 0 }).await.unwrap();
    let queries = doc! { "op": { "$in": ["query", "command"] }, "planSummary": { "$exists": true } };
    let notes: Vec<Document> =
        bed.collection("system.profile").find(queries).await.unwrap().try_collect().await.unwrap();
    notes
        .iter()
        .map(|note| format!("{} {}", note.get_str("ns").unwrap(), note.get_str("planSummary").unwrap()))
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_is_found_through_an_index() {
    let bed = TestBed::new("find").await;
    store_of(&bed).await;
    let sink = SmtpSink::start().await;
    populate(&bed).await;
    bed.collection("organizations").insert_one(organization("org-2")).await.unwrap();
    let mut julie = account("acc-2", "org");
    julie.insert("manager", doc! { "name": "Julie", "email": "Julie@Tremblay.example" });
    bed.collection("accounts").insert_one(julie).await.unwrap();
    bed.collection("subscriptions").insert_one(subscription("sub-2", "org", "acc-2")).await.unwrap();
    let worker = WorkerProcess::start(&bed, &sink.url()).await;
    bed.command(&cancellation("c-1", "sub")).await;
    bed.command(&with(cancellation("c-2", "sub-2"), "month", "2199-01".into())).await;
    let mut headers = FieldTable::default();
    headers.insert("offramp-wait".into(), AMQPValue::Boolean(false));
    let ghost = cancellation("c-3", "ghost");
    let properties = BasicProperties::default().with_headers(headers);
    bed.publish_with("subscription.cancellation", ghost.to_string().as_bytes(), properties).await;
    recorded(&bed, "c-2").await;
    recorded(&bed, "c-3").await;
    bed.outboxes_empty().await;
    let email = eventually("a sent email", || async {
        let sent = doc! { "notifications.sent_at": { "$exists": true } };
        let found = bed.collection("subscriptions").find_one(sent).await.unwrap()?;
        found.get_array("notifications").unwrap()[0].as_document().cloned()
    })
    .await;
    assert!(worker.stop().await.success());
    watch(&bed).await;

    // By address, in any case.
    let expected = ["account acc-2", "subscription sub-2"];
    assert_eq!(ids(&bed, &["--email", "julie@TREMBLAY.example"]), expected);
    assert_eq!(ids(&bed, &["julie@tremblay.example"]), expected);
    assert_eq!(ids(&bed, &["<JULIE@tremblay.example>"]), expected);
    assert_eq!(ids(&bed, &["--email", "desk@org-2.example"]), ["organization org-2"]);
    nothing(&bed, &["--email", "julie@tremblay"]);
    // By email.
    let message_id = email.get_str("message_id").unwrap();
    let by_email = found(&bed, &["--message-id", message_id]);
    assert_eq!((by_email.len(), &by_email[0]["id"]), (1, &"sub".into()));
    let because = &by_email[0]["because"];
    assert_eq!((&because["by"], &because["template"]), (&"email".into(), &"cancelled-by-admin".into()));
    assert_eq!(because["state"], "sent");
    for text in [message_id, message_id.trim_matches(['<', '>']), email.get_str("id").unwrap()] {
        assert_eq!(ids(&bed, &[text]), ["subscription sub"], "{text}");
    }
    nothing(&bed, &["--message-id", "<0190b3c5-1d2e-5f00-8000-000000000000@offramp.example>"]);
    // By command.
    let applied = found(&bed, &["--command", "c-1"]);
    assert_eq!((&applied[0]["id"], &applied[0]["because"]["by"]), (&"sub".into(), &"applied_command".into()));
    let rejected = found(&bed, &["c-2"]);
    assert_eq!((&rejected[0]["id"], &rejected[0]["name"]), (&"sub-2".into(), &"Zoé Roy".into()));
    assert_eq!(rejected[0]["because"]["reason"], "month_already_invoiced");
    let unknown = found(&bed, &["c-3"]);
    assert_eq!((&unknown[0]["id"], &unknown[0]["name"]), (&"ghost".into(), &Value::Null));
    assert_eq!(unknown[0]["because"]["reason"], "subscription_not_found");
    // By id.
    assert_eq!(ids(&bed, &["--account", "acc-2"]), expected);
    assert_eq!(ids(&bed, &["acc-2"]), ["account acc-2"]);
    assert_eq!(ids(&bed, &["sub-2"]), ["subscription sub-2"]);
    nothing(&bed, &["nobody"]);

    let table = succeeds(&mut offramp(&bed), &["find", "c-2"], "").stdout;
    for part in ["subscription", "sub-2", "rejected", "month_already_invoiced"] {
        assert!(table.contains(part), "{part} is not in\n{table}");
    }
    let plans = plans(&bed).await;
    assert!(plans.len() > 20, "{plans:?}");
    assert!(
        plans.iter().all(|plan| plan.contains("IXSCAN") || plan.contains("IDHACK") || plan.contains("EOF")),
        "{plans:?}"
    );
    bed.remove().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn undecided_requests_and_ends_are_found_by_date() {
    let bed = TestBed::new("find-dates").await;
    store_of(&bed).await;
    populate(&bed).await;
    let undecided = |id: &str, organization: &str, days: i64| {
        let mut document = subscription(id, organization, "acc");
        let at = Instant::from(Utc::now() - TimeDelta::days(days));
        document.insert("status", "cancellation_requested");
        document.insert("cancellation_request", doc! { "requested_at": at, "reason": "Moving" });
        document
    };
    let ends = |id: &str, organization: &str, ends_on: &str, ends_at: &str| {
        let mut document = subscription(id, organization, "acc");
        let ends_at = Instant::parse_rfc3339_str(ends_at).unwrap();
        document.extend(doc! { "status": "cancellation_scheduled", "ends_on": ends_on, "ends_at": ends_at });
        document
    };
    let documents = [
        undecided("b-5", "org-2", 5),
        undecided("a-2", "org", 2),
        undecided("a-9", "org", 9),
        ends("a-june", "org", "2199-06-30", "2199-07-01T04:00:00Z"),
        ends("a-july", "org", "2199-07-01", "2199-07-02T04:00:00Z"),
        // Its day begins twelve hours after that of Greenwich.
        ends("b-june", "org-2", "2199-06-30", "2199-07-01T12:00:00Z"),
        // Its first of July is over before that of Greenwich.
        ends("b-july", "org-2", "2199-07-01", "2199-07-01T10:00:00Z"),
    ];
    bed.collection("subscriptions").insert_many(documents).await.unwrap();
    watch(&bed).await;
    let all = |ids: &[&str]| ids.iter().map(|id| format!("subscription {id}")).collect::<Vec<_>>();
    assert_eq!(ids(&bed, &["--undecided-for", "3d"]), all(&["a-9", "b-5"]));
    assert_eq!(ids(&bed, &["--undecided-for", "24h", "--organization", "org"]), all(&["a-9", "a-2"]));
    assert_eq!(ids(&bed, &["--undecided-for", "1m", "--limit", "1"]), all(&["a-9"]));
    nothing(&bed, &["--undecided-for", "10d"]);
    assert_eq!(ids(&bed, &["--ends-before", "2199-07-01"]), all(&["a-june", "b-june"]));
    assert_eq!(ids(&bed, &["--ends-before", "2199-07-02", "--organization", "org"]), all(&["a-june", "a-july"]));
    nothing(&bed, &["--ends-before", "2199-06-30"]);
    let plans = plans(&bed).await;
    assert!(plans.iter().all(|plan| plan.contains("IXSCAN")), "{plans:?}");
    let table = succeeds(&mut offramp(&bed), &["find", "--undecided-for", "1m", "--limit", "2"], "").stdout;
    assert!(table.contains("… and more (--limit)") && table.contains("Moving"), "{table}");
    bed.remove().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_usage_and_missing_indexes_are_explained() {
    let bed = TestBed::new("find-usage").await;
    populate(&bed).await;
    let missing = "the index accounts.offramp_address is missing";
    let ran = fails(&mut offramp(&bed), &["find", "--email", "acc@home.example"], "", 1, missing);
    assert!(ran.stderr.contains("offramp init"), "{}", ran.stderr);
    let ran = run(&mut offramp(&bed), &["show", "acc"], "");
    assert!(ran.stdout.contains("its subscriptions cannot be shown: the index"), "{}", ran.stdout);
    fails(&mut offramp(&bed), &["find"], "", 2, "required");
    fails(&mut offramp(&bed), &["find", "--undecided-for", "3"], "", 2, "not a number of days, hours or minutes");
    fails(&mut offramp(&bed), &["find", "--ends-before", "June"], "", 2, "ends-before");
    fails(&mut offramp(&bed), &["find", "x", "--organization", "org"], "", 2, "cannot be used with");
    bed.remove().await;
}
