//! Lost connections, channels, consumers and queues: consumer and publisher recover by themselves.

use std::time::Duration;

use offramp::amqp::{Consumer, Outgoing, PublishError, Publisher};
use tokio::time::Instant;

use super::{bodies, consumer, lane, next};
use offramp_testkit::eventually;
use offramp_testkit::proxy::Proxy;
use offramp_testkit::rabbit::Rabbit;

#[tokio::test]
async fn a_deleted_queue_is_declared_and_consumed_again() {
    Rabbit::declared(async |rabbit| {
        let health = lane();
        let mut consumer = consumer(rabbit, &health);
        let (batch, ()) = tokio::join!(next(&mut consumer), async {
            eventually("it consumes", async || health.is_ready()).await;
            rabbit.delete_queue(&rabbit.queue()).await;
            eventually("it notices", async || !health.is_ready()).await;
            eventually("it consumes again", async || health.is_ready()).await;
            rabbit.commands(["after"]).await;
        });
        assert_eq!(bodies(&batch), ["after"]);
        batch.ack().await.unwrap();
        consumer.close().await;
    })
    .await;
}

#[tokio::test]
async fn a_consumer_cancelled_with_a_batch_in_flight_recovers() {
    Rabbit::declared(async |rabbit| {
        rabbit.commands(["one"]).await;
        let health = lane();
        let mut consumer = consumer(rabbit, &health);
        let batch = next(&mut consumer).await;
        assert!(batch.is_live() && health.is_ready());
        // The broker then cancels the consumer, but keeps the channel open.
        rabbit.delete_queue(&rabbit.queue()).await;
        eventually("the batch knows", async || !batch.is_live()).await;
        assert!(health.readiness().unwrap_err().contains("cancelled"), "{:?}", health.readiness());
        batch.ack().await.unwrap_err();
        let (batch, ()) = tokio::join!(next(&mut consumer), async {
            eventually("it consumes again", async || health.is_ready()).await;
            rabbit.commands(["after"]).await;
        });
        assert_eq!(bodies(&batch), ["after"]);
        batch.ack().await.unwrap();
        consumer.close().await;
    })
    .await;
}

#[tokio::test]
async fn consumer_and_publisher_recover_from_a_cut_connection() {
    Rabbit::declared(async |rabbit| {
        let proxy = Proxy::start().await;
        let broker = proxy.broker(&rabbit.prefix);
        let health = lane();
        let mut consumer = Consumer::new(broker.clone(), rabbit.topology.clone(), rabbit.queue(), 100, health.clone());
        let publisher = Publisher::new(broker);
        let send = |body: &str| [Outgoing::new("", rabbit.queue(), body.into()).mandatory()];
        assert_eq!(publisher.publish_all(&send("before")).await, [Ok(())]);
        let batch = next(&mut consumer).await;
        assert_eq!(bodies(&batch), ["before"]);
        batch.ack().await.unwrap();

        for round in 0..3 {
            proxy.cut();
            eventually("the lane notices", async || !health.is_ready()).await;
            let body = format!("after cut {round}");
            eventually("publishing works", async || publisher.publish_all(&send(&body)).await == [Ok(())]).await;
            // An unconfirmed message may have arrived anyway, so there may be duplicates.
            let mut arrived = false;
            while !arrived {
                let batch = next(&mut consumer).await;
                arrived = bodies(&batch).contains(&body.as_str());
                batch.ack().await.unwrap();
            }
        }
        consumer.close().await;
        publisher.close().await;
    })
    .await;
}

#[tokio::test]
async fn consumer_and_publisher_recover_when_the_broker_closes_their_connections() {
    Rabbit::declared(async |rabbit| {
        let proxy = Proxy::start().await;
        let broker = proxy.broker(&rabbit.prefix);
        let health = lane();
        let mut consumer = Consumer::new(broker.clone(), rabbit.topology.clone(), rabbit.queue(), 100, health.clone());
        let publisher = Publisher::new(broker);
        let send = |body: &str| [Outgoing::new("", rabbit.queue(), body.into()).mandatory()];
        assert_eq!(publisher.publish_all(&send("before")).await, [Ok(())]);
        let batch = next(&mut consumer).await;

        proxy.close_as_the_broker();
        eventually("the lane notices", async || !health.is_ready()).await;
        assert!(!batch.is_live());
        batch.ack().await.unwrap_err();
        let batch = next(&mut consumer).await;
        assert_eq!(bodies(&batch), ["before"]);
        batch.ack().await.unwrap();
        eventually("publishing works", async || publisher.publish_all(&send("after")).await == [Ok(())]).await;
        consumer.close().await;
        publisher.close().await;
    })
    .await;
}

#[tokio::test]
async fn an_ack_on_a_lost_channel_fails_and_the_messages_are_redelivered() {
    Rabbit::declared(async |rabbit| {
        let proxy = Proxy::start().await;
        rabbit.commands(["one", "two"]).await;
        let broker = proxy.broker(&rabbit.prefix);
        let mut consumer = Consumer::new(broker, rabbit.topology.clone(), rabbit.queue(), 100, lane());
        let batch = next(&mut consumer).await;
        proxy.cut();
        eventually("the batch knows", async || !batch.is_live()).await;
        let lost = batch.ack().await.unwrap_err();
        assert!(lost.to_string().contains("delivered again"), "{lost}");
        let mut seen = Vec::new();
        while seen.len() < 2 {
            let batch = next(&mut consumer).await;
            // Messages in flight are redelivered; others may overtake them while the broker requeues.
            let again = batch.deliveries.iter().filter(|delivery| delivery.redelivered).count();
            assert!(bodies(&batch).iter().filter(|body| **body == "one").count() <= again);
            seen.extend(bodies(&batch).into_iter().map(str::to_owned));
            batch.ack().await.unwrap();
        }
        seen.sort();
        assert_eq!(seen, ["one", "two"]);
        consumer.close().await;
    })
    .await;
}

#[tokio::test]
async fn on_a_silent_network_publishing_times_out_and_consuming_ends_by_heartbeat() {
    Rabbit::declared(async |rabbit| {
        let proxy = Proxy::start().await;
        let broker = proxy.broker(&rabbit.prefix);
        let health = lane();
        let mut consumer = Consumer::new(broker.clone(), rabbit.topology.clone(), rabbit.queue(), 100, health.clone());
        let publisher = Publisher::new(broker);
        let send = |body: &str| [Outgoing::new("", rabbit.queue(), body.into()).mandatory()];
        assert_eq!(publisher.publish_all(&send("before")).await, [Ok(())]);
        let batch = next(&mut consumer).await;

        proxy.stall();
        for _ in 0..2 {
            let began = Instant::now();
            let results = publisher.publish_all(&send("during")).await;
            assert!(matches!(results[..], [Err(PublishError::Unavailable(_))]), "{results:?}");
            assert!(began.elapsed() < Duration::from_millis(10_500), "{:?}", began.elapsed());
        }
        eventually("the heartbeat is missed", async || !batch.is_live()).await;
        assert!(!health.is_ready());
        batch.ack().await.unwrap_err();

        proxy.resume();
        eventually("publishing works", async || publisher.publish_all(&send("after")).await == [Ok(())]).await;
        let mut seen: Vec<String> = Vec::new();
        while !(seen.contains(&"before".to_owned()) && seen.contains(&"after".to_owned())) {
            let batch = next(&mut consumer).await;
            seen.extend(bodies(&batch).into_iter().map(str::to_owned));
            batch.ack().await.unwrap();
        }
        consumer.close().await;
        publisher.close().await;
    })
    .await;
}
