//! An organization's document from a file, and the samples as its clients would get them.

use std::fs;
use std::path::Path;

use bson::{Bson, Document, RawDocumentBuf};
use offramp::jsonl::parse_document;
use offramp::store::Collection;
use offramp::store::documents::{OrganizationDocument, kind, read};
use offramp_domain::contact::Mailbox;
use offramp_domain::facts::OrganizationFacts;
use offramp_domain::field::Malformed;
use offramp_domain::ids::{AccountId, CardId, SubscriptionId};
use offramp_domain::notification::{Notification, Recipient};
use offramp_domain::organization::Organization;
use offramp_domain::unit_of_work::LoadedDocument;
use offramp_mail::brand_color;

use super::problem::Problem;

/// The largest file. Documents of MongoDB are not larger.
const BYTES_MAX: u64 = 16 * 1024 * 1024;

/// The ids in the links of samples.
const ACCOUNT: &str = "acc-0042";
const SUBSCRIPTION: &str = "sub-0042";
const CARD: &str = "card-0042";

/// An organization whose emails are shown.
#[derive(Debug)]
pub struct ShownOrganization {
    organization: Organization,
    facts: OrganizationFacts,
    contact: Mailbox,
}

/// Reads the file. Returns the organization, unless a field that every email needs cannot be read, and a problem for each
/// field that cannot be read or that emails leave out.
pub fn load(path: &Path) -> (Option<ShownOrganization>, Vec<Problem>) {
    let problem = |message: String| Problem { file: path.display().to_string(), line: None, message };
    let document = match read_document(path) {
        Ok(document) => document,
        Err(error) => return (None, vec![problem(error)]),
    };
    // The file is named already.
    let prefix = format!("{} {}: ", Collection::Organizations.as_str(), document.get_str("_id").unwrap_or_default());
    let mut messages = Vec::new();
    let organization = match parse(&document) {
        Ok(organization) => {
            messages.extend(organization.faults().into_iter().map(|Malformed(fault)| fault.clone()));
            messages.extend(left_out(&document, &organization));
            shown(organization)
        }
        Err(error) => {
            messages.push(error);
            None
        }
    };
    (
        organization,
        messages.iter().map(|message| problem(message.strip_prefix(&prefix).unwrap_or(message).to_owned())).collect(),
    )
}

fn read_document(path: &Path) -> Result<Document, String> {
    let about = fs::metadata(path).map_err(|error| format!("cannot be read: {error}"))?;
    if about.len() > BYTES_MAX {
        return Err(format!("it is larger than {} MB", BYTES_MAX / (1024 * 1024)));
    }
    let bytes = fs::read(path).map_err(|error| format!("cannot be read: {error}"))?;
    let mut document = parse_document(&bytes)?;
    if !document.contains_key("_id") {
        document.insert("_id", "preview");
    }
    Ok(document)
}

fn parse(document: &Document) -> Result<Organization, String> {
    let raw = RawDocumentBuf::try_from(document).map_err(|error| error.to_string())?;
    match read::<OrganizationDocument, _>(Collection::Organizations.as_str(), &raw) {
        LoadedDocument::Read(organization) => Ok(organization),
        LoadedDocument::Corrupt { error, .. } => Err(error),
    }
}

fn shown(organization: Organization) -> Option<ShownOrganization> {
    let facts = OrganizationFacts::new(&organization).ok()?;
    let contact = organization.contact.clone().ok()?;
    Some(ShownOrganization { organization, facts, contact })
}

