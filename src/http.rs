//! The HTTP server of a worker: `/livez`, `/readyz`, `/metrics`.

use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use metrics_exporter_prometheus::PrometheusHandle;
use serde_json::json;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::health::Readiness;

/// How long a client may take to send a request's headers, and be silent between two requests.
const HEADERS_TIMEOUT: Duration = Duration::from_secs(10);
/// How long responses in flight may take when the worker stops.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(1);
/// How long to wait when no connection can be accepted.
const ACCEPT_PAUSE: Duration = Duration::from_millis(500);
/// How often the recorder tidies up what its histograms hold.
const UPKEEP: Duration = Duration::from_secs(5);

/// Binds the address, so that a port in use is an error here and not later.
///
/// # Errors
/// When the address is not free, or not an address of this machine.
pub async fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    TcpListener::bind(address).await
}

/// Answers on `listener` until `stop`, then finishes the answers in hand, for `SHUTDOWN_TIMEOUT`.
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
    drop(timeout(SHUTDOWN_TIMEOUT, async { while connections.join_next().await.is_some() {} }).await);
    upkeep.abort();
}

/// Answers what is asked on one connection.
async fn answer(stream: TcpStream, service: TowerToHyperService<Router>, stop: CancellationToken) {
    let mut server = http1::Builder::new();
    server.timer(TokioTimer::new()).header_read_timeout(HEADERS_TIMEOUT);
    let mut connection = pin!(server.serve_connection(TokioIo::new(stream), service));
    if stop.run_until_cancelled(connection.as_mut()).await.is_none() {
        connection.as_mut().graceful_shutdown();
        // A client that disconnects is not worth a log line.
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
    use metrics_exporter_prometheus::PrometheusBuilder;
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
    async fn health_and_metrics_are_served_until_shutdown() {
        let recorder = PrometheusBuilder::new().build_recorder();
        let handle = recorder.handle();
        metrics::with_local_recorder(&recorder, || metrics::counter!("offramp_things_total").increment(3));
        let listener = bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (readiness, stop) = (Readiness::default(), CancellationToken::new());
        let server = tokio::spawn(serve(listener, readiness.clone(), handle, stop.clone()));

        assert!(get(address, "/livez").await.starts_with("HTTP/1.1 200"));
        assert!(get(address, "/readyz").await.starts_with("HTTP/1.1 503"), "no part has reported that it is ready");

        let (lane, database) = (readiness.component("lane payment.failure"), readiness.component("mongodb"));
        lane.ready();
        database.not_ready("no primary");
        let answer = get(address, "/readyz").await;
        assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
        let body: serde_json::Value = serde_json::from_str(answer.split_once("\r\n\r\n").unwrap().1).unwrap();
        assert_eq!(body["components"]["mongodb"], serde_json::json!({ "ready": false, "reason": "no primary" }));
        assert_eq!(body["components"]["lane payment.failure"], serde_json::json!({ "ready": true }));

        database.ready();
        assert!(get(address, "/readyz").await.starts_with("HTTP/1.1 200"));

        assert!(get(address, "/metrics").await.contains("offramp_things_total 3"));
        // A client with half a request, and one that asks nothing more, do not delay the shutdown.
        let (mut half, mut idle) = (connect(address).await, connect(address).await);
        half.write_all(b"GET /livez HTTP/1.1\r\n").await.unwrap();
        idle.write_all(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
        idle.read_u8().await.unwrap();
        stop.cancel();
        timeout(5 * SHUTDOWN_TIMEOUT, server).await.expect("it waits for an idle client").unwrap();
    }

    #[tokio::test]
    async fn idle_connection_times_out() {
        let handle = PrometheusBuilder::new().build_recorder().handle();
        let listener = bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let mut half = connect(listener.local_addr().unwrap()).await;
        tokio::spawn(serve(listener, Readiness::default(), handle, CancellationToken::new()));
        half.write_all(b"GET /livez HTTP/1.1\r\n").await.unwrap();
        let mut answer = Vec::new();
        timeout(3 * HEADERS_TIMEOUT, half.read_to_end(&mut answer)).await.expect("it still waits").unwrap();
    }
}
