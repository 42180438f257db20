//! The email sender: takes emails from the queue and sends them over one SMTP connection.
//!
//! What the server replied decides the result that the marker writes: sent, deferred or failed.

use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::composer::{Composer, about, origin};
use super::database_clock::DatabaseClock;
use super::lease::{self, HeldLease};
use super::mail_server::MailServer;
use super::marker::TriedEmail;
use super::pacer::{Pacer, Turn};
use super::support_log::SupportLog;
use super::unmarked::UnmarkedEmails;
use crate::advice;
use crate::backoff::Backoff;
use crate::metrics;
use crate::metrics::labels::EmailOutcome;
use crate::store::outbox::delivery::{DeferralCause, DeliveryResult, Mark};
use crate::store::outbox::entry::{Content, LeasedEntry};
use crate::store::sent_emails::SentEmailDocument;
use crate::store::{DocumentId, Store};
use crate::traces::Span;
use crate::traces::span::SentEmail;
use offramp_domain::cloud_event::{CloudEvent, FailedEmail};
use offramp_domain::notification::Notification;
use offramp_mail::{ComposedEmail, MailConnection, SendError};

/// How long an idle connection to the mail server is kept.
const IDLE_MAX: Duration = Duration::from_secs(20);
/// The delays, minimum and maximum, before a server that was unavailable is tried again.
const RECONNECT_DELAYS: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(2));
/// How long an email is deferred after a failed attempt, minimum and maximum. See [`Backoff::delay_after`].
const DEFERRAL_DELAYS: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(15 * 60));
/// The same for an email that the mail server rejected because of the sender: an operator has to do something first.
const SENDER_DEFERRAL_DELAYS: (Duration, Duration) = (Duration::from_secs(60), Duration::from_secs(60 * 60));
/// How long such an email is retried, counted from the first rejection.
const SENDER_PATIENCE: TimeDelta = TimeDelta::hours(24);
/// How long an email is deferred that may have been delivered. A server that was only slow has delivered it by then.
const IN_DOUBT_DELAYS: (Duration, Duration) = (Duration::from_secs(15 * 60), Duration::from_secs(15 * 60));
/// How often such an email is retried.
const IN_DOUBT_RETRIES_MAX: i32 = 3;
/// How often a throttled email is tried before it is deferred: these attempts cost the database nothing.
const THROTTLED_ATTEMPTS_MAX: u32 = 3;

/// Sends emails over one connection.
pub(super) struct EmailSender {
    pub(super) emails: async_channel::Receiver<LeasedEntry>,
    pub(super) marks: async_channel::Sender<TriedEmail>,
    pub(super) mail_server: Arc<MailServer>,
    /// Cancelled when emails whose sending has not begun are to be released.
    pub(super) release: CancellationToken,
    pub(super) unmarked: Arc<UnmarkedEmails>,
    pub(super) composer: Arc<Composer>,
    pub(super) connection: MailConnection,
    pub(super) store: Store,
    pub(super) clock: DatabaseClock,
    /// The duration of a lease.
    pub(super) lease: Duration,
    /// `source` of the events.
    pub(super) source: Arc<str>,
    /// Absent: sent emails are not kept.
    pub(super) sent_emails: Option<SentEmailLog>,
}

/// Keeps sent emails for support staff.
#[derive(Clone)]
pub(super) struct SentEmailLog {
    pub(super) log: SupportLog<SentEmailDocument>,
    /// For how long.
    pub(super) kept: Duration,
}

/// One attempt to send an email.
struct Attempt {
    result: DeliveryResult,
    outcome: EmailOutcome,
    /// Why, without the address.
    error: Option<String>,
    /// Whether the server seems to be unavailable; `None` if it was not contacted.
    is_unavailable: Option<bool>,
}

/// The marker is gone, so no result can be recorded: the sender must stop.
struct MarkerGone;

