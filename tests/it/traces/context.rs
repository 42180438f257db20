//! The trace of a command in everything that it causes. No collector is needed for that.

use lapin::BasicProperties;
use lapin::options::QueueDeclareOptions;
use lapin::types::FieldTable;
use serde_json::{Value, json};

use super::{header, traceparent, with_headers};
use offramp_testkit::eventually;
use offramp_testkit::fixtures::{cancellation, populate};
use offramp_testkit::smtp_sink::SmtpSink;
use offramp_testkit::test_bed::TestBed;
use offramp_testkit::worker_process::WorkerProcess;

const STATE: &str = "rojo=00f067aa0cc902c7";

/// Its context, in the envelope.
fn traced(mut command: Value) -> Value {
    for (name, value) in [("traceparent", &*traceparent()), ("tracestate", STATE), ("correlationid", "order 42")] {
        command[name] = json!(value);
    }
    command
}

#[track_caller]
fn check_envelope(event: &Value) {
    for (name, value) in [("traceparent", &*traceparent()), ("tracestate", STATE), ("correlationid", "order 42")] {
        assert_eq!(event[name], value, "{name} of {event}");
    }
}

#[track_caller]
fn check_headers(properties: &BasicProperties) {
    for (name, value) in [("traceparent", &*traceparent()), ("tracestate", STATE), ("correlationid", "order 42")] {
        assert_eq!(header(properties, name).as_deref(), Some(value), "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_that_a_command_causes_has_its_trace() {
    let bed = TestBed::new("traced").await;
    // Emails stay in the outbox.
    let (sink, _) = SmtpSink::unavailable().await;
    populate(&bed).await;
    bed.watch_events().await;
    let worker = WorkerProcess::start(&bed, &sink.url()).await;

    // An event, and an email in the outbox.
    bed.command(&traced(cancellation("c-1", "sub"))).await;
    let (event, properties) = eventually("the event", || bed.take("test-events")).await;
    let event: Value = serde_json::from_slice(&event).unwrap();
    assert_eq!((&event["type"], &event["causationid"]), (&json!("subscription.cancellation-scheduled"), &json!("c-1")));
    check_envelope(&event);
    check_headers(&properties);
    let document = bed.document("subscriptions", "sub").await.unwrap();
    let entries = document.get_array("outbox").unwrap();
    let email =
        entries.iter().map(|entry| entry.as_document().unwrap()).find(|entry| entry.contains_key("mail")).unwrap();
    check_envelope(&serde_json::to_value(email.get_document("trace").unwrap()).unwrap());

    // A rejection, and its reply. The context in the headers, which is that of the hop, goes before that in the envelope.
    let answers = format!("{}.test-answers", bed.prefix);
    let options = QueueDeclareOptions { exclusive: true, ..Default::default() };
    bed.channel.queue_declare(answers.as_str().into(), options, FieldTable::default()).await.unwrap();
    let hop = traceparent().replace("b7ad", "aaaa");
    let early = traced(offramp_testkit::fixtures::with(cancellation("c-2", "sub"), "month", json!("2199-05")));
    let properties =
        with_headers(&[("traceparent", &hop), ("correlationid", "")]).with_reply_to(answers.as_str().into());
    bed.publish_with("subscription.cancellation", early.to_string().as_bytes(), properties).await;
    for queue in ["test-events", "test-answers"] {
        let (event, properties) = eventually("the rejection", || bed.take(queue)).await;
        let event: Value = serde_json::from_slice(&event).unwrap();
        assert_eq!((&event["type"], &event["traceparent"]), (&json!("command.rejected"), &json!(hop)));
        assert_eq!((event.get("tracestate"), &event["correlationid"]), (None, &json!("order 42")));
        assert_eq!(header(&properties, "traceparent"), Some(hop.clone()));
    }

    // A retry copy and a dead letter are the publisher's message: its body, and its headers.
    let headers = [("traceparent", &*traceparent()), ("tracestate", STATE), ("correlationid", "order 42")];
    let missing = traced(cancellation("c-3", "no-such")).to_string();
    bed.publish_with("subscription.cancellation", missing.as_bytes(), with_headers(&headers)).await;
    let (copy, properties) = eventually("the retry copy", || bed.take("retry.5s")).await;
    assert_eq!(copy, missing.as_bytes());
    check_headers(&properties);
    bed.publish_with("subscription.cancellation", b"{nonsense", with_headers(&headers)).await;
    let letter = bed.dead_letter().await;
    assert_eq!((letter.body.as_slice(), letter.header("traceparent")), (&b"{nonsense"[..], traceparent()));

    // What is invalid is ignored, and the command is decided.
    let mut invalid = traced(cancellation("c-4", "no-such-either"));
    invalid["traceparent"] = json!({ "not": "a text" });
    bed.command_at_attempt(&invalid, 3).await;
    let (event, _) = eventually("the rejection", || bed.take("test-events")).await;
    let event: Value = serde_json::from_slice(&event).unwrap();
    assert_eq!((&event["causationid"], event.get("traceparent")), (&json!("c-4"), None));
    assert_eq!(event["correlationid"], "order 42");

    assert!(worker.stop().await.success());
    bed.remove().await;
}
