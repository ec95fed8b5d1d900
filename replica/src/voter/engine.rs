//! A voter that belongs to its ensemble: the consensus engine, its log and the registers.
//!
//! ```text
//!   letters, questions, ticks ─▶ inbox ─▶ raft ─▶ Ready ─┬─▶ a leader's messages: at once
//!        (while a write is under way)                    ├─▶ one record to the log, if there is
//!                                                        │       anything that must not be lost
//!                                                   wait ┘
//!                                written ─▶ messages that rest on it ─▶ apply ─▶ answers
//! ```
//! The engine is `raft` 0.7 (tikv/raft-rs), which does no I/O: see ADR 0009.
//!
//! Invariants:
//! * Between a `Ready` and the end of its write the engine is not touched; what comes waits,
//!   bounded.
//! * A vote, or an acknowledgement of entries, leaves only after the record that it rests on is
//!   durable.
//! * A question is answered once: a swap when its own entry (index and term) is applied, a read
//!   when a majority has confirmed the leader after the question came. Who no longer leads answers
//!   what is open with "unknown" (R5) or "no leader".
//! * A disk takes another's place by an entry of the log, through a step in which majorities of the
//!   old disks and of the new ones are needed; the second step, out of it, the engine takes by
//!   itself. What is older than that entry is dropped, so a new disk always begins with an image.
//! * A message is for one disk, not for its seat: what was meant for the one before is dropped.
//! * A leader that counts on entries which are not here any more has found a disk that lies: the
//!   voter says nothing further, and its host ends it.
//! * The engine draws its election timeouts by chance; each is replaced, before any tick, by one
//!   that follows from seed, term and role, so a run can be repeated.

use std::collections::{BTreeMap, VecDeque};

use journal::mix64;
use raft::eraftpb::{
    ConfChangeSingle, ConfChangeType, ConfChangeV2, Entry, EntryType, Message, MessageType,
};
use raft::{Config, INVALID_ID, ProgressState, RawNode, Ready, SnapshotStatus, StateRole, Storage};

use super::letter::{Body, Letter};
use super::question::{
    Ask, Question, Reply, Says, Standing, VoterStatus, decode_replacement, decode_swap,
    encode_replacement, encode_swap,
};
use super::seats::{Disks, Replacement, Seat, seat_of_id};
use super::store::Image;
use super::wal::{Identity, Recovered, Wal};
use super::{ClientId, Outputs};
use crate::canary::{Canaries, Canary};
use crate::limits::{
    APPEND_BYTES_MAX, ELECTION_TICKS, HEARTBEAT_TICKS, IMAGE_TICKS, INBOX_MAX, QUESTIONS_MAX,
    STATE_BYTES_MAX, WAL_BYTES_MAX,
};
use crate::register::{NotDone, Outcome, PairId, Registers, RequestId, Version};

/// What waits while a write is under way.
#[derive(Debug)]
enum Input {
    Message(Box<Message>),
    Question(ClientId, Question),
    Tick,
}

/// Who asked, and under which number.
#[derive(Clone, Copy, Debug)]
struct Asker {
    client: ClientId,
    request: RequestId,
}

#[derive(Debug)]
struct OpenSwap {
    term: u64,
    asker: Asker,
}

#[derive(Debug)]
struct OpenRead {
    pair: PairId,
    asker: Asker,
    /// The entry that must have been applied, once a majority has confirmed the leader.
    from: Option<u64>,
}

/// What a write that is under way was for.
#[derive(Debug)]
enum Writing {
    Ready(Box<Ready>),
    Base,
}

/// A member of the ensemble.
pub(super) struct Engine {
    raw: RawNode<super::store::Store>,
    identity: Identity,
    tag: super::seats::EnsembleTag,
    wal: Wal,
    /// Who decides, after what was applied; none on a disk that was admitted and not told yet.
    disks: Option<Disks>,
    /// A disk has another's place: the log is to begin anew from here.
    is_reseated: bool,
    registers: Registers,
    applied: u64,
    ticks: u64,
    seed: u64,
    inbox: VecDeque<Input>,
    writing: Option<Writing>,
    swaps: BTreeMap<u64, OpenSwap>,
    reads: BTreeMap<u64, OpenRead>,
    reads_asked: u64,
    has_forgotten: bool,
    canaries: Canaries,
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine").field("identity", &self.identity).finish_non_exhaustive()
    }
}

