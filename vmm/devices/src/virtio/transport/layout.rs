//! Where everything of a virtio function is: the one BAR, the capabilities that describe it and
//! the configuration space that carries them.

use crate::pci::bar::{BarKind, BarRequest};
use crate::pci::config_space::{ConfigSpace, PciIdentity};
use crate::pci::msix::MSIX_ENTRY_BYTES;

/// The BAR register of the only BAR.
pub(super) const BAR_INDEX: u8 = 0;
/// Bytes between the notification addresses of two queues.
pub(super) const NOTIFY_MULTIPLIER: u32 = 4;
/// Length of the common configuration: all registers up to `queue_device`.
pub(super) const COMMON_BYTES: u32 = 0x38;

const COMMON_START: u64 = 0x0000;
const ISR_START: u64 = 0x1000;
const DEVICE_START: u64 = 0x2000;
pub(super) const NOTIFY_START: u64 = 0x3000;
/// The vector table and the pending bits have pages of their own, so that a table could be mapped
/// or trapped apart from the rest.
const TABLE_START: u64 = 0x4000;
const PENDING_START: u64 = 0x6000;
const BAR_BYTES: u64 = 0x8000;

const VENDOR_ID: u16 = 0x1af4;
/// Modern devices have this plus their virtio device id as PCI device id.
const DEVICE_ID_BASE: u16 = 0x1040;
/// 1 and above for devices without a legacy interface.
const REVISION: u8 = 1;

const CAPABILITY_VENDOR: u8 = 0x09;
const CAPABILITY_MSIX: u8 = 0x11;

const TYPE_COMMON: u8 = 1;
const TYPE_NOTIFY: u8 = 2;
const TYPE_ISR: u8 = 3;
const TYPE_DEVICE: u8 = 4;
const TYPE_CONFIG_WINDOW: u8 = 5;

/// Most queues of a device: each has a notification address and a vector, and one more vector is
/// for configuration changes.
pub(super) const MAX_QUEUES: u16 = 256;
const _: () = assert!(MAX_QUEUES as u64 * NOTIFY_MULTIPLIER as u64 <= TABLE_START - NOTIFY_START);
const _: () = assert!((MAX_QUEUES as u64 + 1) * MSIX_ENTRY_BYTES <= PENDING_START - TABLE_START);

/// The BAR that every virtio function asks for.
pub(super) const BAR_REQUEST: BarRequest = BarRequest {
    index: BAR_INDEX,
    bytes: BAR_BYTES,
    kind: BarKind::Memory32,
};

/// What an offset into the BAR addresses, with the offset into it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Region {
    Common(u64),
    Isr(u64),
    Device(u64),
    Notify(u64),
    Table(u64),
    Pending(u64),
}

impl Region {
    pub(super) fn at(offset: u64) -> Option<Self> {
        match offset {
            COMMON_START..ISR_START => Some(Self::Common(offset - COMMON_START)),
            ISR_START..DEVICE_START => Some(Self::Isr(offset - ISR_START)),
            DEVICE_START..NOTIFY_START => Some(Self::Device(offset - DEVICE_START)),
            NOTIFY_START..TABLE_START => Some(Self::Notify(offset - NOTIFY_START)),
            TABLE_START..PENDING_START => Some(Self::Table(offset - TABLE_START)),
            PENDING_START..BAR_BYTES => Some(Self::Pending(offset - PENDING_START)),
            _ => None,
        }
    }
}

/// Places of the capabilities whose registers have effects.
#[derive(Clone, Copy, Debug)]
pub(super) struct CapabilityPlaces {
    /// The `PCI_CFG` window.
    pub(super) window: u16,
    /// MSI-X.
    pub(super) msix: u16,
}

/// Offset of the window's BAR number into its capability.
pub(super) const WINDOW_BAR: u16 = 4;
/// Offset of the window's offset into its capability.
pub(super) const WINDOW_OFFSET: u16 = 8;
/// Offset of the window's length into its capability.
pub(super) const WINDOW_LENGTH: u16 = 12;
/// Offset of the window's data register into its capability.
pub(super) const WINDOW_DATA: u16 = 16;
/// Offset of the message control word into the MSI-X capability.
pub(super) const MSIX_CONTROL: u16 = 2;

