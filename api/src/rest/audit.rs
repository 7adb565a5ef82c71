//! The ledger as it is served.

use serde::{Deserialize, Serialize};

use crate::ids::{EventId, NodeId, RequestId, SlotId, TenantId, TokenId, VmId};

/// One ledger entry as served: `body` is the stored text, byte for byte, and `leaf` what the tree has
/// of it (`berth_ledger::leaf`): a commitment that `nonce` opens.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct AuditEntry {
    /// Position in the ledger, from 0.
    pub index: u64,
    /// [`AuditBody`] as stored.
    pub body: String,
    /// Lower-case hex of the 32 bytes that open the leaf's commitment to `body`.
    pub nonce: String,
    /// Standard base64 of the leaf's 80 bytes.
    pub leaf: String,
    /// Lower-case hex of the leaf's hash in the tree.
    pub leaf_hash: String,
}

/// What a ledger entry says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct AuditBody {
    /// Known before its index.
    pub event_id: EventId,
    /// RFC 3339. Never before that of an earlier entry.
    pub time: String,
    /// Such as `TENANT_CREATED`.
    pub event_type: String,
    /// Whose namespace it touches; nobody's for the platform's own.
    pub tenant_id: Option<TenantId>,
    /// Its place among the entries of the same tenant, or of the platform, from 1 and without gaps.
    pub tenant_seq: u64,
    /// Lower-case hex of the SHA-256 of the body before it in that sequence; zeros in the first.
    pub prev: String,
    /// The project inside the tenant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub project_id: Option<String>,
    /// Who did it.
    pub actor: AuditActor,
    /// The request that did it, if one did.
    pub request: Option<AuditRequest>,
    /// What it is about, where no other field says so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub object: Option<AuditObject>,
    /// The VM that it touches.
    pub vm_id: Option<VmId>,
    /// The node that it touches.
    pub node_id: Option<NodeId>,
    /// The slots that it touches.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub slot_ids: Vec<SlotId>,
    /// `accepted`, `denied`, `failed` or `completed`.
    pub outcome: String,
    /// Error code of a denial or failure.
    pub code: Option<String>,
    /// Status of the answer, where it was known when this was written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http_status: Option<u16>,
    /// How long the work took, where it was over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub duration_ms: Option<u64>,
    /// Everything else.
    #[serde(default)]
    pub detail: serde_json::Map<String, serde_json::Value>,
}

/// What an entry is about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct AuditObject {
    /// Such as `token` or `image`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Its id or name.
    pub id: String,
}

/// Who did what an entry says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct AuditActor {
    /// `operator`, `tenant`, `service_account`, `guest`, `person`, `node` or `controller`; `unknown` where nobody proved who they are.
    pub kind: String,
    /// The token's id, never the token.
    pub token_id: Option<TokenId>,
    /// base64url of the holder's public key.
    pub subject_key: Option<String>,
}

/// Where a request came from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
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
    /// Lower-case hex of the SHA-256 of the body as it was sent; of requests that have one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest_sha256: Option<String>,
}

/// Query of `GET /v1/audit/entries`. All that is given must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct AuditQuery {
    /// Only this tenant's.
    pub tenant_id: Option<String>,
    /// Only this type.
    pub event_type: Option<String>,
    /// Only this VM's.
    pub vm_id: Option<String>,
    /// Only this node's.
    pub node_id: Option<String>,
    /// Only this slot's.
    pub slot_id: Option<String>,
    /// Only with this outcome.
    pub outcome: Option<String>,
    /// Only under this token.
    pub token_id: Option<String>,
    /// From this index on.
    pub since_index: Option<u64>,
    /// From this time on, RFC 3339.
    pub since: Option<String>,
    /// 1 to 1000; 100 unless given.
    pub limit: Option<u32>,
}

/// `GET /v1/audit/head`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct AuditHead {
    /// The log's name in its checkpoints.
    pub origin: String,
    /// Number of entries.
    pub size: u64,
    /// Root of the tree over them, lower-case hex.
    pub root: String,
    /// Standard base64 of the ledger's public key.
    pub public_key: String,
    /// The same key as other people's verifiers take it, with the log's name.
    pub vkey: String,
    /// The key before this one, while both sign.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous_public_key: Option<String>,
    /// The same for other people's verifiers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous_vkey: Option<String>,
    /// Size of the newest checkpoint of the public copy, where the log is published.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub published_size: Option<u64>,
    /// The signed checkpoint that says all this, with the cosignatures that it has.
    pub checkpoint: String,
    /// Other parties' witnesses, and how they stand.
    #[serde(default)]
    pub witnesses: Vec<WitnessStatus>,
}

/// A witness of the ledger that another party runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct WitnessStatus {
    /// Its name in its cosignatures.
    pub name: String,
    /// What those are verified with.
    pub vkey: String,
    /// Size of the newest checkpoint that it cosigned since this controller started.
    pub cosigned_size: Option<u64>,
    /// When that was by its own word, RFC 3339.
    pub cosigned_at: Option<String>,
    /// Why it has not cosigned the newest one: `unreachable`, `refuses`, `ahead`, `no_proof`,
    /// `rolled_back` or `forked`.
    pub problem: Option<String>,
}

/// Query of `GET /v1/audit/proof/inclusion`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct InclusionQuery {
    /// The entry.
    pub index: u64,
    /// The tree's size; that of the newest checkpoint unless given.
    pub size: Option<u64>,
}

/// `GET /v1/audit/proof/inclusion`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct InclusionProof {
    /// The entry.
    pub index: u64,
    /// The tree's size.
    pub size: u64,
    /// Siblings from the leaf to the root, standard base64.
    pub hashes: Vec<String>,
    /// The same as a file of C2SP tlog-proof, where the tree is that of the newest checkpoint.
    pub tlog_proof: Option<String>,
}

/// Query of `GET /v1/audit/proof/consistency`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct ConsistencyQuery {
    /// The older tree's size.
    pub from: u64,
    /// The newer tree's size; that of the newest checkpoint unless given.
    pub to: Option<u64>,
}

/// `GET /v1/audit/proof/consistency`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ConsistencyProof {
    /// The older tree's size.
    pub from: u64,
    /// The newer tree's size.
    pub to: u64,
    /// RFC 6962's proof, standard base64.
    pub hashes: Vec<String>,
}

/// Query of `GET /v1/audit/export`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct ExportQuery {
    /// Whose entries: a tenant's own for a tenant; for an operator this tenant's, or a selection of all.
    pub tenant_id: Option<String>,
    /// From this index on.
    pub from: Option<u64>,
    /// Below this index.
    pub to: Option<u64>,
    /// Whether the tenant's view key is put in: with it the file shows that no entry was left out, and
    /// whoever has the file can see which leaves of the log are this tenant's.
    pub view_key: Option<bool>,
}
