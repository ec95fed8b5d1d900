//! Failed log-ins are answered late: the more of them from an address, the later.
//!
//! ```text
//!   queued (line.rs) ─▶ taken ─▶ verified ─▶ right: answered at once
//!     │                   │         └─▶ wrong: failures of the address + 1; answered
//!     │                   │             100 ms, 200 ms, 400 ms .. 4 s after it came
//!     └───────────────────┴─▶ pressed, [`WAITING_MAX`] refusals of this address wait: Busy
//! ```
//! Only refusals wait. So a flood of guesses from behind a proxy slows nobody who knows a password,
//! until it has [`WAITING_MAX`] guesses waiting there; and trying a word a connection takes longer
//! each time. A refusal's time counts from the attempt's arrival, so how long the verifying took
//! does not show. An address is forgotten [`FORGET_AFTER`] after its last failure. Of IPv6 the
//! network counts, the first 64 bits.
//!
//! Invariants: nobody sleeps here but the thread of the late answers; both tables are bounded, and
//! what finds no room is answered at once. No secret is logged; names are shown escaped, and of a
//! flood [`LINES_PER_SECOND`] lines, and one of who is turned away.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use broker::event::AuthVerdict;
use broker::ration::Ration;
use crossbeam::channel::{Receiver, RecvTimeoutError, Sender, bounded};

use super::Answer;
use crate::driver::clock;
use crate::fatal::{Cause, Failure};

/// How late the first refusal is: longer than verifying takes.
const FIRST: Duration = Duration::from_millis(100);

/// How late a refusal is at most: well within the time that a client has for its handshake.
const LATEST: Duration = Duration::from_secs(4);

/// Refusals that may wait, of one address.
const WAITING_MAX: u32 = 32;

/// Refusals that may wait in all.
const LATE_MAX: usize = 4_096;

/// Addresses that are remembered.
const ADDRESSES_MAX: usize = 4_096;

/// An address without failures for so long is forgotten.
const FORGET_AFTER: Duration = Duration::from_secs(60);

/// Refusals that the log tells of in a second.
const LINES_PER_SECOND: u32 = 10;

/// Log-ins that are turned away, that it tells of.
const TURNED_AWAY_LINES_PER_SECOND: u32 = 1;

/// What is known of an address.
#[derive(Clone, Copy, Debug)]
struct Known {
    /// Refusals that wait.
    waiting: u32,
    failures: u32,
    /// The last failure.
    last: Instant,
}

impl Known {
    fn is_idle(&self) -> bool {
        self.waiting == 0
    }

    fn has_failed(&self, now: Instant) -> bool {
        self.failures > 0 && now < self.last + FORGET_AFTER
    }
}

/// A log-in that is refused.
pub(super) struct Refusal<'a> {
    /// When the attempt came.
    pub(super) since: Instant,
    /// Whence.
    pub(super) peer: SocketAddr,
    /// Who it said that it was.
    pub(super) user: &'a str,
}

/// A refusal that waits.
struct Late {
    at: Instant,
    from: IpAddr,
    answer: Answer,
}

#[derive(Debug, Default)]
struct Table {
    known: BTreeMap<IpAddr, Known>,
    lines: Ration<LINES_PER_SECOND>,
    turned_away_total: u64,
    turned_away_lines: Ration<TURNED_AWAY_LINES_PER_SECOND>,
}

/// The pace of an address.
#[derive(Clone)]
pub(super) struct Pace {
    table: Arc<Mutex<Table>>,
    late: Sender<Late>,
}

impl Pace {
    /// Start the thread of the late answers. It ends when the last clone is gone.
    pub(super) fn start() -> Result<Self, Failure> {
        let (late, queue) = bounded(LATE_MAX);
        let table = Arc::new(Mutex::new(Table::default()));
        let of_thread = Arc::clone(&table);
        std::thread::Builder::new()
            .name("auth-late".to_owned())
            .spawn(move || answer_late(&of_thread, &queue))
            .map_err(|error| {
                Failure::new(Cause::ResourceRefused, format!("no thread for log-ins: {error}"))
            })?;
        Ok(Self { table, late })
    }

    /// Whether too many refusals of this address wait: its log-ins are turned away.
    pub(super) fn is_pressed(&self, peer: SocketAddr) -> bool {
        let known = lock(&self.table).known.get(&address(peer)).copied();
        known.is_some_and(|known| known.waiting >= WAITING_MAX)
    }

    /// A log-in is not verified, for too many wait: it is answered at once.
    pub(super) fn turn_away(&self, peer: SocketAddr, answer: Answer) {
        let left_out = {
            let mut table = lock(&self.table);
            table.turned_away_total += 1;
            table.turned_away_lines.line(clock())
        };
        if let Some(left_out) = left_out {
            tracing::info!(
                %peer,
                left_out,
                "a log-in was turned away: too many wait, in all or of its address"
            );
        }
        answer(AuthVerdict::Busy, None);
    }

    /// How many were turned away.
    pub(super) fn turned_away_total(&self) -> u64 {
        lock(&self.table).turned_away_total
    }

    /// A log-in is refused: in the log now, to the peer later.
    pub(super) fn refuse(&self, refusal: Refusal<'_>, answer: Answer) {
        let Refusal { since, peer, user } = refusal;
        let from = address(peer);
        let failures = self.note(clock(), from, |left_out, failures| {
            if left_out > 0 {
                tracing::info!("{left_out} more log-ins were refused");
            }
            let user: String = user.chars().take(64).flat_map(char::escape_debug).collect();
            tracing::info!(%peer, user, failures, "a log-in was refused");
        });
        let late = Late { at: since + delay(failures), from, answer };
        if let Err(refused) = self.late.try_send(late) {
            answer_now(&self.table, refused.into_inner());
        }
    }

