//! Messages in and out: the hot path.
//!
//! ```text
//!  in    window - 1 -> link by handle -> first:  id rises, tag is free, credit - 1
//!                                        more:   gathered, within max-message-size
//!                                        last:   one event with the whole message
//!                                        more than is gathered: the host gets it in parts
//!  out   send: credit - 1, one transfer or several by the peer's max-frame-size; what window or
//!        buffer do not let pass waits in `unfinished`, one message a session; messages of other
//!        links that fit a frame pass it [2.6.14], and leave it the window's last frame
//!        begun: the same for a message that the host gives part by part, each when the one
//!        before is written; given up, it ends with `aborted`
//! ```
//!
//! A message in one frame costs one copy and one allocation, that of its `Bytes`. What waits of one
//! that is shared with the host is not copied.
//!
//! Invariants: an id is given when the first transfer is written, so that ids on the wire have no
//! gaps; an aborted delivery leaves nothing behind [2.6.14], and its credit is granted again;
//! credit counts deliveries, windows count frames.

use bytes::Bytes;

use super::state::LinkState;
use super::{Connection, Event, SendError};
use crate::definitions::{DeliveryId, Handle, ReceiverSettleMode, Role, SenderSettleMode};
use crate::delivery::Outcome;
use crate::delivery::tags::{self, Tag};
use crate::error::{Fault, LimitExceeded, PeerViolation, Unsupported};
use crate::frame::FrameWriter;
use crate::link::{Link, LinkId, Partial};
use crate::performative::{DeliveryState, Transfer};
use crate::session::{End, Incoming, Outgoing, Session, Settling, Unfinished};
use crate::shortcuts;

/// A part that is given because memory is short has so many bytes at least.
const PART_BYTES_MIN: usize = 4 << 10;

/// Parts of a message, about, however small they are: a host may number them with 16 bits.
const PARTS_MAX: u64 = 1 << 15;

/// The largest message that `send` takes, in bytes: what fits one frame of any peer's.
const SEND_BYTES_MAX: u64 = i32::MAX as u64;

impl Connection {
    /// Inlined where a plain transfer was just read, so that what it cannot say is not asked.
    #[inline(always)]
    pub(super) fn on_transfer(
        &mut self,
        session_index: u32,
        transfer: &Transfer<'_>,
        payload: &[u8],
    ) -> Result<(), Fault> {
        let Some(session) = self.sessions.get_mut(session_index) else { return Ok(()) };
        session.count_incoming_frame()?;
        let index = session
            .link_by_remote_handle(transfer.handle.0)
            .ok_or(PeerViolation::HandleUnattached)?;
        let flow_due = session.flow_due;
        let Some(link) = self.links.get(index) else { return Ok(()) };
        let result = if link.state == LinkState::DetachSent {
            // Dropped until the peer's detach; its ids are used up all the same.
            if let Some(id) = transfer.delivery_id {
                let _: Result<(), PeerViolation> = session.count_incoming_delivery(id.0);
            }
            Ok(())
        } else if link.role == Role::Sender {
            Err(PeerViolation::TransferFromReceiver.into())
        } else if link.partial.is_some() {
            self.on_continuation(session_index, index, transfer, payload)
        } else {
            self.on_first_transfer(session_index, index, transfer, payload)
        };
        if flow_due {
            self.session_due(session_index);
        }
        result
    }

