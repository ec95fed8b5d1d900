//! Bytes to frames to the part of the connection that each is for, and faults to their scope.
//!
//! ```text
//!  1  a frame begun earlier is filled up from the new bytes, and handled
//!  2  whole frames in the new bytes are handled in place, without a copy
//!  3  what is left, less than a frame, is kept
//!  parked: a frame that needs an answer of the host's is kept with all that follows, and tried
//!          again when the host has given one
//! ```
//!
//! Invariants: `input` holds less than one frame, or is parked and bounded; a frame is handled
//! whole, then never seen again. After our close nothing but the peer's close is looked at.

use std::ops::ControlFlow;

use super::state::{ConnectionState, SessionState};
use super::{Connection, Side};
use crate::codec;
use crate::error::{Fault, LimitExceeded, Malformed, PeerViolation, Scope, Unsupported};
use crate::frame::{self, Frame, FrameKind, HEADER_LEN, PROTOCOL_HEADER_LEN, ProtocolId};
use crate::performative::Performative;
use crate::shortcuts;

/// The largest frame before our open: SASL asks for 512 [5.3.1], but tokens are larger.
const HANDSHAKE_FRAME_BYTES_MAX: u32 = 16 * 1024;

/// What a peer may send ahead of an answer that the host owes. A host that minds `wants_read`
/// does not come near it.
const PARKED_BYTES_MAX: usize = 1 << 20;

/// A frame begins like a protocol header: eight bytes tell what it is and how long.
const HEAD_LEN: usize = HEADER_LEN;
const _: () = assert!(HEADER_LEN == PROTOCOL_HEADER_LEN);

/// What became of a frame.
pub(super) enum Handled {
    /// It is done with.
    Done,
    /// It must wait for an answer of the host's.
    Stalled,
}

impl Connection {
    /// The host owes an answer that the next frame needs.
    pub(super) fn is_parked(&self) -> bool {
        let host_owes = match self.state {
            ConnectionState::OpenReceived => true,
            ConnectionState::SaslPending => self.side == Side::Server,
            ConnectionState::HeaderWait
            | ConnectionState::SaslWait
            | ConnectionState::AmqpHeaderWait
            | ConnectionState::OpenWait
            | ConnectionState::Opened
            | ConnectionState::CloseSent
            | ConnectionState::CloseReceived
            | ConnectionState::Closed => false,
        };
        host_owes || self.stalled
    }

    pub(super) fn take_input(&mut self, mut bytes: &[u8]) {
        while !self.input.is_empty() && !bytes.is_empty() && !self.is_parked() {
            let wanted = self.input_wanted();
            let (head, rest) = bytes.split_at(wanted.min(bytes.len()));
            self.input.extend_from_slice(head);
            bytes = rest;
            if head.len() == wanted {
                self.handle_kept_input();
            }
        }
        if self.input.is_empty() && !self.is_parked() {
            let handled = self.handle_frames(bytes);
            bytes = &bytes[handled..];
        }
        if self.state == ConnectionState::Closed {
            return;
        }
        if self.input.is_empty() {
            self.input_since = self.now;
        }
        self.input.extend_from_slice(bytes);
        if self.is_parked() && self.input.len() > PARKED_BYTES_MAX {
            self.input.clear();
            self.fail(LimitExceeded::ParkedInput.into());
        }
    }

    /// Tries parked input again after an answer of the host's.
    pub(super) fn resume_input(&mut self) {
        if std::mem::take(&mut self.stalled) {
            // The peer was not read from meanwhile: its silence was ours.
            self.last_received = self.now;
        }
        self.handle_kept_input();
    }

    fn handle_kept_input(&mut self) {
        if self.input.is_empty() || self.is_parked() {
            return;
        }
        let mut input = std::mem::take(&mut self.input);
        let handshake = self.state.is_handshake();
        let handled = self.handle_frames(&input);
        if handshake {
            // Credentials do not stay in memory.
            input[..handled].fill(0);
        }
        input.copy_within(handled.., 0);
        input.truncate(input.len() - handled);
        self.input = input;
    }

    /// How many bytes are missing from the frame, or from its head, in `input`.
    fn input_wanted(&self) -> usize {
        let have = self.input.len();
        if have < HEAD_LEN {
            return HEAD_LEN - have;
        }
        let size = [self.input[0], self.input[1], self.input[2], self.input[3]];
        // A frame size out of bounds is an error as soon as the head is handled.
        (u32::from_be_bytes(size) as usize).saturating_sub(have).max(1)
    }

