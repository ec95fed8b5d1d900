//! Messages longer than a record: split on the way in, gathered on the way out.
//!
//! ```text
//!   payload   |-------- 64 KiB --------|-------- 64 KiB --------|--- rest ---|
//!   records    FIRST, 0, with parts     1                        LAST, 2
//! ```
//!
//! All fragments of a message carry its queue, sequence, kind and level; only the first its parts.
//! Fragments of different messages may lie between each other. The last one commits the message: an
//! incomplete chain at the end of the log is garbage, and so is one whose fragments don't follow
//! each other.
//!
//! What is gathered is bounded by the log itself: a fragment is never longer than its record. Who
//! does not gather keeps a chain of places ([`FragmentAt`]), and reads them back one by one.

use std::collections::BTreeMap;

use bytes::{Bytes, BytesMut};

use crate::limits::{
    BATCH_BYTES_MAX, BATCH_HEADER_BYTES, FRAGMENT_BYTES_MAX, PARTS_BYTES_MAX, RECORD_HEADER_BYTES,
    SEGMENT_HEADER_BYTES,
};
use crate::lsn::{Lsn, QueueId, Sequence};
use crate::record::{Parts, Record, RecordFlags};

/// Where the record of a fragment is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FragmentAt {
    /// Where it begins.
    pub lsn: Lsn,
    /// Bytes of the record, header and parts included.
    pub record_bytes: u32,
}

impl FragmentAt {
    /// The place of a record that was read.
    #[must_use]
    pub fn new(lsn: Lsn, record: &Record<'_>) -> Self {
        Self::of(lsn, record.encoded_len())
    }

    pub(crate) fn of(lsn: Lsn, record_bytes: usize) -> Self {
        Self { lsn, record_bytes: u32::try_from(record_bytes).expect("records are bounded") }
    }

    /// The end of its last byte.
    #[must_use]
    pub fn end(&self) -> Lsn {
        self.lsn.plus(u64::from(self.record_bytes))
    }
}

/// Bytes in a fragment where there is a choice: two of them fill a batch.
const SPLIT_BYTES: usize = 63 * 1024;

/// A record that carries a message, or a part of one.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fragment<'a> {
    pub(crate) record: Record<'a>,
    /// How many bytes it takes in a batch; counted once, for it is asked for several times.
    pub(crate) bytes: usize,
}

/// Most payload of one record in segments of this size: with its header and the longest parts it
/// must fit into one batch, and that into a segment.
pub(crate) fn bytes_max(segment_bytes: u64) -> usize {
    let segment = usize::try_from(segment_bytes - SEGMENT_HEADER_BYTES).unwrap_or(usize::MAX);
    let batch = segment.min(BATCH_BYTES_MAX);
    let payload = batch - BATCH_HEADER_BYTES - RECORD_HEADER_BYTES - PARTS_BYTES_MAX;
    payload.min(FRAGMENT_BYTES_MAX)
}

/// The records that carry `record`, of at most `bytes_max` payload each. None: there would be more
/// fragments than can be numbered, or the optional parts are too long.
pub(crate) fn split<'a>(
    record: &Record<'a>,
    bytes_max: usize,
) -> Option<impl Iterator<Item = Fragment<'a>> + Clone + use<'a>> {
    assert!(bytes_max > 0 && bytes_max <= FRAGMENT_BYTES_MAX);
    let parts_len = record.parts_len();
    if parts_len > PARTS_BYTES_MAX {
        return None;
    }
    let record = *record;
    let is_whole = record.payload.len() <= bytes_max;
    let bytes = if is_whole { bytes_max } else { bytes_max.min(SPLIT_BYTES) };
    let last = record.payload.len().div_ceil(bytes).max(1) - 1;
    let last = u16::try_from(last).ok()?;
    record.fragment.checked_add(last)?;
    Some((0..=last).map(move |index| {
        let begin = usize::from(index) * bytes;
        let end = record.payload.len().min(begin + bytes);
        let mut one = record;
        one.payload = &record.payload[begin..end];
        one.fragment = record.fragment + index;
        if index > 0 {
            one.parts = Parts::default();
            one.flags = one.flags.without(RecordFlags::FIRST);
        }
        if index < last {
            one.flags = one.flags.without(RecordFlags::LAST);
        }
        let parts_len = if index == 0 { parts_len } else { 0 };
        let bytes = RECORD_HEADER_BYTES + parts_len + one.payload.len();
        Fragment { record: one, bytes }
    }))
}

