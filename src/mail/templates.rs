//! The words of the mails: templates loaded, checked and tried out at start, then filled in, mail after mail.
//!
//! One folder per language holds one pair of files per mail and recipient, `payment-failed.account_manager.txt` and
//! `….html`, and partials, whose names begin with `_`. The first line of a text file is the mail's subject. What stands
//! beside the folders serves all languages: `_layout.html`, the page around every HTML part. The files in `templates/` are
//! compiled in; those of `OFFRAMP_TEMPLATES` replace them one by one and may add languages. A folder with a region
//! (`fr-CA`) holds only what differs from its language's.
//!
//! What mails say is data and is never read as a template. Templates know `{{name}}`, `{{#if}}`, `{{#unless}}` and
//! `{{> partial}}`; names are checked where they stand, also in branches that no try-out takes.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::fs;
use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};

use handlebars::template::{HelperTemplate, Parameter, Template as Parsed, TemplateElement};
use handlebars::{Context, Handlebars};
use icu::locale::LanguageIdentifier;
use serde_json::{Map, Value};

use super::locale::{Formats, parse_tag};
use super::message::{shorten, single_line};
use super::samples::{every_fact, samples};
use super::view::{SUBJECT, view};
use crate::domain::notification::{Notification, Recipient, Template};

/// The language that everybody gets whose own there is not.
const FALLBACK: &str = "en";

/// The longest subject, in characters. Mail programs show half of it.
const SUBJECT_CHARS_MAX: usize = 150;

/// How deep partials may stand in partials.
const PARTIAL_DEPTH_MAX: usize = 8;

/// How many different locale texts of documents are remembered, with what they mean. There are some hundred real ones; what
/// a document holds beyond that is worked out anew for each mail.
const READERS_MAX: usize = 512;

/// The partial that stands for the mail itself in the page around it.
const CONTENT: &str = "content";

/// The page around every HTML part.
const LAYOUT: &str = "_layout.html";

/// The files compiled in: folder (none: for all languages), name, text.
macro_rules! built_in {
    (@locale $locale:literal: $($file:literal)*) => {
        &[$((Some($locale), $file, include_str!(concat!("../../templates/", $locale, "/", $file)))),*]
    };
    ($($locale:literal)*) => {
        &[
            &[(None, "_layout.html", include_str!("../../templates/_layout.html"))],
            $(built_in!(@locale $locale:
                "_facts.txt" "_facts.html"
                "_greeting.txt" "_greeting.html"
                "_footer-manager.txt" "_footer-manager.html"
                "_footer-organization.txt" "_footer-organization.html"
                "cancelled-by-admin.account_manager.txt" "cancelled-by-admin.account_manager.html"
                "removed-by-admin.account_manager.txt" "removed-by-admin.account_manager.html"
                "cancelled-by-client.organization_contact.txt" "cancelled-by-client.organization_contact.html"
                "cancelled-by-client.account_manager.txt" "cancelled-by-client.account_manager.html"
                "cancellation-requested.organization_contact.txt" "cancellation-requested.organization_contact.html"
                "cancellation-requested.account_manager.txt" "cancellation-requested.account_manager.html"
                "request-accepted.account_manager.txt" "request-accepted.account_manager.html"
                "request-declined.account_manager.txt" "request-declined.account_manager.html"
                "payment-failed.organization_contact.txt" "payment-failed.organization_contact.html"
                "payment-failed.account_manager.txt" "payment-failed.account_manager.html"
                "card-expiring.organization_contact.txt" "card-expiring.organization_contact.html"
                "card-expiring.account_manager.txt" "card-expiring.account_manager.html"
            )),*
        ]
    };
}

type BuiltInFile = (Option<&'static str>, &'static str, &'static str);
const BUILT_IN: &[&[BuiltInFile]] = built_in!("en" "es" "fr");

/// A mail in words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rendered {
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
    /// Nothing is escaped here: subjects and plain parts.
    text: Handlebars<'static>,
    /// Everything is escaped here.
    html: Handlebars<'static>,
    /// The names in both, put together once.
    names: HashMap<(Template, Recipient), Names>,
}

