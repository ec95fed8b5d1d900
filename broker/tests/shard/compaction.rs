//! What lives among much that is dead is copied forward, and stays what and where it was.

use std::time::Duration;

use amqp::delivery::Outcome;
use amqp::link::LinkId;
use broker::queue::SlotState;
use broker::setback::Setback;
use journal::{Level, QueueId};

use crate::host::{Host, SEGMENT_BYTES, Wish, Writes, message};

const SEGMENTS_MAX: u32 = 12;
const FAILED_THRICE: Option<Setback> = Some(Setback { count: 3, doom: None, added: None });
pub(crate) const FAILED: Outcome = Outcome::Modified {
    delivery_failed: true,
    undeliverable_here: false,
    message_annotations: None,
};

pub(crate) fn small_log() -> Wish {
    Wish { segments_max: SEGMENTS_MAX, ..Wish::default() }
}

/// Producer and consumer of a queue in which nothing stays.
pub(crate) struct Stream {
    at: usize,
    sender: LinkId,
}

impl Stream {
    pub(crate) fn new(host: &mut Host) -> Self {
        let at = host.connect(0);
        let sender = host.sender(at, "stream");
        host.receiver(at, "stream", 100_000);
        Self { at, sender }
    }

    /// So many messages of 1,000 bytes go through; none is refused.
    pub(crate) fn flow(&mut self, host: &mut Host, messages: usize) {
        for _ in 0..messages {
            let mut waits = 0;
            while !host.send(self.at, self.sender, 1000, false) {
                waits += 1;
                assert!(waits < 1_000, "credit comes back");
                host.pass(Duration::from_millis(1));
            }
            let refused = |outcome: &Outcome| *outcome != Outcome::Accepted;
            while host.outcomes(self.at).is_empty() {
                host.pass(Duration::from_millis(1));
            }
            assert_eq!(host.outcomes(self.at).iter().find(|outcome| refused(outcome)), None);
            for (link, delivery, _) in host.deliveries(self.at) {
                host.clients[self.at].amqp.settle(link, delivery, Outcome::Accepted);
            }
            host.clients[self.at].heard.clear();
            host.settle();
        }
        // The last settlement waits for company.
        host.pass(Duration::from_millis(100));
        let stats = host.stats(0);
        assert!(stats.journal_segments <= u64::from(SEGMENTS_MAX), "{stats:?}");
    }

    /// Twenty-four times what the log may take.
    pub(crate) fn flow_round(&mut self, host: &mut Host) {
        let log_bytes = u64::from(SEGMENTS_MAX) * SEGMENT_BYTES;
        self.flow(host, (24 * log_bytes / 4096) as usize);
    }
}

fn lengths(host: &Host, at: usize) -> Vec<usize> {
    let overhead = message(0).len();
    host.deliveries(at).iter().map(|(_, _, message)| message.len() - overhead).collect()
}

fn drain(host: &mut Host, queue: &str) -> Vec<usize> {
    let at = host.connect(0);
    host.receiver(at, queue, 1000);
    let came = lengths(host, at);
    for (link, delivery, _) in host.deliveries(at) {
        host.clients[at].amqp.settle(link, delivery, Outcome::Accepted);
    }
    host.pass(Duration::from_millis(100));
    host.lose(at);
    came
}

#[test]
fn lagging_messages_among_a_stream_pin_nothing_and_are_there_after_a_crash() {
    for level in [Level::Sync, Level::Async] {
        let mut host = Host::new(Wish { level, ..small_log() });
        let at = host.connect(0);
        let lagging = host.sender(at, "lagging");
        // One whole, one in fragments, and between them one that goes.
        for bytes in [10, 100, 150_000, 20] {
            assert!(host.send(at, lagging, bytes, false));
        }
        let mut stream = Stream::new(&mut host);
        for _ in 0..3 {
            stream.flow_round(&mut host);
            host.crash();
            assert_eq!(host.messages(), 4);
            stream = Stream::new(&mut host);
        }
        let next = host.shards[0].state().queue(QueueId(1)).expect("the queue").next_sequence();
        assert_eq!(next.0, 4, "copies give no sequence");
        assert!(host.stats(0).journal_copied_bytes_total == 0, "counted since the start");
        stream.flow_round(&mut host);
        let copied = host.stats(0).journal_copied_bytes_total;
        assert!(copied > 10 * 150_000, "{copied} bytes were copied");
        assert_eq!(drain(&mut host, "lagging"), [10, 100, 150_000, 20]);
        host.crash();
        assert_eq!(host.messages(), 0, "nothing comes back");
    }
}

#[test]
fn what_is_behind_the_stream_keeps_its_failures_and_its_doom() {
    let mut host = Host::new(Wish { ..small_log() });
    let at = host.connect(0);
    let sender = host.sender(at, "lagging");
    assert!(host.send(at, sender, 10, false));
    let consumer = host.connect(0);
    let receiver = host.receiver(consumer, "lagging", 1);
    for _ in 0..3 {
        let (link, delivery, _) = host.deliveries(consumer).pop().expect("it was delivered");
        host.clients[consumer].amqp.settle(link, delivery, FAILED);
        host.settle();
        host.clients[consumer].amqp.grant_credit(receiver, 1);
        host.settle();
    }
    // It is at a consumer while it is copied, and while the process dies.
    let mut stream = Stream::new(&mut host);
    stream.flow_round(&mut host);
    assert_eq!(host.shards[0].state().setback(QueueId(1), journal::Sequence(0)), FAILED_THRICE);
    host.crash();
    assert_eq!(host.shards[0].state().setback(QueueId(1), journal::Sequence(0)), FAILED_THRICE);
    let consumer = host.connect(0);
    host.receiver(consumer, "lagging", 1);
    stream = Stream::new(&mut host);
    stream.flow_round(&mut host);
    // A consumer settles what has moved under its hands.
    let (link, delivery, _) = host.deliveries(consumer).pop().expect("it was delivered");
    host.clients[consumer].amqp.settle(link, delivery, Outcome::Accepted);
    host.pass(Duration::from_millis(100));
    assert_eq!(host.messages(), 0);
    host.crash();
    assert_eq!(host.messages(), 0);
}

