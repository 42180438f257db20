//! The SMTP dialogue: whose fault a failure is, and what happens to the connection.

use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use offramp::tls::Tls as ClientTls;
use offramp_mail::{DkimKey, DkimSigner, MailConnection, SendError, Sender};

use super::{
    all_deadlines, bytes, composed, connection, deadlines, header_names, is_of_connection, is_unavailable, sample,
    send, to, transport,
};
use offramp_testkit::eventually;
use offramp_testkit::smtp_sink::{Action, SmtpSink, Step, Tls};

/// The EHLO reply of a server without pipelining.
const ONE_BY_ONE: &str = "250-sink\r\n250 8BITMIME";

/// Two servers, with and without pipelining, that do `action` at those occurrences of `step` that `nth` selects.
async fn both(step: Step, nth: impl Fn(usize) -> bool + Copy + Send + Sync + 'static, action: Action) -> [SmtpSink; 2] {
    let script = move |at, time| if at == step && nth(time) { action } else { Action::Ok };
    let slow = move |at, time| match script(at, time) {
        Action::Ok if at == Step::Ehlo => Action::Answer(ONE_BY_ONE),
        action => action,
    };
    [SmtpSink::scripted(Tls::No, script).await, SmtpSink::scripted(Tls::No, slow).await]
}

#[tokio::test]
async fn a_rejected_email_leaves_the_connection_usable() {
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
            assert_eq!((sink.emails().len(), sink.connections()), (1, 1), "{step:?} {answer}");
            assert_eq!(sink.commands().iter().filter(|command| *command == "RSET").count(), 1);
        }
    }
}

#[tokio::test]
async fn data_is_sent_only_after_the_recipient_is_accepted() {
    for sink in both(Step::Rcpt, |_| true, Action::Answer("550 no such user")).await {
        let error = send(&sink).await.unwrap_err();
        assert!(matches!(error, SendError::Permanent(_)), "{error:?}");
        sink.deserted().await;
        assert!(!sink.commands().iter().any(|command| command == "DATA"), "{:?}", sink.commands());
    }
}

#[tokio::test]
async fn a_rejected_sender_is_reported_with_the_servers_reply() {
    for sink in both(Step::Mail, |nth| nth == 1, Action::Answer("550 5.7.60 not you")).await {
        let mut connection = to(&sink);
        let error = connection.send(&composed(&sample())).await.unwrap_err();
        assert!(is_of_sender(&error) && error.to_string().contains("not you"), "{error:?}");
        // With pipelining, the reply to RCPT has been read as well.
        connection.send(&composed(&sample())).await.unwrap();
        assert_eq!((sink.emails().len(), sink.connections()), (1, 1));
    }
}

#[tokio::test]
async fn failures_are_classified_by_the_servers_reply() {
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
            assert_eq!(sink.emails().len(), 0, "{step:?} {action:?}");
        }
    }
    let error = connection("smtp://127.0.0.1:1", &ClientTls::default()).send(&composed(&sample())).await.unwrap_err();
    assert!(is_unavailable(&error), "{error:?}");
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

#[tokio::test]
async fn a_late_reply_is_never_read_as_the_reply_to_another_command() {
    let late = Action::Late(2 * deadlines().envelope);
    for step in [Step::Greeting, Step::Ehlo, Step::Mail, Step::Rcpt, Step::Data, Step::Content] {
        for sink in late_at(step, late).await {
            let mut connection = to(&sink);
            let mail = composed(&sample());
            let error = connection.send(&mail).await.unwrap_err();
            assert_eq!(is_in_doubt(&error), step == Step::Content, "{step:?}: {error:?}");
            assert_eq!(is_unavailable(&error), step != Step::Content, "{step:?}: {error:?}");
            // The client has hung up and sends nothing more.
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
            let taken = sink.emails();
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
            let taken = sink.emails();
            assert_eq!((taken.len(), sink.connections()), (1, 1), "{step:?}");
            assert_eq!(taken[0].bytes, mail.bytes(true).unwrap(), "{step:?}");
        }
    }
}

/// Servers with and without pipelining that reply late to the first occurrence of `step`.
async fn late_at(step: Step, late: Action) -> [SmtpSink; 2] {
    let script = move |at, nth| if (at, nth) == (step, 1) { late } else { Action::Ok };
    if step == Step::Ehlo {
        return [SmtpSink::scripted(Tls::No, script).await, SmtpSink::scripted(Tls::No, script).await];
    }
    both(step, |nth| nth == 1, late).await
}

