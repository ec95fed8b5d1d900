//! The moments of a run: what is due happens, then whatever follows from it, then time goes on.
//!
//! ```text
//!   next due ─▶ pump: nodes, wires, voters, until nothing follows any more ─▶ I1
//!               tick, each millisecond: faults or none, starts, work, the ledger's checks
//! ```
//! Invariant: time only moves forward; nothing is drawn but from the seed.

use std::time::{Duration, Instant};

use journal::{Lsn, ShardId};
use replica::card::Standing;

use super::faults::Habits;
use super::ledger::Ledger;
use super::node::{Node, SEGMENT_BYTES};
use super::traffic::{Around, Traffic};
use super::voters::Voters;
use super::wires::Wires;
use super::{Broken, Canary, Counts, Report, SHARDS};
use crate::check::QueueView;
use crate::disk::{Crash, Fate};
use crate::letter::LetterId;
use crate::rng::Rng;

const FAULTS_LAST: Duration = Duration::from_millis(12_000);
const WORK_LASTS: Duration = Duration::from_millis(12_300);
/// After the faults.
const PATIENCE: Duration = Duration::from_secs(20);
const TICK: Duration = Duration::from_millis(1);
/// Segments by which a backup's log may begin before its live's, at rest.
const HEADS_APART: u64 = 2;

#[derive(Debug)]
pub(super) struct World {
    seed: u64,
    canary: Option<Canary>,
    pub(super) now: Instant,
    pub(super) base: Instant,
    tick_at: Instant,
    pub(super) rng: Rng,
    pub(super) habits: Habits,
    pub(super) nodes: [Node; 2],
    pub(super) wires: Wires,
    pub(super) voters: Voters,
    pub(super) ledger: Ledger,
    pub(super) counts: Counts,
    /// Who served last.
    last_live: Option<usize>,
    /// When the voters, too, are lost to a node whose link is cut already.
    pub(super) isolated_at: Option<(Instant, usize)>,
    /// Whether things go wrong, by chance.
    pub(super) is_rough: bool,
    pub(super) is_working: bool,
    trace: u64,
    /// Whole brokers' shards, and their clients.
    traffic: Option<Traffic>,
}

impl World {
    /// The world of a seed: with logs alone, or with whole brokers' shards.
    pub(super) fn new(seed: u64, canary: Option<Canary>, base: Instant, is_served: bool) -> Self {
        let mut rng = Rng::stream(seed, "pair", 0);
        let habits = Habits::draw(&mut rng);
        let lease = Duration::from_millis(*rng.pick(&[500, 500, 800]));
        let voters = Voters::new(seed, base);
        let traffic = is_served.then(|| Traffic::new(seed, base));
        let mut world = Self::with(seed, canary, base, lease, voters, traffic);
        let half_open = *Rng::stream(seed, "half open", 0).pick(&[0, 300, 700]);
        world.wires.set_half_open(half_open);
        (world.rng, world.habits, world.is_rough) = (rng, habits, true);
        world
    }

    /// A world in which nothing goes wrong but on purpose.
    pub(super) fn calm(
        seed: u64,
        canary: Option<Canary>,
        base: Instant,
        lease: Duration,
        traffic: Option<Traffic>,
    ) -> Self {
        Self::with(seed, canary, base, lease, Voters::calm(seed, base), traffic)
    }

    fn with(
        seed: u64,
        canary: Option<Canary>,
        base: Instant,
        lease: Duration,
        voters: Voters,
        traffic: Option<Traffic>,
    ) -> Self {
        let mut template = traffic.as_ref().map(Traffic::template);
        if let Some(template) = &mut template {
            template.canaries.broken = canary.and_then(Canary::broker);
        }
        let node = |index| Node::new(seed, index, canary, base, lease, template.clone());
        Self {
            seed,
            canary,
            now: base,
            base,
            tick_at: base,
            rng: Rng::stream(seed, "pair", 0),
            habits: Habits::none(),
            nodes: [0, 1].map(node),
            wires: Wires::new(Rng::stream(seed, "wires", 0), base),
            voters,
            ledger: Ledger::default(),
            counts: Counts::default(),
            last_live: None,
            isolated_at: None,
            is_rough: false,
            is_working: true,
            trace: 0,
            traffic,
        }
    }

