//! The workers: three processes. About every second, one is killed and replaced.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use fastrand::Rng;
use serde_json::json;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::history::History;
use offramp_testkit::eventually;
use offramp_testkit::machine_clock::MachineClock;
use offramp_testkit::proxy::Proxy;
use offramp_testkit::smtp_sink::{Action, ReceivedEmail, SmtpSink, Step, Tls};
use offramp_testkit::test_bed::{LANES, TestBed};
use offramp_testkit::worker_process::{WorkerProcess, build, is_ready, metrics_of};

pub const WORKERS: usize = 3;
/// The largest deviation from one second between two kills.
const KILL_JITTER_MILLISECONDS: u64 = 400;
/// How often to poll the workers' progress.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// The timeout of a poll, so that one slow worker does not delay the others.
const LOOK_PATIENCE: Duration = Duration::from_secs(1);
/// How long to wait for the slowest worker to recover.
pub const EVERYWHERE_MAX: Duration = Duration::from_secs(15);

/// The behaviour of the workers' mail servers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MailBehaviour {
    Normal,
    /// Connections are rejected with 421.
    Unavailable,
    /// Every email is deferred with 451.
    Defer,
    /// Every other email is accepted, and the connection dropped before the reply.
    DropAfterData,
}

/// What the workers run, and with which servers.
pub struct Staffing {
    /// The programs, which the workers run in turn.
    pub programs: Vec<PathBuf>,
    /// The clocks of the workers' machines; none: this machine's.
    pub clocks: Vec<MachineClock>,
    /// The directory for their logs.
    pub logs: PathBuf,
    pub settings: Settings,
}

/// What the workers' settings say about the servers.
pub struct Settings {
    /// RabbitMQ's URLs. Each worker begins with another one.
    pub amqp_urls: Vec<String>,
    pub mongodb_url: String,
    /// The lease of emails and events: short, so that entries of killed workers are sent soon, but longer than the longest outage, so
    /// that a live worker can mark what it sent.
    pub lease: Duration,
}

/// Three workers, each with its own mail server, so that the sender of each email is known.
pub struct Fleet {
    bed: Arc<TestBed>,
    history: Arc<History>,
    staffing: Staffing,
    pub sinks: Vec<SmtpSink>,
    /// The proxies in front of the mail servers.
    pub mail_lines: Vec<Proxy>,
    pub mail_behaviour: Arc<Mutex<MailBehaviour>>,
    workers: Mutex<Vec<WorkerProcess>>,
    pub kills: Mutex<Vec<(usize, Instant)>>,
    /// Workers that exited without being killed.
    pub ended: Mutex<Vec<String>>,
    /// When each worker, known by its port, last processed a message of each lane.
    progress: Mutex<HashMap<(u16, &'static str), Instant>>,
    /// Held while no worker may be killed.
    kill_lock: tokio::sync::Mutex<()>,
}

/// How long the lanes took to work again.
pub struct Recovery {
    /// Until each lane had processed a message at a worker.
    pub pause: Duration,
    /// The slowest lane.
    pub last: &'static str,
    /// Until each lane had processed a message at every worker; `None`: that took too long.
    pub everywhere: Option<Duration>,
}

impl Fleet {
    pub async fn start(bed: Arc<TestBed>, history: Arc<History>, staffing: Staffing) -> Arc<Self> {
        let mail_behaviour = Arc::new(Mutex::new(MailBehaviour::Normal));
        let (mut sinks, mut mail_lines) = (Vec::new(), Vec::new());
        for _ in 0..WORKERS {
            let behaviour = Arc::clone(&mail_behaviour);
            let sink =
                SmtpSink::scripted(Tls::No, move |step, nth| mail_action(*behaviour.lock().unwrap(), step, nth)).await;
            mail_lines.push(Proxy::to("127.0.0.1", sink.address.port()).await);
            sinks.push(sink);
        }
        let fleet = Self {
            bed,
            history,
            staffing,
            sinks,
            mail_lines,
            mail_behaviour,
            workers: Mutex::default(),
            kills: Mutex::default(),
            ended: Mutex::default(),
            progress: Mutex::default(),
            kill_lock: tokio::sync::Mutex::default(),
        };
        let workers = (0..WORKERS).map(|number| fleet.spawn(number)).collect();
        *fleet.workers.lock().unwrap() = workers;
        Arc::new(fleet)
    }

    fn spawn(&self, number: usize) -> WorkerProcess {
        let path = self.staffing.logs.join(format!("worker-{number}.log"));
        let log = File::options().create(true).append(true).open(&path).unwrap();
        let smtp_url = format!("smtp://{}", self.mail_lines[number].address());
        let Staffing { programs, settings: Settings { amqp_urls, mongodb_url, lease }, .. } = &self.staffing;
        let mut program = build(&programs[number % programs.len()], &self.bed);
        let (before, from_here) = amqp_urls.split_at(number % amqp_urls.len());
        program
            .env("OFFRAMP_SMTP_URL", smtp_url)
            .env("OFFRAMP_AMQP_URL", [from_here, before].concat().join(","))
            .env("OFFRAMP_MONGODB_URL", mongodb_url)
            .env("OFFRAMP_LEASE_SECONDS", lease.as_secs().to_string());
        if let Some(clock) = self.staffing.clocks.get(number) {
            clock.show(&mut program);
        }
        WorkerProcess::of(&mut program, Stdio::from(log))
    }

    /// A duplicate email is excused if its worker was killed within this time after the first delivery. Shorter than a lease, so that a
    /// live worker that does not mark is detected.
    pub fn marked_within(&self) -> Duration {
        self.staffing.settings.lease / 2
    }

    pub async fn ready(&self) {
        for port in self.ports() {
            eventually("a ready worker", || is_ready(port)).await;
        }
    }

