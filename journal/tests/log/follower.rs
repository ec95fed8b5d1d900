//! A log that follows another: byte for byte, under its own durability, over cuts and reigns.

use journal::{
    DiskOp, Epoch, EpochTable, FileId, Follower, FollowerRecovery, Journal, Lsn, NodeSuperblock,
    OpId, QueueId, Record, RecordKind, Refused, Rejoined, SealedBatch, Sequence, Urgency,
};

use crate::bed::{Bed, SEGMENT_BYTES, SHARD, Seen, config, formatted, start, writes_of};
use crate::disk::{Disk, Fate};

/// The node, its disk, and what recovery read of it.
struct Member {
    disk: Disk,
    node: NodeSuperblock,
    follower: Follower,
    seen: Vec<Seen>,
}

fn recover(mut disk: Disk, node: NodeSuperblock) -> Member {
    let (follower, seen) = try_recover(&mut disk, &node).expect("the log is whole");
    Member { disk, node, follower, seen }
}

fn try_recover(
    disk: &mut Disk,
    node: &NodeSuperblock,
) -> Result<(Follower, Vec<Seen>), journal::RecoveryError> {
    let mut recovery = FollowerRecovery::new(node, SHARD, &disk.slots(SHARD), config());
    let mut seen = Vec::new();
    loop {
        while let Some((lsn, record)) = recovery.poll_record() {
            seen.push(Seen {
                lsn,
                kind: record.kind,
                sequence: record.sequence.0,
                payload: record.payload.to_vec(),
            });
        }
        let Some(op) = recovery.poll_disk() else { break };
        let done = disk.complete(op);
        recovery.handle_disk(start(), done);
    }
    recovery.poll_outcome().expect("it has ended").map(|(follower, _)| (follower, seen))
}

impl Member {
    fn fresh() -> Self {
        let (disk, node) = formatted();
        recover(disk, node)
    }

    fn again(self) -> Self {
        recover(self.disk, self.node)
    }

    fn settle(&mut self) -> Option<Rejoined> {
        while let Some(op) = self.follower.poll_disk(start()) {
            let done = self.disk.complete(op);
            self.follower.handle_disk(start(), done);
        }
        self.follower.poll_rejoined()
    }

    fn take_all(&mut self, batches: &[SealedBatch]) {
        for batch in batches {
            self.follower.take(batch.clone()).expect("it fits");
        }
        assert_eq!(self.settle(), None);
        assert_eq!(self.follower.durable(), self.follower.received());
    }

    /// Its own reign, with a log of `records` more; the batches come with it.
    fn live(mut self, epoch: u64, records: std::ops::Range<u64>) -> (Bed, Vec<SealedBatch>) {
        self.follower.reign(Epoch(epoch));
        assert_eq!(self.settle(), Some(Rejoined::Live));
        let mut bed = Bed::new(self.follower.into_live(), self.disk);
        bed.journal.mirror();
        bed.settle();
        let batches = write(&mut bed, records);
        (bed, batches)
    }
}

fn write(bed: &mut Bed, records: std::ops::Range<u64>) -> Vec<SealedBatch> {
    let mut batches = Vec::new();
    for sequence in records {
        let bytes = (sequence as usize * 977) % 9000;
        bed.append(RecordKind::Message, sequence, &vec![sequence as u8; bytes]);
        if sequence.is_multiple_of(3) {
            bed.settle();
        }
        batches.extend(std::iter::from_fn(|| bed.journal.poll_sealed()));
    }
    bed.settle();
    batches.extend(std::iter::from_fn(|| bed.journal.poll_sealed()));
    batches
}

fn live(records: std::ops::Range<u64>) -> (Bed, Vec<SealedBatch>) {
    Member::fresh().live(2, records)
}

/// The bytes of a log, without what lies beyond its end.
fn log_bytes(disk: &Disk, journal_end: Lsn) -> Vec<(FileId, Vec<u8>)> {
    let mut files = Vec::new();
    for slot in disk.slots(SHARD) {
        let file = FileId::Segment { shard: SHARD, slot: slot.slot };
        let bytes = disk.contents(file);
        if bytes.iter().any(|byte| *byte != 0) && journal_end > Lsn(0) {
            files.push((file, bytes));
        }
    }
    files.sort();
    files
}

