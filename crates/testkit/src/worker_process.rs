//! Worker processes: the program as operators run it.

use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, ExitStatus, Stdio};
use std::sync::LazyLock;

use offramp_domain::command_ref::CommandType;

use crate::eventually;
use crate::http::{self, Response};
use crate::process::{self, Signal, free_port};
use crate::test_bed::TestBed;

/// The program under test. Cargo builds it one folder above the tests and examples.
pub fn program() -> &'static Path {
    static PROGRAM: LazyLock<PathBuf> = LazyLock::new(|| {
        let test = std::env::current_exe().unwrap();
        let program = test.ancestors().nth(2).unwrap().join("offramp");
        assert!(
            program.exists(),
            "{} is missing; build it with the same profile: cargo build --bin offramp",
            program.display()
        );
        program
    });
    &PROGRAM
}

/// The program without any settings.
pub fn bare() -> Command {
    bare_build(program())
}

fn bare_build(program: &Path) -> Command {
    let mut command = Command::new(program);
    let is_setting = |name: &str| name.starts_with("OFFRAMP_") || name.starts_with("OTEL_");
    for (name, _) in std::env::vars_os().filter(|(name, _)| is_setting(&name.to_string_lossy())) {
        command.env_remove(name);
    }
    command
}

/// The program with only the settings of a test bed.
pub fn offramp(bed: &TestBed) -> Command {
    build(program(), bed)
}

/// [`offramp()`] for another build of the program.
pub fn build(program: &Path, bed: &TestBed) -> Command {
    let mut command = bare_build(program);
    command
        .env("OFFRAMP_AMQP_URL", &bed.amqp_url)
        .env("OFFRAMP_MONGODB_URL", &bed.mongodb_url)
        .env("OFFRAMP_PREFIX", &bed.prefix)
        .env("OFFRAMP_MAIL_FROM", "no-reply@offramp.example")
        .env("OFFRAMP_SWEEP_SECONDS", "1");
    command
}

/// A worker process. Killed when dropped.
pub struct WorkerProcess {
    child: Child,
    port: u16,
}

impl WorkerProcess {
    /// Starts a worker that sends its emails to `smtp_url`, and waits until it is ready.
    pub async fn start(bed: &TestBed, smtp_url: &str) -> Self {
        Self::start_with(bed, smtp_url, &[]).await
    }

    /// [`Self::start`] with further settings.
    pub async fn start_with(bed: &TestBed, smtp_url: &str, settings: &[(&str, &str)]) -> Self {
        let log = if std::env::var_os("TEST_LOG").is_some() { Stdio::inherit() } else { Stdio::null() };
        Self::spawn(bed, smtp_url, settings, log).ready().await
    }

    /// Waits until `/readyz` responds with 200.
    pub async fn ready(mut self) -> Self {
        eventually("a ready worker", || {
            let ended = self.ended();
            assert!(ended.is_none(), "the worker ended: {ended:?}");
            is_ready(self.port)
        })
        .await;
        self
    }

    /// Starts a worker without waiting until it is ready, for instance because servers are unavailable.
    pub fn spawn(bed: &TestBed, smtp_url: &str, settings: &[(&str, &str)], log: Stdio) -> Self {
        Self::of(offramp(bed).env("OFFRAMP_SMTP_URL", smtp_url).envs(settings.iter().copied()), log)
    }

    /// Starts `program` with its settings as a worker, with health and metrics on a free port.
    pub fn of(program: &mut Command, log: Stdio) -> Self {
        Self::at_port(program, free_port(), log)
    }

    /// [`Self::of`] on this port, for instance that of a worker that has ended.
    pub fn at_port(program: &mut Command, port: u16, log: Stdio) -> Self {
        program
            .arg("run")
            .env("OFFRAMP_HTTP_ADDR", format!("127.0.0.1:{port}"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        Self { child: process::run(program, Command::spawn).unwrap(), port }
    }

    /// The port for health and metrics.
    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Its log. Panics if standard error is not piped.
    pub fn take_log(&mut self) -> ChildStderr {
        self.child.stderr.take().unwrap()
    }

    /// Its exit status, once it has exited.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().unwrap()
    }

    /// The number of processed messages, without those that went to a retry queue.
    pub async fn settled(&self) -> u64 {
        let metrics = metrics_of(self.port).await.unwrap_or_default();
        metrics
            .lines()
            .filter(|line| line.starts_with("offramp_commands_total{") && !line.contains("outcome=\"retry\""))
            .map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap())
            .sum()
    }

    /// The number of broker connections opened so far for this lane.
    pub async fn connections(&self, lane: CommandType) -> u64 {
        let metrics = metrics_of(self.port).await.unwrap_or_default();
        let is_this = |line: &&str| {
            line.starts_with("offramp_broker_connections_total{") && line.contains(&format!("\"{lane}\"}}"))
        };
        metrics.lines().filter(is_this).map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap()).sum()
    }

    /// The response of `/readyz`. `None` while it does not respond.
    pub async fn readyz(&self) -> Option<Response> {
        readyz_of(self.port).await
    }

    /// Peak resident memory, in bytes.
    #[cfg(target_os = "linux")]
    pub fn peak_memory(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        line.trim().strip_suffix(" kB").unwrap().parse::<u64>().unwrap() * 1024
    }

    /// Sends SIGKILL, and waits for the exit.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Sends SIGTERM.
    pub fn terminate(&self) {
        self.signal(Signal::TERM);
    }

    pub fn signal(&self, signal: Signal) {
        process::signal(&self.child, signal).unwrap();
    }

    /// Sends SIGTERM, and waits for the exit.
    pub async fn stop(mut self) -> ExitStatus {
        self.terminate();
        eventually("the end of the worker", || {
            let status = self.child.try_wait().unwrap();
            async move { status }
        })
        .await
    }
}

impl Drop for WorkerProcess {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// What the worker at this port responds to `/metrics`. `None` while it does not respond.
pub async fn metrics_of(port: u16) -> Option<String> {
    Some(http::get(&format!("127.0.0.1:{port}"), "/metrics").await.ok()?.body)
}

/// Whether a worker is ready.
///
/// # Errors
/// What `/readyz` says instead.
pub async fn is_ready(port: u16) -> Result<(), String> {
    let answer = readyz_of(port).await.ok_or("no answer")?;
    if answer.status == 200 { Ok(()) } else { Err(answer.body) }
}

/// What the worker at this port responds to `/readyz`. `None` while it does not respond.
pub async fn readyz_of(port: u16) -> Option<Response> {
    http::get(&format!("127.0.0.1:{port}"), "/readyz").await.ok()
}
