//! What is doubtful about documents that are about to be imported: most rules of the check, before they are in the database.

use std::collections::HashMap;

use bson::{Document, RawDocumentBuf};
use chrono_tz::Tz;

use super::field_names::{FieldNames, keys};
use super::problem::Problem;
use super::references::existing_organizations;
use super::rules::{doubts_of_account, doubts_of_organization, doubts_of_subscription};
use crate::jsonl::{ImportLine, ParsedDocument};
use crate::store::{Collection, Store, StoreError};
use offramp_domain::unit_of_work::LoadedDocument;

/// Something about a document that works, and is probably not meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Doubt {
    /// `subscriptions sub-1`
    pub document: String,
    /// `billing.next_on`
    pub field: String,
    /// A sentence about the field.
    pub sentence: String,
}

/// Finds doubts about documents that are imported. What prevents a decision, and references to other documents, are not its matter; nor
/// are dates that have passed, which yesterday's file may have.
#[derive(Debug)]
pub struct ImportDoubts {
    names: FieldNames,
    /// The time zones of organizations, those of the file first.
    timezones: HashMap<String, Option<Tz>>,
}

impl Default for ImportDoubts {
    fn default() -> Self {
        Self { names: FieldNames::new(), timezones: HashMap::new() }
    }
}

impl ImportDoubts {
    /// Notes the time zone of an organization in the file. It counts, even if the database has another.
    pub fn add_organization(&mut self, id: &str, document: &Document) {
        let timezone = document.get_str("timezone").ok().and_then(|name| name.parse().ok());
        self.timezones.insert(id.to_owned(), timezone);
    }

    /// The doubts about these documents, one list for each. The time zones of organizations that are not in the file are read from the
    /// database.
    ///
    /// # Errors
    /// When the server does not answer.
    pub async fn of(&mut self, store: &Store, documents: &[ImportLine]) -> Result<Vec<Vec<Doubt>>, StoreError> {
        let owners = documents
            .iter()
            .filter(|line| line.collection == Collection::Subscriptions && line.document.contains_key("ends_at"))
            .filter_map(|line| line.document.get_str("organization_id").ok());
        let unknown = owners.filter(|id| !self.timezones.contains_key(*id));
        let found = existing_organizations(store, unknown).await?;
        self.timezones.extend(found);
        Ok(documents.iter().map(|line| self.of_document(line)).collect())
    }

    fn of_document(&self, line: &ImportLine) -> Vec<Doubt> {
        // A document that is no BSON is a fault.
        let Ok(raw) = RawDocumentBuf::try_from(&line.document) else { return Vec::new() };
        let mut problems = match line.parsed() {
            ParsedDocument::Organization(LoadedDocument::Read(organization)) => doubts_of_organization(&organization),
            ParsedDocument::Account(LoadedDocument::Read(account)) => doubts_of_account(&raw, &account),
            ParsedDocument::Subscription(LoadedDocument::Read(subscription)) => {
                let timezone = self.timezones.get(subscription.organization_id.as_str()).copied().flatten();
                doubts_of_subscription(&subscription, timezone)
            }
            _ => Vec::new(),
        };
        problems.extend(self.names.misspelt(line.collection, &keys(&raw), &raw));
        let document = format!("{} {}", line.collection.as_str(), line.id());
        let doubt = |Problem { field, sentence, .. }| Doubt { document: document.clone(), field, sentence };
        problems.into_iter().map(doubt).collect()
    }
}

#[cfg(test)]
mod tests {
    use bson::doc;

    use super::*;

    #[track_caller]
    fn check(collection: Collection, document: Document, expected: &[&str]) {
        let mut doubts = ImportDoubts::default();
        doubts.add_organization("org", &doc! { "timezone": "America/Toronto" });
        let found = doubts.of_document(&ImportLine { collection, document });
        let found: Vec<String> = found.iter().map(|doubt| format!("{}: {}", doubt.field, doubt.sentence)).collect();
        assert_eq!(found.len(), expected.len(), "{found:?}");
        for (found, expected) in found.iter().zip(expected) {
            assert!(found.starts_with(expected), "{found}");
        }
    }

    fn subscription(change: Document) -> Document {
        let mut document = doc! {
            "_id": "sub", "organization_id": "org", "account_id": "acc",
            "participant": { "id": "p", "name": "Zoé Roy" }, "plan": { "id": "plan", "name": "Unlimited" },
            "billing": { "mode": "anniversary", "day": 31, "next_on": "2026-06-30" },
            "activities": [],
        };
        document.extend(change);
        document
    }

    #[test]
    fn dates_that_contradict_each_other_are_doubtful() {
        use Collection::Subscriptions;
        // The 30th is the last day of June. The date is past, which is no doubt.
        check(Subscriptions, subscription(doc! {}), &[]);
        let billing = doc! { "mode": "anniversary", "day": 31, "next_on": "2026-06-29" };
        check(
            Subscriptions,
            subscription(doc! { "billing": billing.clone() }),
            &["billing.next_on: 2026-06-29 is no billing"],
        );
        check(Subscriptions, subscription(doc! { "billing": billing, "status": "cancelled" }), &[]);
        let end = |at: &str, owner: &str| {
            let ends_at = bson::DateTime::parse_rfc3339_str(at).unwrap();
            doc! {
                "status": "cancellation_scheduled", "ends_on": "2026-06-29", "ends_at": ends_at, "organization_id": owner,
                "cancellation": {
                    "by": "admin", "via": "purchases", "scheduled_at": ends_at, "actor": { "role": "admin", "id": "a" },
                },
            }
        };
        check(Subscriptions, subscription(end("2026-06-30T04:00:00Z", "org")), &[]);
        check(Subscriptions, subscription(end("2027-06-30T04:00:00Z", "org")), &["ends_at: it is 2027-06-30"]);
        // Without a time zone, nothing is known.
        check(Subscriptions, subscription(end("2027-06-30T04:00:00Z", "unknown")), &[]);
    }

    #[test]
    fn addresses_locales_and_names_of_fields_are_doubtful() {
        let account = |email: &str, locale: &str| {
            doc! { "_id": "acc", "organization_id": "org", "manager": { "name": "Ada", "email": email, "locale": locale } }
        };
        check(Collection::Accounts, account("ada@home.example", "en"), &[]);
        check(
            Collection::Accounts,
            account("nobody", "english!"),
            &["manager.email: it is no email address", "manager.locale: it is no language tag"],
        );
        let organization = doc! {
            "_id": "org", "name": "Club", "locale": "english!", "timezone": "America/Toronto",
            "contact": { "email": "nobody" }, "client_cancellation": "immediate",
        };
        check(
            Collection::Organizations,
            organization,
            &["contact.email: it is no email address", "locale: it is missing or no language tag"],
        );
        let misspelt = subscription(doc! { "expire_on": "2026-12-31", "crm_id": 7 });
        check(Collection::Subscriptions, misspelt, &["expire_on: no worker reads it; probably `expires_on` is meant"]);
    }
}
