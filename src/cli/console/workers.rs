//! What workers say about themselves, at their HTTP addresses.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use tokio::net::lookup_host;
use tokio::time::timeout;

use crate::cli::worker_http::{Components, get};

/// How long workers may take to answer.
const ANSWER_MAX: Duration = Duration::from_secs(3);
/// The largest number of workers that are asked.
const WORKERS_MAX: usize = 100;

/// A worker.
#[derive(Clone, Debug)]
pub struct Worker {
    /// Where it was asked.
    pub address: String,
    pub state: State,
}

#[derive(Clone, Debug)]
pub enum State {
    /// It answered.
    Running {
        version: String,
        /// The parts that are not ready, and why. Empty: it is ready.
        not_ready: BTreeMap<String, String>,
    },
    /// It did not answer.
    Silent(String),
}

/// Per second, all workers together.
#[derive(Clone, Copy, Debug)]
pub struct Rates {
    pub commands: f64,
    pub emails: f64,
}

/// The workers to ask.
pub struct Workers {
    addresses: Vec<String>,
    /// The counters of each worker at the last time, and when that was.
    counters: BTreeMap<String, (Instant, Counters)>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Counters {
    commands: f64,
    sent_emails: f64,
}

impl Workers {
    pub fn new(addresses: Vec<String>) -> Self {
        Self { addresses, counters: BTreeMap::new() }
    }

    /// Asks all workers. The rates are known once a worker answers for the second time.
    pub async fn read(&mut self) -> (Vec<Worker>, Option<Rates>) {
        let found = join_all(self.addresses.iter().map(|name| resolve(name))).await;
        let mut workers: Vec<Worker> = Vec::new();
        let mut asking = Vec::new();
        for (name, found) in self.addresses.iter().zip(found) {
            match found {
                Ok(addresses) => asking.extend(addresses.into_iter().map(ask)),
                Err(error) => workers.push(Worker { address: name.clone(), state: State::Silent(error) }),
            }
        }
        asking.truncate(WORKERS_MAX);
        let mut rates = None::<Rates>;
        let mut counters = BTreeMap::new();
        for (worker, counted) in join_all(asking).await {
            if let Some(now) = counted {
                if let Some((at, before)) = self.counters.get(&worker.address) {
                    let seconds = at.elapsed().as_secs_f64();
                    // A restarted worker counts from 0 again.
                    let per_second = |now: f64, before: f64| (now - before).max(0.0) / seconds;
                    let all = rates.get_or_insert(Rates { commands: 0.0, emails: 0.0 });
                    all.commands += per_second(now.commands, before.commands);
                    all.emails += per_second(now.sent_emails, before.sent_emails);
                }
                counters.insert(worker.address.clone(), (Instant::now(), now));
            }
            workers.push(worker);
        }
        self.counters = counters;
        (workers, rates)
    }
}

async fn resolve(name: &str) -> Result<Vec<SocketAddr>, String> {
    let looking = async { lookup_host(name).await.map(Iterator::collect::<Vec<_>>) };
    match timeout(ANSWER_MAX, looking).await {
        Ok(Ok(mut addresses)) => {
            addresses.sort_unstable();
            addresses.dedup();
            Ok(addresses)
        }
        Ok(Err(error)) => Err(format!("cannot be looked up: {error}")),
        Err(_) => Err("cannot be looked up: timed out".to_owned()),
    }
}

async fn ask(address: SocketAddr) -> (Worker, Option<Counters>) {
    let asking = async { tokio::try_join!(get(address, "/readyz"), get(address, "/metrics")) };
    let answer = match timeout(ANSWER_MAX, asking).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err("timed out".to_owned()),
    };
    let (state, counters) = match answer {
        Ok(((_, readiness), (_, metrics))) => match Components::parse(&readiness) {
            Some(components) => {
                let state = State::Running { version: version(&metrics), not_ready: components.not_ready() };
                (state, Some(counters(&metrics)))
            }
            None => (State::Silent("what listens there is no worker".to_owned()), None),
        },
        Err(error) => (State::Silent(error), None),
    };
    (Worker { address: address.to_string(), state }, counters)
}

fn counters(metrics: &str) -> Counters {
    Counters {
        commands: sum(metrics, "offramp_commands_total", |_| true),
        sent_emails: sum(metrics, "offramp_emails_total", |labels| labels.contains("outcome=\"sent\"")),
    }
}

/// The version in the label of `offramp_build_info`.
fn version(metrics: &str) -> String {
    let line = metrics.lines().find(|line| line.starts_with("offramp_build_info{")).unwrap_or_default();
    let version = line.split_once("version=\"").and_then(|(_, rest)| rest.split_once('"'));
    version.map_or_else(|| "unknown".to_owned(), |(version, _)| version.to_owned())
}

/// The sum of a metric over the label sets that `is_counted`, in Prometheus's text format.
fn sum(metrics: &str, name: &str, is_counted: impl Fn(&str) -> bool) -> f64 {
    let samples = metrics.lines().filter_map(|line| {
        let (labels, value) = line.strip_prefix(name)?.strip_prefix('{')?.rsplit_once("} ")?;
        is_counted(labels).then(|| value.trim().parse::<f64>().ok())?
    });
    samples.filter(|value| value.is_finite()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_summed_over_their_labels() {
        let metrics = "# HELP offramp_commands_total …\n\
            offramp_commands_total{lane=\"a\",outcome=\"applied\"} 3\n\
            offramp_commands_total{lane=\"b\",outcome=\"applied\"} 4\n\
            offramp_commands_total_other{lane=\"b\"} 100\n\
            offramp_emails_total{template=\"t\",outcome=\"sent\"} 2\n\
            offramp_emails_total{template=\"t\",outcome=\"deferred\"} 7\n\
            offramp_build_info{version=\"0.1.0\",revision=\"abc\"} 1\n";
        assert_eq!(counters(metrics), Counters { commands: 7.0, sent_emails: 2.0 });
        assert_eq!(version(metrics), "0.1.0");
        assert_eq!((counters(""), version("").as_str()), (Counters::default(), "unknown"));
    }
}
