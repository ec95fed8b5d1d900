//! What a person sees of a load: a line each second, and the block in the end.
//!
//! ```text
//!   stderr     3 s     2,000/s sent     2,000/s answered           worst     0.41 ms
//!   stdout     what was asked, what was done, percentiles in µs, CPU a message, the verdict
//! ```
//! Results go to standard output and files, everything else to standard error, so that a pipe sees
//! results alone.
//!
//! Failure: a closed pipe ends a line, never the load; a file that cannot be written is an error
//! with its path.

use std::fmt::Write as _;
use std::io::{ErrorKind, Write as _};
use std::ops::ControlFlow;
use std::path::Path;
use std::time::Duration;

use hdrhistogram::Histogram;
use serde::Serialize;

use crate::block::{Block, Percentiles};
use crate::command::Failure;
use crate::load::Progress;

/// Prints a line a second from what [`crate::load::measure`] shows.
#[derive(Debug)]
pub struct ProgressLine {
    quiet: bool,
    before: Progress,
    worst_ns: u64,
}

impl ProgressLine {
    /// A line each second, or none.
    #[must_use]
    pub fn new(quiet: bool) -> Self {
        Self { quiet, before: Progress::default(), worst_ns: 0 }
    }

    /// To be called with each progress.
    pub fn observe(&mut self, now: &Progress) -> ControlFlow<()> {
        self.worst_ns = self.worst_ns.max(now.worst_ns);
        let since = now.elapsed.saturating_sub(self.before.elapsed);
        if since >= Duration::from_secs(1) {
            if !self.quiet {
                eprintln!("{}", self.line(now, since));
            }
            self.before = *now;
            self.worst_ns = 0;
        }
        ControlFlow::Continue(())
    }

    fn line(&self, now: &Progress, since: Duration) -> String {
        let mut line = format!("{:4} s", now.elapsed.as_secs());
        let counts = [
            (now.sent, self.before.sent, "sent"),
            (now.answered, self.before.answered, "answered"),
            (now.received, self.before.received, "received"),
        ];
        for (total, before, what) in counts {
            if total > 0 {
                let rate = (total - before) as f64 / since.as_secs_f64();
                write!(line, " {:>9}/s {what}", grouped(rate.round() as u64)).expect("memory");
            }
        }
        if self.worst_ns > 0 {
            write!(line, "   worst {:8.2} ms", self.worst_ns as f64 / 1e6).expect("memory");
        }
        line
    }
}

/// A block as text; `done` says what became of its messages: `accepted` or `received`.
#[must_use]
pub fn block(block: &Block, done: &str) -> String {
    let mut text = String::new();
    let seconds = |ns: u64| ns as f64 / 1e9;
    let stretch = if block.planned_ns > 0 { block.planned_ns } else { block.elapsed_ns };
    writeln!(
        text,
        "{} due in {:.2} s, {} {done} ({}/s), {} refused, {} lost, {} unsent",
        grouped(block.offered),
        seconds(stretch),
        grouped(block.completed),
        grouped(block.achieved().round() as u64),
        block.refused,
        block.lost,
        block.unsent
    )
    .expect("memory takes text");
    let mut rows = vec![
        (format!("intended -> {done}"), &block.intended),
        (format!("actual -> {done}"), &block.actual),
    ];
    // In a closed loop nothing can be late.
    if block.rate.is_some() {
        rows.push(("send lag".to_owned(), &block.lag));
    }
    if rows.iter().any(|(_, histogram)| !histogram.is_empty()) {
        writeln!(
            text,
            "{:<26} {:>10} {:>10} {:>10} {:>10} {:>10}  µs",
            "", "p50", "p90", "p99", "p99.9", "max"
        )
        .expect("memory takes text");
    }
    for (name, histogram) in rows.iter().filter(|(_, histogram)| !histogram.is_empty()) {
        text.push_str(&row(name, histogram));
    }
    let us = |ns: f64| ns / 1000.0;
    write!(text, "CPU a message: client {:.1} µs", us(block.cpu_client_ns_per_message()))
        .expect("memory takes text");
    if let Some(server) = block.cpu_server_ns_per_message() {
        write!(text, ", server {:.1} µs", us(server)).expect("memory takes text");
    }
    text.push('\n');
    text
}

fn row(name: &str, histogram: &Histogram<u64>) -> String {
    let Percentiles { p50, p90, p99, p999, max } = Percentiles::of(histogram);
    let us = |ns: u64| format!("{:10.1}", ns as f64 / 1000.0);
    format!("{name:<26} {} {} {} {} {}\n", us(p50), us(p90), us(p99), us(p999), us(max))
}

/// Prints results.
///
/// # Errors
/// Standard output does not take them; a reader that has seen enough is no error.
pub fn print(text: &str) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            Err(format!("standard output: {error}").into())
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Writes a result as JSON.
///
/// # Errors
/// The file cannot be written.
pub fn write_json(path: &Path, result: &impl Serialize) -> Result<(), Failure> {
    let text = serde_json::to_string(result)?;
    write_file(path, &(text + "\n"))
}

/// Writes a file.
///
/// # Errors
/// It cannot be written.
pub fn write_file(path: &Path, text: &str) -> Result<(), Failure> {
    std::fs::write(path, text).map_err(|error| format!("{}: {error}", path.display()).into())
}

/// `1234567` as `1,234,567`.
#[must_use]
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() * 4 / 3);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_grouped() {
        let cases = [
            (0, "0"),
            (999, "999"),
            (1000, "1,000"),
            (123_456, "123,456"),
            (1_234_567, "1,234,567"),
        ];
        for (number, text) in cases {
            assert_eq!(grouped(number), text);
        }
    }

    #[test]
    fn a_progress_line_tells_rates_since_the_last() {
        let mut line = ProgressLine::new(true);
        let at = |seconds, sent| Progress {
            elapsed: Duration::from_secs(seconds),
            sent,
            answered: sent,
            ..Progress::default()
        };
        assert!(line.observe(&at(2, 1000)).is_continue());
        let text = line.line(&Progress { worst_ns: 0, ..at(4, 5000) }, Duration::from_secs(2));
        assert!(text.contains("2,000/s sent") && !text.contains("received"), "{text}");
    }
}
