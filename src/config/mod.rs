//! Every setting, once: flag, default, unit and help text. The environment variable follows from the flag.
//!
//! A setting is read from its flag, else from the environment variable `OFFRAMP_…`, else from the file that `OFFRAMP_…_FILE`
//! names; else it has its default. [`from_environment`] adds variables and files to clap's definitions. Values are validated
//! here, so the rest of the program never meets an invalid setting. Secrets appear in no help text, `Debug` output, log line or
//! error (see [`redact`]). `docs/operate/settings.md` is generated from these definitions.

#![allow(clippy::doc_markdown, reason = "doc comments here are help texts, read on a terminal")]

mod access_token;
mod log_format;
mod mongodb_url;
mod redact;
mod source;
mod traces;
mod unknown_variables;
mod values;

use std::collections::HashSet;
use std::ffi::{OsStr, OsString};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use axum::http::HeaderName;
use clap::{Arg, Args, Command};

use crate::amqp::BrokerUrls;
use crate::tls::{Authorities, Identity, Tls};
use offramp_mail::dkim::{DkimKey, DkimSigner, parse_domain, parse_selector};
use offramp_mail::{MailConfigError, MailUrl, Sender, SmtpName};
use source::{secret_setting, setting};
use values::{
    access_token, authorities, broker_urls, days, directory, event_source, header_name, host_and_port, host_name,
    identity, log_filter, log_format, mail_url, number, per_second, prefix, seconds, sender, smtp_name, socket_address,
};

pub use access_token::AccessToken;
pub use log_format::LogFormat;
pub use mongodb_url::MongodbUrl;
pub use redact::redact;
pub use traces::TraceSettings;
pub use unknown_variables::{UnknownVariable, unknown_variables};

/// Lets every setting of `command` and its subcommands come from its environment variable, or from the file that the variable
/// with `_FILE` names. An empty variable counts as unset (`OFFRAMP_TEMPLATES=` in a compose file).
///
/// `variable` reads an environment variable: `std::env::var_os`, except in tests.
#[must_use]
pub fn from_environment(command: Command, variable: &dyn Fn(&OsStr) -> Option<OsString>) -> Command {
    // By id and flag: an argument of a subcommand may have the flag of a setting that the subcommand does not use.
    let name = |arg: &Arg| (arg.get_id().clone(), arg.get_long().map(str::to_owned));
    let settings: HashSet<_> =
        all_settings().get_arguments().filter(|arg| arg.get_long().is_some()).map(name).collect();
    source::from_environment(command, &|arg| settings.contains(&name(arg)), variable)
}

/// A command with every setting as an argument.
fn all_settings() -> Command {
    LogSettings::augment_args(ConsoleSettings::augment_args(Settings::augment_args(Command::new("settings"))))
}

/// The settings of `run` and `check`.
#[derive(Args, Clone, Debug)]
pub struct Settings {
    #[command(flatten)]
    pub broker: BrokerSettings,
    #[command(flatten)]
    pub database: DatabaseSettings,
    #[command(flatten)]
    pub mail: MailSettings,
    #[command(flatten)]
    pub tls: TlsSettings,
    #[command(flatten)]
    pub sender: SenderSettings,
    #[command(flatten)]
    pub dkim: DkimSettings,
    #[command(flatten)]
    pub worker: WorkerSettings,
    #[command(flatten)]
    pub http: HttpSettings,
    #[command(flatten)]
    pub traces: TraceSettings,
}

#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "RabbitMQ")]
pub struct BrokerSettings {
    /// URL of RabbitMQ, or several, separated by commas, tried in turn
    ///
    /// amqp:// or amqps://, user:password@host:port/vhost
    #[arg(long, value_name = "URL", default_value = "amqp://localhost:5672/%2f", value_parser = setting(broker_urls))]
    pub amqp_url: BrokerUrls,

    /// First part of the name of every exchange and queue
    #[arg(long, value_name = "NAME", default_value = "subscriptions", value_parser = setting(prefix))]
    pub prefix: String,
}

#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "MongoDB")]
pub struct DatabaseSettings {
    /// URL of MongoDB, including the name of the database
    ///
    /// mongodb://user:password@host:port/database, or mongodb+srv://
    #[arg(
        long,
        value_name = "URL",
        default_value = "mongodb://localhost:27017/offramp",
        value_parser = setting(MongodbUrl::parse)
    )]
    pub mongodb_url: MongodbUrl,
}

/// The server that sends emails.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Mail server")]
pub struct MailSettings {
    /// URL of the mail server, or of a directory for .eml files
    ///
    /// smtp://user:password@host:port uses STARTTLS if the server offers it (?tls=required: always), smtps:// uses TLS, and
    /// file:///DIR writes each email to a file
    #[arg(long, value_name = "URL", default_value = "smtp://localhost:1025", value_parser = setting(mail_url))]
    pub smtp_url: MailUrl,

