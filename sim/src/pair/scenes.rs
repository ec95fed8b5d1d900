//! What chance rarely brings about: a few things that go wrong in one order, at the right moments.
//!
//! Each scene is sound as it stands, and breaks a promise as soon as its rule is broken. Before it
//! the pair comes in sync and works; after it everything heals, and the usual is asked.

use std::time::{Duration, Instant};

use journal::ShardId;
use replica::Canary as Rule;
use replica::limits::{ACK_PATIENCE, WRITE_AGE_MAX};

use super::node::{Ailment, SEGMENT_BYTES};
use super::traffic::Traffic;
use super::world::World;
use super::{Broken, Canary, Report, SHARDS};
use crate::disk::{Crash, Fate};

/// Something that is played instead of chance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scene {
    /// The backup loses power with writes under way, and must go live.
    BackupLosesPower,
    /// The live loses first its backup, then the voters, when it is about to leave it out.
    CutOff,
    /// The backup was taken in, and the live does not hear of it.
    ExpandUnheard,
    /// The voters' answers take nearly as long as a lease; then the live is not heard any more.
    AnswersLate,
    /// The live's writes do not end.
    WriteHangs,
    /// A shard of the live stands still.
    ShardWedged,
    /// The live hands over under load, over a link that is slow just then.
    Switchover,
    /// ... and does not hear that it has.
    HandOverUnheard,
    /// The backup was left out, and the live dies.
    LeftOut,
    /// The live dies with something that was acknowledged at `sync`, and that nobody else has.
    TailLeft,
    /// The backup's disk is slow, and at the live's queues, which do not wait for it, messages come
    /// and go. Only brokers' logs are recycled: it is played with those.
    BackupLags,
    /// Queues come and go without a record, and the live dies. It is played with brokers' logs too.
    RepliesGo,
}

/// Each scene, by name, with the rules for which it is there.
pub const SCENES: [(&str, Scene, &[Canary]); 12] = {
    const fn of(rule: Rule) -> Canary {
        Canary::Replica(rule)
    }
    use Rule as R;
    use broker::canary::Canary as B;
    [
        ("backup-loses-power", Scene::BackupLosesPower, &[of(R::BackupAnswersBeforeFlush)]),
        ("cut-off", Scene::CutOff, &[of(R::ShrinkAtOnce)]),
        (
            "expand-unheard",
            Scene::ExpandUnheard,
            &[of(R::RequireAfterExpand), of(R::UnknownMeansFailed)],
        ),
        ("answers-late", Scene::AnswersLate, &[of(R::LeaseFromAnswer)]),
        ("write-hangs", Scene::WriteHangs, &[of(R::RenewUnwell)]),
        ("shard-wedged", Scene::ShardWedged, &[of(R::RenewUnwell)]),
        ("switchover", Scene::Switchover, &[of(R::HandOverUndrained)]),
        ("hand-over-unheard", Scene::HandOverUnheard, &[of(R::LeaveUnfenced)]),
        ("left-out", Scene::LeftOut, &[of(R::PromoteOutOfSync)]),
        ("tail-left", Scene::TailLeft, &[Canary::TailDropped]),
        (
            "backup-lags",
            Scene::BackupLags,
            &[Canary::Journal(journal::Canary::RecycledPastWatermark)],
        ),
        (
            "replies-go",
            Scene::RepliesGo,
            &[Canary::Broker(B::HeadToldEarly), Canary::Broker(B::HeadUntold)],
        ),
    ]
};

const LONG: Duration = Duration::from_secs(6);
/// What a switchover may take for its clients.
const DRAIN: Duration = Duration::from_secs(2);

/// What a scene is played with.
#[derive(Clone, Copy, Debug)]
pub struct Cast {
    /// The rule that is broken.
    pub canary: Option<Canary>,
    /// Whole brokers' shards with clients, not logs alone.
    pub is_served: bool,
}

