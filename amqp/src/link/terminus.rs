//! Sources and targets in owned form, and their way from and to the wire.
//!
//! ```text
//!  performative::Source<'a>  --LinkSource::from_wire-->  LinkSource       an event owns it
//!  LinkSource  --LinkSource::with_wire(|Source<'_>| ..)  the borrowed form lives on the stack
//! ```
//!
//! Invariant: maps travel as the bytes of one encoded AMQP map, filter values as the bytes of one
//! encoded value; they come from the wire, where they were checked to the bottom.
//! Failure: a host that hands in other bytes as a map is caught by `expect` when it is written.

use bytes::Bytes;

use crate::codec::{Map, Multiple, Reader, Symbol, Value, Writer};
use crate::definitions::{TerminusDurability, TerminusExpiryPolicy};
use crate::delivery::Outcome;
use crate::performative::{Source, Target};

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
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinkSource {
    /// The node; none for dynamic ones.
    pub address: Option<String>,
    /// What is kept of it.
    pub durable: TerminusDurability,
    /// When it begins to expire.
    pub expiry_policy: TerminusExpiryPolicy,
    /// How long it lasts once it expires, in seconds.
    pub timeout_s: u32,
    /// The receiver asks for a node made for this link.
    pub dynamic: bool,
    /// The encoded map of properties for a dynamic node.
    pub dynamic_node_properties: Option<Bytes>,
    /// Moved or copied; none where the receiver does not say, or says something else.
    pub distribution_mode: Option<DistributionMode>,
    /// The filters asked for; in an answer, those in force.
    pub filters: Vec<Filter>,
    /// The outcome of deliveries that are settled without one.
    pub default_outcome: Option<Outcome>,
    /// Symbols of the outcomes that the receiver may choose.
    pub outcomes: Vec<String>,
    /// Capabilities asked for or in force: `queue`, `topic`, `shared`, …
    pub capabilities: Vec<String>,
}

/// The target of a link [3.5.4].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinkTarget {
    /// The node; none for the anonymous relay and dynamic nodes.
    pub address: Option<String>,
    /// What is kept of it.
    pub durable: TerminusDurability,
    /// When it begins to expire.
    pub expiry_policy: TerminusExpiryPolicy,
    /// How long it lasts once it expires, in seconds.
    pub timeout_s: u32,
    /// The sender asks for a node made for this link.
    pub dynamic: bool,
    /// The encoded map of properties for a dynamic node.
    pub dynamic_node_properties: Option<Bytes>,
    /// Capabilities asked for or in force.
    pub capabilities: Vec<String>,
}

impl Default for LinkSource {
    fn default() -> Self {
        Self {
            address: None,
            durable: TerminusDurability::None,
            expiry_policy: TerminusExpiryPolicy::SessionEnd,
            timeout_s: 0,
            dynamic: false,
            dynamic_node_properties: None,
            distribution_mode: None,
            filters: Vec::new(),
            default_outcome: None,
            outcomes: Vec::new(),
            capabilities: Vec::new(),
        }
    }
}

impl Default for LinkTarget {
    fn default() -> Self {
        Self {
            address: None,
            durable: TerminusDurability::None,
            expiry_policy: TerminusExpiryPolicy::SessionEnd,
            timeout_s: 0,
            dynamic: false,
            dynamic_node_properties: None,
            capabilities: Vec::new(),
        }
    }
}

impl LinkSource {
    /// A plain source at an address.
    pub fn at(address: impl Into<String>) -> Self {
        Self { address: Some(address.into()), ..Self::default() }
    }

