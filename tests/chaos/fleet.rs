//! The workers: three processes, of which one is killed every second or so, and a new one takes its place.

use std::collections::HashMap;
use std::fs::File;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use fastrand::Rng;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use offramp_testkit::eventually;
use offramp_testkit::proxy::Proxy;
use offramp_testkit::smtp_sink::{Action, SmtpSink, Step, Taken, Tls};
use offramp_testkit::test_bed::{LANES, TestBed};
use offramp_testkit::worker_process::{WorkerProcess, build, metrics_of, readyz_of};

/// How many workers run.
pub const WORKERS: usize = 3;
/// How long an email or event belongs to the worker that took it, in seconds: short, so that what a killed worker held
/// goes on soon, but longer than the longest outage, so that a worker that lives can mark what it sent.
pub const LEASE_SECONDS: u64 = 20;
/// From one kill to the next: a second, give or take as much as this in milliseconds.
const KILL_JITTER_MILLISECONDS: u64 = 400;
/// How often the workers are asked how far they are.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// How long one of them may take to answer: those that do must not be heard late because of it.
const LOOK_PATIENCE: Duration = Duration::from_secs(1);

/// What the workers' mail servers do with emails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MailWeather {
    Fair,
    /// No one is let in.
    Refuse,
    /// Every email is put off with a 4xx.
    PutOff,
    /// Every other email is taken, and the line dropped before that is said.
    DropAfterData,
}

/// Three workers, each with a mail server to itself, so that emails tell who sent them.
pub struct Fleet {
    bed: Arc<TestBed>,
    program: PathBuf,
    settings: Vec<(&'static str, String)>,
    logs: PathBuf,
    pub sinks: Vec<SmtpSink>,
    /// In front of the mail servers.
    pub mail_lines: Vec<Proxy>,
    pub mail_weather: Arc<Mutex<MailWeather>>,
    workers: Mutex<Vec<WorkerProcess>>,
    pub kills: Mutex<Vec<(usize, Instant)>>,
    /// Workers that ended though nobody killed them.
    pub ended: Mutex<Vec<String>>,
    progress: Mutex<HashMap<&'static str, Instant>>,
    /// Held while nobody is killed.
    truce: tokio::sync::Mutex<()>,
}

impl Fleet {
    /// Starts the workers, which run `program` and reach RabbitMQ and MongoDB at these addresses.
    pub async fn start(
        bed: Arc<TestBed>,
        program: PathBuf,
        amqp_url: String,
        mongodb_url: String,
        logs: PathBuf,
    ) -> Arc<Self> {
        let mail_weather = Arc::new(Mutex::new(MailWeather::Fair));
        let (mut sinks, mut mail_lines) = (Vec::new(), Vec::new());
        for _ in 0..WORKERS {
            let weather = Arc::clone(&mail_weather);
            let sink =
                SmtpSink::scripted(Tls::No, move |step, nth| mail_action(*weather.lock().unwrap(), step, nth)).await;
            mail_lines.push(Proxy::to("127.0.0.1", sink.address.port()).await);
            sinks.push(sink);
        }
        let settings = vec![
            ("OFFRAMP_AMQP_URL", amqp_url),
            ("OFFRAMP_MONGODB_URL", mongodb_url),
            ("OFFRAMP_LEASE_SECONDS", LEASE_SECONDS.to_string()),
        ];
        let fleet = Self {
            bed,
            program,
            settings,
            logs,
            sinks,
            mail_lines,
            mail_weather,
            workers: Mutex::default(),
            kills: Mutex::default(),
            ended: Mutex::default(),
            progress: Mutex::default(),
            truce: tokio::sync::Mutex::default(),
        };
        let workers = (0..WORKERS).map(|number| fleet.spawn(number)).collect();
        *fleet.workers.lock().unwrap() = workers;
        Arc::new(fleet)
    }

    fn spawn(&self, number: usize) -> WorkerProcess {
        let path = self.logs.join(format!("worker-{number}.log"));
        let log = File::options().create(true).append(true).open(&path).unwrap();
        let smtp_url = format!("smtp://{}", self.mail_lines[number].address());
        let mut program = build(&self.program, &self.bed);
        program.env("OFFRAMP_SMTP_URL", smtp_url).envs(self.settings.iter().cloned());
        WorkerProcess::of(&mut program, Stdio::from(log))
    }

