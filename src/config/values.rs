//! Parsers of setting values. Errors are sentences that say what would be right; [`super::source`] adds the setting's name.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use axum::http::HeaderName;
use offramp_mail::{MailUrl, Sender, SmtpName};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

use super::access_token::AccessToken;
use super::log_format::LogFormat;
use crate::amqp::{BrokerUrls, InvalidBrokerUrl};
use crate::tls::{Authorities, Identity};

/// AMQP names have at most 255 bytes. A work queue's name is the prefix, a dot and at most 25 more bytes.
const PREFIX_BYTES_MAX: usize = 128;

pub(super) fn prefix(text: &str) -> Result<String, String> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    if text.is_empty() || text.len() > PREFIX_BYTES_MAX || !text.chars().all(allowed) {
        return Err(format!("a prefix has 1 to {PREFIX_BYTES_MAX} letters, digits, dots, dashes and underscores"));
    }
    if text.starts_with("amq.") {
        return Err("names that begin with \"amq.\" are reserved for RabbitMQ; choose another prefix".to_owned());
    }
    Ok(text.to_owned())
}

pub(super) fn event_source(text: &str) -> Result<String, String> {
    let fits = (1..=256).contains(&text.chars().count());
    if !fits || text.contains(|c: char| c.is_whitespace() || c.is_control()) {
        return Err(
            "a source has 1 to 256 characters and no spaces, such as \"offramp\" or \"https://example.com/offramp\""
                .into(),
        );
    }
    Ok(text.to_owned())
}

pub(super) fn broker_urls(text: &str) -> Result<BrokerUrls, String> {
    text.parse().map_err(|error: InvalidBrokerUrl| error.to_string())
}

pub(super) fn mail_url(text: &str) -> Result<MailUrl, String> {
    MailUrl::parse(text).map_err(|error| error.to_string())
}

pub(super) fn smtp_name(text: &str) -> Result<SmtpName, String> {
    SmtpName::parse(text)
}

pub(super) fn sender(text: &str) -> Result<Sender, String> {
    Sender::parse(text).map_err(|error| error.to_string())
}

pub(super) fn authorities(text: &str) -> Result<Authorities, String> {
    Authorities::read(Path::new(text))
}

pub(super) fn identity(text: &str) -> Result<Identity, String> {
    Identity::read(Path::new(text))
}

pub(super) fn directory(text: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(text);
    if path.is_dir() { Ok(path) } else { Err("there is no such directory".to_owned()) }
}

pub(super) fn socket_address(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| {
        "it is not an IP address with a port; write 127.0.0.1:9464, or 0.0.0.0:9464 to listen on all addresses"
            .to_owned()
    })
}

pub(super) fn access_token(text: &str) -> Result<AccessToken, String> {
    AccessToken::parse(text)
}

pub(super) fn header_name(text: &str) -> Result<HeaderName, String> {
    text.parse().map_err(|_| "it is not the name of an HTTP header, such as X-Forwarded-User".to_owned())
}

pub(super) fn host_name(text: &str) -> Result<String, String> {
    let name = text.trim().to_ascii_lowercase();
    let is_name = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-'));
    if name.is_empty() || !is_name {
        return Err("it is not a host name such as offramp.example.com (no https://, no port)".to_owned());
    }
    Ok(name)
}

pub(super) fn host_and_port(text: &str) -> Result<String, String> {
    let address = text.trim();
    match address.rsplit_once(':') {
        Some((host, port))
            if !host.is_empty() && !host.contains('/') && port.parse::<u16>().is_ok_and(|port| port > 0) =>
        {
            Ok(address.to_owned())
        }
        _ => Err("it is not a host with a port, such as worker-1:9464".to_owned()),
    }
}

pub(super) fn number<const MIN: usize, const MAX: usize>(text: &str) -> Result<usize, String> {
    text.parse()
        .ok()
        .filter(|number| (MIN..=MAX).contains(number))
        .ok_or_else(|| format!("it must be a whole number from {MIN} to {MAX}"))
}

pub(super) fn per_second(text: &str) -> Result<f64, String> {
    text.parse()
        .ok()
        .filter(|number| (0.01..=10_000.0).contains(number))
        .ok_or_else(|| "it must be a number from 0.01 to 10000, such as 14 or 0.5".to_owned())
}

pub(super) fn days<const MIN: u64, const MAX: u64>(text: &str) -> Result<Duration, String> {
    let days = text.parse().ok().filter(|days| (MIN..=MAX).contains(days));
    let days = days.ok_or_else(|| format!("it must be a whole number of days from {MIN} to {MAX}"))?;
    Ok(Duration::from_secs(days * 24 * 60 * 60))
}

pub(super) fn seconds<const MIN: u64, const MAX: u64>(text: &str) -> Result<Duration, String> {
    text.parse()
        .ok()
        .filter(|seconds| (MIN..=MAX).contains(seconds))
        .map(Duration::from_secs)
        .ok_or_else(|| format!("it must be a whole number of seconds from {MIN} to {MAX}, without a unit"))
}

/// The crates that write logs. A filter that names another target alone would silence everything.
const LOG_TARGETS: [&str; 7] = ["offramp", "lapin", "mongodb", "rustls", "hyper", "hickory", "opentelemetry"];

pub(super) fn log_filter(text: &str) -> Result<String, String> {
    const FORM: &str = "write a level (off, error, warn, info, debug, trace) or offramp=debug,lapin=warn";
    // A word alone is a level or a target, so the parser takes a misspelt level for a target.
    let is_known =
        |word: &&str| word.parse::<LevelFilter>().is_ok() || LOG_TARGETS.iter().any(|target| word.starts_with(target));
    let mut words = text.split(',').map(str::trim).filter(|word| !word.is_empty() && !word.contains(['=', '[']));
    if let Some(word) = words.find(|word| !is_known(word)) {
        return Err(format!("\"{word}\" is not a level; {FORM}"));
    }
    match EnvFilter::builder().parse(text) {
        Ok(_) => Ok(text.to_owned()),
        Err(error) => Err(format!("{error}; {FORM}")),
    }
}

pub(super) fn log_format(text: &str) -> Result<LogFormat, String> {
    text.parse().map_err(|_| "it must be text or json".to_owned())
}
