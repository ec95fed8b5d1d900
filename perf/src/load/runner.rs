//! One thread of a load: its ring, its connections, and the clock that it keeps.
//!
//! ```text
//!   turn:  send what is due ─▶ hand bytes to the ring ─▶ wait ─▶ hear ─▶ who was held up may send
//!                                                         |
//!          due later than SPIN_NS: block until SPIN_NS before ┐
//!          due sooner:             poll the ring              ├ so a send is late by a clock read,
//!          due within PAUSE_NS:    watch the clock            ┘ not by a timer
//!
//!   producer   due (in the heap, by intended time) ─▶ sent ─▶ due ...
//!                  └─ no room, no credit ─▶ held up ◀─┘ no room for another
//!                                              └─ answer, credit ─▶ due
//!   consumer   gives credit back as messages come, or as a rate allows, a little every PACE
//! ```
//! Producers are served in the order of intended times, so one that was held up catches up without
//! pushing others back. Whoever has no room for another message is in nobody's way until its answer
//! comes: a timer for what can't be sent would be set between the request and the answer, where the
//! floors' client sets none, and on a virtual machine that takes longer than the answer's way.
//!
//! Invariants: a schedule moves on when its message is sent or given up, never because of an
//! answer; nothing is allocated on the way of a message but by the engine for received ones; a
//! thread ends within the patience of the plan after the last message is due.
//!
//! Failure: the thread's [`LoadError`]; its connections are cut.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::num::NonZeroU64;
use std::sync::atomic::Ordering;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use net::{Completion, Engine, EngineWanted, Ring, RingConfig, RingError};

use super::peer::{Heard, Held, InFlight, LinkPlan, LinkRole, Peer, PeerPlan};
use super::stamp::{Stamp, Template};
use super::{Length, Links, LoadError, LoadPlan, Origin, Share, Shared, Word, clock, nanos};
use crate::block::{Ended, Recorder};
use crate::machine;
use crate::schedule::{Schedule, Share as Part};
use crate::stats::Chance;

/// So long before a message is due the thread stops sleeping: a timer's wake-up is late by tens of
/// microseconds, on a virtual machine more.
const SPIN_NS: u64 = 60_000;

/// So long before, it no longer enters the kernel.
const PAUSE_NS: u64 = 2_000;

/// No wait is longer: heartbeats, the end and the abort are looked at this often.
const TICK: Duration = Duration::from_millis(50);

/// Consumers with a rate are given credit this often.
const PACE: Duration = Duration::from_millis(2);

/// What a rate allowed and nobody took is allowed for so long.
const PACE_KEPT_S: f64 = 0.1;

/// What was due in the planned stretch may still be sent for so long after it.
const CATCH_UP: Duration = Duration::from_secs(1);

/// A goodbye that takes longer is left out.
const GOODBYE: Duration = Duration::from_millis(500);

/// Runs one thread of the plan to its end.
pub(super) fn run(
    plan: &LoadPlan,
    number: u32,
    shared: &Shared,
    to_leader: &mpsc::Sender<Word>,
    started: &mpsc::Receiver<Origin>,
) -> Result<Share, LoadError> {
    if !plan.pin.is_empty() {
        let cpu = plan.pin[number as usize % plan.pin.len()];
        net::cpu::pin_current_thread(cpu).map_err(LoadError::Thread)?;
    }
    // Refused only where timers cannot be set at all; then sends are later, and the lag says so.
    let _ = rustix::thread::set_current_timer_slack(NonZeroU64::new(1));
    let mut runner = Runner::new(plan, number, shared)?;
    runner.make_ready(plan.patience)?;
    let _ = to_leader.send(Word::Ready);
    let Ok(origin) = started.recv() else { return Err(LoadError::Stopped) };
    runner.origin = origin;
    runner.go()
}

/// One who sends.
struct Producer {
    peer: usize,
    /// Its link, in the order of the peer's plan.
    link: usize,
    /// None: a closed loop.
    schedule: Option<Schedule>,
    /// When the next message is due; in a closed loop, at once.
    next_ns: u64,
    /// Of a load by count: messages of the block that are still to be sent.
    left: Option<u64>,
    in_flight: u32,
    /// Not in the heap: waits for an answer or credit.
    held_up: bool,
    /// When it could last go on after it was held up.
    woken_ns: u64,
    over: bool,
}

