//! Mails reach their readers: in a form that every server takes, signed where that is wanted, together with the others about
//! the same subscription, and not cut off for their size.

use std::collections::{BTreeMap, BTreeSet};

use bson::Document;
use mail_auth::DkimResult;
use mail_parser::{MessageParser, MimeHeaders};
use offramp::tls::Tls as ClientTls;
use offramp_domain::event::EffectIds;
use offramp_domain::notification::{Notification, conversation_id};
use offramp_mail::samples::Sample;
use offramp_mail::{ComposedEmail, RenderedEmail, compose};
use serde_json::{Value, json};

use crate::cli::succeeds;
use crate::mail::{
    LOCALES, built_in, bytes, check_form, composed, connection, date, every_sample, origin, sample, sender, to,
};
use offramp_testkit::dkim::{Dns, ED25519, RSA_PKCS1, RSA_PKCS8, signer};
use offramp_testkit::fixtures::{account, cancellation, command, organization, populate, subscription, with};
use offramp_testkit::smtp_sink::{Action, SmtpSink, Step, Taken, Tls};
use offramp_testkit::test_bed::TestBed;
use offramp_testkit::worker_process::{WorkerProcess, bare};

/// What Gmail shows of a mail before it hides the rest behind a link, in bytes.
const SHOWN_BYTES_MAX: usize = 100_000;

/// A mail of these words.
fn saying(text: &str, html: &str) -> ComposedEmail {
    let rendered = RenderedEmail {
        subject: "Hello".to_owned(),
        text: text.to_owned(),
        html: html.to_owned(),
        language: "en".to_owned(),
    };
    compose(&sender(), origin(), &sample(), rendered, date()).unwrap()
}

/// A server with these extensions; none of them is STARTTLS.
async fn server(answer: &'static str) -> SmtpSink {
    SmtpSink::scripted(Tls::No, move |at, _| if at == Step::Ehlo { Action::Answer(answer) } else { Action::Ok }).await
}

const KNOWS_8BITMIME: &str = "250-sink\r\n250-PIPELINING\r\n250 8BITMIME";
const KNOWS_NOTHING: &str = "250 sink";

/// The mail as it arrived, and how it was announced.
async fn sent(mail: &ComposedEmail, answer: &'static str) -> (Taken, String) {
    let sink = server(answer).await;
    to(&sink).send(mail).await.unwrap();
    let announced = sink.commands().into_iter().find(|command| command.starts_with("MAIL")).unwrap();
    (sink.mails().remove(0), announced.replace("MAIL FROM:<no-reply@mail.example.com>", ""))
}

/// How the whole, its text and its page are encoded; what is not said is 7bit.
fn encodings(mail: &[u8]) -> [String; 3] {
    let parsed = MessageParser::default().parse(mail).unwrap();
    let of_part = |part: usize| parsed.parts[part].content_transfer_encoding().unwrap_or("7bit").to_owned();
    [0, 1, 2].map(of_part)
}

#[tokio::test]
async fn bodies_are_encoded_as_the_server_takes_them() {
    let long = "é".repeat(500);
    let quoted = ["7bit", "quoted-printable", "quoted-printable"];
    for (text, html, answer, expected, announced) in [
        ("Hé", "<p>Hé", KNOWS_8BITMIME, ["8bit", "8bit", "8bit"], " BODY=8BITMIME"),
        ("Hello", "<p>Hé", KNOWS_8BITMIME, ["8bit", "7bit", "8bit"], " BODY=8BITMIME"),
        ("Hello", "<p>Hello", KNOWS_8BITMIME, ["7bit", "7bit", "7bit"], ""),
        ("Hé", &long, KNOWS_8BITMIME, quoted, ""),
        ("Hé", "<p>Hé", KNOWS_NOTHING, quoted, ""),
        ("Hello", "<p>Hello", KNOWS_NOTHING, quoted, ""),
    ] {
        let (taken, parameters) = sent(&saying(text, html), answer).await;
        check_form(&taken.bytes, answer == KNOWS_8BITMIME);
        assert_eq!(encodings(&taken.bytes), expected, "{text} {answer}");
        assert_eq!(parameters, announced, "{text} {answer}");
        let parsed = MessageParser::default().parse(&taken.bytes).unwrap();
        assert_eq!(parsed.body_text(0).unwrap(), format!("{text}\r\n"));
        assert_eq!(parsed.body_html(0).unwrap(), format!("{html}\r\n"));
    }
    // Who passes a signed mail on must not have to encode it anew.
    let (taken, parameters) = sent(&saying("Hé", "<p>Hé").signed_by(Some(signer(ED25519))), KNOWS_8BITMIME).await;
    assert_eq!((encodings(&taken.bytes), parameters.as_str()), (quoted.map(str::to_owned), ""));
}

