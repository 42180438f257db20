//! Every mail that there can be: each sample in each language, as it leaves.

use chrono::{DateTime, Utc};
use offramp::domain::notification::{Notification, Recipient, Template};
use offramp::mail::samples::samples;
use offramp::mail::{Composed, Rendered, Sender, Templates, compose};
use uuid::Uuid;

/// A mail, from its facts to its bytes.
pub struct Mail {
    /// `fr-CA/payment-failed.account_manager/full`
    pub name: String,
    pub notification: Notification,
    pub rendered: Rendered,
    pub composed: Composed,
}

impl Mail {
    /// The mail as text, headers first. All of it is ASCII.
    pub fn source(&self) -> &str {
        std::str::from_utf8(&self.composed.bytes).unwrap()
    }
}

/// Who reads a language: somebody whose money the samples speak of, where there is such a region.
pub fn reader(language: &str) -> &str {
    match language {
        "en" => "en-CA",
        "es" => "es-MX",
        "fr" => "fr-CA",
        other => other,
    }
}

/// Each template with each recipient.
pub fn templates_and_recipients() -> impl Iterator<Item = (Template, Recipient)> {
    Template::ALL.into_iter().flat_map(|template| template.recipients().iter().map(move |&to| (template, to)))
}

/// Each sample in each language that there are words in.
pub fn every_mail(templates: &Templates, date: DateTime<Utc>) -> Vec<Mail> {
    let mut mails = Vec::new();
    for language in templates.locales() {
        let locale = reader(&language);
        for (template, recipient) in templates_and_recipients() {
            for sample in samples(template, recipient, locale) {
                let name = format!("{locale}/{template}.{}/{}", recipient.as_str(), sample.variant);
                let rendered = templates.render(&sample.notification).unwrap();
                let composed = compose_at(date, &sample.notification, &rendered);
                mails.push(Mail { name, notification: sample.notification, rendered, composed });
            }
        }
    }
    mails
}

fn compose_at(date: DateTime<Utc>, notification: &Notification, rendered: &Rendered) -> Composed {
    let sender = Sender::parse("Offramp <no-reply@mail.example.com>").unwrap();
    compose(&sender, Uuid::new_v4(), notification, rendered, date).unwrap()
}
