//! The DNS of the sender's domain: the DKIM key, SPF and DMARC, as this machine sees them.
//!
//! What cannot be looked up is never a problem: many workers have no way to the internet's DNS.

use std::net::SocketAddr;
use std::time::Duration;

use hickory_resolver::TokioResolver;
use hickory_resolver::config::{ConnectionConfig, NameServerConfig, ResolverConfig};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::proto::rr::{RData, RecordType};
use offramp::config::{DkimSettings, SenderSettings};

use offramp_mail::DkimSigner;

use super::finding::Finding;

/// How long to wait for one answer, and how often to ask.
const ANSWER_DEADLINE: Duration = Duration::from_secs(3);
const ATTEMPTS_MAX: usize = 2;

/// Domains that no public DNS has (RFC 2606, RFC 6762, RFC 9476).
const RESERVED: [&str; 7] = ["example", "test", "invalid", "localhost", "local", "internal", "alt"];

/// Looks up what receivers of emails look up; `server` replaces the system's DNS. `None`: nobody can look up this domain.
pub async fn check(dkim: &DkimSettings, sender: &SenderSettings, server: Option<SocketAddr>) -> Option<Finding> {
    let domain = sender.mail_from.domain();
    let top = domain.rsplit('.').next().unwrap_or_default();
    let is_public = domain.contains('.') && !domain.starts_with('[') && !RESERVED.contains(&top);
    if !is_public && server.is_none() {
        return None;
    }
    let finding = Finding::new("DNS");
    let resolver = match resolver(server) {
        Ok(resolver) => resolver,
        Err(error) => return Some(finding.fact(format!("could not be looked up: {error}"))),
    };
    let signer = dkim.signer(&sender.mail_from).ok().flatten();
    let of_key = async {
        match &signer {
            Some(signer) => Some((signer.dns_name(), signer.dns_record(), lookup(&resolver, &signer.dns_name()).await)),
            None => None,
        }
    };
    let (key, spf, dmarc) = tokio::join!(of_key, lookup(&resolver, domain), find_dmarc(&resolver, domain));
    let finding = match key {
        Some((name, record, found)) => of_dkim(finding, &name, &record, found),
        None => finding,
    };
    let finding = of_spf(finding, domain, spf);
    let (name, found) = dmarc;
    Some(of_dmarc(finding, &name, domain, signer.as_ref().map(DkimSigner::domain), found))
}

/// The TXT records of a name; an error where no DNS answered.
type Found = Result<Vec<String>, String>;

fn resolver(server: Option<SocketAddr>) -> Result<TokioResolver, String> {
    let mut builder = match server {
        None => TokioResolver::builder_tokio().map_err(|error| error.to_string())?,
        Some(address) => {
            let at_port = |mut connection: ConnectionConfig| {
                connection.port = address.port();
                connection
            };
            let mut name_server = NameServerConfig::udp_and_tcp(address.ip());
            name_server.connections = vec![at_port(ConnectionConfig::udp()), at_port(ConnectionConfig::tcp())];
            let mut config = ResolverConfig::default();
            config.name_servers = vec![name_server];
            TokioResolver::builder_with_config(config, TokioRuntimeProvider::default())
        }
    };
    let options = builder.options_mut();
    options.timeout = ANSWER_DEADLINE;
    options.attempts = ATTEMPTS_MAX;
    builder.build().map_err(|error| error.to_string())
}

async fn lookup(resolver: &TokioResolver, name: &str) -> Found {
    // A dot at the end: the system's search domains do not apply.
    match resolver.lookup(format!("{name}."), RecordType::TXT).await {
        Ok(found) => {
            let text = |data: &RData| match data {
                // A long record is several strings, to be read as one.
                RData::TXT(txt) => {
                    Some(txt.txt_data.iter().map(|part| String::from_utf8_lossy(part)).collect::<String>())
                }
                _ => None,
            };
            Ok(found.answers().iter().filter_map(|record| text(&record.data)).collect())
        }
        Err(error) if error.is_no_records_found() => Ok(Vec::new()),
        Err(error) => Err(error.to_string()),
    }
}

/// The DMARC record of a domain, or of the nearest domain above it that has one; with the name where it was found.
async fn find_dmarc(resolver: &TokioResolver, domain: &str) -> (String, Found) {
    let mut rest = domain;
    loop {
        let name = format!("_dmarc.{rest}");
        let found = lookup(resolver, &name).await;
        let above = rest.split_once('.').map(|(_, above)| above).filter(|above| above.contains('.'));
        match (found, above) {
            (Ok(records), Some(above)) if !records.iter().any(|record| is_dmarc(record)) => rest = above,
            (found, _) => return (name, found),
        }
    }
}

fn is_dmarc(record: &str) -> bool {
    record.trim_start().starts_with("v=DMARC1")
}

fn of_dkim(finding: Finding, name: &str, expected: &str, found: Found) -> Finding {
    let records = match found {
        Ok(records) => records,
        Err(error) => return finding.fact(format!("the DKIM record {name} could not be looked up: {error}")),
    };
    let key = |record: &str| tag(record, "p").map(|key| key.split_whitespace().collect::<String>());
    if records.iter().any(|record| key(record) == key(expected) && key(record).is_some()) {
        finding.fact(format!("the DKIM record {name} has our key"))
    } else if records.is_empty() {
        finding.problem(format!("there is no DKIM record {name}: receivers cannot verify our signatures"))
    } else {
        finding.problem(format!("the DKIM record {name} has another key than OFFRAMP_DKIM_KEY: signatures fail"))
    }
}

