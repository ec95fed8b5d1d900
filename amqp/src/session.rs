//! Sessions: windows, handles and the unsettled deliveries of both directions.
//!
//! ```text
//!  incoming   next-incoming-id -->|<-- incoming-window -->|   frames the peer may still send
//!  outgoing   next-outgoing-id -->|<-- remote-window  --->|   frames we may still send  [2.5.6]
//!
//!  the window follows memory:  incoming-window + unsettled incoming <= unsettled_incoming_max
//! ```
//!
//! A transfer frame moves at most one from the window to the unsettled; settling and a flow move
//! it back. So the bound on unsettled deliveries holds against any peer, whatever credit the host
//! grants: beyond the window is a window-violation.
//!
//! Windows count frames, credit counts deliveries. Ids are serial numbers and begin at 0. A window
//! that was granted is never lowered, since the frames may be on their way.

use bytes::Bytes;

use crate::connection::state::{SessionEvent, SessionState};
use crate::definitions::Role;
use crate::delivery::tags::{Tag, TagHash, TagTable};
use crate::delivery::{Outcome, Unsettled, serial_distance};
use crate::error::PeerViolation;
use crate::performative::Flow;

/// A session of a connection. Carries a generation: an id of a session that is gone names nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct SessionId {
    pub(crate) index: u32,
    pub(crate) generation: u32,
}

/// What we say about frames that we may have in flight: we keep none for a resend.
pub(crate) const OUTGOING_WINDOW: u32 = i32::MAX as u32;

/// One endpoint of a session.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) state: SessionState,
    pub(crate) local_channel: u16,
    /// The peer's channel; none before its begin and after its end.
    pub(crate) remote_channel: Option<u16>,
    /// The host has heard that the session is gone.
    pub(crate) silent: bool,

    next_incoming_id: u32,
    incoming_window: u32,
    bounds: SessionBounds,
    next_outgoing_id: u32,
    remote_window: u32,

    /// The peer's highest handle.
    pub(crate) remote_handle_max: u32,
    /// Links by our handle.
    pub(crate) local_handles: Vec<Option<u32>>,
    /// Links by the peer's handle.
    pub(crate) remote_handles: Vec<Option<u32>>,

    /// Deliveries that the peer sent and the host has not settled.
    pub(crate) incoming: Unsettled<Incoming>,
    /// The tags of `incoming`.
    pub(crate) tags: TagTable,
    last_incoming: Option<u32>,
    /// Deliveries that we sent and the peer has not settled.
    pub(crate) outgoing: Unsettled<Outgoing>,
    pub(crate) next_delivery: u32,
    /// A message of which the window let only a part pass.
    pub(crate) unfinished: Option<Unfinished>,

    /// A disposition that may still grow.
    pub(crate) settling: Option<Settling>,
    /// A flow of the session's own is due.
    pub(crate) flow_due: bool,
    /// Is in the connection's list of sessions with something due.
    pub(crate) listed: bool,
    /// `send` was refused for a reason that `SendReady` ends.
    pub(crate) blocked: bool,
}

/// A delivery that the peer sent.
#[derive(Debug)]
pub(crate) struct Incoming {
    pub(crate) link: u32,
    pub(crate) tag_hash: TagHash,
    pub(crate) tag: Tag,
}

/// A delivery that we sent.
#[derive(Debug)]
pub(crate) struct Outgoing {
    pub(crate) link: u32,
    /// The host has heard the outcome.
    pub(crate) has_outcome: bool,
}

/// The rest of a message whose first transfers are written.
#[derive(Debug)]
pub(crate) struct Unfinished {
    pub(crate) link: u32,
    pub(crate) delivery: u32,
    pub(crate) settled: bool,
    /// What is not written yet.
    pub(crate) message: Bytes,
    /// What the host does after that.
    pub(crate) end: End,
}

/// What comes behind the bytes of a message that the engine has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// Nothing: they are its last.
    Here,
    /// More, which the host gives when they are written.
    Open,
    /// Nothing, and what was written is nothing either: the host has given the message up.
    Aborted,
}

