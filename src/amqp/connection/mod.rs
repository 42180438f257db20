//! One connection to the broker: a list of addresses, a deadline for every step, TLS for `amqps://`.
//!
//! Nothing here reconnects: the owner of a [`Link`] does. Dropping a link shuts its socket down, because `lapin`'s own
//! close waits for the peer without a deadline (a stalled network, a blocked connection), and keeps a thread and its
//! unsent frames until then.

mod opening;
mod request;

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::future::join_all;
use lapin::Channel;
use lapin::types::ShortString;
use tokio::time::{sleep, timeout};

use super::frame_filter::InFlight;
use super::url::BrokerUrls;
use crate::metrics;
use crate::metrics::labels::ConnectionPurpose;
use crate::tls::Tls;

use opening::{Failure, Opened};
pub use request::BrokerError;
pub(super) use request::{REPLY_SECONDS_MAX, ask, code, explain};

/// The deadline for an orderly close, in seconds. The socket is shut down afterwards.
const CLOSE_SECONDS_MAX: u64 = 2;
/// How often to check that a connection is still open, and how long to wait for errors after its end, in milliseconds.
const POLL_MILLISECONDS: u64 = 100;
/// The shortest and the longest backoff between attempts to connect. See [`crate::backoff`].
pub(super) const RECONNECT_DELAYS: (Duration, Duration) = (Duration::from_millis(100), Duration::from_millis(1_500));

/// The settings for connections to the broker. Cheap to clone. Opens nothing by itself.
#[derive(Clone)]
pub struct Broker(Arc<Settings>);

struct Settings {
    urls: BrokerUrls,
    name: String,
    tls: Tls,
    /// The index of the address to try first: the one after the last that failed. An address fails, too, when a node accepts connections
    /// but does not serve them, such as one that is cut off from its cluster.
    next: AtomicUsize,
}

impl Broker {
    /// The broker at `urls`. The broker's list of connections shows `name`, followed by the purpose of each connection.
    /// `amqps://` trusts the system's certificate authorities; see [`Self::with_tls`].
    #[must_use]
    pub fn new(urls: BrokerUrls, name: impl Into<String>) -> Self {
        Self::with_tls(urls, name, Tls::default())
    }

    /// As [`Self::new`], with other TLS settings for `amqps://`.
    #[must_use]
    pub fn with_tls(urls: BrokerUrls, name: impl Into<String>, tls: Tls) -> Self {
        Self(Arc::new(Settings { urls, name: name.into(), tls, next: AtomicUsize::new(0) }))
    }

    /// The addresses. They never display a password.
    #[must_use]
    pub fn urls(&self) -> &BrokerUrls {
        &self.0.urls
    }

    /// Connects. Tries each address once, starting with the one after the last that failed, so that concurrent calls lead to
    /// the same node as long as it serves and refuses nobody. `purpose` becomes part of the connection's name at the broker.
    ///
    /// # Errors
    /// [`BrokerError::Denied`] when an address rejects the user or the virtual host, [`BrokerError::Silent`] when one does not
    /// answer, otherwise [`BrokerError::Unreachable`].
    pub async fn connect(&self, purpose: &str) -> Result<Link, BrokerError> {
        let urls = self.0.urls.as_slice();
        let (mut denied, mut silent) = (false, false);
        let mut problems = Vec::new();
        let first = self.0.next.load(Ordering::Relaxed) % urls.len();
        for index in (first..urls.len()).chain(0..first) {
            let mut attempt = Attempt { address: Address { settings: self.0.clone(), index }, succeeded: false };
            match Box::pin(self.connect_to(index, purpose)).await {
                Ok(link) => {
                    attempt.succeeded = true;
                    return Ok(link);
                }
                Err(failure) => {
                    denied |= failure.denied;
                    silent |= failure.silent;
                    problems.push(format!("{}: {}", urls[index], failure.why));
                }
            }
        }
        let why = problems.join("; ");
        Err(match (denied, silent) {
            (true, _) => BrokerError::Denied(why),
            (_, true) => BrokerError::Silent(why),
            _ => BrokerError::Unreachable(why),
        })
    }

    async fn connect_to(&self, index: usize, purpose: &str) -> Result<Link, Failure> {
        let Settings { urls, name, tls, .. } = &*self.0;
        let opened = opening::open(&urls.as_slice()[index], tls, format!("{name} {purpose}")).await?;
        Ok(Link { opened, address: Address { settings: self.0.clone(), index } })
    }
}

impl fmt::Debug for Broker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Broker").field("urls", &self.0.urls).field("name", &self.0.name).finish_non_exhaustive()
    }
}

/// An open connection. Dropping it shuts the socket down: the broker requeues every unacknowledged delivery.
pub struct Link {
    opened: Opened,
    address: Address,
}

/// Which of the broker's addresses a connection leads to.
struct Address {
    settings: Arc<Settings>,
    index: usize,
}

impl Address {
    /// Makes the next attempt to connect begin with another address, if there is one and this would be the first.
    fn failed(&self) {
        let count = self.settings.urls.as_slice().len();
        let after = |next: usize| (next % count == self.index).then_some(self.index + 1);
        // An error means that another address comes first already.
        let _ = self.settings.next.fetch_update(Ordering::Relaxed, Ordering::Relaxed, after);
    }
}

