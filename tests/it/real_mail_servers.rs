//! The worker with the most common mail servers: Postfix, Exim and OpenSMTPD, with the same mailboxes and policies
//! (`scripts/mail-servers`). The tests state their common behaviour; [`Server`] holds the differences.

use std::fmt;
use std::fs;
use std::future::Future;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use bson::{DateTime, Document, doc};
use chrono::{TimeDelta, Utc};
use mail_parser::{MessageParser, MimeHeaders};
use tokio::task::{JoinHandle, JoinSet};

use crate::mail_server_replies::{email, make_due, outcomes};
use offramp_testkit::fixtures::{cancellation, populate, subscription, with};
use offramp_testkit::private_servers::PrivateServers;
use offramp_testkit::smtp_sink::SmtpSink;
use offramp_testkit::test_bed::TestBed;
use offramp_testkit::tls::ThrowAwayCa;
use offramp_testkit::worker_process::WorkerProcess;
use offramp_testkit::{eventually, eventually_within};

/// A mail server that `scripts/services` can start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Server {
    Postfix,
    Exim,
    OpenSmtpd,
}

impl Server {
    const ALL: [Self; 3] = [Self::Postfix, Self::Exim, Self::OpenSmtpd];

    fn as_str(self) -> &'static str {
        match self {
            Self::Postfix => "postfix",
            Self::Exim => "exim",
            Self::OpenSmtpd => "opensmtpd",
        }
    }

    /// The reply to an email that is too large.
    fn too_large(self) -> &'static str {
        match self {
            Self::Postfix => "552 5.3.4 Error: message file too big",
            Self::Exim => "552 Message size exceeds maximum permitted",
            Self::OpenSmtpd => "554 5.3.4 Message too big for system",
        }
    }

    /// The reply to an EHLO name without a dot. Postfix rejects it only at RCPT.
    fn bad_name(self) -> &'static str {
        match self {
            Self::Postfix => "RCPT: 504 5.5.2",
            Self::Exim | Self::OpenSmtpd => "EHLO: 550 5.7.1",
        }
    }
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// All three servers, running. They stop when no test uses them any more.
struct Running {
    servers: PrivateServers,
    ca: ThrowAwayCa,
}

fn running() -> Arc<Running> {
    static RUNNING: Mutex<Weak<Running>> = Mutex::new(Weak::new());
    let mut running = RUNNING.lock().unwrap_or_else(PoisonError::into_inner);
    running.upgrade().unwrap_or_else(|| {
        let ca = ThrowAwayCa::new();
        let environment = vec![("OFFRAMP_SERVICES_TLS", ca.directory().to_owned())];
        let started =
            Arc::new(Running { servers: PrivateServers::start(&Server::ALL.map(Server::as_str), environment), ca });
        *running = Arc::downgrade(&started);
        started
    })
}

/// Runs a test with each server concurrently.
async fn with_each<F>(test: impl Fn(Post) -> F)
where
    F: Future<Output = ()> + Send + 'static,
{
    let running = running();
    let mut tests = JoinSet::new();
    for server in Server::ALL {
        let test = test(Post { server, running: Arc::clone(&running) });
        tests.spawn(async move { (server, tokio::spawn(test).await) });
    }
    let ended = tests.join_all().await;
    let failed: Vec<_> = ended.iter().filter(|(_, result)| result.is_err()).map(|(server, _)| server).collect();
    assert!(failed.is_empty(), "failed with {failed:?}, see above");
}

/// One of the running servers, with its URLs and mailboxes.
struct Post {
    server: Server,
    running: Arc<Running>,
}

impl Post {
    async fn bed(&self, mailbox: &str) -> TestBed {
        bed(self.server.as_str(), mailbox).await
    }

    fn plain_url(&self) -> String {
        format!("smtp://127.0.0.1:{}?tls=none", self.running.servers.port(self.server.as_str()))
    }

    fn encrypted_url(&self) -> String {
        format!("smtp://localhost:{}?tls=required", self.running.servers.port(self.server.as_str()))
    }

