//! The messages of a load, and the stamp that they begin with.
//!
//! ```text
//!   header (durable = true)?
//!   data section   | magic 4 | run 4 | intended 8 | actual 8 | number 8 | filler
//!                  |<-------------- STAMP_BYTES = 32 --------------->|
//! ```
//! Times are nanoseconds of CLOCK_MONOTONIC, big-endian: they mean something on one machine, since
//! it started. `run` tells the messages of this run from what else is in a queue. A body shorter
//! than the stamp holds its beginning, which nobody reads back. The filler is a piece of one long
//! filler, from a place that `number` says: messages side by side differ in every byte.
//!
//! Failure: what is no stamp, or comes from the future, reads as none.

use amqp::codec::Writer;
use amqp::message::{Header, write_header};

use crate::client::data_of;

/// Bytes of a stamp; a body of fewer cannot tell its times.
pub const STAMP_BYTES: usize = 32;

/// `LaP1`: ours, in this layout.
const MAGIC: [u8; 4] = *b"LaP1";

/// What a message says of its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stamp {
    /// Which run.
    pub(crate) run: u32,
    /// When it was due.
    pub(crate) intended_ns: u64,
    /// When it was sent.
    pub(crate) actual_ns: u64,
    /// Which of the run's messages.
    pub(crate) number: u64,
}

impl Stamp {
    #[inline]
    pub(crate) fn write(self) -> [u8; STAMP_BYTES] {
        let mut bytes = [0; STAMP_BYTES];
        bytes[..4].copy_from_slice(&MAGIC);
        bytes[4..8].copy_from_slice(&self.run.to_be_bytes());
        bytes[8..16].copy_from_slice(&self.intended_ns.to_be_bytes());
        bytes[16..24].copy_from_slice(&self.actual_ns.to_be_bytes());
        bytes[24..].copy_from_slice(&self.number.to_be_bytes());
        bytes
    }

    /// The stamp of an encoded message; `now_ns` is when it came.
    pub(crate) fn read(message: &[u8], now_ns: u64) -> Option<Self> {
        let stamp = data_of(message)?.first_chunk::<STAMP_BYTES>()?;
        let long = |at: usize| {
            let bytes = stamp[at..at + 8].first_chunk().expect("eight bytes");
            u64::from_be_bytes(*bytes)
        };
        let run = u32::from_be_bytes(*stamp[4..8].first_chunk().expect("four bytes"));
        let read = Self { run, intended_ns: long(8), actual_ns: long(16), number: long(24) };
        let sound = stamp[..4] == MAGIC && read.actual_ns.max(read.intended_ns) <= now_ns;
        sound.then_some(read)
    }
}

/// A message but for its stamp: what does not change from one to the next.
#[derive(Debug)]
pub(crate) struct Template {
    prefix: Vec<u8>,
    /// Of all messages: each has its piece.
    filler: Vec<u8>,
    stamp_bytes: usize,
}

/// As many messages in a row have different fillers; a prime.
const FILLERS: u64 = 251;

impl Template {
    pub(crate) fn new(size: usize, durable: bool) -> Self {
        /// The descriptor of a data section [3.2.6].
        const DATA: u64 = 0x75;
        let mut prefix = Vec::new();
        if durable {
            write_header(&Header { durable: Some(true), ..Header::default() }, &mut prefix);
        }
        // A binary's length stands before its bytes, so all but those can be written once.
        let mut writer = Writer::new(&mut prefix);
        writer.descriptor(DATA);
        writer.binary(&vec![0; size]);
        prefix.truncate(prefix.len() - size);
        let stamp_bytes = size.min(STAMP_BYTES);
        // Not zeros: a peer or a disk that compresses would look better than it is.
        let filler_bytes = size - stamp_bytes + FILLERS as usize - 1;
        let filler = (0..filler_bytes).map(|at| (at * 31 % 251) as u8).collect();
        Self { prefix, filler, stamp_bytes }
    }

    /// The parts of the message with this stamp and number.
    #[inline]
    pub(crate) fn parts<'a>(&'a self, stamp: &'a [u8; STAMP_BYTES], number: u64) -> [&'a [u8]; 3] {
        [&self.prefix, &stamp[..self.stamp_bytes], self.filler_of(number)]
    }

    /// Whether this is a message of ours as it was sent.
    pub(crate) fn is_whole(&self, message: &[u8], stamp: &Stamp) -> bool {
        let body = data_of(message).and_then(|body| body.get(self.stamp_bytes..));
        body == Some(self.filler_of(stamp.number))
    }

    fn filler_of(&self, number: u64) -> &[u8] {
        let at = (number % FILLERS) as usize;
        &self.filler[at..=at + self.filler.len() - FILLERS as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use amqp::message::Sections;

    const STAMP: Stamp = Stamp { run: 7, intended_ns: 100, actual_ns: 120, number: 3 };

    #[test]
    fn a_stamp_is_read_back_from_its_message() {
        for size in [32, 100, 256, 70_000] {
            let template = Template::new(size, true);
            let mut message = template.parts(&STAMP.write(), STAMP.number).concat();
            assert_eq!(data_of(&message).map(<[u8]>::len), Some(size));
            assert_eq!(Stamp::read(&message, 120), Some(STAMP));
            assert!(template.is_whole(&message, &STAMP));
            let other = Stamp { number: 4, ..STAMP };
            assert_eq!(template.is_whole(&message, &other), size == STAMP_BYTES);
            assert_eq!(Stamp::read(&message, 119), None, "it comes from the future");
            assert!(Sections::scan(&message).expect("our own").header_fields.is_durable());
            message.pop();
            assert!(!template.is_whole(&message, &STAMP), "cut short");
        }
    }

    #[test]
    fn a_short_body_has_its_size_and_no_stamp() {
        for size in [0, 1, 31] {
            let message = Template::new(size, false).parts(&STAMP.write(), 3).concat();
            assert_eq!(data_of(&message).map(<[u8]>::len), Some(size));
            assert_eq!(Stamp::read(&message, 120), None);
            assert!(!Sections::scan(&message).expect("our own").header_fields.is_durable());
        }
        let foreign = crate::client::durable_message(&[1; 64]);
        assert_eq!(Stamp::read(&foreign, u64::MAX), None);
    }
}
