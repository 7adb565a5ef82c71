//! The transport as a driver meets it, well-behaved and not.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc;
use std::sync::{Arc, Mutex};
use std::thread;

use proptest::prelude::*;

use crate::guest_error::GuestError;
use crate::memory::Memory;
use crate::pci::{DeviceSlot, PciFunction};
use crate::sync::lock;
use crate::virtio::config::DeviceConfig;
use crate::virtio::device::{Served, VirtioDevice};
use crate::virtio::executor::{ActivateError, ActiveDevice, InlineExecutor, QueueExecutor};
use crate::virtio::queue::{QueueBroken, Queues};
use crate::virtio::testing::{
    BUFFERS, EVENT_IDX, NEXT, RAM_BYTES, Ring, TestGuest, VERSION_1, WRITE,
};

const NEEDS_RESET: u64 = 0x40;
const QUEUE_SIZE: u16 = 16;

/// Completes every chain with the number of its writable bytes.
#[derive(Default)]
struct Echo {
    activated_with: Arc<Mutex<Vec<u64>>>,
    served: Arc<AtomicUsize>,
    resets: Arc<AtomicUsize>,
}

impl VirtioDevice for Echo {
    fn device_type(&self) -> u16 {
        4
    }
    fn features(&self) -> u64 {
        0b101
    }
    fn queue_max_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE, QUEUE_SIZE]
    }
    fn config(&self) -> Arc<DeviceConfig> {
        DeviceConfig::constant(&[1, 2, 3, 4, 5, 6])
    }
    fn activate(&mut self, features: u64) {
        lock(&self.activated_with).push(features);
    }
    fn serve(
        &mut self,
        index: u16,
        queues: &mut Queues,
        memory: &Memory,
    ) -> Result<(), QueueBroken> {
        let queue = queues.get(index).unwrap();
        while let Some(chain) = queue.pop(memory)? {
            self.served.fetch_add(1, Ordering::SeqCst);
            let written = u32::try_from(chain.writable.bytes()).unwrap_or(u32::MAX);
            queue.complete(memory, chain, written)?;
        }
        Ok(())
    }
    fn reset(&mut self) {
        self.resets.fetch_add(1, Ordering::SeqCst);
    }
}

fn guest() -> TestGuest {
    TestGuest::new(Box::new(Echo::default()))
}

#[test]
fn a_driver_finds_every_structure_and_completes_a_chain() {
    let guest = guest();
    assert_eq!(guest.config(0, 4), 0x1044_1af4);
    assert_eq!(guest.config(8, 1), 1);
    assert_eq!(guest.at.notify_multiplier, 4);
    assert_eq!(guest.function.notify_address(1), Some(guest.at.notify + 4));
    assert_eq!(guest.function.notify_address(2), None);
    assert_eq!(guest.read(guest.at.device.unwrap(), 4), 0x0403_0201);
    assert_eq!(guest.read(guest.at.device.unwrap() + 4, 4), 0x0000_0605);
    assert_eq!(guest.common(0x12, 2), 2);
    assert_eq!(
        guest.offered_features(),
        0b101 | 1 << 28 | EVENT_IDX | VERSION_1
    );

    let mut ring = guest.bring_up(0, QUEUE_SIZE);
    assert_eq!(guest.status(), 0xf);
    let head = ring.submit(&[(BUFFERS, 8, 0), (BUFFERS, 100, WRITE)]);
    guest.notify(0);
    assert_eq!(ring.take_used(), [(u32::from(head), 100)]);
    assert_eq!(guest.messages.take(), [1]);
    assert_eq!(guest.read(guest.at.isr, 1), 1);
    assert_eq!(guest.read(guest.at.isr, 1), 0);
    assert_eq!(guest.errors.total(), 0);
}

#[test]
fn chains_offered_before_driver_ok_are_served_on_it() {
    let guest = guest();
    guest.enable_msix(2);
    guest.negotiate(0);
    let mut ring = guest.set_up_queue(0, QUEUE_SIZE);
    ring.submit(&[(BUFFERS, 4, WRITE)]);
    guest.set_status(0xf);
    assert_eq!(ring.take_used(), [(0, 4)]);
}

#[test]
fn the_device_learns_the_accepted_features() {
    let device = Echo::default();
    let seen = device.activated_with.clone();
    let guest = TestGuest::new(Box::new(device));
    guest.bring_up(0b100, QUEUE_SIZE);
    assert_eq!(*lock(&seen), [0b100 | VERSION_1]);
}