    /// The story of this letter is told if the run fails.
    pub(super) fn follow(&mut self, letter: Option<LetterId>) {
        if let Some(traffic) = &mut self.traffic {
            traffic.follow(letter);
        }
    }

    /// Carries it out and says how it was.
    pub(super) fn report(
        mut self,
        carry_out: impl FnOnce(&mut Self) -> Result<(), String>,
    ) -> Result<Report, Broken> {
        let carried_out = carry_out(&mut self);
        let took = self.now - self.base;
        match carried_out {
            Ok(()) => {
                self.nodes.iter().for_each(|node| self.counts.disk.merge(&node.hits()));
                if let Some(traffic) = &self.traffic {
                    self.counts.clients.merge(&traffic.hits);
                    (self.counts.sent, self.counts.deliveries) = traffic.figures();
                }
                self.counts.half_open = self.wires.half_open();
                self.counts.voters = self.voters.ensemble().counts();
                let trace = self.trace ^ self.voters.ensemble().trace();
                Ok(Report { counts: self.counts, trace, took })
            }
            Err(what) => {
                let story = self.traffic.map_or_else(Vec::new, Traffic::into_story);
                Err(Broken { seed: self.seed, at_ms: took.as_millis(), what, story })
            }
        }
    }

    /// Faults, then none, then everything at rest.
    pub(super) fn live_through(&mut self) -> Result<(), String> {
        self.go_on(FAULTS_LAST)?;
        self.is_rough = false;
        self.go_on(WORK_LASTS - FAULTS_LAST)?;
        self.come_to_rest()
    }

    /// Everything heals, and comes in sync.
    pub(super) fn come_to_rest(&mut self) -> Result<(), String> {
        (self.is_rough, self.is_working) = (false, false);
        if let Some(traffic) = &mut self.traffic {
            traffic.leave();
        }
        let rests = |world: &Self| world.is_settled() || world.is_stranded();
        self.until("the pair comes in sync", PATIENCE, rests)?;
        self.counts.stranded += u64::from(!self.is_settled());
        self.drain()?;
        self.until_short(PATIENCE)?;
        self.finish()
    }

    /// A backup's logs, where they are recycled, begin where the live's do, about.
    pub(super) fn until_short(&mut self, patience: Duration) -> Result<(), String> {
        let is_short = |world: &Self| {
            let Some(live) = world.live() else { return false };
            (0..SHARDS).map(ShardId).all(|shard| {
                let head = |node: usize| world.nodes[node].log_head(shard).0 / SEGMENT_BYTES;
                head(1 - live) + HEADS_APART >= head(live)
            })
        };
        let rests = |world: &Self| is_short(world) || world.is_stranded();
        self.until("the backup's logs are as short as the live's", patience, rests)
    }

    /// What the queues hold is there, and is taken: every promise to the clients is kept then.
    fn drain(&mut self) -> Result<(), String> {
        let is_quiet = |world: &Self| world.traffic.as_ref().is_none_or(Traffic::is_quiet);
        self.until("the clients leave", PATIENCE, is_quiet)?;
        let end = self.now + PATIENCE;
        let rests = |queue: &QueueView| queue.uncommitted == 0 && queue.away == 0;
        while !self.queues()?.is_some_and(|queues| queues.iter().all(rests)) {
            self.later("nothing is under way", end)?;
        }
        let Some(traffic) = &mut self.traffic else { return Ok(()) };
        traffic.drain();
        let empty = |queue: &QueueView| queue.messages == 0;
        loop {
            let is_idle = self.traffic.as_ref().is_some_and(Traffic::is_idle);
            if is_idle && self.queues()?.is_some_and(|queues| queues.iter().all(empty)) {
                break;
            }
            self.later("the queues are drained", end)?;
        }
        let Some(traffic) = &mut self.traffic else { return Ok(()) };
        traffic.leave();
        self.until("the last client leaves", PATIENCE, is_quiet)?;
        self.traffic.as_mut().map_or(Ok(()), Traffic::finish)
    }

