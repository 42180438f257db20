//! Everything that touches RabbitMQ (contract §1 and §7); no rule of the domain is decided here, and no other module
//! names `lapin`.
//!
//! Reading order: [`topology`] — every name once, and how the objects are declared; [`connection`] — addresses, one
//! connection with its deadlines; `guard` — what comes in, made harmless for `lapin`, and not too much of it at once;
//! [`consumer`] — a lane's supply of deliveries, in batches, rebuilt after any loss; [`delivery`] — what came in, and
//! its copies for retry queues and dead letters; [`publisher`] — what goes out, confirmed; [`health`] — what `/readyz`
//! says about the lanes; [`dead_letters`] — what operators do with what was given up.
//!
//! Two rules keep every message: a delivery is acknowledged only after its effects are stored, or after its copy was
//! *confirmed*; and a channel in doubt is thrown away, which makes the broker deliver again whatever it still holds.
//! Both can make a message arrive twice, neither can lose one; the command's `(source, id)` settles repeats.

pub mod batch;
pub mod connection;
pub mod consumer;
pub mod dead_letters;
mod field_value;
mod frame_filter;
pub mod lane_health;
pub mod message;
pub mod publisher;
mod reply_code;
pub mod session;
pub mod topology;
pub mod url;

pub use batch::{Batch, DeliverySetAside};
pub use connection::{Broker, BrokerError};
pub use consumer::Consumer;
pub use dead_letters::{DeadLetters, DeadLettersError, Held, Letter, Scan};
#[cfg(fuzzing)]
pub use frame_filter::properties::check as check_frames;
pub use lane_health::{LaneHealth, LaneState, LaneStatus};
pub use message::{Delivery, Outgoing};
pub use publisher::{PublishError, Publisher};
pub use session::AckLost;
pub use topology::{Declared, Inspected, RetryDelay, Topology, TopologyError};
pub use url::{BrokerUrls, InvalidBrokerUrl};
