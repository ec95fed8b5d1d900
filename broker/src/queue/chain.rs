//! Messages of several records: where their fragments are, and those that are being read.
//!
//! ```text
//!   sequence ─▶ (LSN, bytes) (LSN, bytes) … (LSN, bytes)     in the order of the log
//!   read back   here         –              here               until all are: one message again
//! ```
//! Most queues have none, so the index knows no more of them than that they are in fragments: the
//! places are in a table beside it, [`FRAGMENT_PLACE_BYTES`] for each 63 KiB of message, counted
//! against the memory bound.
//!
//! A copy has the same fragments at other places, so a fragment that was read before its message
//! was copied is as good as one that is read afterwards.
//!
//! Invariants: a chain has two fragments or more, and lasts as long as its message; its first place
//! is the message's. What is gathered is of a message that is asked for, and is dropped with that.

use std::collections::BTreeMap;

use bytes::{Bytes, BytesMut};
use journal::{FragmentAt, Lsn, Sequence};

use super::{Queue, Traits};
use crate::limits::{CHAIN_BYTES, FRAGMENT_PLACE_BYTES};

/// Where the fragments of a message are, from the first to the last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain(Box<[FragmentAt]>);

impl Chain {
    /// A chain of these.
    ///
    /// # Panics
    /// If there are not two or more.
    pub fn new(fragments: impl Into<Box<[FragmentAt]>>) -> Self {
        let fragments = fragments.into();
        assert!(fragments.len() > 1, "one record is no chain");
        Self(fragments)
    }

    /// The place of the message: that of its first fragment.
    pub fn lsn(&self) -> Lsn {
        self.0[0].lsn
    }

    /// The end of the last fragment.
    pub fn end(&self) -> Lsn {
        self.0[self.0.len() - 1].end()
    }

    /// The fragments.
    pub fn fragments(&self) -> &[FragmentAt] {
        &self.0
    }

    /// What it counts against the memory bound.
    pub fn memory_bytes(&self) -> u64 {
        CHAIN_BYTES + self.0.len() as u64 * FRAGMENT_PLACE_BYTES
    }
}

/// A message in fragments, as its queue takes it in.
#[derive(Clone, Debug)]
pub struct Large {
    /// Where it is.
    pub chain: Chain,
    /// Its bytes, if they are in memory.
    pub message: Option<Bytes>,
    /// How many they are.
    pub message_bytes: usize,
}

impl Queue {
    /// Takes the slot of a message in fragments that is in the log and not committed, also where
    /// later sequences were given before.
    pub fn take_large(&mut self, sequence: Sequence, large: Large, traits: Traits) {
        let Large { chain, message, message_bytes } = large;
        let traits = Traits { parts_bytes: None, ..traits };
        let slot = self.slot(sequence, chain.lsn(), message_bytes, traits);
        if message.is_none() {
            self.paged.begin_outside(sequence, message_bytes as u64);
        }
        if sequence >= self.next {
            self.next = Sequence(sequence.0 + 1);
            self.index.push(sequence, slot, message);
        } else {
            self.index.insert(sequence, slot, message);
            self.is_late(sequence);
        }
        self.chains.put(sequence, chain);
    }

    /// Where the fragments of a live message are, if it is in fragments.
    pub fn chain(&self, sequence: Sequence) -> Option<&Chain> {
        self.chains.get(sequence)
    }

    /// Where the first of its messages begins that begins before `lsn` and ends behind it.
    pub fn chain_over(&self, lsn: Lsn) -> Option<Lsn> {
        let over = |chain: &&Chain| chain.lsn() < lsn && chain.end() > lsn;
        self.chains.chains.values().filter(over).map(Chain::lsn).min()
    }

    /// Whether a message in fragments is asked for and not all there.
    pub fn is_gathering(&self, sequence: Sequence) -> bool {
        self.chain(sequence).is_some() && self.is_asked(sequence)
    }

    /// What the chains of its messages count against the memory bound.
    pub fn chain_bytes(&self) -> u64 {
        self.chains.memory_bytes()
    }
}

/// The chains of a queue.
#[derive(Debug, Default)]
pub(super) struct Chains {
    chains: BTreeMap<Sequence, Chain>,
    memory_bytes: u64,
    gathered: BTreeMap<Sequence, Vec<Option<Bytes>>>,
}

impl Chains {
    pub(super) fn get(&self, sequence: Sequence) -> Option<&Chain> {
        self.chains.get(&sequence)
    }

    pub(super) fn memory_bytes(&self) -> u64 {
        self.memory_bytes
    }

    /// The fragments of a message are there now.
    pub(super) fn put(&mut self, sequence: Sequence, chain: Chain) {
        self.memory_bytes += chain.memory_bytes();
        if let Some(before) = self.chains.insert(sequence, chain) {
            self.memory_bytes -= before.memory_bytes();
        }
    }

    /// The message is gone. Gives what it counted against the memory bound.
    #[cold]
    pub(super) fn forget(&mut self, sequence: Sequence) -> u64 {
        self.gathered.remove(&sequence);
        let bytes = self.chains.remove(&sequence).map_or(0, |chain| chain.memory_bytes());
        self.memory_bytes -= bytes;
        bytes
    }

