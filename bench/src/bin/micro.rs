//! The micro benchmarks, by a command: one line each.
//!
//! ```text
//!   cargo run --release -p bench --bin micro [-- [--tiny] [PART OF A NAME]...]
//!
//!   what                                    median ns   least ns     p90 ns      MiB/s
//! ```
//! Each is measured by itself; `bench/src/micro.rs` says how, and what the figures are worth.
//! `--tiny` only runs them. A debug build says so: its figures are nobody's.
//!
//! Failure: a name that nothing matches is said, exit status 1.
#![forbid(unsafe_code)]

use std::process::ExitCode;
use std::time::Duration;

use bench::micro::{Effort, cases};

// As in the product: a message is an allocation.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const FULL: Effort = Effort { sample: Duration::from_millis(5), samples: 41 };
const TINY: Effort = Effort { sample: Duration::ZERO, samples: 1 };

fn main() -> ExitCode {
    let (flags, parts): (Vec<String>, Vec<String>) =
        std::env::args().skip(1).partition(|argument| argument.starts_with("--"));
    let effort = if flags.iter().any(|flag| flag == "--tiny") { TINY } else { FULL };
    if cfg!(debug_assertions) {
        println!("INVALID: a debug build; use --release");
    }
    println!("{:<42}{:>11}{:>11}{:>11}{:>11}", "what", "median ns", "least ns", "p90 ns", "MiB/s");
    let mut found = false;
    for case in cases() {
        if !parts.is_empty() && !parts.iter().any(|part| case.name.contains(part)) {
            continue;
        }
        found = true;
        let figures = case.measure(effort);
        let rate = match case.bytes {
            0 => String::new(),
            bytes => format!("{:.0}", bytes as f64 / figures.median * 1e9 / f64::from(1 << 20)),
        };
        println!(
            "{:<42}{:>11.1}{:>11.1}{:>11.1}{rate:>11}",
            case.name, figures.median, figures.least, figures.p90
        );
    }
    if !found {
        eprintln!("micro: no benchmark is called like {}", parts.join(" or "));
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}
