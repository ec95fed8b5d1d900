//! Messages and frames that have begun and not ended, and answers that nobody reads: how much of
//! them all connections may hold.
//!
//! ```text
//!   received ── bytes held by the engine, before and after ──▶ sum of the shard
//!                                                               │ beyond the bound
//!   1 into the log, as far as they came  ◀── most first ────────┤ until an eighth is free again
//!   2 closed, resource-limit-exceeded    ◀── oldest first ──────┘
//! ```
//! A message of which the head and a few KiB are here goes on in the log (`inflow.rs`), unless that
//! is behind with what it has.
//! A connection's own bounds (`max-message-size`, links, reassembly) do not bound what many hold
//! together. Whoever takes longest to finish goes: a message that flows is done before its turn
//! comes, and a peer that only keeps the bytes here cannot stay. Who waits for the log, or is not
//! read, is not slow: what it holds is no reason to close others. The same holds of who reads
//! slowly: of what is being sent to it, and of what waits behind that, as many bytes as messages
//! alone may be do not count for [`READS_WITHIN`] after it has taken all of a send. Between two
//! looks at all connections peers must fill an eighth of the bound.
//!
//! What buffers keep when they are empty is not counted. So it is given back, by all connections,
//! when peers have filled one of [`TRIM_SHARE`] parts of the bound; and by each once in its idle
//! time-out.
//!
//! What the host holds of TLS records that are not whole counts as frames that are not: a record
//! that lacks one byte would keep as much, and its engine sees none of it.
//!
//! Not counted against the memory bound of stored messages: else whoever may connect could make the
//! broker refuse the messages of others.

use std::time::Instant;

use amqp::connection::UNREAD_BYTES_FREE;
use amqp::error::{Condition, Error};

use super::Shard;
use super::link::Conn;
use crate::event::{ConnId, earlier};
use crate::limits::{
    GATHER_BYTES_MAX, PART_BYTES_MIN, PRESSURE_LOG_EVERY, READS_WITHIN, TRIM_EVERY, TRIM_SHARE,
    UNFINISHED_SHARE,
};

/// What the connections of a shard hold of unfinished messages and frames.
#[derive(Debug, Default)]
pub(super) struct Unfinished {
    /// Bytes; exact after each [`Shard::shed_unfinished`].
    bytes: u64,
    /// The least that they were since the last look at all connections.
    left: u64,
    /// What they have grown by, all together, since the connections were trimmed.
    grown: u64,
    /// When that was.
    trimmed: Option<Instant>,
    /// When it is to be next, if they have grown enough for that.
    trim_at: Option<Instant>,
    /// When all connections were last looked at.
    looked: Option<Instant>,
    /// When it was last told in the log that some had to go.
    logged: Option<Instant>,
}

impl Conn {
    fn unfinished(&self) -> u64 {
        self.amqp.unfinished_bytes()
            + self.sending_bytes
            + self.sealed.map_or(0, |(bytes, _)| bytes)
    }

    /// Bytes that wait for the peer to read: those that are being sent, and those behind them.
    fn unread_bytes(&self) -> u64 {
        self.amqp.unread_bytes() + self.sending_bytes
    }

    /// So many bytes are sent now, or all of them were taken: whether that is to be counted.
    pub(super) fn sends(&mut self, bytes: usize) -> bool {
        let counted = if bytes > UNREAD_BYTES_FREE { bytes as u64 } else { 0 };
        let before = std::mem::replace(&mut self.sending_bytes, counted);
        self.sending = bytes > 0;
        self.unread_since = None;
        before != counted
    }

    /// Bytes may wait for the peer now, or no longer.
    pub(super) fn time_unread(&mut self, now: Instant) {
        let waits = self.unread_bytes() > 0;
        self.unread_since = waits.then(|| self.unread_since.unwrap_or(now));
    }