    /// The URL of the port that requires a login.
    fn submission_url(&self, password: &str) -> String {
        let port = self.running.servers.port(&format!("{}_submission", self.server));
        format!("smtp://offramp:{password}@localhost:{port}?tls=required")
    }

    fn ca(&self) -> PathBuf {
        self.running.ca.path("ca.pem")
    }

    /// The emails in a mailbox, each checked to be complete.
    fn mailbox(&self, name: &str) -> Vec<Vec<u8>> {
        let directory = self.running.servers.directory().join(format!("{}/mail/{name}/new", self.server));
        let Ok(files) = fs::read_dir(directory) else { return Vec::new() };
        let emails: Vec<_> = files.map(|file| fs::read(file.unwrap().path()).unwrap()).collect();
        for email in &emails {
            assert_complete(email);
        }
        emails
    }

    /// Waits for exactly `count` emails in a mailbox.
    async fn delivered(&self, name: &str, count: usize) -> Vec<Vec<u8>> {
        let what = format!("{count} emails in the mailbox {name} of {}", self.server);
        let emails =
            eventually(&what, || async { Some(self.mailbox(name)).filter(|emails| emails.len() >= count) }).await;
        assert_eq!(emails.len(), count, "{what}");
        emails
    }
}

/// A test bed whose account manager has this mailbox.
async fn bed(server: &str, mailbox: &str) -> TestBed {
    let bed = TestBed::new(&format!("{server}-{mailbox}")).await;
    populate(&bed).await;
    let address = doc! { "$set": { "manager.email": format!("{mailbox}@home.example") } };
    bed.collection("accounts").update_one(doc! { "_id": "acc" }, address).await.unwrap();
    bed
}

fn assert_complete(email: &[u8]) {
    let text = String::from_utf8_lossy(email);
    let parsed = MessageParser::default().parse(email).unwrap();
    assert!(parsed.message_id().is_some() && parsed.subject().is_some(), "{text}");
    assert_eq!((parsed.text_body_count(), parsed.html_body_count()), (1, 1), "{text}");
    let boundary = parsed.content_type().and_then(|kind| kind.attribute("boundary")).unwrap();
    assert!(text.trim_end().ends_with(&format!("--{boundary}--")), "{text}");
}

/// A worker whose log is kept.
struct Logged {
    worker: WorkerProcess,
    log: JoinHandle<String>,
}

impl Logged {
    async fn start(bed: &TestBed, url: &str, settings: &[(&str, &str)]) -> Self {
        let mut worker = WorkerProcess::spawn(bed, url, settings, Stdio::piped());
        let mut stderr = worker.take_log();
        let log = tokio::task::spawn_blocking(move || {
            let mut log = String::new();
            stderr.read_to_string(&mut log).map(|_| log).unwrap()
        });
        Self { worker: worker.ready().await, log }
    }

    /// Stops the worker and returns its log.
    async fn stop(self) -> String {
        assert!(self.worker.stop().await.success());
        self.log.await.unwrap()
    }
}

/// The email of `sub` after `times` attempts, waiting for the next.
async fn tried(bed: &TestBed, times: i32) -> Document {
    email(bed, "a deferred email", |entry| entry.get_i32("attempts").ok() == Some(times) && entry.contains_key("due"))
        .await
}

/// A folder for `OFFRAMP_TEMPLATES` with these texts.
fn templates(words: &[(&str, String)]) -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    fs::create_dir(directory.path().join("en")).unwrap();
    for (name, words) in words {
        let text = format!("Subject: Résiliation, {{{{organization.name}}}}\n\n# {{{{subject}}}}\n\n{words}\n");
        fs::write(directory.path().join(format!("en/{name}.account_manager.md")), text).unwrap();
    }
    directory
}

fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}

// ---------------------------------------------------------------------------------------------------------- scenarios

