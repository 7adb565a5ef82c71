//! The guest physical map and the I/O ports, as constants.
//!
//! Owns every address that the guest sees before it assigns any itself. That nothing overlaps is
//! asserted when this file compiles. Nothing is allocated at run time except where RAM ends.

/// One GiB, the unit of the holes.
const GIB: u64 = 1 << 30;
/// One page.
pub const PAGE_BYTES: u64 = 4096;

/// A half-open range of guest physical addresses.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Range {
    /// First address.
    pub start: u64,
    /// First address after the range.
    pub end: u64,
}

impl Range {
    const fn new(start: u64, bytes: u64) -> Self {
        Self {
            start,
            end: start + bytes,
        }
    }

    /// Length in bytes.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        self.end - self.start
    }
}

/// The boot GDT.
pub const BOOT_GDT: Range = Range::new(0x500, 0x20);
/// `hvm_start_info` of a PVH boot.
pub const START_INFO: Range = Range::new(0x6000, 0x40);
/// The module list of a PVH boot.
pub const MODULE_LIST: Range = Range::new(0x6040, 0x40);
/// The memory map of a PVH boot, or the zero page of a bzImage boot.
pub const MEMORY_MAP: Range = Range::new(0x7000, PAGE_BYTES);
/// Page tables of a bzImage boot: one level 4, one level 3 and four level 2 pages.
pub const PAGE_TABLES: Range = Range::new(0x9000, 6 * PAGE_BYTES);
/// The kernel command line with its final NUL.
pub const CMDLINE: Range = Range::new(0x2_0000, 0x800);
/// What the guest may use below the hole of old video memory.
pub const BASE_RAM: Range = Range::new(0, 0xa_0000);
/// ACPI tables, the RSDP first. RAM that the map calls reserved.
pub const ACPI: Range = Range::new(0xe_0000, 0x1_f000);
/// What a PC has firmware in. RAM that the map calls reserved; see [`crate::boot`].
pub const FIRMWARE: Range = Range::new(0xf_f000, PAGE_BYTES);
/// Where a processor in real mode goes on after a reset, and where a kernel jumps to for one.
pub const RESET_VECTOR: Range = Range::new(0xf_fff0, 0x10);
/// Where RAM for kernels begins.
pub const KERNEL_START: u64 = 0x10_0000;

/// RAM below 4 GiB ends here at the latest.
pub const LOW_RAM_END: u64 = 3 * GIB;
/// Window for PCI BARs below 4 GiB.
pub const PCI_WINDOW: Range = Range::new(LOW_RAM_END, 640 << 20);
/// The part of it for emulated functions, which are small.
pub const EMULATED_WINDOW: Range = Range::new(PCI_WINDOW.start, 64 << 20);
/// The part of it for 32-bit BARs of passed-through functions.
pub const PASSTHROUGH_WINDOW: Range = Range {
    start: EMULATED_WINDOW.end,
    end: PCI_WINDOW.end,
};
/// PCI configuration space of bus 0. Linux wants it below 4 GiB.
pub const ECAM: Range = Range::new(0xe800_0000, 1 << 20);
/// What the memory map reserves for configuration space: room for all 256 buses.
pub const ECAM_RESERVED: Range = Range::new(ECAM.start, 256 << 20);
/// The I/O APIC's registers.
pub const IOAPIC: Range = Range::new(0xfec0_0000, PAGE_BYTES);
/// The local APICs' registers, served inside KVM.
pub const LOCAL_APIC: Range = Range::new(0xfee0_0000, 1 << 20);
/// Three pages that KVM wants on Intel hosts without unrestricted guests.
pub const TSS: Range = Range::new(0xfffb_d000, 3 * PAGE_BYTES);
/// RAM beyond the hole begins here.
pub const HIGH_RAM_START: u64 = 4 * GIB;

