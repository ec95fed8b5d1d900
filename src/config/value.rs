//! The values that knobs take: each is read from a flag or from TOML by one parser, and shown by
//! one `Display` that the parser reads again.
//!
//! ```text
//!   Bytes     67108864 | "64 MiB"           Share     "25%" | "2 GiB"
//!   Span      "5s" | "200ms" | "2m" | "0"   Patience  "forever" | a Span
//!   Count     "auto" | 1 ..= 256            choices   one word of a list
//! ```
//! Integers are bytes where bytes are meant; a duration always names its unit (but for 0), since
//! `5` is read as seconds by half the world and as milliseconds by the other.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use serde::de::{Deserialize, Deserializer, Error as _, Visitor};

/// A size in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Bytes(pub(crate) u64);

const UNITS: [(&str, u64); 4] = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10), ("B", 1)];

impl Bytes {
    /// So many kibibytes.
    #[cfg(test)]
    const fn kib(count: u64) -> Self {
        Self(count << 10)
    }

    /// So many mebibytes.
    #[cfg(test)]
    const fn mib(count: u64) -> Self {
        Self(count << 20)
    }
}

impl FromStr for Bytes {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let text = text.trim();
        let unit = UNITS.iter().find(|(unit, _)| text.ends_with(unit));
        let (digits, unit) = match unit {
            Some((name, bytes)) => (text[..text.len() - name.len()].trim_end(), *bytes),
            None => (text, 1),
        };
        digits
            .parse::<u64>()
            .ok()
            .and_then(|count| count.checked_mul(unit))
            .map(Self)
            .ok_or_else(|| format!("`{text}` is no size: write bytes, or 512 KiB, 64 MiB, 2 GiB"))
    }
}

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let exact =
            UNITS.iter().find(|(_, bytes)| self.0 >= *bytes && self.0.is_multiple_of(*bytes));
        match exact {
            Some((unit, bytes)) => write!(f, "{} {unit}", self.0 / bytes),
            None => write!(f, "{} B", self.0),
        }
    }
}

/// A size, or a part of what the machine has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Share {
    /// Per cent of the whole, 1 to 90.
    Percent(u8),
    /// So much.
    Bytes(Bytes),
}

impl Share {
    /// What it comes to, of `whole` bytes.
    pub(crate) fn of(self, whole: u64) -> u64 {
        match self {
            Self::Percent(percent) => whole / 100 * u64::from(percent),
            Self::Bytes(bytes) => bytes.0,
        }
    }
}

impl FromStr for Share {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let Some(percent) = text.trim().strip_suffix('%') else {
            return text.parse().map(Self::Bytes);
        };
        match percent.trim().parse() {
            Ok(percent @ 1..=90) => Ok(Self::Percent(percent)),
            Ok(_) | Err(_) => Err(format!("`{text}`: a share is 1% to 90%")),
        }
    }
}

impl fmt::Display for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Percent(percent) => write!(f, "{percent}%"),
            Self::Bytes(bytes) => bytes.fmt(f),
        }
    }
}

/// A length of time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Span(pub(crate) Duration);

impl Span {
    /// So many seconds.
    #[cfg(test)]
    pub(crate) const fn secs(count: u64) -> Self {
        Self(Duration::from_secs(count))
    }
}

impl FromStr for Span {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is no time: write 200ms, 5s or 2m");
        let text = text.trim();
        if text == "0" {
            return Ok(Self(Duration::ZERO));
        }
        let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
        let millis = match &text[digits.len()..] {
            "ms" => 1,
            "s" => 1_000,
            "m" => 60_000,
            _ => return Err(wrong()),
        };
        let count: u64 = digits.trim_end().parse().map_err(|_| wrong())?;
        count.checked_mul(millis).map(|ms| Self(Duration::from_millis(ms))).ok_or_else(wrong)
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let millis = self.0.as_millis();
        match millis {
            0 => f.write_str("0"),
            _ if millis.is_multiple_of(60_000) => write!(f, "{}m", millis / 60_000),
            _ if millis.is_multiple_of(1_000) => write!(f, "{}s", millis / 1_000),
            _ => write!(f, "{millis}ms"),
        }
    }
}

