//! What clients ask a voter, and what it answers, in bytes.
//!
//! ```text
//!   question   request (8) kind (1), then
//!     1 read     pair (16)
//!     2 cas      pair (16) expect (8) value (4 + n)
//!     3 status   nothing
//!     4 replace  seat (1) old disk (16) new disk (16)
//!   answer     request (8) leader's seat, 0 unknown (1) kind (1), then
//!     1 stands   version (8) value (4 + n)         4 unknown    nothing
//!     2 won      version (8)                       5 not done   reason (1)
//!     3 lost     version (8) value (4 + n)         6 status     the fields of VoterStatus
//! ```
//! A swap in the voters' log is the cas of a question, without request and kind; so is what it says
//! of a disk that takes another's place. That is answered with "won" and no version.

use super::seats::{Disks, Replacement, Seat, VoterUuid};
use crate::codec::{Reader, WireError, Writer};
use crate::limits::VALUE_BYTES_MAX;
use crate::register::{Held, NotDone, Outcome, PairId, RequestId, Swap, Version};

/// A client's question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// As the client numbers it.
    pub request: RequestId,
    /// What is asked.
    pub ask: Ask,
}

/// What is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ask {
    /// What stands.
    Read(PairId),
    /// Replace it.
    Cas(Swap),
    /// How this voter is.
    Status,
    /// Put a new disk in the place of a lost one.
    Replace(Replacement),
}

/// A voter's answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// To which question.
    pub request: RequestId,
    /// Who leads, as far as the voter knows.
    pub leader: Option<Seat>,
    /// What it says.
    pub says: Says,
}

/// What an answer says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Says {
    /// What came of a read or a cas.
    Outcome(Outcome),
    /// How the voter is.
    Status(VoterStatus),
}

/// How a voter is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VoterStatus {
    /// Its place in the config.
    pub seat: Seat,
    /// Its disk.
    pub uuid: VoterUuid,
    /// What it may do.
    pub standing: Standing,
    /// The election that it is in.
    pub term: u64,
    /// The last entry of its log that a majority has.
    pub committed: u64,
    /// How many pairs have a register.
    pub pairs: u16,
    /// Every voter's disk, as far as this one knows.
    pub disks: Option<Disks>,
}

/// What a voter may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Standing {
    /// Its disk is new and waits until all voters have been heard once.
    Founding = 1,
    /// Its disk is new and the others know another one for its seat: it is to be put there.
    Stranger = 2,
    /// It votes and follows.
    Follower = 3,
    /// It leads.
    Leader = 4,
    /// Its disk was put in the place of a lost one and has not been told what the others know.
    Joining = 5,
    /// Another disk was put in its place: it decides nothing any more.
    Replaced = 6,
}

impl Question {
    /// Its bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut w = Writer::new();
        w.u64(self.request.0);
        match &self.ask {
            Ask::Read(pair) => {
                w.u8(1);
                w.uuid(&pair.0);
            }
            Ask::Cas(swap) => {
                w.u8(2);
                put_swap(&mut w, swap);
            }
            Ask::Status => w.u8(3),
            Ask::Replace(replacement) => {
                w.u8(4);
                replacement.put(&mut w);
            }
        }
        w.finish()
    }

    /// Reads a question.
    ///
    /// # Errors
    /// It is none.
    pub fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        let mut r = Reader::new(bytes);
        let request = RequestId(r.u64("request")?);
        let ask = match r.u8("kind of question")? {
            1 => Ask::Read(PairId(r.uuid("pair")?)),
            2 => Ask::Cas(take_swap(&mut r)?),
            3 => Ask::Status,
            4 => Ask::Replace(Replacement::take(&mut r)?),
            other @ (0 | 5..) => return Err(WireError::Unknown("kind of question", other.into())),
        };
        r.end()?;
        Ok(Self { request, ask })
    }
}

