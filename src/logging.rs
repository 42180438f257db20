//! Logs: to standard error, for people or as JSON.

use std::borrow::Cow;
use std::io::{self, IsTerminal};

use tracing::{Level, Metadata};
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, fmt, registry};

use crate::config::{LogFormat, LogSettings};

/// Where `lapin` logs the messages that no queue takes.
const RETURNED_MESSAGES: &str = "lapin::returned_messages";

/// Starts logging, with the filter `default` where none is set.
///
/// # Errors
/// When logging was started before, or the filter cannot be read.
pub fn init(settings: &LogSettings, default: &str) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let filter = EnvFilter::builder().parse(without_lapin(settings.log.as_deref().unwrap_or(default)))?;
    let logs = registry().with(filter).with(filter_fn(tells_no_secret));
    let lines = fmt::layer().with_writer(io::stderr);
    match settings.log_format {
        LogFormat::Text => {
            let is_colored = io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
            logs.with(lines.with_ansi(is_colored)).try_init()?;
        }
        LogFormat::Json => logs.with(lines.json().flatten_event(true)).try_init()?,
    }
    Ok(())
}

/// A filter that says nothing of `lapin` leaves it out: to `lapin` every object that is missing, and every connection that
/// is lost, is an error, and what matters of that is logged by us.
fn without_lapin(filter: &str) -> Cow<'_, str> {
    if filter.contains("lapin") || filter.trim().is_empty() {
        filter.into()
    } else {
        format!("{filter},lapin=off").into()
    }
}

/// Whether something may be logged, whatever the filter says: at its lowest level `lapin` logs every frame, and one of them
/// has the password; and it logs each message that no queue takes as a warning, with its body.
fn tells_no_secret(metadata: &Metadata<'_>) -> bool {
    is_no_secret(metadata.target(), *metadata.level())
}

fn is_no_secret(target: &str, level: Level) -> bool {
    let is_lapin = target == "lapin" || target.starts_with("lapin::");
    !(is_lapin && (level == Level::TRACE || target.starts_with(RETURNED_MESSAGES)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neither_frames_nor_messages_are_logged_at_any_level() {
        for level in [Level::ERROR, Level::WARN, Level::INFO, Level::DEBUG, Level::TRACE] {
            assert!(!is_no_secret("lapin::returned_messages", level), "{level}");
            assert_eq!(is_no_secret("lapin::channel", level), level != Level::TRACE, "{level}");
            assert!(is_no_secret("offramp::amqp", level), "{level}");
        }
    }

    #[test]
    fn lapin_is_heard_only_where_it_is_asked_for() {
        assert_eq!(without_lapin("debug"), "debug,lapin=off");
        assert_eq!(without_lapin("offramp=debug,lapin=warn"), "offramp=debug,lapin=warn");
        for filter in ["info", "off", "offramp=debug", ""] {
            EnvFilter::builder().parse(without_lapin(filter)).unwrap();
        }
    }
}
