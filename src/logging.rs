//! Logs: to standard error, for people or as JSON.

use std::io::{self, IsTerminal};

use tracing_subscriber::EnvFilter;

use crate::config::{LogFormat, LogSettings};

/// Starts logging, with the filter `default` where none is set.
///
/// # Errors
/// When logging was started before, or the filter cannot be read.
pub fn init(settings: &LogSettings, default: &str) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let filter = EnvFilter::builder().parse(settings.log.as_deref().unwrap_or(default))?;
    let logs = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr);
    match settings.log_format {
        LogFormat::Text => {
            logs.with_ansi(io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none()).try_init()
        }
        LogFormat::Json => logs.json().flatten_event(true).try_init(),
    }
}
