//! What is judged about slots and devices of this host, for people and programs.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use berth_agent_core::slot::approval::{Approval, Approvals, ProposeError, Wish, kind_of, propose};
use berth_agent_core::slot::judge::{Beside, judge_host, judge_slot};
use berth_agent_core::slot::snapshot::{Function, HostSnapshot, HostUse};
use berth_api::ids::SlotId;
use berth_api::pci::PciAddress;
use berth_api::slot::{DeviceKind, SlotDevice, SlotProblem};
use serde::Serialize;

use super::HostFolders;
use crate::failure::Failure;
use crate::screen::Screen;
use crate::table::{Cell, Table, Tone, optional};

/// What is judged of one subject.
#[derive(Debug, Serialize)]
pub(super) struct Verdict {
    /// A slot's name, `host`, or addresses.
    subject: String,
    /// Whether nothing stands against it.
    is_fit: bool,
    /// What does.
    findings: Vec<SlotProblem>,
    /// A file that approves nothing, and why.
    refused_file: Option<String>,
    /// The slot's devices.
    devices: Vec<SlotDevice>,
}

impl Verdict {
    fn of(subject: &str, findings: Vec<SlotProblem>, devices: Vec<SlotDevice>) -> Self {
        Self {
            subject: subject.to_owned(),
            is_fit: findings.is_empty(),
            findings,
            refused_file: None,
            devices,
        }
    }

    pub(super) fn host(snapshot: &HostSnapshot) -> Self {
        Self::of("host", judge_host(snapshot), Vec::new())
    }

    pub(super) fn slot(
        snapshot: &HostSnapshot,
        subject: &str,
        approval: &Approval,
        beside: &Beside,
    ) -> Self {
        let judgement = judge_slot(snapshot, approval, beside);
        Self::of(subject, judgement.findings, judgement.devices)
    }
}

/// Shows verdicts; an error if anything stands against anything.
pub(super) fn show(screen: &mut Screen, verdicts: &[Verdict]) -> Result<(), Failure> {
    screen.show(&verdicts, || table(verdicts))?;
    unfit(verdicts)
}

/// An error if anything stands against anything.
pub(super) fn unfit(verdicts: &[Verdict]) -> Result<(), Failure> {
    match verdicts.iter().filter(|verdict| !verdict.is_fit).count() {
        0 => Ok(()),
        count => Err(Failure::SlotUnfit { count }),
    }
}

pub(super) fn table(verdicts: &[Verdict]) -> Table {
    let mut table = Table::new(&["SLOT", "STATUS", "CODE", "FOUND"]);
    for verdict in verdicts {
        if let Some(reason) = &verdict.refused_file {
            table.row([
                (&verdict.subject).into(),
                Cell::toned("refused", Tone::Bad),
                "slot_not_approved".into(),
                reason.into(),
            ]);
        } else if verdict.is_fit {
            table.row([
                (&verdict.subject).into(),
                Cell::toned("fit", Tone::Good),
                "-".into(),
                places(&verdict.devices).into(),
            ]);
        }
        for finding in &verdict.findings {
            table.row([
                (&verdict.subject).into(),
                Cell::toned("unfit", Tone::Bad),
                code(finding).into(),
                (&finding.message).into(),
            ]);
        }
    }
    table
}

fn places(devices: &[SlotDevice]) -> String {
    let places: Vec<String> = devices
        .iter()
        .filter_map(|device| device.address)
        .map(|address| address.to_string())
        .collect();
    places.join(" ")
}

/// What is known here beside a snapshot: which processes are berth's own, by the units they run in. A
/// slot that a guest has is no less fit for it.
pub(super) fn beside(host: &HostFolders, snapshot: &HostSnapshot) -> Beside {
    let own_processes = snapshot
        .functions
        .values()
        .flat_map(|function| &function.uses)
        .filter_map(|used| match used {
            HostUse::VfioUser { pid } => Some(*pid),
            HostUse::Block { .. }
            | HostUse::Boot { .. }
            | HostUse::Route { .. }
            | HostUse::Console
            | HostUse::ManagementController => None,
        })
        .collect::<BTreeSet<u32>>()
        .into_iter()
        .filter(|pid| {
            let file = host.sysroot.join(format!("proc/{pid}/cgroup"));
            fs::read_to_string(file).is_ok_and(|groups| groups.lines().any(is_ours))
        })
        .collect();
    Beside {
        own_processes,
        ..Beside::default()
    }
}

/// Whether a line of `/proc/PID/cgroup` names the agent's unit or a VMM's.
fn is_ours(line: &str) -> bool {
    let Some((_, path)) = line.split_once("::/") else {
        return false;
    };
    let is_vmm = |unit: &str| unit.starts_with("berth-vm-") && unit.ends_with(".service");
    path == "system.slice/berth-agent.service"
        || path.starts_with("berth.slice/") && path.split('/').any(is_vmm)
}

/// The code as the API writes it.
fn code(finding: &SlotProblem) -> String {
    serde_json::to_value(finding.code)
        .ok()
        .and_then(|code| code.as_str().map(str::to_owned))
        .unwrap_or_default()
}

