//! The control thread: what happens goes into the membership, what follows from it goes out.
//!
//! ```text
//!   a turn   1 the time, answers, reports, cards, commands ─▶ Membership
//!            2 queries ─▶ voters
//!            3 the gate, before anything that opens or closes
//!            4 duty ─▶ every shard; streams are dialled while it is Follow
//!            5 cards ─▶ the other member;  events ─▶ log;  news ─▶ the main thread
//!            6 where the live is ─▶ redirect.rs;  where both are ─▶ the opens of shards that serve
//! ```
//! Each shard is looked at every fraction of [`report_every`](Membership::report_every): a core
//! whose loop stands does not answer, and its member does not renew.
//!
//! What a shard is about to cut off is kept first (`exports.rs`).
//!
//! Failure: this thread's end is the process's.

use std::collections::BTreeSet;
use std::net::TcpListener;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use broker::Server;
use broker::shard::pair::PairEvent;
use crossbeam::channel::Sender;
use journal::ShardId;
use replica::card::{Card, HeldLog, Standing};
use replica::catchup::Piece;
use replica::member::{Duty, MemberConfig, MemberEvent, Membership, Service, Waits};
use replica::voter::{Client, Seat};
use replica::{NodeId, PairId, Register as _};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

use super::exports::{Exports, Step};
use super::redirect::Redirect;
use super::renewals::Renewals;
use super::streams::{self, Streams};
use super::voters::{self, Voters};
use super::watch::Watcher;
use super::{Clock, Command, Gate, News, status};
use crate::config::{Pair, node_name};
use crate::driver::FromCore;
use crate::fatal::{Cause, Failure};
use crate::mutual::Mutual;
use crate::node::{Inbox, Input, core_of};

/// Looks at each shard in the time in which it must be heard.
const LOOKS: u32 = 4;

/// An operator's word that waits for the lease is answered within this, won or not.
const FORCED_WITHIN: Duration = Duration::from_secs(4);

/// What it starts with.
pub(super) struct Setup {
    pub(super) pair: Pair,
    pub(super) pair_id: PairId,
    pub(super) config: MemberConfig,
    pub(super) held: Option<HeldLog>,
    pub(super) listener: TcpListener,
    pub(super) mutual: Option<Mutual>,
    pub(super) gate: Arc<Gate>,
    pub(super) from_cores: mpsc::UnboundedReceiver<FromCore>,
    pub(super) commands: mpsc::UnboundedReceiver<Command>,
    pub(super) news: Sender<News>,
    pub(super) exports: PathBuf,
    pub(super) first_question: u64,
    pub(super) watcher: Watcher,
    pub(super) redirect: Redirect,
}

/// Counted since the start.
#[derive(Debug, Default)]
pub(super) struct Figures {
    pub(super) elections: u64,
    pub(super) fencings: u64,
    pub(super) renewals: Renewals,
    pub(super) lease_too_short: bool,
    pub(super) exported_deltas: u64,
}

struct Control {
    clock: Clock,
    gate: Arc<Gate>,
    pair: Pair,
    pair_id: PairId,
    member: Membership,
    client: Client,
    voters: Voters,
    voters_up: BTreeSet<Seat>,
    streams: Streams,
    link: Option<(u64, mpsc::Sender<Card>)>,
    cores: Vec<Inbox>,
    shards: u16,
    duty: Option<Duty>,
    /// Streams to the live, a shard each.
    following: Vec<JoinHandle<()>>,
    is_open: bool,
    told: Option<(Standing, bool)>,
    /// What it waits for, as the log says.
    waiting: Waiting,
    is_stopping: bool,
    look_at: Instant,
    figures: Figures,
    watcher: Watcher,
    news: Sender<News>,
    exports: Exports,
    redirect: Redirect,
    /// Where clients reach the members, as the shards were told.
    servers: Arc<[Server]>,
    /// Where clients that come here are sent.
    live: Option<Server>,
    /// That both members say one address was said.
    one_address_said: bool,
    /// An operator who waits to hear whether the role was taken by force, and until when.
    forcing: Option<(oneshot::Sender<Result<(), String>>, Instant)>,
}

/// What comes from elsewhere.
struct Ears {
    cards: mpsc::Receiver<streams::Heard>,
    from_cores: mpsc::UnboundedReceiver<FromCore>,
    commands: mpsc::UnboundedReceiver<Command>,
}

