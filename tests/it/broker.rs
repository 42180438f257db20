//! No message is lost between the broker and us: declarations, confirms, retry queues, batches, and every way to lose a
//! connection, on a real RabbitMQ.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use chrono::DateTime;
use lapin::options::{ExchangeDeclareOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable, LongString};
use lapin::{BasicProperties, ExchangeKind};
use offramp::amqp::message::RETURNS_MAX;
use offramp::amqp::{
    Batch, Broker, BrokerError, Consumer, Kept, LaneHealth, LaneState, Outgoing, PublishError, Publisher, RetryDelay,
    Topology, TopologyError,
};
use offramp::tls::{Authorities, Identity, Tls};
use offramp_domain::command::CommandType;
use offramp_domain::dead_letter::DeadLetterReason;
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tokio_util::sync::CancellationToken;

use offramp_testkit::proxy::{NESTED, NOT_UTF8, Proxy, nested_arrays};
use offramp_testkit::rabbit::{Policy, Rabbit, amqp_url, eventually};
use offramp_testkit::tls::{ThrowAwayCa, TlsServers};

/// Long enough for two missed heartbeats and a pause.
const SOON: Duration = Duration::from_secs(40);

fn consumer(rabbit: &Rabbit, health: &LaneHealth) -> Consumer {
    Consumer::new(rabbit.broker(), rabbit.topology.clone(), rabbit.queue(), 100, health.clone())
}

fn lane() -> LaneHealth {
    LaneHealth::new("cancellation")
}

