//! Logs: to standard error, for people or as JSON.

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
    let filter = EnvFilter::builder().parse(settings.log.as_deref().unwrap_or(default))?;
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

/// Whether something may be logged, whatever the filter says: at its lowest level `lapin` logs every frame, and one of them
/// has the password.
fn tells_no_secret(metadata: &Metadata<'_>) -> bool {
    !(metadata.target().starts_with("lapin") && *metadata.level() == Level::TRACE)
}
