//! Some addresses: those that a pattern fits.
//!
//! ```text
//!   orders.eu    this address
//!   orders.*     one word more
//!   orders.#     any number of words more, also none
//!   #            every address
//! ```
//! A pattern is an address whose words, between dots, may be `*` (one word) or, as its last, `#`
//! (any number of words, also none). What is none is refused with the reason.

/// A pattern of addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern(String);

impl Pattern {
    /// Reads a pattern.
    ///
    /// # Errors
    /// Why it is none.
    pub fn parse(text: &str) -> Result<Self, String> {
        let wrong = |what: &str| Err(format!("the pattern '{text}': {what}"));
        if text.is_empty() || text.len() > crate::limits::ADDRESS_BYTES_MAX {
            return wrong("a pattern has 1 to 512 bytes");
        }
        let words: Vec<&str> = text.split('.').collect();
        for (at, word) in words.iter().enumerate() {
            let wild = matches!(*word, "*" | "#");
            if !wild && word.contains(['*', '#']) {
                return wrong("'*' and '#' stand for whole words");
            }
            if *word == "#" && at + 1 < words.len() {
                return wrong("'#' may only be the last word");
            }
        }
        Ok(Self(text.to_owned()))
    }

    /// As it was written.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether an address is one of these.
    pub fn fits(&self, address: &str) -> bool {
        let mut words = address.split('.');
        for wanted in self.0.split('.') {
            if wanted == "#" {
                return true;
            }
            match words.next() {
                Some(word) if wanted == "*" || wanted == word => {}
                Some(_) | None => return false,
            }
        }
        words.next().is_none()
    }

    /// Whether every address is one of these.
    pub fn is_everything(&self) -> bool {
        self.0 == "#"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_fit_whole_words() {
        let fits = |pattern: &str, address| Pattern::parse(pattern).expect("sound").fits(address);
        for (pattern, address) in [
            ("#", "a.b"),
            ("a", "a"),
            ("a.#", "a"),
            ("a.#", "a.b.c"),
            ("a.*", "a.b"),
            ("*.b", "a.b"),
            ("a.*.c", "a.b.c"),
        ] {
            assert!(fits(pattern, address), "{pattern} {address}");
        }
        for (pattern, address) in [
            ("a", "a.b"),
            ("a.*", "a"),
            ("a.*", "a.b.c"),
            ("a.b", "a"),
            ("a.#", "ab"),
            ("*", "a.b"),
        ] {
            assert!(!fits(pattern, address), "{pattern} {address}");
        }
    }

    #[test]
    fn what_is_no_pattern_is_refused() {
        for wrong in ["", "a*", "#.a", "a.b#", "a.#.b", &"a".repeat(513)] {
            assert!(Pattern::parse(wrong).is_err(), "{wrong}");
        }
    }
}
