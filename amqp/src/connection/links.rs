//! Attach and detach: how links come and go.
//!
//! ```text
//!  peer's attach   answers ours          Attached, or refused: its detach follows
//!                  of a live link's name  stealing: the old one is detached, `stolen` [2.6.1];
//!                          refused where two ends do nothing else
//!                  of one whose detach the host owes: it waits, so that answers keep their order
//!                  else                   AttachReceived -> accept_link | refuse_link
//!  refusal         attach with null terminus and the modes set, then detach, closed [2.6.3]
//!  peer's detach   its handle is free at once, ours when the host has answered with `detach`
//! ```
//!
//! Invariants: a link is in `local_handles` from first to last, in `remote_handles` from the
//! peer's attach to its detach, in `names` until it is stolen or gone; a link that the engine
//! ended is `silent` and its id names nothing, while its slot waits for the peer's detach.

use super::input::Handled;
use super::state::{LinkEvent, LinkState};
use super::{BeginError, Connection, Event};
use crate::codec::{Map, Multiple};
use crate::definitions::{Handle, Role, SenderSettleMode};
use crate::error::{Error, Fault, LimitExceeded, PeerViolation, Unsupported};
use crate::frame;
use crate::link::{
    AcceptLink, Link, LinkId, LinkSource, LinkTarget, NewLink, RemoteAttach, borrow_map,
    borrow_symbols, own_map, own_symbols, stolen, with_source, with_target,
};
use crate::performative::{AnySource, AnyTarget, Attach, Detach, Performative};
use crate::session::{SessionId, set_slot};

/// What an attach of ours says beyond the link itself.
struct AttachTerms<'a> {
    source: Option<&'a LinkSource>,
    target: Option<&'a LinkTarget>,
    offered_capabilities: &'a [String],
    desired_capabilities: &'a [String],
    properties: Option<&'a [u8]>,
}

/// How often a name may be stolen in a row without a delivery in between: two ends that answer a
/// theft with one would go on for ever.
pub(crate) const STEALS_MAX: u8 = 16;

/// What the names of a connection's links may hold, in bytes. One name may fill a frame, and there
/// may be as many links as channels times handles.
const LINK_NAME_BYTES_MAX: usize = 8 << 20;

const REFUSAL: AttachTerms<'static> = AttachTerms {
    source: None,
    target: None,
    offered_capabilities: &[],
    desired_capabilities: &[],
    properties: None,
};

impl Connection {
    /// The host asks for a link.
    pub(super) fn attach(
        &mut self,
        session: SessionId,
        new: NewLink,
        role: Role,
    ) -> Result<LinkId, BeginError> {
        let is_live = self.sessions.is_live(session.index, session.generation);
        if !is_live || !self.is_mapped(session.index) {
            return Err(BeginError::NotOpen);
        }
        if self.names.contains_key(&name_key(&new.name, role)) {
            return Err(BeginError::NameInUse);
        }
        if self.links.len() >= self.config.links_max {
            return Err(BeginError::Exhausted);
        }
        let index = self.add_link(session.index, &new.name, role).ok_or(BeginError::Exhausted)?;
        if let Some(link) = self.links.get_mut(index) {
            link.snd_settle_mode = new.snd_settle_mode.unwrap_or(SenderSettleMode::Mixed);
            link.silent = false;
            assert!(link.step(LinkEvent::LocalAttach), "a new link may be attached");
        }
        let terms = AttachTerms {
            source: Some(&new.source),
            target: Some(&new.target),
            offered_capabilities: &[],
            desired_capabilities: &new.desired_capabilities,
            properties: new.properties.as_deref(),
        };
        if !self.write_attach(index, &terms) {
            self.remove_link(index);
            return Err(BeginError::TooLong);
        }
        Ok(self.link_id(index))
    }

