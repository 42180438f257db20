//! Retry copies, dead letters and replays: what they keep of the original message.

use std::time::Duration;

use chrono::DateTime;
use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable, LongString};
use offramp::amqp::{Publisher, RetryDelay};
use offramp_domain::dead_letter::DeadLetterReason;
use tokio::time::Instant;

use super::{bodies, consumer, lane, next, text};
use offramp_testkit::eventually;
use offramp_testkit::rabbit::Rabbit;

#[tokio::test]
async fn a_retry_copy_returns_unchanged_after_its_delay_and_can_be_retried_again() {
    Rabbit::declared(async |rabbit| {
        let mut headers = FieldTable::default();
        headers.insert("tenant".into(), AMQPValue::LongString("north".into()));
        headers.insert("x-first-death-queue".into(), AMQPValue::LongString("elsewhere".into()));
        let mut cc = lapin::types::FieldArray::default();
        cc.push(AMQPValue::LongString(rabbit.topology.dead_letter_queue().as_str().into()));
        headers.insert("CC".into(), AMQPValue::FieldArray(cc));
        let properties = BasicProperties::default()
            .with_content_type("application/json".into())
            .with_correlation_id("c-1".into())
            .with_message_id("m-1".into())
            .with_reply_to("answers".into())
            .with_type("t".into())
            .with_app_id("upstream".into())
            .with_user_id("guest".into())
            .with_timestamp(1_780_000_000)
            .with_expiration("600000".into())
            .with_priority(9)
            .with_headers(headers);
        let body = "{\"é\": 1}\n\0".as_bytes();
        rabbit.publish(&rabbit.prefix, "subscription.cancellation", body, properties).await;

        let publisher = Publisher::new(rabbit.broker());
        let mut consumer = consumer(rabbit, &lane());
        for attempt in 0..=2 {
            let batch = next(&mut consumer).await;
            let delivery = &batch.deliveries[0];
            assert_eq!((batch.deliveries.len(), delivery.attempt, &delivery.body[..]), (1, attempt, body));
            assert_eq!(delivery.reply_to.as_deref(), Some("answers"));
            assert_eq!(delivery.header("tenant"), Some("north"));
            let properties = delivery.properties();
            assert_eq!(properties.content_type().as_ref().unwrap().as_str(), "application/json");
            assert_eq!(properties.correlation_id().as_ref().unwrap().as_str(), "c-1");
            assert_eq!(properties.message_id().as_ref().unwrap().as_str(), "m-1");
            assert_eq!(properties.kind().as_ref().unwrap().as_str(), "t");
            assert_eq!(properties.app_id().as_ref().unwrap().as_str(), "upstream");
            assert_eq!(properties.timestamp(), &Some(1_780_000_000));

            let copy = delivery.retry_copy(&rabbit.topology, &rabbit.queue(), RetryDelay::S5);
            let sent = copy.properties().headers().as_ref().unwrap();
            let names: Vec<_> = sent.inner().keys().map(lapin::types::ShortString::as_str).collect();
            assert_eq!(names, ["offramp-attempt", "tenant"]);
            assert_eq!((copy.properties().expiration(), copy.properties().user_id()), (&None, &None));
            assert_eq!(copy.properties().priority(), &None);
            if attempt < 2 {
                let began = Instant::now();
                assert_eq!(publisher.publish_all(&[copy]).await, [Ok(())]);
                batch.ack().await.unwrap();
                eventually("it is back", async || {
                    rabbit.count(&rabbit.topology.retry_queue(RetryDelay::S5)).await == 0
                })
                .await;
                assert!(began.elapsed() > Duration::from_secs(4), "back after {:?}", began.elapsed());
            } else {
                batch.ack().await.unwrap();
            }
        }
        assert_eq!(rabbit.count(&rabbit.queue()).await, 0);
        // With CC still on the copy, the broker would have sent it here too.
        assert_eq!(rabbit.count(&rabbit.topology.dead_letter_queue()).await, 0);
        consumer.close().await;
        publisher.close().await;
    })
    .await;
}

#[tokio::test]
async fn a_dead_letter_carries_its_reason_and_a_replay_removes_it() {
    Rabbit::declared(async |rabbit| {
        let properties = BasicProperties::default().with_priority(9);
        rabbit.publish(&rabbit.prefix, "subscription.cancellation", b"not json", properties).await;
        let publisher = Publisher::new(rabbit.broker());
        let mut consumer = consumer(rabbit, &lane());
        let batch = next(&mut consumer).await;
        let died_at = DateTime::parse_from_rfc3339("2026-06-14T08:30:00.250Z").unwrap().to_utc();
        let error = format!("data.month is not a month {}", "é".repeat(5_000));
        let copy = batch.deliveries[0].dead_letter(
            &rabbit.topology,
            DeadLetterReason::Invalid,
            &error,
            &rabbit.queue(),
            died_at,
        );
        assert_eq!(publisher.publish_all(&[copy]).await, [Ok(())]);
        batch.ack().await.unwrap();
        let dead = rabbit.await_message(&rabbit.topology.dead_letter_queue()).await;
        assert_eq!(dead.data, b"not json");
        assert_eq!(dead.properties.priority(), &None);
        let headers = dead.properties.headers().clone().unwrap();
        assert_eq!(text(&headers, "offramp-reason"), "invalid");
        assert!(text(&headers, "offramp-error").starts_with("data.month is not a month é"));
        assert!(text(&headers, "offramp-error").len() <= 2_000);
        assert_eq!(text(&headers, "offramp-queue"), rabbit.queue());
        assert_eq!(text(&headers, "offramp-died-at"), "2026-06-14T08:30:00.250Z");
        assert_eq!(headers.inner().get("offramp-attempt"), Some(&AMQPValue::LongInt(0)));

        let again = offramp::amqp::Delivery::from(dead).replay_copy(&rabbit.queue());
        assert_eq!(publisher.publish_all(&[again]).await, [Ok(())]);
        let batch = next(&mut consumer).await;
        assert_eq!(bodies(&batch), ["not json"]);
        assert_eq!(batch.deliveries[0].properties().headers().clone().unwrap_or_default(), FieldTable::default());
        batch.ack().await.unwrap();
        consumer.close().await;
        publisher.close().await;
    })
    .await;
}

#[tokio::test]
async fn a_message_with_headers_as_large_as_a_frame_can_become_a_dead_letter() {
    Rabbit::declared(async |rabbit| {
        let mut headers = FieldTable::default();
        headers.insert("ballast".into(), AMQPValue::LongString(LongString::from("x".repeat(129_000))));
        let properties = BasicProperties::default().with_headers(headers).with_message_id("m-1".into());
        rabbit.publish(&rabbit.prefix, "subscription.cancellation", b"heavy", properties).await;
        let publisher = Publisher::new(rabbit.broker());
        let mut consumer = consumer(rabbit, &lane());
        let batch = next(&mut consumer).await;
        let copy = batch.deliveries[0].dead_letter(
            &rabbit.topology,
            DeadLetterReason::Invalid,
            &"e".repeat(5_000),
            &rabbit.queue(),
            chrono::Utc::now(),
        );
        assert_eq!(publisher.publish_all(&[copy]).await, [Ok(())]);
        batch.ack().await.unwrap();
        assert_eq!(rabbit.await_message(&rabbit.topology.dead_letter_queue()).await.data, b"heavy");
        consumer.close().await;
        publisher.close().await;
    })
    .await;
}
