//! The frames that nearly all traffic consists of, written and read by hand.
//!
//! ```text
//!  transfer     .. 14 c0 ss nn  handle  id  a0 tt tag..  format  [settled [more]]   payload
//!  disposition  .. 15 c0 ss nn  role  first  last | 40  41  00 53 24 45             accepted
//! ```
//! Invariant, held by tests: what is written is byte for byte what the general writer writes; what
//! is read is what the general reader reads, and where anything is unusual nothing is, so that the
//! general reader decides.

use crate::codec::code;
use crate::definitions::{DeliveryId, Handle, Role};
use crate::delivery::tags;
use crate::performative::{DeliveryState, Disposition, Transfer};

/// The longest head of a frame below: frame header, descriptor, list header, fields.
const HEAD_BYTES_MAX: usize = 40;

/// A frame up to its payload.
pub(crate) struct FrameHead {
    bytes: [u8; HEAD_BYTES_MAX],
    len: usize,
}

impl FrameHead {
    fn begin(channel: u16, descriptor: u8, fields: u8) -> Self {
        let [high, low] = channel.to_be_bytes();
        let mut bytes = [0; HEAD_BYTES_MAX];
        let begin = [0, 0, 0, 0, 2, 0, high, low, code::DESCRIBED, code::SMALL_ULONG, descriptor];
        bytes[..11].copy_from_slice(&begin);
        (bytes[11], bytes[13]) = (code::LIST8, fields);
        Self { bytes, len: 14 }
    }

    fn put<const N: usize>(&mut self, bytes: [u8; N]) {
        self.bytes[self.len..self.len + N].copy_from_slice(&bytes);
        self.len += N;
    }

    fn put_uint(&mut self, value: u32) {
        match u8::try_from(value) {
            Ok(0) => self.put([code::UINT0]),
            Ok(small) => self.put([code::SMALL_UINT, small]),
            Err(_) => {
                let [a, b, c, d] = value.to_be_bytes();
                self.put([code::UINT, a, b, c, d]);
            }
        }
    }

    /// The size of the frame with a payload of this length, in bytes.
    pub(crate) fn frame_bytes(&self, payload_bytes: usize) -> usize {
        self.len + payload_bytes
    }

    /// Appends the head of a frame with a payload of this length, which comes next.
    pub(crate) fn write(mut self, payload_bytes: usize, out: &mut Vec<u8>) {
        let size = u32::try_from(self.frame_bytes(payload_bytes));
        self.bytes[..4].copy_from_slice(&size.expect("frames are far below 4 GiB").to_be_bytes());
        // The list's size does not count itself and what is before it.
        self.bytes[12] = u8::try_from(self.len - 13).expect("a head is short");
        out.extend_from_slice(&self.bytes[..self.len]);
    }
}

/// The one transfer of a message of ours, whose tag says its delivery id.
pub(crate) fn transfer(channel: u16, handle: u32, delivery: u32, settled: bool) -> FrameHead {
    let mut head = FrameHead::begin(channel, 0x14, 5);
    head.put_uint(handle);
    head.put_uint(delivery);
    head.put([code::VBIN8, 8]);
    head.put(tags::of_delivery(delivery));
    head.put([code::UINT0]);
    head.put([if settled { code::TRUE } else { code::FALSE }]);
    head
}

/// A disposition that settles deliveries as accepted.
pub(crate) fn accepted(channel: u16, role: Role, first: u32, last: u32) -> FrameHead {
    let mut head = FrameHead::begin(channel, 0x15, 5);
    head.put([match role {
        Role::Sender => code::FALSE,
        Role::Receiver => code::TRUE,
    }]);
    head.put_uint(first);
    if first == last {
        head.put([code::NULL]);
    } else {
        head.put_uint(last);
    }
    head.put([code::TRUE, code::DESCRIBED, code::SMALL_ULONG, 0x24, code::LIST0]);
    head
}

