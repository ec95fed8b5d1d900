//! Two members of a pair: who is live, replication, rejoin and takeover, without a broker above.
//!
//! ```text
//!   voters (one register: late, lost, unheard)
//!      ▲ swaps, reads                         ▲
//!      │                                      │
//!   node 0 ─ Membership ◀───── cards ─────▶ Membership ─ node 1      each by its own clock
//!            shard 0 ─ Journal + Live ◀─ wire: delay, cut, reset ─▶ Backup ─ shard 0
//!            shard 1 ─ ...                                          ...
//!      └─ disk: tears, loses, reorders                                 └─ disk
//!   ledger  what was acknowledged, at which level; what was committed; what was exported
//! ```
//! Real `journal` and `replica` on the simulator's disks, from two empty directories on. Faults:
//! crashes and power cuts of one and both, pauses, a lost disk of a backup, links cut and reset,
//! ways to and from the voters cut, swaps that are late, lost and carried out unheard, clocks that
//! drift as far as they may, switchovers.
//!
//! Checked: at most one member's gate is open, at each moment (I1). Each time somebody goes live
//! and at the end: what was acknowledged at `replicated-sync` is in the log; at `replicated` unless
//! this member crashed since; nothing acknowledged vanished from both logs and the exports; what
//! was committed is a prefix, by chain, of every later live's log; what a backup hands to its state
//! was committed. A recovery that finds damage on a disk without faults is a failure too. After the
//! faults both must come in sync by themselves, with the same batches.
//!
//! Invariant: the same seed is the same run.

mod ledger;
mod node;
mod shard;
mod voters;
mod wires;

use std::fmt;
use std::time::{Duration, Instant};

use journal::{Lsn, ShardId};
use replica::card::Standing;

use crate::rng::Rng;
use ledger::Ledger;
use node::Node;
use voters::Voters;
use wires::Wires;

/// Shards of the pair's log.
pub(crate) const SHARDS: u16 = 2;
/// The shortest there is: so much happens in a run.
pub(crate) const LEASE: Duration = Duration::from_millis(500);
const FAULTS_LAST: Duration = Duration::from_millis(12_000);
const WORK_LASTS: Duration = Duration::from_millis(12_300);
const PATIENCE: Duration = Duration::from_secs(30);
const TICK: Duration = Duration::from_millis(1);

/// A rule, broken on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Canary {
    /// One of the journal's.
    Journal(journal::Canary),
    /// One of the pair's.
    Replica(replica::Canary),
}

impl Canary {
    /// Those that this world must catch, by name, and the seed to begin with: some need two rare
    /// things at once, and seeds before it miss them. R5 is left to the tests of the election,
    /// whose world is small enough for it.
    pub const ALL: [(&'static str, Self, u64); 10] = {
        use journal::Canary as J;
        use replica::Canary as R;
        [
            ("backup-answers-before-flush", Self::Replica(R::BackupAnswersBeforeFlush), 20),
            ("cut-by-length", Self::Replica(R::CutByLength), 0),
            ("shrink-at-once", Self::Replica(R::ShrinkAtOnce), 70),
            ("require-after-expand", Self::Replica(R::RequireAfterExpand), 20),
            ("promote-out-of-sync", Self::Replica(R::PromoteOutOfSync), 0),
            ("lease-from-answer", Self::Replica(R::LeaseFromAnswer), 105),
            ("challenge-at-once", Self::Replica(R::ChallengeAtOnce), 0),
            ("leave-unfenced", Self::Replica(R::LeaveUnfenced), 0),
            ("epoch-table-unread", Self::Journal(J::EpochTableUnread), 0),
            ("follower-never-holds-back", Self::Journal(J::FollowerNeverHoldsBack), 0),
        ]
    };
}

/// One kind of event, counted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Somebody went live.
    pub reigns: u64,
    /// ... another one than before.
    pub takeovers: u64,
    /// A lease ran out, or was given up.
    pub fences: u64,
    /// A reign ended in a process that went on.
    pub depositions: u64,
    /// Processes that stood still.
    pub pauses: u64,
    /// Disks that were lost.
    pub lost_disks: u64,
    /// Switchovers that began.
    pub switchovers: u64,
    /// Ways between a member and the voters that were cut.
    pub voters_cut: u64,
    /// A log was cut at a rejoin.
    pub cuts: u64,
    /// Records that were exported.
    pub exported: u64,
    /// Reads of the log for a backup that was behind.
    pub reads_back: u64,
    /// The peer came into the set.
    pub expands: u64,
    /// The peer was put out of it.
    pub shrinks: u64,
    /// Outcomes that nobody knew.
    pub unknown: u64,
    /// Crashes that lost what was not durable.
    pub power_cuts: u64,
    /// Crashes of both at once.
    pub both_down: u64,
    /// Crashes that kept it.
    pub kills: u64,
    /// Connections reset.
    pub resets: u64,
    /// Directions cut.
    pub partitions: u64,
    /// Acknowledgements at each level: async (none here), sync, replicated, replicated-sync.
    pub acknowledged: [u64; 4],
    /// Settlements acknowledged.
    pub settled: u64,
    /// Batches handed to a backup's state.
    pub shown: u64,
}

