//! The HTTP server of the preview: routes, and which requests are allowed.
//!
//! Other pages in the same browser must neither read the preview nor send emails through it. Requests are therefore answered only
//! if their `Host` is an IP address or `localhost`, which prevents DNS rebinding, and an email is sent only if the request comes
//! from the preview's own page.

use std::convert::Infallible;
use std::net::IpAddr;
use std::sync::Arc;

use axum::extract::{Path, Request, State};
use axum::http::uri::Authority;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use axum::middleware::{Next, from_fn};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use futures_util::{Stream, StreamExt, stream};
use offramp::tls::Tls;
use offramp::{advice, clock};
use offramp_domain::contact::Mailbox;
use offramp_domain::notification::Notification;
use offramp_mail::message::Origin;
use offramp_mail::samples::samples;
use offramp_mail::{
    AddressError, ComposedEmail, Deadlines, DkimSigner, EmailKind, MailConnection, MailUrl, RenderedEmail, Sender,
    SmtpName, Templates, Transport, compose,
};
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::gallery::Gallery;

/// The page. Each response replaces `{nonce}`, without which browsers run no script and apply no style.
const PAGE: &str = include_str!("page.html");

/// Replaces the samples' logo, whose URL does not exist.
const LOGO: &str = concat!(
    "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"240\" height=\"96\">",
    "<rect width=\"240\" height=\"96\" rx=\"12\" fill=\"#ffffff\"/>",
    "<text x=\"120\" y=\"62\" font-size=\"40\" font-family=\"sans-serif\" fill=\"#20242a\" text-anchor=\"middle\">",
    "Logo</text>",
    "</svg>"
);

const LOGO_PATH: &str = "/logo.svg";

/// Locales with the currencies of the samples.
const READERS: [&str; 3] = ["en-CA", "es-MX", "fr-CA"];

/// The policy of an email in a frame: no scripts, no forms, nothing from other sites except images; links open new windows.
const MAIL_POLICY: &str = "default-src 'none'; img-src 'self' http: https: data:; style-src 'unsafe-inline'; \
    frame-ancestors 'self'; sandbox allow-same-origin allow-popups allow-popups-to-escape-sandbox";

/// The server that samples are sent to.
#[derive(Clone)]
pub struct MailServer {
    pub url: MailUrl,
    pub name: SmtpName,
    pub tls: Tls,
}

/// The state of all routes.
pub struct Pages {
    gallery: Arc<Gallery>,
    sender: Sender,
    signer: Option<Arc<DkimSigner>>,
    mail_server: MailServer,
    stop: CancellationToken,
}

impl Pages {
    pub fn new(
        gallery: Arc<Gallery>,
        sender: Sender,
        signer: Option<Arc<DkimSigner>>,
        mail_server: MailServer,
        stop: CancellationToken,
    ) -> Self {
        Self { gallery, sender, signer, mail_server, stop }
    }

    pub fn router(self) -> Router {
        Router::new()
            .route("/", get(page))
            .route(LOGO_PATH, get(logo))
            .route("/changes", get(changes))
            .route("/mails", get(list))
            .route("/mails/{locale}/{mail}/{variant}", get(show))
            .route("/mails/{locale}/{mail}/{variant}/light.html", get(light))
            .route("/mails/{locale}/{mail}/{variant}/dark.html", get(dark))
            .route("/mails/{locale}/{mail}/{variant}/mail.eml", get(eml))
            .route("/mails/{locale}/{mail}/{variant}/send", post(send))
            .with_state(Arc::new(self))
            .layer(from_fn(reject_foreign_requests))
    }

    /// The email of a path.
    fn find(
        &self,
        EmailPath(locale, mail, variant): &EmailPath,
    ) -> Result<(Notification, RenderedEmail), ErrorResponse> {
        let nothing = || ErrorResponse(StatusCode::NOT_FOUND, format!("there is no email {mail}, {variant}"));
        let kind = EmailKind::all().find(|kind| kind.to_string() == *mail).ok_or_else(nothing)?;
        let sample =
            samples(kind.template, kind.recipient, locale).into_iter().find(|sample| sample.variant == variant);
        let notification = sample.ok_or_else(nothing)?.notification;
        let templates = self.gallery.now().templates;
        let rendered = templates
            .render(&notification)
            .map_err(|error| ErrorResponse(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))?;
        Ok((notification, rendered))
    }

    fn compose(&self, notification: &Notification, rendered: RenderedEmail) -> Result<ComposedEmail, AddressError> {
        let origin = Origin { entry_id: Uuid::new_v4(), conversation_id: Uuid::new_v4() };
        let composed = compose(&self.sender, origin, notification, rendered, clock::now())?;
        Ok(composed.signed_by(self.signer.clone()))
    }

    /// The email as it would be sent, in bytes.
    fn source(&self, named: &EmailPath) -> Result<Vec<u8>, ErrorResponse> {
        let (notification, rendered) = self.find(named)?;
        let bytes = self.compose(&notification, rendered)?.bytes(false);
        bytes.map_err(|error| ErrorResponse(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))
    }

