//! A queue: the life of a message in it, behind others that wait.

use broker::mail::{LinkKey, LinkRef};
use broker::queue::{Queue, Traits};
use bytes::Bytes;
use journal::{Lsn, QueueId, Sequence, ShardId};

use super::{Row, Work};

pub(super) const CASES: &[Row] = &[
    ("queue/a message's life, nobody waits", 0, || life(0)),
    ("queue/a message's life, 10,000 wait", 0, || life(10_000)),
];

const CONSUMER: LinkRef = LinkRef { shard: ShardId(0), key: LinkKey { slot: 1, generation: 0 } };

/// Reserve, commit, dispatch, settle, archive; the oldest goes as the newest comes.
fn life(waiting: u64) -> Work {
    let mut queue = Queue::new(QueueId(1));
    queue.attach(CONSUMER);
    let message = Bytes::from_static(&[7; 256]);
    let mut next = 0;
    let mut arrive = move |queue: &mut Queue| {
        queue.reserve(Sequence(next), Lsn(next << 9), message.clone(), Traits::default());
        queue.commit(Sequence(next));
        next += 1;
    };
    (0..waiting).for_each(|_| arrive(&mut queue));
    Box::new(move |operations| {
        for _ in 0..operations {
            arrive(&mut queue);
            queue.add_credit(CONSUMER, 1, false);
            let given = queue.dispatch().expect("one waits, and there is credit");
            queue.settle(CONSUMER, given.sequence).expect("it is held");
            queue.archive(given.sequence).expect("it is settled");
        }
    })
}