impl Engine {
    /// # Panics
    /// If the log was recovered without its ensemble, or the engine refuses what `wal` has checked.
    pub(super) fn new(recovered: Recovered, seed: u64, canaries: Canaries) -> Self {
        let Recovered { identity, store, wal } = recovered;
        let joined = identity.disks.as_ref().expect("a member knows its ensemble");
        let (tag, id) = (joined.tag(), joined.id_of(identity.seat));
        let disks = store.image.disks.clone();
        let registers = if store.image.index == 0 {
            Registers::default()
        } else {
            Registers::decode(&store.image.registers).expect("checked when it was read")
        };
        let applied = store.image.index;
        let config = Config {
            id,
            applied,
            election_tick: ELECTION_TICKS,
            heartbeat_tick: HEARTBEAT_TICKS,
            check_quorum: true,
            pre_vote: true,
            max_size_per_msg: APPEND_BYTES_MAX as u64,
            max_inflight_msgs: 16,
            max_uncommitted_size: STATE_BYTES_MAX as u64,
            max_committed_size_per_ready: STATE_BYTES_MAX as u64,
            ..Config::default()
        };
        let logger = slog::Logger::root(slog::Discard, slog::o!());
        let raw = RawNode::new(&config, store, &logger).expect("a log that was checked");
        let mut engine = Self {
            raw,
            identity,
            tag,
            wal,
            disks,
            is_reseated: false,
            registers,
            applied,
            ticks: 0,
            seed,
            inbox: VecDeque::new(),
            writing: None,
            swaps: BTreeMap::new(),
            reads: BTreeMap::new(),
            reads_asked: 0,
            has_forgotten: false,
            canaries,
        };
        engine.seed_election();
        engine
    }

    pub(super) fn identity(&self) -> &Identity {
        &self.identity
    }

    pub(super) const fn has_forgotten(&self) -> bool {
        self.has_forgotten
    }

    pub(super) fn registers(&self) -> &Registers {
        &self.registers
    }

    /// Who leads, if that is another one.
    pub(super) fn follows(&self) -> Option<Seat> {
        let leader = seat_of_id(Some(self.raw.raft.leader_id).filter(|id| *id != INVALID_ID)?);
        Some(leader).filter(|leader| *leader != self.identity.seat)
    }

    /// Every voter's disk, as far as this one knows.
    pub(super) fn disks(&self) -> Option<&Disks> {
        self.disks.as_ref().or(self.identity.disks.as_ref())
    }

    fn standing(&self) -> Standing {
        let Some(disks) = &self.disks else { return Standing::Joining };
        if disks.of(self.identity.seat) != Some(self.identity.uuid) {
            return Standing::Replaced;
        }
        if self.leads() { Standing::Leader } else { Standing::Follower }
    }

    pub(super) fn status(&self) -> VoterStatus {
        VoterStatus {
            seat: self.identity.seat,
            uuid: self.identity.uuid,
            standing: self.standing(),
            disks: self.disks().cloned(),
            term: self.raw.raft.term,
            committed: self.raw.raft.raft_log.committed,
            pairs: u16::try_from(self.registers.iter().count()).expect("bounded"),
        }
    }

    // ---- inputs --------------------------------------------------------------------------------

    pub(super) fn handle_message(&mut self, message: Box<Message>, out: &mut Outputs) {
        self.take_in(Input::Message(message), out);
    }

    pub(super) fn handle_question(
        &mut self,
        from: ClientId,
        question: Question,
        out: &mut Outputs,
    ) {
        self.take_in(Input::Question(from, question), out);
    }

    pub(super) fn handle_tick(&mut self, out: &mut Outputs) {
        // A voter whose disk hangs does not count the time: it would only stand for elections.
        if self.writing.is_none() {
            self.take_in(Input::Tick, out);
        }
    }

    /// The write that was asked for is durable.
    pub(super) fn handle_written(&mut self, out: &mut Outputs) {
        match self.writing.take() {
            Some(Writing::Ready(ready)) => self.finish(*ready, out),
            Some(Writing::Base) => {}
            // A voter that does not wait for its writes has none under way.
            None => assert!(self.canaries.has(Canary::VoteBeforeSync), "no write was under way"),
        }
        self.go_on(out);
    }

    fn take_in(&mut self, input: Input, out: &mut Outputs) {
        if self.inbox.len() < INBOX_MAX {
            self.inbox.push_back(input);
        } else if let Input::Question(client, question) = input {
            let asker = Asker { client, request: question.request };
            self.answer(asker, Outcome::NotDone(NotDone::Busy), out);
        }
        self.go_on(out);
    }

    /// Works until nothing is left, or a write is under way.
    fn go_on(&mut self, out: &mut Outputs) {
        while self.writing.is_none() && !self.has_forgotten {
            if self.raw.has_ready() {
                self.begin(out);
            } else if let Some(input) = self.inbox.pop_front() {
                self.step(input, out);
                self.seed_election();
            } else {
                return;
            }
        }
    }

