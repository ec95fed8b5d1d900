//! Two starts of one disk: with its checkpoints, and with its log alone. They come to the same.
//!
//! ```text
//!   disk ─┬─ checkpoint, log from there ─▶ state ─┐
//!         │                                       ├─ every queue of the catalogue: the same
//!         └─ the whole log ──────────────▶ state ─┘   messages, in the same places; and the next
//!                                                     sequence is told where it is thought to be
//! ```
//! Both are read as far as a start reads before it writes, whatever the disk would do to them. What
//! is not in the catalogue is not looked at: of a queue that was deleted the log may still tell.
//! Whether a message that was moved is hidden until its origin is asked for differs rightly; so may
//! how many duplicate ids are known before the settings are.

use std::collections::BTreeMap;

use broker::apply::{Fact, Load, State};
use broker::duplicates::Duplicates;
use journal::{
    DiskDone, DiskOp, QueueId, Record, RecordFlags, RecordKind, Recovery, Sequence, ShardId,
};

use crate::disk::Disk;

/// How a start of a shard's disk went.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Starts {
    /// How many began with a checkpoint.
    pub(crate) used: u64,
    /// Checkpoints that were of no use.
    pub(crate) refused: u64,
}

/// By queue: the next sequence, as the log tells it, and the last segment with a record that does.
type Tellers = BTreeMap<QueueId, (Sequence, u64)>;

/// What a start has come to.
struct Read {
    state: State,
    recovery: Recovery,
    tellers: Tellers,
}

/// What this record says of the next sequence of its queue.
fn next_told(record: &Record<'_>) -> Option<Sequence> {
    if record.kind == RecordKind::NextSequence {
        return Some(record.sequence);
    }
    let begins = record.kind == RecordKind::Message && record.flags.has(RecordFlags::FIRST);
    begins.then(|| Sequence(record.sequence.0 + 1))
}

/// Reads a log to where a start would write; none where it is no log that can be read.
fn read(mut recovery: Recovery, disk: &Disk, segment_bytes: u64) -> Option<Read> {
    let new = || (State::new(segment_bytes, Duplicates::default()), Load::default());
    let (mut state, mut load) = new();
    let mut tellers = Tellers::new();
    loop {
        if recovery.poll_void() {
            (state, load) = new();
        }
        let head = recovery.head();
        while let Some(page) = recovery.poll_page() {
            if let Err(what) = state.load(&mut load, head, page) {
                recovery.refuse_page(what);
                break;
            }
        }
        while let Some((lsn, record)) = recovery.poll_record() {
            let effect = state.apply(lsn, &record).ok()?;
            if let Some(next) = next_told(&record) {
                let told = tellers.entry(record.queue).or_default();
                *told = (*told).max((next, lsn.0 / segment_bytes));
            }
            state.commit(effect);
        }
        if recovery.has_void() {
            continue;
        }
        match recovery.poll_disk() {
            Some(DiskOp::Read { id, file, offset, mut buf }) => {
                let content = disk.contents(file);
                let there = content.get(offset as usize..).unwrap_or_default();
                let len = there.len().min(buf.len());
                buf.as_mut_slice()[..len].copy_from_slice(&there[..len]);
                recovery.take_read(DiskDone { id, result: Ok(len as u32), buf: Some(buf) });
            }
            Some(DiskOp::Write { .. } | DiskOp::Sync { .. } | DiskOp::Prewrite { .. }) => break,
            None if recovery.poll_outcome().is_some() => return None,
            None => {}
        }
    }
    // As a member that goes on to follow does.
    while state.is_forgetting() {
        state.forget_on(usize::MAX);
    }
    state.end_recovery();
    Some(Read { state, recovery, tellers })
}

/// A disk whose starts are held against each other.
pub(crate) struct Ground<'a, F> {
    pub(crate) disk: &'a Disk,
    pub(crate) segment_bytes: u64,
    /// A start of a shard, without its checkpoints.
    pub(crate) begin: F,
}

impl<F: Fn(ShardId) -> Recovery> Ground<'_, F> {
    fn read(&self, shard: ShardId, with_checkpoints: bool) -> Option<Read> {
        let recovery = (self.begin)(shard);
        let recovery = if with_checkpoints { recovery.with_checkpoints() } else { recovery };
        read(recovery, self.disk, self.segment_bytes)
    }

    /// Holds the starts of these shards against each other.
    ///
    /// # Errors
    /// They differ, and in what.
    pub(crate) fn compare(&self, shards: impl Iterator<Item = ShardId>) -> Result<Starts, String> {
        let mut starts = Starts::default();
        // Without the catalogue nobody knows what counts.
        let Some(first) = self.read(ShardId(0), false) else { return Ok(starts) };
        for shard in shards {
            let Some(log) = self.read(shard, false) else { continue };
            let Some(mut short) = self.read(shard, true) else {
                return Err(format!("{shard:?} can be read, but not with its checkpoints"));
            };
            starts.refused += short.recovery.take_refused().len() as u64;
            if short.recovery.checkpoint().is_none() {
                continue;
            }
            starts.used += 1;
            let here = first.state.catalogue.iter().filter(|queue| queue.home == shard);
            let here = here.map(|queue| queue.id);
            if let Some(what) = differ(&log, &short.state, here, shard == ShardId(0)) {
                return Err(format!("a start of {shard:?} with a checkpoint differs: {what}"));
            }
        }
        Ok(starts)
    }
}

/// No segment has a record of a fact.
const NOWHERE: u64 = u64::MAX;

fn differ(
    Read { state: log, tellers, .. }: &Read,
    short: &State,
    queues: impl Iterator<Item = QueueId>,
    has_catalogue: bool,
) -> Option<String> {
    let queues_of = |state: &State| -> Vec<_> { state.catalogue.iter().cloned().collect() };
    if has_catalogue && queues_of(log) != queues_of(short) {
        return Some("the catalogue".to_owned());
    }
    if has_catalogue && log.catalogue.next_id() != short.catalogue.next_id() {
        return Some("the next queue's id".to_owned());
    }
    for id in queues {
        let next = |state: &State| state.queue(id).map(broker::queue::Queue::next_sequence);
        if next(log).unwrap_or(Sequence(0)) != next(short).unwrap_or(Sequence(0)) {
            return Some(format!("{id:?}: next is {:?} and {:?}", next(log), next(short)));
        }
        // Where the log loses its head, what is thought to stand behind that is not written anew.
        let told = tellers.get(&id).map_or(NOWHERE, |(_, segment)| *segment);
        let thought = short.segment_of(Fact::NextSequence(id));
        if thought > told {
            return Some(format!(
                "{id:?}: its next is told by {told}, and thought to be by {thought}"
            ));
        }
        let mut from = Sequence(0);
        loop {
            let (known, told) = (message(log, id, from), message(short, id, from));
            if known != told {
                return Some(format!("{id:?}: {known:?} of the log, {told:?} of the checkpoint"));
            }
            let Some(known) = known else { break };
            from = Sequence(known.0.sequence.0 + 1);
        }
    }
    None
}

type Known = (
    broker::queue::InQueue,
    Option<u64>,
    Option<broker::setback::Setback>,
    Option<broker::queue::Chain>,
);

/// All that is known of the first message from there on.
fn message(state: &State, id: QueueId, from: Sequence) -> Option<Known> {
    let queue = state.queue(id)?;
    let stored = queue.stored_from(from)?;
    let sequence = stored.sequence;
    let chain = queue.chain(sequence).cloned();
    Some((stored, queue.delivery_time(sequence), queue.setback(sequence), chain))
}
