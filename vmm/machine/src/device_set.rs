//! The devices of one machine, made from its spec and wired to KVM.
//!
//! Owns which device sits where: PCI slots, ports, pins and the two buses. It emulates nothing.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::sync::Arc;

use berth_vmm_devices::bus::{Bus, BusDevice, BusRange};
use berth_vmm_devices::counters::Counters;
use berth_vmm_devices::guest_error::{GuestError, GuestErrors};
use berth_vmm_devices::interrupt::{IrqLine, MsiMessage, MsiSender};
use berth_vmm_devices::ioapic::{IOAPIC_BYTES, IoApic};
use berth_vmm_devices::memory::Memory;
use berth_vmm_devices::panic_device::{PANIC_BYTES, PanicDevice, PanicKind};
use berth_vmm_devices::pci::root::{BarWindows, ECAM_BYTES, PciRoot};
use berth_vmm_devices::pci::{DeviceSlot, PciFunction};
use berth_vmm_devices::power::{OnPowerRequest, PowerPort, PowerRegister, PowerRequest};
use berth_vmm_devices::power_button::{PowerButton, STATUS_BYTES};
use berth_vmm_devices::serial::{SERIAL_BYTES, Serial};
use berth_vmm_devices::virtio::balloon::{Balloon, BalloonSize};
use berth_vmm_devices::virtio::console::VirtioConsole;
use berth_vmm_devices::virtio::console::backend::ConsoleInput;
use berth_vmm_devices::virtio::device::VirtioDevice;
use berth_vmm_devices::virtio::entropy::Entropy;
use berth_vmm_devices::virtio::transport::{VirtioPci, VirtioPciParts};
use berth_vmm_devices::virtio::vsock::Vsock;
use berth_vmm_sys::{Event, Vm};

use crate::balloon;
use crate::console::{self, DroppedBytes};
use crate::console_input::StreamInput;
use crate::disk_failures::DiskFailures;
use crate::disk_file;
use crate::ending::{Ended, Ending, Reset};
use crate::layout;
use crate::network;
use crate::queue_executor::IoLoop;
use crate::refusal::{BuildMachineError, Refusal, host};
use crate::spec::{ConsoleSpec, DiskSpec, NetworkSpec, VirtioConsoleSpec, VsockSpec};
use crate::vfio::{HostEvents, OpenDevices, Passthrough};
use crate::vsock_sockets::VsockSockets;
use crate::warnings::Warnings;

/// What the devices of a machine are made of.
#[derive(Debug)]
pub struct DeviceInput {
    /// The disks in PCI order.
    pub disks: Vec<DiskSpec>,
    /// Where failures of the host's disks go.
    pub disk_failures: Arc<DiskFailures>,
    /// Where warnings go.
    pub warnings: Arc<Warnings>,
    /// Whether there is a pvpanic device.
    pub panic_device: bool,
    /// The balloon.
    pub balloon: Option<berth_api::vmm::Balloon>,
    /// The serial port's output.
    pub console: Option<ConsoleSpec>,
    /// The network interfaces in PCI order.
    pub networks: Vec<NetworkSpec>,
    /// Whether there is an entropy device.
    pub entropy: bool,
    /// Host devices, after all others.
    pub host_devices: Option<OpenDevices>,
    /// The socket device.
    pub vsock: Option<VsockSpec>,
    /// The virtio console.
    pub virtio_console: Option<VirtioConsoleSpec>,
}

/// The devices, reachable through the buses.
#[derive(Debug)]
pub struct DeviceSet {
    /// Port I/O.
    pub ports: Bus,
    /// Memory-mapped I/O.
    pub mmio: Bus,
    /// The power button, for whoever may press it.
    pub power_button: Arc<PowerButton>,
    /// Counts of what the guest did wrong.
    pub guest_errors: Arc<GuestErrors>,
    /// Console bytes that nobody kept.
    pub console_dropped: DroppedBytes,
    /// Counters of devices by name.
    pub counters: Vec<(String, Arc<Counters>)>,
    /// What the host says about its devices.
    pub host_events: HostEvents,
    /// Where 64-bit BARs are beyond the guest's memory; empty without any.
    pub high_window: Range<u64>,
    /// The balloon's size.
    pub balloon: Option<Arc<BalloonSize>>,
    /// The disks whose medium can be taken out.
    pub media: Vec<Medium>,
}

/// A disk whose medium can be taken out: one that the guest can only read, so that nothing is lost.
#[derive(Debug)]
pub struct Medium {
    /// Its serial number.
    pub serial: String,
    /// The disk.
    pub disk: Arc<VirtioPci>,
}

