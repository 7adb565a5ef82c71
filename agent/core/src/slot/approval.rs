//! What a host's owner approved: one root-owned file for each slot in `/etc/berth/slots.d`.
//!
//! Reads text, owner and mode; opens no file. Makes a proposal out of what a host shows, and the text of
//! a file out of that.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use berth_api::ids::SlotId;
use berth_api::pci::{PciAddress, PciClass};
use berth_api::slot::{DeviceIdentity, DeviceKind, serial_kind};
use serde::{Deserialize, Serialize};

use crate::slot::snapshot::HostSnapshot;
use crate::slot::wipe::WipePolicy;

/// Mode bits that let somebody else than the owner write.
const WRITABLE_BY_OTHERS: u32 = 0o022;
/// Longest name of a slot or a class, in bytes.
const MAX_NAME_BYTES: usize = 64;
/// Most devices of one slot: sixteen accelerators with as many drives and network functions.
const MAX_DEVICES: usize = 64;
/// What an approving file's name ends with.
pub const FILE_SUFFIX: &str = ".toml";

/// Keys of [`ApprovedDevice::settings`] that sysfs shows.
pub mod setting {
    /// An NVMe controller's firmware revision, without padding.
    pub const NVME_FIRMWARE: &str = "nvme_firmware";
    /// An NVMe drive's attached namespaces, such as `1:244190646x4096+0/0`: blocks, bytes of data and of
    /// metadata, kind of protection; separated by `, `.
    pub const NVME_NAMESPACES: &str = "nvme_namespaces";
}

/// One approved slot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Approval {
    /// Its id, made when it was approved.
    pub slot_id: SlotId,
    /// What the host's owner calls it; also the file's name without `.toml`.
    pub name: String,
    /// What a tenant asks for, such as `gpu.h100` or `nvme`.
    pub class: String,
    /// When it was approved, RFC 3339.
    pub approved_at: String,
    /// How its devices may be wiped.
    #[serde(default)]
    pub wipe: WipePolicy,
    /// Its devices.
    #[serde(rename = "device")]
    pub devices: Vec<ApprovedDevice>,
}

/// One device of an approved slot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ApprovedDevice {
    /// What it is to the slot.
    pub kind: DeviceKind,
    /// Where it was when it was approved: a hint for udev and people. Identity decides.
    pub address: PciAddress,
    /// What it is.
    pub identity: DeviceIdentity,
    /// Firmware and settings that outlive a reset, as they were; compared before each claim.
    #[serde(default)]
    pub settings: BTreeMap<String, String>,
}

/// What a device is to a slot, which follows from its class: a wipe depends on it.
#[must_use]
pub fn kind_of(class: PciClass) -> DeviceKind {
    match class {
        class if class.is_nvme() => DeviceKind::Nvme,
        class if class.is_gpu() => DeviceKind::Gpu,
        class if class.base() == 0x02 => DeviceKind::Network,
        _ => DeviceKind::Other,
    }
}

/// An approving file as it is found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApprovalFile {
    /// Its name with `.toml`.
    pub file: String,
    /// Its text.
    pub text: String,
    /// SHA-256 of the text, lower-case hex.
    pub sha256: String,
    /// Its owner.
    pub uid: u32,
    /// Its mode.
    pub mode: u32,
}

/// A slot that is approved, and by which file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApprovedSlot {
    /// What is approved.
    pub approval: Approval,
    /// SHA-256 of the approving file, lower-case hex.
    pub sha256: String,
}

/// A file that approves nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RefusedApproval {
    /// Its name, or the folder's if nothing in it is taken.
    pub file: String,
    /// What is wrong, and what to do.
    pub reason: String,
}

/// What a host's owner approved, and what was meant to.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Approvals {
    /// By name.
    pub approved: Vec<ApprovedSlot>,
    /// By file name.
    pub refused: Vec<RefusedApproval>,
}

