//! Live and backup joined by hand: what slow, hostile and misdirected peers can and can't do.
//!
//! ```text
//!   Journal + Live ──frames──▶ Backup         disks in memory; the backup's writes end when told
//! ```
#![expect(clippy::unwrap_used, reason = "a test fails where it unwraps nothing")]

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use journal::{
    Config, DiskDone, DiskOp, Epoch, FileId, FollowerRecovery, Format, Geometry, Journal,
    JournalUuid, LogId, LogReader, Lsn, NodeSuperblock, QueueId, Record, RecordKind, Sequence,
    ShardId, SlotFile, Urgency,
};
use replica::backup::{Backup, BackupEvent, Follows};
use replica::limits::{
    ACK_PATIENCE, HOLD_AFTER, LAG_PATIENCE, LAG_WITHHOLD_BYTES, WINDOW_BYTES_MAX,
};
use replica::live::{Live, LiveEvent, Reigning};
use replica::wire::{Frame, Identity, Marks, Reason};

const SHARD: ShardId = ShardId(0);
const GEOMETRY: Geometry = Geometry { segment_bytes: 1024 * 1024, shards: 1 };
const LOG: LogId = LogId([0x5a; 16]);

#[expect(clippy::disallowed_methods, reason = "a test needs some moment to begin at")]
fn start() -> Instant {
    Instant::now()
}

#[derive(Default)]
struct Disk {
    files: BTreeMap<FileId, Vec<u8>>,
}

impl Disk {
    fn complete(&mut self, op: DiskOp) -> DiskDone {
        match op {
            DiskOp::Write { id, file, offset, buf } => {
                let at = usize::try_from(offset).unwrap();
                let content = self.files.get_mut(&file).unwrap();
                content[at..at + buf.len()].copy_from_slice(buf.as_slice());
                DiskDone { id, result: Ok(u32::try_from(buf.len()).unwrap()), buf: Some(buf) }
            }
            DiskOp::Read { id, file, offset, mut buf } => {
                let content = self.files.get(&file).map_or(&[][..], |content| content);
                let there = content.get(usize::try_from(offset).unwrap()..).unwrap_or_default();
                let len = there.len().min(buf.len());
                buf.as_mut_slice()[..len].copy_from_slice(&there[..len]);
                DiskDone { id, result: Ok(u32::try_from(len).unwrap()), buf: Some(buf) }
            }
            DiskOp::Prewrite { id, file, bytes } => {
                self.files.insert(file, vec![0; usize::try_from(bytes).unwrap()]);
                DiskDone { id, result: Ok(0), buf: None }
            }
            DiskOp::Sync { id, .. } => DiskDone { id, result: Ok(0), buf: None },
        }
    }
}

fn identity() -> Identity {
    Identity::new("orders", [3; 16], LOG, GEOMETRY)
}

/// A member with an empty log, ready to follow.
fn member(now: Instant, uuid: u8) -> (Backup, Disk) {
    let mut disk = Disk::default();
    let mut format = Format::new(LOG, JournalUuid([uuid; 16]), GEOMETRY);
    while let Some(op) = format.poll_disk() {
        format.handle_disk(disk.complete(op));
    }
    format.poll_outcome().unwrap().unwrap();
    (recovered(now, uuid, &mut disk), disk)
}

/// What is on a disk, as a start finds it.
fn recovered(now: Instant, uuid: u8, disk: &mut Disk) -> Backup {
    let superblock = &disk.files[&FileId::NodeSuperblock];
    let node = NodeSuperblock::decode(superblock).unwrap().unwrap();
    let files = disk.files.iter().filter_map(|(file, content)| match file {
        FileId::Segment { slot, .. } => Some(SlotFile { slot: *slot, bytes: content.len() as u64 }),
        FileId::NodeSuperblock | FileId::ShardSuperblock(_) | FileId::Checkpoint { .. } => None,
    });
    let slots: Vec<SlotFile> = files.collect();
    let mut recovery = FollowerRecovery::new(&node, SHARD, &slots, Config::default());
    while let Some(op) = recovery.poll_disk() {
        recovery.handle_disk(now, disk.complete(op));
        while recovery.poll_record().is_some() {}
    }
    let (follower, _) = recovery.poll_outcome().unwrap().unwrap();
    let member = node.journal_uuid;
    let follows = Follows { identity: identity(), member, boot: [uuid; 16] };
    Backup::new(now, follows, follower)
}

