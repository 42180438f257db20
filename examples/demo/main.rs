//! `make demo`: a story of cancellations, from message to email, on real servers.
//!
//! Two organizations, one in Québec and one in British Columbia, sell a dozen subscriptions. The demo imports their documents into
//! MongoDB, starts a worker, and publishes commands to RabbitMQ as other systems would: cancellations by administrators and clients,
//! requests and decisions, failed payments, expiring cards, and all kinds of mistakes. It then compares the results (documents, events,
//! dead letters, emails) with what the story expects, prints them, and stops the worker. It fails if anything differs.
//!
//! The demo uses the prefix and the database `offramp-demo` and empties both first, so that it can be repeated. Reading order:
//! [`story`], [`sample`], then this file.

mod mailbox;
mod program;
mod report;
mod sample;
mod servers;
mod story;

use std::env;
use std::fmt::Write as _;
use std::fs;
use std::io::{Write as _, stdout};
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use chrono::Utc;
use mailbox::Mailbox;
use program::{Program, Worker};
use report::Observed;
use serde_json::Value;
use servers::{Addresses, NAME, Servers};
use story::Story;

/// Files in the demo's folder, with the whole story to experiment with.
const DOCUMENTS: &str = "documents.jsonl";
const COMMANDS: &str = "commands.jsonl";
/// The timeout of a condition, for a slow and busy machine.
const PATIENCE: Duration = Duration::from_secs(30);
/// How often to poll.
const LOOK_EVERY: Duration = Duration::from_millis(50);

#[tokio::main]
async fn main() -> ExitCode {
    match demo().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("demo: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn demo() -> Result<()> {
    let began = Instant::now();
    let addresses = Addresses::from_environment()?;
    let program = Program::new(&addresses)?;
    let servers = Servers::start_anew(&addresses).await?;
    let mailbox = Mailbox::open(&addresses.emails).await?;
    let story = Story::on(Utc::now());

    write_lines(&program.folder.join(DOCUMENTS), &story.cast.documents())?;
    write_lines(&program.folder.join(COMMANDS), story.steps().map(|step| &step.command))?;
    program.run(&["import", DOCUMENTS])?;
    let mut worker = program.start_worker().await?;

    let mut published = 0;
    for (index, chapter) in story.chapters.iter().enumerate() {
        let file = format!("chapter-{}.jsonl", index + 1);
        write_lines(&program.folder.join(&file), chapter.iter().map(|step| &step.command))?;
        // The story contains an invalid command, which `publish` would otherwise reject.
        program.run(&["publish", "--force", &file])?;
        published += chapter.len();
        settled(published, &mut worker).await?;
    }
    eprintln!("… waiting for emails, events and scheduled changes");
    let observed = observe(&story, &servers, &mailbox, &mut worker).await?;

    eprintln!("… stopping the worker");
    let log = worker.log.clone();
    let status = worker.stop().await;

    let mut out = stdout().lock();
    writeln!(out, "\n{}\n", observed.story(&story))?;
    writeln!(out, "Dead letters: messages that no worker can process. Their bodies are unchanged.\n")?;
    writeln!(out, "{}\n", observed.dead_letters())?;
    writeln!(out, "Events: published for other systems.\n\n{}\n", observed.events())?;
    ensure!(status.success(), "the worker exited with {status} on SIGTERM; its log is {}", log.display());
    let problems = observed.problems(&story);
    if !problems.is_empty() {
        let hint = if Story::day_of(Utc::now()) == story.today {
            ""
        } else {
            "\nMidnight has passed during the run; run it again."
        };
        bail!(
            "the result differs from the story:\n  {}{hint}\nThe worker's log is {}",
            problems.join("\n  "),
            log.display()
        );
    }
    write!(out, "{}", farewell(&program, &addresses, &mailbox, &observed)?)?;
    writeln!(out, "Everything matches the story ({:.1} s).", began.elapsed().as_secs_f64())?;
    Ok(())
}

/// Waits until the worker has processed this many commands.
async fn settled(published: usize, worker: &mut Worker) -> Result<()> {
    eventually("not every command is processed", async || {
        worker.is_alive()?;
        Ok((worker.settled().await >= published as u64).then_some(()))
    })
    .await
}

/// Waits until the results match the story, at most [`PATIENCE`], and returns them.
async fn observe(story: &Story, servers: &Servers, mailbox: &Mailbox, worker: &mut Worker) -> Result<Observed> {
    eventually("emails and events are still waiting in an outbox", async || {
        worker.is_alive()?;
        Ok((servers.full_outboxes().await? == 0).then_some(()))
    })
    .await?;
    let dead_letters = servers.dead_letters().await?;
    let begin = Instant::now();
    let mut observed =
        Observed { subscriptions: vec![], accounts: vec![], events: vec![], dead_letters, emails: vec![] };
    loop {
        observed.subscriptions = servers.documents("subscriptions").await?;
        observed.accounts = servers.documents("accounts").await?;
        observed.events = servers.events();
        observed.emails = mailbox.received().await?;
        if observed.problems(story).is_empty() || begin.elapsed() > PATIENCE {
            return Ok(observed);
        }
        worker.is_alive()?;
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Polls until there is a result.
async fn eventually<T>(otherwise: &str, mut look: impl AsyncFnMut() -> Result<Option<T>>) -> Result<T> {
    let begin = Instant::now();
    loop {
        if let Some(answer) = look().await? {
            return Ok(answer);
        }
        ensure!(begin.elapsed() < PATIENCE, "{otherwise} after {} s", PATIENCE.as_secs());
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

fn write_lines<'a>(path: &Path, lines: impl IntoIterator<Item = &'a Value>) -> Result<()> {
    let mut text = String::new();
    for line in lines {
        writeln!(text, "{line}")?;
    }
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

/// The closing text: where to look, and what to do next.
fn farewell(program: &Program, addresses: &Addresses, mailbox: &Mailbox, observed: &Observed) -> Result<String> {
    let mut text = String::new();
    writeln!(text, "All {} emails are at {}, for example:", observed.emails.len(), mailbox.page())?;
    for language in ["fr-CA", "en-CA", "es-MX"] {
        if let Some(received) = observed.emails.iter().find(|received| received.language == language) {
            writeln!(text, "  {language}  {}\n         {}", received.subject, received.page)?;
        }
    }
    let (offramp, files) = (from_here(&program.binary), from_here(&program.folder));
    writeln!(text, "\nOne subscription, with its timeline:")?;
    writeln!(text, "  {offramp} show sub-101 --mongodb-url '{}'", addresses.mongodb)?;
    if let Ok(admin) = env::var("SERVICES_RABBITMQ_ADMIN") {
        writeln!(text, "Queues and dead letters (user and password: guest):\n  {admin}/#/queues, {NAME}.*")?;
    }
    writeln!(text, "The same story without servers:")?;
    writeln!(text, "  {offramp} simulate --documents {files}/{DOCUMENTS} --commands {files}/{COMMANDS}")?;
    writeln!(text, "Run it again:\n  make demo\n")?;
    Ok(text)
}

/// The path relative to the current directory.
fn from_here(path: &Path) -> String {
    let here = env::current_dir().unwrap_or_default();
    path.strip_prefix(here).unwrap_or(path).display().to_string()
}