/// Starts the thread.
pub(super) fn start(setup: Setup) -> Result<(), Failure> {
    let refused = |error: std::io::Error| {
        Failure::new(Cause::ResourceRefused, format!("the pair's thread cannot start: {error}"))
    };
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(refused)?;
    std::thread::Builder::new()
        .name("pair".to_owned())
        .spawn(move || runtime.block_on(Control::run(setup)))
        .map(drop)
        .map_err(refused)
}

impl Control {
    async fn run(setup: Setup) {
        let listener = match tokio::net::TcpListener::from_std(setup.listener) {
            Ok(listener) => listener,
            Err(error) => {
                let message = format!("the other member can't be listened for: {error}");
                Failure::new(Cause::ResourceRefused, message).die()
            }
        };
        let clock = setup.gate.clock();
        let now = clock.now();
        let dials_cards = setup.pair.node.0 == 0;
        let peer = setup.pair.peer;
        let (streams, cards) = Streams::start(listener, peer, setup.mutual.clone(), dials_cards);
        let mut control = Self {
            clock,
            gate: setup.gate,
            pair_id: setup.pair_id,
            member: Membership::new(now, setup.config, setup.held),
            client: Client::new(setup.pair.seats, setup.first_question >> 1),
            voters: Voters::start(&setup.pair.voters, setup.mutual.as_ref()),
            voters_up: BTreeSet::new(),
            streams,
            link: None,
            cores: Vec::new(),
            shards: 0,
            duty: None,
            following: Vec::new(),
            is_open: false,
            told: None,
            waiting: Waiting::default(),
            is_stopping: false,
            look_at: now,
            figures: Figures::default(),
            watcher: setup.watcher,
            news: setup.news,
            exports: Exports::new(setup.exports),
            redirect: setup.redirect,
            servers: Arc::default(),
            live: None,
            one_address_said: false,
            forcing: None,
            pair: setup.pair,
        };
        control.figures.exported_deltas = control.exports.count();
        let mut ears = Ears { cards, from_cores: setup.from_cores, commands: setup.commands };
        loop {
            control.turn();
            control.wait(&mut ears).await;
        }
    }

    async fn wait(&mut self, ears: &mut Ears) {
        let now = self.clock.now();
        let due = [self.member.poll_timeout(), self.client.poll_timeout(now)];
        let due = due.into_iter().flatten().fold(self.look_at, Instant::min);
        let nap = tokio::time::sleep(due.saturating_duration_since(now));
        tokio::select! {
            heard = self.voters.next() => self.hear_voter(heard),
            Some(heard) = ears.cards.recv() => self.hear_link(heard),
            Some(from) = ears.from_cores.recv() => self.hear_core(from),
            step = self.exports.next() => self.exported(step),
            Some(command) = ears.commands.recv() => self.obey(command),
            () = nap => {}
        }
    }

    // ---- what comes ----------------------------------------------------------------------------

    fn hear_voter(&mut self, heard: voters::Heard) {
        let now = self.clock.now();
        match heard {
            voters::Heard::Up(seat) => {
                self.voters_up.insert(seat);
                self.client.handle_up(seat);
            }
            voters::Heard::Reply(seat, bytes) => {
                if let Err(error) = self.client.handle_reply(now, seat, &bytes) {
                    tracing::warn!(seat = seat.0, "a voter says what is no reply: {error}");
                }
            }
            voters::Heard::Down(seat) => {
                self.voters_up.remove(&seat);
                self.client.handle_down(now, seat);
            }
        }
    }

    fn hear_link(&mut self, heard: streams::Heard) {
        let now = self.clock.now();
        match heard {
            streams::Heard::Up(number, outbox) => {
                if self.link.replace((number, outbox)).is_some() {
                    self.member.handle_link(now, false);
                }
                self.member.handle_link(now, true);
            }
            streams::Heard::Card(number, card) => {
                if self.link.as_ref().is_some_and(|(known, _)| *known == number) {
                    self.member.handle_card(now, *card);
                }
            }
            streams::Heard::Down(number) => {
                if self.link.take_if(|(known, _)| *known == number).is_some() {
                    self.member.handle_link(now, false);
                }
            }
        }
    }

