//! How letters, questions and replies travel in a stream of bytes.
//!
//! ```text
//!   connection   preface, then frames     preface  "LLvt" version (1) kind (1) seat (1) zero (1)
//!   frame        length (4) crc (4) bytes          the length is that of the bytes
//! ```
//! Kind 1 is a voter, which only sends letters on a connection that it made; kind 2 a client, which
//! asks and is answered on it; kind 3 a voter that passes on what clients ask. Voters of before
//! kind 3 refuse such a connection, and are passed nothing; nothing else is different with them.
//! The checksum is crc32c, little-endian like the rest: a guard against mistakes; against attackers
//! there is TLS below.
//!
//! Invariant: what waits for the rest of a frame is bounded by [`FRAME_BYTES_MAX`] and one read.

use super::seats::Seat;
use crate::codec::WireError;
use crate::limits::FRAME_BYTES_MAX;

const MAGIC: [u8; 4] = *b"LLvt";
const VERSION: u8 = 2;
const HEADER_BYTES: usize = 8;

/// Bytes of a preface.
pub const PREFACE_BYTES: usize = 8;

/// Who made a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Preface {
    /// The voter of this seat.
    Voter(Seat),
    /// Somebody who asks.
    Client,
    /// The voter of this seat, which passes on what it was asked.
    Relay(Seat),
}

impl Preface {
    /// Its bytes.
    #[must_use]
    pub const fn encode(self) -> [u8; PREFACE_BYTES] {
        let (kind, seat) = match self {
            Self::Voter(seat) => (1, seat.0),
            Self::Client => (2, 0),
            Self::Relay(seat) => (3, seat.0),
        };
        let [a, b, c, d] = MAGIC;
        [a, b, c, d, VERSION, kind, seat, 0]
    }

    /// Reads a preface.
    ///
    /// # Errors
    /// It is none, or of another version.
    pub fn decode(bytes: [u8; PREFACE_BYTES]) -> Result<Self, WireError> {
        if bytes[..4] != MAGIC {
            return Err(WireError::Contradiction("the preface"));
        }
        match bytes[4..] {
            [VERSION, 1, seat, 0] if seat > 0 => Ok(Self::Voter(Seat(seat))),
            [VERSION, 2, 0, 0] => Ok(Self::Client),
            [VERSION, 3, seat, 0] if seat > 0 => Ok(Self::Relay(Seat(seat))),
            [VERSION, kind, ..] => Err(WireError::Unknown("kind of connection", kind.into())),
            [version, ..] => Err(WireError::Unknown("version of the wire", version.into())),
            [] => Err(WireError::Short("the preface")),
        }
    }
}

/// A frame around these bytes.
///
/// # Panics
/// If they are longer than [`FRAME_BYTES_MAX`]: no letter, question or reply is.
#[must_use]
pub fn frame(bytes: &[u8]) -> Vec<u8> {
    assert!(bytes.len() <= FRAME_BYTES_MAX, "a frame of {} bytes is refused", bytes.len());
    let length = u32::try_from(bytes.len()).expect("within the bound");
    let mut frame = Vec::with_capacity(HEADER_BYTES + bytes.len());
    frame.extend_from_slice(&length.to_le_bytes());
    frame.extend_from_slice(&crc32c::crc32c(bytes).to_le_bytes());
    frame.extend_from_slice(bytes);
    frame
}

/// Takes frames out of a stream.
#[derive(Debug, Default)]
pub struct Frames {
    buffered: Vec<u8>,
    /// What of it has been handed out.
    taken: usize,
}

impl Frames {
    /// What was read, as it came.
    pub fn handle_bytes(&mut self, bytes: &[u8]) {
        self.buffered.drain(..self.taken);
        self.taken = 0;
        self.buffered.extend_from_slice(bytes);
    }

    /// The next whole frame.
    ///
    /// # Errors
    /// It is too long or damaged. The connection is of no use any more.
    pub fn poll_frame(&mut self) -> Result<Option<Vec<u8>>, WireError> {
        let rest = &self.buffered[self.taken..];
        let Some((header, rest)) = rest.split_at_checked(HEADER_BYTES) else { return Ok(None) };
        let word = |at: usize| {
            u32::from_le_bytes(header[at..at + 4].try_into().expect("four of eight bytes"))
        };
        let length = word(0) as usize;
        if length > FRAME_BYTES_MAX {
            return Err(WireError::TooLong("a frame"));
        }
        let Some(bytes) = rest.get(..length) else { return Ok(None) };
        if crc32c::crc32c(bytes) != word(4) {
            return Err(WireError::Contradiction("a frame's checksum"));
        }
        let bytes = bytes.to_vec();
        self.taken += HEADER_BYTES + length;
        Ok(Some(bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_come_out_however_they_are_cut() {
        let sent = [b"one".to_vec(), Vec::new(), vec![7; 5000]];
        let stream: Vec<u8> = sent.iter().flat_map(|bytes| frame(bytes)).collect();
        for piece in [1, 3, 8, 11, stream.len()] {
            let mut frames = Frames::default();
            let mut got = Vec::new();
            for bytes in stream.chunks(piece) {
                frames.handle_bytes(bytes);
                while let Some(frame) = frames.poll_frame().expect("sound") {
                    got.push(frame);
                }
            }
            assert_eq!(got, sent, "in pieces of {piece}");
        }
    }

    #[test]
    fn a_long_or_damaged_frame_is_refused_at_once() {
        let mut frames = Frames::default();
        frames.handle_bytes(&[0xff; HEADER_BYTES]);
        assert_eq!(frames.poll_frame(), Err(WireError::TooLong("a frame")));
        let mut damaged = frame(b"text");
        damaged[9] ^= 1;
        let mut frames = Frames::default();
        frames.handle_bytes(&damaged);
        assert_eq!(frames.poll_frame(), Err(WireError::Contradiction("a frame's checksum")));
    }

    #[test]
    fn a_preface_says_who_and_in_which_version() {
        for preface in [Preface::Client, Preface::Voter(Seat(3)), Preface::Relay(Seat(3))] {
            assert_eq!(Preface::decode(preface.encode()), Ok(preface));
        }
        let mut newer = Preface::Client.encode();
        newer[4] = VERSION + 1;
        let unknown = WireError::Unknown("version of the wire", u64::from(VERSION + 1));
        assert_eq!(Preface::decode(newer), Err(unknown));
        assert!(Preface::decode(*b"GET / HT").is_err());
        assert!(Preface::decode([0; 8]).is_err());
    }
}
