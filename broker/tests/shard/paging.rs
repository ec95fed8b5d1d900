//! Backlogs beyond memory: dropped, read back, in order, and the same after a crash.

use std::time::Duration;

use amqp::delivery::Outcome;
use amqp::link::LinkId;
use amqp::message::{Header, write_header};
use broker::Fatal;
use broker::admin::{AdminReply, AdminRequest};
use broker::queue::SlotState;
use journal::Level;

use crate::host::{Host, Wish, Writes, message};

/// Enough for some two hundred messages of 1,000 bytes.
const MEMORY: u64 = 256 << 10;

fn short(level: Level) -> Wish {
    Wish { level, memory_bytes_max: MEMORY, segments_max: 400, ..Wish::default() }
}

/// Messages of 1,000 bytes and a little more, each of another length.
fn fill(host: &mut Host, at: usize, sender: LinkId, count: usize) {
    let before = host.outcomes(at).len();
    for n in 0..count {
        assert!(host.send(at, sender, 1000 + n, false), "no credit for message {n}");
        // What is `async` is written after a moment.
        if n % 10 == 0 {
            host.pass(Duration::from_millis(6));
        }
    }
    host.pass(Duration::from_millis(50));
    let outcomes = host.outcomes(at);
    assert_eq!(outcomes.len(), before + count);
    assert!(outcomes.iter().all(|outcome| *outcome == Outcome::Accepted));
    let stats = host.stats(0);
    assert!(stats.memory_bytes <= stats.memory_bytes_max / 16 * 10, "{stats:?}");
}

/// The lengths of the bodies that came, whatever stands before them.
fn lengths(host: &Host, at: usize) -> Vec<usize> {
    let body = |came: &Vec<u8>| {
        let code = &message(0)[..4];
        let begin = came.windows(4).position(|four| four == code).expect("a data section");
        let (len, body) = came[begin + 4..].split_first_chunk::<4>().expect("its length");
        let is_sound = u32::from_be_bytes(*len) as usize == body.len();
        assert!(is_sound && body.iter().all(|byte| *byte == b'x'));
        body.len()
    };
    host.deliveries(at).iter().map(|(_, _, came)| body(came)).collect()
}

/// Takes everything that is in a queue; the lengths of what came.
fn drain(host: &mut Host, queue: &str) -> Vec<usize> {
    let at = host.connect(0);
    host.receiver(at, queue, 10_000);
    host.settle_all(at, Duration::from_millis(20));
    let came = lengths(host, at);
    host.lose(at);
    came
}

#[test]
fn a_backlog_of_many_times_the_memory_is_drained_in_order_after_a_crash_too() {
    for level in [Level::Sync, Level::Async] {
        let mut host = Host::new(short(level));
        let at = host.connect(0);
        let names = ["a", "b", "c"];
        let senders = names.map(|name| host.sender(at, name));
        for sender in senders {
            fill(&mut host, at, sender, 1000);
        }
        let stats = host.stats(0);
        assert!(stats.paged_messages > 2700, "{stats:?}");
        assert_eq!(drain(&mut host, "a"), (1000..2000).collect::<Vec<_>>());
        host.crash();
        let stats = host.stats(0);
        assert!(stats.memory_bytes <= MEMORY / 16 * 10 && stats.paged_messages > 1700, "{stats:?}");
        for name in ["c", "b"] {
            assert_eq!(drain(&mut host, name), (1000..2000).collect::<Vec<_>>());
        }
        let stats = host.stats(0);
        assert_eq!((stats.paged_messages, stats.paged_bytes, stats.memory_bytes), (0, 0, 0));
        assert!(stats.read_back_bytes_total > 0 && stats.paged_in_total > 1700, "{stats:?}");
        host.crash();
        assert_eq!(host.messages(), 0);
    }
}

#[test]
fn a_producer_beside_a_lagging_queue_is_never_held_back() {
    let mut host = Host::new(short(Level::Sync));
    let at = host.connect(0);
    let lagging = host.sender(at, "lagging");
    let busy = host.sender(at, "busy");
    let consumer = host.connect(0);
    host.receiver(consumer, "busy", 10_000);
    for round in 0..20 {
        fill(&mut host, at, lagging, 100);
        for n in 0..50 {
            assert!(host.send(at, busy, 500, false));
            let came = host.deliveries(consumer);
            assert_eq!(came.len(), round * 50 + n + 1, "it came at once");
            let (link, delivery, _) = came.last().expect("it came");
            host.clients[consumer].amqp.settle(*link, *delivery, Outcome::Accepted);
        }
    }
    let stats = host.stats(0);
    assert_eq!((stats.memory_pressure, host.pressure_letters), (false, 0));
    assert_eq!(stats.read_backs_total, 0, "who keeps up is served from memory");
    let expected: Vec<usize> = (0..20).flat_map(|_| 1000..1100).collect();
    assert_eq!(drain(&mut host, "lagging"), expected);
}

#[test]
fn what_is_not_durable_stays_in_memory() {
    let mut host = Host::new(short(Level::Async));
    let at = host.connect(0);
    let sender = host.sender(at, "q");
    host.writes = Writes::Held;
    for _ in 0..180 {
        assert!(host.send(at, sender, 1000, false));
    }
    host.pass(Duration::from_millis(20));
    let stats = host.stats(0);
    assert!(stats.memory_bytes > MEMORY / 16 * 10 && stats.paged_messages == 0, "{stats:?}");
    host.let_go();
    host.pass(Duration::from_millis(20));
    assert!(host.stats(0).memory_bytes <= MEMORY / 16 * 10);
    assert_eq!(drain(&mut host, "q").len(), 180);
}

