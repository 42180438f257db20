//! The RabbitMQ adapter. No rule of the domain is decided here, and no other module of the program names `lapin`.
//!
//! Reading order: [`topology`]: every name once, and how the objects are declared; [`connection`]: addresses, one
//! connection and its deadlines; `frame_filter`: incoming frames, made safe for `lapin` and limited in size;
//! [`consumer`]: a lane's supply of deliveries, in batches, rebuilt after any loss; [`message`]: a delivery, and
//! its copies for retry queues and dead letters; [`publisher`]: confirmed publications; [`lane_health`]: what `/readyz`
//! reports about lanes; `queue_counts`: how many messages wait; [`dead_letters`]: what operators do with dead letters.
//!
//! Two rules keep every message. A delivery is acknowledged only after its effects are stored or its copy is
//! *confirmed*. A channel in doubt is discarded, so the broker redelivers whatever was not acknowledged on it.
//! Both can duplicate a message, and neither can lose one; a command's `(source, id)` identifies duplicates.

pub mod batch;
pub mod connection;
pub mod consumer;
pub mod dead_letters;
mod field_value;
mod frame_filter;
pub mod lane_health;
pub mod message;
pub mod publisher;
mod queue_counts;
mod reply_code;
mod rights;
mod session;
pub mod topology;
pub mod url;

pub use batch::{Batch, DeliverySetAside};
pub use connection::{Broker, BrokerError};
pub use consumer::Consumer;
pub use dead_letters::{BulkReport, DeadLetter, DeadLetterScan, DeadLetters, DeadLettersError, HeldDeadLetter};
#[cfg(fuzzing)]
pub use frame_filter::properties::check as check_frames;
pub use lane_health::{LaneHealth, LaneState, LaneStatus};
pub use message::{Delivery, Outgoing};
pub use publisher::{PublishError, Publisher};
pub use queue_counts::{QueueCount, QueueCounts};
pub use rights::DeniedRight;
pub use session::AckLost;
pub use topology::{Declaration, Inspection, RetryDelay, Topology, TopologyError};
pub use url::{BrokerUrls, InvalidBrokerUrl};
