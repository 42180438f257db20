//! What happened, in the order of time.

use chrono::{DateTime, NaiveDate, Utc};
use serde::Serialize;

use offramp_domain::account::NoticeKind;
use offramp_domain::actor::Actor;
use offramp_domain::calendar::YearMonth;
use offramp_domain::card::PaymentCard;
use offramp_domain::command_ref::CommandRef;
use offramp_domain::failure_code::FailureCode;
use offramp_domain::money::Amount;
use offramp_domain::subscription::{Channel, RequestDecision, Status};

use super::fields::utc;
use super::unsent::Unsent;
use crate::advice;
use crate::store::documents::{
    CardNoticeDocument, HistoryDocument, NotificationDocument, PaymentFailureDocument, RequestDocument,
};
use crate::store::rejected_commands::{RejectedCommandDocument, RejectedOf};
use crate::store::search::SearchError;
use crate::store::{Store, StoreError};

/// How many rejected commands a timeline has, the newest.
pub const REJECTED_MAX: usize = 100;

/// What happened at an instant.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TimelineEntry {
    pub at: DateTime<Utc>,
    #[serde(flatten)]
    pub what: Happening,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Happening {
    /// The status or the last day of access changed.
    Change(Change),
    /// The client sent the newest cancellation request.
    Request(Request),
    /// The newest cancellation request was closed.
    Decision(Decision),
    /// A payment failed.
    PaymentFailure(PaymentFailure),
    /// A command was rejected, and changed nothing.
    RejectedCommand(RejectedCommand),
    /// A notice about a saved card was given.
    CardNotice(CardNotice),
    /// An email was decided.
    Email(Email),
}

/// A change of a subscription's status or last day of access.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Change {
    pub from: Status,
    pub to: Status,
    /// The last day of access after it.
    pub ends_on: Option<NaiveDate>,
    /// Who acted. Absent for a scheduled change.
    pub actor: Option<Actor>,
    /// How a cancellation was made.
    pub via: Option<Channel>,
    /// Why, in the words of who acted. An administrator's reason is internal.
    pub reason: Option<String>,
    /// What the administrator said about a request.
    pub note: Option<String>,
    /// The command that caused it. Absent for a scheduled change.
    pub command: Option<CommandRef>,
}

/// A client's cancellation request.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Request {
    pub actor: Option<Actor>,
    pub reason: Option<String>,
}

/// How a cancellation request was closed.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Decision {
    pub decision: RequestDecision,
    /// What the administrator said about it.
    pub note: Option<String>,
}

/// A failed payment. A subscription has the newest 20.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PaymentFailure {
    pub invoice_id: String,
    pub amount: Amount,
    pub card: PaymentCard,
    /// The number of the attempt, from 1.
    pub attempt: u32,
    /// Absent: there is no further attempt.
    pub next_attempt_on: Option<NaiveDate>,
    /// The processor's words. Clients must not see them.
    pub failure_message: Option<String>,
    /// Absent: declined, or recorded by an earlier version.
    pub failure_code: Option<FailureCode>,
    /// Absent where an earlier version recorded it.
    pub command: Option<CommandRef>,
}

/// A rejected command.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RejectedCommand {
    pub command: CommandRef,
    /// The subscription that it names.
    pub subscription_id: Option<String>,
    /// Why, for programs: such as `already_ended`.
    pub reason: String,
    /// Why, in a sentence.
    pub detail: String,
    pub actor: Option<Actor>,
}

/// A notice about a saved card that expires or has expired.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct CardNotice {
    pub card_id: String,
    /// The card's expiry month.
    pub expires: YearMonth,
    /// Which of the notices.
    pub notice: NoticeKind,
}

/// An email.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Email {
    /// Its id, as `offramp outbox` takes it.
    pub id: String,
    pub template: String,
    /// `organization_contact` or `account_manager`.
    pub role: String,
    /// Its address. Absent for a removed subscription.
    pub to: Option<String>,
    /// Its language.
    pub locale: String,
    pub message_id: String,
    pub state: EmailState,
    /// When the mail server accepted it.
    pub sent_at: Option<DateTime<Utc>>,
    /// When it failed permanently.
    pub failed_at: Option<DateTime<Utc>>,
    /// When it is tried next.
    pub due: Option<DateTime<Utc>>,
    /// Why the newest attempt failed.
    pub error: Option<String>,
}

/// What became of an email.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum EmailState {
    /// It is sent when it is due.
    Waiting,
    /// The mail server has accepted it.
    Sent,
    /// It failed permanently, and is kept for an operator.
    Failed,
    /// It failed permanently, and an operator dropped it.
    Dropped,
}

/// Sorts a timeline. Entries of the same instant keep their order.
pub(super) fn sorted(mut timeline: Vec<TimelineEntry>) -> Vec<TimelineEntry> {
    timeline.sort_by_key(|entry| entry.at);
    timeline
}

