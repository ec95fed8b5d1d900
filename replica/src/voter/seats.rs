//! Which voters there are, and which disk each of them has.
//!
//! ```text
//!   config      seats 1..=n, n is 3, 5 or 7          the same on every voter, by an operator
//!   Disks       seat -> random number of its disk,   founded once, on every voter's disk; then
//!                       how many it had before       changed by the voters themselves
//!   tag         64 bits of those that founded it     in every message: another ensemble is refused
//!   engine id   seat + 8 x disks it had before       a disk's alone, for ever
//!
//!   {1, 2, 3} ── Replacement(3, old, new) ──▶ {1, 2, 11}, of {1, 2, 3} still ──▶ {1, 2, 11}
//!                                             both majorities are needed
//! ```
//! Invariants: a disk is seated at most once, and no engine id stands for two disks: what one of
//! them has promised, the next one in its seat can't forget, for nobody takes it for the first. A
//! voter with a new disk is in none of the lists that others hold, and decides nothing until they
//! have put it there.

use std::fmt;

use journal::mix64;

use crate::codec::{Reader, WireError, Writer};
use crate::limits::{VOTERS_MAX, VOTERS_MIN};

/// A voter's place in the config: 1 to 7.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Seat(pub u8);

impl Seat {
    /// For a set of seats.
    pub(super) const fn bit(self) -> u8 {
        1 << self.0
    }
}

impl fmt::Display for Seat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A voter's disk: random, made at format, never copied.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct VoterUuid(pub [u8; 16]);

impl fmt::Display for VoterUuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for VoterUuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// How many voters there are: 3, 5 or 7.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seats(u8);

/// Why there can't be so many voters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SeatsError {
    /// Fewer than three: none may fail.
    TooFew(usize),
    /// An even number: one less survives as much, and more can be cut in two halves.
    Even(usize),
    /// More than seven.
    TooMany(usize),
}

impl fmt::Display for SeatsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooFew(n) => write!(f, "{n} voters: none of them could fail; name 3, 5 or 7"),
            Self::Even(n) => write!(
                f,
                "{n} voters: no more of them can fail than of {}, and two halves decide nothing; \
                 name 3, 5 or 7",
                n - 1
            ),
            Self::TooMany(n) => write!(f, "{n} voters: name 3, 5 or 7"),
        }
    }
}

impl std::error::Error for SeatsError {}

impl Seats {
    /// So many voters.
    ///
    /// # Errors
    /// It is not 3, 5 or 7.
    pub const fn new(count: usize) -> Result<Self, SeatsError> {
        if count < VOTERS_MIN {
            return Err(SeatsError::TooFew(count));
        }
        if count.is_multiple_of(2) {
            return Err(SeatsError::Even(count));
        }
        if count > VOTERS_MAX {
            return Err(SeatsError::TooMany(count));
        }
        Ok(Self(count as u8))
    }

    /// How many.
    #[must_use]
    pub const fn count(self) -> u8 {
        self.0
    }

    /// All of them.
    pub fn iter(self) -> impl Iterator<Item = Seat> {
        (1..=self.0).map(Seat)
    }

    /// Whether there is such a seat.
    #[must_use]
    pub const fn has(self, seat: Seat) -> bool {
        seat.0 >= 1 && seat.0 <= self.0
    }
}

/// The disks of an ensemble, by seat.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Disks {
    tag: EnsembleTag,
    seated: Vec<Seated>,
    /// Whose last disk still counts beside the new one.
    changing: Option<Seat>,
}

/// A disk in its seat.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Seated {
    uuid: VoterUuid,
    /// Disks that had the seat before it.
    before: u32,
}

/// The disks of a founding in 64 bits: a guard against mistakes, not against an attacker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EnsembleTag(pub u64);

/// A new disk for a seat whose last one is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Replacement {
    /// Whose disk.
    pub seat: Seat,
    /// The disk that the others know; if they know another one, nothing is done.
    pub old: VoterUuid,
    /// The disk that is to be there.
    pub new: VoterUuid,
}

/// Of engine ids: more than there are seats.
const ID_STEP: u64 = 8;

/// Whose an engine id is.
pub(super) fn seat_of_id(id: u64) -> Seat {
    Seat((id % ID_STEP) as u8)
}

impl Disks {
    /// One disk for each seat, in their order, all of them the first.
    pub(crate) fn found(disks: &[VoterUuid]) -> Option<Self> {
        let seated = disks.iter().map(|uuid| Seated { uuid: *uuid, before: 0 }).collect();
        Self::checked(tag_of(disks), seated, None)
    }

