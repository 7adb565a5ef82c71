//! A raw disk on the host: an image file or a block device behind a virtio disk.
//!
//! Owns which system call serves which operation. Requests were checked by the device; addresses are
//! [`berth_vmm_sys::vectored_io`]'s.

#[cfg(test)]
mod tests;

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use berth_vmm_devices::virtio::block::backend::{BlockBackend, Space};
use berth_vmm_sys::vectored_io;
use rustix::fs::{FallocateFlags, FileType, fallocate, fstat};
use rustix::io::Errno;
use vm_memory::VolatileSlice;

use crate::disk_failures::DiskFailures;
use crate::spec::DiskSpec;

/// What hosts free at once: a block of a file system or of a drive.
const BLOCK_BYTES: u64 = 4096;
/// What is written where the host cannot zero a range by itself.
static ZEROES: [u8; 64 << 10] = [0; 64 << 10];

/// A disk's bytes on the host.
#[derive(Debug)]
pub struct DiskFile {
    file: File,
    bytes: u64,
    writable: bool,
    can_discard: bool,
    /// The disk's place in the start message.
    position: usize,
    failures: Arc<DiskFailures>,
}

impl DiskFile {
    /// The disk that `spec` describes, which is number `position`.
    ///
    /// # Errors
    /// If the host cannot say what kind of file it is.
    pub fn new(spec: DiskSpec, position: usize, failures: Arc<DiskFailures>) -> io::Result<Self> {
        Ok(Self {
            can_discard: !spec.read_only && can_punch(&spec.file)?,
            file: spec.file,
            bytes: spec.bytes,
            writable: !spec.read_only,
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

    fn allocate(&self, how: FallocateFlags, offset: u64, bytes: u64) -> Result<(), Errno> {
        let how = how | FallocateFlags::KEEP_SIZE;
        rustix::io::retry_on_intr(|| fallocate(&self.file, how, offset, bytes))
    }

    fn free(&self, offset: u64, bytes: u64) -> io::Result<()> {
        let end = (offset + bytes) / BLOCK_BYTES * BLOCK_BYTES;
        let start = offset.next_multiple_of(BLOCK_BYTES);
        // Parts of blocks cannot be freed, and a block device refuses ranges that cut one.
        match end.checked_sub(start) {
            None | Some(0) => Ok(()),
            Some(whole) => match self.allocate(FallocateFlags::PUNCH_HOLE, start, whole) {
                Err(Errno::OPNOTSUPP) => Err(io::ErrorKind::Unsupported.into()),
                result => Ok(result?),
            },
        }
    }

    fn zero(&self, offset: u64, bytes: u64, space: Space) -> io::Result<()> {
        let how = match space {
            Space::MayFree => FallocateFlags::PUNCH_HOLE,
            Space::Keep => FallocateFlags::ZERO_RANGE,
        };
        match self.allocate(how, offset, bytes) {
            // A file system without it, or a range that cuts a block of a block device.
            Err(Errno::OPNOTSUPP | Errno::INVAL) => self.write_zero_bytes(offset, bytes),
            result => Ok(result?),
        }
    }

    fn write_zero_bytes(&self, offset: u64, bytes: u64) -> io::Result<()> {
        let end = offset + bytes;
        let mut at = offset;
        while at < end {
            let left = usize::try_from(end - at).unwrap_or(usize::MAX);
            let (now, _) = ZEROES.split_at(left.min(ZEROES.len()));
            self.file.write_all_at(now, at)?;
            at = at.saturating_add(u64::try_from(now.len()).unwrap_or(u64::MAX));
        }
        Ok(())
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
    let how = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    let behind = end.next_multiple_of(BLOCK_BYTES);
    Ok(fallocate(file, how, behind, BLOCK_BYTES).is_ok())
}

impl BlockBackend for DiskFile {
    fn bytes(&self) -> u64 {
        self.bytes
    }

    fn read_at(&mut self, offset: u64, buffers: &[VolatileSlice<'_>]) -> io::Result<()> {
        self.watched(vectored_io::read_exact_at(
            self.file.as_fd(),
            offset,
            buffers,
        ))
    }

    fn write_at(&mut self, offset: u64, buffers: &[VolatileSlice<'_>]) -> io::Result<()> {
        self.watched(vectored_io::write_all_at(
            self.file.as_fd(),
            offset,
            buffers,
        ))
    }

    fn flush(&mut self) -> io::Result<()> {
        self.watched(self.file.sync_data())
    }

    fn can_discard(&self) -> bool {
        self.can_discard
    }

    fn discard(&mut self, offset: u64, bytes: u64) -> io::Result<()> {
        self.watched(self.free(offset, bytes))
    }

    fn can_write_zeroes(&self) -> bool {
        self.writable
    }

    fn write_zeroes(&mut self, offset: u64, bytes: u64, space: Space) -> io::Result<()> {
        self.watched(self.zero(offset, bytes, space))
    }
}
