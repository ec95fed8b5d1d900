//! How deep a queue may be, and what becomes of a message that comes when it is as deep as that.
//!
//! ```text
//!   depth = messages that are not gone, and their bytes
//!
//!   0 ──────────────── half ──────────────── bound
//!                        ◀── has room again    is full ──▶    (told to producers' shards: block)
//!                                              refuse: rejected │ drop: accepted, and gone
//! ```
//! `block` takes what comes all the same: it was sent under credit that was given before, and no
//! more is given. That a queue has room again is told when it is half empty, so that many producers
//! are not told message by message.
//!
//! Invariant: a queue without bounds costs its messages one look at [`Entry`].

use super::Queue;
use crate::settings::{AddressSettings, FullPolicy};

/// Who is let in.
#[derive(Debug, Default)]
pub(super) enum Entry {
    /// Everybody.
    #[default]
    Open,
    /// As many as fit.
    Bounded(Box<Bounds>),
    /// Nobody: the queue is about to go.
    Closed,
}

/// How deep it may be.
#[derive(Debug)]
pub(super) struct Bounds {
    messages_max: u64,
    bytes_max: u64,
    policy: FullPolicy,
    /// It is full, and whoever has to know was told.
    is_full: bool,
}

/// What a queue says to a message that comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// It may come, and nobody counts.
    Free,
    /// There is room; whoever lets it in looks at [`Queue::turn_full`] afterwards.
    Counted,
    /// There is no room, and this is what becomes of it.
    Full(FullPolicy),
    /// The queue takes nothing more.
    Closed,
}

impl Entry {
    pub(super) fn of(settings: &AddressSettings) -> Self {
        let bound = |max: u64| if max == 0 { u64::MAX } else { max };
        let (messages_max, bytes_max) = (bound(settings.messages_max), bound(settings.bytes_max));
        if messages_max == u64::MAX && bytes_max == u64::MAX {
            return Self::Open;
        }
        let policy = settings.full_policy;
        Self::Bounded(Box::new(Bounds { messages_max, bytes_max, policy, is_full: false }))
    }
}

impl Queue {
    /// Whether a message of this length may come.
    #[inline(always)]
    pub fn admits(&self, message_bytes: usize) -> Admission {
        match &self.entry {
            Entry::Open => Admission::Free,
            Entry::Bounded(bounds) => self.admits_within(bounds, message_bytes as u64),
            Entry::Closed => Admission::Closed,
        }
    }

    /// It takes nothing more: it is about to go.
    ///
    /// # Panics
    /// If it has messages.
    pub fn close(&mut self) {
        assert_eq!(self.live(), 0, "{:?} has messages and is to go", self.id);
        self.entry = Entry::Closed;
    }

    #[cold]
    fn admits_within(&self, bounds: &Bounds, message_bytes: u64) -> Admission {
        let is_room = self.live() < bounds.messages_max
            && self.payload_bytes.saturating_add(message_bytes) <= bounds.bytes_max;
        if is_room { Admission::Counted } else { Admission::Full(bounds.policy) }
    }

    /// Says once that a queue that blocks has become full (true), or has room again (false).
    pub fn turn_full(&mut self) -> Option<bool> {
        let (live, bytes) = (self.live(), self.payload_bytes);
        let Entry::Bounded(bounds) = &mut self.entry else { return None };
        if bounds.policy != FullPolicy::Block {
            return None;
        }
        let is_full = if bounds.is_full {
            live > bounds.messages_max / 2 || bytes > bounds.bytes_max / 2
        } else {
            live >= bounds.messages_max || bytes >= bounds.bytes_max
        };
        let turns = std::mem::replace(&mut bounds.is_full, is_full) != is_full;
        turns.then_some(is_full)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use bytes::Bytes;
    use journal::{Lsn, QueueId, Sequence};

    use super::*;
    use crate::queue::Traits;

    fn queue(settings: AddressSettings) -> Queue {
        let mut queue = Queue::new(QueueId(1));
        queue.adopt("q", Arc::new(settings));
        queue
    }

    fn put(queue: &mut Queue, bytes: usize) {
        let sequence = queue.next_sequence();
        let message = Bytes::from(vec![0; bytes]);
        queue.reserve(sequence, Lsn(sequence.0), message, Traits::default());
        queue.commit(sequence);
    }

    fn take(queue: &mut Queue) {
        let (taken, _) = queue.take_for_purge(Sequence(0)..Sequence(u64::MAX), 1);
        queue.archive(taken[0]).expect("it was there");
    }

    #[test]
    fn messages_and_bytes_bound_it_each() {
        let mut queue = queue(AddressSettings {
            messages_max: 2,
            bytes_max: 10,
            full_policy: FullPolicy::Refuse,
            ..AddressSettings::default()
        });
        assert_eq!(queue.admits(11), Admission::Full(FullPolicy::Refuse));
        assert_eq!(queue.admits(10), Admission::Counted);
        put(&mut queue, 8);
        assert_eq!(queue.admits(3), Admission::Full(FullPolicy::Refuse));
        put(&mut queue, 1);
        assert_eq!(queue.admits(0), Admission::Full(FullPolicy::Refuse));
        take(&mut queue);
        assert_eq!(queue.admits(1), Admission::Counted);
        assert_eq!(queue.turn_full(), None, "only who blocks tells");
    }

    #[test]
    fn that_it_is_full_is_said_once_and_that_it_is_not_when_it_is_half_empty() {
        let settings = AddressSettings { messages_max: 4, ..AddressSettings::default() };
        let mut queue = queue(settings);
        let mut told = Vec::new();
        for _ in 0..6 {
            put(&mut queue, 1);
            told.extend(queue.turn_full());
        }
        assert_eq!(told, [true]);
        for _ in 0..6 {
            take(&mut queue);
            told.extend(queue.turn_full().map(|is_full| (is_full, queue.live())).map(|t| t.0));
        }
        assert_eq!((told, queue.live()), (vec![true, false], 0));
    }

    #[test]
    fn without_bounds_nobody_counts() {
        let mut queue = queue(AddressSettings::default());
        put(&mut queue, 1);
        assert_eq!((queue.admits(usize::MAX), queue.turn_full()), (Admission::Free, None));
    }
}
