//! Processing of waiting messages, from the first delivery until all documents are committed, all emails accepted by the mail server,
//! all events published, all of both marked, and all messages acked.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use bson::{Document, doc};
use offramp_domain::command_ref::CommandType;
use tokio::time::sleep;

use crate::Bench;
use crate::baselines::{self, Baseline};
use crate::fixtures::{self, test_bed};
use crate::table::{goal, head, number, row, whole};
use crate::usage::{Line, Moment, watch};
use offramp_testkit::proxy::Proxy;
use offramp_testkit::say;
use offramp_testkit::test_bed::TestBed;
use offramp_testkit::worker_process::{WorkerProcess, build, program};

/// How often to poll for the end.
const LOOK_EVERY: Duration = Duration::from_millis(5);
/// The longest time without progress before a measurement fails.
const SILENCE_MAX: Duration = Duration::from_secs(60);
/// The number of measurements for a ratio. The median counts.
const ROUNDS: usize = 3;
/// The delay of the slow database, and the batch size of its workers: so small that workers wait for the database, and not for the
/// processors, which they share with the servers.
const LATE: Duration = Duration::from_millis(5);
const BATCH_MAX_WHEN_LATE: usize = 2;
/// The number of messages to process while a million wait.
const BACKLOG_SHARE: usize = 50_000;

/// The result of a measurement.
#[derive(Clone, Copy, Debug)]
struct Measured {
    messages: usize,
    took: Duration,
    /// CPU time of all processes, from the first message on.
    cpu: Duration,
    servers: [Option<Duration>; 3],
    /// Memory of the largest process, in MB.
    resident: f64,
    peak: f64,
}

impl Measured {
    fn rate(&self) -> f64 {
        number(self.messages) / self.took.as_secs_f64()
    }

    /// CPU microseconds per message.
    fn each(&self, cpu: Duration) -> f64 {
        cpu.as_secs_f64() * 1e6 / number(self.messages)
    }

    fn cells(&self) -> Vec<String> {
        let each =
            |cpu: Option<Duration>| cpu.map_or_else(|| "?".to_owned(), |cpu| format!("{} µs", whole(self.each(cpu))));
        let mut cells = vec![format!("{}/s", whole(self.rate())), each(Some(self.cpu))];
        cells.extend(self.servers.map(each));
        cells.extend([self.resident, self.peak].map(|size| format!("{} MB", whole(size))));
        cells
    }
}

/// The columns of a measurement. CPU time is per message.
const COLUMNS: [&str; 7] = ["messages", "own CPU", "MongoDB's", "RabbitMQ's", "sink's", "resident", "peak"];

/// Changes a document by its index.
type Change<'a> = dyn Fn(usize, &mut Document) + 'a;

/// A measurement of workers.
struct Job<'a> {
    name: &'a str,
    kind: CommandType,
    /// The number of waiting messages.
    messages: usize,
    /// The number of documents they are about.
    documents: usize,
    /// The number of messages after which the measurement ends.
    until: usize,
    /// The number of emails per message.
    emails_each: usize,
    workers: usize,
    settings: Vec<(&'a str, String)>,
    slow_database: bool,
    /// The program of the workers.
    program: &'a Path,
    change: Box<Change<'a>>,
}

impl<'a> Job<'a> {
    /// Cancellations with a month, each for another subscription.
    fn cancellations(name: &'a str, messages: usize) -> Self {
        Self {
            name,
            kind: CommandType::Cancellation,
            messages,
            documents: messages,
            until: messages,
            emails_each: 1,
            workers: 1,
            settings: vec![("OFFRAMP_SWEEP_SECONDS", "60".to_owned())],
            slow_database: false,
            program: program(),
            change: Box::new(|_, _| {}),
        }
    }

    fn with(mut self, setting: &'a str, value: &impl ToString) -> Self {
        self.settings.push((setting, value.to_string()));
        self
    }

