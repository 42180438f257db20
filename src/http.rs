//! Health and metrics over HTTP: `/livez`, `/readyz`, `/metrics`.
//!
//! Each part of the worker holds a [`ReadyHandle`] and says on it whether it can work, and if not, why. The worker is
//! ready when all its parts are. A part that ends without a word counts as not ready: nothing dead looks alive.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};
use serde_json::json;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

/// How long whoever asks may take for a request's headers, and say nothing between two requests.
const HEADERS_PATIENCE: Duration = Duration::from_secs(10);
/// How long the answers in hand may take when the worker stops.
const GOODBYE_PATIENCE: Duration = Duration::from_secs(1);
/// How long to wait when no connection can be accepted.
const ACCEPT_PAUSE: Duration = Duration::from_millis(500);
/// How often the recorder tidies up what its histograms hold.
const UPKEEP: Duration = Duration::from_secs(5);

/// The longest reason that `/readyz` gives, in characters: some list every address that was tried.
const REASON_CHARS_MAX: usize = 1_000;

/// The buckets of every histogram of seconds.
const SECONDS_BUCKETS: [f64; 14] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];

/// The buckets of every histogram of counts (`…_size`).
const SIZE_BUCKETS: [f64; 10] = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 1000.0];

/// Whether each part of the worker can work: each is asked anew whenever somebody wants to know.
#[derive(Clone, Default)]
pub struct Readiness(Arc<Mutex<BTreeMap<String, Probe>>>);

/// Asks a part whether it can work; the error says why not.
type Probe = Box<dyn Fn() -> Result<(), String> + Send + Sync>;

/// One part's say in [`Readiness`].
#[derive(Debug)]
pub struct ReadyHandle {
    readiness: Readiness,
    name: String,
    state: Arc<Mutex<Result<(), String>>>,
}

impl Readiness {
    /// Adds a part that will say itself whether it can work; not ready yet.
    #[must_use]
    pub fn component(&self, name: &str) -> ReadyHandle {
        let state = Arc::new(Mutex::new(Err("starting".to_owned())));
        let said = Arc::clone(&state);
        self.watch(name, move || locked(&said).clone());
        ReadyHandle { readiness: self.clone(), name: name.to_owned(), state }
    }

    /// Adds a part that is asked.
    pub fn watch(&self, name: &str, probe: impl Fn() -> Result<(), String> + Send + Sync + 'static) {
        locked(&self.0).insert(name.to_owned(), Box::new(probe));
    }

    /// What each part says.
    #[must_use]
    pub fn states(&self) -> BTreeMap<String, Result<(), String>> {
        locked(&self.0).iter().map(|(name, probe)| (name.clone(), probe())).collect()
    }
}

impl fmt::Debug for Readiness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Readiness").field(&self.states()).finish()
    }
}

impl ReadyHandle {
    /// It can work.
    pub fn ready(&self) {
        *locked(&self.state) = Ok(());
    }

    /// It cannot, for this reason, of which [`REASON_CHARS_MAX`] characters are told.
    pub fn not_ready(&self, reason: &str) {
        *locked(&self.state) = Err(reason.chars().take(REASON_CHARS_MAX).collect());
    }

    /// Others answer for it from now on.
    pub fn retire(self) {
        locked(&self.readiness.0).remove(&self.name);
    }
}

impl Drop for ReadyHandle {
    fn drop(&mut self) {
        self.not_ready("stopped");
    }
}

/// Nothing panics while it holds one of the locks here, and the data is whole after every statement.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Makes every `metrics::counter!` and its kin count, from here on.
///
/// # Errors
/// When that was done before.
pub fn install_metrics() -> Result<PrometheusHandle, BuildError> {
    PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), &SECONDS_BUCKETS)?
        .set_buckets_for_metric(Matcher::Suffix("_size".to_owned()), &SIZE_BUCKETS)?
        .install_recorder()
}

/// Takes the address; a port that is in use is an error here and not later.
///
/// # Errors
/// When the address cannot be had.
pub async fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    TcpListener::bind(address).await
}

/// Answers on `listener` until `stop`, then finishes the answers in hand, for [`GOODBYE_PATIENCE`].
pub async fn serve(listener: TcpListener, readiness: Readiness, metrics: PrometheusHandle, stop: CancellationToken) {
    let upkeep = tokio::spawn(keep_up(metrics.clone(), stop.clone()));
    let service = TowerToHyperService::new(router(readiness, metrics));
    let mut connections = JoinSet::new();
    while let Some(accepted) = stop.run_until_cancelled(listener.accept()).await {
        match accepted {
            Ok((stream, _)) => drop(connections.spawn(answer(stream, service.clone(), stop.clone()))),
            Err(error) => {
                // Most likely too many files are open, which passes.
                tracing::warn!(%error, "a connection for health and metrics could not be accepted");
                stop.run_until_cancelled(sleep(ACCEPT_PAUSE)).await;
            }
        }
        while connections.try_join_next().is_some() {}
    }
    // Those that are not done then end with the set.
    drop(timeout(GOODBYE_PATIENCE, async { while connections.join_next().await.is_some() {} }).await);
    upkeep.abort();
}

