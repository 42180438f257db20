//! The command line: exit codes, messages, tables and JSON.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use bson::{DateTime, Document, doc};
use serde_json::Value;

use offramp_testkit::eventually;
use offramp_testkit::fixtures::{account, cancellation, organization, populate, subscription, with};
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
fn simulate_reports_each_outcome_without_any_server() {
    let documents = examples().join("documents.jsonl");
    let arguments =
        ["simulate", "--documents", documents.to_str().unwrap(), "--commands", "-", "--today", "2026-06-02"];
    let first = example_commands().lines().next().unwrap().to_owned();
    let again_later_and_wrong = [
        first.clone(),
        first.replace("c-0001", "c-0101").replace("2026-09", "2026-10"),
        first.replace("c-0001", "c-0102").replace("sub-1001", "sub-9999"),
        first.replace("month", "mouth"),
        "nonsense".to_owned(),
    ];
    let input = example_commands() + &again_later_and_wrong.join("\n");

    let answers = succeeds(&mut bare(), &[&arguments[..], &["--json"]].concat(), &input).json();
    let outcome = |answer: &Value| {
        let reason = answer["reason"].as_str().map(|reason| format!(" {reason}")).unwrap_or_default();
        let ends_on = answer["ends_on"].as_str().map(|day| format!(" {day}")).unwrap_or_default();
        let (emails, events) = (answer["mails"].as_array().unwrap().len(), answer["events"].as_array().unwrap().len());
        format!("{}{reason}{ends_on} {emails}+{events}", answer["outcome"].as_str().unwrap())
    };
    let outcomes: Vec<String> = answers.iter().map(outcome).collect();
    assert_eq!(
        outcomes,
        [
            "applied 2026-09-14 1+1",
            "applied 2026-06-30 1+1",
            "applied 1+1",
            "applied 2+1",
            "applied 2026-07-30 1+1",
            "applied 1+1",
            "applied 2026-09-14 2+1",
            "applied 2+1",
            "unchanged 2026-09-14 0+0",
            "rejected later_than_scheduled 2026-09-14 0+1",
            "rejected subscription_not_found 0+1",
            "dead_letter invalid 0+0",
            "dead_letter invalid 0+0",
        ]
    );
    assert_eq!(answers[0]["mails"][0]["subject"], "Abonnement annulé\u{a0}: Natation mensuelle, Léa Tremblay");
    assert_eq!(answers[0]["events"][0]["time"], "2026-06-02T16:00:00.000Z", "noon in Québec");
    assert!(answers[11]["detail"].as_str().unwrap().starts_with("data.mouth: unknown field"));

    let emails = tempfile::tempdir().unwrap();
    let mail_dir = ["--mail-dir", emails.path().to_str().unwrap()];
    let table = succeeds(&mut bare(), &[&arguments[..], &mail_dir].concat(), &input).stdout;
    assert!(table.contains("13 commands: 8 applied, 1 unchanged, 2 rejected, 2 to the dead letters"), "{table}");
    assert!(table.contains("rejected: later_than_scheduled"), "{table}");
    assert_eq!(std::fs::read_dir(emails.path()).unwrap().count(), 11);
}

/// Runs `offramp simulate` with a directory for emails; also returns the number of files in it.
fn simulate(documents: &[Value], commands: &[Value], today: &str) -> (Ran, usize) {
    let lines = |values: &[Value]| values.iter().map(Value::to_string).collect::<Vec<_>>().join("\n");
    let folder = tempfile::tempdir().unwrap();
    let (file, emails) = (folder.path().join("documents.jsonl"), folder.path().join("emails"));
    std::fs::write(&file, lines(documents)).unwrap();
    let (file, directory) = (file.to_str().unwrap(), emails.to_str().unwrap());
    let arguments = ["simulate", "--documents", file, "--commands", "-", "--today", today, "--mail-dir", directory];
    let ran = succeeds(&mut bare(), &arguments, &lines(commands));
    (ran, std::fs::read_dir(emails).unwrap().count())
}

fn document(collection: &str, document: bson::Document) -> Value {
    serde_json::json!({ "collection": collection, "document": serde_json::to_value(document).unwrap() })
}

