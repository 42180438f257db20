//! Checks what exists and what the user may do. Creates nothing.

use super::declaration::{Declaration, Declarer};
use super::error::TopologyError;
use super::object::Object;
use super::{RetryDelay, Topology};
use crate::amqp::connection::{Broker, BrokerError, Link};
use crate::amqp::rights::{self, DeniedRight};
use offramp_domain::command_ref::CommandType;
use offramp_domain::event::CommandRejected;

/// The result of [`Topology::inspect`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Inspection {
    /// Exist with the right arguments.
    pub existing: Vec<String>,
    /// Exist, but could not be checked: the user lacks the permission to configure them.
    pub unchecked: Vec<String>,
    pub missing: Vec<String>,
    /// The rights that a worker needs and this user lacks.
    pub denied: Vec<DeniedRight>,
    /// The version that the broker reports; empty if it reports none.
    pub broker_version: String,
}

impl Topology {
    /// Checks all objects and the worker's rights over its own connection, and creates nothing. AMQP has no way to check a binding.
    ///
    /// # Errors
    /// As [`Self::declare`].
    pub async fn inspect(&self, broker: &Broker) -> Result<Inspection, TopologyError> {
        let link = broker.connect("inspect").await?;
        let mut declaring = Declarer::new(&link);
        let (mut missing, mut denied) = (Vec::new(), Vec::new());
        let mut result = Ok(());
        for object in self.objects().iter().filter(|object| !matches!(object, Object::Binding { .. })) {
            result = match declaring.exists(object).await {
                // Declaring an existing object changes nothing, and reports a difference.
                Ok(true) => declaring.object(object).await,
                Ok(false) => {
                    missing.push(object.label());
                    match object.may_be_declared(&link).await {
                        Ok(may) => {
                            denied.extend((!may).then(|| object.denied("configure", "to create it")));
                            Ok(())
                        }
                        Err(error) => Err(error.into()),
                    }
                }
                Err(error) => Err(error),
            };
            if result.is_err() {
                break;
            }
        }
        if result.is_ok() {
            result = self.denied_on(&link).await.map(|found| denied.extend(found)).map_err(TopologyError::from);
        }
        let Declaration { existing, unchecked, .. } = declaring.declared;
        link.close().await;
        let broker_version = link.broker_version().to_owned();
        result.map(|()| Inspection { existing, unchecked, missing, denied, broker_version })
    }

    /// The rights to consume and to publish that a worker needs and the user lacks.
    async fn denied_on(&self, link: &Link) -> Result<Vec<DeniedRight>, BrokerError> {
        let mut denied = Vec::new();
        for command in CommandType::ALL {
            let queue = self.work_queue(command);
            if !rights::may_read(link, &queue).await? {
                let object = format!("queue '{queue}'");
                denied.push(DeniedRight { permission: "read", object, purpose: "to receive commands" });
            }
        }
        let retry = RetryDelay::ALL.map(|delay| (self.retry_exchange(delay), "retry", "to retry commands"));
        let others = [
            (self.event_exchange(), CommandRejected::KIND, "to publish events"),
            (String::new(), "offramp.check", "dead letters and replies"),
        ];
        for (exchange, key, purpose) in retry.into_iter().chain(others) {
            if !rights::may_write(link, &exchange, key).await? {
                let name = if exchange.is_empty() { "amq.default" } else { &exchange };
                denied.push(DeniedRight { permission: "write", object: format!("exchange '{name}'"), purpose });
            }
        }
        Ok(denied)
    }
}
