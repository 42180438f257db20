//! Consuming: batches, acknowledgements, deliveries that are set aside, and stopping.

use std::collections::BTreeMap;
use std::time::Duration;

use offramp::amqp::{Consumer, DeliverySetAside, LaneState};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use super::{SOON, bodies, consumer, lane, next, redeliver, take};
use offramp_domain::command_ref::CommandType;
use offramp_testkit::eventually;
use offramp_testkit::rabbit::Rabbit;

#[tokio::test]
async fn a_batch_holds_the_waiting_messages_and_one_ack_acknowledges_all() {
    Rabbit::declared(async |rabbit| {
        let texts: Vec<String> = (0..30).map(|index| index.to_string()).collect();
        rabbit.commands(texts.iter().map(String::as_str)).await;
        let mut consumer = consumer(rabbit, &lane());
        let mut seen = Vec::new();
        while seen.len() < 30 {
            let batch = timeout(SOON, consumer.next_batch(7, &CancellationToken::new())).await.unwrap().unwrap();
            assert!((1..=7).contains(&batch.deliveries.len()));
            seen.extend(bodies(&batch).into_iter().map(str::to_owned));
            batch.ack().await.unwrap();
        }
        assert_eq!(seen, texts);
        consumer.close().await;
        assert_eq!(rabbit.count(&rabbit.queue()).await, 0);
    })
    .await;
}

#[tokio::test]
async fn a_released_or_dropped_batch_is_redelivered() {
    Rabbit::declared(async |rabbit| {
        rabbit.commands(["one", "two"]).await;
        let mut consumer = consumer(rabbit, &lane());
        let mut seen = Vec::new();
        next(&mut consumer).await.release().await;
        drop(next(&mut consumer).await);
        while seen.len() < 2 {
            let batch = next(&mut consumer).await;
            assert!(batch.deliveries.iter().all(|delivery| delivery.redelivered));
            seen.extend(bodies(&batch).into_iter().map(str::to_owned));
            batch.ack().await.unwrap();
        }
        seen.sort();
        assert_eq!(seen, ["one", "two"]);
        consumer.close().await;
        assert_eq!(rabbit.count(&rabbit.queue()).await, 0);
    })
    .await;
}

#[tokio::test]
async fn a_later_batch_cannot_acknowledge_an_earlier_one() {
    Rabbit::declared(async |rabbit| {
        rabbit.commands(["one", "two"]).await;
        let mut consumer = consumer(rabbit, &lane());
        let never = CancellationToken::new();
        let first = consumer.next_batch(1, &never).await.unwrap();
        let second = consumer.next_batch(1, &never).await.unwrap();
        assert_eq!((bodies(&first), bodies(&second)), (vec!["one"], vec!["two"]));
        assert!(second.ack().await.unwrap_err().to_string().contains("earlier batch"));
        drop(first);
        let mut seen = Vec::new();
        while seen.len() < 2 {
            seen.extend(take(&mut consumer).await);
        }
        consumer.close().await;
    })
    .await;
}