#[tokio::test]
async fn a_connection_that_is_replaced_may_lead_to_a_server_that_takes_less() {
    let sink = SmtpSink::scripted(Tls::No, |at, nth| match (at, nth) {
        (Step::Ehlo, 1) => Action::Answer(KNOWS_8BITMIME),
        (Step::Ehlo, _) => Action::Answer(KNOWS_NOTHING),
        (Step::Mail, 2) => Action::Drop,
        _ => Action::Ok,
    })
    .await;
    let (mut connection, mail) = (to(&sink), saying("Hé", "<p>Hé"));
    connection.send(&mail).await.unwrap();
    connection.send(&mail).await.unwrap();
    let encoded: Vec<_> = sink.mails().iter().map(|taken| encodings(&taken.bytes)[1].clone()).collect();
    assert_eq!((encoded, sink.connections()), (vec!["8bit".to_owned(), "quoted-printable".to_owned()], 2));
}

#[tokio::test]
async fn lines_that_mean_something_to_servers_and_mailboxes_arrive_as_they_are() {
    let text = ".\n..\n.hidden\n \nFrom here\nFrom: nobody\n--\n--=_\nQUIT\n\n.\n";
    for answer in [KNOWS_8BITMIME, KNOWS_NOTHING] {
        let (taken, _) = sent(&saying(text, text), answer).await;
        let parsed = MessageParser::default().parse(&taken.bytes).unwrap();
        assert_eq!(parsed.parts.len(), 3);
        assert_eq!(parsed.body_text(0).unwrap().replace("\r\n", "\n"), text);
        assert_eq!(parsed.body_html(0).unwrap().replace("\r\n", "\n"), text);
    }
}

#[tokio::test]
async fn nobody_can_write_a_part_of_their_own() {
    let boundary = format!("--=_{}", origin().entry_id.simple());
    let attack = format!("Moving\n{boundary}\nContent-Type: text/html\n\n<h1>Pay here</h1>\n{boundary}--\n");
    for answer in [KNOWS_8BITMIME, KNOWS_NOTHING] {
        let mut notification = sample();
        notification.facts.failure_message = Some(attack.clone());
        let (whole, _) = sent(&composed(&notification), answer).await;
        let (direct, _) = sent(&saying(&attack, "<p>Hello"), answer).await;
        for taken in [whole, direct] {
            let parsed = MessageParser::default().parse(&taken.bytes).unwrap();
            assert_eq!(parsed.parts.len(), 3, "{}", String::from_utf8_lossy(&taken.bytes));
        }
    }
}

#[test]
fn long_names_and_subjects_are_folded_and_read_back_whole() {
    let words = "Paiement refusé\u{a0}: nouvelle tentative ".repeat(4);
    let names = [
        "n".repeat(100),
        "é".repeat(100),
        "🏊🏽‍♀️".repeat(14),
        "word ".repeat(19) + "end",
        format!("{} é {}", "a".repeat(60), "b".repeat(30)),
        format!("{}é", "a".repeat(70)),
        "a, \"b\" <c@example.com>; ".repeat(4) + "é",
    ];
    let subjects = names.iter().cloned().chain([
        words.trim_end().to_owned(),
        "a".repeat(150),
        format!("{} {}", "a".repeat(64), "é".repeat(80)),
        format!("{} {}", "é".repeat(64), "a".repeat(80)),
        "mixed é plain ".repeat(10) + "end",
    ]);
    let subjects: Vec<String> = subjects.collect();
    for name in &names {
        for subject in &subjects {
            let mut notification = sample();
            notification.facts.organization.name.clone_from(name);
            notification.to.name = Some(name.clone());
            notification.reply_to.name = Some(name.clone());
            let rendered = RenderedEmail { subject: subject.clone(), ..built_in().render(&notification).unwrap() };
            let mail = bytes(&compose(&sender(), origin(), &notification, rendered, date()).unwrap());
            check_form(&mail, false);
            let parsed = MessageParser::default().parse(&mail).unwrap();
            assert_eq!(parsed.subject(), Some(subject.as_str()));
            for address in [parsed.from(), parsed.to(), parsed.reply_to()] {
                assert_eq!(address.unwrap().first().unwrap().name(), Some(name.as_str()));
            }
        }
    }
}

