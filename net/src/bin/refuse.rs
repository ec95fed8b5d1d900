//! Starts a program that may not make certain system calls: a container runtime, in small.
//!
//! ```text
//!   refuse EPERM io_uring -- laelaps run ...
//!   refuse ENOSYS io_uring,pwritev2,epoll_pwait2 -- laelaps run ...
//!     1 a seccomp filter: each of these calls fails with that error, every other one passes
//!     2 exec: the program takes this process's place, and its id
//! ```
//!
//! A tool for tests; no part of the broker. Failure: 125 and a line of what is wrong.

#![expect(unsafe_code, reason = "a seccomp filter has no safe form")]
#![expect(clippy::print_stderr, reason = "a tool says what is wrong on standard error")]

use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

/// The status of a start that failed before there was a program, as of `env` and `timeout`.
const FAILED: u8 = 125;

fn main() -> ExitCode {
    let arguments = std::env::args().skip(1).collect::<Vec<_>>();
    let [errno, calls, dashes, program, rest @ ..] = &arguments[..] else {
        return failed("refuse EPERM|ENOSYS CALL[,CALL...] -- PROGRAM [ARGUMENT...]");
    };
    let errno = match (errno.as_str(), dashes.as_str()) {
        ("EPERM", "--") => libc::EPERM,
        ("ENOSYS", "--") => libc::ENOSYS,
        _ => return failed("the first argument is EPERM or ENOSYS, the third is --"),
    };
    let Some(calls) = calls.split(',').map(numbers).collect::<Option<Vec<_>>>() else {
        return failed("the calls are some of io_uring, pwritev2, epoll_pwait2");
    };
    if let Err(error) = refuse(&calls.concat(), errno) {
        return failed(&format!("the filter cannot be installed: {error}"));
    }
    failed(&format!("{program}: {}", Command::new(program).args(rest).exec()))
}

fn failed(why: &str) -> ExitCode {
    eprintln!("refuse: {why}");
    ExitCode::from(FAILED)
}

/// The system calls behind a name.
fn numbers(name: &str) -> Option<Vec<u32>> {
    let calls: &[libc::c_long] = match name {
        "io_uring" => {
            &[libc::SYS_io_uring_setup, libc::SYS_io_uring_enter, libc::SYS_io_uring_register]
        }
        "pwritev2" => &[libc::SYS_pwritev2],
        "epoll_pwait2" => &[libc::SYS_epoll_pwait2],
        _ => return None,
    };
    Some(calls.iter().map(|&call| call as u32).collect())
}

/// Makes these calls fail with `errno` in this process, for good.
fn refuse(calls: &[u32], errno: i32) -> io::Result<()> {
    let op = |code: u32, value: u32, yes: usize| libc::sock_filter {
        code: code as u16,
        jt: yes as u8,
        jf: 0,
        k: value,
    };
    // The first word that a filter sees is the number of the call.
    let mut filter = vec![op(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0)];
    for (index, &call) in calls.iter().enumerate() {
        let over_the_rest = calls.len() - index;
        filter.push(op(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, call, over_the_rest));
    }
    filter.push(op(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ALLOW, 0));
    filter.push(op(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ERRNO | errno as u32, 0));
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