#[tokio::test]
async fn a_delivery_set_aside_is_not_acknowledged_by_later_batches_and_is_redelivered() {
    Rabbit::declared(async |rabbit| {
        let texts: Vec<String> = (0..20).map(|index| index.to_string()).collect();
        rabbit.commands(texts.iter().map(String::as_str)).await;
        let health = lane();
        let mut consumer = consumer(rabbit, &health);
        let mut kept = BTreeMap::new();
        let mut seen = 0;
        while seen < texts.len() {
            let batch = timeout(SOON, consumer.next_batch(6, &CancellationToken::new())).await.unwrap().unwrap();
            seen += batch.deliveries.len();
            let bodies: Vec<_> = bodies(&batch).into_iter().map(str::to_owned).collect();
            let indexes: Vec<_> =
                (0..bodies.len()).filter(|&index| ["0", "7", "13"].contains(&&*bodies[index])).collect();
            let names = indexes.iter().map(|&index| bodies[index].clone());
            kept.extend(names.zip(batch.ack_except(&indexes).await.unwrap()));
        }
        assert_eq!(kept.keys().collect::<Vec<_>>(), ["0", "13", "7"]);
        kept.remove("7").unwrap().ack().await.unwrap();
        rabbit.commands(["20"]).await;
        let batch = next(&mut consumer).await;
        assert_eq!(bodies(&batch), ["20"]);
        batch.ack().await.unwrap();
        assert!(kept.values().all(DeliverySetAside::is_live));

        // Dropping them makes a waiting consumer reopen its channel.
        let (batch, ()) = tokio::join!(next(&mut consumer), async {
            eventually("it consumes", async || health.is_ready()).await;
            drop(kept);
        });
        let mut again: Vec<_> = bodies(&batch).into_iter().map(str::to_owned).collect();
        batch.ack().await.unwrap();
        while !["0", "13"].iter().all(|body| again.iter().any(|seen| seen == body)) {
            again.extend(take(&mut consumer).await);
        }
        consumer.close().await;
        while let Some(left) = rabbit.get(&rabbit.queue()).await {
            again.push(String::from_utf8(left.data).unwrap());
        }
        // The last ack may have been on its way when the connection was cut.
        again.retain(|body| body != "20");
        again.sort();
        assert_eq!(again, ["0", "13"]);
    })
    .await;
}

#[tokio::test]
async fn deliveries_set_aside_do_not_use_up_the_prefetch() {
    Rabbit::declared(async |rabbit| {
        let texts: Vec<String> = (0..12).map(|index| index.to_string()).collect();
        rabbit.commands(texts.iter().map(String::as_str)).await;
        let mut consumer =
            Consumer::new(rabbit.broker(), rabbit.topology.clone(), CommandType::Cancellation, 2, lane());
        let mut kept = Vec::new();
        for text in &texts {
            let batch = timeout(SOON, consumer.next_batch(1, &CancellationToken::new())).await.unwrap().unwrap();
            assert_eq!(bodies(&batch), [text]);
            kept.extend(batch.ack_except(&[0]).await.unwrap());
        }
        for kept in kept {
            kept.ack().await.unwrap();
        }
        consumer.close().await;
        assert_eq!(rabbit.count(&rabbit.queue()).await, 0);
    })
    .await;
}

#[tokio::test]
async fn raising_the_prefetch_loses_no_buffered_delivery() {
    Rabbit::declared(async |rabbit| {
        rabbit.commands(["1", "2", "3", "4", "5", "6", "7", "8", "9", "10", "11"]).await;
        redeliver(rabbit, 6).await;
        let texts: Vec<String> = (100..150).map(|index| index.to_string()).collect();
        rabbit.commands(texts.iter().map(String::as_str)).await;
        let mut consumer = consumer(rabbit, &lane());
        let mut seen = Vec::new();
        // The prefetch grows to eight.
        for size in [1, 1, 2, 2, 4, 4] {
            let batch = next(&mut consumer).await;
            assert_eq!(batch.deliveries.len(), size);
            seen.extend(bodies(&batch).into_iter().map(str::to_owned));
            batch.ack().await.unwrap();
        }
        // The first message with few redeliveries opens the full prefetch.
        let mut max = 1;
        while seen.len() < 11 + texts.len() {
            let batch = timeout(SOON, consumer.next_batch(max, &CancellationToken::new())).await.unwrap().unwrap();
            assert!(batch.deliveries.iter().all(|delivery| delivery.delivery_count <= 1));
            seen.extend(bodies(&batch).into_iter().map(str::to_owned));
            batch.ack().await.unwrap();
            max = 100;
        }
        seen.sort();
        seen.dedup();
        assert_eq!(seen.len(), 11 + texts.len());
        consumer.close().await;
        assert_eq!(rabbit.count(&rabbit.queue()).await, 0);
    })
    .await;
}

