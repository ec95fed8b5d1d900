//! One shard's log, sans-IO.
