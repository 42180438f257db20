//! Describes a dead letter from our headers, the broker's headers, and the body.

use chrono::{DateTime, Utc};
use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable};
use serde::Deserialize;
use serde_json::Value;
use uuid::Uuid;

use crate::amqp::field_value::text;
use crate::amqp::message::{DIED_AT_HEADER, Delivery, ERROR_HEADER, QUEUE_HEADER, REASON_HEADER};
use crate::amqp::topology::Topology;
use offramp_domain::command_ref::CommandType;
use offramp_domain::ids::cut;

/// The largest body that is parsed, in bytes. Larger ones are no commands.
const PARSED_BYTES_MAX: usize = 1024 * 1024;
/// The longest part of a `source`, `id` or `type` that is kept, in characters: as long as those of a command may be.
const WORD_CHARS_MAX: usize = 256;
/// The length of a handle, in hexadecimal digits. Among 100,000 dead letters, the chance that any two share a handle is 1
/// in 200: handles are for people only.
const HANDLE_DIGITS: usize = 10;
/// The largest part of an id in `data` that is kept, in characters: no valid id is longer.
const DATA_ID_CHARS_MAX: usize = 128;

/// A dead letter, as operators see it.
#[derive(Clone, Debug, PartialEq)]
pub struct DeadLetter {
    /// Derived from body, message id, reason, queue and time: it does not change while the dead letter is in the queue.
    pub id: Uuid,
    /// The first digits of `id`, for operators to type.
    pub handle: String,
    /// A `DeadLetterReason`, or the broker's own reason, such as `delivery_limit`.
    pub reason: String,
    /// The reason as a sentence.
    pub error: String,
    /// `error` with placeholders, such as `<subscription_id>`, instead of ids: equal for dead letters with the same cause.
    pub error_pattern: String,
    /// The queue it came from, if known.
    pub queue: Option<String>,
    /// The command type whose work queue that is. `None`: it cannot be replayed.
    pub origin: Option<CommandType>,
    /// Its command's `type`.
    pub kind: Option<String>,
    /// Its command's `source`.
    pub source: Option<String>,
    /// Its command's `id`.
    pub command_id: Option<String>,
    /// The `subscription_id` in its command's `data`, cut to the length of an id. A number is written as text.
    pub subscription_id: Option<String>,
    /// The `account_id` in its command's `data`, likewise.
    pub account_id: Option<String>,
    /// The `message_id` that its publisher set.
    pub message_id: Option<String>,
    /// When it became a dead letter.
    pub died_at: Option<DateTime<Utc>>,
    pub body_bytes: usize,
}

impl DeadLetter {
    pub(super) fn read(delivery: &Delivery, topology: &Topology) -> Self {
        let names = Names::read(&delivery.body);
        let own = |name| delivery.header(name).map(str::to_owned);
        let (reason, error, queue, died_at) = match (own(REASON_HEADER), Death::newest(delivery.properties(), topology))
        {
            (Some(reason), _) => {
                let died_at = delivery.header(DIED_AT_HEADER).and_then(|at| DateTime::parse_from_rfc3339(at).ok());
                let error = own(ERROR_HEADER).unwrap_or_default();
                (reason, error, own(QUEUE_HEADER), died_at.map(|at| at.to_utc()))
            }
            (None, Some(death)) => (death.reason.clone(), death.sentence(), Some(death.queue), death.at),
            (None, None) => {
                let at = delivery.properties().timestamp().and_then(instant);
                ("unknown".to_owned(), "No header names a reason or a queue of origin.".to_owned(), None, at)
            }
        };
        let origin = CommandType::ALL.into_iter().find(|kind| queue.as_ref() == Some(&topology.work_queue(*kind)));
        let message_id = delivery.properties().message_id().as_ref().map(ToString::to_string);
        let stamp = died_at.map(|at| at.timestamp_millis()).unwrap_or_default();
        let rest = format!("{message_id:?} {reason} {queue:?} {stamp}");
        let id = Uuid::new_v5(&Uuid::new_v5(&Uuid::NAMESPACE_OID, &delivery.body), rest.as_bytes());
        Self {
            id,
            handle: id.simple().to_string().chars().take(HANDLE_DIGITS).collect(),
            error_pattern: names.replaced_in(&error),
            reason,
            error,
            queue,
            origin,
            kind: names.kind.or_else(|| delivery.properties().kind().as_ref().map(ToString::to_string)),
            source: names.source,
            command_id: names.id,
            subscription_id: names.subscription_id,
            account_id: names.account_id,
            message_id,
            died_at,
            body_bytes: delivery.body.len(),
        }
    }

