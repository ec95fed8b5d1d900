//! A start that begins with a checkpoint finds what the log says: whatever was settled, copied,
//! recycled or deleted since.

use std::time::Duration;

use amqp::definitions::Role;
use amqp::delivery::Outcome;
use amqp::message::{Header, write_header};
use broker::admin::AdminRequest;
use broker::limits::{
    CHECKPOINT_RETRY, EXPIRY_BYTES, INDEX_BYTES, PLACE_BYTES, SLOT_BYTES, TOUCHED_BYTES,
};
use broker::queue::Queue;
use journal::{FileId, ShardId};

use crate::compaction::{FAILED, Stream, small_log};
use crate::host::{Host, SEGMENT_BYTES, Wish, message};
use crate::temporary::{exists, make, node};

fn log(segments_max: u32) -> Wish {
    Wish { segments_max, ..Wish::default() }
}

/// A backlog of about so many segments, in messages of these bytes.
pub(crate) fn fill(host: &mut Host, queue: &str, bytes: usize, segments: u64) -> usize {
    fill_at(host, 0, queue, bytes, segments)
}

fn fill_at(host: &mut Host, shard: usize, queue: &str, bytes: usize, segments: u64) -> usize {
    let at = host.connect(shard);
    let sender = host.sender(at, queue);
    let count = (segments * SEGMENT_BYTES) as usize / (bytes.max(4000));
    for _ in 0..count {
        assert!(host.send(at, sender, bytes, false));
        host.pass(Duration::from_millis(1));
    }
    host.lose(at);
    count
}

/// How the last start of shard 0 went: records read, and whether it began with a checkpoint.
fn started(host: &mut Host) -> (u64, bool) {
    started_on(host, 0)
}

fn started_on(host: &Host, of: usize) -> (u64, bool) {
    let report = host.reports.iter().rev().find(|(shard, _)| *shard == of);
    let (_, report) = report.expect("it has started");
    (report.records, report.checkpoint.is_some())
}

#[test]
fn a_start_reads_the_tail_and_finds_every_message() {
    let mut host = Host::new(log(60));
    let count = fill(&mut host, "backlog", 3500, 12);
    let stats = host.stats(0);
    assert!(stats.journal_checkpoints_total > 0 && stats.journal_checkpoint_lsn > 0, "{stats:?}");
    assert!(stats.journal_tail_bytes < 5 * SEGMENT_BYTES, "{stats:?}");
    host.crash();
    let (records, is_short) = started(&mut host);
    assert!(is_short && records < count as u64 / 2, "{records} of {count}");
    assert_eq!(host.messages(), count as u64);
    // They are read back from where the checkpoint says they are.
    let at = host.connect(0);
    host.receiver(at, "backlog", count as u32);
    host.pass(Duration::from_millis(10));
    let came = host.deliveries(at);
    assert_eq!(came.len(), count);
    for (link, delivery, _) in came {
        host.clients[at].amqp.settle(link, delivery, Outcome::Accepted);
    }
    host.pass(Duration::from_millis(100));
    host.crash();
    assert_eq!(host.messages(), 0, "nothing comes back");
}

#[test]
fn nothing_is_written_while_the_log_is_short() {
    let mut host = Host::new(small_log());
    let mut stream = Stream::new(&mut host);
    stream.flow_round(&mut host);
    assert_eq!(host.stats(0).journal_checkpoints_total, 0, "all is settled: a start reads little");
    let is_written = |(file, bytes): &(FileId, Vec<u8>)| {
        matches!(file, FileId::Checkpoint { .. }) && !bytes.is_empty()
    };
    assert!(!host.files_of(ShardId(0)).iter().any(is_written));
}