/// The header fields of an email, without the date and those that servers add, and its body.
fn headers_and_body(email: &[u8]) -> (Vec<String>, String) {
    const ADDED: [&str; 7] =
        ["Date:", "Received:", "Return-path:", "Delivered-To:", "X-Original-To:", "Envelope-to:", "Delivery-date:"];
    let text = String::from_utf8(email.to_vec()).unwrap().replace("\r\n", "\n");
    let (header, body) = text.split_once("\n\n").unwrap();
    let header = header.replace("\n ", " ").replace("\n\t", " ");
    let is_added = |line: &str| {
        ADDED.iter().any(|name| line.get(..name.len()).is_some_and(|start| start.eq_ignore_ascii_case(name)))
    };
    (header.lines().filter(|line| !is_added(line)).map(str::to_owned).collect(), body.trim_end().to_owned())
}

/// Texts of two emails: one is sent as is, the other has a long line and is sent as quoted-printable.
fn words() -> [(&'static str, String); 2] {
    [
        ("cancelled-by-admin", ".begins with a dot: é ü 漢字 🏊".to_owned()),
        ("removed-by-admin", format!("..begins with two: {}", "Ünïcödé ".repeat(150).trim_end())),
    ]
}

/// Has a worker send both emails. Their content and ids depend only on the documents and commands.
async fn send_both(bed: TestBed, url: &str) {
    let templates = templates(&words());
    bed.collection("subscriptions").insert_one(subscription("sub-2", "org", "acc")).await.unwrap();
    let worker = WorkerProcess::start_with(&bed, url, &[("OFFRAMP_TEMPLATES", path(templates.path()))]).await;
    bed.command(&cancellation("c-1", "sub")).await;
    let removal = with(cancellation("c-2", "sub-2"), "via", "invoice".into());
    bed.command(&with(removal, "invoice_id", "inv-5".into())).await;
    eventually("two emails", || async { (outcomes(&worker, "sent").await == 2).then_some(()) }).await;
    bed.outboxes_empty().await;
    assert!(worker.stop().await.success());
    bed.remove().await;
}

fn all_headers_and_bodies<'a>(emails: impl IntoIterator<Item = &'a [u8]>) -> Vec<(Vec<String>, String)> {
    let mut emails: Vec<_> = emails.into_iter().map(headers_and_body).collect();
    emails.sort();
    emails
}

