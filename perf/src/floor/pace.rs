//! When a floor's client sends, how long it waits, and what it writes down.
//!
//! ```text
//!   open     due(now) ── the next intended time has come ──▶ Sent { intended, actual }
//!   closed   due(now) ── at once                         ──▶ Sent { now, now }
//!
//!   wait:    until SPIN before the next intended time the thread sleeps, then it watches the clock
//!   end:     nothing more is due, and all is answered, or GRACE is over
//! ```
//! The same rules as the load on a broker: the schedule never waits for an answer, and what is late
//! because every place in flight is taken is counted from its intended time.
//!
//! Failure: what is not answered within the grace is lost, what was due and not sent is unsent.

use std::num::NonZeroU64;
use std::time::{Duration, Instant};

use crate::block::{Ended, Recorder, Window};
use crate::machine::cpu_of_thread;
use crate::schedule::{Schedule, Share};

use super::FloorLoad;

/// How long before an intended time the clock is watched: a thread that sleeps is woken that late.
const SPIN: Duration = Duration::from_micros(60);

/// How long the last answers may take.
const GRACE: Duration = Duration::from_secs(5);

/// A request under way, in nanoseconds from the start.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sent {
    intended_ns: u64,
    actual_ns: u64,
}

pub(super) struct Pace {
    start: Instant,
    /// None: a closed loop.
    schedule: Option<Schedule>,
    next_ns: u64,
    end_ns: u64,
    recorder: Recorder,
    window_cpu_ns: Option<u64>,
    spun_ns: u64,
    spinning_since: Option<u64>,
}

impl Pace {
    /// The pace of a thread that has this share of the load, from `start` on.
    pub(super) fn new(load: &FloorLoad, share: Share, start: Instant) -> Self {
        let window =
            Window { start_ns: nanoseconds(load.warm_up), planned_ns: nanoseconds(load.duration) };
        // Refused only where timers cannot be set at all; then sends are late, and the lag says so.
        let _ = rustix::thread::set_current_timer_slack(NonZeroU64::new(1));
        let shared = |rate| Schedule::shared(load.arrivals, rate, load.seed, share);
        let mut schedule = load.rate.map(shared);
        let next_ns = schedule.as_mut().map_or(0, Schedule::next_ns);
        Self {
            start,
            schedule,
            next_ns,
            end_ns: window.start_ns + window.planned_ns,
            recorder: Recorder::new(window, load.rate),
            window_cpu_ns: None,
            spun_ns: 0,
            spinning_since: None,
        }
    }

    pub(super) fn now_ns(&self) -> u64 {
        nanoseconds(self.start.elapsed())
    }

    /// Whether the warm-up is over; true once.
    pub(super) fn window_begins(&mut self, now_ns: u64) -> bool {
        if self.window_cpu_ns.is_some() || now_ns < self.recorder.window().start_ns {
            return false;
        }
        self.window_cpu_ns = Some(cpu_of_thread());
        true
    }

    /// A request that is due; its place was free since `free_since_ns`.
    #[inline]
    pub(super) fn due(&mut self, now_ns: u64, free_since_ns: u64) -> Option<Sent> {
        let sent = match &mut self.schedule {
            Some(schedule) => {
                if self.next_ns > now_ns || self.next_ns >= self.end_ns {
                    return None;
                }
                let intended_ns = self.next_ns;
                self.next_ns = schedule.next_ns();
                Sent { intended_ns, actual_ns: now_ns }
            }
            None if now_ns < self.end_ns => Sent { intended_ns: now_ns, actual_ns: now_ns },
            None => return None,
        };
        let lag_since = sent.intended_ns.max(free_since_ns.min(now_ns));
        self.recorder.sent(sent.intended_ns, lag_since, sent.actual_ns);
        Some(sent)
    }

    #[inline]
    pub(super) fn done(&mut self, sent: Sent, now_ns: u64) {
        self.recorder.completed(sent.intended_ns, sent.actual_ns, now_ns);
    }

    /// Whether nothing more will be sent, or waited for.
    pub(super) fn is_over(&self, now_ns: u64, under_way: usize) -> bool {
        let all_sent = match self.schedule {
            Some(_) => self.next_ns >= self.end_ns,
            None => now_ns >= self.end_ns,
        };
        (all_sent && under_way == 0) || now_ns >= self.end_ns + nanoseconds(GRACE)
    }

    /// How long to wait for completions, if there is room for another request or not.
    #[inline]
    pub(super) fn timeout(&mut self, now_ns: u64, has_room: bool) -> Duration {
        let next_ns = match self.schedule {
            Some(_) if has_room && self.next_ns < self.end_ns => self.next_ns,
            // Nothing is to be sent: answers come, or the bound is reached.
            Some(_) | None => now_ns + nanoseconds(Duration::from_millis(100)),
        };
        let spin_ns = nanoseconds(SPIN);
        let timeout = next_ns.saturating_sub(now_ns).saturating_sub(spin_ns);
        if timeout > 0 {
            self.spun(now_ns);
        } else if self.spinning_since.is_none() && self.window_cpu_ns.is_some() {
            self.spinning_since = Some(now_ns);
        }
        Duration::from_nanos(timeout)
    }

    /// Something came or went: until now the clock was watched, if it was.
    pub(super) fn spun(&mut self, now_ns: u64) {
        if let Some(since) = self.spinning_since.take() {
            self.spun_ns += now_ns.saturating_sub(since);
        }
    }

    /// What was recorded, and what the clocks said; what is under way is given up.
    pub(super) fn finish(mut self, under_way: impl Iterator<Item = Sent>) -> (Recorder, Ended) {
        let now_ns = self.now_ns();
        for sent in under_way {
            self.recorder.lost(sent.intended_ns, now_ns);
        }
        if let Some(schedule) = &mut self.schedule {
            while self.next_ns < self.end_ns {
                self.recorder.unsent(self.next_ns, now_ns);
                self.next_ns = schedule.next_ns();
            }
        }
        let cpu_ns = cpu_of_thread().saturating_sub(self.window_cpu_ns.unwrap_or(0));
        let spin_ns = self.spun_ns.min(cpu_ns);
        (self.recorder, Ended { at_ns: now_ns, cpu_ns, spin_ns })
    }
}

pub(super) fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

#[expect(clippy::disallowed_methods, reason = "a measurement reads the clock")]
pub(super) fn clock() -> Instant {
    Instant::now()
}
