//! Links in emails: addresses that other systems write, and the pages of one account, subscription or card.

use std::borrow::Cow;
use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, de};
use url::Url;

use crate::ids::{AccountId, CardId, SubscriptionId};

/// The longest URL in an email, in bytes. Longer ones are left out.
pub const URL_BYTES_MAX: usize = 2_048;

/// The pages that an organization's emails link to. Each is an http or https URL with placeholders for ids, such as
/// `https://club.example/accounts/{account_id}`. A link that is malformed, or whose placeholder has no value, is left out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Links {
    /// Where administrators see a subscription, with `{subscription_id}`.
    pub admin_url: Option<String>,
    /// Where administrators see an account, with `{account_id}`.
    pub admin_account_url: Option<String>,
    /// Where the client sees the account or one of its subscriptions, with `{account_id}` and `{subscription_id}`.
    pub account_url: Option<String>,
    /// Where the client changes a card, with `{account_id}` and `{card_id}`.
    pub payment_method_url: Option<String>,
}

impl Links {
    /// The administrators' page of a subscription.
    #[must_use]
    pub fn admin_url(&self, subscription: &SubscriptionId) -> Option<String> {
        fill(self.admin_url.as_deref()?, &[("{subscription_id}", subscription.as_str())])
    }

    /// The administrators' page of an account.
    #[must_use]
    pub fn admin_account_url(&self, account: &AccountId) -> Option<String> {
        fill(self.admin_account_url.as_deref()?, &[("{account_id}", account.as_str())])
    }

    /// The client's page of the account, or of one of its subscriptions.
    #[must_use]
    pub fn account_url(&self, account: &AccountId, subscription: Option<&SubscriptionId>) -> Option<String> {
        let mut ids = vec![("{account_id}", account.as_str())];
        ids.extend(subscription.map(|id| ("{subscription_id}", id.as_str())));
        fill(self.account_url.as_deref()?, &ids)
    }

    /// The client's page of a card, or of all cards.
    #[must_use]
    pub fn payment_method_url(&self, account: &AccountId, card: Option<&CardId>) -> Option<String> {
        let mut ids = vec![("{account_id}", account.as_str())];
        ids.extend(card.map(|id| ("{card_id}", id.as_str())));
        fill(self.payment_method_url.as_deref()?, &ids)
    }
}

/// The placeholders of all links.
const PLACEHOLDERS: [&str; 3] = ["{account_id}", "{subscription_id}", "{card_id}"];

/// The URL with the ids in place of their placeholders. `None` if it is no URL of an email, if an id would choose the host, or if a
/// placeholder stays open.
fn fill(template: &str, ids: &[(&str, &str)]) -> Option<String> {
    let template = template.trim();
    let (_, after_scheme) = template.split_once("://")?;
    let (host, _) = after_scheme.split_at(after_scheme.find(['/', '?', '#', '\\']).unwrap_or(after_scheme.len()));
    // A URL parser would skip an empty host and take what follows.
    if host.is_empty() || host.contains(['{', '}']) {
        return None;
    }
    let mut url = template.to_owned();
    for (placeholder, id) in ids.iter().filter(|(placeholder, _)| template.contains(placeholder)) {
        url = url.replace(placeholder, &encode(id)?);
    }
    if PLACEHOLDERS.iter().any(|placeholder| url.contains(placeholder)) {
        return None;
    }
    web_address(&url)
}

/// The id, percent-encoded. `None` for an id that would name another folder even then.
fn encode(id: &str) -> Option<String> {
    if matches!(id, "." | "..") {
        return None;
    }
    let encoded: String = url::form_urlencoded::byte_serialize(id.as_bytes()).collect();
    Some(encoded.replace('+', "%20"))
}

/// The text, if it is an http or https URL that an email can link to.
#[must_use]
pub(crate) fn web_address(text: &str) -> Option<String> {
    let text = text.trim();
    if text.len() > URL_BYTES_MAX || text.chars().any(char::is_control) {
        return None;
    }
    let url = Url::parse(text).ok()?;
    matches!(url.scheme(), "http" | "https").then(|| text.to_owned())
}

/// An https URL of a command.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct HttpsUrl(String);