/// Plays a scene with the chance of a seed.
///
/// # Errors
/// Which promise was broken, and when.
pub fn play(scene: Scene, seed: u64, cast: Cast, base: Instant) -> Result<Report, Broken> {
    let lease = match scene {
        // Longer than a question waits for its answer: the live goes on while it does not know.
        Scene::ExpandUnheard => Duration::from_secs(2),
        Scene::BackupLosesPower
        | Scene::CutOff
        | Scene::AnswersLate
        | Scene::WriteHangs
        | Scene::ShardWedged
        | Scene::Switchover
        | Scene::HandOverUnheard
        | Scene::LeftOut
        | Scene::TailLeft
        | Scene::BackupLags
        | Scene::RepliesGo => Duration::from_millis(500),
    };
    let traffic = if scene == Scene::BackupLags {
        Some(Traffic::of_live_alone(seed, base))
    } else if scene == Scene::RepliesGo {
        Some(Traffic::of_replies(seed, base))
    } else {
        cast.is_served.then(|| Traffic::new(seed, base))
    };
    let world = World::calm(seed, cast.canary, base, lease, traffic);
    world.report(|world| {
        world.until("the pair is in sync at first", LONG, World::is_in_sync)?;
        world.go_on(Duration::from_millis(200))?;
        let live = world.live().ok_or("nobody serves at first")?;
        match scene {
            Scene::BackupLosesPower => world.backup_loses_power(live)?,
            Scene::CutOff => world.cut_off(live)?,
            Scene::ExpandUnheard => world.expand_unheard(live)?,
            Scene::AnswersLate => world.answers_late(live)?,
            Scene::WriteHangs => world.write_hangs(live)?,
            Scene::ShardWedged => world.shard_wedged(live)?,
            Scene::Switchover => world.switchover(live)?,
            Scene::HandOverUnheard => world.hand_over_unheard(live)?,
            Scene::LeftOut => world.left_out(live)?,
            Scene::TailLeft => world.tail_left(live)?,
            Scene::BackupLags => world.backup_lags(live)?,
            Scene::RepliesGo => world.replies_go(live)?,
        }
        world.come_to_rest()
    })
}

impl World {
    fn taken_over(&mut self, live: usize, most: Duration) -> Result<(), String> {
        let other = 1 - live;
        self.until("the other one serves", most, |world| world.live() == Some(other))?;
        // What it goes live with is looked at in the moment after.
        self.go_on(Duration::from_millis(5))
    }

    fn backup_loses_power(&mut self, live: usize) -> Result<(), String> {
        self.nodes[1 - live].slow_disk(Duration::from_millis(60));
        self.go_on(Duration::from_millis(55))?;
        let crash = Crash::PowerCut(Fate::Lost);
        self.crash(1 - live, crash, Duration::from_millis(20))?;
        self.crash(live, Crash::Kill(Fate::Seeded), LONG)?;
        self.nodes[1 - live].slow_disk(Duration::from_micros(200));
        self.taken_over(live, LONG)
    }

    fn cut_off(&mut self, live: usize) -> Result<(), String> {
        self.wires.cut(self.now + LONG, 3);
        // Whatever is still asked of the voters then counts as perhaps done (R6).
        // Of what is on its way when the wires are cut some has waited already.
        self.go_on(ACK_PATIENCE - Duration::from_millis(40))?;
        self.voters.cut(live, self.now + LONG, 3);
        self.taken_over(live, LONG)
    }

    fn expand_unheard(&mut self, live: usize) -> Result<(), String> {
        self.crash(1 - live, Crash::Kill(Fate::Seeded), Duration::from_millis(1500))?;
        self.until("the backup is left out", LONG, |world| world.in_sync() == 1)?;
        let expands = |world: &Self| world.nodes[live].last_swap().in_sync == 2;
        self.until("the backup is to be taken in", LONG, expands)?;
        self.voters.cut(live, self.now + LONG, 2);
        self.wires.cut(self.now + LONG, 3);
        self.taken_over(live, LONG)
    }