/// Neighbouring deliveries that were settled the same way.
#[derive(Debug)]
pub(crate) struct Settling {
    pub(crate) role: Role,
    pub(crate) first: u32,
    pub(crate) last: u32,
    pub(crate) outcome: Option<Outcome>,
}

impl Settling {
    /// Takes one more delivery in; false where it is no neighbour or went another way.
    #[inline(always)]
    pub(crate) fn grow(&mut self, role: Role, delivery: u32, outcome: Option<&Outcome>) -> bool {
        let is_same = match (&self.outcome, outcome) {
            (Some(Outcome::Accepted), Some(Outcome::Accepted)) => true,
            (one, other) => one.as_ref() == other,
        };
        if self.role != role || !is_same {
            return false;
        }
        if delivery == self.last.wrapping_add(1) {
            self.last = delivery;
            return true;
        }
        if delivery == self.first.wrapping_sub(1) {
            self.first = delivery;
            return true;
        }
        false
    }
}

/// What a new session may use.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SessionBounds {
    pub(crate) incoming_window_max: u32,
    pub(crate) unsettled_incoming_max: u32,
    pub(crate) unsettled_outgoing_max: u32,
    /// What of the connection's bound on unsettled deliveries is its.
    pub(crate) unsettled_share: u32,
}

impl Session {
    pub(crate) fn new(local_channel: u16, bounds: SessionBounds) -> Self {
        Self {
            state: SessionState::Unmapped,
            local_channel,
            remote_channel: None,
            silent: false,
            next_incoming_id: 0,
            incoming_window: bounds.incoming_window_max.min(bounds.unsettled_incoming_max),
            bounds,
            next_outgoing_id: 0,
            remote_window: 0,
            remote_handle_max: 0,
            local_handles: Vec::new(),
            remote_handles: Vec::new(),
            incoming: Unsettled::new(),
            tags: TagTable::new(),
            last_incoming: None,
            outgoing: Unsettled::new(),
            next_delivery: 0,
            unfinished: None,
            settling: None,
            flow_due: false,
            listed: false,
            blocked: false,
        }
    }

    /// Whether one more delivery may be unsettled.
    #[inline]
    pub(crate) fn has_unsettled_room(&self) -> bool {
        self.outgoing.len() < self.bounds.unsettled_outgoing_max as usize
    }

    /// What it may use.
    pub(crate) fn bounds(&self) -> SessionBounds {
        self.bounds
    }

    /// Whether some of a message is not written, though perhaps only its end.
    pub(crate) fn has_to_write(&self) -> bool {
        let waits = |rest: &Unfinished| !rest.message.is_empty() || rest.end != End::Open;
        self.unfinished.as_ref().is_some_and(waits)
    }

    /// Moves the session; false, and nothing changed, where its state does not allow the event.
    pub(crate) fn step(&mut self, event: SessionEvent) -> bool {
        match self.state.next(event) {
            Some(next) => {
                self.state = next;
                true
            }
            None => false,
        }
    }

    /// The peer's begin.
    pub(crate) fn remote_begin(&mut self, next_outgoing_id: u32, incoming_window: u32) {
        self.next_incoming_id = next_outgoing_id;
        self.remote_window = incoming_window;
    }

    pub(crate) fn incoming_window(&self) -> u32 {
        self.incoming_window
    }

    pub(crate) fn next_outgoing_id(&self) -> u32 {
        self.next_outgoing_id
    }

    /// Frames that we may send.
    pub(crate) fn remote_window(&self) -> u32 {
        self.remote_window
    }

    /// A transfer frame came in [2.5.6].
    #[inline]
    pub(crate) fn count_incoming_frame(&mut self) -> Result<(), PeerViolation> {
        self.incoming_window =
            self.incoming_window.checked_sub(1).ok_or(PeerViolation::WindowViolation)?;
        self.next_incoming_id = self.next_incoming_id.wrapping_add(1);
        self.renew_window();
        Ok(())
    }

    /// A transfer frame goes out.
    pub(crate) fn count_outgoing_frame(&mut self) {
        assert!(self.remote_window > 0, "a transfer beyond the peer's window");
        self.remote_window -= 1;
        self.next_outgoing_id = self.next_outgoing_id.wrapping_add(1);
    }

