//! Machines of a test: network namespaces on one switch, whose every wire can be cut in each
//! direction.
//!
//! ```text
//!   machine 0 ─ eth0 ═ p0 ─┐
//!   machine 1 ─ eth0 ═ p1 ─┤ br0      10.99.0.1, .2, ...; traffic stays in these namespaces
//!   ...                    ┘
//!   cut(a, b)     in a, the neighbour b gets a hardware address that nobody has: what a sends to b
//!                 is lost without a word, what b sends to a arrives
//!   unplug(a)     its port is down
//!   kill_all(a)   SIGKILL for every process there
//! ```
//! A namespace lives as long as a process in it that waits for the end of its input: when the
//! test is gone, however it ended, so are they, the wires and the switch.
//!
//! It needs root, `unshare`, `nsenter` and `ip`, and no firewall. Where they can't be had the test
//! fails: one that passes has shown something. `LAELAPS_WITHOUT_NAMESPACES=1` leaves such tests out
//! ([`Network::new`] is none), and says so.

use std::fs::{self, File};
use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, getuid, kill_process};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

const WITHIN: Duration = Duration::from_secs(10);
/// If it is 1, the tests that need such machines are left out.
const LEFT_OUT: &str = "LAELAPS_WITHOUT_NAMESPACES";
/// Nobody has it.
const NOWHERE: &str = "02:00:00:00:ff:ff";

/// A namespace, to be entered.
#[derive(Clone)]
pub(crate) struct Inside {
    path: PathBuf,
    file: Arc<File>,
}

impl Inside {
    /// A command that runs there.
    pub(crate) fn command(&self, exe: &Path) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.path.display())).arg("--").arg(exe);
        command
    }

    /// Does something there: its sockets are of that machine.
    pub(crate) fn run<T: Send>(&self, what: impl FnOnce() -> T + Send) -> T {
        let entered = || {
            self.enter();
            what()
        };
        thread::scope(|scope| scope.spawn(entered).join().expect("no panic there"))
    }

    /// Moves this thread there, for good.
    pub(crate) fn enter(&self) {
        move_into_link_name_space(self.file.as_fd(), Some(LinkNameSpaceType::Network))
            .expect("root may enter a namespace of its own");
    }

    /// `ip` with these lines for arguments, one call.
    fn ip(&self, lines: &str) {
        let mut child = self
            .command(Path::new("ip"))
            .args(["-batch", "-"])
            .stdin(Stdio::piped())
            .spawn()
            .expect("ip can be started");
        let mut input = child.stdin.take().expect("it is piped");
        input.write_all(lines.as_bytes()).expect("ip reads");
        drop(input);
        assert!(child.wait().expect("ip ends").success(), "ip refuses one of:\n{lines}");
    }
}

/// A namespace that is there until this is dropped.
struct Held {
    holder: Child,
    inside: Inside,
}

