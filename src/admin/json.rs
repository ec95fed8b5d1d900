//! The JSON form of a shard's answers. Field names are an interface: they are added to, never
//! renamed.

use broker::admin::{ConnectionStat, PeekedMessage, QueueStat};
use serde_json::{Value, json};

pub(super) fn queue(stat: &QueueStat) -> Value {
    json!({
        "name": stat.name,
        "id": stat.id.0,
        "shard": stat.shard,
        "durability": stat.durability,
        "available": stat.available,
        "acquired": stat.acquired,
        "delayed": stat.delayed,
        "moving": stat.moving,
        "uncommitted": stat.uncommitted,
        "payload_bytes": stat.payload_bytes,
        "resident_bytes": stat.resident_bytes,
        "consumers": stat.consumers,
        "enqueued_total": stat.enqueued_total,
        "settled_total": stat.settled_total,
        "rejected_total": stat.rejected_total,
        "delivered_total": stat.delivered_total,
        "next_sequence": stat.next_sequence.0,
    })
}

/// A message: its encoded form in hexadecimal, since it is bytes.
pub(super) fn message(peeked: &PeekedMessage) -> Value {
    json!({
        "sequence": peeked.sequence.0,
        "acquired": peeked.acquired,
        "delivery_count": peeked.delivery_count,
        "bytes": peeked.message_bytes,
        "encoded_hex": hex(&peeked.message),
    })
}

pub(super) fn connection(stat: &ConnectionStat) -> Value {
    json!({
        "id": stat.conn.0,
        "shard": stat.shard,
        "peer": stat.peer,
        "container_id": stat.container_id,
        "user": stat.user,
        "producers": stat.producers,
        "consumers": stat.consumers,
        "received_bytes": stat.received_bytes,
        "paused": stat.paused,
    })
}

/// So many bytes of a message are shown; the rest is in `bytes`.
const SHOWN_BYTES_MAX: usize = 64 * 1024;

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    let shown = &bytes[..bytes.len().min(SHOWN_BYTES_MAX)];
    shown.iter().fold(String::with_capacity(2 * shown.len()), |mut text, byte| {
        write!(text, "{byte:02x}").expect("a string takes all that is written");
        text
    })
}
