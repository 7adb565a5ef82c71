//! Climbing the ladder of `berth_agent_core::slot::reset` with real devices.

use std::collections::BTreeSet;
use std::io;
use std::path::Path;

use berth_agent_core::slot::reset::{AfterRung, Liveness, ResetFacts, Rung, judge, ladder};
use berth_api::pci::PciAddress;
use berth_api::slot::SlotProblemCode;
use berth_vfio::HotResetFunction;

use super::device_registers::{self, ConfigHead};
use super::open_slot::{OpenDevice, OpenSlot, group_of, list};
use crate::slot_devices::{DeviceError, Found};

/// Reset all devices of a slot that is open, and nobody else.
///
/// `before` is how each answered before it was opened: the kernel resets a device at its first opening,
/// and what is wrong afterwards must show.
pub(super) fn reset(
    root: &Path,
    slot: &OpenSlot,
    before: &[(PciAddress, Liveness)],
) -> Result<Found, DeviceError> {
    let owned: BTreeSet<_> = slot.devices.iter().map(|open| open.address).collect();
    let mut done = BTreeSet::new();
    let mut found = Vec::new();
    for open in &slot.devices {
        if done.contains(&open.address) {
            continue;
        }
        let climbed = climb(root, slot, open, &owned, before)?;
        let mut text = format!("{}: {}", list(&climbed.hit), climbed.rung);
        if !climbed.failed.is_empty() {
            text = format!("{text} (before it {})", list(&climbed.failed));
        }
        found.push(text);
        done.extend(climbed.hit);
    }
    found.push("all answer".to_owned());
    Ok(found.join("; "))
}

/// How devices answer that are not open yet.
pub(super) fn look(
    root: &Path,
    addresses: &[PciAddress],
) -> Result<Vec<(PciAddress, Liveness)>, DeviceError> {
    addresses
        .iter()
        .map(|&address| {
            let head = ConfigHead::read(root, address).map_err(|error| {
                if error.kind() == io::ErrorKind::NotFound {
                    let message = format!("{address} is not there");
                    return DeviceError::new(SlotProblemCode::DeviceMissing, message).suspect();
                }
                lost(address, &format!("its config space: {error}"))
            })?;
            let liveness = head.liveness();
            match liveness.problem(&liveness) {
                None => Ok((address, liveness)),
                Some(problem) => Err(lost(address, &problem)),
            }
        })
        .collect()
}

/// A rung that worked.
struct Climbed {
    rung: Rung,
    /// Whom it reset.
    hit: Vec<PciAddress>,
    /// Rungs that had failed before.
    failed: Vec<String>,
}

/// Try the rungs for one device.
fn climb(
    root: &Path,
    slot: &OpenSlot,
    open: &OpenDevice,
    owned: &BTreeSet<PciAddress>,
    before: &[(PciAddress, Liveness)],
) -> Result<Climbed, DeviceError> {
    let address = open.address;
    let facts = facts(root, open)?;
    let allowed = ladder(address, owned, &facts);
    let mut failed = Vec::new();
    for rung in allowed.rungs {
        let (hit, returned) = match rung {
            Rung::Function => (vec![address], open.device.reset()),
            Rung::Hot => {
                let hit: Vec<_> = facts.hot_reset_scope.iter().flatten().copied().collect();
                let groups = hit.iter().map(|&hit| group_of(root, hit));
                let groups = groups.collect::<Result<_, _>>()?;
                let returned = open.device.hot_reset(&slot.groups(&groups));
                (hit, returned)
            }
        };
        let problem = problem(root, slot, &hit, before);
        match judge(rung, returned.map_err(|error| error.to_string()), problem) {
            AfterRung::Done => return Ok(Climbed { rung, hit, failed }),
            AfterRung::Next(why) => failed.push(why),
            AfterRung::Lost(why) => return Err(lost(address, &why)),
        }
    }
    failed.extend(allowed.missing);
    Err(lost(
        address,
        &format!("no reset worked ({})", failed.join("; ")),
    ))
}

/// What is wrong with the devices that a reset hit.
fn problem(
    root: &Path,
    slot: &OpenSlot,
    hit: &[PciAddress],
    before: &[(PciAddress, Liveness)],
) -> Option<String> {
    let hit = slot
        .devices
        .iter()
        .filter(|open| hit.contains(&open.address));
    for open in hit {
        let address = open.address;
        let Some((_, before)) = before.iter().find(|(other, _)| *other == address) else {
            return Some(format!("{address} was not looked at before"));
        };
        match device_registers::liveness(root, address, &open.device) {
            Err(error) => return Some(format!("{address} does not answer: {error}")),
            Ok(now) => {
                if let Some(problem) = now.problem(before) {
                    return Some(format!("{address}: {problem}"));
                }
            }
        }
    }
    None
}

fn facts(root: &Path, open: &OpenDevice) -> Result<ResetFacts, DeviceError> {
    let asked = |error: io::Error| lost(open.address, &format!("it cannot be asked: {error}"));
    let info = open.device.info().map_err(asked)?;
    let class = ConfigHead::read(root, open.address).map_err(asked)?.class();
    let hot_reset_scope = match open.device.hot_reset_scope() {
        Ok(functions) => Ok(functions.iter().map(address).collect()),
        Err(error) => Err(format!("no hot reset reaches it: {error}")),
    };
    Ok(ResetFacts {
        has_function_reset: info.can_reset,
        hot_reset_scope,
        prefers_hot_reset: class.is_gpu(),
    })
}

fn address(function: &HotResetFunction) -> PciAddress {
    PciAddress {
        domain: function.domain.into(),
        bus: function.bus,
        device: function.device_function >> 3,
        function: function.device_function & 7,
    }
}

fn lost(address: PciAddress, why: &str) -> DeviceError {
    let message = format!("{address}: {why}; see the host's kernel log");
    DeviceError::new(SlotProblemCode::ResetFailed, message).suspect()
}

#[cfg(test)]
mod tests {
    use super::super::open_slot::function;
    use super::*;

    #[test]
    fn a_device_that_does_not_answer_is_lost_before_it_is_opened() {
        let root = tempfile::tempdir().unwrap();
        let address: PciAddress = "0000:01:00.0".parse().unwrap();
        let folder = function(root.path(), address);
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("config"), [0xff; 64]).unwrap();
        let error = look(root.path(), &[address]).unwrap_err();
        assert_eq!(error.code, SlotProblemCode::ResetFailed);
        assert!(error.is_device_suspect);
        let mut config = [0; 64];
        config[0] = 0x86;
        std::fs::write(folder.join("config"), config).unwrap();
        assert_eq!(look(root.path(), &[address]).unwrap().len(), 1);
    }
}
