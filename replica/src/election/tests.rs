//! Each rule by its name, on one member whose answers are given by hand. The whole pair, with drift
//! and faults, is in `pair`.

use super::*;
use crate::record::sample_log;
use journal::{Chain, JournalUuid};

mod pair;

const A: Member = Member { node: NodeId(0), journal: JournalUuid([1; 16]) };
const B: Member = Member { node: NodeId(1), journal: JournalUuid([2; 16]) };
const D: Duration = Duration::from_secs(2);

fn config(me: Member) -> ElectionConfig {
    let terms = LeaseTerms::new(D).expect("in bounds");
    ElectionConfig { me, terms, is_sole: true, in_sync_min: 1, seed: 1 }
}

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

#[expect(clippy::disallowed_methods, reason = "the origin of virtual time")]
fn start() -> Instant {
    Instant::now()
}

fn record(in_sync: &[Member]) -> PairRecord {
    let mut record = PairRecord::first(sample_log(), 1, A, Epoch(1));
    record.in_sync = in_sync.to_vec();
    record
}

fn held(version: u64, record: &PairRecord) -> Outcome {
    Outcome::Stands(Held { version: Version(version), value: record.encode() })
}

fn lost(version: u64, record: &PairRecord) -> Outcome {
    Outcome::Lost(Held { version: Version(version), value: record.encode() })
}

fn answer(election: &mut Election, now: Instant, request: RequestId, outcome: Outcome) {
    election.handle_answer(now, Answer { request, outcome });
}

fn turns(election: &mut Election) -> Vec<Turn> {
    std::iter::from_fn(|| election.poll_turn()).collect()
}

/// What it knows stands still, if that is what it asks.
fn look_again(election: &mut Election, now: Instant) {
    if let Some(Query::Read(request)) = election.queries.front()
        && let (request, Some((Version(version), record))) = (*request, election.record())
    {
        let outcome = held(version, record);
        election.queries.clear();
        answer(election, now, request, outcome);
        election.handle_time(now);
    }
}

/// Reads until this member asks for a swap.
fn cas(election: &mut Election, now: Instant) -> (RequestId, Version, PairRecord) {
    election.handle_time(now);
    look_again(election, now);
    match election.poll_query() {
        Some(Query::Cas(request, expect, record)) => (request, expect, *record),
        other => panic!("no swap, but {other:?}"),
    }
}

fn see(election: &mut Election, now: Instant, version: u64, record: &PairRecord) {
    election.handle_time(now);
    match election.poll_query() {
        Some(Query::Read(request)) => answer(election, now, request, held(version, record)),
        other => panic!("no read, but {other:?}"),
    }
}

/// A, live in epoch 2 since `now`, its swap sent then.
fn live(now: Instant, in_sync: &[Member]) -> Election {
    let mut a = Election::new(config(A));
    a.handle_durable(Some(vec![Lsn(4096)]));
    see(&mut a, now, 1, &record(in_sync));
    let (request, expect, next) = cas(&mut a, now);
    assert_eq!((expect, next.epoch, next.in_sync.len()), (Version(1), Epoch(2), in_sync.len()));
    answer(&mut a, now, request, Outcome::Won(Version(2)));
    a.handle_promised(now, Epoch(2));
    assert_eq!(turns(&mut a), [Turn::Promise(Epoch(2)), Turn::Serve(Epoch(2))]);
    a
}

/// B, which follows and has read the record of A's first epoch at `now`.
fn backup(now: Instant, in_sync: &[Member]) -> Election {
    let mut b = Election::new(config(B));
    b.handle_durable(Some(vec![Lsn(4096)]));
    see(&mut b, now, 1, &record(in_sync));
    b
}

fn asks_for_role(election: &mut Election, now: Instant) -> bool {
    election.handle_time(now);
    look_again(election, now);
    let query = election.poll_query();
    if let Some(Query::Read(request)) = &query {
        answer(election, now, *request, Outcome::Unknown);
    }
    matches!(query, Some(Query::Cas(..)))
}

#[test]
fn r1_nobody_serves_before_a_swap_was_won() {
    let now = start();
    let mut a = Election::new(config(A));
    a.handle_durable(Some(vec![Lsn(4096)]));
    see(&mut a, now, 1, &record(&[A]));
    assert!(!a.may_serve(now), "being named is not enough");
    let (request, ..) = cas(&mut a, now);
    assert!(!a.may_serve(now), "nor is asking");
    answer(&mut a, now, request, lost(2, &record(&[A])));
    assert_eq!((a.role(), turns(&mut a)), (Role::Follower, vec![]));
}

