//! Is a host fit to give devices away, and is a slot what its owner approved and apart from all else?
//!
//! Pure: a snapshot and an approval in, findings out. No finding means fit; what cannot be told is a
//! finding. `identity` finds the approved devices, `fitness` looks at each, `isolation` at what is
//! around them.

mod fitness;
mod identity;
mod isolation;
#[cfg(test)]
pub(crate) mod tests;

use std::collections::{BTreeMap, BTreeSet};

use berth_api::pci::PciAddress;
use berth_api::slot::{SlotDevice, SlotProblem, SlotProblemCode};

use crate::slot::approval::{Approval, ApprovedDevice};
use crate::slot::snapshot::{Function, HostSnapshot};

/// The driver that gives devices to guests.
const VFIO_PCI: &str = "vfio-pci";

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

impl Judgement {
    /// Where the devices are, if every one was found.
    #[must_use]
    pub fn addresses(&self) -> Option<Vec<PciAddress>> {
        self.devices.iter().map(|device| device.address).collect()
    }
}

/// What stands against giving any device of this host to a tenant.
#[must_use]
pub fn judge_host(snapshot: &HostSnapshot) -> Vec<SlotProblem> {
    let iommu = &snapshot.iommu;
    let mut findings = Vec::new();
    let mut find = |found: &str| {
        findings.push(problem(SlotProblemCode::IommuGroupUnsafe, found));
    };
    if iommu.units.is_empty() || snapshot.groups.is_empty() {
        find(
            "This host has no IOMMU, or its kernel does not use it: switch VT-d or AMD-Vi on in the \
             firmware, and boot with intel_iommu=on.",
        );
    }
    match iommu.interrupt_remapping {
        Some(true) => {}
        Some(false) => find(
            "Interrupts are not remapped, so that a guest's device could raise any interrupt: switch \
             interrupt remapping and x2APIC on in the firmware, and boot without intremap=off.",
        ),
        None => find(
            "Nothing tells whether interrupts are remapped: look for `Interrupt remapping enabled` \
             in `journalctl -k`; without it a guest's device could raise any interrupt.",
        ),
    }
    if iommu.unsafe_interrupts_allowed == Some(true)
        || is_set(iommu, "vfio_iommu_type1.allow_unsafe_interrupts")
    {
        find(
            "VFIO is told to do without interrupt remapping: remove allow_unsafe_interrupts from the \
             kernel's command line and from /etc/modprobe.d, and boot again.",
        );
    }
    if iommu.no_iommu_mode == Some(true) || is_set(iommu, "vfio.enable_unsafe_noiommu_mode") {
        find(
            "VFIO's mode without an IOMMU is on: remove enable_unsafe_noiommu_mode from the kernel's \
             command line and from /etc/modprobe.d, and boot again.",
        );
    }
    for word in &iommu.kernel_command_line {
        if word.starts_with("pcie_acs_override=") {
            find(&format!(
                "The kernel is told to show isolation that is not there: remove {word} from its \
                 command line, and boot again."
            ));
        }
        if word.strip_prefix("intremap=").is_some_and(|options| {
            options
                .split(',')
                .any(|option| matches!(option, "nosid" | "off"))
        }) {
            find(&format!(
                "Interrupt remapping does not look at who raises an interrupt: remove {word} from the \
                 kernel's command line, and boot again."
            ));
        }
    }
    findings
}

/// Whether the command line sets a module's switch. The kernel takes hyphens for underscores.
fn is_set(iommu: &crate::slot::snapshot::IommuFacts, switch: &str) -> bool {
    iommu.kernel_command_line.iter().any(|word| {
        let (name, value) = word.split_once('=').unwrap_or((word, "1"));
        name.replace('-', "_") == switch && !matches!(value, "0" | "n" | "N" | "off" | "no")
    })
}

/// What stands against giving this slot to a tenant, apart from what [`judge_host`] says.
///
/// Before a claim, after the devices are bound, it is to be asked again with what they said of
/// themselves in `beside`: without that, a drive behind `vfio-pci` has shown no serial number.
#[must_use]
pub fn judge_slot(snapshot: &HostSnapshot, approval: &Approval, beside: &Beside) -> Judgement {
    let mut findings = Vec::new();
    let mut devices = Vec::new();
    let mut slot: BTreeSet<PciAddress> = BTreeSet::new();
    for approved in &approval.devices {
        let found = match identity::locate(snapshot, approved) {
            Ok(function) => Some(function),
            Err(problem) => {
                findings.push(problem);
                None
            }
        };
        if let Some(function) = found {
            if !slot.insert(function.address) {
                findings.push(problem(
                    SlotProblemCode::SlotNotApproved,
                    format!(
                        "The approval of {} names {} twice: remove one.",
                        approval.name,
                        name(function)
                    ),
                ));
            }
            findings.extend(identity::changes(function, approved, beside));
            findings.extend(fitness::problems(snapshot, function, approved, beside));
        }
        devices.push(slot_device(approved, found));
    }
    if approval.devices.is_empty() {
        findings.push(problem(
            SlotProblemCode::SlotNotApproved,
            format!("The approval of {} names no device.", approval.name),
        ));
    }
    findings.extend(isolation::problems(snapshot, &slot));
    Judgement { devices, findings }
}

fn slot_device(approved: &ApprovedDevice, found: Option<&Function>) -> SlotDevice {
    SlotDevice {
        kind: approved.kind,
        address: found.map(|function| function.address),
        identity: approved.identity.clone(),
        iommu_group: found.and_then(|function| function.iommu_group),
        numa_node: found.and_then(|function| function.numa_node),
    }
}

fn problem(code: SlotProblemCode, message: impl Into<String>) -> SlotProblem {
    SlotProblem {
        code,
        message: message.into(),
    }
}

/// A function as findings name it: address and driver.
fn name(function: &Function) -> String {
    match &function.driver {
        Some(driver) => format!("{} (driver {driver})", function.address),
        None => format!("{} (no driver)", function.address),
    }
}
