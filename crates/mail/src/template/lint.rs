//! Checks what templates contain: known names, conditions and partials, and nothing else. Unlike rendering the samples, this
//! also covers branches that no sample reaches.

use std::collections::BTreeSet;

use handlebars::template::{HelperTemplate, Parameter, Template as Parsed, TemplateElement};
use icu::locale::LanguageIdentifier;

use super::catalog::FALLBACK;
use super::facts_view::{SUBJECT, Value, view};
use super::problem::Mistake;
use crate::locale::{Formats, parse_tag};
use crate::samples::every_fact;

/// The names that templates may use.
pub(super) struct KnownNames {
    /// Names with a text: `participant`, `card.brand`.
    texts: BTreeSet<&'static str>,
    /// Names without a text, for conditions only: `refund`, `card`.
    flags: BTreeSet<&'static str>,
}

impl KnownNames {
    /// The names that subjects may use.
    pub(super) fn in_subjects() -> Self {
        let locale = parse_tag(FALLBACK).unwrap_or(LanguageIdentifier::UNKNOWN);
        let mut names = Self { texts: BTreeSet::new(), flags: BTreeSet::new() };
        for (name, value) in view(&every_fact(), &Formats::new(&locale), FALLBACK) {
            match value {
                Value::Text(_) => names.texts.insert(name),
                Value::True => names.flags.insert(name),
            };
        }
        names
    }

    /// The names that everything below the subject may use.
    pub(super) fn below_subjects() -> Self {
        let mut names = Self::in_subjects();
        names.texts.insert(SUBJECT);
        names
    }

    /// Finds unknown names and unsupported syntax. `line` maps a line of `parsed` to the line of the file.
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
            // The parser gives `{{else if}}` no position; use that of its block.
            let line_here = parsed.mapping.get(index).map_or(line_of_block, |at| line(at.0));
            let mistake = match element {
                TemplateElement::RawString(_) | TemplateElement::Comment(_) => None,
                TemplateElement::Expression(value) => self.lint_value(value),
                TemplateElement::HtmlExpression(value) => {
                    let name = value.name.as_name().unwrap_or_default();
                    Some(format!("{{{{{{{name}}}}}}} is not escaped, so a fact could inject HTML: use {{{{{name}}}}}"))
                }
                TemplateElement::HelperBlock(block) => self.lint_condition(block),
                TemplateElement::PartialExpression(partial) if partial.params.is_empty() && partial.hash.is_empty() => {
                    None
                }
                // Partials with blocks or parameters, decorators, and anything that newer parsers support.
                _ => Some("not supported; a partial is written {{> name}}".to_owned()),
            };
            found.extend(mistake.map(|message| Mistake::new(line_here, message)));
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
            return Some(format!("unknown helper `{name}`; only {{{{#if …}}}} and {{{{#unless …}}}} are supported"));
        }
        if self.flags.contains(name) {
            return Some(match self.first_part(name) {
                Some(part) => format!("`{name}` has no text; use one of its parts, such as `{part}`"),
                None => format!("`{name}` has no text; use it as a condition: {{{{#if {name}}}}}"),
            });
        }
        (!self.texts.contains(name)).then(|| format!("unknown name `{name}`"))
    }

    fn lint_condition(&self, block: &HelperTemplate) -> Option<String> {
        let helper = block.name.as_name().unwrap_or_default();
        if !matches!(helper, "if" | "unless") {
            return Some(format!("unknown block `{helper}`; only {{{{#if …}}}} and {{{{#unless …}}}} are supported"));
        }
        let ([Parameter::Path(_) | Parameter::Name(_)], true, None) =
            (block.params.as_slice(), block.hash.is_empty(), &block.block_param)
        else {
            return Some(format!("{{{{#{helper} …}}}} takes exactly one name"));
        };
        let name = block.params.first().and_then(Parameter::as_name).unwrap_or_default();
        (!self.texts.contains(name) && !self.flags.contains(name)).then(|| format!("unknown name `{name}`"))
    }

    fn first_part(&self, group: &str) -> Option<&'static str> {
        self.texts.iter().copied().find(|name| name.strip_prefix(group).is_some_and(|part| part.starts_with('.')))
    }
}
