//! The page of a change: its progress, and how it ended.

use std::sync::Arc;

use axum::extract::Path;
use axum::response::IntoResponse;
use maud::html;

use super::changes::Change;
use super::failure::{Answer, Failure};
use super::page::{Request, Section};

pub async fn show(request: Request, Path(id): Path<u64>) -> Answer {
    let change = found(&request, id)?;
    let live = change.end().is_none().then(|| format!("/changes/{id}/state"));
    let content = html! {
        h1 { (change.what) }
        div data-live=[live] data-every="1" aria-live="polite" { (change.state()) }
        p { a href=(change.back) { "Back" } }
    };
    Ok(request.page(Section::Other, &change.what, &content))
}

/// What the page of a change refreshes.
pub async fn state(request: Request, Path(id): Path<u64>) -> Answer {
    let change = found(&request, id)?;
    // The script stops asking then.
    let ended = change.end().is_some().then_some([("x-live", "ended")]);
    let state = change.state().into_response();
    Ok(match ended {
        Some(headers) => (headers, state).into_response(),
        None => state,
    })
}

fn found(request: &Request, id: u64) -> Result<Arc<Change>, Failure> {
    let gone =
        "There is no such change. Changes are remembered until the console ends, at most 50; the log has all of them.";
    request.app.changes.find(id).ok_or_else(|| Failure::not_found(gone))
}
