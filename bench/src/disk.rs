//! Bare durable writes through the ring: no journal, no broker.
//!
//! A pre-written file of [`FILE_BYTES`], `RWF_DSYNC`, registered memory where the limits allow it.
#![expect(clippy::disallowed_methods, reason = "a measurement reads the clock")]

use std::error::Error;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use net::buf::Pages;
use net::file::DataFile;
use net::{Completion, DiskWrite, MemoryUse, Ring, RingConfig};

/// Length of the file that is written, bytes.
pub const FILE_BYTES: usize = 64 << 20;

/// What came of it.
#[derive(Debug)]
pub struct Figures {
    /// From the command to the completion.
    pub latency_ns: Histogram<u64>,
    /// From the first command to the last completion.
    pub took: Duration,
}

/// How to write.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// Bytes of a write, whole blocks.
    pub size: usize,
    /// Writes in flight.
    pub depth: usize,
    /// Writes in all.
    pub writes: usize,
}

/// Writes round the file through a ring of our own.
///
/// # Errors
/// The ring or a write failed.
pub fn through_ring(file: DataFile, load: Load) -> Result<Figures, Box<dyn Error + Send + Sync>> {
    let mut ring = Ring::new(RingConfig::default())?;
    let Ok(file) = ring.add_file(file) else { return Err("the ring took no file".into()) };
    let (memory, region) = Pages::new(load.size * load.depth)?.leak();
    if let MemoryUse::Unregistered(why) = ring.register_memory(&[region]) {
        println!("(unregistered: {why})");
    }
    let mut idle = memory.chunks_mut(load.size).collect::<Vec<_>>();
    let mut latency_ns = Histogram::new(3)?;
    let mut begun = vec![Instant::now(); load.writes];
    let (mut next, mut done) = (0, 0);
    let mut completions = Vec::new();
    let start = Instant::now();
    while done < load.writes {
        while next < load.writes
            && let Some(buf) = idle.pop()
        {
            begun[next] = Instant::now();
            let (offset, tag) = (offset(next, load.size), next as u64);
            ring.write_durable(DiskWrite { file, offset, buf, len: load.size, tag });
            next += 1;
        }
        ring.wait(None, &mut completions)?;
        for completion in completions.drain(..) {
            let Completion::Disk { tag, buf, result } = completion else { continue };
            if result? as usize != load.size {
                return Err("a short write".into());
            }
            latency_ns.record(begun[tag as usize].elapsed().as_nanos() as u64)?;
            idle.extend(buf);
            done += 1;
        }
    }
    Ok(Figures { latency_ns, took: start.elapsed() })
}

/// Where the write of this number goes: round and round the file.
pub fn offset(at: usize, size: usize) -> u64 {
    (at * size % FILE_BYTES) as u64
}
