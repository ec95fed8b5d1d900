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
//! member has that was installed whole, and what the writer itself would recover.
//!
//! Invariants: it applies to what stands before it alone; applied again, or to a log that begins
//! later, it changes nothing. The catalogue's facts are never forgotten by it: those have records.

use super::{ApplyError, Effect, Fact, State};
use journal::{Lsn, QueueId, Record, RecordKind, Sequence};

/// No queue has this id.
const EVERYTHING: QueueId = QueueId(0);

/// The record that says that the log begins at `head`; `payload` is where its bytes are.
pub fn moved_to(head: Lsn, payload: &mut [u8; 8]) -> Record<'_> {
    *payload = head.0.to_le_bytes();
    Record::new(RecordKind::Settle, EVERYTHING, Sequence(0), payload)
}

/// Whether a settlement is this record.
pub(super) fn is_told(settlement: &Record<'_>) -> bool {
    settlement.queue == EVERYTHING
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
        self.forget_before(head);
        Ok(Effect::None)
    }

    /// Nothing counts that stands before `head`.
    fn forget_before(&mut self, head: Lsn) {
        let segment = head.0 / self.segment_bytes;
        self.forget_chains_before(head);
        self.duplicates.forget_before(segment);
        let facts = self.facts.range(..(segment, Fact::NextQueueId));
        let gone: Vec<QueueId> = facts
            .filter_map(|(_, fact)| match fact {
                Fact::NextSequence(id) => Some(*id),
                Fact::NextQueueId | Fact::Queue(_) | Fact::DuplicateIds(_) => None,
            })
            .collect();
        for id in gone {
            self.forget_fact(Fact::NextSequence(id));
            self.forget_messages_before(id, head);
        }
        if !self.holds_before(segment) {
            return;
        }
        // A queue that is gone has newer records further on. Those that go are young, mostly.
        let mut ids: Vec<QueueId> = self.queues.keys().collect();
        while let Some(id) = ids.pop().filter(|_| self.holds_before(segment)) {
            self.forget_messages_before(id, head);
        }
    }

    fn holds_before(&self, segment: u64) -> bool {
        self.live.keys().next().is_some_and(|first| first < segment)
    }

    /// A queue goes with its last record.
    fn forget_messages_before(&mut self, id: QueueId, head: Lsn) {
        let Some(queue) = self.queues.get(id) else { return };
        let messages = queue.live_messages().filter(|(_, lsn, _)| *lsn < head);
        let gone: Vec<Sequence> = messages.map(|(sequence, ..)| sequence).collect();
        for sequence in gone {
            let effect = self.apply_settle(id, sequence);
            self.commit(effect);
        }
        let is_empty = self.queue(id).is_some_and(|queue| queue.live() == 0);
        let comes = self.halves_of(id).next().is_some();
        if is_empty && !comes && !self.witness.contains_key(&Fact::NextSequence(id)) {
            self.forget_queue(id);
            self.clear(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use journal::RecordFlags;

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

    #[test]
    fn a_head_behind_its_record_or_none_is_damage() {
        let mut state = state();
        let behind = state.apply(Lsn(10), &moved_to(Lsn(11), &mut [0; 8]));
        assert!(matches!(behind, Err(ApplyError::Damage(_))), "{behind:?}");
        let none = Record::new(RecordKind::Settle, EVERYTHING, Sequence(0), b"1234567");
        assert!(matches!(state.apply(Lsn(10), &none), Err(ApplyError::Damage(_))));
    }
}
