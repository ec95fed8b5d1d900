//! SCRAM's server (RFC 5802, RFC 7677): a client proves that it knows a password, unsaid.
//!
//! ```text
//!   client-first   n,,n=USER,r=NONCE           ──▶ begin   ──▶ r=NONCE+OURS,s=SALT,i=ROUNDS
//!   client-final   c=biws,r=NONCE+OURS,p=PROOF ──▶ finish  ──▶ v=SIGNATURE: we know it too
//!
//!   StoredKey = H(ClientKey)   ClientKey = PROOF xor HMAC(StoredKey, all that was said)
//! ```
//! What is stored (`SCRAM-SHA-256$ROUNDS:SALT$STOREDKEY:SERVERKEY`, PostgreSQL's form) lets nobody
//! log in. There is no channel binding: a client that insists on it is refused.
//!
//! Invariants: comparisons take the same time whatever differs; a user that is not there gets a
//! salt that is always the same for that name, and a challenge like that of one who is.
//!
//! Failure: whatever is malformed is none: the log-in is refused.

use std::fmt;
use std::num::NonZeroU32;
use std::str::FromStr;

use amqp::sasl::Mechanism;
use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::{digest, hmac, pbkdf2};

use super::base64;

/// Rounds of a hash that we make: some milliseconds for a client, once a connection.
const ROUNDS: u32 = 32_768;

/// The fewest rounds that a configured hash may have (RFC 7677, section 4).
const ROUNDS_MIN: u32 = 4_096;

/// The most: a client makes them, and so do we where it sends its password.
const ROUNDS_MAX: u32 = 1_000_000;

const SALT_BYTES: usize = 16;

/// The longest salt that a configured hash may have.
const SALT_BYTES_MAX: usize = 48;

/// A message is not longer; a name is at most 255 bytes, escaped thrice as many.
const MESSAGE_BYTES_MAX: usize = 2_048;

/// Which hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Hash {
    Sha256,
    Sha512,
}

impl Hash {
    pub(crate) fn mechanism(self) -> Mechanism {
        match self {
            Self::Sha256 => Mechanism::ScramSha256,
            Self::Sha512 => Mechanism::ScramSha512,
        }
    }

    fn of(mechanism: Mechanism) -> Option<Self> {
        match mechanism {
            Mechanism::ScramSha256 => Some(Self::Sha256),
            Mechanism::ScramSha512 => Some(Self::Sha512),
            Mechanism::External | Mechanism::Plain | Mechanism::Anonymous => None,
        }
    }

    fn digest(self) -> &'static digest::Algorithm {
        match self {
            Self::Sha256 => &digest::SHA256,
            Self::Sha512 => &digest::SHA512,
        }
    }

    fn hmac(self, key: &[u8], data: &[u8]) -> Vec<u8> {
        let algorithm = match self {
            Self::Sha256 => hmac::HMAC_SHA256,
            Self::Sha512 => hmac::HMAC_SHA512,
        };
        hmac::sign(&hmac::Key::new(algorithm, key), data).as_ref().to_vec()
    }

    fn salted(self, password: &[u8], salt: &[u8], rounds: NonZeroU32) -> Vec<u8> {
        let algorithm = match self {
            Self::Sha256 => pbkdf2::PBKDF2_HMAC_SHA256,
            Self::Sha512 => pbkdf2::PBKDF2_HMAC_SHA512,
        };
        let mut salted = vec![0; self.digest().output_len()];
        pbkdf2::derive(algorithm, rounds, salt, password, &mut salted);
        salted
    }
}

/// What is stored of a password.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Verifier {
    pub(crate) hash: Hash,
    pub(crate) rounds: NonZeroU32,
    salt: Vec<u8>,
    stored_key: Vec<u8>,
    server_key: Vec<u8>,
}

impl Verifier {
    /// Of a new password, which must be printable ASCII: RFC 5802 wants others prepared (SASLprep),
    /// which is not built.
    pub(crate) fn make(hash: Hash, password: &str) -> Result<Self, String> {
        if !password.bytes().all(|byte| (b' '..=b'~').contains(&byte)) {
            return Err("a password for SCRAM must be printable ASCII here".to_owned());
        }
        let mut salt = vec![0; SALT_BYTES];
        getrandom::fill(&mut salt).map_err(|error| format!("no randomness: {error}"))?;
        let rounds = NonZeroU32::new(ROUNDS).expect("not zero");
        Ok(Self::of(hash, password.as_bytes(), salt, rounds))
    }

