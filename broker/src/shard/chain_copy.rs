//! A message in fragments is copied out of the head: a fragment at a time, as they stand.
//!
//! ```text
//!   from   F0 ── F1 ── F2 ── F3        where its fragments are
//!   read         └─────────┘           a few that lie together, one read at a time
//!   to     F0'── F1'                   where their copies are
//!                      the last one is appended: the message has a copy (`compaction.rs`)
//! ```
//! So a message of any length takes the memory of one read, and its copy is paced like others. It
//! takes several turns; meanwhile the message may be sent, settled, or come back.
//!
//! Invariants: no fragment is appended once a settlement of the message is; what is left of the
//! copy then is a chain without an end, which is nothing. What the log says of the message stands
//! behind the last fragment, as behind every copy. A copy begins only where all of it has room.

use std::time::Instant;

use journal::limits::BLOCK_BYTES;
use journal::{AppendError, BlockBuf, FragmentAt, Lsn, QueueId, ReadId, Record, Sequence, Span};

use super::Shard;
use crate::duplicates::DuplicateId;
use crate::limits::READ_BACK_BYTES;
use crate::queue::Chain;

/// The copy under way, and what was read for it.
#[derive(Debug, Default)]
pub(super) struct ChainCopies {
    copy: Option<Copy>,
    /// Asked for, perhaps for a copy that was given up.
    reading: Option<(ReadId, Span)>,
    read: Option<(Lsn, Vec<u8>)>,
    /// Which message found no room, how much there was, and what was said: its fragments may be
    /// very many to be asked for again.
    no_room: Option<(QueueId, Sequence, Looked, AppendError)>,
}

/// Free bytes, unsettled messages, and whether the file system has none for a segment.
type Looked = (u64, u64, bool);

#[derive(Debug)]
struct Copy {
    queue: QueueId,
    sequence: Sequence,
    from: Chain,
    to: Vec<FragmentAt>,
    duplicate_id: Option<DuplicateId>,
}

impl ChainCopies {
    pub(super) fn is_copying(&self) -> bool {
        self.copy.is_some()
    }

    /// Where the copy under way begins; nowhere if there is none.
    pub(super) fn begins_at(&self) -> Lsn {
        let first = self.copy.as_ref().and_then(|copy| copy.to.first());
        first.map_or(Lsn(u64::MAX), |at| at.lsn)
    }

    /// Takes a read, if it was one of these.
    pub(super) fn take_read(&mut self, id: ReadId, buf: &BlockBuf) -> bool {
        let Some((_, span)) = self.reading.take_if(|(asked, _)| *asked == id) else {
            return false;
        };
        self.read = Some((span.lsn, buf.as_slice().to_vec()));
        true
    }

    fn give_up(&mut self) {
        (self.copy, self.read) = (None, None);
    }
}

impl Copy {
    /// What is to be read for the next fragment: it, and those that lie close behind it.
    fn span(&self, segment_bytes: u64) -> Span {
        let block = BLOCK_BYTES as u64;
        let mut fragments = self.from.fragments()[self.to.len()..].iter();
        let first = fragments.next().expect("asked for while one is missing");
        let begin = first.lsn.0 / block * block;
        let end_of = |at: &FragmentAt| at.end().0.next_multiple_of(block);
        let mut end = end_of(first);
        for at in fragments {
            let is_same = at.lsn.0 / segment_bytes == begin / segment_bytes;
            if !is_same || at.lsn.0 < end - block || end_of(at) - begin > READ_BACK_BYTES as u64 {
                break;
            }
            end = end_of(at);
        }
        Span { lsn: Lsn(begin), bytes: (end - begin) as usize }
    }
}

impl Shard {
    /// A message that begins in the head is to be copied, which takes some turns.
    pub(super) fn begin_chain(
        &mut self,
        queue: QueueId,
        sequence: Sequence,
    ) -> Result<(), AppendError> {
        let Some(journal) = &mut self.journal else { return Err(AppendError::Closed) };
        let usage = journal.usage();
        let room = (usage.free_bytes, usage.unsettled, journal.lacks_space());
        if let Some((_, _, _, error)) = self
            .compaction
            .chains
            .no_room
            .as_ref()
            .filter(|(of, number, then, _)| (*of, *number, *then) == (queue, sequence, room))
        {
            return Err(*error);
        }
        let chain = self.state.queue(queue).and_then(|queue| queue.chain(sequence));
        let chain = chain.expect("what lives in fragments has its places");
        if chain.end() > journal.committed() {
            return Err(AppendError::Busy);
        }
        let sizes = chain.fragments().iter().map(|at| at.record_bytes as usize);
        if let Err(error) = journal.admits_copies(sizes) {
            self.compaction.chains.no_room = Some((queue, sequence, room, error));
            return Err(error);
        }
        let from = chain.clone();
        let to = Vec::with_capacity(from.fragments().len());
        let copy = Copy { queue, sequence, from, to, duplicate_id: None };
        self.compaction.chains.copy = Some(copy);
        Ok(())
    }

    /// Copies the next fragment, unless its message goes. False: it is being read.
    pub(super) fn append_fragment(&mut self, now: Instant) -> Result<bool, AppendError> {
        let Some(journal) = &mut self.journal else { return Err(AppendError::Closed) };
        let ChainCopies { copy: Some(copy), reading, read, .. } = &mut self.compaction.chains
        else {
            return Ok(true);
        };
        if !self.state.lives_at(copy.queue, copy.sequence, copy.from.lsn()) {
            self.compaction.chains.give_up();
            return Ok(true);
        }
        let at = copy.from.fragments()[copy.to.len()];
        let found = read.as_ref().and_then(|(lsn, bytes)| {
            let start = at.lsn.0.checked_sub(lsn.0)? as usize;
            bytes.get(start..start + at.record_bytes as usize)
        });
        let Some(bytes) = found else {
            if reading.is_none() {
                let span = copy.span(self.config.segment_bytes);
                *reading = Some((journal.read_back(span), span));
            }
            return Ok(false);
        };
        let Ok((record, _)) = Record::decode(journal.seed(), at.lsn, bytes) else {
            let (queue, sequence) = (copy.queue, copy.sequence);
            self.damaged(queue, sequence, at.lsn);
            return Ok(false);
        };
        let before = journal.appended();
        let appended = journal.append_copy(now, &record)?;
        if let Some(id) = record.parts.duplicate_id {
            copy.duplicate_id = Some(DuplicateId::from_record(id));
        }
        copy.to.push(FragmentAt { lsn: appended.lsn, ..at });
        let is_whole = copy.to.len() == copy.from.fragments().len();
        self.compaction.count_copy(before, appended);
        if is_whole && let Some(copy) = self.compaction.chains.copy.take() {
            self.compaction.chains.give_up();
            let Copy { queue, sequence, to, duplicate_id, .. } = copy;
            let place = to[0].lsn..appended.end;
            self.end_copy((queue, sequence), place, Some(Chain::new(to)), duplicate_id);
            self.append_owed(now)?;
        }
        Ok(true)
    }
}
