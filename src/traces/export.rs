//! The export of spans: from a bounded queue, by a thread of its own, in batches. A collector that is slow or unreachable costs spans and
//! nothing else.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use opentelemetry::trace::TracerProvider as _;
use opentelemetry_otlp::{Protocol, SpanExporter as OtlpExporter, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::resource::EnvResourceDetector;
use opentelemetry_sdk::trace::{BatchConfigBuilder, BatchSpanProcessor, SdkTracerProvider, SpanData, SpanExporter};
use tokio::runtime::Handle;
use uuid::Uuid;

use super::collector::CollectorClient;
use super::span;
use crate::tls::Tls;

/// How many spans wait at most, and how many are sent in one request, unless `OTEL_BSP_MAX_QUEUE_SIZE` and
/// `OTEL_BSP_MAX_EXPORT_BATCH_SIZE` say otherwise. The SDK's own 2,048 and 512 are for programs with less to say.
const QUEUE_SPANS_MAX: usize = 16_384;
const REQUEST_SPANS_MAX: usize = 2_048;
/// How long a request may take.
const REQUEST_MAX: Duration = Duration::from_secs(10);
/// The largest batch has a link for each message; the SDK's default is 128.
const LINKS_MAX: u32 = 256;

/// Where spans are sent, and how they are named.
#[derive(Clone)]
pub struct TraceOptions {
    /// The whole URL, with its path.
    pub endpoint: String,
    /// Secrets, usually.
    pub headers: HashMap<String, String>,
    /// `None`: from `OTEL_RESOURCE_ATTRIBUTES`, else `offramp`.
    pub service_name: Option<String>,
    pub tls: Tls,
}

impl fmt::Debug for TraceOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = self.headers.keys().collect();
        f.debug_struct("TraceOptions")
            .field("endpoint", &self.endpoint)
            .field("headers", &names)
            .finish_non_exhaustive()
    }
}

/// The running export. Spans are recorded until it is flushed.
#[derive(Debug)]
pub struct TraceExport(SdkTracerProvider);

impl TraceExport {
    /// Turns traces on. Nothing is sent yet, so this does not fail when the collector is unreachable.
    ///
    /// # Errors
    /// A sentence, when the exporter or TLS cannot be set up.
    pub fn start(options: TraceOptions) -> Result<Self, String> {
        let TraceOptions { endpoint, headers, service_name, tls } = options;
        let tls = tls.client_config().map_err(|error| format!("TLS: {error}"))?;
        let client = CollectorClient::new(tls.as_ref().clone(), Handle::current(), REQUEST_MAX);
        let exporter = OtlpExporter::builder()
            .with_http()
            .with_http_client(client)
            .with_protocol(Protocol::HttpBinary)
            .with_endpoint(&endpoint)
            .with_headers(headers)
            .with_timeout(REQUEST_MAX)
            .build()
            .map_err(|error| error.to_string())?;
        // A query may have a token.
        let endpoint = endpoint.split('?').next().unwrap_or_default().to_owned();
        let exporter = ReportingExporter { exporter, endpoint, is_failing: AtomicBool::new(false) };
        let mut config = BatchConfigBuilder::default();
        // The builder has read these.
        if std::env::var_os("OTEL_BSP_MAX_QUEUE_SIZE").is_none() {
            config = config.with_max_queue_size(QUEUE_SPANS_MAX);
        }
        if std::env::var_os("OTEL_BSP_MAX_EXPORT_BATCH_SIZE").is_none() {
            config = config.with_max_export_batch_size(REQUEST_SPANS_MAX);
        }
        let processor = BatchSpanProcessor::builder(exporter).with_batch_config(config.build()).build();
        let provider = SdkTracerProvider::builder()
            .with_span_processor(processor)
            .with_max_links_per_span(LINKS_MAX)
            .with_resource(resource(service_name))
            .build();
        span::turn_on(provider.tracer("offramp"));
        Ok(Self(provider))
    }

    /// Sends what waits, for `patience` at most; then nothing is recorded any more.
    pub async fn flush(self, patience: Duration) {
        let shutdown = tokio::task::spawn_blocking(move || self.0.shutdown_with_timeout(patience));
        if let Ok(Err(error)) = shutdown.await {
            tracing::warn!(%error, "the last spans may be lost: the collector did not take them in time");
        }
    }
}

/// What all spans of this process have in common.
fn resource(service_name: Option<String>) -> Resource {
    let version = opentelemetry::KeyValue::new("service.version", env!("CARGO_PKG_VERSION"));
    let instance = opentelemetry::KeyValue::new("service.instance.id", Uuid::new_v4().to_string());
    let named = Resource::builder_empty().with_service_name("offramp").with_attributes([version, instance]);
    let named = named.with_detector(Box::new(EnvResourceDetector::new()));
    match service_name {
        Some(name) => named.with_service_name(name).build(),
        None => named.build(),
    }
}

/// Logs that the collector is unreachable, and that it is back: once each.
#[derive(Debug)]
struct ReportingExporter {
    exporter: OtlpExporter,
    endpoint: String,
    is_failing: AtomicBool,
}

impl SpanExporter for ReportingExporter {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let spans = batch.len();
        let result = self.exporter.export(batch).await;
        let was_failing = self.is_failing.swap(result.is_err(), Ordering::Relaxed);
        match result {
            Err(error) if !was_failing => {
                tracing::warn!(endpoint = self.endpoint, %error, spans, "cannot send spans to the collector; they are dropped until it is back");
            }
            Ok(()) if was_failing => tracing::info!(endpoint = self.endpoint, "the collector takes spans again"),
            _ => {}
        }
        // The SDK would log every failure.
        Ok(())
    }

    fn shutdown(&self) -> OTelSdkResult {
        self.exporter.shutdown()
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.exporter.force_flush()
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.exporter.set_resource(resource);
    }
}
