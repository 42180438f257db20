//! The plain part of blocks.

use super::block::{Block, BlockKind, Inline, Link, Position};

/// A template of plain text, whose tags are hidden.
#[derive(Default)]
pub(super) struct PlainText {
    pub(super) text: String,
    /// For each line of `text`, where it comes from.
    pub(super) lines: Vec<Position>,
}

impl PlainText {
    /// The plain part of blocks without partials.
    pub(super) fn of(blocks: &[Block]) -> Self {
        let mut plain = Self::default();
        plain.push_blocks(blocks);
        plain
    }

    fn push(&mut self, text: &str, position: Position) {
        for part in text.split('\n') {
            self.text.push_str(part);
            self.text.push('\n');
            self.lines.push(position);
        }
    }

    fn push_blocks(&mut self, blocks: &[Block]) {
        for (index, Block { position, kind }) in blocks.iter().enumerate() {
            let position = *position;
            let ends_facts = || blocks[index].is_facts() && blocks.get(index + 1).is_some_and(|next| !next.is_facts());
            match kind {
                BlockKind::Headline(text) | BlockKind::Paragraph(text) | BlockKind::Notice(text) => {
                    self.push(&flatten(text), position);
                    self.push("", position);
                }
                BlockKind::Button(Link { label, shown, .. }) => {
                    self.push(&format!("{}\n{shown}\n", flatten(label)), position);
                }
                BlockKind::Fact { label, value } => {
                    self.push(&format!("{} {}", flatten(label), flatten(value)), position);
                    if ends_facts() {
                        self.push("", position);
                    }
                }
                BlockKind::Quote { label, fact } => {
                    self.push(&format!("\n{} {fact}\n", flatten(label)), position);
                }
                BlockKind::Helper { branches, end } => {
                    for branch in branches {
                        self.push(&branch.tag, branch.position);
                        self.push_blocks(&branch.blocks);
                    }
                    self.push(end, position);
                    if ends_facts() {
                        self.push("", position);
                    }
                }
                // They are expanded before.
                BlockKind::Partial(_) | BlockKind::InlinePartial { .. } => {}
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
            Inline::Link(Link { label, shown, .. }) => {
                let label = flatten(label);
                if label == *shown { label } else { format!("{label} ({shown})") }
            }
            Inline::LineBreak => "\n".to_owned(),
        })
        .collect()
}
