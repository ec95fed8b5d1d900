//! Links: identity, what an attach says in owned form, and the arithmetic of credit.
//!
//! ```text
//!  sender      credit  = flow.delivery-count + flow.link-credit - delivery-count      [2.6.7]
//!              send:     delivery-count + 1, credit - 1
//!              drained:  delivery-count + credit, credit = 0, and a flow tells it
//!
//!  receiver    grant:    credit = n; limit = max(limit, delivery-count + n)
//!              transfer: delivery-count + 1, credit - 1; beyond limit: transfer-limit-exceeded
//!              flow:     the sender's delivery-count is the truth; credit shrinks to match
//! ```
//!
//! delivery-count is a serial number. `limit` never goes back: lowering credit with deliveries in
//! flight is legal, and what the peer sent before it heard of it must be taken.
//!
//! Invariants: credit never wraps below zero; a link has at most one unfinished incoming delivery.

use std::time::Instant;

use bytes::Bytes;

use crate::codec;
use crate::connection::state::{LinkEvent, LinkState};
use crate::definitions::{ReceiverSettleMode, Role, SenderSettleMode};
use crate::delivery::{serial_distance, tags::Tag};
use crate::error::{Error, PeerViolation};
use crate::message::Progress;
use crate::performative::Flow;
use crate::session::SessionId;

mod lifetime;
mod terminus;

pub use lifetime::LifetimePolicy;
pub use terminus::{DistributionMode, Filter, LinkSource, LinkTarget};
pub(crate) use terminus::{
    borrow_map, borrow_symbols, own_map, own_symbols, with_source, with_target,
};

/// A link of a connection. Carries a generation: an id of a link that is gone names nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct LinkId {
    pub(crate) index: u32,
    pub(crate) generation: u32,
}

/// What the peer's attach said. Coordinator targets never get here: the engine refuses them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RemoteAttach {
    /// The session it came on.
    pub session: SessionId,
    /// The name: with both containers and the role, the link's identity [2.6.1].
    pub name: String,
    /// *Our* role on this link: `Receiver` where the peer sends.
    pub role: Role,
    /// How the sender settles.
    pub snd_settle_mode: SenderSettleMode,
    /// How the receiver settles. A receiver's own is in force; to a sender that would like `second`
    /// the engine answers `first`.
    pub rcv_settle_mode: ReceiverSettleMode,
    /// The source; none in refusals and look-ups of a durable subscription by name.
    pub source: Option<LinkSource>,
    /// The target; none in refusals.
    pub target: Option<LinkTarget>,
    /// The largest message that the peer takes, in bytes; none where it has no limit.
    pub max_message_size: Option<u64>,
    /// The peer brought unsettled deliveries to resume; the engine answers with none.
    pub unsettled: bool,
    /// Extensions offered.
    pub offered_capabilities: Vec<String>,
    /// Extensions wanted.
    pub desired_capabilities: Vec<String>,
    /// The encoded property map.
    pub properties: Option<Bytes>,
}

/// How a host accepts a link: what the answering attach says [2.6.3].
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct AcceptLink {
    /// The source in force.
    pub source: Option<LinkSource>,
    /// The target in force.
    pub target: Option<LinkTarget>,
    /// Extensions in force.
    pub offered_capabilities: Vec<String>,
    /// An encoded property map.
    pub properties: Option<Bytes>,
}

/// A link that a client asks for.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NewLink {
    /// The name, unique among the container's links of the same role.
    pub name: String,
    /// The source.
    pub source: LinkSource,
    /// The target.
    pub target: LinkTarget,
    /// How the sender settles; by default `mixed`.
    pub snd_settle_mode: Option<SenderSettleMode>,
    /// Extensions wanted.
    pub desired_capabilities: Vec<String>,
    /// An encoded property map.
    pub properties: Option<Bytes>,
}

