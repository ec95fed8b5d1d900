//! `/metrics`: the Prometheus text format, version 0.0.4.
//!
//! ```text
//!   # HELP name what it is
//!   # TYPE name gauge|counter|histogram
//!   name{shard="0"} 17
//! ```
//! One table gives each shard metric its name, kind, help and value, another those of a queue.
//! Queue series are cut at [`QUEUES_MAX`], and a metric says how many were left out: a broker with
//! a hundred thousand queues must not drown who scrapes it. Label values are escaped.

use std::fmt::Write as _;
use std::sync::atomic::Ordering;

use broker::admin::{QueueStat, ShardStats};
use serde_json::Value;

use crate::node::Node;
use crate::tls::Figures;

/// What the answer is.
pub(super) const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Queues that are listed one by one.
const QUEUES_MAX: usize = 2_000;

/// What is known of a pair, as `/api/v1/ha` shows it.
const OF_PAIR: &[Of<Value>] = &[
    ("pair_live", Kind::Gauge, "1: this member serves.", |pair| u64::from(pair["role"] == "live")),
    ("pair_epoch", Kind::Gauge, "Number of the reign.", |pair| number(pair, "epoch")),
    ("pair_in_sync", Kind::Gauge, "Members in sync.", |pair| {
        pair["in_sync"].as_array().map_or(0, Vec::len) as u64
    }),
    (
        "pair_lag_bytes",
        Kind::Gauge,
        "Bytes that the backup is behind, on the shard where it is most.",
        |pair| number(pair, "lag_bytes"),
    ),
    ("pair_lag_ms", Kind::Gauge, "How long it has been behind.", |pair| number(pair, "lag_ms")),
    ("pair_voters_reachable", Kind::Gauge, "Voters with a link.", |pair| {
        number(pair, "voters_reachable")
    }),
    ("pair_elections_total", Kind::Counter, "Times that this member won the role.", |pair| {
        number(pair, "elections_total")
    }),
    ("pair_fencings_total", Kind::Counter, "Times that it stopped serving.", |pair| {
        number(pair, "fencings_total")
    }),
    ("pair_renewals_total", Kind::Counter, "Renewals of its lease.", |pair| {
        number(pair, "renewals_total")
    }),
    ("pair_renewal_ms_max", Kind::Gauge, "The longest of them.", |pair| {
        number(pair, "renewal_ms_max")
    }),
    ("pair_renewal_ms_p999", Kind::Gauge, "What 99.9 % of the last 2000 did not exceed.", |pair| {
        number(pair, "renewal_ms_p999")
    }),
    ("pair_lease_too_short", Kind::Gauge, "1: the lease is below ten times that.", |pair| {
        u64::from(pair["lease_too_short"] == true)
    }),
    ("pair_settings_differ", Kind::Gauge, "1: settings that must agree do not.", |pair| {
        u64::from(pair["settings_differ"] == true)
    }),
    ("pair_exported_deltas", Kind::Gauge, "Files of what only this member had.", |pair| {
        number(pair, "exported_deltas")
    }),
];

fn number(pair: &Value, key: &str) -> u64 {
    pair[key].as_u64().unwrap_or(0)
}

/// Kind of a metric.
#[derive(Clone, Copy)]
enum Kind {
    Counter,
    Gauge,
    Histogram,
}

type Of<T> = (&'static str, Kind, &'static str, fn(&T) -> u64);

