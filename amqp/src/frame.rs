//! Protocol headers and frames [2.2] [2.3].
//!
//! ```text
//!  header  'A' 'M' 'Q' 'P'  id  1 0 0            id: 0 AMQP, 2 TLS, 3 SASL
//!
//!  frame   0        4     5     6          8      4*doff              size
//!          | size   |doff |type | channel  | extended header | body        |
//!           u32 BE   >=2   0 AMQP, 1 SASL   skipped           may be empty
//! ```
//!
//! A frame that is malformed gives `amqp:connection:framing-error` and the end of the connection:
//! nothing after it can be trusted. One that is not complete yet gives `None`; its size is known
//! and judged as soon as its first four bytes are there.

use std::fmt;

use crate::codec::{Composite, Writer};
use crate::performative::Performative;
use crate::sasl::SaslBody;

/// The smallest `max-frame-size` that a peer may state [2.3].
pub const MAX_FRAME_SIZE_MIN: u32 = 512;

/// The bytes before a body without an extended header.
pub const HEADER_LEN: usize = 8;

/// What kind of frame it is; also the type byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameKind {
    /// A performative, or a heartbeat where the body is empty.
    Amqp = 0,
    /// A SASL exchange; the channel is ignored.
    Sasl = 1,
}

/// A frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame<'a> {
    /// What kind of frame it is.
    pub kind: FrameKind,
    /// The channel, for AMQP frames.
    pub channel: u16,
    /// What follows the headers; empty: a heartbeat.
    pub body: &'a [u8],
}

/// A malformed frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameError {
    /// Smaller than its own header.
    SizeBelowHeader {
        /// The size that the frame states, in bytes.
        size: u32,
    },
    /// Larger than what was agreed on.
    SizeAboveMax {
        /// The size that the frame states, in bytes.
        size: u32,
        /// The limit in force, in bytes.
        max_frame_size: u32,
    },
    /// A data offset inside the frame header.
    OffsetBelowHeader {
        /// The offset that the frame states, in units of four bytes.
        doff: u8,
    },
    /// A data offset beyond the end of the frame.
    OffsetAboveSize {
        /// The offset that the frame states, in units of four bytes.
        doff: u8,
        /// The size that the frame states, in bytes.
        size: u32,
    },
    /// A type that is neither AMQP nor SASL.
    UnknownKind(u8),
}

/// Parses the frame at the start of `bytes`: `None` until it is complete, then the frame and how
/// many bytes it took.
///
/// # Errors
/// Where it is malformed or larger than `max_frame_size`.
#[inline]
pub fn parse(bytes: &[u8], max_frame_size: u32) -> Result<Option<(Frame<'_>, usize)>, FrameError> {
    let Some(size) = bytes.first_chunk::<4>() else { return Ok(None) };
    let size = u32::from_be_bytes(*size);
    if (size as usize) < HEADER_LEN {
        return Err(FrameError::SizeBelowHeader { size });
    }
    if size > max_frame_size {
        return Err(FrameError::SizeAboveMax { size, max_frame_size });
    }
    let Some(&[_, _, _, _, doff, kind, channel_high, channel_low]) = bytes.first_chunk() else {
        return Ok(None);
    };
    if doff < 2 {
        return Err(FrameError::OffsetBelowHeader { doff });
    }
    let body_at = usize::from(doff) * 4;
    if body_at > size as usize {
        return Err(FrameError::OffsetAboveSize { doff, size });
    }
    let kind = match kind {
        0 => FrameKind::Amqp,
        1 => FrameKind::Sasl,
        other => return Err(FrameError::UnknownKind(other)),
    };
    let Some(frame) = bytes.get(..size as usize) else { return Ok(None) };
    let channel = u16::from_be_bytes([channel_high, channel_low]);
    Ok(Some((Frame { kind, channel, body: &frame[body_at..] }, frame.len())))
}

/// A frame being appended to a byte vector; its size is filled in by [`FrameWriter::finish`].
#[derive(Debug)]
#[must_use = "a frame without its size is garbage: finish it"]
pub struct FrameWriter<'v> {
    out: &'v mut Vec<u8>,
    start: usize,
}

