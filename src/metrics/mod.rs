//! Every metric, once: its name, type, labels, unit and meaning. `docs/operate/metrics.md` is generated from this table.
//!
//! [`current`] has a handle for each series. A value is written through a handle, and its labels are enums ([`labels`]), so
//! there is no value that the table does not know.

mod exposition;
pub mod labels;
mod process;
mod series;

use std::sync::{LazyLock, OnceLock};

use metrics::{Unit, describe_counter, describe_gauge, describe_histogram};
use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder};

use offramp_domain::command_ref::CommandType;
use offramp_domain::notification::Template;

pub use exposition::Exposition;
use labels::{
    CommandOutcome, ConnectionPurpose, DocumentCollection, EmailOutcome, EntryKind, EntryState, EventOutcome,
    MongodbOperation, ScheduledChange,
};
pub use process::{METRICS as PROCESS, ProcessMetric};
use series::{BuildInfo, Counters, Gauges, Histograms, QueueReadings, Readings, Series};
pub use series::{Kind, Label, Reading};

/// A metric.
#[derive(Debug)]
pub struct Metric {
    pub name: &'static str,
    pub kind: Kind,
    pub unit: Unit,
    /// The names of its labels.
    pub labels: &'static [&'static str],
    /// The values of each label; empty for a label whose values are known only at run time.
    pub label_values: fn() -> Vec<Vec<&'static str>>,
    /// The upper bounds of a histogram's buckets.
    pub buckets: &'static [f64],
    /// Its meaning, in sentences that Prometheus shows and the documentation quotes.
    pub help: &'static str,
}

/// From a millisecond, for one message alone, to the longest time for which a batch is held.
const COMMAND_DURATIONS: &[f64] =
    &[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1200.0];
/// A command may have waited in retry queues, or for a worker to be started.
const COMMAND_AGES: &[f64] =
    &[0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3_600.0, 14_400.0, 86_400.0];
/// Up to the largest batch that can be set.
const BATCH_SIZES: &[f64] = &[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 100.0, 150.0, 200.0];
/// Up to a day, after which an email that the mail server rejects because of its sender is given up.
const EMAIL_DELIVERIES: &[f64] =
    &[0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3_600.0, 14_400.0, 86_400.0];
/// Mail servers may scan an email before they reply, and have minutes to do so.
const SMTP_DURATIONS: &[f64] =
    &[0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0];