    #[inline(always)]
    fn on_first_transfer(
        &mut self,
        session_index: u32,
        index: u32,
        transfer: &Transfer<'_>,
        payload: &[u8],
    ) -> Result<(), Fault> {
        let link_id = self.link_id(index);
        let Some(session) = self.sessions.get_mut(session_index) else { return Ok(()) };
        let Some(link) = self.links.get_mut(index) else { return Ok(()) };
        let id = transfer.delivery_id.ok_or(PeerViolation::DeliveryIdMissing)?.0;
        session.count_incoming_delivery(id)?;
        link.count_delivery()?;
        if transfer.resume {
            return self.on_resumed(index, id, transfer);
        }
        check_state(transfer)?;
        if transfer.rcv_settle_mode == Some(ReceiverSettleMode::Second) {
            return Err(PeerViolation::ReceiverSettleMode.into());
        }
        let settled = transfer.settled.unwrap_or(false);
        if !transfer.aborted {
            if payload.len() as u64 > self.config.max_message_size {
                return Err(LimitExceeded::MessageSize.into());
            }
            if !transfer.more {
                check_settle_mode(link.snd_settle_mode, settled)?;
            }
        }
        let tag = transfer.delivery_tag.ok_or(PeerViolation::TagMissing)?;
        let tag = Tag::new(tag).ok_or(PeerViolation::TagTooLong)?;
        let tag_hash = self.tag_keys.hash(index, &tag);
        let incoming = &session.incoming;
        let is_same = |other| incoming.get(other).is_some_and(|d| d.link == index && d.tag == tag);
        let stays = (transfer.more || !settled) && !transfer.aborted;
        let is_free = if stays {
            session.tags.insert(tag_hash, id, is_same)
        } else {
            !session.tags.contains(tag_hash, is_same)
        };
        if !is_free {
            return Err(PeerViolation::TagInUse.into());
        }
        if transfer.aborted {
            self.give_credit_again(index);
            return Ok(());
        }
        if stays && !session.incoming.push(id, Incoming { link: index, tag_hash, tag }) {
            session.tags.remove(tag_hash, id);
            return Err(PeerViolation::DeliveryIdOrder.into());
        }
        let message_format = transfer.message_format.unwrap_or(0);
        if transfer.more {
            let partial = Partial {
                delivery: id,
                tag,
                message_format,
                settled,
                ignored: false,
                message: payload.to_vec(),
                given: 0,
                has_head: false,
                look_from: 0,
                since: self.now,
            };
            link.partial = Some(partial);
            self.reassembly_bytes += payload.len() as u64;
            return self.partial_grew(index);
        }
        self.events.push_back(Event::Transfer {
            link: link_id,
            delivery: DeliveryId(id),
            settled,
            message_format,
            message: Bytes::copy_from_slice(payload),
        });
        Ok(())
    }

    /// A delivery that the peer believes to be in our unsettled map, which we have said is empty:
    /// it is ignored to its end [2.7.5].
    #[cold]
    fn on_resumed(
        &mut self,
        index: u32,
        delivery: u32,
        transfer: &Transfer<'_>,
    ) -> Result<(), Fault> {
        let tag = transfer.delivery_tag.ok_or(PeerViolation::TagMissing)?;
        let tag = Tag::new(tag).ok_or(PeerViolation::TagTooLong)?;
        if transfer.more && !transfer.aborted {
            let Some(link) = self.links.get_mut(index) else { return Ok(()) };
            let message_format = transfer.message_format.unwrap_or(0);
            link.partial = Some(Partial {
                delivery,
                tag,
                message_format,
                settled: false,
                ignored: true,
                message: Vec::new(),
                given: 0,
                has_head: false,
                look_from: 0,
                since: self.now,
            });
        } else {
            self.give_credit_again(index);
        }
        Ok(())
    }