    fn hear_core(&mut self, from: FromCore) {
        match from {
            FromCore::Report(shard, report) => {
                self.member.handle_shard(self.clock.now(), shard, *report);
            }
            FromCore::Export(shard, tail, mut piece) => {
                if let Piece::Head(head) = &mut piece {
                    head.is_overruled = self.member.overrules(tail.epoch);
                }
                self.exports.put(shard, tail, piece);
            }
            FromCore::GiveUp => self.tell(News::GiveUp),
        }
    }

    fn obey(&mut self, command: Command) {
        let now = self.clock.now();
        match command {
            Command::Formatted(held) => self.member.handle_formatted(now, held),
            Command::Cores(cores, shards) => {
                self.streams.set_cores(cores.clone(), shards);
                (self.cores, self.shards) = (cores, shards);
                self.look_at = now;
                if let Some(duty) = self.duty {
                    self.give(duty);
                }
            }
            Command::Stop(drain) => {
                self.is_stopping = true;
                self.member.stop(now, drain);
            }
            Command::Status(answer) => {
                let status = self.member.status(now);
                let voters = (self.voters_up.len(), self.pair.voters.len());
                // Whoever asked may have given up.
                drop(answer.send(status::value(&status, voters, &self.figures)));
            }
            Command::SwitchOver(answer) => {
                // A stop, after which the process begins anew.
                let may = self.member.may_switch_over();
                if may.is_ok() {
                    self.tell(News::SwitchOver);
                }
                let _ = answer.send(may.map_err(|refused| refused.to_string()));
            }
            Command::Bootstrap(other, answer) => {
                let done = self.check_other(&other).and_then(|()| {
                    let done = self.member.bootstrap(now, unix_ms());
                    done.map_err(|refused| refused.to_string())
                });
                if done.is_ok() {
                    tracing::warn!("an operator has this member begin the pair, without {other}");
                }
                let _ = answer.send(done);
            }
            Command::Promote(other, answer) => {
                let done = self.check_other(&other).and_then(|()| {
                    let done = self.member.promote_by_force(now, unix_ms());
                    done.map_err(|refused| refused.to_string())
                });
                if let Err(why) = done {
                    let _ = answer.send(Err(why));
                    return;
                }
                tracing::warn!(
                    "an operator has this member take the role by force, once the lease is over: \
                     {other} may have acknowledged what is lost then"
                );
                self.forcing = Some((answer, now + FORCED_WITHIN));
            }
        }
    }

    /// An operator names the member whose data may be lost: the one that is not asked.
    fn check_other(&self, named: &str) -> Result<(), String> {
        let other = node_name(NodeId(1 - self.pair.node.0));
        let mine = node_name(self.pair.node);
        let wrong = format!("this is member {mine}: name the other one, {other}, not {named}");
        (named == other).then_some(()).ok_or(wrong)
    }

    fn exported(&mut self, step: Step) {
        let (shard, event) = match step {
            Step::Taken(shard, tail) => (shard, PairEvent::Taken(tail)),
            Step::Durable(shard, tail) => {
                self.figures.exported_deltas = self.exports.count();
                (shard, PairEvent::Exported(tail))
            }
        };
        if let Some(inbox) = self.inbox_of(shard) {
            inbox.put(Input::Pair { shard, event });
        }
    }

    // ---- what follows --------------------------------------------------------------------------

    fn turn(&mut self) {
        let now = self.clock.now();
        self.member.handle_time(now);
        self.client.handle_time(now);
        loop {
            while let Some(query) = self.member.poll_query() {
                query.put(&mut self.client, self.pair_id);
            }
            let Some(answer) = self.client.poll_answer() else { break };
            self.member.handle_answer(now, answer);
        }
        while let Some((seat, question)) = self.client.poll_question(now) {
            self.voters.ask(seat, question);
        }
        self.gate.set(self.member.gate().fence_at);
        if let Some(duty) = self.member.poll_duty() {
            self.duty = Some(duty);
            self.give(duty);
        }
        while let Some(card) = self.member.poll_card(now) {
            let Some((_, link)) = &self.link else { break };
            // A link that takes nothing is about to end.
            drop(link.try_send(card));
        }
        while let Some(event) = self.member.poll_event() {
            self.note(event);
        }
        if self.forcing.as_ref().is_some_and(|(_, until)| *until <= now) {
            // A longer lease: `ha status` and the log say what comes of it.
            self.answer_forced(Ok(()));
        }
        if self.look_at <= now {
            self.look_at = now + self.member.report_every() / LOOKS;
            self.cores.iter().for_each(|core| core.put(Input::Look));
        }
        self.tell_standing(now);
        self.tell_clients();
    }

