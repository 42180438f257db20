//! Three `mongod` as a replica set.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use bson::{Document, doc};
use mongodb::Client;
use mongodb::options::{ClientOptions, WriteConcern};
use tokio::time::timeout;

use super::network::Network;
use super::server::Server;
use super::{SIZE, words};
use offramp_testkit::eventually;
use offramp_testkit::process::free_port;

/// How long to wait for a server's reply when its state is asked for.
const REPLY_PATIENCE: Duration = Duration::from_secs(1);

/// The replica set. Its members have the numbers 0, 1 and 2.
pub struct ReplicaSet {
    members: Vec<Member>,
    network: Network,
}

struct Member {
    server: Server,
    data: PathBuf,
    port: u16,
    gate: u16,
    /// Past the gate.
    client: Client,
}

impl ReplicaSet {
    /// Starts the members, and waits until one is the primary.
    pub async fn start(data: &Path, logs: &Path, network: &Network) -> Self {
        let mut set = Self { members: Vec::new(), network: network.clone() };
        for number in 0..SIZE {
            let port = free_port();
            let gate = network.gate(number, port).await;
            let mut options = ClientOptions::parse(format!("mongodb://127.0.0.1:{port}")).await.unwrap();
            options.direct_connection = Some(true);
            options.server_selection_timeout = Some(REPLY_PATIENCE);
            options.connect_timeout = Some(REPLY_PATIENCE);
            let name = format!("mongodb-{}", number + 1);
            let data = data.join(&name);
            std::fs::create_dir_all(&data).unwrap();
            let client = Client::with_options(options).unwrap();
            set.members.push(Member { server: Server::new(name, logs), data, port, gate, client });
            set.launch(number);
        }
        let hosts: Vec<Document> = (0..)
            .zip(&set.members)
            .map(|(id, member)| {
                doc! { "_id": id, "host": format!("127.0.0.1:{}", member.gate) }
            })
            .collect();
        let configuration = doc! { "replSetInitiate": { "_id": "rs0", "members": hosts } };
        eventually("three members", async || {
            for number in 0..SIZE {
                set.ask(number, doc! { "ping": 1 }).await?;
            }
            Some(())
        })
        .await;
        set.members[0].client.database("admin").run_command(configuration).await.unwrap();
        set.await_primary().await;
        set
    }

    /// The URL for workers.
    pub fn url(&self) -> String {
        let hosts: Vec<String> = self.members.iter().map(|member| format!("127.0.0.1:{}", member.gate)).collect();
        format!("mongodb://{}/offramp?replicaSet=rs0", hosts.join(","))
    }

    pub fn launch(&mut self, number: usize) {
        let member = &mut self.members[number];
        let mut words = words("SERVICES_MONGOD").into_iter();
        let mut command = Command::new(words.next().unwrap());
        command.args(words).arg("--dbpath").arg(&member.data).args(["--bind_ip", "127.0.0.1"]);
        command.args(["--port", &member.port.to_string(), "--replSet", "rs0", "--nounixsocket"]);
        command.args(["--oplogSize", "256", "--wiredTigerCacheSizeGB", "0.25"]);
        command.args(["--setParameter", "diagnosticDataCollectionEnabled=false"]);
        // Shorter than the usual 15 s, so that a run has time for more faults.
        command.args(["--setParameter", "shutdownTimeoutMillisForSignaledShutdown=2000"]);
        let process = member.server.start(command);
        self.network.set_process(number, Some(process));
    }

    pub fn server(&mut self, number: usize) -> &mut Server {
        &mut self.members[number].server
    }

    /// The others of a member.
    pub fn others(number: usize) -> impl Iterator<Item = usize> {
        (0..SIZE).filter(move |other| *other != number)
    }

    /// The reply of a member to a command, if it replies soon and without an error.
    async fn ask(&self, number: usize, command: Document) -> Option<Document> {
        let admin = self.members[number].client.database("admin");
        // The driver is not told to stop: an operation that is dropped half-way would spoil its connection.
        let asking = tokio::spawn(async move { admin.run_command(command).await });
        timeout(REPLY_PATIENCE, asking).await.ok()?.unwrap().ok()
    }

    /// The member that a majority follows, by the newest term.
    pub async fn primary(&self) -> Option<usize> {
        let mut newest = None;
        for number in 0..SIZE {
            let Some(hello) = self.ask(number, doc! { "hello": 1 }).await else { continue };
            if is(&hello, "isWritablePrimary") {
                newest = newest.max(Some((hello.get_object_id("electionId").unwrap(), number)));
            }
        }
        newest.map(|(_, number)| number)
    }

    /// The primary, once there is one.
    pub async fn await_primary(&self) -> usize {
        eventually("a primary", async || self.primary().await).await
    }

    /// Whether a member is the primary or a secondary.
    pub async fn is_member(&mut self, number: usize) -> bool {
        self.must_run();
        let hello = self.ask(number, doc! { "hello": 1 }).await;
        hello.is_some_and(|hello| is(&hello, "isWritablePrimary") || is(&hello, "secondary"))
    }

    /// Panics if a member has ended by itself.
    fn must_run(&mut self) {
        for member in &mut self.members {
            if let Some(ended) = member.server.ended() {
                panic!("{ended}");
            }
        }
    }

    /// Whether some member accepts a write and a majority gets it.
    pub async fn serves(&mut self) -> bool {
        self.must_run();
        for member in self.members.iter().filter(|member| member.server.is_running()) {
            let options = mongodb::options::CollectionOptions::builder()
                .write_concern(WriteConcern::builder().w(mongodb::options::Acknowledgment::Majority).build())
                .build();
            let probes = member.client.database("chaos").collection_with_options::<Document>("probes", options);
            let writing = tokio::spawn(async move { probes.insert_one(doc! {}).await });
            if let Ok(Ok(Ok(_))) = timeout(REPLY_PATIENCE, writing).await {
                return true;
            }
        }
        false
    }

    /// Asks the primary to step down in order. It may not be elected again for 10 s.
    pub async fn step_down(&self) {
        let primary = self.await_primary().await;
        self.ask(primary, doc! { "replSetStepDown": 10, "secondaryCatchUpPeriodSecs": 5 }).await;
    }

    /// How often members undid writes that no majority had.
    pub fn rollbacks(&self, logs: &Path) -> usize {
        let logs = self.members.iter().map(|member| logs.join(format!("{}.log", member.server.name)));
        let logs = logs.map(|log| std::fs::read_to_string(log).unwrap_or_default());
        logs.map(|log| log.lines().filter(|line| line.contains(ROLLBACK_ENDED)).count()).sum()
    }
}

fn is(hello: &Document, role: &str) -> bool {
    hello.get_bool(role).unwrap_or(false)
}

/// What a member logs at the end of a rollback.
const ROLLBACK_ENDED: &str = "\"Rollback summary\"";
