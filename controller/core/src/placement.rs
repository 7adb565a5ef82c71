//! Which node gets a VM, and why the others do not.
//!
//! Deterministic: the node with the most memory left wins, the older id on a tie. Memory is never
//! promised twice; vCPUs are, up to [`VCPU_OVERCOMMIT`]. A VM with slots gets them all on one node and
//! waits for none that is silent: a claim is made with the VM or not at all.

use std::collections::BTreeMap;

use berth_api::agent::Capacity;
use berth_api::ids::{NodeId, SlotId};

use crate::liveness::Liveness;

mod slots;

pub use slots::{SlotCandidate, SlotWish};

/// vCPUs promised per logical CPU. A guess, the default of OpenStack's scheduler for many years;
/// to be replaced by a per-node setting when steal time is measured.
pub const VCPU_OVERCOMMIT: u32 = 16;

/// What is to be placed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Demand {
    /// Number of vCPUs.
    pub vcpus: u32,
    /// Memory in MiB.
    pub memory_mib: u64,
    /// Root disk in MiB.
    pub disk_mib: u64,
    /// Slots.
    pub slots: Vec<SlotWish>,
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
    /// vCPUs promised to its VMs.
    pub vcpus_used: u32,
    /// Memory promised to its VMs, in MiB.
    pub memory_used_mib: u64,
    /// Its slots; may be left empty for a demand without slots.
    pub slots: Vec<SlotCandidate>,
}

/// Nodes per rejection, and slots per rejection as `slots.<class>.<why>`.
pub type Reasons = BTreeMap<String, u32>;

/// What becomes of a demand.
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

/// Why one node does not take it now.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Rejection {
    NoKvm,
    ImageUnknown,
    TooFewVcpus,
    TooLittleMemory,
    Silent,
    VcpusTaken,
    MemoryTaken,
    DiskFull,
    Slots(slots::Shortage),
}

impl Rejection {
    fn count_in(&self, reasons: &mut Reasons) {
        let mut add = |code: &str, count: u32| {
            let sum = reasons.entry(code.to_owned()).or_insert(0_u32);
            *sum = sum.saturating_add(count);
        };
        let code = match self {
            Self::NoKvm => "no_kvm",
            Self::ImageUnknown => "image_unknown",
            Self::TooFewVcpus => "too_few_vcpus",
            Self::TooLittleMemory => "too_little_memory",
            Self::Silent => "node_silent",
            Self::VcpusTaken => "vcpus_taken",
            Self::MemoryTaken => "memory_taken",
            Self::DiskFull => "disk_full",
            Self::Slots(shortage) => {
                for (code, count) in &shortage.reasons {
                    add(code, *count);
                }
                return;
            }
        };
        add(code, 1);
    }

    /// Whether an empty, online node would say the same.
    fn is_permanent(&self) -> bool {
        match self {
            Self::NoKvm | Self::ImageUnknown | Self::TooFewVcpus | Self::TooLittleMemory => true,
            Self::Silent | Self::VcpusTaken | Self::MemoryTaken | Self::DiskFull => false,
            Self::Slots(shortage) => shortage.is_permanent,
        }
    }
}

/// Choose a node.
#[must_use]
pub fn place(demand: &Demand, nodes: &[Candidate]) -> Decision {
    let mut rejections = Vec::new();
    let mut best: Option<(u64, Placement)> = None;
    for node in nodes {
        match judge(demand, node) {
            Err(rejection) => rejections.push(rejection),
            Ok((left, slots)) => {
                let better = best.as_ref().is_none_or(|(most, chosen)| {
                    left > *most || (left == *most && node.node_id < chosen.node_id)
                });
                if better {
                    let node_id = node.node_id;
                    best = Some((left, Placement { node_id, slots }));
                }
            }
        }
    }
    if let Some((_, placement)) = best {
        return Decision::Chosen(placement);
    }
    let reasons = counted(&rejections);
    if demand.slots.is_empty() && rejections.contains(&Rejection::Silent) {
        Decision::Wait(reasons)
    } else if rejections.iter().any(|rejection| !rejection.is_permanent()) {
        Decision::NoCapacity(reasons)
    } else {
        Decision::Impossible(reasons)
    }
}

/// Memory that would be left on the node and the slots to take there, or why it does not take the VM.
fn judge(demand: &Demand, node: &Candidate) -> Result<(u64, Vec<SlotId>), Rejection> {
    let vcpus = node.capacity.vcpus.saturating_mul(VCPU_OVERCOMMIT);
    let memory = node.capacity.memory_mib;
    if !node.has_image {
        return Err(Rejection::ImageUnknown);
    }
    if !node.capacity.kvm {
        return Err(Rejection::NoKvm);
    }
    if demand.vcpus > vcpus {
        return Err(Rejection::TooFewVcpus);
    }
    if demand.memory_mib > memory {
        return Err(Rejection::TooLittleMemory);
    }
    let slots = slots::choose(&demand.slots, &node.slots);
    if let Err(shortage) = &slots
        && shortage.is_permanent
    {
        return Err(Rejection::Slots(shortage.clone()));
    }
    match node.liveness {
        Liveness::Online => {}
        Liveness::Suspect | Liveness::Unreachable => return Err(Rejection::Silent),
    }
    let slots = slots.map_err(Rejection::Slots)?;
    if demand.vcpus > vcpus.saturating_sub(node.vcpus_used) {
        return Err(Rejection::VcpusTaken);
    }
    if demand.disk_mib > node.capacity.disk_mib {
        return Err(Rejection::DiskFull);
    }
    let left = memory
        .saturating_sub(node.memory_used_mib)
        .checked_sub(demand.memory_mib)
        .ok_or(Rejection::MemoryTaken)?;
    Ok((left, slots))
}

