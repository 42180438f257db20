//! Template files, parsed and checked one by one.

use std::collections::{BTreeMap, BTreeSet};

use handlebars::template::Template as Parsed;

use super::ast::{Name, Node, Position, nodes, partials};
use super::block::Block;
use super::design::{LAYOUT, places};
use super::escape::escape_html;
use super::lint::KnownNames;
use super::parse::{misplaced_partial, parse};
use super::plain::PlainText;
use super::problem::{Mistake, TemplateProblem};
use super::source::{Place, SourceFile};
use crate::text::single_line;

/// All template files.
pub(super) struct CompiledFiles {
    subject_names: KnownNames,
    names: KnownNames,
    files: Vec<CompiledFile>,
    /// The index of the file that counts at each place: the last one added.
    by_place: BTreeMap<Place, usize>,
}

struct CompiledFile {
    /// The path, for problems.
    path: String,
    content: Content,
}

/// A checked template file.
pub(super) enum Content {
    /// `.md`: an email, or a partial.
    Text(TextFile),
    /// `.mjml`: a part of the design.
    Design(String),
    /// Its problems are reported already.
    Invalid,
}

/// An email, or a partial.
pub(super) struct TextFile {
    /// `None` in partials.
    pub(super) subject: Option<Vec<Node>>,
    /// The text that email clients show beside the subject, in HTML; may be empty.
    pub(super) preview: Vec<Node>,
    pub(super) blocks: Vec<Block>,
    /// The blocks as plain text.
    pub(super) text: Vec<Node>,
}

impl Default for CompiledFiles {
    fn default() -> Self {
        Self {
            subject_names: KnownNames::in_subjects(),
            names: KnownNames::below_subjects(),
            files: vec![],
            by_place: BTreeMap::new(),
        }
    }
}

impl CompiledFiles {
    /// Adds a file, and reports its problems. It replaces an earlier one at the same place.
    pub(super) fn add(&mut self, source: SourceFile, problems: &mut BTreeSet<TemplateProblem>) {
        let SourceFile { place, path, text } = source;
        let names = (&self.subject_names, &self.names);
        let mut compiler = Compiler { index: self.files.len(), path: &path, names, problems };
        let content = text.and_then(|text| compiler.compile(&place.name, &text)).unwrap_or(Content::Invalid);
        self.by_place.insert(place, self.files.len());
        self.files.push(CompiledFile { path, content });
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

    /// A problem for each file that is not among `used`. None while a file is invalid: it may use any other.
    pub(super) fn unused(&self, used: &BTreeSet<usize>) -> Vec<TemplateProblem> {
        if self.files.iter().any(|file| matches!(file.content, Content::Invalid)) {
            return vec![];
        }
        let unused = self.by_place.values().filter(|index| !used.contains(index));
        unused
            .map(|&index| TemplateProblem {
                file: self.files[index].path.clone(),
                line: None,
                message: "not used by any email of this language".to_owned(),
            })
            .collect()
    }

    /// The path and line of a position. Nodes without a position come from the page of the HTML part.
    pub(super) fn location(&self, position: Option<Position>) -> (String, Option<usize>) {
        match position {
            Some(Position { file, line }) => (self.files[file].path.clone(), Some(line)),
            None => (LAYOUT.to_owned(), None),
        }
    }
}

#[derive(Clone, Copy)]
enum Part {
    Subject,
    Rest,
}

/// Checks one file.
struct Compiler<'a> {
    index: usize,
    path: &'a str,
    /// Those for subjects, and those for everything else.
    names: (&'a KnownNames, &'a KnownNames),
    problems: &'a mut BTreeSet<TemplateProblem>,
}

