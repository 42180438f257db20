//! Undecided requests: the organizations that have some, and the requests of one of them.

use std::collections::HashMap;

use bson::{Bson, RawBsonRef, RawDocument, RawDocumentBuf, doc};
use chrono::{DateTime, Datelike, Utc};

use offramp_domain::ids::OrganizationId;
use offramp_domain::organization::Organization;
use offramp_domain::schedule::pending_requests::{LISTED_MAX, PendingRequests, RequestTimes};
use offramp_domain::subscription::{Status, Subscription};
use offramp_domain::unit_of_work::LoadedDocument;

use crate::store::client::Store;
use crate::store::collection::Collection;
use crate::store::documents::{self, OrganizationDocument, SubscriptionDocument};
use crate::store::error::StoreError;
use crate::store::indexes::PENDING_REQUESTS;

/// The number of keys of the index read at a time.
const KEYS_MAX: usize = 8_192;

/// The number of undecided requests of one organization that are considered, oldest first.
const REQUESTS_MAX: usize = 10_000;

/// Some of the organizations that have undecided requests.
#[derive(Debug, Default)]
pub struct PendingOrganizationsPage {
    /// The organizations.
    pub organizations: Vec<PendingOrganization>,
    /// The last organization read: the next page starts after it. `None` on the last page.
    pub last: Option<String>,
}

/// An organization that has undecided requests.
#[derive(Debug)]
pub struct PendingOrganization {
    pub id: OrganizationId,
    /// Its document, if it exists.
    pub document: Option<LoadedDocument<Organization>>,
    /// When its oldest undecided request was sent.
    pub oldest: DateTime<Utc>,
    /// The subscription of that request.
    pub subscription: String,
}

impl Store {
    /// Organizations with undecided requests, after the organization `after`, ordered by `_id`. The requests are found in an index
    /// alone.
    ///
    /// # Errors
    /// When the server does not answer.
    pub async fn organizations_with_pending_requests(
        &self,
        after: Option<&str>,
    ) -> Result<PendingOrganizationsPage, StoreError> {
        let filter = doc! {
            "status": Status::CancellationRequested.as_str(),
            "organization_id": { "$gt": after.unwrap_or_default() },
            "cancellation_request.requested_at": { "$type": "date" },
        };
        let fields = doc! { "_id": 1, "organization_id": 1, "cancellation_request.requested_at": 1 };
        let order = doc! { "organization_id": 1, "cancellation_request.requested_at": 1, "_id": 1 };
        let keys =
            self.hinted(Collection::Subscriptions, PENDING_REQUESTS, filter, fields, Some(order), KEYS_MAX).await?;
        let mut organizations: Vec<PendingOrganization> = Vec::new();
        for raw in &keys {
            // Malformed values are reported elsewhere.
            let (Ok(id), Some(oldest)) = (raw.get_str("organization_id"), requested_at(raw)) else { continue };
            let Ok(id) = OrganizationId::try_from(id) else { continue };
            if organizations.last().is_none_or(|last| last.id != id) {
                let subscription = raw.get_str("_id").unwrap_or_default().to_owned();
                organizations.push(PendingOrganization { id, document: None, oldest, subscription });
            }
        }
        let ids = organizations.iter().map(|organization| organization.id.as_str());
        let fields = documents::decision_projection(Collection::Organizations);
        let found = self.find_by_id(Collection::Organizations, ids, fields).await?;
        let by_id: HashMap<&str, &RawDocumentBuf> =
            found.iter().filter_map(|raw| Some((raw.get_str("_id").ok()?, raw))).collect();
        for organization in &mut organizations {
            let raw = by_id.get(organization.id.as_str());
            organization.document =
                raw.map(|raw| documents::read::<OrganizationDocument, _>(Collection::Organizations.as_str(), raw));
        }
        let last = keys.last().filter(|_| keys.len() == KEYS_MAX).and_then(|raw| raw.get_str("organization_id").ok());
        Ok(PendingOrganizationsPage { organizations, last: last.map(str::to_owned) })
    }

    /// The undecided requests of an organization.
    ///
    /// # Errors
    /// When the server does not answer.
    pub(in crate::store) async fn pending_requests(&self, id: &OrganizationId) -> Result<PendingRequests, StoreError> {
        let filter = doc! {
            "status": Status::CancellationRequested.as_str(),
            "organization_id": id.as_str(),
            "cancellation_request.requested_at": { "$type": "date" },
            "cancellation_request.decided_at": Bson::Null,
        };
        let requested = Status::CancellationRequested.as_str();
        // The newest change of a subscription with an undecided request is that request.
        let newest = doc! { "$cond": [{ "$isArray": "$history" }, { "$arrayElemAt": ["$history", -1] }, Bson::Null] };
        let recorded_at = doc! { "$let": {
            "vars": { "newest": newest },
            "in": { "$cond": [{ "$eq": ["$$newest.to", requested] }, "$$newest.at", Bson::Null] },
        } };
        let fields = doc! { "_id": 1, "cancellation_request.requested_at": 1, "recorded_at": recorded_at };
        let order = doc! { "organization_id": 1, "cancellation_request.requested_at": 1, "_id": 1 };
        let found =
            self.hinted(Collection::Subscriptions, PENDING_REQUESTS, filter, fields, Some(order), REQUESTS_MAX).await?;
        let mut requests: Vec<(&str, RequestTimes)> = found.iter().filter_map(|raw| times(raw)).collect();

        let ids: Vec<&str> = requests.iter().take(LISTED_MAX).map(|(id, _)| *id).collect();
        let fields = documents::decision_projection(Collection::Subscriptions);
        let raw = self.find_by_id(Collection::Subscriptions, ids.iter().copied(), fields).await?;
        let mut subscriptions: HashMap<String, Subscription> = HashMap::new();
        for raw in &raw {
            let loaded = documents::read::<SubscriptionDocument, Subscription>("subscriptions", raw);
            if let LoadedDocument::Read(subscription) = loaded {
                subscriptions.insert(subscription.id.to_string(), subscription);
            }
        }
        // Decided since the first look.
        let is_decided = |id: &str| subscriptions.get(id).is_some_and(|it| it.status != Status::CancellationRequested);
        requests.retain(|(id, _)| !is_decided(id));
        let oldest = ids.into_iter().filter(|id| !is_decided(id)).collect::<Vec<_>>();
        Ok(PendingRequests {
            times: requests.into_iter().map(|(_, times)| times).collect(),
            oldest: oldest.into_iter().filter_map(|id| subscriptions.remove(id)).collect(),
        })
    }
}

fn times(raw: &RawDocumentBuf) -> Option<(&str, RequestTimes)> {
    let recorded_at = raw.get_datetime("recorded_at").ok().map(bson::DateTime::to_chrono);
    Some((raw.get_str("_id").ok()?, RequestTimes { requested_at: requested_at(raw)?, recorded_at }))
}

/// When the request was sent. A year of more than four digits has no date in a time zone.
fn requested_at(raw: &RawDocument) -> Option<DateTime<Utc>> {
    let request = raw.get("cancellation_request").ok().flatten().and_then(RawBsonRef::as_document)?;
    let at = request.get_datetime("requested_at").ok()?.to_chrono();
    (0..=9999).contains(&at.year()).then_some(at)
}
