//! RabbitMQ: connection, version, objects, rights.

use offramp::advice;
use offramp::amqp::{Broker, Topology, TopologyError};
use offramp::config::BrokerSettings;
use offramp::tls::Tls;

use super::finding::Finding;

/// The first version of RabbitMQ in which at-least-once dead-lettering does not stop (rabbitmq-server issue 16652).
const DEAD_LETTERING_REPAIRED: [u32; 3] = [4, 3, 3];
const DEAD_LETTERING_WARNING: &str = "\
in a cluster, RabbitMQ before 4.3.3 can stop dead-lettering permanently after nodes were replaced. Commands then never \
leave the retry queues. Upgrade to 4.3.3 or newer. A single node is not affected";

pub async fn check(settings: BrokerSettings, tls: &Tls) -> Finding {
    let url = settings.amqp_url.to_string();
    let broker = Broker::with_tls(settings.amqp_url, "offramp check", tls.clone());
    let finding = Finding::new("RabbitMQ");
    let found = match Topology::new(settings.prefix).inspect(&broker).await {
        Ok(found) => found,
        Err(TopologyError::Broker(error)) => {
            return finding.problem(advice::append(&error, advice::tls(&error.to_string())));
        }
        Err(error) => {
            return finding.fact(url).problem(advice::append(&error, advice::topology_error(&error)));
        }
    };
    let server = format!("{url}, version {}", found.broker_version);
    // A user who may not configure is told of objects that are missing, and nothing of those that exist.
    let creates = if found.denied.is_empty() {
        "`offramp init` or `offramp run` creates them"
    } else {
        "`offramp init` creates them, as a user who may"
    };
    let mut finding = if found.missing.is_empty() {
        match found.existing.len() {
            0 => finding.fact(server),
            compared => finding.fact(format!("{server}, {compared} objects as they should be")),
        }
    } else if found.existing.is_empty() && found.unchecked.is_empty() {
        finding.fact(format!("{server}, with no objects yet: {creates}"))
    } else {
        let missing = found.missing.join(", ");
        finding.fact(server).fact(format!("missing: {missing} ({creates})"))
    };
    if !found.unchecked.is_empty() {
        let unchecked = found.unchecked.join(", ");
        finding = finding.fact(format!("not checked, because this user may not configure: {unchecked}"));
    }
    if !found.denied.is_empty() {
        let denied: Vec<String> = found.denied.iter().map(ToString::to_string).collect();
        let sentence = format!("the user lacks rights: {}", denied.join(", "));
        finding = finding.problem(advice::append(sentence, Some(advice::RIGHTS)));
    }
    if dead_lettering_can_stop(&found.broker_version) {
        finding = finding.fact(format!("note: {DEAD_LETTERING_WARNING}"));
    }
    finding
}

/// Whether this version of RabbitMQ is older than [`DEAD_LETTERING_REPAIRED`]. False if it cannot be parsed.
fn dead_lettering_can_stop(version: &str) -> bool {
    let numbers: Vec<u32> = version.split(['.', '-', '+']).map_while(|number| number.parse().ok()).take(3).collect();
    !numbers.is_empty() && numbers[..] < DEAD_LETTERING_REPAIRED[..]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_before_4_3_3_are_warned_about() {
        for version in ["3.10.8", "3.13.7", "4.0.5", "4.2.9", "4.3", "4.3.2", "4.3.2+1.gabcdef"] {
            assert!(dead_lettering_can_stop(version), "{version}");
        }
        for version in ["4.3.3", "4.3.6", "4.3.10", "4.4.0", "4.4.0-rc.1", "10.0.0", "", "unknown"] {
            assert!(!dead_lettering_can_stop(version), "{version}");
        }
    }
}
