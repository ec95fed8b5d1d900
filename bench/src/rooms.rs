//! Which room of the house spent the instructions that callgrind counted.
//!
//! ```text
//!   fl=amqp/src/frame.rs           the file of a function          ── codec
//!   fn=amqp::frame::parse
//!   12 40                          40 instructions at its line 12  ── codec
//!   fi=…/core/src/option.rs        a line inlined from the library ── the function's own room
//!   900 3
//!   cfn=malloc                     a function of nobody's: what it spends is shared out among
//!   calls=2 …                      its callers, by what each call of theirs cost
//!   13 180
//! ```
//! Invariant: what is shared out is all that was counted, but for what no room called.
//!
//! Lines inlined from the library into a function that itself holds inlined lines of several rooms
//! count for the room of that function: the borders are good to a few instructions in a hundred.

use std::collections::BTreeMap;

/// Where instructions are spent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Room {
    /// Frames, performatives, types and sections.
    Codec,
    /// Connections, sessions, links, deliveries.
    Session,
    /// The shard and its queues.
    Queue,
    /// Records, batches, checksums.
    Journal,
    /// The loop that asks the shard.
    Harness,
}

impl Room {
    /// Every room.
    pub const ALL: [Self; 5] =
        [Self::Codec, Self::Session, Self::Queue, Self::Journal, Self::Harness];

    /// Its name in the table.
    pub fn name(self) -> &'static str {
        match self {
            Self::Codec => "codec",
            Self::Session => "session",
            Self::Queue => "queue",
            Self::Journal => "journal",
            Self::Harness => "harness",
        }
    }

    /// The room of a source file; none where it is nobody's.
    fn of(file: &str) -> Option<Self> {
        const OF_THE_CODEC: [&str; 8] = [
            "codec",
            "composites.rs",
            "frame.rs",
            "message.rs",
            "performative.rs",
            "polymorphic.rs",
            "shortcuts.rs",
            "definitions.rs",
        ];
        // Another crate's sources have a `src` too, but lie under the registry.
        if file.contains("/registry/") || file.contains("/rustc/") {
            return None;
        }
        let inside = |krate: &str| {
            let at = file.find(&format!("{krate}/src/"))?;
            Some(&file[at + krate.len() + "/src/".len()..])
        };
        if let Some(path) = inside("amqp") {
            let codec = OF_THE_CODEC.iter().any(|name| path.starts_with(name));
            return Some(if codec { Self::Codec } else { Self::Session });
        }
        let rooms = [("broker", Self::Queue), ("journal", Self::Journal), ("bench", Self::Harness)];
        rooms.into_iter().find_map(|(krate, room)| inside(krate).map(|_| room))
    }
}

/// Instructions by room.
pub type Costs = [f64; Room::ALL.len()];

#[derive(Default)]
struct Function {
    room: Option<Room>,
    /// Spent by itself, by room; what no room has spent is apart.
    own: Costs,
    nobodys: f64,
    /// Who called it, and what these calls cost.
    callers: Vec<(Caller, f64)>,
}

#[derive(Clone, Copy)]
enum Caller {
    Room(Room),
    Function(usize),
}

/// Reads what callgrind wrote; the instructions by room, and those that no room has caused.
pub fn read(profile: &str) -> (Costs, f64) {
    let functions = Profile::default().read(profile);
    let shares = shares(&functions);
    let mut costs = Costs::default();
    let mut left = 0.0;
    for (function, share) in functions.iter().zip(&shares) {
        let shared: f64 = share.iter().sum();
        left += function.nobodys * (1.0 - shared);
        for (at, cost) in costs.iter_mut().enumerate() {
            *cost += function.own[at] + function.nobodys * share[at];
        }
    }
    (costs, left)
}

/// How much of what each function of nobody's spends each room has caused.
fn shares(functions: &[Function]) -> Vec<Costs> {
    let mut shares = vec![Costs::default(); functions.len()];
    // As deep as the library calls itself.
    for _ in 0..40 {
        for (at, function) in functions.iter().enumerate() {
            let mut share = Costs::default();
            if let Some(room) = function.room {
                share[room as usize] = 1.0;
                shares[at] = share;
                continue;
            }
            let all: f64 = function.callers.iter().map(|(_, cost)| cost).sum();
            for (caller, cost) in function.callers.iter().filter(|(_, cost)| *cost > 0.0) {
                match caller {
                    Caller::Room(room) => share[*room as usize] += cost / all,
                    Caller::Function(caller) => {
                        for (sum, part) in share.iter_mut().zip(shares[*caller]) {
                            *sum += part * cost / all;
                        }
                    }
                }
            }
            shares[at] = share;
        }
    }
    shares
}

