//! One sample, rendered as it is shown and sent.

use std::sync::Arc;

use offramp::clock;
use offramp_domain::notification::Notification;
use offramp_mail::message::Origin;
use offramp_mail::samples::samples;
use offramp_mail::{AddressError, ComposedEmail, DkimSigner, EmailKind, RenderedEmail, Sender, compose};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::color_scheme::{Scheme, as_preferred};
use super::gallery::Shown;
use super::inbox_line::InboxLine;
use super::look::{Look, with_stand_in_logo};

/// The path of an email: locale, name of its template file, variant.
#[derive(Debug, Deserialize)]
pub struct EmailPath(pub String, pub String, pub String);

/// A sample and its text.
pub struct ShownEmail {
    pub notification: Notification,
    pub rendered: RenderedEmail,
}

/// Why an email cannot be shown.
#[derive(Debug, thiserror::Error)]
pub enum NotShown {
    #[error("there is no email {0}, {1}")]
    Unknown(String, String),
    #[error("{0} is not written in {1} yet")]
    NotWritten(String, String),
    #[error("{0}")]
    Faulty(String),
}

impl ShownEmail {
    pub fn find(shown: &Shown, path: &EmailPath, look: Look) -> Result<Self, NotShown> {
        let EmailPath(locale, email, variant) = path;
        let unknown = || NotShown::Unknown(email.clone(), variant.clone());
        let kind = EmailKind::all().find(|kind| kind.to_string() == *email).ok_or_else(unknown)?;
        let sample =
            samples(kind.template, kind.recipient, locale).into_iter().find(|sample| sample.variant == variant);
        let mut notification = sample.ok_or_else(unknown)?.notification;
        if let Some(organization) = &shown.organization {
            organization.replace_in(&mut notification);
        }
        look.apply(&mut notification.facts.organization, shown.organization.is_none());
        let rendered = shown.emails.render(&notification).map_err(|error| NotShown::Faulty(error.to_string()))?;
        let rendered = rendered.ok_or_else(|| NotShown::NotWritten(email.clone(), locale.clone()))?;
        Ok(Self { notification, rendered })
    }

    /// The email as it would be sent.
    pub fn compose(&self, sender: &Sender, signer: Option<Arc<DkimSigner>>) -> Result<ComposedEmail, AddressError> {
        let origin = Origin { entry_id: Uuid::new_v4(), conversation_id: Uuid::new_v4() };
        let composed = compose(sender, origin, &self.notification, self.rendered.clone(), clock::now())?;
        Ok(composed.signed_by(signer))
    }

    /// The HTML part in a frame of the page.
    pub fn framed(&self, scheme: Scheme) -> String {
        let html = as_preferred(&self.rendered.html, scheme);
        let html = with_stand_in_logo(&html, &self.notification.facts.organization);
        // A link must not replace the email in its frame.
        html.replacen("<head>", "<head><base target=\"_blank\">", 1)
    }
}

/// An email as the page shows it, except for its HTML part.
#[derive(Serialize)]
pub struct EmailJson {
    subject: String,
    text: String,
    language: String,
    to: String,
    inbox: InboxLine,
    /// All headers, as they would be sent.
    headers: String,
    /// The size of the whole email.
    bytes: usize,
}

impl EmailJson {
    /// `source`: the whole email.
    pub fn new(shown: ShownEmail, source: &[u8], sender: &Sender) -> Self {
        let text = String::from_utf8_lossy(source);
        let headers = text.split_once("\r\n\r\n").map_or("", |(headers, _)| headers).replace("\r\n", "\n");
        let inbox = InboxLine::new(&shown.notification, &shown.rendered, sender);
        let to = shown.notification.to;
        let to = to.name.map_or_else(|| to.email.clone(), |name| format!("{name} <{}>", to.email));
        let RenderedEmail { subject, text, language, .. } = shown.rendered;
        Self { subject, text, language, to, inbox, headers, bytes: source.len() }
    }
}
