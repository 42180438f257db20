//! The plain part of blocks.

use super::block::{Block, BlockKind, Inline, Link};

/// A template of plain text.
#[derive(Default)]
pub(super) struct PlainText {
    pub(super) text: String,
    /// For each line of `text`, the line of the file that it comes from.
    pub(super) lines: Vec<usize>,
}

impl PlainText {
    pub(super) fn of(blocks: &[Block]) -> Self {
        let mut plain = Self::default();
        plain.push_blocks(blocks);
        plain
    }

    fn push(&mut self, text: &str, line: usize) {
        for part in text.split('\n') {
            self.text.push_str(part);
            self.text.push('\n');
            self.lines.push(line);
        }
    }

    fn push_blocks(&mut self, blocks: &[Block]) {
        for (index, block) in blocks.iter().enumerate() {
            let line = block.line;
            let ends_facts = || block.is_facts() && blocks.get(index + 1).is_some_and(|next| !next.is_facts());
            match &block.kind {
                BlockKind::Headline(text) | BlockKind::Paragraph(text) | BlockKind::Notice(text) => {
                    self.push(&flatten(text), line);
                    self.push("", line);
                }
                BlockKind::Button(Link { label, url }) => {
                    self.push(&format!("{}\n{url}\n", flatten(label)), line);
                }
                BlockKind::Fact { label, value } => {
                    self.push(&format!("{} {}", flatten(label), flatten(value)), line);
                    if ends_facts() {
                        self.push("", line);
                    }
                }
                BlockKind::Partial(name) => {
                    self.push(&format!("{{{{> {name}}}}}\n"), line);
                }
                BlockKind::Condition { branches, end } => {
                    for branch in branches {
                        self.push(&branch.tag, branch.line);
                        self.push_blocks(&branch.blocks);
                    }
                    self.push(end, line);
                    if ends_facts() {
                        self.push("", line);
                    }
                }
            }
        }
    }
}

/// Sentences as plain text.
pub(super) fn flatten(inlines: &[Inline]) -> String {
    inlines
        .iter()
        .map(|inline| match inline {
            Inline::Text(text) => text.clone(),
            Inline::Strong(inner) => flatten(inner),
            Inline::Link(Link { label, url }) => {
                let label = flatten(label);
                let address = url.strip_prefix("mailto:").unwrap_or(url);
                if label == address { label } else { format!("{label} ({address})") }
            }
            Inline::LineBreak => "\n".to_owned(),
        })
        .collect()
}
