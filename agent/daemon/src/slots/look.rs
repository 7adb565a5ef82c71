//! A fresh look at the host for one slot, and what it means for it.

use std::collections::{BTreeMap, BTreeSet};

use berth_agent_core::slot::approval::{Approval, ApprovedSlot};
use berth_agent_core::slot::judge::{Beside, judge_host, judge_slot};
use berth_agent_core::slot::phase::Phase;
use berth_agent_core::slot::record::SlotRecord;
use berth_agent_core::slot::snapshot::{HostSnapshot, HostUse};
use berth_agent_host::slot_devices::{DeviceError, VFIO_PCI};
use berth_api::ids::SlotId;
use berth_api::pci::PciAddress;
use berth_api::slot::{SlotDevice, SlotProblem, SlotProblemCode};

use super::SlotHost;

/// Longest message that is made of several findings, in characters.
const MAX_MESSAGE: usize = 2000;

/// What devices said of themselves.
pub(super) type Identified = BTreeMap<PciAddress, BTreeMap<String, String>>;

/// What was seen.
#[derive(Debug)]
pub(super) struct View {
    /// What the owner's file says, or why there is none that counts.
    pub(super) approval: Result<ApprovedSlot, String>,
    /// The host.
    pub(super) snapshot: HostSnapshot,
}

/// What it means.
#[derive(Debug)]
pub(super) struct Verdict {
    /// The slot's devices, where they are now.
    pub(super) devices: Vec<SlotDevice>,
    /// The driver that each of them has.
    pub(super) drivers: BTreeMap<PciAddress, Option<String>>,
    /// Why the slot is not to be given to anybody.
    pub(super) problems: Vec<SlotProblem>,
}

/// Look. Blocks.
pub(super) fn view(host: &SlotHost, slot_id: SlotId) -> Result<View, DeviceError> {
    let approvals = host.approvals.read();
    let approved = approvals.approved.into_iter();
    let mine = approved
        .into_iter()
        .find(|slot| slot.approval.slot_id == slot_id);
    let approval = mine.ok_or_else(|| {
        let refused: Vec<_> = approvals
            .refused
            .iter()
            .map(|refused| format!("{}: {}", refused.file, refused.reason))
            .collect();
        if refused.is_empty() {
            "no file of this host's owner approves it: `berthctl slot approve` writes one"
                .to_owned()
        } else {
            format!(
                "no file of this host's owner approves it; these are not taken: {}",
                refused.join("; ")
            )
        }
    });
    Ok(View {
        approval,
        snapshot: host.devices.snapshot()?,
    })
}

/// Judge a slot by what it was approved as.
pub(super) fn judge(
    record: &SlotRecord,
    approval: &Approval,
    snapshot: &HostSnapshot,
    identified: &Identified,
) -> Verdict {
    let mut own_processes = BTreeSet::from([std::process::id()]);
    if matches!(record.phase, Phase::InUse { .. }) {
        // A group is open once or not at all: whoever has it is the holder's guest.
        own_processes.extend(users(snapshot));
    }
    let beside = Beside {
        identified: identified.clone(),
        own_processes,
    };
    let judgement = judge_slot(snapshot, approval, &beside);
    let drivers = judgement
        .devices
        .iter()
        .filter_map(|device| {
            let address = device.address?;
            let driver = snapshot.functions.get(&address)?.driver.clone();
            Some((address, driver))
        })
        .collect();
    let mut problems = judge_host(snapshot);
    problems.extend(judgement.findings);
    Verdict {
        devices: judgement.devices,
        drivers,
        problems,
    }
}

fn users(snapshot: &HostSnapshot) -> impl Iterator<Item = u32> {
    let uses = snapshot.functions.values().flat_map(|f| &f.uses);
    uses.filter_map(|used| match used {
        HostUse::VfioUser { pid } => Some(*pid),
        HostUse::Block { .. }
        | HostUse::Boot { .. }
        | HostUse::Route { .. }
        | HostUse::Console
        | HostUse::ManagementController => None,
    })
}

impl Verdict {
    /// The devices that a driver of the host has.
    pub(super) fn host_driven(&self) -> Vec<(PciAddress, String)> {
        self.drivers
            .iter()
            .filter_map(|(address, driver)| Some((*address, driver.clone()?)))
            .filter(|(_, driver)| driver != VFIO_PCI)
            .collect()
    }

    /// Those problems that speak of another device, or of none, whatever host and owner say.
    pub(super) fn of_devices(&self) -> Vec<SlotProblem> {
        let missing = [
            SlotProblemCode::DeviceMissing,
            SlotProblemCode::DeviceIdentityChanged,
        ];
        let problems = self.problems.iter();
        problems
            .filter(|p| missing.contains(&p.code))
            .cloned()
            .collect()
    }
}

/// Several problems as one: the code of the gravest, the words of all.
pub(super) fn as_one(problems: &[SlotProblem]) -> Result<(), SlotProblem> {
    let gravity = |problem: &&SlotProblem| match problem.code {
        SlotProblemCode::DeviceMissing | SlotProblemCode::DeviceIdentityChanged => 0,
        SlotProblemCode::ForeignUser => 1,
        SlotProblemCode::DeviceSettingsChanged => 2,
        SlotProblemCode::SlotNotApproved => 3,
        SlotProblemCode::IommuGroupUnsafe
        | SlotProblemCode::DeviceInUse
        | SlotProblemCode::ResetFailed
        | SlotProblemCode::BindFailed
        | SlotProblemCode::WipeFailed
        | SlotProblemCode::StaleClaim
        | SlotProblemCode::SlotBusy
        | SlotProblemCode::OperatorRequest
        | SlotProblemCode::RecordLost => 4,
    };
    let mut sorted: Vec<&SlotProblem> = problems.iter().collect();
    sorted.sort_by_key(gravity);
    let Some(gravest) = sorted.first() else {
        return Ok(());
    };
    let words: Vec<&str> = sorted
        .iter()
        .map(|problem| problem.message.as_str())
        .collect();
    Err(SlotProblem {
        code: gravest.code,
        message: words.join(" ").chars().take(MAX_MESSAGE).collect(),
    })
}
