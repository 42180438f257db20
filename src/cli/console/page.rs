//! What all pages share: header and navigation.

use std::sync::Arc;

use axum::extract::FromRequestParts;
use axum::http::header;
use axum::http::request::Parts;
use axum::response::{IntoResponse, Response};
use maud::{DOCTYPE, Markup, html};

use super::access::Visitor;
use super::app::App;
use super::failure::Failure;
use super::html::head;

/// A part of the console, as the navigation names it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Section {
    Overview,
    Requests,
    Emails,
    DeadLetters,
    /// A page that no entry of the navigation leads to.
    Other,
}

const NAVIGATION: [(Section, &str, &str); 4] = [
    (Section::Overview, "/", "Overview"),
    (Section::Requests, "/requests", "Requests"),
    (Section::Emails, "/emails", "Emails"),
    (Section::DeadLetters, "/dead-letters", "Dead letters"),
];

/// The state and the visitor of a request: what every handler needs.
pub struct Request {
    pub app: Arc<App>,
    pub visitor: Visitor,
}

impl FromRequestParts<Arc<App>> for Request {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self, Failure> {
        let visitor = parts.extensions.get::<Visitor>().cloned();
        let visitor = visitor.ok_or_else(|| Failure::forbidden("This page needs a visitor."))?;
        Ok(Self { app: Arc::clone(app), visitor })
    }
}

impl Request {
    /// A page with header and navigation.
    pub fn page(&self, section: Section, title: &str, content: &Markup) -> Response {
        self.page_with_search(section, title, "", content)
    }

    /// The same, with what was searched for.
    pub fn page_with_search(&self, section: Section, title: &str, searched: &str, content: &Markup) -> Response {
        let page = html! {
            (DOCTYPE)
            html lang="en" {
                (head(title))
                body {
                    a.skip href="#content" { "Skip to the content" }
                    header {
                        p.brand { a href="/" { "Offramp" } }
                        nav aria-label="Pages" {
                            @for (own, path, name) in NAVIGATION {
                                a href=(path) aria-current=[(own == section).then_some("page")] { (name) }
                            }
                        }
                        form.search role="search" action="/search" {
                            input type="search" name="q" value=(searched) required maxlength="320" aria-label="Search"
                                placeholder="Email address, id, Message-ID" autocomplete="off" spellcheck="false";
                            button { "Search" }
                        }
                        div.visitor {
                            span { (self.visitor.name) }
                            @if !self.app.allow_changes { span.badge title="offramp console --allow-changes lets visitors change something" { "read-only" } }
                            @if self.visitor.has_session {
                                form method="post" action="/logout" { button.quiet { "Log out" } }
                            }
                        }
                    }
                    main id="content" tabindex="-1" { (content) }
                    script src="/console.js" defer {}
                }
            }
        };
        page.into_response()
    }
}

pub async fn style() -> Response {
    ([(header::CONTENT_TYPE, "text/css; charset=utf-8")], include_str!("console.css")).into_response()
}

pub async fn script() -> Response {
    ([(header::CONTENT_TYPE, "text/javascript; charset=utf-8")], include_str!("console.js")).into_response()
}
