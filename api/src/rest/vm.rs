//! VMs, what is done to them, and the operations that work on them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::agent::StopMode;
use crate::ids::{ClaimId, NodeId, OperationId, ProjectId, SlotId, TenantId, VmId};
use crate::rest::{PlacementRequest, given};
use crate::slot::{SlotProblem, SlotState};

/// `POST /v1/vms`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct CreateVm {
    /// 1 to 63 lower-case letters, digits and inner hyphens; made up when absent.
    pub name: Option<String>,
    /// A size, as in `GET /v1/sizes`; not together with `vcpus` or `memory_mb`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<String>,
    /// 1 to 254; 1 unless given.
    pub vcpus: Option<u32>,
    /// 128 and more; 512 unless given.
    pub memory_mb: Option<u64>,
    /// Root disk; unless given, that of the size, or else the image's own size, rounded up.
    pub disk_gb: Option<u32>,
    /// An image's name, as in `GET /v1/images`.
    pub image: String,
    /// Must be the caller's own if given; another one is `tenant_mismatch`.
    pub tenant_id: Option<String>,
    /// The tenant's project that it belongs to; `default` unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub project_id: Option<String>,
    /// Slots whose devices the guest gets; all on one node.
    #[serde(default)]
    pub slots: Vec<SlotRequest>,
    /// Where it may and should go.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub placement: Option<PlacementRequest>,
    /// OpenSSH public keys, one line each, that may log in to the guest; the tenant's
    /// `default_ssh_keys` unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ssh_keys: Option<Vec<String>>,
    /// What cloud-init in the guest gets as its user data: at most 64 KiB of text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user_data: Option<String>,
    /// Whether each run's guest is given a token of scope `vm.guest`.
    #[serde(default)]
    pub guest_token: bool,
    /// Deleted when so many seconds are over: 1 to 315,360,000; never unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl_seconds: Option<u64>,
    /// Whether it is deleted once it has stopped, whoever stopped it. One that failed stays.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub auto_delete_on_stop: Option<bool>,
    /// Free labels.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
}

/// `PATCH /v1/vms/{vm}`: what is left out stays as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct ChangeVm {
    /// 1 to 63 lower-case letters, digits and inner hyphens.
    pub name: Option<String>,
    /// All labels from here on.
    pub labels: Option<BTreeMap<String, String>>,
    /// Deleted when so many seconds from now are over: 1 to 315,360,000; `null` is never.
    #[serde(
        default,
        deserialize_with = "given",
        skip_serializing_if = "Option::is_none"
    )]
    pub ttl_seconds: Option<Option<u64>>,
    /// Whether it is deleted once it stops from here on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub auto_delete_on_stop: Option<bool>,
}

/// Slots of one class, or one slot by its id.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct SlotRequest {
    /// A class as in `GET /v1/slot-classes`; not together with `slot_id`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub class: Option<String>,
    /// How many of the class; 1 unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub count: Option<u32>,
    /// This slot and no other.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slot_id: Option<SlotId>,
    /// `none`, which is the default. What asks for more is refused, as no fabric's isolation is
    /// verified.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fabric: Option<String>,
}

/// A VM's state as its tenant sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum VmState {
    /// Accepted; no node yet.
    Pending,
    /// On its way to a node.
    Scheduling,
    /// The node prepares it.
    Provisioning,
    /// The VMM is being started.
    Starting,
    /// The guest runs.
    Running,
    /// On its way to a stop.
    Stopping,
    /// No process; disk kept.
    Stopped,
    /// It ended badly or could not be started.
    Failed,
    /// Its node is silent.
    Unreachable,
    /// On its way out.
    Deleting,
    /// Gone; the record stays for 30 days.
    Deleted,
}

/// Why a VM is in its state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct StateReason {
    /// A code such as `guest_shutdown`.
    pub code: String,
    /// In words.
    pub message: String,
}

/// A VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Vm {
    /// Its id.
    pub id: VmId,
    /// Unique among the tenant's live VMs.
    pub name: String,
    /// Its owner.
    pub tenant_id: TenantId,
    /// The part of its owner that it belongs to.
    #[serde(default)]
    pub project_id: ProjectId,
    /// What it does.
    pub state: VmState,
    /// Why.
    pub state_reason: Option<StateReason>,
    /// Since when, RFC 3339.
    pub state_since: String,
    /// When it should have left the state, RFC 3339; of states that it leaves by itself.
    #[serde(default)]
    pub state_deadline: Option<String>,
    /// Whether that time is over. Nothing is stopped by it; somebody should look.
    #[serde(default)]
    pub overdue: bool,
    /// What it should do: `running`, `stopped` or `deleted`.
    pub desired_state: VmState,
    /// Counts orders to the node.
    pub generation: u64,
    /// The size that was asked for, if it was one with a name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<String>,
    /// Number of vCPUs.
    pub vcpus: u32,
    /// Memory.
    pub memory_mb: u64,
    /// Root disk.
    pub disk_gb: u32,
    /// Image name.
    pub image: String,
    /// Where it runs, once placed.
    pub node_id: Option<NodeId>,
    /// The slots that it holds.
    #[serde(default)]
    pub slots: Vec<VmSlot>,
    /// Where it was to go, as its creator wished.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub placement: Option<PlacementRequest>,
    /// OpenSSH public keys that its guest is given.
    #[serde(default)]
    pub ssh_keys: Vec<String>,
    /// SHA-256 of the user data that it was made with, lower-case hex; absent if there was none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user_data_sha256: Option<String>,
    /// Whether each run's guest is given a token of scope `vm.guest`.
    #[serde(default)]
    pub guest_token: bool,
    /// When its guest first said that it is set up, RFC 3339; from then on it is given no user data.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub booted_at: Option<String>,
    /// When it is deleted, RFC 3339; `null` is never.
    #[serde(default)]
    pub expires_at: Option<String>,
    /// Whether it is deleted once it has stopped.
    #[serde(default)]
    pub auto_delete_on_stop: bool,
    /// Free labels.
    pub labels: BTreeMap<String, String>,
    /// RFC 3339.
    pub created_at: String,
    /// The operation that works on it.
    pub operation: Option<OperationId>,
}

/// A slot as the VM that holds it shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct VmSlot {
    /// Which slot.
    pub slot_id: SlotId,
    /// Its class.
    pub class: String,
    /// The right by which it is held.
    pub claim_id: ClaimId,
    /// Where it stands on its host.
    pub state: SlotState,
    /// What is wrong with it, if anything.
    pub problem: Option<SlotProblem>,
}

/// `POST /v1/vms/{vm}/stop`; the body may be left out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct StopVm {
    /// `graceful` unless given.
    pub mode: Option<StopMode>,
    /// Seconds that the guest has to power itself off before it is ended: 1 to 3,600; 30 unless
    /// given. A hard stop does not wait.
    pub timeout_s: Option<u32>,
}

/// `GET /v1/images`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Image {
    /// Its name.
    pub name: String,
    /// Least root disk.
    pub min_disk_gb: u32,
}

/// A long action.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Operation {
    /// Its id.
    pub id: OperationId,
    /// What it works on.
    pub vm_id: VmId,
    /// `create`, `start`, `stop` or `delete`.
    pub kind: String,
    /// `running`, `done` or `failed`.
    pub state: String,
    /// Where it stands, in a word.
    pub phase: String,
    /// Whether `DELETE` ends it.
    #[serde(default)]
    pub may_cancel: bool,
    /// Why it failed.
    pub error: Option<StateReason>,
    /// RFC 3339.
    pub created_at: String,
}
