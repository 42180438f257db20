//! A clock that differs from the database's stops the work.

use chrono::{TimeDelta, Utc};

use super::{logging, scheduled};
use offramp_testkit::eventually;
use offramp_testkit::fixtures::{cancellation, populate};
use offramp_testkit::proxy::Proxy;
use offramp_testkit::smtp_sink::SmtpSink;
use offramp_testkit::test_bed::TestBed;

/// Leases and ends depend on this machine's clock, so nothing is decided while it is wrong.
#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_clock_pauses_processing() {
    let mut bed = TestBed::new("clock").await;
    let sink = SmtpSink::start().await;
    populate(&bed).await;
    let events = bed.watch_events().await;
    let (proxy, url) = Proxy::in_front_of_mongodb(&bed.mongodb_url).await;
    bed.mongodb_url = url;
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("log");
    let worker = logging(&bed, &sink, &log).await;

    proxy.shift_clock(-62);
    eventually("a worker that is not ready because of its clock", || async {
        let answer = worker.readyz().await.filter(|answer| answer.status == 503)?;
        let seconds = ["62", "61"].map(|seconds| format!("this machine's clock is {seconds} s ahead of MongoDB's"));
        seconds.iter().any(|reason| answer.body.contains(reason)).then_some(())
    })
    .await;
    bed.collection("subscriptions").insert_one(scheduled("over", Utc::now() - TimeDelta::hours(1))).await.unwrap();
    bed.command(&cancellation("c-1", "sub")).await;
    eventually("the command to be requeued", || async {
        worker.readyz().await.filter(|answer| answer.body.contains("MongoDB is unavailable: this machine's clock"))
    })
    .await;
    for id in ["over", "sub"] {
        assert!(bed.document("subscriptions", id).await.unwrap().get("history").is_none(), "{id}");
    }

    proxy.shift_clock(0);
    events.next(&bed, |event| event["type"] == "subscription.ended").await;
    eventually("the command", || async {
        let document = bed.document("subscriptions", "sub").await.unwrap();
        document.get_str("status").is_ok_and(|status| status == "cancellation_scheduled").then_some(())
    })
    .await;
    eventually("a ready worker", || async { worker.readyz().await.filter(|answer| answer.status == 200) }).await;
    assert!(worker.stop().await.success());
    let log = std::fs::read_to_string(log).unwrap();
    assert_eq!(log.matches("processing is paused: this machine's clock").count(), 1, "{log}");
    assert_eq!(log.matches("agrees with MongoDB's again").count(), 1, "{log}");
    bed.remove().await;
}
