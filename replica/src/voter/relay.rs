//! Questions that a voter passes on to the one that leads, for askers whose way there is cut.
//!
//! ```text
//!   client ── question ──▶ follower ── the same, numbered anew ──▶ leader: carried out, or refused
//!          ◀── reply ────          ◀────────── reply ────────────
//!          as the client numbers it
//!
//!   the link broke, or no reply in time:  swap ─▶ unknown      read ─▶ not done
//! ```
//! The way to another voter is a connection of its own. It counts as standing once the other one
//! has answered on it: a voter that does not know such connections refuses them, and is passed
//! nothing.
//!
//! Invariants: one hop, since who is passed a question answers it himself, whoever leads. Each is
//! passed on once, under a number that no other has had, and a reply counts once, from the voter
//! that was asked. They are bounded in number and in time. No safety rests on this: a swap is
//! carried out where it stands in the log, whichever way it came, and a reply that never comes is
//! an outcome that nobody knows (R5).

use std::collections::{BTreeMap, VecDeque};

use super::question::{Ask, Question, Reply, Says};
use super::{ClientId, Outputs, Seat};
use crate::canary::{Canaries, Canary};
use crate::codec::WireError;
use crate::limits::{RELAY_TICKS, RELAYED_MAX};
use crate::register::{NotDone, Outcome, RequestId};

/// A question that was passed on.
#[derive(Debug)]
struct Passed {
    to: Seat,
    client: ClientId,
    request: RequestId,
    is_swap: bool,
    ticks_left: u32,
}

/// What a voter passes on.
#[derive(Debug)]
pub(super) struct Relays {
    next: u64,
    /// Who has answered on the connection that stands: one bit a seat.
    standing: u8,
    open: BTreeMap<u64, Passed>,
    questions: VecDeque<(Seat, Vec<u8>)>,
    canaries: Canaries,
}

impl Relays {
    /// `first` is a number that no earlier start has come near: chance will do.
    pub(super) fn new(first: u64, canaries: Canaries) -> Self {
        let (open, questions) = Default::default();
        Self { next: first, standing: 0, open, questions, canaries }
    }

    /// A connection was made: is there anybody who knows what it is for?
    pub(super) fn handle_up(&mut self, seat: Seat) {
        let number = self.number();
        self.send(seat, number, Ask::Status);
    }

    pub(super) fn handle_down(&mut self, seat: Seat, out: &mut Outputs) {
        self.standing &= !seat.bit();
        self.questions.retain(|(to, _)| *to != seat);
        self.give_up(|passed| passed.to == seat, out);
    }

    pub(super) fn handle_tick(&mut self, out: &mut Outputs) {
        self.open.values_mut().for_each(|passed| passed.ticks_left -= 1);
        self.give_up(|passed| passed.ticks_left == 0, out);
    }

    /// Passes a question on to who leads, if that can be done now.
    pub(super) fn pass(&mut self, client: ClientId, question: &Question, leader: Seat) -> bool {
        let is_swap = match question.ask {
            Ask::Read(_) => false,
            Ask::Cas(_) => true,
            // How *this* voter is; what an operator asks of the leader by name.
            Ask::Status | Ask::Replace(_) => return false,
        };
        if self.standing & leader.bit() == 0 || self.open.len() >= RELAYED_MAX {
            return false;
        }
        let (request, number) = (question.request, self.number());
        let passed = Passed { to: leader, client, request, is_swap, ticks_left: RELAY_TICKS };
        self.open.insert(number, passed);
        self.send(leader, number, question.ask.clone());
        true
    }

    /// What another voter says to what it was passed.
    pub(super) fn handle_reply(
        &mut self,
        from: Seat,
        bytes: &[u8],
        out: &mut Outputs,
    ) -> Result<(), WireError> {
        let reply = Reply::decode(bytes)?;
        self.standing |= from.bit();
        let number = reply.request.0;
        // R4: what was given up, or asked of another one, is answered by nothing.
        if self.open.get(&number).is_none_or(|passed| passed.to != from) {
            return Ok(());
        }
        let passed = self.open.remove(&number).expect("just found");
        answer(&passed, reply.leader, reply.says, out);
        Ok(())
    }

    pub(super) fn poll_question(&mut self) -> Option<(Seat, Vec<u8>)> {
        self.questions.pop_front()
    }

    fn number(&mut self) -> u64 {
        self.next = self.next.wrapping_add(1);
        self.next
    }

    fn send(&mut self, to: Seat, number: u64, ask: Ask) {
        let question = Question { request: RequestId(number), ask };
        self.questions.push_back((to, question.encode()));
    }

    fn give_up(&mut self, which: impl Fn(&Passed) -> bool, out: &mut Outputs) {
        let is_over = |(number, passed): (&u64, &Passed)| which(passed).then_some(*number);
        let over: Vec<u64> = self.open.iter().filter_map(is_over).collect();
        for passed in over.iter().filter_map(|number| self.open.remove(number)) {
            let outcome = if passed.is_swap && !self.canaries.has(Canary::RelayUnknownDenied) {
                // It may have arrived.
                Outcome::Unknown
            } else {
                Outcome::NotDone(NotDone::NoLeader)
            };
            answer(&passed, None, Says::Outcome(outcome), out);
        }
    }
}

