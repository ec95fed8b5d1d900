//! Random frames in any order, whole, cut and bent: no panic, bounded memory, and a connection
//! that is over stays over.
//!
//! ```text
//!  seed -> a peer that says whatever comes to its mind, most of it legal by itself, on few
//!          channels and handles, so that states meet; a host that answers at random, or late
//! ```

use amqp::connection::{Config, Event, Sasl, SaslCode, Side};
use amqp::definitions::{Condition, DeliveryId, Handle, Role, SenderSettleMode};
use amqp::delivery::Outcome;
use amqp::error::Error;
use amqp::frame::{FrameWriter, ProtocolId};
use amqp::link::{AcceptLink, LinkId};
use amqp::performative::{
    Attach, Begin, Close, Disposition, End, Flow, Open, Performative, Transfer,
};
use amqp::sasl::{Mechanism, Mechanisms};
use amqp::session::SessionId;

use crate::pair::Random;
use crate::peer::{
    Peer, begin, config, credit, detach, disposition, encode, open, receiver, sender,
};

const PLAIN_TOO: Mechanisms = Mechanisms::ANONYMOUS.with(Mechanism::Plain, true);

/// Numbers around the edges that arithmetic has.
const EDGES: [u32; 10] = [0, 1, 2, 3, 5, 8, 0x7FFF_FFFF, 0x8000_0000, 0xFFFF_FFF0, 0xFFFF_FFFF];
const NAMES: [&str; 3] = ["a", "b", "c"];

/// A peer that mostly keeps to the rules, so that it gets somewhere, and now and then does not.
struct Mind {
    attached: [bool; 4],
    unfinished: [bool; 4],
    next_delivery: u32,
}

impl Mind {
    fn frame(&mut self, random: &mut Random) -> Vec<u8> {
        if random.below(100) == 0 {
            return encode(u16::from(random.below(9) == 0), &wild(random));
        }
        let handle = random.below(4);
        if random.below(60) == 0 {
            self.attached = [false; 4];
            self.unfinished = [false; 4];
            let mut bytes = encode(0, &Performative::End(End { error: None }));
            bytes.extend(encode(0, &Performative::Begin(begin())));
            return bytes;
        }
        if !self.attached[handle] {
            self.attached[handle] = true;
            let name = ["a", "b", "c", "d"][handle];
            let attach = if handle < 2 { sender(name, 0) } else { receiver(name, 0) };
            let attach = Attach { handle: Handle(handle as u32), ..attach };
            return encode(0, &Performative::Attach(attach));
        }
        if random.below(30) == 0 {
            self.attached[handle] = false;
            self.unfinished[handle] = false;
            return encode(0, &detach(handle as u32, random.below(2) == 0));
        }
        if handle < 2 {
            return self.transfer(random, handle as u32);
        }
        if random.below(3) > 0 {
            let flow = Flow { echo: random.below(4) == 0, ..credit(handle as u32, 1000) };
            let flow = Flow { incoming_window: 100_000, drain: random.below(9) == 0, ..flow };
            return encode(0, &Performative::Flow(flow));
        }
        let first = random.below(20) as u32;
        encode(
            0,
            &Performative::Disposition(Disposition {
                settled: random.below(2) == 0,
                ..disposition(Role::Receiver, first, first + random.below(30) as u32)
            }),
        )
    }

    fn transfer(&mut self, random: &mut Random, handle: u32) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut frame = FrameWriter::amqp(&mut bytes, 0);
        let tag = self.next_delivery.to_be_bytes();
        // As it should be, but for one in a hundred.
        let first = self.unfinished[handle as usize] == (random.below(100) == 0);
        let more = random.below(6) == 0;
        self.unfinished[handle as usize] = more;
        frame.composite(&Transfer {
            handle: Handle(handle),
            delivery_id: first.then_some(DeliveryId(self.next_delivery)),
            delivery_tag: first.then_some(&tag),
            settled: [None, Some(true), Some(false)][random.below(3)],
            more,
            aborted: !more && random.below(20) == 0,
            ..Transfer::default()
        });
        frame.payload(&[7; 900][..random.below(900)]);
        frame.finish();
        self.next_delivery = self.next_delivery.wrapping_add(u32::from(first));
        bytes
    }
}