/// The names of one mail's three templates.
#[derive(Debug)]
struct Names {
    subject: String,
    body: String,
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
    pub fn render(&self, notification: &Notification) -> Result<Rendered, RenderError> {
        let reader = self.reader(&notification.locale);
        self.render_for(&reader, notification).map_err(|(_, error)| RenderError {
            template: notification.template,
            recipient: notification.recipient.as_str(),
            language: reader.language.clone(),
            cause: error.reason().to_string(),
        })
    }

    fn render_for(
        &self,
        reader: &Reader,
        notification: &Notification,
    ) -> Result<Rendered, (Part, handlebars::RenderError)> {
        let set = &self.sets[reader.set];
        let missing = || handlebars::RenderErrorReason::TemplateNotFound(notification.template.to_string()).into();
        let names =
            set.names.get(&(notification.template, notification.recipient)).ok_or_else(|| (Part::Text, missing()))?;

        let facts = view(&notification.facts, &reader.formats, &reader.language);
        let mut context = Context::from(Value::Object(facts));
        let subject = set.text.render_with_context(&names.subject, &context).map_err(|error| (Part::Text, error))?;
        let subject = shorten(&single_line(&subject), SUBJECT_CHARS_MAX);
        if let Value::Object(facts) = context.data_mut() {
            facts.insert(SUBJECT.to_owned(), Value::String(subject.clone()));
        }
        let text = set.text.render_with_context(&names.body, &context).map_err(|error| (Part::Text, error))?;
        let html = set.html.render_with_context(&names.body, &context).map_err(|error| (Part::Html, error))?;
        Ok(Rendered { subject, text: tidy(&text), html, language: reader.language.clone() })
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
        let wanted = parse_tag(locale);
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
    let mut escaped = String::with_capacity(text.len() + text.len() / 8);
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            _ => escaped.push(c),
        }
    }
    escaped
}

/// The two kinds of template files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Part {
    Text,
    Html,
}

impl Part {
    const ALL: [Self; 2] = [Self::Text, Self::Html];

    fn extension(self) -> &'static str {
        match self {
            Self::Text => "txt",
            Self::Html => "html",
        }
    }

    fn of(file_name: &str) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|part| file_name.rsplit_once('.').is_some_and(|(_, extension)| extension == part.extension()))
    }
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

/// A file where it belongs: in a language's folder, or beside them.
type Place = (Option<String>, String);

/// Reads files, notes every problem, and builds [`Templates`] when there is none.
struct Loader {
    known_names: KnownNames,
    files: Vec<SourceFile>,
    /// Which of the files stands at a place: the last one read.
    places: BTreeMap<Place, usize>,
    problems: BTreeSet<TemplateProblem>,
}

/// A file, parsed.
struct SourceFile {
    /// For people.
    path: String,
    subject: Option<Parsed>,
    body: Parsed,
}

impl Loader {
    fn new() -> Self {
        Self { known_names: KnownNames::new(), files: vec![], places: BTreeMap::new(), problems: BTreeSet::new() }
    }

    fn problem(&mut self, file: impl Into<String>, line: Option<usize>, message: impl Into<String>) {
        self.problems.insert(TemplateProblem { file: file.into(), line, message: message.into() });
    }

    fn read_built_in(&mut self) {
        for &(locale, name, text) in BUILT_IN.iter().copied().flatten() {
            let path = match locale {
                Some(locale) => format!("templates/{locale}/{name}"),
                None => format!("templates/{name}"),
            };
            self.add((locale.map(str::to_owned), name.to_owned()), path, text);
        }
    }

