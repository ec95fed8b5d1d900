//! The limits on open files, of which every connection takes one, and on locked memory.
//!
//! ```text
//!   raise_open_files()    soft limit = hard limit, once, before the rings are made
//!        -> 524,288 say   divided by the caller: RingConfig::sockets_max, files, the rest
//!   locked_memory()       the soft limit, which counts for rings and what they pin
//! ```
//!
//! Invariant: what is returned is what holds; connections must never take the descriptors that the
//! journal will need, or whoever may connect could end the broker.
//!
//! Failure: a limit that can't be raised is not an error, only smaller.

#![expect(unsafe_code, reason = "getrlimit and setrlimit have no safe form in std")]

use std::io;
use std::mem::MaybeUninit;

/// Raises this process's limit on open files as far as it may, and says what it is now.
///
/// # Errors
/// The kernel doesn't tell the limit.
pub fn raise_open_files() -> io::Result<u64> {
    let limit = limit(libc::RLIMIT_NOFILE)?;
    let wanted = libc::rlimit { rlim_cur: limit.rlim_max, ..limit };
    // SAFETY: `wanted` is an initialised rlimit that lives across the call.
    let raised = unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const wanted) } == 0;
    Ok(if raised { wanted.rlim_cur } else { limit.rlim_cur })
}

/// Bytes that this process may lock; `None` where that is not limited. Root may all the same.
pub fn locked_memory() -> Option<u64> {
    let bytes = limit(libc::RLIMIT_MEMLOCK).ok()?.rlim_cur;
    (bytes != libc::RLIM_INFINITY).then_some(bytes)
}

fn limit(of: libc::__rlimit_resource_t) -> io::Result<libc::rlimit> {
    let mut limit = MaybeUninit::<libc::rlimit>::zeroed();
    // SAFETY: `limit` is room for an rlimit and lives across the call.
    if unsafe { libc::getrlimit(of, limit.as_mut_ptr()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: it was zeroed, zero is a value of its integers, and the kernel filled it.
    Ok(unsafe { limit.assume_init() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locked_memory_is_what_the_kernel_says() {
        let limits = std::fs::read_to_string("/proc/self/limits").unwrap();
        let line = limits.lines().find(|line| line.starts_with("Max locked memory")).unwrap();
        let soft = line.split_whitespace().nth(3).unwrap();
        assert_eq!(locked_memory().map_or("unlimited".to_owned(), |b| b.to_string()), soft);
    }

    #[test]
    fn the_limit_is_raised_to_the_hard_one_and_stays() {
        let raised = raise_open_files().unwrap();
        let limits = std::fs::read_to_string("/proc/self/limits").unwrap();
        let line = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
        let limits = line.split_whitespace().skip(3).take(2).collect::<Vec<_>>();
        assert_eq!(limits, [raised.to_string(), raised.to_string()]);
        assert_eq!(raise_open_files().unwrap(), raised);
    }
}
