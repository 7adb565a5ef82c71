//! A device's memory in this process's address space, for KVM and the IOMMU only.
//!
//! Owns the mapping and where it lies. Nothing in this process ever reads or writes it: a device
//! that sleeps or was reset would answer that with a fatal signal. The pages are the device's own;
//! the guest reaches them through KVM's slots.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr;

/// Size of a page that KVM maps at once where it can: 2 MiB.
const LARGE_PAGE_BYTES: usize = 2 << 20;

/// One region of a device, parts of which are mapped. It begins at a multiple of
/// 2 MiB, so that KVM can map large pages wherever the guest's address is one, too.
#[derive(Debug)]
pub struct DeviceMapping {
    reservation: *mut libc::c_void,
    reserved: usize,
    /// Where the region begins: a multiple of a large page inside the reservation.
    start: usize,
    bytes: u64,
    /// The mapped parts, each `(offset, bytes)`.
    areas: Vec<(u64, u64)>,
}

// SAFETY: the pointer is only ever passed to `munmap`, once and by the owner; the type gives nobody
// access to the memory.
unsafe impl Send for DeviceMapping {}
// SAFETY: a shared reference gives numbers only.
unsafe impl Sync for DeviceMapping {}

impl DeviceMapping {
    /// Maps `areas` of a region of `bytes` that begins at `file_offset` of a device's descriptor.
    ///
    /// # Errors
    /// If an area is empty, not of whole pages or outside the region, or what the kernel says.
    pub(crate) fn new(
        device: BorrowedFd<'_>,
        file_offset: u64,
        bytes: u64,
        areas: &[(u64, u64)],
    ) -> io::Result<Self> {
        let length = usize::try_from(bytes).map_err(io::Error::other)?;
        let reserved = length
            .checked_add(LARGE_PAGE_BYTES)
            .ok_or(io::ErrorKind::OutOfMemory)?;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: a null address and no descriptor ask for a new mapping, which replaces nothing.
        let reservation =
            unsafe { libc::mmap(ptr::null_mut(), reserved, libc::PROT_NONE, flags, -1, 0) };
        if reservation == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let mut mapping = Self {
            reservation,
            reserved,
            start: reservation.addr().next_multiple_of(LARGE_PAGE_BYTES),
            bytes,
            areas: Vec::new(),
        };
        for &(offset, length) in areas {
            mapping.map_area(device, file_offset, offset, length)?;
        }
        Ok(mapping)
    }

    fn map_area(
        &mut self,
        device: BorrowedFd<'_>,
        file_offset: u64,
        offset: u64,
        bytes: u64,
    ) -> io::Result<()> {
        let end = offset.checked_add(bytes);
        if bytes == 0 || end.is_none_or(|end| end > self.bytes) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let place = usize::try_from(offset).map_err(io::Error::other)?;
        let length = usize::try_from(bytes).map_err(io::Error::other)?;
        let in_file = file_offset
            .checked_add(offset)
            .and_then(|at| libc::off_t::try_from(at).ok())
            .ok_or(io::ErrorKind::InvalidInput)?;
        let head = self.start - self.reservation.addr();
        let target = self.reservation.wrapping_byte_add(head + place);
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_SHARED | libc::MAP_FIXED;
        // SAFETY: MAP_FIXED replaces `length` bytes at `target`. They lie inside our own
        // reservation: `offset + bytes <= self.bytes`, and the reservation has `self.bytes` from
        // `start` on. Nobody uses that memory: it was PROT_NONE, and no pointer to it was given out.
        let mapped = unsafe {
            libc::mmap(
                target,
                length,
                protection,
                flags,
                device.as_raw_fd(),
                in_file,
            )
        };
        if mapped == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        self.areas.push((offset, bytes));
        Ok(())
    }

    /// Where `bytes` from `offset` on are, for the kernel.
    ///
    /// # Errors
    /// If they are not all inside one mapped part.
    pub fn host_address(&self, offset: u64, bytes: u64) -> io::Result<usize> {
        let end = offset.checked_add(bytes);
        let is_mapped = self.areas.iter().any(|&(first, length)| {
            offset >= first && end.is_some_and(|end| end <= first + length)
        });
        if bytes == 0 || !is_mapped {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let offset = usize::try_from(offset).map_err(io::Error::other)?;
        Ok(self.start + offset)
    }
}

impl Drop for DeviceMapping {
    fn drop(&mut self) {
        // SAFETY: exactly what `mmap` returned in `new`, with the areas inside it. KVM's slots hold
        // the value through `Vm` until they are gone; the IOMMU holds pages and no addresses.
        unsafe { libc::munmap(self.reservation, self.reserved) };
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn only_what_is_mapped_has_an_address_and_regions_begin_at_large_pages() {
        let file = tempfile();
        let areas = [(0, 4096), (8192, 4096)];
        let mapping = DeviceMapping::new(file.as_fd(), 0, 16384, &areas).unwrap();
        let first = mapping.host_address(0, 4096).unwrap();
        assert_eq!(first % LARGE_PAGE_BYTES, 0);
        assert_eq!(mapping.host_address(8192, 4096).unwrap(), first + 8192);
        for (offset, bytes) in [(4096, 4096), (0, 8192), (8192, 0), (8192, u64::MAX)] {
            mapping.host_address(offset, bytes).unwrap_err();
        }
    }

    #[test]
    fn areas_outside_the_region_are_refused() {
        let file = tempfile();
        for area in [(0, 0), (4096, 8192), (u64::MAX, 4096), (1, 4096)] {
            DeviceMapping::new(file.as_fd(), 0, 8192, &[area]).unwrap_err();
        }
    }

    fn tempfile() -> std::fs::File {
        let path = std::env::temp_dir().join(format!(
            "berth-device-mapping-{:?}",
            std::thread::current().id()
        ));
        let file = std::fs::File::options()
            .create(true)
            .truncate(true)
            .read(true)
            .write(true)
            .open(&path)
            .unwrap();
        file.set_len(1 << 20).unwrap();
        std::fs::remove_file(path).unwrap();
        file
    }
}
