//! Logs: to standard error, for people or as JSON.

use std::borrow::Cow;
use std::io::{self, IsTerminal};

use tracing::{Level, Metadata};
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, fmt, registry};

use crate::config::{LogFormat, LogSettings};

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
/// has the password.
fn tells_no_secret(metadata: &Metadata<'_>) -> bool {
    !(metadata.target().starts_with("lapin") && *metadata.level() == Level::TRACE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lapin_is_heard_only_where_it_is_asked_for() {
        assert_eq!(without_lapin("debug"), "debug,lapin=off");
        assert_eq!(without_lapin("offramp=debug,lapin=warn"), "offramp=debug,lapin=warn");
        for filter in ["info", "off", "offramp=debug", ""] {
            EnvFilter::builder().parse(without_lapin(filter)).unwrap();
        }
    }
}
