//! Messages that never end: what all connections hold of them together is bounded.

use std::time::Duration;

use amqp::connection::Event as Amqp;
use amqp::definitions::{DeliveryId, Handle, Role};
use amqp::delivery::Outcome;
use amqp::error::Condition;
use amqp::frame::{self, FrameWriter};
use amqp::performative::{Attach, Detach, Performative, Transfer};
use broker::limits::{LAST_BYTES_WITHIN, LINKS_WITH_REFUSED_MAX};
use broker::{ConnId, Event};

use crate::host::{Host, Wish, Writes};

const PART_BYTES: usize = 1_000_000;

/// A part of a message on the first link of a connection.
fn part(first: bool, more: bool) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut frame = FrameWriter::amqp(&mut bytes, 0);
    frame.composite(&Transfer {
        handle: Handle(0),
        delivery_id: first.then_some(DeliveryId(0)),
        delivery_tag: first.then_some(b"endless"),
        message_format: first.then_some(0),
        settled: Some(true),
        more,
        ..Transfer::default()
    });
    if first {
        frame.payload(b"\x00\x53\x75\xb0\x7f\xff\xff\xff");
    }
    frame.payload(&[7; PART_BYTES]);
    frame.finish();
    bytes
}

fn hear(host: &mut Host, at: usize, bytes: &[u8]) {
    host.event(0, Event::Received { conn: ConnId(at as u64), bytes });
    host.settle();
}

fn was_expelled(host: &Host, at: usize) -> bool {
    host.count(at, |event| {
        let Amqp::CloseReceived { error: Some(error) } = event else { return false };
        assert_eq!(error.condition, Condition::ResourceLimitExceeded);
        assert!(error.description.contains("unfinished"), "{error}");
        true
    }) > 0
}

#[test]
fn who_takes_longest_to_finish_goes_first_and_the_others_are_served() {
    let mut host = Host::new(Wish { memory_bytes_max: 1 << 24, ..Wish::default() });
    let mut hoarders = Vec::new();
    // What they have sent together is more than the memory, but it goes into the log, or nowhere.
    for _ in 0..6 {
        let at = host.connect(0);
        host.sender(at, "q");
        for nth in 0..4 {
            hear(&mut host, at, &part(nth == 0, true));
        }
        hoarders.push(at);
        host.pass(Duration::from_secs(1));
    }
    assert!(hoarders.iter().all(|at| !was_expelled(&host, *at)));

    // Whoever comes and finishes is served.
    let at = host.connect(0);
    let sender = host.sender(at, "q");
    assert!(host.send(at, sender, 50_000, false));
    assert_eq!(host.outcomes(at), [Outcome::Accepted]);

    // A frame that never ends goes nowhere, and what went is no longer counted.
    for _ in 0..40 {
        let at = host.connect(0);
        host.sender(at, "q");
        hear(&mut host, at, &part(true, true)[..PART_BYTES - 1]);
        assert!(!was_expelled(&host, at), "the youngest stays");
        host.pass(Duration::from_millis(100));
    }
    assert!(hoarders.iter().all(|at| was_expelled(&host, *at)));
    assert!(host.clients[hoarders[0]].closed, "its socket is let go without its answer");
    for at in 0..host.clients.len() {
        host.lose(at);
    }
    assert_eq!(host.shards[0].links(), 0);
}

/// The engine of such a connection has nothing: what lacks a byte is with the host, under TLS.
#[test]
fn a_record_that_lacks_a_byte_counts_and_who_keeps_it_longest_goes() {
    const RECORD: u64 = 16 << 10;
    let mut host = Host::new(Wish { memory_bytes_max: 1 << 24, ..Wish::default() });
    let bound = 1 << 22;
    let mut sealed = Vec::new();
    let hold = |host: &mut Host, at: usize, bytes| {
        let now = host.now;
        host.shards[0].hold_sealed(now, ConnId(at as u64), bytes);
        host.settle();
    };
    for _ in 0..bound / RECORD {
        let at = host.connect(0);
        hold(&mut host, at, RECORD);
        host.pass(Duration::from_millis(10));
        sealed.push(at);
    }
    assert!(sealed.iter().all(|at| !was_expelled(&host, *at)), "as many as may be");
    // The first one has a whole record meanwhile, and the second has nothing any more.
    hear(&mut host, sealed[0], &[0, 0, 0, 8, 2, 0, 0, 0]);
    hold(&mut host, sealed[0], RECORD);
    hold(&mut host, sealed[1], 0);
    for _ in 0..bound / RECORD / 4 {
        let at = host.connect(0);
        hold(&mut host, at, RECORD);
    }
    let gone = |at: usize| was_expelled(&host, sealed[at]);
    assert_eq!([0, 1, 2, 3].map(gone), [false, false, true, true]);
    assert!(!gone(sealed.len() - 1), "the youngest stays");
}

