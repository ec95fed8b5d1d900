//! Begin, end, flow and disposition: what concerns a session as a whole.
//!
//! ```text
//!  peer's begin   on a free channel: answered at once, SessionBegun        [2.5.1]
//!                 naming a channel of ours that waits: the answer to `begin`
//!  peer's end     its channel is free at once, ours when the host has answered with `end`;
//!                 a begin that needs our channel meanwhile waits (clients with channel-max 0)
//!  flow           session windows first, then the link's credit; echo is answered by a flow
//!                 without echo, so that two engines never play ping-pong   [2.7.4]
//!  disposition    as many events as there are deliveries, whatever the range claims [2.7.6]
//! ```
//!
//! Invariant: after our end nothing is written for the session, its links are gone, and what the
//! peer sends on it is dropped until its end.

use super::input::Handled;
use super::state::{ConnectionState, LinkState, SessionEvent, SessionState};
use super::{BeginError, Connection, Event};
use crate::definitions::{DeliveryId, Handle, Role};
use crate::delivery::Outcome;
use crate::error::{Error, Fault, LimitExceeded, PeerViolation, Unsupported};
use crate::frame;
use crate::performative::{self, Begin, DeliveryState, Disposition, End, Flow, Performative};
use crate::session::{OUTGOING_WINDOW, Session, SessionBounds, SessionId, set_slot};

/// What a session may always have unsettled, each way: however many there are, each goes on.
const UNSETTLED_SHARE_MIN: u32 = 256;

impl Connection {
    /// The host begins a session.
    pub(super) fn begin_session(&mut self) -> Result<SessionId, BeginError> {
        if self.state != ConnectionState::Opened {
            return Err(BeginError::NotOpen);
        }
        let channel = self.free_channel().ok_or(BeginError::Exhausted)?;
        let session = self.add_session(channel, SessionEvent::LocalBegin);
        self.write_begin(session, None);
        Ok(self.session_id(session))
    }

    pub(super) fn on_begin(&mut self, channel: u16, begin: &Begin<'_>) -> Result<Handled, Fault> {
        if channel > self.config.channel_max {
            return Err(PeerViolation::ChannelBeyondMax.into());
        }
        if self.remote_channels.get(usize::from(channel)).copied().flatten().is_some() {
            return Err(PeerViolation::ChannelMapped.into());
        }
        let session = if let Some(local) = begin.remote_channel {
            let answered = self.local_channels.get(usize::from(local)).copied().flatten();
            let session = answered.ok_or(PeerViolation::ChannelMapped)?;
            let waits = self.sessions.get_mut(session).is_some_and(|session| {
                session.remote_channel.is_none() && session.step(SessionEvent::RemoteBegin)
            });
            if !waits {
                return Err(PeerViolation::ChannelMapped.into());
            }
            session
        } else {
            let Some(local) = self.free_channel() else {
                let host_owes_end =
                    self.sessions.iter().any(|(_, s)| s.state == SessionState::EndReceived);
                if host_owes_end {
                    return Ok(Handled::Stalled);
                }
                return Err(LimitExceeded::Channels.into());
            };
            let session = self.add_session(local, SessionEvent::RemoteBegin);
            self.write_begin(session, Some(channel));
            session
        };
        set_slot(&mut self.remote_channels, usize::from(channel), Some(session));
        let Some(state) = self.sessions.get_mut(session) else { return Ok(Handled::Done) };
        state.remote_channel = Some(channel);
        state.remote_handle_max = begin.handle_max.0;
        state.remote_begin(begin.next_outgoing_id, begin.incoming_window);
        if state.state == SessionState::Mapped {
            self.events.push_back(Event::SessionBegun { session: self.session_id(session) });
        }
        Ok(Handled::Done)
    }

    /// The lowest channel of ours that is free; none where the peer takes no more. Our own
    /// channel-max bounds the sessions whose end the host has not answered yet.
    fn free_channel(&self) -> Option<u16> {
        let free = self.local_channels.iter().position(Option::is_none);
        let channel = u16::try_from(free.unwrap_or(self.local_channels.len())).ok()?;
        (channel <= self.remote_channel_max.min(self.config.channel_max)).then_some(channel)
    }

