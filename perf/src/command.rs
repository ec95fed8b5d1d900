//! `laelaps perf …`: what can be measured, and who answers it.
//!
//! ```text
//!   produce, consume, e2e    stream.rs     a load on any AMQP 1.0 broker
//!   sweep                    sweep.rs      rate steps up to saturation
//!   recover                  recover.rs    time to ready after a kill
//!   backlog, laps            one file each storage at scale: beyond memory; many times the disk
//!   catch-up                 catch_up.rs   what a member that comes back costs the pair's live
//!   compare, report, gate    one file each who is how much slower; the page; the regression
//!   floor                    floor.rs      what this machine takes at least
//!   journal                  journal.rs    the disk, under the journal's own code
//! ```
//! A result that is INVALID is printed with its reasons and is no failure of the command: scripts
//! read `verdict.valid` in the JSON.
//!
//! Failure: one message in words; the process prints it and ends with status 1.

use std::error::Error;

use clap::Subcommand;

use crate::{
    backlog, catch_up, compare, floor, gate, journal, laps, recover, report, show, stream, sweep,
};

/// Why a command failed: one message for a person.
pub type Failure = Box<dyn Error + Send + Sync>;

/// What can be measured.
#[derive(Subcommand)]
pub enum Command {
    /// Send messages on a schedule: how long until each is accepted
    Produce(stream::ProduceOptions),
    /// Receive and settle messages
    Consume(stream::ConsumeOptions),
    /// Send and receive, on this host: how long from the intended send to the receipt
    E2e(stream::E2eOptions),
    /// Raise the rate in steps until the broker is saturated
    Sweep(sweep::Options),
    /// Kill a broker of our own and start it again: how long until it is ready
    Recover(recover::Options),
    /// A backlog far beyond memory in a broker of our own: what it takes, and what it disturbs
    Backlog(backlog::Options),
    /// Many times the disk's bound through a broker of our own: whether the log stays in bounds
    Laps(laps::Options),
    /// A backup that was away and comes back: what that costs the producers of the live
    CatchUp(catch_up::Options),
    /// Brokers, floors and peers in interleaved blocks: who is how much slower
    Compare(Box<compare::Options>),
    /// What this machine takes at least: TCP echo, durable write, group commit
    Floor(floor::Options),
    /// Make a page with plots of a result
    Report(report::Options),
    /// Fail where a ratio is worse than that of a baseline
    Gate(gate::Options),
    /// Measure the disk under the broker's own journal code, beside the bare device
    Journal(journal::Options),
}

/// Carries a command out.
///
/// # Errors
/// A message for a person.
pub fn run(command: &Command) -> Result<(), Failure> {
    match command {
        Command::Produce(options) => stream::produce(options),
        Command::Consume(options) => stream::consume(options),
        Command::E2e(options) => stream::e2e(options),
        Command::Sweep(options) => sweep::sweep(options),
        Command::Recover(options) => recover::recover(options),
        Command::Backlog(options) => backlog::backlog(options),
        Command::Laps(options) => laps::laps(options),
        Command::CatchUp(options) => catch_up::catch_up(options),
        Command::Compare(options) => compare::command(options),
        Command::Floor(options) => floor::command(options),
        Command::Report(options) => report::command(options),
        Command::Gate(options) => gate::command(options),
        Command::Journal(options) => show::print(&journal::command(options)?.text()),
    }
}