    /// Before the cores are there the ports are not ours to take: the main thread looks at them.
    fn tell_clients(&mut self) {
        if self.cores.is_empty() {
            return;
        }
        let addresses = self.member.client_addresses();
        let known = |addresses: [&str; 2]| addresses.map(Server::read).into_iter().collect();
        let servers: Option<Vec<Server>> = addresses.and_then(known);
        let servers = servers.unwrap_or_default();
        // One address for both is none of them: who is sent there may come back here, for ever.
        let is_one = matches!(&servers[..], [one, other] if one == other);
        if is_one && !self.one_address_said {
            tracing::warn!("both members say the same `ha.advertise`: clients are told of neither");
        }
        self.one_address_said = is_one;
        let servers = if is_one { Vec::new() } else { servers };
        let live = self.member.live_address().filter(|_| !is_one).and_then(Server::read);
        if live != self.live {
            self.live.clone_from(&live);
            self.redirect.set(live);
        }
        if *self.servers != *servers {
            self.servers = servers.into();
            self.give_servers();
        }
    }

    fn give_servers(&self) {
        for shard in (0..self.shards).map(ShardId) {
            if let Some(inbox) = self.inbox_of(shard) {
                let event = PairEvent::Servers(Arc::clone(&self.servers));
                inbox.put(Input::Pair { shard, event });
            }
        }
    }

    /// Every shard hears what it is to be.
    fn give(&mut self, duty: Duty) {
        if let Duty::Format(held) = duty {
            return self.tell(News::Format(held));
        }
        for shard in (0..self.shards).map(ShardId) {
            if let Some(inbox) = self.inbox_of(shard) {
                inbox.put(Input::Pair { shard, event: PairEvent::Duty(duty) });
            }
        }
        if duty != Duty::Follow {
            self.following.drain(..).for_each(|task| task.abort());
        } else if self.following.is_empty() {
            self.following =
                (0..self.shards).map(|shard| self.streams.follow(ShardId(shard))).collect();
        }
        let is_open = match duty {
            Duty::Reign(reign) => reign.service != Service::Closed,
            Duty::Format(_) | Duty::Stand | Duty::Follow => false,
        };
        if is_open != self.is_open {
            self.is_open = is_open;
            // A shard that was made anew meanwhile has forgotten them.
            self.give_servers();
            self.tell(if is_open { News::Open } else { News::Closed });
        }
    }

    fn note(&mut self, event: MemberEvent) {
        match event {
            MemberEvent::Elected(epoch) => {
                self.figures.elections += 1;
                self.answer_forced(Ok(()));
                self.watcher.reigns(epoch);
                tracing::info!(epoch = epoch.0, "elected: has the role");
            }
            MemberEvent::Serving(epoch) => tracing::info!(epoch = epoch.0, "live: may serve"),
            MemberEvent::Fenced(epoch) => {
                self.figures.fencings += 1;
                tracing::warn!(epoch = epoch.0, "fenced: nobody is served");
            }
            MemberEvent::Deposed(epoch) => {
                tracing::warn!(epoch = epoch.0, "deposed: its reign is over");
            }
            MemberEvent::RecordLost => tracing::error!(
                "the voters have lost the pair's record: nobody serves before there is a new one"
            ),
            MemberEvent::InSync(count) => tracing::info!(count, "members in sync"),
            MemberEvent::Renewed(took) => self.note_renewal(took),
            MemberEvent::Unwell => {
                tracing::warn!("a shard is silent or a write stands: the role is not renewed");
            }
            MemberEvent::GivesUp(epoch) => {
                tracing::error!(epoch = epoch.0, "gives the role away: its disk fails or stands");
            }
            MemberEvent::ForceRefused(refused) => {
                tracing::error!("the role is not taken by force: {refused}");
                self.answer_forced(Err(refused.to_string()));
            }
            MemberEvent::Fault(Some(fault)) => tracing::error!("the pair is at fault: {fault}"),
            MemberEvent::Fault(None) => tracing::info!("the pair is at fault no more"),
            MemberEvent::SettingsDiffer(true) => tracing::warn!(
                "the members' settings differ (durability, max-message-size, lease-ms, address): a \
                 failover would change what clients get"
            ),
            MemberEvent::SettingsDiffer(false) => tracing::info!("the members' settings agree"),
        }
    }

