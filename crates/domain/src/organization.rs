//! What the rules need to know of an organization. Other systems write it; Offramp only reads it.

use chrono::{DateTime, NaiveDate, Utc};
use chrono_tz::Tz;

use super::field::{Field, Malformed, fault};
use super::ids::{OrganizationId, SubscriptionId};
use super::notification::{Brand, Mailbox};

/// What a client who wants to leave may do (`organizations.client_cancellation`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
#[schemars(inline)]
pub enum ClientCancellation {
    /// Cancel at once, or ask.
    Immediate,
    /// Ask; an administrator decides.
    Request,
}

/// An organization.
#[derive(Clone, Debug, PartialEq)]
pub struct Organization {
    /// `_id`
    pub id: OrganizationId,
    /// Its name, which is also the sender's name of its mails.
    pub name: Field<String>,
    /// The language of its emails, and of its clients' where they have none: a BCP 47 tag such as `fr-CA`. Empty: none can be
    /// read.
    pub locale: String,
    /// Whose midnight ends a day.
    pub timezone: Field<Tz>,
    /// Its main contact.
    pub contact: Field<Mailbox>,
    /// What clients may do.
    pub client_cancellation: Field<ClientCancellation>,
    /// Whether clients get a mail about what they did themselves.
    pub notify_client_of_own_actions: Field<bool>,
    /// How many days before a card expires its holder is told, e.g. 30 and 5.
    pub card_notice_days: Field<Vec<u32>>,
    /// Where administrators see a subscription, with `{subscription_id}`.
    pub admin_url: Option<String>,
    /// How its mails look.
    pub brand: Brand,
}

impl Organization {
    /// The fields that cannot be read.
    #[must_use]
    pub fn faults(&self) -> Vec<&Malformed> {
        let who = [fault(&self.name), fault(&self.contact)];
        let settings = [fault(&self.client_cancellation), fault(&self.notify_client_of_own_actions)];
        let calendar = [fault(&self.timezone), fault(&self.card_notice_days)];
        who.into_iter().chain(settings).chain(calendar).flatten().collect()
    }

    /// The date at `now` in the organization's time zone.
    ///
    /// # Errors
    /// When the time zone cannot be read.
    pub fn date_at(&self, now: DateTime<Utc>) -> Field<NaiveDate> {
        Ok(now.with_timezone(&self.timezone.clone()?).date_naive())
    }

    /// The page on which an administrator sees the subscription.
    #[must_use]
    pub fn admin_url_of(&self, subscription: &SubscriptionId) -> Option<String> {
        let id: String = url::form_urlencoded::byte_serialize(subscription.as_str().as_bytes()).collect();
        self.admin_url.as_ref().map(|template| template.replace("{subscription_id}", &id.replace('+', "%20")))
    }
}

#[cfg(test)]
mod tests {
    use crate::subscription::Status;
    use crate::testing::*;

    #[test]
    fn the_date_is_the_organizations() {
        let mut organization = scene(Status::Active).organization;
        assert_eq!(organization.date_at(instant("2026-06-15T03:59:59Z")), Ok(date("2026-06-14")));
        assert_eq!(organization.date_at(instant("2026-06-15T04:00:00Z")), Ok(date("2026-06-15")));
        organization.timezone = Ok(chrono_tz::Pacific::Kiritimati);
        assert_eq!(organization.date_at(instant("2026-06-14T10:00:00Z")), Ok(date("2026-06-15")));
    }

    #[test]
    fn the_page_of_a_subscription() {
        let mut organization = scene(Status::Active).organization;
        let page = |organization: &super::Organization, id: &str| organization.admin_url_of(&id.try_into().unwrap());
        assert_eq!(page(&organization, "sub-1").unwrap(), "https://laurier.example/s/sub-1");
        assert_eq!(page(&organization, "a b/é?+&").unwrap(), "https://laurier.example/s/a%20b%2F%C3%A9%3F%2B%26");
        organization.admin_url = None;
        assert_eq!(page(&organization, "sub-1"), None);
    }
}
