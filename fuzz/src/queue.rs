//! One device with one queue in guest memory that the input fills, without any transport.
//!
//! An input is: features, size exponent, addresses of the three rings, what the guest does between
//! two calls of the device, then the content of memory from address 0.

use std::sync::Arc;

use berth_vmm_devices::guest_error::GuestErrors;
use berth_vmm_devices::memory::Memory;
use berth_vmm_devices::pci::msix::Msix;
use berth_vmm_devices::virtio::device::{Served, VirtioDevice};
use berth_vmm_devices::virtio::executor::ActiveDevice;
use berth_vmm_devices::virtio::interrupt::VirtioInterrupt;
use berth_vmm_devices::virtio::queue::{QueueAddresses, VirtQueue};
use vm_memory::{Bytes, GuestAddress};

use crate::input::Input;
use crate::messages::Messages;

const LOW_BYTES: usize = 0x8000;
const HIGH_START: u64 = 0x1_0000;
const HIGH_BYTES: usize = 0x4000;
/// Calls of the device; between two of them the guest changes a word of memory.
pub const CALLS: usize = 4;
const EVENT_IDX: u64 = 1 << 29;

/// Lets `device` serve the queue that `input` describes; `after_each` looks at the device's
/// surroundings after every call.
///
/// # Panics
/// If a broken queue is served any further, or the device takes more than its queue's features
/// allow.
pub fn serve_device(device: Box<dyn VirtioDevice>, input: &mut Input<'_>, after_each: impl Fn()) {
    serve_queue(device, 0, input, after_each);
}

/// The same with a medium that is taken out before call number `ejected_at`, counted from 0, if there
/// are so many.
///
/// # Panics
/// As [`serve_device`].
pub fn serve_medium(
    device: Box<dyn VirtioDevice>,
    ejected_at: usize,
    input: &mut Input<'_>,
    after_each: impl Fn(),
) {
    serve_between(device, 0, input, after_each, |call, active| {
        if call == ejected_at {
            active.eject();
        }
    });
}

/// The same with the queue being number `index` of the device.
///
/// # Panics
/// As [`serve_device`].
pub fn serve_queue(
    device: Box<dyn VirtioDevice>,
    index: u16,
    input: &mut Input<'_>,
    after_each: impl Fn(),
) {
    serve_between(device, index, input, after_each, |_, _| ());
}

fn serve_between(
    mut device: Box<dyn VirtioDevice>,
    index: u16,
    input: &mut Input<'_>,
    after_each: impl Fn(),
    before_each: impl Fn(usize, &mut ActiveDevice),
) {
    let ranges = [
        (GuestAddress(0), LOW_BYTES),
        (GuestAddress(HIGH_START), HIGH_BYTES),
    ];
    let memory = Arc::new(Memory::from_ranges(&ranges).expect("memory can be mapped"));
    let errors = Arc::new(GuestErrors::default());
    let features = u64::from(input.byte());
    let has_event_idx = features & 1 != 0;
    let addresses = QueueAddresses {
        size: 1 << (input.byte() % 9),
        descriptors: u64::from(input.word()) << 4,
        available: u64::from(input.word()) << 1,
        used: u64::from(input.word()) << 2,
    };
    let writes = [(); CALLS].map(|()| (input.word(), input.word()));
    let content = input.rest();
    let content = &content[..content.len().min(LOW_BYTES)];
    memory
        .write_slice(content, GuestAddress(0))
        .expect("the content fits");
    let Ok(queue) = VirtQueue::new(addresses, has_event_idx, &memory, errors.clone()) else {
        return;
    };
    // Bit 1 onwards is the device's: 9 is the flush feature of a disk.
    let event_idx = if has_event_idx { EVENT_IDX } else { 0 };
    device.activate((features >> 1) << 9 | event_idx);
    let messages = Arc::new(Messages::default());
    let msix = Msix::new(index + 2, messages, errors.clone());
    let interrupt = Arc::new(VirtioInterrupt::new(usize::from(index) + 1, msix));
    let mut queues: Vec<_> = (0..index).map(|_| None).collect();
    queues.push(Some(queue));
    let mut active = ActiveDevice::new(device, queues, memory.clone(), interrupt, errors);
    let mut is_broken = false;
    for (call, (address, value)) in writes.into_iter().enumerate() {
        before_each(call, &mut active);
        let before = is_broken.then(|| snapshot(&memory));
        let mut served = active.serve(index);
        for source in 0..active.source_count() {
            served = active.source_ready(source);
        }
        after_each();
        if let Some(before) = before {
            assert_eq!(served, Served::NeedsReset);
            assert!(before == snapshot(&memory), "a broken queue was served");
        }
        is_broken |= served == Served::NeedsReset;
        // Where there is no RAM the guest's move is lost.
        memory
            .write_obj(value, GuestAddress(address.into()))
            .unwrap_or(());
    }
}

fn snapshot(memory: &Memory) -> Vec<u8> {
    let mut bytes = vec![0; LOW_BYTES + HIGH_BYTES];
    let (low, high) = bytes.split_at_mut(LOW_BYTES);
    memory
        .read_slice(low, GuestAddress(0))
        .expect("low RAM is there");
    memory
        .read_slice(high, GuestAddress(HIGH_START))
        .expect("high RAM is there");
    bytes
}
