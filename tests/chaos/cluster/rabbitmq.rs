//! Three RabbitMQ nodes as a cluster.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use lapin::{Connection, ConnectionProperties};
use serde_json::Value;
use tokio::sync::{Mutex, MutexGuard};
use tokio::time::{sleep, timeout};

use super::network::Network;
use super::port_mapper::PortMapper;
use super::server::Server;
use super::{SIZE, words};
use offramp_testkit::eventually_within;
use offramp_testkit::process;
use offramp_testkit::process::free_port;

/// The number of the first node; those before it are MongoDB's.
const FIRST: usize = SIZE;
/// How long a node may take to start on a busy machine.
const START_PATIENCE: Duration = Duration::from_secs(120);
/// How long a node may take to accept a connection.
const CONNECT_PATIENCE: Duration = Duration::from_secs(2);

/// The cluster. Its nodes have the indexes 0, 1 and 2 here, and the numbers 3, 4 and 5 in the network.
pub struct BrokerCluster {
    nodes: Vec<Node>,
    home: PathBuf,
    mapper: PortMapper,
    network: Network,
}

struct Node {
    server: Mutex<Server>,
    name: String,
    directory: PathBuf,
    port: u16,
    peer_port: u16,
    /// For clients.
    gate: u16,
}

impl BrokerCluster {
    /// Starts the nodes and joins them.
    pub async fn start(data: &Path, logs: &Path, network: &Network) -> Self {
        let (mut nodes, mut peer_gates) = (Vec::new(), HashMap::new());
        for index in 0..SIZE {
            let (port, peer_port) = (free_port(), free_port());
            let short_name = format!("offramp-{}", index + 1);
            let peer_gate = network.gate(FIRST + index, peer_port).await;
            peer_gates.insert(short_name.clone(), peer_gate);
            let log_name = format!("rabbitmq-{}", index + 1);
            nodes.push(Node {
                directory: data.join(&log_name),
                server: Mutex::new(Server::new(log_name, logs)),
                name: format!("{short_name}@localhost"),
                port,
                peer_port,
                gate: network.gate(FIRST + index, port).await,
            });
        }
        let home = data.join("rabbitmq-home");
        std::fs::create_dir_all(&home).unwrap();
        let cluster = Self { nodes, home, mapper: PortMapper::start(peer_gates).await, network: network.clone() };
        // One after the other: each would make a cookie of its own.
        for index in 0..SIZE {
            cluster.launch(index).await;
            cluster.await_start(index).await;
            if index > 0 {
                cluster.join(index, 0).await;
            }
        }
        cluster
    }

    /// The URLs for workers.
    pub fn urls(&self) -> Vec<String> {
        self.nodes.iter().map(|node| format!("amqp://127.0.0.1:{}/%2f", node.gate)).collect()
    }

    /// The ports of the nodes, past the gates.
    pub fn ports(&self) -> Vec<u16> {
        self.nodes.iter().map(|node| node.port).collect()
    }

    pub async fn launch(&self, index: usize) {
        let node = &self.nodes[index];
        std::fs::create_dir_all(node.directory.join("conf.d")).unwrap();
        let write = |name: &str, text: &str| std::fs::write(node.directory.join(name), text).unwrap();
        write("enabled_plugins", "[].");
        // As RabbitMQ's guide recommends for three nodes. It has no effect from 4.x on.
        let conf = format!("listeners.tcp.1 = 127.0.0.1:{}\ncluster_partition_handling = pause_minority\n", node.port);
        write("rabbitmq.conf", &conf);
        let mut command = self.program("rabbitmq-server", index);
        command
            .env("RABBITMQ_CONFIG_FILE", node.directory.join("rabbitmq.conf"))
            .env("RABBITMQ_CONFIG_FILES", node.directory.join("conf.d"))
            .env("RABBITMQ_ADVANCED_CONFIG_FILE", node.directory.join("advanced.config"))
            .env("RABBITMQ_CONF_ENV_FILE", node.directory.join("rabbitmq-env.conf"))
            .env("RABBITMQ_ENABLED_PLUGINS_FILE", node.directory.join("enabled_plugins"))
            .env("RABBITMQ_MNESIA_BASE", node.directory.join("data"))
            .env("RABBITMQ_LOG_BASE", node.directory.join("log"))
            .env("RABBITMQ_LOGS", "-")
            .env("RABBITMQ_DIST_PORT", node.peer_port.to_string())
            .env("RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS", "-kernel inet_dist_use_interface {127,0,0,1}")
            // Makes the start script `exec` the server; -noinput cancels the other effect.
            .env("RABBITMQ_ALLOW_INPUT", "1")
            .env("ERL_CRASH_DUMP", node.directory.join("erl_crash.dump"))
            .arg("-noinput");
        let process = node.server.lock().await.start(command);
        self.network.set_process(FIRST + index, Some(process));
    }

    /// A program of RabbitMQ, for this node.
    fn program(&self, name: &str, index: usize) -> Command {
        let path = Path::new(&std::env::var_os("SERVICES_RABBITMQ_BIN").unwrap()).join(name);
        let mut words = words("SERVICES_RABBITMQ_RUN").into_iter().map(Into::into).chain([path.into_os_string()]);
        let mut command = Command::new(words.next().unwrap());
        command
            .args(words)
            .env("HOME", &self.home)
            .env("RABBITMQ_NODENAME", &self.nodes[index].name)
            .env("ERL_EPMD_PORT", self.mapper.port.to_string())
            .env("ERL_EPMD_ADDRESS", "127.0.0.1")
            .stdin(Stdio::null());
        command
    }