    /// File with an OAuth 2.0 access token, to log in with XOAUTH2 [default: none]
    ///
    /// It replaces the password, and is read again for each connection
    #[arg(long, value_name = "FILE")]
    pub smtp_token_file: Option<PathBuf>,

    /// Maximum number of connections to the mail server, 1 to 64
    #[arg(long, value_name = "NUMBER", default_value = "8", value_parser = setting(number::<1, 64>))]
    pub mail_connections: usize,

    /// Maximum number of emails per second, 0.01 to 10000 [default: unlimited]
    ///
    /// If the mail server throttles, the worker lowers the rate by itself
    #[arg(long, value_name = "NUMBER", value_parser = setting(per_second))]
    pub mail_per_second: Option<f64>,

    /// Name of this worker in EHLO: a domain, or an IP address in brackets
    ///
    /// [default: the host name if it has a dot, else the domain of OFFRAMP_MAIL_FROM]
    #[arg(long, value_name = "NAME", value_parser = setting(smtp_name))]
    pub smtp_name: Option<SmtpName>,
}

impl MailSettings {
    /// The URL of the mail server, including the token file.
    ///
    /// # Errors
    /// When the user, the password and the token file contradict each other.
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
    /// PEM file of the certificate authorities to trust [default: the system's]
    #[arg(long, value_name = "FILE", value_parser = setting(authorities))]
    pub tls_ca: Option<Authorities>,

    /// PEM file of the client certificate and its private key [default: none]
    #[arg(long, value_name = "FILE", value_parser = setting(identity))]
    pub tls_certificate: Option<Identity>,
}

impl TlsSettings {
    /// The TLS configuration of all connections.
    #[must_use]
    pub fn tls(&self) -> Tls {
        Tls::new(self.tls_ca.clone(), self.tls_certificate.clone())
    }
}

/// The sender and the wording of emails.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Emails")]
pub struct SenderSettings {
    /// Sender address of emails; the sender name is the organization's
    #[arg(long, value_name = "ADDRESS", default_value = "no-reply@localhost", value_parser = setting(sender))]
    pub mail_from: Sender,

    /// Directory whose files replace built-in templates [default: none]
    #[arg(long, value_name = "DIR", value_parser = setting(directory))]
    pub templates: Option<PathBuf>,
}

#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "DKIM signatures of emails")]
pub struct DkimSettings {
    /// Private key in PEM form [default: none; emails are not signed]
    ///
    /// RSA of 2048 to 4096 bits, or Ed25519
    #[arg(long, value_name = "KEY", allow_hyphen_values = true, value_parser = secret_setting(DkimKey::parse))]
    pub dkim_key: Option<DkimKey>,

    /// Name of the key
    ///
    /// The public key is in the DNS at SELECTOR._domainkey.DOMAIN; `offramp check` prints the record
    #[arg(long, value_name = "SELECTOR", value_parser = setting(parse_selector))]
    pub dkim_selector: Option<String>,

    /// Signing domain [default: the domain of OFFRAMP_MAIL_FROM]
    #[arg(long, value_name = "DOMAIN", value_parser = setting(parse_domain))]
    pub dkim_domain: Option<String>,
}

impl DkimSettings {
    /// The signer of emails from `sender`. `None`: emails are not signed.
    ///
    /// # Errors
    /// When one of the settings requires another that is not set.
    pub fn signer(&self, sender: &Sender) -> Result<Option<DkimSigner>, String> {
        let Some(key) = &self.dkim_key else {
            let lonely = [
                ("OFFRAMP_DKIM_SELECTOR", self.dkim_selector.is_some()),
                ("OFFRAMP_DKIM_DOMAIN", self.dkim_domain.is_some()),
            ];
            return match lonely.into_iter().find(|(_, is_set)| *is_set) {
                Some((name, _)) => {
                    Err(format!("{name} is set but OFFRAMP_DKIM_KEY is not: emails would not be signed"))
                }
                None => Ok(None),
            };
        };
        let selector = self.dkim_selector.clone().ok_or(
            "OFFRAMP_DKIM_KEY is set but OFFRAMP_DKIM_SELECTOR is not: set it to the name of the key in the DNS",
        )?;
        let domain = match &self.dkim_domain {
            Some(domain) => domain.clone(),
            None => parse_domain(sender.domain())
                .map_err(|why| format!("the domain of OFFRAMP_MAIL_FROM cannot sign emails: {why}"))?,
        };
        Ok(Some(DkimSigner::new(key.clone(), selector, domain)))
    }
}