/// One endpoint of a link.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) state: LinkState,
    /// The index of its session.
    pub(crate) session: u32,
    pub(crate) name: Box<str>,
    pub(crate) role: Role,
    pub(crate) local_handle: u32,
    /// The peer's handle; none before its attach and after its detach.
    pub(crate) remote_handle: Option<u32>,
    pub(crate) snd_settle_mode: SenderSettleMode,
    /// What we state: the receiver's own where we send, else `first`.
    pub(crate) rcv_settle_mode: ReceiverSettleMode,
    /// Our attach is on the wire.
    pub(crate) attach_sent: bool,
    /// The host has not heard of the link yet, or has heard that it is gone.
    pub(crate) silent: bool,
    /// The peer's detach said closed.
    pub(crate) remote_closed: bool,
    /// The peer refused our attach: its detach follows.
    pub(crate) refused: bool,
    pub(crate) delivery_count: u32,
    /// What it would be without any delivery: where it began, and credit that was given back.
    pub(crate) first_count: u32,
    /// How often its name was stolen in a row before it got it, with no delivery in between.
    pub(crate) steals: u8,
    pub(crate) credit: u32,
    /// Sender: the receiver's flow said drain. Receiver: we asked for it.
    pub(crate) drain: bool,
    /// Sender: a drain is not answered yet.
    pub(crate) drain_owed: bool,
    /// Sender: the host has nothing more; the drain is answered when all is written.
    pub(crate) drained: bool,
    /// The peer's attach had an unsettled map.
    pub(crate) resuming: bool,
    /// Receiver: the delivery-count up to which the peer may send.
    pub(crate) limit: u32,
    /// The peer wants a flow in answer, and the link is not accepted yet.
    pub(crate) echo_owed: bool,
    /// A flow about this link is due at the next `poll_transmit`.
    pub(crate) flow_due: bool,
    /// The largest message that the peer takes.
    pub(crate) max_message_size: u64,
    /// Receiver: the unfinished delivery.
    pub(crate) partial: Option<Partial>,
}

/// An incoming delivery of which more transfers follow.
#[derive(Debug)]
pub(crate) struct Partial {
    pub(crate) delivery: u32,
    pub(crate) tag: Tag,
    pub(crate) message_format: u32,
    pub(crate) settled: bool,
    /// It resumes what we do not know: nothing of it is kept.
    pub(crate) ignored: bool,
    /// What the host does not have yet.
    pub(crate) message: Vec<u8>,
    /// Bytes that the host has, in parts.
    pub(crate) given: u64,
    /// Its head has been found whole.
    pub(crate) has_head: bool,
    /// Until so many bytes are here it is not looked for again.
    pub(crate) look_from: usize,
    /// When its first transfer came.
    pub(crate) since: Instant,
}

impl Partial {
    /// Whether the host could begin with what is here, in parts of `part_bytes`. What has come is
    /// looked over again when it is twice as long: all looks together take no longer than two at
    /// the whole, however often this is asked.
    pub(crate) fn may_begin(&mut self, part_bytes: usize) -> bool {
        let held = self.message.len();
        if self.given > 0 || self.has_head {
            return true;
        }
        if held < self.look_from.max(2) {
            return false;
        }
        let first = part_bytes.min(held - 1);
        match Progress::begin(&self.message[..first]) {
            Ok(_) => self.has_head = true,
            Err(error) if error.fault == codec::Fault::Truncated && first < part_bytes => {
                self.look_from = 2 * held;
            }
            // More of it makes it no better.
            Err(_) => self.look_from = usize::MAX,
        }
        self.has_head
    }
}

impl Link {
    pub(crate) fn new(session: u32, name: &str, role: Role, local_handle: u32) -> Self {
        Self {
            state: LinkState::New,
            session,
            name: name.into(),
            role,
            local_handle,
            remote_handle: None,
            snd_settle_mode: SenderSettleMode::Mixed,
            rcv_settle_mode: ReceiverSettleMode::First,
            attach_sent: false,
            silent: true,
            remote_closed: false,
            refused: false,
            delivery_count: 0,
            first_count: 0,
            steals: 0,
            credit: 0,
            drain: false,
            drain_owed: false,
            drained: false,
            resuming: false,
            limit: 0,
            echo_owed: false,
            flow_due: false,
            max_message_size: u64::MAX,
            partial: None,
        }
    }

