//! From the descriptors of host devices to functions on the guest's bus.
//!
//! Owns the steps and what a failure of each means to an administrator.

use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use berth_vfio::{Iommufd, Type1, VfioDevice};
use berth_vmm_devices::bus::BusRange;
use berth_vmm_devices::counters::Counters;
use berth_vmm_devices::guest_error::GuestErrors;
use berth_vmm_devices::interrupt::MsiSender;
use berth_vmm_devices::vfio::bar_layout::{
    AllowedRanges, BarPlan, PlaceBarsError, WantedBar, place_bars, ranges_above,
};
use berth_vmm_devices::vfio::function::VfioPci;
use berth_vmm_devices::vfio::window;
use berth_vmm_sys::KvmVfioRegistry;

use super::host_device::{HostDevice, INTERRUPT_ERROR, INTERRUPT_REQUEST, Surroundings};
use super::host_events::{HostEvent, HostEventKind, HostEvents};
use super::iommu::{Iommu, check_reach, map_all_memory};
use crate::irq_routes::IrqRoutes;
use crate::layout::{self, RamLayout};
use crate::refusal::{BuildMachineError, Refusal, host};
use crate::spec::vfio::{IommuSpec, VfioDeviceSpec, VfioSpec, field};
use crate::warnings::Warnings;

/// What the devices are put into.
#[derive(Debug)]
pub struct Frame<'a> {
    /// The machine.
    pub vm: &'a Arc<berth_vmm_sys::Vm>,
    /// Where its memory is.
    pub ram: RamLayout,
    /// Interrupts that the kernel raises.
    pub routes: &'a Arc<IrqRoutes>,
    /// Where warnings go.
    pub warnings: &'a Arc<Warnings>,
    /// Bits of a physical address in the guest.
    pub address_bits: u32,
}

/// Devices that are open, and whose guest's memory is mapped for them.
#[derive(Debug)]
pub struct OpenDevices {
    devices: Vec<(String, HostDevice)>,
    /// What devices can address, if they are to reach each other.
    reach: Option<Vec<Range<u64>>>,
    ram: RamLayout,
    address_bits: u32,
}

/// Devices as functions for the guest's bus.
#[derive(Debug)]
pub struct Passthrough {
    /// The functions in the order of the start message.
    pub functions: Vec<Arc<VfioPci>>,
    /// What answers where their BARs are.
    pub ranges: Vec<BusRange>,
    /// Where their 64-bit BARs are: the window that the guest is told of. Empty without any.
    pub window: Range<u64>,
    /// What the host says about them.
    pub events: HostEvents,
    /// Their counters by name.
    pub counters: Vec<(String, Arc<Counters>)>,
}

/// Opens the devices and maps all of the guest's memory for them.
///
/// # Errors
/// A refusal if a device, its group or the IOMMU is not as it must be.
pub fn open(spec: VfioSpec, frame: &Frame<'_>) -> Result<OpenDevices, BuildMachineError> {
    let registry = frame
        .vm
        .vfio_registry()
        .map_err(host("tell KVM of VFIO devices"))?;
    let (iommu, opened) = match spec.iommu {
        IommuSpec::Type1 { container, groups } => {
            open_groups(container, &groups, &spec.devices, frame, &registry)?
        }
        IommuSpec::Iommufd { iommu, devices } => open_devices(iommu, devices, frame, &registry)?,
    };
    let ranges = read_ranges(iommu.as_ref())?;
    let surroundings = Surroundings {
        vm: Arc::clone(frame.vm),
        routes: Arc::clone(frame.routes),
        warnings: Arc::clone(frame.warnings),
        iommu,
        peer_to_peer: spec.peer_to_peer,
        _registry: Arc::new(registry),
    };
    let devices = opened
        .into_iter()
        .zip(spec.devices)
        .enumerate()
        .map(|(position, (device, VfioDeviceSpec { address, .. }))| {
            let device = HostDevice::new(address.clone(), device, surroundings.clone())
                .map_err(|error| not_described(position, &error))?;
            Ok((address, device))
        })
        .collect::<Result<_, Refusal>>()?;
    Ok(OpenDevices {
        devices,
        reach: ranges.filter(|_| spec.peer_to_peer),
        ram: frame.ram,
        address_bits: frame.address_bits,
    })
}

type Opened = (Arc<dyn Iommu>, Vec<VfioDevice>);

