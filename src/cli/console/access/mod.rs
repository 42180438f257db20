//! Who may see and change something.
//!
//! Browsers also send requests that other pages cause. So a request is answered only if its `Host` is this machine, an IP address or a
//! configured name, which prevents DNS rebinding; and one that changes something only if it comes from a page of the console, which
//! prevents cross-site request forgery.

mod sessions;

use std::net::IpAddr;

use axum::http::uri::Authority;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, header};
use offramp::config::{AccessToken, ConsoleSettings};

use sessions::Sessions;

/// The longest name of a visitor, in characters.
pub const NAME_CHARS_MAX: usize = 100;

/// Who sends a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Visitor {
    pub name: String,
    /// Whether there is a session to log out of.
    pub has_session: bool,
}

/// Who may see and change something.
pub struct Access {
    mode: Mode,
    /// Names under which browsers may open the console, besides this machine's.
    hosts: Vec<String>,
}

enum Mode {
    /// Whoever can reach it: programs on this machine.
    Open,
    /// Whoever logs in with the token.
    Token(AccessToken, Sessions),
    /// Whoever a reverse proxy names in this header.
    Identity(HeaderName),
}

impl Access {
    /// # Errors
    /// A sentence, when the settings would let strangers in.
    pub fn new(settings: &ConsoleSettings) -> Result<Self, String> {
        let mode = match (&settings.console_token, &settings.console_identity_header) {
            (Some(_), Some(_)) => {
                return Err(
                    "OFFRAMP_CONSOLE_TOKEN and OFFRAMP_CONSOLE_IDENTITY_HEADER are both set; choose one".to_owned()
                );
            }
            (Some(token), None) => Mode::Token(token.clone(), Sessions::default()),
            (None, Some(header)) => Mode::Identity(header.clone()),
            (None, None) if settings.console_addr.ip().is_loopback() => Mode::Open,
            (None, None) => {
                return Err(format!(
                    "OFFRAMP_CONSOLE_ADDR is {}, which others can reach: set OFFRAMP_CONSOLE_TOKEN or \
                     OFFRAMP_CONSOLE_IDENTITY_HEADER, or listen on 127.0.0.1",
                    settings.console_addr
                ));
            }
        };
        Ok(Self { mode, hosts: settings.console_hosts.clone() })
    }

    /// Whether visitors log in here.
    pub fn has_login(&self) -> bool {
        matches!(self.mode, Mode::Token(..))
    }

    /// Begins a session if the token is right. Returns the value of `Set-Cookie`.
    pub fn log_in(&self, name: &str, typed: &str, is_https: bool) -> Option<String> {
        let Mode::Token(token, sessions) = &self.mode else { return None };
        token.is(typed).then(|| sessions.begin(name.to_owned(), is_https))
    }

    /// Ends the session of these cookies. Returns the value of `Set-Cookie`.
    pub fn log_out(&self, headers: &HeaderMap) -> Option<String> {
        let Mode::Token(_, sessions) = &self.mode else { return None };
        Some(sessions.end(headers))
    }

    /// The visitor, if they may come in.
    pub fn visitor(&self, headers: &HeaderMap) -> Option<Visitor> {
        match &self.mode {
            Mode::Open => Some(Visitor { name: "somebody on this machine".to_owned(), has_session: false }),
            Mode::Token(_, sessions) => sessions.find(headers).map(|name| Visitor { name, has_session: true }),
            Mode::Identity(header) => {
                let mut values = headers.get_all(header).iter();
                let name = String::from_utf8_lossy(values.next()?.as_bytes()).trim().to_owned();
                // With two of them, nobody knows which is the proxy's.
                let is_name = !name.is_empty()
                    && name.chars().count() <= NAME_CHARS_MAX
                    && !name.chars().any(char::is_control)
                    && values.next().is_none();
                is_name.then_some(Visitor { name, has_session: false })
            }
        }
    }

