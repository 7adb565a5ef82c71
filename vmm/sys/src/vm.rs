//! One KVM virtual machine together with the memory that its guest may reach.
//!
//! Owns the promise that makes KVM's memory slots sound: guest memory stays mapped at the same
//! host addresses for as long as the kernel's VM can live. The kernel's VM lives until its own
//! descriptor and those of all its vCPUs are closed, so the raw descriptors never leave this crate:
//! [`Vm`] closes its own before it lets the memory go, and every [`Vcpu`] holds its `Vm`.
//! Slots of memory are set once and never change; those of devices' memory come and go, and hold the
//! mapping behind them. What lies where is the caller's business.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use kvm_bindings::{
    CpuId, KVM_IRQ_ROUTING_MSI, KvmIrqRouting, kvm_create_device,
    kvm_device_type_KVM_DEV_TYPE_VFIO, kvm_enable_cap, kvm_irq_routing_entry, kvm_msi,
    kvm_userspace_memory_region,
};
use kvm_ioctls::{Cap, IoEventAddress, Kvm, NoDatamatch, VmFd};
use vm_memory::{GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, MemoryRegionAddress};

use crate::KvmVfioRegistry;
use crate::event::Event;
use crate::vcpu::Vcpu;
use berth_vfio::DeviceMapping;

/// Times that KVM_CREATE_VM is tried again when a signal interrupts it.
const CREATE_RETRIES: u32 = 5;

/// `_IO(KVMIO, 0xa3)`, which works on a VM since Linux 5.16.
const KVM_GET_TSC_KHZ: libc::c_ulong = 0xaea3;

/// A line of KVM's table from interrupt numbers to messages.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MsiRoute {
    /// KVM's number of the interrupt.
    pub gsi: u32,
    /// Guest physical address that the message is written to.
    pub address: u64,
    /// The value written.
    pub data: u32,
}

/// Why a machine could not be created.
#[derive(Debug, thiserror::Error)]
pub enum CreateVmError {
    /// KVM_CREATE_VM failed.
    #[error("KVM could not create a virtual machine")]
    Create(#[source] io::Error),
    /// A memory region has no host address.
    #[error("guest memory at {guest_start:#x} has no host address")]
    HostAddress {
        /// The region's guest physical address.
        guest_start: u64,
    },
    /// A memory slot was refused.
    #[error("KVM refused {bytes} bytes of guest memory at {guest_start:#x}")]
    MemorySlot {
        /// The region's guest physical address.
        guest_start: u64,
        /// The region's length.
        bytes: u64,
        /// What KVM said.
        #[source]
        cause: io::Error,
    },
}

/// A KVM virtual machine and its guest's memory. See the module for the order of release.
#[derive(Debug)]
pub struct Vm {
    // Declared first, so closed first: the kernel forgets the slots before the memory may go.
    fd: VmFd,
    memory: GuestMemoryMmap<()>,
    devices: Mutex<Vec<Option<DeviceSlot>>>,
}

/// One slot of a device's memory, in use. Its number is its place after the slots of memory.
#[derive(Debug)]
struct DeviceSlot {
    guest_start: u64,
    /// Not unmapped while KVM may use it.
    _mapping: Arc<DeviceMapping>,
}

impl Vm {
    /// Creates the machine and gives it all of `memory`, one slot for each region.
    ///
    /// # Errors
    /// If KVM refuses the machine or a slot.
    pub fn create(kvm: &Kvm, memory: GuestMemoryMmap<()>) -> Result<Arc<Self>, CreateVmError> {
        let fd = create_vm(kvm).map_err(CreateVmError::Create)?;
        let vm = Self {
            fd,
            memory,
            devices: Mutex::default(),
        };
        for (slot, region) in (0u32..).zip(vm.memory.iter()) {
            vm.set_slot(slot, region)?;
        }
        Ok(Arc::new(vm))
    }

    fn set_slot(
        &self,
        slot: u32,
        region: &vm_memory::GuestRegionMmap<()>,
    ) -> Result<(), CreateVmError> {
        let guest_start = region.start_addr().0;
        let host = region
            .get_host_address(MemoryRegionAddress(0))
            .map_err(|_| CreateVmError::HostAddress { guest_start })?;
        let memory_region = kvm_userspace_memory_region {
            slot,
            flags: 0,
            guest_phys_addr: guest_start,
            memory_size: region.len(),
            userspace_addr: u64::try_from(host.addr()).expect("addresses have 64 bits"),
        };
        // SAFETY: KVM lets the guest write to this range until the slot or the VM is gone. The range
        // is exactly one mapping of `self.memory`, which no Rust reference points into (vm-memory
        // lends volatile access only), and which `Vm` and every `Vcpu` keep mapped until their own
        // descriptors are closed.
        unsafe { self.fd.set_user_memory_region(memory_region) }.map_err(|cause| {
            CreateVmError::MemorySlot {
                guest_start,
                bytes: region.len(),
                cause: cause.into(),
            }
        })
    }

