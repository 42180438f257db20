//! Emails and events that wait or failed: the outbox.

pub mod actions;
pub mod list;
pub mod one;

use offramp::store::Collection;
use offramp::store::outbox::admin::EntrySummary;

use super::html::encoded;

/// Names an entry in links and forms.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EntryPath {
    pub collection: Collection,
    pub document: String,
    pub entry: String,
}

impl EntryPath {
    /// `None` for an entry without an id of its own, which only a filter can select.
    pub fn of(entry: &EntrySummary) -> Option<Self> {
        let EntrySummary { collection, document_id, entry_id, .. } = entry;
        let path = Self { collection: *collection, document: document_id.clone(), entry: entry_id.clone() };
        (!entry_id.is_empty()).then_some(path)
    }

    /// The value of a form field.
    pub fn to_field(&self) -> String {
        serde_json::json!([self.collection.as_str(), self.document, self.entry]).to_string()
    }

    pub fn parse(field: &str) -> Option<Self> {
        let (collection, document, entry): (String, String, String) = serde_json::from_str(field).ok()?;
        let collection = Collection::ALL.into_iter().find(|known| known.as_str() == collection)?;
        Some(Self { collection, document, entry })
    }

    /// The page of the entry.
    pub fn page(&self) -> String {
        format!("/emails/one?entry={}", encoded(&self.to_field()))
    }

    pub fn is_of(&self, entry: &EntrySummary) -> bool {
        self.collection == entry.collection && self.document == entry.document_id && self.entry == entry.entry_id
    }
}

/// Whether an entry has this text in its address, error, type or document id.
pub fn matches(entry: &EntrySummary, wanted: &str) -> bool {
    let wanted = wanted.trim().to_lowercase();
    let has = |text: &str| text.to_lowercase().contains(&wanted);
    wanted.is_empty()
        || [entry.recipient.as_deref(), entry.error.as_deref()].into_iter().flatten().any(has)
        || has(&entry.what)
        || has(&entry.document_id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_of_entries_survive_any_id() {
        let path = EntryPath {
            collection: Collection::Accounts,
            document: "a\"b/..&c=é".to_owned(),
            entry: "0b7c".to_owned(),
        };
        assert_eq!(EntryPath::parse(&path.to_field()), Some(path));
        for wrong in ["", "[]", "[\"orders\",\"a\",\"b\"]", "[1,2,3]", "{}"] {
            assert_eq!(EntryPath::parse(wrong), None, "{wrong}");
        }
    }
}