impl EmailSender {
    /// Sends emails until the queue is closed and empty, or its rest is to be released.
    pub(super) async fn run(mut self) {
        let (mail_server, release) = (Arc::clone(&self.mail_server), self.release.clone());
        let mut backoff = Backoff::new(RECONNECT_DELAYS);
        while let Some(permit) = self.unmarked.permit().await {
            // Take the turn first and the email second: an email that waited for its turn could outlast its lease.
            let taking = timeout(IDLE_MAX, take_in_turn(&mail_server.pacer, &self.emails));
            let (turn, leased) = match release.run_until_cancelled(taking).await {
                Some(Ok(Some(taken))) => taken,
                Some(Ok(None)) | None => break,
                Some(Err(_idle)) => {
                    self.connection.quit().await;
                    mail_server.report_end();
                    continue;
                }
            };
            let is_in_turn = if !can_send(&self.unmarked, &self.clock, &release).await {
                drop(turn);
                false
            } else if turn.is_valid() {
                let may_send = self.may_send(&leased);
                if may_send {
                    turn.take();
                }
                may_send
            } else {
                drop(turn);
                self.next_turn(&leased).await
            };
            let marked = if is_in_turn {
                mail_server.begin();
                let marked = self.deliver(leased, permit, &mut backoff).await;
                mail_server.end();
                marked
            } else {
                self.release(&leased, permit).await
            };
            if marked.is_err() {
                break;
            }
        }
        self.connection.quit().await;
    }

    fn may_send(&self, leased: &LeasedEntry) -> bool {
        lease::suffices(leased, lease::reserve(self.lease), &self.clock) && !self.unmarked.contains(&leased.entry.id)
    }

    /// Sends or defers one email; backs off if the server is unavailable.
    async fn deliver(
        &mut self,
        leased: LeasedEntry,
        permit: OwnedSemaphorePermit,
        backoff: &mut Backoff,
    ) -> Result<(), MarkerGone> {
        let Content::Mail(email) = &leased.entry.content else { return Ok(()) };
        let mut attempts = 1;
        let Attempt { result, is_unavailable, error, .. } = loop {
            let mut span = span(&leased, email);
            let attempt = self.attempt(&leased, email).await;
            count(email, attempt.outcome);
            span.set("offramp.outcome", <&str>::from(attempt.outcome));
            if attempt.outcome != EmailOutcome::Sent {
                span.fail(<&str>::from(attempt.outcome));
            }
            drop(span);
            let is_last = attempt.outcome != EmailOutcome::Throttled || attempts == THROTTLED_ATTEMPTS_MAX;
            if is_last || !self.next_turn(&leased).await {
                break attempt;
            }
            attempts += 1;
        };
        if let DeliveryResult::Sent { at } = result {
            self.unmarked.insert(&leased.entry.id);
            if let Some(SentEmailLog { log, kept }) = &self.sent_emails
                && let Some(sent) = SentEmailDocument::new(&leased, at, *kept)
            {
                log.add(sent);
            }
        }
        let announcement = self.announcement(&leased, email, &result, error.as_deref().unwrap_or_default());
        let mark = Mark { announcement, ..Mark::new(&leased, result) };
        let tried = TriedEmail { mark, has_events: leased.has_companions, permit };
        self.marks.send(tried).await.map_err(|_| MarkerGone)?;
        let Some(is_unavailable) = is_unavailable else { return Ok(()) };
        self.mail_server.set_unavailable(is_unavailable);
        if is_unavailable {
            sleep(backoff.next_delay()).await;
        } else {
            *backoff = Backoff::new(RECONNECT_DELAYS);
        }
        Ok(())
    }

    /// What other systems are told of an email that will not be sent.
    fn announcement(
        &self,
        leased: &LeasedEntry,
        email: &Notification,
        result: &DeliveryResult,
        error: &str,
    ) -> Option<CloudEvent> {
        let DeliveryResult::Failed { at, .. } = result else { return None };
        let failed = FailedEmail {
            // An entry whose id is not a UUID has no record either.
            id: Uuid::parse_str(&leased.entry.id).ok()?,
            email,
            error,
            target: leased.document.target(),
            command: leased.entry.command.as_ref(),
            trace: &leased.entry.trace,
        };
        Some(CloudEvent::of_failed_email(&failed, &self.source, *at))
    }

    /// Releases an email, so that any worker can claim it, unless this process has already sent it.
    async fn release(&mut self, leased: &LeasedEntry, permit: OwnedSemaphorePermit) -> Result<(), MarkerGone> {
        if self.unmarked.contains(&leased.entry.id) {
            return Ok(());
        }
        let mark = Mark::new(leased, DeliveryResult::Released { at: self.clock.now() });
        self.marks.send(TriedEmail { mark, has_events: false, permit }).await.map_err(|_| MarkerGone)
    }