#[test]
fn r2_a_lease_begins_when_its_swap_was_sent() {
    let now = start();
    let mut a = live(now, &[A]);
    let (request, ..) = cas(&mut a, now + ms(500));
    answer(&mut a, now + ms(900), request, Outcome::Won(Version(3)));
    let fence = a.fence_at().expect("it serves");
    assert_eq!(fence - now, ms(500) + D - D / 10);
    assert!(a.may_serve(fence - ms(1)) && !a.may_serve(fence));
}

#[test]
fn r3_a_challenger_waits_from_the_end_of_its_read() {
    let now = start();
    let mut b = Election::new(config(B));
    b.handle_durable(Some(vec![Lsn(4096)]));
    b.handle_time(now);
    let Some(Query::Read(request)) = b.poll_query() else { panic!("a read") };
    let done = now + ms(400);
    answer(&mut b, done, request, held(1, &record(&[A, B])));
    let wait = D + D * 20 / 1000 + ms(100);
    for (after, asks) in [(wait - ms(1), false), (wait, true)] {
        assert_eq!(asks_for_role(&mut b, done + after), asks, "after {after:?}");
    }
}

#[test]
fn r3_a_version_that_moves_is_not_challenged() {
    let now = start();
    let mut b = backup(now, &[A, B]);
    see(&mut b, now + D, 2, &record(&[A, B]));
    assert!(!asks_for_role(&mut b, now + D + D), "it waits for the new version");
    assert!(asks_for_role(&mut b, now + D + D + ms(140)));
}

#[test]
fn r4_an_answer_to_no_open_question_changes_nothing() {
    let now = start();
    let mut a = live(now, &[A]);
    let (request, ..) = cas(&mut a, now + ms(400));
    answer(&mut a, now + ms(900), request, Outcome::Unknown);
    let fence = a.fence_at().expect("it serves");
    a.handle_time(fence);
    assert_eq!(turns(&mut a), [Turn::Fence(Epoch(2))]);
    answer(&mut a, fence, request, Outcome::Won(Version(3)));
    assert_eq!((a.role(), a.fence_at()), (Role::Fenced(Epoch(2)), Some(fence)));
}

#[test]
fn r5_a_read_of_the_expected_version_resolves_nothing() {
    let now = start();
    let mut a = live(now, &[A]);
    a.handle_joined(now, B, Session(1));
    a.expand(now, B, Session(1)).expect("it serves");
    let (request, expect, _) = cas(&mut a, now + ms(1));
    answer(&mut a, now + ms(600), request, Outcome::Unknown);
    a.handle_left(now + ms(600));
    assert!(a.requires(B), "it may be in the set yet");
    let (request, again, without) = cas(&mut a, now + ms(700));
    assert_eq!((again, without.in_sync.as_slice()), (expect, &[A][..]));
    answer(&mut a, now + ms(710), request, Outcome::Won(expect.next()));
    assert!(!a.requires(B), "a greater version stands without it");
}

#[test]
fn r6_r8_a_member_is_waited_for_before_it_is_named() {
    let now = start();
    let mut a = live(now, &[A]);
    a.handle_joined(now, B, Session(1));
    assert!(a.may_acknowledge(now, &[A]));
    a.expand(now, B, Session(1)).expect("it serves");
    assert!(!a.may_acknowledge(now, &[A]), "before the swap is even sent");
    assert!(a.may_acknowledge(now, &[A, B]));
}

#[test]
fn r7_a_member_is_waited_for_until_the_voters_have_left_it_out() {
    let now = start();
    let mut a = live(now, &[A, B]);
    a.shrink(now).expect("it serves");
    let (request, _, next) = cas(&mut a, now + ms(1));
    assert_eq!(next.in_sync, [A]);
    assert!(!a.may_acknowledge(now + ms(2), &[A]));
    answer(&mut a, now + ms(5), request, Outcome::Won(Version(3)));
    assert!(a.may_acknowledge(now + ms(6), &[A]));
    let fence = a.fence_at().expect("it serves");
    assert!(!a.may_acknowledge(fence, &[A, B]), "not at the fence, however durable");
}

#[test]
fn r7_min_in_sync_refuses_to_run_alone() {
    let now = start();
    let mut a = live(now, &[A]);
    a.config.in_sync_min = 2;
    assert!(!a.may_acknowledge(now, &[A]));
}

#[test]
fn r9_what_is_known_of_a_member_ends_with_its_session() {
    let now = start();
    let mut a = live(now, &[A]);
    a.handle_joined(now, B, Session(1));
    a.handle_joined(now, B, Session(2));
    assert_eq!(a.expand(now, B, Session(1)), Err(Refused::OtherSession));
    let wiped = Member { journal: JournalUuid([3; 16]), ..B };
    assert_eq!(a.expand(now, wiped, Session(2)), Err(Refused::OtherSession));
    a.expand(now, B, Session(2)).expect("its session");
    a.handle_joined(now, B, Session(3));
    let (_, _, next) = cas(&mut a, now + ms(1));
    assert_eq!(next.in_sync, [A], "the proposal of a session that is over is not sent");
}

