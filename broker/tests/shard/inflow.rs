//! Messages that go into the log as they come: seen when they are whole, nothing when they are not,
//! and what a sender that stops half way costs.

use std::time::Duration;

use amqp::connection::Event as Amqp;
use amqp::definitions::Condition;
use amqp::delivery::Outcome;
use amqp::link::{LinkId, LinkSource};
use broker::admin::AdminRequest;
use broker::settings::{FullPolicy, Said, Settings};
use bytes::Bytes;
use journal::{FileId, Level, ShardId};

use crate::checkpoint::fill;
use crate::compaction::{Stream, small_log};
use crate::host::{Host, SEGMENT_BYTES, Wish, Writes};
use crate::relay::{conditions, detached, relay};

const PART: usize = 4096;

pub(crate) fn parts() -> Wish {
    Wish { part_bytes: PART, segments_max: 60, ..Wish::default() }
}

/// A message of so many bytes; each depends on its place and on the number.
pub(crate) fn message(head: &[u8], number: usize, len: usize) -> Vec<u8> {
    let mut message = head.to_vec();
    message.extend_from_slice(b"\x00\x53\x75\xb0");
    message.extend_from_slice(&(len as u32).to_be_bytes());
    message.extend((0..len).map(|at| (at / 5 + at / 700 * 11 + number * 31) as u8));
    message
}

/// The first bytes of a message are sent; the rest is given back.
pub(crate) fn begin(
    host: &mut Host,
    at: usize,
    link: LinkId,
    message: &[u8],
    bytes: usize,
) -> Bytes {
    begin_as(host, at, link, (message, bytes), false)
}

fn begin_as(
    host: &mut Host,
    at: usize,
    link: LinkId,
    (message, bytes): (&[u8], usize),
    settled: bool,
) -> Bytes {
    let whole = message.len() as u64;
    let begun = host.clients[at].amqp.send_begin(link, &[&message[..bytes]], whole, settled);
    assert!(begun.is_ok(), "{begun:?}");
    host.settle();
    Bytes::copy_from_slice(&message[bytes..])
}

/// Sends on; whether that was wanted.
pub(crate) fn go_on(host: &mut Host, at: usize, link: LinkId, part: &Bytes, is_last: bool) -> bool {
    let wanted = host.clients[at].amqp.send_part(link, part.clone(), is_last);
    host.settle();
    wanted
}

pub(crate) fn take(host: &mut Host, shard: usize, queue: &str) -> Vec<Vec<u8>> {
    let at = host.connect(shard);
    host.receiver(at, queue, 1000);
    host.settle_all(at, Duration::from_millis(50));
    let came = host.deliveries(at).into_iter().map(|(_, _, message)| message).collect();
    host.lose(at);
    came
}

fn ends_with(came: &[u8], sent: &[u8]) -> bool {
    came.ends_with(&sent[sent.len().min(20)..])
}

#[test]
fn it_is_seen_when_its_end_is_committed_and_not_before_and_keeps_its_links_order() {
    for (level, shards) in [(Level::Sync, 1), (Level::Async, 1), (Level::Sync, 2)] {
        let mut host = Host::new(Wish { level, shards, ..parts() });
        let home = usize::from(shards) - 1;
        let owner = host.connect(home);
        host.receiver(owner, "q", 0);
        let consumer = host.connect(home);
        host.receiver(consumer, "q", 100);
        let at = host.connect_with_small_frames(0);
        let link = host.sender(at, "q");
        let long = message(b"", 1, 60_000);
        let rest = begin(&mut host, at, link, &long, 40_000);
        host.pass(Duration::from_millis(50));
        assert_eq!((host.messages(), host.deliveries(consumer).len()), (0, 0));
        let stats = host.stats(home);
        assert!(stats.memory_bytes < 2000, "its places, and no bytes: {stats:?}");
        let halves = host.shards[home].state().oldest_half();
        assert!(halves.is_some(), "it is in the log");
        // What comes on another link meanwhile passes it.
        let other = host.connect(0);
        let passes = host.sender(other, "q");
        assert!(host.send(other, passes, 10, false));
        host.pass(Duration::from_millis(20));
        assert_eq!(host.deliveries(consumer).len(), 1);
        // And what comes behind it on its own does not.
        host.writes = Writes::Held;
        assert!(go_on(&mut host, at, link, &rest, true));
        assert!(host.send(at, link, 20, false));
        assert_eq!((host.deliveries(consumer).len(), host.outcomes(at).len()), (1, 0));
        host.let_go();
        host.pass(Duration::from_millis(50));
        let came = host.deliveries(consumer);
        assert_eq!(came.len(), 3, "{level:?} {shards}");
        assert!(ends_with(&came[1].2, &long) && came[2].2.len() < 40);
        assert_eq!(host.outcomes(at), [Outcome::Accepted, Outcome::Accepted]);
        assert_eq!(host.shards[home].state().oldest_half(), None);
        // A start finds it whole too.
        host.crash();
        let came = take(&mut host, home, "q");
        assert_eq!(came.len(), 3);
        assert!(came.iter().any(|message| ends_with(message, &long)));
        assert_eq!(host.messages(), 0);
    }
}

