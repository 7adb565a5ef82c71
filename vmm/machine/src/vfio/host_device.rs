//! One open device of the host, doing what the device model tells it.
//!
//! Owns the device's descriptor, its events and the mappings of its memory. It decides nothing: what
//! the guest sees, when a BAR appears and when a vector fires is the model's business.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::AsFd as _;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use berth_api::vmm::Warning;
use berth_vfio::{DeviceMapping, InterruptInfo, RegionInfo, VfioDevice};
use berth_vmm_devices::interrupt::MsiMessage;
use berth_vmm_devices::vfio::ops::{
    Area, BAR_COUNT, BarInfo, Description, InterruptCounts, Mappable, Region, VectorKind, VfioOps,
};
use berth_vmm_sys::KvmVfioRegistry;
use berth_vmm_sys::{Event, Vm};

use super::iommu::Iommu;
use crate::irq_routes::{IrqRoutes, IrqVector};
use crate::warnings::Warnings;

/// Numbers of `linux/vfio.h`: kinds of interrupts.
const INTERRUPT_INTX: u32 = 0;
const INTERRUPT_MSI: u32 = 1;
const INTERRUPT_MSIX: u32 = 2;
pub(super) const INTERRUPT_ERROR: u32 = 3;
pub(super) const INTERRUPT_REQUEST: u32 = 4;
/// Numbers of `linux/vfio.h`: regions. BARs have their own number.
const REGION_CONFIG: u32 = 7;

/// What all devices of a machine share.
#[derive(Clone, Debug)]
pub(super) struct Surroundings {
    pub(super) vm: Arc<Vm>,
    pub(super) routes: Arc<IrqRoutes>,
    pub(super) warnings: Arc<Warnings>,
    /// Keeps the mappings of the guest's memory; takes those of devices' memory, too, if they may
    /// reach each other.
    pub(super) iommu: Arc<dyn Iommu>,
    pub(super) peer_to_peer: bool,
    /// Open for as long as KVM is to know of the devices.
    pub(super) _registry: Arc<KvmVfioRegistry>,
}

/// A device that the machine's guest has.
#[derive(Debug)]
pub(super) struct HostDevice {
    address: String,
    device: VfioDevice,
    config: RegionInfo,
    bars: Vec<Bar>,
    interrupts: InterruptCounts,
    surroundings: Surroundings,
    vectors: Mutex<Vectors>,
    peers: Mutex<Peers>,
}

#[derive(Debug)]
struct Bar {
    region: RegionInfo,
    mapping: Option<Arc<DeviceMapping>>,
}

/// The vectors that can fire.
#[derive(Debug, Default)]
struct Vectors {
    kind: Option<VectorKind>,
    vectors: Vec<IrqVector>,
}

/// Which areas other devices can reach.
#[derive(Debug, Default)]
struct Peers {
    addresses: BTreeSet<u64>,
    has_warned: bool,
}

impl HostDevice {
    /// Asks the device what it is made of and maps what can be mapped.
    pub(super) fn new(
        address: String,
        device: VfioDevice,
        surroundings: Surroundings,
    ) -> io::Result<Self> {
        let info = device.info()?;
        if !info.is_pci || info.regions <= REGION_CONFIG {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "it is not a PCI function",
            ));
        }
        let config = device.region(REGION_CONFIG)?;
        let bars = (0..BAR_COUNT)
            .map(|index| {
                let region = device.region(u32::try_from(index).map_err(io::Error::other)?)?;
                let mapping = device.map(&region)?.map(Arc::new);
                Ok(Bar { region, mapping })
            })
            .collect::<io::Result<_>>()?;
        let counts = |index| -> io::Result<InterruptInfo> {
            if index < info.interrupts {
                return device.interrupts(index);
            }
            Ok(InterruptInfo {
                count: 0,
                signals_events: false,
                can_add: false,
            })
        };
        let msix = counts(INTERRUPT_MSIX)?;
        let interrupts = InterruptCounts {
            intx: counts(INTERRUPT_INTX)?.count,
            msi: counts(INTERRUPT_MSI)?.count,
            msix: msix.count,
            can_add_msix: msix.can_add,
        };
        Ok(Self {
            address,
            device,
            config,
            bars,
            interrupts,
            surroundings,
            vectors: Mutex::default(),
            peers: Mutex::default(),
        })
    }

    /// Makes an event that the kernel signals for interrupt kind `index`, if the device has it.
    pub(super) fn event(&self, index: u32) -> io::Result<Option<Event>> {
        // The kernel refuses kinds that this device does not have.
        let Ok(info) = self.device.interrupts(index) else {
            return Ok(None);
        };
        if info.count == 0 || !info.signals_events {
            return Ok(None);
        }
        let event = Event::new()?;
        self.device.signal_events(index, 0, &[event.as_fd()])?;
        Ok(Some(event))
    }

    fn region(&self, region: Region) -> io::Result<&RegionInfo> {
        match region {
            Region::Config => Ok(&self.config),
            Region::Bar(index) => Ok(&self.bar(index)?.region),
        }
    }

    fn bar(&self, index: u8) -> io::Result<&Bar> {
        self.bars
            .get(usize::from(index))
            .ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn lock_vectors(&self) -> MutexGuard<'_, Vectors> {
        self.vectors.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock_peers(&self) -> MutexGuard<'_, Peers> {
        self.peers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets other devices reach an area. A host that cannot do that is worth one warning, as the
    /// guest can repeat this without end.
    fn map_for_peers(&self, mapping: &DeviceMapping, area: Area, address: u64) {
        if !self.surroundings.peer_to_peer {
            return;
        }
        let iommu = &self.surroundings.iommu;
        let mut peers = self.lock_peers();
        match iommu.map_device(mapping, area.offset, area.bytes, address) {
            Ok(()) => {
                peers.addresses.insert(address);
            }
            Err(_) if peers.has_warned => {}
            Err(error) => {
                peers.has_warned = true;
                self.surroundings.warnings.tell(Warning::PeerToPeer {
                    device: self.address.clone(),
                    problem: format!(
                        "{:#x} bytes at {address:#x} are not mapped: {error}",
                        area.bytes
                    ),
                });
            }
        }
    }

    fn unmap_for_peers(&self, area: Area, address: u64) -> io::Result<()> {
        if self.lock_peers().addresses.remove(&address) {
            return self.surroundings.iommu.unmap(address, area.bytes);
        }
        Ok(())
    }
}

