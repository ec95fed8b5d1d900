//! The states of a connection, a session and a link, each a table: event, legal states, next state.
//!
//! ```text
//!  connection   HeaderWait > SaslWait > SaslPending > AmqpHeaderWait > OpenWait > OpenReceived
//!                    '--------------(no SASL)-------------------------^     |          |
//!                                        (client: its open is sent already) '-> Opened <'
//!               Opened > CloseReceived (the host owes close) > Closed
//!               any    > CloseSent (all input but close is dropped) > Closed
//!
//!  session      Unmapped > BeginSent > Mapped > EndReceived (the host owes end) > Ended
//!                      '----------------^ '---> EndSent (input is dropped) -------^
//!
//!  link         New > AttachSent ---------> Attached > DetachReceived (the host owes) > Detached
//!                 '-> AttachReceived (host)-^  '-----> DetachSent (input is dropped) ---^
//! ```
//!
//! Invariant: a transition that no row allows does not happen; `next` answers none, and the caller
//! turns that into the fault of whoever caused it.

/// A row: an event, the states in which it is legal, and where it leads from each.
struct Row<E, S: 'static> {
    event: E,
    moves: &'static [(S, S)],
}

macro_rules! table {
    (
        $(#[$doc:meta])* $state:ident, $event:ident:
        $($name:ident { $($from:ident => $to:ident),* })*
    ) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub(crate) enum $event {
            $($name,)*
        }

        impl $state {
            const TABLE: &[Row<$event, Self>] = &[$(Row {
                event: $event::$name,
                moves: &[$((Self::$from, Self::$to),)*],
            },)*];

            /// The state after an event; none where the event is illegal.
            pub(crate) fn next(self, event: $event) -> Option<Self> {
                let row = Self::TABLE.iter().find(|row| row.event == event)?;
                row.moves.iter().find(|(from, _)| *from == self).map(|(_, to)| *to)
            }
        }
    };
}

/// Where a connection is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ConnectionState {
    /// The peer's protocol header is awaited (a client has sent its own).
    HeaderWait,
    /// SASL: a server awaits init, a client awaits mechanisms.
    SaslWait,
    /// SASL: a server's host verifies, a client awaits the outcome.
    SaslPending,
    /// SASL is over; the AMQP header is awaited.
    AmqpHeaderWait,
    /// The peer's open is awaited (a client has sent its own).
    OpenWait,
    /// Server: the host decides about the peer's open.
    OpenReceived,
    /// Both opens are exchanged.
    Opened,
    /// Our close is sent; everything is dropped until the peer's.
    CloseSent,
    /// The peer's close is here; the host owes ours.
    CloseReceived,
    /// Over.
    Closed,
}

table! {
    /// What moves a connection.
    ConnectionState, ConnectionEvent:
    SaslHeader { HeaderWait => SaslWait }
    SaslStep { SaslWait => SaslPending }
    SaslMore { SaslPending => SaslWait }
    SaslDone { SaslPending => AmqpHeaderWait }
    AmqpHeader { HeaderWait => OpenWait, AmqpHeaderWait => OpenWait }
    RemoteOpenToServer { OpenWait => OpenReceived }
    RemoteOpenToClient { OpenWait => Opened }
    LocalOpen { OpenReceived => Opened }
    RemoteClose {
        OpenWait => CloseReceived, OpenReceived => CloseReceived, Opened => CloseReceived,
        CloseSent => Closed
    }
    LocalClose {
        OpenWait => CloseSent, OpenReceived => CloseSent, Opened => CloseSent,
        CloseReceived => Closed
    }
    Abandon {
        HeaderWait => Closed, SaslWait => Closed, SaslPending => Closed, AmqpHeaderWait => Closed,
        OpenWait => Closed, OpenReceived => Closed, Opened => Closed, CloseSent => Closed,
        CloseReceived => Closed
    }
}

impl ConnectionState {
    /// Header, SASL and open are not over: the handshake timeout runs.
    pub(crate) fn is_handshake(self) -> bool {
        match self {
            Self::HeaderWait
            | Self::SaslWait
            | Self::SaslPending
            | Self::AmqpHeaderWait
            | Self::OpenWait
            | Self::OpenReceived => true,
            Self::Opened | Self::CloseSent | Self::CloseReceived | Self::Closed => false,
        }
    }
}

/// Where a session is [2.5.5].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SessionState {
    /// Not begun.
    Unmapped,
    /// Client: our begin is sent.
    BeginSent,
    /// Both begins are exchanged.
    Mapped,
    /// Our end is sent; everything is dropped until the peer's.
    EndSent,
    /// The peer's end is here; the host owes ours.
    EndReceived,
    /// Over.
    Ended,
}

table! {
    /// What moves a session.
    SessionState, SessionEvent:
    LocalBegin { Unmapped => BeginSent }
    RemoteBegin { Unmapped => Mapped, BeginSent => Mapped, EndSent => EndSent }
    LocalEnd { BeginSent => EndSent, Mapped => EndSent, EndReceived => Ended }
    RemoteEnd { Mapped => EndReceived, EndSent => Ended }
}

/// Where a link is [2.6].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LinkState {
    /// Not attached by anybody.
    New,
    /// Client: our attach is sent.
    AttachSent,
    /// The peer's attach is here; the host owes ours.
    AttachReceived,
    /// Both attaches are exchanged.
    Attached,
    /// Our detach is sent; everything is dropped until the peer's.
    DetachSent,
    /// The peer's detach is here; the host owes ours.
    DetachReceived,
    /// Over.
    Detached,
}

table! {
    /// What moves a link.
    LinkState, LinkEvent:
    LocalAttach { New => AttachSent }
    RemoteAttach { New => AttachReceived, AttachSent => Attached, DetachSent => DetachSent }
    Accept { AttachReceived => Attached }
    LocalDetach {
        AttachSent => DetachSent, AttachReceived => DetachSent, Attached => DetachSent,
        DetachReceived => Detached
    }
    RemoteDetach {
        AttachReceived => DetachReceived, Attached => DetachReceived, DetachSent => Detached
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_over_stays_over() {
        for row in ConnectionState::TABLE {
            assert_eq!(ConnectionState::Closed.next(row.event), None);
        }
        for row in SessionState::TABLE {
            assert_eq!(SessionState::Ended.next(row.event), None);
        }
        for row in LinkState::TABLE {
            assert_eq!(LinkState::Detached.next(row.event), None);
        }
    }

    #[test]
    fn no_state_has_two_ways_out_for_one_event() {
        fn check<E: Copy, S: Copy + PartialEq>(table: &[Row<E, S>]) {
            for row in table {
                for (nth, (from, _)) in row.moves.iter().enumerate() {
                    assert!(row.moves[..nth].iter().all(|(other, _)| other != from));
                }
            }
        }
        check(ConnectionState::TABLE);
        check(SessionState::TABLE);
        check(LinkState::TABLE);
    }

    #[test]
    fn the_ways_of_an_orderly_life() {
        use ConnectionEvent::*;
        let way = [SaslHeader, SaslStep, SaslDone, AmqpHeader, RemoteOpenToServer, LocalOpen];
        let opened =
            way.iter().try_fold(ConnectionState::HeaderWait, |state, event| state.next(*event));
        assert_eq!(opened, Some(ConnectionState::Opened));
        assert_eq!(ConnectionState::Opened.next(RemoteOpenToServer), None);
        assert_eq!(LinkState::DetachSent.next(LinkEvent::Accept), None);
        assert_eq!(SessionState::EndReceived.next(SessionEvent::RemoteEnd), None);
    }
}
