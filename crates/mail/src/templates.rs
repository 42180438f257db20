//! The words of the mails: templates loaded, checked and tried out at start, then filled in, mail after mail.
//!
//! One folder per language holds one file per mail and recipient, `payment-failed.account_manager.md`, and partials, whose
//! names begin with `_`. Both parts of a mail are made of this one file: `markup` tells how it is written. Beside the
//! folders stands the design, for all languages: MJML, compiled to HTML once, here. The files in `templates/` are
//! compiled in; those of `OFFRAMP_TEMPLATES` replace them one by one and may add languages. A folder with a region
//! (`fr-CA`) holds only what differs from its language's.
//!
//! What mails say is data and is never read as a template. Templates know `{{name}}`, `{{#if}}`, `{{#unless}}` and
//! `{{> partial}}`; names are checked where they stand, also in branches that no try-out takes (`lint`).

mod lint;
mod loader;
mod markup;
mod pieces;

use std::collections::HashMap;
use std::fmt;
use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};

use icu::locale::LanguageIdentifier;

use self::loader::Loader;
use self::pieces::{Name, Piece, fill};
use super::locale::{Formats, parse_tag};
use super::message::{shorten, single_line};
use super::view::{SUBJECT, Shown, view};
use offramp_domain::notification::{Facts, Notification, Recipient, Template};

/// The language that everybody gets whose own there is not.
const FALLBACK: &str = "en";

/// The longest subject, in characters. Mail programs show half of it.
const SUBJECT_CHARS_MAX: usize = 150;

/// How long a subject, a plain part and an HTML part are, in bytes, as a rule.
const SUBJECT_BYTES: usize = 128;
/// See [`SUBJECT_BYTES`].
const TEXT_BYTES: usize = 2 * 1024;
/// See [`SUBJECT_BYTES`].
const HTML_BYTES: usize = 16 * 1024;

/// How many different locale texts of documents are remembered, with what they mean. There are some hundred real ones; what
/// a document holds beyond that is worked out anew for each mail.
const READERS_MAX: usize = 512;

/// A mail in words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RenderedEmail {
    /// One line, not yet encoded.
    pub subject: String,
    /// The plain part.
    pub text: String,
    /// The HTML part, a whole document.
    pub html: String,
    /// The language that it is written in: the reader's own tag (`fr-CA`) where the words are of that language.
    pub language: String,
}

/// Something wrong with a template, found when templates are loaded.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct TemplateProblem {
    /// The file; one that is compiled in is named as in the source tree.
    pub file: String,
    /// The line, from 1, where it is about one.
    pub line: Option<usize>,
    /// What is wrong.
    pub message: String,
}

impl fmt::Display for TemplateProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            Some(line) => write!(f, "{}:{line}: {}", self.file, self.message),
            None => write!(f, "{}: {}", self.file, self.message),
        }
    }
}

impl std::error::Error for TemplateProblem {}

/// A mail that could not be put in words, because it lacks a fact that its template counts on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{template} for {recipient} in {language}: {cause}")]
pub struct RenderError {
    /// Which mail.
    pub template: Template,
    /// Which of its versions: `account_manager`, `organization_contact`.
    pub recipient: &'static str,
    /// In which language.
    pub language: String,
    /// Why.
    pub cause: String,
}

/// All templates, ready to use.
#[derive(Debug)]
pub struct Templates {
    sets: Vec<Set>,
    /// What each locale text of a document means.
    readers: RwLock<HashMap<String, Arc<Reader>>>,
}

/// The templates of one language, or of one of its regions.
#[derive(Debug)]
struct Set {
    locale: LanguageIdentifier,
    mails: HashMap<(Template, Recipient), Mail>,
}

/// The templates of one mail.
#[derive(Debug)]
struct Mail {
    subject: Vec<Piece>,
    text: Vec<Piece>,
    html: Vec<Piece>,
}

/// What a locale text of a document comes down to.
#[derive(Debug)]
struct Reader {
    /// The index of the words.
    set: usize,
    /// The tag of the mail.
    language: String,
    formats: Formats,
}

impl Templates {
    /// Loads the built-in templates and those of the directory `overrides`, and tries every one of them.
    ///
    /// # Errors
    /// Every problem that there is, by file and line.
    pub fn load(overrides: Option<&Path>) -> Result<Self, Vec<TemplateProblem>> {
        let mut loader = Loader::new();
        loader.read_built_in();
        if let Some(directory) = overrides {
            loader.read_directory(directory);
        }
        loader.finish()
    }

