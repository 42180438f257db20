//! The series of a metric: one handle for each value of its labels, registered together, so that every series exists from the
//! start. Which metrics there are is not said here.

use std::marker::PhantomData;
use std::ops::Deref;

use metrics::{Counter, Gauge, Histogram, counter, gauge, histogram};
use strum::IntoStaticStr;

/// How Prometheus treats a metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq, IntoStaticStr)]
#[strum(serialize_all = "lowercase")]
pub enum Kind {
    Counter,
    Gauge,
    Histogram,
}

/// A label with a fixed set of values.
pub trait Label: Copy + PartialEq + 'static {
    const NAME: &'static str;
    const VALUES: &'static [Self];

    fn as_str(self) -> &'static str;

    /// The position in [`Self::VALUES`].
    fn position(self) -> usize {
        Self::VALUES.iter().position(|value| *value == self).unwrap_or_default()
    }
}

/// The labels of a metric: a tuple of [`Label`]s.
pub trait Labels: Copy {
    const NAMES: &'static [&'static str];
    const COUNT: usize;

    /// The position of these values among all combinations.
    fn index(self) -> usize;
    /// The combination at a position.
    fn at(index: usize) -> Vec<metrics::Label>;
    /// The values of each label.
    fn values() -> Vec<Vec<&'static str>>;
}

impl Labels for () {
    const NAMES: &'static [&'static str] = &[];
    const COUNT: usize = 1;

    fn index(self) -> usize {
        0
    }

    fn at(_: usize) -> Vec<metrics::Label> {
        Vec::new()
    }

    fn values() -> Vec<Vec<&'static str>> {
        Vec::new()
    }
}

impl<A: Label> Labels for (A,) {
    const NAMES: &'static [&'static str] = &[A::NAME];
    const COUNT: usize = A::VALUES.len();

    fn index(self) -> usize {
        self.0.position()
    }

    fn at(index: usize) -> Vec<metrics::Label> {
        vec![label::<A>(index)]
    }

    fn values() -> Vec<Vec<&'static str>> {
        vec![values::<A>()]
    }
}

impl<A: Label, B: Label> Labels for (A, B) {
    const NAMES: &'static [&'static str] = &[A::NAME, B::NAME];
    const COUNT: usize = A::VALUES.len() * B::VALUES.len();

    fn index(self) -> usize {
        self.0.position() * B::VALUES.len() + self.1.position()
    }

    fn at(index: usize) -> Vec<metrics::Label> {
        vec![label::<A>(index / B::VALUES.len()), label::<B>(index % B::VALUES.len())]
    }

    fn values() -> Vec<Vec<&'static str>> {
        vec![values::<A>(), values::<B>()]
    }
}

fn label<L: Label>(index: usize) -> metrics::Label {
    metrics::Label::from_static_parts(L::NAME, L::VALUES[index].as_str())
}

fn values<L: Label>() -> Vec<&'static str> {
    L::VALUES.iter().map(|value| value.as_str()).collect()
}

/// All series of a metric.
pub trait Series {
    const KIND: Kind;
    const LABELS: &'static [&'static str];

    /// The values of each label; empty for a label whose values are known only at run time.
    fn values() -> Vec<Vec<&'static str>>;
    /// Registers the series with the recorder of this process.
    fn register(name: &'static str) -> Self;
}

/// A handle for each combination of labels.
#[derive(Debug)]
pub struct Handles<H, L> {
    handles: Vec<H>,
    labels: PhantomData<fn(L)>,
}

pub type Counters<L> = Handles<Counter, L>;
pub type Gauges<L> = Handles<Gauge, L>;
pub type Histograms<L> = Handles<Histogram, L>;
pub type Readings<L> = Handles<Reading, L>;

impl<H, L: Labels> Handles<H, L> {
    /// The handle for these values.
    pub fn of(&self, labels: L) -> &H {
        &self.handles[labels.index()]
    }
}

impl<H> Deref for Handles<H, ()> {
    type Target = H;

    fn deref(&self) -> &H {
        &self.handles[0]
    }
}

impl<H: Handle, L: Labels> Series for Handles<H, L> {
    const KIND: Kind = H::KIND;
    const LABELS: &'static [&'static str] = L::NAMES;

    fn values() -> Vec<Vec<&'static str>> {
        L::values()
    }

    fn register(name: &'static str) -> Self {
        let handles = (0..L::COUNT).map(|index| H::register(name, L::at(index))).collect();
        Self { handles, labels: PhantomData }
    }
}

/// One series.
pub trait Handle {
    const KIND: Kind;

    fn register(name: &'static str, labels: Vec<metrics::Label>) -> Self;
}

impl Handle for Counter {
    const KIND: Kind = Kind::Counter;

    fn register(name: &'static str, labels: Vec<metrics::Label>) -> Self {
        counter!(name, labels)
    }
}

impl Handle for Gauge {
    const KIND: Kind = Kind::Gauge;

    fn register(name: &'static str, labels: Vec<metrics::Label>) -> Self {
        gauge!(name, labels)
    }
}

impl Handle for Histogram {
    const KIND: Kind = Kind::Histogram;

    fn register(name: &'static str, labels: Vec<metrics::Label>) -> Self {
        histogram!(name, labels)
    }
}

/// A gauge that is read from a server now and then. While its value is unknown it is `NaN`, which no comparison in an alert
/// matches and `max` passes over: a worker that has lost its servers must not repeat what it last saw.
#[derive(Debug)]
pub struct Reading(Gauge);

impl Reading {
    pub fn set(&self, value: Option<f64>) {
        self.0.set(value.unwrap_or(f64::NAN));
    }
}

impl Handle for Reading {
    const KIND: Kind = Kind::Gauge;

    fn register(name: &'static str, labels: Vec<metrics::Label>) -> Self {
        let reading = Self(gauge!(name, labels));
        reading.set(None);
        reading
    }
}

/// One reading for each queue. Their names depend on the prefix, so each is registered when the worker starts.
#[derive(Debug)]
pub struct QueueReadings {
    name: &'static str,
}

impl QueueReadings {
    /// Registers the series of a queue.
    #[must_use]
    pub fn register_queue(&self, queue: &str) -> Reading {
        Reading::register(self.name, vec![metrics::Label::new(Self::LABELS[0], queue.to_owned())])
    }
}

impl Series for QueueReadings {
    const KIND: Kind = Kind::Gauge;
    const LABELS: &'static [&'static str] = &["queue"];

    fn values() -> Vec<Vec<&'static str>> {
        vec![Vec::new()]
    }

    fn register(name: &'static str) -> Self {
        Self { name }
    }
}

/// The version of this build, as labels.
#[derive(Debug)]
pub struct BuildInfo;

impl Series for BuildInfo {
    const KIND: Kind = Kind::Gauge;
    const LABELS: &'static [&'static str] = &["version", "revision"];

    fn values() -> Vec<Vec<&'static str>> {
        vec![vec![crate::build::VERSION], vec![crate::build::REVISION]]
    }

    fn register(name: &'static str) -> Self {
        let values = [crate::build::VERSION, crate::build::REVISION];
        let labels = std::iter::zip(Self::LABELS, values);
        let labels: Vec<_> = labels.map(|(name, value)| metrics::Label::from_static_parts(name, value)).collect();
        gauge!(name, labels).set(1.0);
        Self
    }
}