    /// Reads a directory laid out like the built-in one.
    fn read_directory(&mut self, directory: &Path) {
        for (name, path) in self.entries(directory) {
            if !path.is_dir() {
                self.read_file(None, name, &path);
            } else if let Some(tag) = parse_tag(&name) {
                let locale = tag.to_string();
                for (name, path) in self.entries(&path) {
                    self.read_file(Some(locale.clone()), name, &path);
                }
            } else {
                self.problem(path.display().to_string(), None, "not a language tag such as `pt` or `fr-CA`");
            }
        }
    }

    /// What a directory holds, in order, without what editors and systems leave there.
    fn entries(&mut self, directory: &Path) -> Vec<(String, std::path::PathBuf)> {
        let read = fs::read_dir(directory).and_then(Iterator::collect::<Result<Vec<_>, _>>);
        match read {
            Ok(entries) => {
                let mut entries: Vec<_> = entries
                    .into_iter()
                    .map(|entry| (entry.file_name().to_string_lossy().into_owned(), entry.path()))
                    .filter(|(name, _)| !name.starts_with('.') && !name.ends_with('~') && name != "README.md")
                    .collect();
                entries.sort();
                entries
            }
            Err(error) => {
                self.problem(directory.display().to_string(), None, format!("cannot be read: {error}"));
                vec![]
            }
        }
    }

    fn read_file(&mut self, locale: Option<String>, name: String, path: &Path) {
        let shown = path.display().to_string();
        let is_mail = locale.is_some()
            && mails().any(|(template, recipient)| {
                name.rsplit_once('.').is_some_and(|(stem, _)| stem == mail_name(template, recipient))
            });
        if Part::of(&name).is_none() || !(is_mail || name.starts_with('_')) {
            let message = "not a template: expected a mail such as `payment-failed.account_manager.txt`, or a partial, whose \
                           name begins with `_`, ending in .txt or .html";
            self.problem(shown, None, message);
            return;
        }
        match fs::read(path)
            .map_err(|error| error.to_string())
            .and_then(|bytes| String::from_utf8(bytes).map_err(|_| "it is not UTF-8".to_owned()))
        {
            Ok(text) => self.add((locale, name), shown, &text),
            Err(error) => self.problem(shown, None, format!("cannot be read: {error}")),
        }
    }

    /// Parses and checks one file.
    fn add(&mut self, place: Place, path: String, text: &str) {
        let text = text.trim_start_matches('\u{feff}').replace("\r\n", "\n");
        let is_mail_text = Part::of(&place.1) == Some(Part::Text) && !place.1.starts_with('_');
        let (subject, body) = if is_mail_text {
            // The subject is the first line; the body's lines are counted from where it begins.
            let split = text.strip_prefix("Subject:").and_then(|rest| rest.split_once('\n'));
            let Some((subject, body)) = split.and_then(|(subject, rest)| Some((subject, rest.strip_prefix('\n')?)))
            else {
                self.problem(path, Some(1), "begins with a line `Subject: …` and an empty line");
                return;
            };
            (self.parse(&path, subject.trim(), 0), self.parse(&path, body, 2))
        } else {
            (None, self.parse(&path, &text, 0))
        };
        let Some(body) = body else { return };
        if is_mail_text && subject.is_none() {
            return;
        }
        self.files.push(SourceFile { path, subject, body });
        self.places.insert(place, self.files.len() - 1);
    }

    /// Parses a text that begins `lines_before` lines into its file, and checks the names in it. From here on every
    /// element of it knows its line and the number of its file (in the place of its column).
    fn parse(&mut self, path: &str, text: &str, lines_before: usize) -> Option<Parsed> {
        match Parsed::compile(text) {
            Ok(mut parsed) => {
                locate(&mut parsed, lines_before, self.files.len());
                let mut found = Vec::new();
                self.known_names.lint(&parsed, &mut found);
                for (line, message) in found {
                    self.problem(path, Some(line), message);
                }
                Some(parsed)
            }
            Err(error) => {
                let line = error.pos().map(|(line, _)| line + lines_before);
                self.problem(path, line, single_line(&error.reason().to_string()));
                None
            }
        }
    }

