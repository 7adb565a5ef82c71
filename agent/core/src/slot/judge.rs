//! Is a host fit to give devices away, and is a slot what its owner approved and apart from all else?
//!
//! Pure: a snapshot and an approval in, findings out. No finding means fit; what cannot be told is a
//! finding.

use std::collections::{BTreeMap, BTreeSet};

use berth_api::pci::PciAddress;
use berth_api::slot::{SlotDevice, SlotProblem, SlotProblemCode};

use crate::slot::approval::Approval;
use crate::slot::snapshot::HostSnapshot;

/// What the agent knows beside a snapshot.
#[derive(Debug, Clone, Default)]
pub struct Beside {
    /// What devices that are bound to `vfio-pci` said of themselves: serials and settings by name. For a
    /// device that is in here, what was approved and is not said is a finding; for one that is not,
    /// what only a driver can read is left open.
    pub identified: BTreeMap<PciAddress, BTreeMap<String, String>>,
    /// Processes that may have the slot's devices open: the agent itself, and the VMM of the holder.
    pub own_processes: BTreeSet<u32>,
}

/// What was found out about a slot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Judgement {
    /// Its devices in the order of the approval, where they are now.
    pub devices: Vec<SlotDevice>,
    /// All that stands against giving it to anybody; empty if nothing does.
    pub findings: Vec<SlotProblem>,
}

/// What stands against giving any device of this host to a tenant.
#[must_use]
pub fn judge_host(_snapshot: &HostSnapshot) -> Vec<SlotProblem> {
    vec![unfinished()]
}

/// What stands against giving this slot to a tenant, apart from what [`judge_host`] says.
#[must_use]
pub fn judge_slot(_snapshot: &HostSnapshot, _approval: &Approval, _beside: &Beside) -> Judgement {
    Judgement {
        devices: Vec::new(),
        findings: vec![unfinished()],
    }
}

fn unfinished() -> SlotProblem {
    SlotProblem {
        code: SlotProblemCode::IommuGroupUnsafe,
        message: "this build cannot judge isolation".to_owned(),
    }
}