/// Legal by itself, and most likely not in this state.
fn wild(random: &mut Random) -> Performative<'static> {
    let handle = Handle(random.below(5) as u32);
    match random.below(24) {
        0 => Performative::Open(open()),
        1..4 => Performative::Begin(Begin {
            remote_channel: [None, None, Some(0), Some(1)][random.below(4)],
            next_outgoing_id: random.pick(&EDGES),
            incoming_window: random.pick(&EDGES),
            ..begin()
        }),
        4..9 => {
            let name = random.pick(&NAMES);
            let attach = if random.below(2) == 0 { sender(name, 0) } else { receiver(name, 0) };
            Performative::Attach(Attach {
                handle,
                snd_settle_mode: random.pick(SenderSettleMode::ALL),
                initial_delivery_count: [None, Some(0), Some(random.pick(&EDGES))][random.below(3)],
                ..attach
            })
        }
        9..14 => Performative::Flow(Flow {
            next_incoming_id: [None, Some(random.pick(&EDGES))][random.below(2)],
            incoming_window: random.pick(&EDGES),
            handle: [None, Some(handle), Some(handle)][random.below(3)],
            delivery_count: [None, Some(random.pick(&EDGES))][random.below(2)],
            link_credit: [None, Some(random.pick(&EDGES))][random.below(2)],
            drain: random.below(4) == 0,
            echo: random.below(4) == 0,
            ..Flow::default()
        }),
        14..18 => Performative::Disposition(Disposition {
            role: random.pick(Role::ALL),
            first: DeliveryId(random.pick(&EDGES)),
            last: [None, Some(DeliveryId(random.pick(&EDGES)))][random.below(2)],
            settled: random.below(2) == 0,
            state: [None, Some(amqp::performative::DeliveryState::Released)][random.below(2)],
            ..Disposition::default()
        }),
        18..22 => detach(handle.0, random.below(2) == 0),
        22 => Performative::End(End { error: None }),
        _ => Performative::Close(Close { error: None }),
    }
}

/// A host that answers most events, now or later, and commands what it likes with any id it saw.
#[derive(Default)]
struct Host {
    links: Vec<LinkId>,
    sessions: Vec<SessionId>,
    deliveries: Vec<(LinkId, DeliveryId)>,
    closed: bool,
    counts: [usize; 3],
}

impl Host {
    fn handle(&mut self, peer: &mut Peer) {
        for event in peer.events() {
            assert!(!self.closed, "after the end: {event:?}");
            match event {
                Event::SessionBegun { session } => self.sessions.push(session),
                Event::AttachReceived { link, .. } | Event::Attached { link, .. } => {
                    peer.engine.accept_link(link, AcceptLink::default());
                    peer.engine.grant_credit(link, 500);
                    self.links.push(link);
                }
                // Answered now, or by a command, or never.
                Event::DetachReceived { link, closed, .. }
                    if !self.links.len().is_multiple_of(9) =>
                {
                    peer.engine.detach(link, closed, None);
                }
                Event::EndReceived { session, .. } if !self.links.len().is_multiple_of(9) => {
                    peer.engine.end(session, None);
                }
                Event::Transfer { link, delivery, .. } => {
                    self.counts[0] += 1;
                    self.deliveries.push((link, delivery));
                }
                Event::Disposition { .. } => self.counts[1] += 1,
                Event::Closed { .. } => self.closed = true,
                Event::Detached { .. } => self.counts[2] += 1,
                Event::SaslAnonymous => peer.engine.sasl_outcome(SaslCode::Ok),
                Event::Opened(_) => peer.engine.open(),
                _ => {}
            }
        }
    }

    fn command(&mut self, random: &mut Random, peer: &mut Peer) {
        let engine = &mut peer.engine;
        let error = (random.below(2) == 0).then(|| Error::new(Condition::InternalError, "why"));
        if !self.deliveries.is_empty() {
            for _ in 0..random.below(4) {
                let (link, delivery) = random.pick(&self.deliveries);
                engine.settle(link, delivery, Outcome::Accepted);
                engine.settle_outgoing(link, delivery);
            }
        }
        if !self.sessions.is_empty() && random.below(300) == 0 {
            engine.end(random.pick(&self.sessions), error.clone());
        }
        if self.links.is_empty() {
            return;
        }
        // Mostly one that lives; the older ones name nothing any more.
        let back = random.below(self.links.len().min(5));
        let link = self.links[self.links.len() - 1 - back];
        match random.below(12) {
            0..3 => engine.accept_link(link, AcceptLink::default()),
            3 => engine.grant_credit(link, random.pick(&EDGES)),
            5 => engine.drain(link),
            6 => engine.drained(link),
            4 | 7 | 8 => {
                if let Ok(delivery) = engine.send(link, &[&[1; 700]], random.below(2) == 0) {
                    self.deliveries.push((link, delivery));
                }
            }
            9 if random.below(9) == 0 => engine.detach(link, random.below(2) == 0, error),
            10 if random.below(4) == 0 => {
                engine.refuse_link(link, Error::new(Condition::NotFound, ""));
            }
            _ => {}
        }
    }
}