fn counted(rejections: &[Rejection]) -> Reasons {
    let mut reasons = Reasons::new();
    for rejection in rejections {
        rejection.count_in(&mut reasons);
    }
    if reasons.is_empty() {
        reasons.insert("no_nodes".to_owned(), 0);
    }
    reasons
}

#[cfg(test)]
mod tests {
    use super::*;

    fn demand() -> Demand {
        Demand {
            vcpus: 2,
            memory_mib: 512,
            disk_mib: 1024,
            slots: Vec::new(),
        }
    }

    fn node() -> Candidate {
        Candidate {
            node_id: NodeId::generate(),
            liveness: Liveness::Online,
            capacity: Capacity {
                vcpus: 2,
                memory_mib: 2048,
                disk_mib: 10_000,
                kvm: true,
            },
            has_image: true,
            vcpus_used: 0,
            memory_used_mib: 0,
            slots: Vec::new(),
        }
    }

    fn free_slot(class: &str) -> SlotCandidate {
        SlotCandidate {
            slot_id: SlotId::generate(),
            class: class.to_owned(),
            numa_node: None,
            obstacle: None,
        }
    }

    fn with(change: impl FnOnce(&mut Candidate)) -> Candidate {
        let mut changed = node();
        change(&mut changed);
        changed
    }

    #[test]
    fn the_emptiest_node_wins_and_the_order_of_the_list_does_not_matter() {
        let full = with(|n| n.memory_used_mib = 1024);
        let (a, b) = (node(), node());
        let first = a.node_id.min(b.node_id);
        for nodes in [[&a, &b, &full], [&b, &full, &a], [&full, &a, &b]] {
            let nodes: Vec<_> = nodes.into_iter().cloned().collect();
            let chosen = Placement {
                node_id: first,
                slots: Vec::new(),
            };
            assert_eq!(place(&demand(), &nodes), Decision::Chosen(chosen));
        }
    }

    #[track_caller]
    fn check(change: impl FnOnce(&mut Candidate), expected: &str) {
        let said = match place(&demand(), &[with(change)]) {
            Decision::Chosen(_) => "chosen".to_owned(),
            Decision::Wait(reasons) => format!("wait {reasons:?}"),
            Decision::NoCapacity(reasons) => format!("full {reasons:?}"),
            Decision::Impossible(reasons) => format!("never {reasons:?}"),
        };
        assert_eq!(said, expected);
    }

    #[test]
    fn every_rejection_is_named_and_judged() {
        check(|_| {}, "chosen");
        check(|n| n.capacity.kvm = false, r#"never {"no_kvm": 1}"#);
        check(|n| n.has_image = false, r#"never {"image_unknown": 1}"#);
        check(|n| n.capacity.vcpus = 0, r#"never {"too_few_vcpus": 1}"#);
        check(
            |n| n.capacity.memory_mib = 511,
            r#"never {"too_little_memory": 1}"#,
        );
        check(
            |n| n.liveness = Liveness::Suspect,
            r#"wait {"node_silent": 1}"#,
        );
        check(
            |n| n.liveness = Liveness::Unreachable,
            r#"wait {"node_silent": 1}"#,
        );
        check(|n| n.vcpus_used = 31, r#"full {"vcpus_taken": 1}"#);
        check(|n| n.vcpus_used = 30, "chosen");
        check(|n| n.memory_used_mib = 1537, r#"full {"memory_taken": 1}"#);
        check(|n| n.memory_used_mib = 1536, "chosen");
        check(|n| n.capacity.disk_mib = 1023, r#"full {"disk_full": 1}"#);
    }

    #[test]
    fn without_nodes_it_is_impossible_and_says_so() {
        let reasons = Reasons::from([("no_nodes".to_owned(), 0)]);
        assert_eq!(place(&demand(), &[]), Decision::Impossible(reasons));
    }

    #[test]
    fn reasons_count_the_nodes() {
        let nodes = [
            with(|n| n.has_image = false),
            with(|n| n.has_image = false),
            with(|n| n.vcpus_used = 32),
        ];
        let reasons = Reasons::from([
            ("image_unknown".to_owned(), 2),
            ("vcpus_taken".to_owned(), 1),
        ]);
        assert_eq!(place(&demand(), &nodes), Decision::NoCapacity(reasons));
    }

    #[test]
    fn slots_decide_over_memory_and_no_silent_node_is_waited_for() {
        let wanting = Demand {
            slots: vec![SlotWish::Class {
                class: "nvme".to_owned(),
                count: 1,
            }],
            ..demand()
        };
        let full = with(|n| {
            n.memory_used_mib = 1024;
            n.slots = vec![free_slot("nvme")];
        });
        let empty = node();
        let Decision::Chosen(placement) = place(&wanting, &[empty.clone(), full.clone()]) else {
            panic!("one node has the slot");
        };
        assert_eq!(placement.node_id, full.node_id);
        assert_eq!(placement.slots, [full.slots[0].slot_id]);
        let too_few = Reasons::from([("slots.nvme.too_few".to_owned(), 1)]);
        assert_eq!(place(&wanting, &[empty]), Decision::Impossible(too_few));
        let silent = with(|n| {
            n.liveness = Liveness::Suspect;
            n.slots = vec![free_slot("nvme")];
        });
        let reasons = Reasons::from([("node_silent".to_owned(), 1)]);
        assert_eq!(place(&wanting, &[silent]), Decision::NoCapacity(reasons));
    }
}