/// What the document has, and its emails do not.
fn left_out(document: &Document, organization: &Organization) -> Vec<String> {
    let mut messages = Vec::new();
    let facts = OrganizationFacts::new(organization).ok();
    let (account, subscription, card) = (sample_id(ACCOUNT), sample_id(SUBSCRIPTION), sample_id(CARD));
    let links = &organization.links;
    let web = "an http or https URL";
    let fields: [(&str, bool, &str); 9] = [
        ("brand.logo_url", facts.as_ref().is_some_and(|facts| facts.logo_url.is_some()), web),
        ("contact.website", facts.as_ref().is_some_and(|facts| facts.website.is_some()), web),
        ("contact.phone", organization.phone.is_some(), "text"),
        ("contact.address", organization.address.is_some(), "text"),
        (
            "admin_url",
            subscription.as_ref().is_some_and(|id| links.admin_url(id).is_some()),
            "an http or https URL whose only placeholder is {subscription_id}, after the host",
        ),
        (
            "admin_account_url",
            account.as_ref().is_some_and(|id| links.admin_account_url(id).is_some()),
            "an http or https URL whose only placeholder is {account_id}, after the host",
        ),
        (
            "account_url",
            account.as_ref().is_some_and(|id| links.account_url(id, subscription.as_ref()).is_some()),
            "an http or https URL whose only placeholders are {account_id} and {subscription_id}, after the host",
        ),
        (
            "payment_method_url",
            account.as_ref().is_some_and(|id| links.payment_method_url(id, card.as_ref()).is_some()),
            "an http or https URL whose only placeholders are {account_id} and {card_id}, after the host",
        ),
        (
            "brand.color",
            organization.brand.color.as_deref().and_then(brand_color).is_some(),
            "a colour of CSS, such as #0a7d4f",
        ),
    ];
    for (field, is_used, expected) in fields {
        let value = field.split('.').try_fold(None, |found: Option<&Bson>, name| {
            let document = match found {
                None => document,
                Some(value) => value.as_document()?,
            };
            document.get(name).map(Some)
        });
        match value.flatten() {
            None | Some(Bson::Null) => {}
            Some(_) if is_used => {}
            Some(Bson::String(text)) if text.trim().is_empty() => {}
            Some(Bson::String(_)) => {
                messages.push(format!("{field}: expected {expected}; the emails leave it out"));
            }
            Some(other) => {
                messages.push(format!("{field}: expected {expected}, found {}; the emails leave it out", kind(other)));
            }
        }
    }
    messages
}

fn sample_id<T: for<'a> TryFrom<&'a str>>(id: &str) -> Option<T> {
    T::try_from(id).ok()
}

impl ShownOrganization {
    pub fn name(&self) -> &str {
        &self.facts.name
    }

    pub fn locale(&self) -> &str {
        &self.organization.locale
    }