    pub(crate) fn from_wire(source: &Source<'_>) -> Self {
        Self {
            address: source.address.map(str::to_owned),
            durable: source.durable,
            expiry_policy: source.expiry_policy,
            timeout_s: source.timeout,
            dynamic: source.dynamic,
            dynamic_node_properties: source.dynamic_node_properties.as_ref().map(own_map),
            distribution_mode: source.distribution_mode.and_then(|mode| match mode.as_str() {
                "move" => Some(DistributionMode::Move),
                "copy" => Some(DistributionMode::Copy),
                _ => None,
            }),
            filters: source.filter.as_ref().map(own_filters).unwrap_or_default(),
            default_outcome: source.default_outcome.and_then(Outcome::from_wire),
            outcomes: own_symbols(&source.outcomes),
            capabilities: own_symbols(&source.capabilities),
        }
    }

    /// Shows the borrowed form to `then`.
    pub(crate) fn with_wire<R>(&self, then: impl FnOnce(Source<'_>) -> R) -> R {
        let outcomes = borrow_symbols(&self.outcomes);
        let capabilities = borrow_symbols(&self.capabilities);
        let filter = write_filters(&self.filters);
        then(Source {
            address: self.address.as_deref(),
            durable: self.durable,
            expiry_policy: self.expiry_policy,
            timeout: self.timeout_s,
            dynamic: self.dynamic,
            dynamic_node_properties: borrow_map(self.dynamic_node_properties.as_deref()),
            distribution_mode: self.distribution_mode.map(|mode| {
                Symbol::new(match mode {
                    DistributionMode::Move => "move",
                    DistributionMode::Copy => "copy",
                })
            }),
            filter: borrow_map(filter.as_deref()),
            default_outcome: self.default_outcome.as_ref().map(Outcome::to_wire),
            outcomes: Multiple::from(&outcomes[..]),
            capabilities: Multiple::from(&capabilities[..]),
        })
    }
}

impl LinkTarget {
    /// A plain target at an address.
    pub fn at(address: impl Into<String>) -> Self {
        Self { address: Some(address.into()), ..Self::default() }
    }

    pub(crate) fn from_wire(target: &Target<'_>) -> Self {
        Self {
            address: target.address.map(str::to_owned),
            durable: target.durable,
            expiry_policy: target.expiry_policy,
            timeout_s: target.timeout,
            dynamic: target.dynamic,
            dynamic_node_properties: target.dynamic_node_properties.as_ref().map(own_map),
            capabilities: own_symbols(&target.capabilities),
        }
    }

    /// Shows the borrowed form to `then`.
    pub(crate) fn with_wire<R>(&self, then: impl FnOnce(Target<'_>) -> R) -> R {
        let capabilities = borrow_symbols(&self.capabilities);
        then(Target {
            address: self.address.as_deref(),
            durable: self.durable,
            expiry_policy: self.expiry_policy,
            timeout: self.timeout_s,
            dynamic: self.dynamic,
            dynamic_node_properties: borrow_map(self.dynamic_node_properties.as_deref()),
            capabilities: Multiple::from(&capabilities[..]),
        })
    }
}

/// Shows a source, or that there is none, to `then`.
pub(crate) fn with_source<R>(
    source: Option<&LinkSource>,
    then: impl FnOnce(Option<Source<'_>>) -> R,
) -> R {
    match source {
        Some(source) => source.with_wire(|source| then(Some(source))),
        None => then(None),
    }
}

/// Shows a target, or that there is none, to `then`.
pub(crate) fn with_target<R>(
    target: Option<&LinkTarget>,
    then: impl FnOnce(Option<Target<'_>>) -> R,
) -> R {
    match target {
        Some(target) => target.with_wire(|target| then(Some(target))),
        None => then(None),
    }
}

/// The encoded map that a view shows.
pub(crate) fn own_map(map: &Map<'_>) -> Bytes {
    let mut encoded = Vec::new();
    Writer::new(&mut encoded).map(map);
    Bytes::from(encoded)
}

/// A view of an encoded map.
pub(crate) fn borrow_map(encoded: Option<&[u8]>) -> Option<Map<'_>> {
    encoded.map(|bytes| Reader::new(bytes).map().expect("the host's map is an encoded AMQP map"))
}

pub(crate) fn own_symbols(symbols: &Multiple<'_>) -> Vec<String> {
    symbols.iter().map(|symbol| symbol.as_str().to_owned()).collect()
}

/// The symbols; text that is not ASCII cannot be one and is left out.
pub(crate) fn borrow_symbols(symbols: &[String]) -> Vec<Symbol<'_>> {
    symbols.iter().filter_map(|symbol| Symbol::from_ascii(symbol.as_bytes())).collect()
}

/// Filters of one source that reach the host; a client uses two or three.
const FILTERS_MAX: usize = 64;

/// Keys are symbols by the book; strings are seen in the field. Others name no filter we know.
fn own_filters(filters: &Map<'_>) -> Vec<Filter> {
    let own = |(key, value): (Value<'_>, Value<'_>)| {
        let key = key_text(&key)?.to_owned();
        let mut encoded = Vec::new();
        Writer::new(&mut encoded).value(&value);
        Some(Filter { key, value: Bytes::from(encoded) })
    };
    filters.iter().filter_map(own).take(FILTERS_MAX).collect()
}

fn key_text<'a>(key: &Value<'a>) -> Option<&'a str> {
    if let Value::Symbol(symbol) = key {
        return Some(symbol.as_str());
    }
    if let Value::String(text) = key { Some(text) } else { None }
}