impl Counts {
    /// Adds another run's.
    pub fn merge(&mut self, other: &Self) {
        let Self { reigns, takeovers, cuts, exported, reads_back, expands, shrinks, .. } = other;
        self.reigns += reigns;
        self.takeovers += takeovers;
        self.cuts += cuts;
        self.exported += exported;
        self.reads_back += reads_back;
        self.expands += expands;
        self.shrinks += shrinks;
        self.fences += other.fences;
        self.depositions += other.depositions;
        self.pauses += other.pauses;
        self.lost_disks += other.lost_disks;
        self.switchovers += other.switchovers;
        self.voters_cut += other.voters_cut;
        self.unknown += other.unknown;
        self.power_cuts += other.power_cuts;
        self.both_down += other.both_down;
        self.kills += other.kills;
        self.resets += other.resets;
        self.partitions += other.partitions;
        for (mine, theirs) in self.acknowledged.iter_mut().zip(other.acknowledged) {
            *mine += theirs;
        }
        self.settled += other.settled;
        self.shown += other.shown;
    }
}

/// A promise was broken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Broken {
    /// Of which seed.
    pub seed: u64,
    /// Milliseconds after the beginning.
    pub at_ms: u128,
    /// Which.
    pub what: String,
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "seed {} after {} ms: {}", self.seed, self.at_ms, self.what)
    }
}

/// Carries out the run of a seed.
///
/// # Errors
/// Which promise was broken, and when.
pub fn run(seed: u64, canary: Option<Canary>, base: Instant) -> Result<Counts, Broken> {
    let mut world = World::new(seed, canary, base);
    match world.live_through() {
        Ok(()) => Ok(world.counts),
        Err(what) => Err(Broken { seed, at_ms: (world.now - base).as_millis(), what }),
    }
}

#[derive(Debug)]
struct World {
    now: Instant,
    base: Instant,
    rng: Rng,
    habits: Habits,
    nodes: [Node; 2],
    wires: Wires,
    voters: Voters,
    ledger: Ledger,
    counts: Counts,
    /// Who served last.
    last_live: Option<usize>,
    /// When the voters, too, are lost to a node whose link is cut already.
    isolated_at: Option<(Instant, usize)>,
}

/// How likely each fault is in a run, one in so many ticks.
#[derive(Clone, Copy, Debug)]
struct Habits {
    crash_one_in: u64,
    cut_one_in: u64,
    reset_one_in: u64,
    pause_one_in: u64,
    deaf_one_in: u64,
    switch_one_in: u64,
    append_permille: u32,
}

