//! A guest driver for tests: finds a device over ECAM as a kernel does, negotiates, lays out rings
//! in guest memory and submits chains. It can also do all of it wrongly.

use std::sync::{Arc, Mutex};

use vm_memory::{Bytes, GuestAddress};

use super::device::VirtioDevice;
use super::executor::{InlineExecutor, QueueExecutor};
use super::transport::{VirtioPci, VirtioPciParts};
use crate::bus::{Bus, BusRange};
use crate::guest_error::GuestErrors;
use crate::interrupt::{MsiMessage, MsiSender};
use crate::memory::Memory;
use crate::pci::root::{BarWindows, ECAM_BYTES, PciRoot};
use crate::pci::{DeviceSlot, PciFunction};

pub(crate) const RAM_BYTES: u64 = 4 << 20;
pub(crate) const BUFFERS: u64 = 0x20_0000;
pub(crate) const VERSION_1: u64 = 1 << 32;
pub(crate) const EVENT_IDX: u64 = 1 << 29;
pub(crate) const WRITE: u16 = 2;
pub(crate) const NEXT: u16 = 1;
pub(crate) const INDIRECT: u16 = 4;

const ECAM: u64 = 0xe000_0000;
pub(crate) const SLOT: u8 = 3;
const RINGS: u64 = 0x10_0000;
const RING_BYTES: u64 = 0x1_0000;
const AVAILABLE: u64 = 0x6000;
const USED: u64 = 0x8000;

/// Messages that the device sent; a vector's data is its number (see [`TestGuest::enable_msix`]).
#[derive(Default)]
pub(crate) struct Messages(Mutex<Vec<MsiMessage>>);

impl MsiSender for Messages {
    fn send(&self, message: MsiMessage) {
        self.0.lock().unwrap().push(message);
    }
}

impl Messages {
    pub(crate) fn take(&self) -> Vec<u32> {
        self.0
            .lock()
            .unwrap()
            .drain(..)
            .map(|message| message.data)
            .collect()
    }
}

/// Addresses of the structures that the capabilities name.
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct Structures {
    pub(crate) common: u64,
    pub(crate) notify: u64,
    pub(crate) notify_multiplier: u64,
    pub(crate) isr: u64,
    pub(crate) device: Option<u64>,
    pub(crate) window: u16,
    pub(crate) msix: u16,
    pub(crate) table: u64,
    pub(crate) pending: u64,
}

pub(crate) struct TestGuest {
    pub(crate) memory: Arc<Memory>,
    pub(crate) errors: Arc<GuestErrors>,
    pub(crate) messages: Arc<Messages>,
    pub(crate) function: Arc<VirtioPci>,
    pub(crate) at: Structures,
    bus: Bus,
}

impl TestGuest {
    pub(crate) fn new(device: Box<dyn VirtioDevice>) -> Self {
        Self::with_executor(device, Arc::new(InlineExecutor::default()))
    }

    pub(crate) fn with_executor(
        device: Box<dyn VirtioDevice>,
        executor: Arc<dyn QueueExecutor>,
    ) -> Self {
        let ram = [(GuestAddress(0), usize::try_from(RAM_BYTES).unwrap())];
        let memory = Arc::new(Memory::from_ranges(&ram).unwrap());
        let (errors, messages) = (
            Arc::new(GuestErrors::default()),
            Arc::new(Messages::default()),
        );
        let slot = DeviceSlot::new(SLOT).unwrap();
        let function = Arc::new(VirtioPci::new(VirtioPciParts {
            device,
            slot,
            memory: memory.clone(),
            msi: messages.clone(),
            executor,
            errors: errors.clone(),
        }));
        let windows = BarWindows {
            low: 0xc000_0000..0xd000_0000,
            high: 0..0,
        };
        let functions = vec![(slot, function.clone() as Arc<dyn PciFunction>)];
        let root = Arc::new(PciRoot::new(functions, &windows, errors.clone()).unwrap());
        let mut ranges = root.bar_ranges().to_vec();
        ranges.push(BusRange {
            base: ECAM,
            bytes: ECAM_BYTES,
            device: root,
        });
        let bus = Bus::new(ranges, errors.clone()).unwrap();
        let mut guest = Self {
            memory,
            errors,
            messages,
            function,
            at: Structures::default(),
            bus,
        };
        guest.set_config(4, 2, 0b110);
        guest.at = guest.find_structures();
        guest
    }