async fn next(consumer: &mut Consumer) -> Batch {
    let batch = timeout(SOON, consumer.next_batch(100, &CancellationToken::new())).await;
    batch.expect("no batch in time").expect("a batch")
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

// ---------------------------------------------------------------------------------------------------- declarations ---

#[tokio::test]
async fn declaring_twice_changes_nothing() {
    Rabbit::run(async |rabbit| {
        let first = rabbit.topology.declare(&rabbit.broker()).await.unwrap();
        assert_eq!((first.created.len(), first.existing.len()), (18, 0), "{first:?}");
        let second = rabbit.topology.declare(&rabbit.broker()).await.unwrap();
        assert_eq!((second.created.len(), second.existing.len()), (0, 18), "{second:?}");
        assert_eq!(first.created, second.existing);
        rabbit.commands(["one"]).await;
        assert_eq!(rabbit.await_message(&rabbit.queue()).await.data, b"one");
    })
    .await;
}

#[tokio::test]
async fn many_may_declare_at_once() {
    Rabbit::run(async |rabbit| {
        let (a, b, c) = (rabbit.broker(), rabbit.broker(), rabbit.broker());
        let topology = &rabbit.topology;
        let (a, b, c) = tokio::join!(topology.declare(&a), topology.declare(&b), topology.declare(&c));
        a.and(b).and(c).unwrap();
    })
    .await;
}

#[tokio::test]
async fn exchanges_that_publishers_declared_first_are_fine() {
    Rabbit::run(async |rabbit| {
        let options = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
        let name = rabbit.prefix.as_str().into();
        rabbit.channel.exchange_declare(name, ExchangeKind::Topic, options, FieldTable::default()).await.unwrap();
        rabbit.topology.declare(&rabbit.broker()).await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn an_object_that_is_different_is_named_with_what_differs_and_what_to_do() {
    Rabbit::run(async |rabbit| {
        let mut arguments = FieldTable::default();
        arguments.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
        arguments.insert("x-message-ttl".into(), AMQPValue::LongInt(7_000));
        arguments.insert("x-dead-letter-exchange".into(), AMQPValue::LongString("".into()));
        arguments.insert("x-dead-letter-strategy".into(), AMQPValue::LongString("at-least-once".into()));
        arguments.insert("x-overflow".into(), AMQPValue::LongString("reject-publish".into()));
        let options = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
        let name = rabbit.topology.retry_queue(RetryDelay::S30);
        rabbit.channel.queue_declare(name.as_str().into(), options, arguments).await.unwrap();

        let error = rabbit.topology.declare(&rabbit.broker()).await.unwrap_err();
        assert!(matches!(error, TopologyError::Different { .. }), "{error:?}");
        let sentence = error.to_string();
        assert!(sentence.starts_with(&format!("queue '{name}' exists already")), "{sentence}");
        assert!(sentence.contains("'x-message-ttl', received '30000' but current is '7000'"), "{sentence}");
        assert!(sentence.contains("offramp init") && sentence.contains("OFFRAMP_PREFIX"), "{sentence}");
    })
    .await;
}

#[tokio::test]
async fn an_exchange_of_another_type_is_named() {
    Rabbit::run(async |rabbit| {
        let options = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
        let name = rabbit.topology.event_exchange();
        let none = FieldTable::default();
        rabbit.channel.exchange_declare(name.as_str().into(), ExchangeKind::Direct, options, none).await.unwrap();
        let sentence = rabbit.topology.declare(&rabbit.broker()).await.unwrap_err().to_string();
        assert!(sentence.contains(&format!("exchange '{name}'")), "{sentence}");
        assert!(sentence.contains("'type', received 'topic' but current is 'direct'"), "{sentence}");
    })
    .await;
}

#[tokio::test]
async fn dead_letters_survive_being_looked_at_again_and_again() {
    Rabbit::declared(async |rabbit| {
        let queue = rabbit.topology.dead_letter_queue();
        rabbit.publish("", &queue, b"kept", BasicProperties::default().with_delivery_mode(2)).await;
        // More often than 4.x's own limit of 20.
        for _ in 0..50 {
            rabbit.come_back(&queue, 1).await;
        }
        assert_eq!(rabbit.await_message(&queue).await.data, b"kept");
    })
    .await;
}

#[tokio::test]
async fn a_message_that_ends_every_worker_becomes_a_dead_letter() {
    Rabbit::declared(async |rabbit| {
        rabbit.commands(["poison"]).await;
        // The first 101 deliveries are those that the limit of 100 returns allows.
        for _ in 0..101 {
            rabbit.come_back(&rabbit.queue(), 1).await;
        }
        assert_eq!(rabbit.await_message(&rabbit.topology.dead_letter_queue()).await.data, b"poison");
        assert_eq!(rabbit.count(&rabbit.queue()).await, 0);
    })
    .await;
}

// ------------------------------------------------------------------------------------------------------ publishing ---

#[tokio::test]
async fn a_confirmed_message_is_in_its_queue() {
    Rabbit::declared(async |rabbit| {
        let publisher = Publisher::new(rabbit.broker());
        let message = Outgoing::new(&rabbit.prefix, "subscription.cancellation", b"{}".to_vec())
            .mandatory()
            .content_type("application/cloudevents+json")
            .message_id("m-1")
            .header("h", "v");
        assert_eq!(publisher.publish_all(&[message]).await, [Ok(())]);
        let arrived = rabbit.await_message(&rabbit.queue()).await;
        assert_eq!(arrived.data, b"{}");
        assert_eq!(arrived.properties.delivery_mode(), &Some(2));
        assert_eq!(arrived.properties.content_type().as_ref().unwrap().as_str(), "application/cloudevents+json");
        assert_eq!(arrived.properties.message_id().as_ref().unwrap().as_str(), "m-1");
        assert_eq!(text(arrived.properties.headers().as_ref().unwrap(), "h"), "v");
        publisher.close().await;
    })
    .await;
}

#[tokio::test]
async fn of_many_messages_exactly_the_unroutable_ones_are_errors() {
    Rabbit::declared(async |rabbit| {
        let publisher = Publisher::new(rabbit.broker());
        // Some rounds: confirms come in groups of changing size, and that is where returns get mixed up.
        for round in 0..100 {
            let messages: Vec<_> = (0..round)
                .map(|index| {
                    let key = if (index + round) % 3 == 0 { "nobody.wants.this" } else { "payment.failure" };
                    Outgoing::new(&rabbit.prefix, key, format!("{index}").into_bytes()).mandatory()
                })
                .collect();
            let results = publisher.publish_all(&messages).await;
            for (message, result) in messages.iter().zip(&results) {
                let expected =
                    if message.routing_key == "payment.failure" { Ok(()) } else { Err(PublishError::Unroutable) };
                assert_eq!(*result, expected, "{message:?}");
            }
        }
        publisher.close().await;
    })
    .await;
}

#[tokio::test]
async fn a_message_that_is_not_mandatory_may_have_no_queue() {
    Rabbit::declared(async |rabbit| {
        let publisher = Publisher::new(rabbit.broker());
        let event = Outgoing::new(rabbit.topology.event_exchange(), "subscription.ended", b"{}".to_vec());
        assert_eq!(publisher.publish_all(&[event]).await, [Ok(())]);
        assert_eq!(publisher.publish_all(&[]).await, []);
        publisher.close().await;
    })
    .await;
}

#[tokio::test]
async fn one_message_that_the_broker_refuses_does_not_fail_the_others() {
    Rabbit::declared(async |rabbit| {
        let publisher = Publisher::new(rabbit.broker());
        let good = |body: &str| Outgoing::new("", rabbit.queue(), body.into()).mandatory();
        // The broker closes the channel on this one: its user is not the connection's.
        let mut bad = good("bad");
        bad.properties = bad.properties.with_user_id("somebody-else".into());
        let long = Outgoing::new("", "k".repeat(300), Vec::new());
        let results = publisher.publish_all(&[good("one"), bad, long, good("two")]).await;
        assert_eq!((&results[0], &results[3]), (&Ok(()), &Ok(())), "{results:?}");
        assert!(matches!(&results[1], Err(PublishError::Refused(why)) if why.contains("user_id")), "{results:?}");
        assert!(matches!(&results[2], Err(PublishError::Refused(why)) if why.contains("255")), "{results:?}");
        publisher.close().await;
    })
    .await;
}

#[tokio::test]
async fn many_may_publish_at_once() {
    Rabbit::declared(async |rabbit| {
        let publisher = Publisher::new(rabbit.broker());
        let calls = (0..40).map(|call| {
            let (publisher, queue) = (publisher.clone(), rabbit.queue());
            async move {
                let messages: Vec<_> = (0..50)
                    .map(|index| Outgoing::new("", &queue, format!("{call}-{index}").into_bytes()).mandatory())
                    .collect();
                publisher.publish_all(&messages).await
            }
        });
        for results in futures_util::future::join_all(calls).await {
            assert!(results.iter().all(Result::is_ok), "{results:?}");
        }
        eventually("all 2,000 are there", async || rabbit.count(&rabbit.queue()).await == 2_000).await;
        publisher.close().await;
    })
    .await;
}

#[tokio::test]
async fn what_was_deleted_at_run_time_is_declared_again_by_whoever_publishes_there() {
    Rabbit::declared(async |rabbit| {
        let topology = &rabbit.topology;
        let publisher = Publisher::declaring(rabbit.broker(), topology.clone());
        let retry = RetryDelay::M10;
        let event = Outgoing::new(topology.event_exchange(), "subscription.ended", b"event".to_vec());
        let messages = [
            Outgoing::new(topology.retry_exchange(retry), rabbit.queue(), b"retry".to_vec()).mandatory(),
            Outgoing::new("", topology.dead_letter_queue(), b"dead".to_vec()).mandatory(),
            event.clone(),
        ];
        let all_arrive = async |rounds: u32| {
            assert_eq!(publisher.publish_all(&messages).await, [Ok(()), Ok(()), Ok(())]);
            assert_eq!(rabbit.await_message(&topology.dead_letter_queue()).await.data, b"dead", "{rounds}");
            assert!(rabbit.count(&topology.retry_queue(retry)).await >= 1);
        };
        all_arrive(0).await;
        rabbit.delete_queue(&topology.retry_queue(retry)).await;
        rabbit.delete_queue(&topology.dead_letter_queue()).await;
        all_arrive(1).await;
        rabbit.delete_exchange(&topology.retry_exchange(retry)).await;
        rabbit.delete_queue(&topology.dead_letter_queue()).await;
        all_arrive(2).await;
        rabbit.delete_exchange(&topology.event_exchange()).await;
        assert_eq!(publisher.publish_all(&[event]).await, [Ok(())]);

        // Somebody else's queue is none of our business, and declaring ours does not bring it back.
        let foreign = Outgoing::new("", format!("{}-answers", rabbit.prefix), Vec::new()).mandatory();
        assert_eq!(publisher.publish_all(&[foreign]).await, [Err(PublishError::Unroutable)]);
        // Nor is there a queue that was never ours.
        let nothing = Outgoing::new("", format!("{}.nothing", rabbit.prefix), Vec::new()).mandatory();
        assert_eq!(
            publisher.publish_all(&[nothing, messages[1].clone()]).await,
            [Err(PublishError::Unroutable), Ok(())]
        );
        publisher.close().await;
    })
    .await;
}

#[tokio::test]
async fn a_publisher_says_whether_messages_get_out() {
    Rabbit::declared(async |rabbit| {
        let proxy = Proxy::start().await;
        let publisher = Publisher::new(proxy.broker(&rabbit.prefix));
        let message = [Outgoing::new("", rabbit.queue(), Vec::new()).mandatory()];
        assert_eq!(publisher.status(), Ok(()));
        assert_eq!(publisher.publish_all(&message).await, [Ok(())]);
        assert_eq!(publisher.status(), Ok(()));
        proxy.stall();
        publisher.publish_all(&message).await[0].clone().unwrap_err();
        assert!(publisher.status().unwrap_err().contains("no confirm"), "{:?}", publisher.status());
        proxy.resume();
        // Nobody publishes; asking is enough.
        eventually("it is well again", async || publisher.status().is_ok()).await;
        publisher.close().await;
    })
    .await;
}

// --------------------------------------------------------------------------------------------- retry, dead letters ---

#[tokio::test]
async fn a_retry_copy_comes_back_whole_and_may_do_so_again() {
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
            let properties = &delivery.properties;
            assert_eq!(properties.content_type().as_ref().unwrap().as_str(), "application/json");
            assert_eq!(properties.correlation_id().as_ref().unwrap().as_str(), "c-1");
            assert_eq!(properties.message_id().as_ref().unwrap().as_str(), "m-1");
            assert_eq!(properties.kind().as_ref().unwrap().as_str(), "t");
            assert_eq!(properties.app_id().as_ref().unwrap().as_str(), "upstream");
            assert_eq!(properties.timestamp(), &Some(1_780_000_000));

            let copy = delivery.retry_copy(&rabbit.topology, &rabbit.queue(), RetryDelay::S5);
            let sent = copy.properties.headers().as_ref().unwrap();
            let names: Vec<_> = sent.inner().keys().map(lapin::types::ShortString::as_str).collect();
            assert_eq!(names, ["offramp-attempt", "tenant"]);
            assert_eq!((copy.properties.expiration(), copy.properties.user_id()), (&None, &None));
            assert_eq!(copy.properties.priority(), &None);
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
        // Left on a copy, CC would have sent it here too.
        assert_eq!(rabbit.count(&rabbit.topology.dead_letter_queue()).await, 0);
        consumer.close().await;
        publisher.close().await;
    })
    .await;
}

#[tokio::test]
async fn a_dead_letter_says_why_and_a_replay_does_not() {
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
        assert_eq!(batch.deliveries[0].properties.headers().clone().unwrap_or_default(), FieldTable::default());
        batch.ack().await.unwrap();
        consumer.close().await;
        publisher.close().await;
    })
    .await;
}

