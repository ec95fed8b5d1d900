//! Whole shards in memory: what they owe to clients, operators and each other, one test a promise.
//!
//! `host` is the world; each other file is a subject.

mod addresses;
mod browsing;
mod checkpoint;
mod compaction;
mod dead_letters;
mod duplicates;
mod gradual;
mod host;
mod inflow;
mod large;
mod modified;
mod move_flow;
mod moving;
mod paging;
mod point;
mod pressure;
mod recycling;
mod relay;
mod rights;
mod schedule;
mod settlements;
mod sole;
mod stopping;
mod temporary;
mod terms;
mod unfinished;
