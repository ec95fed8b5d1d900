//! What lives in the oldest segment is copied forward, so that the segment can be recycled.
//!
//! ```text
//!   1 the head has live messages, and it pays ─▶ a walk over the head, a piece at a time
//!   2 live records of a piece ─▶ the window: until it is full, or the segment is over
//!   3 by queue, in order      ─▶ a copy of each that still lives is appended
//!   4 committed everywhere    ─▶ the message's place is its copy's (`State::commit`)
//!   5 nothing in the head lives ─▶ facts are copied, the head is recycled (`recycle.rs`)
//! ```
//! It pays when enough of the log is dead: an eighth where room is short, so that each byte that is
//! freed costs at most seven that are copied; three quarters of all records where there is plenty,
//! for a log that is much longer than what lives in it only takes time to read. Padding is as dead
//! as any, but while there is plenty nobody copies records only to win theirs: of a producer that
//! waits for each answer, every message lies in a block alone. A lap over the log that freed less
//! than an eighth is followed by rest, until so much more has died.
//!
//! In the foreground's interest copies are appended while the disk is free, and few are on their
//! way; where room is short they are only few. Meanwhile an append that finds no room is told to
//! wait, not that the log is full. Settlements need no room of ours: theirs is set aside.
//!
//! A message in fragments is copied fragment by fragment (`chain_copy.rs`), however long it is.
//!
//! Invariants: a copy says what its record said, parts unknown to us included, with its queue and
//! sequence; it is appended only while no settlement of the message has been appended, and what the
//! log says of failed deliveries is appended again right behind it. A segment goes only when
//! everything that was appended before it is found dead is committed, its copies among it: until
//! then the message lives where it was. Bytes that were durable and do not check end the process.

use std::ops::Range;
use std::time::Instant;

use journal::limits::{BATCH_HEADER_BYTES, BLOCK_BYTES, RESERVE_SEGMENTS};
use journal::{
    AppendError, Appended, BlockBuf, Level, Lsn, QueueId, ReadId, Record, RecordFlags, RecordKind,
    Room, SegmentScan, Sequence, Usage,
};

use super::Shard;
use super::chain_copy::ChainCopies;
use crate::apply::Effect;
use crate::canary::Canary;
use crate::duplicates::DuplicateId;
use crate::event::Fatal;
use crate::limits::{COPIES_IN_FLIGHT_BYTES, COPIES_IN_FLIGHT_BYTES_SHORT, COPY_WINDOW_BYTES};
use crate::pending::{Answer, Waiting};
use crate::queue::Chain;

/// How far the compaction of the head is.
#[derive(Debug, Default)]
pub(super) struct Compaction {
    scan: Option<SegmentScan>,
    reading: Option<ReadId>,
    window: Window,
    /// A copy of whose setbacks nothing is appended yet.
    pub(super) owed: Option<(QueueId, Sequence)>,
    /// The message in fragments that is being copied.
    pub(super) chains: ChainCopies,
    /// The last head that was walked over to its end.
    walked: Option<u64>,
    /// The end of the last copy.
    pub(super) copied: Lsn,
    /// How long the log was, in blocks, and how much was free, when it was last looked at.
    looked_at: (u64, u64),
    lap: Lap,
    /// Bytes of copies since the process started.
    pub(super) copied_bytes_total: u64,
}

/// Live records of the head that wait to be copied.
#[derive(Debug, Default)]
struct Window {
    /// As they stand in the log, one after the other.
    bytes: Vec<u8>,
    /// Sorted when the window is full.
    found: Vec<Found>,
    /// How many of them are done with.
    done: usize,
}

#[derive(Debug)]
struct Found {
    queue: QueueId,
    sequence: Sequence,
    lsn: Lsn,
    at: Range<usize>,
}

/// What one round over the log has freed, and what that took.
#[derive(Debug, Default)]
struct Lap {
    /// Where the log ended when it began.
    until: Lsn,
    recycled_bytes: u64,
    /// What the copies took, padding included.
    copied_bytes: u64,
    /// It freed too little: rest until so much is dead.
    rest_until_dead: u64,
}

impl Window {
    fn is_empty(&self) -> bool {
        self.done == self.found.len()
    }

    fn clear(&mut self) {
        self.bytes.clear();
        self.found.clear();
        self.done = 0;
    }
}

impl Compaction {
    /// Whether something has to be appended yet before the head may go.
    pub(super) fn is_owing(&self) -> bool {
        self.owed.is_some()
    }

    /// A record was copied into a log that ended at `before`.
    pub(super) fn count_copy(&mut self, before: Lsn, appended: Appended) {
        self.copied = appended.end;
        self.lap.copied_bytes += room_of(before, appended);
        self.copied_bytes_total += appended.end.since(appended.lsn);
    }
}