/// What a reader hands out of a log, and the chain at its beginning.
fn read(journal: &mut Journal, disk: &mut Disk, from: Lsn) -> (Vec<SealedBatch>, Option<u64>) {
    let mut reader = journal.read(from).expect("the log reaches back");
    let mut batches = Vec::new();
    loop {
        batches.extend(std::iter::from_fn(|| reader.poll_batch()));
        let Some(op) = reader.poll_disk() else { break };
        let done = disk.complete(op);
        reader.handle_disk(done);
    }
    assert_eq!(reader.failed(), None);
    assert!(reader.is_over());
    (batches, reader.chain_from().map(|chain| chain.0))
}

#[test]
fn both_members_write_the_same_bytes() {
    let (mut bed, batches) = live(0..60);
    let end = bed.journal.durable();
    assert!(end.0 > 4 * SEGMENT_BYTES, "several segments: {end}");
    let mut backup = Member::fresh();
    backup.follower.adopt(bed.journal.epochs().clone(), Lsn(4096));
    assert_eq!(backup.settle(), Some(Rejoined::Following));
    backup.take_all(&batches);
    assert_eq!(backup.follower.durable(), end);
    assert_eq!(log_bytes(&backup.disk, end), log_bytes(&bed.disk, end));
    // And what the live reads back is what it had sent.
    let (again, chain) = read(&mut bed.journal, &mut bed.disk, Lsn(4096));
    assert_eq!(again, batches);
    assert_eq!(chain, Some(batches[0].chain_before().0));
    let middle = batches.len() / 2;
    let (rest, chain) = read(&mut bed.journal, &mut bed.disk, batches[middle - 1].end());
    assert_eq!(rest, batches[middle..]);
    assert_eq!(chain, Some(batches[middle - 1].chain_after().0));
    let backup = backup.again();
    assert_eq!(backup.seen, bed.seen());
    assert_eq!(backup.follower.received(), end);
}

#[test]
pub(crate) fn a_batch_that_says_more_than_this_disk_holds_is_held_back() {
    let (bed, batches) = live(0..9);
    let mut backup = Member::fresh();
    backup.follower.adopt(bed.journal.epochs().clone(), Lsn(4096));
    assert_eq!(backup.settle(), Some(Rejoined::Following));
    assert!(batches.len() >= 3 && batches[2].durable() > batches[0].first_lsn());
    for batch in &batches {
        backup.follower.take(batch.clone()).unwrap();
    }
    let is_batch =
        |op: &DiskOp| matches!((op, op.file()), (DiskOp::Write { .. }, FileId::Segment { .. }));
    let (mut submitted, mut written, mut begun_together) = (Vec::new(), 0, 0);
    loop {
        while let Some(op) = backup.follower.poll_disk(start()) {
            submitted.push(op);
        }
        let durable = backup.follower.durable();
        let in_flight = submitted.iter().filter(|op| is_batch(op)).count();
        let may = batches.iter().take_while(|batch| batch.durable() <= durable).count();
        let begun = written + in_flight;
        assert!(begun <= may, "{begun} begun, {may} may be at {durable}");
        begun_together = begun_together.max(in_flight);
        let Some(op) = submitted.pop() else { break };
        written += usize::from(is_batch(&op));
        let done = backup.disk.complete(op);
        backup.follower.handle_disk(start(), done);
    }
    assert_eq!(backup.follower.durable(), batches.last().unwrap().end());
    assert_eq!(written, batches.len());
    assert!(begun_together < batches.len(), "some were held back");
}