/// A factor, 1 to 100, in steps of a hundredth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Multiplier(u32);

impl Multiplier {
    /// In per cent.
    pub(crate) fn percent(self) -> u32 {
        self.0
    }
}

impl FromStr for Multiplier {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.trim().parse::<f64>() {
            Ok(factor) if (1.0..=100.0).contains(&factor) => Ok(Self((factor * 100.0) as u32)),
            Ok(_) | Err(_) => Err(format!("`{text}`: a multiplier is 1 to 100")),
        }
    }
}

/// How long to wait for something that may never come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Patience {
    /// Until it comes.
    Forever,
    /// So long; 0 fails at once.
    For(Span),
}

impl FromStr for Patience {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.trim() {
            "forever" => Ok(Self::Forever),
            span => span.parse().map(Self::For).map_err(|wrong| format!("{wrong}, or forever")),
        }
    }
}

impl fmt::Display for Patience {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Forever => f.write_str("forever"),
            Self::For(span) => span.fmt(f),
        }
    }
}

/// A path, shown as it was given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Directory(pub(crate) PathBuf);

impl FromStr for Directory {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.is_empty() {
            return Err("a directory has a name".to_owned());
        }
        Ok(Self(PathBuf::from(text)))
    }
}

impl fmt::Display for Directory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.display().fmt(f)
    }
}

/// A file, shown as it was given, or none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct OptionalFile(pub(crate) Option<PathBuf>);

impl FromStr for OptionalFile {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "" => Err("a file has a name; write none for no file".to_owned()),
            "none" => Ok(Self(None)),
            path => Ok(Self(Some(PathBuf::from(path)))),
        }
    }
}

impl fmt::Display for OptionalFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Some(path) => path.display().fmt(f),
            None => f.write_str("none"),
        }
    }
}

/// Where to listen, or not at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct OptionalListen(pub(crate) Option<SocketAddr>);

impl FromStr for OptionalListen {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.trim() {
            "off" => Ok(Self(None)),
            addr => addr
                .parse()
                .map(|addr| Self(Some(addr)))
                .map_err(|error| format!("`{text}`: {error}; write off, or an address and port")),
        }
    }
}

impl fmt::Display for OptionalListen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(addr) => addr.fmt(f),
            None => f.write_str("off"),
        }
    }
}

/// How many of something, or as many as fit the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Count {
    /// As many as the machine gives CPUs.
    Auto,
    /// So many.
    Just(u16),
}

/// More shards, and more threads, than the largest machine that we know needs.
pub(crate) const COUNT_MAX: u16 = 256;

impl FromStr for Count {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match (text.trim(), text.trim().parse()) {
            ("auto", _) => Ok(Self::Auto),
            (_, Ok(count @ 1..=COUNT_MAX)) => Ok(Self::Just(count)),
            (_, Ok(_) | Err(_)) => Err(format!("`{text}`: write auto, or 1 to {COUNT_MAX}")),
        }
    }
}

impl fmt::Display for Count {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Just(count) => count.fmt(f),
        }
    }
}

/// A message's priority, 0 to 9.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Priority(pub(crate) u8);

impl FromStr for Priority {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.trim().parse() {
            Ok(priority @ 0..=9) => Ok(Self(priority)),
            Ok(_) | Err(_) => Err(format!("`{text}`: a priority is 0 to 9")),
        }
    }
}