/// The reader of callgrind's format: names are given once, with a number that stands for them.
#[derive(Default)]
struct Profile {
    files: BTreeMap<String, String>,
    names: BTreeMap<String, String>,
    functions: Vec<Function>,
    by_name: BTreeMap<String, usize>,
}

impl Profile {
    fn read(mut self, profile: &str) -> Vec<Function> {
        let (mut file, mut home) = (None, None);
        let (mut function, mut callee) = (0, 0);
        let mut is_call = false;
        for line in profile.lines() {
            if let Some((key, value)) = line.split_once('=') {
                match key {
                    "fl" => {
                        home = Room::of(&named(&mut self.files, value));
                        file = home;
                    }
                    "fi" | "fe" => file = Room::of(&named(&mut self.files, value)),
                    "fn" => {
                        function = self.function(value);
                        self.functions[function].room = home;
                        file = home;
                    }
                    "cfi" | "cfl" => drop(named(&mut self.files, value)),
                    "cfn" => callee = self.function(value),
                    "calls" => is_call = true,
                    _ => {}
                }
                continue;
            }
            if !line.starts_with(|c: char| c.is_ascii_digit() || matches!(c, '+' | '-' | '*')) {
                continue;
            }
            let cost = line.split_whitespace().nth(1).and_then(|cost| cost.parse::<f64>().ok());
            let Some(cost) = cost else { continue };
            let room = file.or(self.functions[function].room);
            if std::mem::take(&mut is_call) {
                let caller = room.map_or(Caller::Function(function), Caller::Room);
                self.functions[callee].callers.push((caller, cost));
            } else if let Some(room) = room {
                self.functions[function].own[room as usize] += cost;
            } else {
                self.functions[function].nobodys += cost;
            }
        }
        self.functions
    }

    fn function(&mut self, value: &str) -> usize {
        let name = named(&mut self.names, value);
        let next = self.functions.len();
        let at = *self.by_name.entry(name).or_insert(next);
        if at == next {
            self.functions.push(Function::default());
        }
        at
    }
}

/// `(7) name` gives the name and remembers it; `(7)` gives it again.
fn named(names: &mut BTreeMap<String, String>, value: &str) -> String {
    let Some((number, name)) = value.split_once(')') else { return value.to_owned() };
    let name = name.trim();
    if name.is_empty() {
        return names.get(number).cloned().unwrap_or_default();
    }
    names.insert(number.to_owned(), name.to_owned());
    name.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_line_counts_for_its_room_and_the_allocator_for_its_callers() {
        let profile = "\
positions: line
events: Ir
fl=(1) amqp/src/frame.rs
fn=(1) amqp::frame::parse
12 40
fi=(2) /rustc/x/library/core/src/option.rs
900 2
fi=(3) journal/src/record.rs
7 8
cfi=(4) malloc.c
cfn=(2) malloc
calls=1 0
8 30
fl=(5) /home/of/broker/src/queue.rs
fn=(3) broker::queue
+3 100
cfi=(4)
cfn=(2)
calls=3 0
* 10
fl=(4)
fn=(2)
1 36
cfn=(4) brk
calls=1 0
1 4
fl=(6) brk.c
fn=(4)
1 4
";
        let (costs, left) = read(profile);
        assert_eq!(costs[Room::Codec as usize], 42.0);
        assert_eq!(costs[Room::Journal as usize].round(), 38.0);
        assert_eq!(costs[Room::Queue as usize].round(), 110.0);
        assert_eq!((costs.iter().sum::<f64>().round(), left.round()), (190.0, 0.0));
    }

    #[test]
    fn a_file_belongs_to_a_room_or_to_nobody() {
        let of = |file| Room::of(file).map(Room::name);
        assert_eq!(of("amqp/src/codec/reader.rs"), Some("codec"));
        assert_eq!(of("amqp/src/connection/links.rs"), Some("session"));
        assert_eq!(of("/x/broker/src/shard.rs"), Some("queue"));
        assert_eq!(of("/x/registry/src/y/broker/src/shard.rs"), None);
        assert_eq!(of("/rustc/1/library/core/src/option.rs"), None);
    }
}
