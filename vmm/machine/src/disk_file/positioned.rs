//! A disk by positioned calls, each of which ends before the next begins.

use std::collections::VecDeque;
use std::io;
use std::os::fd::AsFd;

use berth_vmm_devices::memory::Memory;
use berth_vmm_devices::virtio::block::backend::{
    BlockBackend, Completion, DiskFacts, NotMemory, Operation, RequestId, Space, slices,
};
use berth_vmm_devices::virtio::queue::Buffers;
use berth_vmm_sys::vectored_io;
use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::Errno;
use vm_memory::Permissions;

use super::{DiskFile, discarding, whole_blocks, zeroing};

/// A disk's bytes on the host.
#[derive(Debug)]
pub(super) struct PositionedDisk {
    disk: DiskFile,
    completed: VecDeque<Completion>,
}

impl PositionedDisk {
    pub(super) fn new(disk: DiskFile) -> Self {
        Self {
            disk,
            completed: VecDeque::new(),
        }
    }
}

impl BlockBackend for PositionedDisk {
    fn facts(&self) -> DiskFacts {
        self.disk.facts
    }

    fn start(
        &mut self,
        id: RequestId,
        operation: &Operation,
        memory: &Memory,
    ) -> Result<(), NotMemory> {
        let result = match operation {
            Operation::Read { offset, data } => self.disk.read(*offset, data, memory)?,
            Operation::Write { offset, data } => self.disk.write(*offset, data, memory)?,
            Operation::Discard { offset, bytes } => self.disk.free(*offset, *bytes),
            Operation::WriteZeroes {
                offset,
                bytes,
                space,
            } => self.disk.zero(*offset, *bytes, *space),
            Operation::Flush => self.disk.file.sync_data(),
        };
        let result = self.disk.watched(result);
        self.completed.push_back(Completion { id, result });
        Ok(())
    }

    fn next_completed(&mut self) -> Option<Completion> {
        self.completed.pop_front()
    }

    fn wait(&mut self) {}
}

impl DiskFile {
    /// Fills `data` from `offset` on.
    pub(super) fn read(
        &self,
        offset: u64,
        data: &Buffers,
        memory: &Memory,
    ) -> Result<io::Result<()>, NotMemory> {
        let buffers = slices(data, memory, Permissions::Write)?;
        let file = self.file.as_fd();
        Ok(if self.alignment.fits(data) {
            vectored_io::read_exact_at(file, offset, &buffers)
        } else {
            self.alignment.read_by_copy(file, offset, &buffers)
        })
    }

    /// Writes `data` to `offset` on.
    pub(super) fn write(
        &self,
        offset: u64,
        data: &Buffers,
        memory: &Memory,
    ) -> Result<io::Result<()>, NotMemory> {
        let buffers = slices(data, memory, Permissions::Read)?;
        let file = self.file.as_fd();
        Ok(if self.alignment.fits(data) {
            vectored_io::write_all_at(file, offset, &buffers)
        } else {
            self.alignment.write_by_copy(file, offset, &buffers)
        })
    }

    fn allocate(&self, how: FallocateFlags, offset: u64, bytes: u64) -> Result<(), Errno> {
        rustix::io::retry_on_intr(|| fallocate(&self.file, how, offset, bytes))
    }

    fn free(&self, offset: u64, bytes: u64) -> io::Result<()> {
        let Some((start, whole)) = whole_blocks(offset, bytes) else {
            return Ok(());
        };
        match self.allocate(discarding(), start, whole) {
            Err(Errno::OPNOTSUPP) => Err(io::ErrorKind::Unsupported.into()),
            result => Ok(result?),
        }
    }

    fn zero(&self, offset: u64, bytes: u64, space: Space) -> io::Result<()> {
        match self.allocate(zeroing(space), offset, bytes) {
            // A file system without it, or a range that cuts a block of a block device.
            Err(Errno::OPNOTSUPP | Errno::INVAL) => {
                vectored_io::write_zeroes_at(self.file.as_fd(), offset, bytes)
            }
            result => Ok(result?),
        }
    }
}
