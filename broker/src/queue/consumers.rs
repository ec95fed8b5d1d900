//! The consumers of a queue: found by their link, and whose turn is next.
//!
//! ```text
//!   all       | a | - | c | d | e | ...    in the order in which they came; -: has gone
//!   ready     | 1 | 0 | 0 | 1 | 0 | ...    a bit for each: it has credit
//!   turn ───────────────▲                  the next message goes to the first ready one from here
//!   places    link ─▶ its place in `all`   asked where they are more than a few
//! ```
//! What a message costs does not follow from how many consumers there are: 10,000 without credit
//! are 157 words to look over. Places of those that have gone are closed up when they are half.
//!
//! Invariants: a bit is set exactly where there is credit; `head` is the place of the oldest;
//! `draining` counts those that asked for it.

use std::collections::BTreeMap;

use journal::Sequence;

use super::Place;
use crate::mail::LinkRef;

/// So many are looked over one by one.
const FEW: usize = 8;

/// Bits of a word of `ready`.
const WORD: usize = u64::BITS as usize;

/// Someone who takes messages.
#[derive(Debug)]
pub(super) struct Consumer {
    pub(super) link: LinkRef,
    credit: u32,
    drain: bool,
    /// What it holds, in no order.
    pub(super) held: Vec<Sequence>,
    /// What is requeued before this is excluded for it: nothing there is looked at again.
    pub(super) looked_at: Place,
}

/// Who of them gets messages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Served {
    /// All, by turns.
    #[default]
    All,
    /// The one that came first.
    First,
    /// Nobody, for now.
    Nobody,
}

/// See the head of the file.
#[derive(Debug, Default)]
pub(super) struct Consumers {
    all: Vec<Option<Consumer>>,
    ready: Vec<u64>,
    places: BTreeMap<LinkRef, usize>,
    turn: usize,
    head: usize,
    draining: usize,
    /// The first place of what came back since the last look.
    came_back: Option<Place>,
    /// Who gets messages.
    pub(super) served: Served,
    #[cfg(test)]
    looks: std::cell::Cell<u64>,
}

impl Consumers {
    pub(super) fn len(&self) -> usize {
        self.places.len()
    }

