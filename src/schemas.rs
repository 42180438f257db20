//! The JSON Schemas of commands, events, replies and documents, generated from the types that the program itself uses.
//!
//! `schemas/` in the repository contains them; a test fails when it is out of date.

mod titles;
mod validators;

use schemars::generate::{Contract, SchemaSettings};
use schemars::transform::{Transform, transform_subschemas};
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde_json::{Map, Value, json};

use crate::store::Collection;
use crate::store::documents::{AccountDocument, OrganizationDocument, SubscriptionDocument};
use offramp_domain::calendar::YearMonth;
use offramp_domain::cloud_event::CloudEvent;
use offramp_domain::command::{
    Cancellation, CancellationConfirmation, CancellationRequest, CardExpiry, PaymentFailure,
};
use offramp_domain::command_ref::{CommandKey, CommandType};
use offramp_domain::event::{self, About, CommandRejected, NotificationFailed};
use offramp_domain::reply::{self, CommandInvalid, CommandSettled};
use offramp_domain::trace_context::TraceContext;

pub use validators::{UnknownKeyword, mongodb_commands, mongodb_script};

#[derive(Clone, Debug)]
pub struct SchemaFile {
    /// Its path below `schemas/`: `commands/payment.failure.schema.json`.
    pub path: String,
    /// Its name for people: `commands/payment.failure`.
    pub name: String,
    /// A sentence about what it describes.
    pub title: &'static str,
    pub schema: Value,
}

impl SchemaFile {
    fn new(folder: &str, name: &str, title: &'static str, mut schema: Schema) -> Self {
        make_portable(&mut schema);
        // A document is one of its collection.
        let class = titles::class_name(if folder == "documents" { name.trim_end_matches('s') } else { name });
        let mut ordered = Map::new();
        ordered.insert("$schema".to_owned(), json!("https://json-schema.org/draft/2020-12/schema"));
        // Relative, because generators would take a whole URL for the name.
        ordered.insert("$id".to_owned(), json!(class));
        ordered.insert("title".to_owned(), json!(name));
        ordered.insert("description".to_owned(), json!(title));
        if let Value::Object(rest) = schema.to_value() {
            for (key, value) in rest {
                ordered.entry(key).or_insert(value);
            }
        }
        titles::add_titles(&mut ordered, &class);
        let name = format!("{folder}/{name}");
        Self { path: format!("{name}.schema.json"), name, title, schema: Value::Object(ordered) }
    }

    /// The content of the file.
    #[must_use]
    pub fn text(&self) -> String {
        format!("{:#}\n", self.schema)
    }
}

/// All schemas: commands, events, replies, documents.
#[must_use]
pub fn all() -> Vec<SchemaFile> {
    let commands = CommandType::ALL.map(command);
    let events = [
        event::<About<event::CancellationRequested>>(
            "subscription.cancellation-requested",
            "A client has asked to cancel a subscription; an administrator has to decide.",
        ),
        event::<About<event::CancellationScheduled>>(
            "subscription.cancellation-scheduled",
            "A subscription has got a last day, or an earlier one.",
        ),
        event::<About<event::CancellationDeclined>>(
            "subscription.cancellation-declined",
            "An administrator has declined a client's request; the subscription goes on.",
        ),
        event::<About<event::Ended>>(
            "subscription.ended",
            "The last day of access is over: take the participant out of the activities.",
        ),
        event::<About<event::Removed>>(
            "subscription.removed",
            "A subscription bought by mistake was removed: take the participant out of the activities at once.",
        ),
        event::<About<event::PaymentFailureRecorded>>(
            "payment.failure-recorded",
            "An automatic payment failed, and both sides are told.",
        ),
        event::<event::CardExpiring>(
            "card.expiring",
            "A saved card is about to expire, or has expired, and both sides are told.",
        ),
        event::<NotificationFailed>(
            NotificationFailed::KIND,
            "An email cannot be delivered and is kept for an operator.",
        ),
        event::<CommandRejected>(CommandRejected::KIND, "A command was refused and has changed nothing."),
    ];
    let replies = [
        reply::<CommandSettled>(
            reply::APPLIED,
            "The reply to a command that was applied, now or by an earlier delivery.",
        ),
        reply::<CommandSettled>(reply::UNCHANGED, "The reply to a command that asked for what was so already."),
        reply::<CommandInvalid>(reply::INVALID, "The reply to a message that became a dead letter."),
    ];
    let documents = [
        document::<OrganizationDocument>(Collection::Organizations, "An organization that sells subscriptions."),
        document::<AccountDocument>(Collection::Accounts, "A client's account, which pays for subscriptions."),
        document::<SubscriptionDocument>(Collection::Subscriptions, "A monthly subscription."),
    ];
    commands.into_iter().chain(events).chain(replies).chain(documents).collect()
}

