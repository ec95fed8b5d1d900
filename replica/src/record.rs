//! The one record of a pair: who is live, who is in sync, and since when.
//!
//! ```text
//!   0         2         10      26       28      36      37      38
//!   | format  | must    | log   | shards | epoch | live  | rel.  | in sync: count (2), then each
//!   |   2     | know 8  |  16   |   2    |   8   |   1   |   1   |   node (1) journal uuid (16)
//!   reigns     count (2), then each  epoch (8) live (1)                        the oldest first
//!   watermark  count (2): none or one a shard, then each  LSN (8) chain (8)
//!   members    count (2), then each  node (1) replication address (4 + n) client address (4 + n)
//!                                    certificate's SHA-256 (32)
//!   parts      until the end: type (2), length (4), bytes: kept where they aren't known
//!              1: reigns by an operator's word, each  epoch (8) milliseconds since 1970 (8)
//!              2: the lease of who wrote this, milliseconds (4)
//! ```
//!
//! Little-endian; `live` is 255 where nobody is. The version is not in it: the register counts it,
//! and hands out both together.
//!
//! Invariants ([`PairRecord::check`], asserted before every write): one or two members are in sync,
//! no node twice; the live is one of them; the newest reign is that of the epoch. From one record
//! to the next ([`PairRecord::follows`]) the epoch never goes back, and another live, or the same
//! one anew, has a higher one (I4).

use std::fmt;
use std::time::Duration;

use journal::limits::{LSN_MAX, SHARDS_MAX};
use journal::{Chain, Epoch, JournalUuid, LogId, Lsn};

use crate::codec::{Reader, WireError, Writer};
use crate::lease::LeaseTerms;
use crate::limits::{ADDRESS_BYTES_MAX, CARRIED_BYTES_MAX, FORCED_MAX, MEMBERS_MAX, REIGNS_MAX};

const FORMAT: u16 = 1;
const FEATURES_KNOWN: u64 = 0;
const NOBODY: u8 = u8::MAX;
const PART_FORCED: u16 = 1;
const PART_LEASE: u16 = 2;

/// A seat of the pair. What sits there is a [`Member`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct NodeId(pub u8);

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A node with the disk that it has now: a wiped or exchanged disk is another member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member {
    /// The seat.
    pub node: NodeId,
    /// Its directory, by the random number that it got at format.
    pub journal: JournalUuid,
}

/// Who began an epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reign {
    /// The epoch.
    pub epoch: Epoch,
    /// Its live.
    pub live: NodeId,
}

/// A reign that began by an operator's word, whatever others had acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Forced {
    /// Its epoch.
    pub epoch: Epoch,
    /// When, by the clock of the member: milliseconds since 1970.
    pub at_ms: u64,
}

/// A place in a shard's log, with the chain value of everything before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    /// The place.
    pub lsn: Lsn,
    /// What led there.
    pub chain: Chain,
}

/// How others reach a member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberInfo {
    /// Whose.
    pub node: NodeId,
    /// Where its peer connects, `host:port`.
    pub replication: String,
    /// Where clients connect, as it is configured; empty: nobody is sent there.
    pub advertise: String,
    /// SHA-256 of its certificate; zeros on loopback without TLS.
    pub certificate: [u8; 32],
}

/// What the voters hold for a pair.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PairRecord {
    /// The pair's log, the same on both members.
    pub log: LogId,
    /// How many shards it has.
    pub shards: u16,
    /// The reign's number; it goes up whenever the role is given.
    pub epoch: Epoch,
    /// Who may serve.
    pub live: Option<NodeId>,
    /// The live has stopped serving: nobody needs to wait for its lease.
    pub released: bool,
    /// Who holds everything that was acknowledged.
    pub in_sync: Vec<Member>,
    /// The last epochs and their lives, the oldest first.
    pub reigns: Vec<Reign>,
    /// What is durable on every member in sync: one mark a shard, or none yet.
    pub watermark: Vec<Mark>,
    /// How the members are reached.
    pub members: Vec<MemberInfo>,
    /// The last reigns that an operator began, the oldest first.
    pub forced: Vec<Forced>,
    /// By which lease its writer serves, if that is its live: whoever challenges it waits for that
    /// one too (R3). None: the pair has not served yet.
    pub lease: Option<LeaseTerms>,
    /// Parts that this version doesn't know.
    carried: Vec<u8>,
}

