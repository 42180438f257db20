//! With exactly the rights of docs/operate/rights.md, `offramp check` passes and a worker works; with less, both name what is missing.

use std::io::Read;
use std::process::Stdio;

use bson::{Document, doc};
use mongodb::Client;
use offramp::store::rights::OF_WORKER;
use offramp::store::{SUPPORT_COLLECTIONS, Store};
use offramp::tls::Tls;

use crate::cli::{fails, run, succeeds};
use crate::outages::waiting;
use offramp_testkit::eventually;
use offramp_testkit::fixtures::{cancellation, populate};
use offramp_testkit::private_servers::PrivateServers;
use offramp_testkit::rabbit::User;
use offramp_testkit::smtp_sink::SmtpSink;
use offramp_testkit::test_bed::TestBed;
use offramp_testkit::worker_process::{WorkerProcess, offramp};

const LANES: &str = "cancellation|cancellation-request|cancellation-confirmation|payment-failure|card-expiry";

#[tokio::test(flavor = "multi_thread")]
async fn rabbitmq_rights_are_tried_without_a_message() {
    let bed = TestBed::new("rabbit-rights").await;
    let sink = SmtpSink::start().await;
    populate(&bed).await;
    let p = bed.prefix.clone();
    let events = bed.watch_events().await;
    let (write, read) = (format!("^(amq[.]default|{p}[.](events|retry[.].*))$"), format!("^{p}[.]({LANES})$"));
    let user = User::new(&format!("worker-{p}"), "^$", &write, &read);
    let check = || {
        let mut command = offramp(&bed);
        command.env("OFFRAMP_AMQP_URL", user.amqp_url()).env("OFFRAMP_SMTP_URL", sink.url());
        command
    };
    // Objects are missing, and this user may not create them. RabbitMQ 4.3 does not even tell such a user that they are missing.
    let printed = run(&mut check(), &["check"], "").stdout;
    let says = |sentence: String| printed.contains(&sentence);
    assert!(
        says(format!("configure queue '{p}.dead-letters'"))
            || says("not checked, because this user may not configure".to_owned()),
        "{printed}"
    );
    user.permit(&format!("^{p}"), &write, &read);
    let ran = succeeds(&mut check(), &["check"], "");
    assert!(ran.stdout.contains("creates them"), "{}", ran.stdout);
    assert!(bed.channel.status().connected(), "nothing was created that this channel would collide with");

    succeeds(&mut offramp(&bed), &["init"], "");
    user.permit("^$", &write, &read);
    let ran = succeeds(&mut check(), &["check"], "");
    assert_eq!(ran.stdout.matches('✓').count(), 5, "{}", ran.stdout);
    for (write, read, missing) in [
        (write.as_str(), "^$", format!("read queue '{p}.payment-failure'")),
        ("^amq[.]default$", &read, format!("write exchange '{p}.events'")),
        ("^amq[.]default$", &read, format!("write exchange '{p}.retry.2m'")),
        (&format!("^{p}"), &read, "write exchange 'amq.default'".to_owned()),
    ] {
        user.permit("^$", write, read);
        let ran = fails(&mut check(), &["check"], "", 1, "not as it should be: RabbitMQ");
        assert!(ran.stdout.contains(&missing) && ran.stdout.contains("rights.md"), "{missing}: {}", ran.stdout);
    }
    // No trial left anything behind.
    for queue in ["dead-letters", "cancellation", "payment-failure", "retry.5s", "retry.1h"] {
        assert_eq!(waiting(&bed, queue).await, (0, 0), "{queue}");
    }
    assert!(events.take(&bed).await.is_empty());

    // A worker without the right to the default exchange works, says so, and recovers.
    user.permit("^$", &format!("^{p}"), &read);
    let url = user.amqp_url();
    let worker = WorkerProcess::spawn(&bed, &sink.url(), &[("OFFRAMP_AMQP_URL", &url)], Stdio::null());
    eventually("a worker that names the exchange", || async {
        worker.readyz().await.filter(|answer| answer.status == 503 && answer.body.contains("'amq.default'"))
    })
    .await;
    user.permit("^$", &write, &read);
    let worker = worker.ready().await;
    bed.command(&cancellation("c-1", "sub")).await;
    events.next(&bed, |event| event["type"] == "subscription.cancellation-scheduled").await;
    assert!(worker.stop().await.success());
    bed.remove().await;
}

