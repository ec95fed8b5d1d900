//! A head that moved: what dies without a record of its own is dead for a reader of the log too.
//!
//! ```text
//!   who writes   │ q5 made │ m1 m2 │ q5 forgotten │ head moves │ Settle of everything before it
//!   the log      ·         │ m1 m2 │              ·            │ S h
//!   who reads                m1, m2, the next of q5 ───────────▶ forgotten; its head moves too
//! ```
//! A queue may go without a record: a temporary one is in no catalogue, and any other's deletion
//! stands in shard 0's log. Nor does the log say which duplicate ids were forgotten. Who writes it
//! knows, and recycles the segments; who only reads it, a backup, would keep its own for ever. So
//! in a pair this record follows each head that moved: a settlement of queue 0, which is no queue,
//! with the head's LSN, little-endian, in the first eight bytes of its payload. To a version that
//! does not know it, it is the settlement of a message that is gone.
//!
//! Why nothing is lost: who writes the log moves its head only when all that lives has a committed
//! record at the new head or behind it, and the settlements of the rest are appended. This record
//! stands behind all of those, and a reader applies it after them. So what it still knows of before
//! that head, its writer has forgotten. What is left is what the log says from that head on: what a
//! member has that was installed whole, and what the writer itself would recover. Members may rank
//! a duplicate id differently, and so know it by different records: it is known as long as any
//! record from that head on names it.
//!
//! That is done a little at a time, in any turn later: what comes behind this record only moves
//! what lives further on. Until it is done, a checkpoint begins before this record.
//!
//! Invariants: it applies to what stands before it alone; applied again, or to a log that begins
//! later, it changes nothing. The catalogue's facts are never forgotten by it: those have records.
//! Who takes the log up forgets what is left as any start does: by the catalogue.

use super::{ApplyError, Effect, Fact, State};
use crate::duplicates::Rank;
use journal::{Lsn, QueueId, Record, RecordKind, Sequence};

/// So many queues close up in the time of a look, about.
const QUEUES_A_LOOK: usize = 512;

/// No queue has this id.
const EVERYTHING: QueueId = QueueId(0);

/// The record that says that the log begins at `head`; `payload` is where its bytes are.
pub fn moved_to(head: Lsn, payload: &mut [u8; 8]) -> Record<'_> {
    *payload = head.0.to_le_bytes();
    Record::new(RecordKind::Settle, EVERYTHING, Sequence(0), payload)
}

/// Whether a settlement is this record.
pub fn is_told(settlement: &Record<'_>) -> bool {
    settlement.queue == EVERYTHING
}

/// Heads that were told, and how far they are obeyed.
#[derive(Debug, Default)]
pub(super) struct Heads {
    /// The newest; nothing of it is done.
    told: Option<Told>,
    /// One that is gone through to its end, or none ever came to that.
    walk: Option<Walk>,
    /// Queues of chains that have no end: nothing else may be left of those.
    ended: Vec<QueueId>,
}

#[derive(Clone, Copy, Debug)]
struct Told {
    head: Lsn,
    at: Lsn,
}

#[derive(Debug)]
struct Walk {
    told: Told,
    /// The queue whose ids are looked through, and from where on.
    ids: Option<(QueueId, Rank)>,
    /// Queues whose messages are to be looked through, the last one next, when that begins.
    queues: Option<Vec<QueueId>>,
    /// From where on in that one.
    next: Sequence,
}

impl Heads {
    /// Of messages of these queues nothing more comes.
    pub(super) fn ended(&mut self, queues: Vec<QueueId>) {
        self.ended.extend(queues);
    }

    /// Where the records stand that are not obeyed to their end.
    pub(super) fn told_at(&self) -> impl Iterator<Item = Lsn> {
        let walk = self.walk.as_ref().map(|walk| walk.told.at);
        walk.into_iter().chain(self.told.map(|told| told.at))
    }
}

impl State {
    pub(super) fn apply_head(
        &mut self,
        lsn: Lsn,
        record: &Record<'_>,
    ) -> Result<Effect, ApplyError> {
        let head = record.payload.first_chunk().map(|head| Lsn(u64::from_le_bytes(*head)));
        let head = head.filter(|head| *head <= lsn).ok_or_else(|| {
            ApplyError::Damage(format!("the record at LSN {lsn} tells no head before it"))
        })?;
        self.forget_chains_before(head);
        self.heads.told = Some(Told { head, at: lsn });
        Ok(Effect::None)
    }

    /// Whether something may stand before a head that was told.
    pub fn is_forgetting(&self) -> bool {
        self.heads.told.is_some() || self.heads.walk.is_some()
    }

