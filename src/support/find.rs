//! Which subscription, account or organization something is about.
//!
//! Every search uses an index: where it is missing, the search fails and says so.

use std::collections::HashMap;

use bson::{RawDocument, RawDocumentBuf};
use chrono::{DateTime, NaiveDate, Utc};
use serde::Serialize;
use uuid::Uuid;

use offramp_domain::subscription::Status;

use super::fields::{Fields, utc};
use super::subscription::summary;
use super::timeline::{self, Email, Happening, RejectedCommand};
use super::unsent::Unsent;
use crate::advice;
use crate::store::documents::{AppliedDocument, NotificationDocument, RequestDocument};
use crate::store::outbox::entry::OutboxEntry;
use crate::store::rejected_commands::{RejectedCommandDocument, RejectedOf};
use crate::store::search::SearchError;
use crate::store::{Collection, Store, StoreError};

/// What to find.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Query {
    /// Whatever this may be: the id of a document, command or email, a Message-ID, or an email address.
    Text(String),
    /// The account with this id, and its subscriptions.
    Account(String),
    /// The accounts and organizations with this email address, without regard to case, and the subscriptions of the accounts.
    Address(String),
    /// The document that an email is about, by its Message-ID, with or without `<>`.
    MessageId(String),
    /// The documents that applied a command with this id, and those that rejected one, of the last 30 days.
    Command(String),
    /// Subscriptions with a request that was sent at this instant or before and is not decided, the oldest first.
    UndecidedSince {
        since: DateTime<Utc>,
        /// Only those of this organization.
        organization_id: Option<String>,
    },
    /// Subscriptions that are scheduled to end and whose last day is before this day, the first to end first.
    EndsBefore {
        day: NaiveDate,
        /// Only those of this organization.
        organization_id: Option<String>,
    },
}

/// What a query found.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Findings {
    pub found: Vec<Found>,
    /// Whether there is more than was asked for.
    pub has_more: bool,
    /// What could not be searched, in sentences.
    pub notes: Vec<String>,
}

/// A document that was found.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Found {
    pub kind: FoundKind,
    /// The document's id. A rejected command may name a document that does not exist.
    pub id: String,
    /// The organization that it belongs to.
    pub organization_id: Option<String>,
    /// The account of a subscription.
    pub account_id: Option<String>,
    /// The participant, the account manager, or the organization's name.
    pub name: Option<String>,
    /// The plan of a subscription.
    pub plan: Option<String>,
    /// The status of a subscription.
    pub status: Option<Status>,
    /// The last day of a subscription: scheduled, or past.
    pub last_day: Option<NaiveDate>,
    /// Why it was found.
    pub because: Because,
}

/// What was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum FoundKind {
    Subscription,
    Account,
    Organization,
}

/// Why something was found.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "by", rename_all = "snake_case")]
pub enum Because {
    /// It has this id.
    Id,
    /// It belongs to the account.
    Account,
    /// It has the email address.
    Address {
        /// As it is written there.
        address: Option<String>,
    },
    /// The email is about it.
    Email(Email),
    /// It applied the command.
    AppliedCommand {
        source: String,
        id: String,
        applied_at: Option<DateTime<Utc>>,
        /// Whether the command asked for what was so already, and changed nothing.
        unchanged: bool,
    },
    /// The command named it, and was rejected.
    RejectedCommand {
        at: Option<DateTime<Utc>>,
        #[serde(flatten)]
        rejected: RejectedCommand,
    },
    /// Its request is undecided.
    Undecided {
        /// Since when.
        requested_at: Option<DateTime<Utc>>,
        /// In the client's words.
        reason: Option<String>,
    },
    /// It is scheduled to end.
    EndsSoon,
}

/// Finds at most `limit` documents.
///
/// # Errors
/// When an index is missing, the server does not answer, or a right is missing.
pub async fn find(store: &Store, query: &Query, limit: usize) -> Result<Findings, SearchError> {
    let mut search = Searching { store, one_more: limit.saturating_add(1), findings: Findings::default() };
    match query {
        Query::Text(text) => {
            search.id(text).await?;
            search.command(text).await?;
            search.message_id(text).await?;
            if text.contains('@') {
                search.address(text.trim_matches(['<', '>', ' '])).await?;
            }
        }
        Query::Account(id) => search.account(id).await?,
        Query::Address(address) => search.address(address).await?,
        Query::MessageId(id) => search.message_id(id).await?,
        Query::Command(id) => search.command(id).await?,
        Query::UndecidedSince { since, organization_id } => {
            let found = store.requests_undecided_since(*since, organization_id.as_deref(), search.one_more).await?;
            search.add(found.iter().filter_map(|raw| listed(Collection::Subscriptions, raw, undecided(raw))));
        }
        Query::EndsBefore { day, organization_id } => {
            let found = store.scheduled_to_end_before(*day, organization_id.as_deref(), search.one_more).await?;
            search.add(found.iter().filter_map(|raw| listed(Collection::Subscriptions, raw, Because::EndsSoon)));
        }
    }
    let mut findings = search.findings;
    findings.has_more = findings.found.len() > limit;
    findings.found.truncate(limit);
    Ok(findings)
}

