//! Host memory behind guest RAM, placed so that both page tables can use large pages.
//!
//! Owns the mapping, anonymous or of a memory file, and its advice to the kernel. KVM can map 2 MiB of the guest at once
//! only where guest and host addresses agree modulo 2 MiB, which kernels before 6.7 do not arrange
//! by themselves. What lies in the memory is not known here.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::ptr;

use vm_memory::mmap::{MmapRegion, MmapRegionBuilder};

/// The size of a large page.
pub const LARGE_PAGE_BYTES: usize = 2 << 20;
const PROTECTION: libc::c_int = libc::PROT_READ | libc::PROT_WRITE;

/// Which pages anonymous memory is made of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AnonymousPages {
    /// The smallest only.
    Small,
    /// Large ones after this many bytes, where the host has them.
    LargeAfter(usize),
}

/// Maps `bytes` of zeroed memory at a multiple of [`LARGE_PAGE_BYTES`]. Pages come when they are
/// touched. The memory is left out of core dumps, as it is a tenant's, and of child processes.
///
/// The mapping stays until the process ends, as the guest does.
///
/// # Errors
/// If there is no room for it.
pub fn map_guest_ram(bytes: usize, pages: AnonymousPages) -> io::Result<MmapRegion<()>> {
    let reserved = bytes
        .checked_add(LARGE_PAGE_BYTES)
        .ok_or(io::ErrorKind::OutOfMemory)?;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    let start = map(reserved, flags, -1)?;
    let head = start.addr().next_multiple_of(LARGE_PAGE_BYTES) - start.addr();
    let aligned = start.wrapping_add(head);
    unmap(start, head)?;
    unmap(aligned.wrapping_add(bytes), LARGE_PAGE_BYTES - head)?;
    match pages {
        AnonymousPages::Small => advise(aligned, bytes, libc::MADV_NOHUGEPAGE),
        AnonymousPages::LargeAfter(small) => {
            let large = bytes.saturating_sub(small);
            advise(
                aligned.wrapping_add(bytes - large),
                large,
                libc::MADV_HUGEPAGE,
            );
        }
    }
    // SAFETY: the range was just mapped with these flags, and nothing unmaps it before the process
    // ends.
    unsafe { region(aligned, bytes, flags) }
}

/// Maps the first `bytes` of a memory file, shared, with all of its pages reserved. The mapping stays
/// until the process ends.
///
/// # Errors
/// If the host has not enough pages left, or the file is none that can be mapped.
pub fn map_guest_file(memory: BorrowedFd<'_>, bytes: usize) -> io::Result<MmapRegion<()>> {
    let start = map(bytes, libc::MAP_SHARED, memory.as_raw_fd())?;
    // SAFETY: the range was just mapped with these flags, and nothing unmaps it before the process
    // ends.
    unsafe { region(start, bytes, libc::MAP_SHARED) }
}

/// Whether [`map_guest_file`] would have enough pages at this moment.
#[must_use]
pub fn has_pages_for(memory: BorrowedFd<'_>, bytes: usize) -> bool {
    let mapped = map(bytes, libc::MAP_SHARED, memory.as_raw_fd());
    mapped.and_then(|start| unmap(start, bytes)).is_ok()
}

/// A new mapping for reading and writing, of anonymous memory if `file` is -1.
fn map(bytes: usize, flags: libc::c_int, file: RawFd) -> io::Result<*mut u8> {
    // SAFETY: a null address asks for a new mapping, which replaces nothing; a descriptor that is
    // not open is an error.
    let start = unsafe { libc::mmap(ptr::null_mut(), bytes, PROTECTION, flags, file, 0) };
    if start == libc::MAP_FAILED {
        Err(io::Error::last_os_error())
    } else {
        Ok(start.cast())
    }
}

/// Takes a finished mapping over for a guest.
///
/// # Safety
/// `start` is that of `bytes` of memory mapped with [`PROTECTION`] and `flags`, which stays mapped
/// until the process ends.
unsafe fn region(start: *mut u8, bytes: usize, flags: libc::c_int) -> io::Result<MmapRegion<()>> {
    advise(start, bytes, libc::MADV_DONTDUMP);
    advise(start, bytes, libc::MADV_DONTFORK);
    // SAFETY: the caller vouches for the mapping and for how long it stays.
    let builder = unsafe { MmapRegionBuilder::new(bytes).with_raw_mmap_pointer(start) };
    builder
        .with_mmap_prot(PROTECTION)
        .with_mmap_flags(flags)
        .build()
        .map_err(io::Error::other)
}

/// Gives back a mapping, or a part of one, that [`map`] has just made and that was lent to nobody.
fn unmap(start: *mut u8, bytes: usize) -> io::Result<()> {
    if bytes == 0 {
        return Ok(());
    }
    // SAFETY: the caller's range lies in its own new mapping, which nothing refers to yet.
    let result = unsafe { libc::munmap(start.cast(), bytes) };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Advises the kernel. A kernel without large pages refuses, which costs speed and nothing else.
fn advise(start: *mut u8, bytes: usize, advice: libc::c_int) {
    // SAFETY: all kinds of advice that are given leave the content of the memory as it is, and the
    // range is the caller's own mapping.
    unsafe { libc::madvise(start.cast(), bytes, advice) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guest_ram_begins_at_a_large_page_and_is_zero() {
        let large = AnonymousPages::LargeAfter(LARGE_PAGE_BYTES);
        for (bytes, pages) in [
            (32 << 20, large),
            ((32 << 20) + 4096, large),
            (4096, large),
            (32 << 20, AnonymousPages::Small),
        ] {
            let region = map_guest_ram(bytes, pages).unwrap();
            assert_eq!(region.as_ptr().addr() % LARGE_PAGE_BYTES, 0);
            assert_eq!(region.size(), bytes);
        }
    }
}