    /// Whether `name` is its handle, its command's id, or its message id.
    #[must_use]
    pub fn is_named(&self, name: &str) -> bool {
        self.handle == name || self.command_id.as_deref() == Some(name) || self.message_id.as_deref() == Some(name)
    }
}

/// An entry of `x-death`: what the broker recorded when it dead-lettered a message.
struct Death {
    queue: String,
    reason: String,
    at: Option<DateTime<Utc>>,
}

impl Death {
    /// The newest entry for a work queue, otherwise the newest. Expiry in a retry queue makes an entry too.
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
                "Redelivered too often without an ack: each time, the worker that had it crashed or lost its \
                                 connection."
                    .to_owned()
            }
            reason => format!("Dead-lettered by RabbitMQ ({reason})."),
        }
    }
}

/// The identifying fields of a body, as far as it can be parsed.
#[derive(Default)]
struct Names {
    kind: Option<String>,
    source: Option<String>,
    id: Option<String>,
    subscription_id: Option<String>,
    account_id: Option<String>,
    /// The `…_id` fields of `data`, with their values.
    data_ids: Vec<(String, String)>,
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
        let word = |value: Option<Value>| Some(cut(value?.as_str()?.to_owned(), WORD_CHARS_MAX));
        let data = envelope.data.as_ref().and_then(Value::as_object);
        let data_id = |name: &str| {
            let text = match data?.get(name)? {
                Value::String(text) => text.clone(),
                Value::Number(number) => number.to_string(),
                _ => return None,
            };
            Some(cut(text, DATA_ID_CHARS_MAX))
        };
        let (subscription_id, account_id) = (data_id("subscription_id"), data_id("account_id"));
        let data_ids = data
            .into_iter()
            .flatten()
            .filter(|(name, _)| name.ends_with("_id"))
            .filter_map(|(name, value)| Some((name.clone(), value.as_str()?.to_owned())))
            .collect();
        let (kind, source, id) = (word(envelope.kind), word(envelope.source), word(envelope.id));
        Self { kind, source, id, subscription_id, account_id, data_ids }
    }

    /// The sentence with placeholders instead of these ids.
    fn replaced_in(&self, sentence: &str) -> String {
        let id = self.id.iter().map(|id| ("id", id));
        let data_ids = self.data_ids.iter().map(|(name, value)| (name.as_str(), value));
        data_ids
            .chain(id)
            .fold(sentence.to_owned(), |sentence, (name, value)| replace_words(&sentence, value, &format!("<{name}>")))
    }
}

/// Replaces `word` where it is not part of a longer word.
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

/// The headers of a message as JSON, for display.
pub(super) fn headers_json(delivery: &Delivery) -> Value {
    delivery.properties().headers().as_ref().map_or(Value::Null, table)
}

fn table(table: &FieldTable) -> Value {
    table.inner().iter().map(|(name, value)| (name.to_string(), json(value))).collect::<serde_json::Map<_, _>>().into()
}

/// An AMQP value as JSON, for display.
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

#[cfg(test)]
mod tests {
    use lapin::types::LongString;
    use offramp_domain::dead_letter::DeadLetterReason;

    use super::*;

    fn topology() -> Topology {
        Topology::new("p")
    }

