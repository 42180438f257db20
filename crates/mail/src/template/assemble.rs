//! Assembling the templates of one locale from its files. Partials are inserted here, once, and not for each email.

use std::collections::{BTreeSet, HashMap};

use handlebars::template::Template as Parsed;
use offramp_domain::notification::Recipient;

use super::ast::{Name, Node, nodes, replace_partials};
use super::block::Block;
use super::catalog::{EmailTemplate, LocaleTemplates, ancestry};
use super::compile::{CompiledFiles, Content, TextFile};
use super::design::{BUTTON, CONTENT, Design, FACT, FACTS, FOOTER, HEADLINE, LAYOUT, NOTICE, PARAGRAPH, SMALL_PRINT};
use super::html::{compile_mjml, to_mjml};
use super::problem::TemplateProblem;
use crate::kind::EmailKind;
use crate::locale::parse_tag;
use crate::text::single_line;

/// The deepest nesting of partials.
const PARTIAL_DEPTH_MAX: usize = 8;

/// Assembles the templates of one locale: from its own folder, else from its language's, else from the design.
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
    let mut assembler = Assembler { files, folders: &folders, used, problems };
    let style = assembler.style();
    let mut emails = HashMap::new();
    for kind in EmailKind::all() {
        if let Some(template) = assembler.email(locale, style.as_ref(), kind) {
            emails.insert(kind, template);
        }
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
    used: &'a mut BTreeSet<usize>,
    problems: &'a mut BTreeSet<TemplateProblem>,
}

impl<'a> Assembler<'a> {
    fn problem(&mut self, file: String, line: Option<usize>, message: impl Into<String>) {
        self.problems.insert(TemplateProblem { file, line, message: message.into() });
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
        };
        let footer = Design { paragraph: part(SMALL_PRINT)?, ..body.clone() };
        Some(Style { layout: part(LAYOUT)?, body, footer })
    }

    /// The templates of one email. Missing files are reported.
    fn email(&mut self, locale: &str, style: Option<&Style>, kind: EmailKind) -> Option<EmailTemplate> {
        let mut text_file = |name: String, if_missing: &str| match self.find(&name) {
            Some(Content::Text(text)) => Some(text),
            Some(Content::Design(_) | Content::Invalid) => None,
            None => {
                self.problem(format!("{locale}/{name}"), None, if_missing);
                None
            }
        };
        let body = text_file(format!("{kind}.md"), "missing: this email could not be sent in this language")?;
        let footer = text_file(footer_name(kind.recipient), "missing: every email ends with it")?;
        let mut text = self.expand(&body.text, 0);
        text.extend(self.expand(&footer.text, 0));
        // A missing design is reported already.
        Some(EmailTemplate { subject: body.subject.clone()?, text, html: self.page(style?, body, footer)? })
    }

    fn partial(&mut self, name: &str) -> Option<&'a Content> {
        self.find(&format!("_{name}.md"))
    }

    /// Replaces partials by their plain text.
    fn expand(&mut self, nodes: &[Node], depth: usize) -> Vec<Node> {
        replace_partials(nodes, &mut |Name { name, position }| {
            let message = match self.partial(name) {
                Some(Content::Text(partial)) if depth < PARTIAL_DEPTH_MAX => {
                    return self.expand(&partial.text, depth + 1);
                }
                Some(Content::Text(_)) => {
                    format!("the partial `{name}` includes itself, or is nested {PARTIAL_DEPTH_MAX} levels deep")
                }
                Some(Content::Invalid) => return vec![],
                Some(Content::Design(_)) | None => {
                    format!("unknown partial `{name}`: the file _{name}.md is missing")
                }
            };
            let (file, line) = self.files.location(*position);
            self.problem(file, line, message);
            vec![]
        })
    }

    /// The MJML of blocks, with their partials. [`Self::expand`] reports problems with partials.
    fn mjml(&mut self, blocks: &'a [Block], design: &Design, depth: usize) -> String {
        to_mjml(blocks, design, &mut |name| match self.partial(name) {
            Some(Content::Text(partial)) if depth < PARTIAL_DEPTH_MAX => self.mjml(&partial.blocks, design, depth + 1),
            _ => String::new(),
        })
    }

    /// The template of the HTML part.
    fn page(&mut self, style: &Style, body: &'a TextFile, footer: &'a TextFile) -> Option<Vec<Node>> {
        let content = self.mjml(&body.blocks, &style.body, 0);
        let footer = self.mjml(&footer.blocks, &style.footer, 0);
        let mjml = style.layout.replace(FOOTER, &footer).replace(CONTENT, &content);
        let compiled = compile_mjml(&mjml).and_then(|html| {
            Parsed::compile(&html)
                .map_err(|error| format!("the compiled page is not a valid template: {}", error.reason()))
        });
        match compiled {
            // The only place that remains is the preview.
            Ok(page) => Some(replace_partials(&nodes(&page, &|_| None), &mut |_| body.preview.clone())),
            Err(message) => {
                self.problem(LAYOUT.to_owned(), None, single_line(&message));
                None
            }
        }
    }
}

/// `_footer.account_manager.md`: the end of every email to this recipient.
fn footer_name(recipient: Recipient) -> String {
    format!("_footer.{}.md", recipient.as_str())
}
