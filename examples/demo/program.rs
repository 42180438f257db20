//! The program under demonstration, started as a person would start it.

use std::env;
use std::fs::{self, File};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};

use anyhow::{Context, Result, bail, ensure};

use crate::eventually;
use crate::http::get;
use crate::servers::{Addresses, NAME};
use offramp_testkit::process::{self, Signal};

/// The address that every mail of the demo comes from, and by which the demo knows its own.
pub const MAIL_FROM: &str = "no-reply@offramp-demo.example";

/// `offramp`, with the settings of the demo and nothing else.
pub struct Program {
    pub binary: PathBuf,
    settings: Vec<(&'static str, String)>,
    /// Where the demo keeps its files.
    pub folder: PathBuf,
}

impl Program {
    /// Finds the binary beside this example, where cargo puts it.
    pub fn new(addresses: &Addresses) -> Result<Self> {
        let example = env::current_exe()?;
        let [build, target] = [2, 3].map(|up| example.ancestors().nth(up).unwrap_or(Path::new(".")).to_owned());
        let (binary, folder) = (build.join("offramp"), target.join("demo"));
        ensure!(binary.exists(), "{} is missing; `make demo` builds it", binary.display());
        fs::create_dir_all(&folder).with_context(|| format!("cannot make the folder {}", folder.display()))?;
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
        let mut command = Command::new(&self.binary);
        for (name, _) in env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("OFFRAMP_")) {
            command.env_remove(name);
        }
        command.args(arguments).envs(self.settings.iter().cloned()).stdin(Stdio::null());
        command
    }

    /// Runs a command of the program to its end and shows what it says.
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
        // A port that is free now; should somebody take it first, the worker says so.
        let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string();
        let log = self.folder.join("worker.log");
        let mut command = self.command(&["run"]);
        command
            .env("OFFRAMP_HTTP_ADDR", &address)
            .stdout(Stdio::null())
            .stderr(File::create(&log).with_context(|| format!("cannot write {}", log.display()))?);
        let child = process::run(&mut command, Command::spawn)?;
        let mut worker = Worker { child, address, log };
        eventually("the worker is not ready", async || {
            worker.is_alive()?;
            Ok(get(&worker.address, "/readyz").await.ok())
        })
        .await?;
        Ok(worker)
    }
}

/// A worker process; killed when dropped.
pub struct Worker {
    child: Child,
    address: String,
    pub log: PathBuf,
}

impl Worker {
    /// An error with the end of its log if it has ended.
    pub fn is_alive(&mut self) -> Result<()> {
        if let Some(status) = self.child.try_wait()? {
            let log = fs::read_to_string(&self.log).unwrap_or_default();
            let lines: Vec<&str> = log.lines().collect();
            let end = lines[lines.len().saturating_sub(10)..].join("\n  ");
            bail!("the worker has ended by itself ({status}); the end of {}:\n  {end}", self.log.display());
        }
        Ok(())
    }

    /// How many commands it is done with. Those that wait in a retry queue are not.
    pub async fn settled(&self) -> Result<usize> {
        let metrics = get(&self.address, "/metrics").await?;
        let counts = metrics
            .lines()
            .filter(|line| line.starts_with("offramp_commands_total{") && !line.contains("outcome=\"retry\""))
            .filter_map(|line| line.rsplit(' ').next()?.parse::<usize>().ok());
        Ok(counts.sum())
    }

    /// Asks it to stop (SIGTERM), and waits until it has.
    pub async fn stop(mut self) -> Result<ExitStatus> {
        process::signal(&self.child, Signal::TERM).context("the worker cannot be asked to stop")?;
        eventually("the worker does not stop", async || Ok(self.child.try_wait()?)).await
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // It may have ended already.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