fn open_groups(
    container: OwnedFd,
    groups: &[OwnedFd],
    devices: &[VfioDeviceSpec],
    frame: &Frame<'_>,
    registry: &KvmVfioRegistry,
) -> Result<Opened, BuildMachineError> {
    let container = Type1::new(container).map_err(|error| {
        Refusal::new(
            "vfio.iommu.container",
            format!("the kernel offers no type 1 IOMMU through it: {error}"),
            "load vfio_iommu_type1, and open /dev/vfio/vfio anew for every machine",
        )
    })?;
    for (position, group) in groups.iter().enumerate() {
        let field = group_field(devices, position);
        add_group(&container, group.as_fd(), &field)?;
        if position == 0 {
            start_translation(&container)?;
        }
        registry
            .add(group.as_fd())
            .map_err(host("tell KVM of a group of devices"))?;
    }
    prepare_memory(&container, frame)?;
    let opened = devices
        .iter()
        .enumerate()
        .map(|(position, device)| {
            let group = groups
                .get(device.descriptor)
                .ok_or(io::ErrorKind::NotFound)
                .map_err(|kind| not_opened(position, &kind.into()))?;
            container
                .open_device(group.as_fd(), &device.address)
                .map_err(|error| not_opened(position, &error))
        })
        .collect::<Result<_, Refusal>>()?;
    Ok((Arc::new(container), opened))
}

fn add_group(
    container: &Type1,
    group: BorrowedFd<'_>,
    field: &str,
) -> Result<(), BuildMachineError> {
    let is_viable = Type1::is_viable(group).map_err(|error| {
        Refusal::new(
            field,
            format!("it is not an open VFIO group: {error}"),
            "open /dev/vfio/<group> of the device",
        )
    })?;
    if !is_viable {
        return Err(Refusal::new(
            field,
            "another device of its group is in use by a driver of the host",
            "bind all devices of the group to vfio-pci",
        )
        .into());
    }
    container.add_group(group).map_err(|error| {
        Refusal::new(
            field,
            format!("its group cannot join the machine's container: {error}"),
            "end whatever else uses a device of the group",
        )
        .into()
    })
}

fn start_translation(container: &Type1) -> Result<(), Refusal> {
    container.start().map_err(|error| {
        Refusal::new(
            "vfio",
            format!("the IOMMU cannot be used: {error}"),
            "switch interrupt remapping on in the host's firmware: without it devices could forge \
             interrupts",
        )
    })
}

fn open_devices(
    iommu: OwnedFd,
    devices: Vec<OwnedFd>,
    frame: &Frame<'_>,
    registry: &KvmVfioRegistry,
) -> Result<Opened, BuildMachineError> {
    let iommu = Iommufd::new(iommu).map_err(|error| {
        Refusal::new(
            "vfio.iommu.iommu",
            format!("it makes no address space: {error}"),
            "open /dev/iommu, or use a container and groups",
        )
    })?;
    let opened = devices
        .into_iter()
        .enumerate()
        .map(|(position, device)| {
            registry
                .add(device.as_fd())
                .map_err(host("tell KVM of a device"))?;
            let opened = iommu.open_device(device);
            Ok(opened.map_err(|error| not_opened(position, &error))?)
        })
        .collect::<Result<_, BuildMachineError>>()?;
    // Which addresses there are is known when all devices are attached; until bus mastering is
    // allowed, none of them looks at any.
    prepare_memory(&iommu, frame)?;
    Ok((Arc::new(iommu), opened))
}

/// Maps all of the guest's memory, if devices can address it.
fn prepare_memory(iommu: &dyn Iommu, frame: &Frame<'_>) -> Result<(), BuildMachineError> {
    let ranges = read_ranges(iommu)?;
    let ram: Vec<_> = frame
        .ram
        .ranges()
        .iter()
        .map(|part| part.start..part.end)
        .collect();
    check_reach(&ram, ranges.as_deref())?;
    map_all_memory(iommu, frame.vm.memory())?;
    Ok(())
}

fn read_ranges(iommu: &dyn Iommu) -> Result<Option<Vec<Range<u64>>>, BuildMachineError> {
    iommu
        .ranges()
        .map_err(host("ask the IOMMU for its addresses"))
}

fn group_field(devices: &[VfioDeviceSpec], group: usize) -> String {
    let first = devices.iter().position(|device| device.descriptor == group);
    field(first.unwrap_or(0), "fd")
}

fn not_opened(position: usize, error: &io::Error) -> Refusal {
    Refusal::new(
        field(position, "address"),
        format!("the device cannot be opened: {error}"),
        "bind it to vfio-pci, give its own group's descriptor, and end whatever else uses it",
    )
}

fn not_described(position: usize, error: &io::Error) -> Refusal {
    Refusal::new(
        format!("vfio.devices[{position}]"),
        format!("the kernel does not say what the device is made of: {error}"),
        "look at the host's kernel log for the device, reset it and try again",
    )
}