fn answer(passed: &Passed, leader: Option<Seat>, says: Says, out: &mut Outputs) {
    let reply = Reply { request: passed.request, leader, says };
    out.replies.push_back((passed.client, reply.encode()));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::register::{PairId, Swap, Version};

    const LEADER: Seat = Seat(2);
    const READ: Ask = Ask::Read(PairId([1; 16]));

    fn swap() -> Ask {
        Ask::Cas(Swap { pair: PairId([1; 16]), expect: Version(4), value: vec![1] })
    }

    /// One whose connection to the leader stands.
    fn relays() -> (Relays, Outputs) {
        let (mut relays, mut out) =
            (Relays::new(u64::MAX, Canaries::default()), Outputs::default());
        relays.handle_up(LEADER);
        assert!(!relays.pass(ClientId(7), &question(READ), LEADER), "it has not answered yet");
        let (seat, number) = sent(&mut relays);
        assert_eq!(seat, LEADER);
        let none = Says::Outcome(Outcome::NotDone(NotDone::Busy));
        reply(&mut relays, LEADER, number, none, &mut out);
        assert_eq!(said(&mut out), None, "nobody asked for that");
        (relays, out)
    }

    fn question(ask: Ask) -> Question {
        Question { request: RequestId(9), ask }
    }

    fn sent(relays: &mut Relays) -> (Seat, RequestId) {
        let (seat, bytes) = relays.poll_question().expect("a question");
        (seat, Question::decode(&bytes).expect("well-formed").request)
    }

    fn reply(relays: &mut Relays, from: Seat, request: RequestId, says: Says, out: &mut Outputs) {
        let reply = Reply { request, leader: Some(LEADER), says };
        relays.handle_reply(from, &reply.encode(), out).expect("a reply");
    }

    fn said(out: &mut Outputs) -> Option<(ClientId, RequestId, Outcome)> {
        let (client, bytes) = out.replies.pop_front()?;
        let reply = Reply::decode(&bytes).expect("well-formed");
        let Says::Outcome(outcome) = reply.says else { panic!("no outcome: {reply:?}") };
        Some((client, reply.request, outcome))
    }

    #[test]
    fn an_answer_goes_to_who_asked_under_his_own_number_and_once() {
        let (mut relays, mut out) = relays();
        assert!(relays.pass(ClientId(7), &question(swap()), LEADER));
        let (seat, number) = sent(&mut relays);
        assert_eq!((seat, number == RequestId(9)), (LEADER, false));
        let won = || Says::Outcome(Outcome::Won(Version(5)));
        reply(&mut relays, Seat(3), number, won(), &mut out);
        assert_eq!(said(&mut out), None, "it was not asked");
        reply(&mut relays, LEADER, number, won(), &mut out);
        let told = (ClientId(7), RequestId(9), Outcome::Won(Version(5)));
        assert_eq!(said(&mut out), Some(told));
        reply(&mut relays, LEADER, number, won(), &mut out);
        assert_eq!(said(&mut out), None);
    }

    #[test]
    fn r5_silence_and_a_link_that_broke_leave_a_swap_unknown_and_a_read_not_done() {
        let not_read = Outcome::NotDone(NotDone::NoLeader);
        for (ask, outcome) in [(swap(), Outcome::Unknown), (READ, not_read)] {
            for by_silence in [true, false] {
                let (mut relays, mut out) = relays();
                assert!(relays.pass(ClientId(7), &question(ask.clone()), LEADER));
                let (_, number) = sent(&mut relays);
                if by_silence {
                    (1..RELAY_TICKS).for_each(|_| relays.handle_tick(&mut out));
                    assert_eq!(said(&mut out), None, "too soon");
                    relays.handle_tick(&mut out);
                } else {
                    relays.handle_down(LEADER, &mut out);
                }
                assert_eq!(said(&mut out), Some((ClientId(7), RequestId(9), outcome.clone())));
                let late = Says::Outcome(Outcome::Won(Version(5)));
                reply(&mut relays, LEADER, number, late, &mut out);
                assert_eq!(said(&mut out), None, "it was given up");
            }
        }
    }

    #[test]
    fn only_so_many_are_under_way_and_none_without_a_link() {
        let (mut relays, mut out) = relays();
        for _ in 0..RELAYED_MAX {
            assert!(relays.pass(ClientId(7), &question(READ), LEADER));
        }
        assert!(!relays.pass(ClientId(7), &question(READ), LEADER));
        assert!(!relays.pass(ClientId(7), &question(Ask::Status), LEADER));
        relays.handle_down(LEADER, &mut out);
        assert_eq!(out.replies.len(), RELAYED_MAX);
        assert!(!relays.pass(ClientId(7), &question(READ), LEADER));
        assert!(relays.poll_question().is_none(), "nothing is sent on a link that broke");
    }
}