    /// Goes on to forget what stands before a head that was told, with a look at so many messages
    /// and ids; a queue that goes may take it beyond by what it takes.
    pub fn forget_on(&mut self, looks_max: usize) {
        let mut looks = 0;
        while looks < looks_max {
            let begun = self.heads.walk.take();
            let told = self.heads.told.take_if(|_| begun.is_none());
            let new = |told| Walk { told, ids: None, queues: None, next: Sequence(0) };
            let Some(mut walk) = begun.or(told.map(new)) else { return };
            if let Some(more) = self.forget_one(&mut walk) {
                self.heads.walk = Some(walk);
                looks += more;
            }
        }
    }

    /// One more of what the walk comes by, and the looks that it took; none: it is over.
    fn forget_one(&mut self, walk: &mut Walk) -> Option<usize> {
        let segment = walk.told.head.0 / self.segment_bytes;
        let last = segment.checked_sub(1)?;
        let mut facts = self.facts.range(..(segment, Fact::NextQueueId));
        let next = facts.find_map(|(_, fact)| match fact {
            Fact::NextSequence(id) => Some(*id),
            Fact::NextQueueId | Fact::Queue(_) | Fact::DuplicateIds(_) => None,
        });
        if let Some(id) = next {
            self.forget_fact(Fact::NextSequence(id));
            return Some(1 + self.forget_if_empty(id));
        }
        if let Some(id) = self.heads.ended.pop() {
            return Some(1 + self.forget_if_empty(id));
        }
        let begun = walk.ids.filter(|(id, _)| self.duplicates.stands_before(*id, segment));
        let first = self.duplicates.queues_up_to(last).next().map(|id| (id, Rank::default()));
        if let Some((id, from)) = begun.or(first) {
            let next = self.duplicates.forget_before(id, segment, from);
            walk.ids = next.map(|next| (id, next));
            return Some(1);
        }
        if self.live.keys().next().is_none_or(|first| first >= segment) {
            return None;
        }
        // A queue that is gone has newer records further on. Those that go are young, mostly.
        let queues = walk.queues.get_or_insert_with(|| self.queues.keys().collect());
        let id = queues.last().copied()?;
        let mut looks = 1;
        match self.queues.get(id).and_then(|queue| queue.stored_from(walk.next)) {
            Some(message) => {
                walk.next = Sequence(message.sequence.0 + 1);
                if message.lsn < walk.told.head {
                    let effect = self.apply_settle(id, message.sequence);
                    self.commit(effect);
                    looks += self.forget_if_empty(id);
                }
            }
            None => {
                queues.pop();
                walk.next = Sequence(0);
            }
        }
        Some(looks)
    }

    /// A queue goes with its last record; not if the catalogue's own tells that it is there. Gives
    /// the looks that this took: its ids go with it, and others close up.
    fn forget_if_empty(&mut self, id: QueueId) -> usize {
        let is_empty = self.queue(id).is_some_and(|queue| queue.live() == 0);
        let comes = self.halves_of(id).next().is_some();
        let is_witnessed = |fact| self.witness.contains_key(&fact);
        let is_there = is_witnessed(Fact::NextSequence(id)) || is_witnessed(Fact::Queue(id));
        if !is_empty || comes || is_there {
            return 0;
        }
        let ids = usize::try_from(self.duplicates.count(id)).unwrap_or(usize::MAX);
        self.forget_queue(id);
        self.clear(1);
        ids + self.queues.len() / QUEUES_A_LOOK
    }
}

#[cfg(test)]
mod tests {
    use journal::RecordFlags;

    use super::super::{Cursor, Load};
    use super::*;
    use crate::catalogue::QueueRecord;
    use crate::duplicates::{DuplicateId, Duplicates};
    use crate::queue::Queue;

    const SEGMENT: u64 = 1000;
    const KEPT: QueueId = QueueId(1);
    const GONE: QueueId = QueueId(5);

    fn state() -> State {
        State::new(SEGMENT, Duplicates::default())
    }

