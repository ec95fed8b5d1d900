//! What a run is like, drawn from its seed: every run another mix, so that the mixes are many.
//!
//! Seeds differ in which faults there are at all, not only in when they strike: a run without
//! crashes fills a disk, one without consumers pins the log, one with four shards crosses them.

use std::time::Duration;

use broker::settings::{FullPolicy, Said, Settings};
use journal::Level;

use crate::client::Habits;
use crate::disk::{Crash, Profile};
use crate::letter::{self, LetterId};
use crate::rng::Rng;
use crate::wire::Hello;

/// A rule, broken on purpose: the checkers must notice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Canary {
    /// One of the journal's.
    Journal(journal::Canary),
    /// One of the broker's.
    Broker(broker::canary::Canary),
    /// The host writes batches that nobody waits for without data sync.
    AsyncWithoutSync,
    /// The head goes when the copies of what lives in it are appended: both guards are down, the
    /// broker's and the journal's.
    RecycledBeforeCopy,
}

impl Canary {
    /// All of them, by name.
    pub const ALL: [(&'static str, Self); 40] = [
        ("acknowledged-before-durable", Self::Journal(journal::Canary::AckBeforeDurable)),
        ("prefix-not-contiguous", Self::Journal(journal::Canary::PrefixNotContiguous)),
        ("chain-unchecked", Self::Journal(journal::Canary::ChainUnchecked)),
        ("stale-batch-accepted", Self::Journal(journal::Canary::StaleBatchAccepted)),
        ("durable-field-beyond-own", Self::Journal(journal::Canary::DurableFieldBeyondOwn)),
        ("settle-dropped-at-recovery", Self::Journal(journal::Canary::SettleDroppedAtRecovery)),
        ("order-by-lsn", Self::Broker(broker::canary::Canary::OrderByLsn)),
        ("async-without-sync", Self::AsyncWithoutSync),
        (
            "settlement-recycled-early",
            Self::Broker(broker::canary::Canary::SettlementRecycledEarly),
        ),
        ("sequence-reused", Self::Broker(broker::canary::Canary::SequenceReused)),
        ("never-expires", Self::Broker(broker::canary::Canary::NeverExpires)),
        ("expires-early", Self::Broker(broker::canary::Canary::ExpiresEarly)),
        ("delivered-early", Self::Broker(broker::canary::Canary::DeliveredEarly)),
        ("schedule-forgotten", Self::Broker(broker::canary::Canary::ScheduleForgotten)),
        ("expired-dropped", Self::Broker(broker::canary::Canary::ExpiredDropped)),
        ("annotations-forgotten", Self::Broker(broker::canary::Canary::AnnotationsForgotten)),
        ("priority-ignored", Self::Broker(broker::canary::Canary::PriorityIgnored)),
        ("settled-before-moved", Self::Broker(broker::canary::Canary::SettledBeforeMoved)),
        ("copy-shown-early", Self::Broker(broker::canary::Canary::CopyShownEarly)),
        ("double-kept", Self::Broker(broker::canary::Canary::DoubleKept)),
        ("attempts-forgotten", Self::Broker(broker::canary::Canary::AttemptsForgotten)),
        ("origin-dropped", Self::Broker(broker::canary::Canary::OriginDropped)),
        ("duplicates-forgotten", Self::Broker(broker::canary::Canary::DuplicatesForgotten)),
        ("duplicates-not-carried", Self::Broker(broker::canary::Canary::DuplicatesNotCarried)),
        ("duplicate-answered-early", Self::Broker(broker::canary::Canary::DuplicateAnsweredEarly)),
        ("head-moves-early", Self::Journal(journal::Canary::HeadMovesEarly)),
        ("recycled-past-watermark", Self::Journal(journal::Canary::RecycledPastWatermark)),
        ("recycled-before-copy", Self::RecycledBeforeCopy),
        ("checkpoint-past-watermark", Self::Journal(journal::Canary::CheckpointPastWatermark)),
        ("copied-after-settlement", Self::Broker(broker::canary::Canary::CopiedAfterSettlement)),
        ("fragment-chain-cut", Self::Broker(broker::canary::Canary::FragmentChainCut)),
        ("part-left-out", Self::Broker(broker::canary::Canary::PartLeftOut)),
        ("half-shown", Self::Broker(broker::canary::Canary::HalfShown)),
        ("half-recycled", Self::Broker(broker::canary::Canary::HalfRecycled)),
        ("read-back-unchecked", Self::Broker(broker::canary::Canary::ReadBackUnchecked)),
        ("dropped-before-durable", Self::Broker(broker::canary::Canary::DroppedBeforeDurable)),
        ("purge-takes-newer", Self::Broker(broker::canary::Canary::PurgeTakesNewer)),
        ("purge-answered-early", Self::Broker(broker::canary::Canary::PurgeAnsweredEarly)),
        ("window-forgotten", Self::Broker(broker::canary::Canary::WindowForgotten)),
        ("message-before-creation", Self::Broker(broker::canary::Canary::MessageBeforeCreation)),
    ];
}

/// What the caller decides.
#[derive(Clone, Debug)]
pub struct Options {
    /// The seed.
    pub seed: u64,
    /// The work goes on until so many events have happened.
    pub events_min: u64,
    /// A rule to break.
    pub canary: Option<Canary>,
    /// One crash, at this moment of the disk, instead of those that the seed draws.
    pub crash: Option<(u64, Crash)>,
    /// A letter whose story is told if the run fails.
    pub follow: Option<LetterId>,
}

/// What the seed decides.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Shards of the node.
    pub shards: u16,
    /// Levels that new queues get; each start picks one.
    pub levels: Vec<Level>,
    /// There is a second member.
    pub backup: bool,
    /// The journal's knobs.
    pub journal: journal::Config,
    /// The disk.
    pub disk: Profile,
    /// Bound of a shard's memory, bytes.
    pub memory_bytes_max: u64,
    /// Moments of the disk between two ends of the process, about; 0: it never ends.
    pub crash_every: u64,
    /// Of a thousand ends, so many are asked for in order.
    pub clean_stops: u32,
    /// Of a thousand ends, so many are power cuts.
    pub power_cuts: u32,
    /// Of a thousand starts, so many are crashed at once when they are ready.
    pub crash_at_ready: u32,
    /// Of a thousand starts, so many find a block that can't be read.
    pub spoilt: u32,
    /// The longest time that bytes and mail take.
    pub delay_max: Duration,
    /// Time between two ticks of a client, at most.
    pub tick_max: Duration,
    /// One for each client.
    pub clients: Vec<Habits>,
    /// Names of the queues.
    pub queues: Vec<String>,
    /// What holds for their addresses.
    pub settings: Settings,
    /// Failed deliveries after which a message goes to the dead letters.
    pub attempts_max: u32,
    /// Of a thousand ticks of a client, so many bring a purge.
    pub purges: u32,
    /// A start begins with a checkpoint, where there is one. It finds messages on the disk; one
    /// that reads the whole log has them in memory, and delivers more of them at once.
    pub reads_checkpoints: bool,
    /// The first queue drops what it has no room for.
    pub drops: bool,
    /// The last queue has no consumers while there is work, and few letters: each of them lags.
    pub lags: bool,
}

