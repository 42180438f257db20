//! Reading a document as one of the domain's types.

use bson::RawDocument;
use serde::de::DeserializeOwned;

use offramp_domain::field::Malformed;
use offramp_domain::unit_of_work::LoadedDocument;

use super::stored;

/// Reads `raw` as a document of `collection`. Where its id, its owner, its version, its status or the list of applied commands
/// cannot be read, all of it is corrupt; the sentence names the document, the field and the reason.
pub fn read<D: DeserializeOwned, T: TryFrom<D, Error = Malformed>>(
    collection: &str,
    raw: &RawDocument,
) -> LoadedDocument<T> {
    let document = stored::whole::<D>(raw).map_err(|fault| fault.of(&format!("{collection} {}", id_of(raw)), ""));
    match document.and_then(T::try_from) {
        Ok(document) => LoadedDocument::Read(document),
        Err(Malformed(error)) => LoadedDocument::Corrupt {
            organization_id: raw.get_str("organization_id").ok().and_then(|id| id.try_into().ok()),
            error,
        },
    }
}

/// The `_id` of a document, for sentences.
fn id_of(raw: &RawDocument) -> String {
    match raw.get("_id") {
        Ok(Some(id)) => id.as_str().map_or_else(|| format!("{id:?}"), str::to_owned),
        _ => "without _id".to_owned(),
    }
}
