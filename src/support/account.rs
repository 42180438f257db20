//! An account.

use chrono_tz::Tz;
use serde::Serialize;

use offramp_domain::account::Account;
use offramp_domain::calendar::YearMonth;
use offramp_domain::unit_of_work::LoadedDocument;

use super::fields::Fields;
use super::party::{self, Party};
use super::subscription::{SubscriptionSummary, summary, zone_name};
use super::timeline::{self, TimelineEntry};
use super::unsent::Unsent;
use crate::advice;
use crate::store::documents::{self, AccountDocument, CardDocument, CardNoticeDocument, NotificationDocument};
use crate::store::outbox::entry::OutboxEntry;
use crate::store::rejected_commands::RejectedOf;
use crate::store::search::SearchError;
use crate::store::{Collection, Store, StoreError};

/// How many subscriptions of an account are shown, the newest.
pub const SUBSCRIPTIONS_MAX: usize = 200;

/// An account, and what happened to it. What the document does not have, or cannot be read, is absent.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct AccountView {
    /// Its id.
    pub id: String,
    pub organization: Party,
    /// The customer who holds the account.
    pub manager: Manager,
    /// The newest subscriptions, at most [`SUBSCRIPTIONS_MAX`], the newest first.
    pub subscriptions: Vec<SubscriptionSummary>,
    /// How many more there are.
    pub more_subscriptions: u64,
    /// The saved cards.
    pub cards: Vec<SavedCard>,
    /// Card notices, emails that are about no single subscription, and rejected commands; the oldest first.
    pub timeline: Vec<TimelineEntry>,
    /// Emails and events that are not sent yet.
    pub outbox: Vec<Unsent>,
    /// The first error that kept a part of it from being read.
    pub problem: Option<String>,
    /// What could not be looked up, in sentences.
    pub notes: Vec<String>,
    /// The organization's; UTC if that is unknown.
    #[serde(serialize_with = "zone_name")]
    pub timezone: Tz,
}

/// An account manager.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Manager {
    pub name: Option<String>,
    /// The address that emails decided now go to.
    pub email: Option<String>,
    /// Absent: the organization's.
    pub locale: Option<String>,
}

/// A saved card.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SavedCard {
    /// Its id in the payment system.
    pub id: String,
    pub brand: String,
    pub last4: String,
    /// The last month in which it is valid.
    pub expires: YearMonth,
}

/// Reads the account with this id, and what belongs to it; `None` if there is none.
///
/// # Errors
/// When the server does not answer, or a right is missing.
pub async fn account_view(store: &Store, id: &str) -> Result<Option<AccountView>, StoreError> {
    let Some(raw) = store.document(Collection::Accounts, id).await? else { return Ok(None) };
    let mut fields = Fields::new(format!("{} {id}", Collection::Accounts.as_str()), &raw);
    let organization = party::organization(store, fields.read("organization_id")).await?;
    let (rejected, note) = timeline::rejected_commands(store, RejectedOf::Account(id)).await?;
    let mut notes: Vec<String> = note.into_iter().collect();
    let (subscriptions, more_subscriptions) = match subscriptions(store, id).await {
        Ok(found) => found,
        Err(error @ SearchError::MissingIndex(_)) => {
            notes.push(format!("its subscriptions cannot be shown: {error} ({})", advice::MISSING_INDEXES));
            (Vec::new(), 0)
        }
        Err(SearchError::Store(error)) => return Err(error),
    };
    let outbox: Vec<Unsent> = fields.list::<OutboxEntry>("outbox").into_iter().map(Unsent::from).collect();
    let notices = fields.list::<CardNoticeDocument>("card_notices");
    let mut entries: Vec<TimelineEntry> = notices.into_iter().filter_map(timeline::card_notice).collect();
    entries.extend(rejected);
    let emails = fields.list::<NotificationDocument>("notifications");
    entries.extend(emails.into_iter().filter_map(|record| timeline::email_entry(record, &outbox)));
    let manager = Manager {
        name: fields.read("manager.name"),
        email: fields.read("manager.email"),
        locale: fields.read("manager.locale"),
    };
    let cards = fields.list::<CardDocument>("cards").into_iter().map(saved_card).collect();
    let corrupt = match documents::read::<AccountDocument, Account>(Collection::Accounts.as_str(), &raw) {
        LoadedDocument::Read(account) => account.manager.err().map(|malformed| malformed.to_string()),
        LoadedDocument::Corrupt { error, .. } => Some(error),
    };
    Ok(Some(AccountView {
        id: id.to_owned(),
        manager,
        subscriptions,
        more_subscriptions,
        cards,
        timeline: timeline::sorted(entries),
        outbox,
        problem: corrupt.or_else(|| fields.problem()).or(organization.problem),
        notes,
        timezone: organization.timezone.unwrap_or(Tz::UTC),
        organization: organization.party,
    }))
}

async fn subscriptions(store: &Store, id: &str) -> Result<(Vec<SubscriptionSummary>, u64), SearchError> {
    let found = store.subscriptions_of_account(id, SUBSCRIPTIONS_MAX).await?;
    let shown = found.len();
    let more = if shown < SUBSCRIPTIONS_MAX {
        0
    } else {
        store.count_subscriptions_of_account(id).await?.saturating_sub(shown as u64)
    };
    Ok((found.iter().filter_map(|raw| summary(raw)).collect(), more))
}

fn saved_card(CardDocument { id, brand, last4, expires }: CardDocument) -> SavedCard {
    SavedCard { id: id.to_string(), brand: brand.to_string(), last4: last4.as_str().to_owned(), expires }
}
