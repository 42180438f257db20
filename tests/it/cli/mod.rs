//! The command line: exit codes, messages, tables and JSON.

mod import;
mod simulate;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use bson::{DateTime, doc};
use serde_json::Value;

use offramp_testkit::eventually;
use offramp_testkit::fixtures::{cancellation, populate, subscription, with};
use offramp_testkit::process;
use offramp_testkit::smtp_sink::{Action, SmtpSink, Step, Tls};
use offramp_testkit::test_bed::TestBed;
use offramp_testkit::worker_process::{WorkerProcess, bare, offramp};

/// The exit code and output of a finished program.
pub struct Ran {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Ran {
    pub fn json(&self) -> Vec<Value> {
        self.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

#[track_caller]
pub fn run(command: &mut Command, arguments: &[&str], input: &str) -> Ran {
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = process::run(command, Command::spawn).unwrap();
    // The program may exit without reading all its input.
    drop(child.stdin.take().unwrap().write_all(input.as_bytes()));
    let Output { status, stdout, stderr } = child.wait_with_output().unwrap();
    Ran { code: status.code(), stdout: String::from_utf8(stdout).unwrap(), stderr: String::from_utf8(stderr).unwrap() }
}

#[track_caller]
pub fn succeeds(command: &mut Command, arguments: &[&str], input: &str) -> Ran {
    let ran = run(command, arguments, input);
    assert_eq!(ran.code, Some(0), "{arguments:?}: {}{}", ran.stdout, ran.stderr);
    ran
}

#[track_caller]
pub fn fails(command: &mut Command, arguments: &[&str], input: &str, code: i32, says: &str) -> Ran {
    let ran = run(command, arguments, input);
    assert_eq!(ran.code, Some(code), "{arguments:?}: {}{}", ran.stdout, ran.stderr);
    assert!(ran.stderr.contains(says), "{arguments:?} says: {}", ran.stderr);
    ran
}

fn examples() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("schemas/examples")
}

/// The example commands as JSON Lines, ordered by id.
fn example_commands() -> String {
    let files = std::fs::read_dir(examples().join("commands")).unwrap();
    let mut commands: Vec<Value> = files
        .map(|file| serde_json::from_str(&std::fs::read_to_string(file.unwrap().path()).unwrap()).unwrap())
        .collect();
    commands.sort_by_key(|command| command["id"].as_str().unwrap().to_owned());
    commands.iter().map(Value::to_string).collect::<Vec<_>>().join("\n") + "\n"
}

#[test]
fn usage_errors_exit_with_2_and_explain_themselves() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("url");
    std::fs::write(&path, "mongodb://app:s3cret@db\n").unwrap();
    let file = path.to_str().unwrap();

