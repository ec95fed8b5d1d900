//! The process: its start, its shards, and what the host has to remember of them.
//!
//! ```text
//!   superblock there? ── no ──▶ format ──┐
//!        │ yes                           ▼
//!        └──▶ sync it: a killed process may have left it in the cache ──▶ recovery, a shard each
//! ```

use std::collections::VecDeque;
use std::time::Instant;

use broker::clock::WallClock;
use broker::queue::Queue;
use broker::{Action, Event, Shard, ShardConfig};
use journal::{
    DiskDone, DiskOp, FileId, Format, Geometry, Level, NodeSuperblock, OpId, QueueId, Recovery,
    Sequence, ShardId,
};

use super::{JOURNAL_UUID, LOG_ID, SEGMENT_BYTES};
use crate::disk::Disk;
use crate::plan::{Canary, Plan};
use crate::starts::{self, Starts};

/// A broker's process.
#[derive(Debug)]
pub(super) struct Node {
    stage: Stage,
    shards: Vec<Shard>,
    template: ShardConfig,
    journal: journal::Config,
    host: VecDeque<DiskOp>,
    /// Whose logs are read.
    recovered: Vec<bool>,
    ready: Vec<bool>,
    drained: Vec<bool>,
    polls: Vec<bool>,
    /// It starts with its checkpoints, where there are any.
    reads_checkpoints: bool,
    /// How its starts with checkpoints went, and without.
    pub(super) starts: Starts,
}

#[derive(Debug)]
enum Stage {
    Formatting(Box<Format>),
    Trusting(Box<NodeSuperblock>),
    Trusted(Box<NodeSuperblock>),
    Running,
}

impl Node {
    /// A process that begins.
    pub(super) fn new(
        plan: &Plan,
        level: Level,
        canary: Option<Canary>,
        clock: WallClock,
        disk: &Disk,
    ) -> Result<Self, String> {
        let superblock = NodeSuperblock::decode(&disk.contents(FileId::NodeSuperblock))
            .map_err(|error| format!("the node's superblock can't be used: {error:?}"))?;
        let mut host = VecDeque::new();
        let stage = match superblock {
            Some(node) => {
                host.push_back(DiskOp::Sync { id: OpId(0), file: FileId::NodeSuperblock });
                Stage::Trusting(Box::new(node))
            }
            None => {
                let geometry = Geometry { segment_bytes: SEGMENT_BYTES, shards: plan.shards };
                Stage::Formatting(Box::new(Format::new(LOG_ID, JOURNAL_UUID, geometry)))
            }
        };
        let mut journal = plan.journal.clone();
        let mut canaries = broker::canary::Canaries::default();
        match canary {
            Some(Canary::Journal(broken)) => journal.canary = Some(broken),
            Some(Canary::Broker(broken)) => canaries.broken = Some(broken),
            Some(Canary::RecycledBeforeCopy) => {
                journal.canary = Some(journal::Canary::HeadMovesEarly);
                canaries.broken = Some(broker::canary::Canary::CopyCountsEarly);
            }
            Some(Canary::AsyncWithoutSync) | None => {}
        }
        let template = ShardConfig {
            shard: ShardId(0),
            shards: plan.shards,
            segment_bytes: SEGMENT_BYTES,
            level,
            memory_bytes_max: plan.memory_bytes_max,
            amqp: crate::plan::amqp(),
            backup: plan.backup,
            segments_max: u64::from(plan.journal.segments_max),
            disk_bound: plan.journal.write_bound,
            clock,
            settings: std::sync::Arc::new(plan.settings.clone()),
            access: broker::access::Access::default(),
            canaries,
        };
        let count = usize::from(plan.shards);
        Ok(Self {
            stage,
            shards: Vec::new(),
            template,
            journal,
            host,
            recovered: vec![false; count],
            ready: vec![false; count],
            drained: vec![false; count],
            polls: vec![false; count],
            reads_checkpoints: plan.reads_checkpoints,
            starts: Starts::default(),
        })
    }

    // ---- The start -----------------------------------------------------------------------------

    /// The host's next disk operation.
    pub(super) fn poll_host(&mut self) -> Option<DiskOp> {
        if let Stage::Formatting(format) = &mut self.stage
            && let Some(op) = format.poll_disk()
        {
            return Some(op);
        }
        self.host.pop_front()
    }

    /// The answer to one.
    pub(super) fn host_done(&mut self, done: DiskDone) -> Result<(), String> {
        match &mut self.stage {
            Stage::Formatting(format) => {
                format.handle_disk(done);
                match format.poll_outcome() {
                    Some(Ok(node)) => self.stage = Stage::Trusted(Box::new(node)),
                    Some(Err(error)) => return Err(format!("the format failed: {error:?}")),
                    None => {}
                }
            }
            Stage::Trusting(node) => self.stage = Stage::Trusted(node.clone()),
            Stage::Trusted(_) | Stage::Running => {}
        }
        Ok(())
    }

