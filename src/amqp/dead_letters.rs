//! The dead letters, as an operator sees them: read one by one, sent back to work, or thrown away.
//!
//! AMQP has no way to look at a message without taking it. So letters are taken and *not* acknowledged, on one channel: the
//! broker gives all of them back when that channel ends, whatever ended it, and a killed command loses nothing. A letter is
//! acknowledged only when its copy is confirmed in its work queue, or when an operator wants it gone.
//!
//! However many letters there are, few are in memory: each consumer is sent `WINDOW` of them at most, and once all of
//! those are held, another consumer is opened beside it.
//!
//! An acknowledgement is not answered, and RabbitMQ's channels keep back what a busy quorum queue has not taken yet, and forget
//! it when they close: of 250 letters that were acknowledged just before, 16 came back. So [`Scan::finish`] looks again, and
//! removes those that came back.
//!
//! What one command holds, another would not find. So each takes a lock first, a queue that is *exclusive* to its
//! connection: the broker deletes it with the connection, whatever ended that.

use std::collections::HashMap;
use std::time::Duration;

use chrono::{DateTime, Utc};
use futures_util::StreamExt;
use futures_util::stream::SelectAll;
use lapin::options::{BasicAckOptions, BasicConsumeOptions, BasicGetOptions, BasicQosOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable, LongString, ShortString};
use lapin::{Acker, BasicProperties, Channel};
use serde::Deserialize;
use serde_json::Value;
use tokio::time::{Instant, sleep, timeout};
use uuid::Uuid;

use super::connection::{Broker, BrokerError, Link};
use super::field_value::text;
use super::message::{DIED_AT_HEADER, Delivery, ERROR_HEADER, Outgoing, QUEUE_HEADER, REASON_HEADER};
use super::publisher::{PublishError, Publisher};
use super::reply_code::{ACCESS_REFUSED, NOT_FOUND, RESOURCE_LOCKED};
use super::topology::Topology;
use offramp_domain::command::CommandType;

/// How many letters may be on their way to us at once: that many may be in memory, whatever they weigh.
const WINDOW: u16 = 100;
/// How long the broker may send nothing, with letters outstanding, before it is asked whether there are any.
const SILENCE: Duration = Duration::from_secs(2);
/// How long another operator's command is waited for.
const LOCK_PATIENCE: Duration = Duration::from_secs(10);
/// How long the number of letters must have stood still, where some were removed, before it is believed.
const STILL: Duration = Duration::from_millis(500);
/// How long to wait until what was held can be seen in the queue again.
const RETURN_PATIENCE: Duration = Duration::from_secs(3);
/// How long the broker gets to take acks before the channel closes, so that it seldom forgets one.
const ACK_PAUSE: Duration = Duration::from_millis(100);
/// How often those that came back are removed again.
const REMOVALS_MAX: usize = 10;
/// The pause between two looks at either.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// Larger bodies are not searched for the command's names: they are no commands.
const PARSED_BYTES_MAX: usize = 1024 * 1024;
/// How much of a letter's id makes its handle, in hexadecimal digits: with 100,000 letters the chance that any two share one
/// is 1 in 200. So it is for people only.
const HANDLE_DIGITS: usize = 10;

/// Why dead letters could not be looked at or dealt with. None is lost by it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DeadLettersError {
    /// Another operator's command holds them.
    #[error(
        "another `offramp dead-letters` is at work; what it holds cannot be seen meanwhile. Try again when it is done (if its \
         machine is gone, the broker notices within half a minute)"
    )]
    Busy,
    /// There is no such queue.
    #[error("there is no queue '{0}'; is OFFRAMP_PREFIX the worker's? `offramp init` declares it")]
    Missing(String),
    /// The channel ended on the way. What it held is in the queue again.
    #[error("the connection was lost: {0}. What was not done is where it was; the same command again goes on")]
    Lost(String),
    /// The broker is away, or said no.
    #[error(transparent)]
    Broker(#[from] BrokerError),
}

/// The dead letters, locked against other commands like this one.
#[derive(Debug)]
pub struct DeadLetters {
    link: Link,
    topology: Topology,
    queue: String,
}