/// A checkpoint tells of a large message; then that goes, and then its segment.
#[test]
fn what_goes_with_its_segment_after_its_page_was_told_does_not_come_back() {
    let mut host = Host::new(log(60));
    let at = host.connect(0);
    let large = host.sender(at, "large");
    assert!(host.send(at, large, 150_000, false));
    let count = fill(&mut host, "backlog", 3500, 10);
    let stats = host.stats(0);
    assert!(stats.journal_checkpoints_total > 0);
    host.crash();
    assert_eq!((host.messages(), started(&mut host).1), (count as u64 + 1, true));
    // Both are consumed, and the log goes on until its head has passed all that the checkpoint
    // told of.
    for queue in ["large", "backlog"] {
        let at = host.connect(0);
        host.receiver(at, queue, 10_000);
        host.pass(Duration::from_millis(20));
        for (link, delivery, _) in host.deliveries(at) {
            host.clients[at].amqp.settle(link, delivery, Outcome::Accepted);
        }
        host.pass(Duration::from_millis(100));
        host.lose(at);
    }
    let kept = fill(&mut host, "kept", 3500, 1);
    let checkpointed = host.stats(0).journal_checkpoint_lsn;
    let head = host.stats(0).journal_head_lsn;
    assert!(head > SEGMENT_BYTES, "{head}, {checkpointed}");
    host.crash();
    assert_eq!(host.messages(), kept as u64);
    let at = host.connect(0);
    host.receiver(at, "kept", 1000);
    host.pass(Duration::from_millis(20));
    assert_eq!(host.deliveries(at).len(), kept);
}

#[test]
fn a_purge_after_the_checkpoint_holds() {
    let mut host = Host::new(log(60));
    let count = fill(&mut host, "backlog", 3500, 10);
    assert!(host.stats(0).journal_checkpoints_total > 0);
    host.ask(0, AdminRequest::Purge { queue: "backlog".to_owned() });
    host.pass(Duration::from_secs(1));
    host.crash();
    assert_eq!(host.messages(), 0, "of {count}");
}

#[test]
fn a_file_system_without_room_for_it_costs_the_checkpoint_and_nothing_else() {
    let mut host = Host::new(log(60));
    host.no_checkpoint_space = true;
    let count = fill(&mut host, "backlog", 3500, 12);
    let stats = host.stats(0);
    assert!(stats.journal_checkpoint_failures_total > 0, "{stats:?}");
    assert_eq!((stats.journal_checkpoints_total, host.fatal.clone()), (0, None));
    host.crash();
    let (records, is_short) = started(&mut host);
    assert!(!is_short && records >= count as u64);
    assert_eq!(host.messages(), count as u64);
}

/// Each try writes what there is room for, and takes it from others.
#[test]
fn one_that_cannot_be_written_is_tried_again_more_and_more_seldom() {
    let mut host = Host::new(log(60));
    host.no_checkpoint_space = true;
    fill(&mut host, "backlog", 3500, 8);
    let mut failures = vec![host.stats(0).journal_checkpoint_failures_total];
    for _ in 0..7 {
        host.pass(CHECKPOINT_RETRY);
        fill(&mut host, "backlog", 3500, 1);
        failures.push(host.stats(0).journal_checkpoint_failures_total);
    }
    assert_eq!(failures, [1, 2, 2, 3, 3, 3, 3, 4]);
    host.no_checkpoint_space = false;
    host.pass(8 * CHECKPOINT_RETRY);
    fill(&mut host, "backlog", 3500, 3);
    let stats = host.stats(0);
    assert!(stats.journal_checkpoint_failures_total == 4 && stats.journal_checkpoints_total > 0);
}

/// A page tells of a large message of a queue that is deleted then; its segment goes; and a start
/// has a page that speaks of neither. On the shard of the catalogue, and on another.
#[test]
fn a_queue_that_is_deleted_after_its_page_was_told_does_not_come_back() {
    for home in [0, 1] {
        let mut host = Host::new(Wish { shards: 2, ..log(60) });
        let owner = host.connect(home);
        let large = make(&mut host, owner, Role::Sender, None);
        let (name, _) = node(&host, owner, large);
        host.pass(Duration::from_millis(5));
        assert!(host.send(owner, large, 150_000, false));
        let kept = fill_at(&mut host, home, "kept", 3500, 10);
        let stats = host.stats(home);
        assert!(stats.journal_checkpoints_total > 0, "{stats:?}");
        let checkpointed = stats.journal_checkpoints_total;
        assert!(exists(&host, &name));
        host.lose(owner);
        host.pass(Duration::from_secs(1));
        assert!(!exists(&host, &name), "it has gone with its connection");
        assert_eq!(host.stats(home).journal_checkpoints_total, checkpointed);
        // All that lives in the first segments goes, and they with it.
        let at = host.connect(home);
        let receiver = host.receiver(at, "kept", 60);
        host.pass(Duration::from_millis(20));
        for (link, delivery, _) in host.deliveries(at) {
            assert_eq!(link, receiver);
            host.clients[at].amqp.settle(link, delivery, Outcome::Accepted);
        }
        host.pass(Duration::from_millis(100));
        let head = host.stats(home).journal_head_lsn;
        assert!(head > 3 * SEGMENT_BYTES, "the segment of the large message is gone: {head}");
        host.crash();
        assert!(started_on(&host, home).1, "with the checkpoint that tells of it");
        assert_eq!(host.messages(), kept as u64 - 60);
        assert!(!exists(&host, &name));
        let at = host.connect(home);
        host.receiver(at, "kept", 1000);
        host.pass(Duration::from_millis(20));
        assert_eq!(host.deliveries(at).len(), kept - 60);
    }
}

