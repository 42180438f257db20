//! What holds for all bytes that are read as a command: the parser never panics, and what it accepts is read back the same. Shared by
//! the fuzz target and the bounded run below.

use super::{
    COMMAND_BYTES_MAX, CancellationVia, Command, CommandBody, ConfirmationDecision, InvalidCommand, SubscriptionCommand,
};
use crate::actor::Actor;
use crate::link::URL_BYTES_MAX;
use serde_json::{Value, json};

/// The longest sentence about what is wrong, in characters: it travels in a header.
const SENTENCE_CHARS_MAX: usize = 301;
/// The longest text in a command, in characters.
const TEXT_CHARS_MAX: usize = 2000;

/// Reads the bytes.
///
/// # Panics
/// When a promise of the parser is broken.
#[allow(clippy::panic, reason = "that is how a property fails")]
pub fn check(bytes: &[u8]) {
    match Command::parse(bytes) {
        Ok(command) => {
            assert!(bytes.len() <= COMMAND_BYTES_MAX);
            let written = write(&command);
            check_lengths(&written);
            assert_eq!(Command::parse(written.to_string().as_bytes()).as_ref(), Ok(&command), "{written}");
        }
        Err(error) => {
            assert_eq!(matches!(error, InvalidCommand::TooLarge { .. }), bytes.len() > COMMAND_BYTES_MAX);
            let sentence = error.to_string();
            assert!(!sentence.is_empty() && sentence.chars().count() <= SENTENCE_CHARS_MAX, "{sentence}");
            assert!(!sentence.contains(char::is_control), "{sentence:?}");
        }
    }
}

#[allow(clippy::panic, reason = "that is how a property fails")]
fn check_lengths(value: &Value) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                let length = value.as_str().map_or(0, |text| text.chars().count());
                let (min, max) = match name.as_str() {
                    "reason" | "note" | "message" | "failure_message" => (0, TEXT_CHARS_MAX),
                    "name" => (0, 1000),
                    "payment_url" => (8, URL_BYTES_MAX),
                    "source" | "brand" => (1, 256),
                    _ => (1, 128),
                };
                assert!(!value.is_string() || (min..=max).contains(&length), "{name} has {length} characters");
                check_lengths(value);
            }
        }
        Value::Array(_) => panic!("no command has an array: {value}"),
        _ => {}
    }
}

/// The command as an upstream system would write it.
fn write(command: &Command) -> Value {
    let data = match &command.body {
        CommandBody::CardExpiry(data) => {
            json!({ "organization_id": data.organization_id, "account_id": data.account_id, "card": data.card })
        }
        CommandBody::Subscription(body) => {
            let mut written = write_body(body);
            written["organization_id"] = json!(body.organization_id());
            written["subscription_id"] = json!(body.subscription_id());
            written
        }
    };
    json!({
        "specversion": "1.0", "id": command.reference.key.id, "source": command.reference.key.source,
        "type": command.reference.kind, "time": command.time, "data": data,
    })
}

