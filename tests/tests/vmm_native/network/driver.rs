//! A driver of the network device without a guest: rings in memory, and a device that serves them on
//! the test's thread.

use std::sync::Arc;

use berth_vmm_devices::counters::Counters;
use berth_vmm_devices::guest_error::GuestErrors;
use berth_vmm_devices::interrupt::{MsiMessage, MsiSender};
use berth_vmm_devices::memory::Memory;
use berth_vmm_devices::pci::msix::Msix;
use berth_vmm_devices::virtio::device::{Served, VirtioDevice};
use berth_vmm_devices::virtio::executor::ActiveDevice;
use berth_vmm_devices::virtio::interrupt::VirtioInterrupt;
use berth_vmm_devices::virtio::net::{HEADER_BYTES, Net, NetOptions, PairBackend};
use berth_vmm_devices::virtio::queue::{QueueAddresses, VirtQueue};
use berth_vmm_machine::tap_queue::TapQueue;
use berth_vmm_sys::Tap;
use std::os::fd::{AsFd, OwnedFd};
use vm_memory::{Bytes, GuestAddress};

use super::wire::{is_ours, wait_readable};

/// Bytes of each receive buffer.
pub(super) const BUFFER_BYTES: usize = 1536;
const SIZE: u16 = 128;
const RING_BYTES: u64 = 0x4000;
const BUFFERS: u64 = 0x1_0000;
const SENT: u64 = 0x8_0000;
const MEMORY_BYTES: usize = 1 << 20;
const WRITE: u16 = 2;

struct NoInterrupts;

impl MsiSender for NoInterrupts {
    fn send(&self, _message: MsiMessage) {}
}

/// One queue as the driver sees it.
struct Ring {
    base: u64,
    next_available: u16,
    next_used: u16,
}

/// A driver with one queue pair, all its receive buffers with the device.
pub(super) struct Driver {
    active: ActiveDevice,
    memory: Arc<Memory>,
    counters: Arc<Counters>,
    tap: OwnedFd,
    rings: [Ring; 2],
}

impl Driver {
    /// A driver that accepted `features` of the device over `taps`.
    pub(super) fn new(taps: Vec<Tap>, features: u64) -> Self {
        let tap = taps[0].as_fd().try_clone_to_owned().unwrap();
        let queues = TapQueue::all(taps).unwrap();
        let pairs = queues.into_iter().map(|queue| PairBackend {
            queue: Box::new(queue),
            vhost: None,
        });
        let options = NetOptions {
            mac: [0x52, 0x54, 0, 0, 0, 1],
            mtu: None,
        };
        let mut net = Net::new(pairs.collect(), options);
        assert_eq!(features & !net.features(), 0, "the device offers them all");
        net.activate(features);
        let counters = net.counters().unwrap();
        let memory = Arc::new(Memory::from_ranges(&[(GuestAddress(0), MEMORY_BYTES)]).unwrap());
        let errors = Arc::new(GuestErrors::default());
        let rings = [0, RING_BYTES].map(|base| Ring {
            base,
            next_available: 0,
            next_used: 0,
        });
        let queues = rings.each_ref().map(|ring| {
            let addresses = QueueAddresses {
                size: SIZE,
                descriptors: ring.base,
                available: ring.base + 0x1000,
                used: ring.base + 0x2000,
            };
            Some(VirtQueue::new(addresses, false, &memory, errors.clone()).unwrap())
        });
        let msix = Msix::new(3, Arc::new(NoInterrupts), errors.clone());
        let interrupt = Arc::new(VirtioInterrupt::new(2, msix));
        let mut driver = Self {
            active: ActiveDevice::new(
                Box::new(net),
                queues.into(),
                memory.clone(),
                interrupt,
                errors,
            ),
            memory,
            counters,
            tap,
            rings,
        };
        for buffer in 0..SIZE {
            let address = BUFFERS + u64::from(buffer) * u64::try_from(BUFFER_BYTES).unwrap();
            driver.offer(0, buffer, address, BUFFER_BYTES, WRITE);
        }
        driver.serve(0);
        driver
    }

    fn put(&self, value: impl vm_memory::ByteValued, address: u64) {
        self.memory.write_obj(value, GuestAddress(address)).unwrap();
    }

    /// Describes one buffer and makes it available.
    fn offer(&mut self, ring: usize, head: u16, address: u64, bytes: usize, flags: u16) {
        let Ring {
            base,
            next_available,
            ..
        } = self.rings[ring];
        let descriptor = base + 16 * u64::from(head);
        self.put(address, descriptor);
        self.put(u32::try_from(bytes).unwrap(), descriptor + 8);
        self.put(flags, descriptor + 12);
        let slot = base + 0x1004 + 2 * u64::from(next_available % SIZE);
        self.put(head, slot);
        self.put(next_available.wrapping_add(1), base + 0x1002);
        self.rings[ring].next_available = next_available.wrapping_add(1);
    }

    /// The next used buffer and its length, if there is one.
    fn take_used(&mut self, ring: usize) -> Option<(u16, usize)> {
        let Ring {
            base, next_used, ..
        } = self.rings[ring];
        let read = |address| self.memory.read_obj::<u32>(GuestAddress(address)).unwrap();
        let index: u16 = self.memory.read_obj(GuestAddress(base + 0x2002)).unwrap();
        if index == next_used {
            return None;
        }
        let element = base + 0x2004 + 8 * u64::from(next_used % SIZE);
        let (head, bytes) = (read(element), read(element + 4));
        self.rings[ring].next_used = next_used.wrapping_add(1);
        Some((
            u16::try_from(head).unwrap(),
            usize::try_from(bytes).unwrap(),
        ))
    }

    fn serve(&mut self, queue: u16) {
        while self.active.serve(queue) == Served::More {}
    }

    /// Sends a packet and waits for the device to be done with it.
    pub(super) fn send(&mut self, packet: &[u8]) {
        self.memory.write_slice(packet, GuestAddress(SENT)).unwrap();
        self.offer(1, 0, SENT, packet.len(), 0);
        self.serve(1);
        assert_eq!(self.take_used(1), Some((0, 0)));
    }

    /// The next packet of the test, in one piece.
    pub(super) fn receive(&mut self) -> Vec<u8> {
        loop {
            let Some(first) = self.take_used(0) else {
                wait_readable(self.tap.as_fd());
                while self.active.source_ready(0) == Served::More {}
                continue;
            };
            let mut packet = self.take_buffer(first);
            let buffers = u16::from_le_bytes([packet[10], packet[11]]);
            for _ in 1..buffers {
                let next = self.take_used(0).expect("all buffers come together");
                packet.extend(self.take_buffer(next));
            }
            assert!(packet.len() >= HEADER_BYTES);
            if is_ours(&packet) {
                return packet;
            }
        }
    }

    /// Reads a used buffer and gives it to the device again.
    fn take_buffer(&mut self, (head, bytes): (u16, usize)) -> Vec<u8> {
        let address = BUFFERS + u64::from(head) * u64::try_from(BUFFER_BYTES).unwrap();
        let mut buffer = vec![0; bytes];
        self.memory
            .read_slice(&mut buffer, GuestAddress(address))
            .unwrap();
        self.offer(0, head, address, BUFFER_BYTES, WRITE);
        buffer
    }

    /// One of the device's counters.
    pub(super) fn count(&self, name: &str) -> u64 {
        let mut counters = self.counters.iter();
        counters.find(|(found, _)| *found == name).unwrap().1
    }
}
