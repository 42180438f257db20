//! `offramp simulate`: applies the rules to documents from a file or from the database. Nothing is written or sent.

mod documents;

use std::io::{Write, stdout};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context;
use chrono::{DateTime, NaiveDate, NaiveTime, Utc};
use chrono_tz::Tz;
use clap::Args;
use offramp::clock;
use offramp::config::SenderSettings;
use offramp::jsonl::Line;
use offramp::store::DocumentId;
use offramp::store::outbox::entry::{Content, Lease, LeasedEntry, OutboxEntry, entries};
use offramp::worker::composer::{about, origin};
use offramp_domain::calendar::parse_date;
use offramp_domain::cloud_event::CloudEvent;
use offramp_domain::command::Command;
use offramp_domain::dead_letter::DeadLetterReason;
use offramp_domain::ids::Target;
use offramp_domain::notification::Notification;
use offramp_domain::unit_of_work::{RejectedTask, Task, TaskOutcome, UnitOfWork};
use offramp_mail::{MailConnection, Sender, Templates, Transport, compose};
use serde::Serialize;
use uuid::Uuid;

use super::error::WrongConfiguration;
use super::input::Input;
use super::settings::load_templates;
use super::terminal::{Table, count};
use documents::Source;

/// Show what commands would do to documents, without changing them
#[derive(Args, Debug)]
#[command(after_help = "\
Both files have one JSON value per line; either may be `-` for standard input. Documents have the form of `offramp import`. Nothing \
is written to a database or sent. With --documents no server is needed; --from-database only reads. Scheduled changes (ends of \
subscriptions, card notices, reminders of requests) are not included.

Examples:
  offramp simulate --from-database sub-1042 --commands commands.jsonl
  offramp simulate --documents documents.jsonl --commands commands.jsonl
  offramp simulate --documents documents.jsonl --commands commands.jsonl --today 2026-06-02 --mail-dir /tmp/emails")]
pub struct Arguments {
    #[command(flatten)]
    source: Source,

    /// File with commands in the order of their decision, one per line
    #[arg(long, value_name = "FILE")]
    commands: PathBuf,

    /// Decide at noon of this date in the organization's time zone [default: now]
    #[arg(long, value_name = "DATE", value_parser = parse_date)]
    today: Option<NaiveDate>,

    /// Write the emails to this directory, as .eml files
    #[arg(long, value_name = "DIR")]
    mail_dir: Option<PathBuf>,

    /// Print JSON, one object per command
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    sender: SenderSettings,
}

/// The default of `OFFRAMP_SOURCE`.
const SOURCE: &str = "offramp";

/// The outcome of a command, as `--json` prints it.
#[derive(Debug, Serialize)]
struct Answer {
    /// The number of the line, from 1.
    line: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    command: Option<CommandName>,
    #[serde(skip_serializing_if = "Option::is_none")]
    subscription_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    account_id: Option<String>,
    /// `applied`, `unchanged`, `rejected` or `dead_letter`.
    outcome: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    detail: Option<String>,
    /// Whether the worker would retry it first, because a document may still arrive.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    waits: bool,
    /// The status of the subscription afterwards.
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ends_on: Option<NaiveDate>,
    #[serde(skip_serializing_if = "Option::is_none")]
    final_billing_on: Option<NaiveDate>,
    mails: Vec<Mail>,
    events: Vec<CloudEvent>,
}

#[derive(Debug, Serialize)]
struct CommandName {
    source: String,
    id: String,
    #[serde(rename = "type")]
    kind: &'static str,
}

#[derive(Debug, Serialize)]
struct Mail {
    template: &'static str,
    role: &'static str,
    to: String,
    locale: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    subject: Option<String>,
    /// Why it could not be sent.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

pub async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let is_input = |path: &Path| path.as_os_str() == "-";
    if arguments.source.documents.as_deref().is_some_and(is_input) && is_input(&arguments.commands) {
        return Err(
            WrongConfiguration("only one of --documents and --commands can be standard input".to_owned()).into()
        );
    }
    let commands = Input::open(&arguments.commands)?;
    let (unit_of_work, timezone) = arguments.source.read(&commands).await?;
    let mut simulation = Simulation {
        unit_of_work,
        now: instant(arguments.today, timezone)?,
        templates: load_templates(&arguments.sender)?,
        sender: arguments.sender.mail_from,
        directory: match &arguments.mail_dir {
            Some(path) => Some(mail_directory(path)?),
            None => None,
        },
    };

