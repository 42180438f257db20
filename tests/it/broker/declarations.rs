//! Exchanges and queues: declared by the first process, never redeclared with other arguments.

use std::time::Duration;

use lapin::ExchangeKind;
use lapin::options::{ExchangeDeclareOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable};
use offramp::amqp::{Broker, BrokerError, RetryDelay, Topology, TopologyError};

use offramp_testkit::proxy::Proxy;
use offramp_testkit::rabbit::{Rabbit, VirtualHost, amqp_url};

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

/// As with a queue whose leader is on a frozen node.
#[tokio::test(flavor = "multi_thread")]
async fn an_object_that_does_not_answer_is_named_and_waited_for() {
    Rabbit::run(async |rabbit| {
        let line = Proxy::start().await;
        let broker = line.broker("patient");
        let sentence =
            format!("RabbitMQ did not find queue '{}' within 5 s", rabbit.topology.retry_queue(RetryDelay::M2));
        line.hold_requests(".retry.2m");
        let error = rabbit.topology.declare_patiently(&broker, Duration::ZERO, |_| {}).await.unwrap_err();
        assert_eq!(error.to_string(), sentence);

        let mut reports = Vec::new();
        let report = |error: &TopologyError| {
            reports.push(error.to_string());
            line.hold_requests("");
        };
        let declared = rabbit.topology.declare_patiently(&broker, Duration::from_secs(60), report).await.unwrap();
        assert_eq!(reports, [sentence]);
        assert_eq!(declared.created.len() + declared.existing.len(), 18, "each object once: {declared:?}");
    })
    .await;
}

#[tokio::test]
async fn a_broker_that_refuses_connections_is_not_waited_for() {
    let broker = Broker::new("amqp://127.0.0.1:1".parse().unwrap(), "t");
    let declared = Topology::new("p").declare_patiently(&broker, Duration::from_secs(3_600), |_| {}).await;
    assert!(matches!(declared, Err(TopologyError::Broker(BrokerError::Unreachable(_)))), "{declared:?}");
}

#[tokio::test]
async fn concurrent_declarations_succeed() {
    Rabbit::run(async |rabbit| {
        let (a, b, c) = (rabbit.broker(), rabbit.broker(), rabbit.broker());
        let topology = &rabbit.topology;
        let (a, b, c) = tokio::join!(topology.declare(&a), topology.declare(&b), topology.declare(&c));
        a.and(b).and(c).unwrap();
    })
    .await;
}

#[tokio::test]
async fn an_exchange_declared_by_a_publisher_is_accepted() {
    Rabbit::run(async |rabbit| {
        let options = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
        let name = rabbit.prefix.as_str().into();
        rabbit.channel.exchange_declare(name, ExchangeKind::Topic, options, FieldTable::default()).await.unwrap();
        rabbit.topology.declare(&rabbit.broker()).await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn a_differing_queue_is_reported_with_the_difference_and_the_remedy() {
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
        let advice = offramp::advice::topology_error(&error).unwrap();
        assert!(advice.contains("offramp init") && advice.contains("OFFRAMP_PREFIX"), "{advice}");
    })
    .await;
}

#[tokio::test]
async fn an_exchange_of_another_type_is_reported() {
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

/// A node that has lost its data accepts clients before it joins its cluster again. What it confirms is lost when it does.
#[tokio::test]
async fn a_node_that_lacks_what_another_address_has_is_left_alone() {
    Rabbit::declared(async |rabbit| {
        let blank = VirtualHost::new(&format!("{}-blank", rabbit.prefix));
        let both = format!("{},{}", blank.amqp_url(), amqp_url());
        let broker = Broker::new(both.parse().unwrap(), "tests");
        let error = rabbit.topology.declare(&broker).await.unwrap_err();
        assert!(matches!(error, TopologyError::Broker(BrokerError::Stranger { .. })), "{error:?}");
        let declared = rabbit.topology.declare(&broker).await.unwrap();
        assert_eq!((declared.created.len(), declared.existing.len()), (0, 18), "the other address: {declared:?}");

        let unreachable = "amqp://127.0.0.1:1";
        let cut_off = format!("{},{unreachable},{unreachable}", blank.amqp_url());
        let error = rabbit.topology.declare(&Broker::new(cut_off.parse().unwrap(), "tests")).await.unwrap_err();
        let expected = "only 1 of 3 addresses say so, but at least half must lack it before it is declared";
        assert!(error.to_string().ends_with(expected), "{error}");

        let half = format!("{},{unreachable}", blank.amqp_url());
        let declared = rabbit.topology.declare(&Broker::new(half.parse().unwrap(), "tests")).await.unwrap();
        assert_eq!(declared.created.len(), 18, "nothing was declared there before: {declared:?}");
    })
    .await;
}