impl Shard {
    /// Goes on with the head, in which something lives.
    pub(super) fn compact(&mut self, now: Instant, head: u64) {
        let is_walking = self.compaction.scan.as_ref().is_some_and(|scan| scan.number() == head);
        if !is_walking {
            // All that is left there is settled, or copied, and waits for its commit.
            if self.compaction.walked == Some(head) || !self.pays() {
                return;
            }
            let Some(scan) = self.journal.as_ref().and_then(journal::Journal::scan_head) else {
                return;
            };
            self.compaction.scan = Some(scan);
            self.compaction.window.clear();
        }
        let Some(journal) = &mut self.journal else { return };
        journal.set_compacting(true);
        match self.append_copies(now) {
            Ok(Progress::Through) => self.read_on(head),
            Ok(Progress::Later) => {}
            Err(error) => self.stop_compacting(error),
        }
    }

    /// A copy found no room: while there is none, nobody may wait for what compaction frees.
    pub(super) fn stop_compacting(&mut self, error: AppendError) {
        if let (Some(journal), AppendError::Full) = (&mut self.journal, error) {
            journal.set_compacting(false);
        }
    }

    fn read_on(&mut self, head: u64) {
        let Some(journal) = &mut self.journal else { return };
        let Compaction { scan, reading, window, walked, .. } = &mut self.compaction;
        window.clear();
        match scan.as_ref().and_then(SegmentScan::wanted) {
            Some(span) => *reading = Some(journal.read_back(span)),
            None => {
                (*scan, *walked) = (None, Some(head));
                *window = Window::default();
            }
        }
    }

    /// Takes what was read of the head: what lives in it goes into the window.
    pub(super) fn take_scanned(&mut self, id: ReadId, buf: &BlockBuf) {
        if self.compaction.chains.take_read(id, buf) {
            return;
        }
        let Some(journal) = &mut self.journal else { return };
        let Compaction { scan, reading, window, .. } = &mut self.compaction;
        assert_eq!(Some(id), *reading, "nobody has asked for this read");
        *reading = None;
        let Some(scan) = scan else { return };
        let state = &self.state;
        let walked = scan.handle_read(buf.as_slice(), |lsn, record, bytes| {
            let (queue, sequence) = (record.queue, record.sequence);
            let begins = record.kind == RecordKind::Message && record.flags.has(RecordFlags::FIRST);
            if begins && state.lives_at(queue, sequence, lsn) {
                let start = window.bytes.len();
                window.bytes.extend_from_slice(bytes);
                let at = start..window.bytes.len();
                window.found.push(Found { queue, sequence, lsn, at });
            }
        });
        window.found.sort_unstable_by_key(|found| (found.queue, found.sequence));
        let span = scan.wanted().filter(|_| window.bytes.len() < COPY_WINDOW_BYTES);
        match (walked, span) {
            (Err(damaged), _) => {
                let shard = self.config.shard.0;
                self.fatal(Fatal::JournalDamaged(format!("shard {shard}: {damaged}")));
            }
            (Ok(()), Some(span)) => *reading = Some(journal.read_back(span)),
            (Ok(()), None) => {}
        }
    }

    /// The head is recycled: whether all this was worth it.
    pub(super) fn head_recycled(&mut self, head: u64) {
        let Some(journal) = &mut self.journal else { return };
        journal.set_compacting(false);
        if self.compaction.scan.as_ref().is_some_and(|scan| scan.number() == head) {
            self.compaction.scan = None;
            self.compaction.window = Window::default();
        }
        let usage = journal.usage();
        let lap = &mut self.compaction.lap;
        lap.recycled_bytes += self.config.segment_bytes;
        if Lsn(head * self.config.segment_bytes) >= lap.until {
            let freed = lap.recycled_bytes.saturating_sub(lap.copied_bytes);
            let dead = usage.log_bytes.saturating_sub(self.state.log_bytes());
            let rests = freed < lap.recycled_bytes / 8;
            *lap = Lap {
                until: journal.appended(),
                rest_until_dead: if rests { dead + usage.log_bytes / 8 } else { 0 },
                ..Lap::default()
            };
        }
    }

    /// Whether enough of the log is dead. The answer changes only with what is asked first, so that
    /// most turns cost no more than that.
    fn pays(&mut self) -> bool {
        let Some(journal) = &self.journal else { return false };
        let now = (journal.appended().0 / BLOCK_BYTES as u64, journal.free_bytes());
        if std::mem::replace(&mut self.compaction.looked_at, now) == now {
            return false;
        }
        let usage = journal.usage();
        let segment_bytes = self.config.segment_bytes;
        let dead = usage.log_bytes.saturating_sub(self.state.log_bytes());
        let (needed, is_scattered) = if self.is_short(&usage) {
            ((usage.log_bytes / 8).max(2 * segment_bytes), true)
        } else {
            let of_records = usage.log_bytes.saturating_sub(usage.padding_bytes);
            (4 * segment_bytes, self.state.log_bytes() <= of_records / 4)
        };
        // What a segment can hold must fit into what is free, beside what is set aside.
        let has_room = usage.room != Room::Packed;
        has_room && is_scattered && dead >= needed.max(self.compaction.lap.rest_until_dead)
    }

    /// Whether room is short: then copies are worth more, and wait for less. What is kept has room
    /// for a copy of the longest message that was seen, where that is not half of the log.
    fn is_short(&self, usage: &Usage) -> bool {
        let most = self.config.segments_max;
        let largest = self.state.longest_bytes() / self.config.segment_bytes;
        let kept = u64::from(RESERVE_SEGMENTS) + (most / 8).max(2) + largest.min(most / 2);
        usage.room != Room::Plenty || most.saturating_sub(usage.segments_live) <= kept
    }