/// Up to the deadline of an operation, 10 s.
const MONGODB_DURATIONS: &[f64] =
    &[0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

macro_rules! metrics {
    ($($field:ident: $series:ty, $name:literal, $unit:ident, $buckets:expr, $help:literal;)*) => {
        /// The handles of all metrics.
        #[derive(Debug)]
        pub struct Metrics {
            $(
                #[doc = $help]
                pub $field: $series,
            )*
        }

        impl Metrics {
            /// Registers every series with the recorder of this process, or of this thread.
            fn register() -> Self {
                Self { $($field: Series::register($name),)* }
            }
        }

        /// All metrics, in the order of the documentation.
        pub const ALL: &[Metric] = &[$(Metric {
            name: $name,
            kind: <$series as Series>::KIND,
            unit: Unit::$unit,
            labels: <$series as Series>::LABELS,
            label_values: <$series as Series>::values,
            buckets: $buckets,
            help: $help,
        }),*];
    };
}

metrics! {
    commands: Counters<(CommandType, CommandOutcome)>, "offramp_commands_total", Count, &[],
        "Settled messages. The outcome is `applied`, `unchanged` (there was nothing to do), `retry` (a copy waits in a retry queue), the reason of a rejection, or the reason of a dead letter.";
    command_duration: Histograms<(CommandType,)>, "offramp_command_duration_seconds", Seconds, COMMAND_DURATIONS,
        "Time from the arrival of a message at the worker to its acknowledgement, in seconds.";
    command_age: Histograms<(CommandType,)>, "offramp_command_age_seconds", Seconds, COMMAND_AGES,
        "Time from the `time` of a command to its acknowledgement, in seconds. It includes the time in the publisher, in queues and in retry queues, and the difference between the clocks of publisher and worker. Messages that go to a retry queue, and those that are no command, are not observed.";
    batch_size: Histograms<(CommandType,)>, "offramp_batch_size", Count, BATCH_SIZES,
        "Messages decided together.";
    commit_conflicts: Counters<(CommandType,)>, "offramp_commit_conflicts_total", Count, &[],
        "Commands decided again, because another writer changed their document between reading and writing.";
    lane_ready: Gauges<(CommandType,)>, "offramp_lane_ready", Count, &[],
        "1 while the lane consumes its queue and RabbitMQ confirms its copies; otherwise 0, and `/readyz` says why.";

    emails: Counters<(Template, EmailOutcome)>, "offramp_emails_total", Count, &[],
        "Attempts to send an email: `sent`, `deferred` (retried later), `throttled` (the mail server wants fewer emails), `rejected` (permanently), `sender_rejected` (because of this worker's name, rights, reputation or quota), `in_doubt` (no reply to the whole content).";
    email_delivery: Histograms<()>, "offramp_email_delivery_seconds", Seconds, EMAIL_DELIVERIES,
        "Time from the decision that caused an email to its acceptance by the mail server, in seconds, whichever worker sent it.";
    smtp_duration: Histograms<(EmailOutcome,)>, "offramp_smtp_duration_seconds", Seconds, SMTP_DURATIONS,
        "Time of one attempt to hand an email to the mail server, in seconds, including the connection if a new one was needed.";
    events: Counters<(EventOutcome,)>, "offramp_events_total", Count, &[],
        "Attempts to publish an event: `published`, `deferred` (retried later).";
    outbox_entries: Readings<(EntryKind, EntryState)>, "offramp_outbox_entries", Count, &[],
        "Emails and events in the database: `pending` (will be sent, or retried) and `failed` (kept for an operator). Those of at most 10,000 documents in each collection are counted.";
    outbox_oldest_due: Readings<(EntryKind,)>, "offramp_outbox_oldest_due_seconds", Seconds, &[],
        "How long the pending email or event that waits longest has waited, in seconds since the decision that caused it. 0: none waits.";
    claimed: Counters<()>, "offramp_claimed_total", Count, &[],
        "Emails and events claimed from the database: they had been deferred, or their worker had not got to them.";

    mongodb_duration: Histograms<(MongodbOperation,)>, "offramp_mongodb_duration_seconds", Seconds, MONGODB_DURATIONS,
        "Time of one request to MongoDB, in seconds, failed ones included: `load` (the documents of a batch), `commit` (its changes), `claim` (due outbox entries), `mark` (what became of them), `sweep` (searches for what is due), `measure` (the gauges of this page), `ping` (does the server work?).";
    broker_connections: Counters<(ConnectionPurpose,)>, "offramp_broker_connections_total", Count, &[],
        "Connections made to RabbitMQ, by lane, or for the `publisher` or the counts of the `queues`. More than one for a purpose means that a connection was lost.";
    unroutable: Counters<(CommandType,)>, "offramp_unroutable_total", Count, &[],
        "Retry copies, dead letters and rejections that no queue accepted: an object at the broker is missing.";
    copies_rejected: Counters<(CommandType,)>, "offramp_copies_rejected_total", Count, &[],
        "Messages set aside because RabbitMQ rejects their retry copy, dead letter or rejection.";
    queue_messages: QueueReadings, "offramp_queue_messages", Count, &[],
        "Messages ready for delivery in a work queue or retry queue. Messages that a worker holds are not counted.";
    dead_letters: Readings<()>, "offramp_dead_letters", Count, &[],
        "Messages ready for delivery in the queue of dead letters. While an operator's tool holds them, they are not counted.";

    scheduled_changes: Counters<(ScheduledChange,)>, "offramp_scheduled_changes_total", Count, &[],
        "Scheduled changes: `lapse` (a subscription ended), `card_notice`, `reminder` (of undecided requests).";
    sweep_last_success: Gauges<()>, "offramp_sweep_last_success_timestamp_seconds", Seconds, &[],
        "When the newest sweep ended that made all its searches for dates that have passed, in seconds since 1970. 0: none since the start of the worker.";
    requests_pending: Readings<()>, "offramp_requests_pending", Count, &[],
        "Cancellation requests that nobody has decided. At most 10,000 are counted.";
    requests_oldest: Readings<()>, "offramp_requests_oldest_seconds", Seconds, &[],
        "How long the oldest undecided cancellation request has waited, in seconds. 0: there is none.";
    unworkable_documents: Gauges<(DocumentCollection,)>, "offramp_unworkable_documents", Count, &[],
        "Documents that cannot be processed until somebody corrects them. The log names each once. At most 10,000 are counted, and 1,000 of each kind that is never due.";

    build_info: BuildInfo, "offramp_build_info", Count, &[],
        "1. The labels are the version of the program and the commit that it was built from.";
}

/// The metrics of this process, once [`install`] was called.
static INSTALLED: OnceLock<Metrics> = OnceLock::new();
/// Handles that record nothing, for programs that show no metrics.
static NONE: LazyLock<Metrics> = LazyLock::new(Metrics::register);

/// The handles of all metrics.
pub fn current() -> &'static Metrics {
    INSTALLED.get().unwrap_or_else(|| &NONE)
}

