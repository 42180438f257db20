//! The HTML part of blocks: MJML of the design, compiled to HTML.

use std::collections::HashMap;

use mrml::prelude::render::RenderOptions;

use super::block::{Block, BlockKind, Branch, Inline, Link};
use super::design::{ADDRESS, CONTENT, Design, LABEL};
use super::escape::escape_html;

/// The MJML of blocks; still a template. `partial` returns the MJML of a partial.
pub(super) fn to_mjml(blocks: &[Block], design: &Design, partial: &mut dyn FnMut(&str) -> String) -> String {
    let mut mjml = String::new();
    let mut rest = blocks;
    while let Some(block) = rest.first() {
        let facts = rest.iter().take_while(|block| block.is_facts()).count();
        if facts > 0 {
            mjml.push_str(&design.facts.replace(CONTENT, &fact_rows(&rest[..facts], design)));
            rest = &rest[facts..];
            continue;
        }
        let with = |design: &str, content: &[Inline]| design.replace(CONTENT, &to_html(content));
        mjml.push_str(&match &block.kind {
            BlockKind::Headline(text) => with(&design.headline, text),
            BlockKind::Paragraph(text) => with(&design.paragraph, text),
            BlockKind::Notice(text) => with(&design.notice, text),
            BlockKind::Button(Link { label, url }) => with(&design.button, label).replace(ADDRESS, &escape_html(url)),
            BlockKind::Fact { .. } => String::new(),
            BlockKind::Partial(name) => partial(name),
            BlockKind::Condition { branches, end } => {
                let branch = |branch: &Branch| raw(&branch.tag) + &to_mjml(&branch.blocks, design, &mut *partial);
                branches.iter().map(branch).collect::<String>() + &raw(end)
            }
        });
        rest = &rest[1..];
    }
    mjml
}

fn fact_rows(blocks: &[Block], design: &Design) -> String {
    let mut rows = String::new();
    for block in blocks {
        match &block.kind {
            BlockKind::Fact { label, value } => {
                // The cells of a table replace the colon.
                let label = to_html(label);
                let label = label.trim_end().trim_end_matches(':').trim_end();
                rows.push_str(&design.fact.replace(LABEL, label).replace(CONTENT, &to_html(value)));
            }
            BlockKind::Condition { branches, end } => {
                for branch in branches {
                    rows.push_str(&branch.tag);
                    rows.push_str(&fact_rows(&branch.blocks, design));
                }
                rows.push_str(end);
            }
            _ => {}
        }
    }
    rows
}

/// A tag between MJML elements.
fn raw(tag: &str) -> String {
    format!("<mj-raw>{tag}</mj-raw>")
}

fn to_html(inlines: &[Inline]) -> String {
    inlines
        .iter()
        .map(|inline| match inline {
            Inline::Text(text) => escape_html(text),
            Inline::Strong(inner) => format!("<strong>{}</strong>", to_html(inner)),
            Inline::Link(link) => {
                format!("<a class=\"link\" href=\"{}\">{}</a>", escape_html(&link.url), to_html(&link.label))
            }
            Inline::LineBreak => "<br />".to_owned(),
        })
        .collect()
}

/// Compiles MJML to HTML, in lines that every mail server accepts unchanged: short, and none begins with a dot.
pub(super) fn compile_mjml(mjml: &str) -> Result<String, String> {
    let parsed = mrml::parse(mjml).map_err(|error| format!("invalid MJML: {error}"))?;
    if let Some(warning) = parsed.warnings.first() {
        return Err(format!("invalid MJML: {warning}"));
    }
    // No web fonts: loading them would reveal that an email was opened.
    let options = RenderOptions { fonts: HashMap::new(), ..RenderOptions::default() };
    let html = parsed.element.render(&options).map_err(|error| format!("invalid MJML: {error}"))?;
    // Screen readers look for the main part of a page.
    let html = html.replacen("role=\"article\"", "role=\"main\"", 1);
    // White space between these elements is invisible.
    let broken = ["<table", "<tbody", "<tr", "<td", "<th", "<div", "<style", "<body", "<!--[if"]
        .iter()
        .fold(html, |html, tag| html.replace(tag, &format!("\n{tag}")));
    // In style sheets.
    Ok(broken.replace("\n.", "\n ."))
}