#[test]
fn what_does_not_fit_is_refused_with_the_reason() {
    let (bed, batches) = live(0..30);
    let mut backup = Member::fresh();
    let refused = |backup: &mut Member, batch: &SealedBatch| {
        backup.follower.take(batch.clone()).expect_err("it doesn't fit")
    };
    // Before the table is adopted nothing of epoch 2 belongs there.
    let (lsn, term) = (batches[0].first_lsn(), batches[0].term());
    assert_eq!(refused(&mut backup, &batches[0]), Refused::Term { lsn, term });
    backup.follower.adopt(bed.journal.epochs().clone(), Lsn(4096));
    assert_eq!(refused(&mut backup, &batches[0]), Refused::Unready);
    assert_eq!(backup.settle(), Some(Rejoined::Following));
    let first_lsn = batches[1].first_lsn();
    let place = Refused::Place { end: Lsn(4096), first_lsn };
    assert_eq!(refused(&mut backup, &batches[1]), place);
    let opening = batches.iter().find(|batch| batch.first_lsn().0 == SEGMENT_BYTES + 4096).unwrap();
    let first_lsn = opening.first_lsn();
    let place = Refused::Place { end: Lsn(4096), first_lsn };
    assert_eq!(refused(&mut backup, opening), place, "a segment is not left out");
    backup.follower.take(batches[0].clone()).unwrap();
    // Of another history: the same place, another chain.
    let (_, others) = live(100..130);
    let other = others.iter().find(|batch| batch.first_lsn() == batches[0].end());
    if let Some(other) = other {
        let lsn = other.first_lsn();
        assert_eq!(refused(&mut backup, other), Refused::Chain { lsn });
    }
    for batch in &batches[1..] {
        backup.follower.take(batch.clone()).unwrap();
    }
}

/// A log with a tail that its successor never had: cut, exported by what is read of it, followed.
#[test]
fn a_rejoin_cuts_the_tail_and_follows_whatever_crash_comes_between() {
    let (bed, shared) = live(0..12);
    let mut other = Member::fresh();
    other.follower.adopt(bed.journal.epochs().clone(), Lsn(4096));
    assert_eq!(other.settle(), Some(Rejoined::Following));
    // It gets all but the last two batches, and goes live.
    let kept = shared.len() - 2;
    other.take_all(&shared[..kept]);
    let common = shared[kept - 1].end();
    let (successor, news) = other.live(3, 100..110);
    let (end, table) = (bed.journal.durable(), successor.journal.epochs().clone());
    let promised: Vec<Seen> = bed.seen().into_iter().filter(|seen| seen.lsn < common).collect();

    for stop in 0.. {
        let (disk, node) = (bed.disk.clone(), formatted().1);
        let mut stale = recover(disk, node);
        let mine = stale.follower.epochs().clone();
        let found = mine.common(stale.follower.received(), &table, successor.journal.durable());
        assert_eq!((found, stale.follower.received()), (Some(common), end));
        stale.follower.adopt(table.clone(), common);
        let mut left = stop;
        let is_over = stale.run_until_cut(&mut left);
        if !is_over {
            // The power went: whatever the superblock says, the log recovers, and the cut is made
            // again or is there.
            let again = stale.again();
            assert!(again.follower.received() == end || again.follower.received() == common);
            continue;
        }
        let mut back = stale.again();
        assert_eq!((back.follower.received(), &back.seen), (common, &promised));
        back.take_all_until(&news, &mut left);
        let back = back.again();
        let records = back.seen.len();
        assert!(back.seen.starts_with(&promised), "{records} records");
        if left > 0 {
            assert_eq!(back.follower.received(), successor.journal.durable());
            return;
        }
    }
}

impl Member {
    /// Goes on for `left` operations at most; the next one is lost, torn or whole.
    fn run_until_cut(&mut self, left: &mut usize) -> bool {
        loop {
            if self.follower.poll_rejoined() == Some(Rejoined::Cut) {
                return true;
            }
            let op = self.follower.poll_disk(start()).expect("it goes on until it is cut");
            if *left == 0 {
                if let [write] = &writes_of(&[op])[..] {
                    self.disk.crash(write, Fate::Front);
                }
                return false;
            }
            *left -= 1;
            let done = self.disk.complete(op);
            self.follower.handle_disk(start(), done);
        }
    }

