//! Messages that stop half way, thousands of them, and a few that are longer than the memory: what
//! that costs the process.
//!
//! ```text
//!   memory-max 64 MiB  ◀── LAELAPS_HALF_SENT messages of 1 MiB, half of each (10,000: 5 GiB)
//!   resident            printed, and bounded; nobody is closed
//!   the newest 50       are sent to their end, and come whole; the others' connections break
//!   LAELAPS_LARGE_SENDERS at once, each with one of LAELAPS_LARGE_MIB: in; kill -9; out again,
//!                       every byte looked at
//! ```

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use amqp::connection::{Config, Connection, Event, Sasl, Side};
use amqp::delivery::Outcome;
use amqp::link::{LinkId, LinkSource, LinkTarget, NewLink};
use amqp::session::SessionId;
use bytes::Bytes;

use crate::harness::{Scratch, Start, knob};

const MEMORY_MAX: u64 = 64 << 20;
/// Beside messages: the program, a ring, batch buffers, what is unfinished (a quarter of the
/// memory) and what each connection has of its own.
const BESIDE: u64 = 96 << 20;
const MESSAGE_BYTES: usize = 1 << 20;
/// Sessions of a connection: each has one message under way.
const SESSIONS: usize = 250;
const WAIT: Duration = Duration::from_secs(60);

/// A connection that may have a message under way in each of its sessions.
pub(crate) struct Peer {
    stream: TcpStream,
    pub(crate) amqp: Connection,
    out: Vec<u8>,
    events: VecDeque<Event>,
}

impl Peer {
    pub(crate) fn connect(amqp: SocketAddr, frame_bytes: u32) -> Self {
        let stream = TcpStream::connect(amqp).expect("the broker listens");
        stream.set_read_timeout(Some(Duration::from_millis(1))).expect("a socket");
        let config = Config {
            container_id: "half".to_owned(),
            sasl: Sasl::Anonymous,
            idle_time_out: None,
            max_frame_size: frame_bytes,
            max_message_size: u64::MAX,
            gather_bytes_max: 1 << 20,
            ..Config::default()
        };
        let amqp = Connection::new(config, Side::Client, now());
        let mut peer = Self { stream, amqp, out: Vec::new(), events: VecDeque::new() };
        peer.until("open", |event| matches!(event, Event::Opened(_)));
        peer
    }

    /// Sends what there is to send, and takes what there is to take.
    fn exchange(&mut self) {
        if self.amqp.poll_timeout().is_some_and(|at| at <= now()) {
            self.amqp.handle_timeout(now());
        }
        loop {
            while self.amqp.poll_transmit(&mut self.out) {}
            self.stream.write_all(&self.out).expect("the broker reads");
            self.out.clear();
            let mut bytes = vec![0; 1 << 18];
            match self.stream.read(&mut bytes) {
                Ok(0) => panic!("the broker has closed the connection"),
                Ok(len) => self.amqp.handle_bytes(now(), &bytes[..len]),
                Err(_) => return,
            }
            while let Some(event) = self.amqp.poll_event() {
                self.events.push_back(event);
            }
        }
    }

    fn until(&mut self, what: &str, is_it: impl Fn(&Event) -> bool) -> Event {
        let by = now() + WAIT;
        loop {
            self.exchange();
            if let Some(at) = self.events.iter().position(&is_it) {
                return self.events.remove(at).expect("it is there");
            }
            assert!(now() < by, "waited in vain for {what}: {:?}", self.events);
        }
    }

    pub(crate) fn session(&mut self) -> SessionId {
        let session = self.amqp.begin().expect("a channel is free");
        self.until(
            "a session",
            |event| matches!(event, Event::SessionBegun { session: it } if *it == session),
        );
        session
    }

    pub(crate) fn link(
        &mut self,
        session: SessionId,
        queue: &str,
        name: String,
        receives: bool,
    ) -> LinkId {
        let (source, target) = if receives { (queue, "client") } else { ("client", queue) };
        let (source, target) = (LinkSource::at(source), LinkTarget::at(target));
        let link = NewLink { name, source, target, ..NewLink::default() };
        let attached = if receives {
            self.amqp.attach_receiver(session, link)
        } else {
            self.amqp.attach_sender(session, link)
        };
        let link = attached.expect("a handle is free");
        self.until(
            "an attach",
            |event| matches!(event, Event::Attached { link: it, .. } if *it == link),
        );
        link
    }