impl Compiler<'_> {
    fn problem(&mut self, line: Option<usize>, message: impl Into<String>) {
        self.problems.insert(TemplateProblem { file: self.path.to_owned(), line, message: message.into() });
    }

    fn compile(&mut self, name: &str, text: &str) -> Option<Content> {
        let text = text.trim_start_matches('\u{feff}').replace("\r\n", "\n");
        match name.rsplit_once('.') {
            Some((_, "mjml")) => self.design(name, text).map(Content::Design),
            _ => self.text_file(&text, !name.starts_with('_')).map(Content::Text),
        }
    }

    fn design(&mut self, name: &str, text: String) -> Option<String> {
        let parsed = self.parse(&text, 0, Part::Rest)?;
        let places = places(name);
        let file = self.index;
        let nodes = nodes(&parsed, &|line| Some(Position { file, line }));
        let found: Vec<(String, Option<usize>)> = partials(&nodes)
            .into_iter()
            .map(|Name { name, position }| (format!("{{{{> {name}}}}}"), position.map(|position| position.line)))
            .collect();
        for (place, line) in &found {
            if !places.contains(&place.as_str()) {
                self.problem(*line, format!("{name} has no place {place}; its places: {}", places.join(", ")));
            } else if found.iter().filter(|(other, _)| other == place).count() > text.matches(place).count() {
                self.problem(*line, format!("write the place as {place}, with exactly one space"));
            }
        }
        for place in places.iter().filter(|place| !found.iter().any(|(found, _)| found == *place)) {
            self.problem(None, format!("the place {place} is missing"));
        }
        Some(text)
    }

    fn text_file(&mut self, text: &str, is_email: bool) -> Option<TextFile> {
        let file = self.index;
        let (mut subject, mut preview, mut body, mut lines_before) = (None, vec![], text, 0);
        if is_email {
            let Some((first, rest)) = text.strip_prefix("Subject:").and_then(|rest| rest.split_once('\n')) else {
                self.problem(Some(1), "must begin with a line `Subject: …`");
                return None;
            };
            subject = Some(self.sentence(first.trim(), 1, Part::Subject)?);
            (body, lines_before) = (rest, 1);
            if let Some((second, rest)) = body.strip_prefix("Preview:").and_then(|rest| rest.split_once('\n')) {
                self.sentence(second.trim(), 2, Part::Rest)?;
                // Tags contain no character that HTML escapes.
                preview = self.sentence(&escape_html(second.trim()), 2, Part::Rest)?;
                (body, lines_before) = (rest, 2);
            }
            if !body.starts_with('\n') {
                let message = "an empty line must follow `Subject: …` and `Preview: …`";
                self.problem(Some(lines_before + 1), message);
                return None;
            }
        }
        self.parse(body, lines_before, Part::Rest)?;
        let blocks = match parse(body, lines_before) {
            Ok(blocks) => blocks,
            Err(Mistake { line, message }) => {
                self.problem(Some(line), message);
                return None;
            }
        };
        let PlainText { text, lines } = PlainText::of(&blocks);
        let line_of = |line: usize| lines.get(line.saturating_sub(1)).copied();
        match Parsed::compile(&text) {
            Ok(parsed) => {
                let text = nodes(&parsed, &|line| line_of(line).map(|line| Position { file, line }));
                Some(TextFile { subject, preview, blocks, text })
            }
            Err(error) => {
                let line = error.pos().and_then(|(line, _)| line_of(line));
                self.problem(line, single_line(&error.reason().to_string()));
                None
            }
        }
    }

    /// Parses one line, which may not contain partials.
    fn sentence(&mut self, text: &str, line: usize, part: Part) -> Option<Vec<Node>> {
        let parsed = self.parse(text, line - 1, part)?;
        let position = Position { file: self.index, line };
        let nodes = nodes(&parsed, &|_| Some(position));
        if let Some(partial) = partials(&nodes).first() {
            self.problem(Some(line), misplaced_partial(&partial.name));
            return None;
        }
        Some(nodes)
    }

    /// Parses and checks a text that begins after `lines_before` lines of its file.
    fn parse(&mut self, text: &str, lines_before: usize, part: Part) -> Option<Parsed> {
        // Handlebars would output the following tag literally, and then Markdown would turn it into a tag again.
        for escape in ["\\{{", "{{{{"] {
            if let Some((before, _)) = text.split_once(escape) {
                let line = before.matches('\n').count() + 1 + lines_before;
                self.problem(Some(line), format!("`{escape}` is not supported"));
                return None;
            }
        }
        match Parsed::compile(text) {
            Ok(parsed) => {
                let mut mistakes = Vec::new();
                let names = match part {
                    Part::Subject => self.names.0,
                    Part::Rest => self.names.1,
                };
                names.lint(&parsed, &|line| line + lines_before, &mut mistakes);
                for Mistake { line, message } in mistakes {
                    self.problem(Some(line), message);
                }
                Some(parsed)
            }
            Err(error) => {
                let line = error.pos().map(|(line, _)| line + lines_before);
                self.problem(line, single_line(&error.reason().to_string()));
                None
            }
        }
    }
}