    #[inline(never)]
    fn on_continuation(
        &mut self,
        session_index: u32,
        index: u32,
        transfer: &Transfer<'_>,
        payload: &[u8],
    ) -> Result<(), Fault> {
        let link_id = self.link_id(index);
        let max_message_size = self.config.max_message_size;
        let Some(link) = self.links.get_mut(index) else { return Ok(()) };
        let Some(partial) = &mut link.partial else { return Ok(()) };
        // Each may be left out, none may differ [2.7.5].
        if transfer.delivery_id.is_some_and(|id| id.0 != partial.delivery)
            || transfer.delivery_tag.is_some_and(|tag| tag != partial.tag.as_bytes())
            || transfer.message_format.is_some_and(|format| format != partial.message_format)
        {
            return Err(PeerViolation::ContinuationDiffers.into());
        }
        check_state(transfer)?;
        partial.settled |= transfer.settled.unwrap_or(false);
        if partial.ignored {
            if transfer.aborted || !transfer.more {
                link.partial = None;
                self.give_credit_again(index);
            }
            return Ok(());
        }
        if transfer.aborted {
            let delivery = partial.delivery;
            if partial.given > 0 {
                self.events.push_back(Event::Aborted { link: link_id });
            }
            self.drop_partial(index);
            self.forget_incoming(session_index, delivery);
            self.give_credit_again(index);
            return Ok(());
        }
        let held = (partial.message.len() + payload.len()) as u64;
        if partial.given + held > max_message_size {
            return Err(LimitExceeded::MessageSize.into());
        }
        partial.message.extend_from_slice(payload);
        // Counted before anything can fail: giving the message up takes all of it back.
        self.reassembly_bytes += payload.len() as u64;
        if !transfer.more {
            check_settle_mode(link.snd_settle_mode, partial.settled)?;
        }
        self.partial_grew(index)?;
        if transfer.more {
            return Ok(());
        }
        let Some(link) = self.links.get_mut(index) else { return Ok(()) };
        let Some(partial) = link.partial.take() else { return Ok(()) };
        self.reassembly_bytes -= partial.message.len() as u64;
        if partial.settled {
            self.forget_incoming(session_index, partial.delivery);
        }
        let (link, delivery) = (link_id, DeliveryId(partial.delivery));
        let Partial { settled, message_format, .. } = partial;
        // Without what it grew ahead: the host counts the bytes that it holds.
        let message = Bytes::from(partial.message.into_boxed_slice());
        self.events.push_back(if partial.given == 0 {
            Event::Transfer { link, delivery, settled, message_format, message }
        } else {
            let (part, is_last) = (message, true);
            Event::Part { link, delivery, settled, message_format, part, is_last }
        });
        Ok(())
    }

    /// More of a message has come. Its head is looked for as it comes, so that what all have cost
    /// when memory is short was paid by the bytes that each brought.
    #[inline(never)]
    fn partial_grew(&mut self, index: u32) -> Result<(), Fault> {
        self.give_parts_of(index);
        if self.config.gather_bytes_max != u64::MAX
            && let Some(partial) = self.links.get_mut(index).and_then(|link| link.partial.as_mut())
            && partial.message.len() >= PART_BYTES_MIN
        {
            self.may_give |= partial.may_begin(self.config.part_bytes);
        }
        self.check_reassembly()
    }

    /// Gives the host what has come of a message that is too long to be gathered, all but what may
    /// be its last part.
    fn give_parts_of(&mut self, index: u32) {
        let Some(link) = self.links.get(index) else { return };
        let Some(partial) = &link.partial else { return };
        let begins = partial.message.len() as u64 > self.config.gather_bytes_max;
        if !(begins || partial.given > 0) {
            return;
        }
        self.give_parts_down_to(index, self.config.part_bytes);
    }

    /// Gives the host parts of an unfinished message, until no more than `kept_max` bytes, at least
    /// one, are left.
    fn give_parts_down_to(&mut self, index: u32, kept_max: usize) {
        let id = self.link_id(index);
        let part_bytes = self.config.part_bytes;
        let Some(partial) = self.links.get_mut(index).and_then(|link| link.partial.as_mut()) else {
            return;
        };
        let (mut at, len) = (0, partial.message.len());
        while len - at > kept_max {
            let end = at + part_bytes.min(len - at - 1);
            self.events.push_back(Event::Part {
                link: id,
                delivery: DeliveryId(partial.delivery),
                settled: partial.settled,
                message_format: partial.message_format,
                part: Bytes::copy_from_slice(&partial.message[at..end]),
                is_last: false,
            });
            at = end;
        }
        if at > 0 {
            // Without the room that the message had.
            partial.message = partial.message[at..].to_vec();
            partial.given += at as u64;
            // It flows.
            partial.since = self.now;
            self.reassembly_bytes -= at as u64;
        }
    }

