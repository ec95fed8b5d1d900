//! What an attach asks for, and what is in force on the link that answers it.
//!
//! ```text
//!   attach ──▶ wanted: a queue by its name | a temporary queue | the anonymous relay
//!                 └─▶ or refused: a filter, a topic, a node that is not built ..
//!   accepted ─▶ in_force: the terminus as it is kept: only what is true of it    [2.6.3]
//! ```
//! The answer is made before the queue is found, and the attach, which may fill a frame, dropped: a
//! connection may have thousands of links that wait. What stays of it is bounded.
//!
//! Invariant: what is not built is refused, never left out. An ignored filter would hand a consumer
//! everything; an ignored `topic` would hand one subscriber another's messages.

use amqp::codec::{CompoundWriter, Symbol, Writer};
use amqp::definitions::{Role, TerminusExpiryPolicy};
use amqp::delivery::Outcome;
use amqp::error::{Condition, Error};
use amqp::link::{
    AcceptLink, DistributionMode, LifetimePolicy, LinkSource, LinkTarget, RemoteAttach,
};
use bytes::Bytes;

use crate::catalogue::{AddressError, queue_name};
use crate::delivery_time;
use crate::limits::{ADDED_BYTES_MAX, ADDRESS_BYTES_MAX};
use crate::server::Server;

/// What our open offers [2.7.1].
pub(super) const OFFERED_CAPABILITIES: [&str; 3] =
    ["ANONYMOUS-RELAY", SOLE_CONNECTION, delivery_time::CAPABILITY];

/// What a terminus of ours can do [3.5.3, 3.5.4]; of others the answer says nothing.
const NODE_CAPABILITIES: [&str; 2] = ["queue", "temporary-queue"];

/// Bytes of an address in an answer: a name's longest form. A peer's own may be longer.
const TERMINUS_ADDRESS_BYTES_MAX: usize = "queue://::".len() + 2 * ADDRESS_BYTES_MAX;

/// The outcomes that a delivery can have here [3.4].
const OUTCOMES: [&str; 4] =
    ["amqp:accepted:list", "amqp:rejected:list", "amqp:released:list", "amqp:modified:list"];

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
pub(super) fn in_force(attach: RemoteAttach) -> AcceptLink {
    let RemoteAttach { role, source, target, desired_capabilities, .. } = attach;
    let source = source.map(|source| LinkSource {
        address: source.address.filter(|address| is_short(address)),
        expiry_policy: TerminusExpiryPolicy::LinkDetach,
        dynamic: source.dynamic && role == Role::Sender,
        distribution_mode: source.distribution_mode,
        default_outcome: source.default_outcome.map(acted_on),
        outcomes: known(&source.outcomes, &OUTCOMES),
        capabilities: known(&source.capabilities, &NODE_CAPABILITIES),
        ..LinkSource::default()
    });
    let target = target.map(|target| LinkTarget {
        address: target.address.filter(|address| is_short(address)),
        expiry_policy: TerminusExpiryPolicy::LinkDetach,
        dynamic: target.dynamic && role == Role::Receiver,
        capabilities: known(&target.capabilities, &NODE_CAPABILITIES),
        ..LinkTarget::default()
    });
    let offered_capabilities = known(&desired_capabilities, &[delivery_time::CAPABILITY]);
    AcceptLink { source, target, offered_capabilities, ..AcceptLink::default() }
}

fn is_short(address: &str) -> bool {
    address.len() <= TERMINUS_ADDRESS_BYTES_MAX
}

/// Of what a peer lists, what is known here, each once.
fn known(listed: &[String], ours: &[&str]) -> Vec<String> {
    let is_listed = |known: &&&str| listed.iter().any(|each| each == **known);
    ours.iter().filter(is_listed).map(|known| (*known).to_owned()).collect()
}

/// Whether what is settled without an outcome is to have annotations merged into it.
pub(super) fn annotates(source: Option<&LinkSource>) -> bool {
    let default = source.and_then(|source| source.default_outcome.as_ref());
    matches!(default, Some(Outcome::Modified { message_annotations: Some(_), .. }))
}

/// Of a default outcome what is acted on: the error of `rejected` says nothing of any message, and
/// annotations that are too long are merged into nothing.
fn acted_on(default: Outcome) -> Outcome {
    match default {
        Outcome::Modified { delivery_failed, undeliverable_here, message_annotations } => {
            let message_annotations =
                message_annotations.filter(|map| map.len() <= ADDED_BYTES_MAX);
            Outcome::Modified { delivery_failed, undeliverable_here, message_annotations }
        }
        Outcome::Rejected(_) => Outcome::Rejected(None),
        Outcome::Accepted | Outcome::Released => default,
    }
}

/// Writes into an answer which queue was made for the link, and how long that lives.
pub(super) fn name_node(accept: &mut AcceptLink, name: &str, policy: LifetimePolicy) {
    let properties = Some(policy.to_properties());
    let AcceptLink { source, target, .. } = accept;
    // Only the terminus on our side is dynamic.
    if let Some(source) = source.as_mut().filter(|source| source.dynamic) {
        source.address = Some(name.to_owned());
        source.dynamic_node_properties = properties;
    } else if let Some(target) = target.as_mut().filter(|target| target.dynamic) {
        target.address = Some(name.to_owned());
        target.dynamic_node_properties = properties;
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
