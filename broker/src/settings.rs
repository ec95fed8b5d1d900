//! What holds for the queues of an address: limits, and where messages go that die.
//!
//! ```text
//!   rules, in any order            the settings of "orders.eu"
//!     #            attempts 5        most specific first, each knob from the first rule
//!     orders.#     attempts 3        that says something of it:
//!     orders.eu    expiry-address    orders.eu ─▶ orders.* ─▶ orders.# ─▶ # ─▶ the default
//! ```
//! What a pattern is says `pattern.rs`. Of two patterns that fit, the more specific is the one that
//! has a plain word where the other has `*`, or `*` where the other has `#`, at the first place
//! where they differ.
//!
//! Invariants: the same rules give the same settings, in whatever order they stand. Nothing here is
//! in the log: settings hold from the start that read them, but for the level of a queue, which is
//! written with its creation.

use std::sync::Arc;
use std::time::Duration;

use journal::Level;

use crate::pattern::Pattern;
use crate::queue::PRIORITY_DEFAULT;

/// Where dead letters go if nobody says otherwise.
pub const DEAD_LETTER_ADDRESS: &str = "DLQ";
/// Where expired messages go if nobody says otherwise.
pub const EXPIRY_ADDRESS: &str = "ExpiryQueue";

/// What becomes of a message for a queue that is as deep as it may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FullPolicy {
    /// It is rejected, `amqp:resource-limit-exceeded`.
    Refuse,
    /// Its producer gets no more credit; what was sent before is taken.
    Block,
    /// It is accepted, and dropped: the newest goes.
    Drop,
}

