//! Templates, built in and from files.

use offramp::config::SenderSettings;
use offramp_mail::Templates;

use super::finding::Finding;

pub fn check(sender: &SenderSettings) -> Finding {
    let from = match &sender.templates {
        Some(path) => format!("built in and from {}", path.display()),
        None => "built in".to_owned(),
    };
    let finding = Finding::of_configuration("templates");
    match Templates::load(sender.templates.as_deref()) {
        Ok(templates) => {
            let languages = templates.locales().collect::<Vec<_>>().join(", ");
            let finding = finding.fact(format!("{from}, in {languages}"));
            templates.warnings().iter().fold(finding, |finding, warning| finding.warning(warning.to_string()))
        }
        Err(problems) => {
            problems.iter().fold(finding.fact(from), |finding, problem| finding.problem(problem.to_string()))
        }
    }
}