    pub(crate) fn read(&self, address: u64, width: usize) -> u64 {
        let mut bytes = [0; 8];
        self.bus.read(address, &mut bytes[..width]);
        u64::from_le_bytes(bytes)
    }

    pub(crate) fn write(&self, address: u64, width: usize, value: u64) {
        self.bus.write(address, &value.to_le_bytes()[..width]);
    }

    pub(crate) fn config(&self, offset: u16, width: usize) -> u64 {
        self.read(ECAM + (u64::from(SLOT) << 15) + u64::from(offset), width)
    }

    pub(crate) fn set_config(&self, offset: u16, width: usize, value: u64) {
        self.write(
            ECAM + (u64::from(SLOT) << 15) + u64::from(offset),
            width,
            value,
        );
    }

    fn find_structures(&self) -> Structures {
        let mut found = Structures::default();
        let bar = |index: u64| self.config(0x10 + 4 * u16::try_from(index).unwrap(), 4) & !0xf;
        let mut next = u16::try_from(self.config(0x34, 1)).unwrap();
        while next != 0 {
            let place = bar(self.config(next + 4, 1)) + self.config(next + 8, 4);
            match (self.config(next, 1), self.config(next + 3, 1)) {
                (0x09, 1) => found.common = place,
                (0x09, 2) => {
                    found.notify = place;
                    found.notify_multiplier = self.config(next + 16, 4);
                }
                (0x09, 3) => found.isr = place,
                (0x09, 4) => found.device = Some(place),
                (0x09, 5) => found.window = next,
                (0x11, _) => {
                    found.msix = next;
                    let [table, pending] = [4, 8].map(|at| self.config(next + at, 4));
                    found.table = bar(table & 7) + (table & !7);
                    found.pending = bar(pending & 7) + (pending & !7);
                }
                other => panic!("a capability that no driver knows: {other:?}"),
            }
            next = u16::try_from(self.config(next + 1, 1)).unwrap();
        }
        found
    }

    /// Unmasks `vectors` vectors, each with its number as data, and switches MSI-X on.
    pub(crate) fn enable_msix(&self, vectors: u64) {
        for vector in 0..vectors {
            let entry = self.at.table + vector * 16;
            self.write(entry, 4, 0xfee0_0000);
            self.write(entry + 4, 4, 0);
            self.write(entry + 8, 4, vector);
            self.write(entry + 12, 4, 0);
        }
        self.set_config(self.at.msix + 2, 2, 0x8000);
    }

    pub(crate) fn common(&self, offset: u64, width: usize) -> u64 {
        self.read(self.at.common + offset, width)
    }

    pub(crate) fn set_common(&self, offset: u64, width: usize, value: u64) {
        self.write(self.at.common + offset, width, value);
    }

    pub(crate) fn status(&self) -> u64 {
        self.common(0x14, 1)
    }

    pub(crate) fn set_status(&self, status: u64) {
        self.set_common(0x14, 1, status);
    }

    pub(crate) fn offered_features(&self) -> u64 {
        self.set_common(0x00, 4, 0);
        let low = self.common(0x04, 4);
        self.set_common(0x00, 4, 1);
        low | self.common(0x04, 4) << 32
    }

    pub(crate) fn accept_features(&self, features: u64) {
        for word in 0..2 {
            self.set_common(0x08, 4, word);
            self.set_common(0x0c, 4, features >> (32 * word) & 0xffff_ffff);
        }
    }

    /// Goes from reset to `FEATURES_OK` with `features` and `VERSION_1`.
    pub(crate) fn negotiate(&self, features: u64) {
        self.set_status(1);
        self.set_status(3);
        self.accept_features(features | VERSION_1);
        self.set_status(0xb);
        assert_eq!(self.status(), 0xb);
    }

    /// Sets queue `index` up with vector `index + 1` and enables it.
    pub(crate) fn set_up_queue(&self, index: u16, size: u16) -> Ring {
        let ring = Ring::new(self.memory.clone(), index, size);
        self.set_common(0x16, 2, index.into());
        self.set_common(0x18, 2, size.into());
        self.set_common(0x1a, 2, u64::from(index) + 1);
        for (register, address) in [
            (0x20, ring.descriptors),
            (0x28, ring.available),
            (0x30, ring.used),
        ] {
            self.set_common(register, 4, address & 0xffff_ffff);
            self.set_common(register + 4, 4, address >> 32);
        }
        self.set_common(0x1c, 2, 1);
        ring
    }

