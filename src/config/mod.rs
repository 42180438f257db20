//! Every setting, once: its environment variable, flag, default, unit and help text (contract §8).
//!
//! A setting is read from its flag, else from the environment variable `NAME`, else from the file that `NAME_FILE` names,
//! else it has its default. [`from_environment`] adds the files; everything else is clap's. What is read here
//! is checked here, so the rest of the program never meets a bad setting; and a secret never leaves through help,
//! `Debug`, logs or errors (see [`secret`]).

#![allow(clippy::doc_markdown, reason = "doc comments here are help texts, read on a terminal")]

pub mod secret;
mod source;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use tracing_subscriber::EnvFilter;

use crate::amqp::{BrokerUrls, InvalidBrokerUrl};
use crate::tls::{Authorities, Identity, Tls};
use offramp_mail::dkim::{DkimKey, DkimSigner, parse_domain, parse_selector};
use offramp_mail::{MailConfigError, MailUrl, Sender, SmtpName};

pub use secret::MongodbUrl;
use source::{secret_setting, setting};

pub use source::from_environment;

/// All that `run` and `check` need.
#[derive(Args, Clone, Debug)]
pub struct Settings {
    /// RabbitMQ.
    #[command(flatten)]
    pub broker: BrokerSettings,
    /// `MongoDB`.
    #[command(flatten)]
    pub database: DatabaseSettings,
    /// Where mails go.
    #[command(flatten)]
    pub mail: MailSettings,
    /// TLS with all three.
    #[command(flatten)]
    pub tls: TlsSettings,
    /// What mails look like.
    #[command(flatten)]
    pub sender: SenderSettings,
    /// Signatures under mails.
    #[command(flatten)]
    pub dkim: DkimSettings,
    /// The worker's pace.
    #[command(flatten)]
    pub worker: WorkerSettings,
    /// Health and metrics.
    #[command(flatten)]
    pub http: HttpSettings,
}

/// RabbitMQ.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "RabbitMQ")]
pub struct BrokerSettings {
    /// RabbitMQ: amqp:// or amqps://, user:password@host:port/vhost; several of them, separated by commas, are tried in turn
    #[arg(
        long,
        env = "OFFRAMP_AMQP_URL",
        hide_env_values = true,
        value_name = "URL",
        default_value = "amqp://localhost:5672/%2f",
        value_parser = setting(broker_urls)
    )]
    pub amqp_url: BrokerUrls,

    /// First part of the name of every exchange and queue
    #[arg(
        long,
        env = "OFFRAMP_PREFIX",
        hide_env_values = true,
        value_name = "NAME",
        default_value = "subscriptions",
        value_parser = setting(prefix)
    )]
    pub prefix: String,
}

/// `MongoDB`.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "MongoDB")]
pub struct DatabaseSettings {
    /// MongoDB: mongodb:// or mongodb+srv://, with the name of the database behind the host
    #[arg(
        long,
        env = "OFFRAMP_MONGODB_URL",
        hide_env_values = true,
        value_name = "URL",
        default_value = "mongodb://localhost:27017/offramp",
        value_parser = setting(MongodbUrl::parse)
    )]
    pub mongodb_url: MongodbUrl,
}

/// Where mails go.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Mail server")]
pub struct MailSettings {
    /// smtp://user:password@host:port (STARTTLS where offered; ?tls=required insists), smtps:// (TLS), or file:///DIR for
    /// .eml files
    #[arg(
        long,
        env = "OFFRAMP_SMTP_URL",
        hide_env_values = true,
        value_name = "URL",
        default_value = "smtp://localhost:1025",
        value_parser = setting(mail_url)
    )]
    pub smtp_url: MailUrl,

    /// File with an OAuth 2.0 access token, to log in with XOAUTH2 instead of a password; it is read for each connection
    #[arg(long, env = "OFFRAMP_SMTP_TOKEN_FILE", hide_env_values = true, value_name = "FILE")]
    pub smtp_token_file: Option<PathBuf>,

    /// Connections to the mail server at most, 1 to 64
    #[arg(
        long,
        env = "OFFRAMP_MAIL_CONNECTIONS",
        hide_env_values = true,
        value_name = "NUMBER",
        default_value = "8",
        value_parser = setting(number::<1, 64>)
    )]
    pub mail_connections: usize,

    /// Emails per second at most, 0.01 to 10000; a mail server that throttles lowers the rate by itself
    /// [default: unlimited]
    #[arg(
        long,
        env = "OFFRAMP_MAIL_PER_SECOND",
        hide_env_values = true,
        value_name = "NUMBER",
        value_parser = setting(per_second)
    )]
    pub mail_per_second: Option<f64>,

    /// Name of this worker in EHLO: a domain, or an IP address in brackets [default: the host name if it has a dot, else the
    /// domain of OFFRAMP_MAIL_FROM]
    #[arg(
        long,
        env = "OFFRAMP_SMTP_NAME",
        hide_env_values = true,
        value_name = "NAME",
        value_parser = setting(smtp_name)
    )]
    pub smtp_name: Option<SmtpName>,
}

