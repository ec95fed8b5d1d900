//! What ties bytes to one shard's log: the seed of its checksums and the chain of its batches.
//!
//! ```text
//!  log id (128 random bits) + shard --> LogSeed { crc: 32 bits, chain: 64 bits }
//!
//!  crc(bytes)  = crc32c continued from the seed's crc
//!  chain'      = mix64(rotl(chain, 23) ^ (header crc << 32 | body crc))
//! ```
//!
//! Invariants: no client knows the log id, so no payload can be made to pass for a header at a
//! block boundary; bytes of another log or another shard never check. The chain's step is a
//! bijection of the chain before for each pair of checksums: two different histories meet again
//! only by a collision of 64 bits. Both are guards against accidents and stale bytes, not
//! signatures.

use crate::lsn::{LogId, Lsn, ShardId};

/// The seeds of one shard's log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogSeed {
    log: LogId,
    shard: ShardId,
    crc: u32,
    chain: Chain,
}

/// Everything that was written up to a point, in 64 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chain(pub u64);

impl Chain {
    /// The value after the batch with these checksums.
    #[must_use]
    pub(crate) const fn next(self, header_crc: u32, body_crc: u32) -> Self {
        let crcs = ((header_crc as u64) << 32) | body_crc as u64;
        Self(mix64(self.0.rotate_left(23) ^ crcs))
    }
}

impl LogSeed {
    /// The seeds of this shard's share of this log.
    #[must_use]
    pub fn new(log: LogId, shard: ShardId) -> Self {
        let (low, high) = log.0.split_at(8);
        let low = u64::from_le_bytes(low.try_into().expect("eight bytes"));
        let high = u64::from_le_bytes(high.try_into().expect("eight bytes"));
        let chain = mix64(mix64(low).wrapping_add(high) ^ (u64::from(shard.0) << 48));
        let crc = crc32c::crc32c_append(crc32c::crc32c(&log.0), &shard.0.to_le_bytes());
        Self { log, shard, crc, chain: Chain(chain) }
    }

    /// Which log.
    #[must_use]
    pub const fn log(&self) -> LogId {
        self.log
    }

    /// Whose log.
    #[must_use]
    pub const fn shard(&self) -> ShardId {
        self.shard
    }

    /// The chain before the first batch.
    #[must_use]
    pub const fn chain_start(&self) -> Chain {
        self.chain
    }

    pub(crate) fn crc(&self, bytes: &[u8]) -> u32 {
        crc32c::crc32c_append(self.crc, bytes)
    }

    pub(crate) fn record_crc(&self, lsn: Lsn, bytes: &[u8]) -> u32 {
        crc32c::crc32c_append(self.crc(&lsn.0.to_le_bytes()), bytes)
    }
}

/// The finaliser of splitmix64: a bijection in which every bit of the input moves every bit of the
/// output with a chance of one half.
#[must_use]
pub const fn mix64(value: u64) -> u64 {
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_log_and_each_shard_has_seeds_of_its_own() {
        let a = LogSeed::new(LogId([1; 16]), ShardId(0));
        let b = LogSeed::new(LogId([1; 16]), ShardId(1));
        let c = LogSeed::new(LogId([2; 16]), ShardId(0));
        assert!(a.chain_start() != b.chain_start() && a.chain_start() != c.chain_start());
        assert!(a.crc(b"x") != b.crc(b"x") && a.crc(b"x") != c.crc(b"x"));
    }

    #[test]
    fn the_chain_depends_on_order() {
        let start = Chain(1);
        assert_ne!(start.next(1, 2).next(3, 4), start.next(3, 4).next(1, 2));
        assert_ne!(start.next(1, 2), start.next(2, 1));
    }

    #[test]
    fn the_format_is_pinned() {
        let seed = LogSeed::new(LogId([0x11; 16]), ShardId(2));
        assert_eq!(seed.crc(b"laelaps"), 0x83e1_e241);
        assert_eq!(seed.chain_start().next(1, 2), Chain(0x0100_7b25_327f_8f33));
    }
}
