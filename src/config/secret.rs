//! Addresses of servers, which carry passwords: what is shown of them carries none.

use std::fmt;
use std::path::{Path, PathBuf};

use lapin::uri::AMQPUri;
use mongodb::options::ConnectionString;
use url::Url;

/// Said with every bad address: it is the usual reason.
const ENCODE: &str = "special characters in a user name or password are written percent-encoded, such as %40 for @";

/// One or more RabbitMQ nodes, in the order in which they are tried.
#[derive(Clone)]
pub struct AmqpUrls(Vec<AMQPUri>);

impl AmqpUrls {
    /// Reads `amqp://user:password@host1:5672,host2:5672/vhost`, or whole URLs separated by commas, or both.
    ///
    /// # Errors
    /// A sentence that says what is wrong, without any part of the text that could be secret.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut urls: Vec<String> = Vec::new();
        for piece in text.split(',') {
            match urls.last_mut() {
                Some(url) if !piece.contains("://") => {
                    url.push(',');
                    url.push_str(piece);
                }
                _ => urls.push(piece.trim().to_owned()),
            }
        }
        let mut nodes = Vec::new();
        for url in urls {
            for url in one_url_per_host(&url)? {
                nodes.push(amqp_node(&url)?);
            }
        }
        Ok(Self(nodes))
    }

    /// The nodes; at least one.
    #[must_use]
    pub fn nodes(&self) -> &[AMQPUri] {
        &self.0
    }
}

/// `amqp://u:p@a,b/v` → `amqp://u:p@a/v`, `amqp://u:p@b/v`.
fn one_url_per_host(url: &str) -> Result<Vec<String>, String> {
    let (scheme, rest) = url
        .split_once("://")
        .filter(|(scheme, _)| matches!(*scheme, "amqp" | "amqps"))
        .ok_or("it must begin with amqp:// or amqps://")?;
    let (authority, tail) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
    let (user, hosts) = authority.split_at(authority.rfind('@').map_or(0, |at| at + 1));
    Ok(hosts.split(',').map(|host| format!("{scheme}://{user}{}{tail}", host.trim())).collect())
}

fn amqp_node(text: &str) -> Result<AMQPUri, String> {
    let url = Url::parse(text).map_err(|error| format!("{error}; {ENCODE}"))?;
    let host = url.host().ok_or("it names no host; write amqp://user:password@host:5672/%2f")?;
    if url.path() == "/" {
        return Err(
            "it names a virtual host without a name; write %2f behind the last slash for the virtual host \"/\", \
                    or leave the slash out"
                .to_owned(),
        );
    }
    // The error would quote the text.
    let mut node: AMQPUri = text.parse().map_err(
        |_| "its parameters (frame_max, channel_max, heartbeat, connection_timeout, auth_mechanism) cannot be read",
    )?;
    // The library takes an IPv6 address for no host at all, which would be localhost.
    if let url::Host::Ipv6(address) = host {
        node.authority.host = address.to_string();
    }
    Ok(node)
}

impl fmt::Display for AmqpUrls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, node) in self.0.iter().enumerate() {
            let separator = if index == 0 { "" } else { ", " };
            write!(f, "{separator}{}", display_node(node))?;
        }
        Ok(())
    }
}

/// A RabbitMQ node as it may be shown: `amqp://host:5672`, with the virtual host where it is not `/`.
#[must_use]
pub fn display_node(node: &AMQPUri) -> String {
    let host = &node.authority.host;
    let host = if host.contains(':') { format!("[{host}]") } else { host.clone() };
    let vhost = if node.vhost == "/" { String::new() } else { format!("/{}", node.vhost) };
    format!("{}://{host}:{}{vhost}", node.scheme, node.authority.port)
}

/// A `MongoDB` deployment, with the name of the database.
#[derive(Clone)]
pub struct MongodbUrl {
    text: String,
    database: String,
}

