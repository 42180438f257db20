//! The composed message: headers, addresses, parts.

use std::collections::BTreeSet;

use mail_parser::{MessageParser, MimeHeaders, PartType};
use offramp_domain::notification::{Recipient, Template};
use offramp_mail::samples::Sample;
use offramp_mail::{Sender, compose};

use super::{LOCALES, built_in, bytes, composed, date, every_sample, header_names, one, origin, sample, sender, to};
use offramp_testkit::smtp_sink::{Action, SmtpSink, Step, Tls};

#[tokio::test]
async fn an_email_arrives_with_every_header_and_both_parts() {
    for features in ["250-sink\r\n250 8BITMIME", "250 sink"] {
        check_headers_and_parts(features).await;
    }
}

async fn check_headers_and_parts(features: &'static str) {
    let script = move |at, _| if at == Step::Ehlo { Action::Answer(features) } else { Action::Ok };
    let sink = SmtpSink::scripted(Tls::No, script).await;
    let mut connection = to(&sink);
    for locale in LOCALES {
        for Sample { notification, .. } in every_sample(locale) {
            connection.send(&composed(&notification)).await.unwrap();
        }
    }
    connection.quit().await;

    let templates = built_in();
    let emails = sink.emails();
    let sent: Vec<_> = LOCALES.into_iter().flat_map(every_sample).collect();
    assert_eq!((emails.len(), sink.connections()), (sent.len(), 1));
    for (taken, Sample { notification, .. }) in emails.iter().zip(&sent) {
        let rendered = templates.render(notification).unwrap();
        assert_eq!(
            (taken.from.as_str(), &taken.to),
            ("no-reply@mail.example.com", &vec![notification.to.email.clone()])
        );
        check_form(&taken.bytes, features.contains("8BITMIME"));
        let mail = MessageParser::default().parse(&taken.bytes).unwrap();
        assert_eq!(mail.subject(), Some(rendered.subject.as_str()));
        assert_eq!(
            one(mail.from()),
            (notification.facts.organization.name.clone(), "no-reply@mail.example.com".to_owned())
        );
        assert_eq!(one(mail.to()).1, notification.to.email);
        let reply_to = mail.reply_to().map(|address| one(Some(address)).1);
        assert_eq!(reply_to, notification.reply_to.as_ref().map(|to| to.email.clone()));
        assert_eq!(mail.message_id(), Some("00000000-0000-0000-0000-00000000002a@mail.example.com"));
        assert_eq!(mail.date().unwrap().to_rfc3339(), "2026-06-14T12:00:00Z");
        for (header, value) in [
            ("Auto-Submitted", "auto-generated"),
            ("X-Auto-Response-Suppress", "All"),
            ("Content-Language", notification.locale.as_str()),
            ("X-Offramp-Template", notification.template.as_str()),
            ("In-Reply-To", "<00000000-0000-0000-0000-000000000007@mail.example.com>"),
            ("References", "<00000000-0000-0000-0000-000000000007@mail.example.com>"),
            ("MIME-Version", "1.0"),
        ] {
            assert_eq!(mail.header_raw(header).map(str::trim), Some(value), "{header}");
        }
        assert_eq!(
            mail.content_type().map(|kind| (kind.ctype(), kind.subtype())),
            Some(("multipart", Some("alternative")))
        );
        let bodies: Vec<_> = mail.parts.iter().map(|part| &part.body).collect();
        let [PartType::Multipart(_), PartType::Text(text), PartType::Html(html)] = bodies.as_slice() else {
            panic!("not text and HTML");
        };
        assert_eq!(text.replace("\r\n", "\n").trim_end(), rendered.text.trim_end());
        assert_eq!(html.replace("\r\n", "\n").trim_end(), rendered.html.trim_end());
        for part in &mail.parts[1..] {
            assert_eq!(part.content_type().unwrap().attribute("charset"), Some("utf-8"));
        }
    }
}

/// Checks for CRLF, lines of at most 998 bytes (RFC 5322 §2.1.1), and ASCII headers folded at 78 bytes wherever there is a space
/// to fold at. The body must be ASCII unless `takes_8bit`.
#[track_caller]
pub fn check_form(bytes: &[u8], takes_8bit: bool) {
    let text = std::str::from_utf8(bytes).unwrap();
    let (headers, body) = text.split_once("\r\n\r\n").unwrap();
    assert!(headers.is_ascii() && (takes_8bit || body.is_ascii()), "{text}");
    for line in text.split("\r\n") {
        assert!(line.len() <= 998 && !line.contains(['\r', '\n', '\0']), "{line:?}");
    }
    for line in headers.split("\r\n") {
        let words = if line.starts_with(' ') { line.trim_start() } else { line.split_once(": ").unwrap().1 };
        assert!(line.len() <= 78 || !words.contains(' '), "{line:?}");
        assert!(!line.trim().is_empty(), "an empty line: {headers}");
    }
    // RFC 2047: an encoded word has at most 75 characters.
    for word in headers.split_ascii_whitespace().filter(|word| word.starts_with("=?")) {
        assert!(word.len() <= 75, "{word}");
    }
}

