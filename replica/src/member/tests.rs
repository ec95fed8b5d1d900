//! Two members over a register that answers at once. Their shards do at once what they are told,
//! and copy each other's logs by their lengths.

use super::*;
use crate::register::{LocalRegister, PairId, Register};
use crate::wire::Marks;
use crate::{LeaseTerms, Mark, NodeId};
use journal::{Chain, Geometry, LogId, ShardId};

const PAIR: PairId = PairId([1; 16]);
const STEP: Duration = Duration::from_millis(10);
const SHARDS: u16 = 2;
const DRAIN: Duration = Duration::from_secs(5);

fn held(log: u8) -> HeldLog {
    let geometry = Geometry { segment_bytes: 65536, shards: SHARDS };
    HeldLog { log: LogId([log; 16]), geometry }
}

fn config(node: u8) -> MemberConfig {
    MemberConfig {
        pair: "orders".into(),
        cluster: [7; 16],
        info: MemberInfo {
            node: NodeId(node),
            replication: format!("node-{node}:5680"),
            advertise: format!("node-{node}:5672"),
            certificate: [0; 32],
        },
        journal: JournalUuid([10 + node; 16]),
        boot: [node; 16],
        settings: [3; 32],
        terms: LeaseTerms::new(Duration::from_secs(2)).expect("in bounds"),
        is_sole: true,
        in_sync_min: 1,
        founding: held(20 + node),
        seed: node.into(),
    }
}

/// What a shard of the tests has.
#[derive(Clone, Copy, Debug)]
struct Log {
    end: u64,
    epoch: u64,
}

fn newly_formatted() -> ShardReport {
    let end = Lsn(4096);
    let log = LogEnd { epoch: Epoch(1), end };
    let stands = ShardReport { stage: Stage::Standing, log, ..ShardReport::recovering() };
    ShardReport { is_whole: true, committed: end, ..stands }
}

struct Side {
    member: Membership,
    duty: Option<Duty>,
    logs: Vec<Log>,
    live: Option<Epoch>,
    obeyed: Option<(Round, u64)>,
    is_down: bool,
    /// Its logs are being brought up from the middle of the other one's.
    is_partial: bool,
    /// Its shards say nothing any more.
    is_wedged: bool,
    /// Its clients are never done.
    is_busy: bool,
    writing_since: Option<Instant>,
    has_failed: bool,
    events: Vec<MemberEvent>,
}

impl Side {
    fn new(now: Instant, node: u8, held: Option<HeldLog>, log: Log) -> Self {
        Self::with(Membership::new(now, config(node), held), log)
    }

    fn with(member: Membership, log: Log) -> Self {
        Self {
            member,
            duty: None,
            logs: vec![log; usize::from(SHARDS)],
            live: None,
            obeyed: None,
            is_down: false,
            is_partial: false,
            is_wedged: false,
            is_busy: false,
            writing_since: None,
            has_failed: false,
            events: Vec::new(),
        }
    }

    fn obey(&mut self, now: Instant) {
        while let Some(duty) = self.member.poll_duty() {
            self.duty = Some(duty);
            match duty {
                Duty::Format(held) => {
                    self.logs = vec![Log { end: 4096, epoch: 1 }; usize::from(SHARDS)];
                    // Its cores may be up before the host has said so here.
                    self.member.handle_shard(now, ShardId(SHARDS - 1), newly_formatted());
                    self.member.handle_formatted(now, held);
                }
                Duty::Stand | Duty::Follow => (self.live, self.obeyed) = (None, None),
                Duty::Reign(reign) => {
                    if self.live != Some(reign.epoch) {
                        self.live = Some(reign.epoch);
                        self.logs.iter_mut().for_each(|log| log.epoch = reign.epoch.0);
                    }
                    let round = reign.required.map(|required| required.round);
                    if self.obeyed.map(|(round, _)| round) != round {
                        self.obeyed = round.map(|round| (round, self.logs[0].end));
                    }
                }
            }
        }
    }

    fn service(&self) -> Service {
        match self.duty {
            Some(Duty::Reign(reign)) => reign.service,
            Some(Duty::Format(_) | Duty::Stand | Duty::Follow) | None => Service::Closed,
        }
    }

    fn required(&self) -> Option<JournalUuid> {
        match self.duty? {
            Duty::Reign(reign) => reign.required.map(|required| required.member),
            Duty::Format(_) | Duty::Stand | Duty::Follow => None,
        }
    }

    fn may_serve(&self, now: Instant) -> bool {
        !self.is_down && self.member.gate().fence_at.is_some_and(|fence| now < fence)
    }
}

