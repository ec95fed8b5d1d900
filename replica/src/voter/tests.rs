//! Voters among themselves, on a network that delivers and disks that keep: founding, elections,
//! questions, restarts. What goes wrong in a bad world is `sim`'s.

use std::collections::VecDeque;
use std::time::Duration;

use super::*;
use crate::limits::WAL_BYTES_MAX;
use crate::register::{Answer, Held, PairId, Register, RequestId, Swap, Version};

const PAIR: PairId = PairId([1; 16]);

struct World {
    now: Instant,
    voters: Vec<Option<Voter>>,
    files: Vec<Vec<u8>>,
    client: Client,
    starts: u64,
    replaced: u32,
}

impl World {
    #[expect(clippy::disallowed_methods, reason = "the origin of virtual time")]
    fn new(seats: usize) -> Self {
        let seats = Seats::new(seats).expect("an odd number");
        let mut world = Self {
            now: Instant::now(),
            voters: seats.iter().map(|_| None).collect(),
            files: vec![Vec::new(); seats.count().into()],
            client: Client::new(seats, 1),
            starts: 0,
            replaced: 0,
        };
        for seat in seats.iter() {
            world.format(seat, seat.0);
            world.start(seat);
        }
        world
    }

    fn format(&mut self, seat: Seat, disk: u8) {
        let seats = self.client_seats();
        let write = format(seat, seats, VoterUuid([disk; 16]));
        let WalWrite::Replace { bytes } = write else { panic!("a new log is a whole file") };
        self.files[usize::from(seat.0) - 1] = bytes;
    }

    fn client_seats(&self) -> Seats {
        Seats::new(self.voters.len()).expect("checked")
    }

    fn start(&mut self, seat: Seat) {
        let at = usize::from(seat.0) - 1;
        self.starts += 1;
        let recovered = Recovered::read(&self.files[at]).expect("a good disk");
        let seed = VoterSeed { elections: seat.0.into(), start: self.starts };
        self.voters[at] = Some(Voter::new(recovered, seed));
        self.client.handle_up(seat);
    }

    fn stop(&mut self, seat: Seat) {
        self.voters[usize::from(seat.0) - 1] = None;
        self.client.handle_down(self.now, seat);
    }

    fn standing(&self, seat: Seat) -> Option<Standing> {
        self.voters[usize::from(seat.0) - 1].as_ref().map(|voter| voter.status().standing)
    }

    fn leader(&self) -> Option<Seat> {
        let seats = self.client_seats();
        seats.iter().find(|seat| self.standing(*seat) == Some(Standing::Leader))
    }

    fn turn(&mut self) {
        self.now += Duration::from_millis(1);
        self.client.handle_time(self.now);
        let mut letters = VecDeque::new();
        for at in 0..self.voters.len() {
            let Some(voter) = &mut self.voters[at] else { continue };
            voter.handle_time(self.now);
            while let Some(write) = voter.poll_write() {
                match write {
                    WalWrite::Append { offset, bytes } => {
                        let offset = usize::try_from(offset).expect("small");
                        self.files[at].truncate(offset);
                        self.files[at].extend_from_slice(&bytes);
                    }
                    WalWrite::Replace { bytes } => {
                        self.replaced += 1;
                        self.files[at] = bytes;
                    }
                }
                voter.handle_written();
            }
            let from = Seat(u8::try_from(at + 1).expect("small"));
            while let Some((to, bytes)) = voter.poll_letter() {
                letters.push_back((from, to, bytes));
            }
            while let Some((_, bytes)) = voter.poll_reply() {
                self.client.handle_reply(self.now, from, &bytes).expect("a reply");
            }
        }
        while let Some((from, to, bytes)) = letters.pop_front() {
            if let Some(voter) = &mut self.voters[usize::from(to.0) - 1] {
                voter.handle_letter(from, &bytes).expect("a letter");
            }
        }
        while let Some((seat, bytes)) = self.client.poll_question(self.now) {
            let voter = self.voters[usize::from(seat.0) - 1].as_mut().expect("its link is up");
            voter.handle_question(ClientId(1), &bytes).expect("a question");
        }
    }

