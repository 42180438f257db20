//! Settings and environment variables.

use offramp::build;
use offramp::config::{Settings, unknown_variables};

use super::finding::Finding;

/// Parsed settings are valid: clap has reported missing and invalid ones. What remains are variables that no setting reads.
pub fn check(settings: &Settings) -> Finding {
    let Settings { broker, database, sender, .. } = settings;
    let finding = Finding::of_configuration("settings").fact(format!(
        "offramp {} (revision {}), prefix {}, database {}, emails from {}",
        build::VERSION,
        build::REVISION,
        broker.prefix,
        database.mongodb_url.database(),
        sender.mail_from.email()
    ));
    unknown_variables(std::env::vars_os())
        .iter()
        .fold(finding, |finding, variable| finding.problem(variable.to_string()))
}
