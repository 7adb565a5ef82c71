//! Guest RAM: one anonymous mapping for each range of the layout.

use berth_vmm_devices::memory::Memory;
use vm_memory::{GuestAddress, GuestMemoryMmap};

use crate::layout::RamLayout;
use crate::refusal::{BuildMachineError, Refusal};

/// Reserves address space for all RAM. Pages come when the guest or the loader touches them.
///
/// # Errors
/// If the kernel refuses the mapping.
pub fn map(ram: RamLayout) -> Result<Memory, BuildMachineError> {
    let ranges = ram.ranges();
    let bytes = ranges.iter().map(|range| range.bytes()).sum();
    let pieces: Vec<_> = ranges
        .iter()
        .map(|range| Ok((GuestAddress(range.start), usize::try_from(range.bytes())?)))
        .collect::<Result<_, std::num::TryFromIntError>>()
        .map_err(|_| {
            Refusal::new(
                "memory_mib",
                "this host cannot address so much",
                "ask for less memory",
            )
        })?;
    GuestMemoryMmap::from_ranges(&pieces)
        .map_err(|cause| BuildMachineError::MapMemory { bytes, cause })
}