    fn run(&mut self, ms: u64) {
        (0..ms).for_each(|_| self.turn());
    }

    fn answer(&mut self) -> Outcome {
        for _ in 0..2000 {
            if let Some(Answer { outcome, .. }) = self.client.poll_answer() {
                return outcome;
            }
            self.turn();
        }
        panic!("no answer");
    }

    fn cas(&mut self, expect: u64, value: &[u8]) -> Outcome {
        let swap = Swap { pair: PAIR, expect: Version(expect), value: value.to_vec() };
        self.client.cas(RequestId(expect), swap);
        self.answer()
    }

    fn read(&mut self) -> Outcome {
        self.client.read(RequestId(0), PAIR);
        self.answer()
    }
}

#[test]
fn three_new_disks_found_an_ensemble_elect_and_answer() {
    let mut world = World::new(3);
    world.run(1500);
    assert!(world.leader().is_some());
    assert_eq!(world.read(), Outcome::Stands(Held::default()));
    assert_eq!(world.cas(0, b"one"), Outcome::Won(Version(1)));
    let held = Held { version: Version(1), value: b"one".to_vec() };
    assert_eq!(world.cas(0, b"two"), Outcome::Lost(held.clone()));
    assert_eq!(world.read(), Outcome::Stands(held));
}

#[test]
fn two_of_three_go_on_one_does_not_and_a_restart_remembers() {
    let mut world = World::new(3);
    world.run(1500);
    assert_eq!(world.cas(0, b"one"), Outcome::Won(Version(1)));
    let first = world.leader().expect("a leader");
    world.stop(first);
    world.run(1000);
    let second = world.leader().expect("another leader");
    assert_eq!(world.cas(1, b"two"), Outcome::Won(Version(2)));
    world.stop(second);
    world.run(1000);
    assert_eq!(world.leader(), None, "one of three leads nobody");
    assert_eq!(world.cas(2, b"three"), Outcome::NotDone(NotDone::NoLeader));
    for seat in [first, second] {
        world.start(seat);
    }
    world.run(1500);
    let held = Held { version: Version(2), value: b"two".to_vec() };
    assert_eq!(world.read(), Outcome::Stands(held));
}

/// Three of whom a swap was won, and two with new disks.
fn two_lost_disks() -> World {
    let mut world = World::new(3);
    world.run(1500);
    assert_eq!(world.cas(0, b"one"), Outcome::Won(Version(1)));
    for (seat, disk) in [(Seat(1), 11), (Seat(2), 12)] {
        world.stop(seat);
        world.format(seat, disk);
        world.start(seat);
    }
    world
}

#[test]
fn a_lost_disk_is_a_stranger_and_two_of_them_decide_nothing() {
    let mut world = two_lost_disks();
    world.run(3000);
    assert_eq!(world.standing(Seat(1)), Some(Standing::Stranger));
    assert_eq!(world.standing(Seat(2)), Some(Standing::Stranger));
    assert_eq!(world.leader(), None);
}

#[test]
fn lost_disks_wait_for_the_one_that_may_know() {
    let mut world = two_lost_disks();
    world.stop(Seat(3));
    world.run(3000);
    assert_eq!(world.standing(Seat(1)), Some(Standing::Founding));
    assert_eq!(world.leader(), None);
}

#[test]
fn a_log_begins_anew_and_who_was_away_gets_the_image() {
    let mut world = World::new(3);
    world.run(1500);
    let leader = world.leader().expect("a leader");
    let away = world.client_seats().iter().find(|seat| *seat != leader).expect("two others");
    world.stop(away);
    let value = vec![7; 60_000];
    let rounds = WAL_BYTES_MAX as u64 / 60_000 + 3;
    for version in 0..rounds {
        assert_eq!(world.cas(version, &value), Outcome::Won(Version(version + 1)));
    }
    let after_founding = world.client_seats().count().into();
    assert!(world.replaced > after_founding, "no log was written anew");
    world.start(away);
    world.run(1000);
    world.stop(leader);
    world.run(1500);
    let held = Held { version: Version(rounds), value };
    assert_eq!(world.read(), Outcome::Stands(held));
}

