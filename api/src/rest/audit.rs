//! The ledger as it is served.

use serde::{Deserialize, Serialize};

use crate::ids::{EventId, NodeId, RequestId, TenantId, TokenId, VmId};

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