    /// Moves the link; false, and nothing changed, where its state does not allow the event.
    pub(crate) fn step(&mut self, event: LinkEvent) -> bool {
        match self.state.next(event) {
            Some(next) => {
                self.state = next;
                true
            }
            None => false,
        }
    }

    /// Receiver: the peer's first delivery-count.
    pub(crate) fn start_counting(&mut self, initial_delivery_count: u32) {
        self.delivery_count = initial_delivery_count;
        self.first_count = initial_delivery_count;
        self.limit = initial_delivery_count.wrapping_add(self.credit);
    }

    /// Whether no delivery of it was ever begun.
    pub(crate) fn is_unused(&self) -> bool {
        self.delivery_count == self.first_count
    }

    /// How often its name went from link to link without a delivery, this time included.
    pub(crate) fn steals_with_this(&self) -> u8 {
        if self.is_unused() { self.steals.saturating_add(1) } else { 1 }
    }

    /// Receiver: the peer may send this many from now.
    pub(crate) fn grant(&mut self, credit: u32) {
        // Half the serial space, so that comparisons hold.
        self.credit = credit.min(i32::MAX as u32);
        let until = self.delivery_count.wrapping_add(self.credit);
        if serial_distance(self.limit, until).is_some() {
            self.limit = until;
        }
    }

    /// Receiver: grants once more what an aborted delivery used up; false where a drain wants it
    /// used up, or where credit was lowered with deliveries in flight.
    pub(crate) fn grant_again(&mut self) -> bool {
        let is_whole = self.limit == self.delivery_count.wrapping_add(self.credit);
        let granted = is_whole && !self.drain;
        if granted {
            self.grant(self.credit + 1);
        }
        granted
    }

    /// Receiver: a delivery begins.
    pub(crate) fn count_delivery(&mut self) -> Result<(), PeerViolation> {
        if self.delivery_count == self.limit {
            return Err(PeerViolation::TransferLimitExceeded);
        }
        self.delivery_count = self.delivery_count.wrapping_add(1);
        self.credit = self.credit.saturating_sub(1);
        Ok(())
    }

    /// Receiver: the sender's view of the link. True where a drain that we asked for is over.
    pub(crate) fn sender_flow(&mut self, flow: &Flow<'_>) -> bool {
        if let Some(count) = flow.delivery_count
            && let Some(advanced) = serial_distance(self.delivery_count, count)
        {
            // Beyond the limit there is nothing to give back.
            let advanced = advanced.min(self.limit.wrapping_sub(self.delivery_count));
            self.delivery_count = self.delivery_count.wrapping_add(advanced);
            self.first_count = self.first_count.wrapping_add(advanced);
            self.credit = self.credit.saturating_sub(advanced);
        }
        let drained = self.drain && self.credit == 0;
        if drained {
            self.drain = false;
        }
        drained
    }

    /// Sender: the receiver's view of the link [2.6.7].
    pub(crate) fn receiver_flow(&mut self, flow: &Flow<'_>) {
        if let Some(link_credit) = flow.link_credit {
            // A receiver that has not seen our attach counts from its beginning, which is 0. One
            // that is ahead of us is wrong: the sender's count is the truth.
            let seen = flow.delivery_count.unwrap_or(0);
            let in_flight = serial_distance(seen, self.delivery_count).unwrap_or(0);
            self.credit = link_credit.saturating_sub(in_flight);
        }
        self.drain = flow.drain;
        self.drain_owed = flow.drain;
        self.drained = false;
    }

    /// Sender: gives back what credit is left, as a drain wants it. The flow that tells it has
    /// drain set, as the receiver's had.
    pub(crate) fn give_back_credit(&mut self) {
        self.delivery_count = self.delivery_count.wrapping_add(self.credit);
        self.first_count = self.first_count.wrapping_add(self.credit);
        self.credit = 0;
        self.drain_owed = false;
        self.drained = false;
    }