#[test]
fn features_that_were_not_offered_or_lack_version_1_are_not_agreed() {
    for features in [VERSION_1 | 0b10, VERSION_1 | 1 << 63, 0b101, 0] {
        let guest = guest();
        guest.set_status(3);
        guest.accept_features(features);
        guest.set_status(0xb);
        assert_eq!(guest.status(), 3, "{features:#x}");
        assert_eq!(guest.errors.count(GuestError::VirtioFeatures), 1);
        guest.accept_features(VERSION_1);
        guest.set_status(0xb);
        assert_eq!(guest.status(), 0xb, "a driver may try again with fewer");
    }
}

#[test]
fn features_are_fixed_once_agreed() {
    let guest = guest();
    guest.negotiate(0b100);
    guest.accept_features(VERSION_1 | 0b001);
    guest.set_common(0x08, 4, 0);
    assert_eq!(guest.common(0x0c, 4), 0b100);
    assert_eq!(guest.errors.count(GuestError::VirtioFeatures), 2);
}

#[test]
fn queue_registers_are_writable_only_between_features_ok_and_driver_ok() {
    let guest = guest();
    let writes = [
        (0x18, 2, 8),
        (0x20, 4, 0x1000),
        (0x28, 8, 0x2000),
        (0x30, 4, 0x3000),
        (0x1c, 2, 1),
    ];
    let state = |guest: &TestGuest| writes.map(|(at, width, _)| guest.common(at, width));
    let try_all = |guest: &TestGuest| {
        for (register, width, value) in writes {
            guest.set_common(register, width, value);
        }
    };
    let pristine = state(&guest);
    for status in [0, 1, 3] {
        guest.set_status(status);
        try_all(&guest);
        assert_eq!(state(&guest), pristine, "status {status}");
    }
    assert_eq!(guest.errors.count(GuestError::VirtioQueueLocked), 15);
    guest.set_status(0);
    guest.bring_up(0, QUEUE_SIZE);
    let running = state(&guest);
    try_all(&guest);
    guest.set_common(0x16, 2, 1);
    try_all(&guest);
    assert_eq!(
        guest.common(0x1c, 2),
        0,
        "a second queue cannot be enabled late"
    );
    guest.set_common(0x16, 2, 0);
    assert_eq!(state(&guest), running, "queue registers after DRIVER_OK");
    assert_eq!(guest.errors.count(GuestError::VirtioQueueLocked), 25);
}

#[test]
fn a_running_queue_stays_where_it_was_whatever_the_driver_writes() {
    let guest = guest();
    let mut ring = guest.bring_up(0, QUEUE_SIZE);
    guest.set_common(0x20, 4, RAM_BYTES);
    guest.set_common(0x18, 2, 0x8000);
    guest.set_common(0x30, 8, u64::MAX - 3);
    ring.submit(&[(BUFFERS, 4, WRITE)]);
    guest.notify(0);
    assert_eq!(ring.take_used(), [(0, 4)]);
}

#[test]
fn an_enabled_queue_is_fixed_before_driver_ok_too() {
    let guest = guest();
    guest.negotiate(0);
    let ring = guest.set_up_queue(0, QUEUE_SIZE);
    guest.set_common(0x20, 4, 0x9000);
    guest.set_common(0x18, 2, 2);
    assert_eq!(guest.common(0x20, 4), ring.descriptors);
    assert_eq!(guest.common(0x18, 2), u64::from(QUEUE_SIZE));
    guest.set_common(0x1c, 2, 0);
    assert_eq!(guest.common(0x1c, 2), 1);
}

#[test]
fn queue_sizes_are_powers_of_two_up_to_the_maximum() {
    let guest = guest();
    guest.negotiate(0);
    for size in [0, 3, 12, 32, 0x8000, 0xffff] {
        guest.set_common(0x18, 2, size);
        assert_eq!(guest.common(0x18, 2), u64::from(QUEUE_SIZE), "{size}");
    }
    assert_eq!(guest.errors.count(GuestError::VirtioQueueSize), 6);
    guest.set_common(0x18, 2, 4);
    assert_eq!(guest.common(0x18, 2), 4);
}

#[test]
fn a_queue_select_out_of_range_reads_zero_and_writes_nothing() {
    let guest = guest();
    guest.negotiate(0);
    for select in [2, 3, 255, 0xffff] {
        guest.set_common(0x16, 2, select);
        for (register, width) in [
            (0x18, 2),
            (0x1a, 2),
            (0x1c, 2),
            (0x1e, 2),
            (0x20, 4),
            (0x30, 8),
        ] {
            guest.set_common(register, width, 1);
            assert_eq!(
                guest.common(register, width),
                0,
                "queue {select} register {register:#x}"
            );
        }
    }
    // The notification offset is read-only and thus an unknown register to writes.
    assert_eq!(guest.errors.count(GuestError::VirtioQueueIndex), 4 * 5);
    guest.notify(0x1ff);
    assert_eq!(guest.errors.count(GuestError::VirtioQueueIndex), 4 * 5 + 1);
}

