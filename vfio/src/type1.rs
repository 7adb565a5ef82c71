//! VFIO's first interface to the IOMMU: a container that groups of devices join.
//!
//! Owns the container's descriptor and the order of its setup. Mappings live as long as the
//! container: they end with the process.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use libc::{Ioctl, c_ulong};
use vfio_bindings::bindings::vfio::{
    VFIO_API_VERSION, VFIO_DMA_MAP_FLAG_READ, VFIO_DMA_MAP_FLAG_WRITE, VFIO_GROUP_FLAGS_VIABLE,
    VFIO_IOMMU_INFO_CAPS, VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE, VFIO_TYPE1v2_IOMMU,
    vfio_group_status, vfio_iommu_type1_dma_map, vfio_iommu_type1_dma_unmap,
};
use vm_memory::{GuestMemoryRegion, GuestRegionMmap, MemoryRegionAddress};

use crate::kernel_call::{Reply, length_of, vfio, with_struct, with_value};
use crate::{DeviceMapping, IovaRange, VfioDevice};

const GET_API_VERSION: Ioctl = vfio(0);
const CHECK_EXTENSION: Ioctl = vfio(1);
const SET_IOMMU: Ioctl = vfio(2);
const GROUP_GET_STATUS: Ioctl = vfio(3);
const GROUP_SET_CONTAINER: Ioctl = vfio(4);
const GROUP_GET_DEVICE_FD: Ioctl = vfio(6);
const IOMMU_GET_INFO: Ioctl = vfio(12);
const IOMMU_MAP_DMA: Ioctl = vfio(13);
const IOMMU_UNMAP_DMA: Ioctl = vfio(14);

/// `struct vfio_iommu_type1_info`: argsz, flags, iova_pgsizes, cap_offset, padding.
const INFO_BYTES: usize = 24;
const INFO_FLAGS: usize = 4;
const INFO_CAPABILITIES: usize = 16;
/// `struct vfio_iommu_type1_info_cap_iova_range`: header, nr_iovas, reserved, ranges.
const RANGES_COUNT: usize = 8;
const RANGES: usize = 16;

/// A container.
#[derive(Debug)]
pub struct Type1 {
    container: OwnedFd,
}

impl Type1 {
    /// Takes an open `/dev/vfio/vfio`.
    ///
    /// # Errors
    /// What the kernel says; `Unsupported` if it has another version of the interface or no type 1
    /// IOMMU.
    pub fn new(container: OwnedFd) -> io::Result<Self> {
        let version = with_value(container.as_fd(), GET_API_VERSION, 0)?;
        let kind = c_ulong::from(VFIO_TYPE1v2_IOMMU);
        let is_there = with_value(container.as_fd(), CHECK_EXTENSION, kind)?;
        if version != VFIO_API_VERSION || is_there == 0 {
            return Err(io::ErrorKind::Unsupported.into());
        }
        Ok(Self { container })
    }

