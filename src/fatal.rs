//! One exit status for each cause of a designed death, and the failure that carries it to `main`.
//!
//! ```text
//!   0        asked to stop, or the command did its work
//!   1, 2     the command failed; it was not understood
//!   3 ..  9  the configuration, or what it asks of the machine's addresses
//!   10 .. 19 the data directory and what is in it
//!   20 .. 29 the machine and the process
//!   134      an assertion failed (the process aborts itself)
//! ```
//! A [`Failure`] is built where the cause is known, so its message can say what was wrong, where,
//! and what to do; nobody on the way up adds to it. `docs/operating/exit-statuses.md` is generated
//! from the table below, and a test keeps it fresh. A status is never given a second meaning.

use std::fmt;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};

/// Declares the causes once: variant, status, name in scripts, what it means, what to do.
macro_rules! causes {
    ($($variant:ident = $status:literal, $name:literal, $meaning:literal, $remedy:literal;)*) => {
        /// Why the process ends.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(crate) enum Cause {
            $(#[doc = $meaning] $variant,)*
        }

        impl Cause {
            /// Every cause, by status.
            #[cfg(test)]
            const ALL: &[Self] = &[$(Self::$variant),*];

            /// The exit status.
            pub(crate) fn status(self) -> u8 {
                match self { $(Self::$variant => $status),* }
            }

            /// A short name, the same in logs and in the documentation.
            pub(crate) fn name(self) -> &'static str {
                match self { $(Self::$variant => $name),* }
            }

            #[cfg(test)]
            fn meaning(self) -> &'static str {
                match self { $(Self::$variant => $meaning),* }
            }

            /// What to do about it.
            pub(crate) fn remedy(self) -> &'static str {
                match self { $(Self::$variant => $remedy),* }
            }
        }
    };
}

causes! {
    Command = 1, "command-failed",
        "The command could not be carried out, or it found something wrong.",
        "Read the message; nothing was changed unless it says so.";
    ConfigInvalid = 3, "config-invalid",
        "The configuration file has an unknown key, or it or a flag a value that will not do.",
        "Mend the key that the message names; `laelaps config check FILE` tests a file.";
    ReplicationMissing = 4, "replication-missing",
        "`replicated` or `replicated-sync` is asked for, but this broker has no replica.",
        "Use `sync`. A weaker level is never chosen for you.";
    Exposed = 5, "exposed",
        "An address off loopback is to be served where nobody has to log in, or nobody safely can.",
        "Give `[[users]]`, and a way to log in there that the message names, or serve on loopback; \
         `--insecure` serves a broker without users.";
    ListenFailed = 6, "listen-failed",
        "An address cannot be listened on.",
        "See who holds the port (`ss -ltnp`), or choose another with `--listen` or `--admin`.";
    TlsUnusable = 7, "tls-unusable",
        "The certificate, its key or the client CA cannot be read or used.",
        "Mend the file that the message names: PEM, the key of that certificate, readable by us.";
    LockHeld = 10, "lock-held",
        "Another process holds the data directory, and `--lock-wait` is over.",
        "Stop the other broker, or wait longer. Never delete the lock file of a running broker.";
    NoPermission = 11, "no-permission",
        "The data directory or a file in it may not be created, read or written.",
        "Give the broker's user the directory (`chown`), or choose another with `--data`.";
    Volatile = 12, "volatile-storage",
        "The data directory is on a file system that forgets at power-off (tmpfs, ramfs).",
        "Put it on a disk, use `--durability async`, or say `--allow-volatile`.";
    FormatUnknown = 13, "format-unknown",
        "The data was written by a version with a format that this one does not know.",
        "Run the version that wrote it, or a newer one. Nothing was changed.";
    JournalDamaged = 14, "journal-damaged",
        "The log is damaged before its durable end. Nothing was changed.",
        "Keep a copy of the directory; `laelaps journal verify DIR` shows what is readable.";
    JournalUnreadable = 15, "journal-unreadable",
        "The disk could not read the log, or it cannot take our blocks. Nothing was changed.",
        "Look at the kernel's log for the device; copy the directory to a sound disk.";
    JournalPoisoned = 16, "journal-poisoned",
        "A write or sync of the log failed or hung. Nothing more was acknowledged after it.",
        "Look at the disk; then start again: everything acknowledged is recovered.";
    DiskFull = 17, "disk-full",
        "There is no space for the log to start with.",
        "Free space on the volume, or lower `segment-size` for a directory that is new.";
    DirectoryMismatch = 18, "directory-mismatch",
        "A flag contradicts what the directory was formatted with.",
        "Leave the flag out, or use a new directory.";
    EngineRefused = 20, "engine-refused",
        "`engine` is `uring`, which the kernel refuses (seccomp, sysctl, age); or it failed.",
        "Leave `engine` at `auto`, or allow io_uring; `laelaps preflight` says more.";
    ResourceRefused = 21, "resource-refused",
        "The machine refused a thread, a descriptor or memory that the start needs.",
        "Raise the limit that the message names.";
    SecondSignal = 22, "second-signal",
        "A second SIGTERM or SIGINT came while the broker was draining; it ended at once.",
        "Nothing acknowledged is lost; the next start recovers.";
}