/// Both members, the first one live in epoch 2.
struct Pair {
    now: Instant,
    journal: Journal,
    live: Live,
    live_disk: Disk,
    backup: Backup,
    backup_disk: Disk,
    /// What the backup has begun to write.
    pending: VecDeque<DiskOp>,
    session: u64,
    sequence: u64,
    reads_back: usize,
    events: Vec<LiveEvent>,
    /// Where the last batch ends that the backup's state was given.
    shown: Option<Lsn>,
}

impl Pair {
    fn new(required: bool) -> Self {
        let now = start();
        let (mut first, mut live_disk) = member(now, 1);
        first.reign(Epoch(2));
        while let Some(op) = first.poll_disk(now) {
            first.handle_disk(now, live_disk.complete(op));
        }
        assert_eq!(first.poll_event(), Some(BackupEvent::Live));
        let chain = first.follower().chain();
        let (mut journal, rest) = first.into_live();
        assert!(rest.is_empty());
        journal.mirror();
        let at = Reigning {
            identity: identity(),
            shard: SHARD,
            epochs: journal.epochs().clone(),
            end: journal.durable(),
            chain,
        };
        let live = Live::new(now, at, required.then_some(JournalUuid([2; 16])));
        let (backup, backup_disk) = member(now, 2);
        let mut pair = Self {
            now,
            journal,
            live,
            live_disk,
            backup,
            backup_disk,
            pending: VecDeque::new(),
            session: 0,
            sequence: 0,
            reads_back: 0,
            events: Vec::new(),
            shown: None,
        };
        pair.connect();
        pair
    }

    fn connect(&mut self) {
        self.session = self.live.handle_connected(self.now);
        self.backup.handle_connected(self.now);
        self.run(true);
        assert!(self.backup.is_following() && self.live.following().is_some());
    }

    fn disconnect(&mut self) {
        self.live.handle_disconnected(self.now, self.session);
        self.backup.handle_disconnected();
    }

    /// Everything that can happen without time; the backup's writes end if they may.
    fn run(&mut self, backup_writes: bool) {
        loop {
            let mut progress = false;
            while let Some(frame) = self.live.poll_frame() {
                self.backup.handle_frame(self.now, frame);
                progress = true;
            }
            progress |= self.run_live();
            while let Some(op) = self.backup.poll_disk(self.now) {
                self.pending.push_back(op);
                progress = true;
            }
            while let Some(op) = self.pending.pop_front_if(|_| backup_writes) {
                let done = self.backup_disk.complete(op);
                self.backup.handle_disk(self.now, done);
                progress = true;
            }
            while let Some(frame) = self.backup.poll_frame() {
                self.live.handle_frame(self.now, self.session, frame);
                progress = true;
            }
            while let Some(batch) = self.backup.poll_committed() {
                self.shown = Some(batch.end());
            }
            self.events.extend(std::iter::from_fn(|| self.live.poll_event()));
            if !progress {
                return;
            }
        }
    }

    fn run_live(&mut self) -> bool {
        let mut progress = false;
        while let Some(op) = self.journal.poll_disk(self.now) {
            let done = self.live_disk.complete(op);
            self.journal.handle_disk(self.now, done);
            progress = true;
        }
        while let Some(batch) = self.journal.poll_sealed() {
            self.live.handle_sealed(self.now, batch);
        }
        self.live.set_durable(self.journal.durable());
        while let Some(from) = self.live.poll_reader() {
            self.reads_back += 1;
            self.live.take_reader(self.journal.read(from));
            progress = true;
        }
        if self.live.wants_start() && self.journal.start().is_some() {
            self.live.take_start(self.journal.start());
            progress = true;
        }
        while let Some(op) = self.live.poll_disk() {
            assert!(LogReader::owns(op.id()));
            self.live.handle_disk(self.live_disk.complete(op));
            progress = true;
        }
        progress
    }

    /// Nothing lives any more in the heads of the live's log: all of them go that may.
    fn recycle(&mut self) {
        self.journal.set_committed(self.live.committed());
        while let Some(head) = self.journal.head_segment() {
            if self.live.hold().is_some_and(|hold| hold <= head.end_lsn) {
                return;
            }
            self.journal.recycle_head();
            self.live.handle_recycled(self.journal.first_kept());
            while self.run_live() {}
        }
    }

