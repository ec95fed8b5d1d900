//! The load and latency harness.
