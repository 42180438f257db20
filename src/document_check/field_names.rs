//! Fields whose names look like ones that a worker reads, and are not.

use bson::{RawBsonRef, RawDocument, RawDocumentBuf};
use schemars::JsonSchema;
use schemars::generate::SchemaSettings;
use serde_json::Value;

use super::problem::Problem;
use crate::store::Collection;
use crate::store::documents::{
    AccountDocument, BillingDocument, ContactDocument, ManagerDocument, OrganizationDocument, SubscriptionDocument,
};
use crate::store::pages::FIELD_NAMES;
use offramp_domain::contact::Brand;

/// How similar a name must be, from 0 to 1: one letter in five may differ.
const SIMILARITY_MIN: f64 = 0.8;

/// The names of all fields, from the types that documents are read as.
#[derive(Debug)]
pub(super) struct FieldNames {
    organization: Vec<String>,
    account: Vec<String>,
    subscription: Vec<String>,
    /// The names in objects: the collection, the object's field, the names.
    nested: Vec<(Collection, &'static str, Vec<String>)>,
}

impl FieldNames {
    pub(super) fn new() -> Self {
        Self {
            organization: names::<OrganizationDocument>(),
            account: names::<AccountDocument>(),
            subscription: names::<SubscriptionDocument>(),
            nested: vec![
                (Collection::Organizations, "contact", names::<ContactDocument>()),
                (Collection::Organizations, "brand", names::<Brand>()),
                (Collection::Accounts, "manager", names::<ManagerDocument>()),
                (Collection::Subscriptions, "billing", names::<BillingDocument>()),
            ],
        }
    }

    /// [`Self::misspelt`] for a page's document, which has the names of its fields in a list.
    pub(super) fn misspelt_in_page(&self, collection: Collection, raw: &RawDocumentBuf) -> Vec<Problem> {
        let listed = raw.get_array(FIELD_NAMES).into_iter().flatten().flatten();
        let present: Vec<&str> = listed.filter_map(RawBsonRef::as_str).collect();
        self.misspelt(collection, &present, raw)
    }

    /// Fields that are probably misspelt: they have nearly the name of a field that the document lacks. `present` are the names of all
    /// its fields.
    pub(super) fn misspelt(&self, collection: Collection, present: &[&str], raw: &RawDocument) -> Vec<Problem> {
        let known = match collection {
            Collection::Organizations => &self.organization,
            Collection::Accounts => &self.account,
            Collection::Subscriptions => &self.subscription,
        };
        let mut problems = misspelt(present, known, "");
        for (_, field, known) in self.nested.iter().filter(|(of, ..)| *of == collection) {
            let Ok(object) = raw.get_document(field) else { continue };
            problems.extend(misspelt(&keys(object), known, &format!("{field}.")));
        }
        problems
    }
}

pub(super) fn keys(object: &RawDocument) -> Vec<&str> {
    object.iter().filter_map(|element| element.ok().map(|(name, _)| name.as_str())).collect()
}

fn misspelt(present: &[&str], known: &[String], path: &str) -> Vec<Problem> {
    let unknown = present.iter().filter(|name| !known.iter().any(|known| known == *name));
    unknown
        .filter_map(|name| {
            let absent = known.iter().filter(|known| !present.contains(&known.as_str()));
            let nearest =
                absent.map(|known| (similarity(name, known), known)).max_by(|one, other| one.0.total_cmp(&other.0));
            let (_, meant) = nearest.filter(|(similarity, _)| *similarity >= SIMILARITY_MIN)?;
            let sentence = format!("no worker reads it; probably `{path}{meant}` is meant");
            Some(Problem::warning("misspelt_field", format!("{path}{name}"), sentence))
        })
        .collect()
}

/// How similar two names are, from 0 to 1. `expiresOn` and `expires_on` are the same.
fn similarity(one: &str, other: &str) -> f64 {
    let plain =
        |name: &str| name.chars().filter(|c| c.is_alphanumeric()).flat_map(char::to_lowercase).collect::<String>();
    let (one, other) = (plain(one), plain(other));
    if one == other { 1.0 } else { strsim::normalized_damerau_levenshtein(&one, &other) }
}

/// The names of a type's fields.
fn names<T: JsonSchema>() -> Vec<String> {
    let schema = SchemaSettings::draft2020_12().into_generator().into_root_schema_for::<T>();
    let properties = schema.get("properties").and_then(Value::as_object);
    properties.into_iter().flat_map(|properties| properties.keys().cloned()).collect()
}

#[cfg(test)]
mod tests {
    use bson::{doc, rawdoc};

    use super::*;

    #[test]
    fn near_names_of_absent_fields_are_reported() {
        let names = FieldNames::new();
        let check = |fields: &[&str], billing: bson::Document, expected: &[&str]| {
            let mut raw = rawdoc! { "billing": bson::RawDocumentBuf::try_from(&billing).unwrap() };
            raw.append(bson::raw::cstr!("offramp_fields"), fields.iter().copied().collect::<bson::RawArrayBuf>());
            let found: Vec<String> = names
                .misspelt_in_page(Collection::Subscriptions, &raw)
                .into_iter()
                .map(|problem| problem.field)
                .collect();
            assert_eq!(found, expected);
        };
        check(&["_id", "expire_on"], doc! {}, &["expire_on"]);
        check(&["_id", "expiresOn", "organizationId"], doc! {}, &["expiresOn", "organizationId"]);
        check(&["_id"], doc! { "nextOn": "2026-06-15" }, &["billing.nextOn"]);
        // Fields of others, and a field beside the one that is meant.
        check(
            &["_id", "crm_id", "price", "expires_on", "expire_on", "plan", "plans"],
            doc! { "day": 15, "days": 3 },
            &[],
        );
    }
}