    /// Copies what is in the window, as far as may be now.
    fn append_copies(&mut self, now: Instant) -> Result<Progress, AppendError> {
        let Some(journal) = &self.journal else { return Err(AppendError::Closed) };
        let is_short = self.is_short(&journal.usage());
        let bytes_max =
            if is_short { COPIES_IN_FLIGHT_BYTES_SHORT } else { COPIES_IN_FLIGHT_BYTES };
        loop {
            self.append_owed(now)?;
            let Some(journal) = &self.journal else { return Err(AppendError::Closed) };
            let is_copying = self.compaction.chains.is_copying();
            if self.compaction.window.is_empty() && !is_copying {
                return Ok(Progress::Through);
            }
            let in_flight = self.compaction.copied.since(journal.committed());
            if in_flight >= bytes_max || !(is_short || journal.is_disk_free()) {
                return Ok(Progress::Later);
            }
            if !is_copying {
                self.append_next(now)?;
            } else if !self.append_fragment(now)? {
                return Ok(Progress::Later);
            }
        }
    }

    /// Copies the next record of the window, if its message still lives where it was found.
    fn append_next(&mut self, now: Instant) -> Result<(), AppendError> {
        let Some(journal) = &mut self.journal else { return Err(AppendError::Closed) };
        let window = &mut self.compaction.window;
        let Found { queue, sequence, lsn, at } = &window.found[window.done];
        let (queue, sequence, lsn) = (*queue, *sequence, *lsn);
        let (record, _) = Record::decode(journal.seed(), lsn, &window.bytes[at.clone()])
            .expect("it was decoded from the same bytes");
        let is_unchecked = self.config.canaries.has(Canary::CopiedAfterSettlement);
        if !is_unchecked && !self.state.lives_at(queue, sequence, lsn) {
            window.done += 1;
            return Ok(());
        }
        let is_cut = self.config.canaries.has(Canary::FragmentChainCut);
        if !record.flags.has(RecordFlags::WHOLE) && !is_cut {
            self.begin_chain(queue, sequence)?;
            self.compaction.window.done += 1;
            return Ok(());
        }
        let duplicate_id = record.parts.duplicate_id.map(DuplicateId::from_record);
        let before = journal.appended();
        let appended = journal.append_copy(now, &record)?;
        window.done += 1;
        self.compaction.count_copy(before, appended);
        self.end_copy((queue, sequence), appended.lsn..appended.end, None, duplicate_id);
        self.append_owed(now)
    }

    /// A message has a whole copy in the log, appended in this place.
    pub(super) fn end_copy(
        &mut self,
        (queue, sequence): (QueueId, Sequence),
        place: Range<Lsn>,
        chain: Option<Chain>,
        duplicate_id: Option<DuplicateId>,
    ) {
        self.compaction.owed = Some((queue, sequence));
        // Its duplicate id goes with it, and need not be carried.
        if let Some(id) = duplicate_id {
            self.state.apply_duplicate_id(place.clone(), queue, sequence, &id);
        }
        let mut effect = self.state.apply_copy(place.start, chain, (queue, sequence));
        if self.config.canaries.has(Canary::CopyCountsEarly) {
            self.state.commit(std::mem::replace(&mut effect, Effect::None));
        }
        let (end, answer) = (place.end, Answer::Nobody);
        self.pending.push(Level::ReplicatedSync, Waiting { end, effect, answer });
    }

    /// What the log says of a copied message that came back stands before the copy, and goes with
    /// the head: it is said again.
    pub(super) fn append_owed(&mut self, now: Instant) -> Result<(), AppendError> {
        let Some((id, sequence)) = self.compaction.owed else { return Ok(()) };
        let Some(journal) = &mut self.journal else { return Err(AppendError::Closed) };
        if let Some(setback) = self.state.setback(id, sequence) {
            let payload = setback.payload();
            let mut record = Record::new(RecordKind::DeliveryCount, id, sequence, &payload);
            record.parts.delivery_count = Some(setback.count);
            let before = journal.appended();
            let appended = journal.append_copy(now, &record)?;
            self.compaction.copied = appended.end;
            self.compaction.lap.copied_bytes += room_of(before, appended);
        }
        self.compaction.owed = None;
        Ok(())
    }
}

/// What a copy took of the log that ended at `before`: what is skipped at the end of a segment too,
/// and of each batch that it begins the padding, which comes to half a block. Without that a log
/// full of what lives would be copied for ever, to win the same padding again.
fn room_of(before: Lsn, appended: Appended) -> u64 {
    let block = BLOCK_BYTES as u64;
    let begins_batch = appended.lsn.0 % block == BATCH_HEADER_BYTES as u64;
    appended.end.since(before) + if begins_batch { block / 2 } else { 0 }
}

/// What came of a turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Progress {
    /// The window is empty.
    Through,
    /// Enough is on its way, or the disk has other things to do.
    Later,
}