/// Schemas of input state which fields are required; schemas of output state which fields are present.
fn generator(contract: Contract) -> SchemaGenerator {
    let mut settings = SchemaSettings::draft2020_12();
    settings.meta_schema = None;
    settings.contract = contract;
    settings.into_generator()
}

fn command(kind: CommandType) -> SchemaFile {
    let mut generator = generator(Contract::Deserialize);
    let (data, title) = match kind {
        CommandType::Cancellation => {
            (Cancellation::json_schema(&mut generator), "An administrator or a client cancels a subscription.")
        }
        CommandType::CancellationRequest => (
            CancellationRequest::json_schema(&mut generator),
            "A client asks to cancel a subscription; an administrator will decide.",
        ),
        CommandType::CancellationConfirmation => (
            CancellationConfirmation::json_schema(&mut generator),
            "An administrator accepts or declines what a client has asked.",
        ),
        CommandType::PaymentFailure => {
            (PaymentFailure::json_schema(&mut generator), "An automatic payment with a saved card was refused.")
        }
        CommandType::CardExpiry => {
            (CardExpiry::json_schema(&mut generator), "A saved card is about to expire, or has expired.")
        }
    };
    let mut data = data.to_value();
    let mut definitions = generator.take_definitions(true);
    std::iter::once(&mut data).chain(definitions.values_mut()).for_each(strict);
    // From the schema of the key, so that the lengths are defined once.
    let key = CommandKey::json_schema(&mut generator).to_value();
    let part = |name: &str, description: &str| {
        let mut part = key["properties"][name].clone();
        part["description"] = json!(description);
        part
    };
    let mut envelope = json!({
        "type": "object",
        "required": ["specversion", "id", "source", "type", "time", "data"],
        "properties": {
            "specversion": { "const": "1.0", "description": "CloudEvents 1.0, structured mode." },
            "id": part("id", "Identifies the command together with `source`: a repeat changes nothing, as long as the pair is among the newest 200 that its document applied."),
            "source": part("source", "The system that sends it."),
            "type": { "const": kind.as_str(), "description": "Also the routing key." },
            "time": { "type": "string", "format": "date-time", "description": "When it happened in that system." },
            "data": data,
        },
        "$defs": definitions,
    });
    // What is invalid in these is ignored; the schema says what is not.
    let trace = TraceContext::json_schema(&mut generator).to_value();
    for name in TraceContext::NAMES {
        envelope["properties"][name] = trace["properties"][name].clone();
    }
    SchemaFile::new("commands", kind.as_str(), title, object(envelope))
}

/// Forbids unknown fields, and limits dates and months to the years that commands allow.
fn strict(schema: &mut Value) {
    const YEAR: &str = "2([0-8][0-9]{2}|9[0-8][0-9]|99[0-8])";
    match schema {
        Value::Object(map) => {
            if map.contains_key("properties") && map.get("type").is_some_and(|kind| kind == "object") {
                map.insert("additionalProperties".to_owned(), json!(false));
            }
            if map.get("format").is_some_and(|format| format == "date") {
                map.insert("pattern".to_owned(), json!(format!("^{YEAR}-{MONTH_AND_DAY}$")));
            }
            if let Some(pattern) = map.get_mut("pattern").filter(|pattern| *pattern == YearMonth::PATTERN) {
                *pattern = json!(format!("^{YEAR}-(0[1-9]|1[0-2])$"));
            }
            map.values_mut().for_each(strict);
        }
        Value::Array(items) => items.iter_mut().for_each(strict),
        _ => {}
    }
}

/// A regular expression for the month and the day of a date.
const MONTH_AND_DAY: &str = "(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])";

fn event<D: JsonSchema>(kind: &'static str, title: &'static str) -> SchemaFile {
    sent::<D>("events", kind, title)
}

