//! Hostile input: no message exhausts memory, no name becomes a header, HTML or a template, and no failure shows a password.

use std::collections::BTreeSet;
use std::io::Read;
use std::process::{Command, Stdio};

use bson::{Bson, doc};
use mail_parser::{MessageParser, MimeHeaders};
use serde_json::json;

use crate::cli::run;
use offramp_testkit::fixtures::{account, organization, subscription};
use offramp_testkit::proxy::Proxy;
use offramp_testkit::smtp_sink::{Action, SmtpSink, Step, Tls};
use offramp_testkit::test_bed::TestBed;
use offramp_testkit::worker_process::{WorkerProcess, bare};
use offramp_testkit::{eventually, fixtures};

// --------------------------------------------------------------------------------------------------------- memory ---

#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread")]
async fn oversized_messages_become_dead_letters_within_bounded_memory() {
    const MESSAGES: u8 = 100;
    const MESSAGE_BYTES: usize = 4 * 1024 * 1024;
    const MEMORY_BYTES_MAX: u64 = 250 * 1024 * 1024;
    let bed = TestBed::new("memory").await;
    let sink = SmtpSink::start().await;
    bed.collection("organizations").insert_one(organization("org")).await.unwrap();
    bed.collection("accounts").insert_one(account("acc", "org")).await.unwrap();
    bed.collection("subscriptions").insert_one(subscription("sub", "org", "acc")).await.unwrap();
    let (line, mongodb_url) = Proxy::in_front_of_mongodb(&bed.mongodb_url).await;
    let worker = WorkerProcess::start_with(&bed, &sink.url(), &[("OFFRAMP_MONGODB_URL", &mongodb_url)]).await;

    // The lane cannot finish this command, so all following messages stay in flight.
    line.stall();
    bed.command(&fixtures::cancellation("c", "sub")).await;
    let body = |number| vec![number; MESSAGE_BYTES];
    for number in 0..MESSAGES {
        bed.publish("subscription.cancellation", &body(number)).await;
    }
    // At its byte limit the consumer stops reading. It then misses heartbeats too, and finally loses its connection.
    eventually("a lane that lost its connection", || async {
        worker.readyz().await.filter(|answer| answer.body.contains("its channel is gone"))
    })
    .await;
    assert_eq!(worker.settled().await, 0);

    line.resume();
    let mut left: BTreeSet<u8> = (0..MESSAGES).collect();
    while !left.is_empty() {
        let dead = bed.dead_letter().await;
        assert_eq!(dead.header("offramp-reason"), "too_large");
        assert!(left.remove(&dead.body[0]) && dead.body == body(dead.body[0]), "{}", dead.body[0]);
    }
    bed.outboxes_empty().await;
    assert_eq!(sink.emails().len(), 1);
    let peak = worker.peak_memory();
    println!("peak memory: {} MiB", peak / 1024 / 1024);
    assert!(peak < MEMORY_BYTES_MAX, "{peak}");
    assert!(worker.stop().await.success());
    bed.remove().await;
}

// ---------------------------------------------------------------------------------------------------------- emails ---

/// Tries to inject a header, HTML and a template expression.
const HOSTILE: &str =
    "{{manager.email}}{{{x}}}{{> facts}}\r\nBcc: victim@evil.example\r\n\r\n<script>alert('\"1\"')</script>";

#[tokio::test(flavor = "multi_thread")]
async fn hostile_names_reasons_and_brands_inject_nothing_into_emails() {
    let bed = TestBed::new("hostile").await;
    let sink = SmtpSink::start().await;
    let worker = WorkerProcess::start(&bed, &sink.url()).await;

    let address = "javascript:alert(1)//\"><script>{subscription_id}</script>";
    let mut hostile_organization = organization("org");
    hostile_organization.insert("name", HOSTILE);
    hostile_organization.insert("contact", doc! { "name": HOSTILE, "email": "desk@org.example" });
    hostile_organization.insert("brand", doc! { "color": "red;}</style><script>x</script>", "logo_url": address });
    hostile_organization.insert("admin_url", address);
    hostile_organization.insert("notify_client_of_own_actions", true);
    let mut hostile_account = account("acc", "org");
    hostile_account.insert("manager", doc! { "name": HOSTILE, "email": "ada@home.example", "locale": HOSTILE });
    let mut hostile_subscription = subscription("sub", "org", "acc");
    for field in ["participant", "plan"] {
        hostile_subscription.insert(field, doc! { "id": HOSTILE, "name": HOSTILE });
    }
    hostile_subscription.insert("activities", Bson::Array(vec![doc! { "id": "a", "name": HOSTILE }.into()]));
    bed.collection("organizations").insert_one(hostile_organization).await.unwrap();
    bed.collection("accounts").insert_one(hostile_account).await.unwrap();
    bed.collection("subscriptions").insert_one(hostile_subscription).await.unwrap();

    let ids = json!({ "organization_id": "org", "subscription_id": "sub", "reason": HOSTILE,
        "actor": { "role": "client", "account_id": "acc", "name": HOSTILE } });
    bed.command(&fixtures::command(HOSTILE.get(..60).unwrap(), "subscription.cancellation-request", ids)).await;
    let failure = json!({ "organization_id": "org", "subscription_id": "sub", "invoice_id": HOSTILE.get(..60),
        "amount": { "value": "1", "currency": "CAD" }, "card": { "brand": HOSTILE, "last4": "4242" }, "attempt": 1,
        "failure_message": HOSTILE });
    bed.command(&fixtures::command("c-2", "payment.failure", failure)).await;
    eventually("four emails", || async { (sink.emails().len() == 4).then_some(()) }).await;

    for taken in sink.emails() {
        let text = String::from_utf8(taken.bytes).unwrap();
        assert!(["desk@org.example", "ada@home.example"].contains(&taken.to.join(",").as_str()), "{:?}", taken.to);
        let (headers, _) = text.split_once("\r\n\r\n").unwrap();
        let names: BTreeSet<&str> = headers
            .split("\r\n")
            .filter(|line| !line.starts_with([' ', '\t']))
            .map(|line| line.split_once(':').unwrap().0)
            .collect();
        assert!(!names.contains("Bcc") && names.contains("Subject"), "{names:?}");
        assert!(headers.is_ascii(), "{headers}");

        let mail = MessageParser::default().parse(text.as_bytes()).unwrap();
        assert_eq!(mail.parts.len(), 3, "{text}");
        assert!(mail.parts.iter().all(|part| part.content_type().is_some()));
        let (plain, html) = (mail.body_text(0).unwrap(), mail.body_html(0).unwrap());
        assert!(plain.contains("{{manager.email}}{{{x}}}{{> facts}}"), "{plain}");
        assert!(html.contains("{{manager.email}}"), "{html}");
        for harm in ["<script", "</script", "javascript:", "red;}", "victim@evil.example\r\n\r\n<"] {
            assert!(!html.contains(harm), "{harm}: {html}");
        }
    }
    assert!(worker.stop().await.success());
    bed.remove().await;
}