impl DeadLetters {
    /// Connects, and waits a little for other operators' commands.
    ///
    /// # Errors
    /// [`DeadLettersError::Busy`] when another command has them for longer, [`DeadLettersError::Missing`] when there is no
    /// such queue, else as [`Broker::connect`].
    pub async fn open(broker: &Broker, topology: &Topology) -> Result<Self, DeadLettersError> {
        let link = broker.connect("dead letters").await?;
        let letters = Self { link, topology: topology.clone(), queue: topology.dead_letter_queue() };
        letters.count().await?;
        letters.lock().await?;
        Ok(letters)
    }

    /// Looks at all letters that are there now, from the first.
    ///
    /// # Errors
    /// When the broker does not answer.
    pub async fn scan(&self) -> Result<Scan<'_>, DeadLettersError> {
        let channel = self.link.channel().await?;
        self.link.ask("limit deliveries", channel.basic_qos(WINDOW, BasicQosOptions::default())).await?;
        let total = u64::from(self.count().await?);
        Ok(Scan {
            letters: self,
            channel,
            streams: SelectAll::new(),
            credit: 0,
            held: 0,
            seen: 0,
            total,
            removed: HashMap::new(),
        })
    }

    /// Ends the connection, and the lock with it.
    pub async fn close(self) {
        self.link.close().await;
    }

    /// How many letters wait; not those that somebody holds.
    async fn count(&self) -> Result<u32, DeadLettersError> {
        // The broker answers "no such queue" by closing the channel, so it gets one to close.
        let channel = self.link.channel().await?;
        let options = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
        let declaring = channel.queue_declare(short(&self.queue), options, FieldTable::default());
        let queue = self.link.ask("count the dead letters", declaring).await.map_err(|error| match error.code() {
            Some(NOT_FOUND) => DeadLettersError::Missing(self.queue.clone()),
            _ => error.into(),
        })?;
        self.link.ask("close a channel", channel.close(200, ShortString::from("OK"))).await?;
        Ok(queue.message_count())
    }

    async fn lock(&self) -> Result<(), DeadLettersError> {
        let name = format!("{}.lock", self.queue);
        let options = QueueDeclareOptions { exclusive: true, ..QueueDeclareOptions::default() };
        let mut arguments = FieldTable::default();
        // Whatever the virtual host's default is: only classic queues can be exclusive.
        arguments.insert("x-queue-type".into(), AMQPValue::LongString(LongString::from("classic")));
        let end = Instant::now() + LOCK_PATIENCE;
        loop {
            let channel = self.link.channel().await?;
            let declaring = channel.queue_declare(short(&name), options, arguments.clone());
            match self.link.ask("lock the dead letters", declaring).await {
                Ok(_) => return Ok(()),
                Err(error) if error.code() == Some(RESOURCE_LOCKED) => {
                    if Instant::now() >= end {
                        return Err(DeadLettersError::Busy);
                    }
                    sleep(LOOK_EVERY).await;
                }
                Err(error) if error.code() == Some(ACCESS_REFUSED) => {
                    tracing::warn!(
                        %error,
                        "this user may not declare the queue {name} that keeps operators apart; make sure that nobody else \
                         deals with dead letters now"
                    );
                    return Ok(());
                }
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// One walk over the letters. Those that were not removed go back when it ends, however it ends.
#[derive(Debug)]
pub struct Scan<'a> {
    letters: &'a DeadLetters,
    channel: Channel,
    streams: SelectAll<lapin::Consumer>,
    /// How many letters the open consumers may hold altogether.
    credit: u64,
    /// How many were taken and not removed.
    held: u64,
    /// How many were taken.
    seen: u64,
    /// How many there were at the beginning. What comes later is left for later: a letter that was sent back and failed
    /// again would otherwise come round for ever.
    total: u64,
    /// How many letters of each id were removed: one, but for letters that are the same in everything.
    removed: HashMap<Uuid, u64>,
}

/// A letter that this walk holds. Dropping it leaves it where it is.
#[derive(Debug)]
pub struct Held {
    /// What there is to know about it.
    pub letter: Letter,
    delivery: Delivery,
    acker: Acker,
}

impl Scan<'_> {
    /// How many letters there were at the beginning.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.total
    }

    /// The next letter; none at the end.
    ///
    /// # Errors
    /// When the connection is lost.
    pub async fn next(&mut self) -> Result<Option<Held>, DeadLettersError> {
        if self.seen >= self.total {
            return Ok(None);
        }
        if self.held >= self.credit {
            self.open_consumer().await?;
        }
        let received = match timeout(SILENCE, self.streams.next()).await {
            Ok(Some(Ok(received))) => received,
            Ok(Some(Err(error))) => return Err(lost(&error)),
            Ok(None) => {
                return Err(DeadLettersError::Lost("the consumer was cancelled, as when a queue is deleted".into()));
            }
            // Somebody else may have taken some. Only the broker knows.
            Err(_) => {
                let getting = self.channel.basic_get(short(&self.letters.queue), BasicGetOptions::default());
                match self.letters.link.ask("look for further dead letters", getting).await? {
                    Some(got) => got.delivery,
                    None => return Ok(None),
                }
            }
        };
        self.seen += 1;
        self.held += 1;
        let acker = received.acker.clone();
        let delivery = Delivery::from(received);
        Ok(Some(Held { letter: Letter::read(&delivery, &self.letters.topology), delivery, acker }))
    }

    /// Sends letters back to their work queues, and removes those whose copy the broker has confirmed. One result for each,
    /// in order: `None` for a letter that names no work queue of ours. What is not `Some(Ok)` stays.
    ///
    /// # Errors
    /// When the connection is lost: letters that were sent back may then be in both queues, which the command's
    /// `(source, id)` settles.
    pub async fn replay(
        &mut self,
        publisher: &Publisher,
        letters: Vec<Held>,
    ) -> Result<Vec<Option<Result<(), PublishError>>>, DeadLettersError> {
        let copies: Vec<Outgoing> = letters
            .iter()
            .filter_map(|held| Some(held.delivery.replay_copy(&self.letters.topology.work_queue(held.letter.home?))))
            .collect();
        let mut confirmed = publisher.publish_all(&copies).await.into_iter();
        let results: Vec<_> = letters.iter().map(|held| held.letter.home.and_then(|_| confirmed.next())).collect();
        let done = letters.into_iter().zip(&results).filter(|(_, result)| matches!(result, Some(Ok(()))));
        self.remove(done.map(|(held, _)| held).collect()).await?;
        Ok(results)
    }

    /// Removes letters for good, and waits until the broker has heard it.
    ///
    /// # Errors
    /// When the connection is lost: some of them may then still be there.
    pub async fn remove(&mut self, letters: Vec<Held>) -> Result<(), DeadLettersError> {
        if letters.is_empty() {
            return Ok(());
        }
        for held in letters {
            // One by one: those between them stay.
            let acking = held.acker.ack(BasicAckOptions { multiple: false });
            match self.letters.link.ask("take an ack", acking).await {
                Ok(true) => {
                    self.held -= 1;
                    *self.removed.entry(held.letter.id).or_default() += 1;
                }
                Ok(false) => return Err(DeadLettersError::Lost("the channel is gone".to_owned())),
                Err(error) => return Err(DeadLettersError::Lost(error.to_string())),
            }
        }
        // The broker answers in order: with this answer, it has read every ack.
        self.letters.link.ask("take acks", self.channel.basic_qos(WINDOW, BasicQosOptions::default())).await?;
        Ok(())
    }

    /// Gives everything back that was not removed, waits for a moment until it can be seen in the queue again, and makes
    /// sure that what was removed is not.
    ///
    /// # Errors
    /// When the broker does not answer. It gives the letters back all the same, and perhaps some that were removed.
    pub async fn finish(self) -> Result<(), DeadLettersError> {
        let letters = self.letters;
        let mut removed = self.give_back().await?;
        for _ in 0..REMOVALS_MAX {
            if removed.is_empty() {
                break;
            }
            let mut scan = letters.scan().await?;
            while let Some(held) = scan.next().await? {
                // One that was never delivered before is another one, whatever it looks like.
                let came_back = held.delivery.redelivered && removed.contains_key(&held.letter.id);
                if came_back {
                    take_one(&mut removed, held.letter.id);
                    scan.remove(vec![held]).await?;
                }
            }
            removed = scan.give_back().await?;
        }
        Ok(())
    }

    /// Ends the channel. Returns what was removed and may have come back; nothing when that cannot be.
    async fn give_back(self) -> Result<HashMap<Uuid, u64>, DeadLettersError> {
        let Self { letters, channel, streams, held, removed, .. } = self;
        if !removed.is_empty() {
            sleep(ACK_PAUSE).await;
        }
        letters.link.ask("close a channel", channel.close(200, ShortString::from("OK"))).await?;
        drop(streams);
        let end = Instant::now() + RETURN_PATIENCE;
        let mut stands = (0, Instant::now());
        loop {
            let count = u64::from(letters.count().await?);
            if count != stands.0 {
                stands = (count, Instant::now());
            }
            // What was removed, and comes back, comes back as the rest does: not at once.
            let is_still = removed.is_empty() || stands.1.elapsed() >= STILL;
            if count >= held && is_still || Instant::now() >= end {
                return Ok(if count > held { removed } else { HashMap::new() });
            }
            sleep(LOOK_EVERY).await;
        }
    }

    async fn open_consumer(&mut self) -> Result<(), DeadLettersError> {
        let queue = short(&self.letters.queue);
        // The broker gives back what few consumers hold in the order of their tags, so a short queue keeps its order.
        let tag = ShortString::try_new(format!("{:06}", self.credit / u64::from(WINDOW))).unwrap_or_default();
        let consuming = self.channel.basic_consume(queue, tag, BasicConsumeOptions::default(), FieldTable::default());
        self.streams.push(self.letters.link.ask("deliver from the queue", consuming).await?);
        self.credit += u64::from(WINDOW);
        Ok(())
    }
}

