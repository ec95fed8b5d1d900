//! Mail between cores: a letter that is put down and taken up, and one that wakes somebody.

use std::sync::mpsc;
use std::thread::{Builder, JoinHandle};

use net::mesh::{MeshPort, PortId, mesh};
use net::{Ring, RingConfig};

use super::{Row, Work};

/// Letters that a busy core finds at once.
const LETTERS: u64 = 32;

/// It ends who receives it.
const LAST: u64 = u64::MAX;

pub(super) const CASES: &[Row] = &[
    ("mesh/a letter to one that is awake", 0, letters),
    ("mesh/there and back, both sleep between", 0, there_and_back),
];

/// On one thread: what the boxes cost, without the caches' travelling.
fn letters() -> Work {
    let mut ports = mesh::<u64>(2, LETTERS as usize);
    let (mut to, mut from) = (ports.pop().expect("two"), ports.pop().expect("two"));
    let mut taken = Vec::new();
    Box::new(move |operations| {
        let mut left = operations;
        while left > 0 {
            let count = left.min(LETTERS);
            for letter in 0..count {
                from.try_send(to.id(), letter).expect("there is room");
            }
            to.drain(&mut taken, LETTERS as usize);
            assert_eq!(taken.len() as u64, count);
            taken.clear();
            left -= count;
        }
    })
}

/// A core of the mesh, with its ring; made on its own thread.
struct Core {
    port: MeshPort<u64>,
    ring: Ring,
    letters: Vec<(PortId, u64)>,
}

impl Core {
    fn new(port: MeshPort<u64>) -> Self {
        let ring = Ring::new(RingConfig::default()).expect("an engine");
        port.attach(&ring);
        Self { port, ring, letters: Vec::new() }
    }

    /// Sends, and waits for what comes.
    fn turn(&mut self, send: Option<u64>) -> u64 {
        if let Some(letter) = send {
            self.port.try_send(PortId(1 - self.port.id().0), letter).expect("there is room");
        }
        let mut completions = Vec::new();
        while self.letters.is_empty() {
            self.port.wait(&mut self.ring, None, &mut completions).expect("a wait");
            completions.clear();
            self.port.drain(&mut self.letters, 1);
        }
        self.letters.pop().expect("one came").1
    }
}

/// The other core, ended when it is dropped.
struct Echo {
    near: Core,
    far: Option<JoinHandle<()>>,
}

impl Drop for Echo {
    fn drop(&mut self) {
        // It answers the last letter too, so that nobody is left waiting.
        self.near.turn(Some(LAST));
        if let Some(far) = self.far.take() {
            far.join().expect("it ends by itself");
        }
    }
}

fn there_and_back() -> Work {
    let mut ports = mesh::<u64>(2, 4);
    let (far, near) = (ports.pop().expect("two"), ports.pop().expect("two"));
    let (ready, is_ready) = mpsc::channel();
    let serve = move || {
        let mut core = Core::new(far);
        ready.send(()).expect("somebody waits for it");
        let mut letter = core.turn(None);
        while letter != LAST {
            letter = core.turn(Some(letter));
        }
        core.port.try_send(PortId(0), LAST).expect("there is room");
        let (port, ring) = (&mut core.port, &mut core.ring);
        port.wait(ring, Some(std::time::Duration::ZERO), &mut Vec::new()).expect("a wait");
    };
    let far = Builder::new().name("far".to_owned()).spawn(serve).expect("a thread");
    let near = Core::new(near);
    is_ready.recv().expect("it has its ring");
    let mut echo = Echo { near, far: Some(far) };
    Box::new(move |operations| {
        for letter in 0..operations {
            assert_eq!(echo.near.turn(Some(letter)), letter);
        }
    })
}
