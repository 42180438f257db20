//! A MongoDB that answers and takes no writes, or has no room on its disk.

use std::process::Command;
use std::time::Instant;

use bson::doc;
use mongodb::Client;

use offramp_testkit::eventually;
use offramp_testkit::fixtures::{cancellation, populate, subscription};
use offramp_testkit::private_servers::PrivateServers;
use offramp_testkit::process;
use offramp_testkit::smtp_sink::SmtpSink;
use offramp_testkit::test_bed::TestBed;
use offramp_testkit::worker_process::WorkerProcess;

struct Scene {
    servers: PrivateServers,
    bed: TestBed,
    sink: SmtpSink,
    worker: WorkerProcess,
    admin: mongodb::Database,
}

impl Scene {
    async fn start(name: &str) -> Self {
        let servers = PrivateServers::start(&["mongodb"], vec![]);
        let url = format!("mongodb://127.0.0.1:{}/x?directConnection=true", servers.port("mongodb"));
        let bed = TestBed::at(name, &url).await;
        let sink = SmtpSink::start().await;
        populate(&bed).await;
        bed.collection("subscriptions").insert_one(subscription("later", "org", "acc")).await.unwrap();
        let worker = WorkerProcess::start_with(&bed, &sink.url(), &[("OFFRAMP_HOLD_SECONDS", "5")]).await;
        let admin = Client::with_uri_str(&url).await.unwrap().database("admin");
        Self { servers, bed, sink, worker, admin }
    }

    /// Waits until the worker says so.
    async fn not_ready(&self, sentence: &str) {
        eventually(&format!("a worker that is not ready: {sentence}"), || async {
            self.worker.readyz().await.is_some_and(|answer| answer.status == 503 && answer.body.contains(sentence))
        })
        .await;
    }

    /// Waits until the worker is ready and has processed everything, once.
    async fn recovers(self) {
        let usable_at = Instant::now();
        eventually("a ready worker", || async {
            self.worker.readyz().await.is_some_and(|answer| answer.status == 200)
        })
        .await;
        println!("ready {:?} after the database was usable again", usable_at.elapsed());
        eventually("every command to be applied", || async {
            let cancelled = doc! { "status": "cancellation_scheduled", "history": { "$size": 1 } };
            self.bed.collection("subscriptions").count_documents(cancelled).await.unwrap() == 2
        })
        .await;
        self.bed.outboxes_empty().await;
        assert_eq!(self.sink.emails().len(), 2);
        assert!(self.bed.take("dead-letters").await.is_none());
        assert!(self.bed.take("retry.5s").await.is_none(), "no attempt is counted");
        assert!(self.worker.stop().await.success());
        self.bed.remove().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_locked_database_makes_the_worker_unready_until_it_is_unlocked() {
    let scene = Scene::start("locked").await;
    scene.admin.run_command(doc! { "fsync": 1, "lock": true }).await.unwrap();
    scene.bed.command(&cancellation("c-1", "sub")).await;
    scene.not_ready("it answers, but accepts no writes").await;
    scene.bed.command(&cancellation("c-2", "later")).await;
    eventually("a lane that has stopped consuming", || async {
        crate::outages::waiting(&scene.bed, "cancellation").await == (2, 0)
    })
    .await;
    scene.admin.run_command(doc! { "fsyncUnlock": 1 }).await.unwrap();
    scene.recovers().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_primary_that_stepped_down_makes_the_worker_unready_until_there_is_one_again() {
    let scene = Scene::start("stepped-down").await;
    // The only member: there is no successor. The server may close the connection instead of replying.
    let step_down = doc! { "replSetStepDown": 600, "secondaryCatchUpPeriodSecs": 0, "force": true };
    drop(scene.admin.run_command(step_down).await);
    scene.bed.command(&cancellation("c-1", "sub")).await;
    scene.not_ready("NotWritablePrimary").await;
    scene.bed.command(&cancellation("c-2", "later")).await;
    scene.admin.run_command(doc! { "replSetFreeze": 0 }).await.unwrap();
    eventually("a primary", || async {
        let hello = scene.admin.run_command(doc! { "hello": 1 }).await.unwrap();
        hello.get_bool("isWritablePrimary").unwrap()
    })
    .await;
    scene.recovers().await;
}

/// A server that cannot write its journal ends itself. Here the limit is one of file sizes, which needs no privileges.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_without_room_for_its_journal_loses_nothing() {
    let scene = Scene::start("full-disk").await;
    let mut limit = Command::new("prlimit");
    limit.arg(format!("--pid={}", scene.servers.process("mongodb"))).arg("--fsize=4096:");
    assert!(process::run(&mut limit, Command::status).unwrap().success());
    scene.bed.command(&cancellation("c-1", "sub")).await;
    scene.not_ready("Connection refused").await;
    scene.bed.command(&cancellation("c-2", "later")).await;
    scene.servers.control(&["start", "mongodb"]);
    scene.recovers().await;
}
