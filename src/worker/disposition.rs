//! What becomes of a message: acknowledged, rejected, retried or dead-lettered. A table of results and attempts, without I/O.

use super::engine::Processed;
use crate::amqp::{Delivery, RetryDelay};
use crate::metrics::labels::CommandOutcome;
use offramp_domain::command::Command;
use offramp_domain::dead_letter::DeadLetterReason;
use offramp_domain::unit_of_work::{RejectedTask, Task, TaskOutcome};

/// How often a command waits for something that may still arrive: 5 s, 30 s, 2 min.
const WAITS_MAX: u32 = 3;
/// How often a failed command is retried.
const RETRIES_MAX: u32 = 5;

/// The error of a message whose body is not the whole envelope.
const BINARY_MODE: &str = "a CloudEvent in binary mode, with its attributes in headers; publish it in structured mode: the whole envelope as the body";

/// What becomes of a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Disposition {
    /// Acknowledged: its effects are stored.
    Applied,
    /// Acknowledged: there was nothing to do.
    Unchanged,
    /// Acknowledged: an earlier delivery was applied.
    Repeated,
    /// Acknowledged once its `command.rejected` is published.
    Reject(RejectedTask),
    /// A copy waits in a retry queue.
    Retry(RetryDelay),
    /// A copy goes to the dead letters, for an operator.
    DeadLetter { reason: DeadLetterReason, error: String },
}

impl Disposition {
    /// The disposition of a processed command that was retried `attempt` times before. `may_wait` for something that may still arrive,
    /// unless its sender does not want that.
    pub(super) fn of(processed: Processed, attempt: u32, may_wait: bool) -> Self {
        let retry = |max: u32| if attempt < max { RetryDelay::for_attempt(attempt) } else { None };
        let wait = || retry(WAITS_MAX).filter(|_| may_wait);
        match processed {
            Processed::Decided(TaskOutcome::Applied) => Self::Applied,
            Processed::Decided(TaskOutcome::Unchanged) => Self::Unchanged,
            Processed::Decided(TaskOutcome::Repeated) => Self::Repeated,
            Processed::Decided(TaskOutcome::Rejected(rejected)) => {
                match wait().filter(|_| rejected.rejection.reason.is_transient()) {
                    Some(delay) => Self::Retry(delay),
                    None => Self::Reject(rejected),
                }
            }
            Processed::Decided(TaskOutcome::Missing(missing)) => wait().map_or_else(
                || Self::DeadLetter { reason: DeadLetterReason::from(&missing), error: missing.to_string() },
                Self::Retry,
            ),
            Processed::Decided(TaskOutcome::Corrupt(error)) => {
                Self::DeadLetter { reason: DeadLetterReason::CorruptDocument, error }
            }
            Processed::Failed(error) => {
                retry(RETRIES_MAX).map_or(Self::DeadLetter { reason: DeadLetterReason::Exhausted, error }, Self::Retry)
            }
        }
    }

    /// How it is counted.
    pub(super) fn outcome(&self) -> CommandOutcome {
        match self {
            Self::Applied => CommandOutcome::Applied,
            Self::Unchanged | Self::Repeated => CommandOutcome::Unchanged,
            Self::Reject(rejected) => CommandOutcome::Rejected(rejected.rejection.reason),
            Self::Retry(_) => CommandOutcome::Retry,
            Self::DeadLetter { reason, .. } => CommandOutcome::DeadLetter(*reason),
        }
    }
}