    pub(super) fn on_attach(
        &mut self,
        session: u32,
        attach: &Attach<'_>,
    ) -> Result<Handled, Fault> {
        if attach.handle.0 > self.config.handle_max {
            return Err(PeerViolation::HandleBeyondMax.into());
        }
        let Some(state) = self.sessions.get(session) else { return Ok(Handled::Done) };
        if state.link_by_remote_handle(attach.handle.0).is_some() {
            // The handle's own link is not at fault [2.8.17].
            return Err(PeerViolation::HandleInUse.into());
        }
        let role = match attach.role {
            Role::Sender => Role::Receiver,
            Role::Receiver => Role::Sender,
        };
        let known = self.names.get(&name_key(attach.name, role)).copied();
        let mut steals = 0;
        if let Some(known) = known
            && let Some(link) = self.links.get(known)
        {
            match link.state {
                LinkState::AttachSent | LinkState::DetachSent
                    if link.session == session && link.remote_handle.is_none() =>
                {
                    return self.on_attach_answer(known, attach).map(|()| Handled::Done);
                }
                LinkState::DetachReceived => return Ok(Handled::Stalled),
                LinkState::AttachReceived | LinkState::Attached | LinkState::AttachSent => {
                    steals = link.steals_with_this();
                    // Not closed: what the link stands for goes over to the new one.
                    if steals <= STEALS_MAX {
                        self.detach_with_error(known, false, stolen());
                        if !self.is_mapped(session) {
                            // It had to go with the link.
                            return Ok(Handled::Done);
                        }
                    }
                }
                LinkState::New | LinkState::DetachSent | LinkState::Detached => {}
            }
        }
        if self.links.len() >= self.config.links_max {
            // Those whose detach the host owes make room.
            let owes = |link: &Link| link.state == LinkState::DetachReceived;
            if self.links.iter().any(|(_, link)| owes(link)) {
                return Ok(Handled::Stalled);
            }
            return Err(LimitExceeded::Links.into());
        }
        if self.link_name_bytes + attach.name.len() > LINK_NAME_BYTES_MAX {
            return Err(LimitExceeded::LinkNames.into());
        }
        let Some(index) = self.add_link(session, attach.name, role) else {
            let host_owes_detach = self.sessions.get(session).is_some_and(|session| {
                let mut states = session.links().filter_map(|link| self.links.get(link));
                states.any(|link| link.state == LinkState::DetachReceived)
            });
            if host_owes_detach {
                return Ok(Handled::Stalled);
            }
            return Err(LimitExceeded::Handles.into());
        };
        self.adopt_attach(index, attach);
        if let (Some(known), true) = (known, steals > STEALS_MAX) {
            // The name stays with the link that has it.
            self.names.insert(name_key(attach.name, role), known);
            return Err(LimitExceeded::Steals.into());
        }
        if let Some(link) = self.links.get_mut(index) {
            link.steals = steals;
        }
        self.announce_attach(index, attach).map(|()| Handled::Done)
    }

    /// The peer answers an attach of ours; we may have detached meanwhile.
    fn on_attach_answer(&mut self, index: u32, attach: &Attach<'_>) -> Result<(), Fault> {
        self.adopt_attach(index, attach);
        let id = self.link_id(index);
        let Some(link) = self.links.get_mut(index) else { return Ok(()) };
        if link.state != LinkState::Attached {
            return Ok(());
        }
        let terminus = match link.role {
            Role::Sender => attach.target.is_some(),
            Role::Receiver => attach.source.is_some(),
        };
        if !terminus {
            link.refused = true;
            return Ok(());
        }
        check_unsettled_map(link.role, attach)?;
        if link.role == Role::Receiver {
            let first = attach.initial_delivery_count;
            link.start_counting(first.ok_or(PeerViolation::InitialDeliveryCountMissing)?);
            let granted = link.credit > 0 || link.drain;
            if granted {
                self.link_flow_due(index);
            }
        }
        let attach = Box::new(self.remote_attach(index, attach));
        self.events.push_back(Event::Attached { link: id, attach });
        Ok(())
    }

