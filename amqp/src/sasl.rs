//! The bodies of SASL frames [5.3.3].
//!
//! ```text
//!  server: mechanisms 0x40              challenge 0x42               outcome 0x44
//!  client:             init 0x41                      response 0x43
//! ```
//!
//! A body that is empty, unknown or has bytes after it is a decode error: there are no heartbeats
//! before authentication. What the mechanisms exchange is never shown for debugging: it may be a
//! password.

use crate::codec::{Composite, DecodeError, Fault, Reader, Writer, read_code};
use crate::composites::code_of;
pub use crate::composites::{SaslChallenge, SaslInit, SaslMechanisms, SaslOutcome, SaslResponse};
pub use crate::definitions::SaslCode;

/// The body of a SASL frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "each variant is documented as a composite type")]
pub enum SaslBody<'a> {
    Mechanisms(SaslMechanisms<'a>),
    Init(SaslInit<'a>),
    Challenge(SaslChallenge<'a>),
    Response(SaslResponse<'a>),
    Outcome(SaslOutcome<'a>),
}

/// How a client may log in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Mechanism {
    /// By the certificate that it showed below (RFC 4422, appendix A).
    External = 1,
    /// By a proof that it knows the password, with SHA-512 (RFC 5802).
    ScramSha512 = 2,
    /// By a proof that it knows the password, with SHA-256 (RFC 7677).
    ScramSha256 = 4,
    /// By the password itself (RFC 4616).
    Plain = 8,
    /// As nobody (RFC 4505).
    Anonymous = 16,
}

impl Mechanism {
    /// Every mechanism, the strongest first, as they are offered.
    pub const ALL: [Self; 5] =
        [Self::External, Self::ScramSha512, Self::ScramSha256, Self::Plain, Self::Anonymous];

    /// Its registered name.
    pub fn name(self) -> &'static str {
        match self {
            Self::External => "EXTERNAL",
            Self::ScramSha512 => "SCRAM-SHA-512",
            Self::ScramSha256 => "SCRAM-SHA-256",
            Self::Plain => "PLAIN",
            Self::Anonymous => "ANONYMOUS",
        }
    }
}

/// Some mechanisms.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mechanisms(u8);

impl Mechanisms {
    /// None.
    pub const NONE: Self = Self(0);

    /// ANONYMOUS alone.
    pub const ANONYMOUS: Self = Self(Mechanism::Anonymous as u8);

    /// This one too, if so.
    #[must_use]
    pub const fn with(self, mechanism: Mechanism, offered: bool) -> Self {
        if offered { Self(self.0 | mechanism as u8) } else { self }
    }

    /// Whether this one is among them.
    pub const fn has(self, mechanism: Mechanism) -> bool {
        self.0 & mechanism as u8 != 0
    }

    /// Those among them, the strongest first.
    pub fn iter(self) -> impl Iterator<Item = Mechanism> {
        Mechanism::ALL.into_iter().filter(move |mechanism| self.has(*mechanism))
    }
}

const MECHANISMS: u64 = SaslMechanisms::SPEC.code;
const INIT: u64 = SaslInit::SPEC.code;
const CHALLENGE: u64 = SaslChallenge::SPEC.code;
const RESPONSE: u64 = SaslResponse::SPEC.code;
const OUTCOME: u64 = SaslOutcome::SPEC.code;

impl<'a> SaslBody<'a> {
    /// Decodes the body of a SASL frame.
    ///
    /// # Errors
    /// Where it is malformed or unknown.
    pub fn decode(body: &'a [u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(body);
        let decoded = match read_code(&mut reader, code_of)? {
            MECHANISMS => Self::Mechanisms(SaslMechanisms::read_list(&mut reader)?),
            INIT => Self::Init(SaslInit::read_list(&mut reader)?),
            CHALLENGE => Self::Challenge(SaslChallenge::read_list(&mut reader)?),
            RESPONSE => Self::Response(SaslResponse::read_list(&mut reader)?),
            OUTCOME => Self::Outcome(SaslOutcome::read_list(&mut reader)?),
            _ => return Err(Reader::new(body).fail(Fault::UnexpectedDescriptor)),
        };
        if !reader.is_empty() {
            return Err(reader.fail(Fault::TrailingBytes));
        }
        Ok(decoded)
    }

    /// Appends the body.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let writer = &mut Writer::new(out);
        match self {
            Self::Mechanisms(mechanisms) => mechanisms.write_described(writer),
            Self::Init(init) => init.write_described(writer),
            Self::Challenge(challenge) => challenge.write_described(writer),
            Self::Response(response) => response.write_described(writer),
            Self::Outcome(outcome) => outcome.write_described(writer),
        }
    }
}