    /// Kills and replaces random workers until aborted, but none while a recovery is measured.
    pub async fn keep_killing(self: Arc<Self>, mut rng: Rng) {
        loop {
            let pause = 1_000 - KILL_JITTER_MILLISECONDS + rng.u64(..2 * KILL_JITTER_MILLISECONDS);
            sleep(Duration::from_millis(pause)).await;
            let _kill = self.kill_lock.lock().await;
            let number = rng.usize(..WORKERS);
            let mut workers = self.workers.lock().unwrap();
            let worker = &mut workers[number];
            if let Some(status) = worker.ended() {
                self.ended.lock().unwrap().push(format!("worker {number} exited by itself: {status}"));
            }
            self.kills.lock().unwrap().push((number, Instant::now()));
            self.history.add("nemesis", "info", "kill", json!({ "worker": number }));
            worker.kill();
            *worker = self.spawn(number);
        }
    }

    /// Takes the emails accepted since the last call, each with the number of its server.
    pub fn emails(&self) -> Vec<(usize, ReceivedEmail)> {
        let emails = self.sinks.iter().map(SmtpSink::drain);
        emails.enumerate().flat_map(|(number, emails)| emails.into_iter().map(move |mail| (number, mail))).collect()
    }

    /// Records, until aborted, the progress of each lane at each worker.
    pub async fn watch(self: Arc<Self>) {
        let mut counts: HashMap<(u16, &'static str), u64> = HashMap::new();
        loop {
            let mut answers = JoinSet::new();
            for port in self.ports() {
                answers.spawn(async move { (port, timeout(LOOK_PATIENCE, settled(port)).await.unwrap_or_default()) });
            }
            while let Some(answer) = answers.join_next().await {
                let (port, settled) = answer.unwrap();
                for (lane, count) in settled {
                    if counts.insert((port, lane), count).unwrap_or(0) < count {
                        self.progress.lock().unwrap().insert((port, lane), Instant::now());
                    }
                }
            }
            sleep(LOOK_EVERY).await;
        }
    }

    fn ports(&self) -> Vec<u16> {
        self.workers.lock().unwrap().iter().map(WorkerProcess::port).collect()
    }

    /// Waits until every lane has processed a message at every worker since it could, which `served` knows as soon as it does: at most
    /// `patience` for one worker each, and at most [`EVERYWHERE_MAX`] for the others. No worker is killed meanwhile, because lanes must
    /// recover without a restart; one that was killed just before has to start.
    pub async fn recovery(&self, served: impl Fn(&str) -> Option<Instant>, patience: Duration) -> Recovery {
        let _no_kills = self.kill_lock.lock().await;
        let begin = Instant::now();
        let ports = self.ports();
        let mut pauses: HashMap<&'static str, BTreeMap<u16, Duration>> = HashMap::new();
        loop {
            for lane in LANES {
                let Some(served) = served(lane) else { continue };
                for &port in &ports {
                    let processed = self.progress.lock().unwrap().get(&(port, lane)).copied();
                    if let Some(pause) = processed.and_then(|at| at.checked_duration_since(served)) {
                        pauses.entry(lane).or_default().entry(port).or_insert(pause);
                    }
                }
            }
            let of = |lane| pauses.get(lane).into_iter().flat_map(BTreeMap::values).copied();
            let (pause, last) = LANES.map(|lane| (of(lane).min().unwrap_or(patience), lane)).into_iter().max().unwrap();
            let is_back = LANES.into_iter().all(|lane| pauses.contains_key(lane));
            let is_everywhere = LANES.into_iter().all(|lane| of(lane).count() == ports.len());
            let everywhere = is_everywhere.then(|| LANES.into_iter().flat_map(of).max().unwrap());
            if is_everywhere || begin.elapsed() > if is_back { EVERYWHERE_MAX } else { patience } {
                return Recovery { pause, last, everywhere };
            }
            sleep(LOOK_EVERY).await;
        }
    }

    /// Stops all workers with SIGTERM.
    pub async fn stop(&self) {
        let workers = std::mem::take(&mut *self.workers.lock().unwrap());
        for worker in workers {
            let status = worker.stop().await;
            if !status.success() {
                self.ended.lock().unwrap().push(format!("a worker exited with {status} on SIGTERM"));
            }
        }
    }
}

fn mail_action(behaviour: MailBehaviour, step: Step, nth: usize) -> Action {
    match (behaviour, step) {
        (MailBehaviour::Unavailable, Step::Greeting | Step::Mail) => Action::Answer("421 closed for now"),
        (MailBehaviour::Defer, Step::Rcpt) => Action::Answer("451 try again later"),
        (MailBehaviour::DropAfterData, Step::Content) if nth.is_multiple_of(2) => Action::TakeAndDrop,
        _ => Action::Ok,
    }
}

/// The number of messages that each lane of a worker has processed.
async fn settled(port: u16) -> Vec<(&'static str, u64)> {
    let metrics = metrics_of(port).await.unwrap_or_default();
    let mut counts: HashMap<&'static str, u64> = HashMap::new();
    for line in metrics.lines().filter(|line| line.starts_with("offramp_commands_total{")) {
        let (labels, count) = line.rsplit_once(' ').unwrap();
        let lane = labels.split('"').nth(1).unwrap_or_default();
        let Some(lane) = LANES.into_iter().find(|known| queue_of(lane) == *known) else { continue };
        *counts.entry(lane).or_default() += count.parse::<u64>().unwrap_or(0);
    }
    counts.into_iter().collect()
}

/// The queue of a type of command.
pub fn queue_of(kind: &str) -> String {
    kind.trim_start_matches("subscription.").replace('.', "-")
}
