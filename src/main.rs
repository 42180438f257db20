//! The program: reads the command line and the environment, and does what they say.
//!
//! Exit codes: 0 done, 1 failed, 2 wrong usage or configuration.

mod cli;

use std::io;
use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches};
use offramp::config::from_environment;

use cli::{Cli, WrongConfiguration, printable};

/// A fifth less time on the processor than with the system's allocator (`docs/performance.md`).
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("offramp: no threads to work with: {error}");
            return ExitCode::FAILURE;
        }
    };
    let code = runtime.block_on(run());
    // Whatever is still under way in the background ends with the process. If it ended with the runtime, the driver of
    // MongoDB would take it amiss, and print a backtrace.
    std::mem::forget(runtime);
    code
}

async fn run() -> ExitCode {
    let command = from_environment(Cli::command(), &|name| std::env::var_os(name));
    let cli = match command.try_get_matches().and_then(|matches| Cli::from_arg_matches(&matches)) {
        Ok(cli) => cli,
        // Help and version are "errors" too; clap knows their streams and exit codes.
        Err(error) => error.exit(),
    };
    match cli.run().await {
        Ok(()) => ExitCode::SUCCESS,
        // The reader of our output has seen enough: `offramp show … | head`.
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("offramp: {}", printable(&format!("{error:#}")));
            ExitCode::from(if error.is::<WrongConfiguration>() { 2 } else { 1 })
        }
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error
        .chain()
        .any(|cause| cause.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe))
}
