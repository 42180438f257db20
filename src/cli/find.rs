//! `offramp find`: which subscription, account or organization something is about.

use std::io::{Write, stdout};

use anyhow::{anyhow, bail};
use chrono::{NaiveDate, TimeDelta};
use chrono_tz::Tz;
use clap::{ArgGroup, Args};
use offramp::store::search::SearchError;
use offramp::support::find::{Because, FoundKind, Query, find};
use offramp::support::{Email, EmailState};
use offramp::{advice, clock};

use super::settings::DatabaseArgs;
use super::show;
use super::terminal::{Table, printable};

/// Find a subscription or account by address, email, command or date
#[derive(Args, Debug)]
#[command(
    group = ArgGroup::new("what").required(true).args(["text", "account", "email", "message_id", "command", "undecided_for", "ends_before"]),
    after_help = "\
What is found can be shown with `offramp show`. Nothing found: exit code 1.

TEXT may be a Message-ID, an email address, or the id of a subscription, account, organization, email or command. Rejected commands are kept for 30 days; of applied commands, a document remembers the newest 200.

Examples:
  offramp find julie@tremblay.example
  offramp find '<0b6c4f0e-…@example.org>'        the Message-ID of an email
  offramp find --command c-0005
  offramp find --undecided-for 3d                requests that wait for a decision, oldest first
  offramp find --ends-before 2026-07-01 --organization org-magog"
)]
pub struct Arguments {
    /// A Message-ID, an email address, or an id
    #[arg(value_name = "TEXT")]
    text: Option<String>,

    /// The account with this id, and its subscriptions
    #[arg(long, value_name = "ID")]
    account: Option<String>,

    /// The current address of an account or an organization, in any case
    #[arg(long, value_name = "ADDRESS")]
    email: Option<String>,

    /// The Message-ID of an email
    #[arg(long, value_name = "ID")]
    message_id: Option<String>,

    /// The id of a command that was applied or rejected
    #[arg(long, value_name = "ID")]
    command: Option<String>,

    /// Requests undecided for at least this long, such as 3d or 12h
    #[arg(long, value_name = "TIME", value_parser = duration)]
    undecided_for: Option<TimeDelta>,

    /// Scheduled ends whose last day of access is before this date
    #[arg(long, value_name = "DATE")]
    ends_before: Option<NaiveDate>,

    /// Only those of this organization, with --undecided-for and --ends-before
    #[arg(long, value_name = "ID", conflicts_with_all = ["text", "account", "email", "message_id", "command"])]
    organization: Option<String>,

    /// Find at most this many
    #[arg(long, value_name = "NUMBER", default_value_t = 100)]
    limit: usize,

    /// Print JSON, one object per line
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    database: DatabaseArgs,
}

/// `3d`, `12h`, `30m`.
fn duration(text: &str) -> Result<TimeDelta, String> {
    let invalid = || "not a number of days, hours or minutes such as 3d, 12h or 30m".to_owned();
    let unit = text.chars().last().ok_or_else(invalid)?;
    let number: i64 = text[..text.len() - unit.len_utf8()].parse::<u32>().map_err(|_| invalid())?.into();
    match unit {
        'd' => TimeDelta::try_days(number),
        'h' => TimeDelta::try_hours(number),
        'm' => TimeDelta::try_minutes(number),
        _ => None,
    }
    .ok_or_else(invalid)
}

pub async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let query = arguments.query()?;
    let store = arguments.database.open().await?;
    let found = find(&store, &query, arguments.limit).await.map_err(|error| match error {
        SearchError::MissingIndex(_) => anyhow!(advice::append(&error, Some(advice::MISSING_INDEXES))),
        SearchError::Store(error) => error.into(),
    })?;
    for note in &found.notes {
        tracing::warn!("{note}");
    }
    if found.found.is_empty() {
        bail!("nothing found in the database {}{}", arguments.database.name(), arguments.hint());
    }
    let mut out = stdout().lock();
    if arguments.json {
        for found in &found.found {
            writeln!(out, "{}", serde_json::to_string(found)?)?;
        }
    } else {
        let mut table = Table::new(&["What", "Name", "Status", "Why"]);
        for found in &found.found {
            let kind = match found.kind {
                FoundKind::Subscription => "subscription",
                FoundKind::Account => "account",
                FoundKind::Organization => "organization",
            };
            let names = [found.name.clone(), found.plan.clone()].into_iter().flatten().collect::<Vec<_>>();
            let last_day = found.last_day.map(|day| format!("last day {day}"));
            let status = found.status.map(show::words).into_iter().chain(last_day).collect::<Vec<_>>();
            table.add_row([
                format!("{kind}\n{}", found.id),
                names.join("\n"),
                status.join("\n"),
                because(&found.because, found.account_id.as_deref()),
            ]);
        }
        writeln!(out, "{table}")?;
    }
    if found.has_more && !arguments.json {
        writeln!(out, "… and more (--limit)")?;
    }
    Ok(())
}