    /// Puts the sets together and tries them out.
    fn finish(mut self) -> Result<Templates, Vec<TemplateProblem>> {
        let locales: BTreeSet<String> = self.places.keys().filter_map(|(locale, _)| locale.clone()).collect();
        let mut used = BTreeSet::new();
        let sets: Vec<Set> = locales.iter().filter_map(|locale| self.build_set(locale, &locales, &mut used)).collect();
        for index in self.places.values().copied().collect::<Vec<_>>() {
            if !used.contains(&index) {
                let path = self.files[index].path.clone();
                self.problem(path, None, "not used: no mail of this language has it, and no partial in one");
            }
        }
        let templates = Templates { sets, readers: RwLock::default() };
        if self.problems.is_empty() {
            self.try_out(&templates, &locales);
        }
        if self.problems.is_empty() { Ok(templates) } else { Err(self.problems.into_iter().collect()) }
    }

    /// The templates of one locale: its own files, then its language's, then those for all.
    fn build_set(&mut self, locale: &str, locales: &BTreeSet<String>, used: &mut BTreeSet<usize>) -> Option<Set> {
        let tag = parse_tag(locale)?;
        let folders: Vec<Option<String>> = ancestry(&tag)
            .iter()
            .map(ToString::to_string)
            .filter(|tag| locales.contains(tag))
            .map(Some)
            .chain([None])
            .collect();
        let mut set = Set { locale: tag, text: registry(), html: registry(), names: HashMap::new() };
        set.text.register_escape_fn(handlebars::no_escape);
        set.html.register_escape_fn(escape_html);

        for (template, recipient) in mails() {
            let body = mail_name(template, recipient);
            let names = Names { subject: format!("{body}.subject"), body };
            for part in Part::ALL {
                let file_name = format!("{}.{}", names.body, part.extension());
                let Some(index) = self.find(&folders, &file_name) else {
                    let file = format!("{locale}/{file_name}");
                    self.problem(file, None, "missing: without it this mail could not be sent in this language");
                    continue;
                };
                used.insert(index);
                let mut expander = Expander { loader: self, part, folders: &folders, used, problems: vec![] };
                match part {
                    Part::Text => {
                        let file = &expander.loader.files[index];
                        if let Some(subject) = &file.subject {
                            set.text.register_template(&names.subject, expander.expand(subject, None, 0));
                        }
                        let body = expander.expand(&expander.loader.files[index].body, None, 0);
                        set.text.register_template(&names.body, body);
                    }
                    Part::Html => {
                        let content = &expander.loader.files[index].body;
                        let Some(layout) = expander.loader.find(&folders, LAYOUT) else { continue };
                        expander.used.insert(layout);
                        let page = expander.expand(&expander.loader.files[layout].body, Some(content), 0);
                        set.html.register_template(&names.body, page);
                    }
                }
                self.problems.extend(expander.problems);
            }
            set.names.insert((template, recipient), names);
        }
        Some(set)
    }

    /// The file of this name that counts: the first of the folders that has one.
    fn find(&self, folders: &[Option<String>], name: &str) -> Option<usize> {
        folders.iter().find_map(|folder| self.places.get(&(folder.clone(), name.to_owned())).copied())
    }

    /// Puts every made-up mail in words. What is wrong with a template that parses shows here, not on a customer.
    fn try_out(&mut self, templates: &Templates, locales: &BTreeSet<String>) {
        for locale in locales {
            let reader = templates.new_reader(locale);
            for (template, recipient) in mails() {
                for sample in samples(template, recipient, locale) {
                    if let Err((part, error)) = templates.render_for(&reader, &sample.notification) {
                        let file = error.column_no.and_then(|file| self.files.get(file));
                        let file = match file {
                            Some(file) => file.path.clone(),
                            None => format!("{locale}/{}.{}", mail_name(template, recipient), part.extension()),
                        };
                        let cause = match error.reason() {
                            handlebars::RenderErrorReason::MissingVariable(Some(name)) => {
                                format!("`{name}` is not always there: put it inside {{{{#if {name}}}}}…{{{{/if}}}}")
                            }
                            reason => reason.to_string(),
                        };
                        let mail = mail_name(template, recipient);
                        self.problem(file, error.line_no, format!("{cause} (found with {mail}, {})", sample.variant));
                    }
                }
            }
        }
    }
}

