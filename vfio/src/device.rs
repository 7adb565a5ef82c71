//! One open device of the host.
//!
//! Owns its descriptor. What the kernel says about the device is passed on as it is: it comes from
//! the device, and the caller checks it.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;

use libc::Ioctl;
use vfio_bindings::bindings::vfio::{
    VFIO_DEVICE_FLAGS_PCI, VFIO_DEVICE_FLAGS_RESET, VFIO_IRQ_INFO_EVENTFD, VFIO_IRQ_INFO_NORESIZE,
    VFIO_IRQ_SET_ACTION_TRIGGER, VFIO_IRQ_SET_DATA_EVENTFD, VFIO_IRQ_SET_DATA_NONE,
    VFIO_REGION_INFO_CAP_MSIX_MAPPABLE, VFIO_REGION_INFO_CAP_SPARSE_MMAP,
    VFIO_REGION_INFO_FLAG_CAPS, VFIO_REGION_INFO_FLAG_MMAP, VFIO_REGION_INFO_FLAG_READ,
    VFIO_REGION_INFO_FLAG_WRITE, vfio_device_info, vfio_irq_info,
};

use crate::DeviceMapping;
use crate::kernel_call::{Reply, length_of, vfio, with_bytes, with_struct, with_value};

const DEVICE_GET_INFO: Ioctl = vfio(7);
const DEVICE_GET_REGION_INFO: Ioctl = vfio(8);
const DEVICE_GET_IRQ_INFO: Ioctl = vfio(9);
const DEVICE_SET_IRQS: Ioctl = vfio(10);
const DEVICE_RESET: Ioctl = vfio(11);

/// `struct vfio_region_info`: argsz, flags, index, cap_offset, size, offset.
const REGION_BYTES: usize = 32;
const REGION_FLAGS: usize = 4;
const REGION_INDEX: usize = 8;
const REGION_CAPABILITIES: usize = 12;
const REGION_SIZE: usize = 16;
const REGION_OFFSET: usize = 24;
/// `struct vfio_region_info_cap_sparse_mmap`: header, nr_areas, reserved, areas.
const SPARSE_COUNT: usize = 8;
const SPARSE_AREAS: usize = 16;

/// What a device is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DeviceInfo {
    /// Whether it is a PCI function.
    pub is_pci: bool,
    /// Whether [`VfioDevice::reset`] can work.
    pub can_reset: bool,
    /// Number of regions.
    pub regions: u32,
    /// Number of kinds of interrupts.
    pub interrupts: u32,
}

/// One region of a device.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RegionInfo {
    /// Length; 0 if the region is not there.
    pub bytes: u64,
    /// Where it begins in the descriptor.
    pub file_offset: u64,
    /// Whether it can be read.
    pub is_readable: bool,
    /// Whether it can be written.
    pub is_writable: bool,
    /// Whether it can be mapped.
    pub is_mappable: bool,
    /// The parts that can be mapped, each `(offset, bytes)`; all of it if there is no list.
    pub areas: Option<Vec<(u64, u64)>>,
    /// Whether the pages of the MSI-X table may be mapped, too.
    pub is_msix_mappable: bool,
}

/// One kind of interrupts of a device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct InterruptInfo {
    /// How many there are.
    pub count: u32,
    /// Whether they can signal events.
    pub signals_events: bool,
    /// Whether some can be added while others are in use.
    pub can_add: bool,
}

/// An open device.
#[derive(Debug)]
pub struct VfioDevice {
    file: File,
}

impl AsFd for VfioDevice {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl VfioDevice {
    pub(crate) fn new(descriptor: OwnedFd) -> Self {
        Self {
            file: File::from(descriptor),
        }
    }

    /// What the device is.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn info(&self) -> io::Result<DeviceInfo> {
        let mut info = vfio_device_info {
            argsz: length_of::<vfio_device_info>(),
            ..Default::default()
        };
        with_struct(self.as_fd(), DEVICE_GET_INFO, &mut info)?;
        Ok(DeviceInfo {
            is_pci: info.flags & VFIO_DEVICE_FLAGS_PCI != 0,
            can_reset: info.flags & VFIO_DEVICE_FLAGS_RESET != 0,
            regions: info.num_regions,
            interrupts: info.num_irqs,
        })
    }

