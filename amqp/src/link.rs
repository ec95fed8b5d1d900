//! Links: identity, termini, and what an attach says, in owned form.

use bytes::Bytes;

use crate::session::SessionId;

/// A link of a connection. Carries a generation: an id of a link that is gone names nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct LinkId {
    pub(crate) index: u32,
    pub(crate) generation: u32,
}

/// Which side of a link an endpoint is [2.8.1].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LinkRole {
    /// Sends messages.
    Sender,
    /// Receives messages.
    Receiver,
}

/// When the sender settles [2.8.2].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SenderSettleMode {
    /// All deliveries are sent unsettled.
    Unsettled,
    /// All deliveries are sent settled.
    Settled,
    /// The sender says for each delivery.
    #[default]
    Mixed,
}

/// When the receiver settles [2.8.3].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ReceiverSettleMode {
    /// At once, with the outcome.
    #[default]
    First,
    /// After the sender has settled.
    Second,
}

/// What of a terminus is kept [3.5.5].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Durability {
    /// Nothing.
    #[default]
    None,
    /// That it exists, and how.
    Configuration,
    /// Also the unsettled deliveries.
    UnsettledState,
}

/// When an expiring terminus begins to expire [3.5.6].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ExpiryPolicy {
    /// With the link.
    LinkDetach,
    /// With the session.
    #[default]
    SessionEnd,
    /// With the connection.
    ConnectionClose,
    /// Not at all.
    Never,
}

/// How a source hands out messages [3.5.7].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DistributionMode {
    /// Each message goes to one link.
    Move,
    /// Browsing: messages stay.
    Copy,
}

/// One filter of a source [3.5.8].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Filter {
    /// The key in the filter set.
    pub key: String,
    /// The encoded value, descriptor and all.
    pub value: Bytes,
}

/// The source of a link [3.5.3].
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LinkSource {
    /// The node; none for dynamic ones and look-ups.
    pub address: Option<String>,
    /// What is kept of it.
    pub durable: Durability,
    /// When it begins to expire.
    pub expiry_policy: ExpiryPolicy,
    /// How long it lasts once it expires, in seconds.
    pub timeout_s: u32,
    /// The receiver asks for a node made for this link.
    pub dynamic: bool,
    /// The encoded map of properties for a dynamic node.
    pub dynamic_node_properties: Option<Bytes>,
    /// Moved or copied.
    pub distribution_mode: Option<DistributionMode>,
    /// The filters asked for; in an answer, those in force.
    pub filters: Vec<Filter>,
    /// The outcome of deliveries settled without one; `None` also when it is not one of the four.
    pub default_outcome: Option<crate::delivery::Outcome>,
    /// Symbols of the outcomes that the receiver may choose.
    pub outcomes: Vec<String>,
    /// Capabilities asked for or in force: `queue`, `topic`, `shared`, …
    pub capabilities: Vec<String>,
}

/// The target of a link [3.5.4].
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LinkTarget {
    /// The node; none for the anonymous relay and dynamic nodes.
    pub address: Option<String>,
    /// What is kept of it.
    pub durable: Durability,
    /// When it begins to expire.
    pub expiry_policy: ExpiryPolicy,
    /// How long it lasts once it expires, in seconds.
    pub timeout_s: u32,
    /// The sender asks for a node made for this link.
    pub dynamic: bool,
    /// The encoded map of properties for a dynamic node.
    pub dynamic_node_properties: Option<Bytes>,
    /// Capabilities asked for or in force.
    pub capabilities: Vec<String>,
}

impl LinkSource {
    /// A plain source at an address.
    pub fn at(address: impl Into<String>) -> Self {
        Self { address: Some(address.into()), ..Self::default() }
    }
}

impl LinkTarget {
    /// A plain target at an address.
    pub fn at(address: impl Into<String>) -> Self {
        Self { address: Some(address.into()), ..Self::default() }
    }
}

/// What the peer's attach said. Coordinator targets never get here: the engine refuses them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RemoteAttach {
    /// The session it came on.
    pub session: SessionId,
    /// The name: with both containers and the role, the link's identity [2.6.1].
    pub name: String,
    /// *Our* role on this link: `Receiver` where the peer sends.
    pub role: LinkRole,
    /// How the sender settles.
    pub snd_settle_mode: SenderSettleMode,
    /// How the receiver would like to settle; the engine answers `first` always.
    pub rcv_settle_mode: ReceiverSettleMode,
    /// The source; none in refusals and look-ups of a durable subscription by name.
    pub source: Option<LinkSource>,
    /// The target; none in refusals.
    pub target: Option<LinkTarget>,
    /// The largest message that the peer takes, in bytes; none where it has no limit.
    pub max_message_size: Option<u64>,
    /// The peer brought unsettled deliveries to resume; the engine answers with none.
    pub unsettled: bool,
    /// Extensions offered.
    pub offered_capabilities: Vec<String>,
    /// Extensions wanted.
    pub desired_capabilities: Vec<String>,
    /// The encoded property map.
    pub properties: Option<Bytes>,
}

/// How a host accepts a link: what the answering attach says [2.6.3].
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct AcceptLink {
    /// The source in force.
    pub source: Option<LinkSource>,
    /// The target in force.
    pub target: Option<LinkTarget>,
    /// Extensions in force.
    pub offered_capabilities: Vec<String>,
    /// An encoded property map.
    pub properties: Option<Bytes>,
}

/// A link that a client asks for.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NewLink {
    /// The name, unique among the container's links of the same role.
    pub name: String,
    /// The source.
    pub source: LinkSource,
    /// The target.
    pub target: LinkTarget,
    /// How the sender settles.
    pub snd_settle_mode: SenderSettleMode,
    /// Extensions wanted.
    pub desired_capabilities: Vec<String>,
    /// An encoded property map.
    pub properties: Option<Bytes>,
}