    /// One more failure of an address, and one more refusal that waits; how many failures. What is
    /// to be told is told with how many were left out before.
    fn note(&self, now: Instant, from: IpAddr, tell: impl FnOnce(u64, u32)) -> u32 {
        let mut table = lock(&self.table);
        let known = table.of(now, from);
        if !known.has_failed(now) {
            known.failures = 0;
        }
        known.failures = known.failures.saturating_add(1);
        known.waiting += 1;
        known.last = now;
        let failures = known.failures;
        if let Some(left_out) = table.lines.line(now) {
            tell(left_out, failures);
        }
        failures
    }
}

impl Table {
    /// What is known of an address. What is idle makes room; of what is not there are [`LATE_MAX`].
    fn of(&mut self, now: Instant, from: IpAddr) -> &mut Known {
        if self.known.len() >= ADDRESSES_MAX && !self.known.contains_key(&from) {
            self.known.retain(|_, known| !known.is_idle() || known.has_failed(now));
            let idle = self.known.iter().filter(|(_, known)| known.is_idle());
            let oldest = idle.min_by_key(|(_, known)| known.last).map(|(from, _)| *from);
            if let Some(oldest) = oldest.filter(|_| self.known.len() >= ADDRESSES_MAX) {
                self.known.remove(&oldest);
            }
        }
        let nothing = Known { waiting: 0, failures: 0, last: now };
        self.known.entry(from).or_insert(nothing)
    }
}

fn lock(table: &Mutex<Table>) -> MutexGuard<'_, Table> {
    table.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What counts as one address.
pub(crate) fn address(peer: SocketAddr) -> IpAddr {
    match peer.ip().to_canonical() {
        IpAddr::V4(v4) => v4.into(),
        IpAddr::V6(v6) => {
            let [a, b, c, d, ..] = v6.segments();
            Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0).into()
        }
    }
}

fn delay(failures: u32) -> Duration {
    let doublings = failures.saturating_sub(1).min(16);
    (FIRST * 2_u32.pow(doublings)).min(LATEST)
}

fn answer_now(table: &Mutex<Table>, late: Late) {
    if let Some(known) = lock(table).known.get_mut(&late.from) {
        known.waiting -= 1;
    }
    (late.answer)(AuthVerdict::Refused, None);
}

fn answer_late(table: &Mutex<Table>, queue: &Receiver<Late>) {
    let mut waiting: BTreeMap<(Instant, u64), Late> = BTreeMap::new();
    let mut number = 0;
    loop {
        let now = clock();
        while let Some(entry) = waiting.first_entry()
            && entry.key().0 <= now
        {
            answer_now(table, entry.remove());
        }
        let next = waiting.first_key_value().map(|((at, _), _)| at.saturating_duration_since(now));
        match queue.recv_timeout(next.unwrap_or(FORGET_AFTER)) {
            Ok(late) => {
                number += 1;
                waiting.insert((late.at, number), late);
                // Beyond the bound the next one due does not wait for its time.
                if waiting.len() > LATE_MAX
                    && let Some((_, late)) = waiting.pop_first()
                {
                    answer_now(table, late);
                }
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(peer: &str) -> SocketAddr {
        peer.parse().expect("an address")
    }

    #[test]
    fn refusals_come_later_each_time_and_many_of_them_press() {
        assert_eq!(
            [1, 2, 3, 6, 7, 90].map(|n| delay(n).as_millis()),
            [100, 200, 400, 3200, 4000, 4000]
        );
        let pace = Pace::start().expect("started");
        let (peer, neighbour) = (at("[2001:db8::1]:5"), at("[2001:db8::2]:5"));
        let (said, heard) = crossbeam::channel::unbounded();
        let began = clock();
        assert!(!pace.is_pressed(neighbour));
        for _ in 0..WAITING_MAX {
            let said = said.clone();
            let answer: Answer = Box::new(move |verdict, _| said.send(verdict).expect("heard"));
            assert!(!pace.is_pressed(peer));
            pace.refuse(Refusal { since: began, peer, user: "eve" }, answer);
        }
        assert!(pace.is_pressed(peer) && pace.is_pressed(neighbour), "a network is one address");
        assert!(!pace.is_pressed(at("10.0.0.1:5")));
        assert_eq!(heard.recv(), Ok(AuthVerdict::Refused));
        assert!(began.elapsed() >= FIRST);
        // The first answer made room for one.
        assert!(!pace.is_pressed(peer));
    }

    #[test]
    fn the_table_is_bounded_and_forgets_the_oldest() {
        let (mut table, now) = (Table::default(), clock());
        let address = |n: u32| IpAddr::from(n.to_be_bytes());
        for n in 0..2 * ADDRESSES_MAX as u32 {
            let known = table.of(now, address(n));
            (known.failures, known.last) = (1, now + Duration::from_millis(n.into()));
            known.waiting = u32::from(n == 0);
            assert!(table.known.len() <= ADDRESSES_MAX);
        }
        assert!(table.known.contains_key(&address(0)), "a refusal of it waits");
        assert!(!table.known.contains_key(&address(1)));
    }
}