#[test]
fn a_settlement_that_comes_while_its_copy_is_on_its_way_is_final() {
    let mut host = Host::new(small_log());
    let at = host.connect(0);
    let lagging = host.sender(at, "lagging");
    assert!(host.send(at, lagging, 10, false));
    host.receiver(at, "lagging", 1);
    let (link, delivery, _) = host.deliveries(at).pop().expect("it was delivered");
    let mut stream = Stream::new(&mut host);
    let mut copied = 0;
    while copied == 0 {
        stream.flow(&mut host, 1);
        host.writes = Writes::Held;
        copied = host.stats(0).journal_copied_bytes_total;
        if copied == 0 {
            host.let_go();
        }
    }
    host.clients[at].amqp.settle(link, delivery, Outcome::Accepted);
    host.settle();
    host.let_go();
    host.pass(Duration::from_millis(100));
    assert_eq!(host.messages(), 0);
    stream.flow_round(&mut host);
    host.crash();
    assert_eq!(host.messages(), 0);
}

/// Each of these lies in a block alone, which is nearly all padding.
#[test]
fn padding_is_won_back_where_room_is_short_and_not_before() {
    for (segments_max, is_short) in [(200, false), (SEGMENTS_MAX, true)] {
        let mut host = Host::new(Wish { segments_max, ..Wish::default() });
        let at = host.connect(0);
        let backlog = host.sender(at, "backlog");
        let blocks = (u64::from(SEGMENTS_MAX) * SEGMENT_BYTES / 4096) as usize;
        for _ in 0..2 {
            for _ in 0..blocks {
                assert!(host.send(at, backlog, 10, false), "there is room if padding is won back");
                host.pass(Duration::from_millis(1));
            }
            let copied = host.stats(0).journal_copied_bytes_total;
            assert_eq!(copied > 0, is_short, "{copied} of a log of {segments_max} segments");
        }
        host.crash();
        // What is padding is known from the log, too.
        let at = host.connect(0);
        let more = host.sender(at, "backlog");
        assert!(host.send(at, more, 20, false));
        host.pass(Duration::from_millis(1));
        let copied = host.stats(0).journal_copied_bytes_total;
        assert!(is_short || copied == 0, "{copied} bytes");
        let came = drain(&mut host, "backlog");
        assert_eq!(came[..2 * blocks], vec![10; 2 * blocks]);
        assert_eq!(came.len(), 2 * blocks + 1);
    }
}

/// Sends until a message is refused.
fn fill(host: &mut Host, at: usize, sender: LinkId) {
    for _ in 0..1_000 {
        if !host.send(at, sender, 3_000, false) {
            host.pass(Duration::from_millis(1500));
        }
        if host.outcomes(at).iter().any(|outcome| *outcome != Outcome::Accepted) {
            return;
        }
    }
    panic!("the log never got full");
}

#[test]
fn a_full_log_takes_messages_again_when_some_were_settled_anywhere() {
    let mut host = Host::new(small_log());
    let at = host.connect(0);
    let sender = host.sender(at, "q");
    fill(&mut host, at, sender);
    let accepted = host.messages() as usize;
    assert!(accepted > 80, "{accepted} until the log was full");
    // Every other message goes: no segment is empty, and half of the log is.
    let consumer = host.connect(0);
    host.receiver(consumer, "q", 1000);
    let delivered = host.deliveries(consumer);
    assert_eq!(delivered.len(), accepted);
    for (link, delivery, _) in delivered.into_iter().step_by(2) {
        host.clients[consumer].amqp.settle(link, delivery, Outcome::Accepted);
        host.settle();
    }
    host.pass(Duration::from_secs(2));
    let left = host.messages();
    assert_eq!(left, accepted as u64 / 2);
    host.clients[at].heard.clear();
    for _ in 0..left / 3 {
        assert!(host.send(at, sender, 3_000, false), "there is credit");
        host.pass(Duration::from_millis(100));
    }
    let outcomes = host.outcomes(at);
    assert_eq!(outcomes.len() as u64, left / 3);
    assert!(outcomes.iter().all(|outcome| *outcome == Outcome::Accepted));
    host.crash();
    assert_eq!(host.messages(), left + left / 3);
    let id = host.shards[0].state().catalogue.named("q").expect("the queue").id;
    let queue = host.shards[0].state().queue(id).expect("it is here");
    assert_eq!(queue.count(SlotState::Available), left + left / 3);
}

#[test]
fn a_log_of_which_everything_lives_is_left_alone() {
    let mut host = Host::new(small_log());
    let at = host.connect(0);
    let sender = host.sender(at, "q");
    fill(&mut host, at, sender);
    let copied = host.stats(0).journal_copied_bytes_total;
    for _ in 0..50 {
        host.pass(Duration::from_secs(2));
        host.send(at, sender, 3_000, false);
    }
    assert_eq!(host.stats(0).journal_copied_bytes_total, copied, "in vain");
}
