//! A recorded message, with its properties and headers.

use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable, LongString};
use serde_json::{Map, Value, json};

/// A message of a queue.
#[derive(Clone, Debug, PartialEq)]
pub struct Message {
    /// Without the prefix.
    pub queue: String,
    pub routing_key: String,
    /// The text properties, by their name in AMQP.
    pub properties: Map<String, Value>,
    /// By name: the type and the value.
    pub headers: Map<String, Value>,
    pub body: String,
}

impl Message {
    /// The id in the body; empty if the body is not JSON.
    pub fn id(&self) -> String {
        let body: Value = serde_json::from_str(&self.body).unwrap_or_default();
        body["id"].as_str().unwrap_or_default().to_owned()
    }

    /// As published.
    pub fn to_properties(&self) -> BasicProperties {
        let mut headers = FieldTable::default();
        for (name, value) in &self.headers {
            headers.insert(name.as_str().into(), to_amqp(value));
        }
        let mut properties = BasicProperties::default().with_delivery_mode(2).with_headers(headers);
        for (name, value) in &self.properties {
            let value = value.as_str().unwrap();
            properties = match name.as_str() {
                "content_type" => properties.with_content_type(value.into()),
                "correlation_id" => properties.with_correlation_id(value.into()),
                "message_id" => properties.with_message_id(value.into()),
                "app_id" => properties.with_app_id(value.into()),
                _ => panic!("unknown property {name}"),
            };
        }
        properties
    }

    pub(super) fn from_delivery(queue: &str, delivery: &lapin::message::Delivery) -> Self {
        let properties = &delivery.properties;
        assert_eq!(properties.delivery_mode(), &Some(2), "{queue}: not persistent");
        let texts = [
            ("content_type", properties.content_type()),
            ("correlation_id", properties.correlation_id()),
            ("message_id", properties.message_id()),
            ("app_id", properties.app_id()),
        ];
        let texts = texts.into_iter().filter_map(|(name, value)| Some((name, value.as_ref()?)));
        // Those of the broker are not published again.
        let headers = properties.headers().iter().flat_map(FieldTable::inner);
        let headers = headers.filter(|(name, _)| !name.as_str().starts_with("x-"));
        Self {
            queue: queue.to_owned(),
            routing_key: delivery.routing_key.to_string(),
            properties: texts.map(|(name, value)| (name.to_owned(), json!(value.as_str()))).collect(),
            headers: headers.map(|(name, value)| (name.to_string(), from_amqp(value))).collect(),
            body: String::from_utf8(delivery.data.clone()).unwrap(),
        }
    }

    pub(super) fn to_json(&self) -> Value {
        let Self { queue, routing_key, properties, headers, body } = self;
        json!({ "queue": queue, "routing_key": routing_key, "properties": properties, "headers": headers, "body": body })
    }

    pub(super) fn from_json(value: &Value) -> Self {
        let text = |name: &str| value[name].as_str().unwrap().to_owned();
        let map = |name: &str| value[name].as_object().unwrap().clone();
        Self {
            queue: text("queue"),
            routing_key: text("routing_key"),
            properties: map("properties"),
            headers: map("headers"),
            body: text("body"),
        }
    }
}

fn from_amqp(value: &AMQPValue) -> Value {
    match value {
        AMQPValue::LongString(text) => json!({ "longstr": text.to_string() }),
        AMQPValue::LongInt(number) => json!({ "int": number }),
        AMQPValue::Boolean(value) => json!({ "bool": value }),
        other => panic!("a header of a type that recordings do not know: {other:?}"),
    }
}

fn to_amqp(value: &Value) -> AMQPValue {
    let (kind, value) = value.as_object().unwrap().iter().next().unwrap();
    match kind.as_str() {
        "longstr" => AMQPValue::LongString(LongString::from(value.as_str().unwrap())),
        "int" => AMQPValue::LongInt(i32::try_from(value.as_i64().unwrap()).unwrap()),
        "bool" => AMQPValue::Boolean(value.as_bool().unwrap()),
        _ => panic!("unknown type {kind}"),
    }
}