    fn step(&mut self, input: Input, out: &mut Outputs) {
        match input {
            Input::Tick => {
                self.raw.tick();
                self.ticks += 1;
                if self.ticks.is_multiple_of(IMAGE_TICKS) && self.leads() {
                    self.send_images_again();
                }
            }
            Input::Message(message) if !self.is_for_us(&message) => {}
            Input::Message(message) if self.is_missing_here(&message) => self.has_forgotten = true,
            // What the engine refuses (from an older term, not from a member) is as if it were
            // lost.
            Input::Message(message) => drop(self.raw.step(*message)),
            Input::Question(client, question) => {
                let asker = Asker { client, request: question.request };
                match question.ask {
                    Ask::Read(pair) => self.ask_read(asker, pair, out),
                    Ask::Cas(swap) => self.ask_swap(asker, &encode_swap(&swap), out),
                    Ask::Replace(replacement) => self.ask_replacement(asker, &replacement, out),
                    Ask::Status => {
                        let says = Says::Status(self.status());
                        self.reply(asker, says, out);
                    }
                }
            }
        }
    }

    /// The engine waits for ever for word of an image that it sent, and a network loses some.
    fn send_images_again(&mut self) {
        let progress = self.raw.raft.prs().iter();
        let awaited = progress.filter(|(_, progress)| progress.state == ProgressState::Snapshot);
        let ids: Vec<u64> = awaited.map(|(id, _)| *id).collect();
        for id in ids {
            self.raw.report_snapshot(id, SnapshotStatus::Failure);
        }
    }

    fn ask_read(&mut self, asker: Asker, pair: PairId, out: &mut Outputs) {
        if self.canaries.has(Canary::ReadStale) {
            return self.answer(asker, Outcome::Stands(self.registers.get(pair)), out);
        }
        // Before its first entry of this term is committed a leader may not know the last of the
        // one before.
        if !self.leads() || !self.raw.raft.commit_to_current_term() {
            return self.answer(asker, Outcome::NotDone(NotDone::NoLeader), out);
        }
        if self.swaps.len() + self.reads.len() >= QUESTIONS_MAX {
            return self.answer(asker, Outcome::NotDone(NotDone::Busy), out);
        }
        self.reads_asked += 1;
        self.reads.insert(self.reads_asked, OpenRead { pair, asker, from: None });
        self.raw.read_index(self.reads_asked.to_le_bytes().to_vec());
    }

    fn ask_swap(&mut self, asker: Asker, swap: &[u8], out: &mut Outputs) {
        if !self.leads() {
            return self.answer(asker, Outcome::NotDone(NotDone::NoLeader), out);
        }
        let busy = self.swaps.len() + self.reads.len() >= QUESTIONS_MAX;
        if busy || self.raw.propose(Vec::new(), swap.to_vec()).is_err() {
            return self.answer(asker, Outcome::NotDone(NotDone::Busy), out);
        }
        let index = self.raw.raft.raft_log.last_index();
        self.swaps.insert(index, OpenSwap { term: self.raw.raft.term, asker });
    }

    fn ask_replacement(&mut self, asker: Asker, by: &Replacement, out: &mut Outputs) {
        if !self.leads() {
            return self.answer(asker, Outcome::NotDone(NotDone::NoLeader), out);
        }
        // Nobody puts another disk in his own place: he is there.
        let is_ours = by.seat == self.identity.seat;
        let next = self.disks.as_ref().filter(|_| !is_ours).and_then(|disks| disks.replaced(by));
        let change = next.map(|next| change_to(&next));
        let context = encode_replacement(by);
        // The engine takes one at a time: of a second one it makes an empty entry.
        if change.is_none_or(|change| self.raw.propose_conf_change(context, change).is_err()) {
            return self.answer(asker, Outcome::NotDone(NotDone::Busy), out);
        }
        let index = self.raw.raft.raft_log.last_index();
        self.swaps.insert(index, OpenSwap { term: self.raw.raft.term, asker });
    }

    // ---- one Ready -----------------------------------------------------------------------------

