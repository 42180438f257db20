//! Starting and signalling child processes, without the program `kill`, which a minimal system lacks, and ports for them.

use std::collections::BTreeSet;
use std::io;
use std::net::TcpListener;
use std::process::{Child, Command};
use std::sync::{Mutex, PoisonError};

use rustix::process::{Pid, kill_process};

pub use rustix::process::Signal;

/// Runs a program with [`Command::spawn`], [`Command::output`] or [`Command::status`]. Errors name the program.
pub fn run<T>(command: &mut Command, how: impl FnOnce(&mut Command) -> io::Result<T>) -> io::Result<T> {
    how(command).map_err(|error| {
        let program = command.get_program().display();
        io::Error::new(error.kind(), format!("cannot run the program {program}: {error}"))
    })
}

/// Sends a signal to a child that has not been waited for.
pub fn signal(child: &Child, signal: Signal) -> io::Result<()> {
    Ok(kill_process(Pid::from_child(child), signal)?)
}

/// A port that is free now, below the range of outgoing connections and above the usual ports of RabbitMQ and MongoDB, so that nothing takes
/// it before its server listens or while that restarts. A process is not given the same port again soon.
pub fn free_port() -> u16 {
    static GIVEN: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());
    let mut given = GIVEN.lock().unwrap_or_else(PoisonError::into_inner);
    if given.len() == 1_000 {
        given.clear();
    }
    loop {
        let port = fastrand::u16(28_000..32_000);
        if TcpListener::bind(("127.0.0.1", port)).is_ok() && given.insert(port) {
            return port;
        }
    }
}

#[test]
fn a_missing_program_is_named() {
    let missing = run(&mut Command::new("no-such-program"), Command::status).unwrap_err();
    assert!(missing.to_string().contains("no-such-program"), "{missing}");
}
