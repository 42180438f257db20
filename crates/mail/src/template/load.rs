//! Loading all templates: read, check, assemble, and render every sample.

use std::collections::BTreeSet;
use std::path::Path;

use super::assemble::assemble;
use super::ast::Name;
use super::catalog::Templates;
use super::compile::CompiledFiles;
use super::problem::TemplateProblem;
use super::source;
use crate::kind::EmailKind;
use crate::samples::samples;

impl Templates {
    /// Loads the built-in templates and those of the directory `overrides`, and renders every sample with them.
    ///
    /// # Errors
    /// All problems, by file and line.
    pub fn load(overrides: Option<&Path>) -> Result<Self, Vec<TemplateProblem>> {
        let mut problems = BTreeSet::new();
        let mut files = CompiledFiles::default();
        for source in source::built_in() {
            files.add(source, &mut problems);
        }
        for source in overrides.map(|directory| source::read(directory, &mut problems)).unwrap_or_default() {
            files.add(source, &mut problems);
        }
        let mut used = BTreeSet::new();
        let locales = files.locales();
        let templates =
            locales.iter().filter_map(|locale| assemble(locale, &locales, &files, &mut used, &mut problems)).collect();
        problems.extend(files.unused(&used));
        let templates = Self::new(templates);
        if problems.is_empty() {
            problems = problems_with_samples(&templates, &files, &locales);
        }
        if problems.is_empty() { Ok(templates) } else { Err(problems.into_iter().collect()) }
    }
}

/// Renders every sample in every language, so that an optional fact outside of a condition shows now, and not with the email
/// of a customer.
fn problems_with_samples(
    templates: &Templates,
    files: &CompiledFiles,
    locales: &BTreeSet<String>,
) -> BTreeSet<TemplateProblem> {
    let mut problems = BTreeSet::new();
    for locale in locales {
        let reader = templates.new_reader(locale);
        for kind in EmailKind::all() {
            for sample in samples(kind.template, kind.recipient, locale) {
                let rendered =
                    templates.template(&reader, kind).map(|it| it.render(&reader, &sample.notification.facts));
                let Some(Err(Name { name, position })) = rendered else { continue };
                let (file, line) = files.location(*position);
                let message = format!(
                    "`{name}` is optional: put it inside {{{{#if {name}}}}}…{{{{/if}}}} (found with {kind}, {})",
                    sample.variant
                );
                problems.insert(TemplateProblem { file, line, message });
            }
        }
    }
    problems
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn built_in_templates_have_no_problems() {
        let templates = Templates::load(None).unwrap_or_else(|problems| panic!("{problems:#?}"));
        assert_eq!(templates.locales().collect::<Vec<_>>(), ["en", "es", "fr"]);
    }
}
