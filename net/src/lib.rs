//! The kernel side of Laelaps: one reactor for each core thread, and the files, mail and cores
//! around it.
//!
//! ```text
//!   shard thread 0                       shard thread 1                    other threads
//!  +--------------------------+         +--------------------------+      (HTTP, signals)
//!  | driver                   |         | driver                   |            |
//!  |   | submit     ^ wait    |  mesh   |   |            ^         |            |
//!  |   v            |         | <-----> |   v            |         |            |
//!  | Ring: sockets, files     | MSG_RING| Ring                     | <--- Doorbell (eventfd)
//!  +---|------------|---------+         +--------------------------+
//!      v            |
//!   the kernel: io_uring, one ring a core, or epoll and threads that write ([`Engine`])
//! ```
//!
//! Completion-based, without futures: the caller hands an operation its buffer, [`Ring::wait`]
//! brings the buffer back. No borrowed memory ever reaches the kernel.
//!
//! Invariants: this crate imports none of ours and is the only one with `unsafe`, each block with
//! the fact it rests on; no raw descriptor crosses the public interface; everything the kernel may
//! still touch is owned by a slab slot until its last completion, or by the thread inside the call.
//!
//! Failure: a refused io_uring is a [`Refusal`] in words, with what to do, or the reason why
//! [`Engine::choose`] took the other; a failed operation comes back as its completion; a failed
//! [`Ring::wait`] means the ring is lost and the process should end.

mod boot;
pub mod buf;
pub mod cgroup;
pub mod cpu;
mod doorbell;
mod engine;
mod epoll;
pub mod file;
mod lease;
pub mod limit;
pub mod map;
pub mod mesh;
mod pace;
mod probe;
mod ring;
mod slab;
mod tcp;
pub mod tls;
mod uring;

pub use boot::boot_time;
pub use doorbell::Doorbell;
pub use engine::{Engine, EngineChoice, EngineWanted};
pub use lease::RecvLease;
pub use probe::{Capabilities, Refusal, RefusalCause, probe, probe_rings};
pub use ring::{
    ACCEPT_RETRY, Completion, DiskRead, DiskWrite, FileId, ListenerId, MemoryUse, Ring, RingConfig,
    RingError, RingStats, SPIN_MAX, SocketId, TcpListen,
};

/// The clock of the reactor: what waits and rests are measured by.
#[expect(clippy::disallowed_methods, reason = "the kernel side is where time comes from")]
fn now() -> std::time::Instant {
    std::time::Instant::now()
}