/// Answers what is asked on one connection.
async fn answer(stream: TcpStream, service: TowerToHyperService<Router>, stop: CancellationToken) {
    let mut server = http1::Builder::new();
    server.timer(TokioTimer::new()).header_read_timeout(HEADERS_PATIENCE);
    let mut connection = pin!(server.serve_connection(TokioIo::new(stream), service));
    if stop.run_until_cancelled(connection.as_mut()).await.is_none() {
        connection.as_mut().graceful_shutdown();
        // Whoever asks and breaks off is no news.
        drop(connection.await);
    }
}

async fn keep_up(metrics: PrometheusHandle, stop: CancellationToken) {
    let mut ticks = tokio::time::interval(UPKEEP);
    while stop.run_until_cancelled(ticks.tick()).await.is_some() {
        metrics.run_upkeep();
    }
}

fn router(readiness: Readiness, metrics: PrometheusHandle) -> Router {
    Router::new()
        .route("/livez", get(|| async { "ok\n" }))
        .route("/readyz", get(readyz).with_state(readiness))
        .route("/metrics", get(render).with_state(metrics))
}

async fn readyz(State(readiness): State<Readiness>) -> Response {
    let parts = readiness.states();
    let ready = !parts.is_empty() && parts.values().all(Result::is_ok);
    let components: serde_json::Map<_, _> = parts
        .into_iter()
        .map(|(name, state)| match state {
            Ok(()) => (name, json!({ "ready": true })),
            Err(reason) => (name, json!({ "ready": false, "reason": reason })),
        })
        .collect();
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let body = format!("{:#}\n", json!({ "ready": ready, "components": components }));
    (status, [(header::CONTENT_TYPE, "application/json")], body).into_response()
}

async fn render(State(metrics): State<PrometheusHandle>) -> Response {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], metrics.render()).into_response()
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    async fn connect(address: SocketAddr) -> TcpStream {
        TcpStream::connect(address).await.unwrap()
    }

    async fn get(address: SocketAddr, path: &str) -> String {
        let mut stream = connect(address).await;
        let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn health_and_metrics_are_answered_until_stopped() {
        let recorder = PrometheusBuilder::new().build_recorder();
        let handle = recorder.handle();
        metrics::with_local_recorder(&recorder, || metrics::counter!("offramp_things_total").increment(3));
        let listener = bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (readiness, stop) = (Readiness::default(), CancellationToken::new());
        let server = tokio::spawn(serve(listener, readiness.clone(), handle, stop.clone()));

        assert!(get(address, "/livez").await.starts_with("HTTP/1.1 200"));
        assert!(get(address, "/readyz").await.starts_with("HTTP/1.1 503"), "nothing has said that it is ready");

        let (lane, database) = (readiness.component("lane payment.failure"), readiness.component("mongodb"));
        lane.ready();
        database.not_ready("no primary");
        let answer = get(address, "/readyz").await;
        assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
        let body: serde_json::Value = serde_json::from_str(answer.split_once("\r\n\r\n").unwrap().1).unwrap();
        assert_eq!(body["components"]["mongodb"], serde_json::json!({ "ready": false, "reason": "no primary" }));
        assert_eq!(body["components"]["lane payment.failure"], serde_json::json!({ "ready": true }));

        database.not_ready(&"long ".repeat(1_000));
        assert_eq!(readiness.states()["mongodb"].as_ref().unwrap_err().len(), REASON_CHARS_MAX);
        database.ready();
        assert!(get(address, "/readyz").await.starts_with("HTTP/1.1 200"));
        drop(lane);
        assert_eq!(readiness.states()["lane payment.failure"], Err("stopped".to_owned()));

        assert!(get(address, "/metrics").await.contains("offramp_things_total 3"));
        // One that has asked half a question, and one that asks nothing more, hold up nobody.
        let (mut half, mut idle) = (connect(address).await, connect(address).await);
        half.write_all(b"GET /livez HTTP/1.1\r\n").await.unwrap();
        idle.write_all(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
        idle.read_u8().await.unwrap();
        stop.cancel();
        timeout(5 * GOODBYE_PATIENCE, server).await.expect("it waits for whoever asks nothing").unwrap();
    }

    #[tokio::test]
    async fn who_never_asks_is_not_heard_for_ever() {
        let handle = PrometheusBuilder::new().build_recorder().handle();
        let listener = bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let mut half = connect(listener.local_addr().unwrap()).await;
        tokio::spawn(serve(listener, Readiness::default(), handle, CancellationToken::new()));
        half.write_all(b"GET /livez HTTP/1.1\r\n").await.unwrap();
        let mut answer = Vec::new();
        timeout(3 * HEADERS_PATIENCE, half.read_to_end(&mut answer)).await.expect("it still waits").unwrap();
    }
}