#[test]
fn no_mail_is_cut_off() {
    let mut largest = (0, String::new());
    for locale in LOCALES {
        for Sample { variant, notification } in every_sample(locale) {
            let mail = composed(&notification).signed_by(Some(signer(RSA_PKCS8)));
            let size = bytes(&mail).len();
            let what = format!("{locale} {} {:?} {variant}", notification.template, notification.recipient);
            assert!(size < SHOWN_BYTES_MAX, "{what}: {size}");
            largest = largest.max((size, what));
        }
    }
    println!("the largest: {} bytes, {}", largest.0, largest.1);
}

#[test]
fn nothing_is_tracked_and_nobody_is_asked_to_unsubscribe() {
    for locale in LOCALES {
        for Sample { notification, .. } in every_sample(locale) {
            let mail = bytes(&composed(&notification));
            let parsed = MessageParser::default().parse(&mail).unwrap();
            let names: Vec<&str> = parsed.headers().iter().map(mail_parser::Header::name).collect();
            assert!(!names.iter().any(|name| name.starts_with("List-")), "{names:?}");
            // The one picture that there may be is the organization's own.
            let html = parsed.body_html(0).unwrap();
            let logo = notification.facts.organization.logo_url.as_deref().unwrap_or("none");
            assert!(html.split("src=\"").skip(1).all(|source| source.starts_with(logo)), "{html}");
        }
    }
}

// ---- signatures ----

/// Signs, and has a receiver look at it.
async fn verified(pem: &str, notification: &Notification) -> Vec<DkimResult> {
    let signer = signer(pem);
    let mail = bytes(&composed(notification).signed_by(Some(signer.clone())));
    Dns::of(&signer).verify(&mail).await
}

#[tokio::test]
async fn signatures_hold_for_every_mail() {
    let signers = [RSA_PKCS1, RSA_PKCS8, ED25519].map(signer);
    let sink = SmtpSink::start().await;
    let mut connection = to(&sink);
    for locale in LOCALES {
        for (index, Sample { notification, variant }) in every_sample(locale).enumerate() {
            let signer = &signers[index % signers.len()];
            let mail = composed(&notification).signed_by(Some(signer.clone()));
            connection.send(&mail).await.unwrap();
            let taken = sink.drain().remove(0).bytes;
            check_form(&taken, false);
            let what = format!("{locale} {} {variant}", notification.template);
            assert_eq!(Dns::of(signer).verify(&taken).await, [DkimResult::Pass], "{what}");
        }
    }
}

#[tokio::test]
async fn signatures_hold_whatever_people_are_called() {
    let long = "word ".repeat(40);
    for name in ["Gym\r\n Bcc: x", "a  b\t c", "é".repeat(100).as_str(), "\"x\" <y@z>", "", &long] {
        let mut notification = sample();
        notification.facts.organization.name = name.to_owned();
        notification.facts.participant = Some(name.to_owned());
        notification.facts.failure_message = Some(format!("{name}  \n\n.\n From \t\n\n"));
        notification.to.name = Some(name.to_owned());
        notification.reply_to.name = Some(name.to_owned());
        for pem in [RSA_PKCS8, ED25519] {
            assert_eq!(verified(pem, &notification).await, [DkimResult::Pass], "{name:?}");
        }
    }
    // Left out, and signed as left out.
    let mut notification = sample();
    notification.reply_to.email = "nobody".to_owned();
    assert_eq!(verified(RSA_PKCS8, &notification).await, [DkimResult::Pass]);
    // In UTF-8.
    notification.to.email = "zoé@example.com".to_owned();
    assert_eq!(verified(RSA_PKCS8, &notification).await, [DkimResult::Pass]);
}

