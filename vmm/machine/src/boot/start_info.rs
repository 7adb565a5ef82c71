//! `hvm_start_info` of the PVH boot protocol, with its memory map and module list.

use berth_vmm_devices::memory::Memory;

use super::guest_write;
use crate::layout::{self, RamLayout, Range};
use crate::refusal::BuildMachineError;

/// `XEN_HVM_START_MAGIC_VALUE`.
const MAGIC: u32 = 0x336e_c578;
/// The version that has a memory map.
const VERSION: u32 = 1;

/// Writes the three structures; the tables' address is that of the layout.
pub(super) fn write(
    memory: &Memory,
    ram: RamLayout,
    initrd: Option<Range>,
) -> Result<(), BuildMachineError> {
    let mut map = Vec::new();
    let entries = ram.memory_map();
    for entry in &entries {
        map.extend(entry.range.start.to_le_bytes());
        map.extend(entry.range.bytes().to_le_bytes());
        map.extend(entry.kind.number().to_le_bytes());
        map.extend(0u32.to_le_bytes());
    }
    guest_write::write(memory, layout::MEMORY_MAP, "the memory map", &map)?;

    let mut modules = Vec::new();
    if let Some(initrd) = initrd {
        for field in [initrd.start, initrd.bytes(), 0, 0] {
            modules.extend(field.to_le_bytes());
        }
        guest_write::write(memory, layout::MODULE_LIST, "the module list", &modules)?;
    }

    let map_entries = u32::try_from(entries.len()).expect("the map has a handful of entries");
    let mut info = Vec::new();
    for field in [MAGIC, VERSION, 0, u32::from(initrd.is_some())] {
        info.extend(field.to_le_bytes());
    }
    let module_list = if initrd.is_some() {
        layout::MODULE_LIST.start
    } else {
        0
    };
    let addresses = [
        module_list,
        layout::CMDLINE.start,
        layout::ACPI.start,
        layout::MEMORY_MAP.start,
    ];
    for field in addresses {
        info.extend(field.to_le_bytes());
    }
    for field in [map_entries, 0] {
        info.extend(field.to_le_bytes());
    }
    guest_write::write(memory, layout::START_INFO, "the start info", &info)
}
