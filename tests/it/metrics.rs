//! What Prometheus reads from a worker: every value that the documentation names is measured.

use std::collections::HashMap;

use bson::{DateTime, doc};
use chrono::{TimeDelta, Utc};
use offramp::amqp::{RetryDelay, Topology};
use offramp_domain::command_ref::CommandType;
use serde_json::json;

use offramp_testkit::eventually;
use offramp_testkit::fixtures::{cancellation, command, populate, subscription};
use offramp_testkit::smtp_sink::SmtpSink;
use offramp_testkit::test_bed::TestBed;
use offramp_testkit::worker_process::{WorkerProcess, metrics_of};

/// The value of each series.
async fn series(worker: &WorkerProcess) -> HashMap<String, f64> {
    let page = metrics_of(worker.port()).await.unwrap_or_default();
    let samples = page.lines().filter(|line| !line.starts_with('#'));
    samples
        .filter_map(|line| line.rsplit_once(' '))
        .map(|(name, value)| (name.to_owned(), value.parse().unwrap()))
        .collect()
}

async fn eventually_is(worker: &WorkerProcess, name: &str, is: impl Fn(f64) -> bool) {
    eventually(name, || async { series(worker).await.get(name).copied().filter(|value| is(*value)) }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_part_of_a_worker_is_measured() {
    let bed = TestBed::new("measured").await;
    let (sink, mail_server_is_back) = SmtpSink::unavailable().await;
    populate(&bed).await;
    let mut requested = subscription("requested", "org", "acc");
    let an_hour_ago = Utc::now() - TimeDelta::hours(1);
    requested.insert("status", "cancellation_requested");
    requested.insert("cancellation_request", doc! { "requested_at": DateTime::from(an_hour_ago) });
    bed.collection("subscriptions").insert_one(requested).await.unwrap();
    let failed = doc! {
        "id": "e2d58b3f-0f3c-4b4b-a0f3-3d4b2b6f2a11", "kind": "email", "failed_at": DateTime::now(),
        "mail": { "template": "payment-failed", "to": { "email": "gone@home.example" } },
    };
    let kept = doc! { "$set": { "outbox": [failed] } };
    bed.collection("accounts").update_one(doc! { "_id": "acc" }, kept).await.unwrap();

    let worker = WorkerProcess::start(&bed, &sink.url()).await;
    bed.command(&cancellation("c-1", "sub")).await;
    bed.command(&cancellation("c-1", "sub")).await;
    let misspelt = command("c-2", "payment.failure", json!({ "organisation_id": "org" }));
    bed.command(&misspelt).await;

    let is_one = |value: f64| (value - 1.0).abs() < f64::EPSILON;
    // What waits, while the mail server is unavailable.
    eventually_is(&worker, "offramp_outbox_entries{kind=\"email\",state=\"pending\"}", |value| value >= 1.0).await;
    eventually_is(&worker, "offramp_outbox_oldest_due_seconds{kind=\"email\"}", |value| value > 2.0).await;
    eventually_is(&worker, "offramp_outbox_entries{kind=\"email\",state=\"failed\"}", is_one).await;
    eventually_is(&worker, "offramp_outbox_entries{kind=\"event\",state=\"failed\"}", |value| value == 0.0).await;
    eventually_is(&worker, "offramp_outbox_entries{kind=\"event\",state=\"pending\"}", |value| value == 0.0).await;
    eventually_is(&worker, "offramp_dead_letters", is_one).await;
    eventually_is(&worker, "offramp_requests_pending", is_one).await;
    eventually_is(&worker, "offramp_requests_oldest_seconds", |value| (3_600.0..4_000.0).contains(&value)).await;
    let topology = Topology::new(bed.prefix.as_str());
    let work = CommandType::ALL.map(|kind| topology.work_queue(kind));
    for queue in work.into_iter().chain(RetryDelay::ALL.map(|delay| topology.retry_queue(delay))) {
        eventually_is(&worker, &format!("offramp_queue_messages{{queue=\"{queue}\"}}"), |value| value == 0.0).await;
    }

    mail_server_is_back.store(true, std::sync::atomic::Ordering::Relaxed);
    let lane = "{lane=\"subscription.cancellation\"}";
    let at_least_one = |value: f64| value >= 1.0;
    for name in [
        "offramp_commands_total{lane=\"subscription.cancellation\",outcome=\"applied\"}",
        "offramp_commands_total{lane=\"subscription.cancellation\",outcome=\"unchanged\"}",
        "offramp_commands_total{lane=\"payment.failure\",outcome=\"invalid\"}",
        "offramp_command_duration_seconds_count{lane=\"payment.failure\"}",
        &format!("offramp_command_duration_seconds_count{lane}"),
        &format!("offramp_command_age_seconds_count{lane}"),
        &format!("offramp_batch_size_count{lane}"),
        &format!("offramp_lane_ready{lane}"),
        "offramp_emails_total{template=\"cancelled-by-admin\",outcome=\"sent\"}",
        "offramp_emails_total{template=\"cancelled-by-admin\",outcome=\"deferred\"}",
        "offramp_smtp_duration_seconds_count{outcome=\"sent\"}",
        "offramp_smtp_duration_seconds_count{outcome=\"deferred\"}",
        "offramp_email_delivery_seconds_count",
        "offramp_events_total{outcome=\"published\"}",
        "offramp_broker_connections_total{purpose=\"subscription.cancellation\"}",
        "offramp_broker_connections_total{purpose=\"publisher\"}",
        "offramp_broker_connections_total{purpose=\"queues\"}",
        "offramp_sweep_last_success_timestamp_seconds",
        "process_open_fds",
    ] {
        eventually_is(&worker, name, at_least_one).await;
    }
    for operation in ["load", "commit", "claim", "mark", "sweep", "measure", "ping"] {
        let name = format!("offramp_mongodb_duration_seconds_count{{operation=\"{operation}\"}}");
        eventually_is(&worker, &name, at_least_one).await;
    }
    eventually_is(&worker, "offramp_outbox_entries{kind=\"email\",state=\"pending\"}", |value| value == 0.0).await;
    eventually_is(&worker, "offramp_outbox_oldest_due_seconds{kind=\"email\"}", |value| value == 0.0).await;
    let all = series(&worker).await;
    // The email waited for the mail server: the time since its decision is known, whoever claimed it.
    assert!(all["offramp_email_delivery_seconds_sum"] > 2.0, "{all:?}");
    assert!(all["offramp_sweep_last_success_timestamp_seconds"] > 1.7e9, "{all:?}");
    // The example's `time` is far in the future.
    assert!(all[&format!("offramp_command_age_seconds_sum{lane}")].abs() < 1e-9, "{all:?}");
    assert!(worker.stop().await.success());
    bed.remove().await;
}
