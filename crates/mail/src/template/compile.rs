//! Template files, parsed and checked one by one.

use std::collections::{BTreeMap, BTreeSet};

use handlebars::template::Template as Parsed;

use super::block::{Block, Position};
use super::design::{LAYOUT, Places};
use super::escape::escape_html;
use super::full_stop::without_double_full_stops;
use super::lint::{lint, lint_subject};
use super::parse::{misplaced_partial, parse};
use super::problem::{Mistake, TemplateProblem};
use super::source::{Place, SourceFile};
use super::tags::{Hidden, TagKind, Tags};
use crate::text::single_line;

/// Invisible characters behind the preview. Email clients that show a longer preview would continue with the body.
const PREVIEW_FILLER: &str = "\u{34f}\u{200c}\u{a0}";
const PREVIEW_FILLERS: usize = 60;

/// All template files.
pub(super) struct CompiledFiles {
    pub(super) tags: Tags,
    pub(super) places: Places,
    files: Vec<CompiledFile>,
    /// The index of the file that counts at each place: the last one added.
    by_place: BTreeMap<Place, usize>,
}

struct CompiledFile {
    /// The path, for problems.
    path: String,
    is_built_in: bool,
    /// The text as it was read.
    source: String,
    content: Content,
}

/// A checked template file.
pub(super) enum Content {
    /// `.md`: an email, or a partial.
    Text(TextFile),
    /// `.mjml`: a part of the design, whose tags are hidden.
    Design(String),
    /// Its problems are reported already.
    Invalid,
}

/// An email, or a partial.
pub(super) struct TextFile {
    /// `None` in partials.
    pub(super) head: Option<Head>,
    /// The index of the file.
    pub(super) file: usize,
    pub(super) blocks: Vec<Block>,
}

/// The first lines of an email.
pub(super) struct Head {
    pub(super) subject: Parsed,
    /// The text that email clients show beside the subject, as a template of plain text; may be empty.
    pub(super) preview: Parsed,
    /// The same for the HTML part, whose tags are hidden.
    pub(super) html_preview: String,
}

impl Default for CompiledFiles {
    fn default() -> Self {
        let mut tags = Tags::default();
        Self { places: Places::new(&mut tags), tags, files: vec![], by_place: BTreeMap::new() }
    }
}

impl CompiledFiles {
    /// Adds a file, and reports its problems. It replaces an earlier one at the same place.
    pub(super) fn add(&mut self, source: SourceFile, problems: &mut BTreeSet<TemplateProblem>) {
        let SourceFile { place, path, text, is_built_in } = source;
        let index = self.files.len();
        let mut compiler =
            Compiler { index, path: &path, tags: &mut self.tags, places: &self.places, problems: &mut *problems };
        let content = text.as_ref().and_then(|text| compiler.compile(&place.name, text)).unwrap_or(Content::Invalid);
        self.files.push(CompiledFile { path, is_built_in, source: text.unwrap_or_default(), content });
        if !is_built_in {
            self.remove_built_in_regional(&place);
        }
        self.by_place.insert(place, index);
    }

    /// Removes the built-in files of a language's regions that would hide a new file of that language: an author who changes
    /// `es/payment-failed…` means readers in Mexico, too.
    fn remove_built_in_regional(&mut self, place: &Place) {
        let Some(language) = &place.locale else { return };
        let region = |other: &Place| {
            other
                .locale
                .as_deref()
                .and_then(|locale| locale.strip_prefix(language))
                .is_some_and(|rest| rest.starts_with('-'))
        };
        let files = &self.files;
        self.by_place.retain(|other, index| other.name != place.name || !files[*index].is_built_in || !region(other));
    }

    /// All languages, and all regions that have a folder.
    pub(super) fn locales(&self) -> BTreeSet<String> {
        self.by_place.keys().filter_map(|place| place.locale.clone()).collect()
    }

    /// The index of the file at a place.
    pub(super) fn find(&self, locale: Option<&str>, name: &str) -> Option<usize> {
        self.by_place.get(&Place { locale: locale.map(str::to_owned), name: name.to_owned() }).copied()
    }

    pub(super) fn content(&self, index: usize) -> &Content {
        &self.files[index].content
    }

