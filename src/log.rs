//! The log: text for people on a terminal, or one JSON object a line. Always on standard error.
//!
//! ```text
//!   any thread ── line ──▶ [ bounded queue ] ──▶ log thread ──▶ standard error
//!                          full: the line is dropped and counted; the next one says how many
//! ```
//! `LAELAPS_LOG` filters it as `RUST_LOG` would (`info` if it is not set). Nothing that a client
//! sent is logged but addresses, names of containers, users and queues; never a password, never a
//! message.
//!
//! Invariant: nobody waits for the log. A pipe that nobody reads must not stop a core.
//! Failure: a log that cannot be written is no reason to stop. At an end [`flush`] gives the last
//! lines a bounded time to get out.

use std::io::{self, IsTerminal as _, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crossbeam::channel::{Receiver, Sender, bounded};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

use crate::config::LogFormat;

/// Lines that may wait to be written.
const LINES_MAX: usize = 4096;

/// [`flush`] looks this often, so many times: a second.
const FLUSH_NAP: Duration = Duration::from_millis(5);
const FLUSH_NAPS: u32 = 200;

/// Lines that were queued, that were written, and that were dropped.
static QUEUED: AtomicU64 = AtomicU64::new(0);
static WRITTEN: AtomicU64 = AtomicU64::new(0);
static DROPPED: AtomicU64 = AtomicU64::new(0);

/// Start to log. Later calls change nothing.
pub(crate) fn start(format: LogFormat) {
    let (lines, queue) = bounded(LINES_MAX);
    let thread = std::thread::Builder::new()
        .name("log".to_owned())
        .spawn(move || write_all(&queue, &mut io::stderr()));
    if let Err(error) = thread {
        eprintln!("laelaps: there will be no log: no thread for it: {error}");
        return;
    }
    let filter = EnvFilter::try_from_env("LAELAPS_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_target(false)
        .with_writer(Queue { lines });
    let started = match format {
        LogFormat::Text => log.with_ansi(io::stderr().is_terminal()).try_init(),
        LogFormat::Json => log.json().flatten_event(true).try_init(),
    };
    if let Err(error) = started {
        eprintln!("laelaps: the log was started before: {error}");
    }
}

/// Give the lines so far up to a second to be written: before the process ends.
pub(crate) fn flush() {
    let queued = QUEUED.load(Ordering::Acquire);
    for _ in 0..FLUSH_NAPS {
        if WRITTEN.load(Ordering::Acquire) >= queued {
            return;
        }
        std::thread::sleep(FLUSH_NAP);
    }
}

fn write_all(queue: &Receiver<Vec<u8>>, out: &mut impl Write) {
    for line in queue {
        let dropped = DROPPED.swap(0, Ordering::Relaxed);
        let lost = if dropped == 0 {
            Ok(())
        } else {
            writeln!(out, "laelaps: {dropped} lines of the log were dropped: nobody read it")
        };
        if lost.and_then(|()| out.write_all(&line)).is_err() {
            // Nobody is there to read; the broker goes on.
        }
        WRITTEN.fetch_add(1, Ordering::Release);
    }
}

/// Makes a line's writer for each event.
struct Queue {
    lines: Sender<Vec<u8>>,
}

impl<'a> MakeWriter<'a> for Queue {
    type Writer = Line<'a>;

    fn make_writer(&'a self) -> Line<'a> {
        Line { text: Vec::with_capacity(256), lines: &self.lines }
    }
}

/// A line that is queued when it is complete, that is when it is dropped.
struct Line<'a> {
    text: Vec<u8>,
    lines: &'a Sender<Vec<u8>>,
}

impl Write for Line<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.text.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Line<'_> {
    fn drop(&mut self) {
        if self.text.is_empty() {
            return;
        }
        match self.lines.try_send(std::mem::take(&mut self.text)) {
            Ok(()) => QUEUED.fetch_add(1, Ordering::Release),
            Err(_) => DROPPED.fetch_add(1, Ordering::Relaxed),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_that_nobody_reads_drops_lines_and_says_so() {
        let (lines, queue) = bounded(2);
        let log = Queue { lines };
        for number in 0..5 {
            writeln!(log.make_writer(), "line {number}").expect("a line takes all");
        }
        drop(log);
        let mut out = Vec::new();
        write_all(&queue, &mut out);
        let out = String::from_utf8(out).expect("text");
        assert!(out.starts_with("laelaps: 3 lines of the log were dropped"), "{out}");
        assert!(out.ends_with("line 0\nline 1\n"), "{out}");
    }
}