#[test]
fn ring_addresses_are_checked_at_driver_ok() {
    let bad_addresses = [
        (0x20, RAM_BYTES),
        (0x20, RAM_BYTES - 16),
        (0x20, 0x1008),
        (0x28, RAM_BYTES - 2),
        (0x28, 0x1001),
        (0x30, RAM_BYTES - 4),
        (0x30, 0x1002),
        (0x30, u64::MAX - 3),
        (0x28, u64::MAX - 1),
        (0x20, u64::MAX - 15),
    ];
    for (register, address) in bad_addresses {
        let guest = guest();
        guest.enable_msix(2);
        guest.negotiate(0);
        guest.set_common(0x10, 2, 0);
        for (ring, address) in [
            (0x20, 0x1000),
            (0x28, 0x2000),
            (0x30, 0x3000),
            (register, address),
        ] {
            guest.set_common(ring, 8, address);
        }
        guest.set_common(0x1c, 2, 1);
        guest.set_status(0xf);
        assert_eq!(
            guest.status(),
            0xf | NEEDS_RESET,
            "{register:#x} at {address:#x}"
        );
        assert_eq!(guest.messages.take(), [0]);
        assert_eq!(guest.errors.count(GuestError::VirtioRingAddress), 1);
        guest.notify(0);
        guest.set_status(0);
        assert_eq!(guest.status(), 0);
        let mut ring = guest.bring_up(0, QUEUE_SIZE);
        ring.submit(&[(BUFFERS, 4, WRITE)]);
        guest.notify(0);
        assert_eq!(
            ring.take_used(),
            [(0, 4)],
            "the device works again after a reset"
        );
    }
}

#[test]
fn bad_status_jumps_are_refused() {
    let guest = guest();
    for status in [2, 4, 8, 0xb, 0xf, 0x10, 0xff] {
        guest.set_status(status);
        assert_eq!(guest.status(), 0, "{status:#x}");
    }
    guest.set_status(3);
    guest.set_status(7);
    guest.set_status(1);
    assert_eq!(guest.status(), 3);
    guest.set_status(0x83);
    guest.set_status(0x8b);
    assert_eq!(guest.status(), 0x83);
    guest.set_status(0);
    assert_eq!(guest.status(), 0);
}

#[test]
fn reset_restores_every_register() {
    let guest = guest();
    let ring = guest.bring_up(0b101, 8);
    drop(ring);
    guest.set_status(0);
    let registers = [
        (0x14, 1, 0),
        (0x10, 2, 0xffff),
        (0x16, 2, 0),
        (0x18, 2, 16),
        (0x1a, 2, 0xffff),
    ];
    for (register, width, expected) in registers {
        assert_eq!(guest.common(register, width), expected, "{register:#x}");
    }
    assert_eq!(guest.common(0x1c, 2), 0);
    assert_eq!(guest.common(0x20, 8), 0);
    guest.set_common(0x08, 4, 1);
    assert_eq!(guest.common(0x0c, 4), 0);
    guest.notify(0);
    assert_eq!(
        guest.errors.count(GuestError::VirtioStatus),
        1,
        "nobody is there to notify"
    );
}

#[test]
fn vectors_beyond_the_table_read_back_as_none() {
    let guest = guest();
    guest.negotiate(0);
    for (vector, expected) in [
        (2, 2),
        (3, 0xffff),
        (0, 0),
        (0x7ff, 0xffff),
        (1, 1),
        (0xffff, 0xffff),
    ] {
        for register in [0x10, 0x1a] {
            guest.set_common(register, 2, vector);
            assert_eq!(guest.common(register, 2), expected);
        }
    }
}

#[test]
fn a_masked_vector_is_held_back_until_it_is_unmasked() {
    let guest = guest();
    let mut ring = guest.bring_up(0, QUEUE_SIZE);
    guest.write(guest.at.table + 16 + 12, 4, 1);
    ring.submit(&[(BUFFERS, 4, WRITE)]);
    guest.notify(0);
    assert!(guest.messages.take().is_empty());
    assert_eq!(guest.read(guest.at.pending, 8), 0b10);
    guest.write(guest.at.table + 16 + 12, 4, 0);
    assert_eq!(guest.messages.take(), [1]);
}