    /// Waits until all workers are ready.
    pub async fn ready(&self) {
        let ports: Vec<u16> = self.workers.lock().unwrap().iter().map(WorkerProcess::port).collect();
        for port in ports {
            eventually("a ready worker", || async move { readyz_of(port).await.filter(|answer| answer.status == 200) })
                .await;
        }
    }

    /// Kills one worker after the other, each time another takes its place, forever; but none while it is
    /// measured how soon lanes run again.
    pub async fn keep_killing(self: Arc<Self>, mut rng: Rng) {
        loop {
            let pause = 1_000 - KILL_JITTER_MILLISECONDS + rng.u64(..2 * KILL_JITTER_MILLISECONDS);
            sleep(Duration::from_millis(pause)).await;
            let _no_truce = self.truce.lock().await;
            let number = rng.usize(..WORKERS);
            let mut workers = self.workers.lock().unwrap();
            let worker = &mut workers[number];
            if let Some(status) = worker.ended() {
                self.ended.lock().unwrap().push(format!("worker {number} exited by itself: {status}"));
            }
            self.kills.lock().unwrap().push((number, Instant::now()));
            worker.kill();
            *worker = self.spawn(number);
        }
    }

    /// The emails that were taken since the last call.
    pub fn emails(&self) -> Vec<(usize, Taken)> {
        let emails = self.sinks.iter().map(SmtpSink::drain);
        emails.enumerate().flat_map(|(number, emails)| emails.into_iter().map(move |mail| (number, mail))).collect()
    }

    /// Notes, forever, when each lane has settled messages.
    pub async fn watch(self: Arc<Self>) {
        let mut counts: HashMap<(u16, &'static str), u64> = HashMap::new();
        loop {
            let ports: Vec<u16> = self.workers.lock().unwrap().iter().map(WorkerProcess::port).collect();
            let mut answers = JoinSet::new();
            for port in ports {
                answers.spawn(async move { (port, timeout(LOOK_PATIENCE, settled(port)).await.unwrap_or_default()) });
            }
            while let Some(answer) = answers.join_next().await {
                let (port, settled) = answer.unwrap();
                for (lane, count) in settled {
                    if counts.insert((port, lane), count).unwrap_or(0) < count {
                        self.progress.lock().unwrap().insert(lane, Instant::now());
                    }
                }
            }
            sleep(LOOK_EVERY).await;
        }
    }

    /// Waits until every lane has settled a message after `moment`, for at most `patience`; how long that took, and which
    /// lane was the last. Nobody is killed meanwhile: lanes must run again without a restart, so none may help or hinder
    /// them.
    pub async fn lanes_run(&self, moment: Instant, patience: Duration) -> (Duration, &'static str) {
        let _truce = self.truce.lock().await;
        loop {
            let progress = self.progress.lock().unwrap().clone();
            let pause = |lane| progress.get(lane).and_then(|at: &Instant| at.checked_duration_since(moment));
            let pauses = LANES.map(|lane| (pause(lane).unwrap_or(Duration::MAX), lane));
            let last = pauses.into_iter().max().unwrap();
            if last.0 != Duration::MAX {
                return last;
            }
            if moment.elapsed() > patience {
                return (patience, last.1);
            }
            sleep(LOOK_EVERY).await;
        }
    }

    /// Stops all workers in an orderly way.
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

/// What a mail server does at a step.
fn mail_action(weather: MailWeather, step: Step, nth: usize) -> Action {
    match (weather, step) {
        (MailWeather::Refuse, Step::Greeting | Step::Mail) => Action::Answer("421 closed for now"),
        (MailWeather::PutOff, Step::Rcpt) => Action::Answer("451 try again later"),
        (MailWeather::DropAfterData, Step::Content) if nth.is_multiple_of(2) => Action::TakeAndDrop,
        _ => Action::Ok,
    }
}

/// How many messages each lane of a worker has settled.
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
fn queue_of(kind: &str) -> String {
    kind.trim_start_matches("subscription.").replace('.', "-")
}