struct Pair {
    now: Instant,
    register: LocalRegister,
    voters_up: bool,
    /// Which side the voters do not hear.
    voters_cut: [bool; 2],
    /// Other voters, which side 0 asks by mistake.
    others: Option<LocalRegister>,
    link_up: bool,
    stream_up: bool,
    session: u64,
    sides: [Side; 2],
}

const EMPTY: Log = Log { end: 0, epoch: 0 };

impl Pair {
    #[expect(clippy::disallowed_methods, reason = "the origin of virtual time")]
    fn new(held: [Option<HeldLog>; 2], logs: [Log; 2]) -> Self {
        let now = Instant::now();
        let [a, b] = held;
        let sides = [Side::new(now, 0, a, logs[0]), Side::new(now, 1, b, logs[1])];
        let register = LocalRegister::default();
        Self {
            now,
            register,
            voters_up: true,
            voters_cut: [false; 2],
            others: None,
            link_up: false,
            stream_up: true,
            session: 1,
            sides,
        }
    }

    /// A pair that has come in sync from two empty directories.
    fn in_sync() -> Self {
        let mut pair = Self::new([None, None], [EMPTY; 2]);
        pair.link(true);
        pair.run_until(2000, |pair| pair.in_sync_len() == 2 && pair.sides[0].may_serve(pair.now));
        pair
    }

    /// A pair in sync whose live was told to stop, while it has clients to answer.
    fn stopping_while_busy(drain: Duration) -> Self {
        let mut pair = Self::in_sync();
        let now = pair.now;
        pair.sides[0].is_busy = true;
        pair.sides[0].member.stop(now, drain);
        pair
    }

    fn link(&mut self, is_up: bool) {
        self.link_up = is_up;
        let now = self.now;
        self.sides.iter_mut().for_each(|side| side.member.handle_link(now, is_up));
    }

    fn in_sync_len(&self) -> usize {
        let value = self.held().value;
        PairRecord::decode(&value).map_or(0, |record| record.in_sync.len())
    }

    fn held(&self) -> crate::Held {
        let mut register = self.register.clone();
        register.read(RequestId(u64::MAX), PAIR);
        let answer = register.poll_answer().expect("at once");
        let Outcome::Stands(held) = answer.outcome else { panic!("{answer:?}") };
        held
    }

    fn run_until(&mut self, ms: u64, is_so: impl Fn(&Self) -> bool) {
        let until = self.now + Duration::from_millis(ms);
        while !is_so(self) {
            self.step();
            assert!(self.now < until, "not within {ms} ms: {self}");
        }
    }

    fn run(&mut self, ms: u64) {
        let until = self.now + Duration::from_millis(ms);
        while self.now < until {
            self.step();
        }
    }

    fn step(&mut self) {
        self.now += STEP;
        let now = self.now;
        for index in [0, 1] {
            if self.sides[index].is_down {
                continue;
            }
            self.report(index);
            let side = &mut self.sides[index];
            side.member.handle_time(now);
            side.obey(now);
            let mut asked = 0;
            while let Some(query) = side.member.poll_query() {
                asked += 1;
                assert!(asked < 20, "it asks without end");
                let request = query.request();
                if self.voters_up && !self.voters_cut[index] {
                    let others = self.others.as_mut().filter(|_| index == 0);
                    let register = others.unwrap_or(&mut self.register);
                    query.put(register, PAIR);
                    let answer = register.poll_answer().expect("at once");
                    side.member.handle_answer(now, answer);
                } else {
                    let outcome = Outcome::Unknown;
                    side.member.handle_answer(now, Answer { request, outcome });
                }
            }
            side.obey(now);
            side.events.extend(std::iter::from_fn(|| side.member.poll_event()));
            if let Some(card) = side.member.poll_card(now)
                && self.link_up
                && !self.sides[1 - index].is_down
            {
                self.sides[1 - index].member.handle_card(now, card);
            }
        }
        self.copy();
        let serving = self.sides.iter().filter(|side| side.may_serve(now)).count();
        assert!(serving < 2, "I1: {self}");
    }

    fn follows(&self, index: usize) -> bool {
        let (side, other) = (&self.sides[index], &self.sides[1 - index]);
        let both_up = !side.is_down && !other.is_down && self.stream_up;
        both_up && side.duty == Some(Duty::Follow) && other.live.is_some()
    }

    fn copy(&mut self) {
        for index in [0, 1] {
            if self.follows(index) {
                self.sides[index].logs = self.sides[1 - index].logs.clone();
            }
        }
    }

