//! What controller and agent say to each other.
//!
//! The agent dials out and listens on nothing. It enrols once with a join token
//! (`POST /v1/agent/enroll`) and then sends one long poll after the other
//! (`POST /v1/agent/sync`). Bodies from an agent are [`SignedEnvelope`]s by the node's key, tasks are
//! [`SignedEnvelope`]s by the controller's task key; `berth_ledger::envelope` makes and checks them.
//! JSON, `snake_case`, unknown fields refused on both sides: the contract is versioned as a whole.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::ids::{AgentInstanceId, NodeId, ReceiptId, TaskId, TenantId, VmId};
use crate::slot::{Claim, ObservedSlot};

/// The version of this contract.
pub const PROTOCOL_VERSION: u32 = 1;
/// Payload type of a [`Task`].
pub const TASK_PAYLOAD_TYPE: &str = "application/vnd.berth.task+json;v=1";
/// Payload type of a [`Seed`].
pub const SEED_PAYLOAD_TYPE: &str = "application/vnd.berth.seed+json;v=1";
/// Payload type of an [`EnrollRequest`].
pub const ENROLL_PAYLOAD_TYPE: &str = "application/vnd.berth.enroll+json;v=1";
/// Payload type of a [`SyncRequest`].
pub const SYNC_PAYLOAD_TYPE: &str = "application/vnd.berth.sync+json;v=1";
/// Payload type of an [`AcceptRollback`].
pub const ACCEPT_ROLLBACK_PAYLOAD_TYPE: &str = "application/vnd.berth.accept-rollback+json;v=1";
/// Payload type of a [`LedgerKeyChange`].
pub const LEDGER_KEY_PAYLOAD_TYPE: &str = "application/vnd.berth.ledger-key+json;v=1";
/// Most changes of the ledger's key that a reply tells of, the newest ones.
pub const MAX_LEDGER_KEY_CHANGES: usize = 16;
/// Longest that a sync may be held open by the controller, in seconds.
pub const LONG_POLL_SECONDS: u64 = 25;
/// Most console bytes that one result carries.
pub const MAX_CONSOLE_BYTES: u64 = 256 * 1024;
/// What a join token begins with; base64url of a [`JoinToken`] follows.
pub const JOIN_TOKEN_PREFIX: &str = "berth-join.";
/// Most bytes of envelopes of [`Seed`]s in one [`SyncReply`], beyond the first one. Tasks whose seeds do
/// not fit come with the next reply.
pub const MAX_SEED_BYTES: usize = 1024 * 1024;
/// Skew of clocks that an agent tolerates in a task's times, in seconds.
pub const CLOCK_SKEW_SECONDS: i64 = 60;

/// A DSSE envelope (<https://github.com/secure-systems-lab/dsse>, version 1.0.2) with Ed25519.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct SignedEnvelope {
    /// What the payload is.
    #[serde(rename = "payloadType")]
    pub payload_type: String,
    /// Standard base64 of the payload's bytes.
    pub payload: String,
    /// Exactly one signature.
    pub signatures: Vec<EnvelopeSignature>,
}

/// One signature of a [`SignedEnvelope`].
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct EnvelopeSignature {
    /// Standard base64 of the signer's 32-byte public key.
    pub keyid: String,
    /// Standard base64 of the 64-byte signature.
    pub sig: String,
}

/// What an operator hands to a new host. Single use.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JoinToken {
    /// Where the controller answers, such as `http://127.0.0.1:9221`.
    pub controller_url: String,
    /// 128 random bits, base64url without padding.
    pub secret: String,
    /// Seconds since the epoch after which it is worthless.
    pub expires_at: i64,
    /// The only node name that may enrol with it, if one was set.
    pub node_name: Option<String>,
}

/// A host asks to become a node. Signed by the key that it names.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EnrollRequest {
    /// [`PROTOCOL_VERSION`] of the agent.
    pub protocol_version: u32,
    /// [`JoinToken::secret`].
    pub secret: String,
    /// The name that the host wants; usually its host name.
    pub node_name: String,
    /// Standard base64 of the node's 32-byte public key; the envelope is signed with it.
    pub node_public_key: String,
    /// `/etc/machine-id`.
    pub machine_id: String,
    /// `/proc/sys/kernel/random/boot_id`.
    pub boot_id: String,
    /// Version of the agent's package.
    pub agent_version: String,
    /// What the host has.
    pub capacity: Capacity,
}