/// What messages cost beside their slots and bytes, as it counts against the memory bound.
fn order_bytes(host: &Host) -> u64 {
    let state = host.shards[0].state();
    let messages = state.queues().flat_map(|queue| {
        let next = |after: &broker::queue::InQueue| {
            queue.stored_from(journal::Sequence(after.sequence.0 + 1))
        };
        std::iter::successors(queue.stored_from(journal::Sequence(0)), next)
    });
    let all: u64 = messages.map(|of| Queue::memory_bytes(of.message_bytes as usize)).sum();
    let outside = state.paged_out();
    let won = outside.bytes + outside.messages * (SLOT_BYTES - INDEX_BYTES);
    state.memory_bytes() - (all - won)
}

#[test]
fn what_expires_has_a_priority_or_came_back_counts_after_a_start_from_the_pages_too() {
    const COUNT: u64 = 20;
    let mut host = Host::new(log(60));
    let at = host.connect(0);
    let sender = host.sender(at, "ordered");
    let header = Header { ttl: Some(3_600_000), priority: Some(9), ..Header::default() };
    let mut bytes = Vec::new();
    write_header(&header, &mut bytes);
    bytes.extend(message(10));
    for _ in 0..COUNT {
        host.clients[at].amqp.send(sender, &[&bytes], false).expect("there is credit");
        host.settle();
    }
    let sender = host.sender(at, "returned");
    for _ in 0..COUNT {
        assert!(host.send(at, sender, 10, false));
    }
    let receiver = host.receiver(at, "returned", COUNT as u32);
    host.pass(Duration::from_millis(10));
    for (_, delivery, _) in host.deliveries(at) {
        host.clients[at].amqp.settle(receiver, delivery, FAILED);
    }
    host.pass(Duration::from_millis(10));
    host.lose(at);
    let count = fill(&mut host, "backlog", 3500, 12) as u64;
    let order = COUNT * (EXPIRY_BYTES + PLACE_BYTES);
    assert_eq!(order_bytes(&host), order + COUNT * (PLACE_BYTES + TOUCHED_BYTES));
    // What came back before a start stands in the order of sequences after it.
    host.crash();
    assert!(started(&mut host).1);
    assert_eq!(order_bytes(&host), order, "after a start with a checkpoint");
    let state = host.shards[0].state();
    let told = state.catalogue.named("ordered").and_then(|record| state.queue(record.id));
    assert_eq!(told.map(|queue| queue.paged_out().messages), Some(COUNT), "the pages have told it");
    let is_of_log = |(file, _): &(FileId, Vec<u8>)| !matches!(file, FileId::Checkpoint { .. });
    let bare: Vec<_> = host.files_of(ShardId(0));
    let bare = bare.into_iter().map(|of| if is_of_log(&of) { of } else { (of.0, Vec::new()) });
    let bare: Vec<_> = bare.collect();
    host.put_files(bare);
    host.crash();
    assert!(!started(&mut host).1);
    assert_eq!(order_bytes(&host), order, "after a start of the whole log");
    let at = host.connect(0);
    for queue in ["ordered", "returned", "backlog"] {
        host.receiver(at, queue, count as u32);
    }
    host.settle_all(at, Duration::from_millis(20));
    host.lose(at);
    host.assert_clean();
}
