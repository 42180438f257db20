//! Redeliveries: a message that crashes workers becomes a dead letter, and no other message does.

use std::collections::BTreeSet;
use std::time::Duration;

use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable};
use offramp::amqp::Publisher;
use offramp::amqp::message::REDELIVERIES_MAX;
use offramp_domain::dead_letter::DeadLetterReason;
use tokio::time::{Instant, sleep, timeout_at};
use tokio_util::sync::CancellationToken;

use super::{SOON, bodies, consumer, lane, next, redeliver, text};
use offramp_testkit::eventually;
use offramp_testkit::rabbit::Rabbit;

#[tokio::test]
async fn dead_letters_survive_any_number_of_redeliveries() {
    Rabbit::declared(async |rabbit| {
        let queue = rabbit.topology.dead_letter_queue();
        rabbit.publish("", &queue, b"kept", BasicProperties::default().with_delivery_mode(2)).await;
        // More than RabbitMQ 4's default limit of 20.
        for _ in 0..50 {
            rabbit.redeliver(&queue, 1).await;
        }
        assert_eq!(rabbit.await_message(&queue).await.data, b"kept");
    })
    .await;
}

#[tokio::test]
async fn the_broker_dead_letters_a_message_at_the_delivery_limit() {
    Rabbit::declared(async |rabbit| {
        rabbit.commands(["poison"]).await;
        // A delivery limit of 100 allows 101 deliveries.
        for _ in 0..101 {
            rabbit.redeliver(&rabbit.queue(), 1).await;
        }
        assert_eq!(rabbit.await_message(&rabbit.topology.dead_letter_queue()).await.data, b"poison");
        assert_eq!(rabbit.count(&rabbit.queue()).await, 0);
    })
    .await;
}

#[tokio::test]
async fn killed_workers_turn_no_valid_message_into_a_dead_letter() {
    Rabbit::declared(async |rabbit| {
        let mut waiting: BTreeSet<String> = BTreeSet::new();
        let mut redeliveries_max = 0;
        let never = CancellationToken::new();
        for life in 0..61 {
            let texts: Vec<String> = (0..20).map(|index| format!("{life}-{index}")).collect();
            rabbit.commands(texts.iter().map(String::as_str)).await;
            waiting.extend(texts);
            let mut consumer = consumer(rabbit, &lane());
            let span = if life < 60 { Duration::from_millis(fastrand::u64(20..=600)) } else { SOON };
            let end = Instant::now() + span;
            while !waiting.is_empty() {
                let Ok(batch) = timeout_at(end, consumer.next_batch(50, &never)).await else { break };
                let batch = batch.unwrap();
                redeliveries_max =
                    batch.deliveries.iter().map(|one| one.delivery_count).fold(redeliveries_max, u64::max);
                // Processing takes time, and the worker may be killed meanwhile (but not during an ack, whose outcome would be unknown).
                if timeout_at(end, sleep(Duration::from_millis(10))).await.is_err() {
                    break;
                }
                let texts: Vec<_> = bodies(&batch).into_iter().map(str::to_owned).collect();
                batch.ack().await.unwrap();
                waiting.retain(|text| !texts.contains(text));
            }
        }
        println!("at most {redeliveries_max} redeliveries");
        assert_eq!(waiting, BTreeSet::new());
        assert!(redeliveries_max < REDELIVERIES_MAX, "{redeliveries_max}");
        assert_eq!(rabbit.count(&rabbit.topology.dead_letter_queue()).await, 0);
    })
    .await;
}