/// Why a record may not be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecordFault {
    /// Nobody, too many, or one node twice is in sync.
    InSync,
    /// The live is not in sync.
    LiveNotInSync,
    /// The newest reign is not that of the epoch and its live.
    Reigns,
    /// Marks, but not one for each shard.
    Watermark,
    /// More shards, members or characters than there may be.
    Bounds,
    /// The epoch goes back.
    EpochBack,
    /// Another live in the same epoch.
    EpochShared,
    /// Another log, or another number of shards.
    OtherLog,
}

impl PairRecord {
    /// The first record of a pair: this member alone, live. Its epoch is newer than all that its
    /// log has: the newest row of any shard's table, plus one. A formatted log has a row already.
    #[must_use]
    pub fn first(log: LogId, shards: u16, live: Member, epoch: Epoch) -> Self {
        Self {
            log,
            shards,
            epoch,
            live: Some(live.node),
            released: false,
            in_sync: vec![live],
            reigns: vec![Reign { epoch, live: live.node }],
            watermark: Vec::new(),
            members: Vec::new(),
            forced: Vec::new(),
            lease: None,
            carried: Vec::new(),
        }
    }

    /// The same pair in a new epoch, whose live is this node; `in_sync` as it is said.
    #[must_use]
    pub fn granted(&self, live: NodeId, in_sync: Vec<Member>) -> Self {
        let epoch = Epoch(self.epoch.0 + 1);
        let mut next = Self { epoch, live: Some(live), released: false, in_sync, ..self.clone() };
        next.reigns.push(Reign { epoch, live });
        let surplus = next.reigns.len().saturating_sub(REIGNS_MAX);
        next.reigns.drain(..surplus);
        next
    }

    /// Its epoch begins by an operator's word.
    pub fn note_forced(&mut self, at_ms: u64) {
        let surplus = (self.forced.len() + 1).saturating_sub(FORCED_MAX);
        self.forced.drain(..surplus);
        self.forced.push(Forced { epoch: self.epoch, at_ms });
    }

    /// Whether what was acknowledged in this epoch may have been overruled since, by an operator.
    #[must_use]
    pub fn overrules(&self, epoch: Epoch) -> bool {
        self.forced.iter().any(|forced| forced.epoch > epoch)
    }

    /// The member of this node that is in sync, if it is.
    #[must_use]
    pub fn in_sync_of(&self, node: NodeId) -> Option<Member> {
        self.in_sync.iter().copied().find(|member| member.node == node)
    }

    /// Whether exactly this member, disk included, is in sync.
    #[must_use]
    pub fn holds(&self, member: Member) -> bool {
        self.in_sync.contains(&member)
    }

    /// Whether the record may stand by itself.
    ///
    /// # Errors
    /// The rule that it breaks.
    pub fn check(&self) -> Result<(), RecordFault> {
        let nodes = |wanted: NodeId| self.in_sync.iter().filter(|m| m.node == wanted).count();
        let seats = 1..=MEMBERS_MAX;
        if !seats.contains(&self.in_sync.len()) || self.in_sync.iter().any(|m| nodes(m.node) > 1) {
            return Err(RecordFault::InSync);
        }
        if self.live.is_some_and(|live| self.in_sync_of(live).is_none()) {
            return Err(RecordFault::LiveNotInSync);
        }
        let rising = self.reigns.windows(2).all(|two| two[0].epoch < two[1].epoch);
        let newest = self.reigns.last().is_some_and(|reign| {
            reign.epoch == self.epoch && self.live.is_none_or(|live| live == reign.live)
        });
        if !rising || !newest || self.reigns.len() > REIGNS_MAX {
            return Err(RecordFault::Reigns);
        }
        if !self.watermark.is_empty() && self.watermark.len() != usize::from(self.shards) {
            return Err(RecordFault::Watermark);
        }
        let addresses_fit = self
            .members
            .iter()
            .all(|info| info.replication.len().max(info.advertise.len()) <= ADDRESS_BYTES_MAX);
        let named = self.live.is_none_or(|live| live.0 != NOBODY);
        let bounded = (1..=SHARDS_MAX).contains(&self.shards) && self.members.len() <= MEMBERS_MAX;
        if bounded && addresses_fit && named { Ok(()) } else { Err(RecordFault::Bounds) }
    }

