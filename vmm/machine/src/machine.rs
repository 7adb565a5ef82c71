//! One machine from its spec to its end.
//!
//! Owns the order of building and the threads. The process above it decodes requests and decides
//! when to stop; the machine only knows that it ended.

use std::io;
use std::ops::ControlFlow;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::Duration;

use berth_api::vmm::{DeviceStatistics, Event, Warning};
use berth_vmm_devices::counters::Counters;
use berth_vmm_devices::guest_error::GuestErrors;
use berth_vmm_devices::power_button::PowerButton;
use berth_vmm_sys::{Vcpu, Vm, install_kick_handler, kvm_from_descriptor};
use kvm_bindings::{KVM_CAP_SPLIT_IRQCHIP, kvm_enable_cap};
use kvm_ioctls::Kvm;
use vm_memory::{Bytes, GuestAddress};

use crate::acpi::{self, AcpiInput};
use crate::balloon::BalloonControl;
use crate::boot::{self, BootInput, EntryState};
use crate::console::DroppedBytes;
use crate::device_set::{self, DeviceInput, DeviceSet, Medium};
use crate::disk_failures::{DiskFailure, DiskFailures};
use crate::ending::{Ended, Ending};
use crate::host_facts::HostFacts;
use crate::irq_routes::IrqRoutes;
use crate::layout::{self, RamLayout};
use crate::memory::{self, Prefaulted};
use crate::queue_executor::IoLoop;
use crate::refusal::{BuildMachineError, Refusal, host};
use crate::spec::MachineSpec;
use crate::vcpu::{self, BeforeGuest, VcpuShared};
use crate::vfio::{self, HostEvents};
use crate::warnings::Warnings;

/// Stack of a vCPU thread: exits are served without recursion and without large buffers.
const VCPU_STACK_BYTES: usize = 128 * 1024;
/// The token of the descriptor that says that the machine ended.
const TOKEN_ENDED: u32 = u32::MAX;
/// The token of the descriptor that says that a disk failed.
const TOKEN_DISK_FAILED: u32 = u32::MAX - 1;
/// The token of the descriptor that says that there is a warning.
const TOKEN_WARNING: u32 = u32::MAX - 2;
/// How long vCPUs may take to leave the guest: an exit is served in far less.
const PAUSE_PATIENCE: Duration = Duration::from_secs(1);

/// A machine that is built and does not run yet.
#[derive(Debug)]
pub struct Machine {
    vcpus: Vec<Vcpu>,
    shared: VcpuShared,
    io: IoLoop,
    power_button: Arc<PowerButton>,
    guest_errors: Arc<GuestErrors>,
    console_dropped: DroppedBytes,
    disk_failures: Arc<DiskFailures>,
    warnings: Arc<Warnings>,
    counters: Vec<(String, Arc<Counters>)>,
    host_events: HostEvents,
    balloon: Option<BalloonControl>,
    media: Vec<Medium>,
}

/// A machine whose vCPUs run.
#[derive(Debug)]
pub struct RunningMachine {
    shared: Arc<VcpuShared>,
    io: IoLoop,
    power_button: Arc<PowerButton>,
    guest_errors: Arc<GuestErrors>,
    console_dropped: DroppedBytes,
    disk_failures: Arc<DiskFailures>,
    warnings: Arc<Warnings>,
    counters: Vec<(String, Arc<Counters>)>,
    host_events: HostEvents,
    balloon: Option<BalloonControl>,
    media: Vec<Medium>,
}

/// What [`RunningMachine::wait`] waits for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum MachineEvent {
    /// A watched descriptor is readable.
    Readable(u32),
    /// A disk failed on the host; the guest was told, too.
    DiskFailed(DiskFailure),
    /// The machine goes on, but not as usual.
    Warning(Warning),
    /// The machine ended; its vCPUs never enter the guest again.
    Ended(Ended),
}

