//! Deliveries that a lane has taken and must settle: acknowledge, return to the queue, or set aside.

use std::fmt;
use std::sync::Arc;

use lapin::Acker;
use lapin::options::{BasicAckOptions, BasicNackOptions};

use super::message::{Delivery, Received};
use super::session::{AckLost, Session};

/// Deliveries taken together, in the queue's order, and settled together. A batch that is dropped unsettled closes its connection before
/// the next batch, and the broker delivers all of it again.
#[derive(Debug)]
pub struct Batch {
    /// At least one.
    pub deliveries: Vec<Delivery>,
    receipt: Receipt,
}

impl Batch {
    /// A batch of what came over this session, in order. At least one.
    pub(super) fn new(session: Arc<Session>, received: Vec<Received>) -> Self {
        let ackers = received.iter().map(|received| (received.delivery_tag, received.acker.clone())).collect();
        let deliveries = received.into_iter().map(Delivery::from).collect();
        Self { deliveries, receipt: Receipt { session, ackers, settled: false } }
    }

    /// Acknowledges every delivery. Call it only once all effects are stored and every copy is confirmed.
    ///
    /// # Errors
    /// [`AckLost`] when the channel is closed or the ack was not sent within 5 seconds: the broker delivers these messages again, to this
    /// worker or another.
    pub async fn ack(self) -> Result<(), AckLost> {
        self.ack_except(&[]).await.map(drop)
    }

    /// Acknowledges every delivery except those at these indexes, which are set aside: they stay unacknowledged while later batches are
    /// settled. Returns one [`DeliverySetAside`] for each, in the order of the deliveries.
    ///
    /// # Errors
    /// As [`Self::ack`]; then nothing is set aside.
    pub async fn ack_except(mut self, set_aside: &[usize]) -> Result<Vec<DeliverySetAside>, AckLost> {
        self.receipt.ack_except(set_aside).await
    }

    /// Returns every delivery to the queue, to be delivered again at once. The broker may count that against the delivery limit: while a
    /// server is unavailable, hold the batch or suspend the consumer instead.
    pub async fn release(mut self) {
        if let Err(lost) = self.receipt.release().await {
            tracing::debug!(error = %lost, "nothing to release");
        }
    }

    /// Whether it can still be acknowledged, as far as is known before the next heartbeat. If not, it is redelivered.
    #[must_use]
    pub fn is_live(&self) -> bool {
        self.receipt.session.is_live()
    }
}

/// The right to settle a batch once.
struct Receipt {
    session: Arc<Session>,
    /// One for each delivery, with its tag; never empty.
    ackers: Vec<(u64, Acker)>,
    settled: bool,
}

impl Receipt {
    /// Acknowledges what is not set aside, with one frame for everything up to the last delivery. That is exactly this batch only if every
    /// earlier delivery is settled, which is checked: otherwise the ack would lose messages. While anything is set aside, from this batch
    /// or an earlier one, each delivery has its own frame.
    async fn ack_except(&mut self, set_aside: &[usize]) -> Result<Vec<DeliverySetAside>, AckLost> {
        let is_one_frame = self.check()? && set_aside.is_empty();
        let acks = async {
            if is_one_frame {
                return self.last().1.ack(BasicAckOptions { multiple: true }).await;
            }
            for (index, (_, acker)) in self.ackers.iter().enumerate() {
                if !set_aside.contains(&index) && !acker.ack(BasicAckOptions { multiple: false }).await? {
                    return Ok(false);
                }
            }
            Ok(true)
        };
        self.session.send(acks).await?;
        let set_aside = set_aside.iter().map(|&index| {
            let (tag, acker) = self.ackers[index].clone();
            self.session.set_aside().insert(tag);
            DeliverySetAside { session: self.session.clone(), acker, tag, settled: false }
        });
        let set_aside = set_aside.collect();
        self.mark_settled();
        Ok(set_aside)
    }

    async fn release(&mut self) -> Result<(), AckLost> {
        let is_one_frame = self.check()?;
        let released = async {
            if is_one_frame {
                return self.last().1.nack(BasicNackOptions { multiple: true, requeue: true }).await;
            }
            for (_, acker) in &self.ackers {
                if !acker.nack(BasicNackOptions { multiple: false, requeue: true }).await? {
                    return Ok(false);
                }
            }
            Ok(true)
        };
        self.session.send(released).await?;
        self.mark_settled();
        Ok(())
    }

    /// Whether one frame for everything up to the last delivery would cover this batch alone.
    fn check(&self) -> Result<bool, AckLost> {
        if self.session.settled_tag() + 1 != self.ackers[0].0 {
            return Err(AckLost("an earlier batch is not settled".to_owned()));
        }
        Ok(self.session.set_aside().is_empty())
    }

    fn last(&self) -> &(u64, Acker) {
        &self.ackers[self.ackers.len() - 1]
    }

    fn mark_settled(&mut self) {
        self.settled = true;
        self.session.set_settled_tag(self.last().0);
    }
}

impl Drop for Receipt {
    fn drop(&mut self) {
        if !self.settled {
            self.session.fail();
        }
        self.session.release_budget(self.last().0);
    }
}

/// A delivery that is neither acknowledged nor returned while later ones are settled. Dropping it unsettled closes its connection, and
/// the broker delivers again whatever was not acknowledged on it.
pub struct DeliverySetAside {
    session: Arc<Session>,
    acker: Acker,
    tag: u64,
    settled: bool,
}

impl DeliverySetAside {
    /// Whether it can still be acknowledged. If not, it is redelivered.
    #[must_use]
    pub fn is_live(&self) -> bool {
        self.session.is_live()
    }

    /// Acknowledges it.
    ///
    /// # Errors
    /// As [`Batch::ack`].
    pub async fn ack(mut self) -> Result<(), AckLost> {
        self.session.send(self.acker.ack(BasicAckOptions { multiple: false })).await?;
        self.settled = true;
        // Only now: an ack for a whole batch would have covered this delivery before.
        self.session.set_aside().remove(&self.tag);
        Ok(())
    }
}

impl Drop for DeliverySetAside {
    fn drop(&mut self) {
        if !self.settled {
            self.session.fail();
            // A consumer that waits for its next delivery would not notice otherwise.
            self.session.link.cut();
        }
    }
}

impl fmt::Debug for DeliverySetAside {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DeliverySetAside").field("live", &self.is_live()).finish_non_exhaustive()
    }
}

impl fmt::Debug for Receipt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Receipt").field("live", &self.session.is_live()).finish_non_exhaustive()
    }
}
