//! What this disk gives: durable writes through the ring, and by plain system calls.
//!
//! ```text
//!   floor [DIRECTORY] [WRITES]        default: the working directory, 5000 writes a line
//!
//!   write                in flight   p50 us   p99 us   p99.9 us   writes/s
//!   pwrite+fdatasync         1         ...      ...       ...        ...
//!   ring, RWF_DSYNC          1, 4, 8
//! ```
//!
//! 4 KiB and 64 KiB, to a pre-written file of 64 MiB that is removed in the end, from registered
//! memory; the offsets go round. Latency is from the command to the completion.
//!
//! Failure: says what and where, exit status 1.
#![forbid(unsafe_code)]
#![expect(clippy::disallowed_methods, reason = "a measurement reads the clock")]

use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use bench::disk::{FILE_BYTES, Figures, Load, offset, through_ring};
use hdrhistogram::Histogram;
use net::buf::Pages;
use net::file::{self, DataFile, FileOpen};

const SIZES: [usize; 2] = [4096, 65_536];
const DEPTHS: [usize; 3] = [1, 4, 8];

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let directory = arguments.next().map_or_else(|| PathBuf::from("."), PathBuf::from);
    let writes = arguments.next().map_or(Ok(5000), |text| text.parse::<usize>());
    let path = directory.join(format!("laelaps-floor-{}", std::process::id()));
    let result = match writes {
        Ok(writes) => measure(&path, writes.max(1)),
        Err(error) => Err(format!("WRITES is not a number: {error}").into()),
    };
    // It is not there if making it was what failed.
    let _ = std::fs::remove_file(&path);
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("floor: {}: {error}", path.display());
            ExitCode::FAILURE
        }
    }
}

fn measure(path: &Path, writes: usize) -> Result<(), Box<dyn Error + Send + Sync>> {
    let how = FileOpen { create: true, write: true, direct: true };
    file::open(path, how)?.prewrite(FILE_BYTES as u64)?;
    let open = || file::open(path, FileOpen { create: false, ..how });
    let volume = file::volume(path)?;
    let direct = if open()?.direct() { "direct" } else { "buffered" };
    println!("{} {direct}, {writes} writes a line", volume.kind);
    println!("write                 in flight   p50 us   p99 us   p99.9 us   writes/s");
    for size in SIZES {
        let name = format!("pwrite+fdatasync {}K", size >> 10);
        report(&name, 1, &blocking(&open()?, size, writes)?);
        for depth in DEPTHS {
            let name = format!("ring RWF_DSYNC {}K", size >> 10);
            report(&name, depth, &through_ring(open()?, Load { size, depth, writes })?);
        }
    }
    Ok(())
}

fn report(name: &str, depth: usize, figures: &Figures) {
    let us = |quantile| figures.latency_ns.value_at_quantile(quantile) as f64 / 1000.0;
    let rate = figures.latency_ns.len() as f64 / figures.took.as_secs_f64();
    println!(
        "{name:<22} {depth:>8} {:>8.0} {:>8.0} {:>10.0} {rate:>10.0}",
        us(0.5),
        us(0.99),
        us(0.999)
    );
}

fn blocking(
    file: &DataFile,
    size: usize,
    writes: usize,
) -> Result<Figures, Box<dyn Error + Send + Sync>> {
    let buf = Pages::new(size)?;
    let mut latency_ns = Histogram::new(3)?;
    let start = Instant::now();
    for at in 0..writes {
        let one = Instant::now();
        file.write_durable_at(&buf, offset(at, size))?;
        latency_ns.record(one.elapsed().as_nanos() as u64)?;
    }
    Ok(Figures { latency_ns, took: start.elapsed() })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Nothing is measured: it must go on working as `net` changes.
    #[test]
    fn it_runs_to_its_end() {
        let name = format!(".floor-tiny-{}", std::process::id());
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(name);
        let measured = measure(&path, 2);
        let removed = std::fs::remove_file(&path);
        measured.expect("every line is measured");
        removed.expect("the file was made");
    }
}
