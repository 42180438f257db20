//! Reads template files, notes every mistake in them, and builds [`Templates`] when there is none.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::RwLock;

use handlebars::template::Template as Parsed;
use mrml::prelude::render::RenderOptions;

use super::lint::KnownNames;
use super::markup::{self, ADDRESS, Block, CONTENT, Design, LABEL};
use super::pieces::{Name, Piece, Position, partials_in, pieces, replace_partials};
use super::{Mail, Set, TemplateProblem, Templates, ancestry, escape_html, mail_name, mails};
use crate::locale::parse_tag;
use crate::message::single_line;
use crate::samples::samples;
use offramp_domain::notification::{Recipient, Template};

/// How deep partials may stand in partials.
const PARTIAL_DEPTH_MAX: usize = 8;

/// The page around every HTML part, and its places besides that of the content.
const LAYOUT: &str = "_layout.mjml";
const FOOTER: &str = "{{> footer}}";
const PREVIEW: &str = "{{> preview}}";

/// The pieces of the design that have places of their own.
const BUTTON: &str = "_button.mjml";
/// See [`BUTTON`].
const FACT: &str = "_fact.mjml";

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
        &[$((None, $file, include_str!(concat!("../../../../templates/", $file)))),*]
    };
    (@words $locale:literal: $($file:literal)*) => {
        &[$((Some($locale), $file, include_str!(concat!("../../../../templates/", $locale, "/", $file)))),*]
    };
}