fn write_filters(filters: &[Filter]) -> Option<Vec<u8>> {
    if filters.is_empty() {
        return None;
    }
    let mut encoded = Vec::new();
    Writer::new(&mut encoded).map_with(|map| {
        for (nth, filter) in filters.iter().enumerate() {
            // A symbol and a string of the same text come from the wire as one key twice.
            if filters[..nth].iter().any(|other| other.key == filter.key) {
                continue;
            }
            let Some(key) = Symbol::from_ascii(filter.key.as_bytes()) else { continue };
            map.element().symbol(key);
            map.element().raw(&filter.value);
        }
    });
    Some(encoded)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_survives_the_way_out_and_back() {
        let mut described = Vec::new();
        let mut writer = Writer::new(&mut described);
        writer.descriptor(0x0000_468C_0000_0004);
        writer.string("colour = 'red'");
        let source = LinkSource {
            filters: vec![Filter { key: "jms-selector".into(), value: described.into() }],
            default_outcome: Some(Outcome::Released),
            outcomes: vec!["amqp:accepted:list".into(), "amqp:rejected:list".into()],
            capabilities: vec!["queue".into()],
            distribution_mode: Some(DistributionMode::Copy),
            durable: TerminusDurability::Configuration,
            expiry_policy: TerminusExpiryPolicy::Never,
            timeout_s: 9,
            ..LinkSource::at("orders")
        };
        let back = source.with_wire(|wire| LinkSource::from_wire(&wire));
        assert_eq!(back, source);
    }

    #[test]
    fn filters_whose_keys_differ_only_in_type_are_written_once() {
        let mut encoded = Vec::new();
        Writer::new(&mut encoded).map_with(|map| {
            map.element().symbol(Symbol::new("f"));
            map.element().uint(1);
            map.element().string("f");
            map.element().uint(2);
            map.element().ulong(7);
            map.element().uint(3);
        });
        let filter = borrow_map(Some(&encoded));
        let source = LinkSource::from_wire(&Source { filter, ..Source::default() });
        assert_eq!(source.filters.len(), 2);
        let written = source.with_wire(|wire| LinkSource::from_wire(&wire).filters);
        assert_eq!(written, source.filters[..1]);
    }

    #[test]
    fn a_target_survives_the_way_out_and_back() {
        let target = LinkTarget { capabilities: vec!["queue".into()], ..LinkTarget::at("orders") };
        assert_eq!(target.with_wire(|wire| LinkTarget::from_wire(&wire)), target);
    }
}
