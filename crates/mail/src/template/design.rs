//! The design: the MJML files that say how emails look, and the places in them that are filled with text.

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
/// The paragraphs of the footer.
pub(super) const SMALL_PRINT: &str = "_small-print.mjml";

/// The places in design files.
pub(super) const CONTENT: &str = "{{> content}}";
pub(super) const FOOTER: &str = "{{> footer}}";
pub(super) const PREVIEW: &str = "{{> preview}}";
/// The label of a fact.
pub(super) const LABEL: &str = "{{> label}}";
/// The address of a button.
pub(super) const ADDRESS: &str = "{{> address}}";

/// The places in a design file.
pub(super) fn places(name: &str) -> &'static [&'static str] {
    match name {
        LAYOUT => &[PREVIEW, CONTENT, FOOTER],
        BUTTON => &[ADDRESS, CONTENT],
        FACT => &[LABEL, CONTENT],
        _ => &[CONTENT],
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
}