/// The transfer that a frame's body is, with its payload, if it is as most are.
#[inline(always)]
pub(crate) fn read_transfer(body: &[u8]) -> Option<(Transfer<'_>, &[u8])> {
    let [code::DESCRIBED, code::SMALL_ULONG, 0x14, code::LIST8, size, count, rest @ ..] = body
    else {
        return None;
    };
    let (mut fields, payload) = rest.split_at_checked(usize::from(size.checked_sub(1)?))?;
    let handle = Handle(take_uint(&mut fields)?);
    let delivery_id = DeliveryId(take_uint(&mut fields)?);
    let [code::VBIN8, tag_len, rest @ ..] = fields else { return None };
    let (tag, rest) = rest.split_at_checked(usize::from(*tag_len))?;
    fields = rest;
    let message_format = take_uint(&mut fields)?;
    let settled = take_boolean(&mut fields, *count > 4)?;
    let more = take_boolean(&mut fields, *count > 5)?;
    if !fields.is_empty() || !(4..=6).contains(count) {
        return None;
    }
    let transfer = Transfer {
        handle,
        delivery_id: Some(delivery_id),
        delivery_tag: Some(tag),
        message_format: Some(message_format),
        settled,
        more: more.unwrap_or(false),
        ..Transfer::default()
    };
    Some((transfer, payload))
}

/// The disposition that a frame's body is, if it is one of accepted deliveries.
#[inline]
pub(crate) fn read_accepted(body: &[u8]) -> Option<Disposition<'_>> {
    let [code::DESCRIBED, code::SMALL_ULONG, 0x15, code::LIST8, size, 5, rest @ ..] = body else {
        return None;
    };
    let [role @ (code::TRUE | code::FALSE), fields @ ..] = rest else { return None };
    let mut fields = fields;
    let first = DeliveryId(take_uint(&mut fields)?);
    let last = match fields {
        [code::NULL, after @ ..] => {
            fields = after;
            None
        }
        [..] => Some(DeliveryId(take_uint(&mut fields)?)),
    };
    let settled = take_boolean(&mut fields, true)??;
    let is_accepted = fields == [code::DESCRIBED, code::SMALL_ULONG, 0x24, code::LIST0];
    if !is_accepted || usize::from(*size) != 1 + rest.len() {
        return None;
    }
    Some(Disposition {
        role: if *role == code::TRUE { Role::Receiver } else { Role::Sender },
        first,
        last,
        settled,
        state: Some(DeliveryState::Accepted),
        batchable: false,
    })
}

#[inline(always)]
fn take_uint(fields: &mut &[u8]) -> Option<u32> {
    let (value, rest) = match *fields {
        [code::SMALL_UINT, value, rest @ ..] => (u32::from(*value), rest),
        [code::UINT, a, b, c, d, rest @ ..] => (u32::from_be_bytes([*a, *b, *c, *d]), rest),
        [code::UINT0, rest @ ..] => (0, rest),
        [..] => return None,
    };
    *fields = rest;
    Some(value)
}