fn run(seed: u64) -> [usize; 3] {
    let mut random = Random::new(seed);
    let bounded = Config {
        incoming_window: random.pick(&[10, 100]),
        unsettled_incoming_max: 60,
        unsettled_outgoing_max: 60,
        max_message_size: 2000,
        reassembly_bytes_max: 4000,
        handle_max: 3,
        channel_max: 2,
        ..config()
    };
    let small = Open { max_frame_size: 512, ..open() };
    let mut peer = Peer::in_session_with(bounded, &small, &begin());
    let session = peer.engine.begin().unwrap();
    let mut host = Host::default();
    host.sessions.push(session);
    let mut mind = Mind {
        attached: [false; 4],
        unfinished: [false; 4],
        next_delivery: random.pick(&[0, 0xFFFF_FFF0]),
    };
    for _ in 0..400 {
        let mut bytes = mind.frame(&mut random);
        if random.below(1000) == 0 {
            let at = random.below(bytes.len());
            bytes[at] ^= 1 << random.below(8);
        }
        let cut = random.below(bytes.len() + 1);
        peer.say_bytes(&bytes[..cut]);
        peer.say_bytes(&bytes[cut..]);
        host.command(&mut random, &mut peer);
        if random.below(4) > 0 || !peer.engine.wants_read() {
            host.handle(&mut peer);
            assert!(peer.hears_bytes().len() < 100_000);
        }
        if peer.engine.is_finished() {
            break;
        }
    }
    host.handle(&mut peer);
    peer.engine.handle_eof(peer.now);
    host.handle(&mut peer);
    assert!(host.closed);
    host.counts
}

#[test]
fn frames_in_any_order_neither_panic_nor_leak() {
    let mut counts = [0; 3];
    for seed in 0..1000 {
        let one = run(seed);
        for (sum, count) in counts.iter_mut().zip(one) {
            *sum += count;
        }
    }
    assert!(counts.iter().all(|count| *count > 500), "transfers, outcomes, detached: {counts:?}");
}

#[test]
fn bytes_of_any_kind_do_not_panic() {
    for seed in 0..3000 {
        let mut random = Random::new(seed);
        let sasl = random.pick(&[0, 1]);
        let sasl = match sasl {
            0 => Sasl::None,
            _ => Sasl::Server { mechanisms: PLAIN_TOO, bare: true },
        };
        let mut peer = Peer::new(Config { sasl, ..config() }, Side::Server);
        peer.say_bytes(&random.pick(&[ProtocolId::Amqp, ProtocolId::Sasl]).header());
        let mut host = Host::default();
        for _ in 0..20 {
            let len = 8 + random.below(40);
            let mut bytes = vec![0, 0, 0, len as u8, 2, random.below(2) as u8, 0, 0, 0, 0x53];
            bytes.push(0x10 + random.below(0x40) as u8);
            bytes.push(random.pick(&[0xC0, 0xD0, 0x45]));
            while bytes.len() < len {
                bytes.push(random.pick(&[0, 1, 4, 8, 0x40, 0x43, 0x45, 0xA1, 0xC0, 0xE0, 0xFF]));
            }
            bytes.truncate(len);
            peer.say_bytes(&bytes);
            host.handle(&mut peer);
            peer.hears_bytes();
        }
    }
}

#[test]
fn operations_of_any_kind_do_not_panic() {
    let frames = [
        encode(0, &Performative::Attach(sender("a", 0))),
        encode(0, &Performative::Attach(receiver("b", 1))),
        encode(0, &Performative::Flow(credit(1, 9))),
        encode(0, &detach(0, true)),
        encode(0, &detach(1, false)),
        encode(0, &Performative::Disposition(disposition(Role::Receiver, 0, 9))),
        encode(0, &Performative::End(End { error: None })),
        encode(0, &Performative::Begin(begin())),
    ];
    let now = crate::peer::start();
    for seed in 0..20_000 {
        let mut random = Random::new(seed);
        let mut bytes = vec![random.below(8) as u8 & [7, 0][random.below(2)]];
        for _ in 0..random.below(60) {
            if random.below(3) == 0 {
                let body = &frames[random.below(frames.len())][8..];
                let body = &body[..body.len().min(127)];
                bytes.push(body.len() as u8);
                bytes.extend_from_slice(body);
            } else {
                bytes.push(0xC0 + random.below(64) as u8);
            }
        }
        crate::operations::drive(now, &bytes);
    }
}
