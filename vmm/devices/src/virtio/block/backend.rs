//! Where a disk's bytes live.
//!
//! Owns the seam between the device and the host: operations that are started and complete later,
//! in any order. The caller checked that offsets and lengths lie on the disk; nothing here looks at
//! a request.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::fd::BorrowedFd;

use vm_memory::{
    GuestAddress, GuestMemory, Permissions, ReadVolatile, VolatileMemoryError, VolatileSlice,
    WriteVolatile,
};

use crate::memory::Memory;
use crate::virtio::queue::Buffers;

/// What a disk is. Constant.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DiskFacts {
    /// Length in bytes.
    pub bytes: u64,
    /// What positions and lengths of reads and writes have to be multiples of, in bytes: a power of
    /// two from 512 on.
    pub logical_block: u32,
    /// What the host writes at once without reading before, in bytes: a power of two that is not
    /// less than `logical_block`.
    pub physical_block: u32,
    /// Whether [`Operation::Discard`] does anything.
    pub can_discard: bool,
    /// Whether [`Operation::WriteZeroes`] does anything.
    pub can_write_zeroes: bool,
}

impl DiskFacts {
    /// `bytes` bytes in blocks of 512 that can only be read and written.
    #[must_use]
    pub fn plain(bytes: u64) -> Self {
        Self {
            bytes,
            logical_block: 512,
            physical_block: 512,
            can_discard: false,
            can_write_zeroes: false,
        }
    }
}

/// What becomes of the host's storage under a range of zeroes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Space {
    /// It stays reserved for the disk.
    Keep,
    /// The host may have it back.
    MayFree,
}

/// One thing to do. Positions and lengths are in bytes and lie on the disk.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Operation {
    /// Fill `data` from `offset`.
    Read {
        /// Position on the disk.
        offset: u64,
        /// Where the bytes go.
        data: Buffers,
    },
    /// Write `data` to `offset`.
    Write {
        /// Position on the disk.
        offset: u64,
        /// Where the bytes come from.
        data: Buffers,
    },
    /// Give up the content of a range, which reads as before or as zeroes then, in whole or in part.
    Discard {
        /// Position on the disk.
        offset: u64,
        /// Length.
        bytes: u64,
    },
    /// Make a range read as zeroes.
    WriteZeroes {
        /// Position on the disk.
        offset: u64,
        /// Length.
        bytes: u64,
        /// What the driver allows.
        space: Space,
    },
    /// Make every write that completed before durable.
    Flush,
}

/// The device's name for an operation in progress: below the number that
/// [`BlockBackend::start`] was promised, and never that of another one in progress.
pub type RequestId = u16;

/// A buffer of an operation is not RAM.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("a buffer is not in guest memory")]
pub struct NotMemory;

/// An operation that is over.
#[derive(Debug)]
pub struct Completion {
    /// Its name, which is free again.
    pub id: RequestId,
    /// [`io::ErrorKind::Unsupported`] if the host turns out to be unable; else what it says. Part
    /// of the bytes may have moved all the same.
    pub result: io::Result<()>,
}

/// Bytes of a disk. Used by one thread at a time.
pub trait BlockBackend: Send {
    /// What the disk is.
    fn facts(&self) -> DiskFacts;

    /// Starts `operation` as `id`. It may move bytes of `memory`, which is the same in all calls,
    /// until it is complete.
    ///
    /// # Errors
    /// If a buffer is not RAM: nothing was started.
    fn start(
        &mut self,
        id: RequestId,
        operation: &Operation,
        memory: &Memory,
    ) -> Result<(), NotMemory>;

    /// An operation that is complete, in any order. With `None` everything that was started is in
    /// the host's hands, and [`Self::descriptor`] tells when to ask again.
    fn next_completed(&mut self) -> Option<Completion>;

    /// Blocks until [`Self::next_completed`] has something. Only called while operations are in
    /// progress and none is complete.
    fn wait(&mut self);

    /// Has input (an edge) when an operation completed. `None` if all are complete at once.
    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}

/// `data` as memory to transfer to or from.
///
/// # Errors
/// If a part of it is not RAM.
pub fn slices<'a>(
    data: &Buffers,
    memory: &'a Memory,
    access: Permissions,
) -> Result<Vec<VolatileSlice<'a>>, NotMemory> {
    let mut found = Vec::with_capacity(data.segments().len());
    for segment in data.segments() {
        let bytes = usize::try_from(segment.bytes).map_err(|_| NotMemory)?;
        let parts = memory
            .get_slices(GuestAddress(segment.address), bytes, access)
            .map_err(|_| NotMemory)?;
        for part in parts {
            found.push(part.map_err(|_| NotMemory)?);
        }
    }
    Ok(found)
}

/// A raw image in a file or on a block device, by safe means alone: for tests and fuzzers. It knows
/// no discarding, and an operation is complete when it was started.
///
/// Works with the descriptor's own file position, as vm-memory offers no positioned transfer to
/// guest memory: the open file description must not be shared with anybody who moves it.
#[derive(Debug)]
pub struct FileBackend {
    file: File,
    bytes: u64,
    completed: VecDeque<Completion>,
}

impl FileBackend {
    /// The first `bytes` bytes of `file` as a disk. A file that is shorter fails the requests
    /// beyond its end.
    #[must_use]
    pub fn new(file: File, bytes: u64) -> Self {
        Self {
            file,
            bytes,
            completed: VecDeque::new(),
        }
    }

    fn read(&mut self, offset: u64, buffers: &[VolatileSlice<'_>]) -> io::Result<()> {
        self.file.seek(SeekFrom::Start(offset))?;
        for buffer in buffers {
            let mut buffer = buffer.offset(0).map_err(into_io_error)?;
            self.file
                .read_exact_volatile(&mut buffer)
                .map_err(into_io_error)?;
        }
        Ok(())
    }

    fn write(&mut self, offset: u64, buffers: &[VolatileSlice<'_>]) -> io::Result<()> {
        self.file.seek(SeekFrom::Start(offset))?;
        for buffer in buffers {
            self.file
                .write_all_volatile(buffer)
                .map_err(into_io_error)?;
        }
        Ok(())
    }
}

impl BlockBackend for FileBackend {
    fn facts(&self) -> DiskFacts {
        DiskFacts::plain(self.bytes)
    }

    fn start(
        &mut self,
        id: RequestId,
        operation: &Operation,
        memory: &Memory,
    ) -> Result<(), NotMemory> {
        let result = match operation {
            Operation::Read { offset, data } => {
                self.read(*offset, &slices(data, memory, Permissions::Write)?)
            }
            Operation::Write { offset, data } => {
                self.write(*offset, &slices(data, memory, Permissions::Read)?)
            }
            Operation::Flush => self.file.sync_data(),
            Operation::Discard { .. } | Operation::WriteZeroes { .. } => {
                Err(io::ErrorKind::Unsupported.into())
            }
        };
        self.completed.push_back(Completion { id, result });
        Ok(())
    }

    fn next_completed(&mut self) -> Option<Completion> {
        self.completed.pop_front()
    }

    fn wait(&mut self) {}
}

fn into_io_error(error: VolatileMemoryError) -> io::Error {
    match error {
        VolatileMemoryError::IOError(error) => error,
        other @ (VolatileMemoryError::OutOfBounds { .. }
        | VolatileMemoryError::Overflow { .. }
        | VolatileMemoryError::TooBig { .. }
        | VolatileMemoryError::Misaligned { .. }
        | VolatileMemoryError::PartialBuffer { .. }) => io::Error::other(other),
    }
}
