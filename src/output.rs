//! Standard output of the tools: a reader that has seen enough ends them quietly.
//!
//! `println!` panics when its pipe is closed, so `laelaps journal inspect DIR | head` would end
//! with a trace. Here a closed pipe ends the process with status 0 and any other failure with
//! status 1: whoever reads the output must not take a part for the whole.

use std::fmt;
use std::io::{ErrorKind, Write as _};

/// Print a line.
pub(crate) fn line(text: impl fmt::Display) {
    text_of(format_args!("{text}\n"));
}

/// Print a text that has its own line ends.
pub(crate) fn text_of(text: impl fmt::Display) {
    let mut out = std::io::stdout().lock();
    match write!(out, "{text}").and_then(|()| out.flush()) {
        Ok(()) => {}
        Err(error) if error.kind() == ErrorKind::BrokenPipe => std::process::exit(0),
        Err(error) => {
            eprintln!("laelaps: standard output: {error}");
            std::process::exit(1);
        }
    }
}
