//! Are a slot's devices apart from all others, behind the IOMMU?
//!
//! Two views that both have to hold: the kernel's groups, and our own walk of access control services
//! from each device to its root bus, as kernels up to 6.1 at the least show groups that are too small below
//! switches without those services.

use std::collections::BTreeSet;

use berth_api::pci::PciAddress;
use berth_api::slot::{SlotProblem, SlotProblemCode};

use super::{name, problem};
use crate::slot::snapshot::{AcsControl, Function, HostSnapshot};

/// Device/port types of the PCI Express capability (PCI Express 7.5.3.2).
mod port_kind {
    /// A port of the root complex.
    pub(super) const ROOT: u8 = 4;
    /// A switch's port towards the root.
    pub(super) const UPSTREAM: u8 = 5;
    /// A switch's port towards the devices.
    pub(super) const DOWNSTREAM: u8 = 6;
}

/// Bridges above a function; PCI has 256 buses, so more is a circle.
const MAX_DEPTH: usize = 256;

/// What isolation the slot lacks.
pub(super) fn problems(snapshot: &HostSnapshot, slot: &BTreeSet<PciAddress>) -> Vec<SlotProblem> {
    let mut findings = groups(snapshot, slot);
    for function in slot.iter().filter_map(|at| snapshot.functions.get(at)) {
        match Path::of(snapshot, function) {
            Ok(path) => findings.extend(reached(snapshot, slot, function, &path)),
            Err(why) => findings.push(unsafe_(format!("{} {why}", name(function)))),
        }
    }
    findings
}

fn unsafe_(message: String) -> SlotProblem {
    problem(SlotProblemCode::IommuGroupUnsafe, message)
}

/// The kernel's view: every member of every group is of the slot, or a bridge above it.
fn groups(snapshot: &HostSnapshot, slot: &BTreeSet<PciAddress>) -> Vec<SlotProblem> {
    let members = || slot.iter().filter_map(|at| snapshot.functions.get(at));
    let mut findings: Vec<SlotProblem> = members()
        .filter(|function| function.iommu_group.is_none())
        .map(|function| {
            unsafe_(format!(
                "{} has no IOMMU group: no IOMMU is in front of it. See `berthctl host check`.",
                name(function)
            ))
        })
        .collect();
    let above: BTreeSet<PciAddress> = members()
        .filter_map(|function| Path::of(snapshot, function).ok())
        .flat_map(|path| path.bridges.into_iter().map(|bridge| bridge.address))
        .collect();
    let numbers: BTreeSet<u32> = members()
        .filter_map(|function| function.iommu_group)
        .collect();
    for number in numbers {
        let own: Vec<&Function> = members()
            .filter(|function| function.iommu_group == Some(number))
            .collect();
        let Some(group) = snapshot.groups.get(&number) else {
            findings.push(unsafe_(format!(
                "IOMMU group {number} is not there, and a device of the slot names it."
            )));
            continue;
        };
        for function in own {
            if !group.members.contains(&function.address) {
                findings.push(unsafe_(format!(
                    "{} names IOMMU group {number}, which does not have it.",
                    name(function)
                )));
            }
        }
        for (first, last, _) in group
            .reserved_regions
            .iter()
            .filter(|(_, _, kind)| kind == "direct")
        {
            findings.push(unsafe_(format!(
                "The firmware keeps memory {first:#x}-{last:#x} open to IOMMU group {number} (RMRR): a \
                 guest would reach it. Switch off what uses it in the firmware, such as the management \
                 controller's sharing of this device."
            )));
        }
        findings.extend(
            group
                .members
                .iter()
                .filter(|member| !slot.contains(member) && !above.contains(member))
                .map(|member| foreign_member(snapshot, number, *member)),
        );
    }
    findings
}

/// Being bound to `vfio-pci` is no excuse: another tenant may have it.
fn foreign_member(snapshot: &HostSnapshot, number: u32, member: PciAddress) -> SlotProblem {
    let member = snapshot
        .functions
        .get(&member)
        .map_or_else(|| format!("{member} (unknown)"), name);
    unsafe_(format!(
        "{member} is in IOMMU group {number} with the slot's device and not of the slot: both reach each \
         other. Approve them as one slot, or plug one in elsewhere."
    ))
}

/// Our own view: what the function reaches without the IOMMU seeing it.
fn reached(
    snapshot: &HostSnapshot,
    slot: &BTreeSet<PciAddress>,
    function: &Function,
    path: &Path<'_>,
) -> Vec<SlotProblem> {
    let mut findings: Vec<SlotProblem> = path
        .bridges
        .iter()
        .filter_map(|bridge| {
            let doubt = match &bridge.config.fault {
                _ if !bridge.config.answers => "does not answer",
                Some(fault) => fault,
                None => return None,
            };
            Some(unsafe_(format!(
                "{}, which is above {}, cannot be judged: {doubt}. Look as root.",
                name(bridge),
                function.address
            )))
        })
        .collect();
    let mut seen = BTreeSet::from([function.address]);
    for (weak, members) in weaknesses(snapshot, function, path) {
        for member in members {
            let is_foreign = !slot.contains(&member.address) && !is_pci_bridge(member);
            if is_foreign && seen.insert(member.address) {
                findings.push(unsafe_(format!(
                    "{} can reach {} past the IOMMU, as {} does not keep them apart (access control \
                     services are absent or off). Approve them as one slot, or plug one in elsewhere.",
                    function.address,
                    name(member),
                    name(weak)
                )));
            }
        }
    }
    findings
}