    /// The peer's view of both windows [2.5.6].
    pub(crate) fn remote_flow(&mut self, flow: &Flow<'_>) {
        // A peer that has not seen our begin counts from its beginning, which is 0.
        let seen = flow.next_incoming_id.unwrap_or(0);
        let in_flight = serial_distance(seen, self.next_outgoing_id).unwrap_or(0);
        self.remote_window = flow.incoming_window.saturating_sub(in_flight);
    }

    /// A delivery begins: ids rise, by serial arithmetic.
    #[inline]
    pub(crate) fn count_incoming_delivery(&mut self, id: u32) -> Result<(), PeerViolation> {
        if let Some(last) = self.last_incoming
            && (id == last || serial_distance(last, id).is_none())
        {
            return Err(PeerViolation::DeliveryIdOrder);
        }
        self.last_incoming = Some(id);
        Ok(())
    }

    /// Asks for a flow once half of the window is used, or memory is free again after it was not.
    #[inline]
    pub(crate) fn renew_window(&mut self) {
        if self.incoming_window <= self.bounds.incoming_window_max / 2 {
            self.renew_low_window();
        }
    }

    fn renew_low_window(&mut self) {
        let target = self.window_target();
        if target > self.incoming_window {
            let gain = target - self.incoming_window;
            self.flow_due |=
                self.incoming_window == 0 || gain >= self.bounds.incoming_window_max.div_ceil(4);
        }
    }

    /// The flow that tells the windows as they are from now on. Whoever takes it sends it.
    pub(crate) fn flow(&mut self) -> Flow<'static> {
        self.flow_due = false;
        self.incoming_window = self.incoming_window.max(self.window_target());
        assert!(
            self.incoming_window as usize + self.incoming.len()
                <= self.bounds.unsettled_incoming_max as usize,
            "the window outgrew the bound on unsettled deliveries"
        );
        Flow {
            next_incoming_id: Some(self.next_incoming_id),
            incoming_window: self.incoming_window,
            next_outgoing_id: self.next_outgoing_id,
            outgoing_window: OUTGOING_WINDOW,
            ..Flow::default()
        }
    }

    fn window_target(&self) -> u32 {
        let unsettled = u32::try_from(self.incoming.len()).expect("bounded by a u32");
        self.bounds
            .incoming_window_max
            .min(self.bounds.unsettled_incoming_max.saturating_sub(unsettled))
    }

    /// The link that a handle of the peer's stands for.
    pub(crate) fn link_by_remote_handle(&self, handle: u32) -> Option<u32> {
        *self.remote_handles.get(handle as usize)?
    }

    /// The lowest free handle of ours; none where the peer takes no more, or we don't.
    pub(crate) fn free_local_handle(&self, handle_max: u32) -> Option<u32> {
        let free = self.local_handles.iter().position(Option::is_none);
        let handle = u32::try_from(free.unwrap_or(self.local_handles.len())).ok()?;
        (handle <= self.remote_handle_max.min(handle_max)).then_some(handle)
    }

    /// All its links.
    pub(crate) fn links(&self) -> impl Iterator<Item = u32> {
        self.local_handles.iter().copied().flatten()
    }

    /// Gives back what the tables take far beyond what is in them.
    pub(crate) fn trim(&mut self) {
        self.incoming.trim();
        self.outgoing.trim();
        self.tags.trim();
    }

    /// Forgets the unsettled deliveries of all links.
    pub(crate) fn forget_all_deliveries(&mut self) {
        self.incoming = Unsettled::new();
        self.outgoing = Unsettled::new();
        self.tags = TagTable::new();
        self.unfinished = None;
        self.renew_window();
    }

    /// Forgets the unsettled deliveries of a link; costs time by those of all links.
    pub(crate) fn forget_deliveries(&mut self, link: u32) {
        let tags = &mut self.tags;
        self.incoming.retain(|id, delivery| {
            let stays = delivery.link != link;
            if !stays {
                tags.remove(delivery.tag_hash, id);
            }
            stays
        });
        self.outgoing.retain(|_, delivery| delivery.link != link);
        if self.unfinished.as_ref().is_some_and(|unfinished| unfinished.link == link) {
            self.unfinished = None;
        }
        self.renew_window();
    }
}

