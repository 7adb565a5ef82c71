//! The kernel's second interface to the IOMMU: one address space that devices attach to.
//!
//! Owns the descriptor and the address space. Mappings live as long as the descriptor. The
//! structures are those of `include/uapi/linux/iommufd.h` (Linux 6.2; device files since 6.6).

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use libc::Ioctl;
use vfio_bindings::bindings::vfio::{vfio_device_attach_iommufd_pt, vfio_device_bind_iommufd};
use vm_memory::{GuestMemoryRegion, GuestRegionMmap, MemoryRegionAddress};

use crate::kernel_call::{ioctl_number, length_of, vfio, with_struct};
use crate::{DeviceMapping, IovaRange, VfioDevice};

const IOMMUFD_TYPE: u8 = b';';
const IOAS_ALLOC: Ioctl = ioctl_number(IOMMUFD_TYPE, 0x81);
const IOAS_IOVA_RANGES: Ioctl = ioctl_number(IOMMUFD_TYPE, 0x84);
const IOAS_MAP: Ioctl = ioctl_number(IOMMUFD_TYPE, 0x85);
const IOAS_UNMAP: Ioctl = ioctl_number(IOMMUFD_TYPE, 0x86);
const DEVICE_BIND_IOMMUFD: Ioctl = vfio(18);
const DEVICE_ATTACH_IOMMUFD_PT: Ioctl = vfio(19);

const MAP_FIXED_IOVA: u32 = 1;
const MAP_WRITEABLE: u32 = 1 << 1;
const MAP_READABLE: u32 = 1 << 2;

/// Most ranges of addresses that are believed; hosts have a handful.
const MAX_RANGES: u32 = 1024;

#[repr(C)]
#[derive(Default)]
struct IoasAlloc {
    size: u32,
    flags: u32,
    out_ioas_id: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct KernelRange {
    start: u64,
    last: u64,
}

#[repr(C)]
#[derive(Default)]
struct IoasIovaRanges {
    size: u32,
    ioas_id: u32,
    num_iovas: u32,
    reserved: u32,
    allowed_iovas: u64,
    out_iova_alignment: u64,
}

#[repr(C)]
#[derive(Default)]
struct IoasMap {
    size: u32,
    flags: u32,
    ioas_id: u32,
    reserved: u32,
    user_va: u64,
    length: u64,
    iova: u64,
}

#[repr(C)]
#[derive(Default)]
struct IoasUnmap {
    size: u32,
    ioas_id: u32,
    iova: u64,
    length: u64,
}

const _: () = {
    assert!(size_of::<IoasAlloc>() == 12);
    assert!(size_of::<KernelRange>() == 16);
    assert!(size_of::<IoasIovaRanges>() == 32);
    assert!(size_of::<IoasMap>() == 40);
    assert!(size_of::<IoasUnmap>() == 24);
};

/// An address space for devices.
#[derive(Debug)]
pub struct Iommufd {
    iommu: OwnedFd,
    address_space: u32,
}

impl Iommufd {
    /// Takes an open `/dev/iommu` and makes an address space.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn new(iommu: OwnedFd) -> io::Result<Self> {
        let mut alloc = IoasAlloc {
            size: length_of::<IoasAlloc>(),
            ..Default::default()
        };
        with_struct(iommu.as_fd(), IOAS_ALLOC, &mut alloc)?;
        Ok(Self {
            iommu,
            address_space: alloc.out_ioas_id,
        })
    }

    /// Takes an open `/dev/vfio/devices/vfio<n>` and lets its device use the address space.
    ///
    /// # Errors
    /// What the kernel says: `EBUSY` if somebody has it, `EINVAL` if its group has another user.
    pub fn open_device(&self, device: OwnedFd) -> io::Result<VfioDevice> {
        let mut bind = vfio_device_bind_iommufd {
            argsz: length_of::<vfio_device_bind_iommufd>(),
            iommufd: self.iommu.as_raw_fd(),
            ..Default::default()
        };
        with_struct(device.as_fd(), DEVICE_BIND_IOMMUFD, &mut bind)?;
        let mut attach = vfio_device_attach_iommufd_pt {
            argsz: length_of::<vfio_device_attach_iommufd_pt>(),
            pt_id: self.address_space,
            ..Default::default()
        };
        with_struct(device.as_fd(), DEVICE_ATTACH_IOMMUFD_PT, &mut attach)?;
        Ok(VfioDevice::new(device))
    }