    /// Runs a command-line tool of RabbitMQ at a node. Returns what it printed.
    async fn tool<S: AsRef<OsStr>>(&self, name: &str, index: usize, arguments: &[S]) -> Result<String, String> {
        let mut command = self.program(name, index);
        command.args(["--quiet", "--timeout", "30"]).args(arguments);
        let running = tokio::task::spawn_blocking(move || process::run(&mut command, Command::output).unwrap());
        let output = running.await.unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        if output.status.success() { Ok(text) } else { Err(text + &String::from_utf8_lossy(&output.stderr)) }
    }

    async fn must<S: AsRef<OsStr>>(&self, name: &str, index: usize, arguments: &[S]) {
        if let Err(error) = self.tool(name, index, arguments).await {
            let arguments: Vec<_> = arguments.iter().map(AsRef::as_ref).collect();
            panic!("{name} {arguments:?} at node {}: {error}", index + 1);
        }
    }

    /// Joins a node to the cluster of another. It loses what it has.
    async fn join(&self, index: usize, other: usize) {
        self.must("rabbitmqctl", index, &["stop_app"]).await;
        self.must("rabbitmqctl", index, &["join_cluster", &self.nodes[other].name]).await;
        self.must("rabbitmqctl", index, &["start_app"]).await;
    }

    /// Waits until a node accepts clients.
    pub async fn await_start(&self, index: usize) {
        eventually_within(START_PATIENCE, "a started RabbitMQ node", async || {
            if let Some(ended) = self.server(index).await.ended() {
                panic!("{ended}");
            }
            self.accepts(index).await
        })
        .await;
    }

    /// Whether the cluster becomes whole within `patience`. A node that was cut off may take a while until it is back.
    pub async fn becomes_whole(&self, patience: Duration) -> bool {
        let begin = Instant::now();
        while !self.is_whole().await {
            if begin.elapsed() > patience {
                return false;
            }
            sleep(Duration::from_millis(500)).await;
        }
        true
    }

    /// Whether each node says that all of them run and that no two have lost each other.
    async fn is_whole(&self) -> bool {
        for index in 0..SIZE {
            let Ok(told) = self.tool("rabbitmqctl", index, &["cluster_status", "--formatter", "json"]).await else {
                return false;
            };
            let status: Value = serde_json::from_str(&told).unwrap();
            let all_run = status["running_nodes"].as_array().is_some_and(|nodes| nodes.len() == SIZE);
            if !all_run || status["partitions"].as_object().is_none_or(|partitions| !partitions.is_empty()) {
                return false;
            }
        }
        true
    }

    async fn accepts(&self, index: usize) -> bool {
        let url = format!("amqp://127.0.0.1:{}/%2f", self.nodes[index].port);
        let connecting = async {
            let connection = Connection::connect(&url, ConnectionProperties::default()).await?;
            connection.create_channel().await?;
            connection.close(200, "OK".into()).await
        };
        matches!(timeout(CONNECT_PATIENCE, connecting).await, Ok(Ok(())))
    }

    pub async fn server(&self, index: usize) -> MutexGuard<'_, Server> {
        self.nodes[index].server.lock().await
    }

    /// Holds everything between a node and the others.
    pub fn part(&self, index: usize) {
        self.network.part(FIRST + index, (0..SIZE).filter(|other| *other != index).map(|other| FIRST + other));
    }

    /// The node that leads most queues, asked at a node.
    pub async fn leader(&self, asked: usize) -> usize {
        let listed = self.tool("rabbitmqctl", asked, &["list_queues", "leader", "--formatter", "json"]).await.unwrap();
        let queues: Vec<Value> = serde_json::from_str(&listed).unwrap();
        let led = |node: &Node| queues.iter().filter(|queue| queue["leader"] == *node.name).count();
        (0..SIZE).max_by_key(|index| led(&self.nodes[*index])).unwrap()
    }

    /// Hands all queues that a node leads over to the next node.
    pub async fn move_leaders(&self, index: usize) {
        let next = &self.nodes[(index + 1) % SIZE].name;
        let expression = format!(
            "[ra:transfer_leadership({{Name, node()}}, {{Name, '{next}'}}) \
             || Queue <- rabbit_amqqueue:list(), {{Name, Node}} <- [amqqueue:get_pid(Queue)], Node =:= node()]."
        );
        self.must("rabbitmqctl", index, &["eval", &expression]).await;
    }

    /// Replaces a node that was killed by a new one without data.
    pub async fn replace(&self, index: usize) {
        let (helper, name) = ((index + 1) % SIZE, &self.nodes[index].name);
        // RabbitMQ 4 does this when it forgets a node, and refuses it before.
        let shrunk = self.tool("rabbitmq-queues", helper, &["shrink", name]).await;
        self.must("rabbitmqctl", helper, &["forget_cluster_node", name]).await;
        let shrunk =
            shrunk.or_else(|error| if error.contains("node_not_running") { Ok(String::new()) } else { Err(error) });
        shrunk.unwrap();
        std::fs::remove_dir_all(&self.nodes[index].directory).unwrap();
        self.launch(index).await;
        self.await_start(index).await;
        self.must("rabbitmqctl", index, &["stop_app"]).await;
        self.must("rabbitmqctl", index, &["join_cluster", &self.nodes[helper].name]).await;
        self.must("rabbitmqctl", index, &["start_app"]).await;
        self.must("rabbitmq-queues", helper, &["grow", name, "all"]).await;
    }
}
