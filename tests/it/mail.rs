//! Mails: what is in them, and how they leave (contract §5).

use std::collections::BTreeSet;
use std::fs;
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use mail_parser::{Address, MessageParser, MimeHeaders, PartType};
use offramp::advice;
use offramp::tls::Tls as ClientTls;
use offramp_domain::notification::{Notification, Recipient, Template};
use offramp_mail::samples::{Sample, samples};
use offramp_mail::{
    ComposedEmail, Deadlines, DkimKey, DkimSigner, EmailKind, MailConnection, MailUrl, Origin, SendError, Sender,
    SmtpName, Templates, Transport, compose,
};
use uuid::Uuid;

use offramp_testkit::smtp_sink::{Action, SmtpSink, Step, Tls};
use offramp_testkit::tls::ThrowAwayCa;

pub const LOCALES: [&str; 3] = ["fr-CA", "en-CA", "es-MX"];

pub fn built_in() -> &'static Templates {
    static BUILT_IN: LazyLock<Templates> = LazyLock::new(|| Templates::load(None).unwrap());
    &BUILT_IN
}

pub fn every_sample(locale: &'static str) -> impl Iterator<Item = Sample> {
    EmailKind::all().flat_map(move |kind| samples(kind.template, kind.recipient, locale))
}

pub fn sample() -> Notification {
    samples(Template::PaymentFailed, Recipient::AccountManager, "fr-CA").remove(1).notification
}

pub fn sender() -> Sender {
    Sender::parse("Offramp <no-reply@mail.example.com>").unwrap()
}

pub fn date() -> DateTime<Utc> {
    "2026-06-14T12:00:00Z".parse().unwrap()
}

pub fn composed(notification: &Notification) -> ComposedEmail {
    let rendered = built_in().render(notification).unwrap();
    compose(&sender(), origin(), notification, rendered, date()).unwrap()
}

pub fn origin() -> Origin {
    Origin { entry_id: Uuid::from_u128(42), conversation_id: Uuid::from_u128(7) }
}

/// As it is written for a server that knows nothing.
pub fn bytes(mail: &ComposedEmail) -> Vec<u8> {
    mail.bytes(false).unwrap()
}

pub fn deadlines() -> Deadlines {
    let short = Duration::from_millis(300);
    all_deadlines(short)
}

fn all_deadlines(limit: Duration) -> Deadlines {
    Deadlines {
        connect: limit,
        greeting: limit,
        envelope: limit,
        data: limit,
        block: limit,
        content: limit,
        farewell: limit,
    }
}

pub fn connection(url: &str, tls: &ClientTls) -> MailConnection {
    MailConnection::new(Arc::new(transport(url, tls, deadlines())))
}

fn transport(url: &str, tls: &ClientTls, deadlines: Deadlines) -> Transport {
    let name = SmtpName::parse("worker.example.com").unwrap();
    Transport::new(&MailUrl::parse(url).unwrap(), name, tls.client_config().unwrap(), deadlines).unwrap()
}

pub fn to(sink: &SmtpSink) -> MailConnection {
    connection(&sink.url(), &ClientTls::default())
}

// ---- the mail as a server takes it ----

#[tokio::test]
async fn a_mail_arrives_with_every_header_and_both_parts() {
    for features in ["250-sink\r\n250 8BITMIME", "250 sink"] {
        arrives_with_every_header_and_both_parts(features).await;
    }
}

async fn arrives_with_every_header_and_both_parts(features: &'static str) {
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
    let mails = sink.mails();
    let sent: Vec<_> = LOCALES.into_iter().flat_map(every_sample).collect();
    assert_eq!((mails.len(), sink.connections()), (sent.len(), 1));
    for (taken, Sample { notification, .. }) in mails.iter().zip(&sent) {
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
        assert_eq!(one(mail.reply_to()).1, notification.reply_to.email);
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

/// CRLF; lines of at most 998 bytes (RFC 5322 §2.1.1); headers in ASCII and, wherever there is a space to break them at, of
/// at most 78; the rest in ASCII where that is wanted.
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
        assert!(!line.trim().is_empty(), "a line with nothing in it: {headers}");
    }
    // RFC 2047: an encoded word has at most 75 characters.
    for word in headers.split_ascii_whitespace().filter(|word| word.starts_with("=?")) {
        assert!(word.len() <= 75, "{word}");
    }
}

