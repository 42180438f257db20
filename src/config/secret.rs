//! Addresses of servers, which carry passwords: what is shown of them carries none.

use std::fmt;

use mongodb::options::ConnectionString;

use super::source::PEM;

/// Said with every bad address: it is the usual reason.
const ENCODE: &str = "special characters in a user name or password are written percent-encoded, such as %40 for @";

/// Parameters of a `MongoDB` URL with which any certificate passes.
const UNCHECKED_TLS: [&str; 3] = ["tlsInsecure", "tlsAllowInvalidCertificates", "tlsAllowInvalidHostnames"];

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
        if let Some(name) = trusts_everybody(text) {
            return Err(format!(
                "with {name} it would trust any server; name the authority to trust in OFFRAMP_TLS_CA instead"
            ));
        }
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

impl fmt::Debug for MongodbUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MongodbUrl({self})")
    }
}

/// The parameter that switches off the check of the server's certificate, if there is one.
fn trusts_everybody(text: &str) -> Option<&'static str> {
    let (_, parameters) = text.split_once('?')?;
    let is_on = |wanted: &&str| {
        // The driver reads names in any case.
        let mut settings = parameters.split('&').filter_map(|parameter| parameter.split_once('='));
        settings.any(|(name, value)| name.eq_ignore_ascii_case(wanted) && !value.eq_ignore_ascii_case("false"))
    };
    UNCHECKED_TLS.into_iter().find(is_on)
}

/// What may be a user name and password: everything up to the last `@` behind the scheme.
fn user_info(text: &str) -> Option<&str> {
    let rest = text.split_once("://").map_or(text, |(_, rest)| rest);
    rest.rsplit_once('@').map(|(user, _)| user).filter(|user| !user.is_empty())
}

/// A setting's value as it may be shown, well-formed or not: where it is an address with a user name and password, these
/// are `***`, and so are the values of parameters behind a `?`. Nothing is shown of what may be a key.
#[must_use]
pub fn redact(text: &str) -> String {
    if text.contains(PEM) {
        return "***".to_owned();
    }
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
