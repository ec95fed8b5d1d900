//! A core's part in a pair: streams to the other member, the fence, and what its shards report.
//!
//! ```text
//!   control thread ── Duty, streams, frames ──▶ Input ──▶ shard      (the core's inbox)
//!                  ◀── FromCore ── reports, exports, an end ──┘
//!   other member   ◀══ Links ═════ frames
//! ```
//! Invariants: a shard that reigns is polled only while it may work and the gate is open, which is
//! looked at before each action: beyond the fence nothing more of it is handed to the ring or to a
//! stream. What was handed over before can't be recalled: the ring takes it at the end of the turn
//! or behind what a stream is sending, the kernel does it when it does. A shard that may not be
//! polled goes on hearing events, and is reported. A report goes out when more than its figures has
//! changed, and when somebody looks.
//!
//! Failure: what is for a stream that is over is dropped; the shard has heard of its end.

use std::collections::BTreeMap;
use std::sync::Arc;

use broker::shard::pair::PairAction;
use broker::{Shard, ShardConfig};
use journal::{Lsn, NodeSuperblock, Recovery, ShardId};
use replica::backup::Follows;
use replica::card::LogEnd;
use replica::catchup::{Piece, Tail};
use replica::member::{PeerReport, ShardReport};
use replica::wire::{Marks, Reason};
use tokio::sync::mpsc::UnboundedSender;

use super::directory::Files;
use super::links::Links;
use crate::fatal::Failure;
use crate::ha::Gate;

/// What a core has for the control thread.
#[derive(Debug)]
pub(crate) enum FromCore {
    /// A shard, as it is.
    Report(ShardId, Box<ShardReport>),
    /// A piece of what only this member has, to be made durable; then the shard is told.
    Export(ShardId, Tail, Piece),
    /// A shard may not reign any more: the process is to begin anew.
    GiveUp,
}

/// What the cores of a member share.
#[derive(Clone, Debug)]
pub(crate) struct PairLink {
    /// Who this is.
    pub(crate) follows: Follows,
    /// How fast all shards together are read back for a backup, bytes a second.
    pub(crate) catch_up_rate: u64,
    /// Until when it may serve.
    pub(crate) gate: Arc<Gate>,
    /// To the control thread.
    pub(crate) news: UnboundedSender<FromCore>,
}

/// A core's part.
pub(super) struct PairPort {
    link: PairLink,
    files: Files,
    node: NodeSuperblock,
    journal: journal::Config,
    /// To make a shard anew whose log was cut.
    configs: Vec<ShardConfig>,
    /// The streams to the other member.
    pub(super) links: Links,
    /// Somebody was told that a shard may not reign any more.
    gave_up: bool,
    /// Why the last stream of a shard was closed.
    refused: BTreeMap<ShardId, Reason>,
    /// What was said last of each shard, but for its figures.
    reported: Vec<Option<ShardReport>>,
}

impl PairPort {
    pub(super) fn new(
        link: PairLink,
        files: Files,
        node: NodeSuperblock,
        journal: journal::Config,
        configs: Vec<ShardConfig>,
    ) -> Self {
        let reported = vec![None; configs.len()];
        let (links, refused) = (Links::default(), BTreeMap::new());
        let gave_up = false;
        Self { link, files, node, journal, configs, links, gave_up, refused, reported }
    }

    /// A shard that begins by reading its log.
    pub(super) fn shard(&self, index: usize) -> Result<Shard, Failure> {
        let config = self.configs[index].clone();
        let slots = self.files.slots(config.shard)?;
        let recovery = Recovery::of_member(&self.node, config.shard, &slots, self.journal.clone())
            .with_checkpoints();
        let shards = u64::from(config.shards);
        let mut shard = Shard::member(config, recovery, self.link.follows.clone());
        shard.pace_catch_up(self.link.catch_up_rate / shards);
        Ok(shard)
    }

    /// Whether a shard may be polled.
    pub(super) fn may_poll(&self, shard: &Shard) -> bool {
        !shard.reigns() || (shard.may_work() && self.link.gate.is_open())
    }

    /// Does what a shard asks; whether that shard is to be made anew.
    pub(super) fn act(&mut self, shard: ShardId, action: PairAction) -> bool {
        match action {
            PairAction::Frame(stream, frame) => self.links.say(stream, &frame),
            PairAction::HangUp(stream, reason) => {
                // A member that is refused tries again and again.
                if self.refused.insert(shard, reason) != Some(reason) {
                    tracing::info!(shard = shard.0, "stream closed: {reason}");
                }
                self.links.hang_up(stream);
            }
            PairAction::Export(tail, piece) => self.tell(FromCore::Export(shard, tail, piece)),
            PairAction::Cut => return true,
        }
        false
    }

    /// Reports a shard, if it has changed or somebody looks.
    pub(super) fn report(&mut self, index: usize, shard: &Shard, is_asked: bool) {
        if shard.must_give_up() && !std::mem::replace(&mut self.gave_up, true) {
            self.tell(FromCore::GiveUp);
        }
        let Some(mut report) = shard.pair_report() else { return };
        let known = &mut self.reported[index];
        let coarse = without_figures(report);
        if *known == Some(coarse) && !is_asked {
            return;
        }
        *known = Some(coarse);
        let clock = self.link.gate.clock();
        report.writing_since = report.writing_since.map(|since| clock.of_core(since));
        self.tell(FromCore::Report(shard.id(), Box::new(report)));
    }

    fn tell(&self, news: FromCore) {
        // The control thread ends with the process.
        drop(self.link.news.send(news));
    }
}

/// A report without what moves with each batch.
fn without_figures(report: ShardReport) -> ShardReport {
    ShardReport {
        log: LogEnd { end: Lsn::ZERO, ..report.log },
        committed: Lsn::ZERO,
        watermark: None,
        peer: report.peer.map(|peer| PeerReport { marks: Marks::default(), lag_bytes: 0, ..peer }),
        writing_since: None,
        ..report
    }
}