/// Interrupts of emulated devices: a message to KVM, no routing table.
struct KvmMsi {
    vm: Arc<Vm>,
    errors: Arc<GuestErrors>,
}

impl MsiSender for KvmMsi {
    fn send(&self, message: MsiMessage) {
        // A message that KVM refuses is malformed or finds no processor to take it. The guest
        // wrote it: it loses its own interrupt.
        if self.vm.signal_msi(message.address, message.data).is_err() {
            self.errors.bump(GuestError::MsiMessage);
        }
    }
}

/// A device and its name in statistics.
type NamedDevice = (String, Box<dyn VirtioDevice>);

/// A function and where it is on the bus.
type PlacedFunction = (DeviceSlot, Arc<dyn PciFunction>);

/// By the devices' names: for each queue the event that the guest's notifications signal, where that
/// is not the I/O loop's business.
type Kicks = BTreeMap<String, Vec<Arc<Event>>>;

/// The disks, the network interfaces, the entropy device, the socket device, then the console.
fn virtio_devices(
    input: DeviceInput,
    console_dropped: &DroppedBytes,
    memory: &Memory,
    kicks: &mut Kicks,
) -> Result<Vec<NamedDevice>, BuildMachineError> {
    let mut devices: Vec<NamedDevice> = Vec::new();
    for (position, disk) in input.disks.into_iter().enumerate() {
        let disk = disk_file::device(
            disk,
            position,
            &input.disk_failures,
            &input.warnings,
            memory,
        )
        .map_err(host("prepare a disk"))?;
        devices.push((disk_name(position), Box::new(disk)));
    }
    for (position, network) in input.networks.into_iter().enumerate() {
        let name = format!("network{position}");
        let parts = network::build(position, network, memory)?;
        kicks.insert(name.clone(), parts.kicks);
        devices.push((name, Box::new(parts.device)));
    }
    if input.entropy {
        devices.push(("entropy".to_owned(), Box::new(Entropy::new())));
    }
    if let Some(vsock) = input.vsock {
        let cid = vsock.cid;
        let sockets = VsockSockets::new(vsock).map_err(host("prepare the vsock sockets"))?;
        let device = Vsock::new(cid, Box::new(sockets));
        devices.push(("vsock".to_owned(), Box::new(device)));
    }
    if let Some(console) = input.virtio_console {
        let device = virtio_console(console, console_dropped.clone());
        let device = device.map_err(host("open the virtio console"))?;
        devices.push(("virtio_console".to_owned(), Box::new(device)));
    }
    Ok(devices)
}

fn virtio_console(spec: VirtioConsoleSpec, dropped: DroppedBytes) -> io::Result<VirtioConsole> {
    let input = match spec.input {
        Some(descriptor) => Some(Box::new(StreamInput::new(descriptor)?) as Box<dyn ConsoleInput>),
        None => None,
    };
    Ok(VirtioConsole::new(
        console::open(spec.output, dropped)?,
        input,
    ))
}

/// Everything that builds devices, so that each function names only what is its own.
struct Builder<'a> {
    vm: &'a Arc<Vm>,
    io: &'a mut IoLoop,
    memory: Arc<Memory>,
    msi: Arc<dyn MsiSender>,
    errors: Arc<GuestErrors>,
    ports: Vec<BusRange>,
    mmio: Vec<BusRange>,
    counters: Vec<(String, Arc<Counters>)>,
    host_events: HostEvents,
    high_window: Range<u64>,
    kicks: Kicks,
    /// By the disks' names: the serial numbers of those that can only be read.
    read_only: BTreeMap<String, String>,
    media: Vec<Medium>,
}

