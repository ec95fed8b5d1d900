//! Several rings on several threads: a wake-up that got lost would hang these tests.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

use net::mesh::{MeshPort, PortId, mesh};
use net::{Engine, Ring};

use crate::{PATIENCE, now, on};

over_both_engines! {
    a_knock_from_any_thread_ends_a_wait,
    a_wait_ends_in_time,
    a_letter_to_and_fro_never_finds_a_deaf_sleeper,
    a_flood_arrives_complete_and_in_order,
    a_knock_at_a_dead_ring_is_nothing,
}

fn spawn<R: Send + 'static>(name: &str, run: impl FnOnce() -> R + Send + 'static) -> JoinHandle<R> {
    Builder::new().name(name.to_owned()).spawn(run).unwrap()
}

fn a_knock_from_any_thread_ends_a_wait(engine: Engine) {
    let mut ring = Ring::new(on(engine)).unwrap();
    let bell = ring.doorbell();
    let mut completions = Vec::new();
    // Before the wait, and during one.
    bell.knock();
    ring.wait(Some(PATIENCE), &mut completions).unwrap();
    for _ in 0..100 {
        let bell = bell.clone();
        let start = now();
        let knocker = spawn("knocker", move || {
            std::thread::sleep(Duration::from_micros(300));
            bell.knock();
        });
        ring.wait(Some(PATIENCE), &mut completions).unwrap();
        assert!(now() - start < PATIENCE / 2, "the knock was not heard");
        knocker.join().unwrap();
    }
    assert!(completions.is_empty());
}

fn a_wait_ends_in_time(engine: Engine) {
    let mut ring = Ring::new(on(engine)).unwrap();
    let mut completions = Vec::new();
    for timeout in [0, 1, 20].map(Duration::from_millis) {
        let start = now();
        while now() - start < timeout {
            ring.wait(Some(timeout), &mut completions).unwrap();
        }
        ring.wait(Some(Duration::ZERO), &mut completions).unwrap();
        assert!(now() - start < PATIENCE / 2);
    }
    let bell = ring.doorbell();
    bell.knock();
    ring.wait(Some(Duration::MAX), &mut completions).unwrap();
    assert!(completions.is_empty());
}

/// One letter goes to and fro: each side sleeps as often as it wakes, with a wait that nothing but
/// the letter ends.
fn a_letter_to_and_fro_never_finds_a_deaf_sleeper(engine: Engine) {
    const ROUNDS: u64 = 20_000;
    let mut ports = mesh::<u64>(2, 4).into_iter();
    let (mut left, mut right) = (ports.next().unwrap(), ports.next().unwrap());
    let start = now();
    let other = spawn("right", move || {
        let mut ring = Ring::new(on(engine)).unwrap();
        right.attach(&ring);
        volley(&mut right, &mut ring, PortId(0), ROUNDS, None);
    });
    let mut ring = Ring::new(on(engine)).unwrap();
    left.attach(&ring);
    volley(&mut left, &mut ring, PortId(1), ROUNDS, Some(0));
    other.join().unwrap();
    assert!(now() - start < PATIENCE, "a wake-up was late");
}

fn volley(port: &mut MeshPort<u64>, ring: &mut Ring, to: PortId, rounds: u64, serve: Option<u64>) {
    let (mut letters, mut completions) = (Vec::new(), Vec::new());
    if let Some(first) = serve {
        port.try_send(to, first).unwrap();
    }
    loop {
        let start = now();
        port.wait(ring, Some(PATIENCE), &mut completions).unwrap();
        assert!(now() - start < PATIENCE, "slept through a letter");
        port.drain(&mut letters, 8);
        for (from, ball) in letters.drain(..) {
            assert_eq!(from, to);
            if ball < rounds {
                port.try_send(to, ball + 1).unwrap();
            }
            if ball + 1 >= rounds {
                // The last letter is announced by one more wait.
                port.wait(ring, Some(Duration::ZERO), &mut completions).unwrap();
                return;
            }
        }
    }
}

/// Rings of different engines wake each other as well.
#[test]
fn engines_knock_at_each_other() {
    const ROUNDS: u64 = 2_000;
    let mut ports = mesh::<u64>(2, 4).into_iter();
    let (mut left, mut right) = (ports.next().unwrap(), ports.next().unwrap());
    let other = spawn("right", move || {
        let mut ring = Ring::new(on(Engine::Epoll)).unwrap();
        right.attach(&ring);
        volley(&mut right, &mut ring, PortId(0), ROUNDS, None);
    });
    let mut ring = Ring::new(on(Engine::Uring)).unwrap();
    left.attach(&ring);
    volley(&mut left, &mut ring, PortId(1), ROUNDS, Some(0));
    other.join().unwrap();
}

