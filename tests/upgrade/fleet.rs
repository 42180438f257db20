//! The workers of both releases, and their mail server.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use mail_parser::MessageParser;
use tokio::task::JoinHandle;
use tokio::time::sleep;

use offramp_testkit::smtp_sink::{Action, ReceivedEmail, SmtpSink, Step, Tls};
use offramp_testkit::test_bed::TestBed;
use offramp_testkit::worker_process::{WorkerProcess, build, program};

/// Every email with this number is deferred once, so that entries wait for whichever worker comes. Seldom, because each deferral makes
/// its worker send fewer emails per second.
const DEFER_EVERY: usize = 1_000;
/// How often to take the accepted emails.
const DRAIN_EVERY: Duration = Duration::from_millis(200);

/// Whose program a worker runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Release {
    Previous,
    This,
}

/// What identifies an accepted email.
#[derive(Clone, Debug)]
pub struct Accepted {
    pub message_id: String,
    pub template: String,
    /// The id of the command that caused it.
    pub command: String,
}

/// The workers.
pub struct Fleet {
    bed: Arc<TestBed>,
    previous: PathBuf,
    logs: PathBuf,
    sink: Arc<SmtpSink>,
    emails: Arc<Mutex<Vec<Accepted>>>,
    draining: JoinHandle<()>,
    workers: Vec<(Release, WorkerProcess)>,
    /// By release: the messages that its workers have processed.
    pub settled: BTreeMap<Release, u64>,
    /// For each replaced worker: how long it took to stop, and its successor to become ready.
    pub replacements: Vec<(Duration, Duration)>,
}

impl Fleet {
    /// Starts workers of the previous release, and waits until they are ready.
    pub async fn start(bed: Arc<TestBed>, previous: PathBuf, logs: PathBuf, workers: usize) -> Self {
        let sink = SmtpSink::scripted(Tls::No, |step, nth| match step {
            Step::Rcpt if nth.is_multiple_of(DEFER_EVERY) => Action::Answer("451 4.3.0 try again later"),
            _ => Action::Ok,
        })
        .await;
        let (sink, emails) = (Arc::new(sink), Arc::new(Mutex::default()));
        let draining = tokio::spawn(drain(Arc::clone(&sink), Arc::clone(&emails)));
        let mut fleet = Self {
            bed,
            previous,
            logs,
            sink,
            emails,
            draining,
            workers: Vec::new(),
            settled: BTreeMap::new(),
            replacements: Vec::new(),
        };
        for number in 0..workers {
            let worker = fleet.spawn(number, Release::Previous).ready().await;
            fleet.workers.push((Release::Previous, worker));
        }
        fleet
    }

    /// The URL of the mail server.
    pub fn mail_url(&self) -> String {
        self.sink.url()
    }

    fn spawn(&self, number: usize, release: Release) -> WorkerProcess {
        let path = self.logs.join(format!("worker-{number}.log"));
        let log = File::options().create(true).append(true).open(path).unwrap();
        let program = if release == Release::This { program() } else { &self.previous };
        WorkerProcess::of(build(program, &self.bed).env("OFFRAMP_SMTP_URL", self.sink.url()), Stdio::from(log))
    }

    /// Stops a worker with SIGTERM, and starts another in its place.
    pub async fn replace(&mut self, number: usize, release: Release) {
        let begin = Instant::now();
        let (before, worker) = self.workers.remove(number);
        self.stopped(before, worker).await;
        let stopped = begin.elapsed();
        let successor = self.spawn(number, release).ready().await;
        self.workers.insert(number, (release, successor));
        self.replacements.push((stopped, begin.elapsed().saturating_sub(stopped)));
    }

    async fn stopped(&mut self, release: Release, worker: WorkerProcess) {
        *self.settled.entry(release).or_default() += worker.settled().await;
        let status = worker.stop().await;
        assert!(status.success(), "a worker of the release {release:?} exited with {status} on SIGTERM");
    }

    /// Stops all workers.
    pub async fn stop(&mut self) {
        for (release, worker) in std::mem::take(&mut self.workers) {
            self.stopped(release, worker).await;
        }
        self.sink.deserted().await;
        self.draining.abort();
        take(&self.sink, &self.emails);
    }

    /// All accepted emails.
    pub fn emails(&self) -> Vec<Accepted> {
        self.emails.lock().unwrap().clone()
    }
}

async fn drain(sink: Arc<SmtpSink>, emails: Arc<Mutex<Vec<Accepted>>>) {
    loop {
        take(&sink, &emails);
        sleep(DRAIN_EVERY).await;
    }
}

fn take(sink: &SmtpSink, emails: &Mutex<Vec<Accepted>>) {
    // Held while they are taken: an aborted task has taken all or none.
    let mut emails = emails.lock().unwrap();
    emails.extend(sink.drain().iter().map(accepted));
}

fn accepted(email: &ReceivedEmail) -> Accepted {
    let parsed = MessageParser::default().parse(&email.bytes).unwrap();
    let header = |name: &str| parsed.header_raw(name).unwrap_or_default().trim().to_owned();
    let command = header("X-Offramp-Command");
    Accepted {
        message_id: parsed.message_id().unwrap().to_owned(),
        template: header("X-Offramp-Template"),
        command: command.split_once("id=").map(|(_, id)| id.to_owned()).unwrap_or_default(),
    }
}
