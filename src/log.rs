//! The log: text for people on a terminal, or one JSON object a line. Always on standard error.
//!
//! `LAELAPS_LOG` filters it as `RUST_LOG` would (`info` if it is not set). Nothing that a client
//! sent is logged but addresses, names of containers, users and queues; never a password, never a
//! message. A log that cannot be written is no reason to stop.

use std::io::IsTerminal as _;

use tracing_subscriber::EnvFilter;

use crate::config::LogFormat;

/// Start to log. Later calls change nothing.
pub(crate) fn start(format: LogFormat) {
    let filter = EnvFilter::try_from_env("LAELAPS_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_target(false)
        .with_writer(std::io::stderr);
    let started = match format {
        LogFormat::Text => log.with_ansi(std::io::stderr().is_terminal()).try_init(),
        LogFormat::Json => log.json().flatten_event(true).try_init(),
    };
    if let Err(error) = started {
        eprintln!("laelaps: the log was started before: {error}");
    }
}
