//! The register as a broker sees it: questions to whichever voter leads, sans-IO.
//!
//! ```text
//!   read, cas ──▶ open ── poll_question ──▶ (seat, bytes) ── wire ──▶ handle_reply ──▶ poll_answer
//!                  ▲                                              │
//!                  └── "no leader", "busy": the next seat ◀───────┤
//!                      (a read also where a link broke)           │
//!                                                                 │
//!   deadline passed, or the link of a cas broke: Unknown, and what comes later is dropped (R4)
//! ```
//! Any voter will do: one that follows passes a question on, and says who leads. That one is asked
//! from then on, unless it was silent when it was last asked: the way to it alone may be cut. It
//! is silent until it says anything, or its link is made anew.
//!
//! The host keeps a link to every voter and says which are up; only those are asked. Each sending
//! has a number of its own, so a late or repeated reply never answers another sending.
//!
//! Invariants: a swap is sent a second time only after the voter that had it said that it did
//! nothing with it, so it is never carried out twice by our own doing. Each question gets one
//! answer, at the latest [`QUESTION_TIMEOUT`] after it was asked.

use std::collections::{BTreeMap, VecDeque};
use std::time::Instant;

use super::question::{Ask, Question, Reply, Says};
use super::seats::{Seat, Seats};
use crate::codec::WireError;
use crate::limits::{CLIENT_QUESTIONS_MAX, QUESTION_TIMEOUT, TICK};
use crate::register::{Answer, NotDone, Outcome, PairId, Register, RequestId, Swap};

#[derive(Debug)]
struct Open {
    request: RequestId,
    ask: Ask,
    deadline: Option<Instant>,
    /// Seats that said "no leader" or "busy" since the last pause.
    refusals: u32,
    state: State,
}

#[derive(Debug)]
enum State {
    /// To be sent, not before this.
    Waiting(Option<Instant>),
    /// Sent to this seat.
    Asked(Seat),
}

/// Asks the voters.
#[derive(Debug)]
pub struct Client {
    seats: Seats,
    leader: Seat,
    /// Whose link is up: one bit a seat.
    up: u8,
    /// Who did not answer in time: one bit a seat.
    silent: u8,
    next_sending: u64,
    /// By the number of their last sending.
    open: BTreeMap<u64, Open>,
    answers: VecDeque<Answer>,
}

impl Client {
    /// A client of so many voters. `first_sending` is a number that no earlier life of this client
    /// has come near: chance will do.
    #[must_use]
    pub const fn new(seats: Seats, first_sending: u64) -> Self {
        Self {
            seats,
            leader: Seat(1),
            up: 0,
            silent: 0,
            next_sending: first_sending,
            open: BTreeMap::new(),
            answers: VecDeque::new(),
        }
    }

    /// The voter that was last known to lead.
    #[must_use]
    pub const fn leader(&self) -> Seat {
        self.leader
    }

    /// When it wants to be told the time next. Questions that were just asked want it at once.
    #[must_use]
    pub fn poll_timeout(&self, now: Instant) -> Option<Instant> {
        let at = |open: &Open| match open.state {
            State::Waiting(from) if self.up != 0 => from.unwrap_or(now),
            State::Waiting(_) | State::Asked(_) => open.deadline.unwrap_or(now),
        };
        self.open.values().map(at).min()
    }

    /// The time: questions whose time is over are given up.
    pub fn handle_time(&mut self, now: Instant) {
        for open in self.open.values_mut() {
            open.deadline.get_or_insert(now + QUESTION_TIMEOUT);
        }
        let over = |open: &Open| open.deadline.is_some_and(|deadline| deadline <= now);
        let late: Vec<u64> =
            self.open.iter().filter(|(_, open)| over(open)).map(|(number, _)| *number).collect();
        for number in late {
            let open = self.open.remove(&number).expect("just found");
            let outcome = match open.state {
                // Not with any voter now: each that had it has said that it did nothing.
                State::Waiting(_) => Outcome::NotDone(NotDone::NoLeader),
                State::Asked(seat) => {
                    self.silent |= seat.bit();
                    self.leader = self.after(seat);
                    Outcome::Unknown
                }
            };
            self.answers.push_back(Answer { request: open.request, outcome });
        }
    }