/// A start with it finds the message whole: the log tells all of that.
#[test]
fn no_checkpoint_goes_past_the_beginning_of_one_that_has_not_ended() {
    let mut host = Host::new(parts());
    fill(&mut host, "before", 3500, 6);
    let at = host.connect_with_small_frames(0);
    let link = host.sender(at, "q");
    let long = message(b"", 1, 60_000);
    let rest = begin(&mut host, at, link, &long, 40_000);
    let (begins, ..) = host.shards[0].state().oldest_half().expect("it is in the log");
    let before = host.stats(0).journal_checkpoint_lsn;
    fill(&mut host, "behind", 3500, 8);
    let (ended, stats) = (begins.0 + 4 * SEGMENT_BYTES, host.stats(0));
    assert!(host.shards[0].state().oldest_half().is_some() && stats.journal_durable_lsn > ended);
    let checkpoint = stats.journal_checkpoint_lsn;
    assert!(before < checkpoint && checkpoint <= begins.0, "{before} {checkpoint} {begins:?}");
    let is_checkpoint = |file: &FileId| matches!(file, FileId::Checkpoint { .. });
    let mut beside = host.files_of(ShardId(0));
    beside.retain(|(file, _)| is_checkpoint(file));
    assert!(go_on(&mut host, at, link, &rest, true));
    host.pass(Duration::from_millis(50));
    // The next one is written then: the process ends before.
    host.put_files(beside);
    host.crash();
    let (_, report) = host.reports.last().expect("it has started");
    assert_eq!(report.checkpoint, Some(checkpoint));
    let came = take(&mut host, 0, "q");
    assert!(came.len() == 1 && ends_with(&came[0], &long));
}

#[test]
fn half_of_one_is_nothing_after_a_crash_and_its_sequence_is_no_other_messages() {
    let mut host = Host::new(parts());
    let at = host.connect_with_small_frames(0);
    let link = host.sender(at, "q");
    let long = message(b"", 1, 60_000);
    begin(&mut host, at, link, &long, 40_000);
    host.pass(Duration::from_millis(50));
    for round in 0..3 {
        host.crash();
        assert_eq!((host.messages(), host.stats(0).memory_bytes), (0, 0));
        assert_eq!(host.shards[0].state().oldest_half(), None);
        let at = host.connect_with_small_frames(0);
        let link = host.sender(at, "q");
        let next = message(b"", 2 + round, 30_000);
        let rest = begin(&mut host, at, link, &next, 20_000);
        assert!(go_on(&mut host, at, link, &rest, true));
        host.pass(Duration::from_millis(20));
        begin(&mut host, at, link, &long, 50_000);
        host.crash();
        let came = take(&mut host, 0, "q");
        assert!(came.len() == 1 && ends_with(&came[0], &next));
    }
}

/// How a sender may give up.
#[derive(Clone, Copy, Debug, PartialEq)]
enum GivesUp {
    Aborts,
    Detaches,
    Ends,
    Closes,
    Breaks,
}

