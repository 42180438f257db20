//! Assembling the templates of one locale from its files. Partials are inserted here, once, and not for each email.

use std::collections::{BTreeSet, HashMap};

use handlebars::template::Template as Parsed;

use super::block::{Block, BlockKind, Branch, InlinePartials, PartialCall, Position};
use super::catalog::{EmailTemplate, LocaleTemplates};
use super::compile::{CompiledFiles, Content, Head, TextFile};
use super::design::{BUTTON, Design, FACT, FACTS, HEADLINE, LAYOUT, NOTICE, PARAGRAPH, QUOTE, SMALL_PRINT};
use super::html::{MjmlWriter, compile_mjml};
use super::lint::lint;
use super::plain::PlainText;
use super::problem::{Mistake, TemplateProblem};
use crate::kind::EmailKind;
use crate::locale::{Direction, ancestry, parse_tag};
use crate::text::single_line;

/// The deepest nesting of partials.
const PARTIAL_DEPTH_MAX: usize = 8;

/// The most blocks of one email, with those of its partials. Partials that include each other several times would grow without
/// limit.
const BLOCKS_MAX: usize = 2_000;

/// Assembles the templates of one locale: from its own folder, else from its language's, else from the design. Emails with
/// problems are left out.
pub(super) fn assemble(
    locale: &str,
    locales: &BTreeSet<String>,
    files: &CompiledFiles,
    used: &mut BTreeSet<usize>,
    problems: &mut BTreeSet<TemplateProblem>,
) -> Option<LocaleTemplates> {
    let tag = parse_tag(locale)?;
    let folders: Vec<Option<String>> = ancestry(&tag)
        .iter()
        .map(ToString::to_string)
        .filter(|tag| locales.contains(tag))
        .map(Some)
        .chain([None])
        .collect();
    let direction = Direction::of(&tag);
    let mut assembler = Assembler { files, folders: &folders, direction, blocks: 0, is_faulty: false, used, problems };
    let style = assembler.style();
    let mut emails = HashMap::new();
    let mut missing = Vec::new();
    for kind in EmailKind::all() {
        let file = format!("{kind}.md");
        if assembler.find(&file).is_none() {
            missing.push(file);
        } else if let Some(template) = assembler.email(locale, style.as_ref(), kind) {
            emails.insert(kind, template);
        }
    }
    if let Some(first) = missing.first() {
        let all = EmailKind::all().count();
        let list = missing.join(", ");
        let (file, message) = match missing.as_slice() {
            [_] => (format!("{locale}/{first}"), "missing: this email could not be sent in this language".to_owned()),
            _ => (locale.to_owned(), format!("{} of {all} emails are missing in this language: {list}", missing.len())),
        };
        problems.insert(TemplateProblem { file, line: None, message });
    }
    Some(LocaleTemplates { locale: tag, emails })
}

/// The design of a locale's emails.
struct Style {
    layout: String,
    body: Design,
    footer: Design,
}

struct Assembler<'a> {
    files: &'a CompiledFiles,
    /// Where files are looked for, in this order.
    folders: &'a [Option<String>],
    direction: Direction,
    /// How many blocks the current email has so far.
    blocks: usize,
    /// Whether the current email has a problem. Another locale may have reported it already.
    is_faulty: bool,
    used: &'a mut BTreeSet<usize>,
    problems: &'a mut BTreeSet<TemplateProblem>,
}

impl<'a> Assembler<'a> {
    fn problem(&mut self, file: String, line: Option<usize>, message: impl Into<String>) {
        self.is_faulty = true;
        self.problems.insert(TemplateProblem { file, line, message: message.into() });
    }

    fn problem_at(&mut self, position: Option<Position>, message: impl Into<String>) {
        let (file, line) = self.files.location(position);
        self.problem(file, line, message);
    }