impl Reply {
    /// Its bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut w = Writer::new();
        w.u64(self.request.0);
        w.u8(self.leader.map_or(0, |leader| leader.0));
        match &self.says {
            Says::Outcome(Outcome::Stands(held)) => {
                w.u8(1);
                put_held(&mut w, held);
            }
            Says::Outcome(Outcome::Won(version)) => {
                w.u8(2);
                w.u64(version.0);
            }
            Says::Outcome(Outcome::Lost(held)) => {
                w.u8(3);
                put_held(&mut w, held);
            }
            Says::Outcome(Outcome::Unknown) => w.u8(4),
            Says::Outcome(Outcome::NotDone(why)) => {
                w.u8(5);
                w.u8(match why {
                    NotDone::NoLeader => 1,
                    NotDone::Busy => 2,
                    NotDone::Full => 3,
                });
            }
            Says::Status(status) => {
                w.u8(6);
                put_status(&mut w, status);
            }
        }
        w.finish()
    }

    /// Reads an answer.
    ///
    /// # Errors
    /// It is none.
    pub fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        let mut r = Reader::new(bytes);
        let request = RequestId(r.u64("request")?);
        let leader = Some(r.u8("leader")?).filter(|leader| *leader > 0).map(Seat);
        let says = match r.u8("kind of answer")? {
            1 => Says::Outcome(Outcome::Stands(take_held(&mut r)?)),
            2 => Says::Outcome(Outcome::Won(Version(r.u64("version")?))),
            3 => Says::Outcome(Outcome::Lost(take_held(&mut r)?)),
            4 => Says::Outcome(Outcome::Unknown),
            5 => Says::Outcome(Outcome::NotDone(match r.u8("reason")? {
                1 => NotDone::NoLeader,
                2 => NotDone::Busy,
                3 => NotDone::Full,
                other @ (0 | 4..) => return Err(WireError::Unknown("reason", other.into())),
            })),
            6 => Says::Status(take_status(&mut r)?),
            other @ (0 | 7..) => return Err(WireError::Unknown("kind of answer", other.into())),
        };
        r.end()?;
        Ok(Self { request, leader, says })
    }
}

/// An entry of the voters' log.
pub(crate) fn encode_swap(swap: &Swap) -> Vec<u8> {
    let mut w = Writer::new();
    put_swap(&mut w, swap);
    w.finish()
}

/// The swap of an entry.
pub(crate) fn decode_swap(bytes: &[u8]) -> Result<Swap, WireError> {
    let mut r = Reader::new(bytes);
    let swap = take_swap(&mut r)?;
    r.end()?;
    Ok(swap)
}

/// An entry that puts a disk in another's place.
pub(super) fn encode_replacement(replacement: &Replacement) -> Vec<u8> {
    let mut w = Writer::new();
    replacement.put(&mut w);
    w.finish()
}

/// The same of an entry.
pub(super) fn decode_replacement(bytes: &[u8]) -> Result<Replacement, WireError> {
    let mut r = Reader::new(bytes);
    let replacement = Replacement::take(&mut r)?;
    r.end()?;
    Ok(replacement)
}

fn put_swap(w: &mut Writer, swap: &Swap) {
    w.uuid(&swap.pair.0);
    w.u64(swap.expect.0);
    w.bytes(&swap.value);
}

fn take_swap(r: &mut Reader<'_>) -> Result<Swap, WireError> {
    let pair = PairId(r.uuid("pair")?);
    let expect = Version(r.u64("expected version")?);
    Ok(Swap { pair, expect, value: r.bytes(VALUE_BYTES_MAX, "value")?.to_vec() })
}

fn put_held(w: &mut Writer, held: &Held) {
    w.u64(held.version.0);
    w.bytes(&held.value);
}

fn take_held(r: &mut Reader<'_>) -> Result<Held, WireError> {
    let version = Version(r.u64("version")?);
    Ok(Held { version, value: r.bytes(VALUE_BYTES_MAX, "value")?.to_vec() })
}