/// What a rate allows the consumers of a thread.
#[derive(Debug, Default)]
struct Paced {
    /// Credit given so far.
    given: u64,
    /// Who is given first.
    next: usize,
}

struct Runner<'a> {
    plan: &'a LoadPlan,
    shared: &'a Shared,
    ring: Ring,
    peers: Vec<Peer>,
    /// Peers by the slot of their socket.
    by_slot: Vec<Option<usize>>,
    producers: Vec<Producer>,
    template: Template,
    due: BinaryHeap<Reverse<(u64, u32)>>,
    completions: Vec<Completion>,
    heard: Vec<Heard>,
    origin: Origin,
    produced: Recorder,
    consumed: Recorder,
    /// The last message that came to each consumer, where they are compared.
    last: Vec<Option<u64>>,
    paced: Paced,
    /// Messages under way of all producers here.
    under_way: u64,
    producers_over: usize,
    told_over: bool,
    /// Since when we wait for a word of the peer: its last one, or the first thing that wants one.
    waits_since_ns: u64,
    cpu_at_start: Option<u64>,
    spin_ns: u64,
    next_tick_ns: u64,
    number: u64,
}

impl<'a> Runner<'a> {
    fn new(plan: &'a LoadPlan, number: u32, shared: &'a Shared) -> Result<Self, LoadError> {
        let window = plan.window();
        let engine = Engine::choose(EngineWanted::Auto).map_err(RingError::Refused)?.engine;
        let mut ring = Ring::new(RingConfig { engine, ..RingConfig::default() })?;
        let (peers, producers) = connect(plan, number, shared, &mut ring)?;
        let mut by_slot = Vec::new();
        for (at, peer) in peers.iter().enumerate() {
            let slot = peer.socket().slot();
            by_slot.resize(by_slot.len().max(slot + 1), None);
            by_slot[slot] = Some(at);
        }
        Ok(Self {
            plan,
            shared,
            ring,
            peers,
            by_slot,
            due: BinaryHeap::with_capacity(producers.len()),
            producers,
            template: Template::new(plan.size, plan.durable),
            completions: Vec::with_capacity(512),
            heard: Vec::with_capacity(512),
            origin: Origin::in_a_moment(),
            produced: Recorder::new(window, plan.rate),
            consumed: Recorder::new(window, plan.rate),
            last: vec![None; plan.consumers.total() as usize],
            paced: Paced::default(),
            under_way: 0,
            producers_over: 0,
            told_over: false,
            waits_since_ns: 0,
            cpu_at_start: None,
            spin_ns: 0,
            next_tick_ns: 0,
            number: u64::from(number) << 48,
        })
    }

    /// Until every link is up and has credit.
    fn make_ready(&mut self, patience: Duration) -> Result<(), LoadError> {
        let deadline = clock() + patience;
        loop {
            self.flush()?;
            let Some(missing) = self.peers.iter().find_map(Peer::missing) else { return Ok(()) };
            if clock() >= deadline {
                return Err(LoadError::NotReady { what: missing, after: patience });
            }
            self.check_abort()?;
            self.ring.wait(Some(TICK), &mut self.completions)?;
            self.hear(0)?;
            self.heard.clear();
        }
    }

    fn go(mut self) -> Result<Share, LoadError> {
        if self.plan.receive_rate.is_none() {
            self.peers.iter_mut().for_each(Peer::start_receiving);
        }
        for (at, producer) in self.producers.iter().enumerate() {
            self.due.push(Reverse((producer.next_ns, at as u32)));
        }
        loop {
            let now_ns = self.origin.elapsed_ns();
            self.tick(now_ns)?;
            self.give_credit(now_ns);
            self.send_due(now_ns)?;
            self.flush()?;
            if self.is_over(now_ns) {
                break;
            }
            self.wait()?;
            let now_ns = self.origin.elapsed_ns();
            self.hear(now_ns)?;
            self.answer(now_ns);
        }
        self.finish()
    }

    /// What is looked at now and then.
    fn tick(&mut self, now_ns: u64) -> Result<(), LoadError> {
        if self.cpu_at_start.is_none() && now_ns >= self.produced.window().start_ns {
            self.cpu_at_start = Some(machine::cpu_of_thread());
            self.spin_ns = 0;
        }
        if now_ns < self.next_tick_ns {
            return Ok(());
        }
        self.next_tick_ns = now_ns + nanos(TICK);
        self.check_abort()?;
        let now = clock();
        for peer in &mut self.peers {
            peer.tick(now, &mut self.heard)?;
        }
        self.answer(now_ns);
        self.give_up(now_ns);
        Ok(())
    }

