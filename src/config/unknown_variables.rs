//! Environment variables that look like settings and are none: usually misspelt.

use std::ffi::OsString;
use std::fmt;

use super::all_settings;
use super::source::variable_of;

/// How similar a known name must be to be proposed, from 0 to 1.
const SIMILARITY_MIN: f64 = 0.75;
/// What every setting's variable begins with.
const PREFIX: &str = "OFFRAMP_";
/// What the variables of this repository's scripts, tests and Compose files begin with.
const OF_SCRIPTS: [&str; 4] = ["OFFRAMP_SERVICES_", "OFFRAMP_IMAGE", "OFFRAMP_SECRETS", "OFFRAMP_REVISION"];

/// An environment variable that no setting reads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnknownVariable {
    pub name: String,
    /// The known variable with the most similar name, if one is similar.
    pub nearest: Option<String>,
}

/// `OFFRAMP_AMPQ_URL is no setting; did you mean OFFRAMP_AMQP_URL?`
impl fmt::Display for UnknownVariable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} is no setting", self.name)?;
        self.nearest.as_ref().map_or(Ok(()), |nearest| write!(f, "; did you mean {nearest}?"))
    }
}

/// The variables `OFFRAMP_…` that no setting reads, sorted by name. Empty variables count as unset. So do those that Kubernetes sets for
/// a Service named `offramp` or `offramp-…` (`OFFRAMP_SERVICE_HOST`, `OFFRAMP_PORT_9464_TCP`).
pub fn unknown_variables(variables: impl IntoIterator<Item = (OsString, OsString)>) -> Vec<UnknownVariable> {
    let known: Vec<String> = all_settings()
        .get_arguments()
        .map(variable_of)
        .flat_map(|name| [format!("{name}_FILE"), format!("{name}_DEFAULT"), name])
        .collect();
    let mut unknown: Vec<UnknownVariable> = variables
        .into_iter()
        .filter(|(_, value)| !value.is_empty())
        .map(|(name, value)| (name.to_string_lossy().into_owned(), value.to_string_lossy().into_owned()))
        .filter(|(name, _)| name.starts_with(PREFIX) && !known.contains(name))
        .filter(|(name, _)| !OF_SCRIPTS.iter().any(|start| name.starts_with(start)))
        .filter(|(name, value)| !is_of_kubernetes(name, value))
        .map(|(name, _)| UnknownVariable { nearest: nearest(&name, &known), name })
        .collect();
    unknown.sort_by(|one, other| one.name.cmp(&other.name));
    unknown
}

/// Whether Kubernetes describes a Service with this variable.
fn is_of_kubernetes(name: &str, value: &str) -> bool {
    let is_address = || value.contains("://") && (name.ends_with("_PORT") || name.contains("_PORT_"));
    name.ends_with("_SERVICE_HOST")
        || name.ends_with("_SERVICE_PORT")
        || name.contains("_SERVICE_PORT_")
        || ["_TCP_ADDR", "_TCP_PORT", "_TCP_PROTO", "_UDP_ADDR", "_UDP_PORT", "_UDP_PROTO"]
            .iter()
            .any(|end| name.contains("_PORT_") && name.ends_with(end))
        || is_address()
}

fn nearest(name: &str, known: &[String]) -> Option<String> {
    let without_prefix = |name: &str| name.strip_prefix(PREFIX).unwrap_or(name).to_uppercase();
    let given = without_prefix(name);
    known
        .iter()
        .map(|known| (strsim::jaro(&given, &without_prefix(known)), known))
        .filter(|(similarity, _)| *similarity >= SIMILARITY_MIN)
        .max_by(|(one, _), (other, _)| one.total_cmp(other))
        .map(|(_, known)| known.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(name: &str, value: &str, expected: Option<&str>) {
        let found = unknown_variables([(name.into(), value.into())]);
        let text = found.first().map(ToString::to_string);
        assert_eq!(text.as_deref(), expected, "{name}={value}");
    }

    #[test]
    fn misspelt_variables_are_reported_with_the_nearest_setting() {
        for (name, nearest) in [
            ("OFFRAMP_AMPQ_URL", "OFFRAMP_AMQP_URL"),
            ("OFFRAMP_MONGO_URL", "OFFRAMP_MONGODB_URL"),
            ("OFFRAMP_MONGODB_URL_FILES", "OFFRAMP_MONGODB_URL_FILE"),
            ("OFFRAMP_SWEEP_SECOND", "OFFRAMP_SWEEP_SECONDS"),
            ("OFFRAMP_LOGFORMAT", "OFFRAMP_LOG_FORMAT"),
            ("OFFRAMP_HTTP_ADDRESS", "OFFRAMP_HTTP_ADDR"),
        ] {
            check(name, "x", Some(&format!("{name} is no setting; did you mean {nearest}?")));
        }
        check("OFFRAMP_QQQ", "x", Some("OFFRAMP_QQQ is no setting"));
    }

    #[test]
    fn settings_and_variables_of_others_are_not_reported() {
        for name in [
            "OFFRAMP_AMQP_URL",
            "OFFRAMP_AMQP_URL_FILE",
            "OFFRAMP_HTTP_ADDR_DEFAULT",
            "OFFRAMP_LOG",
            "AMQP_URL",
            "OFFRAMP",
            "OFFRAMP_SERVICES_DIR",
            "OFFRAMP_IMAGE",
        ] {
            check(name, "x", None);
        }
        check("OFFRAMP_AMPQ_URL", "", None);
        // As Kubernetes sets them for Services named offramp and offramp-metrics.
        for (name, value) in [
            ("OFFRAMP_SERVICE_HOST", "10.96.0.12"),
            ("OFFRAMP_SERVICE_PORT", "9464"),
            ("OFFRAMP_SERVICE_PORT_METRICS", "9464"),
            ("OFFRAMP_PORT", "tcp://10.96.0.12:9464"),
            ("OFFRAMP_PORT_9464_TCP", "tcp://10.96.0.12:9464"),
            ("OFFRAMP_PORT_9464_TCP_ADDR", "10.96.0.12"),
            ("OFFRAMP_PORT_9464_TCP_PORT", "9464"),
            ("OFFRAMP_PORT_9464_TCP_PROTO", "tcp"),
            ("OFFRAMP_METRICS_SERVICE_HOST", "10.96.0.13"),
        ] {
            check(name, value, None);
        }
        check("OFFRAMP_HTTP_PORT", "9464", Some("OFFRAMP_HTTP_PORT is no setting; did you mean OFFRAMP_HTTP_ADDR?"));
    }
}
