//! What goes wrong in a run, by chance: how often is drawn with the seed, so that runs differ in
//! kind and not only in when.

use std::time::Duration;

use super::node::Ailment;
use super::world::World;
use crate::disk::{Crash, Fate};
use crate::rng::Rng;

/// How likely each fault is in a run, one in so many milliseconds.
#[derive(Clone, Copy, Debug)]
pub(super) struct Habits {
    crash_one_in: u64,
    cut_one_in: u64,
    reset_one_in: u64,
    pause_one_in: u64,
    deaf_one_in: u64,
    switch_one_in: u64,
    voter_one_in: u64,
    ail_one_in: u64,
    wedge_one_in: u64,
    pub(super) append_permille: u32,
}

impl Habits {
    pub(super) fn draw(rng: &mut Rng) -> Self {
        Self {
            crash_one_in: *rng.pick(&[400, 800, 1600, 0]),
            cut_one_in: *rng.pick(&[200, 500, 0]),
            reset_one_in: *rng.pick(&[100, 400, 0]),
            pause_one_in: *rng.pick(&[400, 1500, 0]),
            deaf_one_in: *rng.pick(&[500, 1500, 0]),
            switch_one_in: *rng.pick(&[100, 400, 0]),
            voter_one_in: *rng.pick(&[500, 2000, 0]),
            ail_one_in: *rng.pick(&[800, 3000, 0]),
            wedge_one_in: *rng.pick(&[1500, 0, 0]),
            append_permille: *rng.pick(&[150, 350, 700]),
        }
    }

    pub(super) fn none() -> Self {
        Self {
            crash_one_in: 0,
            cut_one_in: 0,
            reset_one_in: 0,
            pause_one_in: 0,
            deaf_one_in: 0,
            switch_one_in: 0,
            voter_one_in: 0,
            ail_one_in: 0,
            wedge_one_in: 0,
            append_permille: 350,
        }
    }
}

impl World {
    pub(super) fn break_something(&mut self) -> Result<(), String> {
        if self.rng.one_in(self.habits.crash_one_in) {
            self.crash_some()?;
        }
        if self.rng.one_in(self.habits.cut_one_in) {
            let lasts = *self.rng.pick(&[20, 300, 1500]);
            let directions = self.rng.between(1, 3);
            self.wires.cut(self.now + Duration::from_millis(lasts), directions);
            self.counts.partitions += 1;
        }
        if self.rng.one_in(self.habits.reset_one_in) {
            self.counts.resets += 1;
            self.wires.reset_all(self.now, &mut self.nodes, None);
        }
        if self.rng.one_in(self.habits.voter_one_in) {
            self.voters.disturb(self.now, &mut self.counts);
        }
        if self.rng.one_in(self.habits.voter_one_in * 4) {
            self.voters.mend();
        }
        self.disturb();
        self.spoil_a_disk();
        if self.rng.one_in(self.habits.crash_one_in * 3) {
            self.lose_a_disk()?;
        }
        Ok(())
    }

    fn crash_some(&mut self) -> Result<(), String> {
        let both = self.rng.one_in(3);
        let power = self.rng.chance(600);
        let first = self.rng.index(2);
        *(if power { &mut self.counts.power_cuts } else { &mut self.counts.kills }) += 1;
        self.counts.both_down += u64::from(both);
        let crash = if power { Crash::PowerCut(Fate::Seeded) } else { Crash::Kill(Fate::Seeded) };
        for index in [first, 1 - first] {
            if index == first || both {
                let longest = *self.rng.pick(&[400, 400, 1500]);
                let rest = Duration::from_millis(self.rng.between(1, longest));
                self.crash(index, crash, rest)?;
            }
        }
        Ok(())
    }

    /// Faults of the processes and of what they know of each other.
    fn disturb(&mut self) {
        let index = self.rng.index(2);
        if self.rng.one_in(self.habits.pause_one_in) {
            let lasts = *self.rng.pick(&[20, 300, 900]);
            self.nodes[index].pause(self.now + Duration::from_millis(lasts));
            self.counts.pauses += 1;
        }
        if self.rng.one_in(self.habits.wedge_one_in) {
            let lasts = *self.rng.pick(&[50, 400, 1200]);
            let shard = self.rng.index(usize::from(super::SHARDS));
            self.nodes[index].wedge(shard, self.now + Duration::from_millis(lasts));
            self.counts.wedges += 1;
        }
        if self.rng.one_in(self.habits.deaf_one_in) {
            let lasts = *self.rng.pick(&[50, 400, 1200]);
            let directions = self.rng.between(1, 3);
            self.voters.cut(index, self.now + Duration::from_millis(lasts), directions);
            self.counts.voters_cut += 1;
        }
        // First the link, then the voters: who is left out by one may be taken in by the other.
        if self.rng.one_in(self.habits.deaf_one_in * 4) && self.isolated_at.is_none() {
            self.wires.cut(self.now + Duration::from_millis(2000), 3);
            let after = Duration::from_millis(self.rng.between(500, 1200));
            self.isolated_at = Some((self.now + after, index));
        }
        if let Some((_, node)) = self.isolated_at.take_if(|(at, _)| *at <= self.now) {
            self.voters.cut(node, self.now + Duration::from_millis(1200), 3);
            self.counts.voters_cut += 1;
        }
        if self.rng.one_in(self.habits.switch_one_in) {
            let drain = Duration::from_millis(*self.rng.pick(&[100, 1000]));
            self.counts.switchovers += u64::from(self.nodes[index].switch_over(self.now, drain));
        }
    }

    fn spoil_a_disk(&mut self) {
        if !self.rng.one_in(self.habits.ail_one_in) {
            return;
        }
        let ailments =
            [Ailment::Hangs, Ailment::Hangs, Ailment::Fails, Ailment::Short, Ailment::Unreadable];
        let ailment = *self.rng.pick(&ailments);
        let (index, one_in) = (self.rng.index(2), *self.rng.pick(&[1, 3, 10]));
        let lasts = Duration::from_millis(*self.rng.pick(&[5, 50, 500]));
        self.nodes[index].ail(ailment, one_in, self.now + lasts);
        self.counts.ailments += 1;
    }

    /// Only of a member without which nothing is lost: one beside a live, or a live beside one that
    /// the voters hold in sync, and no swap that is under way can change that.
    fn lose_a_disk(&mut self) -> Result<(), String> {
        let Some(live) = self.live() else { return Ok(()) };
        let Some(record) = self.voters.record() else { return Ok(()) };
        let reigns =
            record.live.is_some_and(|node| usize::from(node.0) == live) && !record.released;
        if !reigns {
            return Ok(());
        }
        let is_sure = self.nodes[live].sure_version() == Some(self.voters.version());
        let other = record.in_sync.iter().find(|one| usize::from(one.node.0) != live);
        let is_held = other.is_some_and(|other| other.journal == self.nodes[1 - live].journal());
        let is_live = is_held && is_sure && self.rng.chance(500);
        let index = if is_live { live } else { 1 - live };
        self.counts.lost_disks += 1;
        self.counts.lost_lives += u64::from(is_live);
        self.crash(index, Crash::PowerCut(Fate::Seeded), Duration::from_millis(30))?;
        self.nodes[index].lose_disk();
        self.ledger.lose_disk(index);
        Ok(())
    }
}