    /// Sender: a delivery begins.
    pub(crate) fn spend_credit(&mut self) {
        assert!(self.credit > 0, "a delivery without credit");
        self.credit -= 1;
        self.delivery_count = self.delivery_count.wrapping_add(1);
    }
}

/// The error of a link that another attach took over [2.6.1].
pub(crate) fn stolen() -> Error {
    Error::new(
        crate::error::Condition::Stolen,
        "the container attached this link name again, elsewhere",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(role: Role) -> Link {
        Link::new(0, "l", role, 0)
    }

    fn flow(delivery_count: u32, link_credit: u32) -> Flow<'static> {
        Flow {
            delivery_count: Some(delivery_count),
            link_credit: Some(link_credit),
            ..Flow::default()
        }
    }

    #[test]
    fn item_24_credit_is_serial_arithmetic_and_never_negative() {
        let mut sender = link(Role::Sender);
        sender.delivery_count = 0xFFFF_FFF8;
        sender.receiver_flow(&flow(0xFFFF_FFF8, 20));
        for _ in 0..12 {
            sender.spend_credit();
        }
        assert_eq!((sender.delivery_count, sender.credit), (4, 8));
        // The receiver lowers its credit below what is in flight.
        sender.receiver_flow(&flow(0xFFFF_FFF8, 10));
        assert_eq!(sender.credit, 0);
        sender.receiver_flow(&flow(2, 10));
        assert_eq!(sender.credit, 8);
        // A receiver ahead of the sender is wrong, and does no harm.
        sender.receiver_flow(&flow(100, 10));
        assert_eq!(sender.credit, 10);
    }

    #[test]
    fn item_24_lowered_credit_still_takes_what_was_in_flight() {
        let mut receiver = link(Role::Receiver);
        receiver.start_counting(0xFFFF_FFFE);
        receiver.grant(4);
        receiver.grant(1);
        for _ in 0..4 {
            assert_eq!(receiver.count_delivery(), Ok(()));
        }
        assert_eq!(receiver.credit, 0);
        assert_eq!(receiver.count_delivery(), Err(PeerViolation::TransferLimitExceeded));
    }

    #[test]
    fn item_25_a_drain_gives_back_all_credit() {
        let (mut sender, mut receiver) = (link(Role::Sender), link(Role::Receiver));
        receiver.grant(10);
        receiver.drain = true;
        sender.receiver_flow(&Flow { drain: true, ..flow(0, 10) });
        sender.spend_credit();
        receiver.count_delivery().unwrap();
        sender.give_back_credit();
        assert_eq!((sender.delivery_count, sender.credit), (10, 0));
        assert!(receiver.sender_flow(&flow(10, 0)));
        assert_eq!((receiver.delivery_count, receiver.credit, receiver.drain), (10, 0, false));
        assert_eq!(receiver.count_delivery(), Err(PeerViolation::TransferLimitExceeded));
        receiver.grant(1);
        assert_eq!(receiver.count_delivery(), Ok(()));
    }

    #[test]
    fn a_drain_is_no_use_of_a_link() {
        let (mut sender, mut receiver) = (link(Role::Sender), link(Role::Receiver));
        receiver.grant(10);
        receiver.drain = true;
        sender.receiver_flow(&Flow { drain: true, ..flow(0, 10) });
        sender.give_back_credit();
        assert!(receiver.sender_flow(&flow(10, 0)));
        assert!(sender.is_unused() && receiver.is_unused());
        receiver.grant(1);
        sender.receiver_flow(&flow(10, 1));
        sender.spend_credit();
        receiver.count_delivery().unwrap();
        assert!(!sender.is_unused() && !receiver.is_unused());
    }

    #[test]
    fn a_sender_that_claims_more_than_the_limit_is_cut() {
        let mut receiver = link(Role::Receiver);
        receiver.grant(5);
        receiver.sender_flow(&flow(1000, 0));
        assert_eq!((receiver.delivery_count, receiver.credit), (5, 0));
    }
}
