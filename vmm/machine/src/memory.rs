//! Guest RAM: one anonymous mapping for each range of the layout.

use std::io;

use berth_vmm_devices::memory::Memory;
use berth_vmm_sys::map_guest_ram;
use vm_memory::{GuestAddress, GuestMemoryMmap, GuestRegionMmap};

use crate::layout::{KERNEL_START, RamLayout, Range};
use crate::refusal::BuildMachineError;

/// RAM below this holds boot structures and tables here and there: a large page would be mostly
/// empty.
const SMALL_PAGES_END: u64 = 2 << 20;
const _: () = assert!(SMALL_PAGES_END > KERNEL_START);

/// Reserves address space for all RAM. Pages come when the guest or the loader touches them.
///
/// # Errors
/// If the kernel refuses the mapping.
pub fn map(ram: RamLayout) -> Result<Memory, BuildMachineError> {
    let regions = ram
        .ranges()
        .into_iter()
        .map(map_range)
        .collect::<Result<_, _>>()?;
    Ok(GuestMemoryMmap::from_regions(regions)?)
}

fn map_range(range: Range) -> Result<GuestRegionMmap<()>, BuildMachineError> {
    let failed = |cause| BuildMachineError::MapMemory {
        bytes: range.bytes(),
        cause,
    };
    let too_long = |_| failed(io::ErrorKind::OutOfMemory.into());
    let bytes = usize::try_from(range.bytes()).map_err(too_long)?;
    let small = SMALL_PAGES_END.saturating_sub(range.start);
    let small = usize::try_from(small).map_err(too_long)?;
    let region = map_guest_ram(bytes, small).map_err(failed)?;
    GuestRegionMmap::new(region, GuestAddress(range.start))
        .ok_or_else(|| failed(io::ErrorKind::InvalidInput.into()))
}