#[tokio::test]
async fn a_message_with_headers_as_large_as_a_frame_can_still_become_a_dead_letter() {
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

// ------------------------------------------------------------------------------------------------------- consuming ---

#[tokio::test]
async fn a_batch_is_what_waits_and_one_ack_settles_it() {
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
async fn a_batch_that_is_released_or_dropped_comes_again() {
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
            let batch = next(&mut consumer).await;
            seen.extend(bodies(&batch).into_iter().map(str::to_owned));
            batch.ack().await.unwrap();
        }
        consumer.close().await;
    })
    .await;
}

#[tokio::test]
async fn a_kept_delivery_is_settled_by_nobody_else_and_comes_again() {
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
            kept.extend(names.zip(batch.ack_but(&indexes).await.unwrap()));
        }
        assert_eq!(kept.keys().collect::<Vec<_>>(), ["0", "13", "7"]);
        kept.remove("7").unwrap().ack().await.unwrap();
        rabbit.commands(["20"]).await;
        let batch = next(&mut consumer).await;
        assert_eq!(bodies(&batch), ["20"]);
        batch.ack().await.unwrap();
        assert!(kept.values().all(Kept::is_live));

        // A lane that waits for its next delivery begins anew.
        let (batch, ()) = tokio::join!(next(&mut consumer), async {
            eventually("it consumes", async || health.is_ready()).await;
            drop(kept);
        });
        let mut again: Vec<_> = bodies(&batch).into_iter().map(str::to_owned).collect();
        batch.ack().await.unwrap();
        while again.len() < 2 {
            let batch = next(&mut consumer).await;
            again.extend(bodies(&batch).into_iter().map(str::to_owned));
            batch.ack().await.unwrap();
        }
        again.sort();
        assert_eq!(again, ["0", "13"]);
        consumer.close().await;
        assert_eq!(rabbit.count(&rabbit.queue()).await, 0);
    })
    .await;
}

