//! A raw disk on the host: an image file or a block device behind a virtio disk.
//!
//! Owns which way requests go: side by side through the file's own io_uring ([`ring`]), or one after
//! the other by positioned calls ([`positioned`]) where the host has no io_uring for us. Both do the
//! same and fail alike. Requests were checked by the device; addresses are `berth_vmm_sys`'s.

mod alignment;
mod positioned;
mod ring;
#[cfg(test)]
mod tests;

use std::fs::File;
use std::io;
use std::sync::Arc;

use berth_api::vmm::{RateLimit, Warning};
use berth_vmm_devices::memory::Memory;
use berth_vmm_devices::rate_limit::{Limits, Throttle};
use berth_vmm_devices::virtio::block::backend::{BlockBackend, DiskFacts, Space};
use berth_vmm_devices::virtio::block::{Block, BlockOptions, REQUESTS_PER_QUEUE};
use rustix::fs::{FallocateFlags, FileType, fallocate, fstat};

pub(crate) use self::alignment::Alignment;
use self::positioned::PositionedDisk;
use self::ring::RingDisk;
use crate::disk_failures::DiskFailures;
use crate::spec::DiskSpec;
use crate::timer::TimerFd;
use crate::warnings::Warnings;

/// What hosts free at once: a block of a file system or of a drive.
const BLOCK_BYTES: u64 = 4096;

/// What both kinds of disk are made of.
#[derive(Debug)]
struct DiskFile {
    file: File,
    facts: DiskFacts,
    alignment: Alignment,
    /// The disk's place in the start message.
    position: usize,
    failures: Arc<DiskFailures>,
}

/// The disk that `spec` describes, which is number `position`, for transfers to `memory`.
///
/// # Errors
/// If the host cannot say what kind of file it is, or has no descriptor left.
pub fn device(
    spec: DiskSpec,
    position: usize,
    failures: &Arc<DiskFailures>,
    warnings: &Warnings,
    memory: &Memory,
) -> io::Result<Block> {
    let options = BlockOptions {
        read_only: spec.read_only,
        serial: spec.serial.clone(),
        queues: spec.queues,
    };
    let RateLimit {
        bytes_per_second,
        requests_per_second,
    } = spec.rate_limit;
    let requests = spec.queues.saturating_mul(REQUESTS_PER_QUEUE);
    let disk = DiskFile::new(spec, position, Arc::clone(failures))?;
    // Without io_uring a guest has a slower disk, and a disk all the same; its operator is told.
    let backend: Box<dyn BlockBackend> = match RingDisk::new(disk, memory.clone(), requests) {
        Ok(disk) => Box::new(disk),
        Err(refused) => {
            let (disk, error) = *refused;
            warnings.tell(Warning::SlowDisk {
                disk: position,
                problem: error.to_string(),
            });
            Box::new(PositionedDisk::new(disk))
        }
    };
    let block = Block::new(backend, options);
    Ok(match Limits::new(bytes_per_second, requests_per_second) {
        Some(limits) => block.throttled(Throttle::new(limits, Box::new(TimerFd::new()?))),
        None => block,
    })
}

impl DiskFile {
    fn new(spec: DiskSpec, position: usize, failures: Arc<DiskFailures>) -> io::Result<Self> {
        let facts = DiskFacts {
            bytes: spec.bytes,
            logical_block: spec.alignment.logical_block(),
            physical_block: spec.alignment.physical_block(),
            can_discard: !spec.read_only && can_punch(&spec.file)?,
            can_write_zeroes: !spec.read_only,
        };
        Ok(Self {
            facts,
            file: spec.file,
            alignment: spec.alignment,
            position,
            failures,
        })
    }

    /// Tells a failure. That the host is unable to do something at all is none: the guest is told.
    fn watched(&self, result: io::Result<()>) -> io::Result<()> {
        result.inspect_err(|error| {
            if error.kind() != io::ErrorKind::Unsupported {
                self.failures.tell(self.position, error);
            }
        })
    }
}

/// The whole blocks in a range: parts of blocks cannot be freed, and a block device refuses ranges
/// that cut one. `None` if there are none.
fn whole_blocks(offset: u64, bytes: u64) -> Option<(u64, u64)> {
    let end = (offset + bytes) / BLOCK_BYTES * BLOCK_BYTES;
    let start = offset.next_multiple_of(BLOCK_BYTES);
    let whole = end.checked_sub(start).filter(|&whole| whole > 0)?;
    Some((start, whole))
}

/// How a range is given back.
fn discarding() -> FallocateFlags {
    FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE
}

/// How a range is made zero.
fn zeroing(space: Space) -> FallocateFlags {
    match space {
        Space::MayFree => discarding(),
        Space::Keep => FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE,
    }
}

/// Whether parts of `file` can be given back. A file system is asked by a hole behind the end, which
/// changes nothing. A block device answers only to a hole in its data: it is asked when the guest
/// discards, and may then be unable.
fn can_punch(file: &File) -> io::Result<bool> {
    let stat = fstat(file)?;
    if FileType::from_raw_mode(stat.st_mode).is_block_device() {
        return Ok(true);
    }
    let end = u64::try_from(stat.st_size).unwrap_or(0);
    let behind = end.next_multiple_of(BLOCK_BYTES);
    Ok(fallocate(file, discarding(), behind, BLOCK_BYTES).is_ok())
}
