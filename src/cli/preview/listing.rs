//! The list of all emails, the commonest first.

use std::collections::{BTreeMap, BTreeSet};

use offramp_domain::notification::{Recipient, Template};
use offramp_mail::EmailKind;
use offramp_mail::samples::samples;
use serde::Serialize;

use super::gallery::{Gallery, Shown};
use super::look::{ListedLook, Look};
use super::organization_file::ShownOrganization;
use super::problem::Problem;

/// All emails, and the errors in the files.
#[derive(Serialize)]
pub struct List<'a> {
    /// The directory whose files replace built-in templates.
    directory: Option<String>,
    /// The file of the organization that is shown.
    organization_file: Option<String>,
    /// The name of that organization. `None`: the samples' own.
    organization: Option<&'a str>,
    /// The mail server of samples.
    smtp_url: String,
    /// The locales of readers.
    locales: Vec<&'a str>,
    /// The locale that is shown first, if the organization has one.
    locale: Option<String>,
    looks: Vec<ListedLook>,
    emails: Vec<ListedEmail>,
    /// By locale: the emails that are not written in a language.
    missing: BTreeMap<&'a str, BTreeSet<String>>,
    /// By locale: the emails that are shown as they were before a mistake.
    outdated: BTreeMap<&'a str, BTreeSet<String>>,
    problems: &'a [Problem],
    /// What is allowed, but probably not meant.
    warnings: &'a [Problem],
}

#[derive(Serialize)]
struct ListedEmail {
    name: String,
    template: String,
    recipient: &'static str,
    variants: Vec<ListedVariant>,
}

#[derive(Serialize)]
struct ListedVariant {
    name: &'static str,
    words: String,
}

impl<'a> List<'a> {
    pub fn new(gallery: &Gallery, shown: &'a Shown, smtp_url: String) -> Self {
        let organization = shown.organization.as_deref();
        Self {
            directory: gallery.directory().map(|path| path.display().to_string()),
            organization_file: gallery.organization_file().map(|path| path.display().to_string()),
            organization: organization.map(ShownOrganization::name),
            smtp_url,
            locales: shown.emails.locales().collect(),
            locale: organization.map(|organization| shown.emails.closest(organization.locale())),
            looks: Look::list().collect(),
            emails: emails(),
            missing: shown.emails.missing(),
            outdated: shown.emails.outdated(),
            problems: &shown.problems,
            warnings: &shown.warnings,
        }
    }
}

fn emails() -> Vec<ListedEmail> {
    let mut kinds: Vec<EmailKind> = EmailKind::all().collect();
    kinds.sort_by_key(|kind| place(kind.template));
    let variants = |kind: EmailKind| {
        let samples = samples(kind.template, kind.recipient, "").into_iter();
        samples
            .map(|sample| ListedVariant { name: sample.variant, words: variant_words(kind.template, sample.variant) })
            .collect()
    };
    kinds
        .into_iter()
        .map(|kind| ListedEmail {
            name: kind.to_string(),
            template: words(kind.template.as_str()),
            recipient: match kind.recipient {
                Recipient::OrganizationContact => "to the organization",
                Recipient::AccountManager => "to the account manager",
            },
            variants: variants(kind),
        })
        .collect()
}

/// The place in the list: emails that are sent often come first.
fn place(template: Template) -> usize {
    match template {
        Template::PaymentFailed => 0,
        Template::CardExpiring => 1,
        Template::CancellationRequested => 2,
        Template::RequestAccepted => 3,
        Template::RequestDeclined => 4,
        Template::CancelledByAdmin => 5,
        Template::CancelledByClient => 6,
        Template::RequestsPending => 7,
        Template::RemovedByAdmin => 8,
    }
}

/// What a variant shows. Those without an entry here are shown by their name: `no-further-attempt` as "No further attempt".
fn variant_words(template: Template, variant: &str) -> String {
    let known = match (variant, template) {
        ("full", Template::PaymentFailed) => "Another attempt",
        ("full", Template::CardExpiring) => "Expires soon",
        ("full", _) => "Usual",
        ("early", _) => "Early notice",
        ("declined", _) => "Declined, reason unknown",
        ("scheduled", _) => "Cancellation scheduled",
        ("ended", _) => "Already ended",
        ("superseded", _) => "Closes an open request",
        ("incorrect-details", _) => "Incorrect card details",
        ("no-actor", _) => "Nobody named",
        ("long", _) => "Long texts",
        ("minimal", _) => "Fewest details",
        _ => return words(variant),
    };
    known.to_owned()
}

/// A name in words.
fn words(name: &str) -> String {
    let mut words = name.replace('-', " ");
    if let Some(first) = words.get_mut(..1) {
        first.make_ascii_uppercase();
    }
    words
}
