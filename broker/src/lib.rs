//! The deterministic core of the broker.