pub(super) fn check(
    screen: &mut Screen,
    host: &HostFolders,
    subjects: &[String],
) -> Result<(), Failure> {
    if host.needs_root().is_err() {
        screen.note("Run this as root: without that, config space cannot be read whole.");
    }
    let snapshot = host.snapshot()?;
    let approvals = host.approvals();
    let beside = beside(host, &snapshot);
    let mut verdicts = vec![Verdict::host(&snapshot)];
    if subjects.is_empty() {
        verdicts.extend(
            approvals
                .approved
                .iter()
                .map(|slot| Verdict::slot(&snapshot, &slot.approval.name, &slot.approval, &beside)),
        );
        verdicts.extend(refused(&approvals, |_| true));
        return show(screen, &verdicts);
    }
    let mut addresses: Vec<PciAddress> = Vec::new();
    for subject in subjects {
        if let Ok(address) = subject.parse() {
            addresses.push(address);
            continue;
        }
        let approved = approvals
            .approved
            .iter()
            .find(|slot| slot.approval.name == *subject);
        if let Some(slot) = approved {
            verdicts.push(Verdict::slot(&snapshot, subject, &slot.approval, &beside));
            continue;
        }
        let before = verdicts.len();
        verdicts.extend(refused(&approvals, |file| {
            file.strip_suffix(".toml") == Some(subject)
        }));
        if verdicts.len() == before {
            return Err(Failure::NoSuchSlot {
                name: subject.clone(),
            });
        }
    }
    if !addresses.is_empty() {
        let subject = addresses
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
            .join(" ");
        let approval = would_be(&snapshot, &addresses)?;
        verdicts.push(Verdict::slot(&snapshot, &subject, &approval, &beside));
    }
    show(screen, &verdicts)
}

fn refused(approvals: &Approvals, wanted: impl Fn(&str) -> bool) -> Vec<Verdict> {
    approvals
        .refused
        .iter()
        .filter(|refused| wanted(&refused.file))
        .map(|refused| Verdict {
            is_fit: false,
            refused_file: Some(refused.reason.clone()),
            ..Verdict::of(&refused.file, Vec::new(), Vec::new())
        })
        .collect()
}

/// The approval that these devices would get, to judge them by.
fn would_be(snapshot: &HostSnapshot, addresses: &[PciAddress]) -> Result<Approval, ProposeError> {
    let wish = Wish {
        slot_id: SlotId::generate(),
        name: "new".to_owned(),
        class: "new".to_owned(),
        approved_at: String::new(),
    };
    propose(snapshot, addresses, wish)
}

/// One device that could be a slot, or why it cannot.
#[derive(Debug, Serialize)]
struct Candidate {
    address: PciAddress,
    kind: DeviceKind,
    id: String,
    driver: Option<String>,
    iommu_group: Option<u32>,
    numa_node: Option<u32>,
    /// The slot that it is approved in.
    slot: Option<String>,
    /// What stands against it as a slot by itself.
    findings: Vec<SlotProblem>,
}

pub(super) fn candidates(
    screen: &mut Screen,
    host: &HostFolders,
    all: bool,
) -> Result<(), Failure> {
    if host.needs_root().is_err() {
        screen.note("Run this as root: without that, config space cannot be read whole.");
    }
    let snapshot = host.snapshot()?;
    for problem in judge_host(&snapshot) {
        screen.note(&problem.message);
    }
    let approvals = host.approvals();
    let beside = beside(host, &snapshot);
    let taken: BTreeMap<&str, &str> = approvals
        .approved
        .iter()
        .flat_map(|slot| {
            let name = slot.approval.name.as_str();
            slot.approval
                .devices
                .iter()
                .map(move |device| (device.identity.path.as_str(), name))
        })
        .collect();
    let candidates: Vec<Candidate> = snapshot
        .functions
        .values()
        .filter(|function| !function.identity.class.is_bridge())
        .filter(|function| all || kind_of(function.identity.class) != DeviceKind::Other)
        .map(|function| candidate(&snapshot, function, &taken, &beside))
        .collect::<Result<_, _>>()?;
    screen.show(&candidates, || candidates_table(&candidates))
}

fn candidate(
    snapshot: &HostSnapshot,
    function: &Function,
    taken: &BTreeMap<&str, &str>,
    beside: &Beside,
) -> Result<Candidate, Failure> {
    let identity = &function.identity;
    let approval = would_be(snapshot, &[function.address])?;
    Ok(Candidate {
        address: function.address,
        kind: kind_of(identity.class),
        id: format!("{}:{}", identity.vendor, identity.device),
        driver: function.driver.clone(),
        iommu_group: function.iommu_group,
        numa_node: function.numa_node,
        slot: taken
            .get(identity.path.as_str())
            .map(|&name| name.to_owned()),
        findings: judge_slot(snapshot, &approval, beside).findings,
    })
}

fn candidates_table(candidates: &[Candidate]) -> Table {
    let mut table = Table::new(&[
        "ADDRESS", "KIND", "ID", "DRIVER", "GROUP", "NUMA", "SLOT", "FIT", "WHY NOT",
    ]);
    for candidate in candidates {
        let (fit, why) = match candidate.findings.as_slice() {
            [] => (Cell::toned("yes", Tone::Good), String::new()),
            [only] => (Cell::toned("no", Tone::Bad), only.message.clone()),
            [first, more @ ..] => (
                Cell::toned("no", Tone::Bad),
                format!("{} (and {} more)", first.message, more.len()),
            ),
        };
        table.row([
            candidate.address.into(),
            kind_name(candidate.kind).into(),
            (&candidate.id).into(),
            optional(candidate.driver.as_ref()),
            optional(candidate.iommu_group),
            optional(candidate.numa_node),
            optional(candidate.slot.as_ref()),
            fit,
            why.into(),
        ]);
    }
    table
}

fn kind_name(kind: DeviceKind) -> &'static str {
    match kind {
        DeviceKind::Nvme => "nvme",
        DeviceKind::Gpu => "gpu",
        DeviceKind::Network => "network",
        DeviceKind::Other => "other",
    }
}
