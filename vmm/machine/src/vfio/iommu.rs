//! The host's IOMMU as the machine uses it, whichever of the kernel's interfaces is behind it.
//!
//! Owns the seam between both and what their failures mean to an administrator.

use std::io;
use std::ops::Range;

use berth_vfio::{DeviceMapping, Iommufd, IovaRange, Type1};
use berth_vmm_devices::memory::Memory;
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion, GuestRegionMmap};

use crate::refusal::Refusal;

/// One address space for all devices of a machine.
pub trait Iommu: Send + Sync + std::fmt::Debug {
    /// The addresses that devices can use, first to one after last; `None` if the kernel does not
    /// say.
    ///
    /// # Errors
    /// What the kernel says.
    fn ranges(&self) -> io::Result<Option<Vec<Range<u64>>>>;

    /// Lets devices reach a part of guest memory at its guest physical address.
    ///
    /// # Errors
    /// What the kernel says.
    fn map_memory(&self, region: &GuestRegionMmap<()>) -> io::Result<()>;

    /// Lets devices reach `bytes` of a device's memory from `offset` on at `address`.
    ///
    /// # Errors
    /// What the kernel says.
    fn map_device(
        &self,
        mapping: &DeviceMapping,
        offset: u64,
        bytes: u64,
        address: u64,
    ) -> io::Result<()>;

    /// Takes back exactly one mapping.
    ///
    /// # Errors
    /// What the kernel says.
    fn unmap(&self, address: u64, bytes: u64) -> io::Result<()>;
}

impl Iommu for Type1 {
    fn ranges(&self) -> io::Result<Option<Vec<Range<u64>>>> {
        Ok(self.iova_ranges()?.map(half_open))
    }

    fn map_memory(&self, region: &GuestRegionMmap<()>) -> io::Result<()> {
        self.map_memory(region)
    }

    fn map_device(
        &self,
        mapping: &DeviceMapping,
        offset: u64,
        bytes: u64,
        address: u64,
    ) -> io::Result<()> {
        self.map_device(mapping, offset, bytes, address)
    }

    fn unmap(&self, address: u64, bytes: u64) -> io::Result<()> {
        self.unmap(address, bytes)
    }
}

impl Iommu for Iommufd {
    fn ranges(&self) -> io::Result<Option<Vec<Range<u64>>>> {
        Ok(Some(half_open(self.iova_ranges()?)))
    }

    fn map_memory(&self, region: &GuestRegionMmap<()>) -> io::Result<()> {
        self.map_memory(region)
    }

    fn map_device(
        &self,
        mapping: &DeviceMapping,
        offset: u64,
        bytes: u64,
        address: u64,
    ) -> io::Result<()> {
        self.map_device(mapping, offset, bytes, address)
    }

    fn unmap(&self, address: u64, bytes: u64) -> io::Result<()> {
        self.unmap(address, bytes)
    }
}

/// The very last address is left out: nothing that a machine has ends there.
fn half_open(ranges: Vec<IovaRange>) -> Vec<Range<u64>> {
    ranges
        .into_iter()
        .map(|range| range.first..range.last.saturating_add(1))
        .collect()
}

/// Refuses guest memory that devices could not reach at its own address.
///
/// # Errors
/// The refusal.
pub fn check_reach(ram: &[Range<u64>], ranges: Option<&[Range<u64>]>) -> Result<(), Refusal> {
    let is_inside = |part: &&Range<u64>| {
        ranges.is_none_or(|ranges| {
            ranges
                .iter()
                .any(|range| range.start <= part.start && part.end <= range.end)
        })
    };
    match ram.iter().find(|part| !is_inside(part)) {
        None => Ok(()),
        Some(part) => Err(Refusal::new(
            "memory_mib",
            format!(
                "guest memory at {:#x}..{:#x} is not wholly inside the addresses that this host's \
                 IOMMU can translate",
                part.start, part.end
            ),
            "give the guest less memory, or use a host whose IOMMU has wider addresses",
        )),
    }
}

/// Makes all of the guest's memory reachable for its devices. It stays in the host's memory from
/// here on.
///
/// # Errors
/// The refusal if the host does not do that.
pub fn map_all_memory(iommu: &dyn Iommu, memory: &Memory) -> Result<(), Refusal> {
    for region in memory.iter() {
        iommu.map_memory(region).map_err(|error| {
            let remedy = if error.raw_os_error() == Some(OUT_OF_MEMORY) {
                "let the VMM's process lock at least the guest's memory (LimitMEMLOCK= of its \
                 unit), and see that the host has that much free"
            } else {
                "see this host's kernel log; the machine may start on another host"
            };
            Refusal::new(
                "vfio",
                format!(
                    "the IOMMU did not map {} MiB of guest memory at {:#x}: {error}",
                    region.len() >> 20,
                    region.start_addr().0
                ),
                remedy,
            )
        })?;
    }
    Ok(())
}