    /// A link that the peer asks for: refused here where nobody could accept it.
    fn announce_attach(&mut self, index: u32, attach: &Attach<'_>) -> Result<(), Fault> {
        match attach.target {
            Some(AnyTarget::Coordinator(_)) => return Err(Unsupported::Coordinator.into()),
            Some(AnyTarget::Other(_)) => return Err(Unsupported::TargetKind.into()),
            Some(AnyTarget::Target(_)) | None => {}
        }
        if let Some(AnySource::Other(_)) = attach.source {
            return Err(Unsupported::SourceKind.into());
        }
        let Some(link) = self.links.get_mut(index) else { return Ok(()) };
        check_unsettled_map(link.role, attach)?;
        if link.role == Role::Receiver {
            let first = attach.initial_delivery_count;
            link.start_counting(first.ok_or(PeerViolation::InitialDeliveryCountMissing)?);
        }
        link.silent = false;
        let attach = Box::new(self.remote_attach(index, attach));
        self.events.push_back(Event::AttachReceived { link: self.link_id(index), attach });
        Ok(())
    }

    /// What of the peer's attach the engine itself obeys.
    fn adopt_attach(&mut self, index: u32, attach: &Attach<'_>) {
        let Some(link) = self.links.get_mut(index) else { return };
        assert!(link.step(LinkEvent::RemoteAttach), "an attach for a link that waits for one");
        link.remote_handle = Some(attach.handle.0);
        if link.role == Role::Receiver || link.state == LinkState::AttachReceived {
            // The sender says, the receiver agrees [2.8.2].
            link.snd_settle_mode = attach.snd_settle_mode;
        }
        if link.role == Role::Sender {
            // The receiver says, and as receiver we say first [2.8.3].
            link.rcv_settle_mode = attach.rcv_settle_mode;
        }
        link.resuming = attach.unsettled.is_some();
        link.max_message_size = match attach.max_message_size {
            None | Some(0) => u64::MAX,
            Some(bytes) => bytes,
        };
        let (session, handle) = (link.session, attach.handle.0 as usize);
        if let Some(session) = self.sessions.get_mut(session) {
            set_slot(&mut session.remote_handles, handle, Some(index));
        }
    }

    fn remote_attach(&self, index: u32, attach: &Attach<'_>) -> RemoteAttach {
        let link = self.links.get(index).expect("the link of this attach");
        RemoteAttach {
            session: self.session_id(link.session),
            name: attach.name.to_owned(),
            role: link.role,
            snd_settle_mode: attach.snd_settle_mode,
            rcv_settle_mode: attach.rcv_settle_mode,
            source: match &attach.source {
                Some(AnySource::Source(source)) => Some(LinkSource::from_wire(source)),
                Some(AnySource::Other(_)) | None => None,
            },
            target: match &attach.target {
                Some(AnyTarget::Target(target)) => Some(LinkTarget::from_wire(target)),
                Some(AnyTarget::Coordinator(_) | AnyTarget::Other(_)) | None => None,
            },
            max_message_size: match attach.max_message_size {
                None | Some(0) => None,
                Some(bytes) => Some(bytes),
            },
            unsettled: attach.unsettled.is_some(),
            offered_capabilities: own_symbols(&attach.offered_capabilities),
            desired_capabilities: own_symbols(&attach.desired_capabilities),
            properties: attach.properties.as_ref().map(own_map),
        }
    }

    /// The host accepts the peer's attach.
    pub(super) fn accept(&mut self, index: u32, accept: &AcceptLink) {
        let fits = self.write_attach(
            index,
            &AttachTerms {
                source: accept.source.as_ref(),
                target: accept.target.as_ref(),
                offered_capabilities: &accept.offered_capabilities,
                desired_capabilities: &[],
                properties: accept.properties.as_deref(),
            },
        );
        if !fits {
            self.fail_link(index, LimitExceeded::FrameSize.into());
            return;
        }
        let id = self.link_id(index);
        let Some(link) = self.links.get_mut(index) else { return };
        link.step(LinkEvent::Accept);
        // A flow may have come with the attach.
        let (credit, drain, echo_owed) = (link.credit, link.drain, link.echo_owed);
        if link.role == Role::Sender && (credit > 0 || drain) {
            self.events.push_back(Event::CreditChanged { link: id, credit, drain });
            if drain && credit == 0 {
                self.answer_drain(index);
            }
            if echo_owed {
                self.link_flow_due(index);
            }
        } else if credit > 0 || drain || echo_owed {
            self.link_flow_due(index);
        }
    }

    /// The host, or the engine, refuses the peer's attach.
    pub(super) fn refuse(&mut self, index: u32, error: Error) {
        self.detach_link(index, true, Some(&error));
        self.silence(index);
    }

