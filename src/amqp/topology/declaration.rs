//! Declares missing objects and checks existing ones, which it never changes.

use std::time::Duration;

use lapin::Channel;
use tokio::time::{Instant, sleep};

use super::Topology;
use super::error::TopologyError;
use super::object::Object;
use crate::amqp::connection::{Broker, BrokerError, Link};
use crate::amqp::reply_code::{ACCESS_REFUSED, NOT_FOUND, PRECONDITION_FAILED};
use crate::backoff::Backoff;

/// The delays, minimum and maximum, between the attempts of [`Topology::declare_patiently`].
const PATIENT_DELAYS: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(5));

/// The result of [`Topology::declare`]. Objects are named as in its errors: `queue 'x'`, `exchange 'x'`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Declaration {
    pub created: Vec<String>,
    /// Existed with the right arguments.
    pub existing: Vec<String>,
    /// Exist, but could not be checked: the user lacks the permission to configure them.
    pub unchecked: Vec<String>,
}

impl Topology {
    /// Declares missing objects and checks existing ones, over its own connection. Never changes an existing object. Any
    /// number of processes may declare at once.
    ///
    /// For a worker that starts: if all queues and exchanges exist, bindings that the broker does not confirm in time are taken to
    /// exist, too. [`Publisher`](crate::amqp::Publisher) goes on declaring those of the work queues, and reports copies for which the binding of
    /// a retry queue is missing.
    ///
    /// # Errors
    /// [`TopologyError::Different`] when an object exists with other arguments, [`TopologyError::Forbidden`] when one is
    /// missing and the user may not create it: both need an operator. [`TopologyError::Broker`] when the broker is
    /// unavailable: retry.
    pub async fn declare(&self, broker: &Broker) -> Result<Declaration, TopologyError> {
        let link = broker.connect("declare").await?;
        let mut declaring = Declarer { bindings: Bindings::Assumable, ..Declarer::new(&link) };
        let attempt = self.declare_with(&mut declaring).await;
        let bindings = declaring.bindings;
        if attempt.is_ok() && bindings == Bindings::Assumed {
            tracing::warn!(
                "RabbitMQ does not confirm bindings; starting anyway, because all queues and exchanges exist"
            );
        }
        if attempt.is_ok() && bindings == Bindings::Assumable {
            link.close().await;
        } else {
            // The next connection leads to another node, if there is one.
            link.cut();
        }
        attempt.map(|()| declaring.declared)
    }

    /// [`Self::declare`] for somebody who waits: tries again for `patience` while RabbitMQ does not answer, loses the connection or
    /// has no leader for a queue. Each failed attempt but the last is passed to `report`. A broker that refuses the first connection is
    /// not waited for.
    ///
    /// # Errors
    /// As [`Self::declare`]; the error of the last attempt.
    pub async fn declare_patiently(
        &self,
        broker: &Broker,
        patience: Duration,
        mut report: impl FnMut(&TopologyError),
    ) -> Result<Declaration, TopologyError> {
        let give_up_at = Instant::now() + patience;
        let mut backoff = Backoff::new(PATIENT_DELAYS);
        let mut created: Vec<String> = Vec::new();
        let mut is_first = true;
        loop {
            let mut declared = Declaration::default();
            let attempt = match broker.connect("declare").await {
                Ok(link) => {
                    let mut declaring = Declarer::new(&link);
                    let attempt = self.declare_with(&mut declaring).await;
                    declared = declaring.declared;
                    match &attempt {
                        Ok(()) => link.close().await,
                        // The next attempt begins with another node, if there is one.
                        Err(_) => link.cut(),
                    }
                    attempt
                }
                Err(error) => Err(error.into()),
            };
            declared.existing.retain(|object| !created.contains(object));
            created.append(&mut declared.created);
            let error = match attempt {
                Ok(()) => return Ok(Declaration { created, ..declared }),
                Err(error) => error,
            };
            let may_pass = match &error {
                TopologyError::Broker(BrokerError::Unreachable(_)) => !is_first,
                TopologyError::Broker(error) => error.may_pass(),
                _ => false,
            };
            if !may_pass || Instant::now() >= give_up_at {
                return Err(error);
            }
            report(&error);
            is_first = false;
            sleep(backoff.next_delay()).await;
        }
    }