    /// No more waits for the peer than messages alone may be, and it has read a moment ago.
    fn reads(&self, now: Instant, window: u64) -> bool {
        let lately = self.unread_since.is_none_or(|at| now < at + READS_WITHIN);
        self.amqp.unread_bytes().max(self.sending_bytes) <= window && lately
    }
}

impl Unfinished {
    /// When all connections are trimmed next.
    pub(super) fn due(&self) -> Option<Instant> {
        self.trim_at
    }

    fn set(&mut self, bytes: u64) {
        self.bytes = bytes;
        self.left = self.left.min(bytes);
    }
}

impl Shard {
    /// The host holds so many bytes of a record of this connection that is not whole; or none. They
    /// count from the first time on that it says so after an [`Event::Received`](crate::Event).
    pub fn hold_sealed(&mut self, now: Instant, id: ConnId, bytes: u64) {
        let Some(conn) = self.conns.get_mut(id) else { return };
        if bytes == 0 && conn.sealed.is_none() {
            return;
        }
        let since = conn.sealed.map_or(now, |(_, since)| since);
        conn.sealed = (bytes > 0).then_some((bytes, since));
        self.count_unfinished(now, id);
    }

    /// Counts what a connection holds after it has received.
    pub(super) fn count_unfinished(&mut self, now: Instant, id: ConnId) {
        let Some(conn) = self.conns.get_mut(id) else { return };
        conn.time_unread(now);
        let held = conn.unfinished();
        if held == conn.unfinished_bytes {
            return;
        }
        let sum = self.unfinished.bytes + held;
        self.unfinished.set(sum.saturating_sub(conn.unfinished_bytes));
        let growth = held.saturating_sub(conn.unfinished_bytes);
        conn.unfinished_bytes = held;
        let bound = self.unfinished_bytes_max();
        self.unfinished.grown += growth;
        if self.unfinished.grown > bound / TRIM_SHARE && self.unfinished.trim_at.is_none() {
            let rest = self.unfinished.trimmed.map(|at| at + TRIM_EVERY);
            self.unfinished.trim_at = Some(rest.map_or(now, |at| at.max(now)));
        }
        if growth > 0 && self.unfinished.bytes > bound.max(self.unfinished.left + bound / 8) {
            self.shed_unfinished(now);
            self.unfinished.left = self.unfinished.bytes;
        }
    }

    /// Closes those that have read nothing for long, where that makes room: nothing need grow for
    /// them to be so.
    pub(super) fn look_for_deaf(&mut self, now: Instant) {
        let looked = self.unfinished.looked.is_some_and(|at| now < at + READS_WITHIN);
        if !looked && self.unfinished.bytes > self.unfinished_bytes_max() {
            self.shed_unfinished(now);
        }
    }

    /// A connection is no longer ours.
    pub(super) fn forget_unfinished(&mut self, bytes: u64) {
        self.unfinished.set(self.unfinished.bytes.saturating_sub(bytes));
    }

    /// So many bytes of messages wait in an engine at the most: another begins below the bound, and
    /// the last frame may reach beyond.
    fn messages_alone(&self) -> u64 {
        let amqp = &self.config.amqp;
        amqp.transmit_bytes_max as u64 + u64::from(amqp.max_frame_size)
    }

    /// A share of what messages may take, and one of the longest that is gathered at the least.
    fn unfinished_bytes_max(&self) -> u64 {
        let amqp = &self.config.amqp;
        let gathered = amqp.max_message_size.min(GATHER_BYTES_MAX);
        let largest = gathered.saturating_add(2 * u64::from(amqp.max_frame_size));
        (self.config.memory_bytes_max / UNFINISHED_SHARE).max(largest)
    }

    /// Trims all connections, if it is time.
    pub(super) fn step_trim(&mut self, now: Instant) {
        if self.unfinished.trim_at.is_some_and(|at| at <= now) {
            (self.unfinished.grown, self.unfinished.trim_at) = (0, None);
            self.unfinished.trimmed = Some(now);
            self.conns.values_mut().for_each(|conn| conn.trim());
        }
    }