    /// Lets the guest reach `bytes` of a device's memory from `offset` on at `guest_start`, without
    /// exits.
    ///
    /// # Errors
    /// If that part is not mapped, or what KVM says, for instance that something is there.
    pub fn map_device(
        &self,
        mapping: &Arc<DeviceMapping>,
        offset: u64,
        bytes: u64,
        guest_start: u64,
    ) -> io::Result<()> {
        let host = mapping.host_address(offset, bytes)?;
        let mut devices = self.devices.lock().unwrap_or_else(PoisonError::into_inner);
        let free = devices.iter().position(Option::is_none);
        let position = free.unwrap_or(devices.len());
        let region = kvm_userspace_memory_region {
            slot: self.device_slot(position)?,
            flags: 0,
            guest_phys_addr: guest_start,
            memory_size: bytes,
            userspace_addr: u64::try_from(host).map_err(io::Error::other)?,
        };
        // SAFETY: KVM lets the guest use this range until the slot or the VM is gone. The range is
        // memory of a device, mapped for this purpose alone, to which this process has no reference
        // (`DeviceMapping` gives out none). The entry below keeps it mapped until `unmap_device`
        // has taken the slot back, or until all descriptors of the VM are closed.
        unsafe { self.fd.set_user_memory_region(region) }?;
        let entry = DeviceSlot {
            guest_start,
            _mapping: Arc::clone(mapping),
        };
        if free.is_none() {
            devices.push(None);
        }
        devices[position] = Some(entry);
        Ok(())
    }

    /// Takes back what [`Vm::map_device`] mapped at `guest_start`. No vCPU reaches it afterwards.
    ///
    /// # Errors
    /// `NotFound` if nothing is mapped there, or what KVM says.
    pub fn unmap_device(&self, guest_start: u64) -> io::Result<()> {
        let mut devices = self.devices.lock().unwrap_or_else(PoisonError::into_inner);
        let is_it = |slot: &Option<DeviceSlot>| {
            slot.as_ref()
                .is_some_and(|slot| slot.guest_start == guest_start)
        };
        let position = devices
            .iter()
            .position(is_it)
            .ok_or(io::ErrorKind::NotFound)?;
        let region = kvm_userspace_memory_region {
            slot: self.device_slot(position)?,
            guest_phys_addr: guest_start,
            ..Default::default()
        };
        // SAFETY: a length of 0 takes the slot away; KVM uses no address of ours.
        unsafe { self.fd.set_user_memory_region(region) }?;
        devices[position] = None;
        Ok(())
    }

    fn device_slot(&self, position: usize) -> io::Result<u32> {
        u32::try_from(self.memory.num_regions() + position).map_err(io::Error::other)
    }

    /// Makes KVM's list of the VFIO files whose devices the guest has.
    ///
    /// # Errors
    /// What KVM says.
    pub fn vfio_registry(&self) -> io::Result<KvmVfioRegistry> {
        let mut device = kvm_create_device {
            type_: kvm_device_type_KVM_DEV_TYPE_VFIO,
            ..Default::default()
        };
        Ok(KvmVfioRegistry::new(self.fd.create_device(&mut device)?))
    }

    /// The guest's memory.
    #[must_use]
    pub fn memory(&self) -> &GuestMemoryMmap<()> {
        &self.memory
    }

    /// What a capability of this VM is worth; 0 if it is not there.
    #[must_use]
    pub fn capability(&self, capability: Cap) -> i32 {
        self.fd.check_extension_int(capability)
    }

    /// Switches a VM capability on.
    ///
    /// # Errors
    /// What KVM says.
    pub fn enable_capability(&self, capability: &kvm_enable_cap) -> io::Result<()> {
        Ok(self.fd.enable_cap(capability)?)
    }

    /// Creates KVM's own PIC, IOAPIC and local APICs.
    ///
    /// # Errors
    /// What KVM says.
    pub fn create_irqchip(&self) -> io::Result<()> {
        Ok(self.fd.create_irq_chip()?)
    }

    /// Gives KVM three guest pages that old Intel processors need to run real mode.
    ///
    /// # Errors
    /// What KVM says.
    pub fn set_tss_address(&self, address: usize) -> io::Result<()> {
        Ok(self.fd.set_tss_address(address)?)
    }