/// The controller's answer to an [`EnrollRequest`].
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct EnrollReply {
    /// The node's id from here on.
    pub node_id: NodeId,
    /// The epoch that tasks for this node carry.
    pub node_epoch: u64,
    /// Standard base64 of each public key that may sign tasks.
    pub task_public_keys: Vec<String>,
    /// Standard base64 of the ledger's public key.
    pub ledger_public_key: String,
}

/// What a host can give to VMs.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Capacity {
    /// Logical CPUs.
    pub vcpus: u32,
    /// Memory for VMs, in MiB, after the host's own headroom.
    pub memory_mib: u64,
    /// Free space for VM disks, in MiB.
    pub disk_mib: u64,
    /// Whether `/dev/kvm` is usable.
    pub kvm: bool,
}

/// One long poll: what the agent saw and did since the last one.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SyncRequest {
    /// [`PROTOCOL_VERSION`] of the agent.
    pub protocol_version: u32,
    /// Who speaks. The envelope's key must be this node's.
    pub node_id: NodeId,
    /// The epoch from enrolment.
    pub node_epoch: u64,
    /// This run of the agent.
    pub agent_instance_id: AgentInstanceId,
    /// `/proc/sys/kernel/random/boot_id`: another value means that every earlier VMM is dead.
    pub boot_id: String,
    /// Counts up by one in each run of the agent; the controller refuses a repeat.
    pub seq: u64,
    /// Version of the agent's package.
    pub agent_version: String,
    /// The host's clock, seconds since the epoch.
    pub clock: i64,
    /// How long the controller may hold the call when it has nothing to say, in seconds.
    pub wait_seconds: u64,
    /// Results that the controller has not acknowledged yet.
    pub results: Vec<TaskResult>,
    /// All VMs that this host knows.
    pub vms: Vec<ObservedVm>,
    /// All slots that this host has or had.
    pub slots: Vec<ObservedSlot>,
    /// Receipts that the controller has not acknowledged yet, oldest first: envelopes of
    /// [`crate::slot::Receipt`] by the node's key.
    pub receipts: Vec<SignedEnvelope>,
    /// All images that this host can start.
    pub images: Vec<ObservedImage>,
    /// What the host can give.
    pub capacity: Capacity,
    /// What the host has seen of the ledger.
    #[serde(default)]
    pub log: LogReport,
}

/// A tree of the ledger: which log, how many entries, and their root.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct TreeHead {
    /// The log's origin.
    pub origin: String,
    /// Number of entries.
    pub size: u64,
    /// Root, lower-case hex.
    pub root: String,
}

/// What a host has seen of the ledger. It is a witness: what it has seen can neither be taken back nor
/// be changed without it being noticed.
#[derive(Clone, Default, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LogReport {
    /// The newest tree that it verified and wrote down.
    pub seen: Option<TreeHead>,
    /// The host's cosignature of that tree's checkpoint (C2SP tlog-cosignature): one signature line.
    pub cosignature: Option<String>,
    /// Why it refuses destructive work, if it does.
    pub frozen: Option<LogFreeze>,
    /// The last [`AcceptRollback`] that it followed, by the node's key.
    pub accepted: Option<SignedEnvelope>,
}

/// That a host refuses destructive work because of the ledger.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct LogFreeze {
    /// Why.
    pub code: FreezeCode,
    /// The tree that it was shown and that does not fit, if that could be read.
    pub shown: Option<TreeHead>,
    /// Since when, seconds since the epoch.
    pub since: i64,
}

/// Why a host refuses destructive work.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum FreezeCode {
    /// The ledger has fewer entries than the host has seen.
    RolledBack,
    /// The ledger does not begin with what the host has seen.
    Forked,
    /// It is another log.
    OtherLog,
    /// It is not signed by the ledger's key.
    NotSigned,
    /// The host does not know any more what it has seen.
    MemoryLost,
}

/// An operator's word, given on the host itself, that a ledger which does not continue what the host
/// has seen is to be followed. Signed by the node's key, which only root can read.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AcceptRollback {
    /// The node that may follow.
    pub node_id: NodeId,
    /// What it has seen.
    pub seen: Option<TreeHead>,
    /// What it is to follow from here on.
    pub shown: TreeHead,
    /// Why, in the operator's words.
    pub reason: String,
    /// When, seconds since the epoch.
    pub at: i64,
}

/// The newest checkpoint, and that it grew out of what the agent has seen.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct CheckpointOffer {
    /// The signed note.
    pub note: String,
    /// Consistency proof from the tree that the request named, each hash in standard base64; empty if
    /// it named none, or if there is no proof.
    pub consistency: Vec<String>,
    /// How the ledger's key came to be another one: envelopes of [`LedgerKeyChange`], each by the key
    /// before, oldest first.
    #[serde(default)]
    pub key_changes: Vec<SignedEnvelope>,
}