    /// Sends on at the message of this link.
    pub(crate) fn send_on(&mut self, link: LinkId, part: &Bytes, is_last: bool) {
        let by = now() + WAIT;
        while !self.amqp.send_part(link, part.clone(), is_last) {
            assert!(now() < by, "no more is wanted of the message");
            self.exchange();
        }
    }

    pub(crate) fn outcome(&mut self) -> Outcome {
        let answered = |event: &Event| matches!(event, Event::Disposition { outcome: Some(_), .. });
        let answer = self.until("an answer", answered);
        let Event::Disposition { outcome: Some(outcome), .. } = answer else {
            panic!("{answer:?}");
        };
        outcome
    }
}

#[expect(clippy::disallowed_methods, reason = "the engine is told the time")]
fn now() -> Instant {
    Instant::now()
}

/// The bytes of a message from here on: any two messages and places differ.
pub(crate) fn bytes_of(number: usize, from: usize, len: usize) -> Vec<u8> {
    (from..from + len).map(|at| (at / 3 + at / 977 * 5 + number * 29) as u8).collect()
}

/// What stands before the body.
fn head(len: usize) -> Vec<u8> {
    let mut head = b"\x00\x53\x70\xc0\x02\x01\x41\x00\x53\x75\xb0".to_vec();
    head.extend_from_slice(&u32::try_from(len).expect("less than 4 GiB").to_be_bytes());
    head
}

fn start(scratch: &Scratch, largest: u64) -> Start<'_> {
    let (data, config) = (scratch.path(), scratch.join("laelaps.toml"));
    let text = format!(
        "memory-max = \"{MEMORY_MAX}\"\nmax-message-size = \"{largest}\"\nshards = 1\n\
         segment-size = \"16 MiB\"\n"
    );
    std::fs::write(&config, text).expect("a file");
    let mut start = Start::new(data);
    start.args.extend(["--config".into(), config.to_string_lossy().into_owned()]);
    start
}

/// Begins a message of `len` bytes, and sends so many of them.
pub(crate) fn begin(peer: &mut Peer, link: LinkId, number: usize, len: usize, sent: usize) {
    let whole = (head(len).len() + len) as u64;
    let by = now() + WAIT;
    while peer.amqp.send_begin(link, &[&head(len)], whole, false).is_err() {
        assert!(now() < by, "no credit");
        peer.exchange();
    }
    peer.send_on(link, &Bytes::from(bytes_of(number, 0, sent)), false);
    peer.exchange();
}

/// Takes a message in, and looks at every byte of it.
pub(crate) fn receive(peer: &mut Peer, link: LinkId, len: usize) -> usize {
    let of_link = |event: &Event| {
        matches!(event, Event::Part { link: it, .. } | Event::Transfer { link: it, .. }
            if *it == link)
    };
    let (mut at, mut number, mut skip) = (0, None, 0);
    loop {
        let event = peer.until("a part", of_link);
        let (delivery, part, is_last) = if let Event::Part { delivery, part, is_last, .. } = event {
            (delivery, part, is_last)
        } else if let Event::Transfer { delivery, message, .. } = event {
            (delivery, message, true)
        } else {
            panic!("{event:?}");
        };
        let mut part = &part[..];
        if number.is_none() {
            let data = b"\x00\x53\x75\xb0";
            skip = part.windows(4).position(|four| four == data).expect("a body") + 8;
            part = &part[skip..];
            let is_it = |number: &usize| bytes_of(*number, 0, 64) == part[..64];
            number = (0..256).find(is_it);
        }
        let number = number.expect("it is one of ours");
        assert!(bytes_of(number, at, part.len()) == part, "byte {at} of {number} and on");
        at += part.len();
        if is_last {
            assert_eq!(at, len, "behind a head of {skip} bytes");
            peer.amqp.settle(link, delivery, Outcome::Accepted);
            peer.exchange();
            return number;
        }
    }
}

