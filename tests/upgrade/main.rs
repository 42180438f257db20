//! `make upgrade-trial`: do workers of two releases work together?
//!
//! Four workers of the previous release are replaced one by one by this one while commands arrive, then back again; then two of each run
//! side by side. No worker is killed, so every command must take effect once, and every email and event must arrive once.
//!
//! With `--record` it makes `tests/fixtures/previous-release` anew instead.
//!
//! Reading order: [`load`] (the commands and their expected effects), [`fleet`] (the workers), [`verdict`] (the comparison).
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that cannot go on has failed")]

use std::path::{Path, PathBuf};
use std::process::{ExitCode, Stdio};
use std::sync::Arc;
use std::time::Duration;

use clap::Parser;
use tokio::time::sleep;

mod fleet;
mod load;
mod verdict;

use fleet::{Fleet, Release};
use load::Load;
use offramp_testkit::recording::Recording;
use offramp_testkit::test_bed::TestBed;
use offramp_testkit::worker_process::{build, program};
use offramp_testkit::{progress, run_program, say};
use verdict::Verdict;

/// The number of workers.
const WORKERS: usize = 4;

/// Do workers of two releases work together? Run it with `make upgrade-trial`
#[derive(Parser)]
struct Arguments {
    /// The program of the previous release; without it, nothing is run
    #[arg(long, value_name = "PATH")]
    previous: Option<PathBuf>,
    /// How long each phase runs before and after the workers are replaced
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=3600))]
    seconds: u64,
    /// Commands per second
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    rate: u32,
    /// Record what the previous release leaves in this folder instead
    #[arg(long, value_name = "FOLDER")]
    record: Option<PathBuf>,
    /// The directory for the workers' logs
    #[arg(long, default_value = "target/upgrade")]
    logs: PathBuf,
    /// Arguments of `cargo test`, ignored
    #[arg(hide = true, allow_hyphen_values = true, trailing_var_arg = true)]
    _ignored: Vec<String>,
}

fn main() -> ExitCode {
    run_program(run())
}

async fn run() -> ExitCode {
    let arguments = Arguments::parse();
    let Some(previous) = arguments.previous else {
        println!(
            "upgrade: not run, because it needs the previous release; run `make upgrade-trial PREVIOUS=path/to/offramp`"
        );
        return ExitCode::SUCCESS;
    };
    progress::elapsed();
    if let Some(folder) = arguments.record {
        let bed = TestBed::new("recording").await;
        Recording::of(&previous, &bed).await.write(&folder);
        bed.remove().await;
        say!("recorded what {} leaves in {}", previous.display(), folder.display());
        return ExitCode::SUCCESS;
    }
    std::fs::create_dir_all(&arguments.logs).unwrap();
    let verdict = trial(previous, arguments.seconds, arguments.rate, arguments.logs).await;
    println!("{verdict}");
    if verdict.is_good() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

async fn trial(previous: PathBuf, seconds: u64, rate: u32, logs: PathBuf) -> Verdict {
    let hold = Duration::from_secs(seconds);
    let bed = Arc::new(TestBed::new("upgrade").await);
    let events = bed.watch_events().await;
    let mut fleet = Fleet::start(Arc::clone(&bed), previous, logs, WORKERS).await;
    let load = Load::start(Arc::clone(&bed), rate).await;
    say!("{WORKERS} workers of the previous release are ready; {rate} commands per second");
    sleep(hold).await;

    // As docs/operate/upgrade.md says.
    succeeds(&bed, &fleet.mail_url(), &["check"]);
    succeeds(&bed, &fleet.mail_url(), &["init"]);
    say!("upgrade, after {} commands", load.published());
    for number in 0..WORKERS {
        fleet.replace(number, Release::This).await;
        sleep(hold / 10).await;
    }
    say!("all workers are of this release, after {} commands", load.published());
    sleep(hold).await;

    say!("downgrade, after {} commands", load.published());
    for number in 0..WORKERS {
        fleet.replace(number, Release::Previous).await;
        sleep(hold / 10).await;
    }
    say!("all workers are of the previous release, after {} commands", load.published());
    sleep(hold).await;

    for number in 0..WORKERS / 2 {
        fleet.replace(number, Release::This).await;
    }
    say!("two workers of each release, after {} commands", load.published());
    sleep(hold * 2).await;

    let sent = load.stop().await;
    say!("{} commands published; waiting until nothing waits", sent.len());
    verdict::quiet(&bed).await;
    fleet.stop().await;
    let verdict = Verdict::of(&bed, &events, &fleet, &sent).await;
    drop(fleet);
    if verdict.is_good()
        && let Ok(bed) = Arc::try_unwrap(bed).map_err(drop)
    {
        bed.remove().await;
    }
    verdict
}

/// Runs a subcommand of this release's program.
#[track_caller]
fn succeeds(bed: &TestBed, mail_url: &str, arguments: &[&str]) {
    let path: &Path = program();
    let mut command = build(path, bed);
    let ran = command.env("OFFRAMP_SMTP_URL", mail_url).args(arguments).stdin(Stdio::null()).output().unwrap();
    assert!(ran.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&ran.stderr));
}
