//! Voters among themselves, on a network that delivers and disks that keep: founding, elections,
//! questions, restarts. What goes wrong in a bad world is `sim`'s.

use std::collections::VecDeque;
use std::time::Duration;

use super::*;
use crate::limits::WAL_BYTES_MAX;
use crate::register::{Answer, Held, PairId, Register, RequestId, Swap, Version};

const PAIR: PairId = PairId([1; 16]);

/// Not the client's: of a voter that passes a question on.
const RELAYS_FROM: u64 = 100;

struct World {
    now: Instant,
    voters: Vec<Option<Voter>>,
    files: Vec<Vec<u8>>,
    client: Client,
    starts: u64,
    replaced: u32,
    /// The way between client and this seat alone is cut.
    cut: Option<Seat>,
    /// Questions that were passed on.
    relayed: u32,
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
            cut: None,
            relayed: 0,
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
        let mut voter = Voter::new(recovered, seed);
        let seats = self.client_seats();
        for (other, of) in self.voters.iter_mut().zip(seats.iter()) {
            let Some(other) = other else { continue };
            other.handle_relay_up(seat);
            voter.handle_relay_up(of);
        }
        self.voters[at] = Some(voter);
        self.client.handle_up(seat);
    }

    fn stop(&mut self, seat: Seat) {
        self.voters[usize::from(seat.0) - 1] = None;
        self.voters.iter_mut().flatten().for_each(|other| other.handle_relay_down(seat));
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
        let (mut letters, mut relays, mut relay_replies) =
            (VecDeque::new(), Vec::new(), Vec::new());
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
            while let Some((to, bytes)) = voter.poll_relay() {
                self.relayed += 1;
                relays.push((from, to, bytes));
            }
            while let Some((ClientId(to), bytes)) = voter.poll_reply() {
                if let Some(seat) = to.checked_sub(RELAYS_FROM) {
                    relay_replies.push((from, seat, bytes));
                } else if self.cut != Some(from) {
                    self.client.handle_reply(self.now, from, &bytes).expect("a reply");
                }
            }
        }
        for (from, to, bytes) in relays {
            if let Some(voter) = &mut self.voters[usize::from(to.0) - 1] {
                let from = ClientId(RELAYS_FROM + u64::from(from.0));
                voter.handle_relayed(from, &bytes).expect("a question");
            }
        }
        for (from, to, bytes) in relay_replies {
            if let Some(voter) = &mut self.voters[usize::try_from(to).expect("small") - 1] {
                voter.handle_relay_reply(from, &bytes).expect("a reply");
            }
        }
        while let Some((from, to, bytes)) = letters.pop_front() {
            if let Some(voter) = &mut self.voters[usize::from(to.0) - 1] {
                voter.handle_letter(from, &bytes).expect("a letter");
            }
        }
        while let Some((seat, bytes)) = self.client.poll_question(self.now) {
            if self.cut == Some(seat) {
                continue;
            }
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

/// Three that have agreed on one value, and whose leader this client can't reach.
fn cut_from_the_leader() -> (World, Seat) {
    let mut world = World::new(3);
    world.run(1500);
    assert_eq!(world.cas(0, b"one"), Outcome::Won(Version(1)));
    let leader = world.leader().expect("a leader");
    assert_eq!(world.client.leader(), leader, "it was told who leads");
    world.cut = Some(leader);
    (world, leader)
}

#[test]
fn who_is_cut_from_the_leader_alone_is_answered_by_way_of_another() {
    let (mut world, leader) = cut_from_the_leader();
    let before = world.relayed;
    assert_eq!(world.cas(1, b"lost"), Outcome::Unknown, "the leader was asked, and never heard it");
    for version in 1..6 {
        assert_eq!(world.cas(version, b"more"), Outcome::Won(Version(version + 1)));
        let held = Held { version: Version(version + 1), value: b"more".to_vec() };
        assert_eq!(world.read(), Outcome::Stands(held.clone()));
        assert_eq!(world.cas(version, b"late"), Outcome::Lost(held));
    }
    assert_eq!(world.relayed - before, 15, "each goes one hop, once");
    assert_eq!(world.leader(), Some(leader), "and nobody had to stand for election");
    world.cut = None;
    world.client.handle_down(world.now, leader);
    world.client.handle_up(leader);
    world.read();
    let relayed = world.relayed;
    assert_eq!(world.cas(6, b"direct"), Outcome::Won(Version(7)));
    assert_eq!(world.relayed, relayed, "the leader is asked again");
}

#[test]
fn a_swap_that_comes_both_ways_and_late_is_carried_out_once() {
    let (mut world, leader) = cut_from_the_leader();
    let at = |seat: Seat| usize::from(seat.0) - 1;
    let follower = world.client_seats().iter().find(|seat| *seat != leader).expect("two others");
    let swap = Swap { pair: PAIR, expect: Version(1), value: b"twice".to_vec() };
    let bytes = Question { request: RequestId(77), ask: Ask::Cas(swap) }.encode();
    let late = ClientId(RELAYS_FROM + u64::from(follower.0));
    let voters = &mut world.voters;
    for seat in [follower, leader] {
        let voter = voters[at(seat)].as_mut().expect("it runs");
        voter.handle_question(ClientId(1), &bytes).expect("a question");
    }
    world.run(50);
    let twice = Held { version: Version(2), value: b"twice".to_vec() };
    let stands = |world: &World| {
        let registers = world.voters[at(leader)].as_ref().and_then(Voter::registers);
        registers.map(|registers| registers.get(PAIR))
    };
    assert_eq!(stands(&world), Some(twice));
    world.client.read(RequestId(0), PAIR);
    assert_eq!(world.answer(), Outcome::Unknown, "the way to the leader is cut");
    assert_eq!(world.cas(2, b"after"), Outcome::Won(Version(3)));
    // Once more, by both ways, after all.
    for (from, seat) in [(late, leader), (ClientId(1), leader), (ClientId(1), follower)] {
        let voter = world.voters[at(seat)].as_mut().expect("it runs");
        let asked = if from == late {
            voter.handle_relayed(from, &bytes)
        } else {
            voter.handle_question(from, &bytes)
        };
        asked.expect("a question");
    }
    world.run(50);
    let after = Held { version: Version(3), value: b"after".to_vec() };
    assert_eq!(stands(&world), Some(after));
}

#[test]
fn what_is_passed_on_to_one_that_does_not_lead_goes_no_further() {
    let (mut world, leader) = cut_from_the_leader();
    let seats = world.client_seats();
    let mut others = seats.iter().filter(|seat| *seat != leader);
    let [one, other] = [others.next(), others.next()].map(|seat| seat.expect("two others"));
    let relayed = world.relayed;
    let bytes = Question { request: RequestId(5), ask: Ask::Read(PAIR) }.encode();
    let from = ClientId(RELAYS_FROM + u64::from(one.0));
    let voter = world.voters[usize::from(other.0) - 1].as_mut().expect("it runs");
    voter.handle_relayed(from, &bytes).expect("a question");
    let (to, said) = voter.poll_reply().expect("at once");
    let says = Says::Outcome(Outcome::NotDone(NotDone::NoLeader));
    let reply = Reply { request: RequestId(5), leader: Some(leader), says };
    assert_eq!((to, Reply::decode(&said)), (from, Ok(reply)));
    world.run(50);
    assert_eq!(world.relayed, relayed);
}
