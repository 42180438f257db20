//! `simulate`: the rules alone, without servers.

use bson::doc;
use serde_json::Value;

use super::{Ran, example_commands, examples, succeeds};
use offramp_testkit::fixtures::{account, cancellation, organization, subscription};
use offramp_testkit::worker_process::bare;

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
