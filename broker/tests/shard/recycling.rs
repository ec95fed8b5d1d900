//! The head of the log goes only when what replaces it is on the disk, at every level.

use std::time::Duration;

use amqp::delivery::Outcome;
use journal::{Level, QueueId, Sequence};

use crate::host::{Host, SEGMENT_BYTES, Wish, Writes};

const QUEUE: QueueId = QueueId(1);

fn next_sequence(host: &Host) -> Sequence {
    host.shards[0].state().queue(QUEUE).expect("the queue").next_sequence()
}

/// Fills the first segment of the log with messages that are settled at once.
fn fill_a_segment(host: &mut Host) -> (usize, amqp::link::LinkId) {
    let at = host.connect(0);
    let sender = host.sender(at, "q");
    host.receiver(at, "q", 1000);
    for _ in 0..40 {
        assert!(host.send(at, sender, 1000, false));
        let (link, delivery, _) = host.deliveries(at).pop().expect("delivered");
        host.clients[at].amqp.settle(link, delivery, Outcome::Accepted);
        host.settle();
    }
    host.pass(Duration::from_millis(100));
    assert_eq!(host.messages(), 0);
    (at, sender)
}

fn settle_all(host: &mut Host, at: usize, from: usize) {
    for (link, delivery, _) in host.deliveries(at).split_off(from) {
        host.clients[at].amqp.settle(link, delivery, Outcome::Accepted);
    }
    host.settle();
}

#[test]
fn a_sequence_is_never_given_again_though_its_newest_witness_is_lost() {
    // Level async: messages and settlements count as committed while their writes hang. Shard 1, so
    // that no catalogue has to be copied.
    let mut host = Host::new(Wish { shards: 2, level: Level::Async, ..Wish::default() });
    let at = host.connect(1);
    let (rare, busy) = (host.sender(at, "rare"), host.sender(at, "busy"));
    assert!(host.send(at, rare, 100, false));
    host.receiver(at, "busy", 1000);
    while host.stats(1).journal_durable_lsn < SEGMENT_BYTES + 20_000 {
        assert!(host.send(at, busy, 1000, false));
        let newest = host.deliveries(at).len() - 1;
        settle_all(&mut host, at, newest);
        host.pass(Duration::from_millis(10));
    }
    let pinned = host.shards[1].state().messages_in(0);
    assert_eq!(pinned, 1, "one message pins the head");
    // From here on no batch reaches the disk.
    host.writes = Writes::Held;
    let heard = host.deliveries(at).len();
    assert!(host.send(at, rare, 100, false));
    host.receiver(at, "rare", 100);
    settle_all(&mut host, at, heard);
    host.pass(Duration::from_millis(50));
    assert_eq!(host.messages(), 0, "at this level it counts as settled");
    host.crash();
    let next = host.shards[1].state().queue(QUEUE).expect("the queue").next_sequence();
    assert_eq!(next, Sequence(1), "a sequence would be given twice");
    assert_eq!(host.shards[1].state().messages_in(0), 1, "its settlement never reached the disk");
}

#[test]
fn the_log_goes_round_many_times_and_a_queue_keeps_its_sequence() {
    let mut host = Host::new(Wish { segments_max: 5, ..Wish::default() });
    for _ in 0..12 {
        let (at, _) = fill_a_segment(&mut host);
        host.lose(at);
        host.assert_clean();
    }
    assert_eq!(next_sequence(&host), Sequence(480));
    host.crash();
    assert_eq!(next_sequence(&host), Sequence(480));
}
