//! Starting and signalling child processes, without the program `kill`, which a minimal system lacks.

use std::io;
use std::process::{Child, Command};

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

#[test]
fn a_missing_program_is_named() {
    let missing = run(&mut Command::new("no-such-program"), Command::status).unwrap_err();
    assert!(missing.to_string().contains("no-such-program"), "{missing}");
}