    fn report(&mut self, index: usize) {
        let (follows, followed) = (self.follows(index), self.follows(1 - index));
        let other = &self.sides[1 - index];
        let (their_disk, their_logs) = (other.member.config.journal, other.logs.clone());
        let their_live = other.live;
        let now = self.now;
        let session = self.session;
        let side = &mut self.sides[index];
        if side.is_wedged || side.member.held.is_none() {
            return;
        }
        for shard in 0..SHARDS {
            let log = side.logs[usize::from(shard)];
            let theirs = Lsn(their_logs[usize::from(shard)].end);
            let stage = match (side.live, their_live) {
                _ if side.has_failed => Stage::Failed,
                (Some(epoch), _) => Stage::Live(epoch),
                (None, Some(epoch)) if follows => Stage::Following(epoch),
                (None, _) => Stage::Standing,
            };
            let end = Lsn(log.end);
            let peer = PeerReport {
                session,
                member: their_disk,
                marks: Marks { received: theirs, durable: theirs },
                lag_bytes: end.since(theirs.min(end)),
            };
            let is_followed = side.live.is_some() && followed;
            let waits = side.required().is_some();
            let report = ShardReport {
                stage,
                log: LogEnd { epoch: Epoch(log.epoch), end },
                is_whole: !side.is_partial,
                committed: end,
                watermark: side.live.map(|_| Mark { lsn: end, chain: Chain(0) }),
                service: side.service(),
                is_drained: side.service() == Service::Draining && !side.is_busy,
                obeyed: side.obeyed.map(|(round, committed)| (round, Lsn(committed))),
                peer: is_followed.then_some(peer),
                is_stalled: waits && !is_followed,
                deposed_by: None,
                refused: None,
                writing_since: side.writing_since,
            };
            side.member.handle_shard(now, ShardId(shard), report);
        }
    }

    fn restart(&mut self, index: usize) {
        let side = &self.sides[index];
        let (held, log) = (side.member.held, side.logs[0]);
        self.sides[index] = Side::new(self.now, u8::try_from(index).expect("0 or 1"), held, log);
        self.session += 1;
        let (now, link_up) = (self.now, self.link_up);
        self.sides.iter_mut().for_each(|side| side.member.handle_link(now, link_up));
    }
}

impl std::fmt::Display for Pair {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for side in &self.sides {
            write!(f, "\n{:?} {:?} {:?}", side.duty, side.member.status(self.now), side.events)?;
        }
        Ok(())
    }
}

#[test]
fn two_empty_directories_become_a_pair_in_sync() {
    let mut pair = Pair::new([None, None], [EMPTY; 2]);
    pair.run(5000);
    assert_eq!(pair.held().version, Version::NONE, "nobody has heard of the other");
    let waits = pair.sides[0].member.status(pair.now).waits;
    assert_eq!(waits, Some(Waits::Log));
    pair.link(true);
    pair.run_until(1000, |pair| pair.in_sync_len() == 2);
    let logs = pair.sides.each_ref().map(|side| side.member.held);
    assert_eq!(logs, [Some(held(20)); 2], "the log that the lower seat has founded");
    assert!(pair.sides[0].may_serve(pair.now), "{pair}");
    pair.run(500);
    let status = pair.sides[1].member.status(pair.now);
    assert!(status.role == Standing::Backup && status.is_ready(), "{status:?}");
    assert_eq!(pair.sides[1].member.live_address(), Some("node-0:5672"));
}

#[test]
fn voters_that_lost_everything_crown_who_holds_more_whoever_comes_first() {
    let (older, newer) = (Log { end: 90112, epoch: 3 }, Log { end: 8192, epoch: 4 });
    let mut pair = Pair::new([Some(held(1)); 2], [older, newer]);
    pair.sides[1].is_down = true;
    pair.link(true);
    pair.run(10_000);
    assert_eq!(pair.held().version, Version::NONE, "the older one alone is nobody");
    assert_eq!(pair.sides[0].member.status(pair.now).waits, Some(Waits::Peer));
    pair.restart(1);
    pair.run_until(3000, |pair| pair.sides[1].may_serve(pair.now));
    assert_eq!(pair.sides[1].live, Some(Epoch(5)));
}

#[test]
fn an_operator_may_say_who_begins() {
    let mut pair = Pair::new([Some(held(1)), None], [Log { end: 8192, epoch: 3 }, EMPTY]);
    pair.run(3000);
    let now = pair.now;
    pair.sides[0].member.bootstrap(now, 7).expect("there is no record");
    pair.run_until(500, |pair| pair.sides[0].may_serve(pair.now));
    assert!(pair.sides[0].live.is_some_and(|epoch| epoch > Epoch(1000)));
}