#[test]
fn an_interrupt_that_is_pending_at_a_reset_is_forgotten() {
    let guest = guest();
    let mut ring = guest.bring_up(0, QUEUE_SIZE);
    guest.write(guest.at.table + 16 + 12, 4, 1);
    ring.submit(&[(BUFFERS, 4, WRITE)]);
    guest.notify(0);
    assert_eq!(guest.read(guest.at.pending, 8), 0b10);
    guest.set_status(0);
    assert_eq!(guest.read(guest.at.pending, 8), 0);
    guest.write(guest.at.table + 16 + 12, 4, 0);
    assert!(guest.messages.take().is_empty());
}

#[test]
fn msix_control_works_as_a_part_of_its_dword() {
    let guest = guest();
    let mut ring = guest.bring_up(0, QUEUE_SIZE);
    let header = guest.config(guest.at.msix, 4);
    assert_eq!(header >> 16, 0x8002, "three vectors, switched on");
    guest.set_config(guest.at.msix, 4, header | 0x4000_0000);
    ring.submit(&[(BUFFERS, 4, WRITE)]);
    guest.notify(0);
    assert!(guest.messages.take().is_empty());
    guest.set_config(guest.at.msix + 3, 1, 0x80);
    assert_eq!(guest.messages.take(), [1]);
}

#[test]
fn the_config_window_takes_lengths_1_2_and_4_inside_the_bar_only() {
    let guest = guest();
    let window = guest.at.window;
    let open = |bar: u64, offset: u64, length: u64| {
        guest.set_config(window + 4, 1, bar);
        guest.set_config(window + 8, 4, offset);
        guest.set_config(window + 12, 4, length);
    };
    let common = guest.at.common & 0x7fff;
    assert_eq!(
        guest.config(window + 16, 4),
        0,
        "a dump of configuration space is harmless"
    );
    assert_eq!(guest.errors.total(), 0);

    open(0, common + 0x14, 1);
    guest.set_config(window + 16, 1, 1);
    assert_eq!(guest.config(window + 16, 1), 1);
    assert_eq!(guest.status(), 1);
    open(0, common + 0x12, 2);
    assert_eq!(guest.config(window + 16, 2), 2);
    open(0, common, 4);
    guest.set_config(window + 16, 4, 1);
    assert_eq!(guest.common(0, 4), 1);
    assert_eq!(guest.errors.total(), 0);

    let bad = [
        (0, common, 3),
        (0, common, 8),
        (0, common, 0xffff_ffff),
        (0, common + 1, 4),
        (0, 0x8000, 4),
        (0, 0xffff_fffc, 4),
        (1, common, 4),
        (0xff, common, 4),
        (0, common, 2),
    ];
    for (count, (bar, offset, length)) in (1..).zip(bad) {
        open(bar, offset, length);
        assert_eq!(guest.config(window + 16, 4), 0);
        guest.set_config(window + 16, 4, 7);
        assert_eq!(guest.common(0, 4), 1, "{bar} {offset:#x} {length}");
        assert_eq!(
            guest.errors.count(GuestError::VirtioConfigWindow),
            2 * count
        );
    }
}

#[test]
fn the_config_window_notifies_without_memory_decoding() {
    let guest = guest();
    let mut ring = guest.bring_up(0, QUEUE_SIZE);
    ring.submit(&[(BUFFERS, 4, WRITE)]);
    guest.set_config(4, 2, 0);
    guest.set_config(guest.at.window + 8, 4, guest.at.notify & 0x7fff);
    guest.set_config(guest.at.window + 12, 4, 2);
    guest.set_config(guest.at.window + 16, 2, 0);
    assert_eq!(ring.take_used(), [(0, 4)]);
}

#[test]
fn bars_answer_only_with_memory_decoding_on() {
    let guest = guest();
    guest.set_config(4, 2, 0);
    assert_eq!(guest.status(), 0xff);
    guest.set_status(1);
    guest.set_config(4, 2, 2);
    assert_eq!(guest.status(), 0);
    assert_eq!(guest.errors.count(GuestError::PciBarDisabled), 2);
}

#[test]
fn registers_of_other_widths_are_not_there() {
    let guest = guest();
    let bad_reads = [
        (0x14, 2),
        (0x00, 1),
        (0x12, 4),
        (0x22, 4),
        (0x24, 8),
        (0x38, 4),
        (0xffc, 4),
    ];
    for (register, width) in bad_reads {
        let ones = u64::MAX >> (64 - 8 * width);
        assert_eq!(guest.common(register, width), ones, "{register:#x}");
        guest.set_common(register, width, 1);
    }
    assert_eq!(guest.read(guest.at.isr, 4), 0xffff_ffff);
    guest.write(guest.at.device.unwrap(), 1, 1);
    guest.write(guest.at.notify + 1, 1, 0);
    guest.write(guest.at.notify + 2, 2, 0);
    assert_eq!(guest.errors.count(GuestError::VirtioRegister), 2 * 7 + 4);
    assert_eq!(guest.status(), 0);
}

