//! One node and one demand: does it fit, and how well.

use std::cmp::Reverse;

use super::{Candidate, Demand, Fit, Rejection, Score, VCPU_OVERCOMMIT, slots};
use crate::liveness::Liveness;

/// How well the VM would fit on the node, or why it does not take it. What no time would change is
/// asked first, so that a full node of the wrong kind is of the wrong kind.
pub(super) fn judge(demand: &Demand, node: &Candidate) -> Result<Fit, Rejection> {
    suits_wishes(demand, node)?;
    is_large_enough(demand, node)?;
    let slots = slots::choose(&demand.slots, &node.slots, demand.wishes.is_numa_strict);
    if let Err(shortage) = &slots
        && shortage.is_permanent
    {
        return Err(Rejection::Slots(shortage.clone()));
    }
    is_open(demand, node)?;
    let choice = slots.map_err(Rejection::Slots)?;
    let memory_left_mib = Reverse(has_room(demand, node)?);
    let policy = &node.policy;
    Ok(Fit {
        score: Score {
            is_reserved: policy.is_reserved,
            group_vms: demand.wishes.apart.as_ref().map_or(0, |_| node.group.vms),
            is_shared: policy.dedicated_to.is_none(),
            is_numa_split: !choice.is_numa_local,
            memory_left_mib,
        },
        slots: choice.slots,
    })
}

/// Whether the tenant may have it and asked for such a node.
fn suits_wishes(demand: &Demand, node: &Candidate) -> Result<(), Rejection> {
    let (wishes, policy) = (&demand.wishes, &node.policy);
    let is_own = policy.dedicated_to.as_ref() == Some(&demand.tenant);
    if policy.dedicated_to.is_some() && !is_own {
        return Err(Rejection::Dedicated);
    }
    // A shared node is nobody's to name: that it exists is not told either.
    if wishes
        .node
        .is_some_and(|wished| wished != node.node_id || !is_own)
    {
        return Err(Rejection::OtherNode);
    }
    if wishes.zone.is_some() && wishes.zone != policy.zone {
        return Err(Rejection::OtherZone);
    }
    let has = |(key, value): (&String, &String)| policy.labels.get(key) == Some(value);
    if !wishes.labels.iter().all(has) {
        return Err(Rejection::LabelMissing);
    }
    Ok(())
}

/// Whether it could take the VM if it were empty.
fn is_large_enough(demand: &Demand, node: &Candidate) -> Result<(), Rejection> {
    if !node.has_image {
        return Err(Rejection::ImageUnknown);
    }
    if !node.capacity.kvm {
        return Err(Rejection::NoKvm);
    }
    if demand.vcpus > most_vcpus(node) {
        return Err(Rejection::TooFewVcpus);
    }
    if demand.memory_mib > node.capacity.memory_mib {
        return Err(Rejection::TooLittleMemory);
    }
    Ok(())
}

/// Whether it takes VMs, and one of this group.
fn is_open(demand: &Demand, node: &Candidate) -> Result<(), Rejection> {
    if node.policy.is_cordoned {
        return Err(Rejection::Cordoned);
    }
    match node.liveness {
        Liveness::Online => {}
        Liveness::Suspect | Liveness::Unreachable => return Err(Rejection::Silent),
    }
    let is_apart = demand.wishes.apart.as_ref().is_none_or(|apart| {
        node.group.strict_vms == 0 && (node.group.vms == 0 || !apart.is_required)
    });
    if !is_apart {
        return Err(Rejection::AntiAffinity);
    }
    Ok(())
}

/// Memory that would be left, in MiB.
fn has_room(demand: &Demand, node: &Candidate) -> Result<u64, Rejection> {
    if node.policy.max_vms.is_some_and(|most| node.vms >= most) {
        return Err(Rejection::VmsTaken);
    }
    if demand.vcpus > most_vcpus(node).saturating_sub(node.vcpus_used) {
        return Err(Rejection::VcpusTaken);
    }
    if demand.disk_mib > node.capacity.disk_mib {
        return Err(Rejection::DiskFull);
    }
    node.capacity
        .memory_mib
        .saturating_sub(node.memory_used_mib)
        .checked_sub(demand.memory_mib)
        .ok_or(Rejection::MemoryTaken)
}

fn most_vcpus(node: &Candidate) -> u32 {
    node.capacity.vcpus.saturating_mul(VCPU_OVERCOMMIT)
}
