//! Lost connections, channels, consumers and queues: consumer and publisher recover by themselves.

use std::time::Duration;

use offramp::amqp::{Batch, Consumer, LaneHealth, Outgoing, PublishError, Publisher};
use tokio::time::Instant;

use super::{bodies, consumer, lane, next, take};
use offramp_domain::command_ref::CommandType;
use offramp_testkit::eventually;
use offramp_testkit::proxy::Proxy;
use offramp_testkit::rabbit::Rabbit;

/// A consumer and a publisher of the work queue, both behind one proxy.
struct ProxiedLane {
    proxy: Proxy,
    health: LaneHealth,
    consumer: Consumer,
    publisher: Publisher,
    queue: String,
}

impl ProxiedLane {
    async fn start(rabbit: &Rabbit) -> Self {
        let proxy = Proxy::start().await;
        let broker = proxy.broker(&rabbit.prefix);
        let (health, queue) = (lane(), rabbit.queue());
        let consumer =
            Consumer::new(broker.clone(), rabbit.topology.clone(), CommandType::Cancellation, 100, health.clone());
        Self { proxy, health, consumer, publisher: Publisher::new(broker), queue }
    }

    async fn send(&self, body: &str) -> Result<(), PublishError> {
        let message = Outgoing::new("", &self.queue, body.into()).mandatory();
        self.publisher.publish_all(&[message]).await.remove(0)
    }

    /// Retries until the message is confirmed.
    async fn send_eventually(&self, body: &str) {
        eventually("publishing works", async || self.send(body).await.is_ok()).await;
    }

    async fn next(&mut self) -> Batch {
        next(&mut self.consumer).await
    }

    async fn close(self) {
        self.consumer.close().await;
        self.publisher.close().await;
    }
}

#[tokio::test]
async fn a_deleted_queue_is_declared_and_consumed_again() {
    Rabbit::declared(async |rabbit| {
        let health = lane();
        let mut consumer = consumer(rabbit, &health);
        let (bodies, ()) = tokio::join!(take(&mut consumer), async {
            eventually("it consumes", async || health.is_ready()).await;
            rabbit.delete_queue(&rabbit.queue()).await;
            eventually("it notices", async || !health.is_ready()).await;
            eventually("it consumes again", async || health.is_ready()).await;
            rabbit.commands(["after"]).await;
        });
        assert_eq!(bodies, ["after"]);
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
        eventually("the batch is no longer live", async || !batch.is_live()).await;
        assert!(health.readiness().unwrap_err().contains("cancelled"), "{:?}", health.readiness());
        batch.ack().await.unwrap_err();
        let (bodies, ()) = tokio::join!(take(&mut consumer), async {
            eventually("it consumes again", async || health.is_ready()).await;
            rabbit.commands(["after"]).await;
        });
        assert_eq!(bodies, ["after"]);
        consumer.close().await;
    })
    .await;
}

#[tokio::test]
async fn consumer_and_publisher_recover_from_a_cut_connection() {
    Rabbit::declared(async |rabbit| {
        let mut lane = ProxiedLane::start(rabbit).await;
        assert_eq!(lane.send("before").await, Ok(()));
        assert_eq!(take(&mut lane.consumer).await, ["before"]);

        for round in 0..3 {
            lane.proxy.cut();
            eventually("the lane notices", async || !lane.health.is_ready()).await;
            let body = format!("after cut {round}");
            lane.send_eventually(&body).await;
            // An unconfirmed message may have arrived anyway, so there may be duplicates.
            while !take(&mut lane.consumer).await.contains(&body) {}
        }
        lane.close().await;
    })
    .await;
}

#[tokio::test]
async fn consumer_and_publisher_recover_when_the_broker_closes_their_connections() {
    Rabbit::declared(async |rabbit| {
        let mut lane = ProxiedLane::start(rabbit).await;
        assert_eq!(lane.send("before").await, Ok(()));
        let batch = lane.next().await;

        lane.proxy.close_as_the_broker();
        eventually("the lane notices", async || !lane.health.is_ready()).await;
        assert!(!batch.is_live());
        batch.ack().await.unwrap_err();
        assert_eq!(take(&mut lane.consumer).await, ["before"]);
        lane.send_eventually("after").await;
        lane.close().await;
    })
    .await;
}

#[tokio::test]
async fn an_ack_on_a_lost_channel_fails_and_the_messages_are_redelivered() {
    Rabbit::declared(async |rabbit| {
        rabbit.commands(["one", "two"]).await;
        let mut lane = ProxiedLane::start(rabbit).await;
        let batch = lane.next().await;
        lane.proxy.cut();
        eventually("the batch is no longer live", async || !batch.is_live()).await;
        let lost = batch.ack().await.unwrap_err();
        assert!(lost.to_string().contains("delivered again"), "{lost}");
        let mut seen = Vec::new();
        while seen.len() < 2 {
            let batch = lane.next().await;
            // Messages in flight are redelivered; others may overtake them while the broker requeues.
            let again = batch.deliveries.iter().filter(|delivery| delivery.redelivered).count();
            assert!(bodies(&batch).iter().filter(|body| **body == "one").count() <= again);
            seen.extend(bodies(&batch).into_iter().map(str::to_owned));
            batch.ack().await.unwrap();
        }
        seen.sort();
        assert_eq!(seen, ["one", "two"]);
        lane.close().await;
    })
    .await;
}

#[tokio::test]
async fn on_a_silent_network_publishing_times_out_and_consuming_ends_by_heartbeat() {
    Rabbit::declared(async |rabbit| {
        let mut lane = ProxiedLane::start(rabbit).await;
        assert_eq!(lane.send("before").await, Ok(()));
        let batch = lane.next().await;

        lane.proxy.stall();
        for _ in 0..2 {
            let began = Instant::now();
            let result = lane.send("during").await;
            assert!(matches!(result, Err(PublishError::Unavailable(_))), "{result:?}");
            assert!(began.elapsed() < Duration::from_secs(15), "{:?}", began.elapsed());
        }
        eventually("the heartbeat is missed", async || !batch.is_live()).await;
        assert!(!lane.health.is_ready());
        batch.ack().await.unwrap_err();

        lane.proxy.resume();
        lane.send_eventually("after").await;
        let mut seen = Vec::new();
        while !(seen.contains(&"before".to_owned()) && seen.contains(&"after".to_owned())) {
            seen.extend(take(&mut lane.consumer).await);
        }
        lane.close().await;
    })
    .await;
}
