//! Logging to standard error, as text or JSON.

use std::borrow::Cow;
use std::io::{self, IsTerminal};

use tracing::{Level, Metadata};
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, fmt, registry};

use crate::config::{LogFormat, LogSettings};

/// The target under which `lapin` logs unroutable messages.
const RETURNED_MESSAGES: &str = "lapin::returned_messages";

/// Starts logging. The filter is `default` if the settings contain none.
///
/// # Errors
/// When logging has already been started, or the filter is invalid.
pub fn init(settings: &LogSettings, default: &str) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let filter = EnvFilter::builder().parse(without_lapin(settings.log.as_deref().unwrap_or(default)))?;
    let logs = registry().with(filter).with(filter_fn(may_be_logged));
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

/// Disables `lapin`'s log unless the filter mentions it. `lapin` logs every missing queue and every lost connection as an
/// error; Offramp logs those that matter.
fn without_lapin(filter: &str) -> Cow<'_, str> {
    if filter.contains("lapin") || filter.trim().is_empty() {
        filter.into()
    } else {
        format!("{filter},lapin=off").into()
    }
}

/// Drops secrets whatever the filter says: `lapin` logs every frame at `TRACE`, including the one with the password, and
/// every unroutable message, with its body, as a warning.
fn may_be_logged(metadata: &Metadata<'_>) -> bool {
    !is_secret(metadata.target(), *metadata.level())
}

fn is_secret(target: &str, level: Level) -> bool {
    let is_lapin = target == "lapin" || target.starts_with("lapin::");
    is_lapin && (level == Level::TRACE || target.starts_with(RETURNED_MESSAGES))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_and_message_bodies_are_never_logged() {
        for level in [Level::ERROR, Level::WARN, Level::INFO, Level::DEBUG, Level::TRACE] {
            assert!(is_secret("lapin::returned_messages", level), "{level}");
            assert_eq!(is_secret("lapin::channel", level), level == Level::TRACE, "{level}");
            assert!(!is_secret("offramp::amqp", level), "{level}");
        }
    }

    #[test]
    fn lapin_logs_only_if_the_filter_names_it() {
        assert_eq!(without_lapin("debug"), "debug,lapin=off");
        assert_eq!(without_lapin("offramp=debug,lapin=warn"), "offramp=debug,lapin=warn");
        for filter in ["info", "off", "offramp=debug", ""] {
            EnvFilter::builder().parse(without_lapin(filter)).unwrap();
        }
    }
}