    fn of(hash: Hash, password: &[u8], salt: Vec<u8>, rounds: NonZeroU32) -> Self {
        let salted = hash.salted(password, &salt, rounds);
        let client_key = hash.hmac(&salted, b"Client Key");
        let stored_key = digest::digest(hash.digest(), &client_key).as_ref().to_vec();
        let server_key = hash.hmac(&salted, b"Server Key");
        Self { hash, rounds, salt, stored_key, server_key }
    }

    /// Of nobody, and like one of these: `secret` chooses it and makes the salt, so that a name
    /// gets the same answer each time. None where there is none to be like.
    pub(crate) fn decoy(all: &[&Self], name: &str, secret: &[u8]) -> Option<Self> {
        let drawn = Hash::Sha512.hmac(secret, name.as_bytes());
        let (choice, salt) = drawn.split_at(8);
        let choice = u64::from_be_bytes(choice.try_into().ok()?);
        let like = all.get(usize::try_from(choice % all.len().max(1) as u64).ok()?)?;
        let (hash, rounds) = (like.hash, like.rounds);
        let stored_key = hash.hmac(secret, salt);
        let (salt, server_key) = (salt[..like.salt.len()].to_vec(), stored_key.clone());
        Some(Self { hash, rounds, salt, stored_key, server_key })
    }

    /// Whether this is the password, where a client says it.
    pub(crate) fn matches(&self, password: &[u8]) -> bool {
        let said = Self::of(self.hash, password, self.salt.clone(), self.rounds);
        verify_slices_are_equal(&said.stored_key, &self.stored_key).is_ok()
    }
}

impl FromStr for Verifier {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = |why: &str| format!("a SCRAM password-hash is not sound: {why}");
        let (hash, rest) = match text.split_once('$') {
            Some(("SCRAM-SHA-256", rest)) => (Hash::Sha256, rest),
            Some(("SCRAM-SHA-512", rest)) => (Hash::Sha512, rest),
            Some(_) | None => return Err(wrong("it is of no known mechanism")),
        };
        let parts = || {
            let (head, keys) = rest.split_once('$')?;
            let (rounds, salt) = head.split_once(':')?;
            let (stored_key, server_key) = keys.split_once(':')?;
            let rounds = rounds.parse().ok()?;
            let keys = (base64::decode(stored_key)?, base64::decode(server_key)?);
            Some((rounds, base64::decode(salt)?, keys))
        };
        let Some((rounds, salt, (stored_key, server_key))) = parts() else {
            return Err(wrong("write SCRAM-SHA-…$ROUNDS:SALT$STOREDKEY:SERVERKEY"));
        };
        let length = hash.digest().output_len();
        if stored_key.len() != length || server_key.len() != length {
            return Err(wrong("a key has a wrong length"));
        }
        if salt.is_empty() || salt.len() > SALT_BYTES_MAX {
            return Err(wrong("its salt has 1 to 48 bytes"));
        }
        match NonZeroU32::new(rounds).filter(|n| (ROUNDS_MIN..=ROUNDS_MAX).contains(&n.get())) {
            Some(rounds) => Ok(Self { hash, rounds, salt, stored_key, server_key }),
            None => Err(wrong("its rounds are out of bounds, 4096 to 1000000")),
        }
    }
}

impl fmt::Display for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}${}:{}${}:{}",
            self.hash.mechanism().name(),
            self.rounds,
            base64::encode(&self.salt),
            base64::encode(&self.stored_key),
            base64::encode(&self.server_key)
        )
    }
}

/// A secret that is the same for the same hashes: at the next start, and on the other broker of a
/// pair, names that are not there get the same salts.
pub(crate) fn secret_of<'a>(hashes: impl Iterator<Item = &'a Verifier>) -> Vec<u8> {
    let mut of_all = digest::Context::new(&digest::SHA512);
    hashes.for_each(|verifier| of_all.update(&verifier.server_key));
    of_all.finish().as_ref().to_vec()
}

