//! A message that comes in parts: its head is looked over in the first, its body is checked as it
//! comes.
//!
//! ```text
//!   part 0   header … application-properties │ descriptor, size │ data ……
//!   part 1   …… data …… │ descriptor, size │ data ……            counted, not kept
//!   part n   …… data                                            nothing is owed at the end
//! ```
//! What is known afterwards is what [`check`](super::check) knows of the whole: that the sections
//! are those of a message, in order, and cover it. Kept between two parts are a count, and of an
//! opening that is cut in two its few bytes.
//!
//! Failure: a part that cannot be of a message is a decode error, whose place is counted from the
//! beginning of what was looked at then.

use super::{Section, Survey, next_section};
use crate::codec::{DecodeError, Fault, Reader, code};

/// Descriptor, format code and size of a body section; a descriptor may be a symbol.
const OPENING_BYTES_MAX: usize = 512;

/// How far a message has come.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    last: Option<Section>,
    /// Bytes of the last section that are still to come.
    owed: u64,
    /// The beginning of the next one, as long as it does not say its size.
    opening: Vec<u8>,
}

impl Progress {
    /// Looks the beginning of a message over. All sections before the body must be in it.
    ///
    /// # Errors
    /// As [`check`](super::check); [`Fault::Truncated`] also where the body has not begun.
    pub fn begin(part: &[u8]) -> Result<(Survey, Self), DecodeError> {
        let (mut survey, mut last) = (Survey::default(), None);
        let mut reader = Reader::new(part);
        loop {
            let (start, before) = (reader, last);
            if next_section(&mut reader, &mut last)? >= Section::Data {
                let mut progress = Self { last: before, ..Self::default() };
                progress.go_on(start.rest())?;
                return Ok((survey, progress));
            }
            let section = last.expect("one was read");
            survey.read(section, &mut reader)?;
        }
    }

    /// Takes the next part.
    ///
    /// # Errors
    /// It is not the next part of a message.
    pub fn go_on(&mut self, part: &[u8]) -> Result<(), DecodeError> {
        let mut rest = part;
        loop {
            let passed = self.owed.min(rest.len() as u64);
            self.owed -= passed;
            rest = &rest[passed as usize..];
            if rest.is_empty() {
                return Ok(());
            }
            // Only an opening that was cut is put together.
            let kept = self.opening.len();
            let taken = rest.len().min(OPENING_BYTES_MAX - kept);
            let opened = if kept == 0 {
                open(&rest[..taken], self.last)
            } else {
                self.opening.extend_from_slice(&rest[..taken]);
                open(&self.opening, self.last)
            };
            match opened {
                Ok((section, opened, owed)) => {
                    (self.last, self.owed) = (Some(section), owed);
                    self.opening.clear();
                    // What was kept alone was too short.
                    rest = &rest[opened - kept..];
                }
                Err(error) if error.fault != Fault::Truncated => return Err(error),
                Err(error) if kept + taken == OPENING_BYTES_MAX => return Err(error),
                Err(_) => {
                    if kept == 0 {
                        self.opening.extend_from_slice(rest);
                    }
                    return Ok(());
                }
            }
        }
    }

    /// The last part was taken: whether all of the message was there.
    ///
    /// # Errors
    /// It ends within a section.
    pub fn end(&self) -> Result<(), DecodeError> {
        if self.owed == 0 && self.opening.is_empty() {
            Ok(())
        } else {
            Err(Reader::new(&self.opening).fail(Fault::Truncated))
        }
    }
}

/// The body section that begins here, how long its opening is, and how long its data.
fn open(bytes: &[u8], last: Option<Section>) -> Result<(Section, usize, u64), DecodeError> {
    let (mut reader, mut last) = (Reader::new(bytes), last);
    let section = next_section(&mut reader, &mut last)?;
    let (start, code) = (reader, reader.peek()?);
    let fits = match section {
        Section::Data => matches!(code, code::VBIN8 | code::VBIN32),
        Section::Sequence => matches!(code, code::LIST0 | code::LIST8 | code::LIST32),
        Section::Footer => matches!(code, code::MAP8 | code::MAP32),
        Section::Value
        | Section::Header
        | Section::DeliveryAnnotations
        | Section::MessageAnnotations
        | Section::Properties
        | Section::ApplicationProperties => true,
    };
    if !fits {
        return Err(start.fail(Fault::UnexpectedType(code)));
    }
    let owed = reader.opening()?;
    // The size of a list or a map covers its count. What is in a value is not looked at.
    let count_bytes = match code {
        code::LIST8 | code::MAP8 => 1,
        code::LIST32 | code::MAP32 => 4,
        _ => 0,
    };
    if section != Section::Value && owed < count_bytes {
        return Err(start.fail(Fault::SizeMismatch));
    }
    Ok((section, reader.position(), owed))
}

#[cfg(test)]
mod tests {
    use super::super::check;
    use super::*;
    use crate::codec::DEPTH_MAX;

