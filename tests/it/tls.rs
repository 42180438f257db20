//! All servers over TLS with client certificates, and the advice when a certificate is not trusted.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::cli::{fails, run, succeeds};
use offramp_testkit::eventually;
use offramp_testkit::fixtures::{account, cancellation, organization, subscription};
use offramp_testkit::smtp_sink::{Action, SmtpSink, Tls};
use offramp_testkit::tls::{ThrowAwayCa, TlsServers};
use offramp_testkit::worker_process::{WorkerProcess, bare};

/// One-shot commands report failures within this time: the MongoDB driver's timeout plus a margin.
const SOON: Duration = Duration::from_secs(15);

/// The program with the URLs of these servers.
fn offramp(servers: &TlsServers, smtp_url: &str) -> Command {
    let mut command = bare();
    let mongodb = format!("mongodb://localhost:{}/offramp?tls=true", servers.port("mongodb"));
    command
        .env("OFFRAMP_AMQP_URL", format!("amqps://localhost:{}", servers.port("rabbitmq")))
        .env("OFFRAMP_MONGODB_URL", mongodb)
        .env("OFFRAMP_SMTP_URL", smtp_url)
        .env("OFFRAMP_MAIL_FROM", "no-reply@offramp.example");
    command
}

/// The program with the CA and the client certificate as well.
fn trusted(servers: &TlsServers, ca: &ThrowAwayCa, smtp_url: &str) -> Command {
    let mut command = offramp(servers, smtp_url);
    command.env("OFFRAMP_TLS_CA", ca.path("ca.pem")).env("OFFRAMP_TLS_CERTIFICATE", ca.path("client.pem"));
    command
}

async fn sink(tls: Tls) -> SmtpSink {
    SmtpSink::scripted(tls, |_, _| Action::Ok).await
}

#[tokio::test(flavor = "multi_thread")]
async fn all_servers_can_be_reached_over_tls() {
    let (ca, other) = (ThrowAwayCa::new(), ThrowAwayCa::new());
    let servers = TlsServers::start(&ca, &["rabbitmq", "mongodb"]);

    for (step, tls, scheme) in
        [(1, Tls::Upgrade(ca.server_config(true)), "smtp"), (2, Tls::Implicit(ca.server_config(true)), "smtps")]
    {
        let sink = sink(tls).await;
        let smtp_url = format!("{scheme}://localhost:{}", sink.address.port());
        let program = || trusted(&servers, &ca, &smtp_url);
        does_the_whole_job(program, &sink, step).await;
    }

    let strict = sink(Tls::Implicit(ca.server_config(true))).await;
    let smtp_url = format!("smtps://localhost:{}", strict.address.port());
    for (authority, certificate, setting) in [
        (None, None, "OFFRAMP_TLS_CA"),
        (Some(&other), Some(&ca), "OFFRAMP_TLS_CA"),
        (Some(&ca), None, "OFFRAMP_TLS_CERTIFICATE"),
        (Some(&ca), Some(&other), "OFFRAMP_TLS_CERTIFICATE"),
    ] {
        let program = || {
            let mut program = offramp(&servers, &smtp_url);
            program.envs(authority.map(|ca| ("OFFRAMP_TLS_CA", ca.path("ca.pem"))));
            program.envs(certificate.map(|ca| ("OFFRAMP_TLS_CERTIFICATE", ca.path("client.pem"))));
            program
        };
        says_what_is_wrong(program, setting);
    }
    assert_eq!(strict.emails().len(), 0);
}

/// From a command to an email, with every subcommand that talks to a server.
async fn does_the_whole_job(program: impl Fn() -> Command, sink: &SmtpSink, step: usize) {
    let (id, organization, account) = (format!("sub-{step}"), organization("org"), account("acc", "org"));
    let documents = [
        json!({ "collection": "organizations", "document": organization }),
        json!({ "collection": "accounts", "document": account }),
        json!({ "collection": "subscriptions", "document": subscription(&id, "org", "acc") }),
    ];
    succeeds(&mut program(), &["init"], "");
    succeeds(&mut program(), &["import", "-"], &lines(&documents));
    succeeds(&mut program(), &["check"], "");

    let worker = WorkerProcess::of(&mut program(), Stdio::null()).ready().await;
    succeeds(&mut program(), &["publish", "-"], &lines(&[cancellation(&id, &id)]));
    eventually("an email", || async { sink.emails().first().cloned() }).await;
    assert!(sink.emails().iter().all(|mail| mail.encrypted));
    let shown = succeeds(&mut program(), &["show", "--json", &id], "");
    assert!(shown.stdout.contains("cancellation_scheduled"), "{}", shown.stdout);
    assert!(worker.stop().await.success());

    succeeds(&mut program(), &["outbox", "list"], "");
    succeeds(&mut program(), &["outbox", "retry", "--all"], "");
    for verb in [&["list"][..], &["replay", "--all"], &["drop", "--all", "--yes"]] {
        succeeds(&mut program(), &[&["dead-letters"], verb].concat(), "");
    }
}

fn lines(values: &[Value]) -> String {
    values.iter().map(Value::to_string).collect::<Vec<_>>().join("\n")
}

/// `check` names the setting for each server, and so do one-shot commands, without long waits.
#[track_caller]
fn says_what_is_wrong(program: impl Fn() -> Command, setting: &str) {
    let begin = Instant::now();
    let checked = run(&mut program(), &["check"], "");
    assert_eq!(checked.code, Some(1), "{}", checked.stdout);
    for server in ["RabbitMQ", "MongoDB", "mail"] {
        // The result of one check: its first line, and the indented ones below.
        let mut lines = checked.stdout.lines().skip_while(|line| !line.starts_with(&format!("✗ {server}")));
        let first = lines.next().unwrap_or_else(|| panic!("{}", checked.stdout));
        let finding: Vec<&str> = [first].into_iter().chain(lines.take_while(|line| line.starts_with(' '))).collect();
        assert!(finding.join("\n").contains(setting), "{finding:?}");
    }
    fails(&mut program(), &["publish", "-"], &lines(&[cancellation("c", "sub")]), 1, setting);
    assert!(begin.elapsed() < SOON, "it took {:?}", begin.elapsed());
}
