//! Every email: each sample in each language, as sent, with checks that need no browser.

use chrono::{DateTime, Utc};
use offramp_domain::notification::Notification;
use offramp_mail::message::Origin;
use offramp_mail::samples::samples;
use offramp_mail::{EmailKind, RenderedEmail, Sender, Templates, compose};
use url::Url;
use uuid::Uuid;

use crate::email_facts::missing_from;
use crate::html::Html;

/// An email, from its facts to its bytes.
pub struct Email {
    /// `fr-CA/payment-failed.account_manager/full`
    pub name: String,
    pub notification: Notification,
    pub rendered: RenderedEmail,
    /// As sent to a server without 8BITMIME, which is the longest form.
    pub bytes: Vec<u8>,
}

/// A locale for a language, with a region whose currency the samples use where there is one.
pub fn reader(language: &str) -> &str {
    match language {
        "en" => "en-CA",
        "es" => "es-MX",
        "fr" => "fr-CA",
        other => other,
    }
}

/// Each sample in each language with templates.
pub fn every_email(templates: &Templates, date: DateTime<Utc>) -> Vec<Email> {
    let mut emails = Vec::new();
    for language in templates.locales() {
        let locale = reader(&language);
        for kind in EmailKind::all() {
            for sample in samples(kind.template, kind.recipient, locale) {
                let name = format!("{locale}/{kind}/{}", sample.variant);
                let rendered = templates.render(&sample.notification).unwrap();
                let bytes = bytes_at(date, &sample.notification, &rendered);
                emails.push(Email { name, notification: sample.notification, rendered, bytes });
            }
        }
    }
    emails
}

/// The bytes of an email with this date.
pub fn bytes_at(date: DateTime<Utc>, notification: &Notification, rendered: &RenderedEmail) -> Vec<u8> {
    let sender = Sender::parse("Offramp <no-reply@mail.example.com>").unwrap();
    let origin = Origin { entry_id: Uuid::new_v4(), conversation_id: Uuid::new_v4() };
    compose(&sender, origin, notification, rendered.clone(), date).unwrap().bytes(false).unwrap()
}

/// Gmail clips longer emails, including links in the clipped part. In bytes.
const BYTES_MAX: usize = 100_000;

/// Elements that mail clients block, or that track or execute.
const BANNED: [&str; 13] = [
    "applet", "audio", "base", "embed", "form", "iframe", "input", "link", "object", "script", "svg", "video",
    "v:image",
];

/// Attributes that make a mail client fetch a resource when it shows the email.
const FETCHING: [&str; 8] = ["background", "data", "lowsrc", "poster", "src", "srcset", "xlink:href", "action"];

impl Email {
    /// Defects of an email that can be found without a browser.
    pub fn findings(&self) -> Vec<String> {
        let mut findings = Vec::new();
        let html = Html::parse(&self.rendered.html);
        for (part, text) in [("text", &self.rendered.text), ("HTML", &html.text)] {
            let missing = missing_from(text, &self.notification);
            findings.extend(missing.into_iter().map(|fact| format!("the {part} part does not say {fact}")));
            if text.contains("{{") || text.contains("}}") {
                findings.push(format!("the {part} part contains an unrendered template"));
            }
        }
        if self.bytes.len() > BYTES_MAX {
            findings.push(format!("it is longer than {BYTES_MAX} bytes"));
        }
        findings.extend(self.links(&html));
        findings.extend(self.fetched(&html));
        findings
    }

    /// Checks that links are absolute, and that the organization's link leads to the subscription.
    fn links(&self, html: &Html) -> Vec<String> {
        let mut findings = Vec::new();
        let links: Vec<&str> = html.elements.iter().filter_map(|element| element.attribute("href")).collect();
        let words = self.rendered.text.split_whitespace().map(|word| word.trim_matches(['(', ')']));
        let in_text = words.filter(|word| word.contains("://"));
        for link in links.iter().copied().chain(in_text) {
            let url = Url::parse(link);
            if !url.as_ref().is_ok_and(|url| match url.scheme() {
                "http" | "https" => url.host_str().is_some_and(|host| host.contains('.')),
                "mailto" => url.path().contains('@'),
                "tel" => url.path().chars().all(|char| char == '+' || char.is_ascii_digit()),
                _ => false,
            }) {
                findings.push(format!("a link leads nowhere: {link}"));
            }
        }
        if let Some(url) = &self.notification.facts.admin_url
            && !(links.contains(&url.as_str()) && self.rendered.text.contains(url.as_str()))
        {
            findings.push(format!("no link leads to {url} in one of the parts"));
        }
        findings
    }

    /// Checks that only the organization's logo is fetched, and that nothing executes.
    fn fetched(&self, html: &Html) -> Vec<String> {
        let mut findings = Vec::new();
        let logo = self.notification.facts.organization.logo_url.as_deref();
        for element in &html.elements {
            if BANNED.contains(&element.name.as_str()) || element.attribute("http-equiv") == Some("refresh") {
                findings.push(format!("it has an element {}", element.name));
            }
            for (name, value) in &element.attributes {
                let is_logo = element.name == "img" && name == "src" && Some(value.as_str()) == logo;
                if FETCHING.contains(&name.as_str()) && !is_logo {
                    findings.push(format!("it fetches {value}"));
                }
                if name.starts_with("on") || value.trim_start().to_ascii_lowercase().starts_with("javascript:") {
                    findings.push(format!("it runs {name}=\"{value}\""));
                }
                if name == "style" && value.contains("url(") {
                    findings.push(format!("a style fetches something: {value}"));
                }
            }
            if element.name == "img" {
                let dot = |name| element.attribute(name).is_some_and(|size| matches!(size, "0" | "1" | "0px" | "1px"));
                if dot("width") || dot("height") {
                    findings.push("an invisible image".to_owned());
                }
                if element.attribute("alt").is_none_or(str::is_empty) {
                    findings.push("an image without alternative text".to_owned());
                }
            }
        }
        if html.styles.contains("url(") || html.styles.contains("@import") {
            findings.push("a style sheet fetches something".to_owned());
        }
        findings
    }
}