fn take_one(counts: &mut HashMap<Uuid, u64>, id: Uuid) {
    if let Some(count) = counts.get_mut(&id) {
        *count -= 1;
        if *count == 0 {
            counts.remove(&id);
        }
    }
}

/// What there is to know about a dead letter.
#[derive(Clone, Debug, PartialEq)]
pub struct Letter {
    /// Made of all that tells it from others: the same for as long as the letter lies there.
    pub id: Uuid,
    /// The beginning of its id, which an operator can type.
    pub handle: String,
    /// Why it is here, as a word: one of contract §7, or the broker's own, such as `delivery_limit`.
    pub reason: String,
    /// Why it is here, as a sentence.
    pub error: String,
    /// The same with `<subscription_id>` in place of this letter's own ids, so that letters with the same trouble agree.
    pub trouble: String,
    /// The queue that it came from, as far as it says.
    pub queue: Option<String>,
    /// Whose work queue that is; none: it cannot be sent back.
    pub home: Option<CommandType>,
    /// Its command's `type`.
    pub kind: Option<String>,
    /// Its command's `source`.
    pub source: Option<String>,
    /// Its command's `id`.
    pub command_id: Option<String>,
    /// The `message_id` that its publisher gave it.
    pub message_id: Option<String>,
    /// When it became a dead letter.
    pub died_at: Option<DateTime<Utc>>,
    /// What it weighs, in bytes.
    pub body_bytes: usize,
}

