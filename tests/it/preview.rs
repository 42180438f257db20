//! `offramp preview` over HTTP: what it shows, what it sends, and which requests it rejects. (`make mail-audit` drives its page in a
//! browser.)

use std::fs;
use std::path::Path;

use mail_parser::MessageParser;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::net::TcpStream;

use offramp_testkit::preview_process::{EMAIL, PreviewProcess, write_words};
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

    let list = preview.get("/emails").await.json();
    for locale in ["en", "en-CA", "es", "es-MX", "fr", "fr-CA"] {
        assert!(list["locales"].as_array().unwrap().contains(&json!(locale)), "{list}");
    }
    assert_eq!((&list["directory"], &list["problems"]), (&Value::Null, &json!([])));
    let mut seen = 0;
    for email in list["emails"].as_array().unwrap() {
        for variant in email["variants"].as_array().unwrap() {
            assert!(variant["words"].as_str().unwrap().starts_with(char::is_uppercase), "{variant}");
            let (email, variant) = (email["name"].as_str().unwrap(), variant["name"].as_str().unwrap());
            let path = format!("/emails/fr-CA/{email}/{variant}");
            let shown = preview.get(&path).await.json();
            let subject = shown["subject"].as_str().unwrap();
            assert!(!subject.is_empty() && shown["text"].as_str().unwrap().contains("Club Boréal"), "{path}: {shown}");
            assert_eq!(
                (&shown["inbox"]["sender"], &shown["inbox"]["subject"]),
                (&json!("Club Boréal"), &json!(subject))
            );
            assert!(!shown["inbox"]["text"].as_str().unwrap().is_empty(), "{path}");
            let headers = shown["headers"].as_str().unwrap();
            assert!(headers.contains("\nContent-Language: fr-CA\n"), "{headers}");

            let (light, dark) =
                (preview.get(&format!("{path}/light.html")).await, preview.get(&format!("{path}/dark.html")).await);
            for html in [&light, &dark] {
                assert!(html.headers.contains("; sandbox allow-same-origin allow-popups"), "{}", html.headers);
                assert!(html.body.contains("<base target=\"_blank\">") && !html.body.contains("prefers-color-scheme"));
                assert!(!html.body.contains("boreal.example/logo") && !html.body.contains("logo.invalid"), "{path}");
            }
            assert_ne!(light.body, dark.body, "{path}");

            let eml = preview.get(&format!("{path}/email.eml")).await;
            assert!(
                eml.headers.contains(&format!("attachment; filename=\"fr-ca.{email}.{variant}.eml\"")),
                "{}",
                eml.headers
            );
            let parsed = MessageParser::default().parse(&eml.body).unwrap();
            assert_eq!((parsed.subject(), parsed.parts.len()), (Some(subject), 3));
            seen += 1;
        }
    }
    assert!(seen > 24, "{seen}");
    for nothing in ["/emails/fr-CA/no-such.mail/full", "/emails/fr-CA/payment-failed.account_manager/none", "/nothing"]
    {
        assert_eq!(preview.get(nothing).await.status, 404, "{nothing}");
    }
    assert_eq!(preview.interrupt().await.code(), Some(0));
}

#[tokio::test]
async fn preview_shows_other_brands_and_the_html_source() {
    let preview = PreviewProcess::start(&[]);
    let list = preview.get("/emails").await.json();
    let frequent = list["emails"][0]["name"].as_str().unwrap();
    assert!(frequent.starts_with("payment-failed"), "the commonest email comes first: {frequent}");
    let email = format!("/emails/fr-CA/{EMAIL}/full");
    let own = preview.get(&format!("{email}/light.html")).await.body;
    for look in list["looks"].as_array().unwrap() {
        let look = look["name"].as_str().unwrap();
        let html = preview.get(&format!("{email}/light.html?look={look}&2")).await;
        assert_eq!((html.status, html.body == own), (200, matches!(look, "own" | "with-logo")), "{look}");
        assert_eq!(html.body.contains("<img"), look != "without-logo", "{look}");
        let source = preview.get(&format!("{email}/source.html?look={look}")).await;
        assert!(source.headers.contains("content-type: text/plain"), "{}", source.headers);
        assert!(source.body.starts_with("<!doctype html>"), "{}", source.body);
    }
    assert_eq!(preview.get(&format!("{email}?look=none")).await.status, 404);

    // A logo in the colour of the brand, without a background.
    assert!(own.contains("src=\"/logo/0a7d4f.svg\""));
    let logo = preview.get("/logo/0a7d4f.svg").await;
    assert!(logo.body.contains("fill=\"#0a7d4f\"") && !logo.body.contains("<rect"), "{}", logo.body);
    assert!(logo.headers.contains("content-security-policy: default-src 'none'; sandbox"), "{}", logo.headers);
    assert_eq!(preview.get("/logo/%22%3E%3Cscript%3E.svg").await.status, 404);
}