#[tokio::test]
async fn endless_replies_are_cut_off() {
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
async fn after_a_delivery_in_doubt_the_next_email_uses_a_new_connection() {
    for action in [Action::Stall, Action::Drop, Action::Answer("251 maybe")] {
        for sink in both(Step::Content, |nth| nth == 1, action).await {
            let mut connection = to(&sink);
            connection.send(&composed(&sample())).await.unwrap_err();
            connection.send(&composed(&sample())).await.unwrap();
            assert_eq!((sink.emails().len(), sink.connections()), (1, 2), "{action:?}");
        }
    }
}

#[tokio::test]
async fn a_cancelled_send_leaves_no_reply_for_the_next_email() {
    for sink in both(Step::Rcpt, |nth| nth == 2, Action::Stall).await {
        let mut connection = to(&sink);
        connection.send(&composed(&sample())).await.unwrap();
        let recipients = || sink.commands().iter().filter(|command| command.starts_with("RCPT")).count();
        let mail = composed(&sample());
        tokio::select! {
            sent = connection.send(&mail) => panic!("{sent:?}"),
            () = eventually("the second recipient", async || recipients() == 2) => {}
        }
        connection.send(&composed(&sample())).await.unwrap();
        assert_eq!((sink.emails().len(), sink.connections()), (2, 2));
    }
}

#[tokio::test]
async fn a_connection_closed_by_the_server_is_replaced_silently() {
    for action in [Action::Answer("421 idle too long"), Action::Drop] {
        for sink in both(Step::Mail, |nth| nth == 2, action).await {
            let mut connection = to(&sink);
            for _ in 0..3 {
                connection.send(&composed(&sample())).await.unwrap();
            }
            assert_eq!((sink.emails().len(), sink.connections()), (3, 2), "{action:?}");
        }
    }
}

#[tokio::test]
async fn emails_are_not_delayed_by_nagles_algorithm() {
    let sink = SmtpSink::start().await;
    let mut connection = to(&sink);
    let mail = composed(&sample());
    let started = Instant::now();
    for _ in 0..200 {
        connection.send(&mail).await.unwrap();
    }
    // Nagle's algorithm would delay each email by 40 ms.
    assert!(started.elapsed() < Duration::from_secs(6), "{:?}", started.elapsed());
}

#[tokio::test]
async fn check_connects_and_reports_the_failing_step() {
    let check = |sink: &SmtpSink| {
        let transport = transport(&sink.url(), &ClientTls::default(), deadlines());
        let sender = Sender::parse("no-reply@offramp.example").unwrap();
        async move { transport.check(&sender).await }
    };
    let sink = SmtpSink::start().await;
    assert!(!check(&sink).await.unwrap().is_empty(), "the server's greeting");
    let sender = "MAIL FROM:<no-reply@offramp.example>";
    assert_eq!(sink.commands(), ["EHLO worker.example.com", sender, "RSET", "QUIT"]);
    let rejects = |at, _| if at == Step::Mail { Action::Answer("550 5.7.1 Not yours") } else { Action::Ok };
    let sink = SmtpSink::scripted(Tls::No, rejects).await;
    let error = check(&sink).await.unwrap_err();
    assert!(
        error.to_string().contains("MAIL: 550 5.7.1 Not yours") && !error.to_string().contains("unavailable"),
        "{error}"
    );
    assert_eq!(sink.commands(), ["EHLO worker.example.com", sender, "RSET", "QUIT"]);
    let sink = SmtpSink::scripted(Tls::No, |at, _| if at == Step::Ehlo { Action::Stall } else { Action::Ok }).await;
    let error = check(&sink).await.unwrap_err();
    assert!(error.to_string().contains("EHLO: no reply within"), "{error}");
}

#[tokio::test]
async fn quit_is_sent_once_per_connection() {
    let sink = SmtpSink::start().await;
    let mut connection = to(&sink);
    connection.quit().await;
    connection.send(&composed(&sample())).await.unwrap();
    connection.quit().await;
    assert_eq!(sink.commands().iter().filter(|command| *command == "QUIT").count(), 1);
}

#[tokio::test]
async fn a_non_ascii_recipient_requires_smtputf8() {
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
    assert_eq!(sink.emails()[0].to, ["zoé@example.com"]);
}

#[tokio::test]
async fn a_non_ascii_reply_to_is_omitted_for_an_ascii_recipient() {
    let signer = DkimSigner::new(
        DkimKey::parse(offramp_testkit::dkim::ED25519).unwrap(),
        "s1".to_owned(),
        "mail.example.com".to_owned(),
    );
    let mut notification = sample();
    notification.reply_to.as_mut().unwrap().email = "josé@example.org".to_owned();
    let mail = composed(&notification).signed_by(Some(Arc::new(signer)));
    let features = "250-sink\r\n250-8BITMIME\r\n250 SMTPUTF8";
    for features in [ONE_BY_ONE, features] {
        let script = move |at, _| if at == Step::Ehlo { Action::Answer(features) } else { Action::Ok };
        let sink = SmtpSink::scripted(Tls::No, script).await;
        to(&sink).send(&mail).await.unwrap();
        let bytes = &sink.emails()[0].bytes;
        let names = header_names(bytes);
        assert!(bytes.is_ascii() && !names.contains("Reply-To") && names.contains("DKIM-Signature"), "{names:?}");
    }
    // A recipient that needs SMTPUTF8 can read the address.
    notification.to.email = "zoé@example.com".to_owned();
    assert!(String::from_utf8(bytes(&composed(&notification))).unwrap().contains("josé@example.org>\r\n"));
}
