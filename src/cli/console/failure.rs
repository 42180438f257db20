//! What a visitor reads when a page cannot be shown.

use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use maud::html;
use offramp::advice;
use offramp::amqp::DeadLettersError;
use offramp::store::StoreError;

use super::html::plain;

/// A status and a sentence.
#[derive(Debug)]
pub struct Failure(pub StatusCode, pub String);

impl Failure {
    pub fn not_found(what: impl Into<String>) -> Self {
        Self(StatusCode::NOT_FOUND, what.into())
    }

    pub fn invalid(what: impl Into<String>) -> Self {
        Self(StatusCode::UNPROCESSABLE_ENTITY, what.into())
    }

    pub fn forbidden(what: impl Into<String>) -> Self {
        Self(StatusCode::FORBIDDEN, what.into())
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        let status = match error {
            StoreError::Permanent(_) | StoreError::Denied(_) => StatusCode::INTERNAL_SERVER_ERROR,
            StoreError::TimedOut | StoreError::Unavailable(_) => StatusCode::SERVICE_UNAVAILABLE,
        };
        Self(status, format!("MongoDB: {}", error.reason()))
    }
}

impl From<DeadLettersError> for Failure {
    fn from(error: DeadLettersError) -> Self {
        Self(StatusCode::SERVICE_UNAVAILABLE, advice::append(&error, advice::dead_letters_error(&error)))
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let Self(status, sentence) = self;
        let title = match status {
            StatusCode::NOT_FOUND => "Not found",
            StatusCode::FORBIDDEN => "Not allowed",
            StatusCode::UNPROCESSABLE_ENTITY => "That does not work",
            StatusCode::SERVICE_UNAVAILABLE => "Unavailable",
            _ => "Something went wrong",
        };
        let page = plain(title, &html! { h1 { (title) } p { (sentence) } p { a href="/" { "Back to the overview" } } });
        (status, page).into_response()
    }
}

pub type Answer = Result<Response, Failure>;
