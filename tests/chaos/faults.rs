//! The faults: servers and the connections to them, one after the other, and mail servers at the same time.

use std::collections::BTreeMap;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use fastrand::Rng;
use tokio::time::sleep;

use crate::fleet::{Fleet, MailBehaviour};
use crate::observer::Observer;
use offramp_testkit::process;
use offramp_testkit::proxy::Proxy;
use offramp_testkit::say;

const FREEZE: Duration = Duration::from_secs(10);
/// The time between the recovery from one fault and the next fault.
const FAULT_INTERVAL: Duration = Duration::from_millis(1_500);
/// The longest recovery of the lanes that is not late.
pub const RECOVERY_TARGET: Duration = Duration::from_secs(5);
/// How long to wait for the recovery.
const RECOVERY_MAX: Duration = Duration::from_secs(30);

/// How long after its return the database may still be slow.
const JUST_BACK: Duration = Duration::from_secs(3);

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

/// Faults of the mail servers, which do not affect the lanes. The recovery ends with the next accepted email.
#[derive(Clone, Copy, Debug)]
enum MailFault {
    Behaviour(MailBehaviour),
    Stall,
}

impl MailFault {
    const ALL: [Self; 4] = [
        Self::Behaviour(MailBehaviour::Unavailable),
        Self::Behaviour(MailBehaviour::Defer),
        Self::Behaviour(MailBehaviour::DropAfterData),
        Self::Stall,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::Behaviour(MailBehaviour::Unavailable) => "mail servers unavailable",
            Self::Behaviour(MailBehaviour::Defer) => "mail servers reply 451",
            Self::Behaviour(_) => "mail servers drop connections after DATA",
            Self::Stall => "mail servers stall",
        }
    }
}

/// Statistics of a kind of fault: how often it happened, how often the recovery was late, and the longest recovery.
#[derive(Clone, Copy, Default)]
pub struct FaultStatistics {
    pub times: u32,
    pub late: u32,
    pub longest_recovery: Duration,
}

/// Injects the faults.
pub struct Chaos {
    pub fleet: Arc<Fleet>,
    pub observer: Observer,
    pub broker_line: Proxy,
    pub database_line: Proxy,
    pub statistics: Mutex<BTreeMap<&'static str, FaultStatistics>>,
    /// When the database became unavailable, and when it was back.
    database_outages: Mutex<Vec<(Instant, Instant)>>,
    /// Held during a fault of the servers.
    server_fault_lock: tokio::sync::Mutex<()>,
}

impl Chaos {
    pub fn new(fleet: Arc<Fleet>, observer: Observer, broker_line: Proxy, database_line: Proxy) -> Self {
        Self {
            fleet,
            observer,
            broker_line,
            database_line,
            statistics: Mutex::default(),
            database_outages: Mutex::default(),
            server_fault_lock: tokio::sync::Mutex::default(),
        }
    }

    /// Whether the database was unavailable, or just back, within `period` from `moment` on.
    pub fn database_was_unavailable(&self, moment: Instant, period: Duration) -> bool {
        let away = self.database_outages.lock().unwrap();
        away.iter().any(|(began, back)| *began <= moment + period && *back + JUST_BACK >= moment)
    }

    /// Injects each fault of the servers in random order, repeatedly, until `until`.
    pub async fn servers(self: Arc<Self>, mut rng: Rng, until: Instant) {
        loop {
            let mut faults = Fault::ALL;
            rng.shuffle(&mut faults);
            for fault in faults {
                if Instant::now() > until {
                    return;
                }
                let began = Instant::now();
                let under_way = self.server_fault_lock.lock().await;
                self.server_fault(fault, &mut rng).await;
                drop(under_way);
                let back = Instant::now();
                if fault.is_of_database() {
                    self.database_outages.lock().unwrap().push((began, back));
                }
                let (pause, last) = self.fleet.recovery(back, RECOVERY_MAX).await;
                self.note(fault.name(), back - began, pause, last, pause > RECOVERY_TARGET);
                sleep(FAULT_INTERVAL).await;
            }
        }
    }

    async fn server_fault(&self, fault: Fault, rng: &mut Rng) {
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

    /// Injects the faults of the mail servers likewise, with normal operation between them.
    pub async fn mail_servers(self: Arc<Self>, mut rng: Rng, until: Instant) {
        loop {
            let mut faults = MailFault::ALL;
            rng.shuffle(&mut faults);
            for fault in faults {
                sleep(Duration::from_secs(rng.u64(4..8))).await;
                if Instant::now() > until {
                    return;
                }
                let began = Instant::now();
                self.mail_fault(fault, Duration::from_millis(rng.u64(2_000..6_000))).await;
                let lasted = began.elapsed();
                // While the servers are unavailable there are no emails to wait for.
                drop(self.server_fault_lock.lock().await);
                let back = Instant::now();
                while self.observer.newest_mail().is_none_or(|at| at < back) && back.elapsed() < RECOVERY_MAX {
                    sleep(Duration::from_millis(50)).await;
                }
                // Deferred emails wait longer by design, so this recovery is never late.
                self.note(fault.name(), lasted, back.elapsed(), "emails", false);
            }
        }
    }

    async fn mail_fault(&self, fault: MailFault, a_while: Duration) {
        match fault {
            MailFault::Behaviour(behaviour) => {
                *self.fleet.mail_behaviour.lock().unwrap() = behaviour;
                sleep(a_while).await;
                *self.fleet.mail_behaviour.lock().unwrap() = MailBehaviour::Normal;
            }
            MailFault::Stall => {
                self.fleet.mail_lines.iter().for_each(Proxy::stall);
                sleep(a_while).await;
                self.fleet.mail_lines.iter().for_each(Proxy::resume);
            }
        }
    }

    /// `last` is what recovered last.
    fn note(&self, name: &'static str, lasted: Duration, pause: Duration, last: &str, is_late: bool) {
        let (lasted, seconds) = (lasted.as_secs_f64(), pause.as_secs_f64());
        let late = if is_late { ", late" } else { "" };
        say!("{name:<38} lasted {lasted:4.1} s, recovery {seconds:4.1} s ({last}{late})");
        let mut statistics = self.statistics.lock().unwrap();
        let entry = statistics.entry(name).or_default();
        entry.times += 1;
        entry.late += u32::from(is_late);
        entry.longest_recovery = entry.longest_recovery.max(pause);
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