    /// Gives the host what has come of unfinished messages, where that is so many bytes: it wants
    /// to hold them no longer. A message may begin to come in parts by that when its head is there.
    pub(super) fn give_unfinished(&mut self, bytes_min: usize) {
        if self.config.gather_bytes_max == u64::MAX {
            return;
        }
        let part_bytes = self.config.part_bytes;
        let due = |(index, link): (u32, &mut Link)| {
            let partial = link.partial.as_mut()?;
            let may_go = partial.message.len() >= bytes_min && partial.may_begin(part_bytes);
            may_go.then_some(index)
        };
        let due: Vec<u32> = self.links.iter_mut().filter_map(due).collect();
        due.into_iter().for_each(|index| self.give_parts_down_to(index, 1));
    }

    fn check_reassembly(&mut self) -> Result<(), Fault> {
        // Where nothing has grown so far since the last time, nobody is asked.
        if self.reassembly_bytes > self.config.reassembly_bytes_max
            && std::mem::take(&mut self.may_give)
        {
            let least = self.config.max_message_size / PARTS_MAX;
            let least = usize::try_from(least).unwrap_or(usize::MAX).max(PART_BYTES_MIN);
            self.give_unfinished(least.min(self.config.part_bytes));
        }
        if self.reassembly_bytes > self.config.reassembly_bytes_max {
            return Err(LimitExceeded::Reassembly.into());
        }
        Ok(())
    }

    /// An aborted delivery used up credit, and the host, who grants by the messages that it gets,
    /// will never hear of it: a sender that aborts often would be left without any.
    fn give_credit_again(&mut self, index: u32) {
        let Some(link) = self.links.get_mut(index) else { return };
        if link.grant_again() {
            self.link_flow_due(index);
        }
    }

    /// Gives up the unfinished incoming message of a link.
    pub(super) fn drop_partial(&mut self, index: u32) {
        let Some(link) = self.links.get_mut(index) else { return };
        let Some(partial) = link.partial.take() else { return };
        self.reassembly_bytes -= partial.message.len() as u64;
        let session = link.session;
        self.forget_incoming(session, partial.delivery);
    }

    /// A delivery needs no answer: it was settled by its sender, or aborted.
    fn forget_incoming(&mut self, session_index: u32, delivery: u32) {
        let Some(session) = self.sessions.get_mut(session_index) else { return };
        if let Some(tag_hash) = session.incoming.remove_if(delivery, |one| Some(one.tag_hash)) {
            session.tags.remove(tag_hash, delivery);
            session.renew_window();
            self.session_due(session_index);
        }
    }

    /// The host settles a delivery that it received, by the link's session and index.
    #[inline(always)]
    pub(super) fn settle_incoming(
        &mut self,
        (session_index, link): (u32, u32),
        delivery: u32,
        outcome: Outcome,
    ) {
        let Some(session) = self.sessions.get_mut(session_index) else { return };
        let tag_hash = session
            .incoming
            .remove_if(delivery, |incoming| (incoming.link == link).then_some(incoming.tag_hash));
        let Some(tag_hash) = tag_hash else { return };
        session.tags.remove(tag_hash, delivery);
        session.renew_window();
        if let Some(settling) = &mut session.settling
            && session.listed
            && settling.grow(Role::Receiver, delivery, Some(&outcome))
        {
            return;
        }
        self.settle_range(session_index, Role::Receiver, delivery, Some(outcome));
    }

