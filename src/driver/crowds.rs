//! How full each core and each shard is, for whoever would send a connection there.
//!
//! ```text
//!   there    what a core last said of itself and its shards, once a turn
//!   coming   booked by who sends a connection, given back when it has arrived or broke on its way
//!
//!   book ─▶ Room, travels with the connection ─┬─ take ─▶ there + 1, coming - 1
//!                                              └─ drop ─▶            coming - 1
//! ```
//! A core that is full takes no new connections either, whom the kernel would give to another core
//! if they could be told beforehand: so a quarter of the room of core and shard is kept for them.
//!
//! Invariants: of a shard never more than three quarters of [`CONNECTIONS_MAX`] are booked and
//! there by moving; at most `movers_max` are on their way to a core, and so many descriptors are
//! set aside for them (`driver.rs`), since neither core counts them.
//!
//! Failure: no room is an answer, and the connection stays where it is.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use broker::limits::CONNECTIONS_MAX;
use journal::ShardId;

use crate::node::core_of;

/// Connections on their way to one core, at most; fewer where descriptors are few.
pub(super) const MOVERS_MAX: usize = 1024;

/// Of one core, or of one shard.
#[derive(Debug, Default)]
struct Crowd {
    there: AtomicUsize,
    coming: AtomicUsize,
}

impl Crowd {
    /// One more is coming, if fewer than `most` are there or coming; how many were coming.
    fn book(&self, most: usize) -> Option<usize> {
        let coming = self.coming.fetch_add(1, Ordering::Relaxed);
        if self.there.load(Ordering::Relaxed) + coming < most {
            return Some(coming);
        }
        self.give_back();
        None
    }

    fn give_back(&self) {
        self.coming.fetch_sub(1, Ordering::Relaxed);
    }
}

/// All cores and shards of the process.
#[derive(Debug)]
pub(super) struct Crowds {
    cores: Box<[Crowd]>,
    shards: Box<[Crowd]>,
    sockets_max: usize,
    movers_max: usize,
}

/// Room for one connection that is on its way.
#[derive(Debug)]
pub(super) struct Room {
    crowds: Arc<Crowds>,
    /// None where it stays on its core.
    core: Option<usize>,
    shard: ShardId,
}

impl Crowds {
    /// Of so many cores and shards; a core holds at most `sockets_max` connections, and so many may
    /// be on their way to it.
    pub(super) fn new(cores: usize, shards: usize, limits: Limits) -> Self {
        let empty = |count| (0..count).map(|_| Crowd::default()).collect();
        let Limits { sockets_max, movers_max } = limits;
        Self { cores: empty(cores), shards: empty(shards), sockets_max, movers_max }
    }

    /// How many connections a core has.
    pub(super) fn tell_core(&self, core: usize, count: usize) {
        self.cores[core].there.store(count, Ordering::Relaxed);
    }

    /// How many connections a shard has.
    pub(super) fn tell_shard(&self, shard: ShardId, count: usize) {
        self.shards[usize::from(shard.0)].there.store(count, Ordering::Relaxed);
    }

    /// Room for a connection of core `from` at this shard, if there is any.
    pub(super) fn book(self: &Arc<Self>, from: usize, shard: ShardId) -> Option<Room> {
        let core = core_of(shard, self.cores.len());
        let core = (core != from).then_some(core);
        self.shards[usize::from(shard.0)].book(CONNECTIONS_MAX / 4 * 3)?;
        // From now on its drop gives back what was booked.
        let mut room = Room { crowds: Arc::clone(self), core: None, shard };
        if let Some(core) = core {
            let coming = self.cores[core].book(self.sockets_max.div_ceil(4) * 3)?;
            room.core = Some(core);
            if coming >= self.movers_max {
                return None;
            }
        }
        Some(room)
    }
}

/// What a core may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Limits {
    /// Connections.
    pub(super) sockets_max: usize,
    /// Connections that are on their way to it.
    pub(super) movers_max: usize,
}

impl Room {
    fn crowds(&self) -> impl Iterator<Item = &Crowd> {
        let core = self.core.map(|core| &self.crowds.cores[core]);
        core.into_iter().chain([&self.crowds.shards[usize::from(self.shard.0)]])
    }

    /// The connection has arrived.
    pub(super) fn take(self) {
        self.crowds().for_each(|crowd| {
            crowd.there.fetch_add(1, Ordering::Relaxed);
        });
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        self.crowds().for_each(Crowd::give_back);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHARD: ShardId = ShardId(1);

    fn crowds(sockets_max: usize, movers_max: usize) -> Arc<Crowds> {
        Arc::new(Crowds::new(2, 2, Limits { sockets_max, movers_max }))
    }

    #[test]
    fn a_shard_that_is_nearly_full_gets_no_more_however_many_descriptors_there_are() {
        let crowds = crowds(1 << 19, MOVERS_MAX);
        crowds.tell_shard(SHARD, CONNECTIONS_MAX / 4 * 3 - 2);
        let first = crowds.book(0, SHARD).expect("room for two");
        let second = crowds.book(0, SHARD).expect("room for two");
        assert!(crowds.book(0, SHARD).is_none(), "both are on their way");
        assert!(crowds.book(1, SHARD).is_none(), "from its own core too");
        first.take();
        assert!(crowds.book(0, SHARD).is_none(), "one is there, one on its way");
        drop(second);
        assert!(crowds.book(1, SHARD).is_some(), "one broke on its way");
        crowds.tell_shard(SHARD, 0);
        assert!(crowds.book(0, SHARD).is_some());
    }

    #[test]
    fn a_core_keeps_a_part_of_its_room_and_bounds_who_is_on_the_way() {
        let crowds = crowds(8, 2);
        crowds.tell_core(1, 6);
        assert!(crowds.book(0, SHARD).is_none(), "a quarter is kept");
        assert!(crowds.book(1, SHARD).is_some(), "but not from who is there already");
        crowds.tell_core(1, 0);
        let rooms: Vec<_> = (0..3).map(|_| crowds.book(0, SHARD)).collect();
        assert_eq!(rooms.iter().flatten().count(), 2, "two descriptors are set aside");
        drop(rooms);
        let all = crowds.cores.iter().chain(&crowds.shards);
        assert!(all.map(|crowd| crowd.coming.load(Ordering::Relaxed)).all(|coming| coming == 0));
    }
}
