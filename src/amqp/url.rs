//! The broker's addresses: one or more `amqp://` or `amqps://` URLs, parsed once and never displayed with their password.

use std::fmt;
use std::str::FromStr;

use lapin::uri::{AMQPAuthority, AMQPQueryString, AMQPScheme, AMQPUri, AMQPUserInfo, SASLMechanism};
use url::Url;

/// The largest frame, in bytes, unless the URL sets one: RabbitMQ's default. lapin keeps two buffers of 32 frames for each
/// connection. If it knows the size before it connects, it allocates them untouched, and they become resident only as they
/// are used. If it learns the size from the broker, it fills them with zeros.
const FRAME_BYTES_MAX: u32 = 128 * 1024;

/// The addresses of the broker: one or more URLs, separated by commas.
///
/// `amqp[s]://USER:PASSWORD@HOST:PORT/VHOST?heartbeat=SECONDS`. All parts but the host have defaults: `guest:guest`,
/// port 5672 (5671 with `amqps`), virtual host `/`. User, password and virtual host are percent-encoded, so the virtual
/// host `/` is written `%2f`; a single final slash means `/` too.
#[derive(Clone, PartialEq, Eq)]
pub struct BrokerUrls(Vec<BrokerUrl>);

impl BrokerUrls {
    /// The URLs, in the order given; never empty.
    pub(super) fn as_slice(&self) -> &[BrokerUrl] {
        &self.0
    }
}

impl FromStr for BrokerUrls {
    type Err = InvalidBrokerUrl;

    /// # Errors
    /// [`InvalidBrokerUrl`] gives the position of the invalid URL and the problem. It never repeats the text.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let urls: Result<Vec<_>, _> = text
            .split(',')
            .enumerate()
            .map(|(index, url)| {
                BrokerUrl::parse(url.trim()).map_err(|problem| InvalidBrokerUrl { position: index + 1, problem })
            })
            .collect();
        urls.map(Self)
    }
}

impl fmt::Display for BrokerUrls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, url) in self.0.iter().enumerate() {
            write!(f, "{}{url}", if index == 0 { "" } else { "," })?;
        }
        Ok(())
    }
}

impl fmt::Debug for BrokerUrls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BrokerUrls({self})")
    }
}

/// Why a broker URL is invalid. Does not repeat the URL, which may contain a password.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("broker URL {position}: {problem}")]
pub struct InvalidBrokerUrl {
    /// The position in the list, counted from 1.
    pub position: usize,
    pub problem: String,
}

/// One address of the broker.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct BrokerUrl(AMQPUri);

/// The longest virtual host, in bytes: AMQP's limit for short strings. `lapin` panics on a longer one.
const VHOST_BYTES_MAX: usize = 255;

impl BrokerUrl {
    // lapin's own parser reads an IPv6 host as "localhost", and repeats the URL in its errors.
    fn parse(text: &str) -> Result<Self, String> {
        if text.is_empty() {
            return Err("is empty; write for example amqp://user:password@host:5672/%2f".to_owned());
        }
        let url = Url::parse(text).map_err(|error| {
            format!("{error}; special characters in user and password must be percent-encoded (a comma is %2C)")
        })?;
        let scheme = match url.scheme() {
            "amqp" => AMQPScheme::AMQP,
            "amqps" => AMQPScheme::AMQPS,
            _ => return Err("must begin with amqp:// or amqps://".to_owned()),
        };
        let host = match url.host() {
            Some(url::Host::Domain(name)) if !name.is_empty() => decode(name, "host")?,
            Some(url::Host::Ipv4(address)) => address.to_string(),
            Some(url::Host::Ipv6(address)) => address.to_string(),
            Some(url::Host::Domain(_)) | None => return Err("has no host".to_owned()),
        };
        if url.fragment().is_some() {
            return Err("contains a #; in a password, write %23".to_owned());
        }
        let username = match url.username() {
            "" => "guest".to_owned(),
            name => decode(name, "user")?,
        };
        let password = url.password().map_or(Ok("guest".to_owned()), |word| decode(word, "password"))?;
        let vhost = match url.path() {
            "" | "/" => "/".to_owned(),
            path => decode(path.strip_prefix('/').unwrap_or(path), "virtual host")?,
        };
        if vhost.len() > VHOST_BYTES_MAX {
            return Err(format!("has a virtual host longer than {VHOST_BYTES_MAX} bytes"));
        }
        Ok(Self(AMQPUri {
            authority: AMQPAuthority {
                userinfo: AMQPUserInfo { username, password },
                host,
                port: url.port().unwrap_or_else(|| scheme.default_port()),
            },
            scheme,
            vhost,
            query: query(&url)?,
        }))
    }

    pub(super) fn host(&self) -> &str {
        &self.0.authority.host
    }