    /// A problem for each file that is not among `used`, and whose name no built-in file has: a copied folder has all of them, and emails of
    /// one's own need not use them. None while a file is invalid: it may use any other.
    pub(super) fn unused(&self, used: &BTreeSet<usize>) -> Vec<TemplateProblem> {
        if self.files.iter().any(|file| matches!(file.content, Content::Invalid)) {
            return vec![];
        }
        let built_in = self.files.iter().filter(|file| file.is_built_in);
        let names: BTreeSet<&str> = built_in.filter_map(|file| file.path.rsplit('/').next()).collect();
        let unused =
            self.by_place.iter().filter(|(place, index)| !used.contains(index) && !names.contains(&*place.name));
        unused
            .map(|(_, &index)| TemplateProblem {
                file: self.files[index].path.clone(),
                line: None,
                message: "not used by any email of this language".to_owned(),
            })
            .collect()
    }

    /// A warning for each file of another language that still has the text of the English one.
    pub(super) fn untranslated(&self, fallback: &str) -> Vec<TemplateProblem> {
        let is_english = |locale: &str| locale.split('-').next() == Some(fallback);
        self.by_place
            .iter()
            .filter_map(|(place, &index)| {
                let file = &self.files[index];
                let locale = place.locale.as_deref().filter(|locale| !file.is_built_in && !is_english(locale))?;
                let english = self
                    .files
                    .iter()
                    .find(|other| other.is_built_in && other.path.ends_with(&format!("/{fallback}/{}", place.name)))?;
                let is_same = english.source.trim() == file.source.replace("\r\n", "\n").trim();
                (is_same && has_words(&file.source)).then(|| TemplateProblem {
                    file: file.path.clone(),
                    line: None,
                    message: format!("still the English text: translate it into {locale}, or remove the file"),
                })
            })
            .collect()
    }

    /// The path of a file.
    pub(super) fn path(&self, file: usize) -> String {
        self.files[file].path.clone()
    }

    /// The path and line of a position. What has no position comes from the page of the HTML part.
    pub(super) fn location(&self, position: Option<Position>) -> (String, Option<usize>) {
        match position {
            Some(Position { file, line }) => (self.files[file].path.clone(), Some(line)),
            None => (LAYOUT.to_owned(), None),
        }
    }
}

/// Whether a template has words outside of its tags.
fn has_words(template: &str) -> bool {
    let outside: String =
        template.split("{{").map(|part| part.split_once("}}").map_or(part, |(_, text)| text)).collect();
    outside.chars().any(char::is_alphabetic)
}

#[derive(Clone, Copy)]
enum Part {
    Subject,
    Preview,
}

/// Checks one file.
struct Compiler<'a> {
    index: usize,
    path: &'a str,
    tags: &'a mut Tags,
    places: &'a Places,
    problems: &'a mut BTreeSet<TemplateProblem>,
}

