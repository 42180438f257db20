//! Loading all templates: read, check, assemble, and render every sample.

use std::collections::BTreeSet;
use std::path::Path;

use super::assemble::assemble;
use super::catalog::{FALLBACK, FaultPlace, ReaderTemplates, RenderFault, Templates};
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
        let (templates, problems) = Self::load_valid(overrides);
        if problems.is_empty() { Ok(templates) } else { Err(problems) }
    }

    /// Loads what is valid: each email without problems. Also returns all problems.
    #[must_use]
    pub fn load_valid(overrides: Option<&Path>) -> (Self, Vec<TemplateProblem>) {
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
        let mut templates = Self::new(templates, files.untranslated(FALLBACK));
        for locale in &locales {
            let found = templates.new_reader(locale);
            for kind in EmailKind::all() {
                if problems.is_empty() && templates.template(&found, kind).is_none() {
                    let message = format!("internal error: {kind} could not be assembled (bug)");
                    problems.insert(TemplateProblem { file: locale.clone(), line: None, message });
                }
                if let Some(problem) = templates.problem_with_samples(&files, &found, locale, kind) {
                    problems.insert(problem);
                    templates.remove(locale, kind);
                }
            }
        }
        (templates, problems.into_iter().collect())
    }

    /// Renders every sample of an email, so that an optional fact outside of a condition shows now, and not with the email of
    /// a customer.
    fn problem_with_samples(
        &self,
        files: &CompiledFiles,
        found: &ReaderTemplates,
        locale: &str,
        kind: EmailKind,
    ) -> Option<TemplateProblem> {
        let template = self.template(found, kind)?;
        samples(kind.template, kind.recipient, locale).into_iter().find_map(|sample| {
            let facts = &sample.notification.facts;
            let rendered = template.preview(&found.reader, facts).and_then(|_| template.render(&found.reader, facts));
            let (place, message) = match rendered {
                Ok(rendered) if rendered.subject.is_empty() => {
                    (FaultPlace::Subject, "the subject is empty when none of its conditions is met".to_owned())
                }
                Ok(_) => return None,
                Err(RenderFault { missing: Some(name), place, .. }) => {
                    (place, format!("`{name}` is optional: put it inside {{{{#if {name}}}}}…{{{{/if}}}}"))
                }
                Err(RenderFault { cause, place, .. }) => (place, cause),
            };
            let (file, line) = match place {
                FaultPlace::Subject => (files.path(template.file), Some(1)),
                FaultPlace::Preview => (files.path(template.file), Some(2)),
                FaultPlace::Body(position) => files.location(Some(position)),
                FaultPlace::Design => files.location(None),
            };
            let message = format!("{message} (found with {kind}, {})", sample.variant);
            Some(TemplateProblem { file, line, message })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn built_in_templates_have_no_problems() {
        let templates = Templates::load(None).unwrap_or_else(|problems| panic!("{problems:#?}"));
        assert_eq!(templates.locales().collect::<Vec<_>>(), ["en", "es", "es-ES", "es-MX", "fr", "fr-CA"]);
    }
}
