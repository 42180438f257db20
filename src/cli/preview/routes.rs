//! The HTTP server of the preview: its routes.

use std::convert::Infallible;
use std::sync::Arc;

use axum::extract::{FromRequestParts, Path, State};
use axum::http::request::Parts;
use axum::http::{StatusCode, header};
use axum::middleware::from_fn;
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use futures_util::{Stream, StreamExt, stream};
use offramp_domain::contact::Mailbox;
use offramp_mail::{AddressError, DkimSigner, Sender};
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use super::color_scheme::Scheme;
use super::gallery::Gallery;
use super::listing::List;
use super::look::{Look, stand_in_logo};
use super::page;
use super::request_guard::reject_foreign_requests;
use super::sending::MailServer;
use super::shown_email::{EmailJson, EmailPath, NotShown, ShownEmail};

/// The policy of an email in a frame: no scripts, no forms, nothing from other sites except images; links open new windows.
const EMAIL_POLICY: &str = "default-src 'none'; img-src 'self' http: https: data:; style-src 'unsafe-inline'; \
    frame-ancestors 'self'; sandbox allow-same-origin allow-popups allow-popups-to-escape-sandbox";

/// The policy of the stand-in logo, when it is opened by itself.
const LOGO_POLICY: &str = "default-src 'none'; sandbox";

/// The state of all routes.
pub struct Preview {
    pub gallery: Arc<Gallery>,
    pub sender: Sender,
    pub signer: Option<Arc<DkimSigner>>,
    pub mail_server: MailServer,
    pub stop: CancellationToken,
}

impl Preview {
    pub fn router(self) -> Router {
        Router::new()
            .route("/", get(page::page))
            .route("/logo/{file}", get(logo))
            .route("/changes", get(changes))
            .route("/emails", get(list))
            .route("/emails/{locale}/{email}/{variant}", get(show))
            .route("/emails/{locale}/{email}/{variant}/light.html", get(light))
            .route("/emails/{locale}/{email}/{variant}/dark.html", get(dark))
            .route("/emails/{locale}/{email}/{variant}/source.html", get(html_source))
            .route("/emails/{locale}/{email}/{variant}/email.eml", get(eml))
            .route("/emails/{locale}/{email}/{variant}/send", post(send))
            .with_state(Arc::new(self))
            .layer(from_fn(reject_foreign_requests))
    }

    fn find(&self, path: &EmailPath, look: Look) -> Result<ShownEmail, NotShown> {
        ShownEmail::find(&self.gallery.now(), path, look)
    }

    /// The email as it would be sent, in bytes.
    fn bytes(&self, shown: &ShownEmail) -> Result<Vec<u8>, ErrorResponse> {
        let bytes = shown.compose(&self.sender, self.signer.clone())?.bytes(false);
        bytes.map_err(|error| ErrorResponse(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))
    }
}

/// A status and a sentence.
pub struct ErrorResponse(StatusCode, String);

impl IntoResponse for ErrorResponse {
    fn into_response(self) -> Response {
        (self.0, format!("{}\n", self.1)).into_response()
    }
}

impl From<NotShown> for ErrorResponse {
    fn from(error: NotShown) -> Self {
        let status = match error {
            NotShown::Unknown(..) | NotShown::NotWritten(..) => StatusCode::NOT_FOUND,
            NotShown::Faulty(_) => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Self(status, error.to_string())
    }
}

impl From<AddressError> for ErrorResponse {
    fn from(error: AddressError) -> Self {
        Self(StatusCode::UNPROCESSABLE_ENTITY, error.to_string())
    }
}

type App = State<Arc<Preview>>;
type Answer = Result<Response, ErrorResponse>;

/// `?look=white`
impl<S: Sync> FromRequestParts<S> for Look {
    type Rejection = ErrorResponse;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ErrorResponse> {
        let look = Self::of_query(parts.uri.query().unwrap_or_default());
        look.ok_or_else(|| ErrorResponse(StatusCode::NOT_FOUND, "there is no such look".to_owned()))
    }
}

async fn list(State(app): App) -> Response {
    let shown = app.gallery.now();
    Json(List::new(&app.gallery, &shown, app.mail_server.url.to_string())).into_response()
}

async fn show(State(app): App, Path(path): Path<EmailPath>, look: Look) -> Answer {
    let shown = app.find(&path, look)?;
    let source = app.bytes(&shown)?;
    Ok(Json(EmailJson::new(shown, &source, &app.sender)).into_response())
}

async fn light(State(app): App, Path(path): Path<EmailPath>, look: Look) -> Answer {
    Ok(frame(&app.find(&path, look)?.framed(Scheme::Light)))
}

async fn dark(State(app): App, Path(path): Path<EmailPath>, look: Look) -> Answer {
    Ok(frame(&app.find(&path, look)?.framed(Scheme::Dark)))
}

fn frame(html: &str) -> Response {
    let headers = [(header::CONTENT_TYPE, "text/html; charset=utf-8"), (header::CONTENT_SECURITY_POLICY, EMAIL_POLICY)];
    (headers, html.to_owned()).into_response()
}

/// The HTML part, to read.
async fn html_source(State(app): App, Path(path): Path<EmailPath>, look: Look) -> Answer {
    let headers = [(header::CONTENT_TYPE, "text/plain; charset=utf-8"), (header::CONTENT_SECURITY_POLICY, LOGO_POLICY)];
    Ok((headers, app.find(&path, look)?.rendered.html).into_response())
}

async fn logo(Path(file): Path<String>) -> Response {
    let headers = [(header::CONTENT_TYPE, "image/svg+xml"), (header::CONTENT_SECURITY_POLICY, LOGO_POLICY)];
    match stand_in_logo(&file) {
        Some(svg) => (headers, svg).into_response(),
        None => StatusCode::NOT_FOUND.into_response(),
    }
}

async fn eml(State(app): App, Path(path): Path<EmailPath>, look: Look) -> Answer {
    let source = app.bytes(&app.find(&path, look)?)?;
    let EmailPath(locale, email, variant) = path;
    let safe = |c: char| if c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_') { c } else { '_' };
    let file_name: String = format!("{locale}.{email}.{variant}.eml").chars().map(safe).collect();
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

async fn send(State(app): App, Path(path): Path<EmailPath>, look: Look, Json(SendTo { to }): Json<SendTo>) -> Answer {
    let mut shown = app.find(&path, look)?;
    shown.notification.to = Mailbox { name: None, email: to };
    let failed = |status, answer| (status, Json(Sent { sent: false, answer })).into_response();
    let composed = match shown.compose(&app.sender, app.signer.clone()) {
        Ok(composed) => composed,
        Err(error) => return Ok(failed(StatusCode::UNPROCESSABLE_ENTITY, error.to_string())),
    };
    Ok(match app.mail_server.send(&composed).await {
        Ok(answer) => Json(Sent { sent: true, answer }).into_response(),
        Err(answer) => failed(StatusCode::BAD_GATEWAY, answer),
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