/// Installs the recorder of this process, and registers and describes every metric.
///
/// # Errors
/// When a recorder is installed already.
pub fn install() -> Result<Exposition, BuildError> {
    process::started();
    let recorder = with_buckets(PrometheusBuilder::new())?.install_recorder()?;
    describe();
    let _ = INSTALLED.set(Metrics::register());
    Ok(Exposition::new(recorder))
}

fn with_buckets(mut builder: PrometheusBuilder) -> Result<PrometheusBuilder, BuildError> {
    for metric in ALL.iter().filter(|metric| metric.kind == Kind::Histogram) {
        builder = builder.set_buckets_for_metric(Matcher::Full(metric.name.to_owned()), metric.buckets)?;
    }
    Ok(builder)
}

fn describe() {
    for Metric { name, kind, unit, help, .. } in ALL {
        match kind {
            Kind::Counter => describe_counter!(*name, *unit, *help),
            Kind::Gauge => describe_gauge!(*name, *unit, *help),
            Kind::Histogram => describe_histogram!(*name, *unit, *help),
        }
    }
}

/// A page with every series, for tests of what serves it.
#[cfg(test)]
pub(crate) fn exposition_for_tests() -> (Metrics, Exposition) {
    let recorder = with_buckets(PrometheusBuilder::new()).unwrap().build_recorder();
    let exposition = Exposition::new(recorder.handle());
    let metrics = metrics::with_local_recorder(&recorder, || {
        describe();
        Metrics::register()
    });
    (metrics, exposition)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::fmt::Write as _;
    use std::path::Path;

    use super::labels::CommandOutcome;
    use super::*;
    use crate::generated_page;

    #[test]
    fn names_follow_the_conventions_of_prometheus() {
        for metric in ALL {
            assert!(metric.name.starts_with("offramp_"), "{}", metric.name);
            assert_eq!(metric.name.ends_with("_total"), metric.kind == Kind::Counter, "{}", metric.name);
            assert_eq!(metric.name.ends_with("_seconds"), metric.unit == Unit::Seconds, "{}", metric.name);
            assert!(metric.help.ends_with('.'), "{}", metric.name);
            assert_eq!(metric.buckets.is_empty(), metric.kind != Kind::Histogram, "{}", metric.name);
            assert!(metric.buckets.is_sorted(), "{}", metric.name);
        }
    }

    #[test]
    fn every_series_is_present_from_the_start() {
        let page = exposition_for_tests().1.render();
        for metric in ALL {
            let Metric { name, kind, help, .. } = metric;
            let kind: &str = kind.into();
            assert!(
                page.contains(&format!("# HELP {name} {help}\n# TYPE {name} {kind}\n"))
                    || *name == "offramp_queue_messages",
                "{name}: {page}"
            );
            let values = (metric.label_values)();
            let expected: usize = values.iter().map(Vec::len).product();
            let sample = if metric.kind == Kind::Histogram { format!("{name}_count") } else { (*name).to_owned() };
            let is_sample = |line: &&str| line.strip_prefix(&sample).is_some_and(|rest| rest.starts_with(['{', ' ']));
            let lines: Vec<&str> = page.lines().filter(is_sample).collect();
            assert_eq!(lines.len(), expected, "{lines:?}");
            for (label, values) in metric.labels.iter().zip(&values) {
                for value in values {
                    let pair = format!("{label}=\"{value}\"");
                    assert!(lines.iter().any(|line| line.contains(&pair)), "{name}{{{pair}}}");
                }
            }
            if metric.kind != Kind::Gauge {
                assert!(lines.iter().all(|line| line.ends_with(" 0")), "{lines:?}");
            }
        }
    }

    #[test]
    fn series_are_found_by_their_labels() {
        let (metrics, page) = exposition_for_tests();
        for (index, lane) in (1..).zip(CommandType::ALL) {
            for outcome in CommandOutcome::VALUES {
                metrics.commands.of((lane, *outcome)).increment(index);
            }
            metrics.batch_size.of((lane,)).record(7.0);
        }
        metrics.outbox_entries.of((EntryKind::Event, EntryState::Failed)).set(Some(3.0));
        let page = page.render();
        for (index, lane) in (1..).zip(CommandType::ALL) {
            for outcome in CommandOutcome::VALUES.iter().map(|outcome| outcome.as_str()) {
                let line = format!("offramp_commands_total{{lane=\"{lane}\",outcome=\"{outcome}\"}} {index}\n");
                assert!(page.contains(&line), "{line}");
            }
            assert!(page.contains(&format!("offramp_batch_size_bucket{{lane=\"{lane}\",le=\"4\"}} 0\n")), "{page}");
            assert!(page.contains(&format!("offramp_batch_size_bucket{{lane=\"{lane}\",le=\"8\"}} 1\n")), "{page}");
        }
        assert!(page.contains("offramp_outbox_entries{kind=\"event\",state=\"failed\"} 3\n"), "{page}");
        assert!(page.contains("offramp_outbox_entries{kind=\"email\",state=\"failed\"} NaN\n"), "{page}");
    }

    #[test]
    fn outcomes_have_different_names() {
        let names: HashSet<&str> = CommandOutcome::VALUES.iter().map(|outcome| outcome.as_str()).collect();
        assert_eq!(names.len(), CommandOutcome::VALUES.len());
    }

    #[test]
    fn the_documentation_lists_every_metric() {
        let mut page = generated_page::start("Metrics", "src/metrics", INTRODUCTION);
        page.push_str("## All metrics\n\n| name | type | labels | meaning |\n|---|---|---|---|\n");
        for Metric { name, kind, labels, help, .. } in ALL {
            let labels: Vec<String> = labels.iter().map(|label| format!("`{label}`")).collect();
            let kind: &str = kind.into();
            writeln!(page, "| `{name}` | {kind} | {} | {help} |", labels.join(", ")).unwrap();
        }
        for ProcessMetric { name, kind, help, .. } in PROCESS {
            let kind: &str = kind.into();
            writeln!(page, "| `{name}` | {kind} | | {help} |").unwrap();
        }
        generated_page::check(Path::new("docs/operate/metrics.md"), &page);
    }

    /// How to read them: what no table says.
    const INTRODUCTION: &str = include_str!("introduction.md").trim_ascii_end();

    #[test]
    fn the_documentation_names_existing_metrics_and_labels() {
        let known: HashSet<&str> = ALL.iter().map(|metric| metric.name).collect();
        let names = INTRODUCTION.split(|char: char| !char.is_ascii_alphanumeric() && char != '_');
        for name in names.filter(|name| name.starts_with("offramp_")) {
            assert!(known.contains(name.strip_suffix("_bucket").unwrap_or(name)), "{name}");
        }
    }
}
