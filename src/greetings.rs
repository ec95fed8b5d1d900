//! Room for connections that have not said yet what they are.
//!
//! ```text
//!   accepted ─ admit ─▶ place ── handshake, first bytes ──▶ greeted: the place is free again
//!                         └─ dropped: others wait, and this one was the oldest
//! ```
//! Invariant: who connects and says nothing keeps nobody out. Where there are too many, the oldest
//! of those that have said nothing makes room, of the same address first; addresses that are known
//! have room of their own. Who is known may come from another address than the one that is known,
//! so nobody is refused for his.

use std::convert::Infallible;
use std::net::IpAddr;

use tokio::sync::oneshot;

/// Places of one known address.
const KNOWN_MAX: usize = 128;
/// Places of any other one address: somebody who is known may be behind it.
const ADDRESS_MAX: usize = 16;
/// Places of all others together.
const OTHERS_MAX: usize = 64;

/// Connections whose handshake or first frame is awaited, oldest first.
pub(crate) struct Greetings {
    known: Vec<IpAddr>,
    /// From where. Dropped, it ends the connection; closed, the connection is greeted.
    open: Vec<(IpAddr, oneshot::Sender<Infallible>)>,
}

impl Greetings {
    pub(crate) fn new(known: impl IntoIterator<Item = IpAddr>) -> Self {
        let known = known.into_iter().map(|address| address.to_canonical()).collect();
        Self { known, open: Vec::new() }
    }

    /// Makes room for one more: to be dropped when it is greeted, and it is to end when this does.
    pub(crate) fn admit(&mut self, from: IpAddr) -> oneshot::Receiver<Infallible> {
        let from = from.to_canonical();
        let is_known = |address: IpAddr| self.known.contains(&address);
        self.open.retain(|(_, place)| !place.is_closed());
        let count = |are: &dyn Fn(IpAddr) -> bool| {
            self.open.iter().filter(|(other, _)| are(*other)).count()
        };
        let max = if is_known(from) { KNOWN_MAX } else { ADDRESS_MAX };
        let is_crowd = count(&|other| other == from) >= max;
        let are_many = count(&|other| !is_known(other)) >= OTHERS_MAX;
        let makes_room = |other: IpAddr| {
            if is_crowd { other == from } else { !is_known(from) && are_many && !is_known(other) }
        };
        if let Some(oldest) = self.open.iter().position(|(other, _)| makes_room(*other)) {
            self.open.remove(oldest);
        }
        let (place, held) = oneshot::channel();
        self.open.push((from, place));
        held
    }
}

#[cfg(test)]
mod tests {
    use oneshot::error::TryRecvError::{Closed, Empty};

    use super::*;

    fn address(last: u8) -> IpAddr {
        IpAddr::from([10, 0, 0, last])
    }

    #[test]
    fn who_says_nothing_keeps_nobody_out() {
        let mut greetings = Greetings::new([address(1)]);
        let mut peer = greetings.admit(address(1));
        // One address has its own in its way alone.
        let mut beside = greetings.admit(address(2));
        let mut crowd: Vec<_> = (0..=ADDRESS_MAX).map(|_| greetings.admit(address(3))).collect();
        assert_eq!(crowd[0].try_recv(), Err(Closed));
        assert_eq!(crowd[1].try_recv(), Err(Empty));
        assert_eq!(beside.try_recv(), Err(Empty));
        // Many addresses have each other in their way, but not the peer's.
        let many: Vec<_> = (0..200).map(|at| greetings.admit(address(4 + at % 100))).collect();
        assert_eq!(greetings.open.len(), OTHERS_MAX + 1);
        assert_eq!(beside.try_recv(), Err(Closed));
        assert_eq!(peer.try_recv(), Err(Empty));
        // Who has been greeted takes no room.
        drop((many, crowd));
        let mapped = "::ffff:10.0.0.1".parse().expect("an address");
        let again = greetings.admit(mapped);
        assert_eq!(greetings.open.len(), 2);
        drop((peer, again));
    }
}
