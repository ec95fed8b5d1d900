//! Which engine drives sockets and files, and why.
//!
//! ```text
//!   wanted   the probe says   chosen
//!   auto     io_uring         uring
//!   auto     refused          epoll, and the refusal is the reason
//!   uring    refused          nothing: the refusal is the error
//!   epoll    (not asked)      epoll
//! ```
//!
//! Invariant: a choice is made by asking the kernel under the filters that hold now, never by its
//! version.
//!
//! Failure: only `uring` can be refused; every Linux has what `epoll` needs.

use std::fmt;

use crate::probe::{Capabilities, Refusal, probe_rings};

/// What drives a ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Engine {
    /// io_uring: Linux 6.1 and nobody who forbids it.
    Uring,
    /// epoll, and threads that write: everywhere.
    Epoll,
}

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EngineWanted {
    /// The best that this machine gives.
    Auto,
    /// This one or none.
    Only(Engine),
}

/// An engine that this machine gives, and why it is this one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EngineChoice {
    /// Which.
    pub engine: Engine,
    /// Why, as part of a line: no capital, no full stop.
    pub reason: String,
    /// What to do for a better one, where that was wanted and is refused.
    pub advice: Option<&'static str>,
}

impl Engine {
    /// Its name in configurations, logs and metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Uring => "uring",
            Self::Epoll => "epoll",
        }
    }

    /// Asks this machine for an engine. Costs some hundred microseconds.
    ///
    /// # Errors
    /// What is wanted is refused here: why, and what to do.
    pub fn choose(wanted: EngineWanted) -> Result<EngineChoice, Refusal> {
        Self::choose_for(wanted, 0)
    }

    /// Asks for an engine that can drive so many rings at once.
    ///
    /// # Errors
    /// What is wanted is refused here: why, and what to do.
    pub fn choose_for(wanted: EngineWanted, rings: usize) -> Result<EngineChoice, Refusal> {
        if wanted == EngineWanted::Only(Self::Epoll) {
            return Ok(asked_for(Self::Epoll));
        }
        decide(wanted, probe_rings(rings))
    }
}

fn decide(
    wanted: EngineWanted,
    probed: Result<Capabilities, Refusal>,
) -> Result<EngineChoice, Refusal> {
    match (wanted, probed) {
        (EngineWanted::Auto, Ok(there)) => {
            let reason = format!("io_uring works here (Linux {})", there.kernel);
            Ok(EngineChoice { engine: Engine::Uring, reason, advice: None })
        }
        (EngineWanted::Auto, Err(refusal)) => {
            let Refusal { cause, error, kernel: _ } = refusal;
            let reason = format!("io_uring is refused ({cause}): {error}");
            Ok(EngineChoice { engine: Engine::Epoll, reason, advice: Some(cause.advice()) })
        }
        (EngineWanted::Only(engine), Ok(_)) => Ok(asked_for(engine)),
        (EngineWanted::Only(_), Err(refusal)) => Err(refusal),
    }
}

fn asked_for(engine: Engine) -> EngineChoice {
    EngineChoice { engine, reason: "it was asked for".to_owned(), advice: None }
}

impl fmt::Display for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;
    use crate::probe::RefusalCause;

    #[test]
    fn each_wish_and_finding_has_its_choice() {
        let there = || Ok(Capabilities { kernel: "6.6.1".to_owned() });
        let refused = || {
            let (cause, error) = (RefusalCause::Sysctl, io::ErrorKind::PermissionDenied.into());
            Err(Refusal { cause, error, kernel: "6.6.1".to_owned() })
        };
        let only = |engine| EngineWanted::Only(engine);
        let table = [
            (EngineWanted::Auto, there(), Some((Engine::Uring, "6.6.1", false))),
            (EngineWanted::Auto, refused(), Some((Engine::Epoll, "(sysctl)", true))),
            (only(Engine::Uring), there(), Some((Engine::Uring, "asked for", false))),
            (only(Engine::Uring), refused(), None),
        ];
        for (wanted, probed, expected) in table {
            match (decide(wanted, probed), expected) {
                (Ok(choice), Some((engine, word, advised))) => {
                    assert_eq!((choice.engine, choice.advice.is_some()), (engine, advised));
                    assert!(choice.reason.contains(word), "{}", choice.reason);
                }
                (Err(refusal), None) => assert_eq!(refusal.cause, RefusalCause::Sysctl),
                (came, expected) => panic!("{came:?} instead of {expected:?}"),
            }
        }
        let epoll = Engine::choose(only(Engine::Epoll)).unwrap();
        assert_eq!((epoll.engine, epoll.advice), (Engine::Epoll, None));
    }
}
