//! What a file wants of the transfers that go around the page cache (`O_DIRECT`).
//!
//! Owns finding it out and the detour through a buffer of our own for guest memory that does not
//! lie as the host wants it. Positions and lengths need none: the guest is told the size of a block
//! and its driver keeps to it.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use berth_vmm_devices::virtio::queue::Buffers;
use berth_vmm_sys::vectored_io;
use rustix::fs::{
    AtFlags, FileType, OFlags, StatxFlags, fcntl_getfl, fstat, ioctl_blkpbszget, ioctl_blksszget,
    statx,
};
use vm_memory::VolatileSlice;

/// The unit of positions on a virtio disk.
const SECTOR_BYTES: u32 = 512;
/// What suits every host that does not say more.
const PAGE_BYTES: u32 = 4096;
/// Bytes that take the detour at once.
const COPY_BYTES: usize = 256 << 10;

/// Block sizes, and how memory has to lie.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Alignment {
    logical_block: u32,
    physical_block: u32,
    /// Multiples of what addresses in memory have to be; 1 for files behind the page cache.
    memory: u32,
}

impl Alignment {
    /// Asks the host about an open file or block device.
    ///
    /// # Errors
    /// If it cannot be examined.
    pub(crate) fn of(file: BorrowedFd<'_>) -> io::Result<Self> {
        let is_block_device = FileType::from_raw_mode(fstat(file)?.st_mode).is_block_device();
        let physical = if is_block_device {
            ioctl_blkpbszget(file)?
        } else {
            PAGE_BYTES
        };
        let (logical, memory) = if !fcntl_getfl(file)?.contains(OFlags::DIRECT) {
            (SECTOR_BYTES, 1)
        } else if is_block_device {
            let logical = ioctl_blksszget(file)?;
            (logical, logical)
        } else {
            direct_alignment(file)
        };
        let logical_block = power_of_two(logical);
        Ok(Self {
            logical_block,
            physical_block: power_of_two(physical).max(logical_block),
            memory: memory.max(1),
        })
    }

    /// What positions and lengths are multiples of, in bytes.
    pub(crate) fn logical_block(self) -> u32 {
        self.logical_block
    }

    /// What the host writes without reading before, in bytes.
    pub(crate) fn physical_block(self) -> u32 {
        self.physical_block
    }

    /// Whether the host takes `data` as it lies in guest memory. The host's addresses agree with
    /// the guest's modulo a page.
    pub(super) fn fits(self, data: &Buffers) -> bool {
        self.memory == 1
            || data.segments().iter().all(|segment| {
                segment.address.is_multiple_of(u64::from(self.memory))
                    && segment.bytes.is_multiple_of(self.logical_block)
            })
    }

