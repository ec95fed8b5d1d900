//! How new disks become an ensemble, and why a lost disk never votes.
//!
//! ```text
//!   a new disk           hello(nonce) ──▶ every other seat
//!                        i am(nonce, uuid, disks it has agreed to) ◀── each
//!
//!   all others heard ──▶ nobody has agreed     the disks heard, and mine, are the ensemble
//!                   └──▶ somebody has          and it names my disk, and those that have not
//!                                              agreed are as it says: I agree to it
//!                                              and it names another disk for my seat: stranger
//!
//!   one other heard ───▶ whose list names my disk and is not the first one: I am admitted
//! ```
//!
//! An answer counts only with the nonce of this start, so nothing that was said before this disk
//! was made counts.
//!
//! Why that is safe: suppose a majority agreed to the disks `L` and decided something, and later
//! some disk of it is lost. The new disk in its seat can only agree to `L'` after it has heard
//! *every* seat, after it was made. Any disk of that majority that is still there says `L`, which
//! names the old disk: the new one is a stranger and stays out. Only where all disks of a majority
//! are lost is anything founded anew, and then what they knew is lost whatever is done. That is
//! why a voter that comes back empty while another is down does not vote either: it may be the
//! other that knows.
//!
//! Why one voice is enough to be admitted: a list that is not the first one was decided by the
//! ensemble, and it binds its engine id to this disk for ever. This disk has promised nothing
//! under that id yet, whatever has been decided since.

use std::collections::BTreeMap;

use super::seats::{Disks, Seat, Seats, VoterUuid};

/// What a seat has said since this start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Heard {
    pub(crate) uuid: VoterUuid,
    pub(crate) disks: Option<Disks>,
}

/// A disk that belongs to no ensemble yet.
#[derive(Clone, Debug)]
pub(crate) struct Founding {
    seats: Seats,
    seat: Seat,
    uuid: VoterUuid,
    nonce: u64,
    heard: BTreeMap<Seat, Heard>,
}

/// What follows from what was heard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Finding {
    /// Some seats have not been heard, or contradict each other.
    Waiting,
    /// The others know another disk for this seat.
    Stranger,
    /// The ensemble has put this disk into its seat.
    Admitted(Disks),
    /// These are the ensemble's disks, this one among them.
    Agreed(Disks),
}

impl Founding {
    pub(crate) const fn new(seats: Seats, seat: Seat, uuid: VoterUuid, nonce: u64) -> Self {
        Self { seats, seat, uuid, nonce, heard: BTreeMap::new() }
    }

    pub(crate) const fn nonce(&self) -> u64 {
        self.nonce
    }

    /// Takes what a seat says; it counts if it answers this start's question.
    pub(crate) fn handle_i_am(&mut self, from: Seat, nonce: u64, heard: Heard) {
        let sized = heard.disks.as_ref().is_none_or(|disks| disks.seats() == self.seats);
        if nonce == self.nonce && from != self.seat && sized {
            self.heard.insert(from, heard);
        }
    }

    pub(crate) fn finding(&self) -> Finding {
        let agreed = self.heard.values().filter_map(|heard| heard.disks.as_ref());
        let names_me = |disks: &Disks| disks.of(self.seat) == Some(self.uuid);
        if let Some(disks) = agreed.clone().find(|disks| disks.were_replaced() && names_me(disks)) {
            return Finding::Admitted(disks.clone());
        }
        if agreed.clone().any(|disks| !names_me(disks)) {
            return Finding::Stranger;
        }
        let mine = (self.seat, self.uuid);
        let all: BTreeMap<Seat, VoterUuid> =
            self.heard.iter().map(|(seat, heard)| (*seat, heard.uuid)).chain([mine]).collect();
        if all.len() != usize::from(self.seats.count()) {
            return Finding::Waiting;
        }
        let heard: Vec<VoterUuid> = all.into_values().collect();
        let Some(heard) = Disks::found(&heard) else { return Finding::Waiting };
        // Who has agreed has agreed to exactly what I hear now, or I stay out.
        if agreed.into_iter().all(|disks| *disks == heard) {
            Finding::Agreed(heard)
        } else {
            Finding::Waiting
        }
    }

