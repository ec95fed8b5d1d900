//! Which queues there are, where each lives, and how an address is written.
//!
//! Shard 0's log owns the catalogue; every shard holds a read map of it. Placement is an entry in
//! this table, never a hash: a queue lives where it was created. Queue ids are given once: an id
//! below `next_id` that is not here was deleted, one at or above it was never given, and a record
//! that names it is damage.
//!
//! The payload of a queue-create record, little-endian, frozen with the journal's format:
//! ```text
//!   0  version u8 = 1 │ 1  routing u8: 0 anycast │ 2  home shard u16 │ 4  level u8 │ 5  zero u8
//!   6  address length u16 │ 8  queue name length u16 │ 10  address │ … queue name │ … later parts
//! ```
//! The queue's id is the record's own. What follows the queue name is for later versions, and is
//! kept out of sight by this one.
//!
//! The grammar of an address is frozen too, since addresses are persisted:
//! ```text
//!   text    = [ "queue://" ] name [ "::" name ]     the second is the queue's, if not the first
//!   name    = 1 to 512 bytes of UTF-8 without control characters, '*', '#' and "::",
//!             with no space at either end, and not beginning with '$'
//!           | "$temp." and what the broker has made up
//! ```
//! `topic://` is understood, and refused until topics are built.
//!
//! A temporary queue is in the read maps only, never in the log: a start finds records of an id
//! that was given and is not in the catalogue, which are those of a queue that is gone.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hasher};

use amqp::link::LifetimePolicy;
use journal::{Level, QueueId, ShardId};

use crate::event::ConnId;
use crate::flat_map::FlatMap;
use crate::limits::ADDRESS_BYTES_MAX;
use crate::mail::LEVELS;

const VERSION: u8 = 1;
const ROUTING_ANYCAST: u8 = 0;
const FIXED_BYTES: usize = 10;

/// One queue, as the catalogue knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueueRecord {
    /// Its id, never reused.
    pub id: QueueId,
    /// Where it lives.
    pub home: ShardId,
    /// What `accepted` means for it.
    pub level: Level,
    /// Its name; in this version also its address.
    pub name: String,
    /// It lives no longer than this says. Not in the record's payload: such a queue has no record.
    pub temporary: Option<Temporary>,
}

/// What a temporary queue hangs on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Temporary {
    /// When it goes.
    pub policy: LifetimePolicy,
    /// The connection that made it, and its shard: nobody else may consume from it.
    pub owner: (ShardId, ConnId),
}

impl QueueRecord {
    /// The record's payload.
    pub fn encode(&self) -> Vec<u8> {
        let name = self.name.as_bytes();
        let name_len = u16::try_from(name.len()).expect("an address is at most 512 bytes");
        let mut out = Vec::with_capacity(FIXED_BYTES + 2 * name.len());
        out.extend([VERSION, ROUTING_ANYCAST]);
        out.extend(self.home.0.to_le_bytes());
        out.extend([self.level as u8, 0]);
        out.extend(name_len.to_le_bytes());
        out.extend(name_len.to_le_bytes());
        out.extend(name);
        out.extend(name);
        out
    }

    /// Reads a record's payload.
    ///
    /// # Errors
    /// A sentence that says what is wrong with it: the log is damaged or newer than this program.
    pub fn decode(id: QueueId, payload: &[u8]) -> Result<Self, String> {
        let Some((fixed, rest)) = payload.split_at_checked(FIXED_BYTES) else {
            return Err(format!("queue {} has a record of {} bytes", id.0, payload.len()));
        };
        if fixed[0] != VERSION || fixed[1] != ROUTING_ANYCAST {
            return Err(format!(
                "queue {} has a record of version {} and routing {}; this program knows {VERSION} \
                 and {ROUTING_ANYCAST}",
                id.0, fixed[0], fixed[1]
            ));
        }
        let half = |at: usize| u16::from_le_bytes([fixed[at], fixed[at + 1]]);
        let level = *LEVELS
            .get(usize::from(fixed[4]))
            .ok_or_else(|| format!("queue {} has the unknown level {}", id.0, fixed[4]))?;
        let (address_len, name_len) = (usize::from(half(6)), usize::from(half(8)));
        let name = rest
            .get(address_len..address_len + name_len)
            .and_then(|name| std::str::from_utf8(name).ok())
            .ok_or_else(|| format!("queue {} has no readable name", id.0))?;
        let (home, name) = (ShardId(half(2)), name.to_owned());
        Ok(Self { id, home, level, name, temporary: None })
    }
}

/// The table of queues.
#[derive(Clone, Debug, Default)]
pub struct Catalogue {
    by_id: FlatMap<QueueId, QueueRecord>,
    by_name: BTreeMap<String, QueueId>,
    next_id: u64,
}

impl Catalogue {
    /// An empty table. The first queue gets id 1.
    pub fn new() -> Self {
        Self { by_id: FlatMap::default(), by_name: BTreeMap::new(), next_id: 1 }
    }

    /// The queue of this name.
    pub fn named(&self, name: &str) -> Option<&QueueRecord> {
        self.by_name.get(name).and_then(|id| self.by_id.get(*id))
    }

    /// The queue of this id.
    pub fn get(&self, id: QueueId) -> Option<&QueueRecord> {
        self.by_id.get(id)
    }

    /// Every queue, by id.
    pub fn iter(&self) -> impl Iterator<Item = &QueueRecord> {
        self.by_id.values()
    }

    /// How many queues there are.
    pub fn len(&self) -> usize {
        self.by_id.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.by_id.is_empty()
    }

    /// The id that the next queue gets.
    pub fn next_id(&self) -> QueueId {
        QueueId(self.next_id)
    }