fn one(address: Option<&Address<'_>>) -> (String, String) {
    let list = address.unwrap().as_list().unwrap();
    assert_eq!(list.len(), 1, "{list:?}");
    (list[0].name().unwrap_or_default().to_owned(), list[0].address().unwrap().to_owned())
}

#[test]
fn hostile_names_change_nothing_but_the_name() {
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
        notification.facts.manager.name = Some(name.to_owned());
        notification.facts.participant = Some(name.to_owned());
        notification.facts.plan = Some(name.to_owned());
        notification.facts.reason = Some(name.to_owned());
        notification.to.name = Some(name.to_owned());
        notification.reply_to.name = Some(name.to_owned());
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
            assert_eq!(one(parsed.reply_to()).1, notification.reply_to.email, "{name:?}");
            let from = one(parsed.from()).0;
            assert!(!from.chars().any(char::is_control) && from.chars().count() <= 100, "{from:?}");
            let subject = parsed.subject().unwrap();
            assert!(!subject.chars().any(char::is_control) && subject.chars().count() <= 150, "{subject:?}");
            assert_eq!(parsed.parts.len(), 3, "{name:?}");
        }
    }
}

fn header_names(bytes: &[u8]) -> BTreeSet<String> {
    let text = std::str::from_utf8(bytes).unwrap();
    let headers = text.split_once("\r\n\r\n").unwrap().0;
    let lines = headers.split("\r\n").filter(|line| !line.starts_with([' ', '\t']));
    lines.map(|line| line.split_once(':').unwrap().0.to_owned()).collect()
}

#[test]
fn names_that_are_merely_unusual_arrive_as_they_are() {
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
fn an_address_that_is_none_is_named() {
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
        notification.reply_to.email = email.to_owned();
        let without = compose(&sender(), origin(), &notification, rendered.clone(), date()).unwrap();
        assert!(
            !String::from_utf8_lossy(&bytes(&without)).contains("\r\nReply-To:"),
            "it is left out, and the mail goes on"
        );
        assert!(Sender::parse(email).is_err() || email.starts_with("Marie"), "{email}");
    }
}

#[test]
fn a_domain_beyond_ascii_is_written_in_ascii() {
    let mut notification = sample();
    notification.to.email = "info@école.example".to_owned();
    let mail = composed(&notification);
    assert_eq!(mail.to(), "info@xn--cole-9oa.example");
    assert!(!mail.needs_smtputf8());
}

#[test]
fn the_same_entry_makes_the_same_mail() {
    assert_eq!(bytes(&composed(&sample())), bytes(&composed(&sample())));
}

// ---- SMTP ----

async fn send(sink: &SmtpSink) -> Result<String, SendError> {
    to(sink).send(&composed(&sample())).await
}

/// What a server says to EHLO that takes one command at a time.
const ONE_BY_ONE: &str = "250-sink\r\n250 8BITMIME";

/// A server that does `action` when it is at `step` for the nth time that `nth` wants; with and without pipelining.
async fn both(step: Step, nth: impl Fn(usize) -> bool + Copy + Send + Sync + 'static, action: Action) -> [SmtpSink; 2] {
    let script = move |at, time| if at == step && nth(time) { action } else { Action::Ok };
    let slow = move |at, time| match script(at, time) {
        Action::Ok if at == Step::Ehlo => Action::Answer(ONE_BY_ONE),
        action => action,
    };
    [SmtpSink::scripted(Tls::No, script).await, SmtpSink::scripted(Tls::No, slow).await]
}

