//! Traces: which spans the worker records, and where they are sent. Off unless a collector is set: then no span is made, and asking
//! whether there are any costs one read of memory.
//!
//! [`span`]: a span, with the names of OpenTelemetry's conventions in one place; [`export`]: OTLP over HTTP to a collector, from a bounded
//! queue. Logs and metrics are elsewhere, and spans hold no personal data: ids, names of queues and templates, and outcomes.

pub mod collector;
pub mod export;
pub mod span;

pub use export::{TraceExport, TraceOptions};
pub use span::Span;
