//! Slots: bundles of one host's devices that are rented as a whole. What controller and agent say to
//! each other about them, and the receipts that a host signs.
//!
//! Data only. What a receipt proves is checked by `berth_ledger`; what a slot may become is decided in
//! the agent.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::ids::{ClaimId, NodeId, ReceiptId, SlotId, TaskId, TenantId, VmId};
use crate::pci::{PciAddress, PciClass, PciId};

/// Payload type of a [`Receipt`] in its signed envelope.
pub const RECEIPT_PAYLOAD_TYPE: &str = "application/vnd.berth.receipt+json;v=1";
/// Payload type of a [`SlotTask`] in its signed envelope.
pub const SLOT_TASK_PAYLOAD_TYPE: &str = "application/vnd.berth.slot-task+json;v=1";

/// What a device is, beyond where it is. Two devices are the same only if all of it is equal.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct DeviceIdentity {
    /// Who made the chip.
    pub vendor: PciId,
    /// Which chip.
    pub device: PciId,
    /// Who made the board.
    pub subsystem_vendor: PciId,
    /// Which board.
    pub subsystem: PciId,
    /// What it does.
    pub class: PciClass,
    /// Its way from the root bus, without bus numbers, which firmware gives anew:
    /// `pci0000:00/01.0/00.0`.
    pub path: String,
    /// What only this one has, by kind; see [`serial_kind`]. Empty if it tells nothing.
    pub serials: BTreeMap<String, String>,
}

/// Keys of [`DeviceIdentity::serials`].
pub mod serial_kind {
    /// PCI Express device serial number, 16 hex digits (PCIe base specification 7.9.3).
    pub const PCIE_DSN: &str = "pcie_dsn";
    /// An NVMe controller's serial number, without padding.
    pub const NVME_SERIAL: &str = "nvme_serial";
    /// An NVMe controller's model number, without padding.
    pub const NVME_MODEL: &str = "nvme_model";
}

/// What a device is to its slot.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum DeviceKind {
    /// An NVMe drive: has to be wiped.
    Nvme,
    /// A display adapter or accelerator: has memory that has to be cleared.
    Gpu,
    /// A network function.
    Network,
    /// Something else without memory that outlives a reset.
    Other,
}

/// One device of a slot as its host sees it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct SlotDevice {
    /// What it is to the slot.
    pub kind: DeviceKind,
    /// Where it is now; `None` if it is not there.
    pub address: Option<PciAddress>,
    /// What it was approved as.
    pub identity: DeviceIdentity,
    /// Its IOMMU group now.
    pub iommu_group: Option<u32>,
    /// Its NUMA node.
    pub numa_node: Option<u32>,
}

/// Where a slot stands. `free` needs a wipe receipt newer than the last claim, or the approval.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum SlotState {
    /// Its devices were seen, and nobody has judged them yet.
    Discovered,
    /// No file of the host's owner names it, or not as it is now.
    Unapproved,
    /// Can be claimed.
    Free,
    /// Being made ready for a tenant, or ready.
    Claimed,
    /// A guest has it.
    InUse,
    /// Being taken back.
    Releasing,
    /// Being wiped.
    Wiping,
    /// What the wipe left is being read.
    Verifying,
    /// Nobody gets it until an operator decides.
    Quarantined,
    /// Taken out of use for good.
    Retired,
}

/// Why a slot is not usable, as a code.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum SlotProblemCode {
    /// No approval names it.
    SlotNotApproved,
    /// A device is not what was approved, or cannot show that it is.
    DeviceIdentityChanged,
    /// A device is not there.
    DeviceMissing,
    /// Firmware or settings that outlive a reset are not those that were approved.
    DeviceSettingsChanged,
    /// IOMMU, interrupt remapping, group or bridges do not isolate it.
    IommuGroupUnsafe,
    /// The host itself uses a device.
    DeviceInUse,
    /// A device cannot be reset, or did not answer after it.
    ResetFailed,
    /// A driver could not be taken off or put on.
    BindFailed,
    /// A wipe failed, stalled, or could not be proved.
    WipeFailed,
    /// A claim is older than one that this host has seen.
    StaleClaim,
    /// Another claim has the slot, or it is being taken back or wiped.
    SlotBusy,
    /// Somebody has the device who should not.
    ForeignUser,
    /// An operator wanted it.
    OperatorRequest,
    /// The host's record of the slot cannot be read.
    RecordLost,
}

/// Why a slot is not usable.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct SlotProblem {
    /// As a code.
    pub code: SlotProblemCode,
    /// In words, with what is wrong and what to do.
    pub message: String,
}

/// A tenant's right to a slot.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Claim {
    /// Which slot.
    pub slot_id: SlotId,
    /// This claim; the same id again is the same claim.
    pub claim_id: ClaimId,
    /// Rises with each claim of the slot. An agent refuses one that is lower than it has seen.
    pub fencing_epoch: u64,
}

/// Who has a slot.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SlotHolder {
    /// By which right.
    pub claim: Claim,
    /// For which VM.
    pub vm_id: VmId,
    /// Whose.
    pub tenant_id: TenantId,
}

