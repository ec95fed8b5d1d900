//! The main thread of a member: listens while it may serve, and begins anew when it may not reign.
//!
//! ```text
//!   News::Open  ──▶ every shard ready? ──▶ listen ──▶ Stage::Ready
//!   News::Closed ─▶ close listeners and clients; the shards stay: it may be opened again
//!   News::GiveUp ─▶ exec: this program, these arguments, this process
//!   a signal    ──▶ live: answer what was sent, give the role away, end
//!                   backup: say that it goes, end
//!   SwitchOver  ──▶ the same as for a live, then begin anew instead of the end: also where the
//!                   other member could not be told in time
//! ```
//! Invariant: nobody can connect but between `Open` and `Closed`.
//!
//! Failure: a port that is taken ends the process; the other member goes on.

use std::os::unix::process::CommandExt as _;
use std::process::Command as Program;
use std::time::{Duration, Instant};

use broker::event::RecoveryReport;
use crossbeam::channel::{Receiver, after, select};
use replica::card::Standing;

use super::{Command, Ha, News};
use crate::config::Config;
use crate::driver::{Driver, Report};
use crate::fatal::{Cause, Failure};
use crate::node::{Inbox, Input, Node, Stage};
use crate::run::{cores_gone, listen};
use crate::{driver, log};

/// What a closed listener's port may take to be free again.
const PORT_WITHIN: Duration = Duration::from_secs(5);
const PORT_RETRY: Duration = Duration::from_millis(20);

/// After what was sent is answered: the other member and the voters have this long.
const FAREWELL_WITHIN: Duration = Duration::from_secs(1);

/// What a member serves with.
pub(crate) struct Served<'a> {
    /// The configuration.
    pub(crate) config: &'a Config,
    /// The process, as cold threads see it.
    pub(crate) node: &'a Node,
    /// The cores.
    pub(crate) driver: &'a Driver,
    /// The ways into them.
    pub(crate) inboxes: &'a [Inbox],
    /// How many shards they have.
    pub(crate) shards: u16,
    /// Signals that ask us to stop.
    pub(crate) signals: &'a Receiver<i32>,
}

/// Serves until it is asked to stop.
///
/// # Errors
/// A core or the listener has failed.
pub(crate) fn serve(ha: &Ha, served: &Served<'_>) -> Result<(), Failure> {
    let mut member = Member { ha, served, ready: Vec::new(), may_open: false, is_open: false };
    ha.tell(Command::Cores(served.inboxes.to_vec(), served.shards));
    loop {
        select! {
            recv(served.signals) -> _ => return member.leave().map(drop),
            recv(served.driver.reports) -> report => {
                member.handle_report(report.map_err(|_| cores_gone())?)?;
            }
            recv(ha.news) -> news => match news.map_err(|_| cores_gone())? {
                News::Open => member.may_open = true,
                News::Closed => member.close(),
                News::Standing(standing, is_ready) => member.stand(standing, is_ready),
                News::GiveUp => begin_anew("its reign is over")?,
                News::SwitchOver => begin_anew(after_switchover(member.leave()?))?,
                News::Format(_) | News::MayEnd => {}
            },
        }
        member.open_if_ready()?;
    }
}

struct Member<'a> {
    ha: &'a Ha,
    served: &'a Served<'a>,
    /// Shards that serve.
    ready: Vec<RecoveryReport>,
    may_open: bool,
    is_open: bool,
}

