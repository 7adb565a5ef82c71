//! Slots as operators and tenants see them, and receipts.

use serde::{Deserialize, Serialize};

use crate::agent::SignedEnvelope;
use crate::ids::{ClaimId, NodeId, ReceiptId, SlotId, TaskId, TenantId, VmId};
use crate::rest::Price;
use crate::slot::{SlotDevice, SlotProblem, SlotState};

/// `GET /v1/vms/{vm}/receipts`: a host's signed statement, as it came.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct StoredReceipt {
    /// Its id.
    pub receipt_id: ReceiptId,
    /// The slot.
    pub slot_id: SlotId,
    /// The VM that had the slot, if one had.
    pub vm_id: Option<VmId>,
    /// `approval`, `claim`, `release`, `wipe` or `quarantine`.
    pub kind: String,
    /// When the host wrote it, RFC 3339.
    pub at: String,
    /// The slot's generation then.
    pub generation: u64,
    /// SHA-256 of the signed bytes, lower-case hex; the ledger entry has it too.
    pub sha256: String,
    /// Index of the ledger entry that recorded it.
    pub audit_index: u64,
    /// The host that signed.
    pub node_id: NodeId,
    /// Standard base64 of the host's public key.
    pub node_public_key: String,
    /// The statement: an envelope of `berth_api::slot::Receipt`.
    pub envelope: SignedEnvelope,
}

/// A slot as operators see it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Slot {
    /// Its id.
    pub id: SlotId,
    /// What its host's owner calls it.
    pub name: String,
    /// What a tenant asks for.
    pub class: String,
    /// The host that has it.
    pub node_id: NodeId,
    /// Where it stands, all considered.
    pub state: SlotState,
    /// Where it stands by its host's own word.
    pub host_state: SlotState,
    /// Whether it can be claimed now.
    pub claimable: bool,
    /// Why it cannot be claimed, as a word such as `claimed` or `not_admitted`.
    pub obstacle: Option<String>,
    /// What its host says is wrong with it.
    pub problem: Option<SlotProblem>,
    /// How much of a wipe is done, in percent, while there is one.
    pub progress_percent: Option<u8>,
    /// The operator's admission.
    pub admission: Option<SlotAdmission>,
    /// The controller's quarantine.
    pub quarantine: Option<SlotQuarantine>,
    /// Whether it has to be wiped before anybody gets it.
    pub wipe_required: bool,
    /// Who has it, or had it and left it unproved.
    pub claim: Option<SlotClaim>,
    /// Rises with each change on its host.
    pub generation: u64,
    /// The highest claim that its host has seen.
    pub fencing_epoch: u64,
    /// Its devices.
    pub devices: Vec<SlotDevice>,
    /// When its host last changed what it says of it, RFC 3339.
    pub reported_at: String,
    /// The order to its host that is not answered yet.
    pub pending_task: Option<TaskId>,
    /// Its newest receipts, newest first; only with `GET /v1/slots/{slot}`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub receipts: Vec<StoredReceipt>,
}

/// That an operator lets tenants have a slot, beside the approval on its host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct SlotAdmission {
    /// RFC 3339.
    pub at: String,
    /// The token by which it was done.
    pub by: String,
    /// Whether class and devices are still those that were admitted.
    pub holds: bool,
}

/// That nobody gets a slot until an operator decides.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct SlotQuarantine {
    /// RFC 3339.
    pub at: String,
    /// The token by which it was done; `controller` if it was its own doing.
    pub by: String,
    /// Why.
    pub reason: String,
}

/// A claim as operators see it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct SlotClaim {
    /// Its id.
    pub claim_id: ClaimId,
    /// For which VM.
    pub vm_id: VmId,
    /// Whose.
    pub tenant_id: TenantId,
    /// Its rank among the slot's claims.
    pub fencing_epoch: u64,
    /// RFC 3339.
    pub claimed_at: String,
    /// Whether its tenant is charged for it.
    pub charged: bool,
}

/// `POST /v1/slots/{slot}/quarantine`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct QuarantineSlot {
    /// Why; 1 to 500 characters.
    pub reason: String,
}

/// `GET /v1/slot-classes`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct SlotClass {
    /// Its name.
    pub class: String,
    /// Slots that can be claimed now: `0`, `1-3` or `4+`.
    pub available: String,
    /// The same as a number, for operators.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub free: Option<u32>,
    /// All slots of the class, for operators.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub total: Option<u32>,
    /// What a slot of this class costs, if the operator says so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub price: Option<Price>,
}
