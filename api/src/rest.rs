//! The tenants' and operators' REST surface: bodies and error codes. Paths are in the controller.
//!
//! `snake_case`, RFC 3339 UTC times with milliseconds, units in the names. Requests refuse unknown
//! fields; clients ignore unknown response fields. [`ErrorCode`] is the closed list of codes.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::agent::{SignedEnvelope, StopMode};
use crate::ids::{
    ClaimId, EventId, NodeId, OperationId, ReceiptId, RequestId, SlotId, TaskId, TenantId, TokenId,
    VmId,
};
use crate::slot::{SlotDevice, SlotProblem, SlotState};

/// Where a controller listens unless told otherwise.
pub const DEFAULT_URL: &str = "http://127.0.0.1:9221";

/// A page of a list.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Page<T> {
    /// Objects in creation order.
    pub items: Vec<T>,
    /// Pass as `page_token` to read on; `null` at the end.
    pub next_page_token: Option<String>,
}

/// Query of every list.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ListQuery {
    /// 1 to 1000; 100 unless given.
    pub limit: Option<u32>,
    /// From the page before.
    pub page_token: Option<String>,
}

/// `POST /v1/tenants`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CreateTenant {
    /// Stable, never reused. Text here, so that a bad one gets its own error code.
    pub tenant_id: String,
    /// For people; 1 to 200 characters.
    pub display_name: String,
    /// VMs that may exist at once.
    pub max_vms: u32,
    /// Storage of all disks together.
    pub storage_quota_gb: u32,
    /// Requests per minute.
    pub api_rate_limit_rpm: u32,
    /// Slots that may be held at once, by class. A class that is not named may not be used.
    #[serde(default)]
    pub slot_limits: BTreeMap<String, u32>,
}

/// A tenant.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tenant {
    /// Its id.
    pub tenant_id: TenantId,
    /// For people.
    pub display_name: String,
    /// VMs that may exist at once.
    pub max_vms: u32,
    /// Storage of all disks together.
    pub storage_quota_gb: u32,
    /// Requests per minute.
    pub api_rate_limit_rpm: u32,
    /// Slots that may be held at once, by class. A class that is not named may not be used.
    #[serde(default)]
    pub slot_limits: BTreeMap<String, u32>,
    /// RFC 3339.
    pub created_at: String,
    /// Counts changes, from 1.
    pub revision: u64,
    /// Index of the ledger entry of the newest change.
    pub audit_index: u64,
}

/// `POST /v1/tenants/{tenant}/tokens`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IssueToken {
    /// The holder's Ed25519 public key: base64 or base64url of 32 bytes, 64 hex digits, or an
    /// OpenSSH `ssh-ed25519 …` line.
    pub subject_pubkey: String,
    /// One scope or several.
    pub scope: OneOrMany,
    /// 60 to 2,592,000 (30 days).
    pub expires_in_seconds: u64,
    /// For people.
    pub label: Option<String>,
}

/// One text or a list of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum OneOrMany {
    /// A single text.
    One(String),
    /// A list.
    Many(Vec<String>),
}

impl OneOrMany {
    /// The texts as a list.
    #[must_use]
    pub fn into_vec(self) -> Vec<String> {
        match self {
            Self::One(one) => vec![one],
            Self::Many(many) => many,
        }
    }
}

/// A token just issued; the only time that `token` is shown. Under an `Idempotency-Key` a repeat
/// gets this again with an empty `token`, as the secret is not kept: revoke `token_id` and issue
/// another under a new key if the first answer was lost.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IssuedToken {
    /// The bearer token.
    pub token: String,
    /// Its id (`jti`).
    pub token_id: TokenId,
    /// The tenant that it speaks for.
    pub tenant_id: TenantId,
    /// What it may do.
    pub scope: Vec<String>,
    /// base64url of the holder's public key.
    pub subject_pubkey: String,
    /// RFC 3339.
    pub issued_at: String,
    /// RFC 3339.
    pub expires_at: String,
}

/// A token's record, without the token.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenRecord {
    /// Its id.
    pub token_id: TokenId,
    /// The tenant that it speaks for.
    pub tenant_id: TenantId,
    /// What it may do.
    pub scope: Vec<String>,
    /// base64url of the holder's public key.
    pub subject_pubkey: String,
    /// For people.
    pub label: Option<String>,
    /// RFC 3339.
    pub issued_at: String,
    /// RFC 3339.
    pub expires_at: String,
    /// RFC 3339, once revoked.
    pub revoked_at: Option<String>,
}