/// Every port floods every other through small boxes, so boxes fill and ports sleep in between.
fn a_flood_arrives_complete_and_in_order(engine: Engine) {
    const PORTS: u16 = 4;
    const LETTERS: u32 = 10_000;
    let start = now();
    let threads = mesh::<u32>(PORTS, 16)
        .into_iter()
        .map(|port| spawn("flood", move || flood(engine, port, LETTERS)))
        .collect::<Vec<_>>();
    for thread in threads {
        thread.join().unwrap();
    }
    assert!(now() - start < 3 * PATIENCE);
}

fn flood(engine: Engine, mut port: MeshPort<u32>, letters_each: u32) {
    let mut ring = Ring::new(on(engine)).unwrap();
    port.attach(&ring);
    let ports = port.ports();
    let mut next_out = vec![0; ports];
    let mut next_in = vec![0; ports];
    let (mut letters, mut completions) = (Vec::new(), Vec::new());
    loop {
        let mut blocked = false;
        for (to, next) in (0u16..).zip(&mut next_out) {
            for _ in 0..7 {
                if *next == letters_each {
                    break;
                }
                match port.try_send(PortId(to), *next) {
                    Ok(()) => *next += 1,
                    Err(letter) => {
                        assert_eq!(letter, *next);
                        blocked = true;
                        break;
                    }
                }
            }
        }
        let all_out = next_out.iter().all(|&next| next == letters_each);
        let all_in = next_in.iter().all(|&next| next == letters_each);
        // A full box is tried again soon: boxes don't tell when they have room.
        let timeout = match (all_out, blocked) {
            (false, false) => Duration::ZERO,
            (false, true) => Duration::from_micros(200),
            (true, _) => PATIENCE,
        };
        let timeout = if all_in { timeout.min(Duration::from_millis(1)) } else { timeout };
        let start = now();
        port.wait(&mut ring, Some(timeout), &mut completions).unwrap();
        assert!(now() - start < PATIENCE, "slept through letters");
        port.drain(&mut letters, 64);
        for (from, letter) in letters.drain(..) {
            let next = &mut next_in[usize::from(from.0)];
            assert_eq!(letter, *next);
            *next += 1;
        }
        if all_in && all_out {
            break;
        }
    }
}

#[test]
fn drain_is_fair_and_bounded() {
    let mut ports = mesh::<u32>(3, 100);
    for letter in 0..100 {
        ports[1].try_send(PortId(0), letter).unwrap();
    }
    ports[2].try_send(PortId(0), 7).unwrap();
    assert_eq!(ports[1].try_send(PortId(0), 100), Err(100));
    let mut letters = Vec::new();
    ports[0].drain(&mut letters, 9);
    assert_eq!(letters.len(), 9);
    assert!(letters.contains(&(PortId(2), 7)), "{letters:?}");
    ports[0].drain(&mut letters, 1000);
    assert_eq!(letters.len(), 101);
    assert!(!ports[0].has_mail());
    let from_one = letters.iter().filter(|(from, _)| *from == PortId(1));
    assert!(from_one.map(|&(_, letter)| letter).eq(0..100));
}

/// Rings come and go while another knocks at them: the bell keeps what it needs.
fn a_knock_at_a_dead_ring_is_nothing(engine: Engine) {
    let mut ring = Ring::new(on(engine)).unwrap();
    let mut completions = Vec::new();
    for _ in 0..20 {
        let bell = spawn("short", move || {
            let ring = Ring::new(on(engine)).unwrap();
            ring.doorbell()
        });
        let bell = bell.join().unwrap();
        bell.knock();
        ring.knock(&bell);
        ring.wait(Some(Duration::from_millis(1)), &mut completions).unwrap();
    }
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let bell = ring.doorbell();
        let stop = &stop;
        let hammer = Builder::new().name("hammer".to_owned()).spawn_scoped(scope, move || {
            while !stop.load(Ordering::Relaxed) {
                bell.knock();
            }
        });
        for _ in 0..1000 {
            ring.wait(Some(PATIENCE), &mut completions).unwrap();
        }
        stop.store(true, Ordering::Relaxed);
        hammer.unwrap().join().unwrap();
    });
    assert!(completions.is_empty());
}