    fn answers_late(&mut self, live: usize) -> Result<(), String> {
        self.voters.slow_answers(live, Duration::from_millis(420));
        self.go_on(Duration::from_secs(1))?;
        let before = self.nodes[live].last_swap().number;
        let renews = |world: &Self| world.nodes[live].last_swap().number > before;
        self.until("a renewal is sent", LONG, renews)?;
        self.go_on(Duration::from_millis(50))?;
        self.voters.cut(live, self.now + LONG, 1);
        self.taken_over(live, LONG)
    }

    fn write_hangs(&mut self, live: usize) -> Result<(), String> {
        self.nodes[live].ail(Ailment::Hangs, 1, self.now + LONG);
        self.taken_over(live, WRITE_AGE_MAX + Duration::from_secs(1))
    }

    fn shard_wedged(&mut self, live: usize) -> Result<(), String> {
        self.nodes[live].wedge(1, self.now + LONG);
        self.taken_over(live, Duration::from_secs(2))
    }

    fn switchover(&mut self, live: usize) -> Result<(), String> {
        let before = self.counts.exported;
        self.wires.cut(self.now + Duration::from_millis(300), 1 << (1 - live));
        self.go_on(Duration::from_millis(20))?;
        if !self.nodes[live].switch_over(self.now, DRAIN) {
            return Err("a switchover is refused".into());
        }
        self.taken_over(live, LONG)?;
        self.is_working = false;
        self.until("both hold the same again", LONG, Self::is_settled)?;
        match self.counts.exported - before {
            0 => Ok(()),
            left => Err(format!("a switchover left {left} records behind")),
        }
    }

    fn hand_over_unheard(&mut self, live: usize) -> Result<(), String> {
        if !self.nodes[live].switch_over(self.now, DRAIN) {
            return Err("a switchover is refused".into());
        }
        let gives = |world: &Self| world.nodes[live].last_swap().gives_away;
        self.until("the role is given away", LONG, gives)?;
        self.voters.cut(live, self.now + LONG, 2);
        self.taken_over(live, LONG)
    }

    fn left_out(&mut self, live: usize) -> Result<(), String> {
        self.wires.cut(self.now + LONG, 3);
        self.until("the backup is left out", LONG, |world| world.in_sync() == 1)?;
        self.go_on(Duration::from_millis(50))?;
        self.crash(live, Crash::Kill(Fate::Seeded), Duration::from_secs(2))?;
        self.go_on(Duration::from_secs(2))
    }

    fn backup_lags(&mut self, live: usize) -> Result<(), String> {
        self.nodes[1 - live].slow_disk(Duration::from_millis(25));
        self.go_on(Duration::from_secs(5))?;
        self.nodes[1 - live].slow_disk(Duration::from_micros(200));
        Ok(())
    }

    fn replies_go(&mut self, live: usize) -> Result<(), String> {
        let moves = |world: &Self| {
            let head = |shard| world.nodes[live].log_head(shard);
            (0..SHARDS).all(|shard| head(ShardId(shard)).0 >= 8 * SEGMENT_BYTES)
        };
        self.until("the live's logs are recycled", LONG * 5, moves)?;
        self.until_short(Duration::from_secs(1))?;
        self.crash(live, Crash::Kill(Fate::Seeded), LONG)?;
        self.taken_over(live, LONG)
    }

    fn tail_left(&mut self, live: usize) -> Result<(), String> {
        let before = self.counts.exported;
        self.wires.cut(self.now + Duration::from_millis(300), 3);
        self.go_on(Duration::from_millis(150))?;
        self.crash(live, Crash::Kill(Fate::Seeded), Duration::from_millis(1500))?;
        self.taken_over(live, LONG)?;
        self.until("the other one follows again", LONG, Self::is_in_sync)?;
        let is_kept = self.counts.exported > before || self.canary() == Some(Canary::TailDropped);
        is_kept.then_some(()).ok_or_else(|| "nothing was left behind".into())
    }
}
