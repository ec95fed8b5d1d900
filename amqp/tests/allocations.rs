//! The hot path allocates nothing, and hostile bytes never more than they weigh.
//!
//! ```text
//!  every allocation ── Counting ──▶ System
//!                         └─ calls and bytes of this thread
//! ```
//!
//! Once its buffers have grown, a connection takes no memory for flows, dispositions and sending,
//! and one allocation for each message that it hands out. The counter is the one use of `unsafe`
//! outside `net`: an allocator can't be written without.
#![expect(unsafe_code, reason = "a global allocator that counts")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::hint::black_box;

use amqp::codec::{Field, Reader, Value, Writer};
use amqp::connection::{Config, Connection, Event, Side};
use amqp::definitions::{DeliveryId, Handle, Role};
use amqp::delivery::Outcome;
use amqp::frame::{self, FrameWriter};
use amqp::link::{AcceptLink, LinkId, LinkSource, LinkTarget, NewLink};
use amqp::message::{self, Header, Sections};
use amqp::performative::{
    DeliveryState, Disposition, Flow, Modified, Performative, Received, Transfer,
};

struct Counting;

thread_local! {
    /// Calls, and bytes asked for.
    static COUNT: Cell<(usize, usize)> = const { Cell::new((0, 0)) };
}

// SAFETY: every method is the system allocator's; counting touches a thread-local of plain numbers
// that needs no allocation of its own.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let (calls, bytes) = COUNT.get();
        COUNT.set((calls + 1, bytes + layout.size()));
        // SAFETY: the caller keeps the contract of `alloc`, which is the same one.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: `at` came from `alloc` above, hence from the system allocator.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Calls and bytes that `work` allocated.
fn allocated<T>(work: impl FnOnce() -> T) -> (usize, usize) {
    COUNT.set((0, 0));
    black_box(work());
    COUNT.get()
}

#[test]
fn the_counter_counts() {
    assert_eq!(allocated(|| vec![0u8; 100]), (1, 100));
}

#[test]
fn the_hot_performatives_are_read_and_written_without_allocating() {
    let mut annotations = Vec::new();
    Writer::new(&mut annotations).map_with(|map| {
        map.field(&amqp::codec::Symbol::new("x-opt-k"));
        map.field(&1u32);
    });
    let modified = Modified {
        delivery_failed: Some(true),
        message_annotations: Some(Reader::new(&annotations).map().unwrap()),
        ..Modified::default()
    };
    let received = Received { section_number: 1, section_offset: 1 << 40 };
    let states = [
        None,
        Some(DeliveryState::Accepted),
        Some(DeliveryState::Modified(modified)),
        Some(DeliveryState::Received(received)),
    ];
    let mut out = Vec::with_capacity(4096);
    for state in states {
        let transfer = Transfer {
            handle: Handle(1),
            delivery_id: Some(DeliveryId(1000)),
            delivery_tag: Some(b"12345678"),
            message_format: Some(0),
            state,
            ..Transfer::default()
        };
        let disposition = Disposition {
            role: Role::Receiver,
            first: DeliveryId(7),
            state,
            ..Disposition::default()
        };
        let flow = Flow { next_incoming_id: Some(1), link_credit: Some(1000), ..Flow::default() };
        let count = allocated(|| {
            out.clear();
            let mut frame = FrameWriter::amqp(&mut out, 1);
            frame.composite(&transfer);
            frame.payload(&[0; 1000]);
            frame.finish();
            frame::write(&mut out, 1, &Performative::Disposition(disposition));
            frame::write(&mut out, 1, &Performative::Flow(flow));
        });
        assert_eq!(count, (0, 0), "writing with {state:?}");
        let count = allocated(|| {
            let mut rest = &out[..];
            let mut frames = 0;
            while let Some((frame, consumed)) = frame::parse(rest, 1 << 20).unwrap() {
                black_box(Performative::decode(frame.body).unwrap());
                rest = &rest[consumed..];
                frames += 1;
            }
            assert_eq!((frames, rest.len()), (3, 0));
        });
        assert_eq!(count, (0, 0), "reading with {state:?}");
    }
}

#[test]
fn a_message_is_scanned_and_sent_on_without_allocating() {
    let mut message = Vec::new();
    let header = Header { durable: Some(true), ..Header::default() };
    header.write(&mut Writer::new(&mut message));
    message.extend(b"\x00\x53\x72\xc1\x05\x02\xa3\x01k\x41\x00\x53\x75\xa0\x05hello");
    let mut out = Vec::with_capacity(4096);
    let count = allocated(|| {
        let sections = Sections::scan(&message).unwrap();
        let header = Header { delivery_count: Some(1), ..sections.header_fields };
        message::write_header(&header, &mut out);
        out.extend_from_slice(&message[sections.forwarded.clone()]);
        assert!(sections.message_annotations(&message).unwrap().is_some());
    });
    assert_eq!(count, (0, 0));
}

