//! A connection of a client, as a simulated network has it.
//!
//! ```text
//!   client ── to_broker: bytes, cut anywhere ──▶ broker
//!          ◀── to_client: what was sent, with what the disks held then ──
//! ```
//! Failure: the world that owns it drops it; what was on its way is lost with it, or not.

use std::collections::VecDeque;
use std::rc::Rc;

use crate::check::Stamp;

#[derive(Debug)]
pub(crate) struct Pipe<P> {
    pub(crate) client: usize,
    /// The shard that has it.
    pub(crate) at: P,
    pub(crate) accepted: bool,
    pub(crate) paused: bool,
    /// Between two shards: what is read waits.
    pub(crate) moving: bool,
    /// Sends of the broker that have not ended.
    pub(crate) sends: u32,
    /// The broker has closed it; the client hears that after the last byte.
    pub(crate) closing: bool,
    pub(crate) to_broker: VecDeque<u8>,
    pub(crate) to_broker_due: bool,
    pub(crate) to_client: VecDeque<(Vec<u8>, Rc<Stamp>)>,
    pub(crate) to_client_due: bool,
}

impl<P> Pipe<P> {
    /// A client dials a shard.
    pub(crate) fn new(client: usize, at: P) -> Self {
        Self {
            client,
            at,
            accepted: false,
            paused: false,
            moving: false,
            sends: 0,
            closing: false,
            to_broker: VecDeque::new(),
            to_broker_due: false,
            to_client: VecDeque::new(),
            to_client_due: false,
        }
    }

    /// Whether the broker reads what comes.
    pub(crate) fn is_read(&self) -> bool {
        !self.paused && !self.moving
    }

    /// The same of a connection that stands at both ends.
    pub(crate) fn is_open(&self) -> bool {
        self.accepted && self.is_read() && !self.closing
    }
}