impl Machine {
    /// Builds the machine: memory, kernel, devices, vCPUs. `report` hears how far the memory is, if
    /// it is to be present first, and can end it all.
    ///
    /// # Errors
    /// [`BuildMachineError::Refused`] if the spec's kernel or sizes cannot be used on this host.
    pub fn build(
        spec: MachineSpec,
        report: &mut dyn FnMut(Prefaulted) -> ControlFlow<()>,
    ) -> Result<Self, BuildMachineError> {
        let kvm = kvm_from_descriptor(spec.kvm);
        check_host(&kvm, spec.vcpus)?;
        let ram = RamLayout::new(spec.memory_bytes);
        let memory = memory::map(ram, &spec.memory_backing)?;
        if spec.memory_backing.prefault {
            memory::prefault(&memory, &spec.memory_backing, report)?;
        }
        let vm = Vm::create(&kvm, memory)?;
        prepare_interrupts(&vm)?;
        let entry = fill_memory(
            &vm,
            &spec_input(&spec.kernel, &spec.initrd, &spec.cmdline, ram),
        )?;
        let ending = Arc::new(Ending::new().map_err(host("make an event"))?);
        let mut io = IoLoop::new().map_err(host("make the event loop"))?;
        io.watch(ending.descriptor().as_fd(), TOKEN_ENDED)
            .map_err(host("watch an event"))?;
        let disk_failures = Arc::new(DiskFailures::new().map_err(host("make an event"))?);
        io.watch(disk_failures.descriptor().as_fd(), TOKEN_DISK_FAILED)
            .map_err(host("watch an event"))?;
        let warnings = Arc::new(Warnings::new().map_err(host("make an event"))?);
        io.watch(warnings.descriptor().as_fd(), TOKEN_WARNING)
            .map_err(host("watch an event"))?;
        let mut acpi = AcpiInput {
            vcpus: spec.vcpus,
            serial: spec.console.is_some(),
            panic_device: spec.panic_device,
            ..AcpiInput::default()
        };
        let host_devices = match spec.vfio {
            Some(vfio) => Some(vfio::open(
                vfio,
                &vfio::Frame {
                    vm: &vm,
                    ram,
                    routes: &IrqRoutes::new(Arc::clone(&vm)),
                    warnings: &warnings,
                    address_bits: vcpu::address_bits(&kvm)?,
                },
            )?),
            None => None,
        };
        let input = DeviceInput {
            disks: spec.disks,
            disk_failures: Arc::clone(&disk_failures),
            warnings: Arc::clone(&warnings),
            panic_device: spec.panic_device,
            balloon: spec.balloon,
            console: spec.console,
            networks: spec.networks,
            entropy: spec.entropy,
            host_devices,
            vsock: spec.vsock,
            virtio_console: spec.virtio_console,
        };
        let devices = device_set::build(&vm, &mut io, &ending, input)?;
        let facts = spec.host_facts.as_ref().and_then(HostFacts::from_file);
        let vcpus = vcpu::create(&kvm, &vm, spec.vcpus, entry, facts)?;
        let DeviceSet {
            ports,
            mmio,
            power_button,
            guest_errors,
            console_dropped,
            counters,
            host_events,
            high_window,
            balloon,
            media,
        } = devices;
        acpi.high_window = high_window;
        write_acpi(&vm, &acpi)?;
        let shared = VcpuShared {
            ports,
            mmio,
            exits: vcpu::ExitCounters::default(),
            ending,
            gate: vcpu::Gate::new(usize::from(spec.vcpus)),
        };
        Ok(Self {
            vcpus,
            shared,
            io,
            power_button,
            guest_errors,
            console_dropped,
            disk_failures,
            warnings,
            counters,
            host_events,
            balloon: balloon.map(|size| BalloonControl::new(size, spec.memory_bytes)),
            media,
        })
    }

    /// Starts the vCPUs' threads. They wait: no guest instruction runs before
    /// [`RunningMachine::resume`]. Each calls `before_guest` once it may go on and before it enters
    /// the guest; if that fails, it never does.
    ///
    /// # Errors
    /// If a thread cannot be started.
    pub fn start(self, before_guest: BeforeGuest) -> Result<RunningMachine, BuildMachineError> {
        install_kick_handler().map_err(host("set a signal handler"))?;
        let shared = Arc::new(self.shared);
        // The first vCPU starts the others: begin with it.
        for (index, vcpu) in (0u8..).zip(self.vcpus) {
            let shared = Arc::clone(&shared);
            std::thread::Builder::new()
                .name(format!("vcpu{index}"))
                .stack_size(VCPU_STACK_BYTES)
                .spawn(move || vcpu::run(vcpu, index, &shared, before_guest))
                .map_err(host("start a vCPU's thread"))?;
        }
        shared.gate.wait_for_all();
        Ok(RunningMachine {
            shared,
            io: self.io,
            power_button: self.power_button,
            guest_errors: self.guest_errors,
            console_dropped: self.console_dropped,
            disk_failures: self.disk_failures,
            warnings: self.warnings,
            counters: self.counters,
            host_events: self.host_events,
            balloon: self.balloon,
            media: self.media,
        })
    }
}

impl RunningMachine {
    /// Watches a descriptor of the process; `token` comes back from [`RunningMachine::wait`].
    ///
    /// # Errors
    /// If it cannot be watched.
    pub fn watch(&mut self, descriptor: BorrowedFd<'_>, token: u32) -> io::Result<()> {
        self.io.watch(descriptor, token)
    }

    /// Stops watching a descriptor.
    ///
    /// # Errors
    /// If it is not watched.
    pub fn forget(&mut self, descriptor: BorrowedFd<'_>) -> io::Result<()> {
        self.io.forget(descriptor)
    }

    /// Serves the devices' queues until something else happens.
    ///
    /// # Errors
    /// If the kernel cannot wait.
    pub fn wait(&mut self) -> io::Result<MachineEvent> {
        loop {
            let token = self.io.wait()?;
            if let Some(ended) = self.shared.ending.get() {
                return Ok(MachineEvent::Ended(ended.clone()));
            }
            let event = match token {
                TOKEN_DISK_FAILED => self.disk_failures.take().map(MachineEvent::DiskFailed),
                TOKEN_WARNING => self.warnings.take().map(MachineEvent::Warning),
                token if self.host_events.is_one(token) => {
                    self.host_events.take(token).map(MachineEvent::Warning)
                }
                token => Some(MachineEvent::Readable(token)),
            };
            if let Some(event) = event {
                return Ok(event);
            }
        }
    }

