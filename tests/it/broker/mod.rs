//! No message is lost between broker and worker, whatever happens to connections. These tests use a real RabbitMQ.

mod connecting;
mod connection_loss;
mod consuming;
mod copies;
mod declarations;
mod publishing;
mod redeliveries;
mod unreadable_frames;

use std::time::Duration;

use lapin::types::{AMQPValue, FieldTable};
use offramp::amqp::{Batch, Consumer, LaneHealth};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use offramp_domain::command_ref::CommandType;
use offramp_testkit::eventually;
use offramp_testkit::rabbit::Rabbit;

/// Long enough for two missed heartbeats and a reconnect delay.
const SOON: Duration = Duration::from_secs(40);

fn consumer(rabbit: &Rabbit, health: &LaneHealth) -> Consumer {
    Consumer::new(rabbit.broker(), rabbit.topology.clone(), CommandType::Cancellation, 100, health.clone())
}

fn lane() -> LaneHealth {
    LaneHealth::new("cancellation")
}

async fn next(consumer: &mut Consumer) -> Batch {
    let batch = timeout(SOON, consumer.next_batch(100, &CancellationToken::new())).await;
    batch.expect("no batch in time").expect("a batch")
}

/// Waits for the next batch, acknowledges it, and returns its bodies.
async fn take(consumer: &mut Consumer) -> Vec<String> {
    let batch = next(consumer).await;
    let bodies = bodies(&batch).into_iter().map(str::to_owned).collect();
    batch.ack().await.unwrap();
    bodies
}

fn bodies(batch: &Batch) -> Vec<&str> {
    batch.deliveries.iter().map(|delivery| std::str::from_utf8(&delivery.body).unwrap()).collect()
}

fn text(headers: &FieldTable, name: &str) -> String {
    match headers.inner().get(name) {
        Some(AMQPValue::LongString(text)) => text.to_string(),
        other => panic!("{name} is {other:?}"),
    }
}

/// Redelivers everything in the work queue `times` times.
async fn redeliver(rabbit: &Rabbit, times: u64) {
    let queue = rabbit.queue();
    let waiting = rabbit.count(&queue).await;
    for _ in 0..times {
        rabbit.redeliver(&queue, waiting).await;
        eventually("they are back", async || rabbit.count(&queue).await == waiting).await;
    }
}