    pub(super) fn on_detach(&mut self, session: u32, detach: &Detach<'_>) -> Result<(), Fault> {
        let Some(state) = self.sessions.get_mut(session) else { return Ok(()) };
        let handle = detach.handle.0;
        let index = state.link_by_remote_handle(handle).ok_or(PeerViolation::HandleUnattached)?;
        set_slot(&mut state.remote_handles, handle as usize, None);
        let id = self.link_id(index);
        let error = detach.error.as_ref().map(Error::from_wire);
        self.drop_partial(index);
        let Some(link) = self.links.get_mut(index) else { return Ok(()) };
        link.remote_handle = None;
        link.remote_closed = detach.closed;
        assert!(link.step(LinkEvent::RemoteDetach), "detach of a link that is {:?}", link.state);
        let (refused, silent) = (link.refused, link.silent);
        if link.state == LinkState::Detached {
            self.remove_link(index);
            if !silent {
                self.events.push_back(Event::Detached { link: id, error });
            }
        } else if refused {
            self.detach_link(index, detach.closed, None);
            self.events.push_back(Event::Detached { link: id, error });
        } else {
            let closed = detach.closed;
            self.events.push_back(Event::DetachReceived { link: id, closed, error });
        }
        Ok(())
    }

    /// Writes our detach: the answer to the peer's, or a wish. Attaches first where the peer
    /// still waits for that [2.6.3].
    pub(super) fn detach_link(&mut self, index: u32, closed: bool, error: Option<&Error>) {
        let Some(link) = self.links.get(index) else { return };
        let (session, answer) = (link.session, link.state == LinkState::DetachReceived);
        let Some(next) = link.state.next(LinkEvent::LocalDetach) else { return };
        let (attached, handle) = (link.attach_sent, link.local_handle);
        // Closing what the peer only detaches would need another attach [2.6.6].
        let closed = if answer { link.remote_closed } else { closed };
        self.write_session_dispositions(session);
        if self.is_mapped(session) {
            if !attached && !self.write_attach(index, &REFUSAL) {
                // Its name alone is too long for the peer, and a link has no other.
                return self.fail_session(session, LimitExceeded::FrameSize.into());
            }
            self.write_detach(index, Handle(handle), closed, error);
        }
        self.drop_partial(index);
        let Some(link) = self.links.get_mut(index) else { return };
        link.state = next;
        if next == LinkState::Detached {
            self.remove_link(index);
        } else if let Some(state) = self.sessions.get_mut(session) {
            // The rest of a message must not follow the detach.
            if state.unfinished.as_ref().is_some_and(|rest| rest.link == index) {
                state.unfinished = None;
                self.tell_send_ready(session);
            }
        }
    }

    /// A fault that ends the link.
    pub(super) fn fail_link(&mut self, index: u32, fault: Fault) {
        self.detach_with_error(index, true, fault.to_error());
    }

    /// The engine detaches a link: the host hears of it now, and no more after that.
    fn detach_with_error(&mut self, index: u32, closed: bool, error: Error) {
        let id = self.link_id(index);
        let Some(link) = self.links.get(index) else { return };
        let known = !link.silent;
        self.detach_link(index, closed, Some(&error));
        self.silence(index);
        // Where its session had to go with it, the host has heard that.
        if known && self.links.is_live(index, id.generation) {
            self.events.push_back(Event::Detached { link: id, error: Some(error) });
        }
    }

    /// Forgets all about a link but its handles, which live until the peer's detach.
    fn silence(&mut self, index: u32) {
        let Some(link) = self.links.get_mut(index) else { return };
        link.silent = true;
        let (session, is_unused) = (link.session, link.is_unused());
        if !is_unused {
            self.forget_deliveries(session, index);
        }
    }

    /// A link's deliveries are settled by its end: that may be the room that others wait for.
    fn forget_deliveries(&mut self, session: u32, index: u32) {
        let Some(state) = self.sessions.get_mut(session) else { return };
        state.forget_deliveries(index);
        self.session_due(session);
        self.tell_send_ready(session);
    }