    /// The host settles a delivery that it sent.
    pub(super) fn settle_sent(&mut self, link: u32, delivery: u32) {
        let Some(session_index) = self.links.get(link).map(|link| link.session) else { return };
        let Some(session) = self.sessions.get_mut(session_index) else { return };
        let is_its = |outgoing: &Outgoing| (outgoing.link == link).then_some(());
        if session.outgoing.remove_if(delivery, is_its).is_none() {
            return;
        }
        self.settle_range(session_index, Role::Sender, delivery, None);
        self.tell_send_ready(session_index);
    }

    /// Lets the pending disposition grow, or begins another.
    #[inline(never)]
    fn settle_range(&mut self, session: u32, role: Role, id: u32, outcome: Option<Outcome>) {
        let Some(state) = self.sessions.get_mut(session) else { return };
        if let Some(settling) = &mut state.settling
            && settling.grow(role, id, outcome.as_ref())
        {
            return self.session_due(session);
        }
        self.write_session_dispositions(session);
        if let Some(state) = self.sessions.get_mut(session) {
            state.settling = Some(Settling { role, first: id, last: id, outcome });
        }
        self.session_due(session);
    }

    /// Whether a message could be sent on a link now, and why not.
    pub(super) fn sendable(&self, id: LinkId) -> Result<(), SendError> {
        let link = self.live_link(id).ok_or(SendError::Gone)?;
        if link.role != Role::Sender
            || link.state != LinkState::Attached
            || link.refused
            || !self.is_mapped(link.session)
        {
            return Err(SendError::Gone);
        }
        if link.credit == 0 {
            return Err(SendError::NoCredit);
        }
        let is_full = self.out.len() >= self.config.transmit_bytes_max;
        let takes_more = self.sessions.get(link.session).is_some_and(|session| {
            let frames_kept = match &session.unfinished {
                None => 0,
                Some(rest) if rest.link != id.index => 1,
                Some(_) => return false,
            };
            session.remote_window() > frames_kept && session.has_unsettled_room()
        });
        if is_full || !takes_more {
            return Err(SendError::NotReady);
        }
        Ok(())
    }

    fn is_session_ready(&self, session: u32) -> bool {
        self.sessions.get(session).is_some_and(|session| {
            session.remote_window() > 0
                && session.unfinished.is_none()
                && session.has_unsettled_room()
        })
    }

    /// Whether no message waits inside the link's session.
    pub(super) fn is_unoccupied(&self, index: u32) -> bool {
        let session = self.links.get(index).and_then(|link| self.sessions.get(link.session));
        session.is_some_and(|session| session.unfinished.is_none())
    }

    /// The last part is the end of `shared`, where the host shares it.
    #[inline(always)]
    pub(super) fn send_message(
        &mut self,
        id: LinkId,
        parts: &[&[u8]],
        shared: Option<&Bytes>,
        settled: bool,
    ) -> Result<DeliveryId, SendError> {
        self.sendable(id)?;
        let index = id.index;
        let Self { links, sessions, .. } = self;
        let link = links.get_mut(index).ok_or(SendError::Gone)?;
        let session_index = link.session;
        let session = sessions.get_mut(session_index).ok_or(SendError::Gone)?;
        if check_settle_mode(link.snd_settle_mode, settled).is_err() {
            return Err(SendError::SettleMode);
        }
        let mut message = Parts { parts, skip: 0 };
        if message.remaining() as u64 > link.max_message_size.min(SEND_BYTES_MAX) {
            return Err(SendError::TooLarge);
        }
        let delivery = session.next_delivery;
        let limits = FrameLimits {
            frame_bytes_max: self.remote_max_frame_size.min(self.config.max_frame_size) as usize,
            out_bytes_max: self.config.transmit_bytes_max,
            end: End::Here,
        };
        let handle = link.local_handle;
        let head = shortcuts::transfer(session.local_channel, handle, delivery, settled);
        let fits = head.frame_bytes(message.remaining()) <= limits.frame_bytes_max;
        if !fits && session.unfinished.is_some() {
            return Err(SendError::NotReady);
        }
        if !settled
            && !session.outgoing.push(delivery, Outgoing { link: index, has_outcome: false })
        {
            // Four thousand million deliveries later the oldest still has this id.
            return Err(SendError::NotReady);
        }
        session.next_delivery = delivery.wrapping_add(1);
        link.spend_credit();
        // `sendable` has seen that the window and the buffer take a frame.
        if fits {
            head.write(message.remaining(), &mut self.out);
            parts.iter().for_each(|part| self.out.extend_from_slice(part));
            session.count_outgoing_frame();
        } else {
            let tag = tags::of_delivery(delivery);
            let first = Transfer {
                handle: Handle(handle),
                delivery_id: Some(DeliveryId(delivery)),
                delivery_tag: Some(&tag),
                message_format: Some(0),
                settled: Some(settled),
                ..Transfer::default()
            };
            if !write_transfers(&mut self.out, session, first, &mut message, limits) {
                session.unfinished = Some(Unfinished {
                    link: index,
                    delivery,
                    settled,
                    message: message.rest(shared),
                    end: End::Here,
                });
            }
        }
        let exhausted = link.credit == 0 && link.drain_owed;
        if exhausted {
            self.answer_drain(index);
        }
        self.note_blocked(session_index);
        Ok(DeliveryId(delivery))
    }