#[test]
fn simulate_escapes_control_characters_and_counts_files() {
    let id = "s\u{1b}[31mRED\u{1b}]0;title\u{7}\u{9b}2J\u{202e}abc\u{0}";
    let mut client = account("acc", "org");
    client.get_document_mut("manager").unwrap().insert("email", "a\u{1b}[2J@x.example");
    let documents = [
        document("organizations", organization("org")),
        document("accounts", client),
        document("subscriptions", subscription(id, "org", "acc")),
        document("accounts", account("good", "org")),
        document("subscriptions", subscription("good", "org", "good")),
        document("subscriptions", doc! { "_id": "bad\u{1b}[2J" }),
    ];
    let commands = [
        cancellation("c\u{1b}[31m", id),
        cancellation("c2", "no\u{1b}[2J"),
        cancellation("c3", "bad\u{1b}[2J"),
        cancellation("c4", "good"),
    ];
    let (ran, files) = simulate(&documents, &commands, "2199-05-20");
    for said in [&ran.stdout, &ran.stderr] {
        let raw: Vec<char> = said.chars().filter(|c| (c.is_control() && *c != '\n') || *c == '\u{202e}').collect();
        assert!(raw.is_empty(), "{raw:?} in {said}");
    }
    assert!(ran.stdout.contains("\\u{1b}"), "{}", ran.stdout);
    assert_eq!(files, 1, "{}", ran.stdout);
    assert!(ran.stdout.contains("\n1 email written to"), "{}", ran.stdout);
}