#[test]
fn r10_who_was_out_of_sync_waits_for_the_other_one() {
    let mut pair = Pair::in_sync();
    pair.sides[1].is_down = true;
    pair.run_until(3000, |pair| pair.in_sync_len() == 1);
    assert!(pair.sides[0].may_serve(pair.now) && pair.sides[0].required().is_none());
    pair.sides[0].is_down = true;
    pair.restart(1);
    pair.run(10_000);
    assert!(!pair.sides[1].may_serve(pair.now), "{pair}");
    pair.restart(0);
    pair.run_until(3000, |pair| pair.in_sync_len() == 2 && pair.sides[0].may_serve(pair.now));
}

#[test]
fn a_backup_in_sync_takes_the_role_when_the_lease_is_over() {
    let mut pair = Pair::in_sync();
    pair.sides[0].is_down = true;
    pair.link(false);
    pair.run_until(2400, |pair| pair.sides[1].may_serve(pair.now));
    assert_eq!(pair.sides[1].required(), None, "alone in the set");
    pair.restart(0);
    pair.link(true);
    pair.run_until(2000, |pair| pair.in_sync_len() == 2);
    assert_eq!(pair.sides[0].duty, Some(Duty::Follow));
}

/// The live's lease is 20 s, the backup's 2 s; `run` asserts that never two serve.
fn unequal_leases(broken: Option<Canary>) -> Pair {
    let mut pair = Pair::new([None, None], [EMPTY; 2]);
    let terms = LeaseTerms::new(Duration::from_secs(20)).expect("in bounds");
    let long = MemberConfig { terms, ..config(0) };
    pair.sides[0] = Side::with(Membership::new(pair.now, long, None), EMPTY);
    if let Some(canary) = broken {
        let member = Membership::broken(pair.now, config(1), None, canary);
        pair.sides[1] = Side::with(member, EMPTY);
    }
    pair.link(true);
    pair.run_until(40_000, |pair| pair.in_sync_len() == 2 && pair.sides[0].may_serve(pair.now));
    pair
}

#[test]
fn r3_who_begins_anew_by_an_operators_word_waits_for_the_longest_lease_that_it_has_seen() {
    let mut pair = unequal_leases(None);
    pair.run(10_000);
    pair.voters_cut[0] = true;
    pair.link(false);
    pair.stream_up = false;
    pair.register = LocalRegister::default();
    let lost = pair.now;
    pair.run(500);
    pair.sides[1].member.bootstrap(pair.now, 1).expect("nothing stands");
    pair.run_until(30_000, |pair| pair.sides[1].may_serve(pair.now));
    assert!(pair.now - lost > Duration::from_secs(20), "{pair}");
}

#[test]
fn r3_a_challenger_waits_for_the_lease_of_the_live_and_not_for_its_own() {
    let mut pair = unequal_leases(None);
    pair.run(10_000);
    assert!(pair.sides[0].may_serve(pair.now), "{pair}");
    pair.voters_cut[0] = true;
    pair.link(false);
    pair.stream_up = false;
    let cut = pair.now;
    pair.run_until(25_000, |pair| pair.sides[1].may_serve(pair.now));
    assert!(pair.now - cut > Duration::from_secs(16), "{pair}");
    // The new live's own lease stands in the record now.
    pair.voters_cut[0] = false;
    pair.run(1000);
    let record = PairRecord::decode(&pair.held().value).expect("it stands");
    assert_eq!(record.lease, Some(config(1).terms));
}

#[test]
#[should_panic(expected = "I1")]
fn r3_a_challenger_that_waits_for_its_own_lease_alone_splits_the_pair() {
    let mut pair = unequal_leases(Some(Canary::OwnLeaseOnly));
    pair.voters_cut[0] = true;
    pair.link(false);
    pair.stream_up = false;
    pair.run(25_000);
}

#[test]
fn a_live_that_comes_back_with_another_lease_has_said_so_before_it_serves() {
    for (before, after) in [(2, 20), (20, 2)] {
        let [before, after] =
            [before, after].map(|s| LeaseTerms::new(Duration::from_secs(s)).expect("in bounds"));
        let mut pair = Pair::new([None, None], [EMPTY; 2]);
        let first = MemberConfig { terms: before, ..config(0) };
        pair.sides[0] = Side::with(Membership::new(pair.now, first, None), EMPTY);
        pair.link(true);
        pair.run_until(40_000, |pair| pair.sides[0].may_serve(pair.now));
        let (held, log) = (pair.sides[0].member.held, pair.sides[0].logs[0]);
        let again = MemberConfig { terms: after, ..config(0) };
        pair.sides[0] = Side::with(Membership::new(pair.now, again, held), log);
        pair.link(true);
        pair.run_until(1000, |pair| pair.sides[0].may_serve(pair.now));
        let record = PairRecord::decode(&pair.held().value).expect("it stands");
        assert_eq!(record.lease, Some(after));
    }
}

