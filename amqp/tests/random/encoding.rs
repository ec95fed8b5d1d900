//! Random values as bytes: every type, in every width that it may have, nested and described.
//!
//! ```text
//!  any          a constructor and its data: scalar | list | map | array | described
//!  scalar       one of the 31 format codes that hold no values; zero, one, the ends, or anything
//!  list, map    0/8/32 bits of size, the wider ones also where the narrower would do
//!  array        one constructor for all elements, of any type, which may be described
//!  described    by a ulong in three widths, a symbol in two, or by something else
//! ```
//!
//! Written without the codec under test, so that the two cannot share a mistake. The keys of maps
//! are all different, as they must be.

/// A seeded generator (SplitMix64).
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % bound as u64).expect("below a usize")
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }
}

/// The format codes of fixed width, with it.
const FIXED: [(u8, usize); 25] = [
    (0x40, 0),
    (0x41, 0),
    (0x42, 0),
    (0x43, 0),
    (0x44, 0),
    (0x50, 1),
    (0x51, 1),
    (0x52, 1),
    (0x53, 1),
    (0x54, 1),
    (0x55, 1),
    (0x56, 1),
    (0x60, 2),
    (0x61, 2),
    (0x70, 4),
    (0x71, 4),
    (0x72, 4),
    (0x73, 4),
    (0x74, 4),
    (0x80, 8),
    (0x81, 8),
    (0x82, 8),
    (0x83, 8),
    (0x84, 8),
    (0x94, 16),
];
const UUID: (u8, usize) = (0x98, 16);

/// Those of variable width: binary, string, symbol.
const VARIABLE: [u8; 6] = [0xa0, 0xa1, 0xa3, 0xb0, 0xb1, 0xb3];

/// Any value that nests no deeper than `depth`.
pub(crate) fn any(random: &mut Random, depth: u32) -> Vec<u8> {
    let code = code(random, depth);
    let mut bytes = vec![code];
    if code == 0 {
        bytes.extend(descriptor(random));
        bytes.extend(any(random, depth - 1));
        return bytes;
    }
    bytes.extend(data(random, code, depth));
    bytes
}

/// A format code, or the zero of a described value.
fn code(random: &mut Random, depth: u32) -> u8 {
    match random.below(if depth == 0 { 10 } else { 16 }) {
        0..6 => random.pick(&FIXED).0,
        6 => UUID.0,
        7..10 => random.pick(&VARIABLE),
        10 | 11 => random.pick(&[0x45, 0xc0, 0xd0]),
        12 => random.pick(&[0xc1, 0xd1]),
        13 | 14 => random.pick(&[0xe0, 0xf0]),
        _ => 0,
    }
}

/// A descriptor: for the most part a number or a symbol.
fn descriptor(random: &mut Random) -> Vec<u8> {
    let code = random.pick(&[0x44, 0x53, 0x80, 0x80, 0xa3, 0xb3, 0xa1, 0x70]);
    [vec![code], data(random, code, 0)].concat()
}

/// What follows a format code.
fn data(random: &mut Random, code: u8, depth: u32) -> Vec<u8> {
    if let Some((_, width)) = FIXED.iter().chain([&UUID]).find(|(fixed, _)| *fixed == code) {
        return fixed(random, code, *width);
    }
    match code {
        0x45 => Vec::new(),
        0xa0 | 0xa1 | 0xa3 => variable(random, code, 1),
        0xb0 | 0xb1 | 0xb3 => variable(random, code, 4),
        0xc0 | 0xd0 => {
            let count = random.below(5);
            let content = (0..count).flat_map(|_| any(random, depth - 1)).collect();
            compound(code, count, content)
        }
        0xc1 | 0xd1 => {
            let entries = random.below(4);
            let content = (0..entries)
                .flat_map(|entry| [key(random, entry), any(random, depth - 1)].concat())
                .collect();
            compound(code, entries * 2, content)
        }
        0xe0 | 0xf0 => array(random, code, depth - 1),
        other => unreachable!("{other:#x} is not made here"),
    }
}

fn fixed(random: &mut Random, code: u8, width: usize) -> Vec<u8> {
    let all = [random.next().to_be_bytes(), random.next().to_be_bytes()].concat();
    match (code, random.below(4)) {
        (0x56, choice) => vec![(choice & 1) as u8],
        (_, 0) => vec![0; width],
        (_, 1) => vec![0xff; width],
        (_, 2) => (0..width).map(|at| u8::from(at + 1 == width)).collect(),
        _ => all[..width].to_vec(),
    }
}

fn variable(random: &mut Random, code: u8, width: usize) -> Vec<u8> {
    let most = if width == 1 { 255 } else { 300 };
    let len = random.pick(&[0, 1, 2, 7, 255, most]);
    let content: Vec<u8> = match code & 0x0f {
        0 => (0..len).map(|_| random.next() as u8).collect(),
        // Two bytes of UTF-8, and one that fills up.
        1 => "\u{e9}".repeat(len / 2).into_bytes().into_iter().chain(vec![b'x'; len % 2]).collect(),
        _ => (0..len).map(|_| b'a' + random.below(26) as u8).collect(),
    };
    [sized(width, content.len()), content].concat()
}

/// The `entry`-th key of a map, equal to no other in any type that it may have.
fn key(random: &mut Random, entry: usize) -> Vec<u8> {
    let number = entry as u8 + 1;
    match random.below(4) {
        0 => vec![0xa3, 2, b'k', b'a' + number],
        1 => vec![0xa1, 2, b'k', b'a' + number],
        2 => vec![0x80, 0, 0, 0, 0, 0, 0, 0, number],
        _ => vec![0x54, number],
    }
}

fn compound(code: u8, count: usize, content: Vec<u8>) -> Vec<u8> {
    // What has no room in the narrow form is left empty there.
    let narrow = code < 0xd0;
    if narrow && content.len() > 254 {
        return vec![1, 0];
    }
    let width = if narrow { 1 } else { 4 };
    [sized(width, content.len() + width), sized(width, count), content].concat()
}

fn array(random: &mut Random, code: u8, depth: u32) -> Vec<u8> {
    let mut constructor = Vec::new();
    let mut element = self::code(random, depth);
    if element == 0 {
        constructor.push(0);
        constructor.extend(descriptor(random));
        element = self::code(random, 0);
    }
    constructor.push(element);
    let count = random.below(5);
    let elements = (0..count).flat_map(|_| data(random, element, depth)).collect();
    let content: Vec<u8> = [constructor, elements].concat();
    if code == 0xe0 && content.len() > 254 {
        return vec![2, 0, 0x40];
    }
    let width = if code == 0xe0 { 1 } else { 4 };
    [sized(width, content.len() + width), sized(width, count), content].concat()
}

fn sized(width: usize, size: usize) -> Vec<u8> {
    match width {
        1 => vec![u8::try_from(size).expect("fits its width")],
        _ => u32::try_from(size).expect("small").to_be_bytes().to_vec(),
    }
}