    const HEAD: &[u8] = b"\x00\x53\x70\xc0\x02\x01\x41\x00\x53\x73\xc0\x04\x01\xa1\x01i";
    const BODIES: [&[u8]; 5] = [
        b"\x00\x53\x75\xa0\x03abc\x00\x53\x75\xb0\x00\x00\x00\x02de\x00\x53\x78\xc1\x01\x00",
        b"\x00\xa3\x10amqp:data:binary\xa0\x09abcdefghi",
        b"\x00\x53\x76\x45\x00\x53\x76\xc0\x03\x01\x54\x07",
        b"\x00\x53\x77\x00\xa3\x01t\xa1\x05hello",
        b"\x00\x53\x77\x71\x00\x00\x00\x09",
    ];

    /// What comes of a message cut after the head at these places.
    fn progress(message: &[u8], cuts: &[usize]) -> Result<Survey, DecodeError> {
        let first = cuts.first().copied().unwrap_or(message.len());
        let (survey, mut progress) = Progress::begin(&message[..first])?;
        for (at, cut) in cuts.iter().enumerate() {
            let end = cuts.get(at + 1).copied().unwrap_or(message.len());
            progress.go_on(&message[*cut..end])?;
        }
        progress.end()?;
        Ok(survey)
    }

    #[test]
    fn wherever_a_message_is_cut_it_is_what_the_whole_is() {
        for body in BODIES {
            let message = [HEAD, body].concat();
            let whole = check(&message).expect("a message");
            let begun = (HEAD.len()..message.len())
                .find(|end| Progress::begin(&message[..*end]).is_ok())
                .expect("its body begins");
            for first in begun..message.len() {
                for second in first..message.len() {
                    let found = progress(&message, &[first, second]).expect("a message in parts");
                    assert_eq!(found, whole, "{first} {second}");
                }
                let cut = &message[..message.len() - 1];
                assert!(progress(cut, &[first.min(cut.len())]).is_err(), "{first}");
            }
        }
    }

    #[test]
    fn nothing_is_copied_of_sections_that_are_not_cut() {
        let data = b"\x00\x53\x75\xa0\x00".repeat(1000);
        let (_, mut progress) = Progress::begin(&data).expect("a message");
        progress.go_on(&data).expect("more of it");
        assert_eq!(progress.opening.capacity(), 0);
        progress.go_on(&data[..4998]).expect("up to within an opening");
        assert_eq!(progress.opening, data[4995..4998]);
        progress.go_on(&data[4998..]).expect("the rest of that");
        assert_eq!(progress.end(), Ok(()));
    }

    #[test]
    fn descriptors_are_as_deep_in_parts_as_in_the_whole() {
        let mut deepest = 0;
        for (outside, inside) in (0..=DEPTH_MAX).flat_map(|o| (0..=DEPTH_MAX).map(move |i| (o, i)))
        {
            let (outside, inside) = (outside as usize, inside as usize);
            let descriptor = [vec![0; inside], vec![code::TRUE; inside + 1]].concat();
            let value =
                [[0, code::TRUE].repeat(outside), vec![0], descriptor, vec![code::TRUE]].concat();
            let message = [b"\x00\x53\x77", &value[..]].concat();
            let whole = check(&message);
            let cut = message.len() - 1;
            assert_eq!(progress(&message, &[cut]).is_ok(), whole.is_ok(), "{outside} {inside}");
            deepest = deepest.max(if whole.is_ok() { outside + inside } else { 0 });
        }
        assert_eq!(deepest, DEPTH_MAX as usize - 1);
    }

    #[test]
    fn what_is_no_message_is_found_out_in_the_part_that_shows_it() {
        let body = BODIES[0];
        let message = [HEAD, body].concat();
        let (_, mut progress) = Progress::begin(&message).expect("a message");
        for wrong in [&b"\x00\x53\x75\xa0\x01a"[..], b"\x00\x53\x79\x40", b"x"] {
            assert!(progress.clone().go_on(wrong).is_err(), "{wrong:?}");
        }
        assert_eq!(progress.end(), Ok(()));
        progress.go_on(b"").expect("nothing");
        let text = b"\x00\x53\x75\xa1\x01a";
        assert!(Progress::begin(text).is_err(), "a string is no data");
        for no_count in [
            &b"\x00\x53\x76\xc0\x00"[..],
            b"\x00\x53\x76\xd0\x00\x00\x00\x03",
            b"\x00\x53\x78\xc1\x00",
            b"\x00\x53\x78\xd1\x00\x00\x00\x03",
        ] {
            let fault = Progress::begin(no_count).expect_err("its size leaves the count out").fault;
            assert_eq!(fault, Fault::SizeMismatch, "{no_count:?}");
            let message = [no_count, b"\x00\x53\x78\xc1\x01\x00"].concat();
            assert!(check(&message).is_err(), "as of the whole: {no_count:?}");
        }
        // The head has to be there, whole.
        for end in 0..HEAD.len() {
            let fault = Progress::begin(&message[..end]).expect_err("no body yet").fault;
            assert_eq!(fault, Fault::Truncated, "{end}");
        }
        let long = [b"\x00\x53\x75\xa0\x01a\x00\xb3\x00\x00\xff\xff", &[b'a'; 600][..]].concat();
        assert!(Progress::begin(&long).is_err(), "no such descriptor is so long");
    }
}