    fn take_all_until(&mut self, batches: &[SealedBatch], left: &mut usize) {
        for batch in batches {
            self.follower.take(batch.clone()).expect("it fits");
        }
        while *left > 0 {
            let Some(op) = self.follower.poll_disk(start()) else { return };
            *left -= 1;
            let done = self.disk.complete(op);
            self.follower.handle_disk(start(), done);
        }
        if let Some(op) = self.follower.poll_disk(start())
            && let [write] = &writes_of(&[op])[..]
        {
            self.disk.crash(write, Fate::Back);
        }
    }
}

/// What the old live had written, durably, behind the cut says more than the shorter log holds.
#[test]
pub(crate) fn evidence_of_a_stale_epoch_proves_nothing_after_the_cut() {
    let (bed, shared) = live(0..40);
    let common = shared[3].end();
    let mut table = bed.journal.epochs().clone();
    table.enter(Epoch(3), common);
    let mut stale = recover(bed.disk.clone(), formatted().1);
    stale.follower.adopt(table, common);
    assert_eq!(stale.settle(), Some(Rejoined::Cut));
    let back = stale.again();
    assert_eq!(back.follower.received(), common);
    let promised: Vec<Seen> = bed.seen().into_iter().filter(|seen| seen.lsn < common).collect();
    assert_eq!(back.seen, promised);
}

#[test]
fn a_member_that_restarts_takes_again_what_a_crash_tore_from_it() {
    let (bed, batches) = live(0..20);
    let mut backup = Member::fresh();
    backup.follower.adopt(bed.journal.epochs().clone(), Lsn(4096));
    assert_eq!(backup.settle(), Some(Rejoined::Following));
    let half = batches.len() / 2;
    backup.take_all(&batches[..half]);
    // The next batch is torn; the same batch comes again, in the same term, and stays.
    backup.follower.take(batches[half].clone()).unwrap();
    let op = backup.follower.poll_disk(start()).unwrap();
    if let [write] = &writes_of(&[op])[..] {
        backup.disk.crash(write, Fate::Front);
    }
    let mut backup = backup.again();
    let from = backup.follower.received();
    assert!(from >= batches[half - 1].end());
    let rest = batches.iter().position(|batch| batch.end() > from).unwrap();
    backup.take_all(&batches[rest..]);
    let backup = backup.again();
    assert_eq!(backup.seen, bed.seen(), "no truncation covers what was sent again");
}

/// A segment opened in a slot that a recovery hands out after others: the crash leaves its header
/// and nothing behind it. Sent again, in the same term, it must not stand in two files.
#[test]
fn a_segment_that_is_sent_again_stands_in_one_file() {
    let (bed, batches) = live(0..120);
    let opens = |batch: &SealedBatch| batch.first_lsn().0 % SEGMENT_BYTES == 4096;
    let mut backup = Member::fresh();
    backup.follower.adopt(bed.journal.epochs().clone(), Lsn(4096));
    assert_eq!(backup.settle(), Some(Rejoined::Following));
    let mut recycled = 0;
    for (at, batch) in batches.iter().enumerate() {
        let is_late = recycled > 0 && opens(batch);
        backup.follower.take(batch.clone()).unwrap();
        if is_late {
            let op = backup.follower.poll_disk(start()).unwrap();
            let [write] = &writes_of(&[op])[..] else { panic!("a segment begins") };
            backup.disk.crash(write, Fate::Front);
            let mut again = backup.again();
            let from = again.follower.received();
            assert_eq!(from, batches[at - 1].end());
            again.take_all(&batches[at..at + 2]);
            backup = again.again();
            assert_eq!(backup.follower.received(), batches[at + 1].end());
            return;
        }
        backup.settle();
        backup.follower.set_committed(batch.end());
        while backup.follower.head_segment().is_some() {
            backup.follower.recycle_head();
            recycled += 1;
        }
        backup.settle();
    }
    panic!("no segment was opened after a recycled one");
}