impl Options {
    /// A seed, without a canary.
    pub fn new(seed: u64, events_min: u64) -> Self {
        Self { seed, events_min, canary: None, crash: None, follow: None }
    }
}

impl Plan {
    /// The plan of a seed, for a broker alone: in some runs windows get large.
    pub fn draw_alone(seed: u64) -> Self {
        let (mut plan, mut rng) = Self::draw_with(seed);
        if rng.chance(80) {
            plan.grow_windows(&mut rng);
        }
        plan
    }

    /// The plan of a seed.
    pub fn draw(seed: u64) -> Self {
        Self::draw_with(seed).0
    }

    fn draw_with(seed: u64) -> (Self, Rng) {
        let mut rng = Rng::stream(seed, "plan", 0);
        let queues: Vec<String> =
            (0..rng.between(2, 6)).map(|queue| letter::queue_name(queue as usize)).collect();
        let starved = rng.chance(250);
        let clients = (0..rng.between(3, 6)).map(|_| habits(&mut rng, &queues, starved)).collect();
        let backup = rng.chance(300);
        let levels = if backup {
            vec![*rng.pick(&[Level::Sync, Level::Replicated, Level::ReplicatedSync])]
        } else {
            match rng.below(4) {
                0 => vec![Level::Async],
                1 => vec![Level::Async, Level::Sync],
                _ => vec![Level::Sync],
            }
        };
        let (tight, roomy) = (rng.chance(300), rng.chance(400));
        let journal = journal::Config {
            writes_in_flight_max: rng.between(1, 8) as usize,
            segments_max: match (roomy, tight) {
                (true, _) => ROOMY,
                (false, true) => rng.between(5, 10) as u32,
                (false, false) => rng.between(12, 60) as u32,
            },
            write_bound: Duration::from_millis(rng.between(300, 1500)),
            ..journal::Config::default()
        };
        // Beyond this messages are on the disk only.
        let memory_bytes_max = if rng.chance(500) { rng.between(200_000, 500_000) } else { AMPLE };
        let delay_max = Duration::from_micros(rng.between(20, 2000));
        let tick_max = Duration::from_micros(rng.between(200, 4000));
        let attempts_max = *rng.pick(&[1, 2, 3, 10]);
        let mut plan = Self {
            shards: rng.between(2, 4) as u16,
            levels,
            backup,
            journal,
            disk: disk(&mut rng),
            memory_bytes_max,
            crash_every: if rng.chance(150) { 0 } else { rng.between(40, 900) },
            clean_stops: if rng.chance(300) { 300 } else { 0 },
            power_cuts: *rng.pick(&[0, 500, 1000]),
            crash_at_ready: *rng.pick(&[0, 300, 600]),
            spoilt: if rng.chance(150) { 200 } else { 0 },
            delay_max,
            tick_max,
            clients,
            queues,
            settings: settings(&mut rng, attempts_max),
            attempts_max,
            lags: true,
            drops: false,
            purges: 0,
            reads_checkpoints: false,
        };
        if rng.chance(700) {
            plan.clients.iter_mut().for_each(|client| client.mortal = 250);
        }
        let repeats = *rng.pick(&[0, 100, 300]);
        let identified = *rng.pick(&[0, 300, 800]);
        for client in &mut plan.clients {
            (client.identified, client.repeats) = (identified, repeats);
        }
        plan.disk.read_failed_one_in = if rng.chance(100) { 600 } else { 0 };
        plan.lags = rng.chance(800);
        plan.clients.iter_mut().for_each(|client| client.lags = plan.lags);
        plan.bound_first_queue(&mut rng);
        let delays = *rng.pick(&[0, 50, 300]);
        plan.clients.iter_mut().for_each(|client| client.delays = delays);
        plan.purges = *rng.pick(&[0, 0, 2, 8]);
        let (slow, gives_up) = *rng.pick(&[(0, 0), (500, 10), (900, 100)]);
        for client in &mut plan.clients {
            (client.slow, client.gives_up) = (slow, gives_up);
        }
        if !plan.is_tight() && rng.chance(700) {
            plan.clients[0].hoard();
        }
        plan.reads_checkpoints = rng.chance(500);
        (plan, rng)
    }