    pub(super) fn links(&self) -> impl Iterator<Item = LinkRef> + '_ {
        self.all.iter().flatten().map(|consumer| consumer.link)
    }

    /// Where a consumer is.
    #[inline(always)]
    pub(super) fn find(&self, link: LinkRef) -> Option<usize> {
        self.count_looks(self.all.len().min(FEW));
        if self.all.len() > FEW {
            return self.places.get(&link).copied();
        }
        self.all.iter().position(|other| other.as_ref().is_some_and(|other| other.link == link))
    }

    /// # Panics
    /// If nobody is there.
    #[inline(always)]
    pub(super) fn at(&mut self, place: usize) -> &mut Consumer {
        self.all[place].as_mut().expect("it was found there")
    }

    /// What a consumer holds at this place of its list.
    pub(super) fn held(&self, place: usize, held_at: u32) -> Option<Sequence> {
        self.all[place].as_ref()?.held.get(held_at as usize).copied()
    }

    /// One more, without credit.
    pub(super) fn push(&mut self, link: LinkRef) {
        let looked_at = Place::FIRST;
        let new = Consumer { link, credit: 0, drain: false, held: Vec::new(), looked_at };
        self.places.insert(link, self.all.len());
        self.all.push(Some(new));
        self.ready.resize(self.all.len().div_ceil(WORD), 0);
    }

    /// One that goes.
    pub(super) fn remove(&mut self, place: usize) -> Option<Consumer> {
        let gone = self.all[place].take()?;
        self.places.remove(&gone.link);
        self.set_ready(place, false);
        self.draining -= usize::from(gone.drain);
        while self.all.get(self.head).is_some_and(Option::is_none) {
            self.head += 1;
        }
        if self.all.len() > 2 * self.places.len() {
            self.close_up();
        }
        Some(gone)
    }

    fn close_up(&mut self) {
        let before = self.all.iter().take(self.turn).flatten().count();
        self.all.retain(Option::is_some);
        (self.turn, self.head) = (before, 0);
        self.ready.clear();
        self.ready.resize(self.all.len().div_ceil(WORD), 0);
        for place in 0..self.all.len() {
            let Some(consumer) = &self.all[place] else { continue };
            let (link, is_ready) = (consumer.link, consumer.credit > 0);
            self.places.insert(link, place);
            self.set_ready(place, is_ready);
        }
    }

    pub(super) fn add_credit(&mut self, place: usize, more: u32, drain: bool) {
        let consumer = self.at(place);
        consumer.credit = consumer.credit.saturating_add(more);
        let (is_ready, begins) = (consumer.credit > 0, drain && !consumer.drain);
        consumer.drain |= drain;
        self.draining += usize::from(begins);
        self.set_ready(place, is_ready);
    }

    /// A message goes to this one, and its turn is over.
    #[inline(always)]
    pub(super) fn spend(&mut self, place: usize) -> &mut Consumer {
        self.turn = place + 1;
        let credit = &mut self.at(place).credit;
        *credit -= 1;
        if *credit == 0 {
            self.set_ready(place, false);
        }
        self.at(place)
    }

    /// One that asked to be drained, with its unused credit, which it has no more.
    pub(super) fn poll_drained(&mut self) -> Option<(LinkRef, u32)> {
        if self.draining == 0 {
            return None;
        }
        let drains = |other: &Option<Consumer>| other.as_ref().is_some_and(|other| other.drain);
        let place = self.all.iter().position(drains)?;
        self.draining -= 1;
        self.set_ready(place, false);
        let consumer = self.at(place);
        consumer.drain = false;
        Some((consumer.link, std::mem::take(&mut consumer.credit)))
    }

    /// Whether somebody who is served has credit.
    #[inline(always)]
    pub(super) fn has_ready(&self) -> bool {
        match self.served {
            Served::All => self.ready.iter().any(|word| *word != 0),
            Served::First => self.is_ready(self.head),
            Served::Nobody => false,
        }
    }

    /// The first ready one from the turn on that is not barred.
    #[inline(always)]
    pub(super) fn next_ready(&self, is_barred: impl Fn(LinkRef) -> bool) -> Option<usize> {
        let mut step = 0;
        loop {
            let (place, next) = self.ready_from(step)?;
            let consumer = self.all[place].as_ref().expect("who has credit is there");
            if !is_barred(consumer.link) {
                return Some(place);
            }
            step = next;
        }
    }

    /// The first ready one that is so many steps from the turn, or more; and how many the next one
    /// is.
    #[inline(always)]
    pub(super) fn ready_from(&self, step: usize) -> Option<(usize, usize)> {
        let count = self.all.len();
        match self.served {
            Served::All => {}
            Served::First if step == 0 && self.is_ready(self.head) => return Some((self.head, 1)),
            Served::First | Served::Nobody => return None,
        }
        // Once round: first what lies behind the turn, then what lies before it.
        let turn = if self.turn < count { self.turn } else { 0 };
        let behind = count - turn;
        if step < behind
            && let Some(place) = self.first_ready(turn + step, count)
        {
            return Some((place, place - turn + 1));
        }
        let from = step.saturating_sub(behind);
        let place = self.first_ready(from, turn)?;
        Some((place, behind + place + 1))
    }

    #[inline(always)]
    fn first_ready(&self, from: usize, end: usize) -> Option<usize> {
        let mut at = from;
        while at < end {
            self.count_looks(1);
            let word = self.ready[at / WORD] >> (at % WORD);
            if word != 0 {
                let found = at + word.trailing_zeros() as usize;
                return (found < end).then_some(found);
            }
            at = (at / WORD + 1) * WORD;
        }
        None
    }

    fn is_ready(&self, place: usize) -> bool {
        self.ready.get(place / WORD).is_some_and(|word| word >> (place % WORD) & 1 == 1)
    }

    #[inline(always)]
    fn set_ready(&mut self, place: usize, is_ready: bool) {
        let bit = 1 << (place % WORD);
        let word = &mut self.ready[place / WORD];
        *word = if is_ready { *word | bit } else { *word & !bit };
    }

    /// This came back, and may lie before what some have looked at: they hear of it when the next
    /// of them looks.
    pub(super) fn look_again(&mut self, place: Place) {
        self.came_back = Some(self.came_back.map_or(place, |other| other.min(place)));
    }

    /// Somebody looks: what has come back is known to all of them.
    pub(super) fn begin_look(&mut self) {
        let Some(place) = self.came_back.take() else { return };
        for consumer in self.all.iter_mut().flatten() {
            consumer.looked_at = consumer.looked_at.min(place);
        }
    }

    #[cfg(test)]
    fn count_looks(&self, more: usize) {
        self.looks.set(self.looks.get() + more as u64);
    }

    #[cfg(not(test))]
    #[expect(clippy::unused_self, reason = "counted in tests only")]
    #[inline(always)]
    fn count_looks(&self, _more: usize) {}

    /// How often a consumer or a word of them was looked at.
    #[cfg(test)]
    pub(super) fn looks(&self) -> u64 {
        self.looks.get()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::queue::tests::link;

    fn consumers(count: u32) -> Consumers {
        let mut all = Consumers::default();
        (0..count).for_each(|slot| all.push(link(slot)));
        all
    }

    /// Who would get the next so many messages.
    fn next(all: &mut Consumers, count: usize) -> Vec<u32> {
        let mut next = || {
            let place = all.next_ready(|_| false)?;
            Some(all.spend(place).link.key.slot)
        };
        std::iter::from_fn(&mut next).take(count).collect()
    }

    #[test]
    fn turns_go_round_over_those_with_credit_through_every_word() {
        let mut all = consumers(200);
        for slot in [3, 63, 64, 130, 199] {
            let place = all.find(link(slot)).unwrap();
            all.add_credit(place, 2, false);
        }
        assert_eq!(next(&mut all, 7), [3, 63, 64, 130, 199, 3, 63]);
        let barred = |other: LinkRef| other == link(64) || other == link(130);
        assert_eq!(all.next_ready(barred), all.find(link(199)));
        assert_eq!(next(&mut all, 9), [64, 130, 199]);
        assert!(!all.has_ready());
    }

    #[test]
    fn who_goes_changes_nobodys_turn_and_leaves_no_place() {
        let mut all = consumers(100);
        for slot in 0..100 {
            let place = all.find(link(slot)).unwrap();
            all.add_credit(place, 5, slot == 7);
        }
        assert_eq!(next(&mut all, 50).len(), 50);
        for slot in (0..100).filter(|slot| slot % 10 != 7) {
            let place = all.find(link(slot)).unwrap();
            assert_eq!(all.remove(place).map(|gone| gone.link), Some(link(slot)));
            assert_eq!(all.find(link(slot)), None);
        }
        assert_eq!((all.len(), all.links().count()), (10, 10));
        assert!(all.all.len() <= 2 * all.len(), "places are closed up");
        assert_eq!(next(&mut all, 4), [57, 67, 77, 87]);
        assert_eq!(all.poll_drained(), Some((link(7), 4)));
        assert_eq!(all.poll_drained(), None);
        assert_eq!(next(&mut all, 3), [97, 17, 27], "who was drained has no credit");
    }

    #[test]
    fn the_first_is_the_oldest_that_is_there() {
        let mut all = consumers(3);
        all.served = Served::First;
        all.add_credit(1, 1, false);
        assert!(!all.has_ready() && all.next_ready(|_| false).is_none());
        all.remove(0);
        assert!(all.has_ready());
        assert_eq!(next(&mut all, 2), [1]);
        all.served = Served::Nobody;
        let place = all.find(link(2)).unwrap();
        all.add_credit(place, 1, false);
        assert!(!all.has_ready() && all.next_ready(|_| false).is_none());
    }

    #[test]
    fn what_a_message_costs_does_not_follow_from_how_many_wait() {
        let most = 10_000;
        let mut all = consumers(most);
        for slot in [17, most - 1] {
            let place = all.find(link(slot)).unwrap();
            all.add_credit(place, 1000, false);
        }
        let before = all.looks();
        for _ in 0..500 {
            assert_eq!(next(&mut all, 2).len(), 2);
            assert!(all.poll_drained().is_none() && all.find(link(most / 2)).is_some());
        }
        let each = (all.looks() - before) / 1000;
        assert!(each <= u64::from(most) / 64, "{each} looks for each message");
    }
}