impl MongodbUrl {
    /// Reads a connection string that names a database.
    ///
    /// # Errors
    /// A sentence that says what is wrong, without any part of the text that could be secret.
    pub fn parse(text: &str) -> Result<Self, String> {
        if !text.starts_with("mongodb://") && !text.starts_with("mongodb+srv://") {
            return Err("it must begin with mongodb:// or mongodb+srv://".to_owned());
        }
        let parsed = ConnectionString::parse(text).map_err(|error| {
            let why = error.kind.to_string();
            let quotes_secret = user_info(text).is_some_and(|user| user.split(':').any(|part| why.contains(part)));
            if quotes_secret { format!("it cannot be read; {ENCODE}") } else { format!("{why}; {ENCODE}") }
        })?;
        let database = parsed
            .default_database
            .filter(|name| !name.is_empty())
            .ok_or("it names no database; write its name behind the host, such as mongodb://localhost:27017/offramp")?;
        Ok(Self { text: text.to_owned(), database })
    }

    /// The connection string, secrets and all: for the driver, and for no one else.
    #[must_use]
    pub fn connection_string(&self) -> &str {
        &self.text
    }

    /// The database.
    #[must_use]
    pub fn database(&self) -> &str {
        &self.database
    }
}

impl fmt::Display for MongodbUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&redact(&self.text))
    }
}

/// Where mails go.
#[derive(Clone)]
pub enum SmtpUrl {
    /// A mail server.
    Server(Url),
    /// A directory for `.eml` files.
    Directory(PathBuf),
}

impl SmtpUrl {
    /// Reads `smtp://`, `smtps://` or `file:///directory`.
    ///
    /// # Errors
    /// A sentence that says what is wrong, without any part of the text that could be secret.
    pub fn parse(text: &str) -> Result<Self, String> {
        let Some((scheme @ ("smtp" | "smtps" | "file"), _)) = text.split_once("://") else {
            return Err("it must begin with smtp://, smtps:// or file:///".to_owned());
        };
        let url = Url::parse(text).map_err(|error| format!("{error}; {ENCODE}"))?;
        if scheme == "file" {
            let path =
                url.to_file_path().map_err(|()| "it must name a directory from the root on: file:///tmp/mails")?;
            return Ok(Self::Directory(path));
        }
        if url.host_str().is_none_or(str::is_empty) {
            return Err("it names no host; write smtp://user:password@host:587".to_owned());
        }
        if !matches!(url.path(), "" | "/") || url.fragment().is_some() {
            return Err(format!("nothing may follow the host and port; {ENCODE}"));
        }
        Ok(Self::Server(url))
    }

    /// The directory, where mails go to one.
    #[must_use]
    pub fn directory(&self) -> Option<&Path> {
        match self {
            Self::Directory(path) => Some(path),
            Self::Server(_) => None,
        }
    }
}

impl fmt::Display for SmtpUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Server(url) => f.write_str(&redact(url.as_str())),
            Self::Directory(path) => write!(f, "file://{}", path.display()),
        }
    }
}

macro_rules! debug_as_display {
    ($($name:ident)*) => {$(
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({self})", stringify!($name))
            }
        }
    )*};
}

debug_as_display! { AmqpUrls MongodbUrl SmtpUrl }

/// What may be a user name and password: everything up to the last `@` behind the scheme.
fn user_info(text: &str) -> Option<&str> {
    let rest = text.split_once("://").map_or(text, |(_, rest)| rest);
    rest.rsplit_once('@').map(|(user, _)| user).filter(|user| !user.is_empty())
}

/// A setting's value as it may be shown, well-formed or not: where it is an address with a user name and password, these
/// are `***`, and so are the values of parameters behind a `?`.
#[must_use]
pub fn redact(text: &str) -> String {
    let Some((scheme, rest)) = text.split_once("://") else {
        // Perhaps an address without its scheme; an e-mail address has no password.
        return match text.rsplit_once('@') {
            Some((user, host)) if user.contains(':') => format!("***@{host}"),
            _ => text.to_owned(),
        };
    };
    let (user, rest) = rest.rsplit_once('@').map_or(("", rest), |(_, rest)| ("***@", rest));
    let (rest, parameters) = rest.split_once('?').map_or((rest, ""), |(rest, _)| (rest, "?***"));
    format!("{scheme}://{user}{rest}{parameters}")
}