/// First port of the serial port, which has eight.
pub const COM1_PORT: u16 = 0x3f8;
/// Number of the serial port's ports.
pub const COM1_PORTS: u8 = 8;
/// The keyboard controller's command port, of which only the reset pulse exists.
pub const KEYBOARD_COMMAND_PORT: u16 = 0x64;
/// The pvpanic device's register, where every hypervisor has it.
pub const PANIC_PORT: u16 = 0x505;
/// The ACPI sleep control register.
pub const SLEEP_CONTROL_PORT: u16 = 0x600;
/// The ACPI sleep status register.
pub const SLEEP_STATUS_PORT: u16 = 0x601;
/// The ACPI reset register.
pub const RESET_PORT: u16 = 0x602;
/// The generic event device's status register.
pub const EVENT_STATUS_PORT: u16 = 0x603;

/// The I/O APIC pin of the serial port.
pub const COM1_PIN: u8 = 4;
/// The I/O APIC pin of the generic event device.
pub const EVENT_PIN: u8 = 5;
/// The I/O APIC's id in the MADT: beyond every local APIC's.
pub const IOAPIC_ID: u8 = 0xff;

/// In ascending order, so that one pass shows that nothing overlaps.
const ASCENDING: [Range; 15] = [
    BOOT_GDT,
    START_INFO,
    MODULE_LIST,
    MEMORY_MAP,
    PAGE_TABLES,
    CMDLINE,
    ACPI,
    FIRMWARE,
    Range::new(KERNEL_START, LOW_RAM_END - KERNEL_START),
    PCI_WINDOW,
    ECAM_RESERVED,
    IOAPIC,
    LOCAL_APIC,
    TSS,
    Range::new(HIGH_RAM_START, u64::MAX - HIGH_RAM_START),
];

const _: () = {
    let mut index = 1;
    while index < ASCENDING.len() {
        assert!(ASCENDING[index - 1].start < ASCENDING[index - 1].end);
        assert!(ASCENDING[index - 1].end <= ASCENDING[index].start);
        index += 1;
    }
    assert!(CMDLINE.end <= BASE_RAM.end);
    assert!(BASE_RAM.end <= ACPI.start && FIRMWARE.end <= KERNEL_START);
    assert!(FIRMWARE.start <= RESET_VECTOR.start && RESET_VECTOR.end == FIRMWARE.end);
    assert!(CMDLINE.bytes() > berth_api::vmm::MAX_CMDLINE_BYTES as u64);
    assert!(ECAM.end <= ECAM_RESERVED.end);
};

/// Where the guest's RAM is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RamLayout {
    /// First address after RAM below 4 GiB.
    pub low_end: u64,
    /// Bytes of RAM from 4 GiB on; 0 if all fits below.
    pub high_bytes: u64,
}

impl RamLayout {
    /// Places `bytes` of RAM: below 3 GiB first, the rest beyond the hole.
    #[must_use]
    pub fn new(bytes: u64) -> Self {
        let low_end = bytes.min(LOW_RAM_END);
        Self {
            low_end,
            high_bytes: bytes - low_end,
        }
    }

    /// The ranges to map.
    #[must_use]
    pub fn ranges(self) -> Vec<Range> {
        let mut ranges = vec![Range::new(0, self.low_end)];
        if self.high_bytes > 0 {
            ranges.push(Range::new(HIGH_RAM_START, self.high_bytes));
        }
        ranges
    }

    /// The memory map that the guest's kernel is told, ascending.
    #[must_use]
    pub fn memory_map(self) -> Vec<MapEntry> {
        let usable = |range| MapEntry {
            range,
            kind: MapKind::Usable,
        };
        let reserved = |range| MapEntry {
            range,
            kind: MapKind::Reserved,
        };
        let mut map = vec![
            usable(BASE_RAM),
            reserved(Range {
                start: ACPI.start,
                end: FIRMWARE.end,
            }),
            usable(Range::new(KERNEL_START, self.low_end - KERNEL_START)),
            reserved(ECAM_RESERVED),
            reserved(TSS),
        ];
        if self.high_bytes > 0 {
            map.push(usable(Range::new(HIGH_RAM_START, self.high_bytes)));
        }
        map
    }
}

/// What a part of the memory map is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MapKind {
    /// RAM for the kernel.
    Usable,
    /// Not RAM, or RAM that holds tables.
    Reserved,
}

