//! Receives events and emails, and compares them with the plan as they arrive.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use lapin::options::{BasicAckOptions, BasicConsumeOptions, BasicQosOptions};
use lapin::types::FieldTable;
use lapin::{Connection, ConnectionProperties};
use offramp::clock;
use offramp::store::outbox::entry::Content;
use offramp::worker::composer::Composer;
use offramp_mail::{Origin, Sender, Templates};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use uuid::Uuid;

use crate::history::History;
use crate::plan::Plan;
use offramp_testkit::smtp_sink::ReceivedEmail;

/// How often to take arrived emails.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// How long events may be absent, or RabbitMQ silent, before they are received over another connection.
const QUIET_MAX: Duration = Duration::from_secs(5);

/// One arrival of an effect.
#[derive(Clone, Copy, Debug)]
pub struct Arrival {
    pub at: Instant,
    /// For an email: the number of the mail server, and whether the acceptance was sent to the worker.
    pub mail: Option<(usize, bool)>,
}

/// The effects that have arrived. Cheap to clone.
#[derive(Clone)]
pub struct Observer(Arc<Inner>);

struct Inner {
    plan: Arc<Plan>,
    history: Arc<History>,
    composer: Composer,
    /// For each command: whether one of its effects has arrived.
    seen: Vec<watch::Sender<bool>>,
    arrived: Mutex<Arrived>,
}

#[derive(Default)]
struct Arrived {
    effects: HashMap<Uuid, Vec<Arrival>>,
    /// Effects that are not in the plan, or differ from it.
    unexpected: Vec<String>,
    newest_mail: Option<Instant>,
}

impl Observer {
    pub fn new(plan: Arc<Plan>, history: Arc<History>, sender: &str) -> Self {
        let composer = Composer {
            templates: Templates::load(None).unwrap(),
            sender: Sender::parse(sender).unwrap(),
            signer: None,
        };
        let seen = plan.commands.iter().map(|_| watch::Sender::new(false)).collect();
        Self(Arc::new(Inner { plan, history, composer, seen, arrived: Mutex::default() }))
    }

    /// Waits until an effect of this command has arrived. Returns at once if it has none.
    pub async fn see(&self, command: usize) {
        if !self.0.plan.commands[command].effects.is_empty() {
            let mut seen = self.0.seen[command].subscribe();
            seen.wait_for(|seen| *seen).await.unwrap();
        }
    }

    /// The number of effects that have arrived at least once.
    pub fn effects(&self) -> usize {
        self.0.arrived.lock().unwrap().effects.len()
    }

    pub fn arrivals(&self, effect: Uuid) -> Vec<Arrival> {
        self.0.arrived.lock().unwrap().effects.get(&effect).cloned().unwrap_or_default()
    }

    pub fn unexpected(&self) -> Vec<String> {
        self.0.arrived.lock().unwrap().unexpected.clone()
    }

    pub fn newest_mail(&self) -> Option<Instant> {
        self.0.arrived.lock().unwrap().newest_mail
    }

    /// Receives events from this queue of RabbitMQ at `url` until aborted. Redeliveries after a lost ack of the observer are not counted.
    pub async fn receive_events(self, url: String, queue: String) {
        loop {
            if self.receive_until_quiet(&url, &queue).await.is_err() {
                sleep(Duration::from_millis(200)).await;
            }
        }
    }

    /// Ends when nothing comes for a while, or RabbitMQ does not answer.
    async fn receive_until_quiet(&self, url: &str, queue: &str) -> lapin::Result<()> {
        let connecting = Connection::connect(url, ConnectionProperties::default());
        let Ok(connection) = timeout(QUIET_MAX, connecting).await else { return Ok(()) };
        let connection = connection?;
        let consuming = async {
            let channel = connection.create_channel().await?;
            channel.basic_qos(500, BasicQosOptions::default()).await?;
            channel.basic_consume(queue.into(), "".into(), BasicConsumeOptions::default(), FieldTable::default()).await
        };
        if let Ok(consumer) = timeout(QUIET_MAX, consuming).await {
            let mut consumer = consumer?;
            while let Ok(Ok(true)) = timeout(QUIET_MAX, self.receive_one(&mut consumer)).await {}
        }
        drop(timeout(QUIET_MAX, connection.close(200, "OK".into())).await);
        Ok(())
    }