#[test]
fn who_waits_for_the_log_is_not_slow_and_no_reason_to_close_others() {
    let wish = Wish { memory_bytes_max: 1 << 24, segments_max: 600, ..Wish::default() };
    let mut host = Host::new(Wish { message_bytes_max: 1 << 25, ..wish });
    let senders: Vec<usize> = (0..7)
        .map(|_| {
            let at = host.connect(0);
            host.sender(at, "q");
            at
        })
        .collect();
    let (small, filler, waiting) = (senders[0], senders[1], &senders[2..]);
    hear(&mut host, small, &part(true, true)[..1000]);
    host.pass(Duration::from_secs(1));
    host.writes = Writes::Held;
    for nth in 0..32 {
        if !host.clients[filler].paused {
            hear(&mut host, filler, &part(nth == 0, true));
        }
    }
    assert!(host.clients[filler].paused, "the log takes nothing more");
    // A part of each is on its way, and with what it has sent beside that they fill the bound.
    for at in waiting {
        hear(&mut host, *at, &part(true, true));
        assert!(host.clients[*at].paused);
        hear(&mut host, *at, &part(false, true)[..PART_BYTES - 1]);
    }
    assert!(waiting.iter().all(|at| !was_expelled(&host, *at)));
    assert!(!was_expelled(&host, small), "the oldest, for what others hold");
    // It goes where those that the log has nothing of fill the bound.
    for nth in 0..5 {
        assert_eq!(was_expelled(&host, small), nth > 3, "{nth}");
        let at = host.connect(0);
        host.sender(at, "q");
        hear(&mut host, at, &part(true, true)[..PART_BYTES - 1]);
    }
    assert!(waiting.iter().all(|at| !was_expelled(&host, *at)));
}

/// Attaches that are refused: each is answered by two frames, the second with an explanation.
fn refused_attaches(count: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    for _ in 0..count {
        let attach =
            Attach { name: "x", handle: Handle(7), role: Role::Sender, ..Attach::default() };
        let attach = Attach { initial_delivery_count: Some(0), ..attach };
        frame::write(&mut bytes, 0, &Performative::Attach(attach));
        let detach = Detach { handle: Handle(7), closed: true, error: None };
        frame::write(&mut bytes, 0, &Performative::Detach(detach));
    }
    bytes
}

#[test]
fn who_asks_and_never_reads_the_answers_goes_as_well() {
    // Room for 4 MiB; each asker is no longer read when it is owed 3.
    let wish = Wish { memory_bytes_max: 1 << 24, message_bytes_max: 1 << 16, ..Wish::default() };
    let mut host = Host::new(wish);
    let bytes = refused_attaches(1000);
    let mut askers = Vec::new();
    for _ in 0..3 {
        let at = host.connect(0);
        host.clients[at].reads = false;
        for _ in 0..200 {
            if host.clients[at].paused {
                break;
            }
            hear(&mut host, at, &bytes);
        }
        assert!(host.clients[at].paused, "more than it may be owed");
        askers.push(at);
        host.pass(Duration::from_secs(1));
    }
    // The socket of who went is let go without the bytes that it does not take.
    host.pass(LAST_BYTES_WITHIN);
    let gone: Vec<bool> = askers.iter().map(|at| host.clients[*at].closed).collect();
    assert_eq!(gone, [true, true, false]);
    let at = host.connect(0);
    let sender = host.sender(at, "q");
    assert!(host.send(at, sender, 10, false));
    assert_eq!(host.outcomes(at), [Outcome::Accepted]);
}

/// A client that asks, and reads none of the answers, until so many bytes of them wait for it
/// beside those that are being sent.
fn asker(host: &mut Host, bytes: usize) -> usize {
    let at = host.connect(0);
    host.clients[at].reads = false;
    ask(host, at, 0);
    let sent = host.unread_bytes(at);
    ask(host, at, bytes / sent);
    assert!(!host.clients[at].paused, "it is still read");
    at
}

fn ask(host: &mut Host, at: usize, more: usize) {
    let bytes = refused_attaches(200);
    (0..more.max(1)).for_each(|_| hear(host, at, &bytes));
}

#[test]
fn who_stops_asking_just_before_it_is_no_longer_read_is_counted_as_well() {
    let wish = Wish { memory_bytes_max: 1 << 24, message_bytes_max: 1 << 16, ..Wish::default() };
    let mut host = Host::new(wish);
    let mut askers = Vec::new();
    for _ in 0..4 {
        // More than messages alone may be, and far less than stops the reading.
        askers.push(asker(&mut host, 11 << 18));
        host.pass(Duration::from_secs(1));
    }
    host.pass(LAST_BYTES_WITHIN);
    let gone: Vec<bool> = askers.iter().map(|at| host.clients[*at].closed).collect();
    assert_eq!(gone, [true, true, true, false], "each makes room for the next");
}