    /// The backup's log was cut or given up: it is recovered.
    fn recover_backup(&mut self) {
        let said: Vec<BackupEvent> = std::iter::from_fn(|| self.backup.poll_event()).collect();
        assert_eq!(said.last(), Some(&BackupEvent::Cut), "{said:?}");
        self.live.handle_disconnected(self.now, self.session);
        self.backup = recovered(self.now, 2, &mut self.backup_disk);
    }

    fn append(&mut self, bytes: u64) {
        let mut left = bytes;
        while left > 0 {
            let payload = vec![7; 60_000.min(usize::try_from(left).unwrap())];
            left -= payload.len() as u64;
            self.sequence += 1;
            let sequence = Sequence(self.sequence);
            let record = Record::new(RecordKind::Message, QueueId(1), sequence, &payload);
            while self.journal.append(self.now, &record, Urgency::Now).is_err() {
                assert!(self.run_live(), "room comes");
            }
            self.run_live();
        }
    }
}

#[test]
fn what_is_not_durable_at_a_required_backup_is_not_committed() {
    let mut pair = Pair::new(true);
    let before = pair.live.committed();
    pair.append(100);
    pair.run(false);
    let end = pair.live.end();
    assert_eq!(pair.journal.durable(), end);
    let marks = Marks { received: end, durable: before };
    assert_eq!((pair.live.marks(), pair.live.committed()), (Some(marks), before));
    pair.run(true);
    assert_eq!(pair.live.committed(), end);
    // The backup hears of it with the next beat, and only then shows it.
    assert_eq!(pair.shown, None);
    pair.now += ACK_PATIENCE / 2;
    pair.live.handle_timeout(pair.now);
    pair.run(true);
    assert_eq!(pair.shown, Some(end));
}

#[test]
fn a_slow_backup_is_felt_then_reported_and_waited_for_until_it_is_out() {
    let mut pair = Pair::new(true);
    pair.append(100);
    pair.run(false);
    assert!(!pair.live.lags());
    pair.append(LAG_WITHHOLD_BYTES);
    pair.run(false);
    assert!(pair.live.lags());
    assert_eq!(pair.events, []);
    let committed = pair.live.committed();
    pair.now += ACK_PATIENCE;
    pair.live.handle_timeout(pair.now);
    assert_eq!(pair.live.poll_event(), Some(LiveEvent::PleaseShrink));
    assert_eq!(pair.live.committed(), committed, "asking changes nothing");
    pair.live.set_required(pair.now, None);
    assert_eq!(pair.live.committed(), pair.journal.durable());
    assert!(!pair.live.lags());
}

/// It answers, and never comes near.
#[test]
fn a_backup_that_is_too_slow_for_long_is_to_be_put_out() {
    let mut pair = Pair::new(true);
    pair.append(2 * LAG_WITHHOLD_BYTES);
    pair.run(false);
    let until = pair.now + LAG_PATIENCE;
    while pair.now < until {
        assert!(pair.live.lags() && !pair.live.is_stalled());
        pair.now += ACK_PATIENCE / 2;
        // One write ends.
        let op = pair.pending.pop_front().expect("it writes");
        let done = pair.backup_disk.complete(op);
        pair.backup.handle_disk(pair.now, done);
        pair.backup.handle_timeout(pair.now);
        pair.live.handle_timeout(pair.now);
        pair.run(false);
        pair.append(100_000);
        pair.run(false);
    }
    assert!(pair.live.is_stalled() && pair.events.contains(&LiveEvent::PleaseShrink));
    pair.run(true);
    assert!(!pair.live.is_stalled() && !pair.live.lags(), "it has come near");
}

#[test]
fn a_required_backup_that_is_away_is_waited_for() {
    let mut pair = Pair::new(true);
    pair.disconnect();
    pair.append(100);
    pair.run_live();
    assert!(pair.live.committed() < pair.live.end());
    pair.now += ACK_PATIENCE;
    pair.live.handle_timeout(pair.now);
    assert_eq!(pair.live.poll_event(), Some(LiveEvent::PleaseShrink));
    pair.connect();
    assert_eq!(pair.live.committed(), pair.live.end());
}

/// A backup that was wiped is another member: the voters name the disk that it had.
#[test]
fn marks_of_a_disk_that_the_voters_do_not_name_commit_nothing() {
    let mut pair = Pair::new(false);
    pair.live.set_required(pair.now, Some(JournalUuid([9; 16])));
    pair.run(true);
    let before = pair.live.committed();
    pair.append(10_000);
    pair.run(true);
    let following = pair.live.following().unwrap();
    assert_eq!(following.marks.durable, pair.live.end());
    assert_eq!(pair.live.committed(), before);
    pair.live.handle_timeout(pair.now + ACK_PATIENCE);
    pair.run(true);
    assert!(pair.events.contains(&LiveEvent::PleaseShrink), "{:?}", pair.events);
    pair.live.set_required(pair.now, Some(following.member));
    assert_eq!(pair.live.committed(), pair.live.end());
}

