//! All templates, ready to render: finding the reader's language, and rendering both parts.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};

use icu::locale::LanguageIdentifier;
use offramp_domain::facts::Facts;
use offramp_domain::notification::Notification;

use super::ast::{self, Name, Node};
use super::escape::push_escaped;
use super::facts_view::{SUBJECT, Value, view};
use crate::kind::EmailKind;
use crate::locale::{Formats, parse_tag};
use crate::text::{shorten, single_line};

/// The language of readers whose own language has no templates.
pub(super) const FALLBACK: &str = "en";

/// The longest subject, in characters. Email clients show half of it.
const SUBJECT_CHARS_MAX: usize = 150;

/// The usual size of a subject, a plain part and an HTML part, in bytes.
const SUBJECT_BYTES: usize = 128;
const TEXT_BYTES: usize = 2 * 1024;
const HTML_BYTES: usize = 16 * 1024;

/// The most locales of documents that are cached. There are some hundred real ones. Anything beyond is resolved again for
/// each email.
const READERS_MAX: usize = 512;

/// All templates, ready to render.
#[derive(Debug)]
pub struct Templates {
    locales: Vec<LocaleTemplates>,
    /// The locales of documents, as they are written there.
    readers: RwLock<HashMap<String, Arc<Reader>>>,
}

/// The templates of one language, or of one region of a language.
#[derive(Debug)]
pub(super) struct LocaleTemplates {
    pub(super) locale: LanguageIdentifier,
    pub(super) emails: HashMap<EmailKind, EmailTemplate>,
}

/// The templates of one email.
#[derive(Debug)]
pub(super) struct EmailTemplate {
    pub(super) subject: Vec<Node>,
    pub(super) text: Vec<Node>,
    pub(super) html: Vec<Node>,
}

/// A reader's locale.
#[derive(Debug)]
pub(super) struct Reader {
    /// The index of the templates.
    locale: usize,
    /// The language tag of the email.
    language: String,
    formats: Formats,
}

/// The text of an email.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RenderedEmail {
    /// One line, not yet encoded.
    pub subject: String,
    /// The plain part.
    pub text: String,
    /// The HTML part, a whole document.
    pub html: String,
    /// The language tag: the reader's own (`fr-CA`) if the text is in that language.
    pub language: String,
}

/// An email that could not be rendered, because it lacks a fact that its template needs.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{kind} in {language}: {cause}")]
pub struct RenderError {
    /// Which email.
    pub kind: EmailKind,
    /// The language tag.
    pub language: String,
    /// What is missing.
    pub cause: String,
}

impl Templates {
    pub(super) fn new(locales: Vec<LocaleTemplates>) -> Self {
        Self { locales, readers: RwLock::default() }
    }

    /// The languages that have templates: `en`, `es`, `fr`, and added ones.
    pub fn locales(&self) -> impl Iterator<Item = String> + '_ {
        self.locales.iter().map(|templates| templates.locale.to_string())
    }

    /// Renders an email in the language closest to the reader's.
    ///
    /// # Errors
    /// When the email lacks a fact that its template needs.
    pub fn render(&self, notification: &Notification) -> Result<RenderedEmail, RenderError> {
        let reader = self.reader(&notification.locale);
        let kind = EmailKind::of(notification);
        let error = |cause| RenderError { kind, language: reader.language.clone(), cause };
        let template = self.template(&reader, kind).ok_or_else(|| error("there is no template for it".to_owned()))?;
        template
            .render(&reader, &notification.facts)
            .map_err(|Name { name, .. }| error(format!("the fact `{name}` is missing")))
    }

    /// The language in which [`render`](Self::render) renders an email.
    #[must_use]
    pub fn language(&self, notification: &Notification) -> String {
        self.reader(&notification.locale).language.clone()
    }

    pub(super) fn template(&self, reader: &Reader, kind: EmailKind) -> Option<&EmailTemplate> {
        self.locales[reader.locale].emails.get(&kind)
    }

    fn reader(&self, locale: &str) -> Arc<Reader> {
        // A poisoned lock is harmless: entries are only ever added.
        if let Some(known) = self.readers.read().unwrap_or_else(PoisonError::into_inner).get(locale) {
            return Arc::clone(known);
        }
        let reader = Arc::new(self.new_reader(locale));
        let mut readers = self.readers.write().unwrap_or_else(PoisonError::into_inner);
        if readers.len() < READERS_MAX {
            readers.insert(locale.to_owned(), Arc::clone(&reader));
        }
        reader
    }

    /// Resolves a locale to the closest templates: the region's, the language's, English.
    pub(super) fn new_reader(&self, locale: &str) -> Reader {
        // Where only the language of a tag is valid, as in `fr-1`, the language counts.
        let wanted = parse_tag(locale).or_else(|| parse_tag(locale.split(['-', '_']).next()?));
        let found = wanted.as_ref().and_then(|wanted| {
            ancestry(wanted).iter().find_map(|tag| self.locales.iter().position(|templates| templates.locale == *tag))
        });
        let fallback = self.locales.iter().position(|templates| templates.locale.to_string() == FALLBACK);
        let locale = found.or(fallback).unwrap_or_default();
        // Dates are in the reader's format, but never in another language than the text around them.
        let tag = wanted.filter(|_| found.is_some()).unwrap_or_else(|| self.locales[locale].locale.clone());
        Reader { locale, language: tag.to_string(), formats: Formats::new(&tag) }
    }
}

impl EmailTemplate {
    /// Inserts facts. The error is the name of a missing one.
    pub(super) fn render(&self, reader: &Reader, facts: &Facts) -> Result<RenderedEmail, &Name> {
        let mut facts = view(facts, &reader.formats, &reader.language);
        let mut subject = String::with_capacity(SUBJECT_BYTES);
        ast::render(&self.subject, &facts, String::push_str, &mut subject)?;
        let subject = shorten(&single_line(&subject), SUBJECT_CHARS_MAX);
        facts.insert(SUBJECT, Value::Text(subject.clone()));
        let mut text = String::with_capacity(TEXT_BYTES);
        ast::render(&self.text, &facts, String::push_str, &mut text)?;
        let mut html = String::with_capacity(HTML_BYTES);
        ast::render(&self.html, &facts, push_escaped, &mut html)?;
        Ok(RenderedEmail { subject, text: without_gaps(&text), html, language: reader.language.clone() })
    }
}

/// A tag and its more general forms: `zh-Hant-TW`, `zh-Hant`, `zh`.
pub(super) fn ancestry(tag: &LanguageIdentifier) -> Vec<LanguageIdentifier> {
    let mut tags = vec![tag.clone()];
    let mut tag = tag.clone();
    if tag.region.take().is_some() {
        tags.push(tag.clone());
    }
    if tag.script.take().is_some() {
        tags.push(tag.clone());
    }
    tags
}

/// Removes the gaps that unmet conditions leave in a plain part: never more than one empty line, none at either end.
fn without_gaps(text: &str) -> String {
    let mut tidied = String::with_capacity(text.len());
    let mut blank = false;
    for line in text.lines().map(str::trim_end) {
        if line.is_empty() {
            blank = true;
            continue;
        }
        if blank && !tidied.is_empty() {
            tidied.push('\n');
        }
        blank = false;
        tidied.push_str(line);
        tidied.push('\n');
    }
    tidied
}
