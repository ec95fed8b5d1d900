//! What one durable message costs the sans-IO shard, in user instructions.
//!
//! ```text
//!   client engine ══ frames in memory ══▶ Shard ──▶ disk in memory (answers at once)
//!                 ◀══════════════════════   ╰── the only thing that is counted
//! ```
//! `message_cost publish|life MESSAGES WINDOW` sends so many durable messages of 256 B, at most
//! WINDOW unanswered. `publish` ends with the answer, and the queue grows; in a `life` a consumer
//! takes each message off and settles it. Under `valgrind --tool=callgrind` the shard alone is
//! counted, by `--toggle-collect='*shard_turn*'`: what `Shard::handle` and `Shard::poll` do, with
//! the allocator that the product has. The client's engine, the disk and the loop are outside.
//!
//! `message_cost rooms PROFILE PROFILE MESSAGES` reads the profiles of two runs, the second with so
//! many messages more, and prints what one of these cost, by room: start and warm-up fall out.
//! `bench/message-cost` does both.
//!
//! Nothing here is timed: no clock is read, so the same binary counts the same.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::hint::black_box;
use std::time::Instant;

use amqp::connection::{Config, Connection, Event as Amqp, Sasl, Side};
use amqp::delivery::Outcome;
use amqp::link::{LinkId, LinkSource, LinkTarget, NewLink};
use amqp::message::{Header, write_header};
use bench::rooms;
use broker::{Action, ConnId, Event, Shard, ShardConfig};
use journal::{
    DiskDone, DiskOp, FileId, Format, Geometry, JournalUuid, Level, LogId, NodeSuperblock,
    Recovery, ShardId, SlotFile,
};

const PAYLOAD_BYTES: usize = 256;
const SEGMENT_BYTES: u64 = 4 << 20;
const CONN: ConnId = ConnId(1);

/// The product's.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[derive(Default)]
struct Disk {
    files: BTreeMap<FileId, Vec<u8>>,
}

impl Disk {
    fn run(&mut self, op: DiskOp) -> DiskDone {
        match op {
            DiskOp::Write { id, file, offset, buf } => {
                let offset = offset as usize;
                let bytes = self.files.entry(file).or_default();
                bytes.resize(bytes.len().max(offset + buf.len()), 0);
                bytes[offset..offset + buf.len()].copy_from_slice(buf.as_slice());
                DiskDone { id, result: Ok(buf.len() as u32), buf: Some(buf) }
            }
            DiskOp::Read { id, file, offset, mut buf } => {
                let bytes = self.files.entry(file).or_default();
                let from = (offset as usize).min(bytes.len());
                let len = buf.len().min(bytes.len() - from);
                buf.as_mut_slice()[..len].copy_from_slice(&bytes[from..from + len]);
                DiskDone { id, result: Ok(len as u32), buf: Some(buf) }
            }
            DiskOp::Prewrite { id, file, bytes } => {
                self.files.insert(file, vec![0; bytes as usize]);
                DiskDone { id, result: Ok(0), buf: None }
            }
            DiskOp::Sync { id, .. } => DiskDone { id, result: Ok(0), buf: None },
        }
    }

    fn format(&mut self) -> NodeSuperblock {
        let geometry = Geometry { segment_bytes: SEGMENT_BYTES, shards: 1 };
        let mut format = Format::new(LogId([7; 16]), JournalUuid([8; 16]), geometry);
        loop {
            while let Some(op) = format.poll_disk() {
                let done = self.run(op);
                format.handle_disk(done);
            }
            if let Some(outcome) = format.poll_outcome() {
                return outcome.expect("memory does not fail");
            }
        }
    }
}

/// One turn of the shard: the only thing that is counted.
#[inline(never)]
fn shard_turn(shard: &mut Shard, now: Instant, event: Event<'_>, out: &mut Vec<Action>) {
    shard.handle(now, event);
    while let Some(action) = shard.poll(now) {
        out.push(action);
    }
}

struct World {
    now: Instant,
    disk: Disk,
    /// Lists of actions that nobody uses.
    spare: Vec<Vec<Action>>,
    shard: Shard,
    client: Connection,
    sender: Option<LinkId>,
    answered: u64,
    received: u64,
    attached: u32,
    workload: Workload,
}