/// The ledger's key says which one comes after it. Signed by the old one: whoever knows that needs no
/// other word.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LedgerKeyChange {
    /// The key that signs this, standard base64.
    pub old: String,
    /// The key that signs the ledger from here on, standard base64.
    pub new: String,
    /// When, seconds since the epoch.
    pub at: i64,
}

/// The controller's answer to a [`SyncRequest`].
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct SyncReply {
    /// Tasks that the node has not answered yet, oldest first. The same task comes again until its
    /// result arrives.
    pub tasks: Vec<SignedEnvelope>,
    /// Envelopes of [`crate::slot::SlotTask`] that the node has not answered yet, oldest first.
    pub slot_tasks: Vec<SignedEnvelope>,
    /// Envelopes of the [`Seed`]s of those tasks whose guests get one. Never stored, on either side.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub seeds: Vec<SignedEnvelope>,
    /// Receipts that are stored and need not be sent again.
    pub acknowledged_receipts: Vec<ReceiptId>,
    /// Results that are stored and need not be sent again.
    pub acknowledged: Vec<TaskId>,
    /// The controller's clock, seconds since the epoch.
    pub controller_time: i64,
    /// The ledger as it is. An agent does nothing destructive for a controller that does not show it.
    #[serde(default)]
    pub checkpoint: Option<CheckpointOffer>,
}

/// A signed order to one node.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Task {
    /// Identity; the same id is never done twice.
    pub task_id: TaskId,
    /// The node that may do it.
    pub node_id: NodeId,
    /// The node's epoch.
    pub node_epoch: u64,
    /// The VM that it is about.
    pub vm_id: VmId,
    /// The VM's owner. An agent that knows the VM under another owner refuses.
    pub tenant_id: TenantId,
    /// Must be above the last generation that the agent persisted for this VM.
    pub generation: u64,
    /// Seconds since the epoch before which it is not valid.
    pub not_before: i64,
    /// Seconds since the epoch from which on it is not valid.
    pub expires_at: i64,
    /// Index of the ledger entry that authorised it.
    pub ledger_index: u64,
    /// What to do.
    pub action: TaskAction,
}

/// The closed catalogue of what a controller can ask of an agent.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "type", deny_unknown_fields)]
pub enum TaskAction {
    /// Ensure that the VM exists with its disk, and runs.
    #[serde(rename = "vm.create")]
    VmCreate {
        /// What to build.
        spec: VmSpec,
        /// The slots whose devices its guest gets.
        claims: Vec<Claim>,
    },
    /// Ensure that the VM's process is gone; its disk stays.
    #[serde(rename = "vm.stop")]
    VmStop {
        /// How.
        mode: StopMode,
        /// Seconds to wait for the guest before it is ended.
        timeout_s: u32,
    },
    /// Ensure that an existing VM runs.
    #[serde(rename = "vm.start")]
    VmStart {},
    /// Ensure that nothing of the VM is left but a tombstone.
    #[serde(rename = "vm.delete")]
    VmDelete {},
    /// Ensure that the guest of this generation's run, which is set up, cannot read any more what it was
    /// given, and that the host keeps nothing of it. The VM runs on, so the generation is its present
    /// one.
    #[serde(rename = "vm.eject_seed")]
    VmEjectSeed {},
    /// Read the newest console output. Changes nothing, so its generation may repeat.
    #[serde(rename = "vm.console_read")]
    VmConsoleRead {
        /// How many bytes at the most, up to [`MAX_CONSOLE_BYTES`].
        tail_bytes: u64,
    },
}

/// How a VM is stopped.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum StopMode {
    /// Press the power button first.
    Graceful,
    /// End the process.
    Hard,
}

/// What a VM is made of.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VmSpec {
    /// The tenant's name for it; also the guest's host name.
    pub name: String,
    /// Number of vCPUs.
    pub vcpus: u32,
    /// Memory in MiB.
    pub memory_mib: u64,
    /// Root disk in MiB; at least the image's own size.
    pub disk_mib: u64,
    /// Name of the image.
    pub image: String,
}

/// What a guest is given at the start that a task orders, on a medium of its own. It travels beside the
/// task and is made anew whenever the task is sent, so that no secret in it is stored with the task.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Seed {
    /// The task that orders the start.
    pub task_id: TaskId,
    /// The node that may use it.
    pub node_id: NodeId,
    /// The VM whose guest gets it.
    pub vm_id: VmId,
    /// The run that it is for.
    pub generation: u64,
    /// The guest's host name.
    pub name: String,
    /// OpenSSH public keys, one line each.
    pub ssh_keys: Vec<String>,
    /// For cloud-init, byte for byte as the tenant gave it.
    pub user_data: Option<String>,
    /// With what the guest speaks to the controller.
    pub guest_access: Option<GuestAccess>,
}