    /// The next question, and the voter it is for.
    pub fn poll_question(&mut self, now: Instant) -> Option<(Seat, Vec<u8>)> {
        let seat = self.next_up(self.leader)?;
        let due = |open: &Open| match open.state {
            State::Waiting(from) => from.is_none_or(|from| from <= now),
            State::Asked(_) => false,
        };
        let number = *self.open.iter().find(|(_, open)| due(open))?.0;
        let mut open = self.open.remove(&number).expect("just found");
        open.deadline.get_or_insert(now + QUESTION_TIMEOUT);
        open.state = State::Asked(seat);
        let sending = self.next_sending;
        self.next_sending += 1;
        let bytes = Question { request: RequestId(sending), ask: open.ask.clone() }.encode();
        self.open.insert(sending, open);
        Some((seat, bytes))
    }

    /// What a voter says.
    ///
    /// # Errors
    /// It is no reply. The host drops the connection.
    pub fn handle_reply(
        &mut self,
        now: Instant,
        from: Seat,
        bytes: &[u8],
    ) -> Result<(), WireError> {
        let reply = Reply::decode(bytes)?;
        self.silent &= !from.bit();
        let Says::Outcome(outcome) = reply.says else { return Ok(()) };
        let number = reply.request.0;
        // R4: only the reply to the sending that is open now, from whom it was sent to.
        let asked = |open: &Open| matches!(open.state, State::Asked(seat) if seat == from);
        if !self.open.get(&number).is_some_and(asked) {
            return Ok(());
        }
        let is_reached = |seat: &Seat| (self.up & !self.silent) & seat.bit() != 0;
        let told = reply.leader.filter(|seat| self.seats.has(*seat) && is_reached(seat));
        match outcome {
            Outcome::NotDone(NotDone::NoLeader | NotDone::Busy) => {
                self.leader = told.filter(|seat| *seat != from).unwrap_or(self.after(from));
                self.ask_again(now, number);
            }
            Outcome::NotDone(NotDone::Full)
            | Outcome::Stands(_)
            | Outcome::Won(_)
            | Outcome::Lost(_)
            | Outcome::Unknown => {
                // Who could not say what came of it is not asked first again.
                let same = if outcome == Outcome::Unknown { self.after(from) } else { from };
                self.leader = told.unwrap_or(same);
                let open = self.open.remove(&number).expect("just found");
                self.answers.push_back(Answer { request: open.request, outcome });
            }
        }
        Ok(())
    }

    /// The link to a voter stands.
    pub const fn handle_up(&mut self, seat: Seat) {
        self.up |= seat.bit();
        self.silent &= !seat.bit();
    }

    /// The link to a voter broke: whatever it was asked has no reply.
    pub fn handle_down(&mut self, now: Instant, seat: Seat) {
        let asked = |open: &Open| matches!(open.state, State::Asked(of) if of == seat);
        let lost: Vec<u64> =
            self.open.iter().filter(|(_, open)| asked(open)).map(|(number, _)| *number).collect();
        self.up &= !seat.bit();
        for number in lost {
            match self.open[&number].ask {
                Ask::Read(_) | Ask::Status => self.ask_again(now, number),
                // It may have arrived before the link broke.
                Ask::Cas(_) | Ask::Replace(_) => {
                    let open = self.open.remove(&number).expect("just found");
                    let outcome = Outcome::Unknown;
                    self.answers.push_back(Answer { request: open.request, outcome });
                }
            }
        }
    }

    /// To another seat, at once; after a round of all of them, after a pause.
    fn ask_again(&mut self, now: Instant, number: u64) {
        let seats = u32::from(self.seats.count());
        let open = self.open.get_mut(&number).expect("it is open");
        open.refusals += 1;
        let pause = open.refusals.is_multiple_of(seats);
        open.state = State::Waiting(pause.then(|| now + TICK));
    }