    /// Handles whole frames at the start of `bytes`; how many bytes they took.
    fn handle_frames(&mut self, bytes: &[u8]) -> usize {
        let mut handled = 0;
        loop {
            if self.is_parked() {
                return handled;
            }
            match self.handle_frame(&bytes[handled..]) {
                Ok(ControlFlow::Continue(len)) => handled += len,
                Ok(ControlFlow::Break(())) => return handled,
                Err(fault) => {
                    self.fail(fault);
                    // Our close is sent: go on to the peer's, if its frames can still be told
                    // apart.
                    match frame::parse(&bytes[handled..], u32::MAX) {
                        Ok(Some((_, len))) => handled += len,
                        Ok(None) | Err(_) => return bytes.len(),
                    }
                }
            }
        }
    }

    /// Handles the frame or header at the start of `bytes`: its length, or that there is none yet.
    fn handle_frame(&mut self, bytes: &[u8]) -> Result<ControlFlow<(), usize>, Fault> {
        if self.state == ConnectionState::Opened {
            let Some((frame, len)) = frame::parse(bytes, self.config.max_frame_size)? else {
                return Ok(ControlFlow::Break(()));
            };
            return match self.on_usual_frame(&frame) {
                Some(result) => result.map(|()| ControlFlow::Continue(len)),
                None => self.on_unusual_frame(&frame, len),
            };
        }
        self.handle_early_frame(bytes)
    }

    /// A transfer or disposition that says what most do; nothing is done with any other frame.
    #[inline]
    fn on_usual_frame(&mut self, frame: &Frame<'_>) -> Option<Result<(), Fault>> {
        if frame.kind != FrameKind::Amqp {
            return None;
        }
        let session = self.session_by_remote_channel(frame.channel)?;
        if self.sessions.get(session)?.state == SessionState::EndSent {
            // Dropped, as the general way does.
            return None;
        }
        let (handle, result) =
            if let Some((transfer, payload)) = shortcuts::read_transfer(frame.body) {
                let result = self.on_transfer(session, &transfer, payload);
                (Some(transfer.handle.0), result)
            } else if let Some(accepted) = shortcuts::read_accepted(frame.body) {
                (None, self.on_disposition(session, &accepted))
            } else {
                return None;
            };
        Some(match result {
            Ok(()) => Ok(()),
            Err(fault) => self.on_session_fault(session, handle, fault),
        })
    }

    fn on_unusual_frame(
        &mut self,
        frame: &Frame<'_>,
        len: usize,
    ) -> Result<ControlFlow<(), usize>, Fault> {
        match self.on_frame(frame)? {
            Handled::Done => Ok(ControlFlow::Continue(len)),
            Handled::Stalled => {
                self.stalled = true;
                Ok(ControlFlow::Break(()))
            }
        }
    }

    /// Handles what is at the start of `bytes` while the connection is not open.
    fn handle_early_frame(&mut self, bytes: &[u8]) -> Result<ControlFlow<(), usize>, Fault> {
        match self.state {
            ConnectionState::HeaderWait | ConnectionState::AmqpHeaderWait => {
                let header = match ProtocolId::parse(bytes) {
                    Ok(None) => return Ok(ControlFlow::Break(())),
                    Ok(Some(header)) => Some(header),
                    Err(_) => None,
                };
                self.on_header(header);
                Ok(ControlFlow::Continue(PROTOCOL_HEADER_LEN.min(bytes.len())))
            }
            ConnectionState::SaslWait | ConnectionState::SaslPending => {
                let max = HANDSHAKE_FRAME_BYTES_MAX.min(self.config.max_frame_size);
                let Some((frame, len)) = frame::parse(bytes, max)? else {
                    return Ok(ControlFlow::Break(()));
                };
                if frame.kind != FrameKind::Sasl {
                    return Err(Fault::Malformed(Malformed::FrameType));
                }
                self.on_sasl(frame.body)?;
                Ok(ControlFlow::Continue(len))
            }
            ConnectionState::OpenWait
            | ConnectionState::OpenReceived
            | ConnectionState::Opened
            | ConnectionState::CloseSent
            | ConnectionState::CloseReceived => {
                let max = match self.side {
                    Side::Server if self.state == ConnectionState::OpenWait => {
                        HANDSHAKE_FRAME_BYTES_MAX.min(self.config.max_frame_size)
                    }
                    Side::Server | Side::Client => self.config.max_frame_size,
                };
                let Some((frame, len)) = frame::parse(bytes, max)? else {
                    return Ok(ControlFlow::Break(()));
                };
                self.on_unusual_frame(&frame, len)
            }
            ConnectionState::Closed => Ok(match bytes.len() {
                0 => ControlFlow::Break(()),
                len => ControlFlow::Continue(len),
            }),
        }
    }