#[test]
fn r8_the_voters_hear_of_a_member_only_after_every_shard_waits_for_it() {
    let mut pair = Pair::in_sync();
    pair.stream_up = false;
    pair.run_until(3000, |pair| pair.in_sync_len() == 1);
    pair.stream_up = true;
    pair.sides[0].obeyed = None;
    pair.run_until(100, |pair| pair.sides[0].required().is_some());
    assert_eq!(pair.in_sync_len(), 1, "required, and not in the record yet");
    pair.run_until(500, |pair| pair.in_sync_len() == 2);
}

#[test]
fn r12_a_switchover_serves_nowhere_in_between_and_ends_with_both_in_sync() {
    let mut pair = Pair::in_sync();
    let now = pair.now;
    assert_eq!(pair.sides[0].member.may_switch_over(), Ok(()));
    assert_eq!(pair.sides[1].member.may_switch_over(), Err(Refused::NotLive));
    pair.sides[0].member.stop(now, DRAIN);
    assert_eq!(pair.sides[0].member.may_switch_over(), Err(Refused::Busy));
    pair.run_until(300, |pair| pair.sides[1].may_serve(pair.now));
    pair.run_until(2000, |pair| pair.sides[0].member.may_end());
    pair.restart(0);
    pair.run_until(3000, |pair| pair.in_sync_len() == 2);
    pair.run(500);
    assert_eq!(pair.sides[0].member.standing(), Standing::Backup);
    assert_eq!(pair.sides[1].member.may_switch_over(), Ok(()));
}

#[test]
fn who_stops_waits_for_its_clients_as_long_as_it_was_told_and_no_longer() {
    let mut pair = Pair::stopping_while_busy(Duration::from_secs(20));
    pair.run(19_000);
    assert!(pair.sides[0].may_serve(pair.now), "what was taken is still answered: {pair}");
    pair.run_until(2000, |pair| pair.sides[1].may_serve(pair.now));
}

#[test]
fn who_stops_waits_for_no_heir_that_went_away() {
    let mut pair = Pair::stopping_while_busy(Duration::from_secs(60));
    pair.sides[1].is_down = true;
    pair.run(10_000);
    assert!(pair.sides[0].may_serve(pair.now), "what was taken is still answered: {pair}");
    pair.sides[0].is_busy = false;
    pair.run_until(3000, |pair| pair.sides[0].member.may_end());
}

#[test]
fn a_stop_gives_the_role_away_and_takes_it_no_more() {
    let mut pair = Pair::in_sync();
    let now = pair.now;
    pair.sides[0].member.stop(now, DRAIN);
    pair.run_until(300, |pair| pair.sides[1].may_serve(pair.now));
    pair.run_until(2000, |pair| pair.sides[0].member.may_end());
    assert_eq!(pair.in_sync_len(), 1, "who stops is not waited for");
    pair.sides[1].is_down = true;
    pair.run(10_000);
    assert!(!pair.sides[0].may_serve(pair.now));
}

#[test]
fn r17_a_disk_that_fails_or_stands_gives_the_role_away_at_once() {
    for stands in [false, true] {
        let mut pair = Pair::in_sync();
        if stands {
            pair.sides[0].writing_since = Some(pair.now);
        } else {
            pair.sides[0].has_failed = true;
        }
        pair.run_until(2500, |pair| pair.sides[1].may_serve(pair.now));
        assert_eq!(pair.in_sync_len(), 1, "its disk is not waited for");
    }
}

#[test]
fn r17_a_silent_shard_ends_the_renewals() {
    let mut pair = Pair::in_sync();
    pair.sides[0].is_wedged = true;
    pair.run_until(5000, |pair| pair.sides[1].may_serve(pair.now));
    assert!(pair.sides[0].events.contains(&MemberEvent::Unwell));
}

#[test]
fn without_voters_nobody_serves_and_afterwards_the_same_one_goes_on() {
    let mut pair = Pair::in_sync();
    let epoch = pair.sides[0].live;
    pair.voters_up = false;
    pair.run_until(2000, |pair| !pair.sides[0].may_serve(pair.now));
    pair.run(5000);
    assert!(!pair.sides[0].may_serve(pair.now) && !pair.sides[1].may_serve(pair.now));
    pair.voters_up = true;
    pair.run_until(500, |pair| pair.sides.iter().any(|side| side.may_serve(pair.now)));
    pair.run(1000);
    let again = pair.sides.iter().find(|side| side.may_serve(pair.now)).expect("one");
    assert!(again.live >= epoch);
}

/// Each epoch had one live at most.
fn assert_one_reign_an_epoch(pair: &Pair) {
    let elected = pair.sides.each_ref().map(|side| {
        let epoch = |event: &MemberEvent| {
            let MemberEvent::Elected(epoch) = event else { return None };
            Some(*epoch)
        };
        side.events.iter().filter_map(epoch).collect::<Vec<Epoch>>()
    });
    assert!(elected[0].iter().all(|epoch| !elected[1].contains(epoch)), "{pair}");
}