    /// This seat, or the first after it whose link is up.
    fn next_up(&self, from: Seat) -> Option<Seat> {
        let seats = self.seats.count();
        let around = (0..seats).map(|step| Seat((from.0 - 1 + step) % seats + 1));
        around.into_iter().find(|seat| self.up & seat.bit() != 0)
    }

    const fn after(&self, seat: Seat) -> Seat {
        Seat(seat.0 % self.seats.count() + 1)
    }

    fn ask(&mut self, request: RequestId, ask: Ask) {
        if self.open.len() >= CLIENT_QUESTIONS_MAX {
            let outcome = Outcome::NotDone(NotDone::Busy);
            self.answers.push_back(Answer { request, outcome });
            return;
        }
        let open = Open { request, ask, deadline: None, refusals: 0, state: State::Waiting(None) };
        self.open.insert(self.next_sending, open);
        self.next_sending += 1;
    }
}

impl Register for Client {
    fn read(&mut self, request: RequestId, pair: PairId) {
        self.ask(request, Ask::Read(pair));
    }

    fn cas(&mut self, request: RequestId, swap: Swap) {
        self.ask(request, Ask::Cas(swap));
    }

    fn poll_answer(&mut self) -> Option<Answer> {
        self.answers.pop_front()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::register::{Held, Version};

    const PAIR: PairId = PairId([1; 16]);

    #[expect(clippy::disallowed_methods, reason = "the origin of virtual time")]
    fn client() -> (Client, Instant) {
        let mut client = Client::new(Seats::new(3).expect("three"), 100);
        (1..=3).for_each(|seat| client.handle_up(Seat(seat)));
        (client, Instant::now())
    }

    fn swap() -> Swap {
        Swap { pair: PAIR, expect: Version(4), value: vec![1] }
    }

    fn sent(client: &mut Client, now: Instant) -> (Seat, RequestId) {
        let (seat, bytes) = client.poll_question(now).expect("a question");
        assert_eq!(client.poll_question(now), None);
        (seat, Question::decode(&bytes).expect("well-formed").request)
    }

    fn reply(request: RequestId, leader: Option<u8>, outcome: Outcome) -> Vec<u8> {
        Reply { request, leader: leader.map(Seat), says: Says::Outcome(outcome) }.encode()
    }

    fn no_leader(request: RequestId, leader: Option<u8>) -> Vec<u8> {
        reply(request, leader, Outcome::NotDone(NotDone::NoLeader))
    }

    #[test]
    fn who_does_not_lead_says_who_does() {
        let (mut client, now) = client();
        client.cas(RequestId(1), swap());
        let (seat, sending) = sent(&mut client, now);
        assert_eq!(seat, Seat(1));
        client.handle_reply(now, seat, &no_leader(sending, Some(3))).expect("a reply");
        let (seat, sending) = sent(&mut client, now);
        assert_eq!(seat, Seat(3));
        let won = reply(sending, Some(3), Outcome::Won(Version(5)));
        client.handle_reply(now, seat, &won).expect("a reply");
        let answer = Answer { request: RequestId(1), outcome: Outcome::Won(Version(5)) };
        assert_eq!((client.poll_answer(), client.leader()), (Some(answer), Seat(3)));
    }

    #[test]
    fn r4_a_reply_to_an_earlier_sending_answers_nothing() {
        let (mut client, now) = client();
        client.cas(RequestId(1), swap());
        let (seat, first) = sent(&mut client, now);
        client.handle_reply(now, seat, &no_leader(first, Some(2))).expect("a reply");
        let (_, second) = sent(&mut client, now);
        assert_ne!(first, second);
        for late in [no_leader(first, Some(3)), reply(first, None, Outcome::Won(Version(5)))] {
            client.handle_reply(now, Seat(1), &late).expect("a reply");
        }
        let forged = reply(second, None, Outcome::Won(Version(5)));
        client.handle_reply(now, Seat(3), &forged).expect("a reply");
        assert_eq!((client.poll_answer(), client.poll_question(now)), (None, None));
    }

    #[test]
    fn r5_a_swap_whose_link_broke_is_unknown_and_a_read_is_asked_again() {
        let (mut client, now) = client();
        client.cas(RequestId(1), swap());
        sent(&mut client, now);
        client.read(RequestId(2), PAIR);
        sent(&mut client, now);
        client.handle_down(now, Seat(1));
        let unknown = Answer { request: RequestId(1), outcome: Outcome::Unknown };
        assert_eq!(client.poll_answer(), Some(unknown));
        let (seat, sending) = sent(&mut client, now);
        assert_eq!(seat, Seat(2));
        let stands = reply(sending, None, Outcome::Stands(Held::default()));
        client.handle_reply(now, seat, &stands).expect("a reply");
        assert_eq!(client.poll_answer().map(|a| a.request), Some(RequestId(2)));
    }

    #[test]
    fn whose_link_is_down_is_not_asked() {
        let (mut client, now) = client();
        client.handle_down(now, Seat(1));
        client.cas(RequestId(1), swap());
        assert_eq!(sent(&mut client, now).0, Seat(2));
        client.cas(RequestId(2), swap());
        (2..=3).for_each(|seat| client.handle_down(now, Seat(seat)));
        assert_eq!(client.poll_question(now), None);
        client.handle_up(Seat(3));
        assert_eq!(sent(&mut client, now).0, Seat(3));
    }

    #[test]
    fn who_was_silent_is_not_asked_on_anothers_word_until_it_speaks() {
        for by_link in [true, false] {
            let (mut client, now) = client();
            client.cas(RequestId(1), swap());
            let (seat, silent) = sent(&mut client, now);
            assert_eq!(seat, Seat(1));
            client.handle_time(now + QUESTION_TIMEOUT);
            let unknown = Answer { request: RequestId(1), outcome: Outcome::Unknown };
            assert_eq!(client.poll_answer(), Some(unknown));
            let ask = |client: &mut Client, of: Seat| {
                client.read(RequestId(2), PAIR);
                let (seat, sending) = sent(client, now);
                assert_eq!(seat, of);
                let stands = reply(sending, Some(1), Outcome::Stands(Held::default()));
                client.handle_reply(now, seat, &stands).expect("a reply");
                assert_eq!(client.poll_answer().map(|answer| answer.request), Some(RequestId(2)));
            };
            // Another one passes it on to the first, which leads.
            ask(&mut client, Seat(2));
            ask(&mut client, Seat(2));
            if by_link {
                client.handle_down(now, Seat(1));
                client.handle_up(Seat(1));
            } else {
                let late = reply(silent, Some(1), Outcome::Won(Version(5)));
                client.handle_reply(now, Seat(1), &late).expect("a reply");
                assert_eq!(client.poll_answer(), None, "R4");
            }
            ask(&mut client, Seat(2));
            ask(&mut client, Seat(1));
        }
    }

    #[test]
    fn r5_silence_is_unknown_and_refusal_all_around_is_not_done() {
        let (mut client, now) = client();
        client.cas(RequestId(1), swap());
        sent(&mut client, now);
        client.handle_time(now + QUESTION_TIMEOUT);
        let unknown = Answer { request: RequestId(1), outcome: Outcome::Unknown };
        assert_eq!(client.poll_answer(), Some(unknown));
        client.cas(RequestId(2), swap());
        for _ in 0..3 {
            let (seat, sending) = sent(&mut client, now);
            client.handle_reply(now, seat, &no_leader(sending, None)).expect("a reply");
        }
        assert_eq!(client.poll_question(now), None, "a pause after each round");
        assert_eq!(client.poll_timeout(now), Some(now + TICK));
        client.handle_time(now + QUESTION_TIMEOUT);
        let none = Outcome::NotDone(NotDone::NoLeader);
        let answer = Answer { request: RequestId(2), outcome: none };
        assert_eq!(client.poll_answer(), Some(answer));
    }
}