/// How far a message goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Workload {
    /// Transfer, journal, accepted.
    Publish,
    /// And delivery, disposition, the settlement in the journal.
    Life,
}

impl World {
    fn new(workload: Workload) -> Self {
        #[expect(clippy::disallowed_methods, reason = "the one reading; time stands still here")]
        let now = Instant::now();
        let mut disk = Disk::default();
        let node = disk.format();
        let slots: Vec<SlotFile> = disk
            .files
            .iter()
            .filter_map(|(file, bytes)| match file {
                FileId::Segment { slot, .. } => {
                    Some(SlotFile { slot: *slot, bytes: bytes.len() as u64 })
                }
                FileId::NodeSuperblock | FileId::ShardSuperblock(_) | FileId::Checkpoint { .. } => {
                    None
                }
            })
            .collect();
        let recovery = Recovery::new(&node, ShardId(0), &slots, journal::Config::default());
        let amqp = Config {
            container_id: "laelaps".to_owned(),
            sasl: Sasl::Server { mechanisms: amqp::sasl::Mechanisms::ANONYMOUS, bare: true },
            ..Config::default()
        };
        let config = ShardConfig {
            shard: ShardId(0),
            shards: 1,
            segment_bytes: SEGMENT_BYTES,
            level: Level::Sync,
            memory_bytes_max: 1 << 30,
            amqp,
            backup: false,
            segments_max: 64,
            disk_bound: std::time::Duration::from_secs(30),
            clock: broker::clock::WallClock { at: now, unix_ms: 0 },
            settings: std::sync::Arc::default(),
            access: broker::access::Access::default(),
            canaries: broker::canary::Canaries::default(),
        };
        let client =
            Config { container_id: "bench".to_owned(), sasl: Sasl::Anonymous, ..Config::default() };
        Self {
            now,
            disk,
            spare: Vec::new(),
            shard: Shard::new(config, recovery),
            client: Connection::new(client, Side::Client, now),
            sender: None,
            answered: 0,
            received: 0,
            attached: 0,
            workload,
        }
    }

    fn turn(&mut self, event: Event<'_>) {
        // Its room is there before, as the driver's is.
        let mut actions = self.spare.pop().unwrap_or_else(|| Vec::with_capacity(1024));
        shard_turn(&mut self.shard, self.now, event, &mut actions);
        for action in actions.drain(..) {
            match action {
                Action::Disk(op) => {
                    let done = self.disk.run(op);
                    self.turn(Event::Disk(done));
                }
                Action::Send { conn, buf } => {
                    self.client.handle_bytes(self.now, &buf);
                    self.turn(Event::Sent { conn, buf });
                    self.hear();
                }
                Action::Ready(_) | Action::PauseReceive(_) | Action::ResumeReceive(_) => {}
                Action::Close(_)
                | Action::Move { .. }
                | Action::Authenticate { .. }
                | Action::Mail { .. }
                | Action::AdminReply { .. }
                | Action::Pair(_)
                | Action::Drained
                | Action::Fatal(_) => panic!("not in this workload: {action:?}"),
            }
        }
        self.spare.push(actions);
    }

    fn hear(&mut self) {
        while let Some(event) = self.client.poll_event() {
            match event {
                Amqp::Opened(_) => {
                    self.client.begin().expect("the connection is open");
                }
                Amqp::SessionBegun { session } => {
                    let link = NewLink {
                        name: "in".to_owned(),
                        source: LinkSource::at("client"),
                        target: LinkTarget::at("orders"),
                        ..NewLink::default()
                    };
                    self.sender = self.client.attach_sender(session, link).ok();
                    if self.workload == Workload::Publish {
                        continue;
                    }
                    let link = NewLink {
                        name: "out".to_owned(),
                        source: LinkSource::at("orders"),
                        target: LinkTarget::at("client"),
                        ..NewLink::default()
                    };
                    self.client.attach_receiver(session, link).expect("the session is new");
                }
                Amqp::Attached { link, .. } => {
                    self.attached += 1;
                    if Some(link) != self.sender {
                        self.client.grant_credit(link, 1000);
                    }
                }
                Amqp::Transfer { link, delivery, .. } => {
                    self.received += 1;
                    self.client.settle(link, delivery, Outcome::Accepted);
                    if self.received.is_multiple_of(500) {
                        self.client.grant_credit(link, 1000);
                    }
                }
                Amqp::Disposition { outcome, .. } => {
                    assert_eq!(outcome, Some(Outcome::Accepted));
                    self.answered += 1;
                }
                Amqp::CreditChanged { .. } | Amqp::SendReady { .. } | Amqp::Drained { .. } => {}
                Amqp::SaslPlain(_)
                | Amqp::SaslExternal { .. }
                | Amqp::SaslScram(_)
                | Amqp::SaslAnonymous
                | Amqp::PartWanted { .. }
                | Amqp::Part { .. }
                | Amqp::Aborted { .. }
                | Amqp::AttachReceived { .. }
                | Amqp::DetachReceived { .. }
                | Amqp::Detached { .. }
                | Amqp::EndReceived { .. }
                | Amqp::Ended { .. }
                | Amqp::CloseReceived { .. }
                | Amqp::Closed { .. } => panic!("not in this workload: {event:?}"),
            }
        }
    }

