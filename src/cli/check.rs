//! `offramp check`: verifies settings, templates and connections without changing anything.

use std::io::{IsTerminal, Write, stdout};

use anyhow::bail;
use clap::Args;
use offramp::advice;
use offramp::amqp::{Broker, Topology, TopologyError};
use offramp::config::{BrokerSettings, DatabaseSettings, DkimSettings, MailSettings, SenderSettings, Settings};
use offramp::store::Store;
use offramp::tls::Tls;
use offramp_mail::{Deadlines, Templates, Transport};
use serde::Serialize;

use super::error::WrongConfiguration;
use super::terminal::printable;

/// Check the settings, the templates and the connections to all servers
#[derive(Args, Debug)]
#[command(after_help = "\
Nothing is changed and no email is sent. Exit code 2: settings or templates are wrong. Exit code 1: a server is not as it should be.")]
pub struct Arguments {
    /// Print JSON, one object per check
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    settings: Settings,
}

/// The first version of RabbitMQ in which at-least-once dead-lettering does not stop (rabbitmq-server issue 16652).
const DEAD_LETTERING_REPAIRED: [u32; 3] = [4, 3, 3];
const DEAD_LETTERING_WARNING: &str = "\
warning: in a cluster, RabbitMQ before 4.3.3 can stop dead-lettering permanently after nodes were replaced. Commands then never \
leave the retry queues. Upgrade to 4.3.3 or newer. A single node is not affected";

/// The result of one check.
#[derive(Debug, Serialize)]
struct Finding {
    check: &'static str,
    ok: bool,
    /// What was found, or what is wrong: one sentence per line.
    detail: String,
    #[serde(skip)]
    is_configuration: bool,
}

pub async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let Settings { broker, database, mail, tls, sender, dkim, .. } = arguments.settings;
    let tls = tls.tls();
    // Parsed settings are valid: clap has reported missing and invalid ones.
    let settings = Finding {
        check: "settings",
        ok: true,
        detail: format!(
            "prefix {}, database {}, emails from {}",
            broker.prefix,
            database.mongodb_url.database(),
            sender.mail_from.email()
        ),
        is_configuration: true,
    };
    let templates = templates(&sender);
    let signatures = signatures(&dkim, &sender);
    let (broker, database, mail) =
        tokio::join!(rabbitmq(broker, &tls), mongodb(database, &tls), mail_server(mail, &sender, &tls));
    let findings: Vec<Finding> =
        [settings, templates].into_iter().chain(signatures).chain([broker, database, mail]).collect();

    print(&findings, arguments.json)?;
    let failed: Vec<&Finding> = findings.iter().filter(|finding| !finding.ok).collect();
    if failed.is_empty() {
        return Ok(());
    }
    let names: Vec<&str> = failed.iter().map(|finding| finding.check).collect();
    let sentence = format!("not as it should be: {}", names.join(", "));
    if failed.iter().any(|finding| finding.is_configuration) {
        return Err(WrongConfiguration(sentence).into());
    }
    bail!(sentence)
}

fn print(findings: &[Finding], json: bool) -> anyhow::Result<()> {
    let mut out = stdout().lock();
    let colored = stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    for finding in findings {
        if json {
            writeln!(out, "{}", serde_json::to_string(finding)?)?;
            continue;
        }
        let mark = match (finding.ok, colored) {
            (true, true) => "\x1b[32m✓\x1b[0m",
            (false, true) => "\x1b[31m✗\x1b[0m",
            (true, false) => "✓",
            (false, false) => "✗",
        };
        let detail = printable(&finding.detail).replace('\n', "\n              ");
        writeln!(out, "{mark} {:<11} {detail}", finding.check)?;
    }
    Ok(())
}

fn connection(check: &'static str, result: Result<String, String>) -> Finding {
    let ok = result.is_ok();
    Finding { check, ok, detail: result.unwrap_or_else(|error| error), is_configuration: false }
}