#[tokio::test(flavor = "multi_thread")]
async fn real_mail_servers_deliver_emails_unchanged() {
    // The sink keeps every byte, so it has the emails as written.
    let sink = SmtpSink::start().await;
    send_both(bed("sink", "plain").await, &sink.url()).await;
    let written = Arc::new(sink.emails());
    with_each(|post| {
        let written = Arc::clone(&written);
        async move {
            send_both(post.bed("plain").await, &post.plain_url()).await;
            let delivered = post.delivered("plain", 2).await;
            for (_, words) in words() {
                let has_words = |email: &Vec<u8>| {
                    let text = MessageParser::default().parse(email).unwrap().body_text(0).unwrap().replace('\r', "");
                    text.contains(&format!("\n{words}\n"))
                };
                assert!(delivered.iter().any(has_words), "{words}");
            }
            assert_eq!(
                all_headers_and_bodies(delivered.iter().map(Vec::as_slice)),
                all_headers_and_bodies(written.iter().map(|taken| taken.bytes.as_slice()))
            );
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_greylisted_email_arrives_once() {
    with_each(|post| async move {
        let bed = post.bed("greylisted").await;
        let worker = WorkerProcess::start(&bed, &post.plain_url()).await;
        bed.command(&cancellation("c-1", "sub")).await;
        tried(&bed, 1).await;
        make_due(&bed, doc! {}).await;
        bed.outboxes_empty().await;
        assert_eq!((outcomes(&worker, "deferred").await, outcomes(&worker, "sent").await), (1, 1));
        post.delivered("greylisted", 1).await;
        assert!(worker.stop().await.success());
        bed.remove().await;
    })
    .await;
}

/// More than some servers accept on one connection: Postfix replies 421 at the twentieth, Exim hangs up after ten RSETs.
#[tokio::test(flavor = "multi_thread")]
async fn each_email_to_an_unknown_recipient_is_kept_for_an_operator() {
    const COUNT: usize = 25;
    with_each(|post| async move {
        let bed = post.bed("nobody").await;
        let ids: Vec<String> = (0..COUNT).map(|index| format!("sub-{index}")).collect();
        let subscriptions = bed.collection("subscriptions");
        subscriptions.insert_many(ids.iter().map(|id| subscription(id, "org", "acc"))).await.unwrap();
        let worker = WorkerProcess::start_with(&bed, &post.plain_url(), &[("OFFRAMP_MAIL_CONNECTIONS", "1")]).await;
        for id in &ids {
            bed.command(&cancellation(&format!("c-{id}"), id)).await;
        }
        eventually("every email for an operator", || async {
            let failed = subscriptions.count_documents(doc! { "outbox.failed_at": { "$exists": true } }).await.unwrap();
            (failed == COUNT as u64).then_some(())
        })
        .await;
        let counted = ["rejected", "deferred", "throttled", "sender_rejected", "in_doubt"];
        let mut counts = Vec::new();
        for outcome in counted {
            counts.push(outcomes(&worker, outcome).await);
        }
        assert_eq!(counts, [COUNT as u64, 0, 0, 0, 0], "{counted:?}");
        let failed = subscriptions.find_one(doc! { "outbox.error": { "$regex": "RCPT: 550 " } }).await.unwrap();
        assert!(failed.is_some());
        assert!(worker.stop().await.success());
        bed.remove().await;
    })
    .await;
}

/// Not every server says whether an email exceeds its own limit or the recipient's. An enhanced code of 5.3.x means the server's
/// limit, which its administrator can raise.
#[tokio::test(flavor = "multi_thread")]
async fn an_email_above_the_servers_size_limit_is_retried() {
    with_each(|post| async move {
        let templates = templates(&[("cancelled-by-admin", "Too many words. ".repeat(2_000))]);
        let bed = post.bed("large").await;
        let settings = [("OFFRAMP_TEMPLATES", path(templates.path()))];
        let worker = WorkerProcess::start_with(&bed, &post.plain_url(), &settings).await;
        bed.command(&cancellation("c-1", "sub")).await;
        let is_limit = post.server.too_large().contains(" 5.3.4 ");
        let entry = if is_limit {
            let entry = tried(&bed, 1).await;
            let pause = entry.get_datetime("due").unwrap().to_chrono() - Utc::now();
            assert!(pause > TimeDelta::seconds(40) && pause < TimeDelta::seconds(80), "{pause}");
            make_due(&bed, doc! {}).await;
            tried(&bed, 2).await
        } else {
            email(&bed, "an email for an operator", |entry| entry.contains_key("failed_at")).await
        };
        assert!(entry.get_str("error").unwrap().contains(post.server.too_large()), "{entry}");
        let counted = (outcomes(&worker, "sender_rejected").await > 0, outcomes(&worker, "rejected").await > 0);
        assert_eq!(counted, (is_limit, !is_limit));
        assert_eq!(post.mailbox("large").len(), 0);
        assert!(worker.stop().await.success());
        bed.remove().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_email_is_sent_before_the_certificate_is_trusted() {
    with_each(|post| async move {
        let bed = post.bed("encrypted").await;
        let worker = Logged::start(&bed, &post.encrypted_url(), &[]).await;
        bed.command(&cancellation("c-1", "sub")).await;
        let entry = tried(&bed, 1).await;
        assert!(entry.get_str("error").unwrap().contains("OFFRAMP_TLS_CA"), "{entry}");
        assert_eq!(outcomes(&worker.worker, "sent").await, 0);
        let log = worker.stop().await;
        assert!(log.contains("OFFRAMP_TLS_CA"), "{log}");
        assert_eq!(post.mailbox("encrypted").len(), 0);

        let ca = post.ca();
        let worker = WorkerProcess::start_with(&bed, &post.encrypted_url(), &[("OFFRAMP_TLS_CA", path(&ca))]).await;
        make_due(&bed, doc! {}).await;
        bed.outboxes_empty().await;
        let delivered = post.delivered("encrypted", 1).await;
        let protocol = String::from_utf8_lossy(&delivered[0]).to_ascii_lowercase();
        assert!(protocol.contains("with esmtps "), "{protocol}");
        assert!(worker.stop().await.success());
        bed.remove().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_password_loses_no_email_and_is_logged_once() {
    with_each(|post| async move {
        let (bed, ca) = (post.bed("authenticated").await, post.ca());
        let settings = [("OFFRAMP_TLS_CA", path(&ca))];
        let worker = Logged::start(&bed, &post.submission_url("wrong"), &settings).await;
        bed.command(&cancellation("c-1", "sub")).await;
        still_retried_within_a_day(&bed, &worker.worker, "AUTH: 535").await;
        let log = worker.stop().await;
        assert_eq!(log.matches("see the user and the password in OFFRAMP_SMTP_URL").count(), 1, "{log}");
        assert!(
            !log.contains("home.example") && !log.contains("wrong"),
            "no addresses and no passwords in logs: {log}"
        );
        assert_eq!(post.mailbox("authenticated").len(), 0);

        let worker = WorkerProcess::start_with(&bed, &post.submission_url("a-secret"), &settings).await;
        make_due(&bed, doc! {}).await;
        bed.outboxes_empty().await;
        let delivered = post.delivered("authenticated", 1).await;
        let protocol = String::from_utf8_lossy(&delivered[0]).to_ascii_lowercase();
        assert!(protocol.contains("with esmtpsa "), "{protocol}");
        assert!(worker.stop().await.success());
        bed.remove().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rejected_ehlo_name_loses_no_email_and_is_logged_once() {
    with_each(|post| async move {
        let bed = post.bed("named").await;
        let worker = Logged::start(&bed, &post.plain_url(), &[("OFFRAMP_SMTP_NAME", "worker")]).await;
        bed.command(&cancellation("c-1", "sub")).await;
        still_retried_within_a_day(&bed, &worker.worker, post.server.bad_name()).await;
        let log = worker.stop().await;
        assert_eq!(log.matches("set OFFRAMP_SMTP_NAME").count(), 1, "{log}");
        assert_eq!(post.mailbox("named").len(), 0);

        let settings = [("OFFRAMP_SMTP_NAME", "worker.example.com")];
        let worker = WorkerProcess::start_with(&bed, &post.plain_url(), &settings).await;
        make_due(&bed, doc! {}).await;
        bed.outboxes_empty().await;
        post.delivered("named", 1).await;
        assert!(worker.stop().await.success());
        bed.remove().await;
    })
    .await;
}

/// The server keeps rejecting this worker until nearly a day after the first rejection.
async fn still_retried_within_a_day(bed: &TestBed, worker: &WorkerProcess, reply: &str) {
    let first = tried(bed, 1).await;
    assert!(first.get_str("error").unwrap().contains(reply), "{first}");
    let nearly_a_day_ago = DateTime::from(Utc::now() - TimeDelta::minutes(23 * 60 + 50));
    make_due(bed, doc! { "outbox.$[email].sender_rejected_at": nearly_a_day_ago }).await;
    tried(bed, 2).await;
    assert!(outcomes(worker, "sender_rejected").await >= 2);
    assert_eq!(outcomes(worker, "rejected").await, 0);
    assert!(worker.readyz().await.unwrap().status == 200);
}

/// Longer than a lease, and than the shortest deadlines of common mail clients.
#[tokio::test(flavor = "multi_thread")]
async fn an_email_arrives_once_when_the_server_filters_it_for_70_s() {
    with_each(|post| async move {
        let bed = post.bed("scanned").await;
        let settings = [("OFFRAMP_LEASE_SECONDS", "20")];
        let worker = WorkerProcess::start_with(&bed, &post.plain_url(), &settings).await;
        bed.command(&cancellation("c-1", "sub")).await;
        eventually_within(Duration::from_secs(120), "an email that was filtered", || async {
            let document = bed.document("subscriptions", "sub").await?;
            (document.contains_key("notifications") && document.get_array("outbox").is_ok_and(Vec::is_empty))
                .then_some(())
        })
        .await;
        let (sent, in_doubt) = (outcomes(&worker, "sent").await, outcomes(&worker, "in_doubt").await);
        assert_eq!((sent, in_doubt, outcomes(&worker, "deferred").await), (1, 0, 0));
        post.delivered("scanned", 1).await;
        assert!(worker.stop().await.success());
        bed.remove().await;
    })
    .await;
}
