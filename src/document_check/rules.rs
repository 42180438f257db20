//! What is wrong or doubtful about one document. What can be read is decided by the worker's own code.

use bson::{RawBsonRef, RawDocument, RawDocumentBuf};
use chrono::{DateTime, Utc};
use chrono_tz::Tz;

use super::problem::Problem;
use super::references::References;
use crate::store::Collection;
use offramp_domain::account::Account;
use offramp_domain::calendar::end_of_day;
use offramp_domain::contact::{Mailbox, names_language};
use offramp_domain::field::Malformed;
use offramp_domain::organization::Organization;
use offramp_domain::subscription::{Details, Subscription};
use offramp_domain::unit_of_work::LoadedDocument;
use offramp_mail::Sender;

/// The longest id, in characters.
const ID_CHARS_MAX: usize = 128;

/// An `_id` under which no command can find the document.
pub(super) fn of_id(collection: Collection, raw: &RawDocumentBuf) -> Option<Problem> {
    let found = match raw.get("_id") {
        Ok(Some(RawBsonRef::String(id))) if (1..=ID_CHARS_MAX).contains(&id.chars().count()) => return None,
        Ok(Some(RawBsonRef::String(_))) => "text that is empty or too long",
        Ok(Some(RawBsonRef::ObjectId(_))) => "an ObjectId",
        Ok(Some(RawBsonRef::Int32(_) | RawBsonRef::Int64(_) | RawBsonRef::Double(_))) => "a number",
        _ => "of another type",
    };
    let sentence = format!(
        "the id is {found}; write it as text of 1 to {ID_CHARS_MAX} characters, or no command finds the document in {}",
        collection.as_str()
    );
    Some(Problem::error("unusable_id", "_id", sentence))
}

pub(super) fn of_organization(found: &LoadedDocument<Organization>) -> Vec<Problem> {
    let organization = match found {
        LoadedDocument::Read(organization) => organization,
        LoadedDocument::Corrupt { error, .. } => return vec![unreadable(error)],
    };
    let mut problems: Vec<Problem> =
        organization.faults().into_iter().map(|Malformed(error)| unreadable(error)).collect();
    problems.extend(doubts_of_organization(organization));
    problems
}

/// What is doubtful about an organization that can be read.
pub(super) fn doubts_of_organization(organization: &Organization) -> Vec<Problem> {
    let mut problems: Vec<Problem> =
        of_mailbox(organization.contact.as_ref().ok(), "contact.email").into_iter().collect();
    if !names_language(&organization.locale) {
        let sentence = "it is missing or no language tag such as \"fr-CA\": emails are in English";
        problems.push(Problem::warning("unreadable_locale", "locale", sentence));
    }
    problems
}

pub(super) fn of_account(
    raw: &RawDocumentBuf,
    found: &LoadedDocument<Account>,
    references: &References,
) -> Vec<Problem> {
    let account = match found {
        LoadedDocument::Read(account) => account,
        LoadedDocument::Corrupt { error, .. } => return vec![unreadable(error)],
    };
    let mut problems: Vec<Problem> = account.faults().into_iter().map(|Malformed(error)| unreadable(error)).collect();
    problems.extend(of_owner(account.organization_id.as_str(), references));
    problems.extend(doubts_of_account(raw, account));
    problems
}

/// What is doubtful about an account that can be read.
pub(super) fn doubts_of_account(raw: &RawDocument, account: &Account) -> Vec<Problem> {
    let mut problems: Vec<Problem> = of_mailbox(account.manager.as_ref().ok(), "manager.email").into_iter().collect();
    let given = raw.get_document("manager").ok().and_then(|manager| manager.get("locale").ok().flatten());
    let is_given = !matches!(given, None | Some(RawBsonRef::Null));
    if is_given && account.manager_locale.is_none() {
        let sentence = "it is no language tag such as \"fr-CA\": emails are in the organization's language";
        problems.push(Problem::warning("unreadable_locale", "manager.locale", sentence));
    }
    problems
}

pub(super) fn of_subscription(
    found: &LoadedDocument<Subscription>,
    references: &References,
    now: DateTime<Utc>,
) -> Vec<Problem> {
    let subscription = match found {
        LoadedDocument::Read(subscription) => subscription,
        LoadedDocument::Corrupt { error, .. } => return vec![unreadable(error)],
    };
    // What remains of a removed subscription needs nothing else.
    let Some(details) = &subscription.details else { return Vec::new() };
    let mut problems: Vec<Problem> =
        subscription.faults().into_iter().map(|Malformed(error)| unreadable(error)).collect();
    if details.next_on.is_ok()
        && let Err(Malformed(error)) = subscription.require_next_invoice()
    {
        problems.push(unreadable(&error));
    }
    let owner = subscription.organization_id.as_str();
    problems.extend(of_owner(owner, references));
    let payer = subscription.account_id.as_str();
    match references.accounts.get(payer) {
        None => problems.push(Problem::error("missing_account", "account_id", format!("there is no account {payer}"))),
        Some(other) if other != owner => {
            let sentence =
                format!("the account {payer} belongs to the organization {other}, the subscription to {owner}");
            problems.push(Problem::error("account_of_another_organization", "account_id", sentence));
        }
        Some(_) => {}
    }
    let timezone = references.organizations.get(owner).copied().flatten();
    problems.extend(of_past_invoice(subscription, details, timezone, now));
    problems.extend(doubts_of_subscription(subscription, timezone));
    problems
}