#[test]
fn simulate_writes_emails_dated_before_1970() {
    let mut subscription = subscription("sub", "org", "acc");
    subscription.get_document_mut("billing").unwrap().insert("next_on", "1900-02-15");
    let documents = [
        document("organizations", organization("org")),
        document("accounts", account("acc", "org")),
        document("subscriptions", subscription),
    ];
    let (ran, files) = simulate(&documents, &[cancellation("c", "sub")], "1900-01-01");
    assert_eq!(files, 1, "{}", ran.stdout);
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
async fn import_validates_all_lines_first_and_keeps_other_fields() {
    let bed = TestBed::new("import").await;
    let documents = std::fs::read_to_string(examples().join("documents.jsonl")).unwrap();
    let import = |input: &str| run(&mut offramp(&bed), &["import", "-"], input);

    let bad = documents.replace("\"day\": 15", "\"day\": 32");
    let ran = import(&bad);
    assert_eq!(ran.code, Some(1));
    assert!(ran.stderr.contains("line 5: subscriptions sub-1001: billing.day: 32"), "{}", ran.stderr);
    let ran = import(&format!("{documents}{{\"collection\": \"members\", \"document\": {{}}}}\n"));
    assert_eq!(ran.code, Some(1));
    assert!(ran.stderr.contains("line 11: collection: \"members\" is not one of"), "{}", ran.stderr);
    let twice = documents.replace("\"day\": 15", "\"day\": 15, \"day\": 16");
    let ran = import(&twice);
    assert_eq!(ran.code, Some(1));
    assert!(ran.stderr.contains("line 5: document.billing: the key `day` is given twice"), "{}", ran.stderr);
    assert_eq!(bed.document("subscriptions", "sub-1002").await, None, "nothing was imported");

    let ran = import(&documents);
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    assert!(ran.stdout.contains("2 organizations, 2 accounts, 6 subscriptions"), "{}", ran.stdout);
    assert!(ran.stdout.contains("10 created, 0 changed, 0 unchanged"), "{}", ran.stdout);
    let first = bed.document("subscriptions", "sub-1001").await.unwrap();
    assert_eq!(first.get("version"), None, "as the file has it");
    let scheduled = bed.document("subscriptions", "sub-1004").await.unwrap();
    assert_eq!(
        scheduled.get_datetime("ends_at").unwrap(),
        &DateTime::parse_rfc3339_str("2026-06-01T04:00:00Z").unwrap()
    );
    assert_eq!(scheduled.get_i32("version").unwrap(), 3);

    let theirs = doc! { "$set": { "crm": { "$literal": "theirs" }, "outbox": [], "plan.name": "changed" } };
    bed.collection("subscriptions").update_one(doc! { "_id": "sub-1001" }, theirs).await.unwrap();
    let ran = import(&documents);
    assert_eq!(ran.code, Some(0));
    assert!(ran.stdout.contains("0 created, 1 changed, 9 unchanged"), "{}", ran.stdout);
    let again = bed.document("subscriptions", "sub-1001").await.unwrap();
    assert_eq!(again.get_document("crm").unwrap(), &doc! { "$literal": "theirs" });
    assert!(again.get_array("outbox").unwrap().is_empty());
    assert_eq!(again.get_document("plan").unwrap(), first.get_document("plan").unwrap());
    assert_eq!(again.get_i32("version").unwrap(), 1, "an import increments the version");
    let again = bed.document("subscriptions", "sub-1004").await.unwrap();
    assert_eq!(again.get_i32("version").unwrap(), 3, "the file has nothing new for it");

    let ran = run(&mut offramp(&bed), &["import", "-", "--force"], &bad.replace("Natation mensuelle", "$name"));
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    let forced = bed.document("subscriptions", "sub-1001").await.unwrap();
    assert_eq!(forced.get_document("billing").unwrap().get_i32("day").unwrap(), 32);
    assert_eq!(
        forced.get_document("plan").unwrap().get_str("name").unwrap(),
        "$name",
        "a value is never read as an operator"
    );

    let many: Vec<String> = (0..1200)
        .map(|number| {
            let document = serde_json::to_value(organization(&format!("org-{number}"))).unwrap();
            serde_json::json!({ "collection": "organizations", "document": document }).to_string()
        })
        .collect();
    assert_eq!(import(&many.join("\n")).code, Some(0));
    assert_eq!(bed.collection("organizations").count_documents(doc! {}).await.unwrap(), 1202);
    bed.remove().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn import_keeps_what_offramp_decided() {
    let bed = TestBed::new("import-state").await;
    let documents = std::fs::read_to_string(examples().join("documents.jsonl")).unwrap();
    let import = |flags: &[&str]| {
        let arguments: Vec<&str> = ["import", "-"].iter().chain(flags).copied().collect();
        succeeds(&mut offramp(&bed), &arguments, &documents).stdout
    };
    let status =
        async || bed.document("subscriptions", "sub-1004").await.unwrap().get_str("status").unwrap().to_owned();

    let printed = import(&["--dry-run"]);
    assert!(printed.contains("10 to create, 0 to change, 0 unchanged"), "{printed}");
    assert_eq!(bed.document("subscriptions", "sub-1004").await, None, "a dry run writes nothing");
    import(&[]);
    assert_eq!(status().await, "cancellation_scheduled");

    let ended = doc! { "$set": { "status": "cancelled", "ended_on": "2026-05-31", "activities": [] }, "$unset": { "billing.next_on": "" } };
    bed.collection("subscriptions").update_one(doc! { "_id": "sub-1004" }, ended).await.unwrap();
    let printed = import(&[]);
    assert!(
        printed.contains("in 1 of them, what Offramp wrote is kept (activities, billing.next_on, status)"),
        "{printed}"
    );
    assert_eq!(status().await, "cancelled");
    let printed = import(&["--overwrite-state", "--dry-run"]);
    assert!(printed.contains("0 to create, 1 to change, 9 unchanged"), "{printed}");
    assert_eq!(status().await, "cancelled");
    import(&["--overwrite-state"]);
    assert_eq!(status().await, "cancellation_scheduled");

    let removed = doc! { "_id": "sub-1004", "organization_id": "org-1", "account_id": "acc-1", "status": "removed" };
    bed.collection("subscriptions").replace_one(doc! { "_id": "sub-1004" }, removed).await.unwrap();
    let printed = import(&[]);
    assert!(printed.contains("1 subscription left alone"), "{printed}");
    assert_eq!(bed.document("subscriptions", "sub-1004").await.unwrap().get("participant"), None);
    bed.remove().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn import_checks_references_and_repeats() {
    let bed = TestBed::new("import-references").await;
    let line = |collection: &str, document: Document| {
        serde_json::json!({ "collection": collection, "document": document }).to_string()
    };
    let account = |id: &str, organization: &str| line("accounts", account(id, organization));
    let organizations = ["org-1", "org-2"].map(|id| line("organizations", organization(id)));
    succeeds(&mut offramp(&bed), &["import", "-"], &organizations.join("\n"));

    let file = [account("acc-1", "org-1"), account("acc-2", "org-9"), account("acc-1", "org-2")].join("\n");
    let ran = run(&mut offramp(&bed), &["import", "-"], &file);
    assert_eq!(ran.code, Some(1));
    for sentence in [
        "line 3: accounts acc-1 is already in line 1",
        "line 2: accounts acc-2 refers to organizations org-9, which is neither in the file nor in the database",
    ] {
        assert!(ran.stderr.contains(sentence), "{}", ran.stderr);
    }
    assert_eq!(bed.document("accounts", "acc-1").await, None);

    succeeds(&mut offramp(&bed), &["import", "-"], &account("acc-1", "org-1"));
    let ours = line("subscriptions", subscription("sub-0", "org-1", "acc-1"));
    let subscription = format!("{ours}\n{}", line("subscriptions", subscription("sub-1", "org-2", "acc-1")));
    let sentence = "subscriptions sub-1 refers to accounts acc-1, which belongs to another organization";
    fails(&mut offramp(&bed), &["import", "-"], &subscription, 1, sentence);
    succeeds(&mut offramp(&bed), &["import", "-", "--force"], &subscription);
    bed.remove().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn import_warns_of_what_is_probably_not_meant() {
    let bed = TestBed::new("import-doubts").await;
    let line = |collection: &str, document: Document| {
        serde_json::json!({ "collection": collection, "document": document }).to_string()
    };
    // The organization's time zone is known from the database, the other's from a later line of the file.
    bed.collection("organizations").insert_one(organization("org")).await.unwrap();
    let mut nobody = account("acc", "org");
    nobody.get_document_mut("manager").unwrap().extend(doc! { "email": "nobody", "locale": "english!" });
    let end = |id: &str, owner: &str, payer: &str, at: &str| {
        let mut document = subscription(id, owner, payer);
        let at = DateTime::parse_rfc3339_str(at).unwrap();
        let actor = doc! { "role": "admin", "id": "admin-1" };
        document.extend(doc! {
            "status": "cancellation_scheduled", "ends_on": "2199-06-14", "ends_at": at,
            "cancellation": { "by": "admin", "via": "purchases", "scheduled_at": at, "actor": actor },
        });
        document
    };
    let mut odd = subscription("odd", "org", "acc");
    odd.insert("expire_on", "2199-12-31");
    odd.get_document_mut("billing").unwrap().insert("next_on", "2199-06-16");
    let mut paris = organization("paris");
    paris.insert("timezone", "Europe/Paris");
    let file = [
        line("accounts", nobody),
        line("accounts", account("payer", "paris")),
        line("subscriptions", end("right", "org", "acc", "2199-06-15T05:00:00Z")),
        line("subscriptions", end("wrong", "org", "acc", "2200-06-15T05:00:00Z")),
        line("subscriptions", end("far", "paris", "payer", "2199-06-15T05:00:00Z")),
        line("subscriptions", odd),
        line("organizations", paris),
    ]
    .join("\n");
    for flags in [&["--dry-run"][..], &[]] {
        let ran = succeeds(&mut offramp(&bed), &[&["import", "-"], flags].concat(), &file);
        for (warning, says) in [
            ("line 1: accounts acc: manager.email", "it is no email address"),
            ("line 1: accounts acc: manager.locale", "it is no language tag"),
            ("line 4: subscriptions wrong: ends_at", "2199-06-14 is over at 2199-06-15"),
            ("line 5: subscriptions far: ends_at", "Europe/Paris"),
            ("line 6: subscriptions odd: billing.next_on", "2199-06-16 is no billing date"),
            ("line 6: subscriptions odd: expire_on", "probably `expires_on` is meant"),
        ] {
            let printed = format!("standard input: warning: {warning}: ");
            let found = ran.stderr.lines().find(|line| line.starts_with(&printed) && line.contains(says));
            assert!(found.is_some(), "{warning}: {}", ran.stderr);
        }
        assert_eq!(ran.stderr.lines().count(), 6, "{}", ran.stderr);
    }
    assert!(bed.document("subscriptions", "odd").await.is_some(), "a warning prevents nothing");

    let many: Vec<String> = (0..27)
        .map(|number| {
            let mut organization = organization(&format!("org-{number}"));
            organization.insert("locale", "english!");
            line("organizations", organization)
        })
        .collect();
    let ran = succeeds(&mut offramp(&bed), &["import", "-", "--dry-run"], &many.join("\n"));
    assert_eq!(ran.stderr.lines().count(), 21);
    assert!(ran.stderr.contains("… and 7 more warnings"), "{}", ran.stderr);
    bed.remove().await;
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