    fn find(&mut self, name: &str) -> Option<&'a Content> {
        let index = self.folders.iter().find_map(|folder| self.files.find(folder.as_deref(), name))?;
        self.used.insert(index);
        Some(self.files.content(index))
    }

    fn style(&mut self) -> Option<Style> {
        let mut part = |name: &str| match self.find(name)? {
            Content::Design(design) => Some(design.clone()),
            Content::Text(_) | Content::Invalid => None,
        };
        let body = Design {
            headline: part(HEADLINE)?,
            paragraph: part(PARAGRAPH)?,
            notice: part(NOTICE)?,
            button: part(BUTTON)?,
            facts: part(FACTS)?,
            fact: part(FACT)?,
            quote: part(QUOTE)?,
        };
        let footer = Design { paragraph: part(SMALL_PRINT)?, ..body.clone() };
        Some(Style { layout: part(LAYOUT)?, body, footer })
    }

    /// The templates of one email.
    fn email(&mut self, locale: &str, style: Option<&Style>, kind: EmailKind) -> Option<EmailTemplate> {
        let Some(Content::Text(TextFile { head: Some(head), file, blocks: body })) = self.find(&format!("{kind}.md"))
        else {
            return None;
        };
        let footer_name = format!("_footer.{}.md", kind.recipient.as_str());
        let footer = match self.find(&footer_name) {
            Some(Content::Text(footer)) => &footer.blocks,
            Some(Content::Design(_) | Content::Invalid) => return None,
            None => {
                self.problem(format!("{locale}/{footer_name}"), None, "missing: every email ends with it");
                return None;
            }
        };
        self.is_faulty = false;
        self.blocks = 0;
        let body = self.expand(body, &mut InlinePartials::new(), 0);
        let footer = self.expand(footer, &mut InlinePartials::new(), 0);
        let (text, lines) = self.text(&[body.clone(), footer.clone()].concat())?;
        // A missing design is reported already.
        let html = self.page(style?, head, &body, &footer)?;
        (!self.is_faulty).then(|| EmailTemplate {
            file: *file,
            subject: head.subject.clone(),
            preview: head.preview.clone(),
            text,
            lines,
            html,
        })
    }

    /// Replaces partials by their content.
    fn expand(&mut self, blocks: &[Block], defined: &mut InlinePartials, depth: usize) -> Vec<Block> {
        let mut expanded = Vec::with_capacity(blocks.len());
        for block in blocks {
            self.blocks += 1;
            if self.blocks > BLOCKS_MAX {
                self.problem_at(Some(block.position), format!("this email has more than {BLOCKS_MAX} paragraphs"));
                return expanded;
            }
            match &block.kind {
                BlockKind::Partial(call) => self.expand_call(call, block.position, defined, depth, &mut expanded),
                BlockKind::InlinePartial { name, blocks } => {
                    defined.insert(name.clone(), blocks.clone());
                }
                BlockKind::Helper { branches, end } => {
                    let branches = branches.iter().map(|branch| Branch {
                        blocks: self.expand(&branch.blocks, &mut defined.clone(), depth),
                        ..branch.clone()
                    });
                    let kind = BlockKind::Helper { branches: branches.collect(), end: end.clone() };
                    expanded.push(Block { kind, ..block.clone() });
                }
                _ => expanded.push(block.clone()),
            }
        }
        expanded
    }

    fn expand_call(
        &mut self,
        call: &PartialCall,
        position: Position,
        defined: &InlinePartials,
        depth: usize,
        expanded: &mut Vec<Block>,
    ) {
        let PartialCall { name, scope, content } = call;
        if depth == PARTIAL_DEPTH_MAX {
            let message = format!("the partial `{name}` includes itself, or is nested {PARTIAL_DEPTH_MAX} levels deep");
            return self.problem_at(Some(position), message);
        }
        let blocks: &[Block] = match (defined.get(name), content) {
            (Some(blocks), _) => blocks,
            (None, content) => match (self.find(&format!("_{name}.md")), content) {
                (Some(Content::Text(partial)), _) => &partial.blocks,
                (Some(Content::Invalid), _) => return,
                // The content of a partial that does not exist stands in for it.
                (_, Some(content)) => content,
                (Some(Content::Design(_)) | None, None) => {
                    let message = match name.as_str() {
                        "@partial-block" => {
                            "`{{> @partial-block}}` is only for partials that are used as blocks".to_owned()
                        }
                        _ if name.starts_with('(') => "the name of a partial must be written out".to_owned(),
                        _ => format!("unknown partial `{name}`: the file _{name}.md is missing"),
                    };
                    return self.problem_at(Some(position), message);
                }
            },
        };
        let mut inner = defined.clone();
        inner.remove("@partial-block");
        if let Some(content) = content {
            let content = self.expand(content, &mut inner.clone(), depth + 1);
            inner.insert("@partial-block".to_owned(), content);
        }
        let blocks = self.expand(blocks, &mut inner, depth + 1);
        let Some((begins, end)) = scope else { return expanded.extend(blocks) };
        let branches = vec![Branch { position, tag: begins.clone(), blocks }];
        expanded.push(Block { position, kind: BlockKind::Helper { branches, end: end.clone() } });
    }

    /// The template of the plain part, and where each of its lines comes from.
    fn text(&mut self, blocks: &[Block]) -> Option<(Parsed, Vec<Position>)> {
        let PlainText { text, lines } = PlainText::of(blocks);
        let position = |line: usize| lines.get(line.saturating_sub(1)).copied();
        match Parsed::compile(&self.files.tags.reveal(&text)) {
            Ok(parsed) => {
                for Mistake { line, message } in lint(&parsed) {
                    self.problem_at(position(line), message);
                }
                Some((parsed, lines))
            }
            Err(error) => {
                let position = error.pos().and_then(|(line, _)| position(line));
                self.problem_at(position, single_line(&error.reason().to_string()));
                None
            }
        }
    }

    /// The template of the HTML part.
    fn page(&mut self, style: &Style, head: &Head, body: &[Block], footer: &[Block]) -> Option<Parsed> {
        let CompiledFiles { tags, places, .. } = self.files;
        let mjml = |design, blocks: &[Block]| MjmlWriter { design, places, tags }.mjml(blocks);
        let page = style.layout.replace(places.footer, &mjml(&style.footer, footer));
        let page = page.replace(places.content, &mjml(&style.body, body));
        let compiled = compile_mjml(&page, self.direction).and_then(|html| {
            let html = tags.reveal(&html.replace(places.preview, &head.html_preview));
            Parsed::compile(&html)
                .map_err(|error| format!("the compiled page is not a valid template: {}", error.reason()))
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