impl Arguments {
    fn query(&self) -> anyhow::Result<Query> {
        let organization_id = self.organization.clone();
        let texts = [
            (&self.text, Query::Text as fn(String) -> Query),
            (&self.account, Query::Account),
            (&self.email, Query::Address),
            (&self.message_id, Query::MessageId),
            (&self.command, Query::Command),
        ];
        if let Some((Some(text), query)) = texts.into_iter().find(|(text, _)| text.is_some()) {
            return Ok(query(text.clone()));
        }
        match (self.undecided_for, self.ends_before) {
            (Some(time), _) => {
                let since = clock::now().checked_sub_signed(time).unwrap_or(chrono::DateTime::UNIX_EPOCH);
                Ok(Query::UndecidedSince { since, organization_id })
            }
            (None, Some(day)) => Ok(Query::EndsBefore { day, organization_id }),
            // The group requires one of them.
            (None, None) => bail!("nothing to find"),
        }
    }

    /// What else may be worth trying.
    fn hint(&self) -> &'static str {
        let has_address = |text: &String| text.contains('@');
        if self.email.is_some() || self.text.as_ref().is_some_and(has_address) {
            "; addresses are searched where they are now, in accounts and organizations, not in past emails"
        } else if self.command.is_some() || self.text.is_some() {
            "; a command that waits, or is a dead letter, is in no document: offramp dead-letters list"
        } else {
            ""
        }
    }
}

fn because(because: &Because, account_id: Option<&str>) -> String {
    match because {
        Because::Id => "has this id".to_owned(),
        Because::Account => format!("of account {}", account_id.unwrap_or_default()),
        Because::Address { address } => address.clone().unwrap_or_default(),
        Because::Email(email) => self::email(email),
        Because::AppliedCommand { source, id, applied_at, unchanged } => {
            let at = applied_at.map(|at| format!(" {} UTC", show::clock(at, Tz::UTC))).unwrap_or_default();
            let result = if *unchanged { "changed nothing" } else { "applied" };
            format!("command {id} from {source}\n{result}{at}")
        }
        Because::RejectedCommand { at, rejected } => {
            let key = &rejected.command.key;
            let at = at.map(|at| format!(" {} UTC", show::clock(at, Tz::UTC))).unwrap_or_default();
            format!("command {} from {}\nrejected{at}: {}\n{}", key.id, key.source, rejected.reason, rejected.detail)
        }
        Because::Undecided { requested_at, reason } => {
            let since = requested_at.map(|at| format!(" since {} UTC", show::clock(at, Tz::UTC))).unwrap_or_default();
            let reason = reason.as_ref().map(|reason| format!("\n{reason}")).unwrap_or_default();
            format!("undecided{since}{reason}")
        }
        Because::EndsSoon => "scheduled to end".to_owned(),
    }
}

fn email(email: &Email) -> String {
    let to = email.to.as_ref().map(|to| format!(" to {to}")).unwrap_or_default();
    let at = |at: Option<_>| at.map(|at| format!(" {} UTC", show::clock(at, Tz::UTC))).unwrap_or_default();
    let state = match email.state {
        EmailState::Waiting => "not sent yet".to_owned(),
        EmailState::Sent => format!("sent{}", at(email.sent_at)),
        EmailState::Failed => format!("failed{}", at(email.failed_at)),
        EmailState::Dropped => "failed and dropped".to_owned(),
    };
    let error = email.error.as_ref().map(|error| format!(": {error}")).unwrap_or_default();
    printable(&format!("email {}{to}\n{state}{error}", email.template))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_a_unit() {
        assert_eq!(duration("3d"), Ok(TimeDelta::days(3)));
        assert_eq!(duration("12h"), Ok(TimeDelta::hours(12)));
        assert_eq!(duration("30m"), Ok(TimeDelta::minutes(30)));
        for text in ["", "3", "d", "-3d", "3 d", "3é", "1.5d", "99999999999d"] {
            assert!(duration(text).is_err(), "{text}");
        }
    }
}