    /// Whether the consumer and its channel go on. May never end if the connection is lost while an event is acknowledged.
    async fn receive_one(&self, consumer: &mut lapin::Consumer) -> lapin::Result<bool> {
        let Some(delivery) = consumer.next().await else { return Ok(false) };
        let delivery = delivery?;
        self.event(&delivery.data, delivery.redelivered);
        delivery.ack(BasicAckOptions::default()).await
    }

    fn event(&self, body: &[u8], redelivered: bool) {
        let Ok(mut event) = serde_json::from_slice::<Value>(body) else {
            return self.unexpected_because("an event that is not JSON".to_owned());
        };
        let id = event["id"].as_str().and_then(|id| id.parse::<Uuid>().ok()).unwrap_or_default();
        let Some(effect) = self.0.plan.effects.get(&id) else {
            return self.unexpected_because(format!("an unexpected event: {event}"));
        };
        if redelivered && !self.arrivals(id).is_empty() {
            return;
        }
        if let Content::Event(expected) = &effect.content {
            let mut expected = serde_json::to_value(expected).unwrap();
            // The time of the decision depends on the worker.
            expected["time"] = event["time"].take();
            event["time"] = expected["time"].clone();
            if event != expected {
                self.unexpected_because(format!("a wrong event: {event} instead of {expected}"));
            }
        }
        self.arrive(id, effect.command, Arrival { at: Instant::now(), mail: None });
    }

    /// Receives emails until aborted. `take` returns new emails with the number of their server.
    pub async fn receive_emails(self, take: impl Fn() -> Vec<(usize, ReceivedEmail)>) {
        loop {
            for (server, taken) in take() {
                self.mail(server, &taken);
            }
            sleep(LOOK_EVERY).await;
        }
    }

    fn mail(&self, server: usize, taken: &ReceivedEmail) {
        let text = String::from_utf8_lossy(&taken.bytes);
        let id = header(&text, "Message-ID").trim_start_matches('<').split('@').next().unwrap_or_default();
        let id = id.parse::<Uuid>().unwrap_or_default();
        let Some(effect) = self.0.plan.effects.get(&id) else {
            return self.unexpected_because(format!("an unexpected email: {text}"));
        };
        if let Content::Mail(expected) = &effect.content {
            let origin = Origin { entry_id: id, conversation_id: effect.conversation_id };
            let expected = self.0.composer.compose(origin, expected, clock::now()).unwrap();
            let bytes = String::from_utf8(expected.bytes(true).unwrap()).unwrap();
            let difference = lines(&text).zip(lines(&bytes)).find(|(found, expected)| found != expected);
            if let Some((found, expected)) = difference {
                self.unexpected_because(format!("email {id} says {found:?} instead of {expected:?}"));
            }
            if taken.to != [expected.to()] {
                self.unexpected_because(format!("email {id} was sent to {:?} instead of {}", taken.to, expected.to()));
            }
        }
        self.0.arrived.lock().unwrap().newest_mail = Some(taken.at);
        self.arrive(id, effect.command, Arrival { at: taken.at, mail: Some((server, taken.answered)) });
    }

    fn arrive(&self, effect: Uuid, command: usize, arrival: Arrival) {
        let about = json!({ "effect": effect, "command": self.0.plan.commands[command].id });
        match arrival.mail {
            None => self.0.history.add_at(arrival.at, "events", "ok", "event", about),
            Some((server, is_answered)) => {
                let process = format!("mail-server-{server}");
                let kind = if is_answered { "ok" } else { "info" };
                self.0.history.add_at(arrival.at, &process, kind, "email", about);
            }
        }
        self.0.arrived.lock().unwrap().effects.entry(effect).or_default().push(arrival);
        self.0.seen[command].send_replace(true);
    }

    fn unexpected_because(&self, why: String) {
        self.0.arrived.lock().unwrap().unexpected.push(why);
    }
}

fn header<'a>(text: &'a str, name: &str) -> &'a str {
    let mut lines = text.lines().take_while(|line| !line.is_empty());
    lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(": ")).unwrap_or_default()
}

/// How lines begin that `Composer::compose` does not write, or not the same.
const OTHER_LINES: [&str; 5] =
    ["Date: ", "X-Offramp-Subscription: ", "X-Offramp-Account: ", "X-Offramp-Command: ", " id="];

/// The other lines of an email, and `None` for its end.
fn lines(text: &str) -> impl Iterator<Item = Option<&str>> {
    let is_other = |line: &&str| OTHER_LINES.iter().any(|beginning| line.starts_with(beginning));
    text.trim_end().lines().filter(move |line| !is_other(line)).map(Some).chain([None])
}