impl Member<'_> {
    fn handle_report(&mut self, report: Report) -> Result<(), Failure> {
        match report {
            Report::Ready(report) => self.ready.push(report),
            Report::Failed(failure) => return Err(failure),
            Report::Started { .. } | Report::Listening(_) | Report::Drained => {}
        }
        Ok(())
    }

    fn open_if_ready(&mut self) -> Result<(), Failure> {
        let are_ready = self.ready.len() >= usize::from(self.served.shards);
        if !self.may_open || self.is_open || !are_ready {
            return Ok(());
        }
        let config = self.served.config;
        let amqp = self.listen(config.listen, false)?;
        let amqps = config.tls_listen.0.map(|addr| self.listen(addr, true)).transpose()?;
        self.is_open = true;
        self.served.node.enter(Stage::Ready);
        let messages: u64 = self.ready.iter().map(|report| report.messages).sum();
        let amqps = amqps.map_or_else(|| "off".to_owned(), |addr| addr.to_string());
        tracing::info!(%amqp, amqps, messages, "live: clients are served");
        Ok(())
    }

    /// A listener that was just closed may hold its port for a moment.
    fn listen(
        &self,
        addr: std::net::SocketAddr,
        tls: bool,
    ) -> Result<std::net::SocketAddr, Failure> {
        let until = driver::clock() + PORT_WITHIN;
        loop {
            match listen(self.served.driver, self.served.inboxes, addr, tls) {
                Err(failure) if failure.cause == Cause::ListenFailed && driver::clock() < until => {
                    std::thread::sleep(PORT_RETRY);
                }
                outcome => return outcome,
            }
        }
    }

    fn close(&mut self) {
        self.may_open = false;
        if std::mem::take(&mut self.is_open) {
            self.served.inboxes.iter().for_each(|inbox| inbox.put(Input::CloseClients));
            self.served.node.enter(Stage::Fenced);
        }
    }

    fn stand(&self, standing: Standing, is_ready: bool) {
        let stage = match standing {
            // Clients make it ready.
            Standing::Live => return,
            Standing::Fenced => Stage::Fenced,
            Standing::Backup if is_ready => Stage::Backup,
            Standing::Backup | Standing::Joining => Stage::Joining,
        };
        self.served.node.enter(stage);
    }

    /// Answers what was sent, then lets the other member know; whether nobody waits for this one
    /// any more.
    fn leave(&mut self) -> Result<bool, Failure> {
        let Served { config, node, driver, inboxes, shards, signals } = self.served;
        node.enter(Stage::Draining);
        tracing::info!("stopping: answering what was sent, for at most {}", config.drain);
        let mut left = 0;
        if self.is_open {
            left = *shards;
            inboxes.iter().for_each(|inbox| inbox.put(Input::Shutdown));
        }
        self.ha.tell(Command::Stop(config.drain.0));
        let over = after(config.drain.0 + FAREWELL_WITHIN);
        let mut may_end = false;
        while left > 0 || !may_end {
            select! {
                recv(driver.reports) -> report => match report.map_err(|_| cores_gone())? {
                    // Once the role is away nobody is waited for, though some still drain.
                    Report::Drained => left = left.saturating_sub(1),
                    Report::Failed(failure) => return Err(failure),
                    Report::Started { .. } | Report::Listening(_) | Report::Ready(_) => {}
                },
                recv(self.ha.news) -> news => match news.map_err(|_| cores_gone())? {
                    News::MayEnd => may_end = true,
                    // The role is away.
                    News::GiveUp | News::Closed => left = 0,
                    News::Format(_) | News::Open | News::Standing(..) | News::SwitchOver => {}
                },
                recv(signals) -> _ => {
                    let message = "ended at once by a second signal";
                    return Err(Failure::new(Cause::SecondSignal, message));
                }
                recv(over) -> _ => break,
            }
        }
        match (left, may_end) {
            (0, true) => tracing::info!("stopped: everything sent was answered"),
            (left, _) => tracing::warn!(
                "stopped: {left} shards had not answered all, or the other member was not told; \
                 what they accepted is safe"
            ),
        }
        Ok(may_end)
    }
}

/// What is known after a switchover: it may have run out of time with the role still here, given
/// away and not confirmed, or taken.
const fn after_switchover(is_over: bool) -> &'static str {
    if is_over {
        "the role is given away"
    } else {
        "the switchover ran out of time; the voters know who has the role, see `laelaps ha status`"
    }
}

/// The same program takes this process's place, and recovers as after a kill.
fn begin_anew(why: &str) -> Result<(), Failure> {
    tracing::warn!("begins anew: {why}");
    log::flush();
    let error = Program::new("/proc/self/exe").args(std::env::args_os().skip(1)).exec();
    Err(Failure::new(Cause::ResourceRefused, format!("the process cannot begin anew: {error}")))
}

/// Waits for what an empty directory is to become.
///
/// # Errors
/// The control thread is gone.
pub(crate) fn wait_for_format(
    ha: &Ha,
    mut waiting: impl FnMut(),
) -> Result<replica::card::HeldLog, Failure> {
    let mut said: Option<Instant> = None;
    loop {
        match ha.news.recv_timeout(Duration::from_millis(100)) {
            Ok(News::Format(held)) => return Ok(held),
            Ok(
                News::Open
                | News::Closed
                | News::Standing(..)
                | News::GiveUp
                | News::MayEnd
                | News::SwitchOver,
            ) => {}
            Err(error) if error.is_timeout() => {
                waiting();
                let now = driver::clock();
                if said.is_none_or(|at| now >= at + Duration::from_secs(5)) {
                    said = Some(now);
                    tracing::info!(
                        "an empty directory: waiting for the voters and the other member to say \
                         which log the pair has"
                    );
                }
            }
            Err(_) => return Err(cores_gone()),
        }
    }
}