impl World {
    fn new(seed: u64, canary: Option<Canary>, base: Instant) -> Self {
        let mut rng = Rng::stream(seed, "pair", 0);
        let habits = Habits {
            crash_one_in: *rng.pick(&[400, 800, 1600, 0]),
            cut_one_in: *rng.pick(&[200, 500, 0]),
            reset_one_in: *rng.pick(&[100, 400, 0]),
            pause_one_in: *rng.pick(&[400, 1500, 0]),
            deaf_one_in: *rng.pick(&[400, 1500, 0]),
            switch_one_in: *rng.pick(&[100, 400, 0]),
            append_permille: *rng.pick(&[150, 350, 700]),
        };
        let nodes = [0, 1].map(|index| Node::new(seed, index, canary, base));
        Self {
            now: base,
            base,
            habits,
            nodes,
            wires: Wires::new(Rng::stream(seed, "wires", 0), base),
            voters: Voters::new(Rng::stream(seed, "voters", 0), base),
            ledger: Ledger::default(),
            counts: Counts::default(),
            last_live: None,
            isolated_at: None,
            rng,
        }
    }

    fn live_through(&mut self) -> Result<(), String> {
        let mut tick = self.now;
        loop {
            self.pump()?;
            // Something that is due and has nothing to do waits for the next moment.
            let soon = self.now + Duration::from_micros(10);
            self.now = self.next_due().map_or(tick, |due| due.max(soon).min(tick));
            if self.now >= tick {
                tick = self.now + TICK;
                self.tick()?;
                if self.now - self.base >= WORK_LASTS && self.is_settled() {
                    return self.finish();
                }
            }
            if self.now - self.base > PATIENCE {
                return Err(format!("the pair does not come in sync: {}", self.describe()));
            }
        }
    }

    fn next_due(&self) -> Option<Instant> {
        let nodes = self.nodes.iter().filter_map(|node| node.poll_timeout(self.now));
        nodes.chain(self.wires.poll_timeout()).chain(self.voters.poll_timeout()).min()
    }

    /// Everything that happens at this moment.
    fn pump(&mut self) -> Result<(), String> {
        loop {
            let mut progress = false;
            for node in &mut self.nodes {
                progress |= node.pump(self.now, &mut self.ledger, &mut self.counts)?;
            }
            progress |=
                self.wires.pump(self.now, &mut self.nodes, &mut self.ledger, &mut self.counts)?;
            for heard in self.voters.pump(self.now, &mut self.counts) {
                progress = true;
                self.nodes[heard.node].handle_voters(heard);
            }
            for node in &mut self.nodes {
                progress |= node.ask(self.now, &mut self.voters);
            }
            let serving = self.nodes.iter().filter(|node| node.may_serve(self.now)).count();
            if serving > 1 {
                return Err(format!("two serve at once: {}", self.describe()));
            }
            if !progress {
                return Ok(());
            }
        }
    }

    /// A millisecond's faults and work.
    fn tick(&mut self) -> Result<(), String> {
        let age = self.now - self.base;
        if age < FAULTS_LAST {
            self.break_something();
        } else {
            self.wires.heal();
            self.voters.heal(self.now);
        }
        for node in &mut self.nodes {
            node.start_if_due(self.now, age >= FAULTS_LAST);
            node.recover(self.now, &mut self.ledger, &mut self.counts);
        }
        let is_working = age < WORK_LASTS;
        for (index, node) in self.nodes.iter_mut().enumerate() {
            if node.may_serve(self.now) {
                let before = self.last_live.replace(index);
                self.counts.takeovers += u64::from(before.is_some_and(|before| before != index));
                if is_working && self.rng.chance(self.habits.append_permille) {
                    node.work(self.now, &mut self.rng, &mut self.ledger);
                }
            }
        }
        self.check_new_live()
    }

