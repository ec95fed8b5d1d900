//! A watch on each core's loop, from a thread that does nothing else.
//!
//! ```text
//!   every PERIOD:  Ping ──▶ core's inbox ──▶ its loop answers ──▶ fine
//!                                            no answer for `bound`: the process ends (poisoned)
//! ```
//! A journal notices a write that hangs by its own timer, as long as its loop turns. But some file
//! systems carry out a write inside the system call that submits it (FUSE, NFS); if that write
//! hangs the loop hangs with it. A broker that neither answers nor dies is worse than a dead one:
//! nobody takes over from it.
//!
//! Time is counted in naps, not by a clock: a process that was stopped, or a machine that slept,
//! has not napped meanwhile and is not judged for it.

use std::thread::Builder;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::sync::oneshot::error::TryRecvError;

use crate::fatal::{Cause, Failure};
use crate::node::{Inbox, Input};

/// A core is asked this often.
const PERIOD: Duration = Duration::from_secs(2);

/// And its answer is looked for this often.
const NAP: Duration = Duration::from_millis(100);

/// Watch a core. Its loop must turn within `bound`.
///
/// # Errors
/// The machine refused the thread.
pub(crate) fn watch(core: usize, inbox: Inbox, bound: Duration) -> Result<(), Failure> {
    Builder::new()
        .name(format!("watch-{core}"))
        .spawn(move || {
            while answers(&inbox, bound) {
                std::thread::sleep(PERIOD);
            }
            failure(core, bound).die()
        })
        .map(drop)
        .map_err(|error| {
            Failure::new(Cause::ResourceRefused, format!("no thread to watch core {core}: {error}"))
        })
}

/// Whether the loop behind an inbox answers within `bound`.
fn answers(inbox: &Inbox, bound: Duration) -> bool {
    let (answer, mut answered) = oneshot::channel();
    inbox.put(Input::Ping(answer));
    let naps = bound.as_millis() / NAP.as_millis();
    for _ in 0..naps {
        match answered.try_recv() {
            Ok(()) => return true,
            Err(TryRecvError::Empty) => std::thread::sleep(NAP),
            // The core is gone, and has said why.
            Err(TryRecvError::Closed) => return true,
        }
    }
    false
}

fn failure(core: usize, bound: Duration) -> Failure {
    Failure::new(
        Cause::JournalPoisoned,
        format!(
            "core {core} has not turned its loop for {} s: a write that hangs inside the kernel, \
             mostly",
            bound.as_secs()
        ),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loop_that_turns_is_well() {
        let (inbox, inputs) = Inbox::new(|| {});
        Builder::new()
            .spawn(move || {
                if let Ok(Input::Ping(answer)) = inputs.recv() {
                    answer.send(()).expect("somebody waits");
                }
            })
            .expect("a thread");
        assert!(answers(&inbox, Duration::from_secs(10)));
    }

    #[test]
    fn a_loop_that_stands_is_noticed_and_one_that_is_gone_is_not_blamed() {
        let (inbox, inputs) = Inbox::new(|| {});
        assert!(!answers(&inbox, Duration::from_millis(300)));
        drop(inputs);
        assert!(answers(&inbox, Duration::from_millis(300)));
    }
}
