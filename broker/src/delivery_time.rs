//! When a message is to be delivered, as its annotations say it.
//!
//! ```text
//!   x-opt-delivery-time    a number: milliseconds since 1970
//!   x-opt-delivery-delay   a number: milliseconds from now on     counts where there is no time
//! ```
//! The names are Artemis's, and so is the leniency: what is no number says nothing, and what is not
//! ahead of us is now. Any width of number will do, and a timestamp, which Artemis ignores.

use std::num::NonZeroU64;

use amqp::codec::{Map, Value};

/// What our open offers to clients that look for it before they delay a message, as Qpid JMS does.
pub const CAPABILITY: &str = "DELAYED_DELIVERY";

const TIME: &str = "x-opt-delivery-time";
const DELAY: &str = "x-opt-delivery-delay";

/// When a message with these annotations is to be delivered, milliseconds since 1970, if not now.
#[cold]
pub fn find(annotations: &Map<'_>, unix_ms: impl Fn() -> u64) -> Option<NonZeroU64> {
    let number = |key: &str| annotations.get(key).and_then(number);
    let delayed = || number(DELAY).map(|delay_ms| unix_ms().saturating_add(delay_ms));
    let at = number(TIME).or_else(delayed)?;
    NonZeroU64::new(at).filter(|at| at.get() > unix_ms())
}

/// A number; what is below zero counts as that.
fn number(value: Value<'_>) -> Option<u64> {
    match value {
        Value::Ulong(number) => Some(number),
        Value::Uint(number) => Some(number.into()),
        Value::Ushort(number) => Some(number.into()),
        Value::Ubyte(number) => Some(number.into()),
        Value::Long(number) | Value::Timestamp(number) => Some(number.max(0) as u64),
        Value::Int(number) => Some(number.max(0) as u64),
        Value::Short(number) => Some(number.max(0) as u64),
        Value::Byte(number) => Some(number.max(0) as u64),
        Value::Null
        | Value::Boolean(_)
        | Value::Float(_)
        | Value::Double(_)
        | Value::Decimal32(_)
        | Value::Decimal64(_)
        | Value::Decimal128(_)
        | Value::Char(_)
        | Value::Uuid(_)
        | Value::Binary(_)
        | Value::String(_)
        | Value::Symbol(_)
        | Value::List(_)
        | Value::Map(_)
        | Value::Array(_)
        | Value::Described(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use amqp::codec::{Reader, Symbol, Writer};

    use super::*;

    const NOW: u64 = 1_000;

    fn found(entries: &[(&str, Value<'_>)]) -> Option<u64> {
        let mut out = Vec::new();
        Writer::new(&mut out).map_with(|map| {
            for (key, value) in entries {
                map.element().symbol(Symbol::new(key));
                map.element().value(value);
            }
        });
        let map = Reader::new(&out).map().unwrap();
        find(&map, || NOW).map(NonZeroU64::get)
    }

    #[test]
    fn any_number_that_is_ahead_of_us_counts() {
        for time in [Value::Ulong(1_001), Value::Long(1_001), Value::Timestamp(1_001)] {
            assert_eq!(found(&[(TIME, time)]), Some(1_001));
        }
        for (time, at) in [(Value::Uint(1_001), 1_001), (Value::Ulong(u64::MAX), u64::MAX)] {
            assert_eq!(found(&[("k", Value::Null), (TIME, time)]), Some(at));
        }
        let delays = [Value::Ubyte(7), Value::Short(7), Value::Ulong(7), Value::Timestamp(7)];
        assert!(delays.into_iter().all(|delay| found(&[(DELAY, delay)]) == Some(NOW + 7)));
        assert_eq!(found(&[(DELAY, Value::Ulong(u64::MAX))]), Some(u64::MAX));
    }

    #[test]
    fn the_time_counts_where_there_are_both() {
        let delay = (DELAY, Value::Ulong(7));
        assert_eq!(found(&[delay, (TIME, Value::Long(5_000))]), Some(5_000));
        assert_eq!(found(&[delay, (TIME, Value::Long(5))]), None);
        assert_eq!(found(&[delay, (TIME, Value::Null)]), Some(NOW + 7));
    }

    #[test]
    fn what_is_past_or_no_number_is_now() {
        for time in [Value::Ulong(0), Value::Ulong(NOW), Value::Long(-1), Value::Int(i32::MIN)] {
            assert_eq!(found(&[(TIME, time)]), None);
        }
        for nothing in [Value::String("soon"), Value::Double(u64::MAX), Value::Boolean(true)] {
            assert_eq!(found(&[(TIME, nothing), (DELAY, nothing)]), None);
        }
        assert_eq!(found(&[(DELAY, Value::Ulong(0))]), None);
        assert_eq!(found(&[(DELAY, Value::Long(-7))]), None);
        assert_eq!(found(&[]), None);
    }
}
