//! Giving pages of guest memory back to the host.
//!
//! Owns the advice to the kernel and the check that only whole pages are named. Which pages nobody
//! needs is the guest's word and its callers' business.

use std::io;

use vm_memory::VolatileSlice;

/// Length of the host's smallest page: the kernel's, on x86.
const PAGE_BYTES: usize = 4096;

/// Takes the host's memory from under `pages`, which is private and anonymous: it reads as zeroes
/// afterwards and takes memory again where it is touched.
///
/// # Errors
/// If the range is not whole pages, or what the kernel says, for instance that the pages are locked.
pub fn discard_pages(pages: &VolatileSlice<'_>) -> io::Result<()> {
    let guard = pages.ptr_guard_mut();
    let is_whole =
        guard.as_ptr().addr().is_multiple_of(PAGE_BYTES) && guard.len().is_multiple_of(PAGE_BYTES);
    if !is_whole {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // SAFETY: the range is whole pages of memory that the volatile slice vouches for as long as the
    // guard lives, so no other allocation shares them. The call changes their content as a write of
    // zeroes would, which a volatile slice allows at any time, and leaves them mapped.
    let result = unsafe { libc::madvise(guard.as_ptr().cast(), guard.len(), libc::MADV_DONTNEED) };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

#[cfg(test)]
mod tests {
    use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestRegionMmap};

    use super::*;
    use crate::{AnonymousPages, map_guest_ram};

    const BYTES: usize = 64 << 20;

    fn memory() -> GuestMemoryMmap<()> {
        let region = map_guest_ram(BYTES, AnonymousPages::Small).unwrap();
        let region = GuestRegionMmap::new(region, GuestAddress(0)).unwrap();
        GuestMemoryMmap::from_regions(vec![region]).unwrap()
    }

    /// Bytes of this process that are in memory.
    fn resident() -> usize {
        let text = std::fs::read_to_string("/proc/self/statm").unwrap();
        let pages = text.split_whitespace().nth(1).unwrap();
        pages.parse::<usize>().unwrap() * PAGE_BYTES
    }

    #[test]
    fn discarded_pages_leave_the_process_and_come_back_as_zeroes() {
        let memory = memory();
        let fill = || {
            memory
                .write_slice(&vec![7; BYTES], GuestAddress(0))
                .unwrap()
        };
        let before = resident();
        for _ in 0..3 {
            fill();
            // The other tests of this process need far less than half of it.
            assert!(resident() > before + BYTES / 2);
            let all = memory.get_slice(GuestAddress(0), BYTES).unwrap();
            discard_pages(&all).unwrap();
            assert!(resident() < before + BYTES / 2);
            let word: u64 = memory.read_obj(GuestAddress(0x12_3000)).unwrap();
            assert_eq!(word, 0);
        }
    }

    #[test]
    fn only_the_named_pages_are_discarded() {
        let memory = memory();
        memory
            .write_slice(&[7; 5 * PAGE_BYTES], GuestAddress(0))
            .unwrap();
        let middle = memory
            .get_slice(GuestAddress(0x1000), 3 * PAGE_BYTES)
            .unwrap();
        discard_pages(&middle).unwrap();
        let bytes: Vec<u8> = (0..5)
            .map(|page| memory.read_obj(GuestAddress(page * 0x1000 + 9)).unwrap())
            .collect();
        assert_eq!(bytes, [7, 0, 0, 0, 7]);
    }

    #[test]
    fn parts_of_pages_are_refused() {
        let memory = memory();
        for (start, bytes) in [(1, PAGE_BYTES), (0, PAGE_BYTES - 1), (0x800, 0x800)] {
            let slice = memory.get_slice(GuestAddress(start), bytes).unwrap();
            let error = discard_pages(&slice).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
        }
    }
}
