//! Where a disk's bytes live.
//!
//! Owns the moving of bytes between a host file and guest memory, without a copy in between. The
//! caller checked that offsets and lengths lie on the disk; nothing here looks at a request.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};

use vm_memory::{ReadVolatile, VolatileMemoryError, VolatileSlice, WriteVolatile};

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
    /// Whether [`Self::discard`] does anything. Constant.
    fn can_discard(&self) -> bool {
        false
    }
    /// Gives up the content of a range, which reads as before or as zeroes then, in whole or in
    /// part. The caller checked the range.
    ///
    /// # Errors
    /// [`io::ErrorKind::Unsupported`] if the host turns out to be unable; else what it says.
    fn discard(&mut self, offset: u64, bytes: u64) -> io::Result<()> {
        let _ = (offset, bytes);
        Err(io::ErrorKind::Unsupported.into())
    }
    /// Whether [`Self::write_zeroes`] is there. Constant.
    fn can_write_zeroes(&self) -> bool {
        false
    }
    /// Makes a range read as zeroes. The caller checked the range.
    ///
    /// # Errors
    /// [`io::ErrorKind::Unsupported`] if the host turns out to be unable; else what it says.
    fn write_zeroes(&mut self, offset: u64, bytes: u64, space: Space) -> io::Result<()> {
        let _ = (offset, bytes, space);
        Err(io::ErrorKind::Unsupported.into())
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

/// A raw image in a file or on a block device, by safe means alone: for tests and fuzzers. It knows
/// no discarding.
///
/// Works with the descriptor's own file position, as vm-memory offers no positioned transfer to
/// guest memory: the open file description must not be shared with anybody who moves it.
#[derive(Debug)]
pub struct FileBackend {
    file: File,
    bytes: u64,
}

impl FileBackend {
    /// The first `bytes` bytes of `file` as a disk. A file that is shorter fails the requests
    /// beyond its end.
    #[must_use]
    pub fn new(file: File, bytes: u64) -> Self {
        Self { file, bytes }
    }
}

impl BlockBackend for FileBackend {
    fn bytes(&self) -> u64 {
        self.bytes
    }

    fn read_at(&mut self, offset: u64, buffers: &[VolatileSlice<'_>]) -> io::Result<()> {
        self.file.seek(SeekFrom::Start(offset))?;
        for buffer in buffers {
            let mut buffer = buffer.offset(0).map_err(into_io_error)?;
            self.file
                .read_exact_volatile(&mut buffer)
                .map_err(into_io_error)?;
        }
        Ok(())
    }

    fn write_at(&mut self, offset: u64, buffers: &[VolatileSlice<'_>]) -> io::Result<()> {
        self.file.seek(SeekFrom::Start(offset))?;
        for buffer in buffers {
            self.file
                .write_all_volatile(buffer)
                .map_err(into_io_error)?;
        }
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.sync_data()
    }
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

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn disk(content: &[u8]) -> FileBackend {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(content).unwrap();
        FileBackend::new(file, u64::try_from(content.len()).unwrap())
    }

    #[test]
    fn bytes_move_between_the_file_and_several_buffers() {
        let mut disk = disk(b"0123456789");
        let (mut first, mut second) = ([0; 2], [0; 3]);
        let slices = [
            VolatileSlice::from(&mut first[..]),
            VolatileSlice::from(&mut second[..]),
        ];
        disk.read_at(4, &slices).unwrap();
        assert_eq!((&first, &second), (b"45", b"678"));
        let slices = [
            VolatileSlice::from(&mut second[..]),
            VolatileSlice::from(&mut first[..]),
        ];
        disk.write_at(0, &slices).unwrap();
        disk.flush().unwrap();
        let mut all = [0; 10];
        disk.read_at(0, &[VolatileSlice::from(&mut all[..])])
            .unwrap();
        assert_eq!(&all, b"6784556789");
    }

    #[test]
    fn a_file_that_is_shorter_than_its_disk_fails_the_read() {
        let mut disk = disk(b"0123");
        let mut bytes = [0; 8];
        let error = disk
            .read_at(0, &[VolatileSlice::from(&mut bytes[..])])
            .unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }
}
