//! What goes wrong, one thing after the other: the servers and the lines to them; at the same time, the mail servers.

use std::collections::BTreeMap;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use fastrand::Rng;
use tokio::time::sleep;

use crate::fleet::{Fleet, MailWeather};
use crate::observer::Observer;
use offramp_testkit::process;
use offramp_testkit::proxy::Proxy;
use offramp_testkit::say;

/// How long the database is frozen.
const FREEZE: Duration = Duration::from_secs(10);
/// From the end of one fault, when everything runs again, to the next.
const BREATHER: Duration = Duration::from_millis(1_500);
/// How long after a server's return the lanes may still stand.
pub const PAUSE_WANTED: Duration = Duration::from_secs(5);
/// How long to wait for the lanes before the pause counts as this long.
const PAUSE_MAX: Duration = Duration::from_secs(30);

/// How long after its return the database may still have much to catch up with.
const JUST_BACK: Duration = Duration::from_secs(3);

/// Faults of the servers and the lines to them.
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

/// Faults of the mail servers. The lanes never mind; the pause is the time until the next email is taken.
#[derive(Clone, Copy, Debug)]
enum MailFault {
    Weather(MailWeather),
    Stall,
}

impl MailFault {
    const ALL: [Self; 4] = [
        Self::Weather(MailWeather::Refuse),
        Self::Weather(MailWeather::PutOff),
        Self::Weather(MailWeather::DropAfterData),
        Self::Stall,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::Weather(MailWeather::Refuse) => "mail servers unavailable",
            Self::Weather(MailWeather::PutOff) => "mail servers reply 451",
            Self::Weather(_) => "mail servers drop connections after DATA",
            Self::Stall => "mail servers stall",
        }
    }
}

/// How a fault went: how often, how often lanes ran again too late, and the longest time from its end until they did, or
/// until an email left.
#[derive(Clone, Copy, Default)]
pub struct Account {
    pub times: u32,
    pub late: u32,
    pub longest_pause: Duration,
}

/// Makes things go wrong.
pub struct Chaos {
    pub fleet: Arc<Fleet>,
    pub observer: Observer,
    pub broker_line: Proxy,
    pub database_line: Proxy,
    pub accounts: Mutex<BTreeMap<&'static str, Account>>,
    /// From when to when the database could not be reached.
    database_away: Mutex<Vec<(Instant, Instant)>>,
    /// Held while a fault of the servers is under way.
    servers_away: tokio::sync::Mutex<()>,
}

impl Chaos {
    pub fn new(fleet: Arc<Fleet>, observer: Observer, broker_line: Proxy, database_line: Proxy) -> Self {
        Self {
            fleet,
            observer,
            broker_line,
            database_line,
            accounts: Mutex::default(),
            database_away: Mutex::default(),
            servers_away: tokio::sync::Mutex::default(),
        }
    }

    /// Whether the database was away, or just back, within `period` from `moment` on.
    pub fn database_was_away(&self, moment: Instant, period: Duration) -> bool {
        let away = self.database_away.lock().unwrap();
        away.iter().any(|(began, back)| *began <= moment + period && *back + JUST_BACK >= moment)
    }

    /// Faults of the servers, each once in a random order, again and again while there is time.
    pub async fn servers(self: Arc<Self>, mut rng: Rng, until: Instant) {
        loop {
            let mut faults = Fault::ALL;
            rng.shuffle(&mut faults);
            for fault in faults {
                if Instant::now() > until {
                    return;
                }
                let began = Instant::now();
                let under_way = self.servers_away.lock().await;
                self.server_fault(fault, &mut rng).await;
                drop(under_way);
                let back = Instant::now();
                if fault.is_of_database() {
                    self.database_away.lock().unwrap().push((began, back));
                }
                let (pause, last) = self.fleet.lanes_run(back, PAUSE_MAX).await;
                self.note(fault.name(), back - began, pause, last, pause > PAUSE_WANTED);
                sleep(BREATHER).await;
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
            Fault::BrokerMute => lose_answers(&self.broker_line, a_while).await,
            Fault::DatabaseMute => lose_answers(&self.database_line, a_while).await,
        }
    }

    /// Faults of the mail servers, likewise, with fair weather between them.
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
                // While the servers are away there are no emails to wait for.
                drop(self.servers_away.lock().await);
                let back = Instant::now();
                while self.observer.newest_mail().is_none_or(|at| at < back) && back.elapsed() < PAUSE_MAX {
                    sleep(Duration::from_millis(50)).await;
                }
                // Emails are put off for longer than that on purpose; lanes do not wait for them.
                self.note(fault.name(), lasted, back.elapsed(), "emails", false);
            }
        }
    }

    async fn mail_fault(&self, fault: MailFault, a_while: Duration) {
        match fault {
            MailFault::Weather(weather) => {
                *self.fleet.mail_weather.lock().unwrap() = weather;
                sleep(a_while).await;
                *self.fleet.mail_weather.lock().unwrap() = MailWeather::Fair;
            }
            MailFault::Stall => {
                self.fleet.mail_lines.iter().for_each(Proxy::stall);
                sleep(a_while).await;
                self.fleet.mail_lines.iter().for_each(Proxy::resume);
            }
        }
    }

    /// `last` is what ran last again.
    fn note(&self, name: &'static str, lasted: Duration, pause: Duration, last: &str, is_late: bool) {
        let (lasted, seconds) = (lasted.as_secs_f64(), pause.as_secs_f64());
        let late = if is_late { ", late" } else { "" };
        say!("{name:<38} lasted {lasted:4.1} s, recovery {seconds:4.1} s ({last}{late})");
        let mut accounts = self.accounts.lock().unwrap();
        let account = accounts.entry(name).or_default();
        account.times += 1;
        account.late += u32::from(is_late);
        account.longest_pause = account.longest_pause.max(pause);
    }
}

/// Holds everything back for a while; then lets it pass, or ends the connections with all that was held.
async fn stall(line: &Proxy, a_while: Duration, then_cut: bool) {
    line.stall();
    sleep(a_while).await;
    if then_cut {
        line.cut();
    }
    line.resume();
}

/// The server hears and does what it is asked, but its answers never arrive.
async fn lose_answers(line: &Proxy, a_while: Duration) {
    line.mute();
    sleep(a_while).await;
    line.cut();
    line.resume();
}

/// `scripts/services`, on the servers of this run.
async fn services(words: &'static [&'static str]) {
    let run = move || {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/services");
        let output = process::run(Command::new(script).args(words).stdin(Stdio::null()), Command::output).unwrap();
        assert!(output.status.success(), "scripts/services {words:?}: {}", String::from_utf8_lossy(&output.stderr));
    };
    tokio::task::spawn_blocking(run).await.unwrap();
}