fn reply<D: JsonSchema>(kind: &'static str, title: &'static str) -> SchemaFile {
    sent::<D>("replies", kind, title)
}

/// A message that Offramp sends.
fn sent<D: JsonSchema>(folder: &str, kind: &'static str, title: &'static str) -> SchemaFile {
    let mut generator = generator(Contract::Serialize);
    let mut envelope = CloudEvent::json_schema(&mut generator).to_value();
    let data = D::json_schema(&mut generator).to_value();
    let properties = &mut envelope["properties"];
    for (name, value) in [("specversion", "1.0"), ("type", kind), ("datacontenttype", "application/json")] {
        let description = properties[name]["description"].take();
        properties[name] = json!({ "const": value, "description": description });
    }
    properties["data"] = data;
    never_null(&mut envelope);
    envelope["$defs"] = Value::Object(generator.take_definitions(true));
    SchemaFile::new(folder, kind, title, object(envelope))
}

/// Removes `null` from the types of optional fields: in an event, they are absent instead.
fn never_null(schema: &mut Value) {
    match schema {
        Value::Object(map) => {
            if let Some(Value::Array(types)) = map.get("type")
                && let [one, Value::String(null)] = types.as_slice()
                && null == "null"
            {
                let one = one.clone();
                map.insert("type".to_owned(), one);
            }
            if let Some(Value::Array(alternatives)) = map.get("anyOf")
                && let [Value::Object(one), null] = alternatives.as_slice()
                && *null == json!({ "type": "null" })
            {
                let mut one = one.clone();
                map.remove("anyOf");
                one.append(map);
                *map = one;
            }
            map.values_mut().for_each(never_null);
        }
        Value::Array(items) => items.iter_mut().for_each(never_null),
        _ => {}
    }
}

fn document<D: JsonSchema>(collection: Collection, title: &'static str) -> SchemaFile {
    let mut schema = generator(Contract::Deserialize).into_root_schema_for::<D>();
    if let Some(Value::Object(properties)) = schema.get_mut("properties") {
        for field in collection.worker_fields() {
            if let Some(property) = properties.get_mut(*field) {
                property["readOnly"] = json!(true);
            }
        }
    }
    if collection == Collection::Subscriptions {
        // The types cannot express what depends on the status.
        let over =
            |statuses: &[&str]| json!({ "required": ["status"], "properties": { "status": { "enum": statuses } } });
        schema.insert(
            "allOf".to_owned(),
            json!([
                { "if": over(&["removed"]), "else": { "required": ["participant", "plan", "billing"] } },
                {
                    "if": over(&["removed", "cancelled", "expired"]),
                    "else": {
                        "properties": {
                            "billing": { "required": ["next_on"], "properties": { "next_on": { "type": "string" } } },
                        },
                    },
                },
                {
                    "if": over(&["cancellation_scheduled"]),
                    "then": {
                        "required": ["ends_on", "ends_at"],
                        "properties": {
                            "ends_on": { "type": "string" },
                            "ends_at": { "type": "object", "required": ["$date"] },
                        },
                    },
                },
            ]),
        );
    }
    SchemaFile::new("documents", collection.as_str(), title, schema)
}

fn object(value: Value) -> Schema {
    match value {
        Value::Object(map) => Schema::from(map),
        // Unreachable: every caller passes an object. The default, which allows any value, would fail the tests.
        _ => Schema::default(),
    }
}

/// Adds a pattern to dates, because many validators ignore `format`, and removes the number formats of Rust, which strict
/// validators reject.
fn make_portable(schema: &mut Schema) {
    match schema.get("format").and_then(Value::as_str) {
        Some("date") if !schema.as_object().is_some_and(|map| map.contains_key("pattern")) => {
            schema.insert("pattern".to_owned(), json!(format!("^(19|[2-9][0-9])[0-9]{{2}}-{MONTH_AND_DAY}$")));
        }
        Some("date" | "date-time" | "uuid") | None => {}
        Some(_) => {
            schema.remove("format");
        }
    }
    if schema.get("$defs").and_then(Value::as_object).is_some_and(Map::is_empty) {
        schema.remove("$defs");
    }
    transform_subschemas(&mut Portable, schema);
}

struct Portable;

impl Transform for Portable {
    fn transform(&mut self, schema: &mut Schema) {
        make_portable(schema);
    }
}

#[cfg(test)]
mod tests;