#[test]
fn what_is_given_up_is_dead_in_the_log_and_costs_neither_room_nor_memory() {
    let ways =
        [GivesUp::Aborts, GivesUp::Detaches, GivesUp::Ends, GivesUp::Closes, GivesUp::Breaks];
    for shards in [1, 2] {
        let segments_max = 8;
        let mut host = Host::new(Wish { shards, segments_max, ..parts() });
        let home = usize::from(shards) - 1;
        let owner = host.connect(home);
        host.receiver(owner, "q", 0);
        let log_bytes = u64::from(segments_max) * SEGMENT_BYTES;
        let long = message(b"", 1, 60_000);
        let rounds = (8 * log_bytes) as usize / 40_000;
        for round in 0..rounds {
            let way = ways[round % ways.len()];
            let at = host.connect_with_small_frames(0);
            let link = host.sender(at, "q");
            let rest = begin(&mut host, at, link, &long, 40_000);
            let session = host.session(at);
            match way {
                GivesUp::Aborts => host.clients[at].amqp.send_abort(link),
                GivesUp::Detaches => host.clients[at].amqp.detach(link, true, None),
                GivesUp::Ends => host.clients[at].amqp.end(session, None),
                GivesUp::Closes => host.clients[at].amqp.close(None),
                GivesUp::Breaks => host.lose(at),
            }
            host.pass(Duration::from_millis(10));
            assert_eq!(host.shards[home].state().oldest_half(), None, "{way:?}");
            if way == GivesUp::Aborts {
                // The link goes on: its credit is as it was.
                let rest_of = begin(&mut host, at, link, &long, 40_000);
                assert!(go_on(&mut host, at, link, &rest_of, true) && rest == rest_of);
                host.pass(Duration::from_millis(10));
                assert_eq!(host.outcomes(at), [Outcome::Accepted]);
                let came = take(&mut host, home, "q");
                assert!(came.len() == 1 && ends_with(&came[0], &long));
            }
            host.lose(at);
        }
        host.lose(owner);
        host.pass(Duration::from_millis(100));
        host.assert_clean();
        host.crash();
        assert_eq!(host.messages(), 0);
    }
}

#[test]
fn a_log_that_is_behind_holds_its_sender_back_and_memory_is_bounded() {
    for shards in [1, 2] {
        let mut host =
            Host::new(Wish { shards, segments_max: 600, message_bytes_max: 32 << 20, ..parts() });
        let home = usize::from(shards) - 1;
        let owner = host.connect(home);
        host.receiver(owner, "q", 0);
        host.writes = Writes::Held;
        let long = message(b"", 1, 24 << 20);
        let at = host.connect_with_small_frames(0);
        let link = host.sender(at, "q");
        begin(&mut host, at, link, &long[..], 10_000);
        let mut sent = 10_000;
        while sent < long.len() && !host.clients[at].paused {
            let end = (sent + 50_000).min(long.len());
            let part = Bytes::copy_from_slice(&long[sent..end]);
            if !go_on(&mut host, at, link, &part, end == long.len()) {
                break;
            }
            sent = end;
        }
        assert!(host.clients[at].paused && sent < 22 << 20, "{sent}");
        let memory: u64 = (0..usize::from(shards)).map(|at| host.stats(at).memory_bytes).sum();
        assert!(memory < 3 << 20, "{memory}");
        host.let_go();
        let is_held = |host: &Host| host.clients[at].paused;
        assert!(!is_held(&host));
        // What the engine has of it is written first.
        while sent < long.len() {
            let end = (sent + 50_000).min(long.len());
            let part = Bytes::copy_from_slice(&long[sent..end]);
            if go_on(&mut host, at, link, &part, end == long.len()) {
                sent = end;
            }
            host.pass(Duration::from_millis(1));
        }
        host.pass(Duration::from_millis(50));
        assert_eq!(host.outcomes(at), [Outcome::Accepted]);
        let came = take(&mut host, home, "q");
        assert!(came.len() == 1 && ends_with(&came[0], &long));
    }
}

/// What a sender heard of one message that it has sent in full.
fn verdict(host: &mut Host, at: usize, link: LinkId, message: &[u8]) -> Outcome {
    let before = host.outcomes(at).len();
    let rest = begin(host, at, link, message, message.len() / 2);
    assert!(go_on(host, at, link, &rest, true));
    host.pass(Duration::from_millis(50));
    let outcomes = host.outcomes(at);
    assert_eq!(outcomes.len(), before + 1);
    outcomes.last().expect("an answer").clone()
}