impl MailSettings {
    /// Where emails go.
    ///
    /// # Errors
    /// When the user and how to log in do not go together.
    pub fn url(&self) -> Result<MailUrl, MailConfigError> {
        match &self.smtp_token_file {
            Some(file) => self.smtp_url.clone().with_token_file(file.clone()),
            None => Ok(self.smtp_url.clone()),
        }
    }

    /// The name of this worker in EHLO.
    #[must_use]
    pub fn name(&self, sender: &Sender) -> SmtpName {
        self.smtp_name.clone().unwrap_or_else(|| SmtpName::of_host_or(sender))
    }
}

/// TLS with all three servers.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "TLS with these servers")]
pub struct TlsSettings {
    /// PEM file of the certificate authorities to trust instead of the system's [default: none]
    #[arg(
        long,
        env = "OFFRAMP_TLS_CA",
        hide_env_values = true,
        value_name = "FILE",
        value_parser = setting(authorities)
    )]
    pub tls_ca: Option<Authorities>,

    /// PEM file of our certificate and its private key, for servers that ask for one [default: none]
    #[arg(
        long,
        env = "OFFRAMP_TLS_CERTIFICATE",
        hide_env_values = true,
        value_name = "FILE",
        value_parser = setting(identity)
    )]
    pub tls_certificate: Option<Identity>,
}

impl TlsSettings {
    /// What they mean for connections.
    #[must_use]
    pub fn tls(&self) -> Tls {
        Tls::new(self.tls_ca.clone(), self.tls_certificate.clone())
    }
}

/// What mails look like.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Mails")]
pub struct SenderSettings {
    /// Address that mails come from, under the organization's name
    #[arg(
        long,
        env = "OFFRAMP_MAIL_FROM",
        hide_env_values = true,
        value_name = "ADDRESS",
        default_value = "no-reply@localhost",
        value_parser = setting(sender)
    )]
    pub mail_from: Sender,

    /// Directory whose files replace the built-in templates, file by file [default: none]
    #[arg(
        long,
        env = "OFFRAMP_TEMPLATES",
        hide_env_values = true,
        value_name = "DIR",
        value_parser = setting(directory)
    )]
    pub templates: Option<PathBuf>,
}

/// Signatures under mails.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "DKIM signatures under mails")]
pub struct DkimSettings {
    /// Private key in PEM form: RSA of 2048 to 4096 bits, or Ed25519 [default: none, and mails are not signed]
    #[arg(
        long,
        env = "OFFRAMP_DKIM_KEY",
        hide_env_values = true,
        value_name = "KEY",
        allow_hyphen_values = true,
        value_parser = secret_setting(DkimKey::parse)
    )]
    pub dkim_key: Option<DkimKey>,

    /// Name of the key: its public half is in the DNS at SELECTOR._domainkey.DOMAIN, as `offramp check` says it
    #[arg(
        long,
        env = "OFFRAMP_DKIM_SELECTOR",
        hide_env_values = true,
        value_name = "SELECTOR",
        value_parser = setting(parse_selector)
    )]
    pub dkim_selector: Option<String>,

    /// Domain that vouches for mails [default: that of OFFRAMP_MAIL_FROM]
    #[arg(
        long,
        env = "OFFRAMP_DKIM_DOMAIN",
        hide_env_values = true,
        value_name = "DOMAIN",
        value_parser = setting(parse_domain)
    )]
    pub dkim_domain: Option<String>,
}

