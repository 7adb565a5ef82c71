//! What a host's owner approved: one root-owned file for each slot in `/etc/berth/slots.d`.
//!
//! Reads text, owner and mode; opens no file.

use std::collections::BTreeMap;

use berth_api::ids::SlotId;
use berth_api::pci::PciAddress;
use berth_api::slot::{DeviceIdentity, DeviceKind};
use serde::{Deserialize, Serialize};

use crate::slot::wipe::WipePolicy;

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