#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread")]
async fn mongodb_rights_are_exactly_those_that_check_requires() {
    let directory = tempfile::tempdir().unwrap();
    let secret = directory.path().join("secret");
    std::fs::write(&secret, "ofThisTestAlone2").unwrap();
    let servers = PrivateServers::start(&["mongodb"], vec![("OFFRAMP_SERVICES_USERS", secret)]);
    let port = servers.port("mongodb");
    let url = |user: &str| format!("mongodb://{user}127.0.0.1:{port}/admin?directConnection=true&authSource=admin");
    let anybody = Client::with_uri_str(url("")).await.unwrap();
    let root = doc! { "createUser": "root", "pwd": "root", "roles": ["root"] };
    anybody.database("admin").run_command(root).await.unwrap();
    let bed = TestBed::at("mongo-rights", &url("root:root@")).await;
    let run = async |command: Document| {
        bed.database.client().database("admin").run_command(command).await.unwrap();
    };
    let privilege = |collection: &str, action: &str| {
        doc! { "resource": { "db": bed.database.name(), "collection": collection }, "actions": [action] }
    };
    let exactly: Vec<Document> = OF_WORKER.iter().map(|right| privilege(right.collection, right.action)).collect();
    run(doc! { "createRole": "worker", "privileges": exactly, "roles": [] }).await;
    run(doc! { "createUser": "worker", "pwd": "worker", "roles": ["worker"] }).await;
    let limited = bed.mongodb_url.replace("root:root", "worker:worker");
    let store = Store::open(&limited, &Tls::default()).await.unwrap();
    let root = Store::open(&bed.mongodb_url, &Tls::default()).await.unwrap();
    let mut all = root.missing_indexes().await.unwrap();
    // Of collections that this user has no right to, nothing is known.
    all.retain(|index| !SUPPORT_COLLECTIONS.contains(&index.collection));
    assert!(!all.is_empty());
    assert_eq!(store.missing_indexes().await.unwrap(), all, "a collection that does not exist has no index");
    populate(&bed).await;
    assert_eq!(store.missing_indexes().await.unwrap(), all);
    let sink = SmtpSink::start().await;
    let check = |mongodb_url: &str| {
        let mut command = offramp(&bed);
        command.env("OFFRAMP_MONGODB_URL", mongodb_url).env("OFFRAMP_SMTP_URL", sink.url());
        command
    };
    let ran = fails(&mut check(&limited), &["check"], "", 1, "not as it should be: MongoDB");
    assert!(ran.stdout.contains("this user may not create them: run `offramp init`"), "{}", ran.stdout);
    succeeds(&mut offramp(&bed), &["init"], "");
    let ran = succeeds(&mut check(&limited), &["check"], "");
    assert!(ran.stdout.contains("user worker@admin has the rights that a worker needs"), "{}", ran.stdout);

    let ran = fails(&mut check(&bed.mongodb_url.replace("root:root", "worker:wrong")), &["check"], "", 1, "MongoDB");
    assert!(ran.stdout.contains("MongoDB denies access: the login failed"), "{}", ran.stdout);
    assert!(!ran.stdout.contains("does not answer"), "{}", ran.stdout);
    let ran = fails(&mut check(&bed.mongodb_url.replace("root:root@", "")), &["check"], "", 1, "MongoDB");
    assert!(ran.stdout.contains("requires a login"), "{}", ran.stdout);

    assert!(store.missing_indexes().await.unwrap().is_empty(), "known without the right to list indexes");
    for right in OF_WORKER {
        let privileges = [privilege(right.collection, right.action)];
        run(doc! { "revokePrivilegesFromRole": "worker", "privileges": &privileges[..] }).await;
        assert_eq!(store.user_rights().await.unwrap().missing(), [right]);
        run(doc! { "grantPrivilegesToRole": "worker", "privileges": &privileges[..] }).await;
    }
    assert!(store.user_rights().await.unwrap().missing().is_empty());

    // A worker reports a right before it needs it, once.
    let remove = [privilege("subscriptions", "remove")];
    run(doc! { "revokePrivilegesFromRole": "worker", "privileges": &remove[..] }).await;
    let ran = fails(&mut check(&limited), &["check"], "", 1, "not as it should be: MongoDB");
    assert!(ran.stdout.contains("the user worker@admin lacks rights: `remove` on `subscriptions`"), "{}", ran.stdout);
    let settings = [("OFFRAMP_MONGODB_URL", limited.as_str())];
    let mut worker = WorkerProcess::spawn(&bed, &sink.url(), &settings, Stdio::piped());
    let mut stderr = worker.take_log();
    let log = tokio::task::spawn_blocking(move || {
        let mut log = String::new();
        stderr.read_to_string(&mut log).map(|_| log)
    });
    eventually("a worker that names the right", || async {
        let named = "the database user worker@admin lacks rights: remove on subscriptions";
        worker.readyz().await.filter(|answer| answer.status == 503 && answer.body.contains(named))
    })
    .await;
    run(doc! { "grantPrivilegesToRole": "worker", "privileges": &remove[..] }).await;
    let worker = worker.ready().await;
    bed.command(&cancellation("c-1", "sub")).await;
    eventually("a sent email", || async {
        let sent = doc! { "status": "cancellation_scheduled", "notifications.sent_at": { "$exists": true } };
        bed.collection("subscriptions").find_one(sent).await.unwrap()
    })
    .await;
    assert!(worker.stop().await.success());
    let log = log.await.unwrap().unwrap();
    assert_eq!(log.matches("lacks rights").count(), 1, "{log}");
    assert!(!log.contains("building an index"), "{log}");
    bed.remove().await;
}