    pub(in crate::amqp) async fn declare_on(&self, link: &Link) -> Result<Declaration, TopologyError> {
        let mut declaring = Declarer::new(link);
        self.declare_with(&mut declaring).await?;
        Ok(declaring.declared)
    }

    async fn declare_with(&self, declaring: &mut Declarer<'_>) -> Result<(), TopologyError> {
        // Targets come before the objects that route to them, and the command exchange last: until it exists, publishers
        // get an error and lose no message.
        for object in self.objects() {
            declaring.object(&object).await?;
        }
        Ok(())
    }

    /// Declares both exchanges, if missing, and the bindings of the work queues. The worker would not notice that they are
    /// missing: the broker silently drops messages without a binding. `may_bind` becomes false when the user may not bind,
    /// so that the broker is not asked again. Returns the exchanges that were missing; a binding cannot be checked.
    pub(in crate::amqp) async fn restore_on(
        &self,
        link: &Link,
        may_bind: &mut bool,
    ) -> Result<Vec<String>, TopologyError> {
        let mut declaring = Declarer::new(link);
        for exchange in self.exchanges() {
            // An existing exchange is not declared: without the permission to configure, that would fail each time.
            if !declaring.exists(&exchange).await? {
                declaring.object(&exchange).await?;
            }
        }
        for binding in self.bindings() {
            if !*may_bind {
                break;
            }
            match declaring.attempt(&binding, false).await {
                Err(error) if error.code() == Some(ACCESS_REFUSED) => *may_bind = false,
                result => result?,
            }
        }
        Ok(declaring.declared.created)
    }
}

/// What is done about bindings.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Bindings {
    /// Each must be confirmed.
    Required,
    /// One that gets no reply is taken to exist, unless an object was missing. In a cluster of RabbitMQ 3, no binding can be declared for
    /// a minute after a node was cut off, although all queues work.
    Assumable,
    /// One got no reply, so the broker is not asked again.
    Assumed,
}

pub(super) struct Declarer<'a> {
    link: &'a Link,
    bindings: Bindings,
    /// Replaced after every error: the broker closes the channel then.
    channel: Option<Channel>,
    pub(super) declared: Declaration,
    /// The user was refused to declare an existing object. Others are not tried: the broker would log an error for each.
    may_not_configure: bool,
    /// Other addresses lack what this node lacks.
    is_missing_everywhere: bool,
}

impl<'a> Declarer<'a> {
    pub(super) fn new(link: &'a Link) -> Self {
        Self {
            link,
            bindings: Bindings::Required,
            channel: None,
            declared: Declaration::default(),
            may_not_configure: false,
            is_missing_everywhere: false,
        }
    }
}

