//! Writing boot structures to guest memory, within the place that the layout gives them.

use berth_vmm_devices::memory::Memory;
use vm_memory::{Bytes, GuestAddress};

use crate::layout::Range;
use crate::refusal::BuildMachineError;

/// Writes `bytes` at the start of `place`; the caller's structure never exceeds its place.
pub(super) fn write(
    memory: &Memory,
    place: Range,
    what: &'static str,
    bytes: &[u8],
) -> Result<(), BuildMachineError> {
    debug_assert!(u64::try_from(bytes.len()).is_ok_and(|length| length <= place.bytes()));
    memory
        .write_slice(bytes, GuestAddress(place.start))
        .map_err(|cause| BuildMachineError::WriteGuest {
            what,
            address: place.start,
            cause,
        })
}