/// `ENOMEM`: both interfaces say that of the limit on locked memory, too.
const OUT_OF_MEMORY: i32 = 12;

#[cfg(test)]
pub(super) mod testing {
    use std::sync::Mutex;

    use super::*;

    /// An IOMMU that records, and that fails to map devices above an address.
    #[derive(Debug)]
    pub(in crate::vfio) struct FakeIommu {
        pub(in crate::vfio) limit: u64,
        pub(in crate::vfio) memory_error: Option<i32>,
        pub(in crate::vfio) mapped: Mutex<Vec<(u64, u64)>>,
    }

    impl FakeIommu {
        pub(in crate::vfio) fn new(limit: u64) -> Self {
            Self {
                limit,
                memory_error: None,
                mapped: Mutex::default(),
            }
        }

        fn map(&self, address: u64, bytes: u64) -> io::Result<()> {
            if address + bytes > self.limit {
                return Err(io::Error::from_raw_os_error(22));
            }
            self.mapped.lock().unwrap().push((address, bytes));
            Ok(())
        }
    }

    impl Iommu for FakeIommu {
        fn ranges(&self) -> io::Result<Option<Vec<Range<u64>>>> {
            Ok(None)
        }

        fn map_memory(&self, region: &GuestRegionMmap<()>) -> io::Result<()> {
            match self.memory_error {
                Some(error) => Err(io::Error::from_raw_os_error(error)),
                None => self.map(region.start_addr().0, region.len()),
            }
        }

        fn map_device(
            &self,
            _: &DeviceMapping,
            _: u64,
            bytes: u64,
            address: u64,
        ) -> io::Result<()> {
            self.map(address, bytes)
        }

        fn unmap(&self, address: u64, bytes: u64) -> io::Result<()> {
            let mut mapped = self.mapped.lock().unwrap();
            let before = mapped.len();
            mapped.retain(|entry| *entry != (address, bytes));
            if mapped.len() == before {
                return Err(io::ErrorKind::NotFound.into());
            }
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use vm_memory::{GuestAddress, GuestMemoryMmap};

    use super::testing::FakeIommu;
    use super::*;

    #[test]
    fn memory_must_lie_inside_one_range_each() {
        let ranges = [0..0xfee0_0000, 0xfef0_0000..1 << 39];
        let check = |ram: &[Range<u64>]| check_reach(ram, Some(&ranges));
        check(&[0..3 << 30, 4 << 30..1 << 39]).unwrap();
        let refusal = check(&[0..3 << 30, 4 << 30..(1 << 39) + 1]).unwrap_err();
        assert_eq!(refusal.field, "memory_mib");
        check(&[0..3 << 30, 0xfed0_0000..0xfef0_0000]).unwrap_err();
        check_reach(&[0..3 << 30, 4 << 30..u64::MAX], None).unwrap();
    }

    #[test]
    fn all_memory_is_mapped_at_its_own_address() {
        let ranges = [
            (GuestAddress(0), 0x10_0000),
            (GuestAddress(4 << 30), 0x1000),
        ];
        let memory: Memory = GuestMemoryMmap::from_ranges(&ranges).unwrap();
        let iommu = FakeIommu::new(u64::MAX);
        map_all_memory(&iommu, &memory).unwrap();
        assert_eq!(
            *iommu.mapped.lock().unwrap(),
            [(0, 0x10_0000), (4 << 30, 0x1000)]
        );
    }

    #[test]
    fn a_limit_on_locked_memory_is_named_with_its_remedy() {
        let memory: Memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x1000)]).unwrap();
        let mut iommu = FakeIommu::new(u64::MAX);
        iommu.memory_error = Some(OUT_OF_MEMORY);
        let refusal = map_all_memory(&iommu, &memory).unwrap_err();
        assert!(refusal.remedy.contains("LimitMEMLOCK="), "{refusal}");
        iommu.memory_error = Some(14);
        let refusal = map_all_memory(&iommu, &memory).unwrap_err();
        assert!(!refusal.remedy.contains("LimitMEMLOCK="), "{refusal}");
    }
}
