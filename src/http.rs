//! The HTTP server, and what a worker serves: `/livez`, `/readyz` (see [`crate::health`]) and `/metrics` (see [`crate::metrics`]).

use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::health::{self, Readiness};
use crate::metrics::Exposition;
use crate::outage::Outage;

/// How long a client may take to send the headers of a request, and stay idle between two requests.
const HEADERS_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the responses in flight may take when the server stops.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(1);
/// The delay before the next attempt when no connection can be accepted.
const ACCEPT_DELAY: Duration = Duration::from_millis(500);

/// Binds the address before the worker starts, so that a port in use is reported at once.
///
/// # Errors
/// When the address cannot be bound.
pub async fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    TcpListener::bind(address).await
}

/// Serves health and metrics of a worker until `stop`.
pub async fn serve_worker(listener: TcpListener, readiness: Readiness, metrics: Exposition, stop: CancellationToken) {
    let upkeep = tokio::spawn(metrics.clone().keep_up(stop.clone()));
    let router = health::router(readiness).route("/metrics", get(render).with_state(metrics));
    // Probes must be answered, whoever else connects.
    serve(listener, router, usize::MAX, stop).await;
    upkeep.abort();
}

/// Serves requests over at most `connections_max` connections at a time until `stop`, then finishes the responses in flight within
/// `SHUTDOWN_TIMEOUT`.
pub async fn serve(listener: TcpListener, router: Router, connections_max: usize, stop: CancellationToken) {
    let service = TowerToHyperService::new(router);
    let mut connections = JoinSet::new();
    let outage = Outage::default();
    while let Some(accepted) = stop.run_until_cancelled(listener.accept()).await {
        while connections.len() >= connections_max {
            if stop.run_until_cancelled(connections.join_next()).await.is_none() {
                break;
            }
        }
        match accepted {
            Ok((stream, _)) => {
                outage.ended();
                connections.spawn(serve_connection(stream, service.clone(), stop.clone()));
            }
            Err(error) => {
                // Usually too many open files, which is temporary.
                if outage.failed(&error.to_string()) {
                    tracing::warn!(%error, "cannot accept an HTTP connection; retrying");
                }
                stop.run_until_cancelled(sleep(ACCEPT_DELAY)).await;
            }
        }
        while connections.try_join_next().is_some() {}
    }
    // Connections that are still open then are aborted with the set.
    drop(timeout(SHUTDOWN_TIMEOUT, async { while connections.join_next().await.is_some() {} }).await);
}

async fn serve_connection(stream: TcpStream, service: TowerToHyperService<Router>, stop: CancellationToken) {
    let mut server = http1::Builder::new();
    server.timer(TokioTimer::new()).header_read_timeout(HEADERS_TIMEOUT);
    let mut connection = pin!(server.serve_connection(TokioIo::new(stream), service));
    if stop.run_until_cancelled(connection.as_mut()).await.is_none() {
        connection.as_mut().graceful_shutdown();
        // A client that disconnects is not an error.
        drop(connection.await);
    }
}

async fn render(State(metrics): State<Exposition>) -> Response {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], metrics.render()).into_response()
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;
    use crate::metrics::exposition_for_tests;
    use crate::metrics::labels::EventOutcome;

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
    async fn health_and_metrics_are_served_until_stopped() {
        let (metrics, exposition) = exposition_for_tests();
        metrics.events.of((EventOutcome::Published,)).increment(3);
        let listener = bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (readiness, stop) = (Readiness::default(), CancellationToken::new());
        let server = tokio::spawn(serve_worker(listener, readiness.clone(), exposition, stop.clone()));

        assert!(get(address, "/livez").await.starts_with("HTTP/1.1 200"));
        assert!(get(address, "/readyz").await.starts_with("HTTP/1.1 503"), "no part has reported");

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

        assert!(get(address, "/metrics").await.contains("offramp_events_total{outcome=\"published\"} 3"));
        // Neither an incomplete request nor an idle connection delays the shutdown.
        let (mut incomplete, mut idle) = (connect(address).await, connect(address).await);
        incomplete.write_all(b"GET /livez HTTP/1.1\r\n").await.unwrap();
        idle.write_all(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
        idle.read_u8().await.unwrap();
        stop.cancel();
        timeout(5 * SHUTDOWN_TIMEOUT, server).await.expect("it waits for idle clients").unwrap();
    }

    #[tokio::test]
    async fn idle_connection_times_out() {
        let (_, exposition) = exposition_for_tests();
        let listener = bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let mut incomplete = connect(listener.local_addr().unwrap()).await;
        tokio::spawn(serve_worker(listener, Readiness::default(), exposition, CancellationToken::new()));
        incomplete.write_all(b"GET /livez HTTP/1.1\r\n").await.unwrap();
        let mut answer = Vec::new();
        timeout(3 * HEADERS_TIMEOUT, incomplete.read_to_end(&mut answer)).await.expect("it still waits").unwrap();
    }
}
