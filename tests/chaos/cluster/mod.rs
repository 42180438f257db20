//! Three MongoDB and three RabbitMQ servers, as processes of this machine, and a network between them that can be cut.
//!
//! Reading order: [`network`] (links), [`server`] (processes), [`mongodb`], [`rabbitmq`] with its [`port_mapper`], [`front`] (how the
//! test's own clients reach RabbitMQ), [`faults`].

mod faults;
mod front;
mod mongodb;
mod network;
mod port_mapper;
mod rabbitmq;
mod server;

use std::path::{Path, PathBuf};

use self::mongodb::ReplicaSet;
pub use faults::Fault;
use front::Front;
use network::Network;
use offramp_testkit::say;
use rabbitmq::BrokerCluster;

/// The servers of a kind.
const SIZE: usize = 3;

/// Running servers. Killed when dropped.
pub struct Cluster {
    set: tokio::sync::Mutex<ReplicaSet>,
    brokers: BrokerCluster,
    front: Front,
    network: Network,
    logs: PathBuf,
    faults: Vec<Fault>,
}

impl Cluster {
    /// Starts the servers with empty data in a directory. `faults` is what may happen to them.
    pub async fn start(directory: &Path, faults: Vec<Fault>) -> Self {
        let (data, logs) = (directory.join("data"), directory.join("log"));
        if data.exists() {
            std::fs::remove_dir_all(&data).unwrap();
        }
        std::fs::create_dir_all(&data).unwrap();
        let network = Network::new();
        say!("starting three MongoDB and three RabbitMQ servers");
        let (set, brokers) =
            tokio::join!(ReplicaSet::start(&data, &logs, &network), BrokerCluster::start(&data, &logs, &network));
        let front = Front::start(brokers.ports()).await;
        Self { set: tokio::sync::Mutex::new(set), brokers, front, network, logs, faults }
    }

    /// MongoDB's URL, through the network.
    pub async fn mongodb_url(&self) -> String {
        self.set.lock().await.url()
    }

    /// RabbitMQ's URLs for workers, through the network.
    pub fn amqp_urls(&self) -> Vec<String> {
        self.brokers.urls()
    }

    /// RabbitMQ's URL for the test's own clients.
    pub fn front_url(&self) -> String {
        self.front.url()
    }
}

/// The words of a command, one per line, as `scripts/services programs` prints them.
fn words(variable: &str) -> Vec<String> {
    let words = std::env::var(variable).unwrap_or_else(|_| panic!("{variable} is missing: run `make chaos-cluster`"));
    words.lines().filter(|word| !word.is_empty()).map(str::to_owned).collect()
}