/// An engine in which a name that is not there is an error, and only the helpers that the checks know exist.
fn registry() -> Handlebars<'static> {
    let mut registry = Handlebars::new();
    registry.set_strict_mode(true);
    registry
}

/// Puts partials in their places once, at load. The engine would copy all facts at each of them, for each mail.
struct Expander<'a> {
    loader: &'a Loader,
    part: Part,
    folders: &'a [Option<String>],
    used: &'a mut BTreeSet<usize>,
    problems: Vec<TemplateProblem>,
}

impl<'a> Expander<'a> {
    fn expand(&mut self, parsed: &'a Parsed, content: Option<&'a Parsed>, depth: usize) -> Parsed {
        let mut expanded = Parsed::default();
        for (element, at) in parsed.elements.iter().zip(&parsed.mapping) {
            match element {
                TemplateElement::PartialExpression(partial) => {
                    let name = partial.name.as_name().unwrap_or_default();
                    let inner = match content {
                        Some(content) if name == CONTENT => Ok(self.expand(content, None, depth + 1)),
                        _ => self.partial(name, content, depth),
                    };
                    match inner {
                        Ok(mut inner) => {
                            expanded.elements.append(&mut inner.elements);
                            expanded.mapping.append(&mut inner.mapping);
                        }
                        Err(message) => {
                            let file = self.loader.files.get(at.1).map(|file| file.path.clone()).unwrap_or_default();
                            self.problems.push(TemplateProblem { file, line: Some(at.0), message });
                        }
                    }
                }
                TemplateElement::HelperBlock(block) => {
                    let met = block.template.as_ref().map(|inner| self.expand(inner, content, depth));
                    let unmet = block.inverse.as_ref().map(|inner| self.expand(inner, content, depth));
                    let mut block = block.clone();
                    block.template = met;
                    block.inverse = unmet;
                    expanded.elements.push(TemplateElement::HelperBlock(block));
                    expanded.mapping.push(at.clone());
                }
                other => {
                    expanded.elements.push(other.clone());
                    expanded.mapping.push(at.clone());
                }
            }
        }
        expanded
    }

    fn partial(&mut self, name: &str, content: Option<&'a Parsed>, depth: usize) -> Result<Parsed, String> {
        let file_name = format!("_{name}.{}", self.part.extension());
        let index = self
            .loader
            .find(self.folders, &file_name)
            .ok_or_else(|| format!("there is no partial `{name}`: the file {file_name} is missing"))?;
        if depth >= PARTIAL_DEPTH_MAX {
            return Err(format!("the partial `{name}` contains itself, or stands {PARTIAL_DEPTH_MAX} partials deep"));
        }
        self.used.insert(index);
        let loader = self.loader;
        Ok(self.expand(&loader.files[index].body, content, depth + 1))
    }
}

/// Writes into every element's position its line in the file and, in the place of the column, the number of the file.
fn locate(parsed: &mut Parsed, lines_before: usize, file: usize) {
    for (element, at) in parsed.elements.iter_mut().zip(&mut parsed.mapping) {
        if let TemplateElement::HelperBlock(block) = element {
            for inner in [&mut block.template, &mut block.inverse].into_iter().flatten() {
                // The parser gives `{{else if}}` no position: it stands where its block does.
                inner.mapping.resize(inner.elements.len(), at.clone());
                locate(inner, lines_before, file);
            }
        }
        at.0 += lines_before;
        at.1 = file;
    }
}

/// The names that templates may use.
struct KnownNames {
    /// What can be written out: `participant`, `card.brand`.
    values: BTreeSet<String>,
    /// What has parts, and can only be asked for: `card`.
    groups: BTreeSet<String>,
}

