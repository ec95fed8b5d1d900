//! What an attach asks for, and what is in force on the link that answers it.
//!
//! ```text
//!   attach ──▶ wanted: a queue by its name | a temporary queue | the anonymous relay
//!                 └─▶ or refused: a filter, a topic, a node that is not built ..
//!   accepted ─▶ in_force: the terminus as it is kept: only what is true of it    [2.6.3]
//! ```
//! Invariant: what is not built is refused, never left out. An ignored filter would hand a consumer
//! everything; an ignored `topic` would hand one subscriber another's messages.

use amqp::codec::{CompoundWriter, Symbol, Writer};
use amqp::definitions::{Role, TerminusDurability};
use amqp::error::{Condition, Error};
use amqp::link::{
    AcceptLink, DistributionMode, LifetimePolicy, LinkSource, LinkTarget, RemoteAttach,
};
use bytes::Bytes;

use crate::catalogue::{AddressError, queue_name};
use crate::delivery_time;
use crate::server::Server;

/// What our open offers [2.7.1].
pub(super) const OFFERED_CAPABILITIES: [&str; 3] =
    ["ANONYMOUS-RELAY", SOLE_CONNECTION, delivery_time::CAPABILITY];

/// What a peer desires that wants to be the only connection of its container.
pub(super) const SOLE_CONNECTION: &str = "sole-connection-for-container";

/// What a link is to be attached to.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Wanted {
    /// The queue of this name.
    Queue(String),
    /// A queue made for the link, which lives as long as this says.
    Temporary(LifetimePolicy),
    /// No node: each message says where it goes.
    Relay,
}

/// What the two kinds of terminus that may be a queue have in common.
struct Node<'a> {
    address: &'a Option<String>,
    dynamic: bool,
    properties: Option<&'a [u8]>,
    capabilities: &'a [String],
}

/// What an attach asks for.
///
/// # Errors
/// The error of the link's refusal.
pub(super) fn wanted(attach: &RemoteAttach) -> Result<Wanted, Error> {
    let no = |condition, what: &str| Err(Error::new(condition, what));
    let node = match attach.role {
        Role::Receiver => match &attach.target {
            None => return no(Condition::InvalidField, "the attach has no target"),
            Some(target) => Node {
                address: &target.address,
                dynamic: target.dynamic,
                properties: target.dynamic_node_properties.as_deref(),
                capabilities: &target.capabilities,
            },
        },
        Role::Sender => match &attach.source {
            None => return no(Condition::NotFound, "there are no durable subscriptions"),
            Some(source) => {
                check_source(source)?;
                Node {
                    address: &source.address,
                    dynamic: source.dynamic,
                    properties: source.dynamic_node_properties.as_deref(),
                    capabilities: &source.capabilities,
                }
            }
        },
    };
    if node.capabilities.iter().any(|c| matches!(c.as_str(), "topic" | "temporary-topic")) {
        return no(Condition::NotImplemented, "topics are not built; use a queue");
    }
    if node.dynamic {
        let policy = node.properties.and_then(LifetimePolicy::of_properties);
        return Ok(Wanted::Temporary(policy.unwrap_or_default()));
    }
    let address = match (node.address, attach.role) {
        (Some(address), _) => address,
        (None, Role::Receiver) => return Ok(Wanted::Relay),
        (None, Role::Sender) => {
            return no(Condition::InvalidField, "the source has no address; name the queue");
        }
    };
    match queue_name(address) {
        Ok(name) => Ok(Wanted::Queue(name.to_owned())),
        Err(AddressError::Invalid(what)) => no(Condition::InvalidField, &what),
        Err(AddressError::NotBuilt(what)) => no(Condition::NotImplemented, &what),
    }
}

fn check_source(source: &LinkSource) -> Result<(), Error> {
    let no = |what: &str| Err(Error::new(Condition::NotImplemented, what));
    if let Some(filter) = source.filters.first() {
        no(&format!("filters are not built; this source has '{}'", filter.key))
    } else {
        Ok(())
    }
}

/// What is in force on a link: the queue's address, nothing kept beyond the link, no filters; and
/// of what is wanted, what is built.
pub(super) fn in_force(attach: Option<&RemoteAttach>) -> AcceptLink {
    let Some(attach) = attach else { return AcceptLink::default() };
    let source = attach
        .source
        .as_ref()
        .map(|source| LinkSource { durable: TerminusDurability::None, ..source.clone() });
    let target = attach
        .target
        .as_ref()
        .map(|target| LinkTarget { durable: TerminusDurability::None, ..target.clone() });
    let offers = |wanted: &&String| *wanted == delivery_time::CAPABILITY;
    let offered_capabilities = attach.desired_capabilities.iter().filter(offers).cloned().collect();
    AcceptLink { source, target, offered_capabilities, ..AcceptLink::default() }
}

/// Writes into an attach which queue was made for it, and how long that lives: the answer says so.
pub(super) fn name_node(attach: &mut RemoteAttach, name: &str, policy: LifetimePolicy) {
    let properties = Some(policy.to_properties());
    match (attach.role, &mut attach.source, &mut attach.target) {
        (Role::Sender, Some(source), _) => {
            source.address = Some(name.to_owned());
            source.dynamic_node_properties = properties;
        }
        (Role::Receiver, _, Some(target)) => {
            target.address = Some(name.to_owned());
            target.dynamic_node_properties = properties;
        }
        (Role::Sender, None, _) | (Role::Receiver, _, None) => {}
    }
}

/// Whether a link is only shown messages, which stay [3.5.7].
pub(super) fn browses(attach: &RemoteAttach) -> bool {
    let mode = attach.source.as_ref().and_then(|source| source.distribution_mode);
    attach.role == Role::Sender && mode == Some(DistributionMode::Copy)
}

/// Whether a sender can be told `rejected`: where its source names outcomes, only those [3.5.3].
pub(super) fn knows_rejected(source: Option<&LinkSource>) -> bool {
    let outcomes = source.map(|source| &source.outcomes[..]).unwrap_or_default();
    outcomes.is_empty() || outcomes.iter().any(|outcome| outcome == "amqp:rejected:list")
}

/// The property map of our open: who we are, as clients show it [2.7.1], and where else they may
/// go, by the way that they came.
pub(super) fn open_properties(servers: &[Server], is_secure: bool) -> Bytes {
    properties(|map| Server::list(servers, is_secure, map))
}

/// The same of an open that a close follows.
pub(super) fn refused_properties() -> Bytes {
    properties(|map| {
        map.element().symbol(Symbol::new("amqp:connection-establishment-failed"));
        map.element().boolean(true);
    })
}

fn properties(more: impl FnOnce(&mut CompoundWriter<'_>)) -> Bytes {
    let mut encoded = Vec::new();
    Writer::new(&mut encoded).map_with(|map| {
        let known =
            [("product", "laelaps"), ("version", env!("CARGO_PKG_VERSION")), ("platform", "Linux")];
        for (key, value) in known {
            map.element().symbol(Symbol::new(key));
            map.element().string(value);
        }
        // Weak: of connections that ask for it themselves.
        map.element().symbol(Symbol::new("sole-connection-detection-policy"));
        map.element().uint(1);
        more(map);
    });
    Bytes::from(encoded)
}