    /// Gives consumers the credit that their rate allows by now.
    fn give_credit(&mut self, now_ns: u64) {
        let Some(rate) = self.plan.receive_rate else { return };
        let rate = rate / f64::from(self.plan.threads);
        let allowed = (now_ns as f64 * rate / 1e9) as u64;
        let kept = (rate * PACE_KEPT_S) as u64 + 1;
        let Paced { given, next } = &mut self.paced;
        *given = (*given).max(allowed.saturating_sub(kept));
        for _ in 0..self.peers.len() {
            *given += self.peers[*next].give_credit(allowed - *given);
            if *given == allowed {
                break;
            }
            *next = (*next + 1) % self.peers.len();
        }
    }

    fn check_abort(&self) -> Result<(), LoadError> {
        if self.shared.abort.load(Ordering::Relaxed) == 0 {
            Ok(())
        } else {
            Err(LoadError::Stopped)
        }
    }

    fn send_due(&mut self, now_ns: u64) -> Result<(), LoadError> {
        while let Some(&Reverse((due_ns, at))) = self.due.peek() {
            if due_ns > now_ns {
                break;
            }
            self.due.pop();
            self.send_one(at)?;
        }
        Ok(())
    }

    /// Sends the next message of a producer, or holds it up, or ends it.
    fn send_one(&mut self, at: u32) -> Result<(), LoadError> {
        let actual_ns = self.origin.elapsed_ns();
        let window = self.produced.window();
        let producer = &mut self.producers[at as usize];
        let intended_ns = match producer.schedule {
            Some(_) => producer.next_ns,
            None => actual_ns,
        };
        let beyond = intended_ns >= window.start_ns.saturating_add(window.planned_ns);
        if producer.over || beyond || producer.left == Some(0) {
            self.end_producer(at);
            return Ok(());
        }
        if self.under_way == 0 {
            self.waits_since_ns = self.waits_since_ns.max(intended_ns);
        }
        if producer.in_flight == self.plan.in_flight {
            producer.held_up = true;
            return Ok(());
        }
        let stamp = Stamp {
            run: self.shared.run,
            intended_ns: self.origin.monotonic_ns + intended_ns,
            actual_ns: self.origin.monotonic_ns + actual_ns,
            number: self.number,
        };
        let stamp = stamp.write();
        let parts = self.template.parts(&stamp, self.number);
        let message = InFlight { producer: at, intended_ns, actual_ns };
        if !self.peers[producer.peer].send(producer.link, &parts, message)? {
            producer.held_up = true;
            return Ok(());
        }
        self.number += 1;
        producer.in_flight += 1;
        self.under_way += 1;
        if intended_ns >= window.start_ns
            && let Some(left) = &mut producer.left
        {
            *left -= 1;
        }
        // In a closed loop a message is due when there is room for it.
        let could_ns = producer.woken_ns.max(intended_ns);
        self.produced.sent(intended_ns, could_ns, actual_ns);
        if let Some(schedule) = &mut producer.schedule {
            producer.next_ns = schedule.next_ns();
        }
        let is_last = producer.next_ns >= window.start_ns.saturating_add(window.planned_ns)
            || producer.left == Some(0);
        producer.held_up = producer.in_flight == self.plan.in_flight && !is_last;
        if !producer.held_up {
            self.due.push(Reverse((producer.next_ns, at)));
        }
        self.shared.sent.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    fn end_producer(&mut self, at: u32) {
        let producer = &mut self.producers[at as usize];
        if !producer.over {
            producer.over = true;
            self.producers_over += 1;
        }
    }

    fn flush(&mut self) -> Result<(), LoadError> {
        for peer in &mut self.peers {
            peer.flush(&mut self.ring, &mut self.heard)?;
        }
        Ok(())
    }

    /// Waits for completions, no longer than until the next message is due.
    fn wait(&mut self) -> Result<(), LoadError> {
        let tick = if self.plan.receive_rate.is_some() { PACE } else { TICK };
        let Some(&Reverse((due_ns, _))) = self.due.peek() else {
            return Ok(self.ring.wait(Some(tick), &mut self.completions)?);
        };
        let now_ns = self.origin.elapsed_ns();
        let ahead_ns = due_ns.saturating_sub(now_ns);
        if ahead_ns > SPIN_NS {
            let sleep = Duration::from_nanos(ahead_ns - SPIN_NS).min(tick);
            return Ok(self.ring.wait(Some(sleep), &mut self.completions)?);
        }
        self.watch(due_ns)
    }

    /// Looks at ring and clock, without sleeping, until something completes or a message is due.
    fn watch(&mut self, due_ns: u64) -> Result<(), LoadError> {
        // What is written goes on its way first: that is work, and all behind it is waiting.
        self.ring.wait(Some(Duration::ZERO), &mut self.completions)?;
        let began_ns = self.origin.elapsed_ns();
        let mut now_ns = began_ns;
        while self.completions.is_empty() && now_ns < due_ns {
            std::hint::spin_loop();
            if now_ns + PAUSE_NS < due_ns {
                self.ring.wait(Some(Duration::ZERO), &mut self.completions)?;
            }
            now_ns = self.origin.elapsed_ns();
        }
        self.spin_ns += now_ns - began_ns;
        Ok(())
    }

    /// Takes what the ring completed to the connections.
    fn hear(&mut self, now_ns: u64) -> Result<(), LoadError> {
        let now = clock();
        let mut completions = std::mem::take(&mut self.completions);
        for completion in completions.drain(..) {
            self.complete(completion, now)?;
        }
        self.completions = completions;
        if !self.heard.is_empty() {
            self.waits_since_ns = now_ns;
        }
        Ok(())
    }

    fn complete(&mut self, completion: Completion, now: Instant) -> Result<(), LoadError> {
        let addr = self.plan.target.addr;
        match completion {
            Completion::Received { socket, lease } => {
                let at = self.by_slot[socket.slot()];
                let bytes = self.ring.bytes(&lease);
                let outcome = match at {
                    Some(at) => self.peers[at].received(now, bytes, &mut self.heard),
                    None => Ok(()),
                };
                self.ring.release(lease);
                outcome
            }
            Completion::Sent { socket, buf, result } => {
                let sent = result.map_err(|error| LoadError::Unreachable { addr, error });
                if let Some(at) = self.by_slot[socket.slot()] {
                    self.peers[at].sent(buf);
                }
                // A break that is seen while sending is told by the receive, with the reason.
                sent
            }
            Completion::Connected { result, .. } => {
                result.map_err(|error| LoadError::Unreachable { addr, error })
            }
            Completion::ReceiveEnded { socket, result } => {
                result.map_err(|error| LoadError::Unreachable { addr, error })?;
                match self.by_slot[socket.slot()] {
                    Some(at) => self.peers[at].ended(now, &mut self.heard),
                    None => Ok(()),
                }
            }
            Completion::Closed { socket } => {
                self.by_slot[socket.slot()] = None;
                Ok(())
            }
            Completion::Accepted { .. }
            | Completion::AcceptFailed { .. }
            | Completion::ListenerClosed { .. }
            | Completion::HandedOver { .. }
            | Completion::Disk { .. } => {
                unreachable!("a client keeps its sockets, and neither listens nor writes files")
            }
        }
    }

    /// Books what was heard.
    fn answer(&mut self, now_ns: u64) {
        let (mut answered, mut accepted_count, mut received, mut worst_ns) = (0, 0, 0, 0);
        let mut heard = std::mem::take(&mut self.heard);
        for heard in heard.drain(..) {
            match heard {
                Heard::Answered { message, accepted } => {
                    let InFlight { producer, intended_ns, actual_ns } = message;
                    if accepted {
                        accepted_count += 1;
                        self.produced.completed(intended_ns, actual_ns, now_ns);
                    } else {
                        self.produced.refused(intended_ns, now_ns);
                    }
                    answered += 1;
                    worst_ns = worst_ns.max(now_ns.saturating_sub(intended_ns));
                    self.under_way -= 1;
                    self.producers[producer as usize].in_flight -= 1;
                    self.wake(producer, now_ns);
                }
                Heard::Woken { producer } => self.wake(producer, now_ns),
                Heard::Received { consumer, message } => {
                    received += u64::from(self.receive(consumer, &message, now_ns));
                }
            }
        }
        self.heard = heard;
        if answered + received > 0 {
            self.shared.answered.fetch_add(answered, Ordering::Relaxed);
            self.shared.accepted.fetch_add(accepted_count, Ordering::Relaxed);
            self.shared.received.fetch_add(received, Ordering::Relaxed);
            self.shared.worst_ns.fetch_max(worst_ns, Ordering::Relaxed);
        }
    }

    fn wake(&mut self, at: u32, now_ns: u64) {
        let producer = &mut self.producers[at as usize];
        if producer.held_up {
            producer.held_up = false;
            producer.woken_ns = now_ns;
            self.due.push(Reverse((producer.next_ns, at)));
        }
    }

    /// Books a message that came; whether it is one of those that are counted.
    fn receive(&mut self, consumer: u32, message: &[u8], now_ns: u64) -> bool {
        let stamp = Stamp::read(message, self.origin.monotonic_ns + now_ns);
        if self.plan.checks && !self.is_as_sent(consumer, message, stamp.as_ref()) {
            self.shared.wrong.fetch_add(1, Ordering::Relaxed);
        }
        if self.plan.producers.total() == 0 {
            let age = |ns: u64| (self.origin.monotonic_ns + now_ns).saturating_sub(ns);
            let ages = stamp.map(|stamp| (age(stamp.intended_ns), age(stamp.actual_ns)));
            self.consumed.arrived(now_ns, ages);
            return true;
        }
        // What was in the queue before is taken out of the way.
        let Some(stamp) = stamp.filter(|stamp| stamp.run == self.shared.run) else { return false };
        let offset = |ns: u64| ns.saturating_sub(self.origin.monotonic_ns);
        self.consumed.received(offset(stamp.intended_ns), offset(stamp.actual_ns), now_ns);
        true
    }

    /// Whether a message is whole, and behind the last one that came to its consumer.
    fn is_as_sent(&mut self, consumer: u32, message: &[u8], stamp: Option<&Stamp>) -> bool {
        let Some(stamp) = stamp else { return false };
        let last = self.last[consumer as usize].replace(stamp.number);
        last.is_none_or(|last| last < stamp.number) && self.template.is_whole(message, stamp)
    }

    /// Ends what takes too long once nothing more is due.
    fn give_up(&mut self, now_ns: u64) {
        let window = self.produced.window();
        let end_ns = window.start_ns.saturating_add(window.planned_ns);
        let silent = now_ns.saturating_sub(self.waits_since_ns) > nanos(self.plan.patience);
        let waits = || self.under_way > 0 || self.producers.iter().any(|one| one.held_up);
        let too_late = match self.plan.length {
            Length::For(_) => now_ns > end_ns.saturating_add(nanos(CATCH_UP)),
            Length::Count(_) => silent && waits(),
        };
        if too_late {
            for at in 0..self.producers.len() {
                self.give_up_sending(at, end_ns, now_ns);
            }
        }
    }

    /// Books what a producer should have sent and did not.
    fn give_up_sending(&mut self, at: usize, end_ns: u64, now_ns: u64) {
        let producer = &mut self.producers[at];
        if producer.over {
            return;
        }
        if let Some(schedule) = &mut producer.schedule {
            // A load by count ends with what was due until now.
            while producer.next_ns < end_ns.min(now_ns) && producer.left != Some(0) {
                self.produced.unsent(producer.next_ns, now_ns);
                producer.next_ns = schedule.next_ns();
                producer.left = producer.left.map(|left| left - 1);
            }
        }
        self.end_producer(at as u32);
    }

    fn is_over(&mut self, now_ns: u64) -> bool {
        let window = self.produced.window();
        let end_ns = window.start_ns.saturating_add(window.planned_ns);
        let patience = nanos(self.plan.patience);
        let since_ns = match self.plan.length {
            Length::For(_) => self.waits_since_ns.max(end_ns),
            Length::Count(_) => self.waits_since_ns,
        };
        let patient = now_ns.saturating_sub(since_ns) <= patience;
        if self.producers_over < self.producers.len() || (self.under_way > 0 && patient) {
            return false;
        }
        if !self.told_over {
            self.told_over = true;
            self.shared.producers_over.fetch_add(self.producers.len() as u64, Ordering::Relaxed);
        }
        if self.plan.consumers.total() == 0 {
            return true;
        }
        let received = self.shared.received.load(Ordering::Relaxed);
        if self.plan.producers.total() == 0 {
            return match self.plan.length {
                Length::For(_) => now_ns >= end_ns,
                Length::Count(count) => received >= count || !patient,
            };
        }
        let all_sent = self.shared.producers_over.load(Ordering::Relaxed)
            == u64::from(self.plan.producers.total());
        all_sent && (received >= self.shared.accepted.load(Ordering::Relaxed) || !patient)
    }

    fn finish(mut self) -> Result<Share, LoadError> {
        let at_ns = self.origin.elapsed_ns();
        let cpu_ns = machine::cpu_of_thread();
        for peer in &mut self.peers {
            for message in peer.unanswered() {
                self.produced.lost(message.intended_ns, at_ns);
            }
            peer.settle_held();
            peer.close();
        }
        let deadline = clock() + GOODBYE;
        while clock() < deadline && !self.peers.iter().all(Peer::is_closed) {
            // The block is done: a peer that does not say goodbye well does not change it.
            let turn = self.flush().and_then(|()| {
                self.ring.wait(Some(TICK), &mut self.completions)?;
                self.hear(at_ns)
            });
            if turn.is_err() {
                break;
            }
            self.heard.clear();
        }
        let ended = Ended {
            at_ns,
            cpu_ns: cpu_ns - self.cpu_at_start.unwrap_or(cpu_ns),
            spin_ns: self.spin_ns,
        };
        Ok(Share { produced: self.produced, consumed: self.consumed, ended })
    }
}

/// Connects this thread's part of the plan.
fn connect(
    plan: &LoadPlan,
    number: u32,
    shared: &Shared,
    ring: &mut Ring,
) -> Result<(Vec<Peer>, Vec<Producer>), LoadError> {
    let (mut peers, mut producers) = (Vec::new(), Vec::new());
    let ours = |connection: &u32| connection % plan.threads == number;
    let address = |link: u32| plan.addresses[link as usize % plan.addresses.len()].clone();
    let name = |kind: &str, connection: u32| {
        format!("laelaps-perf-{:08x}-{kind}-{connection}", shared.run)
    };
    for connection in (0..plan.producers.connections).filter(ours) {
        let mut links = Vec::new();
        for link in 0..plan.producers.each {
            let part =
                Part { index: connection * plan.producers.each + link, of: plan.producers.total() };
            let role = LinkRole::Producer(producers.len() as u32);
            links.push(LinkPlan { address: address(part.index), role });
            producers.push(Producer::new(plan, peers.len(), link as usize, part));
        }
        let in_flight_max = plan.in_flight as usize * links.len();
        let container = name("p", connection);
        let held = Held::default();
        let peer = PeerPlan { target: &plan.target, container, links, in_flight_max, held };
        peers.push(Peer::connect(ring, peer)?);
    }
    for connection in (0..plan.consumers.connections).filter(ours) {
        // One link alone can be exact; with several, which of them gets how many is not known.
        let left = match plan.length {
            Length::Count(count)
                if plan.consumers.total() == 1 && plan.producers == Links::NONE =>
            {
                count
            }
            Length::Count(_) | Length::For(_) => u64::MAX,
        };
        let first = connection * plan.consumers.each;
        let role = |consumer| {
            let is_paced = plan.receive_rate.is_some();
            LinkRole::Consumer { consumer, credit: plan.credit, left, is_paced }
        };
        let links = (first..first + plan.consumers.each)
            .map(|link| LinkPlan { address: address(link), role: role(link) })
            .collect();
        let container = name("c", connection);
        let chance = plan.seed ^ u64::from(connection) << 32;
        let held = Held { most: plan.held as usize, chance: Chance::new(chance), all: Vec::new() };
        let peer = PeerPlan { target: &plan.target, container, links, in_flight_max: 0, held };
        peers.push(Peer::connect(ring, peer)?);
    }
    Ok((peers, producers))
}

impl Producer {
    fn new(plan: &LoadPlan, peer: usize, link: usize, part: Part) -> Self {
        let mut schedule =
            plan.rate.map(|rate| Schedule::shared(plan.arrivals, rate, plan.seed, part));
        let next_ns = schedule.as_mut().map_or(0, Schedule::next_ns);
        let left = match plan.length {
            Length::For(_) => None,
            Length::Count(count) => {
                let (part, of) = (u64::from(part.index), u64::from(part.of));
                Some(count / of + u64::from(part < count % of))
            }
        };
        Self {
            peer,
            link,
            schedule,
            next_ns,
            left,
            in_flight: 0,
            held_up: false,
            woken_ns: 0,
            over: false,
        }
    }
}
