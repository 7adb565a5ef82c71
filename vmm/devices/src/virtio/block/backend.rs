//! Where a disk's bytes live.

use std::fs::File;
use std::io;

use vm_memory::VolatileSlice;

/// Bytes of a disk. Used by one thread at a time.
pub trait BlockBackend: Send {
    /// Length of the disk in bytes. Constant.
    fn bytes(&self) -> u64;
    /// Fills `buffers` in order from the disk, starting at `offset`. The caller checked the range.
    ///
    /// # Errors
    /// If not every byte could be read.
    fn read_at(&mut self, offset: u64, buffers: &[VolatileSlice<'_>]) -> io::Result<()>;
    /// Writes `buffers` in order to the disk, starting at `offset`. The caller checked the range.
    ///
    /// # Errors
    /// If not every byte could be written.
    fn write_at(&mut self, offset: u64, buffers: &[VolatileSlice<'_>]) -> io::Result<()>;
    /// Makes every write that returned durable.
    ///
    /// # Errors
    /// If the host could not promise that.
    fn flush(&mut self) -> io::Result<()>;
}

/// A raw image in a file or on a block device.
#[derive(Debug)]
pub struct FileBackend {
    file: File,
    bytes: u64,
}

impl FileBackend {
    /// The first `bytes` bytes of `file` as a disk.
    #[must_use]
    pub fn new(file: File, bytes: u64) -> Self {
        Self { file, bytes }
    }

    /// The file behind the disk.
    #[must_use]
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Length of the disk in bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }
}
