//! What happened, counted: seeds prove nothing unless the faults that they are for took place.
//!
//! Each [`Hit`] is one kind of event. A run counts its own, the suite adds them up, prints them and
//! fails if one that it requires stayed at zero.

use std::fmt;

macro_rules! hits {
    ($($(#[$doc:meta])* $name:ident => $text:literal,)*) => {
        /// One kind of thing that can happen in a run.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(usize)]
        pub enum Hit { $($(#[$doc])* $name,)* }

        impl Hit {
            /// Every kind, in the order of the report.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// Its name in the report.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }
        }
    };
}

hits! {
    /// A write ended while one submitted before it had not.
    Reordered => "reordered completions",
    /// An operation took many times its usual time.
    Slow => "slow operations",
    /// A write never ended.
    Hung => "hung writes",
    /// A write ended with an I/O error.
    WriteFailed => "failed writes",
    /// A write ended short.
    WriteShort => "short writes",
    /// A read hit a block that can't be read.
    ReadFailed => "failed reads",
    /// A pre-write found no space.
    NoSpace => "no space for a segment",
    /// At a crash a write in flight left nothing.
    Lost => "writes lost",
    /// At a crash a write in flight left some of its sectors.
    Torn => "writes torn",
    /// At a crash a write in flight was there, whole, though nobody had been told.
    Whole => "writes whole, not answered",
    /// At a power cut a sector that had reached the cache and not the disk was lost.
    CacheLost => "unsynced sectors lost",
    /// At a crash a segment's file was being made.
    PrewriteCut => "pre-writes cut",
    /// The header of a segment was written over an older one.
    Recycled => "segments recycled",
    /// A message was copied forward, for its segment to be recycled.
    Copied => "messages copied forward",
    /// A message's bytes were paged out.
    PagedOut => "messages paged out",
    /// A message's bytes were read back from the log.
    PagedIn => "messages read back",
    /// A fragment was read to be sent, of a message that is on the disk only.
    Fetched => "fragments fetched",
    /// A superblock told where a log begins.
    HeadMoved => "superblocks checked against what lives",
    /// At a crash the log's tail stood in front of batches of an older use of the file.
    RecycledTail => "recycled tails",
    /// Power cuts.
    PowerCut => "power cuts",
    /// Process crashes that kept what had reached the kernel.
    Kill => "kills",
    /// A crash while the shards were recovering.
    CrashInRecovery => "crashes in recovery",
    /// A crash while links or connections were being drained or closed.
    CrashInDrain => "crashes while draining",
    /// A start after a crash.
    Restart => "restarts",
    /// A start that cut a torn tail.
    TailCut => "torn tails cut",
    /// A stop that drained everything.
    CleanStop => "clean stops",
    /// The process ended itself, as it must.
    Fatal => "designed deaths",
    /// A start that refused: the log could not be read.
    StartRefused => "starts refused",
    /// Producers were refused, or held back, for want of space.
    DiskFull => "full disk",
    /// A message in several frames or fragments.
    LargeMessage => "messages over 64 KiB",
    /// A message that came in parts, with time between them.
    SentSlowly => "messages sent slowly",
    /// Its sender gave it up.
    GivenUp => "messages given up half way",
    /// A queue that a connection uses and that lives on another shard.
    Crossed => "links to another shard",
    /// The same name asked for on two shards at once.
    CreateRace => "creation races",
    /// A connection that was cut.
    ConnectionLost => "connections lost",
    /// A connection that moved to its queue's shard.
    Moved => "connections moved",
    /// A link drain that was answered.
    Drained => "drains answered",
    /// A message that came a second time.
    Redelivered => "redeliveries",
    /// A message that died came from the queue that it was moved to.
    Buried => "dead letters delivered",
    /// A message was sent from one shard's queue to another's.
    MovedAcross => "moves to another shard",
    /// The same of one in fragments, to its end.
    MovedInParts => "moves in parts to another shard",
    /// A start found copies whose origin another shard may still have.
    CopyFound => "hidden copies found by a start",
    /// A queue did not take a message that was moved to it.
    NotMoved => "moves refused",
    /// A message was shown to somebody who only looks.
    Browsed => "messages browsed",
    /// A message found its queue by what it says itself.
    Relayed => "messages relayed",
    /// A message of another priority than the usual one was delivered.
    Prioritised => "deliveries with a priority",
    /// A message came with an annotation that a consumer had given it.
    Noted => "deliveries with a consumer's annotation",
    /// A queue was as deep as it may be, and its producers heard of it.
    QueueFull => "full queues that block",
    /// A message was accepted and dropped: its queue was full.
    Dropped => "messages dropped by full queues",
    /// A message expired and came from the queue for that.
    Expired => "expired messages delivered",
    /// A start read the log from a checkpoint on, and came to what the whole log says.
    CheckpointUsed => "starts with a checkpoint",
    /// A crash while a checkpoint was being written.
    CheckpointCut => "crashes within a checkpoint",
    /// A checkpoint was found to be of no use.
    CheckpointRefused => "checkpoints of no use",
    /// A message was delivered that had a time to wait for.
    Scheduled => "deliveries at a time",
    /// A start found messages whose time had not come.
    ScheduleFound => "messages that wait found by a start",
    /// A message that a purge took.
    Purged => "messages purged",
    /// The process ended in the middle of a purge.
    PurgeCut => "purges cut",
    /// What a consumer held went back in steps, a turn of it.
    GivenBack => "turns of large windows going back",
    /// The process ended while a large window went back.
    GivingBackCut => "large windows cut on their way back",
    /// A settlement that the broker confirmed.
    Confirmed => "settlements confirmed",
    /// A message accepted.
    Accepted => "messages accepted",
    /// A message that was sent before, with its duplicate id.
    Repeated => "messages sent again",
    /// Duplicate ids were forgotten for want of room.
    Forgotten => "ids forgotten for want of room",
    /// A message was sent again, where room may be short.
    RepeatedTight => "messages sent again where room is short",
    /// An expired message came from the queue for that, where room may be short.
    ExpiredTight => "expired messages delivered where room is short",
    /// What had expired found no room, and an operator purged its queue.
    Relieved => "queues purged to make room",
    /// A message refused.
    Refused => "messages refused",
    /// A letter accepted at `async` was lost, inside the window that the promise names.
    AsyncLost => "async letters lost in the window",
    /// The second member lagged behind while somebody waited for it.
    BackupLagged => "waits for the second member",
}

/// How often each of them happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hits([u64; Hit::ALL.len()]);

impl Default for Hits {
    fn default() -> Self {
        Self([0; Hit::ALL.len()])
    }
}

impl Hits {
    /// It happened once more.
    pub fn add(&mut self, hit: Hit) {
        self.add_many(hit, 1);
    }

    /// It happened so many times more.
    pub fn add_many(&mut self, hit: Hit, times: u64) {
        self.0[hit as usize] += times;
    }

    /// How often it happened.
    pub fn get(&self, hit: Hit) -> u64 {
        self.0[hit as usize]
    }

    /// Adds another run's.
    pub fn merge(&mut self, other: &Self) {
        for (mine, theirs) in self.0.iter_mut().zip(other.0) {
            *mine += theirs;
        }
    }

    /// Those of `required` that never happened.
    pub fn missing(&self, required: &[Hit]) -> Vec<Hit> {
        required.iter().copied().filter(|hit| self.get(*hit) == 0).collect()
    }
}

impl fmt::Display for Hits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Hit::ALL.iter().try_for_each(|hit| writeln!(f, "  {:>10}  {}", self.get(*hit), hit.name()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_never_happened_is_named() {
        let mut hits = Hits::default();
        hits.add(Hit::Torn);
        let mut sum = Hits::default();
        sum.merge(&hits);
        sum.merge(&hits);
        assert_eq!(sum.get(Hit::Torn), 2);
        assert_eq!(sum.missing(&[Hit::Torn, Hit::Lost]), [Hit::Lost]);
        assert!(sum.to_string().contains("2  writes torn"));
    }
}