const OF_SHARD: &[Of<ShardStats>] = &[
    ("connections", Kind::Gauge, "Connections served.", |s| s.connections),
    ("connections_total", Kind::Counter, "Connections accepted.", |s| s.connections_total),
    ("accepted_total", Kind::Counter, "Messages accepted.", |s| s.accepted_total),
    ("refused_total", Kind::Counter, "Messages refused.", |s| s.refused_total),
    ("delivered_total", Kind::Counter, "Messages sent to consumers.", |s| s.delivered_total),
    ("settled_total", Kind::Counter, "Settlements committed.", |s| s.settled_total),
    ("duplicates_total", Kind::Counter, "Accepted messages that were here before.", |s| {
        s.duplicates_total
    }),
    ("duplicate_ids_bytes", Kind::Gauge, "Memory of duplicate ids, part of memory_bytes.", |s| {
        s.duplicate_ids_bytes
    }),
    (
        "duplicate_ids_forgotten_total",
        Kind::Counter,
        "Duplicate ids forgotten because all had reached their bound.",
        |s| s.duplicate_ids_forgotten_total,
    ),
    (
        "moved_in_total",
        Kind::Counter,
        "Dead and expired messages that came from other queues.",
        |s| s.moved_in_total,
    ),
    ("move_failures_total", Kind::Counter, "Moves that were not taken, and tried again.", |s| {
        s.move_failures_total
    }),
    ("dropped_total", Kind::Counter, "Messages that died where no address is set for them.", |s| {
        s.dropped_total
    }),
    (
        "annotations_refused_total",
        Kind::Counter,
        "Annotations of `modified` outcomes that were not merged.",
        |s| s.annotations_refused_total,
    ),
    ("memory_bytes", Kind::Gauge, "Memory of messages and index.", |s| s.memory_bytes),
    ("memory_bytes_max", Kind::Gauge, "Bound of memory_bytes.", |s| s.memory_bytes_max),
    ("memory_pressure", Kind::Gauge, "1: the memory bound holds producers back.", |s| {
        u64::from(s.memory_pressure)
    }),
    ("paged_messages", Kind::Gauge, "Messages whose bytes are on the disk only.", |s| {
        s.paged_messages
    }),
    ("paged_bytes", Kind::Gauge, "Bytes of messages that are on the disk only.", |s| s.paged_bytes),
    ("paged_out_total", Kind::Counter, "Messages whose bytes were dropped from memory.", |s| {
        s.paged_out_total
    }),
    ("paged_in_total", Kind::Counter, "Messages whose bytes were read back.", |s| s.paged_in_total),
    ("read_backs_total", Kind::Counter, "Reads of the log for messages on the disk only.", |s| {
        s.read_backs_total
    }),
    ("read_back_bytes_total", Kind::Counter, "Bytes of these reads.", |s| s.read_back_bytes_total),
    (
        "read_back_waits_total",
        Kind::Counter,
        "Times that a queue with a ready consumer had to wait for a read.",
        |s| s.read_back_waits_total,
    ),
    ("journal_head_lsn", Kind::Gauge, "Oldest byte of the log.", |s| s.journal_head_lsn),
    ("journal_appended_lsn", Kind::Gauge, "End of the log.", |s| s.journal_appended_lsn),
    ("journal_durable_lsn", Kind::Gauge, "End of what is durable.", |s| s.journal_durable_lsn),
    ("journal_segments", Kind::Gauge, "Segments in use.", |s| s.journal_segments),
    ("journal_segments_max", Kind::Gauge, "Bound of journal_segments.", |s| s.journal_segments_max),
    ("journal_live_bytes", Kind::Gauge, "Bytes that messages take in the log, about.", |s| {
        s.journal_live_bytes
    }),
    ("journal_dead_bytes", Kind::Gauge, "Bytes of the log that nothing needs, about.", |s| {
        s.journal_dead_bytes
    }),
    ("journal_copied_bytes_total", Kind::Counter, "Bytes copied forward in the log.", |s| {
        s.journal_copied_bytes_total
    }),
    (
        "journal_head_live_messages",
        Kind::Gauge,
        "Unsettled messages in the oldest segment: they keep it until they are settled or copied.",
        |s| s.journal_head_live_messages,
    ),
    ("journal_full", Kind::Gauge, "1: the disk bound holds producers back.", |s| {
        u64::from(s.journal_full)
    }),
    ("journal_batches_total", Kind::Counter, "Batches made durable.", |s| s.journal_batches_total),
    ("journal_tail_bytes", Kind::Gauge, "Bytes of the log that a start would read.", |s| {
        s.journal_tail_bytes
    }),
    (
        "journal_checkpoint_age_seconds",
        Kind::Gauge,
        "How old the newest checkpoint is. 0: there is none, or it is new.",
        |s| s.journal_checkpoint_age_seconds,
    ),
    (
        "journal_checkpoint_lsn",
        Kind::Gauge,
        "Where a start would begin to read the log. 0: there is no checkpoint.",
        |s| s.journal_checkpoint_lsn,
    ),
    ("journal_checkpoints_total", Kind::Counter, "Checkpoints written.", |s| {
        s.journal_checkpoints_total
    }),
    ("journal_checkpoint_failures_total", Kind::Counter, "Checkpoints given up.", |s| {
        s.journal_checkpoint_failures_total
    }),
];

