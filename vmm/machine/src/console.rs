//! Where a console's bytes go: a stream that is never waited for, or two bounded files.
//!
//! Owns the console segment format of [`berth_api::vmm::console_segment`]. Writing never blocks a
//! vCPU and never fails the guest: bytes that cannot be kept are counted.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use berth_api::vmm::console_segment::{HEADER_BYTES, MAGIC};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};

use crate::spec::ConsoleSpec;

/// Bytes that nobody kept.
#[derive(Clone, Debug, Default)]
pub struct DroppedBytes(Arc<AtomicU64>);

impl DroppedBytes {
    fn add(&self, bytes: usize) {
        self.0
            .fetch_add(u64::try_from(bytes).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// How many since the start.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Opens the output of the serial port or of the virtio console.
///
/// # Errors
/// If a segment file cannot be read or prepared.
pub fn open(console: ConsoleSpec, dropped: DroppedBytes) -> io::Result<Box<dyn Write + Send>> {
    Ok(match console {
        ConsoleSpec::Stream(descriptor) => Box::new(Stream::new(descriptor, dropped)?),
        ConsoleSpec::Segments {
            files,
            segment_bytes,
        } => Box::new(Segments::open(files, segment_bytes, dropped)?),
    })
}

/// Bytes as they come; those that would block are dropped.
#[derive(Debug)]
struct Stream {
    file: File,
    dropped: DroppedBytes,
}

impl Stream {
    fn new(descriptor: OwnedFd, dropped: DroppedBytes) -> io::Result<Self> {
        let flags = fcntl_getfl(&descriptor)?;
        fcntl_setfl(&descriptor, flags | OFlags::NONBLOCK)?;
        Ok(Self {
            file: File::from(descriptor),
            dropped,
        })
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write(bytes).unwrap_or(0);
        self.dropped.add(bytes.len() - written);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Two files in turn.
#[derive(Debug)]
struct Segments {
    files: [File; 2],
    segment_bytes: u64,
    /// Which file is written.
    current: usize,
    /// Position in the whole output of the current segment's first byte.
    base: u64,
    /// Output bytes in the current segment.
    used: u64,
    dropped: DroppedBytes,
}

impl Segments {
    /// Continues after what the files hold; a file without a right header counts as empty.
    fn open(mut files: [File; 2], segment_bytes: u64, dropped: DroppedBytes) -> io::Result<Self> {
        let [first, second] = &mut files;
        let newest = match (held(first)?, held(second)?) {
            (Some(a), Some(b)) if b.base > a.base => Some((1, b)),
            (Some(a), _) => Some((0, a)),
            (None, Some(b)) => Some((1, b)),
            (None, None) => None,
        };
        let Some((current, Held { base, used })) = newest else {
            let mut segments = Self {
                files,
                segment_bytes,
                current: 0,
                base: 0,
                used: 0,
                dropped,
            };
            segments.begin(0, 0)?;
            return Ok(segments);
        };
        files[current].seek(SeekFrom::Start(HEADER_BYTES + used))?;
        Ok(Self {
            files,
            segment_bytes,
            current,
            base,
            used,
            dropped,
        })
    }

    /// Empties one file and makes it the current segment. The header is written before the file
    /// counts, so that a crash in between leaves the other segment the newest.
    fn begin(&mut self, current: usize, base: u64) -> io::Result<()> {
        let file = &mut self.files[current];
        file.set_len(0)?;
        file.seek(SeekFrom::Start(0))?;
        let [magic, position] = [MAGIC, base.to_le_bytes()];
        file.write_all(&[magic, position].concat())?;
        (self.current, self.base, self.used) = (current, base, 0);
        Ok(())
    }

    fn write_some(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.used >= self.segment_bytes {
            self.begin(1 - self.current, self.base + self.used)?;
        }
        let room = usize::try_from(self.segment_bytes - self.used).unwrap_or(usize::MAX);
        let written = self.files[self.current].write(&bytes[..bytes.len().min(room)])?;
        self.used += u64::try_from(written).unwrap_or(0);
        Ok(written)
    }
}

impl Write for Segments {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut rest = bytes;
        while !rest.is_empty() {
            match self.write_some(rest) {
                Ok(written) if written > 0 => rest = &rest[written..],
                Ok(_) | Err(_) => {
                    self.dropped.add(rest.len());
                    break;
                }
            }
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What one segment file holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Held {
    base: u64,
    used: u64,
}

fn held(file: &mut File) -> io::Result<Option<Held>> {
    let length = file.metadata()?.len();
    let Some(used) = length.checked_sub(HEADER_BYTES) else {
        return Ok(None);
    };
    let (mut magic, mut base) = ([0; MAGIC.len()], [0; 8]);
    file.seek(SeekFrom::Start(0))?;
    file.read_exact(&mut magic)?;
    file.read_exact(&mut base)?;
    let base = u64::from_le_bytes(base);
    // A position near the end of all numbers is no count of bytes that were ever written.
    Ok((magic == MAGIC && base < 1 << 62).then_some(Held { base, used }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files() -> [File; 2] {
        [tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap()]
    }

    fn clones(files: &[File; 2]) -> [File; 2] {
        [files[0].try_clone().unwrap(), files[1].try_clone().unwrap()]
    }

    fn content(file: &mut File) -> (u64, Vec<u8>) {
        let mut bytes = Vec::new();
        file.seek(SeekFrom::Start(0)).unwrap();
        file.read_to_end(&mut bytes).unwrap();
        assert_eq!(bytes[..8], MAGIC);
        (
            u64::from_le_bytes(bytes[8..16].try_into().unwrap()),
            bytes[16..].to_vec(),
        )
    }

    fn write(files: &[File; 2], bytes: &[u8]) {
        let mut segments = Segments::open(clones(files), 10, DroppedBytes::default()).unwrap();
        segments.write_all(bytes).unwrap();
    }

    #[test]
    fn output_fills_one_segment_before_the_other_is_emptied_and_used() {
        let mut files = files();
        write(&files, b"0123456789abcdefghijABC");
        assert_eq!(content(&mut files[0]), (20, b"ABC".to_vec()));
        assert_eq!(content(&mut files[1]), (10, b"abcdefghij".to_vec()));
    }

    #[test]
    fn a_restart_appends_to_the_newer_segment() {
        let mut files = files();
        write(&files, b"0123456789ab");
        write(&files, b"cd");
        assert_eq!(content(&mut files[0]), (0, b"0123456789".to_vec()));
        assert_eq!(content(&mut files[1]), (10, b"abcd".to_vec()));
    }

    #[test]
    fn a_segment_with_a_torn_header_counts_as_unused() {
        let mut files = files();
        write(&files, b"0123456789ab");
        files[1].set_len(9).unwrap();
        write(&files, b"x");
        assert_eq!(content(&mut files[0]), (0, b"0123456789".to_vec()));
        assert_eq!(content(&mut files[1]), (10, b"x".to_vec()));
    }

    #[test]
    fn a_stream_that_nobody_reads_drops_and_counts() {
        let (reader, writer) = std::io::pipe().unwrap();
        let dropped = DroppedBytes::default();
        let mut stream = Stream::new(writer.into(), dropped.clone()).unwrap();
        for _ in 0..64 {
            stream.write_all(&[0; 4096]).unwrap();
        }
        assert!(dropped.count() > 0);
        drop(reader);
        stream.write_all(b"x").unwrap();
    }
}