#[tokio::test]
async fn only_the_message_that_crashes_workers_becomes_a_dead_letter() {
    Rabbit::declared(async |rabbit| {
        let texts: Vec<String> = (0..200).map(|index| index.to_string()).collect();
        let before: Vec<_> = texts[..100].iter().map(String::as_str).collect();
        let behind: Vec<_> = texts[100..].iter().map(String::as_str).collect();
        rabbit.commands(before.iter().copied().chain(["poison"]).chain(behind)).await;
        let publisher = Publisher::new(rabbit.broker());
        let shutdown = CancellationToken::new();
        // Two workers: a message that crashes one is redelivered to the other.
        let worker = async || {
            let (mut seen, mut redeliveries_max, mut kills) = (BTreeSet::new(), 0, 0);
            'life: loop {
                let mut consumer = consumer(rabbit, &lane());
                while let Some(batch) = consumer.next_batch(50, &shutdown).await {
                    let poison = batch.deliveries.iter().find(|delivery| delivery.body == b"poison");
                    if let Some(poison) = poison {
                        if !poison.exceeded_redeliveries() {
                            kills += 1;
                            continue 'life;
                        }
                        let error = "It crashed every worker.";
                        let dead = poison.dead_letter(
                            &rabbit.topology,
                            DeadLetterReason::Exhausted,
                            error,
                            &rabbit.queue(),
                            chrono::Utc::now(),
                        );
                        assert_eq!(publisher.publish_all(&[dead]).await, [Ok(())]);
                    } else {
                        redeliveries_max =
                            batch.deliveries.iter().map(|one| one.delivery_count).fold(redeliveries_max, u64::max);
                        sleep(Duration::from_millis(5)).await;
                    }
                    let texts: Vec<_> = bodies(&batch).into_iter().map(str::to_owned).collect();
                    if batch.ack().await.is_ok() {
                        seen.extend(texts);
                    }
                }
                consumer.close().await;
                return (seen, redeliveries_max, kills);
            }
        };
        let dead = async {
            let queue = rabbit.topology.dead_letter_queue();
            eventually("it is a dead letter", async || rabbit.count(&queue).await == 1).await;
            eventually("the others are done", async || rabbit.count(&rabbit.queue()).await == 0).await;
            shutdown.cancel();
        };
        let (a, b, ()) = tokio::join!(worker(), worker(), dead);
        println!("at most {} redeliveries; {} kills", a.1.max(b.1), a.2 + b.2);
        assert_eq!(a.0.union(&b.0).count(), 201);
        assert!(a.1.max(b.1) < REDELIVERIES_MAX, "{} {}", a.1, b.1);
        let dead = rabbit.await_message(&rabbit.topology.dead_letter_queue()).await;
        assert_eq!(dead.data, b"poison");
        assert_eq!(text(dead.properties.headers().as_ref().unwrap(), "offramp-reason"), "exhausted");
        assert_eq!(rabbit.count(&rabbit.queue()).await, 0);
        publisher.close().await;
    })
    .await;
}

#[tokio::test]
async fn a_delivery_count_set_by_a_publisher_is_not_counted_as_redeliveries() {
    Rabbit::declared(async |rabbit| {
        // As on a message moved here from another quorum queue.
        let mut headers = FieldTable::default();
        headers.insert("x-delivery-count".into(), AMQPValue::LongLongInt(25));
        let properties = BasicProperties::default().with_headers(headers);
        rabbit.publish(&rabbit.prefix, "subscription.cancellation", b"moved", properties).await;
        // RabbitMQ 3 counts a nack with requeue as a redelivery; RabbitMQ 4 does not.
        let mut first = consumer(rabbit, &lane());
        next(&mut first).await.release().await;
        let again = next(&mut first).await;
        assert!(again.deliveries[0].redelivered);
        assert!(again.deliveries[0].delivery_count <= 1, "{}", again.deliveries[0].delivery_count);
        drop(again);
        first.close().await;
        // Both count a closed channel.
        let mut second = consumer(rabbit, &lane());
        let batch = next(&mut second).await;
        assert!((1..=2).contains(&batch.deliveries[0].delivery_count), "{}", batch.deliveries[0].delivery_count);
        assert!(!batch.deliveries[0].exceeded_redeliveries());
        second.close().await;
    })
    .await;
}

#[tokio::test]
async fn batches_grow_again_after_many_redeliveries() {
    Rabbit::declared(async |rabbit| {
        let texts: Vec<String> = (0..500).map(|index| index.to_string()).collect();
        rabbit.commands(texts.iter().map(String::as_str)).await;
        redeliver(rabbit, 6).await;

        let mut consumer = consumer(rabbit, &lane());
        // Each message arrives once; RabbitMQ redelivers in no particular order.
        let (mut waiting, mut sizes) = (BTreeSet::from_iter(texts), Vec::new());
        while !waiting.is_empty() {
            let batch = next(&mut consumer).await;
            sizes.push(batch.deliveries.len());
            for body in bodies(&batch) {
                assert!(waiting.remove(body), "{body}");
            }
            batch.ack().await.unwrap();
        }
        assert_eq!(sizes[..3], [1, 1, 2]);
        assert!(sizes.iter().any(|size| *size >= 64), "{sizes:?}");
        consumer.close().await;
    })
    .await;
}

#[tokio::test]
async fn full_prefetch_returns_on_a_quiet_queue_after_many_redeliveries() {
    Rabbit::declared(async |rabbit| {
        rabbit.commands(["one", "two", "three"]).await;
        redeliver(rabbit, 6).await;
        let mut consumer = consumer(rabbit, &lane());
        for _ in 0..2 {
            next(&mut consumer).await.ack().await.unwrap();
        }
        // The prefetch is now two, and one message waits.
        next(&mut consumer).await.ack().await.unwrap();
        rabbit.commands(["fresh"]).await;
        let batch = next(&mut consumer).await;
        assert_eq!(bodies(&batch), ["fresh"]);
        batch.ack().await.unwrap();

        let texts: Vec<String> = (0..100).map(|index| index.to_string()).collect();
        rabbit.commands(texts.iter().map(String::as_str)).await;
        // All are delivered before any ack.
        let batch = consumer.next_batch(1, &CancellationToken::new()).await.unwrap();
        eventually("all are delivered", async || rabbit.count(&rabbit.queue()).await == 0).await;
        batch.ack().await.unwrap();
        consumer.close().await;
    })
    .await;
}