/// Builds all devices.
///
/// # Errors
/// If a file cannot be prepared or KVM refuses a notification address.
pub fn build(
    vm: &Arc<Vm>,
    io: &mut IoLoop,
    ending: &Arc<Ending>,
    mut input: DeviceInput,
) -> Result<DeviceSet, BuildMachineError> {
    let errors = Arc::new(GuestErrors::default());
    let mut builder = Builder {
        vm,
        io,
        memory: Arc::new(vm.memory().clone()),
        msi: Arc::new(KvmMsi {
            vm: Arc::clone(vm),
            errors: Arc::clone(&errors),
        }),
        errors: Arc::clone(&errors),
        ports: Vec::new(),
        mmio: Vec::new(),
        counters: Vec::new(),
        host_events: HostEvents::default(),
        high_window: 0..0,
        kicks: Kicks::new(),
        read_only: read_only_disks(&input.disks),
        media: Vec::new(),
    };
    let ioapic = builder.ioapic();
    let power_button = builder.power(&ioapic, ending);
    let console_dropped = DroppedBytes::default();
    if let Some(console) = input.console.take() {
        let output =
            console::open(console, console_dropped.clone()).map_err(host("open the console"))?;
        let line: Arc<dyn IrqLine> = Arc::new(ioapic.line(layout::COM1_PIN));
        builder.port(
            layout::COM1_PORT,
            SERIAL_BYTES,
            Arc::new(Serial::new(line, output)),
        );
    }
    if input.panic_device {
        builder.panic_device(&input.warnings);
    }
    let balloon = input.balloon.map(balloon::device);
    let balloon_size = balloon.as_ref().map(Balloon::size);
    let host_devices = input.host_devices.take();
    let memory = Arc::clone(&builder.memory);
    let mut devices = virtio_devices(input, &console_dropped, &memory, &mut builder.kicks)?;
    if let Some(balloon) = balloon {
        devices.push((balloon::NAME.to_owned(), Box::new(balloon)));
    }
    builder.pci(devices, host_devices)?;
    Ok(DeviceSet {
        ports: Bus::new(builder.ports, Arc::clone(&errors))?,
        mmio: Bus::new(builder.mmio, Arc::clone(&errors))?,
        power_button,
        guest_errors: errors,
        console_dropped,
        counters: builder.counters,
        host_events: builder.host_events,
        high_window: builder.high_window,
        balloon: balloon_size,
        media: builder.media,
    })
}

fn read_only_disks(disks: &[DiskSpec]) -> BTreeMap<String, String> {
    let named = disks.iter().enumerate();
    named
        .filter(|(_, disk)| disk.read_only)
        .map(|(position, disk)| (disk_name(position), disk.serial.clone()))
        .collect()
}

fn disk_name(position: usize) -> String {
    format!("disk{position}")
}

