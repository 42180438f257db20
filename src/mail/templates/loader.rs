//! Reads template files, notes every mistake in them, and builds [`Templates`] when there is none.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::RwLock;

use handlebars::Handlebars;
use handlebars::template::{Template as Parsed, TemplateElement};
use mrml::prelude::render::RenderOptions;

use super::lint::KnownNames;
use super::markup::{self, ADDRESS, Block, CONTENT, Design, LABEL};
use super::{Names, Part, Set, TemplateProblem, Templates, ancestry, escape_html, mail_name, mails};
use crate::domain::notification::Recipient;
use crate::mail::locale::parse_tag;
use crate::mail::message::single_line;
use crate::mail::samples::samples;

/// How deep partials may stand in partials.
const PARTIAL_DEPTH_MAX: usize = 8;

/// The page around every HTML part, and its places besides that of the content.
const LAYOUT: &str = "_layout.mjml";
const FOOTER: &str = "{{> footer}}";
const PREVIEW: &str = "{{> preview}}";

/// How paragraphs below the mail look.
const SMALL_PRINT: &str = "_small-print.mjml";

/// The files compiled in: folder (none: for all languages), name, text.
macro_rules! built_in {
    ($($locale:literal)*) => {
        &[
            built_in!(@design "_layout.mjml" "_headline.mjml" "_paragraph.mjml" "_notice.mjml" "_button.mjml" "_facts.mjml"
                "_fact.mjml" "_small-print.mjml"),
            $(built_in!(@words $locale:
                "_facts.md" "_greeting.md" "_footer.account_manager.md" "_footer.organization_contact.md"
                "cancelled-by-admin.account_manager.md"
                "removed-by-admin.account_manager.md"
                "cancelled-by-client.organization_contact.md" "cancelled-by-client.account_manager.md"
                "cancellation-requested.organization_contact.md" "cancellation-requested.account_manager.md"
                "request-accepted.account_manager.md"
                "request-declined.account_manager.md"
                "payment-failed.organization_contact.md" "payment-failed.account_manager.md"
                "card-expiring.organization_contact.md" "card-expiring.account_manager.md"
            )),*
        ]
    };
    (@design $($file:literal)*) => {
        &[$((None, $file, include_str!(concat!("../../../templates/", $file)))),*]
    };
    (@words $locale:literal: $($file:literal)*) => {
        &[$((Some($locale), $file, include_str!(concat!("../../../templates/", $locale, "/", $file)))),*]
    };
}

