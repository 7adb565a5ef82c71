//! The registers that we set because KVM's own initial values do not serve.

use std::io;

use berth_vmm_sys::Vcpu;
use kvm_bindings::{Msrs, kvm_msr_entry};

use crate::boot::EntryState;

/// `IA32_MISC_ENABLE`: without fast strings Linux forgoes `rep movsb`.
const MISC_ENABLE: u32 = 0x1a0;
const MISC_ENABLE_FAST_STRINGS: u64 = 1;
/// `IA32_MTRR_DEF_TYPE`: MTRRs on, write-back by default; else ioremapped memory is uncached.
const MTRR_DEFAULT: u32 = 0x2ff;
const MTRR_ENABLED_WRITE_BACK: u64 = 1 << 11 | 6;

/// Sets the MSRs that every vCPU needs. Its CPUID must be set before.
pub(super) fn set_msrs(vcpu: &Vcpu) -> io::Result<()> {
    let entry = |index, data| kvm_msr_entry {
        index,
        data,
        ..Default::default()
    };
    let wanted = [
        entry(MISC_ENABLE, MISC_ENABLE_FAST_STRINGS),
        entry(MTRR_DEFAULT, MTRR_ENABLED_WRITE_BACK),
    ];
    let msrs = Msrs::from_entries(&wanted).map_err(|_| io::ErrorKind::OutOfMemory)?;
    if vcpu.set_msrs(&msrs)? == wanted.len() {
        return Ok(());
    }
    Err(io::Error::other("KVM refused an MSR"))
}

/// Sets the first vCPU's registers for its entry.
pub(super) fn set_entry(vcpu: &Vcpu, entry: EntryState) -> io::Result<()> {
    let mut system = vcpu.get_sregs()?;
    entry.apply_system(&mut system);
    vcpu.set_sregs(&system)?;
    vcpu.set_regs(&entry.general())?;
    Ok(())
}
