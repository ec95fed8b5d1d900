//! What a process hears that may not have io_uring, and how it does without.
//!
//! ```text
//!   test -> refuse (src/bin) -> itself again, under a seccomp filter
//! ```

use std::process::Command;

use net::{Engine, EngineWanted, RefusalCause, Ring, RingConfig, RingError, probe};

const CHILD: &str = "NET_TEST_REFUSED";

/// Runs tests of this program again, in a child that may not make these calls.
fn again_without(calls: &str, tests: &[&str]) {
    for errno in ["EPERM", "ENOSYS"] {
        let status = Command::new(env!("CARGO_BIN_EXE_refuse"))
            .args([errno, calls, "--"])
            .arg(std::env::current_exe().unwrap())
            .args(tests)
            .env(CHILD, "1")
            .status();
        assert!(status.unwrap().success(), "{errno} of {calls}");
    }
}

#[test]
fn the_probe_finds_io_uring_here() {
    let capabilities = probe().unwrap();
    assert!(capabilities.kernel.starts_with(|first: char| first.is_ascii_digit()));
    let choice = Engine::choose(EngineWanted::Auto).unwrap();
    assert_eq!((choice.engine, choice.advice), (Engine::Uring, None));
    assert!(choice.reason.contains(&capabilities.kernel), "{}", choice.reason);
}

#[test]
fn a_filter_is_named_as_the_cause() {
    if std::env::var_os(CHILD).is_none() {
        return again_without("io_uring", &["--exact", "refused::a_filter_is_named_as_the_cause"]);
    }
    let refusal = Engine::choose(EngineWanted::Only(Engine::Uring)).unwrap_err();
    assert_eq!(refusal.cause, RefusalCause::Seccomp);
    let text = refusal.to_string();
    assert!(text.contains("seccomp") && text.contains("io_uring_setup"), "{text}");
    let error = Ring::new(RingConfig::default()).unwrap_err();
    assert!(matches!(error, RingError::Refused(refusal) if refusal.cause == RefusalCause::Seccomp));
    let choice = Engine::choose(EngineWanted::Auto).unwrap();
    assert_eq!(choice.engine, Engine::Epoll);
    assert!(choice.reason.contains("(seccomp)"), "{}", choice.reason);
    assert!(text.ends_with(choice.advice.unwrap()), "{text}");
}

/// Sandboxes may also refuse the newer calls of the epoll engine: it does with older ones.
#[test]
fn the_epoll_engine_needs_no_new_calls() {
    again_without("io_uring,pwritev2,epoll_pwait2", &["disk::epoll::", "crossing::epoll::"]);
}

#[test]
fn a_configuration_out_of_bounds_names_its_field() {
    for engine in [Engine::Uring, Engine::Epoll] {
        let wrong = RingConfig { recv_buffers: 3, engine, ..RingConfig::default() };
        let error = Ring::new(wrong).unwrap_err();
        assert!(matches!(error, RingError::Config(text) if text.contains("recv_buffers")));
    }
}
