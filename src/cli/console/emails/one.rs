//! One email as its recipient sees it: one that waits or failed, or a sent one that is kept.

use axum::extract::Query;
use axum::http::header;
use axum::response::IntoResponse;
use maud::{Markup, html};
use offramp::store::outbox::entry::{Content, OutboxEntry};
use offramp::store::sent_emails::SentEmailDocument;
use offramp_domain::notification::Notification;
use serde::Deserialize;
use uuid::Uuid;

use super::EntryPath;
use crate::cli::console::failure::{Answer, Failure};
use crate::cli::console::html::{ago, document_link, encoded, facts, instant, no_default, text};
use crate::cli::console::page::{Request, Section};
use crate::cli::terminal::count;

/// The policy of an email in its frame: nothing is loaded from anywhere, and nothing runs.
const EMAIL_POLICY: &str =
    "default-src 'none'; img-src data:; style-src 'unsafe-inline'; frame-ancestors 'self'; sandbox";

#[derive(Deserialize)]
pub struct Wanted {
    entry: String,
}

pub async fn show(request: Request, Query(Wanted { entry }): Query<Wanted>) -> Answer {
    let path = parse(&entry)?;
    let (entry, email) = found(&request, &path).await?;
    let source = format!("/emails/one/html?entry={}", encoded(&path.to_field()));
    let content = html! {
        p.path { a href="/emails" { "Emails" } }
        h1 { (subject(&request, &email)) }
        @if let Some(error) = &entry.error { p.error { (error) } }
        (facts(&[
            ("To", text(Some(&recipient(&email)))),
            ("Template", text(Some(&email.template.to_string()))),
            ("About", Some(document_link(path.collection.as_str(), &path.document))),
            ("Decided", entry.committed_at.map(|at| ago(at.to_chrono()))),
            ("Tried", Some(html! { (count(u64::try_from(entry.attempts).unwrap_or_default(), "time")) })),
            ("Failed", entry.failed_at.map(|at| ago(at.to_chrono()))),
            ("Next attempt", entry.due.map(|at| ago(at.to_chrono()))),
            ("Message-ID", message_id(&request, &entry.id, &email)),
            ("Entry", text(Some(&entry.id))),
        ]))
        @if entry.failed_at.is_some() { (actions(&request, &path)) }
        (both_parts(&request, &email, &source))
    };
    Ok(request.page(Section::Emails, "Email", &content))
}

#[derive(Deserialize)]
pub struct WantedSent {
    id: String,
}

/// A sent email, where they are kept.
pub async fn sent(request: Request, Query(WantedSent { id }): Query<WantedSent>) -> Answer {
    let sent = found_sent(&request, &id).await?;
    let source = format!("/emails/sent/html?id={}", encoded(&id));
    let content = html! {
        h1 { (subject(&request, &sent.email)) }
        p { span.badge.good { "accepted by the mail server" } " " (ago(sent.sent_at.to_chrono())) }
        (facts(&[
            ("To", text(Some(&recipient(&sent.email)))),
            ("Template", text(Some(&sent.email.template.to_string()))),
            ("About", Some(document_link(&sent.collection, &sent.document_id))),
            ("Sent", Some(instant(sent.sent_at.to_chrono()))),
            ("Kept until", Some(instant(sent.expires_at.to_chrono()))),
            ("Message-ID", message_id(&request, &sent.id, &sent.email)),
        ]))
        (both_parts(&request, &sent.email, &source))
    };
    Ok(request.page(Section::Other, "Sent email", &content))
}

async fn found_sent(request: &Request, id: &str) -> Result<SentEmailDocument, Failure> {
    let sent = request.app.store.sent_email(id).await?;
    let gone = "This email is not kept: OFFRAMP_KEEP_EMAILS_DAYS says for how long workers keep sent emails.";
    sent.ok_or_else(|| Failure::not_found(gone))
}

fn subject(request: &Request, email: &Notification) -> String {
    let rendered = request.app.composer.templates.render(email);
    rendered.map_or_else(|_| email.template.to_string(), |rendered| rendered.subject)
}

fn recipient(email: &Notification) -> String {
    let address = &email.to.email;
    email.to.name.as_ref().map_or_else(|| address.clone(), |name| format!("{name} <{address}>"))
}

fn message_id(request: &Request, entry_id: &str, email: &Notification) -> Option<Markup> {
    let id = Uuid::parse_str(entry_id).ok()?;
    text(Some(&request.app.composer.identify(id, email).message_id))
}

/// The HTML part, in a frame from `source`, and the text part.
fn both_parts(request: &Request, email: &Notification, source: &str) -> Markup {
    match request.app.composer.templates.render(email) {
        Ok(rendered) => html! {
            h2 { "The email" }
            iframe title="The email" sandbox="" src=(source) {}
            p.hint { "Its facts are those of the decision; its words are those of this console's templates. Pictures from elsewhere are not loaded here, and links do nothing." }
            h2 { "As plain text" }
            pre tabindex="0" aria-label="Plain text" { (rendered.text) }
        },
        Err(error) => html! { p.problem role="alert" { "It cannot be shown: " (error) } },
    }
}

fn actions(request: &Request, path: &EntryPath) -> Markup {
    html! {
        @if request.app.allow_changes {
            form method="post" action="/emails/change" {
                (no_default())
                input type="hidden" name="back" value="/emails";
                input type="hidden" name="entry" value=(path.to_field());
                p.actions {
                    button name="action" value="retry-selected" { "Retry" } " "
                    button name="action" value="readdress-selected" { "Retry at the current address" } " "
                    button.danger name="action" value="drop-selected" { "Drop …" }
                }
                p.actions {
                    label { "Another address " input type="email" name="address" maxlength="254" autocomplete="off"; } " "
                    button name="action" value="address-selected" { "Retry there" }
                }
                p.hint { "The current address is that of the account or organization now. Another address is for this email alone; correct the document, too." }
            }
        }
    }
}

/// The HTML part of an email that waits or failed, for its frame.
pub async fn html(request: Request, Query(Wanted { entry }): Query<Wanted>) -> Answer {
    let (_, email) = found(&request, &parse(&entry)?).await?;
    html_part(&request, &email)
}

/// The HTML part of a sent email, for its frame.
pub async fn sent_html(request: Request, Query(WantedSent { id }): Query<WantedSent>) -> Answer {
    html_part(&request, &found_sent(&request, &id).await?.email)
}

fn html_part(request: &Request, email: &Notification) -> Answer {
    let rendered = request.app.composer.templates.render(email);
    let rendered = rendered.map_err(|error| Failure::invalid(format!("It cannot be shown: {error}")))?;
    let headers = [(header::CONTENT_TYPE, "text/html; charset=utf-8"), (header::CONTENT_SECURITY_POLICY, EMAIL_POLICY)];
    Ok((headers, rendered.html).into_response())
}

fn parse(entry: &str) -> Result<EntryPath, Failure> {
    EntryPath::parse(entry).ok_or_else(|| Failure::not_found("This link names no email."))
}

async fn found(request: &Request, path: &EntryPath) -> Result<(OutboxEntry, Notification), Failure> {
    let found = request.app.store.outbox_entry(path.collection, &path.document, &path.entry).await?;
    let Some(entry) = found else {
        return Err(Failure::not_found("This email was sent or dropped meanwhile, or this version cannot read it."));
    };
    match &entry.content {
        Content::Mail(email) => {
            let email = email.clone();
            Ok((entry, email))
        }
        Content::Event(_) => Err(Failure::not_found("This is an event, not an email.")),
    }
}