impl DkimSettings {
    /// Who signs mails from `sender`, if anybody.
    ///
    /// # Errors
    /// A sentence, when one of the settings lacks another.
    pub fn signer(&self, sender: &Sender) -> Result<Option<DkimSigner>, String> {
        let Some(key) = &self.dkim_key else {
            let lonely = [
                ("OFFRAMP_DKIM_SELECTOR", self.dkim_selector.is_some()),
                ("OFFRAMP_DKIM_DOMAIN", self.dkim_domain.is_some()),
            ];
            return match lonely.into_iter().find(|(_, is_set)| *is_set) {
                Some((name, _)) => Err(format!("{name} is set, and OFFRAMP_DKIM_KEY is not: no mail would be signed")),
                None => Ok(None),
            };
        };
        let selector = self.dkim_selector.clone().ok_or(
            "OFFRAMP_DKIM_KEY is set, and OFFRAMP_DKIM_SELECTOR is not: under which name is the public key in the DNS?",
        )?;
        let domain = match &self.dkim_domain {
            Some(domain) => domain.clone(),
            None => parse_domain(sender.domain())
                .map_err(|why| format!("OFFRAMP_MAIL_FROM cannot be signed for by its own domain: {why}"))?,
        };
        Ok(Some(DkimSigner::new(key.clone(), selector, domain)))
    }
}

/// The worker's pace.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Worker")]
pub struct WorkerSettings {
    /// `source` of the events that leave
    #[arg(
        long,
        env = "OFFRAMP_SOURCE",
        hide_env_values = true,
        value_name = "TEXT",
        default_value = "offramp",
        value_parser = setting(event_source)
    )]
    pub source: String,

    /// Commands decided together at most, 1 to 200: a document remembers as many, so a batch that comes again is recognised
    #[arg(
        long,
        env = "OFFRAMP_BATCH_MAX",
        hide_env_values = true,
        value_name = "NUMBER",
        default_value = "200",
        value_parser = setting(number::<1, 200>)
    )]
    pub batch_max: usize,

    /// Seconds between two sweeps for dates that have passed, on average, 1 to 86400; saved cards are swept every hour (each time, if
    /// this is below 60), due outbox entries are claimed every 2 seconds (every sweep, if that is more often)
    #[arg(
        long = "sweep-seconds",
        env = "OFFRAMP_SWEEP_SECONDS",
        hide_env_values = true,
        value_name = "SECONDS",
        default_value = "60",
        value_parser = setting(seconds::<1, 86_400>)
    )]
    pub sweep: Duration,

    /// Seconds that a mail or event belongs to the worker that took it, before another may try, 20 to 3600
    #[arg(
        long = "lease-seconds",
        env = "OFFRAMP_LEASE_SECONDS",
        hide_env_values = true,
        value_name = "SECONDS",
        default_value = "180",
        value_parser = setting(seconds::<20, 3600>)
    )]
    pub lease: Duration,

    /// Seconds that messages in hand are kept while MongoDB is away, before they go back to the queue, 1 to 1200
    #[arg(
        long = "hold-seconds",
        env = "OFFRAMP_HOLD_SECONDS",
        hide_env_values = true,
        value_name = "SECONDS",
        default_value = "60",
        value_parser = setting(seconds::<1, 1200>)
    )]
    pub hold: Duration,

    /// Seconds that work in hand gets to finish when the worker is asked to stop, 1 to 600
    #[arg(
        long = "shutdown-seconds",
        env = "OFFRAMP_SHUTDOWN_SECONDS",
        hide_env_values = true,
        value_name = "SECONDS",
        default_value = "25",
        value_parser = setting(seconds::<1, 600>)
    )]
    pub shutdown: Duration,
}

/// Health and metrics.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Health and metrics")]
pub struct HttpSettings {
    /// Address and port on which /livez, /readyz and /metrics answer; port 0 takes any free one
    #[arg(
        long,
        env = "OFFRAMP_HTTP_ADDR",
        hide_env_values = true,
        value_name = "ADDRESS",
        default_value = "127.0.0.1:9464",
        value_parser = setting(socket_address)
    )]
    pub http_addr: SocketAddr,
}