/// Limits and intervals of the worker.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Worker")]
pub struct WorkerSettings {
    /// `source` of published events
    #[arg(long, value_name = "TEXT", default_value = "offramp", value_parser = setting(event_source))]
    pub source: String,

    /// Maximum number of commands decided together, 1 to 200
    ///
    /// A document remembers 200 commands, so a redelivered batch is always recognized
    #[arg(long, value_name = "NUMBER", default_value = "200", value_parser = setting(number::<1, 200>))]
    pub batch_max: usize,

    /// Average seconds between two sweeps for dates that have passed, 1 to 86400
    ///
    /// Saved cards are swept once per hour (in every sweep, if this is below 60). Due outbox entries are claimed every 2 seconds
    /// (in every sweep, if that is more frequent)
    #[arg(
        long = "sweep-seconds",
        value_name = "SECONDS",
        default_value = "60",
        value_parser = setting(seconds::<1, 86_400>)
    )]
    pub sweep: Duration,

    /// Seconds that an email or event is leased to one worker, 20 to 3600
    ///
    /// Another worker may send it when the lease has expired
    #[arg(
        long = "lease-seconds",
        value_name = "SECONDS",
        default_value = "180",
        value_parser = setting(seconds::<20, 3600>)
    )]
    pub lease: Duration,

    /// Seconds to hold messages in flight while MongoDB is unavailable, 1 to 1200
    ///
    /// After that they are returned to their queues
    #[arg(
        long = "hold-seconds",
        value_name = "SECONDS",
        default_value = "60",
        value_parser = setting(seconds::<1, 1200>)
    )]
    pub hold: Duration,

    /// Days to keep sent emails for `offramp console`, 0 to 365
    ///
    /// Support staff then see what a client has read. It is a copy of personal data, and costs the database one more write per
    /// email, so it is off by default (0)
    #[arg(long = "keep-emails-days", value_name = "DAYS", default_value = "0", value_parser = setting(days::<0, 365>))]
    pub keep_emails: Duration,

    /// Seconds to finish the work in flight when the worker stops, 1 to 600
    #[arg(
        long = "shutdown-seconds",
        value_name = "SECONDS",
        default_value = "25",
        value_parser = setting(seconds::<1, 600>)
    )]
    pub shutdown: Duration,
}

#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Health and metrics")]
pub struct HttpSettings {
    /// Address and port of /livez, /readyz and /metrics; port 0 takes any free port
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:9464", value_parser = setting(socket_address))]
    pub http_addr: SocketAddr,
}

/// The web page for support and operators.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Console")]
pub struct ConsoleSettings {
    /// Address and port of `offramp console`; port 0 takes any free port
    ///
    /// Other addresses than this machine's own need OFFRAMP_CONSOLE_TOKEN or OFFRAMP_CONSOLE_IDENTITY_HEADER
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:9466", value_parser = setting(socket_address))]
    pub console_addr: SocketAddr,

    /// Token that visitors log in with, at least 16 characters [default: none]
    #[arg(long, value_name = "TOKEN", allow_hyphen_values = true, value_parser = secret_setting(access_token))]
    pub console_token: Option<AccessToken>,

    /// Header in which a reverse proxy names the visitor, such as X-Forwarded-User
    ///
    /// Nobody but the proxy may be able to reach the console: whoever can is whoever they say [default: none]
    #[arg(long, value_name = "NAME", value_parser = setting(header_name))]
    pub console_identity_header: Option<HeaderName>,

    /// Host names under which browsers open the console, separated by commas
    ///
    /// `localhost` and IP addresses always work. Others are rejected, so that no foreign page can read the console [default: none]
    #[arg(long, value_name = "NAMES", value_delimiter = ',', value_parser = setting(host_name))]
    pub console_hosts: Vec<String>,

    /// Workers to show, as HOST:PORT of their OFFRAMP_HTTP_ADDR, separated by commas
    ///
    /// A host name with several addresses stands for one worker at each
    #[arg(
        long,
        value_name = "ADDRESSES",
        value_delimiter = ',',
        default_value = "127.0.0.1:9464",
        value_parser = setting(host_and_port)
    )]
    pub console_workers: Vec<String>,
}

/// Logs go to standard error.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Logs")]
pub struct LogSettings {
    /// What to log: error, warn, info, debug, trace, or a filter
    ///
    /// A filter is, for example, offramp=debug,lapin=warn [default: info for `run`, warn for other subcommands]
    #[arg(long, global = true, value_name = "FILTER", value_parser = setting(log_filter))]
    pub log: Option<String>,

    /// Format of logs: text, or json (one object per line)
    #[arg(long, global = true, value_name = "FORMAT", default_value = "text", value_parser = setting(log_format))]
    pub log_format: LogFormat,
}

#[cfg(test)]
mod tests;