/// A search, and what it has found.
struct Searching<'a> {
    store: &'a Store,
    /// One more than is wanted.
    one_more: usize,
    findings: Findings,
}

impl Searching<'_> {
    fn add(&mut self, found: impl Iterator<Item = Found>) {
        self.findings.found.extend(found);
    }

    /// Documents with this id.
    async fn id(&mut self, id: &str) -> Result<(), StoreError> {
        for collection in [Collection::Subscriptions, Collection::Accounts, Collection::Organizations] {
            let found = self.store.listed_documents(collection, std::iter::once(id)).await?;
            self.add(found.iter().filter_map(|raw| listed(collection, raw, Because::Id)));
        }
        Ok(())
    }

    async fn account(&mut self, id: &str) -> Result<(), SearchError> {
        let account = self.store.listed_documents(Collection::Accounts, std::iter::once(id)).await?;
        self.add(account.iter().filter_map(|raw| listed(Collection::Accounts, raw, Because::Id)));
        self.subscriptions_of(id).await
    }

    async fn subscriptions_of(&mut self, account: &str) -> Result<(), SearchError> {
        let found = self.store.subscriptions_of_account(account, self.one_more).await?;
        self.add(found.iter().filter_map(|raw| listed(Collection::Subscriptions, raw, Because::Account)));
        Ok(())
    }

    async fn address(&mut self, address: &str) -> Result<(), SearchError> {
        for (collection, field) in
            [(Collection::Accounts, "manager.email"), (Collection::Organizations, "contact.email")]
        {
            for raw in self.store.documents_with_address(collection, address, self.one_more).await? {
                let because = Because::Address { address: Fields::new(String::new(), &raw).read(field) };
                let Some(found) = listed(collection, &raw, because) else { continue };
                let id = found.id.clone();
                self.findings.found.push(found);
                // Enough is enough: an address may belong to many accounts.
                if collection == Collection::Accounts && self.findings.found.len() < self.one_more {
                    self.subscriptions_of(&id).await?;
                }
            }
        }
        Ok(())
    }

    /// The document with the email. A Message-ID is made from the email's id.
    async fn message_id(&mut self, text: &str) -> Result<(), SearchError> {
        let Some(id) = email_id(text) else { return Ok(()) };
        for collection in [Collection::Subscriptions, Collection::Accounts, Collection::Organizations] {
            let found = self.store.documents_with_email(collection, id).await?;
            self.add(found.iter().filter_map(|raw| listed(collection, raw, Because::Email(email(raw)?))));
        }
        Ok(())
    }

    async fn command(&mut self, id: &str) -> Result<(), SearchError> {
        for collection in [Collection::Subscriptions, Collection::Accounts] {
            let found = self.store.documents_that_applied(collection, id, self.one_more).await?;
            self.add(found.iter().filter_map(|raw| listed(collection, raw, applied(raw)?)));
        }
        let rejected = match self.store.rejected_commands(RejectedOf::CommandId(id), self.one_more).await {
            Err(SearchError::Store(StoreError::Denied(reason))) => {
                self.findings.notes.push(format!("rejected commands cannot be searched: {reason}"));
                return Ok(());
            }
            // What the documents say is an answer, too.
            Err(error @ SearchError::MissingIndex(_)) => {
                let sentence = format!("rejected commands cannot be searched: {error} ({})", advice::MISSING_INDEXES);
                self.findings.notes.push(sentence);
                return Ok(());
            }
            rejected => rejected?,
        };
        self.rejected(rejected).await?;
        Ok(())
    }

    /// Rejected commands, by the documents that they name.
    async fn rejected(&mut self, rejected: Vec<RejectedCommandDocument>) -> Result<(), StoreError> {
        let mut documents: HashMap<(FoundKind, String), RawDocumentBuf> = HashMap::new();
        for (collection, kind) in
            [(Collection::Subscriptions, FoundKind::Subscription), (Collection::Accounts, FoundKind::Account)]
        {
            let ids = rejected.iter().map(named).filter(|(named, _)| *named == kind).map(|(_, id)| id);
            for raw in self.store.listed_documents(collection, ids).await? {
                if let Ok(id) = raw.get_str("_id").map(str::to_owned) {
                    documents.insert((kind, id), raw);
                }
            }
        }
        for document in rejected {
            let (kind, id) = named(&document);
            let id = id.to_owned();
            let (organization_id, account_id) = (document.organization_id.clone(), document.account_id.clone());
            let at = utc(document.at);
            let Some(Happening::RejectedCommand(rejected)) = timeline::rejected_command(document).map(|it| it.what)
            else {
                continue;
            };
            let because = Because::RejectedCommand { at, rejected };
            let known = documents.get(&(kind, id.clone())).map(|raw| match kind {
                FoundKind::Account => listed(Collection::Accounts, raw, because.clone()),
                _ => listed(Collection::Subscriptions, raw, because.clone()),
            });
            self.findings.found.push(known.flatten().unwrap_or(Found {
                kind,
                id,
                organization_id: Some(organization_id),
                account_id: account_id.filter(|_| kind == FoundKind::Subscription),
                name: None,
                plan: None,
                status: None,
                last_day: None,
                because,
            }));
        }
        Ok(())
    }
}