/// Asks whoever leads to put the disk of `seat` in its place.
fn replace(world: &mut World, seat: Seat, new: u8) {
    let leader = world.leader().expect("a leader");
    let voter = world.voters[usize::from(leader.0) - 1].as_mut().expect("it runs");
    let old = voter.status().disks.and_then(|disks| disks.of(seat)).expect("a seat");
    let new = VoterUuid([new; 16]);
    let ask = Ask::Replace(Replacement { seat, old, new });
    let question = Question { request: RequestId(0), ask };
    voter.handle_question(ClientId(1), &question.encode()).expect("a question");
}

#[test]
fn a_new_disk_takes_the_place_of_a_lost_one_and_then_counts() {
    let mut world = World::new(3);
    world.run(1500);
    assert_eq!(world.cas(0, b"one"), Outcome::Won(Version(1)));
    // Each of them, one after the other, whoever leads.
    let lost = [(Seat(1), 11), (Seat(2), 12), (Seat(3), 13), (Seat(1), 21)];
    for (version, (seat, disk)) in (1..).zip(lost) {
        world.stop(seat);
        world.format(seat, disk);
        world.start(seat);
        world.run(1500);
        assert_eq!(world.standing(seat), Some(Standing::Stranger));
        replace(&mut world, seat, disk);
        world.run(1500);
        assert!(
            matches!(world.standing(seat), Some(Standing::Follower | Standing::Leader)),
            "{seat}: {:?}",
            world.standing(seat)
        );
        let disks = world.voters[0].as_ref().and_then(|voter| voter.status().disks);
        assert!(disks.is_some_and(|disks| !disks.is_changing()), "both count for ever");
        // It remembers, and is needed: another one is away.
        let away = world.client_seats().iter().find(|other| *other != seat).expect("two others");
        world.stop(seat);
        world.start(seat);
        world.stop(away);
        world.run(1500);
        assert_eq!(world.cas(version, b"more"), Outcome::Won(Version(version + 1)));
        world.start(away);
        world.run(1500);
    }
}

#[test]
fn the_old_disk_that_comes_back_decides_nothing() {
    let mut world = World::new(3);
    world.run(1500);
    assert_eq!(world.cas(0, b"one"), Outcome::Won(Version(1)));
    let leader = world.leader().expect("a leader");
    let seat = world.client_seats().iter().find(|seat| *seat != leader).expect("two others");
    let at = usize::from(seat.0) - 1;
    let old = world.files[at].clone();
    world.stop(seat);
    world.format(seat, 21);
    world.start(seat);
    world.run(1500);
    replace(&mut world, seat, 21);
    world.run(1500);
    assert_eq!(world.cas(1, b"two"), Outcome::Won(Version(2)));
    // With the old disk and one that was asleep there is no majority of what decides now.
    world.stop(seat);
    world.stop(leader);
    world.files[at] = old;
    world.start(seat);
    world.run(3000);
    assert_ne!(world.leader(), Some(seat));
    assert!(matches!(world.cas(2, b"three"), Outcome::NotDone(_) | Outcome::Unknown));
}

#[test]
fn nobody_replaces_what_is_not_as_he_says_or_himself() {
    let mut world = World::new(3);
    world.run(1500);
    let leader = world.leader().expect("a leader");
    let other = world.client_seats().iter().find(|seat| *seat != leader).expect("two others");
    let disks = |world: &World| {
        let voter = world.voters[usize::from(leader.0) - 1].as_ref();
        voter.and_then(|voter| voter.status().disks).expect("a member")
    };
    let before = disks(&world);
    replace(&mut world, leader, 31);
    let voter = world.voters[usize::from(leader.0) - 1].as_mut().expect("it runs");
    let (old, new) = (VoterUuid([99; 16]), VoterUuid([32; 16]));
    let ask = Ask::Replace(Replacement { seat: other, old, new });
    let question = Question { request: RequestId(0), ask };
    voter.handle_question(ClientId(1), &question.encode()).expect("a question");
    world.run(1000);
    assert_eq!(disks(&world), before);
}