    /// Lets what has come of messages go into the log, most first, until there is room again.
    fn write_unfinished(&mut self, now: Instant, bytes_max: u64) {
        // What waits for a peer to read cannot be written.
        let held = |conn: &Conn| conn.amqp.unfinished_bytes() - conn.amqp.unread_bytes();
        let holders = self.conns.values().map(|conn| (held(conn), conn.id));
        let mut holders: Vec<(u64, ConnId)> = holders.collect();
        holders.sort_unstable();
        // However small they are, a message has fewer than can be numbered.
        let least = self.config.amqp.max_message_size / (u64::from(u16::MAX) / 2);
        let bytes_min = PART_BYTES_MIN.max(usize::try_from(least).unwrap_or(usize::MAX));
        let mut sum: u64 = holders.iter().map(|(bytes, _)| bytes).sum();
        while sum > bytes_max
            && let Some((before, id)) = holders.pop().filter(|(bytes, _)| *bytes > 0)
        {
            let Some(conn) = self.conns.get_mut(id) else { continue };
            if conn.taking_bytes == 0 {
                conn.amqp.give_parts(bytes_min);
                sum = sum.saturating_sub(before - held(conn).min(before));
                self.pump(now, id);
            }
        }
    }

    /// Closes those that take longest, where nothing else makes room again.
    fn shed_unfinished(&mut self, now: Instant) {
        let bound = self.unfinished_bytes_max();
        self.write_unfinished(now, bound - bound / 8);
        self.unfinished.looked = Some(now);
        let window = self.messages_alone();
        let mut holders: Vec<(Instant, ConnId)> = Vec::new();
        let (mut sum, mut exempt) = (0, 0);
        for conn in self.conns.values_mut() {
            conn.time_unread(now);
            conn.unfinished_bytes = conn.unfinished();
            sum += conn.unfinished_bytes;
            let mut since = None;
            if conn.taking_bytes > 0 || conn.paused {
                // Who is not read cannot finish anything.
                exempt += conn.unfinished_bytes - conn.unread_bytes();
            } else {
                // Of one that is over nobody is at the record's end.
                let sealed = conn.sealed.filter(|_| conn.amqp.wants_read());
                let sealed_since = sealed.map(|(_, since)| since);
                since = earlier(conn.amqp.unfinished_since(), sealed_since);
            }
            if conn.reads(now, window) {
                exempt += conn.unread_bytes();
            } else {
                since = earlier(since, conn.unread_since);
            }
            holders.extend(since.map(|since| (since, conn.id)));
        }
        self.unfinished.bytes = sum;
        holders.sort_unstable();
        let mut closed = 0;
        for (_, id) in holders {
            if self.unfinished.bytes <= bound - bound / 8 + exempt {
                break;
            }
            self.expel(now, id);
            closed += 1;
        }
        let quiet = self.unfinished.logged.is_some_and(|at| now < at + PRESSURE_LOG_EVERY);
        if closed > 0 && !quiet {
            self.unfinished.logged = Some(now);
            tracing::warn!(
                shard = self.config.shard.0,
                bound,
                "unfinished messages of all connections exceeded their bound: {closed} connections \
                 that took longest were closed; raise memory-max if they were honest"
            );
        }
    }

    fn expel(&mut self, now: Instant, id: ConnId) {
        let window = self.messages_alone();
        let Some(conn) = self.conns.get_mut(id) else { return };
        let deaf = !conn.reads(now, window);
        let error = Error::new(
            Condition::ResourceLimitExceeded,
            "unfinished messages and unread answers of all connections take too much memory; this \
             one took longest",
        );
        conn.amqp.expel(error, deaf);
        conn.sealed = None;
        if deaf {
            // It goes with its socket, in a moment.
            conn.sending_bytes = 0;
        }
        // Who reads is still owed what waits for it.
        let left = conn.unfinished();
        let held = std::mem::replace(&mut conn.unfinished_bytes, left);
        self.forget_unfinished(held.saturating_sub(left));
        self.pump(now, id);
    }
}
