//! The HTML part of blocks: MJML of the design, compiled to HTML.

use std::collections::HashMap;

use mrml::prelude::render::RenderOptions;

use super::block::{Block, BlockKind, Inline, Link};
use super::design::{Design, Places};
use super::escape::escape_html;
use super::facts_view::{is_address, is_date, is_name, is_phone};
use super::tags::{Tag, TagKind, Tags};
use crate::locale::Direction;

/// Writes the MJML of blocks. It is still a template, whose tags are hidden.
pub(super) struct MjmlWriter<'a> {
    pub(super) design: &'a Design,
    pub(super) places: &'a Places,
    pub(super) tags: &'a Tags,
}

impl MjmlWriter<'_> {
    /// The MJML of blocks without partials.
    pub(super) fn mjml(&self, blocks: &[Block]) -> String {
        let Self { design, places, .. } = self;
        let mut mjml = String::new();
        let mut rest = blocks;
        while let Some(block) = rest.first() {
            let facts = rest.iter().take_while(|block| block.is_facts()).count();
            if facts > 0 {
                mjml.push_str(&design.facts.replace(places.content, &self.fact_rows(&rest[..facts])));
                rest = &rest[facts..];
                continue;
            }
            let with = |design: &str, content: &[Inline]| design.replace(places.content, &self.html(content));
            mjml.push_str(&match &block.kind {
                BlockKind::Headline(text) => with(&design.headline, text),
                BlockKind::Paragraph(text) => with(&design.paragraph, text),
                BlockKind::Notice(text) => with(&design.notice, text),
                BlockKind::Button(Link { label, url, .. }) => {
                    with(&design.button, label).replace(places.address, &escape_html(url))
                }
                BlockKind::Quote { label, fact } => {
                    let quote = design.quote.replace(places.label, &self.label(label));
                    quote.replace(places.content, &fact.to_string())
                }
                BlockKind::Helper { branches, end } => {
                    let branches = branches.iter().map(|branch| raw(&branch.tag) + &self.mjml(&branch.blocks));
                    branches.collect::<String>() + &raw(end)
                }
                // Facts are written above, and partials are expanded before.
                BlockKind::Fact { .. } | BlockKind::Partial(_) | BlockKind::InlinePartial { .. } => String::new(),
            });
            rest = &rest[1..];
        }
        mjml
    }

    fn fact_rows(&self, blocks: &[Block]) -> String {
        let mut rows = String::new();
        for block in blocks {
            match &block.kind {
                BlockKind::Fact { label, value } => {
                    let row = self.design.fact.replace(self.places.label, &self.label(label));
                    rows.push_str(&row.replace(self.places.content, &self.html(value)));
                }
                BlockKind::Helper { branches, end } => {
                    for branch in branches {
                        rows.push_str(&branch.tag);
                        rows.push_str(&self.fact_rows(&branch.blocks));
                    }
                    rows.push_str(end);
                }
                _ => {}
            }
        }
        rows
    }

    /// The label of a fact. The cells of a table replace the colon.
    fn label(&self, label: &[Inline]) -> String {
        self.html(label).trim_end().trim_end_matches(':').trim_end().to_owned()
    }

    fn html(&self, inlines: &[Inline]) -> String {
        inlines
            .iter()
            .map(|inline| match inline {
                Inline::Text(text) => self.text(text),
                Inline::Strong(inner) => format!("<strong>{}</strong>", self.html(inner)),
                Inline::Link(Link { label, url, .. }) => {
                    format!("<a class=\"link\" href=\"{}\">{}</a>", escape_html(url), self.html(label))
                }
                Inline::LineBreak => "<br />".to_owned(),
            })
            .collect()
    }

    /// Text in which dates and phone numbers are not broken over two lines, and names keep their own writing direction.
    fn text(&self, text: &str) -> String {
        let mut html = String::with_capacity(text.len());
        let escaped = escape_html(text);
        let mut rest = escaped.chars();
        while let Some(char) = rest.next() {
            let tag = self.tags.get(char).filter(|tag| tag.kind == TagKind::Expression);
            let Some((tag, (begin, end))) = tag.and_then(|tag| Some((tag, element(tag)?))) else {
                html.push(char);
                continue;
            };
            // The tag would remove white space inside the element only.
            if tag.removes_space_before() {
                html.truncate(html.trim_end().len());
            }
            html.extend([begin, char.encode_utf8(&mut [0; 4]), end]);
            if tag.removes_space_after() {
                rest = rest.as_str().trim_start().chars();
            }
        }
        html
    }
}

