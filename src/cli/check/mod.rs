//! `offramp check`: would a worker with these settings work? One file per check. Nothing is changed.

mod dns;
mod documents;
mod finding;
mod mail_server;
mod mongodb;
mod rabbitmq;
mod signatures;
mod templates;
mod variables;

use std::io::{IsTerminal, stderr};
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::bail;
use clap::Args;
use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use indicatif::ProgressBar;
use offramp::config::Settings;

use super::error::WrongConfiguration;
use finding::{Finding, State};

/// Check settings, templates, connections, rights and versions; or documents
#[derive(Args, Debug)]
#[command(after_help = "\
Nothing is changed and no email is sent. Rights are tried with requests that the servers reject before they do anything; RabbitMQ logs \
them as channel errors. At the mail server, the sender is named and no recipient. DNS records are those that this machine sees.

A line begins with ✓, ! (a warning: it works, but is probably not meant) or ✗. Exit code 2: settings or templates are wrong. Exit code \
1: a server is not as it should be, or documents cannot be processed. Warnings alone: exit code 0.

With --documents, all organizations, accounts and subscriptions are read instead, in pages, with the rights of a worker. What cannot be \
processed is an error; what is doubtful, such as a misspelt field or a next invoice that is past, is a warning.

Examples:
  offramp check
  offramp check --documents --json")]
pub struct Arguments {
    /// Print JSON, one object per check or group of documents
    #[arg(long)]
    json: bool,

    /// DNS server to ask for DKIM, SPF and DMARC [default: the system's]
    ///
    /// An IP address with a port, such as 9.9.9.9:53
    #[arg(long, value_name = "ADDRESS")]
    dns: Option<SocketAddr>,

    /// Report documents that cannot be processed, point nowhere or are doubtful
    #[arg(long)]
    documents: bool,

    /// With --documents: examples for each kind of problem, 1 to 1000
    #[arg(long, value_name = "NUMBER", default_value = "3", requires = "documents", value_parser = clap::value_parser!(u16).range(1..=1_000))]
    examples: u16,

    /// With --documents: begin after this collection/_id
    ///
    /// An interrupted run prints it
    #[arg(long, value_name = "COLLECTION/ID", requires = "documents")]
    after: Option<String>,

    #[command(flatten)]
    settings: Settings,
}

pub async fn run(arguments: Arguments) -> anyhow::Result<()> {
    if arguments.documents {
        let Settings { database, tls, .. } = arguments.settings;
        let options = documents::Options {
            examples: usize::from(arguments.examples),
            after: arguments.after,
            json: arguments.json,
        };
        return documents::run(&database, &tls.tls(), options).await;
    }
    let first = [variables::check(&arguments.settings), templates::check(&arguments.settings.sender)];
    let Settings { broker, database, mail, tls, sender, dkim, .. } = arguments.settings;
    let tls = tls.tls();
    let print = |finding: &Finding| if arguments.json { finding.print_json() } else { finding.print() };
    let mut findings: Vec<Finding> = first.into_iter().chain(signatures::check(&dkim, &sender)).collect();
    for finding in &findings {
        print(finding)?;
    }
    // At once, so that one server that does not answer hides nothing of the others.
    let checks: [(&str, BoxFuture<'_, Option<Finding>>); 4] = [
        ("RabbitMQ", Box::pin(async { Some(rabbitmq::check(broker, &tls).await) })),
        ("MongoDB", Box::pin(async { Some(mongodb::check(database, &tls).await) })),
        ("the mail server", Box::pin(async { Some(mail_server::check(mail, &sender, &tls).await) })),
        ("DNS", Box::pin(dns::check(&dkim, &sender, arguments.dns))),
    ];
    let mut waiting: Vec<&str> = checks.iter().map(|(name, _)| *name).collect();
    let mut running: FuturesUnordered<_> =
        checks.into_iter().map(|(name, check)| async move { (name, check.await) }).collect();
    let spinner = spinner();
    spinner.set_message(format!("checking {}", waiting.join(", ")));
    while let Some((name, finding)) = running.next().await {
        waiting.retain(|other| *other != name);
        spinner.set_message(format!("checking {}", waiting.join(", ")));
        if let Some(finding) = finding {
            spinner.suspend(|| print(&finding))?;
            findings.push(finding);
        }
    }
    spinner.finish_and_clear();
    conclude(&findings)
}

/// Shows on the terminal that something is still going on.
fn spinner() -> ProgressBar {
    if !stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let spinner = ProgressBar::new_spinner();
    spinner.enable_steady_tick(Duration::from_millis(100));
    spinner
}

fn conclude(findings: &[Finding]) -> anyhow::Result<()> {
    let failed: Vec<&str> =
        findings.iter().filter(|finding| finding.state() == State::Failed).map(Finding::check).collect();
    if failed.is_empty() {
        return Ok(());
    }
    let sentence = format!("not as it should be: {}", failed.join(", "));
    if findings.iter().any(Finding::is_wrong_configuration) {
        return Err(WrongConfiguration(sentence).into());
    }
    bail!(sentence)
}