#[test]
fn thousands_that_stop_half_way_take_little_memory_and_those_that_end_come_whole() {
    let scratch = Scratch::new("half-sent");
    let broker = start(&scratch, 16 << 20).ready();
    let before = broker.memory_bytes("VmRSS");
    let count = knob("LAELAPS_HALF_SENT", 500) as usize;
    let (mut peers, mut most) = (Vec::new(), 0);
    for first in (0..count).step_by(SESSIONS) {
        let mut peer = Peer::connect(broker.amqp, 16 << 10);
        let mut links = Vec::new();
        for number in first..count.min(first + SESSIONS) {
            let session = peer.session();
            let link = peer.link(session, "half", format!("half-{number}"), false);
            begin(&mut peer, link, number % 256, MESSAGE_BYTES, MESSAGE_BYTES / 2);
            links.push((number, link));
        }
        most = most.max(broker.memory_bytes("VmRSS"));
        peers.push((peer, links));
    }
    println!(
        "{count} messages of 1 MiB half sent: {} MiB resident at most, {} MiB before",
        most >> 20,
        before >> 20
    );
    assert!(most <= MEMORY_MAX + BESIDE + count as u64 * (8 << 10), "{most} bytes resident");
    assert_eq!(broker.metric("connections"), peers.len() as u64, "nobody was closed");
    // The oldest may have stopped for too long by now.
    let (mut peer, mut links) = peers.pop().expect("there are some");
    drop(peers);
    let ended = links.len().min(50);
    let links = links.split_off(links.len() - ended);
    let numbers: Vec<usize> = links.iter().map(|(number, _)| number % 256).collect();
    for (number, link) in links {
        let rest = bytes_of(number % 256, MESSAGE_BYTES / 2, MESSAGE_BYTES / 2);
        peer.send_on(link, &Bytes::from(rest), true);
        assert_eq!(peer.outcome(), Outcome::Accepted);
    }
    drop(peer);
    broker.kill();
    let broker = start(&scratch, 16 << 20).ready();
    let mut peer = Peer::connect(broker.amqp, 1 << 20);
    let session = peer.session();
    let link = peer.link(session, "half", "all".to_owned(), true);
    peer.amqp.grant_credit(link, ended as u32 + 1);
    for number in numbers {
        assert_eq!(receive(&mut peer, link, MESSAGE_BYTES), number);
    }
    assert!(broker.stop().success());
}

/// Bytes that are sent at once.
const PIECE: usize = 512 << 10;

/// Sends one long message to its end.
fn send_long(broker: SocketAddr, number: usize, len: usize) {
    let mut peer = Peer::connect(broker, 1 << 20);
    let session = peer.session();
    let link = peer.link(session, &format!("large-{number}"), "in".to_owned(), false);
    begin(&mut peer, link, number, len, PIECE);
    let mut sent = PIECE;
    while sent < len {
        let bytes = PIECE.min(len - sent);
        let part = Bytes::from(bytes_of(number, sent, bytes));
        peer.send_on(link, &part, sent + bytes == len);
        sent += bytes;
    }
    assert_eq!(peer.outcome(), Outcome::Accepted);
}

/// And takes it.
fn receive_long(broker: SocketAddr, number: usize, len: usize) {
    let mut peer = Peer::connect(broker, 1 << 20);
    let session = peer.session();
    let link = peer.link(session, &format!("large-{number}"), "out".to_owned(), true);
    peer.amqp.grant_credit(link, 1);
    assert_eq!(receive(&mut peer, link, len), number);
}

/// Does it so many times at once; the seconds that it took.
fn at_once(count: usize, what: impl Fn(usize) + Sync) -> u64 {
    let began = now();
    std::thread::scope(|scope| {
        for number in 0..count {
            let what = &what;
            scope.spawn(move || what(number));
        }
    });
    (now() - began).as_secs()
}

#[test]
fn those_that_are_longer_than_the_memory_go_in_and_come_out_several_at_once() {
    let scratch = Scratch::new("large");
    let len = (knob("LAELAPS_LARGE_MIB", 96) << 20) as usize;
    let count = knob("LAELAPS_LARGE_SENDERS", 3) as usize;
    let largest = len as u64 + 1024;
    let broker = start(&scratch, largest).ready();
    let address = broker.amqp;
    let took = at_once(count, |number| send_long(address, number, len));
    let most = broker.memory_bytes("VmHWM");
    println!("{count} messages of {} MiB: in, {took} s, {} MiB resident", len >> 20, most >> 20);
    assert!(most <= MEMORY_MAX + BESIDE, "{most} bytes resident");
    broker.kill();
    let broker = start(&scratch, largest).ready();
    let address = broker.amqp;
    let took = at_once(count, |number| receive_long(address, number, len));
    let most = broker.memory_bytes("VmHWM");
    println!("a start, and out: {took} s, {} MiB resident", most >> 20);
    assert!(most <= MEMORY_MAX + BESIDE, "{most} bytes resident");
    assert!(broker.stop().success());
}
