//! An NVMe drive's registers and a piece of memory that it can reach, through VFIO: the transport of
//! `berth-nvme`.
//!
//! Every register access is a call to the kernel, so that a drive that sleeps or is gone is an error and
//! no signal. The memory is anonymous, is mapped for this one drive, and is only ever copied.

use std::io;
use std::sync::atomic::{Ordering, fence};
use std::time::{Duration, Instant};

use berth_nvme::transport::{DMA_PAGES, PAGE_BYTES, Transport, TransportError};
use berth_vfio::{IovaRange, RegionInfo, Type1, VfioDevice};
use vm_memory::{Bytes as _, GuestAddress, GuestRegionMmap, MemoryRegionAddress};

use super::device_registers::OpenConfig;

/// Where the drive finds the memory if the kernel does not say what can be: above everything that PCs
/// reserve below it.
const USUAL_ADDRESS: u64 = 1 << 20;
const MEMORY_BYTES: usize = DMA_PAGES * PAGE_BYTES;

/// A drive under our driver.
#[derive(Debug)]
pub(super) struct NvmeTransport<'s> {
    device: &'s VfioDevice,
    iommu: &'s Type1,
    registers: RegionInfo,
    memory: GuestRegionMmap<()>,
    first: u64,
    pages: Vec<u64>,
    begun: Instant,
}

impl<'s> NvmeTransport<'s> {
    /// Let the drive reach our memory, which is nothing but zeroes.
    pub(super) fn new(device: &'s VfioDevice, iommu: &'s Type1) -> io::Result<Self> {
        let bytes = u64::try_from(MEMORY_BYTES).map_err(io::Error::other)?;
        let first = match iommu.iova_ranges()? {
            None => USUAL_ADDRESS,
            Some(ranges) => place(&ranges, bytes).ok_or_else(|| {
                io::Error::new(
                    io::ErrorKind::OutOfMemory,
                    "the IOMMU has no room for a few pages",
                )
            })?,
        };
        let memory = GuestRegionMmap::from_range(GuestAddress(first), MEMORY_BYTES, None)
            .map_err(io::Error::other)?;
        let registers = device.region(0)?;
        iommu.map_memory(&memory)?;
        let pages = (first..first.saturating_add(bytes))
            .step_by(PAGE_BYTES)
            .collect::<Vec<_>>();
        let transport = Self {
            device,
            iommu,
            registers,
            memory,
            first,
            pages,
            begun: Instant::now(),
        };
        OpenConfig::new(device)?.turn_on(true)?;
        Ok(transport)
    }
}

/// The lowest page address from 1 MiB on where `bytes` fit.
fn place(ranges: &[IovaRange], bytes: u64) -> Option<u64> {
    let mut starts = ranges.iter().filter_map(|range| {
        let start = range.first.max(USUAL_ADDRESS);
        let start = start.checked_next_multiple_of(u64::try_from(PAGE_BYTES).ok()?)?;
        let last = start.checked_add(bytes.checked_sub(1)?)?;
        (last <= range.last).then_some(start)
    });
    starts.next()
}

fn outside(offset: usize, length: usize) -> TransportError {
    TransportError::OutOfRange {
        offset,
        end: offset.saturating_add(length),
    }
}

fn in_memory(offset: usize) -> Option<MemoryRegionAddress> {
    u64::try_from(offset).ok().map(MemoryRegionAddress)
}

impl Transport for NvmeTransport<'_> {
    fn read_register(&mut self, offset: u32) -> Result<u32, TransportError> {
        let mut bytes = [0; 4];
        self.device
            .read(&self.registers, offset.into(), &mut bytes)
            .map_err(|source| TransportError::Register { offset, source })?;
        Ok(u32::from_le_bytes(bytes))
    }

    fn write_register(&mut self, offset: u32, value: u32) -> Result<(), TransportError> {
        // What was written to the memory is there before the drive hears of it.
        fence(Ordering::SeqCst);
        self.device
            .write(&self.registers, offset.into(), &value.to_le_bytes())
            .map_err(|source| TransportError::Register { offset, source })
    }

    fn page_addresses(&self) -> &[u64] {
        &self.pages
    }

    fn read_memory(&mut self, offset: usize, bytes: &mut [u8]) -> Result<(), TransportError> {
        fence(Ordering::SeqCst);
        let length = bytes.len();
        in_memory(offset)
            .and_then(|at| self.memory.read_slice(bytes, at).ok())
            .ok_or_else(|| outside(offset, length))
    }

    fn write_memory(&mut self, offset: usize, bytes: &[u8]) -> Result<(), TransportError> {
        in_memory(offset)
            .and_then(|at| self.memory.write_slice(bytes, at).ok())
            .ok_or_else(|| outside(offset, bytes.len()))
    }

    fn now(&mut self) -> Duration {
        self.begun.elapsed()
    }

    fn sleep(&mut self, duration: Duration) {
        std::thread::sleep(duration);
    }
}

impl Drop for NvmeTransport<'_> {
    fn drop(&mut self) {
        let off = OpenConfig::new(self.device).and_then(|config| config.turn_bus_mastering_off());
        if let Err(error) = off {
            tracing::warn!(%error, "a drive cannot be kept from our memory; its mapping ends all the same");
        }
        let bytes = MEMORY_BYTES.try_into().unwrap_or(u64::MAX);
        if let Err(error) = self.iommu.unmap(self.first, bytes) {
            // The container is closed right after this, and every mapping ends with it.
            tracing::debug!(%error, "a drive's memory was not unmapped by itself");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(first: u64, last: u64) -> IovaRange {
        IovaRange { first, last }
    }

    #[test]
    fn the_memory_lies_inside_one_range() {
        let usual = [range(0, 0xfedf_ffff), range(0xfef0_0000, (1 << 39) - 1)];
        assert_eq!(place(&usual, 0x4000), Some(1 << 20));
        assert_eq!(place(&usual, 1 << 32), Some(0xfef0_0000));
        assert_eq!(place(&usual, 1 << 39), None);
        assert_eq!(place(&[], 0x1000), None);
        let odd = [range(0x10_0800, 0x10_2fff)];
        assert_eq!(place(&odd, 0x2000), Some(0x10_1000));
        assert_eq!(place(&odd, 0x2001), None);
        assert_eq!(place(&[range(u64::MAX - 1, u64::MAX)], 0x1000), None);
        assert_eq!(place(&usual, 0), None);
    }
}