    async fn measure(self, bench: &Bench) -> Measured {
        let Self { name, messages, documents, until, .. } = self;
        say!("{name}: {messages} messages about {documents} documents");
        let bed = fixtures::test_bed_for(name, self.program).await;
        fixtures::add_organizations(&bed, |_| {}).await;
        fixtures::add_clients(&bed, 0..documents, &self.change).await;
        let commands = (0..messages).map(|index| {
            let mut command = fixtures::command_of(self.kind, index % documents);
            command["id"] = format!("c-{index:07}").into();
            command
        });
        fixtures::publish(&bed, commands).await;
        fixtures::flush_database(&bed).await;

        let mut settings = self.settings;
        let _database_line;
        if self.slow_database {
            let (proxy, url) = Proxy::in_front_of_mongodb(&bed.mongodb_url).await;
            proxy.delay_answers(LATE);
            settings.push(("OFFRAMP_MONGODB_URL", url));
            _database_line = proxy;
        }
        let emails_before = bench.sink.count();
        let queue = fixtures::work_queue(&bed, self.kind);
        let mut workers = Vec::new();
        let mut beginnings = Vec::new();
        for number in 0..self.workers {
            let mut program = build(self.program, &bed);
            program.env("OFFRAMP_SMTP_URL", bench.sink.url()).envs(settings.iter().cloned());
            let mut worker = WorkerProcess::of(&mut program, Stdio::piped());
            let (says, queue) = (worker.take_log(), queue.clone());
            let log = bench.logs.join(format!("{name}-{number}.log"));
            let consumes = move |line: &str| line.contains("consuming") && line.contains(&queue);
            let [begins] = watch(says, worker.id(), &log, [Box::new(consumes)]);
            beginnings.push(begins);
            workers.push(worker);
        }
        let mut begun = Vec::new();
        for beginning in beginnings {
            begun.push(beginning.await.expect("a worker that consumes"));
        }

        let mut progress = Progress::begin();
        progress.until(|| bench.sink.count() - emails_before, until * self.emails_each).await;
        if until == messages {
            progress.settled(&bed, &workers, messages).await;
        }
        let measured = ended(&begun, &workers, until);
        for worker in workers {
            assert!(worker.stop().await.success());
        }
        if until == messages {
            check(&bed, self.kind, documents).await;
            assert_eq!(bench.sink.count() - emails_before, messages * self.emails_each, "emails accepted");
        }
        bed.remove().await;
        measured
    }
}

/// The work and usage of workers since the first of them started.
fn ended(begun: &[Moment], workers: &[WorkerProcess], messages: usize) -> Measured {
    let first = begun.iter().min_by_key(|begun| begun.at).unwrap();
    let ends: Vec<Moment> = workers.iter().map(|worker| Moment::of(worker.id())).collect();
    let most = |size: fn(&Moment) -> f64| ends.iter().map(size).fold(0.0, f64::max);
    Measured {
        messages,
        took: ends[0].at - first.at,
        cpu: begun.iter().zip(&ends).map(|(begun, end)| begun.cpu_until(end)).sum(),
        servers: first.servers_until(&ends[0]),
        resident: most(|end| end.usage.resident),
        peak: most(|end| end.usage.peak),
    }
}

/// Waits for a count, and fails when there is no more progress.
struct Progress {
    newest: Instant,
    seen: usize,
}

impl Progress {
    fn begin() -> Self {
        Self { newest: Instant::now(), seen: 0 }
    }

    fn see(&mut self, count: usize) {
        if count != self.seen {
            (self.seen, self.newest) = (count, Instant::now());
        }
        assert!(self.newest.elapsed() < SILENCE_MAX, "no progress since {count}");
    }

    async fn until(&mut self, count: impl Fn() -> usize, wanted: usize) {
        while count() < wanted {
            self.see(count());
            sleep(LOOK_EVERY).await;
        }
    }

    /// Waits until all messages are processed and all outboxes are empty.
    async fn settled(&mut self, bed: &TestBed, workers: &[WorkerProcess], messages: usize) {
        loop {
            let mut settled = 0;
            for worker in workers {
                settled += worker.settled().await;
            }
            if settled >= messages as u64 {
                break;
            }
            self.see(usize::try_from(settled).unwrap());
            sleep(LOOK_EVERY).await;
        }
        fixtures::outboxes_empty(bed, "subscriptions").await;
    }
}

/// Checks that all documents were changed.
async fn check(bed: &TestBed, kind: CommandType, documents: usize) {
    let mut done = doc! { "applied.0": { "$exists": true }, "outbox.0": { "$exists": false } };
    if kind == CommandType::Cancellation {
        done.insert("status", "cancellation_scheduled");
    }
    let done = bed.collection("subscriptions").count_documents(done).await.unwrap();
    assert_eq!(done, documents as u64, "subscriptions that were changed");
}

