//! Mail between core threads.
//!
//! ```text
//!            to 0    to 1    to 2           a box for each ordered pair: bounded, FIFO,
//!   from 0    -      box     box            one producer, one consumer
//!   from 1   box      -      box
//!   from 2   box     box      -             asleep[i]: core i is about to block, or blocks
//!
//!   sender:   (1) put the mail in the box   (2) fence   (3) asleep[to]? clear it and knock
//!   sleeper:  (a) asleep[me] = true         (b) fence   (c) any box not empty? don't block
//! ```
//!
//! No wake-up is lost. Both fences are sequentially consistent, so one comes first. If the sender's
//! comes first, (c) sees the mail of (1) and the sleeper doesn't block. If the sleeper's comes
//! first, (3) sees (a) and a knock is sent; a knock is a completion or a counter in the kernel, so
//! it ends a wait that begins after it as well as one that began before. The knock travels in the
//! sender's own ring, at the latest in the `io_uring_enter` of its next wait, which
//! [`MeshPort::wait`] makes the same call that asked for it; to or from an epoll ring it is sent at
//! once, and a wait that didn't ask the kernel leaves it for the next one. One knock is enough for
//! any number of letters: who is awake looks into every box before it sleeps.
//!
//! The tests notice a missing look or a missing knock. The order of the steps and the fences rest
//! on this argument alone: the moments between them are too short to be hit by trying (we tried).
//!
//! Invariants: letters between two ports arrive in order, once. A full box gives the letter back:
//! nobody blocks, so two cores can't wait for each other.
//!
//! Failure: a port that is gone lets its boxes fill, and senders get their letters back.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use crossbeam::queue::ArrayQueue;
use crossbeam::utils::CachePadded;

use crate::doorbell::Doorbell;
use crate::ring::{Completion, Ring, RingError};

/// A core's place in the mesh, from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct PortId(pub u16);

impl PortId {
    fn index(self) -> usize {
        usize::from(self.0)
    }
}

/// One core's end of the mesh. It is made anywhere and moves to its core's thread.
pub struct MeshPort<T> {
    id: PortId,
    shared: Arc<Shared<T>>,
    /// Receivers that were sent mail since the last wait.
    unannounced: Vec<bool>,
    /// The sender whose box is emptied first next time.
    first: usize,
}

struct Shared<T> {
    ports: usize,
    boxes: Vec<ArrayQueue<T>>,
    asleep: Vec<CachePadded<AtomicBool>>,
    bells: Vec<OnceLock<Doorbell>>,
}

/// Makes a mesh of `ports` (1 to 1,024), each pair with a box of `capacity` (at least 1) letters in
/// each direction. A port may write to itself.
///
/// # Panics
/// If a bound is not kept.
pub fn mesh<T: Send>(ports: u16, capacity: usize) -> Vec<MeshPort<T>> {
    assert!((1..=1024).contains(&ports), "a mesh has 1 to 1024 ports, not {ports}");
    assert!(capacity >= 1, "a mesh box must hold at least 1 letter");
    let count = usize::from(ports);
    let shared = Arc::new(Shared {
        ports: count,
        boxes: (0..count * count).map(|_| ArrayQueue::new(capacity)).collect(),
        asleep: (0..count).map(|_| CachePadded::new(AtomicBool::new(false))).collect(),
        bells: (0..count).map(|_| OnceLock::new()).collect(),
    });
    (0..ports)
        .map(|id| MeshPort {
            id: PortId(id),
            shared: Arc::clone(&shared),
            unannounced: vec![false; count],
            first: 0,
        })
        .collect()
}

impl<T: Send> MeshPort<T> {
    /// Its own place.
    pub fn id(&self) -> PortId {
        self.id
    }

    /// How many ports the mesh has.
    pub fn ports(&self) -> usize {
        self.shared.ports
    }

    /// Tells the others by which ring this port is woken. Once, before the first wait.
    ///
    /// # Panics
    /// If called twice.
    pub fn attach(&self, ring: &Ring) {
        let first = self.shared.bells[self.id.index()].set(ring.doorbell()).is_ok();
        assert!(first, "mesh port {} is attached already", self.id.0);
    }