    /// Writes on at the message that the window, or a full buffer, cut in two; no frame is begun
    /// beyond `out_bytes_max`.
    pub(super) fn continue_unfinished(&mut self, session_index: u32, out_bytes_max: usize) {
        if !self.is_mapped(session_index) {
            return;
        }
        let Some(session) = self.sessions.get_mut(session_index) else { return };
        let Some(mut rest) = session.unfinished.take() else { return };
        let Some(link) = self.links.get(rest.link) else { return };
        let transfer = Transfer {
            handle: Handle(link.local_handle),
            delivery_id: Some(DeliveryId(rest.delivery)),
            settled: Some(rest.settled),
            ..Transfer::default()
        };
        let end = rest.end;
        let limits = FrameLimits {
            frame_bytes_max: self.remote_max_frame_size.min(self.config.max_frame_size) as usize,
            out_bytes_max,
            end,
        };
        if end == End::Open && rest.message.is_empty() {
            session.unfinished = Some(rest);
            return;
        }
        let parts = [&rest.message[..]];
        let mut message = Parts { parts: &parts, skip: 0 };
        let complete = write_transfers(&mut self.out, session, transfer, &mut message, limits);
        let left = message.remaining();
        rest.message = rest.message.split_off(rest.message.len() - left);
        let (index, drained) = (rest.link, link.drained || (link.drain_owed && link.credit == 0));
        if complete && end == End::Open {
            session.unfinished = Some(rest);
            let link = self.link_id(index);
            self.events.push_back(Event::PartWanted { link });
        } else if complete {
            if drained {
                self.answer_drain(index);
            }
            self.tell_send_ready(session_index);
        } else {
            session.unfinished = Some(rest);
            if session.remote_window() > 0 {
                self.session_due(session_index);
            }
        }
    }