/// One slot as its host sees it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ObservedSlot {
    /// Which slot.
    pub slot_id: SlotId,
    /// What its host's owner calls it.
    pub name: String,
    /// What a tenant asks for, such as `gpu.h100` or `nvme`.
    pub class: String,
    /// Where it stands.
    pub state: SlotState,
    /// Why it cannot be claimed, if it cannot.
    pub problem: Option<SlotProblem>,
    /// Who has it.
    pub holder: Option<SlotHolder>,
    /// Rises with each change of the state.
    pub generation: u64,
    /// The highest claim that the host has seen; 0 if none.
    pub fencing_epoch: u64,
    /// How much of a wipe is done, in percent, while there is one.
    pub progress_percent: Option<u8>,
    /// Its devices.
    pub devices: Vec<SlotDevice>,
}

/// A signed order about one slot.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SlotTask {
    /// Identity; the same id is never done twice.
    pub task_id: TaskId,
    /// The node that may do it.
    pub node_id: NodeId,
    /// The node's epoch.
    pub node_epoch: u64,
    /// The slot that it is about.
    pub slot_id: SlotId,
    /// Must not be below the highest claim that the host has seen.
    pub fencing_epoch: u64,
    /// Seconds since the epoch before which it is not valid.
    pub not_before: i64,
    /// Seconds since the epoch from which on it is not valid.
    pub expires_at: i64,
    /// Index of the ledger entry that authorised it.
    pub ledger_index: u64,
    /// What to do.
    pub action: SlotAction,
}

/// What a controller can ask for a slot. Claims and releases come with their VMs' tasks.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "type", deny_unknown_fields)]
pub enum SlotAction {
    /// Wipe a quarantined or free slot, and free it if that is proved.
    #[serde(rename = "slot.wipe")]
    Wipe {},
    /// Give the slot to nobody from here on.
    #[serde(rename = "slot.quarantine")]
    Quarantine {
        /// Why, in the operator's words.
        reason: String,
    },
}

/// A host's signed statement about one of its slots.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Receipt {
    /// Identity.
    pub receipt_id: ReceiptId,
    /// The host; its key signs.
    pub node_id: NodeId,
    /// The slot.
    pub slot_id: SlotId,
    /// The slot's name.
    pub slot_name: String,
    /// The slot's generation when this was written.
    pub generation: u64,
    /// When, seconds since the epoch.
    pub at: i64,
    /// Who had, has or had last the slot.
    pub holder: Option<SlotHolder>,
    /// The slot's devices, where they were and what they are.
    pub devices: Vec<SlotDevice>,
    /// What is stated.
    pub statement: Statement,
}

/// What a receipt states.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Statement {
    /// The slot was found as its host's owner approved it.
    Approval {
        /// SHA-256 of the approving file, lower-case hex.
        approval_sha256: String,
    },
    /// The slot was checked, bound and reset for its holder.
    Claim {
        /// What was done and how it was checked, in order.
        steps: Vec<StepRecord>,
    },
    /// The holder's guest is gone and the devices are back.
    Release {
        /// What was done and how it was checked, in order.
        steps: Vec<StepRecord>,
    },
    /// Every device was wiped and read.
    Wipe {
        /// One for each device.
        devices: Vec<DeviceWipe>,
    },
    /// Nobody gets the slot until an operator decides.
    Quarantine {
        /// Why.
        problem: SlotProblem,
    },
}

/// One step that a host took.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StepRecord {
    /// Its name.
    pub step: String,
    /// The device that it was about.
    pub address: Option<PciAddress>,
    /// When it ended, milliseconds since the epoch.
    pub ended_at_ms: i64,
    /// How long it took, in milliseconds.
    pub took_ms: u64,
    /// What was read back.
    pub found: String,
}

/// How one device was wiped, and how far that is proved.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeviceWipe {
    /// Where it was.
    pub address: PciAddress,
    /// What it is.
    pub identity: DeviceIdentity,
    /// How it was wiped, by the method's own name.
    pub method: WipeMethod,
    /// When the wipe was journaled, milliseconds since the epoch.
    pub started_at_ms: i64,
    /// When its result was known, milliseconds since the epoch.
    pub ended_at_ms: i64,
    /// What the device itself said of its end: status words, log pages, in its own numbers.
    pub completion: BTreeMap<String, String>,
    /// What was undone beside: namespaces, formats, features, locks.
    pub restored: Vec<String>,
    /// What was read afterwards.
    pub read_back: ReadBack,
    /// What this wipe cannot prove, in words.
    pub not_proved: Vec<String>,
}

/// How a device was wiped. Names say what was done and claim no standard's grade.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WipeMethod {
    /// NVMe Sanitize, crypto erase.
    NvmeSanitizeCrypto,
    /// NVMe Sanitize, block erase.
    NvmeSanitizeBlock,
    /// NVMe Sanitize, overwrite.
    NvmeSanitizeOverwrite,
    /// NVMe Format with cryptographic erase.
    NvmeFormatCrypto,
    /// NVMe Format with user data erase.
    NvmeFormatUserData,
    /// Every block was written by us.
    NvmeOverwrite,
    /// The device's memory was written by us, as far as it is reachable, after a reset.
    MemoryOverwrite,
    /// The device was reset; it has no memory that is known to outlive that.
    Reset,
}

/// What was read from a device after its wipe.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReadBack {
    /// How the places were chosen, such as `edges and 1024 random blocks`.
    pub sample: String,
    /// Bytes that the device has.
    pub bytes_total: u64,
    /// Bytes that were read.
    pub bytes_read: u64,
    /// Bytes that were not as they should be; a wipe with any of these has failed.
    pub bytes_wrong: u64,
    /// What the bytes had to be, such as `zeroes` or `not what was written before`.
    pub expected: String,
    /// SHA-256 over everything that was read, lower-case hex.
    pub sha256: String,
}
