//! Sessions: channels, windows, handles and the unsettled deliveries of both directions.

/// A session of a connection. Carries a generation: an id of a session that is gone names nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct SessionId {
    pub(crate) index: u32,
    pub(crate) generation: u32,
}