#[test]
fn r10_only_a_member_in_sync_with_its_disk_and_the_watermark_stands() {
    let now = start();
    let late = now + D + D;
    assert!(!asks_for_role(&mut backup(now, &[A]), late), "not in sync");
    let wiped = Member { journal: JournalUuid([3; 16]), ..B };
    assert!(!asks_for_role(&mut backup(now, &[A, wiped]), late), "another disk");
    let mut broken = backup(now, &[A, B]);
    broken.handle_durable(None);
    assert!(!asks_for_role(&mut broken, late), "a log that is not whole");
    let mut marked = record(&[A, B]);
    marked.watermark = vec![Mark { lsn: Lsn(8192), chain: Chain(1) }];
    let mut behind = backup(now, &[A, B]);
    see(&mut behind, now + D, 2, &marked);
    assert!(!asks_for_role(&mut behind, late + D), "below the watermark");
    behind.handle_durable(Some(vec![Lsn(8192)]));
    assert!(asks_for_role(&mut behind, late + D + ms(400)));
}

#[test]
fn r12_who_gives_the_role_away_fences_first() {
    let now = start();
    let mut a = live(now, &[A, B]);
    a.hand_over(now + ms(10), B).expect("it is in sync");
    assert!(!a.may_serve(now + ms(10)));
    assert_eq!(turns(&mut a), [Turn::Fence(Epoch(2))]);
    let (request, _, next) = cas(&mut a, now + ms(10));
    assert_eq!((next.live, next.epoch, next.released), (Some(B.node), Epoch(3), true));
    assert_eq!(next.in_sync, [A, B]);
    // The outcome is unknown: it stays fenced and says the same again.
    answer(&mut a, now + ms(600), request, Outcome::Unknown);
    let (request, _, again) = cas(&mut a, now + ms(700));
    assert_eq!((again.live, a.role()), (Some(B.node), Role::Leaving(Epoch(2))));
    answer(&mut a, now + ms(710), request, Outcome::Won(Version(3)));
    assert_eq!(turns(&mut a), [Turn::Depose(Epoch(2))]);
    // It does not snatch back what it gave away; the heir takes it at once.
    assert!(!asks_for_role(&mut a, now + ms(720)));
    let mut b = Election::new(config(B));
    b.handle_durable(Some(vec![Lsn(4096)]));
    see(&mut b, now + ms(720), 3, &next);
    let (_, _, taken) = cas(&mut b, now + ms(720));
    assert_eq!((taken.epoch, taken.in_sync.as_slice()), (Epoch(4), &[A, B][..]));
}

/// The renewal says nothing new: who leaves has still to say that it does.
#[test]
fn r12_r17_a_renewal_that_was_under_way_gives_nothing_away() {
    let now = start();
    for heir in [None, Some(B)] {
        let mut a = live(now, &[A, B]);
        let (renewal, ..) = cas(&mut a, now + ms(500));
        let left = match heir {
            Some(heir) => a.hand_over(now + ms(510), heir),
            None => a.release(now + ms(510)),
        };
        assert_eq!(left, Ok(()));
        answer(&mut a, now + ms(520), renewal, Outcome::Won(Version(3)));
        assert_eq!(turns(&mut a), [Turn::Fence(Epoch(2))]);
        let (given, expect, next) = cas(&mut a, now + ms(520));
        assert_eq!((expect, next.released), (Version(3), true));
        assert_eq!(next.live, Some(heir.unwrap_or(A).node));
        answer(&mut a, now + ms(530), given, Outcome::Won(Version(4)));
        assert_eq!(turns(&mut a), [Turn::Depose(Epoch(2))]);
    }
}

/// What is due is done when the time is told: whoever polls never spins.
#[test]
fn nothing_is_due_that_telling_the_time_does_not_do() {
    let now = start();
    let mut a = Election::new(config(A));
    a.handle_durable(Some(vec![Lsn(4096)]));
    see(&mut a, now, 1, &record(&[A]));
    let (request, ..) = cas(&mut a, now);
    assert_eq!(a.poll_timeout(), None, "a swap is open");
    answer(&mut a, now, request, Outcome::Won(Version(2)));
    a.handle_time(now + D / 2);
    assert!(a.poll_timeout().is_none_or(|at| at > now + D / 2), "its epoch is not durable yet");
    let mut b = backup(now, &[A, B]);
    b.handle_time(now + D / 2);
    assert!(matches!(b.poll_query(), Some(Query::Read(_))));
    b.handle_time(now + 2 * D);
    assert!(b.poll_timeout().is_none_or(|at| at > now + 2 * D), "a read is open");
}