    /// Drives a pin of KVM's own IOAPIC.
    ///
    /// # Errors
    /// What KVM says.
    pub fn set_irq_line(&self, pin: u32, active: bool) -> io::Result<()> {
        Ok(self.fd.set_irq_line(pin, active)?)
    }

    /// Delivers a message-signalled interrupt, a write of `data` to `address`, at once.
    ///
    /// # Errors
    /// What KVM says, such as `EPERM` if it looked for a local APIC to take the message and found
    /// none. Most messages that nobody takes are no error.
    pub fn signal_msi(&self, address: u64, data: u32) -> io::Result<()> {
        let [low, high] = split(address);
        self.fd.signal_msi(kvm_msi {
            address_lo: low,
            address_hi: high,
            data,
            ..Default::default()
        })?;
        Ok(())
    }

    /// Replaces KVM's whole table from interrupt numbers to messages.
    ///
    /// # Errors
    /// What KVM says, for instance that there are too many.
    pub fn set_msi_routes(&self, routes: &[MsiRoute]) -> io::Result<()> {
        let entries: Vec<_> = routes.iter().map(routing_entry).collect();
        let table = KvmIrqRouting::from_entries(&entries)
            .map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
        Ok(self.fd.set_gsi_routing(&table)?)
    }

    /// Makes a signal of `event` the interrupt `gsi`, without a thread of this process. A signal
    /// that came before is delivered now.
    ///
    /// # Errors
    /// What KVM says, for instance that `event` is an interrupt already.
    pub fn interrupt_on_event(&self, event: &Event, gsi: u32) -> io::Result<()> {
        Ok(self.fd.register_irqfd(event.as_eventfd(), gsi)?)
    }

    /// Makes a signal of `event` no interrupt any more; what was signalled is delivered first.
    ///
    /// # Errors
    /// What KVM says.
    pub fn forget_event(&self, event: &Event, gsi: u32) -> io::Result<()> {
        Ok(self.fd.unregister_irqfd(event.as_eventfd(), gsi)?)
    }

    /// Makes a guest write of any width at a guest physical address signal `event` instead of an exit.
    ///
    /// # Errors
    /// What KVM says, for instance that the address is taken.
    pub fn signal_on_mmio_write(&self, address: u64, event: &Event) -> io::Result<()> {
        Ok(self.fd.register_ioevent(
            event.as_eventfd(),
            &IoEventAddress::Mmio(address),
            NoDatamatch,
        )?)
    }

    /// The frequency of the guests' time stamp counter, in kHz, if KVM knows it.
    #[must_use]
    pub fn tsc_khz(&self) -> Option<u32> {
        // SAFETY: KVM_GET_TSC_KHZ takes no argument and touches no memory of ours.
        let khz = unsafe { vmm_sys_util::ioctl::ioctl(&self.fd, KVM_GET_TSC_KHZ) };
        u32::try_from(khz).ok().filter(|&khz| khz > 0)
    }

    /// Creates a vCPU; `id` is its APIC id.
    ///
    /// # Errors
    /// What KVM says.
    pub fn create_vcpu(self: &Arc<Self>, id: u32, cpuid: &CpuId) -> io::Result<Vcpu> {
        let fd = self.fd.create_vcpu(u64::from(id))?;
        fd.set_cpuid2(cpuid)?;
        Ok(Vcpu::new(fd, Arc::clone(self)))
    }
}

fn routing_entry(route: &MsiRoute) -> kvm_irq_routing_entry {
    let [low, high] = split(route.address);
    let mut entry = kvm_irq_routing_entry {
        gsi: route.gsi,
        type_: KVM_IRQ_ROUTING_MSI,
        ..Default::default()
    };
    entry.u.msi.address_lo = low;
    entry.u.msi.address_hi = high;
    entry.u.msi.data = route.data;
    entry
}

fn create_vm(kvm: &Kvm) -> io::Result<VmFd> {
    let mut result = kvm.create_vm();
    for _ in 0..CREATE_RETRIES {
        match &result {
            Err(error) if error.errno() == libc::EINTR => result = kvm.create_vm(),
            Ok(_) | Err(_) => break,
        }
    }
    Ok(result?)
}

fn split(value: u64) -> [u32; 2] {
    let [a, b, c, d, e, f, g, h] = value.to_le_bytes();
    [
        u32::from_le_bytes([a, b, c, d]),
        u32::from_le_bytes([e, f, g, h]),
    ]
}
