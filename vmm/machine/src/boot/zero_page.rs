//! `boot_params`, the zero page of Linux's own boot protocol.

use berth_vmm_devices::memory::Memory;

use super::bzimage::BzImage;
use super::guest_write;
use crate::layout::{self, RamLayout, Range};
use crate::refusal::BuildMachineError;

/// A boot loader without a number of its own.
const LOADER_UNDEFINED: u8 = 0xff;

const RSDP_ADDRESS: usize = 0x070;
const RAMDISK_HIGH: usize = 0x0c0;
const RAMDISK_SIZE_HIGH: usize = 0x0c4;
const CMDLINE_HIGH: usize = 0x0c8;
const E820_COUNT: usize = 0x1e8;
const LOADER_KIND: usize = 0x210;
const RAMDISK: usize = 0x218;
const RAMDISK_SIZE: usize = 0x21c;
const CMDLINE: usize = 0x228;
const E820_TABLE: usize = 0x2d0;
const PAGE: usize = 4096;

/// Writes the zero page, beginning with the image's own `setup_header`.
pub(super) fn write(
    memory: &Memory,
    setup_header: &[u8],
    ram: RamLayout,
    initrd: Option<Range>,
) -> Result<(), BuildMachineError> {
    let mut page = vec![0; PAGE];
    put(&mut page, BzImage::HEADER_START, setup_header);
    put(&mut page, RSDP_ADDRESS, &layout::ACPI.start.to_le_bytes());
    page[LOADER_KIND] = LOADER_UNDEFINED;
    put_split(&mut page, CMDLINE, CMDLINE_HIGH, layout::CMDLINE.start);
    if let Some(initrd) = initrd {
        put_split(&mut page, RAMDISK, RAMDISK_HIGH, initrd.start);
        put_split(&mut page, RAMDISK_SIZE, RAMDISK_SIZE_HIGH, initrd.bytes());
    }
    let map = ram.memory_map();
    page[E820_COUNT] = u8::try_from(map.len()).expect("the map has a handful of entries");
    let mut table = Vec::new();
    for entry in map {
        table.extend(entry.range.start.to_le_bytes());
        table.extend(entry.range.bytes().to_le_bytes());
        table.extend(entry.kind.number().to_le_bytes());
    }
    put(&mut page, E820_TABLE, &table);
    guest_write::write(memory, layout::MEMORY_MAP, "the zero page", &page)
}

fn put(page: &mut [u8], offset: usize, bytes: &[u8]) {
    page[offset..offset + bytes.len()].copy_from_slice(bytes);
}

/// Writes a 64-bit value whose halves the protocol keeps apart.
fn put_split(page: &mut [u8], low: usize, high: usize, value: u64) {
    let bytes = value.to_le_bytes();
    put(page, low, &bytes[..4]);
    put(page, high, &bytes[4..]);
}