impl KnownNames {
    fn new() -> Self {
        let locale = parse_tag(FALLBACK).unwrap_or(LanguageIdentifier::UNKNOWN);
        let mut names = Self { values: BTreeSet::from([SUBJECT.to_owned()]), groups: BTreeSet::new() };
        names.add("", &view(&every_fact(), &Formats::new(&locale), FALLBACK));
        names
    }

    fn add(&mut self, prefix: &str, facts: &Map<String, Value>) {
        for (name, value) in facts {
            let name = format!("{prefix}{name}");
            if let Value::Object(parts) = value {
                self.add(&format!("{name}."), parts);
                self.groups.insert(name);
            } else {
                self.values.insert(name);
            }
        }
    }

    /// Finds what templates may not have in them: names that no mail knows, wherever they stand, and whatever would make
    /// a template more than words with names in them. The lines are those of the file.
    fn lint(&self, parsed: &Parsed, found: &mut Vec<(usize, String)>) {
        for (element, at) in parsed.elements.iter().zip(&parsed.mapping) {
            match element {
                TemplateElement::RawString(_) | TemplateElement::Comment(_) => {}
                TemplateElement::Expression(value) => {
                    found.extend(self.lint_value(value).map(|message| (at.0, message)));
                }
                TemplateElement::HtmlExpression(value) => {
                    let name = value.name.as_name().unwrap_or_default();
                    let message = format!(
                        "{{{{{{{name}}}}}}} is not escaped, so a name could put HTML into mails: use {{{{{name}}}}}"
                    );
                    found.push((at.0, message));
                }
                TemplateElement::HelperBlock(block) => {
                    found.extend(self.lint_condition(block).map(|message| (at.0, message)));
                    for inner in [&block.template, &block.inverse].into_iter().flatten() {
                        self.lint(inner, found);
                    }
                }
                TemplateElement::PartialExpression(partial) if partial.params.is_empty() && partial.hash.is_empty() => {
                }
                // Partials with blocks or parameters, decorators, and whatever else the engine may learn.
                _ => {
                    found.push((
                        at.0,
                        "this cannot be used; of partials there is only the plain form {{> name}}".to_owned(),
                    ));
                }
            }
        }
    }

    fn lint_value(&self, value: &HelperTemplate) -> Option<String> {
        let name = value.name.as_name().unwrap_or_default();
        if !value.params.is_empty() || !value.hash.is_empty() {
            return Some(format!("there is no helper `{name}`; only {{{{#if …}}}} and {{{{#unless …}}}} can be used"));
        }
        if self.groups.contains(name) {
            return Some(format!("`{name}` has parts; name one of them, such as `{name}.{}`", self.first_part(name)));
        }
        (!self.values.contains(name)).then(|| format!("unknown name `{name}`"))
    }

    fn lint_condition(&self, block: &HelperTemplate) -> Option<String> {
        let helper = block.name.as_name().unwrap_or_default();
        if !matches!(helper, "if" | "unless") {
            return Some(format!("there is no block `{helper}`; only {{{{#if …}}}} and {{{{#unless …}}}} can be used"));
        }
        let [Parameter::Path(_) | Parameter::Name(_)] = block.params.as_slice() else {
            return Some(format!("{{{{#{helper} …}}}} asks for one name"));
        };
        let name = block.params.first().and_then(Parameter::as_name).unwrap_or_default();
        (!self.values.contains(name) && !self.groups.contains(name)).then(|| format!("unknown name `{name}`"))
    }

    fn first_part(&self, group: &str) -> &str {
        let prefix = format!("{group}.");
        self.values.iter().find_map(|name| name.strip_prefix(prefix.as_str())).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn built_in() -> Templates {
        Templates::load(None).unwrap_or_else(|problems| panic!("{problems:#?}"))
    }

    #[test]
    fn built_in_templates_are_sound() {
        assert_eq!(built_in().locales().collect::<Vec<_>>(), ["en", "es", "fr"]);
    }
}