impl Declarer<'_> {
    pub(super) async fn object(&mut self, object: &Object) -> Result<(), TopologyError> {
        let label = object.label();
        if let Object::Binding { .. } = object {
            return self.binding(object).await;
        }
        let exists = self.exists(object).await?;
        if exists && self.may_not_configure {
            self.declared.unchecked.push(label);
            return Ok(());
        }
        if !exists && !self.is_missing_everywhere {
            self.expect_missing_everywhere(object).await?;
        }
        match self.attempt(object, false).await {
            Ok(()) if exists => self.declared.existing.push(label),
            Ok(()) => self.declared.created.push(label),
            Err(TopologyError::Broker(BrokerError::Failed { why, code: Some(PRECONDITION_FAILED), .. })) => {
                return Err(TopologyError::Different { object: label, difference: difference(&why) });
            }
            Err(error) if exists && error.code() == Some(ACCESS_REFUSED) => {
                self.may_not_configure = true;
                self.declared.unchecked.push(label);
            }
            Err(TopologyError::Broker(BrokerError::Failed { why, code: Some(ACCESS_REFUSED), .. })) => {
                return Err(TopologyError::Forbidden { object: label, why });
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }

    async fn binding(&mut self, binding: &Object) -> Result<(), TopologyError> {
        let nothing_was_missing = self.declared.created.is_empty();
        if self.bindings == Bindings::Assumed && nothing_was_missing {
            self.declared.unchecked.push(binding.label());
            return Ok(());
        }
        match self.attempt(binding, false).await {
            // A user who may not bind may still consume. Checking the binding is up to whoever declared it.
            Err(error) if error.code() == Some(ACCESS_REFUSED) => {}
            Err(TopologyError::Broker(BrokerError::Deadline { .. }))
                if self.bindings == Bindings::Assumable && nothing_was_missing =>
            {
                self.bindings = Bindings::Assumed;
            }
            result => return result,
        }
        self.declared.unchecked.push(binding.label());
        Ok(())
    }

    /// Fails if another address has this object, which this node lacks, or if fewer than half of all addresses say that they lack it. A node
    /// that has lost its data, or is new, accepts clients before it joins its cluster. What it confirms is lost when it does.
    async fn expect_missing_everywhere(&mut self, object: &Object) -> Result<(), TopologyError> {
        let (mut lacking, all) = (1, self.link.address_count());
        for other in self.link.to_other_addresses("compare").await {
            let found = Declarer::new(&other).attempt(object, true).await;
            other.close().await;
            match found {
                Ok(()) => {
                    self.link.cut();
                    return Err(BrokerError::Stranger { object: object.label() }.into());
                }
                Err(error) => lacking += usize::from(error.code() == Some(NOT_FOUND)),
            }
        }
        if 2 * lacking < all {
            self.link.cut();
            return Err(BrokerError::Unattested { object: object.label(), lacking, all }.into());
        }
        self.is_missing_everywhere = true;
        Ok(())
    }

    pub(super) async fn exists(&mut self, object: &Object) -> Result<bool, TopologyError> {
        match self.attempt(object, true).await {
            Ok(()) => Ok(true),
            Err(error) if error.code() == Some(NOT_FOUND) => Ok(false),
            // RabbitMQ 4.3 asks for the right to configure even here. Whether the object exists stays unknown; its users find out.
            Err(error) if error.code() == Some(ACCESS_REFUSED) => {
                self.may_not_configure = true;
                Ok(true)
            }
            Err(error) => Err(error),
        }
    }

    async fn attempt(&mut self, object: &Object, passive: bool) -> Result<(), TopologyError> {
        let channel = match self.channel.take() {
            Some(channel) => channel,
            None => self.link.channel().await?,
        };
        object.declare(self.link, &channel, passive).await?;
        self.channel = Some(channel);
        Ok(())
    }
}

/// Shortens the broker's "… inequivalent arg 'x-message-ttl' for queue 'q' in vhost '/': received …" to the argument and
/// its values.
fn difference(why: &str) -> String {
    let text = why.split_once("inequivalent arg ").map_or(why, |(_, rest)| rest);
    match (text.split_once(" for "), text.split_once(": ")) {
        (Some((argument, _)), Some((_, values))) if text != why => format!("{argument}, {values}"),
        _ => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_are_extracted_from_the_brokers_error() {
        let sentence = "PRECONDITION_FAILED - inequivalent arg 'x-message-ttl' for queue 'p.retry.5s' in vhost '/': \
                        received '5000' but current is '7000'";
        assert_eq!(difference(sentence), "'x-message-ttl', received '5000' but current is '7000'");
        assert_eq!(difference("PRECONDITION_FAILED - something"), "PRECONDITION_FAILED - something");
    }
}