#[tokio::test]
async fn kept_deliveries_take_no_room_from_those_that_follow() {
    Rabbit::declared(async |rabbit| {
        let texts: Vec<String> = (0..12).map(|index| index.to_string()).collect();
        rabbit.commands(texts.iter().map(String::as_str)).await;
        let mut consumer = Consumer::new(rabbit.broker(), rabbit.topology.clone(), rabbit.queue(), 2, lane());
        let mut kept = Vec::new();
        for text in &texts {
            let batch = timeout(SOON, consumer.next_batch(1, &CancellationToken::new())).await.unwrap().unwrap();
            assert_eq!(bodies(&batch), [text]);
            kept.extend(batch.ack_but(&[0]).await.unwrap());
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
async fn a_publisher_whose_messages_were_rejected_goes_on_as_soon_as_they_are_not() {
    Rabbit::declared(async |rabbit| {
        let queue = rabbit.topology.dead_letter_queue();
        let publisher = Publisher::new(rabbit.broker());
        let message = [Outgoing::new("", &queue, b"letter".to_vec()).mandatory()];
        assert_eq!(publisher.publish_all(&message).await, [Ok(())]);
        let policy = Policy::that_rejects(&queue).await;
        let rejected = publisher.publish_all(&message).await;
        assert!(matches!(rejected[..], [Err(PublishError::Refused(_))]), "{rejected:?}");
        drop(policy);
        eventually("it is taken", async || publisher.publish_all(&message).await == [Ok(())]).await;
        publisher.close().await;
    })
    .await;
}

#[tokio::test]
async fn headers_too_deep_for_any_stack_do_no_harm() {
    Rabbit::declared(async |rabbit| {
        let proxy = Proxy::start().await;
        let publisher = Publisher::new(proxy.broker(&rabbit.prefix));
        let mut message = Outgoing::new("", rabbit.queue(), b"deep".to_vec()).mandatory().header("tenant", "north");
        let mut headers = message.properties.headers().clone().unwrap();
        // Deeper than any stack, and not as deep as fits into a frame: RabbitMQ 3.10 takes seconds for that.
        headers.insert(NESTED.into(), AMQPValue::ByteArray(nested_arrays(10_000).into()));
        message.properties = message.properties.with_headers(headers);
        assert_eq!(publisher.publish_all(&[message]).await, [Ok(())]);
        rabbit.commands(["after"]).await;

        let mut consumer = consumer(rabbit, &lane());
        let mut deliveries = Vec::new();
        while deliveries.len() < 2 {
            let batch = next(&mut consumer).await;
            deliveries.extend(batch.deliveries.clone());
            let dead = batch.deliveries.iter().filter(|delivery| delivery.body == b"deep").map(|delivery| {
                delivery.dead_letter(
                    &rabbit.topology,
                    DeadLetterReason::Invalid,
                    "It is deep.",
                    &rabbit.queue(),
                    chrono::Utc::now(),
                )
            });
            assert!(publisher.publish_all(&dead.collect::<Vec<_>>()).await.iter().all(Result::is_ok));
            batch.ack().await.unwrap();
        }
        assert_eq!((&deliveries[0].body[..], &deliveries[1].body[..]), (&b"deep"[..], &b"after"[..]));
        assert!(deliveries.iter().all(|delivery| !delivery.redelivered));
        assert_eq!(deliveries[0].header("tenant"), Some("north"));
        // A client with no guard of ours can read it too.
        let dead = rabbit.await_message(&rabbit.topology.dead_letter_queue()).await;
        assert_eq!(text(dead.properties.headers().as_ref().unwrap(), "offramp-error"), "It is deep.");
        consumer.close().await;
        publisher.close().await;
    })
    .await;
}

#[tokio::test]
async fn text_that_lapin_cannot_read_does_no_harm() {
    Rabbit::declared(async |rabbit| {
        let proxy = Proxy::start().await;
        let publisher = Publisher::new(proxy.broker(&rabbit.prefix));
        let property = Outgoing::new("", rabbit.queue(), b"property".to_vec()).mandatory().correlation_id(NOT_UTF8);
        // No queue has this name; it gets to the queue all the same.
        let mut key = Outgoing::new("", NOT_UTF8, b"routing key".to_vec()).mandatory();
        let mut copies = lapin::types::FieldArray::default();
        copies.push(AMQPValue::LongString(rabbit.queue().as_str().into()));
        let mut headers = FieldTable::default();
        headers.insert("CC".into(), AMQPValue::FieldArray(copies));
        key.properties = key.properties.with_headers(headers);
        // One at a time: the proxy looks for one mark in what it reads at once.
        assert_eq!(publisher.publish_all(&[property]).await, [Ok(())]);
        assert_eq!(publisher.publish_all(&[key]).await, [Ok(())]);

        let mut consumer = consumer(rabbit, &lane());
        let mut deliveries = Vec::new();
        while deliveries.len() < 2 {
            let batch = next(&mut consumer).await;
            deliveries.extend(batch.deliveries.clone());
            batch.ack().await.unwrap();
        }
        assert_eq!(deliveries[0].properties.correlation_id().as_ref().unwrap().as_str(), "?".repeat(NOT_UTF8.len()));
        assert_eq!(deliveries[1].routing_key, "?".repeat(NOT_UTF8.len()));
        assert!(deliveries.iter().all(|delivery| !delivery.redelivered));
        consumer.close().await;
        publisher.close().await;
    })
    .await;
}

#[tokio::test]
async fn however_often_workers_are_killed_no_innocent_message_becomes_a_dead_letter() {
    Rabbit::declared(async |rabbit| {
        let mut waiting: BTreeSet<String> = BTreeSet::new();
        let mut returns_max = 0;
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
                returns_max = batch.deliveries.iter().map(|one| one.delivery_count).fold(returns_max, u64::max);
                // What a worker does takes time, and it may be killed meanwhile. (Not amid an ack: then nobody would know.)
                if timeout_at(end, sleep(Duration::from_millis(10))).await.is_err() {
                    break;
                }
                let texts: Vec<_> = bodies(&batch).into_iter().map(str::to_owned).collect();
                batch.ack().await.unwrap();
                waiting.retain(|text| !texts.contains(text));
            }
        }
        println!("came back at most {returns_max} times");
        assert_eq!(waiting, BTreeSet::new());
        assert!(returns_max < RETURNS_MAX, "{returns_max}");
        assert_eq!(rabbit.count(&rabbit.topology.dead_letter_queue()).await, 0);
    })
    .await;
}

#[tokio::test]
async fn a_message_that_ends_each_process_that_takes_it_becomes_a_dead_letter_alone() {
    Rabbit::declared(async |rabbit| {
        let texts: Vec<String> = (0..200).map(|index| index.to_string()).collect();
        let before: Vec<_> = texts[..100].iter().map(String::as_str).collect();
        let behind: Vec<_> = texts[100..].iter().map(String::as_str).collect();
        rabbit.commands(before.iter().copied().chain(["poison"]).chain(behind)).await;
        let publisher = Publisher::new(rabbit.broker());
        let shutdown = CancellationToken::new();
        // Two workers: what ends the one is given to the other.
        let worker = async || {
            let (mut seen, mut returns_max, mut kills) = (BTreeSet::new(), 0, 0);
            'life: loop {
                let mut consumer = consumer(rabbit, &lane());
                while let Some(batch) = consumer.next_batch(50, &shutdown).await {
                    let poison = batch.deliveries.iter().find(|delivery| delivery.body == b"poison");
                    if let Some(poison) = poison {
                        if !poison.is_worn_out() {
                            kills += 1;
                            continue 'life;
                        }
                        let error = "It ended every process.";
                        let dead = poison.dead_letter(
                            &rabbit.topology,
                            DeadLetterReason::Exhausted,
                            error,
                            &rabbit.queue(),
                            chrono::Utc::now(),
                        );
                        assert_eq!(publisher.publish_all(&[dead]).await, [Ok(())]);
                    } else {
                        returns_max = batch.deliveries.iter().map(|one| one.delivery_count).fold(returns_max, u64::max);
                        sleep(Duration::from_millis(5)).await;
                    }
                    let texts: Vec<_> = bodies(&batch).into_iter().map(str::to_owned).collect();
                    if batch.ack().await.is_ok() {
                        seen.extend(texts);
                    }
                }
                consumer.close().await;
                return (seen, returns_max, kills);
            }
        };
        let dead = async {
            let queue = rabbit.topology.dead_letter_queue();
            eventually("it is a dead letter", async || rabbit.count(&queue).await == 1).await;
            eventually("the others are done", async || rabbit.count(&rabbit.queue()).await == 0).await;
            shutdown.cancel();
        };
        let (a, b, ()) = tokio::join!(worker(), worker(), dead);
        println!("came back at most {} times; {} kills", a.1.max(b.1), a.2 + b.2);
        assert_eq!(a.0.union(&b.0).count(), 201);
        assert!(a.1.max(b.1) < RETURNS_MAX, "{} {}", a.1, b.1);
        let dead = rabbit.await_message(&rabbit.topology.dead_letter_queue()).await;
        assert_eq!(dead.data, b"poison");
        assert_eq!(text(dead.properties.headers().as_ref().unwrap(), "offramp-reason"), "exhausted");
        assert_eq!(rabbit.count(&rabbit.queue()).await, 0);
        publisher.close().await;
    })
    .await;
}

#[tokio::test]
async fn a_publishers_own_delivery_count_does_not_make_a_message_one_that_ends_workers() {
    Rabbit::declared(async |rabbit| {
        // As on a message that somebody has moved here from another quorum queue.
        let mut headers = FieldTable::default();
        headers.insert("x-delivery-count".into(), AMQPValue::LongLongInt(25));
        let properties = BasicProperties::default().with_headers(headers);
        rabbit.publish(&rabbit.prefix, "subscription.cancellation", b"moved", properties).await;
        // RabbitMQ 3 counts what is given back, and RabbitMQ 4 does not.
        let mut first = consumer(rabbit, &lane());
        next(&mut first).await.release().await;
        let again = next(&mut first).await;
        assert!(again.deliveries[0].redelivered);
        assert!(again.deliveries[0].delivery_count <= 1, "{}", again.deliveries[0].delivery_count);
        drop(again);
        first.close().await;
        // Both count a channel that ends.
        let mut second = consumer(rabbit, &lane());
        let batch = next(&mut second).await;
        assert!((1..=2).contains(&batch.deliveries[0].delivery_count), "{}", batch.deliveries[0].delivery_count);
        assert!(!batch.deliveries[0].is_worn_out());
        second.close().await;
    })
    .await;
}

/// Has what waits in the work queue come back so often.
async fn come_back(rabbit: &Rabbit, times: u64) {
    let queue = rabbit.queue();
    let waiting = rabbit.count(&queue).await;
    for _ in 0..times {
        rabbit.come_back(&queue, waiting).await;
        eventually("they are back", async || rabbit.count(&queue).await == waiting).await;
    }
}

#[tokio::test]
async fn messages_that_came_back_often_are_soon_taken_in_batches_again() {
    Rabbit::declared(async |rabbit| {
        let texts: Vec<String> = (0..500).map(|index| index.to_string()).collect();
        rabbit.commands(texts.iter().map(String::as_str)).await;
        come_back(rabbit, 6).await;

        let mut consumer = consumer(rabbit, &lane());
        // Each of them once; RabbitMQ gives them back in no order.
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
async fn after_messages_that_came_back_often_a_quiet_queue_is_soon_consumed_as_ever() {
    Rabbit::declared(async |rabbit| {
        rabbit.commands(["one", "two", "three"]).await;
        come_back(rabbit, 6).await;
        let mut consumer = consumer(rabbit, &lane());
        for _ in 0..2 {
            next(&mut consumer).await.ack().await.unwrap();
        }
        // Two would be sent ahead now, and there is one.
        next(&mut consumer).await.ack().await.unwrap();
        rabbit.commands(["fresh"]).await;
        let batch = next(&mut consumer).await;
        assert_eq!(bodies(&batch), ["fresh"]);
        batch.ack().await.unwrap();

        let texts: Vec<String> = (0..100).map(|index| index.to_string()).collect();
        rabbit.commands(texts.iter().map(String::as_str)).await;
        // All are sent ahead, with none settled.
        let batch = consumer.next_batch(1, &CancellationToken::new()).await.unwrap();
        eventually("all are sent ahead", async || rabbit.count(&rabbit.queue()).await == 0).await;
        batch.ack().await.unwrap();
        consumer.close().await;
    })
    .await;
}

#[tokio::test]
async fn what_is_there_already_is_not_forgotten_when_more_is_sent_ahead() {
    Rabbit::declared(async |rabbit| {
        rabbit.commands(["1", "2", "3", "4", "5", "6", "7", "8", "9", "10", "11"]).await;
        come_back(rabbit, 6).await;
        let texts: Vec<String> = (100..150).map(|index| index.to_string()).collect();
        rabbit.commands(texts.iter().map(String::as_str)).await;
        let mut consumer = consumer(rabbit, &lane());
        let mut seen = Vec::new();
        // Eight are sent ahead in the end.
        for size in [1, 1, 2, 2, 4, 4] {
            let batch = next(&mut consumer).await;
            assert_eq!(batch.deliveries.len(), size);
            seen.extend(bodies(&batch).into_iter().map(str::to_owned));
            batch.ack().await.unwrap();
        }
        // One of the eight is taken, and has the window opened.
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
async fn on_shutdown_the_batch_in_hand_is_acknowledged_and_the_rest_goes_back() {
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
async fn a_consumer_with_its_hands_full_reads_on_when_it_settles_and_stops_at_once() {
    Rabbit::declared(async |rabbit| {
        const MESSAGES: usize = 16;
        let body = "x".repeat(4 * 1024 * 1024);
        rabbit.commands([body.as_str(); MESSAGES]).await;
        let mut consumer = consumer(rabbit, &lane());
        let shutdown = CancellationToken::new();
        let mut settled = 0;
        // All are sent ahead, and it reads no more than some of them.
        let batch = timeout(SOON, consumer.next_batch(1, &shutdown)).await.unwrap().unwrap();
        eventually("all are sent ahead", async || rabbit.count(&rabbit.queue()).await == 0).await;
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
        assert!(began.elapsed() < Duration::from_secs(5), "the broker's answer was not read");
        let rest = u32::try_from(MESSAGES - settled).unwrap();
        eventually("the rest is back", async || rabbit.count(&rabbit.queue()).await == rest).await;
    })
    .await;
}

#[tokio::test]
async fn an_empty_queue_ends_at_once_on_shutdown() {
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
async fn a_suspended_consumer_gives_everything_back_and_begins_again_when_asked() {
    Rabbit::declared(async |rabbit| {
        rabbit.commands(["one", "two"]).await;
        let health = lane();
        let mut consumer = consumer(rabbit, &health);
        let batch = consumer.next_batch(1, &CancellationToken::new()).await.unwrap();
        consumer.suspend("MongoDB is away").await;
        assert_eq!(health.status().state, LaneState::Paused);
        assert_eq!(health.status().problem.as_deref(), Some("MongoDB is away"));
        assert!(batch.ack().await.is_err());
        eventually("both are back", async || rabbit.count(&rabbit.queue()).await == 2).await;
        next(&mut consumer).await.ack().await.unwrap();
        assert!(health.is_ready());
        consumer.close().await;
    })
    .await;
}

// ---------------------------------------------------------------------------------------------------------- losses ---

#[tokio::test]
async fn a_deleted_queue_is_declared_again_and_consumed() {
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
async fn a_lane_with_a_batch_in_hand_notices_that_its_consumer_was_cancelled() {
    Rabbit::declared(async |rabbit| {
        rabbit.commands(["one"]).await;
        let health = lane();
        let mut consumer = consumer(rabbit, &health);
        let batch = next(&mut consumer).await;
        assert!(batch.is_live() && health.is_ready());
        // The broker then cancels the consumer, and the channel stands.
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
async fn after_a_cut_connection_consumer_and_publisher_go_on() {
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
            // A publish that was not confirmed may have arrived all the same, so there may be several.
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
async fn after_the_broker_closed_the_connections_consumer_and_publisher_go_on() {
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
async fn an_ack_after_the_channel_is_gone_is_lost_and_the_messages_come_again() {
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
            // What was in hand comes again; what was not may overtake it while the broker takes it back.
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
async fn a_silent_network_ends_publishing_within_its_deadline_and_consuming_by_heartbeat() {
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

#[tokio::test]
async fn the_second_address_is_used_when_the_first_is_dead() {
    Rabbit::declared(async |rabbit| {
        let urls = format!("amqp://u:secret@127.0.0.1:1,{}", amqp_url());
        let broker = offramp::amqp::Broker::new(urls.parse().unwrap(), rabbit.prefix.clone());
        broker.connect("test").await.unwrap().close().await;
        let publisher = Publisher::new(broker);
        let message = Outgoing::new("", rabbit.queue(), b"x".to_vec()).mandatory();
        assert_eq!(publisher.publish_all(&[message]).await, [Ok(())]);
        publisher.close().await;
    })
    .await;
}

#[tokio::test]
async fn who_is_refused_is_told_so_and_no_password_is_shown() {
    Rabbit::run(async |_| {
        let mut url = url::Url::parse(&amqp_url()).unwrap();
        url.set_password(Some("very-secret")).unwrap();
        let error = offramp::amqp::Broker::new(url.as_str().parse().unwrap(), "t").connect("test").await.unwrap_err();
        assert!(matches!(error, BrokerError::Denied(_)), "{error:?}");
        assert!(error.to_string().contains("ACCESS_REFUSED"), "{error}");
        assert!(!format!("{error} {error:?}").contains("very-secret"));

        let mut url = url::Url::parse(&amqp_url()).unwrap();
        url.set_path("/nowhere");
        let error = offramp::amqp::Broker::new(url.as_str().parse().unwrap(), "t").connect("test").await.unwrap_err();
        assert!(matches!(&error, BrokerError::Denied(why) if why.contains("nowhere")), "{error:?}");

        let broker = offramp::amqp::Broker::new("amqp://u:very-secret@127.0.0.1:1".parse().unwrap(), "t");
        let error = broker.connect("test").await.unwrap_err();
        assert!(matches!(error, BrokerError::Unreachable(_)), "{error:?}");
        assert!(!format!("{error} {error:?} {broker:?}").contains("very-secret"));
    })
    .await;
}

// ------------------------------------------------------------------------------------------------------------- TLS ---

#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread")]
async fn over_tls_each_side_shows_its_certificate() {
    let (ca, other) = (ThrowAwayCa::new(), ThrowAwayCa::new());
    let servers = TlsServers::start(&ca, &["rabbitmq"]);
    let broker = |host: &str, trusted: &ThrowAwayCa, own: Option<&ThrowAwayCa>| {
        let authorities = Authorities::read(&trusted.path("ca.pem")).unwrap();
        let own = own.map(|ca| Identity::read(&ca.path("client.pem")).unwrap());
        let url = format!("amqps://{host}:{}", servers.port("rabbitmq"));
        Broker::with_tls(url.parse().unwrap(), "test", Tls::new(Some(authorities), own))
    };
    let refused = async |broker: Broker, why: &str| match broker.connect("test").await {
        Err(BrokerError::Unreachable(sentence)) => assert!(sentence.contains(why), "{sentence}"),
        other => panic!("{other:?}"),
    };
    refused(broker("localhost", &other, Some(&ca)), "invalid peer certificate").await;
    refused(broker("127.0.0.1", &ca, Some(&ca)), "not valid for name").await;
    // The server's "no" comes after its handshake, so it may only be a connection that ends.
    refused(broker("localhost", &ca, None), "localhost").await;
    refused(broker("localhost", &ca, Some(&other)), "localhost").await;

    let broker = broker("localhost", &ca, Some(&ca));
    let topology = Topology::new("tls");
    topology.declare(&broker).await.unwrap();
    let queue = topology.work_queue(CommandType::Cancellation);
    let publisher = Publisher::new(broker.clone());
    // Larger than a TLS record, and than a frame.
    let body = vec![b'x'; 200_000];
    assert_eq!(publisher.publish_all(&[Outgoing::new("", &queue, body.clone()).mandatory()]).await, [Ok(())]);
    let mut consumer = Consumer::new(broker, topology, queue, 100, lane());
    let batch = next(&mut consumer).await;
    assert!(batch.deliveries[0].body == body);
    batch.ack().await.unwrap();
    consumer.close().await;
    publisher.close().await;
}
