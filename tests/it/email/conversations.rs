//! Message ids: emails about the same document are shown as one conversation.

use std::collections::{BTreeMap, BTreeSet};

use bson::Document;
use mail_auth::DkimResult;
use mail_parser::MessageParser;
use offramp_domain::effect_id::EffectIds;
use offramp_domain::effect_id::conversation_id;
use serde_json::{Value, json};

use crate::cli::succeeds;
use offramp_testkit::dkim::{Dns, RSA_PKCS1, RSA_PKCS8, signer};
use offramp_testkit::fixtures::{account, cancellation, command, organization, populate, subscription, with};
use offramp_testkit::smtp_sink::SmtpSink;
use offramp_testkit::test_bed::TestBed;
use offramp_testkit::worker_process::{WorkerProcess, bare};

#[test]
fn a_conversation_is_about_one_document() {
    let id = conversation_id("subscriptions", "sub-1");
    // Must never change: next year's emails belong to the same conversation as this year's.
    assert_eq!(id.to_string(), "06e83b1f-a021-5292-9d1a-51ee59dd95de");
    assert_ne!(id, conversation_id("subscriptions", "sub-2"));
    assert_ne!(id, conversation_id("accounts", "sub-1"));
    assert_ne!(id, EffectIds::of(&["subscriptions", "sub-1"]).id("payment-failed"));
}

/// A key for an email (template and recipient), and the headers with its ids.
fn ids(mail: &[u8]) -> (String, [String; 3]) {
    let parsed = MessageParser::default().parse(mail).unwrap();
    let header = |name: &str| parsed.header_raw(name).unwrap().trim().to_owned();
    let key = format!("{} to {}", header("X-Offramp-Template"), header("To"));
    (key, ["Message-ID", "References", "In-Reply-To"].map(header))
}

/// The worker also signs, with the key in its settings.
#[tokio::test(flavor = "multi_thread")]
async fn worker_and_simulation_give_an_email_the_same_ids() {
    let failure = |id: &str, subscription: &str| {
        let data = json!({
            "organization_id": "org", "subscription_id": subscription, "invoice_id": "inv-5", "attempt": 1,
            "amount": { "value": "49.99", "currency": "CAD" }, "card": { "brand": "Visa", "last4": "4242" },
        });
        command(id, "payment.failure", data)
    };
    let expiry = command(
        "c-4",
        "card.expiry",
        json!({ "organization_id": "org", "account_id": "acc",
            "card": { "id": "card", "brand": "Visa", "last4": "4242", "expires": "2199-06" } }),
    );
    let commands = [
        failure("c-1", "sub"),
        failure("c-2", "sub-2"),
        with(cancellation("c-3", "sub"), "month", "2199-07".into()),
        expiry,
    ];

    let bed = TestBed::new("conversation").await;
    populate(&bed).await;
    bed.collection("subscriptions").insert_one(subscription("sub-2", "org", "acc")).await.unwrap();
    let sink = SmtpSink::start().await;
    let key = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(key.path(), RSA_PKCS1).unwrap();
    let settings = [("OFFRAMP_DKIM_KEY_FILE", key.path().to_str().unwrap()), ("OFFRAMP_DKIM_SELECTOR", "s1")];
    let worker = WorkerProcess::start_with(&bed, &sink.url(), &settings).await;
    for command in &commands {
        bed.command(command).await;
    }
    offramp_testkit::eventually("seven emails", || async { (sink.emails().len() == 7).then_some(()) }).await;
    assert!(worker.stop().await.success());
    let sent = sink.emails();
    let dns = Dns::new("s1._domainkey.offramp.example", &signer(RSA_PKCS8).dns_record());
    for mail in &sent {
        assert_eq!(dns.verify(&mail.bytes).await, [DkimResult::Pass]);
    }
    // Each recipient gets two emails of this template, so they are compared with their message ids.
    let of_worker: BTreeSet<_> = sent.iter().map(|mail| ids(&mail.bytes)).collect();
    let conversations: BTreeMap<&String, usize> =
        of_worker.iter().fold(BTreeMap::new(), |mut count, (_, [_, references, in_reply_to])| {
            assert_eq!(references, in_reply_to);
            *count.entry(references).or_default() += 1;
            count
        });
    let expected = [("subscriptions", "sub", 3), ("subscriptions", "sub-2", 2), ("accounts", "acc", 2)];
    let expected = expected
        .map(|(collection, id, count)| (format!("<{}@offramp.example>", conversation_id(collection, id)), count));
    assert_eq!(conversations, expected.iter().map(|(id, count)| (id, *count)).collect());

    let folder = tempfile::tempdir().unwrap();
    let (documents, emails) = (folder.path().join("documents.jsonl"), folder.path().join("mails"));
    let document =
        |collection: &str, document: Document| json!({ "collection": collection, "document": document }).to_string();
    let lines = [
        document("organizations", organization("org")),
        document("accounts", account("acc", "org")),
        document("subscriptions", subscription("sub", "org", "acc")),
        document("subscriptions", subscription("sub-2", "org", "acc")),
    ];
    std::fs::write(&documents, lines.join("\n")).unwrap();
    let arguments = [
        "simulate",
        "--commands",
        "-",
        "--documents",
        documents.to_str().unwrap(),
        "--mail-dir",
        emails.to_str().unwrap(),
    ];
    let input = commands.iter().map(Value::to_string).collect::<Vec<_>>().join("\n");
    succeeds(bare().env("OFFRAMP_MAIL_FROM", "no-reply@offramp.example"), &arguments, &input);
    let files = std::fs::read_dir(&emails).unwrap().map(|file| std::fs::read(file.unwrap().path()).unwrap());
    assert_eq!(files.map(|mail| ids(&mail)).collect::<BTreeSet<_>>(), of_worker);
    bed.remove().await;
}