    /// What region `index` is.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn region(&self, index: u32) -> io::Result<RegionInfo> {
        let question = [(REGION_INDEX, index)];
        let reply = Reply::ask(
            self.as_fd(),
            DEVICE_GET_REGION_INFO,
            REGION_BYTES,
            &question,
        )?;
        let flags = reply.u32(REGION_FLAGS)?;
        let mut region = RegionInfo {
            bytes: reply.u64(REGION_SIZE)?,
            file_offset: reply.u64(REGION_OFFSET)?,
            is_readable: flags & VFIO_REGION_INFO_FLAG_READ != 0,
            is_writable: flags & VFIO_REGION_INFO_FLAG_WRITE != 0,
            is_mappable: flags & VFIO_REGION_INFO_FLAG_MMAP != 0,
            areas: None,
            is_msix_mappable: false,
        };
        if flags & VFIO_REGION_INFO_FLAG_CAPS == 0 {
            return Ok(region);
        }
        for (id, place) in reply.capabilities(reply.u32(REGION_CAPABILITIES)?)? {
            match u32::from(id) {
                VFIO_REGION_INFO_CAP_SPARSE_MMAP => {
                    let count = reply.u32(place + SPARSE_COUNT)?;
                    region.areas = Some(reply.pairs(place + SPARSE_AREAS, count)?);
                }
                VFIO_REGION_INFO_CAP_MSIX_MAPPABLE => region.is_msix_mappable = true,
                _ => {}
            }
        }
        Ok(region)
    }

    /// What interrupts of kind `index` are.
    ///
    /// # Errors
    /// What the kernel says; `EINVAL` if the device has none of that kind.
    pub fn interrupts(&self, index: u32) -> io::Result<InterruptInfo> {
        let mut info = vfio_irq_info {
            argsz: length_of::<vfio_irq_info>(),
            index,
            ..Default::default()
        };
        with_struct(self.as_fd(), DEVICE_GET_IRQ_INFO, &mut info)?;
        Ok(InterruptInfo {
            count: info.count,
            signals_events: info.flags & VFIO_IRQ_INFO_EVENTFD != 0,
            can_add: info.flags & VFIO_IRQ_INFO_NORESIZE == 0,
        })
    }

    /// Makes interrupts `first..` of kind `index` signal `events`, which are eventfds.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn signal_events(
        &self,
        index: u32,
        first: u32,
        events: &[BorrowedFd<'_>],
    ) -> io::Result<()> {
        let count = u32::try_from(events.len()).map_err(io::Error::other)?;
        let flags = VFIO_IRQ_SET_DATA_EVENTFD | VFIO_IRQ_SET_ACTION_TRIGGER;
        let mut message = interrupt_set(flags, index, first, count);
        for event in events {
            message.extend(event.as_raw_fd().to_ne_bytes());
        }
        with_bytes(self.as_fd(), DEVICE_SET_IRQS, &mut message)?;
        Ok(())
    }

    /// Turns all interrupts of kind `index` off.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn disable_interrupts(&self, index: u32) -> io::Result<()> {
        let flags = VFIO_IRQ_SET_DATA_NONE | VFIO_IRQ_SET_ACTION_TRIGGER;
        let mut message = interrupt_set(flags, index, 0, 0);
        with_bytes(self.as_fd(), DEVICE_SET_IRQS, &mut message)?;
        Ok(())
    }

    /// Resets the function.
    ///
    /// # Errors
    /// What the kernel says; `EINVAL` if there is no way to reset it alone.
    pub fn reset(&self) -> io::Result<()> {
        with_value(self.as_fd(), DEVICE_RESET, 0)?;
        Ok(())
    }

    /// Fills `data` from `offset` of `region` by one access.
    ///
    /// # Errors
    /// What the kernel says; `UnexpectedEof` if it filled less.
    pub fn read(&self, region: &RegionInfo, offset: u64, data: &mut [u8]) -> io::Result<()> {
        let at = place(region, offset, data.len())?;
        loop {
            match self.file.read_at(data, at) {
                Ok(filled) if filled == data.len() => return Ok(()),
                Ok(_) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Writes `data` at `offset` of `region` by one access.
    ///
    /// # Errors
    /// What the kernel says; `WriteZero` if it took less.
    pub fn write(&self, region: &RegionInfo, offset: u64, data: &[u8]) -> io::Result<()> {
        let at = place(region, offset, data.len())?;
        loop {
            match self.file.write_at(data, at) {
                Ok(taken) if taken == data.len() => return Ok(()),
                Ok(_) => return Err(io::ErrorKind::WriteZero.into()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Maps what can be mapped of `region`; nothing if that is nothing.
    ///
    /// # Errors
    /// If the kernel's list of areas is not of whole pages inside the region, or what it says.
    pub fn map(&self, region: &RegionInfo) -> io::Result<Option<DeviceMapping>> {
        let whole = [(0, region.bytes)];
        let areas = region.areas.as_deref().unwrap_or(&whole);
        if !region.is_mappable || region.bytes == 0 || areas.is_empty() {
            return Ok(None);
        }
        DeviceMapping::new(self.as_fd(), region.file_offset, region.bytes, areas).map(Some)
    }
}

/// `struct vfio_irq_set` without its data; the length comes with the call.
fn interrupt_set(flags: u32, index: u32, start: u32, count: u32) -> Vec<u8> {
    [0, flags, index, start, count]
        .into_iter()
        .flat_map(u32::to_ne_bytes)
        .collect()
}

fn place(region: &RegionInfo, offset: u64, width: usize) -> io::Result<u64> {
    let end = u64::try_from(width)
        .ok()
        .and_then(|width| offset.checked_add(width));
    if end.is_none_or(|end| end > region.bytes) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    region
        .file_offset
        .checked_add(offset)
        .ok_or_else(|| io::ErrorKind::InvalidInput.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn region(bytes: u64, file_offset: u64) -> RegionInfo {
        RegionInfo {
            bytes,
            file_offset,
            is_readable: true,
            is_writable: true,
            is_mappable: false,
            areas: None,
            is_msix_mappable: false,
        }
    }

    #[test]
    fn accesses_stay_inside_their_region() {
        let region = region(4096, 7 << 40);
        assert_eq!(place(&region, 4092, 4).unwrap(), (7 << 40) + 4092);
        for (offset, width) in [(4093, 4), (4096, 1), (u64::MAX, 1)] {
            place(&region, offset, width).unwrap_err();
        }
        let far = RegionInfo {
            file_offset: u64::MAX,
            ..region
        };
        place(&far, 8, 4).unwrap_err();
    }

    #[test]
    fn a_file_that_ends_early_is_an_error_and_not_zeroes() {
        let device = VfioDevice::new(File::open("/dev/null").unwrap().into());
        let error = device.read(&region(16, 0), 0, &mut [0; 4]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
        device.info().unwrap_err();
        device.region(0).unwrap_err();
        device.reset().unwrap_err();
    }

    #[test]
    fn a_region_that_cannot_be_mapped_is_not() {
        let device = VfioDevice::new(File::open("/dev/null").unwrap().into());
        assert!(device.map(&region(4096, 0)).unwrap().is_none());
    }
}
