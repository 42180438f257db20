//! What all pages work with.

use std::sync::Arc;

use offramp::amqp::{Broker, Topology};
use offramp::store::Store;
use offramp::worker::composer::Composer;

use super::access::Access;
use super::changes::Changes;
use super::dead_letters::board::Board;
use super::watch::Watch;

pub struct App {
    pub allow_changes: bool,
    pub access: Access,
    pub store: Store,
    pub broker: Broker,
    pub topology: Topology,
    /// Shows emails as the worker composes them.
    pub composer: Composer,
    pub changes: Changes,
    pub watch: Arc<Watch>,
    pub dead_letters: Arc<Board>,
}

impl App {
    pub fn new(
        allow_changes: bool,
        access: Access,
        store: Store,
        (broker, topology): (Broker, Topology),
        composer: Composer,
    ) -> Self {
        Self {
            allow_changes,
            access,
            store,
            dead_letters: Arc::new(Board::new(broker.clone(), topology.clone())),
            broker,
            topology,
            composer,
            changes: Changes::default(),
            watch: Arc::default(),
        }
    }
}