fn templates(sender: &SenderSettings) -> Finding {
    let from = match &sender.templates {
        Some(path) => format!("built in and from {}", path.display()),
        None => "built in".to_owned(),
    };
    let (ok, detail) = match Templates::load(sender.templates.as_deref()) {
        Ok(templates) => {
            let languages = format!("{from}, in {}", templates.locales().collect::<Vec<_>>().join(", "));
            let warnings = templates.warnings().iter().map(|warning| format!("warning: {warning}"));
            (true, [languages].into_iter().chain(warnings).collect::<Vec<_>>().join("\n"))
        }
        Err(problems) => (false, problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")),
    };
    Finding { check: "templates", ok, detail, is_configuration: true }
}

/// The DNS record that receivers of signed emails need. It is not looked up: this machine may see other records than they do.
fn signatures(settings: &DkimSettings, sender: &SenderSettings) -> Option<Finding> {
    let result = match settings.signer(&sender.mail_from) {
        Ok(None) => return None,
        Ok(Some(signer)) => {
            let mut lines = vec![
                format!("emails are signed for {}; receivers look up this TXT record", signer.domain()),
                format!("{}  {}", signer.dns_name(), signer.dns_record()),
            ];
            if !is_aligned(sender.mail_from.domain(), signer.domain()) {
                lines.push(format!(
                    "DMARC asks for a signature of {}, the domain of OFFRAMP_MAIL_FROM",
                    sender.mail_from.domain()
                ));
            }
            Ok(lines.join("\n"))
        }
        Err(error) => Err(error),
    };
    Some(Finding { is_configuration: true, ..connection("DKIM", result) })
}

/// Whether one domain is the other, or a subdomain of it.
fn is_aligned(from: &str, signing: &str) -> bool {
    let is_in =
        |inner: &str, outer: &str| inner.strip_suffix(outer).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'));
    let (from, signing) = (from.to_ascii_lowercase(), signing.to_ascii_lowercase());
    is_in(&from, &signing) || is_in(&signing, &from)
}

async fn rabbitmq(settings: BrokerSettings, tls: &Tls) -> Finding {
    let url = settings.amqp_url.to_string();
    let broker = Broker::with_tls(settings.amqp_url, "offramp check", tls.clone());
    let found = Topology::new(settings.prefix).inspect(&broker).await;
    connection(
        "RabbitMQ",
        match found {
            Ok(found) => {
                let server = format!("{url}, version {}", found.broker_version);
                let mut lines = if found.missing.is_empty() {
                    vec![format!("{server}, {} objects as they should be", found.existing.len())]
                } else if found.existing.is_empty() && found.unchecked.is_empty() {
                    vec![format!("{server}, with no objects yet: `offramp init` or `offramp run` creates them")]
                } else {
                    let missing = found.missing.join(", ");
                    vec![server, format!("missing: {missing} (`offramp init` or `offramp run` creates them)")]
                };
                if !found.unchecked.is_empty() {
                    lines.push(format!("this user may not check {}", found.unchecked.join(", ")));
                }
                lines.extend(dead_lettering_can_stop(&found.broker_version).then(|| DEAD_LETTERING_WARNING.to_owned()));
                Ok(lines.join("\n"))
            }
            Err(TopologyError::Broker(error)) => Err(advice::append(&error, advice::tls(&error.to_string()))),
            Err(error) => Err(format!("{url}\n{}", advice::append(&error, advice::topology_error(&error)))),
        },
    )
}

/// Whether this version of RabbitMQ is older than [`DEAD_LETTERING_REPAIRED`]. False if it cannot be parsed.
fn dead_lettering_can_stop(version: &str) -> bool {
    let numbers: Vec<u32> = version.split(['.', '-', '+']).map_while(|number| number.parse().ok()).take(3).collect();
    !numbers.is_empty() && numbers[..] < DEAD_LETTERING_REPAIRED[..]
}

async fn mongodb(settings: DatabaseSettings, tls: &Tls) -> Finding {
    let url = settings.mongodb_url;
    let looking = async {
        let store = Store::open(url.connection_string(), tls).await?;
        let facts = store.server_facts().await?;
        Ok::<_, offramp::store::StoreError>((facts, store.missing_indexes().await?))
    };
    connection(
        "MongoDB",
        match looking.await {
            Ok((facts, missing)) => {
                let kind = match (&facts.replica_set, facts.is_router) {
                    (Some(name), _) => format!("replica set {name}"),
                    (None, true) => "sharded cluster".to_owned(),
                    (None, false) => "a standalone server: what is confirmed is on one machine only".to_owned(),
                };
                let mut lines = vec![format!("{url}, version {}, {kind}", facts.version)];
                if !missing.is_empty() {
                    lines.push(format!(
                        "indexes missing: {} (`offramp init` or `offramp run` creates them)",
                        missing.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
                    ));
                }
                Ok(lines.join("\n"))
            }
            Err(error) => Err(format!("{url}: {}", advice::append(&error, advice::tls(&error.to_string())))),
        },
    )
}

async fn mail_server(settings: MailSettings, sender: &SenderSettings, tls: &Tls) -> Finding {
    let name = settings.name(&sender.mail_from);
    let url = settings.smtp_url.clone();
    let checking = async {
        let unusable = |error| advice::append(&error, advice::mail_config_error(&error));
        let url = settings.url().map_err(unusable)?;
        let tls = tls.client_config().map_err(|error| error.to_string())?;
        let transport = Transport::new(&url, name, tls, Deadlines::interactive()).map_err(unusable)?;
        transport.check().await.map_err(|error| advice::append(&error, advice::send_error(&error)))
    };
    connection("mail", checking.await.map(|()| url.to_string()).map_err(|error| format!("{url}: {error}")))
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
