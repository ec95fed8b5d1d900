//! Judges a history: what clients saw against what an acknowledgement promises.
//!
//! ```text
//!   events of all clients, by time ──▶ Ledger: one entry a message ──▶ Verdict
//! ```
//!
//! The promises, each with its own rule and its own test below that breaks it:
//!
//! 1. What was accepted reaches a consumer that accepts it, at the latest by the drain at the end.
//!    To have been seen once and then to be gone is to be lost.
//! 2. What is received was sent, to that queue, and its body is whole.
//! 3. A settlement that the broker has confirmed is final: the message never comes again.
//! 4. For each producer and queue, messages come in the order in which they were sent: on each link
//!    those that nobody had before; and where one consumer that returns nothing has a queue to
//!    itself, all of them, with none left out.
//! 5. `first-acquirer` is true at most once a message, and never after a restart that followed it.
//! 6. `delivery-count` counts `modified(delivery-failed)`, connections that broke off, and nothing
//!    else.
//! 7. No client was refused anything.

use std::collections::{BTreeMap, BTreeSet};

use crate::load::{Event, Kind, Received, What};

/// What the history is held against.
pub(crate) struct Rules<'a> {
    /// Queues with a single consumer that settles everything it gets.
    pub(crate) strict: &'a [&'a str],
    /// At `async` a crash may lose messages and settlements, which the caller judges himself.
    pub(crate) may_lose: bool,
    /// Every life but the last ended in a crash; after a stop in order `first-acquirer` may be
    /// kept, and a stop may refuse what comes too late.
    pub(crate) crashes: bool,
}

#[derive(Debug, Default)]
pub(crate) struct Verdict {
    pub(crate) broken: Vec<String>,
    /// Accepted and never taken by anybody, with the time of their acknowledgement.
    pub(crate) lost: Vec<Lost>,
    /// Back after their settlement, with the time of its confirmation; judged where it may be.
    pub(crate) returned: Vec<Lost>,
    pub(crate) accepted: BTreeMap<u64, usize>,
    pub(crate) received: usize,
    pub(crate) redelivered: usize,
    pub(crate) confirmed: BTreeMap<String, usize>,
}

/// A promise that was not kept, and in which incarnation it was given.
#[derive(Debug)]
pub(crate) struct Lost {
    pub(crate) id: String,
    pub(crate) promised_t: u64,
    pub(crate) inc: u64,
}

/// All that is known of one message so far.
#[derive(Default)]
struct Entry {
    q: String,
    sent_inc: u64,
    accepted: Option<(u64, u64)>,
    received: usize,
    /// A consumer gave it the outcome accepted.
    taken: bool,
    first_acquired: bool,
    /// Incarnations in which a consumer failed it.
    failed: Vec<u64>,
    confirmed: Option<Confirmed>,
}

struct Confirmed {
    by: String,
    t: u64,
    inc: u64,
}

#[derive(Default)]
struct Ledger {
    entries: BTreeMap<String, Entry>,
    /// The last number of a producer on a link: of first deliveries, and of all.
    fresh: BTreeMap<(String, String), u64>,
    all: BTreeMap<(String, String), u64>,
    incarnation_of: BTreeMap<String, u64>,
    /// The next number of a producer that a strict queue has to show.
    expected: BTreeMap<(String, String), BTreeSet<u64>>,
    /// Consumers' connections to a queue that broke off, at any time: the broker may see it first.
    broken_off: BTreeMap<String, u64>,
}

impl Verdict {
    pub(crate) fn confirmed_total(&self) -> usize {
        self.confirmed.values().sum()
    }

    /// Panics with the first broken promises, if there is one.
    pub(crate) fn assert_clean(&self) {
        let shown: Vec<&String> = self.broken.iter().take(20).collect();
        assert!(self.broken.is_empty(), "{} promises broken: {shown:#?}", self.broken.len());
        let lost: Vec<&Lost> = self.lost.iter().take(20).collect();
        assert!(self.lost.is_empty(), "{} accepted messages lost: {lost:#?}", self.lost.len());
    }
}

