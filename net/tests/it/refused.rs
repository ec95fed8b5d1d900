//! What a process hears that may not have io_uring.
//!
//! ```text
//!   test -> itself again as a child -> seccomp filter on calls 425..=427 -> probe() and Ring::new
//! ```

#![expect(unsafe_code, reason = "a seccomp filter is installed between fork and exec")]

use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;

use net::{RefusalCause, Ring, RingConfig, RingError, probe};

const CHILD: &str = "NET_TEST_REFUSED";

#[test]
fn the_probe_finds_io_uring_here() {
    if std::env::var_os(CHILD).is_none() {
        let capabilities = probe().unwrap();
        assert!(capabilities.kernel.starts_with(|first: char| first.is_ascii_digit()));
    }
}

#[test]
fn a_filter_is_named_as_the_cause() {
    if std::env::var_os(CHILD).is_some() {
        let refusal = probe().unwrap_err();
        assert_eq!(refusal.cause, RefusalCause::Seccomp);
        let text = refusal.to_string();
        assert!(text.contains("seccomp") && text.contains("io_uring_setup"), "{text}");
        let error = Ring::new(RingConfig::default()).unwrap_err();
        assert!(
            matches!(error, RingError::Refused(refusal) if refusal.cause == RefusalCause::Seccomp)
        );
        return;
    }
    for errno in [libc::EPERM, libc::ENOSYS] {
        let mut child = Command::new(std::env::current_exe().unwrap());
        child.args(["--exact", "refused::a_filter_is_named_as_the_cause"]).env(CHILD, "1");
        // SAFETY: the closure makes two system calls and allocates nothing.
        unsafe { child.pre_exec(move || refuse_io_uring(errno)) };
        assert!(child.status().unwrap().success(), "errno {errno}");
    }
}

/// Makes the three io_uring calls fail with `errno` in this process and its children.
fn refuse_io_uring(errno: i32) -> io::Result<()> {
    let op = |code: u32, value: u32, yes: u8, no: u8| libc::sock_filter {
        code: code as u16,
        jt: yes,
        jf: no,
        k: value,
    };
    let load = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
    let at_least = libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K;
    let answer = libc::BPF_RET | libc::BPF_K;
    let mut filter = [
        op(load, 0, 0, 0),
        op(at_least, libc::SYS_io_uring_setup as u32, 0, 2),
        op(at_least, libc::SYS_io_uring_register as u32 + 1, 1, 0),
        op(answer, libc::SECCOMP_RET_ERRNO | errno as u32, 0, 0),
        op(answer, libc::SECCOMP_RET_ALLOW, 0, 0),
    ];
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
    // SAFETY: takes integers only.
    if unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the program points to the filter above; both live across the call, which copies them.
    if unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &program) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

#[test]
fn a_configuration_out_of_bounds_names_its_field() {
    let wrong = RingConfig { recv_buffers: 3, ..RingConfig::default() };
    let error = Ring::new(wrong).unwrap_err();
    assert!(matches!(error, RingError::Config(text) if text.contains("recv_buffers")), "{error}");
}
