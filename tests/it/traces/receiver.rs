//! A receiver of OTLP over HTTP, as a collector is one: it decodes the spans and keeps them.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::post;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue, any_value::Value};
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use opentelemetry_proto::tonic::trace::v1::status::StatusCode as SpanStatus;
use prost::Message;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use offramp_testkit::eventually;

/// A span as the receiver got it. Ids are hexadecimal.
#[derive(Clone, Debug)]
pub struct ReceivedSpan {
    pub name: String,
    pub kind: SpanKind,
    pub trace_id: String,
    pub span_id: String,
    /// Empty: a root.
    pub parent_id: String,
    /// The linked spans: trace and span.
    pub links: Vec<(String, String)>,
    pub attributes: BTreeMap<String, String>,
    pub has_failed: bool,
    pub begins_at: u64,
    /// Of the process that sent it.
    pub resource: BTreeMap<String, String>,
}

impl ReceivedSpan {
    pub fn attribute(&self, name: &str) -> &str {
        self.attributes.get(name).map_or("", String::as_str)
    }

    pub fn traceparent(&self) -> String {
        format!("00-{}-{}-01", self.trace_id, self.span_id)
    }
}

#[derive(Clone, Default)]
struct Received {
    spans: Arc<Mutex<Vec<ReceivedSpan>>>,
    authorizations: Arc<Mutex<Vec<String>>>,
}

/// A receiver on a free port. Stopped when dropped.
pub struct Receiver {
    address: SocketAddr,
    received: Received,
    task: JoinHandle<()>,
}

impl Receiver {
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, received) = (listener.local_addr().unwrap(), Received::default());
        let router = Router::new().route("/v1/traces", post(receive)).with_state(received.clone());
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let service = hyper_util::service::TowerToHyperService::new(router.clone());
                let connection = hyper::server::conn::http1::Builder::new()
                    .serve_connection(hyper_util::rt::TokioIo::new(stream), service);
                tokio::spawn(connection);
            }
        });
        Self { address, received, task }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub fn spans(&self) -> Vec<ReceivedSpan> {
        self.received.spans.lock().unwrap().clone()
    }

    /// The header `authorization` of each request.
    pub fn authorizations(&self) -> Vec<String> {
        self.received.authorizations.lock().unwrap().clone()
    }

    /// Waits for a span that `is` accepts.
    pub async fn span(&self, what: &str, is: impl Fn(&ReceivedSpan) -> bool) -> ReceivedSpan {
        eventually(what, || {
            let found = self.spans().into_iter().find(&is);
            async move { found }
        })
        .await
    }

    /// A trace as people look at it: its spans by parent and time.
    pub fn tree(&self, trace_id: &str) -> String {
        let mut spans: Vec<_> = self.spans().into_iter().filter(|span| span.trace_id == trace_id).collect();
        spans.sort_by_key(|span| span.begins_at);
        let is_here = |id: &str| spans.iter().any(|span| span.span_id == id);
        let mut text = String::new();
        for root in spans.iter().filter(|span| !is_here(&span.parent_id)) {
            write_tree(&mut text, root, &spans, 0);
        }
        text
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn write_tree(text: &mut String, span: &ReceivedSpan, spans: &[ReceivedSpan], depth: usize) {
    let outcome = span.attribute("offramp.outcome");
    let instance = span.resource.get("service.instance.id").map_or("", |id| &id[..4]);
    writeln!(text, "{}{} [{:?}] {outcome} (process {instance})", "  ".repeat(depth), span.name, span.kind).unwrap();
    for child in spans.iter().filter(|child| child.parent_id == span.span_id) {
        write_tree(text, child, spans, depth + 1);
    }
}

async fn receive(State(received): State<Received>, headers: HeaderMap, body: Bytes) -> StatusCode {
    if headers.get("content-type").is_none_or(|kind| kind != "application/x-protobuf") {
        return StatusCode::UNSUPPORTED_MEDIA_TYPE;
    }
    let Ok(request) = ExportTraceServiceRequest::decode(body) else { return StatusCode::BAD_REQUEST };
    let authorization = headers.get("authorization").map(|value| value.to_str().unwrap().to_owned());
    received.authorizations.lock().unwrap().extend(authorization);
    for group in request.resource_spans {
        let resource = texts(&group.resource.unwrap_or_default().attributes);
        for span in group.scope_spans.into_iter().flat_map(|scope| scope.spans) {
            received.spans.lock().unwrap().push(ReceivedSpan {
                kind: span.kind(),
                trace_id: hexadecimal(&span.trace_id),
                span_id: hexadecimal(&span.span_id),
                parent_id: hexadecimal(&span.parent_span_id),
                links: span
                    .links
                    .iter()
                    .map(|link| (hexadecimal(&link.trace_id), hexadecimal(&link.span_id)))
                    .collect(),
                attributes: texts(&span.attributes),
                has_failed: span.status.as_ref().is_some_and(|status| status.code() == SpanStatus::Error),
                begins_at: span.start_time_unix_nano,
                name: span.name,
                resource: resource.clone(),
            });
        }
    }
    StatusCode::OK
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |digits, byte| format!("{digits}{byte:02x}"))
}

fn texts(attributes: &[KeyValue]) -> BTreeMap<String, String> {
    let text = |value: &Option<AnyValue>| match value.as_ref().and_then(|value| value.value.clone()) {
        Some(Value::StringValue(text)) => text,
        Some(Value::IntValue(number)) => number.to_string(),
        other => format!("{other:?}"),
    };
    attributes.iter().map(|attribute| (attribute.key.clone(), text(&attribute.value))).collect()
}
