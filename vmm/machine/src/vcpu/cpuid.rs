//! What CPUID says in the guest.
//!
//! Owns the changes to the list that KVM supports: topology (one socket, one thread per core), the
//! features that we do not serve, and the paravirtual timing leaf. The common list is made once; each
//! vCPU's list differs in its APIC id only.

use kvm_bindings::kvm_cpuid_entry2;

const INDEX_MATTERS: u32 = kvm_bindings::KVM_CPUID_FLAG_SIGNIFCANT_INDEX;

const LEAF_MAX_BASIC: u32 = 0;
const LEAF_FEATURES: u32 = 1;
const LEAF_CACHE_INTEL: u32 = 4;
const LEAF_POWER: u32 = 6;
const LEAF_EXTENDED_FEATURES: u32 = 7;
const LEAF_PMU: u32 = 0xa;
const LEAF_TOPOLOGY: u32 = 0xb;
const LEAF_TOPOLOGY_V2: u32 = 0x1f;
const LEAF_HYPERVISOR: u32 = 0x4000_0000;
const LEAF_TIMING: u32 = 0x4000_0010;
const LEAF_EXTENDED: u32 = 0x8000_0001;
const LEAF_ADDRESS_SIZES: u32 = 0x8000_0008;
const LEAF_CACHE_AMD: u32 = 0x8000_001d;
const LEAF_TOPOLOGY_AMD: u32 = 0x8000_001e;

const ECX1_VMX: u32 = 1 << 5;
const ECX1_PDCM: u32 = 1 << 15;
const ECX1_TSC_DEADLINE: u32 = 1 << 24;
const ECX1_HYPERVISOR: u32 = 1 << 31;
const EDX1_HTT: u32 = 1 << 28;
const EAX6_ARAT: u32 = 1 << 2;
const ECX7_WAITPKG: u32 = 1 << 5;
const ECX81_SVM: u32 = 1 << 2;
const ECX81_CMP_LEGACY: u32 = 1 << 1;

/// Frequency of KVM's local APIC bus, in kHz.
const APIC_BUS_KHZ: u32 = 1_000_000;

/// What the list depends on besides the host.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Topology {
    /// Number of vCPUs; their APIC ids count from 0.
    pub vcpus: u8,
    /// The guest's TSC frequency, if the host knows it.
    pub tsc_khz: Option<u32>,
}

impl Topology {
    /// Bits of an APIC id that tell the cores of the socket apart.
    fn core_bits(self) -> u32 {
        u32::from(self.vcpus).next_power_of_two().trailing_zeros()
    }
}

/// Bits of a physical address that the list tells; 36, as every processor has, if it does not.
#[must_use]
pub fn address_bits(entries: &[kvm_cpuid_entry2]) -> u32 {
    let sizes = entries
        .iter()
        .find(|entry| entry.function == LEAF_ADDRESS_SIZES);
    sizes.map_or(36, |entry| entry.eax & 0xff)
}

/// The list for all vCPUs, from what KVM supports on this host.
#[must_use]
pub fn common(supported: &[kvm_cpuid_entry2], topology: Topology) -> Vec<kvm_cpuid_entry2> {
    let mut entries: Vec<_> = supported
        .iter()
        .copied()
        .filter(|entry| ![LEAF_TOPOLOGY, LEAF_TOPOLOGY_V2, LEAF_TIMING].contains(&entry.function))
        .collect();
    let max_basic = entries
        .iter()
        .find(|entry| entry.function == LEAF_MAX_BASIC)
        .map_or(0, |entry| entry.eax);
    for entry in &mut entries {
        normalise(entry, topology);
    }
    if max_basic >= LEAF_TOPOLOGY {
        entries.extend(topology_leaf(topology));
    }
    if let Some(khz) = topology.tsc_khz {
        entries.push(kvm_cpuid_entry2 {
            function: LEAF_TIMING,
            eax: khz,
            ebx: APIC_BUS_KHZ,
            ..Default::default()
        });
    }
    entries
}

/// Writes one vCPU's APIC id wherever the list has it.
pub fn set_apic_id(entries: &mut [kvm_cpuid_entry2], apic_id: u8) {
    let id = u32::from(apic_id);
    for entry in entries {
        match entry.function {
            LEAF_FEATURES => entry.ebx = entry.ebx & 0x00ff_ffff | id << 24,
            LEAF_TOPOLOGY => entry.edx = id,
            LEAF_TOPOLOGY_AMD => {
                entry.eax = id;
                // Core id; one thread per core.
                entry.ebx = id & 0xff;
            }
            _ => {}
        }
    }
}

fn normalise(entry: &mut kvm_cpuid_entry2, topology: Topology) {
    let vcpus = u32::from(topology.vcpus);
    match entry.function {
        LEAF_FEATURES => {
            entry.ebx = entry.ebx & 0x0000_ffff | vcpus << 16;
            entry.ecx &= !(ECX1_VMX | ECX1_PDCM);
            entry.ecx |= ECX1_HYPERVISOR | ECX1_TSC_DEADLINE;
            entry.edx &= !EDX1_HTT;
            if vcpus > 1 {
                entry.edx |= EDX1_HTT;
            }
        }
        LEAF_CACHE_INTEL | LEAF_CACHE_AMD => share_cache(entry, topology),
        LEAF_POWER => {
            entry.eax = EAX6_ARAT;
            entry.ecx = 0;
        }
        LEAF_EXTENDED_FEATURES if entry.index == 0 => entry.ecx &= !ECX7_WAITPKG,
        LEAF_PMU => (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, 0, 0, 0),
        LEAF_HYPERVISOR if topology.tsc_khz.is_some() => entry.eax = entry.eax.max(LEAF_TIMING),
        LEAF_EXTENDED => {
            entry.ecx &= !(ECX81_SVM | ECX81_CMP_LEGACY);
            if vcpus > 1 {
                entry.ecx |= ECX81_CMP_LEGACY;
            }
        }
        LEAF_ADDRESS_SIZES => entry.ecx = topology.core_bits() << 12 | (vcpus - 1),
        LEAF_TOPOLOGY_AMD => (entry.ecx, entry.edx) = (0, 0),
        _ => {}
    }
}

