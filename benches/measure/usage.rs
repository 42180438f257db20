//! CPU time and memory of processes, from `/proc`, so on Linux only.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

/// The unit of CPU time in `/proc`, always a hundredth of a second for user space.
const TICK: Duration = Duration::from_millis(10);

/// The resource usage of a process.
#[derive(Clone, Copy, Debug, Default)]
pub struct Usage {
    /// CPU time, user and system.
    pub cpu: Duration,
    /// Resident memory, in MB.
    pub resident: f64,
    /// Peak resident memory, in MB.
    pub peak: f64,
}

impl Usage {
    /// The usage of a running process. Zero if it is not available.
    pub fn of(process: u32) -> Self {
        let stat = fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
        // The fields after the name, which may contain anything but ends with the last parenthesis. The first is the state.
        let fields: Vec<&str> = stat.rsplit(") ").next().unwrap_or_default().split(' ').collect();
        let ticks = |index: usize| fields.get(index).and_then(|field| field.parse::<u32>().ok()).unwrap_or(0);
        let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
        let megabytes = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            let kilobytes = line.and_then(|line| line.split_whitespace().nth(1)?.parse::<f64>().ok());
            kilobytes.unwrap_or(0.0) / 1024.0
        };
        Self { cpu: TICK * (ticks(11) + ticks(12)), resident: megabytes("VmRSS"), peak: megabytes("VmHWM") }
    }
}

/// A moment, with the usage of a process and of the servers.
#[derive(Clone, Copy, Debug)]
pub struct Moment {
    pub at: Instant,
    pub usage: Usage,
    /// CPU time of `MongoDB`, RabbitMQ and the mail server, which is this process. `None` for a server that is not a local process.
    pub servers: [Option<Duration>; 3],
}

impl Moment {
    /// Now.
    pub fn of(process: u32) -> Self {
        let servers = ["mongodb", "rabbitmq"].map(|name| server(name).map(|process| Usage::of(process).cpu));
        let mail_server = Some(Usage::of(std::process::id()).cpu);
        Self { at: Instant::now(), usage: Usage::of(process), servers: [servers[0], servers[1], mail_server] }
    }

    /// CPU time from this moment to a later one.
    pub fn cpu_until(&self, later: &Self) -> Duration {
        later.usage.cpu.saturating_sub(self.usage.cpu)
    }

    /// CPU time of each server from this moment to a later one.
    pub fn servers_until(&self, later: &Self) -> [Option<Duration>; 3] {
        std::array::from_fn(|index| Some(later.servers[index]?.saturating_sub(self.servers[index]?)))
    }
}

/// The process id of a server that `scripts/services` has started.
fn server(name: &str) -> Option<u32> {
    let directory = std::env::var_os("OFFRAMP_SERVICES_DIR")?;
    let process = fs::read_to_string(Path::new(&directory).join("run").join(name).with_extension("pid")).ok()?;
    process.split_whitespace().next()?.parse().ok()
}

/// Recognizes an awaited line.
pub type Line = Box<dyn Fn(&str) -> bool + Send>;

/// Copies the output of a process to a file, and reports the moments of the awaited lines.
pub fn watch<const LINES: usize>(
    says: impl Read + Send + 'static,
    process: u32,
    log: &Path,
    lines: [Line; LINES],
) -> [oneshot::Receiver<Moment>; LINES] {
    let mut log = File::options().create(true).append(true).open(log).unwrap();
    let (mut waiting, mut told) = (Vec::new(), Vec::new());
    for is_it in lines {
        let (tell, hear) = oneshot::channel();
        waiting.push((is_it, Some(tell)));
        told.push(hear);
    }
    std::thread::spawn(move || {
        for line in BufReader::new(says).lines().map_while(Result::ok) {
            for (is_it, tell) in &mut waiting {
                if let Some(tell) = tell.take_if(|_| is_it(&line)) {
                    // The receiver is gone if the measurement has failed.
                    let _ = tell.send(Moment::of(process));
                }
            }
            writeln!(log, "{line}").unwrap();
        }
    });
    told.try_into().unwrap()
}