impl Letter {
    fn read(delivery: &Delivery, topology: &Topology) -> Self {
        let names = Names::read(&delivery.body);
        let own = |name| delivery.header(name).map(str::to_owned);
        let (reason, error, queue, died_at) = match (own(REASON_HEADER), Death::newest(&delivery.properties, topology))
        {
            (Some(reason), _) => {
                let died_at = delivery.header(DIED_AT_HEADER).and_then(|at| DateTime::parse_from_rfc3339(at).ok());
                let error = own(ERROR_HEADER).unwrap_or_default();
                (reason, error, own(QUEUE_HEADER), died_at.map(|at| at.to_utc()))
            }
            (None, Some(death)) => (death.reason.clone(), death.sentence(), Some(death.queue), death.at),
            (None, None) => {
                let at = delivery.properties.timestamp().and_then(instant);
                ("unknown".to_owned(), "It does not say why it is here, or where it came from.".to_owned(), None, at)
            }
        };
        let home = CommandType::ALL.into_iter().find(|kind| queue.as_ref() == Some(&topology.work_queue(*kind)));
        let message_id = delivery.properties.message_id().as_ref().map(ToString::to_string);
        let stamp = died_at.map(|at| at.timestamp_millis()).unwrap_or_default();
        let rest = format!("{message_id:?} {reason} {queue:?} {stamp}");
        let id = Uuid::new_v5(&Uuid::new_v5(&Uuid::NAMESPACE_OID, &delivery.body), rest.as_bytes());
        Self {
            id,
            handle: id.simple().to_string().chars().take(HANDLE_DIGITS).collect(),
            trouble: names.leave_out_of(&error),
            reason,
            error,
            queue,
            home,
            kind: names.kind.or_else(|| delivery.properties.kind().as_ref().map(ToString::to_string)),
            source: names.source,
            command_id: names.id,
            message_id,
            died_at,
            body_bytes: delivery.body.len(),
        }
    }