#[tokio::test]
async fn a_language_is_shown_as_far_as_it_is_written() {
    let directory = tempfile::tempdir().unwrap();
    let write = |file: &str, text: &str| fs::write(directory.path().join(file), text).unwrap();
    fs::create_dir_all(directory.path().join("nl")).unwrap();
    write("nl/_footer.account_manager.md", "Tot ziens.\n");
    write(&format!("nl/{EMAIL}.md"), "Subject: Afgewezen\n\n# Uw verzoek is afgewezen\n");
    fs::create_dir_all(directory.path().join("fr")).unwrap();
    write("fr/card-expiring.account_manager.md", "Subject: {{#if\n\n# Carte\n");
    let preview = PreviewProcess::start(&[("OFFRAMP_TEMPLATES", directory.path().to_str().unwrap())]);
    let mut changes = preview.request("GET /changes", &[], "").await;

    let list = preview.get("/emails").await.json();
    let problems = list["problems"].as_array().unwrap();
    let of = |what: &str| problems.iter().filter(|problem| problem["file"].as_str().unwrap().contains(what)).count();
    assert_eq!((of("nl"), of("fr/card-expiring")), (1, 1), "one line for all that is missing: {problems:#?}");
    let missing = list["missing"]["nl"].as_array().unwrap();
    assert!(!missing.contains(&json!(EMAIL)) && missing.contains(&json!("payment-failed.account_manager")), "{list}");
    assert_eq!(list["outdated"]["fr-CA"], json!(["card-expiring.account_manager"]));

    let written = preview.get(&format!("/emails/nl/{EMAIL}/full")).await.json();
    assert!(written["text"].as_str().unwrap().contains("Uw verzoek is afgewezen"), "{written}");
    let unwritten = preview.get("/emails/nl/payment-failed.account_manager/full").await;
    assert!(unwritten.status == 404 && unwritten.body.contains("not written in nl yet"), "{}", unwritten.body);
    let before = preview.get("/emails/fr-CA/card-expiring.account_manager/full").await;
    assert_eq!(before.status, 200, "the built-in email, while the author's has a mistake: {}", before.body);

    // A mistake: the last valid version stays. The file is removed: the email is not written any more.
    write(&format!("nl/{EMAIL}.md"), "Subject: {{#if\n\n# Uw\n");
    next_change(&mut changes, &preview, |list| list["outdated"]["nl"] == json!([EMAIL])).await;
    let kept = preview.get(&format!("/emails/nl/{EMAIL}/full")).await.json();
    assert!(kept["text"].as_str().unwrap().contains("Uw verzoek is afgewezen"), "{kept}");
    fs::remove_file(directory.path().join(format!("nl/{EMAIL}.md"))).unwrap();
    write("nl/card-expiring.account_manager.md", "Subject: Kaart\n\n# Uw kaart\n");
    next_change(&mut changes, &preview, |list| {
        list["outdated"]["nl"] == Value::Null && list["missing"]["nl"].as_array().unwrap().contains(&json!(EMAIL))
    })
    .await;
    assert_eq!(preview.get("/emails/nl/card-expiring.account_manager/full").await.status, 200);
}