fn write_body(body: &SubscriptionCommand) -> Value {
    let actor = |actor: &Actor| json!(actor);
    match body {
        SubscriptionCommand::Cancellation(data) => {
            let mut written = json!({ "actor": actor(&data.actor), "reason": data.reason });
            match &data.via {
                CancellationVia::Purchases { month, message } => {
                    written["via"] = json!("purchases");
                    written["month"] = json!(month);
                    written["message"] = json!(message);
                }
                CancellationVia::Invoice { invoice_id, refund, message } => {
                    written["via"] = json!("invoice");
                    written["invoice_id"] = json!(invoice_id);
                    written["refund"] = json!(refund);
                    written["message"] = json!(message);
                }
                CancellationVia::Account => written["via"] = json!("account"),
            }
            written
        }
        SubscriptionCommand::CancellationRequest(data) => {
            json!({ "actor": actor(&data.actor), "reason": data.reason })
        }
        SubscriptionCommand::CancellationConfirmation(data) => {
            let mut written = json!({ "actor": actor(&data.actor), "note": data.note });
            match data.decision {
                ConfirmationDecision::Accept { final_billing_date } => {
                    written["decision"] = json!("accept");
                    written["final_billing_date"] =
                        json!(final_billing_date.map(|date| date.format("%Y-%m-%d").to_string()));
                }
                ConfirmationDecision::Decline => written["decision"] = json!("decline"),
            }
            written
        }
        SubscriptionCommand::PaymentFailure(data) => json!({
            "invoice_id": data.invoice_id, "amount": data.amount, "card": data.card, "attempt": data.attempt,
            "failure_message": data.failure_message, "failure_code": data.failure_code, "payment_url": data.payment_url,
            "next_attempt_on": data.next_attempt_on.map(|date| date.format("%Y-%m-%d").to_string()),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{admin, envelope};

    /// How many mutations are tried: some seconds' worth. `make fuzz` goes on for as long as one likes.
    const MUTATIONS: u64 = 20_000;

    /// What parsers stumble over, put into commands by the mutations.
    const TOKENS: [&[u8]; 16] = [
        b"null",
        b"{}",
        b"[",
        b"\"",
        b"\\ud800",
        b"\\u0000",
        b"1e999",
        b"-0",
        b"99999999999999999999999999",
        b"4294967296",
        b"2026-02-30",
        b"0000-01-01T00:00:00+23:59",
        b"\xff\xfe",
        b"\xef\xbb\xbf",
        "\u{202e}".as_bytes(),
        b",\"data\":{}",
    ];

    #[test]
    #[expect(clippy::disallowed_methods, reason = "the mutations start from the published examples")]
    fn mutated_commands_never_break_the_parser() {
        let files = std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/../../schemas/examples/commands")).unwrap();
        let mut samples: Vec<_> = files.map(|file| std::fs::read(file.unwrap().path()).unwrap()).collect();
        samples.sort();
        for seed in 0..MUTATIONS {
            let mut random = fastrand::Rng::with_seed(seed);
            let mut bytes = samples[random.usize(..samples.len())].clone();
            for _ in 0..random.usize(0..4) {
                mutate(&mut bytes, &samples, &mut random);
            }
            check(&bytes);
        }
    }

    fn mutate(bytes: &mut Vec<u8>, samples: &[Vec<u8>], random: &mut fastrand::Rng) {
        let at = random.usize(..=bytes.len());
        let end = (at + random.usize(..32)).min(bytes.len());
        match random.u8(..5) {
            0 => bytes[at..end].iter_mut().take(1).for_each(|byte| *byte = random.u8(..)),
            1 => drop(bytes.drain(at..end)),
            2 => drop(bytes.splice(at..at, bytes[at..end].to_vec())),
            3 => drop(bytes.splice(at..end, TOKENS[random.usize(..TOKENS.len())].iter().copied())),
            _ => {
                let other = &samples[random.usize(..samples.len())];
                bytes.truncate(at);
                bytes.extend_from_slice(&other[random.usize(..=other.len())..]);
            }
        }
    }

    #[test]
    fn depth_length_and_numbers_never_break_the_parser() {
        let sample = envelope("subscription.cancellation", json!({ "actor": admin(), "via": "purchases" })).to_string();
        let in_envelope = |value: &str| sample.replacen('{', &format!("{{\"extra\":{value},"), 1);
        let in_data = |value: &str| sample.replacen("\"data\":{", &format!("\"data\":{{\"reason\":{value},"), 1);
        let room = COMMAND_BYTES_MAX - in_data("\"\"").len();
        let values = [
            "[".repeat(room),
            "{\"a\":".repeat(room / 5),
            format!("{}{}", "[".repeat(room / 2), "]".repeat(room / 2)),
            "9".repeat(room),
            format!("1e{}", "9".repeat(room - 2)),
            format!("\"{}\"", "é".repeat(room / 2)),
            format!("\"{}\"", "\\u0000".repeat(room / 6)),
            format!("\"{}\"", "x".repeat(room)),
            format!("\"{}\"", "x".repeat(room + 1)),
        ];
        for value in values {
            check(in_envelope(&value).as_bytes());
            check(in_data(&value).as_bytes());
            check(value.as_bytes());
        }
        for size in [0, 1, COMMAND_BYTES_MAX, COMMAND_BYTES_MAX + 1] {
            check(&vec![0xff; size]);
            check(&vec![b' '; size]);
        }
    }
}