    /// Sends what may go at once and asks for the write of what must not be lost.
    fn begin(&mut self, out: &mut Outputs) {
        let mut ready = self.raw.ready();
        self.send(ready.take_messages(), out);
        let snapshot = ready.snapshot();
        let installs = snapshot.get_metadata().index > 0;
        if installs {
            let metadata = snapshot.get_metadata();
            let image = Image::read(metadata.index, metadata.term, &snapshot.data);
            let image = image.expect("checked on arrival");
            self.disks.clone_from(&image.disks);
            self.registers = Registers::decode(&image.registers).expect("checked on arrival");
            self.applied = image.index;
            self.raw.mut_store().install(image);
        }
        let store = self.raw.mut_store();
        store.append(ready.entries());
        if let Some(hard) = ready.hs() {
            store.hard = hard.clone();
        }
        if !ready.must_sync() {
            return self.finish(ready, out);
        }
        let store = self.raw.store();
        out.writes.push_back(if installs {
            self.wal.base(&self.identity, store)
        } else {
            self.wal.step(&store.hard, ready.entries())
        });
        if self.canaries.has(Canary::VoteBeforeSync) {
            return self.finish(ready, out);
        }
        self.writing = Some(Writing::Ready(Box::new(ready)));
    }

    /// Everything that rests on a Ready, once it is durable.
    fn finish(&mut self, mut ready: Ready, out: &mut Outputs) {
        self.send(ready.take_persisted_messages(), out);
        for confirmed in ready.take_read_states() {
            let number: Option<[u8; 8]> = confirmed.request_ctx.as_slice().try_into().ok();
            let open = number.and_then(|number| self.reads.get_mut(&u64::from_le_bytes(number)));
            if let Some(read) = open {
                read.from = Some(confirmed.index);
            }
        }
        let committed = ready.take_committed_entries();
        self.apply(committed, out);
        let mut light = self.raw.advance(ready);
        if let Some(commit) = light.commit_index() {
            self.raw.mut_store().hard.commit = commit;
        }
        self.send(light.take_messages(), out);
        self.apply(light.take_committed_entries(), out);
        self.raw.advance_apply();
        self.answer_reads(out);
        if !self.leads() {
            self.give_up_questions(out);
        }
        if self.wal.bytes() >= WAL_BYTES_MAX || std::mem::take(&mut self.is_reseated) {
            self.write_anew(out);
        }
        self.seed_election();
    }

    fn apply(&mut self, entries: Vec<Entry>, out: &mut Outputs) {
        for entry in entries {
            assert_eq!(entry.index, self.applied + 1, "entries are applied in order");
            self.applied = entry.index;
            let open = self.swaps.remove(&entry.index);
            // A leader's first entry is empty; nobody else writes what does not decode.
            let outcome = match entry.get_entry_type() {
                EntryType::EntryNormal if entry.data.is_empty() => Outcome::Unknown,
                EntryType::EntryNormal => {
                    let swap = decode_swap(&entry.data);
                    swap.map_or(Outcome::Unknown, |swap| self.registers.apply(swap))
                }
                EntryType::EntryConfChangeV2 => self.apply_change(&entry.context),
                EntryType::EntryConfChange => Outcome::Unknown,
            };
            let Some(open) = open else { continue };
            // Where another leader's entry stands, the one that was asked for is gone.
            let outcome = if open.term == entry.term { outcome } else { Outcome::Unknown };
            let outcome = match outcome {
                Outcome::Lost(held) if self.canaries.has(Canary::CasUnchecked) => {
                    Outcome::Won(held.version)
                }
                Outcome::Lost(_)
                | Outcome::Stands(_)
                | Outcome::Won(_)
                | Outcome::Unknown
                | Outcome::NotDone(_) => outcome,
            };
            self.answer(open.asker, outcome, out);
        }
    }

    /// A disk takes another's place, or (no words) the one before is left behind. What can't be
    /// done is done by nobody: all apply it to the same disks.
    fn apply_change(&mut self, context: &[u8]) -> Outcome {
        let disks = self.disks.as_ref().expect("entries follow an image");
        let by = decode_replacement(context).ok();
        let next = match by {
            Some(by) if self.canaries.has(Canary::ReplaceInPlace) => {
                self.disks = disks.usurped(&by);
                self.is_reseated = true;
                return Outcome::Won(Version::NONE);
            }
            Some(by) => disks.replaced(&by),
            None if context.is_empty() => disks.settled(),
            None => None,
        };
        let Some(next) = next else { return Outcome::NotDone(NotDone::Busy) };
        self.raw.apply_conf_change(&change_to(&next)).expect("it was made of the same disks");
        self.is_reseated |= next.is_changing();
        let is_over = !next.is_changing() && self.standing() == Standing::Replaced;
        self.disks = Some(next);
        if is_over && self.raw.raft.state == StateRole::Leader {
            // It led the others out of its own place.
            self.raw.raft.become_follower(self.raw.raft.term, INVALID_ID);
        }
        Outcome::Won(Version::NONE)
    }

