//! Encodings: every server accepts the message, and every mailbox shows it whole.

use mail_parser::MessageParser;
use offramp_mail::samples::Sample;
use offramp_mail::{ComposedEmail, RenderedEmail, compose};

use super::{encodings, sent};
use crate::email::message::check_form;
use crate::email::{LOCALES, built_in, bytes, composed, date, every_sample, origin, sample, sender, to};
use offramp_testkit::dkim::{ED25519, RSA_PKCS8, signer};
use offramp_testkit::smtp_sink::{Action, SmtpSink, Step, Tls};

/// Gmail clips longer messages. In bytes.
const SHOWN_BYTES_MAX: usize = 100_000;

/// An email with these bodies.
fn saying(text: &str, html: &str) -> ComposedEmail {
    let rendered = RenderedEmail {
        subject: "Hello".to_owned(),
        text: text.to_owned(),
        html: html.to_owned(),
        language: "en".to_owned(),
    };
    compose(&sender(), origin(), &sample(), rendered, date()).unwrap()
}

const KNOWS_8BITMIME: &str = "250-sink\r\n250-PIPELINING\r\n250 8BITMIME";
const KNOWS_NOTHING: &str = "250 sink";

#[tokio::test]
async fn bodies_are_encoded_as_the_server_accepts_them() {
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
    // A relay must not have to re-encode a signed email, which would break the signature.
    let (taken, parameters) = sent(&saying("Hé", "<p>Hé").signed_by(Some(signer(ED25519))), KNOWS_8BITMIME).await;
    assert_eq!((encodings(&taken.bytes), parameters.as_str()), (quoted.map(str::to_owned), ""));
}

#[tokio::test]
async fn a_new_connection_to_a_less_capable_server_reencodes_the_email() {
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
    let encoded: Vec<_> = sink.emails().iter().map(|taken| encodings(&taken.bytes)[1].clone()).collect();
    assert_eq!((encoded, sink.connections()), (vec!["8bit".to_owned(), "quoted-printable".to_owned()], 2));
}

#[tokio::test]
async fn lines_with_special_meaning_arrive_unchanged() {
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
async fn text_cannot_inject_a_mime_part() {
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
fn long_names_and_subjects_are_folded_and_read_back_unchanged() {
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
            notification.reply_to.as_mut().unwrap().name = Some(name.clone());
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
fn no_email_exceeds_the_size_that_gmail_shows() {
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
    println!("largest: {} bytes, {}", largest.0, largest.1);
}

#[test]
fn emails_contain_no_tracking_and_no_list_headers() {
    for locale in LOCALES {
        for Sample { notification, .. } in every_sample(locale) {
            let mail = bytes(&composed(&notification));
            let parsed = MessageParser::default().parse(&mail).unwrap();
            let names: Vec<&str> = parsed.headers().iter().map(mail_parser::Header::name).collect();
            assert!(!names.iter().any(|name| name.starts_with("List-")), "{names:?}");
            // The only image allowed is the organization's logo.
            let html = parsed.body_html(0).unwrap();
            let logo = notification.facts.organization.logo_url.as_deref().unwrap_or("none");
            assert!(html.split("src=\"").skip(1).all(|source| source.starts_with(logo)), "{html}");
        }
    }
}