    /// Ids below this one are never given again.
    pub fn skip_to(&mut self, next: QueueId) {
        self.next_id = self.next_id.max(next.0);
    }

    /// Enters a queue; the same one again changes nothing.
    pub fn insert(&mut self, record: QueueRecord) {
        self.skip_to(QueueId(record.id.0 + 1));
        self.by_name.insert(record.name.clone(), record.id);
        self.by_id.insert(record.id, record);
    }

    /// Takes a queue out.
    pub fn remove(&mut self, id: QueueId) -> Option<QueueRecord> {
        let record = self.by_id.remove(id)?;
        self.by_name.remove(&record.name);
        Some(record)
    }
}

/// Why a text is not the address of a queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AddressError {
    /// It breaks the grammar; the sentence says where.
    Invalid(String),
    /// It is an address, of a kind that is not built.
    NotBuilt(String),
}

/// The name of the queue that an address means.
///
/// # Errors
/// [`AddressError`], with a sentence for the client.
pub fn queue_name(text: &str) -> Result<&str, AddressError> {
    if text.starts_with("topic://") {
        let what = format!("'{text}' is a topic; this version has queues only");
        return Err(AddressError::NotBuilt(what));
    }
    let text = text.strip_prefix("queue://").unwrap_or(text);
    let (address, queue) = match text.split_once("::") {
        Some((address, queue)) => (address, Some(queue)),
        None => (text, None),
    };
    for name in [Some(address), queue].into_iter().flatten() {
        check_name(name).map_err(|what| AddressError::Invalid(format!("'{text}': {what}")))?;
    }
    match queue {
        Some(queue) if queue != address => Err(AddressError::NotBuilt(format!(
            "'{text}' names a queue other than its address, which this version does not have"
        ))),
        Some(_) | None => Ok(address),
    }
}

/// What the names of temporary queues begin with.
const TEMPORARY_PREFIX: &str = "$temp.";

/// What a pattern must fit that speaks of all temporary queues: `$temp.#` does, and `#`.
pub const TEMPORARY_NODES: &str = "$temp";

/// The name of a new temporary queue. Ids are given once, so names are; who was not told one cannot
/// guess it without knowing the secret.
pub fn temporary_name(id: QueueId, secret: u64) -> String {
    let mut hasher = DefaultHasher::new();
    hasher.write_u64(secret);
    hasher.write_u64(id.0);
    format!("{TEMPORARY_PREFIX}{}.{:016x}", id.0, hasher.finish())
}

/// Whether this is the name of a temporary queue, which is never created by being asked for.
pub fn is_temporary(name: &str) -> bool {
    name.starts_with(TEMPORARY_PREFIX)
}

fn check_name(name: &str) -> Result<(), &'static str> {
    if name.is_empty() {
        Err("an address may not be empty")
    } else if name.len() > ADDRESS_BYTES_MAX {
        Err("an address has at most 512 bytes")
    } else if name.chars().any(char::is_control) {
        Err("an address has no control characters")
    } else if name.contains(['*', '#']) {
        Err("'*' and '#' are reserved for patterns")
    } else if name.contains("::") {
        Err("an address has at most one '::'")
    } else if name.starts_with('$') && !is_temporary(name) {
        Err("addresses that begin with '$' are the broker's own")
    } else if name.trim() != name {
        Err("an address neither begins nor ends with a space")
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> QueueRecord {
        QueueRecord {
            id: QueueId(7),
            home: ShardId(3),
            level: Level::Sync,
            name: "orders.é".to_owned(),
            temporary: None,
        }
    }

    #[test]
    fn a_record_survives_its_encoding_and_ignores_what_a_later_version_adds() {
        let mut bytes = record().encode();
        assert_eq!(QueueRecord::decode(QueueId(7), &bytes), Ok(record()));
        bytes.extend([1, 2, 3]);
        assert_eq!(QueueRecord::decode(QueueId(7), &bytes), Ok(record()));
    }

    #[test]
    fn a_record_that_is_cut_or_unknown_is_refused() {
        let bytes = record().encode();
        for len in 0..bytes.len() {
            assert!(QueueRecord::decode(QueueId(7), &bytes[..len]).is_err(), "{len}");
        }
        for (at, value) in [(0, 9), (1, 1), (4, 4)] {
            let mut bytes = bytes.clone();
            bytes[at] = value;
            assert!(QueueRecord::decode(QueueId(7), &bytes).is_err(), "byte {at}");
        }
    }

    #[test]
    fn ids_are_never_given_again() {
        let mut catalogue = Catalogue::new();
        catalogue.insert(record());
        assert_eq!(catalogue.next_id(), QueueId(8));
        catalogue.remove(QueueId(7));
        assert_eq!((catalogue.next_id(), catalogue.named("orders.é")), (QueueId(8), None));
    }

    #[test]
    fn addresses_by_the_grammar() {
        for good in ["q", "queue://q", "q::q", "queue://q::q"] {
            assert_eq!(queue_name(good), Ok("q"), "{good}");
        }
        assert_eq!(queue_name("a/b:c d"), Ok("a/b:c d"));
        let made_up = temporary_name(QueueId(7), 1);
        assert_eq!(queue_name(&made_up), Ok(&made_up[..]));
        assert_ne!(temporary_name(QueueId(7), 2), made_up);
        for bad in ["", "queue://", "a::", "::a", "a::b::c", "a*", "#", "$x", " a", "a\n"] {
            assert!(matches!(queue_name(bad), Err(AddressError::Invalid(_))), "{bad:?}");
        }
        assert!(matches!(queue_name(&"x".repeat(513)), Err(AddressError::Invalid(_))));
        for later in ["topic://t", "a::b"] {
            assert!(matches!(queue_name(later), Err(AddressError::NotBuilt(_))), "{later:?}");
        }
    }
}