fn in_sync_again(pair: &Pair) -> bool {
    pair.in_sync_len() == 2 && pair.sides.iter().any(|side| side.may_serve(pair.now))
}

#[test]
fn voters_that_lost_everything_while_both_run_get_one_new_record() {
    for restarts in [false, true] {
        let mut pair = Pair::in_sync();
        pair.run(3000);
        let epoch = pair.sides[0].live.expect("it serves");
        pair.register = LocalRegister::default();
        if restarts {
            pair.restart(0);
        }
        pair.run(500);
        assert!(pair.sides.iter().all(|side| !side.may_serve(pair.now)), "{pair}");
        assert!(pair.sides[1].events.contains(&MemberEvent::RecordLost), "{pair}");
        pair.run_until(5000, in_sync_again);
        assert!(pair.sides[0].live.is_some_and(|now| now > epoch), "{pair}");
        pair.run(10_000);
        assert!(in_sync_again(&pair), "{pair}");
        assert_one_reign_an_epoch(&pair);
    }
}

#[test]
fn a_backup_that_challenges_at_lost_voters_asks_no_more_and_waits_for_the_other() {
    let mut pair = Pair::in_sync();
    pair.sides[0].is_down = true;
    pair.voters_cut[1] = true;
    pair.link(false);
    pair.run(5000);
    pair.register = LocalRegister::default();
    pair.voters_cut[1] = false;
    pair.run(5000);
    assert_eq!(pair.sides[1].member.status(pair.now).waits, Some(Waits::Peer));
    assert_eq!(pair.held().version, Version::NONE);
    pair.restart(0);
    pair.link(true);
    pair.run_until(5000, in_sync_again);
    assert_one_reign_an_epoch(&pair);
}

#[test]
#[should_panic(expected = "not within 60000 ms")]
fn members_that_trust_lost_voters_never_serve_again() {
    let mut pair = Pair::new([None, None], [EMPTY; 2]);
    for node in [0, 1] {
        let broken = Canary::TrustLostRegister;
        let member = Membership::broken(pair.now, config(node), None, broken);
        pair.sides[usize::from(node)] = Side::with(member, EMPTY);
    }
    pair.link(true);
    pair.run_until(5000, in_sync_again);
    pair.register = LocalRegister::default();
    pair.run(5000);
    pair.run_until(60_000, in_sync_again);
}

/// The new record has come to the version that the other one knew of the old.
#[test]
fn the_same_version_of_a_new_record_is_no_old_news() {
    let mut pair = Pair::in_sync();
    pair.run(5000);
    pair.voters_cut[1] = true;
    pair.link(false);
    pair.stream_up = false;
    let known = pair.sides[1].member.record().expect("it knows it").0;
    pair.register = LocalRegister::default();
    pair.run(1000);
    assert_eq!(pair.sides[0].member.status(pair.now).waits, Some(Waits::Peer));
    let now = pair.now;
    pair.sides[0].member.bootstrap(now, 7).expect("the voters hold none");
    pair.run_until(20_000, |pair| pair.held().version == known);
    pair.voters_cut[1] = false;
    pair.run(400);
    assert!(pair.sides[1].events.contains(&MemberEvent::RecordLost), "{pair}");
    pair.run(3000);
    assert!(pair.sides[0].may_serve(pair.now), "{pair}");
    assert_one_reign_an_epoch(&pair);
}

#[test]
fn who_asks_other_voters_never_serves() {
    for both_restart in [false, true] {
        let mut pair = Pair::in_sync();
        pair.run(3000);
        pair.others = Some(LocalRegister::default());
        pair.restart(0);
        if both_restart {
            // It says who it is long before its voters answer it.
            pair.restart(1);
            pair.voters_cut[1] = true;
            pair.run(5000);
            pair.voters_cut[1] = false;
        }
        for _ in 0..1000 {
            pair.step();
            assert!(!pair.sides[0].may_serve(pair.now), "{pair}");
        }
        assert!(pair.sides[1].may_serve(pair.now), "{pair}");
        assert_eq!(pair.sides[0].member.status(pair.now).waits, Some(Waits::OtherVoters));
        let refused = pair.sides[0].member.bootstrap(pair.now, 7);
        assert_eq!(refused, Err(Refused::OtherServes), "{pair}");
        let mut asked = pair.others.take().expect("others");
        asked.read(RequestId(u64::MAX), PAIR);
        let stands = asked.poll_answer().map(|answer| answer.outcome);
        assert_eq!(stands, Some(Outcome::Stands(crate::Held::default())));
    }
}