/// What is logged, and how. It goes to standard error.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Logs")]
pub struct LogSettings {
    /// What is logged: error, warn, info, debug, trace, or a filter such as offramp=debug,lapin=warn
    /// [default: info for `run`, warn for the others]
    #[arg(
        long,
        global = true,
        env = "OFFRAMP_LOG",
        hide_env_values = true,
        value_name = "FILTER",
        value_parser = setting(log_filter)
    )]
    pub log: Option<String>,

    /// text, for people, or json, one object a line
    #[arg(
        long,
        global = true,
        env = "OFFRAMP_LOG_FORMAT",
        hide_env_values = true,
        value_name = "FORMAT",
        default_value = "text",
        value_parser = setting(log_format)
    )]
    pub log_format: LogFormat,
}

/// How logs are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// A work queue's name is the prefix, a dot and at most 25 more bytes; AMQP names have at most 255.
const PREFIX_BYTES_MAX: usize = 128;

fn prefix(text: &str) -> Result<String, String> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    if text.is_empty() || text.len() > PREFIX_BYTES_MAX || !text.chars().all(allowed) {
        return Err(format!("a prefix has 1 to {PREFIX_BYTES_MAX} letters, digits, dots, dashes and underscores"));
    }
    if text.starts_with("amq.") {
        return Err("names that begin with \"amq.\" belong to RabbitMQ; choose another prefix".to_owned());
    }
    Ok(text.to_owned())
}

fn event_source(text: &str) -> Result<String, String> {
    let fits = (1..=256).contains(&text.chars().count());
    if !fits || text.contains(|c: char| c.is_whitespace() || c.is_control()) {
        return Err(
            "a source has 1 to 256 characters and no spaces, such as \"offramp\" or \"https://example.com/offramp\""
                .into(),
        );
    }
    Ok(text.to_owned())
}

fn broker_urls(text: &str) -> Result<BrokerUrls, String> {
    text.parse().map_err(|error: InvalidBrokerUrl| error.to_string())
}

fn mail_url(text: &str) -> Result<MailUrl, String> {
    MailUrl::parse(text).map_err(|error| error.to_string())
}

fn smtp_name(text: &str) -> Result<SmtpName, String> {
    SmtpName::parse(text)
}

fn sender(text: &str) -> Result<Sender, String> {
    Sender::parse(text).map_err(|error| error.to_string())
}

fn authorities(text: &str) -> Result<Authorities, String> {
    Authorities::read(Path::new(text))
}

fn identity(text: &str) -> Result<Identity, String> {
    Identity::read(Path::new(text))
}

fn directory(text: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(text);
    if path.is_dir() { Ok(path) } else { Err("there is no such directory".to_owned()) }
}

fn socket_address(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| {
        "it is not an IP address with a port; write 127.0.0.1:9464, or 0.0.0.0:9464 to answer from everywhere"
            .to_owned()
    })
}

fn number<const MIN: usize, const MAX: usize>(text: &str) -> Result<usize, String> {
    text.parse()
        .ok()
        .filter(|number| (MIN..=MAX).contains(number))
        .ok_or_else(|| format!("it must be a whole number from {MIN} to {MAX}"))
}

fn per_second(text: &str) -> Result<f64, String> {
    text.parse()
        .ok()
        .filter(|number| (0.01..=10_000.0).contains(number))
        .ok_or_else(|| "it must be a number from 0.01 to 10000, such as 14 or 0.5".to_owned())
}

fn seconds<const MIN: u64, const MAX: u64>(text: &str) -> Result<Duration, String> {
    text.parse()
        .ok()
        .filter(|seconds| (MIN..=MAX).contains(seconds))
        .map(Duration::from_secs)
        .ok_or_else(|| format!("it must be a whole number of seconds from {MIN} to {MAX}, without a unit"))
}

fn log_filter(text: &str) -> Result<String, String> {
    match EnvFilter::builder().parse(text) {
        Ok(_) => Ok(text.to_owned()),
        Err(error) => {
            Err(format!("{error}; write a level (error, warn, info, debug, trace) or offramp=debug,lapin=warn"))
        }
    }
}

fn log_format(text: &str) -> Result<LogFormat, String> {
    match text {
        "text" => Ok(LogFormat::Text),
        "json" => Ok(LogFormat::Json),
        _ => Err("it must be text or json".to_owned()),
    }
}

#[cfg(test)]
mod tests;
