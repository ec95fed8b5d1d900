//! The floor of a durable write: aligned, with data sync, to a pre-written file, nothing else.
//!
//! ```text
//!   due ──▶ a free buffer ──▶ RWF_DSYNC at the next offset, round and round ──▶ done
//! ```
//! What a journal would do with an idle network. Failure: a failed or short write ends it.

use net::{Completion, DiskWrite};

use super::commit::{BLOCK_BYTES, FILE_BYTES, Store, written};
use super::pace::{Pace, Sent, clock};
use super::{FloorError, FloorLoad, new_ring};
use crate::block::Block;
use crate::schedule::Share;

/// Runs a load of writes of whole blocks.
pub(super) fn run(store: &Store, load: &FloorLoad) -> Result<Block, FloorError> {
    let len = load.size.next_multiple_of(BLOCK_BYTES);
    let mut ring = new_ring()?;
    let (file, mut idle) = store.enter(&mut ring, load.in_flight, len)?;
    // Random bytes cost a device as much as any; a file of zeros may not.
    for (at, byte) in idle.iter_mut().flat_map(|buf| buf.iter_mut()).enumerate() {
        *byte = (at % 251) as u8;
    }
    let mut under_way: Vec<Option<Sent>> = vec![None; load.in_flight];
    let mut slots: Vec<usize> = (0..load.in_flight).rev().collect();
    let mut completions = Vec::new();
    let mut offset = 0;
    let mut free_since_ns = 0;
    let mut pace = Pace::new(load, Share::WHOLE, clock());
    loop {
        let now_ns = pace.now_ns();
        pace.window_begins(now_ns);
        while let Some(&slot) = slots.last() {
            let Some(sent) = pace.due(now_ns, free_since_ns) else { break };
            pace.spun(now_ns);
            let buf = idle.pop().expect("a buffer for each slot");
            under_way[slots.pop().unwrap_or(slot)] = Some(sent);
            ring.write_durable(DiskWrite { file, offset, buf, len, tag: slot as u64 });
            offset += len as u64;
            if offset + len as u64 > FILE_BYTES {
                offset = 0;
            }
        }
        if pace.is_over(now_ns, load.in_flight - slots.len()) {
            let (recorder, ended) = pace.finish(under_way.into_iter().flatten());
            return Ok(recorder.finish(&[ended]));
        }
        let timeout = pace.timeout(now_ns, !slots.is_empty());
        ring.wait(Some(timeout), &mut completions).map_err(FloorError::Ring)?;
        if completions.is_empty() {
            continue;
        }
        let now_ns = pace.now_ns();
        pace.spun(now_ns);
        if slots.is_empty() {
            free_since_ns = now_ns;
        }
        for completion in completions.drain(..) {
            let Completion::Disk { tag, buf, result } = completion else { continue };
            let slot = usize::try_from(tag).expect("a tag is a slot");
            written(result, len)?;
            pace.done(under_way[slot].take().expect("a write under way"), now_ns);
            slots.push(slot);
            idle.extend(buf);
        }
    }
}