    /// Waits for one more turn for an email that was already taken from the queue. Returns whether it may be sent then.
    async fn next_turn(&mut self, leased: &LeasedEntry) -> bool {
        if self.emails.is_closed() {
            return false;
        }
        let patience = lease::remaining(leased, &self.clock).saturating_sub(lease::reserve(self.lease));
        let turn = timeout(patience, self.mail_server.pacer.turn_aside());
        let Some(Ok(turn)) = self.release.run_until_cancelled(turn).await else { return false };
        let may_send = can_send(&self.unmarked, &self.clock, &self.release).await && self.may_send(leased);
        if may_send {
            turn.take();
        }
        may_send
    }

    async fn attempt(&mut self, leased: &LeasedEntry, email: &Notification) -> Attempt {
        let at = self.clock.now();
        let ids = Ids::of(leased, email);
        let composed = match origin(leased).and_then(|origin| self.composer.compose(origin, email, at)) {
            Ok(composed) => composed.about(about(leased)),
            Err(error) => {
                // The error stays out of the log: it may contain an address.
                tracing::error!(
                    entry = ids.entry, document = %ids.document, template = ids.template, role = ids.role,
                    source = ids.source, command = ids.command, trace_id = ids.trace_id,
                    "cannot compose an email; it is kept for an operator ({})",
                    advice::KEPT_ENTRIES
                );
                return Attempt {
                    result: DeliveryResult::Failed { at, error },
                    outcome: EmailOutcome::Rejected,
                    error: Some("the email cannot be composed".to_owned()),
                    is_unavailable: None,
                };
            }
        };
        let began_at = Instant::now();
        let sent = self.send(leased, &composed).await;
        let duration = began_at.elapsed();
        let attempt = match sent {
            Ok(_) => {
                self.mail_server.accepted();
                let at = self.clock.now();
                record_delivery(leased, at);
                Attempt {
                    result: DeliveryResult::Sent { at },
                    outcome: EmailOutcome::Sent,
                    error: None,
                    is_unavailable: Some(false),
                }
            }
            Err(error) => self.failed_attempt(leased, &ids, &error),
        };
        metrics::current().smtp_duration.of((attempt.outcome,)).record(duration);
        attempt
    }

    /// Sends one email. While that takes long, extends the lease, so that no other worker sends the email, too.
    async fn send(&mut self, leased: &LeasedEntry, composed: &ComposedEmail) -> Result<String, SendError> {
        let held = HeldLease::new(&self.store, &self.clock, leased, self.lease);
        let allows_content = || held.allows_content();
        let lost = tokio::select! {
            biased;
            sent = self.connection.send_while(composed, &allows_content) => return sent,
            lost = held.keep_until_lost() => lost,
        };
        Err(self.connection.interrupted(lost))
    }