/// Why a file approves nothing.
#[derive(Debug, thiserror::Error)]
pub enum ReadApprovalError {
    /// Another user could have written it.
    #[error(
        "it belongs to user {uid} and has mode {mode:o}: only its owner, who must be root, may be able to write it (`chown root`, `chmod 0644`)"
    )]
    WritableByOthers {
        /// Its owner.
        uid: u32,
        /// Its permission bits.
        mode: u32,
    },
    /// It is not an approval.
    #[error("it is not an approval as `berthctl slot approve` writes it")]
    Invalid(#[source] toml::de::Error),
    /// It speaks of another slot than its name says.
    #[error("it approves {name:?}, and a file is named after its slot")]
    FileName {
        /// The slot's name in it.
        name: String,
    },
    /// A name that a slot or class cannot have.
    #[error("{field} {text:?} {NAME_RULE}")]
    Name {
        /// `name` or `class`.
        field: &'static str,
        /// What it says.
        text: String,
    },
    /// Too few or too many devices.
    #[error("it names {count} devices, and a slot has 1 to {MAX_DEVICES}")]
    Devices {
        /// How many.
        count: usize,
    },
    /// No way to wipe it.
    #[error("`wipe.methods` is empty, so that it could never be wiped")]
    NoWipe,
}

/// Why an approval cannot be written.
#[derive(Debug, thiserror::Error)]
#[error("the approval cannot be written as TOML")]
pub struct RenderApprovalError(#[source] toml::ser::Error);

const NAME_RULE: &str = "is not 1 to 64 lower-case letters, digits, dots, hyphens or underscores that begin with a letter or digit";

fn is_name(text: &str) -> bool {
    let letter = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    (1..=MAX_NAME_BYTES).contains(&text.len())
        && text.starts_with(letter)
        && text
            .chars()
            .all(|c| letter(c) || matches!(c, '.' | '-' | '_'))
}

impl Approval {
    /// Read an approval from its file's text, name, owner and permission bits. `trusted_uid` is who
    /// may own it: root, or the user that a test runs as.
    ///
    /// # Errors
    /// Whatever is wrong with it.
    pub fn read(file: &ApprovalFile, trusted_uid: u32) -> Result<Self, ReadApprovalError> {
        if file.uid != trusted_uid || file.mode & WRITABLE_BY_OTHERS != 0 {
            return Err(ReadApprovalError::WritableByOthers {
                uid: file.uid,
                mode: file.mode & 0o7777,
            });
        }
        let approval: Self = toml::from_str(&file.text).map_err(ReadApprovalError::Invalid)?;
        check_names(&approval.name, &approval.class)?;
        if file.file.strip_suffix(FILE_SUFFIX) != Some(&approval.name) {
            return Err(ReadApprovalError::FileName {
                name: approval.name,
            });
        }
        let count = approval.devices.len();
        if !(1..=MAX_DEVICES).contains(&count) {
            return Err(ReadApprovalError::Devices { count });
        }
        if approval.wipe.methods.is_empty() {
            return Err(ReadApprovalError::NoWipe);
        }
        Ok(approval)
    }

    /// The text of its file.
    ///
    /// # Errors
    /// If something in it has no place in TOML.
    pub fn render(&self) -> Result<String, RenderApprovalError> {
        let body = toml::to_string_pretty(self).map_err(RenderApprovalError)?;
        Ok(format!(
            "# A slot that this host's owner approved. Written by `berthctl slot approve`; see there\n\
             # before you change it. Who may write this file may give away this host's devices.\n{body}"
        ))
    }
}

fn check_names(name: &str, class: &str) -> Result<(), ReadApprovalError> {
    for (field, text) in [("name", name), ("class", class)] {
        if !is_name(text) {
            return Err(ReadApprovalError::Name {
                field,
                text: text.to_owned(),
            });
        }
    }
    Ok(())
}

/// What a folder of files approves. Of files that contradict each other none is taken: nobody can tell
/// which one its owner meant.
#[must_use]
pub fn settle(files: &[ApprovalFile], trusted_uid: u32) -> Approvals {
    let mut refused = Vec::new();
    let mut read = Vec::new();
    for file in files {
        match Approval::read(file, trusted_uid) {
            Ok(approval) => read.push((file, approval)),
            Err(error) => refused.push(RefusedApproval {
                file: file.file.clone(),
                reason: with_sources(&error),
            }),
        }
    }
    let mut approved = Vec::new();
    for (index, (file, approval)) in read.iter().enumerate() {
        let rivals = read
            .iter()
            .enumerate()
            .filter(|(other, _)| *other != index)
            .map(|(_, (file, approval))| (file.file.as_str(), approval));
        match contradiction(approval, rivals) {
            None => approved.push(ApprovedSlot {
                approval: approval.clone(),
                sha256: file.sha256.clone(),
            }),
            Some(reason) => refused.push(RefusedApproval {
                file: file.file.clone(),
                reason,
            }),
        }
    }
    approved.sort_by(|a, b| a.approval.name.cmp(&b.approval.name));
    refused.sort_by(|a, b| a.file.cmp(&b.file));
    Approvals { approved, refused }
}

fn with_sources(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(cause.to_string().trim_end());
        source = cause.source();
    }
    text
}

