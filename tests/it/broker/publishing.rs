//! Publishing: a message is confirmed, or an error says why not.

use std::slice;
use std::time::Duration;

use offramp::amqp::{Outgoing, PublishError, Publisher, RetryDelay};
use tokio::join;
use tokio::time::interval;

use super::text;
use offramp_testkit::eventually;
use offramp_testkit::proxy::{LOST, Proxy};
use offramp_testkit::rabbit::{Policy, Rabbit};

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
async fn only_unroutable_messages_fail() {
    Rabbit::declared(async |rabbit| {
        let publisher = Publisher::new(rabbit.broker());
        // Several rounds, because the broker groups confirms, and a returned message could be matched to the wrong one.
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
async fn messages_that_are_not_mandatory_may_be_unroutable() {
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
async fn a_message_rejected_by_the_broker_does_not_fail_the_others() {
    Rabbit::declared(async |rabbit| {
        let publisher = Publisher::new(rabbit.broker());
        let good = |body: &str| Outgoing::new("", rabbit.queue(), body.into()).mandatory();
        // Its user is not the connection's, so the broker closes the channel.
        let bad = good("bad").with_properties(|properties| properties.with_user_id("somebody-else".into()));
        let long = Outgoing::new("", "k".repeat(300), Vec::new());
        let results = publisher.publish_all(&[good("one"), bad, long, good("two")]).await;
        assert_eq!((&results[0], &results[3]), (&Ok(()), &Ok(())), "{results:?}");
        assert!(matches!(&results[1], Err(PublishError::Nacked(why)) if why.contains("user_id")), "{results:?}");
        assert!(matches!(&results[2], Err(PublishError::Nacked(why)) if why.contains("255")), "{results:?}");
        publisher.close().await;
    })
    .await;
}

#[tokio::test]
async fn concurrent_publishing_succeeds() {
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
async fn publishing_declares_deleted_queues_and_exchanges_again() {
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

        // A queue of another system is not declared.
        let foreign = Outgoing::new("", format!("{}-answers", rabbit.prefix), Vec::new()).mandatory();
        assert_eq!(publisher.publish_all(&[foreign]).await, [Err(PublishError::Unroutable)]);
        // Nor is a queue with the prefix that is not part of the topology.
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
async fn publisher_status_reports_missing_confirms() {
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
        // The status recovers without another publish.
        eventually("the status is ok again", async || publisher.status().is_ok()).await;
        publisher.close().await;
    })
    .await;
}

#[tokio::test]
async fn a_publisher_recovers_once_its_messages_are_no_longer_rejected() {
    Rabbit::declared(async |rabbit| {
        let queue = rabbit.topology.dead_letter_queue();
        let publisher = Publisher::new(rabbit.broker());
        let message = [Outgoing::new("", &queue, b"letter".to_vec()).mandatory()];
        assert_eq!(publisher.publish_all(&message).await, [Ok(())]);
        let policy = Policy::that_rejects(&queue).await;
        let rejected = publisher.publish_all(&message).await;
        assert!(matches!(rejected[..], [Err(PublishError::Nacked(_))]), "{rejected:?}");
        drop(policy);
        eventually("it is taken", async || publisher.publish_all(&message).await == [Ok(())]).await;
        publisher.close().await;
    })
    .await;
}

/// A node that is cut off from its cluster opens connections and channels, and confirms no message that a queue takes.
#[tokio::test]
async fn a_publisher_leaves_an_address_that_confirms_nothing() {
    Rabbit::declared(async |rabbit| {
        let (cut_off, serving) = (Proxy::start().await, Proxy::start().await);
        let publisher = Publisher::new(Proxy::broker_behind([&cut_off, &serving], &rabbit.prefix));
        let message = |body: &str| [Outgoing::new("", rabbit.queue(), body.into()).mandatory()];
        // Two channels, of which one stays idle.
        let (one, two) = (message("one"), message("two"));
        assert_eq!(join!(publisher.publish_all(&one), publisher.publish_all(&two)), (vec![Ok(())], vec![Ok(())]));
        cut_off.hold_requests("during");
        assert_eq!(publisher.publish_all(&message("during")).await, [unconfirmed("no confirm for 5 s")]);
        assert_eq!(publisher.publish_all(&message("during")).await, [Ok(())]);
        publisher.close().await;
    })
    .await;
}

/// It may be that of a load balancer, which then leads to another node.
#[tokio::test]
async fn a_publisher_reconnects_to_its_only_address_when_the_time_is_up() {
    Rabbit::declared(async |rabbit| {
        let proxy = Proxy::start().await;
        let publisher = Publisher::new(proxy.broker(&rabbit.prefix));
        let message = |body: &str| [Outgoing::new("", rabbit.queue(), body.into()).mandatory()];
        assert_eq!(publisher.publish_all(&message("before")).await, [Ok(())]);
        proxy.hold_requests("during");
        assert_eq!(publisher.publish_all(&message("during")).await, [unconfirmed("no confirm within 10 s")]);
        assert_eq!(publisher.publish_all(&message("after")).await, [Ok(())]);
        publisher.close().await;
    })
    .await;
}

/// A queue that takes nothing costs no connection; but a node that is cut off confirms events that no queue takes.
#[tokio::test]
async fn a_publisher_keeps_a_connection_only_while_confirms_show_that_it_serves() {
    Rabbit::declared(async |rabbit| {
        let copy = Outgoing::new("", rabbit.queue(), b"another".to_vec()).mandatory();
        let event = Outgoing::new(rabbit.topology.event_exchange(), "nobody.wants.this", b"another".to_vec());
        for (other, expected) in [(copy, "no confirm within 10 s"), (event, "no confirm for 5 s")] {
            let (first, second) = (Proxy::start().await, Proxy::start().await);
            let publisher = Publisher::new(Proxy::broker_behind([&first, &second], &rabbit.prefix));
            let stuck = [Outgoing::new(rabbit.topology.event_exchange(), "subscription.ended", LOST.into())];
            let stuck = tokio::spawn({
                let publisher = publisher.clone();
                async move { publisher.publish_all(&stuck).await }
            });
            eventually("the message is on its way", async || first.has_caught()).await;
            let mut pace = interval(Duration::from_millis(50));
            while !stuck.is_finished() {
                pace.tick().await;
                // It fails if the connection is given up just then.
                drop(publisher.publish_all(slice::from_ref(&other)).await);
            }
            assert_eq!(stuck.await.unwrap(), [unconfirmed(expected)]);
            publisher.close().await;
        }
    })
    .await;
}

fn unconfirmed(why: &str) -> Result<(), PublishError> {
    Err(PublishError::Unavailable(why.to_owned()))
}
