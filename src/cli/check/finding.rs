//! What one check found, and how it is printed.

use std::io::{IsTerminal, Write, stdout};

use serde::Serialize;

use crate::cli::terminal::printable;

/// The result of one check.
#[derive(Debug)]
pub struct Finding {
    check: &'static str,
    facts: Vec<String>,
    /// What will not work.
    problems: Vec<String>,
    /// What works, and is probably not meant or may stop working.
    warnings: Vec<String>,
    /// Whether a problem is one of settings or templates.
    is_configuration: bool,
}

/// The state of a check, by the worst that it found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    Ok,
    Warning,
    Failed,
}

impl Finding {
    pub fn new(check: &'static str) -> Self {
        Self { check, facts: Vec::new(), problems: Vec::new(), warnings: Vec::new(), is_configuration: false }
    }

    /// A check of settings or templates: its problems are wrong configuration.
    pub fn of_configuration(check: &'static str) -> Self {
        Self { is_configuration: true, ..Self::new(check) }
    }

    pub fn fact(mut self, fact: impl Into<String>) -> Self {
        self.facts.push(fact.into());
        self
    }

    pub fn problem(mut self, problem: impl Into<String>) -> Self {
        self.problems.push(problem.into());
        self
    }

    pub fn warning(mut self, warning: impl Into<String>) -> Self {
        self.warnings.push(warning.into());
        self
    }

    pub fn check(&self) -> &'static str {
        self.check
    }

    pub fn state(&self) -> State {
        match (self.problems.is_empty(), self.warnings.is_empty()) {
            (false, _) => State::Failed,
            (true, false) => State::Warning,
            (true, true) => State::Ok,
        }
    }

    /// Whether it failed because of settings or templates.
    pub fn is_wrong_configuration(&self) -> bool {
        self.is_configuration && self.state() == State::Failed
    }

    /// Prints it as one JSON object on one line.
    pub fn print_json(&self) -> anyhow::Result<()> {
        #[derive(Serialize)]
        struct Json<'a> {
            check: &'a str,
            ok: bool,
            state: State,
            /// Everything, one sentence per line.
            detail: String,
            problems: &'a [String],
            warnings: &'a [String],
        }
        let all = self.facts.iter().chain(&self.problems).chain(&self.warnings);
        let json = Json {
            check: self.check,
            ok: self.state() != State::Failed,
            state: self.state(),
            detail: all.map(String::as_str).collect::<Vec<_>>().join("\n"),
            problems: &self.problems,
            warnings: &self.warnings,
        };
        writeln!(stdout().lock(), "{}", serde_json::to_string(&json)?)?;
        Ok(())
    }

    /// Prints it for people: a mark, the name of the check, and a sentence per line.
    pub fn print(&self) -> anyhow::Result<()> {
        let is_colored = stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
        let marked = |state: State| match (state, is_colored) {
            (State::Ok, true) => "\x1b[32m✓\x1b[0m",
            (State::Warning, true) => "\x1b[33m!\x1b[0m",
            (State::Failed, true) => "\x1b[31m✗\x1b[0m",
            (State::Ok, false) => "✓",
            (State::Warning, false) => "!",
            (State::Failed, false) => "✗",
        };
        let facts = self.facts.iter().map(|fact| printable(fact));
        let problems = self.problems.iter().map(|problem| format!("{} {}", marked(State::Failed), printable(problem)));
        let warnings = self.warnings.iter().map(|warning| format!("{} {}", marked(State::Warning), printable(warning)));
        let lines: Vec<String> = facts.chain(problems).chain(warnings).collect();
        let text = lines.join("\n").replace('\n', "\n              ");
        writeln!(stdout().lock(), "{} {:<11} {text}", marked(self.state()), self.check)?;
        Ok(())
    }
}