    /// Sends an email, and returns the server's reply.
    async fn send(&self, composed: &ComposedEmail) -> Result<String, String> {
        let MailServer { url, name, tls } = self.mail_server.clone();
        let transport = tokio::task::spawn_blocking(move || {
            let tls = tls.client_config().map_err(|error| error.to_string())?;
            Transport::new(&url, name, tls, Deadlines::interactive())
                .map_err(|error| advice::append(&error, advice::mail_config_error(&error)))
        })
        .await
        .map_err(|error| error.to_string())??;
        let mut connection = MailConnection::new(Arc::new(transport));
        let answer = connection.send(composed).await;
        let answer = answer.map_err(|error| advice::append(&error, advice::send_error(&error)))?;
        connection.quit().await;
        Ok(answer)
    }
}

/// The path of an email: locale, name of its template file, variant.
#[derive(Debug, Deserialize)]
struct EmailPath(String, String, String);

/// A status and a sentence.
struct ErrorResponse(StatusCode, String);

impl IntoResponse for ErrorResponse {
    fn into_response(self) -> Response {
        (self.0, format!("{}\n", self.1)).into_response()
    }
}

impl From<AddressError> for ErrorResponse {
    fn from(error: AddressError) -> Self {
        Self(StatusCode::UNPROCESSABLE_ENTITY, error.to_string())
    }
}

type App = State<Arc<Pages>>;