    /// Whether an operator may mean this letter by `name`: its handle, its command's id, or its message id.
    #[must_use]
    pub fn is_named(&self, name: &str) -> bool {
        self.handle == name || self.command_id.as_deref() == Some(name) || self.message_id.as_deref() == Some(name)
    }
}

impl Held {
    /// Its body, byte for byte.
    #[must_use]
    pub fn body(&self) -> &[u8] {
        &self.delivery.body
    }

    /// Its headers, as JSON.
    #[must_use]
    pub fn headers(&self) -> Value {
        self.delivery.properties.headers().as_ref().map_or(Value::Null, table)
    }
}

/// What the broker noted when it made a message a dead letter by itself: an entry of `x-death`.
struct Death {
    queue: String,
    reason: String,
    at: Option<DateTime<Utc>>,
}

impl Death {
    /// The newest death in a work queue; where there is none, the newest. The way through a retry queue is a death, too.
    fn newest(properties: &BasicProperties, topology: &Topology) -> Option<Self> {
        let AMQPValue::FieldArray(deaths) = properties.headers().as_ref()?.inner().get("x-death")? else { return None };
        let mut deaths: Vec<Self> = deaths.as_slice().iter().filter_map(Self::read).collect();
        let work = CommandType::ALL.map(|kind| topology.work_queue(kind));
        let index = deaths.iter().position(|death| work.contains(&death.queue)).unwrap_or(0);
        (index < deaths.len()).then(|| deaths.swap_remove(index))
    }

    fn read(entry: &AMQPValue) -> Option<Self> {
        let AMQPValue::FieldTable(entry) = entry else { return None };
        let word = |name: &str| entry.inner().get(name).and_then(text).map(str::to_owned);
        let at = match entry.inner().get("time") {
            Some(AMQPValue::Timestamp(seconds)) => instant(*seconds),
            _ => None,
        };
        Some(Self { queue: word("queue")?, reason: word("reason")?, at })
    }

    fn sentence(&self) -> String {
        match self.reason.as_str() {
            "delivery_limit" => {
                "Delivered again and again without an answer: each time, the worker that had it ended or lost \
                                 its connection."
                    .to_owned()
            }
            reason => format!("RabbitMQ took it out of its queue by itself ({reason})."),
        }
    }
}

/// The names in a body, as far as it is readable.
#[derive(Default)]
struct Names {
    kind: Option<String>,
    source: Option<String>,
    id: Option<String>,
    /// What its data is about: fields and their values.
    about: Vec<(String, String)>,
}