    /// The addresses that the attached devices can use.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn iova_ranges(&self) -> io::Result<Vec<IovaRange>> {
        let mut count = 0;
        loop {
            let length = usize::try_from(count).map_err(io::Error::other)?;
            let mut ranges = vec![KernelRange::default(); length];
            let mut ask = IoasIovaRanges {
                size: length_of::<IoasIovaRanges>(),
                ioas_id: self.address_space,
                num_iovas: count,
                // The kernel writes `num_iovas` entries there, which is the vector's length.
                allowed_iovas: u64::try_from(ranges.as_mut_ptr().expose_provenance())
                    .map_err(io::Error::other)?,
                ..Default::default()
            };
            match with_struct(self.iommu.as_fd(), IOAS_IOVA_RANGES, &mut ask) {
                Err(error) if error.raw_os_error() != Some(libc::EMSGSIZE) => return Err(error),
                Ok(_) | Err(_) => {}
            }
            if ask.num_iovas <= count {
                let filled = usize::try_from(ask.num_iovas).map_err(io::Error::other)?;
                let ranges = ranges.iter().take(filled).map(|range| IovaRange {
                    first: range.start,
                    last: range.last,
                });
                return Ok(ranges.collect());
            }
            if ask.num_iovas > MAX_RANGES {
                return Err(io::ErrorKind::InvalidData.into());
            }
            count = ask.num_iovas;
        }
    }

    /// As [`crate::Type1::map_memory`].
    ///
    /// # Errors
    /// What the kernel says: `ENOMEM` if that is more memory than this user may lock.
    pub fn map_memory(&self, region: &GuestRegionMmap<()>) -> io::Result<()> {
        let host = region
            .get_host_address(MemoryRegionAddress(0))
            .map_err(io::Error::other)?;
        self.map(region.start_addr().0, host.addr(), region.len())
    }

    /// As [`crate::Type1::map_device`].
    ///
    /// # Errors
    /// What the kernel says; kernels up to 6.18 refuse all device memory here (`EFAULT`).
    pub fn map_device(
        &self,
        mapping: &DeviceMapping,
        offset: u64,
        bytes: u64,
        address: u64,
    ) -> io::Result<()> {
        self.map(address, mapping.host_address(offset, bytes)?, bytes)
    }

    fn map(&self, address: u64, host: usize, bytes: u64) -> io::Result<()> {
        let mut map = IoasMap {
            size: length_of::<IoasMap>(),
            flags: MAP_FIXED_IOVA | MAP_WRITEABLE | MAP_READABLE,
            ioas_id: self.address_space,
            user_va: u64::try_from(host).map_err(io::Error::other)?,
            length: bytes,
            iova: address,
            ..Default::default()
        };
        // As with type 1, only guest memory and devices become reachable, by their pages.
        with_struct(self.iommu.as_fd(), IOAS_MAP, &mut map)?;
        Ok(())
    }

    /// Takes back exactly one mapping.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn unmap(&self, address: u64, bytes: u64) -> io::Result<()> {
        let mut unmap = IoasUnmap {
            size: length_of::<IoasUnmap>(),
            ioas_id: self.address_space,
            iova: address,
            length: bytes,
        };
        with_struct(self.iommu.as_fd(), IOAS_UNMAP, &mut unmap)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    #[test]
    fn a_file_that_is_no_iommu_is_refused() {
        let file = File::open("/dev/null").unwrap();
        Iommufd::new(file.into()).unwrap_err();
    }
}