/// Each place on the way up that does not isolate, with all that can be reached over it.
fn weaknesses<'a>(
    snapshot: &'a HostSnapshot,
    function: &'a Function,
    path: &Path<'a>,
) -> Vec<(&'a Function, Vec<&'a Function>)> {
    let mut weak = Vec::new();
    if function.config.physical_function.is_none() && !function_is_apart(function) {
        weak.push((function, siblings(snapshot, function)));
    }
    for (bridge, above) in path
        .bridges
        .iter()
        .zip(path.bridges.iter().skip(1).map(Some).chain([None]))
    {
        let members = match bridge.config.port_kind {
            Some(port_kind::ROOT) if root_port_is_apart(bridge) => continue,
            Some(port_kind::DOWNSTREAM) if downstream_port_is_apart(bridge) => continue,
            Some(port_kind::DOWNSTREAM) => below(snapshot, above.unwrap_or(bridge)),
            Some(port_kind::UPSTREAM) if function_is_apart(bridge) => continue,
            // Its own ports are judged one by one; here it is what sits beside it on its link.
            Some(port_kind::UPSTREAM) => with_all_below(snapshot, siblings(snapshot, bridge)),
            Some(port_kind::ROOT) => {
                let mut members = with_all_below(snapshot, siblings(snapshot, bridge));
                members.extend(below(snapshot, bridge));
                members
            }
            // A conventional bus: everybody on it hears everybody.
            _ => below(snapshot, bridge),
        };
        weak.push((*bridge, members));
    }
    weak
}

fn root_port_is_apart(port: &Function) -> bool {
    // A root port that cannot redirect has no way to its peers that would need it.
    let Some(acs) = in_force(port) else {
        return false;
    };
    let is_on = port.config.acs.is_some_and(|acs| acs.source_validation);
    is_on && acs.request_redirect && acs.completion_redirect && acs.upstream_forwarding
}

fn downstream_port_is_apart(port: &Function) -> bool {
    port.config.acs.is_some_and(|acs| {
        acs.source_validation
            && acs.request_redirect
            && acs.completion_redirect
            && acs.upstream_forwarding
    })
}

/// Whether a function keeps its requests from the other functions of its device.
fn function_is_apart(function: &Function) -> bool {
    in_force(function).is_some_and(|acs| acs.request_redirect && acs.completion_redirect)
}

/// What is on, or cannot be switched on because there is nothing to it (PCI Express 6.12.1).
fn in_force(function: &Function) -> Option<AcsControl> {
    let on = function.config.acs?;
    let Some(able) = function.config.acs_capable else {
        return Some(on);
    };
    Some(AcsControl {
        source_validation: on.source_validation || !able.source_validation,
        request_redirect: on.request_redirect || !able.request_redirect,
        completion_redirect: on.completion_redirect || !able.completion_redirect,
        upstream_forwarding: on.upstream_forwarding || !able.upstream_forwarding,
    })
}

/// A bridge to another bus; host and ISA bridges are devices like any other here.
fn is_pci_bridge(function: &Function) -> bool {
    function.identity.class.0 >> 8 == 0x06_04
}

/// The other functions of the same device. Below a port a bus has one device only, whatever its
/// functions' numbers; virtual functions have their own rules and are left out.
fn siblings<'a>(snapshot: &'a HostSnapshot, function: &Function) -> Vec<&'a Function> {
    let is_behind_port = function
        .parent
        .and_then(|parent| snapshot.functions.get(&parent))
        .and_then(|parent| parent.config.port_kind)
        .is_some_and(|kind| matches!(kind, port_kind::ROOT | port_kind::DOWNSTREAM));
    let at = function.address;
    snapshot
        .functions
        .values()
        .filter(|other| {
            let there = other.address;
            there != at
                && (there.domain, there.bus) == (at.domain, at.bus)
                && (is_behind_port || there.device == at.device)
                && other.config.physical_function.is_none()
        })
        .collect()
}

fn with_all_below<'a>(
    snapshot: &'a HostSnapshot,
    functions: Vec<&'a Function>,
) -> Vec<&'a Function> {
    functions
        .into_iter()
        .flat_map(|function| {
            let mut all = below(snapshot, function);
            all.push(function);
            all
        })
        .collect()
}

fn below<'a>(snapshot: &'a HostSnapshot, bridge: &Function) -> Vec<&'a Function> {
    snapshot
        .functions
        .values()
        .filter(|function| {
            let mut at = function.parent;
            for _ in 0..MAX_DEPTH {
                match at {
                    Some(parent) if parent == bridge.address => return true,
                    Some(parent) => {
                        at = snapshot
                            .functions
                            .get(&parent)
                            .and_then(|function| function.parent);
                    }
                    None => return false,
                }
            }
            false
        })
        .collect()
}

/// The bridges above a function, nearest first.
struct Path<'a> {
    bridges: Vec<&'a Function>,
}

impl<'a> Path<'a> {
    fn of(snapshot: &'a HostSnapshot, function: &Function) -> Result<Self, String> {
        let mut bridges = Vec::new();
        let mut at = function.parent;
        while let Some(parent) = at {
            let Some(bridge) = snapshot.functions.get(&parent) else {
                return Err(format!(
                    "is behind {parent}, which this host does not show: nothing tells what isolates it."
                ));
            };
            if bridges.len() >= MAX_DEPTH {
                return Err("is behind bridges that run in a circle.".to_owned());
            }
            bridges.push(bridge);
            at = bridge.parent;
        }
        Ok(Self { bridges })
    }
}
