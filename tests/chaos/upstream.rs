//! Publishes the scenarios of the plan, every command with a confirm, some of them twice.
//!
//! A command without a confirm is in doubt: the broker may have it or not. It is published again, as every careful publisher does,
//! unless one of its effects arrives soon.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::{BasicProperties, Channel, Confirmation, Connection, ConnectionProperties};
use serde_json::json;
use tokio::sync::{Mutex, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use crate::fleet::queue_of;
use crate::history::History;
use crate::observer::Observer;
use crate::plan::{Plan, Scenario};
use offramp_testkit::test_bed::LANES;

/// How long to wait for a confirm.
const CONFIRM_PATIENCE: Duration = Duration::from_secs(15);
/// How long a command in doubt may take to show an effect before it is published again.
const DOUBT_PATIENCE: Duration = Duration::from_secs(5);
/// The delay between attempts to connect.
const RECONNECT_EVERY: Duration = Duration::from_millis(200);

/// Counts of published commands.
#[derive(Default)]
pub struct Tally {
    /// Confirmed commands.
    pub confirmed: AtomicUsize,
    /// Commands that were deliberately published, and confirmed, twice.
    pub twice: AtomicUsize,
    /// Commands without a confirm.
    pub in_doubt: AtomicUsize,
    /// Commands in doubt that were processed before they were published again.
    pub recovered: AtomicUsize,
}

/// Publishes the whole plan.
pub struct Upstream {
    plan: Arc<Plan>,
    history: Arc<History>,
    observer: Observer,
    url: String,
    exchange: String,
    link: Mutex<Option<Arc<Link>>>,
    served: std::sync::Mutex<Served>,
    faults_are_over: watch::Sender<bool>,
    skipped: std::sync::Mutex<HashSet<usize>>,
    pub tally: Tally,
}

/// The first confirm of each lane among the commands published since a moment.
struct Served {
    since: Instant,
    confirmed: HashMap<String, std::time::Instant>,
}

struct Link {
    channel: Channel,
    _connection: Connection,
}

/// The result of publishing a message.
#[derive(PartialEq)]
enum Published {
    Confirmed,
    InDoubt,
}

impl Upstream {
    /// Publishes to this exchange of the broker at `url`.
    pub fn new(plan: Arc<Plan>, history: Arc<History>, observer: Observer, url: String, exchange: String) -> Self {
        let served = std::sync::Mutex::new(Served { since: Instant::now(), confirmed: HashMap::new() });
        Self {
            plan,
            history,
            observer,
            url,
            exchange,
            link: Mutex::default(),
            served,
            faults_are_over: watch::Sender::new(false),
            skipped: std::sync::Mutex::default(),
            tally: Tally::default(),
        }
    }

    /// Publishes every scenario at its time, and returns when the broker has confirmed everything.
    pub async fn run(self: Arc<Self>) {
        let begin = Instant::now();
        let mut scenarios = JoinSet::new();
        for scenario in 0..self.plan.scenarios.len() {
            let Scenario { begins, is_probe, rounds } = &self.plan.scenarios[scenario];
            let mut faults_are_over = self.faults_are_over.subscribe();
            let is_needless = tokio::select! {
                () = sleep_until(begin + *begins) => false,
                _ = faults_are_over.wait_for(|over| *over), if *is_probe => true,
            };
            if is_needless {
                self.skipped.lock().unwrap().extend(rounds.iter().flatten());
                continue;
            }
            scenarios.spawn(Arc::clone(&self).publish_scenario(scenario));
        }
        while let Some(scenario) = scenarios.join_next().await {
            scenario.unwrap();
        }
    }

    async fn publish_scenario(self: Arc<Self>, scenario: usize) {
        let mut second_copies = JoinSet::new();
        for round in &self.plan.scenarios[scenario].rounds {
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

    /// Publishes no further probes.
    pub fn end_probes(&self) {
        self.faults_are_over.send_replace(true);
    }

    /// The probes that were not published.
    pub fn skipped(&self) -> HashSet<usize> {
        self.skipped.lock().unwrap().clone()
    }

    /// The number of effects of everything that is published.
    pub fn effects(&self) -> usize {
        let skipped = self.skipped.lock().unwrap();
        let missing: usize = skipped.iter().map(|command| self.plan.commands[*command].effects.len()).sum();
        self.plan.effects.len() - missing
    }

    /// The names of the work queues.
    pub fn work_queues(&self) -> [String; LANES.len()] {
        LANES.map(|lane| format!("{}.{lane}", self.exchange))
    }

    /// Forgets which lanes have confirmed commands.
    pub fn forget_served(&self) {
        *self.served.lock().unwrap() = Served { since: Instant::now(), confirmed: HashMap::new() };
    }

    /// When RabbitMQ confirmed a command of this lane that was published since [`Self::forget_served`].
    pub fn served(&self, lane: &str) -> Option<std::time::Instant> {
        self.served.lock().unwrap().confirmed.get(lane).copied()
    }

    /// The lanes of which RabbitMQ has not confirmed such a command.
    pub fn unserved(&self) -> Vec<&'static str> {
        LANES.into_iter().filter(|lane| self.served(lane).is_none()).collect()
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

    /// Publishes the same command again some time later, like a network or a nervous user.
    async fn second_copy(&self, command: usize) {
        sleep(Duration::from_millis(fastrand::u64(..5_000))).await;
        while self.publish(command).await == Published::InDoubt {}
        self.tally.twice.fetch_add(1, Ordering::Relaxed);
    }

    async fn publish(&self, command: usize) -> Published {
        let link = self.link().await;
        let begin = Instant::now();
        let planned = &self.plan.commands[command];
        let record = |kind| self.history.add("upstream", kind, "publish", json!({ "command": planned.id }));
        record("invoke");
        let publishing = async {
            let options = BasicPublishOptions { mandatory: true, ..Default::default() };
            let properties = BasicProperties::default().with_delivery_mode(2);
            let (exchange, key) = (self.exchange.as_str().into(), planned.routing_key.as_str().into());
            link.channel.basic_publish(exchange, key, options, &planned.body, properties).await?.await
        };
        let Ok(Ok(Confirmation::Ack(None))) = timeout(CONFIRM_PATIENCE, publishing).await else {
            record("info");
            self.discard(&link).await;
            return Published::InDoubt;
        };
        record("ok");
        let mut served = self.served.lock().unwrap();
        if begin >= served.since {
            served.confirmed.entry(queue_of(&planned.routing_key)).or_insert_with(std::time::Instant::now);
        }
        Published::Confirmed
    }

    /// Has the next message published over another connection. The node behind this one may have lost its cluster.
    async fn discard(&self, doubtful: &Arc<Link>) {
        self.link.lock().await.take_if(|link| Arc::ptr_eq(link, doubtful));
    }

    /// A connected channel. Reconnects until it succeeds.
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