#[tokio::test]
async fn samples_show_the_organization_of_a_file() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let path = file.path().to_str().unwrap();
    let write = |organization: &Value| fs::write(path, organization.to_string()).unwrap();
    let mut organization = json!({
        "_id": "magog", "name": "Centre sportif de Magog", "locale": "fr_CA", "timezone": "America/Toronto",
        "contact": { "email": "accueil@magog.example" }, "client_cancellation": "request",
        "brand": { "color": "#b3261e", "logo_url": "https://magog.example/logo.png" },
        "admin_url": "https://admin.magog.example/{subscription_id}",
    });
    write(&organization);
    let preview = PreviewProcess::start_with(&["--organization", path], &[]);
    let mut changes = preview.request("GET /changes", &[], "").await;
    let list = preview.get("/emails").await.json();
    assert_eq!((&list["organization"], &list["locale"]), (&json!("Centre sportif de Magog"), &json!("fr-CA")));
    assert_eq!(list["problems"], json!([]));
    let email = "/emails/fr-CA/cancellation-requested.organization_contact/full";
    let shown = preview.get(email).await.json();
    assert_eq!((&shown["inbox"]["sender"], &shown["to"]), (&list["organization"], &json!("accueil@magog.example")));
    assert!(shown["text"].as_str().unwrap().contains("https://admin.magog.example/sub-0042"), "{shown}");
    let html = preview.get(&format!("{email}/light.html")).await.body;
    assert!(html.contains("#b3261e") && html.contains("https://magog.example/logo.png"), "{html}");
    assert!(!html.contains("Club Boréal") && !html.contains("boreal.example"), "{html}");

    // A mistake is reported by field; the last organization that could be read stays.
    organization["name"] = json!(7);
    write(&organization);
    next_change(&mut changes, &preview, |list| list["problems"] != json!([])).await;
    let list = preview.get("/emails").await.json();
    assert_eq!(list["problems"][0]["message"], "name: expected text, found an integer");
    assert_eq!(list["organization"], "Centre sportif de Magog");

    // Whatever the file says, no script gets into an email or into the page.
    let script = "</title></style></script><script>alert(1)</script>\"'><img src=x onerror=alert(1)>{{plan}}";
    organization["name"] = json!(script);
    organization["contact"] = json!({ "email": "a@b.example", "phone": script, "address": script, "website": script });
    organization["brand"] =
        json!({ "color": format!("red;{script}"), "logo_url": format!("https://x.example/{script}") });
    organization["admin_url"] = json!(format!("javascript:alert(1)//{script}"));
    write(&organization);
    next_change(&mut changes, &preview, |list| list["organization"] == json!(script)).await;
    for look in ["own", "white", "with-logo"] {
        for scheme in ["light", "dark"] {
            let html = preview.get(&format!("{email}/{scheme}.html?look={look}")).await;
            assert!(!html.body.contains("<script") && !html.body.contains("<img src=x"), "{}", html.body);
            assert!(!html.body.contains("javascript:") && !html.body.contains("'><img"), "{}", html.body);
            assert!(html.headers.contains("content-security-policy: default-src 'none'"), "{}", html.headers);
        }
    }
    assert!(!preview.get("/").await.body.contains("alert(1)"));
    let eml = preview.get(&format!("{email}/email.eml")).await.body;
    let parsed = MessageParser::default().parse(&eml).unwrap();
    assert!(parsed.from().unwrap().first().unwrap().address().unwrap().ends_with("@localhost"), "{eml}");
}

#[tokio::test]
async fn preview_reloads_saved_templates_and_reports_mistakes() {
    let directory = tempfile::tempdir().unwrap();
    write_words(directory.path(), "\n{{plan_name}}\n");
    let preview = PreviewProcess::start(&[("OFFRAMP_TEMPLATES", directory.path().to_str().unwrap())]);
    let mut changes = preview.request("GET /changes", &[], "").await;
    let email = format!("/emails/fr-CA/{EMAIL}/full");
    let text = || async { preview.get(&email).await.json()["text"].as_str().unwrap().to_owned() };

    let list = preview.get("/emails").await.json();
    assert!(list["problems"][0]["message"].as_str().unwrap().contains("`plan_name`"), "{list}");
    assert!(list["problems"][0]["line"].as_u64().unwrap() > 1, "{list}");
    assert!(list["problems"][0]["file"].as_str().unwrap().contains(&format!("fr/{EMAIL}")), "{list}");
    assert!(text().await.contains("Bonjour"), "the built-in template, until the mistake is corrected");

    write_words(directory.path(), "\nTout neuf.\n");
    next_change(&mut changes, &preview, |list| list["problems"] == json!([])).await;
    assert!(text().await.contains("Tout neuf."), "{}", text().await);

    write_words(directory.path(), "\n{{#if note}}\n");
    next_change(&mut changes, &preview, |list| list["problems"] != json!([])).await;
    assert!(text().await.contains("Tout neuf."), "the last valid template is kept");

    fs::remove_dir_all(directory.path().join("fr")).unwrap();
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
            if line.starts_with("data:") && is_there(&preview.get("/emails").await.json()) {
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
    let sent =
        preview.ask(&format!("POST /emails/fr-CA/{EMAIL}/full/send"), &form, "{\"to\":\"me@example.org\"}").await;
    assert_eq!(sent.status, 415);
    // A foreign name that resolves to this machine (DNS rebinding).
    for path in ["/", "/emails", "/changes", &format!("/emails/fr-CA/{EMAIL}/full/email.eml")] {
        let answer = preview.ask(&format!("GET {path}"), &[("Host", "evil.example:9465")], "").await;
        assert!(answer.status == 403 && answer.body.contains("open this page at localhost"), "{path}: {}", answer.body);
    }
    let sent = preview.send("me@example.org", &[("Host", "evil.example"), ("Origin", "http://evil.example")]).await;
    assert_eq!((sent.status, sink.emails().len()), (403, 0));
}
