//! Random commands on many sockets of one ring, under seeds: whatever happens, the books balance.
//!
//! ```text
//!   both ends of each connection live in the ring; a step is one of
//!     connect   send   start   pause   shut down   close   stop and listen again   wait
//!   checked at each completion    a send comes back once, in order, its bytes unchanged
//!                                 nothing of a socket after its Closed; Closed only if asked for
//!   checked in the end            all sends, sockets, leases and operations are back
//! ```
//!
//! Few and small buffers and a short completion queue make starving and overflowing ordinary.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::time::Duration;

use net::{Completion, Engine, ListenerId, RingConfig, SocketId};

use crate::{Core, PATIENCE, now, on};

over_both_engines! {
    the_books_balance_after_a_storm,
}

const STEPS: usize = 4000;
const SOCKETS_MAX: usize = 60;

/// A small generator (xorshift64*): the tests need no better.
struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) as usize % limit
    }
}

#[derive(Default)]
struct Book {
    /// What was sent and has not come back: its length and number.
    under_way: VecDeque<(usize, u8)>,
    ended: bool,
    closing: bool,
}

struct Storm {
    core: Core,
    dice: Dice,
    books: BTreeMap<SocketId, Book>,
    listener: Option<ListenerId>,
    addr: SocketAddr,
    /// Received, sent in full, starved: a storm that did nothing proves nothing.
    received: usize,
    delivered: usize,
}

impl Storm {
    fn any(&mut self) -> Option<SocketId> {
        if self.books.is_empty() {
            return None;
        }
        let index = self.dice.below(self.books.len());
        self.books.keys().nth(index).copied()
    }

    fn step(&mut self) {
        let choice = self.dice.below(100);
        if choice < 15 {
            if self.books.len() < SOCKETS_MAX {
                let socket = self.core.ring.connect(self.addr).unwrap();
                assert!(self.books.insert(socket, Book::default()).is_none());
            }
            return;
        }
        if choice >= 80 {
            if choice == 80 {
                self.listen_again();
            }
            self.wait(Duration::from_micros(200 * (choice as u64 - 80)));
            return;
        }
        let Some(socket) = self.any() else { return };
        let ring = &mut self.core.ring;
        match choice {
            15..40 => {
                let (bytes, number) = (1 << self.dice.below(19), self.dice.below(256) as u8);
                let book = self.books.get_mut(&socket).unwrap();
                // A send after a close fails at once, ahead of what is under way.
                if !book.closing {
                    book.under_way.push_back((bytes, number));
                    ring.send(socket, vec![number; bytes]);
                }
            }
            40..60 => ring.start_receive(socket),
            60..72 => ring.pause_receive(socket),
            72..75 => ring.shutdown_write(socket),
            _ => {
                self.books.get_mut(&socket).unwrap().closing = true;
                ring.close(socket);
            }
        }
    }

    fn listen_again(&mut self) {
        if let Some(listener) = self.listener.take() {
            self.core.ring.stop_listening(listener);
        } else {
            let (listener, addr) = self.core.listen();
            (self.listener, self.addr) = (Some(listener), addr);
        }
    }

    fn wait(&mut self, timeout: Duration) {
        self.core.turn(timeout);
        while let Some(completion) = self.core.seen.pop_front() {
            self.note(completion);
        }
    }

    fn note(&mut self, completion: Completion) {
        match completion {
            Completion::Accepted { socket, .. } => {
                assert!(self.books.insert(socket, Book::default()).is_none(), "{socket:?} again");
            }
            Completion::Connected { socket, .. } => assert!(self.books.contains_key(&socket)),
            Completion::Received { socket, lease } => {
                let book = &self.books[&socket];
                assert!(!book.ended && !book.closing, "{socket:?} received too late");
                self.received += self.core.ring.bytes(&lease).len();
                self.core.ring.release(lease);
            }
            Completion::ReceiveEnded { socket, .. } => {
                let book = self.books.get_mut(&socket).unwrap();
                assert!(!book.ended && !book.closing, "{socket:?} ended twice, or closed");
                book.ended = true;
            }
            Completion::Sent { socket, buf, result } => {
                let book = self.books.get_mut(&socket).expect("a send after its socket's Closed");
                let (bytes, number) = book.under_way.pop_front().expect("a send came twice");
                assert_eq!(buf.len(), bytes);
                assert!(buf.iter().all(|&byte| byte == number));
                self.delivered += usize::from(result.is_ok());
            }
            Completion::Closed { socket } => {
                let book = self.books.remove(&socket).expect("closed twice");
                assert!(book.closing && book.under_way.is_empty(), "{socket:?} closed early");
            }
            Completion::ListenerClosed { .. } => {}
            other => panic!("{other:?} in the storm"),
        }
    }
}

fn storm(engine: Engine, seed: u64) -> (usize, usize, u64) {
    let mut core = Core::new(RingConfig {
        entries: 8,
        completions: 16,
        completions_per_wait_max: 5,
        recv_buffers: 4,
        recv_buffer_bytes: 4096,
        ..on(engine)
    });
    let (listener, addr) = core.listen();
    let dice = Dice(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1);
    let books = BTreeMap::new();
    let (received, delivered) = (0, 0);
    let listener = Some(listener);
    let mut storm = Storm { core, dice, books, listener, addr, received, delivered };
    for _ in 0..STEPS {
        storm.step();
    }
    // Calm down: nothing new comes in, everything is closed.
    if storm.listener.is_some() {
        storm.listen_again();
    }
    let until = now() + PATIENCE;
    while !storm.books.is_empty() || storm.core.ring.stats().operations > 1 {
        assert!(now() < until, "seed {seed}: {:?} never ends", storm.core.ring.stats());
        for (socket, book) in &mut storm.books {
            book.closing = true;
            storm.core.ring.close(*socket);
        }
        storm.wait(Duration::from_millis(10));
    }
    let stats = storm.core.ring.stats();
    assert_eq!((stats.sockets, stats.leases_out), (0, 0), "seed {seed}");
    (storm.received, storm.delivered, stats.recv_starved)
}

fn the_books_balance_after_a_storm(engine: Engine) {
    let (mut received, mut delivered, mut starved) = (0, 0, 0);
    for seed in 1..=6 {
        let (bytes, sends, times) = storm(engine, seed);
        received += bytes;
        delivered += sends;
        starved += times;
    }
    assert!(received > 1 << 20, "only {received} bytes were received");
    assert!(delivered > 500, "only {delivered} sends went through");
    assert!(starved > 20, "buffers ran out only {starved} times");
}