fn interrupt_index(kind: VectorKind) -> u32 {
    match kind {
        VectorKind::Msi => INTERRUPT_MSI,
        VectorKind::MsiX => INTERRUPT_MSIX,
    }
}

fn bar_info(bar: &Bar) -> BarInfo {
    let region = &bar.region;
    let mappable = match (&bar.mapping, &region.areas) {
        (None, _) => Mappable::Nothing,
        (Some(_), None) => Mappable::Whole,
        (Some(_), Some(areas)) => {
            let areas = areas.iter();
            Mappable::Areas(
                areas
                    .map(|&(offset, bytes)| Area { offset, bytes })
                    .collect(),
            )
        }
    };
    BarInfo {
        bytes: region.bytes,
        is_readable: region.is_readable,
        is_writable: region.is_writable,
        mappable,
        is_msix_mappable: region.is_msix_mappable,
    }
}

impl VfioOps for HostDevice {
    fn describe(&self) -> io::Result<Description> {
        let mut description = Description {
            config_bytes: self.config.bytes,
            interrupts: self.interrupts,
            ..Description::default()
        };
        for (info, bar) in description.bars.iter_mut().zip(&self.bars) {
            *info = bar_info(bar);
        }
        Ok(description)
    }

    fn read(&self, region: Region, offset: u64, data: &mut [u8]) -> io::Result<()> {
        self.device.read(self.region(region)?, offset, data)
    }

    fn write(&self, region: Region, offset: u64, data: &[u8]) -> io::Result<()> {
        self.device.write(self.region(region)?, offset, data)
    }

    fn reset(&self) -> io::Result<()> {
        self.device.reset()
    }

    fn enable_vectors(&self, kind: VectorKind, first: u16, count: u16) -> io::Result<()> {
        let mut enabled = self.lock_vectors();
        let added: Vec<_> = (0..count)
            .map(|_| self.surroundings.routes.vector())
            .collect::<Result<_, _>>()?;
        let events: Vec<_> = added.iter().map(|added| added.event().as_fd()).collect();
        self.device
            .signal_events(interrupt_index(kind), u32::from(first), &events)?;
        enabled.vectors.truncate(usize::from(first));
        enabled.vectors.extend(added);
        enabled.kind = Some(kind);
        Ok(())
    }

    fn disable_vectors(&self) -> io::Result<()> {
        let mut enabled = self.lock_vectors();
        let Some(kind) = enabled.kind.take() else {
            return Ok(());
        };
        let result = self.device.disable_interrupts(interrupt_index(kind));
        enabled.vectors.clear();
        result
    }

    fn route_vector(&self, index: u16, message: Option<MsiMessage>) -> io::Result<()> {
        let mut enabled = self.lock_vectors();
        let vector = enabled
            .vectors
            .get_mut(usize::from(index))
            .ok_or(io::ErrorKind::NotFound)?;
        let Some(message) = message else {
            vector.disconnect();
            return Ok(());
        };
        vector.connect(message).map_err(|error| {
            vector.disconnect();
            io::Error::other(error)
        })
    }

    fn take_fired(&self, index: u16) -> bool {
        let enabled = self.lock_vectors();
        let vector = enabled.vectors.get(usize::from(index));
        vector.is_some_and(IrqVector::take_pending)
    }

    fn map_area(&self, bar: u8, area: Area, address: u64) -> io::Result<()> {
        let mapping = self.bar(bar)?.mapping.as_ref();
        let mapping = mapping.ok_or(io::ErrorKind::NotFound)?;
        let Area { offset, bytes } = area;
        self.surroundings
            .vm
            .map_device(mapping, offset, bytes, address)?;
        self.map_for_peers(mapping, area, address);
        Ok(())
    }

    fn unmap_area(&self, _bar: u8, area: Area, address: u64) -> io::Result<()> {
        let unmapped = self.unmap_for_peers(area, address);
        self.surroundings.vm.unmap_device(address)?;
        unmapped
    }
}