    /// Begins recovery once the node's superblock can be relied on; whether it did just now.
    pub(super) fn begin_if_possible(&mut self, disk: &Disk) -> Result<bool, String> {
        let Stage::Trusted(node) = &self.stage else { return Ok(false) };
        let ground = starts::Ground {
            disk,
            segment_bytes: SEGMENT_BYTES,
            begin: |shard| Recovery::new(node, shard, &disk.segments(shard), self.journal.clone()),
        };
        self.starts = ground.compare((0..self.template.shards).map(ShardId))?;
        for shard in (0..self.template.shards).map(ShardId) {
            let slots = disk.segments(shard);
            let mut recovery = Recovery::new(node, shard, &slots, self.journal.clone());
            if self.reads_checkpoints {
                recovery = recovery.with_checkpoints();
            }
            let config = ShardConfig { shard, ..self.template.clone() };
            self.shards.push(Shard::new(config, recovery));
        }
        self.stage = Stage::Running;
        Ok(true)
    }

    // ---- The shards ----------------------------------------------------------------------------

    fn shard(&mut self, shard: ShardId) -> Option<&mut Shard> {
        self.shards.get_mut(usize::from(shard.0))
    }

    /// Something happens to a shard.
    pub(super) fn handle(&mut self, shard: ShardId, now: Instant, event: Event<'_>) {
        if let Some(shard) = self.shard(shard) {
            shard.handle(now, event);
        }
    }

    /// The next thing that a shard wants done.
    pub(super) fn poll(&mut self, shard: ShardId, now: Instant) -> Option<Action> {
        self.polls[usize::from(shard.0)] = false;
        self.shard(shard)?.poll(now)
    }

    /// Whether a poll is to be arranged: none is on its way.
    pub(super) fn wants_poll(&mut self, shard: ShardId) -> bool {
        !std::mem::replace(&mut self.polls[usize::from(shard.0)], true)
    }

    /// The earliest deadline of a shard.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.shards.iter().filter_map(Shard::poll_timeout).min()
    }

    /// A shard whose deadline has passed.
    pub(super) fn timer_due(&self, now: Instant) -> Option<ShardId> {
        let due = |shard: &&Shard| shard.poll_timeout().is_some_and(|at| at <= now);
        self.shards.iter().find(due).map(Shard::id)
    }

    /// A shard's log is read; whether that is news.
    pub(super) fn set_recovered(&mut self, shard: ShardId) -> bool {
        !std::mem::replace(&mut self.recovered[usize::from(shard.0)], true)
    }

    /// A shard serves.
    pub(super) fn set_ready(&mut self, shard: ShardId) {
        self.ready[usize::from(shard.0)] = true;
    }

    /// Whether all serve.
    pub(super) fn is_ready(&self) -> bool {
        self.ready.iter().all(|ready| *ready)
    }

    /// A shard has answered everything; whether all have.
    pub(super) fn set_drained(&mut self, shard: ShardId) -> bool {
        self.drained[usize::from(shard.0)] = true;
        self.drained.iter().all(|drained| *drained)
    }

    /// Where a queue of this name lives, which it is, and the next sequence that it gives.
    pub(super) fn find(&self, name: &str) -> Option<(ShardId, QueueId, Sequence)> {
        self.shards.iter().find_map(|shard| {
            let record = shard.state().catalogue.named(name)?;
            let queue = shard.state().queue(record.id)?;
            Some((shard.id(), record.id, queue.next_sequence()))
        })
    }

    /// How many duplicate ids a shard has forgotten before their time.
    pub(super) fn forgotten(&self, shard: ShardId) -> u64 {
        let shard = self.shards.get(usize::from(shard.0));
        shard.map_or(0, |shard| shard.state().duplicates.forgotten_early())
    }

    /// A queue of this shard that is deeper than it may be, of these, and how deep.
    pub(super) fn too_deep<'a>(
        &self,
        shard: ShardId,
        bounded: &'a [(String, u64)],
    ) -> Option<(&'a str, u64)> {
        let state = self.shards.get(usize::from(shard.0))?.state();
        bounded.iter().find_map(|(name, messages_max)| {
            let depth = state.queue(state.catalogue.named(name)?.id)?.live();
            (depth > *messages_max).then_some((name.as_str(), depth))
        })
    }

    /// Whether a shard could not move a message.
    pub(super) fn is_stuck(&self, shard: ShardId) -> bool {
        let shard = self.shards.get(usize::from(shard.0));
        shard.is_some_and(|shard| shard.move_failures() > 0)
    }

    /// Of each queue of a shard the sequence below which it remembers no ids.
    pub(super) fn forgotten_below(&self, shard: ShardId) -> Vec<(QueueId, Sequence)> {
        let Some(shard) = self.shards.get(usize::from(shard.0)) else { return Vec::new() };
        let state = shard.state();
        let below = |queue: &Queue| {
            let oldest = state.duplicates.oldest(queue.id());
            (queue.id(), oldest.unwrap_or(queue.next_sequence()))
        };
        state.queues().map(below).collect()
    }

    /// Whether a large window goes back to a queue of this shard.
    pub(super) fn gives_back(&self, shard: ShardId) -> bool {
        let shard = self.shards.get(usize::from(shard.0));
        shard.is_some_and(|shard| shard.state().queues().any(Queue::is_returning))
    }

    /// What each shard has dropped from memory, and read back, since it began.
    pub(super) fn paged(&self) -> impl Iterator<Item = broker::shard::Paged> + '_ {
        self.shards.iter().map(Shard::paged)
    }

    /// Links that a shard knows.
    pub(super) fn links(&self, shard: ShardId) -> usize {
        self.shards.get(usize::from(shard.0)).map_or(0, Shard::links)
    }
}