async fn page() -> Response {
    let nonce = Uuid::new_v4().simple().to_string();
    let policy = format!(
        "default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; connect-src 'self'; \
         frame-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    );
    let headers =
        [(header::CONTENT_TYPE, "text/html; charset=utf-8"), (header::CONTENT_SECURITY_POLICY, policy.as_str())];
    (headers, PAGE.replace("{nonce}", &nonce)).into_response()
}

async fn logo() -> Response {
    ([(header::CONTENT_TYPE, "image/svg+xml")], LOGO).into_response()
}

/// All emails, and the errors in the templates.
#[derive(Serialize)]
struct List {
    /// The directory whose files replace built-in templates.
    directory: Option<String>,
    /// The mail server of samples.
    smtp_url: String,
    /// The locales of readers.
    locales: Vec<String>,
    mails: Vec<Listed>,
    problems: Vec<Problem>,
}

#[derive(Serialize)]
struct Listed {
    name: String,
    template: &'static str,
    recipient: &'static str,
    variants: Vec<&'static str>,
}

#[derive(Serialize)]
struct Problem {
    file: String,
    line: Option<usize>,
    message: String,
}

async fn list(State(app): App) -> Json<List> {
    let shown = app.gallery.now();
    let problems = shown.problems.into_iter();
    Json(List {
        directory: app.gallery.directory().map(|path| path.display().to_string()),
        smtp_url: app.mail_server.url.to_string(),
        locales: locales(&shown.templates),
        mails: EmailKind::all()
            .map(|kind| Listed {
                name: kind.to_string(),
                template: kind.template.as_str(),
                recipient: kind.recipient.as_str(),
                variants: samples(kind.template, kind.recipient, "").into_iter().map(|sample| sample.variant).collect(),
            })
            .collect(),
        problems: problems
            .map(|problem| Problem { file: problem.file, line: problem.line, message: problem.message })
            .collect(),
    })
}

/// The locales of the templates, and those with the currencies of the samples.
fn locales(templates: &Templates) -> Vec<String> {
    let mut locales: Vec<String> = templates.locales().collect();
    for reader in READERS {
        let language = reader.split('-').next().unwrap_or_default();
        if locales.iter().any(|locale| locale == language) {
            locales.push(reader.to_owned());
        }
    }
    locales.sort();
    locales.dedup();
    locales
}

/// A rendered email.
#[derive(Serialize)]
struct Mail {
    subject: String,
    text: String,
    language: String,
    to: String,
    /// All headers, as they would be sent.
    headers: String,
    /// The size of the whole email.
    bytes: usize,
}

async fn show(State(app): App, Path(named): Path<EmailPath>) -> Result<Json<Mail>, ErrorResponse> {
    let (notification, rendered) = app.find(&named)?;
    let source = app.source(&named)?;
    let text = String::from_utf8_lossy(&source);
    let headers = text.split_once("\r\n\r\n").map_or("", |(headers, _)| headers).replace("\r\n", "\n");
    let Mailbox { name, email } = notification.to;
    let to = name.map_or_else(|| email.clone(), |name| format!("{name} <{email}>"));
    let RenderedEmail { subject, text, language, .. } = rendered;
    Ok(Json(Mail { subject, text, language, to, headers, bytes: source.len() }))
}

async fn light(State(app): App, Path(named): Path<EmailPath>) -> Result<Response, ErrorResponse> {
    html(&app, &named, Scheme::Light)
}

async fn dark(State(app): App, Path(named): Path<EmailPath>) -> Result<Response, ErrorResponse> {
    html(&app, &named, Scheme::Dark)
}

fn html(app: &Pages, named: &EmailPath, scheme: Scheme) -> Result<Response, ErrorResponse> {
    let (notification, rendered) = app.find(named)?;
    let mut html = as_preferred(&rendered.html, scheme);
    if let Some(url) = &notification.facts.organization.logo_url {
        html = html.replace(url.as_str(), LOGO_PATH);
    }
    // A link must not replace the email in its frame.
    html = html.replacen("<head>", "<head><base target=\"_blank\">", 1);
    let headers = [(header::CONTENT_TYPE, "text/html; charset=utf-8"), (header::CONTENT_SECURITY_POLICY, MAIL_POLICY)];
    Ok((headers, html).into_response())
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scheme {
    Light,
    Dark,
}

/// The page as readers with this colour scheme see it, whatever the system's scheme: each media query about the scheme becomes one
/// that is always true or always false.
fn as_preferred(html: &str, scheme: Scheme) -> String {
    let (yes, no) = ("min-width: 0", "max-width: 0");
    let mut answered = String::with_capacity(html.len());
    let mut rest = html;
    while let Some((before, after)) = rest.split_once("prefers-color-scheme") {
        answered.push_str(before);
        let (question, after) = after.split_once(')').unwrap_or((after, ""));
        let is_preferred = match question.trim_start_matches([':', ' ']).trim_end() {
            "dark" => scheme == Scheme::Dark,
            _ => scheme == Scheme::Light,
        };
        answered.push_str(if is_preferred { yes } else { no });
        answered.push(')');
        rest = after;
    }
    answered.push_str(rest);
    answered
}

async fn eml(State(app): App, Path(named): Path<EmailPath>) -> Result<Response, ErrorResponse> {
    let source = app.source(&named)?;
    let EmailPath(locale, mail, variant) = named;
    let safe = |c: char| if c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_') { c } else { '_' };
    let file_name: String = format!("{locale}.{mail}.{variant}.eml").chars().map(safe).collect();
    let disposition = format!("attachment; filename=\"{file_name}\"");
    let headers = [(header::CONTENT_TYPE, "message/rfc822"), (header::CONTENT_DISPOSITION, disposition.as_str())];
    Ok((headers, source).into_response())
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SendTo {
    to: String,
}

/// The result of sending.
#[derive(Serialize)]
struct Sent {
    sent: bool,
    /// The mail server's reply, or the reason why there is none.
    answer: String,
}

async fn send(
    State(app): App,
    Path(named): Path<EmailPath>,
    Json(SendTo { to }): Json<SendTo>,
) -> Result<Response, ErrorResponse> {
    let (mut notification, rendered) = app.find(&named)?;
    notification.to = Mailbox { name: None, email: to };
    let composed = match app.compose(&notification, rendered) {
        Ok(composed) => composed,
        Err(error) => {
            let sent = Sent { sent: false, answer: error.to_string() };
            return Ok((StatusCode::UNPROCESSABLE_ENTITY, Json(sent)).into_response());
        }
    };
    Ok(match app.send(&composed).await {
        Ok(answer) => Json(Sent { sent: true, answer }).into_response(),
        Err(answer) => (StatusCode::BAD_GATEWAY, Json(Sent { sent: false, answer })).into_response(),
    })
}

/// Notifies the browser of every reload until the preview stops.
async fn changes(State(app): App) -> Sse<impl Stream<Item = Result<Event, Infallible>>> {
    let mut receiver = app.gallery.watch();
    // A browser that reconnects gets the current revision at once.
    receiver.mark_changed();
    let changes = stream::unfold(receiver, |mut receiver| async move {
        receiver.changed().await.ok()?;
        let revision = receiver.borrow_and_update().revision;
        Some((Ok(Event::default().data(revision.to_string())), receiver))
    });
    Sse::new(changes.take_until(app.stop.clone().cancelled_owned())).keep_alive(KeepAlive::default())
}

/// Rejects requests of other pages; see the module's documentation.
async fn reject_foreign_requests(request: Request, next: Next) -> Response {
    let mut response = match rejection(request.method(), request.headers()) {
        Some(why) => ErrorResponse(StatusCode::FORBIDDEN, why.to_owned()).into_response(),
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
    fn media_queries_about_the_colour_scheme_become_constant() {
        let html = "<style>@media (prefers-color-scheme: dark) { a {} } \
                    @media screen and (prefers-color-scheme:light){ b {} }</style>";
        let (yes, no) = ("(min-width: 0)", "(max-width: 0)");
        let expected = |dark: &str, light: &str| {
            format!("<style>@media {dark} {{ a {{}} }} @media screen and {light}{{ b {{}} }}</style>")
        };
        assert_eq!(as_preferred(html, Scheme::Dark), expected(yes, no));
        assert_eq!(as_preferred(html, Scheme::Light), expected(no, yes));
        assert_eq!(as_preferred("<p>é", Scheme::Dark), "<p>é");
    }

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