impl TryFrom<&str> for HttpsUrl {
    type Error = String;

    fn try_from(text: &str) -> Result<Self, String> {
        match web_address(text) {
            Some(url) if url == text && Url::parse(&url).is_ok_and(|url| url.scheme() == "https") => Ok(Self(url)),
            _ => Err(format!(
                "must be an https URL such as \"https://pay.example/invoices/42\", of at most {URL_BYTES_MAX} bytes"
            )),
        }
    }
}

impl<'de> Deserialize<'de> for HttpsUrl {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::try_from(&*Cow::<str>::deserialize(deserializer)?).map_err(de::Error::custom)
    }
}

impl fmt::Display for HttpsUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl JsonSchema for HttpsUrl {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "HttpsUrl".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "format": "uri", "pattern": "^[Hh][Tt][Tt][Pp][Ss]://.", "maxLength": URL_BYTES_MAX })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(template: &str, id: &str, expected: Option<&str>) {
        let links = Links { admin_account_url: Some(template.to_owned()), ..Links::default() };
        assert_eq!(links.admin_account_url(&id.try_into().unwrap()).as_deref(), expected);
    }

    #[test]
    fn ids_are_percent_encoded() {
        check("https://club.example/a/{account_id}", "acc-1", Some("https://club.example/a/acc-1"));
        check(
            "https://club.example/a/{account_id}?tab={account_id}#cards",
            "a b/é?+&",
            Some("https://club.example/a/a%20b%2F%C3%A9%3F%2B%26?tab=a%20b%2F%C3%A9%3F%2B%26#cards"),
        );
        check("https://club.example/{account_id}", "{card_id}", Some("https://club.example/%7Bcard_id%7D"));
        check("http://club.example", "acc-1", Some("http://club.example"));
        check(" HTTPS://club.example:8443/{account_id} ", "acc-1", Some("HTTPS://club.example:8443/acc-1"));
        check("https://club.example/a/{account_id}/cards", "..", None);
        check("https://club.example/cards", "..", Some("https://club.example/cards"));
    }

    #[test]
    fn no_id_chooses_the_host() {
        for template in [
            "https://{account_id}.example/",
            "https://{account_id}/a",
            "https://club.example:{account_id}/",
            "https://{account_id}@club.example/",
            "https://{account_id}\\@club.example/",
            "{account_id}://club.example/",
            "{account_id}",
            "https:{account_id}",
            "//club.example/{account_id}",
            "https:///{account_id}",
        ] {
            check(template, "evil.example", None);
        }
    }

    #[test]
    fn malformed_links_are_left_out() {
        for template in [
            "",
            "club.example/{account_id}",
            "javascript://club.example/%0aalert(1)",
            "ftp://club.example/{account_id}",
            "https://",
            "https://club.example/\n{account_id}",
            "https://club.example/{subscription_id}",
            "https://club.example/{account_id}/{card_id}",
        ] {
            check(template, "acc-1", None);
        }
        check(&format!("https://club.example/{}", "x".repeat(URL_BYTES_MAX)), "acc-1", None);
    }

    #[test]
    fn each_link_has_its_ids() {
        let links = Links {
            admin_url: Some("https://a.example/{subscription_id}".to_owned()),
            admin_account_url: None,
            account_url: Some("https://b.example/{account_id}/{subscription_id}".to_owned()),
            payment_method_url: Some("https://c.example/{account_id}/{card_id}".to_owned()),
        };
        let (account, subscription) = ("acc-1".try_into().unwrap(), "sub-1".try_into().unwrap());
        let card = "card-1".try_into().unwrap();
        assert_eq!(links.admin_url(&subscription).as_deref(), Some("https://a.example/sub-1"));
        assert_eq!(links.admin_account_url(&account), None);
        assert_eq!(links.account_url(&account, None), None, "an open placeholder");
        assert_eq!(links.account_url(&account, Some(&subscription)).as_deref(), Some("https://b.example/acc-1/sub-1"));
        assert_eq!(links.payment_method_url(&account, None), None);
        let page = links.payment_method_url(&account, Some(&card));
        assert_eq!(page.as_deref(), Some("https://c.example/acc-1/card-1"));
    }
}