    fn on_frame(&mut self, frame: &Frame<'_>) -> Result<Handled, Fault> {
        if frame.kind != FrameKind::Amqp {
            return Err(Fault::Malformed(Malformed::FrameType));
        }
        if frame.body.is_empty() {
            return Ok(Handled::Done);
        }
        let (performative, payload) = match Performative::decode(frame.body) {
            Ok(decoded) => decoded,
            Err(error) if error.fault == codec::Fault::UnknownType => {
                return self.on_unknown_type(frame.channel, error);
            }
            Err(error) => return Err(error.into()),
        };
        if let Performative::Close(close) = &performative {
            self.on_close(close)?;
            return Ok(Handled::Done);
        }
        match self.state {
            // After our close all is dropped; after the peer's, nothing may come [2.4.6].
            ConnectionState::CloseSent => return Ok(Handled::Done),
            ConnectionState::OpenWait => {
                if let Performative::Open(open) = &performative {
                    self.on_open(open)?;
                    return Ok(Handled::Done);
                }
                return Err(PeerViolation::ConnectionState.into());
            }
            ConnectionState::Opened => {}
            ConnectionState::HeaderWait
            | ConnectionState::SaslWait
            | ConnectionState::SaslPending
            | ConnectionState::AmqpHeaderWait
            | ConnectionState::OpenReceived
            | ConnectionState::CloseReceived
            | ConnectionState::Closed => return Err(PeerViolation::ConnectionState.into()),
        }
        if let Performative::Begin(begin) = &performative {
            return self.on_begin(frame.channel, begin);
        }
        let session =
            self.session_by_remote_channel(frame.channel).ok_or(PeerViolation::ChannelUnmapped)?;
        self.on_session_frame(session, &performative, payload)
    }

    /// A frame with a type that others may have defined: its session cannot go on without it, the
    /// connection can.
    fn on_unknown_type(
        &mut self,
        channel: u16,
        error: codec::DecodeError,
    ) -> Result<Handled, Fault> {
        match self.session_by_remote_channel(channel) {
            Some(session) if self.is_mapped(session) => {
                self.fail_session(session, Unsupported::StateKind.into());
                Ok(Handled::Done)
            }
            // What comes between our end and the peer's is dropped [2.5.4].
            Some(_) => Ok(Handled::Done),
            None if self.state == ConnectionState::CloseSent => Ok(Handled::Done),
            None => Err(error.into()),
        }
    }

    /// A frame for a session: a fault ends what its scope says, and nothing more.
    fn on_session_frame(
        &mut self,
        session: u32,
        performative: &Performative<'_>,
        payload: &[u8],
    ) -> Result<Handled, Fault> {
        let ended = self.sessions.get(session).is_none_or(|s| s.state == SessionState::EndSent);
        let (handle, result) = match performative {
            Performative::End(end) => {
                self.on_end(session, end);
                return Ok(Handled::Done);
            }
            // What comes between our end and the peer's is dropped [2.5.4].
            Performative::Transfer(_)
            | Performative::Disposition(_)
            | Performative::Flow(_)
            | Performative::Attach(_)
            | Performative::Detach(_)
                if ended =>
            {
                return Ok(Handled::Done);
            }
            Performative::Transfer(transfer) => {
                let result = self.on_transfer(session, transfer, payload);
                (Some(transfer.handle.0), result.map(|()| Handled::Done))
            }
            Performative::Disposition(disposition) => {
                (None, self.on_disposition(session, disposition).map(|()| Handled::Done))
            }
            Performative::Flow(flow) => {
                let result = self.on_flow(session, flow);
                (flow.handle.map(|handle| handle.0), result.map(|()| Handled::Done))
            }
            Performative::Attach(attach) => {
                (Some(attach.handle.0), self.on_attach(session, attach))
            }
            Performative::Detach(detach) => {
                (None, self.on_detach(session, detach).map(|()| Handled::Done))
            }
            Performative::Open(_) | Performative::Begin(_) | Performative::Close(_) => {
                (None, Err(PeerViolation::ConnectionState.into()))
            }
        };
        match result {
            Ok(handled) => Ok(handled),
            Err(fault) => self.on_session_fault(session, handle, fault).map(|()| Handled::Done),
        }
    }

    fn session_by_remote_channel(&self, channel: u16) -> Option<u32> {
        *self.remote_channels.get(usize::from(channel))?
    }

    /// What a frame for a session was guilty of ends what its scope says.
    #[cold]
    fn on_session_fault(
        &mut self,
        session: u32,
        handle: Option<u32>,
        fault: Fault,
    ) -> Result<(), Fault> {
        match fault.scope() {
            Scope::Connection => return Err(fault),
            Scope::Session => self.fail_session(session, fault),
            Scope::Link => {
                let link = handle
                    .and_then(|handle| self.sessions.get(session)?.link_by_remote_handle(handle));
                match link {
                    Some(link) => self.fail_link(link, fault),
                    None => self.fail_session(session, fault),
                }
            }
        }
        Ok(())
    }
}