    /// The sample as an email of this organization: with its name, look and contact, and with its own links in place of the
    /// sample's.
    pub fn replace_in(&self, notification: &mut Notification) {
        let facts = &mut notification.facts;
        facts.organization = self.facts.clone();
        let (account, subscription, card): (Option<AccountId>, Option<SubscriptionId>, Option<CardId>) =
            (sample_id(ACCOUNT), sample_id(SUBSCRIPTION), sample_id(CARD));
        let links = &self.organization.links;
        let admin_url = subscription.as_ref().and_then(|id| links.admin_url(id));
        let admin_account_url = account.as_ref().and_then(|id| links.admin_account_url(id));
        // Only emails about a subscription link to it.
        let about = subscription.as_ref().filter(|_| facts.plan.is_some());
        let account_url = account.as_ref().and_then(|id| links.account_url(id, about));
        let card_url = account.as_ref().and_then(|id| links.payment_method_url(id, card.as_ref()));
        let own = [
            (&mut facts.payment_method_url, card_url.or_else(|| account_url.clone())),
            (&mut facts.account_url, account_url),
            (&mut facts.admin_account_url, admin_account_url),
            (&mut facts.admin_url, admin_url.clone()),
        ];
        let in_list = facts.requests.iter_mut().map(|request| (&mut request.admin_url, admin_url.clone()));
        for (link, own) in own.into_iter().chain(in_list).filter(|(link, _)| link.is_some()) {
            *link = own;
        }
        match notification.recipient {
            Recipient::OrganizationContact => notification.to = self.contact.clone(),
            Recipient::AccountManager => {
                if notification.reply_to.is_some() {
                    notification.reply_to = Some(self.contact.clone());
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use offramp_domain::notification::Template;
    use offramp_mail::samples::samples;
    use serde_json::{Value, json};

    use super::*;

    fn document(changes: &Value) -> Value {
        let mut document = json!({
            "_id": "magog", "name": "Centre sportif", "locale": "fr-CA", "timezone": "America/Toronto",
            "contact": { "name": "Accueil", "email": "accueil@magog.example", "phone": "819 555-0142" },
            "client_cancellation": "request", "brand": { "color": "#b3261e" },
            "admin_url": "https://admin.magog.example/{subscription_id}",
            "account_url": "https://moi.magog.example/{account_id}",
        });
        for (key, value) in changes.as_object().unwrap() {
            document[key] = value.clone();
        }
        document
    }

    fn load_text(text: &str) -> (Option<ShownOrganization>, Vec<String>) {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), text).unwrap();
        let (organization, problems) = load(file.path());
        (organization, problems.into_iter().map(|problem| problem.message).collect())
    }

    #[test]
    fn each_field_has_its_own_problem() {
        #[track_caller]
        fn check(changes: &Value, is_shown: bool, expected: &[&str]) {
            let (organization, problems) = load_text(&document(changes).to_string());
            assert_eq!(organization.is_some(), is_shown, "{problems:?}");
            assert_eq!(problems.len(), expected.len(), "{problems:#?}");
            for (problem, expected) in problems.iter().zip(expected) {
                assert!(problem.starts_with(expected), "{problem}");
            }
        }
        check(&json!({}), true, &[]);
        check(&json!({ "other_system": { "x": [1] }, "brand": null, "admin_url": "" }), true, &[]);
        check(&json!({ "name": 3 }), false, &["name: expected text, found an integer"]);
        check(&json!({ "contact": { "name": "Accueil" } }), false, &["contact.email: missing"]);
        check(&json!({ "timezone": "Magog" }), true, &["timezone: `Magog` is not an IANA time zone"]);
        check(
            &json!({ "brand": { "color": "rouge", "logo_url": "logo.png" } }),
            true,
            &["brand.logo_url: expected an http", "brand.color: expected a colour of CSS, such as"],
        );
        check(
            &json!({ "admin_url": "https://{subscription_id}.example/", "account_url": 3 }),
            true,
            &[
                "admin_url: expected an http or https URL whose only placeholder is {subscription_id}",
                "account_url: expected an http or https URL whose only placeholders are {account_id} and \
                 {subscription_id}, after the host, found an integer",
            ],
        );
        check(&json!({ "payment_method_url": "javascript:alert(1)" }), true, &["payment_method_url: expected"]);
    }

    #[test]
    fn a_file_that_is_not_one_document_is_a_problem() {
        for (text, expected) in [
            ("", "EOF while parsing"),
            ("{\"name\": \"a\",}", "trailing comma at line 1"),
            ("[]", "invalid type"),
            ("{\"name\": \"a\", \"name\": \"b\"}", "the key `name` is given twice"),
            ("{} {}", "trailing characters"),
        ] {
            let (organization, problems) = load_text(text);
            assert!(
                organization.is_none() && problems.iter().any(|problem| problem.contains(expected)),
                "{problems:?}"
            );
        }
        assert!(load_text(&format!("\u{feff}{}", document(&json!({})))).0.is_some(), "a byte order mark is allowed");
    }

    #[test]
    fn samples_show_the_organization_and_its_links() {
        let (organization, _) = load_text(&document(&json!({ "_id": null })).to_string());
        assert!(organization.is_none(), "an id that is no text");
        let mut without_id = document(&json!({}));
        without_id.as_object_mut().unwrap().remove("_id");
        let organization = load_text(&without_id.to_string()).0.unwrap();

        let of = |recipient| {
            let mut notification = samples(Template::CancellationRequested, recipient, "fr-CA").remove(0).notification;
            notification.facts.account_url = Some("https://sample.example".to_owned());
            notification.facts.payment_method_url = Some("https://sample.example".to_owned());
            notification.facts.admin_account_url = Some("https://sample.example".to_owned());
            organization.replace_in(&mut notification);
            notification
        };
        let to_organization = of(Recipient::OrganizationContact);
        assert_eq!(to_organization.to.email, "accueil@magog.example");
        let facts = to_organization.facts;
        assert_eq!(facts.organization.name, "Centre sportif");
        assert_eq!(facts.admin_url.as_deref(), Some("https://admin.magog.example/sub-0042"));
        assert_eq!(facts.admin_account_url, None, "the organization has none");
        let to_client = of(Recipient::AccountManager);
        assert_ne!(to_client.to.email, "accueil@magog.example");
        assert_eq!(to_client.reply_to.unwrap().email, "accueil@magog.example");
        let account = Some("https://moi.magog.example/acc-0042");
        let links = (to_client.facts.account_url, to_client.facts.payment_method_url);
        assert_eq!((links.0.as_deref(), links.1.as_deref()), (account, account));
    }
}
