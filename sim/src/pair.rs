//! Two members and their logs: replication, rejoin and takeover, without a broker above.
//!
//! ```text
//!   voters (an oracle: one record, late and unknown outcomes)
//!      │ role, in-sync set                   ▲ changes
//!      ▼                                     │
//!   node 0 ─ shard 0 ─ Journal + Live ◀─ wire: delay, cut, reset ─▶ Backup ─ shard 0 ─ node 1
//!            shard 1 ─ ...                                          ...
//!      └─ disk: tears, loses, reorders                                 └─ disk
//!   ledger  what was acknowledged, at which level; what was committed; what was exported
//! ```
//! Real `journal` and `replica` on the simulator's disks; the election is an oracle that gives the
//! role to any member of the in-sync set, in any order, so that every log that may go live does.
//!
//! Checked, each time somebody goes live and at the end: what was acknowledged at
//! `replicated-sync` is in the log; at `replicated` unless this member crashed since; nothing
//! acknowledged vanished from both logs and the exports; what was committed is a prefix, by chain,
//! of every later live's log; what a backup hands to its state was committed. A recovery that finds
//! damage on a disk without faults is a failure too. After the faults both must come in sync by
//! themselves, with the same batches.
//!
//! Invariant: the same seed is the same run.

mod ledger;
mod node;
mod voters;
mod wires;

use std::fmt;
use std::time::{Duration, Instant};

use journal::{Lsn, ShardId};

use crate::rng::Rng;
use ledger::Ledger;
use node::Node;
use voters::Voters;
use wires::Wires;

/// Shards of the pair's log.
pub(crate) const SHARDS: u16 = 2;
const FAULTS_LAST: Duration = Duration::from_millis(4000);
const WORK_LASTS: Duration = Duration::from_millis(4300);
const PATIENCE: Duration = Duration::from_secs(15);
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
    /// Those that this world must catch, by name.
    pub const ALL: [(&'static str, Self); 6] = [
        ("backup-answers-before-flush", Self::Replica(replica::Canary::BackupAnswersBeforeFlush)),
        ("cut-by-length", Self::Replica(replica::Canary::CutByLength)),
        ("ack-before-shrink", Self::Replica(replica::Canary::AckBeforeShrink)),
        ("require-after-expand", Self::Replica(replica::Canary::RequireAfterExpand)),
        ("epoch-table-unread", Self::Journal(journal::Canary::EpochTableUnread)),
        ("follower-never-holds-back", Self::Journal(journal::Canary::FollowerNeverHoldsBack)),
    ];
}

/// One kind of event, counted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Somebody went live.
    pub reigns: u64,
    /// ... another one than before.
    pub takeovers: u64,
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
    vacant_since: Option<Instant>,
}

/// How likely each fault is in a run, one in so many ticks.
#[derive(Clone, Copy, Debug)]
struct Habits {
    crash_one_in: u64,
    cut_one_in: u64,
    reset_one_in: u64,
    append_permille: u32,
}

impl World {
    fn new(seed: u64, canary: Option<Canary>, base: Instant) -> Self {
        let mut rng = Rng::stream(seed, "pair", 0);
        let habits = Habits {
            crash_one_in: *rng.pick(&[250, 500, 1000, 0]),
            cut_one_in: *rng.pick(&[200, 500, 0]),
            reset_one_in: *rng.pick(&[100, 400, 0]),
            append_permille: *rng.pick(&[150, 350, 700]),
        };
        let nodes = [0, 1].map(|index| Node::new(seed, index, canary, base));
        Self {
            now: base,
            base,
            habits,
            nodes,
            wires: Wires::new(Rng::stream(seed, "wires", 0), base),
            voters: Voters::new(Rng::stream(seed, "voters", 0)),
            ledger: Ledger::default(),
            counts: Counts::default(),
            vacant_since: None,
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
        let nodes = self.nodes.iter().filter_map(Node::poll_timeout);
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
            for answer in self.voters.pump(self.now, &mut self.counts) {
                progress = true;
                self.nodes[answer.node].handle_voters(&answer);
            }
            for node in &mut self.nodes {
                progress |= node.ask(self.now, &mut self.voters);
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
        }
        for node in &mut self.nodes {
            node.start_if_due(self.now, age >= FAULTS_LAST);
        }
        self.elect();
        let is_working = age < WORK_LASTS;
        for node in &mut self.nodes {
            if node.is_serving() {
                self.voters.renew(self.now);
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
                    let rest = Duration::from_millis(self.rng.between(1, 400));
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
    }

    /// Gives the role to a member of the in-sync set where nobody has it.
    fn elect(&mut self) {
        let holder = self.voters.live();
        if holder.is_some_and(|index| self.nodes[index].holds(self.voters.epoch())) {
            self.vacant_since = None;
            return;
        }
        let since = *self.vacant_since.get_or_insert(self.now);
        if self.now - since < Duration::from_millis(30) {
            return;
        }
        let may = |index: &usize| self.voters.is_in_sync(*index) && self.nodes[*index].may_reign();
        let candidates: Vec<usize> = [0, 1].into_iter().filter(may).collect();
        if candidates.is_empty() {
            return;
        }
        let winner = *self.rng.pick(&candidates);
        let keep = self.rng.chance(700);
        let peer = self.nodes[1 - winner].uuid();
        let (epoch, backup) = self.voters.give(winner, keep, peer);
        self.counts.reigns += 1;
        self.counts.takeovers += u64::from(holder.is_some_and(|before| before != winner));
        self.nodes[winner].reign(epoch, backup);
        self.vacant_since = None;
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

    fn is_settled(&self) -> bool {
        let Some(live) = self.voters.live() else { return false };
        let (live, backup) = (&self.nodes[live], &self.nodes[1 - live]);
        live.is_serving()
            && live.is_in_sync()
            && live.waits_for_nothing()
            && (0..SHARDS).map(ShardId).all(|shard| {
                let end = live.end(shard);
                end > Lsn(0) && live.committed(shard) == end && backup.end(shard) == end
            })
    }

    fn finish(&mut self) -> Result<(), String> {
        let live = self.voters.live().expect("it has settled");
        let (live, backup) = (&self.nodes[live], &self.nodes[1 - live]);
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