impl Held {
    fn new() -> Option<Self> {
        let holder = Command::new("unshare")
            .args(["--net", "cat"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .ok()?;
        let path = PathBuf::from(format!("/proc/{}/ns/net", holder.id()));
        let ours = fs::read_link("/proc/self/ns/net").expect("a process has namespaces");
        let mut held =
            Self { inside: Inside { file: Arc::new(File::open(&path).ok()?), path }, holder };
        let since = Instant::now();
        // It is ours until `unshare` has done its work.
        while fs::read_link(&held.inside.path).ok()? == ours {
            if since.elapsed() > WITHIN || !matches!(held.holder.try_wait(), Ok(None)) {
                return None;
            }
            thread::sleep(Duration::from_millis(1));
        }
        held.inside.file = Arc::new(File::open(&held.inside.path).ok()?);
        Some(held)
    }

    fn pid(&self) -> u32 {
        self.holder.id()
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

/// Some machines and what is between them.
pub(crate) struct Network {
    switch: Held,
    machines: Vec<Held>,
}

impl Network {
    /// So many machines, all wires whole. None only where that was allowed.
    pub(crate) fn new(count: usize) -> Option<Self> {
        if std::env::var(LEFT_OUT).is_ok_and(|value| value == "1") {
            println!("SKIPPED by {LEFT_OUT}: nothing was shown");
            return None;
        }
        let instead = format!("{LEFT_OUT}=1 leaves this test out");
        assert!(getuid().is_root(), "network namespaces need root; {instead}");
        let held: Option<Vec<Held>> = (0..=count).map(|_| Held::new()).collect();
        let mut machines =
            held.unwrap_or_else(|| panic!("`unshare --net` fails on this machine; {instead}"));
        let network = Self { switch: machines.pop().expect("one more"), machines };
        let switch = network.switch.pid();
        let mut lines = "link add br0 type bridge\nlink set br0 up\n".to_owned();
        for (at, machine) in network.machines.iter().enumerate() {
            let pid = machine.pid();
            lines +=
                &format!("link add p{at} netns {switch} type veth peer name eth0 netns {pid}\n");
            lines += &format!("link set p{at} master br0 up\n");
        }
        network.switch.inside.ip(&lines);
        for (at, machine) in network.machines.iter().enumerate() {
            let others = (0..count).filter(|other| *other != at);
            let neighbours: String =
                others.map(|other| neighbour(other, &hardware(other))).collect();
            machine.inside.ip(&format!(
                "link set lo up\nlink set eth0 address {}\naddr add {}/24 dev eth0\n\
                 link set eth0 up\n{neighbours}",
                hardware(at),
                address(at),
            ));
        }
        Some(network)
    }

    pub(crate) fn inside(&self, machine: usize) -> Inside {
        self.machines[machine].inside.clone()
    }

    /// From now on nothing that `from` sends arrives at `to`.
    pub(crate) fn cut(&self, from: usize, to: usize) {
        self.machines[from].inside.ip(&neighbour(to, NOWHERE));
    }

    /// Every wire is whole.
    pub(crate) fn heal(&self) {
        let count = self.machines.len();
        let ports: String = (0..count).map(|at| format!("link set p{at} up\n")).collect();
        self.switch.inside.ip(&ports);
        for (at, machine) in self.machines.iter().enumerate() {
            let others = (0..count).filter(|other| *other != at);
            let whole: String = others.map(|other| neighbour(other, &hardware(other))).collect();
            machine.inside.ip(&whole);
        }
    }

    /// Pulls its plug: nothing goes in or out.
    pub(crate) fn unplug(&self, machine: usize) {
        self.switch.inside.ip(&format!("link set p{machine} down\n"));
    }

    /// Kills every process there; those that are the test's children are to be waited for.
    pub(crate) fn kill_all(&self, machine: usize) {
        let machine = &self.machines[machine];
        let there = fs::read_link(&machine.inside.path).expect("it is held");
        let numbers = fs::read_dir("/proc")
            .expect("it is mounted")
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok());
        for number in numbers.filter(|number| *number != machine.pid()) {
            let is_there =
                fs::read_link(format!("/proc/{number}/ns/net")).is_ok_and(|ns| ns == there);
            let pid = i32::try_from(number).ok().and_then(Pid::from_raw);
            if let Some(pid) = pid.filter(|_| is_there) {
                // It may be gone already.
                let _ = kill_process(pid, Signal::KILL);
            }
        }
    }
}

/// Where a machine is reached.
pub(crate) fn address(machine: usize) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(10, 99, 0, u8::try_from(machine + 1).expect("few")))
}

fn hardware(machine: usize) -> String {
    format!("02:00:00:00:00:{:02x}", machine + 1)
}

fn neighbour(machine: usize, hardware: &str) -> String {
    format!("neigh replace {} lladdr {hardware} dev eth0 nud permanent\n", address(machine))
}