/// The configuration space of a device: capabilities in the order in which drivers look for them.
pub(super) fn config_space(
    device_type: u16,
    config_bytes: u32,
    queues: u32,
    vectors: u16,
) -> (ConfigSpace, CapabilityPlaces) {
    let device = DEVICE_ID_BASE.saturating_add(device_type);
    let mut space = ConfigSpace::new(PciIdentity {
        vendor: VENDOR_ID,
        device,
        revision: REVISION,
        class: class(device_type),
        subsystem_vendor: VENDOR_ID,
        subsystem: device,
    });
    add_structure(&mut space, TYPE_COMMON, COMMON_START, COMMON_BYTES, &[]);
    let notify_bytes = queues.max(1) * NOTIFY_MULTIPLIER;
    let multiplier = NOTIFY_MULTIPLIER.to_le_bytes();
    add_structure(
        &mut space,
        TYPE_NOTIFY,
        NOTIFY_START,
        notify_bytes,
        &multiplier,
    );
    add_structure(&mut space, TYPE_ISR, ISR_START, 1, &[]);
    if config_bytes > 0 {
        add_structure(&mut space, TYPE_DEVICE, DEVICE_START, config_bytes, &[]);
    }
    let window = add_window(&mut space);
    let msix = add_msix(&mut space, vectors);
    (space, CapabilityPlaces { window, msix })
}

/// Class, subclass and interface that fit the virtio device; "unassigned" where none does.
fn class(device_type: u16) -> u32 {
    match device_type {
        1 => 0x02_00_00,
        2 => 0x01_80_00,
        _ => 0xff_00_00,
    }
}

fn add_structure(space: &mut ConfigSpace, kind: u8, start: u64, bytes: u32, more: &[u8]) {
    let start = u32::try_from(start).expect("regions lie below 4 GiB");
    let mut body = structure_body(kind, BAR_INDEX, start, bytes, more.len());
    body.extend_from_slice(more);
    add(space, CAPABILITY_VENDOR, &body, &[]);
}

fn add_window(space: &mut ConfigSpace) -> u16 {
    let mut body = structure_body(TYPE_CONFIG_WINDOW, 0, 0, 0, 4);
    body.extend_from_slice(&[0; 4]);
    // The body starts 2 bytes into the capability. BAR, offset and length are the driver's; the
    // data register is no storage.
    let mut writable = vec![0; body.len()];
    writable[usize::from(WINDOW_BAR - 2)] = 0xff;
    writable[usize::from(WINDOW_OFFSET - 2)..usize::from(WINDOW_DATA - 2)].fill(0xff);
    add(space, CAPABILITY_VENDOR, &body, &writable)
}

fn add_msix(space: &mut ConfigSpace, vectors: u16) -> u16 {
    let last = vectors.saturating_sub(1);
    let place = |start: u64| {
        let start = u32::try_from(start).expect("regions lie below 4 GiB");
        start | u32::from(BAR_INDEX)
    };
    let mut body = last.to_le_bytes().to_vec();
    body.extend_from_slice(&place(TABLE_START).to_le_bytes());
    body.extend_from_slice(&place(PENDING_START).to_le_bytes());
    // Enable and function mask.
    add(space, CAPABILITY_MSIX, &body, &[0x00, 0xc0])
}

/// The fields of `struct virtio_pci_cap` after its two header bytes.
fn structure_body(kind: u8, bar: u8, start: u32, bytes: u32, more: usize) -> Vec<u8> {
    let length = u8::try_from(16 + more).expect("a capability is shorter than 256 bytes");
    let mut body = vec![length, kind, bar, 0, 0, 0];
    body.extend_from_slice(&start.to_le_bytes());
    body.extend_from_slice(&bytes.to_le_bytes());
    body
}

fn add(space: &mut ConfigSpace, id: u8, body: &[u8], writable: &[u8]) -> u16 {
    let place = space.add_capability(id, body, writable);
    u16::from(place.expect("six short capabilities fit into 192 bytes"))
}
