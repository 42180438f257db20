//! `make bench`: how fast is the worker, and how much of the time is its own?
//!
//! Every figure is of worker processes, built as in production, on real servers. The same run measures baselines: what the same servers
//! need for the same operations when nothing is decided and nothing rendered. On a busy machine absolute figures mean little, but the
//! ratios still do.
//!
//! Reading order: [`end_to_end`] (waiting messages, from the first delivery to the last mark), [`baselines`] (the same without the
//! worker), [`latency`] (messages at a steady rate), [`calendar`] (scheduled changes), [`sweep`] (the cost of finding them). Support:
//! [`fixtures`] (the state before a worker starts), [`usage`] (processes and their usage), [`sink`] (the mail server), [`table`].
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a measurement that cannot go on has failed"
)]

use std::path::PathBuf;

use bson::doc;
use clap::{Parser, ValueEnum};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

mod baselines;
mod calendar;
mod end_to_end;
mod fixtures;
mod latency;
mod sink;
mod sweep;
mod table;
mod usage;

use offramp_testkit::rabbit::amqp_url;
use offramp_testkit::{progress, say, setting};
use sink::Sink;

/// How fast is the worker, and how much of the time is its own? Run it with `make bench`
#[derive(Parser)]
struct Arguments {
    /// What to measure [default: everything]
    #[arg(value_enum)]
    parts: Vec<Part>,
    /// The largest count, for a quick run that only checks that everything works
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u64).range(1..))]
    n: Option<u64>,
    /// Another build of the program to compare with, alternating on the same servers. Only throughput and sweep support it, and only
    /// these are measured by default
    #[arg(long, value_name = "PATH")]
    beside: Option<PathBuf>,
    /// Where the workers' logs go
    #[arg(long, default_value = "target/bench")]
    logs: PathBuf,
    #[command(flatten)]
    baseline: baselines::BaselineArguments,
    /// Passed by `cargo bench`
    #[arg(long, hide = true)]
    bench: bool,
}

/// A part that can be measured by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Waiting messages, and the baselines
    Throughput,
    /// Messages at a steady rate
    Latency,
    /// Subscriptions that end at the same midnight
    Midnight,
    /// Card notices, among a million accounts
    Cards,
    /// Documents read by sweeps
    Sweep,
    /// Several processes and a slow database
    Scale,
    /// Many commands on one subscription
    HotSpot,
    /// Documents with a long history
    History,
    /// Other batch sizes
    Batches,
    /// Memory with many waiting messages
    Backlog,
}

/// Common to all measurements.
struct Bench {
    sink: Sink,
    logs: PathBuf,
    n: Option<usize>,
    /// Another build to compare with.
    beside: Option<PathBuf>,
}

impl Bench {
    /// `usual`, but at most `--n`.
    fn count(&self, usual: usize) -> usize {
        self.n.map_or(usual, |n| usual.min(n))
    }

    /// [`Self::count`] for several counts, without repetitions.
    fn counts<const LENGTH: usize>(&self, usual: [usize; LENGTH]) -> Vec<usize> {
        let mut counts = usual.map(|usual| self.count(usual)).to_vec();
        counts.dedup();
        counts
    }
}

fn main() {
    let arguments = Arguments::parse();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    match arguments.baseline.baseline {
        Some(baseline) => runtime.block_on(baselines::run(baseline, &arguments.baseline)),
        None => runtime.block_on(measure(arguments)),
    }
}

async fn measure(arguments: Arguments) {
    progress::elapsed();
    std::fs::create_dir_all(&arguments.logs).unwrap();
    let n = arguments.n.map(|n| usize::try_from(n).unwrap());
    let beside =
        arguments.beside.map(|path| path.canonicalize().unwrap_or_else(|error| panic!("{}: {error}", path.display())));
    let bench = Bench { sink: Sink::start(), logs: arguments.logs, n, beside };
    let is_wanted = |part: Part| match arguments.parts.as_slice() {
        [] => bench.beside.is_none() || matches!(part, Part::Throughput | Part::Sweep),
        parts => parts.contains(&part),
    };

    table::line(&machine());
    table::line(&servers().await);
    for part in Part::value_variants().iter().copied().filter(|part| is_wanted(*part)) {
        match part {
            Part::Throughput => match &bench.beside {
                Some(other) => end_to_end::beside(&bench, other).await,
                None => end_to_end::throughput(&bench).await,
            },
            Part::Latency => latency::measure(&bench).await,
            Part::Midnight => calendar::midnight(&bench).await,
            Part::Cards => calendar::cards(&bench).await,
            Part::Sweep => sweep::measure(&bench).await,
            Part::Scale => end_to_end::scale(&bench).await,
            Part::HotSpot => end_to_end::hot_spot(&bench).await,
            Part::History => end_to_end::history(&bench).await,
            Part::Batches => end_to_end::batches(&bench).await,
            Part::Backlog => end_to_end::backlog(&bench).await,
        }
    }
    say!("done");
}

/// The machine, and how the program was built.
fn machine() -> String {
    let processors = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model =
        processors.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": ")).map(|(_, model)| model);
    let cores = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
    let build =
        if cfg!(debug_assertions) { "a DEBUG build: figures are not representative" } else { "a release build" };
    format!("{cores} cores, {}; offramp {}, {build}", model.unwrap_or("unknown processor"), env!("CARGO_PKG_VERSION"))
}

/// The servers' versions.
async fn servers() -> String {
    let client = mongodb::Client::with_uri_str(setting("OFFRAMP_MONGODB_URL", "mongodb://localhost:27017/offramp"));
    let build = client.await.expect("OFFRAMP_MONGODB_URL").database("admin").run_command(doc! { "buildInfo": 1 }).await;
    let build = build.expect("MongoDB is unavailable; `make bench` starts it");
    let broker = broker_version().await;
    format!(
        "MongoDB {}, RabbitMQ {} and a mail sink, all on this machine",
        build.get_str("version").unwrap_or("?"),
        broker.as_deref().unwrap_or("?")
    )
}

/// The broker's version, from the server properties of `connection.start`: a name, `S` for text, a length, the text.
async fn broker_version() -> Option<String> {
    let url = url::Url::parse(&amqp_url()).unwrap();
    let stream = TcpStream::connect((url.host_str()?, url.port().unwrap_or(5672))).await;
    let mut stream = stream.expect("RabbitMQ is unavailable; `make bench` starts it");
    stream.write_all(b"AMQP\0\0\x09\x01").await.ok()?;
    let mut start = Vec::new();
    while stream.read_buf(&mut start).await.ok()? > 0 {
        const NAME: &[u8] = b"\x07versionS";
        let Some(at) = start.windows(NAME.len()).position(|bytes| bytes == NAME) else { continue };
        let Some((length, text)) = start[at + NAME.len()..].split_first_chunk::<4>() else { continue };
        if let Some(text) = text.get(..u32::from_be_bytes(*length) as usize) {
            return Some(String::from_utf8_lossy(text).into_owned());
        }
    }
    None
}