    /// A fragment was read. Gives the message when it was the last that was missing.
    pub(super) fn gather(
        &mut self,
        sequence: Sequence,
        fragment: u16,
        payload: Bytes,
    ) -> Option<Bytes> {
        let count = self.chains.get(&sequence)?.0.len();
        let gathered = self.gathered.entry(sequence).or_insert_with(|| vec![None; count]);
        *gathered.get_mut(usize::from(fragment))? = Some(payload);
        if gathered.iter().any(Option::is_none) {
            return None;
        }
        let gathered = self.gathered.remove(&sequence)?;
        let bytes = gathered.iter().flatten().map(Bytes::len).sum();
        let mut message = BytesMut::with_capacity(bytes);
        gathered.iter().flatten().for_each(|part| message.extend_from_slice(part));
        Some(message.freeze())
    }
}

#[cfg(test)]
mod tests {
    use journal::QueueId;

    use super::*;
    use crate::queue::tests::{drain_to, link};
    use crate::queue::{Filled, Hand, PagedOut, SlotState, Wanted};

    /// A message of three fragments of 100 bytes, at this place.
    fn large(lsn: u64, is_here: bool) -> Large {
        let at = |n: u64| FragmentAt { lsn: Lsn(lsn + n * 1000), record_bytes: 132 };
        let chain = Chain::new([0, 1, 2].map(at));
        let message = is_here.then(|| Bytes::from(vec![0; 300]));
        Large { chain, message, message_bytes: 300 }
    }

    fn part(n: u8) -> Bytes {
        Bytes::from(vec![n; 100])
    }

    fn asked(queue: &mut Queue, sequence: u64) -> Vec<Wanted> {
        let mut wanted = Vec::new();
        queue.ask(Sequence(sequence), &mut wanted);
        wanted
    }

    #[test]
    fn fragments_are_gathered_in_any_order_also_from_where_they_were() {
        let mut queue = Queue::new(QueueId(1));
        queue.take_large(Sequence(7), large(0, false), Traits::default());
        queue.commit(Sequence(7));
        assert_eq!(queue.paged_out(), PagedOut { messages: 1, bytes: 300 });
        let wanted = asked(&mut queue, 7);
        let places: Vec<_> = wanted.iter().map(|one| (one.lsn.0, one.fragment)).collect();
        assert_eq!(places, [(0, Some(0)), (1000, Some(1)), (2000, Some(2))]);
        assert!(asked(&mut queue, 7).is_empty() && queue.is_gathering(Sequence(7)));
        assert_eq!(queue.fill(&wanted[2], || Some(part(2))), Filled::Part);
        let copy = large(50_000, false).chain;
        assert_eq!(queue.relocate(Sequence(7), copy.lsn(), Some(copy)), Some(Lsn(0)));
        let Filled::Moved(moved) = queue.fill(&wanted[0], || panic!("not looked at")) else {
            panic!("it is elsewhere");
        };
        assert_eq!(moved, Wanted { lsn: Lsn(50_000), ..wanted[0] });
        assert_eq!(queue.fill(&moved, || Some(part(0))), Filled::Part);
        let last = Wanted { lsn: Lsn(51_000), ..wanted[1] };
        assert_eq!(queue.fill(&last, || None), Filled::Damaged);
        let filled = queue.fill(&last, || Some(part(1)));
        assert_eq!(filled, Filled::Held(SlotState::Available));
        let whole = [part(0), part(1), part(2)].concat();
        assert_eq!(queue.message(Sequence(7)).expect("it is here"), &whole);
        assert_eq!((queue.paged_out(), queue.is_gathering(Sequence(7))), Default::default());
    }

    #[test]
    fn one_that_is_on_the_disk_is_handed_out_without_its_bytes() {
        let mut queue = Queue::new(QueueId(1));
        queue.take_large(Sequence(0), large(0, true), Traits::default());
        queue.take_large(Sequence(1), large(9000, true), Traits::default());
        [0, 1].into_iter().for_each(|n| queue.commit(Sequence(n)));
        let mut hand = Hand { below: u64::MAX, drops_left: 10, looks_left: 10 };
        // The last fragment of the second is not committed.
        assert_eq!(queue.shed(Lsn(11_100), 0, &mut hand).paged_out.messages, 1);
        queue.attach(link(1));
        queue.add_credit(link(1), 2, false);
        let first = queue.dispatch().expect("it goes out");
        assert_eq!((first.sequence, first.message), (Sequence(0), None));
        assert_eq!(drain_to(&mut queue), [(1, 1)]);
        let mut wanted = Vec::new();
        queue.ask_ahead(1000, &mut wanted);
        assert!(wanted.is_empty(), "{wanted:?}");
        // It takes its places with it.
        assert!(queue.chain_bytes() > 0);
        for n in [0, 1] {
            queue.settle(link(1), Sequence(n)).expect("it has it");
            let archived = queue.archive(Sequence(n)).expect("it was there");
            assert_eq!(archived.memory_bytes, Queue::memory_bytes(300) + CHAIN_BYTES + 48);
        }
        assert_eq!((queue.chain_bytes(), queue.paged_out()), (0, PagedOut::default()));
    }

    #[test]
    fn one_whose_sequence_was_given_long_ago_comes_into_its_place() {
        let mut queue = Queue::new(QueueId(1));
        queue.skip_to(Sequence(4));
        queue.take_large(Sequence(4), large(0, false), Traits::default());
        queue.take_large(Sequence(2), large(5000, false), Traits::default());
        [4, 2].into_iter().for_each(|n| queue.commit(Sequence(n)));
        queue.attach(link(1));
        queue.add_credit(link(1), 9, false);
        assert_eq!(drain_to(&mut queue), [(1, 2), (1, 4)]);
        assert_eq!(queue.next_sequence(), Sequence(5));
    }
}
