//! All templates, ready to render: finding the reader's language, and rendering both parts.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, PoisonError, RwLock};

use handlebars::template::Template as Parsed;
use handlebars::{Context, Handlebars, JsonValue as Json, Output, RenderContext, RenderErrorReason, Renderable};
use icu::locale::LanguageIdentifier;
use offramp_domain::facts::Facts;
use offramp_domain::notification::Notification;

use super::block::Position;
use super::facts_view::{SUBJECT, quote_prose, view};
use super::helpers::{HTML, PLAIN};
use super::problem::TemplateProblem;
use crate::kind::EmailKind;
use crate::locale::{Reader, ancestry, parse_tag};
use crate::text::{shorten, single_line};

/// The language of readers whose own language has no templates.
pub(super) const FALLBACK: &str = "en";

/// The longest subject, in characters. Email clients show half of it.
const SUBJECT_CHARS_MAX: usize = 150;

/// The usual size of a subject, a plain part and an HTML part, in bytes.
const SUBJECT_BYTES: usize = 128;
const TEXT_BYTES: usize = 2 * 1024;
const HTML_BYTES: usize = 24 * 1024;

/// The most locales of documents that are cached. There are some hundred real ones. Anything beyond is resolved again for
/// each email.
const READERS_MAX: usize = 512;

/// All templates, ready to render.
#[derive(Debug)]
pub struct Templates {
    locales: Vec<LocaleTemplates>,
    /// What is allowed, but probably not meant.
    warnings: Vec<TemplateProblem>,
    /// The locales of documents, as they are written there.
    readers: RwLock<HashMap<String, Arc<ReaderTemplates>>>,
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
    /// The index of its file.
    pub(super) file: usize,
    pub(super) subject: Parsed,
    /// What email clients show beside the subject.
    pub(super) preview: Parsed,
    pub(super) text: Parsed,
    /// Where each line of `text` comes from.
    pub(super) lines: Vec<Position>,
    pub(super) html: Parsed,
}

/// A reader, and the templates for them.
#[derive(Debug)]
pub(super) struct ReaderTemplates {
    /// The index of the templates.
    locale: usize,
    pub(super) reader: Reader,
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

/// Why an email cannot be rendered.
#[derive(Debug)]
pub(super) struct RenderFault {
    /// The fact that is missing, if that is the reason.
    pub(super) missing: Option<String>,
    /// The reason in a sentence.
    pub(super) cause: String,
    pub(super) place: FaultPlace,
}

/// Where a fault is.
#[derive(Clone, Copy, Debug)]
pub(super) enum FaultPlace {
    Subject,
    Preview,
    Body(Position),
    /// Only in the HTML part.
    Design,
}

impl Templates {
    pub(super) fn new(locales: Vec<LocaleTemplates>, warnings: Vec<TemplateProblem>) -> Self {
        Self { locales, warnings, readers: RwLock::default() }
    }

    /// The languages that have templates: `en`, `es`, `fr`, and added ones.
    pub fn locales(&self) -> impl Iterator<Item = String> + '_ {
        self.locales.iter().map(|templates| templates.locale.to_string())
    }

    /// What is allowed, but probably not meant: files that are not translated yet.
    #[must_use]
    pub fn warnings(&self) -> &[TemplateProblem] {
        &self.warnings
    }

    /// Renders an email in the language closest to the reader's.
    ///
    /// # Errors
    /// When the email lacks a fact that its template needs.
    pub fn render(&self, notification: &Notification) -> Result<RenderedEmail, RenderError> {
        self.with_template(notification, EmailTemplate::render)
    }

    /// What email clients show beside the subject of an email: its `Preview` line.
    ///
    /// # Errors
    /// As for [`render`](Self::render).
    pub fn preview(&self, notification: &Notification) -> Result<String, RenderError> {
        self.with_template(notification, EmailTemplate::preview)
    }

    fn with_template<T>(
        &self,
        notification: &Notification,
        render: fn(&EmailTemplate, &Reader, &Facts) -> Result<T, RenderFault>,
    ) -> Result<T, RenderError> {
        let found = self.reader(&notification.locale);
        let kind = EmailKind::of(notification);
        let error = |cause| RenderError { kind, language: found.reader.language.clone(), cause };
        let template = self.template(&found, kind).ok_or_else(|| error("there is no template for it".to_owned()))?;
        render(template, &found.reader, &notification.facts).map_err(|fault| error(fault.cause))
    }

    /// The language in which [`render`](Self::render) renders an email.
    #[must_use]
    pub fn language(&self, notification: &Notification) -> String {
        self.reader(&notification.locale).reader.language.clone()
    }

