//! The systems that publish: each story in its turn, every command confirmed, some of them twice.
//!
//! A command whose confirm was not seen is in doubt: it may be with the broker or not. It is published again, as every
//! careful system does, unless it turns out soon that it was processed.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::{BasicProperties, Channel, Confirmation, Connection, ConnectionProperties};
use tokio::sync::Mutex;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use crate::observer::Observer;
use crate::plan::Plan;

/// How long to wait for a confirm.
const CONFIRM_PATIENCE: Duration = Duration::from_secs(15);
/// How long a command in doubt may take to show an effect before it is published again.
const DOUBT_PATIENCE: Duration = Duration::from_secs(5);
/// How long to wait before a broker that is away is tried again.
const RECONNECT_EVERY: Duration = Duration::from_millis(200);

/// What was published.
#[derive(Default)]
pub struct Tally {
    /// Commands that the broker has confirmed.
    pub confirmed: AtomicUsize,
    /// Those of them that were published, and confirmed, twice on purpose.
    pub twice: AtomicUsize,
    /// Commands whose confirm was not seen.
    pub in_doubt: AtomicUsize,
    /// Those of them that were processed all the same, before they were published again.
    pub recovered: AtomicUsize,
}

/// Publishes the whole plan.
pub struct Upstream {
    plan: Arc<Plan>,
    observer: Observer,
    url: String,
    exchange: String,
    link: Mutex<Option<Arc<Link>>>,
    pub tally: Tally,
}

struct Link {
    channel: Channel,
    _connection: Connection,
}

/// What became of a message.
#[derive(PartialEq)]
enum Published {
    Confirmed,
    InDoubt,
}

impl Upstream {
    /// Publishes to the exchange, at the broker at `url`.
    pub fn new(plan: Arc<Plan>, observer: Observer, url: String, exchange: String) -> Self {
        Self { plan, observer, url, exchange, link: Mutex::default(), tally: Tally::default() }
    }

    /// Publishes every story at its time, and returns when the broker has confirmed everything.
    pub async fn run(self: Arc<Self>) {
        let begin = Instant::now();
        let mut stories = JoinSet::new();
        for story in 0..self.plan.stories.len() {
            sleep_until(begin + self.plan.stories[story].begins).await;
            stories.spawn(Arc::clone(&self).tell(story));
        }
        while let Some(story) = stories.join_next().await {
            story.unwrap();
        }
    }

    async fn tell(self: Arc<Self>, story: usize) {
        let mut second_copies = JoinSet::new();
        for round in &self.plan.stories[story].rounds {
            for &command in round {
                self.command(command).await;
                if self.plan.commands[command].twice {
                    let again = Arc::clone(&self);
                    second_copies.spawn(async move { again.second_copy(command).await });
                }
            }
            for &command in round {
                self.observer.see(command).await;
            }
        }
        while let Some(copy) = second_copies.join_next().await {
            copy.unwrap();
        }
    }

    async fn command(&self, command: usize) {
        if self.publish(command).await == Published::InDoubt {
            self.tally.in_doubt.fetch_add(1, Ordering::Relaxed);
            let has_effects = !self.plan.commands[command].effects.is_empty();
            if has_effects && timeout(DOUBT_PATIENCE, self.observer.see(command)).await.is_ok() {
                self.tally.recovered.fetch_add(1, Ordering::Relaxed);
                return;
            }
            while self.publish(command).await == Published::InDoubt {}
        }
        self.tally.confirmed.fetch_add(1, Ordering::Relaxed);
    }

    /// The same command once more, some time later: as a network, or a nervous user, repeats things.
    async fn second_copy(&self, command: usize) {
        sleep(Duration::from_millis(fastrand::u64(..5_000))).await;
        while self.publish(command).await == Published::InDoubt {}
        self.tally.twice.fetch_add(1, Ordering::Relaxed);
    }

    async fn publish(&self, command: usize) -> Published {
        let link = self.link().await;
        let planned = &self.plan.commands[command];
        let publishing = async {
            let options = BasicPublishOptions { mandatory: true, ..Default::default() };
            let properties = BasicProperties::default().with_delivery_mode(2);
            let (exchange, key) = (self.exchange.as_str().into(), planned.routing_key.as_str().into());
            link.channel.basic_publish(exchange, key, options, &planned.body, properties).await?.await
        };
        match timeout(CONFIRM_PATIENCE, publishing).await {
            Ok(Ok(Confirmation::Ack(None))) => Published::Confirmed,
            _ => Published::InDoubt,
        }
    }

    /// A channel that works as far as anybody knows, however long that takes.
    async fn link(&self) -> Arc<Link> {
        let mut link = self.link.lock().await;
        loop {
            if let Some(link) = link.as_ref().filter(|link| link.channel.status().connected()) {
                return Arc::clone(link);
            }
            match timeout(CONFIRM_PATIENCE, self.connect()).await {
                Ok(Ok(new)) => *link = Some(Arc::new(new)),
                _ => sleep(RECONNECT_EVERY).await,
            }
        }
    }

    async fn connect(&self) -> lapin::Result<Link> {
        let connection = Connection::connect(&self.url, ConnectionProperties::default()).await?;
        let channel = connection.create_channel().await?;
        channel.confirm_select(ConfirmSelectOptions::default()).await?;
        Ok(Link { channel, _connection: connection })
    }
}