    fn checked(tag: EnsembleTag, seated: Vec<Seated>, changing: Option<Seat>) -> Option<Self> {
        let seats = Seats::new(seated.len()).ok()?;
        let is_twice = |one: &Seated| seated.iter().filter(|d| d.uuid == one.uuid).count() > 1;
        let had_another = |seat: Seat| {
            let seated = usize::from(seat.0).checked_sub(1).and_then(|at| seated.get(at));
            seated.is_some_and(|seated| seated.before > 0)
        };
        let is_sound = !seated.iter().any(is_twice)
            && changing.is_none_or(|seat| seats.has(seat) && had_another(seat));
        is_sound.then_some(Self { tag, seated, changing })
    }

    fn seated(&self, seat: Seat) -> Option<Seated> {
        self.seated.get(usize::from(seat.0).wrapping_sub(1)).copied()
    }

    /// The disk of a seat.
    #[must_use]
    pub fn of(&self, seat: Seat) -> Option<VoterUuid> {
        self.seated(seat).map(|seated| seated.uuid)
    }

    /// How many seats.
    #[must_use]
    pub fn seats(&self) -> Seats {
        Seats::new(self.seated.len()).expect("checked when it was made")
    }

    /// Of those that founded the ensemble; it stays when disks are replaced.
    #[must_use]
    pub const fn tag(&self) -> EnsembleTag {
        self.tag
    }

    /// Whether a seat's last disk still counts beside its new one.
    #[must_use]
    pub const fn is_changing(&self) -> bool {
        self.changing.is_some()
    }

    /// How many disks have taken another's place since the founding.
    #[must_use]
    pub fn replacements(&self) -> u64 {
        self.seated.iter().map(|seated| u64::from(seated.before)).sum()
    }

    /// Whether these are not the disks that founded the ensemble: a majority of it has decided so.
    pub(super) fn were_replaced(&self) -> bool {
        let uuids: Vec<VoterUuid> = self.seated.iter().map(|seated| seated.uuid).collect();
        tag_of(&uuids) != self.tag
    }

    /// What the engine knows a seat's disk by.
    pub(super) fn id_of(&self, seat: Seat) -> u64 {
        let before = self.seated(seat).map_or(0, |seated| seated.before);
        u64::from(seat.0) + ID_STEP * u64::from(before)
    }

    /// All of them as the engine knows them: who decides, and who decided before and still counts.
    pub(super) fn ids(&self) -> (Vec<u64>, Vec<u64>) {
        let ids: Vec<u64> = self.seats().iter().map(|seat| self.id_of(seat)).collect();
        let Some(seat) = self.changing else { return (ids, Vec::new()) };
        let before = |id: &u64| if *id == self.id_of(seat) { id - ID_STEP } else { *id };
        let outgoing = ids.iter().map(before).collect();
        (ids, outgoing)
    }

    /// With a new disk in a seat, beside the one before; none if that can't be now.
    pub(super) fn replaced(&self, by: &Replacement) -> Option<Self> {
        // A disk that has its seat already is asked for again by who has not heard of it.
        if self.is_changing() || self.of(by.seat) != Some(by.old) || by.old == by.new {
            return None;
        }
        let mut seated = self.seated.clone();
        let at = usize::from(by.seat.0) - 1;
        seated[at] = Seated { uuid: by.new, before: seated[at].before.checked_add(1)? };
        Self::checked(self.tag, seated, Some(by.seat))
    }

    /// As [`replaced`](Self::replaced), but the new disk is taken for the one before: a canary.
    pub(super) fn usurped(&self, by: &Replacement) -> Option<Self> {
        let replaced = self.replaced(by)?;
        let seated = replaced.seated.iter().zip(&self.seated);
        let seated = seated.map(|(new, old)| Seated { uuid: new.uuid, before: old.before });
        Some(Self { seated: seated.collect(), changing: None, ..replaced })
    }

    /// Without the one before; none if no seat has one.
    pub(super) fn settled(&self) -> Option<Self> {
        self.changing.map(|_| Self { changing: None, ..self.clone() })
    }

    pub(crate) fn put(disks: Option<&Self>, w: &mut Writer) {
        w.list(disks.map_or(&[], |disks| &disks.seated[..]), |w, seated| {
            w.uuid(&seated.uuid.0);
            w.u32(seated.before);
        });
        if let Some(disks) = disks {
            w.u64(disks.tag.0);
            w.u8(disks.changing.map_or(0, |seat| seat.0));
        }
    }

