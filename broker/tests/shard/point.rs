//! One moment of all shards: what a copy of their logs up to there starts as.

use std::time::Duration;

use amqp::delivery::Outcome;
use broker::admin::{AdminReply, AdminRequest};
use broker::limits::{FREEZE_MAX, HOLD_MAX};
use journal::ShardId;

use crate::host::{Host, SEGMENT_BYTES, Wish, Writes};

fn ask(host: &mut Host, shard: usize, request: AdminRequest) -> AdminReply {
    host.ask(shard, request);
    host.settle();
    host.replies.pop().expect("it is answered at once").1
}

/// Lets the writes that are kept go one by one, with all that follows from them.
fn go_on(host: &mut Host, most: usize) {
    for _ in 0..most {
        host.pass(Duration::from_millis(10));
        if host.is_holding() {
            host.let_go_first();
        }
    }
}

/// A message is rejected, and while it moves from shard 0 to 1 a copy is made of the one's log and,
/// later, of the other's. How many messages there are where the copies are started.
fn messages_in_a_copy(kept: usize, first: ShardId, between: usize, freezes: bool) -> u64 {
    let mut host = Host::new(Wish { shards: 2, ..Wish::default() });
    let at = host.connect(0);
    let sender = host.sender(at, "q");
    assert!(host.send(at, sender, 10, false));
    host.receiver(at, "q", 10);
    let other = host.connect(1);
    host.sender(other, "DLQ");
    host.pass(Duration::from_millis(300));
    host.writes = Writes::Held;
    let (link, delivery, _) = host.deliveries(at).pop().expect("something was delivered");
    host.clients[at].amqp.settle(link, delivery, Outcome::Rejected(None));
    host.settle();
    go_on(&mut host, kept);
    for shard in 0..2 {
        let wanted = if freezes { AdminReply::Frozen } else { AdminReply::Held(false) };
        let request = if freezes { AdminRequest::Freeze } else { AdminRequest::ForgetPoint };
        assert_eq!(ask(&mut host, shard, request), wanted);
    }
    let early = host.files_of(first);
    go_on(&mut host, between);
    host.put_files(early);
    host.crash();
    host.pass(Duration::from_millis(300));
    host.messages()
}

#[test]
fn copies_that_begin_one_after_the_other_are_of_one_moment() {
    let mut without = Vec::new();
    for first in [ShardId(0), ShardId(1)] {
        for kept in 0..8 {
            for between in [1, 3, 8] {
                let case = format!("{first:?} first, {kept} writes before, {between} between");
                assert_eq!(messages_in_a_copy(kept, first, between, true), 1, "{case}");
                without.push(messages_in_a_copy(kept, first, between, false));
            }
        }
    }
    assert!(without.contains(&0), "without, one copy would lack what the other gave it");
}

#[test]
fn a_frozen_shard_answers_late_and_thaws_by_itself() {
    let mut host = Host::new(Wish { shards: 2, ..Wish::default() });
    let at = host.connect(1);
    assert_eq!(ask(&mut host, 0, AdminRequest::Freeze), AdminReply::Frozen);
    let again = ask(&mut host, 0, AdminRequest::Freeze);
    assert!(matches!(again, AdminReply::Failed(_)), "{again:?}");
    let sender = host.sender(at, "q");
    assert!(!host.send(at, sender, 10, false), "its link waits for shard 0, which hears nothing");
    assert_eq!(ask(&mut host, 0, AdminRequest::Thaw), AdminReply::Thawed(true));
    assert!(host.send(at, sender, 10, false));

    assert_eq!(ask(&mut host, 0, AdminRequest::Freeze), AdminReply::Frozen);
    host.pass(FREEZE_MAX);
    let late = host.sender(at, "other");
    assert!(host.send(at, late, 10, false), "it does not wait for ever");
    assert_eq!(ask(&mut host, 0, AdminRequest::Point), AdminReply::Thawed(false));
    assert_eq!(ask(&mut host, 0, AdminRequest::Thaw), AdminReply::Thawed(false));
}

/// Sends messages that are settled at once until so many segments were used.
fn use_segments(host: &mut Host, at: usize, sender: amqp::link::LinkId, segments: u64) {
    let end = host.stats(0).journal_durable_lsn + segments * SEGMENT_BYTES;
    while host.stats(0).journal_durable_lsn < end {
        assert!(host.send(at, sender, 1000, false));
        let (link, delivery, _) = host.deliveries(at).pop().expect("delivered");
        host.clients[at].amqp.settle(link, delivery, Outcome::Accepted);
        host.pass(Duration::from_millis(10));
    }
}

#[test]
fn a_log_that_is_copied_is_held_until_it_is_forgotten_or_full() {
    let mut host = Host::new(Wish { segments_max: 12, ..Wish::default() });
    let at = host.connect(0);
    let sender = host.sender(at, "q");
    host.receiver(at, "q", 1 << 20);
    let point = |host: &mut Host| {
        assert_eq!(ask(host, 0, AdminRequest::Freeze), AdminReply::Frozen);
        let AdminReply::Point(point) = ask(host, 0, AdminRequest::Point) else { panic!("none") };
        assert_eq!(ask(host, 0, AdminRequest::Thaw), AdminReply::Thawed(true));
        point
    };
    use_segments(&mut host, at, sender, 3);
    let held = point(&mut host);
    assert!(held.first.0 > SEGMENT_BYTES, "the log is recycled");
    use_segments(&mut host, at, sender, 3);
    assert_eq!(host.stats(0).journal_head_lsn, held.first.0);
    let busy = ask(&mut host, 0, AdminRequest::Freeze);
    assert!(matches!(busy, AdminReply::Failed(_)), "one copy at a time: {busy:?}");
    assert_eq!(ask(&mut host, 0, AdminRequest::KeepPoint), AdminReply::Held(true));
    assert_eq!(ask(&mut host, 0, AdminRequest::ForgetPoint), AdminReply::Held(false));
    use_segments(&mut host, at, sender, 1);
    assert!(host.stats(0).journal_head_lsn > held.first.0 + SEGMENT_BYTES);

    let held = point(&mut host);
    use_segments(&mut host, at, sender, 20);
    assert!(host.stats(0).journal_head_lsn > held.first.0 + SEGMENT_BYTES, "the log comes first");
    assert_eq!(ask(&mut host, 0, AdminRequest::KeepPoint), AdminReply::Held(false));

    let held = point(&mut host);
    host.pass(HOLD_MAX);
    use_segments(&mut host, at, sender, 2);
    assert!(host.stats(0).journal_head_lsn > held.first.0 + SEGMENT_BYTES, "who copied is gone");
}