    fn message(queue: QueueId, sequence: u64) -> Record<'static> {
        Record::new(RecordKind::Message, queue, Sequence(sequence), b"m")
    }

    fn replay(state: &mut State, lsn: u64, record: &Record<'_>) {
        let effect = state.apply(Lsn(lsn), record).unwrap();
        state.commit(effect);
    }

    fn tell(state: &mut State, lsn: u64, head: u64) {
        replay(state, lsn, &moved_to(Lsn(head), &mut [0; 8]));
        while state.is_forgetting() {
            assert!(state.told_by_log_from() <= Lsn(lsn), "a start reads it again");
            state.forget_on(1);
        }
        let half = state.oldest_half().map_or(Lsn(u64::MAX), |(begins, ..)| begins);
        assert_eq!(state.told_by_log_from(), half);
    }

    /// The first segment that something keeps.
    fn first_kept(state: &State) -> u64 {
        let keeps = |segment: &u64| {
            state.messages_in(*segment) > 0
                || !state.facts_up_to(*segment, 1).is_empty()
                || state.has_chain_before(Lsn((segment + 1) * SEGMENT))
        };
        (0..100).find(keeps).unwrap_or(100)
    }

    #[test]
    fn a_queue_that_went_without_a_record_keeps_nothing_once_the_head_has_passed_it() {
        let mut state = state();
        replay(&mut state, 10, &message(KEPT, 0));
        replay(&mut state, 20, &message(GONE, 0));
        let mut begun = message(GONE, 1);
        begun.flags = RecordFlags::FIRST;
        replay(&mut state, 30, &begun);
        replay(&mut state, 1010, &message(GONE, 2));
        // What lives is copied, and the head moves; of the queue that is gone something stands
        // behind it still.
        replay(&mut state, 2010, &message(KEPT, 0));
        assert_eq!(first_kept(&state), 0);
        tell(&mut state, 2020, SEGMENT);
        assert_eq!((first_kept(&state), state.messages_in(1)), (1, 1));
        tell(&mut state, 2030, 2 * SEGMENT);
        assert_eq!((first_kept(&state), state.messages()), (2, 1));
        assert!(state.queue(GONE).is_none() && !state.is_clearing());
        assert_eq!(state.memory_bytes(), Queue::memory_bytes(1));
        // What lives has kept its place, its sequence and its fact.
        let queue = state.queue(KEPT).unwrap();
        let kept: Vec<_> =
            queue.live_messages().map(|(sequence, lsn, _)| (sequence, lsn)).collect();
        assert_eq!(kept, [(Sequence(0), Lsn(2010))]);
        assert_eq!(state.facts_up_to(2, 9), [Fact::NextSequence(KEPT)]);
        tell(&mut state, 2040, 2 * SEGMENT);
        tell(&mut state, 2050, SEGMENT);
        assert_eq!((first_kept(&state), state.messages()), (2, 1));
    }

    /// From the head on the log says the same: who read all of it, and who was installed.
    #[test]
    fn what_is_left_is_what_the_log_says_from_the_head_on() {
        let creation = |id: QueueId| QueueRecord {
            id,
            home: journal::ShardId(0),
            level: journal::Level::Sync,
            name: format!("q{}", id.0),
            temporary: None,
        };
        let created = creation(KEPT).encode();
        let create = Record::new(RecordKind::QueueCreate, KEPT, Sequence(0), &created);
        let settle = Record::new(RecordKind::Settle, KEPT, Sequence(0), &[]);
        let mut known = message(KEPT, 1);
        known.parts.duplicate_id = Some(b"id");
        let mut log: Vec<(u64, Record<'_>)> = vec![
            (10, create),
            (20, message(KEPT, 0)),
            (30, known),
            (40, message(GONE, 0)),
            (1010, message(GONE, 1)),
            (1020, settle),
            // The head is to move to segment 1: what lives before it.
            (1030, create),
            (1040, known),
        ];
        let mut payload = [0; 8];
        log.push((1050, moved_to(Lsn(SEGMENT), &mut payload)));
        let (mut whole, mut installed) = (state(), state());
        for (lsn, record) in &log {
            replay(&mut whole, *lsn, record);
            if *lsn >= SEGMENT {
                replay(&mut installed, *lsn, record);
            }
        }
        whole.forget_on(usize::MAX);
        installed.forget_on(usize::MAX);
        for state in [&whole, &installed] {
            assert_eq!((first_kept(state), state.messages()), (1, 2));
            assert_eq!(state.memory_bytes(), whole.memory_bytes());
            assert_eq!(state.facts_up_to(1, 9), whole.facts_up_to(1, 9));
            assert_eq!(state.catalogue.get(KEPT), Some(&creation(KEPT)));
            assert_eq!(state.queue(KEPT).unwrap().next_sequence(), Sequence(2));
            assert_eq!(state.queue(GONE).unwrap().next_sequence(), Sequence(2));
            let id = DuplicateId::from_record(b"id");
            assert!(state.duplicates.known(KEPT, &id).is_some());
        }
    }

    /// The live remembers two ids of this queue, and the reader, which knows no settings, all.
    #[test]
    fn ids_that_were_forgotten_without_a_record_keep_nothing() {
        let (mut live, mut reader) = (state(), state());
        let ids: Vec<[u8; 2]> = (0..6).map(|number| [3, number]).collect();
        for (number, id) in (0..).zip(&ids) {
            let mut record = message(KEPT, number);
            record.parts.duplicate_id = Some(id);
            let lsn = 10 + number * SEGMENT;
            for state in [&mut live, &mut reader] {
                replay(state, lsn, &record);
                replay(state, lsn + 100, &Record { kind: RecordKind::Settle, ..record });
            }
            live.duplicates.limit(KEPT, 2);
        }
        assert_eq!((first_kept(&live), first_kept(&reader)), (4, 0));
        tell(&mut reader, 5500, 4 * SEGMENT);
        assert_eq!((first_kept(&reader), reader.duplicates.count(KEPT)), (4, 2));
        assert_eq!(reader.memory_bytes(), live.memory_bytes());
        let knows =
            |id: &[u8; 2]| reader.duplicates.known(KEPT, &DuplicateId::from_record(id)).is_some();
        assert_eq!(
            ids.iter().map(knows).collect::<Vec<_>>(),
            [false, false, false, false, true, true]
        );
    }

    /// Who reads a copy whose original is gone knows what its writer knows: that the next sequence
    /// is told there. A start with a checkpoint reads so, and so does who was installed.
    #[test]
    fn the_last_messages_copy_tells_the_next_sequence_though_its_original_is_gone() {
        let mut first = message(KEPT, 4);
        first.flags = RecordFlags::FIRST;
        let mut last = message(KEPT, 4);
        (last.flags, last.fragment) = (RecordFlags::LAST, 1);
        for copy in [vec![message(KEPT, 4)], vec![first, last]] {
            let (mut writer, mut pages, mut cursor) = (state(), Vec::new(), Cursor::START);
            for (number, record) in (0..).zip(&copy) {
                replay(&mut writer, 100 + number, record);
            }
            assert!(writer.tell(&mut cursor, Lsn(SEGMENT), &mut pages));
            let (mut started, mut installed) = (state(), state());
            started.load(&mut Load::default(), Lsn(SEGMENT), &pages).unwrap();
            assert_eq!(started.segment_of(Fact::NextSequence(KEPT)), 0);
            // Ids were carried forward, which says the next sequence too.
            let next = Record::new(RecordKind::NextSequence, KEPT, Sequence(5), &[]);
            replay(&mut installed, SEGMENT, &next);
            for state in [&mut writer, &mut started, &mut installed] {
                for (number, record) in (0..).zip(&copy) {
                    replay(state, 3000 + number, record);
                }
                tell(state, 3010, 2 * SEGMENT);
                assert_eq!(state.segment_of(Fact::NextSequence(KEPT)), 3);
                assert_eq!((state.messages(), state.messages_in(3)), (1, 1));
            }
        }
    }

    #[test]
    fn a_queue_that_never_had_a_message_keeps_its_place_in_the_catalogue() {
        let mut state = state();
        let record = QueueRecord {
            id: KEPT,
            home: journal::ShardId(0),
            level: journal::Level::Sync,
            name: "kept".to_owned(),
            temporary: None,
        };
        let created = record.encode();
        let create = Record::new(RecordKind::QueueCreate, KEPT, Sequence(0), &created);
        replay(&mut state, 1010, &create);
        replay(&mut state, 20, &message(GONE, 0));
        replay(&mut state, 30, &Record::new(RecordKind::NextSequence, KEPT, Sequence(0), &[]));
        tell(&mut state, 1020, SEGMENT);
        assert!(state.queue(GONE).is_none() && state.queue(KEPT).is_some());
        assert!(state.facts_up_to(1, 9).contains(&Fact::Queue(KEPT)));
        // Of one that is in no catalogue, and of which there was nothing to tell, pages make none.
        state.open_queue(GONE);
        let (mut pages, mut cursor) = (Vec::new(), Cursor::START);
        assert!(state.tell(&mut cursor, Lsn(5000), &mut pages));
        let mut back = self::state();
        back.load(&mut Load::default(), Lsn(SEGMENT), &pages).unwrap();
        assert_eq!(back.catalogue.get(KEPT), Some(&record));
        assert_eq!(back.queues().count(), 0);
    }

    #[test]
    fn however_much_is_to_be_forgotten_a_turn_looks_at_a_little() {
        let mut state = state();
        let ids: Vec<[u8; 1]> = (0..100).map(|number| [number]).collect();
        for (number, id) in (0..).zip(&ids) {
            let mut with = message(GONE, number);
            with.parts.duplicate_id = Some(id);
            replay(&mut state, number, &with);
            with.queue = KEPT;
            replay(&mut state, 5000 + number, &with);
        }
        replay(&mut state, 5200, &moved_to(Lsn(SEGMENT), &mut [0; 8]));
        let mut turns = 0;
        while state.is_forgetting() {
            let left = |state: &State| state.messages() + state.duplicates.count(GONE);
            let before = left(&state);
            state.forget_on(10);
            assert!(before - left(&state) <= 10);
            turns += 1;
            // Others that are told meanwhile come after it.
            if turns < 5 {
                replay(&mut state, 5200 + turns, &moved_to(Lsn(SEGMENT), &mut [0; 8]));
                assert_eq!(state.told_by_log_from(), Lsn(5200));
            }
        }
        assert!(turns >= 20, "{turns}");
        assert_eq!(state.duplicates.count(KEPT), 100);
        assert_eq!((state.messages(), state.messages_in(5)), (100, 100));
        assert!(state.queue(GONE).is_none());
        // Who takes the log up has nothing more to do with it.
        replay(&mut state, 5300, &moved_to(Lsn(2 * SEGMENT), &mut [0; 8]));
        state.end_recovery();
        assert!(!state.is_forgetting());
    }

    /// A start from a checkpoint that was written while the message came ranks its id by its own
    /// sequence, which its copy tells again; who read the log ranks it by its end.
    #[test]
    fn an_id_that_members_rank_differently_is_known_as_long_as_either_knows_it() {
        let (mut writer, mut reader) = (state(), state());
        let mut first = message(KEPT, 5);
        first.flags = RecordFlags::FIRST;
        first.parts.duplicate_id = Some(b"id");
        let mut last = message(KEPT, 5);
        (last.flags, last.fragment) = (RecordFlags::LAST, 1);
        for state in [&mut writer, &mut reader] {
            replay(state, 2010, &first);
        }
        let (mut pages, mut cursor) = (Vec::new(), Cursor::START);
        assert!(writer.tell(&mut cursor, Lsn(2000), &mut pages));
        let mut started = state();
        started.load(&mut Load::default(), Lsn::ZERO, &pages).unwrap();
        replay(&mut started, 2010, &first);
        for state in [&mut started, &mut reader] {
            replay(state, 2020, &last);
            replay(state, 5010, &first);
            replay(state, 5020, &last);
        }
        assert_eq!(started.duplicates.queues_up_to(4).count(), 0, "nothing is to be carried");
        let knows = |state: &State| {
            state.duplicates.known(KEPT, &DuplicateId::from_record(b"id")).is_some()
        };
        // A member that follows may start with a checkpoint too, before the head or behind it.
        let again = |state: &State, head: u64| {
            let (mut pages, mut cursor) = (Vec::new(), Cursor::START);
            assert!(state.tell(&mut cursor, Lsn(6000), &mut pages));
            let mut back = self::state();
            back.load(&mut Load::default(), Lsn(head), &pages).unwrap();
            back
        };
        for mut reader in [again(&reader, 0), again(&reader, 5 * SEGMENT), reader] {
            tell(&mut reader, 6000, 5 * SEGMENT);
            assert!(knows(&started) && knows(&reader));
            assert_eq!(reader.duplicates.queues_up_to(4).count(), 0, "its head moves");
            tell(&mut reader, 7000, 6 * SEGMENT);
            assert!(!knows(&reader));
        }
    }

    /// Its fact goes before the message of which the rest never comes.
    #[test]
    fn a_queue_of_which_a_chain_was_left_goes_with_that() {
        let mut state = state();
        let mut begun = message(GONE, 0);
        begun.flags = RecordFlags::FIRST;
        replay(&mut state, 10, &message(GONE, 1));
        replay(&mut state, 1010, &begun);
        replay(&mut state, 1020, &Record::new(RecordKind::Settle, GONE, Sequence(1), &[]));
        tell(&mut state, 2010, SEGMENT);
        assert!(state.queue(GONE).is_some(), "more may come");
        tell(&mut state, 2020, 2 * SEGMENT);
        assert!(state.queue(GONE).is_none());
    }

    #[test]
    fn a_head_behind_its_record_or_none_is_damage() {
        let mut state = state();
        let behind = state.apply(Lsn(10), &moved_to(Lsn(11), &mut [0; 8]));
        assert!(matches!(behind, Err(ApplyError::Damage(_))), "{behind:?}");
        let none = Record::new(RecordKind::Settle, EVERYTHING, Sequence(0), b"1234567");
        assert!(matches!(state.apply(Lsn(10), &none), Err(ApplyError::Damage(_))));
    }
}