/// Puts a value into a table that grows to its index.
pub(crate) fn set_slot(table: &mut Vec<Option<u32>>, index: usize, value: Option<u32>) {
    if table.len() <= index {
        table.resize(index + 1, None);
    }
    table[index] = value;
    while let Some(None) = table.last() {
        table.pop();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn session(incoming_window_max: u32, unsettled_incoming_max: u32) -> Session {
        let bounds = SessionBounds {
            incoming_window_max,
            unsettled_incoming_max,
            unsettled_outgoing_max: unsettled_incoming_max,
            unsettled_share: unsettled_incoming_max,
        };
        Session::new(0, bounds)
    }

    fn delivery() -> Incoming {
        Incoming { link: 0, tag_hash: TagHash::new(0), tag: Tag::new(b"t").unwrap() }
    }

    #[test]
    fn item_14_ids_and_windows_wrap() {
        let mut session = session(100, 1000);
        session.remote_begin(0xFFFF_FFF0, 40);
        session.next_outgoing_id = 0xFFFF_FFF0;
        for _ in 0..32 {
            session.count_incoming_frame().unwrap();
            session.count_outgoing_frame();
        }
        let flow = session.flow();
        assert_eq!(flow.next_incoming_id, Some(0x10));
        assert_eq!((flow.next_outgoing_id, session.remote_window()), (0x10, 8));
        let seen = |next_incoming_id, incoming_window| Flow {
            next_incoming_id: Some(next_incoming_id),
            incoming_window,
            ..Flow::default()
        };
        session.remote_flow(&seen(0xFFFF_FFFA, 40));
        assert_eq!(session.remote_window(), 18);
        for id in [0xFFFF_FFFF, 0, 5] {
            assert_eq!(session.count_incoming_delivery(id), Ok(()));
        }
        for id in [5, 4, 0xFFFF_FFFF] {
            assert_eq!(session.count_incoming_delivery(id), Err(PeerViolation::DeliveryIdOrder));
        }
    }

    #[test]
    fn item_16_the_window_is_never_negative_and_renews_itself() {
        let mut session = session(8, 1000);
        session.remote_begin(0, 10);
        session.next_outgoing_id = 20;
        let flow = Flow { next_incoming_id: Some(0), incoming_window: 10, ..Flow::default() };
        session.remote_flow(&flow);
        assert_eq!(session.remote_window(), 0);
        for frame in 1..=8 {
            assert_eq!(session.flow_due, frame > 4);
            session.count_incoming_frame().unwrap();
        }
        assert_eq!(session.count_incoming_frame(), Err(PeerViolation::WindowViolation));
        assert_eq!(session.flow().incoming_window, 8);
    }

    #[test]
    fn unsettled_deliveries_are_bounded_by_the_window() {
        let mut session = session(8, 10);
        for id in 0..10 {
            if session.flow_due {
                session.flow();
            }
            session.count_incoming_frame().unwrap();
            assert!(session.incoming.push(id, delivery()));
        }
        assert_eq!(session.flow().incoming_window, 0);
        assert_eq!(session.count_incoming_frame(), Err(PeerViolation::WindowViolation));
        assert!(session.incoming.remove_if(4, |_| Some(())).is_some());
        session.renew_window();
        assert!(session.flow_due);
        assert_eq!(session.flow().incoming_window, 1);
    }

    #[test]
    fn settling_grows_at_both_ends() {
        let outcome = Some(Outcome::Accepted);
        let mut settling = Settling {
            role: Role::Receiver,
            first: u32::MAX,
            last: u32::MAX,
            outcome: outcome.clone(),
        };
        assert!(settling.grow(Role::Receiver, 0, outcome.as_ref()));
        assert!(settling.grow(Role::Receiver, u32::MAX - 1, outcome.as_ref()));
        assert!(!settling.grow(Role::Receiver, 2, outcome.as_ref()));
        assert!(!settling.grow(Role::Sender, 1, outcome.as_ref()));
        assert!(!settling.grow(Role::Receiver, 1, Some(&Outcome::Released)));
        assert_eq!((settling.first, settling.last), (u32::MAX - 1, 0));
    }
}