fn of_spf(finding: Finding, domain: &str, found: Found) -> Finding {
    let records = match found {
        Ok(records) => records,
        Err(error) => return finding.fact(format!("the SPF record of {domain} could not be looked up: {error}")),
    };
    let terms = |record: &String| record.to_ascii_lowercase().split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    let is_spf = |record: &&String| terms(record).first().is_some_and(|version| version == "v=spf1");
    // Without a sign, a mechanism has a plus.
    let is_open = |record: &String| terms(record).iter().any(|term| term == "all" || term == "+all");
    let spf: Vec<&String> = records.iter().filter(is_spf).collect();
    match spf.as_slice() {
        [] => finding.warning(format!("{domain} has no SPF record: it says which servers may send its emails")),
        [record] if is_open(record) => finding.warning(format!("{domain} lets every server send its emails: {record}")),
        [record] => finding.fact(format!("SPF of {domain}: {record} (the mail server's address must be in it)")),
        _ => finding.warning(format!("{domain} has {} SPF records: receivers accept one only", spf.len())),
    }
}

fn of_dmarc(finding: Finding, name: &str, domain: &str, signing: Option<&str>, found: Found) -> Finding {
    let records = match found {
        Ok(records) => records,
        Err(error) => return finding.fact(format!("the DMARC record {name} could not be looked up: {error}")),
    };
    let Some(record) = records.iter().find(|record| is_dmarc(record)) else {
        let sentence = format!(
            "{domain} has no DMARC record; large providers require one, at least _dmarc.{domain}  v=DMARC1; p=none"
        );
        return finding.warning(sentence);
    };
    let is_inherited = name != format!("_dmarc.{domain}");
    let policy = tag(record, "sp").filter(|_| is_inherited).or_else(|| tag(record, "p")).unwrap_or_default();
    let finding = finding.fact(format!("DMARC of {domain}: policy {policy} ({name})"));
    let is_strict = tag(record, "adkim").is_some_and(|mode| mode.eq_ignore_ascii_case("s"));
    let enforced = matches!(policy.as_str(), "quarantine" | "reject");
    match signing {
        Some(signing) if is_strict && !signing.eq_ignore_ascii_case(domain) => finding.warning(format!(
            "DMARC accepts only signatures of exactly {domain} (adkim=s); emails are signed for {signing}"
        )),
        None if enforced => finding.warning(format!(
            "emails are not signed by this worker, and DMARC says {policy}: the mail server must sign them, or its address be in SPF"
        )),
        _ => finding,
    }
}

/// A tag's value in `v=DKIM1; k=rsa; p=…`.
fn tag(record: &str, name: &str) -> Option<String> {
    record.split(';').find_map(|part| {
        let (key, value) = part.split_once('=')?;
        (key.trim() == name).then(|| value.trim().to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::super::finding::State;
    use super::*;

    #[allow(clippy::unnecessary_wraps, reason = "what a lookup returns")]
    fn found(records: &[&str]) -> Found {
        Ok(records.iter().map(|record| (*record).to_owned()).collect())
    }

    #[test]
    fn the_published_key_must_be_ours() {
        let state =
            |found| of_dkim(Finding::new("DNS"), "s1._domainkey.a.org", "v=DKIM1; k=ed25519; p=abc=", found).state();
        assert_eq!(state(found(&["v=DKIM1; k=ed25519; p=abc="])), State::Ok);
        assert_eq!(state(found(&["other", "k=ed25519;p=ab c="])), State::Ok);
        assert_eq!(state(found(&["v=DKIM1; k=ed25519; p=abd="])), State::Failed);
        assert_eq!(state(found(&["v=DKIM1; p="])), State::Failed);
        assert_eq!(state(found(&[])), State::Failed);
        assert_eq!(state(Err("timed out".to_owned())), State::Ok);
    }

    #[test]
    fn spf_and_dmarc_are_warnings_at_most() {
        let spf = |records: &[&str]| of_spf(Finding::new("DNS"), "a.org", found(records)).state();
        assert_eq!(spf(&["v=spf1 include:b.org -all", "other"]), State::Ok);
        assert_eq!(spf(&["v=spf1 +all"]), State::Warning);
        assert_eq!(spf(&["v=spf10 -all"]), State::Warning);
        assert_eq!(spf(&["v=spf1 a -all", "v=spf1 mx -all"]), State::Warning);
        let dmarc = |record: &str, signing: Option<&str>| {
            of_dmarc(Finding::new("DNS"), "_dmarc.a.org", "a.org", signing, found(&[record])).state()
        };
        assert_eq!(dmarc("v=DMARC1; p=none", None), State::Ok);
        assert_eq!(dmarc("v=DMARC1; p=reject", None), State::Warning);
        assert_eq!(dmarc("v=DMARC1; p=reject", Some("mail.a.org")), State::Ok);
        assert_eq!(dmarc("v=DMARC1; p=reject; adkim=s", Some("mail.a.org")), State::Warning);
        assert_eq!(dmarc("google-site-verification=x", Some("a.org")), State::Warning);
    }
}