/// Measures a baseline with `count` documents, messages or emails.
async fn baseline(bench: &Bench, baseline: Baseline, count: usize, change: &Change<'_>) -> Measured {
    say!("{}: {count}", baseline.name());
    let bed = test_bed("baseline").await;
    if baseline.takes_documents() {
        fixtures::add_organizations(&bed, |_| {}).await;
        fixtures::add_clients(&bed, 0..count, change).await;
    }
    if baseline.takes_messages() {
        let commands = (0..count).map(|index| fixtures::command_of(CommandType::Cancellation, index));
        fixtures::publish(&bed, commands).await;
    }
    fixtures::flush_database(&bed).await;
    let emails_before = bench.sink.count();
    let mut program = Command::new(std::env::current_exe().unwrap());
    program
        .args(["--baseline", clap::ValueEnum::to_possible_value(&baseline).unwrap().get_name()])
        .args(["--baseline-count", &count.to_string()])
        .args(["--baseline-prefix", &bed.prefix])
        .args(["--baseline-mongodb-url", &bed.mongodb_url])
        .args(["--baseline-sink", &bench.sink.address.to_string()])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped());
    let mut process = offramp_testkit::process::run(&mut program, Command::spawn).unwrap();
    let says = process.stderr.take().unwrap();
    let log = bench.logs.join("baseline.log");
    let lines: [Line; 2] = [Box::new(|line| line == baselines::BEGINS), Box::new(|line| line == baselines::DONE)];
    let [begins, done] = watch(says, process.id(), &log, lines);
    let begun = begins.await.expect("a baseline that begins");
    let done = done.await.expect("a baseline that ends well");
    if baseline.sends_emails() {
        assert_eq!(bench.sink.count() - emails_before, count);
    }
    drop(process.stdin.take());
    assert!(process.wait().unwrap().success());
    bed.remove().await;
    Measured {
        messages: count,
        took: done.at - begun.at,
        cpu: begun.cpu_until(&done),
        servers: begun.servers_until(&done),
        resident: done.usage.resident,
        peak: done.usage.peak,
    }
}

/// 20,000 and 100,000 cancellations, and the baselines.
pub async fn throughput(bench: &Bench) {
    for count in bench.counts([20_000, 100_000]) {
        head(&format!("{} waiting cancellations", whole(number(count))), &COLUMNS);
        let (mut jobs, mut bare) = (Vec::new(), Vec::new());
        for _ in 0..if count > 20_000 { 1 } else { ROUNDS } {
            jobs.push(Job::cancellations("job", count).measure(bench).await);
            bare.push(baseline(bench, Baseline::Pipeline, count, &|_, _| {}).await);
        }
        let (job, pipeline) = (middle(jobs), middle(bare));
        row("job", job.cells());
        for kind in Baseline::ALL {
            let measured =
                if kind == Baseline::Pipeline { pipeline } else { baseline(bench, kind, count, &|_, _| {}).await };
            row(kind.name(), measured.cells());
        }
        goal("job ÷ bare pipeline", &format!("{:.2}", job.rate() / pipeline.rate()), "at least 0.85");
        goal("own CPU of the job", &format!("{} µs", whole(job.each(job.cpu))), "at most 110 µs");
    }
}

/// 20,000 cancellations with this build and another, alternating on the same servers.
pub async fn beside(bench: &Bench, other: &Path) {
    let count = bench.count(20_000);
    let programs = [program(), other];
    let mut rounds = [Vec::new(), Vec::new()];
    for _ in 0..ROUNDS {
        for (program, measured) in programs.into_iter().zip(&mut rounds) {
            measured.push(Job { program, ..Job::cancellations("beside", count) }.measure(bench).await);
        }
    }
    head(
        &format!("{} cancellations, medians of {ROUNDS}", whole(number(count))),
        &["messages", "own CPU", "MongoDB's"],
    );
    let figures = rounds.map(|rounds| {
        let median = |figure: fn(&Measured) -> f64| {
            let mut figures: Vec<f64> = rounds.iter().map(figure).collect();
            figures.sort_by(f64::total_cmp);
            figures[figures.len() / 2]
        };
        [
            median(Measured::rate),
            median(|measured| measured.each(measured.cpu)),
            median(|measured| measured.each(measured.servers[0].unwrap_or_default())),
        ]
    });
    for (name, [rate, own, database]) in ["this build", "the other"].into_iter().zip(figures) {
        let cpu = |micros| format!("{} µs", whole(micros));
        row(name, [format!("{}/s", whole(rate)), cpu(own), cpu(database)]);
    }
    let [this, other] = figures;
    row("this ÷ the other", this.iter().zip(other).map(|(this, other)| format!("{:.2}", this / other)));
}