#[test]
fn r13_an_epoch_is_durable_before_it_is_served() {
    let now = start();
    let mut b = backup(now, &[A, B]);
    let (request, ..) = cas(&mut b, now + D + D);
    answer(&mut b, now + D + D, request, Outcome::Won(Version(2)));
    assert_eq!(turns(&mut b), [Turn::Promise(Epoch(2))]);
    assert!(!b.may_serve(now + D + D));
    b.handle_promised(now + D + D + ms(5), Epoch(2));
    assert_eq!(turns(&mut b), [Turn::Serve(Epoch(2))]);
    assert!(b.may_serve(now + D + D + ms(5)));
}

#[test]
fn r13_an_epoch_that_became_durable_too_late_is_not_served() {
    let now = start();
    let mut b = backup(now, &[A, B]);
    let (request, ..) = cas(&mut b, now + D + D);
    answer(&mut b, now + D + D, request, Outcome::Won(Version(2)));
    b.handle_promised(now + D * 5, Epoch(2));
    assert_eq!(turns(&mut b), [Turn::Promise(Epoch(2)), Turn::Fence(Epoch(2))]);
    assert!(!b.may_serve(now + D * 5));
}

#[test]
fn r17_who_is_not_well_does_not_renew_and_who_releases_is_not_waited_for() {
    let now = start();
    let mut a = live(now, &[A, B]);
    a.handle_wellness(false);
    a.handle_time(now + ms(500));
    assert_eq!(a.poll_query(), None);
    a.release(now + ms(600)).expect("it has the role");
    let (_, _, next) = cas(&mut a, now + ms(600));
    assert!(next.released && next.live == Some(A.node) && next.epoch == Epoch(2));
    let mut b = backup(now, &[A, B]);
    see(&mut b, now + ms(700), 3, &next);
    assert!(asks_for_role(&mut b, now + ms(701)), "at once, without the lease");
}

#[test]
fn a_fenced_live_goes_on_in_its_epoch_if_the_version_stood_still() {
    let now = start();
    let mut a = live(now, &[A, B]);
    let fence = a.fence_at().expect("it serves");
    a.handle_time(fence);
    assert_eq!(turns(&mut a), [Turn::Fence(Epoch(2))]);
    let Some(Query::Cas(request, ..)) = a.poll_query() else { panic!("it tries to renew") };
    answer(&mut a, fence + ms(10), request, Outcome::Won(Version(3)));
    assert_eq!(turns(&mut a), [Turn::Serve(Epoch(2))]);
    let mut b = live(now, &[A, B]);
    b.handle_time(fence);
    let Some(Query::Cas(request, ..)) = b.poll_query() else { panic!("it tries to renew") };
    let other = record(&[A, B]).granted(NodeId(0), vec![A]).granted(NodeId(1), vec![A, B]);
    answer(&mut b, fence + ms(10), request, lost(3, &other));
    assert_eq!(turns(&mut b), [Turn::Fence(Epoch(2)), Turn::Depose(Epoch(2))]);
}

#[test]
fn a_record_of_a_newer_version_gives_nobody_a_role() {
    let now = start();
    let mut a = live(now, &[A]);
    let (request, ..) = cas(&mut a, now + ms(500));
    let mut value = record(&[A]).encode();
    value[0] = 9;
    let unreadable = Outcome::Lost(Held { version: Version(3), value });
    answer(&mut a, now + ms(500), request, unreadable);
    assert_eq!(turns(&mut a), [Turn::Fence(Epoch(2)), Turn::Depose(Epoch(2))]);
    assert!(!asks_for_role(&mut a, now + D * 4));
}

#[test]
fn a_member_that_is_not_sole_waits_for_its_own_earlier_lease() {
    let now = start();
    let mut a = Election::new(ElectionConfig { is_sole: false, ..config(A) });
    a.handle_durable(Some(vec![Lsn(4096)]));
    see(&mut a, now, 1, &record(&[A]));
    assert!(!asks_for_role(&mut a, now + D));
    assert!(asks_for_role(&mut a, now + D + ms(140)));
}

#[test]
fn the_first_record_is_made_only_where_none_is() {
    let now = start();
    let mut a = Election::new(config(A));
    a.bootstrap(now, record(&[A]));
    assert_eq!(a.poll_query(), None, "it has not looked yet");
    a.handle_time(now);
    let Some(Query::Read(request)) = a.poll_query() else { panic!("a read") };
    answer(&mut a, now, request, Outcome::Stands(Held::default()));
    a.bootstrap(now, record(&[A]));
    let (request, expect, _) = match a.poll_query() {
        Some(Query::Cas(request, expect, record)) => (request, expect, record),
        other => panic!("no swap, but {other:?}"),
    };
    assert_eq!(expect, Version::NONE);
    answer(&mut a, now, request, Outcome::Won(Version(1)));
    assert_eq!(turns(&mut a), [Turn::Promise(Epoch(1))]);
}
