//! Connections that have not said yet who they are, in the order in which they make room.
//!
//! ```text
//!   accepted ── add ──▶ of its address, by age ── TLS is agreed on, AMQP is open ──▶ remove
//!                              └─ gives_way: the oldest of the address that has the most
//! ```
//! Anybody may connect and say nothing. Where there is no room for one more, room is made by the
//! address that takes most of it, so a flood has itself in its way first; among addresses that
//! have equally many it is the oldest connection. Of IPv6 the network counts ([`address`]).
//!
//! Invariants: `ranks` has one entry for each address, with its count and its oldest connection;
//! each step costs no more than the logarithm of how many there are.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use broker::ConnId;

use crate::auth::address;

/// Connections by address and age: a [`ConnId`] of the same core grows with time.
#[derive(Debug, Default)]
pub(super) struct Strangers {
    of: BTreeMap<IpAddr, BTreeSet<ConnId>>,
    ranks: BTreeSet<(usize, Reverse<ConnId>, IpAddr)>,
    count: usize,
}

impl Strangers {
    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.count
    }

    /// One more, the youngest.
    pub(super) fn add(&mut self, peer: SocketAddr, conn: ConnId) {
        self.change(address(peer), |some| some.insert(conn));
    }

    /// One is known now, or gone; whether it was there.
    pub(super) fn remove(&mut self, peer: SocketAddr, conn: ConnId) -> bool {
        self.change(address(peer), |some| some.remove(&conn))
    }

    /// Who makes room for the next one.
    pub(super) fn gives_way(&self) -> Option<ConnId> {
        self.ranks.last().map(|(_, Reverse(oldest), _)| *oldest)
    }

    fn change(&mut self, from: IpAddr, change: impl FnOnce(&mut BTreeSet<ConnId>) -> bool) -> bool {
        let some = self.of.entry(from).or_default();
        let rank = |some: &BTreeSet<ConnId>| Some((some.len(), Reverse(*some.first()?), from));
        let before = rank(some);
        let changed = change(some);
        let after = rank(some);
        if after.is_none() {
            self.of.remove(&from);
        }
        self.count += after.map_or(0, |(count, ..)| count);
        self.count -= before.map_or(0, |(count, ..)| count);
        if let Some(before) = before {
            self.ranks.remove(&before);
        }
        self.ranks.extend(after);
        changed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_has_itself_in_its_way_and_many_addresses_their_oldest() {
        let at = |last: u8| SocketAddr::from(([10, 0, 0, last], 5));
        let mut strangers = Strangers::default();
        strangers.add(at(1), ConnId(1));
        for n in 2..10 {
            strangers.add(at(2), ConnId(n));
        }
        strangers.add(at(3), ConnId(10));
        // The flood's, oldest first, down to as many as the others have; then the oldest of all.
        let mut order = Vec::new();
        while let Some(conn) = strangers.gives_way() {
            let peer = [at(1), at(2), at(3)].into_iter().find(|at| strangers.remove(*at, conn));
            assert!(peer.is_some(), "it was there");
            order.push(conn.0);
        }
        assert_eq!(order, [2, 3, 4, 5, 6, 7, 8, 1, 9, 10]);
        assert_eq!((strangers.len(), strangers.of.len(), strangers.ranks.len()), (0, 0, 0));
        assert!(!strangers.remove(at(1), ConnId(1)), "it is gone");
        // A network of IPv6 is one address.
        for (n, peer) in ["[2001:db8::1]:5", "[2001:db8::2]:5", "10.0.0.9:5"].iter().enumerate() {
            strangers.add(peer.parse().expect("an address"), ConnId(20 - n as u64));
        }
        assert_eq!((strangers.len(), strangers.gives_way()), (3, Some(ConnId(19))));
    }
}