    pub(super) fn template(&self, found: &ReaderTemplates, kind: EmailKind) -> Option<&EmailTemplate> {
        self.locales[found.locale].emails.get(&kind)
    }

    /// Removes the templates of an email in a language.
    pub(super) fn remove(&mut self, locale: &str, kind: EmailKind) {
        for templates in &mut self.locales {
            if templates.locale.to_string() == locale {
                templates.emails.remove(&kind);
            }
        }
    }

    fn reader(&self, locale: &str) -> Arc<ReaderTemplates> {
        // A poisoned lock is harmless: entries are only ever added.
        if let Some(known) = self.readers.read().unwrap_or_else(PoisonError::into_inner).get(locale) {
            return Arc::clone(known);
        }
        let found = Arc::new(self.new_reader(locale));
        let mut readers = self.readers.write().unwrap_or_else(PoisonError::into_inner);
        if readers.len() < READERS_MAX {
            readers.insert(locale.to_owned(), Arc::clone(&found));
        }
        found
    }

    /// Resolves a locale to the closest templates: the region's, the language's, English.
    pub(super) fn new_reader(&self, locale: &str) -> ReaderTemplates {
        // Where only the language of a tag is valid, as in `fr-1`, the language counts.
        let wanted = parse_tag(locale).or_else(|| parse_tag(locale.split(['-', '_']).next()?));
        let found = wanted.as_ref().and_then(|wanted| {
            ancestry(wanted).iter().find_map(|tag| self.locales.iter().position(|templates| templates.locale == *tag))
        });
        let fallback = self.locales.iter().position(|templates| templates.locale.to_string() == FALLBACK);
        let locale = found.or(fallback).unwrap_or_default();
        // Dates are in the reader's format, but never in another language than the text around them.
        let tag = wanted.filter(|_| found.is_some()).unwrap_or_else(|| self.locales[locale].locale.clone());
        ReaderTemplates { locale, reader: Reader::new(&tag) }
    }
}

impl EmailTemplate {
    /// Inserts facts.
    pub(super) fn render(&self, reader: &Reader, facts: &Facts) -> Result<RenderedEmail, RenderFault> {
        let mut names = view(facts, reader);
        let mut context = Context::from(Json::Object(std::mem::take(&mut names)));
        let subject = self.insert(&self.subject, &PLAIN, &context, SUBJECT_BYTES)?;
        let subject = shorten(&single_line(&subject), SUBJECT_CHARS_MAX);
        if let Some(names) = context.data_mut().as_object_mut() {
            names.insert(SUBJECT.to_owned(), Json::String(subject.clone()));
        }
        let html = self.insert(&self.html, &HTML, &context, HTML_BYTES).map_err(|fault| {
            // Most of the page is also in the plain part, where each line has a position.
            self.insert(&self.text, &PLAIN, &context, TEXT_BYTES).err().unwrap_or(fault)
        })?;
        if let Some(names) = context.data_mut().as_object_mut() {
            quote_prose(names);
        }
        let text = self.insert(&self.text, &PLAIN, &context, TEXT_BYTES)?;
        Ok(RenderedEmail { subject, text: without_gaps(&text), html, language: reader.language.clone() })
    }

    /// The text beside the subject.
    pub(super) fn preview(&self, reader: &Reader, facts: &Facts) -> Result<String, RenderFault> {
        let context = Context::from(Json::Object(view(facts, reader)));
        Ok(single_line(&self.insert(&self.preview, &PLAIN, &context, SUBJECT_BYTES)?))
    }

    fn insert(
        &self,
        template: &Parsed,
        engine: &'static Handlebars<'static>,
        context: &Context,
        bytes: usize,
    ) -> Result<String, RenderFault> {
        let mut out = Text(String::with_capacity(bytes));
        template.render(engine, context, &mut RenderContext::new(None), &mut out).map_err(|error| {
            let is = |part: &Parsed| std::ptr::eq(template, part);
            let line = error.line_no.unwrap_or_default().saturating_sub(1);
            let place = match self.lines.get(line) {
                _ if is(&self.subject) => FaultPlace::Subject,
                _ if is(&self.preview) => FaultPlace::Preview,
                Some(position) if is(&self.text) => FaultPlace::Body(*position),
                _ => FaultPlace::Design,
            };
            let (missing, cause) = match error.reason() {
                RenderErrorReason::MissingVariable(Some(name)) => {
                    (Some(name.clone()), format!("the fact `{name}` is missing"))
                }
                reason => (None, single_line(&reason.to_string())),
            };
            RenderFault { missing, cause, place }
        })?;
        Ok(out.0)
    }
}

/// Text that is being rendered.
struct Text(String);

impl Output for Text {
    fn write(&mut self, more: &str) -> io::Result<()> {
        self.0.push_str(more);
        Ok(())
    }
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
