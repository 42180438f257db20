//! `offramp preview` over HTTP: what it shows, what it sends, and which requests it rejects. (`make mail-audit` drives its page in a
//! browser.)

use std::path::Path;

use mail_parser::MessageParser;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::net::TcpStream;

use offramp_testkit::preview_process::{MAIL, PreviewProcess, write_words};
use offramp_testkit::smtp_sink::{Action, SmtpSink, Step, Tls};

#[tokio::test]
async fn preview_shows_every_part_of_every_email() {
    let preview = PreviewProcess::start(&[]);
    let page = preview.get("/").await;
    assert!(
        page.status == 200 && page.headers.contains("content-security-policy: default-src 'none'"),
        "{}",
        page.headers
    );
    assert!(!page.body.contains("{nonce}"));

    let list = preview.get("/mails").await.json();
    assert_eq!(list["locales"], json!(["en", "en-CA", "es", "es-MX", "fr", "fr-CA"]));
    assert_eq!((&list["directory"], &list["problems"]), (&Value::Null, &json!([])));
    let mut seen = 0;
    for mail in list["mails"].as_array().unwrap() {
        for variant in mail["variants"].as_array().unwrap() {
            let (mail, variant) = (mail["name"].as_str().unwrap(), variant.as_str().unwrap());
            let path = format!("/mails/fr-CA/{mail}/{variant}");
            let shown = preview.get(&path).await.json();
            let subject = shown["subject"].as_str().unwrap();
            assert!(!subject.is_empty() && shown["text"].as_str().unwrap().contains("Club Boréal"), "{path}: {shown}");
            let headers = shown["headers"].as_str().unwrap();
            assert!(headers.contains("\nContent-Language: fr-CA\n"), "{headers}");

            let (light, dark) =
                (preview.get(&format!("{path}/light.html")).await, preview.get(&format!("{path}/dark.html")).await);
            for html in [&light, &dark] {
                assert!(html.headers.contains("; sandbox allow-same-origin allow-popups"), "{}", html.headers);
                assert!(html.body.contains("<base target=\"_blank\">") && !html.body.contains("prefers-color-scheme"));
                assert!(!html.body.contains("boreal.example/logo"), "the logo is drawn here");
            }
            assert_ne!(light.body, dark.body, "{path}");

            let eml = preview.get(&format!("{path}/mail.eml")).await;
            assert!(
                eml.headers.contains(&format!("attachment; filename=\"fr-ca.{mail}.{variant}.eml\"")),
                "{}",
                eml.headers
            );
            let parsed = MessageParser::default().parse(&eml.body).unwrap();
            assert_eq!((parsed.subject(), parsed.parts.len()), (Some(subject), 3));
            seen += 1;
        }
    }
    assert!(seen > 24, "{seen}");
    for nothing in ["/mails/fr-CA/no-such.mail/full", "/mails/fr-CA/payment-failed.account_manager/none", "/nothing"] {
        assert_eq!(preview.get(nothing).await.status, 404, "{nothing}");
    }
    assert_eq!(preview.interrupt().await.code(), Some(0));
}

#[tokio::test]
async fn preview_reloads_saved_templates_and_reports_mistakes() {
    let directory = tempfile::tempdir().unwrap();
    write_words(directory.path(), "\n{{plan_name}}\n");
    let preview = PreviewProcess::start(&[("OFFRAMP_TEMPLATES", directory.path().to_str().unwrap())]);
    let mut changes = preview.request("GET /changes", &[], "").await;
    let mail = format!("/mails/fr-CA/{MAIL}/full");
    let text = || async { preview.get(&mail).await.json()["text"].as_str().unwrap().to_owned() };

    let list = preview.get("/mails").await.json();
    assert!(list["problems"][0]["message"].as_str().unwrap().contains("`plan_name`"), "{list}");
    assert!(list["problems"][0]["line"].as_u64().unwrap() > 1, "{list}");
    assert!(list["problems"][0]["file"].as_str().unwrap().contains(&format!("fr/{MAIL}")), "{list}");
    assert!(text().await.contains("Bonjour"), "the built-in template, until the mistake is corrected");

    write_words(directory.path(), "\nTout neuf.\n");
    next_change(&mut changes, &preview, |list| list["problems"] == json!([])).await;
    assert!(text().await.contains("Tout neuf."), "{}", text().await);

    write_words(directory.path(), "\n{{#if note}}\n");
    next_change(&mut changes, &preview, |list| list["problems"] != json!([])).await;
    assert!(text().await.contains("Tout neuf."), "the last valid template is kept");

    std::fs::remove_dir_all(directory.path().join("fr")).unwrap();
    next_change(&mut changes, &preview, |list| list["problems"] == json!([])).await;
    assert!(!text().await.contains("Tout neuf."));
    // An open stream of changes must not keep the process alive.
    assert_eq!(preview.interrupt().await.code(), Some(0));
    let mut rest = Vec::new();
    changes.read_to_end(&mut rest).await.unwrap();
}

