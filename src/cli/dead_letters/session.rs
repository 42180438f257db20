//! The connection that every one of these commands needs.

use offramp::amqp::{Broker, DeadLetter, DeadLetters, Topology};

use super::groups::Groups;
use crate::cli::settings::BrokerArgs;
use crate::cli::terminal::progress;

/// What the progress bar counts.
pub const PROGRESS_UNIT: &str = "dead letters";

pub struct Session {
    pub broker: Broker,
    pub topology: Topology,
    pub letters: DeadLetters,
}

impl Session {
    pub async fn open(arguments: &BrokerArgs) -> anyhow::Result<Self> {
        let (broker, topology) = (arguments.broker("offramp dead-letters"), arguments.topology());
        let letters = DeadLetters::open(&broker, &topology).await?;
        Ok(Self { broker, topology, letters })
    }

    /// Groups the selected dead letters.
    pub async fn group(&self, is_selected: impl Fn(&DeadLetter) -> bool) -> anyhow::Result<Groups> {
        let mut groups = Groups::default();
        let mut scan = self.letters.scan().await?;
        let bar = progress(scan.total(), PROGRESS_UNIT);
        while let Some(held) = scan.next().await? {
            bar.inc(1);
            groups.add(&held.letter, is_selected(&held.letter));
        }
        bar.finish_and_clear();
        scan.finish().await?;
        Ok(groups)
    }
}
