//! The faults of the cluster, one after the other. Each is told in one function, in the order in which things happen.

use std::future::Future;
use std::time::{Duration, Instant};

use clap::ValueEnum;
use fastrand::Rng;
use futures_util::future::join_all;
use lapin::options::{BasicConsumeOptions, BasicQosOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Connection, ConnectionProperties};
use tokio::time::{sleep, timeout};

use super::mongodb::ReplicaSet;
use super::{Cluster, SIZE};
use crate::faults::{Chaos, FAULT_INTERVAL, Outage};
use crate::upstream::Upstream;
use offramp_testkit::{eventually_within, say};

/// The longest recovery of the lanes that is not late, from the moment at which the cluster can serve.
const RECOVERY_TARGET: Duration = Duration::from_secs(10);
/// The same after a step-down in order.
const STEP_DOWN_RECOVERY_TARGET: Duration = Duration::from_secs(5);
/// How long the servers may take to serve again, on a busy machine.
const SERVICE_PATIENCE: Duration = Duration::from_secs(120);
/// How long RabbitMQ may take to serve without a node that is out of reach. RabbitMQ 3 gives it up after 60 to 80 s.
const WITHOUT_A_NODE_PATIENCE: Duration = Duration::from_secs(120);
/// How long the servers may take to start a consumer on each work queue, before that is tried again.
const CONSUMER_PATIENCE: Duration = Duration::from_secs(3);
/// How long a server writes what no other gets, before it is killed.
const ALONE: Duration = Duration::from_secs(2);
/// How long RabbitMQ may take to become whole by itself.
const WHOLE_PATIENCE: Duration = Duration::from_secs(20);
/// How long a majority is lost.
const MAJORITY_LOST: Duration = Duration::from_secs(8);
/// How long a fault continues after the rest of the cluster has taken over.
const LONGER: Duration = Duration::from_secs(5);

/// What can happen to the servers.
#[derive(Clone, Copy, ValueEnum)]
pub enum Fault {
    PrimaryFrozen,
    PrimaryKilled,
    PrimaryCutOff,
    SecondaryCutOff,
    MembersLost,
    MembersRestarted,
    PrimaryUnreachable,
    ClientsOfMongodbCut,
    LeaderKilled,
    LeadersMoved,
    LeaderCutOff,
    LeaderFrozen,
    NodeReplaced,
    NodesLost,
    NodesRestarted,
    ClientsOfRabbitmqCut,
}

impl Cluster {
    /// Injects each of its faults in random order, with a step-down after each, repeatedly, until `until`. A fault that may leave RabbitMQ
    /// in two parts ends when it is whole again: RabbitMQ 3 lets no node join before.
    pub async fn attack(&self, chaos: &Chaos, upstream: &Upstream, mut rng: Rng, until: Instant) {
        let attack = Attack { cluster: self, chaos, upstream };
        loop {
            let mut faults = self.faults.clone();
            rng.shuffle(&mut faults);
            for fault in faults {
                if Instant::now() > until {
                    say!(
                        "{} rollbacks: a member of the replica set undid writes that no majority had",
                        self.rollbacks().await
                    );
                    return;
                }
                attack.inject(fault, &mut rng).await;
                sleep(FAULT_INTERVAL).await;
                attack.step_down().await;
                sleep(FAULT_INTERVAL).await;
            }
        }
    }

    async fn rollbacks(&self) -> usize {
        self.set.lock().await.rollbacks(&self.logs)
    }
}

struct Attack<'a> {
    cluster: &'a Cluster,
    chaos: &'a Chaos,
    upstream: &'a Upstream,
}

