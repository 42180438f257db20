//! Rejected commands are recorded for 30 days, and nothing depends on it.

use super::*;
use std::io::Read;
use std::process::Stdio;

use mongodb::Client;
use offramp::store::rights::{OF_WORKER, TO_RECORD_REJECTED_COMMANDS};
use offramp_testkit::fixtures::{cancellation, populate, with};
use offramp_testkit::private_servers::PrivateServers;
use offramp_testkit::smtp_sink::SmtpSink;
use offramp_testkit::worker_process::WorkerProcess;

#[tokio::test(flavor = "multi_thread")]
async fn a_rejected_command_is_recorded_once_and_expires() {
    let bed = TestBed::new("rejected").await;
    let sink = SmtpSink::start().await;
    populate(&bed).await;
    let events = bed.watch_events().await;
    let worker = WorkerProcess::start(&bed, &sink.url()).await;
    let wrong = with(cancellation("c-1", "sub"), "month", "2199-01".into());
    bed.command(&wrong).await;
    let rejected = recorded(&bed, "c-1").await;
    let event = events.next(&bed, |event| event["type"] == "command.rejected").await;
    assert_eq!(rejected.get_str("_id").unwrap(), event["id"]);
    let expected = doc! {
        "command": { "source": "tests", "id": "c-1", "type": "subscription.cancellation" },
        "organization_id": "org", "subscription_id": "sub", "account_id": "acc", "reason": "month_already_invoiced",
        "detail": event["data"]["detail"].as_str().unwrap(),
        "actor": { "role": "admin", "id": "admin-1", "name": "Paul" },
    };
    for (field, value) in expected {
        assert_eq!(rejected.get(&field), Some(&value), "{field}");
    }
    // A repeat adds nothing, and does not move the date of the first.
    bed.command(&wrong).await;
    events.next(&bed, |event| event["type"] == "command.rejected").await;
    bed.command(&with(cancellation("c-2", "sub"), "month", "2199-02".into())).await;
    recorded(&bed, "c-2").await;
    assert_eq!(recorded(&bed, "c-1").await, rejected);
    assert_eq!(bed.collection("rejected_commands").count_documents(doc! {}).await.unwrap(), 2);
    assert!(worker.stop().await.success());

    let indexes: Vec<_> =
        bed.collection("rejected_commands").list_indexes().await.unwrap().try_collect().await.unwrap();
    let expiry = indexes.iter().filter_map(|index| index.options.as_ref()?.expire_after).collect::<Vec<_>>();
    assert_eq!(expiry, [std::time::Duration::from_secs(30 * 24 * 60 * 60)]);
    bed.remove().await;
}

#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread")]
async fn a_worker_without_the_right_to_record_them_rejects_them_all_the_same() {
    let directory = tempfile::tempdir().unwrap();
    let secret = directory.path().join("secret");
    std::fs::write(&secret, "ofThisTestAlone3").unwrap();
    let servers = PrivateServers::start(&["mongodb"], vec![("OFFRAMP_SERVICES_USERS", secret)]);
    let port = servers.port("mongodb");
    let url = |user: &str| format!("mongodb://{user}127.0.0.1:{port}/admin?directConnection=true&authSource=admin");
    let anybody = Client::with_uri_str(url("")).await.unwrap();
    let root = doc! { "createUser": "root", "pwd": "root", "roles": ["root"] };
    anybody.database("admin").run_command(root).await.unwrap();
    let bed = TestBed::at("rejected-rights", &url("root:root@")).await;
    let admin = async |command: Document| {
        bed.database.client().database("admin").run_command(command).await.unwrap();
    };
    let privilege = |collection: &str, action: &str| {
        doc! { "resource": { "db": bed.database.name(), "collection": collection }, "actions": [action] }
    };
    let exactly: Vec<Document> = OF_WORKER.iter().map(|right| privilege(right.collection, right.action)).collect();
    admin(doc! { "createRole": "worker", "privileges": exactly, "roles": [] }).await;
    admin(doc! { "createUser": "worker", "pwd": "worker", "roles": ["worker"] }).await;
    populate(&bed).await;
    succeeds(&mut offramp(&bed), &["init"], "");
    let limited = bed.mongodb_url.replace("root:root", "worker:worker");
    let sink = SmtpSink::start().await;
    let mut check = offramp(&bed);
    check.env("OFFRAMP_MONGODB_URL", &limited).env("OFFRAMP_SMTP_URL", sink.url());
    let ran = succeeds(&mut check, &["check"], "");
    assert!(ran.stdout.contains("without the right `insert` on `rejected_commands`"), "{}", ran.stdout);

    let events = bed.watch_events().await;
    let reject = async |id: &str| {
        bed.command(&with(cancellation(id, "sub"), "month", "2199-01".into())).await;
        events.next(&bed, |event| event["type"] == "command.rejected").await;
    };
    let settings = [("OFFRAMP_MONGODB_URL", limited.as_str())];
    let mut worker = WorkerProcess::spawn(&bed, &sink.url(), &settings, Stdio::piped());
    let mut stderr = worker.take_log();
    let log = tokio::task::spawn_blocking(move || {
        let mut log = String::new();
        stderr.read_to_string(&mut log).map(|_| log)
    });
    let worker = worker.ready().await;
    reject("c-1").await;
    reject("c-2").await;
    bed.command(&cancellation("c-3", "sub")).await;
    eventually("a decided command", || async {
        bed.collection("subscriptions").find_one(doc! { "status": "cancellation_scheduled" }).await.unwrap()
    })
    .await;
    assert_eq!(worker.readyz().await.unwrap().status, 200);
    assert!(worker.stop().await.success());
    let log = log.await.unwrap().unwrap();
    assert_eq!(log.matches("cannot record rejected commands").count(), 1, "{log}");
    assert!(log.contains("lacks the right `insert` on `rejected_commands`"), "{log}");
    assert_eq!(bed.collection("rejected_commands").count_documents(doc! {}).await.unwrap(), 0);
    // Support staff without the right to read them see everything else.
    let mut show = offramp(&bed);
    let ran = succeeds(show.env("OFFRAMP_MONGODB_URL", &limited), &["show", "sub"], "");
    assert!(ran.stdout.contains("rejected commands cannot be shown: "), "{}", ran.stdout);
    let mut find = offramp(&bed);
    let ran = succeeds(find.env("OFFRAMP_MONGODB_URL", &limited), &["find", "c-3"], "");
    assert!(ran.stderr.contains("rejected commands cannot be searched: "), "{}", ran.stderr);

    let right = TO_RECORD_REJECTED_COMMANDS;
    let privileges = [privilege(right.collection, right.action)];
    admin(doc! { "grantPrivilegesToRole": "worker", "privileges": &privileges[..] }).await;
    let worker = WorkerProcess::spawn(&bed, &sink.url(), &settings, Stdio::null()).ready().await;
    reject("c-4").await;
    recorded(&bed, "c-4").await;
    assert!(worker.stop().await.success());
    bed.remove().await;
}
