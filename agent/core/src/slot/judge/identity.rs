//! Which function of the host is the approved device, and is it still what was approved?
//!
//! A device is found by what it is and by its way from the root bus, never by its address. A device at
//! the right place that is anything else is another one.

use berth_api::slot::{DeviceIdentity, DeviceKind, SlotProblem, SlotProblemCode, serial_kind};

use super::{Beside, name, problem};
use crate::slot::approval::ApprovedDevice;
use crate::slot::snapshot::{Function, HostSnapshot};

/// The one function that is the approved device, as far as its kind and place tell.
pub(super) fn locate<'a>(
    snapshot: &'a HostSnapshot,
    approved: &ApprovedDevice,
) -> Result<&'a Function, SlotProblem> {
    let wanted = &approved.identity;
    let here: Vec<&Function> = snapshot
        .functions
        .values()
        .filter(|function| function.identity.path == wanted.path)
        .collect();
    let same: Vec<&Function> = here
        .iter()
        .copied()
        .filter(|function| differences(wanted, &function.identity).is_empty())
        .collect();
    match (same.as_slice(), here.as_slice()) {
        ([only], _) => Ok(only),
        ([], []) => Err(missing(snapshot, approved)),
        ([], [other, ..]) => Err(problem(
            SlotProblemCode::DeviceIdentityChanged,
            format!(
                "{} is not the approved device: {}. Put the approved one back, or approve this one \
                 under another name.",
                name(other),
                differences(wanted, &other.identity).join(", ")
            ),
        )),
        (several, _) => Err(problem(
            SlotProblemCode::DeviceIdentityChanged,
            format!(
                "{} functions match what was approved at {}: {}. Nothing tells them apart; take all \
                 but one out.",
                several.len(),
                wanted.path,
                several
                    .iter()
                    .map(|function| name(function))
                    .collect::<Vec<_>>()
                    .join(", ")
            ),
        )),
    }
}

fn missing(snapshot: &HostSnapshot, approved: &ApprovedDevice) -> SlotProblem {
    let wanted = &approved.identity;
    let moved = snapshot
        .functions
        .values()
        .find(|function| {
            !wanted.serials.is_empty()
                && function.identity.serials == wanted.serials
                && differences(wanted, &function.identity).is_empty()
        })
        .map(|function| {
            format!(
                " The same device seems to be {} at {}: put it back, or approve it there.",
                name(function),
                function.identity.path
            )
        });
    problem(
        SlotProblemCode::DeviceMissing,
        format!(
            "No device is at {}, where {} was approved.{}",
            wanted.path,
            approved.address,
            moved.as_deref().unwrap_or(
                " Put it back; if it is there, look for it in `lspci` and `journalctl -k`."
            )
        ),
    )
}

/// How two devices differ, apart from serial numbers and place.
fn differences(wanted: &DeviceIdentity, found: &DeviceIdentity) -> Vec<String> {
    [
        ("vendor", wanted.vendor, found.vendor),
        ("device", wanted.device, found.device),
        (
            "subsystem vendor",
            wanted.subsystem_vendor,
            found.subsystem_vendor,
        ),
        ("subsystem", wanted.subsystem, found.subsystem),
    ]
    .into_iter()
    .filter(|(_, wanted, found)| wanted != found)
    .map(|(what, wanted, found)| format!("{what} {found} instead of {wanted}"))
    .chain((wanted.class != found.class).then(|| {
        format!(
            "class {:06x} instead of {:06x}",
            found.class.0, wanted.class.0
        )
    }))
    .collect()
}

/// What the located function shows or says otherwise than it was approved.
pub(super) fn changes(
    function: &Function,
    approved: &ApprovedDevice,
    beside: &Beside,
) -> Vec<SlotProblem> {
    let mut findings = serial_changes(function, approved, beside);
    let said = beside.identified.get(&function.address);
    for (setting, wanted) in &approved.settings {
        let known = [
            function.settings.get(setting),
            said.and_then(|said| said.get(setting)),
        ];
        let found = match known.into_iter().flatten().find(|found| *found != wanted) {
            Some(found) => format!("is {found:?}"),
            None if known.iter().all(Option::is_none) && said.is_some() => {
                "is not shown any more".to_owned()
            }
            None => continue,
        };
        findings.push(problem(
            SlotProblemCode::DeviceSettingsChanged,
            format!(
                "{}: {setting} {found}, approved was {wanted:?}. Find out who changed it; set it back, \
                 or approve the slot again.",
                name(function)
            ),
        ));
    }
    findings
}

fn serial_changes(
    function: &Function,
    approved: &ApprovedDevice,
    beside: &Beside,
) -> Vec<SlotProblem> {
    let said = beside.identified.get(&function.address);
    let shown = &function.identity.serials;
    let wanted = &approved.identity.serials;
    let mut findings = Vec::new();
    let mut find = |found: String| {
        findings.push(problem(
            SlotProblemCode::DeviceIdentityChanged,
            format!("{}: {found}", name(function)),
        ));
    };
    for (kind, wanted) in wanted {
        let known = [shown.get(kind), said.and_then(|said| said.get(kind))];
        if let Some(other) = known.into_iter().flatten().find(|found| *found != wanted) {
            find(format!(
                "{kind} is {other:?}, approved was {wanted:?}: it is another device. Put the approved \
                 one back, or approve this one under another name."
            ));
        } else if known.iter().all(Option::is_none)
            && (said.is_some() || kind == serial_kind::PCIE_DSN)
        {
            find(format!(
                "{kind} was approved as {wanted:?} and is not shown any more: it cannot be told \
                 whether it is the same device."
            ));
        }
    }
    if let Some(shown) = shown.get(serial_kind::PCIE_DSN)
        && !wanted.contains_key(serial_kind::PCIE_DSN)
    {
        find(format!(
            "shows the serial number {shown:?}, and the approved device had none: approve the slot \
             again if it is the same one."
        ));
    }
    if approved.kind == DeviceKind::Nvme && !wanted.contains_key(serial_kind::NVME_SERIAL) {
        find(
            "has no serial number to be known by, so that any drive could be in its place: approve it \
             while the host's nvme driver has it, which tells one."
                .to_owned(),
        );
    }
    findings
}