/// Judges the events of all clients of one run, in any order.
pub(crate) fn check(mut events: Vec<Event>, rules: &Rules<'_>) -> Verdict {
    events.sort_by_key(|event| event.t);
    let mut ledger = Ledger::default();
    let mut verdict = Verdict::default();
    for event in &events {
        if let What::Accepted { id, q, .. } = &event.what
            && rules.strict.contains(&q.as_str())
            && !rules.may_lose
        {
            let (producer, number) = split(id);
            ledger.expected.entry((producer.into(), q.clone())).or_default().insert(number);
        }
        if let What::BrokenOff { q } = &event.what {
            *ledger.broken_off.entry(q.clone()).or_default() += 1;
        }
    }
    for event in &events {
        ledger.take(event, rules, &mut verdict);
    }
    for (id, entry) in &ledger.entries {
        if let Some((inc, promised_t)) = entry.accepted
            && !entry.taken
        {
            verdict.lost.push(Lost { id: id.clone(), promised_t, inc });
        }
    }
    verdict
}

impl Ledger {
    fn take(&mut self, event: &Event, rules: &Rules<'_>, verdict: &mut Verdict) {
        match &event.what {
            What::Sent { id, q, inc } => {
                let entry = Entry { q: q.clone(), sent_inc: *inc, ..Entry::default() };
                let before = self.entries.insert(id.clone(), entry);
                assert!(before.is_none(), "a client sent {id} twice, against its contract");
            }
            What::Accepted { id, inc, .. } => {
                *verdict.accepted.entry(*inc).or_default() += 1;
                let entry = self.entries.get_mut(id).expect("accepted after sent");
                entry.accepted = Some((*inc, event.t));
            }
            What::Refused { id, why } if rules.crashes => {
                verdict.broken.push(format!("{id} was refused: {why}"));
            }
            What::Error { who, why } => verdict.broken.push(format!("{who} got an error: {why}")),
            What::Received(received) => self.receive(received, rules, verdict),
            What::Outcome { id, link, kind } => {
                let inc = self.incarnation_of.get(link).copied().expect("received on a link");
                if let Some(entry) = self.entries.get_mut(id) {
                    match kind {
                        Kind::Accepted => entry.taken = true,
                        Kind::Failed => entry.failed.push(inc),
                        Kind::Released => {}
                    }
                }
            }
            What::Confirmed { id, by, link } => {
                *verdict.confirmed.entry(by.clone()).or_default() += 1;
                let inc = self.incarnation_of.get(link).copied().expect("received on a link");
                if let Some(entry) = self.entries.get_mut(id) {
                    let by = format!("{by} on {link}");
                    entry.confirmed = Some(Confirmed { by, t: event.t, inc });
                }
            }
            What::Attached { link, inc } => {
                self.incarnation_of.insert(link.clone(), *inc);
            }
            What::Refused { .. }
            | What::Up
            | What::Down
            | What::Detached
            | What::BrokenOff { .. }
            | What::Drained
            | What::Done => {}
        }
    }

    fn receive(&mut self, received: &Received, rules: &Rules<'_>, verdict: &mut Verdict) {
        let Received { id, q, inc, link, fa, dc, whole } = received;
        verdict.received += 1;
        let broken = &mut verdict.broken;
        let Some(entry) = self.entries.get_mut(id) else {
            broken.push(format!("{id} was received on {link} and never sent"));
            return;
        };
        if entry.q != *q {
            broken.push(format!("{id} was sent to {} and received from {q}", entry.q));
        }
        if !whole {
            broken.push(format!("the body of {id} is not what was sent"));
        }
        match &entry.confirmed {
            Some(Confirmed { t, inc, .. }) if rules.may_lose => {
                verdict.returned.push(Lost { id: id.clone(), promised_t: *t, inc: *inc });
            }
            Some(Confirmed { by, .. }) => {
                broken.push(format!("{id} came again on {link} after its settlement: {by}"));
            }
            None => {}
        }
        if *fa && entry.sent_inc < *inc && rules.crashes {
            let sent = entry.sent_inc;
            broken.push(format!("{id} of incarnation {sent} is first-acquirer in {inc}"));
        }
        if *fa && entry.first_acquired {
            broken.push(format!("{id} went out twice with first-acquirer"));
        }
        let in_this_life = entry.failed.iter().filter(|failed| *failed == inc).count() as u64;
        let failed = entry.failed.len() as u64;
        let broken_off = self.broken_off.get(q).copied().unwrap_or(0);
        if !(in_this_life..=failed + broken_off).contains(dc) {
            broken
                .push(format!("{id} on {link}: delivery-count {dc}, it was failed {failed} times"));
        }
        entry.first_acquired |= *fa;
        entry.received += 1;
        verdict.redelivered += usize::from(entry.received > 1);
        let first_time = entry.received == 1;
        self.order(received, rules, first_time, &mut verdict.broken);
    }