type BuiltInFile = (Option<&'static str>, &'static str, &'static str);
const BUILT_IN: &[&[BuiltInFile]] = built_in!("en" "es" "fr");

/// A file where it belongs: in a language's folder, or beside them.
type Place = (Option<String>, String);

/// Files read so far, and what is wrong with them.
pub(super) struct Loader {
    known_names: KnownNames,
    files: Vec<SourceFile>,
    /// Which of the files stands at a place: the last one read.
    places: BTreeMap<Place, usize>,
    problems: BTreeSet<TemplateProblem>,
}

struct SourceFile {
    /// For people.
    path: String,
    content: Content,
}

enum Content {
    /// `.md`: what a mail says, or a partial.
    Words(Words),
    /// `.mjml`: how it looks.
    Design(String),
}

struct Words {
    subject: Option<Parsed>,
    /// What lists of mails show beside the subject; perhaps nothing.
    preview: String,
    blocks: Vec<Block>,
    /// The blocks as plain text. Each element knows its line and the number of its file (in the place of its column).
    text: Parsed,
}

impl Loader {
    pub(super) fn new() -> Self {
        Self { known_names: KnownNames::new(), files: vec![], places: BTreeMap::new(), problems: BTreeSet::new() }
    }

    fn problem(&mut self, file: impl Into<String>, line: Option<usize>, message: impl Into<String>) {
        self.problems.insert(TemplateProblem { file: file.into(), line, message: message.into() });
    }

    pub(super) fn read_built_in(&mut self) {
        for &(locale, name, text) in BUILT_IN.iter().copied().flatten() {
            let path = match locale {
                Some(locale) => format!("templates/{locale}/{name}"),
                None => format!("templates/{name}"),
            };
            self.add((locale.map(str::to_owned), name.to_owned()), path, text);
        }
    }

    /// Reads a directory laid out like the built-in one.
    pub(super) fn read_directory(&mut self, directory: &Path) {
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
    fn entries(&mut self, directory: &Path) -> Vec<(String, PathBuf)> {
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
        let is_template = match name.rsplit_once('.') {
            Some((stem, "md")) => {
                stem.starts_with('_')
                    || locale.is_some() && mails().any(|(template, to)| stem == mail_name(template, to))
            }
            Some((stem, "mjml")) => stem.starts_with('_'),
            _ => false,
        };
        if !is_template {
            let message = "not a template: expected a mail such as `payment-failed.account_manager.md`, a partial such as \
                           `_greeting.md`, or a part of the design such as `_layout.mjml`";
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
        let content = match place.1.rsplit_once('.') {
            Some((_, "mjml")) => self.design(&path, text).map(Content::Design),
            _ => self.words(&path, &text, !place.1.starts_with('_')).map(Content::Words),
        };
        if let Some(content) = content {
            self.files.push(SourceFile { path, content });
            self.places.insert(place, self.files.len() - 1);
        }
    }

    fn design(&mut self, path: &str, text: String) -> Option<String> {
        let parsed = self.parse(path, &text, 0)?;
        for (element, at) in parsed.elements.iter().zip(&parsed.mapping) {
            if let TemplateElement::PartialExpression(partial) = element {
                let place = format!("{{{{> {}}}}}", partial.name.as_name().unwrap_or_default());
                if ![CONTENT, LABEL, ADDRESS, FOOTER, PREVIEW].contains(&place.as_str()) || !text.contains(&place) {
                    let message = format!(
                        "there is no place {place}; there are {CONTENT}, {LABEL}, {ADDRESS}, {FOOTER} and {PREVIEW}"
                    );
                    self.problem(path, Some(at.0), message);
                }
            }
        }
        Some(text)
    }

    fn words(&mut self, path: &str, text: &str, is_mail: bool) -> Option<Words> {
        let (mut subject, mut preview, mut body, mut lines_before) = (None, String::new(), text, 0);
        if is_mail {
            let Some((first, rest)) = text.strip_prefix("Subject:").and_then(|rest| rest.split_once('\n')) else {
                self.problem(path, Some(1), "begins with a line `Subject: …`");
                return None;
            };
            subject = Some(self.parse(path, first.trim(), 0)?);
            (body, lines_before) = (rest, 1);
            if let Some((second, rest)) = body.strip_prefix("Preview:").and_then(|rest| rest.split_once('\n')) {
                self.parse(path, second.trim(), 1)?;
                (preview, body, lines_before) = (second.trim().to_owned(), rest, 2);
            }
            if !body.starts_with('\n') {
                let message =
                    "an empty line is missing: first come `Subject: …` and `Preview: …`, then what the mail says";
                self.problem(path, Some(lines_before + 1), message);
                return None;
            }
        }
        self.parse(path, body, lines_before)?;
        let blocks = match markup::parse(body, lines_before) {
            Ok(blocks) => blocks,
            Err((line, message)) => {
                self.problem(path, Some(line), message);
                return None;
            }
        };
        let (text, lines) = markup::to_text(&blocks);
        let mut text = match Parsed::compile(&text) {
            Ok(text) => text,
            Err(error) => {
                let line = error.pos().and_then(|(line, _)| lines.get(line.saturating_sub(1)).copied());
                self.problem(path, line, single_line(&error.reason().to_string()));
                return None;
            }
        };
        let file = self.files.len();
        if let Some(subject) = &mut subject {
            locate(subject, &|_| 1, file);
        }
        locate(&mut text, &|line| lines.get(line.saturating_sub(1)).copied().unwrap_or_default(), file);
        Some(Words { subject, preview, blocks, text })
    }

    /// Parses a text that begins `lines_before` lines into its file, and checks what is in it.
    fn parse(&mut self, path: &str, text: &str, lines_before: usize) -> Option<Parsed> {
        match Parsed::compile(text) {
            Ok(mut parsed) => {
                locate(&mut parsed, &|line| line + lines_before, 0);
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
    pub(super) fn finish(mut self) -> Result<Templates, Vec<TemplateProblem>> {
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

        let mut files = Files { loader: self, folders: &folders, used, problems: vec![] };
        let style = files.style();
        for (template, recipient) in mails() {
            let body = mail_name(template, recipient);
            let names = Names { subject: format!("{body}.subject"), body };
            let Some(index) = files.find(&format!("{}.md", names.body)) else {
                let file = format!("{locale}/{}.md", names.body);
                files.problem(file, None, "missing: without it this mail could not be sent in this language");
                continue;
            };
            let Some(footer) = files.find(&footer_name(recipient)) else {
                files.problem(format!("{locale}/{}", footer_name(recipient)), None, "missing: every mail ends with it");
                continue;
            };
            let Content::Words(words) = &files.loader.files[index].content else { continue };
            if let Some(subject) = &words.subject {
                set.text.register_template(&names.subject, subject.clone());
            }
            let mut text = files.expand(&words.text, 0);
            if let Content::Words(footer) = &files.loader.files[footer].content {
                let mut footer = files.expand(&footer.text, 0);
                text.elements.append(&mut footer.elements);
                text.mapping.append(&mut footer.mapping);
            }
            set.text.register_template(&names.body, text);
            if let Some(style) = &style
                && let Some(page) = files.page(style, words, footer)
            {
                set.html.register_template(&names.body, page);
            }
            set.names.insert((template, recipient), names);
        }
        let problems = files.problems;
        self.problems.extend(problems);
        Some(set)
    }

    /// Puts every made-up mail in words. What is wrong with a template that parses shows here, not on a customer.
    fn try_out(&mut self, templates: &Templates, locales: &BTreeSet<String>) {
        for locale in locales {
            let reader = templates.new_reader(locale);
            for (template, recipient) in mails() {
                for sample in samples(template, recipient, locale) {
                    let Err((part, error)) = templates.render_for(&reader, &sample.notification) else { continue };
                    let mail = mail_name(template, recipient);
                    let file = match (part, error.column_no.and_then(|file| self.files.get(file))) {
                        (Part::Text, Some(file)) => file.path.clone(),
                        (Part::Text, None) => format!("{locale}/{mail}.md"),
                        (Part::Html, _) => LAYOUT.to_owned(),
                    };
                    let cause = match error.reason() {
                        handlebars::RenderErrorReason::MissingVariable(Some(name)) => {
                            format!("`{name}` is not always there: put it inside {{{{#if {name}}}}}…{{{{/if}}}}")
                        }
                        reason => reason.to_string(),
                    };
                    let line = error.line_no.filter(|_| part == Part::Text);
                    self.problem(file, line, format!("{cause} (found with {mail}, {})", sample.variant));
                }
            }
        }
    }
}

/// `_footer.account_manager.md`: what every mail to this recipient ends with.
fn footer_name(recipient: Recipient) -> String {
    format!("_footer.{}.md", recipient.as_str())
}

/// An engine in which a name that is not there is an error, and only the helpers that the checks know exist.
fn registry() -> Handlebars<'static> {
    let mut registry = Handlebars::new();
    registry.set_strict_mode(true);
    registry
}

/// How the mails of a locale look.
struct Style {
    layout: String,
    body: Design,
    footer: Design,
}

/// The files of one locale. Partials are put in their places once, here: the engine would copy all facts at each of them, for
/// each mail.
struct Files<'a> {
    loader: &'a Loader,
    folders: &'a [Option<String>],
    used: &'a mut BTreeSet<usize>,
    problems: Vec<TemplateProblem>,
}

impl<'a> Files<'a> {
    fn problem(&mut self, file: String, line: Option<usize>, message: impl Into<String>) {
        self.problems.push(TemplateProblem { file, line, message: message.into() });
    }

    /// The file of this name that counts: the first of the folders that has one.
    fn find(&mut self, name: &str) -> Option<usize> {
        let index = self
            .folders
            .iter()
            .find_map(|folder| self.loader.places.get(&(folder.clone(), name.to_owned())).copied())?;
        self.used.insert(index);
        Some(index)
    }

    fn style(&mut self) -> Option<Style> {
        let mut part = |name: &str| match &self.loader.files[self.find(name)?].content {
            Content::Design(design) => Some(design.clone()),
            Content::Words(_) => None,
        };
        let body = Design {
            headline: part("_headline.mjml")?,
            paragraph: part("_paragraph.mjml")?,
            notice: part("_notice.mjml")?,
            button: part("_button.mjml")?,
            facts: part("_facts.mjml")?,
            fact: part("_fact.mjml")?,
        };
        let footer = Design { paragraph: part(SMALL_PRINT)?, ..body.clone() };
        Some(Style { layout: part(LAYOUT)?, body, footer })
    }

    fn partial(&mut self, name: &str) -> Option<&'a Words> {
        let index = self.find(&format!("_{name}.md"))?;
        match &self.loader.files[index].content {
            Content::Words(words) => Some(words),
            Content::Design(_) => None,
        }
    }

    fn expand(&mut self, parsed: &'a Parsed, depth: usize) -> Parsed {
        let mut expanded = Parsed::default();
        for (element, at) in parsed.elements.iter().zip(&parsed.mapping) {
            match element {
                TemplateElement::PartialExpression(partial) => {
                    let name = partial.name.as_name().unwrap_or_default();
                    let found = self.partial(name);
                    let message = if found.is_none() {
                        format!("there is no partial `{name}`: the file _{name}.md is missing")
                    } else {
                        format!("the partial `{name}` contains itself, or stands {PARTIAL_DEPTH_MAX} partials deep")
                    };
                    if let Some(partial) = found.filter(|_| depth < PARTIAL_DEPTH_MAX) {
                        let mut inner = self.expand(&partial.text, depth + 1);
                        expanded.elements.append(&mut inner.elements);
                        expanded.mapping.append(&mut inner.mapping);
                    } else {
                        let file = self.loader.files.get(at.1).map(|file| file.path.clone()).unwrap_or_default();
                        self.problem(file, Some(at.0), message);
                    }
                }
                TemplateElement::HelperBlock(block) => {
                    let met = block.template.as_ref().map(|inner| self.expand(inner, depth));
                    let unmet = block.inverse.as_ref().map(|inner| self.expand(inner, depth));
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

    /// Blocks in the design's MJML. What is wrong with partials, [`Self::expand`] has told.
    fn mjml(&mut self, blocks: &'a [Block], design: &Design, depth: usize) -> String {
        markup::to_mjml(blocks, design, &mut |name| match self.partial(name) {
            Some(partial) if depth < PARTIAL_DEPTH_MAX => self.mjml(&partial.blocks, design, depth + 1),
            _ => String::new(),
        })
    }

    /// The template of the HTML part: the page with the mail in it, compiled from MJML.
    fn page(&mut self, style: &Style, words: &'a Words, footer: usize) -> Option<Parsed> {
        let content = self.mjml(&words.blocks, &style.body, 0);
        let footer = match &self.loader.files[footer].content {
            Content::Words(footer) => self.mjml(&footer.blocks, &style.footer, 0),
            Content::Design(_) => return None,
        };
        let mjml = style
            .layout
            .replace(PREVIEW, &escape_html(&words.preview))
            .replace(FOOTER, &footer)
            .replace(CONTENT, &content);
        let compiled = compile_mjml(&mjml).and_then(|html| {
            Parsed::compile(&html).map_err(|error| format!("the page made of it is no template: {}", error.reason()))
        });
        match compiled {
            Ok(page) => Some(page),
            Err(message) => {
                self.problem(LAYOUT.to_owned(), None, single_line(&message));
                None
            }
        }
    }
}

/// MJML in HTML, in lines short enough for every mail server to take as they are.
fn compile_mjml(mjml: &str) -> Result<String, String> {
    let parsed = mrml::parse(mjml).map_err(|error| format!("the design is no MJML: {error}"))?;
    if let Some(warning) = parsed.warnings.first() {
        return Err(format!("the design is no MJML: {warning}"));
    }
    // No fonts from elsewhere: who opens a mail tells nobody of it.
    let options = RenderOptions { fonts: HashMap::new(), ..RenderOptions::default() };
    let html = parsed.element.render(&options).map_err(|error| format!("the design is no MJML: {error}"))?;
    // A page has a main part, for those who hear it.
    let html = html.replacen("role=\"article\"", "role=\"main\"", 1);
    // White space between these elements is not seen.
    let broken = ["<table", "<tbody", "<tr", "<td", "<th", "<div", "<style", "<body", "<!--[if"]
        .iter()
        .fold(html, |html, tag| html.replace(tag, &format!("\n{tag}")));
    Ok(broken)
}

/// Writes into every element's position its line in the file and, in the place of the column, the number of the file.
fn locate(parsed: &mut Parsed, line: &dyn Fn(usize) -> usize, file: usize) {
    for (element, at) in parsed.elements.iter_mut().zip(&mut parsed.mapping) {
        if let TemplateElement::HelperBlock(block) = element {
            for inner in [&mut block.template, &mut block.inverse].into_iter().flatten() {
                // The parser gives `{{else if}}` no position: it stands where its block does.
                inner.mapping.resize(inner.elements.len(), at.clone());
                locate(inner, line, file);
            }
        }
        at.0 = line(at.0);
        at.1 = file;
    }
}
