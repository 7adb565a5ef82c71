//! Copying of disk images without filling their holes.
//!
//! First the file system is asked to share the blocks (`FICLONE`); where it cannot, only the extents
//! that hold data are copied, inside the kernel where possible.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

use rustix::fs::{SeekFrom, copy_file_range, ftruncate, ioctl_ficlone, seek};
use rustix::io::Errno;

/// Bytes per copy through user space, where the kernel cannot copy between the two files.
const CHUNK_BYTES: usize = 256 * 1024;

/// Make `target`, an empty file, equal to `source`; holes stay holes. Returns the length in bytes.
/// Durable only after a sync of `target`.
pub(crate) fn copy_sparse(source: &File, target: &File) -> io::Result<u64> {
    let length = source.metadata()?.len();
    if ioctl_ficlone(target, source).is_ok() {
        return Ok(length);
    }
    ftruncate(target, length)?;
    let mut at = 0;
    while let Some((start, end)) = next_extent(source, at, length)? {
        copy_extent(source, target, start, end)?;
        at = end;
    }
    Ok(length)
}

/// The first range at or after `at` that holds data.
fn next_extent(source: &File, at: u64, length: u64) -> io::Result<Option<(u64, u64)>> {
    if at >= length {
        return Ok(None);
    }
    let start = match seek(source, SeekFrom::Data(at)) {
        Ok(start) => start,
        // Nothing but a hole until the end.
        Err(Errno::NXIO) => return Ok(None),
        // A file system without holes.
        Err(Errno::INVAL | Errno::OPNOTSUPP) => return Ok(Some((at, length))),
        Err(errno) => return Err(errno.into()),
    };
    let end = seek(source, SeekFrom::Hole(start))?;
    Ok(Some((start, end.min(length))))
}

fn copy_extent(source: &File, target: &File, start: u64, end: u64) -> io::Result<()> {
    let (mut from, mut to) = (start, start);
    while from < end {
        let wanted = usize::try_from(end - from).unwrap_or(usize::MAX);
        match copy_file_range(source, Some(&mut from), target, Some(&mut to), wanted) {
            // The source shrank under us; its length is checked by the caller.
            Ok(0) => return Ok(()),
            Ok(_) | Err(Errno::INTR) => {}
            Err(Errno::XDEV | Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {
                return copy_by_hand(source, target, from, end);
            }
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}

fn copy_by_hand(source: &File, target: &File, start: u64, end: u64) -> io::Result<()> {
    let mut chunk = vec![0; CHUNK_BYTES];
    let mut at = start;
    while at < end {
        let wanted = usize::try_from(end - at).map_or(CHUNK_BYTES, |rest| rest.min(CHUNK_BYTES));
        let read = source.read_at(&mut chunk[..wanted], at)?;
        if read == 0 {
            return Ok(());
        }
        target.write_all_at(&chunk[..read], at)?;
        // A chunk's length fits: it is at most CHUNK_BYTES.
        at = at.saturating_add(u64::try_from(read).unwrap_or(0));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt as _;

    fn sparse_file() -> File {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(b"first", 0).unwrap();
        file.write_all_at(b"middle", 8 * 1024 * 1024).unwrap();
        file.set_len(32 * 1024 * 1024).unwrap();
        file
    }

    fn content(file: &File) -> Vec<u8> {
        let mut bytes = vec![0; usize::try_from(file.metadata().unwrap().len()).unwrap()];
        file.read_exact_at(&mut bytes, 0).unwrap();
        bytes
    }

    #[test]
    fn a_copy_is_equal_and_its_holes_stay_holes() {
        let (source, target) = (sparse_file(), tempfile::tempfile().unwrap());
        assert_eq!(copy_sparse(&source, &target).unwrap(), 32 * 1024 * 1024);
        assert!(content(&source) == content(&target));
        let blocks = target.metadata().unwrap().blocks();
        assert!(blocks * 512 < 1024 * 1024, "{blocks} blocks");
    }

    #[test]
    fn copying_by_hand_gives_the_same() {
        let (source, target) = (sparse_file(), tempfile::tempfile().unwrap());
        copy_by_hand(&source, &target, 0, 9 * 1024 * 1024).unwrap();
        assert!(content(&target) == content(&source)[..9 * 1024 * 1024]);
    }

    #[test]
    fn an_empty_and_a_wholly_empty_file_are_copied() {
        for length in [0, 4096] {
            let (source, target) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
            source.set_len(length).unwrap();
            assert_eq!(copy_sparse(&source, &target).unwrap(), length);
            assert_eq!(target.metadata().unwrap().len(), length);
        }
    }
}
