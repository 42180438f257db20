//! What a fault is measured by, and the faults of the mail servers. Those of the other servers are in [`crate::single`] and
//! [`crate::cluster`].

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use fastrand::Rng;
use serde_json::json;
use tokio::time::sleep;

use crate::fleet::{EVERYWHERE_MAX, Fleet, MailBehaviour, Recovery};
use crate::history::History;
use crate::observer::Observer;
use offramp_testkit::proxy::Proxy;
use offramp_testkit::say;

/// The time between the recovery from one fault and the next fault.
pub const FAULT_INTERVAL: Duration = Duration::from_millis(1_500);
/// The longest recovery of the lanes that is not late.
pub const RECOVERY_TARGET: Duration = Duration::from_secs(5);
/// How long to wait for the recovery.
const RECOVERY_MAX: Duration = Duration::from_secs(30);

/// How long after its return the database may still be slow.
const JUST_BACK: Duration = Duration::from_secs(3);

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

/// Statistics of a kind of fault.
#[derive(Clone, Copy, Default)]
pub struct FaultStatistics {
    pub times: u32,
    /// How often the lanes recovered late.
    pub late: u32,
    /// How often the servers did not work until the end of the fault, so that no recovery was measured.
    pub not_served: u32,
    pub longest_recovery: Duration,
    /// The longest recovery, counted from when the first server worked again.
    pub longest_since_first: Duration,
    /// The longest time until each lane worked at every worker.
    pub longest_everywhere: Duration,
    /// How often the slowest worker took too long to wait for.
    pub not_everywhere: u32,
}

/// When a fault began, and when the servers worked again.
#[derive(Clone, Copy)]
pub struct Outage {
    pub began: Instant,
    /// When the first of several servers worked.
    pub first_back: Instant,
    pub back: Instant,
}

/// Measures the faults of the servers, and injects those of the mail servers.
pub struct Chaos {
    pub fleet: Arc<Fleet>,
    pub observer: Observer,
    history: Arc<History>,
    pub statistics: Mutex<BTreeMap<&'static str, FaultStatistics>>,
    /// When the database was unavailable.
    database_outages: Mutex<Vec<Outage>>,
    /// Held during a fault of the servers.
    server_fault_lock: tokio::sync::Mutex<()>,
}

impl Chaos {
    pub fn new(fleet: Arc<Fleet>, history: Arc<History>, observer: Observer) -> Self {
        Self {
            fleet,
            observer,
            history,
            statistics: Mutex::default(),
            database_outages: Mutex::default(),
            server_fault_lock: tokio::sync::Mutex::default(),
        }
    }

    /// Whether the database was unavailable, or just back, within `period` from `moment` on.
    pub fn database_was_unavailable(&self, moment: Instant, period: Duration) -> bool {
        let outages = self.database_outages.lock().unwrap();
        outages.iter().any(|outage| outage.began <= moment + period && outage.back + JUST_BACK >= moment)
    }

    /// Injects a fault of the servers. `fault` ends when they work again, and returns since when the first of them did.
    pub async fn outage(&self, is_of_database: bool, fault: impl Future<Output = Instant>) -> Outage {
        let began = Instant::now();
        let under_way = self.server_fault_lock.lock().await;
        let first_back = fault.await;
        drop(under_way);
        let outage = Outage { began, first_back, back: Instant::now() };
        if is_of_database {
            self.database_outages.lock().unwrap().push(outage);
        }
        outage
    }

    /// Waits for the lanes after a fault. `served` is the moment from which on a lane could have worked, once it is known.
    pub async fn recover(
        &self,
        name: &'static str,
        outage: Outage,
        target: Duration,
        served: impl Fn(&str) -> Option<Instant>,
    ) {
        let recovery = self.fleet.recovery(served, RECOVERY_MAX).await;
        let since_first = recovery.pause + (outage.back - outage.first_back);
        self.note(name, outage.back - outage.began, &recovery, since_first, recovery.pause > target);
    }

    /// Notes a fault during which the servers did not work.
    pub fn not_served(&self, name: &'static str, outage: Outage, problem: &str) {
        let lasted = (outage.back - outage.began).as_secs_f64();
        let about = json!({ "lasted_s": lasted, "recovery_s": null, "last": problem });
        self.history.add("nemesis", "info", name, about);
        say!("{name:<38} lasted {lasted:4.1} s, and is ended now: {problem}");
        let mut statistics = self.statistics.lock().unwrap();
        let entry = statistics.entry(name).or_default();
        entry.times += 1;
        entry.not_served += 1;
    }

    /// Injects each fault of the mail servers in random order, repeatedly, until `until`, with normal operation between them.
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
                let pause = back.elapsed();
                let recovery = Recovery { pause, last: "emails", everywhere: Some(pause) };
                self.note(fault.name(), lasted, &recovery, pause, false);
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

    /// Notes a recovery. `since_first` is how long it took from when the first of several servers worked. It is an upper bound, because a
    /// lane that settled a message before all of them worked counts from its next one.
    fn note(&self, name: &'static str, lasted: Duration, recovery: &Recovery, since_first: Duration, is_late: bool) {
        let Recovery { pause, last, everywhere } = *recovery;
        let (lasted, seconds, first) = (lasted.as_secs_f64(), pause.as_secs_f64(), since_first.as_secs_f64());
        let everywhere_s = everywhere.map(|pause| pause.as_secs_f64());
        let about = json!({
            "lasted_s": lasted, "recovery_s": seconds, "since_first_s": first, "everywhere_s": everywhere_s, "last": last,
        });
        self.history.add("nemesis", "info", name, about);
        let late = if is_late { ", late" } else { "" };
        let all = everywhere_s
            .map_or_else(|| format!("not within {} s", EVERYWHERE_MAX.as_secs()), |seconds| format!("{seconds:.1} s"));
        say!(
            "{name:<38} lasted {lasted:4.1} s, recovery {seconds:4.1} s ({last}{late}), {first:4.1} s from the first server on, all workers {all}"
        );
        let mut statistics = self.statistics.lock().unwrap();
        let entry = statistics.entry(name).or_default();
        entry.times += 1;
        entry.late += u32::from(is_late);
        entry.longest_recovery = entry.longest_recovery.max(pause);
        entry.longest_since_first = entry.longest_since_first.max(since_first);
        entry.longest_everywhere = entry.longest_everywhere.max(everywhere.unwrap_or_default());
        entry.not_everywhere += u32::from(everywhere.is_none());
    }
}