/// What the live had not called committed when it was lost is in the log that goes live.
#[test]
fn a_reign_begins_with_every_batch_that_was_received() {
    let mut pair = Pair::new(true);
    pair.run(true);
    pair.append(10_000);
    pair.run(true);
    let mut shown = pair.shown;
    let now = pair.now;
    pair.append(10_000);
    while let Some(frame) = pair.live.poll_frame() {
        pair.backup.handle_frame(now, frame);
    }
    pair.backup.reign(Epoch(3));
    while let Some(op) = pair.backup.poll_disk(now) {
        pair.backup.handle_disk(now, pair.backup_disk.complete(op));
    }
    while let Some(batch) = pair.backup.poll_committed() {
        shown = Some(batch.end());
    }
    let (journal, rest) = pair.backup.into_live();
    assert_eq!(rest.front().map(|batch| Some(batch.first_lsn())), Some(shown));
    assert_eq!(rest.back().map(|batch| batch.end()), Some(journal.durable()));
}

#[test]
fn what_the_window_has_dropped_is_read_back() {
    let mut pair = Pair::new(false);
    pair.append(1000);
    pair.run(true);
    pair.disconnect();
    let first = pair.live.end();
    pair.append(2 * WINDOW_BYTES_MAX);
    pair.run_live();
    assert_eq!((pair.reads_back, pair.live.committed()), (0, pair.live.end()));
    pair.connect();
    assert!(pair.reads_back > 0 && first < pair.live.end());
    let marks = pair.live.following().unwrap().marks;
    assert_eq!((marks.received, marks.durable), (pair.live.end(), pair.live.end()));
    assert_eq!(pair.backup.follower().durable(), pair.live.end());
}

#[test]
fn what_a_required_backup_lacks_is_read_back_at_once() {
    let mut pair = Pair::new(true);
    pair.disconnect();
    pair.append(2 * WINDOW_BYTES_MAX);
    pair.run_live();
    pair.live.pace_catch_up(pair.now, 64 * 1024);
    pair.connect();
    assert!(pair.reads_back > 0);
    assert_eq!(pair.backup.follower().durable(), pair.live.end());
}

/// Away while the other one's log moved on by several laps, or empty: nothing leads from there.
#[test]
fn what_is_read_back_comes_at_the_rate_that_was_asked_for() {
    const RATE: u64 = 4 * 1024 * 1024;
    let mut pair = Pair::new(false);
    pair.disconnect();
    pair.append(2 * WINDOW_BYTES_MAX);
    pair.run(true);
    pair.live.pace_catch_up(pair.now, RATE);
    let (began, from) = (pair.now, pair.backup.follower().durable());
    let near = Lsn(pair.live.end().0 - WINDOW_BYTES_MAX);
    pair.connect();
    while pair.backup.follower().durable() < near {
        let due = pair.live.poll_timeout().expect("it goes on");
        assert!(due > pair.now && due < began + Duration::from_secs(60), "it waits for time");
        pair.now = due;
        pair.live.handle_timeout(pair.now);
        pair.backup.handle_timeout(pair.now);
        pair.run(true);
    }
    let took = (pair.now - began).as_secs_f64();
    let rate = near.since(from) as f64 / took;
    assert!(rate < 1.1 * RATE as f64 && rate > 0.8 * RATE as f64, "{rate} bytes a second");
    pair.run(true);
    assert_eq!(pair.backup.follower().durable(), pair.live.end(), "the window is sent at once");
}