#[test]
fn an_operator_begins_nothing_where_the_others_voters_hold_a_record() {
    let mut pair = Pair::in_sync();
    pair.run(3000);
    pair.others = Some(LocalRegister::default());
    pair.restart(0);
    pair.run(500);
    // It would be elected when the lease of the one before is over.
    let refused = pair.sides[0].member.bootstrap(pair.now, 7);
    assert_eq!(refused, Err(Refused::OtherHasRecord), "{pair}");
}

#[test]
fn a_peer_that_is_none_is_said_and_decides_nothing() {
    let faults =
        [Fault::OtherPair, Fault::OtherCluster, Fault::SameSeat, Fault::SameDisk, Fault::OtherLog];
    for fault in faults {
        let mut pair = Pair::new(
            [Some(held(1)); 2],
            [Log { end: 8192, epoch: 3 }, Log { end: 4096, epoch: 2 }],
        );
        pair.run(100);
        let mut card = pair.sides[1].member.own_card();
        match fault {
            Fault::OtherPair => card.pair = "invoices".into(),
            Fault::OtherCluster => card.cluster = [8; 16],
            Fault::SameSeat => card.info.node = NodeId(0),
            Fault::SameDisk => card.journal = JournalUuid([10; 16]),
            Fault::OtherLog => card.held = Some(held(2)),
            Fault::NotThePairsLog => unreachable!("its own"),
        }
        let now = pair.now;
        pair.sides[0].member.handle_link(now, true);
        pair.sides[0].member.handle_card(now, card);
        pair.run(1000);
        assert_eq!(pair.sides[0].member.status(pair.now).fault, Some(fault));
        assert_eq!(pair.held().version, Version::NONE, "{fault:?}");
    }
}

#[test]
fn a_directory_of_another_log_never_follows_nor_leads() {
    let mut pair = Pair::in_sync();
    let now = pair.now;
    pair.sides[1] = Side::new(now, 1, Some(held(9)), Log { end: 1 << 30, epoch: 99 });
    pair.link(true);
    pair.run_until(3000, |pair| pair.in_sync_len() == 1);
    pair.sides[0].is_down = true;
    pair.run(10_000);
    assert_eq!(pair.sides[1].duty, Some(Duty::Stand));
    assert_eq!(pair.sides[1].member.status(pair.now).fault, Some(Fault::NotThePairsLog));
    let forced = pair.sides[1].member.promote_by_force(pair.now, 7);
    assert_eq!(forced, Err(Refused::NotWhole));
}

#[test]
fn an_operator_may_take_what_is_left() {
    let mut pair = Pair::in_sync();
    pair.sides[1].is_down = true;
    pair.run_until(3000, |pair| pair.in_sync_len() == 1);
    pair.sides[0].is_down = true;
    pair.restart(1);
    pair.run(5000);
    let now = pair.now;
    pair.sides[1].member.promote_by_force(now, 7).expect("it is a follower");
    pair.run_until(500, |pair| pair.sides[1].may_serve(pair.now));
}

#[test]
fn an_empty_directory_is_crowned_by_nobody() {
    let mut pair = Pair::new([None, None], [EMPTY; 2]);
    pair.run(3000);
    let now = pair.now;
    assert_eq!(pair.sides[0].member.bootstrap(now, 7), Err(Refused::Empty));
    pair.run(3000);
    assert_eq!((pair.held().version, pair.sides[0].duty), (Version::NONE, None));
}

#[test]
fn r3_a_forced_promotion_waits_for_the_lease_and_never_joins_a_live() {
    let mut pair = Pair::in_sync();
    pair.stream_up = false;
    pair.run_until(3000, |pair| pair.in_sync_len() == 1);
    pair.link(false);
    let now = pair.now;
    assert!(pair.sides[0].may_serve(now));
    // `run` asserts that never two serve.
    pair.sides[1].member.promote_by_force(now, 7).expect("nobody is seen to serve");
    pair.run(5000);
    assert!(pair.sides[0].may_serve(pair.now), "{pair}");
    let refused = MemberEvent::ForceRefused(Refused::OtherServes);
    assert!(pair.sides[1].events.contains(&refused), "{pair}");
    pair.sides[0].is_down = true;
    pair.run(400);
    let now = pair.now;
    pair.sides[1].member.promote_by_force(now, 8).expect("nobody is seen to serve");
    pair.run(1000);
    assert!(!pair.sides[1].may_serve(pair.now), "its lease may stand: {pair}");
    pair.run_until(2000, |pair| pair.sides[1].may_serve(pair.now));
}