impl Attack<'_> {
    async fn inject(&self, fault: Fault, rng: &mut Rng) {
        let server = rng.usize(..SIZE);
        match fault {
            Fault::PrimaryFrozen => self.primary_frozen().await,
            Fault::PrimaryKilled => self.primary_killed().await,
            Fault::PrimaryCutOff => self.primary_cut_off().await,
            Fault::SecondaryCutOff => self.secondary_cut_off().await,
            Fault::MembersLost => self.members_lost().await,
            Fault::MembersRestarted => self.members_restarted().await,
            Fault::PrimaryUnreachable => self.primary_unreachable().await,
            Fault::ClientsOfMongodbCut => self.clients_of_mongodb_cut().await,
            Fault::LeaderKilled => self.leader_killed().await,
            Fault::LeadersMoved => self.leaders_moved().await,
            Fault::LeaderCutOff => self.leader_cut_off().await,
            Fault::LeaderFrozen => self.leader_frozen().await,
            Fault::NodeReplaced => self.node_replaced(server).await,
            Fault::NodesLost => self.nodes_lost(server).await,
            Fault::NodesRestarted => self.nodes_restarted().await,
            Fault::ClientsOfRabbitmqCut => self.clients_of_rabbitmq_cut().await,
        }
    }

    /// Does something to MongoDB, waits until it serves again, and measures how long the lanes take from then on.
    async fn mongodb(&self, name: &'static str, target: Duration, action: impl Future<Output = ()>) -> Outage {
        say!("{name} …");
        let fault = async {
            action.await;
            self.upstream.forget_served();
            eventually_within(SERVICE_PATIENCE, "MongoDB", async || self.cluster.set.lock().await.serves().await).await;
            Instant::now()
        };
        let outage = self.chaos.outage(true, fault).await;
        self.chaos.recover(name, outage, target, |lane| Some(self.upstream.served(lane)?.max(outage.back))).await;
        outage
    }

    /// Does something to RabbitMQ, waits until it serves, and measures how long the lanes take from then on.
    async fn rabbitmq(&self, name: &'static str, action: impl Future<Output = ()>) {
        say!("{name} …");
        let fault = async {
            action.await;
            let served = self.await_rabbitmq(SERVICE_PATIENCE).await;
            served.unwrap_or_else(|problem| panic!("{name}: {problem}"))
        };
        let outage = self.chaos.outage(false, fault).await;
        self.chaos.recover(name, outage, RECOVERY_TARGET, |_| Some(outage.back)).await;
    }

    /// The same with an action that puts a node out of reach. RabbitMQ 3 may serve a queue that the node led only once it is back: then there
    /// is no recovery to measure, so the run is not good, but goes on.
    async fn without_a_node(&self, name: &'static str, action: impl Future<Output = ()>) {
        say!("{name} …");
        let mut problem = None;
        let fault = async {
            action.await;
            self.await_rabbitmq(WITHOUT_A_NODE_PATIENCE).await.unwrap_or_else(|why| {
                problem = Some(why);
                Instant::now()
            })
        };
        let outage = self.chaos.outage(false, fault).await;
        match problem {
            None => self.chaos.recover(name, outage, RECOVERY_TARGET, |_| Some(outage.back)).await,
            Some(problem) => self.chaos.not_served(name, outage, &problem),
        }
    }

    /// Waits until every work queue confirms messages, and every node in service starts consumers on every work queue. Returns since when
    /// one node did.
    async fn await_rabbitmq(&self, patience: Duration) -> Result<Instant, String> {
        self.upstream.forget_served();
        let begin = Instant::now();
        while !self.upstream.unserved().is_empty() {
            if begin.elapsed() > patience {
                return Err(format!("RabbitMQ confirms nothing for {:?}", self.upstream.unserved()));
            }
            sleep(Duration::from_millis(50)).await;
        }
        let mut first: Option<Instant> = None;
        loop {
            let nodes = self.cluster.front.nodes_in_service();
            let accepted = join_all(nodes.iter().map(|url| self.accepts_consumers(url))).await;
            first = first.or(accepted.iter().flatten().min().copied());
            if let Some(first) = first.filter(|_| !accepted.contains(&None)) {
                return Ok(first);
            }
            if begin.elapsed() > patience {
                return Err("not every node starts consumers".to_owned());
            }
            sleep(Duration::from_millis(50)).await;
        }
    }

    /// When a node has started a consumer on each work queue, if it does. One of RabbitMQ 3 asks the node that led a queue for 5 s each
    /// time, even if that is out of reach and the others confirm messages, until it has heard of the new leader.
    async fn accepts_consumers(&self, node: &str) -> Option<Instant> {
        let connecting = Connection::connect(node, ConnectionProperties::default());
        let Ok(Ok(connection)) = timeout(CONSUMER_PATIENCE, connecting).await else { return None };
        let starting = async {
            for queue in self.upstream.work_queues() {
                let channel = connection.create_channel().await?;
                channel.basic_qos(1, BasicQosOptions::default()).await?;
                // Messages go to the workers' consumers first.
                let mut arguments = FieldTable::default();
                arguments.insert("x-priority".into(), AMQPValue::LongInt(-1));
                let options = BasicConsumeOptions::default();
                drop(channel.basic_consume(queue.as_str().into(), "".into(), options, arguments).await?);
                channel.close(200, "OK".into()).await?;
            }
            lapin::Result::Ok(Instant::now())
        };
        let started = timeout(CONSUMER_PATIENCE, starting).await.ok().and_then(Result::ok);
        // A consumer that starts later must not keep a message.
        drop(timeout(CONSUMER_PATIENCE, connection.close(200, "OK".into())).await);
        started
    }

    async fn step_down(&self) {
        self.mongodb("MongoDB: step-down", STEP_DOWN_RECOVERY_TARGET, async {
            self.cluster.set.lock().await.step_down().await;
        })
        .await;
    }

    /// For longer than the others wait for it, so that another primary is elected, and the old one takes itself for the primary when it
    /// is thawed.
    async fn primary_frozen(&self) {
        let mut primary = 0;
        self.mongodb("MongoDB: primary frozen", RECOVERY_TARGET, async {
            let mut set = self.cluster.set.lock().await;
            primary = set.await_primary().await;
            set.server(primary).freeze();
        })
        .await;
        sleep(LONGER).await;
        self.mongodb("MongoDB: old primary thawed", RECOVERY_TARGET, async {
            self.cluster.set.lock().await.server(primary).thaw();
            self.await_member(primary).await;
        })
        .await;
    }

    /// With writes that no other member has. It undoes them after its restart.
    async fn primary_killed(&self) {
        let mut primary = 0;
        self.mongodb("MongoDB: primary killed with writes only it has", RECOVERY_TARGET, async {
            primary = self.cluster.set.lock().await.await_primary().await;
            self.cluster.network.part(primary, ReplicaSet::others(primary));
            sleep(ALONE).await;
            self.cluster.kill_member(primary).await;
        })
        .await;
        self.mongodb("MongoDB: killed primary undid its writes", RECOVERY_TARGET, async {
            self.cluster.network.join();
            self.cluster.set.lock().await.launch(primary);
            self.await_member(primary).await;
        })
        .await;
    }

    /// From the other members, while clients still reach it.
    async fn primary_cut_off(&self) {
        let mut primary = 0;
        self.mongodb("MongoDB: primary cut off from the others", RECOVERY_TARGET, async {
            primary = self.cluster.set.lock().await.await_primary().await;
            self.cluster.network.part(primary, ReplicaSet::others(primary));
        })
        .await;
        sleep(LONGER).await;
        self.mongodb("MongoDB: all members connected again", RECOVERY_TARGET, async {
            self.cluster.network.join();
            self.await_member(primary).await;
        })
        .await;
    }

    async fn secondary_cut_off(&self) {
        let primary = self.cluster.set.lock().await.await_primary().await;
        let secondary = (primary + 1) % SIZE;
        self.mongodb("MongoDB: secondary cut off from the others", RECOVERY_TARGET, async {
            self.cluster.network.part(secondary, ReplicaSet::others(secondary));
        })
        .await;
        sleep(2 * LONGER).await;
        self.mongodb("MongoDB: all members connected again", RECOVERY_TARGET, async {
            self.cluster.network.join();
            self.await_member(secondary).await;
        })
        .await;
    }

    async fn members_lost(&self) {
        self.mongodb("MongoDB: majority lost and regained", RECOVERY_TARGET, async {
            let primary = self.cluster.set.lock().await.await_primary().await;
            let lost = [primary, (primary + 1) % SIZE];
            for number in lost {
                self.cluster.kill_member(number).await;
            }
            sleep(MAJORITY_LOST).await;
            for number in lost {
                self.cluster.set.lock().await.launch(number);
            }
        })
        .await;
    }

    async fn members_restarted(&self) {
        for number in 0..SIZE {
            self.mongodb("MongoDB: members restarted, one by one", RECOVERY_TARGET, async {
                let mut set = self.cluster.set.lock().await;
                set.server(number).stop().await;
                self.cluster.network.set_process(number, None);
                set.launch(number);
                drop(set);
                self.await_member(number).await;
            })
            .await;
        }
    }

    /// For workers, while the other members still follow it.
    async fn primary_unreachable(&self) {
        self.mongodb("MongoDB: primary unreachable for workers", RECOVERY_TARGET, async {
            let primary = self.cluster.set.lock().await.await_primary().await;
            self.cluster.network.part_from_clients(primary);
            sleep(2 * LONGER).await;
            self.cluster.network.join();
        })
        .await;
    }

    async fn clients_of_mongodb_cut(&self) {
        self.mongodb("MongoDB: clients' connections cut", RECOVERY_TARGET, async {
            (0..SIZE).for_each(|number| self.cluster.network.cut_clients(number));
        })
        .await;
    }

    async fn await_member(&self, number: usize) {
        eventually_within(SERVICE_PATIENCE, "the member", async || {
            self.cluster.set.lock().await.is_member(number).await
        })
        .await;
    }

    async fn leader_killed(&self) {
        let leader = self.cluster.brokers.leader(0).await;
        self.rabbitmq("RabbitMQ: leader killed", self.cluster.kill_node(leader)).await;
        self.rabbitmq("RabbitMQ: node restarted after a kill", self.cluster.start_node(leader)).await;
    }

    async fn leaders_moved(&self) {
        let leader = self.cluster.brokers.leader(0).await;
        self.rabbitmq("RabbitMQ: leaders moved", self.cluster.brokers.move_leaders(leader)).await;
    }

    /// From the other nodes, while clients still reach it.
    async fn leader_cut_off(&self) {
        let leader = self.cluster.brokers.leader(0).await;
        self.without_a_node("RabbitMQ: leader cut off from the others", async {
            self.cluster.front.set_in_service(leader, false);
            self.cluster.brokers.part(leader);
        })
        .await;
        sleep(LONGER).await;
        self.rabbitmq("RabbitMQ: all nodes connected again", async {
            self.cluster.network.join();
            self.cluster.front.set_in_service(leader, true);
        })
        .await;
        self.make_whole(leader).await;
    }

    async fn leader_frozen(&self) {
        let leader = self.cluster.brokers.leader(0).await;
        self.without_a_node("RabbitMQ: leader frozen", async {
            self.cluster.front.set_in_service(leader, false);
            self.cluster.brokers.server(leader).await.freeze();
        })
        .await;
        sleep(LONGER).await;
        let thawed = async { self.cluster.brokers.server(leader).await.thaw() };
        self.rabbitmq("RabbitMQ: old leader thawed", thawed).await;
        self.make_whole(leader).await;
    }

    /// Puts a node into service again that was out of reach. RabbitMQ 3 may stay in two parts until somebody restarts a node:
    /// `pause_minority` restarts only one that noticed that it was alone.
    async fn make_whole(&self, node: usize) {
        if self.cluster.brokers.becomes_whole(WHOLE_PATIENCE).await {
            self.cluster.front.set_in_service(node, true);
        } else {
            self.rabbitmq("RabbitMQ: old leader restarted", async {
                self.cluster.kill_node(node).await;
                self.cluster.start_node(node).await;
            })
            .await;
        }
    }

    async fn node_replaced(&self, node: usize) {
        self.rabbitmq("RabbitMQ: node lost", self.cluster.kill_node(node)).await;
        self.rabbitmq("RabbitMQ: node replaced", async {
            self.cluster.brokers.replace(node).await;
            self.cluster.front.set_in_service(node, true);
        })
        .await;
    }

    async fn nodes_lost(&self, node: usize) {
        self.rabbitmq("RabbitMQ: majority lost and regained", async {
            let lost = [node, (node + 1) % SIZE];
            for node in lost {
                self.cluster.kill_node(node).await;
            }
            sleep(MAJORITY_LOST).await;
            for node in lost {
                self.cluster.brokers.launch(node).await;
            }
            for node in lost {
                self.cluster.brokers.await_start(node).await;
                self.cluster.front.set_in_service(node, true);
            }
        })
        .await;
    }

    async fn nodes_restarted(&self) {
        for node in 0..SIZE {
            self.rabbitmq("RabbitMQ: nodes restarted, one by one", async {
                self.cluster.front.set_in_service(node, false);
                self.cluster.brokers.server(node).await.stop().await;
                self.cluster.start_node(node).await;
            })
            .await;
        }
    }

    async fn clients_of_rabbitmq_cut(&self) {
        self.rabbitmq("RabbitMQ: clients' connections cut", async {
            (SIZE..2 * SIZE).for_each(|number| self.cluster.network.cut_clients(number));
        })
        .await;
    }
}

impl Cluster {
    async fn kill_member(&self, number: usize) {
        self.set.lock().await.server(number).kill();
        self.network.set_process(number, None);
    }

    async fn kill_node(&self, node: usize) {
        self.front.set_in_service(node, false);
        self.brokers.server(node).await.kill();
    }

    /// Starts a node that was killed or stopped, and waits until it accepts clients.
    async fn start_node(&self, node: usize) {
        self.brokers.launch(node).await;
        self.brokers.await_start(node).await;
        self.front.set_in_service(node, true);
    }
}
