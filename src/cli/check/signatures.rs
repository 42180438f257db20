//! DKIM signatures: the DNS record that receivers of signed emails need.

use offramp::config::{DkimSettings, SenderSettings};

use super::finding::Finding;

/// The record is not looked up: this machine may see other records than receivers do.
pub fn check(settings: &DkimSettings, sender: &SenderSettings) -> Option<Finding> {
    let finding = Finding::of_configuration("DKIM");
    let signer = match settings.signer(&sender.mail_from) {
        Ok(signer) => signer?,
        Err(error) => return Some(finding.problem(error)),
    };
    let finding = finding
        .fact(format!("emails are signed for {}; receivers look up this TXT record", signer.domain()))
        .fact(format!("{}  {}", signer.dns_name(), signer.dns_record()));
    let domain = sender.mail_from.domain();
    Some(if is_aligned(domain, signer.domain()) {
        finding
    } else {
        finding.warning(format!("DMARC asks for a signature of {domain}, the domain of OFFRAMP_MAIL_FROM"))
    })
}

/// Whether one domain is the other, or a subdomain of it.
fn is_aligned(from: &str, signing: &str) -> bool {
    let is_in =
        |inner: &str, outer: &str| inner.strip_suffix(outer).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'));
    let (from, signing) = (from.to_ascii_lowercase(), signing.to_ascii_lowercase());
    is_in(&from, &signing) || is_in(&signing, &from)
}
