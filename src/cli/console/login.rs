//! Logging in with the token, and out.

use std::sync::Arc;
use std::time::Duration;

use axum::Form;
use axum::extract::{Query, State};
use axum::http::{HeaderMap, HeaderName, StatusCode, header};
use axum::response::{IntoResponse, Redirect, Response};
use maud::{Markup, html};
use serde::Deserialize;
use tokio::sync::{Mutex, Semaphore};
use tokio::time::sleep;

use super::access::NAME_CHARS_MAX;
use super::app::App;
use super::failure::Failure;
use super::html::plain;

/// The pause after a wrong token. Wrong ones are answered one after another; a right one does not wait for them.
const WRONG_TOKEN_PAUSE: Duration = Duration::from_secs(1);
static WRONG_TOKEN: Mutex<()> = Mutex::const_new(());
/// The wrong ones that wait for their answer: further ones would take all connections.
static WAITING: Semaphore = Semaphore::const_new(20);

#[derive(Deserialize)]
pub struct Wanted {
    #[serde(default)]
    next: String,
}

#[derive(Deserialize)]
pub struct Login {
    name: String,
    token: String,
    #[serde(default)]
    next: String,
}

pub async fn show(State(app): State<Arc<App>>, Query(wanted): Query<Wanted>) -> Response {
    if app.access.has_login() {
        form("", &wanted.next, None).into_response()
    } else {
        Redirect::to("/").into_response()
    }
}

pub async fn submit(State(app): State<Arc<App>>, headers: HeaderMap, Form(login): Form<Login>) -> Response {
    let name = login.name.trim();
    let is_name = !name.is_empty() && name.chars().count() <= NAME_CHARS_MAX && !name.chars().any(char::is_control);
    if !is_name {
        let why = format!("Give your name, with at most {NAME_CHARS_MAX} characters.");
        return (StatusCode::UNPROCESSABLE_ENTITY, form("", &login.next, Some(&why))).into_response();
    }
    let is_https = headers.get(HeaderName::from_static("x-forwarded-proto")).is_some_and(|scheme| scheme == "https");
    let Some(cookie) = app.access.log_in(name, &login.token, is_https) else {
        tracing::warn!(visitor = name, "console: login with a wrong token");
        let Ok(_waiting) = WAITING.try_acquire() else {
            let why =
                Failure(StatusCode::TOO_MANY_REQUESTS, "Too many wrong tokens at once: try again later.".to_owned());
            return why.into_response();
        };
        let _one_by_one = WRONG_TOKEN.lock().await;
        sleep(WRONG_TOKEN_PAUSE).await;
        return (StatusCode::FORBIDDEN, form(name, &login.next, Some("The token is wrong."))).into_response();
    };
    tracing::info!(visitor = name, "console: logged in");
    ([(header::SET_COOKIE, cookie)], Redirect::to(own_path(&login.next))).into_response()
}

pub async fn end(State(app): State<Arc<App>>, headers: HeaderMap) -> Response {
    let Some(cookie) = app.access.log_out(&headers) else { return Redirect::to("/").into_response() };
    ([(header::SET_COOKIE, cookie)], Redirect::to("/login")).into_response()
}

/// A path of the console, never another site.
fn own_path(next: &str) -> &str {
    let is_own = next.starts_with('/') && !next.starts_with("//") && !next.contains(['\\', '\r', '\n', '\t']);
    if is_own && next.is_ascii() { next } else { "/" }
}

fn form(name: &str, next: &str, problem: Option<&str>) -> Markup {
    plain(
        "Log in",
        &html! {
            h1 { "Log in" }
            @if let Some(problem) = problem { p.problem role="alert" { (problem) } }
            form.login method="post" action="/login" {
                input type="hidden" name="next" value=(next);
                label { "Your name" input name="name" value=(name) required autocomplete="username" maxlength=(NAME_CHARS_MAX); }
                label { "Token" input type="password" name="token" required autocomplete="current-password"; }
                p.hint { "Changes are logged under your name. The operator of the console has the token." }
                button { "Log in" }
            }
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_login_leads_to_the_console_only() {
        for (next, path) in [
            ("/emails?state=failed", "/emails?state=failed"),
            ("//evil.example", "/"),
            ("/\\evil.example", "/"),
            ("/\t/evil.example", "/"),
            ("https://evil.example", "/"),
            ("", "/"),
        ] {
            assert_eq!(own_path(next), path);
        }
    }
}