    fn later(&mut self, what: &str, end: Instant) -> Result<(), String> {
        if self.now > end {
            let queues = self.queues()?;
            return Err(format!("not in time: {what}: {queues:?}: {}", self.describe()));
        }
        self.go_on(Duration::from_millis(5))
    }

    /// What the queues hold; no queue where there are no brokers.
    fn queues(&mut self) -> Result<Option<Vec<QueueView>>, String> {
        let live = self.live();
        let Some(traffic) = &mut self.traffic else { return Ok(Some(Vec::new())) };
        let Some(live) = live else { return Ok(None) };
        let (nodes, counts) = (&mut self.nodes, &mut self.counts);
        traffic.queues(&mut Around { now: self.now, nodes, counts, both: true }, live)
    }

    /// Goes on for so long.
    pub(super) fn go_on(&mut self, lasts: Duration) -> Result<(), String> {
        let end = self.now + lasts;
        while self.now < end {
            self.step()?;
        }
        Ok(())
    }

    /// Goes on until this is so.
    pub(super) fn until(
        &mut self,
        what: &str,
        most: Duration,
        is_so: impl Fn(&Self) -> bool,
    ) -> Result<(), String> {
        let end = self.now + most;
        while !is_so(self) {
            if self.now > end {
                return Err(format!("not within {most:?}: {what}: {}", self.describe()));
            }
            self.step()?;
        }
        Ok(())
    }

    /// One moment.
    fn step(&mut self) -> Result<(), String> {
        self.pump()?;
        self.now = self.next_due().map_or(self.tick_at, |due| due.min(self.tick_at));
        let at = (self.now - self.base).as_nanos() as u64;
        self.trace = (self.trace.rotate_left(9) ^ at).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        if self.now >= self.tick_at {
            self.tick_at = self.now + TICK;
            self.tick()?;
        }
        Ok(())
    }