/// Gathers fragments in the order of the log.
#[derive(Debug, Default)]
pub struct Gather {
    partial: BTreeMap<(QueueId, Sequence), Partial>,
}

#[derive(Debug)]
struct Partial {
    lsn: Lsn,
    next: u16,
    payload: BytesMut,
}

/// A message whose fragments are all there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gathered {
    /// The place of its first fragment.
    pub lsn: Lsn,
    /// All of it.
    pub payload: Bytes,
}

impl Gather {
    /// Takes a record that is not whole; gives the message when this was its last fragment. The
    /// parts of the message are those of its first fragment.
    ///
    /// # Panics
    /// If the record is whole: there is nothing to gather then.
    pub fn handle_fragment(&mut self, lsn: Lsn, record: &Record<'_>) -> Option<Gathered> {
        assert!(!record.flags.has(RecordFlags::WHOLE), "a whole record is no fragment");
        let key = (record.queue, record.sequence);
        if record.flags.has(RecordFlags::FIRST) {
            let payload = BytesMut::from(record.payload);
            self.partial
                .insert(key, Partial { lsn, next: record.fragment.checked_add(1)?, payload });
            return None;
        }
        let partial = self.partial.get_mut(&key)?;
        if partial.next != record.fragment {
            self.partial.remove(&key);
            return None;
        }
        partial.payload.extend_from_slice(record.payload);
        if record.flags.has(RecordFlags::LAST) {
            let partial = self.partial.remove(&key)?;
            return Some(Gathered { lsn: partial.lsn, payload: partial.payload.freeze() });
        }
        partial.next = partial.next.checked_add(1)?;
        None
    }

    /// Messages of which only a beginning came.
    #[must_use]
    pub fn incomplete(&self) -> usize {
        self.partial.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::RecordKind;

    fn message(payload: &[u8], sequence: u64) -> Record<'_> {
        let mut record = Record::new(RecordKind::Message, QueueId(1), Sequence(sequence), payload);
        record.parts.priority = Some(4);
        record
    }

    #[test]
    fn a_short_message_stays_one_record() {
        let record = message(b"short", 1);
        let split: Vec<_> = split(&record, 100).unwrap().collect();
        assert_eq!((split.len(), split[0].record), (1, record));
        assert_eq!(split[0].bytes, record.encoded_len());
        let empty = message(b"", 1);
        assert_eq!(super::split(&empty, 100).unwrap().count(), 1);
    }

    #[test]
    fn a_long_message_comes_back_through_other_fragments() {
        let (a, b) = (vec![1; 1001], vec![2; 300]);
        let (a, b) = (message(&a, 1), message(&b, 2));
        let (a_split, b_split) = (split(&a, 100).unwrap(), split(&b, 100).unwrap());
        assert_eq!(a_split.clone().count(), 11);
        let mixed: Vec<_> = b_split.clone().take(2).chain(a_split).chain(b_split.skip(2)).collect();
        let mut gather = Gather::default();
        let mut whole = Vec::new();
        for (place, Fragment { record: fragment, bytes }) in mixed.iter().enumerate() {
            assert_eq!(*bytes, fragment.encoded_len());
            assert_eq!(fragment.parts.priority.is_some(), fragment.flags.has(RecordFlags::FIRST));
            whole.extend(gather.handle_fragment(Lsn(place as u64), fragment));
        }
        assert_eq!(whole.len(), 2);
        assert_eq!((whole[0].lsn, &whole[0].payload[..]), (Lsn(2), a.payload));
        assert_eq!((whole[1].lsn, &whole[1].payload[..]), (Lsn(0), b.payload));
        assert_eq!(gather.incomplete(), 0);
    }

    #[test]
    fn a_gap_or_a_missing_beginning_gives_nothing() {
        let payload = vec![3; 500];
        let record = message(&payload, 1);
        for missing in 0..5 {
            let mut gather = Gather::default();
            let fragments = split(&record, 100).unwrap().enumerate();
            let kept = fragments.filter(|(index, _)| *index != missing);
            let whole = kept.filter_map(|(_, one)| gather.handle_fragment(Lsn(1), &one.record));
            assert_eq!(whole.count(), 0, "without {missing}");
        }
    }

    #[test]
    fn more_fragments_than_numbers_are_refused() {
        let payload = vec![0; 70_000];
        assert!(split(&message(&payload, 1), 1).is_none());
    }
}
