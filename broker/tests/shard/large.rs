//! Messages of several fragments beyond memory: handed out without their bytes, fetched as they are
//! sent, copied by compaction, moved, shown; and what a peer that reads slowly or goes costs.

use std::time::Duration;

use amqp::connection::Event as Amqp;
use amqp::delivery::Outcome;
use amqp::error::Condition;
use amqp::link::LinkId;
use broker::Fatal;
use broker::admin::{AdminReply, AdminRequest};
use journal::Level;

use crate::browsing::browser;
use crate::compaction::{Stream, small_log};
use crate::host::{Host, Reads, Wish};

/// Less than a few of the messages below.
const MEMORY: u64 = 1 << 20;

fn short(level: Level) -> Wish {
    let (memory_bytes_max, message_bytes_max) = (MEMORY, 1 << 20);
    Wish { level, memory_bytes_max, message_bytes_max, segments_max: 400, ..Wish::default() }
}

/// Each has another length: of two fragments to six.
fn len(number: usize) -> usize {
    66_000 + number * 37_001 % 300_000
}

/// A message whose every byte depends on its number.
fn message(number: usize) -> Vec<u8> {
    let len = len(number);
    let body = (0..len).map(|at| (at / 3 + at / 1000 * 7 + number * 31) as u8);
    let mut message = b"\x00\x53\x75\xb0".to_vec();
    message.extend_from_slice(&(len as u32).to_be_bytes());
    message.extend(body);
    message
}

/// Sends so many, numbered from `from` on; all are accepted, and on the disk only afterwards.
fn fill(host: &mut Host, at: usize, sender: LinkId, numbers: std::ops::Range<usize>) {
    let before = host.outcomes(at).len();
    let count = numbers.len();
    for number in numbers {
        let message = message(number);
        assert!(host.clients[at].amqp.send(sender, &[&message], false).is_ok(), "{number}");
        host.pass(Duration::from_millis(6));
    }
    host.pass(Duration::from_millis(50));
    let outcomes = &host.outcomes(at)[before..];
    assert_eq!(outcomes.len(), count);
    assert!(outcomes.iter().all(|outcome| *outcome == Outcome::Accepted));
    let stats = host.stats(0);
    assert!(stats.memory_bytes <= MEMORY / 16 * 10, "{stats:?}");
}

/// Which messages came, whatever stands before them; each is whole.
fn numbers(came: &[(LinkId, amqp::delivery::DeliveryId, Vec<u8>)]) -> Vec<usize> {
    let number = |came: &Vec<u8>| {
        let head = message(0)[..4].to_vec();
        let begin = came.windows(4).position(|four| four == head).expect("a data section");
        let found = (0..200).find(|number| begin + 8 + len(*number) == came.len());
        let number = found.expect("it is as long as one of ours");
        assert!(came.ends_with(&message(number)), "{number} is whole");
        number
    };
    came.iter().map(|(_, _, message)| number(message)).collect()
}

/// Takes everything that is in a queue.
fn drain(host: &mut Host, shard: usize, queue: &str) -> Vec<usize> {
    let at = host.connect(shard);
    host.receiver(at, queue, 1000);
    host.settle_all(at, Duration::from_millis(50));
    let came = numbers(&host.deliveries(at));
    host.lose(at);
    came
}

#[test]
fn a_backlog_of_many_times_the_memory_is_drained_whole_and_in_order_after_a_crash_too() {
    for (level, shards) in [(Level::Sync, 1), (Level::Async, 1), (Level::Sync, 2)] {
        let mut host = Host::new(Wish { shards, ..short(level) });
        let at = host.connect(0);
        let senders = ["a", "b"].map(|name| host.sender(at, name));
        fill(&mut host, at, senders[0], 0..40);
        fill(&mut host, at, senders[1], 40..80);
        let stats = host.stats(0);
        assert!(stats.paged_messages > 70, "{stats:?}");
        let last = usize::from(shards) - 1;
        assert_eq!(drain(&mut host, last, "a"), (0..40).collect::<Vec<_>>());
        host.crash();
        let stats = host.stats(0);
        assert_eq!((stats.paged_messages, host.messages()), (40, 40));
        assert!(stats.memory_bytes < 40 * 1024, "places, and no bytes: {stats:?}");
        assert_eq!(drain(&mut host, last, "b"), (40..80).collect::<Vec<_>>());
        let stats = host.stats(0);
        assert_eq!((stats.paged_messages, stats.paged_bytes, stats.memory_bytes), (0, 0, 0));
        host.crash();
        assert_eq!(host.messages(), 0);
    }
}