/// Why a command or the broker ends, and what to say about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    /// Gives the exit status.
    pub(crate) cause: Cause,
    /// What was wrong, where, and what to do.
    pub(crate) message: String,
}

impl Failure {
    /// A failure with its message.
    pub(crate) fn new(cause: Cause, message: impl Into<String>) -> Self {
        Self { cause, message: message.into() }
    }

    /// A failure of a client or tool command.
    pub(crate) fn command(message: impl Into<String>) -> Self {
        Self::new(Cause::Command, message)
    }

    /// The status for `main` to return.
    pub(crate) fn exit_code(&self) -> ExitCode {
        ExitCode::from(self.cause.status())
    }

    /// Log it and end the process now, from any thread. Nothing is flushed: the journal needs no
    /// goodbye, and after a failed write nothing may be sent any more. The first cause is the
    /// process's: what fails because it ends (a write that a signal cuts short, say) is none.
    pub(crate) fn die(&self) -> ! {
        static DYING: AtomicBool = AtomicBool::new(false);
        if DYING.swap(true, Ordering::Relaxed) {
            loop {
                std::thread::park();
            }
        }
        self.log();
        crate::log::flush();
        std::process::exit(i32::from(self.cause.status()))
    }

    /// The last line in the log: what, where, what to do.
    pub(crate) fn log(&self) {
        tracing::error!(
            cause = self.cause.name(),
            status = self.cause.status(),
            "{}. {}",
            self.message,
            self.cause.remedy()
        );
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl From<broker::Fatal> for Failure {
    fn from(fatal: broker::Fatal) -> Self {
        let cause = match &fatal {
            broker::Fatal::JournalPoisoned(_) => Cause::JournalPoisoned,
            broker::Fatal::JournalDamaged(_) => Cause::JournalDamaged,
            broker::Fatal::FormatUnknown(_) => Cause::FormatUnknown,
            broker::Fatal::JournalUnreadable(_) => Cause::JournalUnreadable,
            broker::Fatal::DiskFull(_) => Cause::DiskFull,
        };
        Self::new(cause, fatal.to_string())
    }
}

/// The reference page, as Markdown.
#[cfg(test)]
fn page() -> String {
    let mut page = String::from(
        "# Exit statuses\n\n\
         Each cause of a designed death has a status of its own; none is given a second meaning.\n\
         This page is generated from `src/fatal.rs`.\n\n\
         | status | name | meaning | what to do |\n|---|---|---|---|\n\
         | 0 | ok | Stopped as asked, or the command did its work. | |\n",
    );
    for cause in Cause::ALL {
        page.push_str(&format!(
            "| {} | {} | {} | {} |\n",
            cause.status(),
            cause.name(),
            cause.meaning(),
            cause.remedy()
        ));
        if *cause == Cause::Command {
            page.push_str(
                "| 2 | usage | The command line was not understood: an unknown flag, or a value \
                 that cannot be read. | See `laelaps help`. |\n",
            );
        }
    }
    page.push_str(
        "| 134 | aborted | An assertion failed (SIGABRT): state would have rotted. | \
         Report it with the log; the next start recovers everything acknowledged. |\n",
    );
    page
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_are_distinct_and_rising() {
        for pair in Cause::ALL.windows(2) {
            assert!(pair[0].status() < pair[1].status(), "{pair:?}");
        }
        assert!(Cause::ALL.iter().all(|cause| (1..64).contains(&cause.status())));
    }

    #[test]
    fn the_reference_page_is_fresh() {
        crate::reference::assert_fresh("docs/operating/exit-statuses.md", &page());
    }

    #[test]
    fn each_fatal_of_a_shard_has_its_own_status() {
        let fatals = [
            broker::Fatal::JournalPoisoned(String::new()),
            broker::Fatal::JournalDamaged(String::new()),
            broker::Fatal::FormatUnknown(String::new()),
            broker::Fatal::JournalUnreadable(String::new()),
            broker::Fatal::DiskFull(String::new()),
        ];
        let mut statuses: Vec<u8> =
            fatals.into_iter().map(|fatal| Failure::from(fatal).cause.status()).collect();
        statuses.sort_unstable();
        statuses.dedup();
        assert_eq!(statuses.len(), 5);
    }
}