    /// Begins a message whose rest the host gives later.
    pub(super) fn begin_message(
        &mut self,
        id: LinkId,
        parts: &[&[u8]],
        bytes: u64,
        settled: bool,
    ) -> Result<DeliveryId, SendError> {
        self.sendable(id)?;
        let index = id.index;
        let Self { links, sessions, .. } = self;
        let link = links.get_mut(index).ok_or(SendError::Gone)?;
        let session_index = link.session;
        let session = sessions.get_mut(session_index).ok_or(SendError::Gone)?;
        if check_settle_mode(link.snd_settle_mode, settled).is_err() {
            return Err(SendError::SettleMode);
        }
        if bytes > link.max_message_size {
            return Err(SendError::TooLarge);
        }
        let delivery = session.next_delivery;
        if session.unfinished.is_some()
            || (!settled
                && !session.outgoing.push(delivery, Outgoing { link: index, has_outcome: false }))
        {
            return Err(SendError::NotReady);
        }
        session.next_delivery = delivery.wrapping_add(1);
        link.spend_credit();
        let tag = tags::of_delivery(delivery);
        let first = Transfer {
            handle: Handle(link.local_handle),
            delivery_id: Some(DeliveryId(delivery)),
            delivery_tag: Some(&tag),
            message_format: Some(0),
            settled: Some(settled),
            ..Transfer::default()
        };
        let limits = FrameLimits {
            frame_bytes_max: self.remote_max_frame_size.min(self.config.max_frame_size) as usize,
            out_bytes_max: self.config.transmit_bytes_max,
            end: End::Open,
        };
        let mut message = Parts { parts, skip: 0 };
        let written = write_transfers(&mut self.out, session, first, &mut message, limits);
        let message = message.rest(None);
        let end = End::Open;
        session.unfinished = Some(Unfinished { link: index, delivery, settled, message, end });
        let exhausted = link.credit == 0 && link.drain_owed;
        if exhausted {
            self.answer_drain(index);
        }
        if written {
            self.events.push_back(Event::PartWanted { link: id });
        }
        self.note_blocked(session_index);
        Ok(DeliveryId(delivery))
    }

    /// Goes on with a message that the host gives part by part.
    pub(super) fn give_part(&mut self, index: u32, part: Bytes, is_last: bool) -> bool {
        let Some(rest) = self.open_message(index) else { return false };
        if !rest.message.is_empty() {
            return false;
        }
        rest.message = part;
        rest.end = if is_last { End::Here } else { End::Open };
        self.go_on(index);
        true
    }

    /// Ends a message that cannot be sent to its end.
    pub(super) fn abort_message(&mut self, index: u32) {
        let Some(rest) = self.open_message(index) else { return };
        (rest.message, rest.end) = (Bytes::new(), End::Aborted);
        let delivery = rest.delivery;
        if let Some(session) = self.session_of(index) {
            session.outgoing.remove_if(delivery, |_| Some(()));
        }
        self.go_on(index);
    }

    /// The message of this link of which the host has not given the end.
    fn open_message(&mut self, index: u32) -> Option<&mut Unfinished> {
        let rest = self.session_of(index)?.unfinished.as_mut()?;
        (rest.link == index && rest.end == End::Open).then_some(rest)
    }

    fn go_on(&mut self, index: u32) {
        let Some(session) = self.links.get(index).map(|link| link.session) else { return };
        self.continue_unfinished(session, self.config.transmit_bytes_max);
        self.note_blocked(session);
    }

    /// Remembers that the host may be waiting for this session.
    fn note_blocked(&mut self, session: u32) {
        let ready = self.is_session_ready(session);
        if let Some(state) = self.sessions.get_mut(session) {
            state.blocked |= !ready;
            let waits_for_the_buffer = state.has_to_write() && state.remote_window() > 0;
            if waits_for_the_buffer {
                self.session_due(session);
            }
        }
    }

    /// Tells the host that a session that was blocked no longer is.
    pub(super) fn tell_send_ready(&mut self, session: u32) {
        if !self.is_mapped(session) {
            return;
        }
        let ready = self.is_session_ready(session);
        let id = self.session_id(session);
        let Some(state) = self.sessions.get_mut(session) else { return };
        if state.blocked && ready {
            self.events.push_back(Event::SendReady { session: id });
        }
        state.blocked = !ready;
    }

    /// Gives back the credit that a drain asked for, once all that was sent is written.
    pub(super) fn answer_drain(&mut self, index: u32) {
        let unfinished = self.session_of(index).is_some_and(|session| {
            session.unfinished.as_ref().is_some_and(|rest| rest.link == index)
        });
        let Some(link) = self.links.get_mut(index) else { return };
        if unfinished {
            link.drained = true;
        } else {
            link.give_back_credit();
            self.link_flow_due(index);
        }
    }
}

