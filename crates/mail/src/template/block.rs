//! The blocks of an email's body: paragraphs, notices, buttons, facts. They are still templates, whose tags are hidden (see
//! [`tags`](super::tags)): no fact is inserted yet, so none can be taken for markup.

use std::collections::BTreeMap;

/// A position in the files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Position {
    /// The index of the file.
    pub(super) file: usize,
    /// The line, from 1. In a body, the line where the paragraph begins.
    pub(super) line: usize,
}

/// A block of a body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Block {
    /// Where it begins.
    pub(super) position: Position,
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
    /// `- **label:** {{reason}}`: what a person wrote.
    Quote {
        label: Vec<Inline>,
        /// The hidden tag of the fact.
        fact: char,
    },
    /// `{{> name}}`, or `{{#> name}}` to `{{/name}}`.
    Partial(PartialCall),
    /// `{{#*inline "name"}}` to `{{/inline}}`: a partial for the blocks that follow.
    InlinePartial {
        name: String,
        blocks: Vec<Block>,
    },
    /// `{{#if …}}` to `{{/if}}`, with the `{{else}}`s between; also `{{#each …}}` and other helpers.
    Helper {
        branches: Vec<Branch>,
        end: String,
    },
}

/// The use of a partial.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PartialCall {
    pub(super) name: String,
    /// The tags around its content, if it has a context or parameters.
    pub(super) scope: Option<(String, String)>,
    /// What `{{> @partial-block}}` stands for in the partial.
    pub(super) content: Option<Vec<Block>>,
}

/// A branch of a block helper.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Branch {
    pub(super) position: Position,
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
    /// The address as the plain part shows it.
    pub(super) shown: String,
}

impl Block {
    /// Whether it consists of facts only. Adjacent ones share a table.
    pub(super) fn is_facts(&self) -> bool {
        match &self.kind {
            BlockKind::Fact { .. } => true,
            BlockKind::Helper { branches, .. } => {
                let mut blocks = branches.iter().flat_map(|branch| &branch.blocks).peekable();
                blocks.peek().is_some() && blocks.all(Self::is_facts)
            }
            _ => false,
        }
    }
}

/// Partials by name: those that a body defines itself.
pub(super) type InlinePartials = BTreeMap<String, Vec<Block>>;
