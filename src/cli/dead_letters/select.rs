//! The arguments that select dead letters.

use std::io::{Write, stdout};

use anyhow::bail;
use clap::Args;
use offramp::amqp::{DeadLetter, Topology};

use super::fields::short_queue;
use crate::cli::error::WrongConfiguration;

/// Dead letters to replay or drop. An empty selection is an error, so that nobody replays or drops everything by mistake.
#[derive(Args, Debug)]
#[command(next_help_heading = "Selection")]
pub struct Selection {
    /// Select by handle, command id or message id
    #[arg(value_name = "LETTER")]
    names: Vec<String>,

    #[command(flatten)]
    filter: Filter,

    /// Select all dead letters
    #[arg(long, conflicts_with_all = ["names", "Filter"])]
    all: bool,
}

/// Dead letters that meet all given conditions.
#[derive(Args, Debug)]
#[command(next_help_heading = "Selection")]
pub struct Filter {
    /// Select by reason, such as exhausted; `list` shows the reasons
    #[arg(long, value_name = "WORD")]
    reason: Option<String>,

    /// Select by a part of the error
    #[arg(long, value_name = "TEXT")]
    error: Option<String>,

    /// Select by work queue, with or without its prefix
    #[arg(long, value_name = "NAME")]
    queue: Option<String>,

    /// Select by the type of the command
    #[arg(long = "type", value_name = "TYPE")]
    kind: Option<String>,

    /// Select by the subscription that the command names
    #[arg(long, value_name = "ID")]
    subscription: Option<String>,

    /// Select by the account that the command names; only card expiries name one
    #[arg(long, value_name = "ID")]
    account: Option<String>,

    /// Select by the source of the command
    // With an id of its own, because `OFFRAMP_SOURCE` is the source of our events.
    #[arg(id = "command_source", long = "source", value_name = "URI")]
    source: Option<String>,
}

impl Selection {
    pub fn check(&self) -> Result<(), WrongConfiguration> {
        if self.all || !self.names.is_empty() || !self.filter.is_empty() {
            return Ok(());
        }
        Err(WrongConfiguration(
            "select dead letters with a handle, --reason, --error, --queue, --type, --subscription, --account, --source, or --all; \
             `offramp dead-letters list` shows them"
                .to_owned(),
        ))
    }

    pub fn matches(&self, letter: &DeadLetter, topology: &Topology) -> bool {
        let is_named = self.names.is_empty() || self.names.iter().any(|name| letter.is_named(name));
        is_named && self.filter.matches(letter, topology)
    }

    /// Fails if a name selects no dead letter. That a filter selects none may be good news.
    pub fn require(&self, selected: u64) -> anyhow::Result<()> {
        if selected > 0 {
            return Ok(());
        }
        if let [name, ..] = self.names.as_slice() {
            bail!(not_found(name));
        }
        writeln!(stdout().lock(), "no such dead letters; nothing to do")?;
        Ok(())
    }
}

impl Filter {
    pub fn matches(&self, letter: &DeadLetter, topology: &Topology) -> bool {
        let Self { reason, error, queue, kind, subscription, account, source } = self;
        let is = |wanted: &Option<String>, actual: &Option<String>| wanted.is_none() || wanted == actual;
        let from = letter.queue.as_deref().unwrap_or_default();
        reason.as_ref().is_none_or(|reason| *reason == letter.reason)
            && error.as_ref().is_none_or(|text| letter.error.contains(text) || letter.error_pattern.contains(text))
            && queue.as_ref().is_none_or(|queue| queue == from || queue == short_queue(from, topology))
            && is(kind, &letter.kind)
            && is(subscription, &letter.subscription_id)
            && is(account, &letter.account_id)
            && is(source, &letter.source)
    }

    fn is_empty(&self) -> bool {
        let Self { reason, error, queue, kind, subscription, account, source } = self;
        [reason, error, queue, kind, subscription, account, source].iter().all(|filter| filter.is_none())
    }
}

/// The error for a name without a dead letter.
pub fn not_found(name: &str) -> String {
    format!(
        "there is no dead letter with the handle, command id or message id \"{name}\"; `offramp dead-letters list --each` lists all"
    )
}