    fn exchange(&mut self) {
        let mut bytes = Vec::new();
        if self.client.poll_transmit(&mut bytes) {
            self.turn(Event::Received { conn: CONN, bytes: &bytes });
        } else {
            self.now += std::time::Duration::from_millis(1);
            self.turn(Event::Timer);
        }
        self.hear();
    }
}

/// Sends so many messages, at most `window` of them unanswered.
fn run(workload: Workload, messages: u64, window: u64) -> World {
    let mut message = Vec::new();
    write_header(&Header { durable: Some(true), ..Header::default() }, &mut message);
    message.extend([0x00, 0x53, 0x75, 0xb0]);
    message.extend((PAYLOAD_BYTES as u32).to_be_bytes());
    message.extend([b'x'; PAYLOAD_BYTES]);

    let (links, deliveries) = match workload {
        Workload::Publish => (1, 0),
        Workload::Life => (2, messages),
    };
    let mut world = World::new(workload);
    world.turn(Event::Timer);
    world.turn(Event::Accepted {
        conn: CONN,
        peer: "memory".to_owned(),
        may_move: true,
        login: broker::access::LogIn::default(),
    });
    while world.attached < links {
        world.exchange();
    }
    let sender = world.sender.expect("it is attached");
    let mut sent = 0;
    while world.answered < messages || world.received < deliveries {
        while sent < messages && sent - world.answered < window && world.client.can_send(sender) {
            world.client.send(sender, &[&message], false).expect("it said so");
            sent += 1;
        }
        world.exchange();
    }
    world
}

/// What each of `messages` messages cost, by room.
fn table(few: &str, more: &str, messages: f64) -> String {
    let ((few, few_left), (more, more_left)) = (rooms::read(few), rooms::read(more));
    let mut text = String::new();
    let mut sum = (more_left - few_left) / messages;
    for room in rooms::Room::ALL {
        let cost = (more[room as usize] - few[room as usize]) / messages;
        sum += cost;
        text += &format!(" {} {cost:.0},", room.name());
    }
    format!("{sum:.0} instructions a message:{}", text.trim_end_matches(','))
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match args[..] {
        [what @ ("publish" | "life"), messages, window] => {
            let workload = if what == "publish" { Workload::Publish } else { Workload::Life };
            let (Ok(messages), Ok(window)) = (messages.parse(), window.parse()) else { usage() };
            let world = run(workload, messages, window);
            println!("{} accepted, {} received", world.answered, black_box(world.received));
        }
        ["rooms", few, more, messages] => {
            let Ok(messages) = messages.parse() else { usage() };
            let read = |path: &str| match std::fs::read_to_string(path) {
                Ok(profile) => profile,
                Err(error) => fail(&format!("{path}: {error}")),
            };
            println!("{}", table(&read(few), &read(more), messages));
        }
        _ => usage(),
    }
}

fn usage() -> ! {
    fail("usage: message_cost publish|life MESSAGES WINDOW, or rooms PROFILE PROFILE MESSAGES")
}

fn fail(what: &str) -> ! {
    eprintln!("message_cost: {what}");
    std::process::exit(2);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_workloads_come_to_their_end() {
        let world = run(Workload::Life, 40, 16);
        assert_eq!((world.answered, world.received), (40, 40));
        let world = run(Workload::Publish, 40, 1);
        assert_eq!((world.answered, world.received), (40, 0));
        assert!(!world.disk.files.is_empty());
    }
}