    /// Why a request must not be answered, whoever sends it.
    pub fn rejection(&self, method: &Method, headers: &HeaderMap) -> Option<&'static str> {
        let value = |name: HeaderName| headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok());
        let host = value(header::HOST).unwrap_or_default();
        if !self.is_own_host(host) {
            return Some("this host name is not among OFFRAMP_CONSOLE_HOSTS; localhost and IP addresses work, too");
        }
        let site = value(HeaderName::from_static("sec-fetch-site"));
        if matches!(*method, Method::GET | Method::HEAD) {
            // Links lead here, but no other page learns whether something is found, or how long that takes.
            let is_link = value(HeaderName::from_static("sec-fetch-mode")).is_none_or(|mode| mode == "navigate");
            let is_foreign = site == Some("cross-site") && !is_link;
            return is_foreign.then_some("only links lead from other pages to the console");
        }
        let is_own_page = match site {
            Some(site) => site == "same-origin",
            // Browsers before 2023, and over plain HTTP. A reverse proxy may have ended HTTPS, so the scheme is not compared.
            None => value(header::ORIGIN)
                .and_then(|origin| origin.split_once("://"))
                .is_some_and(|(_, origin)| !host.is_empty() && origin == host),
        };
        (!is_own_page).then_some("only a page of the console can change something")
    }

    fn is_own_host(&self, host: &str) -> bool {
        let Ok(authority) = host.parse::<Authority>() else { return false };
        let name = authority.host().trim_start_matches('[').trim_end_matches(']').to_ascii_lowercase();
        name == "localhost" || name.parse::<IpAddr>().is_ok() || self.hosts.contains(&name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn access(mode: Mode) -> Access {
        Access { mode, hosts: vec!["console.example".to_owned()] }
    }

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (HeaderName::from_static(name), value.parse().unwrap())).collect()
    }

    #[test]
    fn requests_under_foreign_names_are_rejected() {
        let is_answered =
            |host: &str| access(Mode::Open).rejection(&Method::GET, &headers(&[("host", host)])).is_none();
        for host in
            ["localhost:9466", "127.0.0.1", "[::1]:9466", "10.0.0.7:80", "console.example", "CONSOLE.example:443"]
        {
            assert!(is_answered(host), "{host}");
        }
        for host in ["evil.example", "console.example.evil.example", "localhost.evil.example", "", "a b"] {
            assert!(!is_answered(host), "{host}");
        }
        assert!(access(Mode::Open).rejection(&Method::GET, &HeaderMap::new()).is_some(), "no host at all");
    }

    #[test]
    fn changes_come_from_the_consoles_own_pages() {
        #[track_caller]
        fn check(pairs: &[(&'static str, &str)], is_answered: bool) {
            let mut all = headers(pairs);
            all.insert(header::HOST, HeaderValue::from_static("localhost:9466"));
            assert_eq!(access(Mode::Open).rejection(&Method::POST, &all).is_none(), is_answered, "{pairs:?}");
        }
        check(&[("sec-fetch-site", "same-origin")], true);
        check(&[("origin", "http://localhost:9466")], true);
        check(&[("origin", "https://localhost:9466")], true);
        check(&[], false);
        check(&[("origin", "null")], false);
        check(&[("origin", "http://evil.example")], false);
        check(&[("origin", "http://localhost:9467")], false);
        for site in ["cross-site", "same-site", "none"] {
            check(&[("sec-fetch-site", site), ("origin", "http://localhost:9466")], false);
        }
    }

    #[test]
    fn a_proxy_names_exactly_one_visitor() {
        let access = access(Mode::Identity(HeaderName::from_static("x-user")));
        assert_eq!(
            access.visitor(&headers(&[("x-user", " ann ")])),
            Some(Visitor { name: "ann".to_owned(), has_session: false })
        );
        for pairs in [&[][..], &[("x-user", "")], &[("x-user", "ann"), ("x-user", "eve")], &[("cookie", "offramp=1")]] {
            let mut all = HeaderMap::new();
            for (name, value) in pairs {
                all.append(HeaderName::from_static(name), value.parse().unwrap());
            }
            assert_eq!(access.visitor(&all), None, "{pairs:?}");
        }
        assert_eq!(access.visitor(&headers(&[("x-user", &"x".repeat(101))])), None);
    }
}
