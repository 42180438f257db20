//! The blocks of an email's body: paragraphs, notices, buttons, facts. They are still templates: no fact is inserted yet,
//! so none can be taken for markup.

/// A block of a body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Block {
    /// The line of the file where it begins, from 1.
    pub(super) line: usize,
    pub(super) kind: BlockKind,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum BlockKind {
    /// `# …`
    Headline(Vec<Inline>),
    Paragraph(Vec<Inline>),
    /// `> …`
    Notice(Vec<Inline>),
    /// `[label](address)` alone.
    Button(Link),
    /// `- **label:** value`
    Fact {
        label: Vec<Inline>,
        value: Vec<Inline>,
    },
    /// `{{> name}}`
    Partial(String),
    /// `{{#if …}}` to `{{/if}}`, with the `{{else}}`s between.
    Condition {
        branches: Vec<Branch>,
        end: String,
    },
}

/// A branch of a condition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Branch {
    pub(super) line: usize,
    /// `{{#if note}}`, `{{else}}`
    pub(super) tag: String,
    pub(super) blocks: Vec<Block>,
}

/// A part of a sentence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Inline {
    Text(String),
    Strong(Vec<Inline>),
    Link(Link),
    LineBreak,
}

/// A link in a sentence, or a button.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Link {
    pub(super) label: Vec<Inline>,
    pub(super) url: String,
}

impl Block {
    /// Whether it consists of facts only. Adjacent ones share a table.
    pub(super) fn is_facts(&self) -> bool {
        match &self.kind {
            BlockKind::Fact { .. } => true,
            BlockKind::Condition { branches, .. } => {
                branches.iter().all(|branch| branch.blocks.iter().all(Self::is_facts))
            }
            _ => false,
        }
    }
}