/// `GET /v1/me`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Me {
    /// The tenant, or `null` for an operator.
    pub tenant_id: Option<TenantId>,
    /// The token's id.
    pub token_id: TokenId,
    /// What it may do.
    pub scope: Vec<String>,
    /// RFC 3339.
    pub expires_at: String,
}

/// `POST /v1/vms`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CreateVm {
    /// 1 to 63 lower-case letters, digits and inner hyphens; made up when absent.
    pub name: Option<String>,
    /// 1 to 254; 1 unless given.
    pub vcpus: Option<u32>,
    /// 128 and more; 512 unless given.
    pub memory_mb: Option<u64>,
    /// Root disk; the image's own size, rounded up, unless given.
    pub disk_gb: Option<u32>,
    /// An image's name, as in `GET /v1/images`.
    pub image: String,
    /// Must be the caller's own if given; another one is `tenant_mismatch`.
    pub tenant_id: Option<String>,
    /// Slots whose devices the guest gets; all on one node.
    #[serde(default)]
    pub slots: Vec<SlotRequest>,
    /// Free labels.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
}

/// Slots of one class, or one slot by its id.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
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
pub struct StateReason {
    /// A code such as `guest_shutdown`.
    pub code: String,
    /// In words.
    pub message: String,
}

/// A VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vm {
    /// Its id.
    pub id: VmId,
    /// Unique among the tenant's live VMs.
    pub name: String,
    /// Its owner.
    pub tenant_id: TenantId,
    /// What it does.
    pub state: VmState,
    /// Why.
    pub state_reason: Option<StateReason>,
    /// Since when, RFC 3339.
    pub state_since: String,
    /// What it should do: `running`, `stopped` or `deleted`.
    pub desired_state: VmState,
    /// Counts orders to the node.
    pub generation: u64,
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
    /// Free labels.
    pub labels: BTreeMap<String, String>,
    /// RFC 3339.
    pub created_at: String,
    /// The operation that works on it.
    pub operation: Option<OperationId>,
}

/// A slot as the VM that holds it shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
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

/// `GET /v1/vms/{vm}/receipts`: a host's signed statement, as it came.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
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
#[serde(deny_unknown_fields)]
pub struct QuarantineSlot {
    /// Why; 1 to 500 characters.
    pub reason: String,
}

/// `GET /v1/slot-classes`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
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
}

/// `POST /v1/vms/{vm}/stop`; the body may be left out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
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
pub struct Image {
    /// Its name.
    pub name: String,
    /// Least root disk.
    pub min_disk_gb: u32,
}

/// `POST /v1/nodes/join-tokens`
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CreateJoinToken {
    /// Bind it to one node name.
    pub node_name: Option<String>,
    /// 60 to 86,400; 3,600 unless given.
    pub ttl_s: Option<u64>,
}

/// A join token just made; shown once. Under an `Idempotency-Key` a repeat gets this again with
/// `token` and `install_command` empty, as the secret is not kept: make another under a new key if
/// the first answer was lost; the first ends by itself at `expires_at`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IssuedJoinToken {
    /// For `berth-agent join`.
    pub token: String,
    /// RFC 3339.
    pub expires_at: String,
    /// The whole command to run on the new host.
    pub install_command: String,
}

/// A node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// Its id.
    pub id: NodeId,
    /// Its name.
    pub name: String,
    /// `online`, `suspect` or `unreachable`.
    pub liveness: String,
    /// RFC 3339 of the last sync.
    pub last_heartbeat: Option<String>,
    /// The host's boot id.
    pub boot_id: String,
    /// Version of the agent.
    pub agent_version: String,
    /// Logical CPUs.
    pub vcpus: u32,
    /// Memory for VMs.
    pub memory_mb: u64,
    /// Memory promised to VMs.
    pub memory_used_mb: u64,
    /// Whether its KVM is usable.
    pub kvm: bool,
    /// VMs that are placed there.
    pub vms: u32,
}

/// `GET /v1/usage`: one resource.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// `vms`, `storage_gb` or `slots.` and a class.
    pub resource: String,
    /// The ceiling.
    pub limit: u64,
    /// Charged.
    pub used: u64,
    /// What is left.
    pub remaining: u64,
}

/// A long action.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
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
    /// Why it failed.
    pub error: Option<StateReason>,
    /// RFC 3339.
    pub created_at: String,
}

