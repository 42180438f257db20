//! What support staff ask: what happened to a subscription or an account, and which one an address, an email or a command is about.
//!
//! [`look_up`] finds the [`SubscriptionView`] or the [`AccountView`] of an id, [`find::find`] what anything else belongs to. Views are
//! owned data, read once; how they are shown is up to the caller. Nothing here writes, and no rule is decided here. What a malformed
//! document still says is shown, with the first problem.

mod account;
mod fields;
pub mod find;
mod party;
mod subscription;
mod timeline;
mod unsent;

use bson::oid::ObjectId;

use crate::store::{Collection, Store, StoreError};

pub use account::{AccountView, Manager, SUBSCRIPTIONS_MAX, SavedCard, account_view};
pub use party::Party;
pub use subscription::{Cancellation, PendingRequest, SubscriptionSummary, SubscriptionView, subscription_view};
pub use timeline::{
    CardNotice, Change, Decision, Email, EmailState, Happening, PaymentFailure, REJECTED_MAX, RejectedCommand, Request,
    TimelineEntry,
};
pub use unsent::{Unsent, UnsentKind};

/// What an id belongs to.
#[derive(Clone, Debug, PartialEq)]
pub enum LookUp {
    Subscription(Box<SubscriptionView>),
    Account(Box<AccountView>),
    /// A document of this collection has it as an `ObjectId`. Ids must be text, so the worker does not find it.
    ObjectId(Collection),
    /// Neither a subscription nor an account has it.
    Unknown,
}

/// Shows the subscription with this id, or else the account.
///
/// # Errors
/// When the server does not answer, or a right is missing.
pub async fn look_up(store: &Store, id: &str) -> Result<LookUp, StoreError> {
    if let Some(view) = subscription_view(store, id).await? {
        return Ok(LookUp::Subscription(Box::new(view)));
    }
    if let Some(view) = account_view(store, id).await? {
        return Ok(LookUp::Account(Box::new(view)));
    }
    if let Ok(object_id) = id.parse::<ObjectId>() {
        for collection in [Collection::Subscriptions, Collection::Accounts] {
            if store.document(collection, object_id).await?.is_some() {
                return Ok(LookUp::ObjectId(collection));
            }
        }
    }
    Ok(LookUp::Unknown)
}