#[test]
fn who_does_not_read_is_sent_a_little_of_one_message_and_others_get_on() {
    let mut host = Host::new(short(Level::Sync));
    let at = host.connect(0);
    let senders = ["slow", "other"].map(|name| host.sender(at, name));
    fill(&mut host, at, senders[0], 0..30);
    fill(&mut host, at, senders[1], 30..60);
    let slow = host.connect(0);
    host.clients[slow].reads = false;
    host.receiver(slow, "slow", 1000);
    host.pass(Duration::from_millis(50));
    // The engine's buffer is bounded, and so is what was read for it.
    let read = host.stats(0).read_back_bytes_total;
    assert!(read < 3 << 20, "{read} bytes");
    assert_eq!(drain(&mut host, 0, "other"), (30..60).collect::<Vec<_>>());
    assert!(host.stats(0).memory_bytes <= MEMORY / 16 * 10);
    host.clients[slow].reads = true;
    host.pass(Duration::from_millis(50));
    assert_eq!(numbers(&host.deliveries(slow)), (0..30).collect::<Vec<_>>());
    // It goes, having settled nothing: all is there again.
    host.lose(slow);
    assert_eq!(drain(&mut host, 0, "slow"), (0..30).collect::<Vec<_>>());
}

#[test]
fn small_messages_of_another_link_pass_between_the_fragments() {
    let mut host = Host::new(short(Level::Sync));
    let at = host.connect(0);
    let senders = ["large", "small"].map(|name| host.sender(at, name));
    fill(&mut host, at, senders[0], 0..20);
    let consumer = host.connect(0);
    let small = host.receiver(consumer, "small", 100);
    host.clients[consumer].reads = false;
    host.receiver(consumer, "large", 100);
    for _ in 0..5 {
        assert!(host.send(at, senders[1], 10, false));
    }
    host.clients[consumer].reads = true;
    host.settle();
    let came = host.deliveries(consumer);
    assert_eq!(came.len(), 25);
    let last_small = came.iter().rposition(|(link, ..)| *link == small).expect("they came");
    assert!(last_small < 15, "the last small one was {last_small}");
}

#[test]
fn what_lags_is_copied_fragment_by_fragment_and_may_be_settled_meanwhile() {
    let mut host = Host::new(Wish { memory_bytes_max: MEMORY, ..small_log() });
    let at = host.connect(0);
    let lagging = host.sender(at, "lagging");
    fill(&mut host, at, lagging, 0..2);
    let mut copied = 0;
    for _ in 0..3 {
        let mut stream = Stream::new(&mut host);
        stream.flow_round(&mut host);
        copied += host.stats(0).journal_copied_bytes_total;
        host.crash();
        assert_eq!(host.messages(), 2);
    }
    assert!(copied > 30 * 169_000, "{copied} bytes were copied");
    // They are settled at many moments of a lap, the second long after the first.
    for round in 0..20 {
        let consumer = host.connect(0);
        host.receiver(consumer, "lagging", 2);
        host.pass(Duration::from_millis(50));
        let came = host.deliveries(consumer);
        assert_eq!(numbers(&came), [0, 1]);
        let mut stream = Stream::new(&mut host);
        for (link, delivery, _) in &came {
            stream.flow(&mut host, 60 + 7 * round);
            host.clients[consumer].amqp.settle(*link, *delivery, Outcome::Accepted);
            stream.flow(&mut host, 10);
        }
        host.crash();
        assert_eq!(host.messages(), 0, "nothing comes back");
        let at = host.connect(0);
        let lagging = host.sender(at, "lagging");
        fill(&mut host, at, lagging, 0..2);
    }
}

