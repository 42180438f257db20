//! The documents as the database keeps them, and how they become the domain's types.
//!
//! Other systems write these documents too. What Offramp does not know is neither read nor written. What it knows and cannot read
//! stops the decisions that need it and no others. Documents are read more leniently than they are written, so that a field that a
//! newer version adds does no harm.

mod account;
mod fields;
mod organization;
mod projection;
mod read;
mod records;
mod stored;
mod subscription;

pub use account::{AccountDocument, CardDocument, CardNoticeDocument, ManagerDocument};
pub(super) use organization::LEAD_DAYS_MAX;
pub use organization::{BrandDocument, ContactDocument, OrganizationDocument, RemindersDocument};
pub use projection::decision_projection;
pub(super) use projection::reference_projection;
pub use read::read;
pub use records::{AppliedDocument, NotificationDocument};
pub use stored::{Stored, kind};
pub use subscription::{
    BillingDocument, CancellationDocument, HistoryDocument, NameDocument, OwnDate, PaymentFailureDocument,
    RequestDocument, SubscriptionDocument,
};

#[cfg(test)]
mod tests;