impl OpenDevices {
    /// Makes functions of the devices and gives their BARs addresses. They may become bus masters.
    ///
    /// # Errors
    /// A refusal if a device cannot be given to a guest, or its BARs fit nowhere.
    pub fn into_functions(
        self,
        msi: &Arc<dyn MsiSender>,
        errors: &Arc<GuestErrors>,
    ) -> Result<Passthrough, BuildMachineError> {
        let mut functions = Vec::new();
        let mut pending_events = Vec::new();
        let mut counters = Vec::new();
        let ram = self.ram;
        for (position, (address, device)) in self.devices.into_iter().enumerate() {
            let events = host_events(&device).map_err(host("watch a device for errors"))?;
            let function = VfioPci::probe(Box::new(device), msi, errors).map_err(|refused| {
                Refusal::new(
                    format!("vfio.devices[{position}]"),
                    chain(&refused),
                    refused.remedy(),
                )
            })?;
            let function = Arc::new(function);
            counters.push((format!("vfio{position}"), function.counters()));
            pending_events.extend(events.into_iter().map(|(kind, event)| HostEvent {
                kind,
                address: address.clone(),
                event,
                function: Arc::clone(&function),
                has_told_error: AtomicBool::new(false),
            }));
            functions.push(function);
        }
        let wanted: Vec<_> = functions
            .iter()
            .enumerate()
            .flat_map(|(position, function)| function.wanted_bars(position))
            .collect();
        let plan = plan_bars(&wanted, ram, self.address_bits, self.reach.as_deref())?;
        let ranges = window::place(&functions, &plan, errors);
        for function in &functions {
            function.allow_dma();
        }
        Ok(Passthrough {
            functions,
            ranges,
            window: plan.high,
            events: HostEvents::new(pending_events),
            counters,
        })
    }
}

fn host_events(device: &HostDevice) -> io::Result<Vec<(HostEventKind, berth_vmm_sys::Event)>> {
    let kinds = [
        (HostEventKind::Error, INTERRUPT_ERROR),
        (HostEventKind::Request, INTERRUPT_REQUEST),
    ];
    let mut events = Vec::new();
    for (kind, index) in kinds {
        events.extend(device.event(index)?.map(|event| (kind, event)));
    }
    Ok(events)
}

/// Finds addresses, where the IOMMU can translate them if devices are to reach each other. If they
/// do not fit there, the guest has its devices all the same: that they cannot reach each other is
/// told when they are mapped.
fn plan_bars(
    wanted: &[WantedBar],
    ram: RamLayout,
    address_bits: u32,
    reach: Option<&[Range<u64>]>,
) -> Result<BarPlan, Refusal> {
    let start = layout::HIGH_RAM_START.saturating_add(ram.high_bytes);
    let within = |reach| {
        let allowed = AllowedRanges {
            low: layout::PASSTHROUGH_WINDOW.start..layout::PASSTHROUGH_WINDOW.end,
            high: ranges_above(start, address_bits, reach),
        };
        place_bars(wanted, &allowed)
    };
    let plan = match within(reach) {
        Err(PlaceBarsError::HighFull { .. }) if reach.is_some() => within(None),
        result => result,
    };
    plan.map_err(|error| {
        Refusal::new(
            format!("vfio.devices[{}]", error.function()),
            error.to_string(),
            error.remedy(),
        )
    })
}

/// An error and its sources, joined.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use berth_vmm_devices::pci::bar::BarKind;

    use super::*;

    const GIB: u64 = 1 << 30;

    fn wanted(bytes: u64, kind: BarKind) -> WantedBar {
        WantedBar {
            function: 0,
            bar: 0,
            bytes,
            kind,
        }
    }

    #[test]
    fn bars_lie_beyond_memory_and_inside_the_processors_reach() {
        let bars = [
            wanted(64 * GIB, BarKind::Memory64),
            wanted(256 << 20, BarKind::Memory32),
        ];
        let plan = plan_bars(&bars, RamLayout::new(8 * GIB), 40, None).unwrap();
        assert_eq!(plan.high, 64 * GIB..128 * GIB);
        assert!(plan.low.start >= layout::PASSTHROUGH_WINDOW.start);
        assert!(plan.low.end <= layout::PASSTHROUGH_WINDOW.end);
    }

    #[test]
    fn bars_that_devices_reach_lie_inside_the_iommus_reach() {
        let bars = [wanted(16 * GIB, BarKind::Memory64)];
        let reach = [0..8 * GIB, 32 * GIB..512 * GIB];
        let plan = plan_bars(&bars, RamLayout::new(2 * GIB), 40, Some(&reach)).unwrap();
        assert_eq!(plan.high, 32 * GIB..48 * GIB);
    }

    #[test]
    fn a_bar_beyond_the_iommus_reach_is_placed_where_the_guest_sees_it() {
        let bars = [wanted(512 * GIB, BarKind::Memory64)];
        let reach = [0..3 * GIB, 4 * GIB..512 * GIB];
        let plan = plan_bars(&bars, RamLayout::new(2 * GIB), 40, Some(&reach)).unwrap();
        assert_eq!(plan.high, 512 * GIB..1024 * GIB);
    }

    #[test]
    fn a_bar_beyond_the_processors_reach_is_refused_for_its_device() {
        let bars = [wanted(1024 * GIB, BarKind::Memory64)];
        let refusal = plan_bars(&bars, RamLayout::new(2 * GIB), 40, None).unwrap_err();
        assert_eq!(refusal.field, "vfio.devices[0]");
    }
}
