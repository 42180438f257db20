//! What templates may have in them: names that mails know, conditions, partials. Whatever else there is, is found by its
//! line, also in branches that no try-out takes.

use std::collections::BTreeSet;

use handlebars::template::{HelperTemplate, Parameter, Template as Parsed, TemplateElement};
use icu::locale::LanguageIdentifier;
use serde_json::{Map, Value};

use super::FALLBACK;
use super::markup::Mistake;
use crate::mail::locale::{Formats, parse_tag};
use crate::mail::samples::every_fact;
use crate::mail::view::{SUBJECT, view};

/// The names that templates may use.
pub(super) struct KnownNames {
    /// What can be written out: `participant`, `card.brand`.
    values: BTreeSet<String>,
    /// What has parts, and can only be asked for: `card`.
    groups: BTreeSet<String>,
}

impl KnownNames {
    pub(super) fn new() -> Self {
        let locale = parse_tag(FALLBACK).unwrap_or(LanguageIdentifier::UNKNOWN);
        let mut names = Self { values: BTreeSet::from([SUBJECT.to_owned()]), groups: BTreeSet::new() };
        names.add("", &view(&every_fact(), &Formats::new(&locale), FALLBACK));
        names
    }

    fn add(&mut self, prefix: &str, facts: &Map<String, Value>) {
        for (name, value) in facts {
            let name = format!("{prefix}{name}");
            if let Value::Object(parts) = value {
                self.add(&format!("{name}."), parts);
                self.groups.insert(name);
            } else {
                self.values.insert(name);
            }
        }
    }

    /// Finds what templates may not have in them: names that no mail knows, wherever they stand, and whatever would make
    /// a template more than words with names in them. The lines are those of the file.
    pub(super) fn lint(&self, parsed: &Parsed, found: &mut Vec<Mistake>) {
        for (element, at) in parsed.elements.iter().zip(&parsed.mapping) {
            match element {
                TemplateElement::RawString(_) | TemplateElement::Comment(_) => {}
                TemplateElement::Expression(value) => {
                    found.extend(self.lint_value(value).map(|message| (at.0, message)));
                }
                TemplateElement::HtmlExpression(value) => {
                    let name = value.name.as_name().unwrap_or_default();
                    let message = format!(
                        "{{{{{{{name}}}}}}} is not escaped, so a name could put HTML into mails: use {{{{{name}}}}}"
                    );
                    found.push((at.0, message));
                }
                TemplateElement::HelperBlock(block) => {
                    found.extend(self.lint_condition(block).map(|message| (at.0, message)));
                    for inner in [&block.template, &block.inverse].into_iter().flatten() {
                        self.lint(inner, found);
                    }
                }
                TemplateElement::PartialExpression(partial) if partial.params.is_empty() && partial.hash.is_empty() => {
                }
                // Partials with blocks or parameters, decorators, and whatever else the engine may learn.
                _ => {
                    found.push((
                        at.0,
                        "this cannot be used; of partials there is only the plain form {{> name}}".to_owned(),
                    ));
                }
            }
        }
    }

    fn lint_value(&self, value: &HelperTemplate) -> Option<String> {
        let name = value.name.as_name().unwrap_or_default();
        if !value.params.is_empty() || !value.hash.is_empty() {
            return Some(format!("there is no helper `{name}`; only {{{{#if …}}}} and {{{{#unless …}}}} can be used"));
        }
        if self.groups.contains(name) {
            return Some(format!("`{name}` has parts; name one of them, such as `{name}.{}`", self.first_part(name)));
        }
        (!self.values.contains(name)).then(|| format!("unknown name `{name}`"))
    }

    fn lint_condition(&self, block: &HelperTemplate) -> Option<String> {
        let helper = block.name.as_name().unwrap_or_default();
        if !matches!(helper, "if" | "unless") {
            return Some(format!("there is no block `{helper}`; only {{{{#if …}}}} and {{{{#unless …}}}} can be used"));
        }
        let [Parameter::Path(_) | Parameter::Name(_)] = block.params.as_slice() else {
            return Some(format!("{{{{#{helper} …}}}} asks for one name"));
        };
        let name = block.params.first().and_then(Parameter::as_name).unwrap_or_default();
        (!self.values.contains(name) && !self.groups.contains(name)).then(|| format!("unknown name `{name}`"))
    }

    fn first_part(&self, group: &str) -> &str {
        let prefix = format!("{group}.");
        self.values.iter().find_map(|name| name.strip_prefix(prefix.as_str())).unwrap_or_default()
    }
}