#[test]
fn operators_and_the_dead_get_them_whole() {
    let mut host = Host::new(Wish { memory_bytes_max: 4 * MEMORY, ..short(Level::Sync) });
    let at = host.connect(0);
    let sender = host.sender(at, "q");
    for number in 0..30 {
        let message = message(number);
        assert!(host.clients[at].amqp.send(sender, &[&message], false).is_ok());
        host.pass(Duration::from_millis(6));
    }
    assert!(host.stats(0).paged_messages > 10);
    let request = AdminRequest::Peek { queue: "q".to_owned(), count_max: 100 };
    host.ask(0, request);
    host.pass(Duration::from_millis(50));
    let (_, reply) = host.replies.pop().expect("answered");
    let AdminReply::Peeked(Some(shown)) = reply else { panic!("{reply:?}") };
    let whole =
        |(number, shown): (usize, &broker::admin::PeekedMessage)| shown.message == message(number);
    assert!(shown.len() == 30 && shown.iter().enumerate().all(whole));
    drop(shown);
    let consumer = host.connect(0);
    host.receiver(consumer, "q", 100);
    host.pass(Duration::from_millis(50));
    for (link, delivery, _) in host.deliveries(consumer) {
        host.clients[consumer].amqp.settle(link, delivery, Outcome::Rejected(None));
        host.pass(Duration::from_millis(20));
    }
    host.pass(Duration::from_secs(10));
    let mut dead = drain(&mut host, 0, "DLQ");
    dead.sort_unstable();
    assert_eq!(dead, (0..30).collect::<Vec<_>>());
}

#[test]
fn a_browser_is_shown_them_and_what_goes_meanwhile_is_aborted() {
    let mut host = Host::new(short(Level::Sync));
    let at = host.connect(0);
    let sender = host.sender(at, "q");
    fill(&mut host, at, sender, 0..12);
    let looks = host.connect(0);
    browser(&mut host, looks, "q", 100);
    host.pass(Duration::from_millis(50));
    assert_eq!(numbers(&host.deliveries(looks)), (0..12).collect::<Vec<_>>());
    let late = host.connect(0);
    host.clients[late].reads = false;
    browser(&mut host, late, "q", 100);
    assert_eq!(drain(&mut host, 0, "q"), (0..12).collect::<Vec<_>>());
    host.clients[late].reads = true;
    host.pass(Duration::from_millis(50));
    let came = numbers(&host.deliveries(late));
    assert!(came.len() < 12 && came == (0..came.len()).collect::<Vec<_>>(), "{came:?}");
    assert_eq!(host.count(late, |event| matches!(event, Amqp::Detached { .. })), 0);
    // The link goes on with what comes.
    fill(&mut host, at, sender, 12..14);
    let came = numbers(&host.deliveries(late));
    assert!(came.ends_with(&[12, 13]), "{came:?}");
}

#[test]
fn a_fragment_that_is_damaged_ends_the_process_and_nothing_wrong_is_sent() {
    let mut host = Host::new(short(Level::Sync));
    let at = host.connect(0);
    let sender = host.sender(at, "q");
    fill(&mut host, at, sender, 0..40);
    host.flip(2 << 20);
    let reader = host.connect(0);
    host.receiver(reader, "q", 1000);
    host.pass(Duration::from_millis(50));
    assert!(matches!(host.fatal, Some(Fatal::JournalDamaged(_))), "{:?}", host.fatal);
    let came = numbers(&host.deliveries(reader));
    assert_eq!(came, (0..came.len()).collect::<Vec<_>>());
    assert!(came.len() > 3 && came.len() < 30, "{came:?}: {:?}", host.fatal);
}

/// Bytes that were read back of messages in fragments.
fn read(host: &mut Host) -> u64 {
    host.stats(0).read_back_bytes_total
}

