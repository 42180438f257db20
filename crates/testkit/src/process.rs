//! Child processes: starting and signalling them. No other program is needed to do so; a bare system has no `kill`.

use std::io;
use std::process::{Child, Command};

use rustix::process::{Pid, kill_process};

pub use rustix::process::Signal;

/// Runs a program with [`Command::spawn`], [`Command::output`] or [`Command::status`]. The error names the program.
pub fn run<T>(command: &mut Command, how: impl FnOnce(&mut Command) -> io::Result<T>) -> io::Result<T> {
    how(command).map_err(|error| {
        let program = command.get_program().display();
        io::Error::new(error.kind(), format!("cannot run the program {program}: {error}"))
    })
}

/// Sends a signal to a process that was not waited for yet.
pub fn signal(child: &Child, signal: Signal) -> io::Result<()> {
    Ok(kill_process(Pid::from_child(child), signal)?)
}

#[test]
fn a_missing_program_is_named() {
    let missing = run(&mut Command::new("no-such-program"), Command::status).unwrap_err();
    assert!(missing.to_string().contains("no-such-program"), "{missing}");
}
