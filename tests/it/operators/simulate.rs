//! `offramp simulate --from-database`: what commands would do to documents as they are in the database.

use bson::{Bson, Document, doc};
use serde_json::{Value, json};

use super::{failure, objects, output};
use offramp_testkit::eventually;
use offramp_testkit::fixtures::{account, cancellation, command, organization, populate, subscription, with};
use offramp_testkit::smtp_sink::SmtpSink;
use offramp_testkit::test_bed::TestBed;
use offramp_testkit::worker_process::WorkerProcess;

/// A file of commands.
fn file(commands: &[Value]) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    let lines: Vec<String> = commands.iter().map(Value::to_string).collect();
    std::fs::write(file.path(), lines.join("\n")).unwrap();
    file
}

fn expiry(id: &str, account: &str) -> Value {
    let card = json!({ "id": "card", "brand": "Visa", "last4": "4242", "expires": "2199-06" });
    command(id, "card.expiry", json!({ "organization_id": "org", "account_id": account, "card": card }))
}

/// Template and recipient of each email, sorted.
fn emails(list: impl Iterator<Item = (String, String)>) -> Vec<(String, String)> {
    let mut emails: Vec<_> = list.collect();
    emails.sort();
    emails
}

fn simulated_emails(answers: &[&Value]) -> Vec<(String, String)> {
    let text = |mail: &Value, field: &str| mail[field].as_str().unwrap().to_owned();
    let mails = answers.iter().flat_map(|answer| answer["mails"].as_array().unwrap());
    emails(mails.map(|mail| (text(mail, "template"), text(mail, "to"))))
}

fn recorded_emails(document: &Document) -> Vec<(String, String)> {
    let text = |entry: &Bson, field: &str| entry.as_document().unwrap().get_str(field).unwrap().to_owned();
    let entries = document.get_array("notifications").unwrap();
    emails(entries.iter().map(|entry| (text(entry, "template"), text(entry, "to"))))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_simulation_from_the_database_says_what_the_worker_then_does() {
    let bed = TestBed::new("simulate").await;
    let sink = SmtpSink::start().await;
    populate(&bed).await;
    let request = json!({ "organization_id": "org", "subscription_id": "sub", "actor": { "role": "client", "account_id": "acc" } });
    let mut later = with(cancellation("later", "sub"), "month", json!("2199-10"));
    later["source"] = json!("/shop");
    let commands = [
        command("request", "subscription.cancellation-request", request),
        with(cancellation("cancel", "sub"), "month", json!("2199-08")),
        with(cancellation("same", "sub"), "month", json!("2199-08")),
        later,
        expiry("card", "acc"),
    ];
    let commands_file = file(&commands);
    let path = commands_file.path().to_str().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let directory = folder.path().to_str().unwrap();
    let before = bed.document("subscriptions", "sub").await.unwrap();
    let simulate = ["simulate", "--from-database", "sub", "--commands", path];
    let answers = objects(&bed, &[&simulate[..], &["--json", "--mail-dir", directory]].concat());
    let outcomes: Vec<&str> = answers.iter().map(|answer| answer["outcome"].as_str().unwrap()).collect();
    assert_eq!(outcomes, ["applied", "applied", "unchanged", "rejected", "applied"]);
    let mails = simulated_emails(&answers.iter().collect::<Vec<_>>()).len();
    assert_eq!(std::fs::read_dir(directory).unwrap().count(), mails);
    assert!(output(&bed, &simulate).contains("5 commands: 3 applied, 1 unchanged, 1 rejected"));
    assert_eq!(bed.document("subscriptions", "sub").await.unwrap(), before, "nothing is written");

    let worker = WorkerProcess::start(&bed, &sink.url()).await;
    for command in &commands {
        bed.command(command).await;
        let collection = if command["type"] == "card.expiry" { "accounts" } else { "subscriptions" };
        if command["id"] != "later" {
            // The queues of different types have no common order.
            eventually("the command to be remembered", || async {
                let filter = doc! { "applied.id": command["id"].as_str().unwrap() };
                (bed.collection(collection).count_documents(filter).await.unwrap() == 1).then_some(())
            })
            .await;
        }
    }
    let document = bed.document("subscriptions", "sub").await.unwrap();
    for field in ["status", "ends_on", "final_billing_on"] {
        assert_eq!(answers[1][field].as_str(), document.get_str(field).ok(), "{field}");
    }
    assert_eq!(simulated_emails(&answers[..4].iter().collect::<Vec<_>>()), recorded_emails(&document));
    let payer = bed.document("accounts", "acc").await.unwrap();
    assert_eq!(simulated_emails(&[&answers[4]]), recorded_emails(&payer));

    // The simulation sees what the worker wrote: every command is a repeat now.
    bed.outboxes_empty().await;
    let again = objects(&bed, &[&simulate[..], &["--json"]].concat());
    let changed = again.iter().filter(|answer| answer["outcome"] == "applied").count();
    assert_eq!((changed, simulated_emails(&again.iter().collect::<Vec<_>>()).len()), (0, 0), "{again:?}");
    assert!(worker.stop().await.success());
    bed.remove().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn documents_that_a_simulation_does_not_read_are_errors() {
    let bed = TestBed::new("unread").await;
    populate(&bed).await;
    bed.collection("accounts").insert_one(account("other", "org")).await.unwrap();
    bed.collection("organizations").insert_one(organization("far")).await.unwrap();
    bed.collection("accounts").insert_one(account("far", "far")).await.unwrap();
    bed.collection("subscriptions").insert_one(subscription("far", "far", "far")).await.unwrap();
    let (cancel, card) = (file(&[cancellation("c", "sub")]), file(&[expiry("card", "other")]));
    let (cancel, card) = (cancel.path().to_str().unwrap(), card.path().to_str().unwrap());

    let error = failure(&bed, &["simulate", "--from-database", "nobody", "--commands", cancel], 1);
    assert!(
        error.contains(&format!("there is no subscription or account nobody in the database {}", bed.prefix)),
        "{error}"
    );
    let error = failure(&bed, &["simulate", "--from-database", "sub", "--commands", card], 1);
    assert!(error.contains("line 1 is about accounts other, which --from-database does not name"), "{error}");
    let both = ["simulate", "--from-database", "sub", "--documents", cancel, "--commands", cancel];
    assert!(failure(&bed, &both, 2).contains("cannot be used with"));

    // An account alone, several ids, and noon in the organization's time zone.
    let answers = objects(&bed, &["simulate", "--from-database", "other", "--commands", card, "--json"]);
    assert_eq!((answers.len(), &answers[0]["outcome"]), (1, &json!("applied")));
    let both = file(&[cancellation("c", "sub"), expiry("card", "other"), cancellation("foreign", "far")]);
    let both = both.path().to_str().unwrap();
    let ids = ["--from-database", "sub", "--from-database", "other", "--from-database", "far"];
    let arguments = [&["simulate", "--commands", both, "--json", "--today", "2199-05-20"], &ids[..]].concat();
    let answers = objects(&bed, &arguments);
    assert_eq!(
        answers[0]["events"][0]["time"], "2199-05-20T17:00:00.000Z",
        "noon in Toronto, without rules for summer time so late"
    );
    assert_eq!(answers[2]["reason"], "wrong_organization");
    bed.remove().await;
}
