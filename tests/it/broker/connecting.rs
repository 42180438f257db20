//! Connecting: several addresses, TLS, rejected credentials.

use std::time::Duration;

use futures_util::future::join_all;
use offramp::amqp::{Broker, BrokerError, Consumer, Outgoing, Publisher, Topology};
use offramp::tls::{Authorities, Identity, Tls};
use offramp_domain::command_ref::CommandType;
use tokio::time::timeout;

use super::{lane, next};
use offramp_testkit::eventually;
use offramp_testkit::proxy::Proxy;
use offramp_testkit::rabbit::{Rabbit, VirtualHost, amqp_url};
use offramp_testkit::tls::{ThrowAwayCa, TlsServers};

#[tokio::test]
async fn the_second_address_is_used_when_the_first_is_unreachable() {
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

/// A worker opens all its connections at once. If they went to different nodes, some would go to one that is cut off from its cluster.
#[tokio::test]
async fn concurrent_connections_lead_to_the_same_address_and_leave_it_together() {
    Rabbit::run(async |rabbit| {
        let [first, second, third] = [Proxy::start().await, Proxy::start().await, Proxy::start().await];
        let broker = Proxy::broker_behind([&first, &second, &third], &rabbit.prefix);
        for address in [first, second] {
            let links = join_all((0..8).map(|_| broker.connect("test"))).await;
            let links: Vec<_> = links.into_iter().map(Result::unwrap).collect();
            drop(address);
            eventually("all connections are lost", async || links.iter().all(|link| !link.is_live())).await;
        }
    })
    .await;
}

#[tokio::test]
async fn an_address_that_the_caller_gave_up_does_not_come_first_again() {
    Rabbit::run(async |rabbit| {
        let (slow, other) = (Proxy::start().await, Proxy::start().await);
        let broker = Proxy::broker_behind([&slow, &other], &rabbit.prefix);
        slow.stall();
        timeout(Duration::from_secs(1), broker.connect("test")).await.unwrap_err();
        slow.resume();
        let link = broker.connect("test").await.unwrap();
        drop(other);
        eventually("the connection is lost", async || !link.is_live()).await;
    })
    .await;
}

#[tokio::test]
async fn a_consumer_that_one_node_refuses_consumes_at_another() {
    Rabbit::declared(async |rabbit| {
        let refusing = VirtualHost::without_reading(&format!("{}-refusing", rabbit.prefix));
        let urls = format!("{},{}", refusing.amqp_url(), amqp_url());
        let broker = Broker::new(urls.parse().unwrap(), rabbit.prefix.clone());
        rabbit.commands(["one"]).await;
        let mut consumer = Consumer::new(broker, rabbit.topology.clone(), CommandType::Cancellation, 100, lane());
        next(&mut consumer).await.ack().await.unwrap();
        consumer.close().await;
    })
    .await;
}

#[tokio::test]
async fn connection_errors_name_the_cause_and_never_show_the_password() {
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

#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread")]
async fn tls_connections_verify_both_certificates() {
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
    // The server rejects the client certificate after its own handshake, so the client may only see the connection end.
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
    let mut consumer = Consumer::new(broker, topology, CommandType::Cancellation, 100, lane());
    let batch = next(&mut consumer).await;
    assert!(batch.deliveries[0].body == body);
    batch.ack().await.unwrap();
    consumer.close().await;
    publisher.close().await;
}
