//! The metrics of the process itself, with the names that Prometheus's own libraries use.
//!
//! Written by hand because a counter of the crate `metrics` is an integer, and a second of CPU time is too coarse. What the
//! system does not report is left out.

use std::fmt::Write as _;
use std::fs;
use std::sync::LazyLock;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::param::page_size;
use rustix::process::{Resource, getrlimit};
use rustix::time::{ClockId, clock_gettime};

use super::series::Kind;

/// A metric of the process.
#[derive(Debug)]
pub struct ProcessMetric {
    pub name: &'static str,
    pub kind: Kind,
    pub help: &'static str,
    read: fn() -> Option<f64>,
}

/// All of them.
pub const METRICS: &[ProcessMetric] = &[
    ProcessMetric {
        name: "process_cpu_seconds_total",
        kind: Kind::Counter,
        help: "CPU time used, in seconds.",
        read: cpu_seconds,
    },
    ProcessMetric {
        name: "process_resident_memory_bytes",
        kind: Kind::Gauge,
        help: "Memory in use, in bytes.",
        read: || memory_bytes(1),
    },
    ProcessMetric {
        name: "process_virtual_memory_bytes",
        kind: Kind::Gauge,
        help: "Address space in use, in bytes.",
        read: || memory_bytes(0),
    },
    ProcessMetric {
        name: "process_open_fds",
        kind: Kind::Gauge,
        help: "Open files and connections.",
        read: open_files,
    },
    ProcessMetric {
        name: "process_max_fds",
        kind: Kind::Gauge,
        help: "The most files and connections that the process may open.",
        read: open_files_max,
    },
    ProcessMetric { name: "process_threads", kind: Kind::Gauge, help: "Threads.", read: threads },
    ProcessMetric {
        name: "process_start_time_seconds",
        kind: Kind::Gauge,
        help: "When the process started, in seconds since 1970.",
        read: || Some(*STARTED_AT_SECONDS),
    },
];

static STARTED_AT_SECONDS: LazyLock<f64> =
    LazyLock::new(|| SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64());

/// Remembers that the process starts now.
pub fn started() {
    LazyLock::force(&STARTED_AT_SECONDS);
}

/// Appends all of them to a page for Prometheus.
pub fn render(page: &mut String) {
    for ProcessMetric { name, kind, help, read } in METRICS {
        if let Some(value) = read() {
            let kind: &str = kind.into();
            // Writing to a string does not fail.
            let _ = writeln!(page, "# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value}\n");
        }
    }
}

#[allow(clippy::unnecessary_wraps, reason = "the others may be unknown")]
fn cpu_seconds() -> Option<f64> {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    let seconds = Duration::new(u64::try_from(time.tv_sec).ok()?, u32::try_from(time.tv_nsec).ok()?);
    Some(seconds.as_secs_f64())
}

/// A field of `/proc/self/statm`, which counts pages.
fn memory_bytes(field: usize) -> Option<f64> {
    let pages: u64 = fs::read_to_string("/proc/self/statm").ok()?.split_whitespace().nth(field)?.parse().ok()?;
    Some(float(pages.checked_mul(u64::try_from(page_size()).ok()?)?))
}

fn open_files() -> Option<f64> {
    // One of them is this folder.
    u64::try_from(fs::read_dir("/proc/self/fd").ok()?.count().saturating_sub(1)).ok().map(float)
}

fn open_files_max() -> Option<f64> {
    getrlimit(Resource::Nofile).current.map(float)
}

fn threads() -> Option<f64> {
    u64::try_from(fs::read_dir("/proc/self/task").ok()?.count()).ok().map(float)
}

#[allow(clippy::cast_precision_loss, reason = "exact below 2^53")]
fn float(number: u64) -> f64 {
    number as f64
}

#[cfg(test)]
#[cfg(target_os = "linux")]
mod tests {
    use super::*;

    #[test]
    fn every_metric_of_the_process_is_rendered() {
        started();
        let mut page = String::new();
        render(&mut page);
        for ProcessMetric { name, .. } in METRICS {
            let value = page.lines().find_map(|line| line.strip_prefix(&format!("{name} "))).expect(name);
            assert!(value.parse::<f64>().expect(value) > 0.0, "{name} {value}");
        }
    }
}