    fn add_session(&mut self, channel: u16, event: SessionEvent) -> u32 {
        let share = self.unsettled_share();
        self.unsettled_granted += share;
        let bounds = SessionBounds {
            incoming_window_max: self.config.incoming_window.min(share),
            unsettled_incoming_max: self.config.unsettled_incoming_max.min(share),
            unsettled_outgoing_max: self.config.unsettled_outgoing_max.min(share),
            unsettled_share: share,
        };
        let mut session = Session::new(channel, bounds);
        assert!(session.step(event), "a new session may begin");
        let session = self.sessions.insert(session);
        set_slot(&mut self.local_channels, usize::from(channel), Some(session));
        session
    }

    /// What one more session may have unsettled, each way.
    fn unsettled_share(&self) -> u32 {
        let most = self.config.unsettled_incoming_max.max(self.config.unsettled_outgoing_max);
        let left = self.config.unsettled_max.saturating_sub(self.unsettled_granted);
        (left / 2).clamp(UNSETTLED_SHARE_MIN.min(most), most)
    }

    fn write_begin(&mut self, session: u32, remote_channel: Option<u16>) {
        let Some(state) = self.sessions.get(session) else { return };
        let begin = Begin {
            remote_channel,
            next_outgoing_id: state.next_outgoing_id(),
            incoming_window: state.incoming_window(),
            outgoing_window: OUTGOING_WINDOW,
            handle_max: Handle(self.config.handle_max),
            ..Begin::default()
        };
        frame::write(&mut self.out, state.local_channel, &Performative::Begin(begin));
    }

    pub(super) fn on_end(&mut self, session: u32, end: &End<'_>) {
        let id = self.session_id(session);
        let Some(state) = self.sessions.get_mut(session) else { return };
        let error = end.error.as_ref().map(Error::from_wire);
        // A mapped channel has a session that may end: the table allows it.
        let stepped = state.step(SessionEvent::RemoteEnd);
        assert!(stepped, "end on a channel whose session is {:?}", state.state);
        if let Some(channel) = state.remote_channel.take() {
            set_slot(&mut self.remote_channels, usize::from(channel), None);
        }
        if state.state == SessionState::EndReceived {
            self.events.push_back(Event::EndReceived { session: id, error });
            return;
        }
        let silent = state.silent;
        self.remove_session(session);
        if !silent {
            self.events.push_back(Event::Ended { session: id, error });
        }
    }

    /// The host ends a session, or answers the peer's end.
    pub(super) fn end_session(&mut self, session: u32, error: Option<&Error>) {
        self.write_session_dispositions(session);
        let Some(state) = self.sessions.get_mut(session) else { return };
        if !state.step(SessionEvent::LocalEnd) {
            return;
        }
        let (channel, over) = (state.local_channel, state.state == SessionState::Ended);
        let end = End { error: error.map(Error::to_wire) };
        frame::write(&mut self.out, channel, &Performative::End(end));
        self.drop_links(session);
        if over {
            self.remove_session(session);
        }
    }

    /// A fault that ends the session.
    pub(super) fn fail_session(&mut self, session: u32, fault: Fault) {
        let error = fault.to_error();
        let id = self.session_id(session);
        self.end_session(session, Some(&error));
        if let Some(state) = self.sessions.get_mut(session) {
            state.silent = true;
        }
        self.events.push_back(Event::Ended { session: id, error: Some(error) });
    }

    fn drop_links(&mut self, session: u32) {
        let Some(state) = self.sessions.get_mut(session) else { return };
        // At once, and not link by link.
        state.forget_all_deliveries();
        let links: Vec<u32> = state.links().collect();
        for link in links {
            self.remove_link(link);
        }
    }

    fn remove_session(&mut self, session: u32) {
        self.drop_links(session);
        if let Some(state) = self.sessions.remove(session) {
            set_slot(&mut self.local_channels, usize::from(state.local_channel), None);
            self.unsettled_granted -= state.bounds().unsettled_share;
        }
    }

    pub(super) fn on_flow(&mut self, session: u32, flow: &Flow<'_>) -> Result<(), Fault> {
        let Some(state) = self.sessions.get_mut(session) else { return Ok(()) };
        state.remote_flow(flow);
        match flow.handle {
            None => {
                if flow.delivery_count.is_some()
                    || flow.link_credit.is_some()
                    || flow.available.is_some()
                {
                    return Err(PeerViolation::FlowWithoutHandle.into());
                }
                state.flow_due |= flow.echo;
                self.session_due(session);
            }
            Some(handle) => {
                let link =
                    state.link_by_remote_handle(handle.0).ok_or(PeerViolation::HandleUnattached)?;
                self.on_link_flow(link, flow);
            }
        }
        self.continue_unfinished(session, self.config.transmit_bytes_max);
        self.tell_send_ready(session);
        Ok(())
    }