fn put_status(w: &mut Writer, status: &VoterStatus) {
    w.u8(status.seat.0);
    w.uuid(&status.uuid.0);
    w.u8(status.standing as u8);
    w.u64(status.term);
    w.u64(status.committed);
    w.u16(status.pairs);
    Disks::put(status.disks.as_ref(), w);
}

fn take_status(r: &mut Reader<'_>) -> Result<VoterStatus, WireError> {
    let seat = Seat(r.u8("seat")?);
    let uuid = VoterUuid(r.uuid("uuid")?);
    let standing = match r.u8("standing")? {
        1 => Standing::Founding,
        2 => Standing::Stranger,
        3 => Standing::Follower,
        4 => Standing::Leader,
        5 => Standing::Joining,
        6 => Standing::Replaced,
        other @ (0 | 7..) => return Err(WireError::Unknown("standing", other.into())),
    };
    let (term, committed) = (r.u64("term")?, r.u64("committed")?);
    let (pairs, disks) = (r.u16("pairs")?, Disks::take(r)?);
    Ok(VoterStatus { seat, uuid, standing, term, committed, pairs, disks })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn questions() -> Vec<Question> {
        let pair = PairId([3; 16]);
        let swap = Swap { pair, expect: Version(4), value: b"value".to_vec() };
        let disk = |n| VoterUuid([n; 16]);
        let by = Replacement { seat: Seat(2), old: disk(2), new: disk(4) };
        let asks = [Ask::Read(pair), Ask::Cas(swap), Ask::Status, Ask::Replace(by)];
        asks.into_iter().map(|ask| Question { request: RequestId(9), ask }).collect()
    }

    fn replies() -> Vec<Reply> {
        let held = Held { version: Version(4), value: b"value".to_vec() };
        let status = VoterStatus {
            seat: Seat(2),
            uuid: VoterUuid([2; 16]),
            standing: Standing::Stranger,
            term: 3,
            committed: 8,
            pairs: 1,
            disks: Disks::found(&[1, 2, 3].map(|n| VoterUuid([n; 16]))),
        };
        let says = [
            Says::Outcome(Outcome::Stands(held.clone())),
            Says::Outcome(Outcome::Won(Version(5))),
            Says::Outcome(Outcome::Lost(held)),
            Says::Outcome(Outcome::Unknown),
            Says::Outcome(Outcome::NotDone(NotDone::NoLeader)),
            Says::Outcome(Outcome::NotDone(NotDone::Busy)),
            Says::Outcome(Outcome::NotDone(NotDone::Full)),
            Says::Status(status),
        ];
        let reply = |says| Reply { request: RequestId(9), leader: Some(Seat(1)), says };
        says.into_iter().map(reply).collect()
    }

    #[test]
    fn what_is_said_is_what_is_heard() {
        for question in questions() {
            assert_eq!(Question::decode(&question.encode()), Ok(question));
        }
        for reply in replies() {
            assert_eq!(Reply::decode(&reply.encode()), Ok(reply));
        }
    }

    #[test]
    fn hostile_bytes_are_refused_or_mean_what_they_say() {
        let flips = |good: &[u8], check: &dyn Fn(&[u8])| {
            (0..good.len()).for_each(|cut| check(&good[..cut]));
            for at in 0..good.len() * 8 {
                let mut bytes = good.to_vec();
                bytes[at / 8] ^= 1 << (at % 8);
                check(&bytes);
            }
        };
        for question in questions() {
            flips(&question.encode(), &|bytes| {
                assert!(
                    Question::decode(bytes).is_ok_and(|q| q.encode() == bytes)
                        || Question::decode(bytes).is_err()
                );
            });
        }
        for reply in replies() {
            flips(&reply.encode(), &|bytes| {
                assert!(
                    Reply::decode(bytes).is_ok_and(|r| r.encode() == bytes)
                        || Reply::decode(bytes).is_err()
                );
            });
        }
    }
}