#[test]
fn an_available_index_that_jumps_asks_for_a_reset() {
    for jump in [QUEUE_SIZE + 1, 0x8000, 0xffff] {
        let guest = guest();
        let ring = guest.bring_up(0, QUEUE_SIZE);
        ring.set_available_index(jump);
        guest.notify(0);
        assert_eq!(guest.status(), 0xf | NEEDS_RESET);
        assert_eq!(guest.errors.count(GuestError::VirtioQueueBroken), 1);
        assert_eq!(guest.messages.take(), [0], "the configuration interrupt");
        assert_eq!(guest.read(guest.at.isr, 1), 0b10);
        guest.notify(0);
        assert_eq!(guest.errors.count(GuestError::VirtioQueueBroken), 1);
        guest.set_status(0);
        assert_eq!(guest.status(), 0);
    }
}

#[test]
fn looped_and_torn_chains_ask_for_a_reset() {
    type Prepare = fn(&Ring);
    let chains: [(&str, Prepare); 7] = [
        ("a loop", |ring| {
            ring.describe(0, BUFFERS, 1, NEXT, 1);
            ring.describe(1, BUFFERS, 1, NEXT, 0);
        }),
        ("a descriptor that follows itself", |ring| {
            ring.describe(0, BUFFERS, 1, NEXT, 0)
        }),
        ("a next index out of range", |ring| {
            ring.describe(0, BUFFERS, 1, NEXT, QUEUE_SIZE)
        }),
        ("readable after writable", |ring| {
            ring.describe(0, BUFFERS, 1, WRITE | NEXT, 1);
            ring.describe(1, BUFFERS, 1, 0, 0);
        }),
        ("an indirect table of an odd length", |ring| {
            ring.describe(0, BUFFERS, 17, 4, 0)
        }),
        ("an indirect table outside of memory", |ring| {
            ring.describe(0, RAM_BYTES, 32, 4, 0)
        }),
        ("more than 4 GiB", |ring| {
            ring.describe(0, BUFFERS, u32::MAX, NEXT, 1);
            ring.describe(1, BUFFERS, u32::MAX, 0, 0);
        }),
    ];
    for (what, prepare) in chains {
        let guest = guest();
        let mut ring = guest.bring_up(0, QUEUE_SIZE);
        prepare(&ring);
        ring.offer(0);
        guest.notify(0);
        assert_eq!(guest.status(), 0xf | NEEDS_RESET, "{what}");
        assert_eq!(
            guest.errors.count(GuestError::VirtioQueueBroken),
            1,
            "{what}"
        );
    }
    let guest = guest();
    let mut ring = guest.bring_up(0, QUEUE_SIZE);
    ring.offer(QUEUE_SIZE);
    guest.notify(0);
    assert_eq!(guest.status(), 0xf | NEEDS_RESET, "a head out of range");
}

#[test]
fn what_was_completed_before_a_broken_chain_is_announced() {
    let guest = guest();
    let mut ring = guest.bring_up(0, QUEUE_SIZE);
    ring.submit(&[(BUFFERS, 4, WRITE)]);
    ring.offer(QUEUE_SIZE);
    guest.notify(0);
    assert_eq!(ring.take_used(), [(0, 4)]);
    assert_eq!(guest.messages.take(), [1, 0]);
}

#[test]
fn one_batch_is_one_interrupt_and_the_drivers_flag_is_honoured() {
    let guest = guest();
    let mut ring = guest.bring_up(0, QUEUE_SIZE);
    for _ in 0..5 {
        ring.submit(&[(BUFFERS, 4, WRITE)]);
    }
    guest.notify(0);
    assert_eq!(ring.take_used().len(), 5);
    assert_eq!(guest.messages.take(), [1]);
    assert!(
        !ring.suppresses_notifications(),
        "an idle queue wants to be notified"
    );
    guest.notify(0);
    assert!(guest.messages.take().is_empty(), "nothing was completed");
    ring.set_flags(1);
    ring.submit(&[(BUFFERS, 4, WRITE)]);
    guest.notify(0);
    assert_eq!(ring.take_used().len(), 1);
    assert!(guest.messages.take().is_empty(), "the driver polls");
}

