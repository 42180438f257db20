//! A server as a process that can be killed, frozen, and started again.

use std::fs::File;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::time::{Instant, sleep};

use offramp_testkit::process;

/// How long a server may take to stop in order before it is killed.
const STOP_PATIENCE: Duration = Duration::from_secs(30);

/// Killed when dropped.
pub struct Server {
    pub name: String,
    log: PathBuf,
    child: Option<Child>,
}

impl Server {
    /// A server that is not started yet. Forgets what one of the same name has logged in an earlier run.
    pub fn new(name: String, logs: &std::path::Path) -> Self {
        let log = logs.join(format!("{name}.log"));
        // An error means that there is none.
        let _ = std::fs::remove_file(&log);
        Self { log, name, child: None }
    }

    /// Starts the command as a process group of its own. Returns the number of the process.
    pub fn start(&mut self, mut command: Command) -> u32 {
        use std::os::unix::process::CommandExt;
        assert!(self.child.is_none(), "{} is running", self.name);
        let log = File::options().create(true).append(true).open(&self.log).unwrap();
        command.process_group(0).stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        let child = process::run(&mut command, Command::spawn).unwrap();
        let id = child.id();
        self.child = Some(child);
        id
    }

    pub fn is_running(&self) -> bool {
        self.child.is_some()
    }

    /// How it ended, if it ended by itself.
    pub fn ended(&mut self) -> Option<String> {
        let status = self.child.as_mut()?.try_wait().unwrap()?;
        self.child = None;
        Some(format!("{} ended: {status}; see {}", self.name, self.log.display()))
    }

    pub fn freeze(&self) {
        self.signal(Signal::STOP);
    }

    pub fn thaw(&self) {
        self.signal(Signal::CONT);
    }

    pub fn kill(&mut self) {
        self.signal(Signal::KILL);
        if let Some(mut child) = self.child.take() {
            child.wait().unwrap();
        }
    }

    /// Stops it in order.
    pub async fn stop(&mut self) {
        self.signal(Signal::TERM);
        let deadline = Instant::now() + STOP_PATIENCE;
        while let Some(child) = &mut self.child {
            if child.try_wait().unwrap().is_some() {
                self.child = None;
            } else if Instant::now() > deadline {
                self.kill();
            } else {
                sleep(Duration::from_millis(50)).await;
            }
        }
    }

    fn signal(&self, signal: Signal) {
        if let Some(child) = &self.child {
            // An error means that it has just ended.
            let _ = kill_process_group(Pid::from_child(child), signal);
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}