    /// A consumer comes to hold very much: with room, few to share with, and long lives.
    fn grow_windows(&mut self, rng: &mut Rng) {
        self.journal.segments_max = ROOMY;
        self.disk.bytes_max = u64::MAX;
        self.memory_bytes_max = AMPLE;
        self.crash_every = rng.between(400, 900);
        self.clients.truncate(3);
        self.clients[0].hoard();
        (self.clients[0].links, self.clients[0].produces) = (6, 450);
    }

    /// In some runs the first queue may not get deep.
    fn bound_first_queue(&mut self, rng: &mut Rng) {
        if !rng.chance(400) {
            return;
        }
        let policy = *rng.pick(&[FullPolicy::Refuse, FullPolicy::Block, FullPolicy::Drop]);
        let said = Said {
            messages_max: Some(rng.between(3, 40)),
            full_policy: Some(policy),
            ..Said::default()
        };
        self.settings.add(&letter::queue_name(0), said).expect("a pattern");
        self.drops = policy == FullPolicy::Drop;
    }

    /// Whether log or memory may get full: then what dies may have to stay, what has expired waits
    /// for a purge where nothing else makes room, and ids are forgotten before their time.
    pub fn is_tight(&self) -> bool {
        self.journal.segments_max < ROOMY
            || self.disk.bytes_max != u64::MAX
            || self.memory_bytes_max < AMPLE
    }
}

