//! Whether the floors are low enough to judge by: each beside something that others wrote.
//!
//! ```text
//!   dev      at most 1.1 x  fio, the same writes to the same file (io_uring, O_DIRECT, O_DSYNC)
//!   echo     at most 1.1 x  an echo server on tokio, driven by the same client
//!   commit   at most 1.1 x  dev + echo
//! ```
//! Each server is a process of its own, also the one on tokio. Closed loops with one request in
//! flight, in interleaved rounds as a comparison has them; judged by the median of the ratios of
//! the medians. Failure: fio is not installed; or a floor is not good enough, which is a failure of
//! the check and says which.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::Command;
use std::sync::mpsc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::sync::oneshot;

use super::client::{self, Peer};
use super::process::{Role, Server, ServerPlan};
use super::{
    BLOCK_BYTES, FILE_BYTES, Floor, FloorError, FloorKind, FloorLoad, Store, WRITES_IN_FLIGHT,
};
use crate::command::Failure;
use crate::stats::{Chance, Estimate, estimate};

/// A floor may take so many times what others take.
pub const RATIO_MAX: f64 = 1.1;

/// What came of a check.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Checked {
    /// Such as `dev/fio`.
    pub name: String,
    /// Of the medians.
    pub ratio: Estimate,
    /// The medians of each round in nanoseconds, the floor's first.
    pub rounds_ns: Vec<[f64; 2]>,
    /// At most [`RATIO_MAX`].
    pub holds: bool,
}

/// Runs the check: so many rounds, each block so long.
///
/// # Errors
/// Something could not be run.
pub fn check(
    directory: &Path,
    size: usize,
    rounds: usize,
    block: Duration,
    seed: u64,
) -> Result<Vec<Checked>, Failure> {
    let store = Store::new(directory, 1)?;
    let start = |kind| Floor::start(kind, directory, size, WRITES_IN_FLIGHT);
    let floors = [start(FloorKind::Dev)?, start(FloorKind::Echo)?, start(FloorKind::Commit)?];
    let tokio = Server::start(&ServerPlan::new(Role::TokioEcho, directory, size))?;
    let mut chance = Chance::new(seed);
    let mut order = [0, 1, 2, 3, 4];
    let mut medians: Vec<[f64; 5]> = Vec::new();
    for round in 0..rounds {
        if round.is_multiple_of(2) {
            chance.shuffle(&mut order);
        } else {
            order.reverse();
        }
        let load = FloorLoad {
            connections: 1,
            in_flight: 1,
            threads: 1,
            size,
            rate: None,
            arrivals: crate::schedule::Arrivals::Constant,
            seed,
            warm_up: block / 8,
            duration: block,
        };
        let mut found = [0.0; 5];
        for which in order {
            found[which] = match which {
                3 => echo_p50_ns(tokio.addr(), &load)?,
                4 => fio_p50_ns(&store, block)?,
                floor => floors[floor].run(&load)?.intended.value_at_quantile(0.5) as f64,
            };
        }
        medians.push(found);
    }
    let [dev, echo, commit, tokio, fio] = [0, 1, 2, 3, 4];
    let told = |name: &str, pairs: Vec<[f64; 2]>| -> Result<Checked, Failure> {
        let ratios: Vec<f64> = pairs.iter().map(|[floor, other]| floor / other).collect();
        let ratio = estimate(&ratios, seed).ok_or("no rounds")?;
        let holds = ratio.median <= RATIO_MAX;
        Ok(Checked { name: name.to_owned(), ratio, rounds_ns: pairs, holds })
    };
    let pairs = |over: usize, under: &[usize]| {
        let under = |found: &[f64; 5]| under.iter().map(|&at| found[at]).sum();
        medians.iter().map(|found| [found[over], under(found)]).collect::<Vec<[f64; 2]>>()
    };
    Ok(vec![
        told("dev/fio", pairs(dev, &[fio]))?,
        told("echo/tokio", pairs(echo, &[tokio]))?,
        told("commit/(dev+echo)", pairs(commit, &[dev, echo]))?,
    ])
}

/// The check as text.
#[must_use]
pub(super) fn text(checked: &[Checked]) -> String {
    let mut text = format!("{:<20} {:>22}   at most {RATIO_MAX}\n", "p50 (5-95 %)", "ratio");
    for one in checked {
        let Estimate { median, low, high } = one.ratio;
        let ratio = format!("{median:.3} ({low:.3}-{high:.3})");
        let word = if one.holds { "holds" } else { "DOES NOT HOLD" };
        text.push_str(&format!("{:<20} {ratio:>22}   {word}\n", one.name));
    }
    text
}

