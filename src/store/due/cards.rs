//! Cards about to expire: the organizations that want notices, and the cards without one.

use std::collections::HashMap;

use bson::{Bson, Document, RawBsonRef, RawDocument, doc};
use chrono::{DateTime, Days, Utc};
use chrono_tz::Tz;

use offramp_domain::account::{CARD_NOTICES_MAX, NoticeKind};
use offramp_domain::calendar::YearMonth;
use offramp_domain::ids::{AccountId, CardId, OrganizationId};

use super::unworkable::{UNWORKABLE_OF_ONE_FAULT_MAX, UnprocessableDocument, shown_id};
use crate::store::bson::{to_bson, whole_number};
use crate::store::client::Store;
use crate::store::collection::Collection;
use crate::store::documents::LEAD_DAYS_MAX;
use crate::store::error::StoreError;
use crate::store::indexes::{CARD_EXPIRY, CARD_ORGANIZATIONS, NO_TEXT};

/// The number of organizations with card notices read at a time.
const ORGANIZATIONS_PAGE_MAX: u16 = 256;

/// Some of the organizations that want card notices.
#[derive(Debug, Default)]
pub struct CardOrganizationsPage {
    /// The organizations, or why they cannot be processed.
    pub organizations: Vec<Result<CardOrganization, UnprocessableDocument>>,
    /// The last organization read: the next page starts after it. `None` on the last page.
    pub last: Option<String>,
}

/// An organization that wants card notices.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CardOrganization {
    /// Its id.
    pub id: OrganizationId,
    /// Where it is.
    pub timezone: Tz,
    /// The lead times of notices, in days before a card expires.
    pub card_notice_days: Vec<u32>,
}

impl CardOrganization {
    /// The expiry months that are within a lead time at `now`, each with the notice that is due.
    #[must_use]
    pub fn notices_due(&self, now: DateTime<Utc>) -> Vec<(YearMonth, NoticeKind)> {
        let today = now.with_timezone(&self.timezone).date_naive();
        let Some(longest) = self.card_notice_days.iter().copied().max() else { return Vec::new() };
        let Some(last_day) = today.checked_add_days(Days::new(longest.into())) else { return Vec::new() };
        std::iter::successors(Some(YearMonth::of(today)), |month| Some(month.next()))
            .take_while(|month| month.last_day() <= last_day)
            .map(|month| (month, NoticeKind::due(month, today, &self.card_notice_days)))
            .collect()
    }

    /// Reads an organization; `None` if it wants no notices.
    fn read(raw: &RawDocument) -> Option<Result<Self, UnprocessableDocument>> {
        let value = raw.get("card_notice_days").ok().flatten();
        if value.is_none() || value == Some(RawBsonRef::Null) {
            return None;
        }
        let read = || {
            let id = raw.get_str("_id").ok().and_then(|id| id.try_into().ok());
            let id = id.ok_or("_id is not text of 1 to 128 characters")?;
            let days = value.and_then(RawBsonRef::as_array);
            let card_notice_days: Option<Vec<u32>> = days.and_then(|days| {
                let days = days.into_iter().map(|day| u32::try_from(whole_number(day.ok()?)?).ok());
                days.map(|days| days.filter(|days| *days <= LEAD_DAYS_MAX)).collect()
            });
            let card_notice_days = card_notice_days
                .ok_or_else(|| format!("card_notice_days is not a list of whole numbers from 0 to {LEAD_DAYS_MAX}"))?;
            let timezone = raw.get_str("timezone").ok().and_then(|zone| zone.parse().ok());
            let timezone = timezone.ok_or("timezone is not an IANA time zone such as \"America/Toronto\"")?;
            Ok(Self { id, timezone, card_notice_days })
        };
        match read() {
            Ok(organization) if organization.card_notice_days.is_empty() => None,
            Ok(organization) => Some(Ok(organization)),
            Err(reason) => {
                let reason: String = reason;
                Some(Err(UnprocessableDocument { collection: Collection::Organizations, id: shown_id(raw), reason }))
            }
        }
    }
}

/// Some of the cards whose notice is due.
#[derive(Debug, Default)]
pub struct CardsPage {
    /// The cards.
    pub due: Vec<DueCard>,
    /// Accounts that cannot be processed.
    pub unworkable: Vec<UnprocessableDocument>,
    /// The last account read: the next page starts after it. `None` on the last page.
    pub last: Option<String>,
}

/// A card whose notice is due.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DueCard {
    /// Whose it is.
    pub account: AccountId,
    /// Its id.
    pub card: CardId,
    /// Whether the account has [`CARD_NOTICES_MAX`] notices or more. The rules then add none, unless some are old enough to be dropped.
    pub is_full: bool,
}

