//! Servers that are away: nobody's failure, so nothing is counted, nothing is lost, and work goes on by itself.

use bson::doc;
use lapin::options::QueueDeclareOptions;
use lapin::types::FieldTable;

use crate::support::eventually;
use crate::support::proxy::Proxy;
use crate::support::samples::{account, cancellation, organization, subscription};
use crate::support::smtp::SmtpSink;
use crate::support::worker::Worker;
use crate::support::world::World;

const SUBSCRIPTIONS: usize = 20;

#[tokio::test(flavor = "multi_thread")]
async fn messages_go_back_when_the_database_stays_away_and_are_decided_when_it_is_back() {
    let world = World::new("database-away").await;
    let sink = SmtpSink::start().await;
    world.collection("organizations").insert_one(organization("org")).await.unwrap();
    world.collection("accounts").insert_one(account("acc", "org")).await.unwrap();
    let subscriptions = (0..SUBSCRIPTIONS).map(|index| subscription(&format!("sub-{index}"), "org", "acc"));
    world.collection("subscriptions").insert_many(subscriptions).await.unwrap();

    let (line, mongodb_url) = Proxy::in_front_of_mongodb(&world.mongodb_url).await;
    let settings = [("OFFRAMP_MONGODB_URL", mongodb_url.as_str()), ("OFFRAMP_HOLD_SECONDS", "1")];
    let worker = Worker::start_with(&world, &sink.url(), &settings).await;
    line.stall();
    for index in 0..SUBSCRIPTIONS {
        world.command(&cancellation(&format!("c-{index}"), &format!("sub-{index}"))).await;
    }

    eventually("a lane that consumes no more", || async {
        let (messages, consumers) = waiting(&world, "cancellation").await;
        (consumers == 0 && messages as usize == SUBSCRIPTIONS).then_some(())
    })
    .await;
    let answer = worker.readyz().await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 503") && answer.contains("MongoDB is away"), "{answer}");
    assert_eq!(worker.settled().await, 0);
    // A lane with nothing in hand goes on consuming, and holds what comes.
    assert_eq!(waiting(&world, "card-expiry").await, (0, 1));

    line.resume();
    eventually("every command to be applied", || async {
        let scheduled = doc! { "status": "cancellation_scheduled", "history": { "$size": 1 } };
        let count = world.collection("subscriptions").count_documents(scheduled).await.unwrap();
        (count == SUBSCRIPTIONS as u64).then_some(())
    })
    .await;
    world.outboxes_empty().await;
    eventually("a ready worker", || async {
        worker.readyz().await.filter(|answer| answer.starts_with("HTTP/1.1 200"))
    })
    .await;
    assert_eq!(sink.mails().len(), SUBSCRIPTIONS);
    assert_eq!(worker.settled().await, SUBSCRIPTIONS as u64);
    assert!(world.take("dead-letters").await.is_none());
    for delay in ["5s", "30s", "2m", "10m", "1h"] {
        assert!(world.take(&format!("retry.{delay}")).await.is_none(), "no attempt is counted");
    }
    assert!(worker.stop().await.success());
    world.remove().await;
}

/// How many messages wait in a queue, and how many consumers it has.
async fn waiting(world: &World, queue: &str) -> (u32, u32) {
    let options = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
    let queue = format!("{}.{queue}", world.prefix);
    let queue = world.channel.queue_declare(queue.as_str().into(), options, FieldTable::default()).await.unwrap();
    (queue.message_count(), queue.consumer_count())
}