const OF_QUEUE: &[Of<QueueStat>] = &[
    ("queue_available", Kind::Gauge, "Messages that a consumer could get.", |q| q.available),
    ("queue_acquired", Kind::Gauge, "Messages at consumers, not settled.", |q| q.acquired),
    (
        "queue_delayed",
        Kind::Gauge,
        "Messages that wait for their time, or pause after a failed delivery.",
        |q| q.delayed,
    ),
    ("queue_moving", Kind::Gauge, "Messages on their way to another queue.", |q| q.moving),
    ("queue_uncommitted", Kind::Gauge, "Messages that await a commit.", |q| q.uncommitted),
    ("queue_payload_bytes", Kind::Gauge, "Bytes of its messages.", |q| q.payload_bytes),
    ("queue_resident_bytes", Kind::Gauge, "Of them, those in memory.", |q| q.resident_bytes),
    ("queue_consumers", Kind::Gauge, "Consumers attached.", |q| q.consumers),
    ("queue_enqueued_total", Kind::Counter, "Messages accepted.", |q| q.enqueued_total),
    ("queue_settled_total", Kind::Counter, "Messages settled.", |q| q.settled_total),
    ("queue_rejected_total", Kind::Counter, "Messages rejected.", |q| q.rejected_total),
    ("queue_delivered_total", Kind::Counter, "Messages sent to consumers.", |q| q.delivered_total),
];

const OF_TLS: &[Of<Figures>] = &[
    ("tls_handshakes_total", Kind::Counter, "TLS handshakes that ended well.", |f| {
        f.handshakes_total.load(Ordering::Relaxed)
    }),
    ("tls_refused_total", Kind::Counter, "TLS handshakes that failed.", |f| {
        f.refused_total.load(Ordering::Relaxed)
    }),
    (
        "tls_abandoned_total",
        Kind::Counter,
        "TLS handshakes that took too long, or made room for others.",
        |f| f.abandoned_total.load(Ordering::Relaxed),
    ),
    ("tls_reloads_total", Kind::Counter, "Times that changed TLS files were taken.", |f| {
        f.reloads_total.load(Ordering::Relaxed)
    }),
    (
        "tls_reload_failures_total",
        Kind::Counter,
        "Times that changed TLS files could not be used; the old ones stayed.",
        |f| f.reload_failures_total.load(Ordering::Relaxed),
    ),
    (
        "tls_certificate_not_after_seconds",
        Kind::Gauge,
        "When the certificate that is served ends, in seconds since 1970.",
        |f| u64::try_from(f.certificate_not_after.load(Ordering::Relaxed)).unwrap_or(0),
    ),
];

/// The whole answer.
pub(super) fn text(
    node: &Node,
    shards: &[ShardStats],
    queues: &[QueueStat],
    pair: Option<&Value>,
) -> String {
    let mut out = String::new();
    let ready = u64::from(node.stage().is_ready());
    head(&mut out, "ready", Kind::Gauge, "1: the broker does what it is there for.");
    line(&mut out, "ready", "", ready);
    head(&mut out, "build_info", Kind::Gauge, "Always 1; the version is a label.");
    line(&mut out, "build_info", &format!("version=\"{}\"", env!("CARGO_PKG_VERSION")), 1);
    if let Some(facts) = node.facts() {
        head(&mut out, "engine_info", Kind::Gauge, "Always 1; how sockets and files are driven.");
        let labels = format!(
            "engine=\"{}\",durability=\"{}\",direct=\"{}\",volatile=\"{}\"",
            facts.engine, facts.durability, facts.direct, facts.volatile
        );
        line(&mut out, "engine_info", &labels, 1);
    }
    for (name, kind, help, value) in OF_SHARD {
        head(&mut out, name, *kind, help);
        for shard in shards {
            line(&mut out, name, &format!("shard=\"{}\"", shard.shard), value(shard));
        }
    }
    if let Some(tls) = node.tls() {
        for (name, kind, help, value) in OF_TLS {
            head(&mut out, name, *kind, help);
            line(&mut out, name, "", value(&tls.figures));
        }
    }
    for (name, kind, help, value) in pair.map_or(&[][..], |_| OF_PAIR) {
        head(&mut out, name, *kind, help);
        line(&mut out, name, "", pair.map_or(0, value));
    }
    if let Some(pair) = pair {
        renewals(&mut out, pair);
    }
    if let Some(authenticator) = node.authenticator() {
        let help = "Log-ins not verified, because too many waited, in all or of their address.";
        head(&mut out, "log_ins_turned_away_total", Kind::Counter, help);
        line(&mut out, "log_ins_turned_away_total", "", authenticator.turned_away_total());
    }
    let listed = &queues[..queues.len().min(QUEUES_MAX)];
    for (name, kind, help, value) in OF_QUEUE {
        head(&mut out, name, *kind, help);
        for queue in listed {
            line(&mut out, name, &format!("queue=\"{}\"", escape(&queue.name)), value(queue));
        }
    }
    head(&mut out, "queues", Kind::Gauge, "Queues there are.");
    line(&mut out, "queues", "", queues.len() as u64);
    head(&mut out, "queues_not_listed", Kind::Gauge, "Queues without series of their own.");
    line(&mut out, "queues_not_listed", "", (queues.len() - listed.len()) as u64);
    out
}