/// Why an approval cannot stand beside the others, if it cannot.
pub fn contradiction<'a>(
    approval: &Approval,
    mut others: impl Iterator<Item = (&'a str, &'a Approval)>,
) -> Option<String> {
    let twice = approval.devices.iter().enumerate().find(|(index, device)| {
        approval
            .devices
            .iter()
            .skip(index.saturating_add(1))
            .any(|other| is_same_device(device, other))
    });
    if let Some((_, device)) = twice {
        return Some(format!(
            "it names {} twice: remove one",
            device.identity.path
        ));
    }
    others.find_map(|(file, other)| {
        if other.slot_id == approval.slot_id {
            return Some(format!(
                "it has the same slot_id as {file}: neither is taken; remove one and approve anew"
            ));
        }
        if other.name == approval.name {
            return Some(format!("it has the same name as {file}: remove one"));
        }
        let shared = approval
            .devices
            .iter()
            .find(|device| other.devices.iter().any(|o| is_same_device(device, o)))?;
        Some(format!(
            "{} is in {file}, too: neither is taken; remove it from one",
            shared.identity.path
        ))
    })
}

/// Whether two approvals mean one device: the same place, or one drive in two places.
fn is_same_device(a: &ApprovedDevice, b: &ApprovedDevice) -> bool {
    let drive = |device: &ApprovedDevice| {
        let serial = |kind| device.identity.serials.get(kind).cloned();
        Some((
            device.identity.vendor,
            serial(serial_kind::NVME_MODEL),
            serial(serial_kind::NVME_SERIAL)?,
        ))
    };
    a.identity.path == b.identity.path || drive(a).is_some() && drive(a) == drive(b)
}

/// Why nothing can be proposed.
#[derive(Debug, thiserror::Error)]
pub enum ProposeError {
    /// A name that a slot or class cannot have.
    #[error("{field} {text:?} {NAME_RULE}")]
    Name {
        /// `name` or `class`.
        field: &'static str,
        /// What was asked for.
        text: String,
    },
    /// Too few or too many devices.
    #[error("a slot has 1 to {MAX_DEVICES} different devices")]
    Devices,
    /// There is no such function.
    #[error("this host has no device {address}")]
    NoDevice {
        /// Which.
        address: PciAddress,
    },
}

/// What is decided by who approves, beside the devices.
#[derive(Debug, Clone)]
pub struct Wish {
    /// The slot's id.
    pub slot_id: SlotId,
    /// The slot's name.
    pub name: String,
    /// What tenants ask for.
    pub class: String,
    /// When, RFC 3339.
    pub approved_at: String,
}

/// The approval of these functions as they are now. It judges nothing: see
/// [`judge_slot`](crate::slot::judge::judge_slot).
///
/// # Errors
/// If a name is none, or a function is not there.
pub fn propose(
    snapshot: &HostSnapshot,
    addresses: &[PciAddress],
    wish: Wish,
) -> Result<Approval, ProposeError> {
    for (field, text) in [("name", &wish.name), ("class", &wish.class)] {
        if !is_name(text) {
            return Err(ProposeError::Name {
                field,
                text: text.clone(),
            });
        }
    }
    let different: BTreeSet<&PciAddress> = addresses.iter().collect();
    if !(1..=MAX_DEVICES).contains(&addresses.len()) || different.len() != addresses.len() {
        return Err(ProposeError::Devices);
    }
    let devices = addresses
        .iter()
        .map(|address| {
            let function = snapshot
                .functions
                .get(address)
                .ok_or(ProposeError::NoDevice { address: *address })?;
            Ok(ApprovedDevice {
                kind: kind_of(function.identity.class),
                address: *address,
                identity: function.identity.clone(),
                settings: function.settings.clone(),
            })
        })
        .collect::<Result<_, ProposeError>>()?;
    Ok(Approval {
        slot_id: wish.slot_id,
        name: wish.name,
        class: wish.class,
        approved_at: wish.approved_at,
        wipe: WipePolicy::default(),
        devices,
    })
}
