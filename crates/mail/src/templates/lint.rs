//! What templates may have in them: names that mails know, conditions, partials. Whatever else there is, is found by its
//! line, also in branches that no try-out takes.

use std::collections::BTreeSet;

use handlebars::template::{HelperTemplate, Parameter, Template as Parsed, TemplateElement};
use icu::locale::LanguageIdentifier;

use super::FALLBACK;
use super::markup::Mistake;
use crate::locale::{Formats, parse_tag};
use crate::samples::every_fact;
use crate::view::{SUBJECT, Shown, view};

/// The names that templates may use.
pub(super) struct KnownNames {
    /// What can be written out: `participant`, `card.brand`.
    words: BTreeSet<&'static str>,
    /// What can only be asked for: `refund`, `card`.
    questions: BTreeSet<&'static str>,
}

impl KnownNames {
    /// The names that subjects may have in them.
    pub(super) fn in_subjects() -> Self {
        let locale = parse_tag(FALLBACK).unwrap_or(LanguageIdentifier::UNKNOWN);
        let mut names = Self { words: BTreeSet::new(), questions: BTreeSet::new() };
        for (name, shown) in view(&every_fact(), &Formats::new(&locale), FALLBACK) {
            match shown {
                Shown::Words(_) => names.words.insert(name),
                Shown::Yes => names.questions.insert(name),
            };
        }
        names
    }

    /// The names that everything else may have in it.
    pub(super) fn below_subjects() -> Self {
        let mut names = Self::in_subjects();
        names.words.insert(SUBJECT);
        names
    }

    /// Finds what templates may not have in them: names that no mail knows, wherever they stand, and whatever would make
    /// a template more than words with names in them. `line` says which line of the file a line of `parsed` is.
    pub(super) fn lint(&self, parsed: &Parsed, line: &dyn Fn(usize) -> usize, found: &mut Vec<Mistake>) {
        self.lint_within(parsed, 1, line, found);
    }

    fn lint_within(
        &self,
        parsed: &Parsed,
        line_of_block: usize,
        line: &dyn Fn(usize) -> usize,
        found: &mut Vec<Mistake>,
    ) {
        for (index, element) in parsed.elements.iter().enumerate() {
            // The parser gives `{{else if}}` no position: it stands where its block does.
            let line_here = parsed.mapping.get(index).map_or(line_of_block, |at| line(at.0));
            let mistake = match element {
                TemplateElement::RawString(_) | TemplateElement::Comment(_) => None,
                TemplateElement::Expression(value) => self.lint_value(value),
                TemplateElement::HtmlExpression(value) => {
                    let name = value.name.as_name().unwrap_or_default();
                    Some(format!(
                        "{{{{{{{name}}}}}}} is not escaped, so a name could put HTML into mails: use {{{{{name}}}}}"
                    ))
                }
                TemplateElement::HelperBlock(block) => self.lint_condition(block),
                TemplateElement::PartialExpression(partial) if partial.params.is_empty() && partial.hash.is_empty() => {
                    None
                }
                // Partials with blocks or parameters, decorators, and whatever else the parser may learn.
                _ => Some("this cannot be used; of partials there is only the plain form {{> name}}".to_owned()),
            };
            found.extend(mistake.map(|message| (line_here, message)));
            if let TemplateElement::HelperBlock(block) = element {
                for inner in [&block.template, &block.inverse].into_iter().flatten() {
                    self.lint_within(inner, line_here, line, found);
                }
            }
        }
    }

    fn lint_value(&self, value: &HelperTemplate) -> Option<String> {
        let name = value.name.as_name().unwrap_or_default();
        if !value.params.is_empty() || !value.hash.is_empty() {
            return Some(format!("there is no helper `{name}`; only {{{{#if …}}}} and {{{{#unless …}}}} can be used"));
        }
        if self.questions.contains(name) {
            return Some(match self.first_part(name) {
                Some(part) => format!("`{name}` has parts; name one of them, such as `{part}`"),
                None => format!("`{name}` is so or not, and has no words: ask for it with {{{{#if {name}}}}}"),
            });
        }
        (!self.words.contains(name)).then(|| format!("unknown name `{name}`"))
    }

    fn lint_condition(&self, block: &HelperTemplate) -> Option<String> {
        let helper = block.name.as_name().unwrap_or_default();
        if !matches!(helper, "if" | "unless") {
            return Some(format!("there is no block `{helper}`; only {{{{#if …}}}} and {{{{#unless …}}}} can be used"));
        }
        let ([Parameter::Path(_) | Parameter::Name(_)], true, None) =
            (block.params.as_slice(), block.hash.is_empty(), &block.block_param)
        else {
            return Some(format!("{{{{#{helper} …}}}} asks for one name"));
        };
        let name = block.params.first().and_then(Parameter::as_name).unwrap_or_default();
        (!self.words.contains(name) && !self.questions.contains(name)).then(|| format!("unknown name `{name}`"))
    }

    fn first_part(&self, group: &str) -> Option<&'static str> {
        self.words.iter().copied().find(|name| name.strip_prefix(group).is_some_and(|part| part.starts_with('.')))
    }
}