    fails(&mut bare(), &["simulate"], "", 2, "--documents <FILE>");
    fails(&mut bare(), &["show", "sub", "--mongodb-url", "db"], "", 2, "OFFRAMP_MONGODB_URL (--mongodb-url) cannot be");
    let with_file = |name: &str, value: &str| {
        let mut command = bare();
        command.env("OFFRAMP_MONGODB_URL_FILE", file).env(name, value);
        command
    };
    let ran =
        fails(&mut with_file("NOTHING", ""), &["show", "sub"], "", 2, "\"mongodb://***@db\": it names no database");
    assert!(!ran.stderr.contains("s3cret"), "{}", ran.stderr);
    let set = "mongodb://localhost/x";
    fails(
        &mut with_file("OFFRAMP_MONGODB_URL", set),
        &["show", "sub"],
        "",
        2,
        "and OFFRAMP_MONGODB_URL_FILE are both set",
    );
    // An empty variable counts as unset.
    fails(&mut with_file("OFFRAMP_MONGODB_URL", ""), &["show", "sub"], "", 2, "it names no database");
    let help = succeeds(&mut with_file("OFFRAMP_AMQP_URL", "amqp://app:s3cret@rabbit"), &["run", "--help"], "").stdout;
    assert!(help.contains("OFFRAMP_SHUTDOWN_SECONDS") && !help.contains("s3cret"), "{help}");
    let version = succeeds(&mut bare(), &["--version"], "").stdout;
    assert_eq!(version, format!("offramp {}\n", env!("CARGO_PKG_VERSION")));
}

#[test]
fn a_closed_stdout_is_not_an_error() {
    let mut child = bare()
        .args(["schemas", "documents/subscriptions"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let Output { status, stderr, .. } = child.wait_with_output().unwrap();
    assert!(status.success(), "{}", String::from_utf8_lossy(&stderr));
}

#[test]
fn schemas_are_listed_printed_and_checked() {
    let list = succeeds(&mut bare(), &["schemas", "--json"], "").json();
    assert_eq!(list.len(), 20);
    let schema = succeeds(&mut bare(), &["schemas", "events/command.rejected"], "").stdout;
    assert!(serde_json::from_str::<Value>(&schema).unwrap()["properties"]["data"].is_object());
    fails(&mut bare(), &["schemas", "events/none"], "", 2, "there is no schema \"events/none\"");

    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().to_str().unwrap();
    fails(&mut bare(), &["schemas", "--check", path], "", 1, "commands/payment.failure.schema.json");
    succeeds(&mut bare(), &["schemas", "--write", path], "");
    succeeds(&mut bare(), &["schemas", "--check", path], "");
}

#[tokio::test(flavor = "multi_thread")]
async fn publish_validates_all_commands_first_and_awaits_confirms() {
    let bed = TestBed::new("publish").await;
    let commands = example_commands();
    let publish = |input: &str| run(&mut offramp(&bed), &["publish", "-"], input);

    let ran = publish(&commands);
    assert_eq!(ran.code, Some(1));
    assert!(ran.stderr.contains("run `offramp init` first"), "{}", ran.stderr);
    let ran = succeeds(&mut offramp(&bed), &["init"], "");
    assert!(ran.stdout.contains(&format!("created queue '{}.dead-letters'", bed.prefix)), "{}", ran.stdout);
    assert!(ran.stdout.contains("MongoDB: created index subscriptions.offramp_due"), "{}", ran.stdout);
    let ran = succeeds(&mut offramp(&bed), &["init"], "");
    assert!(ran.stdout.contains("0 objects created, 18 were there"), "{}", ran.stdout);
    assert!(ran.stdout.contains("MongoDB: 0 indexes created"), "{}", ran.stdout);

    let misspelt = commands.replace("final_billing_date", "final_biling_date");
    let ran = publish(&misspelt);
    assert_eq!(ran.code, Some(1));
    assert!(ran.stderr.contains("line 5: data.final_biling_date: unknown field"), "{}", ran.stderr);
    assert_eq!(bed.take("cancellation").await, None, "nothing was published");

    let ran = publish(&commands);
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    assert!(ran.stdout.contains("published 8 commands"), "{}", ran.stdout);
    let (body, properties) = bed.take("cancellation").await.unwrap();
    assert_eq!(body, commands.lines().next().unwrap().as_bytes(), "byte for byte");
    assert_eq!(properties.message_id().as_ref().unwrap().as_str(), "c-0001");
    assert_eq!(*properties.delivery_mode(), Some(2));
    for (queue, count) in [("cancellation", 2), ("cancellation-confirmation", 2), ("card-expiry", 1)] {
        for _ in 0..count {
            assert!(bed.take(queue).await.is_some(), "{queue}");
        }
        assert!(bed.take(queue).await.is_none(), "{queue}");
    }

    // `--force` publishes invalid commands, to test the worker with them.
    succeeds(&mut offramp(&bed), &["publish", "-", "--force"], &misspelt.lines().nth(4).unwrap().replace('\n', ""));
    assert!(bed.take("cancellation-confirmation").await.is_some());
    let pretty = serde_json::to_string_pretty(&cancellation("pretty", "sub")).unwrap();
    assert!(publish(&format!("{pretty}\n{pretty}\n")).stdout.contains("published 2 commands"));
    bed.remove().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn check_reports_problems_and_changes_nothing() {
    let bed = TestBed::new("check").await;
    let sink = SmtpSink::start().await;
    let check = || {
        let mut command = offramp(&bed);
        command.env("OFFRAMP_SMTP_URL", sink.url());
        command
    };
    let ran = succeeds(&mut check(), &["check"], "");
    assert_eq!(ran.stdout.matches('✓').count(), 5, "{}", ran.stdout);
    assert!(ran.stdout.contains("with no objects yet"), "{}", ran.stdout);
    let rabbitmq = ran.stdout.lines().find(|line| line.contains("RabbitMQ")).expect("a line about RabbitMQ");
    let version = rabbitmq.split_once(", version ").expect("its version").1.split(',').next().unwrap();
    let numbers: Vec<u32> = version.split('.').map(|number| number.parse().expect("a number")).collect();
    // An old version is a hint, not an error.
    assert_eq!(ran.stdout.contains("Upgrade to 4.3.3"), numbers < vec![4, 3, 3], "{}", ran.stdout);
    assert!(succeeds(&mut check(), &["check"], "").stdout.contains("with no objects yet"), "check creates nothing");
    assert!(bed.database.list_collection_names().await.unwrap().is_empty(), "check creates nothing");
    succeeds(&mut offramp(&bed), &["init"], "");
    let findings = succeeds(&mut check(), &["check", "--json"], "").json();
    assert!(findings.iter().all(|finding| finding["ok"] == true), "{findings:?}");
    let rabbitmq = findings.iter().find(|finding| finding["check"] == "RabbitMQ").unwrap();
    assert!(rabbitmq["detail"].as_str().unwrap().contains("18 objects as they should be"), "{findings:?}");
    let mail = findings.iter().find(|finding| finding["check"] == "mail").unwrap();
    assert!(mail["detail"].as_str().unwrap().contains("accepts EHLO"), "{findings:?}");
    assert!(sink.emails().is_empty() && !sink.commands().iter().any(|line| line.starts_with("RCPT")), "no recipient");

    let ran =
        fails(check().env("OFFRAMP_AMPQ_URL", "amqp://typo/"), &["check"], "", 2, "not as it should be: settings");
    assert!(ran.stdout.contains("✗ OFFRAMP_AMPQ_URL is no setting; did you mean OFFRAMP_AMQP_URL?"), "{}", ran.stdout);
    let ran =
        fails(offramp(&bed).env("OFFRAMP_MONGO_URL", "x"), &["show", "nobody"], "", 1, "there is no subscription");
    assert!(
        ran.stderr.contains("OFFRAMP_MONGO_URL is no setting; did you mean OFFRAMP_MONGODB_URL?"),
        "{}",
        ran.stderr
    );
    let missing = tempfile::tempdir().unwrap().path().join("emails");
    let url = format!("file://{}", missing.display());
    let ran = succeeds(&mut check(), &["check", "--smtp-url", &url], "");
    assert!(ran.stdout.contains("the directory is missing") && !missing.exists(), "{}", ran.stdout);
    let rejecting = SmtpSink::scripted(Tls::No, |step, _| match step {
        Step::Mail => Action::Answer("550 5.7.1 Sender address rejected: not owned by user"),
        _ => Action::Ok,
    });
    let rejecting = rejecting.await;
    let ran = fails(&mut check(), &["check", "--smtp-url", &rejecting.url()], "", 1, "not as it should be: mail");
    assert!(ran.stdout.contains("MAIL: 550 5.7.1 Sender address rejected"), "{}", ran.stdout);
    assert!(ran.stdout.contains("see OFFRAMP_MAIL_FROM") && !ran.stdout.contains("unavailable"), "{}", ran.stdout);

    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("fr")).unwrap();
    std::fs::write(
        folder.path().join("fr/request-declined.account_manager.txt"),
        "Refus\n\n{{#if paticipant}}x{{/if}}\n",
    )
    .unwrap();
    let templates = ["check", "--templates", folder.path().to_str().unwrap()];
    let ran = fails(&mut check(), &templates, "", 2, "not as it should be: templates");
    assert!(ran.stdout.contains("fr/request-declined.account_manager.txt"), "{}", ran.stdout);

    let ran = fails(&mut check(), &["check", "--smtp-url", "smtp://127.0.0.1:1"], "", 1, "not as it should be: mail");
    assert!(ran.stdout.contains("✗ mail") && ran.stdout.contains("127.0.0.1:1"), "{}", ran.stdout);
    let unreachable = "amqp://app:s3cret@127.0.0.1:1";
    let ran = fails(&mut check(), &["check", "--amqp-url", unreachable], "", 1, "not as it should be: RabbitMQ");
    assert!(ran.stdout.contains("127.0.0.1:1") && !ran.stdout.contains("s3cret"), "{}", ran.stdout);
    let key = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(key.path(), offramp_testkit::dkim::ED25519).unwrap();
    let signing = || {
        let mut command = check();
        command.env("OFFRAMP_DKIM_KEY_FILE", key.path());
        command
    };
    let ran = succeeds(&mut signing(), &["check", "--dkim-selector", "s1"], "");
    let record = "s1._domainkey.offramp.example  v=DKIM1; k=ed25519; p=VXfLKMz+y0zkqspuFSbUuyNKiRjJIP8IfvTUdyEbTfk=";
    assert!(ran.stdout.contains("✓ DKIM") && ran.stdout.contains(record), "{}", ran.stdout);
    assert!(!ran.stdout.contains("DMARC"), "{}", ran.stdout);
    let elsewhere = ["check", "--dkim-selector", "s1", "--dkim-domain", "example.com"];
    let ran = succeeds(&mut signing(), &elsewhere, "");
    assert!(ran.stdout.contains("! DKIM"), "{}", ran.stdout);
    assert!(ran.stdout.contains("DMARC asks for a signature of offramp.example"), "{}", ran.stdout);
    let ran = fails(&mut signing(), &["check"], "", 2, "not as it should be: DKIM");
    assert!(ran.stdout.contains("OFFRAMP_DKIM_SELECTOR is not"), "{}", ran.stdout);
    fails(&mut signing(), &["run"], "", 2, "OFFRAMP_DKIM_SELECTOR is not");
    std::fs::write(key.path(), "s3cret").unwrap();
    let ran = fails(&mut signing(), &["run"], "", 2, "OFFRAMP_DKIM_KEY (--dkim-key) has an invalid value: it is");
    assert!(!ran.stderr.contains("s3cret"), "{}", ran.stderr);
    let unreachable = "mongodb://127.0.0.1:1/x?serverSelectionTimeoutMS=200";
    fails(&mut check(), &["check", "--mongodb-url", unreachable], "", 1, "not as it should be: MongoDB");
    fails(
        &mut check(),
        &["check", "--mail-from", "nobody"],
        "",
        2,
        "OFFRAMP_MAIL_FROM (--mail-from) cannot be \"nobody\"",
    );
    bed.remove().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn show_prints_the_timeline_of_a_subscription() {
    let bed = TestBed::new("show").await;
    let sink = SmtpSink::start().await;
    populate(&bed).await;
    let mut expiring = subscription("sub-2", "org", "acc");
    expiring.insert("expires_on", "2200-01-20");
    let actor = doc! { "role": "client", "account_id": "acc", "name": "Ada" };
    let requested_at = DateTime::parse_rfc3339_str("2026-05-20T12:00:00Z").unwrap();
    expiring.insert("status", "cancellation_requested");
    expiring.insert("cancellation_request", doc! { "requested_at": requested_at, "actor": actor, "reason": "Moving" });
    bed.collection("subscriptions").insert_one(expiring).await.unwrap();

    let worker = WorkerProcess::start(&bed, &sink.url()).await;
    bed.command(&with(cancellation("c-1", "sub"), "month", "2199-07".into())).await;
    offramp_testkit::eventually("the change", || async {
        let document = bed.document("subscriptions", "sub").await?;
        document.get_array("notifications").is_ok_and(|sent| sent.len() == 1).then_some(())
    })
    .await;
    assert!(worker.stop().await.success());

    let text = succeeds(&mut offramp(&bed), &["show", "sub"], "").stdout;
    for part in [
        "Status              cancellation scheduled",
        "Next billing date   2199-06-15",
        "Last day of access  2199-07-14",
        "Last invoice        2199-06-15",
        "Timeline (America/Toronto)",
        "active → cancellation scheduled, last day 2199-07-14, by admin Paul (subscription.cancellation c-1 from tests)",
        "email cancelled-by-admin to acc@home.example (account manager, en-CA)",
    ] {
        assert!(text.contains(part), "{part:?} is not in\n{text}");
    }
    let text = succeeds(&mut offramp(&bed), &["show", "sub-2"], "").stdout;
    assert!(text.contains("Expiry date         2200-01-20, so the last day of access is 2200-02-14"), "{text}");
    assert!(text.contains("Pending request     since 2026-05-20 08:00:00, client Ada: Moving"), "{text}");

    let json: Value =
        serde_json::from_str(&succeeds(&mut offramp(&bed), &["show", "sub", "--json"], "").stdout).unwrap();
    assert_eq!((&json["status"], &json["ends_on"]), (&"cancellation_scheduled".into(), &"2199-07-14".into()));
    let kinds: Vec<&Value> = json["timeline"].as_array().unwrap().iter().map(|happened| &happened["kind"]).collect();
    assert_eq!(kinds, ["change", "email"]);
    fails(&mut offramp(&bed), &["show", "nobody"], "", 1, "there is no subscription or account nobody in the database");
    bed.remove().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn show_explains_that_ids_must_be_text() {
    let bed = TestBed::new("object-id").await;
    let id = bson::oid::ObjectId::new();
    bed.collection("subscriptions").insert_one(doc! { "_id": id }).await.unwrap();
    let id = id.to_hex();
    fails(&mut offramp(&bed), &["show", &id], "", 1, "ids must be text");
    let other = bson::oid::ObjectId::new().to_hex();
    fails(&mut offramp(&bed), &["show", &other], "", 1, "there is no subscription");
    let said = fails(&mut offramp(&bed), &["show", "\u{1b}[2J"], "", 1, "there is no subscription");
    assert!(!said.stderr.contains('\u{1b}'), "{}", said.stderr);
    bed.remove().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn show_escapes_control_characters() {
    let bed = TestBed::new("show-control").await;
    populate(&bed).await;
    let hostile = doc! { "$set": { "participant.name": "Zoé\u{1b}[2J", "activities.0.name": "Aqua\u{9b}31m" } };
    bed.collection("subscriptions").update_one(doc! {}, hostile).await.unwrap();
    let ran = succeeds(&mut offramp(&bed), &["show", "sub"], "");
    assert!(!ran.stdout.contains(['\u{1b}', '\u{9b}']), "{}", ran.stdout);
    assert!(ran.stdout.contains("Zoé\\u{1b}[2J"), "{}", ran.stdout);
    bed.remove().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn healthcheck_says_whether_the_worker_is_alive_and_what_is_not_ready() {
    let check = |port: u16, arguments: &[&str]| {
        // A worker that listens on all addresses is asked on this machine.
        let mut command = bare();
        command.env("OFFRAMP_HTTP_ADDR", format!("0.0.0.0:{port}"));
        run(&mut command, &[&["healthcheck"], arguments].concat(), "")
    };
    let bed = TestBed::new("healthcheck").await;
    let worker = WorkerProcess::start(&bed, &SmtpSink::start().await.url()).await;
    for (arguments, says) in [(&[][..], "alive\n"), (&["--ready"], "ready\n")] {
        let ran = check(worker.port(), arguments);
        assert_eq!((ran.code, ran.stdout.as_str()), (Some(0), says), "{}", ran.stderr);
    }
    let port = worker.port();
    worker.stop().await;
    let stopped = check(port, &[]);
    assert_eq!(stopped.code, Some(1), "{}", stopped.stdout);
    assert!(stopped.stderr.contains(&format!("no response from http://127.0.0.1:{port}/livez")), "{}", stopped.stderr);

    let mut unreachable = offramp(&bed);
    let worker = WorkerProcess::of(unreachable.env("OFFRAMP_AMQP_URL", "amqp://127.0.0.1:1/%2f"), Stdio::null());
    eventually("a worker that is alive", || async { (check(worker.port(), &[]).code == Some(0)).then_some(()) }).await;
    let unready = check(worker.port(), &["--ready"]);
    assert_eq!(unready.code, Some(1), "{}", unready.stdout);
    assert!(unready.stdout.lines().any(|line| line.starts_with("rabbitmq: ")), "{}", unready.stdout);
    assert!(unready.stderr.contains("not ready: ") && unready.stderr.contains("rabbitmq"), "{}", unready.stderr);
    worker.stop().await;

    fails(&mut bare(), &["healthcheck", "--http-addr", "127.0.0.1:0"], "", 2, "OFFRAMP_HTTP_ADDR has port 0");
    bed.remove().await;
}