#[test]
fn nothing_is_fetched_before_the_session_would_take_it_and_then_for_one_link_at_a_time() {
    let mut host = Host::new(short(Level::Sync));
    let at = host.connect(0);
    let sender = host.sender(at, "q");
    fill(&mut host, at, sender, 0..30);
    host.crash();
    let at = host.connect(0);
    let looks = host.connect_narrow(0);
    let small = host.sender(at, "small");
    assert!(host.send(at, small, 10, false));
    host.receiver(looks, "small", 1);
    assert_eq!(host.deliveries(looks).len(), 1, "its window is closed now");
    let before = (host.stats(0).memory_bytes, read(&mut host));
    let links = 1000;
    for _ in 0..links {
        browser(&mut host, looks, "q", 1);
    }
    host.pass(Duration::from_millis(50));
    assert_eq!((host.stats(0).memory_bytes, read(&mut host)), before, "nothing is fetched");
    assert_eq!(host.deliveries(looks).len(), 1);
    // Where there is room each has its turn.
    let reads = host.connect(0);
    for _ in 0..20 {
        browser(&mut host, reads, "q", 2);
    }
    host.pass(Duration::from_millis(50));
    let came = host.deliveries(reads);
    let mut links: Vec<_> = came.iter().map(|(link, ..)| *link).collect();
    links.sort_unstable();
    links.dedup();
    assert_eq!((came.len(), links.len()), (40, 20));
    numbers(&came);
    host.lose(looks);
    host.lose(reads);
    assert_eq!(drain(&mut host, 0, "q"), (0..30).collect::<Vec<_>>());
}

#[test]
fn credit_that_comes_and_goes_makes_no_more_reads_than_one_consumer_may_wait_for() {
    let mut host = Host::new(Wish { shards: 2, ..short(Level::Sync) });
    let at = host.connect(0);
    let sender = host.sender(at, "q");
    fill(&mut host, at, sender, 0..4);
    host.crash();
    assert_eq!(host.stats(0).paged_messages, 4);
    let consumer = host.connect(1);
    let link = host.receiver(consumer, "q", 0);
    let before = read(&mut host);
    host.reads = Reads::Held;
    for _ in 0..50 {
        host.clients[consumer].amqp.grant_credit(link, 1);
        host.settle();
        host.clients[consumer].amqp.grant_credit(link, 0);
        host.settle();
    }
    assert!(read(&mut host) - before < 4 * 128 * 1024);
    assert!(host.held_reads() <= 2, "{} reads", host.held_reads());
    host.let_reads_go();
    host.clients[consumer].amqp.grant_credit(link, 1);
    host.pass(Duration::from_millis(50));
    assert_eq!(numbers(&host.deliveries(consumer)), [0]);
    host.lose(consumer);
    assert_eq!(drain(&mut host, 0, "q"), [0, 1, 2, 3]);
}

#[test]
fn annotations_longer_than_the_first_fragment_holds_are_refused_where_a_message_is_split() {
    let mut host = Host::new(short(Level::Sync));
    let at = host.connect(0);
    let sender = host.sender(at, "q");
    let annotated = |head: usize, body: usize| {
        // Delivery annotations: {k: binary}.
        let mut message = b"\x00\x53\x71\xd1".to_vec();
        message.extend_from_slice(&(4 + 3 + 5 + head as u32).to_be_bytes());
        message.extend_from_slice(b"\x00\x00\x00\x02\xa3\x01k\xb0");
        message.extend_from_slice(&(head as u32).to_be_bytes());
        message.resize(message.len() + head, 7);
        message.extend_from_slice(b"\x00\x53\x75\xb0");
        message.extend_from_slice(&(body as u32).to_be_bytes());
        message.resize(message.len() + body, 8);
        message
    };
    for (head, body, is_taken) in
        [(20_000, 10, true), (20_000, 200_000, true), (60_000, 200_000, false)]
    {
        let message = annotated(head, body);
        assert!(host.clients[at].amqp.send(sender, &[&message], false).is_ok());
        host.pass(Duration::from_millis(50));
        match host.outcomes(at).pop().expect("answered") {
            Outcome::Accepted => assert!(is_taken, "{head}"),
            Outcome::Rejected(Some(error)) => {
                assert!(!is_taken && error.condition == Condition::ResourceLimitExceeded);
            }
            other @ (Outcome::Rejected(None) | Outcome::Released | Outcome::Modified { .. }) => {
                panic!("{other:?}")
            }
        }
    }
    assert_eq!(host.messages(), 2);
}
