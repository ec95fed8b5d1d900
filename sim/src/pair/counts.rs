//! What happened in runs of a pair, counted: seeds prove nothing unless it did.
//!
//! Each figure has a least that a hundred runs must reach, half of it where there are clients; a
//! suite that does not is too tame.

use std::fmt;

use crate::hits::{Hit, Hits};
use crate::voters;

macro_rules! figures {
    ($($(#[$doc:meta])* $name:ident => $least:literal,)*) => {
        /// One run's, or those of many.
        #[derive(Clone, Debug, Default, PartialEq, Eq)]
        pub struct Counts {
            $($(#[$doc])* pub $name: u64,)*
            /// Acknowledgements at each level: async (none here), sync, replicated,
            /// replicated-sync.
            pub acknowledged: [u64; 4],
            /// What became of writes.
            pub disk: Hits,
            /// What the clients went through, where there are any.
            pub clients: Hits,
            /// Letters that they sent.
            pub sent: u64,
            /// What was delivered to them.
            pub deliveries: u64,
            /// What the voters went through.
            pub voters: voters::Counts,
        }

        impl Counts {
            fn figures(&self) -> Vec<(&'static str, u64, u64)> {
                vec![$((stringify!($name), self.$name, $least),)*]
            }

            /// Adds another's.
            pub fn merge(&mut self, other: &Self) {
                $(self.$name += other.$name;)*
                for (mine, theirs) in self.acknowledged.iter_mut().zip(other.acknowledged) {
                    *mine += theirs;
                }
                self.disk.merge(&other.disk);
                self.clients.merge(&other.clients);
                self.sent += other.sent;
                self.deliveries += other.deliveries;
                for (name, times) in &other.voters {
                    *self.voters.entry(name).or_default() += times;
                }
            }
        }
    };
}

figures! {
    /// Somebody went live.
    reigns => 250,
    /// ... another one than before.
    takeovers => 40,
    /// A lease ran out, or was given up.
    fences => 140,
    /// A reign ended in a process that went on.
    depositions => 40,
    /// Processes that stood still.
    pauses => 500,
    /// Shards that did, in a process that went on.
    wedges => 100,
    /// Disks that were lost.
    lost_disks => 50,
    /// ... of a live whose backup has everything.
    lost_lives => 4,
    /// Disks that began to hang, fail, end short or not to be read.
    ailments => 200,
    /// Processes that ended because of it.
    deaths => 30,
    /// Switchovers that began.
    switchovers => 40,
    /// ... and came so far that their process began anew.
    begun_anew => 20,
    /// Crashes that lost what was not durable.
    power_cuts => 400,
    /// Crashes that kept it.
    kills => 250,
    /// Crashes of both at once.
    both_down => 200,
    /// Connections reset.
    resets => 2000,
    /// Connections of which one end did not hear that they were over.
    half_open => 250,
    /// Directions cut between the members.
    partitions => 1000,
    /// Ways between a member and all voters that were cut.
    voters_cut => 600,
    /// One edge among the voters, or to one of them, or all edges of one.
    voter_cuts => 200,
    /// Voters that crashed alone.
    voter_crashes => 150,
    /// All of them at once.
    voters_down => 30,
    /// Voters that stood still.
    voter_pauses => 60,
    /// Voters whose disk was lost.
    voter_disks_lost => 15,
    /// A log was cut at a rejoin.
    cuts => 6,
    /// Records that a reign began with, and the one before had lost.
    found => 0,
    /// Records that were exported.
    exported => 60,
    /// Reads of the log for a backup that was behind.
    reads_back => 200,
    /// The peer came into the set.
    expands => 90,
    /// The peer was put out of it.
    shrinks => 40,
    /// Outcomes that nobody knew.
    unknown => 500,
    /// Starts of brokers' shards that began with a checkpoint.
    from_checkpoints => 0,
    /// Runs that ended with a member that lacks more than the log has.
    stranded => 0,
    /// Settlements acknowledged.
    settled => 20000,
    /// Batches handed to a backup's state.
    shown => 50000,
    /// A member that does not reign recycled a log's head, or was installed.
    heads_followed => 4000,
}

/// What must have become of some writes.
const DISK: [Hit; 8] = [
    Hit::Reordered,
    Hit::Hung,
    Hit::WriteFailed,
    Hit::WriteShort,
    Hit::ReadFailed,
    Hit::Lost,
    Hit::Torn,
    Hit::CacheLost,
];

/// Acknowledgements at each level but `async`, in a hundred runs.
const ACKNOWLEDGED_MIN: u64 = 20_000;

/// What only the ledger counts.
const NOT_SERVED: [&str; 3] = ["settled", "shown", "reads_back"];

/// Brokers' logs alone are recycled.
const SERVED_ALONE: &str = "heads_followed";

/// Letters that clients send in a hundred runs with brokers.
const SENT_MIN: u64 = 20_000;

/// What must have happened to some of them.
const CLIENTS: [Hit; 7] = [
    Hit::Accepted,
    Hit::Confirmed,
    Hit::Redelivered,
    Hit::Crossed,
    Hit::Moved,
    Hit::ConnectionLost,
    Hit::RepliesLeft,
];

impl Counts {
    /// What happened less often than it must in so many runs, with brokers in them or without.
    pub fn too_rare(&self, runs: u64, is_served: bool) -> Vec<String> {
        let figures = self.figures().into_iter();
        // With clients there is more to catch up with: they are in sync for less of the time.
        let share = if is_served { 2 } else { 1 };
        let mut rare: Vec<String> = figures
            .filter(|(_, times, least)| times * 100 * share < least * runs)
            .map(|(name, times, least)| {
                format!("{name}: {times}, least {} a hundred runs", least / share)
            })
            .collect();
        if is_served {
            let few = (self.sent * 100 < SENT_MIN * runs).then(|| format!("sent: {}", self.sent));
            rare.retain(|what| !NOT_SERVED.iter().any(|name| what.starts_with(name)));
            rare.extend(few);
            rare.extend(self.clients.missing(&CLIENTS).iter().map(|hit| hit.name().to_owned()));
            return rare;
        }
        rare.retain(|what| !what.starts_with(SERVED_ALONE));
        let few = |times: &&u64| **times * 100 < ACKNOWLEDGED_MIN * runs;
        rare.extend(
            self.acknowledged[1..].iter().filter(few).map(|n| format!("acknowledged: {n}")),
        );
        rare.extend(self.disk.missing(&DISK).iter().map(|hit| hit.name().to_owned()));
        rare
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let figures = self.figures().into_iter().map(|(name, times, _)| (name, times));
        let levels = ["async", "sync", "replicated", "replicated-sync"];
        let levels = levels.into_iter().zip(self.acknowledged);
        let voters = self.voters.iter().map(|(name, times)| (*name, *times));
        let disk = Hit::ALL.iter().map(|hit| (hit.name(), self.disk.get(*hit)));
        let clients = Hit::ALL.iter().map(|hit| (hit.name(), self.clients.get(*hit)));
        let letters = [("letters sent", self.sent), ("deliveries", self.deliveries)];
        let hits = disk.chain(letters).chain(clients).filter(|(_, times)| *times > 0);
        let all = figures.chain(levels).chain(voters).chain(hits);
        all.into_iter().try_for_each(|(name, times)| writeln!(f, "  {times:>10}  {name}"))
    }
}