    fn read(body: &str, headers: FieldTable) -> DeadLetter {
        let properties = BasicProperties::default().with_headers(headers);
        DeadLetter::read(&Delivery::new(body.into(), properties), &topology())
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
    fn reason_and_queue_come_from_our_headers() {
        let delivery = Delivery::new(BODY.into(), BasicProperties::default());
        let at = DateTime::from_timestamp_millis(1_000_500).unwrap();
        let copy = delivery.dead_letter(
            &topology(),
            DeadLetterReason::Exhausted,
            "subscriptions sub-1: no.",
            "p.card-expiry",
            at,
        );
        let letter = DeadLetter::read(&Delivery::new(copy.body.clone(), copy.properties().clone()), &topology());
        assert_eq!((letter.reason.as_str(), letter.error.as_str()), ("exhausted", "subscriptions sub-1: no."));
        assert_eq!(letter.error_pattern, "subscriptions <subscription_id>: no.");
        assert_eq!((letter.origin, letter.died_at), (Some(CommandType::CardExpiry), Some(at)));
        assert_eq!(letter.handle.len(), HANDLE_DIGITS);
        assert!(letter.is_named("c-1") && letter.is_named(&letter.handle.clone()) && !letter.is_named("s"));
    }

    #[test]
    fn ids_in_data_are_read_as_text() {
        let check = |data: &str, subscription: Option<&str>, account: Option<&str>| {
            let letter = read(&format!(r#"{{"id": "c-1", "data": {data}}}"#), FieldTable::default());
            assert_eq!((letter.subscription_id.as_deref(), letter.account_id.as_deref()), (subscription, account));
        };
        check(r#"{"subscription_id": "sub-1", "account_id": "acc-1"}"#, Some("sub-1"), Some("acc-1"));
        check(r#"{"subscription_id": 17, "account_id": null}"#, Some("17"), None);
        check(r#"{"subscription_id": {"$oid": "65"}, "account_id": ["acc-1"]}"#, None, None);
        check(r#""sub-1""#, None, None);
        let long = "é".repeat(DATA_ID_CHARS_MAX + 1);
        check(&format!(r#"{{"account_id": "{long}"}}"#), None, Some(&"é".repeat(DATA_ID_CHARS_MAX)));
        assert_eq!(read("no JSON", FieldTable::default()).subscription_id, None);
    }

    #[test]
    fn x_death_names_reason_and_work_queue() {
        let deaths = vec![death("p.retry.5s", "expired"), death("p.payment-failure", "delivery_limit")];
        let mut headers = FieldTable::default();
        headers.insert("x-death".into(), AMQPValue::FieldArray(deaths.into()));
        let letter = read("no JSON", headers);
        assert_eq!((letter.reason.as_str(), letter.origin), ("delivery_limit", Some(CommandType::PaymentFailure)));
        assert_eq!(letter.died_at.unwrap().timestamp(), 60);
    }

    #[test]
    fn foreign_queues_have_no_origin() {
        let mut headers = FieldTable::default();
        headers.insert(REASON_HEADER.into(), long("invalid"));
        headers.insert(QUEUE_HEADER.into(), long("somebody-elses"));
        let letter = read(BODY, headers);
        assert_eq!((letter.queue.as_deref(), letter.origin), (Some("somebody-elses"), None));
        let letter = read(BODY, FieldTable::default());
        assert_eq!((letter.reason.as_str(), letter.origin, letter.queue), ("unknown", None, None));
    }

    #[test]
    fn only_whole_words_are_replaced() {
        let check = |sentence, word, expected: &str| assert_eq!(replace_words(sentence, word, "<x>"), expected);
        check("a: a-b, ab (a) a", "a", "<x>: a-b, ab (<x>) <x>");
        check("aa aa", "a", "aa aa");
        check("é sub é", "sub", "é <x> é");
        check("nothing", "", "nothing");
    }

    #[test]
    fn handles_are_distinct_and_stable() {
        let headers = |at: &str| {
            let mut headers = FieldTable::default();
            headers.insert(REASON_HEADER.into(), long("invalid"));
            headers.insert(DIED_AT_HEADER.into(), long(at));
            headers
        };
        let first = read(BODY, headers("2026-01-01T00:00:00.000Z"));
        let mut redelivered = headers("2026-01-01T00:00:00.000Z");
        redelivered.insert("x-delivery-count".into(), AMQPValue::LongLongInt(7));
        assert_eq!(first.handle, read(BODY, redelivered).handle);
        assert_ne!(first.handle, read(BODY, headers("2026-01-01T00:00:00.001Z")).handle);
        assert_ne!(first.handle, read("{}", headers("2026-01-01T00:00:00.000Z")).handle);
    }
}
