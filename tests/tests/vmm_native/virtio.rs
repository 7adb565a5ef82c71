//! The driver's half of virtio over PCI, as small as it can be: find the functions, start one with
//! one queue, notify it.

use berth_tests::tiny_guest::{Code, Width};
use berth_vmm_machine::layout::{COM1_PORT, ECAM, PCI_WINDOW};

use crate::machine::Setup;

/// Entries of the one queue that [`start_device`] sets up.
pub(crate) const QUEUE_ENTRIES: u32 = 8;

const SLOT_BYTES: u32 = 1 << 15;
const CONFIGURATION_BYTES: u32 = 256;
const COMMAND: u8 = 0x04;
/// Memory decoding and bus mastering.
const COMMAND_ENABLE: u32 = 0x6;
const BAR0: usize = 0x10;
const FIRST_CAPABILITY: usize = 0x34;
const VIRTIO_VENDOR: u32 = 0x1af4;
const VENDOR_CAPABILITY: u8 = 0x09;
const COMMON_CONFIGURATION: u8 = 1;
const NOTIFICATION: u8 = 2;
const DEVICE_CONFIGURATION: u8 = 4;

/// Where the parts of one virtio function are, as its capabilities tell.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Function {
    /// Its PCI slot.
    pub(crate) number: u32,
    pub(crate) bar: u32,
    common: u32,
    notification: u32,
    /// The device's own configuration, 0 if it has none.
    pub(crate) device: u32,
}

pub(crate) fn address(value: u64) -> u32 {
    u32::try_from(value).unwrap()
}

/// Where the configuration space of a slot's first function is.
pub(crate) fn slot(number: u32) -> u32 {
    address(ECAM.start) + number * SLOT_BYTES
}

/// Reads the configuration space of the functions in slots 1 to `count` through a guest of the
/// machine that `setup` makes.
pub(crate) fn functions(
    setup: impl FnOnce(&Code) -> Option<Setup>,
    count: u32,
) -> Option<Vec<Function>> {
    let mut guest = Code::new();
    for number in 1..=count {
        for offset in (0..CONFIGURATION_BYTES).step_by(4) {
            guest.set_esi(slot(number) + offset);
            guest.load(Width::Double, 0).print_eax(COM1_PORT);
        }
    }
    guest.halt();
    let mut machine = setup(&guest)?.launch_with_console();
    machine.expect_running();
    let bytes = usize::try_from(CONFIGURATION_BYTES).unwrap();
    let spaces = (1..=count).map(|number| function(number, &machine.read_output(bytes)));
    Some(spaces.collect())
}

fn function(number: u32, space: &[u8]) -> Function {
    let double = |at: usize| u32::from_le_bytes(space[at..at + 4].try_into().unwrap());
    assert_eq!(
        double(0) & 0xffff,
        VIRTIO_VENDOR,
        "slot {number}: {space:02x?}"
    );
    let bar = double(BAR0) & !0xf;
    assert!(
        (PCI_WINDOW.start..PCI_WINDOW.end).contains(&u64::from(bar)),
        "{bar:#x}"
    );
    let mut found = Function {
        number,
        bar,
        common: 0,
        notification: 0,
        device: 0,
    };
    let mut capability = usize::from(space[FIRST_CAPABILITY]);
    while capability != 0 {
        let place = bar + double((capability + 8).min(252));
        match (space[capability], space[capability + 3]) {
            (VENDOR_CAPABILITY, COMMON_CONFIGURATION) => found.common = place,
            (VENDOR_CAPABILITY, NOTIFICATION) => found.notification = place,
            (VENDOR_CAPABILITY, DEVICE_CONFIGURATION) => found.device = place,
            _ => {}
        }
        capability = usize::from(space[capability + 1]);
    }
    assert!(
        found.common != 0 && found.notification != 0,
        "{found:x?} in {space:02x?}"
    );
    found
}

/// Turns memory decoding and bus mastering on.
pub(crate) fn enable(guest: &mut Code, number: u32) {
    guest
        .set_esi(slot(number))
        .set_eax(COMMAND_ENABLE)
        .store(Width::Word, COMMAND);
}

/// What a driver does to start a device with queue 0, whose descriptors, available ring and used
/// ring lie at `rings`.
pub(crate) fn start_device(guest: &mut Code, function: Function, rings: [u64; 3]) {
    start_device_with(guest, function, 0, rings);
}

/// The same for a driver that accepts `features` of the lower 32.
pub(crate) fn start_device_with(
    guest: &mut Code,
    function: Function,
    features: u32,
    rings: [u64; 3],
) {
    enable(guest, function.number);
    guest.set_esi(function.common);
    let mut write = |width, offset, value| {
        guest.set_eax(value).store(width, offset);
    };
    // Reset, ACKNOWLEDGE, DRIVER.
    for status in [0, 1, 3] {
        write(Width::Byte, 20, status);
    }
    // The features and VIRTIO_F_VERSION_1, then FEATURES_OK.
    for (select, features) in [(0, features), (1, 1)] {
        write(Width::Double, 8, select);
        write(Width::Double, 12, features);
    }
    write(Width::Byte, 20, 11);
    // Queue 0: its size and its three addresses.
    write(Width::Word, 22, 0);
    write(Width::Word, 24, QUEUE_ENTRIES);
    for (offset, ring) in [32, 40, 48].into_iter().zip(rings) {
        write(Width::Double, offset, address(ring & 0xffff_ffff));
        write(Width::Double, offset + 4, address(ring >> 32));
    }
    // Enable the queue, then DRIVER_OK.
    write(Width::Word, 28, 1);
    write(Width::Byte, 20, 15);
}

/// Tells the device that a queue has something new. Only queue 0 has its own address for sure.
pub(crate) fn notify(guest: &mut Code, function: Function, queue: u32) {
    guest
        .set_esi(function.notification)
        .set_eax(queue)
        .store(Width::Word, 0);
}
