//! The URL of MongoDB. Its `Display` and `Debug` show no password.

use std::fmt;

use mongodb::options::ConnectionString;

use super::redact::redact;

/// Appended to every error: it is the usual reason.
const ENCODE: &str = "special characters in a user name or password must be percent-encoded, such as %40 for @";

/// Parameters of the URL that disable the verification of the server's certificate.
const UNCHECKED_TLS: [&str; 3] = ["tlsInsecure", "tlsAllowInvalidCertificates", "tlsAllowInvalidHostnames"];

/// A MongoDB deployment and the name of a database.
#[derive(Clone)]
pub struct MongodbUrl {
    text: String,
    database: String,
}

impl MongodbUrl {
    /// Parses a connection string that names a database.
    ///
    /// # Errors
    /// A sentence that says what is wrong. It quotes no part of the text that could be secret.
    pub fn parse(text: &str) -> Result<Self, String> {
        if !text.starts_with("mongodb://") && !text.starts_with("mongodb+srv://") {
            return Err("it must begin with mongodb:// or mongodb+srv://".to_owned());
        }
        let parsed = ConnectionString::parse(text).map_err(|error| {
            let why = error.kind.to_string();
            let quotes_secret = user_info(text).is_some_and(|user| user.split(':').any(|part| why.contains(part)));
            if quotes_secret { format!("it is not a valid URL; {ENCODE}") } else { format!("{why}; {ENCODE}") }
        })?;
        if let Some(name) = unverified_tls(text) {
            return Err(format!(
                "{name} would accept any server; set OFFRAMP_TLS_CA to a file of trusted authorities instead"
            ));
        }
        let database = parsed
            .default_database
            .filter(|name| !name.is_empty())
            .ok_or("it names no database; add its name after the host, such as mongodb://localhost:27017/offramp")?;
        Ok(Self { text: text.to_owned(), database })
    }

    /// The connection string with its secrets, only for the driver.
    #[must_use]
    pub fn connection_string(&self) -> &str {
        &self.text
    }

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

/// The parameter that disables the verification of the server's certificate, if the URL has one.
fn unverified_tls(text: &str) -> Option<&'static str> {
    let (_, parameters) = text.split_once('?')?;
    let is_on = |wanted: &&str| {
        // The driver ignores the case of names.
        let mut settings = parameters.split('&').filter_map(|parameter| parameter.split_once('='));
        settings.any(|(name, value)| name.eq_ignore_ascii_case(wanted) && !value.eq_ignore_ascii_case("false"))
    };
    UNCHECKED_TLS.into_iter().find(is_on)
}

/// What may be a user name and password: everything between the scheme and the last `@`.
fn user_info(text: &str) -> Option<&str> {
    let rest = text.split_once("://").map_or(text, |(_, rest)| rest);
    rest.rsplit_once('@').map(|(user, _)| user).filter(|user| !user.is_empty())
}
