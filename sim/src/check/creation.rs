//! One name is one queue, until that is deleted, and no message is written for a queue before its
//! creation is committed.

use std::collections::BTreeMap;
use std::time::Instant;

use journal::{QueueId, RecordKind, ShardId};

use super::{Check, Facts, Seen, Written};

/// The shard whose log owns the catalogue.
const CATALOGUE: ShardId = ShardId(0);

/// Names as the log has them.
#[derive(Debug, Default)]
pub(super) struct Creation {
    names: BTreeMap<String, QueueId>,
}

impl Check for Creation {
    fn promise(&self) -> &'static str {
        "one name is one queue, committed before it is used"
    }

    fn see(&mut self, _now: Instant, facts: &Facts, seen: &Seen) -> Result<(), String> {
        match seen {
            Seen::Written(written) => self.written(facts, written),
            Seen::Ready { queues } => {
                self.names.clear();
                for queue in queues {
                    if let Some(other) = self.names.insert(queue.name.clone(), queue.id) {
                        let name = &queue.name;
                        return Err(format!("'{name}' is queue {} and {}", other.0, queue.id.0));
                    }
                }
                Ok(())
            }
            // What a crash has cut off was never created: shards that go on with their moves may
            // ask for its name again before all are ready.
            Seen::Recovered { shard: CATALOGUE, .. } => {
                self.names.retain(|_, queue| facts.queues.contains_key(queue));
                Ok(())
            }
            Seen::Sent { .. }
            | Seen::Accepted(_)
            | Seen::Refused(_)
            | Seen::Delivered { .. }
            | Seen::Judged { .. }
            | Seen::Confirmed { .. }
            | Seen::Browsed { .. }
            | Seen::Parted(_)
            | Seen::Purging { .. }
            | Seen::Purged(_)
            | Seen::Forgotten { .. }
            | Seen::Vouched { .. }
            | Seen::Headed { .. }
            | Seen::Recovered { .. }
            | Seen::Crash { .. } => Ok(()),
        }
    }
}

impl Creation {
    fn written(&mut self, facts: &Facts, written: &Written) -> Result<(), String> {
        if let Some(name) = &written.name {
            let known = *self.names.entry(name.clone()).or_insert(written.queue);
            if known != written.queue {
                return Err(format!("'{name}' is queue {} and {}", known.0, written.queue.0));
            }
        }
        if written.kind == RecordKind::QueueDelete {
            // Its name may be another queue's from now on.
            self.names.retain(|_, queue| *queue != written.queue);
        }
        if written.kind != RecordKind::Message || written.found {
            return Ok(());
        }
        let stamp = facts.stamp.as_ref().ok_or("a write without a stamp")?;
        let durable = stamp.marks[usize::from(CATALOGUE.0)].durable;
        match facts.queues.get(&written.queue) {
            Some(creation) if creation.end <= durable => Ok(()),
            Some(creation) => Err(format!(
                "a message for queue {} is written on shard {} while its creation, ending at LSN \
                 {}, is not durable (up to {durable})",
                written.queue.0, written.shard.0, creation.end
            )),
            None => Err(format!("queue {} was never created", written.queue.0)),
        }
    }
}