    /// What an error means for its email: deferred or failed.
    fn failed_attempt(&self, leased: &LeasedEntry, ids: &Ids<'_>, error: &SendError) -> Attempt {
        let attempts = leased.entry.attempts;
        let at = self.clock.now();
        let deferred = |delay: Duration, cause: DeferralCause| DeliveryResult::Deferred {
            until: at + TimeDelta::from_std(delay).unwrap_or(TimeDelta::MAX),
            error: advice::append(error, advice::send_error(error)),
            cause,
        };
        let failed = || DeliveryResult::Failed { at, error: error.to_string() };
        let deferred_as_usual = || deferred(Backoff::delay_after(attempts, DEFERRAL_DELAYS), DeferralCause::Ordinary);
        let (result, outcome, is_unavailable) = match error {
            SendError::Permanent(_) => {
                tracing::error!(
                    entry = ids.entry, document = %ids.document, template = ids.template, role = ids.role,
                    source = ids.source, command = ids.command, trace_id = ids.trace_id, error = error.brief(),
                    "the mail server rejected an email permanently; it is kept for an operator"
                );
                (failed(), EmailOutcome::Rejected, false)
            }
            SendError::Transient(_) => {
                self.mail_server.pacer.deferred();
                (deferred_as_usual(), EmailOutcome::Deferred, false)
            }
            SendError::Throttled(_) => {
                self.mail_server.throttled(error);
                (deferred_as_usual(), EmailOutcome::Throttled, false)
            }
            SendError::Unavailable(_) => {
                self.mail_server.unavailable(error);
                (deferred_as_usual(), EmailOutcome::Deferred, true)
            }
            SendError::HeldBack(_) => {
                tracing::warn!(
                    entry = ids.entry, document = %ids.document, template = ids.template, role = ids.role,
                    source = ids.source, command = ids.command, trace_id = ids.trace_id, error = error.brief(),
                    "an email was not sent, because its lease ran out; it is retried later"
                );
                (deferred_as_usual(), EmailOutcome::Deferred, self.mail_server.is_unavailable())
            }
            SendError::Sender { problem, rejects_connection, .. } => {
                self.mail_server.throttled(error);
                self.mail_server.report(error, *problem);
                let since = leased.entry.sender_rejected_at.map_or(at, bson::DateTime::to_chrono);
                let result = if at - since < SENDER_PATIENCE {
                    let delay = Backoff::delay_after(attempts, SENDER_DEFERRAL_DELAYS);
                    deferred(delay, DeferralCause::SenderRejected { at })
                } else {
                    tracing::error!(
                        entry = ids.entry, document = %ids.document, template = ids.template, role = ids.role,
                        source = ids.source, command = ids.command, trace_id = ids.trace_id, error = error.brief(),
                        "the mail server has rejected the sender of an email for a day; the email is kept for an operator"
                    );
                    failed()
                };
                (result, EmailOutcome::SenderRejected, *rejects_connection)
            }
            SendError::InDoubt(_) => {
                let result = if leased.entry.in_doubt < IN_DOUBT_RETRIES_MAX {
                    tracing::warn!(
                        entry = ids.entry, document = %ids.document, template = ids.template, role = ids.role,
                        source = ids.source, command = ids.command, trace_id = ids.trace_id, error = error.brief(),
                        "an email may have been delivered; it is retried later"
                    );
                    deferred(Backoff::delay_after(0, IN_DOUBT_DELAYS), DeferralCause::InDoubt { at })
                } else {
                    tracing::error!(
                        entry = ids.entry, document = %ids.document, template = ids.template, role = ids.role,
                        source = ids.source, command = ids.command, trace_id = ids.trace_id, error = error.brief(),
                        "an email may have been delivered several times; it is kept for an operator"
                    );
                    failed()
                };
                (result, EmailOutcome::InDoubt, true)
            }
        };
        Attempt { result, outcome, error: Some(error.brief().to_owned()), is_unavailable: Some(is_unavailable) }
    }
}

/// Waits until no mark is late, and the clock may be used. Returns false when emails are to be released instead.
async fn can_send(unmarked: &UnmarkedEmails, clock: &DatabaseClock, release: &CancellationToken) -> bool {
    unmarked.no_late_flush().await;
    release.run_until_cancelled(clock.wait_until_usable()).await.is_some()
}

/// Waits for a turn, then for an email. `None`: the queue is closed and empty.
async fn take_in_turn<'a>(
    pacer: &'a Pacer,
    emails: &async_channel::Receiver<LeasedEntry>,
) -> Option<(Turn<'a>, LeasedEntry)> {
    let turn = pacer.turn().await;
    Some((turn, emails.recv().await.ok()?))
}

/// The span of one attempt, in the trace of what caused the email.
fn span(leased: &LeasedEntry, email: &Notification) -> Span {
    let sent = SentEmail {
        template: email.template.as_str(),
        role: email.recipient.as_str(),
        entry: &leased.entry.id,
        document: &leased.document,
        attempts: leased.entry.attempts,
    };
    Span::send_email(sent, &leased.entry.trace)
}

/// What log lines say about an email. Never an address: the recipient is named by its role.
struct Ids<'a> {
    entry: &'a str,
    document: &'a DocumentId,
    template: &'static str,
    role: &'static str,
    source: Option<&'a str>,
    command: Option<&'a str>,
    trace_id: Option<&'a str>,
}

impl<'a> Ids<'a> {
    fn of(leased: &'a LeasedEntry, email: &Notification) -> Self {
        let command = leased.entry.command.as_ref();
        Self {
            entry: &leased.entry.id,
            document: &leased.document,
            template: email.template.as_str(),
            role: email.recipient.as_str(),
            source: command.map(|command| command.source.as_str()),
            command: command.map(|command| command.id.as_str()),
            trace_id: leased.entry.trace.trace_id(),
        }
    }
}

/// Records the time since the decision. Entries of earlier versions do not know it.
fn record_delivery(leased: &LeasedEntry, sent_at: DateTime<Utc>) {
    if let Some(committed_at) = leased.entry.committed_at {
        let duration = (sent_at - committed_at.to_chrono()).to_std().unwrap_or_default();
        metrics::current().email_delivery.record(duration);
    }
}

fn count(email: &Notification, outcome: EmailOutcome) {
    metrics::current().emails.of((email.template, outcome)).increment(1);
}
