//! Host memory behind guest RAM, placed so that both page tables can use large pages.
//!
//! Owns the anonymous mapping and its advice to the kernel. KVM can map 2 MiB of the guest at once
//! only where guest and host addresses agree modulo 2 MiB, which kernels before 6.7 do not arrange
//! by themselves. What lies in the memory is not known here.

use std::io;
use std::ptr;

use vm_memory::mmap::{MmapRegion, MmapRegionBuilder};

/// The size of a large page.
pub const LARGE_PAGE_BYTES: usize = 2 << 20;

/// Maps `bytes` of zeroed memory at a multiple of [`LARGE_PAGE_BYTES`]. Pages come when they are
/// touched: large ones after the first `small_bytes`, where the host allows it. The memory is left
/// out of core dumps, as it is a tenant's.
///
/// The mapping stays until the process ends, as the guest does.
///
/// # Errors
/// If there is no room for it.
pub fn map_guest_ram(bytes: usize, small_bytes: usize) -> io::Result<MmapRegion<()>> {
    let reserved = bytes
        .checked_add(LARGE_PAGE_BYTES)
        .ok_or(io::ErrorKind::OutOfMemory)?;
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    // SAFETY: a null address and no descriptor ask for a new mapping, which replaces nothing.
    let start = unsafe { libc::mmap(ptr::null_mut(), reserved, protection, flags, -1, 0) };
    if start == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    let head = start.addr().next_multiple_of(LARGE_PAGE_BYTES) - start.addr();
    let aligned = start.cast::<u8>().wrapping_add(head);
    unmap(start.cast(), head)?;
    unmap(aligned.wrapping_add(bytes), LARGE_PAGE_BYTES - head)?;
    advise(aligned, bytes, libc::MADV_DONTDUMP);
    if let Some(large) = bytes.checked_sub(small_bytes) {
        advise(
            aligned.wrapping_add(small_bytes),
            large,
            libc::MADV_HUGEPAGE,
        );
    }
    // SAFETY: the pointer is to `bytes` of memory that was just mapped with these flags and that
    // nothing unmaps before the process ends.
    let builder = unsafe { MmapRegionBuilder::new(bytes).with_raw_mmap_pointer(aligned) };
    builder
        .with_mmap_prot(protection)
        .with_mmap_flags(flags)
        .build()
        .map_err(io::Error::other)
}

/// Gives back a part of the mapping that [`map_guest_ram`] has just made and lent to nobody.
fn unmap(start: *mut u8, bytes: usize) -> io::Result<()> {
    if bytes == 0 {
        return Ok(());
    }
    // SAFETY: the caller's range is the head or the tail of its own new mapping, which nothing
    // refers to yet.
    let result = unsafe { libc::munmap(start.cast(), bytes) };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Advises the kernel. A kernel without large pages refuses, which costs speed and nothing else.
fn advise(start: *mut u8, bytes: usize, advice: libc::c_int) {
    // SAFETY: both kinds of advice that are given leave the content of the memory as it is, and the
    // range is the caller's own mapping.
    unsafe { libc::madvise(start.cast(), bytes, advice) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guest_ram_begins_at_a_large_page_and_is_zero() {
        for bytes in [32 << 20, (32 << 20) + 4096] {
            let region = map_guest_ram(bytes, LARGE_PAGE_BYTES).unwrap();
            assert_eq!(region.as_ptr().addr() % LARGE_PAGE_BYTES, 0);
            assert_eq!(region.size(), bytes);
        }
    }
}