#[test]
fn what_is_not_taken_is_answered_at_its_end_and_leaves_nothing() {
    let mut settings = Settings::default();
    for (name, bytes_max) in [("late", 70_000), ("early", 62_000)] {
        let said = Said {
            bytes_max: Some(bytes_max),
            full_policy: Some(FullPolicy::Refuse),
            ..Said::default()
        };
        settings.add(name, said).expect("a pattern");
    }
    let said =
        Said { messages_max: Some(1), full_policy: Some(FullPolicy::Drop), ..Said::default() };
    settings.add("drops", said).expect("a pattern");
    let mut host = Host::new(Wish { settings, ..parts() });
    let at = host.connect_with_small_frames(0);
    let [drops, free] = ["drops", "free"].map(|name| host.sender(at, name));
    let long = message(b"", 1, 60_000);
    let is_rejected = |outcome: &Outcome| matches!(outcome, Outcome::Rejected(Some(_)));
    for name in ["late", "early"] {
        let bounded = host.sender(at, name);
        assert_eq!(verdict(&mut host, at, bounded, &long), Outcome::Accepted, "{name}");
        assert!(is_rejected(&verdict(&mut host, at, bounded, &long)), "{name}");
    }
    assert_eq!(verdict(&mut host, at, drops, &long), Outcome::Accepted);
    assert_eq!(verdict(&mut host, at, drops, &long), Outcome::Accepted);
    assert_eq!((host.messages(), host.stats(0).dropped_total), (3, 1));
    // A body that is cut short, and one that goes on as something else.
    let mut cut = long.clone();
    cut.truncate(50_000);
    assert!(is_rejected(&verdict(&mut host, at, free, &cut)));
    let mut odd = long.clone();
    odd.extend_from_slice(b"\x00\x53\x70\x45");
    assert!(is_rejected(&verdict(&mut host, at, free, &odd)));
    // A head that does not end where the log must know it.
    let mut head =
        b"\x00\x53\x74\xd1\x00\x00\x40\x09\x00\x00\x00\x02\xa1\x01k\xb1\x00\x00\x3f\xfd".to_vec();
    head.resize(head.len() + 0x3ffd, b'v');
    assert!(is_rejected(&verdict(&mut host, at, free, &message(&head, 1, 60_000))));
    assert_eq!(host.shards[0].state().oldest_half(), None);
    assert_eq!(verdict(&mut host, at, free, &long), Outcome::Accepted);
    assert_eq!(host.messages(), 4);
    assert_eq!(host.count(at, |event| matches!(event, Amqp::Detached { .. })), 0);
}

/// Application properties with a duplicate id.
fn identified(id: u8) -> Vec<u8> {
    let mut head = b"\x00\x53\x74\xc1\x11\x02\xa1\x0c_AMQ_DUPL_ID\xa1\x00".to_vec();
    let at = head.len() - 1;
    head[at] = 1;
    head.push(id);
    let size = head.len() - 5;
    head[4] = size as u8;
    head
}

#[test]
fn a_duplicate_is_one_whether_the_first_was_whole_before_it_began_or_before_it_ended() {
    let mut host = Host::new(parts());
    let clients = [0, 1, 2].map(|_| host.connect_with_small_frames(0));
    let links = clients.map(|at| host.sender(at, "q"));
    let long = message(&identified(b'a'), 1, 60_000);
    // Two at once: the one that ends first is the message.
    let rests = [0, 1].map(|n| begin(&mut host, clients[n], links[n], &long, 30_000));
    for n in [1, 0] {
        assert!(go_on(&mut host, clients[n], links[n], &rests[n], true));
        host.pass(Duration::from_millis(20));
        assert_eq!(host.outcomes(clients[n]), [Outcome::Accepted]);
    }
    assert_eq!((host.messages(), host.stats(0).duplicates_total), (1, 1));
    assert_eq!(verdict(&mut host, clients[2], links[2], &long), Outcome::Accepted);
    assert_eq!((host.messages(), host.stats(0).duplicates_total), (1, 2));
    host.crash();
    let at = host.connect_with_small_frames(0);
    let link = host.sender(at, "q");
    assert_eq!(verdict(&mut host, at, link, &long), Outcome::Accepted);
    assert_eq!(host.messages(), 1);
}