#[test]
fn operators_and_the_dead_wait_for_what_is_on_the_disk() {
    let wish = Wish { memory_bytes_max: 4 * MEMORY, ..short(Level::Sync) };
    let mut host = Host::new(wish);
    let at = host.connect(0);
    let sender = host.sender(at, "q");
    let consumer = host.connect(0);
    host.receiver(consumer, "q", 500);
    fill(&mut host, at, sender, 1000);
    let request = AdminRequest::Peek { queue: "q".to_owned(), count_max: 100 };
    let asked = host.ask(0, request);
    host.settle();
    let (id, reply) = host.replies.pop().expect("answered");
    let AdminReply::Peeked(Some(shown)) = reply else { panic!("{reply:?}") };
    let shown: Vec<u64> = shown.iter().map(|peeked| peeked.sequence.0).collect();
    assert_eq!((id, shown), (asked, (0..100).collect::<Vec<_>>()));

    // What a consumer has had for long is on the disk only when it is rejected.
    let had = host.deliveries(consumer);
    assert_eq!(had.len(), 500);
    let before = host.stats(0).paged_in_total;
    for fifty in had.chunks(50).rev() {
        for (link, delivery, _) in fifty {
            host.clients[consumer].amqp.settle(*link, *delivery, Outcome::Rejected(None));
        }
        host.pass(Duration::from_millis(100));
    }
    assert!(host.stats(0).paged_in_total > before + 50, "{:?}", host.stats(0));
    assert_eq!(host.stats(0).move_failures_total, 0);
    let mut dead = drain(&mut host, "DLQ");
    dead.sort_unstable();
    assert_eq!(dead, (1000..1500).collect::<Vec<_>>());
    host.lose(consumer);
    assert_eq!(drain(&mut host, "q"), (1500..2000).collect::<Vec<_>>());
}

/// Its bytes come before what the log says of its leaving is committed, and nobody waits for them.
#[test]
fn what_expires_while_it_is_read_is_moved_once() {
    let mut host = Host::new(short(Level::Sync));
    let at = host.connect(0);
    let sender = host.sender(at, "q");
    fill(&mut host, at, sender, 300);
    // It goes out first, and is paged out like what was sent with it.
    let mut mortal = Vec::new();
    let header = Header { ttl: Some(5000), priority: Some(9), ..Header::default() };
    write_header(&header, &mut mortal);
    mortal.extend(message(10));
    host.clients[at].amqp.send(sender, &[&mortal], false).expect("there is credit");
    host.pass(Duration::from_millis(20));
    fill(&mut host, at, sender, 100);
    host.writes = Writes::HeldWithReads;
    let consumer = host.connect(0);
    host.receiver(consumer, "q", 1);
    assert!(host.is_holding(), "its bytes are read");
    assert!(host.send(at, sender, 1000, false));
    host.pass(Duration::from_secs(6));
    host.let_go_first();
    host.let_go();
    host.pass(Duration::from_secs(1));
    assert_eq!(host.stats(0).moved_in_total, 1);
    assert_eq!(drain(&mut host, "ExpiryQueue"), [10]);
}

#[test]
fn what_is_damaged_on_the_disk_ends_the_process() {
    let mut host = Host::new(short(Level::Sync));
    let at = host.connect(0);
    let sender = host.sender(at, "q");
    fill(&mut host, at, sender, 1000);
    let is_damaged = |fatal: &Option<Fatal>| matches!(fatal, Some(Fatal::JournalDamaged(_)));
    assert_eq!(host.fatal, None);
    host.flip(2 << 20);
    let reader = host.connect(0);
    host.receiver(reader, "q", 10_000);
    host.pass(Duration::from_millis(50));
    assert!(is_damaged(&host.fatal), "{:?}", host.fatal);
    let came = lengths(&host, reader);
    assert_eq!(came, (1000..1000 + came.len()).collect::<Vec<_>>(), "nothing wrong came");
    assert!(came.len() > 50 && came.len() < 999);
}

#[test]
fn what_comes_back_after_it_was_dropped_is_read_again() {
    let mut host = Host::new(short(Level::Sync));
    let at = host.connect(0);
    let sender = host.sender(at, "q");
    let slow = host.connect(0);
    host.receiver(slow, "q", 300);
    fill(&mut host, at, sender, 1000);
    assert_eq!(host.deliveries(slow).len(), 300, "all are with a consumer who settles nothing");
    let acquired = host.shards[0].state().queues().map(|q| q.count(SlotState::Acquired)).sum();
    assert_eq!(300_u64, acquired);
    host.lose(slow);
    assert_eq!(drain(&mut host, "q"), (1000..2000).collect::<Vec<_>>());
}

#[test]
fn dead_letters_beyond_memory_stay_on_the_disk_when_a_start_reads_them() {
    let mut host = Host::new(short(Level::Sync));
    let at = host.connect(0);
    let sender = host.sender(at, "q");
    fill(&mut host, at, sender, 600);
    let consumer = host.connect(0);
    host.receiver(consumer, "q", 10_000);
    let mut judged = 0;
    while judged < 600 {
        let came = host.deliveries(consumer);
        for (link, delivery, _) in &came[judged..] {
            host.clients[consumer].amqp.settle(*link, *delivery, Outcome::Rejected(None));
        }
        judged = came.len();
        host.pass(Duration::from_millis(20));
    }
    host.lose(consumer);
    host.pass(Duration::from_secs(10));
    for _ in 0..2 {
        host.crash();
        let stats = host.stats(0);
        assert!(stats.memory_bytes <= MEMORY / 16 * 10 && stats.paged_messages > 400, "{stats:?}");
    }
    let mut came = drain(&mut host, "DLQ");
    came.sort_unstable();
    assert_eq!(came, (1000..1600).collect::<Vec<_>>());
    assert_eq!((host.messages(), host.stats(0).memory_bytes), (0, 0));
}