/// The element around a fact.
fn element(tag: &Tag) -> Option<(&'static str, &'static str)> {
    let path = tag.inner().rsplit([' ', '(', ')']).find(|word| !word.is_empty())?;
    if is_date(path) {
        return Some(("<span style=\"white-space:nowrap\">", "</span>"));
    }
    if is_phone(path) {
        return Some(("<bdi style=\"white-space:nowrap\">", "</bdi>"));
    }
    (is_name(path) || is_address(path)).then_some(("<bdi>", "</bdi>"))
}

/// A tag between MJML elements.
fn raw(tag: &str) -> String {
    format!("<mj-raw>{tag}</mj-raw>")
}

/// Compiles MJML to HTML, in lines that every mail server accepts unchanged: short, and none begins with a dot.
pub(super) fn compile_mjml(mjml: &str, direction: Direction) -> Result<String, String> {
    let mut parsed = mrml::parse(mjml).map_err(|error| format!("invalid MJML: {error}"))?;
    if let Some(warning) = parsed.warnings.first() {
        return Err(format!("invalid MJML: {warning}"));
    }
    parsed.element.attributes.dir = Some(direction.as_str().to_owned());
    // No web fonts: loading them would reveal that an email was opened.
    let options = RenderOptions { fonts: HashMap::new(), ..RenderOptions::default() };
    let html = parsed.element.render(&options).map_err(|error| format!("invalid MJML: {error}"))?;
    let html = unescaped(&html);
    let html = match direction {
        Direction::LeftToRight => html,
        Direction::RightToLeft => mirrored(&html),
    };
    // White space between these elements is invisible.
    let broken = ["<table", "<tbody", "<tr", "<td", "<th", "<div", "<style", "<body", "<!--[if"]
        .iter()
        .fold(html, |html, tag| html.replace(tag, &format!("\n{tag}")));
    // In style sheets.
    Ok(broken.replace("\n.", "\n ."))
}

/// Undoes an escape that the MJML compiler adds: it writes attributes as Rust's debug format does, `\u{a0}` for a
/// non-breaking space and for every character that stands for a tag.
fn unescaped(html: &str) -> String {
    let mut unescaped = String::with_capacity(html.len());
    let mut parts = html.split("\\u{");
    unescaped.push_str(parts.next().unwrap_or_default());
    for part in parts {
        let escape = part.split_once('}').and_then(|(code, rest)| {
            let char = u32::from_str_radix(code, 16).ok().and_then(char::from_u32)?;
            Some((char, rest))
        });
        if let Some((char, rest)) = escape {
            unescaped.push(char);
            unescaped.push_str(rest);
        } else {
            unescaped.push_str("\\u{");
            unescaped.push_str(part);
        }
    }
    unescaped
}

/// The page for a language that is written from right to left. MJML lays out all pages from left to right.
fn mirrored(html: &str) -> String {
    let mut mirrored = html.replace("direction:ltr", "direction:rtl");
    for (left, right) in [
        ("text-align:left", "text-align:right"),
        ("align=\"left\"", "align=\"right\""),
        ("border-left", "border-right"),
        ("padding-left", "padding-right"),
        ("margin-left", "margin-right"),
    ] {
        mirrored = mirrored.replace(left, "\u{0}").replace(right, left).replace('\u{0}', right);
    }
    mirrored
}