pub(super) fn change(entry: HistoryDocument) -> Option<TimelineEntry> {
    let HistoryDocument { at, command, actor, from, to, ends_on, via, reason, note } = entry;
    let [reason, note] = [reason, note].map(|text| text.map(|text| text.to_string()));
    let change = Change { from, to, ends_on, actor, via, reason, note, command };
    Some(TimelineEntry { at: utc(at)?, what: Happening::Change(change) })
}

/// A request, and how it was closed.
pub(super) fn request(request: RequestDocument) -> impl Iterator<Item = TimelineEntry> {
    let RequestDocument { requested_at, actor, reason, decided_at, decision, note } = request;
    let sent = Request { actor, reason: reason.map(|reason| reason.to_string()) };
    let sent = utc(requested_at).map(|at| TimelineEntry { at, what: Happening::Request(sent) });
    let closed = decided_at.and_then(utc).zip(decision).map(|(at, decision)| {
        let note = note.map(|note| note.to_string());
        TimelineEntry { at, what: Happening::Decision(Decision { decision, note }) }
    });
    sent.into_iter().chain(closed)
}

pub(super) fn payment_failure(failure: PaymentFailureDocument) -> Option<TimelineEntry> {
    let at = utc(failure.at)?;
    let failure = PaymentFailure {
        invoice_id: failure.invoice_id.to_string(),
        amount: failure.amount,
        card: failure.card,
        attempt: failure.attempt,
        next_attempt_on: failure.next_attempt_on,
        failure_message: failure.failure_message.map(|message| message.to_string()),
        failure_code: failure.failure_code,
        command: failure.command,
    };
    Some(TimelineEntry { at, what: Happening::PaymentFailure(failure) })
}

pub(super) fn card_notice(notice: CardNoticeDocument) -> Option<TimelineEntry> {
    let CardNoticeDocument { card_id, expires, notice, at } = notice;
    let notice = CardNotice { card_id: card_id.to_string(), expires, notice };
    Some(TimelineEntry { at: utc(at)?, what: Happening::CardNotice(notice) })
}

/// An email, at the time of its decision. Earlier versions recorded only the time of sending.
pub(super) fn email_entry(record: NotificationDocument, unsent: &[Unsent]) -> Option<TimelineEntry> {
    let decided_at = record.at.and_then(utc);
    let email = email(record, unsent);
    let at = decided_at.or(email.sent_at).or(email.failed_at)?;
    Some(TimelineEntry { at, what: Happening::Email(email) })
}

/// An email by its record, and by its entry among those that are not sent.
pub(super) fn email(record: NotificationDocument, unsent: &[Unsent]) -> Email {
    let NotificationDocument { id, template, to, role, locale, message_id, sent_at, failed_at, error, .. } = record;
    let [sent_at, failed_at] = [sent_at, failed_at].map(|instant| instant.and_then(utc));
    let waiting = unsent.iter().find(|unsent| unsent.id == id);
    let state = match waiting {
        _ if sent_at.is_some() => EmailState::Sent,
        Some(Unsent { due: None, .. }) => EmailState::Failed,
        None if failed_at.is_some() => EmailState::Dropped,
        Some(_) | None => EmailState::Waiting,
    };
    let due = waiting.and_then(|waiting| waiting.due);
    let error = error.or_else(|| waiting?.error.clone());
    Email { id, template, role, to, locale, message_id, state, sent_at, failed_at, due, error }
}

pub(super) fn rejected_command(rejected: RejectedCommandDocument) -> Option<TimelineEntry> {
    let at = utc(rejected.at)?;
    let RejectedCommandDocument { command, subscription_id, reason, detail, actor, .. } = rejected;
    let rejected = RejectedCommand { command, subscription_id, reason, detail, actor };
    Some(TimelineEntry { at, what: Happening::RejectedCommand(rejected) })
}

/// The newest rejected commands, and a sentence if they cannot be read: a right or an index is missing.
pub(super) async fn rejected_commands(
    store: &Store,
    of: RejectedOf<'_>,
) -> Result<(Vec<TimelineEntry>, Option<String>), StoreError> {
    match store.rejected_commands(of, REJECTED_MAX).await {
        Ok(rejected) => Ok((rejected.into_iter().filter_map(rejected_command).collect(), None)),
        Err(SearchError::Store(StoreError::Denied(reason))) => {
            Ok((Vec::new(), Some(format!("rejected commands cannot be shown: {reason}"))))
        }
        Err(error @ SearchError::MissingIndex(_)) => {
            let sentence = format!("rejected commands cannot be shown: {error} ({})", advice::MISSING_INDEXES);
            Ok((Vec::new(), Some(sentence)))
        }
        Err(SearchError::Store(error)) => Err(error),
    }
}