#[tokio::test]
async fn signatures_survive_what_servers_do_and_nothing_else() {
    for pem in [RSA_PKCS8, ED25519] {
        let signer = signer(pem);
        let dns = Dns::of(&signer);
        let mail = composed(&sample()).signed_by(Some(signer.clone()));
        let mail = String::from_utf8(bytes(&mail)).unwrap();
        let holds = async |mail: String| dns.verify(mail.as_bytes()).await == [DkimResult::Pass];
        assert!(holds(mail.clone()).await);
        let (headers, body) = mail.split_once("\r\n\r\n").unwrap();

        // Folded otherwise, with other white space, an empty line more, and headers of the servers' own.
        assert!(holds(format!("Received: from here\r\n{mail}\r\n")).await);
        assert!(holds(mail.replacen("\r\nSubject: ", "\r\nSUBJECT:\r\n  ", 1)).await);
        assert!(holds(mail.replacen("X-Offramp-Template:", "X-Other:", 1)).await);

        for name in [
            "From",
            "Reply-To",
            "To",
            "Subject",
            "Date",
            "Message-ID",
            "In-Reply-To",
            "References",
            "Auto-Submitted",
            "Content-Language",
            "MIME-Version",
            "Content-Type",
        ] {
            let line = format!("\r\n{name}: ");
            assert!(headers.contains(&line), "{name}");
            assert!(!holds(mail.replacen(&line, &format!("{line}x"), 1)).await, "{name} changed");
        }
        // Programs differ in which of two they show.
        for name in ["From", "Reply-To", "To", "Subject", "Cc"] {
            assert!(!holds(format!("{name}: other@example.org\r\n{mail}")).await, "{name} put before");
            assert!(!holds(format!("{headers}\r\n{name}: other@example.org\r\n\r\n{body}")).await, "{name} added");
        }
        assert!(!holds(format!("{headers}\r\n\r\n{}", body.replacen("49,99", "94,99", 1))).await, "the body changed");
        assert!(!holds(format!("{mail}more")).await, "something added to the body");
    }
    // The key of another.
    let mail = bytes(&composed(&sample()).signed_by(Some(signer(RSA_PKCS8))));
    let other = Dns::new("s1._domainkey.example.com", &signer(ED25519).dns_record());
    assert_ne!(other.verify(&mail).await, [DkimResult::Pass]);
}

#[tokio::test]
async fn files_are_signed_and_readable_by_everybody() {
    let directory = tempfile::tempdir().unwrap();
    let signer = signer(RSA_PKCS8);
    let mut files = connection(&format!("file://{}", directory.path().display()), &ClientTls::default());
    files.send(&composed(&sample()).signed_by(Some(signer.clone()))).await.unwrap();
    let file = std::fs::read_dir(directory.path()).unwrap().next().unwrap().unwrap().path();
    let mail = std::fs::read(file).unwrap();
    check_form(&mail, false);
    assert_eq!(encodings(&mail), ["7bit", "quoted-printable", "quoted-printable"]);
    assert_eq!(Dns::of(&signer).verify(&mail).await, [DkimResult::Pass]);
}

// ---- conversations ----

#[test]
fn a_conversation_is_about_one_document() {
    let id = conversation_id("subscriptions", "sub-1");
    // Fixed for ever: a mail of next year belongs to one of this year.
    assert_eq!(id.to_string(), "06e83b1f-a021-5292-9d1a-51ee59dd95de");
    assert_ne!(id, conversation_id("subscriptions", "sub-2"));
    assert_ne!(id, conversation_id("accounts", "sub-1"));
    assert_ne!(id, EffectIds::of(&["subscriptions", "sub-1"]).id("payment-failed"));
}

/// What of a mail tells which it is and what it belongs to.
fn ids(mail: &[u8]) -> (String, [String; 3]) {
    let parsed = MessageParser::default().parse(mail).unwrap();
    let header = |name: &str| parsed.header_raw(name).unwrap().trim().to_owned();
    let key = format!("{} to {}", header("X-Offramp-Template"), header("To"));
    (key, ["Message-ID", "References", "In-Reply-To"].map(header))
}

/// Also: the worker signs, with what is in its settings.
#[tokio::test(flavor = "multi_thread")]
async fn worker_and_simulation_give_a_mail_the_same_ids() {
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
    offramp_testkit::eventually("seven mails", || async { (sink.mails().len() == 7).then_some(()) }).await;
    assert!(worker.stop().await.success());
    let sent = sink.mails();
    let dns = Dns::new("s1._domainkey.offramp.example", &signer(RSA_PKCS8).dns_record());
    for mail in &sent {
        assert_eq!(dns.verify(&mail.bytes).await, [DkimResult::Pass]);
    }
    // Two mails of this template go to each: by their message ids too, then.
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
    let (documents, mails) = (folder.path().join("documents.jsonl"), folder.path().join("mails"));
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
        mails.to_str().unwrap(),
    ];
    let input = commands.iter().map(Value::to_string).collect::<Vec<_>>().join("\n");
    succeeds(bare().env("OFFRAMP_MAIL_FROM", "no-reply@offramp.example"), &arguments, &input);
    let files = std::fs::read_dir(&mails).unwrap().map(|file| std::fs::read(file.unwrap().path()).unwrap());
    assert_eq!(files.map(|mail| ids(&mail)).collect::<BTreeSet<_>>(), of_worker);
    bed.remove().await;
}
