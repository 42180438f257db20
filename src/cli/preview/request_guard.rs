//! Which requests are allowed.
//!
//! Other pages in the same browser must neither read the preview nor send emails through it. Requests are therefore answered only
//! if their `Host` is an IP address or `localhost`, which prevents DNS rebinding, and an email is sent only if the request comes
//! from the preview's own page.

use std::net::IpAddr;

use axum::extract::Request;
use axum::http::uri::Authority;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

/// Rejects requests of other pages.
pub async fn reject_foreign_requests(request: Request, next: Next) -> Response {
    let mut response = match rejection(request.method(), request.headers()) {
        Some(why) => (StatusCode::FORBIDDEN, format!("{why}\n")).into_response(),
        None => next.run(request).await,
    };
    for (name, value) in [
        (header::CACHE_CONTROL, "no-store"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    ] {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    response
}

/// Why a request is rejected. `None`: it is allowed.
fn rejection(method: &Method, headers: &HeaderMap) -> Option<&'static str> {
    let value = |name| headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok());
    let host = value(header::HOST).unwrap_or_default();
    if !is_here(host) {
        return Some("open this page at localhost or at an IP address; other host names are rejected");
    }
    let is_read = matches!(*method, Method::GET | Method::HEAD);
    let from_elsewhere = headers.contains_key(header::ORIGIN)
        && value(header::ORIGIN).is_none_or(|origin| origin != format!("http://{host}"));
    (!is_read && from_elsewhere).then_some("only the page of `offramp preview` can send emails")
}

/// Whether a `Host` is `localhost` or an IP address, so that it cannot be a foreign name that resolves to this machine.
fn is_here(host: &str) -> bool {
    let Ok(authority) = host.parse::<Authority>() else { return false };
    let name = authority.host().trim_start_matches('[').trim_end_matches(']');
    name == "localhost" || name.parse::<IpAddr>().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_of_other_pages_are_rejected() {
        #[track_caller]
        fn check(method: &Method, host: Option<&str>, origin: Option<&str>, answered: bool) {
            let mut headers = HeaderMap::new();
            for (name, value) in [(header::HOST, host), (header::ORIGIN, origin)] {
                if let Some(value) = value {
                    headers.insert(name, value.parse().unwrap());
                }
            }
            assert_eq!(rejection(method, &headers).is_none(), answered, "{method} {host:?} {origin:?}");
        }
        for host in ["localhost:9465", "localhost", "127.0.0.1:9465", "[::1]:9465", "192.0.2.7:80"] {
            check(&Method::GET, Some(host), None, true);
            check(&Method::POST, Some(host), None, true);
            check(&Method::POST, Some(host), Some(&format!("http://{host}")), true);
            check(&Method::GET, Some(host), Some("https://evil.example"), true);
            for origin in ["https://evil.example", "null", "http://localhost:1", "http://127.0.0.1", ""] {
                check(&Method::POST, Some(host), Some(origin), false);
            }
        }
        for host in [
            "evil.example:9465",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "",
            "a@b@c",
            "evil.example#127.0.0.1",
        ] {
            check(&Method::GET, Some(host), None, false);
        }
        check(&Method::GET, None, None, false);
    }
}