/// A next invoice that is past: the system that writes invoices lags.
fn of_past_invoice(
    subscription: &Subscription,
    details: &Details,
    timezone: Option<Tz>,
    now: DateTime<Utc>,
) -> Option<Problem> {
    let today = now.with_timezone(&timezone.unwrap_or(Tz::UTC)).date_naive();
    let next_on = details.next_on.as_ref().ok().copied().flatten()?;
    (subscription.status.is_live() && next_on < today).then(|| {
        let sentence = format!("the next invoice is of {next_on}, which is past: cancellations would end in the past");
        Problem::warning("past_next_on", "billing.next_on", sentence)
    })
}

/// What is doubtful about the dates of a subscription, as far as they can be read. `timezone` is the organization's.
pub(super) fn doubts_of_subscription(subscription: &Subscription, timezone: Option<Tz>) -> Vec<Problem> {
    let mut problems = Vec::new();
    let Some(details) = &subscription.details else { return problems };
    if subscription.status.is_live()
        && let Ok(Some(next_on)) = details.next_on
        && let Ok(day) = &details.billing_day
        && !day.is_billing_date(next_on)
    {
        let sentence = format!("{next_on} is no billing date: see billing.day");
        problems.push(Problem::warning("not_a_billing_date", "billing.next_on", sentence));
    }
    if let (Ok(Some(end)), Some(timezone), true) = (&details.end, timezone, subscription.status.is_live()) {
        let expected = end_of_day(end.ends_on, timezone);
        if end.ends_at != expected {
            let sentence = format!("it is {}, but {} is over at {expected} in {timezone}", end.ends_at, end.ends_on);
            problems.push(Problem::warning("ends_at_differs", "ends_at", sentence));
        }
    }
    problems
}

fn of_owner(organization: &str, references: &References) -> Option<Problem> {
    let sentence = || format!("there is no organization {organization}");
    let is_missing = !references.organizations.contains_key(organization);
    is_missing.then(|| Problem::error("missing_organization", "organization_id", sentence()))
}

/// An address that no email can be sent to.
fn of_mailbox(mailbox: Option<&Mailbox>, field: &str) -> Option<Problem> {
    let email = &mailbox?.email;
    let is_valid = Sender::parse(email).is_ok() && !email.contains(['<', '>']);
    (!is_valid).then(|| {
        Problem::error("invalid_email", field, "it is no email address: emails to it are kept for an operator")
    })
}

/// A sentence of the worker's: `subscriptions sub-1: billing.day: 32 is …`.
fn unreadable(error: &str) -> Problem {
    // Ids contain neither a colon with a space nor a line break where the worker reads them; if they do, the field is cut wrongly.
    let text = error.split_once(": ").map_or(error, |(_, text)| text);
    let (field, reason) = text.split_once(": ").unwrap_or(("", text));
    let advice = match reason {
        _ if reason.ends_with("expected text, found a date (the BSON type)") => "; write text such as \"2026-06-30\"",
        _ if reason.ends_with("expected text, found an ObjectId") => "; write its 24 digits as text",
        _ if reason.starts_with("expected a date (the BSON type)") => {
            "; write a BSON date, such as new Date(\"2026-07-01T04:00:00Z\")"
        }
        _ if reason.ends_with("found null") || reason == "missing" => "; the field is required",
        _ => "",
    };
    Problem::error("unreadable", without_places(field), format!("{reason}{advice}"))
}

/// `cards[3].expires` → `cards.expires`
fn without_places(field: &str) -> String {
    field
        .split('[')
        .enumerate()
        .map(|(at, part)| if at == 0 { part } else { part.split_once(']').map_or("", |(_, rest)| rest) })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unreadable_fields_are_grouped_without_their_places() {
        let problem = unreadable("accounts acc-1: cards[3].expires: expected text, found a date (the BSON type)");
        assert_eq!(problem.field, "cards.expires");
        assert_eq!(problem.sentence, "expected text, found a date (the BSON type); write text such as \"2026-06-30\"");
        assert_eq!(without_places("a[0][1].b"), "a.b");
    }
}