/// An attempt to connect. Unless it succeeds, its address has failed, also if its caller no longer waits.
struct Attempt {
    address: Address,
    succeeded: bool,
}

impl Drop for Attempt {
    fn drop(&mut self) {
        if !self.succeeded {
            self.address.failed();
        }
    }
}

impl Link {
    /// Connections to the broker's other addresses that answer.
    pub(super) async fn to_other_addresses(&self, purpose: &str) -> Vec<Self> {
        let Address { settings, index } = &self.address;
        let broker = Broker(settings.clone());
        let others = (0..settings.urls.as_slice().len()).filter(|other| other != index);
        join_all(others.map(|other| broker.connect_to(other, purpose)))
            .await
            .into_iter()
            .filter_map(Result::ok)
            .collect()
    }

    /// Opens a channel.
    ///
    /// # Errors
    /// [`BrokerError::Failed`] or [`BrokerError::Deadline`]. Discard the connection after either.
    pub(super) async fn channel(&self) -> Result<Channel, BrokerError> {
        self.ask("open a channel", self.opened.connection.create_channel()).await
    }

    /// Sends a request over this connection. Fails once the connection is lost: `lapin` may never complete a request that
    /// was sent at that moment.
    pub(super) async fn ask<T>(
        &self,
        doing: impl Into<Cow<'static, str>>,
        request: impl Future<Output = lapin::Result<T>>,
    ) -> Result<T, BrokerError> {
        let doing = doing.into();
        let reply = tokio::select! {
            biased;
            reply = ask(doing.clone(), request) => reply,
            () = self.lost() => {
                Err(BrokerError::Failed { doing, why: "the connection was lost".to_owned(), code: None })
            }
        };
        if matches!(reply, Err(BrokerError::Deadline { .. })) {
            self.address.failed();
        }
        reply
    }

    /// Returns shortly after the connection is lost, once `lapin` has delivered its last errors.
    pub(super) async fn lost(&self) {
        let interval = Duration::from_millis(POLL_MILLISECONDS);
        while self.is_live() {
            sleep(interval).await;
        }
        sleep(interval).await;
    }

    /// Whether the connection is open, as far as is known before the next heartbeat.
    #[must_use]
    pub fn is_live(&self) -> bool {
        self.opened.connection.status().connected()
    }

    /// The address it leads to, without a password.
    pub(super) fn url(&self) -> String {
        self.address.settings.urls.as_slice()[self.address.index].to_string()
    }

    /// The index of that address.
    pub(super) fn address_index(&self) -> usize {
        self.address.index
    }

    /// How many addresses the broker has.
    pub(super) fn address_count(&self) -> usize {
        self.address.settings.urls.as_slice().len()
    }

    /// The version that the broker reports; empty if it reports none.
    pub(super) fn broker_version(&self) -> &str {
        self.opened.version.get().map_or("", String::as_str)
    }

    /// Whether the cluster's metadata can be read and changed wherever a majority of its nodes is: from RabbitMQ 4.2 on, which keeps it in
    /// Khepri. Earlier ones ask the node that led a queue, even if that is cut off, until it is given up.
    pub(super) fn has_majority_metadata(&self) -> bool {
        keeps_metadata_in_khepri(self.broker_version())
    }

    pub(super) fn in_flight(&self) -> &InFlight {
        &self.opened.in_flight
    }

    /// Whether the broker blocks publishers, because it is low on memory or disk.
    pub(super) fn is_blocked(&self) -> bool {
        self.opened.connection.status().blocked()
    }

    /// Ends the connection at once, also for other holders of this link. For a connection in doubt: the next one tries another address
    /// first.
    pub(super) fn cut(&self) {
        self.address.failed();
        self.opened.socket.shut_down();
    }

    /// Closes the connection in order if the broker replies within 2 seconds, otherwise at the socket.
    pub async fn close(&self) {
        let closing = self.opened.connection.close(200, ShortString::from("OK"));
        // Whether the broker replied makes no difference.
        let _ = timeout(Duration::from_secs(CLOSE_SECONDS_MAX), closing).await;
        self.opened.socket.shut_down();
    }
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link").field("live", &self.is_live()).finish_non_exhaustive()
    }
}

fn keeps_metadata_in_khepri(version: &str) -> bool {
    let mut numbers = version.split('.').map_while(|number| number.parse::<u32>().ok());
    (numbers.next(), numbers.next()) >= (Some(4), Some(2))
}

/// Counts a connection. More than one for a purpose means that one was lost.
pub(super) fn count_connection(purpose: ConnectionPurpose) {
    metrics::current().broker_connections.of((purpose,)).increment(1);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metadata_is_kept_by_a_majority_from_4_2_on() {
        for (version, expected) in [
            ("", false),
            ("3.10.8", false),
            ("4.1.9", false),
            ("4.2.0", true),
            ("4.3.6", true),
            ("5.0.0-rc.1", true),
            ("?", false),
        ] {
            assert_eq!(keeps_metadata_in_khepri(version), expected, "{version}");
        }
    }
}
