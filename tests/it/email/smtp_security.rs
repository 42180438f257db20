//! TLS, logins and tokens: nothing secret is sent in the clear or logged.

use std::sync::Arc;

use offramp::advice;
use offramp::tls::Tls as ClientTls;
use offramp_mail::{MailConnection, MailUrl, SendError, SmtpName, Transport};

use super::{composed, connection, deadlines, is_of_connection, is_unavailable, sample, transport};
use offramp_testkit::smtp_sink::{Action, SmtpSink, Step, Tls};
use offramp_testkit::tls::ThrowAwayCa;

fn localhost(sink: &SmtpSink, scheme: &str, login: &str, option: &str) -> String {
    format!("{scheme}://{login}localhost:{}{option}", sink.address.port())
}

#[tokio::test]
async fn connections_are_encrypted_as_configured() {
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
        assert!(sink.emails().iter().all(|taken| taken.encrypted == encrypted), "{scheme} {option}");
        assert_eq!(sink.emails()[0].bytes, mail.bytes(true).unwrap());
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
        assert_eq!(sink.emails().len(), 0);
    }

    let with_certificate = ca.client(true);
    let sink = SmtpSink::scripted(Tls::Implicit(ca.server_config(true)), ok).await;
    connection(&localhost(&sink, "smtps", "", ""), &with_certificate).send(&mail).await.unwrap();
}

#[tokio::test]
async fn a_hangup_right_after_the_handshake_suggests_a_certificate_problem() {
    let ca = ThrowAwayCa::new();
    let trusting = ca.client(false);
    // With STARTTLS, the first EHLO is unencrypted.
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
async fn a_reply_injected_before_encryption_is_rejected() {
    let ca = ThrowAwayCa::new();
    let trusting = ca.client(false);
    let script = |at, _| if at == Step::StartTls { Action::Answer("220 go ahead\r\n250 injected") } else { Action::Ok };
    let sink = SmtpSink::scripted(Tls::Upgrade(ca.server_config(false)), script).await;
    let error = connection(&localhost(&sink, "smtp", "", ""), &trusting).send(&composed(&sample())).await.unwrap_err();
    assert!(error.to_string().contains("sent before encryption"), "{error}");
}

#[tokio::test]
async fn passwords_are_only_sent_encrypted_and_never_shown() {
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
    // There is no second EHLO after the login.
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
