//! The design: the MJML files that say how emails look, and the places in them that are filled with text.

use super::tags::{TagKind, Tags};

/// The page around every HTML part.
pub(super) const LAYOUT: &str = "_layout.mjml";
pub(super) const HEADLINE: &str = "_headline.mjml";
pub(super) const PARAGRAPH: &str = "_paragraph.mjml";
pub(super) const NOTICE: &str = "_notice.mjml";
pub(super) const BUTTON: &str = "_button.mjml";
/// The table of facts.
pub(super) const FACTS: &str = "_facts.mjml";
/// A row of the table of facts.
pub(super) const FACT: &str = "_fact.mjml";
/// What a person wrote.
pub(super) const QUOTE: &str = "_quote.mjml";
/// The paragraphs of the footer.
pub(super) const SMALL_PRINT: &str = "_small-print.mjml";

/// The places in design files, each as the character that stands for its tag.
#[derive(Debug)]
pub(super) struct Places {
    /// `{{> content}}`
    pub(super) content: char,
    /// `{{> footer}}`
    pub(super) footer: char,
    /// `{{> preview}}`
    pub(super) preview: char,
    /// `{{> label}}`: of a fact.
    pub(super) label: char,
    /// `{{> address}}`: of a button.
    pub(super) address: char,
}

impl Places {
    pub(super) fn new(tags: &mut Tags) -> Self {
        let mut place = |name: &str| tags.hide_text(TagKind::Partial, &format!("{{{{> {name}}}}}"));
        Self {
            content: place("content"),
            footer: place("footer"),
            preview: place("preview"),
            label: place("label"),
            address: place("address"),
        }
    }

    /// The places in a design file.
    pub(super) fn of(&self, name: &str) -> Vec<char> {
        match name {
            LAYOUT => vec![self.preview, self.content, self.footer],
            BUTTON => vec![self.address, self.content],
            FACT | QUOTE => vec![self.label, self.content],
            _ => vec![self.content],
        }
    }
}

/// The MJML of each kind of block.
#[derive(Clone, Debug)]
pub(super) struct Design {
    pub(super) headline: String,
    pub(super) paragraph: String,
    pub(super) notice: String,
    pub(super) button: String,
    pub(super) facts: String,
    pub(super) fact: String,
    pub(super) quote: String,
}