    let mut answers = Vec::new();
    for line in commands.lines()? {
        let answer = simulation.decide(&line?).await?;
        if arguments.json {
            writeln!(stdout().lock(), "{}", serde_json::to_string(&answer)?)?;
        } else {
            answers.push(answer);
        }
    }
    if !arguments.json {
        print(&answers)?;
        if let Some(path) = &arguments.mail_dir {
            let written = answers.iter().flat_map(|answer| &answer.mails).filter(|mail| mail.error.is_none()).count();
            writeln!(stdout().lock(), "{} written to {}", count(written as u64, "email"), path.display())?;
        }
    }
    Ok(())
}

fn instant(today: Option<NaiveDate>, timezone: Option<Tz>) -> anyhow::Result<DateTime<Utc>> {
    let Some(today) = today else { return Ok(clock::now()) };
    let timezone = timezone.context("--today needs an organization with a valid time zone among the documents")?;
    let noon = today.and_time(NaiveTime::MIN) + chrono::TimeDelta::hours(12);
    let noon = noon
        .and_local_timezone(timezone)
        .earliest()
        .context("--today: that date has no noon in the organization's time zone")?;
    Ok(noon.to_utc())
}

fn mail_directory(path: &Path) -> anyhow::Result<MailConnection> {
    let path = std::path::absolute(path).with_context(|| format!("--mail-dir: {}", path.display()))?;
    std::fs::create_dir_all(&path).with_context(|| format!("--mail-dir: cannot create {}", path.display()))?;
    Ok(MailConnection::new(Arc::new(Transport::Files(path))))
}

struct Simulation {
    unit_of_work: UnitOfWork,
    now: DateTime<Utc>,
    templates: Templates,
    sender: Sender,
    directory: Option<MailConnection>,
}

impl Simulation {
    async fn decide(&mut self, line: &Line) -> anyhow::Result<Answer> {
        let mut answer = Answer::new(line.number);
        let command = match Command::parse(&line.bytes) {
            Ok(command) => command,
            Err(error) => {
                answer.outcome = "dead_letter";
                answer.reason = Some(DeadLetterReason::from(&error).as_str());
                answer.detail = Some(error.to_string());
                return Ok(answer);
            }
        };
        answer.name(&command);
        let verdict = self.unit_of_work.apply(&Task::Command(command.clone()), self.now);
        let changed = verdict == TaskOutcome::Applied;
        answer.judge(&command, verdict, self.now);
        let entries = if changed { self.newest_entries(&command) } else { Vec::new() };
        for leased in entries {
            match &leased.entry.content {
                Content::Mail(mail) => answer.mails.push(self.mail(&leased, mail).await?),
                Content::Event(event) => answer.events.push(event.clone()),
            }
        }
        if let Target::Subscription(id) = command.target()
            && let Some(subscription) = self.unit_of_work.subscription(id)
            // A sender from another organization must not learn the status.
            && subscription.organization_id == *command.organization_id()
        {
            let end = subscription.details.as_ref().and_then(|details| details.end.clone().ok()?);
            answer.status = Some(subscription.status.as_str());
            answer.ends_on = end.map(|end| end.ends_on);
            answer.final_billing_on = end.and_then(|end| end.final_billing_on);
        }
        Ok(answer)
    }

    /// The outbox entries of the newest change to the command's document.
    fn newest_entries(&self, command: &Command) -> Vec<LeasedEntry> {
        let lease = Lease { holder: Uuid::nil(), until: self.now };
        let document = DocumentId::from(command.target());
        let effects = self.unit_of_work.newest_effects(command.target()).cloned();
        let entries = effects.map(|effects| entries(effects, &lease, SOURCE, self.now));
        let leased = |entry: OutboxEntry| LeasedEntry { document: document.clone(), entry, has_companions: false };
        entries.unwrap_or_default().into_iter().map(leased).collect()
    }

    /// Renders an email, and writes it to the directory if there is one.
    async fn mail(&mut self, leased: &LeasedEntry, mail: &Notification) -> anyhow::Result<Mail> {
        let mut shown = Mail {
            template: mail.template.as_str(),
            role: mail.recipient.as_str(),
            to: mail.to.email.clone(),
            locale: mail.locale.clone(),
            subject: None,
            error: None,
        };
        let rendered = match self.templates.render(mail) {
            Ok(rendered) => rendered,
            Err(error) => return Ok(Mail { error: Some(error.to_string()), ..shown }),
        };
        shown.locale.clone_from(&rendered.language);
        shown.subject = Some(rendered.subject.clone());
        let origin = origin(leased).map_err(anyhow::Error::msg)?;
        match compose(&self.sender, origin, mail, rendered, self.now) {
            Ok(composed) => {
                if let Some(directory) = &mut self.directory {
                    directory.send(&composed.about(about(leased))).await.context("--mail-dir")?;
                }
            }
            Err(error) => shown.error = Some(error.to_string()),
        }
        Ok(shown)
    }
}