    fn next_due(&self) -> Option<Instant> {
        let nodes = self.nodes.iter().flat_map(|node| node.timeouts(self.now));
        let clients = self.traffic.as_ref().and_then(Traffic::poll_timeout);
        let others = self.wires.timeouts().chain(self.voters.poll_timeout()).chain(clients);
        // What is due already and has not been done waits for something else.
        nodes.chain(others).filter(|due| *due > self.now).min()
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
            for heard in self.voters.pump(self.now, &mut self.counts)? {
                progress = true;
                self.nodes.iter_mut().for_each(|node| node.handle_voters(&heard));
            }
            for node in &mut self.nodes {
                progress |= node.ask(self.now, &mut self.voters);
            }
            let both = self.in_sync() == 2;
            if let Some(traffic) = &mut self.traffic {
                let (nodes, counts) = (&mut self.nodes, &mut self.counts);
                progress |= traffic.pump(&mut Around { now: self.now, nodes, counts, both })?;
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
        if self.is_rough {
            self.break_something()?;
        } else if !self.is_working {
            self.wires.heal(self.now);
            self.voters.heal(self.now);
        }
        for index in [0, 1] {
            if self.nodes[index].must_end(self.now)? {
                self.counts.deaths += 1;
                let rest = Duration::from_millis(self.rng.between(1, 200));
                self.crash(index, Crash::Kill(Fate::Seeded), rest)?;
            }
        }
        for index in [0, 1] {
            if self.nodes[index].begins_anew(self.now) {
                self.counts.begun_anew += 1;
                let rest = Duration::from_millis(self.rng.between(1, 50));
                self.crash(index, Crash::Kill(Fate::Seeded), rest)?;
            }
        }
        let hurries = !self.is_rough && !self.is_working;
        for node in &mut self.nodes {
            node.recover_disk(self.now, hurries);
            node.start_if_due(self.now, hurries, &self.voters);
            node.recover(self.now, &mut self.ledger, &mut self.counts);
        }
        for (index, node) in self.nodes.iter_mut().enumerate() {
            if node.may_serve(self.now) {
                let before = self.last_live.replace(index);
                self.counts.takeovers += u64::from(before.is_some_and(|before| before != index));
                if self.is_working && self.rng.chance(self.habits.append_permille) {
                    node.work(self.now, &mut self.rng, &mut self.ledger);
                }
            }
        }
        self.check_new_live()
    }

    /// A process ends, and its connections with it.
    pub(super) fn crash(
        &mut self,
        index: usize,
        crash: Crash,
        rest: Duration,
    ) -> Result<(), String> {
        self.nodes[index].crash(self.now, crash, rest);
        self.wires.reset_all(self.now, &mut self.nodes, Some(index));
        self.traffic.as_mut().map_or(Ok(()), |traffic| traffic.crashed(self.now, index))
    }

    fn check_new_live(&mut self) -> Result<(), String> {
        for index in [0, 1] {
            if self.nodes[index].take_new_reign() && self.traffic.is_none() {
                let (node, boot) = (&self.nodes[index], self.nodes[index].boot());
                let view = |shard| node.view(shard).expect("a log alone");
                self.ledger.check_live(index, boot, view)?;
            }
        }
        Ok(())
    }

    /// The rule that is broken.
    pub(super) fn canary(&self) -> Option<Canary> {
        self.canary
    }

    /// Who serves.
    pub(super) fn live(&self) -> Option<usize> {
        self.nodes.iter().position(|node| node.may_serve(self.now))
    }

    pub(super) fn in_sync(&self) -> usize {
        self.voters.record().map_or(0, |record| record.in_sync.len())
    }

    /// Both are in sync, by everybody's word.
    pub(super) fn is_in_sync(&self) -> bool {
        let Some(live) = self.live() else { return false };
        self.in_sync() == 2
            && self.nodes[live].standing() == Some(Standing::Live)
            && self.nodes[1 - live].standing() == Some(Standing::Backup)
    }

    /// Both are in sync, and nothing is under way.
    pub(super) fn is_settled(&self) -> bool {
        let Some(live) = self.live().filter(|_| self.is_in_sync()) else { return false };
        let (live, backup) = (&self.nodes[live], &self.nodes[1 - live]);
        live.waits_for_nothing()
            && (0..SHARDS).map(ShardId).all(|shard| {
                let end = live.end(shard);
                end > Lsn(0) && live.committed(shard) == end && backup.end(shard) == end
            })
    }

    /// Who came back finds that the log no longer reaches back to where its own ends: it needs the
    /// whole log, which nobody gives it yet. Brokers' logs alone are recycled.
    fn is_stranded(&self) -> bool {
        let Some(live) = self.live().filter(|_| self.traffic.is_some()) else { return false };
        self.nodes[live].finds_too_far_behind() && self.nodes[live].waits_for_nothing()
    }

    fn finish(&self) -> Result<(), String> {
        if self.traffic.is_some() {
            return Ok(());
        }
        let live = self.live().expect("it has settled");
        let (live, backup) = (&self.nodes[live], &self.nodes[1 - live]);
        for shard in (0..SHARDS).map(ShardId) {
            let ends = |node: &Node| node.view(shard).expect("a log alone").ends.clone();
            if ends(live) != ends(backup) {
                return Err(format!("{shard:?}: the members' logs differ"));
            }
        }
        self.ledger.check_end(|shard| live.view(shard).expect("a log alone"))
    }

    fn describe(&self) -> String {
        format!("{}; {}; {}", self.voters, self.nodes[0], self.nodes[1])
    }
}
