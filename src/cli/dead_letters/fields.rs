//! A dead letter as the tables and the JSON output of these commands show it.

use offramp::amqp::{DeadLetter, Topology};
use serde_json::{Value, json};

use crate::cli::terminal::rfc3339;

/// The name of a queue without the prefix that all queues share.
pub fn short_queue<'a>(queue: &'a str, topology: &Topology) -> &'a str {
    let prefix = topology.command_exchange();
    queue.strip_prefix(&prefix).and_then(|rest| rest.strip_prefix('.')).unwrap_or(queue)
}

pub fn letter_json(letter: &DeadLetter) -> Value {
    json!({
        "handle": letter.handle, "reason": letter.reason, "error": letter.error, "queue": letter.queue,
        "type": letter.kind, "source": letter.source, "id": letter.command_id, "message_id": letter.message_id,
        "subscription_id": letter.subscription_id, "account_id": letter.account_id,
        "died_at": letter.died_at.map(rfc3339), "body_bytes": letter.body_bytes,
    })
}