/// The task of a message, or its disposition if it has none.
pub(super) fn parse(delivery: &Delivery) -> Result<Task, Disposition> {
    if delivery.exceeded_redeliveries() {
        let error = format!(
            "redelivered {} times without being acknowledged; processing it may crash the worker",
            delivery.delivery_count
        );
        return Err(Disposition::DeadLetter { reason: DeadLetterReason::Exhausted, error });
    }
    let command = Command::parse(&delivery.body);
    command.map(|command| Task::Command(Command { trace: delivery.trace_context(), ..command })).map_err(|invalid| {
        let reason = DeadLetterReason::from(&invalid);
        let error = invalid.to_string();
        // A message may have the headers of binary mode and the whole envelope.
        let is_binary = error == "missing field `specversion`" && delivery.is_binary_cloud_event();
        Disposition::DeadLetter { reason, error: if is_binary { BINARY_MODE.to_owned() } else { error } }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use offramp_domain::rejection::RejectionReason;
    use offramp_domain::unit_of_work::MissingReference;

    fn rejected(reason: RejectionReason) -> Processed {
        let rejection = reason.because("Because.");
        Processed::Decided(TaskOutcome::Rejected(RejectedTask { rejection, account_id: None }))
    }

    /// Checks the retries of a result, and what follows them.
    #[track_caller]
    fn check(processed: &Processed, delays: &[RetryDelay], last: &Disposition) {
        for (attempt, delay) in (0..).zip(delays) {
            let disposition = Disposition::of(processed.clone(), attempt, true);
            assert_eq!(disposition, Disposition::Retry(*delay), "attempt {attempt}");
        }
        let attempts = u32::try_from(delays.len()).unwrap();
        for attempt in [attempts, attempts + 1, u32::MAX] {
            assert_eq!(&Disposition::of(processed.clone(), attempt, true), last, "attempt {attempt}");
        }
    }

    #[test]
    fn applied_and_unchanged_commands_are_acknowledged() {
        check(&Processed::Decided(TaskOutcome::Applied), &[], &Disposition::Applied);
        check(&Processed::Decided(TaskOutcome::Unchanged), &[], &Disposition::Unchanged);
    }

    #[test]
    fn rejections_stand_at_once_unless_a_dependency_may_still_arrive() {
        use RejectionReason as Reason;
        let reject = |processed: &Processed| match processed {
            Processed::Decided(TaskOutcome::Rejected(rejected)) => Disposition::Reject(rejected.clone()),
            _ => unreachable!(),
        };
        for reason in [Reason::Forbidden, Reason::WrongOrganization, Reason::AlreadyEnded, Reason::ExpiresEarlier] {
            let processed = rejected(reason);
            check(&processed, &[], &reject(&processed));
        }
        for reason in [Reason::NoPendingRequest, Reason::SubscriptionNotFound, Reason::AccountNotFound] {
            let processed = rejected(reason);
            check(&processed, &[RetryDelay::S5, RetryDelay::S30, RetryDelay::M2], &reject(&processed));
        }
    }

    #[test]
    fn missing_documents_are_waited_for_and_then_dead_lettered() {
        let by = || "subscriptions sub-1".to_owned();
        let organization = MissingReference::Organization { organization_id: "org-1".try_into().unwrap(), by: by() };
        let account = MissingReference::Account { account_id: "acc-1".try_into().unwrap(), by: by() };
        for (missing, reason) in
            [(organization, DeadLetterReason::MissingOrganization), (account, DeadLetterReason::MissingAccount)]
        {
            let processed = Processed::Decided(TaskOutcome::Missing(missing));
            let Disposition::DeadLetter { error, .. } = Disposition::of(processed.clone(), 3, true) else { panic!() };
            let last = Disposition::DeadLetter { reason, error };
            check(&processed, &[RetryDelay::S5, RetryDelay::S30, RetryDelay::M2], &last);
        }
    }

    #[test]
    fn a_command_that_does_not_wait_is_rejected_at_once_and_retried_after_failures() {
        let processed = rejected(RejectionReason::SubscriptionNotFound);
        assert!(matches!(Disposition::of(processed, 0, false), Disposition::Reject(_)));
        let missing = MissingReference::Account { account_id: "acc-1".try_into().unwrap(), by: String::new() };
        let processed = Processed::Decided(TaskOutcome::Missing(missing));
        assert!(matches!(Disposition::of(processed, 0, false), Disposition::DeadLetter { .. }));
        let failed = Processed::Failed("Because.".to_owned());
        assert_eq!(Disposition::of(failed, 0, false), Disposition::Retry(RetryDelay::S5));
    }

    #[test]
    fn failures_are_retried_five_times_and_then_dead_lettered() {
        let processed = Processed::Failed("Because.".to_owned());
        let last = Disposition::DeadLetter { reason: DeadLetterReason::Exhausted, error: "Because.".to_owned() };
        check(&processed, &RetryDelay::ALL, &last);
    }

    #[test]
    fn corrupt_documents_are_dead_lettered_at_once() {
        let last = Disposition::DeadLetter { reason: DeadLetterReason::CorruptDocument, error: "Because.".to_owned() };
        check(&Processed::Decided(TaskOutcome::Corrupt("Because.".to_owned())), &[], &last);
    }
}