#[test]
fn its_duplicate_id_counts_from_its_end_on_also_after_a_crash() {
    let mut settings = Settings::default();
    let said = Said { duplicate_ids: Some(2), ..Said::default() };
    settings.add("q", said).expect("a pattern");
    let mut host = Host::new(Wish { settings, ..parts() });
    let at = host.connect_with_small_frames(0);
    let link = host.sender(at, "q");
    let long = message(&identified(b'a'), 1, 60_000);
    let rest = begin(&mut host, at, link, &long, 30_000);
    let other = host.connect(0);
    let others = host.sender(other, "q");
    for id in [b'b', b'c'] {
        let short = message(&identified(id), 2, 100);
        assert!(host.clients[other].amqp.send(others, &[&short], false).is_ok());
        host.pass(Duration::from_millis(20));
    }
    assert!(go_on(&mut host, at, link, &rest, true));
    host.pass(Duration::from_millis(20));
    assert_eq!((host.outcomes(at), host.messages()), (vec![Outcome::Accepted], 3));
    for _ in 0..2 {
        let at = host.connect_with_small_frames(0);
        let link = host.sender(at, "q");
        assert_eq!(verdict(&mut host, at, link, &long), Outcome::Accepted);
        // The newest of the others is remembered with it.
        let short = message(&identified(b'c'), 2, 100);
        assert!(host.clients[at].amqp.send(link, &[&short], false).is_ok());
        host.pass(Duration::from_millis(20));
        assert_eq!((host.messages(), host.stats(0).duplicates_total), (3, 2));
        host.crash();
    }
}

#[test]
fn a_purge_leaves_what_ends_after_it_was_asked_for() {
    let mut host = Host::new(Wish { segments_max: 400, ..parts() });
    let at = host.connect_with_small_frames(0);
    let link = host.sender(at, "q");
    let long = message(b"", 1, 60_000);
    let other = host.connect(0);
    let others = host.sender(other, "q");
    assert!(host.send(other, others, 10, false));
    let rest = begin(&mut host, at, link, &long, 30_000);
    // More than one step of a purge.
    for _ in 0..1500 {
        while !host.send(other, others, 10, false) {
            host.pass(Duration::from_millis(1));
        }
    }
    host.pass(Duration::from_millis(50));
    assert_eq!(host.messages(), 1501);
    host.ask(0, AdminRequest::Purge { queue: "q".to_owned() });
    assert!(go_on(&mut host, at, link, &rest, true));
    host.pass(Duration::from_millis(100));
    assert_eq!((host.outcomes(at), host.messages()), (vec![Outcome::Accepted], 1));
    let came = take(&mut host, 0, "q");
    assert!(came.len() == 1 && ends_with(&came[0], &long));
}

#[test]
fn one_whose_sender_stops_is_given_up_where_much_of_the_log_waits_for_it() {
    let mut host = Host::new(Wish { segments_max: 200, ..parts() });
    let at = host.connect_with_small_frames(0);
    let link = host.sender(at, "slow");
    let long = message(b"", 1, 60_000);
    let rest = begin(&mut host, at, link, &long, 20_000);
    let other = host.connect(0);
    let others = host.sender(other, "q");
    for _ in 0..100 {
        assert!(host.send(other, others, 4000, false));
    }
    host.pass(Duration::from_millis(50));
    assert!(host.shards[0].state().oldest_half().is_some(), "a while is not too long");
    host.pass(Duration::from_secs(31));
    assert!(host.send(other, others, 10, false));
    host.pass(Duration::from_millis(50));
    assert_eq!(host.shards[0].state().oldest_half(), None);
    assert!(go_on(&mut host, at, link, &rest, true));
    host.pass(Duration::from_millis(50));
    assert_eq!(host.outcomes(at), [Outcome::Released]);
}

#[test]
fn in_a_log_of_few_segments_one_crosses_from_one_to_the_next() {
    for segments_max in 4..=9 {
        let mut host = Host::new(Wish { segments_max, ..parts() });
        let at = host.connect_with_small_frames(0);
        let link = host.sender(at, "q");
        let long = message(b"", 1, 80_000);
        let rest = begin(&mut host, at, link, &long, 70_000);
        host.pass(Duration::from_millis(50));
        assert!(host.stats(0).journal_appended_lsn > SEGMENT_BYTES, "it is in two");
        assert!(go_on(&mut host, at, link, &rest, true));
        host.pass(Duration::from_millis(50));
        assert_eq!(host.outcomes(at), [Outcome::Accepted], "{segments_max}");
    }
}