    fn break_something(&mut self) {
        if self.rng.one_in(self.habits.crash_one_in) {
            let both = self.rng.one_in(3);
            let power = self.rng.chance(600);
            let first = self.rng.index(2);
            let (hit, kind) = if power {
                (&mut self.counts.power_cuts, "power")
            } else {
                (&mut self.counts.kills, "kill")
            };
            *hit += 1;
            self.counts.both_down += u64::from(both);
            for index in [first, 1 - first] {
                if index == first || both {
                    let longest = *self.rng.pick(&[400, 400, 1500]);
                    let rest = Duration::from_millis(self.rng.between(1, longest));
                    self.nodes[index].crash(self.now, kind == "power", rest);
                    self.wires.reset_all(self.now, &mut self.nodes);
                }
            }
        }
        if self.rng.one_in(self.habits.cut_one_in) {
            let lasts = *self.rng.pick(&[20, 300, 1500]);
            let directions = self.rng.between(1, 3);
            self.wires.cut(self.now + Duration::from_millis(lasts), directions);
            self.counts.partitions += 1;
        }
        if self.rng.one_in(self.habits.reset_one_in) {
            self.counts.resets += 1;
            self.wires.reset_all(self.now, &mut self.nodes);
        }
        self.disturb();
    }

    /// Faults of the processes and of what they know of each other.
    fn disturb(&mut self) {
        let index = self.rng.index(2);
        if self.rng.one_in(self.habits.pause_one_in) {
            let lasts = *self.rng.pick(&[20, 300, 900]);
            self.nodes[index].pause(self.now + Duration::from_millis(lasts));
            self.counts.pauses += 1;
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
            self.counts.switchovers += u64::from(self.nodes[index].switch_over(self.now));
        }
        // Only of a member without which nothing is lost.
        let other = 1 - index;
        let is_live = self.voters.record().is_some_and(|record| {
            record.live.is_some_and(|live| usize::from(live.0) == other) && !record.released
        });
        if self.rng.one_in(self.habits.crash_one_in * 3)
            && is_live
            && self.nodes[other].may_serve(self.now)
        {
            self.counts.lost_disks += 1;
            self.nodes[index].crash(self.now, true, Duration::from_millis(30));
            self.nodes[index].lose_disk();
            self.ledger.lose_disk(index);
            self.wires.reset_all(self.now, &mut self.nodes);
        }
    }

    fn check_new_live(&mut self) -> Result<(), String> {
        for index in [0, 1] {
            if self.nodes[index].take_new_reign() {
                let (node, boot) = (&self.nodes[index], self.nodes[index].boot());
                self.ledger.check_live(index, boot, |shard| node.view(shard))?;
            }
        }
        Ok(())
    }

    /// Who serves, and who follows.
    fn live_and_backup(&self) -> Option<(&Node, &Node)> {
        let live = self.nodes.iter().position(|node| node.may_serve(self.now))?;
        Some((&self.nodes[live], &self.nodes[1 - live]))
    }

    fn is_settled(&self) -> bool {
        let Some((live, backup)) = self.live_and_backup() else { return false };
        self.voters.record().is_some_and(|record| record.in_sync.len() == 2)
            && live.standing() == Some(Standing::Live)
            && backup.standing() == Some(Standing::Backup)
            && live.waits_for_nothing()
            && (0..SHARDS).map(ShardId).all(|shard| {
                let end = live.end(shard);
                end > Lsn(0) && live.committed(shard) == end && backup.end(shard) == end
            })
    }

    fn finish(&self) -> Result<(), String> {
        let (live, backup) = self.live_and_backup().expect("it has settled");
        for shard in (0..SHARDS).map(ShardId) {
            if live.view(shard).ends != backup.view(shard).ends {
                return Err(format!("{shard:?}: the members' logs differ"));
            }
        }
        self.ledger.check_end(|shard| live.view(shard))
    }

    fn describe(&self) -> String {
        format!("{}; {}; {}", self.voters, self.nodes[0], self.nodes[1])
    }
}
