//! Every metric, once: its name, kind, labels and meaning. `docs/operate/metrics.md` is generated from this table.

use metrics::{describe_counter, describe_gauge, describe_histogram};
use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};
use strum::IntoStaticStr;

/// The buckets of every histogram of seconds.
const SECONDS_BUCKETS: [f64; 14] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];
/// The buckets of every histogram of counts (`…_size`).
const SIZE_BUCKETS: [f64; 10] = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 1000.0];

/// A metric.
#[derive(Debug)]
pub struct Metric {
    pub name: &'static str,
    pub kind: Kind,
    pub labels: &'static [&'static str],
    /// What it counts, in a sentence that Prometheus shows and the documentation quotes.
    pub help: &'static str,
}

/// How Prometheus treats a metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq, IntoStaticStr)]
#[strum(serialize_all = "lowercase")]
pub enum Kind {
    Counter,
    Gauge,
    Histogram,
}

macro_rules! metrics {
    ($($constant:ident: $kind:ident, $name:literal, [$($label:literal),*], $help:literal;)*) => {
        $(
            #[doc = $help]
            pub const $constant: &str = $name;
        )*

        /// All metrics, in the order of the documentation.
        pub const ALL: &[Metric] =
            &[$(Metric { name: $name, kind: Kind::$kind, labels: &[$($label),*], help: $help }),*];
    };
}

metrics! {
    COMMANDS: Counter, "offramp_commands_total", ["lane", "outcome"],
        "Settled messages. The outcome is `done` (applied, or nothing to do), `retry`, the reason of a rejection, or the reason of a dead letter.";
    BATCH_SIZE: Histogram, "offramp_batch_size", ["lane"],
        "Messages decided together.";
    EMAILS: Counter, "offramp_emails_total", ["template", "outcome"],
        "Attempts to send an email: `sent`, `deferred` (retried later), `throttled` (the mail server wants fewer emails), `rejected` (permanently), `sender_rejected` (because of this worker's name, rights, reputation or quota), `in_doubt` (no reply to the whole content).";
    EVENTS: Counter, "offramp_events_total", ["outcome"],
        "Attempts to publish an event: `published`, `deferred` (retried later).";
    CLAIMED: Counter, "offramp_claimed_total", [],
        "Emails and events claimed from the database: they had been deferred, or their worker had not got to them.";
    SCHEDULED_CHANGES: Counter, "offramp_scheduled_changes_total", ["kind"],
        "Scheduled changes: `lapse` (a subscription ended), `card_notice`, `reminder` (of undecided requests).";
    UNWORKABLE_DOCUMENTS: Gauge, "offramp_unworkable_documents", ["collection"],
        "Documents that cannot be processed until somebody corrects them. The log names each once. At most 10,000 are counted, and 1,000 of each kind that is never due.";
    UNROUTABLE: Counter, "offramp_unroutable_total", ["lane"],
        "Retry copies and dead letters that no queue accepted: an object at the broker is missing.";
    COPIES_REJECTED: Counter, "offramp_copies_rejected_total", ["lane"],
        "Messages set aside because RabbitMQ rejects their retry copy, dead letter or rejection.";
    BROKER_CONNECTIONS: Counter, "offramp_broker_connections_total", ["purpose"],
        "Connections made to RabbitMQ. More than one for a purpose means that a connection was lost.";
}

/// Installs the recorder for all metrics of this process, and describes each.
///
/// # Errors
/// When a recorder is installed already.
pub fn install() -> Result<PrometheusHandle, BuildError> {
    let handle = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), &SECONDS_BUCKETS)?
        .set_buckets_for_metric(Matcher::Suffix("_size".to_owned()), &SIZE_BUCKETS)?
        .install_recorder()?;
    for Metric { name, kind, help, .. } in ALL {
        match kind {
            Kind::Counter => describe_counter!(*name, *help),
            Kind::Gauge => describe_gauge!(*name, *help),
            Kind::Histogram => describe_histogram!(*name, *help),
        }
    }
    Ok(handle)
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;
    use std::path::Path;

    use super::*;
    use crate::generated_page;

    #[test]
    fn names_follow_the_conventions_of_prometheus() {
        for metric in ALL {
            assert!(metric.name.starts_with("offramp_"), "{}", metric.name);
            assert_eq!(metric.name.ends_with("_total"), metric.kind == Kind::Counter, "{}", metric.name);
            assert!(metric.help.ends_with('.'), "{}", metric.name);
        }
    }

    #[test]
    fn the_documentation_lists_every_metric() {
        let mut page = generated_page::start(
            "Metrics",
            "src/metrics.rs",
            "`/metrics` on `OFFRAMP_HTTP_ADDR` is for Prometheus. A metric appears with its first value; `offramp_copies_rejected_total` and \
             `offramp_unworkable_documents` are present from the start.",
        );
        page.push_str("| name | type | labels | meaning |\n|---|---|---|---|\n");
        for Metric { name, kind, labels, help } in ALL {
            let labels: Vec<String> = labels.iter().map(|label| format!("`{label}`")).collect();
            let kind: &str = kind.into();
            writeln!(page, "| `{name}` | {kind} | {} | {help} |", labels.join(", ")).unwrap();
        }
        generated_page::check(Path::new("docs/operate/metrics.md"), &page);
    }
}