    fn answer_reads(&mut self, out: &mut Outputs) {
        let applied = self.applied;
        let ready = |read: &OpenRead| read.from.is_some_and(|from| from <= applied);
        let numbers: Vec<u64> =
            self.reads.iter().filter(|(_, read)| ready(read)).map(|(number, _)| *number).collect();
        for number in numbers {
            let read = self.reads.remove(&number).expect("just found");
            self.answer(read.asker, Outcome::Stands(self.registers.get(read.pair)), out);
        }
    }

    fn give_up_questions(&mut self, out: &mut Outputs) {
        for (_, swap) in std::mem::take(&mut self.swaps) {
            self.answer(swap.asker, Outcome::Unknown, out);
        }
        for (_, read) in std::mem::take(&mut self.reads) {
            self.answer(read.asker, Outcome::NotDone(NotDone::NoLeader), out);
        }
    }

    /// The log has grown: it begins anew with everything that was applied as one image.
    fn write_anew(&mut self, out: &mut Outputs) {
        let index = self.applied;
        let term = self.raw.store().term(index).expect("applied entries are there");
        let disks = self.disks.clone();
        let image = Image { index, term, disks, registers: self.registers.encode() };
        let store = self.raw.mut_store();
        if image.index > store.image.index {
            store.install(image);
        }
        let write = self.wal.base(&self.identity, self.raw.store());
        out.writes.push_back(write);
        if !self.canaries.has(Canary::VoteBeforeSync) {
            self.writing = Some(Writing::Base);
        }
    }

    // ---- details -------------------------------------------------------------------------------

    /// Whether a leader counts on entries which this voter has acknowledged in this term, and which
    /// are not there.
    fn is_missing_here(&self, message: &Message) -> bool {
        message.msg_type == MessageType::MsgHeartbeat
            && message.term >= self.raw.raft.term
            && message.commit > self.raw.raft.raft_log.last_index()
    }

    /// Whether it is for this disk, not for one that was here before it; and an admitted one takes
    /// no entries before its image: it does not know who decided at the first of them.
    fn is_for_us(&self, message: &Message) -> bool {
        let begins_at_nothing = message.msg_type == MessageType::MsgAppend && message.index == 0;
        message.to == self.raw.raft.id && !(self.disks.is_none() && begins_at_nothing)
    }

    fn leads(&self) -> bool {
        self.raw.raft.state == StateRole::Leader
    }

    fn seed_election(&mut self) {
        let role = self.raw.raft.state as u64;
        let drawn = mix64(self.seed ^ mix64(self.raw.raft.term ^ (role << 56)));
        let ticks = ELECTION_TICKS as u64 + drawn % ELECTION_TICKS as u64;
        let ticks = usize::try_from(ticks).expect("a handful");
        self.raw.raft.set_randomized_election_timeout(ticks);
    }

    fn send(&self, messages: Vec<Message>, out: &mut Outputs) {
        for message in messages {
            let to = seat_of_id(message.to);
            if to == self.identity.seat {
                // A disk that is not there any more.
                continue;
            }
            let body = Body::Engine { tag: self.tag, message: Box::new(message) };
            let letter = Letter { from: self.identity.seat, to, body };
            out.letters.extend(letter.encode().map(|bytes| (to, bytes)));
        }
    }

    fn answer(&self, asker: Asker, outcome: Outcome, out: &mut Outputs) {
        self.reply(asker, Says::Outcome(outcome), out);
    }

    fn reply(&self, asker: Asker, says: Says, out: &mut Outputs) {
        let leader = Some(self.raw.raft.leader_id).filter(|id| *id != INVALID_ID).map(seat_of_id);
        let reply = Reply { request: asker.request, leader, says };
        out.replies.push_back((asker.client, reply.encode()));
    }
}

/// In the engine's words: how these disks came to be from those before.
fn change_to(disks: &Disks) -> ConfChangeV2 {
    let (incoming, outgoing) = disks.ids();
    let single = |id: &u64, kind| {
        let mut single = ConfChangeSingle { node_id: *id, ..Default::default() };
        single.set_change_type(kind);
        single
    };
    let differ = outgoing.iter().zip(&incoming).filter(|(old, new)| old != new);
    let changes: Vec<ConfChangeSingle> = differ
        .flat_map(|(old, new)| {
            let removed = single(old, ConfChangeType::RemoveNode);
            [removed, single(new, ConfChangeType::AddNode)]
        })
        .collect();
    // Two changes go through the step in which both count; none is the way out of it.
    ConfChangeV2 { changes: changes.into(), ..Default::default() }
}
