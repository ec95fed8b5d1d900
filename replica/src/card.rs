//! What one member tells the other of itself: all of it in one frame, again whenever it changes.
//!
//! ```text
//!   member 0 ── Card ──▶ member 1         one connection beside the shards' streams
//!            ◀── Card ──                  on connect, on each change, and every CARD_EVERY
//! ```
//! It says who it is, what it holds and what it does; nothing is asked and nothing is answered, so
//! a card that is lost or late does no harm: the next one says the same or better. Nobody takes a
//! role by a card, or acknowledges by it (R1): it says where to look, what an empty directory is to
//! be formatted as, who makes the pair's first record, and whom an operator should look at.
//!
//! Invariant: bounded by [`SHARDS_MAX`], so that it fits into a frame.

use std::fmt;

use journal::limits::{LSN_MAX, SHARDS_MAX};
use journal::{Epoch, Geometry, JournalUuid, LogId, Lsn};

use crate::codec::{Reader, WireError, Writer};
use crate::limits::{ADDRESS_BYTES_MAX, PAIR_NAME_BYTES_MAX, STREAM_BODY_BYTES_MAX};
use crate::record::{MemberInfo, NodeId};
use crate::register::Version;

/// How far a shard's log goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogEnd {
    /// The newest reign that it knows.
    pub epoch: Epoch,
    /// Where it ends, durably.
    pub end: Lsn,
}

/// Which log a directory holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeldLog {
    /// Its number, the same on both members.
    pub log: LogId,
    /// Its sizes.
    pub geometry: Geometry,
}

/// What a member does, as it is shown to operators and told to the other one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Standing {
    /// It is on its way: recovers, finds its peer, catches up. It is not in sync.
    Joining = 1,
    /// It follows and is in sync.
    Backup = 2,
    /// It serves.
    Live = 3,
    /// It has the role and may not serve now.
    Fenced = 4,
}

impl Standing {
    const ALL: [Self; 4] = [Self::Joining, Self::Backup, Self::Live, Self::Fenced];
}

impl fmt::Display for Standing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Joining => "joining",
            Self::Backup => "backup",
            Self::Live => "live",
            Self::Fenced => "fenced",
        })
    }
}

/// What a member says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Card {
    /// The pair's name, as configured.
    pub pair: String,
    /// The installation, as configured.
    pub cluster: [u8; 16],
    /// Its disk: what the directory has, or will get when it is formatted.
    pub journal: JournalUuid,
    /// Which start of the process.
    pub boot: [u8; 16],
    /// Of the settings that both members must share.
    pub settings: [u8; 32],
    /// Its seat, and how it is reached.
    pub info: MemberInfo,
    /// What it does.
    pub standing: Standing,
    /// The newest version of the pair's record that it has seen.
    pub version: Version,
    /// It is about to stop: do not wait for it.
    pub is_leaving: bool,
    /// What its directory holds; none: nothing.
    pub held: Option<HeldLog>,
    /// How far each shard's log goes; empty until all of them are recovered and the voters have
    /// said whether there is a record.
    pub ends: Vec<LogEnd>,
}

const FLAG_LEAVING: u8 = 1;
const FLAG_HELD: u8 = 2;

impl Card {
    pub(crate) fn write(&self, w: &mut Writer) {
        w.bytes(self.pair.as_bytes());
        w.uuid(&self.cluster);
        w.uuid(&self.journal.0);
        w.uuid(&self.boot);
        self.settings.iter().for_each(|byte| w.u8(*byte));
        self.info.write(w);
        w.u8(self.standing as u8);
        w.u64(self.version.0);
        let leaving = if self.is_leaving { FLAG_LEAVING } else { 0 };
        w.u8(leaving | if self.held.is_some() { FLAG_HELD } else { 0 });
        if let Some(held) = &self.held {
            w.uuid(&held.log.0);
            w.u64(held.geometry.segment_bytes);
            w.u16(held.geometry.shards);
        }
        w.list(&self.ends, |w, end| {
            w.u64(end.epoch.0);
            w.u64(end.end.0);
        });
    }

    pub(crate) fn read(r: &mut Reader<'_>) -> Result<Self, WireError> {
        let pair = r.bytes(PAIR_NAME_BYTES_MAX, "pair")?;
        let pair = str::from_utf8(pair).map_err(|_| WireError::Contradiction("pair"))?.to_owned();
        let (cluster, journal) = (r.uuid("cluster")?, JournalUuid(r.uuid("journal uuid")?));
        let boot = r.uuid("boot")?;
        let mut settings = [0; 32];
        for byte in &mut settings {
            *byte = r.u8("settings")?;
        }
        let info = MemberInfo::read(r)?;
        let code = r.u8("standing")?;
        let standing = Standing::ALL.into_iter().find(|standing| *standing as u8 == code);
        let standing = standing.ok_or(WireError::Unknown("standing", code.into()))?;
        let version = Version(r.u64("version")?);
        let flags = r.u8("flags")?;
        if flags & !(FLAG_LEAVING | FLAG_HELD) != 0 {
            return Err(WireError::Unknown("flags", flags.into()));
        }
        let held = if flags & FLAG_HELD != 0 { Some(read_held(r)?) } else { None };
        let ends = r.list(usize::from(SHARDS_MAX), "ends", |r| {
            let (epoch, end) = (Epoch(r.u64("epoch")?), r.u64("end")?);
            if end > LSN_MAX {
                return Err(WireError::TooLong("end"));
            }
            Ok(LogEnd { epoch, end: Lsn(end) })
        })?;
        let shards = held.map_or(0, |held| usize::from(held.geometry.shards));
        if !ends.is_empty() && ends.len() != shards {
            return Err(WireError::Contradiction("ends"));
        }
        let is_leaving = flags & FLAG_LEAVING != 0;
        Ok(Self {
            pair,
            cluster,
            journal,
            boot,
            settings,
            info,
            standing,
            version,
            is_leaving,
            held,
            ends,
        })
    }

    /// Its seat.
    #[must_use]
    pub const fn node(&self) -> NodeId {
        self.info.node
    }
}

fn read_held(r: &mut Reader<'_>) -> Result<HeldLog, WireError> {
    let log = LogId(r.uuid("log")?);
    let geometry = Geometry { segment_bytes: r.u64("segment bytes")?, shards: r.u16("shards")? };
    if !geometry.is_valid() {
        return Err(WireError::Contradiction("sizes"));
    }
    Ok(HeldLog { log, geometry })
}

const _: () = {
    let addresses = 2 * (ADDRESS_BYTES_MAX + 4) + 40;
    let ends = SHARDS_MAX as usize * 16;
    assert!(PAIR_NAME_BYTES_MAX + addresses + ends + 256 <= STREAM_BODY_BYTES_MAX);
};
