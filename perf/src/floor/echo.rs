//! The floor of an answer that waits for no disk: what comes is sent back.
//!
//! ```text
//!   receive ──▶ the bytes, copied once ──▶ send          one enter of the ring for each turn
//! ```
//! Invariant: no allocation once the buffers have gone round. Failure: a connection that breaks is
//! closed; the ring's own failure ends the server.

use net::{Completion, Ring, RingError};

use super::serve::{Stop, spare};

/// Serves until it is told to stop.
pub(super) fn serve(ring: &mut Ring, stop: &Stop) -> Result<(), RingError> {
    let mut completions = Vec::new();
    let mut idle: Vec<Vec<u8>> = Vec::new();
    while !stop.is_set() {
        ring.wait(None, &mut completions)?;
        for completion in completions.drain(..) {
            match completion {
                Completion::Accepted { socket, .. } => ring.start_receive(socket),
                Completion::Received { socket, lease } => {
                    let mut buf = spare(&mut idle);
                    buf.extend_from_slice(ring.bytes(&lease));
                    ring.release(lease);
                    ring.send(socket, buf);
                }
                Completion::Sent { socket, buf, result } => {
                    if result.is_err() {
                        ring.close(socket);
                    }
                    idle.push(buf);
                }
                Completion::ReceiveEnded { socket, .. } => ring.close(socket),
                Completion::AcceptFailed { .. }
                | Completion::ListenerClosed { .. }
                | Completion::Connected { .. }
                | Completion::Closed { .. }
                | Completion::HandedOver { .. }
                | Completion::Disk { .. } => {}
            }
        }
    }
    Ok(())
}
