//! Frames that lapin cannot parse: the rest of the message still arrives.

use lapin::types::{AMQPValue, FieldTable};
use offramp::amqp::{Outgoing, Publisher};
use offramp_domain::dead_letter::DeadLetterReason;

use super::{consumer, lane, next, text};
use offramp_testkit::proxy::{NESTED, NOT_UTF8, Proxy, nested_arrays};
use offramp_testkit::rabbit::Rabbit;

#[tokio::test]
async fn deeply_nested_headers_are_dropped_and_the_message_arrives() {
    Rabbit::declared(async |rabbit| {
        let proxy = Proxy::start().await;
        let publisher = Publisher::new(proxy.broker(&rabbit.prefix));
        let mut message = Outgoing::new("", rabbit.queue(), b"deep".to_vec()).mandatory().header("tenant", "north");
        let mut headers = message.properties().headers().clone().unwrap();
        // Deep enough to overflow any stack. A whole frame of nesting would take RabbitMQ 3.10 seconds.
        headers.insert(NESTED.into(), AMQPValue::ByteArray(nested_arrays(10_000).into()));
        message = message.with_properties(|properties| properties.with_headers(headers));
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
        // A client without the frame filter can read the dead letter too.
        let dead = rabbit.await_message(&rabbit.topology.dead_letter_queue()).await;
        assert_eq!(text(dead.properties.headers().as_ref().unwrap(), "offramp-error"), "It is deep.");
        consumer.close().await;
        publisher.close().await;
    })
    .await;
}

#[tokio::test]
async fn text_that_is_not_utf8_is_replaced_and_the_message_arrives() {
    Rabbit::declared(async |rabbit| {
        let proxy = Proxy::start().await;
        let publisher = Publisher::new(proxy.broker(&rabbit.prefix));
        let property = Outgoing::new("", rabbit.queue(), b"property".to_vec()).mandatory().correlation_id(NOT_UTF8);
        // No queue has this name, but CC routes the message to the queue.
        let mut key = Outgoing::new("", NOT_UTF8, b"routing key".to_vec()).mandatory();
        let mut copies = lapin::types::FieldArray::default();
        copies.push(AMQPValue::LongString(rabbit.queue().as_str().into()));
        let mut headers = FieldTable::default();
        headers.insert("CC".into(), AMQPValue::FieldArray(copies));
        key = key.with_properties(|properties| properties.with_headers(headers));
        // One at a time: the proxy replaces one marker per read.
        assert_eq!(publisher.publish_all(&[property]).await, [Ok(())]);
        assert_eq!(publisher.publish_all(&[key]).await, [Ok(())]);

        let mut consumer = consumer(rabbit, &lane());
        let mut deliveries = Vec::new();
        while deliveries.len() < 2 {
            let batch = next(&mut consumer).await;
            deliveries.extend(batch.deliveries.clone());
            batch.ack().await.unwrap();
        }
        assert_eq!(deliveries[0].correlation_id().unwrap(), "?".repeat(NOT_UTF8.len()));
        assert_eq!(deliveries[1].routing_key, "?".repeat(NOT_UTF8.len()));
        assert!(deliveries.iter().all(|delivery| !delivery.redelivered));
        consumer.close().await;
        publisher.close().await;
    })
    .await;
}