    /// The lowest free handle of the session's is the new link's; none where there is none. Our
    /// own handle-max bounds the links whose detach has not been answered yet.
    fn add_link(&mut self, session: u32, name: &str, role: Role) -> Option<u32> {
        let handle = self.sessions.get(session)?.free_local_handle(self.config.handle_max)?;
        let index = self.links.insert(Link::new(session, name, role, handle));
        self.names.insert(name_key(name, role), index);
        self.link_name_bytes += name.len();
        if let Some(state) = self.sessions.get_mut(session) {
            set_slot(&mut state.local_handles, handle as usize, Some(index));
        }
        Some(index)
    }

    pub(super) fn remove_link(&mut self, index: u32) {
        self.drop_partial(index);
        let Some(link) = self.links.remove(index) else { return };
        self.link_name_bytes -= link.name.len();
        let key = name_key(&link.name, link.role);
        if self.names.get(&key) == Some(&index) {
            self.names.remove(&key);
        }
        let Some(state) = self.sessions.get_mut(link.session) else { return };
        set_slot(&mut state.local_handles, link.local_handle as usize, None);
        if let Some(handle) = link.remote_handle {
            set_slot(&mut state.remote_handles, handle as usize, None);
        }
        // A walk over the deliveries of all links: not for one that has none.
        if !link.silent && !link.is_unused() {
            self.forget_deliveries(link.session, index);
        }
    }

    /// Writes our attach. False, and nothing was written, where it is larger than the peer's
    /// frames may be.
    fn write_attach(&mut self, index: u32, terms: &AttachTerms<'_>) -> bool {
        let written = self.out.len();
        let Some(link) = self.links.get_mut(index) else { return true };
        link.attach_sent = true;
        let Some(session) = self.sessions.get(link.session) else { return true };
        let offered = borrow_symbols(terms.offered_capabilities);
        let desired = borrow_symbols(terms.desired_capabilities);
        let attach = Attach {
            name: &link.name,
            handle: Handle(link.local_handle),
            role: link.role,
            snd_settle_mode: link.snd_settle_mode,
            rcv_settle_mode: link.rcv_settle_mode,
            // None of the deliveries that the peer remembers is known here [2.6.13].
            unsettled: link.resuming.then_some(Map::EMPTY),
            initial_delivery_count: match link.role {
                Role::Sender => Some(link.delivery_count),
                Role::Receiver => None,
            },
            max_message_size: match link.role {
                Role::Sender => None,
                Role::Receiver => Some(self.config.max_message_size),
            },
            offered_capabilities: Multiple::from(&offered[..]),
            desired_capabilities: Multiple::from(&desired[..]),
            properties: borrow_map(terms.properties),
            ..Attach::default()
        };
        let (out, channel) = (&mut self.out, session.local_channel);
        with_source(terms.source, |source| {
            with_target(terms.target, |target| {
                let source = source.map(AnySource::Source);
                let target = target.map(AnyTarget::Target);
                let attach = Attach { source, target, ..attach };
                frame::write(out, channel, &Performative::Attach(attach));
            });
        });
        let fits = self.out.len() - written <= self.remote_max_frame_size as usize;
        if !fits {
            self.out.truncate(written);
            if let Some(link) = self.links.get_mut(index) {
                link.attach_sent = false;
            }
        }
        fits
    }

    fn write_detach(&mut self, index: u32, handle: Handle, closed: bool, error: Option<&Error>) {
        let Some(session) = self.session_of(index) else { return };
        let channel = session.local_channel;
        let detach = Detach { handle, closed, error: error.map(Error::to_wire) };
        frame::write(&mut self.out, channel, &Performative::Detach(detach));
    }
}

/// A receiver whose map of unsettled deliveries is not whole may be sent nothing new [2.7.3], and
/// we resume nothing.
fn check_unsettled_map(role: Role, attach: &Attach<'_>) -> Result<(), Unsupported> {
    if role == Role::Sender && attach.incomplete_unsettled {
        return Err(Unsupported::IncompleteUnsettled);
    }
    Ok(())
}

/// A link's identity: the containers are the connection's [2.6.1].
fn name_key(name: &str, role: Role) -> (Box<str>, bool) {
    (name.into(), role == Role::Receiver)
}