    /// Puts a letter in the box of `to`; it is announced at this port's next wait.
    ///
    /// # Errors
    /// The letter, when the box is full.
    ///
    /// # Panics
    /// If there is no port `to`.
    pub fn try_send(&mut self, to: PortId, letter: T) -> Result<(), T> {
        self.shared.mailbox(self.id.index(), to.index()).push(letter)?;
        self.unannounced[to.index()] = true;
        Ok(())
    }

    /// Takes letters that came, at most `letters_max`, with their senders; those of one sender in
    /// order. No sender keeps the others out: each gives an equal share first, and the first one
    /// changes from call to call.
    pub fn drain(&mut self, letters: &mut Vec<(PortId, T)>, letters_max: usize) {
        let ports = self.shared.ports;
        let share = (letters_max / ports).max(1);
        let mut left = letters_max;
        let mut quiet = 0;
        let mut from = self.first;
        while left > 0 && quiet < ports {
            let mailbox = self.shared.mailbox(from, self.id.index());
            let before = left;
            for _ in 0..share.min(left) {
                let Some(letter) = mailbox.pop() else { break };
                let sender = u16::try_from(from).expect("a mesh has at most 1024 ports");
                letters.push((PortId(sender), letter));
                left -= 1;
            }
            quiet = if before == left { quiet + 1 } else { 0 };
            from = (from + 1) % ports;
        }
        self.first = (self.first + 1) % ports;
    }

    /// Whether letters wait to be drained.
    pub fn has_mail(&self) -> bool {
        self.shared.has_mail(self.id.index())
    }

    /// Announces what was sent, then waits on the ring like [`Ring::wait`], but doesn't block while
    /// there is mail and is woken when some comes.
    ///
    /// # Errors
    /// Those of [`Ring::wait`].
    ///
    /// # Panics
    /// If the port isn't attached.
    pub fn wait(
        &mut self,
        ring: &mut Ring,
        timeout: Option<Duration>,
        completions: &mut Vec<Completion>,
    ) -> Result<(), RingError> {
        let me = self.id.index();
        assert!(self.shared.bells[me].get().is_some(), "mesh port {me} waits unattached");
        self.announce(ring);
        if timeout == Some(Duration::ZERO) {
            return ring.wait(timeout, completions);
        }
        let timeout = if self.shared.may_sleep(me) { timeout } else { Some(Duration::ZERO) };
        let result = ring.wait(timeout, completions);
        self.shared.awake(me);
        result
    }

    fn announce(&mut self, ring: &mut Ring) {
        for (to, unannounced) in self.unannounced.iter_mut().enumerate() {
            if std::mem::take(unannounced)
                && to != self.id.index()
                && self.shared.must_knock(to)
                && let Some(bell) = self.shared.bells[to].get()
            {
                ring.knock(bell);
            }
        }
    }
}

impl<T> Shared<T> {
    /// The sleeper's side: says that it sleeps, then looks once more. `false`: there is mail.
    fn may_sleep(&self, me: usize) -> bool {
        self.asleep[me].store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        !self.has_mail(me)
    }

    fn awake(&self, me: usize) {
        self.asleep[me].store(false, Ordering::Relaxed);
    }

    /// The sender's side, after its letter is in the box: whether `to` sleeps and nobody else is
    /// waking it.
    fn must_knock(&self, to: usize) -> bool {
        fence(Ordering::SeqCst);
        let asleep = &self.asleep[to];
        asleep.load(Ordering::Relaxed) && asleep.swap(false, Ordering::Relaxed)
    }

    fn has_mail(&self, me: usize) -> bool {
        (0..self.ports).any(|from| !self.mailbox(from, me).is_empty())
    }

    fn mailbox(&self, from: usize, to: usize) -> &ArrayQueue<T> {
        assert!(to < self.ports, "the mesh has no port {to}");
        &self.boxes[from * self.ports + to]
    }
}

impl<T> fmt::Debug for MeshPort<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MeshPort").field("id", &self.id).finish_non_exhaustive()
    }
}
