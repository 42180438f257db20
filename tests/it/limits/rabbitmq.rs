//! A RabbitMQ that blocks publishers for longer than any time limit of a worker, does not answer, or has a queue that does not.

use std::io::{BufRead, BufReader, Read};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use bson::doc;
use lapin::BasicProperties;
use lapin::options::QueueDeclareOptions;
use lapin::types::FieldTable;

use offramp_domain::command_ref::CommandType;
use offramp_testkit::fixtures::{cancellation, populate, subscription};
use offramp_testkit::private_servers::PrivateServers;
use offramp_testkit::smtp_sink::SmtpSink;
use offramp_testkit::test_bed::TestBed;
use offramp_testkit::worker_process::{WorkerProcess, offramp};
use offramp_testkit::{eventually, eventually_within};

async fn broker(name: &str) -> (PrivateServers, TestBed) {
    broker_with(name, vec![]).await
}

async fn broker_with(name: &str, environment: Vec<(&'static str, PathBuf)>) -> (PrivateServers, TestBed) {
    let servers = PrivateServers::start(&["rabbitmq"], environment);
    let bed = TestBed::at_broker(name, &format!("amqp://127.0.0.1:{}/%2f", servers.port("rabbitmq"))).await;
    (servers, bed)
}

fn init(bed: &TestBed) -> Command {
    let mut command = offramp(bed);
    command.arg("init").env_remove("OFFRAMP_SWEEP_SECONDS").env_remove("OFFRAMP_MAIL_FROM");
    command
}

async fn is_blocked(worker: &WorkerProcess) -> bool {
    let sentence = "RabbitMQ blocks publishers: it is low on memory or disk";
    worker.readyz().await.is_some_and(|answer| answer.status == 503 && answer.body.contains(sentence))
}

/// Longer than a publication may take (10 s), than a silent peer counts as alive (20 s) and than messages are held (5 s here).
#[tokio::test(flavor = "multi_thread")]
async fn a_long_memory_alarm_loses_nothing_and_counts_no_redelivery() {
    const COUNT: usize = 20;
    const ALARM: Duration = Duration::from_secs(40);
    let (servers, bed) = broker("alarm").await;
    let sink = SmtpSink::start().await;
    populate(&bed).await;
    let subscriptions = (0..COUNT).map(|index| subscription(&format!("sub-{index}"), "org", "acc"));
    bed.collection("subscriptions").insert_many(subscriptions).await.unwrap();
    assert!(init(&bed).output().unwrap().status.success());
    let replies = format!("{}.test-replies", bed.prefix);
    let options = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
    bed.channel.queue_declare(replies.as_str().into(), options, FieldTable::default()).await.unwrap();
    for index in 0..COUNT {
        let command = cancellation(&format!("c-{index}"), &format!("sub-{index}"));
        let properties = BasicProperties::default().with_reply_to(replies.as_str().into());
        bed.publish_with("subscription.cancellation", command.to_string().as_bytes(), properties).await;
    }
    // Each needs a copy.
    bed.command(&cancellation("unknown", "nobody")).await;
    bed.publish("subscription.cancellation", b"nonsense").await;

    servers.control(&["alarm", "rabbitmq"]);
    let raised_at = Instant::now();
    // Declaring objects and starting work in an alarm.
    let again = init(&bed).output().unwrap();
    assert!(again.status.success(), "{}", String::from_utf8_lossy(&again.stderr));
    let settings = [("OFFRAMP_HOLD_SECONDS", "5")];
    let mut worker = WorkerProcess::spawn(&bed, &sink.url(), &settings, Stdio::piped());
    let mut stderr = worker.take_log();
    let log = tokio::task::spawn_blocking(move || {
        let mut log = String::new();
        stderr.read_to_string(&mut log).map(|_| log)
    });
    eventually("every decision", || async {
        let cancelled = doc! { "status": "cancellation_scheduled" };
        bed.collection("subscriptions").count_documents(cancelled).await.unwrap() == COUNT as u64
    })
    .await;
    eventually("every email", || async { sink.emails().len() == COUNT }).await;
    eventually("a worker that names the cause", || is_blocked(&worker)).await;
    // Not a pause for something to happen: that nothing happens is what is tested.
    tokio::time::sleep(ALARM.saturating_sub(raised_at.elapsed())).await;
    assert!(is_blocked(&worker).await);
    for lane in CommandType::ALL {
        assert_eq!(worker.connections(lane).await, 1, "{lane}: a lost connection counts as a redelivery");
    }

    servers.control(&["relieve", "rabbitmq"]);
    let relieved_at = Instant::now();
    let worker = worker.ready().await;
    println!("ready {:?} after the end of the alarm", relieved_at.elapsed());
    let bed = bed.reopened().await;
    let letter = bed.dead_letter().await;
    assert_eq!((letter.body.as_slice(), letter.header("offramp-reason").as_str()), (&b"nonsense"[..], "invalid"));
    bed.outboxes_empty().await;
    for lane in CommandType::ALL {
        assert_eq!(worker.connections(lane).await, 1, "{lane}");
    }
    // The unknown subscription arrives, and the waiting command finds it.
    bed.collection("subscriptions").insert_one(subscription("nobody", "org", "acc")).await.unwrap();
    eventually_within(Duration::from_secs(90), "the command that waited", || async {
        let document = bed.document("subscriptions", "nobody").await?;
        document.get_str("status").is_ok_and(|status| status == "cancellation_scheduled").then_some(())
    })
    .await;
    bed.outboxes_empty().await;
    assert!(worker.stop().await.success());
    assert_eq!(sink.emails().len(), COUNT + 1);
    let log = log.await.unwrap().unwrap();
    assert!(log.contains("RabbitMQ blocks publishers"), "{log}");
    bed.database.drop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn init_waits_for_a_frozen_broker_and_says_so() {
    let (servers, bed) = broker("frozen").await;
    servers.control(&["pause", "rabbitmq"]);
    let mut initialising = init(&bed).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stderr = BufReader::new(initialising.stderr.take().unwrap());
    // The first report comes after 5 s.
    let first = tokio::task::spawn_blocking(move || {
        let mut first = String::new();
        stderr.read_line(&mut first).unwrap();
        (first, stderr)
    });
    let (first, _stderr) = first.await.unwrap();
    assert!(first.contains("no AMQP handshake within 5 s; retrying (") && first.contains(" of 180 s)"), "{first}");
    servers.control(&["resume", "rabbitmq"]);
    let output = tokio::task::spawn_blocking(move || initialising.wait_with_output().unwrap()).await.unwrap();
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success() && printed.contains("RabbitMQ: 18 objects created, 0 were there"), "{printed}");
    bed.database.drop().await.unwrap();
}

/// As on a node that is cut off from its cluster: heartbeats arrive, deliveries do not. RabbitMQ 3 is not asked.
#[tokio::test(flavor = "multi_thread")]
async fn a_lane_leaves_a_node_where_its_queue_does_not_answer() {
    let lane = CommandType::Cancellation;
    let (servers, bed) = broker_with("deaf", vec![("OFFRAMP_SERVICES_RABBITMQ", "4".into())]).await;
    populate(&bed).await;
    assert!(init(&bed).output().unwrap().status.success());
    let sink = SmtpSink::start().await;
    let worker = WorkerProcess::start(&bed, &sink.url()).await;
    assert_eq!(worker.connections(lane).await, 1);

    let queue = |action: &str| {
        format!(
            "[sys:{action}(amqqueue:get_pid(Queue)) || Queue <- rabbit_amqqueue:list(), \
             element(4, amqqueue:get_name(Queue)) =:= <<\"{}.cancellation\">>].",
            bed.prefix
        )
    };
    servers.control(&["rabbitmqctl", "eval", &queue("suspend")]);
    eventually_within(Duration::from_secs(30), "a worker that names the cause", || async {
        let answer = worker.readyz().await?;
        (answer.status == 503 && answer.body.contains("RabbitMQ did not")).then_some(())
    })
    .await;
    eventually("another connection", || async { worker.connections(lane).await > 1 }).await;
    let others = CommandType::ALL.into_iter().filter(|other| *other != lane);
    for other in others {
        assert_eq!(worker.connections(other).await, 1, "{other}");
    }

    servers.control(&["rabbitmqctl", "eval", &queue("resume")]);
    let worker = worker.ready().await;
    bed.command(&cancellation("c", "sub")).await;
    eventually("an email", || async { sink.emails().len() == 1 }).await;
    bed.outboxes_empty().await;
    assert!(worker.stop().await.success());
    bed.database.drop().await.unwrap();
}

/// As in a cluster of RabbitMQ 3 for a minute after a node was cut off.
#[tokio::test(flavor = "multi_thread")]
async fn a_worker_starts_while_no_binding_can_be_declared() {
    let (servers, bed) = broker("unbound").await;
    populate(&bed).await;
    assert!(init(&bed).output().unwrap().status.success());
    bed.command(&cancellation("c", "sub")).await;
    // What decides on changes of metadata, in RabbitMQ 3 and 4.
    let metadata = |action: &str| {
        format!("[sys:{action}(Name) || Name <- [mnesia_tm, rabbitmq_metadata], whereis(Name) =/= undefined].")
    };
    servers.control(&["rabbitmqctl", "eval", &metadata("suspend")]);
    let sink = SmtpSink::start().await;
    let mut worker = WorkerProcess::spawn(&bed, &sink.url(), &[], Stdio::piped());
    let mut stderr = worker.take_log();
    let log = tokio::task::spawn_blocking(move || {
        let mut log = String::new();
        stderr.read_to_string(&mut log).map(|_| log)
    });
    eventually_within(Duration::from_secs(60), "an email", || async { sink.emails().len() == 1 }).await;
    servers.control(&["rabbitmqctl", "eval", &metadata("resume")]);
    let worker = worker.ready().await;
    bed.outboxes_empty().await;
    assert!(worker.stop().await.success());
    let log = log.await.unwrap().unwrap();
    assert!(log.contains("RabbitMQ does not confirm bindings; starting anyway"), "{log}");
    bed.database.drop().await.unwrap();
}
