//! `make demo`: a story of cancellations, from message to email, on real servers.
//!
//! Two organizations, one in Québec and one in British Columbia, sell a dozen subscriptions. Their documents are imported
//! into MongoDB; a worker is started; and commands are published to RabbitMQ as other systems would: cancellations by
//! administrators and by clients, requests and answers, payments that fail, cards that run out, and mistakes of every
//! kind. Then the demo looks from outside at what has become of them (documents, events, dead letters, emails), holds it
//! against what the story expects, prints it all, and stops the worker. It fails where anything differs.
//!
//! Everything lives under the prefix and in the database `offramp-demo`, which are emptied first, so that the demo can
//! be run again and again. Reading order: [`story`], [`sample`], then this file; the others are hands and eyes.

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

/// Files in the demo's folder: the whole story, to play with.
const DOCUMENTS: &str = "documents.jsonl";
const COMMANDS: &str = "commands.jsonl";
/// How long a condition may take to come true, on a slow and busy machine.
const PATIENCE: Duration = Duration::from_secs(30);
/// How often to look.
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
        // By force: it would not publish the mistake that the story has in it.
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

/// Waits until the worker is done with this many commands.
async fn settled(published: usize, worker: &mut Worker) -> Result<()> {
    eventually("not every command is processed", async || {
        worker.is_alive()?;
        Ok((worker.settled().await >= published as u64).then_some(()))
    })
    .await
}

/// Waits until the world is as the story says, and answers what it is; if it does not become so, what it is then.
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

/// Looks until there is an answer.
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

/// Where to look, and what to do next.
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

/// A path as it is typed from the current directory.
fn from_here(path: &Path) -> String {
    let here = env::current_dir().unwrap_or_default();
    path.strip_prefix(here).unwrap_or(path).display().to_string()
}
