//! vCPUs: what they look like to the guest, how the first one starts, and the loop that runs them.

pub mod cpuid;
mod gate;
mod registers;
mod run_loop;

pub use gate::Gate;
pub use run_loop::{BeforeGuest, ExitCounters, ExitKind, VcpuShared, run};

use std::io;
use std::sync::Arc;

use berth_vmm_sys::{Vcpu, Vm};
use kvm_bindings::CpuId;
use kvm_ioctls::Kvm;

use crate::boot::EntryState;
use crate::host_facts::HostFacts;
use crate::refusal::{BuildMachineError, host};
use cpuid::Topology;

/// Linux maps all physical memory into its half of what page tables of four levels span.
const FOUR_LEVEL_BITS: u32 = 46;

/// Bits of a physical address in the guest: what this host's processors have, and no more than
/// page tables of four levels make use of.
///
/// # Errors
/// If KVM does not say.
pub fn address_bits(kvm: &Kvm) -> Result<u32, BuildMachineError> {
    let supported = kvm
        .get_supported_cpuid(kvm_bindings::KVM_MAX_CPUID_ENTRIES)
        .map_err(io::Error::from)
        .map_err(host("read the supported CPUID"))?;
    Ok(cpuid::address_bits(supported.as_slice()).min(FOUR_LEVEL_BITS))
}

/// Creates all vCPUs. The first one enters the guest with `entry`; the guest starts the others.
///
/// # Errors
/// If KVM refuses any step.
pub fn create(
    kvm: &Kvm,
    vm: &Arc<Vm>,
    vcpus: u8,
    entry: EntryState,
    facts: Option<HostFacts>,
) -> Result<Vec<Vcpu>, BuildMachineError> {
    let supported = match facts {
        Some(facts) => facts.cpuid,
        None => {
            HostFacts::ask(kvm)
                .map_err(host("read the supported CPUID"))?
                .cpuid
        }
    };
    let tsc_khz = vm.tsc_khz();
    let mut entries = cpuid::common(&supported, Topology { vcpus, tsc_khz });
    (0..vcpus)
        .map(|index| {
            cpuid::set_apic_id(&mut entries, index);
            let list = CpuId::from_entries(&entries)
                .map_err(|_| host("build the CPUID list")(io::ErrorKind::OutOfMemory.into()))?;
            let vcpu = vm
                .create_vcpu(u32::from(index), &list)
                .map_err(host("create a vCPU"))?;
            registers::set_msrs(&vcpu).map_err(host("set the MSRs of a vCPU"))?;
            if index == 0 {
                registers::set_entry(&vcpu, entry).map_err(host("set the registers of a vCPU"))?;
            }
            Ok(vcpu)
        })
        .collect()
}