#[test]
fn a_promotion_without_a_record_is_told_of_bootstrap() {
    let log = Log { end: 90112, epoch: 3 };
    let mut pair = Pair::new([Some(held(1)), None], [log, EMPTY]);
    let now = pair.now;
    let refused = |pair: &mut Pair, at| pair.sides[0].member.promote_by_force(at, 7);
    assert_eq!(refused(&mut pair, now), Err(Refused::NoAnswer));
    assert_eq!(pair.sides[0].member.bootstrap(now, 7), Err(Refused::NoAnswer));
    pair.run(500);
    let now = pair.now;
    assert_eq!(refused(&mut pair, now), Err(Refused::NoRecord));
    assert!(Refused::NoRecord.to_string().contains("`laelaps ha bootstrap`"));
}

#[test]
fn a_promotion_that_waits_while_the_voters_lose_their_record_is_told_of_bootstrap() {
    let mut pair = Pair::in_sync();
    pair.sides[1].is_down = true;
    pair.run_until(3000, |pair| pair.in_sync_len() == 1);
    pair.run(1000);
    pair.sides[0].is_down = true;
    pair.restart(1);
    pair.run(100);
    let now = pair.now;
    pair.sides[1].member.promote_by_force(now, 7).expect("nobody is seen to serve");
    pair.register = LocalRegister::default();
    pair.run(5000);
    let refused = MemberEvent::ForceRefused(Refused::NoRecord);
    assert!(pair.sides[1].events.contains(&refused), "{pair}");
}

#[test]
fn a_log_that_is_being_brought_up_gives_a_role_back_that_was_won_meanwhile() {
    let mut pair = Pair::in_sync();
    pair.sides[1].is_down = true;
    pair.run_until(3000, |pair| pair.in_sync_len() == 1);
    pair.sides[0].is_down = true;
    pair.restart(1);
    pair.run(5000);
    let now = pair.now;
    pair.sides[1].member.promote_by_force(now, 7).expect("it is a follower");
    let query = pair.sides[1].member.poll_query().expect("at once");
    assert!(matches!(query, Query::Cas(..)), "{query:?}");
    assert_eq!(pair.sides[1].member.poll_duty(), Some(Duty::Stand), "nothing is cut meanwhile");
    // The shards had begun to give up what they hold.
    pair.sides[1].is_partial = true;
    pair.report(1);
    query.put(&mut pair.register, PAIR);
    let answer = pair.register.poll_answer().expect("at once");
    pair.sides[1].member.handle_answer(now, answer);
    pair.run(10_000);
    assert!(!pair.sides[1].may_serve(pair.now), "{pair}");
    let record = PairRecord::decode(&pair.held().value).expect("it stands");
    assert!(record.released, "{pair}");
}

#[test]
fn whose_log_is_not_whole_takes_no_role_and_founds_no_pair() {
    let log = Log { end: 90112, epoch: 3 };
    let mut pair = Pair::new([Some(held(1)); 2], [log, log]);
    pair.sides[0].is_partial = true;
    pair.link(true);
    pair.run(5000);
    assert_eq!(pair.held().version, Version::NONE, "the other one can't know what it holds");
    let now = pair.now;
    let [partial, whole] = &mut pair.sides;
    assert_eq!(partial.member.bootstrap(now, 7), Err(Refused::NotWhole));
    assert_eq!(partial.member.status(now).waits, Some(Waits::NoRecordToFollow));
    assert_eq!(whole.member.status(now).waits, Some(Waits::PeerLog));
    let said = [Waits::NoRecordToFollow, Waits::PeerLog].map(|waits| waits.to_string());
    assert!(said.iter().all(|said| said.contains("laelaps ha bootstrap")), "{said:?}");
    whole.member.bootstrap(now, 7).expect("it is whole");
    pair.run_until(1000, |pair| pair.sides[1].may_serve(pair.now));
    let forced = PairRecord::decode(&pair.held().value).expect("it was made").forced;
    assert_eq!(forced.iter().map(|forced| forced.at_ms).collect::<Vec<u64>>(), [7]);
    pair.sides[1].is_down = true;
    pair.run(10_000);
    assert!(!pair.sides[0].may_serve(pair.now), "{pair}");
    pair.link(false);
    let forced = pair.sides[0].member.promote_by_force(pair.now, 8);
    assert_eq!(forced, Err(Refused::NotWhole));
}

#[test]
fn min_in_sync_of_two_takes_nothing_alone() {
    let mut pair = Pair::in_sync();
    pair.sides[0].member.config.in_sync_min = 2;
    pair.stream_up = false;
    pair.run_until(3000, |pair| pair.in_sync_len() == 1);
    pair.run(50);
    let Some(Duty::Reign(reign)) = pair.sides[0].duty else { panic!("{pair}") };
    assert!(reign.is_short && reign.service == Service::Open);
}
