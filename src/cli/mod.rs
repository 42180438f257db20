//! The command line: one file per subcommand. The enum is the list of them.

mod check;
mod dead_letters;
mod import;
mod init;
mod input;
mod outbox;
mod preview;
mod progress;
mod publish;
mod run;
mod schemas;
mod show;
mod simulate;
mod table;
mod words;

pub use words::printable;

use clap::{Parser, Subcommand};
use offramp::config::{LogSettings, SenderSettings};
use offramp::logging;
use offramp_mail::Templates;

/// Ends monthly subscriptions: commands in from RabbitMQ, documents changed in MongoDB, mails and events out
#[derive(Debug, Parser)]
#[command(version, arg_required_else_help = true, after_help = AFTER_HELP, max_term_width = 120)]
pub struct Cli {
    #[command(flatten)]
    log: LogSettings,
    #[command(subcommand)]
    command: Command,
}

const AFTER_HELP: &str = "\
Every setting is a flag and an environment variable; every variable NAME may instead be a file that NAME_FILE names, which keeps \
passwords out of the environment.

Try it without any server: offramp simulate --help

Exit codes: 0 done, 1 failed, 2 wrong usage or configuration.";

#[derive(Debug, Subcommand)]
enum Command {
    Run(Box<run::Arguments>),
    Check(Box<check::Arguments>),
    Init(init::Arguments),
    Import(import::Arguments),
    Publish(publish::Arguments),
    Simulate(simulate::Arguments),
    Show(show::Arguments),
    DeadLetters(dead_letters::Arguments),
    Outbox(outbox::Arguments),
    Preview(preview::Arguments),
    Schemas(schemas::Arguments),
}

/// Why the program cannot do anything: the operator has to change something first. Leads to exit code 2.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct WrongConfiguration(pub String);

impl Cli {
    /// Does what was asked.
    pub async fn run(self) -> anyhow::Result<()> {
        let default_filter = if matches!(self.command, Command::Run(_)) { "info" } else { "warn" };
        logging::init(&self.log, default_filter).map_err(|error| WrongConfiguration(error.to_string()))?;
        match self.command {
            Command::Run(arguments) => run::run(*arguments).await,
            Command::Check(arguments) => check::run(*arguments).await,
            Command::Init(arguments) => init::run(arguments).await,
            Command::Import(arguments) => import::run(arguments).await,
            Command::Publish(arguments) => publish::run(arguments).await,
            Command::Simulate(arguments) => simulate::run(arguments).await,
            Command::Show(arguments) => show::run(arguments).await,
            Command::DeadLetters(arguments) => dead_letters::run(arguments).await,
            Command::Outbox(arguments) => outbox::run(arguments).await,
            Command::Preview(arguments) => preview::run(arguments).await,
            Command::Schemas(arguments) => schemas::run(&arguments),
        }
    }
}

fn load_templates(settings: &SenderSettings) -> Result<Templates, WrongConfiguration> {
    Templates::load(settings.templates.as_deref()).map_err(|problems| {
        let lines: Vec<String> = problems.iter().map(ToString::to_string).collect();
        WrongConfiguration(format!("the templates have mistakes:\n{}", lines.join("\n")))
    })
}
