//! What a configuration file says of addresses: `[[address]]` tables, each for a pattern.
//!
//! ```text
//!   [[address]]
//!   match = "orders.#"              ─▶ broker::settings: the most specific pattern that says
//!   max-delivery-attempts = 5          something of a knob wins, knob by knob
//! ```
//! Each knob is declared once, here; the reference page and the schema come from the same place.
//!
//! Failure: a pattern that is none, or is there twice, and a value out of its bounds, are refused
//! with the pattern and the key.

use broker::settings::{self, Said, Settings};
use journal::Level;
use serde_json::{Value, json};

use super::value::{self, Bytes, Durability, FullPolicy, Multiplier, Priority, Span};

/// What the documentation says of an address's knob.
pub(crate) struct AddressKnob {
    pub(super) key: &'static str,
    pub(super) what: &'static str,
    pub(super) default: &'static str,
    pub(super) values: &'static str,
}

/// Declares the knobs of an address: what a table may say, and the list for the page.
macro_rules! address_knobs {
    ($(
        $key:literal $field:ident: $type:ty = $default:literal, $values:literal; $what:literal;
    )*) => {
        /// One `[[address]]` table.
        #[derive(Clone, Debug, serde::Deserialize)]
        #[serde(deny_unknown_fields)]
        pub(crate) struct AddressRule {
            #[serde(rename = "match")]
            pattern: String,
            $(
                #[serde(rename = $key, default, deserialize_with = "value::scalar")]
                $field: Option<$type>,
            )*
        }

        /// Every knob, for the reference page and the schema.
        pub(crate) const ADDRESS_KNOBS: &[AddressKnob] = &[$(AddressKnob {
            key: $key, what: $what, default: $default, values: $values,
        }),*];
    };
}

address_knobs! {
    "durability" durability: Durability =
        "that of the broker", "async, sync, replicated, replicated-sync";
        "When a message counts as accepted, in queues created from now on";
    "dead-letter-address" dead_letter_address: String = "DLQ", "a queue, or empty: dropped";
        "Where messages go that were rejected, or failed too often";
    "expiry-address" expiry_address: String = "ExpiryQueue", "a queue, or empty: dropped";
        "Where messages go whose time is over";
    "max-delivery-attempts" delivery_attempts_max: u32 = "10", "a number; 0: no limit";
        "Failed deliveries after which a message is a dead letter";
    "redelivery-delay" redelivery_delay: Span = "0", "a time";
        "How long a message waits after its first failed delivery";
    "redelivery-multiplier" redelivery_multiplier: Multiplier = "1", "1 to 100";
        "By what the delay grows with each further failure";
    "redelivery-delay-max" redelivery_delay_max: Span = "1m", "a time";
        "The longest that the delay gets";
    "max-messages" messages_max: u64 = "0", "a number; 0: no limit";
        "Messages that a queue holds before it is full";
    "max-bytes" bytes_max: Bytes = "0", "a size; 0: no limit";
        "Bytes of messages that a queue holds before it is full";
    "full-policy" full_policy: FullPolicy = "block", "refuse, block, drop";
        "What a queue that is full does with more messages: reject them, give producers no more \
         credit, or accept and drop them";
    "auto-create" auto_create: bool = "true", "true, false";
        "Whether a queue is created when a client asks for it";
    "auto-delete-after" auto_delete_after: Span = "0", "a time; 0: never";
        "How long a queue without messages stays that no client is attached to";
    "exclusive-consumer" exclusive_consumer: bool = "false", "true, false";
        "The consumer that came first gets everything, until it leaves";
    "max-consumers" consumers_max: u32 = "0", "a number; 0: no limit";
        "Consumers that a queue has at once; browsers are not counted";
    "default-priority" priority_default: Priority = "4", "0 to 9";
        "The priority of messages that state none";
    "duplicate-ids" duplicate_ids: u32 = "20000", "0 to 1000000";
        "Ids of messages that are remembered, so that none is stored twice; 0: none";
}

impl AddressRule {
    /// The level that its addresses have, if it says one, and what it fits.
    pub(super) fn durability(&self) -> Option<(&str, Durability)> {
        self.durability.map(|durability| (self.pattern.as_str(), durability))
    }

    fn said(&self) -> Said {
        Said {
            level: self.durability.map(|durability| {
                Some(match durability {
                    Durability::Async => Level::Async,
                    Durability::Sync => Level::Sync,
                    Durability::Replicated => Level::Replicated,
                    Durability::ReplicatedSync => Level::ReplicatedSync,
                })
            }),
            dead_letter_address: self.dead_letter_address.clone(),
            expiry_address: self.expiry_address.clone(),
            delivery_attempts_max: self.delivery_attempts_max,
            redelivery_delay: self.redelivery_delay.map(|span| span.0),
            redelivery_multiplier_percent: self.redelivery_multiplier.map(|by| by.percent()),
            redelivery_delay_max: self.redelivery_delay_max.map(|span| span.0),
            messages_max: self.messages_max,
            bytes_max: self.bytes_max.map(|bytes| bytes.0),
            full_policy: self.full_policy.map(|policy| match policy {
                FullPolicy::Refuse => settings::FullPolicy::Refuse,
                FullPolicy::Block => settings::FullPolicy::Block,
                FullPolicy::Drop => settings::FullPolicy::Drop,
            }),
            auto_create: self.auto_create,
            auto_delete_after: self.auto_delete_after.map(|span| span.0),
            exclusive_consumer: self.exclusive_consumer,
            consumers_max: self.consumers_max,
            priority_default: self.priority_default.map(|priority| priority.0),
            duplicate_ids: self.duplicate_ids,
        }
    }