/// A boolean or a null, if there is such a field.
#[inline(always)]
fn take_boolean(fields: &mut &[u8], is_there: bool) -> Option<Option<bool>> {
    if !is_there {
        return Some(None);
    }
    let (value, rest) = match *fields {
        [code::TRUE, rest @ ..] => (Some(true), rest),
        [code::FALSE, rest @ ..] => (Some(false), rest),
        [code::NULL, rest @ ..] => (None, rest),
        [..] => return None,
    };
    *fields = rest;
    Some(value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::{self, FrameWriter};
    use crate::performative::Performative;

    const NUMBERS: [u32; 8] = [0, 1, 255, 256, 65_535, 65_536, i32::MAX as u32, u32::MAX];

    #[test]
    fn a_transfer_is_written_as_the_general_writer_does() {
        for handle in NUMBERS {
            for delivery in NUMBERS {
                for settled in [false, true] {
                    let payload = [7u8; 300];
                    let (mut short, mut general) = (vec![9], vec![9]);
                    let head = transfer(0x0102, handle, delivery, settled);
                    let size = head.frame_bytes(payload.len());
                    head.write(payload.len(), &mut short);
                    short.extend_from_slice(&payload);
                    assert_eq!(short.len(), 1 + size);

                    let mut frame = FrameWriter::amqp(&mut general, 0x0102);
                    frame.composite(&Transfer {
                        handle: Handle(handle),
                        delivery_id: Some(DeliveryId(delivery)),
                        delivery_tag: Some(&tags::of_delivery(delivery)),
                        message_format: Some(0),
                        settled: Some(settled),
                        ..Transfer::default()
                    });
                    frame.payload(&payload);
                    frame.finish();
                    assert_eq!(short, general);
                }
            }
        }
    }

    #[test]
    fn a_disposition_is_written_as_the_general_writer_does() {
        for first in NUMBERS {
            for last in NUMBERS {
                for role in [Role::Sender, Role::Receiver] {
                    let (mut short, mut general) = (Vec::new(), Vec::new());
                    accepted(3, role, first, last).write(0, &mut short);
                    let disposition = Disposition {
                        role,
                        first: DeliveryId(first),
                        last: (last != first).then_some(DeliveryId(last)),
                        settled: true,
                        state: Some(DeliveryState::Accepted),
                        batchable: false,
                    };
                    frame::write(&mut general, 3, &Performative::Disposition(disposition));
                    assert_eq!(short, general);
                }
            }
        }
    }

    /// Bytes near those of a disposition, likewise.
    #[test]
    fn a_disposition_is_read_as_the_general_reader_does_or_not_at_all() {
        let mut state = 13u64;
        let mut random = move |below: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 33) % below
        };
        let codes = [0x40, 0x41, 0x42, 0x43, 0x45, 0x52, 0x70, 0xc0, 0, 1, 4, 5, 6, 0x24, 0x26];
        let (mut taken, mut refused) = (0, 0);
        for _ in 0..200_000 {
            let mut out = Vec::new();
            let disposition = Disposition {
                role: [Role::Sender, Role::Receiver][random(2) as usize],
                first: DeliveryId(NUMBERS[random(8) as usize]),
                last: (random(2) > 0).then(|| DeliveryId(NUMBERS[random(8) as usize])),
                settled: random(2) > 0,
                state: [None, Some(DeliveryState::Accepted), Some(DeliveryState::Released)]
                    [random(3) as usize],
                batchable: random(9) == 0,
            };
            Performative::Disposition(disposition).encode(&mut out);
            out.extend_from_slice(&[0x40][..usize::from(random(9) == 0)]);
            for _ in 0..random(3) {
                let at = random(out.len() as u64) as usize;
                out[at] = codes[random(codes.len() as u64) as usize];
            }
            let Some(read) = read_accepted(&out) else {
                refused += 1;
                continue;
            };
            taken += 1;
            let (general, _) = Performative::decode_general(&out).expect("it was taken");
            assert_eq!(general, Performative::Disposition(read));
        }
        assert!(taken > 10_000 && refused > 20_000, "{taken} {refused}");
    }

    /// Bytes near those of a transfer: where this reader takes them, the general one agrees.
    #[test]
    fn a_transfer_is_read_as_the_general_reader_does_or_not_at_all() {
        let mut state = 11u64;
        let mut random = move |below: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 33) % below
        };
        let codes = [0x40, 0x41, 0x42, 0x43, 0x52, 0x56, 0x70, 0xa0, 0xb0, 0xc0, 0, 1, 4, 5, 6, 7];
        let (mut taken, mut refused) = (0, 0);
        for _ in 0..200_000 {
            let mut out = Vec::new();
            let mut writer = crate::codec::Writer::new(&mut out);
            let tag = [1u8; 33];
            crate::codec::Composite::write_described(
                &Transfer {
                    handle: Handle(NUMBERS[random(8) as usize]),
                    delivery_id: (random(4) > 0).then(|| DeliveryId(NUMBERS[random(8) as usize])),
                    delivery_tag: (random(4) > 0).then(|| &tag[..random(34) as usize]),
                    message_format: (random(4) > 0).then(|| NUMBERS[random(8) as usize]),
                    settled: [None, Some(false), Some(true)][random(3) as usize],
                    more: random(3) == 0,
                    aborted: random(9) == 0,
                    ..Transfer::default()
                },
                &mut writer,
            );
            out.extend_from_slice(&[0, 0x53, 0x75][..random(4) as usize]);
            for _ in 0..random(3) {
                let at = random(out.len() as u64) as usize;
                out[at] = codes[random(codes.len() as u64) as usize];
            }
            let Some((transfer, payload)) = read_transfer(&out) else {
                refused += 1;
                continue;
            };
            taken += 1;
            let (general, rest) = Performative::decode_general(&out).expect("it was taken");
            assert_eq!((general, rest), (Performative::Transfer(transfer), payload));
        }
        assert!(taken > 20_000 && refused > 20_000, "{taken} {refused}");
    }
}
