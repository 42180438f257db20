//! The labels of metrics, and every value that each may have.

use offramp_domain::command_ref::CommandType;
use offramp_domain::dead_letter::DeadLetterReason;
use offramp_domain::notification::Template;
use offramp_domain::rejection::RejectionReason;
use strum::{IntoStaticStr, VariantArray};

use super::series::Label;

/// What became of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CommandOutcome {
    /// Its changes are stored.
    Applied,
    /// There was nothing to change.
    Unchanged,
    /// A copy waits in a retry queue.
    Retry,
    Rejected(RejectionReason),
    DeadLetter(DeadLetterReason),
}

impl CommandOutcome {
    const OTHERS: usize = 3;
    const COUNT: usize = Self::OTHERS + RejectionReason::VARIANTS.len() + DeadLetterReason::VARIANTS.len();
    const ALL: [Self; Self::COUNT] = {
        let mut all = [Self::Applied; Self::COUNT];
        all[1] = Self::Unchanged;
        all[2] = Self::Retry;
        let mut index = Self::OTHERS;
        while index < Self::COUNT {
            let reason = index - Self::OTHERS;
            all[index] = if reason < RejectionReason::VARIANTS.len() {
                Self::Rejected(RejectionReason::VARIANTS[reason])
            } else {
                Self::DeadLetter(DeadLetterReason::VARIANTS[reason - RejectionReason::VARIANTS.len()])
            };
            index += 1;
        }
        all
    };
}

impl Label for CommandOutcome {
    const NAME: &'static str = "outcome";
    const VALUES: &'static [Self] = &Self::ALL;

    fn as_str(self) -> &'static str {
        match self {
            Self::Applied => "applied",
            Self::Unchanged => "unchanged",
            Self::Retry => "retry",
            Self::Rejected(reason) => reason.as_str(),
            Self::DeadLetter(reason) => reason.as_str(),
        }
    }
}

/// Declares labels whose values are the names of an enum's variants.
macro_rules! labels {
    ($($(#[$doc:meta])* $label:literal $type:ident { $($(#[$variant_doc:meta])* $variant:ident,)* })*) => {
        $(
            $(#[$doc])*
            #[derive(Clone, Copy, Debug, PartialEq, Eq, IntoStaticStr, VariantArray)]
            #[strum(serialize_all = "snake_case")]
            pub enum $type {
                $($(#[$variant_doc])* $variant,)*
            }

            impl Label for $type {
                const NAME: &'static str = $label;
                const VALUES: &'static [Self] = Self::VARIANTS;

                fn as_str(self) -> &'static str {
                    self.into()
                }
            }
        )*
    };
}

labels! {
    /// The result of an attempt to send an email.
    "outcome" EmailOutcome {
        Sent,
        /// Retried later.
        Deferred,
        /// The mail server wants fewer emails.
        Throttled,
        /// Permanently.
        Rejected,
        /// Because of this worker's name, rights, reputation or quota.
        SenderRejected,
        /// No reply to the whole content.
        InDoubt,
    }

    /// The result of an attempt to publish an event.
    "outcome" EventOutcome {
        Published,
        /// Retried later.
        Deferred,
    }

    /// What the calendar changes.
    "kind" ScheduledChange {
        /// A subscription ended.
        Lapse,
        CardNotice,
        /// Of undecided requests.
        Reminder,
    }

    /// The kind of an outbox entry.
    "kind" EntryKind {
        Email,
        Event,
    }

    /// The state of an outbox entry.
    "state" EntryState {
        /// It will be sent, or retried.
        Pending,
        /// It is kept for an operator.
        Failed,
    }

    /// A collection of the database.
    "collection" DocumentCollection {
        Organizations,
        Accounts,
        Subscriptions,
    }

    /// What is asked of MongoDB.
    "operation" MongodbOperation {
        /// Reads the documents of a batch.
        Load,
        /// Writes the changes of a batch.
        Commit,
        /// Finds and leases due outbox entries.
        Claim,
        /// Records what became of outbox entries, extends or releases leases.
        Mark,
        /// Searches for what the calendar changes.
        Sweep,
        /// Reads the gauges of this page.
        Measure,
        /// Checks that the server works.
        Ping,
    }
}

/// What a connection to RabbitMQ is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConnectionPurpose {
    /// Consumes the queue of a lane.
    Lane(CommandType),
    /// Publishes copies, events and replies.
    Publisher,
    /// Asks how many messages wait in the queues.
    Queues,
}

impl Label for ConnectionPurpose {
    const NAME: &'static str = "purpose";
    const VALUES: &'static [Self] = &{
        let mut all = [Self::Queues; CommandType::ALL.len() + 2];
        all[0] = Self::Publisher;
        let mut index = 0;
        while index < CommandType::ALL.len() {
            all[index + 2] = Self::Lane(CommandType::ALL[index]);
            index += 1;
        }
        all
    };

    fn as_str(self) -> &'static str {
        match self {
            Self::Lane(lane) => lane.as_str(),
            Self::Publisher => "publisher",
            Self::Queues => "queues",
        }
    }
}

impl Label for CommandType {
    const NAME: &'static str = "lane";
    const VALUES: &'static [Self] = &Self::ALL;

    fn as_str(self) -> &'static str {
        Self::as_str(self)
    }
}

impl Label for Template {
    const NAME: &'static str = "template";
    const VALUES: &'static [Self] = &Self::ALL;

    fn as_str(self) -> &'static str {
        Self::as_str(self)
    }
}
