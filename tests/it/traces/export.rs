//! The spans that a collector gets.

use std::io::{BufRead, BufReader};
use std::process::Stdio;
use std::sync::{Arc, Mutex};

use bson::{DateTime, doc};
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use serde_json::json;
use tokio::net::TcpListener;

use super::receiver::Receiver;
use super::{PUBLISHER, TRACE_ID, header, publish_traced};
use offramp_testkit::eventually;
use offramp_testkit::fixtures::{cancellation, populate, with};
use offramp_testkit::smtp_sink::{Action, SmtpSink, Step, Tls};
use offramp_testkit::test_bed::TestBed;
use offramp_testkit::worker_process::WorkerProcess;

/// Spans are sent at once, so that tests need not wait.
const AT_ONCE: (&str, &str) = ("OTEL_BSP_SCHEDULE_DELAY", "50");

/// The first worker is killed after the commit and the event, while the mail server does not reply. The second one sends the email.
#[tokio::test(flavor = "multi_thread")]
async fn a_command_is_followed_through_two_workers_of_which_the_first_is_killed() {
    let bed = TestBed::new("followed").await;
    let receiver = Receiver::start().await;
    let silent =
        SmtpSink::scripted(Tls::No, |step, _| if step == Step::Rcpt { Action::Stall } else { Action::Ok }).await;
    populate(&bed).await;
    bed.watch_events().await;
    let url = receiver.url();
    let settings = [("OTEL_EXPORTER_OTLP_ENDPOINT", url.as_str()), AT_ONCE];
    let mut first = WorkerProcess::start_with(&bed, &silent.url(), &settings).await;

    publish_traced(&bed, &cancellation("c-1", "sub")).await;
    let event = receiver.span("the span of the event", |span| span.kind == SpanKind::Producer).await;
    let decision =
        receiver.span("the span of the command", |span| span.name == "decide subscription.cancellation").await;
    receiver.span("the span of the batch", |span| span.name.starts_with("process ")).await;
    eventually("the email to hang", || async {
        silent.commands().iter().any(|it| it.starts_with("RCPT")).then_some(())
    })
    .await;
    first.kill();
    // Instead of waiting for the end of its lease.
    let due = doc! { "$set": { "outbox.$[].due": DateTime::now() } };
    bed.collection("subscriptions").update_one(doc! { "_id": "sub" }, due).await.unwrap();
    let sink = SmtpSink::start().await;
    let second = WorkerProcess::start_with(&bed, &sink.url(), &settings).await;
    let email = receiver.span("the span of the email", |span| span.name.starts_with("email ")).await;
    bed.outboxes_empty().await;
    assert!(second.stop().await.success());
    println!("{}", receiver.tree(TRACE_ID));

    // The publisher's span → the command → its event and its email.
    assert_eq!((decision.trace_id.as_str(), decision.parent_id.as_str()), (TRACE_ID, PUBLISHER));
    assert_eq!((decision.kind, decision.attribute("offramp.outcome")), (SpanKind::Consumer, "applied"));
    assert_eq!(decision.attribute("offramp.document"), "subscriptions sub");
    assert_eq!(
        (decision.attribute("cloudevents.event_id"), decision.attribute("cloudevents.event_source")),
        ("c-1", "tests")
    );
    for span in [&event, &email] {
        assert_eq!((span.trace_id.as_str(), &span.parent_id), (TRACE_ID, &decision.span_id));
    }
    assert_eq!(email.attribute("offramp.outcome"), "sent");
    assert_eq!((email.kind, email.attribute("offramp.template")), (SpanKind::Client, "cancelled-by-admin"));
    assert_ne!(email.resource["service.instance.id"], decision.resource["service.instance.id"], "another process");
    assert_eq!(email.resource["service.name"], "offramp");

    // The event continues from its span; its envelope says what caused it.
    let (body, properties) = bed.take("test-events").await.unwrap();
    let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
    assert_eq!(header(&properties, "traceparent"), Some(event.traceparent()));
    assert_eq!(body["traceparent"], decision.traceparent());

    // The batch is a trace of its own. It and the command link to each other.
    let spans = receiver.spans();
    let queue = format!("{}.cancellation", bed.prefix);
    let batch = spans.iter().find(|span| span.name == format!("process {queue}")).unwrap();
    assert_eq!((batch.kind, batch.parent_id.as_str()), (SpanKind::Consumer, ""));
    assert_ne!(batch.trace_id, TRACE_ID);
    assert_eq!(batch.links, [(TRACE_ID.to_owned(), PUBLISHER.to_owned())]);
    assert_eq!(decision.links, [(batch.trace_id.clone(), batch.span_id.clone())]);
    assert_eq!(batch.attribute("messaging.batch.message_count"), "1");
    let mut steps: Vec<_> = spans.iter().filter(|span| span.parent_id == batch.span_id).collect();
    steps.sort_by_key(|span| span.begins_at);
    let steps: Vec<_> = steps.iter().map(|span| span.name.as_str()).collect();
    assert_eq!(steps, ["load", "commit", &format!("ack {queue}")]);

    // No personal data.
    for span in &spans {
        for value in span.attributes.values() {
            assert!(!value.contains("client@") && !value.contains("Roy"), "{}: {value}", span.name);
        }
    }
    bed.remove().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rejections_dead_letters_and_scheduled_changes_have_spans() {
    let bed = TestBed::new("spans").await;
    let receiver = Receiver::start().await;
    let sink = SmtpSink::start().await;
    populate(&bed).await;
    let over = doc! { "$set": { "expires_on": "2020-01-01" } };
    bed.collection("subscriptions").update_one(doc! { "_id": "sub" }, over).await.unwrap();
    let url = receiver.url();
    let settings = [
        ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", &*format!("{url}/v1/traces")),
        ("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20secret"),
        ("OTEL_SERVICE_NAME", "club"),
        ("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test"),
        AT_ONCE,
    ];
    let worker = WorkerProcess::start_with(&bed, &sink.url(), &settings).await;

    // A scheduled change is the root of what it causes.
    let sweep = receiver.span("the sweep", |span| span.name.starts_with("sweep ")).await;
    let ended = receiver.span("the event of the end", |span| span.name.ends_with(":subscription.ended")).await;
    assert_eq!((sweep.parent_id.as_str(), &ended.parent_id, &ended.trace_id), ("", &sweep.span_id, &sweep.trace_id));
    assert_eq!(sweep.resource["service.name"], "club");
    assert_eq!(sweep.resource["deployment.environment.name"], "test");

    publish_traced(&bed, &cancellation("late", "sub")).await;
    let rejected = receiver.span("the rejection", |span| span.attribute("cloudevents.event_id") == "late").await;
    assert_eq!((rejected.attribute("offramp.outcome"), rejected.has_failed), ("already_ended", false));

    publish_traced(&bed, &with(cancellation("misspelt", "sub"), "mnth", json!("2199-07"))).await;
    let invalid = receiver.span("the dead letter", |span| span.attribute("offramp.outcome") == "invalid").await;
    assert_eq!((invalid.trace_id.as_str(), invalid.parent_id.as_str()), (TRACE_ID, PUBLISHER));
    assert_eq!((invalid.attribute("error.type"), invalid.has_failed), ("invalid", true));
    let batch =
        receiver.span("its batch", |span| invalid.links.contains(&(span.trace_id.clone(), span.span_id.clone()))).await;
    receiver.span("the copy", |span| span.name == "publish" && span.parent_id == batch.span_id).await;

    assert!(worker.stop().await.success());
    assert!(receiver.authorizations().iter().all(|value| value == "Bearer secret"));
    assert!(!receiver.authorizations().is_empty());
    bed.remove().await;
}

/// Nothing waits for a collector: not the commands, and not the shutdown.
#[tokio::test(flavor = "multi_thread")]
async fn a_collector_that_is_unreachable_or_hangs_costs_spans_only() {
    let bed = TestBed::new("no-collector").await;
    let sink = SmtpSink::start().await;
    populate(&bed).await;
    // It accepts connections and never answers.
    let hanging = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let hanging = format!("http://{}", hanging.local_addr().unwrap());
    for (index, endpoint) in ["http://127.0.0.1:1", &hanging].into_iter().enumerate() {
        let settings = [
            ("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint),
            ("OTEL_EXPORTER_OTLP_HEADERS", "api-key=c2VjcmV0"),
            ("OTEL_BSP_MAX_QUEUE_SIZE", "1"),
            ("OFFRAMP_SHUTDOWN_SECONDS", "4"),
            AT_ONCE,
        ];
        let mut worker = WorkerProcess::spawn(&bed, &sink.url(), &settings, Stdio::piped());
        let log = Arc::new(Mutex::new(Vec::new()));
        let lines = BufReader::new(worker.take_log()).lines();
        std::thread::spawn({
            let log = Arc::clone(&log);
            move || lines.map_while(Result::ok).for_each(|line| log.lock().unwrap().push(line))
        });
        let worker = worker.ready().await;
        for command in 0..20 {
            publish_traced(&bed, &cancellation(&format!("c-{index}-{command}"), "sub")).await;
        }
        eventually("all commands to be settled", || async { (worker.settled().await >= 20).then_some(()) }).await;
        if index == 0 {
            let is_reported = || log.lock().unwrap().iter().any(|line| line.contains("cannot send spans"));
            eventually("the report", || async { is_reported().then_some(()) }).await;
        }
        let stopping = std::time::Instant::now();
        assert!(worker.stop().await.success());
        assert!(stopping.elapsed().as_secs() < 4, "{:?}", stopping.elapsed());
        let log = log.lock().unwrap();
        let reports = log.iter().filter(|line| line.contains("cannot send spans")).count();
        assert!(reports <= 1, "{log:#?}");
        let drops = log.iter().filter(|line| line.contains("queue full")).count();
        assert!(drops <= 1, "{log:#?}");
        assert!(!log.iter().any(|line| line.contains("c2VjcmV0")), "{log:#?}");
    }
    bed.remove().await;
}
