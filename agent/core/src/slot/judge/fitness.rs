//! Is one device fit to be given away, whatever is around it?

use berth_api::pci::PciClass;
use berth_api::slot::{DeviceKind, SlotProblem, SlotProblemCode};

use super::{Beside, VFIO_PCI, name, problem};
use crate::slot::approval::{ApprovedDevice, kind_of};
use crate::slot::snapshot::{Function, HostSnapshot, HostUse};

/// D3hot in PMCSR.
const D3_HOT: u8 = 3;
/// Base class of storage controllers.
const STORAGE: u8 = 0x01;
/// Base class of memory, which may keep what is in it.
const MEMORY: u8 = 0x05;

/// What stands against giving this function to anybody.
pub(super) fn problems(
    snapshot: &HostSnapshot,
    function: &Function,
    approved: &ApprovedDevice,
    beside: &Beside,
) -> Vec<SlotProblem> {
    let mut findings = uses(function, beside);
    let found = [
        kind(function, approved.kind),
        answer(function),
        reset(function),
        interrupts(function),
        virtual_functions(snapshot, function),
    ];
    findings.extend(
        found
            .into_iter()
            .flatten()
            .map(|(code, message)| problem(code, format!("{} {message}", name(function)))),
    );
    findings
}

type Found = Option<(SlotProblemCode, String)>;

fn found(code: SlotProblemCode, message: impl Into<String>) -> Found {
    Some((code, message.into()))
}

/// What it is to the slot says how it is wiped, so it must follow from what it is.
fn kind(function: &Function, approved: DeviceKind) -> Found {
    let class = function.identity.class;
    if class.is_bridge() {
        return found(
            SlotProblemCode::BindFailed,
            "is a bridge: a slot has the devices behind it.",
        );
    }
    let keeps_data = matches!(class.base(), STORAGE | MEMORY) && class != PciClass::NVME;
    if keeps_data {
        return found(
            SlotProblemCode::WipeFailed,
            format!(
                "keeps data that no wipe here can reach (class {:06x}): of storage, NVMe drives alone \
                 can be in a slot.",
                class.0
            ),
        );
    }
    let actual = kind_of(class);
    if actual == approved {
        return None;
    }
    found(
        SlotProblemCode::SlotNotApproved,
        format!(
            "has the class {:06x} and was approved as {approved:?}, not as {actual:?}: it would not be \
             wiped as it must be. Approve it again.",
            class.0
        ),
    )
}

fn answer(function: &Function) -> Found {
    let config = &function.config;
    if !config.answers {
        return found(
            SlotProblemCode::ResetFailed,
            "does not answer: its config space reads as all ones. Power-cycle it; if that does not help, \
             replace it.",
        );
    }
    if let Some(fault) = &config.fault {
        return found(
            SlotProblemCode::IommuGroupUnsafe,
            format!("cannot be judged: {fault}. Look as root; if it stays so, do not use it."),
        );
    }
    // vfio-pci itself puts what nobody uses to sleep.
    if config.power_state == Some(D3_HOT) && function.driver.as_deref() != Some(VFIO_PCI) {
        return found(
            SlotProblemCode::ResetFailed,
            "is in the power state D3hot and does not work. Wake it or power-cycle it.",
        );
    }
    None
}

fn reset(function: &Function) -> Found {
    if function.reset_methods.is_empty() {
        return found(
            SlotProblemCode::ResetFailed,
            "cannot be reset: its reset_method is absent or empty. Write `default` into it if somebody \
             emptied it; else the device cannot be in a slot.",
        );
    }
    None
}

fn interrupts(function: &Function) -> Found {
    if function.config.has_msi {
        return None;
    }
    found(
        SlotProblemCode::IommuGroupUnsafe,
        "has neither MSI nor MSI-X: its interrupt line is shared and cannot be kept apart. It cannot be \
         in a slot.",
    )
}

fn virtual_functions(snapshot: &HostSnapshot, function: &Function) -> Found {
    if let Some(count) = function.config.virtual_functions.filter(|count| *count > 0) {
        return found(
            SlotProblemCode::BindFailed,
            format!(
                "has {count} virtual functions switched on, and vfio-pci does not take it so: write 0 \
                 into its sriov_numvfs."
            ),
        );
    }
    let physical = function.config.physical_function?;
    match snapshot.functions.get(&physical) {
        None => found(
            SlotProblemCode::IommuGroupUnsafe,
            format!("is a virtual function of {physical}, which is not there."),
        ),
        Some(physical) if physical.driver.as_deref() == Some(VFIO_PCI) => found(
            SlotProblemCode::IommuGroupUnsafe,
            format!(
                "is a virtual function of {}: who has that one rules this one. Give the physical \
                 function back to the host's driver.",
                name(physical)
            ),
        ),
        Some(_) => None,
    }
}

fn uses(function: &Function, beside: &Beside) -> Vec<SlotProblem> {
    let in_use = |message: String| (SlotProblemCode::DeviceInUse, message);
    function
        .uses
        .iter()
        .filter_map(|used| {
            Some(match used {
                HostUse::Block { device, how } => in_use(format!(
                    "is used by this host: {device} is {how}. Free it (umount, swapoff, or take it out \
                     of the volume) before it can be in a slot."
                )),
                HostUse::Boot { device } => in_use(format!(
                    "holds this host's own system ({device}): it can never be in a slot."
                )),
                HostUse::Route { interface } => in_use(format!(
                    "is used by this host: {interface} is part of its network. Move the host's network \
                     elsewhere and take the interface down."
                )),
                HostUse::Console => in_use(
                    "shows this host's console: move the console to the management controller's adapter \
                     or to a serial line, and boot again."
                        .to_owned(),
                ),
                HostUse::ManagementController => in_use(
                    "belongs to this host's management controller: it can never be in a slot."
                        .to_owned(),
                ),
                HostUse::VfioUser { pid } if beside.own_processes.contains(pid) => return None,
                HostUse::VfioUser { pid } => (
                    SlotProblemCode::ForeignUser,
                    format!("is open in process {pid}, which is none of berth's: end it."),
                ),
            })
        })
        .map(|(code, message)| problem(code, format!("{} {message}", name(function))))
        .collect()
}
