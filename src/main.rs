//! The program: parses the command line and the environment, runs the subcommand, and sets the exit code.
//!
//! Exit codes: 0 success, 1 failure, 2 invalid usage or configuration.

mod cli;
#[cfg(test)]
mod generated_page;

use std::io;
use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches};
use offramp::advice;
use offramp::config::from_environment;

use cli::{Cli, WrongConfiguration, printable};

// Needs a fifth less CPU time than the system's allocator (docs/performance.md).
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("offramp: cannot start the async runtime: {error}");
            return ExitCode::FAILURE;
        }
    };
    let code = runtime.block_on(run());
    // Background tasks end with the process. If the runtime were dropped first, the MongoDB driver would print a backtrace.
    std::mem::forget(runtime);
    code
}

async fn run() -> ExitCode {
    let command = from_environment(Cli::command(), &|name| std::env::var_os(name));
    let cli = match command.try_get_matches().and_then(|matches| Cli::from_arg_matches(&matches)) {
        Ok(cli) => cli,
        // Includes --help and --version: clap chooses the stream and the exit code.
        Err(error) => error.exit(),
    };
    match cli.run().await {
        Ok(()) => ExitCode::SUCCESS,
        // The reader closed the pipe, as in `offramp show … | head`.
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            let text = format!("{error:#}");
            let text = advice::append(&text, advice_for(&error).or_else(|| advice::tls(&text)));
            eprintln!("offramp: {}", printable(&text));
            ExitCode::from(if error.is::<WrongConfiguration>() { 2 } else { 1 })
        }
    }
}

/// What the operator can do about it.
fn advice_for(error: &anyhow::Error) -> Option<&'static str> {
    error.chain().find_map(|cause| {
        let about_topology = cause.downcast_ref().and_then(advice::topology_error);
        about_topology.or_else(|| cause.downcast_ref().and_then(advice::dead_letters_error))
    })
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error
        .chain()
        .any(|cause| cause.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe))
}