    /// The languages that there are words in: `en`, `es`, `fr`, and those added.
    pub fn locales(&self) -> impl Iterator<Item = String> + '_ {
        self.sets.iter().map(|set| set.locale.to_string())
    }

    /// Puts a mail in words, in the language that comes closest to the reader's.
    ///
    /// # Errors
    /// When the mail lacks a fact that its template needs.
    pub fn render(&self, notification: &Notification) -> Result<RenderedEmail, RenderError> {
        let reader = self.reader(&notification.locale);
        let error = |cause| RenderError {
            template: notification.template,
            recipient: notification.recipient.as_str(),
            language: reader.language.clone(),
            cause,
        };
        let mail = self.mail(&reader, notification).ok_or_else(|| error("there are no words for it".to_owned()))?;
        mail.fill(&reader, &notification.facts).map_err(|Name { name, .. }| error(format!("it has no `{name}`")))
    }

    /// The language that [`render`](Self::render) writes a mail in.
    #[must_use]
    pub fn language(&self, notification: &Notification) -> String {
        self.reader(&notification.locale).language.clone()
    }

    fn mail(&self, reader: &Reader, notification: &Notification) -> Option<&Mail> {
        self.sets[reader.set].mails.get(&(notification.template, notification.recipient))
    }

    fn reader(&self, locale: &str) -> Arc<Reader> {
        // A lock is poisoned when a holder panicked. The map is whole even then: entries are only ever added.
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

    /// The words closest to `locale`: its region's, its language's, English.
    fn new_reader(&self, locale: &str) -> Reader {
        // Where the rest of a tag is not readable, as in `fr-1`, its language is.
        let wanted = parse_tag(locale).or_else(|| parse_tag(locale.split(['-', '_']).next()?));
        let found = wanted.as_ref().and_then(|wanted| {
            ancestry(wanted).iter().find_map(|tag| self.sets.iter().position(|set| set.locale == *tag))
        });
        let fallback = self.sets.iter().position(|set| set.locale.to_string() == FALLBACK).unwrap_or_default();
        let set = found.unwrap_or(fallback);
        // Dates in the reader's way, but never in another language than the words around them.
        let tag = wanted.filter(|_| found.is_some()).unwrap_or_else(|| self.sets[set].locale.clone());
        Reader { set, language: tag.to_string(), formats: Formats::new(&tag) }
    }
}

impl Mail {
    /// Puts facts in the words of this mail. The error is a name that they have no words for.
    fn fill(&self, reader: &Reader, facts: &Facts) -> Result<RenderedEmail, &Name> {
        let mut facts = view(facts, &reader.formats, &reader.language);
        let mut subject = String::with_capacity(SUBJECT_BYTES);
        fill(&self.subject, &facts, String::push_str, &mut subject)?;
        let subject = shorten(&single_line(&subject), SUBJECT_CHARS_MAX);
        facts.insert(SUBJECT, Shown::Words(subject.clone()));
        let mut text = String::with_capacity(TEXT_BYTES);
        fill(&self.text, &facts, String::push_str, &mut text)?;
        let mut html = String::with_capacity(HTML_BYTES);
        fill(&self.html, &facts, push_escaped, &mut html)?;
        Ok(RenderedEmail { subject, text: tidy(&text), html, language: reader.language.clone() })
    }
}

/// A tag and what it is a kind of: `zh-Hant-TW`, `zh-Hant`, `zh`.
fn ancestry(tag: &LanguageIdentifier) -> Vec<LanguageIdentifier> {
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

/// A plain part without the gaps that unmet conditions leave: never more than one empty line, none at either end.
fn tidy(text: &str) -> String {
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

/// Escapes what means something in HTML text or a quoted attribute. Apostrophes mean nothing in either (attributes are
/// quoted with `"`), and are left as they are: not every program that shows a preview of a mail understands `&#39;`.
fn escape_html(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    push_escaped(&mut escaped, text);
    escaped
}

/// See [`escape_html`].
fn push_escaped(escaped: &mut String, text: &str) {
    let mut rest = text;
    while let Some(at) = rest.find(['&', '<', '>', '"']) {
        escaped.push_str(&rest[..at]);
        escaped.push_str(match rest.as_bytes()[at] {
            b'&' => "&amp;",
            b'<' => "&lt;",
            b'>' => "&gt;",
            _ => "&quot;",
        });
        rest = &rest[at + 1..];
    }
    escaped.push_str(rest);
}

/// `payment-failed.account_manager`
fn mail_name(template: Template, recipient: Recipient) -> String {
    format!("{template}.{}", recipient.as_str())
}

/// Every mail there is: template and recipient.
fn mails() -> impl Iterator<Item = (Template, Recipient)> {
    Template::ALL
        .into_iter()
        .flat_map(|template| template.recipients().iter().map(move |&recipient| (template, recipient)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn built_in_templates_are_sound() {
        let templates = Templates::load(None).unwrap_or_else(|problems| panic!("{problems:#?}"));
        assert_eq!(templates.locales().collect::<Vec<_>>(), ["en", "es", "fr"]);
    }
}
