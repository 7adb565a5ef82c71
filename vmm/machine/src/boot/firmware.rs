//! The machine's whole firmware: nine bytes at the reset vector that ask for a reset.
//!
//! Linux tries EFI and then the BIOS to restart a machine whose ACPI is hardware-reduced, before it
//! would come to the ACPI reset register: it enters real mode and jumps to the reset vector.

use berth_vmm_devices::memory::Memory;
use berth_vmm_devices::power::RESET_VALUE;

use super::guest_write;
use crate::layout;
use crate::refusal::BuildMachineError;

/// Writes the code to the reset vector.
pub(super) fn write(memory: &Memory) -> Result<(), BuildMachineError> {
    let [low, high] = layout::RESET_PORT.to_le_bytes();
    let code = [
        0xba,
        low,
        high, // mov dx, RESET_PORT
        0xb0,
        RESET_VALUE, // mov al, RESET_VALUE
        0xee,        // out dx, al
        0xf4,        // hlt
        0xeb,
        0xfd, // jmp to the hlt
    ];
    guest_write::write(memory, layout::RESET_VECTOR, "the reset vector", &code)
}