impl Answer {
    fn new(line: usize) -> Self {
        Self {
            line,
            command: None,
            subscription_id: None,
            account_id: None,
            outcome: "unchanged",
            reason: None,
            detail: None,
            waits: false,
            status: None,
            ends_on: None,
            final_billing_on: None,
            mails: Vec::new(),
            events: Vec::new(),
        }
    }

    fn name(&mut self, command: &Command) {
        let reference = &command.reference;
        self.command = Some(CommandName {
            source: reference.key.source.to_string(),
            id: reference.key.id.to_string(),
            kind: reference.kind.as_str(),
        });
        match command.target() {
            Target::Subscription(id) => self.subscription_id = Some(id.to_string()),
            Target::Account(id) => self.account_id = Some(id.to_string()),
            Target::Organization(_) => {}
        }
    }

    fn judge(&mut self, command: &Command, verdict: TaskOutcome, now: DateTime<Utc>) {
        match verdict {
            TaskOutcome::Applied => self.outcome = "applied",
            TaskOutcome::Unchanged | TaskOutcome::Repeated => {}
            TaskOutcome::Rejected(rejected) => {
                self.events.push(CloudEvent::of_rejection(command, &rejected, SOURCE, now));
                let RejectedTask { rejection, .. } = rejected;
                self.outcome = "rejected";
                self.reason = Some(rejection.reason.as_str());
                self.waits = rejection.reason.is_transient();
                self.detail = Some(rejection.detail);
            }
            TaskOutcome::Missing(missing) => {
                self.outcome = "dead_letter";
                self.reason = Some(DeadLetterReason::from(&missing).as_str());
                self.waits = true;
                self.detail = Some(missing.to_string());
            }
            TaskOutcome::Corrupt(error) => {
                self.outcome = "dead_letter";
                self.reason = Some(DeadLetterReason::CorruptDocument.as_str());
                self.detail = Some(error);
            }
        }
    }

    /// The cells of its table row.
    fn cells(&self) -> [String; 4] {
        let about = self.subscription_id.as_ref().or(self.account_id.as_ref());
        let command = match &self.command {
            Some(command) => [command.kind.to_owned(), command.id.clone()],
            None => [format!("line {}", self.line), String::new()],
        };
        let mut outcome = match self.reason {
            Some(reason) => format!("{}: {reason}", self.outcome.replace('_', " ")),
            None => self.outcome.to_owned(),
        };
        if self.waits {
            outcome.push_str(", after retries");
        }
        let status = [
            self.status.map(|status| status.replace('_', " ")),
            self.ends_on.map(|day| format!("last day {day}")),
            self.final_billing_on.map(|day| format!("last invoice {day}")),
        ];
        let mails = self.mails.iter().map(|mail| {
            let problem = mail.error.as_ref().map(|error| format!(", CANNOT BE SENT: {error}")).unwrap_or_default();
            format!("email {} to {} ({}){problem}", mail.template, mail.to, mail.locale)
        });
        let events = self.events.iter().map(|event| format!("event {}", event.kind));
        [
            lines(command.into_iter().chain(about.cloned())),
            lines([Some(outcome), self.detail.clone()].into_iter().flatten()),
            lines(status.into_iter().flatten()),
            lines(mails.chain(events)),
        ]
    }
}

fn lines(lines: impl Iterator<Item = String>) -> String {
    lines.filter(|line| !line.is_empty()).collect::<Vec<_>>().join("\n")
}

fn print(answers: &[Answer]) -> anyhow::Result<()> {
    let mut table = Table::new(&["Command", "Outcome", "Status", "Emails and events"]);
    for answer in answers {
        table.add_row(answer.cells());
    }
    let mut out = stdout().lock();
    writeln!(out, "{table}")?;
    let number = |outcome: &str| answers.iter().filter(|answer| answer.outcome == outcome).count();
    let (applied, unchanged) = (number("applied"), number("unchanged"));
    let (rejected, dead) = (number("rejected"), number("dead_letter"));
    writeln!(
        out,
        "{}: {applied} applied, {unchanged} unchanged, {rejected} rejected, {dead} to the dead letters",
        count(answers.len() as u64, "command")
    )?;
    Ok(())
}