impl Builder<'_> {
    fn port(&mut self, port: u16, bytes: u64, device: Arc<dyn BusDevice>) {
        self.ports.push(BusRange {
            base: u64::from(port),
            bytes,
            device,
        });
    }

    fn ioapic(&mut self) -> Arc<IoApic> {
        let ioapic = Arc::new(IoApic::new(Arc::clone(&self.msi)));
        let base = layout::IOAPIC.start;
        self.mmio.push(BusRange {
            base,
            bytes: IOAPIC_BYTES,
            device: ioapic.clone(),
        });
        ioapic
    }

    fn power(&mut self, ioapic: &Arc<IoApic>, ending: &Arc<Ending>) -> Arc<PowerButton> {
        let ending = Arc::clone(ending);
        let on_request: OnPowerRequest = Arc::new(move |request| {
            ending.set(match request {
                PowerRequest::PowerOff => Ended::PowerOff,
                PowerRequest::Reset => Ended::Reset(Reset::Register),
                PowerRequest::KeyboardReset => Ended::Reset(Reset::Keyboard),
            });
        });
        let registers = [
            (layout::SLEEP_CONTROL_PORT, PowerRegister::SleepControl),
            (layout::SLEEP_STATUS_PORT, PowerRegister::SleepStatus),
            (layout::RESET_PORT, PowerRegister::Reset),
            (
                layout::KEYBOARD_COMMAND_PORT,
                PowerRegister::KeyboardCommand,
            ),
        ];
        for (port, register) in registers {
            let device =
                PowerPort::new(register, Arc::clone(&on_request), Arc::clone(&self.errors));
            self.port(port, PowerRegister::BYTES, Arc::new(device));
        }
        let line: Arc<dyn IrqLine> = Arc::new(ioapic.line(layout::EVENT_PIN));
        let button = Arc::new(PowerButton::new(line));
        self.port(layout::EVENT_STATUS_PORT, STATUS_BYTES, button.clone());
        button
    }

    fn panic_device(&mut self, warnings: &Arc<Warnings>) {
        let warnings = Arc::clone(warnings);
        let device = PanicDevice::new(Box::new(move |kind| {
            warnings.tell(berth_api::vmm::Warning::GuestPanicked {
                crash_kernel: kind == PanicKind::CrashLoaded,
            });
        }));
        self.counters.push(("panic".to_owned(), device.counters()));
        self.port(layout::PANIC_PORT, PANIC_BYTES, Arc::new(device));
    }

    /// The PCI bus: the devices in order from slot 1 on, host devices last.
    fn pci(
        &mut self,
        devices: Vec<NamedDevice>,
        host_devices: Option<OpenDevices>,
    ) -> Result<(), BuildMachineError> {
        let mut functions = Vec::new();
        let mut kicks_by_slot = BTreeMap::new();
        for (slot, (name, device)) in (1..).filter_map(DeviceSlot::new).zip(devices) {
            kicks_by_slot.insert(slot, self.kicks.remove(&name).unwrap_or_default());
            let serial = self.read_only.remove(&name);
            self.counters
                .extend(device.counters().map(|counters| (name, counters)));
            self.sources(slot, device.as_ref())
                .map_err(host("watch a device's descriptor"))?;
            let disk = Arc::new(self.virtio(slot, device));
            functions.push((slot, Arc::clone(&disk)));
            self.media
                .extend(serial.map(|serial| Medium { serial, disk }));
        }
        let mut on_bus: Vec<_> = functions
            .iter()
            .map(|(slot, function)| (*slot, Arc::clone(function) as Arc<dyn PciFunction>))
            .collect();
        if let Some(devices) = host_devices {
            on_bus.extend(self.passed_through(devices, functions.len())?);
        }
        let window = layout::EMULATED_WINDOW.start..layout::EMULATED_WINDOW.end;
        // Emulated functions are small: both kinds of BAR share the window below 4 GiB.
        let half = window.start + (window.end - window.start) / 2;
        let windows = BarWindows {
            low: window.start..half,
            high: half..window.end,
        };
        let root = PciRoot::new(on_bus, &windows, Arc::clone(&self.errors))?;
        self.mmio.extend(root.bar_ranges().iter().cloned());
        let base = layout::ECAM.start;
        self.mmio.push(BusRange {
            base,
            bytes: ECAM_BYTES,
            device: Arc::new(root),
        });
        for (slot, function) in &functions {
            let kicks = kicks_by_slot.remove(slot).unwrap_or_default();
            self.notifications(*slot, function, &kicks)
                .map_err(host("register a notification"))?;
        }
        Ok(())
    }

    /// Host devices, in the slots after `taken` others.
    fn passed_through(
        &mut self,
        devices: OpenDevices,
        taken: usize,
    ) -> Result<Vec<PlacedFunction>, BuildMachineError> {
        let Passthrough {
            functions,
            ranges,
            window,
            events,
            counters,
        } = devices.into_functions(&self.msi, &self.errors)?;
        events
            .watch(self.io)
            .map_err(host("watch a host device's event"))?;
        self.mmio.extend(ranges);
        self.counters.extend(counters);
        self.host_events = events;
        self.high_window = window;
        let slots = (1..).filter_map(DeviceSlot::new).skip(taken);
        let on_bus: Vec<_> = slots
            .zip(&functions)
            .map(|(slot, function)| (slot, Arc::clone(function) as Arc<dyn PciFunction>))
            .collect();
        if on_bus.len() < functions.len() {
            return Err(Refusal::new(
                format!("vfio.devices[{}]", on_bus.len()),
                "no PCI slot is left for it",
                "give the machine fewer devices",
            )
            .into());
        }
        Ok(on_bus)
    }

    fn virtio(&self, slot: DeviceSlot, device: Box<dyn VirtioDevice>) -> VirtioPci {
        VirtioPci::new(VirtioPciParts {
            device,
            slot,
            memory: Arc::clone(&self.memory),
            msi: Arc::clone(&self.msi),
            executor: self.io.executor(),
            errors: Arc::clone(&self.errors),
        })
    }

    /// Lets the host's side of a device wake the I/O loop.
    fn sources(&mut self, slot: DeviceSlot, device: &dyn VirtioDevice) -> io::Result<()> {
        for (source, descriptor) in (0..).zip(device.sources()) {
            self.io.watch_source(slot, source, descriptor)?;
        }
        Ok(())
    }

    /// Lets KVM wake the I/O loop, or signal `kicks` of the first queues, without an exit to the
    /// vCPU's thread.
    fn notifications(
        &mut self,
        slot: DeviceSlot,
        function: &VirtioPci,
        kicks: &[Arc<Event>],
    ) -> io::Result<()> {
        let mut kicks = kicks.iter();
        for queue in 0..function.queue_count() {
            let kick = kicks.next();
            if let Some(address) = function.notify_address(queue) {
                let event = match kick {
                    Some(kick) => kick,
                    None => self.io.queue_event(slot, queue)?,
                };
                self.vm.signal_on_mmio_write(address, event)?;
            }
        }
        Ok(())
    }
}