/// The document that a rejected command names.
fn named(rejected: &RejectedCommandDocument) -> (FoundKind, &str) {
    match &rejected.subscription_id {
        Some(id) => (FoundKind::Subscription, id),
        None => (FoundKind::Account, rejected.account_id.as_deref().unwrap_or_default()),
    }
}

/// The id of an email: `<0190…@example.com>`, without `<>`, or the part before `@` alone.
fn email_id(text: &str) -> Option<Uuid> {
    let text = text.trim().trim_start_matches('<').trim_end_matches('>');
    Uuid::try_parse(text.split('@').next()?).ok()
}

/// A document of a list.
fn listed(collection: Collection, raw: &RawDocument, because: Because) -> Option<Found> {
    let id = raw.get_str("_id").ok()?.to_owned();
    let mut fields = Fields::new(format!("{} {id}", collection.as_str()), raw);
    let (kind, name) = match collection {
        Collection::Subscriptions => {
            let found = summary(raw)?;
            return Some(Found {
                kind: FoundKind::Subscription,
                id,
                organization_id: found.organization_id,
                account_id: found.account_id,
                name: found.participant.map(|participant| participant.name),
                plan: found.plan.map(|plan| plan.name),
                status: found.status,
                last_day: found.ends_on.or(found.ended_on),
                because,
            });
        }
        Collection::Accounts => (FoundKind::Account, fields.read("manager.name")),
        Collection::Organizations => (FoundKind::Organization, fields.read("name")),
    };
    Some(Found {
        kind,
        organization_id: fields.read("organization_id"),
        id,
        account_id: None,
        name,
        plan: None,
        status: None,
        last_day: None,
        because,
    })
}

/// The only record of an email, and its entry in the outbox if it is not sent.
fn email(raw: &RawDocument) -> Option<Email> {
    let mut fields = Fields::new(String::new(), raw);
    let unsent: Vec<Unsent> = fields.list::<OutboxEntry>("outbox").into_iter().map(Unsent::from).collect();
    let record = fields.list::<NotificationDocument>("notifications").pop()?;
    Some(timeline::email(record, &unsent))
}

/// The only applied command.
fn applied(raw: &RawDocument) -> Option<Because> {
    let applied = Fields::new(String::new(), raw).list::<AppliedDocument>("applied").pop()?;
    let AppliedDocument { key, at, unchanged, .. } = applied;
    let (source, id) = (key.source.to_string(), key.id.to_string());
    Some(Because::AppliedCommand { source, id, applied_at: utc(at), unchanged })
}

fn undecided(raw: &RawDocument) -> Because {
    let request = Fields::new(String::new(), raw).read::<RequestDocument>("cancellation_request");
    Because::Undecided {
        requested_at: request.as_ref().and_then(|request| utc(request.requested_at)),
        reason: request.and_then(|request| request.reason).map(|reason| reason.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn email_ids_are_read_from_message_ids() {
        let id = "0190b3c5-1d2e-5f00-8000-0123456789ab";
        let expected = Some(Uuid::parse_str(id).unwrap());
        for text in [format!("<{id}@example.org>"), format!("{id}@example.org"), id.to_owned(), format!(" <{id}@x> ")] {
            assert_eq!(email_id(&text), expected, "{text}");
        }
        for text in ["", "ada@example.org", "<CAF=abc@mail.example>", "sub-1"] {
            assert_eq!(email_id(text), None, "{text}");
        }
    }
}