    fn order(
        &mut self,
        received: &Received,
        rules: &Rules<'_>,
        first_time: bool,
        broken: &mut Vec<String>,
    ) {
        let Received { id, q, link, fa, .. } = received;
        let (producer, number) = split(id);
        let key = (link.clone(), producer.to_owned());
        if *fa && let Some(before) = self.fresh.insert(key.clone(), number) {
            out_of_order(before, number, id, link, broken);
        }
        if !rules.strict.contains(&q.as_str()) {
            return;
        }
        if let Some(before) = self.all.insert(key, number) {
            out_of_order(before, number, id, link, broken);
        }
        if !first_time {
            return;
        }
        let Some(expected) = self.expected.get_mut(&(producer.to_owned(), q.clone())) else {
            return;
        };
        expected.remove(&number);
        if let Some(skipped) = expected.first().filter(|skipped| **skipped < number) {
            broken.push(format!("{id} came before {producer}-{skipped}, which was accepted"));
        }
    }
}

fn out_of_order(before: u64, number: u64, id: &str, link: &str, broken: &mut Vec<String>) {
    if before >= number {
        broken.push(format!("{id} came after number {before} of its producer on {link}"));
    }
}

/// `producer-number`, as the clients name their messages.
fn split(id: &str) -> (&str, u64) {
    let parts = id.rsplit_once('-').and_then(|(producer, n)| Some((producer, n.parse().ok()?)));
    parts.unwrap_or_else(|| panic!("{id} is not an id that our clients give"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const STRICT: Rules<'static> = Rules { strict: &["q"], may_lose: false, crashes: true };

    /// A history in a line: one word an event, `t` rising.
    ///
    /// `s0@1` sent p-0 in incarnation 1, `a0@1` accepted, `L1@1` link 1 attached, `r0/1@1` received
    /// on link 1 (`!` first-acquirer, `+` delivery-count 1), `f0/1` failed, `o0/1` accepted
    /// outcome,
    /// `c0/1` confirmed, `b0` a connection broke off.
    fn history(words: &str) -> Vec<Event> {
        let number = |text: &str| text.parse::<u64>().expect("a number");
        let event = |(t, word): (usize, &str)| {
            let (head, inc) = word.split_once('@').unwrap_or((word, "0"));
            let (q, inc) = ("q".to_owned(), number(inc));
            let (fa, dc) = (head.contains('!'), u64::from(head.contains('+')));
            let head = head.replace(['!', '+'], "");
            let (first, link) = head[1..].split_once('/').unwrap_or((&head[1..], "0"));
            let (id, link) = (format!("p-{first}"), format!("c/{link}"));
            let what = match &head[..1] {
                "s" => What::Sent { id, q, inc },
                "a" => What::Accepted { id, q, inc },
                "L" => What::Attached { inc, link: format!("c/{first}") },
                "r" => What::Received(Received { id, q, inc, link, fa, dc, whole: true }),
                "f" => What::Outcome { id, link, kind: Kind::Failed },
                "o" => What::Outcome { id, link, kind: Kind::Accepted },
                "b" => What::BrokenOff { q },
                "c" => What::Confirmed { id, link, by: "detach".into() },
                other => panic!("{other} is not in the notation"),
            };
            Event { t: t as u64, what }
        };
        words.split_whitespace().enumerate().map(event).collect()
    }

    fn broken(words: &str) -> String {
        check(history(words), &STRICT).broken.join("; ")
    }

    fn assert_broken(words: &str, why: &str) {
        let found = broken(words);
        assert!(found.contains(why), "{words}: expected `{why}`, found `{found}`");
    }

    #[test]
    fn a_good_history_is_clean() {
        let words = "s0@1 a0@1 s1@1 a1@1 L1@1 r0/1!@1 o0/1 c0/1 L2@2 r1/2@2 o1/2 c1/2 s2@2 r2/2!@2";
        let verdict = check(history(words), &STRICT);
        verdict.assert_clean();
        assert_eq!((verdict.received, verdict.confirmed_total()), (3, 2));
        assert_eq!(verdict.accepted, BTreeMap::from([(1, 2)]));
    }

    #[test]
    fn rule_1_lost() {
        let lost = |words: &str| -> Vec<String> {
            check(history(words), &STRICT).lost.into_iter().map(|lost| lost.id).collect()
        };
        let words = "s0@1 a0@1 s1@1 a1@1 L1@1 r0/1@1 o0/1 s2@1";
        assert_eq!(lost(words), ["p-1"], "what stayed in doubt may be gone");
        assert_eq!(lost("s0@1 a0@1 L1@1 r0/1@1 L2@2"), ["p-0"], "seen once, never taken");
    }

    #[test]
    fn rule_2_invented_torn_and_astray() {
        assert_broken("L1@1 r0/1@1", "never sent");
        let mut events = history("s0@1 L1@1 r0/1@1");
        if let What::Received(received) = &mut events[2].what {
            received.whole = false;
            received.q = "other".into();
        }
        let found = check(events, &STRICT).broken.join("; ");
        assert!(found.contains("not what was sent") && found.contains("received from other"));
    }

    #[test]
    fn rule_3_a_confirmed_settlement_comes_back() {
        assert_broken("s0@1 L1@1 r0/1@1 o0/1 c0/1 L2@2 r0/2@2", "after its settlement");
        assert_eq!(broken("s0@1 L1@1 r0/1@1 o0/1 L2@2 r0/2@2"), "", "unconfirmed may come");
    }

    #[test]
    fn rule_4_order() {
        assert_broken("s0@1 s1@1 L1@1 r1/1!@1 r0/1!@1", "came after number 1");
        assert_broken("s0@1 a0@1 s1@1 L1@1 r1/1@1", "p-0, which was accepted");
        assert_broken("s0@1 s1@1 L1@1 r0/1@1 r1/1@1 r0/1@1", "came after number 1");
        let shared = Rules { strict: &[], may_lose: false, crashes: true };
        let returned = history("s0@1 s1@1 L1@1 L2@1 r0/1!@1 r1/2!@1 r0/2@1");
        assert_eq!(check(returned, &shared).broken, Vec::<String>::new());
    }

    #[test]
    fn rule_5_first_acquirer() {
        assert_broken("s0@1 L1@2 r0/1!@2", "is first-acquirer in 2");
        assert_broken("s0@1 L1@1 r0/1!@1 L2@1 r0/2!@1", "twice with first-acquirer");
    }

    #[test]
    fn rule_6_delivery_count() {
        assert_broken("s0@1 L1@1 r0/1+@1", "delivery-count 1, it was failed 0 times");
        assert_broken("s0@1 L1@1 r0/1@1 f0/1 L2@1 r0/2@1", "delivery-count 0, it was failed 1");
        assert_eq!(broken("s0@1 L1@1 r0/1@1 f0/1 L2@1 r0/2+@1"), "");
        assert_eq!(broken("s0@1 L1@1 r0/1@1 f0/1 L2@2 r0/2@2"), "", "a crash may forget it");
        assert_eq!(broken("s0@1 L1@1 r0/1@1 b0 L2@1 r0/2+@1"), "", "that counts too");
        assert_eq!(broken("s0@1 L1@1 r0/1@1 b0 L2@1 r0/2@1"), "", "or found no room");
    }

    #[test]
    fn rule_7_refusals() {
        let error = What::Error { who: "c".into(), why: "no".into() };
        let refused = check(vec![Event { t: 0, what: error }], &STRICT);
        assert_eq!(refused.broken.len(), 1);
    }
}