#[test]
fn one_that_comes_too_slowly_gives_way_where_the_log_needs_its_room() {
    let mut host = Host::new(Wish { part_bytes: PART, ..small_log() });
    let at = host.connect_with_small_frames(0);
    let link = host.sender(at, "slow");
    let long = message(b"", 1, 60_000);
    let rest = begin(&mut host, at, link, &long, 20_000);
    let mut stream = Stream::new(&mut host);
    stream.flow_round(&mut host);
    assert_eq!(host.shards[0].state().oldest_half(), None);
    assert!(go_on(&mut host, at, link, &rest, true));
    host.pass(Duration::from_millis(50));
    assert_eq!(host.outcomes(at), [Outcome::Released]);
    // The next one is taken.
    assert_eq!(verdict(&mut host, at, link, &long), Outcome::Accepted);
    stream.flow_round(&mut host);
    let came = take(&mut host, 0, "slow");
    assert!(came.len() == 1 && ends_with(&came[0], &long));
}

/// Properties that say where a message goes.
fn to(name: &str) -> Vec<u8> {
    let mut head = b"\x00\x53\x73\xc0\x00\x03\x40\x40\xa1\x00".to_vec();
    let at = head.len() - 1;
    head[at] = name.len() as u8;
    head.extend_from_slice(name.as_bytes());
    head[4] = (head.len() - 5) as u8;
    head
}

#[test]
fn a_relay_says_why_the_beginning_was_not_taken_also_where_the_end_waits_behind_it() {
    let mut settings = Settings::default();
    let block = Some(FullPolicy::Block);
    let said = Said { messages_max: Some(1), full_policy: block, ..Said::default() };
    settings.add("new", said).expect("a pattern");
    for settled in [false, true] {
        let mut host = Host::new(Wish { shards: 3, settings: settings.clone(), ..parts() });
        let at = host.connect_with_small_frames(1);
        let link = relay(&mut host, at, LinkSource::default());
        // While its shard waits to hear of the queue, somebody else fills that.
        host.mail_held = Some((ShardId(0), ShardId(1)));
        let owner = host.connect(2);
        let owners = host.sender(owner, "new");
        assert!(host.send(owner, owners, 10, false));
        host.pass(Duration::from_millis(20));
        let long = message(&to("new"), 1, 60_000);
        let rest = begin_as(&mut host, at, link, (&long, 30_000), settled);
        assert!(go_on(&mut host, at, link, &rest, true));
        assert!(host.outcomes(at).is_empty());
        host.mail_held = None;
        host.pass(Duration::from_millis(50));
        let full = Condition::ResourceLimitExceeded;
        let told: Vec<_> = host.clients[at].heard.iter().filter_map(detached).collect();
        if settled {
            assert_eq!(told, [full]);
        } else {
            assert_eq!((conditions(&host, at), told), (vec![Some(full)], vec![]));
        }
        assert_eq!(take(&mut host, 2, "new").len(), 1);
        host.lose(owner);
        host.lose(at);
        host.pass(Duration::from_millis(50));
        host.assert_clean();
    }
}

#[test]
fn what_waits_for_its_queue_is_bounded_by_memory_and_refused_beyond() {
    for sent in [58_000, 30_000] {
        let mut host = Host::new(Wish { shards: 2, memory_bytes_max: 40_000, ..parts() });
        let at = host.connect_with_small_frames(1);
        let link = relay(&mut host, at, LinkSource::default());
        host.mail_held = Some((ShardId(0), ShardId(1)));
        let long = message(&to("new"), 1, 60_000);
        let rest = begin(&mut host, at, link, &long, sent);
        let waiting = host.stats(1).memory_bytes;
        assert!(waiting > 20_000 && waiting <= 40_000, "{waiting}");
        host.mail_held = None;
        host.pass(Duration::from_millis(100));
        assert!(go_on(&mut host, at, link, &rest, true));
        host.pass(Duration::from_millis(100));
        let full = Some(Condition::ResourceLimitExceeded);
        let expected = if sent > 40_000 { full } else { None };
        assert_eq!(conditions(&host, at), [expected], "{sent}");
        assert_eq!(take(&mut host, 1, "new").len(), usize::from(expected.is_none()));
        host.lose(at);
        host.pass(Duration::from_millis(50));
        host.assert_clean();
    }
}