#[test]
fn the_used_event_decides_on_interrupts_when_negotiated() {
    let guest = guest();
    let mut ring = guest.bring_up(EVENT_IDX, QUEUE_SIZE);
    ring.set_used_event(2);
    for expected in [&[][..], &[], &[1], &[]] {
        ring.submit(&[(BUFFERS, 4, WRITE)]);
        guest.notify(0);
        assert_eq!(guest.messages.take(), expected);
    }
    ring.set_used_event(5);
    ring.set_flags(1);
    for _ in 0..4 {
        ring.submit(&[(BUFFERS, 4, WRITE)]);
    }
    guest.notify(0);
    assert_eq!(
        guest.messages.take(),
        [1],
        "passed within a batch; flags mean nothing here"
    );
}

/// An executor that can refuse, lose its device, or serve with a real thread.
#[derive(Default)]
struct Unreliable {
    refuses: AtomicBool,
    loses: AtomicBool,
    inner: InlineExecutor,
}

impl QueueExecutor for Unreliable {
    fn activate(&self, slot: DeviceSlot, device: ActiveDevice) -> Result<(), ActivateError> {
        if self.refuses.load(Ordering::SeqCst) {
            return Err(ActivateError {
                device: Some(Box::new(device)),
            });
        }
        self.inner.activate(slot, device)
    }
    fn deactivate(&self, slot: DeviceSlot) -> Option<ActiveDevice> {
        let device = self.inner.deactivate(slot);
        device.filter(|_| !self.loses.load(Ordering::SeqCst))
    }
    fn notify(&self, slot: DeviceSlot, queue_index: u16) {
        self.inner.notify(slot, queue_index);
    }
    fn eject(&self, slot: DeviceSlot) {
        self.inner.eject(slot);
    }
}

#[test]
fn a_failed_activation_asks_for_a_reset_and_can_be_tried_again() {
    let executor = Arc::new(Unreliable::default());
    let guest = TestGuest::with_executor(Box::new(Echo::default()), executor.clone());
    executor.refuses.store(true, Ordering::SeqCst);
    guest.bring_up(0, QUEUE_SIZE);
    assert_eq!(guest.status(), 0xf | NEEDS_RESET);
    executor.refuses.store(false, Ordering::SeqCst);
    guest.set_status(0);
    guest.bring_up(0, QUEUE_SIZE);
    assert_eq!(guest.status(), 0xf);
}

#[test]
fn a_lost_device_never_confirms_its_reset() {
    let executor = Arc::new(Unreliable::default());
    let guest = TestGuest::with_executor(Box::new(Echo::default()), executor.clone());
    guest.bring_up(0, QUEUE_SIZE);
    executor.loses.store(true, Ordering::SeqCst);
    for _ in 0..2 {
        guest.set_status(0);
        assert_ne!(guest.status(), 0);
        assert_eq!(guest.status() & NEEDS_RESET, NEEDS_RESET);
    }
}

enum Command {
    Activate(ActiveDevice),
    Deactivate(mpsc::Sender<ActiveDevice>),
    Notify(u16),
}

/// One device on a thread of its own.
struct ThreadExecutor(Mutex<mpsc::Sender<Command>>);

impl ThreadExecutor {
    fn new() -> Self {
        let (sender, commands) = mpsc::channel();
        thread::spawn(move || {
            let mut active: Option<ActiveDevice> = None;
            for command in commands {
                match command {
                    Command::Activate(device) => active = Some(device),
                    Command::Deactivate(reply) => {
                        reply
                            .send(active.take().expect("the device is here"))
                            .unwrap();
                    }
                    Command::Notify(queue) => {
                        while active
                            .as_mut()
                            .is_some_and(|it| it.serve(queue) == Served::More)
                        {
                        }
                    }
                }
            }
        });
        Self(Mutex::new(sender))
    }
}

impl QueueExecutor for ThreadExecutor {
    fn activate(&self, _: DeviceSlot, device: ActiveDevice) -> Result<(), ActivateError> {
        lock(&self.0).send(Command::Activate(device)).unwrap();
        Ok(())
    }
    fn deactivate(&self, _: DeviceSlot) -> Option<ActiveDevice> {
        let (reply, device) = mpsc::channel();
        lock(&self.0).send(Command::Deactivate(reply)).unwrap();
        device.recv().ok()
    }
    fn notify(&self, _: DeviceSlot, queue: u16) {
        lock(&self.0).send(Command::Notify(queue)).unwrap();
    }
    fn eject(&self, _: DeviceSlot) {
        unreachable!("its device has no medium");
    }
}