#[test]
fn a_count_from_the_wire_is_never_allocated() {
    // 2^31 elements in ten bytes or fewer: as list, map, array, array of nulls, array of arrays.
    let bombs: [&[u8]; 5] = [
        b"\xd0\0\0\0\x04\x80\0\0\0",
        b"\xd1\0\0\0\x04\x80\0\0\0",
        b"\xf0\0\0\0\x05\x80\0\0\0\x70",
        b"\xf0\0\0\0\x05\x80\0\0\0\x40",
        b"\xf0\0\0\0\x05\x80\0\0\0\xf0",
    ];
    for bomb in bombs {
        let count = allocated(|| {
            if let Ok(Value::Array(array)) = Reader::new(bomb).value() {
                assert_eq!(array.iter().count(), 0);
            }
            black_box(Performative::decode(bomb).is_err())
        });
        assert_eq!(count, (0, 0), "{bomb:?}");
    }
}

#[test]
fn a_map_is_checked_in_memory_of_its_own_order() {
    // The keys of a map are sorted to find equal ones: 48 bytes an entry of at least two.
    let mut map = vec![0xd1];
    map.extend((10_000u32 * 6 + 4).to_be_bytes());
    map.extend(20_000u32.to_be_bytes());
    for key in 0..10_000u32 {
        map.push(0x70);
        map.extend(key.to_be_bytes());
        map.push(0x40);
    }
    let (_, bytes) = allocated(|| Reader::new(&map).map().unwrap());
    assert!(bytes < 64 * map.len(), "{bytes} bytes for a map of {}", map.len());
}

/// Two connections and what is on its way between them.
struct Wire {
    client: Connection,
    server: Connection,
    bytes: Vec<u8>,
    now: std::time::Instant,
}

impl Wire {
    /// Everything that either has to say reaches the other; `judge` hears all events.
    fn carry(&mut self, mut judge: impl FnMut(&mut Connection, Event)) {
        loop {
            self.bytes.clear();
            let mut moved = self.client.poll_transmit(&mut self.bytes);
            self.server.handle_bytes(self.now, &self.bytes);
            self.bytes.clear();
            moved |= self.server.poll_transmit(&mut self.bytes);
            self.client.handle_bytes(self.now, &self.bytes);
            for end in [&mut self.client, &mut self.server] {
                while let Some(event) = end.poll_event() {
                    judge(end, event);
                }
            }
            if !moved {
                return;
            }
        }
    }
}

/// A client with a link that sends, and one that receives.
fn wire() -> (Wire, [LinkId; 2], [LinkId; 2]) {
    #[expect(clippy::disallowed_methods, reason = "any moment does")]
    let now = std::time::Instant::now();
    let config = |name: &str| Config { container_id: name.to_owned(), ..Config::default() };
    let mut wire = Wire {
        client: Connection::new(config("client"), Side::Client, now),
        server: Connection::new(config("server"), Side::Server, now),
        bytes: Vec::with_capacity(1 << 16),
        now,
    };
    wire.carry(|end, event| {
        if let Event::Opened(_) = event {
            end.open();
        }
    });
    let session = wire.client.begin().expect("open");
    wire.carry(|_, _| {});
    let link = |name: &str| NewLink {
        name: name.to_owned(),
        source: LinkSource::at("q"),
        target: LinkTarget::at("q"),
        ..NewLink::default()
    };
    let sender = wire.client.attach_sender(session, link("to")).expect("begun");
    let receiver = wire.client.attach_receiver(session, link("from")).expect("begun");
    let mut asked = Vec::new();
    wire.carry(|end, event| {
        if let Event::AttachReceived { link, .. } = event {
            let (source, target) = (Some(LinkSource::at("q")), Some(LinkTarget::at("q")));
            end.accept_link(link, AcceptLink { source, target, ..AcceptLink::default() });
            asked.push(link);
        }
    });
    (wire, [sender, receiver], asked.try_into().expect("two links"))
}

/// Grants credit, sends so many messages each way, and settles them all.
fn round(wire: &mut Wire, client: [LinkId; 2], server: [LinkId; 2], messages: u32) -> u32 {
    wire.server.grant_credit(server[0], messages);
    wire.client.grant_credit(client[1], messages);
    wire.carry(|_, _| {});
    for _ in 0..messages {
        wire.client.send(client[0], &[b"message"], false).expect("credit");
        wire.server.send(server[1], &[b"message"], false).expect("credit");
    }
    let mut settled = 0;
    wire.carry(|end, event| {
        if let Event::Transfer { link, delivery, .. } = event {
            end.settle(link, delivery, Outcome::Accepted);
        } else if let Event::Disposition { settled: true, .. } = event {
            settled += 1;
        }
    });
    settled
}

#[test]
fn a_connection_allocates_once_for_a_message_that_it_hands_out_and_for_nothing_else() {
    let (mut wire, client, server) = wire();
    for _ in 0..50 {
        assert_eq!(round(&mut wire, client, server, 64), 128);
    }
    let (calls, _) = allocated(|| round(&mut wire, client, server, 64));
    assert_eq!(calls, 128, "64 messages each way");
    // Flows alone.
    let (calls, _) = allocated(|| {
        for credit in 1..100 {
            wire.server.grant_credit(server[0], credit);
            wire.carry(|_, event| drop(event));
        }
    });
    assert_eq!(calls, 0);
}
