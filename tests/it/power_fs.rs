//! The file system whose power can be cut (`tests/powerfs`), mounted for one test.
//!
//! ```text
//!   PowerFs::mount ──spawn──▶ powerfs DIR --seed N, "ready"
//!   cut(broker):  freeze ──▶ SIGKILL ──▶ cut ──▶ the broker is gone ──▶ on
//! ```
//!
//! The freeze comes first, so that nothing which the broker does between the decision and its death
//! can count. Dropping it unmounts, whatever the test did.

use std::fmt::Display;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use crate::harness::{Broker, built};

pub(crate) struct PowerFs {
    dir: PathBuf,
    child: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
}

/// What a cut did, as the file system tells it.
pub(crate) struct Cut {
    /// When the oldest write under way began, or else when requests began to wait; on
    /// `CLOCK_MONOTONIC`.
    pub(crate) busy_since_ns: u64,
    pub(crate) writes_pending: u64,
    pub(crate) writes_lost: u64,
    pub(crate) writes_torn: u64,
    /// The bytes of the writes that were under way.
    pub(crate) in_flight: Vec<u8>,
}

pub(crate) struct Counts {
    pub(crate) writes: u64,
    pub(crate) syncs: u64,
}

impl PowerFs {
    pub(crate) fn mount(dir: PathBuf, seed: u64) -> Self {
        fs::create_dir_all(&dir).expect("a mount point can be made");
        let mut child = Command::new(built("powerfs"))
            .arg(&dir)
            .args(["--seed", &seed.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("powerfs can be started");
        let input = child.stdin.take();
        let output = BufReader::new(child.stdout.take().expect("its output is piped"));
        let mut mounted = Self { dir, child, input, output };
        let ready = mounted.line();
        assert_eq!(ready, "ready", "powerfs did not mount: is /dev/fuse there, and fuse3?");
        mounted
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Sends a command and takes the numbers of its answer.
    pub(crate) fn ask(&mut self, command: impl Display) -> Vec<u64> {
        let input = self.input.as_mut().expect("it is open until the end");
        writeln!(input, "{command}").expect("powerfs listens");
        let answer = self.line();
        let Some(numbers) = answer.strip_prefix("ok") else { panic!("{command}: {answer}") };
        let number = |word: &str| word.parse().unwrap_or_else(|_| panic!("{command}: {answer}"));
        numbers.split_whitespace().map(number).collect()
    }

    pub(crate) fn counts(&mut self) -> Counts {
        let numbers = self.ask("counts");
        Counts { writes: numbers[0], syncs: numbers[2] }
    }

    /// Cuts the power of the machine that `broker` runs on.
    pub(crate) fn cut(&mut self, mut broker: Broker) -> Cut {
        self.ask("freeze");
        broker.send_kill();
        let in_flight = self.dir.with_extension("in-flight");
        let numbers = self.ask(format!("cut {}", in_flight.display()));
        broker.wait_killed();
        self.ask("on");
        Cut {
            busy_since_ns: numbers[4],
            writes_pending: numbers[0],
            writes_lost: numbers[1],
            writes_torn: numbers[2],
            in_flight: fs::read(&in_flight).expect("powerfs wrote what was in flight"),
        }
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.output.read_line(&mut line).expect("powerfs answers");
        line.trim_end().to_owned()
    }
}

impl Drop for PowerFs {
    fn drop(&mut self) {
        // Requests that hang would keep their processes alive, and those the mount.
        if let Some(mut input) = self.input.take() {
            let _ = input.write_all(b"freeze\ncut\n");
        }
        // Lazily: the kernel closes a dead ring's files a little after its process is gone.
        let _ = Command::new("fusermount3").arg("-uz").arg(&self.dir).status();
        let _ = self.child.wait();
    }
}