#[test]
fn a_member_that_nothing_leads_on_from_begins_at_the_lives_head() {
    let mut pair = Pair::new(false);
    pair.append(1000);
    pair.run(true);
    pair.disconnect();
    pair.append(2 * WINDOW_BYTES_MAX);
    while pair.run_live() {}
    let held = pair.live.hold();
    pair.recycle();
    assert_eq!(pair.journal.first_kept(), Lsn(4096), "it may be back in a moment");
    pair.now += HOLD_AFTER;
    pair.live.handle_timeout(pair.now);
    assert_eq!((held.is_some(), pair.live.hold()), (true, None));
    pair.recycle();
    let head = pair.journal.first_kept();
    assert!(head > Lsn(4096));

    pair.session = pair.live.handle_connected(pair.now);
    pair.backup.handle_connected(pair.now);
    pair.run(true);
    pair.recover_backup();
    assert_eq!((pair.backup.follower().head(), pair.backup.follower().received()), (head, head));
    assert!(!pair.backup.follower().is_whole());
    assert_eq!(pair.live.hold(), Some(head), "it is on its way");
    // A crash in between finds it so.
    pair.backup = recovered(pair.now, 2, &mut pair.backup_disk);
    assert!(!pair.backup.follower().is_whole());
    pair.connect();
    assert_eq!(pair.backup.follower().durable(), pair.live.end());
    assert!(pair.backup.follower().is_whole());
    let again = recovered(pair.now, 2, &mut pair.backup_disk);
    assert!(again.follower().is_whole() && again.follower().head() == head);
}

/// The voters may have let it vouch for something: first they leave it out.
#[test]
fn a_member_that_is_waited_for_is_not_told_to_give_its_log_up() {
    let mut pair = Pair::new(false);
    pair.disconnect();
    pair.append(2 * WINDOW_BYTES_MAX);
    while pair.run_live() {}
    pair.now += HOLD_AFTER;
    pair.live.handle_timeout(pair.now);
    pair.recycle();
    pair.live.set_required(pair.now, Some(JournalUuid([2; 16])));
    pair.session = pair.live.handle_connected(pair.now);
    pair.backup.handle_connected(pair.now);
    pair.run(true);
    let refused = BackupEvent::Closed(Reason::TooFarBehind);
    let said: Vec<BackupEvent> = std::iter::from_fn(|| pair.backup.poll_event()).collect();
    assert_eq!(said.last(), Some(&refused), "{said:?}");
    assert!(pair.backup.follower().is_whole());
}

/// What lay there is not the log any more while it is still being read.
#[test]
fn a_reader_that_the_log_has_left_behind_ends_its_session() {
    let mut pair = Pair::new(false);
    pair.append(1000);
    pair.run(true);
    pair.disconnect();
    pair.append(2 * WINDOW_BYTES_MAX);
    while pair.run_live() {}
    pair.session = pair.live.handle_connected(pair.now);
    pair.backup.handle_connected(pair.now);
    while let Some(frame) = pair.backup.poll_frame() {
        pair.live.handle_frame(pair.now, pair.session, frame);
    }
    let from = pair.live.poll_reader().expect("the window has dropped it");
    pair.live.take_reader(pair.journal.read(from));
    pair.live.handle_recycled(Lsn(GEOMETRY.segment_bytes + 4096));
    assert!(pair.live.poll_disk().is_none(), "it reads no more");
    let closed = LiveEvent::Closed { session: pair.session, reason: Reason::TooFarBehind };
    assert_eq!(pair.live.poll_event(), Some(closed));
}

#[test]
fn marks_that_cannot_be_end_the_session_and_move_nothing() {
    let hostile = |end: Lsn| {
        [
            Marks { received: end.plus(4096), durable: end },
            Marks { received: end, durable: end.plus(4096) },
            Marks::default(),
        ]
    };
    for index in 0..3 {
        let mut pair = Pair::new(true);
        pair.append(100);
        pair.run(true);
        pair.append(100);
        pair.run(false);
        let (end, committed) = (pair.live.end(), pair.live.committed());
        let ack = Frame::Ack { session: pair.session, marks: hostile(end)[index] };
        pair.live.handle_frame(pair.now, pair.session, ack);
        let closed = LiveEvent::Closed { session: pair.session, reason: Reason::Protocol };
        assert_eq!(pair.live.poll_event(), Some(closed));
        assert_eq!((pair.live.following(), pair.live.committed()), (None, committed));
    }
}

#[test]
fn r9_what_an_older_session_says_counts_for_nothing() {
    let mut pair = Pair::new(true);
    let old = pair.session;
    pair.disconnect();
    pair.connect();
    pair.append(100);
    pair.run(false);
    let committed = pair.live.committed();
    let marks = Marks { received: pair.live.end(), durable: pair.live.end() };
    pair.live.handle_frame(pair.now, old, Frame::Ack { session: old, marks });
    assert_eq!((pair.live.poll_event(), pair.live.committed()), (None, committed));
    // Inside the new connection it is a fault.
    pair.live.handle_frame(pair.now, pair.session, Frame::Ack { session: old, marks });
    assert!(matches!(pair.live.poll_event(), Some(LiveEvent::Closed { .. })));
    assert_eq!(pair.live.committed(), committed);
}

