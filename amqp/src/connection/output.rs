//! What is gathered until the host polls: dispositions, flows, heartbeats; and the timers.
//!
//! ```text
//!  poll_transmit   1 rests of messages   2 dispositions   3 flows of links, then of sessions
//!
//!  timer                 runs                       when it is due
//!  handshake_timeout     until both opens           over: HandshakeTimeout
//!  close_timeout         from our close             over: CloseTimeout
//!                        over, words left           nobody reads them: dropped
//!  idle_time_out         while open, not parked     close, over: IdleTimeout            [2.4.5]
//!  heartbeat             while open                 an empty frame, at half of the peer's
//! ```
//!
//! Flows come last, so that their counts include every transfer before them; one flow tells all
//! that changed since the last, so the answers to any number of echoes are one a link.

use std::time::Instant;

use super::state::{ConnectionState, LinkState, SessionState};
use super::{CloseReason, Connection, Event};
use crate::definitions::{DeliveryId, Handle};
use crate::delivery::Outcome;
use crate::error::{Condition, Error};
use crate::frame;
use crate::performative::{Disposition, Flow, Performative};
use crate::shortcuts;

impl Connection {
    /// Writes all that is due.
    pub(super) fn gather_output(&mut self) {
        let was_full = self.out.len() >= self.config.transmit_bytes_max;
        if !self.due_sessions.is_empty() {
            let mut due = std::mem::take(&mut self.due_sessions);
            for (at, &session) in due.iter().enumerate() {
                // One goes on by a frame though others fill the buffer again and again.
                let least = if at == 0 { self.out.len() + 1 } else { 0 };
                let bytes_max = self.config.transmit_bytes_max.max(least);
                self.continue_unfinished(session, bytes_max);
                self.write_session_dispositions(session);
            }
            self.write_link_flows();
            for &session in &due {
                self.write_session_flow(session);
            }
            // A message may have been cut by the buffer's bound again: those stay listed.
            due.retain(|session| self.unlist(*session));
            due.append(&mut self.due_sessions);
            if was_full && !due.is_empty() {
                due.rotate_left(1);
            }
            self.due_sessions = due;
        } else {
            self.write_link_flows();
        }
        if was_full {
            self.tell_all_send_ready();
        }
    }

    /// Takes a session off the list, unless the rest of a message waits for this buffer.
    fn unlist(&mut self, session: u32) -> bool {
        let can_write = self.is_mapped(session);
        let Some(state) = self.sessions.get_mut(session) else { return false };
        let waits = can_write && state.has_to_write() && state.remote_window() > 0;
        state.listed = waits;
        waits
    }

    /// The buffer was full, and is about to be taken.
    fn tell_all_send_ready(&mut self) {
        let ids: Vec<u32> = self.sessions.iter().map(|(index, _)| index).collect();
        for index in ids {
            let session = self.session_id(index);
            if self.is_mapped(index) {
                self.events.push_back(Event::SendReady { session });
            }
        }
    }

    /// A session has something to write when polled.
    pub(super) fn session_due(&mut self, session: u32) {
        let Some(state) = self.sessions.get_mut(session) else { return };
        // Of a session that the peer has ended nothing more is written but its end.
        let writes_on = state.has_to_write()
            && state.remote_window() > 0
            && state.state == SessionState::Mapped;
        let due = state.flow_due || state.settling.is_some() || writes_on;
        if due && !state.listed {
            state.listed = true;
            self.due_sessions.push(session);
        }
    }

    /// A link's flow is written when polled.
    pub(super) fn link_flow_due(&mut self, index: u32) {
        let Some(link) = self.links.get_mut(index) else { return };
        if link.state == LinkState::Attached && !link.flow_due && !link.refused {
            link.flow_due = true;
            self.due_links.push(index);
        }
    }

    fn write_link_flows(&mut self) {
        let due = std::mem::take(&mut self.due_links);
        for &index in &due {
            let Some(link) = self.links.get_mut(index) else { continue };
            if !std::mem::take(&mut link.flow_due) || link.state != LinkState::Attached {
                continue;
            }
            let session_index = link.session;
            let about_link = Flow {
                handle: Some(Handle(link.local_handle)),
                delivery_count: Some(link.delivery_count),
                link_credit: Some(link.credit),
                drain: link.drain,
                ..Flow::default()
            };
            if !self.is_mapped(session_index) {
                continue;
            }
            let Some(session) = self.sessions.get_mut(session_index) else { continue };
            let windows = session.flow();
            let flow = Flow {
                next_incoming_id: windows.next_incoming_id,
                incoming_window: windows.incoming_window,
                next_outgoing_id: windows.next_outgoing_id,
                outgoing_window: windows.outgoing_window,
                ..about_link
            };
            frame::write(&mut self.out, session.local_channel, &Performative::Flow(flow));
        }
        self.due_links = due;
        self.due_links.clear();
    }