// ------------------------------------------------------------------------------------------------------ passwords ---

/// A password in URL encoding; `leaks` looks for its other forms.
const PASSWORD: &str = "s3cret%40word";

/// Whether output contains the password: as text, in a SASL response, or as a list of bytes.
fn leaks(output: &str) -> bool {
    let bytes: Vec<String> = b"s3cret".iter().map(ToString::to_string).collect();
    ["s3cret", "AHVzZXIAczNjcmV0QHdvcmQ=", "czNjcmV0QHdvcmQ=", &bytes.join(", ")]
        .iter()
        .any(|trace| output.contains(trace))
}

/// The URL of a server under test, with an unknown user.
fn with_password(variable: &str, default: &str) -> String {
    let address = offramp_testkit::setting(variable, default);
    let (scheme, rest) = address.split_once("://").unwrap();
    format!("{scheme}://user:{PASSWORD}@{}", rest.rsplit_once('@').map_or(rest, |(_, host)| host))
}

#[tokio::test(flavor = "multi_thread")]
async fn no_password_is_logged_when_connections_fail() {
    let refusing = SmtpSink::scripted(Tls::No, |at, _| match at {
        Step::Auth => Action::Answer("535 wrong"),
        _ => Action::Ok,
    })
    .await;
    let settings = |amqp: String, mongodb: String, smtp: String| {
        [("OFFRAMP_AMQP_URL", amqp), ("OFFRAMP_MONGODB_URL", mongodb), ("OFFRAMP_SMTP_URL", smtp)]
    };
    let mongodb = with_password("OFFRAMP_MONGODB_URL", "mongodb://localhost:27017/offramp");
    let refused = settings(
        with_password("OFFRAMP_AMQP_URL", "amqp://localhost:5672/%2f"),
        format!("{mongodb}{}authSource=admin", if mongodb.contains('?') { '&' } else { '?' }),
        format!("smtp://user:{PASSWORD}@{}?tls=none", refusing.address),
    );
    let at_nobody = settings(
        format!("amqp://user:{PASSWORD}@127.0.0.1:1,amqps://user:{PASSWORD}@nowhere.invalid"),
        format!("mongodb://user:{PASSWORD}@127.0.0.1:1/offramp?authSource=admin&tls=true&authMechanism=PLAIN"),
        format!("smtps://user:{PASSWORD}@127.0.0.1:1"),
    );
    let command = fixtures::cancellation("c", "sub").to_string();
    for urls in [refused, at_nobody] {
        let program = |format: &str| {
            let mut program = bare();
            program.env("OFFRAMP_LOG", "trace").env("OFFRAMP_LOG_FORMAT", format).envs(urls.clone());
            program
        };
        let quiet = |arguments: &[&str], input: &str| {
            let ran = run(&mut program("text"), arguments, input);
            assert!(!leaks(&ran.stdout) && !leaks(&ran.stderr), "{arguments:?}: {}{}", ran.stdout, ran.stderr);
            assert!(
                ran.code == Some(1) || arguments.contains(&"--help"),
                "{arguments:?}: {:?} {}",
                ran.code,
                ran.stderr
            );
        };
        quiet(&["run", "--help"], "");
        quiet(&["check"], "");
        quiet(&["publish", "-"], &command);
        quiet(&["dead-letters", "list"], "");
        quiet(&["show", "sub"], "");
        let logged = run_for_a_while(&mut program("json")).await;
        assert!(logged.contains("\"level\":\"WARN\"") && !leaks(&logged), "{logged}");
    }
    assert!(refusing.commands().iter().any(|line| line.starts_with("AUTH")), "the password was sent to the server");
}

/// The log and the health response of a worker that cannot connect.
async fn run_for_a_while(program: &mut Command) -> String {
    let mut worker = WorkerProcess::of(program, Stdio::piped());
    let mut log = worker.take_log();
    let reading = std::thread::spawn(move || {
        let mut text = Vec::new();
        log.read_to_end(&mut text).map(|_| String::from_utf8_lossy(&text).into_owned())
    });
    let health = eventually("an answer", || async { worker.readyz().await }).await;
    tokio::time::sleep(std::time::Duration::from_secs(2)).await;
    worker.kill();
    health.body + &reading.join().unwrap().unwrap()
}