#[test]
fn one_that_drips_is_given_up_where_the_log_grows_long_for_it() {
    let mut host = Host::new(Wish { segments_max: 400, ..parts() });
    let at = host.connect_with_small_frames(0);
    let link = host.sender(at, "slow");
    let long = message(b"", 1, 300_000);
    let mut rest = begin(&mut host, at, link, &long, 20_000);
    let busy = host.connect(0);
    let sender = host.sender(busy, "busy");
    host.receiver(busy, "busy", 1000);
    for minute in 0..13 {
        for _ in 0..4 {
            for _ in 0..5 {
                assert!(host.send(busy, sender, 4000, false));
            }
            host.settle_all(busy, Duration::from_millis(50));
            let part = rest.split_to(5000);
            assert!(go_on(&mut host, at, link, &part, false));
            host.pass(Duration::from_secs(15));
        }
        let is_there = host.shards[0].state().oldest_half().is_some();
        assert!(is_there || minute >= 9, "{minute}");
        if !is_there {
            break;
        }
    }
    assert_eq!(host.shards[0].state().oldest_half(), None);
}

#[test]
fn a_relay_finds_their_queue_by_their_head_also_where_it_has_to_be_created() {
    for shards in [1, 2] {
        let mut host = Host::new(Wish { shards, ..parts() });
        let at = host.connect_with_small_frames(0);
        let link = relay(&mut host, at, LinkSource::at("client"));
        let home = usize::from(shards) - 1;
        let owner = host.connect(home);
        host.receiver(owner, "known", 0);
        for (number, name) in ["known", "new", "known", "new", "newer"].into_iter().enumerate() {
            let long = message(&to(name), number, 60_000);
            assert_eq!(verdict(&mut host, at, link, &long), Outcome::Accepted, "{name}");
        }
        let nowhere = message(b"", 9, 60_000);
        assert!(matches!(verdict(&mut host, at, link, &nowhere), Outcome::Rejected(Some(_))));
        let known = take(&mut host, home, "known");
        assert_eq!(known.len(), 2);
        for (number, message_of) in [(0, &known[0]), (2, &known[1])] {
            assert!(ends_with(message_of, &message(&to("known"), number, 60_000)));
        }
        assert_eq!((take(&mut host, 0, "new").len(), take(&mut host, 0, "newer").len()), (2, 1));
        host.lose(owner);
        host.lose(at);
        host.pass(Duration::from_millis(50));
        host.assert_clean();
    }
}

#[test]
fn a_thousand_that_have_begun_and_not_ended_take_little_memory_and_nobody_is_closed() {
    let gathered = 64 * 1024;
    let wish =
        Wish { part_bytes: gathered, memory_bytes_max: 4 << 20, segments_max: 4000, ..parts() };
    let mut host = Host::new(wish);
    let long = message(b"", 1, 70_000);
    let mut links = Vec::new();
    for _ in 0..20 {
        let at = host.connect_with_small_frames(0);
        for _ in 0..50 {
            let session = host.begin(at);
            let link = Host::link(&format!("half-{}", links.len()), "q", false);
            let link = host.clients[at].amqp.attach_sender(session, link).expect("attached");
            host.settle();
            begin(&mut host, at, link, &long, 20_000);
            links.push((at, link));
        }
    }
    host.pass(Duration::from_millis(20));
    let stats = host.stats(0);
    assert!(stats.memory_bytes < 1 << 20, "{stats:?}");
    assert!(host.clients.iter().all(|client| !client.closed));
    for (at, link) in links {
        let rest = Bytes::copy_from_slice(&long[20_000..]);
        assert!(go_on(&mut host, at, link, &rest, true));
    }
    host.pass(Duration::from_millis(100));
    let why: Vec<_> =
        (0..20).flat_map(|at| host.outcomes(at)).filter(|o| *o != Outcome::Accepted).collect();
    assert_eq!((why.len(), why.first()), (0, None));
    assert_eq!(host.messages(), 1000);
    let came = take(&mut host, 0, "q");
    assert!(came.len() == 1000 && came.iter().all(|message| ends_with(message, &long)));
}

#[test]
fn a_stop_does_not_wait_for_who_has_sent_half() {
    let mut host = Host::new(parts());
    let at = host.connect_with_small_frames(0);
    let link = host.sender(at, "q");
    let long = message(b"", 1, 60_000);
    begin(&mut host, at, link, &long, 40_000);
    host.shut_down();
    host.clients[at].amqp.close(None);
    host.pass(Duration::from_millis(50));
    assert_eq!(host.drained, 1);
    assert!(host.outcomes(at).is_empty());
    host.crash();
    assert_eq!((host.messages(), host.stats(0).memory_bytes), (0, 0));
}