#[test]
fn another_pair_is_refused_with_the_reason() {
    let mut pair = Pair::new(false);
    pair.disconnect();
    pair.backup.handle_connected(pair.now);
    let Some(Frame::Hello(hello)) = pair.backup.poll_frame() else { panic!("it says hello") };
    let mut strange = hello.clone();
    strange.identity.cluster[0] ^= 1;
    let mut misdirected = hello;
    misdirected.shard = ShardId(5);
    for (hello, expected) in [(strange, Reason::Cluster), (misdirected, Reason::Shards)] {
        let session = pair.live.handle_connected(pair.now);
        pair.live.handle_frame(pair.now, session, Frame::Hello(hello));
        let Some(Frame::Refuse { reason, .. }) = pair.live.poll_frame() else { panic!("refused") };
        assert_eq!(reason, expected);
        let closed = LiveEvent::Closed { session, reason };
        assert_eq!(pair.live.poll_event(), Some(closed));
    }
}

#[test]
fn a_peer_that_knows_a_newer_epoch_deposes_the_live() {
    let mut pair = Pair::new(false);
    pair.disconnect();
    pair.backup.handle_connected(pair.now);
    let Some(Frame::Hello(mut hello)) = pair.backup.poll_frame() else { panic!("it says hello") };
    hello.epochs.enter(Epoch(9), Lsn(4096));
    let session = pair.live.handle_connected(pair.now);
    pair.live.handle_frame(pair.now, session, Frame::Hello(hello));
    assert_eq!(pair.live.poll_event(), Some(LiveEvent::Deposed(Epoch(9))));
}

#[test]
fn r13_a_backup_does_not_follow_an_older_epoch_than_it_has_followed() {
    let mut pair = Pair::new(false);
    pair.disconnect();
    pair.backup.handle_connected(pair.now);
    let session = pair.live.handle_connected(pair.now);
    let Some(hello) = pair.backup.poll_frame() else { panic!("it says hello") };
    pair.live.handle_frame(pair.now, session, hello);
    let Some(Frame::Welcome(mut welcome)) = pair.live.poll_frame() else { panic!("welcome") };
    welcome.epochs = journal::EpochTable::new(Epoch(1), Lsn(4096));
    welcome.epoch = Epoch(1);
    pair.backup.handle_frame(pair.now, Frame::Welcome(welcome));
    let Some(Frame::Refuse { reason, .. }) = pair.backup.poll_frame() else { panic!("refused") };
    assert_eq!(reason, Reason::StaleEpoch);
}

#[test]
fn a_damaged_batch_ends_the_session_and_leaves_the_log_as_it_was() {
    let mut pair = Pair::new(false);
    pair.append(5000);
    let Some(Frame::Batch { session, committed, batch }) = pair.live.poll_frame() else {
        panic!("a batch")
    };
    let before = pair.backup.marks();
    let mut hurt = batch.to_vec();
    let middle = hurt.len() / 2;
    hurt[middle] ^= 1;
    let frame = Frame::Batch { session, committed, batch: hurt.into() };
    pair.backup.handle_frame(pair.now, frame);
    assert_eq!((pair.backup.marks(), pair.backup.is_following()), (before, false));
    pair.live.handle_disconnected(pair.now, session);
    pair.connect();
    assert_eq!(pair.backup.follower().durable(), pair.live.end());
}

#[test]
fn frames_out_of_turn_end_the_session_on_either_side() {
    let out_of_turn = |session| {
        [
            Frame::Ready { session },
            Frame::Beat { session, committed: Lsn(4096) },
            Frame::Batch { session, committed: Lsn(4096), batch: vec![1; 100].into() },
        ]
    };
    for index in 0..3 {
        let mut pair = Pair::new(false);
        let frame = out_of_turn(pair.session)[index].clone();
        pair.live.handle_frame(pair.now, pair.session, frame);
        assert!(matches!(pair.live.poll_event(), Some(LiveEvent::Closed { .. })), "{index}");
        assert_eq!(pair.live.following(), None);
    }
    let mut pair = Pair::new(false);
    pair.backup.handle_frame(pair.now, Frame::Ready { session: pair.session });
    assert!(!pair.backup.is_following());
}