type BuiltInFile = (Option<&'static str>, &'static str, &'static str);
const BUILT_IN: &[&[BuiltInFile]] = built_in!("en" "es" "fr");

/// A file where it belongs: in a language's folder, or beside them.
type Place = (Option<String>, String);

/// Files read so far, and what is wrong with them.
pub(super) struct Loader {
    names_in_subjects: KnownNames,
    names: KnownNames,
    files: Vec<SourceFile>,
    /// Which of the files stands at a place: the last one read.
    places: BTreeMap<Place, usize>,
    problems: BTreeSet<TemplateProblem>,
}

/// A part of a file.
#[derive(Clone, Copy)]
enum Part {
    Subject,
    Rest,
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
    /// What is wrong with it has been told.
    Unusable,
}

struct Words {
    /// In mails.
    subject: Option<Vec<Piece>>,
    /// What lists of mails show beside the subject, in HTML; perhaps nothing.
    preview: Vec<Piece>,
    blocks: Vec<Block>,
    /// The blocks as plain text.
    text: Vec<Piece>,
}

impl Loader {
    pub(super) fn new() -> Self {
        Self {
            names_in_subjects: KnownNames::in_subjects(),
            names: KnownNames::below_subjects(),
            files: vec![],
            places: BTreeMap::new(),
            problems: BTreeSet::new(),
        }
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
            Err(error) => {
                self.problem(shown.clone(), None, format!("cannot be read: {error}"));
                self.put((locale, name), shown, None);
            }
        }
    }

    /// Parses and checks one file.
    fn add(&mut self, place: Place, path: String, text: &str) {
        let text = text.trim_start_matches('\u{feff}').replace("\r\n", "\n");
        let content = match place.1.rsplit_once('.') {
            Some((_, "mjml")) => self.design(&path, &place.1, text).map(Content::Design),
            _ => self.words(&path, &text, !place.1.starts_with('_')).map(Content::Words),
        };
        self.put(place, path, content);
    }

    fn put(&mut self, place: Place, path: String, content: Option<Content>) {
        self.files.push(SourceFile { path, content: content.unwrap_or(Content::Unusable) });
        self.places.insert(place, self.files.len() - 1);
    }

    fn design(&mut self, path: &str, name: &str, text: String) -> Option<String> {
        let parsed = self.parse(path, &text, 0, Part::Rest)?;
        let places = places(name);
        let file = self.files.len();
        let pieces = pieces(&parsed, &|line| Some(Position { file, line }));
        let found: Vec<(String, Option<usize>)> = partials_in(&pieces)
            .into_iter()
            .map(|Name { name, position }| (format!("{{{{> {name}}}}}"), position.map(|position| position.line)))
            .collect();
        for (place, line) in &found {
            if !places.contains(&place.as_str()) {
                let message = format!("there is no place {place} in {name}, but {}", places.join(", "));
                self.problem(path, *line, message);
            } else if found.iter().filter(|(other, _)| other == place).count() > text.matches(place).count() {
                self.problem(path, *line, format!("the place is written {place}, with this one space"));
            }
        }
        for place in places.iter().filter(|place| !found.iter().any(|(found, _)| found == *place)) {
            self.problem(path, None, format!("the place {place} is missing, so mails would lack what belongs there"));
        }
        Some(text)
    }

    fn words(&mut self, path: &str, text: &str, is_mail: bool) -> Option<Words> {
        let file = self.files.len();
        let (mut subject, mut preview, mut body, mut lines_before) = (None, vec![], text, 0);
        if is_mail {
            let Some((first, rest)) = text.strip_prefix("Subject:").and_then(|rest| rest.split_once('\n')) else {
                self.problem(path, Some(1), "begins with a line `Subject: …`");
                return None;
            };
            subject = Some(self.sentence(path, first.trim(), 1, Part::Subject)?);
            (body, lines_before) = (rest, 1);
            if let Some((second, rest)) = body.strip_prefix("Preview:").and_then(|rest| rest.split_once('\n')) {
                self.sentence(path, second.trim(), 2, Part::Rest)?;
                // Tags have nothing in them that HTML escapes.
                preview = self.sentence(path, &escape_html(second.trim()), 2, Part::Rest)?;
                (body, lines_before) = (rest, 2);
            }
            if !body.starts_with('\n') {
                let message =
                    "an empty line is missing: first come `Subject: …` and `Preview: …`, then what the mail says";
                self.problem(path, Some(lines_before + 1), message);
                return None;
            }
        }
        self.parse(path, body, lines_before, Part::Rest)?;
        let blocks = match markup::parse(body, lines_before) {
            Ok(blocks) => blocks,
            Err((line, message)) => {
                self.problem(path, Some(line), message);
                return None;
            }
        };
        let (text, lines) = markup::to_text(&blocks);
        let line_of = |line: usize| lines.get(line.saturating_sub(1)).copied();
        match Parsed::compile(&text) {
            Ok(parsed) => {
                let text = pieces(&parsed, &|line| line_of(line).map(|line| Position { file, line }));
                Some(Words { subject, preview, blocks, text })
            }
            Err(error) => {
                let line = error.pos().and_then(|(line, _)| line_of(line));
                self.problem(path, line, single_line(&error.reason().to_string()));
                None
            }
        }
    }

    /// Parses one line, which has no partials.
    fn sentence(&mut self, path: &str, text: &str, line: usize, part: Part) -> Option<Vec<Piece>> {
        let parsed = self.parse(path, text, line - 1, part)?;
        let position = Position { file: self.files.len(), line };
        let pieces = pieces(&parsed, &|_| Some(position));
        if let Some(partial) = partials_in(&pieces).first() {
            self.problem(path, Some(line), markup::misplaced_partial(&partial.name));
            return None;
        }
        Some(pieces)
    }

    /// Parses a text that begins `lines_before` lines into its file, and checks what is in it.
    fn parse(&mut self, path: &str, text: &str, lines_before: usize, part: Part) -> Option<Parsed> {
        // Handlebars would show what follows as it is written, and Markdown, which reads it next, makes a tag of it.
        for escape in ["\\{{", "{{{{"] {
            if let Some((before, _)) = text.split_once(escape) {
                let line = before.matches('\n').count() + 1 + lines_before;
                self.problem(path, Some(line), format!("`{escape}` cannot be used"));
                return None;
            }
        }
        match Parsed::compile(text) {
            Ok(parsed) => {
                let mut found = Vec::new();
                let names = match part {
                    Part::Subject => &self.names_in_subjects,
                    Part::Rest => &self.names,
                };
                names.lint(&parsed, &|line| line + lines_before, &mut found);
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

    /// A position as people read it. What has none has come into the page of the HTML part.
    fn place(&self, position: Option<Position>) -> (String, Option<usize>) {
        match position {
            Some(Position { file, line }) => (self.files[file].path.clone(), Some(line)),
            None => (LAYOUT.to_owned(), None),
        }
    }

    /// Puts the sets together and tries them out.
    pub(super) fn finish(mut self) -> Result<Templates, Vec<TemplateProblem>> {
        let locales: BTreeSet<String> = self.places.keys().filter_map(|(locale, _)| locale.clone()).collect();
        let mut used = BTreeSet::new();
        let sets: Vec<Set> = locales.iter().filter_map(|locale| self.build_set(locale, &locales, &mut used)).collect();
        // What a file that cannot be used would use is not known.
        let all_usable = self.files.iter().all(|file| !matches!(file.content, Content::Unusable));
        for index in self.places.values().copied().collect::<Vec<_>>() {
            if all_usable && !used.contains(&index) {
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
        let mut files = Files { loader: self, folders: &folders, used, problems: vec![] };
        let style = files.style();
        let mut mails_of_set = HashMap::new();
        for (template, recipient) in mails() {
            if let Some(mail) = files.mail(locale, style.as_ref(), template, recipient) {
                mails_of_set.insert((template, recipient), mail);
            }
        }
        let problems = files.problems;
        self.problems.extend(problems);
        Some(Set { locale: tag, mails: mails_of_set })
    }

    /// Puts every made-up mail in words. What is wrong with a template that parses shows here, not on a customer.
    fn try_out(&mut self, templates: &Templates, locales: &BTreeSet<String>) {
        for locale in locales {
            let reader = templates.new_reader(locale);
            for (template, recipient) in mails() {
                for sample in samples(template, recipient, locale) {
                    let Some(Err(Name { name, position })) = templates
                        .mail(&reader, &sample.notification)
                        .map(|mail| mail.fill(&reader, &sample.notification.facts))
                    else {
                        continue;
                    };
                    let mail = mail_name(template, recipient);
                    let (file, line) = self.place(*position);
                    let cause = format!("`{name}` is not always there: put it inside {{{{#if {name}}}}}…{{{{/if}}}}");
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

/// The places that a file of the design has for what mails say.
fn places(name: &str) -> &'static [&'static str] {
    match name {
        LAYOUT => &[PREVIEW, CONTENT, FOOTER],
        BUTTON => &[ADDRESS, CONTENT],
        FACT => &[LABEL, CONTENT],
        _ => &[CONTENT],
    }
}

/// How the mails of a locale look.
struct Style {
    layout: String,
    body: Design,
    footer: Design,
}

/// The files of one locale. Partials are put in their places once, here, and not for each mail.
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
            Content::Words(_) | Content::Unusable => None,
        };
        let body = Design {
            headline: part("_headline.mjml")?,
            paragraph: part("_paragraph.mjml")?,
            notice: part("_notice.mjml")?,
            button: part(BUTTON)?,
            facts: part("_facts.mjml")?,
            fact: part(FACT)?,
        };
        let footer = Design { paragraph: part(SMALL_PRINT)?, ..body.clone() };
        Some(Style { layout: part(LAYOUT)?, body, footer })
    }

    /// The templates of one mail. What is missing is told.
    fn mail(&mut self, locale: &str, style: Option<&Style>, template: Template, recipient: Recipient) -> Option<Mail> {
        let mut words = |name: String, why_missing: &str| {
            let Some(index) = self.find(&name) else {
                self.problem(format!("{locale}/{name}"), None, why_missing);
                return None;
            };
            match &self.loader.files[index].content {
                Content::Words(words) => Some(words),
                Content::Design(_) | Content::Unusable => None,
            }
        };
        let body = words(
            format!("{}.md", mail_name(template, recipient)),
            "missing: without it this mail could not be sent in this language",
        )?;
        let footer = words(footer_name(recipient), "missing: every mail ends with it")?;
        let mut text = self.expand(&body.text, 0);
        text.extend(self.expand(&footer.text, 0));
        // Without a design, the reason has been told.
        Some(Mail { subject: body.subject.clone()?, text, html: self.page(style?, body, footer)? })
    }

    fn partial(&mut self, name: &str) -> Option<&'a Content> {
        self.find(&format!("_{name}.md")).map(|index| &self.loader.files[index].content)
    }

    fn expand(&mut self, pieces: &[Piece], depth: usize) -> Vec<Piece> {
        replace_partials(pieces, &mut |Name { name, position }| {
            let message = match self.partial(name) {
                Some(Content::Words(partial)) if depth < PARTIAL_DEPTH_MAX => {
                    return self.expand(&partial.text, depth + 1);
                }
                Some(Content::Words(_)) => {
                    format!("the partial `{name}` contains itself, or stands {PARTIAL_DEPTH_MAX} partials deep")
                }
                Some(Content::Unusable) => return vec![],
                Some(Content::Design(_)) | None => {
                    format!("there is no partial `{name}`: the file _{name}.md is missing")
                }
            };
            let (file, line) = self.loader.place(*position);
            self.problem(file, line, message);
            vec![]
        })
    }

    /// Blocks in the design's MJML. What is wrong with partials, [`Self::expand`] has told.
    fn mjml(&mut self, blocks: &'a [Block], design: &Design, depth: usize) -> String {
        markup::to_mjml(blocks, design, &mut |name| match self.partial(name) {
            Some(Content::Words(partial)) if depth < PARTIAL_DEPTH_MAX => self.mjml(&partial.blocks, design, depth + 1),
            _ => String::new(),
        })
    }

    /// The template of the HTML part: the page with the mail in it, compiled from MJML.
    fn page(&mut self, style: &Style, words: &'a Words, footer: &'a Words) -> Option<Vec<Piece>> {
        let content = self.mjml(&words.blocks, &style.body, 0);
        let footer = self.mjml(&footer.blocks, &style.footer, 0);
        let mjml = style.layout.replace(FOOTER, &footer).replace(CONTENT, &content);
        let compiled = compile_mjml(&mjml).and_then(|html| {
            Parsed::compile(&html).map_err(|error| format!("the page made of it is no template: {}", error.reason()))
        });
        match compiled {
            // The place of the preview is the one that is left.
            Ok(page) => Some(replace_partials(&pieces(&page, &|_| None), &mut |_| words.preview.clone())),
            Err(message) => {
                self.problem(LAYOUT.to_owned(), None, single_line(&message));
                None
            }
        }
    }
}

/// MJML in HTML, in lines that every mail server takes as they are: short, and none begins with a dot.
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
    // In style sheets.
    Ok(broken.replace("\n.", "\n ."))
}
