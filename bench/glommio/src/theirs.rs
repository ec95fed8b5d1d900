//! Both jobs on glommio, by its own means: a DMA file, tasks, no spinning.
//!
//! Failure: an operation's error ends the run.

use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, Instant};

use futures_lite::{AsyncReadExt, AsyncWriteExt};
use glommio::LocalExecutorBuilder;
use glommio::io::OpenOptions;
use glommio::net::TcpListener;
use hdrhistogram::Histogram;

use crate::{APPEND_BYTES, Appends, Jobs, Outcome, echo, offset, process_cpu, thread_cpu};

pub fn append(path: &Path, jobs: &'static Jobs) -> Outcome<Appends> {
    let path = path.to_owned();
    run(move || async move {
        let file =
            OpenOptions::new().read(true).write(true).dma_open(&path).await.map_err(plain)?;
        // It could fill a buffer for each write; one that stays is the cheaper way.
        let mut buf = file.alloc_dma_buffer(APPEND_BYTES);
        buf.as_bytes_mut().fill(7);
        let buf = Rc::new(buf);
        let mut latency_ns = Histogram::new(3)?;
        let mut cpu = Duration::ZERO;
        for at in 0..jobs.warm_up + jobs.appends {
            if at == jobs.warm_up {
                latency_ns.clear();
                cpu = process_cpu();
            }
            let begun = Instant::now();
            let bytes = file.write_rc_at(Rc::clone(&buf), offset(at, jobs)).await.map_err(plain)?;
            assert_eq!(bytes, APPEND_BYTES);
            file.fdatasync().await.map_err(plain)?;
            latency_ns.record(begun.elapsed().as_nanos() as u64)?;
        }
        let cpu = process_cpu() - cpu;
        file.close().await.map_err(plain)?;
        Ok(Appends { latency_ns, cpu })
    })
}

/// The server's CPU for all messages.
pub fn echo(connections: usize, messages: usize) -> Outcome<Duration> {
    run(move || async move {
        let listener = TcpListener::bind("127.0.0.1:0").map_err(plain)?;
        let clients = echo::start(listener.local_addr().map_err(plain)?, connections, messages);
        let before = thread_cpu();
        let mut served = Vec::new();
        for _ in 0..connections {
            let mut stream = listener.accept().await.map_err(plain)?;
            stream.set_nodelay(true).map_err(plain)?;
            served.push(glommio::spawn_local(async move {
                let mut buf = [0; 16 * 1024];
                loop {
                    let bytes = stream.read(&mut buf).await?;
                    if bytes == 0 {
                        return std::io::Result::Ok(());
                    }
                    stream.write_all(&buf[..bytes]).await?;
                }
            }));
        }
        for connection in served {
            connection.await?;
        }
        let cpu = thread_cpu() - before;
        for client in clients {
            client.join().map_err(|_| "a client failed")?;
        }
        Ok(cpu)
    })
}

/// Runs a job on an executor of its own thread.
fn run<T, J, F>(job: J) -> Outcome<T>
where
    T: Send + 'static,
    J: FnOnce() -> F + Send + 'static,
    F: Future<Output = Outcome<T>> + 'static,
{
    let executor = LocalExecutorBuilder::default().name("glommio");
    executor.spawn(job).map_err(plain)?.join().map_err(plain)?
}

/// Its errors may hold what can't leave the thread; the words can.
fn plain<T>(error: glommio::GlommioError<T>) -> String {
    error.to_string()
}
