//! Traces: what a command causes belongs to its trace, whoever sends it; and a collector gets the spans, or costs nothing.

mod context;
mod export;
mod receiver;

use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable};
use serde_json::Value;

use offramp_testkit::test_bed::TestBed;

/// The trace of the publisher, sampled.
const TRACE_ID: &str = "0af7651916cd43dd8448eb211c80319c";
const PUBLISHER: &str = "b7ad6b7169203331";

fn traceparent() -> String {
    format!("00-{TRACE_ID}-{PUBLISHER}-01")
}

/// Properties with these text headers.
fn with_headers(headers: &[(&str, &str)]) -> BasicProperties {
    let mut table = FieldTable::default();
    for (name, value) in headers {
        table.insert((*name).into(), AMQPValue::LongString((*value).into()));
    }
    BasicProperties::default().with_headers(table)
}

fn header(properties: &BasicProperties, name: &str) -> Option<String> {
    match properties.headers().as_ref()?.inner().get(name)? {
        AMQPValue::LongString(text) => Some(text.to_string()),
        other => panic!("{name}: {other:?}"),
    }
}

/// Publishes a command as an instrumented library does: its context is in the headers.
async fn publish_traced(bed: &TestBed, command: &Value) {
    let properties = with_headers(&[("traceparent", &traceparent())]);
    bed.publish_with(command["type"].as_str().unwrap(), command.to_string().as_bytes(), properties).await;
}