/// One ledger entry as served: `body` is the stored text, byte for byte, and what was signed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditEntry {
    /// Position in the ledger, from 0.
    pub index: u64,
    /// [`AuditBody`] as stored.
    pub body: String,
    /// Lower-case hex of the SHA-256 of the entry before; zeros for the first.
    pub prev_hash: String,
    /// Lower-case hex of this entry's SHA-256 (`berth_ledger::chain` says over what).
    pub hash: String,
    /// Standard base64 of the ledger key's signature of `hash`.
    pub signature: String,
}

/// What a ledger entry says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditBody {
    /// Known before its index.
    pub event_id: EventId,
    /// RFC 3339.
    pub time: String,
    /// Such as `TENANT_CREATED`.
    pub event_type: String,
    /// Whose namespace it touches.
    pub tenant_id: Option<TenantId>,
    /// Who did it.
    pub actor: AuditActor,
    /// The request that did it, if one did.
    pub request: Option<AuditRequest>,
    /// The VM that it touches.
    pub vm_id: Option<VmId>,
    /// The node that it touches.
    pub node_id: Option<NodeId>,
    /// `accepted`, `denied`, `failed` or `completed`.
    pub outcome: String,
    /// Error code of a denial or failure.
    pub code: Option<String>,
    /// Everything else.
    #[serde(default)]
    pub detail: serde_json::Map<String, serde_json::Value>,
}

/// Who did what an entry says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditActor {
    /// `operator`, `tenant`, `node` or `controller`; `unknown` where nobody proved who they are.
    pub kind: String,
    /// The token's id, never the token.
    pub token_id: Option<TokenId>,
    /// base64url of the holder's public key.
    pub subject_key: Option<String>,
}

/// Where a request came from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditRequest {
    /// Its id.
    pub id: RequestId,
    /// Peer address.
    pub source_ip: String,
    /// As sent, at most 200 characters.
    pub user_agent: Option<String>,
    /// HTTP method.
    pub method: String,
    /// The route's pattern.
    pub route: String,
}

/// Query of `GET /v1/audit/entries`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AuditQuery {
    /// Only this tenant's.
    pub tenant_id: Option<String>,
    /// Only this type.
    pub event_type: Option<String>,
    /// Only this VM's.
    pub vm_id: Option<String>,
    /// From this index on.
    pub since_index: Option<u64>,
    /// 1 to 1000; 100 unless given.
    pub limit: Option<u32>,
}

/// `GET /v1/audit/head`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditHead {
    /// Number of entries.
    pub size: u64,
    /// Hash of the last entry, lower-case hex; zeros when there is none.
    pub hash: String,
    /// Standard base64 of the ledger's public key.
    pub public_key: String,
}

/// `GET /v1/version`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Version {
    /// The controller's version.
    pub version: String,
    /// What this controller can, for clients that must know.
    pub api_features: Vec<String>,
}