/// The median of fio's writes to the same file, nanoseconds.
fn fio_p50_ns(store: &Store, block: Duration) -> Result<f64, Failure> {
    let ms = |time: Duration| format!("{}ms", time.as_millis());
    let output = Command::new("fio")
        .arg("--name=dev")
        .arg(format!("--filename={}", store.path().display()))
        .arg(format!("--size={FILE_BYTES}"))
        .arg(format!("--bs={BLOCK_BYTES}"))
        .args(["--rw=write", "--overwrite=1", "--allow_file_create=0", "--fallocate=none"])
        .args(["--ioengine=io_uring", "--iodepth=1", "--sync=dsync", "--fixedbufs=1"])
        .arg(if store.direct() { "--direct=1" } else { "--direct=0" })
        .arg(format!("--runtime={}", ms(block)))
        .arg(format!("--ramp_time={}", ms(block / 8)))
        .args(["--time_based", "--lat_percentiles=1", "--clat_percentiles=0"])
        .args(["--percentile_list=50:99", "--output-format=json"])
        .output()
        .map_err(|error| format!("fio cannot be run ({error}): install it for --check"))?;
    let wrong = || {
        let said = String::from_utf8_lossy(&output.stderr);
        Failure::from(format!("fio gave no figures: {}", said.trim()))
    };
    // It may say a word before its JSON.
    let begin = output.stdout.iter().position(|&byte| byte == b'{').ok_or_else(wrong)?;
    let told: serde_json::Value = serde_json::from_slice(&output.stdout[begin..])?;
    told["jobs"][0]["write"]["lat_ns"]["percentile"]["50.000000"].as_f64().ok_or_else(wrong)
}

/// The median of an echo server's answers, nanoseconds.
fn echo_p50_ns(addr: SocketAddr, load: &FloorLoad) -> Result<f64, FloorError> {
    let unknown = || None;
    let peer = Peer { addr, answer_bytes: load.size, cpu_ns: &unknown };
    Ok(client::run(&peer, load)?.intended.value_at_quantile(0.5) as f64)
}

/// An echo server as one writes it with tokio, on a thread of its own.
pub(super) struct TokioEcho {
    addr: SocketAddr,
    /// Dropped, it ends the server.
    _stop: oneshot::Sender<()>,
}

impl TokioEcho {
    pub(super) fn start() -> io::Result<Self> {
        let (tell, told) = mpsc::channel();
        let (stop, stopped) = oneshot::channel();
        std::thread::Builder::new().name("tokio-echo".to_owned()).spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
            runtime.block_on(async {
                let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
                // Nobody waits for it only if the starter is gone.
                let _ = tell.send(listener.local_addr()?);
                tokio::select! {
                    ended = accept(&listener) => ended,
                    _ = stopped => Ok(()),
                }
            })
        })?;
        let addr = told.recv().map_err(|_| io::Error::other("it did not start"))?;
        Ok(Self { addr, _stop: stop })
    }

    pub(super) fn addr(&self) -> SocketAddr {
        self.addr
    }
}

async fn accept(listener: &TcpListener) -> io::Result<()> {
    loop {
        let (mut stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        tokio::spawn(async move {
            let mut bytes = vec![0; 16 * 1024];
            while let Ok(count @ 1..) = stream.read(&mut bytes).await {
                if stream.write_all(&bytes[..count]).await.is_err() {
                    return;
                }
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_server_of_others_echoes() {
        let root = tempfile::tempdir().expect("a directory");
        let plan = ServerPlan::new(Role::TokioEcho, root.path(), 5000);
        let tokio = Server::start(&plan).expect("a server");
        let load = FloorLoad {
            connections: 2,
            in_flight: 2,
            threads: 1,
            size: 5000,
            rate: None,
            arrivals: crate::schedule::Arrivals::Constant,
            seed: 1,
            warm_up: Duration::ZERO,
            duration: Duration::from_millis(50),
        };
        assert!(echo_p50_ns(tokio.addr(), &load).expect("echoed") > 1000.0);
    }

    #[test]
    fn a_floor_that_is_too_slow_is_named() {
        let ratio = |median| Estimate { median, low: median, high: median };
        let of = |name: &str, median| Checked {
            name: name.to_owned(),
            ratio: ratio(median),
            rounds_ns: Vec::new(),
            holds: median <= RATIO_MAX,
        };
        let text = text(&[of("dev/fio", 1.05), of("echo/tokio", 1.2)]);
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[1].ends_with("holds") && lines[2].ends_with("DOES NOT HOLD"), "{text}");
    }
}