/// A client's first message.
pub(crate) struct First<'a> {
    pub(crate) hash: Hash,
    pub(crate) user: String,
    bare: &'a str,
    nonce: &'a str,
    header: &'a str,
}

impl<'a> First<'a> {
    /// Reads it; none where it is malformed, or wants what is not built.
    pub(crate) fn read(mechanism: Mechanism, message: &'a [u8]) -> Option<Self> {
        let hash = Hash::of(mechanism)?;
        let message = Some(message).filter(|message| message.len() <= MESSAGE_BYTES_MAX)?;
        let message = std::str::from_utf8(message).ok()?;
        let mut parts = message.splitn(3, ',');
        let (binding, authzid) = (parts.next()?, parts.next()?);
        let bare = parts.next()?;
        if !matches!(binding, "n" | "y") {
            return None;
        }
        let mut fields = bare.split(',');
        let user = unescape(fields.next()?.strip_prefix("n=")?)?;
        let nonce = fields.next()?.strip_prefix("r=").filter(|nonce| !nonce.is_empty())?;
        let acts_as = match authzid.strip_prefix("a=") {
            Some(other) => unescape(other)?,
            None if authzid.is_empty() => user.clone(),
            None => return None,
        };
        let header = &message[..message.len() - bare.len()];
        (acts_as == user).then_some(Self { hash, user, bare, nonce, header })
    }
}

/// `=2C` is a comma, `=3D` an equals sign, and nothing else is escaped.
fn unescape(name: &str) -> Option<String> {
    let mut pieces = name.split('=');
    let mut plain = pieces.next()?.to_owned();
    for piece in pieces {
        let (sign, rest) = match (piece.strip_prefix("2C"), piece.strip_prefix("3D")) {
            (Some(rest), _) => (',', rest),
            (None, Some(rest)) => ('=', rest),
            (None, None) => return None,
        };
        plain.push(sign);
        plain.push_str(rest);
    }
    Some(plain).filter(|name| !name.is_empty())
}

/// A log-in between its two messages.
pub(crate) struct Conversation {
    pub(crate) user: String,
    verifier: Verifier,
    /// Nobody has this name, whatever comes.
    known: bool,
    /// `c=`: the first message's header.
    binding: String,
    /// Both nonces.
    nonce: String,
    /// All that was said but the proof.
    said: String,
}

impl fmt::Debug for Conversation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Conversation(…)")
    }
}

impl Conversation {
    /// Begins, with the challenge. `nonce` is ours: random and printable.
    pub(crate) fn begin(
        first: &First<'_>,
        verifier: Verifier,
        known: bool,
        nonce: &str,
    ) -> (Self, Vec<u8>) {
        let nonce = format!("{}{nonce}", first.nonce);
        let salt = base64::encode(&verifier.salt);
        let challenge = format!("r={nonce},s={salt},i={}", verifier.rounds);
        let said = format!("{},{challenge}", first.bare);
        let binding = base64::encode(first.header.as_bytes());
        let user = first.user.clone();
        (Self { user, verifier, known, binding, nonce, said }, challenge.into_bytes())
    }

