//! A guest's view of virtio-pci functions: memory, a bus, ECAM and a driver that can do it right.
//!
//! The executor is the devices' own inline one, so that everything happens on one thread and an
//! input always gives the same run.

use std::sync::Arc;

use berth_vmm_devices::bus::{Bus, BusRange};
use berth_vmm_devices::guest_error::GuestErrors;
use berth_vmm_devices::memory::Memory;
use berth_vmm_devices::pci::root::{BarWindows, ECAM_BYTES, PciRoot};
use berth_vmm_devices::pci::{DeviceSlot, PciFunction};
use berth_vmm_devices::virtio::device::VirtioDevice;
use berth_vmm_devices::virtio::executor::InlineExecutor;
use berth_vmm_devices::virtio::transport::{VirtioPci, VirtioPciParts};
use vm_memory::{Bytes, GuestAddress};

use crate::layout::{
    CONFIG_VECTOR, DRIVER_FEATURE, DRIVER_FEATURE_SELECT, NOTIFY, QUEUE_ADDRESSES, QUEUE_ENABLE,
    QUEUE_SELECT, QUEUE_SIZE, QUEUE_VECTOR, STATUS, TABLE, VERSION_1,
};
use crate::messages::Messages;

/// Guest RAM from address 0.
pub const RAM_BYTES: u64 = 0x4_0000;
/// Where ECAM is.
pub const ECAM: u64 = 0xe000_0000;

/// The machine around the functions; the function in slot n is number n - 1.
pub struct Guest {
    /// Guest RAM.
    pub memory: Arc<Memory>,
    /// What the guest did wrong.
    pub errors: Arc<GuestErrors>,
    /// Interrupts of all functions.
    pub messages: Arc<Messages>,
    /// All of the above's accesses.
    pub bus: Bus,
    executor: Arc<InlineExecutor>,
    bars: Vec<u64>,
}

impl Guest {
    /// A guest after power-on, with `devices` in the slots from 1 on.
    ///
    /// # Panics
    /// If the devices do not fit, which only a change of this crate can bring about.
    #[must_use]
    pub fn new(devices: Vec<Box<dyn VirtioDevice>>) -> Self {
        let ram = usize::try_from(RAM_BYTES).expect("RAM is small");
        let memory = Memory::from_ranges(&[(GuestAddress(0), ram)]).expect("RAM can be mapped");
        let memory = Arc::new(memory);
        let (errors, messages) = (Arc::new(GuestErrors::default()), Arc::<Messages>::default());
        let executor = Arc::new(InlineExecutor::default());
        let functions: Vec<_> = (1..)
            .zip(devices)
            .map(|(number, device)| {
                let slot = DeviceSlot::new(number).expect("there are few devices");
                let function = VirtioPci::new(VirtioPciParts {
                    device,
                    slot,
                    memory: memory.clone(),
                    msi: messages.clone(),
                    executor: executor.clone(),
                    errors: errors.clone(),
                });
                (slot, Arc::new(function) as Arc<dyn PciFunction>)
            })
            .collect();
        let windows = BarWindows {
            low: 0xc000_0000..0xd000_0000,
            high: 0..0,
        };
        let count = functions.len();
        let root = PciRoot::new(functions, &windows, errors.clone()).expect("the BARs fit");
        let root = Arc::new(root);
        let mut ranges = root.bar_ranges().to_vec();
        ranges.push(BusRange {
            base: ECAM,
            bytes: ECAM_BYTES,
            device: root,
        });
        let bus = Bus::new(ranges, errors.clone()).expect("nothing overlaps");
        let mut guest = Self {
            memory,
            errors,
            messages,
            bus,
            executor,
            bars: Vec::new(),
        };
        guest.bars = (0..count)
            .map(|number| guest.config(number, 0x10, 4))
            .collect();
        guest
    }

    /// The host's side of a function has something: what its device left to be done later.
    ///
    /// # Panics
    /// If there is no such function.
    pub fn host_ready(&self, function: usize) {
        let number = u8::try_from(function + 1).expect("there are few functions");
        let slot = DeviceSlot::new(number).expect("there are few functions");
        self.executor.source_ready(slot, 0);
    }

    /// Number of functions.
    #[must_use]
    pub fn functions(&self) -> usize {
        self.bars.len()
    }

    /// Reads up to 8 bytes from the bus.
    pub fn read(&self, address: u64, width: usize) -> u64 {
        let mut bytes = [0; 16];
        self.bus.read(address, &mut bytes[..width]);
        u64::from_le_bytes(*bytes.first_chunk().expect("the array has 16 bytes"))
    }