impl<'v> FrameWriter<'v> {
    /// Appends the header of an AMQP frame.
    #[inline]
    pub fn amqp(out: &'v mut Vec<u8>, channel: u16) -> Self {
        Self::begin(out, FrameKind::Amqp, channel)
    }

    #[inline]
    fn begin(out: &'v mut Vec<u8>, kind: FrameKind, channel: u16) -> Self {
        let start = out.len();
        let [high, low] = channel.to_be_bytes();
        out.extend_from_slice(&[0, 0, 0, 0, 2, kind as u8, high, low]);
        Self { out, start }
    }

    /// Appends a performative.
    #[inline]
    pub fn composite<'a>(&mut self, composite: &impl Composite<'a>) {
        composite.write_described(&mut Writer::new(self.out));
    }

    /// Appends payload.
    #[inline]
    pub fn payload(&mut self, bytes: &[u8]) {
        self.out.extend_from_slice(bytes);
    }

    /// The size of the frame so far, in bytes, with its header.
    #[must_use]
    pub fn size(&self) -> usize {
        self.out.len() - self.start
    }

    /// Fills in the size.
    ///
    /// # Panics
    /// From 4 GiB on, far above any `max-frame-size` we state or obey.
    #[inline]
    pub fn finish(self) {
        let size = u32::try_from(self.size()).expect("frames are far below 4 GiB");
        self.out[self.start..self.start + 4].copy_from_slice(&size.to_be_bytes());
    }
}

/// Appends a frame with a performative and no payload.
pub fn write(out: &mut Vec<u8>, channel: u16, performative: &Performative<'_>) {
    let frame = FrameWriter::amqp(out, channel);
    performative.encode(frame.out);
    frame.finish();
}

/// Appends a SASL frame.
pub fn write_sasl(out: &mut Vec<u8>, body: &SaslBody<'_>) {
    let frame = FrameWriter::begin(out, FrameKind::Sasl, 0);
    body.encode(frame.out);
    frame.finish();
}

/// Appends a heartbeat: an empty frame [2.4.5].
pub fn write_heartbeat(out: &mut Vec<u8>) {
    FrameWriter::amqp(out, 0).finish();
}

/// The protocol that a header asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProtocolId {
    /// AMQP itself.
    Amqp = 0,
    /// TLS inside the connection [5.2].
    Tls = 2,
    /// SASL first [5.3].
    Sasl = 3,
}

/// Eight bytes that are not a protocol header of AMQP 1.0.0 [2.2].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnknownProtocol;

/// The length of a protocol header.
pub const PROTOCOL_HEADER_LEN: usize = 8;

impl ProtocolId {
    /// The header that asks for this protocol.
    #[must_use]
    pub const fn header(self) -> [u8; PROTOCOL_HEADER_LEN] {
        [b'A', b'M', b'Q', b'P', self as u8, 1, 0, 0]
    }

    /// Parses the protocol header at the start of `bytes`: `None` while it could still become one.
    ///
    /// # Errors
    /// As soon as it cannot be one any more, so that a stranger is not waited for.
    pub fn parse(bytes: &[u8]) -> Result<Option<Self>, UnknownProtocol> {
        let ids = [Self::Amqp, Self::Tls, Self::Sasl];
        let len = bytes.len().min(PROTOCOL_HEADER_LEN);
        let mut matching = ids.into_iter().filter(|id| id.header()[..len] == bytes[..len]);
        let Some(id) = matching.next() else { return Err(UnknownProtocol) };
        Ok((len == PROTOCOL_HEADER_LEN).then_some(id))
    }
}

impl fmt::Display for UnknownProtocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the first bytes are not the protocol header of AMQP 1.0.0, plain or SASL")
    }
}

impl std::error::Error for UnknownProtocol {}