/// Levels 1 and 2 belong to one core, level 3 to the socket.
fn share_cache(entry: &mut kvm_cpuid_entry2, topology: Topology) {
    let kind = entry.eax & 0x1f;
    if kind == 0 {
        return;
    }
    let level = entry.eax >> 5 & 0b111;
    let socket_ids = (1 << topology.core_bits()) - 1;
    let sharing = if level >= 3 { socket_ids } else { 0 };
    entry.eax = entry.eax & !(0xfff << 14) | sharing << 14;
    if entry.function == LEAF_CACHE_INTEL {
        entry.eax = entry.eax & !(0x3f << 26) | socket_ids.min(0x3f) << 26;
    }
}

/// Threads, cores, and the level that ends the list.
fn topology_leaf(topology: Topology) -> [kvm_cpuid_entry2; 3] {
    let level = |index: u32, shift: u32, count: u32, kind: u32| kvm_cpuid_entry2 {
        function: LEAF_TOPOLOGY,
        index,
        flags: INDEX_MATTERS,
        eax: shift,
        ebx: count,
        ecx: kind << 8 | index,
        ..Default::default()
    };
    [
        level(0, 0, 1, 1),
        level(1, topology.core_bits(), u32::from(topology.vcpus), 2),
        level(2, 0, 0, 0),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(function: u32, index: u32) -> kvm_cpuid_entry2 {
        kvm_cpuid_entry2 {
            function,
            index,
            eax: u32::MAX,
            ebx: u32::MAX,
            ecx: u32::MAX,
            edx: u32::MAX,
            ..Default::default()
        }
    }

    fn made(vcpus: u8, apic_id: u8) -> Vec<kvm_cpuid_entry2> {
        let supported: Vec<_> = [0, 1, 4, 6, 7, 0xa, 0xb, 0x1f, 0x4000_0000, 0x8000_0001]
            .into_iter()
            .chain([0x8000_0008, 0x8000_001d, 0x8000_001e])
            .map(|function| entry(function, 0))
            .collect();
        let mut entries = common(
            &supported,
            Topology {
                vcpus,
                tsc_khz: Some(3_000_000),
            },
        );
        set_apic_id(&mut entries, apic_id);
        entries
    }

    #[track_caller]
    fn leaf(entries: &[kvm_cpuid_entry2], function: u32, index: u32) -> kvm_cpuid_entry2 {
        let mut found = entries
            .iter()
            .filter(|entry| entry.function == function && entry.index == index);
        let first = *found.next().unwrap();
        assert!(
            found.next().is_none(),
            "leaf {function:#x}.{index} is there twice"
        );
        first
    }

    #[test]
    fn nested_virtualisation_and_the_pmu_are_hidden() {
        let entries = made(1, 0);
        assert_eq!(leaf(&entries, 1, 0).ecx & (ECX1_VMX | ECX1_PDCM), 0);
        assert_eq!(leaf(&entries, 0x8000_0001, 0).ecx & ECX81_SVM, 0);
        assert_eq!(leaf(&entries, 0xa, 0).eax, 0);
        assert_eq!(leaf(&entries, 7, 0).ecx & ECX7_WAITPKG, 0);
        assert!(entries.iter().all(|entry| entry.function != 0x1f));
    }

    #[test]
    fn the_apic_id_is_the_same_wherever_it_is_read() {
        let entries = made(5, 3);
        assert_eq!(leaf(&entries, 1, 0).ebx >> 24, 3);
        for index in 0..3 {
            assert_eq!(leaf(&entries, 0xb, index).edx, 3);
        }
        assert_eq!(leaf(&entries, 0x8000_001e, 0).eax, 3);
    }

    #[test]
    fn five_cores_take_three_bits_of_the_apic_id() {
        let entries = made(5, 0);
        assert_eq!(
            (leaf(&entries, 0xb, 1).eax, leaf(&entries, 0xb, 1).ebx),
            (3, 5)
        );
        assert_eq!(leaf(&entries, 0x8000_0008, 0).ecx, 3 << 12 | 4);
        assert_eq!(leaf(&entries, 1, 0).ebx >> 16 & 0xff, 5);
        assert_ne!(leaf(&entries, 1, 0).edx & EDX1_HTT, 0);
    }

    #[test]
    fn one_core_has_no_siblings() {
        let entries = made(1, 0);
        assert_eq!(leaf(&entries, 1, 0).edx & EDX1_HTT, 0);
        assert_eq!(leaf(&entries, 0xb, 1).eax, 0);
        assert_eq!(leaf(&entries, 0x8000_0008, 0).ecx, 0);
    }

    #[test]
    fn the_timing_leaf_is_within_the_hypervisors_range() {
        let entries = made(1, 0);
        assert!(leaf(&entries, LEAF_HYPERVISOR, 0).eax >= LEAF_TIMING);
        assert_eq!(leaf(&entries, LEAF_TIMING, 0).eax, 3_000_000);
    }
}