/// Reads the stream of changes until the list of emails satisfies `is_there`.
async fn next_change(changes: &mut BufReader<TcpStream>, preview: &PreviewProcess, is_there: impl Fn(&Value) -> bool) {
    let waiting = async {
        loop {
            let mut line = String::new();
            assert!(changes.read_line(&mut line).await.unwrap() > 0, "the changes have ended");
            if line.starts_with("data:") && is_there(&preview.get("/mails").await.json()) {
                return;
            }
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(60), waiting).await.expect("a change");
}

#[tokio::test]
async fn preview_sends_an_email_and_shows_the_servers_reply() {
    let sink = SmtpSink::scripted(Tls::No, |at, nth| match (at, nth) {
        (Step::Rcpt, 2) => Action::Answer("550 no such user"),
        _ => Action::Ok,
    })
    .await;
    let preview =
        PreviewProcess::start(&[("OFFRAMP_SMTP_URL", &sink.url()), ("OFFRAMP_MAIL_FROM", "club@mail.example")]);
    let sent = preview.send("me@example.org", &[("Origin", &format!("http://{}", preview.address))]).await;
    assert_eq!((sent.status, sent.json()), (200, json!({ "sent": true, "answer": "250 taken" })));
    let taken = sink.emails().remove(0);
    assert_eq!((taken.from.as_str(), taken.to), ("club@mail.example", vec!["me@example.org".to_owned()]));
    let parsed = MessageParser::default().parse(&taken.bytes).unwrap();
    assert_eq!(parsed.header_raw("X-Offramp-Template").map(str::trim), Some("request-declined"));

    let refused = preview.send("nobody@example.org", &[]).await;
    let answer = refused.json()["answer"].as_str().unwrap().to_owned();
    assert!(refused.status == 502 && answer.contains("550") && answer.contains("no such user"), "{answer}");

    let wrong = preview.send("me@example.org>\r\nRCPT TO:<x@example.org", &[]).await;
    let answer = wrong.json()["answer"].as_str().unwrap().to_owned();
    assert!(wrong.status == 422 && answer.contains("is invalid"), "{answer}");
    assert_eq!(sink.emails().len(), 1);

    let directory = tempfile::tempdir().unwrap();
    let url = format!("file://{}", directory.path().join("mails").display());
    let preview = PreviewProcess::start(&[("OFFRAMP_SMTP_URL", &url)]);
    assert!(!directory.path().join("mails").exists(), "nothing is created before an email is sent");
    let sent = preview.send("me@example.org", &[]).await.json();
    assert!(Path::new(sent["answer"].as_str().unwrap()).is_file(), "{sent}");
}

#[tokio::test]
async fn requests_from_other_origins_are_rejected() {
    let sink = SmtpSink::start().await;
    let preview = PreviewProcess::start(&[("OFFRAMP_SMTP_URL", &sink.url())]);
    for origin in ["https://evil.example", "null", "http://localhost:1"] {
        assert_eq!(preview.send("me@example.org", &[("Origin", origin)]).await.status, 403, "{origin}");
    }
    // A form, which browsers send without a CORS preflight.
    let form = [("Content-Type", "text/plain")];
    let sent = preview.ask(&format!("POST /mails/fr-CA/{MAIL}/full/send"), &form, "{\"to\":\"me@example.org\"}").await;
    assert_eq!(sent.status, 415);
    // A foreign name that resolves to this machine (DNS rebinding).
    for path in ["/", "/mails", "/changes", &format!("/mails/fr-CA/{MAIL}/full/mail.eml")] {
        let answer = preview.ask(&format!("GET {path}"), &[("Host", "evil.example:9465")], "").await;
        assert!(answer.status == 403 && answer.body.contains("open this page at localhost"), "{path}: {}", answer.body);
    }
    let sent = preview.send("me@example.org", &[("Host", "evil.example"), ("Origin", "http://evil.example")]).await;
    assert_eq!((sent.status, sink.emails().len()), (403, 0));
}
