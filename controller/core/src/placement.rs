//! Which node gets a VM, and why the others do not.
//!
//! Deterministic: of the nodes that can take it the one with the least [`Score`] wins, the older id on
//! a tie. Memory is never promised twice; vCPUs are, up to [`VCPU_OVERCOMMIT`]. A VM with slots gets
//! them all on one node and waits for none that is silent: a claim is made with the VM or not at all.
//!
//! What is decided here is a proposal. The store makes it and takes it in one writing transaction, and
//! its own conditions are what keeps two VMs off one slot.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use berth_api::agent::Capacity;
use berth_api::ids::{NodeId, SlotId, TenantId};

use crate::liveness::Liveness;

mod judge;
mod rejection;
mod slots;

pub use rejection::{Reasons, Rejection};
pub use slots::{Shortage, SlotCandidate, SlotWish};

/// vCPUs promised per logical CPU. A guess, the default of OpenStack's scheduler for many years;
/// to be replaced by a per-node setting when steal time is measured.
pub const VCPU_OVERCOMMIT: u32 = 16;

/// What is to be placed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Demand {
    /// Whose VM it is.
    pub tenant: TenantId,
    /// Number of vCPUs.
    pub vcpus: u32,
    /// Memory in MiB.
    pub memory_mib: u64,
    /// Root disk in MiB.
    pub disk_mib: u64,
    /// Slots.
    pub slots: Vec<SlotWish>,
    /// Where it may and should go.
    pub wishes: Wishes,
}

/// Where a VM may and should go, as its tenant wishes.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Wishes {
    /// Only this node, and only if it is dedicated to the tenant.
    pub node: Option<NodeId>,
    /// Only nodes of this zone.
    pub zone: Option<String>,
    /// Only nodes with all these labels.
    pub labels: BTreeMap<String, String>,
    /// Not where others of a group are.
    pub apart: Option<Apart>,
    /// Only where all slots are of one NUMA node.
    pub is_numa_strict: bool,
}

/// A group of one tenant's VMs that are to be on different nodes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Apart {
    /// The tenant's name of the group.
    pub group: String,
    /// Rather no node than one where another of the group is.
    pub is_required: bool,
}

/// A node as placement sees it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Candidate {
    /// Which node.
    pub node_id: NodeId,
    /// How alive it looks.
    pub liveness: Liveness,
    /// What it said that it can give.
    pub capacity: Capacity,
    /// Whether it has the image.
    pub has_image: bool,
    /// What operators have set.
    pub policy: NodePolicy,
    /// VMs that are placed there.
    pub vms: u32,
    /// vCPUs promised to its VMs.
    pub vcpus_used: u32,
    /// Memory promised to its VMs, in MiB.
    pub memory_used_mib: u64,
    /// VMs there of the group that the demand wants to be apart from.
    pub group: GroupHere,
    /// Its slots; may be left empty for a demand without slots.
    pub slots: Vec<SlotCandidate>,
}

/// What operators have set for a node.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct NodePolicy {
    /// It gets no VMs for the time being.
    pub is_cordoned: bool,
    /// It gets VMs that fit nowhere else.
    pub is_reserved: bool,
    /// It is this tenant's alone.
    pub dedicated_to: Option<TenantId>,
    /// Its zone, if it has one.
    pub zone: Option<String>,
    /// Labels that VMs can ask for.
    pub labels: BTreeMap<String, String>,
    /// VMs that it may have at once, if that is limited.
    pub max_vms: Option<u32>,
}

/// VMs of one group on one node.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct GroupHere {
    /// All of them.
    pub vms: u32,
    /// Those that rather run nowhere than beside another of the group.
    pub strict_vms: u32,
}

/// How well a node suits: less is better, the first difference decides.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Score {
    /// It is kept back for what fits nowhere else.
    pub is_reserved: bool,
    /// VMs of the same group that are there.
    pub group_vms: u32,
    /// It is not the tenant's own.
    pub is_shared: bool,
    /// The slots are of several NUMA nodes, or of none that is known.
    pub is_numa_split: bool,
    /// Memory that would be left, in MiB.
    pub memory_left_mib: Reverse<u64>,
}

/// That a node can take a VM.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Fit {
    /// How well.
    pub score: Score,
    /// The slots that the VM would get there.
    pub slots: Vec<SlotId>,
}

/// What is said of one node.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Verdict {
    /// Which node.
    pub node_id: NodeId,
    /// How it would be, or why not.
    pub outcome: Result<Fit, Rejection>,
}

/// What becomes of a demand. The reasons are its tenant's to read.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Decision {
    /// This node takes it.
    Chosen(Placement),
    /// A node that is silent could take it; wait for that node.
    Wait(Reasons),
    /// Nodes of the right kind are full.
    NoCapacity(Reasons),
    /// No node could take it even if it were empty.
    Impossible(Reasons),
}

/// Where a VM goes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Placement {
    /// The node.
    pub node_id: NodeId,
    /// The slots that it gets there.
    pub slots: Vec<SlotId>,
}

/// Choose a node.
#[must_use]
pub fn place(demand: &Demand, nodes: &[Candidate]) -> Decision {
    let mut rejections = Vec::new();
    let mut best: Option<(Score, Placement)> = None;
    for node in nodes {
        match judge::judge(demand, node) {
            Err(rejection) => rejections.push(rejection),
            Ok(Fit { score, slots }) => {
                let better = best
                    .as_ref()
                    .is_none_or(|(least, chosen)| (score, node.node_id) < (*least, chosen.node_id));
                if better {
                    let node_id = node.node_id;
                    best = Some((score, Placement { node_id, slots }));
                }
            }
        }
    }
    if let Some((_, placement)) = best {
        return Decision::Chosen(placement);
    }
    let reasons = rejection::counted(&rejections);
    if demand.slots.is_empty() && rejections.contains(&Rejection::Silent) {
        Decision::Wait(reasons)
    } else if rejections.iter().any(|rejection| !rejection.is_permanent()) {
        Decision::NoCapacity(reasons)
    } else {
        Decision::Impossible(reasons)
    }
}

/// What [`place`] thinks of each node: those that can take the VM first, the one that it would choose
/// at their head.
#[must_use]
pub fn verdicts(demand: &Demand, nodes: &[Candidate]) -> Vec<Verdict> {
    let mut verdicts: Vec<Verdict> = nodes
        .iter()
        .map(|node| Verdict {
            node_id: node.node_id,
            outcome: judge::judge(demand, node),
        })
        .collect();
    verdicts.sort_by_key(|verdict| {
        let score = verdict.outcome.as_ref().ok().map(|fit| fit.score);
        (score.is_none(), score, verdict.node_id)
    });
    verdicts
}

#[cfg(test)]
mod tests;