    /// Whether this record may come after `old` (I4).
    ///
    /// # Errors
    /// The rule that it breaks.
    pub fn follows(&self, old: &Self) -> Result<(), RecordFault> {
        self.check()?;
        if self.log != old.log || self.shards != old.shards {
            return Err(RecordFault::OtherLog);
        }
        if self.epoch < old.epoch {
            return Err(RecordFault::EpochBack);
        }
        let same_reign = self.epoch == old.epoch;
        if same_reign && (self.live != old.live || (old.released && !self.released)) {
            return Err(RecordFault::EpochShared);
        }
        Ok(())
    }

    /// Its bytes: the value of the pair's register.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut w = Writer::new();
        w.u16(FORMAT);
        w.u64(FEATURES_KNOWN);
        w.uuid(&self.log.0);
        w.u16(self.shards);
        w.u64(self.epoch.0);
        w.u8(self.live.map_or(NOBODY, |live| live.0));
        w.bool(self.released);
        w.list(&self.in_sync, |w, member| {
            w.u8(member.node.0);
            w.uuid(&member.journal.0);
        });
        w.list(&self.reigns, |w, reign| {
            w.u64(reign.epoch.0);
            w.u8(reign.live.0);
        });
        w.list(&self.watermark, |w, mark| {
            w.u64(mark.lsn.0);
            w.u64(mark.chain.0);
        });
        w.list(&self.members, |w, info| info.write(w));
        if !self.forced.is_empty() {
            let mut part = Writer::new();
            for forced in &self.forced {
                part.u64(forced.epoch.0);
                part.u64(forced.at_ms);
            }
            w.u16(PART_FORCED);
            w.bytes(&part.finish());
        }
        if let Some(lease) = self.lease {
            let mut part = Writer::new();
            part.u32(lease.millis());
            w.u16(PART_LEASE);
            w.bytes(&part.finish());
        }
        let mut bytes = w.finish();
        bytes.extend_from_slice(&self.carried);
        bytes
    }

    /// Reads the value of a pair's register.
    ///
    /// # Errors
    /// It is no record, of a version or with features that this one does not know, or breaks a rule
    /// that holds for every record.
    pub fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        let mut r = Reader::new(bytes);
        let format = r.u16("record format")?;
        if format != FORMAT {
            return Err(WireError::Unknown("record format", format.into()));
        }
        let features = r.u64("record features")?;
        if features & !FEATURES_KNOWN != 0 {
            return Err(WireError::Unknown("record features", features));
        }
        let log = LogId(r.uuid("log id")?);
        let shards = r.u16("shards")?;
        let epoch = Epoch(r.u64("epoch")?);
        let live = Some(r.u8("live")?).filter(|live| *live != NOBODY).map(NodeId);
        let released = r.bool("released")?;
        let in_sync = r.list(MEMBERS_MAX, "in sync", |r| {
            let node = NodeId(r.u8("member")?);
            Ok(Member { node, journal: JournalUuid(r.uuid("journal uuid")?) })
        })?;
        let reigns = r.list(REIGNS_MAX, "reigns", |r| {
            Ok(Reign { epoch: Epoch(r.u64("reign")?), live: NodeId(r.u8("its live")?) })
        })?;
        let watermark = r.list(usize::from(SHARDS_MAX), "watermark", read_mark)?;
        let members = r.list(MEMBERS_MAX, "members", MemberInfo::read)?;
        let (forced, lease, carried) = read_parts(&mut r)?;
        let record = Self {
            log,
            shards,
            epoch,
            live,
            released,
            in_sync,
            reigns,
            watermark,
            members,
            forced,
            lease,
            carried,
        };
        record.check().map_err(|_| WireError::Contradiction("the record"))?;
        Ok(record)
    }
}

