//! Every email: each sample in each language, as sent, with checks that need no browser.

use chrono::{DateTime, Utc};
use offramp_domain::notification::{Notification, Recipient, Template};
use offramp_mail::message::Origin;
use offramp_mail::samples::samples;
use offramp_mail::{EmailKind, RenderedEmail, Sender, Templates, compose};
use url::Url;
use uuid::Uuid;

use crate::email_facts::missing_from;
use crate::html::Html;

/// An email, from its facts to its bytes.
#[derive(Clone)]
pub struct Email {
    /// `fr-CA/payment-failed.account_manager/full`
    pub name: String,
    pub notification: Notification,
    /// Whether its words are those of a region, such as `fr-CA`.
    pub is_regional: bool,
    pub rendered: RenderedEmail,
    /// As sent to a server without 8BITMIME, which is the longest form.
    pub bytes: Vec<u8>,
    /// Words that its reader must not see, and sees.
    leaked: Vec<&'static str>,
}

/// A locale for a language, with a region in which it is common.
pub fn reader(language: &str) -> &str {
    match language {
        "en" => "en-CA",
        "es" => "es-US",
        "fr" => "fr-FR",
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
                let leaked = leaked(templates, &sample.notification);
                let is_regional = language.contains('-');
                emails.push(Email { name, notification: sample.notification, is_regional, rendered, bytes, leaked });
            }
        }
    }
    emails
}

/// The words that only the organization may read and that the account manager reads all the same, if the facts contain them. (Facts
/// that an earlier version decided can.)
fn leaked(templates: &Templates, notification: &Notification) -> Vec<&'static str> {
    const REASON: &str = "the-reason-of-an-administrator";
    const FAILURE: &str = "the-words-of-the-payment-system";
    if notification.recipient == Recipient::OrganizationContact {
        return vec![];
    }
    let mut notification = notification.clone();
    notification.facts.failure_message = Some(FAILURE.to_owned());
    if matches!(notification.template, Template::CancelledByAdmin | Template::RemovedByAdmin) {
        notification.facts.reason = Some(REASON.to_owned());
    }
    let RenderedEmail { subject, text, html, .. } = templates.render(&notification).unwrap();
    let all = [subject, text, html].concat();
    [REASON, FAILURE].into_iter().filter(|words| all.contains(words)).collect()
}

/// The bytes of an email with this date.
pub fn bytes_at(date: DateTime<Utc>, notification: &Notification, rendered: &RenderedEmail) -> Vec<u8> {
    let sender = Sender::parse("Offramp <no-reply@mail.example.com>").unwrap();
    let origin = Origin { entry_id: Uuid::new_v4(), conversation_id: Uuid::new_v4() };
    compose(&sender, origin, notification, rendered.clone(), date).unwrap().bytes(false).unwrap()
}

/// The longest subject with the names of the samples, in characters. Email clients cut longer ones.
const SUBJECT_CHARS_MAX: usize = 60;

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
        findings.extend(self.leaked.iter().map(|words| format!("the account manager reads {words}")));
        let subject = self.rendered.subject.chars().count();
        // Without a name, the address stands for it.
        let is_named = self.notification.facts.manager.as_ref().is_none_or(|manager| manager.name.is_some());
        if subject > SUBJECT_CHARS_MAX && is_named {
            findings.push(format!("the subject has {subject} characters: {}", self.rendered.subject));
        }
        for (part, text) in [("subject", &self.rendered.subject), ("text", &self.rendered.text), ("HTML", &html.text)] {
            if let Some(at) = text.replace("...", "…").find("..") {
                let around: String = text.chars().skip(at.saturating_sub(20)).take(40).collect();
                findings.push(format!("a double full stop in the {part} part: {around}"));
            }
        }
        findings.extend(self.unquoted());
        findings.extend(self.without_button(&html));
        findings.extend(self.links(&html));
        findings.extend(self.fetched(&html));
        findings
    }

    /// Checks that what a person wrote is quoted line by line in the text part, so that it cannot pass for ours.
    fn unquoted(&self) -> Vec<String> {
        let facts = &self.notification.facts;
        let prose = [&facts.reason, &facts.note, &facts.message, &facts.failure_message];
        let theirs: Vec<&str> = prose
            .into_iter()
            .flatten()
            .flat_map(|prose| prose.lines())
            .filter(|line| !line.trim().is_empty())
            .collect();
        let ours = self.rendered.text.lines().filter(|line| !line.starts_with('>'));
        ours.filter(|line| theirs.iter().any(|theirs| line.contains(theirs)))
            .map(|line| format!("a line of a person's text is not quoted: {line}"))
            .collect()
    }

    /// Checks that an email that asks for an action has one button for it, if the organization provides the address.
    fn without_button(&self, html: &Html) -> Vec<String> {
        let Notification { template, recipient, facts, .. } = &self.notification;
        let address = match (template, recipient) {
            (Template::PaymentFailed, Recipient::AccountManager) => {
                let is_final = facts.next_attempt_on.is_none() && facts.past_attempt_on.is_none();
                facts.payment_url.as_ref().filter(|_| is_final).or(facts.payment_method_url.as_ref())
            }
            (Template::CardExpiring, Recipient::AccountManager) => facts.payment_method_url.as_ref(),
            (Template::CardExpiring, Recipient::OrganizationContact) => facts.admin_account_url.as_ref(),
            // Several requests have a link each.
            (Template::RequestsPending, _) => match facts.requests.as_slice() {
                [only] if facts.requests_count == Some(1) => only.admin_url.as_ref(),
                _ => None,
            },
            (_, Recipient::OrganizationContact) => facts.admin_url.as_ref(),
            (_, Recipient::AccountManager) => facts.account_url.as_ref(),
        };
        let is_button = |class: Option<&str>| class.is_some_and(|class| class.split(' ').any(|name| name == "button"));
        let buttons = html.elements.iter().filter(|element| is_button(element.attribute("class"))).count();
        let mut findings = Vec::new();
        if buttons != usize::from(address.is_some()) {
            findings.push(format!("it has {buttons} buttons instead of {}", usize::from(address.is_some())));
        }
        if let Some(address) = address
            && !(html.elements.iter().any(|element| element.attribute("href") == Some(address))
                && self.rendered.text.contains(address.as_str()))
        {
            findings.push(format!("no link leads to {address} in one of the parts"));
        }
        findings
    }

    /// Checks that links are absolute.
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