#[tokio::test]
async fn a_refusal_of_the_mail_is_the_mails_and_the_connection_goes_on() {
    type Case = (Step, &'static str, fn(&SendError) -> bool);
    let cases: [Case; 6] = [
        (Step::Rcpt, "550 no such user", |error| matches!(error, SendError::Permanent(_))),
        (Step::Rcpt, "450 greylisted", |error| matches!(error, SendError::Transient(_))),
        (Step::Data, "554 no", |error| matches!(error, SendError::Permanent(_))),
        (Step::Data, "451 later", |error| matches!(error, SendError::Transient(_))),
        (Step::Content, "554 spam", |error| matches!(error, SendError::Permanent(_))),
        (Step::Content, "452 full", |error| matches!(error, SendError::Transient(_))),
    ];
    for (step, answer, expected) in cases {
        for sink in both(step, |nth| nth == 1, Action::Answer(answer)).await {
            let mut connection = to(&sink);
            let error = connection.send(&composed(&sample())).await.unwrap_err();
            assert!(expected(&error), "{step:?} {answer}: {error:?}");
            assert!(error.to_string().contains(&answer[4..]), "{error}");
            connection.send(&composed(&sample())).await.unwrap();
            assert_eq!((sink.mails().len(), sink.connections()), (1, 1), "{step:?} {answer}");
            assert_eq!(sink.commands().iter().filter(|command| *command == "RSET").count(), 1);
        }
    }
}

#[tokio::test]
async fn data_is_sent_only_after_the_recipient_was_accepted() {
    for sink in both(Step::Rcpt, |_| true, Action::Answer("550 no such user")).await {
        let error = send(&sink).await.unwrap_err();
        assert!(matches!(error, SendError::Permanent(_)), "{error:?}");
        sink.deserted().await;
        assert!(!sink.commands().iter().any(|command| command == "DATA"), "{:?}", sink.commands());
    }
}

#[tokio::test]
async fn a_rejection_of_the_sender_is_the_servers_answer() {
    for sink in both(Step::Mail, |nth| nth == 1, Action::Answer("550 5.7.60 not you")).await {
        let mut connection = to(&sink);
        let error = connection.send(&composed(&sample())).await.unwrap_err();
        assert!(is_of_sender(&error) && error.to_string().contains("not you"), "{error:?}");
        // Where the recipient was named with the sender, that reply was read, too.
        connection.send(&composed(&sample())).await.unwrap();
        assert_eq!((sink.mails().len(), sink.connections()), (1, 1));
    }
}

#[tokio::test]
async fn what_a_server_says_decides_whose_fault_it_is() {
    type Case = (Step, Action, fn(&SendError) -> bool);
    let cases: [Case; 22] = [
        (Step::Greeting, Action::Answer("554 go away"), is_of_connection),
        (Step::Greeting, Action::Answer("421 busy"), is_unavailable),
        (Step::Greeting, Action::Stall, is_unavailable),
        (Step::Greeting, Action::Drop, is_unavailable),
        (Step::Ehlo, Action::Answer("502 no"), is_of_connection),
        (Step::Ehlo, Action::Answer("220-without\r\n220 end"), is_unavailable),
        (Step::Mail, Action::Answer("550 not you"), is_of_sender),
        (Step::Mail, Action::Answer("451 later"), is_throttled),
        (Step::Mail, Action::Stall, is_unavailable),
        (Step::Rcpt, Action::Answer("421 closing"), is_throttled),
        (Step::Rcpt, Action::Answer("530 log in first"), is_of_sender),
        (Step::Rcpt, Action::Answer("554 5.7.1 relay access denied"), is_of_sender),
        (Step::Rcpt, Action::Answer("gibberish"), is_unavailable),
        (Step::Rcpt, Action::Stall, is_unavailable),
        (Step::Rcpt, Action::Drop, is_unavailable),
        (Step::Data, Action::Answer("250 what"), is_unavailable),
        (Step::Data, Action::Stall, is_unavailable),
        (Step::Content, Action::Answer("454 4.7.0 Maximum sending rate exceeded"), is_throttled),
        (Step::Content, Action::Answer("251 maybe"), is_in_doubt),
        (Step::Content, Action::Answer("gibberish"), is_in_doubt),
        (Step::Content, Action::Stall, is_in_doubt),
        (Step::Content, Action::Drop, is_in_doubt),
    ];
    for (step, action, expected) in cases {
        for sink in both(step, |_| true, action).await {
            let started = Instant::now();
            let error = send(&sink).await.unwrap_err();
            assert!(expected(&error), "{step:?} {action:?}: {error:?}");
            assert!(error.to_string().contains(&sink.address.to_string()), "{error}");
            assert!(started.elapsed() < Duration::from_secs(2), "{step:?} {action:?}");
            assert_eq!(sink.mails().len(), 0, "{step:?} {action:?}");
        }
    }
    let error = connection("smtp://127.0.0.1:1", &ClientTls::default()).send(&composed(&sample())).await.unwrap_err();
    assert!(is_unavailable(&error), "{error:?}");
}

fn is_unavailable(error: &SendError) -> bool {
    matches!(error, SendError::Unavailable(_))
}

fn is_throttled(error: &SendError) -> bool {
    matches!(error, SendError::Throttled(_))
}

fn is_in_doubt(error: &SendError) -> bool {
    matches!(error, SendError::InDoubt(_))
}

fn is_of_sender(error: &SendError) -> bool {
    matches!(error, SendError::Sender { rejects_connection: false, .. })
}

fn is_of_connection(error: &SendError) -> bool {
    matches!(error, SendError::Sender { rejects_connection: true, .. })
}

#[tokio::test]
async fn a_late_reply_is_never_taken_for_another() {
    let late = Action::Late(2 * deadlines().envelope);
    for step in [Step::Greeting, Step::Ehlo, Step::Mail, Step::Rcpt, Step::Data, Step::Content] {
        for sink in late_at(step, late).await {
            let mut connection = to(&sink);
            let mail = composed(&sample());
            let error = connection.send(&mail).await.unwrap_err();
            assert_eq!(is_in_doubt(&error), step == Step::Content, "{step:?}: {error:?}");
            assert_eq!(is_unavailable(&error), step != Step::Content, "{step:?}: {error:?}");
            // The server goes on with what it has, and hears nothing more.
            sink.deserted().await;
            let commands = sink.commands();
            let last = commands.last().map_or("", |command| command.split([' ', ':']).next().unwrap());
            let expected = match step {
                Step::Greeting => "",
                Step::Ehlo => "EHLO",
                Step::Mail if commands.len() == 2 => "MAIL",
                Step::Mail | Step::Rcpt => "RCPT",
                _ => "DATA",
            };
            assert_eq!(last, expected, "{step:?}: {commands:?}");
            connection.send(&mail).await.unwrap();
            let taken = sink.mails();
            assert_eq!(taken.len(), if step == Step::Content { 2 } else { 1 }, "{step:?}");
            assert!(taken.iter().all(|taken| taken.bytes == mail.bytes(true).unwrap()), "{step:?}: not a whole email");
        }
    }
}

#[tokio::test]
async fn a_slow_server_gets_every_email_once() {
    let late = Action::Late(deadlines().envelope);
    for step in [Step::Greeting, Step::Ehlo, Step::Mail, Step::Rcpt, Step::Data, Step::Content] {
        for sink in late_at(step, late).await {
            let patient = all_deadlines(Duration::from_secs(10));
            let transport = transport(&sink.url(), &ClientTls::default(), patient);
            let mail = composed(&sample());
            MailConnection::new(Arc::new(transport)).send(&mail).await.unwrap();
            let taken = sink.mails();
            assert_eq!((taken.len(), sink.connections()), (1, 1), "{step:?}");
            assert_eq!(taken[0].bytes, mail.bytes(true).unwrap(), "{step:?}");
        }
    }
}

/// Servers that are late the first time that they are at `step`; with and without pipelining.
async fn late_at(step: Step, late: Action) -> [SmtpSink; 2] {
    let script = move |at, nth| if (at, nth) == (step, 1) { late } else { Action::Ok };
    if step == Step::Ehlo {
        return [SmtpSink::scripted(Tls::No, script).await, SmtpSink::scripted(Tls::No, script).await];
    }
    both(step, |nth| nth == 1, late).await
}

#[tokio::test]
async fn a_server_gone_mad_costs_no_memory() {
    static WITHOUT_END: LazyLock<String> = LazyLock::new(|| "250-x\r\n".repeat(100_000));
    static ONE_LINE: LazyLock<String> = LazyLock::new(|| format!("250 {}", "x".repeat(1_000_000)));
    for answer in [WITHOUT_END.as_str(), ONE_LINE.as_str()] {
        for step in [Step::Greeting, Step::Ehlo, Step::Mail, Step::Rcpt] {
            for sink in both(step, |nth| nth == 1, Action::Answer(answer)).await {
                let error = send(&sink).await.unwrap_err();
                assert!(is_unavailable(&error), "{step:?}: {error:?}");
                assert!(error.to_string().len() < 1_000, "{error}");
            }
        }
    }
}

#[tokio::test]
async fn after_any_doubt_the_next_mail_takes_a_new_connection() {
    for action in [Action::Stall, Action::Drop, Action::Answer("251 maybe")] {
        for sink in both(Step::Content, |nth| nth == 1, action).await {
            let mut connection = to(&sink);
            connection.send(&composed(&sample())).await.unwrap_err();
            connection.send(&composed(&sample())).await.unwrap();
            assert_eq!((sink.mails().len(), sink.connections()), (1, 2), "{action:?}");
        }
    }
}

#[tokio::test]
async fn a_send_that_is_given_up_leaves_no_answer_for_the_next() {
    for sink in both(Step::Rcpt, |nth| nth == 2, Action::Stall).await {
        let mut connection = to(&sink);
        connection.send(&composed(&sample())).await.unwrap();
        let given_up = tokio::time::timeout(Duration::from_millis(100), connection.send(&composed(&sample()))).await;
        assert!(given_up.is_err());
        connection.send(&composed(&sample())).await.unwrap();
        assert_eq!((sink.mails().len(), sink.connections()), (2, 2));
    }
}

#[tokio::test]
async fn a_connection_that_the_server_closed_is_replaced_without_a_word() {
    for action in [Action::Answer("421 idle too long"), Action::Drop] {
        for sink in both(Step::Mail, |nth| nth == 2, action).await {
            let mut connection = to(&sink);
            for _ in 0..3 {
                connection.send(&composed(&sample())).await.unwrap();
            }
            assert_eq!((sink.mails().len(), sink.connections()), (3, 2), "{action:?}");
        }
    }
}

#[tokio::test]
async fn mails_follow_one_another_without_waiting_for_acknowledgements() {
    let sink = SmtpSink::start().await;
    let mut connection = to(&sink);
    let mail = composed(&sample());
    let started = Instant::now();
    for _ in 0..100 {
        connection.send(&mail).await.unwrap();
    }
    // With Nagle's algorithm each of them waits 40 ms.
    assert!(started.elapsed() < Duration::from_secs(2), "{:?}", started.elapsed());
}

fn localhost(sink: &SmtpSink, scheme: &str, login: &str, option: &str) -> String {
    format!("{scheme}://{login}localhost:{}{option}", sink.address.port())
}

#[tokio::test]
async fn connections_are_encrypted_as_the_settings_say() {
    let ca = ThrowAwayCa::new();
    let trusting = ca.client(false);
    let start_tls = || Tls::Upgrade(ca.server_config(false));
    let ok = |_, _| Action::Ok;
    let mail = composed(&sample());

    for (tls, scheme, option, encrypted) in [
        (start_tls(), "smtp", "", true),
        (start_tls(), "smtp", "?tls=required", true),
        (start_tls(), "smtp", "?tls=none", false),
        (Tls::No, "smtp", "", false),
        (Tls::Implicit(ca.server_config(false)), "smtps", "", true),
    ] {
        let sink = SmtpSink::scripted(tls, ok).await;
        let mut connection = connection(&localhost(&sink, scheme, "", option), &trusting);
        connection.send(&mail).await.unwrap();
        connection.send(&mail).await.unwrap();
        assert_eq!(sink.connections(), 1);
        assert!(sink.mails().iter().all(|taken| taken.encrypted == encrypted), "{scheme} {option}");
        assert_eq!(sink.mails()[0].bytes, mail.bytes(true).unwrap());
    }

    for (tls, scheme, option, settings, why) in [
        (Tls::No, "smtp", "?tls=required", &trusting, "?tls=required demands it"),
        (start_tls(), "smtp", "", &ClientTls::default(), "certificate"),
        (Tls::Implicit(ca.server_config(false)), "smtps", "", &ClientTls::default(), "certificate"),
        (Tls::Implicit(ca.server_config(true)), "smtps", "", &trusting, "ertificate"),
    ] {
        let sink = SmtpSink::scripted(tls, ok).await;
        let error = connection(&localhost(&sink, scheme, "", option), settings).send(&mail).await.unwrap_err();
        assert!(is_unavailable(&error) && error.to_string().contains(why), "{error}");
        assert_eq!(sink.mails().len(), 0);
    }

    let with_certificate = ca.client(true);
    let sink = SmtpSink::scripted(Tls::Implicit(ca.server_config(true)), ok).await;
    connection(&localhost(&sink, "smtps", "", ""), &with_certificate).send(&mail).await.unwrap();
}

#[tokio::test]
async fn who_is_hung_up_on_after_the_handshake_is_told_that_it_may_be_the_certificate() {
    let ca = ThrowAwayCa::new();
    let trusting = ca.client(false);
    // Over STARTTLS, the first EHLO is in the clear.
    for (tls, scheme, hangs_up_at, says_so) in [
        (Tls::Upgrade(ca.server_config(false)), "smtp", (Step::Ehlo, 2), true),
        (Tls::Implicit(ca.server_config(false)), "smtps", (Step::Greeting, 1), true),
        (Tls::Upgrade(ca.server_config(false)), "smtp", (Step::Ehlo, 1), false),
        (Tls::Upgrade(ca.server_config(false)), "smtp", (Step::Rcpt, 1), false),
        (Tls::Implicit(ca.server_config(false)), "smtps", (Step::Rcpt, 1), false),
    ] {
        let script = move |at, nth| if (at, nth) == hangs_up_at { Action::Drop } else { Action::Ok };
        let sink = SmtpSink::scripted(tls, script).await;
        let url = localhost(&sink, scheme, "", "");
        let error = connection(&url, &trusting).send(&composed(&sample())).await.unwrap_err();
        let advises = advice::send_error(&error).is_some_and(|it| it.contains("OFFRAMP_TLS_CERTIFICATE"));
        assert_eq!(advises, says_so, "{hangs_up_at:?}: {error}");
    }
}

#[tokio::test]
async fn an_answer_slipped_in_before_encryption_is_refused() {
    let ca = ThrowAwayCa::new();
    let trusting = ca.client(false);
    let script = |at, _| if at == Step::StartTls { Action::Answer("220 go ahead\r\n250 injected") } else { Action::Ok };
    let sink = SmtpSink::scripted(Tls::Upgrade(ca.server_config(false)), script).await;
    let error = connection(&localhost(&sink, "smtp", "", ""), &trusting).send(&composed(&sample())).await.unwrap_err();
    assert!(error.to_string().contains("sent before encryption"), "{error}");
}

#[tokio::test]
async fn passwords_are_sent_encrypted_or_not_at_all_and_never_shown() {
    let ca = ThrowAwayCa::new();
    let trusting = ca.client(false);
    let mail = composed(&sample());
    let login = "marie%40example.com:s%3Acret@";

    let sink = SmtpSink::scripted(Tls::Upgrade(ca.server_config(false)), |_, _| Action::Ok).await;
    connection(&localhost(&sink, "smtp", login, ""), &trusting).send(&mail).await.unwrap();
    // base64 of "\0marie@example.com\0s:cret"
    assert!(sink.commands().contains(&"AUTH PLAIN AG1hcmllQGV4YW1wbGUuY29tAHM6Y3JldA==".to_owned()));

    let sink = SmtpSink::start().await;
    let error = connection(&localhost(&sink, "smtp", login, ""), &trusting).send(&mail).await.unwrap_err();
    assert!(error.to_string().contains("not sent unencrypted"), "{error}");
    assert!(!sink.commands().iter().any(|command| command.starts_with("AUTH")));
    connection(&localhost(&sink, "smtp", login, "?tls=none"), &trusting).send(&mail).await.unwrap();

    let script = |at, _| {
        if at == Step::Ehlo { Action::Answer("250-sink\r\n250-PIPELINING\r\n250 AUTH LOGIN") } else { Action::Ok }
    };
    let sink = SmtpSink::scripted(Tls::No, script).await;
    connection(&localhost(&sink, "smtp", login, "?tls=none"), &trusting).send(&mail).await.unwrap();
    let commands = sink.commands();
    // Nothing is asked again after the login.
    assert_eq!(commands[1..3], ["AUTH LOGIN".to_owned(), "MAIL FROM:<no-reply@mail.example.com>".to_owned()]);

    let script = |at, _| if at == Step::Auth { Action::Answer("535 wrong") } else { Action::Ok };
    let sink = SmtpSink::scripted(Tls::Upgrade(ca.server_config(false)), script).await;
    let url = localhost(&sink, "smtp", login, "");
    let error = connection(&url, &trusting).send(&mail).await.unwrap_err();
    assert!(is_of_connection(&error), "{error}");
    let transport = transport(&url, &trusting, deadlines());
    for shown in [format!("{transport:?}"), error.to_string(), format!("{error:?}")] {
        assert!(!shown.contains("cret") && !shown.contains("marie@example.com\0"), "{shown}");
    }
}

#[tokio::test]
async fn a_token_is_read_for_each_connection() {
    let ca = ThrowAwayCa::new();
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("token");
    let script = |at, nth| match at {
        Step::Auth if nth == 3 => Action::Answer("334 eyJzdGF0dXMiOiI0MDAifQ=="),
        _ => Action::Ok,
    };
    let sink = SmtpSink::scripted(Tls::Upgrade(ca.server_config(false)), script).await;
    let url = MailUrl::parse(&localhost(&sink, "smtp", "marie%40example.com@", "")).unwrap();
    let name = SmtpName::parse("worker.example.com").unwrap();
    let new = |url: &MailUrl| Transport::new(url, name.clone(), ca.client(false).client_config().unwrap(), deadlines());
    let error = new(&url).unwrap_err();
    assert!(advice::mail_config_error(&error).unwrap().contains("OFFRAMP_SMTP_TOKEN_FILE"), "{error}");
    let transport = Arc::new(new(&url.with_token_file(file.clone()).unwrap()).unwrap());
    let send = async || MailConnection::new(Arc::clone(&transport)).send(&composed(&sample())).await;

    let error = send().await.unwrap_err();
    assert!(matches!(error, SendError::Unavailable(_)), "{error}");
    assert!(error.to_string().contains(file.to_str().unwrap()), "{error}");
    for (token, encoded) in [
        ("first.token", "dXNlcj1tYXJpZUBleGFtcGxlLmNvbQFhdXRoPUJlYXJlciBmaXJzdC50b2tlbgEB"),
        ("second-token", "dXNlcj1tYXJpZUBleGFtcGxlLmNvbQFhdXRoPUJlYXJlciBzZWNvbmQtdG9rZW4BAQ=="),
    ] {
        std::fs::write(&file, format!("{token}\n")).unwrap();
        send().await.unwrap();
        assert!(sink.commands().contains(&format!("AUTH XOAUTH2 {encoded}")), "{:?}", sink.commands());
    }
    // The server says why it rejects a token before it does.
    let error = send().await.unwrap_err();
    assert!(is_of_connection(&error) && error.to_string().contains("535 5.7.8"), "{error}");

    for content in ["", " \n", "two tokens", "line\nline"] {
        std::fs::write(&file, content).unwrap();
        assert!(send().await.unwrap_err().to_string().contains("must contain one token"), "{content:?}");
    }
}

#[tokio::test]
async fn check_goes_as_far_as_a_mail_would_and_says_where_it_failed() {
    let check = |sink: &SmtpSink| {
        let transport = transport(&sink.url(), &ClientTls::default(), deadlines());
        async move { transport.check().await }
    };
    let sink = SmtpSink::start().await;
    check(&sink).await.unwrap();
    assert_eq!(sink.commands(), ["EHLO worker.example.com", "QUIT"]);
    let sink = SmtpSink::scripted(Tls::No, |at, _| if at == Step::Ehlo { Action::Stall } else { Action::Ok }).await;
    let error = check(&sink).await.unwrap_err();
    assert!(error.to_string().contains("EHLO: no reply within"), "{error}");
}

#[tokio::test]
async fn a_farewell_is_said() {
    let sink = SmtpSink::start().await;
    let mut connection = to(&sink);
    connection.quit().await;
    connection.send(&composed(&sample())).await.unwrap();
    connection.quit().await;
    assert_eq!(sink.commands().iter().filter(|command| *command == "QUIT").count(), 1);
}

#[tokio::test]
async fn an_address_beyond_ascii_needs_a_server_that_takes_it() {
    let mut notification = sample();
    notification.to.email = "zoé@example.com".to_owned();
    let mail = composed(&notification);
    let sink = SmtpSink::start().await;
    let mut connection = to(&sink);
    let error = connection.send(&mail).await.unwrap_err();
    assert!(matches!(&error, SendError::Permanent(_)) && error.to_string().contains("SMTPUTF8"), "{error}");
    connection.send(&composed(&sample())).await.unwrap();

    let script =
        |at, _| if at == Step::Ehlo { Action::Answer("250-sink\r\n250-8BITMIME\r\n250 SMTPUTF8") } else { Action::Ok };
    let sink = SmtpSink::scripted(Tls::No, script).await;
    to(&sink).send(&mail).await.unwrap();
    assert_eq!(sink.mails()[0].to, ["zoé@example.com"]);
}

#[tokio::test]
async fn an_address_for_answers_beyond_ascii_keeps_no_email_from_its_recipient() {
    let signer = DkimSigner::new(
        DkimKey::parse(offramp_testkit::dkim::ED25519).unwrap(),
        "s1".to_owned(),
        "mail.example.com".to_owned(),
    );
    let mut notification = sample();
    notification.reply_to.email = "josé@example.org".to_owned();
    let mail = composed(&notification).signed_by(Some(Arc::new(signer)));
    let features = "250-sink\r\n250-8BITMIME\r\n250 SMTPUTF8";
    for features in [ONE_BY_ONE, features] {
        let script = move |at, _| if at == Step::Ehlo { Action::Answer(features) } else { Action::Ok };
        let sink = SmtpSink::scripted(Tls::No, script).await;
        to(&sink).send(&mail).await.unwrap();
        let bytes = &sink.mails()[0].bytes;
        let names = header_names(bytes);
        assert!(bytes.is_ascii() && !names.contains("Reply-To") && names.contains("DKIM-Signature"), "{names:?}");
    }
    // Who reads it can read the address.
    notification.to.email = "zoé@example.com".to_owned();
    assert!(String::from_utf8(bytes(&composed(&notification))).unwrap().contains("josé@example.org>\r\n"));
}

// ---- files ----

#[tokio::test]
async fn mails_become_files_that_are_whole_and_safely_named() {
    let directory = tempfile::tempdir().unwrap();
    let mails = directory.path().join("new/mails");
    let mut connection = connection(&format!("file://{}", mails.display()), &ClientTls::default());
    let mail = composed(&sample());
    connection.send(&mail).await.unwrap();
    connection.send(&mail).await.unwrap();
    let names: Vec<_> =
        fs::read_dir(&mails).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    let name = "2026-06-14T120000Z-payment-failed-marie.tremblay_example.com-00000000-0000-0000-0000-00000000002a.eml";
    assert_eq!(names, [name]);
    assert_eq!(fs::read(mails.join(name)).unwrap(), bytes(&mail));
    connection.quit().await;

    fs::remove_dir_all(&mails).unwrap();
    let error = connection.send(&mail).await.unwrap_err();
    assert!(matches!(error, SendError::Unavailable(_)), "{error}");
}
