//! The faults of single servers: RabbitMQ, MongoDB, and the connections of the workers to them.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use fastrand::Rng;
use tokio::time::sleep;

use crate::faults::{Chaos, FAULT_INTERVAL, RECOVERY_TARGET};
use offramp_testkit::process;
use offramp_testkit::proxy::Proxy;

const FREEZE: Duration = Duration::from_secs(10);

/// The servers of `scripts/services`, and the proxies in front of them.
pub struct SingleServers {
    pub broker_line: Proxy,
    pub database_line: Proxy,
}

/// Faults of the servers and the connections to them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Fault {
    BrokerRestart,
    BrokerAlarm,
    DatabaseKill,
    DatabaseFreeze,
    BrokerCut,
    BrokerStall,
    BrokerMute,
    DatabaseCut,
    DatabaseStall,
    DatabaseMute,
}

impl Fault {
    const ALL: [Self; 10] = [
        Self::BrokerRestart,
        Self::BrokerAlarm,
        Self::DatabaseKill,
        Self::DatabaseFreeze,
        Self::BrokerCut,
        Self::BrokerStall,
        Self::BrokerMute,
        Self::DatabaseCut,
        Self::DatabaseStall,
        Self::DatabaseMute,
    ];

    fn is_of_database(self) -> bool {
        matches!(
            self,
            Self::DatabaseKill | Self::DatabaseFreeze | Self::DatabaseCut | Self::DatabaseStall | Self::DatabaseMute
        )
    }

    fn name(self) -> &'static str {
        match self {
            Self::BrokerRestart => "RabbitMQ restarted",
            Self::BrokerAlarm => "RabbitMQ memory alarm",
            Self::DatabaseKill => "mongod killed and restarted",
            Self::DatabaseFreeze => "mongod frozen for 10 s",
            Self::BrokerCut => "connections to RabbitMQ cut",
            Self::BrokerStall => "connections to RabbitMQ stalled",
            Self::BrokerMute => "responses of RabbitMQ lost",
            Self::DatabaseCut => "connections to MongoDB cut",
            Self::DatabaseStall => "connections to MongoDB stalled",
            Self::DatabaseMute => "responses of MongoDB lost",
        }
    }
}

impl SingleServers {
    /// Injects each fault in random order, repeatedly, until `until`.
    pub async fn attack(&self, chaos: &Chaos, mut rng: Rng, until: Instant) {
        loop {
            let mut faults = Fault::ALL;
            rng.shuffle(&mut faults);
            for fault in faults {
                if Instant::now() > until {
                    return;
                }
                let injecting = async {
                    self.inject(fault, &mut rng).await;
                    Instant::now()
                };
                let outage = chaos.outage(fault.is_of_database(), injecting).await;
                chaos.recover(fault.name(), outage, RECOVERY_TARGET, |_| Some(outage.back)).await;
                sleep(FAULT_INTERVAL).await;
            }
        }
    }

    async fn inject(&self, fault: Fault, rng: &mut Rng) {
        let a_while = Duration::from_millis(rng.u64(1_000..6_000));
        match fault {
            Fault::BrokerRestart => services(&["restart", "rabbitmq"]).await,
            Fault::BrokerAlarm => {
                services(&["alarm", "rabbitmq"]).await;
                sleep(a_while).await;
                services(&["relieve", "rabbitmq"]).await;
            }
            Fault::DatabaseKill => {
                services(&["kill", "mongodb"]).await;
                services(&["start", "mongodb"]).await;
            }
            Fault::DatabaseFreeze => {
                services(&["pause", "mongodb"]).await;
                sleep(FREEZE).await;
                services(&["resume", "mongodb"]).await;
            }
            Fault::BrokerCut => self.broker_line.cut(),
            Fault::DatabaseCut => self.database_line.cut(),
            Fault::BrokerStall => stall(&self.broker_line, a_while, rng.bool()).await,
            Fault::DatabaseStall => stall(&self.database_line, a_while, rng.bool()).await,
            Fault::BrokerMute => lose_responses(&self.broker_line, a_while).await,
            Fault::DatabaseMute => lose_responses(&self.database_line, a_while).await,
        }
    }
}

/// Stalls the connections for a while, and then passes the held bytes or cuts the connections.
async fn stall(line: &Proxy, a_while: Duration, then_cut: bool) {
    line.stall();
    sleep(a_while).await;
    if then_cut {
        line.cut();
    }
    line.resume();
}

/// The server receives requests, but its responses are lost.
async fn lose_responses(line: &Proxy, a_while: Duration) {
    line.mute();
    sleep(a_while).await;
    line.cut();
    line.resume();
}

/// Runs `scripts/services` for the servers of this run.
async fn services(words: &'static [&'static str]) {
    let run = move || {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/services");
        let output = process::run(Command::new(script).args(words).stdin(Stdio::null()), Command::output).unwrap();
        assert!(output.status.success(), "scripts/services {words:?}: {}", String::from_utf8_lossy(&output.stderr));
    };
    tokio::task::spawn_blocking(run).await.unwrap();
}