    pub(crate) fn take(r: &mut Reader<'_>) -> Result<Option<Self>, WireError> {
        let seated = r.list(VOTERS_MAX, "disks", |r| {
            Ok(Seated { uuid: VoterUuid(r.uuid("disk")?), before: r.u32("disks before")? })
        })?;
        if seated.is_empty() {
            return Ok(None);
        }
        let tag = EnsembleTag(r.u64("ensemble")?);
        let changing = Some(r.u8("changing")?).filter(|seat| *seat > 0).map(Seat);
        Self::checked(tag, seated, changing).map(Some).ok_or(WireError::Contradiction("disks"))
    }
}

impl Replacement {
    pub(super) fn put(&self, w: &mut Writer) {
        w.u8(self.seat.0);
        w.uuid(&self.old.0);
        w.uuid(&self.new.0);
    }

    pub(super) fn take(r: &mut Reader<'_>) -> Result<Self, WireError> {
        let seat = Seat(r.u8("seat")?);
        Ok(Self { seat, old: VoterUuid(r.uuid("old")?), new: VoterUuid(r.uuid("new")?) })
    }
}

fn tag_of(disks: &[VoterUuid]) -> EnsembleTag {
    let mut tag = 0_u64;
    for disk in disks {
        for half in disk.0.chunks_exact(8) {
            tag = mix64(tag.rotate_left(17) ^ u64::from_le_bytes(half.try_into().expect("8")));
        }
    }
    EnsembleTag(tag)
}

const _: () = assert!((VOTERS_MAX as u64) < ID_STEP);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_two_and_even_numbers_are_refused() {
        assert_eq!(Seats::new(1), Err(SeatsError::TooFew(1)));
        assert_eq!(Seats::new(4), Err(SeatsError::Even(4)));
        assert_eq!(Seats::new(9), Err(SeatsError::TooMany(9)));
        assert_eq!(Seats::new(3).map(|s| s.iter().count()), Ok(3));
        assert!(SeatsError::Even(4).to_string().contains("than of 3"));
    }

    const DISK: fn(u8) -> VoterUuid = |n| VoterUuid([n; 16]);

    fn disks(last: u8) -> Disks {
        Disks::found(&[DISK(1), DISK(2), DISK(last)]).expect("three disks")
    }

    #[test]
    fn another_disk_is_another_ensemble() {
        assert_ne!(disks(3).tag(), disks(4).tag());
        assert_eq!(disks(3).of(Seat(3)), Some(DISK(3)));
        assert_eq!(disks(3).of(Seat(0)), None);
        assert_eq!(Disks::found(&[DISK(1); 3]), None);
    }

    #[test]
    fn a_new_disk_has_an_id_of_its_own_and_the_old_one_counts_until_it_is_settled() {
        let by = |old, new| Replacement { seat: Seat(3), old: DISK(old), new: DISK(new) };
        let first = disks(3);
        assert_eq!(first.ids(), (vec![1, 2, 3], vec![]));
        let both = first.replaced(&by(3, 4)).expect("it may");
        assert_eq!(both.ids(), (vec![1, 2, 11], vec![1, 2, 3]));
        assert_eq!((both.tag(), both.were_replaced()), (first.tag(), true));
        assert_eq!(both.replaced(&by(4, 5)), None, "one at a time");
        let second = both.settled().expect("it is changing");
        assert_eq!(second.ids(), (vec![1, 2, 11], vec![]));
        assert_eq!(second.settled(), None);
        assert_eq!(second.replaced(&by(3, 5)), None, "another disk is there");
        assert_eq!(second.replaced(&by(4, 2)), None, "a disk has one seat");
        assert_eq!(second.replaced(&by(4, 4)), None, "and takes it once");
        assert!(second.ids().0.into_iter().map(seat_of_id).eq(second.seats().iter()));
    }

    #[test]
    fn a_list_is_read_as_it_was_written() {
        let by = Replacement { seat: Seat(3), old: DISK(3), new: DISK(4) };
        let changing = disks(3).replaced(&by);
        let settled = changing.as_ref().and_then(Disks::settled);
        for list in [None, Some(disks(3)), changing, settled] {
            let mut w = Writer::new();
            Disks::put(list.as_ref(), &mut w);
            let bytes = w.finish();
            let mut r = Reader::new(&bytes);
            assert_eq!(Disks::take(&mut r), Ok(list));
            assert_eq!(r.end(), Ok(()));
        }
    }
}