    /// The client's proof: our last word, or none where it proves nothing.
    pub(crate) fn finish(&self, message: &[u8]) -> Option<Vec<u8>> {
        let message = Some(message).filter(|message| message.len() <= MESSAGE_BYTES_MAX)?;
        let message = std::str::from_utf8(message).ok()?;
        let (without_proof, proof) = message.rsplit_once(",p=")?;
        let proof = base64::decode(proof)?;
        let mut fields = without_proof.split(',');
        let bound = fields.next()?.strip_prefix("c=")? == self.binding;
        let fresh = fields.next()?.strip_prefix("r=")? == self.nonce;
        // An extension that must be understood, and is not (RFC 5802, section 5.1).
        let plain = !fields.any(|field| field.starts_with("m="));
        let all = format!("{},{without_proof}", self.said);
        let Verifier { hash, stored_key, server_key, .. } = &self.verifier;
        let signature = hash.hmac(stored_key, all.as_bytes());
        if proof.len() != signature.len() {
            return None;
        }
        let client_key: Vec<u8> = proof.iter().zip(&signature).map(|(a, b)| a ^ b).collect();
        let stored = digest::digest(hash.digest(), &client_key);
        let proved = verify_slices_are_equal(stored.as_ref(), stored_key).is_ok();
        let signature = base64::encode(&hash.hmac(server_key, all.as_bytes()));
        let accepted = proved && bound && fresh && plain && self.known;
        accepted.then(|| format!("v={signature}").into_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 7677, section 3.
    #[test]
    fn the_example_of_the_rfc() {
        let salt = base64::decode("W22ZaJ0SNY7soEsUEjb6gQ==").expect("base64");
        let rounds = NonZeroU32::new(4096).expect("not zero");
        let verifier = Verifier::of(Hash::Sha256, b"pencil", salt, rounds);
        let first = b"n,,n=user,r=rOprNGfwEbeRWgbNEkqO";
        let first = First::read(Mechanism::ScramSha256, first).expect("sound");
        let ours = "%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0";
        let (conversation, challenge) = Conversation::begin(&first, verifier, true, ours);
        assert_eq!(
            String::from_utf8_lossy(&challenge),
            "r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096"
        );
        let last = b"c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,\
                     p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=";
        let word = conversation.finish(last).expect("proved");
        assert_eq!(word, b"v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=");
        let mut wrong = last.to_vec();
        wrong[60] ^= 1;
        assert_eq!(conversation.finish(&wrong), None);
    }

    #[test]
    fn a_stored_hash_reads_itself_and_nothing_else() {
        for hash in [Hash::Sha256, Hash::Sha512] {
            let made = Verifier::make(hash, "secret").expect("made");
            let text = made.to_string();
            let read: Verifier = text.parse().expect("its own form");
            assert!(read == made && read.matches(b"secret") && !read.matches(b"Secret"));
            for wrong in [text.replace(":", ";"), text.replace("32768", "1"), text[..40].into()] {
                assert!(wrong.parse::<Verifier>().is_err(), "{wrong}");
            }
        }
        assert!(Verifier::make(Hash::Sha256, "gehéim").is_err());
    }

    #[test]
    fn messages_that_are_not_sound_are_none() {
        for wrong in [
            "",
            "n,,",
            "p=tls-unique,,n=a,r=x",
            "n,a=other,n=a,r=x",
            "n,,n=a=2x,r=x",
            "n,,n=,r=x",
            "n,,n=a,r=",
            "n,,m=ext,n=a,r=x",
        ] {
            assert!(First::read(Mechanism::ScramSha256, wrong.as_bytes()).is_none(), "{wrong}");
        }
        let first = First::read(Mechanism::ScramSha512, b"y,a=a=2Cb,n=a=2Cb,r=x").expect("sound");
        assert_eq!(first.user, "a,b");
    }

    /// Whatever a peer says, it is read or it is none.
    #[test]
    fn broken_messages_do_no_harm() {
        let verifier = Verifier::make(Hash::Sha256, "secret").expect("made");
        let first = ["n", ",", ",", "n=", "a", ",", "r=", "x"];
        let last = ["c=", "biws", ",", "r=", "xours", "", ",p=", "AAAA"];
        let parts = ["n", "y", ",", "=", "a=", "n=", "r=", "c=", ",p=", "m=", "biws", "=2C", "é"];
        let mut state = 7_u64;
        let mut draw = |below: usize| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695);
            (state >> 33) as usize % below
        };
        let mut broken = |sound: [&str; 8]| {
            let mut part = |part| if draw(6) == 0 { parts[draw(parts.len())] } else { part };
            let mut bytes = sound.map(&mut part).concat().into_bytes();
            if draw(4) == 0 {
                let at = draw(bytes.len());
                bytes[at] = draw(256) as u8;
            }
            bytes
        };
        let mut read = 0;
        for _ in 0..10_000 {
            if let Some(first) = First::read(Mechanism::ScramSha256, &broken(first)) {
                read += 1;
                let (begun, _) = Conversation::begin(&first, verifier.clone(), true, "ours");
                assert_eq!(begun.finish(&broken(last)), None);
            }
        }
        assert!((1_000..9_000).contains(&read), "{read} were sound");
    }
}