/// How long the voters took, cumulative by bound.
fn renewals(out: &mut String, pair: &Value) {
    head(out, "pair_renewal_ms", Kind::Histogram, "How long the voters took for a renewal.");
    for bucket in pair["renewals_within_ms"].as_array().into_iter().flatten() {
        let label = format!("le=\"{}\"", bucket[0]);
        line(out, "pair_renewal_ms_bucket", &label, bucket[1].as_u64().unwrap_or(0));
    }
    let total = number(pair, "renewals_total");
    line(out, "pair_renewal_ms_bucket", "le=\"+Inf\"", total);
    line(out, "pair_renewal_ms_sum", "", number(pair, "renewal_ms_sum"));
    line(out, "pair_renewal_ms_count", "", total);
}

fn head(out: &mut String, name: &str, kind: Kind, help: &str) {
    let kind = match kind {
        Kind::Counter => "counter",
        Kind::Gauge => "gauge",
        Kind::Histogram => "histogram",
    };
    writeln!(out, "# HELP laelaps_{name} {help}\n# TYPE laelaps_{name} {kind}")
        .expect("a string takes all that is written");
}

fn line(out: &mut String, name: &str, labels: &str, value: u64) {
    let labels = if labels.is_empty() { String::new() } else { format!("{{{labels}}}") };
    writeln!(out, "laelaps_{name}{labels} {value}").expect("a string takes all that is written");
}

fn escape(label: &str) -> String {
    label.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn each_line_is_a_comment_or_a_sample() {
        let shards = [ShardStats { shard: 3, connections: 7, ..ShardStats::default() }];
        let text = text(&Node::new(), &shards, &[], Some(&Value::Null));
        assert!(text.contains("laelaps_connections{shard=\"3\"} 7\n"), "{text}");
        assert!(text.contains("laelaps_ready 0\n"), "{text}");
        for line in text.lines() {
            let sample = line.rsplit_once(' ').is_some_and(|(name, value)| {
                name.starts_with("laelaps_") && value.parse::<u64>().is_ok()
            });
            assert!(sample || line.starts_with("# HELP ") || line.starts_with("# TYPE "), "{line}");
        }
    }

    #[test]
    fn renewals_are_a_histogram() {
        let pair = json!({ "renewals_total": 9, "renewal_ms_sum": 700, "lease_too_short": true,
            "renewals_within_ms": [[1, 4], [2, 7]] });
        let text = text(&Node::new(), &[], &[], Some(&pair));
        let histogram = "# TYPE laelaps_pair_renewal_ms histogram\n\
            laelaps_pair_renewal_ms_bucket{le=\"1\"} 4\n\
            laelaps_pair_renewal_ms_bucket{le=\"2\"} 7\n\
            laelaps_pair_renewal_ms_bucket{le=\"+Inf\"} 9\n\
            laelaps_pair_renewal_ms_sum 700\nlaelaps_pair_renewal_ms_count 9\n";
        assert!(text.contains(histogram), "{text}");
        assert!(text.contains("laelaps_pair_lease_too_short 1\n"), "{text}");
    }

    #[test]
    fn names_cannot_break_out_of_their_label() {
        assert_eq!(escape("a\"} 1\n\\"), "a\\\"} 1\\n\\\\");
    }

    #[test]
    fn names_are_distinct() {
        let mut names: Vec<&str> =
            OF_SHARD.iter().map(|m| m.0).chain(OF_QUEUE.iter().map(|m| m.0)).collect();
        names.extend(OF_TLS.iter().map(|m| m.0));
        names.extend(OF_PAIR.iter().map(|m| m.0));
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), count);
    }
}