/// The new head waits for what is not committed when the rejoin comes.
#[test]
fn a_member_with_a_head_that_waits_is_cut_all_the_same() {
    let (bed, batches) = live(0..60);
    let mut stale = Member::fresh();
    stale.follower.adopt(bed.journal.epochs().clone(), Lsn(4096));
    assert_eq!(stale.settle(), Some(Rejoined::Following));
    stale.take_all(&batches);
    let common = batches[batches.len() - 2].end();
    stale.follower.set_committed(common);
    stale.follower.recycle_head();
    assert_eq!(stale.settle(), None);
    let mut table = bed.journal.epochs().clone();
    table.enter(Epoch(3), common);
    stale.follower.adopt(table, common);
    assert_eq!(stale.settle(), Some(Rejoined::Cut));
    let back = stale.again();
    assert_eq!((back.follower.received(), back.follower.head()), (common, Lsn(4096)));
}

#[test]
fn a_reign_begins_behind_everything_received_and_its_batches_follow() {
    let (bed, batches) = live(0..12);
    let mut backup = Member::fresh();
    backup.follower.adopt(bed.journal.epochs().clone(), Lsn(4096));
    assert_eq!(backup.settle(), Some(Rejoined::Following));
    for batch in &batches {
        backup.follower.take(batch.clone()).unwrap();
    }
    // Nothing of it is written yet.
    let (next, _) = backup.live(7, 100..110);
    assert_eq!(next.journal.epochs().newest(), (Epoch(7), bed.journal.durable()));
    assert_eq!(next.journal.term().epoch, Epoch(7));
    let back = recover(next.disk.clone(), formatted().1);
    let mut both = bed.seen();
    both.extend(next.seen());
    assert_eq!(back.seen, both);
}

/// A backup that is behind has rows of its live's table beyond its end. Opened alone it writes
/// there, and what it writes belongs to it.
#[test]
fn a_backup_that_was_behind_and_is_opened_alone_keeps_what_it_writes() {
    let (bed, batches) = live(0..6);
    let mut backup = Member::fresh();
    let mut table = bed.journal.epochs().clone();
    table.enter(Epoch(5), Lsn(40 * SEGMENT_BYTES));
    backup.follower.adopt(table, Lsn(4096));
    assert_eq!(backup.settle(), Some(Rejoined::Following));
    backup.take_all(&batches);
    let (mut disk, node) = (backup.disk, backup.node);
    let (outcome, seen) = crate::bed::recover(&mut disk, &node);
    assert_eq!(seen, bed.seen());
    let mut alone = Bed::new(outcome.journal, disk);
    alone.settle();
    alone.append(RecordKind::Message, 77, b"alone");
    alone.settle();
    assert_eq!(alone.promised(), 1);
    let (_, seen) = crate::bed::recover(&mut alone.disk, &node);
    assert_eq!((seen.len(), seen.last()), (bed.seen().len() + 1, alone.seen().last()));
}

#[test]
fn a_reader_never_meets_the_journals_operations() {
    assert!(journal::LogReader::owns(OpId(1 << 63)) && !journal::LogReader::owns(OpId(77)));
}

#[test]
fn no_hostile_bytes_make_a_batch() {
    let (bed, batches) = live(0..3);
    let good = batches[0].bytes();
    let seed = bed.journal.seed();
    assert_eq!(SealedBatch::check(seed, good.clone()).as_ref(), Some(&batches[0]));
    for bit in 0..good.len().min(400) * 8 {
        let mut hurt = good.to_vec();
        hurt[bit / 8] ^= 1 << (bit % 8);
        assert_eq!(SealedBatch::check(seed, hurt.into()), None, "bit {bit}");
    }
    let longer = [&good[..], &[0]].concat();
    assert_eq!(SealedBatch::check(seed, longer.into()), None);
    for len in 0..good.len() {
        assert_eq!(SealedBatch::check(seed, good.slice(..len)), None, "{len} bytes");
    }
}

#[test]
fn a_log_without_a_pair_keeps_nothing_for_one() {
    let (mut bed, _) = Bed::fresh();
    let record = Record::new(RecordKind::Message, QueueId(1), Sequence(1), b"alone");
    bed.journal.append(bed.now, &record, Urgency::Now).unwrap();
    bed.settle();
    assert_eq!(bed.journal.poll_sealed(), None);
    assert_eq!(bed.journal.epochs(), &EpochTable::new(Epoch(1), Lsn(4096)));
}