#[test]
fn who_reads_slowly_stays_and_who_reads_nothing_goes_in_the_end() {
    let wish = Wish { memory_bytes_max: 1 << 24, message_bytes_max: 1 << 16, ..Wish::default() };
    let mut host = Host::new(wish);
    // Of each no more waits than messages alone may be; together it is more than the 4 MiB.
    let askers: Vec<usize> = (0..8).map(|_| asker(&mut host, 600 << 10)).collect();
    let (slow, deaf) = askers.split_first().expect("eight");
    host.pass(Duration::from_secs(20));
    assert!(askers.iter().all(|at| !host.clients[*at].closed), "each has read a moment ago");
    let heartbeat = [0, 0, 0, 8, 2, 0, 0, 0];
    for _ in 0..4 {
        host.skim(*slow);
        ask(&mut host, *slow, 4);
        askers.iter().for_each(|at| hear(&mut host, *at, &heartbeat));
        host.pass(Duration::from_secs(20));
    }
    assert!(!host.clients[*slow].closed, "it reads");
    let gone = deaf.iter().filter(|at| host.clients[**at].closed).count();
    assert!((1..7).contains(&gone), "as many as it takes: {gone}");
}

#[test]
fn who_stops_reading_in_the_middle_of_a_large_send_is_counted_with_it() {
    let wish = Wish { memory_bytes_max: 1 << 24, message_bytes_max: 1 << 16, ..Wish::default() };
    let mut host = Host::new(wish);
    let heartbeat = [0, 0, 0, 8, 2, 0, 0, 0];
    let mut askers = Vec::new();
    for _ in 0..20 {
        let at = asker(&mut host, 9 << 18);
        // It reads as much as makes all the rest one send, and then nothing more.
        assert!(host.skim_one(at));
        assert!(host.unread_bytes(at) >= 2 << 20);
        askers.push(at);
        for _ in 0..4 {
            host.pass(Duration::from_secs(20));
            askers.iter().for_each(|at| hear(&mut host, *at, &heartbeat));
        }
    }
    host.pass(LAST_BYTES_WITHIN);
    let stay = askers.iter().filter(|at| !host.clients[**at].closed).count();
    assert_eq!(stay, 1, "each takes more than half of the 4 MiB");
}

#[test]
fn the_time_in_which_nothing_waited_for_a_reader_does_not_count() {
    let wish = Wish { memory_bytes_max: 1 << 24, message_bytes_max: 1 << 16, ..Wish::default() };
    let mut host = Host::new(wish);
    let askers: Vec<usize> = (0..8).map(|_| host.connect(0)).collect();
    // Each has read all there was, and for long there is nothing more.
    for at in &askers {
        ask(&mut host, *at, 1);
        assert_eq!(host.unread_bytes(*at), 0);
    }
    let heartbeat = [0, 0, 0, 8, 2, 0, 0, 0];
    for _ in 0..10 {
        host.pass(Duration::from_secs(20));
        askers.iter().for_each(|at| hear(&mut host, *at, &heartbeat));
    }
    // Then comes more than all together may be owed, in one moment.
    for at in &askers {
        host.clients[*at].reads = false;
        ask(&mut host, *at, 1);
        let sent = host.unread_bytes(*at);
        ask(&mut host, *at, (600 << 10) / sent);
    }
    host.pass(LAST_BYTES_WITHIN);
    assert!(askers.iter().all(|at| !host.clients[*at].closed), "each has read a moment ago");
}

#[test]
fn links_that_are_refused_and_never_detached_end_their_session() {
    let mut host = Host::new(Wish::default());
    let at = host.connect(0);
    let attach = |channel: u16, handle: u32| {
        let name = format!("no-{channel}-{handle}");
        let attach = Attach {
            name: &name,
            handle: Handle(handle),
            role: Role::Sender,
            initial_delivery_count: Some(0),
            ..Attach::default()
        };
        let mut bytes = Vec::new();
        frame::write(&mut bytes, channel, &Performative::Attach(attach));
        bytes
    };
    let sessions = u16::try_from(LINKS_WITH_REFUSED_MAX / 1024).expect("few");
    for channel in 1..=sessions {
        host.begin(at);
        let links: Vec<u8> = (0..1024).flat_map(|handle| attach(channel, handle)).collect();
        hear(&mut host, at, &links);
    }
    let ended = |host: &Host| host.count(at, |event| matches!(event, Amqp::EndReceived { .. }));
    assert_eq!(ended(&host), 0);
    host.begin(at);
    hear(&mut host, at, &attach(sessions + 1, 0));
    assert_eq!(ended(&host), 1);
}