/// Says that it took a chain, then waits to be allowed to complete it.
struct Gate {
    took: mpsc::Sender<()>,
    may_complete: mpsc::Receiver<()>,
    completed: Arc<AtomicBool>,
}

impl VirtioDevice for Gate {
    fn device_type(&self) -> u16 {
        4
    }
    fn features(&self) -> u64 {
        0
    }
    fn queue_max_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE]
    }
    fn config(&self) -> Arc<DeviceConfig> {
        DeviceConfig::constant(&[])
    }
    fn activate(&mut self, _: u64) {}
    fn serve(
        &mut self,
        index: u16,
        queues: &mut Queues,
        memory: &Memory,
    ) -> Result<(), QueueBroken> {
        let queue = queues.get(index).unwrap();
        while let Some(chain) = queue.pop(memory)? {
            self.took.send(()).unwrap();
            self.may_complete.recv().unwrap();
            queue.complete(memory, chain, 1)?;
            self.completed.store(true, Ordering::SeqCst);
        }
        Ok(())
    }
    fn reset(&mut self) {}
}

#[test]
fn a_reset_while_a_queue_is_busy_ends_after_the_request_in_flight() {
    let (took, has_taken) = mpsc::channel();
    let (allow, may_complete) = mpsc::channel();
    let completed = Arc::new(AtomicBool::new(false));
    let device = Gate {
        took,
        may_complete,
        completed: completed.clone(),
    };
    let guest = TestGuest::with_executor(Box::new(device), Arc::new(ThreadExecutor::new()));
    let mut ring = guest.bring_up(0, QUEUE_SIZE);
    ring.submit(&[(BUFFERS, 4, WRITE)]);
    guest.notify(0);
    has_taken.recv().unwrap();
    thread::scope(|scope| {
        let reset = scope.spawn(|| {
            guest.set_status(0);
            (guest.status(), completed.load(Ordering::SeqCst))
        });
        assert!(!completed.load(Ordering::SeqCst));
        allow.send(()).unwrap();
        assert_eq!(reset.join().unwrap(), (0, true));
    });
    assert_eq!(ring.take_used(), [(0, 1)]);
}

/// One thing that a driver may do to a device, sensible or not.
#[derive(Clone, Debug)]
enum Act {
    Bar {
        offset: u64,
        width: usize,
        value: u64,
    },
    Config {
        offset: u16,
        width: usize,
        value: u64,
    },
    Common {
        register: u64,
        width: usize,
        value: u64,
    },
    Status(u64),
    Memory {
        address: u64,
        value: u64,
    },
    BringUp(u16),
    Notify(u16),
}

fn act() -> impl Strategy<Value = Act> {
    let width = prop::sample::select(vec![1_usize, 2, 4, 8]);
    let registers: Vec<(u64, usize)> = vec![
        (0x00, 4),
        (0x08, 4),
        (0x0c, 4),
        (0x10, 2),
        (0x14, 1),
        (0x16, 2),
        (0x18, 2),
        (0x1a, 2),
        (0x1c, 2),
        (0x20, 8),
        (0x24, 4),
        (0x28, 8),
        (0x30, 8),
        (0x34, 4),
    ];
    let value = prop_oneof![any::<u64>(), 0_u64..0x20, 0..RAM_BYTES];
    prop_oneof![
        (0_u64..0x8000, width.clone(), value.clone()).prop_map(|(offset, width, value)| Act::Bar {
            offset,
            width,
            value
        }),
        (0_u16..0x110, width, value.clone()).prop_map(|(offset, width, value)| Act::Config {
            offset,
            width,
            value
        }),
        (prop::sample::select(registers), value.clone()).prop_map(|((register, width), value)| {
            Act::Common {
                register,
                width,
                value,
            }
        }),
        prop::sample::select(vec![0_u64, 1, 3, 0xb, 0xf, 0x83]).prop_map(Act::Status),
        (0x10_0000_u64..0x10_a000, value)
            .prop_map(|(address, value)| Act::Memory { address, value }),
        prop::sample::select(vec![1_u16, 2, 16]).prop_map(Act::BringUp),
        (0_u16..4).prop_map(Act::Notify),
    ]
}