    /// What an amnesiac would do: take the seat that the others' list gives to the lost disk.
    pub(crate) fn usurped(&self) -> Option<Disks> {
        self.heard.values().find_map(|heard| heard.disks.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::voter::seats::Replacement;

    const DISK: fn(u8) -> VoterUuid = |n| VoterUuid([n; 16]);

    fn founding() -> Founding {
        Founding::new(Seats::new(3).expect("three"), Seat(1), DISK(1), 42)
    }

    fn fresh(uuid: u8) -> Heard {
        Heard { uuid: DISK(uuid), disks: None }
    }

    fn agreed(uuid: u8, disks: [u8; 3]) -> Heard {
        Heard { uuid: DISK(uuid), disks: Disks::found(&disks.map(DISK)) }
    }

    #[test]
    fn all_new_disks_found_an_ensemble_once_all_are_heard() {
        let mut founding = founding();
        founding.handle_i_am(Seat(2), 42, fresh(2));
        assert_eq!(founding.finding(), Finding::Waiting);
        founding.handle_i_am(Seat(3), 42, fresh(3));
        let disks = Disks::found(&[DISK(1), DISK(2), DISK(3)]).expect("three disks");
        assert_eq!(founding.finding(), Finding::Agreed(disks));
    }

    #[test]
    fn what_was_said_before_this_start_does_not_count() {
        let mut founding = founding();
        founding.handle_i_am(Seat(2), 42, fresh(2));
        founding.handle_i_am(Seat(3), 41, fresh(3));
        assert_eq!(founding.finding(), Finding::Waiting);
    }

    #[test]
    fn a_disk_that_the_others_do_not_know_stays_out() {
        let mut founding = founding();
        founding.handle_i_am(Seat(2), 42, agreed(2, [9, 2, 3]));
        assert_eq!(founding.finding(), Finding::Stranger);
        founding.handle_i_am(Seat(3), 42, fresh(3));
        assert_eq!(founding.finding(), Finding::Stranger);
    }

    #[test]
    fn a_late_disk_agrees_to_what_the_others_have_agreed_to() {
        let mut founding = founding();
        founding.handle_i_am(Seat(2), 42, agreed(2, [1, 2, 3]));
        assert_eq!(founding.finding(), Finding::Waiting, "seat 3 may know better");
        founding.handle_i_am(Seat(3), 42, fresh(3));
        assert!(matches!(founding.finding(), Finding::Agreed(_)));
    }

    #[test]
    fn a_list_that_names_a_lost_disk_is_not_agreed_to() {
        let mut founding = founding();
        founding.handle_i_am(Seat(2), 42, agreed(2, [1, 2, 3]));
        founding.handle_i_am(Seat(3), 42, fresh(8));
        assert_eq!(founding.finding(), Finding::Waiting);
    }

    #[test]
    fn a_disk_that_was_put_in_its_seat_needs_one_voice_and_a_later_one_stays_out() {
        let by = Replacement { seat: Seat(1), old: DISK(9), new: DISK(1) };
        let disks = Disks::found(&[DISK(9), DISK(2), DISK(3)]).and_then(|d| d.replaced(&by));
        let disks = disks.expect("it may");
        let heard = Heard { uuid: DISK(2), disks: Some(disks.clone()) };
        let mut admitted = founding();
        admitted.handle_i_am(Seat(3), 42, agreed(3, [9, 2, 3]));
        assert_eq!(admitted.finding(), Finding::Stranger);
        admitted.handle_i_am(Seat(2), 42, heard.clone());
        assert_eq!(admitted.finding(), Finding::Admitted(disks));
        let mut later = Founding::new(Seats::new(3).expect("three"), Seat(1), DISK(8), 42);
        later.handle_i_am(Seat(2), 42, heard);
        assert_eq!(later.finding(), Finding::Stranger);
    }

    #[test]
    fn what_is_heard_later_takes_the_place_of_what_was_heard_before() {
        let mut founding = founding();
        founding.handle_i_am(Seat(2), 42, fresh(2));
        founding.handle_i_am(Seat(2), 42, fresh(7));
        founding.handle_i_am(Seat(3), 42, fresh(3));
        let disks = Disks::found(&[DISK(1), DISK(7), DISK(3)]).expect("three disks");
        assert_eq!(founding.finding(), Finding::Agreed(disks));
    }
}
