//! The program, started as a person would start it.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};

use anyhow::{Context, Result, bail, ensure};
use offramp_testkit::process;
use offramp_testkit::worker_process::{WorkerProcess, bare, program};

use crate::eventually;
use crate::servers::{Addresses, NAME};

/// The sender of the demo's emails, which identifies them.
pub const MAIL_FROM: &str = "no-reply@offramp-demo.example";

/// `offramp` with only the settings of the demo.
pub struct Program {
    pub binary: PathBuf,
    settings: Vec<(&'static str, String)>,
    /// The folder for the demo's files.
    pub folder: PathBuf,
}

impl Program {
    /// Finds the binary that cargo built with this example.
    pub fn new(addresses: &Addresses) -> Result<Self> {
        let binary = program().to_owned();
        let folder = binary.ancestors().nth(2).unwrap_or(Path::new(".")).join("demo");
        fs::create_dir_all(&folder).with_context(|| format!("cannot create the folder {}", folder.display()))?;
        let settings = vec![
            ("OFFRAMP_AMQP_URL", addresses.amqp.clone()),
            ("OFFRAMP_MONGODB_URL", addresses.mongodb.clone()),
            ("OFFRAMP_SMTP_URL", addresses.smtp.clone()),
            ("OFFRAMP_PREFIX", NAME.to_owned()),
            ("OFFRAMP_MAIL_FROM", MAIL_FROM.to_owned()),
            ("OFFRAMP_SWEEP_SECONDS", "1".to_owned()),
        ];
        Ok(Self { binary, settings, folder })
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = bare();
        command.args(arguments).envs(self.settings.iter().cloned()).stdin(Stdio::null());
        command
    }

    /// Runs a subcommand to its end and prints its output.
    pub fn run(&self, arguments: &[&str]) -> Result<()> {
        let called = format!("offramp {}", arguments.join(" "));
        eprintln!("… {called}");
        let output = process::run(self.command(arguments).current_dir(&self.folder), Command::output)?;
        for line in String::from_utf8_lossy(&output.stdout).lines() {
            eprintln!("  {line}");
        }
        let complaint = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{called} failed ({}): {}", output.status, complaint.trim());
        Ok(())
    }

    /// Starts a worker and waits until it is ready.
    pub async fn start_worker(&self) -> Result<Worker> {
        eprintln!("… offramp run");
        let log = self.folder.join("worker.log");
        let file = File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
        let mut worker = Worker { process: WorkerProcess::of(&mut self.command(&[]), file.into()), log };
        eventually("the worker is not ready", async || {
            worker.is_alive()?;
            Ok(worker.process.readyz().await.filter(|response| response.status == 200))
        })
        .await?;
        Ok(worker)
    }
}

/// The worker of the demo.
pub struct Worker {
    process: WorkerProcess,
    pub log: PathBuf,
}

impl Worker {
    /// Returns an error with the end of its log if it has exited.
    pub fn is_alive(&mut self) -> Result<()> {
        if let Some(status) = self.process.ended() {
            let log = fs::read_to_string(&self.log).unwrap_or_default();
            let lines: Vec<&str> = log.lines().collect();
            let end = lines[lines.len().saturating_sub(10)..].join("\n  ");
            bail!("the worker exited by itself ({status}); the end of {}:\n  {end}", self.log.display());
        }
        Ok(())
    }

    /// The number of processed commands, without those in retry queues.
    pub async fn settled(&self) -> u64 {
        self.process.settled().await
    }

    /// Stops it with SIGTERM, and waits for its exit.
    pub async fn stop(self) -> ExitStatus {
        self.process.stop().await
    }
}