#[test]
fn hostile_names_inject_no_headers() {
    let names = [
        "Gym\r\nBcc: victim@example.com\r\n\r\n<h1>",
        "\"; rm -rf\" <evil@example.com>, \"x",
        "Gym, Inc. (Québec) \\ \"Élite\"",
        "=?utf-8?q?=0D=0ABcc:_victim@example.com?=",
        "\u{202e}moc.elpmaxe\u{202c} \u{0}\u{1b}[31m",
        "🏊🏽‍♀️ Club",
        "مركز اللياقة",
        "",
        " \t\r\n ",
    ];
    let long = "x".repeat(5_000);
    let long_words = "é ".repeat(5_000);
    let expected: BTreeSet<String> = header_names(&bytes(&composed(&sample())));
    for name in names.into_iter().chain([long.as_str(), long_words.as_str()]) {
        let mut notification = sample();
        notification.facts.organization.name = name.to_owned();
        notification.facts.manager.as_mut().unwrap().name = Some(name.to_owned());
        notification.facts.participant = Some(name.to_owned());
        notification.facts.plan = Some(name.to_owned());
        notification.facts.reason = Some(name.to_owned());
        notification.to.name = Some(name.to_owned());
        notification.reply_to.as_mut().unwrap().name = Some(name.to_owned());
        for template in [Template::PaymentFailed, Template::CancellationRequested] {
            notification.template = template;
            notification.recipient = Recipient::OrganizationContact;
            notification.facts.requested_on = notification.facts.next_attempt_on;
            let mail = bytes(&composed(&notification));
            check_form(&mail, false);
            assert_eq!(header_names(&mail), expected, "{name:?}");
            let parsed = MessageParser::default().parse(&mail).unwrap();
            assert_eq!(one(parsed.from()).1, "no-reply@mail.example.com", "{name:?}");
            assert_eq!(one(parsed.to()).1, notification.to.email, "{name:?}");
            assert_eq!(one(parsed.reply_to()).1, notification.reply_to.as_ref().unwrap().email, "{name:?}");
            let from = one(parsed.from()).0;
            assert!(!from.chars().any(char::is_control) && from.chars().count() <= 100, "{from:?}");
            let subject = parsed.subject().unwrap();
            assert!(!subject.chars().any(char::is_control) && subject.chars().count() <= 150, "{subject:?}");
            assert_eq!(parsed.parts.len(), 3, "{name:?}");
        }
    }
}

#[test]
fn unusual_names_arrive_unchanged() {
    for name in ["Gym, Inc. (Québec) \\ \"Élite\"", "🏊🏽‍♀️ Club", "مركز اللياقة", "O'Brien & fils", "Centre\u{a0}Nord"]
    {
        let mut notification = sample();
        notification.facts.organization.name = name.to_owned();
        let mail = bytes(&composed(&notification));
        let parsed = MessageParser::default().parse(&mail).unwrap();
        assert_eq!(one(parsed.from()).0, name);
    }
}

#[test]
fn an_invalid_recipient_is_an_error_and_an_invalid_reply_to_is_omitted() {
    let rendered = built_in().render(&sample()).unwrap();
    for email in [
        "",
        "marie",
        "marie@",
        "@example.com",
        "marie @example.com",
        "a@b@c.example",
        "marie@example.com>\r\nRCPT TO:<x@example.com",
        "Marie <marie@example.com>",
        "\"\r\n\"@example.com",
        "marie@exa mple.com",
    ] {
        let mut notification = sample();
        notification.to.email = email.to_owned();
        let error = compose(&sender(), origin(), &notification, rendered.clone(), date()).unwrap_err();
        assert_eq!(error.which, "recipient", "{email}");
        assert!(!error.to_string().contains(['\r', '\n']), "{error}");
        let mut notification = sample();
        notification.reply_to.as_mut().unwrap().email = email.to_owned();
        let without = compose(&sender(), origin(), &notification, rendered.clone(), date()).unwrap();
        assert!(
            !String::from_utf8_lossy(&bytes(&without)).contains("\r\nReply-To:"),
            "the header is omitted, and the email is sent"
        );
        assert!(Sender::parse(email).is_err() || email.starts_with("Marie"), "{email}");
    }
}

#[test]
fn a_non_ascii_domain_is_written_in_punycode() {
    let mut notification = sample();
    notification.to.email = "info@école.example".to_owned();
    let mail = composed(&notification);
    assert_eq!(mail.to(), "info@xn--cole-9oa.example");
    assert!(!mail.needs_smtputf8());
}

#[test]
fn composing_an_entry_is_deterministic() {
    assert_eq!(bytes(&composed(&sample())), bytes(&composed(&sample())));
}
