//! What a disk tells its driver: feature bits and the configuration space. Pure.

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_MQ,
    VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_TOPOLOGY, VIRTIO_BLK_F_WRITE_ZEROES,
};

use super::QUEUE_SIZE;
use super::backend::DiskFacts;
use super::request::{MAX_DATA_BYTES, SECTOR_BYTES};

/// `struct virtio_blk_config` up to the zoned fields, which belong to a feature of their own.
pub(super) const CONFIG_BYTES: usize = 60;

/// Number of sectors, a `u64`.
pub(super) const CAPACITY: usize = 0;
const SEGMENTS: usize = 12;
const BLOCK_SIZE: usize = 20;
/// Physical block as a power of two of logical ones (a byte), alignment (a byte), and the least
/// useful transfer in logical blocks.
const TOPOLOGY: usize = 24;
const QUEUES: usize = 34;
/// Most sectors, most segments, alignment in sectors.
const DISCARD: usize = 36;
/// Most sectors, most segments, and a byte that says whether zeroes may free storage.
const WRITE_ZEROES: usize = 48;

/// Data segments of one request: what a chain holds besides header and status.
const MAX_SEGMENTS: u32 = QUEUE_SIZE as u32 - 2;
/// Sectors of one range to discard or to fill with zeroes.
const RANGE_SECTORS: u32 = 131_072;
const _: () = assert!(RANGE_SECTORS as u64 * SECTOR_BYTES == MAX_DATA_BYTES);
/// A request has one range.
const RANGES: u32 = 1;
/// Hosts free storage in pieces of 4 KiB or more.
const DISCARD_ALIGNMENT_SECTORS: u32 = 8;

/// Feature bits of a disk.
pub(super) fn offered(facts: DiskFacts, read_only: bool, queues: u16) -> u64 {
    let when = |condition: bool, feature: u32| u64::from(condition) << feature;
    1 << VIRTIO_BLK_F_SEG_MAX
        | 1 << VIRTIO_BLK_F_BLK_SIZE
        | 1 << VIRTIO_BLK_F_FLUSH
        | 1 << VIRTIO_BLK_F_TOPOLOGY
        | when(queues > 1, VIRTIO_BLK_F_MQ)
        | when(read_only, VIRTIO_BLK_F_RO)
        | when(!read_only && facts.can_discard, VIRTIO_BLK_F_DISCARD)
        | when(
            !read_only && facts.can_write_zeroes,
            VIRTIO_BLK_F_WRITE_ZEROES,
        )
}

/// The configuration space. What belongs to a feature that is not offered stays zero.
pub(super) fn configuration(facts: DiskFacts, features: u64, queues: u16) -> [u8; CONFIG_BYTES] {
    let mut config = [0; CONFIG_BYTES];
    let mut put = |at: usize, value: &[u8]| config[at..][..value.len()].copy_from_slice(value);
    put(CAPACITY, &(facts.bytes / SECTOR_BYTES).to_le_bytes());
    put(SEGMENTS, &MAX_SEGMENTS.to_le_bytes());
    put(BLOCK_SIZE, &facts.logical_block.to_le_bytes());
    let per_physical = (facts.physical_block / facts.logical_block.max(1)).max(1);
    let exponent = per_physical.ilog2().to_le_bytes()[0];
    let least = u16::try_from(per_physical)
        .unwrap_or(u16::MAX)
        .to_le_bytes();
    put(TOPOLOGY, &[exponent, 0, least[0], least[1]]);
    if features & 1 << VIRTIO_BLK_F_MQ != 0 {
        put(QUEUES, &queues.to_le_bytes());
    }
    if features & 1 << VIRTIO_BLK_F_DISCARD != 0 {
        put(DISCARD, &RANGE_SECTORS.to_le_bytes());
        put(DISCARD + 4, &RANGES.to_le_bytes());
        put(DISCARD + 8, &DISCARD_ALIGNMENT_SECTORS.to_le_bytes());
    }
    if features & 1 << VIRTIO_BLK_F_WRITE_ZEROES != 0 {
        put(WRITE_ZEROES, &RANGE_SECTORS.to_le_bytes());
        put(WRITE_ZEROES + 4, &RANGES.to_le_bytes());
        put(WRITE_ZEROES + 8, &[1]);
    }
    config
}
