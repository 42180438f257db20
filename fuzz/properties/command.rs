//! What holds for all bytes that are read as a command. Shared by the fuzz target and a bounded run in `tests/it`.

use offramp_domain::command::{
    Actor, COMMAND_BYTES_MAX, CancellationVia, Command, CommandBody, Decision, InvalidCommand, SubscriptionCommand,
};
use serde_json::{Value, json};

/// The longest sentence about what is wrong, in characters: it travels in a header.
const SENTENCE_CHARS_MAX: usize = 301;
/// The longest text in a command, in characters.
const TEXT_CHARS_MAX: usize = 2000;

/// Reads the bytes; fails when a promise of the parser is broken.
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

fn check_lengths(value: &Value) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                let length = value.as_str().map_or(0, |text| text.chars().count());
                let (min, max) = match name.as_str() {
                    "reason" | "note" | "failure_message" => (0, TEXT_CHARS_MAX),
                    "name" => (0, 1000),
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
                CancellationVia::Purchases { month } => {
                    written["via"] = json!("purchases");
                    written["month"] = json!(month);
                }
                CancellationVia::Invoice { invoice_id, refund } => {
                    written["via"] = json!("invoice");
                    written["invoice_id"] = json!(invoice_id);
                    written["refund"] = json!(refund);
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
                Decision::Accept { final_billing_date } => {
                    written["decision"] = json!("accept");
                    written["final_billing_date"] =
                        json!(final_billing_date.map(|date| date.format("%Y-%m-%d").to_string()));
                }
                Decision::Decline => written["decision"] = json!("decline"),
            }
            written
        }
        SubscriptionCommand::PaymentFailure(data) => json!({
            "invoice_id": data.invoice_id, "amount": data.amount, "card": data.card, "attempt": data.attempt,
            "failure_message": data.failure_message,
            "next_attempt_on": data.next_attempt_on.map(|date| date.format("%Y-%m-%d").to_string()),
        }),
    }
}