impl MapKind {
    /// The number in an e820 entry and in a PVH memory map.
    #[must_use]
    pub fn number(self) -> u32 {
        match self {
            Self::Usable => 1,
            Self::Reserved => 2,
        }
    }
}

/// One entry of the memory map.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MapEntry {
    /// Where.
    pub range: Range,
    /// What for.
    pub kind: MapKind,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn usable_bytes(layout: RamLayout) -> u64 {
        layout
            .memory_map()
            .iter()
            .filter(|entry| entry.kind == MapKind::Usable)
            .map(|entry| entry.range.bytes())
            .sum()
    }

    #[test]
    fn small_memory_lies_below_the_hole() {
        let layout = RamLayout::new(128 << 20);
        assert_eq!(layout.ranges(), [Range::new(0, 128 << 20)]);
        assert_eq!(
            usable_bytes(layout),
            (128 << 20) - (KERNEL_START - BASE_RAM.end)
        );
    }

    #[test]
    fn memory_beyond_three_gib_continues_at_four() {
        let layout = RamLayout::new(6 * GIB);
        assert_eq!(
            layout.ranges(),
            [Range::new(0, 3 * GIB), Range::new(4 * GIB, 3 * GIB)]
        );
        assert_eq!(RamLayout::new(3 * GIB).high_bytes, 0);
    }

    /// Every size up to 16 GiB, those around each power of two beyond, and the largest.
    fn sizes_mib() -> impl Iterator<Item = u64> {
        use berth_api::vmm::{MAX_MEMORY_MIB, MIN_MEMORY_MIB};

        let beyond = (14..=22).flat_map(|power| {
            let size = 1_u64 << power;
            [size - 1, size, size + 1]
        });
        (MIN_MEMORY_MIB..=16 * 1024)
            .chain(beyond)
            .filter(|mib| *mib <= MAX_MEMORY_MIB)
            .chain([MAX_MEMORY_MIB])
    }

    #[test]
    fn every_size_lies_in_ranges_that_add_up_and_meet_nothing_else() {
        let devices = [PCI_WINDOW, ECAM_RESERVED, IOAPIC, LOCAL_APIC, TSS];
        for bytes in sizes_mib().map(|mib| mib << 20) {
            let ranges = RamLayout::new(bytes).ranges();
            assert_eq!(ranges.iter().map(|range| range.bytes()).sum::<u64>(), bytes);
            for range in &ranges {
                assert!(range.start < range.end);
                assert!(range.start % PAGE_BYTES == 0 && range.end % PAGE_BYTES == 0);
                let meets = |other: &Range| range.start < other.end && other.start < range.end;
                assert!(!devices.iter().any(meets), "{bytes:#x}");
            }
            assert!(ranges.windows(2).all(|pair| pair[0].end <= pair[1].start));
        }
    }

    #[test]
    fn every_map_tells_of_ram_only_where_ram_is() {
        for bytes in sizes_mib().map(|mib| mib << 20) {
            let layout = RamLayout::new(bytes);
            let ranges = layout.ranges();
            let map = layout.memory_map();
            assert!(
                map.windows(2)
                    .all(|pair| pair[0].range.end <= pair[1].range.start)
            );
            for entry in map.iter().filter(|entry| entry.kind == MapKind::Usable) {
                let is_inside = |range: &Range| {
                    range.start <= entry.range.start && entry.range.end <= range.end
                };
                assert!(ranges.iter().any(is_inside), "{bytes:#x} {entry:?}");
            }
            assert_eq!(usable_bytes(layout), bytes - (KERNEL_START - BASE_RAM.end));
        }
    }

    #[test]
    fn the_memory_map_is_ascending_and_without_overlap() {
        for mib in [32, 3072, 3073, 6144] {
            let map = RamLayout::new(mib << 20).memory_map();
            assert!(
                map.windows(2)
                    .all(|pair| pair[0].range.end <= pair[1].range.start)
            );
            assert!(map.iter().all(|entry| entry.range.bytes() > 0));
        }
    }
}