impl Names {
    fn read(body: &[u8]) -> Self {
        #[derive(Default, Deserialize)]
        struct Envelope {
            id: Option<Value>,
            source: Option<Value>,
            #[serde(rename = "type")]
            kind: Option<Value>,
            data: Option<Value>,
        }
        if body.len() > PARSED_BYTES_MAX {
            return Self::default();
        }
        let envelope: Envelope = serde_json::from_slice(body).unwrap_or_default();
        let word = |value: Option<Value>| value.as_ref().and_then(Value::as_str).map(str::to_owned);
        let data = envelope.data.as_ref().and_then(Value::as_object);
        let about = data
            .into_iter()
            .flatten()
            .filter(|(name, _)| name.ends_with("_id"))
            .filter_map(|(name, value)| Some((name.clone(), value.as_str()?.to_owned())))
            .collect();
        Self { kind: word(envelope.kind), source: word(envelope.source), id: word(envelope.id), about }
    }

    /// The sentence with names of fields in place of what is this letter's own.
    fn leave_out_of(&self, sentence: &str) -> String {
        let id = self.id.iter().map(|id| ("id", id));
        let about = self.about.iter().map(|(name, value)| (name.as_str(), value));
        about
            .chain(id)
            .fold(sentence.to_owned(), |sentence, (name, value)| replace_words(&sentence, value, &format!("<{name}>")))
    }
}

/// Replaces `word` where it is not a part of a longer one.
fn replace_words(sentence: &str, word: &str, by: &str) -> String {
    let inside = |c: Option<char>| c.is_some_and(|c| c.is_alphanumeric() || matches!(c, '-' | '_' | '<'));
    if word.is_empty() {
        return sentence.to_owned();
    }
    let (mut replaced, mut rest) = (String::new(), sentence);
    while let Some(at) = rest.find(word) {
        let (before, after) = (&rest[..at], &rest[at + word.len()..]);
        let is_part =
            inside(before.chars().next_back().or(replaced.chars().next_back())) || inside(after.chars().next());
        replaced.push_str(before);
        replaced.push_str(if is_part { word } else { by });
        rest = after;
    }
    replaced + rest
}

fn instant(seconds: u64) -> Option<DateTime<Utc>> {
    DateTime::from_timestamp(i64::try_from(seconds).ok()?, 0)
}

fn table(table: &FieldTable) -> Value {
    table.inner().iter().map(|(name, value)| (name.to_string(), json(value))).collect::<serde_json::Map<_, _>>().into()
}

/// An AMQP value as JSON, for people.
fn json(value: &AMQPValue) -> Value {
    match value {
        AMQPValue::Boolean(value) => (*value).into(),
        AMQPValue::ShortShortInt(value) => (*value).into(),
        AMQPValue::ShortShortUInt(value) => (*value).into(),
        AMQPValue::ShortInt(value) => (*value).into(),
        AMQPValue::ShortUInt(value) => (*value).into(),
        AMQPValue::LongInt(value) => (*value).into(),
        AMQPValue::LongUInt(value) => (*value).into(),
        AMQPValue::LongLongInt(value) => (*value).into(),
        AMQPValue::Float(value) => (*value).into(),
        AMQPValue::Double(value) => (*value).into(),
        AMQPValue::DecimalValue(value) => format!("{} / 10^{}", value.value, value.scale).into(),
        AMQPValue::ShortString(text) => text.as_str().into(),
        AMQPValue::LongString(text) => String::from_utf8_lossy(text.as_bytes()).into(),
        AMQPValue::FieldArray(values) => values.as_slice().iter().map(json).collect::<Vec<_>>().into(),
        AMQPValue::Timestamp(seconds) => instant(*seconds).map_or((*seconds).into(), |at| at.to_rfc3339().into()),
        AMQPValue::FieldTable(values) => table(values),
        AMQPValue::ByteArray(bytes) => String::from_utf8_lossy(bytes.as_slice()).into(),
        AMQPValue::Void => Value::Null,
    }
}

fn lost(error: &lapin::Error) -> DeadLettersError {
    DeadLettersError::Lost(super::connection::explain(error))
}

