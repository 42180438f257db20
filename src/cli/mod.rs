//! The command line: one file or folder per subcommand. [`Command`] lists them.

mod check;
mod console;
mod dead_letters;
mod error;
mod find;
mod healthcheck;
mod import;
mod init;
mod input;
mod outbox;
mod preview;
mod publish;
mod run;
mod schemas;
mod settings;
mod show;
mod signals;
mod simulate;
mod terminal;
mod worker_http;

use clap::{Parser, Subcommand};
use offramp::config::{LogSettings, unknown_variables};
use offramp::logging;

pub use error::WrongConfiguration;
pub use terminal::printable;

/// End monthly subscriptions on commands from RabbitMQ
///
/// The worker receives commands from RabbitMQ, changes documents in MongoDB, and sends emails and events.
#[derive(Debug, Parser)]
#[command(version, arg_required_else_help = true, after_help = AFTER_HELP, max_term_width = 120)]
pub struct Cli {
    #[command(flatten)]
    log: LogSettings,
    #[command(subcommand)]
    command: Command,
}

const AFTER_HELP: &str = "\
Every setting is a flag and an environment variable. Instead of a variable NAME, NAME_FILE may name a file with the value, which \
keeps passwords out of the environment.

To try it without any server: offramp simulate --help

Exit codes: 0 success, 1 failure, 2 wrong usage or configuration.";

#[derive(Debug, Subcommand)]
enum Command {
    Run(Box<run::Arguments>),
    Check(Box<check::Arguments>),
    Init(init::Arguments),
    Import(import::Arguments),
    Publish(publish::Arguments),
    Simulate(Box<simulate::Arguments>),
    Show(show::Arguments),
    Find(Box<find::Arguments>),
    DeadLetters(dead_letters::Arguments),
    Outbox(outbox::Arguments),
    Preview(Box<preview::Arguments>),
    Console(Box<console::Arguments>),
    Healthcheck(healthcheck::Arguments),
    Schemas(schemas::Arguments),
}

impl Cli {
    pub async fn run(self) -> anyhow::Result<()> {
        let default_filter =
            if matches!(self.command, Command::Run(_) | Command::Console(_)) { "info" } else { "warn" };
        logging::init(&self.log, default_filter).map_err(|error| WrongConfiguration(error.to_string()))?;
        // `check` reports them itself, as errors. A worker starts with them: after a rollback it may be given a later version's.
        if !matches!(self.command, Command::Check(_)) {
            for variable in unknown_variables(std::env::vars_os()) {
                tracing::warn!("ignored: {variable}");
            }
        }
        match self.command {
            Command::Run(arguments) => run::run(*arguments).await,
            Command::Check(arguments) => check::run(*arguments).await,
            Command::Init(arguments) => init::run(arguments).await,
            Command::Import(arguments) => import::run(arguments).await,
            Command::Publish(arguments) => publish::run(arguments).await,
            Command::Simulate(arguments) => simulate::run(*arguments).await,
            Command::Show(arguments) => show::run(arguments).await,
            Command::Find(arguments) => find::run(*arguments).await,
            Command::DeadLetters(arguments) => dead_letters::run(arguments).await,
            Command::Outbox(arguments) => outbox::run(arguments).await,
            Command::Preview(arguments) => preview::run(*arguments).await,
            Command::Console(arguments) => console::run(*arguments).await,
            Command::Healthcheck(arguments) => healthcheck::run(arguments).await,
            Command::Schemas(arguments) => schemas::run(&arguments),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;
    use std::fmt::Write;
    use std::path::Path;

    use clap::{Command, CommandFactory};

    use super::Cli;
    use crate::generated_page;

    /// The program without variables of this process.
    fn program() -> Command {
        let mut command = offramp::config::from_environment(Cli::command(), &|_: &OsStr| None);
        command.build();
        command
    }

    fn leaves<'a>(command: &'a Command, path: &str, found: &mut Vec<(String, &'a Command)>) {
        for subcommand in command.get_subcommands().filter(|subcommand| subcommand.get_name() != "help") {
            let path = format!("{path} {}", subcommand.get_name());
            found.push((path.clone(), subcommand));
            leaves(subcommand, &path, found);
        }
    }

    #[test]
    fn help_begins_with_a_short_sentence() {
        let program = program();
        let mut subcommands = Vec::new();
        leaves(&program, "offramp", &mut subcommands);
        for (path, subcommand) in subcommands {
            let about = subcommand.get_about().unwrap().to_string();
            assert!(about.chars().count() <= 80, "{path}: {about}");
            for arg in subcommand.get_arguments() {
                let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
                assert!(help.chars().count() <= 80, "{path} {arg}: {help}");
            }
        }
    }

    /// `docs/operate/subcommands.md`. Settings have a page of their own.
    #[test]
    fn the_documentation_lists_every_subcommand() {
        let mut page = generated_page::start(
            "Subcommands",
            "src/cli/mod.rs",
            "`offramp` is one program with these subcommands. Exit codes: 0 success, 1 failure, 2 wrong usage or configuration. \
             Results go to standard output, errors and logs to standard error; with `--json`, a subcommand prints JSON instead of \
             tables.\n\n\
             Subcommands also take the [settings](settings.md) of the servers that they use. `offramp SUBCOMMAND --help` lists them.",
        );
        let program = program();
        let mut subcommands = Vec::new();
        leaves(&program, "offramp", &mut subcommands);
        page.push_str("| subcommand | purpose |\n|---|---|\n");
        for (path, subcommand) in &subcommands {
            writeln!(page, "| `{path}` | {} |", subcommand.get_about().unwrap()).unwrap();
        }
        for (path, subcommand) in &subcommands {
            writeln!(page, "\n## {path}\n").unwrap();
            let about = subcommand.get_long_about().or(subcommand.get_about()).unwrap().to_string();
            for paragraph in about.split("\n\n") {
                writeln!(page, "{}.\n", paragraph.split_whitespace().collect::<Vec<_>>().join(" ")).unwrap();
            }
            let arguments: Vec<_> = subcommand
                .get_arguments()
                .filter(|arg| arg.get_env().is_none() && !matches!(arg.get_id().as_str(), "help" | "version"))
                .collect();
            if !arguments.is_empty() {
                page.push_str("| argument | meaning |\n|---|---|\n");
            }
            for arg in &arguments {
                let help = arg.get_long_help().or(arg.get_help()).map(ToString::to_string).unwrap_or_default();
                let help: Vec<_> =
                    help.split("\n\n").map(|it| it.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
                let default = arg.get_default_values().first().filter(|_| arg.get_action().takes_values());
                let default =
                    default.map(|value| format!(" (default: `{}`)", value.to_string_lossy())).unwrap_or_default();
                let arg = arg.to_string().replace('|', "\\|");
                writeln!(page, "| `{arg}` | {}{default} |", help.join(". ").replace('|', "\\|")).unwrap();
            }
            let after = subcommand.get_after_help().map(ToString::to_string).unwrap_or_default();
            for paragraph in after.split("\n\n").map(str::trim_end).filter(|paragraph| !paragraph.is_empty()) {
                // Examples are indented; other paragraphs are prose.
                if let Some((title, examples)) = paragraph.split_once("\n  ") {
                    writeln!(page, "\n{title}\n\n```text\n  {examples}\n```").unwrap();
                } else {
                    writeln!(page, "\n{}", paragraph.split_whitespace().collect::<Vec<_>>().join(" ")).unwrap();
                }
            }
        }
        let page = page.replace("\n\n\n", "\n\n");
        generated_page::check(Path::new("docs/operate/subcommands.md"), &format!("{}\n", page.trim_end()));
    }
}
