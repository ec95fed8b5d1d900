//! Log-ins that wait for a verifier: a queue for each address, one of each in turn.
//!
//! ```text
//!   push ─▶ there is room: behind those of its address ─▶ a token for the verifiers
//!     └───▶ all full: the address that has most loses its last ─┬▶ who is turned away
//!                     it has not two more than the newcomer's ──┘  (the newcomer)
//!   next ─▶ the first of the address whose turn it is
//! ```
//! So one address that guesses cannot keep a right password of another one out, however often it
//! does: that waits for one guess of each address, not for all. As many addresses as there are
//! places can: among those that have one each nobody makes room.
//!
//! Invariants: as many tokens as log-ins are queued; an address is in `turns` once while something
//! of it is queued, and else not at all. The verifiers end when the last [`Line`] is gone.

use std::collections::{BTreeMap, VecDeque};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crossbeam::channel::{Receiver, Sender, unbounded};

/// The end where log-ins come in.
pub(super) struct Line<T> {
    queues: Arc<Mutex<Queues<T>>>,
    tokens: Sender<()>,
}

/// The end where they are taken.
pub(super) struct Taken<T> {
    queues: Arc<Mutex<Queues<T>>>,
    tokens: Receiver<()>,
}

struct Queues<T> {
    max: usize,
    count: usize,
    of: BTreeMap<IpAddr, VecDeque<T>>,
    turns: VecDeque<IpAddr>,
}

/// A line of at most so many.
pub(super) fn line<T>(max: usize) -> (Line<T>, Taken<T>) {
    let (given, tokens) = unbounded();
    let queues = Queues { max, count: 0, of: BTreeMap::new(), turns: VecDeque::new() };
    let queues = Arc::new(Mutex::new(queues));
    (Line { queues: Arc::clone(&queues), tokens: given }, Taken { queues, tokens })
}

impl<T> Clone for Line<T> {
    fn clone(&self) -> Self {
        Self { queues: Arc::clone(&self.queues), tokens: self.tokens.clone() }
    }
}

impl<T> Clone for Taken<T> {
    fn clone(&self) -> Self {
        Self { queues: Arc::clone(&self.queues), tokens: self.tokens.clone() }
    }
}

impl<T> Line<T> {
    /// One more; who is turned away for it, which may be itself.
    pub(super) fn push(&self, from: IpAddr, one: T) -> Option<T> {
        let mut queues = lock(&self.queues);
        let turned_away = if queues.count < queues.max {
            queues.count += 1;
            // Where the verifiers are gone nobody waits any more.
            let _ = self.tokens.send(());
            None
        } else {
            match queues.make_room(from) {
                Some(last) => Some(last),
                None => return Some(one),
            }
        };
        queues.put(from, one);
        turned_away
    }
}

impl<T> Taken<T> {
    /// The next one; none when nobody can put one in any more.
    pub(super) fn next(&self) -> Option<T> {
        self.tokens.recv().ok()?;
        Some(lock(&self.queues).take())
    }
}

impl<T> Queues<T> {
    fn put(&mut self, from: IpAddr, one: T) {
        let queue = self.of.entry(from).or_default();
        if queue.is_empty() {
            self.turns.push_back(from);
        }
        queue.push_back(one);
    }

    fn take(&mut self) -> T {
        let from = self.turns.pop_front().expect("there are as many as tokens");
        let queue = self.of.get_mut(&from).expect("who has a turn has a queue");
        let one = queue.pop_front().expect("a queue that is there is not empty");
        if queue.is_empty() {
            self.of.remove(&from);
        } else {
            self.turns.push_back(from);
        }
        self.count -= 1;
        one
    }

    /// The last of the address that has most, if that has two more than this one.
    fn make_room(&mut self, from: IpAddr) -> Option<T> {
        let own = self.of.get(&from).map_or(0, VecDeque::len);
        let most = self.of.values_mut().max_by_key(|queue| queue.len())?;
        if most.len() > own + 1 { most.pop_back() } else { None }
    }
}

fn lock<T>(queues: &Mutex<Queues<T>>) -> MutexGuard<'_, Queues<T>> {
    queues.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(last: u8) -> IpAddr {
        IpAddr::from([127, 0, 0, last])
    }

    #[test]
    fn addresses_take_turns_and_who_has_most_makes_room() {
        let (line, taken) = line(16);
        for n in 0..15 {
            assert_eq!(line.push(address(66), n), None);
        }
        assert_eq!(line.push(address(67), 100), None);
        assert_eq!(line.push(address(66), 15), Some(15), "it has the most itself");
        assert_eq!(line.push(address(68), 200), Some(14));
        assert_eq!(line.push(address(67), 101), Some(13));
        let order: Vec<u32> = (0..6).filter_map(|_| taken.next()).collect();
        assert_eq!(order, [0, 100, 200, 1, 101, 2]);
        // Where all have as many, none is turned away for another one.
        let room: Vec<_> = (0..6).map(|n| line.push(address(70 + n), 7)).collect();
        assert_eq!(room, [None; 6]);
        drop(line);
        assert_eq!(std::iter::from_fn(|| taken.next()).count(), 16);
        let queues = lock(&taken.queues);
        assert_eq!((queues.count, queues.of.len(), queues.turns.len()), (0, 0, 0));
    }

    #[test]
    fn one_of_each_address_makes_room_for_nobody() {
        let (line, _taken) = line(2);
        assert_eq!([1, 2].map(|n| line.push(address(n), n)), [None, None]);
        assert_eq!(line.push(address(3), 3), Some(3));
    }
}