/// Segments that no run fills.
const ROOMY: u32 = 2000;
/// Duplicate ids of an address, which no run has.
const DUPLICATE_IDS: u32 = 1_000_000;
/// Bytes of memory that no run fills.
const AMPLE: u64 = 16_000_000;

fn settings(rng: &mut Rng, attempts_max: u32) -> Settings {
    let paused = rng.chance(300);
    let said = Said {
        delivery_attempts_max: Some(attempts_max),
        redelivery_delay: paused.then(|| Duration::from_millis(rng.between(1, 20))),
        redelivery_multiplier_percent: Some(150),
        redelivery_delay_max: Some(Duration::from_millis(60)),
        // A letter is sent again at any time: only memory, or the log, may make room for others.
        duplicate_ids: Some(DUPLICATE_IDS),
        ..Said::default()
    };
    let mut settings = Settings::default();
    settings.add("#", said).expect("a pattern");
    settings
}

fn disk(rng: &mut Rng) -> Profile {
    let mut rare = |permille: u32, times: u64| if rng.chance(permille) { times } else { 0 };
    let slow_one_in = rare(500, 25);
    let write_hung_one_in = rare(150, 400);
    let write_failed_one_in = rare(150, 400);
    let write_short_one_in = rare(100, 500);
    let delay_max = Duration::from_micros(rng.between(60, 3000));
    let bytes_max = if rng.chance(200) { rng.between(1_200_000, 3_000_000) } else { u64::MAX };
    Profile {
        delay_max,
        slow_one_in,
        write_hung_one_in,
        write_failed_one_in,
        write_short_one_in,
        bytes_max,
        ..Profile::sound()
    }
}

fn habits(rng: &mut Rng, queues: &[String], starved: bool) -> Habits {
    let hello = Hello {
        sasl: rng.chance(500),
        max_frame_size: *rng.pick(&[512, 4096, 65_536, 1 << 20]),
        incoming_window: rng.between(8, 2000) as u32,
    };
    Habits {
        hello,
        links: rng.between(1, 6) as usize,
        produces: if starved { 800 } else { 450 },
        burst: rng.between(1, 12),
        large: if rng.chance(250) { 30 } else { 0 },
        medium: *rng.pick(&[50, 50, 700]),
        slow: 0,
        gives_up: 0,
        credit_max: *rng.pick(&[5, 30, 400]),
        presettled: if rng.chance(300) { 100 } else { 0 },
        waits: *rng.pick(&[0, 400, 1000]),
        gives_back: *rng.pick(&[0, 100, 400]),
        detaches: *rng.pick(&[0, 20, 100]),
        closes: *rng.pick(&[0, 5, 20]),
        cuts: *rng.pick(&[0, 5, 20]),
        diligence: if starved { 100 } else { 600 },
        queues: queues.to_vec(),
        mortal: 0,
        identified: 0,
        repeats: 0,
        lags: false,
        undertakes: *rng.pick(&[100, 300, 600]),
        delays: 0,
        prefers: *rng.pick(&[0, 0, 300]),
        notes: *rng.pick(&[0, 500]),
        relays: *rng.pick(&[0, 150]),
        browses: *rng.pick(&[0, 150]),
    }
}

/// A broker's side of every connection.
pub(crate) fn amqp() -> amqp::connection::Config {
    amqp::connection::Config {
        container_id: "laelaps".to_owned(),
        sasl: amqp::connection::Sasl::Server {
            mechanisms: amqp::sasl::Mechanisms::ANONYMOUS,
            bare: true,
        },
        max_message_size: 1 << 20,
        // What comes in several frames and is longer goes into the log as it comes.
        part_bytes: 2500,
        gather_bytes_max: 3000,
        ..amqp::connection::Config::default()
    }
}