fn perform(guest: &TestGuest, act: Act) {
    use vm_memory::{Bytes, GuestAddress};
    match act {
        Act::Bar {
            offset,
            width,
            value,
        } => {
            let base = guest.function.notify_address(0).unwrap() - 0x3000;
            guest.read(base + offset, width);
            guest.write(base + offset, width, value);
        }
        Act::Config {
            offset,
            width,
            value,
        } => {
            guest.config(offset, width);
            guest.set_config(offset, width, value);
        }
        Act::Common {
            register,
            width,
            value,
        } => guest.set_common(register, width, value),
        Act::Status(status) => guest.set_status(status),
        Act::Memory { address, value } => {
            guest
                .memory
                .write_obj(value, GuestAddress(address))
                .unwrap();
        }
        Act::BringUp(size) => {
            for status in [0, 1, 3] {
                guest.set_status(status);
            }
            guest.accept_features(VERSION_1 | EVENT_IDX);
            guest.set_status(0xb);
            let mut ring = guest.set_up_queue(0, size);
            ring.submit(&[(BUFFERS, 16, WRITE)]);
            guest.set_status(0xf);
        }
        Act::Notify(queue) => guest.notify(queue),
    }
}

#[test]
fn several_vcpus_and_the_io_thread_never_block_each_other_for_good() {
    let guest =
        TestGuest::with_executor(Box::new(Echo::default()), Arc::new(ThreadExecutor::new()));
    let vcpu = |seed: u64| {
        for turn in 0..3000 {
            let choice = turn * 7 + seed;
            match choice % 11 {
                0 => perform(&guest, Act::BringUp(16)),
                1 => perform(&guest, Act::Status(0)),
                2 => guest.enable_msix(3),
                3 => guest.write(guest.at.table + 16 * (choice % 3) + 12, 4, choice % 2),
                4 => guest.set_config(guest.at.msix + 2, 2, (choice % 4) << 14),
                _ => perform(&guest, Act::Notify(0)),
            }
        }
    };
    thread::scope(|scope| {
        scope.spawn(|| vcpu(0));
        scope.spawn(|| vcpu(4));
    });
    guest.set_status(0);
    let mut ring = guest.bring_up(0, QUEUE_SIZE);
    ring.submit(&[(BUFFERS, 4, WRITE)]);
    guest.notify(0);
    guest.set_status(0);
    assert_eq!(
        ring.take_used(),
        [(0, 4)],
        "a reset waits for what was notified before it"
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn random_drivers_never_panic_and_a_reset_always_heals(
        acts in prop::collection::vec(act(), 1..60)
    ) {
        let device = Echo::default();
        let guest = TestGuest::new(Box::new(device));
        for act in acts {
            perform(&guest, act);
            let mut status = [0];
            // The window and the BAR may be off; the registers themselves are always in order.
            guest.function.config_write(4, &[2, 0]);
            guest.function.bar_read(0, 0x14, &mut status);
            let status = u64::from(status[0]);
            let driver_bits = status & 0x3f;
            prop_assert!([0, 1, 3, 0xb, 0xf].contains(&driver_bits), "status {status:#x}");
            for (register, maximum) in [(0x18, 16), (0x1c, 1)] {
                prop_assert!(guest.common(register, 2) <= maximum);
            }
        }
        guest.set_config(4, 2, 0b110);
        guest.set_status(0);
        prop_assert_eq!(guest.status(), 0);
        guest.messages.take();
        let mut ring = guest.bring_up(0, QUEUE_SIZE);
        guest.messages.take();
        ring.submit(&[(BUFFERS, 4, WRITE)]);
        guest.notify(0);
        prop_assert_eq!(ring.take_used(), [(0, 4)]);
        prop_assert_eq!(guest.messages.take(), [1]);
    }

    #[test]
    fn a_random_ring_in_guest_memory_never_panics(
        words in prop::collection::vec((0_u64..0x400, any::<u64>()), 0..64),
        available in any::<u16>(),
        heads in prop::collection::vec(any::<u16>(), 16),
        has_event_idx in any::<bool>(),
    ) {
        use vm_memory::{Bytes, GuestAddress};
        let features = if has_event_idx { EVENT_IDX } else { 0 };
        let guest = guest();
        let ring = guest.bring_up(features, QUEUE_SIZE);
        for (word, value) in words {
            let address = GuestAddress(ring.descriptors + word % 0x80 * 8);
            guest.memory.write_obj(value, address).unwrap();
        }
        for (slot, head) in (0_u64..).zip(heads) {
            let address = GuestAddress(ring.available + 4 + 2 * slot);
            guest.memory.write_obj(head % 20, address).unwrap();
        }
        ring.set_available_index(available % 24);
        guest.notify(0);
        let broken = guest.errors.count(GuestError::VirtioQueueBroken);
        prop_assert_eq!(guest.status(), if broken > 0 { 0xf | NEEDS_RESET } else { 0xf });
        guest.set_status(0);
        prop_assert_eq!(guest.status(), 0);
    }
}
