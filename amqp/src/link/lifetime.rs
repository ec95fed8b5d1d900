//! How long a dynamic node lives, as its properties say it [3.5.9].
//!
//! ```text
//!  dynamic-node-properties = { lifetime-policy: described list without fields, .. }
//!     0x2b delete-on-close                  with the link that made it
//!     0x2c delete-on-no-links               with the last link to or from it
//!     0x2d delete-on-no-messages            as on-close, and not before it is empty
//!     0x2e delete-on-no-links-or-messages   as on-no-links, and not before it is empty
//! ```
//!
//! Failure: properties without a policy, or with one that the specification does not have, name
//! none; what holds then is the host's choice, and its answer says so.

use bytes::Bytes;

use super::borrow_map;
use crate::codec::{Composite, Descriptor, Symbol, Value, Writer};
use crate::composites::{
    DeleteOnClose, DeleteOnNoLinks, DeleteOnNoLinksOrMessages, DeleteOnNoMessages, code_of,
};

/// When a dynamic node is deleted [3.5.10] to [3.5.13].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LifetimePolicy {
    /// With the link that made it.
    #[default]
    OnClose,
    /// With the last link to or from it.
    OnNoLinks,
    /// When the link that made it is gone and it holds no message.
    OnNoMessages,
    /// When it has no link and holds no message.
    OnNoLinksOrMessages,
}

const KEY: Symbol<'static> = Symbol::new("lifetime-policy");

impl LifetimePolicy {
    /// All of them.
    pub const ALL: [Self; 4] =
        [Self::OnClose, Self::OnNoLinks, Self::OnNoMessages, Self::OnNoLinksOrMessages];

    /// The policy that encoded dynamic-node-properties name.
    ///
    /// # Panics
    /// If they are not an encoded map.
    pub fn of_properties(properties: &[u8]) -> Option<Self> {
        let value = borrow_map(Some(properties))?.get(KEY.as_str())?;
        let Value::Described(described) = value else { return None };
        let code = match described.descriptor() {
            Descriptor::Code(code) => code,
            Descriptor::Name(name) => code_of(name.as_str())?,
            Descriptor::Reserved => return None,
        };
        Self::ALL.into_iter().find(|policy| policy.code() == code)
    }

    /// Dynamic-node-properties that say this policy and nothing else, encoded.
    pub fn to_properties(self) -> Bytes {
        let mut encoded = Vec::new();
        Writer::new(&mut encoded).map_with(|map| {
            map.element().symbol(KEY);
            let policy = &mut map.element();
            match self {
                Self::OnClose => DeleteOnClose {}.write_described(policy),
                Self::OnNoLinks => DeleteOnNoLinks {}.write_described(policy),
                Self::OnNoMessages => DeleteOnNoMessages {}.write_described(policy),
                Self::OnNoLinksOrMessages => DeleteOnNoLinksOrMessages {}.write_described(policy),
            }
        });
        Bytes::from(encoded)
    }

    const fn code(self) -> u64 {
        match self {
            Self::OnClose => DeleteOnClose::SPEC.code,
            Self::OnNoLinks => DeleteOnNoLinks::SPEC.code,
            Self::OnNoMessages => DeleteOnNoMessages::SPEC.code,
            Self::OnNoLinksOrMessages => DeleteOnNoLinksOrMessages::SPEC.code,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn item_27_each_policy_survives_the_way_out_and_back() {
        for policy in LifetimePolicy::ALL {
            assert_eq!(LifetimePolicy::of_properties(&policy.to_properties()), Some(policy));
        }
    }

    #[test]
    fn item_27_policies_by_name_and_none_at_all() {
        let properties = |write: fn(&mut Writer<'_>)| {
            let mut encoded = Vec::new();
            Writer::new(&mut encoded).map_with(|map| {
                map.element().symbol(Symbol::new("supported-dist-modes"));
                map.element().symbol(Symbol::new("move"));
                map.element().symbol(KEY);
                write(&mut map.element());
            });
            encoded
        };
        // Symbolic descriptor, empty list.
        let named = properties(|writer| writer.raw(b"\x00\xa3\x19amqp:delete-on-close:list\x45"));
        assert_eq!(LifetimePolicy::of_properties(&named), Some(LifetimePolicy::OnClose));
        for other in [
            properties(|writer| writer.raw(&[0x40])),
            properties(|writer| writer.raw(b"\x00\x53\x2f\x45")),
            properties(|writer| writer.raw(b"\x00\x53\x28\x45")),
            b"\xc1\x01\x00".to_vec(),
        ] {
            assert_eq!(LifetimePolicy::of_properties(&other), None);
        }
    }
}