    /// Whether all devices of an open `/dev/vfio/<group>` are free to be passed through.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn is_viable(group: BorrowedFd<'_>) -> io::Result<bool> {
        let mut status = vfio_group_status {
            argsz: length_of::<vfio_group_status>(),
            ..Default::default()
        };
        with_struct(group, GROUP_GET_STATUS, &mut status)?;
        Ok(status.flags & VFIO_GROUP_FLAGS_VIABLE != 0)
    }

    /// Lets a group's devices use this container's addresses.
    ///
    /// # Errors
    /// What the kernel says: `EPERM` if the group is not viable, `EBUSY` if somebody has it.
    pub fn add_group(&self, group: BorrowedFd<'_>) -> io::Result<()> {
        let mut container: RawFd = self.container.as_raw_fd();
        with_struct(group, GROUP_SET_CONTAINER, &mut container)?;
        Ok(())
    }

    /// Turns translation on; needs a group.
    ///
    /// # Errors
    /// What the kernel says: `EPERM` if the host cannot keep devices from forging interrupts.
    pub fn start(&self) -> io::Result<()> {
        let kind = c_ulong::from(VFIO_TYPE1v2_IOMMU);
        with_value(self.container.as_fd(), SET_IOMMU, kind)?;
        Ok(())
    }

    /// Opens a device of a group that was added, by its address as `0000:01:00.0`.
    ///
    /// # Errors
    /// What the kernel says: `ENODEV` if the group has no such device.
    pub fn open_device(&self, group: BorrowedFd<'_>, address: &str) -> io::Result<VfioDevice> {
        let name = CString::new(address).map_err(|_| io::ErrorKind::InvalidInput)?;
        // SAFETY: the kernel reads a string that ends with NUL, which lives through the call.
        let result = unsafe { libc::ioctl(group.as_raw_fd(), GROUP_GET_DEVICE_FD, name.as_ptr()) };
        if result < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel has just made this descriptor for us; nobody else has it.
        let device = unsafe { OwnedFd::from_raw_fd(result) };
        Ok(VfioDevice::new(device))
    }

    /// The addresses that devices can use; none if the kernel is too old to say (before 5.4).
    ///
    /// # Errors
    /// What the kernel says.
    pub fn iova_ranges(&self) -> io::Result<Option<Vec<IovaRange>>> {
        let reply = Reply::ask(self.container.as_fd(), IOMMU_GET_INFO, INFO_BYTES, &[])?;
        if reply.u32(INFO_FLAGS)? & VFIO_IOMMU_INFO_CAPS == 0 {
            return Ok(None);
        }
        let capabilities = reply.capabilities(reply.u32(INFO_CAPABILITIES)?)?;
        let ranges = capabilities
            .into_iter()
            .find(|&(id, _)| u32::from(id) == VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE);
        let Some((_, place)) = ranges else {
            return Ok(None);
        };
        let pairs = reply.pairs(place + RANGES, reply.u32(place + RANGES_COUNT)?)?;
        let ranges = pairs
            .into_iter()
            .map(|(first, last)| IovaRange { first, last });
        Ok(Some(ranges.collect()))
    }

    /// Lets devices read and write a part of guest memory at its guest physical address. All of it
    /// is made present and stays where it is.
    ///
    /// # Errors
    /// What the kernel says: `ENOMEM` if that is more memory than this process may lock.
    pub fn map_memory(&self, region: &GuestRegionMmap<()>) -> io::Result<()> {
        let host = region
            .get_host_address(MemoryRegionAddress(0))
            .map_err(io::Error::other)?;
        self.map(region.start_addr().0, host.addr(), region.len())
    }

    /// Lets devices reach `bytes` of another device's memory from `offset` on at `address`.
    ///
    /// # Errors
    /// What the kernel says, for instance that the address is beyond what its IOMMU can translate.
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
        let mut map = vfio_iommu_type1_dma_map {
            argsz: length_of::<vfio_iommu_type1_dma_map>(),
            flags: VFIO_DMA_MAP_FLAG_READ | VFIO_DMA_MAP_FLAG_WRITE,
            vaddr: u64::try_from(host).map_err(io::Error::other)?,
            iova: address,
            size: bytes,
        };
        // What devices reach from here on is guest memory, which is only ever accessed as volatile,
        // or another device: the two callers above take nothing else. The kernel holds the pages
        // themselves, so a mapping in this process that ends does not let a device reach what
        // takes its place.
        with_struct(self.container.as_fd(), IOMMU_MAP_DMA, &mut map)?;
        Ok(())
    }

    /// Takes back exactly one mapping.
    ///
    /// # Errors
    /// What the kernel says; `NotFound` if there was nothing.
    pub fn unmap(&self, address: u64, bytes: u64) -> io::Result<()> {
        let mut unmap = vfio_iommu_type1_dma_unmap {
            argsz: length_of::<vfio_iommu_type1_dma_unmap>(),
            iova: address,
            size: bytes,
            ..Default::default()
        };
        with_struct(self.container.as_fd(), IOMMU_UNMAP_DMA, &mut unmap)?;
        if unmap.size == 0 {
            return Err(io::ErrorKind::NotFound.into());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    #[test]
    fn a_file_that_is_no_container_is_refused() {
        let file = File::open("/dev/null").unwrap();
        Type1::new(file.into()).unwrap_err();
        let file = File::open("/dev/null").unwrap();
        Type1::is_viable(file.as_fd()).unwrap_err();
    }
}