/// With what a guest speaks to the controller during one run of its VM.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GuestAccess {
    /// Where the controller answers.
    pub controller_url: String,
    /// The guest's token.
    pub token: String,
}

impl fmt::Debug for Seed {
    /// Without what is nobody's business but the guest's.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Seed")
            .field("task_id", &self.task_id)
            .field("vm_id", &self.vm_id)
            .field("generation", &self.generation)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for GuestAccess {
    /// Without the token.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GuestAccess")
            .field("controller_url", &self.controller_url)
            .finish_non_exhaustive()
    }
}

/// What became of a task.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TaskResult {
    /// Which task.
    pub task_id: TaskId,
    /// How it ended.
    pub outcome: TaskOutcome,
    /// When the agent began, seconds since the epoch.
    pub started_at: i64,
    /// When the agent ended it, seconds since the epoch.
    pub ended_at: i64,
}

/// How a task ended.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "outcome", rename_all = "snake_case", deny_unknown_fields)]
pub enum TaskOutcome {
    /// The state that it asks for holds.
    Done {
        /// Facts for the record: unit name, pid, invocation id and the like.
        evidence: BTreeMap<String, String>,
    },
    /// Console bytes, standard base64.
    Console {
        /// Position of the first byte in the whole output since the VM was made.
        offset: u64,
        /// The bytes.
        data: String,
    },
    /// The agent would not: signature, node, epoch, generation, owner, time or policy.
    Refused {
        /// Why, as a code.
        code: RefusalCode,
        /// Why, in words.
        message: String,
    },
    /// The agent tried and could not; nothing is left behind.
    Failed {
        /// Why, as a code.
        code: FailureCode,
        /// Why, in words.
        message: String,
    },
}

/// Why an agent refuses a task.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RefusalCode {
    /// No trusted key signed it, or it was changed.
    BadSignature,
    /// It is not a task of this contract's version.
    Unsupported,
    /// It is for another node.
    WrongNode,
    /// It is from before the node's current epoch.
    OldEpoch,
    /// The agent has seen this or a later generation of the VM.
    OldGeneration,
    /// The VM belongs to somebody else.
    WrongOwner,
    /// It is expired, or not valid yet.
    ClockSkew,
    /// The host's own policy file forbids it.
    Policy,
    /// The ledger does not continue what the host has seen of it.
    LogFrozen,
}

/// Why a task failed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FailureCode {
    /// The host has no image of that name.
    ImageUnknown,
    /// The image's files are damaged: truncated, or not what they should be.
    ImageInvalid,
    /// Too little disk space or memory on the host.
    NoRoom,
    /// The VM is not on this host.
    VmUnknown,
    /// systemd did not start or stop the unit.
    UnitFailed,
    /// The VMM refused its configuration or ended before the guest ran.
    VmmRefused,
    /// A newer task took its place before it was done.
    Overtaken,
    /// A slot could not be claimed; its problem is in the message and in the slot's own report.
    SlotUnusable,
    /// A fault of the agent's own.
    Internal,
}

/// One VM as the host sees it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ObservedVm {
    /// Which VM.
    pub vm_id: VmId,
    /// Whose.
    pub tenant_id: TenantId,
    /// The last generation that the agent persisted.
    pub generation: u64,
    /// What it does.
    pub state: ObservedState,
    /// How often the guest reset itself since the VM was created.
    pub resets: u64,
}

/// What a VM does on its host.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case", deny_unknown_fields)]
pub enum ObservedState {
    /// A task is working on it.
    Changing,
    /// Its process runs.
    Running {
        /// Host process id of the VMM.
        pid: u32,
    },
    /// No process; disk kept.
    Stopped {
        /// Why it ended.
        reason: StoppedReason,
    },
    /// It ended without anybody's wish.
    Failed {
        /// What is known: signal, exit status, the VMM's last word.
        message: String,
    },
}

/// Why a VM is stopped.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StoppedReason {
    /// The guest powered itself off.
    GuestShutdown,
    /// A task asked for it.
    Requested,
    /// The host restarted under it.
    HostReboot,
}

/// One image as the host sees it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ObservedImage {
    /// Its name.
    pub name: String,
    /// SHA-256 over the image's manifest, lower-case hex.
    pub digest: String,
    /// Size of its root disk, in MiB, rounded up.
    pub disk_mib: u64,
}
