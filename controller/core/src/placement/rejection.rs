//! Why a node does not take a VM, as a word, and how many say so.

use std::collections::BTreeMap;

use super::Shortage;

/// Nodes per rejection, and slots per rejection as `slots.<class>.<why>`.
pub type Reasons = BTreeMap<String, u32>;

/// Why one node does not take a VM now. In the order in which it is asked.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Rejection {
    /// It is another tenant's alone.
    Dedicated,
    /// Another node was asked for, or this one and it is not the tenant's own.
    OtherNode,
    /// It is not in the zone that was asked for.
    OtherZone,
    /// It lacks a label that was asked for.
    LabelMissing,
    /// It does not have the image.
    ImageUnknown,
    /// Its KVM cannot be used.
    NoKvm,
    /// The VM has more vCPUs than it would ever promise.
    TooFewVcpus,
    /// The VM has more memory than it has.
    TooLittleMemory,
    /// It gets no VMs for the time being.
    Cordoned,
    /// It was not heard of for too long.
    Silent,
    /// Another VM of the group is there.
    AntiAffinity,
    /// It has as many VMs as it may have.
    VmsTaken,
    /// Its vCPUs are promised to others.
    VcpusTaken,
    /// Its disk has no room.
    DiskFull,
    /// Its memory is promised to others.
    MemoryTaken,
    /// Its slots do not do.
    Slots(Shortage),
}

impl Rejection {
    /// The word for it; of slots `slots`, as they have words of their own.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Dedicated => "dedicated",
            Self::OtherNode => "other_node",
            Self::OtherZone => "other_zone",
            Self::LabelMissing => "label_missing",
            Self::ImageUnknown => "image_unknown",
            Self::NoKvm => "no_kvm",
            Self::TooFewVcpus => "too_few_vcpus",
            Self::TooLittleMemory => "too_little_memory",
            Self::Cordoned => "cordoned",
            Self::Silent => "node_silent",
            Self::AntiAffinity => "anti_affinity",
            Self::VmsTaken => "vms_taken",
            Self::VcpusTaken => "vcpus_taken",
            Self::DiskFull => "disk_full",
            Self::MemoryTaken => "memory_taken",
            Self::Slots(_) => "slots",
        }
    }

    /// Whether an empty, online node would say the same.
    #[must_use]
    pub fn is_permanent(&self) -> bool {
        match self {
            Self::Dedicated
            | Self::OtherNode
            | Self::OtherZone
            | Self::LabelMissing
            | Self::ImageUnknown
            | Self::NoKvm
            | Self::TooFewVcpus
            | Self::TooLittleMemory => true,
            Self::Cordoned
            | Self::Silent
            | Self::AntiAffinity
            | Self::VmsTaken
            | Self::VcpusTaken
            | Self::DiskFull
            | Self::MemoryTaken => false,
            Self::Slots(shortage) => shortage.is_permanent,
        }
    }

    /// What this one node adds to the counts.
    #[must_use]
    pub fn reasons(&self) -> Reasons {
        if let Self::Slots(shortage) = self {
            shortage.reasons.clone()
        } else {
            Reasons::from([(self.code().to_owned(), 1)])
        }
    }
}

/// Rejections counted for the tenant whose VM it is: of other tenants' own nodes it learns nothing.
pub(super) fn counted(rejections: &[Rejection]) -> Reasons {
    let mut reasons = Reasons::new();
    let seen = rejections
        .iter()
        .filter(|rejection| **rejection != Rejection::Dedicated);
    for (code, count) in seen.flat_map(Rejection::reasons) {
        let sum = reasons.entry(code).or_insert(0_u32);
        *sum = sum.saturating_add(count);
    }
    if reasons.is_empty() {
        reasons.insert("no_nodes".to_owned(), 0);
    }
    reasons
}