fn read_mark(r: &mut Reader<'_>) -> Result<Mark, WireError> {
    let lsn = r.u64("mark")?;
    if lsn > LSN_MAX {
        return Err(WireError::TooLong("mark"));
    }
    Ok(Mark { lsn: Lsn(lsn), chain: Chain(r.u64("chain")?) })
}

impl MemberInfo {
    pub(crate) fn write(&self, w: &mut Writer) {
        w.u8(self.node.0);
        w.bytes(self.replication.as_bytes());
        w.bytes(self.advertise.as_bytes());
        self.certificate.iter().for_each(|byte| w.u8(*byte));
    }

    pub(crate) fn read(r: &mut Reader<'_>) -> Result<Self, WireError> {
        let text = |bytes: &[u8], field| {
            String::from_utf8(bytes.to_vec()).map_err(|_| WireError::Contradiction(field))
        };
        let node = NodeId(r.u8("member")?);
        let replication = text(r.bytes(ADDRESS_BYTES_MAX, "replication address")?, "its address")?;
        let advertise = text(r.bytes(ADDRESS_BYTES_MAX, "client address")?, "its address")?;
        let mut certificate = [0; 32];
        for byte in &mut certificate {
            *byte = r.u8("certificate")?;
        }
        Ok(Self { node, replication, advertise, certificate })
    }
}

type Parts = (Vec<Forced>, Option<LeaseTerms>, Vec<u8>);

/// What is known of the parts, and what a newer version may have added, kept as it is.
fn read_parts(r: &mut Reader<'_>) -> Result<Parts, WireError> {
    let (mut forced, mut lease, mut carried) = (Vec::new(), None, Writer::new());
    let mut bytes_left = CARRIED_BYTES_MAX;
    while !r.is_empty() {
        let kind = r.u16("part")?;
        let part = r.bytes(CARRIED_BYTES_MAX, "part")?;
        if kind == PART_FORCED && forced.is_empty() {
            forced = read_forced(part)?;
            continue;
        }
        if kind == PART_LEASE && lease.is_none() {
            lease = Some(read_lease(part)?);
            continue;
        }
        bytes_left = bytes_left.checked_sub(part.len() + 6).ok_or(WireError::TooLong("parts"))?;
        carried.u16(kind);
        carried.bytes(part);
    }
    Ok((forced, lease, carried.finish()))
}

fn read_lease(part: &[u8]) -> Result<LeaseTerms, WireError> {
    let mut r = Reader::new(part);
    let length = Duration::from_millis(r.u32("lease")?.into());
    r.end()?;
    LeaseTerms::new(length).ok_or(WireError::Contradiction("lease"))
}

fn read_forced(part: &[u8]) -> Result<Vec<Forced>, WireError> {
    let (rows, rest) = part.as_chunks::<16>();
    if rows.is_empty() || rows.len() > FORCED_MAX || !rest.is_empty() {
        return Err(WireError::Contradiction("reigns by an operator's word"));
    }
    let mut forced = Vec::new();
    for row in rows {
        let mut r = Reader::new(row);
        forced.push(Forced { epoch: Epoch(r.u64("epoch")?), at_ms: r.u64("when")? });
    }
    Ok(forced)
}

#[cfg(test)]
pub(crate) const fn sample_log() -> LogId {
    LogId([7; 16])
}

#[cfg(test)]
#[path = "record/tests.rs"]
mod tests;