    /// Fills `buffers` from `offset` of `file` on, with a copy.
    pub(super) fn read_by_copy(
        self,
        file: BorrowedFd<'_>,
        offset: u64,
        buffers: &[VolatileSlice<'_>],
    ) -> io::Result<()> {
        self.copy(offset, buffers, |at, memory, parts| {
            vectored_io::read_exact_at(file, at, &[VolatileSlice::from(&mut *memory)])?;
            let mut rest = &*memory;
            for part in parts {
                let (now, later) = rest.split_at(part.len());
                part.copy_from(now);
                rest = later;
            }
            Ok(())
        })
    }

    /// Writes `buffers` to `offset` of `file` on, with a copy.
    pub(super) fn write_by_copy(
        self,
        file: BorrowedFd<'_>,
        offset: u64,
        buffers: &[VolatileSlice<'_>],
    ) -> io::Result<()> {
        self.copy(offset, buffers, |at, memory, parts| {
            let mut rest = &mut *memory;
            for part in parts {
                let (now, later) = rest.split_at_mut(part.len());
                part.copy_to(now);
                rest = later;
            }
            vectored_io::write_all_at(file, at, &[VolatileSlice::from(memory)])
        })
    }

    /// Calls `each` for every [`COPY_BYTES`] of `buffers`, with the position on the disk and as much
    /// memory that lies as the host wants it.
    fn copy(
        self,
        offset: u64,
        buffers: &[VolatileSlice<'_>],
        mut each: impl FnMut(u64, &mut [u8], &[VolatileSlice<'_>]) -> io::Result<()>,
    ) -> io::Result<()> {
        let margin = usize::try_from(self.memory).map_err(|_| io::ErrorKind::InvalidInput)?;
        let mut memory = vec![0; COPY_BYTES + margin];
        let start = memory.as_ptr().align_offset(margin).min(margin);
        let (mut at, mut rest) = (offset, buffers.to_vec());
        while !rest.is_empty() {
            let (parts, left) = split(&rest, COPY_BYTES)?;
            let bytes: usize = parts.iter().map(VolatileSlice::len).sum();
            each(at, &mut memory[start..start + bytes], &parts)?;
            at = at.saturating_add(u64::try_from(bytes).unwrap_or(u64::MAX));
            rest = left;
        }
        Ok(())
    }
}

/// The first `bytes` bytes of `buffers`, or all of them, and what is left.
fn split<'a>(
    buffers: &[VolatileSlice<'a>],
    bytes: usize,
) -> io::Result<(Vec<VolatileSlice<'a>>, Vec<VolatileSlice<'a>>)> {
    let (mut front, mut back, mut wanted) = (Vec::new(), Vec::new(), bytes);
    for buffer in buffers {
        let now = wanted.min(buffer.len());
        let (first, second) = buffer.split_at(now).map_err(io::Error::other)?;
        wanted -= now;
        front.push(first);
        if !second.is_empty() {
            back.push(second);
        }
    }
    Ok((front, back))
}

/// Block and memory alignment of direct transfers to a regular file.
fn direct_alignment(file: BorrowedFd<'_>) -> (u32, u32) {
    let asked = statx(file.as_fd(), c"", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN);
    match asked {
        // Linux before 6.1 does not say.
        Ok(answer) if answer.stx_mask & StatxFlags::DIOALIGN.bits() != 0 => {
            let (block, memory) = (answer.stx_dio_offset_align, answer.stx_dio_mem_align);
            // No alignment: the file system goes through the page cache all the same.
            if block == 0 {
                (SECTOR_BYTES, 1)
            } else {
                (block, memory)
            }
        }
        Ok(_) | Err(_) => (PAGE_BYTES, PAGE_BYTES),
    }
}

/// `bytes` as the size of a block: a power of two from a sector on.
fn power_of_two(bytes: u32) -> u32 {
    bytes
        .checked_next_power_of_two()
        .unwrap_or(PAGE_BYTES)
        .max(SECTOR_BYTES)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;

    const PICKY: Alignment = Alignment {
        logical_block: 512,
        physical_block: 4096,
        memory: 512,
    };

    fn slices(buffers: &mut [Vec<u8>]) -> Vec<VolatileSlice<'_>> {
        buffers
            .iter_mut()
            .map(|buffer| VolatileSlice::from(buffer.as_mut_slice()))
            .collect()
    }

    #[test]
    fn the_detour_moves_every_byte_in_order() {
        let file = tempfile::tempfile().unwrap();
        let bytes = 2 * COPY_BYTES + 3 * 512;
        let pattern: Vec<u8> = (0..=250).cycle().take(bytes).collect();
        let mut buffers = [pattern[..7].to_vec(), vec![], pattern[7..].to_vec()];
        PICKY
            .write_by_copy(file.as_fd(), 512, &slices(&mut buffers))
            .unwrap();
        let mut content = vec![0; bytes];
        file.read_exact_at(&mut content, 512).unwrap();
        assert!(content == pattern);
        let mut parts = [vec![0; bytes - 100], vec![0; 100]];
        PICKY
            .read_by_copy(file.as_fd(), 512, &slices(&mut parts))
            .unwrap();
        assert!(parts.concat() == pattern);
        let beyond = PICKY.read_by_copy(file.as_fd(), 1024, &slices(&mut parts));
        assert_eq!(beyond.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn a_file_behind_the_page_cache_wants_nothing() {
        let file = tempfile::tempfile().unwrap();
        let alignment = Alignment::of(file.as_fd()).unwrap();
        assert_eq!(alignment.memory, 1);
        assert_eq!(alignment.logical_block(), 512);
        assert_eq!(alignment.physical_block(), 4096);
    }
}
