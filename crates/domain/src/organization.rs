//! An organization, as far as the rules need it. Other systems write it; Offramp adds only what it sends in the organization's name.

use chrono::{DateTime, NaiveDate, Utc};
use chrono_tz::Tz;

use crate::contact::{Brand, Mailbox};
use crate::field::{Field, Malformed, fault};
use crate::ids::OrganizationId;
use crate::link::Links;

/// How a client may cancel (`organizations.client_cancellation`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
#[schemars(inline)]
pub enum ClientCancellation {
    /// The client cancels, or sends a request.
    Immediate,
    /// The client sends a request, and an administrator decides.
    Request,
}

/// An organization that sells subscriptions.
#[derive(Clone, Debug, PartialEq)]
pub struct Organization {
    /// `_id`
    pub id: OrganizationId,
    /// Its name, which is also the sender's name in its emails.
    pub name: Field<String>,
    /// The language of its emails, and of its clients who have none: a BCP 47 tag such as `fr-CA`. Empty if it cannot be read.
    pub locale: String,
    /// The time zone in which its days end.
    pub timezone: Field<Tz>,
    /// Its main contact.
    pub contact: Field<Mailbox>,
    /// Its phone number, as it writes it.
    pub phone: Option<String>,
    /// Its postal address.
    pub address: Option<String>,
    /// The URL of its website.
    pub website: Option<String>,
    pub client_cancellation: Field<ClientCancellation>,
    /// Whether clients receive an email about their own actions.
    pub notify_client_of_own_actions: Field<bool>,
    /// How many days before a card expires a notice is due, such as 30 and 5.
    pub card_notice_days: Field<Vec<u32>>,
    /// After how many days without a decision a reminder of clients' requests is due, such as 3 and 7; empty: there is none.
    pub request_reminder_days: Field<Vec<u32>>,
    /// The pages that its emails link to.
    pub links: Links,
    pub brand: Brand,
    /// The document's version; absent until Offramp has changed it.
    pub version: Field<Option<i64>>,
    /// The newest reminder of undecided requests.
    pub last_reminder: Field<Option<LastReminder>>,
}

/// The reminder that was given last. There is at most one on a day.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LastReminder {
    /// The day, in the organization's calendar.
    pub on: NaiveDate,
    /// When it was decided.
    pub at: DateTime<Utc>,
}

impl Organization {
    /// The fields that cannot be read.
    #[must_use]
    pub fn faults(&self) -> Vec<&Malformed> {
        let who = [fault(&self.name), fault(&self.contact)];
        let settings = [fault(&self.client_cancellation), fault(&self.notify_client_of_own_actions)];
        let calendar = [fault(&self.timezone), fault(&self.card_notice_days)];
        let reminders = [fault(&self.request_reminder_days), fault(&self.version), fault(&self.last_reminder)];
        who.into_iter().chain(settings).chain(calendar).chain(reminders).flatten().collect()
    }

    /// The date at `now` in the organization's time zone.
    ///
    /// # Errors
    /// When the time zone cannot be read.
    pub fn date_at(&self, now: DateTime<Utc>) -> Field<NaiveDate> {
        Ok(now.with_timezone(&self.timezone.clone()?).date_naive())
    }
}

#[cfg(test)]
mod tests {
    use crate::subscription::Status;
    use crate::testing::*;

    #[test]
    fn dates_are_those_of_the_organizations_time_zone() {
        let mut organization = scene(Status::Active).organization;
        assert_eq!(organization.date_at(instant("2026-06-15T03:59:59Z")), Ok(date("2026-06-14")));
        assert_eq!(organization.date_at(instant("2026-06-15T04:00:00Z")), Ok(date("2026-06-15")));
        organization.timezone = Ok(chrono_tz::Pacific::Kiritimati);
        assert_eq!(organization.date_at(instant("2026-06-14T10:00:00Z")), Ok(date("2026-06-15")));
    }
}