#[tokio::test]
async fn on_shutdown_the_batch_in_flight_is_acknowledged_and_the_rest_is_requeued() {
    Rabbit::declared(async |rabbit| {
        rabbit.commands(["one", "two", "three"]).await;
        let health = lane();
        let mut consumer = consumer(rabbit, &health);
        let shutdown = CancellationToken::new();
        let batch = timeout(SOON, consumer.next_batch(1, &shutdown)).await.unwrap().unwrap();
        shutdown.cancel();
        batch.ack().await.unwrap();
        assert!(consumer.next_batch(1, &shutdown).await.is_none());
        assert_eq!(health.status().state, LaneState::Stopped);
        assert!(consumer.next_batch(1, &shutdown).await.is_none());
        consumer.close().await;
        eventually("two are back", async || rabbit.count(&rabbit.queue()).await == 2).await;
        assert_eq!(rabbit.await_message(&rabbit.queue()).await.data, b"two");
    })
    .await;
}

#[tokio::test]
async fn a_consumer_at_its_byte_limit_reads_on_after_acks_and_stops_at_once() {
    Rabbit::declared(async |rabbit| {
        const MESSAGES: usize = 16;
        let body = "x".repeat(4 * 1024 * 1024);
        rabbit.commands([body.as_str(); MESSAGES]).await;
        let mut consumer = consumer(rabbit, &lane());
        let shutdown = CancellationToken::new();
        let mut settled = 0;
        // All messages are in flight, but the consumer buffers only some of them.
        let batch = timeout(SOON, consumer.next_batch(1, &shutdown)).await.unwrap().unwrap();
        eventually("all are delivered", async || rabbit.count(&rabbit.queue()).await == 0).await;
        batch.ack().await.unwrap();
        settled += 1;
        while settled < MESSAGES / 2 {
            let batch = timeout(SOON, consumer.next_batch(2, &shutdown)).await.unwrap().unwrap();
            assert!(batch.deliveries.iter().all(|delivery| !delivery.redelivered && delivery.body == body.as_bytes()));
            settled += batch.deliveries.len();
            batch.ack().await.unwrap();
        }
        shutdown.cancel();
        let began = Instant::now();
        assert!(consumer.next_batch(2, &shutdown).await.is_none());
        consumer.close().await;
        assert!(began.elapsed() < Duration::from_secs(5), "the broker's reply was not read");
        let rest = u32::try_from(MESSAGES - settled).unwrap();
        eventually("the rest is back", async || rabbit.count(&rabbit.queue()).await == rest).await;
    })
    .await;
}

#[tokio::test]
async fn a_consumer_of_an_empty_queue_stops_at_once_on_shutdown() {
    Rabbit::declared(async |rabbit| {
        let health = lane();
        let mut consumer = consumer(rabbit, &health);
        let shutdown = CancellationToken::new();
        let (batch, ()) = tokio::join!(consumer.next_batch(1, &shutdown), async {
            eventually("it consumes", async || health.is_ready()).await;
            shutdown.cancel();
        });
        assert!(batch.is_none());
        consumer.close().await;
    })
    .await;
}

#[tokio::test]
async fn a_suspended_consumer_requeues_everything_and_resumes_on_the_next_batch() {
    Rabbit::declared(async |rabbit| {
        rabbit.commands(["one", "two"]).await;
        let health = lane();
        let mut consumer = consumer(rabbit, &health);
        let batch = consumer.next_batch(1, &CancellationToken::new()).await.unwrap();
        consumer.suspend("MongoDB is unavailable").await;
        assert_eq!(health.status().state, LaneState::Paused);
        assert_eq!(health.status().problem.as_deref(), Some("MongoDB is unavailable"));
        assert!(batch.ack().await.is_err());
        eventually("both are back", async || rabbit.count(&rabbit.queue()).await == 2).await;
        next(&mut consumer).await.ack().await.unwrap();
        assert!(health.is_ready());
        consumer.close().await;
    })
    .await;
}