fn short(name: &str) -> ShortString {
    // A prefix has room to spare: see `config`.
    ShortString::try_new(name).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use offramp_domain::dead_letter::DeadLetterReason;

    use super::*;

    fn topology() -> Topology {
        Topology::new("p")
    }

    fn read(body: &str, headers: FieldTable) -> Letter {
        let properties = BasicProperties::default().with_headers(headers);
        Letter::read(&Delivery::new(body.into(), properties), &topology())
    }

    fn long(text: &str) -> AMQPValue {
        AMQPValue::LongString(LongString::from(text))
    }

    fn death(queue: &str, reason: &str) -> AMQPValue {
        let mut entry = FieldTable::default();
        entry.insert("queue".into(), long(queue));
        entry.insert("reason".into(), long(reason));
        entry.insert("time".into(), AMQPValue::Timestamp(60));
        AMQPValue::FieldTable(entry)
    }

    const BODY: &str = r#"{"id": "c-1", "source": "s", "type": "t", "data": {"subscription_id": "sub-1", "n_id": 3}}"#;

    #[test]
    fn our_own_headers_say_why() {
        let delivery = Delivery::new(BODY.into(), BasicProperties::default());
        let at = DateTime::from_timestamp_millis(1_000_500).unwrap();
        let copy = delivery.dead_letter(
            &topology(),
            DeadLetterReason::Exhausted,
            "subscriptions sub-1: no.",
            "p.card-expiry",
            at,
        );
        let letter = Letter::read(&Delivery::new(copy.body, copy.properties), &topology());
        assert_eq!((letter.reason.as_str(), letter.error.as_str()), ("exhausted", "subscriptions sub-1: no."));
        assert_eq!(letter.trouble, "subscriptions <subscription_id>: no.");
        assert_eq!((letter.home, letter.died_at), (Some(CommandType::CardExpiry), Some(at)));
        assert_eq!(letter.handle.len(), HANDLE_DIGITS);
        assert!(letter.is_named("c-1") && letter.is_named(&letter.handle.clone()) && !letter.is_named("s"));
    }

    #[test]
    fn what_the_broker_gave_up_goes_back_to_the_work_queue_that_it_names() {
        let deaths = vec![death("p.retry.5s", "expired"), death("p.payment-failure", "delivery_limit")];
        let mut headers = FieldTable::default();
        headers.insert("x-death".into(), AMQPValue::FieldArray(deaths.into()));
        let letter = read("no JSON", headers);
        assert_eq!((letter.reason.as_str(), letter.home), ("delivery_limit", Some(CommandType::PaymentFailure)));
        assert_eq!(letter.died_at.unwrap().timestamp(), 60);
    }

    #[test]
    fn a_queue_that_is_not_ours_is_no_home() {
        let mut headers = FieldTable::default();
        headers.insert(REASON_HEADER.into(), long("invalid"));
        headers.insert(QUEUE_HEADER.into(), long("somebody-elses"));
        let letter = read(BODY, headers);
        assert_eq!((letter.queue.as_deref(), letter.home), (Some("somebody-elses"), None));
        let letter = read(BODY, FieldTable::default());
        assert_eq!((letter.reason.as_str(), letter.home, letter.queue), ("unknown", None, None));
    }

    #[test]
    fn only_whole_words_are_left_out() {
        let check = |sentence, word, expected: &str| assert_eq!(replace_words(sentence, word, "<x>"), expected);
        check("a: a-b, ab (a) a", "a", "<x>: a-b, ab (<x>) <x>");
        check("aa aa", "a", "aa aa");
        check("é sub é", "sub", "é <x> é");
        check("nothing", "", "nothing");
    }

    #[test]
    fn a_handle_tells_letters_apart_and_does_not_change() {
        let headers = |at: &str| {
            let mut headers = FieldTable::default();
            headers.insert(REASON_HEADER.into(), long("invalid"));
            headers.insert(DIED_AT_HEADER.into(), long(at));
            headers
        };
        let first = read(BODY, headers("2026-01-01T00:00:00.000Z"));
        let mut looked_at = headers("2026-01-01T00:00:00.000Z");
        looked_at.insert("x-delivery-count".into(), AMQPValue::LongLongInt(7));
        assert_eq!(first.handle, read(BODY, looked_at).handle);
        assert_ne!(first.handle, read(BODY, headers("2026-01-01T00:00:00.001Z")).handle);
        assert_ne!(first.handle, read("{}", headers("2026-01-01T00:00:00.000Z")).handle);
    }
}