macro_rules! error_codes { ($($(#[$doc:meta])* $name:ident = $text:literal, $status:literal, $title:literal;)*) => {
    /// Every code that an error body can carry, with its HTTP status.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
    pub enum ErrorCode { $($(#[$doc])* #[serde(rename = $text)] $name),* }

    impl ErrorCode {
        /// All codes.
        pub const ALL: &'static [Self] = &[$(Self::$name),*];

        /// The code as clients see it.
        #[must_use]
        pub fn as_str(self) -> &'static str {
            match self { $(Self::$name => $text),* }
        }

        /// The HTTP status that goes with it.
        #[must_use]
        pub fn status(self) -> u16 {
            match self { $(Self::$name => $status),* }
        }

        /// A short title for people.
        #[must_use]
        pub fn title(self) -> &'static str {
            match self { $(Self::$name => $title),* }
        }
    }
}}

error_codes! {
    /// A field's value is out of bounds, or the body is not JSON.
    InvalidRequest = "invalid_request", 400, "Invalid request";
    /// A field that does not exist.
    UnknownField = "unknown_field", 400, "Unknown field";
    /// Not a tenant id.
    InvalidTenantId = "invalid_tenant_id", 400, "Invalid tenant id";
    /// The body names another tenant than the token.
    TenantMismatch = "tenant_mismatch", 400, "Tenant mismatch";
    /// No host could ever run this shape.
    ShapeNotSupported = "shape_not_supported", 400, "Shape not supported";
    /// No credentials.
    Unauthorized = "unauthorized", 401, "Unauthorized";
    /// Credentials that are not a token of ours.
    InvalidToken = "invalid_token", 401, "Invalid token";
    /// The token's time is over.
    TokenExpired = "token_expired", 401, "Token expired";
    /// The token was revoked.
    TokenRevoked = "token_revoked", 401, "Token revoked";
    /// The token does not cover this.
    PermissionDenied = "permission_denied", 403, "Permission denied";
    /// The tenant may not use slots of this class.
    SlotClassNotAllowed = "slot_class_not_allowed", 403, "Slot class not allowed";
    /// The slot was not approved on its host, or not admitted by an operator.
    SlotNotApproved = "slot_not_approved", 403, "Slot not approved";
    /// Absent, or somebody else's.
    NotFound = "not_found", 404, "Not found";
    /// The path exists, the method does not.
    MethodNotAllowed = "method_not_allowed", 405, "Method not allowed";
    /// The wanted state did not come in time.
    WaitTimeout = "wait_timeout", 408, "Wait timed out";
    /// A live object has that name.
    AlreadyExists = "already_exists", 409, "Already exists";
    /// The tenant exists or existed.
    TenantExists = "tenant_exists", 409, "Tenant exists";
    /// Not possible in the object's state.
    InvalidState = "invalid_state", 409, "Invalid state";
    /// Somebody else has the slot.
    ClaimConflict = "claim_conflict", 409, "Claim conflict";
    /// The tenant still owns something.
    TenantNotEmpty = "tenant_not_empty", 409, "Tenant not empty";
    /// The same key with another body.
    IdempotencyConflict = "idempotency_conflict", 409, "Idempotency conflict";
    /// The body is too long.
    PayloadTooLarge = "payload_too_large", 413, "Payload too large";
    /// The body is not `application/json`.
    UnsupportedMediaType = "unsupported_media_type", 415, "Unsupported media type";
    /// No node can ever take it as things are; see `reasons`.
    PlacementImpossible = "placement_impossible", 422, "Placement impossible";
    /// The host does not isolate the slot's devices.
    IommuGroupUnsafe = "iommu_group_unsafe", 422, "IOMMU group unsafe";
    /// The slot's devices are not those that were approved.
    DeviceIdentityChanged = "device_identity_changed", 422, "Device identity changed";
    /// The tenant's ceiling is reached.
    QuotaExceeded = "quota_exceeded", 429, "Quota exceeded";
    /// Too many requests.
    RateLimited = "rate_limited", 429, "Rate limited";
    /// A fault of ours.
    Internal = "internal", 500, "Internal error";
    /// The node answered with a failure.
    NodeError = "node_error", 502, "Node error";
    /// All nodes are full; see `reasons`.
    NoCapacity = "no_capacity", 503, "No capacity";
    /// The ledger cannot be written.
    AuditUnavailable = "audit_unavailable", 503, "Audit unavailable";
    /// The node is silent.
    NodeUnreachable = "node_unreachable", 503, "Node unreachable";
    /// The controller is not ready.
    Starting = "starting", 503, "Starting";
    /// The node did not answer in time.
    NodeTimeout = "node_timeout", 504, "Node timeout";
}

/// The one error body: RFC 9457 members and a stable `code`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ErrorBody {
    /// A URI that names the code.
    #[serde(rename = "type")]
    pub type_uri: String,
    /// [`ErrorCode::title`].
    pub title: String,
    /// HTTP status.
    pub status: u16,
    /// Stable code.
    pub code: ErrorCode,
    /// What is wrong, in one sentence.
    pub error: String,
    /// What to do about it.
    pub detail: String,
    /// Whether the same request can succeed later without a change.
    pub retryable: bool,
    /// This request.
    pub request_id: RequestId,
    /// Field by field, for `invalid_request` and `unknown_field`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub fields: BTreeMap<String, String>,
    /// For `permission_denied`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub required_scope: Option<String>,
    /// For `quota_exceeded` and `rate_limited`: the ceiling.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<u64>,
    /// For `rate_limited`: seconds until it is worth trying.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reset: Option<u64>,
    /// For `quota_exceeded`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quota: Option<QuotaDetail>,
    /// For `placement_impossible` and `no_capacity`: nodes per rejection, and slots per rejection as
    /// `slots.<class>.<why>`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub reasons: BTreeMap<String, u32>,
}

/// The numbers behind a `quota_exceeded`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct QuotaDetail {
    /// `vms`, `storage_gb` or `slots.` and a class.
    pub resource: String,
    /// The ceiling.
    pub limit: u64,
    /// Charged.
    pub used: u64,
    /// Asked for.
    pub requested: u64,
    /// What is left.
    pub remaining: u64,
    /// `tenant/<id>`.
    pub scope: String,
}
