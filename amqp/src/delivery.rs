//! Deliveries: their identity and their outcome.

use crate::error::Error;

/// The id of a delivery: unique while unsettled, in its session and direction [2.6.12].
///
/// A serial number (RFC 1982) that wraps, so it has no order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeliveryId(pub(crate) u32);

impl DeliveryId {
    /// The number on the wire, for logs.
    pub fn get(self) -> u32 {
        self.0
    }
}

/// What became of a delivery [3.4]. Owned: effects outlive the frame that brought them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The receiver took it.
    Accepted,
    /// The receiver found it invalid.
    Rejected(Option<Box<Error>>),
    /// Not processed: give it to anybody, delivery-count unchanged.
    Released,
    /// Not processed, with changes.
    Modified {
        /// Count it as a failed delivery.
        delivery_failed: bool,
        /// Do not give it to this link again.
        undeliverable_here: bool,
        /// An encoded AMQP map, to be merged into the message annotations.
        message_annotations: Option<Box<[u8]>>,
    },
}