impl fmt::Display for FrameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::SizeBelowHeader { size } => {
                write!(f, "frame of {size} bytes is smaller than its header of {HEADER_LEN}")
            }
            Self::SizeAboveMax { size, max_frame_size } => {
                write!(f, "frame of {size} bytes is above the max-frame-size of {max_frame_size}")
            }
            Self::OffsetBelowHeader { doff } => {
                write!(f, "frame data offset {doff} is inside the frame header; 2 is the least")
            }
            Self::OffsetAboveSize { doff, size } => {
                write!(f, "frame data offset {doff} is beyond the frame's {size} bytes")
            }
            Self::UnknownKind(kind) => {
                write!(f, "frame type {kind:#04x} is neither AMQP (0) nor SASL (1)")
            }
        }
    }
}

impl std::error::Error for FrameError {}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::performative::{Close, Detach, Transfer};

    const MAX: u32 = 1 << 20;

    #[test]
    fn a_heartbeat_is_an_empty_frame_on_any_channel() {
        let mut bytes = Vec::new();
        write_heartbeat(&mut bytes);
        assert_eq!(bytes, [0, 0, 0, 8, 2, 0, 0, 0]);
        bytes[7] = 9;
        let frame = Frame { kind: FrameKind::Amqp, channel: 9, body: &[] };
        assert_eq!(parse(&bytes, MAX), Ok(Some((frame, 8))));
    }

    #[test]
    fn a_frame_comes_byte_by_byte_and_the_next_one_stays() {
        let mut bytes = Vec::new();
        write(&mut bytes, 0x0102, &Performative::Close(Close::default()));
        let size = bytes.len();
        write_heartbeat(&mut bytes);
        for len in 0..size {
            assert_eq!(parse(&bytes[..len], MAX), Ok(None), "{len}");
        }
        for len in size..bytes.len() {
            let (frame, consumed) = parse(&bytes[..len], MAX).unwrap().unwrap();
            assert_eq!(consumed, size);
            assert_eq!(frame.channel, 0x0102);
            let (performative, _) = Performative::decode(frame.body).unwrap();
            assert_eq!(performative, Performative::Close(Close::default()));
        }
    }

    #[test]
    fn item_1_sizes_below_the_header_are_refused_by_their_first_four_bytes() {
        for size in 0..8 {
            let error = parse(&[0, 0, 0, size], MAX).unwrap_err();
            assert_eq!(error, FrameError::SizeBelowHeader { size: size.into() });
        }
    }

    #[test]
    fn item_1_the_data_offset_lies_between_header_and_end() {
        for doff in [0, 1] {
            let error = parse(&[0, 0, 0, 8, doff, 0, 0, 0], MAX).unwrap_err();
            assert_eq!(error, FrameError::OffsetBelowHeader { doff });
        }
        // Judged before the body is there.
        for (size, doff) in [(8, 3), (15, 4), (255, 64), (255, 255)] {
            let error = parse(&[0, 0, 0, size, doff, 0, 0, 0], MAX).unwrap_err();
            assert_eq!(error, FrameError::OffsetAboveSize { doff, size: size.into() });
        }
    }

    #[test]
    fn item_1_an_extended_header_is_skipped() {
        let bytes = [0, 0, 0, 13, 3, 0, 0, 5, 0xde, 0xad, 0xbe, 0xef, 0x45];
        let frame = Frame { kind: FrameKind::Amqp, channel: 5, body: &[0x45] };
        assert_eq!(parse(&bytes, MAX), Ok(Some((frame, 13))));
        // Up to the end of the frame: a heartbeat.
        let bytes = [0, 0, 0, 12, 3, 0, 0, 5, 0xde, 0xad, 0xbe, 0xef];
        let frame = Frame { kind: FrameKind::Amqp, channel: 5, body: &[] };
        assert_eq!(parse(&bytes, MAX), Ok(Some((frame, 12))));
    }

    #[test]
    fn item_2_the_largest_frame_is_taken_and_one_byte_more_is_not() {
        let mut bytes = vec![0; 512];
        bytes[..8].copy_from_slice(&[0, 0, 2, 0, 2, 0, 0, 0]);
        let (frame, consumed) = parse(&bytes, MAX_FRAME_SIZE_MIN).unwrap().unwrap();
        assert_eq!((frame.body.len(), consumed), (504, 512));
        let error = parse(&[0, 0, 2, 1], MAX_FRAME_SIZE_MIN).unwrap_err();
        assert_eq!(error, FrameError::SizeAboveMax { size: 513, max_frame_size: 512 });
        assert_eq!(error.to_string(), "frame of 513 bytes is above the max-frame-size of 512");
        assert!(parse(&[0xff; 4], MAX).is_err());
    }

    #[test]
    fn a_frame_of_another_type_is_refused() {
        let error = parse(&[0, 0, 0, 8, 2, 2, 0, 0], MAX).unwrap_err();
        assert_eq!(error, FrameError::UnknownKind(2));
    }

    #[test]
    fn a_frame_writer_counts_header_performative_and_payload() {
        let mut bytes = b"before".to_vec();
        let mut frame = FrameWriter::amqp(&mut bytes, 7);
        assert_eq!(frame.size(), HEADER_LEN);
        frame.composite(&Transfer { more: true, ..Transfer::default() });
        let head = frame.size();
        frame.payload(b"pay");
        frame.payload(b"load");
        assert_eq!(frame.size(), head + 7);
        frame.finish();
        let (frame, consumed) = parse(&bytes[6..], MAX).unwrap().unwrap();
        assert_eq!(consumed, head + 7);
        let (performative, payload) = Performative::decode(frame.body).unwrap();
        assert_eq!(payload, b"payload");
        let transfer = Transfer { more: true, ..Transfer::default() };
        assert_eq!(performative, Performative::Transfer(transfer));
    }

    #[test]
    fn frames_of_both_kinds_are_written_as_they_are_read() {
        let mut bytes = Vec::new();
        let body = SaslBody::Response(crate::sasl::SaslResponse { response: b"secret" });
        write_sasl(&mut bytes, &body);
        let (frame, _) = parse(&bytes, MAX).unwrap().unwrap();
        assert_eq!(frame.kind, FrameKind::Sasl);
        assert_eq!(SaslBody::decode(frame.body), Ok(body));
        // No byte of the secret is shown: 's' is 115.
        assert_eq!(format!("{body:?}"), "Response(SaslResponse { response: .. })");
        let init = crate::sasl::SaslInit { initial_response: Some(b"s"), ..Default::default() };
        assert!(!format!("{init:?}").contains("115"), "{init:?}");

        bytes.clear();
        let detach = Performative::Detach(Detach { closed: true, ..Detach::default() });
        write(&mut bytes, u16::MAX, &detach);
        let (frame, _) = parse(&bytes, MAX).unwrap().unwrap();
        assert_eq!(frame.channel, u16::MAX);
        assert_eq!(Performative::decode(frame.body), Ok((detach, &[][..])));
    }

    #[test]
    fn item_4_protocol_headers_are_known_by_each_byte() {
        for id in [ProtocolId::Amqp, ProtocolId::Tls, ProtocolId::Sasl] {
            let header = id.header();
            for len in 0..8 {
                assert_eq!(ProtocolId::parse(&header[..len]), Ok(None));
            }
            assert_eq!(ProtocolId::parse(&header), Ok(Some(id)));
            let followed = [&header[..], b"\0\0\0\x08"].concat();
            assert_eq!(ProtocolId::parse(&followed), Ok(Some(id)));
            for index in 0..8 {
                let mut other = header;
                other[index] ^= 0x41;
                assert_eq!(ProtocolId::parse(&other), Err(UnknownProtocol), "{index}");
            }
        }
        // AMQP 0-9-1, HTTP, and the ids that nobody has.
        let strangers = [b"AMQP\0\0\x09\x01", b"GET / HT", b"AMQP\x01\x01\0\0"];
        assert!(strangers.iter().all(|bytes| ProtocolId::parse(*bytes) == Err(UnknownProtocol)));
        assert_eq!(ProtocolId::parse(b"G"), Err(UnknownProtocol));
    }
}