    /// Writes to the bus; a width above 8 is filled up with zeroes.
    pub fn write(&self, address: u64, width: usize, value: u64) {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&value.to_le_bytes());
        self.bus.write(address, &bytes[..width]);
    }

    /// Address of `offset` in the configuration space of a function.
    #[must_use]
    pub fn config_address(function: usize, offset: u16) -> u64 {
        ECAM + ((function as u64 + 1) << 15) + u64::from(offset)
    }

    /// Reads configuration space.
    pub fn config(&self, function: usize, offset: u16, width: usize) -> u64 {
        self.read(Self::config_address(function, offset), width)
    }

    /// Writes configuration space.
    pub fn set_config(&self, function: usize, offset: u16, width: usize, value: u64) {
        self.write(Self::config_address(function, offset), width, value);
    }

    /// Address of `offset` in the BAR of a function.
    #[must_use]
    pub fn bar(&self, function: usize, offset: u64) -> u64 {
        self.bars[function] + offset
    }

    /// Whether the function answers in its BAR.
    #[must_use]
    pub fn decodes(&self, function: usize) -> bool {
        self.config(function, 4, 2) & 2 != 0
    }

    /// Reads a register of the common configuration.
    pub fn common(&self, function: usize, offset: u64, width: usize) -> u64 {
        self.read(self.bar(function, offset), width)
    }

    /// Writes a register of the common configuration.
    pub fn set_common(&self, function: usize, offset: u64, width: usize, value: u64) {
        self.write(self.bar(function, offset), width, value);
    }

    /// Writes to RAM; outside of it nothing happens.
    pub fn put(&self, address: u64, bytes: &[u8]) {
        // The address is the fuzzer's: a miss is one of its moves.
        self.memory
            .write_slice(bytes, GuestAddress(address))
            .unwrap_or(());
    }

    /// Writes a descriptor into the table at `table`.
    pub fn describe(
        &self,
        table: u64,
        index: u16,
        (address, bytes): (u64, u32),
        flags: u16,
        next: u16,
    ) {
        let mut entry = [0; 16];
        entry[..8].copy_from_slice(&address.to_le_bytes());
        entry[8..12].copy_from_slice(&bytes.to_le_bytes());
        entry[12..14].copy_from_slice(&flags.to_le_bytes());
        entry[14..].copy_from_slice(&next.to_le_bytes());
        self.put(table.wrapping_add(u64::from(index) * 16), &entry);
    }

    /// Switches decoding and MSI-X on, with `vectors` unmasked vectors of which each has its number
    /// as data.
    pub fn enable_interrupts(&self, function: usize, vectors: u64) {
        self.set_config(function, 4, 2, 0b110);
        for vector in 0..vectors {
            let entry = TABLE + vector * 16;
            for (field, value) in [(0, 0xfee0_0000), (4, 0), (8, vector), (12, 0)] {
                self.set_common(function, entry + field, 4, value);
            }
        }
        if let Some(capability) = self.find_capability(function, 0x11) {
            self.set_config(function, capability + 2, 2, 0x8000);
        }
    }

    /// Where the capability `id` begins.
    #[must_use]
    pub fn find_capability(&self, function: usize, id: u64) -> Option<u16> {
        let mut place = self.config(function, 0x34, 1);
        for _ in 0..48 {
            let offset = u16::try_from(place).ok().filter(|&offset| offset >= 0x40)?;
            if self.config(function, offset, 1) == id {
                return Some(offset);
            }
            place = self.config(function, offset + 1, 1);
        }
        None
    }

    /// Everything from reset to `DRIVER_OK`, with queue 0 of `size` in `rings` and vector 1.
    pub fn bring_up(&self, function: usize, features: u64, size: u16, rings: [u64; 3]) {
        self.enable_interrupts(function, 2);
        for status in [0, 1, 3] {
            self.set_common(function, STATUS, 1, status);
        }
        let features = features | VERSION_1;
        for word in 0..2 {
            self.set_common(function, DRIVER_FEATURE_SELECT, 4, word);
            self.set_common(
                function,
                DRIVER_FEATURE,
                4,
                features >> (32 * word) & 0xffff_ffff,
            );
        }
        self.set_common(function, STATUS, 1, 0xb);
        self.set_common(function, CONFIG_VECTOR, 2, 0);
        self.set_common(function, QUEUE_SELECT, 2, 0);
        self.set_common(function, QUEUE_SIZE, 2, size.into());
        self.set_common(function, QUEUE_VECTOR, 2, 1);
        for (register, address) in (QUEUE_ADDRESSES..).step_by(8).zip(rings) {
            self.set_common(function, register, 4, address & 0xffff_ffff);
            self.set_common(function, register + 4, 4, address >> 32);
        }
        self.set_common(function, QUEUE_ENABLE, 2, 1);
        self.set_common(function, STATUS, 1, 0xf);
    }

    /// Notifies queue `queue` through the BAR.
    pub fn notify(&self, function: usize, queue: u16) {
        self.write(
            self.bar(function, NOTIFY + u64::from(queue) * 4),
            2,
            queue.into(),
        );
    }
}