    /// Whoever asked for it may have given up.
    fn answer_forced(&mut self, done: Result<(), String>) {
        if let Some((answer, _)) = self.forcing.take() {
            let _ = answer.send(done);
        }
    }

    fn note_renewal(&mut self, took: Duration) {
        let figures = &mut self.figures;
        figures.renewals.note(took);
        let lease = self.pair.terms.length();
        let is_short = figures.renewals.outgrow(lease);
        if is_short == figures.lease_too_short {
            return;
        }
        figures.lease_too_short = is_short;
        if is_short {
            tracing::warn!(
                "lease_too_short: 99.9 % of the renewals take up to {} ms, and ha.lease-ms is less \
                 than ten times that: make it longer, or the voters faster",
                figures.renewals.p999().as_millis()
            );
        } else {
            tracing::info!("ha.lease-ms is long enough for what renewals take now");
        }
    }

    fn tell_standing(&mut self, now: Instant) {
        let status = self.member.status(now);
        let standing = (status.role, status.is_ready());
        if self.told != Some(standing) {
            self.told = Some(standing);
            self.tell(News::Standing(standing.0, standing.1));
        }
        match self.waiting.note(now, status.waits) {
            Some(Told::Operator(waits)) => tracing::warn!("waits {waits}"),
            Some(Told::Log(waits)) => tracing::info!("waits {waits}"),
            None => {}
        }
        if self.is_stopping && self.member.may_end() {
            self.is_stopping = false;
            self.tell(News::MayEnd);
        }
    }

    fn inbox_of(&self, shard: ShardId) -> Option<Inbox> {
        self.cores.get(core_of(shard, self.cores.len())).cloned()
    }

    fn tell(&self, news: News) {
        // The main thread ends with the process.
        drop(self.news.send(news));
    }
}

/// What a member waits for, and since when.
#[derive(Debug, Default)]
struct Waiting {
    waits: Option<(Waits, Instant)>,
    /// The operator was told.
    is_told: bool,
}

/// A line for the log.
#[derive(Debug, PartialEq, Eq)]
enum Told {
    /// That is how it is now.
    Log(Waits),
    /// It may stay so unless somebody looks.
    Operator(Waits),
}

impl Waiting {
    fn note(&mut self, now: Instant, waits: Option<Waits>) -> Option<Told> {
        let is_new = self.waits.map(|(known, _)| known) != waits;
        if is_new {
            *self = Self { waits: waits.map(|waits| (waits, now)), is_told: false };
        }
        let (waits, since) = self.waits?;
        let is_late = waits.patience().is_some_and(|patience| since + patience <= now);
        if is_late && !self.is_told {
            self.is_told = true;
            return Some(Told::Operator(waits));
        }
        is_new.then_some(Told::Log(waits))
    }
}

/// For the record and people only: nothing is decided by it.
#[expect(clippy::disallowed_methods, reason = "an operator's act is dated")]
fn unix_ms() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use replica::limits::OTHERS_PATIENCE;

    use super::*;

    #[test]
    fn who_waits_for_long_tells_the_operator_once() {
        let (start, mut waiting) = (crate::driver::clock(), Waiting::default());
        let late = start + OTHERS_PATIENCE;
        assert_eq!(waiting.note(start, None), None);
        for waits in [Waits::NotInSync, Waits::VotersBehind] {
            assert_eq!(waiting.note(start, Some(waits)), Some(Told::Log(waits)));
            assert_eq!(waiting.note(late - Duration::from_millis(1), Some(waits)), None);
            assert_eq!(waiting.note(late, Some(waits)), Some(Told::Operator(waits)));
            assert_eq!(waiting.note(late + OTHERS_PATIENCE, Some(waits)), None);
        }
        // What ends by itself is a line; what does not is for the operator at once.
        assert_eq!(waiting.note(late, Some(Waits::CatchUp)), Some(Told::Log(Waits::CatchUp)));
        assert_eq!(waiting.note(late + OTHERS_PATIENCE, Some(Waits::CatchUp)), None);
        let operator = Waits::Operator;
        assert_eq!(waiting.note(late, Some(operator)), Some(Told::Operator(operator)));
        assert_eq!(waiting.note(late, None), None);
        assert_eq!(waiting.note(late, Some(operator)), Some(Told::Operator(operator)));
    }
}