/// The median by speed.
fn middle(mut measured: Vec<Measured>) -> Measured {
    measured.sort_by(|one, other| one.rate().total_cmp(&other.rate()));
    measured[measured.len() / 2]
}

/// One, two and four processes with a slow database.
pub async fn scale(bench: &Bench) {
    let count = bench.count(2_000);
    head(&format!("Database {} ms late, batches of {BATCH_MAX_WHEN_LATE}", LATE.as_millis()), &COLUMNS);
    let mut alone = None;
    for (workers, name, target) in
        [(1, "1 process", ""), (2, "2 processes", "at least 1.9"), (4, "4 processes", "at least 3.5")]
    {
        let mut rounds = Vec::new();
        for _ in 0..ROUNDS {
            let job = Job { workers, slow_database: true, ..Job::cancellations("scale", count) };
            rounds.push(job.with("OFFRAMP_BATCH_MAX", &BATCH_MAX_WHEN_LATE).measure(bench).await);
        }
        let measured = middle(rounds);
        row(name, measured.cells());
        let alone = *alone.get_or_insert(measured.rate());
        if workers > 1 {
            goal(&format!("  {name} ÷ 1"), &format!("{:.2}", measured.rate() / alone), target);
        }
    }
}

/// All commands on one subscription.
pub async fn hot_spot(bench: &Bench) {
    let count = bench.count(1_000);
    head("Payment failures of one subscription", &COLUMNS);
    let job = Job {
        kind: CommandType::PaymentFailure,
        documents: 1,
        emails_each: 2,
        ..Job::cancellations("hot-spot", count)
    };
    row(&format!("{} commands, two emails each", whole(number(count))), job.measure(bench).await.cells());
}

/// Documents with a long history: the worker compared with the bare pipeline.
pub async fn history(bench: &Bench) {
    let count = bench.count(2_000);
    head("Cancellations, by entries of the history", &COLUMNS);
    let mut short = None;
    for entries in [1, 100, 1_000] {
        let entry = doc! {
            "at": bson::DateTime::now(), "from": "active", "to": "active",
            "command": { "source": "tests", "id": "c-0000000", "type": "payment.failure" },
            "actor": { "role": "admin", "id": "staff-17", "name": "Paul" },
        };
        let change =
            move |_: usize, document: &mut Document| drop(document.insert("history", vec![entry.clone(); entries]));
        let (mut jobs, mut bare) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            let job = Job { change: Box::new(change.clone()), ..Job::cancellations("history", count) };
            jobs.push(job.measure(bench).await);
            bare.push(baseline(bench, Baseline::Pipeline, count, &change).await);
        }
        let (job, pipeline) = (middle(jobs), middle(bare));
        row(&whole(number(entries)), job.cells());
        row("  bare pipeline", pipeline.cells());
        row("  job ÷ bare pipeline", [format!("{:.2}", job.rate() / pipeline.rate())]);
        let (job_short, pipeline_short) = *short.get_or_insert((job.rate(), pipeline.rate()));
        if entries == 1_000 {
            row("bare pipeline: 1,000 entries ÷ 1", [format!("{:.2}", pipeline.rate() / pipeline_short)]);
            goal("1,000 entries ÷ 1", &format!("{:.2}", job.rate() / job_short), "at least 0.8");
        }
    }
}

/// Other sizes of batches.
pub async fn batches(bench: &Bench) {
    head("Cancellations, by OFFRAMP_BATCH_MAX", &COLUMNS);
    for size in [1, 16, 64, 200] {
        let count = bench.count(if size == 1 { 4_000 } else { 20_000 });
        let measured = Job::cancellations("batches", count).with("OFFRAMP_BATCH_MAX", &size).measure(bench).await;
        row(&whole(number(size)), measured.cells());
    }
}

/// Memory, by the number of waiting messages.
pub async fn backlog(bench: &Bench) {
    head("Cancellations, by waiting messages", &COLUMNS);
    for waiting in bench.counts([10_000, 100_000, 1_000_000]) {
        let until = waiting.min(BACKLOG_SHARE);
        let job = Job {
            until,
            // Documents are needed only for messages that may be processed.
            documents: waiting.min(2 * BACKLOG_SHARE),
            ..Job::cancellations("backlog", waiting)
        };
        let measured = job.measure(bench).await;
        row(&format!("{}, {} of them processed", whole(number(waiting)), whole(number(until))), measured.cells());
        goal("  peak memory", &format!("{} MB", whole(measured.peak)), "at most 80 MB, flat");
    }
}
