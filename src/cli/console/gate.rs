//! What every request passes: [`Access`], and the headers of every response.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::extract::{Request, State};
use axum::http::{HeaderName, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Redirect, Response};
use tokio::time::timeout;

use super::access::Access;
use super::app::App;
use super::failure::Failure;
use super::html::encoded;

/// How long a request may take.
const ANSWER_MAX: Duration = Duration::from_secs(60);

/// What browsers may load: styles, the script, pictures and frames of the console itself.
const POLICY: &str = "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self' data:; connect-src 'self'; \
    form-action 'self'; frame-src 'self'; base-uri 'none'; frame-ancestors 'none'";

/// Lets a request pass, with its [`Visitor`], or answers it.
pub async fn guard(State(app): State<Arc<App>>, mut request: Request, next: Next) -> Response {
    let began_at = Instant::now();
    let path = request.uri().path();
    let is_public = matches!(path, "/login" | "/console.css" | "/console.js");
    let mut response = if let Some(why) = app.access.rejection(request.method(), request.headers()) {
        Failure::forbidden(why).into_response()
    } else if let Some(visitor) = app.access.visitor(request.headers()) {
        request.extensions_mut().insert(visitor);
        answer(next, request).await
    } else if is_public {
        answer(next, request).await
    } else {
        unknown_visitor(&app.access, &request)
    };
    let headers = response.headers_mut();
    for (name, value) in [
        (header::CACHE_CONTROL, "no-store"),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::REFERRER_POLICY, "same-origin"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
        (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    ] {
        headers.entry(name).or_insert(HeaderValue::from_static(value));
    }
    let milliseconds = began_at.elapsed().as_secs_f64() * 1_000.0;
    if let Ok(timing) = HeaderValue::from_str(&format!("total;dur={milliseconds:.1}")) {
        headers.insert(HeaderName::from_static("server-timing"), timing);
    }
    response
}

/// The answer, unless the browser takes too long to send its form, or a server to answer.
async fn answer(next: Next, request: Request) -> Response {
    timeout(ANSWER_MAX, next.run(request)).await.unwrap_or_else(|_| {
        let late = format!(
            "This took longer than {} s. A change that had begun goes on: see the overview.",
            ANSWER_MAX.as_secs()
        );
        Failure(StatusCode::SERVICE_UNAVAILABLE, late).into_response()
    })
}

fn unknown_visitor(access: &Access, request: &Request) -> Response {
    if !access.has_login() {
        let why = "The reverse proxy did not say who you are (OFFRAMP_CONSOLE_IDENTITY_HEADER).";
        return Failure(StatusCode::UNAUTHORIZED, why.to_owned()).into_response();
    }
    if request.method() != Method::GET {
        return Failure(StatusCode::UNAUTHORIZED, "Your session has ended: log in again.".to_owned()).into_response();
    }
    let wanted = request.uri().path_and_query().map_or("/", |path| path.as_str());
    Redirect::to(&format!("/login?next={}", encoded(wanted))).into_response()
}

/// Rejects whoever may not change something.
pub async fn require_changes(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    if app.allow_changes {
        next.run(request).await
    } else {
        Failure::forbidden(
            "This console is read-only. `offramp console --allow-changes` lets visitors change something.",
        )
        .into_response()
    }
}
