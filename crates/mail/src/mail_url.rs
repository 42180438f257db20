//! The URL that says where emails go: a mail server or a directory.

use std::borrow::Cow;
use std::fmt;
use std::io;
use std::path::PathBuf;

use url::Url;

/// Where emails go. Its `Debug` and `Display` omit the password.
#[derive(Clone, PartialEq, Eq)]
pub struct MailUrl(pub(crate) Target);

#[derive(Clone, PartialEq, Eq)]
pub(crate) enum Target {
    Smtp(SmtpEndpoint),
    /// A directory for `.eml` files.
    Files(PathBuf),
}

/// A mail server, and how to connect to it.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct SmtpEndpoint {
    pub(crate) host: String,
    pub(crate) port: u16,
    pub(crate) encryption: Encryption,
    pub(crate) login: Option<Login>,
}

/// Whether a connection is encrypted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Encryption {
    /// From the first byte (`smtps://`).
    Implicit,
    /// With STARTTLS; a server that does not offer it gets no email (`?tls=required`).
    Required,
    /// With STARTTLS where the server offers it. A password is never sent unencrypted.
    WhereOffered,
    /// Never (`?tls=none`).
    Never,
}

#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Login {
    user: String,
    /// `None` until [`MailUrl::with_token_file`].
    secret: Option<Secret>,
}

#[derive(Clone, PartialEq, Eq)]
pub(crate) enum Secret {
    Password(String),
    /// A file with an OAuth 2.0 access token. Another program replaces it before the token expires.
    TokenFile(PathBuf),
}

impl Login {
    pub(crate) fn complete(self) -> Result<(String, Secret), MailConfigError> {
        let missing = MailConfigError::Login(LoginProblem::SecretMissing);
        self.secret.map(|secret| (self.user, secret)).ok_or(missing)
    }
}

/// Why the settings for emails cannot be used. Never contains a password.
#[derive(Debug, thiserror::Error)]
pub enum MailConfigError {
    /// The URL is invalid.
    #[error(
        "not a mail URL ({0}): use smtp://[user[:password]@]host[:port][?tls=required|none], smtps://[user[:password]@]host[:port], or file:///directory"
    )]
    Url(&'static str),
    /// The login is incomplete or ambiguous.
    #[error("{0}")]
    Login(LoginProblem),
    /// The directory for emails cannot be created.
    #[error("{path}: {cause}")]
    Directory {
        /// The directory.
        path: PathBuf,
        /// The error of the operating system.
        cause: io::Error,
    },
}

/// Why a login is incomplete or ambiguous.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LoginProblem {
    /// There is a user, and neither a password nor a token.
    #[error("the user has neither a password nor a token")]
    SecretMissing,
    /// There is a token and no user.
    #[error("there is a token without a user")]
    UserMissing,
    /// There is a token, and a password as well.
    #[error("there is both a password and a token")]
    TwoSecrets,
}

impl MailUrl {
    /// Parses `smtp://[user[:password]@]host[:port]` (port 25, or 587 with a user), `smtps://…` (port 465) or
    /// `file:///directory`. A user without a password needs [`Self::with_token_file`].
    ///
    /// `smtp://` is encrypted with STARTTLS where the server offers it. `?tls=required` rejects a server that does not, and
    /// `?tls=none` never encrypts.
    ///
    /// # Errors
    /// When the URL is anything else. The error does not quote it, because it may contain a password.
    pub fn parse(text: &str) -> Result<Self, MailConfigError> {
        let url = Url::parse(text.trim()).map_err(|_| MailConfigError::Url("it is not a URL"))?;
        match url.scheme() {
            "file" => {
                let path =
                    url.to_file_path().map_err(|()| MailConfigError::Url("a file URL needs an absolute path"))?;
                return Ok(Self(Target::Files(path)));
            }
            "smtp" | "smtps" => {}
            _ => return Err(MailConfigError::Url("the scheme is not smtp, smtps or file")),
        }
        if !matches!(url.path(), "" | "/") || url.fragment().is_some() {
            return Err(MailConfigError::Url("something follows the host"));
        }
        let encryption = match (url.scheme(), url.query()) {
            ("smtps", None) => Encryption::Implicit,
            ("smtp", None) => Encryption::WhereOffered,
            ("smtp", Some("tls=required")) => Encryption::Required,
            ("smtp", Some("tls=none")) => Encryption::Never,
            _ => return Err(MailConfigError::Url("the only options are ?tls=required and ?tls=none, for smtp://")),
        };
        let host = url.host_str().filter(|host| !host.is_empty()).ok_or(MailConfigError::Url("the host is missing"))?;
        let login = match (url.username(), url.password()) {
            ("", None) => None,
            ("", Some(_)) => return Err(MailConfigError::Url("a password needs a user")),
            (user, None) => Some(Login { user: decoded(user)?, secret: None }),
            (user, Some(password)) => {
                Some(Login { user: decoded(user)?, secret: Some(Secret::Password(decoded(password)?)) })
            }
        };
        let port = url.port().unwrap_or(match (encryption, &login) {
            (Encryption::Implicit, _) => 465,
            (_, Some(_)) => 587,
            (_, None) => 25,
        });
        // Only in a URL is an IPv6 address in brackets.
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        Ok(Self(Target::Smtp(SmtpEndpoint { host, port, encryption, login })))
    }

    /// The same URL, with an OAuth 2.0 access token instead of a password. `file` is read for each connection.
    ///
    /// # Errors
    /// When the URL has no user, or a password.
    pub fn with_token_file(mut self, file: PathBuf) -> Result<Self, MailConfigError> {
        let Target::Smtp(SmtpEndpoint { login: Some(login), .. }) = &mut self.0 else {
            return Err(MailConfigError::Login(LoginProblem::UserMissing));
        };
        if login.secret.is_some() {
            return Err(MailConfigError::Login(LoginProblem::TwoSecrets));
        }
        login.secret = Some(Secret::TokenFile(file));
        Ok(self)
    }
}

fn decoded(text: &str) -> Result<String, MailConfigError> {
    percent_encoding::percent_decode_str(text)
        .decode_utf8()
        .map(Cow::into_owned)
        .map_err(|_| MailConfigError::Url("the user or the password is not UTF-8"))
}

impl fmt::Display for MailUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let SmtpEndpoint { host, port, encryption, login } = match &self.0 {
            Target::Files(path) => return write!(f, "file://{}", path.display()),
            Target::Smtp(endpoint) => endpoint,
        };
        let scheme = if *encryption == Encryption::Implicit { "smtps" } else { "smtp" };
        let login = if login.is_some() { "***@" } else { "" };
        let option = match encryption {
            Encryption::Required => "?tls=required",
            Encryption::Never => "?tls=none",
            Encryption::Implicit | Encryption::WhereOffered => "",
        };
        if host.contains(':') {
            write!(f, "{scheme}://{login}[{host}]:{port}{option}")
        } else {
            write!(f, "{scheme}://{login}{host}:{port}{option}")
        }
    }
}

impl fmt::Debug for MailUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MailUrl({self})")
    }
}