/// Declares an enum whose values are words, with its parser and its list.
macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident = $word:literal,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(crate) enum $name { $($(#[$vdoc])* $variant,)* }

        impl $name {
            /// Every word.
            pub(crate) const WORDS: &[&str] = &[$($word),*];
        }

        impl FromStr for $name {
            type Err = String;

            fn from_str(text: &str) -> Result<Self, String> {
                match text.trim() {
                    $($word => Ok(Self::$variant),)*
                    other => Err(format!("`{other}` is none of: {}", Self::WORDS.join(", "))),
                }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(match self { $(Self::$variant => $word),* })
            }
        }
    };
}

words! {
    /// When a message counts as accepted.
    Durability {
        /// In the journal's buffer.
        Async = "async",
        /// On the local disk.
        Sync = "sync",
        /// Level 1, and in the memory of every backup in the in-sync set.
        Replicated = "replicated",
        /// On the disk of every member of the in-sync set.
        ReplicatedSync = "replicated-sync",
    }
}

words! {
    /// What becomes of a message for a queue that is full.
    FullPolicy {
        /// It is rejected.
        Refuse = "refuse",
        /// Its producer gets no more credit.
        Block = "block",
        /// It is accepted and dropped.
        Drop = "drop",
    }
}

words! {
    /// What drives sockets and files.
    EngineChoice {
        /// The best that the machine allows.
        Auto = "auto",
        /// io_uring, or nothing.
        Uring = "uring",
        /// epoll, and threads that write.
        Epoll = "epoll",
    }
}

words! {
    /// The form of the log.
    LogFormat {
        /// For people.
        Text = "text",
        /// One JSON object a line.
        Json = "json",
    }
}

/// Reads any knob from TOML: an integer, a truth value or a string, by the type's own parser.
pub(super) fn scalar<'de, D, T>(deserializer: D) -> Result<Option<T>, D::Error>
where
    D: Deserializer<'de>,
    T: FromStr,
    T::Err: fmt::Display,
{
    let Scalar(text) = Scalar::deserialize(deserializer)?;
    text.parse().map(Some).map_err(D::Error::custom)
}

/// What TOML holds at a leaf, as the text that a flag would have.
struct Scalar(String);

impl<'de> Deserialize<'de> for Scalar {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Leaf;
        impl Visitor<'_> for Leaf {
            type Value = Scalar;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string, an integer or a truth value")
            }

            fn visit_bool<E>(self, value: bool) -> Result<Scalar, E> {
                Ok(Scalar(value.to_string()))
            }

            fn visit_i64<E>(self, value: i64) -> Result<Scalar, E> {
                Ok(Scalar(value.to_string()))
            }

            fn visit_f64<E>(self, value: f64) -> Result<Scalar, E> {
                Ok(Scalar(value.to_string()))
            }

            fn visit_str<E>(self, value: &str) -> Result<Scalar, E> {
                Ok(Scalar(value.to_owned()))
            }
        }
        deserializer.deserialize_any(Leaf)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round_trip<T: FromStr<Err = String> + fmt::Display>(texts: &[&str]) {
        for text in texts {
            let value = text.parse::<T>().unwrap_or_else(|wrong| panic!("{text}: {wrong}"));
            assert_eq!(value.to_string(), *text);
        }
    }

    #[test]
    fn what_is_shown_is_read_again() {
        round_trip::<Bytes>(&["0 B", "1 B", "1023 B", "1 KiB", "64 MiB", "3 GiB", "1025 KiB"]);
        round_trip::<Share>(&["1%", "90%", "2 GiB"]);
        round_trip::<Span>(&["0", "1ms", "5s", "1500ms", "2m"]);
        round_trip::<Patience>(&["forever", "0", "5s"]);
        round_trip::<Count>(&["auto", "1", "256"]);
        round_trip::<Durability>(Durability::WORDS);
        round_trip::<EngineChoice>(EngineChoice::WORDS);
        round_trip::<LogFormat>(LogFormat::WORDS);
    }

    #[test]
    fn sizes_take_plain_bytes_and_do_not_overflow() {
        assert_eq!("4096".parse(), Ok(Bytes::kib(4)));
        assert_eq!("64MiB".parse(), Ok(Bytes::mib(64)));
        for wrong in ["", "MiB", "-1", "1.5 GiB", "64 MB", "18446744073709551615 GiB"] {
            assert!(wrong.parse::<Bytes>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_time_without_unit_is_refused() {
        for wrong in ["5", "5h", "s", "", "99999999999999999999s", "18446744073709551615m"] {
            assert!(wrong.parse::<Span>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn shares_and_counts_have_bounds() {
        for wrong in ["0%", "91%", "300%", "%"] {
            assert!(wrong.parse::<Share>().is_err(), "{wrong}");
        }
        for wrong in ["0", "257", "many", "-1"] {
            assert!(wrong.parse::<Count>().is_err(), "{wrong}");
        }
    }
}