impl Store {
    /// Organizations that want card notices, after the organization `after`, ordered by `_id`.
    ///
    /// In pages and not with one cursor: the work between two pages may take longer than the server keeps an idle cursor.
    ///
    /// # Errors
    /// When the server does not answer.
    pub async fn card_organizations(&self, after: Option<&str>) -> Result<CardOrganizationsPage, StoreError> {
        let mut id = doc! { "$type": "string" };
        if let Some(after) = after {
            id.insert("$gt", after);
        }
        let filter = |id: Document| doc! { "_id": id, "card_notice_days": { "$exists": true } };
        let fields = || doc! { "timezone": 1, "card_notice_days": 1 };
        let (of, index) = (Collection::Organizations, CARD_ORGANIZATIONS);
        let order = Some(doc! { "_id": 1 });
        let found = self.hinted(of, index, filter(id), fields(), order, ORGANIZATIONS_PAGE_MAX.into()).await?;
        let mut page = CardOrganizationsPage {
            organizations: found.iter().filter_map(|raw| CardOrganization::read(raw)).collect(),
            last: found.last().and_then(|raw| raw.get_str("_id").ok()).map(str::to_owned),
        };
        if page.last.is_none() {
            // Ids of other types, which are invalid, come last.
            let others = filter(doc! { "$type": NO_TEXT.as_slice() });
            let others = self.hinted(of, index, others, fields(), None, UNWORKABLE_OF_ONE_FAULT_MAX).await?;
            page.organizations.extend(others.iter().filter_map(|raw| CardOrganization::read(raw)));
        }
        Ok(page)
    }

    /// The cards of `organization` that expire in the month `expires` and have not got the notice `kind` yet, in accounts
    /// with a live subscription; at most those of `accounts_max` accounts after the account `after`.
    ///
    /// # Errors
    /// When the server does not answer.
    pub async fn cards_without_notice(
        &self,
        organization: &OrganizationId,
        expires: YearMonth,
        kind: NoticeKind,
        after: Option<&str>,
        accounts_max: usize,
    ) -> Result<CardsPage, StoreError> {
        let expires = expires.to_string();
        let kind = to_bson(&kind)?;
        // A non-list counts as empty: one malformed account must not stop the notices of all others.
        let items = |field: &str| doc! { "$cond": [{ "$isArray": field }, field, []] };
        let expiring = doc! { "$map": {
            "input": { "$filter": { "input": items("$cards"), "cond": { "$eq": ["$$this.expires", &expires] } } },
            "in": "$$this.id",
        } };
        let given = doc! { "$map": {
            "input": { "$filter": {
                "input": items("$card_notices"),
                "cond": { "$and": [
                    { "$eq": ["$$this.expires", &expires] },
                    { "$eq": ["$$this.notice", { "$literal": kind }] },
                ] },
            } },
            "in": "$$this.card_id",
        } };
        let mut filter = doc! {
            "organization_id": organization.as_str(),
            "cards.expires": &expires,
            "$expr": { "$gt": [{ "$size": { "$setDifference": [expiring, given] } }, 0] },
        };
        let mut ids = doc! { "$type": "string" };
        if let Some(after) = after {
            ids.insert("$gt", after);
        }
        filter.insert("_id", ids);
        let fields = doc! {
            "cards.id": 1, "cards.expires": 1, "card_notices_count": { "$size": items("$card_notices") },
        };
        let order = Some(doc! { "_id": 1 });
        let accounts = self.hinted(Collection::Accounts, CARD_EXPIRY, filter, fields, order, accounts_max).await?;
        let mut page = CardsPage {
            last: accounts.last().and_then(|raw| raw.get_str("_id").ok()).map(str::to_owned),
            ..CardsPage::default()
        };

        let mut cards: HashMap<&str, (Vec<CardId>, bool)> = HashMap::new();
        for raw in &accounts {
            let Ok(id) = raw.get_str("_id") else { continue };
            let Ok(of_account) = raw.get_array("cards") else { continue };
            let count = raw.get("card_notices_count").ok().flatten().and_then(whole_number);
            let is_full =
                count.is_some_and(|count| usize::try_from(count).is_ok_and(|count| count >= CARD_NOTICES_MAX));
            for card in of_account.into_iter().flatten().filter_map(RawBsonRef::as_document) {
                let (Ok(card_id), Ok(month)) = (card.get_str("id"), card.get_str("expires")) else { continue };
                if month == expires {
                    let (cards, _) = cards.entry(id).or_insert_with(|| (Vec::new(), is_full));
                    cards.extend(CardId::try_from(card_id));
                }
            }
        }
        for account in self.with_live_subscription(cards.keys().copied().collect()).await? {
            let (cards, is_full) = cards.remove(account.as_str()).unwrap_or_default();
            match AccountId::try_from(account.as_str()) {
                Ok(id) => page.due.extend(cards.into_iter().map(|card| DueCard { account: id.clone(), card, is_full })),
                Err(_) => page.unworkable.push(UnprocessableDocument {
                    collection: Collection::Accounts,
                    id: account,
                    reason: "_id is text of more than 128 characters or of none".to_owned(),
                }),
            }
        }
        Ok(page)
    }

    /// Those of the accounts that have a live subscription.
    async fn with_live_subscription(&self, accounts: Vec<&str>) -> Result<Vec<String>, StoreError> {
        if accounts.is_empty() {
            return Ok(Vec::new());
        }
        let live = ["active", "cancellation_requested", "cancellation_scheduled"].map(Bson::from);
        let status: Vec<Bson> = live.into_iter().chain([Bson::Null]).collect();
        let reply = self
            .command(doc! {
                "distinct": Collection::Subscriptions.as_str(),
                "key": "account_id",
                "query": { "account_id": { "$in": accounts }, "status": { "$in": status } },
            })
            .await?;
        let values = reply.get_array("values").cloned().unwrap_or_default();
        Ok(values.iter().filter_map(|id| Some(id.as_str()?.to_owned())).collect())
    }
}
