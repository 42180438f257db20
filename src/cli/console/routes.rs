//! The paths of the console.

use std::sync::Arc;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::middleware::from_fn_with_state;
use axum::routing::{get, post};

use super::app::App;
use super::failure::Failure;
use super::gate::{guard, require_changes};
use super::{change_page, dead_letters, emails, login, overview, page, records, requests, search};

/// The largest form, in bytes: a hundred selected rows have some 20 KB.
const FORM_BYTES_MAX: usize = 128 * 1024;

pub fn router(app: Arc<App>) -> Router {
    let changing = Router::new()
        .route("/emails/change", post(emails::actions::change))
        .route("/dead-letters/change", post(dead_letters::actions::change))
        .route("/requests/decide", post(requests::decide))
        .route_layer(from_fn_with_state(Arc::clone(&app), require_changes));
    Router::new()
        .route("/", get(overview::show))
        .route("/state", get(overview::live))
        .route("/requests", get(requests::list))
        .route("/subscription", get(records::subscription))
        .route("/account", get(records::account))
        .route("/search", get(search::show))
        .route("/emails", get(emails::list::show))
        .route("/emails/one", get(emails::one::show))
        .route("/emails/one/html", get(emails::one::html))
        .route("/emails/sent", get(emails::one::sent))
        .route("/emails/sent/html", get(emails::one::sent_html))
        .route("/dead-letters", get(dead_letters::pages::groups))
        .route("/dead-letters/refresh", post(dead_letters::pages::refresh))
        .route("/dead-letters/groups/{key}", get(dead_letters::pages::group))
        .route("/dead-letters/{handle}", get(dead_letters::pages::one))
        .route("/dead-letters/{handle}/body", get(dead_letters::pages::body))
        .route("/changes/{id}", get(change_page::show))
        .route("/changes/{id}/state", get(change_page::state))
        .merge(changing)
        .route("/login", get(login::show).post(login::submit))
        .route("/logout", post(login::end))
        .route("/console.css", get(page::style))
        .route("/console.js", get(page::script))
        .fallback(async || Failure::not_found("There is no such page."))
        .layer(DefaultBodyLimit::max(FORM_BYTES_MAX))
        .layer(from_fn_with_state(Arc::clone(&app), guard))
        .with_state(app)
}