    /// Everything from reset to `DRIVER_OK` with one queue of `size` and the config vector 0.
    pub(crate) fn bring_up(&self, features: u64, size: u16) -> Ring {
        self.enable_msix(2);
        self.negotiate(features);
        self.set_common(0x10, 2, 0);
        let ring = self.set_up_queue(0, size);
        self.set_status(0xf);
        ring
    }

    pub(crate) fn notify(&self, index: u16) {
        let address = self.at.notify + u64::from(index) * self.at.notify_multiplier;
        self.write(address, 2, index.into());
    }
}

/// One queue as its driver sees it.
pub(crate) struct Ring {
    memory: Arc<Memory>,
    pub(crate) size: u16,
    pub(crate) descriptors: u64,
    pub(crate) available: u64,
    pub(crate) used: u64,
    next_available: u16,
    next_used: u16,
    next_descriptor: u16,
}

impl Ring {
    pub(crate) fn new(memory: Arc<Memory>, index: u16, size: u16) -> Self {
        let start = RINGS + u64::from(index) * RING_BYTES;
        let zeroes = vec![0; usize::try_from(RING_BYTES).unwrap()];
        memory.write_slice(&zeroes, GuestAddress(start)).unwrap();
        Self {
            memory,
            size,
            descriptors: start,
            available: start + AVAILABLE,
            used: start + USED,
            next_available: 0,
            next_used: 0,
            next_descriptor: 0,
        }
    }

    fn put<T: vm_memory::ByteValued>(&self, value: T, address: u64) {
        self.memory.write_obj(value, GuestAddress(address)).unwrap();
    }

    fn word(&self, address: u64) -> u16 {
        self.memory.read_obj(GuestAddress(address)).unwrap()
    }

    pub(crate) fn describe(&self, index: u16, address: u64, bytes: u32, flags: u16, next: u16) {
        self.describe_in(self.descriptors, index, (address, bytes), flags, next);
    }

    /// Writes a descriptor into the table at `table`, for indirect ones.
    pub(crate) fn describe_in(
        &self,
        table: u64,
        index: u16,
        (address, bytes): (u64, u32),
        flags: u16,
        next: u16,
    ) {
        let place = table + u64::from(index) * 16;
        self.put(address, place);
        self.put(bytes, place + 8);
        self.put(flags, place + 12);
        self.put(next, place + 14);
    }

    /// Makes the chain at `head` available.
    pub(crate) fn offer(&mut self, head: u16) {
        let slot = u64::from(self.next_available % self.size);
        self.put(head, self.available + 4 + 2 * slot);
        self.next_available = self.next_available.wrapping_add(1);
        self.set_available_index(self.next_available);
    }

    pub(crate) fn set_available_index(&self, index: u16) {
        self.put(index, self.available + 2);
    }

    /// Sets the available ring's flags (1: no interrupts).
    pub(crate) fn set_flags(&self, flags: u16) {
        self.put(flags, self.available);
    }

    /// Asks for an interrupt when the used index passes `event`.
    pub(crate) fn set_used_event(&self, event: u16) {
        self.put(event, self.available + 4 + 2 * u64::from(self.size));
    }

    /// Builds a chain of (address, bytes, flags) in fresh descriptors, offers it and returns its
    /// head.
    pub(crate) fn submit(&mut self, parts: &[(u64, u32, u16)]) -> u16 {
        let head = self.next_descriptor;
        for (position, &(address, bytes, flags)) in parts.iter().enumerate() {
            let index = self.next_descriptor;
            self.next_descriptor = (index + 1) % self.size;
            let more = if position + 1 < parts.len() { NEXT } else { 0 };
            self.describe(index, address, bytes, flags | more, self.next_descriptor);
        }
        self.offer(head);
        head
    }

    /// What the device completed since the last call: heads and written lengths.
    pub(crate) fn take_used(&mut self) -> Vec<(u32, u32)> {
        let index = self.word(self.used + 2);
        let mut taken = Vec::new();
        while self.next_used != index {
            let element = self.used + 4 + 8 * u64::from(self.next_used % self.size);
            let [id, len] =
                [0, 4].map(|at| self.memory.read_obj(GuestAddress(element + at)).unwrap());
            taken.push((id, len));
            self.next_used = self.next_used.wrapping_add(1);
        }
        taken
    }

    /// Whether the device suppresses notifications by the used ring's flag.
    pub(crate) fn suppresses_notifications(&self) -> bool {
        self.word(self.used) & 1 != 0
    }
}
