//! A disk whose requests are in progress side by side, on an io_uring of its own.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use berth_vmm_devices::memory::Memory;
use berth_vmm_devices::virtio::block::backend::{
    BlockBackend, Completion, DiskFacts, NotMemory, Operation, RequestId,
};
use berth_vmm_devices::virtio::queue::Buffers;
use berth_vmm_sys::io_ring::{Direction, IoRing, StartError};
use rustix::fs::FallocateFlags;
use rustix::io::Errno;

use super::{DiskFile, discarding, whole_blocks, zeroing};

/// A disk's bytes on the host.
pub(super) struct RingDisk {
    disk: DiskFile,
    ring: IoRing,
    /// What becomes of a request that the host is unable to serve, by the request's number.
    otherwise: Box<[Otherwise]>,
    /// What was done without the ring.
    completed: VecDeque<Completion>,
}

/// What an `EOPNOTSUPP` or `EINVAL` of the host means.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Otherwise {
    /// A failure.
    Fail,
    /// That it has no discarding here.
    Unable,
    /// That zeroes have to be written.
    WriteZeroes { offset: u64, bytes: u64 },
}

impl RingDisk {
    /// A disk with up to `requests` requests at once, or `disk` as it was, and why, if
    /// the host has no io_uring for us.
    pub(super) fn new(
        disk: DiskFile,
        memory: Memory,
        requests: u16,
    ) -> Result<Self, Box<(DiskFile, io::Error)>> {
        match IoRing::new(disk.file.as_fd(), memory, requests) {
            Ok(ring) => Ok(Self {
                disk,
                ring,
                otherwise: vec![Otherwise::Fail; usize::from(requests)].into(),
                completed: VecDeque::new(),
            }),
            Err(error) => Err(Box::new((disk, error))),
        }
    }

    fn transfer(
        &mut self,
        id: RequestId,
        direction: Direction,
        offset: u64,
        data: &Buffers,
    ) -> Result<(), StartError> {
        let segments = data.segments().iter();
        let segments = segments.map(|segment| (segment.address, segment.bytes));
        self.ring.transfer(id, direction, offset, segments)
    }

    fn allocate(
        &mut self,
        id: RequestId,
        how: FallocateFlags,
        (offset, bytes): (u64, u64),
        otherwise: Otherwise,
    ) -> Result<(), StartError> {
        if let Some(place) = self.otherwise.get_mut(usize::from(id)) {
            *place = otherwise;
        }
        let how = i32::try_from(how.bits()).map_err(|_| StartError::NoPlace)?;
        self.ring.allocate(id, how, offset, bytes)
    }

    /// Records a request that needed no ring.
    fn done(&mut self, id: RequestId, result: io::Result<()>) {
        let result = self.disk.watched(result);
        self.completed.push_back(Completion { id, result });
    }

    /// What the end of request `id` means; `None` if it goes on in another way.
    fn judge(&mut self, id: RequestId, result: io::Result<()>) -> Option<io::Result<()>> {
        let place = self.otherwise.get_mut(usize::from(id));
        let otherwise = place.map_or(Otherwise::Fail, |it| std::mem::replace(it, Otherwise::Fail));
        let error = result.as_ref().err().and_then(Errno::from_io_error);
        match (otherwise, error) {
            (Otherwise::Unable, Some(Errno::OPNOTSUPP)) => {
                Some(Err(io::ErrorKind::Unsupported.into()))
            }
            // A file system without it, or a range that cuts a block of a block device.
            (Otherwise::WriteZeroes { offset, bytes }, Some(Errno::OPNOTSUPP | Errno::INVAL))
                if self.ring.write_zeroes(id, offset, bytes).is_ok() =>
            {
                None
            }
            _ => Some(result),
        }
    }
}

impl BlockBackend for RingDisk {
    fn facts(&self) -> DiskFacts {
        self.disk.facts
    }

    fn start(
        &mut self,
        id: RequestId,
        operation: &Operation,
        memory: &Memory,
    ) -> Result<(), NotMemory> {
        // The ring has its own hold on guest RAM, as its transfers go on after this call.
        let started = match operation {
            Operation::Read { offset, data } if self.disk.alignment.fits(data) => {
                self.transfer(id, Direction::Read, *offset, data)
            }
            Operation::Write { offset, data } if self.disk.alignment.fits(data) => {
                self.transfer(id, Direction::Write, *offset, data)
            }
            Operation::Read { offset, data } => {
                let result = self.disk.read(*offset, data, memory)?;
                self.done(id, result);
                Ok(())
            }
            Operation::Write { offset, data } => {
                let result = self.disk.write(*offset, data, memory)?;
                self.done(id, result);
                Ok(())
            }
            Operation::Flush => self.ring.sync_data(id),
            Operation::Discard { offset, bytes } => match whole_blocks(*offset, *bytes) {
                Some(whole) => self.allocate(id, discarding(), whole, Otherwise::Unable),
                None => {
                    self.done(id, Ok(()));
                    Ok(())
                }
            },
            Operation::WriteZeroes {
                offset,
                bytes,
                space,
            } => {
                let (offset, bytes) = (*offset, *bytes);
                let otherwise = Otherwise::WriteZeroes { offset, bytes };
                self.allocate(id, zeroing(*space), (offset, bytes), otherwise)
            }
        };
        // The device gives no number twice, so the other reason does not come.
        started.map_err(|_| NotMemory)
    }

    fn next_completed(&mut self) -> Option<Completion> {
        if let Some(completion) = self.completed.pop_front() {
            return Some(completion);
        }
        loop {
            let (id, result) = self.ring.next_completed()?;
            if let Some(result) = self.judge(id, result) {
                let result = self.disk.watched(result);
                return Some(Completion { id, result });
            }
        }
    }

    fn wait(&mut self) {
        self.ring.wait();
    }

    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        Some(self.ring.as_fd())
    }
}

impl fmt::Debug for RingDisk {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("RingDisk")
            .field("disk", &self.disk)
            .field("ring", &self.ring)
            .finish_non_exhaustive()
    }
}