    fn check(&self) -> Result<(), String> {
        let wrong = |what: String| Err(format!("address '{}': {what}", self.pattern));
        if let Some(count @ 1_000_001..) = self.duplicate_ids {
            return wrong(format!("duplicate-ids is {count}, but must lie between 0 and 1000000"));
        }
        for name in [&self.dead_letter_address, &self.expiry_address].into_iter().flatten() {
            if !name.is_empty() && broker::catalogue::queue_name(name) != Ok(name) {
                return wrong(format!("'{name}' is not the name of a queue"));
            }
        }
        Ok(())
    }
}

/// The settings that these tables make.
pub(crate) fn settings(rules: &[AddressRule]) -> Result<Settings, String> {
    let mut settings = Settings::default();
    for rule in rules {
        rule.check()?;
        settings.add(&rule.pattern, rule.said()).map_err(|what| format!("address: {what}"))?;
    }
    Ok(settings)
}

/// The section of the reference page.
#[cfg(test)]
pub(super) fn page() -> String {
    let mut page = String::from(
        "\n## Addresses\n\n\
         An `[[address]]` table says what holds for the queues whose names its pattern fits.\n\
         Words are what stands between dots; `*` is any word, and `#`, as the last, any number\n\
         of them.\n\
         Each knob comes from the most specific pattern that names it. See\n\
         [addresses](addresses.md) and [dead letters](dead-letters.md).\n\n\
         ```toml\n\
         [[address]]\n\
         match = \"orders.#\"\n\
         max-delivery-attempts = 5\n\
         redelivery-delay = \"1s\"\n\
         redelivery-multiplier = 2\n\
         ```\n\n\
         | key | default | values | what it is |\n\
         |---|---|---|---|\n\
         | `match` | | a pattern | Which addresses. |\n",
    );
    for AddressKnob { key, what, default, values } in ADDRESS_KNOBS {
        page.push_str(&format!("| `{key}` | `{default}` | {values} | {what}. |\n"));
    }
    page
}

/// The schema of the tables.
pub(super) fn schema() -> Value {
    let mut properties = serde_json::Map::new();
    properties.insert("match".to_owned(), json!({ "type": "string" }));
    for AddressKnob { key, what, default, values } in ADDRESS_KNOBS {
        let description = format!("{what}. Values: {values}. Default: {default}.");
        let types = ["string", "number", "boolean"];
        properties.insert((*key).to_owned(), json!({ "description": description, "type": types }));
    }
    json!({
        "description": "What holds for the addresses that a pattern fits.",
        "type": "array",
        "items": {
            "type": "object",
            "additionalProperties": false,
            "required": ["match"],
            "properties": properties,
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(serde::Deserialize)]
    struct File {
        address: Vec<AddressRule>,
    }

    fn parse(text: &str) -> Result<Settings, String> {
        let file: File = toml::from_str(text).map_err(|error| error.to_string())?;
        settings(&file.address)
    }

    #[test]
    fn a_table_says_what_holds_for_its_pattern() {
        let settings = parse(
            "[[address]]\nmatch = 'orders.#'\nmax-delivery-attempts = 3\nredelivery-delay = '2s'\n\
             redelivery-multiplier = 1.5\ndead-letter-address = 'orders.dead'\n\
             durability = 'async'\n[[address]]\nmatch = '#'\nexpiry-address = ''\n",
        )
        .unwrap();
        let of = settings.of("orders.eu");
        assert_eq!((of.delivery_attempts_max, of.level), (3, Some(Level::Async)));
        assert_eq!((of.redelivery_delay.as_secs(), of.redelivery_multiplier_percent), (2, 150));
        assert_eq!(
            (of.dead_letter_address.as_str(), of.expiry_address.as_str()),
            ("orders.dead", "")
        );
        assert_eq!(settings.of("else").delivery_attempts_max, 10);
        let settings = parse(
            "[[address]]\nmatch = 'a'\nmax-messages = 5\nmax-bytes = '1 MiB'\n\
             full-policy = 'drop'\nauto-create = false\nexclusive-consumer = true\n\
             max-consumers = 2\ndefault-priority = 7\n",
        )
        .unwrap();
        let of = settings.of("a");
        assert_eq!((of.messages_max, of.bytes_max), (5, 1 << 20));
        assert_eq!(of.full_policy, settings::FullPolicy::Drop);
        assert_eq!((of.auto_create, of.exclusive_consumer), (false, true));
        assert_eq!((of.consumers_max, of.priority_default), (2, 7));
    }

    #[test]
    fn what_is_wrong_is_refused_with_its_pattern() {
        for wrong in [
            "match = 'a*'",
            "match = 'a'\nno-such-key = 1",
            "match = 'a'\ndead-letter-address = 'x*'",
            "match = 'a'\nredelivery-multiplier = 0.5",
            "match = 'a'\nfull-policy = 'page'",
            "match = 'a'\ndefault-priority = 10",
            "match = 'a'\nauto-create = 'perhaps'",
            "match = 'a'\nduplicate-ids = 1000001",
            "max-delivery-attempts = 1",
            "match = 'a'\n[[address]]\nmatch = 'a'",
        ] {
            assert!(parse(&format!("[[address]]\n{wrong}")).is_err(), "{wrong}");
        }
    }
}
