//! Who may do what, on which addresses; and how a client may log in.
//!
//! ```text
//!   user ──▶ Rights ──▶ send | consume | browse | create | delete | manage ──▶ patterns
//! ```
//! A right that nothing gives is refused. Where nobody has to log in, or no role is configured,
//! there are no rights to look at and everybody may do everything.
//!
//! Invariant: a refusal is on the link, with `amqp:unauthorized-access`; the connection stays.

use std::collections::BTreeMap;
use std::sync::Arc;

use amqp::connection::Sasl;

use crate::pattern::Pattern;

/// Something that one may do with an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Right {
    /// Send to it.
    Send,
    /// Take messages from it.
    Consume,
    /// Look at its messages, which stay.
    Browse,
    /// Have it created by a link or a message to it; `$temp` are the dynamic nodes.
    Create,
    /// Have it deleted.
    Delete,
    /// Look at it and purge it over the admin API; on every address, also look at connections and
    /// metrics, and close connections.
    Manage,
}

impl Right {
    /// Every right, in the order of [`Rights`].
    pub const ALL: [Self; 6] =
        [Self::Send, Self::Consume, Self::Browse, Self::Create, Self::Delete, Self::Manage];

    /// What it lets one do, for the documentation.
    pub fn what(self) -> &'static str {
        match self {
            Self::Send => "send to it, by a link or through the anonymous relay",
            Self::Consume => "take messages from it",
            Self::Browse => "look at its messages, which stay (`copy`)",
            Self::Create => "have it created by a link or a message; `$temp.#` are dynamic nodes",
            Self::Delete => "delete it over the admin API, once it is empty",
            Self::Manage => {
                "look at it and purge it over the admin API; on `#` also connections and metrics"
            }
        }
    }

    /// Its name in the configuration and in refusals.
    pub fn name(self) -> &'static str {
        match self {
            Self::Send => "send",
            Self::Consume => "consume",
            Self::Browse => "browse",
            Self::Create => "create",
            Self::Delete => "delete",
            Self::Manage => "manage",
        }
    }
}

/// What a user may do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rights([Vec<Pattern>; Right::ALL.len()]);

impl Rights {
    /// Gives a right on some addresses more.
    pub fn give(&mut self, right: Right, pattern: Pattern) {
        self.0[right as usize].push(pattern);
    }

    /// Whether a right is given on an address.
    pub fn has(&self, right: Right, address: &str) -> bool {
        self.0[right as usize].iter().any(|pattern| pattern.fits(address))
    }

    /// Whether a right is given on every address.
    pub fn has_everywhere(&self, right: Right) -> bool {
        self.0[right as usize].iter().any(Pattern::is_everything)
    }
}

/// What each user may do. The default is that everybody may do everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Access(Option<Arc<BTreeMap<String, Arc<Rights>>>>);

impl Access {
    /// Each user's rights; who is not among them has none.
    pub fn of(users: BTreeMap<String, Arc<Rights>>) -> Self {
        Self(Some(Arc::new(users)))
    }

    /// The rights of a user; none where there are no rights to look at.
    pub fn rights(&self, user: &str) -> Option<Arc<Rights>> {
        let users = self.0.as_ref()?;
        Some(users.get(user).cloned().unwrap_or_default())
    }
}

/// How a client may log in, by the way that it came.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogIn {
    /// What it is offered; none: what the shard's template says.
    pub sasl: Option<Sasl>,
    /// The user that its certificate names, for EXTERNAL.
    pub certificate_user: Option<String>,
    /// It came by TLS.
    pub is_secure: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nothing_gives_is_refused() {
        let mut rights = Rights::default();
        rights.give(Right::Send, Pattern::parse("a.#").expect("a pattern"));
        assert!(rights.has(Right::Send, "a.b") && !rights.has(Right::Consume, "a.b"));
        let access = Access::of(BTreeMap::from([("ann".to_owned(), Arc::new(rights))]));
        assert!(access.rights("ann").expect("looked at").has(Right::Send, "a"));
        assert!(!access.rights("eve").expect("looked at").has(Right::Send, "a"));
        assert_eq!(Access::default().rights("eve"), None, "everybody may do everything");
        let mut rights = Rights::default();
        rights.give(Right::Manage, Pattern::parse("a.#").expect("a pattern"));
        assert!(!rights.has_everywhere(Right::Manage));
        rights.give(Right::Manage, Pattern::parse("#").expect("a pattern"));
        assert!(rights.has_everywhere(Right::Manage) && !rights.has_everywhere(Right::Send));
    }
}