/// Declares the settings: what a rule may say, and what holds in the end.
macro_rules! settings {
    ($($(#[$doc:meta])* $field:ident: $type:ty = $default:expr;)*) => {
        /// What holds for an address.
        #[derive(Clone, Debug, PartialEq)]
        pub struct AddressSettings { $($(#[$doc])* pub $field: $type,)* }

        /// What one rule says; the rest is left to less specific ones.
        #[derive(Clone, Debug, Default, PartialEq)]
        pub struct Said { $($(#[$doc])* pub $field: Option<$type>,)* }

        impl Default for AddressSettings {
            fn default() -> Self {
                Self { $($field: $default,)* }
            }
        }

        impl AddressSettings {
            /// Lets a rule speak over what is there.
            fn lay(&mut self, said: &Said) {
                $(if let Some(value) = &said.$field {
                    self.$field.clone_from(value);
                })*
            }
        }
    };
}

settings! {
    /// The level of queues created from now on; `None`: the broker's.
    level: Option<Level> = None;
    /// Where dead letters go; empty: nowhere, they are dropped.
    dead_letter_address: String = DEAD_LETTER_ADDRESS.to_owned();
    /// Where expired messages go; empty: nowhere, they are dropped.
    expiry_address: String = EXPIRY_ADDRESS.to_owned();
    /// Failed deliveries after which a message is a dead letter; 0: never.
    delivery_attempts_max: u32 = 10;
    /// How long a message waits after its first failed delivery.
    redelivery_delay: Duration = Duration::ZERO;
    /// By what the delay grows with each further failure, in per cent.
    redelivery_multiplier_percent: u32 = 100;
    /// The longest that it gets.
    redelivery_delay_max: Duration = Duration::from_secs(60);
    /// Messages that a queue holds; 0: no bound.
    messages_max: u64 = 0;
    /// Bytes of messages that a queue holds; 0: no bound.
    bytes_max: u64 = 0;
    /// What becomes of messages beyond.
    full_policy: FullPolicy = FullPolicy::Block;
    /// Whether a queue is created when a client asks for it.
    auto_create: bool = true;
    /// After how long without a link and a message a queue is deleted; 0: never.
    auto_delete_after: Duration = Duration::ZERO;
    /// Whether the first consumer gets everything, until it leaves.
    exclusive_consumer: bool = false;
    /// Consumers that a queue has at once; 0: no bound.
    consumers_max: u32 = 0;
    /// The priority of messages that state none.
    priority_default: u8 = PRIORITY_DEFAULT;
    /// Ids of messages that are remembered, so that none is stored twice; 0: none.
    duplicate_ids: u32 = 20_000;
}

impl AddressSettings {
    /// How long a message waits after so many failed deliveries.
    pub fn delay_after(&self, failures: u32) -> Duration {
        let mut delay = self.redelivery_delay;
        if self.redelivery_multiplier_percent > 100 && !delay.is_zero() {
            for _ in 1..failures {
                if delay >= self.redelivery_delay_max {
                    break;
                }
                delay = delay.saturating_mul(self.redelivery_multiplier_percent) / 100;
            }
        }
        delay.min(self.redelivery_delay_max.max(self.redelivery_delay))
    }
}

/// One pattern, and what it says.
#[derive(Clone, Debug, PartialEq)]
struct Rule {
    pattern: Pattern,
    said: Said,
}

/// All rules.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Settings {
    /// The least specific first.
    rules: Vec<Rule>,
}

impl Settings {
    /// Adds what a pattern says.
    ///
    /// # Errors
    /// A sentence that says why it is no pattern, or that it is there already.
    pub fn add(&mut self, pattern: &str, said: Said) -> Result<(), String> {
        let sound = Pattern::parse(pattern)?;
        let place = rank(pattern);
        match self.rules.binary_search_by(|rule| place.cmp(&rank(rule.pattern.as_str()))) {
            Ok(_) => Err(format!("the pattern '{pattern}' is there twice")),
            Err(at) => {
                self.rules.insert(at, Rule { pattern: sound, said });
                Ok(())
            }
        }
    }

    /// The most ids that any address may remember.
    pub fn duplicate_ids_max(&self) -> u32 {
        let said = self.rules.iter().filter_map(|rule| rule.said.duplicate_ids);
        said.fold(AddressSettings::default().duplicate_ids, u32::max)
    }

    /// What holds for an address.
    pub fn of(&self, address: &str) -> Arc<AddressSettings> {
        let mut settings = AddressSettings::default();
        for rule in self.rules.iter().filter(|rule| rule.pattern.fits(address)) {
            settings.lay(&rule.said);
        }
        Arc::new(settings)
    }
}

/// A pattern's place among those that fit the same address: the greater is the less specific.
fn rank(pattern: &str) -> Vec<(u8, &str)> {
    let kind = |word| match word {
        "#" => 2,
        "*" => 1,
        _ => 0,
    };
    let mut words: Vec<(u8, &str)> = pattern.split('.').map(|word| (kind(word), word)).collect();
    // "a" is more specific than "a.#", which has a wildcard where the other has ended.
    words.push((0, ""));
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attempts(count: u32) -> Said {
        Said { delivery_attempts_max: Some(count), ..Said::default() }
    }

    #[test]
    fn the_most_specific_rule_wins_knob_by_knob_in_any_order() {
        let said = [
            ("#", Said { expiry_address: Some("E".to_owned()), ..attempts(1) }),
            ("orders.#", attempts(2)),
            ("orders.*", attempts(3)),
            ("*.eu", attempts(7)),
            ("orders.eu", Said { dead_letter_address: Some("D".to_owned()), ..Said::default() }),
        ];
        for turn in 0..said.len() {
            let mut settings = Settings::default();
            for at in 0..said.len() {
                let (pattern, said) = &said[(at + turn) % said.len()];
                settings.add(pattern, said.clone()).unwrap();
            }
            let of = |address: &str| {
                let found = settings.of(address);
                (
                    found.delivery_attempts_max,
                    found.expiry_address.clone(),
                    found.dead_letter_address.clone(),
                )
            };
            assert_eq!(of("orders.eu"), (3, "E".to_owned(), "D".to_owned()));
            assert_eq!(of("orders.us.east"), (2, "E".to_owned(), "DLQ".to_owned()));
            assert_eq!(of("parts.eu").0, 7);
            assert_eq!(of("orders").0, 2);
            assert_eq!(of("else").0, 1);
        }
    }

    #[test]
    fn what_is_no_pattern_or_is_there_twice_is_refused() {
        let mut settings = Settings::default();
        assert!(settings.add("a*", Said::default()).is_err());
        settings.add("a", Said::default()).unwrap();
        assert!(settings.add("a", Said::default()).is_err());
    }

    #[test]
    fn the_delay_grows_to_its_bound() {
        let settings = AddressSettings {
            redelivery_delay: Duration::from_millis(100),
            redelivery_multiplier_percent: 200,
            redelivery_delay_max: Duration::from_secs(1),
            ..AddressSettings::default()
        };
        let delays: Vec<u128> =
            (1..=6).map(|failures| settings.delay_after(failures).as_millis()).collect();
        assert_eq!(delays, [100, 200, 400, 800, 1000, 1000]);
        assert_eq!(settings.delay_after(u32::MAX).as_millis(), 1000);
        assert_eq!(AddressSettings::default().delay_after(5), Duration::ZERO);
    }
}