impl Compiler<'_> {
    fn problem(&mut self, line: Option<usize>, message: impl Into<String>) {
        self.problems.insert(TemplateProblem { file: self.path.to_owned(), line, message: message.into() });
    }

    fn report(&mut self, mistakes: Vec<Mistake>) {
        for Mistake { line, message } in mistakes {
            self.problem(Some(line), message);
        }
    }

    /// `None` if the file has problems, which are reported.
    fn compile(&mut self, name: &str, text: &str) -> Option<Content> {
        let text = text.trim_start_matches('\u{feff}').replace("\r\n", "\n");
        let problems_before = self.problems.len();
        let content = match name.rsplit_once('.') {
            Some((_, "mjml")) => self.design(name, &text).map(Content::Design),
            _ => self.text_file(&text, !name.starts_with('_')).map(Content::Text),
        };
        content.filter(|_| self.problems.len() == problems_before)
    }

    fn hide(&mut self, text: &str, lines_before: usize) -> Option<Hidden> {
        match self.tags.hide_all(text, lines_before) {
            Ok(mut hidden) => {
                hidden.text = without_double_full_stops(&hidden.text, self.tags);
                Some(hidden)
            }
            Err(mistakes) => {
                self.report(mistakes);
                None
            }
        }
    }

    fn design(&mut self, name: &str, text: &str) -> Option<String> {
        let hidden = self.hide(text, 0)?;
        let places = self.places.of(name);
        let shown = |places: &[char], tags: &Tags| {
            places.iter().filter_map(|&place| Some(tags.get(place)?.text.clone())).collect::<Vec<_>>().join(", ")
        };
        for (line, text) in hidden.lines.iter().zip(hidden.text.lines()) {
            for char in text.chars() {
                let Some(tag) = self.tags.get(char).filter(|tag| tag.kind == TagKind::Partial) else { continue };
                if !places.contains(&char) {
                    let message =
                        format!("{name} has no place {}; its places: {}", tag.text, shown(&places, self.tags));
                    self.problem(Some(*line), message);
                }
            }
        }
        for place in places.iter().filter(|&&place| !hidden.text.contains(place)) {
            let message = format!("the place {} is missing", shown(&[*place], self.tags));
            self.problem(None, message);
        }
        let is_partial = |char: char| self.tags.get(char).is_some_and(|tag| tag.kind == TagKind::Partial);
        let without_places: String = hidden.text.chars().filter(|&char| !is_partial(char)).collect();
        let line_of = |line: usize| hidden.lines.get(line.saturating_sub(1)).copied().unwrap_or(line);
        let parsed = match Parsed::compile(&self.tags.reveal(&without_places)) {
            Ok(parsed) => parsed,
            Err(error) => {
                let line = error.pos().map(|(line, _)| line_of(line));
                self.problem(line, single_line(&error.reason().to_string()));
                return None;
            }
        };
        let mistakes = lint(&parsed).into_iter();
        self.report(mistakes.map(|Mistake { line, message }| Mistake::new(line_of(line), message)).collect());
        Some(hidden.text)
    }

    fn text_file(&mut self, text: &str, is_email: bool) -> Option<TextFile> {
        let (mut head, mut body, mut lines_before) = (None, text, 0);
        if is_email {
            let Some((subject, rest)) = text.strip_prefix("Subject:").and_then(|rest| rest.split_once('\n')) else {
                self.problem(Some(1), "must begin with a line `Subject: …`");
                return None;
            };
            if subject.trim().is_empty() {
                self.problem(Some(1), "the subject is empty: write it after `Subject:`");
                return None;
            }
            let (subject, _) = self.sentence(subject.trim(), 1, Part::Subject)?;
            (body, lines_before) = (rest, 1);
            let mut preview = "";
            if let Some((second, rest)) = body.strip_prefix("Preview:").and_then(|rest| rest.split_once('\n')) {
                preview = second.trim();
                (body, lines_before) = (rest, 2);
            }
            let (preview, hidden) = self.sentence(preview, 2, Part::Preview)?;
            let html_preview = escape_html(&hidden) + &PREVIEW_FILLER.repeat(PREVIEW_FILLERS);
            head = Some(Head { subject, preview, html_preview });
            if !body.starts_with('\n') {
                let message = "an empty line must follow `Subject: …` and `Preview: …`";
                self.problem(Some(lines_before + 1), message);
                return None;
            }
        }
        let hidden = self.hide(body, lines_before)?;
        match parse(&hidden, self.index, self.tags) {
            Ok(blocks) => Some(TextFile { head, file: self.index, blocks }),
            Err(Mistake { line, message }) => {
                self.problem(Some(line), message);
                None
            }
        }
    }

    /// Parses one line, which may not contain partials. Returns it with hidden tags, too.
    fn sentence(&mut self, text: &str, line: usize, part: Part) -> Option<(Parsed, String)> {
        let hidden = self.hide(text, line - 1)?.text;
        let partial = hidden
            .chars()
            .filter_map(|char| self.tags.get(char))
            .find(|tag| matches!(tag.kind, TagKind::Partial | TagKind::OpenPartial | TagKind::OpenInline));
        if let Some(partial) = partial {
            let message = misplaced_partial(&partial.text);
            self.problem(Some(line), message);
            return None;
        }
        match Parsed::compile(&self.tags.reveal(&hidden)) {
            Ok(parsed) => {
                let mistakes = match part {
                    Part::Subject => lint_subject(&parsed),
                    Part::Preview => lint(&parsed),
                };
                self.report(mistakes.into_iter().map(|mistake| Mistake { line, ..mistake }).collect());
                Some((parsed, hidden))
            }
            Err(error) => {
                self.problem(Some(line), single_line(&error.reason().to_string()));
                None
            }
        }
    }
}
