//! What an attach asks for, and what is in force on the link that answers it.
//!
//! ```text
//!   attach ──▶ wanted: a queue by its name | the anonymous relay
//!                 └─▶ or refused: a filter, a topic, a node that is not built ..
//!   accepted ─▶ in_force: the terminus as it is kept: only what is true of it    [2.6.3]
//! ```
//! Invariant: what is not built is refused, never left out. An ignored filter would hand a consumer
//! everything; an ignored `topic` would hand one subscriber another's messages.

use amqp::codec::{Symbol, Writer};
use amqp::definitions::{Role, TerminusDurability};
use amqp::error::{Condition, Error};
use amqp::link::{AcceptLink, DistributionMode, LinkSource, LinkTarget, RemoteAttach};
use bytes::Bytes;

use crate::catalogue::{AddressError, queue_name};

/// What our open offers [2.7.1].
pub(super) const OFFERED_CAPABILITIES: [&str; 1] = ["ANONYMOUS-RELAY"];

/// What a link is to be attached to.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Wanted {
    /// The queue of this name.
    Queue(String),
    /// No node: each message says where it goes.
    Relay,
}

/// What an attach asks for.
///
/// # Errors
/// The error of the link's refusal.
pub(super) fn wanted(attach: &RemoteAttach) -> Result<Wanted, Error> {
    let no = |condition, what: &str| Err(Error::new(condition, what));
    let (address, capabilities) = match attach.role {
        Role::Receiver => match &attach.target {
            None => return no(Condition::InvalidField, "the attach has no target"),
            Some(target) if target.dynamic => {
                return no(Condition::NotImplemented, "dynamic targets are not built");
            }
            Some(target) => (&target.address, &target.capabilities),
        },
        Role::Sender => match &attach.source {
            None => return no(Condition::NotFound, "there are no durable subscriptions"),
            Some(source) => {
                check_source(source)?;
                (&source.address, &source.capabilities)
            }
        },
    };
    if capabilities.iter().any(|c| matches!(c.as_str(), "topic" | "temporary-topic")) {
        return no(Condition::NotImplemented, "topics are not built; use a queue");
    }
    let address = match (address, attach.role) {
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
    if source.dynamic {
        no("dynamic sources are not built")
    } else if let Some(filter) = source.filters.first() {
        no(&format!("filters are not built; this source has '{}'", filter.key))
    } else {
        Ok(())
    }
}

/// What is in force on a link: the queue's address, nothing kept beyond the link, no filters.
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
    AcceptLink { source, target, ..AcceptLink::default() }
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

/// The property map of our open: who we are, as clients show it [2.7.1].
pub(super) fn open_properties() -> Bytes {
    let mut encoded = Vec::new();
    Writer::new(&mut encoded).map_with(|map| {
        let known =
            [("product", "laelaps"), ("version", env!("CARGO_PKG_VERSION")), ("platform", "Linux")];
        for (key, value) in known {
            map.element().symbol(Symbol::new(key));
            map.element().string(value);
        }
    });
    Bytes::from(encoded)
}