    pub(super) fn port(&self) -> u16 {
        self.0.authority.port
    }

    pub(super) fn is_tls(&self) -> bool {
        self.0.scheme == AMQPScheme::AMQPS
    }

    /// The URL for lapin's handshake. `heartbeat_seconds` applies unless the URL sets a heartbeat.
    pub(super) fn for_handshake(&self, heartbeat_seconds: u16) -> AMQPUri {
        let mut uri = self.0.clone();
        uri.query.heartbeat.get_or_insert(heartbeat_seconds);
        uri.query.frame_max.get_or_insert(FRAME_BYTES_MAX);
        uri
    }
}

fn query(url: &Url) -> Result<AMQPQueryString, String> {
    let mut query = AMQPQueryString::default();
    for (name, value) in url.query_pairs() {
        let bad = |_| format!("its setting {name} is not a whole number, or is too large");
        match name.as_ref() {
            "heartbeat" => query.heartbeat = Some(value.parse().map_err(bad)?),
            "frame_max" => query.frame_max = Some(value.parse().map_err(bad)?),
            "channel_max" => query.channel_max = Some(value.parse().map_err(bad)?),
            "auth_mechanism" => {
                let mechanism = match value.to_ascii_lowercase().as_str() {
                    "plain" => SASLMechanism::Plain,
                    "external" => SASLMechanism::External,
                    _ => return Err("its setting auth_mechanism must be plain or external".to_owned()),
                };
                query.auth_mechanism = Some(mechanism);
            }
            _ => {
                return Err(format!(
                    "has an unknown setting {name}; known are heartbeat, frame_max, channel_max and auth_mechanism"
                ));
            }
        }
    }
    // 0 disables heartbeats. A connection that dies silently would then never be detected.
    if query.heartbeat == Some(0) {
        return Err("its setting heartbeat must be at least 1 second".to_owned());
    }
    Ok(query)
}

fn decode(text: &str, part: &str) -> Result<String, String> {
    percent_encoding::percent_decode_str(text)
        .decode_utf8()
        .map(std::borrow::Cow::into_owned)
        .map_err(|_| format!("its {part} is not UTF-8 once percent-decoded"))
}

impl fmt::Display for BrokerUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let AMQPUri { scheme, authority, vhost, .. } = &self.0;
        let host = &authority.host;
        let (open, close) = if host.contains(':') { ("[", "]") } else { ("", "") };
        let encode = |text| percent_encoding::utf8_percent_encode(text, percent_encoding::NON_ALPHANUMERIC);
        write!(
            f,
            "{scheme}://{}@{open}{host}{close}:{}/{}",
            encode(&authority.userinfo.username),
            authority.port,
            encode(vhost)
        )
    }
}

impl fmt::Debug for BrokerUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BrokerUrl({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, shown: &str) {
        assert_eq!(text.parse::<BrokerUrls>().unwrap().to_string(), shown);
    }

    #[track_caller]
    fn check_wrong(text: &str, sentence: &str) {
        let error = text.parse::<BrokerUrls>().unwrap_err().to_string();
        assert!(error.contains(sentence), "{error}");
        assert!(!error.contains("secret"), "{error}");
    }

    #[test]
    fn defaults_are_filled_in_and_passwords_are_hidden() {
        check("amqp://broker", "amqp://guest@broker:5672/%2F");
        check("amqps://u:secret@broker/", "amqps://u@broker:5671/%2F");
        check("amqp://u:secret@[::1]:5673/team%20a?heartbeat=5", "amqp://u@[::1]:5673/team%20a");
        check("amqp://a:secret@one, amqp://b:secret@two/x", "amqp://a@one:5672/%2F,amqp://b@two:5672/x");
        assert!(!format!("{:?}", "amqp://u:secret@h".parse::<BrokerUrls>().unwrap()).contains("secret"));
    }

    #[test]
    fn ipv6_hosts_are_kept() {
        let urls: BrokerUrls = "amqp://[2001:db8::7]".parse().unwrap();
        assert_eq!(urls.as_slice()[0].host(), "2001:db8::7");
    }

    #[test]
    fn errors_never_repeat_the_url() {
        check_wrong("", "is empty");
        check_wrong("localhost:5672", "must begin with amqp:// or amqps://");
        check_wrong("http://u:secret@h", "must begin with amqp:// or amqps://");
        check_wrong("amqp://u:secret@h:port", "invalid port number");
        check_wrong("amqp://u:secret@h,", "broker URL 2: is empty");
        check_wrong("amqp://u:secret#x@h", "percent-encoded");
        check_wrong("amqp://u:secret@h?heartbeats=3", "unknown setting heartbeats");
        check_wrong("amqp://u:secret@h?heartbeat=0", "at least 1 second");
        check_wrong("amqp://u:secret@h?heartbeat=soon", "not a whole number");
    }
}