    fn write_session_flow(&mut self, index: u32) {
        if !self.is_mapped(index) {
            return;
        }
        let Some(session) = self.sessions.get_mut(index) else { return };
        if session.flow_due {
            let flow = session.flow();
            frame::write(&mut self.out, session.local_channel, &Performative::Flow(flow));
        }
    }

    /// Writes the pending dispositions of all sessions.
    pub(super) fn write_dispositions(&mut self) {
        for at in 0..self.due_sessions.len() {
            self.write_session_dispositions(self.due_sessions[at]);
        }
    }

    /// Writes a session's pending disposition. Also after the peer's end or close, which wait for
    /// an answer of ours just so that settlements come first.
    pub(super) fn write_session_dispositions(&mut self, session: u32) {
        let Some(state) = self.sessions.get_mut(session) else { return };
        let Some(settling) = state.settling.take() else { return };
        match state.state {
            SessionState::Mapped | SessionState::EndReceived => {}
            SessionState::Unmapped
            | SessionState::BeginSent
            | SessionState::EndSent
            | SessionState::Ended => return,
        }
        let channel = state.local_channel;
        if settling.outcome == Some(Outcome::Accepted) {
            shortcuts::accepted(channel, settling.role, settling.first, settling.last)
                .write(0, &mut self.out);
            return;
        }
        let disposition = Disposition {
            role: settling.role,
            first: DeliveryId(settling.first),
            last: (settling.last != settling.first).then_some(DeliveryId(settling.last)),
            settled: true,
            state: settling.outcome.as_ref().map(|outcome| outcome.to_wire().into()),
            batchable: false,
        };
        frame::write(&mut self.out, channel, &Performative::Disposition(disposition));
    }

    pub(super) fn next_timer(&self) -> Option<Instant> {
        if self.state.is_handshake() || self.state == ConnectionState::CloseSent {
            return Some(self.deadline);
        }
        if self.state == ConnectionState::Closed {
            return (!self.out.is_empty()).then_some(self.deadline);
        }
        [self.idle_deadline(), self.heartbeat_deadline()].into_iter().flatten().min()
    }

    /// When the peer has been silent for too long. While parked, or while the host withholds its
    /// reads, it is not listened to.
    fn idle_deadline(&self) -> Option<Instant> {
        let silence = self.config.idle_time_out?;
        (!self.is_parked() && !self.reads_withheld).then(|| self.last_received + silence)
    }

    fn heartbeat_deadline(&self) -> Option<Instant> {
        Some(self.last_sent + self.remote_idle_time_out? / 2)
    }

    pub(super) fn check_timers(&mut self) {
        let now = self.now;
        match self.state {
            ConnectionState::HeaderWait
            | ConnectionState::SaslWait
            | ConnectionState::SaslPending
            | ConnectionState::AmqpHeaderWait
            | ConnectionState::OpenWait
            | ConnectionState::OpenReceived => {
                if now >= self.deadline {
                    self.finish(CloseReason::HandshakeTimeout);
                }
            }
            ConnectionState::CloseSent => {
                if now >= self.deadline {
                    self.finish(CloseReason::CloseTimeout);
                }
            }
            ConnectionState::Opened | ConnectionState::CloseReceived => {
                if self.idle_deadline().is_some_and(|deadline| now >= deadline) {
                    self.close_idle();
                } else if self.heartbeat_deadline().is_some_and(|deadline| now >= deadline) {
                    if self.out.is_empty() {
                        frame::write_heartbeat(&mut self.out);
                    }
                    // Once an interval, even if the host cannot write at the moment.
                    self.last_sent = now;
                }
            }
            ConnectionState::Closed => {
                if now >= self.deadline {
                    self.out = Vec::new();
                }
            }
        }
    }

    /// The peer is taken for dead; should it live, it learns why.
    fn close_idle(&mut self) {
        let error = Error::new(
            Condition::ResourceLimitExceeded,
            "idle-time-out: nothing was received for too long",
        );
        self.write_close(Some(&error));
        self.finish(CloseReason::IdleTimeout);
    }
}