/// A state says how far the sender is with a delivery, which changes nothing here, or that it is
/// part of a transaction.
#[inline(always)]
fn check_state(transfer: &Transfer<'_>) -> Result<(), Unsupported> {
    match transfer.state {
        Some(DeliveryState::TransactionalState(_)) => Err(Unsupported::TransactionalTransfer),
        Some(_) | None => Ok(()),
    }
}

fn check_settle_mode(mode: SenderSettleMode, settled: bool) -> Result<(), PeerViolation> {
    match (mode, settled) {
        (SenderSettleMode::Mixed, true | false)
        | (SenderSettleMode::Settled, true)
        | (SenderSettleMode::Unsettled, false) => Ok(()),
        (SenderSettleMode::Settled, false) | (SenderSettleMode::Unsettled, true) => {
            Err(PeerViolation::SettleMode)
        }
    }
}

/// What bounds the frames of a message.
#[derive(Clone, Copy)]
struct FrameLimits {
    /// The peer's max-frame-size, or ours where it would take a whole message in one frame: a
    /// frame is never one byte larger.
    frame_bytes_max: usize,
    /// No further frame of a message is begun beyond this.
    out_bytes_max: usize,
    /// What comes behind the message's bytes.
    end: End,
}

/// Writes a message, or a part of one, as one transfer or several; false where some of it is left
/// in `message`. The first frame needs a window that is open.
fn write_transfers(
    out: &mut Vec<u8>,
    session: &mut Session,
    mut transfer: Transfer<'_>,
    message: &mut Parts<'_>,
    limits: FrameLimits,
) -> bool {
    loop {
        if session.remote_window() == 0 || out.len() >= limits.out_bytes_max {
            return false;
        }
        let start = out.len();
        transfer.more = limits.end == End::Open;
        transfer.aborted = limits.end == End::Aborted;
        let mut frame = FrameWriter::amqp(out, session.local_channel);
        frame.composite(&transfer);
        if message.remaining() + frame.size() <= limits.frame_bytes_max {
            message.write(message.remaining(), &mut frame);
            frame.finish();
            session.count_outgoing_frame();
            return true;
        }
        out.truncate(start);
        transfer.more = true;
        let mut frame = FrameWriter::amqp(out, session.local_channel);
        frame.composite(&transfer);
        message.write(limits.frame_bytes_max - frame.size(), &mut frame);
        frame.finish();
        session.count_outgoing_frame();
        // The rest may leave out what the first has said [2.7.5].
        transfer.delivery_tag = None;
        transfer.message_format = None;
    }
}

/// A message in parts, of which some bytes are written.
struct Parts<'a> {
    parts: &'a [&'a [u8]],
    /// Bytes of the first part that are written.
    skip: usize,
}

impl Parts<'_> {
    fn remaining(&self) -> usize {
        self.parts.iter().map(|part| part.len()).sum::<usize>() - self.skip
    }

    fn write(&mut self, mut len: usize, frame: &mut FrameWriter<'_>) {
        while let Some((part, rest)) = self.parts.split_first() {
            let part = &part[self.skip..];
            if part.len() > len {
                frame.payload(&part[..len]);
                self.skip += len;
                return;
            }
            frame.payload(part);
            len -= part.len();
            self.parts = rest;
            self.skip = 0;
        }
    }

    /// What is not written; it is copied unless it is all of `shared` that is left.
    fn rest(&self, shared: Option<&Bytes>) -> Bytes {
        let left = self.remaining();
        if let (Some(shared), [_]) = (shared, self.parts) {
            return shared.slice(shared.len() - left..);
        }
        let mut rest = self.parts.concat();
        rest.drain(..self.skip);
        Bytes::from(rest)
    }
}
