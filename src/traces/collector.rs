//! The connection to a collector: an HTTP client for the OTLP exporter, over the TLS of all other connections.

use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use opentelemetry_http::{HttpClient, HttpError, Request, Response};
use rustls::ClientConfig;
use tokio::runtime::Handle;
use tokio::time::timeout;

/// The largest response that is read, in bytes. A collector answers with a few.
const RESPONSE_BYTES_MAX: usize = 64 * 1024;

/// Sends requests on the runtime of the program, although the exporter calls it from a thread of its own.
#[derive(Debug)]
pub(super) struct CollectorClient {
    client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
    runtime: Handle,
    deadline: Duration,
}

impl CollectorClient {
    /// A client whose requests take at most `deadline` each.
    pub(super) fn new(tls: ClientConfig, runtime: Handle, deadline: Duration) -> Self {
        let connector = HttpsConnectorBuilder::new().with_tls_config(tls).https_or_http().enable_http1().build();
        Self { client: Client::builder(TokioExecutor::new()).build(connector), runtime, deadline }
    }
}

impl HttpClient for CollectorClient {
    // What the macro `async_trait` makes of an asynchronous function.
    fn send_bytes<'a, 'b>(
        &'a self,
        request: Request<Bytes>,
    ) -> Pin<Box<dyn Future<Output = Result<Response<Bytes>, HttpError>> + Send + 'b>>
    where
        'a: 'b,
        Self: 'b,
    {
        let (client, deadline) = (self.client.clone(), self.deadline);
        let sending = async move {
            let (head, body) = client.request(request.map(Full::new)).await?.into_parts();
            let body = Limited::new(body, RESPONSE_BYTES_MAX).collect().await?.to_bytes();
            Ok::<_, HttpError>(Response::from_parts(head, body))
        };
        // Also the timer needs the runtime.
        let sent = self.runtime.spawn(async move { timeout(deadline, sending).await });
        Box::pin(async move { sent.await?.map_err(|_elapsed| "no response in time")? })
    }
}
