//! Indexes: built when missing, in the background, and dropped only on request.

use std::process::Stdio;

use bson::{DateTime as Instant, Document, doc};
use chrono::{TimeDelta, Utc};
use offramp::store::Store;
use offramp::tls::Tls;

use super::{expiring, notes, scheduled, start_noting, sweeps};
use offramp_testkit::eventually;
use offramp_testkit::fixtures::{cancellation, populate};
use offramp_testkit::proxy::Proxy;
use offramp_testkit::smtp_sink::SmtpSink;
use offramp_testkit::test_bed::TestBed;
use offramp_testkit::worker_process::{WorkerProcess, offramp};

/// The names of the indexes of a collection.
async fn index_names(bed: &TestBed, collection: &str) -> Vec<String> {
    bed.collection(collection).list_index_names().await.unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_builds_only_missing_indexes() {
    let bed = TestBed::new("indexes").await;
    let sink = SmtpSink::start().await;
    populate(&bed).await;
    bed.collection("subscriptions").insert_one(scheduled("over", Utc::now() - TimeDelta::hours(1))).await.unwrap();
    start_noting(&bed).await;
    let worker = WorkerProcess::start(&bed, &sink.url()).await;
    bed.status_becomes("over", "cancelled").await;
    all_indexes_appear(&bed).await;
    assert!(worker.stop().await.success());
    // A hanging replica must not block a build. A standalone server rejects the option.
    let hello = bed.database.run_command(doc! { "hello": 1 }).await.unwrap();
    let expected = hello.contains_key("setName").then_some("majority");
    let builds = builds(&notes(&bed).await);
    assert!(!builds.is_empty());
    for build in &builds {
        assert_eq!(build.get_str("commitQuorum").ok(), expected, "{build}");
    }
    assert!(index_names(&bed, "subscriptions").await.contains(&"offramp_natural_ends".to_owned()));

    start_noting(&bed).await;
    let worker = WorkerProcess::start(&bed, &sink.url()).await;
    eventually("a sweep", || async { (sweeps(&bed).await > 0).then_some(()) }).await;
    assert!(worker.stop().await.success());
    assert!(self::builds(&notes(&bed).await).is_empty());
    bed.remove().await;
}

fn builds(notes: &[Document]) -> Vec<Document> {
    let commands = notes.iter().filter_map(|note| note.get_document("command").ok());
    commands.filter(|command| command.contains_key("createIndexes")).cloned().collect()
}

async fn all_indexes_appear(bed: &TestBed) {
    let store = Store::open(&bed.mongodb_url, &Tls::default()).await.unwrap();
    eventually("all indexes", || async { store.missing_indexes().await.unwrap().is_empty().then_some(()) }).await;
}

async fn index_appears(bed: &TestBed, collection: &str, name: &str) {
    eventually(&format!("the index {name}"), || async {
        index_names(bed, collection).await.iter().any(|other| other == name).then_some(())
    })
    .await;
}

/// An index build takes minutes on a large collection. Here the proxy holds it.
#[tokio::test(flavor = "multi_thread")]
async fn messages_are_consumed_while_an_index_is_built() {
    let mut bed = TestBed::new("building").await;
    let sink = SmtpSink::start().await;
    populate(&bed).await;
    bed.collection("subscriptions").insert_one(scheduled("over", Utc::now() - TimeDelta::hours(1))).await.unwrap();
    let (proxy, url) = Proxy::in_front_of_mongodb(&bed.mongodb_url).await;
    bed.mongodb_url = url;
    proxy.hold_requests("createIndexes");

    let worker = WorkerProcess::start(&bed, &sink.url()).await;
    bed.command(&cancellation("c-1", "sub")).await;
    bed.status_becomes("sub", "cancellation_scheduled").await;
    bed.outboxes_empty().await;
    assert_eq!(sink.emails().len(), 1);
    let ready = worker.readyz().await.unwrap();
    assert!(ready.status == 200, "a worker that builds indexes works: {ready}");
    assert_eq!(index_names(&bed, "subscriptions").await, ["_id_"]);
    let over = bed.document("subscriptions", "over").await.unwrap();
    assert_eq!(over.get_str("status").unwrap(), "cancellation_scheduled", "scheduled ends need the index");

    proxy.hold_requests("");
    bed.status_becomes("over", "cancelled").await;
    assert!(worker.stop().await.success());
    bed.remove().await;
}

/// Queries that need the index wait for it; everything else continues. The worker is not ready until the index exists.
#[tokio::test(flavor = "multi_thread")]
async fn an_index_that_cannot_be_built_stops_only_the_queries_that_need_it() {
    let bed = TestBed::new("no-index").await;
    let sink = SmtpSink::start().await;
    populate(&bed).await;
    let past = Utc::now() - TimeDelta::hours(1);
    // MongoDB cannot index two lists of one document in one index.
    let mut lists = scheduled("lists", past);
    lists.extend(doc! { "status": ["cancellation_scheduled"], "ends_at": [Instant::from(past)] });
    let documents = [lists, scheduled("scheduled", past), expiring("natural", 15, "2020-01-01")];
    bed.collection("subscriptions").insert_many(documents).await.unwrap();
    start_noting(&bed).await;

    let worker = WorkerProcess::spawn(&bed, &sink.url(), &[], Stdio::null());
    eventually("a worker that is not ready", || async {
        worker.readyz().await.filter(|answer| answer.body.contains("offramp_scheduled_ends: CannotIndexParallelArrays"))
    })
    .await;
    bed.status_becomes("natural", "expired").await;
    bed.command(&cancellation("c-1", "sub")).await;
    bed.status_becomes("sub", "cancellation_scheduled").await;
    let tries = doc! { "command.createIndexes": "subscriptions", "command.indexes.0.name": "offramp_scheduled_ends" };
    eventually("three attempts", || async {
        let answer = worker.readyz().await.unwrap();
        assert!(answer.status == 503 && answer.body.contains("offramp_scheduled_ends"), "{answer}");
        let count = bed.collection("system.profile").count_documents(tries.clone()).await.unwrap();
        (count >= 3).then_some(())
    })
    .await;
    let waiting = bed.document("subscriptions", "scheduled").await.unwrap();
    assert_eq!(waiting.get_str("status").unwrap(), "cancellation_scheduled");

    bed.collection("subscriptions").delete_one(doc! { "_id": "lists" }).await.unwrap();
    bed.status_becomes("scheduled", "cancelled").await;
    let worker = worker.ready().await;
    assert!(worker.stop().await.success());
    bed.remove().await;
}

/// A worker notices at run time that an index is missing.
#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_index_is_built_again() {
    let bed = TestBed::new("dropped").await;
    let sink = SmtpSink::start().await;
    populate(&bed).await;
    let worker = WorkerProcess::start(&bed, &sink.url()).await;
    all_indexes_appear(&bed).await;
    for (collection, name) in [
        ("subscriptions", "offramp_scheduled_ends"),
        ("subscriptions", "offramp_natural_ends"),
        ("subscriptions", "offramp_removed"),
        ("subscriptions", "offramp_due"),
        ("accounts", "offramp_due"),
        ("organizations", "offramp_card_organizations"),
    ] {
        bed.database.run_command(doc! { "dropIndexes": collection, "index": name }).await.unwrap();
        index_appears(&bed, collection, name).await;
    }
    let past = Utc::now() - TimeDelta::hours(1);
    let documents = [scheduled("scheduled", past), expiring("natural", 15, "2020-01-01")];
    bed.collection("subscriptions").insert_many(documents).await.unwrap();
    bed.status_becomes("scheduled", "cancelled").await;
    bed.status_becomes("natural", "expired").await;
    let worker = worker.ready().await;
    assert!(worker.stop().await.success());
    bed.remove().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn init_drops_superseded_indexes_only_on_request() {
    let bed = TestBed::new("upgrade").await;
    populate(&bed).await;
    let old = doc! { "createIndexes": "subscriptions", "indexes": [
        { "name": "offramp_expiring", "key": { "status": 1, "expires_on": 1, "_id": 1 },
          "partialFilterExpression": { "expires_on": { "$gt": "" } } },
        { "name": "offramp_scheduled", "key": { "ends_at": 1 },
          "partialFilterExpression": { "status": "cancellation_scheduled" } },
    ] };
    bed.database.run_command(old).await.unwrap();
    let output = tokio::task::spawn_blocking({
        let mut command = offramp(&bed);
        move || command.arg("init").output().unwrap()
    })
    .await
    .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{text}");
    assert!(text.contains("MongoDB: created index subscriptions.offramp_natural_ends in "), "{text}");
    // Workers of the earlier version may still run, and need them.
    assert!(text.contains("only earlier versions use the index subscriptions.offramp_expiring"), "{text}");
    assert!(index_names(&bed, "subscriptions").await.iter().any(|name| name == "offramp_expiring"));
    let output = tokio::task::spawn_blocking({
        let mut command = offramp(&bed);
        move || command.args(["init", "--drop-superseded"]).output().unwrap()
    })
    .await
    .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("MongoDB: dropped index subscriptions.offramp_expiring"), "{text}");
    let names = index_names(&bed, "subscriptions").await;
    assert!(!names.iter().any(|name| name == "offramp_expiring" || name == "offramp_scheduled"), "{names:?}");

    // An index with Offramp's name and other keys is reported to the operator.
    bed.database.run_command(doc! { "dropIndexes": "accounts", "index": "offramp_card_expiry" }).await.unwrap();
    let other = doc! { "createIndexes": "accounts", "indexes": [{ "name": "offramp_card_expiry", "key": { "x": 1 } }] };
    bed.database.run_command(other).await.unwrap();
    let output = tokio::task::spawn_blocking({
        let mut command = offramp(&bed);
        move || command.arg("init").output().unwrap()
    })
    .await
    .unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("accounts.offramp_card_expiry") && text.contains("other keys"), "{text}");
    bed.remove().await;
}