    /// Lets the vCPUs run the guest.
    pub fn resume(&self) {
        self.shared.gate.open();
    }

    /// Takes the vCPUs out of the guest and lets none enter it again before
    /// [`RunningMachine::resume`]. Devices go on with what they were given.
    ///
    /// # Errors
    /// [`io::ErrorKind::TimedOut`] if a vCPU does not come out; the guest runs on then.
    pub fn pause(&self) -> io::Result<()> {
        self.shared.gate.close(PAUSE_PATIENCE)
    }

    /// Whether the machine has ended.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.shared.ending.is_set()
    }

    /// Presses the ACPI power button. A paused guest sees it when it goes on.
    pub fn press_power_button(&self) {
        self.power_button.press();
    }

    /// The balloon's largest target in MiB, if there is a balloon.
    #[must_use]
    pub fn most_balloon_mib(&self) -> Option<u64> {
        self.balloon.as_ref().map(BalloonControl::most_mib)
    }

    /// Asks the guest to let its balloon hold that much, at most the largest target. Without a
    /// balloon nothing happens.
    pub fn set_balloon(&self, target_mib: u64) {
        if let Some(balloon) = &self.balloon {
            balloon.set_target(target_mib);
        }
    }

    /// Takes the medium out of each read-only disk with this serial number, for good. False if there is
    /// no such disk.
    #[must_use]
    pub fn eject_disk(&self, serial: &str) -> bool {
        let mut is_there = false;
        for medium in self.media.iter().filter(|medium| medium.serial == serial) {
            medium.disk.eject();
            is_there = true;
        }
        is_there
    }

    /// Ends the machine without asking the guest; [`RunningMachine::wait`] reports it.
    pub fn stop(&self) {
        self.shared.ending.set(Ended::Stopped);
    }

    /// Counters since the start.
    #[must_use]
    pub fn statistics(&self) -> Event {
        Event::Statistics {
            exits: self.shared.exits.by_name(),
            guest_errors: self.guest_errors.total(),
            console_dropped_bytes: self.console_dropped.count(),
            devices: self.device_statistics(),
        }
    }
}

impl RunningMachine {
    fn device_statistics(&self) -> Vec<DeviceStatistics> {
        let mut devices: Vec<_> = self
            .counters
            .iter()
            .map(|(device, counters)| DeviceStatistics {
                device: device.clone(),
                counters: counters
                    .iter()
                    .map(|(name, value)| (name.to_owned(), value))
                    .collect(),
            })
            .collect();
        if let Some(balloon) = &self.balloon {
            balloon.add_to(&mut devices);
        }
        devices
    }
}

fn check_host(kvm: &Kvm, vcpus: u8) -> Result<(), BuildMachineError> {
    let version = kvm.get_api_version();
    if version != i32::try_from(kvm_bindings::KVM_API_VERSION).unwrap_or(-1) {
        return Err(Refusal::new(
            "kvm",
            format!("the kernel speaks version {version} of the KVM interface"),
            "use a host whose kernel is Linux 2.6.22 or newer",
        )
        .into());
    }
    let most = kvm.get_max_vcpus();
    if usize::from(vcpus) > most {
        return Err(Refusal::new(
            "vcpus",
            format!("this host's KVM allows {most}"),
            "ask for fewer vCPUs",
        )
        .into());
    }
    Ok(())
}

/// Local APICs in KVM, the I/O APIC here.
fn prepare_interrupts(vm: &Vm) -> Result<(), BuildMachineError> {
    let pins = u64::from(berth_vmm_devices::ioapic::IOAPIC_PINS);
    let split = kvm_enable_cap {
        cap: KVM_CAP_SPLIT_IRQCHIP,
        args: [pins, 0, 0, 0],
        ..Default::default()
    };
    vm.enable_capability(&split)
        .map_err(host("split the interrupt controllers"))?;
    let tss = usize::try_from(layout::TSS.start).expect("the TSS is below 4 GiB");
    vm.set_tss_address(tss).map_err(host("set the TSS address"))
}

fn spec_input<'a>(
    kernel: &'a std::fs::File,
    initrd: &'a Option<std::fs::File>,
    cmdline: &'a str,
    ram: RamLayout,
) -> BootInput<'a> {
    BootInput {
        kernel,
        initrd: initrd.as_ref(),
        cmdline,
        ram,
    }
}

fn fill_memory(vm: &Vm, input: &BootInput<'_>) -> Result<EntryState, BuildMachineError> {
    boot::load(vm.memory(), input)
}

fn write_acpi(vm: &Vm, input: &AcpiInput) -> Result<(), BuildMachineError> {
    let tables = acpi::tables(input);
    let address = layout::ACPI.start;
    vm.memory()
        .write_slice(&tables, GuestAddress(address))
        .map_err(|cause| BuildMachineError::WriteGuest {
            what: "the ACPI tables",
            address,
            cause,
        })
}
