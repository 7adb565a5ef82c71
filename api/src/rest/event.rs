//! What happened, as histories and the event stream tell it: the ledger's entries in short.

use serde::{Deserialize, Serialize};

use crate::ids::{NodeId, RequestId, TenantId, TokenId, VmId};
use crate::rest::ErrorCode;

/// `GET /v1/vms/{vm}/events` and `GET /v1/events`: one entry of the ledger.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Event {
    /// Its index in the ledger: pass the next one as `since` to read on.
    pub revision: u64,
    /// RFC 3339.
    pub time: String,
    /// Such as `VM_STARTED`.
    pub event_type: String,
    /// Whose namespace it touches.
    pub tenant_id: Option<TenantId>,
    /// The VM that it touches.
    pub vm_id: Option<VmId>,
    /// The node that it touches.
    pub node_id: Option<NodeId>,
    /// `operator`, `tenant`, `node`, `controller` or `unknown`.
    pub actor: String,
    /// The token by which it was done.
    pub token_id: Option<TokenId>,
    /// The request that did it, if one did.
    pub request_id: Option<RequestId>,
    /// `accepted`, `denied`, `failed` or `completed`.
    pub outcome: String,
    /// Error code of a denial or failure.
    pub code: Option<String>,
    /// Everything else.
    #[serde(default)]
    pub detail: serde_json::Map<String, serde_json::Value>,
}

/// Query of `GET /v1/vms/{vm}/events`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct HistoryQuery {
    /// From this revision on.
    pub since: Option<u64>,
    /// 1 to 1000; 100 unless given.
    pub limit: Option<u32>,
}

/// Query of `GET /v1/events`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct StreamQuery {
    /// From this revision on; from now on unless given. `Last-Event-ID` says the same by the last one
    /// that was seen.
    pub since: Option<u64>,
    /// Only these types, with commas between.
    pub types: Option<String>,
}

/// The last event of a stream that the controller ends, of type `end`: why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct EndOfEvents {
    /// `token_revoked`, `token_expired`, or `starting` if the controller restarts.
    pub code: ErrorCode,
    /// What is wrong, in one sentence.
    pub error: String,
    /// What to do about it.
    pub detail: String,
    /// Whether the same request can go on later.
    pub retryable: bool,
}