    fn on_link_flow(&mut self, index: u32, flow: &Flow<'_>) {
        let id = self.link_id(index);
        let Some(link) = self.links.get_mut(index) else { return };
        match link.state {
            LinkState::AttachReceived | LinkState::Attached => {}
            // Dropped until the peer's detach.
            LinkState::DetachSent
            | LinkState::New
            | LinkState::AttachSent
            | LinkState::DetachReceived
            | LinkState::Detached => return,
        }
        match link.role {
            Role::Sender => {
                link.receiver_flow(flow);
                // The host hears of it when it has accepted the link.
                if link.state == LinkState::Attached {
                    let (credit, drain) = (link.credit, link.drain);
                    self.events.push_back(Event::CreditChanged { link: id, credit, drain });
                    if drain && credit == 0 {
                        self.answer_drain(index);
                    }
                }
            }
            Role::Receiver => {
                if link.sender_flow(flow) {
                    self.events.push_back(Event::Drained { link: id });
                }
            }
        }
        if flow.echo {
            // Answered when the link is up.
            if let Some(link) = self.links.get_mut(index) {
                link.echo_owed = link.state == LinkState::AttachReceived;
            }
            self.link_flow_due(index);
        }
    }

    pub(super) fn on_disposition(
        &mut self,
        session: u32,
        disposition: &Disposition<'_>,
    ) -> Result<(), Fault> {
        let outcome = match disposition.state {
            Some(DeliveryState::TransactionalState(_) | DeliveryState::Declared(_)) => {
                return Err(Unsupported::TransactionalOutcome.into());
            }
            // Not terminal: how far the receiver got settles nothing [3.4.1].
            None | Some(DeliveryState::Received(_)) => None,
            Some(DeliveryState::Accepted) => Some(Outcome::Accepted),
            Some(DeliveryState::Released) => Some(Outcome::Released),
            Some(DeliveryState::Rejected(rejected)) => {
                Outcome::from_wire(performative::Outcome::Rejected(rejected))
            }
            Some(DeliveryState::Modified(modified)) => {
                Outcome::from_wire(performative::Outcome::Modified(modified))
            }
        };
        let first = disposition.first.0;
        let last = disposition.last.map_or(first, |last| last.0);
        match disposition.role {
            Role::Receiver => {
                self.on_outcomes(session, (first, last), outcome.as_ref(), disposition.settled);
            }
            // The sender has settled what we have not: there is nothing left to answer.
            Role::Sender if disposition.settled => self.on_sender_settled(session, (first, last)),
            Role::Sender => {}
        }
        Ok(())
    }

    /// The receiver of deliveries that we sent tells their outcome. The first outcome counts: each
    /// delivery brings at most one event with it, and at most one with `settled`.
    fn on_outcomes(
        &mut self,
        session: u32,
        (first, last): (u32, u32),
        outcome: Option<&Outcome>,
        settled: bool,
    ) {
        if outcome.is_none() && !settled {
            // No news of any, and a range costs time by the deliveries in it.
            return;
        }
        let Self { sessions, links, events, .. } = self;
        let Some(state) = sessions.get_mut(session) else { return };
        state.outgoing.visit_range(first, last, |id, delivery| {
            let news = if delivery.has_outcome { None } else { outcome };
            if news.is_some() || settled {
                let generation = links.generation(delivery.link);
                delivery.has_outcome |= news.is_some();
                events.push_back(Event::Disposition {
                    link: crate::link::LinkId { index: delivery.link, generation },
                    delivery: DeliveryId(id),
                    outcome: news.cloned(),
                    settled,
                });
            }
            !settled
        });
        if settled {
            self.tell_send_ready(session);
        }
    }

    fn on_sender_settled(&mut self, session: u32, (first, last): (u32, u32)) {
        let Some(state) = self.sessions.get_mut(session) else { return };
        let tags = &mut state.tags;
        state.incoming.visit_range(first, last, |id, delivery| {
            tags.remove(delivery.tag_hash, id);
            false
        });
        state.renew_window();
        self.session_due(session);
    }
}
