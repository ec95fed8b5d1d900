//! Both jobs on `net`.
//!
//! Failure: an operation's error ends the run.

use std::net::SocketAddr;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use net::buf::Pages;
use net::file::{self, FileOpen};
use net::{Completion, DiskWrite, Ring, RingConfig, TcpListen};

use crate::{APPEND_BYTES, Appends, Jobs, Outcome, echo, offset, process_cpu, thread_cpu};

pub fn append(path: &Path, jobs: &'static Jobs) -> Outcome<Appends> {
    let path = path.to_owned();
    run(move || {
        let mut ring = Ring::new(RingConfig::default())?;
        let how = FileOpen { create: false, write: true, direct: true };
        let Ok(file) = ring.add_file(file::open(&path, how)?) else {
            return Err("the ring took no file".into());
        };
        let (memory, region) = Pages::new(APPEND_BYTES)?.leak();
        ring.register_memory(&[region]);
        let mut buf = Some(memory);
        let mut latency_ns = Histogram::new(3)?;
        let mut completions = Vec::new();
        let mut cpu = Duration::ZERO;
        for at in 0..jobs.warm_up + jobs.appends {
            if at == jobs.warm_up {
                latency_ns.clear();
                cpu = process_cpu();
            }
            let begun = Instant::now();
            let memory = buf.take().ok_or("a write kept its buffer")?;
            let (offset, len) = (offset(at, jobs), APPEND_BYTES);
            ring.write_durable(DiskWrite { file, offset, buf: memory, len, tag: 0 });
            while buf.is_none() {
                ring.wait(None, &mut completions)?;
                for completion in completions.drain(..) {
                    if let Completion::Disk { buf: back, result, .. } = completion {
                        assert_eq!(result? as usize, APPEND_BYTES);
                        buf = back;
                    }
                }
            }
            latency_ns.record(begun.elapsed().as_nanos() as u64)?;
        }
        Ok(Appends { latency_ns, cpu: process_cpu() - cpu })
    })
}

/// The server's CPU for all messages.
pub fn echo(connections: usize, messages: usize) -> Outcome<Duration> {
    run(move || {
        let mut ring = Ring::new(RingConfig::default())?;
        let addr = SocketAddr::from(([127, 0, 0, 1], 0));
        let (_, addr) = ring.listen(TcpListen { addr, reuse_port: false, backlog: 1024 })?;
        let clients = echo::start(addr, connections, messages);
        let before = thread_cpu();
        let mut left = connections;
        let mut idle: Vec<Vec<u8>> = Vec::new();
        let mut completions = Vec::new();
        while left > 0 {
            ring.wait(None, &mut completions)?;
            for completion in completions.drain(..) {
                match completion {
                    Completion::Accepted { socket, .. } => ring.start_receive(socket),
                    Completion::Received { socket, lease } => {
                        let mut buf = idle.pop().unwrap_or_default();
                        buf.clear();
                        buf.extend_from_slice(ring.bytes(&lease));
                        ring.release(lease);
                        ring.send(socket, buf);
                    }
                    Completion::Sent { buf, result, .. } => {
                        result?;
                        idle.push(buf);
                    }
                    Completion::ReceiveEnded { socket, .. } => ring.close(socket),
                    Completion::Closed { .. } => left -= 1,
                    other => return Err(format!("an echo met {other:?}").into()),
                }
            }
        }
        let cpu = thread_cpu() - before;
        for client in clients {
            client.join().map_err(|_| "a client failed")?;
        }
        Ok(cpu)
    })
}

/// Runs a job on a thread of its own.
fn run<T: Send + 'static>(job: impl FnOnce() -> Outcome<T> + Send + 'static) -> Outcome<T> {
    let named = thread::Builder::new().name("ours".into());
    named.spawn(job)?.join().map_err(|_| "the server's thread panicked")?
}
